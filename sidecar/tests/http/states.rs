//! The application's states over HTTP: in, out, in parts, and on from where a transfer was cut.

use super::*;
use sha2::{Digest, Sha256};
use synod_proto::v1::checkpoints_client::CheckpointsClient;
use synod_proto::v1::save_checkpoint_request::Part;
use synod_proto::v1::{FetchCheckpointRequest, SaveBegin, SaveCheckpointRequest};

fn digest(state: &[u8]) -> String {
    Sha256::digest(state).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Larger than any body that is in memory as a whole.
fn large() -> Vec<u8> {
    (0..6_000_000_u32).map(|number| u8::try_from(number % 251).unwrap()).collect()
}

async fn bytes(socket: &Path, path: &str, arguments: &[&str]) -> Vec<u8> {
    let output = curl_command(socket, path, arguments).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

async fn with_entries() -> Cluster {
    let cluster = Cluster::of(1).await;
    for text in ["a", "b", "c"] {
        done(&cluster.members[0].socket, "/v1/entries", &["-d", text]).await;
    }
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_goes_in_and_comes_out() {
    let cluster = with_entries().await;
    let (member, dir) = (&cluster.members[0], cluster.dir.path());
    let socket = &member.socket;
    let state = large();
    let (file, sent) = (dir.join("state"), format!("@{}", dir.join("state").display()));
    std::fs::write(&file, &state).unwrap();
    for (index, spoken) in (1..).zip(SPOKEN) {
        // With its length, and without.
        for told in
            [&["-H", "content-type: application/octet-stream"][..], &["-H", "transfer-encoding: chunked"]]
        {
            if spoken.contains("http2") && told[1].contains("chunked") {
                continue;
            }
            let path = format!("/v1/checkpoints/{index}?digest={}", digest(&state));
            let arguments = [&[spoken, "-X", "PUT", "--data-binary", &sent], told].concat();
            let saved = done(socket, &path, &arguments).await;
            let expected =
                json!({"index": index, "length": state.len(), "digest": digest(&state), "here": true});
            assert_eq!(saved, expected);
        }
        for path in [format!("/v1/checkpoints/{index}"), "/v1/checkpoints/newest".to_owned()] {
            assert!(bytes(socket, &path, &[spoken]).await == state, "{path}");
        }
        // What curl has of it already it asks not for again.
        let part = dir.join("part");
        std::fs::write(&part, &state[..4_000_000]).unwrap();
        bytes(socket, "/v1/checkpoints/newest", &[spoken, "-C", "-", "-o", part.to_str().unwrap()]).await;
        assert!(std::fs::read(&part).unwrap() == state);
        let head = bytes(socket, "/v1/checkpoints/newest", &[spoken, "-r", "10-19", "-D", "-"]).await;
        let head = String::from_utf8_lossy(&head).into_owned();
        assert!(head.contains(" 206"), "{head}");
        for header in [
            "content-length: 10\r\n".to_owned(),
            format!("content-range: bytes 10-19/{}\r\n", state.len()),
            format!("etag: \"{}\"\r\n", digest(&state)),
            format!("synod-checkpoint-index: {index}\r\n"),
        ] {
            assert!(head.contains(&header), "{header}: {head}");
        }
        let beyond = curl(socket, "/v1/checkpoints/newest", &[spoken, "-r", "6000000-"]).await;
        assert_eq!(beyond.reason(), (416, "INVALID"));
    }
    // It is the one that gRPC knows.
    let mut grpc = CheckpointsClient::new(synod_client::wire::channel(socket).unwrap());
    let mut fetched = grpc.fetch(FetchCheckpointRequest::default()).await.unwrap().into_inner();
    let head = fetched.message().await.unwrap().unwrap().checkpoint.unwrap();
    assert_eq!((head.index, head.length), (2, state.len() as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_upload_goes_on() {
    let cluster = with_entries().await;
    let (member, dir) = (&cluster.members[0], cluster.dir.path());
    let socket = &member.socket;
    let state = large();
    let named = format!("digest={}&length={}", digest(&state), state.len());
    let standing = || async {
        let told = done(socket, &format!("/v1/checkpoints/3/standing?{named}"), &[]).await;
        told["bytes"].as_u64().unwrap()
    };
    assert_eq!(standing().await, 0);
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let length = state.len();
    let head = format!(
        "PUT /v1/checkpoints/3?digest={} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n",
        digest(&state)
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&state[..3_000_000]).await.unwrap();
    drop(stream);
    let stands = until("a part of it stands", || async {
        match standing().await {
            0 => Err(0),
            some => Ok(some),
        }
    })
    .await;
    assert_eq!(curl(socket, "/v1/checkpoints/newest", &[]).await.reason(), (404, "NO_CHECKPOINT"));
    let rest = dir.join("rest");
    std::fs::write(&rest, &state[usize::try_from(stands).unwrap()..]).unwrap();
    let path = format!("/v1/checkpoints/3?digest={}&offset={stands}", digest(&state));
    let saved = done(socket, &path, &["-T", rest.to_str().unwrap()]).await;
    assert_eq!((saved["index"].as_u64(), saved["length"].as_u64()), (Some(3), Some(6_000_000)));
    assert!(bytes(socket, "/v1/checkpoints/3", &[]).await == state);
    // The same question over gRPC begins a save that is over at once.
    let mut grpc = CheckpointsClient::new(synod_client::wire::channel(socket).unwrap());
    let begin = Part::Begin(SaveBegin { index: 3, offset: 9, ..SaveBegin::default() });
    let begin = tokio_stream::iter([SaveCheckpointRequest { part: Some(begin) }]);
    assert!(grpc.save(begin).await.unwrap_err().message().contains("bytes of this state stand here"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_state_is_refused() {
    let cluster = with_entries().await;
    let socket = &cluster.members[0].socket;
    let wrong = digest(b"other");
    for (path, expected) in [
        ("/v1/checkpoints/9".to_owned(), (409, "BEYOND_TAIL")),
        ("/v1/checkpoints/x".to_owned(), (400, "INVALID")),
        (format!("/v1/checkpoints/1?digest={wrong}"), (409, "MISMATCH")),
        ("/v1/checkpoints/1?digest=12".to_owned(), (400, "INVALID")),
        ("/v1/checkpoints/1?offset=1".to_owned(), (400, "INVALID")),
        (format!("/v1/checkpoints/1?digest={wrong}&offset=1"), (409, "OFFSET")),
        ("/v1/checkpoints/newest".to_owned(), (405, "INVALID")),
    ] {
        for spoken in SPOKEN {
            let told = curl(socket, &path, &[spoken, "-X", "PUT", "-d", "state"]).await;
            assert_eq!(told.reason(), expected, "{path}: {told:?}");
        }
    }
    for (path, expected) in [
        ("/v1/checkpoints/newest", (404, "NO_CHECKPOINT")),
        ("/v1/checkpoints/1", (404, "NO_CHECKPOINT")),
        ("/v1/checkpoints/x", (400, "INVALID")),
        ("/v1/checkpoints/1/2", (404, "INVALID")),
    ] {
        assert_eq!(curl(socket, path, &[]).await.reason(), expected, "{path}");
    }
    assert_eq!(done(socket, "/v1/checkpoints", &[]).await["checkpoints"], json!([]));
}
