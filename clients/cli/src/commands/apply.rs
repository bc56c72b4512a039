//! `tidegate apply`: makes the cluster's objects as manifests describe them.

mod prune;
pub mod send;

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;

use super::objects::{change_word, dry_word};
use crate::errors::{Failure, Result};
use crate::manifest::{self, Wanted};
use crate::output::{Output, Tone};
use crate::session::Session;
use send::{Parcel, Verdict};

/// Exit status after Ctrl-C, as shells count it.
const EXIT_INTERRUPTED: u8 = 130;

/// What to apply.
#[derive(Debug, Args)]
#[command(
    after_help = "Everything in all files is checked before anything is sent. Mistakes are told with file, line,\ncolumn and field. Objects are applied in the order in which they refer to each other, whatever the\norder of the files; one that is refused holds none of the others up. Running it again is safe: what\nis done is unchanged.\n\n--prune deletes objects of the kinds in the manifests that the selector fits and that no manifest\ndescribes, after everything else was applied, and only if nothing was refused. A dry run\ntells which deletions the cluster would refuse, because something still needs the object.\n\nExamples:\n  tidegate apply -f cluster.yaml\n  tidegate apply -f manifests/ --dry-run\n  tidegate apply -f manifests/ --prune --selector app=shop\n  tidegate export | sed s/8080/8081/ | tidegate apply -f -"
)]
pub struct ApplyArgs {
    /// File or folder of manifests (YAML or JSON, several documents each); - is standard input
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,
    /// Ask the cluster what would happen to each object; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Delete objects that carry the label of --selector and are in no manifest any more
    #[arg(long, requires = "selector")]
    prune: bool,
    /// With --prune: the labels that objects of these manifests carry: key=value, key in (a,b)
    #[arg(short = 'l', long, value_name = "SELECTOR", requires = "prune")]
    selector: Option<String>,
    /// With --prune: do not ask
    #[arg(short, long, requires = "prune")]
    yes: bool,
}

impl ApplyArgs {
    /// Does it.
    ///
    /// # Errors
    /// A mistake in a manifest (nothing was sent), the cluster's refusal of objects, or the way to
    /// the cluster was lost.
    pub async fn run(self, session: &Session) -> Result<()> {
        let selector = self.selector.as_deref().unwrap_or_default();
        if self.prune {
            prune::check(selector)?;
        }
        let wanted = manifest::load(&self.files)?;
        let doomed = if self.prune {
            prune::doomed(session, &wanted, selector).await?
        } else {
            Vec::new()
        };
        let mut report = Report::new(session.output, self.dry_run, wanted.len());
        if !doomed.is_empty() && !self.dry_run && !self.yes {
            report.announce(&doomed)?;
            let stdin_is_manifest = self.files.iter().any(|file| file.as_os_str() == "-");
            prune::agree(&doomed, stdin_is_manifest)?;
        }
        if let Err(failure) = send_all(session, &wanted, &doomed, &mut report).await {
            return report.broken_off(failure);
        }
        report.finish(session).await
    }
}

/// Sends everything; what becomes of each object is reported as soon as it is known. A dry run asks
/// about deletions together with what is applied before them.
async fn send_all(
    session: &Session,
    wanted: &[Wanted],
    doomed: &[prune::Doomed],
    report: &mut Report,
) -> Result<()> {
    let parcels = send::parcels(wanted, report.dry_run)?;
    let batches = send::batches(&parcels, report.dry_run);
    let several = batches.len() > 1;
    let asked = if report.dry_run {
        prune::requests(doomed, true)?
    } else {
        Vec::new()
    };
    let mut judged = Vec::new();
    // One for all calls: a Ctrl-C between two of them counts as well.
    let stop = tokio::signal::ctrl_c();
    tokio::pin!(stop);
    for range in batches {
        let end = range.end;
        let batch = &parcels[range];
        let deletions = if end == parcels.len() {
            &asked[..]
        } else {
            &[]
        };
        let (answered, deleted) = tokio::select! {
            answered = send::send(session, batch, deletions) => answered?,
            _ = &mut stop => return Err(interrupted()),
        };
        judged.extend(deleted);
        for (parcel, verdict) in batch.iter().zip(answered) {
            report.object(parcel, verdict)?;
        }
        if several {
            // Losing a remark about progress is no reason to fail.
            writeln!(
                std::io::stderr(),
                "{end} of {} objects {}",
                parcels.len(),
                if report.dry_run { "checked" } else { "sent" }
            )
            .ok();
        }
    }
    if !report.refused.is_empty() {
        return Ok(());
    }
    if report.dry_run {
        return tell_deletions(report, doomed, judged);
    }
    for some in doomed.chunks(send::MOST_CHANGED) {
        let deletions = prune::requests(some, false)?;
        let (_, deleted) = tokio::select! {
            answered = send::send(session, &[], &deletions) => answered?,
            _ = &mut stop => return Err(interrupted()),
        };
        tell_deletions(report, some, deleted)?;
    }
    Ok(())
}

