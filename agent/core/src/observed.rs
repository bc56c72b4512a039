//! What is so on this agent, as far as it knows: places, their instances, the data plane.
//!
//! Changed only here: by [`Observed::sync`] (a new wish makes places and instances to be started),
//! [`Observed::begin`] (an action was ordered) and [`Observed::apply`] (news came back). The
//! planner and the report only read it.

use std::collections::BTreeMap;

use tidegate_shared::assignment::{Assignment, Counters, PermanentError, PermanentErrorKind, Role};
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::time::Timestamp;
use tidegate_shared::weight::Weight;

use crate::desired::Desired;
use crate::instance::{Instance, Settings, backoff};
use crate::place::{InstanceKey, PlaceKey};
use crate::plan::Action;

/// How often a missing asset is looked for before that counts as permanent.
pub const MISSING_ATTEMPTS: u32 = 6;

/// Everything that is so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Every place that the agent holds anything of.
    pub places: BTreeMap<PlaceKey, Place>,
    /// The data plane.
    pub traffic: Traffic,
}

/// One place as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its latest assignment; kept after it has left the wish, for its port and drain time.
    pub item: Assignment,
    /// Its release on disk.
    pub staging: Staging,
    /// By ordinal.
    pub instances: BTreeMap<u32, Instance>,
    /// Since when the data plane acknowledges weight 0 for it; none: it holds weight, or that is
    /// not known.
    pub zero_since: Option<Timestamp>,
    /// Its removal was ordered.
    pub removing: bool,
}

/// The release of a place on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Staging {
    /// Not there.
    Missing {
        /// Failures so far.
        attempts: u32,
        /// The next attempt comes then.
        retry_at: Timestamp,
        /// Why the last attempt failed.
        error: Option<String>,
    },
    /// Being fetched and unpacked.
    Underway {
        /// Failures so far.
        attempts: u32,
    },
    /// Fetched, verified, unpacked.
    Ready,
    /// It will not come.
    Refused(PermanentError),
}

/// What the data plane holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Traffic {
    /// It could not be asked.
    #[default]
    Unknown,
    /// As it acknowledged last.
    Held(BTreeMap<Name, HeldScope>),
}

/// A scope as the data plane holds it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeldScope {
    /// None: it listens.
    pub problem: Option<ListenProblem>,
    /// Which settings it follows; empty: the ordinary ones.
    pub revision: String,
    /// Its versions.
    pub versions: BTreeMap<DeploymentId, HeldVersion>,
}

/// Why a scope is not listened for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenProblem {
    /// Set when trying again will not help: another program holds the port, the certificate cannot
    /// be used …
    pub permanent: Option<PermanentErrorKind>,
    /// One line for a person.
    pub message: String,
}

/// A version as the data plane holds it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeldVersion {
    /// The weight in force.
    pub weight: Weight,
    /// Gets the requests that ask for it, whatever its weight.
    pub on_demand: bool,
    /// Requests under way.
    pub open_requests: u64,
    /// By ordinal; those that left the table too.
    pub instances: BTreeMap<u32, HeldInstance>,
}

/// An instance as the data plane holds it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeldInstance {
    /// It is in the table.
    pub listed: bool,
    /// It may get new requests.
    pub healthy: bool,
    /// Its port; 0: not known.
    pub port: u16,
    /// Requests under way.
    pub open_requests: u64,
    /// Start of the counters.
    pub stamp: Timestamp,
    /// Cumulative; health checks are not counted by the data plane.
    pub counters: Counters,
}

/// News from outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The release of a place is on disk.
    Staged {
        /// Which place.
        place: PlaceKey,
    },
    /// It could not be brought there; nothing was changed.
    StageFailed {
        /// Which place.
        place: PlaceKey,
        /// None: trying again may help.
        kind: Option<PermanentErrorKind>,
        /// One line for a person.
        message: String,
    },
    /// A process runs.
    Started {
        /// Which instance.
        instance: InstanceKey,
        /// Of which start.
        incarnation: u32,
        /// Its process.
        pid: u32,
        /// Its port; 0: none.
        port: u16,
    },
    /// A process could not be started.
    StartFailed {
        /// Which instance.
        instance: InstanceKey,
        /// Of which start.
        incarnation: u32,
        /// Trying again will not help.
        permanent: bool,
        /// One line for a person.
        message: String,
    },
    /// A process ended by itself.
    Exited {
        /// Which instance.
        instance: InstanceKey,
        /// Of which start.
        incarnation: u32,
        /// How, with the last lines of its output.
        how: String,
    },
    /// One sample of a health check.
    Probed {
        /// Which instance.
        instance: InstanceKey,
        /// Of which start.
        incarnation: u32,
        /// Why it failed.
        sample: Result<(), String>,
    },
    /// An ordered stop is complete.
    Stopped {
        /// Which instance.
        instance: InstanceKey,
        /// Of which start.
        incarnation: u32,
        /// How its process ended, if that is known.
        how: Option<String>,
    },
    /// Nothing of the place is left, its release aside.
    Removed {
        /// Which place.
        place: PlaceKey,
    },
    /// The data plane was asked.
    Traffic(Traffic),
}

