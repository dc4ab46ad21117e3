//! The managed authority of a cluster: its key, a pair for each ordinal, and the operator's own.
//!
//! Certificates separate clusters (each has an authority of its own); members are told apart by member
//! id, never by certificate. docs: operator-rules.md, "TLS"; security.md, "Who is trusted".

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use thiserror::Error;
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;

use crate::names::ClusterName;

/// Life of an authority.
const AUTHORITY_LIFE: Duration = Duration::days(3650);
/// Life of a member's pair; renewed at two thirds of it.
const MEMBER_LIFE: Duration = Duration::days(90);
/// Life of the operator's own pair. docs: operator-rules.md, "TLS".
const OPERATOR_LIFE: Duration = Duration::hours(24);
/// How far clocks may be apart: certificates begin this long before they are made.
const SKEW: Duration = Duration::hours(1);

/// A certificate could not be made or read.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The library refused.
    #[error("cannot make a certificate for {name}: {source}")]
    Make {
        /// For whom.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// A stored key or certificate does not parse.
    #[error(
        "the Secret {secret} does not hold a usable authority ({why}): restore it, or delete it; a new authority is \
         then brought in beside the old one, without a restart"
    )]
    Stored {
        /// The Secret.
        secret: String,
        /// Why.
        why: String,
    },
}

/// A certificate and its key, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl std::fmt::Debug for Pair {
    // A key must not end in a log line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// The authority of one cluster.
pub struct Authority {
    name: ClusterName,
    pair: Pair,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// If the system has no randomness to give.
    pub fn new(name: &ClusterName, now: OffsetDateTime) -> Result<Authority, TlsError> {
        let failed = |source| TlsError::Make { name: name.name.clone(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = authority_params(name);
        params.not_before = now - SKEW;
        params.not_after = now + AUTHORITY_LIFE;
        let certificate = params.self_signed(&key).map_err(failed)?.pem();
        let pair = Pair { certificate, key: key.serialize_pem() };
        Ok(Authority { name: name.clone(), pair, issuer: Issuer::new(params, key) })
    }

    /// The authority that was stored.
    ///
    /// # Errors
    /// If the key or the certificate does not parse, or they do not belong together.
    pub fn stored(name: &ClusterName, pair: Pair) -> Result<Authority, TlsError> {
        let failed = |why: String| TlsError::Stored { secret: name.ca_secret(), why };
        let key = KeyPair::from_pem(&pair.key).map_err(|e| failed(e.to_string()))?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(pair.certificate.as_bytes())
            .map_err(|e| failed(format!("ca.crt is no PEM: {e}")))?;
        let parsed = pem.parse_x509().map_err(|e| failed(format!("ca.crt is no certificate: {e}")))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(failed("ca.key does not belong to ca.crt".into()));
        }
        Ok(Authority { name: name.clone(), pair, issuer: Issuer::new(authority_params(name), key) })
    }

    /// Its certificate and key.
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// A pair for the pod of an ordinal: server and client, for the peer and the admin port.
    ///
    /// # Errors
    /// If the system has no randomness to give.
    pub fn member(&self, ordinal: u32, now: OffsetDateTime) -> Result<Pair, TlsError> {
        let names = member_hosts(&self.name, ordinal);
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let pod = self.name.pod(ordinal);
        self.issue(&pod, &self.name.member_uri(ordinal), &names, usages, MEMBER_LIFE, now)
    }

    /// The operator's own client pair.
    ///
    /// # Errors
    /// If the system has no randomness to give.
    pub fn operator(&self, now: OffsetDateTime) -> Result<Pair, TlsError> {
        let usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue("synod-operator", &self.name.operator_uri(), &[], usages, OPERATOR_LIFE, now)
    }

    fn issue(
        &self,
        common_name: &str,
        uri: &str,
        hosts: &[String],
        usages: Vec<ExtendedKeyUsagePurpose>,
        life: Duration,
        now: OffsetDateTime,
    ) -> Result<Pair, TlsError> {
        let failed = |source| TlsError::Make { name: common_name.to_owned(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(common_name);
        params.not_before = now - SKEW;
        params.not_after = now + life;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names.push(SanType::URI(ia5(uri).map_err(failed)?));
        for host in hosts {
            params.subject_alt_names.push(SanType::DnsName(ia5(host).map_err(failed)?));
        }
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// The DNS names in a member's certificate: without the cluster's domain, so that it can change.
fn member_hosts(name: &ClusterName, ordinal: u32) -> [String; 4] {
    let (pod, service) = (name.pod(ordinal), name.peer_service());
    [name.dialled(ordinal), format!("{pod}.{service}.{}", name.namespace), format!("{pod}.{service}"), pod]
}

fn ia5(text: &str) -> Result<Ia5String, rcgen::Error> {
    Ia5String::try_from(text)
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // X.520 allows 64 characters; the full name is in the alternative names.
    name.push(DnType::CommonName, common_name.chars().take(64).collect::<String>());
    name
}

/// What an authority is, but for its dates: the same for the same cluster, so that a stored key signs
/// under the name its certificate has.
fn authority_params(name: &ClusterName) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(&format!("synod {}", name.uid));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Whether a certificate has to be made anew: it does not parse, or less than a third of its life is left.
pub fn is_due(certificate: &str, now: OffsetDateTime) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()) else { return true };
    let Ok(parsed) = pem.parse_x509() else { return true };
    let (from, to) = (parsed.validity().not_before.to_datetime(), parsed.validity().not_after.to_datetime());
    now > to - (to - from) / 3
}

/// Whether a member's certificate has to be made anew: it is due, or does not name the pod as the operator
/// looks for it.
pub fn is_stale(certificate: &str, name: &ClusterName, ordinal: u32, now: OffsetDateTime) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()) else { return true };
    let Ok(parsed) = pem.parse_x509() else { return true };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return true };
    let has_host = |wanted: &str| {
        names.value.general_names.iter().any(|n| matches!(n, GeneralName::DNSName(host) if *host == wanted))
    };
    let uri = name.member_uri(ordinal);
    let has_uri = names.value.general_names.iter().any(|n| matches!(n, GeneralName::URI(u) if *u == uri));
    is_due(certificate, now) || !has_uri || !has_host(&name.dialled(ordinal))
}

