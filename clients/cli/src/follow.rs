//! Follows a deployment or a group until its end. How anything is followed is [`engine`]'s; here is
//! what a deployment shows on the way, in [`group`] what a group shows.

mod engine;
mod group;

use std::collections::VecDeque;

use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;
use tidegate_shared::time::Span;
use tonic::Streaming;

use crate::connect::Client;
use crate::errors::{Failure, Result};
use crate::output::{Output, Tone, printable, weight};
use crate::session::Session;
use crate::{render, time};
use engine::Followed;

/// Points of a sparkline.
const HISTORY: usize = 40;
/// Agents in a picture; the page of `deployment get` shows all.
const SHOWN_AGENTS: usize = 10;

/// How a deployment is followed.
#[derive(Debug, Clone, Copy)]
pub struct Following {
    /// End after so long with exit status 6; zero: no limit.
    pub timeout: Span,
    /// Draw a picture in place where that is possible.
    pub picture: bool,
}

/// Follows a deployment until its end; answers with the exit status.
///
/// # Errors
/// No coordinator answers any more.
pub async fn follow(session: &Session, id: &str, following: Following) -> Result<u8> {
    engine::follow::<api::Deployment>(session, id, following).await
}

/// Follows a group until its end; answers with the exit status.
///
/// # Errors
/// No coordinator answers any more.
pub async fn follow_group(session: &Session, id: &str, following: Following) -> Result<u8> {
    engine::follow::<api::Group>(session, id, following).await
}

impl Followed for api::Deployment {
    type Memory = History;
    const NOUN: &'static str = "deployment";

    async fn open(client: &Client, id: &str, interval_ms: u32) -> Result<Streaming<Self>> {
        let request = api::WatchDeploymentRequest {
            id: id.to_owned(),
            interval_ms,
        };
        crate::rpc!(
            client,
            deployments_client::DeploymentsClient,
            watch,
            request
        )
        .await
    }

    fn short_id(&self) -> &str {
        &self.short_id
    }

    fn has_ended(&self) -> bool {
        render::has_ended(self.status())
    }

    fn exit_status(&self) -> u8 {
        render::exit_status(self)
    }

    fn tone(&self) -> Tone {
        render::tone(self.status())
    }

    fn outcome_line(&self) -> String {
        render::outcome_line(self)
    }

    fn news(&self) -> Vec<(String, String)> {
        vec![(String::new(), progress_line(self))]
    }

    fn trouble(&self) -> String {
        trouble(self)
    }

    fn remember(&self, memory: &mut History) {
        memory.take(self);
    }

    fn picture(&self, output: Output, memory: &History) -> String {
        picture(output, self, memory)
    }
}

/// What was measured lately, of the old version and of the new one.
#[derive(Default)]
pub struct History {
    errors: [VecDeque<f64>; 2],
    latency: [VecDeque<f64>; 2],
}

/// The first agent's error, else how an instance ended last; empty without any.
fn trouble(deployment: &api::Deployment) -> String {
    let errors = deployment
        .participants
        .iter()
        .filter(|participant| !participant.error.is_empty())
        .map(|participant| format!("{}: {}", participant.agent, participant.error));
    let exits = deployment
        .participants
        .iter()
        .flat_map(|participant| &participant.instances)
        .filter(|instance| !instance.last_exit.is_empty())
        .map(|instance| format!("{}: {}", instance.id, instance.last_exit));
    printable(&errors.chain(exits).next().unwrap_or_default())
}

/// What changed, for a log; instants stand in it as the cluster tells them.
pub fn progress_line(deployment: &api::Deployment) -> String {
    let mut parts = Vec::new();
    if render::has_traffic(deployment.status()) {
        let traffic = deployment.traffic.unwrap_or_default();
        parts.push(format!("traffic {}", render::weight_on_its_way(&traffic)));
    }
    let (healthy, wanted) = deployment
        .participants
        .iter()
        .fold((0, 0), |(healthy, wanted), p| {
            (healthy + p.healthy, wanted + p.wanted)
        });
    if wanted > 0 && !render::has_ended(deployment.status()) {
        parts.push(format!("{healthy} of {wanted} healthy"));
    }
    let what = if deployment.waiting_for.is_empty() {
        &deployment.message
    } else {
        &deployment.waiting_for
    };
    if !what.is_empty() {
        parts.push(what.clone());
    }
    let line = format!(
        "{:<21} {}",
        deployment.status().as_str_name(),
        parts.join("; ")
    );
    printable(line.trim_end())
}

