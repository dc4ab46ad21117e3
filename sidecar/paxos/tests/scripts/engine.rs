//! Runs a script.
//!
//! | command | what it does |
//! |---|---|
//! | `start N [alpha=A] [leases=1] [retain=ENTRIES] [chunk=ROWS]` | N founders that have met; lines below it prepare disks: `1: promised 1.3; row 3 1.3 text; chosen 2` |
//! | `new N` | an empty disk, a process on it, connected to everyone |
//! | `campaign N` | lets N's election timeout pass, nobody else's |
//! | `pass MS [N..]` | lets time pass, with a tick where one is due (only at N..) |
//! | `beats COUNT [without=N]` | so many heartbeats, with everything delivered and durable |
//! | `deliver FILTER [once]` | delivers what now waits and matches: `1>2 Prepare`, `*>3`, `1>*` |
//! | `drop FILTER`, `copy FILTER` | loses it; puts a second copy behind it |
//! | `mail` | prints what waits |
//! | `persist N..` | their writes become durable |
//! | `settle [without=N] [quiet]` | everything is delivered and durable, until nothing waits |
//! | `crash N`, `restart N` | ends the process; starts it again on its disk |
//! | `keep N`, `restore N` | remembers N's disk; puts that copy back, of a member that is down |
//! | `damage N SLOT` | flips a bit in a stored row of a member that is down |
//! | `append N TEXT.. [expect=I]`, `read N`, `cancel N REQUEST` | a client's calls |
//! | `add-learner AT N`, `promote AT N`, `remove AT N` | membership; `again` repeats the last operation |
//! | `transfer AT [TO]`, `stop AT`, `join N` | an administrator's calls |
//! | `state N..`, `log N..` | prints where they stand; what they applied |
//!
//! `quiet` in front of a command hides what it prints.

use super::lab::{CLUSTER, Lab, accepted, ballot, m};
use super::show;
use std::collections::BTreeMap;
use std::time::Duration;
use synod_paxos::configuration::Change;
use synod_paxos::value::{Append, Call, Fields, Operation, Origin, Value};
use synod_paxos::{
    AdminCommand, Ballot, Consistency, DurableState, Incarnation, Incoming, Index, Input, RequestId, Slot,
};

struct Engine {
    lab: Lab,
    request: u64,
    operation: u8,
    kept: BTreeMap<u64, DurableState>,
}

