//! Writers under load, and the judgement of what every member's log makes of what they were told.

use crate::common::{Member, until};
use crate::readers::{Known, Seen};
use bytes::Bytes;
use futures::TryStreamExt;
use serde::Serialize;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use synod_client::{AppendError, AppendOptions, Client, Consistency, ReadOptions, Reason};
use tokio::task::JoinHandle;

/// How long an append may take: until the cluster is whole again.
const APPEND_PATIENCE: Duration = Duration::from_secs(30);
/// Between two appends of a writer that was refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);

/// `target/torture/report.json`.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Processes ended by SIGKILL.
    pub(crate) kills: u64,
    /// SIGSTOP and SIGCONT.
    pub(crate) pauses: u64,
    /// Disks that stood still under a running member.
    pub(crate) stalls: u64,
    /// Links to a member that carried less than the load, for a while.
    pub(crate) slow_links: u64,
    /// Disks whose syncs took long, for a while.
    pub(crate) slow_disks: u64,
    /// Disks that were filled under a running member.
    pub(crate) full_disks: u64,
    /// Silent connections to sockets and ports.
    pub(crate) silent: u64,
    /// Entries acknowledged while leases were on.
    pub(crate) under_leases: u64,
    /// The most memory that a member ever had resident, in bytes.
    pub(crate) memory: u64,
    pub(crate) readers: Seen,
    pub(crate) acknowledged: u64,
    pub(crate) unknown: u64,
    /// Acknowledged entries found: the sum over all members.
    pub(crate) found: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    pub(crate) seconds: u64,
}

/// What a writer was told of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// At this index.
    Acknowledged(u64),
    /// Certainly not appended.
    Refused,
    Unknown,
}

/// The writers of a run.
pub(crate) struct Load {
    writers: Vec<JoinHandle<Vec<Told>>>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    pub(crate) known: Arc<Known>,
}

/// The text of a call: whose, its number, and something that takes space.
fn text(writer: usize, number: usize, padding: usize) -> String {
    format!("{writer} {number} {:padding$}", "")
}

fn parse(text: &[u8]) -> (usize, usize) {
    let text = std::str::from_utf8(text).expect("only writers write");
    let mut words = text.split(' ').map(|word| word.parse().expect("a number"));
    (words.next().expect("a writer"), words.next().expect("a call"))
}

/// Appends one entry after the other until it is told to stop.
async fn write(
    client: Client,
    writer: usize,
    stop: Arc<AtomicBool>,
    counts: [Arc<AtomicU64>; 2],
    known: Arc<Known>,
) -> Vec<Told> {
    let options = || AppendOptions { timeout: APPEND_PATIENCE, ..AppendOptions::default() };
    let [acknowledged, refused] = counts;
    let mut told = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        // Sizes that fill pages in all ways; now and then one that takes many.
        let padding = if told.len() % 64 == 63 { 9_000 } else { told.len() * 37 % 400 };
        let entry = Bytes::from(text(writer, told.len(), padding));
        told.push(match client.append_with(vec![entry], options()).await {
            Ok(appended) => {
                acknowledged.fetch_add(1, Ordering::Relaxed);
                known.cover(appended.first_index);
                Told::Acknowledged(appended.first_index)
            }
            Err(AppendError::Unknown(_)) => Told::Unknown,
            Err(AppendError::Refused(error)) => {
                if error.reason == Reason::DiskFull {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                Told::Refused
            }
            Err(error @ AppendError::UnexpectedIndex { .. }) => panic!("nobody asked for an index: {error}"),
        });
        if told.last() == Some(&Told::Refused) {
            tokio::time::sleep(REFUSED_PAUSE).await;
        }
    }
    told
}

impl Load {
    /// So many writers, spread over the members.
    pub(crate) fn start(members: &[Member], writers: usize) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (acknowledged, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let known = Arc::new(Known::default());
        let start = |writer: usize| {
            let client = members[writer % members.len()].client();
            let counts = [acknowledged.clone(), refused.clone()];
            tokio::spawn(write(client, writer, stop.clone(), counts, known.clone()))
        };
        Load { writers: (0..writers).map(start).collect(), stop, acknowledged, refused, known: known.clone() }
    }

    /// Acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until more was acknowledged: a fault that comes before the last one is over shows less.
    pub(crate) async fn advance(&self) {
        let before = self.acknowledged();
        until("appends go on", || async {
            if self.acknowledged() > before + 20 { Ok(()) } else { Err(before) }
        })
        .await;
    }