impl History {
    fn take(&mut self, deployment: &api::Deployment) {
        let sides = [
            &deployment.active_telemetry,
            &deployment.candidate_telemetry,
        ];
        for (side, telemetry) in sides.into_iter().enumerate() {
            // Without requests there is neither an error rate nor a latency.
            let Some(telemetry) = telemetry.as_ref().filter(|seen| seen.requests > 0) else {
                continue;
            };
            let push = |values: &mut VecDeque<f64>, value: f64| {
                if values.len() == HISTORY {
                    values.pop_front();
                }
                values.push_back(value);
            };
            push(&mut self.errors[side], telemetry.error_rate);
            push(&mut self.latency[side], telemetry.response_time_ms);
        }
    }
}

fn picture(output: Output, deployment: &api::Deployment, history: &History) -> String {
    let status = deployment.status();
    let now = time::now_ms();
    let mut text = format!(
        "{} {} → {}   {} {}   {}\n",
        output.paint(Tone::Strong, &printable(&deployment.application)),
        output.paint(Tone::Green, &printable(&deployment.version)),
        output.paint(Tone::Strong, &printable(&deployment.scope)),
        output.paint(render::tone(status), status.as_str_name()),
        output.paint(
            Tone::Faint,
            &format!("for {}", time::age(deployment.status_since_ms, now))
        ),
        output.paint(Tone::Faint, &deployment.short_id),
    );
    if render::has_traffic(status) || render::has_ended(status) {
        text.push_str(&traffic(output, deployment));
    }
    text.push_str(&render::steps(output, deployment));
    text.push_str(&render::participants(output, deployment, SHOWN_AGENTS));
    text.push_str(&figures(output, deployment, history));
    text.push_str(&render::checks::checks(output, deployment));
    text.push_str(&render::evidence(output, deployment));
    text.push_str(&render::causes(output, deployment));
    let (word, what) = if deployment.waiting_for.is_empty() {
        ("", &deployment.message)
    } else {
        ("waiting: ", &deployment.waiting_for)
    };
    if !what.is_empty() {
        let what = printable(&time::told(what, now));
        text.push_str(&format!("\n{}{what}\n", output.paint(Tone::Faint, word)));
    }
    for (word, hold) in [
        ("paused", &deployment.paused),
        ("halted", &deployment.halted),
    ] {
        if let Some(hold) = hold {
            let line = format!("{word} {}", render::hold_line(hold, now));
            text.push_str(&format!("{}\n", output.paint(Tone::Busy, &line)));
        }
    }
    if !render::has_ended(status) {
        let line = "\nCtrl-C ends the watching, not the deployment";
        text.push_str(&output.paint(Tone::Faint, line));
        text.push('\n');
    }
    text
}

/// Who has how much of the traffic.
fn traffic(output: Output, deployment: &api::Deployment) -> String {
    let traffic = deployment.traffic.unwrap_or_default();
    let green = format!(
        "{} {}",
        printable(&deployment.version),
        render::weight_on_its_way(&traffic)
    );
    let blue = if deployment.replaces_version.is_empty() {
        String::new()
    } else {
        let rest = 10_000_u32.saturating_sub(traffic.actual);
        format!(
            "   {} {}",
            printable(&deployment.replaces_version),
            weight(i64::from(rest))
        )
    };
    format!(
        "{} {}{}\n",
        render::traffic_bar(output, traffic.actual, traffic.desired, 40),
        output.paint(Tone::Green, &green),
        output.paint(Tone::Blue, &blue),
    )
}

