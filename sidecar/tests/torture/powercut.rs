//! Power cuts: all members and the page caches of their disks end at once, and what is left is what was synced (docs:
//! reliability.md, faults 10 and 13).

use crate::common::mounts::Mounts;
use crate::common::{Cluster, Member};
use crate::faults::set_leases;
use crate::load::{Ended, Load, Report};
use serde::Serialize;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Each member's disk, in MiB; what is not written takes nothing.
const DISK: u64 = 2_048;
/// The longest pause before a cut, in milliseconds.
const PAUSE: u64 = 300;

/// `target/powercut/report.json`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Cuts {
    pub(crate) cuts: u64,
    /// Of these, how many came while members recovered from the one before.
    pub(crate) in_recovery: u64,
    /// Of these, how many cut the disks off before the processes ended; the others ended the processes first.
    pub(crate) disks_first: u64,
    /// Files written without a sync right before a cut, and how many of them were gone afterwards.
    pub(crate) unsynced: u64,
    pub(crate) forgotten: u64,
    #[serde(flatten)]
    pub(crate) load: Report,
}

/// Three members, each on a disk that can be cut off.
pub(crate) struct PowerCut {
    /// Before the mounts, so that the processes end first.
    pub(crate) cluster: Cluster,
    mounts: Mounts,
    disks: Vec<PathBuf>,
    rounds: u64,
    pub(crate) report: Cuts,
}

impl PowerCut {
    /// Starts the members; none where no disk can be cut off.
    pub(crate) async fn start(wrapper: &[String]) -> Option<PowerCut> {
        let (mounts, mut disks) = (Mounts::new(), Vec::new());
        if !mounts.can_stand_still() {
            println!("no power can be cut here: that takes root and loop devices");
            return None;
        }
        let cluster = Cluster::prepared(3, |member| {
            let at = member.data_dir.clone();
            member.said = Some(at.with_extension("said"));
            member.wrapper = wrapper.to_vec();
            member.data_dir = mounts.cuttable(&at, DISK);
            disks.push(at);
        })
        .await;
        cluster.form().await;
        Some(PowerCut { cluster, mounts, disks, rounds: 0, report: Cuts::default() })
    }

    /// All members and their page caches end; the members start from what was synced.
    pub(crate) fn cut(&mut self) {
        let text = format!("cut {}", self.report.cuts);
        let memory = self.cluster.members.iter().map(Member::peak_memory).max().unwrap_or_default();
        self.report.load.memory = self.report.load.memory.max(memory);
        let probes: Vec<_> = self.cluster.members.iter().map(|m| m.data_dir.join("probe")).collect();
        for probe in &probes {
            fs::write(probe, &text).unwrap();
        }
        let disks_first = self.report.cuts.is_multiple_of(2);
        if disks_first {
            self.mounts.cut(&self.disks);
        }
        self.cluster.members.iter_mut().for_each(Member::kill);
        if !disks_first {
            self.mounts.cut(&self.disks);
        }
        for disk in &self.disks {
            self.mounts.mount_again(disk);
        }
        let is_there = |probe: &PathBuf| fs::read(probe).is_ok_and(|found| found == text.as_bytes());
        self.report.unsynced += probes.len() as u64;
        self.report.forgotten += probes.iter().filter(|probe| !is_there(probe)).count() as u64;
        self.report.disks_first += u64::from(disks_first);
        self.report.load.kills += self.cluster.members.len() as u64;
        self.report.cuts += 1;
        self.cluster.members.iter_mut().for_each(Member::start);
    }

    /// One cut under load, under leases in half of the rounds; every third is followed by another before the members have recovered.
    pub(crate) async fn round(&mut self, load: &Load) {
        let number = self.report.cuts;
        let before = load.acknowledged();
        self.rounds += 1;
        let leases = self.rounds % 4 >= 2;
        if self.rounds.is_multiple_of(2) {
            set_leases(&self.cluster.members, leases).await;
        }
        load.advance().await;
        // In no step with the writers.
        tokio::time::sleep(Duration::from_millis(number * 37 % PAUSE)).await;
        self.cut();
        if number % 3 == 2 {
            tokio::time::sleep(Duration::from_millis(number * 53 % PAUSE)).await;
            self.cut();
            self.report.in_recovery += 1;
        }
        self.ready().await;
        if leases {
            self.report.load.under_leases += load.acknowledged() - before;
        }
    }

    pub(crate) async fn ready(&self) {
        for member in &self.cluster.members {
            member.ready().await;
        }
    }

    /// Judges every log by what the writers were told.
    pub(crate) async fn judge(self, ended: &Ended) -> Cuts {
        let mut report = self.report;
        ended.judge(&self.cluster.members, &mut report.load).await;
        report
    }
}
