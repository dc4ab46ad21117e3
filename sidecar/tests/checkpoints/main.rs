//! Checkpoints: the application's state in and out, on a quorum before the log names it (docs: protocol.md,
//! "Snapshots, checkpoints, trim"; decisions/0010).
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod members;
mod streams;

use bytes::Bytes;
use common::{Member, until};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use synod_client::wire::channel;
use synod_client::{CallError, Checkpoint, CheckpointError, Client, ListedCheckpoint, Reason};
use synod_proto::v1::checkpoints_client::CheckpointsClient;
use synod_proto::v1::save_checkpoint_request::Part;
use synod_proto::v1::{self, ResumeRequest, SaveBegin, SaveCheckpointRequest, SaveFinish};
use tonic::transport::Channel;

const MIB: usize = 1 << 20;

/// Bytes that do not repeat.
fn state(seed: u64, length: usize) -> Vec<u8> {
    let mut number = seed;
    let next = |_| {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        number.to_be_bytes()[0]
    };
    (0..length).map(next).collect()
}

fn digest(state: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&Sha256::digest(state))
}

async fn append(client: &Client, count: usize) -> u64 {
    client.append_many((0..count).map(|n| Bytes::from(format!("{n}"))).collect()).await.unwrap().last_index
}

async fn fetched(member: &Member) -> (Checkpoint, Vec<u8>) {
    let fetched = member.client().checkpoints().fetch_newest().await.unwrap().unwrap();
    let mut state = Vec::new();
    (fetched.copy_to(&mut state).await.unwrap(), state)
}

async fn listed(member: &Member) -> Vec<ListedCheckpoint> {
    member.client().checkpoints().list().await.unwrap()
}

/// Waits until this member has every checkpoint that the log names on its own disk.
async fn has_all(member: &Member) {
    until("every checkpoint is here", || async {
        let list = listed(member).await;
        if list.iter().all(|listed| listed.here) { Ok(()) } else { Err(list) }
    })
    .await;
}

/// Files of the member's folder, by name.
fn files(member: &Member) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(member.data_dir.join("checkpoints")) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn is_whole(path: &Path) -> bool {
    path.extension().unwrap() == "checkpoint"
}

fn whole(member: &Member) -> Vec<PathBuf> {
    files(member).into_iter().filter(|path| is_whole(path)).collect()
}

fn service(member: &Member) -> CheckpointsClient<Channel> {
    CheckpointsClient::new(channel(&member.socket).unwrap())
}

async fn standing(member: &Member, index: u64, state: &[u8]) -> u64 {
    let checkpoint = v1::Checkpoint { index, length: state.len() as u64, digest: digest(state) };
    let request = ResumeRequest { checkpoint: Some(checkpoint) };
    until("the member answers", || async { service(member).resume(request.clone()).await })
        .await
        .into_inner()
        .bytes
}

fn begin(index: u64, state: &[u8]) -> Part {
    let length = Some(state.len() as u64);
    Part::Begin(SaveBegin { index, length, digest: digest(state), offset: 0 })
}

fn chunk(bytes: &[u8]) -> Part {
    Part::Chunk(Bytes::copy_from_slice(bytes))
}

fn finish(state: &[u8]) -> Part {
    Part::Finish(SaveFinish { length: state.len() as u64, digest: digest(state) })
}

/// A Save of exactly these parts, to its end.
async fn save_parts(member: &Member, parts: Vec<Part>) -> Result<v1::Checkpoint, CallError> {
    let parts = parts.into_iter().map(|part| SaveCheckpointRequest { part: Some(part) });
    let saved = service(member).save(futures::stream::iter(parts.collect::<Vec<_>>())).await;
    let saved = saved.map_err(|status| synod_client::wire::error(&status))?;
    Ok(saved.into_inner().checkpoint.unwrap())
}

fn reason<T: std::fmt::Debug>(outcome: Result<T, CallError>) -> Reason {
    outcome.unwrap_err().reason
}

fn call(outcome: Result<Checkpoint, CheckpointError>) -> CallError {
    match outcome {
        Err(CheckpointError::Call(error)) => error,
        other => panic!("{other:?}"),
    }
}
