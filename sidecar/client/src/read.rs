//! Reading: pages become entries, a cut subscription resumes.

use crate::error::{CallError, failed};
use crate::retry::{FIRST_PAUSE, LONGEST_PAUSE, SILENCE, TRY, until_answered, within};
use bytes::Bytes;
use futures::stream::{BoxStream, Stream};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use synod_proto::v1::consistency::Kind;
use synod_proto::v1::log_client::LogClient;
use synod_proto::v1::subscribe_response::Event;
use synod_proto::v1::{
    self, ReadRequest, Reason, SubscribeRequest, SubscribeResponse, TailRequest, TailResponse,
    subscribe_request,
};
use tokio::time::Instant;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

/// A page of entries and what stands around them.
const LARGEST_MESSAGE: usize = 8 << 20;

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Consistency {
    /// Covers every append that was acknowledged before the call, anywhere.
    #[default]
    Linearizable,
    /// What this member has applied, but never less than this client has seen: its own appends, what it has
    /// read, and [`crate::Client::not_before`]. Works without a leader, as far as this member has come.
    Sequential,
    /// Covers every append that was acknowledged up to this long before the call. Many such reads share one question to
    /// the leader.
    StaleBounded(Duration),
}

impl Consistency {
    pub(crate) fn to_wire(self, seen: &AtomicU64) -> Option<v1::Consistency> {
        let kind = match self {
            Consistency::Linearizable => return None,
            Consistency::Sequential => return Some(sequential(seen.load(Ordering::Relaxed))),
            Consistency::StaleBounded(max) => {
                Kind::StaleBounded(v1::StaleBounded { max: Some(synod_proto::duration(max)) })
            }
        };
        Some(v1::Consistency { kind: Some(kind) })
    }
}

pub(crate) fn sequential(at_least: u64) -> v1::Consistency {
    v1::Consistency { kind: Some(Kind::Sequential(v1::Sequential { at_least })) }
}

/// How to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOptions {
    /// At most this many entries; none: to the tail as it stands when the read begins.
    pub limit: Option<u64>,
    /// How fresh.
    pub consistency: Consistency,
}

/// Where a subscription begins. An index is one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// At this index, from 1.
    Index(u64),
    /// At the first entry that the member still has.
    FirstRetained,
    /// Behind every entry that was acknowledged before the call.
    Now,
    /// Behind the position of this registered consumer.
    Consumer(String),
    /// At the first entry whose time is this or later; where there is none yet, with the first one that is.
    Time(SystemTime),
}

impl From<u64> for Start {
    fn from(index: u64) -> Start {
        Start::Index(index)
    }
}

/// Microseconds since 1970, a part of one up to the next; what is before counts as its beginning.
fn micros(time: SystemTime) -> u64 {
    let nanos = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    u64::try_from(nanos.div_ceil(1_000)).unwrap_or(u64::MAX)
}

/// Where a subscription ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// Never.
    #[default]
    Never,
    /// With the entry at this index.
    Index(u64),
    /// With the last entry that was acknowledged before the call.
    Tail,
}

/// How to subscribe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// Where it ends.
    pub end: End,
    /// How long a cut may last before the subscription ends with the error that lasted, also where it cannot begin. None:
    /// it tries for ever; [`crate::Client::connection_events`] tell how the connection is.
    pub give_up_after: Option<Duration>,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Its position, from 1, without gaps.
    pub index: u64,
    /// What was appended.
    pub payload: Bytes,
    /// When it was proposed, by the wall clock of who led then, and never before the entry in front of it; none where it
    /// was appended below format level 4.
    pub time: Option<SystemTime>,
    /// What was said beside it, by name.
    pub headers: BTreeMap<String, String>,
}

impl Entry {
    /// An entry, for an application's own tests.
    pub fn new(index: u64, payload: impl Into<Bytes>) -> Entry {
        Entry { index, payload: payload.into(), time: None, headers: BTreeMap::new() }
    }
}

impl From<v1::Entry> for Entry {
    fn from(entry: v1::Entry) -> Entry {
        let v1::Entry { index, payload, time, headers } = entry;
        let time = time.and_then(|time| synod_proto::micros(&time));
        let time = time.and_then(|micros| UNIX_EPOCH.checked_add(Duration::from_micros(micros)));
        Entry { index, payload, time, headers }
    }
}

