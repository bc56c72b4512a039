//! How a release is run, read from a file of its own: what flags cannot say well, such as hooks.

use std::path::Path;

use tidegate_shared::spec::RunSpec;

use super::part::Part;
use crate::errors::Result;

/// Reads and checks a file of `command`, `args`, `env`, `health_check`, `hooks`, `limits`.
///
/// # Errors
/// It cannot be read, or every mistake in it, with line and field.
pub fn load(path: &Path) -> Result<RunSpec> {
    let part = Part::load(
        path,
        "does not say how a release is run",
        "it has command, and may have args, env, health_check, hooks and limits",
    )?;
    part.checked(RunSpec::validate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> std::result::Result<RunSpec, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.yaml");
        std::fs::write(&path, text).unwrap();
        load(&path).map_err(|failure| failure.render(false))
    }

    #[test]
    fn hooks_and_limits_are_read() {
        let run = told(
            "command: ./server\nargs: [--port, '${PORT}']\nhooks:\n  before_start:\n    - command: ./migrate\n      timeout: 2m\nlimits:\n  memory: 512MiB\n  cpu: 0.5\n  open_files: 4096\n",
        )
        .unwrap();
        assert_eq!(run.hooks.before_start[0].command, "./migrate");
        assert_eq!(run.limits.memory.unwrap().0, 512 << 20);
        assert_eq!(run.limits.cpu.unwrap().0, 5_000);
    }

    #[test]
    fn mistakes_are_told_with_line_and_field() {
        let unknown = told("command: a\nhooks:\n  before_strat: []\n").unwrap_err();
        assert!(unknown.contains("run.yaml:3:"), "{unknown}");
        assert!(
            unknown.contains("before_strat") && unknown.contains("before_start"),
            "{unknown}"
        );
        let wrong =
            told("command: a\nhooks:\n  after_stop:\n    - command: b\n      timeout: 3h\n")
                .unwrap_err();
        assert!(wrong.contains("run.yaml:5:"), "{wrong}");
        assert!(wrong.contains("hooks.after_stop[0].timeout"), "{wrong}");
    }
}
