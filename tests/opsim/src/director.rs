//! Decides by the seed what goes wrong and what people do, and ends all of it fairly.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use synod_operator::names::MemberId;
use synod_sim::random::Random;

use crate::api::{CLAIMS, CLUSTER, PODS, SET};
use crate::members::majority;
use crate::rules::Rules;
use crate::world::{Manners, World};

/// A kind of trouble: it does something, and says what in words.
type Kind = fn(&mut Director, &mut World, &mut Rules) -> Option<String>;

/// What a seed is like.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// Operators that run at once.
    pub operators: usize,
    /// How likely an operator is killed at a call, in 10,000.
    pub kills: u64,
    /// How likely it stands still at a call, in 10,000.
    pub sleeps: u64,
    /// How likely a call's answer is lost, in 10,000.
    pub losses: u64,
    /// How likely a look reads an old cache, in 1,000.
    pub stale: u64,
    /// Whether watches break, come late and repeat themselves.
    pub watches: bool,
    /// Whether requests are refused.
    pub refusals: bool,
    /// Whether members and links fail.
    pub members: bool,
    /// Whether nodes fail.
    pub nodes: bool,
    /// Whether disks and claims are lost.
    pub disks: bool,
    /// Whether people edit the spec.
    pub edits: bool,
    /// Whether people change or delete what is the operator's.
    pub hands: bool,
    /// Whether nodes are drained.
    pub drains: bool,
    /// Whether disks may be lost beyond a quorum.
    pub ruthless: bool,
    /// How long it lasts, in seconds.
    pub seconds: i64,
    /// Whether an object is refused to the end.
    pub stubborn: bool,
    /// Seconds between two things that happen.
    pub pace: u64,
}

/// A request that is refused for a while.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The method.
    pub method: &'static str,
    /// A part of the path.
    pub path: &'static str,
    /// The status.
    pub code: u16,
    /// Until when, in milliseconds.
    pub until: i64,
}

/// What is going on.
#[derive(Debug)]
pub struct Director {
    /// What the seed is like.
    pub profile: Profile,
    /// What is refused.
    pub refusals: Vec<Refusal>,
    /// The spec of a PaxosCluster that was deleted, and when it is made again.
    reborn: Option<(i64, Value)>,
    /// Nodes that come back, and when.
    back: Vec<(i64, String)>,
    ends: Vec<(i64, String)>,
    images: u64,
    lost_unformed: bool,
    edited: i64,
}

impl Profile {
    /// The profile of a seed.
    pub fn of(random: &mut Random) -> Profile {
        let calm = random.chance(300);
        let some = |random: &mut Random, odds: u64, most: u64| {
            if !calm && random.chance(odds) { 1 + random.below(most) } else { 0 }
        };
        Profile {
            operators: if !calm && random.chance(300) { 2 } else { 1 },
            kills: some(random, 500, 400),
            sleeps: some(random, 300, 100),
            losses: some(random, 300, 200),
            stale: some(random, 250, 300),
            watches: !calm && random.chance(400),
            refusals: !calm && random.chance(400),
            members: random.chance(600),
            nodes: random.chance(400),
            disks: random.chance(500),
            edits: random.chance(750),
            hands: random.chance(300),
            drains: random.chance(350),
            ruthless: random.chance(60),
            stubborn: !calm && random.chance(100),
            seconds: 120 + i64::try_from(random.below(360)).unwrap_or(0),
            pace: 3 + random.below(25),
        }
    }
}

/// The Kubernetes of a seed.
pub fn manners(random: &mut Random) -> Manners {
    Manners {
        local: random.chance(500),
        grows_at_restart: random.chance(200),
        set_lag: if random.chance(300) { i64::try_from(random.below(12_000)).unwrap_or(0) } else { 0 },
        growth: 1_000 + i64::try_from(random.below(25_000)).unwrap_or(0),
    }
}

