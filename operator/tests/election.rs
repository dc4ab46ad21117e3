//! Leader election against a small API server in memory: one Lease, with resourceVersions that count.

// The server's own helpers are test code too, which the lint cannot see.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use synod_operator::election::{Elector, Standing};

/// The Lease as it is stored, and how many requests shall fail from now on.
#[derive(Default)]
struct Server {
    lease: Option<Value>,
    version: u64,
    down: bool,
}

impl Server {
    fn answer(&mut self, method: &str, body: &[u8]) -> (u16, Value) {
        let failure = |code: u16, reason: &str| {
            (
                code,
                json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code }),
            )
        };
        if self.down {
            return failure(503, "ServiceUnavailable");
        }
        match (method, &self.lease) {
            ("GET", Some(lease)) => (200, lease.clone()),
            ("GET", None) => failure(404, "NotFound"),
            ("POST", Some(_)) => failure(409, "AlreadyExists"),
            (_, standing) => {
                let mut lease: Value = serde_json::from_slice(body).unwrap();
                let read = &lease["metadata"]["resourceVersion"];
                if standing.as_ref().is_some_and(|s| &s["metadata"]["resourceVersion"] != read) {
                    return failure(409, "Conflict");
                }
                self.version += 1;
                lease["metadata"]["resourceVersion"] = self.version.to_string().into();
                self.lease = Some(lease.clone());
                (200, lease)
            }
        }
    }
}

fn client(server: &Arc<Mutex<Server>>) -> Client {
    let server = Arc::clone(server);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let server = Arc::clone(&server);
        async move {
            let method = request.method().as_str().to_owned();
            let body = request.into_body().collect().await?.to_bytes();
            let (code, answer) = server.lock().unwrap().answer(&method, &body);
            let response =
                http::Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(response.unwrap())
        }
    });
    Client::new(service, "ns")
}

fn elector(server: &Arc<Mutex<Server>>, identity: &str) -> Elector {
    Elector::new(client(server), "ns", "synod-operator", identity.into())
}

#[tokio::test]
async fn of_two_one_leads_until_it_releases() {
    let server = Arc::default();
    let (mut a, mut b) = (elector(&server, "a"), elector(&server, "b"));
    assert_eq!(a.attempt().await, Standing::Leader);
    assert_eq!(b.attempt().await, Standing::Follower);
    assert_eq!(a.attempt().await, Standing::Leader);
    assert_eq!(b.attempt().await, Standing::Follower);
    a.release().await;
    assert_eq!(b.attempt().await, Standing::Leader);
    assert_eq!(a.attempt().await, Standing::Follower);
    let lease = server.lock().unwrap().lease.clone().unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "b");
    assert_eq!(lease["spec"]["leaseTransitions"], 1);
}

#[tokio::test]
async fn a_follower_releases_nothing() {
    let server = Arc::default();
    let (mut a, mut b) = (elector(&server, "a"), elector(&server, "b"));
    a.attempt().await;
    b.attempt().await;
    b.release().await;
    assert_eq!(server.lock().unwrap().lease.as_ref().unwrap()["spec"]["holderIdentity"], "a");
}

#[tokio::test]
async fn a_short_outage_of_the_api_server_costs_no_leadership() {
    let server: Arc<Mutex<Server>> = Arc::default();
    let mut a = elector(&server, "a");
    assert_eq!(a.attempt().await, Standing::Leader);
    server.lock().unwrap().down = true;
    assert_eq!(a.attempt().await, Standing::Leader, "its lease has not run out");
    let mut b = elector(&server, "b");
    assert_eq!(b.attempt().await, Standing::Follower, "an outage makes nobody a leader");
}
