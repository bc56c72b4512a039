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
use crate::output::{Output, Tone, printable, shortened, weight};
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
/// Without news, a wait with a limit says that it goes on after each such part of the limit.
const HEARTBEATS: u32 = 10;
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
        following.timeout,
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
                "timed out after {}{}: the deployment goes on\nnext: tidegate deployment watch {}",
                following.timeout,
                view.where_it_stands(),
                short(id)
            ))?;
            return Ok(render::EXIT_TIMED_OUT);
        }
        _ = tokio::signal::ctrl_c() => {
            view.finish()?;
            output.note(&format!(
                "\nthe deployment goes on without you\nnext: tidegate deployment watch {0}, or take it back: tidegate deployment rollback {0}",
                short(id)
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

/// A deployment's id as people type it.
fn short(id: &str) -> String {
    id.get(id.len().saturating_sub(8)..)
        .unwrap_or(id)
        .to_lowercase()
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
    timeout: Span,
    began: std::time::Instant,
    beats: u32,
    trouble: String,
}

#[derive(Default)]
struct History {
    errors: [VecDeque<f64>; 2],
    latency: [VecDeque<f64>; 2],
}

impl View {
    fn new(output: Output, picture: bool, timeout: Span) -> Self {
        Self {
            output,
            picture,
            drawn: 0,
            last_line: String::new(),
            history: History::default(),
            timeout,
            began: std::time::Instant::now(),
            beats: 0,
            trouble: String::new(),
        }
    }

    /// The last state that was seen, with the first cause of trouble; begins with a comma.
    fn where_it_stands(&self) -> String {
        let parts = [self.last_line.trim_end(), &self.trouble];
        let told: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        match told.is_empty() {
            true => ", no state was seen".to_owned(),
            false => format!(", last seen {}", told.join("; ")),
        }
    }

    /// Whether another part of the limit is over.
    fn beat(&mut self) -> bool {
        let part = self.timeout.to_std() / HEARTBEATS;
        if part.is_zero() || self.began.elapsed() < part * (self.beats + 1) {
            return false;
        }
        self.beats = (self.began.elapsed().as_millis() / part.as_millis().max(1)) as u32;
        true
    }

    fn show(&mut self, deployment: &api::Deployment) -> Result<()> {
        self.history.take(deployment);
        self.trouble = trouble(deployment);
        let line = progress_line(deployment);
        let is_news = line != self.last_line;
        let beat = self.beat();
        self.last_line = line;
        if !self.picture {
            let now = time::now_ms();
            let line = time::told(&self.last_line, now);
            if is_news {
                self.output.note(&format!("{} {line}", time::clock(now)))?;
            } else if beat {
                let waited = Span::from_secs(self.began.elapsed().as_secs());
                let of = self.timeout;
                self.output.note(&format!(
                    "{} still {line} (waited {waited} of {of})",
                    time::clock(now)
                ))?;
            }
            return Ok(());
        }
        let (width, height) = (self.output.width(), self.output.height());
        let picture = picture(self.output, deployment, &self.history);
        let mut lines: Vec<String> = picture
            .lines()
            .flat_map(|line| wrapped(line, width))
            .collect();
        // What scrolled off the screen cannot be drawn over.
        if lines.len() >= height {
            lines.truncate(height.saturating_sub(2));
            let id = &deployment.short_id;
            let more = format!("… the window is too low; all of it: tidegate deployment get {id}");
            lines.push(self.output.paint(Tone::Faint, &shortened(&more, width)));
        }
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

/// The line in pieces of at most so many visible characters, broken at blanks where possible;
/// colour codes do not count. Further pieces are indented.
fn wrapped(line: &str, width: usize) -> Vec<String> {
    const INDENT: &str = "    ";
    let mut pieces = Vec::new();
    let (mut piece, mut visible) = (String::new(), 0);
    // Where the piece may be broken: its length in bytes and characters there.
    let mut blank: Option<(usize, usize)> = None;
    let mut in_code = false;
    for character in line.chars() {
        if in_code || character == '\u{1b}' {
            piece.push(character);
            in_code = character != 'm';
            continue;
        }
        if visible >= width {
            let (bytes, characters) = blank.take().unwrap_or((piece.len(), visible));
            let rest = piece.split_off(bytes);
            let rest_visible = visible - characters;
            pieces.push(piece.trim_end().to_owned());
            let rest_text = rest.trim_start_matches(' ');
            let dropped = rest.len() - rest_text.len();
            piece = format!("{INDENT}{rest_text}");
            visible = INDENT.len() + rest_visible - dropped;
        }
        if character == ' ' && visible > INDENT.len() {
            blank = Some((piece.len(), visible));
        }
        piece.push(character);
        visible += 1;
    }
    pieces.push(piece);
    pieces
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
    fn lines_are_wrapped_without_harming_colours() {
        assert_eq!(wrapped("abc", 3), ["abc"]);
        assert_eq!(wrapped("", 3), [""]);
        assert_eq!(
            wrapped("\u{1b}[31mfirst\u{1b}[0m second third", 14),
            ["\u{1b}[31mfirst\u{1b}[0m second", "    third"]
        );
        assert_eq!(wrapped("abcdefghijkl", 8), ["abcdefgh", "    ijkl"]);
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
        let mut view = View::new(Output::plain(Format::Table), false, Span::from_secs(10));
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
    fn a_long_wait_says_ten_times_that_it_goes_on() {
        let mut view = View::new(Output::plain(Format::Table), false, Span::from_secs(100));
        assert!(!view.beat());
        let now = view.began;
        view.began = now.checked_sub(Duration::from_secs(35)).unwrap();
        assert!(view.beat());
        assert!(!view.beat(), "three parts are over, which is one remark");
        view.began = now.checked_sub(Duration::from_secs(41)).unwrap();
        assert!(view.beat());
        let mut endless = View::new(Output::plain(Format::Table), false, Span::ZERO);
        assert!(!endless.beat());
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
