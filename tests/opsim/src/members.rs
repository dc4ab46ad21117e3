//! Members as models: disks with a life, processes on them, and the logs that they hold together.
//!
//! A log is what was chosen: its end, its configurations and its settings. A disk holds a prefix of it. What the core
//! promises is taken for granted here (the core has its own simulator); what the operator asks for is judged by the
//! core's rules, and refused as the sidecar refuses it.

use std::collections::{BTreeMap, BTreeSet};

use synod_operator::members::{Answer, Ask, MemberError};
use synod_operator::names::{ClusterId, MemberId};
use synod_operator::observed::{
    Ballot, Config, ConfigMember, MemberState, Peer, Removed, Report, Room, Trust,
};
use synod_operator::plan::Change;
use synod_operator::settings::{InForce, Settings};
use tonic::Code;
use uuid::Uuid;

/// How long a silent leader is waited for, in milliseconds.
const ELECTION: i64 = 1_500;
/// How long a start waits for voters that do not answer.
const PATIENCE: i64 = 2_000;

/// What a founder was told.
#[derive(Clone, Debug, PartialEq)]
pub struct Genesis {
    /// The log.
    pub cluster: ClusterId,
    /// Its first members, by pod.
    pub members: Vec<(String, MemberId)>,
    /// Its first settings.
    pub settings: Settings,
}

/// A volume's content.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The member on it.
    pub member: MemberId,
    /// What it was told as a founder, or learnt when it joined.
    pub genesis: Option<Genesis>,
    /// Whether all founders agreed.
    pub confirmed: bool,
    /// The log that it was told to wait for.
    pub joined: Option<ClusterId>,
    /// How much of the log it holds.
    pub position: u64,
    /// Whether a chosen entry removed its member for good.
    pub tombstone: bool,
    /// Whether it shows less than its peers remember.
    pub fenced: bool,
    /// Whether it has no space.
    pub full: bool,
    /// How often it was started.
    pub incarnation: u64,
}

impl Disk {
    /// The log it belongs to.
    pub fn log(&self) -> Option<ClusterId> {
        self.genesis.as_ref().map(|g| g.cluster).or(self.joined)
    }
}

/// A running sidecar.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its pod.
    pub pod: String,
    /// Its address.
    pub ip: String,
    /// Its volume.
    pub volume: String,
    /// Its member.
    pub member: MemberId,
    /// Its state.
    pub state: MemberState,
    /// When it started.
    pub born: i64,
    /// The ballot in which it believes to lead.
    pub leads: Option<u64>,
    /// Since when it leads without a quorum.
    pub alone_since: Option<i64>,
    /// Whether it has caught up since it started.
    pub caught_up_once: bool,
}

/// A configuration as it was chosen.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// What it says.
    pub config: Config,
    /// The entry.
    pub at: u64,
}

/// A removed member.
#[derive(Clone, Debug)]
pub struct Gone {
    /// Who.
    pub member: MemberId,
    /// The version of the configuration without it.
    pub version: u64,
    /// The entry that removed it.
    pub at: u64,
    /// When it was chosen.
    pub since: i64,
    /// Whether a quorum without it holds its prefix.
    pub retired: bool,
}

/// A log.
#[derive(Clone, Debug)]
pub struct Log {
    /// Entries chosen.
    pub end: u64,
    /// Its configurations, the newest last.
    pub configs: Vec<Chosen>,
    /// Members that left.
    pub removed: Vec<Gone>,
    /// Settings in force.
    pub settings: InForce,
    /// Who leads.
    pub leader: Option<MemberId>,
    /// The ballot it leads in.
    pub ballot: u64,
    /// Until when the newest configuration is not in force.
    pub pending_until: i64,
    /// Since when nobody leads.
    pub leaderless_since: Option<i64>,
    /// The founders.
    pub founders: Vec<MemberId>,
    operations: BTreeSet<Uuid>,
}

impl Log {
    /// The newest configuration.
    pub fn config(&self) -> &Config {
        &self.configs[self.configs.len() - 1].config
    }

