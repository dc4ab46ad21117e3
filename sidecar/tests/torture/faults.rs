//! What is done to the processes and their disks.

use crate::common::mounts::{Filler, Mounts, free, stand_still};
use crate::common::narrow::Narrow;
use crate::common::{Cluster, Member, free_address, is_ready, until};
use crate::load::{Load, Report};
use crate::syncs::Syncs;
use rustix::process::{Pid, Signal, kill_process};
use std::any::Any;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

pub(crate) const MEMBERS: usize = 3;
/// The disks, in MiB; what is not written takes nothing.
const MEMORY: u64 = 2_048;
const DISK: u64 = 4_096;
/// Kept in reserve on each.
const RESERVE: u64 = 8 << 20;

/// The slowest link, in bytes a second each way; six writers make some hundred kilobytes.
const SLOWEST_LINK: u64 = 20_000;

/// Connections at a time to each of a member's ports and its socket, of strangers: they and the rest fit in the 1,024
/// files that a process may usually have open.
const STRANGERS: usize = 260;
/// What an HTTP/2 client says first: its preface and empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Three members under load, the first with its disk in memory, the others on a file system of their own each.
pub(crate) struct Torture {
    /// Before the mounts, so that the processes end first.
    pub(crate) cluster: Cluster,
    mounts: Mounts,
    /// To each member from its peers.
    links: Vec<Narrow>,
    /// Of the last member.
    syncs: Syncs,
    /// Where the library for them is.
    _dir: tempfile::TempDir,
    seed: u64,
    /// Where leases are on: how much was acknowledged when they were switched on.
    leases_since: Option<u64>,
    pub(crate) report: Report,
}

/// A small generator: which member, and which fault, need no more.
fn next(seed: &mut u64, below: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % below
}

