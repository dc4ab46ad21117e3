//! Appending, reading, following.

use super::problem::Problem;
use super::{Answer, Api, Asked, events, input, json};
use crate::server::failure;
use crate::shown::ShownEntry;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;
use synod_paxos::Index;
use synod_proto::v1::append_request::Identity;
use synod_proto::v1::log_server::Log;
use synod_proto::v1::subscribe_request::Start;
use synod_proto::v1::subscribe_response::Event;
use synod_proto::v1::{
    self, AppendRequest, CaughtUp, IdempotencyKey, NewEntry, ReadRequest, ReadResponse, Reason,
    SubscribeRequest, SubscribeResponse, TailRequest,
};

/// Entries of one page: if it is not told, and at most.
const PAGE: (u64, u64) = (1_024, 4_096);
/// Bytes of payload of one page, about: if it is not told, and at most.
const PAGE_BYTES: (u64, u64) = (256 << 10, 1 << 20);

/// Where the entries are for ever.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Appended {
    /// The index of the first entry.
    first_index: u64,
    /// The index of the last entry.
    last_index: u64,
    /// The call had been appended before, by an earlier try: nothing was added now.
    repeated: bool,
}

/// Entries, and where the log begins and ends.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Page {
    /// In their order; none where nothing is there yet.
    entries: Vec<ShownEntry>,
    /// Where the next page begins.
    next: u64,
    /// The first index that can be read at this member.
    first_index: u64,
    /// The last index, as fresh as was asked for; one less than `first_index` where nothing can be read.
    last_index: u64,
}

/// Where the log begins and ends.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Tail {
    /// The first index that can be read at this member.
    first_index: u64,
    /// The last index, as fresh as was asked for; one less than `first_index` where nothing can be read.
    last_index: u64,
}

pub(super) async fn append(api: &Api, asked: Asked) -> Answer {
    try_append(api, asked).await.map_err(Problem::of_append)
}

async fn try_append(api: &Api, asked: Asked) -> Answer {
    let is_json = input::is_json(&asked.headers);
    let body = input::whole(asked.body).await?;
    let key = input::key(&asked.headers)?;
    let minted_at = asked.query.number("minted_at")?;
    if minted_at.is_some() && key.is_none() {
        return Err(Problem::invalid("minted_at goes with the header Idempotency-Key"));
    }
    let expected_index = asked.query.number("expected_index")?;
    let fence = asked.query.number("fence")?;
    let timeout = asked.query.timeout()?;
    let headers = input::entry_headers(&asked.headers)?;
    let new_entries = match is_json {
        true if !headers.is_empty() => {
            let message = "headers of entries stand in the JSON body: {\"text\": ..., \"headers\": {...}}";
            return Err(Problem::invalid(message));
        }
        true => input::entries(&body)?,
        // One that was forgotten is no entry.
        false if body.is_empty() => {
            let message = "the body is the entry, and it is empty: append an empty entry as JSON";
            return Err(Problem::new(Reason::EmptyCall, message));
        }
        false => vec![NewEntry { payload: body, headers }],
    };
    let identity = key.map(|key| Identity::Key(IdempotencyKey { key, minted_at }));
    let request = AppendRequest { new_entries, expected_index, identity, fence, ..AppendRequest::default() };
    let request = super::in_trace(super::request(request, timeout), asked.trace);
    let appended = api.log.append(request).await?.into_inner();
    let v1::AppendResponse { first_index, last_index, repeated } = appended;
    json(&Appended { first_index, last_index, repeated })
}

pub(super) async fn tail(api: &Api, asked: Asked) -> Answer {
    let request = TailRequest { consistency: Some(asked.query.freshness()?) };
    let tail = api.log.tail(super::request(request, asked.query.timeout()?)).await?.into_inner();
    json(&Tail { first_index: tail.first_index, last_index: tail.last_index })
}

pub(super) async fn read(api: &Api, asked: Asked) -> Answer {
    let reverse = asked.query.flag("reverse")?;
    let told = start(asked.query.number("from")?)?;
    let mut request = ReadRequest {
        from: 0,
        limit: asked.query.bounded("limit", PAGE.0, PAGE.1)?,
        max_bytes: u32::try_from(asked.query.bounded("max_bytes", PAGE_BYTES.0, PAGE_BYTES.1)?)
            .unwrap_or(u32::MAX),
        reverse,
        consistency: Some(asked.query.freshness()?),
    };
    let page = loop {
        // Backwards 0 is the end of the log.
        request.from = told.unwrap_or_else(|| if reverse { 0 } else { api.first_index() });
        let page = api.log.read(super::request(request, asked.query.timeout()?)).await.map_err(Problem::from);
        match page {
            // Trimmed meanwhile; the log's beginning only moves on, so that this ends.
            Err(problem) if told.is_none() && !reverse && problem.is_compacted() => {}
            page => break page?.into_inner(),
        }
    };
    let ReadResponse { entries, next, first_index, last_index } = page;
    let entries = entries.into_iter().map(ShownEntry::from).collect();
    json(&Page { entries, next, first_index, last_index })
}

/// Where to begin, if it is said.
fn start(from: Option<u64>) -> Result<Option<u64>, Problem> {
    match from {
        Some(0) => Err(Problem::new(Reason::Index, "indexes begin at 1: ask from 1 for the whole log")),
        from => Ok(from),
    }
}

/// Entries as server-sent events: each with its index as its id, so that whoever lost the connection goes on behind the
/// last one it has.
pub(super) async fn follow(api: &Api, asked: Asked) -> Answer {
    let from = start(asked.query.number("from")?)?;
    let time = asked.query.time("time")?;
    if time.is_some() && from.is_some() {
        return Err(Problem::invalid("a stream begins from an index or at a time: give one of both"));
    }
    let seen = asked.headers.get("last-event-id").map(|id| {
        let id = id.to_str().ok().filter(|id| id.bytes().all(|byte| byte.is_ascii_digit()));
        let index = id.and_then(|id| id.parse::<u64>().ok()).and_then(|index| index.checked_add(1));
        index.ok_or_else(|| Problem::invalid("the header Last-Event-ID is no index of an entry"))
    });
    let first = api.first_index();
    let start = match (seen.transpose()?.or(from), time) {
        (Some(from), _) => Start::From(from),
        (None, Some(time)) => Start::Time(synod_proto::timestamp(time.0)),
        (None, None) => Start::From(first),
    };
    if matches!(start, Start::From(from) if from < first) {
        let newest = api.shared.handle().newest_checkpoint();
        return Err(failure::status(failure::compacted(Index(first), newest)).into());
    }
    let request = SubscribeRequest { start: Some(start), end: None };
    let request = super::in_trace(tonic::Request::new(request), asked.trace);
    let messages = api.log.subscribe(request).await?.into_inner();
    Ok(events::answer(messages, event_text))
}

fn event_text(message: SubscribeResponse) -> Bytes {
    let mut text = String::new();
    for entry in message.entries {
        let entry = ShownEntry::from(entry);
        let data = serde_json::to_string(&entry).unwrap_or_default();
        text.push_str(&format!("id: {}\ndata: {data}\n\n", entry.index));
    }
    match message.event {
        Some(Event::CaughtUp(CaughtUp { last_index })) => {
            text.push_str(&format!("event: caught-up\ndata: {{\"last_index\":{last_index}}}\n\n"));
        }
        Some(Event::Heartbeat(_)) => text.push_str(": alive\n\n"),
        None => {}
    }
    Bytes::from(text)
}
