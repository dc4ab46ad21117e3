//! Streams to readers that may be slow: one that takes nothing for a while, although there is something, is let go.
//!
//! A stream is made by a task of its own, which waits for the reader before it makes more. What the reader holds (its
//! place among the subscribers, files) is given back when the reader is let go, though its connection may stand on.

use futures::{Stream, StreamExt};
use std::future::ready;
use std::time::Duration;
use synod_proto::v1::Failure;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// How long a reader may take nothing while there is something for it.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

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
    tokio::spawn(async move {
        let mut items = std::pin::pin!(items);
        loop {
            let item = tokio::select! {
                item = items.next() => item,
                () = sender.closed() => None,
            };
            let Some(item) = item else { return };
            match tokio::time::timeout(patience, sender.reserve()).await {
                Ok(Ok(place)) => place.send(item),
                // The reader went away.
                Ok(Err(_)) => return,
                Err(_) => {
                    let status = item.map_or_else(|status| status, |item| slow(&item).to_status());
                    // The reader may have gone away meanwhile.
                    drop(last_word.send(status));
                    return;
                }
            }
        }
    });
    let last = futures::stream::once(ended).filter_map(|status| ready(status.ok().map(Err)));
    ReceiverStream::new(receiver).chain(last)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Arc;
    use synod_proto::v1::Reason;
    use tokio::sync::Semaphore;

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
