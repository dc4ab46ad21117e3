//! One seed: trouble for some minutes, then peace, in which the world must become as the spec says.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use synod_operator::members::{Ask, MemberError};
use synod_operator::served::refusal;
use synod_sim::random::Random;

use crate::api::{CLUSTER, Objects, Request, Server};
use crate::director::{self, Director, Profile};
use crate::members::majority;
use crate::operator::{Call, Clock, Operator, Seen, Turn};
use crate::rules::{Rules, Violation, is_available, is_ready};
use crate::trace::Trace;
use crate::world::World;

/// How long peace may last until everything is as the spec says, in seconds.
const PEACE: i64 = 3_600;
/// How long everything must then stay as it is, in seconds.
const REST: i64 = 45;
/// Caches that are kept, one a second.
const CACHES: usize = 12;

/// What a seed came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The broken rule, if one was.
    pub violation: Option<Violation>,
    /// The trace's hash.
    pub hash: u64,
    /// Calls of the operators.
    pub calls: u64,
    /// Reconciles.
    pub looks: u64,
    /// Simulated seconds.
    pub seconds: i64,
    /// Whether a quorum of disks was destroyed by the faults.
    pub destroyed: bool,
    /// The kinds of steps, faults and refusals that were met.
    pub lines: Vec<String>,
}

struct Run {
    world: World,
    rules: Rules,
    director: Director,
    operators: Vec<Operator>,
    clock: Arc<Mutex<Clock>>,
    caches: VecDeque<(i64, Objects)>,
    trace: Trace,
    chaos: bool,
    calls: u64,
    looks: u64,
    next_tick: i64,
}

/// Runs a seed; with `keep`, its trace is kept to be read.
pub fn run(seed: u64, keep: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    match runtime {
        Ok(runtime) => runtime.block_on(live(seed, keep)),
        Err(error) => unreachable!("a runtime of one thread needs nothing: {error}"),
    }
}

async fn live(seed: u64, keep: bool) -> Outcome {
    let mut random = Random::new(seed);
    let (manners, profile) = (director::manners(&mut random), Profile::of(&mut random));
    let nodes = 4 + random.below(6);
    let spec = director::first_spec(&mut random);
    let (force, retirement, catch_up) = (random.below(4_000), random.below(8_000), random.below(12_000));
    let mut world = World::new(random, manners, nodes);
    let millis = |n: u64| i64::try_from(n).unwrap_or(0);
    world.members.takes_force = millis(force);
    world.members.takes_retirement = millis(retirement);
    world.members.takes_catch_up = millis(catch_up);
    let clock = Arc::new(Mutex::new(Clock { now: world.now, ids: 0 }));
    let mut trace = Trace::new(keep, world.now);
    trace.line(world.now, || format!("seed {seed}: {profile:?} {manners:?} {spec}"));
    director::make_cluster(&mut world, spec);
    let start = world.now;
    let mut run = Run {
        operators: (0..profile.operators).map(|_| Operator::new(&clock, &world.server, start)).collect(),
        rules: Rules::since(start),
        director: Director::new(profile),
        caches: VecDeque::new(),
        chaos: true,
        calls: 0,
        looks: 0,
        next_tick: start,
        world,
        clock,
        trace,
    };
    run.live_until(start + profile.seconds * 1_000, false).await;
    run.chaos = false;
    let mut destroyed = false;
    if run.rules.broken.is_none() {
        destroyed = run.peace().await;
    }
    Outcome {
        seed,
        violation: run.rules.broken.clone(),
        hash: run.trace.digest(),
        calls: run.calls,
        looks: run.looks,
        seconds: (run.world.now - start) / 1_000,
        destroyed,
        lines: run.trace.into_lines(),
    }
}

impl Run {
    /// Goes on until then, or until a rule is broken; with `whole`, until everything is as the spec says.
    async fn live_until(&mut self, end: i64, whole: bool) {
        while self.world.now < end && self.rules.broken.is_none() {
            if whole && self.is_whole() {
                return;
            }
            self.tick_if_due();
            let now = self.world.now;
            let ready: Vec<usize> = (0..self.operators.len())
                .filter(|i| {
                    let o = &self.operators[*i];
                    o.still_until <= now && (o.is_busy() || o.due.is_some_and(|due| due <= now))
                })
                .collect();
            let Some(i) = self.world.random.pick(&ready).copied() else {
                let soon = self.operators.iter().map(|o| match o.is_busy() {
                    true => o.still_until,
                    false => o.due.map_or(i64::MAX, |due| due.max(o.still_until)),
                });
                let next = soon.min().unwrap_or(i64::MAX).min(self.next_tick).max(now + 1);
                self.at(next);
                continue;
            };
            self.step(i).await;
        }
    }

