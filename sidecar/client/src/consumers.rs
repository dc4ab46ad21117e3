//! Durable named positions.

use crate::error::CallError;
use crate::{Client, Consistency, retry};
use std::time::Duration;
use synod_proto::v1::consumers_client::ConsumersClient;
use synod_proto::v1::{
    AdvanceConsumerRequest, ListConsumersRequest, RegisterConsumerRequest, RemoveConsumerRequest,
    SeekConsumerRequest,
};
use tonic::transport::Channel;

/// A registered consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// It is done with every entry up to this index; 0: with none.
    pub index: u64,
    /// How many entries are behind its position.
    pub lag: u64,
    /// After how long without a word it is forgotten; none: never.
    pub expiry: Option<Duration>,
}

/// How to register a consumer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegisterOptions {
    /// It is done with every entry up to this; none: a new one begins where the log begins, one that is registered stays
    /// where it stands.
    pub index: Option<u64>,
    /// It is forgotten once nobody has registered, moved or put it for so long, in the log's own time: 10 s or more, zero:
    /// never. None: as it is, a new one never. Needs format level 4.
    pub expiry: Option<Duration>,
}

/// A consumer that is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Registered {
    /// It is done with every entry up to this index: the next entry to read is the one behind.
    pub index: u64,
    /// This call registered it; otherwise it was registered before, perhaps by an earlier try.
    pub created: bool,
}

/// All consumers, and where the log they read begins and ends.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerList {
    /// By name.
    pub consumers: Vec<Consumer>,
    /// The first index that this member can still give.
    pub first_index: u64,
    /// The last index; one less than `first_index` where nothing can be read.
    pub last_index: u64,
}

/// Consumers: durable named positions in the log, the same whichever member is asked. The log is not trimmed past
/// the slowest one, so whoever reads by its consumer's position finds every entry behind it, also after a restart
/// and however long it was away.
///
/// ```no_run
/// # async fn example(log: synod_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use futures::TryStreamExt;
///
/// let consumers = log.consumers();
/// let done = consumers.register("billing").await?;
/// let mut entries = log.subscribe(done + 1);
/// while let Some(entry) = entries.try_next().await? {
///     // ... carry it out, then, now and then:
///     consumers.advance("billing", entry.index).await?;
/// }
/// # Ok(())
/// # }
/// ```
///
/// A position goes back only where [`Consumers::seek`] puts it, so each call may be repeated; until [`Consumers::timeout`] is over they are,
/// whatever happens between. A consumer that nobody needs any more must be removed, or the log grows for ever.
#[derive(Clone, Debug)]
pub struct Consumers {
    client: Client,
    timeout: Duration,
}

impl Client {
    /// Consumers: durable named positions that hold back trimming.
    pub fn consumers(&self) -> Consumers {
        Consumers { client: self.clone(), timeout: self.timeout }
    }
}

impl Consumers {
    /// How long a call is tried; the client's own timeout where nothing is said.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Consumers {
        self.timeout = timeout;
        self
    }

    fn service(&self) -> ConsumersClient<Channel> {
        ConsumersClient::new(self.client.channels.calls.clone())
    }

    /// Registers a consumer where the log begins now. One that is registered stays where it stands. Gives the
    /// index that it is done with: the next entry to read is the one behind. A name has 1 to 253 bytes.
    ///
    /// # Errors
    /// See [`CallError`]; `too-many-consumers` where the cluster has 1,024 already.
    pub async fn register(&self, name: impl Into<String>) -> Result<u64, CallError> {
        Ok(self.register_with(name, RegisterOptions::default()).await?.index)
    }

    /// Registers a consumer that is done with every entry up to `index`, 0 for a new one that wants the whole log.
    /// One that is registered moves on to there if it stands before. Gives the index that it is done with.
    ///
    /// # Errors
    /// `compacted` where what it would read next is gone, `beyond-tail` where the log does not reach so far; see
    /// [`CallError`].
    pub async fn register_at(&self, name: impl Into<String>, index: u64) -> Result<u64, CallError> {
        let options = RegisterOptions { index: Some(index), ..RegisterOptions::default() };
        Ok(self.register_with(name, options).await?.index)
    }

    /// Registers a consumer with options, or changes the expiry of one that is registered.
    ///
    /// # Errors
    /// As [`Consumers::register_at`]; `Reason::FormatLevel` where the log is not at the level of an expiry.
    pub async fn register_with(
        &self,
        name: impl Into<String>,
        options: RegisterOptions,
    ) -> Result<Registered, CallError> {
        let RegisterOptions { index, expiry } = options;
        let expiry = expiry.map(synod_proto::duration);
        let request = RegisterConsumerRequest { name: name.into(), index, expiry };
        let service = self.service();
        let call = |request| {
            let mut service = service.clone();
            async move { service.register(request).await }
        };
        let answer = retry::until_answered(self.timeout, request, call).await?;
        Ok(Registered { index: answer.index, created: answer.created })
    }

    /// Puts a registered consumer anywhere in the log, back as well: the next entry to read is the one behind `index`. Gives
    /// the index.
    ///
    /// # Errors
    /// `unknown-consumer` where it is not registered, `compacted` and `beyond-tail` where the log does not have it; see
    /// [`CallError`].
    pub async fn seek(&self, name: impl Into<String>, index: u64) -> Result<u64, CallError> {
        let service = self.service();
        let call = |request| {
            let mut service = service.clone();
            async move { service.seek(request).await }
        };
        let request = SeekConsumerRequest { name: name.into(), index };
        Ok(retry::until_answered(self.timeout, request, call).await?.index)
    }

    /// The consumer is done with every entry up to `index`. Gives the index that it is done with now, further on
    /// where another call has moved it there.
    ///
    /// # Errors
    /// `unknown-consumer` where it is not registered, `beyond-tail` where the log does not reach so far; see
    /// [`CallError`].
    pub async fn advance(&self, name: impl Into<String>, index: u64) -> Result<u64, CallError> {
        let service = self.service();
        let call = |request| {
            let mut service = service.clone();
            async move { service.advance(request).await }
        };
        let request = AdvanceConsumerRequest { name: name.into(), index };
        Ok(retry::until_answered(self.timeout, request, call).await?.index)
    }

    /// Forgets a consumer: the log may be trimmed past it. One that is not registered is forgotten already.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn remove(&self, name: impl Into<String>) -> Result<(), CallError> {
        let service = self.service();
        let call = |request| {
            let mut service = service.clone();
            async move { service.remove(request).await }
        };
        retry::until_answered(self.timeout, RemoveConsumerRequest { name: name.into() }, call).await?;
        Ok(())
    }

    /// All consumers, by name.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn list(&self, consistency: Consistency) -> Result<ConsumerList, CallError> {
        let service = self.service();
        let call = |request| {
            let mut service = service.clone();
            async move { service.list(request).await }
        };
        let request = ListConsumersRequest { consistency: consistency.to_wire(&self.client.seen) };
        let list = retry::until_answered(self.timeout, request, call).await?;
        let consumers = list.consumers.into_iter().map(|c| Consumer {
            expiry: c.expiry.and_then(|expiry| synod_proto::span(&expiry)),
            name: c.name,
            index: c.index,
            lag: c.lag,
        });
        Ok(ConsumerList {
            consumers: consumers.collect(),
            first_index: list.first_index,
            last_index: list.last_index,
        })
    }
}
