//! The links between the members of a dev cluster: every one of them goes through here, so that it can be cut or slow.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Where a member listens for its peers.
pub(super) const MEMBER_PORT: u16 = 7400;
/// Where its peers dial it.
pub(super) const PROXY_PORT: u16 = 7401;
/// The first member's last byte.
const FIRST: u8 = 10;
/// How often addresses are looked for.
const TRIES: usize = 64;
/// Pieces that are under way on a slow link, each way.
const UNDER_WAY: usize = 256;
const PIECE: usize = 16 << 10;

/// A member's links to all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) is_cut: bool,
    /// Of each way.
    pub(super) delay: Duration,
}

/// What stands between the members.
#[derive(Debug)]
pub(super) struct Links {
    hosts: Vec<Ipv4Addr>,
    links: watch::Sender<Vec<Link>>,
    _proxies: JoinSet<()>,
}

impl Links {
    /// Finds a loopback address for each member, and listens at each.
    pub(super) async fn open(count: u8) -> io::Result<Links> {
        let links = watch::Sender::new(vec![Link::default(); usize::from(count)]);
        let mut tries = 0;
        let (hosts, listeners) = loop {
            tries += 1;
            match listen(count).await {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < TRIES => {}
                found => break found?,
            }
        };
        let mut proxies = JoinSet::new();
        for (listener, host) in listeners.into_iter().zip(&hosts) {
            proxies.spawn(proxy(listener, *host, hosts.clone(), links.subscribe()));
        }
        Ok(Links { hosts, links, _proxies: proxies })
    }

    /// The members' addresses.
    pub(super) fn hosts(&self) -> &[Ipv4Addr] {
        &self.hosts
    }

    pub(super) fn now(&self) -> Vec<Link> {
        self.links.borrow().clone()
    }

    /// Changes a member's links; those that are cut end at once.
    pub(super) fn change(&self, number: usize, change: impl FnOnce(&mut Link)) {
        self.links.send_modify(|links| {
            if let Some(link) = links.get_mut(number) {
                change(link);
            }
        });
    }
}

/// A host of its own for each member; all of them are free.
async fn listen(count: u8) -> io::Result<(Vec<Ipv4Addr>, Vec<TcpListener>)> {
    let [second, third, ..] = uuid::Uuid::new_v4().into_bytes();
    let (mut hosts, mut listeners) = (Vec::new(), Vec::new());
    for number in 0..count {
        let host = Ipv4Addr::new(127, second.max(1), third, FIRST + number);
        // Free now, and nobody else looks for this one.
        drop(TcpListener::bind((host, MEMBER_PORT)).await?);
        listeners.push(TcpListener::bind((host, PROXY_PORT)).await?);
        hosts.push(host);
    }
    Ok((hosts, listeners))
}

/// Takes the connections to one member.
async fn proxy(
    listener: TcpListener,
    host: Ipv4Addr,
    hosts: Vec<Ipv4Addr>,
    links: watch::Receiver<Vec<Link>>,
) {
    let number = |address: IpAddr| hosts.iter().position(|host| IpAddr::V4(*host) == address);
    let Some(to) = number(host.into()) else { return };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => match number(remote.ip()) {
                    Some(from) => {
                        let member = SocketAddr::from((host, MEMBER_PORT));
                        drop(connections.spawn(connect(stream, member, (from, to), links.clone())));
                    }
                    None => tracing::debug!(%remote, "a connection of nobody's"),
                },
                Err(error) => {
                    tracing::debug!(%error, "a link cannot be taken");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

fn is_cut(links: &[Link], (from, to): (usize, usize)) -> bool {
    links[from].is_cut || links[to].is_cut
}

/// Carries one connection until an end closes it or the link is cut.
async fn connect(
    stream: TcpStream,
    member: SocketAddr,
    ends: (usize, usize),
    links: watch::Receiver<Vec<Link>>,
) {
    let mut cut = links.clone();
    let carrying = async {
        let other = TcpStream::connect(member).await?;
        stream.set_nodelay(true)?;
        other.set_nodelay(true)?;
        let ((from_here, to_here), (from_there, to_there)) = (stream.into_split(), other.into_split());
        tokio::try_join!(carry(from_here, to_there, ends, &links), carry(from_there, to_here, ends, &links))
    };
    tokio::select! {
        carried = carrying => {
            if let Err(error) = carried {
                tracing::debug!(%error, %member, "a link ended");
            }
        }
        _ = cut.wait_for(|links| is_cut(links, ends)) => {}
    }
}

/// Carries bytes one way, each piece as late as the link is slow when it comes.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    (one, other): (usize, usize),
    links: &watch::Receiver<Vec<Link>>,
) -> io::Result<()> {
    let (pieces, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let reading = async move {
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            if from.read_buf(&mut piece).await? == 0 {
                return Ok(());
            }
            let delay = {
                let links = links.borrow();
                links[one].delay.max(links[other].delay)
            };
            if pieces.send((Instant::now() + delay, piece)).await.is_err() {
                return Ok(());
            }
        }
    };
    let writing = async move {
        while let Some((at, piece)) = due.recv().await {
            tokio::time::sleep_until(at).await;
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(reading, writing).map(|((), ())| ())
}
