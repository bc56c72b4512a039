//! What has left the replicated state, on each node's disk: ended deployments and the audit log, in
//! one file of an embedded store.
//!
//! The replica hands rows over before it shows a state that lacks them ([`queue`]); commits are not
//! synced one by one. [`HistoryStore::sync`] makes everything so far durable, which the snapshot writer
//! waits for before its snapshot counts: what is lost in a crash comes again from the log behind
//! that snapshot. Rows come in an order without gaps (the audit chain, the numbers of deployments),
//! so writing one again changes nothing and a gap is noticed. The folder's files alone name the
//! engine; [`read`] holds the questions.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use redb::{
    Builder, Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table,
    TableDefinition, WriteTransaction,
};
use tidegate_coordinator_core::{ArchivedRow, Event, Extent, Past};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::DeploymentId;

use super::codec::{self, CodecError};

pub mod queue;
pub mod read;
#[cfg(test)]
mod tests;

/// The layout that this program writes.
const FORMAT: u64 = 1;
/// Pages that stay in memory.
const CACHE_BYTES: usize = 64 * 1024 * 1024;
/// What to do about a history that cannot be used.
const REMEDY: &str = "put the file back from a copy of this folder, or remove this coordinator from the cluster and join it anew with an empty folder: it then fetches the history";

/// Format, cluster.
const ABOUT: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("about");
/// Events by (index, ordinal).
const EVENTS: TableDefinition<'static, (u64, u32), &[u8]> = TableDefinition::new("events");
/// Positions of the events of a deployment.
const EVENTS_OF: TableDefinition<'static, (u128, u64, u32), ()> = TableDefinition::new("events_of");
/// Deployments by id.
const DEPLOYMENTS: TableDefinition<'static, u128, &[u8]> = TableDefinition::new("deployments");
/// Their ids by the numbers with which they left.
const NUMBERS: TableDefinition<'static, u64, u128> = TableDefinition::new("numbers");
/// By scope and id.
const OF_SCOPE: TableDefinition<'static, (&str, u128), ()> = TableDefinition::new("of_scope");
/// By scope and the revision that they were made with.
const MADE: TableDefinition<'static, (&str, u64), u128> = TableDefinition::new("made");
/// By application and id.
const OF_APPLICATION: TableDefinition<'static, (&str, u128), ()> =
    TableDefinition::new("of_application");
/// By short id and id.
const SHORT: TableDefinition<'static, (&str, u128), ()> = TableDefinition::new("short");

/// Why the history cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The engine or the disk refuses.
    #[error("the history {}: {reason}", path.display())]
    Engine {
        /// The file.
        path: PathBuf,
        /// The engine's answer.
        reason: String,
    },
    /// The file is no history, or not a whole one.
    #[error("the history {} is damaged: {reason}; {REMEDY}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The file belongs elsewhere.
    #[error("the history {} {reason}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// It lacks rows that have left the state.
    #[error("the history {} is incomplete: {reason}; {REMEDY}", path.display())]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// What it has and what it should have.
        reason: String,
    },
    /// A row does not follow the one before it.
    #[error("a row does not follow the last one of the history: {0}")]
    Gap(String),
    /// A row cannot be written or read.
    #[error("a row of the history: {0}")]
    Row(#[from] CodecError),
    /// The node is stopping.
    #[error("the history is closed")]
    Closed,
}

/// How far a history reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// Position of the last event; none: there is none.
    pub event: Option<(u64, u32)>,
    /// Its hash.
    pub hash: Option<Digest>,
    /// Number of the last deployment; 0: there is none.
    pub deployments: u64,
}

impl Tail {
    fn holds(&self, row: ArchivedRow<'_>) -> bool {
        match row {
            ArchivedRow::Event(event) => Some((event.index, event.ordinal)) <= self.event,
            ArchivedRow::Deployment(past) => past.number <= self.deployments,
        }
    }
}

struct Inner {
    path: PathBuf,
    database: RwLock<Option<Database>>,
    tail: Mutex<Tail>,
    queue: queue::Queue,
}

