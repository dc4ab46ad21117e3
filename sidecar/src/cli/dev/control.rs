//! Faults on command: HTTP on the cluster's control socket, for any program, and the commands that use it.

use super::cluster::{Cluster, Refused};
use super::{Fault, Member};
use anyhow::{Context, bail};
use axum::Router;
use axum::extract::{Path as Segments, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Serves `POST /members/N/FAULT`, `POST /members/N/slow/MS` and `GET /members`.
pub(super) async fn serve(listener: UnixListener, cluster: Arc<Cluster>) {
    let router = Router::new()
        .route("/members", get(show))
        .route("/members/{number}/{fault}", post(hurt))
        .route("/members/{number}/slow/{by}", post(slow))
        .with_state(cluster);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the control socket ended");
    }
}

async fn show(State(cluster): State<Arc<Cluster>>) -> Response {
    match serde_json::to_string(&cluster.show().await) {
        Ok(shown) => ([("content-type", "application/json")], shown + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn hurt(
    State(cluster): State<Arc<Cluster>>,
    Segments((number, name)): Segments<(usize, String)>,
) -> Response {
    let member = Member { number };
    let fault = match name.as_str() {
        "kill" => Fault::Kill(member),
        "start" => Fault::Start(member),
        "pause" => Fault::Pause(member),
        "resume" => Fault::Resume(member),
        "cut" => Fault::Cut(member),
        "heal" => Fault::Heal(member),
        "slow" => Fault::Slow { member, by: 100 },
        _ => {
            let message = format!("{name} is no fault: kill, start, pause, resume, cut, heal or slow\n");
            return (StatusCode::NOT_FOUND, message).into_response();
        }
    };
    answer(cluster.hurt(fault).await)
}

async fn slow(
    State(cluster): State<Arc<Cluster>>,
    Segments((number, by)): Segments<(usize, u32)>,
) -> Response {
    answer(cluster.hurt(Fault::Slow { member: Member { number }, by }).await)
}

fn answer(done: Result<(), Refused>) -> Response {
    let Err(why) = done else { return StatusCode::NO_CONTENT.into_response() };
    let code = match &why {
        Refused::NoMember { .. } => StatusCode::NOT_FOUND,
        Refused::State { .. } => StatusCode::CONFLICT,
        Refused::System { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (code, format!("{why}\n")).into_response()
}

/// Asks the cluster behind this socket for a fault; prints what it says.
pub(super) async fn call(socket: &Path, fault: Fault) -> anyhow::Result<()> {
    let (method, path) = match fault {
        Fault::Show => ("GET", "/members".to_owned()),
        Fault::Kill(Member { number }) => ("POST", format!("/members/{number}/kill")),
        Fault::Start(Member { number }) => ("POST", format!("/members/{number}/start")),
        Fault::Pause(Member { number }) => ("POST", format!("/members/{number}/pause")),
        Fault::Resume(Member { number }) => ("POST", format!("/members/{number}/resume")),
        Fault::Cut(Member { number }) => ("POST", format!("/members/{number}/cut")),
        Fault::Heal(Member { number }) => ("POST", format!("/members/{number}/heal")),
        Fault::Slow { member: Member { number }, by } => ("POST", format!("/members/{number}/slow/{by}")),
    };
    let stream = UnixStream::connect(socket).await;
    let mut stream = stream.with_context(|| format!("no dev cluster runs in {}", socket.display()))?;
    // HTTP/1.0: the answer ends with the connection.
    stream.write_all(format!("{method} {path} HTTP/1.0\r\nContent-Length: 0\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split_whitespace().nth(1) {
        Some("200" | "204") => {
            print!("{body}");
            Ok(())
        }
        _ if body.is_empty() => bail!("the cluster answered: {}", head.lines().next().unwrap_or("nothing")),
        _ => bail!("{}", body.trim_end()),
    }
}
