//! What must hold whatever happens: judged at every call of an operator, by the truth, and by what the operator can
//! have known. What changed less than [`LAG`] before its reads is nobody's fault.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use synod_operator::members::Ask;
use synod_operator::names::{ANNOTATION_REPLACE, ClusterId, LABEL_RETIRED, MemberId};
use synod_operator::observed::MemberState;

use crate::api::{CLAIMS, CLUSTER, Objects, PODS, Request, SET, VOLUMES};
use crate::members::majority;
use crate::operator::Seen;
use crate::world::{World, ordinal, uid};

/// How long members and controllers may take to tell the truth, in milliseconds.
pub const LAG: i64 = 8_000;
/// How long an operator that nothing stands in the way of may take.
const PATIENCE: i64 = 60_000;

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub rule: &'static str,
    /// What shows it.
    pub evidence: String,
}

/// What is remembered of the past, to judge by.
#[derive(Debug, Default)]
pub struct Rules {
    /// The first broken rule.
    pub broken: Option<Violation>,
    unhealthy: BTreeMap<MemberId, i64>,
    true_at: BTreeMap<&'static str, i64>,
    /// Since when nothing stood in an operator's way.
    pub free_since: i64,
    /// Values of the spec, and since when.
    wanted: Vec<(i64, Value)>,
    /// Members that people declared lost.
    pub declared: BTreeSet<MemberId>,
    /// The revision that an operator wrote last, by its own build.
    revision: Option<String>,
    /// When the set of voters changed last.
    pub voters_changed: i64,
    voters: BTreeSet<MemberId>,
    /// Logs that were given up with their PaxosCluster.
    pub writes: u64,
}

/// What the world was like before a call.
#[derive(Debug)]
pub struct Before {
    log: Option<ClusterId>,
    voters: BTreeSet<MemberId>,
    healthy: BTreeSet<MemberId>,
    objects: Objects,
    leader: Option<MemberId>,
    configured: BTreeSet<MemberId>,
}

impl Rules {
    /// Nothing has happened yet.
    pub fn since(start: i64) -> Rules {
        Rules { free_since: start, ..Rules::default() }
    }

    fn fail(&mut self, rule: &'static str, evidence: impl Into<String>) {
        if self.broken.is_none() {
            self.broken = Some(Violation { rule, evidence: evidence.into() });
        }
    }

    /// Notes how things are: after every second and every call.
    pub fn note(&mut self, world: &World) {
        if let Some(why) = world.members.broken.first().cloned() {
            self.fail("what was chosen stays", why);
        }
        let log = world.log().and_then(|id| world.members.logs.get(&id));
        let voters = log.map(|l| l.voters()).unwrap_or_default();
        if voters != self.voters {
            (self.voters, self.voters_changed) = (voters.clone(), world.now);
        }
        self.unhealthy.retain(|m, _| voters.contains(m));
        for member in voters {
            if world.is_healthy(member) {
                self.unhealthy.remove(&member);
            } else {
                self.unhealthy.entry(member).or_insert(world.now);
            }
        }
        let now = world.now;
        let spec = world.spec();
        if self.wanted.last().is_none_or(|(_, known)| known != spec) {
            self.wanted.push((now, spec.clone()));
            // What was true of the spec before says nothing of this one.
            self.true_at.remove("Ready");
        }
        for (what, holds) in [("Ready", is_ready(world).is_ok()), ("Available", is_available(world))] {
            if holds {
                self.true_at.insert(what, now);
            }
        }
        self.one_log(world);
    }

    fn one_log(&mut self, world: &World) {
        if world.members.logs.len() < 2 {
            return;
        }
        let alive = |id: &ClusterId| {
            let log = &world.members.logs[id];
            let votes = |m: &MemberId| log.voters().contains(m);
            world.members.disks.values().any(|d| d.log() == Some(*id) && votes(&d.member) && !d.fenced)
        };
        let alive: Vec<_> = world.members.logs.keys().filter(|id| alive(id)).collect();
        if alive.len() > 1 {
            self.fail("one PaxosCluster is one log", format!("two logs were formed: {alive:?}"));
        }
    }

