//! Volumes that come back empty, as an older copy, or at another member's place (docs: protocol.md, "Identity and
//! amnesia"; reliability.md, faults 25 to 27 and 32).
//!
//! The part of an operator is scripted here: it removes a member whose volume is lost, and lets the empty one join.

use crate::common::{Cluster, Member, binary, id, stderr, until};
use crate::load::{Load, Report};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use synod_proto::v1::MemberState;

/// One kind's part of `target/torture/volumes.json`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcome {
    pub(crate) runs: u64,
    /// A promise or a vote of a member that may not know what it had said before.
    pub(crate) unsafe_votes: u64,
    /// Members that said themselves that their disk is an older copy.
    pub(crate) fenced: u64,
    /// Runs after which all three voters were ready and had caught up.
    pub(crate) whole_again: u64,
    pub(crate) acknowledged: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
}

/// What happens to volumes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Wiped,
    RolledBack,
    Swapped,
}

/// What a data directory of a stopped member says of promises and votes.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    member: String,
    promised: String,
    written: u64,
}

fn inspect(dir: &Path) -> Said {
    // A copy: a process that was told to stop under load may not have closed it.
    let aside = tempfile::tempdir().unwrap();
    let copy = aside.path().join("copy");
    let output =
        binary().arg("inspect").arg(dir).arg("--copy-to").arg(copy).args(["-o", "json"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
    Said {
        member: text("member"),
        promised: text("promised"),
        written: json["writes"].as_u64().expect("the write counter"),
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("log")).unwrap();
    for entry in fs::read_dir(from.join("log")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join("log").join(entry.file_name())).unwrap();
    }
}

/// A cluster under load whose volumes come and go.
struct Volumes {
    cluster: Cluster,
    load: Load,
    used: BTreeSet<u64>,
    outcome: Outcome,
}

impl Volumes {
    async fn start() -> Volumes {
        let cluster = Cluster::prepared(3, |member| {
            member.said = Some(member.data_dir.with_extension("said"));
        })
        .await;
        cluster.form().await;
        let load = Load::start(&cluster.members, 3);
        let mut used = BTreeSet::new();
        for member in &cluster.members {
            used.insert(member.answers().await.member);
        }
        Volumes { cluster, load, used, outcome: Outcome::default() }
    }

    async fn ids(&self) -> Vec<u64> {
        let mut ids = Vec::new();
        for member in &self.cluster.members {
            ids.push(member.answers().await.member);
        }
        ids
    }

    fn member(&mut self, number: usize) -> &mut Member {
        &mut self.cluster.members[number]
    }

    /// An administrator's call at whoever leads; asked again where that has changed meanwhile.
    async fn ask_leader(&self, arguments: &[&str]) {
        until("the leader does it", || async {
            let leader = self.cluster.leader().await;
            let output = self.cluster.members[leader].admin(arguments);
            if output.status.success() { Ok(()) } else { Err(stderr(&output)) }
        })
        .await;
    }

    /// The member at this place has an empty volume; `lost` is the one whose volume it was. It must not have said
    /// anything before it is let in.
    async fn replace(&mut self, place: usize, lost: u64) {
        let fresh = self.cluster.members[place].answers().await;
        let says_nothing = fresh.state() == MemberState::Uninitialized
            && fresh.promised.is_none_or(|promised| promised.round == 0);
        if !says_nothing || !self.used.insert(fresh.member) {
            self.outcome.unsafe_votes += 1;
        }
        let (name, new) = (self.cluster.members[place].name.clone(), id(fresh.member));
        self.ask_leader(&["remove", "--member", &id(lost)]).await;
        self.cluster.let_join(place, (place + 1) % 3).await;
        self.ask_leader(&["add-learner", "--member", &new, "--name", &name]).await;
        self.ask_leader(&["promote", "--member", &new]).await;
    }

    async fn wiped(&mut self, victim: usize) {
        let lost = self.cluster.members[victim].answers().await.member;
        let member = self.member(victim);
        member.kill();
        fs::remove_dir_all(&member.data_dir).unwrap();
        member.start();
        self.replace(victim, lost).await;
    }

    async fn rolled_back(&mut self, victim: usize) {
        let aside = self.cluster.dir.path().join("copy");
        let member = self.member(victim);
        let lost = member.answers().await.member;
        assert_eq!(member.terminate(), Some(0));
        let before = inspect(&member.data_dir);
        copy(&member.data_dir, &aside);
        member.start();
        let back = member.ready().await;
        // It votes for more, and others hear of that.
        let member = &self.cluster.members[victim];
        until("it has more on its disk", || async {
            let status =
                synod_client::wire::status(&member.client()).await.map_err(|error| error.to_string())?;
            let more = status.ready && status.durable_through > back.durable_through + 20;
            if more { Ok(()) } else { Err(format!("{} slots", status.durable_through)) }
        })
        .await;
        let member = self.member(victim);
        member.kill();
        fs::remove_dir_all(&member.data_dir).unwrap();
        fs::rename(&aside, &member.data_dir).unwrap();
        member.start();
        let state = until("it knows what it is", || async {
            let status =
                synod_client::wire::status(&member.client()).await.map_err(|error| error.to_string())?;
            match status.state() {
                MemberState::Recovering => Err(status.reason),
                state => Ok(state),
            }
        })
        .await;
        assert_eq!(member.terminate(), Some(0));
        let after = inspect(&member.data_dir);
        self.outcome.fenced += u64::from(state == MemberState::Fenced);
        self.outcome.unsafe_votes += u64::from(after != before);
        // What an operator does with such a volume.
        let member = self.member(victim);
        fs::remove_dir_all(&member.data_dir).unwrap();
        member.start();
        self.replace(victim, lost).await;
    }

    async fn swapped(&mut self, victim: usize) {
        let other = (victim + 1) % 3;
        // As killed processes leave them: a start repairs it.
        let dirs = [victim, other].map(|place| {
            let member = self.member(place);
            member.kill();
            member.data_dir.clone()
        });
        let aside = self.cluster.dir.path().join("aside");
        fs::rename(&dirs[0], &aside).unwrap();
        fs::rename(&dirs[1], &dirs[0]).unwrap();
        fs::rename(&aside, &dirs[1]).unwrap();
        for place in [victim, other] {
            self.member(place).start();
        }
    }

    /// All three voters are those that run, ready and caught up.
    async fn is_whole(&mut self) {
        let cluster = &self.cluster;
        until("three voters are whole", || async {
            let mut running = BTreeSet::new();
            for member in &cluster.members {
                let status =
                    synod_client::wire::status(&member.client()).await.map_err(|error| error.to_string())?;
                if !status.ready {
                    return Err(format!("{}: {}", member.name, status.reason));
                }
                running.insert(status.member);
            }
            let leader = synod_client::wire::status(&cluster.members[cluster.leader().await].client()).await;
            let leader = leader.map_err(|error| error.to_string())?;
            let voters: BTreeSet<u64> = leader
                .configuration
                .iter()
                .flat_map(|configuration| &configuration.members)
                .filter(|member| member.voter)
                .map(|member| member.member)
                .collect();
            let behind = leader.peers.iter().any(|peer| voters.contains(&peer.member) && !peer.caught_up);
            if voters == running && !behind {
                Ok(())
            } else {
                Err(format!("{voters:?} {running:?} {behind}"))
            }
        })
        .await;
        self.outcome.whole_again += 1;
    }
}

/// So many runs of one kind, under load; every member's log is read at the end.
pub(crate) async fn run(kind: Kind, runs: u64) -> Outcome {
    let mut volumes = Volumes::start().await;
    for number in 0..runs {
        volumes.load.advance().await;
        // Every second time it is the leader.
        let leader = volumes.cluster.leader().await;
        let victim = if number % 2 == 0 { leader } else { (leader + 1) % 3 };
        let ids_before = volumes.ids().await;
        match kind {
            Kind::Wiped => volumes.wiped(victim).await,
            Kind::RolledBack => volumes.rolled_back(victim).await,
            Kind::Swapped => volumes.swapped(victim).await,
        }
        volumes.is_whole().await;
        if let Kind::Swapped = kind {
            // Who a member is goes with the volume, not with the place.
            let mut expected = ids_before;
            expected.swap(victim, (victim + 1) % 3);
            volumes.outcome.unsafe_votes += u64::from(volumes.ids().await != expected);
        }
        volumes.outcome.runs += 1;
        if runs >= 50 && volumes.outcome.runs.is_multiple_of(10) {
            let Outcome { runs, unsafe_votes, fenced, whole_again, .. } = &volumes.outcome;
            println!(
                "{kind:?}: {runs} runs, {unsafe_votes} unsafe votes, {fenced} fenced, {whole_again} whole"
            );
        }
    }
    let Volumes { cluster, load, mut outcome, .. } = volumes;
    let mut report = Report::default();
    load.judge(&cluster.members, &mut report).await;
    println!("{kind:?}: {report:?}");
    (outcome.acknowledged, outcome.lost) = (report.acknowledged, report.lost);
    (outcome.duplicated, outcome.reordered) = (report.duplicated, report.reordered);
    outcome
}