impl Place {
    /// A place of which nothing is there yet.
    pub const fn new(item: Assignment) -> Self {
        Self {
            item,
            staging: Staging::Missing {
                attempts: 0,
                retry_at: Timestamp::ZERO,
                error: None,
            },
            instances: BTreeMap::new(),
            zero_since: None,
            removing: false,
        }
    }

    /// Whether an instance of it may get requests.
    pub fn has_healthy(&self) -> bool {
        self.instances.values().any(Instance::is_healthy)
    }

    /// Whether a process of it may be there.
    pub fn may_live(&self) -> bool {
        self.instances.values().any(Instance::may_live)
    }

    /// Whether its instances are started again for ever, however often they end.
    pub fn is_stubborn(&self) -> bool {
        self.item.role == Role::Active
    }
}

impl Traffic {
    /// A scope, if the data plane knows it.
    pub fn scope(&self, scope: &Name) -> Option<&HeldScope> {
        match self {
            Self::Unknown => None,
            Self::Held(scopes) => scopes.get(scope),
        }
    }

    /// A version, if the data plane knows it.
    pub fn version(&self, place: &PlaceKey) -> Option<&HeldVersion> {
        self.scope(&place.scope)?.versions.get(&place.deployment)
    }

    /// The weight that a version holds; none: not known. A scope without a listener holds none of
    /// it in truth, so its versions hold zero.
    pub fn weight(&self, place: &PlaceKey) -> Option<Weight> {
        match self {
            Self::Unknown => None,
            Self::Held(scopes) => Some(
                scopes
                    .get(&place.scope)
                    .filter(|scope| scope.problem.is_none())
                    .and_then(|scope| scope.versions.get(&place.deployment))
                    .map_or(Weight::ZERO, |version| version.weight),
            ),
        }
    }
}

impl Observed {
    /// Takes in the wish, at each turn: places that were unknown appear, every wanted instance is
    /// there to be started, and unwanted ones without a process are forgotten.
    pub fn sync(&mut self, desired: &Desired, now: Timestamp) {
        for (key, item) in &desired.places {
            let known = self.places.contains_key(key);
            if !known && !desired.wants_staged(key) {
                continue;
            }
            let place = self
                .places
                .entry(key.clone())
                .or_insert_with(|| Place::new(item.clone()));
            if place.item.asset != item.asset {
                place.staging = Place::new(item.clone()).staging;
            }
            place.item = item.clone();
            if desired.wants_instances(key) {
                for ordinal in 0..item.count {
                    place
                        .instances
                        .entry(ordinal)
                        .or_insert_with(|| Instance::new(now));
                }
            }
        }
        for (key, place) in &mut self.places {
            let wanted = desired.wants_instances(key);
            let count = place.item.count;
            place
                .instances
                .retain(|ordinal, instance| instance.may_live() || (wanted && *ordinal < count));
        }
        self.note_zeroes(now);
    }

    /// An action was ordered.
    pub fn begin(&mut self, action: &Action) {
        match action {
            Action::Stage { place } => {
                if let Some(place) = self.places.get_mut(place)
                    && let Staging::Missing { attempts, .. } = place.staging
                {
                    place.staging = Staging::Underway { attempts };
                }
            }
            Action::Start { instance } => self.with(instance, |i, _| i.launching()),
            Action::Probe { instance } => self.with(instance, |i, _| i.probing()),
            Action::Stop { instance } => self.with(instance, |i, _| i.stopping()),
            Action::Remove { place } => {
                if let Some(place) = self.places.get_mut(place) {
                    place.removing = true;
                }
            }
            Action::Route(_) => {}
        }
    }

