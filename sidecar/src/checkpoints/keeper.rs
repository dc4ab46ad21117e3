//! The background: what the log names and this disk lacks is fetched, what it names no more is removed, and what is
//! here is read now and then to see that it still can be.

use super::file::Name;
use super::{Checkpoints, blocking};
use crate::pace::Pace;
use std::collections::HashMap;
use std::time::Duration;
use synod_paxos::Consistency;
use synod_paxos::value::Checkpoint;
use tokio::time::Instant;

/// Between two tries to fetch what is missing.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Between two looks where nothing is to be done.
const LOOK: Duration = Duration::from_secs(60);
/// Between two readings of a file that is in order.
const SCRUB: Duration = Duration::from_secs(6 * 3_600);
/// What reading them may take from the disk: bytes a second.
const SCRUB_RATE: u64 = 32 << 20;
/// How long to wait for the word that a name is not in the log.
const PATIENCE: Duration = Duration::from_secs(5);

/// Keeps this member's checkpoints in step with the log.
#[derive(Debug)]
pub struct Keeper {
    checkpoints: Checkpoints,
    pause: Duration,
    /// Why something is missing, as it was told last.
    told: String,
}

impl Keeper {
    /// A keeper of these.
    pub fn new(checkpoints: Checkpoints) -> Keeper {
        Keeper { checkpoints, pause: FIRST_PAUSE, told: String::new() }
    }

    /// Runs until the process goes down.
    pub async fn run(mut self) {
        let checkpoints = self.checkpoints.clone();
        tokio::select! {
            () = checkpoints.0.shared.stopped() => {}
            () = self.keep() => {}
            () = scrub(&checkpoints) => {}
        }
    }

    async fn keep(&mut self) {
        loop {
            let mut changes = self.checkpoints.0.shared.handle().checkpoints();
            let named = changes.borrow_and_update().clone();
            self.sweep(&named).await;
            let missing = self.fetch(&named).await;
            let wait = if missing > 0 {
                let wait = self.pause;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                wait
            } else {
                self.pause = FIRST_PAUSE;
                LOOK
            };
            let wake = &self.checkpoints.0.wake;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    // The disk was renewed: another core comes.
                    tokio::time::sleep(FIRST_PAUSE).await;
                },
                () = wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn sweep(&self, named: &[Checkpoint]) {
        let (this, names) = (self.checkpoints.clone(), named.to_vec());
        let old = blocking(move || this.0.store.sweep(&names)).await;
        if old.is_empty() {
            return;
        }
        // They were saved here or pulled for somebody, and no entry came of it for long. This member may only have
        // been cut off; what a quorum has chosen by now is seen at such a point.
        let handle = self.checkpoints.0.shared.handle();
        if handle.read_point(Consistency::Linearizable, Instant::now() + PATIENCE).await.is_err() {
            return;
        }
        let Ok(named) = self.checkpoints.list().await else { return };
        for name in old {
            let is_named = named.iter().any(|listed| Name::of(&listed.checkpoint) == name);
            if !is_named {
                let this = self.checkpoints.clone();
                blocking(move || this.0.store.forget(&name)).await;
            }
        }
    }

    /// Fetches what is missing, the newest first; gives how many are missing still.
    async fn fetch(&mut self, named: &[Checkpoint]) -> usize {
        let inner = self.checkpoints.0.clone();
        let is_missing = |checkpoint: &&Checkpoint| !inner.store.has(checkpoint);
        let mut missing = named.iter().filter(is_missing).count();
        inner.metrics.checkpoints_missing.set(i64::try_from(missing).unwrap_or(i64::MAX));
        if inner.context.linked_members().is_empty() {
            // It has just started, or is cut off.
            return missing;
        }
        for checkpoint in named.iter().rev().filter(is_missing) {
            match self.checkpoints.obtain(*checkpoint, None).await {
                Ok(()) => {
                    self.told.clear();
                    missing -= 1;
                    inner.metrics.checkpoints_missing.dec();
                }
                Err(error) => {
                    let why = error.to_string();
                    if why != self.told {
                        tracing::warn!(
                            why,
                            index = checkpoint.index.0,
                            "a checkpoint is missing here; trying on"
                        );
                        self.told = why;
                    }
                }
            }
        }
        missing
    }
}

/// Reads what was not read for long, again and again: what is damaged is moved aside, and the keeper fetches it.
async fn scrub(checkpoints: &Checkpoints) {
    let pace = Pace::new(SCRUB_RATE);
    let mut read: HashMap<Name, Instant> = HashMap::new();
    loop {
        let mut changes = checkpoints.0.shared.handle().checkpoints();
        let named = changes.borrow_and_update().clone();
        read.retain(|name, _| named.iter().any(|checkpoint| Name::of(checkpoint) == *name));
        for checkpoint in &named {
            let name = Name::of(checkpoint);
            if read.get(&name).is_some_and(|read| read.elapsed() < SCRUB) {
                continue;
            }
            let Some(local) = checkpoints.open_here(*checkpoint).await else { continue };
            let mut offset = 0;
            while offset < checkpoint.length {
                let Some(bytes) = local.read(offset).await else { break };
                offset += bytes.len() as u64;
                pace.pass(bytes.len()).await;
            }
            if offset >= checkpoint.length {
                read.insert(name, Instant::now());
            }
        }
        tokio::select! {
            // A member that has just started learns what the log names, and has not read any of it yet.
            changed = changes.changed() => if changed.is_err() {
                tokio::time::sleep(FIRST_PAUSE).await;
            },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}