    fn at(&mut self, now: i64) {
        self.world.now = now;
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).now = now;
    }

    fn tick_if_due(&mut self) {
        while self.next_tick <= self.world.now && self.rules.broken.is_none() {
            self.next_tick += 1_000;
            self.world.tick();
            self.rules.note(&self.world);
            if self.chaos {
                let said = self.director.tick(&mut self.world, &mut self.rules);
                self.say(said);
                self.rules.note(&self.world);
                self.hurt_watches();
            }
            if self.director.refusals.iter().any(|r| r.until < i64::MAX) {
                self.rules.free_since = self.world.now;
            }
            let now = self.world.now;
            self.caches.push_back((now, self.world.server.snapshot()));
            if self.caches.len() > CACHES {
                self.caches.pop_front();
            }
            for operator in &mut self.operators {
                operator.listen(&self.world.server, now);
                if operator.deaf_until.is_some() || operator.lag > 0 {
                    self.rules.free_since = now;
                }
            }
        }
    }

    fn say(&mut self, said: Vec<String>) {
        for line in said {
            self.trace.step(self.world.now, &line);
            self.trace.line(self.world.now, || format!("     {line}"));
        }
    }

    fn hurt_watches(&mut self) {
        if !self.director.profile.watches {
            return;
        }
        let (now, server) = (self.world.now, &self.world.server);
        for operator in &mut self.operators {
            match self.world.random.below(200) {
                0 => {
                    operator.deaf_until =
                        Some(now + 1_000 * i64::try_from(self.world.random.below(60)).unwrap_or(0))
                }
                1 => operator.lag = i64::try_from(self.world.random.below(6)).unwrap_or(0),
                2 | 3 => operator.replay(server, usize::try_from(self.world.random.below(20)).unwrap_or(0)),
                _ => {}
            }
        }
    }

    /// One operator goes on by one call, or begins or ends a reconcile.
    async fn step(&mut self, i: usize) {
        let now = self.world.now;
        if !self.operators[i].is_busy() {
            let mut seen = Seen { since: now, stale: None };
            if self.chaos && self.world.random.chance(self.director.profile.stale) {
                let caches: Vec<_> = self.caches.iter().cloned().collect();
                if let Some((since, objects)) = self.world.random.pick(&caches).cloned() {
                    seen = Seen { since, stale: Some(objects) };
                    self.rules.free_since = now;
                }
            }
            self.looks += 1;
            self.operators[i].begin(seen);
        }
        match self.operators[i].go_on().await {
            Turn::Calls(call) => self.call(i, call),
            Turn::Ends(pause, why) => {
                if let Some(why) = why {
                    self.rules.free_since = now;
                    self.trace.line(now, || format!("  {i}  fails: {why}"));
                }
                let Some(pause) = pause else { return };
                let jitter = 750 + i64::try_from(self.world.random.below(500)).unwrap_or(0);
                let pause = i64::try_from(pause.as_millis()).unwrap_or(0) * jitter / 1_000;
                let due = now + pause.max(1);
                let operator = &mut self.operators[i];
                operator.due = Some(operator.due.map_or(due, |d| d.min(due)));
            }
        }
    }

    fn kill(&mut self, i: usize) {
        let now = self.world.now;
        let away = 1_000 + i64::try_from(self.world.random.below(10_000)).unwrap_or(0);
        self.operators[i] = Operator::new(&self.clock, &self.world.server, now + away);
        self.rules.free_since = now + away;
        self.trace.line(now, || format!("  {i}  is killed"));
    }

    fn call(&mut self, i: usize, call: Call) {
        self.calls += 1;
        let (p, chaos) = (self.director.profile, self.chaos);
        let odds = |random: &mut Random, of: u64| chaos && random.below(10_000) < of;
        if odds(&mut self.world.random, p.kills) {
            // Half of the time the call was on its way already.
            if self.world.random.chance(500) {
                self.perform(i, call, true);
            }
            return self.kill(i);
        }
        if odds(&mut self.world.random, p.sleeps) {
            let asleep = 1_000 + i64::try_from(self.world.random.below(90_000)).unwrap_or(0);
            self.trace.line(self.world.now, || format!("  {i}  stands still for {} s", asleep / 1000));
            self.rules.free_since = self.world.now + asleep;
            let until = self.world.now + asleep;
            self.operators[i].still_until = until;
            self.operators[i].give_back(call);
            return;
        }
        let lost = odds(&mut self.world.random, p.losses);
        self.perform(i, call, lost);
        let took = 1 + i64::try_from(self.world.random.below(8)).unwrap_or(0);
        self.at(self.world.now + took);
    }

    /// Carries a call out; with `lost`, its answer is.
    fn perform(&mut self, i: usize, call: Call, lost: bool) {
        let seen = self.operators[i].seen.clone();
        let seen = seen.unwrap_or(Seen { since: self.world.now, stale: None });
        if lost {
            self.rules.free_since = self.world.now;
        }
        match call {
            Call::Api(request, reply) => {
                let answer = self.api(i, &seen, &request);
                let answer = if lost { Err("the connection was cut".to_owned()) } else { Ok(answer) };
                let _ = reply.send(answer);
            }
            Call::Ask { pod, ip, ask, reply } => {
                let answer = self.ask(i, &seen, &pod, &ip, &ask);
                let answer = match lost {
                    true => Err(MemberError::Unreachable { address: pod, why: "cut".into() }),
                    false => answer,
                };
                let _ = reply.send(answer);
            }
        }
    }

    fn api(&mut self, i: usize, seen: &Seen, request: &Request) -> (u16, Vec<u8>) {
        let reads = Server::reads(request);
        let now = self.world.now;
        let refused = self
            .director
            .refusals
            .iter()
            .find(|r| r.method == request.method && request.path.contains(r.path) && r.until > now);
        let answer = match refused {
            Some(r) => Err((r.code, "refused by the simulation".to_owned())),
            None if reads => self.world.server.serve(request, seen.stale.as_ref()),
            None => {
                let before = self.rules.before(&self.world);
                let answer = self.world.server.serve(request, None);
                if answer.is_ok() {
                    self.rules.api(&self.world, seen, &before, request);
                    self.rules.note(&self.world);
                }
                answer
            }
        };
        let code = answer.as_ref().map_or_else(|(code, _)| *code, |_| 200);
        let events = request.path.contains("/events");
        if !events {
            self.trace.call(now, i, &request.method, &request.path, code);
        }
        if !reads && !events && !request.query.contains("dryRun") {
            self.trace.line(now, || {
                let body = shown(&request.path, &request.body);
                format!("  {i}  {} {} -> {code} {body}", request.method, short(&request.path))
            });
        }
        match answer {
            Ok(text) => (200, text),
            Err((code, message)) => (code, refusal(code, &message).to_string().into_bytes()),
        }
    }

    fn ask(
        &mut self,
        i: usize,
        seen: &Seen,
        pod: &str,
        ip: &str,
        ask: &Ask,
    ) -> Result<synod_operator::members::Answer, MemberError> {
        let now = self.world.now;
        if *ask == Ask::Status {
            return self.world.members.ask(now, pod, ip, ask);
        }
        let before = self.rules.before(&self.world);
        let answer = self.world.members.ask(now, pod, ip, ask);
        if answer.is_ok() {
            self.rules.ask(&self.world, seen, &before, ask);
            self.rules.note(&self.world);
        }
        let text = format!("{ask:?}");
        self.trace.call(now, i, "ASK", &format!("{pod} {text}"), u16::from(answer.is_ok()));
        self.trace.line(now, || {
            let why = answer.as_ref().err().map(ToString::to_string).unwrap_or_else(|| "done".into());
            format!("  {i}  asks {pod}: {} -> {why}", text.get(..110).unwrap_or(&text))
        });
        answer
    }

    fn status(&self) -> &Value {
        self.world.server.get(CLUSTER).map_or(&Value::Null, |c| &c["status"])
    }

    /// A condition's status, reason and message.
    fn condition(&self, kind: &str) -> (&str, &str, &str) {
        let conditions = self.status()["conditions"].as_array();
        let found = conditions.into_iter().flatten().find(|c| c["type"] == kind);
        let text = |key: &str| found.and_then(|c| c[key].as_str()).unwrap_or_default();
        (text("status"), text("reason"), text("message"))
    }

    fn sleeps(&self) -> bool {
        self.world.spec()["replicas"] == 0
    }

    /// Whether everything is as the spec says, and status says so.
    fn is_whole(&self) -> bool {
        let status = self.status();
        if !status["operation"].is_null() {
            return false;
        }
        if self.sleeps() {
            let pods = self.world.server.under(crate::api::PODS).is_empty();
            let told = self.condition("Ready").1 == "Hibernated" || self.director.profile.stubborn;
            return pods && told;
        }
        let generation = self.world.server.get(CLUSTER).map(|c| &c["metadata"]["generation"]);
        let ready = match self.director.profile.stubborn {
            true => "False",
            false => "True",
        };
        let refused = self.director.profile.stubborn == (self.condition("Stalled").1 == "Refused");
        refused
            && self.condition("Ready").0 == ready
            && self.condition("Available").0 == "True"
            && generation == Some(&status["observedGeneration"])
            && is_ready(&self.world).is_ok()
    }

    /// Whether the faults left no quorum of disks, or of founders.
    fn is_destroyed(&self) -> bool {
        let members = &self.world.members;
        if let Some(log) = self.world.log().and_then(|id| members.logs.get(&id)) {
            let voters = log.voters();
            return voters.iter().filter(|m| members.is_whole(**m)).count() < majority(voters.len());
        }
        let listed = self.status()["bootstrap"]["members"].as_array().cloned().unwrap_or_default();
        let ids = listed.iter().filter_map(|m| m["memberId"].as_str()?.parse().ok());
        let whole = ids.filter(|m| members.is_whole(*m)).count();
        !listed.is_empty() && listed.len() - whole >= majority(listed.len())
    }

    /// The faults end; whether they left nothing to go on from.
    async fn peace(&mut self) -> bool {
        let said = self.director.make_peace(&mut self.world);
        self.say(said);
        for operator in &mut self.operators {
            (operator.lag, operator.still_until) = (0, self.world.now.min(operator.still_until));
            operator.deaf_until = operator.deaf_until.map(|_| self.world.now);
        }
        let end = self.world.now + PEACE * 1_000;
        while self.world.now < end && self.rules.broken.is_none() && !self.is_destroyed() {
            self.live_until(end.min(self.world.now + 300_000), true).await;
            if self.is_whole() {
                break;
            }
            let help = self.director.help(&mut self.world, &mut self.rules);
            self.say(help.into_iter().collect());
        }
        if self.is_destroyed() {
            self.live_until(self.world.now + 120_000, false).await;
            let told = self.condition("Available").0 == "True" || self.condition("Ready").0 == "True";
            if self.rules.broken.is_none() && told && !is_available(&self.world) {
                self.fail("a destroyed quorum is told", "status says that it is available".into());
            }
            return true;
        }
        if self.rules.broken.is_none() && !self.is_whole() {
            let truth = is_ready(&self.world).err().unwrap_or_else(|| "it is as it should be".into());
            let (ready, reason, message) = self.condition("Ready");
            let operation = self.status()["operation"].to_string();
            let told = format!("{truth}; Ready={ready} {reason}: {message}; operation {operation}");
            self.fail("in peace the world becomes as the spec says", told);
            return false;
        }
        self.live_until(self.world.now + 10_000, false).await;
        let before = self.rules.writes;
        self.live_until(self.world.now + REST * 1_000, false).await;
        let writes = self.rules.writes - before;
        let most = 4 * self.operators.len() as u64;
        if self.rules.broken.is_none() && writes > most {
            self.fail("at rest nothing is written", format!("{writes} writes in {REST} s"));
        }
        if self.rules.broken.is_none() && !self.is_whole() {
            self.fail("what is whole stays whole", is_ready(&self.world).err().unwrap_or_default());
        }
        false
    }

    fn fail(&mut self, rule: &'static str, evidence: String) {
        self.rules.broken = Some(Violation { rule, evidence });
    }
}

fn short(path: &str) -> &str {
    path.split_once("/namespaces/ns/").map_or(path, |(_, rest)| rest)
}

/// What a write says, as far as it fits on a line.
fn shown(path: &str, body: &Value) -> String {
    if let Some(conditions) = body["status"]["conditions"].as_array().filter(|_| path.ends_with("/status")) {
        let each = conditions.iter().map(|c| {
            format!(
                "{}={} {}",
                c["type"].as_str().unwrap_or(""),
                c["status"].as_str().unwrap_or(""),
                c["reason"].as_str().unwrap_or("")
            )
        });
        let operation = &body["status"]["operation"];
        let waits = operation["waitingFor"].as_str().unwrap_or_default();
        return format!(
            "{} [{} {waits}]",
            each.collect::<Vec<_>>().join(", "),
            operation["type"].as_str().unwrap_or("-")
        );
    }
    if path.contains("/statefulsets/") {
        return format!("replicas {}", body["spec"]["replicas"]);
    }
    let text = body.to_string();
    text.chars().take(150).collect()
}
