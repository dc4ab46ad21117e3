//! The running core as the servers and the transport see it: `Renew` puts another one in its place.

use crate::driver::Handle;
use crate::space::Space;
use crate::transport::Identity;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use tokio::sync::watch;

/// How far the process has gone down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Running,
    /// Clients' calls under way are answered, which may take the peers.
    Draining,
    Closing,
}

/// What stays while cores come and go.
#[derive(Debug)]
pub struct Shared {
    handle: RwLock<Handle>,
    identity: watch::Sender<Identity>,
    phase: watch::Sender<Phase>,
    space: Space,
    unknown_messages: AtomicU64,
}

impl Shared {
    /// Around the first core.
    pub fn new(handle: Handle, identity: watch::Sender<Identity>, space: Space) -> Shared {
        let phase = watch::Sender::new(Phase::Running);
        let unknown_messages = AtomicU64::new(0);
        Shared { handle: RwLock::new(handle), identity, phase, space, unknown_messages }
    }

    /// Counts a peer's message of a kind that this version does not know.
    pub(crate) fn note_unknown_message(&self) {
        self.unknown_messages.fetch_add(1, Ordering::Relaxed);
    }

    /// Those so far.
    pub fn unknown_messages(&self) -> u64 {
        self.unknown_messages.load(Ordering::Relaxed)
    }

    /// The space on the disk.
    pub fn space(&self) -> &Space {
        &self.space
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

    /// From now on streams of clients end and new calls are refused; what is under way goes on.
    pub fn stop(&self) {
        self.phase.send_if_modified(|phase| {
            std::mem::replace(phase, (*phase).max(Phase::Draining)) < Phase::Draining
        });
    }

    /// From now on the connections to peers end, too.
    pub fn close(&self) {
        self.phase.send_replace(Phase::Closing);
    }

    /// Whether the process is going down.
    pub fn is_stopping(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }

    /// Resolves when the process goes down.
    pub async fn stopped(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Resolves when connections to peers are to end.
    pub async fn closed(&self) {
        self.reached(Phase::Closing).await;
    }

    async fn reached(&self, wanted: Phase) {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as `self`.
        drop(phase.wait_for(|phase| *phase >= wanted).await);
    }
}