fn signal(member: &Member, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(member.process()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Switches leases on or off, at whichever member answers.
pub(crate) async fn set_leases(members: &[Member], on: bool) {
    let on = on.to_string();
    until("leases are switched", || async {
        let asked = |member: &Member| member.admin(&["settings", "--leases", &on]).status.success();
        if members.iter().any(asked) { Ok(()) } else { Err(&on) }
    })
    .await;
}

impl Torture {
    pub(crate) async fn start(seed: u64) -> Torture {
        let mounts = Mounts::new();
        let dir = tempfile::tempdir().unwrap();
        let syncs = Syncs::new(dir.path());
        let listens: Vec<_> = (0..MEMBERS).map(|_| free_address()).collect();
        let mut links = Vec::new();
        for member in &listens {
            links.push(Narrow::to(*member, 0).await);
        }
        let mut number = 0;
        let cluster = Cluster::prepared(MEMBERS, |member| {
            let at = member.data_dir.clone();
            (member.peer, member.reached) = (listens[number], Some(links[number].address));
            if number + 1 == MEMBERS {
                member.wrapper = syncs.wrapper.clone();
            }
            member.said = Some(at.with_extension("said"));
            member.extra = vec!["--disk-reserve".to_owned(), RESERVE.to_string()];
            if number == 0 {
                member.data_dir = mounts.memory(&at, MEMORY);
            } else if mounts.can_stand_still() {
                member.data_dir = mounts.disk(&at, DISK);
            }
            number += 1;
        })
        .await;
        cluster.form().await;
        let report = Report::default();
        Torture { cluster, mounts, links, syncs, _dir: dir, seed, leases_since: None, report }
    }

    /// Whether disks can stand still here, and be filled other than in memory.
    pub(crate) fn has_disks(&self) -> bool {
        self.mounts.can_stand_still()
    }

    fn pick(&mut self, below: u64) -> u64 {
        next(&mut self.seed, below)
    }

    fn pause(&mut self, from: u64, through: u64) -> Duration {
        Duration::from_millis(from + next(&mut self.seed, through - from))
    }

    /// One fault, chosen by the seed.
    pub(crate) async fn strike(&mut self, load: &Load) {
        let victim = usize::try_from(self.pick(MEMBERS as u64)).unwrap();
        self.weigh();
        match self.pick(40) {
            0..=2 => self.power_loss(),
            3..=6 => self.freeze(victim).await,
            7..=8 if self.has_disks() => self.stall(1 + victim % 2).await,
            9 => self.fill_one(if self.has_disks() { victim } else { 0 }, load).await,
            15..=16 => self.strangers(victim, load).await,
            17..=18 => self.slow_link(victim, load).await,
            19..=20 => self.slow_disk(load).await,
            10 if self.has_disks() => self.fill_all(load).await,
            // Killed again while it recovers (docs: reliability.md, fault 13).
            11..=14 => {
                self.kill(victim);
                self.kill(victim);
            }
            _ => self.kill(victim),
        }
    }

    pub(crate) fn kill(&mut self, victim: usize) {
        self.weigh();
        self.cluster.members[victim].kill();
        self.cluster.members[victim].start();
        self.report.kills += 1;
    }

    /// Every process ends at once (docs: reliability.md, fault 10).
    fn power_loss(&mut self) {
        self.weigh();
        self.cluster.members.iter_mut().for_each(Member::kill);
        self.cluster.members.iter_mut().for_each(Member::start);
        self.report.kills += MEMBERS as u64;
    }

    /// A pause, longer than an election timeout or shorter (docs: reliability.md, fault 22).
    pub(crate) async fn freeze(&mut self, victim: usize) {
        let pause = self.pause(300, 2_500);
        signal(&self.cluster.members[victim], Signal::STOP);
        tokio::time::sleep(pause).await;
        signal(&self.cluster.members[victim], Signal::CONT);
        self.report.pauses += 1;
    }

    /// A disk whose writes and syncs stand still (docs: reliability.md, fault 12); the others go on. Now and then the
    /// process is killed meanwhile.
    pub(crate) async fn stall(&mut self, victim: usize) {
        let (pause, dies) = (self.pause(500, 3_000), self.pick(3) == 0);
        let mut ending = stand_still(&self.cluster.members[victim].data_dir, pause.as_secs_f64());
        // It dies as soon as its disk answers.
        if dies {
            signal(&self.cluster.members[victim], Signal::KILL);
        }
        let ended = tokio::task::spawn_blocking(move || ending.wait()).await.unwrap().unwrap();
        assert!(ended.success(), "the disk still stands still");
        if dies {
            self.kill(victim);
        }
        self.report.stalls += 1;
    }

    /// A link that carries less than the load, both ways, for a while (docs: reliability.md, "Slow links"); the others go on, and
    /// now and then the member is killed meanwhile.
    pub(crate) async fn slow_link(&mut self, victim: usize, load: &Load) {
        let (pause, dies) = (self.pause(500, 3_000), self.pick(3) == 0);
        let rate = [SLOWEST_LINK, SLOWEST_LINK * 10][usize::try_from(self.pick(2)).unwrap()];
        self.links[victim].set_rate(rate);
        tokio::time::sleep(pause).await;
        if dies {
            self.kill(victim);
        }
        load.advance().await;
        self.links[victim].set_rate(0);
        self.report.slow_links += 1;
    }

    /// A disk whose syncs take long, for a while (docs: reliability.md, fault 12), and now and then its member is killed
    /// meanwhile.
    pub(crate) async fn slow_disk(&mut self, load: &Load) {
        let (pause, dies) = (self.pause(500, 3_000), self.pick(3) == 0);
        let sync = self.pause(20, 400);
        self.syncs.take(u64::try_from(sync.as_millis()).unwrap());
        tokio::time::sleep(pause).await;
        if dies {
            self.kill(MEMBERS - 1);
        }
        load.advance().await;
        self.syncs.take(0);
        self.report.slow_disks += 1;
    }

    /// A disk without a byte left: whatever its member does, the others go on, and it is back when there is space
    /// (docs: reliability.md, fault 11).
    pub(crate) async fn fill_one(&mut self, victim: usize, load: &Load) {
        let member = &mut self.cluster.members[victim];
        let filler = Filler::new(&member.data_dir, 0);
        self.report.full_disks += 1;
        load.advance().await;
        let member = &mut self.cluster.members[victim];
        if member.has_ended() {
            // It starts from what it had in reserve.
            member.start();
            member.answers().await;
        }
        load.advance().await;
        drop(filler);
        self.cluster.members[victim].kept_running("it is ready", is_ready).await;
    }

    /// Too little is left on two disks: appends are refused everywhere, reads are answered, and all goes on when there
    /// is space.
    pub(crate) async fn fill_all(&mut self, load: &Load) {
        let fillers: Vec<_> =
            self.cluster.members[1..].iter().map(|m| Filler::new(&m.data_dir, RESERVE / 4 * 3)).collect();
        self.report.full_disks += fillers.len() as u64;
        load.is_refused().await;
        for member in &self.cluster.members {
            let tail = || async { member.client().tail(synod_client::Consistency::Linearizable).await };
            until("reads go on", tail).await;
        }
        drop(fillers);
        load.advance().await;
    }

    /// Switches leases on, or off.
    pub(crate) async fn switch_leases(&mut self, load: &Load) {
        set_leases(&self.cluster.members, self.leases_since.is_none()).await;
        let now = load.acknowledged();
        match self.leases_since.take() {
            Some(since) => self.report.under_leases += now - since,
            None => self.leases_since = Some(now),
        }
    }

    /// Connections to a member's socket and ports that say nothing, or no more than what HTTP/2 begins with: the load
    /// goes on, and the member gets in again beside them.
    pub(crate) async fn strangers(&mut self, victim: usize, load: &Load) {
        let member = &self.cluster.members[victim];
        let mut held: Vec<Box<dyn Any>> = Vec::new();
        for number in 0..STRANGERS {
            for address in [member.peer, member.health] {
                // A member that ended has no port.
                if let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
                    if number % 2 == 0 {
                        drop(stream.write_all(PREFACE));
                    }
                    held.push(Box::new(stream));
                }
            }
            if let Ok(stream) = UnixStream::connect(&member.socket) {
                held.push(Box::new(stream));
            }
        }
        self.report.silent += held.len() as u64;
        load.advance().await;
        self.kill(victim);
        self.cluster.members[victim].kept_running("it is ready beside strangers", is_ready).await;
        load.advance().await;
    }

    /// Notes the most memory that a member ever had; before a process ends.
    pub(crate) fn weigh(&mut self) {
        for member in &self.cluster.members {
            self.report.memory = self.report.memory.max(member.peak_memory());
        }
    }

    /// What was done so far.
    pub(crate) fn report(&self, load: &Load) -> Report {
        let mut report = self.report.clone();
        report.under_leases += self.leases_since.map_or(0, |since| load.acknowledged() - since);
        report
    }

    /// For progress.
    pub(crate) fn space(&self) -> u64 {
        self.cluster.members.iter().map(|member| free(&member.data_dir)).min().unwrap_or_default()
    }
}
