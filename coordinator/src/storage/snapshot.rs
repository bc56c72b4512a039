//! Snapshot files: the state at one index of the log, checked chunk by chunk.
//!
//! A file is a magic, then frames `length u32 · crc u32 · kind u8 · payload`: one head
//! ([`SnapshotHead`]), chunks of the encoded state, one end. The checksum is seeded with the
//! frame's ordinal, so frames cannot change places. Files are written under a temporary name,
//! synced, renamed, and the folder synced; the newest two are kept, so a damaged newest one costs
//! only a longer replay. The state itself is opaque here: bytes through `Read` and `Write`.

use std::io::{self, Read, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidegate_coordinator_core::Extent;

use super::codec::{self, CodecError};
use super::disk::{Disk, DiskFile};
use super::log::{Mark, Membership};

const MAGIC: [u8; 8] = *b"TGSNAP\0\x01";
const FRAME_HEAD: usize = 9;
const CHUNK: usize = 256 * 1024;
const MAX_FRAME: usize = 1 << 20;
const HEAD_FRAME: u8 = 1;
const STATE_FRAME: u8 = 2;
const END_FRAME: u8 = 3;
const KEPT: usize = 2;

/// The head of a snapshot file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotHead {
    /// The cluster's ULID as text.
    pub cluster_id: String,
    /// The last entry that the state includes.
    pub mark: Mark,
    /// Who replicated the log at that entry.
    pub membership: Membership,
    /// What the history has to hold beside the state; none: nothing has left it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<Extent>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    state_bytes: u64,
}

/// A complete snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// The file's name in the store.
    pub name: String,
    /// What its head says.
    pub head: SnapshotHead,
    /// Its length in bytes.
    pub length: u64,
}

/// Why a snapshot cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The disk refused.
    #[error("cannot {action} snapshot {file}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file's name.
        file: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The file is damaged or incomplete.
    #[error("snapshot {file} is damaged: {reason}")]
    Damaged {
        /// The file's name.
        file: String,
        /// What does not fit.
        reason: String,
    },
    /// It belongs to another cluster, or is not the one that was announced.
    #[error("snapshot {file} is not the expected one: {reason}")]
    Foreign {
        /// The file's name.
        file: String,
        /// What differs.
        reason: String,
    },
    /// The state in it cannot be read or written.
    #[error("the state in the snapshot: {0}")]
    State(#[from] CodecError),
}

fn io_error(action: &'static str, file: &str) -> impl FnOnce(io::Error) -> SnapshotError {
    let file = file.to_owned();
    move |source| SnapshotError::Io {
        action,
        file,
        source,
    }
}

pub(crate) fn file_name(mark: Mark) -> String {
    format!("{:016x}-{:016x}.snapshot", mark.index, mark.term)
}

/// The last entry of the snapshot of this name.
#[must_use]
pub fn mark_of(name: &str) -> Option<Mark> {
    let (index, term) = name.strip_suffix(".snapshot")?.split_once('-')?;
    Some(Mark {
        index: u64::from_str_radix(index, 16).ok()?,
        term: u64::from_str_radix(term, 16).ok()?,
    })
}

/// The snapshots of one node.
#[derive(Clone)]
pub struct SnapshotStore {
    disk: Arc<dyn Disk>,
    cluster_id: Arc<str>,
}