    /// Its voters.
    pub fn voters(&self) -> BTreeSet<MemberId> {
        self.config().voters().map(|m| m.member).collect()
    }
}

/// All members there are.
#[derive(Debug, Default)]
pub struct Members {
    /// Disks by volume.
    pub disks: BTreeMap<String, Disk>,
    /// Processes by the UID of their pods.
    pub processes: BTreeMap<String, Process>,
    /// Logs that were confirmed.
    pub logs: BTreeMap<ClusterId, Log>,
    /// Pods whose peer ports are cut.
    pub cut: BTreeSet<String>,
    /// Pods whose disks hang: they hold nothing new.
    pub hung: BTreeSet<String>,
    /// Pods that the operator does not reach.
    pub unheard: BTreeSet<String>,
    /// How long a configuration takes to come into force, in milliseconds.
    pub takes_force: i64,
    /// How long a removed member's prefix takes to be held without it, in milliseconds.
    pub takes_retirement: i64,
    /// How long a member takes to catch up, in milliseconds.
    pub takes_catch_up: i64,
    /// Ids given out, never twice.
    pub minted: u64,
    /// Facts that break a rule on the members' side.
    pub broken: Vec<String>,
}

/// Members needed to decide among so many.
pub fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

fn refused(call: &'static str, code: Code, message: impl Into<String>) -> MemberError {
    MemberError::Refused { call, code, message: message.into() }
}

impl Members {
    fn mint(&mut self) -> MemberId {
        self.minted += 1;
        MemberId(0xa000 + self.minted)
    }

    /// Starts a sidecar on a volume; an empty one gets a member of its own.
    pub fn start(&mut self, now: i64, uid: &str, pod: &str, ip: &str, volume: &str) {
        if !self.disks.contains_key(volume) {
            let member = self.mint();
            let disk = Disk {
                member,
                genesis: None,
                confirmed: false,
                joined: None,
                position: 0,
                tombstone: false,
                fenced: false,
                full: false,
                incarnation: 0,
            };
            self.disks.insert(volume.to_owned(), disk);
        }
        let Some(disk) = self.disks.get_mut(volume) else { return };
        disk.incarnation += 1;
        let state = begins_as(disk);
        let process = Process {
            pod: pod.to_owned(),
            ip: ip.to_owned(),
            volume: volume.to_owned(),
            member: disk.member,
            state,
            born: now,
            leads: None,
            alone_since: None,
            caught_up_once: false,
        };
        self.processes.insert(uid.to_owned(), process);
    }

    /// Ends a sidecar.
    pub fn stop(&mut self, uid: &str) {
        self.processes.remove(uid);
    }

    /// Empties a disk: whoever starts on it is somebody new.
    pub fn empty(&mut self, volume: &str) {
        self.disks.remove(volume);
    }

    /// The process of a member, with its pod's UID.
    pub fn process_of(&self, member: MemberId) -> Option<(&String, &Process)> {
        self.processes.iter().find(|(_, p)| p.member == member)
    }

    /// Whether a member takes part, keeps up and hears the others, if there are any.
    pub fn serves(&self, member: MemberId) -> bool {
        self.process_of(member).is_some_and(|(uid, p)| {
            let hears = !self.cut.contains(uid) || self.leads_with_a_quorum(uid);
            p.state == MemberState::Active && hears && !self.hung.contains(uid)
        })
    }

    fn leads_with_a_quorum(&self, uid: &str) -> bool {
        self.logs.keys().any(|log| self.leading(*log).is_some_and(|(leader, _)| leader == uid))
    }

    fn talk(&self, a: &str, b: &str) -> bool {
        a == b || (!self.cut.contains(a) && !self.cut.contains(b))
    }

    /// Whether a member's disk is whole: it can answer for what it promised.
    pub fn is_whole(&self, member: MemberId) -> bool {
        self.disks.values().any(|d| d.member == member && !d.fenced)
    }