    /// Every spec that was asked for since then.
    fn specs_since(&self, since: i64) -> impl Iterator<Item = &Value> {
        let at = self.wanted.iter().rposition(|(from, _)| *from <= since).unwrap_or(0);
        self.wanted[at..].iter().map(|(_, spec)| spec)
    }

    fn replicas_since(&self, since: i64) -> (u64, u64) {
        let all = self.specs_since(since).map(|s| s["replicas"].as_u64().unwrap_or(0));
        let all: Vec<u64> = all.collect();
        (all.iter().copied().min().unwrap_or(0), all.iter().copied().max().unwrap_or(0))
    }

    fn known_down(&self, member: MemberId, seen: &Seen) -> bool {
        self.unhealthy.get(&member).is_some_and(|since| *since < seen.since - LAG)
    }

    /// How things are before a call.
    pub fn before(&self, world: &World) -> Before {
        let id = world.log();
        let log = id.and_then(|id| world.members.logs.get(&id));
        let voters = log.map(|l| l.voters()).unwrap_or_default();
        Before {
            healthy: voters.iter().copied().filter(|m| world.is_healthy(*m)).collect(),
            leader: id.and_then(|id| world.members.leading(id)).map(|(_, p)| p.member),
            configured: log
                .map(|l| l.config().members.iter().map(|m| m.member).collect())
                .unwrap_or_default(),
            objects: world.server.snapshot(),
            log: id,
            voters,
        }
    }

    /// Judges a call to the API server that was carried out.
    pub fn api(&mut self, world: &World, seen: &Seen, before: &Before, request: &Request) {
        if request.method == "GET" || request.query.contains("dryRun") || request.path.contains("/events") {
            return;
        }
        self.writes += 1;
        let path = request.path.as_str();
        if path == CLUSTER {
            self.fail("the operator writes no spec", request.method.clone());
        }
        if let Some(object) = path.strip_suffix("/status").filter(|p| *p == CLUSTER) {
            self.status(
                world,
                seen,
                &world.server.get(object).map(|c| c["status"].clone()).unwrap_or_default(),
            );
            return;
        }
        let evicts = path.ends_with("/eviction");
        let deletes = request.method == "DELETE";
        let object = path.trim_end_matches("/eviction");
        let paused = self.specs_since(seen.since).all(|s| s["paused"] == true);
        let restrains = evicts || deletes || path == SET || path.starts_with(PODS);
        if paused && restrains {
            self.fail("a paused cluster is left alone", format!("{} {path}", request.method));
        }
        let body = &request.body;
        let options = if evicts { &body["deleteOptions"] } else { body };
        let exact = options["preconditions"]["uid"].is_string();
        if (evicts || deletes) && (path.starts_with(PODS) || path.starts_with(CLAIMS)) && !exact {
            self.fail("deletes and evictions carry the UID", format!("{} {path}", request.method));
        }
        if path == SET && request.method == "PATCH" {
            self.set_written(world, seen, before, body);
        }
        if deletes && object.starts_with(CLAIMS) {
            self.claim_deleted(world, seen, before, object);
        }
        if (deletes || evicts) && object.starts_with(PODS) {
            let force = options["gracePeriodSeconds"] == 0;
            self.pod_deleted(world, seen, before, object, evicts, force);
        }
        self.quorum(world, seen, before, &format!("{} {path}", request.method));
    }

