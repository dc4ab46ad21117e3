//! The job itself: a text in and out, writers going on through every kind of disturbance, and at the
//! end the log of every member, read while it is cut off from its peers.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use synod_cluster::{Error, Progress, Result, Step, run};
use synod_e2e::load::{Ledger, Once, Writer, now_ms};

use crate::stage::{APPLICATION, NAME, NAMESPACE, SIDECAR, SYSTEM, Stage, wait};
use crate::summary::{Configuration, Gaps, Leader};
use crate::text::Text;
use crate::verdict::{Entry, Evidence};

/// How long the leader's node is cut off.
const PARTITION: Duration = Duration::from_secs(30);
/// How long a change of the membership may take, the operator being killed meanwhile.
const SCALE: Duration = Duration::from_secs(300);
/// The writers go on for so many acknowledgements after each disturbance, to show that all is well.
const AFTERWARDS: usize = 200;

/// What the job found.
pub(crate) struct Found {
    pub(crate) evidence: Evidence,
    pub(crate) lines: usize,
    pub(crate) repeated: usize,
    pub(crate) refused: usize,
    pub(crate) gaps: Gaps,
    pub(crate) configurations: Vec<Configuration>,
    pub(crate) leaders: Vec<Leader>,
}

/// Does the whole job on a Ready cluster of three.
pub(crate) fn run(stage: &Stage, progress: &Progress) -> Result<Found> {
    let pods = Stage::pods(3);
    let mut evidence = Evidence { members: 3, ..Evidence::default() };
    let text =
        progress.step("Fetch a text: this Kubernetes' API description", None, |_| Text::of_api(stage))?;
    let name = format!("Append its {} lines through {}", text.lines, pods[0]);
    evidence.text = progress.step(&name, None, |_| text.append(stage, &pods[0]))?;
    evidence.sha256_in.clone_from(&text.sha256);
    progress.step("Read them back through the other pods", None, |_| {
        let (from, to) = (evidence.text[0].index, evidence.text[text.lines - 1].index);
        for pod in &pods[1..] {
            let digest = Text::read_back(stage, pod, from, to)?;
            evidence.sha256_out.insert(pod.clone(), digest);
        }
        Ok(())
    })?;
    let ledger = Ledger::default();
    // Their pods may be deleted under them.
    let once = Once::Keys { minted_at: evidence.text[text.lines - 1].index };
    let writers: Vec<Writer> =
        (0..2).map(|n| Writer::start(stage.place(&pods[n]), &format!("writer-{n}"), once, &ledger)).collect();
    let disturbed = disturb(stage, progress, &ledger, &pods, &mut evidence);
    progress.step("Stop the writers", None, |_| {
        writers.into_iter().for_each(Writer::stop);
        Ok(())
    })?;
    let gaps = disturbed?;
    let outcomes = ledger.outcomes();
    if let Some(line) = outcomes.unreadable.first() {
        return Err(Error::Invalid(format!("a writer printed no outcome but `{line}`")));
    }
    evidence.writers = outcomes.acknowledged;
    evidence.unknown = outcomes.unknown;
    let (configurations, leaders) = histories(&stage.history(&pods[0])?);
    for pod in &pods {
        let name = format!("Cut {pod} off from its peers and read its log");
        let log = progress.step(&name, None, |_| read_alone(stage, pod, &evidence))?;
        evidence.logs.insert(pod.clone(), log);
    }
    Ok(Found {
        evidence,
        lines: text.lines,
        repeated: outcomes.repeated,
        refused: outcomes.refused,
        gaps,
        configurations,
        leaders,
    })
}