/// The first spec of a seed.
pub fn first_spec(random: &mut Random) -> Value {
    let replicas = [1, 2, 3, 3, 3, 3, 4, 5, 5, 7][usize::try_from(random.below(10)).unwrap_or(0)];
    let after = format!("{}s", 30 + random.below(60));
    let word = |random: &mut Random, odds, a: &str, b: &str| {
        if random.chance(odds) { a.to_owned() } else { b.to_owned() }
    };
    json!({
        "replicas": replicas,
        "maxVoters": 3 + 2 * random.below(3),
        "progressDeadlineSeconds": 60 + random.below(120),
        "tls": { "mode": "Disabled" },
        "storage": {
            "size": "1Gi",
            "whenScaled": word(random, 400, "Retain", "Delete"),
            "whenDeleted": word(random, 300, "Delete", "Retain"),
            "replaceLost": { "policy": word(random, 150, "Manual", "NodeGone"), "after": after },
        },
        "disruption": { "budget": word(random, 100, "None", "Quorum") },
        "service": if random.chance(300) { json!({ "ports": [{ "port": 80 }] }) } else { json!({}) },
        "template": if random.chance(300) { template("app:1") } else { Value::Null },
    })
}

fn template(image: &str) -> Value {
    json!({ "spec": { "containers": [{ "name": "app", "image": image }] } })
}

impl Director {
    /// Nothing has happened yet.
    pub fn new(profile: Profile) -> Director {
        Director {
            profile,
            refusals: match profile.stubborn {
                true => vec![Refusal { method: "PATCH", path: "/services/demo", code: 422, until: i64::MAX }],
                false => Vec::new(),
            },
            reborn: None,
            back: Vec::new(),
            ends: Vec::new(),
            images: 1,
            lost_unformed: false,
            edited: 0,
        }
    }

    /// What happens in this second, in words; nothing most of the time.
    pub fn tick(&mut self, world: &mut World, rules: &mut Rules) -> Vec<String> {
        let mut said = self.pending(world, false);
        said.extend(self.drain(world, rules));
        if !world.random.chance(1_000 / self.profile.pace) {
            return said;
        }
        let p = self.profile;
        let mut kinds: Vec<Kind> = Vec::new();
        if p.members {
            kinds.extend([Self::member as Kind; 2]);
        }
        if p.nodes {
            kinds.push(Self::node);
        }
        if p.disks {
            kinds.push(Self::disk);
        }
        if p.edits {
            kinds.extend([Self::edit as Kind; 2]);
        }
        if p.hands {
            kinds.push(Self::hand);
        }
        if p.drains {
            kinds.push(Self::begin_drain);
        }
        if p.refusals {
            kinds.push(Self::refuse);
        }
        if let Some(kind) = world.random.pick(&kinds).copied() {
            said.extend(kind(self, world, rules));
        }
        said
    }

    /// What was begun goes on: nodes come back, faults end, a deleted PaxosCluster is made again.
    fn pending(&mut self, world: &mut World, all: bool) -> Vec<String> {
        let (now, mut said) = (world.now, Vec::new());
        let due: Vec<String> =
            self.back.iter().filter(|(at, _)| all || *at <= now).map(|(_, name)| name.clone()).collect();
        self.back.retain(|(at, _)| !all && *at > now);
        for name in due {
            if let Some(node) = world.nodes.get_mut(&name) {
                (node.up, node.since) = (true, now);
            }
            world.list_node(&name);
            said.push(format!("node {name} is back"));
        }
        let over: Vec<String> =
            self.ends.iter().filter(|(at, _)| all || *at <= now).map(|(_, pod)| pod.clone()).collect();
        self.ends.retain(|(at, _)| !all && *at > now);
        for pod in over {
            world.members.cut.remove(&pod);
            world.members.hung.remove(&pod);
            world.members.unheard.remove(&pod);
            if let Some(volume) = world.members.processes.get(&pod).map(|p| p.volume.clone())
                && let Some(disk) = world.members.disks.get_mut(&volume)
            {
                disk.full = false;
            }
        }
        self.refusals.retain(|r| (!all && r.until > now) || r.until == i64::MAX);
        if let Some((at, spec)) = self.reborn.take() {
            if all || at <= now {
                make_cluster(world, spec);
                said.push("the PaxosCluster is made again".into());
            } else {
                self.reborn = Some((at, spec));
            }
        }
        said
    }

