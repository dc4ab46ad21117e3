//! docs: protocol.md, "Snapshots, checkpoints, trim".

use crate::append;
use crate::lab::{CLUSTER, Lab, accepted, ballot, m, tell};
use std::time::Duration;
use synod_paxos::configuration::{Change, ConfigurationEntry};
use synod_paxos::value::{Append, Checkpoint, Identity, Operation, Value};
use synod_paxos::{Digest, Index, Input, Message, Output, Refusal, Reply, RequestId, SessionId, Slot};

const BEAT: Duration = Duration::from_millis(100);

/// Three members that keep 4 entries; the first leads.
pub(crate) fn trimming() -> Lab {
    let mut lab = Lab::new(3, |_, disk| {
        if let Some(genesis) = &mut disk.genesis {
            genesis.settings.retention.entries = Some(4);
        }
    });
    lab.campaign(1);
    lab.settle();
    lab
}

pub(crate) fn beat(lab: &mut Lab, without: Option<u64>) {
    lab.pass(BEAT);
    match without {
        Some(n) => lab.settle_without(n),
        None => lab.settle(),
    }
}

/// Appends `count` entries, each in a slot of its own, with a heartbeat behind each.
pub(crate) fn fill(lab: &mut Lab, requests: std::ops::Range<u64>, without: Option<u64>) {
    for request in requests {
        lab.input(1, append(request, None, "entry"));
        match without {
            Some(n) => lab.settle_without(n),
            None => lab.settle(),
        }
        beat(lab, without);
    }
}

fn cut_off(lab: &mut Lab, n: u64) {
    for other in (1..=3).filter(|other| *other != n) {
        lab.input(other, Input::PeerDisconnected(m(n)));
        lab.input(n, Input::PeerDisconnected(m(other)));
    }
}

/// Retention through the log: each member deletes the same rows, each only what its own durable snapshot covers.
#[test]
fn the_log_is_trimmed_to_marks_that_a_quorum_has_on_disk() {
    let mut lab = trimming();
    fill(&mut lab, 1..40, None);
    (0..3).for_each(|_| beat(&mut lab, None));
    for n in 1..=3 {
        let status = lab.status(n);
        assert!(status.trim_through > Slot(0), "{n} has trimmed");
        assert!(status.last_index.0 - status.first_index.0 + 1 >= 4, "four entries stay at least");
        let disk = &lab.seat(n).disk.0;
        assert!(disk.snapshots.contains_key(&disk.trim_through));
        assert!(disk.rows.keys().all(|slot| *slot > disk.trim_through));
    }
    let trims: Vec<Slot> = (1..=3).map(|n| lab.seat(n).disk.0.trim_through).collect();
    assert!(trims.iter().all(|trim| *trim == trims[0]), "{trims:?}");
    let snapshots: Vec<_> = (1..=3).map(|n| lab.seat(n).disk.0.snapshots[&trims[0]].clone()).collect();
    assert!(snapshots.iter().all(|snapshot| *snapshot == snapshots[0]), "the same bytes on every member");
}

/// "past only what ... the slowest registered cursor ... allow".
#[test]
fn a_cursor_holds_the_trim_back() {
    let mut lab = trimming();
    fill(&mut lab, 1..6, None);
    let cursor = |index| Operation::SetCursor { name: "reader".into(), index: Index(index) };
    let standing = lab.status(1).first_index;
    lab.input(1, Input::Call { request: RequestId(90), operation: cursor(standing.0) });
    lab.settle();
    fill(&mut lab, 100..140, None);
    assert!(lab.status(1).first_index <= standing.next(), "{:?}", lab.status(1).first_index);
    let end = lab.status(1).last_index;
    lab.input(1, Input::Call { request: RequestId(91), operation: cursor(end.0) });
    lab.settle();
    fill(&mut lab, 140..150, None);
    assert!(lab.status(1).first_index > standing.plus(20));
    // A proposer that trims past it anyway is not obeyed.
    let system = lab.seat(1).node.system().unwrap().clone();
    let mut state = system.clone();
    state.cursors.insert("slow".into(), Index(0));
    let through = state.marks.last().map(|mark| mark.slot).unwrap();
    let slot = state.applied.next();
    state.apply(slot, &Value::Trim { through }.encode()).unwrap();
    assert_eq!(state.trim, system.trim);
}