impl SnapshotStore {
    /// The store in `disk`; snapshots of other clusters than `cluster_id` are refused.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, cluster_id: &str) -> SnapshotStore {
        SnapshotStore {
            disk,
            cluster_id: Arc::from(cluster_id),
        }
    }

    /// Names of complete files, newest first. Temporary files of an earlier life are removed.
    fn names(&self) -> Result<Vec<String>, SnapshotError> {
        let mut names = Vec::new();
        for name in self.disk.list().map_err(io_error("list", "folder"))? {
            if name.ends_with(".snapshot") {
                names.push(name);
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(names)
    }

    /// Removes what an interrupted write or transfer left; called once, at start.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn remove_leftovers(&self) -> Result<(), SnapshotError> {
        for name in self.disk.list().map_err(io_error("list", "folder"))? {
            if name.ends_with(".tmp") {
                self.disk.remove(&name).map_err(io_error("remove", &name))?;
            }
        }
        Ok(())
    }

    /// The complete, undamaged snapshots, newest first. Damaged ones are reported to `complain`.
    ///
    /// # Errors
    /// [`SnapshotError::Io`] and [`SnapshotError::Foreign`].
    pub fn usable(
        &self,
        mut complain: impl FnMut(&SnapshotError),
    ) -> Result<Vec<SnapshotFile>, SnapshotError> {
        let mut found = Vec::new();
        for name in self.names()? {
            match self.verify(&name) {
                Ok(file) => found.push(file),
                Err(error @ SnapshotError::Damaged { .. }) => complain(&error),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Writes a snapshot; `write_state` gets the place for the state's bytes.
    ///
    /// # Errors
    /// Any [`SnapshotError`]; then no file of that name was made or changed.
    pub fn write(
        &self,
        mark: Mark,
        membership: &Membership,
        history: Option<Extent>,
        write_state: impl FnOnce(&mut dyn Write) -> Result<(), CodecError>,
    ) -> Result<SnapshotFile, SnapshotError> {
        let name = file_name(mark);
        let temporary = format!("{name}.tmp");
        let head = SnapshotHead {
            cluster_id: self.cluster_id.to_string(),
            mark,
            membership: membership.clone(),
            history,
        };
        let mut file = self
            .disk
            .create(&temporary)
            .map_err(io_error("create", &temporary))?;
        file.write_at(&MAGIC, 0)
            .map_err(io_error("write", &temporary))?;
        let mut writer = FrameWriter {
            file: file.as_mut(),
            offset: MAGIC.len() as u64,
            ordinal: 0,
            chunk: Vec::with_capacity(CHUNK),
            state_bytes: 0,
        };
        writer
            .frame(HEAD_FRAME, &codec::encode(&head)?)
            .map_err(io_error("write", &temporary))?;
        write_state(&mut writer)?;
        let end = End {
            state_bytes: writer.state_bytes,
        };
        writer.flush().map_err(io_error("write", &temporary))?;
        writer
            .frame(END_FRAME, &codec::encode(&end)?)
            .map_err(io_error("write", &temporary))?;
        let length = writer.offset;
        self.publish(file.as_ref(), &temporary, &name)?;
        Ok(SnapshotFile { name, head, length })
    }

    fn publish(
        &self,
        file: &dyn DiskFile,
        temporary: &str,
        name: &str,
    ) -> Result<(), SnapshotError> {
        file.sync().map_err(io_error("sync", temporary))?;
        self.disk
            .rename(temporary, name)
            .map_err(io_error("rename", temporary))?;
        self.disk.sync_folder().map_err(io_error("sync", "folder"))
    }

    /// Removes all but the newest two; returns those that stay, newest first.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn retain(&self) -> Result<Vec<String>, SnapshotError> {
        let mut names = self.names()?;
        for name in names.split_off(KEPT.min(names.len())) {
            self.disk.remove(&name).map_err(io_error("remove", &name))?;
        }
        Ok(names)
    }

    /// The reader of a snapshot's state; every byte is checked before it is given out.
    ///
    /// # Errors
    /// [`SnapshotError`] when the file cannot be opened or its head is not good.
    pub fn open(&self, name: &str) -> Result<SnapshotReader, SnapshotError> {
        let file = self.disk.open(name).map_err(io_error("open", name))?;
        let length = file.length().map_err(io_error("measure", name))?;
        let mut reader = SnapshotReader {
            name: name.to_owned(),
            frames: FrameReader {
                file,
                offset: MAGIC.len() as u64,
                ordinal: 0,
            },
            head: None,
            chunk: Vec::new(),
            position: 0,
            state_bytes: 0,
            ended: false,
            length,
        };
        let mut magic = [0; 8];
        let read = reader
            .frames
            .file
            .read_at(&mut magic, 0)
            .map_err(io_error("read", name))?;
        if read < magic.len() || magic != MAGIC {
            return Err(reader.damaged("it does not begin as a snapshot does"));
        }
        let (kind, payload) = reader
            .frames
            .next()
            .map_err(|reason| reader.damaged(&reason))?;
        if kind != HEAD_FRAME {
            return Err(reader.damaged("its head is missing"));
        }
        let head: SnapshotHead =
            codec::decode(&payload).map_err(|e| reader.damaged(&e.to_string()))?;
        if head.cluster_id != *self.cluster_id {
            return Err(SnapshotError::Foreign {
                file: name.to_owned(),
                reason: format!(
                    "it belongs to cluster {}, this node to {}",
                    head.cluster_id, self.cluster_id
                ),
            });
        }
        reader.head = Some(head);
        Ok(reader)
    }

    /// Reads the whole file and checks it.
    ///
    /// # Errors
    /// [`SnapshotError`] naming what is wrong.
    pub fn verify(&self, name: &str) -> Result<SnapshotFile, SnapshotError> {
        let mut reader = self.open(name)?;
        io::copy(&mut reader, &mut io::sink()).map_err(|e| reader.damaged(&e.to_string()))?;
        let length = reader.length;
        match reader.head.take() {
            Some(head)
                if file_name(head.mark) == name.trim_end_matches(".tmp") || is_incoming(name) =>
            {
                Ok(SnapshotFile {
                    name: name.to_owned(),
                    head,
                    length,
                })
            }
            _ => Err(reader.damaged("its name does not fit its head")),
        }
    }

    /// The raw bytes of a file, for sending it.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn raw(&self, name: &str) -> Result<RawSnapshot, SnapshotError> {
        let file = self.disk.open(name).map_err(io_error("open", name))?;
        Ok(RawSnapshot {
            name: name.to_owned(),
            file,
            offset: 0,
        })
    }

    /// A place for a snapshot that arrives from `sender`.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn receive(&self, sender: u64) -> Result<IncomingSnapshot, SnapshotError> {
        let name = format!("incoming-{sender}.tmp");
        let file = self.disk.create(&name).map_err(io_error("create", &name))?;
        Ok(IncomingSnapshot {
            store: self.clone(),
            name,
            file,
            offset: 0,
        })
    }
}

