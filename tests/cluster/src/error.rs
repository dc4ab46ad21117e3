//! What can go wrong while a cluster is built, run or removed. Every message says what to do next
//! where there is something to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read, written or made.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "write", "read", "create".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A program could not be started at all.
    #[error("cannot start `{command}`: {source}")]
    Spawn {
        /// The command line, shortened.
        command: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A program ran and ended with a failure.
    #[error("`{command}` failed ({status}){output}")]
    Command {
        /// The command line, shortened.
        command: String,
        /// How it ended.
        status: String,
        /// The last lines of what it printed, indented, or empty.
        output: Output,
    },
    /// This machine lacks something; the text says what and how to get it.
    #[error("{0}")]
    Missing(String),
    /// The caller asked for something that cannot be; the text says what can.
    #[error("{0}")]
    Invalid(String),
    /// Addresses this cluster would use are in use on this machine.
    #[error(
        "the addresses {wanted} that this cluster would put on this machine are in use by {user}; \
         choose four free ones, for instance SYNOD_CLUSTER_LINK=10.255.255.0/30"
    )]
    AddressesInUse {
        /// The range wanted.
        wanted: String,
        /// The interface or route that has them.
        user: String,
    },
    /// No cluster of that name runs.
    #[error(
        "no cluster named `{name}` runs for {}; start it with `{hint}`", root.display()
    )]
    NotUp {
        /// The cluster's name.
        name: String,
        /// The checkout it would belong to.
        root: PathBuf,
        /// The command that starts it.
        hint: String,
    },
    /// Something did not happen in time.
    #[error("waited {seconds} s for {what}; {state}")]
    Timeout {
        /// What was awaited.
        what: String,
        /// How long, in seconds.
        seconds: u64,
        /// How things stood at the end.
        state: String,
    },
    /// Certificates could not be made.
    #[error("cannot make the certificate of {of}: {source}")]
    Certificate {
        /// Whose certificate.
        of: String,
        /// The library's answer.
        source: rcgen::Error,
    },
    /// A step of a longer job failed.
    #[error("{step}: {source}{}", Log(log.as_deref()))]
    Step {
        /// The step, as printed.
        step: String,
        /// Why.
        source: Box<Error>,
        /// The file with the details, if there is one.
        log: Option<PathBuf>,
    },
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The last lines a program printed.
#[derive(Debug, Clone, Default)]
pub struct Output(pub String);

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<&str> = self.0.lines().filter(|line| !line.trim().is_empty()).collect();
        for line in lines.iter().skip(lines.len().saturating_sub(12)) {
            write!(f, "\n  {}", line.trim_end())?;
        }
        Ok(())
    }
}

struct Log<'a>(Option<&'a Path>);

impl fmt::Display for Log<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(path) => write!(f, "\n  log: {}", path.display()),
            None => Ok(()),
        }
    }
}

/// Gives an [`io::Result`] the path and the action it was about.
pub(crate) trait At<T> {
    /// Turns the error into [`Error::Io`].
    ///
    /// # Errors
    /// The same error, with its place.
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io { action, path: path.to_path_buf(), source })
    }
}