/// The history of one node. Cheap to clone; every call blocks, so none is made on an async thread.
#[derive(Clone)]
pub struct HistoryStore {
    inner: Arc<Inner>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HistoryStore {
    /// Opens the history at `path`, which has to hold what `needed` says of the entries up to an
    /// index. Only where nothing is needed yet is a missing file made.
    ///
    /// # Errors
    /// [`HistoryError`] in one line for whoever starts the node.
    pub fn open(
        path: &Path,
        cluster_id: &str,
        needed: Option<(Extent, u64)>,
    ) -> Result<HistoryStore, HistoryError> {
        let engine = |e: redb::Error| engine_error(path, e);
        if !path.exists() {
            if needed.is_some_and(|(extent, _)| extent != Extent::default()) {
                return Err(HistoryError::Incomplete {
                    path: path.to_owned(),
                    reason: "it is missing".to_owned(),
                });
            }
            create(path, cluster_id)?;
        }
        let database = Builder::new()
            .set_cache_size(CACHE_BYTES)
            .open(path)
            .map_err(|e| engine(e.into()))?;
        let store = HistoryStore {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                database: RwLock::new(Some(database)),
                tail: Mutex::default(),
                queue: queue::Queue::default(),
            }),
        };
        let tail = store.with(|database| read_about(path, database, cluster_id))?;
        *lock(&store.inner.tail) = tail;
        if let Some((extent, through)) = needed {
            store.check(extent, through)?;
        }
        Ok(store)
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, HistoryError>,
    ) -> Result<T, HistoryError> {
        let guard = self.inner.database.read();
        let guard = guard.unwrap_or_else(PoisonError::into_inner);
        work(guard.as_ref().ok_or(HistoryError::Closed)?)
    }

    fn engine(&self, error: impl Into<redb::Error>) -> HistoryError {
        engine_error(&self.inner.path, error.into())
    }

    /// How far it reaches, synced or not.
    ///
    /// # Errors
    /// [`HistoryError::Closed`] when rows that were handed over could not be written.
    pub fn tail(&self) -> Result<Tail, HistoryError> {
        self.inner.queue.settle()?;
        Ok(*lock(&self.inner.tail))
    }

    /// Writes rows that this node's own state machine gave out; those that are there already are
    /// passed over. Readers see them at once; a crash may lose them until the next
    /// [`Self::sync`].
    ///
    /// # Errors
    /// [`HistoryError::Gap`] when one is missing in between, or the disk's refusal; then nothing
    /// of `rows` is written.
    pub fn write<'a>(
        &self,
        rows: impl IntoIterator<Item = ArchivedRow<'a>>,
    ) -> Result<(), HistoryError> {
        self.append(rows, false)
    }

    /// As [`Self::write`], for rows that come from another member: each event's content is checked
    /// against its hash.
    ///
    /// # Errors
    /// As there; [`HistoryError::Gap`] also for an event that was changed.
    pub fn take_over<'a>(
        &self,
        rows: impl IntoIterator<Item = ArchivedRow<'a>>,
    ) -> Result<(), HistoryError> {
        self.append(rows, true)
    }

    fn append<'a>(
        &self,
        rows: impl IntoIterator<Item = ArchivedRow<'a>>,
        is_foreign: bool,
    ) -> Result<(), HistoryError> {
        // Held all along: there is one writer, and the next row must follow the last one.
        let mut tail = lock(&self.inner.tail);
        let before = *tail;
        let mut rows = rows
            .into_iter()
            .filter(|row| !before.holds(*row))
            .peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let after = self.with(|database| {
            let mut write = database.begin_write().map_err(|e| self.engine(e))?;
            write
                .set_durability(Durability::None)
                .map_err(|e| self.engine(e))?;
            let mut after = before;
            let mut tables = Tables::open(&write).map_err(|e| self.engine(e))?;
            for row in rows {
                if !after.holds(row) {
                    after = follow(after, row, is_foreign)?;
                    tables.put(row)?.map_err(|e| self.engine(e))?;
                }
            }
            drop(tables);
            write.commit().map_err(|e| self.engine(e))?;
            Ok(after)
        })?;
        *tail = after;
        Ok(())
    }

    /// Makes everything that was written so far durable. Rows that come meanwhile wait.
    ///
    /// # Errors
    /// The disk's refusal.
    pub fn sync(&self) -> Result<(), HistoryError> {
        self.inner.queue.settle()?;
        let tail = lock(&self.inner.tail);
        self.with(|database| {
            let mut write = database.begin_write().map_err(|e| self.engine(e))?;
            // After a crash the file opens at once, however large it is.
            write.set_quick_repair(true);
            let mark = tail.event.map_or(0, |(index, _)| index);
            let mut about = write.open_table(ABOUT).map_err(|e| self.engine(e))?;
            about
                .insert("synced", mark.to_be_bytes().as_slice())
                .map_err(|e| self.engine(e))?;
            drop(about);
            write.commit().map_err(|e| self.engine(e))
        })
    }

    /// Whether it holds what has left a state that includes entries up to `through`. It may hold
    /// more.
    ///
    /// # Errors
    /// [`HistoryError::Incomplete`] naming what is missing.
    pub fn check(&self, extent: Extent, through: u64) -> Result<(), HistoryError> {
        let incomplete = |reason: String| HistoryError::Incomplete {
            path: self.inner.path.clone(),
            reason,
        };
        let tail = self.tail()?;
        if tail.deployments < extent.deployments {
            return Err(incomplete(format!(
                "it holds {} of {} ended deployments",
                tail.deployments, extent.deployments
            )));
        }
        let (count, last) = self.events_through(through)?;
        if count < extent.events || (extent.events > 0 && last != extent.last_hash) {
            return Err(incomplete(format!(
                "its audit log of {count} events does not end in the event that the state names ({} events up to entry {through})",
                extent.events
            )));
        }
        Ok(())
    }

    /// Closes the file; every later call answers [`HistoryError::Closed`].
    pub fn close(&self) {
        let guard = self.inner.database.write();
        guard.unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn engine_error(path: &Path, error: redb::Error) -> HistoryError {
    let path = path.to_owned();
    match error {
        redb::Error::Corrupted(reason) => HistoryError::Damaged { path, reason },
        redb::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            HistoryError::Damaged {
                path,
                reason: error.to_string(),
            }
        }
        other => HistoryError::Engine {
            path,
            reason: other.to_string(),
        },
    }
}