    /// A quorum that was there, as far as the operator can know, is there after what it did.
    fn quorum(&mut self, world: &World, seen: &Seen, before: &Before, what: &str) {
        let Some(log) = before.log.and_then(|id| world.members.logs.get(&id)) else { return };
        let voters = log.voters();
        let had = before.voters.iter().filter(|m| !self.known_down(**m, seen)).count();
        let taken: BTreeSet<MemberId> =
            before.healthy.iter().copied().filter(|m| voters.contains(m) && !world.is_healthy(*m)).collect();
        if (taken.is_empty() && voters == before.voters) || had < majority(before.voters.len()) {
            return;
        }
        let left = voters.iter().filter(|m| !self.known_down(**m, seen) && !taken.contains(m)).count();
        let hibernates = self.specs_since(seen.since).any(|s| s["replicas"] == 0);
        let restarts_few = voters.len() <= 2 && voters == before.voters;
        if left < majority(voters.len()) && !hibernates && !restarts_few {
            let evidence = format!("{what}: {left} of {} voters are left", voters.len());
            self.fail("the operator takes no quorum", evidence);
        }
        let others = voters.iter().filter(|m| !taken.contains(m) && self.known_down(**m, seen));
        let second = !taken.is_empty() && others.count() > 0 && voters == before.voters;
        if second && !hibernates && !restarts_few {
            self.fail("one disruption at a time", format!("{what}: {taken:?} while others are down"));
        }
    }

    fn set_written(&mut self, world: &World, seen: &Seen, before: &Before, body: &Value) {
        let Some(old) = before.objects.get(SET) else {
            self.revision = world.server.object(SET).map(|s| s.revision().to_owned());
            return;
        };
        let generation = |set: &Value| set["metadata"]["generation"].clone();
        let changed = world.server.get(SET).map(generation) != Some(generation(old));
        if !body["metadata"]["resourceVersion"].is_string() && changed {
            self.fail("the set is written by its version", "no resourceVersion");
        }
        if body["spec"]["template"].is_object() {
            self.revision = world.server.object(SET).map(|s| s.revision().to_owned());
        }
        let size = world.server.get(SET).and_then(|s| s["spec"]["replicas"].as_u64()).unwrap_or(0);
        let hibernates = self.specs_since(seen.since).any(|s| s["replicas"] == 0);
        let going = before.configured.iter().find(|m| {
            let home = world.members.process_of(**m).filter(|(_, p)| ordinal(&p.pod) >= size);
            home.is_some_and(|(_, p)| goes(&before.objects, &format!("{CLAIMS}/data-{}", p.pod), seen))
        });
        if let Some(member) = going {
            self.fail(
                "no pod goes that would take needed data along",
                format!("{member} at a size of {size}"),
            );
        }
        let lowered = old["spec"]["replicas"].as_u64().unwrap_or(0) > size;
        if !lowered || hibernates {
            return;
        }
        let homeless = before.configured.iter().filter(|m| {
            let home = world.members.process_of(**m).map(|(_, p)| ordinal(&p.pod));
            home.is_some_and(|home| home >= size)
        });
        if let Some(member) = homeless.copied().next() {
            self.fail("a configured member keeps its pod", format!("{member} at a size of {size}"));
        }
    }

    fn claim_deleted(&mut self, world: &World, seen: &Seen, before: &Before, path: &str) {
        let Some(claim) = before.objects.get(path) else { return };
        let Some(disk) = claim["spec"]["volumeName"].as_str().and_then(|v| world.members.disks.get(v)) else {
            return;
        };
        let member = disk.member;
        for log in world.members.logs.values() {
            let votes = log.config().get(member).is_some();
            let lingers = log.removed.iter().any(|r| r.member == member && !r.retired);
            if votes || lingers {
                let evidence = format!("{path}: member {member}, configured {votes}, not retired {lingers}");
                self.fail("no claim goes whose data are needed", evidence);
            }
        }
        let (_, most) = self.replicas_since(seen.since);
        let retains = self.specs_since(seen.since).all(|s| s["storage"]["whenScaled"] == "Retain");
        if retains && ordinal(path) >= most && !self.declared.contains(&member) && !disk.fenced {
            self.fail("whenScaled Retain keeps the claim", path.to_owned());
        }
    }

