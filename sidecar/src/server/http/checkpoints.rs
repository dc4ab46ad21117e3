//! The application's states: the list, and states in and out as bodies.

use super::problem::Problem;
use super::{Answer, Api, Asked, json};
use crate::checkpoints::CHUNK_BYTES;
use crate::server::checkpoints::{PATIENCE, refused, stalled};
use crate::server::failure;
use crate::views;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use schemars::JsonSchema;
use serde::Serialize;
use std::future::ready;
use std::ops::Range;
use std::time::Duration;
use synod_paxos::value::Checkpoint as Named;
use synod_paxos::{Digest, Index};
use synod_proto::v1::checkpoints_server::Checkpoints as _;
use synod_proto::v1::{
    self, FetchCheckpointRequest, FetchCheckpointResponse, ListCheckpointsRequest, Reason, SaveBegin,
};
use tonic::Status;

/// Bytes of a state that are gathered before they go to the disk.
const GATHERED: usize = 256 << 10;
const _: () = assert!(GATHERED < CHUNK_BYTES);
/// Bytes that are read of a body that is refused, so that whoever sends it hears why.
const LISTENED_TO: usize = 4 << 20;

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

/// How much of a state is here.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Standing {
    /// The first so many bytes stand here: send what is behind them, with this as `offset`.
    bytes: u64,
}

fn shown(checkpoint: &v1::Checkpoint, here: bool) -> Checkpoint {
    let v1::Checkpoint { index, length, digest } = checkpoint;
    Checkpoint { index: *index, length: *length, digest: views::hex(digest), here }
}

pub(super) async fn list(api: &Api, asked: Asked) -> Answer {
    let request = ListCheckpointsRequest { consistency: Some(asked.query.freshness()?) };
    let listed = api.checkpoints.list(super::request(request, asked.query.timeout()?)).await?.into_inner();
    let checkpoints = listed.checkpoints.iter();
    let checkpoints = checkpoints.filter_map(|listed| Some(shown(listed.checkpoint.as_ref()?, listed.here)));
    json(&Checkpoints { checkpoints: checkpoints.collect() })
}

/// The index in the path.
fn index(asked: &Asked) -> Result<u64, Problem> {
    let is_number = !asked.name.is_empty() && asked.name.bytes().all(|byte| byte.is_ascii_digit());
    let index = asked.name.parse().ok().filter(|_| is_number);
    index.ok_or_else(|| Problem::invalid("the index in the path is no number from 0 to 2^64 - 1"))
}

/// How much of a state stands here, by its name.
pub(super) async fn resume(api: &Api, asked: Asked) -> Answer {
    let digest = asked.query.digest("digest")?.unwrap_or(Digest([0; 32]));
    let length = asked.query.number("length")?.unwrap_or_default();
    let named = Named { index: Index(index(&asked)?), length, digest };
    json(&Standing { bytes: api.checkpoints.kept().standing(&named) })
}

/// Takes the body as a state.
pub(super) async fn save(api: &Api, asked: Asked) -> Answer {
    let begun = begun(&asked);
    let mut parts = asked.body.into_data_stream();
    let shared = api.shared.clone();
    let saved = async {
        let (begin, digest) = begun?;
        tokio::select! {
            saved = take(api, begin, digest, &mut parts) => saved,
            () = shared.stopped() => Err(failure::status(failure::stopping()).into()),
        }
    };
    match saved.await {
        Ok(saved) => json(&shown(&crate::checkpoints::out(&saved), true)),
        Err(problem) => {
            listen(&mut parts).await;
            Err(problem)
        }
    }
}

type Parts = axum::body::BodyDataStream;