/// Error rate and latency of both versions, with their history.
fn figures(output: Output, deployment: &api::Deployment, history: &History) -> String {
    let sides = [
        (
            "blue",
            Tone::Blue,
            &deployment.active_telemetry,
            &deployment.replaces_version,
        ),
        (
            "green",
            Tone::Green,
            &deployment.candidate_telemetry,
            &deployment.version,
        ),
    ];
    let mut text = String::from("\n");
    for (side, (word, tone, telemetry, version)) in sides.into_iter().enumerate() {
        let Some(telemetry) = telemetry else {
            continue;
        };
        if telemetry.requests == 0 {
            text.push_str(&format!(
                "{} {}  no requests yet\n",
                output.paint(tone, &format!("{word:<5}")),
                output.paint(Tone::Strong, &printable(version)),
            ));
            continue;
        }
        let errors = if telemetry.error_rate > 0.0 {
            Tone::Bad
        } else {
            Tone::Good
        };
        text.push_str(&format!(
            "{} {}  {:.0} requests/min, {} seen\n  errors  {:>7.2} %   {}\n  latency {:>7.1} ms  {}  p95 {:.1} ms\n",
            output.paint(tone, &format!("{word:<5}")),
            output.paint(Tone::Strong, &printable(version)),
            telemetry.requests_per_minute,
            telemetry.requests,
            telemetry.error_rate * 100.0,
            output.paint(errors, &sparkline(&history.errors[side], Some(1.0))),
            telemetry.response_time_ms,
            output.paint(tone, &sparkline(&history.latency[side], None)),
            telemetry.response_time_p95_ms,
        ));
    }
    text
}

/// Values as a row of small bars, scaled to the largest (or to `top`, if that is smaller than it).
pub fn sparkline(values: &VecDeque<f64>, top: Option<f64>) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let largest = values
        .iter()
        .copied()
        .filter(|v| v.is_finite())
        .fold(0.0_f64, f64::max);
    let scale = match top {
        // A share of 1 % must not look like the whole.
        Some(top) => largest.max(top / 10.0),
        None => largest,
    };
    values
        .iter()
        .map(|value| {
            if scale <= 0.0 || !value.is_finite() {
                return BARS[0];
            }
            let level = (value / scale * (BARS.len() - 1) as f64).round();
            BARS[(level.max(0.0) as usize).min(BARS.len() - 1)]
        })
        .collect()
}

/// Reads `--timeout`.
///
/// # Errors
/// It is no length of time.
pub fn parse_timeout(text: &str) -> Result<Span> {
    text.parse().map_err(|error| {
        Failure::new(Reason::InvalidRequest, format!("--timeout: {error}"))
            .exit(crate::errors::EXIT_USAGE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn sparklines_scale() {
        let values = VecDeque::from([0.0, 0.5, 1.0]);
        assert_eq!(sparkline(&values, None), "▁▅█");
        let small = VecDeque::from([0.0, 0.01]);
        assert_eq!(sparkline(&small, Some(1.0)), "▁▂");
        assert_eq!(sparkline(&VecDeque::from([0.0]), None), "▁");
    }

    #[test]
    fn the_picture_shows_both_versions() {
        let mut deployment = render::tests::sample();
        deployment.candidate_telemetry = Some(api::VersionTelemetry {
            requests: 120,
            error_rate: 0.2,
            response_time_ms: 3.5,
            requests_per_minute: 600.0,
            ..api::VersionTelemetry::default()
        });
        let mut history = History::default();
        history.take(&deployment);
        let text = picture(Output::plain(Format::Table), &deployment, &history);
        assert!(
            text.contains(
                "green 1.4.0  600 requests/min, 120 seen
  errors    20.00 %   █
  latency     3.5 ms  █  p95 0.0 ms
"
            ),
            "{text}"
        );
        assert!(text.contains("waiting: the hold of step 2"), "{text}");
    }

    #[test]
    fn who_waits_in_vain_hears_where_it_stands_and_why() {
        let mut deployment = render::tests::sample();
        let participant = &mut deployment.participants[0];
        participant.agent = "web-1".to_owned();
        participant.error = "port 8080 on 10.0.0.1 is held by nginx (pid 812)".to_owned();
        let output = Output::plain(Format::Table);
        let mut view = engine::View::<api::Deployment>::new(output, false, Span::from_secs(10));
        assert_eq!(view.where_it_stands(), ", no state was seen");
        view.show(&deployment).unwrap();
        let told = view.where_it_stands();
        assert!(told.contains("RUNNING"), "{told}");
        assert!(
            told.contains("web-1: port 8080 on 10.0.0.1 is held by nginx (pid 812)"),
            "{told}"
        );
    }

    #[test]
    fn progress_is_one_line() {
        assert_eq!(
            progress_line(&render::tests::sample()),
            "RUNNING               traffic 10 % → 50 %; 1 of 2 healthy; the hold of step 2"
        );
        let mut ended = render::tests::sample();
        ended.status = api::deployment::Status::Finalized.into();
        ended.waiting_for.clear();
        assert_eq!(progress_line(&ended), "FINALIZED");
    }
}
