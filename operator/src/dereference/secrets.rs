//! Reads the authority of a cluster and derives the operator's own pair from it.

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use time::OffsetDateTime;

use crate::build::Kind;
use crate::context::Context;
use crate::crd::TlsMode;
use crate::error::{Error, check_owner};
use crate::observed::Trust;
use crate::tls::{Authority, Pair, bundle, is_due};
use crate::validate::Desired;

use super::{Access, Way};

/// How the operator shows itself to the members of this cluster.
pub(super) async fn access(ctx: &Context, desired: &Desired) -> Result<Access, Error> {
    match desired.spec.tls.mode {
        TlsMode::Disabled => Ok(Access::Plain),
        TlsMode::Managed => managed(ctx, desired).await,
        TlsMode::Provided => provided(ctx, desired).await,
    }
}

/// Ways to the members of a managed cluster, the newest first. While the authority changes, the way on which a
/// member answers shows how far it has followed. docs: operator-rules.md, "TLS".
async fn managed(ctx: &Context, desired: &Desired) -> Result<Access, Error> {
    let name = &desired.name;
    let stored = authority(ctx, desired).await?;
    let pairs = secret(ctx, desired, &name.tls_secret()).await?;
    let standing = pairs.map(|s| bundle(&text(&s, "ca.crt"))).unwrap_or_default();
    let Some(stored) = stored else {
        let pair = ctx.last_pair(&name.uid);
        return Ok(match (pair, standing.is_empty()) {
            (Some(pair), false) => Access::Tls(vec![Way::new(Trust::Old, standing.concat(), pair)]),
            _ => Access::NotYet,
        });
    };
    let newest = stored.authority.pair().certificate.clone();
    let now = offset(ctx.now());
    let old = match &stored.previous {
        Some(previous) => Some(previous.operator(now)?),
        None => ctx.last_pair(&name.uid),
    };
    let pair = match ctx.pair(&name.uid, &newest).filter(|p| !is_due(&p.certificate, now)) {
        Some(pair) => pair,
        None => stored.authority.operator(now)?,
    };
    let settled = standing.is_empty() || standing == bundle(&newest);
    let mut ways = vec![Way::new(Trust::Newest, newest.clone(), pair.clone())];
    if settled {
        ctx.keep_pair(&name.uid, &newest, pair);
    } else {
        let mut both = bundle(&newest);
        both.extend(standing.into_iter().filter(|c| !bundle(&newest).contains(c)));
        ways.push(Way::new(Trust::Both, both.concat(), pair));
        ways.extend(old.map(|pair| Way::new(Trust::Old, both.concat(), pair)));
    }
    Ok(Access::Tls(ways))
}

/// The stored authority of a cluster.
pub(crate) struct Stored {
    /// The newest.
    pub(crate) authority: Authority,
    /// The one before, while members change over.
    pub(crate) previous: Option<Authority>,
    /// The Secret.
    pub(crate) secret: Secret,
}

/// The stored authority of a cluster, if there is one.
pub(crate) async fn authority(ctx: &Context, desired: &Desired) -> Result<Option<Stored>, Error> {
    let Some(secret) = secret(ctx, desired, &desired.name.ca_secret()).await? else { return Ok(None) };
    let pair = |crt, key| Pair { certificate: text(&secret, crt), key: text(&secret, key) };
    let authority = Authority::stored(&desired.name, pair("ca.crt", "ca.key"))?;
    let previous = pair("previous.crt", "previous.key");
    let previous = Some(previous).filter(|p| !p.key.is_empty());
    let previous = previous.and_then(|pair| Authority::stored(&desired.name, pair).ok());
    Ok(Some(Stored { authority, previous, secret }))
}

/// A Secret of this cluster, if there is one.
pub(crate) async fn secret(ctx: &Context, desired: &Desired, name: &str) -> Result<Option<Secret>, Error> {
    let secrets: Api<Secret> = Api::namespaced(ctx.client.clone(), &desired.name.namespace);
    let secret = secrets.get_opt(name).await.map_err(Error::api(format!("reading the Secret {name}")))?;
    if let Some(secret) = &secret {
        check_owner(&secret.metadata, &desired.name, Kind::Secret)?;
    }
    Ok(secret)
}

/// The time as certificates have it.
pub(crate) fn offset(now: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(now.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

async fn provided(ctx: &Context, desired: &Desired) -> Result<Access, Error> {
    let hint = "it must hold ca.crt, operator.crt and operator.key, and <pod>.crt and <pod>.key for each pod";
    let name = desired.spec.tls.secret_name.clone().unwrap_or_default();
    let secrets: Api<Secret> = Api::namespaced(ctx.client.clone(), &desired.name.namespace);
    let secret = secrets.get_opt(&name).await.map_err(Error::api(format!("reading the Secret {name}")))?;
    let Some(secret) = secret else {
        return Err(Error::Secret { secret: name, why: "does not exist".into(), hint });
    };
    let (authority, certificate, key) =
        (text(&secret, "ca.crt"), text(&secret, "operator.crt"), text(&secret, "operator.key"));
    for (field, value) in [("ca.crt", &authority), ("operator.crt", &certificate), ("operator.key", &key)] {
        if value.is_empty() {
            return Err(Error::Secret { secret: name, why: format!("has no {field}"), hint });
        }
    }
    Ok(Access::Tls(vec![Way::new(Trust::Newest, authority, Pair { certificate, key })]))
}

/// A field of a Secret as text; empty where it is missing or no text.
pub(crate) fn text(secret: &Secret, field: &str) -> String {
    let bytes = secret.data.as_ref().and_then(|d| d.get(field)).map(|b| b.0.clone()).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}
