//! The view of a deployment: what is replicated, and what the leader sees of it at the moment.

use tidegate_coordinator_core::State;
use tidegate_coordinator_core::command::Actor;
use tidegate_coordinator_core::deployment::phase;
use tidegate_coordinator_core::explain::{Gate, ParticipantView, StepState, StepView, explain};
use tidegate_coordinator_core::observed::{Observed, healthy, place_in};
use tidegate_coordinator_core::state::{
    Decision, Deployment, InstanceCause, LinkKind, Source, Status, Table,
};
use tidegate_proto::control::v1 as pb;
use tidegate_shared::assignment::{ObservedInstance, ObservedPlace};
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::secret::WITHHELD;
use tidegate_shared::spec::{Comparison, RuleAction};
use tidegate_shared::time::{Span, Timestamp};
use tidegate_shared::verdict::threshold::Evidence;

/// Over which time rates are shown.
const FIGURES_WINDOW: Span = Span::from_secs(10);

/// What a view is made from.
#[derive(Clone, Copy)]
pub struct Picture<'a> {
    /// The replicated state.
    pub state: &'a State,
    /// What the leader sees; none: this node does not lead.
    pub observed: Option<&'a Observed>,
    /// The log's time; without a leader the time of its last entry.
    pub now: Timestamp,
    /// When the planner looks again, if it runs here.
    pub next_wakeup: Option<Timestamp>,
    /// Ends of the certificates of agents that are or were connected.
    pub certificates: &'a Table<Name, Timestamp>,
}

/// The word of a status on the wire.
#[must_use]
pub const fn status(status: Status) -> pb::deployment::Status {
    use pb::deployment::Status as Wire;
    match status {
        Status::CreatingApproval => Wire::CreatingApproval,
        Status::CreatingApprovalDenied => Wire::CreatingApprovalDenied,
        Status::Pending => Wire::Pending,
        Status::Creating => Wire::Creating,
        Status::WaitingForInstances => Wire::WaitingForInstances,
        Status::Running => Wire::Running,
        Status::Finalizing => Wire::Finalizing,
        Status::Finalized => Wire::Finalized,
        Status::Cancelling => Wire::Cancelling,
        Status::Cancelled => Wire::Cancelled,
        Status::RollingBack => Wire::RollingBack,
        Status::RolledBack => Wire::RolledBack,
        Status::Failed => Wire::Failed,
        Status::Deleting => Wire::Deleting,
        Status::Deleted => Wire::Deleted,
    }
}