/// The script with its traces written anew.
pub(crate) fn run(script: &str) -> String {
    let mut engine = Engine { lab: Lab::empty(), request: 0, operation: 0, kept: BTreeMap::new() };
    let mut text = String::new();
    let mut lines = script.lines().peekable();
    while let Some(line) = lines.next() {
        text.push_str(line);
        text.push('\n');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut commands: Vec<Vec<&str>> = vec![vec![line]];
        for line in lines.by_ref().take_while(|line| *line != "----") {
            text.push_str(line);
            text.push('\n');
            match (line.starts_with(' '), commands.last_mut()) {
                (true, Some(command)) => command.push(line.trim()),
                _ => commands.push(vec![line]),
            }
        }
        text.push_str("----\n");
        while lines.peek().is_some_and(|line| !line.is_empty()) {
            lines.next();
        }
        for command in commands {
            engine.command(&command);
        }
        for line in engine.lab.log.drain(..) {
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
    text
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word:?} is no number"))
}

fn parse_ballot(word: &str) -> Ballot {
    let (round, member) = word.split_once('.').expect("a ballot is ROUND.MEMBER");
    ballot(number(round), number(member))
}

/// Whom and what a command picks: `1>2 Prepare`.
fn filter(words: &[&str]) -> impl Fn(&Incoming) -> bool + use<> {
    let (from, to) = words.first().and_then(|w| w.split_once('>')).expect("a filter is FROM>TO [KIND]");
    let side = |word: &str| (word != "*").then(|| m(number(word)));
    let (from, to) = (side(from), side(to));
    let kind = words.get(1).filter(|word| **word != "once").map(|word| word.to_string());
    move |incoming| {
        from.is_none_or(|from| from == incoming.from)
            && to.is_none_or(|to| to == incoming.to)
            && kind.as_ref().is_none_or(|kind| *kind == show::kind(&incoming.message))
    }
}

impl Engine {
    fn command(&mut self, lines: &[&str]) {
        let mut words: Vec<&str> = lines[0].split_whitespace().collect();
        let quiet = words.first() == Some(&"quiet");
        if quiet {
            words.remove(0);
        }
        let option =
            |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('=').map(number));
        let plain: Vec<&str> = words.iter().copied().filter(|word| !word.contains('=')).collect();
        let (verb, rest) = plain.split_first().expect("a command has a verb");
        let shown = self.lab.log.len();
        match *verb {
            "start" => {
                let settings = |genesis: &mut synod_paxos::Genesis| {
                    genesis.alpha =
                        option("alpha").map_or(genesis.alpha, |a| u32::try_from(a).expect("small"));
                    genesis.settings.leases = option("leases") == Some(1);
                    genesis.settings.retention.entries = option("retain");
                };
                self.start(number(rest[0]), settings, &lines[1..]);
                self.lab.chunk_rows = option("chunk").map_or(usize::MAX, |rows| rows as usize);
            }
            "beats" => self.beats(number(rest[0]), option("without")),
            "append" => self.append(number(rest[0]), &rest[1..], option("expect")),
            "settle" => match option("without") {
                Some(n) => self.lab.settle_without(n),
                None => self.lab.settle(),
            },
            "deliver" | "drop" | "copy" | "mail" => self.network(verb, rest),
            "crash" | "restart" | "keep" | "restore" | "damage" | "new" => self.process(verb, rest),
            "add-learner" | "promote" | "remove" | "again" | "transfer" | "stop" | "join" => {
                self.admin(verb, rest);
            }
            "campaign" => self.lab.campaign(number(rest[0])),
            "pass" => self.pass(rest),
            "persist" => rest.iter().for_each(|n| self.lab.sync(number(n))),
            "read" => {
                let request = self.next_request();
                self.lab
                    .input(number(rest[0]), Input::Read { request, consistency: Consistency::Linearizable });
            }
            "cancel" => self.lab.input(number(rest[0]), Input::Cancel(RequestId(number(rest[1])))),
            "state" => rest.iter().for_each(|n| self.state(number(n))),
            "log" => rest.iter().for_each(|n| self.applied(number(n))),
            other => panic!("no such command: {other}"),
        }
        if quiet {
            self.lab.log.truncate(shown);
        }
    }

    fn next_request(&mut self) -> RequestId {
        self.request += 1;
        RequestId(self.request)
    }

    fn start(&mut self, members: u64, settings: impl Fn(&mut synod_paxos::Genesis), disks: &[&str]) {
        self.lab = Lab::new(members, |member, disk| {
            disk.genesis.iter_mut().for_each(&settings);
            let own = format!("{}:", member.0);
            for line in disks.iter().filter_map(|line| line.strip_prefix(&own)) {
                line.split(';').for_each(|fact| prepare(disk, fact.trim()));
            }
        });
    }

    fn beats(&mut self, count: u64, without: Option<u64>) {
        for _ in 0..count {
            self.lab.pass(Duration::from_millis(100));
            match without {
                Some(n) => self.lab.settle_without(n),
                None => self.lab.settle(),
            }
        }
    }

    fn append(&mut self, at: u64, texts: &[&str], expected: Option<u64>) {
        let request = self.next_request();
        let entries = texts.iter().map(|text| bytes::Bytes::from(text.to_string())).collect();
        let append = Append { expected_index: expected.map(Index), ..Append::plain(entries) };
        self.lab.input(at, Input::Call { request, operation: Operation::Append(append) });
    }

    fn network(&mut self, verb: &str, rest: &[&str]) {
        if verb == "mail" {
            let waiting: Vec<String> =
                self.lab.mail.iter().map(|i| format!("  {}", show::incoming(i))).collect();
            return self.lab.log.extend(waiting);
        }
        let picks = filter(rest);
        let count = self.lab.mail.iter().filter(|incoming| picks(incoming)).count();
        let count = if rest.contains(&"once") { count.min(1) } else { count };
        match verb {
            "deliver" => (0..count).for_each(|_| assert!(self.lab.deliver(&picks))),
            "drop" => {
                self.lab.mail.retain(|incoming| !picks(incoming));
                self.lab.log.push(format!("{count} lost"));
            }
            _ => {
                let copies: Vec<Incoming> = self.lab.mail.iter().filter(|i| picks(i)).cloned().collect();
                self.lab.mail.extend(copies);
            }
        }
    }

    fn process(&mut self, verb: &str, rest: &[&str]) {
        let n = number(rest[0]);
        match verb {
            "crash" => self.lab.crash(n),
            "restart" => self.lab.restart(n),
            "keep" => drop(self.kept.insert(n, self.lab.seat(n).disk.0.clone())),
            "restore" => self.lab.seat(n).disk.0 = self.kept[&n].clone(),
            "new" => {
                self.lab.place(DurableState::empty(m(n)));
                self.lab.connect(n);
            }
            _ => {
                let slot = Slot(number(rest[1]));
                let row = self.lab.seat(n).disk.0.rows.get_mut(&slot).expect("a row to damage");
                row.checksum ^= 1;
            }
        }
    }

    fn admin(&mut self, verb: &str, rest: &[&str]) {
        let (at, whom) = (number(rest[0]), rest.get(1).map(|word| m(number(word))));
        let command = match verb {
            "transfer" => AdminCommand::TransferLeader { cluster: CLUSTER, to: whom },
            "stop" => AdminCommand::PrepareStop,
            "join" => {
                let digest =
                    self.lab.seats.values().find_map(|s| s.disk.0.genesis.as_ref()).map(|g| g.digest());
                AdminCommand::Join { cluster: CLUSTER, digest: digest.expect("a founder") }
            }
            _ => {
                self.operation += u8::from(rest.last() != Some(&"again"));
                let member = whom.expect("whom the change is about");
                let change = match verb {
                    "add-learner" => Change::AddLearner { member, name: format!("log-{}", member.0) },
                    "promote" => Change::Promote { member },
                    _ => Change::Remove { member },
                };
                let system = self.lab.seat(at).node.system().expect("a member of a cluster");
                let expected_version = system.configurations.latest().version;
                let operation = [self.operation; 16];
                AdminCommand::Change { cluster: CLUSTER, expected_version, operation, change }
            }
        };
        let request = self.next_request();
        self.lab.input(at, Input::Admin { request, command });
    }

    fn pass(&mut self, rest: &[&str]) {
        let span = Duration::from_millis(number(rest[0]));
        if rest.len() == 1 {
            return self.lab.pass(span);
        }
        self.lab.now = self.lab.now.after(span);
        for n in &rest[1..] {
            self.lab.input(number(n), Input::Tick);
        }
    }

    fn state(&mut self, n: u64) {
        let status = self.lab.status(n);
        let life = match status.state {
            synod_paxos::status::MemberState::Fenced(_) => "fenced".to_string(),
            state => format!("{state:?}").to_lowercase(),
        };
        let role = format!("{:?}", status.role).to_lowercase();
        let (promised, chosen, last) = (status.promised, status.chosen_through, status.last_index);
        self.lab
            .log
            .push(format!("{n}: {life} {role}, promised {promised:?}, chosen {chosen:?}, last {last:?}"));
    }

    fn applied(&mut self, n: u64) {
        let entries = self.lab.seat(n).applied.iter().flat_map(|a| a.entries.clone());
        let texts: Vec<String> = entries.map(|e| show::text(&e.payload)).collect();
        self.lab.log.push(format!("{n}: {}", texts.join(" ")));
    }
}