/// Makes an empty history under another name first: a file of this name is whole.
fn create(path: &Path, cluster_id: &str) -> Result<(), HistoryError> {
    let io = |e: std::io::Error| engine_error(path, e.into());
    let engine = |e: redb::Error| engine_error(path, e);
    let temporary = path.with_extension("tmp");
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(e)),
        Ok(()) | Err(_) => {}
    }
    let database = Builder::new()
        .create(&temporary)
        .map_err(|e| engine(e.into()))?;
    let mut write = database.begin_write().map_err(|e| engine(e.into()))?;
    write.set_quick_repair(true);
    {
        drop(Tables::open(&write).map_err(&engine)?);
        drop(DeploymentTables::open(&write).map_err(&engine)?);
        let mut about = write.open_table(ABOUT).map_err(|e| engine(e.into()))?;
        about
            .insert("format", FORMAT.to_be_bytes().as_slice())
            .map_err(|e| engine(e.into()))?;
        about
            .insert("cluster", cluster_id.as_bytes())
            .map_err(|e| engine(e.into()))?;
    }
    write.commit().map_err(|e| engine(e.into()))?;
    drop(database);
    std::fs::rename(&temporary, path).map_err(io)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(io)
}

/// Checks whose history it is, and finds its end.
fn read_about(path: &Path, database: &Database, cluster_id: &str) -> Result<Tail, HistoryError> {
    let engine = |e: redb::Error| engine_error(path, e);
    let read = database.begin_read().map_err(|e| engine(e.into()))?;
    let about = read.open_table(ABOUT).map_err(|e| engine(e.into()))?;
    let text = |key: &str| -> Result<Vec<u8>, HistoryError> {
        let found = about.get(key).map_err(|e| engine(e.into()))?;
        Ok(found.map_or_else(Vec::new, |value| value.value().to_vec()))
    };
    let foreign = |reason: String| HistoryError::Foreign {
        path: path.to_owned(),
        reason,
    };
    if text("format")? != FORMAT.to_be_bytes() {
        return Err(foreign(
            "was written by a newer program: run that one".to_owned(),
        ));
    }
    let owner = String::from_utf8_lossy(&text("cluster")?).into_owned();
    if owner != cluster_id {
        return Err(foreign(format!(
            "belongs to cluster {owner}, this node to {cluster_id}"
        )));
    }
    let events = read.open_table(EVENTS).map_err(|e| engine(e.into()))?;
    let mut tail = Tail::default();
    if let Some((key, value)) = events.last().map_err(|e| engine(e.into()))? {
        let event: Event = codec::decode(value.value())?;
        tail.event = Some(key.value());
        tail.hash = Some(event.hash);
    }
    let numbers = read.open_table(NUMBERS).map_err(|e| engine(e.into()))?;
    if let Some((number, _)) = numbers.last().map_err(|e| engine(e.into()))? {
        tail.deployments = number.value();
    }
    if numbers.len().map_err(|e| engine(e.into()))? != tail.deployments {
        return Err(HistoryError::Damaged {
            path: path.to_owned(),
            reason: "its deployments are not numbered without gaps".to_owned(),
        });
    }
    Ok(tail)
}

