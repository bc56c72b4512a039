//! Follows something until its end, whatever it is: a live picture on a terminal, lines elsewhere.
//!
//! The stream of the cluster carries complete states, so a broken stream is simply opened again
//! at another coordinator. Ctrl-C ends the following and leaves what is followed alone.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use serde::Serialize;
use tidegate_shared::time::Span;
use tokio_stream::StreamExt as _;
use tonic::Streaming;

use super::Following;
use crate::connect::{Client, failure_of};
use crate::errors::Result;
use crate::output::{Output, Tone, shortened};
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

/// What the cluster streams until it ends.
pub(super) trait Followed: Serialize + Sized {
    /// What earlier states leave for the picture.
    type Memory: Default;
    /// The word for it, which is the command's too.
    const NOUN: &'static str;

    /// Opens its stream.
    fn open(
        client: &Client,
        id: &str,
        interval_ms: u32,
    ) -> impl Future<Output = Result<Streaming<Self>>>;
    /// As people type it.
    fn short_id(&self) -> &str;
    /// Whether nothing more happens to it by itself.
    fn has_ended(&self) -> bool;
    /// Of the program, once it has ended.
    fn exit_status(&self) -> u8;
    /// Of its status.
    fn tone(&self) -> Tone;
    /// How it ended.
    fn outcome_line(&self) -> String;
    /// Lines for a log with what each is about, that of the whole first; a line is told when it
    /// changes. Instants stand in it as the cluster tells them.
    fn news(&self) -> Vec<(String, String)>;
    /// The first cause of trouble; empty without any.
    fn trouble(&self) -> String;
    /// Takes over what later pictures show.
    fn remember(&self, memory: &mut Self::Memory);
    /// The picture.
    fn picture(&self, output: Output, memory: &Self::Memory) -> String;
}

/// Follows until the end; answers with the exit status. The final state goes to the output when
/// it is not for people.
///
/// # Errors
/// No coordinator answers any more.
pub(super) async fn follow<T: Followed>(
    session: &Session,
    id: &str,
    following: Following,
) -> Result<u8> {
    let output = session.output;
    let client = session.client().await?;
    let mut view = View::<T>::new(
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
    let noun = T::NOUN;
    let outcome = tokio::select! {
        outcome = until_end(client, id, &mut view) => outcome?,
        () = limit => {
            view.finish();
            output.note(&format!(
                "timed out after {}{}: the {noun} goes on\nnext: tidegate {noun} watch {}",
                following.timeout,
                view.where_it_stands(),
                short(id)
            ))?;
            return Ok(render::EXIT_TIMED_OUT);
        }
        _ = tokio::signal::ctrl_c() => {
            view.finish();
            output.note(&format!(
                "\nthe {noun} goes on without you\nnext: tidegate {noun} watch {0}, or take it back: tidegate {noun} rollback {0}",
                short(id)
            ))?;
            return Ok(EXIT_INTERRUPTED);
        }
    };
    view.finish();
    if output.is_for_people() {
        output.line(&output.paint(outcome.tone(), &outcome.outcome_line()))?;
    } else {
        output.emit(&outcome, |_| String::new())?;
    }
    Ok(outcome.exit_status())
}

/// An id as people type it.
fn short(id: &str) -> String {
    id.get(id.len().saturating_sub(8)..)
        .unwrap_or(id)
        .to_lowercase()
}

async fn until_end<T: Followed>(client: &Client, id: &str, view: &mut View<T>) -> Result<T> {
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

/// Reads one stream until the end of what is followed or of the stream.
async fn one_stream<T: Followed>(
    client: &Client,
    id: &str,
    view: &mut View<T>,
    broken_since: &mut Option<tokio::time::Instant>,
) -> Result<Option<T>> {
    let mut stream = T::open(client, id, INTERVAL_MS).await?;
    loop {
        match tokio::time::timeout(SILENCE_LIMIT, stream.next()).await {
            Ok(Some(Ok(seen))) => {
                *broken_since = None;
                view.show(&seen)?;
                if seen.has_ended() {
                    return Ok(Some(seen));
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
pub(super) struct View<T: Followed> {
    output: Output,
    picture: bool,
    drawn: usize,
    /// Lines that were told, by what they are about.
    told: BTreeMap<String, String>,
    last_line: String,
    memory: T::Memory,
    timeout: Span,
    began: std::time::Instant,
    beats: u32,
    trouble: String,
}

impl<T: Followed> View<T> {
    pub(super) fn new(output: Output, picture: bool, timeout: Span) -> Self {
        Self {
            output,
            picture,
            drawn: 0,
            told: BTreeMap::new(),
            last_line: String::new(),
            memory: T::Memory::default(),
            timeout,
            began: std::time::Instant::now(),
            beats: 0,
            trouble: String::new(),
        }
    }

    /// The last state that was seen, with the first cause of trouble; begins with a comma.
    pub(super) fn where_it_stands(&self) -> String {
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

    pub(super) fn show(&mut self, seen: &T) -> Result<()> {
        seen.remember(&mut self.memory);
        self.trouble = seen.trouble();
        let news = seen.news();
        let beat = self.beat();
        self.last_line = news
            .first()
            .map(|(_, line)| line.clone())
            .unwrap_or_default();
        if self.picture {
            return self.draw(seen);
        }
        let now = time::now_ms();
        let mut is_news = false;
        for (about, line) in news {
            if self.told.get(&about) == Some(&line) {
                continue;
            }
            is_news = true;
            let told = time::told(&line, now);
            self.output.note(&format!("{} {told}", time::clock(now)))?;
            self.told.insert(about, line);
        }
        if beat && !is_news {
            let waited = Span::from_secs(self.began.elapsed().as_secs());
            let of = self.timeout;
            self.output.note(&format!(
                "{} still {} (waited {waited} of {of})",
                time::clock(now),
                time::told(&self.last_line, now)
            ))?;
        }
        Ok(())
    }

    fn draw(&mut self, seen: &T) -> Result<()> {
        let (width, height) = (self.output.width(), self.output.height());
        let picture = seen.picture(self.output, &self.memory);
        let mut lines: Vec<String> = picture
            .lines()
            .flat_map(|line| wrapped(line, width))
            .collect();
        // What scrolled off the screen cannot be drawn over.
        if lines.len() >= height {
            lines.truncate(height.saturating_sub(2));
            let (noun, id) = (T::NOUN, seen.short_id());
            let more = format!("… the window is too low; all of it: tidegate {noun} get {id}");
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
    const fn finish(&mut self) {
        self.drawn = 0;
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

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
    fn a_long_wait_says_ten_times_that_it_goes_on() {
        let mut view = View::<tidegate_proto::control::v1::Deployment>::new(
            Output::plain(Format::Table),
            false,
            Span::from_secs(100),
        );
        assert!(!view.beat());
        let now = view.began;
        view.began = now.checked_sub(Duration::from_secs(35)).unwrap();
        assert!(view.beat());
        assert!(!view.beat(), "three parts are over, which is one remark");
        view.began = now.checked_sub(Duration::from_secs(41)).unwrap();
        assert!(view.beat());
        let mut endless = View::<tidegate_proto::control::v1::Deployment>::new(
            Output::plain(Format::Table),
            false,
            Span::ZERO,
        );
        assert!(!endless.beat());
    }
}
