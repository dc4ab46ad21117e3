//! Compiles the .proto files to Rust, without protoc.

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "synod/admin/v1/admin.proto",
        "synod/peer/v1/peer.proto",
        "synod/v1/checkpoints.proto",
        "synod/v1/cluster.proto",
        "synod/v1/consumers.proto",
        "synod/v1/errors.proto",
        "synod/v1/log.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    std::fs::write(std::path::Path::new(&out).join("descriptors.binpb"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .codec_path("crate::codec::Codec")
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        // Reasons are added: whoever goes by them bears one that it does not know.
        .enum_attribute("synod.v1.Reason", "#[non_exhaustive]")
        .compile_fds(descriptors)?;
    Ok(())
}