fn tell_deletions(
    report: &mut Report,
    doomed: &[prune::Doomed],
    judged: Vec<Verdict>,
) -> Result<()> {
    if judged.len() < doomed.len() {
        return Err(Failure::new(
            Reason::NotSupported,
            "this cluster does not answer about deletions: it runs an older version",
        ));
    }
    let mut both = doomed.iter().zip(judged);
    both.try_for_each(|(object, verdict)| report.deleted(object, prune::judged(verdict)))
}

fn interrupted() -> Failure {
    Failure::new(Reason::Interrupted, "interrupted").exit(EXIT_INTERRUPTED)
}

/// What became of an object, for programs.
#[derive(Debug, Serialize)]
struct Told {
    kind: String,
    name: String,
    /// `created`, `changed`, `unchanged`, `refused`, `deleted`.
    change: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<Refusal>,
}

#[derive(Debug, Serialize)]
struct Refusal {
    code: String,
    message: String,
    places: Vec<String>,
}

/// What became of everything so far.
#[derive(Debug)]
struct Report {
    output: Output,
    dry_run: bool,
    total: usize,
    counts: [usize; 4],
    told: Vec<Told>,
    /// How a refusal names what a dry run would have made by now.
    created: Vec<String>,
    /// What was refused: `kind "name"`, where it stands, why.
    refused: Vec<(String, Option<String>, Failure)>,
}

impl Report {
    fn new(output: Output, dry_run: bool, total: usize) -> Self {
        Self {
            output,
            dry_run,
            total,
            counts: [0; 4],
            told: Vec::new(),
            created: Vec::new(),
            refused: Vec::new(),
        }
    }

    fn object(&mut self, parcel: &Parcel<'_>, verdict: Verdict) -> Result<()> {
        use api::apply_response::Change;
        let Wanted {
            kind, name, place, ..
        } = parcel.object;
        let verdict = match verdict {
            // What it refers to would be there by now.
            Verdict::Refused(failure) if self.dry_run && refers_to(&failure, &self.created) => {
                Verdict::Applied {
                    change: Change::Created,
                    revision: 0,
                }
            }
            other => other,
        };
        match verdict {
            Verdict::Applied { change, revision } => {
                let (slot, tone) = match change {
                    Change::Created => (0, Tone::Good),
                    Change::Changed => (1, Tone::Busy),
                    Change::Unchanged | Change::Deleted | Change::Unspecified => (2, Tone::Faint),
                };
                if slot == 0 && self.dry_run {
                    self.created.push(format!("there is no {kind} \"{name}\""));
                }
                let word = change_word(change);
                self.counts[slot] += 1;
                self.line(&format!("{kind} \"{name}\""), tone, word)?;
                self.told.push(Told {
                    kind: kind.to_string(),
                    name: name.clone(),
                    change: word,
                    revision: (revision > 0).then_some(revision),
                    place: Some(place.clone()),
                    refusal: None,
                });
                Ok(())
            }
            Verdict::Refused(failure) => {
                self.refusal(kind.as_str(), name, Some(place.clone()), failure)
            }
        }
    }

