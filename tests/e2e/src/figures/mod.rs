//! Figures of the operator: what was measured, beside what is asked.

pub mod many;
pub mod one;

use std::fmt::Write;

/// One figure, measured once or more.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What is measured.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// The most that is asked.
    pub most: f64,
    /// What was measured.
    pub measured: Vec<f64>,
}

impl Figure {
    /// A figure of which nothing is measured yet.
    pub fn new(name: &str, unit: &'static str, most: f64) -> Figure {
        Figure { name: name.to_owned(), unit, most, measured: Vec::new() }
    }

    /// The middle one of the measured; the smallest and the greatest.
    fn spread(&self) -> Option<(f64, f64, f64)> {
        let mut sorted = self.measured.clone();
        sorted.sort_by(f64::total_cmp);
        Some((*sorted.get(sorted.len() / 2)?, *sorted.first()?, *sorted.last()?))
    }
}

/// The figures as a table of at most 80 columns.
pub fn table(figures: &[Figure]) -> String {
    let mut text =
        format!("{:<40}{:>8}{:>8}{:>8}{:>8}  {}\n", "FIGURE", "ASKED", "MEDIAN", "LEAST", "MOST", "UNIT");
    for figure in figures {
        let Some((median, least, most)) = figure.spread() else { continue };
        let name: String = figure.name.chars().take(39).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{name:<40}{:>8.1}{median:>8.1}{least:>8.1}{most:>8.1}  {}",
            figure.most, figure.unit
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_shows_its_median_and_its_spread() {
        let mut figure = Figure::new("to grow", "s", 30.0);
        figure.measured = vec![9.0, 7.0, 30.5];
        let shown = table(&[figure, Figure::new("not measured", "s", 1.0)]);
        let expected = "to grow                                     30.0     9.0     7.0    30.5  s";
        assert_eq!(shown.lines().skip(1).collect::<Vec<_>>(), [expected]);
        assert!(shown.lines().all(|line| line.len() <= 80));
    }
}
