//! Appends of one client, in the order of their calls.

use super::{Options, cluster, report};
use anyhow::ensure;
use bytes::Bytes;
use futures::stream::FuturesOrdered;
use futures::{StreamExt, TryStreamExt};
use std::time::Duration;
use synod_client::AppendOptions;

/// Appends under way.
const UNDER_WAY: usize = 10_000;

pub(super) async fn run(options: &Options) -> anyhow::Result<()> {
    let cluster = cluster(options).await?;
    let client = cluster.members[cluster.leader().await?].client()?;
    let (mut under_way, mut indexes) = (FuturesOrdered::new(), Vec::new());
    for n in 0..10 * UNDER_WAY {
        let client = client.clone();
        let patient = AppendOptions { timeout: Duration::from_secs(60), ..AppendOptions::default() };
        let mut append = Box::pin(tokio::task::unconstrained(async move {
            client.append_with(vec![Bytes::from(n.to_string())], patient).await
        }));
        // Polled here, so that this is the order of the calls.
        ensure!(futures::poll!(&mut append).is_pending(), "an append was answered at once");
        under_way.push_back(append);
        if under_way.len() == UNDER_WAY {
            indexes.extend(under_way.next().await.transpose()?.map(|appended| appended.first_index));
        }
    }
    while let Some(appended) = under_way.try_next().await? {
        indexes.push(appended.first_index);
    }
    let inversions = indexes.windows(2).filter(|pair| pair[0] > pair[1]).count();
    report(
        "order",
        &serde_json::json!({ "under_way": UNDER_WAY, "appended": indexes.len(), "inversions": inversions }),
    )
}
