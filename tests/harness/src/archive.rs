//! Makes tar.gz files of a few texts.

use std::fs::File;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

/// Writes an archive of files: name, content, whether it can be executed.
///
/// # Errors
/// It cannot be written.
pub fn write(path: &Path, files: &[(&str, &str, bool)]) -> anyhow::Result<()> {
    let encoder = GzEncoder::new(File::create(path)?, Compression::fast());
    let mut archive = tar::Builder::new(encoder);
    for (name, content, executable) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(if *executable { 0o755 } else { 0o644 });
        header.set_mtime(0);
        header.set_cksum();
        archive.append_data(&mut header, name, content.as_bytes())?;
    }
    archive.into_inner()?.finish()?;
    Ok(())
}
