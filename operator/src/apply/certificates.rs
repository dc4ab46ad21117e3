//! Keeps the two Secrets of a managed cluster: the authority's, which no pod mounts, and the one with a
//! pair for each ordinal. docs: operator.md, "TLS".

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PostParams};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::build::{self, prepared_ordinals};
use crate::context::Context;
use crate::dereference::{authority, text};
use crate::error::{Error, check_owner};
use crate::tls::{Authority, is_due};
use crate::validate::Desired;

use super::objects::applying;

/// Makes what is missing or due.
pub(super) async fn ensure(ctx: &Context, desired: &Desired, size: u32) -> Result<(), Error> {
    let count = prepared_ordinals(desired, size);
    let (uid, key) = (&desired.name.uid, "Certificates");
    // Looked at every few minutes, and at once when more ordinals may exist.
    if ctx.stands(uid, key, &count.to_string()) {
        return Ok(());
    }
    let authority = match authority(ctx, desired).await? {
        Some(authority) => authority,
        None => found_authority(ctx, desired).await?,
    };
    pairs(ctx, desired, &authority, count).await?;
    ctx.applied(uid, key, &count.to_string());
    Ok(())
}

/// A new authority. Created, never applied: of two operators one fails here and reads the other's.
async fn found_authority(ctx: &Context, desired: &Desired) -> Result<Authority, Error> {
    let name = &desired.name;
    let made = Authority::new(name, OffsetDateTime::now_utc())?;
    let data = BTreeMap::from([
        ("ca.crt".to_owned(), ByteString(made.pair().certificate.clone().into_bytes())),
        ("ca.key".to_owned(), ByteString(made.pair().key.clone().into_bytes())),
    ]);
    let secret = secret(desired, &name.ca_secret(), "authority", data)?;
    let api: Api<Secret> = Api::namespaced(ctx.client.clone(), &name.namespace);
    let params =
        PostParams { field_manager: Some(crate::names::FIELD_MANAGER.into()), ..PostParams::default() };
    api.create(&params, &secret)
        .await
        .map_err(Error::api(format!("making the Secret {}", name.ca_secret())))?;
    Ok(made)
}

/// The pairs of all ordinals that may exist soon. Those that stand and are of this authority stay.
async fn pairs(ctx: &Context, desired: &Desired, authority: &Authority, count: u32) -> Result<(), Error> {
    let name = &desired.name;
    let secret_name = name.tls_secret();
    let api: Api<Secret> = Api::namespaced(ctx.client.clone(), &name.namespace);
    let doing = || format!("writing the Secret {secret_name}");
    let live = api.get_opt(&secret_name).await.map_err(Error::api(doing()))?;
    if let Some(live) = &live {
        check_owner(&live.metadata, name, build::Kind::Secret)?;
    }
    let same_authority = live.as_ref().is_some_and(|s| text(s, "ca.crt") == authority.pair().certificate);
    let standing = |field: &str| live.as_ref().map(|s| text(s, field)).filter(|_| same_authority);
    let now = OffsetDateTime::now_utc();
    let mut data = BTreeMap::from([(
        "ca.crt".to_owned(),
        ByteString(authority.pair().certificate.clone().into_bytes()),
    )]);
    let mut changed = !same_authority;
    for ordinal in 0..count {
        let (crt, key) = (format!("{}.crt", name.pod(ordinal)), format!("{}.key", name.pod(ordinal)));
        let (old_crt, old_key) = (standing(&crt).unwrap_or_default(), standing(&key).unwrap_or_default());
        let (new_crt, new_key) = if old_key.is_empty() || is_due(&old_crt, now) {
            changed = true;
            let pair = authority.member(ordinal, now)?;
            (pair.certificate, pair.key)
        } else {
            (old_crt, old_key)
        };
        data.insert(crt, ByteString(new_crt.into_bytes()));
        data.insert(key, ByteString(new_key.into_bytes()));
    }
    if !changed {
        return Ok(());
    }
    let mut value = serde_json::to_value(secret(desired, &secret_name, "tls", data)?).unwrap_or(Value::Null);
    if let Some(version) = live.and_then(|s| s.metadata.resource_version) {
        value["metadata"]["resourceVersion"] = Value::String(version);
    }
    api.patch(&secret_name, &applying(), &Patch::Apply(&value)).await.map_err(Error::api(doing()))?;
    Ok(())
}

fn secret(
    desired: &Desired,
    name: &str,
    component: &str,
    data: BTreeMap<String, ByteString>,
) -> Result<Secret, Error> {
    let value = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": build::metadata(&desired.name, name, component),
        "data": data,
    });
    serde_json::from_value(value).map_err(|e| Error::Api {
        doing: format!("making the Secret {name}"),
        source: kube::Error::SerdeError(e),
    })
}
