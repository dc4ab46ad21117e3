//! The objects of all clusters as the watches tell: a stamp each, nothing else. A reconcile compares the stamp
//! with the one its own write left, so that what somebody changed or deleted is put back at once and what
//! stands costs no request. docs: operator-rules.md, "Objects it owns".

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use kube::ResourceExt;
use kube::runtime::watcher::Event;

use crate::build::Kind;

/// The stamp of an object that is not there.
const ABSENT: &str = "absent";

/// What is known of each kind.
#[derive(Default)]
pub struct Watched {
    kinds: Mutex<BTreeMap<(Kind, String), Known>>,
    told: Mutex<Told>,
}

/// How often watches told of each cluster.
#[derive(Default)]
struct Told {
    /// Watches, by plural and scope, that have read a whole list.
    complete: BTreeSet<(&'static str, String)>,
    /// By namespace and name of the cluster. A count is kept for as long as the process runs: 0 and gone must
    /// not look alike.
    counts: BTreeMap<(String, String), u64>,
}

/// The watches that tell of a cluster: PaxosClusters, StatefulSets, pods, claims and budgets.
const WATCHES: usize = 5;

/// Objects of one kind in one watch.
#[derive(Default)]
struct Known {
    /// Whether a whole list has been seen.
    complete: bool,
    /// Stamps by namespace and name.
    stamps: BTreeMap<(String, String), String>,
    /// A list that is being read.
    pending: BTreeMap<(String, String), String>,
}

impl Watched {
    /// Notes what a watch says; `scope` is the namespace it watches, empty for all of them.
    pub fn note<K: ResourceExt>(&self, kind: Kind, scope: &str, event: &Event<K>) {
        let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kinds.entry((kind, scope.to_owned())).or_default();
        match event {
            Event::Init => known.pending.clear(),
            Event::InitApply(object) => {
                known.pending.insert(key(object), stamp(object));
            }
            Event::InitDone => {
                known.stamps = std::mem::take(&mut known.pending);
                known.complete = true;
            }
            Event::Apply(object) => {
                known.stamps.insert(key(object), stamp(object));
            }
            Event::Delete(object) => {
                known.stamps.remove(&key(object));
            }
        }
    }

    /// Counts what a watch of what is read tells; `cluster` gives namespace and name of the cluster of an object.
    pub fn count<K>(
        &self,
        plural: &'static str,
        scope: &str,
        event: &Event<K>,
        cluster: impl Fn(&K) -> Option<(String, String)>,
    ) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => {}
            // What went while nobody watched is missing from the new list, and nobody tells of it.
            Event::InitDone => {
                told.complete.insert((plural, scope.to_owned()));
                told.counts.values_mut().for_each(|count| *count += 1);
            }
            Event::InitApply(object) | Event::Apply(object) | Event::Delete(object) => {
                if let Some(key) = cluster(object) {
                    *told.counts.entry(key).or_default() += 1;
                }
            }
        }
    }

    /// How often the watches told of a cluster; `None` while one of them has not read its list.
    pub fn told(&self, namespace: &str, name: &str) -> Option<u64> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let covers = |scope: &str| scope.is_empty() || scope == namespace;
        let complete = told.complete.iter().filter(|(_, scope)| covers(scope)).count();
        let count = told.counts.get(&(namespace.to_owned(), name.to_owned()));
        (complete >= WATCHES).then(|| count.copied().unwrap_or(0))
    }

    /// The stamp of an object, `absent` where there is none; `None` while that is not known.
    pub fn stamp(&self, kind: Kind, namespace: &str, name: &str) -> Option<String> {
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let own = kinds.get(&(kind, namespace.to_owned()));
        let known = own.or_else(|| kinds.get(&(kind, String::new()))).filter(|k| k.complete)?;
        let stamp = known.stamps.get(&(namespace.to_owned(), name.to_owned()));
        Some(stamp.cloned().unwrap_or_else(|| ABSENT.to_owned()))
    }
}

/// Changes when the object does: its UID, and the generation where there is one (a status that changes is no
/// news), else the resource version.
pub fn stamp<K: ResourceExt>(object: &K) -> String {
    let meta = object.meta();
    let version = match meta.generation {
        Some(generation) => format!("g{generation}"),
        None => meta.resource_version.clone().unwrap_or_default(),
    };
    format!("{}/{version}", meta.uid.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn map(version: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some("ns".into());
        map.metadata.name = Some("a".into());
        map.metadata.uid = Some("u".into());
        map.metadata.resource_version = Some(version.into());
        map
    }

    #[test]
    fn what_is_not_known_yet_is_not_taken_for_absent() {
        let watched = Watched::default();
        let look = || watched.stamp(Kind::ConfigMap, "ns", "a");
        assert_eq!(look(), None);
        watched.note(Kind::ConfigMap, "", &Event::<ConfigMap>::Init);
        watched.note(Kind::ConfigMap, "", &Event::InitApply(map("1")));
        assert_eq!(look(), None, "the list is not complete");
        watched.note(Kind::ConfigMap, "", &Event::<ConfigMap>::InitDone);
        assert_eq!(look().as_deref(), Some("u/1"));
        watched.note(Kind::ConfigMap, "", &Event::Apply(map("2")));
        assert_eq!(look().as_deref(), Some("u/2"));
        watched.note(Kind::ConfigMap, "", &Event::Delete(map("2")));
        assert_eq!(look().as_deref(), Some("absent"));
        assert_eq!(watched.stamp(Kind::Service, "ns", "a"), None, "another kind");
    }

    #[test]
    fn a_list_that_is_read_again_drops_what_went_meanwhile() {
        let watched = Watched::default();
        watched.note(Kind::ConfigMap, "ns", &Event::Apply(map("1")));
        watched.note(Kind::ConfigMap, "ns", &Event::<ConfigMap>::Init);
        watched.note(Kind::ConfigMap, "ns", &Event::<ConfigMap>::InitDone);
        assert_eq!(watched.stamp(Kind::ConfigMap, "ns", "a").as_deref(), Some("absent"));
    }

    #[test]
    fn what_is_told_of_a_cluster_is_counted_once_every_watch_runs() {
        let watched = Watched::default();
        let own = |_: &ConfigMap| Some(("ns".to_owned(), "demo".to_owned()));
        let look = || watched.told("ns", "demo");
        for plural in ["a", "b", "c", "d", "e"] {
            assert_eq!(look(), None);
            watched.count(plural, "", &Event::InitApply(map("1")), own);
            watched.count(plural, "", &Event::InitDone, own);
        }
        let before = look().unwrap();
        watched.count("a", "", &Event::Apply(map("2")), |_| Some(("ns".into(), "other".into())));
        assert_eq!(look(), Some(before), "of another cluster");
        watched.count("a", "", &Event::Delete(map("2")), own);
        assert_eq!(look(), Some(before + 1));
        watched.count("a", "", &Event::InitDone, own);
        assert_eq!(look(), Some(before + 2), "what went while nobody watched");
    }

    #[test]
    fn a_status_that_changes_is_no_news() {
        let (mut one, mut two) = (map("1"), map("2"));
        one.metadata.generation = Some(3);
        two.metadata.generation = Some(3);
        assert_eq!(stamp(&one), stamp(&two));
    }
}
