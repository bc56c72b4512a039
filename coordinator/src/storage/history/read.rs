//! Questions to the history. Each opens a view of its own, so writing goes on meanwhile.
//!
//! `through` is the index that the caller's state includes: rows that left later are still in that
//! state, or were not there yet, and are not answered.

use std::ops::Bound;

use redb::{ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata};
use tidegate_coordinator_core::{Archived, ArchivedRow, Event, Past};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{DeploymentId, Name, ShortId};
use ulid::Ulid;

use super::{
    DEPLOYMENTS, EVENTS, EVENTS_OF, HistoryError, HistoryStore, MADE, NUMBERS, OF_APPLICATION,
    OF_SCOPE, SHORT, Tail, key_of,
};
use crate::storage::codec;

/// Which deployments are asked for; without either, all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this scope.
    pub scope: Option<Name>,
    /// Of this application.
    pub application: Option<Name>,
}

impl Filter {
    fn fits(&self, past: &Past) -> bool {
        let origin = &past.deployment.origin;
        self.scope
            .as_ref()
            .is_none_or(|scope| *scope == origin.scope)
            && self
                .application
                .as_ref()
                .is_none_or(|application| *application == origin.application)
    }
}

/// A row on its way to another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shipped {
    /// An encoded event.
    Event(Vec<u8>),
    /// An encoded deployment.
    Deployment(Vec<u8>),
}

impl Shipped {
    /// Reads the row.
    ///
    /// # Errors
    /// Its bytes are no such row.
    pub fn open(&self) -> Result<Archived, HistoryError> {
        Ok(match self {
            Shipped::Event(bytes) => Archived::Event(Box::new(codec::decode(bytes)?)),
            Shipped::Deployment(bytes) => Archived::Deployment(Box::new(codec::decode(bytes)?)),
        })
    }

    fn length(&self) -> usize {
        match self {
            Shipped::Event(bytes) | Shipped::Deployment(bytes) => bytes.len(),
        }
    }
}

