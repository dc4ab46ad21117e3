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
//! All clones of a [`Client`] share one append stream. An append is sent again by itself only where the
//! member said that it is certain that nothing was appended; an outcome that nobody can know any more is
//! [`AppendError::Unknown`], and what to do then is the application's to decide: read the log, or append
//! again if a second entry does no harm.
#![forbid(unsafe_code)]

mod append;
mod connect;
mod error;
mod read;

pub use append::{AppendOptions, Appended};
pub use connect::{SOCKET_VARIABLE, channel};
pub use error::{AppendError, CallError, ConnectError};
pub use read::{Consistency, Entry, ReadOptions};
pub use synod_proto::v1::{HistoryResponse, StatusResponse};

use bytes::Bytes;
use futures::Stream;
use std::path::Path;
use synod_proto::v1::{HistoryRequest, StatusRequest, TailRequest, cluster_client::ClusterClient};
use tonic::transport::Channel;

/// A connection to one member's socket. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    appender: append::Appender,
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
        let channel = connect::channel(path.as_ref())?;
        let appender = append::Appender::start(channel.clone());
        Ok(Client { channel, appender })
    }

    /// Appends one entry, with [`AppendOptions::default`].
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

    /// Entries from index `from` (the first is 1) up to the limit or the tail. The stream ends with the
    /// first error.
    pub fn read(
        &self,
        from: u64,
        options: ReadOptions,
    ) -> impl Stream<Item = Result<Entry, CallError>> + Send + Unpin + 'static {
        read::read(self.channel.clone(), from, options)
    }

    /// Entries from index `from` on, then live. When the connection is cut, the stream resumes behind the
    /// last entry it gave: nothing is skipped, nothing comes twice. It ends only with an error that trying
    /// again cannot mend.
    pub fn subscribe(
        &self,
        from: u64,
    ) -> impl Stream<Item = Result<Entry, CallError>> + Send + Unpin + 'static {
        read::subscribe(self.channel.clone(), from)
    }

    /// The last index; 0 where the log is empty.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn tail(&self, consistency: Consistency) -> Result<u64, CallError> {
        let request = TailRequest { consistency: consistency.to_wire().into() };
        Ok(read::log(self.channel.clone()).tail(request).await?.into_inner().last_index)
    }

    /// What this member knows of the cluster.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn status(&self) -> Result<StatusResponse, CallError> {
        let mut cluster = ClusterClient::new(self.channel.clone());
        Ok(cluster.status(StatusRequest {}).await?.into_inner())
    }

    /// Configurations and leaderships so far.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn history(&self) -> Result<HistoryResponse, CallError> {
        let mut cluster = ClusterClient::new(self.channel.clone());
        Ok(cluster.history(HistoryRequest {}).await?.into_inner())
    }
}
