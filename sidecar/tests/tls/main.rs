//! Mutual TLS between members and on the admin port (docs: operator-rules.md, "TLS").
#![allow(clippy::unwrap_used)]

mod authority;
#[path = "../common/mod.rs"]
mod common;
mod renewal;

use authority::Authority;
use common::{Cluster, free_address, id, stderr, until};
use synod_proto::admin::v1::RenewRequest;
use synod_proto::admin::v1::admin_client::AdminClient;
use synod_proto::peer::v1::peer_checkpoints_client::PeerCheckpointsClient;
use synod_proto::peer::v1::{Between, ReadCheckpointRequest};
use synod_proto::v1::{Checkpoint, StatusRequest};
use tonic::Code;
use tonic::transport::Endpoint;

async fn secure(cluster: &mut Cluster, authorities: &[&Authority]) -> Vec<std::net::SocketAddr> {
    let mut addresses = Vec::new();
    for (number, member) in cluster.members.iter_mut().enumerate() {
        let dir = cluster.dir.path().join(format!("tls-{number}"));
        authorities[number].write(&dir, &member.name);
        let admin = free_address();
        member.kill();
        member.extra = vec![format!("--tls-dir={}", dir.display()), format!("--admin-listen={admin}")];
        member.start();
        member.answers().await;
        addresses.push(admin);
    }
    addresses
}

async fn admin_status(
    authority: &Authority,
    address: std::net::SocketAddr,
    role: &str,
) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
    let endpoint = endpoint.tls_config(authority.client(role)).unwrap();
    let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
    let mut admin = AdminClient::new(channel);
    let answer = admin.status(StatusRequest {}).await;
    answer.map(drop).map_err(|status| status.to_string())?;
    // Every call passes the same check; this one is refused for another reason.
    let refused = admin.renew(RenewRequest { member: 1 }).await.unwrap_err();
    assert!(refused.message().contains("NOT_RENEWABLE"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_trust_their_own_cluster_only() {
    let mut cluster = Cluster::empty(3).await;
    let (ours, theirs) = (Authority::new("aaaa"), Authority::new("bbbb"));
    // The third member holds a certificate of another cluster.
    let addresses = secure(&mut cluster, &[&ours, &ours, &theirs]).await;
    cluster.initialize().await;
    // Its peers' agreement never comes, and it gets nothing from them.
    let stranger = cluster.members[2].answers().await;
    assert!(stranger.peers.iter().all(|peer| !peer.connected), "{stranger:?}");

    // Whom the admin port lets in.
    admin_status(&ours, addresses[0], "operator").await.unwrap();
    let refused = admin_status(&ours, addresses[0], "member/n1").await.unwrap_err();
    assert!(refused.contains("operator only"), "{refused}");
    assert!(admin_status(&theirs, addresses[0], "operator").await.is_err());

    // With the right certificate it becomes one of them.
    ours.write(&cluster.dir.path().join("tls-2"), "n2");
    cluster.members[2].kill();
    cluster.members[2].start();
    for member in &cluster.members {
        member.ready().await;
    }
    let appended = cluster.members[2].client().append("secret").await.unwrap();
    assert_eq!(appended.first_index, 1);
}

/// docs: reliability.md, fault 44: an address that leads to another cluster's member, without TLS.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_of_another_cluster() {
    let one = Cluster::of(1).await;
    let mut two = Cluster::of(1).await;
    let peers = format!("{}\n{}\n", one.members[0].peer, two.members[0].peer);
    std::fs::write(two.dir.path().join("peers"), peers).unwrap();
    two.add().await;
    until("the new member is connected to its own kind", || async {
        match synod_client::wire::status(&two.members[1].client()).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    })
    .await;
    let before = id(two.members[0].answers().await.member);
    two.members[0].client().append("two").await.unwrap();
    one.members[0].client().append("one").await.unwrap();
    let status = one.members[0].answers().await;
    assert!(status.peers.iter().all(|peer| id(peer.member) != before), "{status:?}");
    let output = one.members[0].admin(&["renew", "--member", &before]);
    assert!(stderr(&output).contains("belongs to member"), "{}", stderr(&output));
}

/// Checkpoints move between members over the same mutual TLS, and for members only.
#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_are_for_members() {
    let mut cluster = Cluster::empty(2).await;
    let authority = Authority::new("1");
    secure(&mut cluster, &[&authority, &authority]).await;
    cluster.initialize().await;
    for member in &cluster.members {
        member.ready().await;
    }
    let client = cluster.members[0].client();
    client.append("one").await.unwrap();
    // Of two members both are a quorum: the other has pulled it when this returns.
    let state = vec![7; 3 << 20];
    let saved = client.checkpoints().save(1, std::io::Cursor::new(state.clone())).await.unwrap();
    let mut copy = Vec::new();
    let other = cluster.members[1].client().checkpoints();
    other.fetch_newest().await.unwrap().unwrap().copy_to(&mut copy).await.unwrap();
    assert!(copy == state);
    let status = cluster.members[0].answers().await;
    let request = ReadCheckpointRequest {
        between: Some(Between { cluster_id: status.cluster_id, from: 1, to: status.member }),
        checkpoint: Some(Checkpoint { index: 1, length: saved.length, digest: saved.digest.to_vec().into() }),
        offset: 0,
    };
    for (role, let_in) in [("member/n1", true), ("operator", false)] {
        let address = format!("https://{}", cluster.members[0].peer);
        let endpoint = Endpoint::from_shared(address).unwrap().tls_config(authority.client(role)).unwrap();
        let mut peer = PeerCheckpointsClient::new(endpoint.connect().await.unwrap());
        match peer.read(request.clone()).await {
            Ok(chunks) => {
                let first = chunks.into_inner().message().await.unwrap().unwrap();
                assert!(let_in && first.bytes == state[..1 << 20], "{role}");
            }
            Err(status) => assert!(!let_in && status.code() == Code::PermissionDenied, "{role}: {status}"),
        }
        // Meant for another member: a pod address that was used before.
        let mut elsewhere = request.clone();
        elsewhere.between.as_mut().unwrap().to = 7;
        assert!(peer.read(elsewhere).await.is_err());
    }
}
