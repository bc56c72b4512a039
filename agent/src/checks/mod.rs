//! Checks of rollouts: makes the measurements that assignments ask for, and keeps the latest of
//! each for the reports.
//!
//! One measurement at a time per check; it judges nothing. What is measured when a check is not
//! wished any more, or in another run, is thrown away. The reconcile loop calls
//! [`Checker::ask`] at each turn with what is wished then, and is woken by
//! [`Checker::news`].

mod command;
mod http;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate_agent_core::place::PlaceKey;
use tidegate_shared::id::Name;
use tidegate_shared::measurement::{CheckKind, CheckWish, MOST_BYTES, ObservedCheck, Sample};
use tidegate_shared::time::Timestamp;
use tokio::sync::Notify;

use crate::executor::Launch;

/// Bytes of bodies that one check may fill a report with.
const MOST_OF_A_CHECK: usize = 4 * MOST_BYTES;
/// Bytes of a reason that are told.
const LONGEST_WHY: usize = 1_000;
/// How soon a check without an instance that runs is looked at again.
const WAIT_FOR_INSTANCE: Duration = Duration::from_millis(250);
/// Every body gets so many.
const LEAST_BYTES: usize = 1 << 10;

/// A check with whom to ask.
#[derive(Debug, Clone)]
pub struct Target {
    /// The version.
    pub place: PlaceKey,
    /// The check.
    pub wish: CheckWish,
    /// Its instances that run, in order; none: nothing can be measured yet.
    pub instances: Vec<TargetInstance>,
}

/// An instance that is measured.
#[derive(Debug, Clone)]
pub struct TargetInstance {
    /// Which.
    pub ordinal: u32,
    /// What it was started with.
    pub launch: Launch,
    /// Its folder.
    pub dir: PathBuf,
    /// Where it answers; port 0: nowhere.
    pub address: SocketAddr,
}

#[derive(Debug)]
struct Held {
    run: Timestamp,
    due: Instant,
    is_measuring: bool,
    latest: BTreeMap<Option<u32>, ObservedCheck>,
}

/// Makes measurements. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Checker {
    held: Arc<Mutex<BTreeMap<(PlaceKey, Name), Held>>>,
    made: Arc<AtomicU64>,
    news: Arc<Notify>,
}

impl Checker {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(PlaceKey, Name), Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the measurements that are due, and forgets every check that is not named.
    pub fn ask(&self, targets: Vec<Target>) {
        let mut held = self.lock();
        let named: BTreeSet<(&PlaceKey, &Name)> =
            targets.iter().map(|t| (&t.place, &t.wish.name)).collect();
        held.retain(|(place, name), _| named.contains(&(place, name)));
        let now = Instant::now();
        for target in targets {
            let key = (target.place.clone(), target.wish.name.clone());
            let begin = || Held {
                run: target.wish.run,
                due: now + target.wish.initial_delay.to_std(),
                is_measuring: false,
                latest: BTreeMap::new(),
            };
            let entry = held.entry(key).or_insert_with(begin);
            if entry.run != target.wish.run {
                *entry = begin();
            }
            if entry.is_measuring || entry.due > now || target.instances.is_empty() {
                continue;
            }
            entry.is_measuring = true;
            entry.due = now + target.wish.interval.to_std();
            let checker = self.clone();
            tokio::spawn(async move { checker.measure(target).await });
        }
    }

    /// How long until a measurement is due; none: none will be. One that is due already waits for
    /// an instance.
    pub fn rest(&self) -> Option<Duration> {
        let held = self.lock();
        let now = Instant::now();
        let due = held.values().filter(|held| !held.is_measuring);
        due.map(|held| match held.due.checked_duration_since(now) {
            Some(rest) => rest.max(Duration::from_millis(1)),
            None => WAIT_FOR_INSTANCE,
        })
        .min()
    }

    /// Tells when a measurement was made.
    pub fn news(&self) -> Arc<Notify> {
        Arc::clone(&self.news)
    }

    /// The latest measurements of a version.
    pub fn latest(&self, place: &PlaceKey) -> Vec<ObservedCheck> {
        let held = self.lock();
        let of_place = held.iter().filter(|((of, _), _)| of == place);
        of_place
            .flat_map(|(_, held)| held.latest.values().cloned())
            .collect()
    }

    async fn measure(&self, target: Target) {
        let samples = samples(&target).await;
        let mut held = self.lock();
        let key = (target.place.clone(), target.wish.name.clone());
        let entry = held.get_mut(&key);
        if let Some(entry) = entry.filter(|held| held.run == target.wish.run) {
            entry.is_measuring = false;
            for (instance, sample) in samples {
                let sequence = self.made.fetch_add(1, Ordering::Relaxed) + 1;
                let observed = ObservedCheck {
                    name: target.wish.name.clone(),
                    run: target.wish.run,
                    instance,
                    sequence,
                    sample,
                };
                entry.latest.insert(instance, observed);
            }
        }
        drop(held);
        self.news.notify_one();
    }
}

async fn samples(target: &Target) -> Vec<(Option<u32>, Sample)> {
    match &target.wish.what {
        CheckKind::Http(wanted) => {
            let share = MOST_OF_A_CHECK / target.instances.len().max(1);
            let limit = share.clamp(LEAST_BYTES, MOST_BYTES);
            let mut asked = tokio::task::JoinSet::new();
            for instance in target.instances.clone() {
                let wanted = wanted.clone();
                asked.spawn(async move {
                    let sample = http::sample(&wanted, instance.address, limit).await;
                    (Some(instance.ordinal), masked(sample, &instance.launch))
                });
            }
            asked.join_all().await
        }
        CheckKind::Command(wanted) => match target.instances.first() {
            Some(first) => {
                let sample = command::sample(&target.wish.name, wanted, first).await;
                vec![(None, masked(sample, &first.launch))]
            }
            None => Vec::new(),
        },
    }
}

/// Without the values of the instance's secrets, and no longer than a coordinator takes it: what
/// stands in a secret's place may be longer.
fn masked(sample: Sample, launch: &Launch) -> Sample {
    let hide = |told: &str, limit: usize| text(launch.mask(told).as_bytes(), limit);
    match sample {
        Sample::Http { status, body, cut } => {
            let (body, more) = hide(&body, MOST_BYTES);
            Sample::Http {
                status,
                body,
                cut: cut || more,
            }
        }
        Sample::Command {
            exit_code,
            output,
            cut,
        } => {
            let (output, more) = hide(&output, MOST_BYTES);
            Sample::Command {
                exit_code,
                output,
                cut: cut || more,
            }
        }
        Sample::Unanswered(why) => Sample::Unanswered(hide(&why, LONGEST_WHY).0),
        Sample::NotMade(why) => Sample::NotMade(hide(&why, LONGEST_WHY).0),
        Sample::Values(values) => Sample::Values(values),
    }
}

/// Bytes as a text of at most `limit` bytes, and whether something is missing.
fn text(bytes: &[u8], limit: usize) -> (String, bool) {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    if text.len() <= limit {
        return (text, false);
    }
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    (text, true)
}