    fn deleted(&mut self, object: &prune::Doomed, deleted: Result<()>) -> Result<()> {
        let (kind, name) = (object.kind.as_str(), &object.name);
        if let Err(failure) = deleted {
            return self.refusal(kind, name, None, failure);
        }
        self.counts[3] += 1;
        self.line(&format!("{kind} \"{name}\""), Tone::Bad, "deleted")?;
        self.told.push(Told {
            kind: kind.to_owned(),
            name: name.clone(),
            change: "deleted",
            revision: None,
            place: None,
            refusal: None,
        });
        Ok(())
    }

    fn refusal(
        &mut self,
        kind: &str,
        name: &str,
        place: Option<String>,
        failure: Failure,
    ) -> Result<()> {
        let what = format!("{kind} \"{name}\"");
        let word = format!("refused: {}", failure.message());
        self.line(&what, Tone::Bad, &word)?;
        self.told.push(Told {
            kind: kind.to_owned(),
            name: name.to_owned(),
            change: "refused",
            revision: None,
            place: place.clone(),
            refusal: Some(Refusal {
                code: failure.code().to_owned(),
                message: failure.message().to_owned(),
                places: failure.places().to_vec(),
            }),
        });
        self.refused.push((what, place, failure));
        Ok(())
    }

    /// What a person is asked about.
    fn announce(&self, doomed: &[prune::Doomed]) -> Result<()> {
        for object in doomed {
            let what = format!("{} \"{}\"", object.kind, object.name);
            self.line(&what, Tone::Bad, "would be deleted")?;
        }
        Ok(())
    }

    fn line(&self, what: &str, tone: Tone, word: &str) -> Result<()> {
        if !self.output.is_for_people() {
            return Ok(());
        }
        let word = self.output.paint(tone, word);
        self.output.line(&format!("{what} {word}"))
    }

    fn applied(&self) -> usize {
        self.counts[..3].iter().sum()
    }

    /// The counts, or the whole as JSON or YAML.
    fn sum(&self) -> Result<()> {
        if !self.output.is_for_people() {
            return self.output.emit(&self.told, |_| String::new());
        }
        let [created, changed, unchanged, deleted] = self.counts;
        let mut sum = format!("{created} created, {changed} changed, {unchanged} unchanged");
        for (count, word) in [(deleted, "deleted"), (self.refused.len(), "refused")] {
            if count > 0 {
                sum.push_str(&format!(", {count} {word}"));
            }
        }
        sum.push_str(dry_word(self.dry_run));
        self.output.line(&sum)
    }

    /// The way to the cluster was lost, or somebody pressed Ctrl-C.
    fn broken_off(&self, failure: Failure) -> Result<()> {
        if self.dry_run || self.told.is_empty() {
            return Err(failure);
        }
        self.sum()?;
        Err(failure.at(format!(
            "{} of {} objects are known to be applied; apply again: what is done stays unchanged",
            self.applied(),
            self.total
        )))
    }

    /// Tells the sum and what was refused.
    async fn finish(mut self, session: &Session) -> Result<()> {
        self.sum()?;
        let done = (!self.dry_run && self.applied() > 0).then(|| {
            format!(
                "{} of {} objects were applied; apply again once it is corrected: what is done stays unchanged",
                self.applied(),
                self.total
            )
        });
        let failure = match self.refused.len() {
            0 => return Ok(()),
            1 => {
                let Some((_, place, failure)) = self.refused.pop() else {
                    return Ok(());
                };
                let failure = session.suggest(failure, &[]).await;
                place.into_iter().fold(failure, Failure::at)
            }
            several => {
                let message = format!("{several} objects were refused");
                let refused = std::mem::take(&mut self.refused);
                let places = refused.into_iter().flat_map(|(what, place, failure)| {
                    let lead = place.map_or(what.clone(), |place| format!("{place}: {what}"));
                    let mut lines = vec![format!(
                        "{lead}: {} ({})",
                        failure.message(),
                        failure.code()
                    )];
                    lines.extend(failure.places().iter().cloned());
                    lines
                });
                places.fold(Failure::new(Reason::RefusedInPart, message), Failure::at)
            }
        };
        Err(done.into_iter().fold(failure, Failure::at))
    }
}

/// Whether a dry run was refused only because an object of an earlier call is not there yet.
fn refers_to(failure: &Failure, created: &[String]) -> bool {
    let message = failure.message();
    created.iter().any(|missing| message.contains(missing))
}