    fn pod_deleted(
        &mut self,
        world: &World,
        seen: &Seen,
        before: &Before,
        path: &str,
        evicts: bool,
        force: bool,
    ) {
        let Some(pod) = before.objects.get(path) else { return };
        let claim = path.replace("pods/", "persistentvolumeclaims/data-");
        let volume = before.objects.get(claim.as_str()).and_then(|c| c["spec"]["volumeName"].as_str());
        let member = volume.and_then(|v| world.members.disks.get(v)).map(|d| d.member);
        let node = pod["spec"]["nodeName"].as_str().and_then(|n| world.nodes.get(n));
        let configured = member.is_some_and(|m| before.configured.contains(&m));
        // A node that nobody lists any more, for as long as a list of nodes is used again.
        let there = node.is_some_and(|n| n.listed && n.since < seen.since - LAG - 10_000);
        if force && configured && there {
            self.fail("removal is the fence", format!("{path} is force-deleted, its node is there"));
        }
        if configured && goes(&before.objects, &claim, seen) {
            self.fail("no pod goes that would take needed data along", path.to_owned());
        }
        let Some(member) = member.filter(|m| before.healthy.contains(m)) else { return };
        let ready = crate::api::is_ready(pod) && since(pod) < seen.since - LAG;
        if !evicts && ready && configured {
            self.fail("a healthy voter is restarted by eviction only", path.to_owned());
        }
        if before.leader == Some(member) && before.voters.len() > 1 && evicts {
            self.fail("the leader hands over before it restarts", path.to_owned());
        }
        let revision = pod["metadata"]["labels"]["controller-revision-hash"].as_str();
        let grows = before
            .objects
            .get(claim.as_str())
            .is_some_and(|c| c["status"]["conditions"][0]["status"] == "True");
        let set = before.objects.get(SET).map(|s| s.revision());
        let own = revision.is_some() && revision == self.revision.as_deref();
        if evicts && own && !grows && (set == revision || seen.stale.is_none()) {
            let restarted = before.objects.get(SET).is_some_and(|s| {
                s["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"]
                    .is_string()
            });
            if !restarted {
                self.fail("a pod that is as it should be is not restarted", path.to_owned());
            }
        }
    }

    /// Judges a call to a member that was carried out.
    pub fn ask(&mut self, world: &World, seen: &Seen, before: &Before, ask: &Ask) {
        if *ask == Ask::Status {
            return;
        }
        self.writes += 1;
        if self.specs_since(seen.since).all(|s| s["paused"] == true) {
            self.fail("a paused cluster is left alone", format!("{ask:?}"));
        }
        match ask {
            Ask::Remove(change) => {
                if before.leader == Some(change.member) {
                    self.fail("a leader hands over before it leaves", format!("{}", change.member));
                }
                if before.configured.contains(&change.member) {
                    self.given_up(world, seen, before, change.member);
                }
            }
            Ask::Renew(member) if before.configured.contains(member) => {
                self.fail("a configured disk is not renewed", format!("{member}"));
            }
            _ => {}
        }
        let what = format!("{ask:?}");
        self.quorum(world, seen, before, what.get(..60).unwrap_or(&what));
    }

    /// Whether a member that left had to: its ordinal goes, its disk is gone, or a person said so.
    fn given_up(&mut self, world: &World, seen: &Seen, before: &Before, member: MemberId) {
        let (least, _) = self.replicas_since(seen.since);
        let members = &world.members;
        let volume = members.disks.iter().find(|(_, d)| d.member == member).map(|(v, _)| v.clone());
        let name = before
            .log
            .and_then(|id| members.logs.get(&id))
            .and_then(|l| l.configs.iter().rev().find_map(|c| c.config.get(member)))
            .map_or(0, |m| ordinal(&m.name));
        let claims = before.objects.iter().filter(|(p, _)| p.starts_with(CLAIMS));
        let claim = claims
            .filter(|(_, c)| volume.is_some() && c["spec"]["volumeName"].as_str() == volume.as_deref())
            .map(|(p, c)| (ordinal(p), !c["metadata"]["deletionTimestamp"].is_null()))
            .next();
        let home = claim.map_or(name, |(home, _)| home);
        let leaves = home >= least || name >= least;
        let whole = members.is_whole(member);
        let going = claim.is_some_and(|(_, going)| going);
        let node = volume.as_ref().and_then(|v| world.server.get(&format!("{VOLUMES}/{v}")));
        let node =
            node.and_then(|v| v["metadata"]["annotations"]["node"].as_str()).and_then(|n| world.nodes.get(n));
        let after = replace_after(world.spec());
        let lost = node.is_some_and(|n| !n.listed && world.now - n.since >= after - 1_000);
        if !leaves && whole && !going && !lost && !self.declared.contains(&member) {
            self.fail("a member with a whole disk stays", format!("{member} at {home} was taken out"));
        }
    }

