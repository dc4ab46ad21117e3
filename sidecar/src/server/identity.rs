//! Which log is answered from: named in every answer, and demandable.
//!
//! After a recovery from the loss of a quorum, or where a cluster was deleted and made anew, the same socket leads to
//! another history. A caller that has built on one passes its name with each call, and is refused rather than given the
//! other.

use super::failure;
use crate::shared::Shared;
use std::sync::Arc;
use synod_proto::v1::{Failure, Reason};
use tonic::codegen::http::{HeaderMap, HeaderValue};

/// The header of requests and answers: the cluster's id in hexadecimal, a dot, and how often it was recovered.
pub(crate) const HEADER: &str = "synod-log";

/// The name of the log that this member has; `None` while it belongs to no cluster.
pub(crate) fn name(shared: &Shared) -> Option<String> {
    let (cluster, _) = shared.identity().borrow().cluster?;
    let recoveries = shared.handle().facts().borrow().recoveries;
    Some(format!("{:032x}.{recoveries}", u128::from_be_bytes(cluster.0)))
}

/// Names the log in every answer of a service, and refuses calls that demand another.
#[derive(Clone, Debug)]
pub(super) struct LogName(Option<Arc<Shared>>);

impl LogName {
    pub(super) fn new(shared: Arc<Shared>) -> LogName {
        LogName(Some(shared))
    }

    #[cfg(test)]
    pub(super) fn none() -> LogName {
        LogName(None)
    }

    fn name(&self) -> Option<String> {
        name(self.0.as_ref()?)
    }

    /// Why a call is refused that demands another log.
    pub(super) fn refuses(&self, request: &HeaderMap) -> Option<Failure> {
        let wanted = request.get(HEADER)?;
        let actual = self.name();
        if actual.as_deref().is_some_and(|actual| wanted.as_bytes() == actual.as_bytes()) {
            return None;
        }
        let actual = actual.unwrap_or_else(|| "none".to_owned());
        let wanted = String::from_utf8_lossy(wanted.as_bytes()).into_owned();
        let message = format!(
            "the call wants the log {wanted}, and this member has {actual}: the log was recovered or made anew, what was \
             read from the other does not hold here"
        );
        Some(failure::refused(Reason::OtherLog, message))
    }

    pub(super) fn put(&self, answer: &mut HeaderMap) {
        if let Some(value) = self.name().and_then(|name| HeaderValue::from_str(&name).ok()) {
            answer.insert(HEADER, value);
        }
    }
}
