//! The connections themselves: accepted, given a place, secured, and handed to a server.

use super::authority::Authorities;
use super::table::{Activity, Crowded, Place, Source, Table, Ticket};
use super::{Known, Limits};
use crate::descriptors;
use crate::tls::Tls;
use futures::Stream;
use rustls::pki_types::CertificateDer;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tonic::{Extensions, Status};

/// After an accept that failed for want of a descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end of a connection: an extension of every request that comes through it.
#[derive(Clone, Debug)]
pub struct Caller {
    remote: Option<SocketAddr>,
    uid: Option<u32>,
    certificates: Option<Arc<Vec<CertificateDer<'static>>>>,
    ticket: Ticket,
}

impl Caller {
    /// The caller of a request.
    ///
    /// # Errors
    /// If the request came through no connection of this module.
    pub fn of(extensions: &Extensions) -> Result<&Caller, Status> {
        extensions.get().ok_or_else(|| Status::internal("the caller of this request is not known"))
    }

    /// Its address, over TCP.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.remote
    }

    /// Its user, over a Unix socket.
    pub fn uid(&self) -> Option<u32> {
        self.uid
    }

    /// The certificates that it has shown, its own first.
    pub fn certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.certificates.as_deref().map(Vec::as_slice)
    }

    /// Tells the listener that the caller is who may call here: its connection may stay.
    ///
    /// # Errors
    /// Where there are too many such connections.
    pub fn admit(&self) -> Result<(), Crowded> {
        self.ticket.admit()
    }
}

/// A listener's source of connections.
pub trait Accept: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// Whether its clients have no host to name: their authorities are made ones that the server takes.
    const HAS_NO_HOST: bool;
    /// The next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
    /// The other end's address, user, and what it counts as.
    fn origin(stream: &Self::Stream) -> (Option<SocketAddr>, Option<u32>, Source);
}

impl Accept for UnixListener {
    type Stream = UnixStream;
    const HAS_NO_HOST: bool = true;

    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }

    fn origin(stream: &UnixStream) -> (Option<SocketAddr>, Option<u32>, Source) {
        let uid = stream.peer_cred().ok().map(|credentials| credentials.uid());
        (None, uid, uid.map_or(Source::Unknown, Source::User))
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    const HAS_NO_HOST: bool = false;

    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        // One that was reset already ends by itself.
        drop(stream.set_nodelay(true));
        Ok(stream)
    }

    fn origin(stream: &TcpStream) -> (Option<SocketAddr>, Option<u32>, Source) {
        let remote = stream.peer_addr().ok();
        (remote, None, remote.map_or(Source::Unknown, |remote| Source::of(remote.ip())))
    }
}

/// How long a connection may still wait.
#[derive(Debug)]
struct Waiting {
    cut: oneshot::Receiver<()>,
    patience: Pin<Box<Sleep>>,
}

/// A connection that holds a place.
#[derive(Debug)]
pub(super) struct Placed<S> {
    stream: S,
    place: Place,
    /// None: it was admitted.
    waiting: Option<Waiting>,
}

impl<S> Placed<S> {
    fn new(stream: S, place: Place, cut: oneshot::Receiver<()>, limits: &Limits) -> Placed<S> {
        let patience = Box::pin(tokio::time::sleep(limits.patience));
        Placed { stream, place, waiting: Some(Waiting { cut, patience }) }
    }