/// One fact of a prepared disk.
fn prepare(disk: &mut DurableState, fact: &str) {
    let words: Vec<&str> = fact.split_whitespace().collect();
    match words[0] {
        "promised" => disk.promised = parse_ballot(words[1]),
        "chosen" => disk.chosen_through = Slot(number(words[1])),
        "row" => {
            let (slot, under) = (number(words[1]), parse_ballot(words[2]));
            let value = match words[3] {
                "no-op" => Value::NoOp,
                "start" => Value::LeaderStart { ballot: under },
                text => batch(text, under),
            };
            disk.rows.insert(Slot(slot), accepted(slot, under, &value));
        }
        other => panic!("no such fact: {other}"),
    }
}

/// A batch of one entry, taken by the leader of `under` from a client of its own.
fn batch(text: &str, under: Ballot) -> Value {
    let origin = Origin { member: under.member, incarnation: Incarnation(1), request: RequestId(1) };
    let entries = vec![bytes::Bytes::from(text.to_string())];
    let call = Call { origin, operation: Operation::Append(Append::plain(entries)) };
    Value::Batch {
        ballot: under,
        advance: std::time::Duration::ZERO,
        fields: Fields::NONE,
        calls: vec![call],
    }
}

#[test]
fn a_filter_picks_by_side_and_kind() {
    let incoming = Incoming {
        cluster: CLUSTER,
        from: m(1),
        counters: Default::default(),
        to: m(2),
        message: synod_paxos::Message::HandOver { ballot: ballot(1, 1) },
    };
    for (words, picked) in [
        (&["*>*"][..], true),
        (&["1>2", "HandOver"], true),
        (&["2>1"], false),
        (&["*>2", "Prepare"], false),
        (&["1>*", "once"], true),
    ] {
        assert_eq!(filter(words)(&incoming), picked, "{words:?}");
    }
}