impl Picture<'_> {
    /// Everything about a deployment.
    #[must_use]
    pub fn deployment(&self, found: &Deployment) -> pb::Deployment {
        let origin = &found.origin;
        let silent;
        let observed = match self.observed {
            Some(observed) => observed,
            None => {
                silent = Observed::new(self.now);
                &silent
            }
        };
        let explained = explain(self.state, observed, self.now, found.id);
        pb::Deployment {
            strategy: serde_json::to_string(&origin.strategy).unwrap_or_default(),
            traffic: Some(self.traffic(found, explained.actual.basis_points())),
            steps: explained.steps.iter().map(step).collect(),
            participants: explained
                .participants
                .iter()
                .map(|participant| self.participant(found, participant))
                .collect(),
            // What was stored, then what the rules say at the moment.
            evidence: found
                .evidence
                .iter()
                .chain(&explained.verdicts)
                .map(evidence)
                .collect(),
            gates: explained.gates.iter().map(gate).collect(),
            deadline_ms: explained.deadline.map_or(0, Timestamp::millis),
            next_wakeup_ms: explained.next_wakeup.map_or(0, Timestamp::millis),
            decisions: found.required.as_ref().map_or_else(Vec::new, |required| {
                required
                    .decisions
                    .iter()
                    .map(|decision| decision_view(decision, required.expires_at))
                    .collect()
            }),
            causes: found.causes.iter().map(cause).collect(),
            candidate_telemetry: self.telemetry(found.id),
            active_telemetry: found.replaces.and_then(|id| self.telemetry(id)),
            checks: super::checks::views(found, &explained.checks),
            waiting_for: explained.waiting_for,
            parameters: origin
                .parameters
                .iter()
                .map(|(name, parameter)| pb::ResolvedParameter {
                    name: name.clone(),
                    value: match &parameter.secret {
                        Some(_) => WITHHELD.to_owned(),
                        None => parameter.value.clone(),
                    },
                    source: source(parameter.source).to_owned(),
                    secret: parameter.secret.is_some(),
                    file: parameter
                        .file
                        .as_ref()
                        .map_or_else(String::new, |f| f.path.clone()),
                })
                .collect(),
            ..self.summary(found)
        }
    }

    /// What a list shows of a deployment: all but what is costly.
    #[must_use]
    pub fn summary(&self, found: &Deployment) -> pb::Deployment {
        let origin = &found.origin;
        let replaced = found
            .replaces
            .and_then(|id| self.state.deployments.get(&id));
        let limits = &origin.strategy.deadlines;
        pb::Deployment {
            id: found.id.to_string(),
            short_id: found.short.to_string(),
            metadata: Some(super::metadata(found.short.as_str(), &found.meta)),
            application: origin.application.to_string(),
            version: origin.version.to_string(),
            scope: origin.scope.to_string(),
            status: status(found.status).into(),
            reason: found.reason.clone(),
            message: found.message.clone(),
            outcome: found.outcome.clone().unwrap_or_default(),
            unverified: found.unverified,
            status_since_ms: found.status_since.millis(),
            ended_at_ms: found.ended_at.map_or(0, Timestamp::millis),
            initial: found.replaces.is_none() && !found.participants.is_empty(),
            fast: origin.fast,
            linked_to: origin
                .link
                .as_ref()
                .map(|link| link.of.to_string())
                .unwrap_or_default(),
            link_kind: origin
                .link
                .as_ref()
                .map(|link| link_word(link.kind).to_owned())
                .unwrap_or_default(),
            auto_deploy_of: origin
                .auto
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            replaces: found.replaces.map(|id| id.to_string()).unwrap_or_default(),
            replaces_version: replaced
                .map(|old| old.origin.version.to_string())
                .unwrap_or_default(),
            strategy_name: origin
                .strategy_name
                .as_ref()
                .map(Name::to_string)
                .unwrap_or_default(),
            traffic: Some(self.traffic(found, 0)),
            paused: found.paused.as_ref().map(|paused| pb::Hold {
                since_ms: paused.since.millis(),
                by: paused.by.to_string(),
                reason: paused.reason.clone(),
                until_ms: (paused.since + limits.pause_max).millis(),
            }),
            halted: found.halted.as_ref().map(|halted| pb::Hold {
                since_ms: halted.since.millis(),
                by: halted.kind.clone(),
                reason: halted.message.clone(),
                until_ms: (halted.since + limits.halt_max).millis(),
            }),
            durations: Some(self.durations(found)),
            leftovers: found.leftovers.iter().map(Name::to_string).collect(),
            deadline_ms: phase::deadline(found).map_or(0, Timestamp::millis),
            next_wakeup_ms: self.next_wakeup.map_or(0, Timestamp::millis),
            group: found.group.map_or_else(String::new, |id| {
                let known = self.state.groups.get(&id);
                known.map_or_else(|| id.to_string(), super::group::called)
            }),
            ..pb::Deployment::default()
        }
    }

    /// Counted up to now.
    fn durations(&self, found: &Deployment) -> pb::Durations {
        let mut counted = found.clone();
        if found.ended_at.is_none() {
            phase::count_time(&mut counted, self.now);
        }
        let durations = &counted.durations;
        pb::Durations {
            progression_ms: durations.progression.millis(),
            manual_pause_ms: durations.manual_pause.millis(),
            waiting_ms: durations.waiting.millis(),
        }
    }

    fn place(&self, found: DeploymentId, agent: &Name) -> Option<&ObservedPlace> {
        place_in(self.observed?.report(agent)?, found)
    }

    fn traffic(&self, found: &Deployment, actual: u16) -> pb::Traffic {
        let requests = |id: Option<DeploymentId>| {
            let figures =
                self.observed?
                    .telemetry
                    .version_figures(id?, FIGURES_WINDOW, self.now)?;
            Some(figures.requests_per_minute)
        };
        let new = requests(Some(found.id)).unwrap_or(0.0);
        let all = new + requests(found.replaces).unwrap_or(0.0);
        pb::Traffic {
            desired: u32::from(found.traffic.desired.basis_points()),
            actual: u32::from(actual),
            observed_share: if all > 0.0 {
                // Between 0 and 10,000.
                (new / all * 10_000.0).round() as u32
            } else {
                0
            },
        }
    }

    fn participant(&self, found: &Deployment, seen: &ParticipantView) -> pb::Participant {
        pb::Participant {
            agent: seen.agent.to_string(),
            lost: seen.lost,
            wanted: seen.wanted,
            healthy: seen.healthy,
            staged: seen.staged,
            weight: seen
                .weight
                .map_or(-1, |weight| i32::from(weight.basis_points())),
            open_requests: seen.open_requests,
            error: seen.error.clone(),
            instances: self
                .place(found.id, &seen.agent)
                .map_or_else(Vec::new, |place| {
                    place.instances.iter().map(instance).collect()
                }),
        }
    }

    fn telemetry(&self, id: DeploymentId) -> Option<pb::VersionTelemetry> {
        let observed = self.observed?;
        let figures = observed
            .telemetry
            .version_figures(id, FIGURES_WINDOW, self.now)?;
        let version = self.state.deployments.get(&id)?.origin.version.to_string();
        Some(pb::VersionTelemetry {
            deployment: id.to_string(),
            version,
            requests: figures.requests,
            client_errors: figures.client_errors,
            server_errors: figures.server_errors,
            requests_per_minute: figures.requests_per_minute,
            error_rate: figures.error_rate.unwrap_or(0.0),
            response_time_ms: figures.response_time.unwrap_or(0.0),
            response_time_p95_ms: figures.response_time_p95.unwrap_or(0.0),
            response_time_p99_ms: figures.response_time_p99.unwrap_or(0.0),
            cpu_percentage: figures.cpu_percentage.unwrap_or(0.0),
            memory_percentage: figures.memory_percentage.unwrap_or(0.0),
            first_error_ms: figures.first_error.map_or(0, Timestamp::millis),
        })
    }
}

