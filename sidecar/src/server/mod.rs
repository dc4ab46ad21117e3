//! What a member offers: the socket, the admin service, the health port.

pub mod admin;
mod append_stream;
mod checkpoints;
mod cluster;
mod consumers;
mod convert;
pub(crate) use convert::check_request;
mod deadline;
mod explained;
pub mod failure;
mod following;
mod freshness;
pub mod health;
pub mod http;
mod identity;
pub mod listen;
mod log;
pub(crate) mod observed;
mod paced;
mod reading;
mod seeking;
mod shares;
pub(crate) mod standard;
mod traced;

pub use checkpoints::CheckpointsService;
pub use cluster::ClusterService;
pub use consumers::ConsumersService;
pub use log::LogService;

use crate::connections::{Caller, Calls, Crowded, Refused};
use crate::driver::Handle;
use crate::shared::Shared;
use crate::space::Space;
use shares::Shares;
use std::sync::Arc;
use synod_paxos::value::{Identity, Operation};
use synod_proto::v1::{AppendResponse, Failure, Outcome, Reason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Status};

/// Subscribers of one member (docs: reliability.md, "Bounds").
pub const SUBSCRIBERS: usize = 1_024;
/// Reads of one member that are under way: each holds up to two pages that its caller has not taken, or waits for a read
/// point.
pub const READS: usize = 1_024;

/// What may be taken on.
#[derive(Clone, Debug)]
pub struct Guard {
    space: Space,
    subscribers: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    sessions: Arc<Shares>,
    calls: Calls,
}

impl Guard {
    /// Takes on what there is space for; counts in `calls` what no call of its own is.
    pub fn new(space: Space, calls: Calls) -> Guard {
        let (subscribers, reads) = (Semaphore::new(SUBSCRIBERS), Semaphore::new(READS));
        let (subscribers, reads) = (Arc::new(subscribers), Arc::new(reads));
        Guard { space, subscribers, reads, sessions: Arc::default(), calls }
    }

    fn may_append(&self) -> Result<(), Box<Failure>> {
        self.space.refuses().map_or(Ok(()), |why| Err(Box::new(failure::disk_full(why))))
    }

    /// The right to read, or to wait for a read point, until it is dropped.
    fn reader(&self) -> Result<OwnedSemaphorePermit, Box<Failure>> {
        self.reads.clone().try_acquire_owned().map_err(|_| {
            let message =
                format!("{READS} reads are under way here already: take what they give, or try again");
            let failure = failure::refused(Reason::Backpressure, message);
            Box::new(failure.retry_after(failure::RETRY_BACKPRESSURE))
        })
    }

    fn subscriber(&self) -> Result<OwnedSemaphorePermit, Box<Failure>> {
        self.subscribers.clone().try_acquire_owned().map_err(|_| {
            let message =
                format!("{SUBSCRIBERS} subscribers are connected already: end some, or use another member");
            Box::new(failure::refused(Reason::Subscribers, message))
        })
    }
}

/// The answer to an append that a full disk refuses, where it repeats one that is in the log: that takes no space.
async fn repeated(handle: &Handle, operation: &Operation) -> Option<AppendResponse> {
    let append = operation.as_append()?;
    if append.identity == Identity::None {
        // Nothing tells a repeat of it.
        return None;
    }
    let append = append.clone();
    convert::appended(handle.repeat_of(append).await?)
}

/// A member that takes no part serves nothing of the log, however fresh: what it has may not be the log any more.
fn active(shared: &Shared) -> Result<(), Status> {
    excluded(shared).map_or(Ok(()), |failure| Err(failure::status(failure)))
}

/// Why this member serves nothing of the log.
fn excluded(shared: &Shared) -> Option<Failure> {
    let facts = shared.handle().facts();
    let facts = facts.borrow();
    facts.excluded().map(|why| failure::not_active(&facts.state, why))
}

/// A connection that finds no place among those that stay.
fn crowded(error: Crowded) -> Status {
    failure::status(failure::refused(Reason::Connections, error.to_string()))
}

/// What a socket refuses before a service sees it, in the words of the services.
pub fn explain(why: Refused) -> Status {
    let busy = failure::refused(Reason::Backpressure, why).retry_after(failure::RETRY_BACKPRESSURE);
    failure::status(match why {
        Refused::Connection(_) => failure::refused(Reason::Connections, why),
        Refused::User(_) | Refused::UnknownUser => failure::refused(Reason::Uid, why),
        Refused::Calls | Refused::Incoming => busy,
        // It ends an answer: what was asked for may have been done.
        Refused::Outgoing => Failure { outcome: Outcome::Unknown.into(), ..busy },
        Refused::Late => failure::refused(Reason::Stalled, why),
        Refused::Entries | Refused::Body => failure::refused(Reason::CallTooLarge, why),
    })
}

/// Which users may use the socket (docs: security.md, "Who is trusted").
#[derive(Clone, Debug)]
pub struct Callers {
    /// Empty: whoever can open the file.
    allowed: Arc<[u32]>,
}

impl Callers {
    /// Only these users; with an empty list, all.
    pub fn new(allowed: &[u32]) -> Callers {
        Callers { allowed: allowed.into() }
    }
}

impl tonic::service::Interceptor for Callers {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let caller = Caller::of(request.extensions())?;
        let is_allowed =
            self.allowed.is_empty() || caller.uid().is_some_and(|uid| self.allowed.contains(&uid));
        match caller.uid() {
            _ if is_allowed => {
                caller.admit().map_err(crowded)?;
                Ok(request)
            }
            Some(uid) => {
                let message = format!("user {uid} may not use this socket: add it to the allowed ones");
                Err(failure::status(failure::refused(Reason::Uid, message)))
            }
            None => Err(failure::status(failure::refused(Reason::Uid, "the caller's user is not known"))),
        }
    }
}
