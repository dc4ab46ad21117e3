//! The custom resource `PaxosCluster` of `synod.dev/v1alpha1`.
//!
//! The types are the schema: `crdgen` writes `manifests/crd.yaml` from them. What a user may write is
//! checked by the API server (schema and CEL rules, each with a message that says what to do); what only
//! the operator can judge is checked in [`crate::validate`]. The pod template stays raw JSON, so that a
//! field this operator has never heard of reaches the pods unchanged.
//!
//! docs: operator-rules.md, "PaxosCluster".

// The schema derive copies each type into a scope of its own, where `pub` reaches nobody.
#![allow(unreachable_pub)]

mod raw;
mod status;
mod stored;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use raw::{PodTemplate, RawObject, Resources};
pub use status::{
    BootstrapMember, BootstrapStatus, Condition, ConditionType, FirstSettings, MemberRole, MemberStatus,
    OperationStatus, OperationType, PaxosClusterStatus, Reason,
};

/// One log, its members, and the application that runs beside them.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "synod.dev",
    version = "v1alpha1",
    kind = "PaxosCluster",
    namespaced,
    shortname = "paxos",
    category = "all",
    status = "PaxosClusterStatus",
    derive = "PartialEq",
    doc = "One replicated log: its members and, with a template, the application that runs beside them.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".spec.replicas", description = "Members wanted"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas", description = "Pods that are ready"),
    printcolumn(name = "Leader", type_ = "string", json_path = ".status.leader", description = "The pod that leads"),
    printcolumn(name = "Last-Index", type_ = "integer", json_path = ".status.lastIndex", description = "Entries in the log, at most 30 s old"),
    printcolumn(name = "Config", type_ = "integer", json_path = ".status.configVersion", description = "Version of the membership"),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        description = "Why it is or is not Ready"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Voters", type_ = "integer", json_path = ".status.voters", priority = 1, description = "Members that vote"),
    printcolumn(name = "Cluster-ID", type_ = "string", json_path = ".status.clusterId", priority = 1),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version", priority = 1),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$')").message(
        "the name must start with a letter, use only a-z, 0-9 and '-', not end in '-', and have at most 40 characters: pod and DNS names derive from it"
    ),
    validation = Rule::new("self.spec.tls.mode == oldSelf.spec.tls.mode || (self.spec.replicas == 0 && oldSelf.spec.replicas == 0 && (!has(self.status) || !has(self.status.replicas) || self.status.replicas == 0))").message(
        "tls.mode can be changed only while the cluster is hibernated: set replicas to 0 first, wait until its pods are gone, then tls.mode, then replicas"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct PaxosClusterSpec {
    /// Members wanted, 0 to 15. 0 hibernates the cluster and keeps every disk.
    #[serde(default = "default_replicas")]
    #[x_kube(validation = Rule::new("self >= 0 && self <= 15").message(
        "replicas must be between 0 and 15; 0 hibernates the cluster and keeps every disk"
    ))]
    pub replicas: i32,

    /// Most members that vote: odd, 1 to 15. Pods beyond it stay learners.
    #[serde(default = "default_max_voters")]
    #[x_kube(
        validation = Rule::new("self >= 1 && self <= 15 && self % 2 == 1").message(
            "maxVoters must be an odd number between 1 and 15: an even one adds a voter and no tolerance"
        ),
        validation = Rule::new("self >= oldSelf").message(
            "maxVoters cannot be lowered: a voter does not become a learner again; lower replicas instead"
        )
    )]
    pub max_voters: i32,

    /// Image of the sidecar. Unset: the one the operator was installed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// The members' volumes.
    #[serde(default)]
    pub storage: Storage,

    /// A pod template with the application's containers. Unset: the sidecar is the pod's only container.
    ///
    /// Reserved: the container name `synod`, volumes `synod-*` and `data`, variables `SYNOD_*`, labels
    /// `synod.dev/*`, the path /run/synod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "raw::template_schema")]
    pub template: Option<PodTemplate>,

    /// The socket the application's containers use.
    #[serde(default)]
    pub socket: Socket,

    /// How fast a lost leader is noticed. A change is an entry in the log; no pod restarts for it.
    #[serde(default)]
    pub election: Election,

    /// How reads are served. A change is an entry in the log; no pod restarts for it.
    #[serde(default)]
    pub reads: Reads,

    /// How much of the log is kept. Unset: all of it. A change is an entry in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,

    /// CPU and memory of the sidecar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "raw::resources_schema")]
    pub resources: Option<Resources>,

    /// A Service for the application's own ports. Unset: none is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ClientService>,

    /// A NetworkPolicy for the pods. Unset: none is made; mTLS protects the members' ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<AppNetworkPolicy>,

    /// What voluntary disruptions may take away.
    #[serde(default)]
    pub disruption: Disruption,

    /// How the pods are secured. `Restricted` makes the pods fit Pod Security `restricted`; `Platform` leaves user and group to the platform.
    #[serde(default)]
    pub pod_security: PodSecurity,

    /// How members' ports are protected.
    #[serde(default)]
    pub tls: Tls,

    /// Seconds a step may take before the cluster is reported as stalled.
    #[serde(default = "default_progress_deadline")]
    #[x_kube(validation = Rule::new("self >= 30 && self <= 86400").message(
        "progressDeadlineSeconds must be between 30 and 86400"
    ))]
    pub progress_deadline_seconds: i64,

    /// Stops every change by the operator; the status is still kept up to date.
    #[serde(default)]
    pub paused: bool,
}