    fn for_a_while(world: &mut World, most: u64) -> i64 {
        world.now + 2_000 + i64::try_from(world.random.below(most * 1_000)).unwrap_or(0)
    }

    fn any_process(world: &mut World) -> Option<String> {
        let all: Vec<String> = world.members.processes.keys().cloned().collect();
        world.random.pick(&all).cloned()
    }

    fn member(&mut self, world: &mut World, _: &mut Rules) -> Option<String> {
        let pod = Self::any_process(world)?;
        let process = world.members.processes.get(&pod)?.clone();
        let until = Self::for_a_while(world, 120);
        let what = match world.random.below(7) {
            0 | 1 => {
                world.members.stop(&pod);
                "crashes"
            }
            2 => {
                world.members.cut.insert(pod.clone());
                "is cut off from its peers"
            }
            3 => {
                world.members.unheard.insert(pod.clone());
                "does not hear the operator"
            }
            4 if process.leads.is_none() => {
                world.members.hung.insert(pod.clone());
                "has a disk that hangs"
            }
            5 => {
                world.members.disks.get_mut(&process.volume)?.full = true;
                "has a full disk"
            }
            _ => {
                let _ = world.server.delete(&format!("{PODS}/{}", process.pod), &Value::Null);
                "is deleted"
            }
        };
        self.ends.push((until, pod));
        Some(format!("{} {what} until {}", process.pod, until / 1000 % 100_000))
    }

    fn node(&mut self, world: &mut World, _: &mut Rules) -> Option<String> {
        let up: Vec<String> =
            world.nodes.iter().filter(|(_, n)| n.up && n.listed).map(|(n, _)| n.clone()).collect();
        let name = world.random.pick(&up)?.clone();
        let until = Self::for_a_while(world, 150);
        match world.random.below(4) {
            0 | 1 => {
                world.stop_node(&name, false);
                self.back.push((until, name.clone()));
                Some(format!("node {name} stops for a while"))
            }
            2 => {
                world.unlist_node(&name);
                world.stop_node(&name, false);
                self.back.push((until, name.clone()));
                Some(format!("the Node object of {name} goes for a while"))
            }
            _ => {
                let hit: Vec<MemberId> = match world.manners.local {
                    true => members_on(world, &world.volumes_on(&name)),
                    false => Vec::new(),
                };
                if !self.may_lose(world, &hit) {
                    return None;
                }
                world.stop_node(&name, true);
                world.unlist_node(&name);
                world.add_node();
                Some(format!("node {name} is gone for good"))
            }
        }
    }

    /// Whether the log can go on without these disks and those that are lost or going already.
    fn may_lose(&mut self, world: &World, hit: &[MemberId]) -> bool {
        if hit.is_empty() || self.profile.ruthless {
            return true;
        }
        let Some(log) = world.log().and_then(|id| world.members.logs.get(&id)) else {
            return !std::mem::replace(&mut self.lost_unformed, true);
        };
        let voters = log.voters();
        let going = going(world);
        let safe = |m: &&MemberId| world.members.is_whole(**m) && !hit.contains(m) && !going.contains(m);
        // One that is being let in may take the place of one that is lost: not two at a time.
        voters.iter().filter(safe).count() >= majority(voters.len() + 1).max(majority(voters.len()))
    }

