//! Zip (APPNOTE 6.3): the central directory says what is there, the local headers must agree.
//!
//! Written here because a release is held to more than readers of zip hold a file to: two entries
//! of one name, contents that overlap (one block of zeroes that stands for a thousand files), a
//! local header that says something else than the directory, and bytes that nothing speaks for at
//! the end are refused, and the directory is never held in memory before its size is known.
//! Stored and deflated entries are read, zip64 too; encrypted ones and other methods are refused by
//! name.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};

use flate2::read::DeflateDecoder;
use tidegate_shared::archive::MAX_ENTRIES;

use super::tree::{Node, Tree, bad};
use super::{StageError, damaged, refuse};

const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;

/// Bytes of the fixed part of the end record, and of the longest comment after it.
const END_LENGTH: u64 = 22;
const MAX_COMMENT: u64 = 65_535;
/// Largest central directory: 64 MiB.
const MAX_DIRECTORY: u64 = 64 << 20;
/// Longest target of a symbolic link.
const MAX_LINK: u64 = 4_096;

const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// Systems whose attributes hold a Unix mode: Unix and macOS.
const UNIX: [u8; 2] = [3, 19];

/// Reads every entry into the tree.
///
/// # Errors
/// It is unsafe, damaged, or the disk is full.
pub fn read(mut file: File, length: u64, tree: &mut Tree<'_>) -> Result<(), StageError> {
    let broken = |error: io::Error| damaged(&error);
    let directory = find_directory(&mut file, length)?;
    if directory.entries > MAX_ENTRIES {
        return Err(refuse(format!(
            "the archive has {} entries, more than the 100,000 that it may have",
            directory.entries
        )));
    }
    if directory.size > MAX_DIRECTORY {
        return Err(refuse(
            "the archive's list of entries is larger than 64 MiB".to_owned(),
        ));
    }
    file.seek(SeekFrom::Start(directory.start))
        .map_err(broken)?;
    let mut list = BufReader::new(&mut file).take(directory.size);
    let mut entries = Vec::new();
    for _ in 0..directory.entries {
        entries.push(Entry::read(&mut list).map_err(broken)?);
    }
    if list.limit() > 0 {
        return Err(refuse(
            "the archive's list of entries is longer than it says".to_owned(),
        ));
    }
    drop(list);
    let mut spans = Vec::with_capacity(entries.len());
    for (position, entry) in entries.iter().enumerate() {
        let (begin, content, end) = entry.locate(&mut file)?;
        if end > directory.start {
            return Err(bad(&entry.name, "reaches beyond the archive's contents"));
        }
        spans.push((begin, end, position));
        take(&mut file, entry, content, tree)?;
    }
    spans.sort_unstable();
    for pair in spans.windows(2) {
        if let [(_, end, _), (begin, _, position)] = pair
            && begin < end
        {
            let name = entries.get(*position).map_or(&[][..], |entry| &entry.name);
            return Err(bad(name, "shares its bytes with another entry"));
        }
    }
    Ok(())
}

struct Directory {
    start: u64,
    size: u64,
    entries: u64,
}

/// Finds the end record: the last one whose comment ends where the file does.
fn find_directory(file: &mut File, length: u64) -> Result<Directory, StageError> {
    let none = || refuse("the archive is a zip without an end: it was cut off".to_owned());
    let from = length.saturating_sub(END_LENGTH + MAX_COMMENT);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(from))
        .and_then(|_| file.take(END_LENGTH + MAX_COMMENT).read_to_end(&mut tail))
        .map_err(|error| damaged(&error))?;
    let mut at = tail
        .len()
        .checked_sub(END_LENGTH as usize)
        .ok_or_else(none)?;
    let record = loop {
        let record = tail.get(at..).unwrap_or_default();
        let fits = |rest: &[u8]| rest.len() as u64 == END_LENGTH + u64::from(u16_at(rest, 20));
        if u32_at(record, 0) == END && fits(record) {
            break record;
        }
        at = at.checked_sub(1).ok_or_else(none)?;
    };
    let end = from + at as u64;
    let mut directory = Directory {
        start: u32_at(record, 16).into(),
        size: u32_at(record, 12).into(),
        entries: u16_at(record, 10).into(),
    };
    let mut parts = u32::from(u16_at(record, 4) | u16_at(record, 6));
    let mut border = end;
    let is_64 = directory.start == u64::from(u32::MAX)
        || directory.size == u64::from(u32::MAX)
        || directory.entries == u64::from(u16::MAX);
    if is_64 && let Some((record_64, at)) = find_64(file, end)? {
        border = at;
        parts = u32_at(&record_64, 16) | u32_at(&record_64, 20);
        directory = Directory {
            start: u64_at(&record_64, 48),
            size: u64_at(&record_64, 40),
            entries: u64_at(&record_64, 32),
        };
    }
    if parts != 0 {
        return Err(refuse("the archive is one part of several".to_owned()));
    }
    if directory.start.checked_add(directory.size) != Some(border) {
        return Err(refuse(
            "the archive's list of entries does not lie where its end says".to_owned(),
        ));
    }
    Ok(directory)
}

