//! An Accepted that waits for a write cannot be taken out of the batch before the write.
use synod_paxos::WriteBatch;

fn send_early(batch: WriteBatch) {
    for gated in batch.gated {
        let _ = gated;
    }
}

fn main() {
    let _ = send_early;
}
