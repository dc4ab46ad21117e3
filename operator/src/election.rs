//! One operator acts at a time: leader election by a Lease.
//!
//! Correctness does not rest on it (every proposal carries the version it was planned from, every write
//! its resourceVersion or UID); it spares two operators from doing the same work. Whether a holder is
//! alive is judged by the own clock from when its record was last seen to change, never by the time it
//! wrote: clocks differ.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::error::code;

/// How long a silent holder is waited for.
const LEASE: Duration = Duration::from_secs(15);
/// How long the holder may fail to renew before it stops acting: well before others may take over.
const GIVE_UP: Duration = Duration::from_secs(8);
/// How long one attempt may take: less than what is left between two failed ones and giving up.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often the lease is looked at.
pub const PERIOD: Duration = Duration::from_secs(2);

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// This process holds the lease.
    Leader,
    /// Another one does.
    Follower,
}

/// What is remembered of the lease between attempts.
#[derive(Debug, Default)]
struct Seen {
    /// Holder and renewal as they were last read.
    record: Option<(Option<String>, Option<Timestamp>)>,
    /// When that was first read.
    since: Option<Instant>,
}

/// Takes part in the election.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    seen: Seen,
    renewed: Option<Instant>,
    heard: bool,
}

impl Elector {
    /// An elector for the lease `name` in `namespace`; `identity` must be this process's own.
    pub fn new(client: Client, namespace: &str, name: &str, identity: String) -> Elector {
        Elector {
            api: Api::namespaced(client, namespace),
            name: name.into(),
            identity,
            seen: Seen::default(),
            renewed: None,
            heard: false,
        }
    }

    /// Renews or takes the lease. Call it every [`PERIOD`].
    ///
    /// An API server that does not answer leaves a leader in place until its own deadline, and a follower
    /// where it is.
    pub async fn attempt(&mut self) -> Standing {
        let asked = Instant::now();
        let answer = tokio::time::timeout(PATIENCE, self.write()).await;
        self.heard |= matches!(answer, Ok(Ok(_)));
        match answer {
            // Counted from before the write: others count from when they see it.
            Ok(Ok(true)) => self.renewed = Some(asked),
            Ok(Ok(false)) => self.renewed = None,
            Ok(Err(e)) => tracing::warn!(error = %e, lease = self.name, "the lease cannot be renewed"),
            Err(_) => tracing::warn!(lease = self.name, "the API server does not answer in time"),
        }
        match self.renewed {
            Some(at) if at.elapsed() < GIVE_UP => Standing::Leader,
            _ => {
                self.renewed = None;
                Standing::Follower
            }
        }
    }

    /// Whether the API server has answered an attempt.
    pub fn was_heard(&self) -> bool {
        self.heard
    }

    /// One attempt: whether this process holds the lease now.
    async fn write(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(None)) };
            return won(self.api.create(&PostParams::default(), &lease).await);
        };
        let held = lease.spec.clone().unwrap_or_default();
        if !free(&mut self.seen, &held, &self.identity, Instant::now()) {
            return Ok(false);
        }
        // The resourceVersion that was read makes this fail if anybody wrote in between.
        lease.spec = Some(self.spec(Some(&held)));
        won(self.api.replace(&self.name, &PostParams::default(), &lease).await)
    }

    fn spec(&self, held: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = held.filter(|h| h.holder_identity.as_deref() == Some(&self.identity));
        let transitions = held.and_then(|h| h.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            acquire_time: ours.and_then(|h| h.acquire_time.clone()).or(Some(now.clone())),
            renew_time: Some(now),
            lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
            lease_transitions: Some(if ours.is_some() || held.is_none() {
                transitions
            } else {
                transitions + 1
            }),
            ..LeaseSpec::default()
        }
    }

    /// Gives the lease back, so that the next operator need not wait. Best effort.
    pub async fn release(&mut self) {
        if self.renewed.take().is_none() {
            return;
        }
        let released = async {
            let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
            let held = lease.spec.clone().unwrap_or_default();
            if held.holder_identity.as_deref() == Some(&self.identity) {
                lease.spec = Some(LeaseSpec { holder_identity: None, ..held });
                self.api.replace(&self.name, &PostParams::default(), &lease).await?;
            }
            Ok::<(), kube::Error>(())
        };
        if let Err(e) = released.await {
            tracing::warn!(error = %e, lease = self.name, "the lease was not released; it runs out by itself");
        }
    }
}

/// Losing the race is an answer.
fn won(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(e) if code(&e) == Some(409) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether the lease may be written by `identity`: it is ours, nobody's, or its holder has been silent for
/// the whole of its duration by our own clock.
fn free(seen: &mut Seen, held: &LeaseSpec, identity: &str, now: Instant) -> bool {
    let holder = held.holder_identity.clone().filter(|h| !h.is_empty());
    if holder.as_deref().is_none_or(|h| h == identity) {
        return true;
    }
    let record = (holder, held.renew_time.as_ref().map(|t| t.0));
    if seen.record.as_ref() != Some(&record) {
        *seen = Seen { record: Some(record), since: Some(now) };
        return false;
    }
    let duration =
        held.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).map_or(LEASE, Duration::from_secs);
    seen.since.is_some_and(|since| now.duration_since(since) > duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(by: &str, at: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(by.into()),
            renew_time: Some(MicroTime(Timestamp::from_second(at).unwrap())),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_holder_is_silent_by_our_clock_and_not_by_its_own() {
        let mut seen = Seen::default();
        let start = Instant::now();
        // Its clock is years behind; it was just seen for the first time.
        assert!(!free(&mut seen, &held("other", 0), "me", start));
        assert!(!free(&mut seen, &held("other", 0), "me", start + Duration::from_secs(15)));
        assert!(free(&mut seen, &held("other", 0), "me", start + Duration::from_secs(16)));
    }

    #[test]
    fn a_holder_that_renews_keeps_the_lease() {
        let mut seen = Seen::default();
        let start = Instant::now();
        for i in 0..10 {
            let later = start + Duration::from_secs(10 * i);
            assert!(!free(&mut seen, &held("other", i64::try_from(i).unwrap()), "me", later));
        }
    }

    #[test]
    fn a_released_lease_and_our_own_are_free_at_once() {
        let mut seen = Seen::default();
        let released = LeaseSpec { holder_identity: None, ..held("", 3) };
        assert!(free(&mut seen, &released, "me", Instant::now()));
        assert!(free(&mut seen, &held("", 3), "me", Instant::now()));
        assert!(free(&mut seen, &held("me", 3), "me", Instant::now()));
    }
}
