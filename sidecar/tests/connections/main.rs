//! Hostile and idle connections, and descriptors that run out.
#![allow(clippy::unwrap_used)]

#[path = "../tls/authority.rs"]
mod authority;
#[path = "../common/mod.rs"]
mod common;
mod deaf;
mod local;

use authority::Authority;
use common::{Cluster, Member, free_address, until};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use synod_client::AppendOptions;
use synod_client::wire::channel;
use synod_proto::v1::log_client::LogClient;
use synod_proto::v1::{Consistency, ReadRequest, Sequential, consistency};
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

/// What an HTTP/2 client says first: its preface and empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Silent connections that are opened in a second.
const RATE: u32 = 205;
/// Silent connections to one port: more than any port takes.
const HELD: usize = 1_500;
/// Silent connections to one port that are held open at a time.
const MOST: usize = 4_000;

fn patient() -> AppendOptions {
    AppendOptions { timeout: common::PATIENCE, ..AppendOptions::default() }
}

/// Lets this process have as many descriptors as it may.
fn many_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// Opens silent connections at a rate, and holds them.
struct Flood {
    opened: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Flood {
    fn start(address: SocketAddr) -> Flood {
        let opened = Arc::new(AtomicUsize::new(0));
        let count = opened.clone();
        let task = tokio::spawn(async move {
            let mut held = VecDeque::new();
            let mut next = tokio::time::interval(Duration::from_secs(1) / RATE);
            loop {
                next.tick().await;
                // One that the member does not take in time counts, too: others wait behind it.
                let dialling = TcpStream::connect(address);
                let Ok(Ok(mut stream)) = tokio::time::timeout(Duration::from_secs(1), dialling).await else {
                    continue;
                };
                if count.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                    drop(stream.write_all(PREFACE).await);
                }
                held.push_back(stream);
                if held.len() > MOST {
                    held.pop_front();
                }
            }
        });
        Flood { opened, task }
    }

