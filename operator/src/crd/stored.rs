//! Forms of fields that objects stored by older versions have: the API server hands them out as they were stored.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{ReplaceLost, ReplacePolicy};

/// `storage.replaceLost`: an object, or the policy alone, which was the whole of it once and stands in every
/// object of that time, because it was a default.
pub(super) fn replace_lost<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ReplaceLost, D::Error> {
    deserializer.deserialize_any(Either)
}

struct Either;

impl<'de> Visitor<'de> for Either {
    type Value = ReplaceLost;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("storage.replaceLost as an object with policy and after")
    }

    fn visit_str<E: Error>(self, policy: &str) -> Result<ReplaceLost, E> {
        let policy = ReplacePolicy::deserialize(StrDeserializer::new(policy))?;
        Ok(ReplaceLost { policy, ..ReplaceLost::default() })
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<ReplaceLost, A::Error> {
        ReplaceLost::deserialize(MapAccessDeserializer::new(fields))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::crd::{PaxosCluster, ReplaceLost, ReplacePolicy};

    /// What the first schema made of `spec: {}`: its defaults were stored.
    fn stored(replace_lost: Value) -> Value {
        json!({
            "apiVersion": "synod.dev/v1alpha1",
            "kind": "PaxosCluster",
            "metadata": { "name": "demo", "namespace": "ns" },
            "spec": {
                "replicas": 3,
                "maxVoters": 7,
                "storage": {
                    "size": "10Gi",
                    "whenScaled": "Delete",
                    "whenDeleted": "Retain",
                    "replaceLost": replace_lost,
                },
                "socket": { "mode": "0660" },
                "election": { "heartbeat": "100ms", "timeout": "1s" },
                "reads": { "leases": false, "maxClockDrift": "5%" },
                "disruption": { "budget": "Quorum" },
                "tls": { "mode": "Managed" },
                "progressDeadlineSeconds": 600,
                "paused": false,
            },
        })
    }

    fn read(replace_lost: Value) -> Result<ReplaceLost, serde_json::Error> {
        let cluster: PaxosCluster = serde_json::from_value(stored(replace_lost))?;
        Ok(cluster.spec.storage.replace_lost)
    }

    #[test]
    fn an_object_of_the_first_schema_is_read() {
        let after = "5m".to_owned();
        let manual = ReplaceLost { policy: ReplacePolicy::Manual, after };
        assert_eq!(read(json!("NodeGone")).unwrap(), ReplaceLost::default());
        assert_eq!(read(json!("Manual")).unwrap(), manual);
        assert_eq!(read(json!({ "policy": "Manual" })).unwrap(), manual);
        assert_eq!(read(json!({ "after": "1h" })).unwrap().after, "1h");
    }

    #[test]
    fn what_is_neither_form_is_told() {
        let told = |replace_lost| read(replace_lost).unwrap_err().to_string();
        assert!(told(json!("Sometimes")).contains("unknown variant `Sometimes`"));
        assert!(told(json!(7)).contains("storage.replaceLost as an object"), "{}", told(json!(7)));
    }
}