/// Where the log begins and ends, linearizable where nothing is said.
pub(crate) async fn tail(
    channel: &Channel,
    timeout: Duration,
    consistency: Option<v1::Consistency>,
) -> Result<TailResponse, CallError> {
    let log = log(channel.clone());
    let call = |request| {
        let mut log = log.clone();
        async move { log.tail(request).await }
    };
    until_answered(timeout, TailRequest { consistency }, call).await
}

pub(crate) fn log(channel: Channel) -> LogClient<Channel> {
    LogClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE)
}

/// Entries of the log up to a limit or the tail; a stream that ends with its first error.
pub struct Entries(BoxStream<'static, Result<Entry, CallError>>);

/// Entries of the log from a place on, then live. When the connection is cut it resumes behind the last entry that it
/// gave: nothing is skipped, nothing comes twice. It ends with an error that trying again cannot mend, or where it was
/// told to.
pub struct Subscription(BoxStream<'static, Result<Entry, CallError>>);

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries").finish_non_exhaustive()
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}

impl Stream for Entries {
    type Item = Result<Entry, CallError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

impl Stream for Subscription {
    type Item = Result<Entry, CallError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

/// What gives one entry after the other.
trait Source: Send + 'static {
    fn advance(&mut self) -> impl Future<Output = Result<Option<Entry>, CallError>> + Send;
}

fn entries<S: Source>(source: S) -> BoxStream<'static, Result<Entry, CallError>> {
    Box::pin(futures::stream::unfold(Some(source), |source| async move {
        let mut source = source?;
        match source.advance().await {
            Ok(entry) => entry.map(|entry| (Ok(entry), Some(source))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

/// Entries that came, and which is due next. A hole or a repeat would be the member's fault; it must never reach the
/// application.
#[derive(Default)]
struct Page {
    entries: VecDeque<Entry>,
    /// None: wherever the first one is.
    next: Option<u64>,
}

impl Page {
    fn pop(&mut self) -> Result<Option<Entry>, CallError> {
        let Some(entry) = self.entries.pop_front() else { return Ok(None) };
        let due = *self.next.get_or_insert(entry.index);
        if entry.index != due {
            let message = format!("the member gave entry {} where {due} was due", entry.index);
            return Err(CallError::local(Reason::OutOfOrder, message));
        }
        self.next = Some(due + 1);
        Ok(Some(entry))
    }

    fn fill(&mut self, entries: Vec<v1::Entry>, seen: &AtomicU64) {
        if let Some(last) = entries.last() {
            seen.fetch_max(last.index, Ordering::Relaxed);
        }
        self.entries = entries.into_iter().map(Entry::from).collect();
    }
}

/// A read, page by page.
struct Reading {
    channel: Channel,
    /// The highest index that this client has seen.
    seen: Arc<AtomicU64>,
    timeout: Duration,
    options: ReadOptions,
    page: Page,
    /// Entries that are still wanted.
    left: u64,
    /// The tail as it was when the read began.
    through: Option<u64>,
}

impl Source for Reading {
    async fn advance(&mut self) -> Result<Option<Entry>, CallError> {
        loop {
            if let Some(entry) = self.page.pop()? {
                self.left -= 1;
                return Ok(Some(entry));
            }
            let from = self.page.next.unwrap_or(1);
            if self.left == 0 || self.through.is_some_and(|through| from > through) {
                return Ok(None);
            }
            // How far the log reaches was asked once; the pages behind only must not be older.
            let consistency = match self.through {
                None => self.options.consistency.to_wire(&self.seen),
                Some(through) => Some(sequential(through)),
            };
            let wanted = self.through.map_or(self.left, |through| self.left.min(through - from + 1));
            let limit = if wanted == u64::MAX { 0 } else { wanted };
            let request = ReadRequest { from, limit, consistency, ..ReadRequest::default() };
            let log = log(self.channel.clone());
            let call = |request| {
                let mut log = log.clone();
                async move { log.read(request).await }
            };
            let read = until_answered(self.timeout, request, call).await?;
            if self.through.is_none() {
                // A member of the version before says nothing of where the log ends, and gives the first of its pages.
                let is_before = read.last_index == 0 && !read.entries.is_empty();
                self.through = Some(if is_before {
                    tail(&self.channel, self.timeout, None).await?.last_index
                } else {
                    read.last_index
                });
            }
            if read.entries.is_empty() {
                return Ok(None);
            }
            self.page.fill(read.entries, &self.seen);
        }
    }
}

/// The header that names the log.
const LOG: &str = "synod-log";

/// A subscription that resumes.
struct Following {
    channel: Channel,
    seen: Arc<AtomicU64>,
    start: Start,
    options: SubscribeOptions,
    /// When it gives up, while it is cut.
    gives_up: Option<Instant>,
    page: Page,
    stream: Option<Streaming<SubscribeResponse>>,
    /// The log that the first answer named: after a recovery its indexes would be another's.
    log: Option<AsciiMetadataValue>,
    pause: Duration,
}

impl Following {
    async fn open(&mut self) -> Result<Streaming<SubscribeResponse>, CallError> {
        use subscribe_request::{End as Until, Start as From};
        let start = match (self.page.next, &self.start) {
            (Some(next), _) => From::From(next),
            (None, Start::Index(index)) => From::From(*index),
            (None, Start::FirstRetained) => From::FirstRetained(v1::FirstRetained {}),
            (None, Start::Now) => From::Now(v1::Now {}),
            (None, Start::Consumer(name)) => From::Consumer(name.clone()),
            (None, Start::Time(time)) => From::Time(synod_proto::timestamp(micros(*time))),
        };
        let end = match self.options.end {
            End::Never => None,
            End::Index(index) => Some(Until::Until(index)),
            End::Tail => Some(Until::Tail(v1::AtTail {})),
        };
        let mut request = Request::new(SubscribeRequest { start: Some(start), end });
        // For the answer's beginning; the stream itself has no end.
        request.set_timeout(TRY);
        if let Some(log) = &self.log {
            request.metadata_mut().insert(LOG, log.clone());
        }
        let answer = log(self.channel.clone()).subscribe(request).await.map_err(failed)?;
        if self.log.is_none() {
            self.log = answer.metadata().get(LOG).cloned();
        }
        Ok(answer.into_inner())
    }

    /// The error of a cut that has lasted for too long; otherwise waits a little.
    async fn hold(&mut self, error: CallError) -> Result<(), CallError> {
        self.stream = None;
        let wake = Instant::now() + self.pause;
        if let Some(most) = self.options.give_up_after
            && wake >= *self.gives_up.get_or_insert_with(|| within(most))
        {
            return Err(error);
        }
        tokio::time::sleep_until(wake).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }

    async fn message(&mut self) -> Result<Option<SubscribeResponse>, CallError> {
        if self.stream.is_none() {
            self.stream = Some(self.open().await?);
        }
        let Some(stream) = self.stream.as_mut() else { return Ok(None) };
        match tokio::time::timeout(SILENCE, stream.message()).await {
            Ok(message) => message.map_err(failed),
            Err(_) => Err(CallError::local(Reason::Transport, "the member says nothing on the stream")),
        }
    }
}

impl Source for Following {
    async fn advance(&mut self) -> Result<Option<Entry>, CallError> {
        loop {
            if let Some(entry) = self.page.pop()? {
                return Ok(Some(entry));
            }
            match self.message().await {
                Ok(Some(SubscribeResponse { entries, event })) => {
                    (self.pause, self.gives_up) = (FIRST_PAUSE, None);
                    // Where nothing came yet, that is where it goes on: a cut must not skip what comes now.
                    // A time is still to come then.
                    if let Some(Event::CaughtUp(caught_up)) = event
                        && !matches!(self.start, Start::Time(_))
                    {
                        self.page.next.get_or_insert(caught_up.last_index + 1);
                    }
                    self.page.fill(entries, &self.seen);
                }
                Ok(None) if self.options.end != End::Never => return Ok(None),
                Ok(None) => {
                    self.hold(CallError::local(Reason::Transport, "the member ended the stream")).await?
                }
                Err(error) if error.is_resumable() => self.hold(error).await?,
                Err(error) => return Err(error),
            }
        }
    }
}

pub(crate) fn read(
    channel: Channel,
    seen: Arc<AtomicU64>,
    timeout: Duration,
    from: u64,
    options: ReadOptions,
) -> Entries {
    let page = Page { next: Some(from.max(1)), ..Page::default() };
    let left = options.limit.unwrap_or(u64::MAX);
    Entries(entries(Reading { channel, seen, timeout, options, page, left, through: None }))
}

pub(crate) fn subscribe(
    channel: Channel,
    seen: Arc<AtomicU64>,
    start: Start,
    options: SubscribeOptions,
) -> Subscription {
    let next = if let Start::Index(index) = start { Some(index.max(1)) } else { None };
    let page = Page { next, ..Page::default() };
    let stream = None;
    Subscription(entries(Following {
        channel,
        seen,
        start,
        options,
        gives_up: None,
        page,
        stream,
        log: None,
        pause: FIRST_PAUSE,
    }))
}