    async fn holds(&self, count: usize) {
        until("silent connections are held", || async {
            let opened = self.opened.load(Ordering::Relaxed);
            if opened >= count { Ok(()) } else { Err(opened) }
        })
        .await;
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A member that is restarted gets in beside more silent connections than its peers take.
async fn a_restarted_member_gets_in(cluster: &mut Cluster) {
    many_descriptors();
    let floods: Vec<Flood> = cluster.members.iter().map(|member| Flood::start(member.peer)).collect();
    for flood in &floods {
        flood.holds(HELD).await;
    }
    let leader = cluster.leader().await;
    cluster.members[leader].kill();
    cluster.members[leader].start();
    for member in &cluster.members {
        member.ready().await;
        let entries = vec![member.name.clone().into()];
        member.client().append_with(entries, patient()).await.unwrap();
    }
    for member in &cluster.members {
        let status = member.answers().await;
        let peers = status.peers.iter().filter(|peer| peer.member != status.member);
        assert!(peers.clone().all(|peer| peer.connected), "{status:?}");
        assert!(floods.iter().all(|flood| flood.opened.load(Ordering::Relaxed) > HELD));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_keep_no_member_out() {
    let mut cluster = Cluster::of(3).await;
    a_restarted_member_gets_in(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_keep_no_member_out_with_tls() {
    let authority = Authority::new("aaaa");
    let dir = tempfile::tempdir().unwrap();
    let prepare = |member: &mut Member| {
        let dir = dir.path().join(&member.name);
        authority.write(&dir, &member.name);
        member.extra = vec![format!("--tls-dir={}", dir.display())];
    };
    let mut cluster = Cluster::prepared(3, prepare).await;
    cluster.form().await;
    a_restarted_member_gets_in(&mut cluster).await;
}

/// Resolves when the member has closed the connection.
async fn closed(mut stream: impl AsyncReadExt + Unpin) {
    let mut bytes = [0; 1_024];
    loop {
        match stream.read(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Whoever says nothing is closed, on every port and socket; whoever calls meanwhile is served.
#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_are_closed() {
    many_descriptors();
    let admin = free_address();
    let prepare = |member: &mut Member| member.extra = vec![format!("--admin-listen={admin}")];
    let cluster = Cluster::prepared(1, prepare).await;
    cluster.form().await;
    let member = &cluster.members[0];
    let mut held = tokio::task::JoinSet::new();
    for address in [member.peer, member.health, admin] {
        for number in 0..HELD {
            let mut stream = TcpStream::connect(address).await.unwrap();
            if number.is_multiple_of(2) {
                drop(stream.write_all(PREFACE).await);
            }
            held.spawn(closed(stream));
        }
    }
    for path in [member.socket.clone(), member.data_dir.join("admin.sock")] {
        for _ in 0..HELD {
            held.spawn(closed(UnixStream::connect(&path).await.unwrap()));
        }
    }
    member.client().append("beside them").await.unwrap();
    synod_client::wire::status(&synod_client::Client::connect(member.data_dir.join("admin.sock")).unwrap())
        .await
        .unwrap();
    assert_eq!(member.metric("synod_is_leader"), 1);
    tokio::time::timeout(common::PATIENCE, held.join_all()).await.unwrap();
}

/// A member, and the file of what it says.
async fn telling() -> (Cluster, NamedTempFile) {
    let said = NamedTempFile::new().unwrap();
    let cluster = Cluster::prepared(1, |member| member.said = Some(said.path().to_owned())).await;
    cluster.form().await;
    (cluster, said)
}

/// Ends a member by SIGTERM: nothing that it was asked for holds it up.
fn stops_at_once(member: &mut Member, said: &NamedTempFile) {
    assert_eq!(member.terminate(), Some(0));
    let said = std::fs::read_to_string(said.path()).unwrap();
    assert!(!said.contains("did not end in time"), "{said}");
}

fn limited(limit: &str) -> Vec<String> {
    ["sh", "-c", &format!("ulimit {limit} && exec \"$@\""), "sh"].map(str::to_owned).to_vec()
}

/// 256 descriptors, 300 connections to the health port that ask nothing: the log goes on into its next segment.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_leave_the_disk_its_descriptors() {
    let said = NamedTempFile::new().unwrap();
    let prepare = |member: &mut Member| {
        member.wrapper = limited("-n 256");
        member.said = Some(said.path().to_owned());
    };
    let mut cluster = Cluster::prepared(1, prepare).await;
    cluster.form().await;
    let member = &mut cluster.members[0];
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(member.health).await.unwrap());
    }
    let client = member.client();
    for number in 0..70 {
        client.append_with(vec![vec![number; 1 << 20].into()], patient()).await.unwrap();
    }
    assert_eq!(member.metric("synod_last_index"), 70);
    assert_eq!(member.metric("synod_open_files_limit"), 256);
    assert_eq!(member.metric("synod_descriptor_waits_total"), 0);
    assert!(!member.has_ended(), "{:?}", member.last_words());
    let resident = member.peak_memory() >> 20;
    println!("300 idle connections, 70 appends of 1 MiB: at most {resident} MiB resident");
    assert!((1..=256).contains(&resident), "{resident} MiB");
}

/// The soft limit of open files is raised to the hard one.
#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_open_files_is_raised() {
    let said = NamedTempFile::new().unwrap();
    let prepare = |member: &mut Member| {
        member.wrapper = limited("-S -n 100");
        member.said = Some(said.path().to_owned());
    };
    let cluster = Cluster::prepared(1, prepare).await;
    cluster.form().await;
    let hard = getrlimit(Resource::Nofile).maximum.map_or(i64::MAX as u64, |hard| hard);
    assert_eq!(cluster.members[0].metric("synod_open_files_limit"), hard);
}

/// No descriptor is left for the next segment: the member waits for one, says so, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_waits_for_a_descriptor() {
    let (mut cluster, said) = telling().await;
    let member = &mut cluster.members[0];
    let client = member.client();
    client.append("the client is connected").await.unwrap();
    let process = Pid::from_raw(i32::try_from(member.process()).unwrap()).unwrap();
    let few = Rlimit { current: Some(4), maximum: getrlimit(Resource::Nofile).maximum };
    let before = prlimit(Some(process), Resource::Nofile, few).unwrap();
    let appending = tokio::spawn(async move {
        for number in 0..70 {
            client.append_with(vec![vec![number; 1 << 20].into()], patient()).await.unwrap();
        }
    });
    until("the member says that it waits", || async {
        let text = std::fs::read_to_string(said.path()).unwrap();
        if text.contains("no descriptor is left") && text.contains("segment") { Ok(()) } else { Err(text) }
    })
    .await;
    assert!(!appending.is_finished());
    prlimit(Some(process), Resource::Nofile, before).unwrap();
    appending.await.unwrap();
    assert!(!member.has_ended(), "{:?}", member.last_words());
    assert!(member.metric("synod_descriptor_waits_total") > 0);
}

/// Reads that wait for a read point are bounded, and that is told. When they go, reads go on.
#[tokio::test(flavor = "multi_thread")]
async fn reads_that_wait() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    member.client().append("an entry").await.unwrap();
    let connect = || LogClient::new(channel(&member.socket).unwrap());
    let waits = ReadRequest {
        from: 1,
        consistency: Some(Consistency {
            kind: Some(consistency::Kind::Sequential(Sequential { at_least: 1_000_000 })),
        }),
        ..ReadRequest::default()
    };
    let mut waiting = tokio::task::JoinSet::new();
    // One connection may have 1,024 calls. All but those for which there is no place wait.
    let other = connect();
    for log in [connect(), connect(), other.clone()].into_iter().cycle().take(1_100) {
        let mut log = log.clone();
        waiting.spawn(async move { log.read(waits).await.map(drop) });
    }
    let refused = match waiting.join_next().await {
        Some(Ok(Err(status))) => status,
        ended => panic!("one more is refused: {ended:?}"),
    };
    assert!(refused.message().contains("1024 reads are under way"), "{refused}");
    drop(waiting);
    let request = ReadRequest { from: 1, ..ReadRequest::default() };
    let page = until("reads go on", || async { other.clone().read(request).await }).await.into_inner();
    assert_eq!((page.entries.len(), page.next, page.last_index), (1, 2, 1));
    let last = ReadRequest { reverse: true, limit: 2, ..ReadRequest::default() };
    let last = other.clone().read(last).await.unwrap().into_inner();
    assert_eq!(last.entries.iter().map(|entry| entry.index).collect::<Vec<_>>(), [1]);
}
