//! Consumers and checkpoints.

use super::problem::Problem;
use super::{Answer, Api, Asked, input, json};
use crate::views;
use schemars::JsonSchema;
use serde::Serialize;
use synod_proto::v1::checkpoints_server::Checkpoints as _;
use synod_proto::v1::consumers_server::Consumers as _;
use synod_proto::v1::{
    AdvanceConsumerRequest, ListCheckpointsRequest, ListConsumersRequest, ListConsumersResponse, Reason,
    RegisterConsumerRequest, RemoveConsumerRequest,
};

/// A registered consumer.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Consumer {
    /// Its name.
    name: String,
    /// It is done with every entry up to it.
    index: u64,
    /// How many entries are behind its position.
    lag: u64,
}

/// All consumers, and where the log is.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Consumers {
    /// By name.
    consumers: Vec<Consumer>,
    /// The first index that can be read at this member.
    first_index: u64,
    /// The last index applied at this member.
    last_index: u64,
}

/// Where a consumer stands now.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Position {
    /// It is done with every entry up to it.
    index: u64,
}

/// A consumer was removed.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Removed {}

/// The newest checkpoints.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Checkpoints {
    /// Ascending by index; the log is not trimmed past the last.
    checkpoints: Vec<Checkpoint>,
}

/// A checkpoint.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Checkpoint {
    /// Every entry up to it is in the state.
    index: u64,
    /// Bytes of the state.
    length: u64,
    /// SHA-256 of the state, in hexadecimal.
    digest: String,
    /// It is on the disk of the member that is asked.
    here: bool,
}

async fn all(api: &Api, query: &input::Query) -> Result<ListConsumersResponse, Problem> {
    let request = ListConsumersRequest { consistency: Some(query.freshness()?) };
    let request = super::request(request, query.timeout()?);
    Ok(api.consumers.list(request).await?.into_inner())
}

pub(super) async fn list(api: &Api, asked: Asked) -> Answer {
    let ListConsumersResponse { consumers, first_index, last_index } = all(api, &asked.query).await?;
    let consumers = consumers.into_iter().map(|consumer| {
        let lag = last_index.saturating_sub(consumer.index);
        Consumer { name: consumer.name, index: consumer.index, lag }
    });
    json(&Consumers { consumers: consumers.collect(), first_index, last_index })
}

pub(super) async fn get(api: &Api, asked: Asked) -> Answer {
    let all = all(api, &asked.query).await?;
    match all.consumers.into_iter().find(|consumer| consumer.name == asked.name) {
        Some(found) => {
            let lag = all.last_index.saturating_sub(found.index);
            json(&Consumer { name: found.name, index: found.index, lag })
        }
        None => {
            let message = format!("no consumer {:?} is registered: register it first", asked.name);
            Err(Problem::new(Reason::UnknownConsumer, message))
        }
    }
}

pub(super) async fn register(api: &Api, asked: Asked) -> Answer {
    let request = RegisterConsumerRequest { index: asked.query.number("index")?, name: asked.name };
    let registered = api.consumers.register(super::request(request, asked.query.timeout()?)).await?;
    json(&Position { index: registered.into_inner().index })
}

pub(super) async fn advance(api: &Api, asked: Asked) -> Answer {
    let Some(index) = asked.query.number("index")? else {
        return Err(Problem::invalid("index is missing: the last entry that the consumer is done with"));
    };
    let request = AdvanceConsumerRequest { name: asked.name, index };
    let advanced = api.consumers.advance(super::request(request, asked.query.timeout()?)).await?;
    json(&Position { index: advanced.into_inner().index })
}

pub(super) async fn remove(api: &Api, asked: Asked) -> Answer {
    let request = RemoveConsumerRequest { name: asked.name };
    api.consumers.remove(super::request(request, asked.query.timeout()?)).await?;
    json(&Removed {})
}

pub(super) async fn checkpoints(api: &Api, asked: Asked) -> Answer {
    let request = ListCheckpointsRequest { consistency: Some(asked.query.freshness()?) };
    let listed = api.checkpoints.list(super::request(request, asked.query.timeout()?)).await?.into_inner();
    let checkpoints = listed.checkpoints.into_iter().filter_map(|listed| {
        let checkpoint = listed.checkpoint?;
        let digest = views::hex(&checkpoint.digest);
        let (index, length) = (checkpoint.index, checkpoint.length);
        Some(Checkpoint { index, length, digest, here: listed.here })
    });
    json(&Checkpoints { checkpoints: checkpoints.collect() })
}