    fn disk(&mut self, world: &mut World, rules: &mut Rules) -> Option<String> {
        let pod = Self::any_process(world)?;
        let process = world.members.processes.get(&pod)?.clone();
        match world.random.below(5) {
            0 if self.may_lose(world, &[process.member]) => {
                world.members.stop(&pod);
                world.members.empty(&process.volume);
                Some(format!("the disk of {} is emptied", process.pod))
            }
            1 if self.may_lose(world, &[process.member]) => {
                let claim = format!("{CLAIMS}/data-{}", process.pod);
                let _ = world.server.delete(&claim, &Value::Null);
                Some(format!("the claim of {} is deleted", process.pod))
            }
            2 if self.may_lose(world, &[process.member]) => {
                let disk = world.members.disks.get_mut(&process.volume)?;
                if disk.genesis.is_none() || !disk.confirmed {
                    return None;
                }
                disk.fenced = true;
                world.members.stop(&pod);
                Some(format!("the disk of {} is rolled back", process.pod))
            }
            3 if !world.manners.local => {
                let other = Self::any_process(world).filter(|o| *o != pod)?;
                let second = world.members.processes.get(&other)?.clone();
                for (p, volume) in [(&process.pod, &second.volume), (&second.pod, &process.volume)] {
                    let claim = format!("{CLAIMS}/data-{p}");
                    world.server.update(&claim, |c| c["spec"]["volumeName"] = volume.clone().into());
                }
                world.members.stop(&pod);
                world.members.stop(&other);
                Some(format!("the disks of {} and {} are swapped", process.pod, second.pod))
            }
            4 if self.may_lose(world, &[process.member]) => {
                let log = world.log().and_then(|id| world.members.logs.get(&id))?;
                log.config().get(process.member)?;
                rules.declared.insert(process.member);
                let annotation = json!({ "synod.dev/replace": process.member.to_string() });
                world.server.edit(CLUSTER, &json!({ "metadata": { "annotations": annotation } }));
                Some(format!("a person declares {} at {} lost", process.member, process.pod))
            }
            _ => None,
        }
    }

    fn edit(&mut self, world: &mut World, rules: &mut Rules) -> Option<String> {
        let spec = world.spec().clone();
        if spec.is_null() {
            return None;
        }
        self.edited = world.now;
        let patch = match world.random.below(16) {
            0..=4 => {
                let replicas =
                    [0, 1, 2, 3, 3, 4, 5, 5, 6, 7][usize::try_from(world.random.below(10)).unwrap_or(0)];
                json!({ "replicas": replicas })
            }
            5 => {
                self.images += 1;
                let image = if world.random.chance(300) {
                    "sidecar:bad".into()
                } else {
                    format!("sidecar:{}", self.images)
                };
                json!({ "image": image })
            }
            6 => match world.random.below(4) {
                0 => json!({ "template": { "spec": { "hostNetwork": true } } }),
                1 => json!({ "template": template("app:crash") }),
                _ => {
                    self.images += 1;
                    json!({ "template": template(&format!("app:{}", self.images)) })
                }
            },
            7 => {
                json!({ "storage": { "whenScaled": if spec["storage"]["whenScaled"] == "Retain" { "Delete" } else { "Retain" } } })
            }
            8 => {
                json!({ "storage": { "whenDeleted": if spec["storage"]["whenDeleted"] == "Delete" { "Retain" } else { "Delete" } } })
            }
            9 => {
                let size = if spec["storage"]["size"] == "1Gi" { "2Gi" } else { "3Gi" };
                json!({ "storage": { "size": size } })
            }
            10 => json!({ "paused": spec["paused"] != true }),
            11 => json!({ "reads": { "leases": spec["reads"]["leases"] != true } }),
            12 => json!({ "maxVoters": spec["maxVoters"].as_u64().unwrap_or(3).max(5) }),
            13 => return self.delete_cluster(world, rules),
            14 => json!({ "service": { "ports": [{ "port": 81 }] } }),
            _ => json!({ "replicas": 3 }),
        };
        world.server.edit(CLUSTER, &json!({ "spec": patch }));
        Some(format!("a person edits: {patch}"))
    }

    fn delete_cluster(&mut self, world: &mut World, rules: &mut Rules) -> Option<String> {
        // Claims of which some follow and some do not would be the person's own loss.
        let owned = world
            .server
            .under(CLAIMS)
            .into_iter()
            .map(|(_, c)| c["metadata"]["ownerReferences"].as_array().is_some_and(|o| !o.is_empty()));
        let kinds: BTreeSet<bool> = owned.collect();
        rules.deletes_cluster(world);
        if kinds.len() > 1 || world.random.chance(500) {
            return None;
        }
        let spec = world.spec().clone();
        world.server.remove(CLUSTER);
        rules.declared.clear();
        self.reborn = Some((Self::for_a_while(world, 60), spec));
        Some("the PaxosCluster is deleted".into())
    }

