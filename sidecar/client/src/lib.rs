//! The Rust SDK for a Synod socket.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use futures::TryStreamExt;
//!
//! let log = synod_client::Client::connect_from_env()?;
//! let appended = log.append("hello").await?;
//! println!("entry {}", appended.first_index);
//! let mut entries = log.subscribe(1);
//! while let Some(entry) = entries.try_next().await? {
//!     println!("{} {:?}", entry.index, entry.payload);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Exactly once
//!
//! [`Client::append`] appends exactly once or says why not: it numbers its calls in a session of the log's, so that
//! the log knows a repeat when it sees one, and tries again until [`AppendOptions::timeout`] whatever happens
//! between: a change of the leader, a cut connection, a restart of the member. How a call ends:
//!
//! | outcome | what stands in the log | what to do |
//! |---|---|---|
//! | `Ok` | the entries, once, at these indexes for ever | go on |
//! | [`AppendError::UnexpectedIndex`] | nothing of this call | read on, decide again |
//! | [`AppendError::Refused`] | nothing of this call | what the reason says; appending again cannot duplicate |
//! | [`AppendError::Unknown`] | perhaps the entries | only after the deadline, or where the session expired meanwhile: read the log before appending again |
//!
//! A program that appends little and ends soon needs no session: [`Repeats::Minted`] makes a key for each append, which
//! the log remembers for an hour, and is as safe. It is in no order with others, and takes a row of the log's table of
//! 100,000 for that hour: not for streams.
//!
//! All clones of a [`Client`] share one session and one stream, and appends are appended in the order in which they
//! were called, also where one has to be tried again. A session that is left alone for an hour (the cluster's
//! `session_idle`) expires; the next append opens another one by itself.
//!
//! An application that must not append twice although it was killed before it heard the answer gives the append a
//! key ([`Repeats::Key`]) and repeats it under the same key when it is back:
//!
//! ```no_run
//! # async fn example(log: synod_client::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use synod_client::{AppendOptions, Consistency, IdempotencyKey, Repeats};
//!
//! // Kept with the order, before the first try:
//! let index = log.tail(Consistency::Sequential).await?;
//! let key = IdempotencyKey::new("order-4711").minted_at(index);
//! // Now, and again after each restart until it is acknowledged:
//! let options = AppendOptions { repeats: Repeats::Key(key), ..AppendOptions::default() };
//! let appended = log.append_with(vec!["4711: 3 screws".into()], options).await?;
//! println!("entry {}, {}", appended.first_index, if appended.repeated { "repeated" } else { "new" });
//! # Ok(())
//! # }
//! ```
//!
//! # Where to go on after a restart
//!
//! A [`Consumers`] position is kept in the log and holds back trimming: whoever reads by it misses nothing, however long
//! it was away. A checkpoint (feature `checkpoints`) is a state that lets the log be trimmed up to its index: whoever starts anew fetches the newest
//! and reads on behind it. An application that keeps its state in memory needs the second, one that hands entries on to
//! another system the first.
//!
//! # Features
//!
//! None is on by default. `checkpoints` has the application's states; `wire` shows the generated gRPC clients, which are
//! not covered by this crate's version.
#![forbid(unsafe_code)]

mod append;
#[cfg(feature = "checkpoints")]
mod checkpoints;
mod connect;
mod consumers;
mod error;
mod events;
mod read;
mod retry;
mod role;
mod status;
#[cfg(feature = "wire")]
pub mod wire;

pub use append::{AppendOptions, Appended, IdempotencyKey, NewEntry, Repeats};
#[cfg(feature = "checkpoints")]
pub use checkpoints::{Checkpoint, Checkpoints, Fetched, ListedCheckpoint, Progress};
pub use connect::SOCKET_VARIABLE;
pub use consumers::{Consumer, ConsumerList, Consumers, RegisterOptions, Registered};
#[cfg(feature = "checkpoints")]
pub use error::CheckpointError;
pub use error::{AppendError, CallError, ConnectError};
pub use events::{ConnectionEvent, ConnectionEvents};
pub use read::{Consistency, End, Entries, Entry, ReadOptions, Start, SubscribeOptions, Subscription};
pub use role::{Leadership, Leaderships};
pub use status::{MemberState, Role, Status, Tail};
pub use synod_proto::v1::{Outcome, Reason};

use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A connection to one member's socket. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Client {
    channels: connect::Channels,
    /// How long a call other than an append is tried.
    timeout: Duration,
    appender: append::Appender,
    /// The highest index that was acknowledged, read or told.
    seen: Arc<AtomicU64>,
    herald: events::Herald,
}

impl Client {
    /// Connects to the socket that the environment variable `SYNOD_SOCKET` names.
    ///
    /// The connection is made with the first call and made anew when it breaks.
    ///
    /// # Errors
    /// If the variable is not set, or names a path that no socket can have.
    pub fn connect_from_env() -> Result<Client, ConnectError> {
        let path = std::env::var_os(SOCKET_VARIABLE).ok_or(ConnectError::NoVariable)?;
        Self::connect(path)
    }

