//! Who holds a place at a listener, and who has to go when there is none left.
//!
//! A connection *waits* until its first call was found to be a member's, the operator's or an application's; then it is
//! *admitted*. Waiting connections cost those who open them nothing, so they are few, they end after a time, and a new
//! one takes the place of the oldest one of the source that has most of them. Sources that belong to members of this
//! cluster have places of their own.

use super::Limits;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, oneshot};

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

/// What a connection does at the moment, where whoever serves it says so.
#[derive(Debug)]
pub(super) struct Activity {
    /// Open calls.
    open: AtomicUsize,
    /// Of those, calls that the member is at work for: the others wait for their callers.
    working: AtomicUsize,
    /// Told once, when a newer connection has taken the place.
    displaced: Notify,
}

impl Activity {
    /// `open` calls at first; one that is never given back keeps the connection its place.
    fn new(open: usize) -> Arc<Activity> {
        let (open, working) = (AtomicUsize::new(open), AtomicUsize::new(0));
        Arc::new(Activity { open, working, displaced: Notify::new() })
    }

    /// Whether no call is open.
    pub(super) fn is_idle(&self) -> bool {
        self.open.load(Ordering::Relaxed) == 0
    }

    /// Whether nothing but its callers is waited for.
    pub(super) fn waits_for_callers(&self) -> bool {
        self.working.load(Ordering::Acquire) == 0
    }

    /// The member is at work for a call, until it says otherwise.
    pub(super) fn work(self: &Arc<Self>) -> Work {
        self.working.fetch_add(1, Ordering::AcqRel);
        Work(Arc::new(Working { works: AtomicBool::new(true), activity: self.clone() }))
    }

    /// Resolves when the connection has lost its place.
    pub(super) async fn displaced(&self) {
        self.displaced.notified().await;
    }

    /// A call is open until what this returns is dropped.
    pub(super) fn open(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(self.clone())
    }
}

/// An open call.
#[derive(Debug)]
pub(super) struct Open(Arc<Activity>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether the member is at work for a call, or waits for the caller: for more of the request, or until it takes the
/// answer.
#[derive(Clone, Debug)]
pub(super) struct Work(Arc<Working>);

#[derive(Debug)]
struct Working {
    works: AtomicBool,
    activity: Arc<Activity>,
}

impl Work {
    pub(super) fn set(&self, works: bool) {
        self.0.set(works);
    }
}

impl Working {
    fn set(&self, works: bool) {
        match (self.works.swap(works, Ordering::AcqRel), works) {
            (false, true) => drop(self.activity.working.fetch_add(1, Ordering::AcqRel)),
            (true, false) => drop(self.activity.working.fetch_sub(1, Ordering::AcqRel)),
            _ => {}
        }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[derive(Debug)]
struct Held {
    source: Source,
    is_known: bool,
    activity: Arc<Activity>,
    /// It gave its place away and is not counted any more.
    displaced: bool,
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
    displaced: u64,
}

/// The connections of one listener.
#[derive(Debug)]
pub struct Table {
    limits: Limits,
    /// Whether connections say when they are idle, and then make room for others.
    tells_idle: bool,
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
    /// Admitted connections without an open call that were closed for a newer one.
    pub displaced: u64,
}

impl Table {
    pub(super) fn new(limits: Limits, tells_idle: bool) -> Arc<Table> {
        Arc::new(Table { limits, tells_idle, state: Mutex::default() })
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
            displaced: state.displaced,
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
        let activity = Activity::new(usize::from(!self.tells_idle));
        let held =
            Held { source, is_known, activity: activity.clone(), displaced: false, waiting: Some(cut) };
        state.held.insert(id, held);
        state.count_waiting(source, is_known);
        (Place { table: self.clone(), id, activity }, waiting)
    }

    /// Makes room for an accept that failed for want of a descriptor.
    pub(super) fn cut_one(&self) {
        self.state().cut_oldest(|_| true);
    }

    /// Admits a connection; one that is admitted already stays so.
    fn admit(&self, id: u64) -> Result<(), Crowded> {
        let mut state = self.state();
        let Some(Held { source, is_known, waiting, .. }) = state.held.get(&id) else {
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
            let by = matches!(crowded, Crowded::Source(_)).then_some(source);
            if !state.displace_idle(by) {
                state.refused += 1;
                return Err(crowded);
            }
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
        let Some(Held { source, is_known, waiting, displaced, .. }) = state.held.remove(&id) else { return };
        match waiting {
            Some(_) => state.uncount_waiting(source, is_known),
            None if displaced => {}
            None => state.uncount_admitted(source),
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

    fn uncount_admitted(&mut self, source: Source) {
        self.admitted -= 1;
        if let Some(count) = self.admitted_by.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.admitted_by.remove(&source);
            }
        }
    }

    /// Takes the place of the oldest admitted connection without an open call, of one source or of any. `false`: there
    /// is none.
    fn displace_idle(&mut self, by: Option<Source>) -> bool {
        let is_idle = |held: &&mut Held| {
            held.waiting.is_none()
                && !held.displaced
                && held.activity.is_idle()
                && by.is_none_or(|source| source == held.source)
        };
        let Some(held) = self.held.values_mut().find(is_idle) else { return false };
        held.displaced = true;
        held.activity.displaced.notify_one();
        let source = held.source;
        self.uncount_admitted(source);
        self.displaced += 1;
        true
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
        let Some(Held { source, is_known, waiting: Some(cut), .. }) = self.held.remove(&id) else { return };
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
    activity: Arc<Activity>,
}

impl Place {
    pub(super) fn ticket(&self) -> Ticket {
        Ticket { table: self.table.clone(), id: self.id }
    }

    pub(super) fn activity(&self) -> Arc<Activity> {
        self.activity.clone()
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
        table_that(false)
    }

    fn table_that(tells_idle: bool) -> Arc<Table> {
        let limits = Limits {
            waiting: 6,
            waiting_by_source: 4,
            waiting_known: 2,
            admitted: 5,
            admitted_by_source: 3,
            kept_for_known: 1,
            patience: Duration::from_secs(1),
        };
        Table::new(limits, tells_idle)
    }

    /// An idle connection gives way where there is no place; one with an open call keeps its own.
    #[tokio::test]
    async fn idle_connections_make_room() {
        let table = table_that(true);
        let places: Vec<_> = (0..5).map(|last| table.enter(host(last), false).0).collect();
        let busy = places[0].activity().open();
        for place in &places[..4] {
            place.ticket().admit().unwrap();
        }
        places[4].ticket().admit().unwrap();
        places[1].activity().displaced().await;
        let usage = Usage { admitted: 4, displaced: 1, ..Usage::default() };
        assert_eq!(table.usage(), usage);
        let open: Vec<_> = places[2..].iter().map(|place| place.activity().open()).collect();
        let (late, _waiting) = table.enter(host(9), false);
        assert_eq!(late.ticket().admit(), Err(Crowded::All(4)));
        drop((busy, open, late, places));
        assert_eq!(table.usage(), Usage { admitted: 0, refused: 1, ..usage });
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
        assert_eq!(table.usage(), Usage { waiting: 6, cut: 2, ..Usage::default() });
        drop((loud, quiet, new));
        assert_eq!(table.usage(), Usage { cut: 2, ..Usage::default() });
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
        assert_eq!(table.usage(), Usage { refused: 1, ..Usage::default() });
    }

    #[test]
    fn a_host_has_one_source() {
        let address = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
        assert_eq!(address("fd00::1:2"), address("fd00::3:4"));
        assert_ne!(address("fd00:1::1"), address("fd00:0:0:1::1"));
    }
}
