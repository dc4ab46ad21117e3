//! A member's link with a rate: its peers reach it through here, and all their connections share the rate, each way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Read at once: at a megabyte a second some 16 ms of the link.
const PIECE: usize = 16 << 10;
/// What a link holds: a sender whose socket took more than that would believe it to be sent.
const BUFFER: u32 = 64 << 10;

/// One way of the link: until when it is busy.
type Way = Arc<Mutex<Instant>>;

/// The rate, and what passed.
#[derive(Debug, Default)]
struct Gauge {
    /// Bytes a second each way; 0: any number.
    rate: AtomicU64,
    passed: AtomicU64,
}

/// A link to one member. It ends when it is dropped.
#[derive(Debug)]
pub struct Narrow {
    /// Where peers reach the member.
    pub address: SocketAddr,
    gauge: Arc<Gauge>,
    listening: JoinHandle<()>,
}

impl Narrow {
    /// A link to a member that listens at `member`, or will, of so many bytes a second each way.
    pub async fn to(member: SocketAddr, rate: u64) -> Narrow {
        let socket = socket();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(super::free_address()).unwrap();
        let listener = socket.listen(1_024).unwrap();
        let address = listener.local_addr().unwrap();
        let gauge = Arc::new(Gauge { rate: AtomicU64::new(rate), passed: AtomicU64::new(0) });
        let listening = tokio::spawn(listen(listener, member, gauge.clone()));
        Narrow { address, gauge, listening }
    }

    /// From now on so many bytes a second pass each way; 0: any number.
    pub fn set_rate(&self, rate: u64) {
        self.gauge.rate.store(rate, Ordering::Relaxed);
    }

    /// Bytes that passed so far, both ways.
    pub fn passed(&self) -> u64 {
        self.gauge.passed.load(Ordering::Relaxed)
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// One that takes no more than a link holds; what is accepted is like what listens.
fn socket() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(BUFFER).unwrap();
    socket.set_send_buffer_size(BUFFER).unwrap();
    socket
}

async fn listen(listener: TcpListener, member: SocketAddr, gauge: Arc<Gauge>) {
    let ways: [Way; 2] = std::array::from_fn(|_| Arc::new(Mutex::new(Instant::now())));
    // They end with this task.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                connections.spawn(connect(stream, member, ways.clone(), gauge.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(stream: TcpStream, member: SocketAddr, [there, back]: [Way; 2], gauge: Arc<Gauge>) {
    // A member that is down refuses.
    let Ok(other) = socket().connect(member).await else { return };
    for end in [&stream, &other] {
        end.set_nodelay(true).unwrap();
    }
    let ((from_peer, to_peer), (from_member, to_member)) = (stream.into_split(), other.into_split());
    // An end that closes ends both ways.
    tokio::select! {
        _ = carry(from_peer, to_member, there, &gauge) => {}
        _ = carry(from_member, to_peer, back, &gauge) => {}
    }
}

/// Carries bytes one way, each piece when the link has taken those before it.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    gauge: &Gauge,
) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let bytes = from.read(&mut piece).await?;
        if bytes == 0 {
            return Ok(());
        }
        let rate = gauge.rate.load(Ordering::Relaxed);
        if rate > 0 {
            let took = Duration::from_secs_f64(bytes as f64 / rate as f64);
            let passes = {
                let mut busy = way.lock().await;
                *busy = (*busy).max(Instant::now()) + took;
                *busy
            };
            tokio::time::sleep_until(passes).await;
        }
        to.write_all(&piece[..bytes]).await?;
        gauge.passed.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
