//! Releases: made once, then only their status changes.

use tidegate_shared::error::Reason;
use tidegate_shared::spec::{ReleaseStatus, validate_labels};

use super::lifecycle;
use super::tx::{Tx, expect_revision};
use crate::command::{CreateRelease, Outcome, Reply, SetReleaseStatus};
use crate::rejection::Rejection;
use crate::state::{EndCause, Release};

/// Makes a release. The same again is answered well and changes nothing; another content under the
/// same version is refused.
pub(super) fn create(tx: &mut Tx<'_>, command: &CreateRelease) -> Outcome {
    let what = format!("release {} {}", command.application, command.version);
    if !tx.state.applications.contains_key(&command.application) {
        return Err(Rejection::new(
            Reason::NotFound,
            format!("there is no application \"{}\"", command.application),
        ));
    }
    let mut errors = command.spec.validate();
    errors.0.extend(validate_labels(&command.labels).0);
    errors
        .into_result()
        .map_err(|errors| Rejection::fields(&what, errors))?;
    let key = (command.application.clone(), command.version.clone());
    let digest = command.spec.digest();
    if let Some(present) = tx.state.releases.get(&key) {
        if present.digest == digest {
            return Ok(Reply::Object {
                revision: present.meta.revision,
                created: false,
                changed: false,
            });
        }
        return Err(Rejection::new(
            Reason::AlreadyExists,
            format!(
                "{what} is there with another content; a release never changes: choose a new version"
            ),
        ));
    }
    let status = if command.stored {
        ReleaseStatus::Ready
    } else {
        ReleaseStatus::Building
    };
    let release = Release {
        meta: tx.new_meta(command.labels.clone()),
        spec: command.spec.clone(),
        digest,
        status,
        reason: String::new(),
    };
    let revision = release.meta.revision;
    tx.state.releases.insert(key, release);
    tx.note_with(
        "release_created",
        "release",
        format!("{} {}", command.application, command.version),
        format!("{what} was made and is {status}"),
        &[("digest", digest.to_string())],
    );
    Ok(Reply::Object {
        revision,
        created: true,
        changed: true,
    })
}

/// Changes the status; a rejected release takes its deployments back.
pub(super) fn set_status(tx: &mut Tx<'_>, command: &SetReleaseStatus) -> Outcome {
    let what = format!("release {} {}", command.application, command.version);
    let mut release = tx
        .state
        .release(&command.application, &command.version)?
        .clone();
    expect_revision(&what, command.expected_revision, release.meta.revision)?;
    if release.status == command.status && release.reason == command.reason {
        return Ok(Reply::Object {
            revision: release.meta.revision,
            created: false,
            changed: false,
        });
    }
    let refuse = |message: &str| {
        Err(Rejection::new(
            Reason::InvalidRequest,
            format!("{what} is {}: {message}", release.status),
        ))
    };
    match (release.status, command.status) {
        (_, ReleaseStatus::Building) if release.status != ReleaseStatus::Building => {
            return refuse("it cannot go back to building");
        }
        (ReleaseStatus::Building, ReleaseStatus::Paused) => {
            return refuse("it can be paused once its assets are uploaded");
        }
        (
            ReleaseStatus::Building
            | ReleaseStatus::Ready
            | ReleaseStatus::Paused
            | ReleaseStatus::Rejected,
            _,
        ) => {}
    }
    let before = release.status;
    release.status = command.status;
    release.reason.clone_from(&command.reason);
    release.meta.revision = tx.next_revision();
    let revision = release.meta.revision;
    let key = (command.application.clone(), command.version.clone());
    tx.state.releases.insert(key, release);
    let why = lifecycle::because(&command.reason);
    tx.note(
        "release_status_changed",
        "release",
        format!("{} {}", command.application, command.version),
        format!("{what} is {} now, before {before}{why}", command.status),
    );
    if command.status == ReleaseStatus::Rejected && before != ReleaseStatus::Rejected {
        reject_deployments(tx, command)?;
    }
    Ok(Reply::Object {
        revision,
        created: false,
        changed: true,
    })
}

/// Waiting ones are cancelled, running ones go back, finalized ones are flagged.
fn reject_deployments(tx: &mut Tx<'_>, command: &SetReleaseStatus) -> Result<(), Rejection> {
    let why = lifecycle::because(&command.reason);
    for scope in tx.state.scopes.clone().values() {
        let places = scope
            .waiting
            .iter()
            .chain(&scope.candidate)
            .chain(&scope.active);
        for id in places {
            // An earlier one of this round may have ended others.
            let deployment = tx.state.deployment(*id)?.clone();
            let origin = &deployment.origin;
            if origin.application != command.application || origin.version != command.version {
                continue;
            }
            if scope.active == Some(*id) {
                let mut flagged = deployment;
                flagged.reason = "rejected".to_owned();
                flagged.message = format!("its release was rejected{why}; it still runs");
                let message = format!(
                    "{} runs a rejected release{why}",
                    lifecycle::title(&flagged)
                );
                tx.note_deployment("flagged", &flagged, message);
                tx.put_deployment(flagged);
            } else if !deployment.status.is_end() {
                let message = format!("release {} was rejected{why}", origin.version);
                lifecycle::take_back(tx, deployment, EndCause::Rejected, "rejected", message)?;
            }
        }
    }
    Ok(())
}