/// The tail with one more row, which must be the next.
fn follow(tail: Tail, row: ArchivedRow<'_>, is_foreign: bool) -> Result<Tail, HistoryError> {
    match row {
        ArchivedRow::Event(event) => {
            let name = format!("event {}.{}", event.index, event.ordinal);
            if event.previous_hash != tail.hash.unwrap_or(Digest::ZERO) {
                return Err(HistoryError::Gap(name));
            }
            if is_foreign && event.computed_hash() != event.hash {
                return Err(HistoryError::Gap(format!(
                    "{name}: its content does not fit its hash"
                )));
            }
            Ok(Tail {
                event: Some((event.index, event.ordinal)),
                hash: Some(event.hash),
                ..tail
            })
        }
        ArchivedRow::Deployment(past) if past.number == tail.deployments + 1 => Ok(Tail {
            deployments: past.number,
            ..tail
        }),
        ArchivedRow::Deployment(past) => Err(HistoryError::Gap(format!(
            "deployment {} is number {}, the last one was {}",
            past.deployment.id, past.number, tail.deployments
        ))),
    }
}

fn key_of(id: DeploymentId) -> u128 {
    u128::from(id.ulid())
}

/// The tables of one write. Those of deployments are opened when one comes: most writes are events
/// alone.
struct Tables<'a> {
    write: &'a WriteTransaction,
    events: Table<'a, (u64, u32), &'static [u8]>,
    events_of: Table<'a, (u128, u64, u32), ()>,
    deployments: Option<DeploymentTables<'a>>,
}

struct DeploymentTables<'a> {
    deployments: Table<'a, u128, &'static [u8]>,
    numbers: Table<'a, u64, u128>,
    of_scope: Table<'a, (&'static str, u128), ()>,
    made: Table<'a, (&'static str, u64), u128>,
    of_application: Table<'a, (&'static str, u128), ()>,
    short: Table<'a, (&'static str, u128), ()>,
}

impl<'a> Tables<'a> {
    fn open(write: &'a WriteTransaction) -> Result<Tables<'a>, redb::Error> {
        Ok(Tables {
            write,
            events: write.open_table(EVENTS)?,
            events_of: write.open_table(EVENTS_OF)?,
            deployments: None,
        })
    }

    /// Writes a row; outside the row's own error, inside the engine's.
    fn put(&mut self, row: ArchivedRow<'_>) -> Result<Result<(), redb::Error>, CodecError> {
        match row {
            ArchivedRow::Event(event) => {
                let bytes = codec::encode(event)?;
                Ok(self.put_event(event, &bytes))
            }
            ArchivedRow::Deployment(past) => {
                let bytes = codec::encode(past)?;
                Ok(self.put_deployment(past, &bytes))
            }
        }
    }

    fn put_event(&mut self, event: &Event, bytes: &[u8]) -> Result<(), redb::Error> {
        self.events.insert((event.index, event.ordinal), bytes)?;
        if event.object_kind == "deployment"
            && let Ok(id) = event.object.parse::<DeploymentId>()
        {
            let key = (key_of(id), event.index, event.ordinal);
            self.events_of.insert(key, ())?;
        }
        Ok(())
    }

    fn put_deployment(&mut self, past: &Past, bytes: &[u8]) -> Result<(), redb::Error> {
        match &mut self.deployments {
            Some(tables) => tables.put(past, bytes),
            none => none
                .insert(DeploymentTables::open(self.write)?)
                .put(past, bytes),
        }
    }
}

impl<'a> DeploymentTables<'a> {
    fn open(write: &'a WriteTransaction) -> Result<DeploymentTables<'a>, redb::Error> {
        Ok(DeploymentTables {
            deployments: write.open_table(DEPLOYMENTS)?,
            numbers: write.open_table(NUMBERS)?,
            of_scope: write.open_table(OF_SCOPE)?,
            made: write.open_table(MADE)?,
            of_application: write.open_table(OF_APPLICATION)?,
            short: write.open_table(SHORT)?,
        })
    }

    fn put(&mut self, past: &Past, bytes: &[u8]) -> Result<(), redb::Error> {
        let deployment = &past.deployment;
        let id = key_of(deployment.id);
        let scope = deployment.origin.scope.as_str();
        let application = deployment.origin.application.as_str();
        self.deployments.insert(id, bytes)?;
        self.numbers.insert(past.number, id)?;
        self.of_scope.insert((scope, id), ())?;
        self.made.insert((scope, past.made), id)?;
        self.of_application.insert((application, id), ())?;
        self.short.insert((deployment.short.as_str(), id), ())?;
        Ok(())
    }
}
