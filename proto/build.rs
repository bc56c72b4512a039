//! Compiles the `.proto` files with protox, so that no system protoc is needed.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

const FILES: &[&str] = &[
    "tidegate/agent/v1/agent.proto",
    "tidegate/control/v1/control.proto",
    "tidegate/control/v1/groups.proto",
    "tidegate/control/v1/people.proto",
    "tidegate/control/v1/plan.proto",
    "tidegate/enroll/v1/enroll.proto",
    "tidegate/peer/v1/peer.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let encoded = descriptors.encode_to_vec();
    std::fs::write(out.join("descriptors.bin"), &encoded)?;
    tonic_prost_build::configure()
        .bytes(".")
        // Written by hand in `src/lib.rs`, without the value.
        .skip_debug([
            ".tidegate.agent.v1.SecretValue",
            ".tidegate.control.v1.SecretValue",
        ])
        .compile_fds(descriptors)?;
    // The canonical JSON mapping, for `-o json` and the JSON API.
    pbjson_build::Builder::new()
        .register_descriptors(&encoded)?
        .emit_fields()
        .build(&[".tidegate.control.v1"])?;
    Ok(())
}
