//! What can go wrong in a reconcile. Logged once, where the controller consumes it, with its causes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use thiserror::Error;

use crate::crd::Reason;
use crate::members::MemberError;
use crate::names::ClusterName;
use crate::status::Refusal;
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
        "{kind:?} {name} exists and does not belong to this PaxosCluster: use another name for the cluster, or, \
         if nobody needs it, delete it"
    )]
    NameConflict {
        /// Kind of the object.
        kind: crate::build::Kind,
        /// Its name.
        name: String,
    },
    /// An object of a deleted PaxosCluster of the same name has not been collected yet.
    #[error(
        "{kind:?} {name} still belongs to a deleted PaxosCluster of the same name: it is being collected"
    )]
    Leftover {
        /// Kind of the object.
        kind: crate::build::Kind,
        /// Its name.
        name: String,
    },
    /// An object came into being since it was looked for.
    #[error("{object} was made meanwhile")]
    Moved {
        /// The object.
        object: String,
    },
    /// The reconcile took too long.
    #[error("the API server or a member does not answer: the reconcile was given up after 60 s")]
    TooLong,
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

    /// What a person has to be told, if the API server or an object's owner refuses: trying again at once is of
    /// no use, and everything else goes on. docs: operator-rules.md, "Template".
    pub fn refusal(&self) -> Option<Refusal> {
        let (reason, message) = match self {
            Error::Template(_) => (Reason::InvalidTemplate, self.to_string()),
            Error::NameConflict { .. } => (Reason::NameConflict, self.to_string()),
            Error::Secret { .. } | Error::Tls(_) => (Reason::InvalidSpec, self.to_string()),
            // Not what passes by itself: a conflict, an object that is gone, a server that is overloaded.
            Error::Api { doing, source: kube::Error::Api(status) }
                if matches!(status.code, 400 | 402 | 403 | 405 | 406 | 410 | 413 | 415 | 422 | 500) =>
            {
                (Reason::Refused, format!("{doing}: the API server says: {}", status.message))
            }
            Error::Api { .. }
            | Error::Member { .. }
            | Error::Leftover { .. }
            | Error::Moved { .. }
            | Error::TooLong => {
                return None;
            }
        };
        Some(Refusal { reason, message })
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
            Error::Leftover { .. } => "leftover",
            Error::Moved { .. } => "conflict",
            Error::TooLong => "too_long",
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

/// Refuses an object that is not ours: a stranger's for good, one of our predecessor's until it is gone.
pub(crate) fn check_owner(
    meta: &ObjectMeta,
    name: &ClusterName,
    kind: crate::build::Kind,
) -> Result<(), Error> {
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    if owners.iter().any(|o| o.uid == name.uid) {
        return Ok(());
    }
    let object = meta.name.clone().unwrap_or_default();
    let predecessor = owners.iter().any(|o| o.kind == "PaxosCluster" && o.name == name.name);
    if predecessor {
        Err(Error::Leftover { kind, name: object })
    } else {
        Err(Error::NameConflict { kind, name: object })
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
