//! What a member offers: the socket, the admin service, the health port.

pub mod admin;
mod append_stream;
mod checkpoints;
mod cluster;
mod consumers;
mod convert;
pub(crate) use convert::check_request;
mod deadline;
pub mod failure;
mod freshness;
pub mod health;
pub mod listen;
mod log;
mod oversize;

pub use checkpoints::CheckpointsService;
pub use cluster::ClusterService;
pub use consumers::ConsumersService;
pub use log::LogService;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use synod_proto::v1::Failure;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::UdsConnectInfo;
use tonic::{Code, Request, Status};

/// Subscribers of one member (docs: socket-api.md).
pub const SUBSCRIBERS: usize = 1_024;
/// Connections to one listener (docs: socket-api.md).
pub const CONNECTIONS: usize = 1_024;

/// What may be taken on.
#[derive(Clone, Debug)]
pub struct Guard {
    disk_full: Arc<AtomicBool>,
    subscribers: Arc<Semaphore>,
}

impl Default for Guard {
    fn default() -> Guard {
        Guard { disk_full: Arc::default(), subscribers: Arc::new(Semaphore::new(SUBSCRIBERS)) }
    }
}

impl Guard {
    fn may_append(&self) -> Result<(), Box<Failure>> {
        if self.disk_full.load(Ordering::Relaxed) { Err(Box::new(failure::disk_full())) } else { Ok(()) }
    }

    fn subscriber(&self) -> Result<OwnedSemaphorePermit, Box<Failure>> {
        self.subscribers.clone().try_acquire_owned().map_err(|_| {
            let message =
                format!("{SUBSCRIBERS} subscribers are connected already: end some, or use another member");
            Box::new(failure::refused(Code::ResourceExhausted, "subscribers", message))
        })
    }

    /// Looks whether `dir` has less free space than `reserve` bytes: then appends are refused, while what
    /// is there is still read, and voted on, from what is kept in reserve.
    pub fn look_at_disk(&self, dir: &Path, reserve: u64) {
        let Ok(space) = rustix::fs::statvfs(dir) else { return };
        let full = space.f_bavail.saturating_mul(space.f_frsize) < reserve;
        if self.disk_full.swap(full, Ordering::Relaxed) != full {
            if full {
                tracing::error!(dir = %dir.display(), reserve, "the disk is almost full: appends are refused");
            } else {
                tracing::info!(dir = %dir.display(), "the disk has space again: appends are taken");
            }
        }
    }
}

/// Which users may use the socket (docs: socket-api.md, "Errors": `uid`).
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
        if self.allowed.is_empty() {
            return Ok(request);
        }
        let caller = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
        match caller.map(|credentials| credentials.uid()) {
            Some(uid) if self.allowed.contains(&uid) => Ok(request),
            Some(uid) => {
                let message = format!("user {uid} may not use this socket: add it to the allowed ones");
                Err(failure::status(failure::refused(Code::PermissionDenied, "uid", message)))
            }
            None => Err(Status::permission_denied("the caller's user is not known")),
        }
    }
}