/// docs: storage.md, "A full disk": whoever lowers the retention to make room finds marks to trim to, even where the log
/// was to be kept for ever until then.
#[test]
fn a_log_without_a_retention_has_marks_to_trim_to() {
    let mut lab = Lab::new(3, |_, _| {});
    lab.campaign(1);
    lab.settle();
    let payload = bytes::Bytes::from(vec![7; 1 << 20]);
    let entries = |lab: &mut Lab, requests: std::ops::Range<u64>| {
        for request in requests {
            let operation = Operation::Append(Append::plain(vec![payload.clone()]));
            lab.input(1, Input::Call { request: RequestId(request), operation });
            lab.settle();
            beat(lab, None);
        }
    };
    entries(&mut lab, 0..60);
    assert!(lab.seat(1).node.system().unwrap().marks.is_empty(), "little is not marked");
    entries(&mut lab, 60..72);
    let marks: Vec<u64> = lab.seat(1).node.system().unwrap().marks.iter().map(|mark| mark.index.0).collect();
    assert_eq!(marks.len(), 1, "{marks:?}");
    assert_eq!(lab.status(1).trim_through, Slot(0), "a mark alone trims nothing");
    let mut settings = lab.seat(1).node.system().unwrap().settings;
    settings.retention.bytes = Some(5 << 20);
    let operation = Operation::ChangeSettings { expected_version: settings.version, settings };
    lab.input(1, Input::Call { request: RequestId(900), operation });
    lab.settle();
    (0..4).for_each(|_| beat(&mut lab, None));
    for n in 1..=3 {
        assert_eq!(lab.status(n).first_index.0, marks[0] + 1, "{n} has trimmed to the mark");
    }
}

/// docs: socket.md, "Consumers": a late advance does not bring back what was removed, which would hold the log back for
/// ever with nobody to move it on.
#[test]
fn a_cursor_that_was_removed_is_not_moved_on() {
    let mut lab = trimming();
    fill(&mut lab, 1..4, None);
    let name = || "reader".to_owned();
    let mut call = |request, operation| {
        lab.input(1, Input::Call { request: RequestId(request), operation });
        lab.settle();
        lab.seat(1).other.iter().rev().find_map(|output| match output {
            Output::CallReply { request: of, outcome } if *of == RequestId(request) => Some(outcome.clone()),
            _ => None,
        })
    };
    let set = |reply: Option<Result<Reply, Refusal>>| matches!(reply, Some(Ok(Reply::CursorSet(Index(2)))));
    call(90, Operation::SetCursor { name: name(), index: Index(1) });
    assert!(set(call(91, Operation::AdvanceCursor { name: name(), index: Index(2) })));
    call(92, Operation::RemoveCursor { name: name() });
    let late = call(93, Operation::AdvanceCursor { name: name(), index: Index(3) });
    let unknown = synod_paxos::system::CallRefused::NoSuchCursor { name: name() };
    assert_eq!(late, Some(Err(Refusal::Cursor(unknown))));
    assert!(lab.seat(1).node.system().unwrap().cursors.is_empty());
}

/// "The application may save a checkpoint ... for an index it has applied; above that it is refused"; the log is
/// not trimmed past it, so that a late application finds the entries behind it.
#[test]
fn a_checkpoint_is_for_what_is_applied_and_holds_the_trim_back() {
    let mut lab = trimming();
    fill(&mut lab, 1..6, None);
    let save = |lab: &mut Lab, request: u64, index: u64| {
        let checkpoint = Checkpoint { index: Index(index), length: 1, digest: Digest([1; 32]) };
        let operation = Operation::SaveCheckpoint(checkpoint);
        lab.input(1, Input::Call { request: RequestId(request), operation });
        lab.settle();
        let answer = lab.seat(1).other.iter().find_map(|output| match output {
            Output::CallReply { request: of, outcome } if of.0 == request => Some(outcome.clone()),
            _ => None,
        });
        answer.unwrap()
    };
    assert!(save(&mut lab, 90, 99).is_err());
    let standing = lab.status(1).last_index;
    assert_eq!(save(&mut lab, 91, standing.0), Ok(Reply::CheckpointSaved));
    fill(&mut lab, 100..130, None);
    assert!(lab.status(1).first_index <= standing.next());
    let end = lab.status(1).last_index;
    assert_eq!(save(&mut lab, 92, end.0), Ok(Reply::CheckpointSaved));
    fill(&mut lab, 130..140, None);
    assert!(lab.status(1).first_index > standing.plus(10));
}

