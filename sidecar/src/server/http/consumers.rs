//! Consumers.

use super::problem::Problem;
use super::{Answer, Api, Asked, input, json};
use schemars::JsonSchema;
use serde::Serialize;
use std::time::Duration;
use synod_proto::v1::consumers_server::Consumers as _;
use synod_proto::v1::{
    self, AdvanceConsumerRequest, ListConsumersRequest, ListConsumersResponse, Reason,
    RegisterConsumerRequest, RegisterConsumerResponse, RemoveConsumerRequest, SeekConsumerRequest,
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
    /// After how many milliseconds without a word it is forgotten; not there where it never is.
    #[serde(skip_serializing_if = "Option::is_none")]
    expiry_ms: Option<u64>,
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

/// A consumer is registered.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Registered {
    /// It is done with every entry up to it.
    index: u64,
    /// This call registered it; otherwise it was registered before.
    created: bool,
}

/// A consumer was removed.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Removed {}

async fn all(api: &Api, query: &input::Query) -> Result<ListConsumersResponse, Problem> {
    let request = ListConsumersRequest { consistency: Some(query.freshness()?) };
    let request = super::request(request, query.timeout()?);
    Ok(api.consumers.list(request).await?.into_inner())
}

fn shown(wire: v1::Consumer) -> Consumer {
    let v1::Consumer { name, index, lag, expiry } = wire;
    let expiry = expiry.and_then(|expiry| synod_proto::span(&expiry));
    let expiry_ms = expiry.map(|expiry| u64::try_from(expiry.as_millis()).unwrap_or(u64::MAX));
    Consumer { name, index, lag, expiry_ms }
}

pub(super) async fn list(api: &Api, asked: Asked) -> Answer {
    let ListConsumersResponse { consumers, first_index, last_index } = all(api, &asked.query).await?;
    let consumers = consumers.into_iter().map(shown);
    json(&Consumers { consumers: consumers.collect(), first_index, last_index })
}

pub(super) async fn get(api: &Api, asked: Asked) -> Answer {
    let all = all(api, &asked.query).await?;
    match all.consumers.into_iter().find(|consumer| consumer.name == asked.name) {
        Some(found) => json(&shown(found)),
        None => {
            let message = format!("no consumer {:?} is registered: register it first", asked.name);
            Err(Problem::new(Reason::UnknownConsumer, message))
        }
    }
}

pub(super) async fn register(api: &Api, asked: Asked) -> Answer {
    let expiry = asked.query.number("expiry_ms")?.map(|ms| synod_proto::duration(Duration::from_millis(ms)));
    let request = RegisterConsumerRequest { index: asked.query.number("index")?, name: asked.name, expiry };
    let registered = api.consumers.register(super::request(request, asked.query.timeout()?)).await?;
    let RegisterConsumerResponse { index, created } = registered.into_inner();
    json(&Registered { index, created })
}

pub(super) async fn advance(api: &Api, asked: Asked) -> Answer {
    let index = asked.query.number("index")?.unwrap_or_default();
    let request = AdvanceConsumerRequest { name: asked.name, index };
    let advanced = api.consumers.advance(super::request(request, asked.query.timeout()?)).await?;
    json(&Position { index: advanced.into_inner().index })
}

pub(super) async fn seek(api: &Api, asked: Asked) -> Answer {
    let index = asked.query.number("index")?.unwrap_or_default();
    let request = SeekConsumerRequest { name: asked.name, index };
    let put = api.consumers.seek(super::request(request, asked.query.timeout()?)).await?;
    json(&Position { index: put.into_inner().index })
}

pub(super) async fn remove(api: &Api, asked: Asked) -> Answer {
    let request = RemoveConsumerRequest { name: asked.name };
    api.consumers.remove(super::request(request, asked.query.timeout()?)).await?;
    json(&Removed {})
}