/// The zip64 end record and where it lies, if there is one.
fn find_64(file: &mut File, end: u64) -> Result<Option<([u8; 56], u64)>, StageError> {
    let Some(at) = end.checked_sub(20) else {
        return Ok(None);
    };
    let locator: [u8; 20] = read_at(file, at)?;
    if u32_at(&locator, 0) != LOCATOR_64 {
        return Ok(None);
    }
    let at = u64_at(&locator, 8);
    let record: [u8; 56] = read_at(file, at)?;
    if u32_at(&record, 0) != END_64 {
        return Err(refuse("the archive has a broken zip64 end".to_owned()));
    }
    Ok(Some((record, at)))
}

fn read_at<const N: usize>(file: &mut File, at: u64) -> Result<[u8; N], StageError> {
    let mut bytes = [0; N];
    file.seek(SeekFrom::Start(at))
        .and_then(|_| file.read_exact(&mut bytes))
        .map_err(|error| damaged(&error))?;
    Ok(bytes)
}

struct Entry {
    name: Vec<u8>,
    system: u8,
    flags: u16,
    method: u16,
    crc: u32,
    packed: u64,
    size: u64,
    attributes: u32,
    offset: u64,
}

impl Entry {
    fn read(list: &mut impl Read) -> io::Result<Self> {
        let mut fixed = [0; 46];
        list.read_exact(&mut fixed)?;
        if u32_at(&fixed, 0) != CENTRAL {
            let message = "its list of entries is broken";
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let mut variable = |at: usize| -> io::Result<Vec<u8>> {
            let mut bytes = vec![0; u16_at(&fixed, at).into()];
            list.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        let name = variable(28)?;
        let extra = variable(30)?;
        variable(32)?;
        let mut entry = Self {
            name,
            system: fixed[5],
            flags: u16_at(&fixed, 8),
            method: u16_at(&fixed, 10),
            crc: u32_at(&fixed, 16),
            packed: u32_at(&fixed, 20).into(),
            size: u32_at(&fixed, 24).into(),
            attributes: u32_at(&fixed, 38),
            offset: u32_at(&fixed, 42).into(),
        };
        entry.widen(&extra);
        Ok(entry)
    }

    /// Takes the long figures from the zip64 extra field, which holds those that do not fit.
    fn widen(&mut self, mut extra: &[u8]) {
        while extra.len() >= 4 {
            let length = usize::from(u16_at(extra, 2));
            let field = extra.get(4..4 + length).unwrap_or_default();
            if u16_at(extra, 0) == 1 {
                let mut fields = field.chunks_exact(8);
                for figure in [&mut self.size, &mut self.packed, &mut self.offset] {
                    if *figure == u64::from(u32::MAX)
                        && let Some(wide) = fields.next()
                    {
                        *figure = u64_at(wide, 0);
                    }
                }
                return;
            }
            extra = extra.get(4 + length..).unwrap_or_default();
        }
    }

    /// Where the entry begins, where its content does, and where that ends; its local header must
    /// say the same as the directory.
    fn locate(&self, file: &mut File) -> Result<(u64, u64, u64), StageError> {
        let fixed: [u8; 30] = read_at(file, self.offset)?;
        if u32_at(&fixed, 0) != LOCAL {
            return Err(bad(&self.name, "is not where the archive says"));
        }
        let length = usize::from(u16_at(&fixed, 26));
        let mut name = vec![0; length];
        file.read_exact(&mut name)
            .map_err(|error| damaged(&error))?;
        let same = name == self.name
            && u16_at(&fixed, 8) == self.method
            && (u16_at(&fixed, 6) ^ self.flags) & ENCRYPTED == 0;
        if !same {
            return Err(bad(
                &self.name,
                "is told otherwise in front of its content than in the archive's list",
            ));
        }
        let content = self.offset + 30 + length as u64 + u64::from(u16_at(&fixed, 28));
        Ok((self.offset, content, content.saturating_add(self.packed)))
    }

    /// The Unix mode with its type, as the archive's system means it.
    fn mode(&self) -> u32 {
        let told = self.attributes >> 16;
        if UNIX.contains(&self.system) && told & 0o170_000 != 0 {
            return told;
        }
        let permissions = if UNIX.contains(&self.system) {
            told & 0o7777
        } else {
            0
        };
        let is_folder = self.name.ends_with(b"/") || self.attributes & 0x10 != 0;
        permissions | if is_folder { 0o040_000 } else { 0o100_000 }
    }
}

fn take(
    file: &mut File,
    entry: &Entry,
    content: u64,
    tree: &mut Tree<'_>,
) -> Result<(), StageError> {
    let bad = |what: &str| bad(&entry.name, what);
    if entry.flags & ENCRYPTED != 0 {
        return Err(bad("is encrypted"));
    }
    if entry.name.contains(&b'\\') {
        return Err(bad("has a backslash in its path; folders are parted by /"));
    }
    file.seek(SeekFrom::Start(content))
        .map_err(|error| damaged(&error))?;
    let packed = BufReader::new(file).take(entry.packed);
    let unpacked: Box<dyn Read> = match entry.method {
        STORED if entry.packed != entry.size => return Err(bad("says two sizes of itself")),
        STORED => Box::new(packed),
        DEFLATED => Box::new(DeflateDecoder::new(packed)),
        other => {
            return Err(bad(&format!(
                "is packed by method {other}; only stored and deflated ones are read"
            )));
        }
    };
    let mut content = Checked {
        inner: unpacked,
        hash: crc32fast::Hasher::new(),
        crc: entry.crc,
        left: entry.size,
        checked: false,
    };
    let mode = entry.mode();
    let size = entry.size;
    match mode & 0o170_000 {
        0o040_000 => tree.take(&entry.name, mode & 0o7777, Node::Directory),
        0o100_000 => {
            let content: &mut dyn Read = &mut content;
            tree.take(&entry.name, mode & 0o7777, Node::File { size, content })
        }
        0o120_000 => {
            if size > MAX_LINK {
                return Err(bad("is a link to a path of more than 4,096 bytes"));
            }
            let mut target = Vec::new();
            content
                .read_to_end(&mut target)
                .map_err(|error| bad(&format!("cannot be read: {error}")))?;
            if target.is_empty() {
                return Err(bad("is a link to nowhere"));
            }
            tree.take(
                &entry.name,
                mode & 0o7777,
                Node::Symlink { target: &target },
            )
        }
        _ => Err(bad("is a device, a pipe or something else that is no file")),
    }
}

/// The content of an entry, which must have the size and the CRC that the archive says. Both are
/// looked at with the last byte, so that nobody has it all before.
struct Checked<'a> {
    inner: Box<dyn Read + 'a>,
    hash: crc32fast::Hasher,
    crc: u32,
    left: u64,
    checked: bool,
}

impl Read for Checked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let wrong = |message: &str| io::Error::new(io::ErrorKind::InvalidData, message.to_owned());
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self.inner.read(&mut buffer[..most])?;
        if read == 0 && self.left > 0 {
            return Err(wrong("it is shorter than the archive says"));
        }
        self.hash.update(&buffer[..read]);
        self.left -= read as u64;
        if self.left == 0 && !self.checked {
            self.checked = true;
            if self.inner.read(&mut [0])? > 0 {
                return Err(wrong("it is longer than the archive says"));
            }
            if self.hash.clone().finalize() != self.crc {
                return Err(wrong("its CRC is wrong"));
            }
        }
        Ok(read)
    }
}

/// Figures are little-endian; what is not there reads as zero.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let found = bytes.get(at..at + 2).and_then(|b| b.try_into().ok());
    found.map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    found.map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let found = bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
    found.map_or(0, u64::from_le_bytes)
}
