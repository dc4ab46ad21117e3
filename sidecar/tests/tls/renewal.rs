//! Certificates and authorities that are renewed, expire and are replaced while members run.

use super::admin_status;
use crate::authority::{Authority, LONG};
use crate::common::{Cluster, Member, free_address, until};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Long enough for members to take a pair over before it expires.
const SHORT: Duration = Duration::seconds(15);

/// Carries connections to a member until they are cut.
struct Proxy {
    address: SocketAddr,
    cuts: watch::Sender<()>,
}

impl Proxy {
    async fn to(member: SocketAddr) -> Proxy {
        let address = free_address();
        let listener = TcpListener::bind(address).await.unwrap();
        let cuts = watch::Sender::new(());
        let sender = cuts.clone();
        tokio::spawn(async move {
            while let Ok((mut dialled, _)) = listener.accept().await {
                let mut cut = sender.subscribe();
                tokio::spawn(async move {
                    let Ok(mut onward) = TcpStream::connect(member).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut dialled, &mut onward) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Proxy { address, cuts }
    }
}

struct Secured {
    cluster: Cluster,
    proxies: Vec<Proxy>,
    admin: SocketAddr,
}

fn folder(cluster: &Cluster, member: &Member) -> PathBuf {
    cluster.dir.path().join(format!("tls-{}", member.name))
}

/// A number of the health port; less than 0 where it is not there.
fn metric(member: &Member, name: &str) -> i64 {
    let text = member.metrics();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(i64::MIN, |number| number.parse().unwrap())
}

impl Secured {
    /// Three members that reach each other through proxies, formed with pairs that do not expire.
    async fn form(authority: &Authority) -> Secured {
        let cluster = Cluster::empty(3).await;
        let mut proxies = Vec::new();
        for member in &cluster.members {
            proxies.push(Proxy::to(member.peer).await);
        }
        let addresses: String = proxies.iter().map(|proxy| format!("{}\n", proxy.address)).collect();
        std::fs::write(cluster.dir.path().join("peers"), addresses).unwrap();
        let admin = free_address();
        let mut secured = Secured { cluster, proxies, admin };
        for number in 0..3 {
            let dir = folder(&secured.cluster, &secured.cluster.members[number]);
            let member = &mut secured.cluster.members[number];
            authority.write(&dir, &member.name);
            member.kill();
            member.extra = vec![
                format!("--tls-dir={}", dir.display()),
                format!("--advertise={}", secured.proxies[number].address),
            ];
            if number == 0 {
                member.extra.push(format!("--admin-listen={admin}"));
            }
            member.start();
        }
        secured.cluster.form().await;
        secured
    }

    fn cut(&self) {
        self.proxies.iter().for_each(|proxy| proxy.cuts.send_replace(()));
    }

    /// Writes a member's files, and awaits that it has taken them over.
    async fn renew(&self, number: usize, write: impl FnOnce(&Path, &str)) {
        let member = &self.cluster.members[number];
        let before = metric(member, "synod_certificate_reloads_total");
        write(&folder(&self.cluster, member), &member.name);
        self.taken_over(number, before).await;
    }

    async fn taken_over(&self, number: usize, before: i64) {
        let member = &self.cluster.members[number];
        until("the member has taken its files over", || async {
            // Halves may be taken over one after the other: the last one counts.
            let text = member.metrics();
            let now = metric(member, "synod_certificate_reloads_total");
            let stale = metric(member, "synod_certificate_stale");
            if now > before && stale == 0 { Ok(()) } else { Err(text) }
        })
        .await;
    }

    /// Every member is ready and takes an append.
    async fn works(&self) {
        for member in &self.cluster.members {
            member.ready().await;
            member.client().append(member.name.clone()).await.unwrap();
        }
        self.linked(true).await;
    }

    async fn linked(&self, linked: bool) {
        for member in &self.cluster.members {
            until("the peers are connected or not", || async {
                let status = member.answers().await;
                let peers = status.peers.iter().filter(|peer| peer.member != status.member);
                let is_so = peers.clone().count() == 2 && peers.clone().all(|peer| peer.connected == linked);
                if is_so { Ok(()) } else { Err((linked, status.peers)) }
            })
            .await;
        }
    }

    fn expired(&self) -> bool {
        self.cluster.members.iter().all(|member| metric(member, "synod_certificate_expires_seconds") < 0)
    }
}

/// Pairs are renewed before they expire, expire all the same, and are renewed at last: no member is restarted for it.
#[tokio::test(flavor = "multi_thread")]
async fn pairs_are_renewed_while_members_run() {
    let authority = Authority::new("aaaa");
    let mut secured = Secured::form(&authority).await;
    let processes: Vec<u32> = secured.cluster.members[..2].iter().map(Member::process).collect();
    let short = |dir: &Path, name: &str| authority.write_valid(dir, name, SHORT, &authority.pem);
    for number in 0..3 {
        secured.renew(number, short).await;
    }
    let valid = metric(&secured.cluster.members[0], "synod_certificate_expires_seconds");
    assert!(valid <= SHORT.whole_seconds(), "{valid}");
    assert!(metric(&secured.cluster.members[0], "synod_ca_certificate_expires_seconds") > 1_000_000);

    // Renewed in time. The old pairs expire, and every connection is made again.
    let expires = time::OffsetDateTime::now_utc() + SHORT;
    for number in 0..3 {
        secured.renew(number, |dir, name| authority.write(dir, name)).await;
    }
    until("the old pairs have expired", || async {
        let left = expires - time::OffsetDateTime::now_utc();
        if left.is_negative() { Ok(()) } else { Err(left) }
    })
    .await;
    secured.cluster.members[2].kill();
    secured.cluster.members[2].start();
    secured.cut();
    secured.works().await;

    // Not renewed in time: no connection is made with an expired pair.
    for number in 0..3 {
        secured.renew(number, short).await;
    }
    until("the pairs have expired", || async { if secured.expired() { Ok(()) } else { Err("not yet") } })
        .await;
    secured.cut();
    secured.linked(false).await;
    for number in 0..3 {
        secured.renew(number, |dir, name| authority.write(dir, name)).await;
    }
    secured.works().await;
    let now: Vec<u32> = secured.cluster.members[..2].iter().map(Member::process).collect();
    assert_eq!(now, processes);
    assert!(!secured.cluster.members.iter_mut().any(Member::has_ended));
}

/// Files that cannot be used leave the old ones in use, and are told of.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_reload_keeps_the_old_pair() {
    let (authority, other) = (Authority::new("aaaa"), Authority::new("bbbb"));
    let secured = Secured::form(&authority).await;
    let member = &secured.cluster.members[0];
    let dir = folder(&secured.cluster, member);
    let before = metric(member, "synod_certificate_reloads_total");
    let key = std::fs::read(dir.join("n0.key")).unwrap();
    let broken: [&dyn Fn(); 4] = [
        &|| std::fs::write(dir.join("n0.key"), authority.pair("member/n0", LONG).1).unwrap(),
        &|| std::fs::write(dir.join("ca.crt"), "no certificate").unwrap(),
        &|| std::fs::remove_file(dir.join("n0.crt")).unwrap(),
        // Of another cluster.
        &|| other.write(&dir, "n0"),
    ];
    let (certificate, ca) = (std::fs::read(dir.join("n0.crt")).unwrap(), authority.pem.clone());
    for damage in broken {
        damage();
        until("the failure is told", || async {
            match metric(member, "synod_certificate_stale") {
                1 => Ok(()),
                other => Err(other),
            }
        })
        .await;
        secured.cut();
        secured.works().await;
        std::fs::write(dir.join("n0.key"), &key).unwrap();
        std::fs::write(dir.join("n0.crt"), &certificate).unwrap();
        std::fs::write(dir.join("ca.crt"), &ca).unwrap();
        until("the failure is over", || async {
            match metric(member, "synod_certificate_stale") {
                0 => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }
    assert_eq!(metric(member, "synod_certificate_reloads_total"), before);
}

/// docs: reliability.md, fault 56: an authority is replaced under load, by bundles that overlap.
#[tokio::test(flavor = "multi_thread")]
async fn authorities_roll_without_a_failed_call() {
    let (old, new) = (Authority::new("aaaa"), Authority::new("aaaa"));
    let secured = Secured::form(&old).await;
    let (stop, appended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load: Vec<_> = (0..3)
        .map(|number| {
            let client = secured.cluster.members[number].client();
            let (stop, appended) = (stop.clone(), appended.clone());
            tokio::spawn(async move {
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match client.append("an entry").await {
                        Ok(_) => drop(appended.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => failed.push(error),
                    }
                }
                failed
            })
        })
        .collect();
    let both = format!("{}{}", old.pem, new.pem);
    let stages = [(&old, &both), (&new, &both), (&new, &new.pem)];
    for (signer, bundle) in stages {
        for number in 0..3 {
            secured.renew(number, |dir, name| signer.write_valid(dir, name, LONG, bundle)).await;
            secured.proxies[number].cuts.send_replace(());
            secured.linked(true).await;
            let seen = appended.load(Ordering::Relaxed);
            until("appends go on", || async {
                if appended.load(Ordering::Relaxed) > seen + 3 { Ok(()) } else { Err(seen) }
            })
            .await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for failed in load {
        assert!(failed.await.unwrap().is_empty());
    }
    // The admin port follows, too.
    admin_status(&new, secured.admin, "operator").await.unwrap();
    assert!(admin_status(&old, secured.admin, "operator").await.is_err());
}