    /// Waits until a writer was told that disks are full.
    pub(crate) async fn is_refused(&self) {
        let before = self.refused.load(Ordering::Relaxed);
        until("appends are refused", || async {
            if self.refused.load(Ordering::Relaxed) > before { Ok(()) } else { Err(before) }
        })
        .await;
    }

    /// Ends the writers.
    pub(crate) async fn end(self) -> Ended {
        self.stop.store(true, Ordering::Relaxed);
        let mut told = Vec::new();
        for writer in self.writers {
            told.push(writer.await.unwrap());
        }
        Ended { told, known: self.known }
    }

    /// Ends the writers and judges every member's log. Gives the calls that were refused.
    pub(crate) async fn judge(self, members: &[Member], report: &mut Report) -> u64 {
        self.end().await.judge(members, report).await
    }
}

/// An entry that is none of the writers'.
pub(crate) const BESIDE: &[u8] = b"beside the load";

/// What the writers of a run were told.
pub(crate) struct Ended {
    told: Vec<Vec<Told>>,
    known: Arc<Known>,
}

impl Ended {
    /// Reads every member's log and judges it. Every log must be the same. Gives the calls that were refused.
    pub(crate) async fn judge(&self, members: &[Member], report: &mut Report) -> u64 {
        let told = &self.told;
        let count = |is: fn(&Told) -> bool| told.iter().flatten().filter(|told| is(told)).count() as u64;
        report.acknowledged = count(|told| matches!(told, Told::Acknowledged(_)));
        report.unknown = count(|told| *told == Told::Unknown);
        let mut digests = Vec::new();
        for member in members {
            // A read that is cut begins anew.
            let read = until("the log is read", || async {
                let mut one = OneLog::new(told, &self.known);
                one.read(&member.client()).await.map_err(|error| format!("{}: {error:?}", member.name))?;
                Ok::<_, String>(one)
            })
            .await;
            report.found += read.found;
            report.duplicated += read.duplicated;
            report.reordered += read.reordered;
            report.lost += report.acknowledged - read.found;
            assert_eq!(read.refused, 0, "{}: what was refused for certain is in the log", member.name);
            digests.push((read.digest.finish(), read.last));
        }
        assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "the logs differ: {digests:?}");
        // With what each log was read to hold, too.
        report.readers = self.known.seen();
        count(|told| *told == Told::Refused)
    }
}

/// One member's log as it is read.
struct OneLog<'a> {
    told: &'a [Vec<Told>],
    known: &'a Known,
    /// For each writer, which of its calls were seen, and the last acknowledged one.
    seen: Vec<Vec<bool>>,
    newest: Vec<Option<usize>>,
    last: u64,
    digest: DefaultHasher,
    found: u64,
    duplicated: u64,
    reordered: u64,
    refused: u64,
}

impl OneLog<'_> {
    fn new<'a>(told: &'a [Vec<Told>], known: &'a Known) -> OneLog<'a> {
        OneLog {
            told,
            known,
            seen: told.iter().map(|calls| vec![false; calls.len()]).collect(),
            newest: vec![None; told.len()],
            last: 0,
            digest: DefaultHasher::new(),
            found: 0,
            duplicated: 0,
            reordered: 0,
            refused: 0,
        }
    }

    async fn read(&mut self, client: &Client) -> Result<(), synod_client::CallError> {
        let options = ReadOptions { consistency: Consistency::Linearizable, ..ReadOptions::default() };
        let mut entries = std::pin::pin!(client.read(1, options));
        while let Some(entry) = entries.try_next().await? {
            self.last += 1;
            assert_eq!(entry.index, self.last, "the log has no gaps");
            self.known.show(entry.index, &entry.payload);
            self.entry(&entry.payload);
        }
        Ok(())
    }

    fn entry(&mut self, payload: &[u8]) {
        payload.hash(&mut self.digest);
        if payload == BESIDE {
            return;
        }
        let (writer, call) = parse(payload);
        if std::mem::replace(&mut self.seen[writer][call], true) {
            self.duplicated += 1;
            return;
        }
        match self.told[writer][call] {
            Told::Acknowledged(index) => {
                self.found += 1;
                let in_order = self.newest[writer].is_none_or(|before| before < call);
                self.reordered += u64::from(index != self.last || !in_order);
                self.newest[writer] = Some(call);
            }
            Told::Refused => self.refused += 1,
            Told::Unknown => {}
        }
    }
}