fn disturb(
    stage: &Stage,
    progress: &Progress,
    ledger: &Ledger,
    pods: &[String],
    evidence: &mut Evidence,
) -> Result<Gaps> {
    let during = |what: &str, body: &mut dyn FnMut(&Step) -> Result<()>| {
        progress.step(what, None, |step| {
            more(ledger, step)?;
            let from = now_ms();
            body(step)?;
            more(ledger, step)?;
            Ok(ledger.longest_gap(from, now_ms()))
        })
    };
    let scale_up = during("Scale to 5, killing the operator meanwhile", &mut |_| scale(stage, 5))?;
    let scale_down = during("Scale to 3, killing the operator meanwhile", &mut |_| scale(stage, 3))?;
    let leader_deleted = during("Delete the leader's pod", &mut |_| {
        let leader = stage.leader(pods)?;
        stage.kubectl(&["delete", "pod", &leader, "--wait=true", "--timeout=120s"])?;
        stage.wait_ready(3, Duration::from_secs(120))
    })?;
    let leader_killed = during("Kill the leader's sidecar with SIGKILL", &mut |_| {
        let leader = stage.leader(pods)?;
        let killed = stage.cluster.container_kill(NAMESPACE, &leader, SIDECAR)?;
        let again =
            || stage.cluster.container(NAMESPACE, &leader, SIDECAR).ok().filter(|now| now.id != killed.id);
        wait("the sidecar to run again", Duration::from_secs(120), again)?;
        stage.wait_ready(3, Duration::from_secs(120))
    })?;
    let partition = during("Cut the leader's node off for 30 s, a writer inside", &mut |step| {
        partition(stage, ledger, pods, evidence, step)
    })?;
    Ok(Gaps { scale_up, scale_down, leader_deleted, leader_killed, partition })
}

/// Waits until the writers had some more acknowledgements.
fn more(ledger: &Ledger, step: &Step) -> Result<()> {
    let enough = ledger.count() + AFTERWARDS;
    wait("the writers' acknowledgements", Duration::from_secs(60), || {
        step.at(&format!("{} acknowledged", ledger.count()));
        (ledger.count() >= enough).then_some(())
    })
}

/// Scales, with the operator's pod killed twice at random moments.
fn scale(stage: &Stage, replicas: usize) -> Result<()> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| kill_operator(stage, &done));
        let scaled = stage
            .kubectl(&["scale", &format!("paxos/{NAME}"), &format!("--replicas={replicas}")])
            .and_then(|_| stage.wait_ready(replicas, SCALE));
        done.store(true, Ordering::SeqCst);
        scaled?;
        match killer.join() {
            Ok(0) => Err(Error::Invalid("the operator was not killed: the change was over too soon".into())),
            _ => Ok(()),
        }
    })
}

/// Kills the operator's pod, without grace, at two random moments. Returns how often it did.
fn kill_operator(stage: &Stage, done: &AtomicBool) -> usize {
    let mut kills = 0;
    for _ in 0..2 {
        let mut left = 1_000 + random(7_000);
        while left > 0 && !done.load(Ordering::SeqCst) {
            let nap = left.min(50);
            std::thread::sleep(Duration::from_millis(nap));
            left -= nap;
        }
        if done.load(Ordering::SeqCst) {
            break;
        }
        let mut command = stage.cluster.kubectl();
        command.args(["-n", SYSTEM, "delete", "pod", "-l", "app.kubernetes.io/name=synod-operator"]);
        kills += usize::from(run::succeeds(command.args(["--grace-period=0", "--force", "--wait=false"])));
    }
    kills
}

/// A number below `bound` that differs from run to run.
fn random(bound: u64) -> u64 {
    RandomState::new().build_hasher().finish() % bound
}