fn is_incoming(name: &str) -> bool {
    name.starts_with("incoming-")
}

/// Bytes of a snapshot file, front to back.
pub struct RawSnapshot {
    name: String,
    file: Box<dyn DiskFile>,
    offset: u64,
}

impl RawSnapshot {
    /// The next piece; empty at the end.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn next_piece(&mut self) -> Result<Vec<u8>, SnapshotError> {
        let mut piece = vec![0; CHUNK];
        let read = self
            .file
            .read_at(&mut piece, self.offset)
            .map_err(io_error("read", &self.name))?;
        piece.truncate(read);
        self.offset += read as u64;
        Ok(piece)
    }
}

/// A snapshot on its way in. Dropped unfinished, it is overwritten by the next one.
pub struct IncomingSnapshot {
    store: SnapshotStore,
    name: String,
    file: Box<dyn DiskFile>,
    offset: u64,
}

impl IncomingSnapshot {
    /// Takes the next piece.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn push(&mut self, piece: &[u8]) -> Result<(), SnapshotError> {
        self.file
            .write_at(piece, self.offset)
            .map_err(io_error("write", &self.name))?;
        self.offset += piece.len() as u64;
        Ok(())
    }

    /// Checks the whole file against what was announced.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] or [`SnapshotError::Foreign`]; the file is then removed.
    pub fn finish(self, mark: Mark, length: u64) -> Result<CheckedSnapshot, SnapshotError> {
        match self.check(mark, length) {
            Ok(found) => Ok(CheckedSnapshot {
                incoming: self,
                found,
            }),
            Err(error) => {
                self.store.disk.remove(&self.name).ok();
                Err(error)
            }
        }
    }

    fn check(&self, mark: Mark, length: u64) -> Result<SnapshotFile, SnapshotError> {
        if self.offset != length {
            return Err(SnapshotError::Damaged {
                file: self.name.clone(),
                reason: format!("{} of {length} bytes arrived", self.offset),
            });
        }
        let found = self.store.verify(&self.name)?;
        if found.head.mark != mark {
            return Err(SnapshotError::Foreign {
                file: self.name.clone(),
                reason: format!(
                    "entry {} of term {} was announced, it holds entry {} of term {}",
                    mark.index, mark.term, found.head.mark.index, found.head.mark.term
                ),
            });
        }
        Ok(found)
    }
}

/// A snapshot that arrived whole and is not in its place yet.
pub struct CheckedSnapshot {
    incoming: IncomingSnapshot,
    found: SnapshotFile,
}

impl CheckedSnapshot {
    /// What its head says.
    #[must_use]
    pub fn head(&self) -> &SnapshotHead {
        &self.found.head
    }

