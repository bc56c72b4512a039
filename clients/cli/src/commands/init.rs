//! `tidegate init`: a commented set of manifests to begin with, which `apply` takes as it is.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;

use super::schema::SCHEMA;
use crate::errors::{Failure, Result};
use crate::session::Session;

/// The application of the manifests as they stand here.
const APPLICATION: &str = "shop";

/// The manifests, in the order in which they are read.
const MANIFESTS: [(&str, &str); 5] = [
    ("application.yaml", include_str!("init/application.yaml")),
    ("environments.yaml", include_str!("init/environments.yaml")),
    ("strategy.yaml", include_str!("init/strategy.yaml")),
    ("scopes.yaml", include_str!("init/scopes.yaml")),
    ("policies.yaml", include_str!("init/policies.yaml")),
];

/// Hidden, so that `apply` does not take it for a manifest.
const SCHEMA_FILE: &str = ".tidegate.schema.json";

/// What to write, and where.
#[derive(Debug, Args)]
#[command(
    after_help = "Writes an application, two environments, a strategy, two scopes and policies, each in a file of its\nown with comments, and the JSON Schema beside them, by which editors complete and check. Nothing is\nsent to a cluster.\n\nExamples:\n  tidegate init manifests --application shop\n  tidegate apply -f manifests --dry-run"
)]
pub struct InitArgs {
    /// Folder of the manifests; made if it is not there
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// Name of the application
    #[arg(long, value_name = "NAME", default_value = APPLICATION)]
    application: String,
    /// Write over files that are there already
    #[arg(long)]
    force: bool,
}

impl InitArgs {
    /// Does it.
    ///
    /// # Errors
    /// Files are in the way, or cannot be written.
    pub fn run(self, session: &Session) -> Result<()> {
        let application = Name::new(self.application.clone()).map_err(|error| {
            let message = format!("an application cannot be called so: {error}");
            Failure::new(Reason::InvalidField, message)
        })?;
        let files = files(application.as_str());
        if !self.force {
            self.refuse_what_is_there(&files)?;
        }
        fs::create_dir_all(&self.folder)
            .map_err(|error| Failure::file(Reason::MalformedFile, &self.folder, "made", &error))?;
        for (name, text) in &files {
            write(&self.folder.join(name), text, self.force)?;
        }
        let output = session.output;
        for (name, _) in &files {
            output.note(&format!("wrote {}", self.folder.join(name).display()))?;
        }
        let folder = self.folder.display();
        output.note(&format!(
            "\nnext:\n  tidegate apply -f {folder} --dry-run\n  tidegate apply -f {folder}\n  \
             tidegate release create {application} 1.0.0 --asset FILE --run 'COMMAND'\n  \
             tidegate deploy {application} 1.0.0 --scope {application}-staging --strategy {application}-careful --wait"
        ))
    }

    fn refuse_what_is_there(&self, files: &[(String, String)]) -> Result<()> {
        let paths = files.iter().map(|(name, _)| self.folder.join(name));
        let there: Vec<PathBuf> = paths
            .filter(|path| path.symlink_metadata().is_ok())
            .collect();
        if there.is_empty() {
            return Ok(());
        }
        let message = match there.len() {
            1 => "a file is there already; nothing was written".to_owned(),
            several => format!("{several} files are there already; nothing was written"),
        };
        let failure = Failure::new(Reason::FilesInTheWay, message);
        let named = there.iter().map(|path| path.display().to_string());
        Err(named.fold(failure, Failure::at))
    }
}

/// The files for an application: their names and texts.
fn files(application: &str) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = MANIFESTS
        .iter()
        .map(|(name, text)| ((*name).to_owned(), text.replace(APPLICATION, application)))
        .collect();
    files.push((SCHEMA_FILE.to_owned(), SCHEMA.to_owned()));
    files
}

fn write(path: &Path, text: &str, over: bool) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true);
    if over {
        options.create(true).truncate(true);
    } else {
        // One that came meanwhile is not written over either.
        options.create_new(true);
    }
    options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| Failure::file(Reason::FilesInTheWay, path, "written", &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;
    use tidegate_shared::spec::Kind;

    fn init(folder: &Path, force: bool) -> Result<()> {
        use clap::Parser as _;
        #[derive(Debug, clap::Parser)]
        struct Line {
            #[command(flatten)]
            global: crate::session::GlobalArgs,
            #[command(flatten)]
            args: InitArgs,
        }
        let mut words = vec!["x", "-o", "json", "--application", "web"];
        if force {
            words.push("--force");
        }
        let folder = folder.display().to_string();
        words.push(&folder);
        let line = Line::try_parse_from(words).unwrap();
        line.args.run(&Session::new(line.global))
    }

    #[test]
    fn what_is_written_is_read_as_manifests() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("deep/er");
        init(&folder, false).unwrap();
        let wanted = manifest::load(std::slice::from_ref(&folder)).unwrap();
        for kind in [
            Kind::Application,
            Kind::Environment,
            Kind::Strategy,
            Kind::Scope,
            Kind::Policy,
        ] {
            assert!(wanted.iter().any(|object| object.kind == kind), "{kind}");
        }
        assert!(wanted.iter().all(|object| !object.name.contains("shop")));
    }

    #[test]
    fn files_that_are_there_stay_unless_forced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scopes.yaml");
        fs::write(&path, "mine").unwrap();
        let failure = init(folder.path(), false).unwrap_err();
        assert_eq!(failure.code(), "TG-1603");
        assert!(failure.places()[0].ends_with("scopes.yaml"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        assert!(!folder.path().join("application.yaml").exists());
        init(folder.path(), true).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("kind: scope"));
    }
}
