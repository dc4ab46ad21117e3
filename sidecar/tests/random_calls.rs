//! Every call of the socket with random messages, by its descriptor: values at their bounds, fields left out and doubled,
//! bytes that are no message. Each is answered, with a reason; nothing else on the socket notices.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use common::{Cluster, PATIENCE};
use futures::StreamExt;
use hyper_util::rt::TokioIo;
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use synod_proto::v1::append_stream_response::Outcome as Answer;
use synod_proto::v1::log_client::LogClient;
use synod_proto::v1::{AppendStreamResponse, Failure, Outcome, Reason, TailRequest};
use tokio::net::UnixStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// How often each call is made.
const ROUNDS: usize = 150;
/// Messages that are sent on a stream at most, and taken from one.
const STREAMED: usize = 4;

/// Messages as bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// The same numbers for the same seed (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From 0 to `sides` - 1.
    fn of(&mut self, sides: usize) -> usize {
        usize::try_from(self.roll() % sides as u64).unwrap()
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.of(of.len())]
    }
}

fn number(dice: &mut Dice) -> u64 {
    let any = dice.roll();
    dice.one(&[0, 1, 1, 2, 3, 7, 100, 4_096, 4_097, 1 << 20, u64::from(u32::MAX), 1 << 63, u64::MAX, any])
}

fn text(dice: &mut Dice) -> Vec<u8> {
    let long = "x".repeat(dice.one(&[1, 64, 65, 253, 254, 5_000]));
    let words = ["", "a", "billing", "gr\u{fc}n", "a\nb", "\u{0}", "\u{1f980}", "a/b", long.as_str()];
    dice.one(&words).as_bytes().to_vec()
}

fn bytes(dice: &mut Dice) -> Vec<u8> {
    let length = match dice.of(60) {
        // Over the bound of an entry, now and then.
        0 => (1 << 20) + 1,
        _ => dice.one(&[0, 1, 15, 16, 17, 32, 64, 65, 1_000]),
    };
    let filler = u8::try_from(dice.of(256)).unwrap();
    vec![filler; length]
}

/// Every message by its full name, with a dot before it as descriptors write it.
struct Descriptors(HashMap<String, DescriptorProto>);

