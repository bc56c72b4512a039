//! `tidegate context`: which clusters are known here, and which is in use.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use tidegate_shared::error::Reason;

use crate::context::{self, Config, Context};
use crate::errors::{Failure, Result};
use crate::output::{Table, Tone, dash};
use crate::session::Session;
use crate::{names, time, tls};

/// The verbs of contexts.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List them
    List,
    /// Use one from now on
    Use(NameArgs),
    /// Import a context's folder, such as `tidegate-coordinator init` writes for the first administrator
    Add(AddArgs),
    /// Forget one; its certificate and key are deleted
    Remove(NameArgs),
}

/// Which one.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// Its name
    name: String,
}

/// What to import.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Folder with context.toml, cert.pem, key.pem and roots.pem
    dir: PathBuf,
    /// What to call it here [default: as it calls itself]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Take the place of a context of another cluster with this name
    #[arg(long)]
    replace: bool,
}

#[derive(Serialize)]
struct Line {
    name: String,
    current: bool,
    user: String,
    cluster_id: String,
    trust_domain: String,
    control: Vec<String>,
    certificate_not_after: String,
    problem: String,
}

impl ContextCommand {
    /// Does it; asks no coordinator.
    ///
    /// # Errors
    /// An unknown name, or files that cannot be used.
    pub fn run(self, session: &Session) -> Result<()> {
        let folder = session.config_folder()?;
        match self {
            Self::List => list(session),
            Self::Use(args) => {
                let mut config = Config::load(&folder)?;
                context::select(&folder, Some(&args.name))?;
                if !config.contexts.contains_key(&args.name) {
                    return Err(unknown(&config, &args.name));
                }
                config.current.clone_from(&args.name);
                config.store(&folder)?;
                session
                    .output
                    .line(&format!("context \"{}\" is in use", args.name))
            }
            Self::Add(args) => {
                let found = Context::read(&args.dir)?;
                tls::mutual(&found, b"h2")?;
                let own = super::login::name_of(&found.description.name);
                let name = args.name.unwrap_or(own);
                context::adopt(&folder, found, &name, true, args.replace)?;
                session
                    .output
                    .line(&format!("context \"{name}\" is in use"))
            }
            Self::Remove(args) => remove(session, &args.name),
        }
    }
}

fn unknown(config: &Config, name: &str) -> Failure {
    let near = names::nearest(name, config.contexts.keys().map(String::as_str));
    let failure = Failure::new(
        Reason::Credentials,
        format!("there is no context \"{name}\""),
    );
    failure.hint(match near {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => "`tidegate context list` shows what is there".to_owned(),
    })
}

fn list(session: &Session) -> Result<()> {
    let folder = session.config_folder()?;
    let config = Config::load(&folder)?;
    let lines: Vec<Line> = config
        .contexts
        .iter()
        .map(|(name, path)| {
            let current = *name == config.current;
            let found = Context::read(&folder.join(path))
                .and_then(|context| tls::identity(&context).map(|identity| (context, identity)));
            match found {
                Ok((context, identity)) => Line {
                    name: name.clone(),
                    current,
                    user: context.description.user,
                    cluster_id: context.description.cluster_id,
                    trust_domain: context.description.trust_domain,
                    control: context.description.control,
                    certificate_not_after: time::stamp(identity.not_after_ms),
                    problem: if identity.not_after_ms <= time::now_ms() {
                        "the certificate ran out: log in again".to_owned()
                    } else {
                        String::new()
                    },
                },
                Err(failure) => Line {
                    name: name.clone(),
                    current,
                    user: String::new(),
                    cluster_id: String::new(),
                    trust_domain: String::new(),
                    control: Vec::new(),
                    certificate_not_after: String::new(),
                    problem: failure.message().to_owned(),
                },
            }
        })
        .collect();
    session.output.emit(&lines, |_| {
        let mut table = Table::new(&["", "NAME", "USER", "TRUST DOMAIN", "CERTIFICATE UNTIL", "COORDINATORS"]);
        for line in &lines {
            let until = if line.problem.is_empty() {
                (Tone::Plain, line.certificate_not_after.clone())
            } else {
                (Tone::Bad, line.problem.clone())
            };
            table.toned([
                (Tone::Good, if line.current { "*" } else { "" }.to_owned()),
                (Tone::Strong, line.name.clone()),
                (Tone::Plain, dash(&line.user).to_owned()),
                (Tone::Plain, dash(&line.trust_domain).to_owned()),
                until,
                (Tone::Faint, dash(&line.control.join(",")).to_owned()),
            ]);
        }
        let by_environment = session.wanted_context().map_or_else(String::new, |wanted| {
            format!("\nin use instead, by --context or TIDEGATE_CONTEXT: {wanted}\n")
        });
        let table = table.render(session.output, "No context yet. Log in with `tidegate login`, import one with `tidegate context add DIR`, or try `tidegate dev`.");
        format!("{table}{by_environment}")
    })
}

fn remove(session: &Session, name: &str) -> Result<()> {
    let folder = session.config_folder()?;
    let mut config = Config::load(&folder)?;
    let Some(path) = config.contexts.remove(name) else {
        return Err(unknown(&config, name));
    };
    if config.current == name {
        config.current.clear();
    }
    config.store(&folder)?;
    let path = folder.join(path);
    // Only what this program wrote is deleted.
    for file in [
        context::KEY,
        context::CERTIFICATE,
        context::ROOTS,
        "context.toml",
    ] {
        match std::fs::remove_file(path.join(file)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::file(
                    Reason::Credentials,
                    &path.join(file),
                    "deleted",
                    &error,
                ));
            }
            Ok(()) | Err(_) => {}
        }
    }
    std::fs::remove_dir(&path).ok();
    session
        .output
        .line(&format!("context \"{name}\" is forgotten"))
}
