//! Follows a deployment until its end: a live picture on a terminal, lines elsewhere.
//!
//! The stream of the cluster carries complete states, so a broken stream is simply opened again
//! at another coordinator. Ctrl-C ends the following and leaves the deployment alone.

use std::collections::VecDeque;
use std::time::Duration;

use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;
use tidegate_shared::time::Span;
use tokio_stream::StreamExt as _;

use crate::connect::{Client, failure_of};
use crate::errors::{Failure, Result};
use crate::output::{Output, Tone, printable, weight};
use crate::session::Session;
use crate::{render, time};

/// Exit status after Ctrl-C.
const EXIT_INTERRUPTED: u8 = 130;
/// How often the picture changes at least.
const INTERVAL_MS: u32 = 500;
/// A stream that says nothing for so long is opened again.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);
/// A broken stream is opened again for so long.
const BROKEN_LIMIT: Duration = Duration::from_secs(60);
/// Points of a sparkline.
const HISTORY: usize = 40;

/// How a deployment is followed.
#[derive(Debug, Clone, Copy)]
pub struct Following {
    /// End after so long with exit status 6; zero: no limit.
    pub timeout: Span,
    /// Draw a picture in place where that is possible.
    pub picture: bool,
}

/// Follows until the end; answers with the exit status. The final state goes to the output when
/// it is not for people.
///
/// # Errors
/// No coordinator answers any more.
pub async fn follow(session: &Session, id: &str, following: Following) -> Result<u8> {
    let output = session.output;
    let client = session.client().await?;
    let mut view = View::new(
        output,
        following.picture && output.is_terminal() && output.is_for_people(),
    );
    let limit = async {
        if following.timeout.is_zero() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(following.timeout.to_std()).await;
    };
    let outcome = tokio::select! {
        outcome = until_end(client, id, &mut view) => outcome?,
        () = limit => {
            view.finish()?;
            output.note(&format!(
                "timed out after {}: the deployment goes on; look with `tidegate deployment get {id}`",
                following.timeout
            ))?;
            return Ok(render::EXIT_TIMED_OUT);
        }
        _ = tokio::signal::ctrl_c() => {
            view.finish()?;
            output.note(&format!(
                "\nthe deployment goes on without you; watch it with `tidegate deployment watch {id}`, take it back with `tidegate deployment rollback {id}`"
            ))?;
            return Ok(EXIT_INTERRUPTED);
        }
    };
    view.finish()?;
    let line = render::outcome_line(&outcome);
    if output.is_for_people() {
        output.line(&output.paint(render::tone(outcome.status()), &line))?;
    } else {
        output.emit(&outcome, |_| String::new())?;
    }
    Ok(render::exit_status(&outcome))
}

