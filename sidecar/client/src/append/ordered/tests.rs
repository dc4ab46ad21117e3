//! The session's calls against a model of the log: whatever gets lost, comes late or is refused on the way, what
//! callers are told is true.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What the log remembers of a session.
#[derive(Default)]
struct Session {
    last: u64,
    acknowledged: u64,
    rows: BTreeMap<u64, (AppendRequest, Result<Appended, CallError>)>,
}

fn refused(reason: Reason) -> CallError {
    CallError::local(reason, reason.word()).of_append(reason.append_outcome())
}

fn no_leader() -> CallError {
    refused(Reason::NoLeader)
}

/// A log with sessions, by the rules of docs: protocol.md, "Sessions".
#[derive(Default)]
struct Log {
    entries: Vec<Bytes>,
    sessions: BTreeMap<u64, Session>,
    opened: u64,
}

impl Log {
    fn open(&mut self) -> u64 {
        self.opened += 1;
        self.sessions.insert(self.opened, Session::default());
        self.opened
    }

    fn apply(&mut self, request: &AppendRequest) -> Result<Appended, CallError> {
        let Some(Identity::Session(call)) = &request.identity else { panic!("a call without a session") };
        let Some(session) = self.sessions.get_mut(&call.session) else {
            return Err(refused(Reason::SessionExpired));
        };
        let same = |row: &AppendRequest| {
            row.entries == request.entries && row.expected_index == request.expected_index
        };
        if let Some((row, outcome)) = session.rows.get(&call.sequence) {
            if !same(row) {
                return Err(refused(Reason::KeyReused));
            }
            return outcome.clone().map(|appended| Appended { repeated: true, ..appended });
        }
        if call.sequence <= session.acknowledged {
            return Err(refused(Reason::SequenceForgotten));
        }
        if call.sequence != session.last + 1 {
            return Err(refused(Reason::SequenceGap));
        }
        session.last = call.sequence;
        session.acknowledged = session.acknowledged.max(call.acknowledged);
        session.rows.retain(|sequence, _| *sequence > call.acknowledged);
        let tail = self.entries.len() as u64;
        let outcome = if request.expected_index.is_some_and(|index| index != tail) {
            let error = refused(Reason::ExpectedIndex);
            Err(CallError { tail: Some(tail), ..error })
        } else {
            self.entries.extend(request.entries.iter().cloned());
            let last_index = self.entries.len() as u64;
            Ok(Appended { first_index: tail + 1, last_index, repeated: false })
        };
        session.rows.insert(call.sequence, (request.clone(), outcome.clone()));
        outcome
    }
}

/// A try between client and log. It can be applied as long as it floats, also when nobody waits for it.
struct Try {
    sequence: u64,
    request: AppendRequest,
    /// On which connection its answer is awaited.
    awaited_on: Option<u32>,
}

struct Told {
    payload: Bytes,
    /// None: the caller went away.
    answer: Option<oneshot::Receiver<Result<Appended, AppendError>>>,
}

struct World {
    ordered: Ordered,
    log: Log,
    floating: Vec<Try>,
    connection: u32,
    now: Instant,
    told: Vec<Told>,
}

#[derive(Clone, Debug)]
enum Action {
    /// A call with this many milliseconds until its deadline.
    Call(u16),
    Send,
    /// One of the floating tries is applied, and answered if somebody waits.
    Apply(usize),
    /// One of the floating tries is given up for certain.
    Refuse(usize),
    /// The answer to one of the tries is that nobody knows.
    Unknown(usize),
    Cut,
    ExpireSession,
    Pass(u16),
    /// One of the callers goes away.
    Leave(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (1..400_u16).prop_map(Action::Call),
        4 => Just(Action::Send),
        6 => (0..6_usize).prop_map(Action::Apply),
        2 => (0..6_usize).prop_map(Action::Refuse),
        1 => (0..6_usize).prop_map(Action::Unknown),
        1 => Just(Action::Cut),
        1 => Just(Action::ExpireSession),
        2 => (1..300_u16).prop_map(Action::Pass),
        1 => (0..40_usize).prop_map(Action::Leave),
    ]
}

