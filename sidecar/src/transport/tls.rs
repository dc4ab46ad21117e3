//! Mutual TLS between members and for the admin port.
//!
//! A directory holds `ca.crt` (a bundle), `NAME.crt` and `NAME.key`. A certificate names its holder by a URI:
//! `spiffe://TRUST/ns/NAMESPACE/cluster/UID/member/POD`, or `.../operator` for the operator's. Certificates
//! separate clusters; members are told apart by member id (docs: operator.md, "TLS"). So the address a
//! member is dialled at need not be in its certificate: the chain and the URI are what counts.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tonic::transport::{Certificate, ClientTlsConfig, Identity as Pair, ServerTlsConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The name that is sent to a peer in its TLS handshake; nobody judges by it.
const SERVER_NAME: &str = "synod.peer";

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or unreadable.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no usable certificate or key: {why}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The own certificate names no member.
    #[error(
        "{} names no member: it needs a URI like spiffe://TRUST/ns/NAMESPACE/cluster/UID/member/POD",
        path.display()
    )]
    NoUri {
        /// Which.
        path: PathBuf,
    },
}

/// Who is at the other end of an authenticated connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A member of this cluster.
    Member,
    /// This cluster's operator.
    Operator,
    /// Somebody else.
    Stranger,
}

/// A member's certificate, key and trust.
#[derive(Clone, Debug)]
pub struct Tls {
    ca: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
    /// The own URI up to its cluster's UID, with the slash behind it.
    prefix: Arc<str>,
    verifier: Arc<Verifier>,
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::File { path: path.to_owned(), source })
}

fn content(path: &Path, why: impl ToString) -> TlsError {
    TlsError::Content { path: path.to_owned(), why: why.to_string() }
}

impl Tls {
    /// Reads `ca.crt`, `NAME.crt` and `NAME.key` in `dir`.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn load(dir: &Path, name: &str) -> Result<Tls, TlsError> {
        let (ca_path, path) = (dir.join("ca.crt"), dir.join(format!("{name}.crt")));
        let (ca, certificate, key) = (read(&ca_path)?, read(&path)?, read(&dir.join(format!("{name}.key")))?);
        let own = CertificateDer::from_pem_slice(&certificate).map_err(|e| content(&path, e))?;
        let uris = uris(&own).map_err(|why| content(&path, why))?;
        let prefix = uris.iter().find_map(|uri| {
            let end = uri.find("/member/")?;
            (uri.starts_with("spiffe://") && uri[..end].contains("/cluster/"))
                .then(|| format!("{}/", &uri[..end]))
        });
        let prefix: Arc<str> = prefix.ok_or(TlsError::NoUri { path })?.into();
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(&ca) {
            let root = root.map_err(|e| content(&ca_path, e))?;
            roots.add(root).map_err(|e| content(&ca_path, e))?;
        }
        if roots.is_empty() {
            return Err(content(&ca_path, "no certificate in it"));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(Verifier { roots, provider, prefix: prefix.clone() });
        Ok(Tls { ca, certificate, key, prefix, verifier })
    }

    /// For a listening port: a client without a certificate of this CA does not get in.
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(Pair::from_pem(&self.certificate, &self.key))
            .client_ca_root(Certificate::from_pem(&self.ca))
    }

    /// For dialling a peer, with the verifier that judges it.
    pub fn client(&self) -> (ClientTlsConfig, Arc<dyn ServerCertVerifier>) {
        let config = ClientTlsConfig::new()
            .domain_name(SERVER_NAME)
            .identity(Pair::from_pem(&self.certificate, &self.key));
        (config, self.verifier.clone())
    }

    /// Who holds the certificate that a client has shown. Its chain was judged in the handshake.
    pub fn holder(&self, certificates: Option<&[CertificateDer<'_>]>) -> Holder {
        certificates.and_then(<[_]>::first).map_or(Holder::Stranger, |shown| holder(&self.prefix, shown))
    }
}

fn holder(prefix: &str, certificate: &CertificateDer<'_>) -> Holder {
    let Ok(uris) = uris(certificate) else { return Holder::Stranger };
    let roles: Vec<&str> = uris.iter().filter_map(|uri| uri.strip_prefix(prefix)).collect();
    match roles.as_slice() {
        ["operator"] => Holder::Operator,
        [role] if role.strip_prefix("member/").is_some_and(|pod| !pod.is_empty()) => Holder::Member,
        _ => Holder::Stranger,
    }
}

/// The URIs among a certificate's alternative names.
fn uris(certificate: &CertificateDer<'_>) -> Result<Vec<String>, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| e.to_string())?;
    let names = parsed.subject_alternative_name().map_err(|e| e.to_string())?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    Ok(uris.collect())
}

/// Judges a peer that was dialled: a chain to this cluster's CA, and a member's URI of this cluster.
#[derive(Debug)]
struct Verifier {
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
    prefix: Arc<str>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(certificate)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        match holder(&self.prefix, certificate) {
            Holder::Member => Ok(ServerCertVerified::assertion()),
            Holder::Operator | Holder::Stranger => {
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
