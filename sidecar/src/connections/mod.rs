//! Connections that listeners accept: bounded by source, before and after their handshake, and closed when they do not
//! say who they are in time. Every port and socket of a member takes its connections from here (docs: reliability.md,
//! "Bounds").

mod answers;
mod authority;
mod bodies;
mod calls;
mod fair;
mod fields;
mod serve;
mod stream;
mod table;
mod wire;

pub use bodies::{Budgets, CALLS, Explain, INCOMING, InHand, OUTGOING, PLAIN_BODY, Refused, Tally, Weight};
pub(crate) use calls::DONE;
pub use calls::{Calls, Observed};
pub use serve::{Plain, Terms, serve};
pub use stream::{Accept, Caller, Connection, Incoming};
pub use table::{Crowded, Source, Table, Usage};

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a connection may take for its handshakes and its first call.
const PATIENCE: Duration = Duration::from_secs(10);
/// Descriptors that all listeners take together when nothing is made smaller.
const ALL: usize = 3_200;
/// The least places of a kind, however few descriptors there are.
const LEAST: usize = 4;
/// Addresses of members that are remembered.
const KNOWN: usize = 256;
/// How long an address counts as a member's after it was last reached.
const KNOWN_FOR: Duration = Duration::from_secs(600);

/// How many connections a listener takes, and how long it waits for them to say who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections that were not admitted yet, of sources that are not known.
    pub waiting: usize,
    /// Of those, the connections of one source.
    pub waiting_by_source: usize,
    /// Connections of known members that were not admitted yet.
    pub waiting_known: usize,
    /// Admitted connections.
    pub admitted: usize,
    /// Of those, the connections of one source.
    pub admitted_by_source: usize,
    /// Of the admitted connections, those that only known members may have.
    pub kept_for_known: usize,
    /// How long a connection may wait.
    pub patience: Duration,
}

/// The limits of every listener of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// The peer port.
    pub peer: Limits,
    /// The admin port.
    pub admin: Limits,
    /// The admin socket.
    pub admin_socket: Limits,
    /// The applications' socket.
    pub socket: Limits,
    /// The health port, where every connection waits and none is admitted.
    pub health: Limits,
}

impl Shares {
    /// Shares of `descriptors`: as wide as they need to be where there are enough, narrower in proportion where not.
    pub fn of(descriptors: usize) -> Shares {
        let part = |full: usize| (full * descriptors.min(ALL) / ALL).max(LEAST);
        let limits = |waiting: usize, admitted: usize| Limits {
            waiting: part(waiting),
            waiting_by_source: part(waiting * 3 / 4),
            waiting_known: 0,
            admitted: part(admitted),
            admitted_by_source: part(admitted),
            kept_for_known: 0,
            patience: PATIENCE,
        };
        Shares {
            peer: Limits {
                waiting_known: part(64),
                admitted_by_source: part(192).max(16),
                kept_for_known: part(384),
                ..limits(448, 768)
            },
            admin: limits(128, 128),
            admin_socket: limits(128, 128),
            socket: Limits { admitted_by_source: part(192), ..limits(256, 256) },
            health: Limits { admitted: 0, admitted_by_source: 0, ..limits(64, 0) },
        }
    }
}

/// Addresses at which members of this cluster were reached.
#[derive(Clone, Debug, Default)]
pub struct Known(Arc<Mutex<HashMap<IpAddr, Instant>>>);

impl Known {
    /// A member of this cluster is at `address`.
    pub fn add(&self, address: IpAddr) {
        // Nothing can panic under this lock.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if known.len() >= KNOWN {
            known.retain(|_, reached| now.duration_since(*reached) < KNOWN_FOR);
        }
        if known.len() < KNOWN {
            known.insert(address.to_canonical(), now);
        }
    }

    /// Whether a member was reached at `address` of late.
    pub fn has(&self, address: IpAddr) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&address.to_canonical()).is_some_and(|reached| reached.elapsed() < KNOWN_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a listener may hold open at most.
    fn most(limits: Limits) -> usize {
        limits.waiting + limits.waiting_known + limits.admitted
    }

    #[test]
    fn shares_fit_into_the_descriptors() {
        for descriptors in [128, 832, 3_200, 1 << 20] {
            let Shares { peer, admin, admin_socket, socket, health } = Shares::of(descriptors);
            let all: usize = [peer, admin, admin_socket, socket, health].map(most).iter().sum();
            assert!(all <= descriptors, "{all} of {descriptors}");
            assert!(peer.kept_for_known < peer.admitted && health.admitted == 0);
        }
    }

    #[test]
    fn an_address_is_known_after_it_was_reached() {
        let known = Known::default();
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        assert!(!known.has(address));
        known.add(address);
        assert!(known.has("::ffff:10.0.0.1".parse().unwrap()));
    }
}
