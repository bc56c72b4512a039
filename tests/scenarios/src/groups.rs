//! Deployment groups, as scenarios say and see them.

use std::collections::BTreeSet;

use tidegate_coordinator_core::command::{
    ActOnGroup, AddToGroup, Command, CreateDeployments, CreateGroup, DecideGroup, OnConflict, Verb,
};
use tidegate_coordinator_core::group::view::view;
use tidegate_coordinator_core::state::{Group, GroupStatus, State};
use tidegate_coordinator_core::{Actor, Observed};
use tidegate_shared::id::{GroupId, Name, Version};
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{RolloutSpec, StrategySpec, parse_percent};
use tidegate_shared::time::Timestamp;
use tidegate_shared::weight::Weight;

/// What people say to groups.
#[derive(Debug, Clone)]
pub enum Saying {
    /// A new group.
    Create {
        /// Which release.
        version: Version,
        /// Where.
        scopes: Vec<Name>,
        /// How each.
        strategy: Option<Name>,
        /// `fail`, `queue`, `supersede`.
        on_conflict: OnConflict,
        /// How together, as JSON; empty: as the strategy has it.
        rollout: String,
    },
    /// A verb on one.
    Act {
        /// Which: `g1`, `g2` … in order of their creation.
        nth: usize,
        /// What.
        verb: Verb,
    },
    /// More scopes.
    Add {
        /// Which.
        nth: usize,
        /// Where.
        scopes: Vec<Name>,
    },
    /// A decision about all its members.
    Decide {
        /// Which.
        nth: usize,
        /// Yes or no.
        granted: bool,
        /// Whose.
        by: Name,
    },
    /// Prints it as people see it.
    Look(usize),
}

/// The number of a group such as `g1`.
pub fn nth(word: &str) -> Option<usize> {
    word.strip_prefix('g')?.parse().ok()
}

/// Whether a line speaks of a group: it makes one, or its second word names one.
pub fn is_about(first: &str, rest: &str) -> bool {
    let second = rest.split_whitespace().next();
    first == "group" || (first != "wait" && second.and_then(nth).is_some())
}

impl Saying {
    /// Reads a line that [`is_about`] a group.
    ///
    /// # Errors
    /// What is not understood.
    pub fn parse(first: &str, rest: &str) -> Result<Self, String> {
        let mut words = rest.split_whitespace();
        if first == "group" {
            return create(rest);
        }
        let nth = words
            .next()
            .and_then(nth)
            .ok_or("want a group such as g1")?;
        let rest: Vec<&str> = words.collect();
        let verb = |verb| Ok(Self::Act { nth, verb });
        match (first, rest.as_slice()) {
            ("add", scopes) if !scopes.is_empty() => Ok(Self::Add {
                nth,
                scopes: scopes
                    .iter()
                    .map(|scope| read(scope))
                    .collect::<Result<_, _>>()?,
            }),
            ("grant" | "deny", ["by", by]) => Ok(Self::Decide {
                nth,
                granted: first == "grant",
                by: read(by)?,
            }),
            ("look", []) => Ok(Self::Look(nth)),
            ("traffic", [percent]) => verb(Verb::Traffic(weight(percent)?)),
            ("pause", []) => verb(Verb::Pause),
            ("resume", []) => verb(Verb::Resume),
            ("promote", []) => verb(Verb::Promote),
            ("promote-full", []) => verb(Verb::PromoteFull),
            ("finalize", []) => verb(Verb::Finalize),
            ("cancel", []) => verb(Verb::Cancel),
            ("rollback", []) => verb(Verb::Rollback),
            ("retry", []) => verb(Verb::Retry),
            _ => Err(format!("\"{first}\" is nothing that is said to a group")),
        }
    }

