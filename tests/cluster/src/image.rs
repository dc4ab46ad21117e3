//! Image archives from static programs in an otherwise empty image, written without Docker.
//!
//! The archive is Docker's layout (`manifest.json`, a configuration, one layer), which `ctr images
//! import`, `docker load` and `kind load image-archive` all take. The same files give the same bytes:
//! no times, no owners but root, so the tag can be the content's hash.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::error::{At, Result};
use crate::layout::hex;

/// What goes into an image.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The image's name without registry and tag: `synod-sidecar`.
    pub name: String,
    /// Programs to copy, and where to, both absolute.
    pub files: Vec<(PathBuf, String)>,
    /// Symbolic links: the link's absolute path and what it points to.
    pub links: Vec<(String, String)>,
    /// What runs.
    pub entrypoint: Vec<String>,
    /// Who runs it: `65532`, or empty for root.
    pub user: String,
    /// A fixed tag; without one the tag is the content's hash.
    pub tag: Option<String>,
}

/// A written archive.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Image {
    /// The full reference: `localhost/synod-sidecar:0123456789ab`.
    pub reference: String,
    /// The archive.
    pub archive: PathBuf,
    /// The archive's size in bytes.
    pub bytes: u64,
}

impl Recipe {
    /// Writes the archive `NAME-TAG.tar` into `folder`, unless the same content is there.
    ///
    /// # Errors
    /// If a program cannot be read or the archive not written.
    pub fn write(&self, folder: &Path) -> Result<Image> {
        let layer = self.layer()?;
        let digest = hex(&Sha256::digest(&layer));
        let config = self.config(&digest);
        let id = hex(&Sha256::digest(config.as_bytes()));
        let tag = self.tag.clone().unwrap_or_else(|| id[..12].to_owned());
        let reference = format!("localhost/{}:{tag}", self.name);
        let archive = folder.join(format!("{}-{}.tar", self.name, &id[..12]));
        if !archive.is_file() {
            fs::create_dir_all(folder).at("create", folder)?;
            let partial = archive.with_extension("partial");
            let manifest = json!([{
                "Config": format!("{id}.json"),
                "RepoTags": [reference],
                "Layers": [format!("{digest}/layer.tar")],
            }])
            .to_string();
            pack(
                &partial,
                &[
                    (format!("{id}.json"), config.as_bytes()),
                    (format!("{digest}/layer.tar"), &layer),
                    ("manifest.json".into(), manifest.as_bytes()),
                ],
            )?;
            fs::rename(&partial, &archive).at("rename to", &archive)?;
        }
        let bytes = fs::metadata(&archive).at("read", &archive)?.len();
        Ok(Image { reference, archive, bytes })
    }

    fn config(&self, layer: &str) -> String {
        json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Env": ["PATH=/bin:/usr/bin"],
                "User": self.user,
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
        })
        .to_string()
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let place = Path::new("layer");
        let mut tar = tar::Builder::new(Vec::new());
        for (folder, mode) in
            [("bin", 0o755), ("etc", 0o755), ("run", 0o755), ("tmp", 0o1777), ("var", 0o755)]
        {
            let mut header = header(tar::EntryType::Directory, 0, mode);
            tar.append_data(&mut header, folder, std::io::empty()).at("write", place)?;
        }
        for (source, target) in &self.files {
            let data = fs::read(source).at("read", source)?;
            let mut header = header(tar::EntryType::Regular, data.len() as u64, 0o755);
            tar.append_data(&mut header, target.trim_start_matches('/'), data.as_slice())
                .at("write", source)?;
        }
        for (link, target) in &self.links {
            let mut header = header(tar::EntryType::Symlink, 0, 0o777);
            tar.append_link(&mut header, link.trim_start_matches('/'), target).at("write", place)?;
        }
        tar.into_inner().at("write", place)
    }
}

fn pack(archive: &Path, files: &[(String, &[u8])]) -> Result<()> {
    let file = fs::File::create(archive).at("write", archive)?;
    let mut tar = tar::Builder::new(std::io::BufWriter::new(file));
    for (name, data) in files {
        let mut header = header(tar::EntryType::Regular, data.len() as u64, 0o644);
        tar.append_data(&mut header, name, *data).at("write", archive)?;
    }
    tar.into_inner().and_then(|mut file| file.flush()).at("write", archive)
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn recipe(folder: &Path, content: &str) -> Recipe {
        let program = folder.join("program");
        fs::write(&program, content).unwrap();
        Recipe {
            name: "thing".into(),
            files: vec![(program, "/bin/thing".into())],
            links: vec![("/bin/other".into(), "thing".into())],
            entrypoint: vec!["/bin/thing".into()],
            user: "65532".into(),
            tag: None,
        }
    }

    fn entries(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
        tar::Archive::new(archive)
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut data = Vec::new();
                entry.read_to_end(&mut data).unwrap();
                (entry.path().unwrap().display().to_string(), data)
            })
            .collect()
    }

    #[test]
    fn the_same_content_has_the_same_tag_and_other_content_another() {
        let folder = tempfile::tempdir().unwrap();
        let one = recipe(folder.path(), "one").write(folder.path()).unwrap();
        let again = recipe(folder.path(), "one").write(folder.path()).unwrap();
        let two = recipe(folder.path(), "two").write(folder.path()).unwrap();
        assert_eq!(one, again);
        assert_ne!(one.reference, two.reference);
        assert_ne!(one.archive, two.archive);
    }

    #[test]
    fn the_manifest_names_what_the_archive_holds() {
        let folder = tempfile::tempdir().unwrap();
        let image = recipe(folder.path(), "one").write(folder.path()).unwrap();
        let files = entries(&fs::read(&image.archive).unwrap());
        let get = |name: &str| &files.iter().find(|(path, _)| path == name).unwrap().1;
        let manifest: serde_json::Value = serde_json::from_slice(get("manifest.json")).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], image.reference);
        let config: serde_json::Value =
            serde_json::from_slice(get(manifest[0]["Config"].as_str().unwrap())).unwrap();
        assert_eq!(config["config"]["User"], "65532");
        let layer = get(manifest[0]["Layers"][0].as_str().unwrap());
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&Sha256::digest(layer))));
        let names: Vec<String> = entries(layer).into_iter().map(|(name, _)| name).collect();
        assert!(
            names.contains(&"bin/thing".to_owned()) && names.contains(&"bin/other".to_owned()),
            "{names:?}"
        );
    }

    #[test]
    fn a_fixed_tag_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = Recipe { tag: Some("1".into()), ..recipe(folder.path(), "one") };
        assert_eq!(recipe.write(folder.path()).unwrap().reference, "localhost/thing:1");
    }
}
