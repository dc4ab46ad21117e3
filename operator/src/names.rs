//! Names, labels and identities: how a cluster's objects are called, and how ids are written.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// The one field manager of every server-side apply.
pub const FIELD_MANAGER: &str = "synod-operator";
/// Value of `app.kubernetes.io/managed-by` on everything the operator makes.
pub const MANAGED_BY: &str = "synod-operator";
/// Label that names the cluster.
pub const LABEL_CLUSTER: &str = "synod.dev/cluster";
/// Label that names a pod's part in the configuration: `voter`, `learner` or `none`.
pub const LABEL_ROLE: &str = "synod.dev/role";
/// Label of pods whose voter the leader reports connected and caught up: what the disruption budget counts.
pub const LABEL_COUNTED: &str = "synod.dev/counted";
/// Label of a claim whose member was removed and whose volume is kept.
pub const LABEL_RETIRED: &str = "synod.dev/retired";
/// Annotation of a claim: the member id on its disk.
pub const ANNOTATION_MEMBER: &str = "synod.dev/member-id";
/// Annotation of a claim: the cluster id on its disk.
pub const ANNOTATION_CLUSTER: &str = "synod.dev/cluster-id";
/// Annotation of a PaxosCluster: the member a person declares lost.
pub const ANNOTATION_REPLACE: &str = "synod.dev/replace";
/// Annotation of a PaxosCluster: another value asks for a new authority. On the authority's Secret: the value
/// that was carried out.
pub const ANNOTATION_ROTATE: &str = "synod.dev/rotate-ca";
/// Annotation of the Secret with the members' pairs: the authority that all of them are from.
pub const ANNOTATION_ISSUER: &str = "synod.dev/issuer";
/// Annotation of an applied object: the hash of what was applied.
pub const ANNOTATION_APPLIED: &str = "synod.dev/applied";
/// On the disruption budget: the pods that it counts.
pub const ANNOTATION_COUNTED: &str = "synod.dev/counted";
/// Annotation of the StatefulSet: the replicas that the operator wrote last.
pub const ANNOTATION_SIZE: &str = "synod.dev/size";
/// Annotation of the StatefulSet: the generation of the PaxosCluster that its pods were made from.
pub const ANNOTATION_GENERATION: &str = "synod.dev/generation";
/// Annotation of the StatefulSet: the hash of its pod template as the operator made it.
pub const ANNOTATION_TEMPLATE: &str = "synod.dev/template";
/// Name of the sidecar's container.
pub const CONTAINER: &str = "synod";
/// Name of the volume claim template.
pub const CLAIM: &str = "data";
/// Port of the members' own traffic.
pub const PORT_PEER: u16 = 7400;
/// Port of the admin service.
pub const PORT_ADMIN: u16 = 7401;
/// Port of health and metrics.
pub const PORT_HEALTH: u16 = 7402;
/// Most members a cluster may have: `spec.replicas` ends there.
pub const MAX_MEMBERS: u32 = 15;

/// Identity of one data directory, minted when an empty volume is first started. Written as 16
/// hexadecimal digits: a JSON number of 64 bits would lose some.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MemberId {
    type Err = std::num::ParseIntError;

    fn from_str(s: &str) -> Result<MemberId, Self::Err> {
        u64::from_str_radix(s, 16).map(MemberId)
    }
}

/// Id of one log: new at every bootstrap or forced recovery.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClusterId(pub Uuid);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for ClusterId {
    type Err = uuid::Error;

    fn from_str(s: &str) -> Result<ClusterId, Self::Err> {
        Uuid::parse_str(s).map(ClusterId)
    }
}

/// Where a cluster lives and what its objects are called.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClusterName {
    /// Namespace of the PaxosCluster.
    pub namespace: String,
    /// Name of the PaxosCluster; also of its StatefulSet.
    pub name: String,
    /// UID of the PaxosCluster: part of its certificates' names.
    pub uid: String,
    /// DNS domain of the Kubernetes cluster, such as `cluster.local`.
    pub domain: String,
}

