//! Mutual TLS between members and for the admin port.
//!
//! A directory holds `ca.crt` (a bundle), `NAME.crt` and `NAME.key`. A certificate names its holder by a URI:
//! `spiffe://TRUST/ns/NAMESPACE/cluster/UID/member/POD`, or `.../operator` for the operator's. Certificates
//! separate clusters; members are told apart by member id (docs: operator-rules.md, "TLS"). So the address a
//! member is dialled at need not be in its certificate: the chain and the URI are what counts.
//!
//! The files are read again while the member runs ([`Tls::keep_current`]): each handshake uses what was loaded last.
//! Files that cannot be used leave the pair and the authorities in force as they are.

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};
use sha2::{Digest, Sha256};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The name that is sent to a peer in its TLS handshake; no decision depends on it.
const SERVER_NAME: &str = "synod.peer";
/// The protocol that both sides of a connection name: HTTP/2.
const PROTOCOL: &[u8] = b"h2";
/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);

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
    /// A renewed certificate names a member of another cluster.
    #[error("{} is for another cluster than the one that starts with {own}: restart the member to change its cluster", path.display())]
    OtherCluster {
        /// Which.
        path: PathBuf,
        /// What the certificate at the start named.
        own: String,
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

/// A member's certificate, key and authorities, as its files had them when they were last usable.
#[derive(Clone, Debug)]
pub struct Tls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    paths: Paths,
    /// This member's URI up to its cluster's UID, with the slash behind it.
    prefix: Arc<str>,
    current: RwLock<Arc<Loaded>>,
    loads: AtomicU64,
    is_stale: AtomicBool,
}

#[derive(Clone, Debug)]
struct Paths {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

/// The files' content, as it was read.
struct Files {
    ca: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// What one reading of the files gives.
#[derive(Debug)]
struct Loaded {
    /// Tells one content of the files from another.
    digest: [u8; 32],
    prefix: Arc<str>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    /// When the member's certificate expires, in seconds since 1970.
    expires: i64,
    /// When the last of the authorities expires, in seconds since 1970.
    ca_expires: i64,
}

/// What the metrics say of the certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Seconds until the member's certificate expires; negative afterwards.
    pub expires: i64,
    /// Seconds until the last authority of the bundle expires; negative afterwards.
    pub ca_expires: i64,
    /// How often the files were taken over since the start.
    pub loads: u64,
    /// Whether the files hold something that cannot be used.
    pub is_stale: bool,
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::File { path: path.to_owned(), source })
}

fn content(path: &Path, why: impl ToString) -> TlsError {
    TlsError::Content { path: path.to_owned(), why: why.to_string() }
}

/// The last moment at which a certificate is valid.
fn expiry(certificate: &CertificateDer<'_>) -> Result<i64, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| e.to_string())?;
    Ok(parsed.validity().not_after.timestamp())
}

impl Paths {
    fn read(&self) -> Result<Files, TlsError> {
        Ok(Files { ca: read(&self.ca)?, certificate: read(&self.certificate)?, key: read(&self.key)? })
    }

    /// The authorities, and when the last of them expires.
    fn roots(&self, files: &Files) -> Result<(RootCertStore, i64), TlsError> {
        let mut roots = RootCertStore::empty();
        let mut last = i64::MIN;
        for root in CertificateDer::pem_slice_iter(&files.ca) {
            let root = root.map_err(|e| content(&self.ca, e))?;
            last = last.max(expiry(&root).map_err(|why| content(&self.ca, why))?);
            roots.add(root).map_err(|e| content(&self.ca, e))?;
        }
        if roots.is_empty() {
            return Err(content(&self.ca, "no certificate in it"));
        }
        Ok((roots, last))
    }

    fn load(&self, files: &Files) -> Result<Loaded, TlsError> {
        let path = &self.certificate;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&files.certificate).collect();
        let chain = chain.map_err(|e| content(path, e))?;
        let own = chain.first().ok_or_else(|| content(path, "no certificate in it"))?;
        let prefix = prefix(own).map_err(|why| content(path, why))?;
        let prefix = prefix.ok_or_else(|| TlsError::NoUri { path: path.clone() })?;
        let expires = expiry(own).map_err(|why| content(path, why))?;
        let key = PrivateKeyDer::from_pem_slice(&files.key).map_err(|e| content(&self.key, e))?;
        let (roots, ca_expires) = self.roots(files)?;
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        // Of two files that are replaced one after the other, the first may be the authorities.
        signed(&chain, &roots, expires, &provider).map_err(|e| content(path, e))?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| content(&self.ca, e))?;
        // A pair that does not fit together fails here: half of it may have been written so far.
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder.with_client_cert_verifier(clients).with_single_cert(chain.clone(), key.clone_key())
            })
            .map_err(|e| content(path, e))?;
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        // Each connection is judged by the authorities of now, none by an earlier handshake.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let verifier = Arc::new(Verifier { roots, provider: provider.clone(), prefix: prefix.clone() });
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
                builder.with_client_auth_cert(chain, key)
            })
            .map_err(|e| content(path, e))?;
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        client.resumption = Resumption::disabled();
        let (server, client) = (Arc::new(server), Arc::new(client));
        Ok(Loaded { digest: files.digest(), prefix, server, client, expires, ca_expires })
    }
}

