//! Releases of the demo's application: this very program and a file that tells version and error
//! rate, packed as tar.gz.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use tidegate_shared::error::Reason;
use tidegate_shared::spec::RunSpec;

use super::app::Release;
use crate::errors::{Failure, Result};
use crate::upload::{self, Asset};

/// How a release is run, as `--run` takes it.
pub const COMMAND_LINE: &str = "./tidegate demo-app --release ${RELEASE_DIR}/release.json";

/// How a release is run.
pub fn run_spec() -> RunSpec {
    let mut words = COMMAND_LINE.split(' ').map(str::to_owned);
    RunSpec {
        command: words.next().unwrap_or_default(),
        args: words.collect(),
        ..RunSpec::default()
    }
}

/// Packs one archive per version; their digests differ because their files do.
///
/// # Errors
/// This program cannot be read, or the disk is full.
pub async fn pack(folder: &Path, versions: &[(&str, f64)]) -> Result<Vec<Asset>> {
    let program = super::own_program()?;
    let mut tasks = Vec::new();
    for (version, error_rate) in versions {
        let path = folder.join(format!("hello-{version}.tar.gz"));
        let release = Release {
            version: (*version).to_owned(),
            error_rate: *error_rate,
        };
        let (program, written) = (program.clone(), path.clone());
        let task = tokio::task::spawn_blocking(move || write(&written, &program, &release));
        tasks.push((path, task));
    }
    let mut assets = Vec::new();
    for (path, task) in tasks {
        match task.await {
            Ok(Ok(())) => assets.push(upload::measure(&path).await?),
            Ok(Err(error)) => {
                return Err(Failure::file(Reason::DataFolder, &path, "written", &error));
            }
            Err(error) => return Err(Failure::new(Reason::Internal, error.to_string())),
        }
    }
    Ok(assets)
}

fn write(path: &PathBuf, program: &Path, release: &Release) -> io::Result<()> {
    let file = io::BufWriter::new(File::create(path)?);
    // Speed counts more than size: the archive never leaves this machine.
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::fast()));
    let mut source = File::open(program)?;
    let mut header = tar::Header::new_gnu();
    header.set_size(source.metadata()?.len());
    header.set_mode(0o755);
    header.set_mtime(0);
    archive.append_data(&mut header, "tidegate", &mut source)?;
    let text = serde_json::to_vec_pretty(release)?;
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    archive.append_data(&mut header, "release.json", text.as_slice())?;
    archive.into_inner()?.finish()?.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn archives_hold_a_program_and_its_release() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        std::fs::write(&program, b"#!/bin/sh\n").unwrap();
        let path = folder.path().join("a.tar.gz");
        let release = Release {
            version: "2".to_owned(),
            error_rate: 0.2,
        };
        write(&path, &program, &release).unwrap();
        let mut archive =
            tar::Archive::new(flate2::read::GzDecoder::new(File::open(&path).unwrap()));
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((name, entry.header().mode().unwrap(), text));
        }
        assert_eq!((found[0].0.as_str(), found[0].1), ("tidegate", 0o755));
        assert_eq!(
            serde_json::from_str::<Release>(&found[1].2).unwrap(),
            release
        );
    }

    #[test]
    fn the_command_line_and_the_spec_agree() {
        let run = run_spec();
        assert_eq!(run.command, "./tidegate");
        assert_eq!(
            run.args,
            ["demo-app", "--release", "${RELEASE_DIR}/release.json"]
        );
    }
}