    /// Ready and Available are told only where they were true not long before the operator read.
    fn status(&mut self, world: &World, seen: &Seen, status: &Value) {
        let generation = world.server.get(CLUSTER).map(|c| c["metadata"]["generation"].clone());
        let current = generation.as_ref() == Some(&status["observedGeneration"]);
        for kind in ["Ready", "Available"] {
            let conditions = status["conditions"].as_array().into_iter().flatten();
            let told = conditions.filter(|c| c["type"] == kind && c["status"] == "True").count() > 0;
            let last = self.true_at.get(kind).copied().unwrap_or(0);
            if told && current && last < seen.since - LAG {
                let why = match kind {
                    "Ready" => is_ready(world).err().unwrap_or_default(),
                    _ => "nobody leads with a quorum".to_owned(),
                };
                let ago = (world.now - last) / 1000;
                let rule = if kind == "Ready" { "Ready is true" } else { "Available is true" };
                self.fail(
                    rule,
                    format!("not for {}: {why}", if last == 0 { "ever".into() } else { format!("{ago} s") }),
                );
            }
        }
    }

    /// Somebody's eviction was let through: the budget must have kept a quorum of those that take part.
    pub fn drained(&mut self, world: &World, before: &Before, path: &str) {
        let spec = world.spec();
        let voters = before.voters.len();
        let exempt = spec["disruption"]["budget"] == "None" || spec["paused"] == true || voters < 3;
        let left = before.voters.iter().filter(|m| world.is_healthy(**m)).count();
        let had = before.healthy.len() >= majority(voters);
        let since = world.now - PATIENCE;
        let long = self.unhealthy.values().all(|at| *at < since || *at == world.now);
        let free = self.free_since < since && self.voters_changed < since;
        let wants = self.wanted.last().is_none_or(|(at, _)| *at < since);
        if !exempt && had && left < majority(voters) && long && free && wants {
            let evidence = format!("{path} was drained, {left} of {voters} voters are left");
            self.fail("a drain leaves a quorum", evidence);
        }
    }

    /// Somebody is about to delete the PaxosCluster: claims that are to be kept must be nobody's.
    pub fn deletes_cluster(&mut self, world: &World) {
        let Some(cluster) = world.server.get(CLUSTER) else { return };
        let since = world.now - PATIENCE;
        let kept = self.specs_since(since).all(|s| s["storage"]["whenDeleted"] != "Delete");
        let owned = world.server.under(CLAIMS).into_iter().filter(|(_, c)| {
            let owners = c["metadata"]["ownerReferences"].as_array();
            owners.into_iter().flatten().any(|o| o["uid"] == cluster["metadata"]["uid"])
        });
        if let (Some((path, _)), true) = (owned.into_iter().next(), kept && self.free_since < since) {
            self.fail("whenDeleted Retain keeps the claims", &*path);
        }
    }
}

/// Whether a claim was being deleted before the operator read it.
fn goes(objects: &Objects, claim: &str, seen: &Seen) -> bool {
    let at = objects.get(claim).map(|c| c["metadata"]["deletionTimestamp"].clone()).unwrap_or_default();
    let at = at.as_str().and_then(|at| at.parse::<k8s_openapi::jiff::Timestamp>().ok());
    at.is_some_and(|at| at.as_millisecond() < seen.since - 1_000)
}

fn since(pod: &Value) -> i64 {
    let at = pod["status"]["conditions"][0]["lastTransitionTime"].as_str().unwrap_or_default();
    at.parse::<k8s_openapi::jiff::Timestamp>().map_or(0, |t| t.as_millisecond())
}

/// `replaceLost.after` in milliseconds, as the runs write it: in seconds.
fn replace_after(spec: &Value) -> i64 {
    let text = spec["storage"]["replaceLost"]["after"].as_str().unwrap_or("300s");
    text.trim_end_matches('s').parse::<i64>().map_or(300_000, |s| s * 1000)
}

