//! What can go wrong in a reconcile. Logged once, where the controller consumes it, with its causes.

use thiserror::Error;

use crate::members::MemberError;
use crate::tls::TlsError;

/// A reconcile could not go on; the next one starts from fresh reads.
#[derive(Debug, Error)]
pub enum Error {
    /// The API server refused, or did not answer.
    #[error("{doing}: {source}")]
    Api {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: kube::Error,
    },
    /// A member refused, or did not answer.
    #[error("{pod}: {source}")]
    Member {
        /// The member's pod.
        pod: String,
        /// Why it failed.
        source: MemberError,
    },
    /// A certificate could not be made or read.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A Secret that the spec names is missing or incomplete.
    #[error("the Secret {secret} {why}: {hint}")]
    Secret {
        /// The Secret.
        secret: String,
        /// What is wrong with it.
        why: String,
        /// What to do.
        hint: &'static str,
    },
    /// An object under a name that we need belongs to someone else.
    #[error(
        "{kind:?} {name} exists and does not belong to this PaxosCluster: delete it, or use another name for the cluster"
    )]
    NameConflict {
        /// Kind of the object.
        kind: crate::build::Kind,
        /// Its name.
        name: String,
    },
    /// The server refuses the StatefulSet.
    #[error("the server refuses the pods of this spec: {0}")]
    Template(String),
}

impl Error {
    /// Wraps an API error with what was being done.
    pub fn api(doing: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
        let doing = doing.into();
        move |source| Error::Api { doing, source }
    }

    /// Whether someone else wrote in between: to be tried again at once, and no news to anyone.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Error::Api { source, .. } if code(source) == Some(409))
    }

    /// A short name for the metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Api { .. } if self.is_conflict() => "conflict",
            Error::Api { .. } => "api",
            Error::Member { .. } => "member",
            Error::Tls(_) => "tls",
            Error::Secret { .. } => "secret",
            Error::NameConflict { .. } => "name_conflict",
            Error::Template(_) => "template",
        }
    }
}

/// The HTTP status of an API error.
pub(crate) fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Turns "not found" into `None`: what shall be gone may be gone already.
pub(crate) fn gone_is_fine<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if code(&e) == Some(404) => Ok(None),
        Err(e) => Err(e),
    }
}