fn varint(mut number: u64, into: &mut Vec<u8>) {
    while number >= 0x80 {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

fn key(field: &FieldDescriptorProto, wire: u64, into: &mut Vec<u8>) {
    varint(u64::try_from(field.number()).unwrap() << 3 | wire, into);
}

fn delimited(field: &FieldDescriptorProto, bytes: &[u8], into: &mut Vec<u8>) {
    key(field, 2, into);
    varint(bytes.len() as u64, into);
    into.extend(bytes);
}

impl Descriptors {
    fn field(&self, field: &FieldDescriptorProto, dice: &mut Dice, depth: usize, into: &mut Vec<u8>) {
        match field.r#type() {
            Type::Message => delimited(field, &self.message(field.type_name(), dice, depth + 1), into),
            Type::String => {
                let mut value = text(dice);
                if dice.of(12) == 0 {
                    // No UTF-8.
                    value.push(0xff);
                }
                delimited(field, &value, into);
            }
            Type::Bytes => delimited(field, &bytes(dice), into),
            Type::Fixed64 | Type::Sfixed64 | Type::Double => {
                key(field, 1, into);
                into.extend(number(dice).to_le_bytes());
            }
            Type::Fixed32 | Type::Sfixed32 | Type::Float => {
                key(field, 5, into);
                into.extend((number(dice) as u32).to_le_bytes());
            }
            _ => {
                key(field, 0, into);
                varint(number(dice), into);
            }
        }
    }

    fn message(&self, name: &str, dice: &mut Dice, depth: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let message = &self.0[name];
        if depth > 4 {
            return out;
        }
        let mut chosen = BTreeMap::new();
        for field in &message.field {
            // Of the fields that exclude each other mostly one, now and then several.
            if let Some(group) = field.oneof_index.filter(|_| !field.proto3_optional()) {
                let members = message.field.iter().filter(|f| f.oneof_index == Some(group)).count();
                let wanted = *chosen.entry(group).or_insert_with(|| dice.of(members + 1));
                let place = message.field.iter().filter(|f| f.oneof_index == Some(group));
                let place = place.take_while(|f| f.number() != field.number()).count();
                if place != wanted && dice.of(20) > 0 {
                    continue;
                }
            } else if dice.of(2) == 0 {
                continue;
            }
            let count = match field.label() {
                Label::Repeated if dice.of(40) == 0 => 5_000,
                Label::Repeated => dice.one(&[0, 1, 1, 2, 5]),
                // One that comes twice counts once: the last.
                _ => 1 + usize::from(dice.of(30) == 0),
            };
            // Many of them are small, or it is the bound on bytes that is tried.
            let before = out.len();
            for _ in 0..count {
                self.field(field, dice, depth, &mut out);
                if out.len() - before > 3 << 20 {
                    break;
                }
            }
        }
        match dice.of(25) {
            // A field that nobody knows; the end cut off; anything behind it.
            0 => out.extend([0xf8, 0x7f, 0x01]),
            1 => out.truncate(dice.of(out.len() + 1)),
            2 => out.extend((0..dice.of(9)).map(|n| n as u8 ^ 0xa5)),
            _ => {}
        }
        out
    }
}

/// A method: its path, its request, and whether it takes a stream.
#[derive(Clone, Debug)]
struct Method {
    path: PathAndQuery,
    request: String,
    takes_stream: bool,
}

/// A message by its full name, and those inside of it: a map's pairs are some.
fn note(name: String, message: &DescriptorProto, into: &mut HashMap<String, DescriptorProto>) {
    for nested in &message.nested_type {
        note(format!("{name}.{}", nested.name()), nested, into);
    }
    into.insert(name, message.clone());
}

fn described() -> (Descriptors, Vec<Method>) {
    let files = FileDescriptorSet::decode(synod_proto::DESCRIPTORS).unwrap().file;
    let (mut messages, mut methods) = (HashMap::new(), Vec::new());
    for file in files {
        for message in &file.message_type {
            note(format!(".{}.{}", file.package(), message.name()), message, &mut messages);
        }
        for service in file.service.iter().filter(|_| file.package() == "synod.v1") {
            methods.extend(service.method.iter().map(|method| Method {
                path: format!("/synod.v1.{}/{}", service.name(), method.name()).parse().unwrap(),
                request: method.input_type().to_owned(),
                takes_stream: method.client_streaming(),
            }));
        }
    }
    (Descriptors(messages), methods)
}

/// A channel that counts its connections.
fn counted(socket: &Path) -> (Channel, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let (path, count) = (socket.to_owned(), connections.clone());
    let connect = tower::service_fn(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    (Endpoint::from_static("http://synod.socket").connect_with_connector_lazy(connect), connections)
}

/// Makes a call; gives what comes until it ends or has nothing to say. `Err`: how it failed.
async fn call(
    channel: Channel,
    method: &Method,
    messages: Vec<Bytes>,
    timeout: Duration,
) -> Result<Vec<Bytes>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(16 << 20);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(futures::stream::iter(messages));
    request.set_timeout(timeout);
    let answer = grpc.streaming(request, method.path.clone(), Raw).await?;
    let (mut answers, mut taken) = (answer.into_inner().take(STREAMED), Vec::new());
    // A stream that has no end says nothing for a while when it has said all there is.
    while let Ok(Some(answer)) = tokio::time::timeout(Duration::from_millis(100), answers.next()).await {
        taken.push(answer?);
    }
    Ok(taken)
}

/// Whether this side's own clock ended the call: then nothing of the member's came.
fn is_local(status: &Status) -> bool {
    let source = std::error::Error::source(status);
    std::iter::successors(source, |error| error.source()).any(|error| error.is::<tonic::TimeoutExpired>())
}

/// What is wrong with the way a call failed, if anything is.
fn fault(method: &Method, status: &Status) -> Option<&'static str> {
    let Some(failure) = Failure::from_status(status) else { return Some("it has no details") };
    let is_append = method.path.path().ends_with("Log/Append");
    match failure.reason() {
        Reason::Unspecified => Some("it has no reason"),
        Reason::Internal | Reason::Unreadable | Reason::Damaged => Some("it is a fault of the member's"),
        _ if matches!(status.code(), Code::Internal | Code::Unknown | Code::Cancelled | Code::Ok) => {
            Some("its code tells nothing")
        }
        _ if is_append != (failure.outcome() != Outcome::Unspecified) => {
            Some("an append's outcome is misplaced")
        }
        _ => None,
    }
}

