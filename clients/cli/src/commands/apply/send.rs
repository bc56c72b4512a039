//! Objects on their way to the cluster, many in one call, each judged for itself.

use std::ops::Range;

use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;

use crate::errors::{Failure, Result};
use crate::manifest::Wanted;
use crate::session::Session;
use crate::{entropy, rpc};

/// Most objects of a call that changes something: small enough that it is told how far it is.
pub const MOST_CHANGED: usize = 200;
/// Most objects of a call that only checks; the cluster takes no more.
const MOST_CHECKED: usize = 1_000;
/// Most bytes of a call; the cluster takes 1 MiB.
const MOST_BYTES: usize = 768 << 10;
/// What an object weighs beside its spec.
const ENVELOPE_BYTES: usize = 512;

/// What became of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is, or in a dry run would be, as the manifest says.
    Applied {
        /// What that took.
        change: api::apply_response::Change,
        /// Its revision now.
        revision: u64,
    },
    /// The cluster does not take it.
    Refused(Failure),
}

/// An object with its request.
#[derive(Debug)]
pub struct Parcel<'a> {
    /// The object.
    pub object: &'a Wanted,
    request: api::ApplyRequest,
}

/// Objects with their requests, in their order.
///
/// # Errors
/// No request id can be made.
pub fn parcels(objects: &[Wanted], dry_run: bool) -> Result<Vec<Parcel<'_>>> {
    let parcel = |object| {
        Ok(Parcel {
            object,
            request: request(object, dry_run)?,
        })
    };
    objects.iter().map(parcel).collect()
}

fn request(object: &Wanted, dry_run: bool) -> Result<api::ApplyRequest> {
    let spec = object.spec.to_json();
    let spec = spec.map_err(|error| Failure::new(Reason::Internal, error.to_string()))?;
    let secret = object.secret.as_ref().map(|secret| api::SecretValue {
        text: secret.expose().to_owned(),
    });
    Ok(api::ApplyRequest {
        request_id: entropy::request_id()?.to_string(),
        expected_revision: 0,
        kind: object.kind.to_string(),
        name: object.name.clone(),
        labels: object.labels.clone().into_iter().collect(),
        spec,
        dry_run,
        must_not_exist: false,
        secret,
    })
}

/// How objects are shared out among calls.
pub fn batches(parcels: &[Parcel<'_>], dry_run: bool) -> Vec<Range<usize>> {
    let sizes = parcels.iter().map(|parcel| {
        let secret = parcel.request.secret.as_ref();
        parcel.request.spec.len() + secret.map_or(0, |secret| secret.text.len())
    });
    let most = if dry_run { MOST_CHECKED } else { MOST_CHANGED };
    shared_out(sizes, most)
}

fn shared_out(sizes: impl Iterator<Item = usize>, most: usize) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (position, size) in sizes.enumerate() {
        let size = size + ENVELOPE_BYTES;
        match ranges.last_mut() {
            Some(range) if range.len() < most && bytes + size <= MOST_BYTES => {
                range.end = position + 1;
                bytes += size;
            }
            _ => {
                ranges.push(position..position + 1);
                bytes = size;
            }
        }
    }
    ranges
}

/// Sends one call; answers for each of its objects, and then for each deletion. Where an object cannot
/// be read there may be no answer about deletions.
///
/// # Errors
/// The cluster's: it is not known what became of them, or nothing was done at all.
pub async fn send(
    session: &Session,
    parcels: &[Parcel<'_>],
    deletions: &[api::DeleteObjectRequest],
) -> Result<(Vec<Verdict>, Vec<Verdict>)> {
    let client = session.client().await?;
    let mut verdicts: Vec<Option<Verdict>> = parcels.iter().map(|_| None).collect();
    let mut left: Vec<usize> = (0..parcels.len()).collect();
    let mut deleted = Vec::new();
    let mut is_open = !left.is_empty() || !deletions.is_empty();
    while is_open {
        let objects = left.iter().filter_map(|at| parcels.get(*at));
        let message = api::ApplyManyRequest {
            objects: objects.map(|parcel| parcel.request.clone()).collect(),
            deletions: deletions.to_vec(),
        };
        let answer = rpc!(client, objects_client::ObjectsClient, apply_many, message).await;
        match answer {
            Ok(answer) => {
                let mut results = answer.results.into_iter();
                for (at, result) in left.drain(..).zip(results.by_ref()) {
                    verdicts[at] = Some(verdict(result).of(parcels[at].object));
                }
                deleted = results.map(verdict).collect();
                is_open = false;
            }
            // One that cannot even be read: nothing was done, and the others go without it.
            Err(failure) => match culprit(&failure).filter(|at| *at < left.len()) {
                Some(position) => {
                    let at = left.remove(position);
                    let failure = failure.outside(&format!("objects[{position}]"));
                    verdicts[at] = Some(Verdict::Refused(failure).of(parcels[at].object));
                    is_open = !left.is_empty();
                }
                None => return Err(failure),
            },
        }
    }
    let short = || Failure::new(Reason::Internal, "the answer is shorter than the request");
    let all: Option<Vec<Verdict>> = verdicts.into_iter().collect();
    Ok((all.ok_or_else(short)?, deleted))
}

fn verdict(result: api::ApplyResult) -> Verdict {
    use api::apply_result::Result as One;
    match result.result {
        Some(One::Applied(applied)) => Verdict::Applied {
            change: applied.change(),
            revision: applied.revision,
        },
        Some(One::Refusal(refusal)) => Verdict::Refused(Failure::refused(refusal)),
        None => Verdict::Refused(Failure::new(Reason::Internal, "the answer is empty")),
    }
}

impl Verdict {
    /// With the places of the fields that a refusal names.
    fn of(self, object: &Wanted) -> Self {
        match self {
            Self::Refused(failure) => Self::Refused(failure.locate(|field| object.locate(field))),
            applied @ Self::Applied { .. } => applied,
        }
    }
}

/// Which object of a call a refusal of the whole call is about.
fn culprit(failure: &Failure) -> Option<usize> {
    let (position, _) = failure
        .message()
        .strip_prefix("objects[")?
        .split_once("]: ")?;
    position.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_stay_within_their_limits() {
        let count = |sizes: Vec<usize>, most| -> Vec<usize> {
            let ranges = shared_out(sizes.into_iter(), most);
            ranges.into_iter().map(|range| range.len()).collect()
        };
        assert_eq!(count(vec![100; 450], 200), [200, 200, 50]);
        assert_eq!(count(vec![300 << 10; 5], 200), [2, 2, 1]);
        assert_eq!(count(vec![2 << 20, 1, 1], 200), [1, 2]);
        assert_eq!(count(Vec::new(), 200), [0_usize; 0]);
    }

    #[test]
    fn a_refusal_of_a_whole_call_names_its_object() {
        let failure = Failure::new(
            Reason::InvalidField,
            "objects[12]: policy \"p\" has a mistake",
        )
        .at("objects[12].selector: is wrong");
        assert_eq!(culprit(&failure), Some(12));
        let told = failure.outside("objects[12]");
        assert_eq!(told.message(), "policy \"p\" has a mistake");
        assert_eq!(told.places(), ["selector: is wrong"]);
        assert_eq!(culprit(&told), None);
        let other = Failure::new(Reason::InvalidField, "objects: 0 were sent");
        assert_eq!(culprit(&other), None);
    }
}
