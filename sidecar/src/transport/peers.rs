//! Where the peers' addresses come from.

use std::collections::HashSet;
use std::path::PathBuf;

/// Addresses given on the command line, and a file that is read again when it changes.
#[derive(Clone, Debug, Default)]
pub struct PeerSource {
    fixed: Vec<String>,
    file: Option<PathBuf>,
    last: Option<String>,
    told: String,
}

impl PeerSource {
    /// From `--peer` and `--peers-file`.
    pub fn new(fixed: Vec<String>, file: Option<PathBuf>) -> PeerSource {
        PeerSource { fixed, file, last: None, told: String::new() }
    }

    /// All addresses, where they differ from those of the last call. A file that cannot be read leaves the
    /// list as it was: it may be in the middle of being replaced.
    pub(super) fn changed(&mut self) -> Option<HashSet<String>> {
        let text = match &self.file {
            None => String::new(),
            Some(path) => match std::fs::read_to_string(path) {
                Ok(text) => text,
                Err(error) => {
                    let why = error.to_string();
                    if why != self.told {
                        tracing::warn!(path = %path.display(), why, "the list of peers cannot be read");
                        self.told = why;
                    }
                    return None;
                }
            },
        };
        self.told.clear();
        if self.last.as_ref() == Some(&text) {
            return None;
        }
        let addresses = parse_peers(&text).into_iter().chain(self.fixed.iter().cloned()).collect();
        self.last = Some(text);
        Some(addresses)
    }
}

/// The addresses of a peers file: `host:port`, one a line; empty lines and what follows a `#` do not count.
pub fn parse_peers(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_file_has_comments_and_empty_lines() {
        let text = "demo-0.demo-peers:7400\n\n# gone\n  demo-1.demo-peers:7400 # second\n";
        assert_eq!(parse_peers(text), ["demo-0.demo-peers:7400", "demo-1.demo-peers:7400"]);
    }
}
