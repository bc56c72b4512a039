//! The log on disk: numbered segment files, preallocated and used again.
//!
//! A segment is a 24-byte head and frames, each aligned to 8 bytes:
//! `crc u32 · length u32 · sequence u64 · durable u64 · kind u8 · payload`. The checksum is seeded
//! with the segment's number, so frames of a file's earlier life never count. The first frame of a
//! segment is a checkpoint (hard state and start), so older segments can go once their entries are
//! compacted; a finished segment ends with an end frame.
//!
//! **What may be cut.** `durable` is the highest sequence that was synced when the frame was
//! written. A bad frame that some later good frame calls durable was acknowledged and is now
//! damaged: that is fatal. A bad frame that nothing later calls durable was never acknowledged: it
//! is the torn tail of a crash and is cut. The decision page is `docs/decisions/0003-own-log-store.md`.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::codec;
use super::disk::{Disk, DiskFile, read_all};
use super::log::{HardState, LogError, LogStore, Mark, Recovered, WriteBatch};

/// Size of a fresh segment in bytes.
pub const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
const MAGIC: [u8; 8] = *b"TGLOG\0\0\x01";
const HEAD: usize = 24;
const FRAME_HEAD: usize = 25;
const ALIGN: usize = 8;
/// Room kept at the end of a segment for its end frame.
const END_ROOM: u64 = 64;
/// How far ahead a sequence number may be to count as one of this log.
const SEQUENCE_WINDOW: u64 = 1 << 24;
const SPARES: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum FrameKind {
    Batches = 1,
    End = 2,
    Checkpoint = 3,
}

