//! Reading: pages of a stream become entries, a cut subscription resumes.

use crate::error::CallError;
use crate::retry::{FIRST_PAUSE, LONGEST_PAUSE};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use synod_proto::v1::{self, ReadRequest, ReadResponse, Reason, SubscribeRequest, log_client::LogClient};
use tonic::Streaming;
use tonic::transport::Channel;

/// A page of entries and what stands around them.
const LARGEST_MESSAGE: usize = 8 << 20;

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Covers every append that was acknowledged before the call, anywhere.
    #[default]
    Linearizable,
    /// What this member has applied, but never less than this client has seen: its own appends, what it has
    /// read, and [`crate::Client::not_before`]. Works without a leader, as far as this member has come.
    Sequential,
    /// Covers every append that was acknowledged up to this long before the call, in whole milliseconds. Many such
    /// reads share one question to the leader.
    StaleBounded(Duration),
}

/// A consistency as a request holds it.
pub(crate) struct Wire {
    pub(crate) consistency: i32,
    pub(crate) at_least: u64,
    pub(crate) max_staleness_ms: u32,
}

impl Consistency {
    pub(crate) fn to_wire(self, seen: &AtomicU64) -> Wire {
        let (consistency, at_least, max_staleness_ms) = match self {
            Consistency::Linearizable => (v1::Consistency::Linearizable, 0, 0),
            Consistency::Sequential => (v1::Consistency::Sequential, seen.load(Ordering::Relaxed), 0),
            Consistency::StaleBounded(span) => {
                let span = u32::try_from(span.as_millis()).unwrap_or(u32::MAX);
                (v1::Consistency::StaleBounded, 0, span)
            }
        };
        Wire { consistency: consistency.into(), at_least, max_staleness_ms }
    }
}

/// How to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOptions {
    /// At most this many entries; none: to the tail as it stands when the read begins.
    pub limit: Option<u64>,
    /// How fresh.
    pub consistency: Consistency,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position, from 1, without gaps.
    pub index: u64,
    /// What was appended.
    pub payload: Bytes,
}

pub(crate) fn log(channel: Channel) -> LogClient<Channel> {
    LogClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE)
}

/// A stream of entries in the making.
struct Reading {
    channel: Channel,
    /// The highest index that this client has seen.
    seen: Arc<AtomicU64>,
    next: u64,
    live: bool,
    options: ReadOptions,
    pages: Option<Streaming<ReadResponse>>,
    page: VecDeque<Entry>,
    pause: Duration,
    ended: bool,
}

impl Reading {
    async fn open(&self) -> Result<Streaming<ReadResponse>, CallError> {
        let mut log = log(self.channel.clone());
        let pages = if self.live {
            log.subscribe(SubscribeRequest { from: self.next }).await
        } else {
            let Wire { consistency, at_least, max_staleness_ms } =
                self.options.consistency.to_wire(&self.seen);
            let limit = self.options.limit.unwrap_or(0);
            let from = self.next;
            log.read(ReadRequest { from, limit, consistency, at_least, max_staleness_ms }).await
        };
        Ok(pages?.into_inner())
    }

    /// The next entry; `None` at the end.
    async fn advance(&mut self) -> Result<Option<Entry>, CallError> {
        loop {
            if let Some(entry) = self.page.pop_front() {
                self.accept(&entry)?;
                return Ok(Some(entry));
            }
            let page = match self.pages.as_mut() {
                Some(pages) => pages.message().await.map_err(CallError::from),
                None => match self.open().await {
                    Ok(pages) => {
                        self.pages = Some(pages);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            match page {
                Ok(Some(page)) => {
                    self.pause = FIRST_PAUSE;
                    if let Some(last) = page.entries.last() {
                        self.seen.fetch_max(last.index, Ordering::Relaxed);
                    }
                    let entries = page.entries.into_iter();
                    self.page = entries.map(|e| Entry { index: e.index, payload: e.payload }).collect();
                }
                Ok(None) if !self.live => return Ok(None),
                Err(error) if !self.live || !error.is_resumable() => return Err(error),
                Ok(None) | Err(_) => {
                    self.pages = None;
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// A hole or a repeat would be the member's fault; it must never reach the application.
    fn accept(&mut self, entry: &Entry) -> Result<(), CallError> {
        if entry.index != self.next {
            let message = format!("the member gave entry {} where {} was due", entry.index, self.next);
            return Err(CallError::local(Reason::OutOfOrder, message));
        }
        self.next += 1;
        Ok(())
    }
}

fn entries(reading: Reading) -> impl Stream<Item = Result<Entry, CallError>> + Send + Unpin + 'static {
    futures::stream::unfold(reading, |mut reading| async move {
        if reading.ended {
            return None;
        }
        match reading.advance().await {
            Ok(Some(entry)) => Some((Ok(entry), reading)),
            Ok(None) => None,
            Err(error) => {
                reading.ended = true;
                Some((Err(error), reading))
            }
        }
    })
    .boxed()
}

pub(crate) fn read(
    channel: Channel,
    seen: Arc<AtomicU64>,
    from: u64,
    options: ReadOptions,
) -> impl Stream<Item = Result<Entry, CallError>> + Send + Unpin + 'static {
    start(channel, seen, from, options, false)
}

pub(crate) fn subscribe(
    channel: Channel,
    seen: Arc<AtomicU64>,
    from: u64,
) -> impl Stream<Item = Result<Entry, CallError>> + Send + Unpin + 'static {
    start(channel, seen, from, ReadOptions::default(), true)
}

fn start(
    channel: Channel,
    seen: Arc<AtomicU64>,
    from: u64,
    options: ReadOptions,
    live: bool,
) -> impl Stream<Item = Result<Entry, CallError>> + Send + Unpin + 'static {
    let page = VecDeque::new();
    let next = from.max(1);
    entries(Reading {
        channel,
        seen,
        next,
        live,
        options,
        pages: None,
        page,
        pause: FIRST_PAUSE,
        ended: false,
    })
}