fn partition(
    stage: &Stage,
    ledger: &Ledger,
    pods: &[String],
    evidence: &mut Evidence,
    step: &Step,
) -> Result<()> {
    let leader = stage.leader(pods)?;
    let node = stage.cluster.container(NAMESPACE, &leader, SIDECAR)?.node;
    let other = pods.iter().find(|pod| {
        stage.cluster.container(NAMESPACE, pod, SIDECAR).is_ok_and(|container| container.node != node)
    });
    let other = other.ok_or_else(|| Error::Invalid(format!("all members run on {node}")))?;
    let before = stage.status(&leader)?;
    evidence.led_before_partition = before["leader_ballot"].as_str().unwrap_or_default().to_owned();
    let epoch = before["fencing_epoch"].as_u64().unwrap_or(u64::MAX);
    let inside = Writer::start(stage.place(&leader), "writer-inside", Once::Session, ledger);
    let count = ledger.count();
    wait("the writer inside", Duration::from_secs(30), || (ledger.count() > count + 50).then_some(()))?;
    step.at(&format!("{node} with {leader} is cut off"));
    let cut = stage.cluster.node_cut(&node).and_then(|()| {
        std::thread::sleep(PARTITION);
        stage.history(other)
    });
    stage.cluster.node_heal(&node)?;
    let history = cut?;
    for leadership in history["leaders"].as_array().into_iter().flatten() {
        if leadership["fencing_epoch"].as_u64().is_some_and(|slot| slot > epoch) {
            let ballot = leadership["ballot"].as_str().unwrap_or_default();
            evidence.led_during_partition.push(ballot.to_owned());
        }
    }
    step.at("healed");
    stage.cluster.wait_node(&node, true, Duration::from_secs(90))?;
    let ready = stage.wait_ready(3, Duration::from_secs(120));
    inside.stop();
    ready
}

/// Reads a member's log, with `sequential`, while it is cut off from its peers.
fn read_alone(stage: &Stage, pod: &str, evidence: &Evidence) -> Result<Vec<Entry>> {
    let last = evidence.text.iter().chain(&evidence.writers).map(|entry| entry.index).max().unwrap_or(0);
    wait(&format!("{pod} to have applied index {last}"), Duration::from_secs(60), || {
        let status = stage.status(pod).ok()?;
        (status["last_index"].as_u64()? >= last).then_some(())
    })?;
    stage.cluster.pod_isolate(NAMESPACE, pod)?;
    let read = stage.exec(pod, APPLICATION, &["journal", "cat", "--consistency", "sequential", "-o", "json"]);
    stage.cluster.pod_rejoin(NAMESPACE, pod)?;
    read?
        .lines()
        .map(|line| {
            serde_json::from_str(line)
                .map_err(|error| Error::Invalid(format!("`journal cat` printed `{line}`: {error}")))
        })
        .collect()
}

/// The configurations and leaderships of a history, with members by their pods' names.
fn histories(history: &Value) -> (Vec<Configuration>, Vec<Leader>) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let configured = list(&history["configurations"]);
    let names: Vec<(String, String)> = configured
        .iter()
        .flat_map(|configuration| list(&configuration["names"]))
        .map(|named| (text(&named["member"]), text(&named["name"])))
        .collect();
    let name = |member: &Value| {
        let member = text(member);
        let named = names.iter().find(|(id, name)| *id == member && !name.is_empty());
        named.map_or(member, |(_, name)| name.clone())
    };
    let configurations = configured
        .iter()
        .map(|configuration| Configuration {
            version: number(&configuration["version"]),
            slot: number(&configuration["slot"]),
            voters: list(&configuration["voters"]).iter().map(name).collect(),
            learners: list(&configuration["learners"]).iter().map(name).collect(),
        })
        .collect();
    let leaders = list(&history["leaders"])
        .iter()
        .map(|leader| Leader {
            fencing_epoch: number(&leader["fencing_epoch"]),
            ballot: text(&leader["ballot"]),
            member: name(&leader["member"]),
        })
        .collect();
    (configurations, leaders)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_are_called_by_their_pods_names() {
        let (configurations, leaders) = histories(&json!({
            "configurations": [{
                "version": 2, "slot": 7, "voters": ["a"], "learners": ["b"],
                "names": [{"member": "a", "name": "demo-0"}, {"member": "b", "name": ""}],
            }],
            "leaders": [{"fencing_epoch": 3, "ballot": "1.a", "member": "a"}],
        }));
        assert_eq!(configurations[0].voters, ["demo-0"]);
        assert_eq!(configurations[0].learners, ["b"]);
        assert_eq!((configurations[0].version, configurations[0].slot), (2, 7));
        assert_eq!((leaders[0].member.as_str(), leaders[0].fencing_epoch), ("demo-0", 3));
    }

    #[test]
    fn random_moments_stay_below_their_bound() {
        assert!((0..100).all(|_| random(10) < 10));
    }
}
