//! Keeps the two Secrets of a managed cluster: the authority's, which no pod mounts, and the one with a
//! pair for each ordinal. docs: operator-rules.md, "TLS".
//!
//! A new authority comes in three moves, each when every member shows that it has followed the one before: the
//! bundle gets the new certificate beside the old; the pairs are made by the new; the old one leaves the bundle.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::build::{self, content_hash, prepared_ordinals};
use crate::context::Context;
use crate::dereference::{Access, Dereferenced, authority, offset, secret, text};
use crate::error::Error;
use crate::names::{ANNOTATION_ISSUER, ANNOTATION_ROTATE};
use crate::observed::{Observed, Trust};
use crate::tls::{Authority, bundle, is_due, is_stale};
use crate::validate::Desired;

use super::objects::applying;

/// Secrets are read by name only, never watched: looked at this often.
const LOOK_SECONDS: i64 = 60;

/// Makes what is missing or due, and takes the next move of a change of the authority.
pub(super) async fn ensure(
    ctx: &Context,
    desired: &Desired,
    read: &Dereferenced,
    size: u32,
) -> Result<(), Error> {
    let count = prepared_ordinals(desired, size);
    let rotate = read.observed.rotate.clone().unwrap_or_default();
    let (uid, key, hash) = (&desired.name.uid, "Certificates", format!("{count}/{rotate}"));
    if ctx.applied_within(uid, key, &hash, LOOK_SECONDS) {
        return Ok(());
    }
    let stored = authority(ctx, desired).await?;
    let live = secret(ctx, desired, &desired.name.tls_secret()).await?;
    let standing = Standing::of(live.as_ref());
    let authority = match stored {
        None => found(ctx, desired, &rotate).await?,
        Some(stored) => {
            let done = stored.secret.annotations().get(ANNOTATION_ROTATE).cloned().unwrap_or_default();
            let asked = !rotate.is_empty() && rotate != done;
            let ends = is_due(&stored.authority.pair().certificate, offset(ctx.now()));
            // One change after the other: the members follow the last one first.
            let settled = standing.bundle == bundle(&stored.authority.pair().certificate);
            match (asked || ends) && settled {
                true => renew(ctx, desired, &stored, &rotate).await?,
                false => stored.authority,
            }
        }
    };
    let settled = pairs(ctx, desired, &authority, standing, live.as_ref(), read, count).await?;
    if settled {
        ctx.applied(uid, key, &hash, None);
    } else {
        // What members show is asked for by what stands now.
        ctx.read_again(&desired.name.namespace, &desired.name.name);
    }
    Ok(())
}

/// What the members mount now.
struct Standing {
    /// Authorities they are to trust.
    bundle: Vec<String>,
    /// The authority that all pairs are from, as a hash; `None` where that is not said.
    issuer: Option<String>,
}

impl Standing {
    fn of(live: Option<&Secret>) -> Standing {
        Standing {
            bundle: live.map(|s| bundle(&text(s, "ca.crt"))).unwrap_or_default(),
            issuer: live.and_then(|s| s.annotations().get(ANNOTATION_ISSUER).cloned()),
        }
    }
}

/// The next move, decided by what stands and by what every member shows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Move {
    /// Authorities to trust.
    bundle: Vec<String>,
    /// Whether all pairs are made by the newest authority, rather than only those that are missing or due.
    reissue: bool,
    /// Whether all pairs are by the newest authority afterwards.
    issued: bool,
    /// Whether nothing is left to do.
    settled: bool,
}

/// Pure. `newest`: the authority's certificate; `everyone`: the least trust that any member shows, `None` where
/// one says nothing.
fn next_move(standing: &Standing, newest: &str, everyone: Option<Trust>) -> Move {
    let own = bundle(newest);
    let issued = match &standing.issuer {
        Some(issuer) => *issuer == fingerprint(newest),
        // Of an operator that wrote none: it knew one authority at a time.
        None => standing.bundle == own,
    };
    let old = standing.bundle.iter().filter(|c| !own.contains(c)).cloned();
    let both: Vec<String> = own.iter().cloned().chain(old).collect();
    let stay = |bundle, issued| Move { bundle, reissue: false, issued, settled: false };
    if standing.bundle.is_empty() {
        return Move { bundle: own, reissue: true, issued: true, settled: true };
    }
    if !standing.bundle.contains(&own[0]) {
        return stay(both, false);
    }
    if !issued {
        return match everyone {
            Some(Trust::Both | Trust::Newest) => Move { reissue: true, ..stay(both, true) },
            _ => stay(both, false),
        };
    }
    match everyone {
        _ if standing.bundle == own => Move { settled: true, ..stay(own, true) },
        Some(Trust::Newest) => Move { settled: true, ..stay(own, true) },
        _ => stay(both, true),
    }
}

