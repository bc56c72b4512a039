//! Releases: made once, then only their status changes.

use tidegate_shared::error::Reason;
use tidegate_shared::spec::{ReleaseStatus, validate_labels};

use super::tx::{Tx, expect_revision};
use super::{auto, lifecycle};
use crate::collection;
use crate::command::{CreateRelease, Outcome, Reply, ReviewReleases, SetReleaseStatus};
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
        if present.digest == digest && present.status == ReleaseStatus::Collected {
            return bring_back(tx, command);
        }
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
        idle_since: None,
    };
    let revision = release.meta.revision;
    tx.state.releases.insert(key, release);
    auto::release_changed(tx, &command.application);
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

/// The same release again after its assets were collected: they were uploaded once more.
fn bring_back(tx: &mut Tx<'_>, command: &CreateRelease) -> Outcome {
    let mut release = tx
        .state
        .release(&command.application, &command.version)?
        .clone();
    release.status = if command.stored {
        ReleaseStatus::Ready
    } else {
        ReleaseStatus::Building
    };
    release.reason = String::new();
    release.idle_since = None;
    release.meta.revision = tx.next_revision();
    let (revision, status) = (release.meta.revision, release.status);
    let object = format!("{} {}", command.application, command.version);
    let key = (command.application.clone(), command.version.clone());
    tx.state.releases.insert(key, release);
    auto::release_changed(tx, &command.application);
    let message = format!("release {object} has its assets again and is {status}");
    tx.note("release_status_changed", "release", object, message);
    Ok(Reply::Object {
        revision,
        created: false,
        changed: true,
    })
}

/// Notes which releases are out of use, and lets go of those that have been for long. One that is
/// in use after all is passed over.
pub(super) fn review(tx: &mut Tx<'_>, command: &ReviewReleases) -> Outcome {
    let used = collection::used(&tx.state);
    let offered = |status| matches!(status, ReleaseStatus::Ready | ReleaseStatus::Paused);
    let mut idle = 0;
    for key in &command.idle {
        let found = tx.state.releases.get(key);
        if let Some(found) = found.filter(|found| !used.contains(key) && offered(found.status)) {
            let mut release = found.clone();
            release.idle_since = Some(tx.at);
            tx.state.releases.insert(key.clone(), release);
            idle += 1;
        }
    }
    let mut collected = Vec::new();
    for key in &command.collected {
        let found = tx.state.releases.get(key);
        let out_of_use = |found: &&Release| found.idle_since.is_some() && offered(found.status);
        if let Some(found) = found.filter(|found| !used.contains(key) && out_of_use(found)) {
            let mut release = found.clone();
            release.status = ReleaseStatus::Collected;
            release.reason = "it was long out of use, and its assets were removed from the store; create it again to upload them".to_owned();
            release.meta.revision = tx.next_revision();
            tx.state.releases.insert(key.clone(), release);
            collected.push(format!("{} {}", key.0, key.1));
        }
    }
    let message = match collected.as_slice() {
        [] => format!("{idle} releases are out of use"),
        names => format!(
            "the assets of {} releases go from the store after long disuse: {}",
            names.len(),
            names
                .iter()
                .take(20)
                .cloned()
                .collect::<Vec<_>>()
                .join(", ")
        ),
    };
    tx.note("releases_reviewed", "release", String::new(), message);
    Ok(Reply::Done)
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
        (_, ReleaseStatus::Collected) => {
            return refuse("its assets go by themselves when it is out of use");
        }
        (ReleaseStatus::Collected, ReleaseStatus::Ready | ReleaseStatus::Paused) => {
            return refuse("create it again with its assets, which were removed from the store");
        }
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
            | ReleaseStatus::Rejected
            | ReleaseStatus::Collected,
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
    auto::release_changed(tx, &command.application);
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
