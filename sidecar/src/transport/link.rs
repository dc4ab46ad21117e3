//! The outgoing side to one peer: three bounded queues, one a stream.

use super::wire;
use crate::space::{Room, Space};
use prost::Message as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use synod_paxos::message::{Lane, Outgoing};
use synod_proto::peer::v1::{Envelope, PeerFrame, peer_frame::Frame};
use tokio::sync::mpsc;

/// Encoded bytes that wait in one queue; what is above is dropped, and the core sends it again.
const QUEUE_BYTES: usize = 16 << 20;

/// A queue's reading end: the frames of one stream.
#[derive(Debug)]
pub(super) struct Frames {
    queue: mpsc::UnboundedReceiver<(PeerFrame, usize)>,
    waiting: Arc<AtomicUsize>,
}

impl Frames {
    /// The next frame; none when the link is gone.
    pub(super) async fn next(&mut self) -> Option<PeerFrame> {
        let (frame, size) = self.queue.recv().await?;
        self.waiting.fetch_sub(size, Ordering::Relaxed);
        Some(frame)
    }
}

#[derive(Clone, Debug)]
struct Queue {
    frames: mpsc::UnboundedSender<(PeerFrame, usize)>,
    waiting: Arc<AtomicUsize>,
}

impl Queue {
    fn new() -> (Queue, Frames) {
        let (frames, queue) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        (Queue { frames, waiting: waiting.clone() }, Frames { queue, waiting })
    }

    /// `false`: dropped, the queue is full or its stream is gone.
    fn send(&self, frame: PeerFrame) -> bool {
        let size = frame.encoded_len();
        if self.waiting.fetch_add(size, Ordering::Relaxed) > QUEUE_BYTES {
            self.waiting.fetch_sub(size, Ordering::Relaxed);
            return false;
        }
        self.frames.send((frame, size)).is_ok()
    }
}

/// An established, greeted connection to a peer.
#[derive(Clone, Debug)]
pub struct Link {
    id: u64,
    control: Queue,
    data: Queue,
    bulk: Queue,
    dropped: Arc<AtomicU64>,
    space: Space,
}

/// The reading ends of a link's queues.
pub(super) struct Lanes {
    pub(super) control: Frames,
    pub(super) data: Frames,
    pub(super) bulk: Frames,
}

impl Link {
    pub(super) fn new(id: u64, dropped: Arc<AtomicU64>, space: Space) -> (Link, Lanes) {
        let (control, control_frames) = Queue::new();
        let (data, data_frames) = Queue::new();
        let (bulk, bulk_frames) = Queue::new();
        let lanes = Lanes { control: control_frames, data: data_frames, bulk: bulk_frames };
        (Link { id, control, data, bulk, dropped, space }, lanes)
    }

    /// Names this connection among all of this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Queues a message on its lane, or drops it.
    pub fn send(&self, message: &Outgoing) {
        let queue = match message.message().lane() {
            Lane::Control => &self.control,
            Lane::Data => &self.data,
            Lane::Bulk => &self.bulk,
        };
        let disk_full = self.space.room() >= Room::Full;
        let envelope = Envelope { disk_full, ..wire::encode(message) };
        if !queue.send(PeerFrame { frame: Some(Frame::Envelope(envelope)) }) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}