    /// The leader's process, if it leads with a quorum behind it.
    pub fn leading(&self, cluster: ClusterId) -> Option<(&String, &Process)> {
        let log = self.logs.get(&cluster)?;
        let (uid, process) = self.process_of(log.leader?)?;
        let leads = process.state == MemberState::Active && process.leads == Some(log.ballot);
        (leads && self.has_quorum(log, uid)).then_some((uid, process))
    }

    fn has_quorum(&self, log: &Log, uid: &str) -> bool {
        let voters = log.voters();
        let behind = voters.iter().filter(|m| self.acks(uid, **m)).count();
        behind >= majority(voters.len())
    }

    /// Whether a voter acknowledges what the process at `uid` proposes.
    fn acks(&self, uid: &str, member: MemberId) -> bool {
        self.process_of(member).is_some_and(|(other, p)| {
            p.state == MemberState::Active && self.talk(uid, other) && !self.hung.contains(other)
        })
    }

    /// What members do in a second. `coin` decides who is elected.
    pub fn tick(&mut self, now: i64, coin: u64) {
        self.form();
        self.wake(now);
        let ids: Vec<ClusterId> = self.logs.keys().copied().collect();
        for id in ids {
            self.elect(now, id, coin);
            self.append(now, id);
            self.retire(now, id);
        }
    }

    /// Founders that all hear each other and hold one list confirm it.
    fn form(&mut self) {
        let joining = |p: &&Process| p.state == MemberState::Joining;
        let lists: Vec<Genesis> = self
            .processes
            .values()
            .filter(joining)
            .filter_map(|p| self.disks.get(&p.volume)?.genesis.clone())
            .collect();
        for genesis in lists {
            let hears = |member: &MemberId| {
                self.process_of(*member).is_some_and(|(uid, p)| {
                    let held = self.disks.get(&p.volume).and_then(|d| d.genesis.as_ref());
                    !self.cut.contains(uid) && held == Some(&genesis)
                })
            };
            if !genesis.members.iter().all(|(_, m)| hears(m)) {
                continue;
            }
            for (_, member) in &genesis.members {
                self.confirm(*member);
            }
            self.logs.entry(genesis.cluster).or_insert_with(|| {
                let member = |(name, m): &(String, MemberId)| ConfigMember {
                    member: *m,
                    name: name.clone(),
                    voter: true,
                };
                let config = Config { version: 1, members: genesis.members.iter().map(member).collect() };
                Log {
                    end: 1,
                    configs: vec![Chosen { config, at: 1 }],
                    removed: Vec::new(),
                    settings: InForce { version: 1, values: genesis.settings },
                    leader: None,
                    ballot: 0,
                    pending_until: 0,
                    leaderless_since: None,
                    founders: genesis.members.iter().map(|(_, m)| *m).collect(),
                    operations: BTreeSet::new(),
                }
            });
        }
    }

    fn confirm(&mut self, member: MemberId) {
        for process in self.processes.values_mut().filter(|p| p.member == member) {
            if let Some(disk) = self.disks.get_mut(&process.volume) {
                disk.confirmed = true;
                disk.position = disk.position.max(1);
            }
            if process.state == MemberState::Joining {
                process.state = MemberState::Active;
            }
        }
    }

