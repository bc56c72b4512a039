//! `tidegate completion` and `tidegate man`: generated from the commands themselves.

use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;
use tidegate_shared::error::Reason;

use crate::errors::{Failure, Result};
use crate::output::Output;

/// For which shell.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate completion bash > /etc/bash_completion.d/tidegate\n  tidegate completion zsh > ~/.zfunc/_tidegate\n  tidegate completion fish > ~/.config/fish/completions/tidegate.fish"
)]
pub struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Where to.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Folder to write the pages to
    dir: PathBuf,
}

impl CompletionArgs {
    /// Prints the script.
    ///
    /// # Errors
    /// The output was closed.
    pub fn run(self, mut command: Command, output: Output) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "tidegate", &mut script);
        output.text(&String::from_utf8_lossy(&script))
    }
}

impl ManArgs {
    /// Writes a page per command.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn run(self, mut command: Command, output: Output) -> Result<()> {
        let wrong = |path: &Path, error: &std::io::Error| {
            Failure::file(Reason::InvalidRequest, path, "written", error)
        };
        std::fs::create_dir_all(&self.dir).map_err(|error| wrong(&self.dir, &error))?;
        command.build();
        let count = pages(&command, "tidegate", &self.dir, &wrong)?;
        output.line(&format!("{count} pages written to {}", self.dir.display()))
    }
}

fn pages(
    command: &Command,
    name: &str,
    folder: &Path,
    wrong: &dyn Fn(&Path, &std::io::Error) -> Failure,
) -> Result<usize> {
    let path = folder.join(format!("{name}.1"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .render(&mut page)
        .and_then(|()| std::fs::write(&path, &page))
        .map_err(|error| wrong(&path, &error))?;
    let mut count = 1;
    let shown = command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
    for sub in shown {
        count += pages(sub, &format!("{name}-{}", sub.get_name()), folder, wrong)?;
    }
    Ok(count)
}
