//! `status` of a PaxosCluster: what the operator last saw, and why it waits.
//!
//! The log's configuration entry is the truth; this is a cache of it, but for `clusterId` and `bootstrap`,
//! which are written before they are used (docs: operator-rules.md, rule 1).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The observed state of a cluster.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaxosClusterStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Id of the log, a UUID; written before it is used and never changed afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,

    /// The first members; written before they are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<BootstrapStatus>,

    /// Version of the newest configuration a member has applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_version: Option<i64>,

    /// The step under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationStatus>,

    /// The pod that leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,

    /// The members, by ordinal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberStatus>,

    /// Members that vote in the newest configuration.
    #[serde(default)]
    pub voters: i32,

    /// Pods there are.
    #[serde(default)]
    pub replicas: i32,

    /// Pods that are ready.
    #[serde(default)]
    pub ready_replicas: i32,

    /// Pods of the newest revision.
    #[serde(default)]
    pub updated_replicas: i32,

    /// Label selector of the pods, for `/scale`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,

    /// Index of the last entry, at most 30 s old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_index: Option<i64>,

    /// Version of the sidecar that leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,

    /// Conditions, by type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// The first members of a cluster.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BootstrapStatus {
    /// Who is named in `Initialize`; every member is told the same list.
    #[serde(default)]
    pub members: Vec<BootstrapMember>,
    /// Whether every one of them has confirmed.
    #[serde(default)]
    pub done: bool,
    /// The settings every one of them is told, whatever the spec says by then: founders of different settings would
    /// never agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<FirstSettings>,
}

/// The log's first settings.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FirstSettings {
    /// Milliseconds between two words of a leader.
    pub heartbeat_ms: u32,
    /// Milliseconds a silent leader is waited for.
    pub election_timeout_ms: u32,
    /// Whether a leader may answer reads from a lease.
    pub leases: bool,
    /// How far clocks may differ in rate.
    pub clock_drift_percent: u32,
    /// Most entries kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_entries: Option<u64>,
    /// Most bytes of entries kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Greatest age of an entry in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
}

/// One of the first members.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BootstrapMember {
    /// Its pod.
    pub pod: String,
    /// Its id: 16 hexadecimal digits.
    pub member_id: String,
}

/// The step under way.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationStatus {
    /// Id the membership proposal carries; a repeat is answered with what happened.
    pub id: String,
    /// What is done.
    #[serde(rename = "type")]
    pub kind: OperationType,
    /// The pod it is done to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// When it began.
    pub started_at: Time,
    /// What it waits for, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub waiting_for: String,
}

/// Kinds of operation.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OperationType {
    /// The cluster is formed.
    Bootstrap,
    /// A hibernated or deleted set of pods comes back.
    Wake,
    /// The pods go, the disks stay.
    Hibernate,
    /// A member is added.
    Grow,
    /// A member is taken out.
    Shrink,
    /// A lost member is replaced.
    Replace,
    /// Pods are restarted into a new revision.
    Roll,
    /// A broken pod is restarted.
    Repair,
    /// Claims are resized.
    Resize,
    /// The log's settings are changed.
    Configure,
}

/// One pod and the member on its disk.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// The pod.
    pub pod: String,
    /// The member's id: 16 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member_id: Option<String>,
    /// How often it has started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<i64>,
    /// UID of its volume claim.
    #[serde(default, rename = "pvcUID", skip_serializing_if = "Option::is_none")]
    pub pvc_uid: Option<String>,
    /// Its part in the newest configuration.
    #[serde(default)]
    pub role: MemberRole,
    /// Whether it leads.
    #[serde(default)]
    pub leader: bool,
    /// Every slot up to this one is chosen and known to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_through: Option<i64>,
    /// The last index it has applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_index: Option<i64>,
    /// Whether it answers and is ready.
    #[serde(default)]
    pub healthy: bool,
    /// Since when it is silent and the node that its volume is bound to does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_since: Option<Time>,
}

/// A member's part in the newest configuration.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberRole {
    /// It votes.
    Voter,
    /// It follows the log without a vote.
    Learner,
    /// It is not in the configuration.
    #[default]
    None,
}

/// A condition: the fields every tool knows.
pub type Condition = k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// Schema of `status.conditions`: a map by type.
fn conditions_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let text = |max: u32| serde_json::json!({ "type": "string", "maxLength": max });
    schemars::json_schema!({
        "type": "array",
        "description": "Conditions, by type.",
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": text(316),
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "reason": text(1024),
                "message": text(32768),
            },
        },
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}

/// Types of condition, in the order they are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConditionType {
    /// Generation observed, voters as desired, all caught up, no operation under way.
    Ready,
    /// A quorum answers and a leader is known.
    Available,
    /// Work is under way or due.
    Reconciling,
    /// No progress without a person.
    Stalled,
    /// It works, and less well protected than asked for.
    Degraded,
    /// The cluster has been formed.
    Bootstrapped,
}

impl ConditionType {
    /// All types, in the order they are shown.
    pub const ALL: [ConditionType; 6] = [
        ConditionType::Ready,
        ConditionType::Available,
        ConditionType::Reconciling,
        ConditionType::Stalled,
        ConditionType::Degraded,
        ConditionType::Bootstrapped,
    ];

    /// The name as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            ConditionType::Ready => "Ready",
            ConditionType::Available => "Available",
            ConditionType::Reconciling => "Reconciling",
            ConditionType::Stalled => "Stalled",
            ConditionType::Degraded => "Degraded",
            ConditionType::Bootstrapped => "Bootstrapped",
        }
    }
}

