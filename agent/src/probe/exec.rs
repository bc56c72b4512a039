//! A program in the instance's environment exits with 0.

use std::path::Path;
use std::process::Stdio;

use tidegate_shared::spec::ExecProbe;
use tokio::process::Command;

use crate::executor::{Launch, output};

/// One sample. Dropping it ends the program.
///
/// # Errors
/// How it ended, with its last line.
pub async fn sample(probe: &ExecProbe, launch: &Launch, dir: &Path) -> Result<(), String> {
    let program = launch.program(&probe.command, dir);
    let output = Command::new(&program)
        .args(probe.args.iter().map(|arg| launch.substitute(arg, dir)))
        .env_clear()
        .envs(launch.environment(dir))
        .envs(launch.secret_environment().map(|(k, v)| (k, v.expose())))
        .current_dir(&launch.release_dir)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| format!("{}: {error}", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = if output.stderr.is_empty() {
        output.stdout
    } else {
        output.stderr
    };
    let said = String::from_utf8_lossy(&said);
    let last = launch.mask(&output::shorten(said.lines().last().unwrap_or_default()));
    Err(format!(
        "{} ended with {}: {last}",
        program.display(),
        output.status
    ))
}