/// A member that was away for longer than the log is kept takes a snapshot, then the rest of the log; what it
/// applied is what everyone applied.
#[test]
fn a_member_behind_the_trim_takes_a_snapshot() {
    let mut lab = trimming();
    fill(&mut lab, 1..4, None);
    cut_off(&mut lab, 3);
    fill(&mut lab, 4..60, Some(3));
    assert!(lab.status(1).trim_through > lab.status(3).chosen_through, "it is needed");
    let promised = lab.status(3).promised;
    lab.connect(3);
    lab.settle();
    for _ in 0..8 {
        beat(&mut lab, None);
    }
    let installed = lab.seat(3).other.iter().any(|o| matches!(o, Output::Installed { .. }));
    assert!(installed);
    let (leader, joined) = (lab.status(1), lab.status(3));
    assert_eq!((joined.applied, joined.chain), (leader.applied, leader.chain));
    assert_eq!(joined.promised, promised);
    // It stands on its snapshot after a restart, too.
    lab.crash(3);
    lab.restart(3);
    lab.settle();
    assert_eq!(lab.status(3).applied, leader.applied);
}

/// "Resumable by (digest, offset)": the receiver's restart costs no part that is on its disk.
#[test]
fn a_fetch_goes_on_where_a_restart_left_it() {
    let mut lab = trimming();
    fill(&mut lab, 1..4, None);
    cut_off(&mut lab, 3);
    fill(&mut lab, 4..60, Some(3));
    let slot = lab.seat(1).disk.0.trim_through;
    let state = lab.seat(1).disk.0.snapshots[&slot].clone();
    let (total, digest) = (state.len() as u64, xxhash_rust::xxh3::xxh3_128(&state));
    let (first, second) = (0..state.len() / 4, state.len() / 4..state.len() / 2);
    for part in [first.clone(), first, second.clone()] {
        let (offset, bytes) = (part.start as u64, state.slice(part));
        let message = Message::SnapshotChunk { slot, total, digest, offset, bytes };
        tell(&mut lab, 1, 3, message);
        lab.settle_without(3);
    }
    assert_eq!(lab.seat(3).disk.0.fetched.len(), 2, "what came twice is there once");
    lab.crash(3);
    lab.log.clear();
    lab.restart(3);
    lab.settle();
    (0..8).for_each(|_| beat(&mut lab, None));
    let asked: Vec<&String> = lab.log.iter().filter(|line| line.contains("from byte")).collect();
    assert!(
        asked.iter().all(|line| line.contains(&format!("{slot:?} from byte {}", second.end))),
        "{asked:?}"
    );
    assert!(!asked.is_empty());
    assert_eq!(lab.status(3).applied, lab.status(1).applied);
    assert!(lab.seat(3).disk.0.fetched.is_empty(), "what is installed is not kept twice");
}

/// A snapshot that was begun and that nobody has any more is given up for what there is, even if that is older.
#[test]
fn a_fetch_that_nobody_can_go_on_with_is_given_up() {
    let mut lab = trimming();
    fill(&mut lab, 1..4, None);
    cut_off(&mut lab, 3);
    fill(&mut lab, 4..60, Some(3));
    let slot = lab.seat(1).disk.0.trim_through.plus(100);
    let message = Message::SnapshotChunk { slot, total: 9, digest: 9, offset: 0, bytes: "begun".into() };
    tell(&mut lab, 1, 3, message);
    lab.settle_without(3);
    lab.crash(3);
    lab.restart(3);
    assert_eq!(lab.seat(3).disk.0.fetched.len(), 1);
    for _ in 0..40 {
        lab.pass(BEAT);
        lab.settle();
    }
    assert_eq!(lab.status(3).applied, lab.status(1).applied);
    assert!(lab.seat(3).disk.0.fetched.is_empty());
}

