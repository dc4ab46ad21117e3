//! gRPC's own services on the socket: health, and reflection for tools such as grpcurl.

use crate::shared::Shared;
use std::sync::Arc;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};

/// The services whose health is told; the empty name is the member's own.
const NAMES: [&str; 5] =
    ["", "synod.v1.Log", "synod.v1.Consumers", "synod.v1.Checkpoints", "synod.v1.Cluster"];

/// The service that shows the descriptors; `None` where they cannot be read, which the log says.
pub(crate) fn reflection() -> Option<ServerReflectionServer<impl ServerReflection>> {
    let builder = tonic_reflection::server::Builder::configure();
    let built = builder.register_encoded_file_descriptor_set(synod_proto::DESCRIPTORS).build_v1();
    built.inspect_err(|error| tracing::error!(%error, "the descriptors cannot be shown")).ok()
}

async fn tell(reporter: &HealthReporter, status: ServingStatus) {
    for name in NAMES {
        reporter.set_service_status(name, status).await;
    }
}

/// Keeps the health service told: a member that takes no part does not serve. Ends when the process goes down.
pub(crate) async fn report(reporter: HealthReporter, shared: Arc<Shared>) {
    let mut identity = shared.identity();
    loop {
        identity.mark_unchanged();
        let mut facts = shared.handle().facts();
        loop {
            let serves = facts.borrow_and_update().excluded().is_none();
            tell(&reporter, if serves { ServingStatus::Serving } else { ServingStatus::NotServing }).await;
            tokio::select! {
                changed = facts.changed() => if changed.is_err() { break },
                () = shared.stopped() => return tell(&reporter, ServingStatus::NotServing).await,
            }
        }
        // The core has ended: another one takes its place, or the process goes down.
        tokio::select! {
            changed = identity.changed() => if changed.is_err() { return },
            () = shared.stopped() => return tell(&reporter, ServingStatus::NotServing).await,
        }
    }
}
