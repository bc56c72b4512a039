//! Fetching an asset: its places are asked in order, and what comes is hashed and counted while it
//! streams.
//!
//! It goes on where an earlier fetch into the same writer ended. A place that breaks is followed by the next one, which goes on where the last one ended; after
//! the last one comes the first again, after a wait, as long as bytes come at all. Bytes of a wrong
//! digest are never used. Which place gave them is told: if several had a part in them, each is
//! asked once more for the whole, so that the one that is right is found.

#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tidegate_shared::assignment::{AssetWish, PermanentErrorKind};
use tidegate_shared::digest::Digest;
use tracing::debug;

use super::{PartWriter, StageError};
use crate::jitter;

/// A future of a source.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where assets come from.
pub trait Source: Send + Sync {
    /// The places of an asset, in the order in which they should be asked.
    fn places(&self, wish: &AssetWish) -> Vec<String>;

    /// Opens the asset at one of them.
    fn open<'a>(&'a self, place: &'a str, part: Part<'a>) -> Answer<'a, Opened>;
}

/// Which part of which asset.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// Its digest.
    pub digest: Digest,
    /// The first byte that is wanted.
    pub from: u64,
    /// What the place called its version when it was asked before.
    pub version: Option<&'a str>,
}

/// What a place answered.
pub enum Opened {
    /// The bytes from `from` on; it may be less than was asked for.
    Body {
        /// Position of the first byte.
        from: u64,
        /// Bytes of the whole, if it tells.
        size: Option<u64>,
        /// What it calls this version of the asset: when it is asked again, a part of another one
        /// is of no use.
        version: Option<String>,
        /// The rest of the asset.
        body: Box<dyn Pieces>,
    },
    /// It does not have the asset.
    Missing,
    /// It could not answer.
    Failed(String),
}

/// A stream of pieces.
pub trait Pieces: Send {
    /// The next piece; none at the end.
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, String>>>;
}

/// How long is waited for what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Longest silence of a place, and how long its rate is measured.
    pub silence: Duration,
    /// Fewest bytes in that time.
    pub least: u64,
    /// The first wait after a round over all places in which nothing came; each is twice the last.
    pub wait: Duration,
    /// Rounds in a row without a byte until the fetch is given up for this time.
    pub idle_rounds: u32,
    /// Rounds in all.
    pub rounds: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(30),
            least: 30 * 4_096,
            wait: Duration::from_millis(500),
            idle_rounds: 4,
            rounds: 100,
        }
    }
}

/// Fetches the wish into the writer.
///
/// # Errors
/// Wrong bytes, a full disk, nobody has it, or it broke for now.
pub async fn fetch(
    wish: &AssetWish,
    source: &dyn Source,
    writer: &mut PartWriter,
    patience: Patience,
) -> Result<(), StageError> {
    let places = source.places(wish);
    if places.is_empty() {
        return Err(StageError::transient(
            "no coordinator's HTTP address is known",
        ));
    }
    let (hash, received) = writer.held();
    let mut fetch = Fetch {
        wish,
        patience,
        hash,
        received,
        versions: BTreeMap::new(),
        givers: BTreeSet::new(),
        wrong: BTreeMap::new(),
        resumed: false,
        alone: false,
        trouble: String::new(),
    };
    if fetch.received == wish.size {
        match fetch.fault("an earlier fetch") {
            None => return Ok(()),
            Some(_) => fetch.restart(writer)?,
        }
    }
    let mut idle = 0;
    for _ in 0..patience.rounds {
        let before = fetch.received;
        if fetch.round(&places, source, writer).await? {
            return Ok(());
        }
        if fetch.received != before {
            idle = 0;
            continue;
        }
        idle += 1;
        if idle == patience.idle_rounds {
            break;
        }
        tokio::time::sleep(jitter::jittered(patience.wait * 2_u32.pow(idle - 1))).await;
    }
    Err(fetch.give_up())
}