/// "Install: `promised`, accepted above s, identity and incarnation are never replaced or lowered. s <= applied:
/// ignored."
#[test]
fn an_install_keeps_what_was_promised_and_accepted_above() {
    let mut lab = trimming();
    fill(&mut lab, 1..20, None);
    let slot = lab.seat(1).disk.0.trim_through;
    let state = lab.seat(1).disk.0.snapshots[&slot].clone();
    let above = slot.plus(3);
    // A member that lags behind the trim, has promised 7.2 and accepted in a slot above the snapshot's.
    let mut late = Lab::new(3, |member, disk| {
        if let Some(genesis) = &mut disk.genesis {
            genesis.settings.retention.entries = Some(4);
        }
        if member == m(3) {
            disk.promised = ballot(7, 2);
            disk.rows.insert(above, accepted(above.0, ballot(7, 2), &Value::NoOp));
            disk.rows.insert(Slot(1), accepted(1, ballot(1, 1), &Value::NoOp));
        }
    });
    let (total, digest) = (state.len() as u64, xxhash_rust::xxh3::xxh3_128(&state));
    let chunk = Message::SnapshotChunk { slot, total, digest, offset: 0, bytes: state.clone() };
    tell(&mut late, 1, 3, chunk.clone());
    late.settle();
    let disk = late.seat(3).disk.0.clone();
    assert_eq!((disk.applied, disk.chosen_through, disk.trim_through), (slot, slot, slot));
    assert_eq!(disk.system, state);
    assert_eq!(disk.promised, ballot(7, 2));
    assert_eq!(disk.rows.keys().copied().collect::<Vec<_>>(), [above]);
    assert_eq!(late.status(3).applied, slot);
    assert_eq!(late.seat(3).node.vote(above), Some(ballot(7, 2)), "its own candidacy would report it");
    // A second one, and one that is damaged, change nothing.
    let written = disk.written;
    tell(&mut late, 1, 3, chunk);
    late.settle();
    assert_eq!(late.seat(3).disk.0.written, written);
}

/// "A snapshot at s: slot, index, every configuration governing s+1 ... s+alpha, sessions, log time, cursors, trim
/// point, chain(s), format level": what is installed is the very state (reliability.md, fault 34).
#[test]
fn an_installed_state_is_the_whole_state() {
    let mut lab = trimming();
    let call = |lab: &mut Lab, request, operation| {
        lab.input(1, Input::Call { request: RequestId(request), operation });
        lab.settle();
    };
    call(&mut lab, 80, Operation::OpenSession);
    let session = SessionId(1);
    for sequence in 1..4 {
        let identity = Identity::Session { session, sequence, acknowledged: 0 };
        let append = Append { identity, ..Append::plain(vec!["in a session".into()]) };
        call(&mut lab, 80 + sequence, Operation::Append(append));
    }
    call(&mut lab, 90, Operation::SetCursor { name: "reader".into(), index: Index(2) });
    let mut state = lab.seat(1).node.system().unwrap().clone();
    // Chosen, and not in force for another window.
    let change = Change::AddLearner { member: m(9), name: "log-9".into() };
    let entry = ConfigurationEntry { expected_version: 1, operation: [9; 16], change };
    for value in [Value::Configuration(entry), Value::Mark] {
        let slot = state.applied.next();
        state.apply(slot, &value.encode()).unwrap();
    }
    assert!(state.configurations.latest().effective_from > state.applied.next());
    let (slot, bytes) = (state.applied, state.encode());
    let (total, digest) = (bytes.len() as u64, xxhash_rust::xxh3::xxh3_128(&bytes));
    let mut late = trimming();
    let chunk = Message::SnapshotChunk { slot, total, digest, offset: 0, bytes };
    tell(&mut late, 1, 3, chunk);
    assert_eq!(late.seat(3).node.system(), Some(&state));
}

/// reliability.md, fault 5: a damaged snapshot is refused.
#[test]
fn a_damaged_snapshot_is_refused() {
    let mut lab = trimming();
    fill(&mut lab, 1..20, None);
    let slot = lab.seat(1).disk.0.trim_through;
    let state = lab.seat(1).disk.0.snapshots[&slot].clone();
    let digest = xxhash_rust::xxh3::xxh3_128(&state);
    let mut late = Lab::new(3, |_, _| {});
    for at in 0..state.len() {
        let mut bytes = state.to_vec();
        bytes[at] ^= 1;
        let total = bytes.len() as u64;
        let chunk = Message::SnapshotChunk { slot, total, digest, offset: 0, bytes: bytes.into() };
        tell(&mut late, 1, 3, chunk);
    }
    late.settle();
    assert_eq!(late.status(3).applied, Slot(0));
}

/// "Transfer: it pins entries above its slot until the receiver joins the live stream".
#[test]
fn a_connected_member_that_lags_holds_the_trim_back_within_bounds() {
    let mut lab = trimming();
    fill(&mut lab, 1..12, None);
    // It is connected, and answers, but nothing of the log arrives at it.
    let lag = |lab: &mut Lab, request: u64| {
        lab.input(1, append(request, None, "entry"));
        for _ in 0..3 {
            lab.pass(BEAT);
            loop {
                (1..=3).for_each(|n| lab.sync(n));
                lab.mail.retain(|i| {
                    i.to != m(3)
                        || !matches!(
                            i.message,
                            Message::Accept { .. } | Message::Learned { .. } | Message::SnapshotChunk { .. }
                        )
                });
                if !lab.deliver(|_| true) {
                    break;
                }
            }
        }
    };
    let end = lab.status(1).last_index;
    for request in 100..107 {
        lag(&mut lab, request);
        let (leader, lagging) = (lab.status(1), lab.status(3));
        assert!(leader.trim_through <= lagging.chosen_through, "held for the member that lags");
    }
    // Twice what is kept is the bound: it is not waited for any longer.
    for request in 107..112 {
        lag(&mut lab, request);
    }
    let (leader, lagging) = (lab.status(1), lab.status(3));
    assert!(leader.last_index.0 - end.0 > 8);
    assert!(leader.trim_through > lagging.chosen_through);
}

