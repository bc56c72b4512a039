//! A state as snapshots hold it: piece by piece, with what many deployments have in common written
//! once.
//!
//! [`pieces`] takes a state apart, an [`Assembly`] puts it together again, and what was written once
//! is then held once. How a piece becomes bytes is the shell's. Nothing but snapshots is written so:
//! in the log and in the history every row says all of itself.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{DeploymentId, Name, Version};
use tidegate_shared::spec::{AssetSpec, HealthCheck, ScopeSpec, Strategy};

use super::{
    Deployment, Indexed, Link, Origin, Remembered, ResolvedParameter, Scope, State, Table,
};
use crate::command::{Actor, OnConflict, RequestKey};

/// From this cluster level on snapshots are packed, and of the planner's requests only the newest
/// are remembered. Below it some member could not read them.
pub const PACKED_LEVEL: u32 = 4;

/// Rows of one piece.
const ROWS: usize = 1_000;

/// How many of the parts that were met last a new one is compared with. One that is written again
/// costs its bytes and nothing else.
const WINDOW: usize = 32;

type Parameters = Table<String, ResolvedParameter>;

/// A part of a state. Scopes come before deployments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Piece {
    /// Everything that the other pieces do not hold; comes first.
    Base(Box<State>),
    /// Scopes, in order.
    Scopes(Vec<(Name, Arc<Scope>)>),
    /// Deployments, in order.
    Deployments(Box<Deployments>),
    /// Remembered requests, in order.
    Requests(Vec<(RequestKey, Arc<Remembered>)>),
}

/// Deployments, with the parts that no piece before this one has named. Parts are numbered from 0
/// through all pieces.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployments {
    makes: Vec<Arc<Make>>,
    scope_specs: Vec<Arc<ScopeSpec>>,
    parameters: Vec<Parameters>,
    rows: Vec<Deployment<PackedOrigin>>,
}

/// What deployments of one release with one strategy have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Make {
    application: Name,
    version: Version,
    release_digest: Digest,
    asset: Arc<AssetSpec>,
    health_check: Arc<HealthCheck>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    strategy_name: Option<Name>,
    strategy: Arc<Strategy>,
    on_conflict: OnConflict,
    fast: bool,
    forced: bool,
}

/// An [`Origin`] by the numbers of its parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PackedOrigin {
    scope: Name,
    make: u32,
    /// None: as the scope is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope_spec: Option<u32>,
    /// None: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parameters: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link: Option<Link>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    auto: Option<Actor>,
}

/// Pieces that are no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unpackable {
    /// Nothing says what the cluster is.
    #[error("its base is missing")]
    NoBase,
    /// A deployment names a part that did not come before it.
    #[error("deployment {0} is made of a part that is missing")]
    NoPart(DeploymentId),
}

/// Whether every member can read a packed snapshot of this state.
pub fn is_packed(state: &State) -> bool {
    state.is_at(PACKED_LEVEL)
}

/// All of a state, in order; each piece is made when it is asked for.
pub fn pieces(state: &State) -> impl Iterator<Item = Piece> {
    let base = State {
        scopes: Indexed::new(),
        deployments: Indexed::new(),
        requests: Table::new(),
        ..state.clone()
    };
    let scopes = chunked(state.scopes.shared(), |rows| {
        Piece::Scopes(rows.map(|(key, row)| (key.clone(), row.clone())).collect())
    });
    let mut parts = Parts::default();
    let deployments = chunked(state.deployments.shared(), move |rows| {
        Piece::Deployments(Box::new(parts.packed(state, rows.map(|(_, row)| row))))
    });
    let requests = chunked(state.requests.shared(), |rows| {
        Piece::Requests(rows.map(|(key, row)| (*key, row.clone())).collect())
    });
    std::iter::once(Piece::Base(Box::new(base)))
        .chain(scopes)
        .chain(deployments)
        .chain(requests)
}

/// A piece for every so many rows; none for none.
fn chunked<I: Iterator>(
    rows: I,
    mut piece: impl FnMut(&mut dyn Iterator<Item = I::Item>) -> Piece,
) -> impl Iterator<Item = Piece> {
    let mut rows = rows.peekable();
    std::iter::from_fn(move || {
        rows.peek()?;
        Some(piece(&mut rows.by_ref().take(ROWS)))
    })
}

/// Parts that have been named so far.
#[derive(Default)]
struct Parts {
    makes: Pool<Arc<Make>>,
    scope_specs: Pool<Arc<ScopeSpec>>,
    parameters: Pool<Parameters>,
}

impl Parts {
    fn packed<'a>(
        &mut self,
        state: &State,
        rows: impl Iterator<Item = &'a Arc<Deployment>>,
    ) -> Deployments {
        let rows = rows.map(|row| Deployment::clone(row).with_origin(|o| self.origin(state, &o)));
        let rows = rows.collect();
        Deployments {
            makes: std::mem::take(&mut self.makes.new),
            scope_specs: std::mem::take(&mut self.scope_specs.new),
            parameters: std::mem::take(&mut self.parameters.new),
            rows,
        }
    }

    fn origin(&mut self, state: &State, origin: &Origin) -> PackedOrigin {
        let make = self
            .makes
            .place(|make| make.is_of(origin), || Arc::new(Make::of(origin)));
        let spec = &origin.scope_spec;
        let scope = state.scopes.get(&origin.scope);
        let is_present = scope.is_some_and(|scope| scope.spec == *spec);
        let scope_spec = (!is_present).then(|| {
            self.scope_specs
                .place(|known| known == spec, || spec.clone())
        });
        let own = &origin.parameters;
        let parameters =
            (!own.is_empty()).then(|| self.parameters.place(|known| known == own, || own.clone()));
        PackedOrigin {
            scope: origin.scope.clone(),
            make,
            scope_spec,
            parameters,
            link: origin.link.clone(),
            auto: origin.auto.clone(),
        }
    }
}