fn step(found: &StepView) -> pb::Step {
    use pb::step::State as Wire;
    let state = match found.state {
        StepState::ToCome => Wire::ToCome,
        StepState::Current => Wire::Current,
        StepState::Done => Wire::Done,
    };
    pb::Step {
        weight: u32::from(found.weight.basis_points()),
        hold_ms: found.hold.map_or(0, Span::millis),
        manual: found.hold.is_none(),
        state: state.into(),
        started_at_ms: found.started_at.map_or(0, Timestamp::millis),
        ends_at_ms: found.ends_at.map_or(0, Timestamp::millis),
    }
}

/// A gate with its answer.
#[must_use]
pub fn gate(gate: &Gate) -> pb::Gate {
    pb::Gate {
        kind: gate.kind.to_owned(),
        answer: gate.answer.as_str().to_owned(),
        why: gate.why.clone(),
        until_ms: gate.until.map_or(0, Timestamp::millis),
        rule: gate.rule.clone(),
        needs: gate.needs.clone(),
        satisfied_at_ms: gate.satisfied_at.map_or(0, Timestamp::millis),
        next_evaluation_ms: gate.next_evaluation.map_or(0, Timestamp::millis),
    }
}

/// What is seen of one place.
#[must_use]
pub fn place_view(
    agent: &Name,
    place: Option<&ObservedPlace>,
    lost: bool,
    wanted: u32,
) -> pb::Participant {
    let error = place.and_then(|place| {
        place
            .permanent_error
            .as_ref()
            .map(|error| error.message.clone())
            .or_else(|| place.transient_error.clone())
    });
    pb::Participant {
        agent: agent.to_string(),
        lost,
        wanted,
        healthy: place.map_or(0, healthy),
        staged: place.is_some_and(|place| place.staged),
        weight: place
            .and_then(|place| place.weight)
            .map_or(-1, |weight| i32::from(weight.basis_points())),
        open_requests: place.map_or(0, |place| place.open_requests),
        error: error.unwrap_or_default(),
        instances: place.map_or_else(Vec::new, |place| {
            place.instances.iter().map(instance).collect()
        }),
    }
}

fn instance(found: &ObservedInstance) -> pb::Instance {
    pb::Instance {
        id: found.id.clone(),
        state: found.state.as_str().to_owned(),
        restarts: found.restarts,
        port: u32::from(found.port),
        pid: found.pid,
        last_exit: found.last_exit.clone().unwrap_or_default(),
    }
}

fn cause(found: &InstanceCause) -> pb::InstanceCause {
    pb::InstanceCause {
        agent: found.agent.to_string(),
        instance: found.instance.clone(),
        kind: found.kind.clone(),
        message: found.message.clone(),
    }
}

fn decision_view(found: &Decision, expires_at: Timestamp) -> pb::Decision {
    pb::Decision {
        by: match &found.by {
            Actor::User(name) => name.to_string(),
            other => other.to_string(),
        },
        granted: found.granted,
        at_ms: found.at.millis(),
        reason: found.reason.clone(),
        counts: found.at < expires_at,
    }
}

const fn link_word(kind: LinkKind) -> &'static str {
    match kind {
        LinkKind::Retry => "retry",
        LinkKind::Rollback => "rollback",
        LinkKind::Start => "start",
        LinkKind::Restart => "restart",
    }
}

const fn source(source: Source) -> &'static str {
    match source {
        Source::Release => "release",
        Source::Application => "application",
        Source::Environment => "environment",
        Source::Dimension => "dimension",
        Source::Scope => "scope",
    }
}

fn evidence(found: &Evidence) -> pb::Evidence {
    let sign = match found.comparison {
        Comparison::GreaterThan => ">",
        Comparison::LessThan => "<",
        Comparison::Equal => "=",
    };
    let message = if found.value.is_empty() {
        format!(
            "{} {sign} {}: nothing was measured in {}",
            found.metric, found.threshold, found.window
        )
    } else if found.metric.is_rate() {
        format!(
            "{} is {} (rule: {sign} {}): {} of {} requests in {}",
            found.metric, found.value, found.threshold, found.errors, found.samples, found.window
        )
    } else {
        format!(
            "{} is {} (rule: {sign} {}): {} samples in {}",
            found.metric, found.value, found.threshold, found.samples, found.window
        )
    };
    pb::Evidence {
        metric: found.metric.to_string(),
        comparison: found.comparison.as_str().to_owned(),
        threshold: found.threshold.clone(),
        judge: "raw".to_owned(),
        verdict: found.verdict.as_str().to_owned(),
        value: found.value.clone(),
        samples: found.samples,
        window_ms: found.window.millis(),
        at_ms: found.at.millis(),
        dry_run: found.dry_run,
        action: match found.action {
            RuleAction::Rollback => "rollback",
            RuleAction::Halt => "halt",
        }
        .to_owned(),
        message,
        step: found.step,
    }
}
