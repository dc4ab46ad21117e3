//! Reads the authority of a cluster and derives the operator's own pair from it.

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use time::OffsetDateTime;

use crate::build::Kind;
use crate::context::Context;
use crate::crd::TlsMode;
use crate::error::{Error, check_owner};
use crate::members::Credentials;
use crate::tls::{Authority, Pair, is_due};
use crate::validate::Desired;

use super::Access;

/// How the operator shows itself to the members of this cluster.
pub(super) async fn access(ctx: &Context, desired: &Desired) -> Result<Access, Error> {
    match desired.spec.tls.mode {
        TlsMode::Disabled => Ok(Access::Plain),
        TlsMode::Managed => managed(ctx, desired).await,
        TlsMode::Provided => provided(ctx, desired).await,
    }
}

async fn managed(ctx: &Context, desired: &Desired) -> Result<Access, Error> {
    let Some(authority) = authority(ctx, desired).await? else { return Ok(Access::NotYet) };
    let (uid, certificate) = (&desired.name.uid, &authority.pair().certificate);
    let now = OffsetDateTime::now_utc();
    let pair = match ctx.pair(uid, certificate).filter(|p| !is_due(&p.certificate, now)) {
        Some(pair) => pair,
        None => {
            let pair = authority.operator(now)?;
            ctx.keep_pair(uid, certificate, pair.clone());
            pair
        }
    };
    Ok(Access::Tls(Credentials { authority: certificate.clone(), pair }))
}

/// The stored authority of a cluster, if there is one.
pub(crate) async fn authority(ctx: &Context, desired: &Desired) -> Result<Option<Authority>, Error> {
    let secrets: Api<Secret> = Api::namespaced(ctx.client.clone(), &desired.name.namespace);
    let name = desired.name.ca_secret();
    let secret = secrets.get_opt(&name).await.map_err(Error::api(format!("reading the Secret {name}")))?;
    let Some(secret) = secret else { return Ok(None) };
    check_owner(&secret.metadata, &desired.name, Kind::Secret)?;
    let pair = Pair { certificate: text(&secret, "ca.crt"), key: text(&secret, "ca.key") };
    Ok(Some(Authority::stored(&desired.name, pair)?))
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
    Ok(Access::Tls(Credentials { authority, pair: Pair { certificate, key } }))
}

/// A field of a Secret as text; empty where it is missing or no text.
pub(crate) fn text(secret: &Secret, field: &str) -> String {
    let bytes = secret.data.as_ref().and_then(|d| d.get(field)).map(|b| b.0.clone()).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}