    /// Puts it in its place: from then on the node may start from it.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn publish(self) -> Result<SnapshotFile, SnapshotError> {
        let CheckedSnapshot {
            incoming,
            mut found,
        } = self;
        let name = file_name(found.head.mark);
        incoming
            .store
            .publish(incoming.file.as_ref(), &incoming.name, &name)?;
        found.name = name;
        Ok(found)
    }
}

struct FrameWriter<'a> {
    file: &'a mut dyn DiskFile,
    offset: u64,
    ordinal: u64,
    chunk: Vec<u8>,
    state_bytes: u64,
}

fn frame_crc(ordinal: u64, kind: u8, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&ordinal.to_le_bytes());
    hasher.update(&[kind]);
    hasher.update(payload);
    hasher.finalize()
}

impl FrameWriter<'_> {
    fn frame(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let mut head = [0; FRAME_HEAD];
        head[..4].copy_from_slice(&length.to_le_bytes());
        head[4..8].copy_from_slice(&frame_crc(self.ordinal, kind, payload).to_le_bytes());
        head[8] = kind;
        self.file.write_at(&head, self.offset)?;
        self.file
            .write_at(payload, self.offset + FRAME_HEAD as u64)?;
        self.offset += (FRAME_HEAD + payload.len()) as u64;
        self.ordinal += 1;
        Ok(())
    }
}

impl Write for FrameWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK - self.chunk.len();
        let taken = bytes.len().min(room);
        self.chunk.extend_from_slice(&bytes[..taken]);
        self.state_bytes += taken as u64;
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.chunk.is_empty() {
            let mut chunk = std::mem::take(&mut self.chunk);
            self.frame(STATE_FRAME, &chunk)?;
            chunk.clear();
            self.chunk = chunk;
        }
        Ok(())
    }
}

struct FrameReader {
    file: Box<dyn DiskFile>,
    offset: u64,
    ordinal: u64,
}

impl FrameReader {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), String> {
        let mut filled = 0;
        while filled < buffer.len() {
            let read = self
                .file
                .read_at(&mut buffer[filled..], self.offset)
                .map_err(|e| e.to_string())?;
            if read == 0 {
                return Err(format!("it ends too early, at byte {}", self.offset));
            }
            filled += read;
            self.offset += read as u64;
        }
        Ok(())
    }

    fn next(&mut self) -> Result<(u8, Vec<u8>), String> {
        let at = self.offset;
        let mut head = [0; FRAME_HEAD];
        self.fill(&mut head)?;
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if length > MAX_FRAME {
            return Err(format!("the frame at byte {at} is too long"));
        }
        let mut payload = vec![0; length];
        self.fill(&mut payload)?;
        if frame_crc(self.ordinal, head[8], &payload) != crc {
            return Err(format!("bad checksum at byte {at}"));
        }
        self.ordinal += 1;
        Ok((head[8], payload))
    }
}

/// Reads the state's bytes out of a snapshot; fails at the first damaged byte.
pub struct SnapshotReader {
    name: String,
    frames: FrameReader,
    head: Option<SnapshotHead>,
    chunk: Vec<u8>,
    position: usize,
    state_bytes: u64,
    ended: bool,
    length: u64,
}

impl SnapshotReader {
    fn damaged(&self, reason: &str) -> SnapshotError {
        SnapshotError::Damaged {
            file: self.name.clone(),
            reason: reason.to_owned(),
        }
    }

    fn next_chunk(&mut self) -> Result<(), String> {
        let (kind, payload) = self.frames.next()?;
        match kind {
            STATE_FRAME => {
                self.state_bytes += payload.len() as u64;
                self.chunk = payload;
                self.position = 0;
                Ok(())
            }
            END_FRAME => {
                let end: End = codec::decode(&payload).map_err(|e| e.to_string())?;
                if end.state_bytes != self.state_bytes || self.frames.offset != self.length {
                    return Err("its length does not fit its end".to_owned());
                }
                self.ended = true;
                Ok(())
            }
            other => Err(format!("it has an unknown frame of kind {other}")),
        }
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.chunk.len() && !self.ended {
            self.next_chunk().map_err(io::Error::other)?;
        }
        if self.ended && self.position == self.chunk.len() {
            return Ok(0);
        }
        let rest = &self.chunk[self.position..];
        let taken = rest.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&rest[..taken]);
        self.position += taken;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::faulty::FaultyDisk;

    fn store(disk: &FaultyDisk) -> SnapshotStore {
        SnapshotStore::new(Arc::new(disk.clone()), "01CLUSTER")
    }

