//! Certificate authorities for tests, and what they sign.
#![allow(dead_code, unreachable_pub)]

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use std::path::Path;
use time::{Duration, OffsetDateTime};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// What a server's certificate says beside its role: members listen on many addresses here.
const SERVER: &str = "member.synod.test";
/// How long a pair is valid that is not to expire in a test.
pub const LONG: Duration = Duration::days(1);

/// A cluster's certificate authority.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
    prefix: String,
}

impl Authority {
    pub fn new(uid: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        let prefix = format!("spiffe://synod.dev/ns/test/cluster/{uid}");
        Authority { pem, issuer: Issuer::new(params, key), prefix }
    }

    /// A certificate and its key, valid for so long from now on.
    pub fn pair(&self, role: &str, valid: Duration) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
        params.not_after = OffsetDateTime::now_utc() + valid;
        let uri = format!("{}/{role}", self.prefix);
        params.subject_alt_names =
            vec![SanType::URI(uri.try_into().unwrap()), SanType::DnsName(SERVER.try_into().unwrap())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// How somebody of that role connects.
    pub fn client(&self, role: &str) -> ClientTlsConfig {
        let (certificate, key) = self.pair(role, LONG);
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.pem))
            .domain_name(SERVER)
            .identity(Identity::from_pem(certificate, key))
    }

    /// Writes a member's files.
    pub fn write(&self, dir: &Path, name: &str) {
        self.write_valid(dir, name, LONG, &self.pem);
    }

    /// Writes a member's files: a pair that is valid for so long, and a bundle of authorities.
    pub fn write_valid(&self, dir: &Path, name: &str, valid: Duration, bundle: &str) {
        std::fs::create_dir_all(dir).unwrap();
        let (certificate, key) = self.pair(&format!("member/{name}"), valid);
        std::fs::write(dir.join("ca.crt"), bundle).unwrap();
        std::fs::write(dir.join(format!("{name}.crt")), certificate).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key).unwrap();
    }
}