impl HistoryStore {
    fn reading<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<Result<T, HistoryError>, redb::Error>,
    ) -> Result<T, HistoryError> {
        self.inner.queue.settle()?;
        self.with(|database| {
            let read = database.begin_read().map_err(|e| self.engine(e))?;
            work(&read).map_err(|e| self.engine(e))?
        })
    }

    /// How many events there are in all, and the hash of the last one up to an entry.
    pub(super) fn events_through(
        &self,
        through: u64,
    ) -> Result<(u64, Option<Digest>), HistoryError> {
        self.reading(|read| {
            let events = read.open_table(EVENTS)?;
            let count = events.len()?;
            let last = events.range(..=(through, u32::MAX))?.next_back();
            let Some((_, value)) = last.transpose()? else {
                return Ok(Ok((count, None)));
            };
            let event = codec::decode::<Event>(value.value());
            Ok(event
                .map(|event| (count, Some(event.hash)))
                .map_err(Into::into))
        })
    }

    /// Events behind a position, oldest first.
    ///
    /// # Errors
    /// The disk's refusal, or damage.
    pub fn events(
        &self,
        after: Option<(u64, u32)>,
        through: u64,
        limit: usize,
    ) -> Result<Vec<Event>, HistoryError> {
        self.reading(|read| {
            let events = read.open_table(EVENTS)?;
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            let range = events.range((from, Bound::Included((through, u32::MAX))))?;
            let mut found = Vec::new();
            for row in range.take(limit) {
                match codec::decode(row?.1.value()) {
                    Ok(event) => found.push(event),
                    Err(error) => return Ok(Err(error.into())),
                }
            }
            Ok(Ok(found))
        })
    }

    /// Events before a position, newest first.
    ///
    /// # Errors
    /// The disk's refusal, or damage.
    pub fn events_before(
        &self,
        before: Option<(u64, u32)>,
        through: u64,
        limit: usize,
    ) -> Result<Vec<Event>, HistoryError> {
        self.reading(|read| {
            let events = read.open_table(EVENTS)?;
            let last = (through, u32::MAX);
            let to = match before {
                Some(before) if before <= last => Bound::Excluded(before),
                Some(_) | None => Bound::Included(last),
            };
            let mut found = Vec::new();
            for row in events
                .range::<(u64, u32)>((Bound::Unbounded, to))?
                .rev()
                .take(limit)
            {
                match codec::decode(row?.1.value()) {
                    Ok(event) => found.push(event),
                    Err(error) => return Ok(Err(error.into())),
                }
            }
            Ok(Ok(found))
        })
    }

    /// Events of one deployment behind a position, oldest first.
    ///
    /// # Errors
    /// The disk's refusal, or damage.
    pub fn events_of(
        &self,
        id: DeploymentId,
        after: Option<(u64, u32)>,
        through: u64,
        limit: usize,
    ) -> Result<Vec<Event>, HistoryError> {
        self.reading(|read| {
            let events = read.open_table(EVENTS)?;
            let positions = read.open_table(EVENTS_OF)?;
            let key = key_of(id);
            let from = match after {
                Some((index, ordinal)) => Bound::Excluded((key, index, ordinal)),
                None => Bound::Included((key, 0, 0)),
            };
            let to = Bound::Included((key, through, u32::MAX));
            let mut found = Vec::new();
            for row in positions.range((from, to))?.take(limit) {
                let (_, index, ordinal) = row?.0.value();
                let Some(value) = events.get((index, ordinal))? else {
                    continue;
                };
                match codec::decode(value.value()) {
                    Ok(event) => found.push(event),
                    Err(error) => return Ok(Err(error.into())),
                }
            }
            Ok(Ok(found))
        })
    }

    /// One deployment.
    ///
    /// # Errors
    /// The disk's refusal, or damage.
    pub fn deployment(&self, id: DeploymentId) -> Result<Option<Past>, HistoryError> {
        self.reading(|read| {
            let deployments = read.open_table(DEPLOYMENTS)?;
            let value = deployments.get(key_of(id))?;
            Ok(value
                .map(|value| codec::decode(value.value()))
                .transpose()
                .map_err(Into::into))
        })
    }

    /// The newest deployment of a short id.
    ///
    /// # Errors
    /// The disk's refusal.
    pub fn by_short(&self, short: &ShortId) -> Result<Option<DeploymentId>, HistoryError> {
        self.reading(|read| {
            let table = read.open_table(SHORT)?;
            let short = short.as_str();
            let mut range = table.range((short, 0)..=(short, u128::MAX))?;
            let last = range.next_back().transpose()?;
            Ok(Ok(last.map(|(key, _)| id_of(key.value().1))))
        })
    }

    /// Deployments, newest first by id, older than `before`.
    ///
    /// # Errors
    /// The disk's refusal, or damage.
    pub fn deployments(
        &self,
        filter: &Filter,
        before: Option<u128>,
        through: u64,
        limit: usize,
    ) -> Result<Vec<Past>, HistoryError> {
        let Some(most) = before.map_or(Some(u128::MAX), |before| before.checked_sub(1)) else {
            return Ok(Vec::new());
        };
        self.reading(|read| {
            let rows = read.open_table(DEPLOYMENTS)?;
            let mut page = Page::new(through, limit);
            if let Some(scope) = &filter.scope {
                let ids = read.open_table(OF_SCOPE)?;
                let range = ids.range((scope.as_str(), 0)..=(scope.as_str(), most))?;
                for row in range.rev() {
                    if !page.add(&rows, row?.0.value().1, filter)? {
                        break;
                    }
                }
            } else if let Some(application) = &filter.application {
                let ids = read.open_table(OF_APPLICATION)?;
                let range = ids.range((application.as_str(), 0)..=(application.as_str(), most))?;
                for row in range.rev() {
                    if !page.add(&rows, row?.0.value().1, filter)? {
                        break;
                    }
                }
            } else {
                for row in rows.range(..=most)?.rev() {
                    if !page.take(row?.1.value(), filter) {
                        break;
                    }
                }
            }
            Ok(page.found)
        })
    }

    /// Deployments of a scope, newest first by the revision that they were made with, made before
    /// `before`.
    ///
    /// # Errors
    /// The disk's refusal, or damage.
    pub fn of_scope(
        &self,
        scope: &Name,
        before: Option<u64>,
        through: u64,
        limit: usize,
    ) -> Result<Vec<Past>, HistoryError> {
        let Some(most) = before.map_or(Some(u64::MAX), |before| before.checked_sub(1)) else {
            return Ok(Vec::new());
        };
        self.reading(|read| {
            let rows = read.open_table(DEPLOYMENTS)?;
            let made = read.open_table(MADE)?;
            let mut page = Page::new(through, limit);
            let range = made.range((scope.as_str(), 0)..=(scope.as_str(), most))?;
            for row in range.rev() {
                if !page.add(&rows, row?.1.value(), &Filter::default())? {
                    break;
                }
            }
            Ok(page.found)
        })
    }

    /// The next rows for a member whose history reaches to `tail`, at least one and about as many
    /// bytes as asked for; empty: it has everything up to `through`.
    ///
    /// # Errors
    /// The disk's refusal, or damage.
    pub fn behind(
        &self,
        tail: Tail,
        through: u64,
        bytes: usize,
    ) -> Result<Vec<Shipped>, HistoryError> {
        self.reading(|read| {
            let mut found = Vec::new();
            let mut size = 0;
            let events = read.open_table(EVENTS)?;
            let from = tail.event.map_or(Bound::Unbounded, Bound::Excluded);
            for row in events.range((from, Bound::Included((through, u32::MAX))))? {
                let row = Shipped::Event(row?.1.value().to_vec());
                size += row.length();
                found.push(row);
                if size >= bytes {
                    return Ok(Ok(found));
                }
            }
            let numbers = read.open_table(NUMBERS)?;
            let rows = read.open_table(DEPLOYMENTS)?;
            for row in numbers.range(tail.deployments.saturating_add(1)..)? {
                let Some(value) = rows.get(row?.1.value())? else {
                    break;
                };
                let past: Past = match codec::decode(value.value()) {
                    Ok(past) => past,
                    Err(error) => return Ok(Err(error.into())),
                };
                if past.index > through {
                    break;
                }
                let row = Shipped::Deployment(value.value().to_vec());
                size += row.length();
                found.push(row);
                if size >= bytes {
                    break;
                }
            }
            Ok(Ok(found))
        })
    }
}