impl ClusterName {
    /// The pod of an ordinal.
    pub fn pod(&self, ordinal: u32) -> String {
        format!("{}-{ordinal}", self.name)
    }

    /// The ordinal in a pod's name, if it is a pod of ours.
    pub fn ordinal_of_pod(&self, pod: &str) -> Option<u32> {
        parse_ordinal(pod.strip_prefix(&self.name)?.strip_prefix('-')?)
    }

    /// The volume claim of an ordinal.
    pub fn claim(&self, ordinal: u32) -> String {
        format!("{CLAIM}-{}-{ordinal}", self.name)
    }

    /// The ordinal in a claim's name, if it is a claim of ours.
    pub fn ordinal_of_claim(&self, claim: &str) -> Option<u32> {
        let pod = claim.strip_prefix(CLAIM)?.strip_prefix('-')?;
        self.ordinal_of_pod(pod)
    }

    /// The headless Service that gives every pod a DNS name, ready or not.
    pub fn peer_service(&self) -> String {
        format!("{}-peers", self.name)
    }

    /// The application's own Service.
    pub fn client_service(&self) -> String {
        self.name.clone()
    }

    /// The ConfigMap with the peers' addresses.
    pub fn config_map(&self) -> String {
        format!("{}-config", self.name)
    }

    /// The Secret the pods mount.
    pub fn tls_secret(&self) -> String {
        format!("{}-tls", self.name)
    }

    /// The Secret that holds the authority's key; no pod mounts it.
    pub fn ca_secret(&self) -> String {
        format!("{}-ca", self.name)
    }

    /// A pod's DNS name.
    pub fn host(&self, ordinal: u32) -> String {
        format!("{}.{}.{}.svc.{}", self.pod(ordinal), self.peer_service(), self.namespace, self.domain)
    }

    /// The name that the operator looks for in a pod's certificate: without the cluster's domain.
    pub fn dialled(&self, ordinal: u32) -> String {
        format!("{}.{}.{}.svc", self.pod(ordinal), self.peer_service(), self.namespace)
    }

    /// The URI in the certificate of a member's pod. docs: security.md, "Who is trusted".
    pub fn member_uri(&self, ordinal: u32) -> String {
        format!("spiffe://synod.dev/ns/{}/cluster/{}/member/{}", self.namespace, self.uid, self.pod(ordinal))
    }

    /// The URI in the operator's own client certificate for this cluster.
    pub fn operator_uri(&self) -> String {
        format!("spiffe://synod.dev/ns/{}/cluster/{}/operator", self.namespace, self.uid)
    }

    /// Label selector of the pods, as `/scale` publishes it.
    pub fn selector(&self) -> String {
        format!("{LABEL_CLUSTER}={}", self.name)
    }
}

/// `0` to `9999` without leading zeros.
fn parse_ordinal(text: &str) -> Option<u32> {
    let canonical = text == "0" || (!text.starts_with('0') && !text.starts_with('+'));
    if canonical && text.len() <= 4 { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> ClusterName {
        ClusterName {
            namespace: "ns".into(),
            name: "demo".into(),
            uid: "u".into(),
            domain: "cluster.local".into(),
        }
    }

    #[test]
    fn ordinals_come_back_from_names() {
        let n = name();
        assert_eq!(n.ordinal_of_pod("demo-11"), Some(11));
        assert_eq!(n.ordinal_of_pod("demo-011"), None);
        assert_eq!(n.ordinal_of_pod("demo-x"), None);
        assert_eq!(n.ordinal_of_pod("demo2-1"), None);
        assert_eq!(n.ordinal_of_claim(&n.claim(3)), Some(3));
        assert_eq!(n.ordinal_of_claim("demo-3"), None);
    }

    #[test]
    fn member_ids_keep_all_their_bits() {
        let id = MemberId(u64::MAX - 1);
        assert_eq!(id.to_string(), "fffffffffffffffe");
        assert_eq!(id.to_string().parse::<MemberId>(), Ok(id));
    }
}