    fn hand(&mut self, world: &mut World, _: &mut Rules) -> Option<String> {
        let api = "/api/v1/namespaces/ns";
        Some(match world.random.below(7) {
            0 => {
                let n = world.random.below(7);
                world.server.edit(SET, &json!({ "spec": { "replicas": n } }));
                format!("a person scales the set to {n}")
            }
            1 => {
                let spec = json!({ "terminationGracePeriodSeconds": 100 + world.random.below(9) });
                world.server.edit(SET, &json!({ "spec": { "template": { "spec": spec } } }));
                "a person edits the set's template".into()
            }
            2 => {
                let at = json!({ "kubectl.kubernetes.io/restartedAt": world.now.to_string() });
                let metadata = json!({ "annotations": at });
                world.server.edit(SET, &json!({ "spec": { "template": { "metadata": metadata } } }));
                "kubectl rollout restart".into()
            }
            3 if world.random.chance(300) => {
                world.server.remove(SET);
                "a person deletes the set".into()
            }
            3 | 4 => {
                world.server.remove(crate::api::BUDGET);
                "a person deletes the budget".into()
            }
            5 => {
                world.server.remove(&format!("{api}/configmaps/demo-config"));
                "a person deletes the ConfigMap".into()
            }
            _ => {
                world.server.remove(&format!("{api}/services/demo-peers"));
                "a person deletes the Service".into()
            }
        })
    }

    fn refuse(&mut self, world: &mut World, _: &mut Rules) -> Option<String> {
        let paths = [
            ("PATCH", "/services/"),
            ("PATCH", "/configmaps/"),
            ("PATCH", "/poddisruptionbudgets/"),
            ("PATCH", "/statefulsets/"),
            ("PATCH", "/persistentvolumeclaims/"),
            ("DELETE", "/persistentvolumeclaims/"),
            ("PATCH", "/pods/"),
            ("DELETE", "/pods/"),
            ("POST", "/eviction"),
            ("PUT", "/status"),
            ("GET", "/nodes"),
            ("GET", "/pods"),
        ];
        let (method, path) = *world.random.pick(&paths)?;
        let code = *world.random.pick(&[403, 422, 500, 409, 429, 503])?;
        let until = Self::for_a_while(world, 90);
        self.refusals.push(Refusal { method, path, code, until });
        Some(format!("{method} {path} is refused with {code}"))
    }

    fn begin_drain(&mut self, world: &mut World, _: &mut Rules) -> Option<String> {
        let open: Vec<String> =
            world.nodes.iter().filter(|(_, n)| n.up && !n.cordoned).map(|(n, _)| n.clone()).collect();
        if open.len() < 3 || world.drains.len() > 1 {
            return None;
        }
        let name = world.random.pick(&open)?.clone();
        world.nodes.get_mut(&name)?.cordoned = true;
        world.drains.insert(name.clone());
        Some(format!("node {name} is drained"))
    }

    /// Evictions are asked for until the nodes are empty or the drains are given up. A pod whose claim is being
    /// deleted is left: who evicts it destroys its disk.
    fn drain(&mut self, world: &mut World, rules: &mut Rules) -> Vec<String> {
        let mut said = Vec::new();
        for node in world.drains.clone() {
            let pods = world.server.under(PODS);
            for (path, pod) in pods.into_iter().filter(|(_, p)| p["spec"]["nodeName"] == node.as_str()) {
                let claim = path.replace("pods/", "persistentvolumeclaims/data-");
                let goes =
                    world.server.get(&claim).is_some_and(|c| !c["metadata"]["deletionTimestamp"].is_null());
                if goes || !pod["metadata"]["deletionTimestamp"].is_null() {
                    continue;
                }
                let before = rules.before(world);
                if world.server.evict(&path, &Value::Null).is_ok() {
                    rules.note(world);
                    rules.drained(world, &before, &path);
                    said.push(format!("{path} is evicted by a drain"));
                }
            }
            if world.random.chance(30) {
                world.drains.remove(&node);
                if let Some(node) = world.nodes.get_mut(&node) {
                    node.cordoned = false;
                }
            }
        }
        said
    }

