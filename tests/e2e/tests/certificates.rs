//! Certificates that a user provides, on a real Kubernetes and under load (docs: operator.md, "Certificates"). Those that the
//! operator makes are in `day_two.rs`.
#![allow(clippy::unwrap_used)]

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use serde_json::{Map, Value, json};
use synod_e2e::Test;
use synod_e2e::load::Load;
use time::{Duration, OffsetDateTime};

const PODS: [&str; 3] = ["log-0", "log-1", "log-2"];
const DAY: Duration = Duration::days(1);

/// A user's own authority.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.not_after = OffsetDateTime::now_utc() + DAY;
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate and its key. `role` is the end of its URI: `member/POD` or `operator`.
    fn pair(&self, test: &Test, role: &str, life: Duration) -> [String; 2] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let uri = format!("spiffe://cluster.local/ns/{}/cluster/log/{role}", test.namespace);
        params.subject_alt_names.push(SanType::URI(Ia5String::try_from(uri).unwrap()));
        if let Some(pod) = role.strip_prefix("member/") {
            let hosts = [format!("{pod}.log-peers.{}.svc", test.namespace), pod.to_owned()];
            let names = hosts.into_iter().map(|host| SanType::DnsName(Ia5String::try_from(host).unwrap()));
            params.subject_alt_names.extend(names);
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
        params.not_after = OffsetDateTime::now_utc() + life;
        [params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem()]
    }
}

/// Writes the Secret `own`: the authorities that are trusted, and a pair for each of `pods` and the operator.
fn provide(test: &Test, trusted: &[&Authority], issuer: &Authority, lives: &[(&str, Duration)]) {
    let mut data = Map::new();
    data.insert("ca.crt".into(), trusted.iter().map(|a| a.pem.as_str()).collect::<String>().into());
    let members = lives.iter().map(|(pod, life)| (*pod, format!("member/{pod}"), *life));
    for (name, role, life) in members.chain([("operator", "operator".to_owned(), DAY)]) {
        let [certificate, key] = issuer.pair(test, &role, life);
        data.insert(format!("{name}.crt"), certificate.into());
        data.insert(format!("{name}.key"), key.into());
    }
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "own" }, "stringData": Value::Object(data),
    });
    test.apply(&secret.to_string());
}

/// A number among a member's metrics.
fn metric(test: &Test, pod: &str, name: &str) -> f64 {
    let path = format!("/api/v1/namespaces/{}/pods/{pod}:7402/proxy/metrics", test.namespace);
    let text = test.try_kubectl(&["get", "--raw", &path]).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or(f64::NAN)
}

/// How often a member has taken over new certificate files.
fn reloads(test: &Test, pod: &str) -> f64 {
    metric(test, pod, "synod_certificate_reloads_total")
}

/// Writes the Secret anew and waits until every member has taken it over.
fn provide_and_wait(test: &Test, trusted: &[&Authority], issuer: &Authority) {
    let before = PODS.map(|pod| reloads(test, pod));
    provide(test, trusted, issuer, &PODS.map(|pod| (pod, DAY)));
    test.wait("every member to take the Secret over", 240, || {
        PODS.iter().zip(before).all(|(pod, before)| reloads(test, pod) > before).then_some(())
    });
}

fn apply_provided(test: &Test) -> Load {
    test.apply_journal("log", 3, "", ", tls: {mode: Provided, secretName: own}");
    test.wait_log("log", 3);
    Load::start(test, &PODS[..2])
}

/// Provided pairs give way to those of another authority, in the three moves of any such change: both trusted, new pairs, the
/// old one out. No call fails, and a member that starts afterwards gets in.
#[test]
fn tls_provided_authorities_change_under_load() {
    let test = Test::new("provided");
    test.install_operator();
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    provide(&test, &[&old], &old, &PODS.map(|pod| (pod, DAY)));
    let load = apply_provided(&test);
    provide_and_wait(&test, &[&old, &new], &old);
    provide_and_wait(&test, &[&old, &new], &new);
    provide_and_wait(&test, &[&new], &new);
    let uids = test.pod_uids(&PODS[2..]);
    test.kubectl(&["delete", "pod", "log-2", "--wait=false"]);
    test.wait_replaced(&PODS[2..], &uids);
    test.wait_log("log", 3);
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}

/// A member starts with a pair that has expired: nobody lets it in, and the log goes on. It is told, and with a new pair it is
/// let in without a restart.
#[test]
fn tls_a_member_whose_pair_has_expired_gets_in_again() {
    let test = Test::new("expired");
    test.install_operator();
    let authority = Authority::new("own");
    provide(&test, &[&authority], &authority, &PODS.map(|pod| (pod, DAY)));
    let load = apply_provided(&test);
    let before = reloads(&test, "log-2");
    let lives = [("log-0", DAY), ("log-1", DAY), ("log-2", -Duration::minutes(1))];
    provide(&test, &[&authority], &authority, &lives);
    test.wait("the member to read an expired pair", 240, || {
        let stale = metric(&test, "log-2", "synod_certificate_stale") > 0.0;
        (reloads(&test, "log-2") > before || stale).then_some(())
    });
    let uids = test.pod_uids(&PODS[2..]);
    test.kubectl(&["delete", "pod", "log-2", "--wait=false"]);
    test.wait_replaced(&PODS[2..], &uids);
    test.wait("a status that tells of the member", 180, || {
        let log = test.get("paxos", "log");
        let conditions = log["status"]["conditions"].to_string();
        (conditions.contains("VoterDown") && conditions.contains("log-2")).then_some(())
    });
    load.goes_on(&test);
    let uids = test.pod_uids(&PODS[2..]);
    provide(&test, &[&authority], &authority, &PODS.map(|pod| (pod, DAY)));
    test.wait_log("log", 3);
    assert_eq!(test.pod_uids(&PODS[2..]), uids, "the pod was replaced");
    load.goes_on(&test);
    load.judge(&test, &PODS).no_call_failed();
}
