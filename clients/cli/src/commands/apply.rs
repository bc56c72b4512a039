//! `tidegate apply`: makes the cluster's objects as manifests describe them.

use std::path::PathBuf;

use clap::Args;
use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;

use super::objects::{self, Change, change_word};
use crate::errors::{Failure, Result};
use crate::manifest;
use crate::output::Tone;
use crate::session::Session;

/// What to apply.
#[derive(Debug, Args)]
#[command(
    after_help = "Everything in all files is checked before anything is sent. Mistakes are told with file, line,\ncolumn and field.\n\nExamples:\n  tidegate apply -f cluster.yaml\n  tidegate apply -f manifests/ --dry-run\n  tidegate export | sed s/8080/8081/ | tidegate apply -f -"
)]
pub struct ApplyArgs {
    /// File or folder of manifests (YAML or JSON, several documents each); - is standard input
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,
    /// Ask the cluster what would happen; change nothing
    #[arg(long)]
    dry_run: bool,
}

impl ApplyArgs {
    /// Does it.
    ///
    /// # Errors
    /// A mistake in a manifest (nothing was sent), or the cluster's refusal of one object.
    pub async fn run(self, session: &Session) -> Result<()> {
        let wanted = manifest::load(&self.files)?;
        let total = wanted.len();
        let mut counts = [0_usize; 3];
        let mut answers = Vec::new();
        let mut created = Vec::new();
        for (position, object) in wanted.into_iter().enumerate() {
            let (kind, name, place) = (object.kind, object.name.clone(), object.place.clone());
            let change = Change {
                kind,
                name: object.name.clone(),
                labels: object.labels.clone(),
                spec: object.spec.clone(),
                secret: object.secret.clone(),
                revision: 0,
                dry_run: self.dry_run,
                must_not_exist: false,
            };
            let answer = match objects::apply(session, change).await {
                Err(failure) if self.dry_run && refers_to(&failure, &created) => {
                    // What it refers to would be there by now.
                    api::ApplyResponse {
                        object: None,
                        change: api::apply_response::Change::Created.into(),
                    }
                }
                other => {
                    let located = other.map_err(|failure| failure.locate(|f| object.locate(f)));
                    located.map_err(|f| told(f, &place, position, total, self.dry_run))?
                }
            };
            let (slot, tone) = match answer.change() {
                api::apply_response::Change::Created => (0, Tone::Good),
                api::apply_response::Change::Changed => (1, Tone::Busy),
                api::apply_response::Change::Unchanged
                | api::apply_response::Change::Unspecified => (2, Tone::Faint),
            };
            counts[slot] += 1;
            if slot == 0 {
                created.push(name.clone());
            }
            if session.output.is_for_people() {
                let word = session.output.paint(tone, change_word(answer.change()));
                session.output.line(&format!("{kind} \"{name}\" {word}"))?;
            }
            answers.push(answer);
        }
        if session.output.is_for_people() {
            let [created, changed, unchanged] = counts;
            let suffix = if self.dry_run {
                " (dry run, nothing was changed)"
            } else {
                ""
            };
            return session.output.line(&format!(
                "{created} created, {changed} changed, {unchanged} unchanged{suffix}"
            ));
        }
        session.output.emit(&answers, |_| String::new())
    }
}

/// Whether a dry run was refused only because an object of the same set is not there yet.
fn refers_to(failure: &Failure, created: &[String]) -> bool {
    (failure.is(Reason::NotFound) || failure.is(Reason::InvalidField))
        && created
            .iter()
            .any(|name| failure.message().contains(&format!("\"{name}\"")))
}

fn told(failure: Failure, place: &str, position: usize, total: usize, dry_run: bool) -> Failure {
    let failure = failure.at(place.to_owned());
    if dry_run || position == 0 {
        return failure;
    }
    failure.at(format!(
        "{position} of {total} objects were applied before; apply again once it is corrected: what is done stays unchanged"
    ))
}
