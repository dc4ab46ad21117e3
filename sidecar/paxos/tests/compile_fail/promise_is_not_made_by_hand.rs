//! A Promise cannot be put into an outgoing message by a driver.
use synod_paxos::{Ballot, ClusterId, MemberId, Message, Outgoing, Slot};
use synod_paxos::message::{Counters, ViewId};

fn main() {
    let message = Message::Promise {
        ballot: Ballot::ZERO,
        from: Slot(1),
        view: ViewId(1),
        chunk: 0,
        last: true,
        trim_through: Slot(0),
        chosen_through: Slot(0),
        rows: Vec::new(),
    };
    let _ = Outgoing {
        cluster: ClusterId([0; 16]),
        from: MemberId(1),
        counters: Counters::default(),
        to: MemberId(2),
        message,
    };
}