fn fingerprint(certificate: &str) -> String {
    content_hash(&Value::String(bundle(certificate).concat()))
}

/// The least trust that any running pod's member shows; `None` where one says nothing, or where they were asked
/// before this authority was the newest.
fn everyone(access: &Access, observed: &Observed, newest: &str) -> Option<Trust> {
    match access {
        Access::Tls(ways) if ways.first().is_some_and(|way| way.credentials.authority == newest) => {}
        Access::Tls(_) => return None,
        // Nobody could be asked: only where no pod runs is nobody left behind.
        Access::Plain | Access::NotYet if observed.pods.is_empty() => {}
        Access::Plain | Access::NotYet => return None,
    }
    let shown = observed.pods.keys().map(|ordinal| observed.reports.get(ordinal).map(|r| r.trust));
    shown.min().unwrap_or(Some(Trust::Newest))
}

/// A first authority, or one in the place of one whose Secret is gone. Created, never applied: of two operators
/// one fails here and reads the other's.
async fn found(ctx: &Context, desired: &Desired, rotate: &str) -> Result<Authority, Error> {
    let name = &desired.name;
    let made = Authority::new(name, offset(ctx.now()))?;
    let value = authority_secret(desired, &made, None, rotate);
    let api: Api<Secret> = Api::namespaced(ctx.client.clone(), &name.namespace);
    let params =
        PostParams { field_manager: Some(crate::names::FIELD_MANAGER.into()), ..PostParams::default() };
    let doing = || format!("making the Secret {}", name.ca_secret());
    let secret: Secret = serde_json::from_value(value)
        .map_err(|e| Error::Api { doing: doing(), source: kube::Error::SerdeError(e) })?;
    api.create(&params, &secret).await.map_err(Error::api(doing()))?;
    Ok(made)
}

/// A new authority beside the one there is, whose key is kept while members change over.
async fn renew(
    ctx: &Context,
    desired: &Desired,
    stored: &crate::dereference::Stored,
    rotate: &str,
) -> Result<Authority, Error> {
    let name = &desired.name;
    let made = Authority::new(name, offset(ctx.now()))?;
    let mut value = authority_secret(desired, &made, Some(&stored.authority), rotate);
    value["metadata"]["resourceVersion"] = stored.secret.resource_version().into();
    let api: Api<Secret> = Api::namespaced(ctx.client.clone(), &name.namespace);
    let doing = format!("writing the Secret {}", name.ca_secret());
    let applied = api.patch(&name.ca_secret(), &applying(), &Patch::Apply(&value)).await;
    applied.map_err(Error::api(doing))?;
    tracing::info!(cluster = name.name, "a new authority comes in beside the old one");
    Ok(made)
}

fn authority_secret(
    desired: &Desired,
    made: &Authority,
    previous: Option<&Authority>,
    rotate: &str,
) -> Value {
    let mut data = json!({ "ca.crt": made.pair().certificate, "ca.key": made.pair().key });
    if let Some(previous) = previous {
        data["previous.crt"] = previous.pair().certificate.clone().into();
        data["previous.key"] = previous.pair().key.clone().into();
    }
    let mut value = secret_value(desired, &desired.name.ca_secret(), "authority", data);
    if !rotate.is_empty() {
        value["metadata"]["annotations"][ANNOTATION_ROTATE] = rotate.into();
    }
    value
}

/// The pairs of all ordinals that may exist soon. Those that stand stay until they are due or the authority
/// changes. Whether nothing is left to do.
async fn pairs(
    ctx: &Context,
    desired: &Desired,
    authority: &Authority,
    standing: Standing,
    live: Option<&Secret>,
    read: &Dereferenced,
    count: u32,
) -> Result<bool, Error> {
    let name = &desired.name;
    let newest = &authority.pair().certificate;
    let next = next_move(&standing, newest, everyone(&read.access, &read.observed, newest));
    let now = offset(ctx.now());
    let mut data = json!({ "ca.crt": next.bundle.concat() });
    let mut changed = next.bundle != standing.bundle || next.reissue;
    for ordinal in 0..count {
        let (crt, key) = (format!("{}.crt", name.pod(ordinal)), format!("{}.key", name.pod(ordinal)));
        let stands = |field: &str| live.map(|s| text(s, field)).unwrap_or_default();
        let (old_crt, old_key) = (stands(&crt), stands(&key));
        let stale = old_key.is_empty() || is_stale(&old_crt, name, ordinal, now);
        (data[&crt], data[&key]) = if next.reissue || stale {
            changed = true;
            let pair = authority.member(ordinal, now)?;
            (pair.certificate.into(), pair.key.into())
        } else {
            (old_crt.into(), old_key.into())
        };
    }
    if !changed {
        return Ok(next.settled);
    }
    let secret = name.tls_secret();
    let mut value = secret_value(desired, &secret, "tls", data);
    if next.issued {
        value["metadata"]["annotations"][ANNOTATION_ISSUER] = fingerprint(newest).into();
    } else if let Some(issuer) = standing.issuer {
        value["metadata"]["annotations"][ANNOTATION_ISSUER] = issuer.into();
    }
    if let Some(version) = live.and_then(|s| s.resource_version()) {
        value["metadata"]["resourceVersion"] = version.into();
    }
    let api: Api<Secret> = Api::namespaced(ctx.client.clone(), &name.namespace);
    let doing = format!("writing the Secret {secret}");
    api.patch(&secret, &applying(), &Patch::Apply(&value)).await.map_err(Error::api(doing))?;
    Ok(next.settled)
}