    /// The command that says so, and who says it; none: it only looks.
    ///
    /// # Errors
    /// There is no such group, or its rollout cannot be read.
    pub fn command(&self, groups: &Groups) -> Result<Option<(Actor, Command)>, String> {
        let mut who: Name = read("admin")?;
        let command = match self {
            Self::Create {
                version,
                scopes,
                strategy,
                on_conflict,
                rollout,
            } => Command::CreateGroup(CreateGroup {
                name: None,
                deployments: CreateDeployments {
                    application: read("shop")?,
                    version: version.clone(),
                    scopes: scopes.clone(),
                    strategy: strategy.clone(),
                    overrides: StrategySpec::default(),
                    labels: Labels::new(),
                    on_conflict: *on_conflict,
                },
                rollout: match rollout.as_str() {
                    "" => None,
                    json => Some(rollout_spec(json)?),
                },
            }),
            Self::Act { nth, verb } => Command::ActOnGroup(ActOnGroup {
                group: groups.id(*nth)?,
                verb: *verb,
                expected_revision: None,
                reason: String::new(),
            }),
            Self::Add { nth, scopes } => Command::AddToGroup(AddToGroup {
                group: groups.id(*nth)?,
                scopes: scopes.clone(),
                expected_revision: None,
            }),
            Self::Decide { nth, granted, by } => {
                who = by.clone();
                Command::DecideGroup(DecideGroup {
                    group: groups.id(*nth)?,
                    granted: *granted,
                    reason: String::new(),
                    expected_revision: None,
                })
            }
            Self::Look(_) => return Ok(None),
        };
        Ok(Some((Actor::User(who), command)))
    }
}

fn create(rest: &str) -> Result<Saying, String> {
    let (words, rollout) = match rest.find('{') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let mut words = words.split_whitespace();
    let version = read(words.next().ok_or("a version is missing")?)?;
    let (mut scopes, mut strategy) = (Vec::new(), None);
    let mut on_conflict = OnConflict::Fail;
    while let Some(word) = words.next() {
        match word {
            "to" => {}
            "with" => strategy = Some(read(words.next().ok_or("a strategy is missing")?)?),
            "queue" => on_conflict = OnConflict::Queue,
            "supersede" => on_conflict = OnConflict::Supersede,
            scope => scopes.push(read(scope)?),
        }
    }
    Ok(Saying::Create {
        version,
        scopes,
        strategy,
        on_conflict,
        rollout: rollout.to_owned(),
    })
}

fn rollout_spec(json: &str) -> Result<RolloutSpec, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

fn weight(text: &str) -> Result<Weight, String> {
    parse_percent(text).ok_or_else(|| format!("\"{text}\" is no percentage"))
}

fn read<T: std::str::FromStr>(word: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    word.parse().map_err(|error: T::Err| error.to_string())
}

/// The groups of a story in order of their creation, with what was last told of each.
#[derive(Debug, Clone, Default)]
pub struct Groups {
    ids: Vec<GroupId>,
}

impl Groups {
    /// The id of `g1`, `g2` …
    ///
    /// # Errors
    /// There is none yet.
    pub fn id(&self, nth: usize) -> Result<GroupId, String> {
        let id = nth.checked_sub(1).and_then(|index| self.ids.get(index));
        id.copied().ok_or_else(|| format!("there is no g{nth} yet"))
    }

    /// Whether a group has a status, or has ended where that is what is waited for.
    ///
    /// # Errors
    /// There is none yet, or it ended otherwise.
    pub fn is(&self, state: &State, nth: usize, wanted: &str) -> Result<bool, String> {
        let group = state
            .group(self.id(nth)?)
            .map_err(|error| error.to_string())?;
        let status = group.status(state);
        if wanted == "end" {
            return Ok(group.closed.is_some());
        }
        if group.closed.is_some() && status.as_str() != wanted {
            return Err(format!("g{nth} ended {status}"));
        }
        Ok(status.as_str() == wanted)
    }

    /// What changed with groups, one line each.
    pub fn changes(&mut self, before: &State, after: &State) -> Vec<String> {
        let mut lines = Vec::new();
        for (id, group) in &after.groups {
            if !self.ids.contains(id) {
                self.ids.push(*id);
            }
            let name = self.name(*id);
            let status = shown(after, group);
            match before.groups.get(id) {
                None => lines.push(format!(
                    "{name} {status}: {} to {} scopes, {}",
                    group.version,
                    group.members.len(),
                    group.rollout.kind.as_str()
                )),
                Some(old) => {
                    let mut parts = changed(old, group);
                    if shown(before, old) != status {
                        parts.insert(0, status);
                    }
                    if !parts.is_empty() {
                        lines.push(format!("{name} {}", parts.join(", ")));
                    }
                }
            }
        }
        lines
    }