impl FrameKind {
    fn of(byte: u8) -> Option<FrameKind> {
        match byte {
            1 => Some(FrameKind::Batches),
            2 => Some(FrameKind::End),
            3 => Some(FrameKind::Checkpoint),
            _ => None,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Checkpoint {
    hard_state: HardState,
    start: Mark,
}

struct Frame<'a> {
    sequence: u64,
    kind: FrameKind,
    payload: &'a [u8],
    /// Offset behind the frame.
    next: usize,
}

struct Segment {
    number: u64,
    /// The highest index of an entry in it that may still be needed.
    max_index: u64,
    size: u64,
}

/// See the module's text.
pub struct SegmentLog {
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    /// Oldest first; the last one is written to.
    segments: VecDeque<Segment>,
    file: Box<dyn DiskFile>,
    offset: u64,
    next_sequence: u64,
    durable: u64,
    hard_state: HardState,
    start: Mark,
    spares: Vec<String>,
    buffer: Vec<u8>,
}

fn io_error(action: &'static str, file: &str) -> impl FnOnce(io::Error) -> LogError {
    let file = file.to_owned();
    move |source| LogError::Io {
        action,
        file,
        source,
    }
}

fn file_name(number: u64) -> String {
    format!("{number:016x}.log")
}

fn checksum(segment: u64, frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&segment.to_le_bytes());
    hasher.update(&frame[4..]);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn push_frame(
    buffer: &mut Vec<u8>,
    segment: u64,
    sequence: u64,
    durable: u64,
    kind: FrameKind,
    write_payload: impl FnOnce(&mut Vec<u8>) -> Result<(), LogError>,
) -> Result<(), LogError> {
    let at = buffer.len();
    buffer.extend_from_slice(&[0; 8]);
    buffer.extend_from_slice(&sequence.to_le_bytes());
    buffer.extend_from_slice(&durable.to_le_bytes());
    buffer.push(kind as u8);
    write_payload(buffer)?;
    let length = u32::try_from(buffer.len() - at - FRAME_HEAD).map_err(|_| {
        LogError::Codec(codec::CodecError::Encode(
            "a batch of the log is longer than 4 GiB".to_owned(),
        ))
    })?;
    buffer[at + 4..at + 8].copy_from_slice(&length.to_le_bytes());
    let crc = checksum(segment, &buffer[at..]);
    buffer[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    buffer.resize(buffer.len().next_multiple_of(ALIGN), 0);
    Ok(())
}

/// The good frame at `at`, if there is one.
fn frame_at(bytes: &[u8], segment: u64, at: usize) -> Option<Frame<'_>> {
    let crc = u32_at(bytes, at)?;
    let length = usize::try_from(u32_at(bytes, at + 4)?).ok()?;
    let end = at.checked_add(FRAME_HEAD)?.checked_add(length)?;
    let frame = bytes.get(at..end)?;
    if checksum(segment, frame) != crc {
        return None;
    }
    Some(Frame {
        sequence: u64_at(bytes, at + 8)?,
        kind: FrameKind::of(frame[24])?,
        payload: &frame[FRAME_HEAD..],
        next: end.next_multiple_of(ALIGN),
    })
}

/// Whether a good frame behind `at` says that `sequence` was durable.
fn acknowledged_later(bytes: &[u8], segment: u64, at: usize, sequence: u64) -> bool {
    let mut offset = at + ALIGN;
    while offset + FRAME_HEAD <= bytes.len() {
        let plausible = u64_at(bytes, offset + 8)
            .is_some_and(|s| s > sequence && s - sequence < SEQUENCE_WINDOW)
            && u64_at(bytes, offset + 16).is_some_and(|d| d >= sequence);
        if plausible && frame_at(bytes, segment, offset).is_some() {
            return true;
        }
        offset += ALIGN;
    }
    false
}

/// Reads segments in order and gathers what they say.
struct Replay {
    recovered: Recovered,
    expected: Option<u64>,
    segments: VecDeque<Segment>,
}

impl Replay {
    /// Reads one segment. Returns the offset where it stops without an end frame, if it does.
    fn segment(
        &mut self,
        number: u64,
        bytes: &[u8],
        is_last: bool,
    ) -> Result<Option<usize>, LogError> {
        let name = file_name(number);
        let head = bytes.get(..HEAD);
        let good_head = head.is_some_and(|h| {
            h[..8] == MAGIC
                && u64_at(h, 8) == Some(number)
                && u32_at(h, 16) == Some(crc32fast::hash(&h[..16]))
        });
        if !good_head {
            return Err(LogError::Corrupt(format!("{name} has no valid head")));
        }
        let mut segment = Segment {
            number,
            max_index: 0,
            size: bytes.len() as u64,
        };
        let mut at = HEAD;
        let stopped = loop {
            let expected = self.expected;
            let frame = frame_at(bytes, number, at)
                .filter(|f| expected.is_none_or(|expected| f.sequence == expected));
            let Some(frame) = frame else {
                let Some(expected) = expected.filter(|_| is_last && at > HEAD) else {
                    return Err(LogError::Corrupt(format!(
                        "{name} has a bad checksum at byte {at}, and it is not the end of the log"
                    )));
                };
                if acknowledged_later(bytes, number, at, expected) {
                    return Err(LogError::Corrupt(format!(
                        "{name} has a bad checksum at byte {at}, in front of entries that were acknowledged"
                    )));
                }
                break Some(at);
            };
            self.expected = Some(frame.sequence + 1);
            at = frame.next;
            if self.frame(&frame, &mut segment)? == FrameKind::End {
                break None;
            }
        };
        self.segments.push_back(segment);
        Ok(stopped)
    }

    fn frame(&mut self, frame: &Frame<'_>, segment: &mut Segment) -> Result<FrameKind, LogError> {
        match frame.kind {
            FrameKind::End => {}
            FrameKind::Checkpoint => {
                let checkpoint: Checkpoint = codec::decode(frame.payload)?;
                if self.segments.is_empty() {
                    self.recovered.hard_state = checkpoint.hard_state;
                    self.recovered.start = checkpoint.start;
                }
            }
            FrameKind::Batches => {
                let batches: Vec<WriteBatch> = codec::decode(frame.payload)?;
                for batch in &batches {
                    self.recovered.replay(batch);
                    if let Some(mark) = batch.restart {
                        segment.max_index = 0;
                        for older in &mut self.segments {
                            older.max_index = older.max_index.min(mark.index);
                        }
                    }
                    if let Some(last) = batch.entries.last() {
                        segment.max_index = segment.max_index.max(last.index);
                    }
                }
            }
        }
        Ok(frame.kind)
    }
}

impl SegmentLog {
    /// Opens the log in `disk` and returns what it holds; an empty folder is an empty log.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] when anything but the torn tail of a crash is damaged.
    pub fn open(
        disk: Arc<dyn Disk>,
        segment_bytes: u64,
    ) -> Result<(SegmentLog, Recovered), LogError> {
        let mut numbers = Vec::new();
        let mut spares = Vec::new();
        for name in disk.list().map_err(io_error("list", "the log folder"))? {
            if let Some(number) = name
                .strip_suffix(".log")
                .and_then(|stem| u64::from_str_radix(stem, 16).ok())
            {
                numbers.push(number);
            } else if name.ends_with(".spare") {
                spares.push(name);
            } else if name.ends_with(".new") {
                disk.remove(&name).map_err(io_error("remove", &name))?;
            }
        }
        numbers.sort_unstable();
        let mut replay = Replay {
            recovered: Recovered::default(),
            expected: None,
            segments: VecDeque::new(),
        };
        let mut open_end = None;
        for (position, &number) in numbers.iter().enumerate() {
            if position > 0 && numbers[position - 1] + 1 != number {
                return Err(LogError::Corrupt(format!(
                    "{} is missing",
                    file_name(number - 1)
                )));
            }
            let name = file_name(number);
            let file = disk.open(&name).map_err(io_error("open", &name))?;
            let bytes = read_all(file.as_ref()).map_err(io_error("read", &name))?;
            let is_last = position + 1 == numbers.len();
            if let Some(at) = replay.segment(number, &bytes, is_last)? {
                open_end = Some((file, at as u64));
            }
        }
        let mut recovered = replay.recovered;
        recovered.finish()?;
        let mut next_sequence = replay.expected.unwrap_or(1);
        let last_number = numbers.last().copied().unwrap_or(0);
        if let Some((mut file, at)) = open_end {
            let mut buffer = Vec::new();
            push_frame(
                &mut buffer,
                last_number,
                next_sequence,
                next_sequence - 1,
                FrameKind::End,
                |_| Ok(()),
            )?;
            let name = file_name(last_number);
            file.write_at(&buffer, at)
                .and_then(|()| file.sync())
                .map_err(io_error("write", &name))?;
            next_sequence += 1;
        }
        let fresh = new_segment(
            disk.as_ref(),
            segment_bytes,
            last_number + 1,
            &mut spares,
            next_sequence,
            &Checkpoint {
                hard_state: recovered.hard_state,
                start: recovered.start,
            },
        )?;
        let mut log = SegmentLog {
            disk,
            segment_bytes,
            segments: replay.segments,
            file: fresh.file,
            offset: fresh.offset,
            next_sequence: next_sequence + 1,
            durable: next_sequence,
            hard_state: recovered.hard_state,
            start: recovered.start,
            spares,
            buffer: Vec::new(),
        };
        log.segments.push_back(Segment {
            number: last_number + 1,
            max_index: 0,
            size: fresh.size,
        });
        log.drop_old_segments()?;
        Ok((log, recovered))
    }

    fn active(&self) -> u64 {
        self.segments.back().map_or(0, |s| s.number)
    }

    fn sync(&mut self) -> Result<(), LogError> {
        self.file
            .sync()
            .map_err(io_error("sync", &file_name(self.active())))?;
        self.durable = self.next_sequence - 1;
        Ok(())
    }

    fn append_buffer(&mut self) -> Result<(), LogError> {
        let name = file_name(self.active());
        self.file
            .write_at(&self.buffer, self.offset)
            .map_err(io_error("write", &name))?;
        self.offset += self.buffer.len() as u64;
        self.next_sequence += 1;
        if let Some(segment) = self.segments.back_mut() {
            segment.size = segment.size.max(self.offset);
        }
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), LogError> {
        // Everything in front must be durable before the end frame says so.
        self.sync()?;
        self.write_end()?;
        let number = self.active() + 1;
        let fresh = new_segment(
            self.disk.as_ref(),
            self.segment_bytes,
            number,
            &mut self.spares,
            self.next_sequence,
            &Checkpoint {
                hard_state: self.hard_state,
                start: self.start,
            },
        )?;
        self.file = fresh.file;
        self.offset = fresh.offset;
        self.durable = self.next_sequence;
        self.next_sequence += 1;
        self.segments.push_back(Segment {
            number,
            max_index: 0,
            size: fresh.size,
        });
        self.drop_old_segments()
    }

    fn write_end(&mut self) -> Result<(), LogError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        push_frame(
            &mut buffer,
            self.active(),
            self.next_sequence,
            self.durable,
            FrameKind::End,
            |_| Ok(()),
        )?;
        self.buffer = buffer;
        self.append_buffer()?;
        self.sync()
    }

    /// Gives back segments without needed entries, oldest first, each durably before the next, so
    /// that a crash never leaves a hole in the numbers.
    fn drop_old_segments(&mut self) -> Result<(), LogError> {
        while self.segments.len() > 1
            && self
                .segments
                .front()
                .is_some_and(|s| s.max_index <= self.start.index)
        {
            let Some(segment) = self.segments.pop_front() else {
                break;
            };
            let name = file_name(segment.number);
            if self.spares.len() < SPARES && segment.size <= self.segment_bytes {
                let spare = format!("{:016x}.spare", segment.number);
                self.disk
                    .rename(&name, &spare)
                    .map_err(io_error("rename", &name))?;
                self.spares.push(spare);
            } else {
                self.disk.remove(&name).map_err(io_error("remove", &name))?;
            }
            self.disk
                .sync_folder()
                .map_err(io_error("sync", "the log folder"))?;
        }
        Ok(())
    }

    fn note(&mut self, batches: &[WriteBatch]) {
        for batch in batches {
            if let Some(mark) = batch.restart {
                self.start = mark;
                for segment in &mut self.segments {
                    segment.max_index = segment.max_index.min(mark.index);
                }
            }
            if let (Some(last), Some(segment)) = (batch.entries.last(), self.segments.back_mut()) {
                segment.max_index = segment.max_index.max(last.index);
            }
            if let Some(hard_state) = batch.hard_state {
                self.hard_state = hard_state;
            }
            if let Some(mark) = batch.compact
                && mark.index > self.start.index
            {
                self.start = mark;
            }
        }
    }
}

/// A segment that can be written to.
struct Prepared {
    file: Box<dyn DiskFile>,
    /// Behind its checkpoint.
    offset: u64,
    size: u64,
}

/// Prepares segment `number` completely before it gets its name.
fn new_segment(
    disk: &dyn Disk,
    segment_bytes: u64,
    number: u64,
    spares: &mut Vec<String>,
    sequence: u64,
    checkpoint: &Checkpoint,
) -> Result<Prepared, LogError> {
    let name = file_name(number);
    let (mut file, from) = if let Some(spare) = spares.pop() {
        (disk.open(&spare).map_err(io_error("open", &spare))?, spare)
    } else {
        let fresh = format!("{number:016x}.new");
        let mut file = disk.create(&fresh).map_err(io_error("create", &fresh))?;
        // Written zeros, not just reserved blocks: a later sync then has no metadata to write.
        let zeros = vec![0; 1 << 16];
        let mut offset = 0;
        while offset < segment_bytes {
            let part = zeros
                .len()
                .min(usize::try_from(segment_bytes - offset).unwrap_or(zeros.len()));
            file.write_at(&zeros[..part], offset)
                .map_err(io_error("preallocate", &fresh))?;
            offset += part as u64;
        }
        (file, fresh)
    };
    let mut buffer = Vec::with_capacity(256);
    buffer.extend_from_slice(&MAGIC);
    buffer.extend_from_slice(&number.to_le_bytes());
    let crc = crc32fast::hash(&buffer);
    buffer.extend_from_slice(&crc.to_le_bytes());
    buffer.resize(HEAD, 0);
    push_frame(
        &mut buffer,
        number,
        sequence,
        sequence - 1,
        FrameKind::Checkpoint,
        |out| Ok(codec::encode_into(checkpoint, out)?),
    )?;
    file.write_at(&buffer, 0)
        .and_then(|()| file.sync())
        .map_err(io_error("write", &from))?;
    let size = file.length().map_err(io_error("measure", &from))?;
    disk.rename(&from, &name)
        .and_then(|()| disk.sync_folder())
        .map_err(io_error("rename", &from))?;
    Ok(Prepared {
        file,
        offset: buffer.len() as u64,
        size,
    })
}

impl LogStore for SegmentLog {
    fn write(&mut self, batches: &[WriteBatch], durable: bool) -> Result<(), LogError> {
        if !batches.is_empty() {
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.clear();
            push_frame(
                &mut buffer,
                self.active(),
                self.next_sequence,
                self.durable,
                FrameKind::Batches,
                |out| Ok(codec::encode_into(batches, out)?),
            )?;
            let room = self.segment_bytes.saturating_sub(END_ROOM);
            let is_fresh = self
                .segments
                .back()
                .is_some_and(|s| s.max_index == 0 && self.offset < 1024);
            if self.offset + buffer.len() as u64 > room && !is_fresh {
                self.rotate()?;
                buffer.clear();
                push_frame(
                    &mut buffer,
                    self.active(),
                    self.next_sequence,
                    self.durable,
                    FrameKind::Batches,
                    |out| Ok(codec::encode_into(batches, out)?),
                )?;
            }
            self.buffer = buffer;
            self.append_buffer()?;
            self.note(batches);
        }
        if durable {
            self.sync()?;
            if batches
                .iter()
                .any(|b| b.compact.is_some() || b.restart.is_some())
            {
                self.drop_old_segments()?;
            }
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), LogError> {
        self.sync()?;
        self.write_end()
    }

    fn size(&self) -> u64 {
        self.segments.iter().map(|s| s.size).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::conformance::{self, entries};
    use crate::storage::faulty::FaultyDisk;

    const SMALL: u64 = 4096;

    fn batch(first: u64, count: u64, term: u64) -> WriteBatch {
        WriteBatch {
            entries: entries(first, count, term),
            hard_state: Some(HardState {
                term,
                vote: 1,
                commit: first,
            }),
            ..WriteBatch::default()
        }
    }

    #[test]
    fn conforms_on_a_real_folder() {
        let folder = tempfile::tempdir().unwrap();
        let mut round = 0;
        conformance::run(&mut || {
            round += 1;
            let path = folder.path().join(round.to_string());
            Box::new(move || {
                let disk = Arc::new(super::super::disk::FolderDisk::new(&path).unwrap());
                let (log, recovered) = SegmentLog::open(disk, SMALL).unwrap();
                (Box::new(log) as Box<dyn LogStore>, recovered)
            })
        });
    }

    #[test]
    fn conforms_in_memory() {
        conformance::run(&mut || {
            let log = super::super::memory::MemoryLog::default();
            Box::new(move || {
                (
                    Box::new(log.clone()) as Box<dyn LogStore>,
                    log.recovered().unwrap(),
                )
            })
        });
    }

    /// Whatever a crash leaves of unsynced writes: all that was acknowledged is there, and what
    /// more is there is a prefix of what was written.
    #[test]
    fn a_crash_at_any_moment_keeps_what_was_acknowledged() {
        for seed in 0..300 {
            let disk = Arc::new(FaultyDisk::new(seed));
            let mut written = Recovered::default();
            let mut acknowledged = Recovered::default();
            for _life in 0..4 {
                let (mut log, _) = SegmentLog::open(disk.clone(), SMALL).unwrap();
                disk.fail_after(disk.draw(40));
                let mut next = acknowledged.last().index + 1;
                loop {
                    let count = 1 + disk.draw(5);
                    let mut one = batch(next, count, 1);
                    if disk.draw(6) == 0 && next > 20 {
                        one.compact = Some(Mark {
                            index: next - 10,
                            term: 1,
                        });
                    }
                    let durable = disk.draw(3) > 0;
                    written.replay(&one);
                    if log.write(std::slice::from_ref(&one), durable).is_err() {
                        break;
                    }
                    next += count;
                    if durable {
                        acknowledged = written.clone();
                    }
                }
                drop(log);
                disk.crash();
                let (mut log, found) = SegmentLog::open(disk.clone(), SMALL).unwrap();
                assert!(
                    found.last().index >= acknowledged.last().index,
                    "seed {seed}: entry {} was acknowledged, the log ends at {}",
                    acknowledged.last().index,
                    found.last().index
                );
                assert!(found.hard_state.commit >= acknowledged.hard_state.commit);
                for entry in &found.entries {
                    assert_eq!(entry.data, entries(entry.index, 1, 1)[0].data);
                }
                log.close().unwrap();
                written = found.clone();
                acknowledged = found;
            }
        }
    }

    fn filled(disk: &Arc<FaultyDisk>, frames: u64) -> String {
        let (mut log, _) = SegmentLog::open(disk.clone(), 1 << 16).unwrap();
        for index in 1..=frames {
            log.write(&[batch(index, 1, 1)], true).unwrap();
        }
        file_name(log.active())
    }

    #[test]
    fn a_flipped_bit_in_front_of_acknowledged_entries_is_fatal_and_says_so() {
        let disk = Arc::new(FaultyDisk::new(1));
        let name = filled(&disk, 10);
        disk.flip(&name, 400);
        let error = SegmentLog::open(disk, 1 << 16).map(|_| ()).unwrap_err();
        assert!(matches!(error, LogError::Corrupt(_)));
        assert!(error.to_string().contains("acknowledged"), "{error}");
    }

    #[test]
    fn a_finished_segment_may_not_be_damaged_at_all() {
        let disk = Arc::new(FaultyDisk::new(1));
        let name = filled(&disk, 10);
        let (_, _) = SegmentLog::open(disk.clone(), 1 << 16).unwrap();
        let length = disk.content(&name).iter().rposition(|b| *b != 0).unwrap();
        disk.flip(&name, length as u64);
        assert!(SegmentLog::open(disk, 1 << 16).is_err());
    }

    #[test]
    fn a_torn_last_frame_is_cut() {
        let disk = Arc::new(FaultyDisk::new(1));
        let name = filled(&disk, 10);
        let end = disk.content(&name).iter().rposition(|b| *b != 0).unwrap();
        disk.flip(&name, end as u64 - 4);
        let (_, found) = SegmentLog::open(disk.clone(), 1 << 16).unwrap();
        assert_eq!(found.last().index, 9);
        let (_, again) = SegmentLog::open(disk, 1 << 16).unwrap();
        assert_eq!(again, found);
    }

    #[test]
    fn a_missing_segment_is_fatal() {
        let disk = Arc::new(FaultyDisk::new(1));
        let (mut log, _) = SegmentLog::open(disk.clone(), SMALL).unwrap();
        for index in 1..=200 {
            log.write(&[batch(index, 1, 1)], true).unwrap();
        }
        drop(log);
        disk.remove(&file_name(2)).unwrap();
        let error = SegmentLog::open(disk, SMALL).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
    }

    #[test]
    fn compaction_gives_segments_back_and_uses_them_again() {
        let disk = Arc::new(FaultyDisk::new(1));
        let (mut log, _) = SegmentLog::open(disk.clone(), SMALL).unwrap();
        for index in 1..=2000 {
            let mut one = batch(index, 1, 1);
            if index % 20 == 0 {
                one.compact = Some(Mark { index, term: 1 });
            }
            log.write(&[one], true).unwrap();
        }
        assert!(disk.list().unwrap().len() <= 6, "{:?}", disk.list());
        assert!(log.size() <= 4 * SMALL);
        drop(log);
        let (_, found) = SegmentLog::open(disk, SMALL).unwrap();
        assert_eq!(found.start.index, 2000);
        assert!(found.entries.is_empty());
        assert_eq!(found.hard_state.commit, 2000);
    }

    #[test]
    fn a_failing_sync_is_an_error() {
        let disk = Arc::new(FaultyDisk::new(1));
        let (mut log, _) = SegmentLog::open(disk.clone(), SMALL).unwrap();
        disk.fail_after(1);
        let error = log.write(&[batch(1, 1, 1)], true).unwrap_err();
        assert!(error.to_string().contains("cannot sync"), "{error}");
    }

    #[test]
    fn a_batch_larger_than_a_segment_fits() {
        let disk = Arc::new(FaultyDisk::new(1));
        let (mut log, _) = SegmentLog::open(disk.clone(), SMALL).unwrap();
        log.write(&[batch(1, 1, 1)], true).unwrap();
        log.write(&[batch(2, 500, 1)], true).unwrap();
        log.write(&[batch(502, 1, 1)], true).unwrap();
        drop(log);
        let (_, found) = SegmentLog::open(disk, SMALL).unwrap();
        assert_eq!(found.entries.len(), 502);
    }
}