/// Why a condition has its status: a closed list, so that tools can match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// All is as asked for.
    AsDesired,
    /// The cluster is being formed.
    Bootstrapping,
    /// The pods come back to their disks.
    Waking,
    /// `replicas: 0`: no pods, every disk kept.
    Hibernated,
    /// The pods go, the disks stay.
    Hibernating,
    /// Members are being added.
    Growing,
    /// Members are being taken out.
    Shrinking,
    /// Pods are being restarted into a new revision.
    Rolling,
    /// A lost member is being replaced.
    Replacing,
    /// A broken pod is being restarted.
    Repairing,
    /// Volumes are being enlarged.
    Resizing,
    /// The log's settings are being changed.
    Configuring,
    /// Members that should be ready are not.
    MembersNotReady,
    /// `paused: true`.
    Paused,
    /// The object is being deleted.
    Deleting,
    /// The spec asks for what cannot be.
    InvalidSpec,
    /// The server refuses the pods of this template.
    InvalidTemplate,
    /// Disks of several clusters under one name.
    ForeignDisks,
    /// An object of a name we need belongs to someone else.
    NameConflict,
    /// A pod could not be made: quota or admission.
    FailedCreate,
    /// A pod's image cannot be fetched.
    ImagePullFailed,
    /// A container ends again and again.
    CrashLooping,
    /// A pod finds no node.
    Unschedulable,
    /// No progress within `progressDeadlineSeconds`.
    ProgressDeadlineExceeded,
    /// A quorum answers and a leader is known.
    QuorumAvailable,
    /// Too few members answer.
    QuorumLost,
    /// A quorum answers, and no leader is known yet.
    NoLeader,
    /// Nothing has been formed yet.
    NotBootstrapped,
    /// The cluster was formed.
    Formed,
    /// Disks with a life under this name were taken on.
    Adopted,
    /// Nothing is wrong.
    Healthy,
    /// Voters share a node.
    VotersShareNode,
    /// One or two voters: drains are blocked by the budget.
    DrainsBlocked,
    /// A member's disk shows less than its peers remember.
    MemberFenced,
    /// A voter does not answer.
    VoterDown,
    /// A member's volume claim is being deleted: its disk goes with its pod.
    ClaimTerminating,
    /// A member's disk has no space for appends.
    DiskFull,
    /// A member's disk will soon have no space for appends.
    DiskLow,
    /// The API server refuses an object or a change; the rest goes on.
    Refused,
    /// Another version of the operator makes the pods otherwise, and other clusters are rolled first.
    UpgradeWaits,
    /// Nothing stands in the way.
    NotStalled,
    /// Nothing is due.
    Idle,
}

impl Reason {
    /// The word as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::AsDesired => "AsDesired",
            Reason::Bootstrapping => "Bootstrapping",
            Reason::Waking => "Waking",
            Reason::Hibernated => "Hibernated",
            Reason::Hibernating => "Hibernating",
            Reason::Growing => "Growing",
            Reason::Shrinking => "Shrinking",
            Reason::Rolling => "Rolling",
            Reason::Replacing => "Replacing",
            Reason::Repairing => "Repairing",
            Reason::Resizing => "Resizing",
            Reason::Configuring => "Configuring",
            Reason::MembersNotReady => "MembersNotReady",
            Reason::Paused => "Paused",
            Reason::Deleting => "Deleting",
            Reason::InvalidSpec => "InvalidSpec",
            Reason::InvalidTemplate => "InvalidTemplate",
            Reason::ForeignDisks => "ForeignDisks",
            Reason::NameConflict => "NameConflict",
            Reason::FailedCreate => "FailedCreate",
            Reason::ImagePullFailed => "ImagePullFailed",
            Reason::CrashLooping => "CrashLooping",
            Reason::Unschedulable => "Unschedulable",
            Reason::ProgressDeadlineExceeded => "ProgressDeadlineExceeded",
            Reason::QuorumAvailable => "QuorumAvailable",
            Reason::QuorumLost => "QuorumLost",
            Reason::NoLeader => "NoLeader",
            Reason::NotBootstrapped => "NotBootstrapped",
            Reason::Formed => "Formed",
            Reason::Adopted => "Adopted",
            Reason::Healthy => "Healthy",
            Reason::VotersShareNode => "VotersShareNode",
            Reason::DrainsBlocked => "DrainsBlocked",
            Reason::MemberFenced => "MemberFenced",
            Reason::VoterDown => "VoterDown",
            Reason::ClaimTerminating => "ClaimTerminating",
            Reason::DiskFull => "DiskFull",
            Reason::DiskLow => "DiskLow",
            Reason::Refused => "Refused",
            Reason::UpgradeWaits => "UpgradeWaits",
            Reason::NotStalled => "NotStalled",
            Reason::Idle => "Idle",
        }
    }
}

#[cfg(test)]
mod tests {
    /// Every reason is told in the page for people.
    #[test]
    fn each_reason_is_documented() {
        let (code, page) = (include_str!("status.rs"), include_str!("../../../docs/operator.md"));
        let words: Vec<&str> = code
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Reason::")?.split_once("=> \""))
            .map(|(_, word)| word.trim_end_matches("\","))
            .collect();
        assert!(words.len() > 30, "{words:?}");
        for word in words {
            assert!(page.contains(&format!("`{word}`")), "docs/operator.md does not tell of {word}");
        }
    }
}