    fn name(&self, id: GroupId) -> String {
        let position = self.ids.iter().position(|known| *known == id);
        position.map_or("g?".to_owned(), |position| format!("g{}", position + 1))
    }

    /// A text with ids of groups exchanged for names.
    pub fn in_text(&self, state: &State, text: &str) -> String {
        let mut text = text.to_owned();
        for id in &self.ids {
            let name = self.name(*id);
            if let Some(group) = state.groups.get(id) {
                text = text.replace(group.short.as_str(), &name);
            }
            text = text.replace(&id.to_string(), &name);
        }
        text
    }

    /// A group as people see it: a line for itself, and one for each member.
    ///
    /// # Errors
    /// There is none yet.
    pub fn look(
        &self,
        state: &State,
        observed: &Observed,
        now: Timestamp,
        nth: usize,
    ) -> Result<Vec<String>, String> {
        let group = state
            .group(self.id(nth)?)
            .map_err(|error| error.to_string())?;
        let found = view(state, observed, now, group);
        let mut first = vec![shown(state, group)];
        if let Some(budget) = found.budget {
            let (failures, allowed) = (found.failures, budget.allowed);
            let exceeded = if budget.exceeded { ", exceeded" } else { "" };
            first.push(format!("{failures} failures of {allowed} borne{exceeded}"));
        }
        if !found.why.is_empty() {
            first.push(found.why);
        }
        let mut lines = vec![format!("  g{nth}: {}", first.join("; "))];
        for member in found.members {
            let mut parts = vec![member.status.to_string()];
            if !member.wave.is_empty() {
                parts.push(format!("wave {}", member.wave));
            }
            if let Some(due) = member.due {
                parts.push(format!("due {due}"));
            }
            if !member.waiting_for.is_empty() {
                parts.push(member.waiting_for);
            }
            lines.push(format!("    {}: {}", member.scope, parts.join("; ")));
        }
        Ok(lines)
    }
}

fn shown(state: &State, group: &Group) -> String {
    let status: GroupStatus = group.status(state);
    match group.closed.as_ref() {
        Some(closed) => {
            let outcome = closed
                .outcome
                .map(|outcome| format!(" ({})", outcome.as_str()));
            format!(
                "{status}{}: {}",
                outcome.unwrap_or_default(),
                closed.message
            )
        }
        None => status.to_string(),
    }
}

fn changed(old: &Group, new: &Group) -> Vec<String> {
    let mut parts = Vec::new();
    if old.begun_at.is_none() && new.begun_at.is_some() {
        let order = new.in_order().map(|(_, member)| member.scope.as_str());
        parts.push(format!("order {}", order.collect::<Vec<_>>().join(" ")));
        let waves = new.waves.iter().map(|wave| match wave.name.as_str() {
            "" => format!("rest {}", wave.members),
            name => format!("{name} {}", wave.members),
        });
        let waves: Vec<String> = waves.collect();
        if !waves.is_empty() {
            parts.push(format!("waves {}", waves.join(", ")));
        }
    } else if old.members.len() < new.members.len() {
        let known: BTreeSet<&Name> = old.scopes.keys().collect();
        let more = new.members.values().map(|member| &member.scope);
        let more = more.filter(|scope| !known.contains(scope));
        let more: Vec<&str> = more.map(Name::as_str).collect();
        parts.push(format!("more members: {}", more.join(" ")));
    }
    if old.open_wave != new.open_wave {
        parts.push(format!(
            "opens {}",
            tidegate_coordinator_core::group::wave_name(new, new.open_wave)
        ));
    }
    if old.tally.failures != new.tally.failures {
        parts.push(format!("{} failed", new.tally.failures));
    }
    match (&old.halted, &new.halted) {
        (None, Some(halted)) => {
            parts.push(format!("halted ({}): {}", halted.kind, halted.message));
        }
        (Some(_), None) => parts.push("no longer halted".to_owned()),
        (None, None) | (Some(_), Some(_)) => {}
    }
    match (&old.paused, &new.paused) {
        (None, Some(paused)) => parts.push(format!("paused by {}", paused.by)),
        (Some(_), None) => parts.push("resumed".to_owned()),
        (None, None) | (Some(_), Some(_)) => {}
    }
    parts
}
