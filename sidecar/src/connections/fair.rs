//! Shares of something that runs out: whoever holds most gives way to whoever holds less.
//!
//! Nobody waits for a share: a caller that waited would hold up the others of its connection. A newcomer takes the
//! place of the oldest share of the connection that holds most; one that holds most itself is refused.

use super::answers::PIECE;
use super::wire::Wire;
use futures::task::AtomicWaker;
use prometheus_client::metrics::counter::Counter;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// What is in memory of a share at most once its work was ended: a piece that the transport has, and the one before it.
const LEFTOVER: usize = 2 * PIECE;

/// Why something was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Others need what it held.
    Crowded,
    /// It took too long.
    Late,
}

/// Tells one task that its work is to end.
#[derive(Debug, Default)]
pub(super) struct Cut {
    /// 0: it goes on.
    why: AtomicU8,
    waker: AtomicWaker,
    /// Where a transport may keep what the work has made.
    wire: Option<Arc<Wire>>,
}

impl Cut {
    /// Of work whose results go through a connection.
    pub(super) fn of(wire: &Arc<Wire>) -> Arc<Cut> {
        Arc::new(Cut { wire: Some(wire.clone()), ..Cut::default() })
    }

    /// `false`: it was told before; the first reason stays.
    pub(super) fn cut(&self, why: Why) -> bool {
        let code = match why {
            Why::Crowded => 1,
            Why::Late => 2,
        };
        let is_new = self.why.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire).is_ok();
        self.waker.wake();
        is_new
    }

    /// Ready once the work is to end. One task at a time may poll.
    pub(super) fn poll(&self, context: &Context<'_>) -> Poll<Why> {
        self.waker.register(context.waker());
        match self.why.load(Ordering::Acquire) {
            0 => Poll::Pending,
            1 => Poll::Ready(Why::Crowded),
            _ => Poll::Ready(Why::Late),
        }
    }
}

/// Nothing is left for a connection that holds most of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

#[derive(Debug)]
struct Share {
    amount: usize,
    since: Instant,
    cut: Arc<Cut>,
}

#[derive(Debug, Default)]
struct Holder {
    used: usize,
    /// By age.
    shares: BTreeMap<u64, Share>,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    /// Of shares that were ended: what they are for is still in memory.
    lingering: usize,
    next: u64,
    by_connection: HashMap<u64, Holder>,
}

/// What may be held of one kind, by all connections together.
#[derive(Debug)]
pub(super) struct Fair {
    most: usize,
    /// What may be in memory of shares that were ended: nobody is made to give way beyond it.
    most_lingering: usize,
    /// How long a share may be held; none: for ever.
    patience: Option<Duration>,
    state: Mutex<State>,
    ended: Counter,
    refused: Counter,
}

impl Fair {
    /// `ended` and `refused` count shares.
    pub(super) fn new(
        (most, most_lingering): (usize, usize),
        patience: Option<Duration>,
        (ended, refused): (&Counter, &Counter),
    ) -> Arc<Fair> {
        let (ended, refused) = (ended.clone(), refused.clone());
        Arc::new(Fair { most, most_lingering, patience, state: Mutex::default(), ended, refused })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing can panic under this lock but a broken count, after which counting is over.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a share of `amount` for a connection; `cut` is told when it has to be given back.
    pub(super) fn take(
        self: &Arc<Self>,
        connection: u64,
        amount: usize,
        cut: &Arc<Cut>,
    ) -> Result<Held, Full> {
        let mut state = self.state();
        while state.used + amount > self.most {
            let own = state.by_connection.get(&connection).map_or(0, |holder| holder.used);
            let loudest = state.by_connection.iter().max_by_key(|(id, holder)| (holder.used, **id));
            let loudest = loudest.map(|(id, holder)| (*id, holder.used));
            match loudest {
                Some((id, used))
                    if id != connection && used > own + amount && state.lingering <= self.most_lingering =>
                {
                    state.end_oldest(id);
                }
                _ => {
                    self.refused.inc();
                    return Err(Full);
                }
            }
            self.ended.inc();
        }
        let id = state.next;
        state.next += 1;
        state.used += amount;
        let holder = state.by_connection.entry(connection).or_default();
        holder.used += amount;
        holder.shares.insert(id, Share { amount, since: Instant::now(), cut: cut.clone() });
        Ok(Held { fair: self.clone(), connection, id, amount, cut: cut.clone() })
    }

    /// Ends what has been held for too long.
    pub(super) fn expire(&self) {
        let Some(patience) = self.patience else { return };
        let state = self.state();
        for holder in state.by_connection.values() {
            for share in holder.shares.values().take_while(|share| share.since.elapsed() > patience) {
                if share.cut.cut(Why::Late) {
                    self.ended.inc();
                }
            }
        }
    }

    /// How much is held, and how many shares were ended and refused so far.
    #[cfg(test)]
    fn usage(&self) -> (usize, u64, u64) {
        let used = self.state().used;
        (used, self.ended.get(), self.refused.get())
    }
}

impl State {
    fn end_oldest(&mut self, connection: u64) {
        let oldest = self.by_connection.get(&connection).and_then(|holder| holder.shares.keys().next());
        if let Some(share) = oldest.copied().and_then(|id| self.give_back(connection, id)) {
            self.lingering += share.amount.min(LEFTOVER);
            share.cut.cut(Why::Crowded);
            if let Some(wire) = &share.cut.wire {
                wire.ended();
            }
        }
    }