fn default_replicas() -> i32 {
    3
}

fn default_max_voters() -> i32 {
    7
}

fn default_progress_deadline() -> i64 {
    600
}

impl Default for PaxosClusterSpec {
    fn default() -> Self {
        PaxosClusterSpec {
            replicas: default_replicas(),
            max_voters: default_max_voters(),
            image: None,
            storage: Storage::default(),
            template: None,
            socket: Socket::default(),
            election: Election::default(),
            reads: Reads::default(),
            retention: None,
            resources: None,
            service: None,
            network_policy: None,
            disruption: Disruption::default(),
            pod_security: PodSecurity::default(),
            tls: Tls::default(),
            progress_deadline_seconds: default_progress_deadline(),
            paused: false,
        }
    }
}

/// The members' volumes: one claim a pod.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!isQuantity(self.size) || !isQuantity(oldSelf.size) || quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0").message(
        "storage.size can only grow: a volume cannot be shrunk; keep the old size, or make a new cluster and copy the log"
    ),
    validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)").message(
        "storage.storageClassName cannot be changed: existing volumes stay where they are; make a new cluster in the other class"
    )
)]
pub struct Storage {
    /// Size of each volume; grow only.
    #[serde(default = "default_size")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('64Mi')) >= 0").message(
        "storage.size must be a quantity of at least 64Mi, such as 10Gi"
    ))]
    pub size: String,

    /// Storage class of the volumes; immutable. Unset: the default class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,

    /// What becomes of the volume of a member that scaling down removed.
    #[serde(default)]
    pub when_scaled: WhenScaled,

    /// What becomes of the volumes when the PaxosCluster is deleted.
    #[serde(default)]
    pub when_deleted: WhenDeleted,

    /// When a member whose volume can be used nowhere any more is replaced.
    #[serde(default, deserialize_with = "stored::replace_lost")]
    pub replace_lost: ReplaceLost,
}

fn default_size() -> String {
    "10Gi".to_owned()
}

impl Default for Storage {
    fn default() -> Self {
        Storage {
            size: default_size(),
            storage_class_name: None,
            when_scaled: WhenScaled::default(),
            when_deleted: WhenDeleted::default(),
            replace_lost: ReplaceLost::default(),
        }
    }
}

/// Fate of a removed member's volume.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenScaled {
    /// The claim is deleted once the member is retired and its pod is gone.
    #[default]
    Delete,
    /// The claim is kept under the label `synod.dev/retired`.
    Retain,
}

/// Fate of the volumes of a deleted cluster.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenDeleted {
    /// The claims stay: a cluster made again under the same name adopts them.
    #[default]
    Retain,
    /// The claims go with the cluster.
    Delete,
}

/// When a member is lost. A volume that another node can use is never given up.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplaceLost {
    /// Who declares it.
    #[serde(default)]
    pub policy: ReplacePolicy,

    /// How long its node must have been gone, as a duration such as 5m.
    #[serde(default = "default_replace_after")]
    #[schemars(length(max = 10))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,6}(s|m|h)$')").message(
        "storage.replaceLost.after must be a duration in s, m or h, such as 5m"
    ))]
    pub after: String,
}

fn default_replace_after() -> String {
    "5m".to_owned()
}

impl Default for ReplaceLost {
    fn default() -> Self {
        ReplaceLost { policy: ReplacePolicy::default(), after: default_replace_after() }
    }
}

/// Who declares a member lost.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplacePolicy {
    /// The operator, once its volume is bound to a node that does not exist any more.
    #[default]
    NodeGone,
    /// Only the annotation `synod.dev/replace=<member id>` declares it.
    Manual,
}

/// The socket in the application's containers.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Socket {
    /// File mode of the socket, octal.
    #[serde(default = "default_socket_mode")]
    #[schemars(length(max = 5))]
    #[x_kube(validation = Rule::new("self.matches('^0[0-7]{3}$')").message(
        "socket.mode must be an octal file mode of four digits in quotes, such as \"0660\""
    ))]
    pub mode: String,

    /// User ids that may call; empty: everyone who can open the socket.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "raw::uid_set_schema")]
    pub allowed_uids: Vec<i64>,
}

fn default_socket_mode() -> String {
    "0660".to_owned()
}

