//! Whether the member leads, as events.

use super::{Answer, Api, events};
use crate::views;
use bytes::Bytes;
use serde::Serialize;
use synod_proto::v1::cluster_server::Cluster;
use synod_proto::v1::{WatchRoleRequest, WatchRoleResponse};

/// A member's role.
#[derive(Serialize)]
struct RoleNow {
    /// What it is in its cluster.
    role: &'static str,
    /// It may act as the one that leads.
    leads: bool,
    /// The newest leadership that it has applied, its own where it leads. It only grows.
    fencing_epoch: u64,
    /// Who leads, where that is known.
    leader: Option<String>,
}

pub(super) async fn watch(api: &Api) -> Answer {
    let roles = api.cluster.watch_role(tonic::Request::new(WatchRoleRequest {})).await?.into_inner();
    Ok(events::answer(roles, text))
}

fn text(now: WatchRoleResponse) -> Bytes {
    let role = RoleNow {
        role: views::role(now.role()),
        leads: now.leads,
        fencing_epoch: now.fencing_epoch,
        leader: now.leader.map(views::member),
    };
    let data = serde_json::to_string(&role).unwrap_or_default();
    Bytes::from(format!("event: role\ndata: {data}\n\n"))
}