/// Whether a chain leads to the authorities. It does not matter here whether it has expired.
fn signed(
    chain: &[CertificateDer<'_>],
    roots: &RootCertStore,
    expires: i64,
    provider: &CryptoProvider,
) -> Result<(), rustls::Error> {
    let Some((own, intermediates)) = chain.split_first() else { return Ok(()) };
    let valid = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(expires).unwrap_or(0)));
    rustls::client::verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(own)?,
        roots,
        intermediates,
        valid,
        provider.signature_verification_algorithms.all,
    )
}

impl Files {
    fn digest(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        for file in [&self.ca, &self.certificate, &self.key] {
            hasher.update((file.len() as u64).to_be_bytes());
            hasher.update(file);
        }
        hasher.finalize().into()
    }
}

impl Tls {
    /// Reads `ca.crt`, `NAME.crt` and `NAME.key` in `dir`.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn load(dir: &Path, name: &str) -> Result<Tls, TlsError> {
        let paths = Paths {
            ca: dir.join("ca.crt"),
            certificate: dir.join(format!("{name}.crt")),
            key: dir.join(format!("{name}.key")),
        };
        let loaded = Arc::new(paths.load(&paths.read()?)?);
        Ok(Tls(Arc::new(Inner {
            paths,
            prefix: loaded.prefix.clone(),
            current: RwLock::new(loaded),
            loads: AtomicU64::new(0),
            is_stale: AtomicBool::new(false),
        })))
    }

    fn current(&self) -> Arc<Loaded> {
        // Nothing can panic under this lock: it guards one assignment.
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the files over where they differ from what is in force. `Ok(true)`: they did.
    ///
    /// # Errors
    /// If they cannot be used; what is in force stays so.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let inner = &self.0;
        let files = inner.paths.read()?;
        if files.digest() == self.current().digest {
            return Ok(false);
        }
        let loaded = inner.paths.load(&files)?;
        if loaded.prefix != inner.prefix {
            let path = inner.paths.certificate.clone();
            return Err(TlsError::OtherCluster { path, own: inner.prefix.to_string() });
        }
        *inner.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
        inner.loads.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Looks at the files again and again until `end`, by their content: a Secret's files are swapped by a link.
    pub async fn keep_current(self, end: impl Future<Output = ()>) {
        let mut end = std::pin::pin!(end);
        let mut failed = String::new();
        loop {
            tokio::select! {
                () = &mut end => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let tls = self.clone();
            let Ok(looked) = tokio::task::spawn_blocking(move || tls.reload()).await else { return };
            failed = self.note(looked, failed);
        }
    }

    /// Tells what a look at the files has found, and returns its failure. A failure counts, and is logged, when it is
    /// met a second time: before that the files may be in the middle of being replaced.
    fn note(&self, looked: Result<bool, TlsError>, failed: String) -> String {
        let was_stale = self.0.is_stale.load(Ordering::Relaxed);
        let (why, is_stale) = match looked {
            Ok(reloaded) => {
                if reloaded {
                    let Validity { expires, ca_expires, .. } = self.validity();
                    tracing::info!(expires, ca_expires, "the certificate, key and authorities were reloaded");
                }
                (String::new(), false)
            }
            Err(error) => {
                let why = error.to_string();
                let is_stale = why == failed;
                if is_stale && !was_stale {
                    let expires = self.validity().expires;
                    tracing::error!(%error, expires, "the certificates cannot be reloaded: the old ones stay in use");
                }
                (why, is_stale)
            }
        };
        self.0.is_stale.store(is_stale, Ordering::Relaxed);
        why
    }

    /// How long the certificates in force are valid.
    pub fn validity(&self) -> Validity {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        let loaded = self.current();
        Validity {
            expires: loaded.expires - now,
            ca_expires: loaded.ca_expires - now,
            loads: self.0.loads.load(Ordering::Relaxed),
            is_stale: self.0.is_stale.load(Ordering::Relaxed),
        }
    }

    /// The handshake of a connection that was accepted: a client without a certificate of the authorities in force
    /// does not get in.
    ///
    /// # Errors
    /// If the handshake fails.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<server::TlsStream<S>> {
        TlsAcceptor::from(self.current().server.clone()).accept(stream).await
    }

    /// The handshake of a connection to a peer.
    ///
    /// # Errors
    /// If the handshake fails, or the peer holds no member's certificate of this cluster.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<client::TlsStream<S>> {
        let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
        TlsConnector::from(self.current().client.clone()).connect(name, stream).await
    }

    /// Who holds the certificate that a client has shown. Its chain was judged in the handshake.
    pub fn holder(&self, certificates: Option<&[CertificateDer<'_>]>) -> Holder {
        certificates.and_then(<[_]>::first).map_or(Holder::Stranger, |shown| holder(&self.0.prefix, shown))
    }
}

/// A member's URI in its certificate, up to its cluster's UID and the slash behind it.
fn prefix(own: &CertificateDer<'_>) -> Result<Option<Arc<str>>, String> {
    let prefix = uris(own)?.iter().find_map(|uri| {
        let end = uri.find("/member/")?;
        let is_ours = uri.starts_with("spiffe://") && uri[..end].contains("/cluster/");
        is_ours.then(|| format!("{}/", &uri[..end]).into())
    });
    Ok(prefix)
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
    roots: Arc<RootCertStore>,
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
