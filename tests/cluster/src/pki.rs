//! The certificates of a cluster: one authority, a pair for each component. Made as a whole in a folder
//! that is renamed when complete, so that an interrupted run leaves none or all.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use crate::error::{At, Error, Result};
use crate::layout::{API_ADDRESS, API_SERVICE, Layout, Node};

/// The components that talk to the API server with a pair of their own, and who they are there.
const CLIENTS: &[(&str, &str, Option<&str>)] = &[
    ("admin", "admin", Some("system:masters")),
    ("controller-manager", "system:kube-controller-manager", None),
    ("scheduler", "system:kube-scheduler", None),
    ("proxy", "system:kube-proxy", None),
];

/// Makes all certificates and kubeconfigs, unless they are there.
///
/// # Errors
/// If a file cannot be written or a certificate cannot be made.
pub(crate) fn ensure(layout: &Layout, nodes: &[Node]) -> Result<()> {
    let done = layout.pki();
    if done.is_dir() {
        return Ok(());
    }
    let dir = layout.state.join("pki.partial");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).at("create", &dir)?;
    let authority = Authority::new()?;
    write(&dir, "ca.crt", &authority.certificate)?;
    write(&dir, "ca.key", &authority.key)?;
    let accounts = KeyPair::generate().map_err(|source| wrong("service accounts", source))?;
    write(&dir, "accounts.key", &accounts.serialize_pem())?;
    write(&dir, "accounts.pub", &accounts.public_key_pem())?;
    authority.issue(&dir, "apiserver", "kube-apiserver", None, server_names(layout))?;
    for (file, who, group) in CLIENTS {
        authority.issue(&dir, file, who, *group, Vec::new())?;
    }
    for node in nodes {
        let names = vec![node.name.clone(), node.address.to_string()];
        let who = format!("system:node:{}", node.name);
        authority.issue(&dir, &node.name, &who, Some("system:nodes"), names)?;
    }
    let inside = format!("https://{API_ADDRESS}:6443");
    let clients = CLIENTS.iter().map(|(file, _, _)| *file).chain(nodes.iter().map(|node| node.name.as_str()));
    for file in clients {
        let config = kubeconfig(&dir, file, &inside, &layout.name)?;
        write(&dir, &format!("{file}.kubeconfig"), &config)?;
    }
    let outside = format!("https://{}:6443", layout.link.cluster());
    let config = kubeconfig(&dir, "admin", &outside, &layout.name)?;
    write(&layout.state, "kubeconfig", &config)?;
    fs::rename(&dir, &done).at("rename to", &done)
}

fn server_names(layout: &Layout) -> Vec<String> {
    let mut names: Vec<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",
    ]
    .map(str::to_owned)
    .to_vec();
    names.extend([layout.link.cluster(), API_ADDRESS, API_SERVICE].map(|address| address.to_string()));
    names
}

struct Authority {
    certificate: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Result<Self> {
        let of = "the cluster's authority";
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "synod-local-kubernetes");
        let pair = KeyPair::generate().map_err(|source| wrong(of, source))?;
        let certificate = params.self_signed(&pair).map_err(|source| wrong(of, source))?;
        let key = pair.serialize_pem();
        Ok(Authority { certificate: certificate.pem(), key, issuer: Issuer::new(params, pair) })
    }

    fn issue(
        &self,
        dir: &Path,
        file: &str,
        who: &str,
        group: Option<&str>,
        names: Vec<String>,
    ) -> Result<()> {
        let mut params = CertificateParams::new(names).map_err(|source| wrong(file, source))?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, who);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let pair = KeyPair::generate().map_err(|source| wrong(file, source))?;
        let certificate = params.signed_by(&pair, &self.issuer).map_err(|source| wrong(file, source))?;
        write(dir, &format!("{file}.crt"), &certificate.pem())?;
        write(dir, &format!("{file}.key"), &pair.serialize_pem())
    }
}

/// A kubeconfig that carries its certificates. JSON is YAML, and needs no escaping rules of ours.
fn kubeconfig(dir: &Path, file: &str, server: &str, cluster: &str) -> Result<String> {
    let data = |name: String| -> Result<String> {
        let path = dir.join(name);
        Ok(STANDARD.encode(fs::read(&path).at("read", &path)?))
    };
    let context = format!("synod-{cluster}");
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": context, "cluster": {
            "server": server,
            "certificate-authority-data": data("ca.crt".into())?,
        }}],
        "users": [{"name": context, "user": {
            "client-certificate-data": data(format!("{file}.crt"))?,
            "client-key-data": data(format!("{file}.key"))?,
        }}],
        "contexts": [{"name": context, "context": {"cluster": context, "user": context}}],
        "current-context": context,
    });
    Ok(format!("{config:#}\n"))
}

/// Writes a file that only its owner reads: most of these are keys.
fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    use std::io::Write as _;
    let path = dir.join(name);
    let mut options = fs::OpenOptions::new();
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).open(&path).at("write", &path)?;
    file.write_all(text.as_bytes()).at("write", &path)
}

fn wrong(of: &str, source: rcgen::Error) -> Error {
    Error::Certificate { of: of.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn all_or_nothing_and_never_twice() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path(), "demo", None).unwrap();
        fs::create_dir_all(layout.state.join("pki.partial")).unwrap();
        let nodes = layout.nodes(2);
        ensure(&layout, &nodes).unwrap();
        let first = fs::read_to_string(layout.pki().join("ca.crt")).unwrap();
        ensure(&layout, &nodes).unwrap();
        assert_eq!(fs::read_to_string(layout.pki().join("ca.crt")).unwrap(), first);
        assert!(!layout.state.join("pki.partial").exists());
        for file in ["apiserver.crt", "node2.key", "node2.kubeconfig", "accounts.pub", "proxy.kubeconfig"] {
            assert!(layout.pki().join(file).is_file(), "{file}");
        }
    }

    #[test]
    fn keys_are_for_their_owner_and_the_kubeconfig_names_the_link() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path(), "demo", None).unwrap();
        ensure(&layout, &layout.nodes(1)).unwrap();
        let mode = fs::metadata(layout.kubeconfig()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let config: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(layout.kubeconfig()).unwrap()).unwrap();
        let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap();
        assert_eq!(server, format!("https://{}:6443", layout.link.cluster()));
    }
}
