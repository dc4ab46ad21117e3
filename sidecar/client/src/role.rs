//! Whether the member leads.

use crate::error::{CallError, failed};
use crate::retry::{FIRST_PAUSE, LONGEST_PAUSE, SILENCE, TRY};
use futures::stream::{BoxStream, Stream};
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use synod_proto::v1::cluster_client::ClusterClient;
use synod_proto::v1::{Reason, WatchRoleRequest, WatchRoleResponse};
use tonic::transport::Channel;
use tonic::{Request, Streaming};

/// Whether the member that a client speaks to leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leadership {
    /// It leads: its application may act as the one that does, under this epoch. `false` also while the member cannot be
    /// heard.
    pub leads: bool,
    /// The newest leadership that the member has applied, its own where it leads; it only grows. What the application
    /// appends as the leader has it as [`crate::AppendOptions::fence`].
    pub fencing_epoch: u64,
    /// Who leads, where that is known.
    pub leader: Option<u64>,
}

/// Whether the member leads: now, and whenever that changes. When the connection is cut it says that the member does not
/// lead, and asks anew; it ends with an error that trying again cannot mend.
pub struct Leaderships(BoxStream<'static, Result<Leadership, CallError>>);

impl fmt::Debug for Leaderships {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaderships").finish_non_exhaustive()
    }
}

impl Stream for Leaderships {
    type Item = Result<Leadership, CallError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

struct Watching {
    channel: Channel,
    stream: Option<Streaming<WatchRoleResponse>>,
    last: Option<Leadership>,
    pause: Duration,
}

impl Watching {
    async fn message(&mut self) -> Result<Option<WatchRoleResponse>, CallError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            empty => {
                let mut request = Request::new(WatchRoleRequest {});
                // For the answer's beginning; the stream itself has no end.
                request.set_timeout(TRY);
                let mut service = ClusterClient::new(self.channel.clone());
                let answer = service.watch_role(request).await.map_err(failed)?;
                empty.insert(answer.into_inner())
            }
        };
        match tokio::time::timeout(SILENCE, stream.message()).await {
            Ok(message) => message.map_err(failed),
            Err(_) => Err(CallError::local(Reason::Transport, "the member says nothing on the stream")),
        }
    }

    /// The newest leadership so far.
    fn epoch(&self) -> u64 {
        self.last.map_or(0, |last| last.fencing_epoch)
    }

    /// What is the case, where it is not what was said last.
    fn news(&mut self, now: Leadership) -> Option<Leadership> {
        (self.last.replace(now) != Some(now)).then_some(now)
    }

    async fn advance(&mut self) -> Result<Leadership, CallError> {
        loop {
            let news = match self.message().await {
                Ok(Some(WatchRoleResponse { leads, fencing_epoch, leader, .. })) => {
                    self.pause = FIRST_PAUSE;
                    // A member that has started anew has applied less at first.
                    let fencing_epoch = fencing_epoch.max(self.epoch());
                    self.news(Leadership { leads, fencing_epoch, leader })
                }
                // A member that takes no part yet, or not any more, does not lead.
                Err(error) if !error.is_resumable() && error.reason != Reason::NotActive => {
                    return Err(error);
                }
                Ok(None) | Err(_) => {
                    self.stream = None;
                    let unheard = Leadership { leads: false, fencing_epoch: self.epoch(), leader: None };
                    let news = self.news(unheard);
                    if news.is_none() {
                        tokio::time::sleep(self.pause).await;
                        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                    }
                    news
                }
            };
            if let Some(news) = news {
                return Ok(news);
            }
        }
    }
}

pub(crate) fn watch(channel: Channel) -> Leaderships {
    let watching = Watching { channel, stream: None, last: None, pause: FIRST_PAUSE };
    Leaderships(Box::pin(futures::stream::unfold(Some(watching), |watching| async move {
        let mut watching = watching?;
        match watching.advance().await {
            Ok(leadership) => Some((Ok(leadership), Some(watching))),
            Err(error) => Some((Err(error), None)),
        }
    })))
}