    /// Members that recover or join become active once enough others answer.
    fn wake(&mut self, now: i64) {
        let mut wakes = Vec::new();
        for (uid, process) in &self.processes {
            let Some(disk) = self.disks.get(&process.volume) else { continue };
            let Some(log) = disk.log().and_then(|id| self.logs.get(&id)) else { continue };
            let answers = |member: MemberId| {
                self.process_of(member).is_some_and(|(other, p)| {
                    let of = self.disks.get(&p.volume).and_then(|d| d.genesis.as_ref());
                    self.talk(uid, other)
                        && of.map(|g| g.cluster) == disk.log()
                        && p.state != MemberState::Fenced
                })
            };
            match process.state {
                MemberState::Joining if disk.genesis.is_none() => {
                    let holder = log.config().members.iter().find(|m| answers(m.member));
                    let holder = holder.and_then(|m| self.process_of(m.member));
                    let genesis = holder.and_then(|(_, p)| self.disks.get(&p.volume)?.genesis.clone());
                    wakes.extend(genesis.map(|g| (uid.clone(), Some(g))));
                }
                MemberState::Recovering => {
                    let known = known_config(log, disk.position);
                    let voters: Vec<MemberId> = known.voters().map(|m| m.member).collect();
                    let there = voters.iter().filter(|m| **m == process.member || answers(**m)).count();
                    let waited = now - process.born >= PATIENCE;
                    if there == voters.len() || (waited && there >= majority(voters.len())) {
                        wakes.push((uid.clone(), None));
                    }
                }
                _ => {}
            }
        }
        for (uid, genesis) in wakes {
            let Some(process) = self.processes.get_mut(&uid) else { continue };
            process.state = MemberState::Active;
            if let (Some(genesis), Some(disk)) = (genesis, self.disks.get_mut(&process.volume)) {
                disk.genesis = Some(genesis);
                disk.confirmed = true;
                disk.position = disk.position.max(1);
            }
        }
    }

    /// A leader without a quorum steps down; where nobody leads for a while, somebody does.
    fn elect(&mut self, now: i64, id: ClusterId, coin: u64) {
        let Some(log) = self.logs.get(&id) else { return };
        let mut stale = Vec::new();
        let mut alone = Vec::new();
        for (uid, process) in &self.processes {
            if process.leads.is_none() || self.disks.get(&process.volume).and_then(Disk::log) != Some(id) {
                continue;
            }
            let newer = process.leads != Some(log.ballot);
            let quorum = self.has_quorum(log, uid);
            let lonely = process.alone_since.is_some_and(|since| now - since >= ELECTION);
            if process.state != MemberState::Active || (newer && !self.cut.contains(uid)) || lonely {
                stale.push(uid.clone());
            } else {
                alone.push((uid.clone(), quorum && !newer));
            }
        }
        for uid in stale {
            if let Some(process) = self.processes.get_mut(&uid) {
                (process.leads, process.alone_since) = (None, None);
            }
        }
        for (uid, quorum) in alone {
            if let Some(process) = self.processes.get_mut(&uid) {
                process.alone_since = if quorum { None } else { Some(process.alone_since.unwrap_or(now)) };
            }
        }
        let leads = self.leading(id).is_some();
        let Some(log) = self.logs.get(&id) else { return };
        let since = log.leaderless_since;
        let voters = log.voters();
        let able: Vec<(String, MemberId)> = voters
            .iter()
            .filter_map(|m| self.process_of(*m))
            .filter(|(uid, p)| p.state == MemberState::Active && self.acks(uid, p.member))
            .filter(|(uid, _)| self.has_quorum(log, uid))
            .map(|(uid, p)| (uid.clone(), p.member))
            .collect();
        let Some(log) = self.logs.get_mut(&id) else { return };
        if leads {
            log.leaderless_since = None;
            return;
        }
        let since = since.unwrap_or(now);
        log.leaderless_since = Some(since);
        if now - since >= ELECTION && !able.is_empty() {
            let at = usize::try_from(coin % able.len() as u64).unwrap_or(0);
            let (uid, member) = able[at].clone();
            self.take_over(id, &uid, member);
        }
    }

    fn take_over(&mut self, id: ClusterId, uid: &str, member: MemberId) {
        let Some(log) = self.logs.get_mut(&id) else { return };
        log.ballot += 1;
        (log.leader, log.leaderless_since) = (Some(member), None);
        let (ballot, end) = (log.ballot, log.end);
        let voters = log.voters();
        let known = voters.iter().filter(|m| self.acks(uid, **m));
        let known = known.filter_map(|m| self.disk_of(*m)).map(|d| d.position).max().unwrap_or(0);
        if known < end {
            self.broken.push(format!("chosen entries are lost: a quorum holds {known} of {end}"));
        }
        if let Some(process) = self.processes.get_mut(uid) {
            (process.leads, process.alone_since) = (Some(ballot), None);
            let volume = process.volume.clone();
            if let Some(disk) = self.disks.get_mut(&volume) {
                disk.position = end;
            }
        }
    }