/// A Secret whose data are given as text.
fn secret_value(desired: &Desired, name: &str, component: &str, data: Value) -> Value {
    let fields = data.as_object().into_iter().flatten();
    let bytes: BTreeMap<String, ByteString> = fields
        .map(|(key, text)| (key.clone(), ByteString(text.as_str().unwrap_or_default().as_bytes().to_vec())))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": build::metadata(&desired.name, name, component),
        "data": bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::ClusterName;

    fn authority() -> String {
        let name =
            ClusterName { namespace: "ns".into(), name: "demo".into(), uid: "u".into(), domain: "d".into() };
        let now = time::OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        Authority::new(&name, now).unwrap().pair().certificate.clone()
    }

    fn standing(trusted: &[&String], issuer: Option<&String>) -> Standing {
        Standing {
            bundle: trusted.iter().flat_map(|c| bundle(c)).collect(),
            issuer: issuer.map(|c| fingerprint(c)),
        }
    }

    /// O5: bundle first, then the pairs, then the old one out, each when every member shows the one before.
    #[test]
    fn a_new_authority_comes_in_three_moves() {
        let (old, new) = (authority(), authority());
        let both = [bundle(&new), bundle(&old)].concat();
        let announced = next_move(&standing(&[&old], Some(&old)), &new, Some(Trust::Old));
        assert_eq!(
            announced,
            Move { bundle: both.clone(), reissue: false, issued: false, settled: false },
            "no pair changes before the bundle is everywhere"
        );
        for waits in [Some(Trust::Old), None] {
            let waiting = next_move(&standing(&[&new, &old], Some(&old)), &new, waits);
            assert_eq!((waiting.reissue, waiting.bundle), (false, both.clone()), "{waits:?}");
        }
        let pairs = next_move(&standing(&[&new, &old], Some(&old)), &new, Some(Trust::Both));
        assert_eq!(pairs, Move { bundle: both.clone(), reissue: true, issued: true, settled: false });
        for waits in [Some(Trust::Both), None] {
            let waiting = next_move(&standing(&[&new, &old], Some(&new)), &new, waits);
            assert_eq!((waiting.reissue, waiting.bundle), (false, both.clone()), "{waits:?}");
        }
        let out = next_move(&standing(&[&new, &old], Some(&new)), &new, Some(Trust::Newest));
        assert_eq!(out, Move { bundle: bundle(&new), reissue: false, issued: true, settled: true });
        let rest = next_move(&standing(&[&new], Some(&new)), &new, None);
        assert_eq!(rest, Move { bundle: bundle(&new), reissue: false, issued: true, settled: true });
    }

    /// What members showed of an older authority says nothing of the newest.
    #[test]
    fn members_are_judged_by_the_newest_authority_only() {
        let world = crate::plan::tests::world::World::formed(3);
        let (old, new) = (authority(), authority());
        let pair = || crate::tls::Pair { certificate: String::new(), key: String::new() };
        let asked = |authority: &String| {
            Access::Tls(vec![crate::dereference::Way::new(Trust::Newest, authority.clone(), pair())])
        };
        assert_eq!(everyone(&asked(&new), &world.o, &new), Some(Trust::Newest));
        assert_eq!(everyone(&asked(&old), &world.o, &new), None);
        assert_eq!(everyone(&Access::NotYet, &world.o, &new), None);
        let mut behind = world.o.clone();
        behind.reports.get_mut(&1).unwrap().trust = Trust::Both;
        assert_eq!(everyone(&asked(&new), &behind, &new), Some(Trust::Both));
        behind.reports.remove(&1);
        assert_eq!(everyone(&asked(&new), &behind, &new), None, "one says nothing");
    }

    #[test]
    fn a_first_authority_and_one_of_an_older_operator_need_no_moves() {
        let own = authority();
        let first = next_move(&standing(&[], None), &own, None);
        assert_eq!(first, Move { bundle: bundle(&own), reissue: true, issued: true, settled: true });
        let older = next_move(&standing(&[&own], None), &own, Some(Trust::Newest));
        assert_eq!(older, Move { bundle: bundle(&own), reissue: false, issued: true, settled: true });
    }
}
