//! Who holds a place at a listener, and who has to go when there is none left.
//!
//! A connection *waits* until its first call was found to be a member's, the operator's or an application's; then it is
//! *admitted*. Waiting connections cost those who open them nothing, so they are few, they end after a time, and a new
//! one takes the place of the oldest one of the source that has most of them. Sources that belong to members of this
//! cluster have places of their own.

use super::Limits;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A host. Of an IPv6 address the first 64 bits count: the rest is the host's own choice.
    Host(IpAddr),
    /// A user of this machine.
    User(u32),
    /// The system does not tell.
    Unknown,
}

impl Source {
    /// The source of a TCP connection.
    pub fn of(address: IpAddr) -> Source {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Source::Host(IpAddr::from([a, b, c, d, 0, 0, 0, 0]))
            }
            v4 @ IpAddr::V4(_) => Source::Host(v4),
        }
    }
}

/// No place is left for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Crowded {
    /// From this source.
    #[error("{0} connections from this address or user are open already: close some")]
    Source(usize),
    /// From all together.
    #[error("{0} connections are open already: close some, or use another member")]
    All(usize),
}

#[derive(Debug)]
struct Held {
    source: Source,
    is_known: bool,
    /// There while the connection waits: sending cuts it, dropping admits it.
    waiting: Option<oneshot::Sender<()>>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// By age.
    held: BTreeMap<u64, Held>,
    /// Waiting connections of unknown sources; never an entry of 0.
    waiting: HashMap<Source, usize>,
    waiting_unknown: usize,
    waiting_known: usize,
    admitted: usize,
    admitted_by: HashMap<Source, usize>,
    cut: u64,
    refused: u64,
}

/// The connections of one listener.
#[derive(Debug)]
pub struct Table {
    limits: Limits,
    state: Mutex<State>,
}

/// How full a table is, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Connections that were not admitted yet.
    pub waiting: usize,
    /// Connections that were.
    pub admitted: usize,
    /// Waiting connections that were closed for a newer one.
    pub cut: u64,
    /// Connections that were not admitted for want of a place.
    pub refused: u64,
}

impl Table {
    pub(super) fn new(limits: Limits) -> Arc<Table> {
        Arc::new(Table { limits, state: Mutex::default() })
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing can panic under this lock but a broken count, after which counting is over.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How full it is.
    pub fn usage(&self) -> Usage {
        let state = self.state();
        Usage {
            waiting: state.waiting_unknown + state.waiting_known,
            admitted: state.admitted,
            cut: state.cut,
            refused: state.refused,
        }
    }

    /// Takes a place for a new connection, if need be that of an older one that waits. The receiver gets a word when
    /// the connection is to be closed, and an error when it was admitted.
    pub(super) fn enter(self: &Arc<Self>, source: Source, is_known: bool) -> (Place, oneshot::Receiver<()>) {
        let mut state = self.state();
        let is_known = is_known && self.limits.waiting_known > 0;
        if is_known {
            if state.waiting_known >= self.limits.waiting_known {
                state.cut_oldest(|held| held.is_known);
            }
        } else if state.waiting.get(&source).is_some_and(|count| *count >= self.limits.waiting_by_source) {
            state.cut_oldest(|held| !held.is_known && held.source == source);
        } else if state.waiting_unknown >= self.limits.waiting {
            let most = state.waiting.values().copied().max().unwrap_or(0);
            let loudest: HashSet<Source> = state
                .waiting
                .iter()
                .filter(|(_, count)| **count == most)
                .map(|(source, _)| *source)
                .collect();
            state.cut_oldest(|held| !held.is_known && loudest.contains(&held.source));
        }
        let (cut, waiting) = oneshot::channel();
        let id = state.next;
        state.next += 1;
        state.held.insert(id, Held { source, is_known, waiting: Some(cut) });
        state.count_waiting(source, is_known);
        (Place { table: self.clone(), id }, waiting)
    }

    /// Makes room for an accept that failed for want of a descriptor.
    pub(super) fn cut_one(&self) {
        self.state().cut_oldest(|_| true);
    }

    /// Admits a connection; one that is admitted already stays so.
    fn admit(&self, id: u64) -> Result<(), Crowded> {
        let mut state = self.state();
        let Some(Held { source, is_known, waiting }) = state.held.get(&id) else {
            // It was closed meanwhile: its answer goes nowhere.
            return Ok(());
        };
        let (source, is_known) = (*source, *is_known);
        if waiting.is_none() {
            return Ok(());
        }
        let Limits { admitted, admitted_by_source, kept_for_known, .. } = self.limits;
        let by_source = state.admitted_by.get(&source).copied().unwrap_or(0);
        let all = if is_known { admitted } else { admitted - kept_for_known.min(admitted) };
        let crowded = if by_source >= admitted_by_source {
            Some(Crowded::Source(by_source))
        } else {
            (state.admitted >= all).then_some(Crowded::All(state.admitted))
        };
        if let Some(crowded) = crowded {
            state.refused += 1;
            return Err(crowded);
        }
        if let Some(held) = state.held.get_mut(&id) {
            held.waiting = None;
        }
        state.uncount_waiting(source, is_known);
        state.admitted += 1;
        *state.admitted_by.entry(source).or_default() += 1;
        Ok(())
    }

    fn leave(&self, id: u64) {
        let mut state = self.state();
        let Some(Held { source, is_known, waiting }) = state.held.remove(&id) else { return };
        if waiting.is_some() {
            state.uncount_waiting(source, is_known);
            return;
        }
        state.admitted -= 1;
        if let Some(count) = state.admitted_by.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                state.admitted_by.remove(&source);
            }
        }
    }
}

