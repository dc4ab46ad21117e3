//! Between members: for each peer three outgoing streams, so that a large answer never holds up a heartbeat
//! (docs: architecture.md, "synod-sidecar").
//!
//! Each member dials every address it knows and learns from the greeting who is there: an address is never an
//! identity. Incoming streams carry the other direction. Everything may be lost; the core sends it again.

mod accept;
mod dial;
mod link;
mod peers;
pub mod wire;

pub use accept::PeerService;
pub use dial::Dialer;
pub use link::Link;
pub use peers::{PeerSource, parse_peers};

use crate::connections::Known;
use crate::driver::Handle;
use crate::shared::Shared;
use crate::tls::Tls;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use synod_paxos::{ClusterId, Digest, Incarnation, MemberId};
use synod_proto::peer::v1::Greeting;
use tokio::sync::{broadcast, watch};
use tonic::Status;
use tonic::transport::Channel;

/// A message's largest encoding: a chunk of rows, its last row possibly a full batch beyond the bound.
const LARGEST_MESSAGE: usize = 8 << 20;
/// What one stream may have under way before the receiver has taken it.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Who this process is to its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Of the data directory.
    pub member: MemberId,
    /// Of this start.
    pub incarnation: Incarnation,
    /// The pod's name, for people.
    pub name: String,
    /// Where it can be dialled: host:port.
    pub address: String,
    /// The cluster that the disk belongs to, once known.
    pub cluster: Option<(ClusterId, Digest)>,
}

impl Identity {
    fn greeting(&self) -> Greeting {
        let (cluster, digest) = match &self.cluster {
            Some((cluster, digest)) => (cluster.0.as_slice(), digest.0.as_slice()),
            None => ([].as_slice(), [].as_slice()),
        };
        Greeting {
            format_version: synod_proto::FORMAT_VERSION,
            member: self.member.0,
            incarnation: self.incarnation.0,
            name: self.name.clone(),
            cluster_id: bytes::Bytes::copy_from_slice(cluster),
            genesis_digest: bytes::Bytes::copy_from_slice(digest),
            address: self.address.clone(),
        }
    }
}

/// Why a peer's greeting is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GreetingError {
    /// Another wire format.
    #[error(
        "speaks wire format {found}, this member speaks {}: upgrade the older one",
        synod_proto::FORMAT_VERSION
    )]
    Format {
        /// The peer's.
        found: u32,
    },
    /// Another cluster.
    #[error(
        "is member {member} of cluster {found}, this member belongs to cluster {own}: check the addresses"
    )]
    Cluster {
        /// Who it is.
        member: MemberId,
        /// The peer's cluster.
        found: ClusterId,
        /// The own cluster.
        own: ClusterId,
    },
    /// The first frame is no greeting, or not a valid one.
    #[error("did not greet as a member does")]
    Malformed,
}

/// Judges a greeting; gives the peer's id.
fn check_greeting(own: &Identity, greeting: &Greeting) -> Result<MemberId, GreetingError> {
    if greeting.format_version != synod_proto::FORMAT_VERSION {
        return Err(GreetingError::Format { found: greeting.format_version });
    }
    let member = MemberId(greeting.member);
    if member == MemberId::NONE {
        return Err(GreetingError::Malformed);
    }
    if let Some((own, _)) = own.cluster
        && !greeting.cluster_id.is_empty()
    {
        let found = wire::cluster(&greeting.cluster_id).map_err(|_| GreetingError::Malformed)?;
        if found != own {
            return Err(GreetingError::Cluster { member, found, own });
        }
    }
    Ok(member)
}

/// A peer has just dialled here.
#[derive(Clone, Debug)]
struct Contact {
    member: MemberId,
    /// Where it says that it can be dialled, and where it came from.
    addresses: Vec<String>,
}

/// What dialling and accepting share.
#[derive(Clone)]
pub struct Context {
    pub(crate) shared: Arc<Shared>,
    pub(crate) tls: Option<Tls>,
    /// The address that peers are dialled from; none: the system chooses.
    pub(crate) dial_from: Option<IpAddr>,
    /// Where members were reached: their connections go first.
    pub(crate) known: Known,
    contacts: broadcast::Sender<Contact>,
    /// Members to which a connection stands that was dialled from here, and at which address.
    linked: Arc<Mutex<BTreeMap<MemberId, String>>>,
    /// Messages that were dropped because a queue was full.
    pub(crate) dropped: Arc<AtomicU64>,
}

impl Context {
    /// A context around the running core.
    pub fn new(shared: Arc<Shared>, tls: Option<Tls>, dial_from: Option<IpAddr>) -> Context {
        let contacts = broadcast::Sender::new(64);
        let known = Known::default();
        Context { shared, tls, dial_from, known, contacts, linked: Arc::default(), dropped: Arc::default() }
    }

    fn linked(&self) -> MutexGuard<'_, BTreeMap<MemberId, String>> {
        // Nothing can panic under this lock: it guards single insertions and removals.
        self.linked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The members that can be reached now.
    pub(crate) fn linked_members(&self) -> Vec<MemberId> {
        self.linked().keys().copied().collect()
    }

    /// A new connection to a member, for what would be in the way of its streams.
    ///
    /// # Errors
    /// If no connection to it stands, or none more can be made.
    pub(crate) async fn channel(&self, member: MemberId) -> Result<Channel, Status> {
        let address = self.linked().get(&member).cloned();
        let address = address.ok_or_else(|| Status::unavailable(format!("{member} is not connected")))?;
        dial::connect_to(self, &address, false, dial::BULKY_PING_PATIENCE)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))
    }

    fn identity(&self) -> watch::Receiver<Identity> {
        self.shared.identity()
    }

    fn handle(&self) -> Handle {
        self.shared.handle()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(member: u64, cluster: Option<u8>) -> Identity {
        Identity {
            member: MemberId(member),
            incarnation: Incarnation(1),
            name: format!("m{member}"),
            address: String::new(),
            cluster: cluster.map(|id| (ClusterId([id; 16]), Digest([id; 32]))),
        }
    }

    /// docs: reliability.md, fault 44: a pod address that another cluster uses now.
    #[test]
    fn greetings_are_judged() {
        let own = identity(1, Some(7));
        let check = |greeting: &Greeting| check_greeting(&own, greeting);
        assert_eq!(check(&identity(2, Some(7)).greeting()), Ok(MemberId(2)));
        // One that belongs to no cluster yet may be on its way into this one.
        assert_eq!(check(&identity(2, None).greeting()), Ok(MemberId(2)));
        assert!(matches!(check(&identity(2, Some(8)).greeting()), Err(GreetingError::Cluster { .. })));
        assert_eq!(check(&identity(0, Some(7)).greeting()), Err(GreetingError::Malformed));
        let newer = Greeting { format_version: 2, ..identity(2, Some(7)).greeting() };
        assert_eq!(check(&newer), Err(GreetingError::Format { found: 2 }));
        let garbled = Greeting { cluster_id: vec![7; 3].into(), ..identity(2, None).greeting() };
        assert_eq!(check(&garbled), Err(GreetingError::Malformed));
        assert_eq!(check_greeting(&identity(1, None), &identity(2, Some(8)).greeting()), Ok(MemberId(2)));
    }
}