    /// The disk of a member.
    pub fn disk_of(&self, member: MemberId) -> Option<&Disk> {
        self.disks.values().find(|d| d.member == member)
    }

    /// The log grows while a quorum acknowledges, and the others follow.
    fn append(&mut self, now: i64, id: ClusterId) {
        let Some(leader) = self.leading(id).map(|(uid, _)| uid.clone()) else {
            return;
        };
        let Some(log) = self.logs.get_mut(&id) else { return };
        log.end += 1;
        let end = log.end;
        let voters = log.voters();
        let configured: BTreeSet<MemberId> = log.config().members.iter().map(|m| m.member).collect();
        let removed: BTreeSet<MemberId> = log.removed.iter().map(|r| r.member).collect();
        let takes = self.takes_catch_up;
        let reach: Vec<String> =
            self.processes.keys().filter(|uid| self.talk(&leader, uid)).cloned().collect();
        for uid in reach {
            let hung = self.hung.contains(&uid);
            let Some(process) = self.processes.get_mut(&uid) else { continue };
            let Some(disk) = self.disks.get_mut(&process.volume) else { continue };
            let listens = matches!(process.state, MemberState::Active | MemberState::Recovering);
            if disk.log() != Some(id) || !listens || hung {
                continue;
            }
            let acks = voters.contains(&process.member) && process.state == MemberState::Active;
            let follows = configured.contains(&process.member) || removed.contains(&process.member);
            let near = end - disk.position <= 3;
            if acks || (follows && (near || now - process.born >= takes)) {
                disk.position = end;
            } else if follows {
                disk.position += (end - disk.position) / 4;
            }
            process.caught_up_once |= disk.position == end && process.state == MemberState::Active;
        }
    }

    /// Removed members retire once a quorum without them holds what they voted for, and learn it.
    fn retire(&mut self, now: i64, id: ClusterId) {
        let Some(leader) = self.leading(id).map(|(uid, _)| uid.clone()) else { return };
        let Some(log) = self.logs.get(&id) else { return };
        let voters = log.voters();
        let held = |at: u64| {
            let holding = voters.iter().filter_map(|m| self.disk_of(*m)).filter(|d| d.position >= at);
            holding.count() >= majority(voters.len())
        };
        let due: BTreeSet<MemberId> = log
            .removed
            .iter()
            .filter(|r| r.retired || (now - r.since >= self.takes_retirement && held(r.at)))
            .map(|r| r.member)
            .collect();
        if let Some(log) = self.logs.get_mut(&id) {
            log.removed.iter_mut().for_each(|r| r.retired |= due.contains(&r.member));
        }
        let told: Vec<String> = self
            .processes
            .iter()
            .filter(|(uid, p)| due.contains(&p.member) && self.talk(&leader, uid))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in told {
            let Some(process) = self.processes.get_mut(&uid) else { continue };
            if let Some(disk) = self.disks.get_mut(&process.volume).filter(|d| d.log() == Some(id)) {
                disk.tombstone = true;
                process.state = MemberState::Removed;
                process.leads = None;
            }
        }
    }

    /// A leader that is told to stop hands over, if somebody takes it.
    pub fn hand_over(&mut self, uid: &str) {
        let Some(process) = self.processes.get(uid).filter(|p| p.leads.is_some()) else { return };
        let (member, id) = (process.member, self.disks.get(&process.volume).and_then(Disk::log));
        let Some(id) = id.filter(|id| self.leading(*id).is_some_and(|(leader, _)| leader == uid)) else {
            return;
        };
        let Some(log) = self.logs.get(&id) else { return };
        let next = log.voters().into_iter().find(|m| *m != member && self.acks(uid, *m));
        if let Some((to, next)) = next.and_then(|m| self.process_of(m)).map(|(u, p)| (u.clone(), p.member)) {
            self.step_down(uid);
            self.take_over(id, &to, next);
        }
    }

