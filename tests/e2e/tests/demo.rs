//! README command one: the demo tells its story and ends with 0 only if every step went well.

use tidegate_harness::cluster::programs;
use tidegate_harness::process::{Process, tail};

use std::time::Duration;

#[test]
fn the_demo_ends_as_it_promises() -> anyhow::Result<()> {
    let folder = tempfile_dir()?;
    let dir = folder.path().join("cluster");
    let log = folder.path().join("demo.log");
    let arguments = [
        "dev".into(),
        "--demo".into(),
        "--dir".into(),
        dir.into_os_string(),
    ];
    let mut demo = Process::start("demo", &programs()?.join("tidegate"), &arguments, &[], &log)?;
    let status = demo.wait(Duration::from_secs(180))?;
    let said = demo.output();
    anyhow::ensure!(status.success(), "{status}\n{}", tail(&said));
    for part in [
        "version 2 ended FINALIZED",
        "version 3 ended ROLLED_BACK",
        "0 failed requests of versions 1 and 2",
    ] {
        anyhow::ensure!(said.contains(part), "\"{part}\" is missing:\n{said}");
    }
    Ok(())
}

fn tempfile_dir() -> anyhow::Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new()
        .prefix("tidegate-demo-")
        .tempdir()?)
}