impl State {
    fn count_waiting(&mut self, source: Source, is_known: bool) {
        if is_known {
            self.waiting_known += 1;
        } else {
            self.waiting_unknown += 1;
            *self.waiting.entry(source).or_default() += 1;
        }
    }

    fn uncount_waiting(&mut self, source: Source, is_known: bool) {
        if is_known {
            self.waiting_known -= 1;
            return;
        }
        self.waiting_unknown -= 1;
        if let Some(count) = self.waiting.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.waiting.remove(&source);
            }
        }
    }

    /// Closes the oldest connection that waits and is one of those meant.
    fn cut_oldest(&mut self, is_meant: impl Fn(&Held) -> bool) {
        let oldest = self.held.iter().find(|(_, held)| held.waiting.is_some() && is_meant(held));
        let Some(id) = oldest.map(|(id, _)| *id) else { return };
        let Some(Held { source, is_known, waiting: Some(cut) }) = self.held.remove(&id) else { return };
        self.uncount_waiting(source, is_known);
        self.cut += 1;
        // A connection that has ended by itself needs no word.
        let _ = cut.send(());
    }
}

/// A connection's place; dropping it gives it to another one.
#[derive(Debug)]
pub(super) struct Place {
    table: Arc<Table>,
    id: u64,
}

impl Place {
    pub(super) fn ticket(&self) -> Ticket {
        Ticket { table: self.table.clone(), id: self.id }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.table.leave(self.id);
    }
}

/// The right to have a connection admitted; outlives it harmlessly.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    table: Arc<Table>,
    id: u64,
}

impl Ticket {
    pub(super) fn admit(&self) -> Result<(), Crowded> {
        self.table.admit(self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::oneshot::error::TryRecvError;

    fn table() -> Arc<Table> {
        Table::new(Limits {
            waiting: 6,
            waiting_by_source: 4,
            waiting_known: 2,
            admitted: 5,
            admitted_by_source: 3,
            kept_for_known: 1,
            patience: Duration::from_secs(1),
        })
    }

    fn host(last: u8) -> Source {
        Source::of(IpAddr::from([10, 0, 0, last]))
    }

    /// `None`: waits. `Some(true)`: admitted. `Some(false)`: cut.
    fn state(waiting: &mut oneshot::Receiver<()>) -> Option<bool> {
        match waiting.try_recv() {
            Ok(()) => Some(false),
            Err(TryRecvError::Closed) => Some(true),
            Err(TryRecvError::Empty) => None,
        }
    }

    #[test]
    fn a_source_that_holds_most_loses_its_oldest() {
        let table = table();
        let mut loud: Vec<_> = (0..4).map(|_| table.enter(host(1), false)).collect();
        let mut quiet: Vec<_> = (2..4).map(|last| table.enter(host(last), false)).collect();
        // Full: the newcomer of another source takes a place of the loud one.
        let mut new = table.enter(host(4), false);
        assert_eq!(state(&mut loud[0].1), Some(false));
        // The loud one takes its own.
        loud.push(table.enter(host(1), false));
        assert_eq!(state(&mut loud[1].1), Some(false));
        let untouched = quiet.iter_mut().chain([&mut new]).chain(&mut loud[2..]);
        assert!(untouched.map(|(_, waiting)| state(waiting)).all(|state| state.is_none()));
        assert_eq!(table.usage(), Usage { waiting: 6, admitted: 0, cut: 2, refused: 0 });
        drop((loud, quiet, new));
        assert_eq!(table.usage(), Usage { waiting: 0, admitted: 0, cut: 2, refused: 0 });
    }

    #[test]
    fn known_members_have_places_of_their_own() {
        let table = table();
        let mut known = table.enter(host(9), true);
        let crowd: Vec<_> = (0..100).map(|last| table.enter(host(last), false)).collect();
        assert_eq!(state(&mut known.1), None);
        // Strangers may be admitted up to what is kept for members.
        let outcomes: Vec<_> = crowd[94..].iter().map(|(place, _)| place.ticket().admit()).collect();
        assert_eq!(outcomes[..4], [Ok(()); 4]);
        assert_eq!(outcomes[4..], [Err(Crowded::All(4)); 2]);
        assert_eq!(table.usage().admitted, 4);
        known.0.ticket().admit().unwrap();
        known.0.ticket().admit().unwrap();
        assert_eq!(state(&mut known.1), Some(true));
        assert_eq!(table.usage().admitted, 5);
    }

    #[test]
    fn a_source_is_admitted_up_to_its_share() {
        let table = table();
        let places: Vec<_> = (0..4).map(|_| table.enter(host(1), false)).collect();
        let outcomes: Vec<_> = places.iter().map(|(place, _)| place.ticket().admit()).collect();
        assert_eq!(outcomes, [Ok(()), Ok(()), Ok(()), Err(Crowded::Source(3))]);
        drop(places);
        assert_eq!(table.usage(), Usage { waiting: 0, admitted: 0, cut: 0, refused: 1 });
    }

    #[test]
    fn a_host_has_one_source() {
        let address = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
        assert_eq!(address("fd00::1:2"), address("fd00::3:4"));
        assert_ne!(address("fd00:1::1"), address("fd00:0:0:1::1"));
    }
}