    fn step_down(&mut self, uid: &str) {
        if let Some(process) = self.processes.get_mut(uid) {
            (process.leads, process.alone_since) = (None, None);
        }
    }

    /// What the member at an address answers.
    ///
    /// # Errors
    /// Where it is not reached, or refuses.
    pub fn ask(&mut self, now: i64, pod: &str, ip: &str, ask: &Ask) -> Result<Answer, MemberError> {
        let found = self.processes.iter().find(|(_, p)| p.ip == ip).map(|(uid, _)| uid.clone());
        let Some(uid) = found.filter(|uid| !self.unheard.contains(uid)) else {
            let why = "connection refused".to_owned();
            return Err(MemberError::Unreachable { address: pod.to_owned(), why });
        };
        match ask {
            Ask::Status => return Ok(Answer::Report(Box::new(self.report(now, &uid)))),
            Ask::Initialize { cluster, members, settings } => {
                let genesis = Genesis { cluster: *cluster, members: members.clone(), settings: *settings };
                self.initialize(&uid, genesis)?;
            }
            Ask::Join { cluster, .. } => self.join(&uid, *cluster)?,
            Ask::AddLearner(change, name) => {
                self.change(now, &uid, "AddLearner", change, |log| add(log, change.member, name))?;
            }
            Ask::Promote(change) => {
                let (_, volume) = self.follower(change.member)?;
                let end = self.logs.get(&change.cluster).map_or(0, |l| l.end);
                let behind = self.disks.get(&volume).is_none_or(|d| end - d.position.min(end) > 3);
                let cut = !self.serves(change.member);
                if behind || cut {
                    return Err(refused("Promote", Code::FailedPrecondition, "it has not caught up"));
                }
                self.change(now, &uid, "Promote", change, |log| promote(log, change.member))?;
            }
            Ask::Remove(change) => {
                self.change(now, &uid, "RemoveMember", change, |log| remove(log, change.member, now))?;
            }
            Ask::ChangeSettings { cluster, version, settings } => {
                self.leader_only(&uid, *cluster, "ChangeSettings")?;
                let Some(log) = self.logs.get_mut(cluster) else { return Ok(Answer::Done) };
                if log.settings.version != *version {
                    return Err(refused("ChangeSettings", Code::FailedPrecondition, "the version moved"));
                }
                log.settings = InForce { version: version + 1, values: *settings };
            }
            Ask::Transfer { cluster, to } => self.transfer(&uid, *cluster, *to)?,
            Ask::Renew(member) => self.renew(now, &uid, *member)?,
        }
        Ok(Answer::Done)
    }

    fn follower(&self, member: MemberId) -> Result<(String, String), MemberError> {
        let found = self.process_of(member).map(|(uid, p)| (uid.clone(), p.volume.clone()));
        found.ok_or_else(|| refused("Promote", Code::FailedPrecondition, "it is not connected"))
    }

    fn leader_only(&self, uid: &str, cluster: ClusterId, call: &'static str) -> Result<(), MemberError> {
        match self.leading(cluster) {
            Some((leader, _)) if leader == uid => Ok(()),
            Some(_) => Err(refused(call, Code::FailedPrecondition, "another member leads")),
            None => Err(refused(call, Code::Unavailable, "nobody leads")),
        }
    }

    fn initialize(&mut self, uid: &str, genesis: Genesis) -> Result<(), MemberError> {
        let Some(process) = self.processes.get_mut(uid) else { return Ok(()) };
        let Some(disk) = self.disks.get_mut(&process.volume) else { return Ok(()) };
        if let Some(held) = &disk.genesis {
            return match *held == genesis {
                true => Ok(()),
                false => Err(refused("Initialize", Code::FailedPrecondition, "it holds another genesis")),
            };
        }
        let listed = genesis.members.iter().any(|(_, m)| *m == disk.member);
        if !listed || disk.joined.is_some_and(|j| j != genesis.cluster) {
            return Err(refused("Initialize", Code::FailedPrecondition, "it is not listed"));
        }
        (disk.genesis, process.state) = (Some(genesis), MemberState::Joining);
        Ok(())
    }

