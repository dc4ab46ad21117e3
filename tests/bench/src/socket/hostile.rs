//! A client beside hostile connections: silent ones, and calls whose answers nobody takes.

use super::{Options, calls, cluster, report};
use bytes::Bytes;
use std::time::Duration;
use synod_proto::v1::SubscribeRequest;
use synod_proto::v1::log_client::LogClient;
use synod_proto::v1::subscribe_request::Start;
use tokio::net::UnixStream;
use tokio::time::Instant;

/// Connections that never speak.
const SILENT: usize = 1_000;
/// Subscriptions that nobody takes.
const UNREAD: usize = 256;

pub(super) async fn run(options: &Options) -> anyhow::Result<()> {
    let mut cluster = cluster(options).await?;
    let leader = cluster.leader().await?;
    let socket = cluster.members[leader].socket.clone();
    let client = cluster.members[leader].client()?;
    for _ in 0..32 {
        client.append_many(vec![Bytes::from(vec![b'x'; 1 << 10]); 500]).await?;
    }
    let alone = calls::appends(&socket, options.span()).await?;
    let before = cluster.members[leader].usage().resident_now;
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        // One that is refused has no place: that is a defence, too.
        silent.extend(UnixStream::connect(&socket).await);
    }
    let mut unread = Vec::new();
    for _ in 0..UNREAD.div_ceil(64) {
        let log = LogClient::new(synod_client::wire::channel(&socket)?);
        for _ in 0..64 {
            let start = Some(Start::From(1));
            unread.extend(log.clone().subscribe(SubscribeRequest { start, end: None }).await);
        }
    }
    let beside = calls::appends(&socket, options.span()).await?;
    let after = cluster.members[leader].usage().resident_now;
    let began = Instant::now();
    let ended = cluster.members[leader].terminate(Duration::from_secs(30));
    let stop = began.elapsed().as_secs_f64();
    let figures = serde_json::json!({
        "silent": silent.len(), "unread": unread.len(), "alone": alone, "beside": beside,
        "p99_ratio": beside.p99_ms / alone.p99_ms, "memory_more_mib": after.saturating_sub(before) >> 20,
        "stop_seconds": stop, "stopped": ended,
    });
    report("hostile", &figures)
}