async fn until_end(client: &Client, id: &str, view: &mut View) -> Result<api::Deployment> {
    let mut broken_since: Option<tokio::time::Instant> = None;
    loop {
        match one_stream(client, id, view, &mut broken_since).await {
            Ok(Some(ended)) => return Ok(ended),
            Ok(None) => {}
            Err(failure) if !failure.is_transient() => return Err(failure),
            Err(failure) => {
                let since = *broken_since.get_or_insert_with(tokio::time::Instant::now);
                if since.elapsed() > BROKEN_LIMIT {
                    return Err(failure);
                }
                client.leave().await;
            }
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Reads one stream until the end of the deployment or of the stream.
async fn one_stream(
    client: &Client,
    id: &str,
    view: &mut View,
    broken_since: &mut Option<tokio::time::Instant>,
) -> Result<Option<api::Deployment>> {
    let request = api::WatchDeploymentRequest {
        id: id.to_owned(),
        interval_ms: INTERVAL_MS,
    };
    let mut stream = crate::rpc!(
        client,
        deployments_client::DeploymentsClient,
        watch,
        request
    )
    .await?;
    loop {
        match tokio::time::timeout(SILENCE_LIMIT, stream.next()).await {
            Ok(Some(Ok(deployment))) => {
                *broken_since = None;
                view.show(&deployment)?;
                if render::has_ended(deployment.status()) {
                    return Ok(Some(deployment));
                }
            }
            Ok(Some(Err(status))) => return Err(failure_of(status)),
            Ok(None) => return Ok(None),
            // Nothing changes, or the coordinator froze: opening it again tells which.
            Err(_) => return Ok(None),
        }
    }
}

/// What is on the screen.
struct View {
    output: Output,
    picture: bool,
    drawn: usize,
    last_line: String,
    history: History,
}

#[derive(Default)]
struct History {
    errors: [VecDeque<f64>; 2],
    latency: [VecDeque<f64>; 2],
}

impl View {
    fn new(output: Output, picture: bool) -> Self {
        Self {
            output,
            picture,
            drawn: 0,
            last_line: String::new(),
            history: History::default(),
        }
    }

    fn show(&mut self, deployment: &api::Deployment) -> Result<()> {
        self.history.take(deployment);
        if !self.picture {
            let line = progress_line(deployment);
            if line != self.last_line {
                let now = time::now_ms();
                let text = format!("{} {}", time::clock(now), time::told(&line, now));
                self.output.note(&text)?;
                self.last_line = line;
            }
            return Ok(());
        }
        let picture = picture(self.output, deployment, &self.history);
        let width = self.output.width();
        let lines: Vec<String> = picture.lines().map(|line| cut(line, width)).collect();
        let mut text = self.rewind();
        for line in &lines {
            text.push_str(line);
            text.push_str("\u{1b}[K\n");
        }
        text.push_str("\u{1b}[J");
        self.drawn = lines.len();
        self.output.text(&text)
    }

    /// Back to the first line of the picture.
    fn rewind(&self) -> String {
        if self.drawn == 0 {
            return String::new();
        }
        format!("\r\u{1b}[{}A", self.drawn)
    }

    /// Leaves the last picture on the screen.
    fn finish(&mut self) -> Result<()> {
        self.drawn = 0;
        Ok(())
    }
}

/// What changed, for a log; instants stand in it as the cluster tells them.
pub fn progress_line(deployment: &api::Deployment) -> String {
    let mut parts = Vec::new();
    if render::has_traffic(deployment.status()) {
        parts.push(traffic_words(&deployment.traffic.unwrap_or_default()));
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

/// `traffic 10 %`, and where it goes if it is not there yet: `traffic 10 % → 50 %`.
fn traffic_words(traffic: &api::Traffic) -> String {
    let held = weight(i64::from(traffic.actual));
    if traffic.actual == traffic.desired {
        format!("traffic {held}")
    } else {
        format!("traffic {held} → {}", weight(i64::from(traffic.desired)))
    }
}

impl History {
    fn take(&mut self, deployment: &api::Deployment) {
        let sides = [
            &deployment.active_telemetry,
            &deployment.candidate_telemetry,
        ];
        for (side, telemetry) in sides.into_iter().enumerate() {
            let Some(telemetry) = telemetry else {
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
    let traffic = deployment.traffic.unwrap_or_default();
    let now = time::now_ms();
    let mut text = format!(
        "{} {} → {}   {} {}   {}\n",
        output.paint(Tone::Strong, &printable(&deployment.application)),
        output.paint(Tone::Green, &printable(&deployment.version)),
        output.paint(Tone::Strong, &printable(&deployment.scope)),
        output.paint(render::tone(status), status.as_str_name()),
        output.paint(
            Tone::Faint,
            &format!("since {}", time::ago(deployment.status_since_ms, now))
        ),
        output.paint(Tone::Faint, &deployment.short_id),
    );
    text.push_str(&format!(
        "{} {} held, {} wanted\n",
        render::traffic_bar(output, traffic.actual, traffic.desired, 50),
        weight(i64::from(traffic.actual)),
        weight(i64::from(traffic.desired)),
    ));
    text.push_str(&render::steps(output, deployment));
    text.push_str(&render::participants(output, deployment));
    text.push('\n');
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
    for (side, (word, tone, telemetry, version)) in sides.into_iter().enumerate() {
        let Some(telemetry) = telemetry else {
            continue;
        };
        text.push_str(&format!(
            "{} {} {} requests, {:.0}/min\n  errors  {:>7.2} %  {}\n  latency {:>7.1} ms {}\n",
            output.paint(tone, &format!("{word:<5}")),
            printable(version),
            telemetry.requests,
            telemetry.requests_per_minute,
            telemetry.error_rate * 100.0,
            output.paint(Tone::Bad, &sparkline(&history.errors[side], Some(1.0))),
            telemetry.response_time_ms,
            output.paint(tone, &sparkline(&history.latency[side], None)),
        ));
    }
    text.push_str(&render::evidence(output, deployment));
    text.push_str(&render::causes(output, deployment));
    let waits = if deployment.waiting_for.is_empty() {
        &deployment.message
    } else {
        &deployment.waiting_for
    };
    if !waits.is_empty() {
        text.push_str(&format!("\nwaits for {}\n", printable(waits)));
    }
    for (word, hold) in [
        ("paused", &deployment.paused),
        ("halted", &deployment.halted),
    ] {
        if let Some(hold) = hold {
            let line = printable(&format!("{word} by {}: {}", hold.by, hold.reason));
            text.push_str(&format!("{}\n", output.paint(Tone::Busy, &line)));
        }
    }
    text.push_str(&output.paint(Tone::Faint, "Ctrl-C ends the watching, not the deployment"));
    text.push('\n');
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

/// At most so many visible characters; colour codes do not count.
fn cut(line: &str, width: usize) -> String {
    let mut text = String::new();
    let mut visible = 0;
    let mut in_code = false;
    for character in line.chars() {
        if character == '\u{1b}' {
            in_code = true;
        }
        if in_code {
            text.push(character);
            in_code = character != 'm';
            continue;
        }
        if visible < width {
            text.push(character);
            visible += 1;
        }
    }
    text
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
    fn lines_are_cut_without_harming_colours() {
        assert_eq!(
            cut("\u{1b}[31mabc\u{1b}[0mdef", 4),
            "\u{1b}[31mabc\u{1b}[0md"
        );
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
                "green 1.4.0 120 requests, 600/min
  errors    20.00 %  █
  latency     3.5 ms █
"
            ),
            "{text}"
        );
        assert!(text.contains("waits for the hold of step 2"), "{text}");
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