    fn write(store: &SnapshotStore, index: u64, state: &[u8]) -> SnapshotFile {
        let membership = Membership {
            voters: vec![1, 2, 3],
            ..Membership::default()
        };
        store
            .write(Mark { index, term: 2 }, &membership, None, |out| {
                out.write_all(state)
                    .map_err(|e| CodecError::Encode(e.to_string()))
            })
            .unwrap()
    }

    fn state() -> Vec<u8> {
        (0..CHUNK * 2 + 17).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn what_was_written_is_read() {
        let store = store(&FaultyDisk::new(1));
        let file = write(&store, 9, &state());
        assert_eq!(store.verify(&file.name).unwrap(), file);
        let mut read = Vec::new();
        store
            .open(&file.name)
            .unwrap()
            .read_to_end(&mut read)
            .unwrap();
        assert_eq!(read, state());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let disk = FaultyDisk::new(1);
        let store = store(&disk);
        let file = write(&store, 9, b"a small state");
        for at in 0..file.length {
            disk.flip(&file.name, at);
            assert!(store.verify(&file.name).is_err(), "byte {at}");
            disk.flip(&file.name, at);
        }
        assert!(store.verify(&file.name).is_ok());
    }

    #[test]
    fn the_newest_two_are_kept_and_a_damaged_one_is_passed_over() {
        let disk = FaultyDisk::new(1);
        let store = store(&disk);
        for index in 1..=4 {
            write(&store, index, b"state");
        }
        assert_eq!(store.retain().unwrap().len(), 2);
        let newest = store.usable(|e| panic!("{e}")).unwrap()[0].clone();
        assert_eq!(newest.head.mark.index, 4);
        disk.flip(&newest.name, newest.length / 2);
        let mut complaints = 0;
        let usable = store.usable(|_| complaints += 1).unwrap();
        assert_eq!((usable[0].head.mark.index, complaints), (3, 1));
    }

    #[test]
    fn a_transfer_is_checked_before_it_counts() {
        let from = store(&FaultyDisk::new(1));
        let file = write(&from, 9, &state());
        let disk = FaultyDisk::new(2);
        let to = store(&disk);
        let transfer = |spoil: bool, mark: Mark| {
            let mut incoming = to.receive(1).unwrap();
            let mut raw = from.raw(&file.name).unwrap();
            loop {
                let mut piece = raw.next_piece().unwrap();
                if piece.is_empty() {
                    break;
                }
                if spoil {
                    piece[100] ^= 1;
                }
                incoming.push(&piece).unwrap();
            }
            incoming.finish(mark, file.length)
        };
        let mark = file.head.mark;
        assert!(matches!(
            transfer(true, mark),
            Err(SnapshotError::Damaged { .. })
        ));
        assert!(matches!(
            transfer(false, Mark { index: 10, term: 2 }),
            Err(SnapshotError::Foreign { .. })
        ));
        let checked = transfer(false, mark).unwrap();
        assert_eq!(checked.head(), &file.head);
        assert!(to.usable(|_| ()).unwrap().is_empty());
        assert_eq!(checked.publish().unwrap(), file);
        assert_eq!(to.usable(|_| ()).unwrap(), [file]);
    }

    #[test]
    fn another_clusters_snapshot_is_refused() {
        let disk = FaultyDisk::new(1);
        let file = write(&store(&disk), 9, b"state");
        let other = SnapshotStore::new(Arc::new(disk), "01OTHER");
        assert!(matches!(
            other.verify(&file.name),
            Err(SnapshotError::Foreign { .. })
        ));
    }

    #[test]
    fn a_crash_while_writing_leaves_the_older_one() {
        for seed in 0..100 {
            let disk = FaultyDisk::new(seed);
            let store = store(&disk);
            write(&store, 1, b"old");
            disk.fail_after(disk.draw(8));
            let result = store.write(
                Mark { index: 2, term: 2 },
                &Membership::default(),
                None,
                |out| {
                    out.write_all(b"new")
                        .map_err(|e| CodecError::Encode(e.to_string()))
                },
            );
            disk.crash();
            store.remove_leftovers().unwrap();
            let usable = store.usable(|e| panic!("seed {seed}: {e}")).unwrap();
            let newest = usable[0].head.mark.index;
            assert!(newest == 2 || (newest == 1 && result.is_err()), "{seed}");
        }
    }
}