/// The certificates of a bundle, each in PEM; what is none is left out.
pub fn bundle(text: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let text = text.replace("\r\n", "\n");
    let parts = text.split_inclusive(END).filter(|part| part.contains(END));
    parts.map(|part| format!("{}\n", part.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> ClusterName {
        ClusterName {
            namespace: "ns".into(),
            name: "demo".into(),
            uid: "0b9c".into(),
            domain: "cluster.local".into(),
        }
    }

    fn at(days: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::days(20_000 + days)
    }

    #[test]
    fn a_pair_names_its_pod_and_its_cluster() {
        let authority = Authority::new(&name(), at(0)).unwrap();
        let stored = Authority::stored(&name(), authority.pair().clone()).unwrap();
        let pair = stored.member(2, at(0)).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pair.certificate.as_bytes()).unwrap();
        let cert = pem.parse_x509().unwrap();
        let (_, ca) = x509_parser::pem::parse_x509_pem(authority.pair().certificate.as_bytes()).unwrap();
        let ca = ca.parse_x509().unwrap();
        assert_eq!(cert.issuer().to_string(), ca.subject().to_string());
        let names = cert.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
        let text: Vec<String> = names.iter().map(ToString::to_string).collect();
        assert!(
            text.iter().any(|n| n.contains("spiffe://synod.dev/ns/ns/cluster/0b9c/member/demo-2")),
            "{text:?}"
        );
        assert!(text.iter().any(|n| n.contains("demo-2.demo-peers.ns.svc")), "{text:?}");
        assert!(!text.iter().any(|n| n.contains("cluster.local")), "O35: the domain may change: {text:?}");
        assert!(!is_due(&pair.certificate, at(59)));
        assert!(is_due(&pair.certificate, at(61)));
    }

    /// O35: a certificate that names something else is made anew, not only one that ends.
    #[test]
    fn a_certificate_of_another_name_is_stale() {
        let authority = Authority::new(&name(), at(0)).unwrap();
        let pair = authority.member(2, at(0)).unwrap();
        assert!(!is_stale(&pair.certificate, &name(), 2, at(0)));
        assert!(is_stale(&pair.certificate, &name(), 1, at(0)));
        assert!(is_stale(&pair.certificate, &ClusterName { uid: "other".into(), ..name() }, 2, at(0)));
        assert!(!is_stale(&pair.certificate, &ClusterName { domain: "other".into(), ..name() }, 2, at(0)));
    }

    #[test]
    fn a_bundle_is_read_certificate_by_certificate() {
        let make = || Authority::new(&name(), at(0)).unwrap().pair().certificate.clone();
        let (a, b) = (make(), make());
        assert_eq!(bundle(&format!("{a}{b}")), [a.replace("\r\n", "\n"), b.replace("\r\n", "\n")]);
        assert_eq!(bundle("nothing"), [""; 0]);
    }

    #[test]
    fn the_operators_pair_lives_a_day_and_names_no_host() {
        let authority = Authority::new(&name(), at(0)).unwrap();
        let pair = authority.operator(at(0)).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pair.certificate.as_bytes()).unwrap();
        let cert = pem.parse_x509().unwrap();
        let names = cert.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
        assert_eq!(names.len(), 1);
        assert!(names[0].to_string().contains("spiffe://synod.dev/ns/ns/cluster/0b9c/operator"));
        assert!(is_due(&pair.certificate, at(1)));
    }

    #[test]
    fn a_key_of_another_authority_is_refused() {
        let (a, b) = (Authority::new(&name(), at(0)).unwrap(), Authority::new(&name(), at(0)).unwrap());
        let mixed = Pair { certificate: a.pair().certificate.clone(), key: b.pair().key.clone() };
        assert!(matches!(Authority::stored(&name(), mixed), Err(TlsError::Stored { .. })));
    }

    #[test]
    fn what_does_not_parse_is_due() {
        assert!(is_due("no certificate", at(0)));
    }

    #[test]
    fn a_key_stays_out_of_debug_output() {
        let authority = Authority::new(&name(), at(0)).unwrap();
        assert!(!format!("{:?}", authority.pair()).contains("PRIVATE"));
    }
}