    /// Takes in news.
    pub fn apply(&mut self, event: Event, now: Timestamp) {
        match event {
            Event::Staged { place } => {
                if let Some(place) = self.places.get_mut(&place) {
                    place.staging = Staging::Ready;
                }
            }
            Event::StageFailed {
                place,
                kind,
                message,
            } => self.stage_failed(&place, kind, message, now),
            Event::Started {
                instance,
                incarnation,
                pid,
                port,
            } => self.with(&instance, |i, settings| {
                i.started(incarnation, (pid, port), settings, now);
            }),
            Event::StartFailed {
                instance,
                incarnation,
                permanent,
                message,
            } => self.with(&instance, |i, settings| {
                if permanent {
                    i.unstartable(incarnation, message, now);
                } else {
                    i.exited(incarnation, message, settings, now);
                }
            }),
            Event::Exited {
                instance,
                incarnation,
                how,
            } => self.with(&instance, |i, s| i.exited(incarnation, how, s, now)),
            Event::Probed {
                instance,
                incarnation,
                sample,
            } => self.with(&instance, |i, s| i.probed(incarnation, sample, s, now)),
            Event::Stopped {
                instance,
                incarnation,
                how,
            } => self.with(&instance, |i, _| i.stopped(incarnation, how)),
            Event::Removed { place } => {
                self.places.remove(&place);
            }
            Event::Traffic(traffic) => {
                self.traffic = traffic;
                self.note_zeroes(now);
                self.note_resets(now);
            }
        }
    }

    fn stage_failed(
        &mut self,
        place: &PlaceKey,
        kind: Option<PermanentErrorKind>,
        message: String,
        now: Timestamp,
    ) {
        let Some(place) = self.places.get_mut(place) else {
            return;
        };
        let attempts = match place.staging {
            Staging::Missing { attempts, .. } | Staging::Underway { attempts } => attempts + 1,
            // It is there already: a second attempt that lost the race changes nothing.
            Staging::Ready | Staging::Refused(_) => return,
        };
        let permanent = kind.filter(|kind| match kind {
            PermanentErrorKind::AssetMissing => attempts >= MISSING_ATTEMPTS,
            PermanentErrorKind::DigestMismatch
            | PermanentErrorKind::DiskFull
            | PermanentErrorKind::PortTaken
            | PermanentErrorKind::MaxRestarts
            | PermanentErrorKind::UnsafeArchive
            | PermanentErrorKind::StartFailed
            | PermanentErrorKind::BadCertificate => true,
        });
        place.staging = match permanent {
            Some(kind) => Staging::Refused(PermanentError { kind, message }),
            None => Staging::Missing {
                attempts,
                retry_at: now + backoff(attempts - 1),
                error: Some(message),
            },
        };
    }

    /// Keeps since when each place holds no weight.
    fn note_zeroes(&mut self, now: Timestamp) {
        for (key, place) in &mut self.places {
            let version = self.traffic.version(key);
            let on_demand = version.is_some_and(|version| version.on_demand);
            match self.traffic.weight(key) {
                Some(Weight::ZERO) if !on_demand => {
                    place.zero_since = place.zero_since.or(Some(now))
                }
                Some(_) => place.zero_since = None,
                // What is not known does not shorten a drain, and does not lengthen one either.
                None => {}
            }
        }
    }

    /// Sees counters of the data plane that began again, and takes the first ones of an adopted
    /// instance as its base.
    fn note_resets(&mut self, now: Timestamp) {
        for (key, place) in &mut self.places {
            let Some(held) = self.traffic.version(key) else {
                continue;
            };
            for (ordinal, instance) in &mut place.instances {
                let Some(held) = held.instances.get(ordinal) else {
                    continue;
                };
                if held.stamp == instance.plane_stamp {
                    continue;
                }
                if instance.plane_stamp == Timestamp::ZERO {
                    instance.plane_stamp = held.stamp;
                    // Counted before this agent knew the instance.
                    if held.stamp < instance.stamp {
                        instance.base = held.counters.clone();
                    }
                } else {
                    instance.restamp(now, held.stamp, Counters::default());
                }
            }
        }
    }

    fn with(&mut self, key: &InstanceKey, act: impl FnOnce(&mut Instance, Settings<'_>)) {
        let Some(place) = self.places.get_mut(&key.place) else {
            return;
        };
        if let Some(instance) = place.instances.get_mut(&key.ordinal) {
            let settings = Settings {
                check: &place.item.health_check,
                max_restarts: place.item.max_restarts,
            };
            act(instance, settings);
        }
    }
}
