//! Subscriptions: entries from a place on, then live.

use super::freshness;
use super::reading::{self, PAGE, Reading};
use super::{active, failure, seeking};
use crate::driver::{Facts, Handle, Position};
use crate::shared::Shared;
use std::sync::Arc;
use std::time::Duration;
use synod_paxos::{Index, Time};
use synod_proto::Timestamp;
use synod_proto::v1::subscribe_request::{End, Start};
use synod_proto::v1::subscribe_response::Event;
use synod_proto::v1::{CaughtUp, Failure, Heartbeat, Reason, SubscribeRequest, SubscribeResponse};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tonic::Status;

/// A stream on which nothing else was said for so long says that it stands.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// A subscriber: held back by its own pace, since a page is made only when the one before was taken.
pub(super) struct Following {
    positions: watch::Receiver<Position>,
    facts: watch::Receiver<Facts>,
    shared: Arc<Shared>,
    reading: Reading,
    /// The last index that is wanted.
    until: Option<Index>,
    /// Entries before this time are not wanted; those that come later than the first one of it are wanted all.
    not_before: Option<Time>,
    /// Once everything that was applied when it began is given, that is said.
    catching_up: Option<Index>,
    next_heartbeat: Instant,
    _permit: OwnedSemaphorePermit,
}

/// A message, and its page's place among those in hand.
pub(super) type Message = (SubscribeResponse, Option<reading::Turn>);

/// What to do next.
enum Turn {
    Read(Index),
    Heartbeat,
    NotActive,
    Stopping,
}

impl Following {
    /// Finds out where to begin and to end; what must be fresh for that is awaited until `deadline`.
    pub(super) async fn begin(
        shared: Arc<Shared>,
        request: SubscribeRequest,
        permit: OwnedSemaphorePermit,
        deadline: Instant,
    ) -> Result<Following, Status> {
        active(&shared)?;
        let handle = shared.handle();
        let is_fresh = matches!(request.start, Some(Start::Now(_) | Start::Consumer(_)))
            || matches!(request.end, Some(End::Tail(_)));
        let last = match is_fresh {
            true => freshness::point(&shared, None, deadline).await?.1,
            false => handle.position().index,
        };
        let not_before = match &request.start {
            Some(Start::Time(time)) => Some(time_of(time)?),
            _ => None,
        };
        let next = match request.start {
            Some(Start::From(0)) | None => {
                let message =
                    "indexes begin at 1: subscribe from 1, or from the first entry that is retained";
                return Err(failure::status(failure::refused(Reason::Index, message)));
            }
            Some(Start::From(index)) => Index(index),
            Some(Start::FirstRetained(_)) => handle.first_index(),
            Some(Start::Now(_)) => last.next(),
            Some(Start::Consumer(name)) => position_of(&handle, &name).await?.next(),
            Some(Start::Time(_)) => seeking::index_at(&handle, not_before.unwrap_or_default()).await?,
        };
        let until = match request.end {
            None => None,
            Some(End::Until(index)) => Some(Index(index)),
            Some(End::Tail(_)) => Some(last),
        };
        Ok(Following {
            positions: handle.watch(),
            facts: handle.facts(),
            shared,
            reading: Reading { handle, next },
            until,
            not_before,
            catching_up: Some(last),
            next_heartbeat: Instant::now() + HEARTBEAT,
            _permit: permit,
        })
    }

    /// The next message; `None` at the end that was asked for.
    pub(super) async fn message(&mut self) -> Result<Option<Message>, Status> {
        loop {
            if self.until.is_some_and(|until| self.reading.next > until) {
                return Ok(None);
            }
            self.reading.check_retained()?;
            if let Some(last) = self.catching_up.filter(|last| self.reading.next > *last) {
                self.catching_up = None;
                let event = Event::CaughtUp(CaughtUp { last_index: last.0 });
                return Ok(Some((SubscribeResponse { entries: Vec::new(), event: Some(event) }, None)));
            }
            let mut in_hand = None;
            let message = match self.turn().await {
                Turn::Read(through) => {
                    let through = self.until.map_or(through, |until| until.min(through));
                    in_hand = reading::turn().await;
                    let mut entries = self.reading.page(through, PAGE).await?;
                    if let Some(time) = self.not_before {
                        entries.retain(|entry| seeking::is_at(entry, time));
                        if entries.is_empty() {
                            continue;
                        }
                        self.not_before = None;
                    }
                    SubscribeResponse { entries, event: None }
                }
                Turn::Heartbeat => {
                    let last_index = self.positions.borrow().index.0;
                    let event = Event::Heartbeat(Heartbeat { last_index });
                    SubscribeResponse { entries: Vec::new(), event: Some(event) }
                }
                Turn::NotActive => {
                    active(&self.shared)?;
                    return Err(failure::status(failure::stopping()));
                }
                Turn::Stopping => return Err(failure::status(failure::stopping())),
            };
            self.next_heartbeat = Instant::now() + HEARTBEAT;
            return Ok(Some((message, in_hand)));
        }
    }

    async fn turn(&mut self) -> Turn {
        let next = self.reading.next;
        tokio::select! {
            biased;
            () = self.shared.stopped() => Turn::Stopping,
            changed = self.facts.wait_for(|facts| facts.excluded().is_some()) => {
                if changed.is_ok() { Turn::NotActive } else { Turn::Stopping }
            }
            reached = self.positions.wait_for(|position| position.index >= next) => {
                reached.map_or(Turn::Stopping, |position| Turn::Read(position.index))
            }
            () = self.reading.handle.stopped() => Turn::Stopping,
            () = tokio::time::sleep_until(self.next_heartbeat) => Turn::Heartbeat,
        }
    }
}

/// The time that a caller names.
fn time_of(wire: &Timestamp) -> Result<Time, Status> {
    synod_proto::micros(wire).map(Time).ok_or_else(|| {
        let message = "the time is none, or before 1970";
        failure::status(failure::refused(Reason::Invalid, message))
    })
}

/// Where a consumer stands.
async fn position_of(handle: &Handle, name: &str) -> Result<Index, Status> {
    let known = handle.application().await;
    let known = known.map_err(|error| failure::status(failure::unanswered(&error)))?;
    known.cursors.get(name).copied().ok_or_else(|| {
        let message = format!("no consumer '{name}' is registered: register it first");
        failure::status(failure::refused(Reason::UnknownConsumer, message))
    })
}

/// Why a reader is let go that takes nothing.
pub(super) fn slow((untaken, _): &Message) -> Failure {
    let next = untaken.entries.first().map(|entry| entry.index);
    let from = next.map_or_else(|| "behind what it has".to_owned(), |next| format!("from index {next}"));
    let message = format!("this reader took nothing for a minute while there was something: go on {from}");
    Failure { next, ..failure::refused(Reason::SlowReader, message) }
}
