//! What becomes of the connections to the member.

use futures::stream::{BoxStream, Stream};
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Events that a listener may leave lying; of more, the oldest are left out.
const KEPT: usize = 64;

/// What became of a connection to the member. A client has up to three: appends, states, and all other calls each have
/// their own, made with the first call that needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// One stands.
    Connected,
    /// One that stood does not any more. The next call that needs it makes it anew.
    Lost,
    /// One could not be made, and why; calls that need it are tried again until their own deadlines.
    Unreachable {
        /// What the system said.
        message: String,
    },
}

/// What becomes of a client's connections from now on. It ends with the client and its last clone; whoever listens too
/// slowly does not hear the oldest.
pub struct ConnectionEvents(BoxStream<'static, ConnectionEvent>);

impl fmt::Debug for ConnectionEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionEvents").finish_non_exhaustive()
    }
}

impl Stream for ConnectionEvents {
    type Item = ConnectionEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ConnectionEvent>> {
        self.0.as_mut().poll_next(context)
    }
}

/// Tells whoever listens.
#[derive(Clone, Debug)]
pub(crate) struct Herald(broadcast::Sender<ConnectionEvent>);

impl Herald {
    pub(crate) fn new() -> Herald {
        Herald(broadcast::Sender::new(KEPT))
    }

    fn tell(&self, event: ConnectionEvent) {
        // Nobody has to listen.
        drop(self.0.send(event));
    }

    /// Connects, and tells what came of it, then and at the end.
    pub(crate) async fn connect(&self, path: &std::path::Path) -> io::Result<Told> {
        match UnixStream::connect(path).await {
            Ok(stream) => {
                self.tell(ConnectionEvent::Connected);
                Ok(Told { stream, herald: self.clone() })
            }
            Err(error) => {
                self.tell(ConnectionEvent::Unreachable { message: error.to_string() });
                Err(error)
            }
        }
    }

    pub(crate) fn listen(&self) -> ConnectionEvents {
        ConnectionEvents(Box::pin(futures::stream::unfold(self.0.subscribe(), |mut events| async move {
            loop {
                match events.recv().await {
                    Ok(event) => return Some((event, events)),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                }
            }
        })))
    }
}

/// A connection whose end is told.
#[derive(Debug)]
pub(crate) struct Told {
    stream: UnixStream,
    herald: Herald,
}

impl Drop for Told {
    fn drop(&mut self) {
        self.herald.tell(ConnectionEvent::Lost);
    }
}

impl AsyncRead for Told {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Told {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
