//! A follower whose disk is slower than the log holds a bounded part of it in memory (docs: reliability.md, "Bounds").

use crate::lab::{CLUSTER, Lab, ballot, tell};
use bytes::Bytes;
use synod_paxos::value::{Append, Operation, Value};
use synod_paxos::{Input, Message, RequestId, Slot, limits, row};

const LARGE: usize = 1_000_000;

/// The disk of member 3 stands still while the others append 100 MB: the leader sends no more than may be under way, the
/// others go on, and it has everything when its disk works again.
#[test]
fn a_disk_that_stands_still_bounds_what_waits_for_it() {
    let mut lab = Lab::new(3, |_, _| {});
    lab.chunk_rows = 1;
    lab.campaign(1);
    lab.settle();
    let mut most = 0;
    for request in 1..=100 {
        let append = Append::plain(vec![Bytes::from(vec![7; LARGE])]);
        lab.input(1, Input::Call { request: RequestId(request), operation: Operation::Append(append) });
        loop {
            [1, 2].into_iter().for_each(|n| lab.sync(n));
            if !lab.deliver(|_| true) && [1, 2].into_iter().all(|n| lab.seat(n).writes.is_empty()) {
                break;
            }
        }
        lab.log.clear();
        most = most.max(lab.status(3).unwritten_bytes);
    }
    assert_eq!(lab.status(1).last_index.0, 100, "a quorum goes on without it");
    assert!(most > limits::PIPELINE_BYTES / 2, "{most}");
    assert!(most <= limits::PIPELINE_BYTES, "{most} bytes wait for the disk");
    for _ in 0..1_000 {
        lab.settle();
        lab.log.clear();
        if lab.status(3).applied == lab.status(1).applied {
            break;
        }
        lab.pass(std::time::Duration::from_millis(100));
    }
    assert_eq!(lab.status(3).last_index.0, 100);
    assert_eq!(lab.status(3).chain, lab.status(1).chain);
}

/// A leader of an earlier version has no bound on what it sends: the follower drops what is above its own.
#[test]
fn accepts_that_nobody_bounds_are_dropped() {
    let mut lab = Lab::new(3, |_, _| {});
    let leader = ballot(1, 1);
    let mut accept = |slot: u64, value: &Value| {
        let value = value.encode();
        let checksum = row::checksum(CLUSTER, Slot(slot), leader, &value);
        let (slot, chosen_through) = (Slot(slot), Slot(slot - 1));
        let accept =
            Message::Accept { ballot: leader, slot, value, checksum, chosen_through, has_quorum: true };
        tell(&mut lab, 1, 3, accept);
        lab.log.clear();
        lab.status(3).unwritten_bytes
    };
    accept(1, &Value::LeaderStart { ballot: leader });
    let large = {
        let Value::Batch { ballot, advance, fields, mut calls } = crate::batch("x", 1, 1) else {
            unreachable!("it is one")
        };
        calls[0].operation = Operation::Append(Append::plain(vec![Bytes::from(vec![7; LARGE])]));
        Value::Batch { ballot, advance, fields, calls }
    };
    let most = (2..=100).map(|slot| accept(slot, &large)).max().unwrap();
    assert!(most > limits::ACCEPT_BACKLOG_BYTES / 2, "{most}");
    assert!(most <= limits::ACCEPT_BACKLOG_BYTES, "{most} bytes wait for the disk");
}
