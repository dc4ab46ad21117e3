//! The calls of the socket as a client of any language makes them.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Cluster, Member, until};
use futures::TryStreamExt;
use std::time::Duration;
use synod_client::wire::channel;
use synod_proto::formerly::{self, Under};
use synod_proto::v1::cluster_client::ClusterClient;
use synod_proto::v1::consistency::Kind;
use synod_proto::v1::log_client::LogClient;
use synod_proto::v1::subscribe_request::{End, Start};
use synod_proto::v1::subscribe_response::Event;
use synod_proto::v1::{
    self, AppendRequest, Consistency, Failure, FirstRetained, MemberState, Now, ReadRequest, Reason,
    ServerInfoRequest, SubscribeRequest, SubscribeResponse, TailRequest, WatchRoleRequest,
};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

fn log(member: &Member) -> LogClient<Channel> {
    LogClient::new(channel(&member.socket).unwrap())
}

fn cluster_of(member: &Member) -> ClusterClient<Channel> {
    ClusterClient::new(channel(&member.socket).unwrap())
}

fn reason(status: &Status) -> Reason {
    Failure::from_status(status).unwrap().reason()
}

async fn append(member: &Member, entries: usize) {
    let entries = (0..entries).map(|n| n.to_string().into()).collect();
    log(member).append(AppendRequest { entries, ..AppendRequest::default() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_go_both_ways_and_say_where_the_log_is() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    let read = |request| {
        let mut log = log(member);
        async move { log.read(request).await.unwrap().into_inner() }
    };
    let indexes = |page: &v1::ReadResponse| page.entries.iter().map(|e| e.index).collect::<Vec<_>>();
    let empty = read(ReadRequest { from: 1, ..ReadRequest::default() }).await;
    assert_eq!((indexes(&empty), empty.next, empty.first_index, empty.last_index), (vec![], 1, 1, 0));
    let back = read(ReadRequest { reverse: true, ..ReadRequest::default() }).await;
    assert_eq!((indexes(&back), back.next), (vec![], 0));
    append(member, 7).await;
    let page = read(ReadRequest { from: 2, limit: 3, ..ReadRequest::default() }).await;
    assert_eq!((indexes(&page), page.next, page.last_index), (vec![2, 3, 4], 5, 7));
    let small = read(ReadRequest { from: 2, max_bytes: 1, ..ReadRequest::default() }).await;
    assert_eq!((indexes(&small), small.next), (vec![2], 3));
    let beyond = read(ReadRequest { from: 9, ..ReadRequest::default() }).await;
    assert_eq!((indexes(&beyond), beyond.next, beyond.last_index), (vec![], 9, 7));
    let mut from = 0;
    let mut seen = Vec::new();
    loop {
        let page = read(ReadRequest { from, limit: 3, reverse: true, ..ReadRequest::default() }).await;
        seen.extend(indexes(&page));
        from = page.next;
        if from == 0 {
            break;
        }
    }
    assert_eq!(seen, [7, 6, 5, 4, 3, 2, 1]);
    let one = read(ReadRequest { max_bytes: 1, reverse: true, ..ReadRequest::default() }).await;
    assert_eq!((indexes(&one), one.next), (vec![7], 6));
    let tail = log(member).tail(TailRequest::default()).await.unwrap().into_inner();
    assert_eq!((tail.first_index, tail.last_index), (1, 7));
}

async fn all(member: &Member, start: Start, end: End) -> Vec<SubscribeResponse> {
    let request = SubscribeRequest { start: Some(start), end: Some(end) };
    let messages = log(member).subscribe(request).await.unwrap().into_inner();
    messages.try_collect().await.unwrap()
}

/// docs: socket.md, "Subscribing": with the first entry whose time is that or later, wherever it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_begins_at_a_time() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    for _ in 0..7 {
        append(member, 3).await;
    }
    let read =
        log(member).read(ReadRequest { from: 1, ..ReadRequest::default() }).await.unwrap().into_inner();
    let micros = |entry: &v1::Entry| synod_proto::micros(entry.time.as_ref().unwrap()).unwrap();
    let times: Vec<u64> = read.entries.iter().map(micros).collect();
    assert!(times.len() == 21 && times.is_sorted(), "{times:?}");
    let from = async |micros: u64, end: End| {
        let messages = all(member, Start::Time(synod_proto::timestamp(micros)), end).await;
        let entries = messages.iter().flat_map(|message| &message.entries);
        entries.map(|entry| entry.index).collect::<Vec<_>>()
    };
    let mut wanted: Vec<u64> = times.iter().flat_map(|time| [time - 1, *time, time + 1]).collect();
    wanted.extend([0, u64::MAX / 2]);
    for time in wanted {
        let first = times.partition_point(|at| *at < time) as u64 + 1;
        assert_eq!(from(time, End::Tail(v1::AtTail {})).await, (first..=21).collect::<Vec<_>>(), "{time}");
    }
    // What comes before the time is not given, however long the stream waits for it.
    let (given, ()) = tokio::join!(from(u64::MAX / 2, End::Until(22)), append(member, 1));
    assert_eq!(given, [0_u64; 0]);
    for bad in [(-1, 0), (1, -1), (1, 1_000_000_000)] {
        let time = synod_proto::Timestamp { seconds: bad.0, nanos: bad.1 };
        let request = SubscribeRequest { start: Some(Start::Time(time)), end: None };
        assert_eq!(reason(&log(member).subscribe(request).await.unwrap_err()), Reason::Invalid, "{bad:?}");
    }
    // By the SDK, over a cut as well.
    let client = member.client();
    let time = std::time::UNIX_EPOCH + Duration::from_micros(times[9]);
    let first = times.partition_point(|at| *at < times[9]) as u64 + 1;
    let mut entries = client.subscribe_until(synod_client::Start::Time(time), synod_client::End::Index(22));
    let mut indexes = Vec::new();
    while let Some(entry) = entries.try_next().await.unwrap() {
        indexes.push(entry.index);
    }
    assert_eq!(indexes, (first..=22).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_says_when_it_has_caught_up() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    append(member, 3).await;
    let caught_up = |message: &SubscribeResponse| match &message.event {
        Some(Event::CaughtUp(caught_up)) => Some(caught_up.last_index),
        _ => None,
    };
    let messages = all(member, Start::FirstRetained(FirstRetained {}), End::Until(3)).await;
    assert_eq!(messages.iter().map(|m| m.entries.len()).sum::<usize>(), 3);
    let mut live = log(member)
        .subscribe(SubscribeRequest { start: Some(Start::Now(Now {})), end: None })
        .await
        .unwrap()
        .into_inner();
    // At once: what is appended from now on is behind it.
    assert_eq!(caught_up(&live.message().await.unwrap().unwrap()), Some(3));
    append(member, 1).await;
    assert_eq!(live.message().await.unwrap().unwrap().entries[0].index, 4);
    let mut whole = log(member)
        .subscribe(SubscribeRequest { start: Some(Start::From(1)), end: None })
        .await
        .unwrap()
        .into_inner();
    let mut said = Vec::new();
    while said.last() != Some(&Some(4)) {
        said.push(caught_up(&whole.message().await.unwrap().unwrap()));
    }
    assert_eq!(said.iter().flatten().count(), 1);
    let missing = log(member).subscribe(SubscribeRequest::default()).await.unwrap_err();
    assert_eq!(reason(&missing), Reason::Index);
}

/// Fault S8: members that take no part went on serving, and a subscription at an uninitialized one hung.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_takes_no_part_serves_nothing() {
    let mut cluster = Cluster::of(3).await;
    append(&cluster.members[0], 2).await;
    let leader = cluster.leader().await;
    let (gone, stays) = ((leader + 1) % 3, leader);
    let mut live = log(&cluster.members[gone])
        .subscribe(SubscribeRequest { start: Some(Start::From(1)), end: None })
        .await
        .unwrap()
        .into_inner();
    let id = common::id(cluster.members[gone].answers().await.member);
    let removed = cluster.members[stays].admin(&["remove", "--member", &id]);
    assert!(removed.status.success(), "{}", common::stderr(&removed));
    let ended = loop {
        match live.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(Failure::from_status(&ended).unwrap().state(), MemberState::Removed, "{ended}");
    let mut empty = Member::new(cluster.dir.path(), "empty");
    std::fs::write(&empty.peers_file, "").unwrap();
    empty.start();
    empty.answers().await;
    cluster.members.push(empty);
    let last = cluster.members.len() - 1;
    for (n, state) in [(gone, MemberState::Removed), (last, MemberState::Uninitialized)] {
        serves_nothing(&cluster.members[n], state).await;
    }
}

async fn serves_nothing(member: &Member, state: MemberState) {
    let max = Some(synod_proto::duration(Duration::from_secs(60)));
    let kinds = [
        Kind::Linearizable(v1::Linearizable {}),
        Kind::Sequential(v1::Sequential { at_least: 0 }),
        Kind::StaleBounded(v1::StaleBounded { max }),
    ];
    let mut refusals = Vec::new();
    for kind in kinds {
        let consistency = Some(Consistency { kind: Some(kind) });
        refusals.push(log(member).tail(TailRequest { consistency }).await.unwrap_err());
        let request = ReadRequest { from: 1, consistency, ..ReadRequest::default() };
        refusals.push(log(member).read(request).await.unwrap_err());
    }
    for start in [Start::From(1), Start::FirstRetained(FirstRetained {}), Start::Now(Now {})] {
        let request = SubscribeRequest { start: Some(start), end: None };
        refusals.push(log(member).subscribe(request).await.unwrap_err());
    }
    let entries = vec!["entry".into()];
    refusals.push(log(member).append(AppendRequest { entries, ..Default::default() }).await.unwrap_err());
    refusals.push(cluster_of(member).watch_role(WatchRoleRequest {}).await.unwrap_err());
    for status in refusals {
        let failure = Failure::from_status(&status).unwrap();
        assert_eq!((failure.reason(), failure.state()), (Reason::NotActive, state), "{status}");
    }
    let info = cluster_of(member).server_info(ServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.state(), info.reads_format_level > 0), (state, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_names_the_log_and_another_can_be_refused() {
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    append(member, 1).await;
    let name = format!("{}.0", cluster.cluster_id.simple());
    let answer = log(member).tail(TailRequest::default()).await.unwrap();
    assert_eq!(answer.metadata().get("synod-log").unwrap(), name.as_str());
    let wanting = |log: &str| {
        let mut request = Request::new(TailRequest::default());
        request.metadata_mut().insert("synod-log", MetadataValue::try_from(log).unwrap());
        request
    };
    log(member).tail(wanting(&name)).await.unwrap();
    for other in ["00000000000000000000000000000000.0", &format!("{}.1", cluster.cluster_id.simple())] {
        let refused = log(member).tail(wanting(other)).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::OtherLog, "{refused}");
        // A refusal is an answer, too.
        assert_eq!(refused.metadata().get("synod-log").unwrap(), name.as_str());
    }
    let info = cluster_of(member).server_info(ServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.log, name);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_watched_across_a_change() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let next = (leader + 1) % 3;
    let watch = |n: usize| {
        let mut cluster = cluster_of(&cluster.members[n]);
        async move { cluster.watch_role(WatchRoleRequest {}).await.unwrap().into_inner() }
    };
    let (mut before, mut after) = (watch(leader).await, watch(next).await);
    let first = before.message().await.unwrap().unwrap();
    assert!(first.leads && first.fencing_epoch > 0, "{first:?}");
    assert!(!after.message().await.unwrap().unwrap().leads);
    let to = common::id(cluster.members[next].answers().await.member);
    until("leadership is handed over", || async {
        let output = cluster.members[leader].admin(&["transfer-leader", "--to", &to]);
        if output.status.success() { Ok(()) } else { Err(common::stderr(&output)) }
    })
    .await;
    let mut epochs = vec![first.fencing_epoch];
    let led = loop {
        let role = after.message().await.unwrap().unwrap();
        epochs.push(role.fencing_epoch);
        if role.leads {
            break role;
        }
    };
    assert!(led.fencing_epoch > first.fencing_epoch && epochs.is_sorted(), "{epochs:?}");
    // The one that led may not know it yet: what it does as the leader is refused, and whose turn it is is not.
    let fenced =
        |epoch| AppendRequest { entries: vec!["led".into()], fence: Some(epoch), ..Default::default() };
    for n in [leader, next] {
        let refused = log(&cluster.members[n]).append(fenced(first.fencing_epoch)).await.unwrap_err();
        let failure = Failure::from_status(&refused).unwrap();
        assert_eq!(
            (failure.reason(), failure.outcome()),
            (Reason::Fenced, v1::Outcome::NotAppended),
            "{refused}"
        );
        assert_eq!(failure.fencing_epoch, Some(led.fencing_epoch));
        log(&cluster.members[n]).append(fenced(led.fencing_epoch)).await.unwrap();
    }
    while before.message().await.unwrap().unwrap().leads {}
}

/// What a member says of roles it knows: it had said that nobody leads, under the epoch 0, just after a start.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_starts_anew_says_nothing_before_it_knows_a_leadership() {
    let mut cluster = Cluster::of(3).await;
    cluster.leader().await;
    let watch = |member: &Member| {
        let mut cluster = cluster_of(member);
        async move { cluster.watch_role(WatchRoleRequest {}).await?.into_inner().message().await }
    };
    for member in &mut cluster.members {
        assert_eq!(member.terminate(), Some(0));
    }
    for member in &mut cluster.members {
        member.start();
    }
    for member in &cluster.members {
        let role = until("it says something", || async { watch(member).await }).await.unwrap();
        assert!(role.fencing_epoch > 0, "{role:?}");
    }
}

/// Members and operators of the version before ask under the former names.
#[tokio::test(flavor = "multi_thread")]
async fn the_former_names_are_answered() {
    let cluster = Cluster::of(1).await;
    let socket = cluster.members[0].data_dir.join("admin.sock");
    for is_former in [false, true] {
        let under = Under::<formerly::Admin>::new(channel(&socket).unwrap(), is_former);
        let mut admin = synod_proto::admin::v1::admin_client::AdminClient::new(under);
        assert_eq!(
            admin.status(v1::StatusRequest {}).await.unwrap().into_inner().state(),
            MemberState::Active
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_says_how_far_it_is_behind() {
    use synod_proto::v1::consumers_client::ConsumersClient;
    use synod_proto::v1::{GetConsumerRequest, RegisterConsumerRequest};
    let cluster = Cluster::of(1).await;
    let member = &cluster.members[0];
    append(member, 5).await;
    let mut consumers = ConsumersClient::new(channel(&member.socket).unwrap());
    let get = || GetConsumerRequest { name: "one".to_owned(), consistency: None };
    assert_eq!(reason(&consumers.get(get()).await.unwrap_err()), Reason::UnknownConsumer);
    for created in [true, false] {
        let request = RegisterConsumerRequest { name: "one".to_owned(), index: Some(2), expiry: None };
        let registered = consumers.register(request).await.unwrap().into_inner();
        assert_eq!((registered.index, registered.created), (2, created));
    }
    let got = consumers.get(get()).await.unwrap().into_inner();
    let consumer = got.consumer.unwrap();
    assert_eq!((consumer.index, consumer.lag, got.first_index, got.last_index), (2, 3, 1, 5));
}

/// Tools ask which services there are, and whether they serve.
#[tokio::test(flavor = "multi_thread")]
async fn health_and_descriptors_are_told() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

    let mut cluster = Cluster::of(1).await;
    let mut empty = Member::new(cluster.dir.path(), "empty");
    std::fs::write(&empty.peers_file, "").unwrap();
    empty.start();
    empty.answers().await;
    cluster.members.push(empty);
    for (member, wanted) in cluster.members.iter().zip([1, 2]) {
        for service in ["", "synod.v1.Log"] {
            let mut health = HealthClient::new(channel(&member.socket).unwrap());
            let request = HealthCheckRequest { service: service.to_owned() };
            until("its health is told", || {
                let (mut health, request) = (health.clone(), request.clone());
                async move {
                    let status = health.check(request).await.unwrap().into_inner().status;
                    if status == wanted { Ok(()) } else { Err(status) }
                }
            })
            .await;
            assert!(health.check(HealthCheckRequest { service: "none".to_owned() }).await.is_err());
        }
    }
    let list = MessageRequest::ListServices(String::new());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut reflection = ServerReflectionClient::new(channel(&cluster.members[0].socket).unwrap());
    let answers = reflection.server_reflection_info(futures::stream::iter([request])).await.unwrap();
    let answers: Vec<ServerReflectionResponse> = answers.into_inner().try_collect().await.unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = &answers[0].message_response else {
        panic!("{answers:?}");
    };
    assert!(list.service.iter().any(|service| service.name == "synod.v1.Log"), "{list:?}");
}
