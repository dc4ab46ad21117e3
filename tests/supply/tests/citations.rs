//! What code cites is in the repository, and what a document links to is there.
//!
//! A citation is the name of a page in a comment, mostly as `docs: NAME.md`, and what follows it: sections in
//! quotation marks, `rule 4`, `faults 4 to 6`, `scorecard 9`, `layers of testing, 5`. A section is a heading, or
//! words in bold at the beginning of a paragraph or of an item. A number is an item of its section.

use std::fs;
use std::path::{Path, PathBuf};

use synod_supply::workspace;

/// At least so many citations and links there are: a search that finds fewer has gone blind.
const LEAST_CITATIONS: usize = 150;
const LEAST_LINKS: usize = 100;

/// Words that lead to a section of their own, and what the section is called.
const SERIES: [(&str, &str); 6] = [
    ("rules", "Rules"),
    ("rule", "Rules"),
    ("faults", "Faults"),
    ("fault", "Faults"),
    ("scorecard", "Scorecard"),
    ("layers of testing", "Layers of testing"),
];

/// One place that a comment leads to.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    section: String,
    /// None: the whole section.
    number: Option<u32>,
}

/// A page that a comment names.
#[derive(Debug, PartialEq, Eq)]
struct Citation {
    line: usize,
    /// From the top of the repository.
    page: String,
    places: Vec<Place>,
}

/// Files below `folder` with one of these endings, without what is built or fetched.
fn files(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder can be listed") {
        let entry = entry.expect("a folder can be listed");
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        // A link is not followed: it may lead out of the repository, or round in a circle.
        let kind = entry.file_type().expect("the type of a file");
        if kind.is_dir() {
            if !name.starts_with('.') && name != "target" && name != "node_modules" {
                files(&path, endings, found);
            }
        } else if kind.is_file() && endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
}

/// Runs of comment lines, each as one text, with the number of the line that each byte offset begins.
fn comments(source: &str) -> Vec<(String, Vec<(usize, usize)>)> {
    let mut blocks = Vec::new();
    let mut block: Option<(String, Vec<(usize, usize)>)> = None;
    for (number, line) in source.lines().enumerate() {
        let Some(text) = line.trim_start().strip_prefix("//") else {
            blocks.extend(block.take());
            continue;
        };
        let (joined, starts) = block.get_or_insert_default();
        starts.push((joined.len(), number + 1));
        joined.push_str(text.trim_start_matches(['/', '!']).trim());
        joined.push(' ');
    }
    blocks.extend(block);
    blocks
}

/// Every page that the comments of a file name.
fn citations(source: &str) -> Vec<Citation> {
    let mut found = Vec::new();
    for (text, starts) in comments(source) {
        for (end, _) in text.match_indices(".md") {
            let before = &text[..end];
            let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '.');
            let path = &before[before.trim_end_matches(part).len()..];
            let Some(page) = page(path) else { continue };
            let line = starts.iter().rev().find(|(start, _)| *start <= end).map_or(0, |(_, line)| *line);
            found.push(Citation { line, page, places: places(&text[end + ".md".len()..]) });
        }
    }
    found
}

/// The page that `path` (without its ending) means. None: a file that is no page of `docs`.
fn page(path: &str) -> Option<String> {
    let name = path.strip_prefix("docs/").unwrap_or(path);
    let small = name.starts_with(|c: char| c.is_ascii_lowercase());
    let inside = !name.contains('/') || name.starts_with("decisions/");
    (small && inside).then(|| format!("docs/{name}.md"))
}

/// The sections and numbers that follow the name of a page.
fn places(mut rest: &str) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    let mut section: Option<String> = None;
    let mut range_from: Option<u32> = None;
    loop {
        rest = rest.trim_start_matches([',', ';', ' ']);
        rest = rest.strip_prefix("and ").unwrap_or(rest);
        if let Some(after) = rest.strip_prefix("to ") {
            range_from = places.last().and_then(|place| place.number);
            rest = after;
        }
        if let Some((quoted, after)) = rest.strip_prefix('"').and_then(|after| after.split_once('"')) {
            places.push(Place { section: quoted.to_owned(), number: None });
            section = Some(quoted.to_owned());
            rest = after;
        } else if let Some((word, of)) = SERIES.iter().find(|(word, _)| rest.starts_with(word)) {
            // `"Leader", rule 2` is an item of that section; `rule 2` alone is one of the rules.
            let within = section.take().filter(|_| *of == "Rules");
            section = Some(within.unwrap_or_else(|| (*of).to_owned()));
            rest = &rest[word.len()..];
        } else {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (Some(section), Ok(number)) = (&section, rest[..digits].parse::<u32>()) else {
                return places;
            };
            for number in range_from.take().map_or(number, |from| from + 1)..=number {
                places.push(Place { section: section.clone(), number: Some(number) });
            }
            rest = &rest[digits..];
        }
    }
}

/// The text of a section, from behind its title on. None: there is none of that name.
fn section<'a>(page: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let mut body: Option<(usize, Vec<&str>)> = None;
    let mut code = false;
    for line in page.lines() {
        code ^= line.starts_with("```");
        let depth = if code { 0 } else { line.len() - line.trim_start_matches('#').len() };
        if let Some((of, lines)) = &mut body {
            if depth > 0 && depth <= *of {
                break;
            }
            lines.push(line);
        } else if !code && title(line).is_some_and(|title| is_named(title, name)) {
            // Bold words have no end that can be told: they hold what is there before the next heading.
            body = Some((if depth > 0 { depth } else { usize::MAX }, vec![line]));
        }
    }
    body.map(|(_, lines)| lines)
}