    /// Connects to the socket at `path`; see [`Client::connect_from_env`].
    ///
    /// # Errors
    /// If no socket can have this path: it is empty or over 107 bytes long.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn connect(path: impl AsRef<Path>) -> Result<Client, ConnectError> {
        let herald = events::Herald::new();
        let channels = connect::channels(path.as_ref(), &herald)?;
        let seen = Arc::new(AtomicU64::new(0));
        let appender =
            append::Appender::start(channels.appends.clone(), channels.calls.clone(), seen.clone());
        Ok(Client { channels, timeout: retry::PATIENCE, appender, seen, herald })
    }

    /// What becomes of this client's connections, from now on: for a log line or a readiness probe. Calls make the
    /// connections and make them anew by themselves.
    pub fn connection_events(&self) -> ConnectionEvents {
        self.herald.listen()
    }

    /// How long calls other than appends are tried, all attempts together; 30 seconds where nothing is said.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Client {
        self.timeout = timeout;
        self
    }

    /// Appends one entry exactly once, with [`AppendOptions::default`].
    ///
    /// Where the future is dropped before it is done, the append is not tried again; it may have been appended.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub async fn append(&self, entry: impl Into<Bytes>) -> Result<Appended, AppendError> {
        self.append_with(vec![entry.into()], AppendOptions::default()).await
    }

    /// Appends entries that get neighbouring indexes: all of them or none. At most 1 MiB of payload and
    /// 4,096 entries.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub async fn append_many(&self, entries: Vec<Bytes>) -> Result<Appended, AppendError> {
        self.append_with(entries, AppendOptions::default()).await
    }

    /// Appends entries with options.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub async fn append_with(
        &self,
        entries: Vec<Bytes>,
        options: AppendOptions,
    ) -> Result<Appended, AppendError> {
        self.appender.append(entries, options).await
    }

    /// Appends entries that may have headers, with options. Headers need format level 4 of the log.
    ///
    /// # Errors
    /// See [`AppendError`]; `Reason::FormatLevel` where the log is not at that level.
    pub async fn append_entries(
        &self,
        entries: Vec<NewEntry>,
        options: AppendOptions,
    ) -> Result<Appended, AppendError> {
        self.appender.append(entries, options).await
    }

    /// Entries from index `from` (the first is 1) up to the limit or the tail. The stream ends with the
    /// first error.
    pub fn read(&self, from: u64, options: ReadOptions) -> Entries {
        read::read(self.channels.calls.clone(), self.seen.clone(), self.timeout, from, options)
    }

    /// Entries from `start` on, then live; an index is a start. When the connection is cut, the stream resumes behind
    /// the last entry it gave: nothing is skipped, nothing comes twice. It ends only with an error that trying
    /// again cannot mend.
    pub fn subscribe(&self, start: impl Into<Start>) -> Subscription {
        self.subscribe_with(start, SubscribeOptions::default())
    }

    /// The same, up to an end.
    pub fn subscribe_until(&self, start: impl Into<Start>, end: End) -> Subscription {
        self.subscribe_with(start, SubscribeOptions { end, ..SubscribeOptions::default() })
    }

    /// The same, with options.
    pub fn subscribe_with(&self, start: impl Into<Start>, options: SubscribeOptions) -> Subscription {
        read::subscribe(self.channels.calls.clone(), self.seen.clone(), start.into(), options)
    }

    /// Whether this member leads, now and whenever that changes: for work that one member shall do.
    pub fn watch_role(&self) -> Leaderships {
        role::watch(self.channels.calls.clone())
    }

    /// The last index; 0 where the log is empty.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn tail(&self, consistency: Consistency) -> Result<u64, CallError> {
        Ok(self.bounds(consistency).await?.last_index)
    }

    /// Where the log begins and ends.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn bounds(&self, consistency: Consistency) -> Result<Tail, CallError> {
        let consistency = consistency.to_wire(&self.seen);
        let answer = read::tail(&self.channels.calls, self.timeout, consistency).await?;
        self.seen.fetch_max(answer.last_index, Ordering::Relaxed);
        Ok(Tail { first_index: answer.first_index, last_index: answer.last_index })
    }

    /// From now on this client's [`Consistency::Sequential`] reads show at least `index`: for an index that came
    /// from somewhere else, such as another process.
    pub fn not_before(&self, index: u64) {
        self.seen.fetch_max(index, Ordering::Relaxed);
    }

    /// Waits until what this client and its clones have appended is answered, and closes the session: the log
    /// need not remember it until it expires. A client that is used again opens another one. It waits no longer than
    /// [`Client::timeout`]; a session that is left open then expires by itself.
    pub async fn close(&self) {
        drop(tokio::time::timeout_at(retry::within(self.timeout), self.appender.close()).await);
    }

    /// What this member knows of itself and its cluster.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn status(&self) -> Result<Status, CallError> {
        let cluster = synod_proto::v1::cluster_client::ClusterClient::new(self.channels.calls.clone());
        let call = |request| {
            let mut cluster = cluster.clone();
            async move { cluster.status(request).await }
        };
        let answer = retry::until_answered(self.timeout, synod_proto::v1::StatusRequest {}, call).await?;
        Ok(Status::from(answer))
    }
}