impl Tail {
    /// The tail of whoever has got `row` too.
    #[must_use]
    pub fn with(self, row: ArchivedRow<'_>) -> Tail {
        match row {
            ArchivedRow::Event(event) => Tail {
                event: Some((event.index, event.ordinal)),
                hash: Some(event.hash),
                ..self
            },
            ArchivedRow::Deployment(past) => Tail {
                deployments: past.number,
                ..self
            },
        }
    }
}

fn id_of(key: u128) -> DeploymentId {
    DeploymentId::new(Ulid::from(key))
}

/// Rows of one answer.
struct Page {
    through: u64,
    limit: usize,
    found: Result<Vec<Past>, HistoryError>,
}

impl Page {
    fn new(through: u64, limit: usize) -> Page {
        Page {
            through,
            limit,
            found: Ok(Vec::new()),
        }
    }

    /// Adds the deployment of an id; whether more may come.
    fn add(
        &mut self,
        rows: &impl ReadableTable<u128, &'static [u8]>,
        id: u128,
        filter: &Filter,
    ) -> Result<bool, redb::Error> {
        Ok(match rows.get(id)? {
            Some(value) => self.take(value.value(), filter),
            None => true,
        })
    }

    fn take(&mut self, bytes: &[u8], filter: &Filter) -> bool {
        let Ok(found) = &mut self.found else {
            return false;
        };
        if found.len() >= self.limit {
            return false;
        }
        match codec::decode::<Past>(bytes) {
            Ok(past) => {
                if past.index <= self.through && filter.fits(&past) {
                    found.push(past);
                }
                found.len() < self.limit
            }
            Err(error) => {
                self.found = Err(error.into());
                false
            }
        }
    }
}