    fn join(&mut self, uid: &str, cluster: ClusterId) -> Result<(), MemberError> {
        let Some(process) = self.processes.get_mut(uid) else { return Ok(()) };
        let Some(disk) = self.disks.get_mut(&process.volume) else { return Ok(()) };
        match disk.log() {
            Some(held) if held == cluster => Ok(()),
            Some(_) => Err(refused("Join", Code::FailedPrecondition, "it belongs to another log")),
            None => {
                (disk.joined, process.state) = (Some(cluster), MemberState::Joining);
                Ok(())
            }
        }
    }

    fn change(
        &mut self,
        now: i64,
        uid: &str,
        call: &'static str,
        change: &Change,
        apply: impl FnOnce(&mut Log) -> Result<(), String>,
    ) -> Result<(), MemberError> {
        if self.logs.get(&change.cluster).is_some_and(|l| l.operations.contains(&change.operation)) {
            return Ok(());
        }
        self.leader_only(uid, change.cluster, call)?;
        let force = self.takes_force;
        let Some(log) = self.logs.get_mut(&change.cluster) else { return Ok(()) };
        if log.config().version != change.version || now < log.pending_until {
            return Err(refused(call, Code::FailedPrecondition, "the version moved, or a change is pending"));
        }
        apply(log).map_err(|why| refused(call, Code::FailedPrecondition, why))?;
        log.operations.insert(change.operation);
        log.pending_until = now + force;
        let (end, voters) = (log.end, log.voters());
        let acks: Vec<MemberId> = voters.into_iter().filter(|m| self.acks(uid, *m)).collect();
        for disk in self.disks.values_mut().filter(|d| acks.contains(&d.member)) {
            disk.position = end;
        }
        Ok(())
    }

    fn transfer(&mut self, uid: &str, cluster: ClusterId, to: MemberId) -> Result<(), MemberError> {
        self.leader_only(uid, cluster, "TransferLeader")?;
        let voter = self.logs.get(&cluster).is_some_and(|l| l.voters().contains(&to));
        let target = self.process_of(to).filter(|_| voter && self.acks(uid, to)).map(|(u, _)| u.clone());
        let Some(target) = target else {
            return Err(refused("TransferLeader", Code::Aborted, "nobody took it"));
        };
        self.step_down(uid);
        self.take_over(cluster, &target, to);
        Ok(())
    }

    fn renew(&mut self, now: i64, uid: &str, member: MemberId) -> Result<(), MemberError> {
        let Some(process) = self.processes.get(uid) else { return Ok(()) };
        let may =
            matches!(process.state, MemberState::Removed | MemberState::Uninitialized | MemberState::Joining);
        if process.member != member || !may {
            return Err(refused("Renew", Code::FailedPrecondition, "it takes part in its cluster"));
        }
        let (pod, ip, volume) = (process.pod.clone(), process.ip.clone(), process.volume.clone());
        self.disks.remove(&volume);
        self.start(now, uid, &pod, &ip, &volume);
        Ok(())
    }

    fn report(&self, now: i64, uid: &str) -> Report {
        let process = &self.processes[uid];
        let disk = &self.disks[&process.volume];
        let log = disk.log().and_then(|id| self.logs.get(&id));
        let leads = process.leads.is_some() && process.state == MemberState::Active;
        let takes_part = matches!(
            process.state,
            MemberState::Active | MemberState::Recovering | MemberState::Fenced | MemberState::Removed
        );
        let log = log.filter(|_| takes_part && disk.genesis.is_some());
        let config = log.map(|log| match leads && process.leads == Some(log.ballot) {
            true => log.config().clone(),
            false => known_config(log, disk.position).clone(),
        });
        let ballot = if leads { process.leads } else { log.map(|l| l.ballot) };
        let peers = config.iter().filter(|_| leads).flat_map(|c| &c.members).map(|m| self.peer(uid, m, log));
        let ready = process.state == MemberState::Active && process.caught_up_once;
        Report {
            member: process.member,
            incarnation: disk.incarnation,
            state: process.state,
            cluster: disk.log(),
            genesis_digest: if log.is_some() { vec![1] } else { Vec::new() },
            leads,
            leader: log.and_then(|l| l.leader),
            ballot: Ballot { round: ballot.unwrap_or(0), member: process.member.0 },
            chosen_through: disk.position,
            last_index: disk.position,
            in_force: !leads || log.is_none_or(|l| now >= l.pending_until),
            peers: peers.collect(),
            removed: log.map(|l| self.removed(l, disk, leads)).unwrap_or_default(),
            settings: log.map(|l| l.settings),
            config,
            ready,
            reason: if ready { String::new() } else { "it has not caught up since it started".into() },
            version: "0.1.0".into(),
            room: if disk.full { Room::Full } else { Room::Plenty },
            free_bytes: 1 << 30,
            trust: Trust::Newest,
        }
    }