impl World {
    fn new() -> World {
        let (ordered, log) = (Ordered::new(), Log::default());
        World { ordered, log, floating: Vec::new(), connection: 0, now: Instant::now(), told: Vec::new() }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Call(span) => {
                let (answer, told) = oneshot::channel();
                let payload = Bytes::from(format!("call {}", self.told.len()));
                let deadline = self.now + Duration::from_millis(u64::from(*span));
                let content = vec![payload.clone()].into();
                self.ordered.push(Job {
                    content,
                    condition: Condition::default(),
                    deadline,
                    answer,
                    permit: None,
                });
                self.told.push(Told { payload, answer: Some(told) });
            }
            Action::Send => self.send(),
            Action::Apply(at) => {
                let Some(one) = self.pick(*at) else { return };
                let outcome = self.log.apply(&one.request);
                self.answer(&one, outcome.map_or_else(Attempt::Failed, Attempt::Appended));
            }
            Action::Refuse(at) => {
                if let Some(one) = self.pick(*at) {
                    self.answer(&one, Attempt::Failed(no_leader()));
                }
            }
            Action::Unknown(at) => {
                let Some(mut one) = self.pick(*at) else { return };
                let unknown = refused(Reason::OutcomeUnknown);
                self.answer(&one, Attempt::Failed(unknown));
                one.awaited_on = None;
                self.floating.push(one);
            }
            Action::Cut => {
                self.connection += 1;
                self.ordered.cut(&transport("cut"));
            }
            Action::ExpireSession => self.log.sessions.clear(),
            Action::Leave(at) => {
                if let Some(told) = self.told.get_mut(*at) {
                    told.answer = None;
                }
            }
            Action::Pass(span) => {
                self.now += Duration::from_millis(u64::from(*span));
                self.ordered.expire(self.now);
            }
        }
    }

    fn send(&mut self) {
        if self.ordered.needs_session() {
            let session = self.log.open();
            self.ordered.opened(session);
        }
        while let Some((sequence, request, _)) = self.ordered.take(self.now) {
            self.floating.push(Try { sequence, request, awaited_on: Some(self.connection) });
        }
    }

    fn pick(&mut self, at: usize) -> Option<Try> {
        (!self.floating.is_empty()).then(|| self.floating.remove(at % self.floating.len()))
    }

    fn answer(&mut self, one: &Try, attempt: Attempt) {
        if one.awaited_on == Some(self.connection) {
            self.ordered.answered(one.sequence, attempt, self.now);
        }
    }

    /// The network is whole again: everything is sent and applied in order, until everybody is told.
    fn heal(&mut self) {
        for _ in 0..10_000 {
            if self.ordered.is_idle() {
                break;
            }
            self.send();
            self.act(&Action::Apply(0));
            self.act(&Action::Pass(1));
        }
        assert!(self.ordered.is_idle(), "somebody was never told: {:?}", self.ordered);
        // What still floats may come late.
        while !self.floating.is_empty() {
            self.act(&Action::Apply(0));
        }
    }

    fn check(mut self) {
        let mut last = 0;
        for told in &mut self.told {
            let places: Vec<u64> = (1..)
                .zip(&self.log.entries)
                .filter(|(_, entry)| **entry == told.payload)
                .map(|(index, _)| index)
                .collect();
            assert!(places.len() <= 1, "{:?} stands at {places:?}", told.payload);
            let Some(answer) = &mut told.answer else { continue };
            match answer.try_recv().unwrap() {
                Ok(appended) => {
                    assert_eq!(places, [appended.first_index], "{:?}", told.payload);
                    assert!(appended.first_index > last, "{:?} overtook an earlier call", told.payload);
                    last = appended.first_index;
                }
                Err(AppendError::Refused(error)) => {
                    assert!(places.is_empty(), "{:?} was refused ({error}) and stands", told.payload);
                }
                Err(AppendError::Unknown(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert!(!self.log.entries.iter().any(Bytes::is_empty), "a filler was appended");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// docs: protocol.md, "Sessions: exactly once"; reliability.md, faults 39 and 40: an acknowledged call stands
    /// once and at its index, in the order of the calls; a refused one never stands; none stands twice.
    #[test]
    fn what_callers_are_told_is_true(actions in proptest::collection::vec(action(), 1..120)) {
        let mut world = World::new();
        for action in &actions {
            world.act(action);
        }
        world.heal();
        world.check();
    }
}

fn job(world: &mut World, span: u16) {
    world.act(&Action::Call(span));
}

/// A refused call that nothing follows uses no number up, and needs no filler.
#[test]
fn the_last_number_is_given_back() {
    let mut world = World::new();
    job(&mut world, 10);
    world.send();
    world.act(&Action::Refuse(0));
    world.act(&Action::Pass(20));
    assert!(!world.ordered.has_work());
    job(&mut world, 10);
    world.send();
    let Some(Identity::Session(call)) = &world.floating[0].request.identity else { panic!() };
    assert_eq!((call.sequence, call.acknowledged), (1, 0));
}

/// A number that may have been used is used up before the next one can be decided.
#[test]
fn a_filler_takes_the_place_of_what_timed_out() {
    let mut world = World::new();
    job(&mut world, 10);
    world.send();
    world.act(&Action::Cut);
    world.act(&Action::Pass(20));
    job(&mut world, 1_000);
    world.send();
    let filler = &world.floating[1].request;
    assert_eq!((filler.expected_index, filler.entries.as_slice()), (Some(NEVER), &[Bytes::new()][..]));
    world.heal();
    let first = world.told[0].answer.as_mut().unwrap().try_recv().unwrap();
    assert!(matches!(first, Err(AppendError::Unknown(_))), "{first:?}");
    assert!(world.told[1].answer.as_mut().unwrap().try_recv().unwrap().is_ok());
}

/// What nobody waits for any more is not tried again, and holds nothing up.
#[test]
fn a_caller_that_goes_away_leaves_no_trace() {
    let mut world = World::new();
    job(&mut world, 1_000);
    job(&mut world, 1_000);
    world.send();
    job(&mut world, 1_000);
    world.act(&Action::Refuse(0));
    world.act(&Action::Refuse(0));
    // The first is sent and refused for now, the third was never sent.
    world.act(&Action::Leave(0));
    world.act(&Action::Leave(2));
    world.heal();
    assert!(world.told[1].answer.as_mut().unwrap().try_recv().unwrap().is_ok());
    assert_eq!(world.log.entries, ["call 1"]);
}

/// docs: reliability.md, fault 40: what may have been appended under a session that has expired is unknown; what
/// certainly was not goes into the next session, once.
#[test]
fn an_expired_session_duplicates_nothing() {
    let mut world = World::new();
    job(&mut world, 1_000);
    job(&mut world, 1_000);
    world.send();
    // The first is appended and its answer lost; the second is given up for certain.
    world.act(&Action::Apply(0));
    world.act(&Action::Refuse(0));
    assert!(world.told[0].answer.as_mut().unwrap().try_recv().unwrap().is_ok());
    job(&mut world, 1_000);
    world.send();
    let lost = world.floating.pop().unwrap();
    world.log.apply(&world.floating.remove(0).request).unwrap();
    world.act(&Action::Cut);
    drop(lost);
    world.act(&Action::ExpireSession);
    world.heal();
    for at in [1, 2] {
        let told = world.told[at].answer.as_mut().unwrap().try_recv().unwrap();
        assert!(
            matches!(told, Err(AppendError::Unknown(ref e)) if e.reason == Reason::SessionExpired),
            "{told:?}"
        );
    }
    assert_eq!(world.log.entries.len(), 2);
}
