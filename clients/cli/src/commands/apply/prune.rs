//! `apply --prune`: objects that carry a label and stand in no manifest any more are deleted, what
//! refers to others first.

use std::collections::BTreeSet;
use std::io::{BufRead as _, IsTerminal as _, Write as _};

use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;
use tidegate_shared::selector::{LabelSelector, Labels};
use tidegate_shared::spec::Kind;

use super::send::Verdict;
use crate::entropy;
use crate::errors::{Failure, Result};
use crate::manifest::Wanted;
use crate::session::Session;

/// An object that is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doomed {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// As it was when people saw it in the list; one that changed since stays.
    revision: u64,
}

/// Checks the selector of a prune: it has to be about labels that an object carries.
///
/// # Errors
/// It is missing, wrong, or fits objects without any label.
pub fn check(selector: &str) -> Result<()> {
    let parsed: LabelSelector = selector
        .parse()
        .map_err(|error| Failure::usage(format!("--selector: {error}")))?;
    if parsed.matches(&Labels::new()) {
        let message = if parsed.is_empty() {
            "--prune needs a selector of what belongs to these manifests".to_owned()
        } else {
            format!("--selector {selector} fits objects without labels too")
        };
        return Err(Failure::usage(message)
            .hint("give your objects a label, and say it: --prune --selector app=shop"));
    }
    Ok(())
}

/// What would be deleted, in the order in which it would be: objects of the kinds in the manifests
/// that the selector fits and that no manifest describes.
///
/// # Errors
/// The cluster's.
pub async fn doomed(session: &Session, wanted: &[Wanted], selector: &str) -> Result<Vec<Doomed>> {
    let kinds: BTreeSet<Kind> = wanted.iter().map(|object| object.kind).collect();
    let described: BTreeSet<(Kind, &str)> = wanted
        .iter()
        .map(|object| (object.kind, object.name.as_str()))
        .collect();
    let mut found = Vec::new();
    for kind in kinds.into_iter().rev() {
        for object in session.objects(Some(kind), selector).await? {
            let metadata = object.metadata.unwrap_or_default();
            if !described.contains(&(kind, metadata.name.as_str())) {
                found.push(Doomed {
                    kind,
                    name: metadata.name,
                    revision: metadata.revision,
                });
            }
        }
    }
    Ok(found)
}

/// Lets a person agree.
///
/// # Errors
/// They do not, or there is nobody to ask.
pub fn agree(doomed: &[Doomed], stdin_is_manifest: bool) -> Result<()> {
    let count = match doomed.len() {
        1 => "1 object".to_owned(),
        several => format!("{several} objects"),
    };
    let not = |why: &str| {
        let failure = Failure::new(
            Reason::NotConfirmed,
            format!("{count} would be deleted, and {why}; nothing was changed"),
        );
        let names = doomed
            .iter()
            .map(|object| format!("{} \"{}\"", object.kind, object.name));
        Err(names.fold(failure, Failure::at))
    };
    let stdin = std::io::stdin();
    if stdin_is_manifest || !stdin.is_terminal() {
        return not("there is no terminal to ask at");
    }
    let mut answer = String::new();
    let asked = write!(std::io::stderr(), "Delete {count}? [y/N] ")
        .and_then(|()| std::io::stderr().flush())
        .and_then(|()| stdin.lock().read_line(&mut answer));
    match asked {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        Ok(_) => not("nobody agreed"),
        Err(error) => not(&format!("the answer cannot be read: {error}")),
    }
}

/// Requests that delete them.
///
/// # Errors
/// No request id can be made.
pub fn requests(doomed: &[Doomed], dry_run: bool) -> Result<Vec<api::DeleteObjectRequest>> {
    let request = |object: &Doomed| {
        Ok(api::DeleteObjectRequest {
            request_id: entropy::request_id()?.to_string(),
            expected_revision: object.revision,
            kind: object.kind.to_string(),
            name: object.name.clone(),
            dry_run,
        })
    };
    doomed.iter().map(request).collect()
}

/// What the answer about a deletion means; that somebody else deleted it is no refusal.
///
/// # Errors
/// The cluster's refusal.
pub fn judged(verdict: Verdict) -> Result<()> {
    match verdict {
        Verdict::Refused(failure) if !failure.is(Reason::NotFound) => Err(failure),
        Verdict::Refused(_) | Verdict::Applied { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_has_to_be_about_a_label_that_is_there() {
        for selector in ["app=shop", "app in (shop,web),tier!=x"] {
            assert!(check(selector).is_ok(), "{selector}");
        }
        for (selector, words) in [
            ("", "needs a selector"),
            ("app!=shop", "without labels"),
            ("app", "is not a label selector"),
        ] {
            let failure = check(selector).unwrap_err();
            assert!(failure.message().contains(words), "{failure}");
            assert_eq!(failure.exit_status(), crate::errors::EXIT_USAGE);
        }
    }
}
