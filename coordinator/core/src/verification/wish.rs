//! Who is asked to measure what: a function of the deployment alone, so that every node says the
//! same.

use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::measurement::{CheckKind, CheckWish};
use tidegate_shared::spec::{HttpMeasurement, Measurement, PrometheusMeasurement};
use tidegate_shared::time::{Span, Timestamp};

use crate::deployment::checks;
use crate::state::{Deployment, ScopeTerm, State};

/// A check that the leading coordinator is to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderCheck {
    /// Of which deployment.
    pub deployment: DeploymentId,
    /// Which check.
    pub name: Name,
    /// Which run of it.
    pub run: Timestamp,
    /// When the first measurement is due.
    pub begins: Timestamp,
    /// Between the starts of two.
    pub interval: Span,
    /// What to measure, its placeholders filled in.
    pub what: LeaderKind,
}

/// What the leader measures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaderKind {
    /// A request.
    Http(HttpMeasurement),
    /// A query.
    Prometheus(PrometheusMeasurement),
}

/// What the agents of a deployment are to measure now.
pub fn wishes(deployment: &Deployment) -> Vec<CheckWish> {
    let under_way = checks::under_way(deployment);
    under_way
        .filter_map(|(moment, spec)| {
            let what = match spec.measurement()? {
                Measurement::InstanceHttp(http) => CheckKind::Http(http_of(http, deployment)),
                Measurement::Command(command) => {
                    let mut command = command.clone();
                    for arg in &mut command.args {
                        *arg = filled(arg, deployment);
                    }
                    CheckKind::Command(command)
                }
                Measurement::LeaderHttp(_) | Measurement::Prometheus(_) => return None,
            };
            Some(CheckWish {
                name: spec.name.clone(),
                run: moment.run,
                initial_delay: spec.initial_delay,
                interval: spec.interval,
                what,
            })
        })
        .collect()
}

/// What the leader is to measure now, over all scopes.
pub fn leader_checks(state: &State) -> Vec<LeaderCheck> {
    let mut all = Vec::new();
    let scopes = state.scopes.rows_of(&ScopeTerm::UnderWay);
    let candidates = scopes.filter_map(|(_, scope)| scope.candidate);
    for deployment in candidates.filter_map(|id| state.deployments.get(&id)) {
        for (moment, spec) in checks::under_way(deployment) {
            let what = match spec.measurement() {
                Some(Measurement::LeaderHttp(http)) => LeaderKind::Http(http_of(http, deployment)),
                Some(Measurement::Prometheus(query)) => {
                    LeaderKind::Prometheus(query_of(query, deployment))
                }
                Some(Measurement::InstanceHttp(_) | Measurement::Command(_)) | None => continue,
            };
            all.push(LeaderCheck {
                deployment: deployment.id,
                name: spec.name.clone(),
                run: moment.run,
                begins: moment.since + spec.initial_delay,
                interval: spec.interval,
                what,
            });
        }
    }
    all
}

fn http_of(http: &HttpMeasurement, deployment: &Deployment) -> HttpMeasurement {
    let fill = |text: &String| filled(text, deployment);
    let headers = http.headers.iter();
    HttpMeasurement {
        path: http.path.as_ref().map(fill),
        url: http.url.as_ref().map(fill),
        headers: headers.map(|(k, v)| (k.clone(), fill(v))).collect(),
        ..http.clone()
    }
}

fn query_of(query: &PrometheusMeasurement, deployment: &Deployment) -> PrometheusMeasurement {
    let fill = |text: &String| filled(text, deployment);
    let headers = query.headers.iter();
    PrometheusMeasurement {
        address: fill(&query.address),
        query: fill(&query.query),
        headers: headers.map(|(k, v)| (k.clone(), fill(v))).collect(),
        ..query.clone()
    }
}

/// A text with its placeholders filled in. Their values are names and versions: nothing in them
/// could end a string of a query or a part of an address.
fn filled(text: &str, deployment: &Deployment) -> String {
    if !text.contains("${") {
        return text.to_owned();
    }
    let origin = &deployment.origin;
    text.replace("${APPLICATION}", origin.application.as_str())
        .replace("${RELEASE}", origin.version.as_str())
        .replace("${SCOPE}", origin.scope.as_str())
        .replace("${ENVIRONMENT}", origin.scope_spec.environment.as_str())
        .replace("${DEPLOYMENT}", &deployment.id.to_string())
        .replace("${SHORT}", deployment.short.as_str())
}
