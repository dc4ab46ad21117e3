//! Streams to readers that may be slow: one that takes nothing for a while, although there is something, is let go.
//!
//! A stream is made by a task of its own: an item ahead of the reader while few are ahead of theirs, else only once it is
//! asked for. What the reader holds (its place among the subscribers, files) is given back when the reader is let go, though
//! its connection may stand on.

use futures::{Stream, StreamExt};
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use synod_proto::v1::Failure;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, mpsc, oneshot};
use tonic::Status;

/// How long a reader may take nothing while there is something for it.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Items of this process that are made before their readers ask for them: what they take is not counted as answers. Fewer than
/// the pages that may be in hand.
static AHEAD: Semaphore = Semaphore::const_new(2);

/// The items as the reader takes them; `slow` says why the stream ended to a reader that did not take the item.
pub(super) fn paced<T, S>(
    items: S,
    patience: Duration,
    slow: impl Fn(&T) -> Failure + Send + 'static,
) -> impl Stream<Item = Result<T, Status>> + Send
where
    T: Send + 'static,
    S: Stream<Item = Result<T, Status>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(1);
    let (last_word, ended) = oneshot::channel();
    let asked = Arc::<Asked>::default();
    let reader = asked.clone();
    tokio::spawn(async move {
        let mut items = std::pin::pin!(items);
        loop {
            let ahead = AHEAD.try_acquire().ok();
            let turn = async {
                if ahead.is_none() {
                    asked.awaited().await;
                }
                sender.reserve().await
            };
            let turn = tokio::time::timeout(patience, turn).await;
            let item = tokio::select! {
                item = items.next() => item,
                () = sender.closed() => None,
            };
            let Some(item) = item else { return };
            // One that has asked for nothing for so long may do so at last.
            let place = match turn {
                Ok(place) => place.ok(),
                Err(_) if asked.is_asked() => sender.try_reserve().ok(),
                Err(_) => None,
            };
            let Some(place) = place else {
                let status = item.map_or_else(|status| status, |item| slow(&item).to_status());
                // The reader may have gone away meanwhile.
                drop(last_word.send(status));
                return;
            };
            asked.set(false);
            place.send((item, ahead));
        }
    });
    let taken = taking(receiver, reader);
    let last = futures::stream::once(ended).filter_map(|status| ready(status.ok().map(Err)));
    taken.chain(last)
}

/// What is made, as it is taken.
fn taking<T>(
    mut receiver: mpsc::Receiver<(Result<T, Status>, Option<SemaphorePermit<'static>>)>,
    asked: Arc<Asked>,
) -> impl Stream<Item = Result<T, Status>> {
    futures::stream::poll_fn(move |context| {
        let polled = receiver.poll_recv(context);
        asked.set(polled.is_pending());
        polled.map(|item| item.map(|(item, _ahead)| item))
    })
}

/// Whether the reader waits for an item.
#[derive(Debug, Default)]
struct Asked {
    is_asked: AtomicBool,
    changed: Notify,
}

impl Asked {
    fn set(&self, is_asked: bool) {
        self.is_asked.store(is_asked, Ordering::Release);
        if is_asked {
            self.changed.notify_one();
        }
    }

    fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::Acquire)
    }

    async fn awaited(&self) {
        while !self.is_asked() {
            self.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use synod_proto::v1::Reason;

    /// Fault S12: readers that took nothing kept their permits for ever.
    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_let_go_and_told() {
        let places = Arc::new(Semaphore::new(1));
        let place = places.clone().try_acquire_owned().unwrap();
        let items = futures::stream::iter(1..).map(move |n| {
            let _held = &place;
            Ok::<u64, Status>(n)
        });
        let slow = |n: &u64| Failure { next: Some(*n), ..Failure::new(Reason::SlowReader, "slow") };
        let mut reader = std::pin::pin!(paced(items, Duration::from_millis(20), slow));
        assert_eq!(reader.next().await.unwrap().unwrap(), 1);
        // It takes nothing more, until its place is free again.
        drop(places.acquire().await.unwrap());
        let mut due = 2;
        let status = loop {
            match reader.next().await.unwrap() {
                Ok(n) => assert_eq!(n, due),
                Err(status) => break status,
            }
            due += 1;
        };
        let failure = Failure::from_status(&status).unwrap();
        assert_eq!((failure.reason(), failure.next), (Reason::SlowReader, Some(due)));
        assert!(reader.next().await.is_none());
    }
}