/// What a line is the title of.
fn title(line: &str) -> Option<&str> {
    if line.starts_with('#') {
        return Some(line.trim_start_matches('#').trim());
    }
    let item =
        line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '-' | '.' | ' '));
    item.strip_prefix("**")?.split_once("**").map(|(bold, _)| bold.trim_end_matches(['.', ':']))
}

/// "Sessions" names the section "Sessions: exactly once", too.
fn is_named(title: &str, name: &str) -> bool {
    title.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', ',']))
}

/// Whether a section has an item of that number: of a list, or a row of a table.
fn has_item(lines: &[&str], number: u32) -> bool {
    let (item, row) = (format!("{number}. "), format!("| {number} |"));
    lines.iter().any(|line| line.starts_with(&item) || line.starts_with(&row))
}

/// What is wrong with a citation.
fn faults(citation: &Citation, page: Option<&str>) -> Vec<String> {
    let Some(page) = page else { return vec![format!("there is no {}", citation.page)] };
    let mut faults = Vec::new();
    for Place { section: name, number } in &citation.places {
        match (section(page, name), number) {
            (None, _) => faults.push(format!("{} has no section \"{name}\"", citation.page)),
            (Some(lines), Some(number)) if !has_item(&lines, *number) => {
                faults.push(format!("{}, \"{name}\" has no {number}", citation.page));
            }
            (Some(_), _) => {}
        }
    }
    faults
}

/// Relative links of a document, without those in code.
fn links(text: &str) -> Vec<&str> {
    let mut code = false;
    let mut found = Vec::new();
    for line in text.lines() {
        code ^= line.starts_with("```");
        // Every other piece is between backticks.
        for piece in line.split('`').step_by(2).filter(|_| !code) {
            for (at, mark) in piece.match_indices("](") {
                let target = piece[at + mark.len()..].split([')', '#', ' ']).next().unwrap_or_default();
                if !target.is_empty() && !target.contains(':') {
                    found.push(target);
                }
            }
        }
    }
    found
}

#[test]
fn every_citation_leads_somewhere() {
    let root = workspace();
    let mut sources = Vec::new();
    files(&root, &[".rs", ".proto"], &mut sources);
    let (mut count, mut broken) = (0, Vec::new());
    for path in sources.iter().filter(|path| !path.ends_with(file!())) {
        let source = fs::read_to_string(path).expect("a source is text");
        for citation in citations(&source) {
            count += 1;
            let page = fs::read_to_string(root.join(&citation.page)).ok();
            let at = format!("{}:{}", path.strip_prefix(&root).unwrap_or(path).display(), citation.line);
            broken
                .extend(faults(&citation, page.as_deref()).into_iter().map(|fault| format!("{at}: {fault}")));
        }
    }
    assert!(count >= LEAST_CITATIONS, "only {count} citations were found");
    assert!(broken.is_empty(), "citations that lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let root = workspace();
    let mut documents: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].iter().map(|name| root.join(name)).collect();
    files(&root.join("docs"), &[".md"], &mut documents);
    let (mut count, mut broken) = (0, Vec::new());
    for path in documents {
        let text = fs::read_to_string(&path).expect("a document is text");
        for link in links(&text) {
            count += 1;
            if !path.with_file_name(link).exists() {
                broken.push(format!("{}: {link}", path.strip_prefix(&root).unwrap_or(&path).display()));
            }
        }
    }
    assert!(count >= LEAST_LINKS, "only {count} links were found");
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn what_leads_nowhere_is_found() {
    let page = "# A page\n\n## Leader\n\n1. **Canvass.** One.\n2. Two.\n\n## Sessions: exactly once\n\n## Faults\n\n| 4 | a flip |\n| 6 | a write |\n";
    let found = |comment: &str| -> Vec<String> {
        let citations = citations(comment);
        assert_eq!(citations.len(), 1, "{citations:?}");
        citations.iter().flat_map(|citation| faults(citation, Some(page))).collect()
    };
    let none: Vec<String> = Vec::new();
    assert_eq!(found("/// (docs: a.md, \"Leader\" rules 1\n/// and 2, \"Sessions\")."), none);
    assert_eq!(found("// docs: a.md, \"Canvass\": \"nothing\" more"), none);
    assert_eq!(found("// docs/a.md, \"Leader\", 3"), ["docs/a.md, \"Leader\" has no 3"]);
    assert_eq!(found("//! docs: a.md, \"Sess\""), ["docs/a.md has no section \"Sess\""]);
    assert_eq!(found("// docs: a.md, faults 4 to 6."), ["docs/a.md, \"Faults\" has no 5"]);
    assert_eq!(found("// docs: a.md, rule 1"), ["docs/a.md has no section \"Rules\""]);
    let missing = citations("    // docs: b.md; see README.md and ../c.md");
    assert_eq!(missing.len(), 1, "{missing:?}");
    assert_eq!(faults(&missing[0], None), ["there is no docs/b.md"]);
    let text = "[a](b.md#c) `[n](no.md)`\n[x](https://y)\n```\n[c](d.md)\n```\n[e](#f)";
    assert_eq!(links(text), ["b.md"]);
}