/// What is to be saved, and its digest. Where its length is told, too, a cut can be gone on from.
fn begun(asked: &Asked) -> Result<(SaveBegin, Option<Digest>), Problem> {
    let index = index(asked)?;
    let digest = asked.query.digest("digest")?;
    let offset = asked.query.number("offset")?.unwrap_or_default();
    let length =
        asked.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let length = length.and_then(|rest: u64| offset.checked_add(rest));
    let (length, announced) = match (length, digest) {
        (Some(length), Some(digest)) => (Some(length), Bytes::copy_from_slice(&digest.0)),
        _ if offset > 0 => {
            return Err(Problem::invalid("offset goes with digest, and with a body whose length is told"));
        }
        _ => (None, Bytes::new()),
    };
    Ok((SaveBegin { index, length, digest: announced, offset }, digest))
}

async fn take(
    api: &Api,
    begin: SaveBegin,
    digest: Option<Digest>,
    parts: &mut Parts,
) -> Result<Named, Problem> {
    let mut length = begin.offset;
    let mut saving = api.checkpoints.begin(begin).await?;
    let mut gathered = BytesMut::new();
    loop {
        let part = tokio::time::timeout(PATIENCE, parts.next()).await.map_err(|_| stalled())?;
        let Some(part) = part else { break };
        let part = part.map_err(|error| Problem::of_body(&error))?;
        length += part.len() as u64;
        gathered.extend_from_slice(&part);
        while gathered.len() >= GATHERED {
            let bytes = gathered.split_to(GATHERED).freeze();
            saving.push(bytes).await.map_err(|error| refused(&error))?;
        }
    }
    if !gathered.is_empty() {
        saving.push(gathered.freeze()).await.map_err(|error| refused(&error))?;
    }
    Ok(saving.finish(length, digest).await.map_err(|error| refused(&error))?)
}

/// A client that is answered while it sends may take that for a broken connection.
async fn listen(parts: &mut Parts) {
    let mut heard = 0;
    while heard < LISTENED_TO
        && let Ok(Some(Ok(part))) = tokio::time::timeout(PATIENCE, parts.next()).await
    {
        heard += part.len();
    }
}

type Chunks = std::pin::Pin<Box<dyn Stream<Item = Result<FetchCheckpointResponse, Status>> + Send>>;

async fn opened(
    api: &Api,
    timeout: Duration,
    request: FetchCheckpointRequest,
) -> Result<(v1::Checkpoint, Chunks), Problem> {
    let request = super::request(request, timeout);
    let mut chunks = api.checkpoints.fetch(request).await?.into_inner();
    let head = chunks.next().await.transpose()?.and_then(|head| head.checkpoint);
    let head = head.ok_or_else(|| Problem::new(Reason::Internal, "the state has no name"))?;
    Ok((head, chunks))
}