    /// An error if the connection is to be closed. Else the task is woken when that changes.
    fn look(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(waiting) = &mut self.waiting else { return Ok(()) };
        match Pin::new(&mut waiting.cut).poll(context) {
            Poll::Ready(Ok(())) => {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "a newer one took its place"));
            }
            Poll::Ready(Err(_)) => {
                self.waiting = None;
                return Ok(());
            }
            Poll::Pending => {}
        }
        match waiting.patience.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::TimedOut, "it did not say who it is")),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Placed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.look(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Placed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.look(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.look(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.look(context)?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.look(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[derive(Debug)]
enum Secured<S> {
    Plain(Placed<S>),
    Tls(Box<TlsStream<Placed<S>>>),
}

/// A connection for a server: its TLS handshake, if any, is done.
#[derive(Debug)]
pub struct Connection<S> {
    stream: Secured<S>,
    authorities: Option<Authorities>,
    remote: Option<SocketAddr>,
    uid: Option<u32>,
}

/// Applies one of the methods of a stream to whichever there is.
macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().stream {
            Secured::Plain($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Secured::Tls($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
        }
    };
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let this = self.as_mut();
        let polled = either!(this, stream => stream.poll_read(context, buffer));
        if let Some(authorities) = &mut self.authorities {
            authorities.edit(&mut buffer.filled_mut()[before..]);
        }
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(context))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write_vectored(context, buffers))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Secured::Plain(stream) => stream.is_write_vectored(),
            Secured::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

impl<S> Connection<S> {
    fn place(&self) -> &Place {
        match &self.stream {
            Secured::Plain(placed) => &placed.place,
            Secured::Tls(stream) => &stream.get_ref().0.place,
        }
    }

    pub(super) fn activity(&self) -> Arc<Activity> {
        self.place().activity()
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        let (placed, certificates) = match &self.stream {
            Secured::Plain(placed) => (placed, None),
            Secured::Tls(stream) => {
                let (placed, session) = stream.get_ref();
                (placed, session.peer_certificates().map(|shown| Arc::new(shown.to_vec())))
            }
        };
        Caller { remote: self.remote, uid: self.uid, certificates, ticket: placed.place.ticket() }
    }
}

/// A listener's connections, as they become ready for a server.
pub struct Incoming<L: Accept> {
    listener: L,
    table: Arc<Table>,
    tls: Option<Tls>,
    known: Known,
    handshakes: JoinSet<io::Result<Connection<L::Stream>>>,
    /// Whether the last accept failed: told once.
    failed: bool,
}

impl<L: Accept> Incoming<L> {
    /// Connections of `listener` within `limits`, secured where there are certificates.
    pub fn new(listener: L, limits: Limits, tls: Option<Tls>, known: Known) -> Incoming<L> {
        let table = Table::new(limits, L::HAS_NO_HOST);
        Incoming { listener, table, tls, known, handshakes: JoinSet::new(), failed: false }
    }

    /// Who holds places.
    pub fn table(&self) -> Arc<Table> {
        self.table.clone()
    }

    /// The next connection. A failed accept or handshake never ends the listener (docs: reliability.md, fault 55).
    pub async fn next(&mut self) -> Connection<L::Stream> {
        loop {
            tokio::select! {
                accepted = self.listener.next() => match accepted {
                    Ok(stream) => {
                        self.failed = false;
                        if let Some(connection) = self.begin(stream) {
                            return connection;
                        }
                    }
                    Err(error) => self.pause(&error).await,
                },
                Some(secured) = self.handshakes.join_next() => match secured {
                    Ok(Ok(connection)) => return connection,
                    Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
                    Err(error) => tracing::debug!(%error, "a handshake ended"),
                },
            }
        }
    }

    /// Gives a connection its place. None: its handshake is under way.
    fn begin(&mut self, stream: L::Stream) -> Option<Connection<L::Stream>> {
        let (remote, uid, source) = L::origin(&stream);
        let is_known = remote.is_some_and(|remote| self.known.has(remote.ip()));
        let (place, cut) = self.table.enter(source, is_known);
        let placed = Placed::new(stream, place, cut, self.table.limits());
        let authorities = L::HAS_NO_HOST.then(Authorities::new);
        let Some(tls) = self.tls.clone() else {
            return Some(Connection { stream: Secured::Plain(placed), authorities, remote, uid });
        };
        self.handshakes.spawn(async move {
            let stream = Secured::Tls(Box::new(tls.accept(placed).await?));
            Ok(Connection { stream, authorities, remote, uid })
        });
        None
    }

    async fn pause(&mut self, error: &io::Error) {
        let is_shortage = descriptors::is_shortage(error);
        if is_shortage {
            self.table.cut_one();
        }
        if !self.failed {
            self.failed = true;
            if is_shortage {
                descriptors::count_wait();
            }
            tracing::warn!(%error, limit = descriptors::limit(), "a connection could not be accepted; trying on");
        }
        // Whoever resets connections before they are accepted must not hold up the others.
        tokio::time::sleep(if is_shortage { ACCEPT_PAUSE } else { Duration::from_millis(1) }).await;
    }

    /// As a stream for a gRPC server.
    pub fn stream(self) -> impl Stream<Item = io::Result<Connection<L::Stream>>> {
        futures::stream::unfold(self, |mut incoming| async move {
            let connection = incoming.next().await;
            Some((Ok(connection), incoming))
        })
    }
}