/// Parts of one kind.
struct Pool<T> {
    /// Not written yet.
    new: Vec<T>,
    /// The last ones that were named, with their numbers; the last first.
    recent: VecDeque<(u32, T)>,
    next: u32,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self {
            new: Vec::new(),
            recent: VecDeque::new(),
            next: 0,
        }
    }
}

impl<T: Clone> Pool<T> {
    /// The number of a part.
    fn place(&mut self, is_it: impl Fn(&T) -> bool, made: impl FnOnce() -> T) -> u32 {
        if let Some(at) = self.recent.iter().position(|(_, part)| is_it(part)) {
            self.recent.swap(0, at);
            return self.recent.front().map_or(0, |(number, _)| *number);
        }
        let (part, number) = (made(), self.next);
        self.next += 1;
        self.new.push(part.clone());
        self.recent.truncate(WINDOW - 1);
        self.recent.push_front((number, part));
        number
    }
}

impl Make {
    fn of(origin: &Origin) -> Self {
        Self {
            application: origin.application.clone(),
            version: origin.version.clone(),
            release_digest: origin.release_digest,
            asset: origin.asset.clone(),
            health_check: origin.health_check.clone(),
            strategy_name: origin.strategy_name.clone(),
            strategy: origin.strategy.clone(),
            on_conflict: origin.on_conflict,
            fast: origin.fast,
            forced: origin.forced,
        }
    }

    fn is_of(&self, origin: &Origin) -> bool {
        self.version == origin.version
            && self.fast == origin.fast
            && self.forced == origin.forced
            && self.on_conflict == origin.on_conflict
            && self.release_digest == origin.release_digest
            && self.application == origin.application
            && self.strategy_name == origin.strategy_name
            && self.strategy == origin.strategy
            && self.asset == origin.asset
            && self.health_check == origin.health_check
    }
}

/// A state that is put together from its pieces, in the order in which they were made.
#[derive(Debug, Default)]
pub struct Assembly {
    base: Option<Box<State>>,
    scopes: Table<Name, Scope>,
    deployments: Table<DeploymentId, Deployment>,
    requests: Table<RequestKey, Remembered>,
    makes: Vec<Arc<Make>>,
    scope_specs: Vec<Arc<ScopeSpec>>,
    parameters: Vec<Parameters>,
}

impl Assembly {
    /// Adds the next piece.
    ///
    /// # Errors
    /// [`Unpackable::NoPart`].
    pub fn add(&mut self, piece: Piece) -> Result<(), Unpackable> {
        match piece {
            Piece::Base(base) => self.base = Some(base),
            Piece::Scopes(rows) => {
                for (key, row) in rows {
                    self.scopes.insert_shared(key, row);
                }
            }
            Piece::Deployments(piece) => {
                self.makes.extend(piece.makes);
                self.scope_specs.extend(piece.scope_specs);
                self.parameters.extend(piece.parameters);
                for row in piece.rows {
                    let id = row.id;
                    let origin = self.origin(&row.origin).ok_or(Unpackable::NoPart(id))?;
                    let row = row.with_origin(|_| Arc::new(origin));
                    self.deployments.insert(id, row);
                }
            }
            Piece::Requests(rows) => {
                for (key, row) in rows {
                    self.requests.insert_shared(key, row);
                }
            }
        }
        Ok(())
    }

    fn origin(&self, packed: &PackedOrigin) -> Option<Origin> {
        let make = self.makes.get(packed.make as usize)?;
        let scope_spec = match packed.scope_spec {
            Some(number) => self.scope_specs.get(number as usize)?,
            None => &self.scopes.get(&packed.scope)?.spec,
        };
        let parameters = match packed.parameters {
            Some(number) => self.parameters.get(number as usize)?.clone(),
            None => Parameters::new(),
        };
        Some(Origin {
            application: make.application.clone(),
            version: make.version.clone(),
            release_digest: make.release_digest,
            scope: packed.scope.clone(),
            scope_spec: scope_spec.clone(),
            asset: make.asset.clone(),
            health_check: make.health_check.clone(),
            strategy_name: make.strategy_name.clone(),
            strategy: make.strategy.clone(),
            parameters,
            on_conflict: make.on_conflict,
            fast: make.fast,
            forced: make.forced,
            link: packed.link.clone(),
            auto: packed.auto.clone(),
        })
    }

    /// The state.
    ///
    /// # Errors
    /// [`Unpackable::NoBase`].
    pub fn finish(self) -> Result<State, Unpackable> {
        let base = self.base.ok_or(Unpackable::NoBase)?;
        Ok(State {
            scopes: self.scopes.into(),
            deployments: self.deployments.into(),
            requests: self.requests,
            ..*base
        })
    }
}

#[cfg(test)]
mod tests;
