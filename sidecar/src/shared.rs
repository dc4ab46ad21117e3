//! The running core as the servers and the transport see it: `Renew` puts another one in its place.

use crate::driver::Handle;
use crate::transport::Identity;
use std::sync::{PoisonError, RwLock};
use tokio::sync::watch;

/// What stays while cores come and go.
#[derive(Debug)]
pub struct Shared {
    handle: RwLock<Handle>,
    identity: watch::Sender<Identity>,
    stopping: watch::Sender<bool>,
}

impl Shared {
    /// Around the first core.
    pub fn new(handle: Handle, identity: watch::Sender<Identity>) -> Shared {
        Shared { handle: RwLock::new(handle), identity, stopping: watch::Sender::new(false) }
    }

    /// The core that runs now.
    pub fn handle(&self) -> Handle {
        // Nothing can panic under this lock: it guards one assignment.
        self.handle.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a new core in the place of the old one.
    pub(crate) fn replace(&self, handle: Handle, identity: Identity) {
        *self.handle.write().unwrap_or_else(PoisonError::into_inner) = handle;
        self.identity.send_replace(identity);
    }

    /// Who this process is, and its changes.
    pub fn identity(&self) -> watch::Receiver<Identity> {
        self.identity.subscribe()
    }

    /// The sender that the driver tells of a new cluster.
    pub(crate) fn identity_sender(&self) -> watch::Sender<Identity> {
        self.identity.clone()
    }

    /// From now on streams end and new calls are refused.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Whether the process is going down.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Resolves when the process goes down.
    pub async fn stopped(&self) {
        let mut stopping = self.stopping.subscribe();
        // The sender lives as long as `self`.
        drop(stopping.wait_for(|stopping| *stopping).await);
    }
}
