//! `Planning`: what would become of a deployment, before it is made.
//!
//! The core's rehearsal on a copy of the state, off the threads that serve: it may take seconds. One
//! at a time, so that no number of askers keeps a coordinator from its work. The leader answers: it
//! knows which agents are lost.

use std::sync::Arc;
use std::time::Duration;

use tidegate_coordinator_core::command::Command;
use tidegate_coordinator_core::forecast::{FURTHEST, Pace, Question, forecast};
use tidegate_coordinator_core::people::Place;
use tidegate_proto::control::v1::planning_client::PlanningClient;
use tidegate_proto::control::v1::planning_server::Planning;
use tidegate_proto::control::v1::{PlanRequest, PlanResponse, plan_request::Wish};
use tidegate_shared::error::Reason;
use tidegate_shared::time::{Span, Timestamp};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::relay::ask_leader;
use super::{Context, caller, convert, deployments, groups, status};

/// Longest that hosts may be taken to need.
const LONGEST_PACE: Span = Span::from_days(1);

/// How long a plan waits for the ones before it.
const PATIENCE: Duration = Duration::from_secs(15);

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
        return wrong(format!("{at} is more than a year ahead"));
    }
    // A caller's clock may be a little behind.
    if at + Span::from_mins(1) < now {
        return wrong(format!("{at} is over; it is {now}"));
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
        let Ok(Ok(_place)) = place else {
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
        let observed = self.0.live.observed();
        let now = self.0.now().max(view.state.at);
        let question = Question {
            actor,
            command,
            at: instant(message.at_ms, now)?,
            now,
            pace,
        };
        let work = move || forecast(&view.state, observed.as_ref(), &question);
        let told = tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| status::internal(&error))?
            .map_err(|rejection| status::from_rejection(&rejection))?;
        Ok(Response::new(PlanResponse {
            application,
            version,
            left,
            ..convert::plan::response(told)
        }))
    }
}