/// The reason of an append on a stream that failed.
fn streamed(answer: Bytes) -> Option<&'static str> {
    match AppendStreamResponse::decode(answer).unwrap().outcome.expect("an answer has an outcome") {
        Answer::Appended(_) => None,
        Answer::Failure(failure) => {
            assert_ne!(failure.outcome(), Outcome::Unspecified, "{failure:?}");
            assert!(!matches!(failure.reason(), Reason::Unspecified | Reason::Internal), "{failure:?}");
            Some(failure.reason().word())
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_said_is_answered_with_a_reason() {
    let seed = std::env::var("SYNOD_CALLS_SEED").map_or(0x5eed_0fca_1105_eed5, |seed| seed.parse().unwrap());
    println!("SYNOD_CALLS_SEED={seed}");
    let cluster = Cluster::of(1).await;
    let socket = &cluster.members[0].socket;
    let (descriptors, methods) = described();
    let (channel, connections) = counted(socket);
    let (other, others) = counted(socket);
    // There is something to read and to fetch.
    let client = cluster.members[0].client();
    client.append("the first entry").await.unwrap();
    client.checkpoints().save(1, std::io::Cursor::new(b"state")).await.unwrap();
    let mut dice = Dice(seed);
    let (mut judged, mut local) = (0, 0);
    let mut reasons = BTreeSet::new();
    let mut done = BTreeSet::new();
    for round in 0..ROUNDS {
        for method in &methods {
            let count = if method.takes_stream { dice.of(STREAMED + 1) } else { 1 };
            let messages: Vec<Bytes> =
                (0..count).map(|_| descriptors.message(&method.request, &mut dice, 0).into()).collect();
            let timeout = Duration::from_millis(dice.one(&[20, 2_000, 2_000, 2_000, 2_000]));
            let shown = || -> Vec<BytesMut> {
                messages.iter().map(|message| message[..message.len().min(200)].into()).collect()
            };
            let calling = call(channel.clone(), method, messages.clone(), timeout);
            let outcome = tokio::time::timeout(PATIENCE, calling).await;
            match outcome.unwrap_or_else(|_| panic!("{method:?} hangs: {:?}", shown())) {
                Ok(answers) => {
                    done.insert(method.path.path());
                    if method.path.path().ends_with("/AppendStream") {
                        answers.into_iter().for_each(|answer| reasons.extend(streamed(answer)));
                    }
                    judged += 1;
                }
                Err(status) if is_local(&status) => local += 1,
                Err(status) => {
                    judged += 1;
                    let fault = fault(method, &status);
                    assert_eq!(fault, None, "round {round}: {method:?} {:?}: {status:?}", shown());
                    reasons.insert(Failure::from_status(&status).unwrap().reason().word());
                }
            }
        }
        // Nobody else notices.
        let tail = LogClient::new(other.clone()).tail(TailRequest::default()).await;
        assert!(tail.is_ok(), "round {round}: {tail:?}");
    }
    assert_eq!((connections.load(Ordering::Relaxed), others.load(Ordering::Relaxed)), (1, 1));
    println!("reasons: {reasons:?}");
    assert!(local * 10 < judged, "{local} calls of {judged} ended before their answer");
    // It has tried something: every call has gone well at least once, and failed for many reasons.
    let silent = methods.iter().map(|method| method.path.path()).filter(|path| !done.contains(path));
    // A state that is not the announced one is never saved, and no random one is.
    let silent: Vec<_> = silent.filter(|path| !path.ends_with("Checkpoints/Save")).collect();
    assert!(silent.is_empty(), "never carried out: {silent:?}");
    assert!(reasons.len() >= 12, "{reasons:?}");
}