    fn give_back(&mut self, connection: u64, id: u64) -> Option<Share> {
        let holder = self.by_connection.get_mut(&connection)?;
        let share = holder.shares.remove(&id)?;
        holder.used -= share.amount;
        if holder.shares.is_empty() {
            self.by_connection.remove(&connection);
        }
        self.used -= share.amount;
        Some(share)
    }
}

/// A share, until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    fair: Arc<Fair>,
    connection: u64,
    id: u64,
    amount: usize,
    cut: Arc<Cut>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.fair.state();
        if state.give_back(self.connection, self.id).is_some() {
            return;
        }
        // It was ended before.
        state.lingering -= self.amount.min(LEFTOVER);
        if let Some(wire) = &self.cut.wire {
            wire.left();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::task::noop_waker;

    fn fair(patience: Option<Duration>) -> Arc<Fair> {
        Fair::new((10, 4), patience, (&Counter::default(), &Counter::default()))
    }

    fn why(cut: &Cut) -> Option<Why> {
        match cut.poll(&Context::from_waker(&noop_waker())) {
            Poll::Ready(why) => Some(why),
            Poll::Pending => None,
        }
    }

    #[test]
    fn whoever_holds_most_gives_way() {
        let fair = fair(None);
        let cuts: Vec<Arc<Cut>> = (0..6).map(|_| Arc::default()).collect();
        let mut loud: Vec<Held> = cuts[..5].iter().map(|cut| fair.take(1, 2, cut).unwrap()).collect();
        // The loud one has all: it gets no more, and nobody else loses for it.
        assert_eq!(fair.take(1, 1, &cuts[5]).map(drop), Err(Full));
        let quiet = fair.take(2, 3, &cuts[5]).unwrap();
        assert_eq!(
            cuts.iter().map(|cut| why(cut)).collect::<Vec<_>>(),
            [Some(Why::Crowded), Some(Why::Crowded), None, None, None, None]
        );
        assert_eq!(fair.usage(), (9, 2, 1));
        // What was taken away is not given back twice.
        drop(loud.remove(0));
        assert_eq!(fair.usage().0, 9);
        // Nobody is made to hold less than the newcomer would.
        assert_eq!(fair.take(3, 6, &cuts[5]).map(drop), Err(Full));
        drop((loud, quiet));
        assert_eq!(fair.usage(), (0, 2, 2));
        assert!(fair.state().by_connection.is_empty());
    }

    /// What was ended is not out of memory before its holder has let go of it.
    #[test]
    fn nobody_gives_way_while_what_was_ended_stays() {
        let fair = fair(None);
        let cuts: Vec<Arc<Cut>> = (0..4).map(|_| Arc::default()).collect();
        let mut loud: Vec<Held> = cuts[..2].iter().map(|cut| fair.take(1, 5, cut).unwrap()).collect();
        let _quiet = fair.take(2, 3, &cuts[2]).unwrap();
        assert_eq!(
            cuts.iter().map(|cut| why(cut)).collect::<Vec<_>>(),
            [Some(Why::Crowded), None, None, None]
        );
        assert_eq!(fair.take(3, 4, &cuts[3]).map(drop), Err(Full));
        loud.remove(0);
        assert!(fair.take(3, 1, &cuts[3]).is_ok());
        assert_eq!(fair.state().lingering, 0);
    }

    #[test]
    fn more_than_there_is_is_refused() {
        let fair = fair(None);
        assert_eq!(fair.take(1, 11, &Arc::default()).map(drop), Err(Full));
        assert_eq!(fair.usage(), (0, 0, 1));
    }

    #[test]
    fn shares_expire() {
        let fair = fair(Some(Duration::ZERO));
        let (cut, other) = (Arc::<Cut>::default(), Arc::<Cut>::default());
        let held = fair.take(1, 2, &cut).unwrap();
        while held.fair.state().by_connection[&1].shares[&0].since.elapsed().is_zero() {}
        fair.expire();
        assert_eq!((why(&cut), why(&other)), (Some(Why::Late), None));
    }
}