struct Fetch<'a> {
    wish: &'a AssetWish,
    patience: Patience,
    hash: Sha256,
    received: u64,
    /// What places called their versions, by position.
    versions: BTreeMap<usize, String>,
    /// Places that the received bytes come from.
    givers: BTreeSet<usize>,
    /// Places whose bytes are not the release's, with what is wrong.
    wrong: BTreeMap<usize, String>,
    /// What is here was fetched in more than one go.
    resumed: bool,
    /// Bytes of several goes were wrong together: from now on each place gives the whole at once.
    alone: bool,
    trouble: String,
}

impl Fetch<'_> {
    /// Asks each place once; true: everything is here and right.
    async fn round(
        &mut self,
        places: &[String],
        source: &dyn Source,
        writer: &mut PartWriter,
    ) -> Result<bool, StageError> {
        let mut missing = 0;
        for (position, place) in places.iter().enumerate() {
            if self.wrong.contains_key(&position) {
                continue;
            }
            if self.alone {
                self.restart(writer)?;
            }
            let part = Part {
                digest: self.wish.sha256,
                from: self.received,
                version: self.versions.get(&position).map(String::as_str),
            };
            let opened = tokio::time::timeout(self.patience.silence, source.open(place, part));
            match opened.await {
                Ok(Opened::Missing) => missing += 1,
                Ok(Opened::Failed(why)) => self.trouble = format!("{place}: {why}"),
                Ok(Opened::Body {
                    from,
                    size,
                    version,
                    body,
                }) => {
                    if self.is_another(position, version.as_deref()) {
                        self.restart(writer)?;
                    }
                    self.note_version(position, version);
                    let fault = match self.take(position, from, size, body, writer).await? {
                        Taken::All => match self.fault(place) {
                            None => return Ok(true),
                            Some(fault) => fault,
                        },
                        Taken::Wrong(fault) => fault,
                        Taken::Broken(why) => {
                            self.trouble = format!("{place}: {why}");
                            continue;
                        }
                    };
                    self.distrust(position, fault, writer)?;
                }
                Err(_) => self.trouble = format!("{place}: {}", self.silent()),
            }
        }
        debug!(asset = %self.wish.name, trouble = self.trouble, "a round over all places");
        if !self.wrong.is_empty() && self.wrong.len() + missing == places.len() {
            return Err(self.give_up());
        }
        if missing == places.len() {
            let (name, digest) = (&self.wish.name, self.wish.sha256);
            let message = if self.wish.sources.is_empty() {
                format!("no coordinator has the asset {name} ({digest})")
            } else {
                let sources = self.wish.sources.join(", ");
                format!("neither {sources} nor a coordinator has the asset {name} ({digest})")
            };
            return Err(StageError::permanent(
                PermanentErrorKind::AssetMissing,
                message,
            ));
        }
        Ok(false)
    }

    /// Whether a place has replaced its file since it gave a part of it.
    fn is_another(&self, position: usize, version: Option<&str>) -> bool {
        let known = self.versions.get(&position).map(String::as_str);
        self.givers.contains(&position) && known.is_some() && known != version
    }

    fn note_version(&mut self, position: usize, version: Option<String>) {
        match version {
            Some(version) => self.versions.insert(position, version),
            None => self.versions.remove(&position),
        };
    }

    async fn take(
        &mut self,
        position: usize,
        from: u64,
        size: Option<u64>,
        mut body: Box<dyn Pieces>,
        writer: &mut PartWriter,
    ) -> Result<Taken, StageError> {
        if let Some(size) = size.filter(|size| *size != self.wish.size) {
            self.givers = BTreeSet::from([position]);
            let wanted = self.wish.size;
            let fault = format!("it has {size} bytes, not the {wanted} of its release");
            return Ok(Taken::Wrong(fault));
        }
        // A place that cannot resume begins at zero: what is here already is skipped.
        let Some(mut skip) = self.received.checked_sub(from) else {
            let why = "it answered with another part than was asked for";
            return Ok(Taken::Broken(why.to_owned()));
        };
        self.resumed |= self.received > 0;
        let mut rate = Rate::new();
        loop {
            let piece = match tokio::time::timeout(self.patience.silence, body.next()).await {
                Ok(Some(Ok(piece))) => piece,
                // What comes after the last byte is of no interest.
                Ok(Some(Err(_))) if self.received == self.wish.size => return Ok(Taken::All),
                Ok(Some(Err(why))) => return Ok(Taken::Broken(why)),
                // A connection that broke is an error; a clean end is the asset's own, and the
                // digest tells whether it is the right one.
                Ok(None) => return Ok(Taken::All),
                Err(_) => return Ok(Taken::Broken(self.silent())),
            };
            if rate.is_below(piece.len() as u64, self.patience) {
                let least = self.patience.least / self.patience.silence.as_secs().max(1);
                let why = format!("gave less than {least} bytes per second");
                return Ok(Taken::Broken(why));
            }
            let skipped = skip.min(piece.len() as u64);
            skip -= skipped;
            let fresh = &piece[usize::try_from(skipped).unwrap_or(piece.len())..];
            if fresh.is_empty() {
                continue;
            }
            self.givers.insert(position);
            if self.received + fresh.len() as u64 > self.wish.size {
                let fault = format!("longer than the {} bytes of its release", self.wish.size);
                return Ok(Taken::Wrong(fault));
            }
            writer.write(fresh)?;
            self.hash.update(fresh);
            self.received += fresh.len() as u64;
        }
    }

    fn silent(&self) -> String {
        format!("was silent for {} s", self.patience.silence.as_secs())
    }

    /// What is wrong with what is here, if it is all.
    fn fault(&self, place: &str) -> Option<String> {
        let got = Digest::from_bytes(self.hash.clone().finalize().into());
        if got == self.wish.sha256 {
            return None;
        }
        // What a file of the host has for a digest is nobody's business.
        let got = match place.starts_with("file:") {
            true => "another one".to_owned(),
            false => got.to_string(),
        };
        Some(format!(
            "a wrong digest: expected {} ({} bytes), got {got} ({} bytes, from {place})",
            self.wish.sha256, self.wish.size, self.received
        ))
    }

    fn distrust(
        &mut self,
        position: usize,
        fault: String,
        writer: &mut PartWriter,
    ) -> Result<(), StageError> {
        if (self.givers.len() > 1 || self.resumed) && !self.alone {
            self.alone = true;
            self.trouble = fault;
        } else {
            self.wrong.insert(position, fault);
        }
        self.restart(writer)
    }

    fn restart(&mut self, writer: &mut PartWriter) -> Result<(), StageError> {
        self.hash = Sha256::new();
        self.received = 0;
        self.resumed = false;
        self.givers.clear();
        writer.restart()
    }

    fn give_up(&self) -> StageError {
        let name = &self.wish.name;
        match self.wrong.values().next() {
            Some(fault) if fault.starts_with("longer") => StageError::permanent(
                PermanentErrorKind::DigestMismatch,
                format!("the asset {name} is {fault}"),
            ),
            Some(fault) => StageError::permanent(
                PermanentErrorKind::DigestMismatch,
                format!("the asset {name} has {fault}"),
            ),
            None => StageError::transient(format!(
                "the asset {name} cannot be fetched: {}",
                self.trouble
            )),
        }
    }
}

enum Taken {
    /// The place told everything.
    All,
    /// It cannot be the release's asset.
    Wrong(String),
    /// It broke off.
    Broken(String),
}

/// Bytes over time, looked at once per window.
struct Rate {
    since: Instant,
    bytes: u64,
}

impl Rate {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            bytes: 0,
        }
    }

    fn is_below(&mut self, more: u64, patience: Patience) -> bool {
        self.bytes += more;
        if self.since.elapsed() < patience.silence {
            return false;
        }
        let is_below = self.bytes < patience.least;
        *self = Self::new();
        is_below
    }
}
