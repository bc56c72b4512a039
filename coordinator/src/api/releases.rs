//! `Releases`: immutable versions, and whether their bytes are in the built-in store.

use std::sync::Arc;

use tidegate_coordinator_core::State;
use tidegate_coordinator_core::command::{Command, CreateRelease, SetReleaseStatus};
use tidegate_coordinator_core::people::{Place, Reach};
use tidegate_proto::control::v1::releases_server::Releases;
use tidegate_proto::control::v1::{
    BlobsRequest, BlobsResponse, CreateReleaseRequest, GetReleaseRequest, ListReleasesRequest,
    ListReleasesResponse, Release, SetReleaseStatusRequest, blobs_response,
};
use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{Name, Version};
use tidegate_shared::spec::{FieldErrors, ReleaseSpec, ReleaseStatus};
use tonic::{Request, Response, Status};

use super::{Context, caller, convert, expected, paging, request_key, status};
use crate::blob_sync::{self, Holders};

/// Digests that may be asked for at once.
const MOST_DIGESTS: usize = 1_000;

/// The service.
pub struct ReleasesApi(pub Arc<Context>);

fn find(state: &State, application: &Name, version: &Version) -> Result<Release, Status> {
    state
        .releases
        .get(&(application.clone(), version.clone()))
        .map(|found| convert::release(application, version, found))
        .ok_or_else(|| {
            status::refusal(
                Reason::NotFound,
                format!("there is no release {version} of application \"{application}\""),
            )
        })
}

/// Whether every asset is on a majority of the coordinators, with the size that the spec says.
fn is_stored(spec: &ReleaseSpec, holders: &Holders) -> Result<bool, Status> {
    let mut errors = FieldErrors::default();
    let mut all_stored = true;
    for (position, asset) in spec.assets.iter().enumerate() {
        match holders.size(&asset.sha256) {
            Some(size) if size != asset.size => errors.add(
                format!("assets[{position}].size"),
                format!("is {}, but the stored blob has {size} bytes", asset.size),
            ),
            Some(_) | None => {
                all_stored &= !asset.source.needs_store() || holders.has_majority(&asset.sha256);
            }
        }
    }
    match errors.into_result() {
        Ok(()) => Ok(all_stored),
        Err(errors) => Err(status::wrong_fields("release", errors)),
    }
}

impl ReleasesApi {
    /// A rejected release may have lost its assets; it is offered again only with them.
    async fn check_stored(&self, application: &Name, version: &Version) -> Result<(), Status> {
        let view = self.0.read().await?;
        let key = (application.clone(), version.clone());
        let Some(found) = view.state.releases.get(&key) else {
            return Ok(());
        };
        if found.status != ReleaseStatus::Rejected {
            return Ok(());
        }
        let digests: Vec<Digest> = found.spec.assets.iter().map(|asset| asset.sha256).collect();
        let holders = blob_sync::holders(&self.0, &digests).await;
        if is_stored(&found.spec, &holders)? {
            return Ok(());
        }
        Err(status::refusal(
            Reason::BlobMissing,
            format!(
                "the assets of release {version} of \"{application}\" are not on a majority of the coordinators"
            ),
        ))
    }
}

#[tonic::async_trait]
impl Releases for ReleasesApi {
    async fn create(
        &self,
        request: Request<CreateReleaseRequest>,
    ) -> Result<Response<Release>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let application = convert::name("application", &message.application)?;
        let version = convert::version("version", &message.version)?;
        let key = request_key(&message.request_id)?;
        let what = format!("release {version} of \"{application}\"");
        let spec = convert::release_spec(&what, &message.spec)?;
        let digests: Vec<Digest> = spec.assets.iter().map(|asset| asset.sha256).collect();
        let holders = blob_sync::holders(&self.0, &digests).await;
        let stored = is_stored(&spec, &holders)?;
        let command = Command::CreateRelease(CreateRelease {
            application: application.clone(),
            version: version.clone(),
            labels: convert::labels(message.labels)?,
            spec,
            stored,
        });
        self.0.propose(actor, key, command).await?;
        let view = self.0.read().await?;
        Ok(Response::new(find(&view.state, &application, &version)?))
    }

    async fn get(&self, request: Request<GetReleaseRequest>) -> Result<Response<Release>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        let application = convert::name("application", &message.application)?;
        let version = convert::version("version", &message.version)?;
        let view = self.0.read().await?;
        let place = Place::Application(application.clone(), Reach::Any);
        self.0
            .sight(&caller, &view.state)
            .check(&view.state, &place)
            .map_err(|refused| status::from_rejection(&refused))?;
        Ok(Response::new(find(&view.state, &application, &version)?))
    }

    async fn list(
        &self,
        request: Request<ListReleasesRequest>,
    ) -> Result<Response<ListReleasesResponse>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        let only = match message.application.as_str() {
            "" => None,
            text => Some(convert::name("application", text)?),
        };
        let view = self.0.read().await?;
        let sight = self.0.sight(&caller, &view.state);
        let seen = |application: &Name| {
            let place = Place::Application(application.clone(), Reach::Any);
            sight.is_whole() || sight.sees(&view.state, &place)
        };
        // Newest first.
        let mut rows: Vec<_> = view
            .state
            .releases
            .iter()
            .filter(|((application, _), _)| only.as_ref().is_none_or(|only| only == application))
            .filter(|((application, _), _)| seen(application))
            .map(|((application, version), found)| {
                let at = paging::descending(u128::from(found.meta.created_at.millis()));
                (
                    format!("{at}/{application}/{version}"),
                    convert::release(application, version, found),
                )
            })
            .collect();
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        let page = paging::page(message.page.as_ref(), rows)?;
        Ok(Response::new(ListReleasesResponse {
            releases: page.rows,
            next_page_token: page.next,
        }))
    }

    async fn set_status(
        &self,
        request: Request<SetReleaseStatusRequest>,
    ) -> Result<Response<Release>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let application = convert::name("application", &message.application)?;
        let version = convert::version("version", &message.version)?;
        let wanted = convert::release_status(&message.status)?;
        if wanted == ReleaseStatus::Ready {
            self.check_stored(&application, &version).await?;
        }
        let command = Command::SetReleaseStatus(SetReleaseStatus {
            application: application.clone(),
            version: version.clone(),
            status: wanted,
            reason: message.reason,
            expected_revision: expected(message.expected_revision),
        });
        self.0
            .propose(actor, request_key(&message.request_id)?, command)
            .await?;
        let view = self.0.read().await?;
        Ok(Response::new(find(&view.state, &application, &version)?))
    }

    async fn blobs(
        &self,
        request: Request<BlobsRequest>,
    ) -> Result<Response<BlobsResponse>, Status> {
        let message = request.into_inner();
        if message.sha256.len() > MOST_DIGESTS {
            return Err(status::wrong_field(
                "sha256",
                format!("want at most {MOST_DIGESTS} digests"),
            ));
        }
        let mut digests = Vec::with_capacity(message.sha256.len());
        for text in &message.sha256 {
            let digest: Digest =
                text.parse()
                    .map_err(|error: tidegate_shared::digest::DigestError| {
                        status::wrong_field("sha256", error.to_string())
                    })?;
            digests.push(digest);
        }
        let holders = blob_sync::holders(&self.0, &digests).await;
        Ok(Response::new(BlobsResponse {
            blobs: digests
                .iter()
                .map(|digest| blobs_response::Blob {
                    sha256: digest.to_string(),
                    size: holders.size(digest).unwrap_or(0),
                    coordinators: holders.names(digest),
                })
                .collect(),
        }))
    }
}
