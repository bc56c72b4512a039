//! `Planning`: what would become of a deployment, before it is made.
//!
//! The core's rehearsal on a copy of the state, off the threads that serve: it may take seconds. One
//! at a time, so that no number of askers keeps a coordinator from its work; it ends when its caller
//! goes, and at last when it has worked for `LONGEST`. The leader answers: it knows which agents are
//! lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidegate_coordinator_core::command::Command;
use tidegate_coordinator_core::forecast::{FURTHEST, Forecast, Pace, Question, forecast, lost};
use tidegate_coordinator_core::people::Place;
use tidegate_coordinator_core::rejection::Rejection;
use tidegate_proto::control::v1::planning_client::PlanningClient;
use tidegate_proto::control::v1::planning_server::Planning;
use tidegate_proto::control::v1::{PlanRequest, PlanResponse, plan_request::Wish};
use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::time::{Span, Timestamp};
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::{Request, Response, Status};

use super::relay::ask_leader;
use super::{Context, caller, convert, deployments, groups, status};
use crate::clock::Clock;
use crate::replica::View;

/// Longest that hosts may be taken to need.
const LONGEST_PACE: Span = Span::from_days(1);

/// How long a plan waits for the ones before it. Together with `LONGEST` less than a relayed call
/// may take.
const PATIENCE: Duration = Duration::from_secs(4);

/// Longest that one is worked at; what it has found by then is the answer, and says so.
const LONGEST: Duration = Duration::from_secs(15);

/// The one plan at work.
static PLACE: Semaphore = Semaphore::const_new(1);

/// The service.
pub struct PlanningApi(pub Arc<Context>);

/// When it would be asked for.
fn instant(at_ms: u64, now: Timestamp) -> Result<Timestamp, Status> {
    let at = Timestamp::from_millis(at_ms);
    if at_ms == 0 {
        return Ok(now);
    }
    let wrong = |message: String| Err(status::wrong_field("at_ms", message));
    if at > now + FURTHEST {
        return wrong(format!(
            "{at} is more than a year ahead: want an earlier instant"
        ));
    }
    // A caller's clock may be a little behind.
    if at + Span::from_mins(1) < now {
        return wrong(format!(
            "{at} is over, it is {now} now: want a later instant"
        ));
    }
    Ok(at.max(now))
}

fn pace(message: &PlanRequest) -> Result<Pace, Status> {
    let span = |field: &str, millis: u64| match Span::from_millis(millis) {
        span if span <= LONGEST_PACE => Ok(span),
        span => Err(status::wrong_field(
            field,
            format!("{span} is more than {LONGEST_PACE}"),
        )),
    };
    Ok(Pace {
        staging: span("staging_ms", message.staging_ms)?,
        startup: span("startup_ms", message.startup_ms)?,
    })
}

/// Tells the work that nobody waits for it any more.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Rehearses on a thread of its own, which keeps the place until it ends.
async fn work(
    view: Arc<View>,
    lost: Vec<Name>,
    question: Question,
    place: SemaphorePermit<'static>,
    clock: Clock,
) -> Result<Result<Forecast, Rejection>, Status> {
    let gone = Arc::new(AtomicBool::new(false));
    let waiting = Waiting(Arc::clone(&gone));
    let work = move || {
        let begun = clock.monotonic();
        let took = || clock.monotonic().saturating_sub(begun);
        let goes_on = || !gone.load(Ordering::Relaxed) && took() < LONGEST;
        let told = forecast(&view.state, &lost, &question, &goes_on);
        drop(place);
        if let Ok(told) = &told {
            let (members, effort) = (told.members.len(), told.effort);
            tracing::debug!(members, effort, took = ?took(), "a plan was made");
        }
        told
    };
    let told = tokio::task::spawn_blocking(work).await;
    drop(waiting);
    told.map_err(|error| status::internal(&error))
}

#[tonic::async_trait]
impl Planning for PlanningApi {
    async fn plan(&self, request: Request<PlanRequest>) -> Result<Response<PlanResponse>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        if let Some(answer) = ask_leader!(self.0, caller, PlanningClient, plan, message.clone()) {
            return Ok(answer);
        }
        let pace = pace(&message)?;
        let place = tokio::time::timeout(PATIENCE, PLACE.acquire()).await;
        let Ok(Ok(place)) = place else {
            let message = "other plans are being made: they take their time";
            return Err(status::refusal(Reason::QueueFull, message));
        };
        let view = self.0.read().await?;
        let actor = caller.actor();
        let (command, left) = match &message.wish {
            Some(Wish::Deployment(wish)) => {
                let wish = deployments::command_of(wish)?;
                (Command::CreateDeployments(wish), Vec::new())
            }
            Some(Wish::Group(wish)) => {
                let (wish, left) = groups::wanted(&self.0, &view.state, &actor, wish)?;
                (Command::CreateGroup(wish), left)
            }
            None => {
                let message = "is missing: want a deployment or a group";
                return Err(status::wrong_field("wish", message));
            }
        };
        let (application, version) = match &message.wish {
            Some(Wish::Deployment(wish)) => (wish.application.clone(), wish.version.clone()),
            Some(Wish::Group(wish)) => (wish.application.clone(), wish.version.clone()),
            None => (String::new(), String::new()),
        };
        let scopes = match &command {
            Command::CreateDeployments(wish) => wish.scopes.as_slice(),
            Command::CreateGroup(wish) => wish.deployments.scopes.as_slice(),
            _ => &[],
        };
        let sight = self.0.sight(&caller, &view.state);
        for name in scopes {
            sight
                .check(&view.state, &Place::Scope(name.clone()))
                .map_err(|refused| status::from_rejection(&refused))?;
        }
        let now = self.0.now().max(view.state.at);
        let question = Question {
            actor,
            command,
            at: instant(message.at_ms, now)?,
            now,
            pace,
        };
        let lost = self.0.live.picture(&self.0, &view.state, |picture| {
            let observed = picture.observed;
            observed.map_or_else(Vec::new, |observed| lost(picture.state, observed, now))
        });
        let told = work(view, lost, question, place, self.0.clock.clone())
            .await?
            .map_err(|rejection| status::from_rejection(&rejection))?;
        Ok(Response::new(PlanResponse {
            application,
            version,
            left,
            ..convert::plan::response(told)
        }))
    }
}