/// Whether appends are answered.
pub fn is_available(world: &World) -> bool {
    let leading = world.log().and_then(|id| world.members.leading(id));
    leading.is_some_and(|(_, p)| world.members.disks.get(&p.volume).is_some_and(|d| !d.full))
}

/// Whether everything is as the spec says; if not, why.
///
/// # Errors
/// The first thing that is not.
pub fn is_ready(world: &World) -> Result<(), String> {
    let spec = world.spec();
    let wanted = spec["replicas"].as_u64().unwrap_or(0);
    let most = spec["maxVoters"].as_u64().unwrap_or(7);
    let id = world.log().ok_or("no log was formed")?;
    let log = &world.members.logs[&id];
    world.members.leading(id).ok_or("nobody leads")?;
    let (members, voters) = (log.config().members.len() as u64, log.voters());
    if members != wanted || voters.len() as u64 != wanted.min(most) {
        return Err(format!("{members} members, {} voters, {wanted} wanted", voters.len()));
    }
    if let Some(member) = log.config().members.iter().find(|m| !world.is_healthy(m.member)) {
        let state = world.members.process_of(member.member).map(|(_, p)| p.state);
        return Err(format!("{} ({}) does not take part: {state:?}", member.member, member.name));
    }
    if log.settings.values.leases != (spec["reads"]["leases"] == true) {
        return Err("the log has other settings".into());
    }
    let declared =
        &world.server.get(CLUSTER).ok_or("no PaxosCluster")?["metadata"]["annotations"][ANNOTATION_REPLACE];
    let declared = declared.as_str().and_then(|m| m.parse::<MemberId>().ok());
    if let Some(member) = declared.filter(|m| log.config().get(*m).is_some()) {
        return Err(format!("{member} was declared lost"));
    }
    let set = world.server.object(SET).ok_or("no set")?;
    if set["spec"]["replicas"].as_u64() != Some(wanted) {
        return Err("the set has another size".into());
    }
    let revision = set.revision();
    let size = &spec["storage"]["size"];
    for ordinal in 0..wanted {
        let pod = world.server.get(&format!("{PODS}/demo-{ordinal}")).ok_or("a pod is missing")?;
        let process = world.members.processes.get(&uid(pod));
        if process.is_none_or(|p| p.state != MemberState::Active) || !crate::api::is_ready(pod) {
            return Err(format!("demo-{ordinal} is not ready"));
        }
        if pod["metadata"]["labels"]["controller-revision-hash"] != revision {
            return Err(format!("demo-{ordinal} is of another revision"));
        }
        let image = spec["image"].as_str().unwrap_or("sidecar:1");
        if crate::world::sidecar_image(pod) != image {
            return Err(format!("demo-{ordinal} is not of image {image}"));
        }
        let wanted_app = &spec["template"]["spec"]["containers"][0]["image"];
        if wanted_app.is_string() && pod["spec"]["containers"][0]["image"] != *wanted_app {
            return Err(format!("demo-{ordinal} is not of the template"));
        }
        let claim = world.server.get(&format!("{CLAIMS}/data-demo-{ordinal}")).ok_or("a claim is missing")?;
        if claim["status"]["capacity"]["storage"] != *size {
            return Err(format!("the volume of demo-{ordinal} is not of size {size}"));
        }
        if !claim["metadata"]["deletionTimestamp"].is_null() {
            return Err(format!("the claim of demo-{ordinal} goes"));
        }
    }
    for (path, claim) in world.server.under(CLAIMS).into_iter().filter(|(p, _)| ordinal(p) >= wanted) {
        let disk = claim["spec"]["volumeName"].as_str().and_then(|v| world.members.disks.get(v));
        let goes = !claim["metadata"]["deletionTimestamp"].is_null();
        if !goes && disk.is_some_and(|d| d.confirmed) && claim["metadata"]["labels"][LABEL_RETIRED].is_null()
        {
            return Err(format!("{path} was left behind"));
        }
    }
    Ok(())
}