    fn peer(&self, uid: &str, member: &ConfigMember, log: Option<&Log>) -> Peer {
        let there = self.process_of(member.member).filter(|(other, p)| {
            let of = self.disks.get(&p.volume).and_then(Disk::log);
            let own = self.processes.get(uid).and_then(|p| self.disks.get(&p.volume)).and_then(Disk::log);
            self.talk(uid, other) && of == own && p.state != MemberState::Uninitialized
        });
        let end = log.map_or(0, |l| l.end);
        let caught_up = there.is_some_and(|(other, p)| {
            let position = self.disks.get(&p.volume).map_or(0, |d| d.position);
            end - position.min(end) <= 3 && !self.hung.contains(other) && p.state == MemberState::Active
        });
        Peer { member: member.member, connected: there.is_some(), caught_up }
    }

    fn removed(&self, log: &Log, disk: &Disk, leads: bool) -> Vec<Removed> {
        let known = log.removed.iter().filter(|r| r.at <= disk.position);
        known.map(|r| Removed { member: r.member, version: r.version, retired: leads && r.retired }).collect()
    }
}

fn begins_as(disk: &Disk) -> MemberState {
    match disk {
        d if d.tombstone => MemberState::Removed,
        d if d.fenced => MemberState::Fenced,
        d if d.genesis.is_some() && d.confirmed => MemberState::Recovering,
        d if d.genesis.is_some() || d.joined.is_some() => MemberState::Joining,
        _ => MemberState::Uninitialized,
    }
}

/// The newest configuration in a prefix of the log.
fn known_config(log: &Log, position: u64) -> &Config {
    let known = log.configs.iter().rev().find(|c| c.at <= position);
    &known.unwrap_or(&log.configs[0]).config
}

fn next(log: &mut Log, change: impl FnOnce(&mut Config)) {
    let mut config = log.config().clone();
    config.version += 1;
    change(&mut config);
    log.end += 1;
    log.configs.push(Chosen { config, at: log.end });
}

fn add(log: &mut Log, member: MemberId, name: &str) -> Result<(), String> {
    if log.config().get(member).is_some() || log.removed.iter().any(|r| r.member == member) {
        return Err(format!("{member} was a member already"));
    }
    let added = ConfigMember { member, name: name.to_owned(), voter: false };
    next(log, |c| c.members.push(added));
    Ok(())
}

fn promote(log: &mut Log, member: MemberId) -> Result<(), String> {
    if log.config().get(member).is_none_or(|m| m.voter) {
        return Err(format!("{member} is no learner"));
    }
    next(log, |c| c.members.iter_mut().filter(|m| m.member == member).for_each(|m| m.voter = true));
    Ok(())
}

fn remove(log: &mut Log, member: MemberId, now: i64) -> Result<(), String> {
    let rest = log.config().voters().filter(|m| m.member != member).count();
    if log.config().get(member).is_none() || rest == 0 {
        return Err(format!("{member} cannot be removed"));
    }
    next(log, |c| c.members.retain(|m| m.member != member));
    let (version, at) = (log.config().version, log.end);
    log.removed.push(Gone { member, version, at, since: now, retired: false });
    Ok(())
}