    /// Everything that can be mended is; what people want is something that can be had.
    pub fn make_peace(&mut self, world: &mut World) -> Vec<String> {
        let mut said = self.pending(world, true);
        world.drains.clear();
        world.nodes.values_mut().for_each(|n| n.cordoned = false);
        for faults in [&mut world.members.cut, &mut world.members.hung, &mut world.members.unheard] {
            faults.clear();
        }
        world.members.disks.values_mut().for_each(|d| d.full = false);
        let spec = world.spec().clone();
        let (replicas, going) = (spec["replicas"].as_u64().unwrap_or(3), going(world));
        let stays_asleep = replicas == 0 && going.is_empty() && world.random.chance(300);
        let small = replicas < 3 && !going.is_empty();
        let wanted = if (replicas == 0 && !stays_asleep) || small { 3 } else { replicas };
        let mut patch = json!({ "paused": false, "replicas": wanted });
        if spec["image"] == "sidecar:bad" {
            patch["image"] = "sidecar:9".into();
        }
        let template_spec = &spec["template"]["spec"];
        if template_spec["hostNetwork"] == true || template_spec["containers"][0]["image"] == "app:crash" {
            patch["template"] = json!({ "spec": { "hostNetwork": null, "containers": [{ "name": "app", "image": "app:9" }] } });
        }
        world.server.edit(CLUSTER, &json!({ "spec": patch }));
        said.push(format!("peace: {patch}"));
        said
    }

    /// A person does what status asks for: declares those lost whose disks are gone, where nobody else may.
    pub fn help(&mut self, world: &mut World, rules: &mut Rules) -> Option<String> {
        let Some(log) = world.log().and_then(|id| world.members.logs.get(&id)) else {
            return give_up_unformed(world);
        };
        let manual = world.spec()["storage"]["replaceLost"]["policy"] == "Manual";
        let lost = log.config().members.iter().map(|m| m.member).find(|m| !world.members.is_whole(*m))?;
        if !manual {
            return None;
        }
        rules.declared.insert(lost);
        let annotation = json!({ "synod.dev/replace": lost.to_string() });
        world.server.edit(CLUSTER, &json!({ "metadata": { "annotations": annotation } }));
        Some(format!("a person declares {lost} lost"))
    }
}

/// Before a log is formed nobody may give up a volume but a person: those of pods that find no node.
fn give_up_unformed(world: &mut World) -> Option<String> {
    let pods = world.server.under(PODS);
    let stuck = pods.into_iter().find(|(_, p)| p["status"]["conditions"][0]["reason"] == "Unschedulable");
    let (pod, _) = stuck?;
    let _ = world.server.delete(&pod.replace("pods/", "persistentvolumeclaims/data-"), &Value::Null);
    Some(format!("a person gives up the volume of {pod}"))
}

/// Members on these volumes.
fn members_on(world: &World, volumes: &[String]) -> Vec<MemberId> {
    volumes.iter().filter_map(|v| world.members.disks.get(v)).map(|d| d.member).collect()
}

/// Members whose disks go with their pods, or were declared lost.
fn going(world: &World) -> BTreeSet<MemberId> {
    let claims = world.server.under(CLAIMS);
    let going = claims.iter().filter(|(_, c)| !c["metadata"]["deletionTimestamp"].is_null());
    let volumes = going.filter_map(|(_, c)| c["spec"]["volumeName"].as_str().map(str::to_owned));
    let mut members: BTreeSet<MemberId> =
        members_on(world, &volumes.collect::<Vec<_>>()).into_iter().collect();
    let declared = world.server.get(CLUSTER).map(|c| &c["metadata"]["annotations"]["synod.dev/replace"]);
    members.extend(declared.and_then(Value::as_str).and_then(|m| m.parse::<MemberId>().ok()));
    members
}

/// Makes the PaxosCluster.
pub fn make_cluster(world: &mut World, mut spec: Value) {
    if let Some(fields) = spec.as_object_mut() {
        fields.retain(|_, v| !v.is_null());
    }
    let object = json!({
        "apiVersion": "synod.dev/v1alpha1", "kind": "PaxosCluster",
        "metadata": { "name": "demo", "namespace": "ns" }, "spec": spec,
    });
    world.server.make(CLUSTER, object);
}