/// Delivers everything but what is for or from member 3 and `HandOver`; tells how many trims were proposed.
fn settle_two(lab: &mut Lab) -> usize {
    let mut trims = 0;
    loop {
        lab.running().into_iter().for_each(|n| lab.sync(n));
        lab.mail
            .retain(|i| ![i.from, i.to].contains(&m(3)) && !matches!(i.message, Message::HandOver { .. }));
        trims += lab.mail_of(|message| match message {
            Message::Accept { value, .. } => {
                matches!(Value::decode(value.clone()), Ok(Value::Trim { .. }))
            }
            _ => false,
        });
        if !lab.deliver(|_| true) {
            return trims;
        }
    }
}

/// "Transfer: it pins entries above its slot": also where the trim was decided before the member that lags was there,
/// and had to wait, here for a hand-over that nobody takes (found by the simulator).
#[test]
fn a_trim_that_waited_is_judged_again() {
    let trims_after = |appends: u64, comes_back: bool| -> usize {
        let mut lab = trimming();
        cut_off(&mut lab, 3);
        fill(&mut lab, 1..appends, Some(3));
        lab.input(1, append(appends, None, "entry"));
        let _ = settle_two(&mut lab);
        lab.admin(1, synod_paxos::AdminCommand::TransferLeader { cluster: CLUSTER, to: Some(m(2)) });
        lab.pass(BEAT);
        assert_eq!(settle_two(&mut lab), 0, "nothing is proposed during a hand-over");
        if comes_back {
            lab.input(1, Input::PeerConnected(m(3)));
        }
        // Longer than the hand-over is waited for.
        let beats = (0..15).map(|_| {
            lab.pass(BEAT);
            settle_two(&mut lab)
        });
        beats.sum()
    };
    let due: Vec<u64> = (1..20).filter(|appends| trims_after(*appends, false) > 0).collect();
    assert!(!due.is_empty(), "a trim waited for the end of a hand-over");
    for appends in due {
        let trims = trims_after(appends, true);
        // Behind twice what is kept it is not waited for.
        assert!(trims == 0 || appends > 8, "{appends}: {trims} trims");
    }
}

/// A consumer that nobody moves on holds back every trim: however many snapshots are on the disk then, none is in memory
/// unless a peer asks for it, at a start, too.
#[test]
fn snapshots_are_on_the_disk_and_not_in_memory() {
    let mut lab = trimming();
    fill(&mut lab, 1..10, None);
    let cursor = Operation::SetCursor { name: "forgotten".into(), index: lab.status(1).first_index };
    lab.input(1, Input::Call { request: RequestId(90), operation: cursor });
    lab.settle();
    fill(&mut lab, 100..200, None);
    for n in 1..=3 {
        assert!(lab.seat(n).disk.0.snapshots.len() >= 20, "{n}: {}", lab.seat(n).disk.0.snapshots.len());
        assert_eq!(lab.seat(n).node.snapshot_bytes(), 0, "{n}");
    }
    lab.crash(2);
    lab.restart(2);
    lab.settle();
    assert_eq!(lab.seat(2).node.snapshot_bytes(), 0);
    // One that is served is in memory while it is served.
    let trim = lab.status(1).trim_through;
    let largest = lab.seat(1).disk.0.snapshots.values().map(bytes::Bytes::len).max().unwrap();
    tell(&mut lab, 3, 1, Message::SnapshotRequest { slot: Slot(0), offset: 0 });
    assert_eq!(lab.mail_of(|m| matches!(m, Message::SnapshotChunk { slot, .. } if *slot == trim)), 1);
    assert!((1..=largest).contains(&lab.seat(1).node.snapshot_bytes()));
    lab.settle();
    (0..30).for_each(|_| beat(&mut lab, None));
    assert_eq!(lab.seat(1).node.snapshot_bytes(), 0);
}
