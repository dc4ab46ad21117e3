//! Links that carry 1 MB a second, and as little as that: everything goes at their rate, and nothing is sent twice
//! (docs: reliability.md, "Slow links").

use crate::batch;
use crate::lab::{Lab, accepted, ballot, m};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;
use synod_paxos::message::Lane;
use synod_paxos::status::Role;
use synod_paxos::value::{Append, Operation, Value};
use synod_paxos::{Incoming, Input, Instant, MemberId, Output, RequestId};

const MEGABYTE: usize = 1_000_000;
/// Bytes a second, each way between two members.
const RATE: u64 = 1_000_000;
const NEAR: Duration = Duration::from_millis(1);

/// Directed links with a rate. What is small goes on a stream of its own, beside what is large.
#[derive(Default)]
struct Links {
    busy: BTreeMap<(MemberId, MemberId), Instant>,
    under_way: Vec<(Instant, Incoming)>,
    sent: BTreeMap<(MemberId, MemberId), usize>,
}

impl Links {
    fn take(&mut self, lab: &mut Lab) {
        while let Some(mail) = lab.mail.pop_front() {
            let link = (mail.from, mail.to);
            let bytes = mail.message.value_bytes();
            *self.sent.entry(link).or_default() += bytes;
            let at = if mail.message.lane() == Lane::Control {
                lab.now
            } else {
                let busy = self.busy.entry(link).or_insert(lab.now);
                *busy = (*busy).max(lab.now).after(Duration::from_nanos(bytes as u64 * 1_000_000_000 / RATE));
                *busy
            };
            self.under_way.push((at.after(NEAR), mail));
        }
    }

    /// Lets `span` pass, a millisecond at a time; disks sync at once.
    fn run(&mut self, lab: &mut Lab, longest: Duration, done: impl Fn(&mut Lab) -> bool) -> Duration {
        let began = lab.now;
        while !done(lab) {
            assert!(lab.now.since(began) < longest, "not done after {longest:?}: {:?}", self.sent);
            lab.running().into_iter().for_each(|n| lab.sync(n));
            self.take(lab);
            let (due, later) =
                std::mem::take(&mut self.under_way).into_iter().partition(|(at, _)| *at <= lab.now);
            self.under_way = later;
            for (_, mail) in due {
                lab.input(mail.to.0, Input::Message(mail));
            }
            lab.log.clear();
            self.take(lab);
            lab.pass(Duration::from_millis(1));
        }
        lab.now.since(began)
    }

    fn sent_in_all(&self) -> usize {
        self.sent.values().sum()
    }
}

/// 32 appends of 1 MB at once at a follower: each crosses three links, once. Before there was a bound on what is under way,
/// 17 to 22 bytes were sent for each one acknowledged.
#[test]
fn appends_go_at_the_links_own_rate() {
    let mut lab = Lab::new(3, |_, _| {});
    lab.campaign(1);
    lab.settle();
    lab.log.clear();
    for request in 1..=32 {
        let append = Append::plain(vec![Bytes::from(vec![7; MEGABYTE])]);
        lab.input(2, Input::Call { request: RequestId(request), operation: Operation::Append(append) });
    }
    let mut links = Links::default();
    let answered = |lab: &mut Lab| {
        let replies =
            lab.seat(2).other.iter().filter(|o| matches!(o, Output::CallReply { outcome: Ok(_), .. }));
        replies.count() == 32
    };
    let took = links.run(&mut lab, Duration::from_secs(120), answered);
    let floor = 3 * 32 * MEGABYTE;
    let sent = links.sent_in_all();
    assert!(sent <= floor + floor / 10, "{sent} bytes were sent where {floor} do: {:?}", links.sent);
    // The first on its way to the leader, and then all of them one after the other to a quorum.
    assert!(took <= Duration::from_secs(40), "{took:?}");
    assert_eq!(lab.status(1).promised, ballot(1, 1), "one leader all along");
}

/// An election with 64 rows of 1 MB undecided: each voter's promise crosses its link once, the candidate is not overtaken,
/// and then they are proposed again, each once to each follower.
#[test]
fn a_candidate_leads_behind_a_long_backlog() {
    let large = || {
        let Value::Batch { ballot, advance, fields, mut calls } = batch("x", 1, 3) else {
            unreachable!("it is one")
        };
        calls[0].operation = Operation::Append(Append::plain(vec![Bytes::from(vec![7; MEGABYTE])]));
        Value::Batch { ballot, advance, fields, calls }
    };
    let mut lab = Lab::new(3, |member, disk| {
        disk.promised = ballot(1, 3);
        if member != m(1) {
            let rows = (1..=64).map(|slot| accepted(slot, ballot(1, 3), &large()));
            disk.rows = rows.map(|row| (row.slot, row)).collect();
        }
    });
    lab.chunk_rows = 1;
    lab.campaign(1);
    // Until the others have promised: nobody else campaigns at once.
    for n in [2, 1, 2, 3] {
        lab.sync(n);
        while lab.deliver(|i| i.message.lane() == Lane::Control) {}
    }
    let mut links = Links::default();
    let took = links.run(&mut lab, Duration::from_secs(600), |lab| lab.status(1).role == Role::Leader);
    assert_eq!(lab.status(1).promised, ballot(2, 1), "by its first candidacy");
    // Two promises, of which one is needed; then an Accept for each of two followers.
    let floor = 4 * 64 * MEGABYTE;
    let sent = links.sent_in_all();
    assert!(sent <= floor + floor / 10, "{sent} bytes were sent where {floor} do: {:?}", links.sent);
    assert!(took <= Duration::from_secs(160), "{took:?}");
}

/// A member that missed 40 MB learns them over such a link, each part once.
#[test]
fn a_member_catches_up_at_the_links_own_rate() {
    let mut lab = Lab::new(3, |_, _| {});
    lab.chunk_rows = 1;
    lab.campaign(1);
    lab.settle();
    for other in [1, 2] {
        lab.input(other, Input::PeerDisconnected(m(3)));
        lab.input(3, Input::PeerDisconnected(m(other)));
    }
    for request in 1..=40 {
        let append = Append::plain(vec![Bytes::from(vec![7; MEGABYTE])]);
        lab.input(1, Input::Call { request: RequestId(request), operation: Operation::Append(append) });
        lab.settle_without(3);
        lab.log.clear();
    }
    lab.connect(3);
    let mut links = Links::default();
    let target = lab.status(1).applied;
    links.run(&mut lab, Duration::from_secs(120), |lab| lab.status(3).applied >= target);
    let floor = 40 * MEGABYTE;
    let sent = links.sent_in_all();
    // Until the first part is there, its size is not known, and another member may be asked for it, too.
    assert!(sent <= floor + floor / 10, "{sent} bytes were sent where {floor} do: {:?}", links.sent);
}