/// Gives a state out, all of it or the range that is asked for.
pub(super) async fn fetch(api: &Api, asked: Asked) -> Answer {
    let index = match asked.name.as_str() {
        "" => None,
        _ => Some(index(&asked)?),
    };
    let (consistency, timeout) = (Some(asked.query.freshness()?), asked.query.timeout()?);
    let request = FetchCheckpointRequest { index, consistency, ..FetchCheckpointRequest::default() };
    let (found, chunks) = opened(api, timeout, request.clone()).await?;
    let tag = format!("\"{}\"", views::hex(&found.digest));
    let wanted = ranged(&asked.headers, &tag, found.length)?;
    let all = 0..found.length;
    let Range { start, end } = wanted.clone().unwrap_or(all);
    let chunks = match start {
        0 => chunks,
        _ => {
            let (index, digest) = (Some(found.index), found.digest.clone());
            opened(api, timeout, FetchCheckpointRequest { index, digest, offset: start, ..request }).await?.1
        }
    };
    let mut response = Response::new(Body::from_stream(up_to(chunks, end - start)));
    let mut head = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    };
    head("content-type", "application/octet-stream");
    head("content-length", &(end - start).to_string());
    head("accept-ranges", "bytes");
    head("etag", &tag);
    head(INDEX, &found.index.to_string());
    if wanted.is_some() {
        head("content-range", &format!("bytes {start}-{}/{}", end - 1, found.length));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// The header that says which index a state is of.
const INDEX: &str = "synod-checkpoint-index";

/// The first `bytes` of what comes.
fn up_to(chunks: Chunks, bytes: u64) -> impl Stream<Item = Result<Bytes, Status>> {
    let parts = chunks.scan(bytes, |left, chunk| {
        let chunk = match chunk {
            Ok(FetchCheckpointResponse { mut chunk, .. }) => {
                chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= chunk.len() as u64;
                Ok(chunk)
            }
            Err(status) => Err(status),
        };
        ready(Some((chunk, *left)))
    });
    // Nothing behind the last byte is waited for.
    let mut is_over = bytes == 0;
    parts
        .take_while(move |(_, left)| ready(!std::mem::replace(&mut is_over, *left == 0)))
        .map(|(chunk, _)| chunk)
}

/// The range that is asked for, if one is that applies (RFC 9110): whoever has the beginning of this state asks for the
/// rest. What is no single range of bytes is passed over, as the standard has it.
fn ranged(headers: &HeaderMap, tag: &str, length: u64) -> Result<Option<Range<u64>>, Problem> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(range) = text(header::RANGE).and_then(|range| range.strip_prefix("bytes=")) else {
        return Ok(None);
    };
    if text(header::IF_RANGE).is_some_and(|known| known != tag) {
        return Ok(None);
    }
    let number = |text: &str| -> Option<u64> {
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
    };
    let Some((first, last)) = range.split_once('-') else { return Ok(None) };
    let wanted = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(length),
        (Some(first), None) if last.is_empty() => first..length,
        (None, Some(last)) if first.is_empty() => length - last.min(length)..length,
        _ => return Ok(None),
    };
    if wanted.is_empty() {
        let message = format!("the state has {length} bytes: there is nothing in the range {range}");
        return Err(Problem::invalid(message).with_status(StatusCode::RANGE_NOT_SATISFIABLE));
    }
    Ok(Some(wanted))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_has_them() {
        let of = |range: &str, known: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, range.parse().unwrap());
            if let Some(known) = known {
                headers.insert(header::IF_RANGE, known.parse().unwrap());
            }
            ranged(&headers, "\"t\"", 10).map_err(|_| ())
        };
        for (range, wanted) in [
            ("bytes=0-", 0..10),
            ("bytes=3-", 3..10),
            ("bytes=3-3", 3..4),
            ("bytes=3-99", 3..10),
            ("bytes=-4", 6..10),
            ("bytes=-99", 0..10),
        ] {
            assert_eq!(of(range, None), Ok(Some(wanted.clone())), "{range}");
            assert_eq!(of(range, Some("\"t\"")), Ok(Some(wanted)), "{range}");
            assert_eq!(of(range, Some("\"u\"")), Ok(None), "{range}");
        }
        for passed in
            ["bytes=", "bytes=-", "bytes=4-3", "bytes=0-1,3-4", "lines=0-1", "bytes=+1-", "bytes=a-b"]
        {
            assert_eq!(of(passed, None), Ok(None), "{passed}");
        }
        for beyond in ["bytes=10-", "bytes=11-12", "bytes=-0"] {
            assert_eq!(of(beyond, None), Err(()), "{beyond}");
        }
    }

    #[tokio::test]
    async fn nothing_comes_behind_the_end_of_a_range() {
        for (bytes, expected) in [(0, ""), (2, "ab"), (3, "abc"), (4, "abcd"), (9, "abcdef")] {
            let chunks = ["abc", "def"].map(|chunk| {
                Ok(FetchCheckpointResponse { checkpoint: None, chunk: Bytes::from_static(chunk.as_bytes()) })
            });
            let given: Vec<_> = up_to(Box::pin(futures::stream::iter(chunks)), bytes).collect().await;
            let given: Vec<u8> = given.into_iter().flat_map(|chunk| chunk.unwrap()).collect();
            assert_eq!(given, expected.as_bytes(), "{bytes}");
        }
    }
}