impl Default for Socket {
    fn default() -> Self {
        Socket { mode: default_socket_mode(), allowed_uids: Vec::new() }
    }
}

/// How fast a lost leader is noticed.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "duration(self.timeout) >= duration(self.heartbeat) + duration(self.heartbeat) + duration(self.heartbeat) + duration(self.heartbeat) + duration(self.heartbeat) + duration(self.heartbeat) + duration(self.heartbeat) + duration(self.heartbeat) + duration(self.heartbeat) + duration(self.heartbeat)"
).message("election.timeout must be at least ten times election.heartbeat, or a slow disk costs a leader"))]
#[x_kube(validation = Rule::new(
    "duration(self.heartbeat) >= duration('20ms') && duration(self.timeout) <= duration('60s')"
).message("election.heartbeat must be at least 20ms and election.timeout at most 60s"))]
pub struct Election {
    /// How often a leader speaks, such as 100ms; at least 20ms.
    #[serde(default = "default_heartbeat")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,5}(ms|s)$')").message(
        "election.heartbeat must be a duration in ms or s, such as 100ms"
    ))]
    pub heartbeat: String,

    /// How long a silent leader is waited for, such as 1s; at least ten heartbeats, at most 60s.
    #[serde(default = "default_election_timeout")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,5}(ms|s)$')").message(
        "election.timeout must be a duration in ms or s, such as 1s"
    ))]
    pub timeout: String,
}

fn default_heartbeat() -> String {
    "100ms".to_owned()
}

fn default_election_timeout() -> String {
    "1s".to_owned()
}

impl Default for Election {
    fn default() -> Self {
        Election { heartbeat: default_heartbeat(), timeout: default_election_timeout() }
    }
}

/// How reads are served.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reads {
    /// Whether a leader may answer from a lease, without asking a quorum.
    #[serde(default)]
    pub leases: bool,

    /// How far two members' clocks may differ in rate, 0% to 20%.
    #[serde(default = "default_drift")]
    #[schemars(length(max = 4))]
    #[x_kube(validation = Rule::new("self.matches('^(20|1?[0-9])%$')").message(
        "reads.maxClockDrift must be a whole percentage from 0% to 20%, such as 5%"
    ))]
    pub max_clock_drift: String,
}

fn default_drift() -> String {
    "5%".to_owned()
}

impl Default for Reads {
    fn default() -> Self {
        Reads { leases: false, max_clock_drift: default_drift() }
    }
}

/// How much of the log is kept.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// Most entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_entries: Option<i64>,

    /// Most bytes of entries, as a quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("isQuantity(self)").message(
        "retention.maxBytes must be a quantity, such as 5Gi"
    ))]
    pub max_bytes: Option<String>,

    /// Greatest age of an entry, as a duration such as 168h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,9}(ms|s|m|h)$')").message(
        "retention.maxAge must be a duration in ms, s, m or h, such as 168h"
    ))]
    pub max_age: Option<String>,
}

/// The application's own Service.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientService {
    /// Ports of the application; empty: no Service. More than one need a name each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "raw::service_ports_schema")]
    pub ports: Vec<RawObject>,
}

/// The application's own network rules.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AppNetworkPolicy {
    /// NetworkPolicy ingress rules for the application; empty: only the members and the operator get in.
    #[serde(default)]
    #[schemars(schema_with = "raw::ingress_schema")]
    pub app_ingress: Vec<RawObject>,
}

/// What voluntary disruptions may take away.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Disruption {
    /// `Quorum` keeps a quorum of voters through drains; `None` makes no budget.
    #[serde(default)]
    pub budget: Budget,
}

/// Kind of disruption budget.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Budget {
    /// A quorum of voters stays.
    #[default]
    Quorum,
    /// No budget.
    None,
}

/// How the pods are secured.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodSecurity {
    /// Numeric non-root ids and all that Pod Security `restricted` asks for.
    #[default]
    Restricted,
    /// User and group ids are left to the platform.
    Platform,
}

/// How members' ports are protected.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.mode == 'Provided' || !has(self.secretName)").message(
    "tls.secretName goes with tls.mode Provided only: remove it, or set the mode"
))]
#[x_kube(validation = Rule::new("self.mode != 'Provided' || has(self.secretName)").message(
    "tls.mode Provided needs tls.secretName: a Secret with ca.crt, <pod>.crt and <pod>.key for each pod, and operator.crt and operator.key"
))]
pub struct Tls {
    /// `Managed`: the operator keeps an authority for the cluster. `Provided`: `secretName` holds the
    /// pairs. `Disabled`: no protection; for trials only.
    #[serde(default)]
    pub mode: TlsMode,

    /// The Secret of `Provided`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: Option<String>,
}

/// Who makes the certificates.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsMode {
    /// The operator.
    #[default]
    Managed,
    /// The user.
    Provided,
    /// Nobody.
    Disabled,
}
