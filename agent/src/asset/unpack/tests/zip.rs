//! Zips that lie.

use super::*;

/// An entry as it is written, right or wrong.
#[derive(Clone)]
pub(super) struct Zipped<'a> {
    name: &'a [u8],
    local_name: Option<&'a [u8]>,
    mode: u32,
    content: &'a [u8],
    deflate: bool,
    method: Option<u16>,
    flags: u16,
    size: Option<u32>,
    crc: Option<u32>,
    offset: Option<u32>,
}

impl<'a> Zipped<'a> {
    pub(super) fn new(name: &'a str, mode: u32, content: &'a [u8]) -> Self {
        Self {
            name: name.as_bytes(),
            local_name: None,
            mode,
            content,
            deflate: false,
            method: None,
            flags: 0,
            size: None,
            crc: None,
            offset: None,
        }
    }

    pub(super) fn deflated(mut self) -> Self {
        self.deflate = true;
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

pub(super) fn zip(entries: &[Zipped<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut list = Vec::new();
    for entry in entries {
        let packed = if entry.deflate {
            let level = flate2::Compression::default();
            let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
            encoder.write_all(entry.content).unwrap();
            encoder.finish().unwrap()
        } else {
            entry.content.to_vec()
        };
        let method = entry.method.unwrap_or(if entry.deflate { 8 } else { 0 });
        let size = entry.size.unwrap_or(entry.content.len() as u32);
        let crc = entry.crc.unwrap_or_else(|| crc32fast::hash(entry.content));
        let offset = entry.offset.unwrap_or(bytes.len() as u32);
        let mut common = Vec::new();
        common.extend(20_u16.to_le_bytes());
        common.extend(entry.flags.to_le_bytes());
        common.extend(method.to_le_bytes());
        common.extend([0; 4]);
        common.extend(crc.to_le_bytes());
        common.extend((packed.len() as u32).to_le_bytes());
        common.extend(size.to_le_bytes());

        let local = entry.local_name.unwrap_or(entry.name);
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&common);
        bytes.extend((local.len() as u16).to_le_bytes());
        bytes.extend(0_u16.to_le_bytes());
        bytes.extend(local);
        bytes.extend(packed);

        list.extend(b"PK\x01\x02\x14\x03");
        list.extend(&common);
        list.extend((entry.name.len() as u16).to_le_bytes());
        list.extend([0; 8]);
        list.extend((entry.mode << 16).to_le_bytes());
        list.extend(offset.to_le_bytes());
        list.extend(entry.name);
    }
    let start = bytes.len() as u32;
    let count = (entries.len() as u16).to_le_bytes();
    bytes.extend(&list);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend(count);
    bytes.extend(count);
    bytes.extend((list.len() as u32).to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend(0_u16.to_le_bytes());
    bytes
}

const FILE: u32 = 0o100_644;

#[tokio::test]
async fn every_lie_is_refused_by_the_name_of_its_entry() {
    let file = |name| Zipped::new(name, FILE, b"content");
    let zeroes = vec![0; 8 << 20];
    let cases: Vec<(Vec<Zipped<'_>>, &str)> = vec![
        (
            vec![file("/etc/passwd")],
            "\"/etc/passwd\" has an absolute path",
        ),
        (
            vec![file("a/../../b")],
            "\"a/../../b\" has \"..\" in its path",
        ),
        (vec![file("a\\b")], "has a backslash in its path"),
        (vec![file("a\0b")], "has a NUL in its path"),
        (
            vec![Zipped::new("l", 0o120_777, b"/etc")],
            "\"l\" is a link out of the archive",
        ),
        (
            vec![Zipped::new("l", 0o120_777, b"../x")],
            "\"l\" is a link out",
        ),
        (
            vec![Zipped::new("l", 0o120_777, b"")],
            "\"l\" is a link to nowhere",
        ),
        (
            vec![Zipped::new("d", 0o120_777, b"x"), file("d/f")],
            "\"d/f\" goes through a link",
        ),
        (
            vec![file("f"), file("f/g")],
            "\"f/g\" goes through a link or a file",
        ),
        (vec![file("f"), file("f")], "\"f\" stands there twice"),
        (vec![file("f"), file("./f")], "\"./f\" stands there twice"),
        (
            vec![file("f"), Zipped::new("f/", 0o040_755, b"")],
            "\"f/\" stands there twice",
        ),
        (
            vec![Zipped::new("su", 0o104_755, b"x")],
            "\"su\" has a set-uid or set-gid bit",
        ),
        (
            vec![Zipped::new("sg", 0o102_755, b"x")],
            "\"sg\" has a set-uid or set-gid bit",
        ),
        (
            vec![Zipped::new("null", 0o020_666, b"")],
            "\"null\" is a device",
        ),
        (
            vec![Zipped::new("pipe", 0o010_666, b"")],
            "\"pipe\" is a device, a pipe",
        ),
        (vec![file("f").with(|f| f.flags = 1)], "\"f\" is encrypted"),
        (
            vec![file("f").with(|f| f.flags = 1 << 6)],
            "\"f\" is encrypted",
        ),
        (
            vec![file("f").with(|f| f.method = Some(14))],
            "\"f\" is packed by method 14; only stored and deflated",
        ),
        (
            vec![file("f").with(|f| f.local_name = Some(b"g"))],
            "\"f\" is told otherwise in front of its content",
        ),
        (
            vec![file("f").with(|f| f.size = Some(6))],
            "\"f\" says two sizes of itself",
        ),
        (
            vec![file("f").deflated().with(|f| f.size = Some(6))],
            "\"f\" cannot be read: it is longer than the archive says",
        ),
        (
            vec![file("f").deflated().with(|f| f.size = Some(8))],
            "\"f\" cannot be read: it is shorter than the archive says",
        ),
        (
            vec![file("f").with(|f| f.crc = Some(1))],
            "\"f\" cannot be read: its CRC is wrong",
        ),
        (
            vec![file("f").with(|f| f.offset = Some(7))],
            "\"f\" is not where the archive says",
        ),
        // One content that two entries speak for: what makes small zips unpack to petabytes.
        (
            vec![file("f"), file("f").with(|f| f.offset = Some(0))],
            "\"f\"",
        ),
        (
            vec![Zipped::new("zeroes", FILE, &zeroes).deflated()],
            "\"zeroes\" makes the unpacked archive larger",
        ),
    ];
    for (entries, words) in cases {
        let (_dir, result) = stage(&zip(&entries)).await;
        let error = result.expect_err(words);
        assert_eq!(
            error.kind,
            Some(PermanentErrorKind::UnsafeArchive),
            "{error}"
        );
        assert!(error.message.contains(words), "{error} lacks {words}");
        assert!(error.message.ends_with("(TG-1006)"), "{error}");
    }
}

#[tokio::test]
async fn contents_that_overlap_are_refused() {
    // The first entry's content holds the whole of the second one.
    let inner = zip(&[Zipped::new("inner", FILE, b"content")]);
    let local = &inner[..30 + 5 + 7];
    let outer = Zipped::new("outer", FILE, local);
    let lying = Zipped::new("inner", FILE, b"content").with(|entry| entry.offset = Some(35));
    let (_dir, result) = stage(&zip(&[outer, lying])).await;
    let error = result.unwrap_err();
    assert!(
        error
            .message
            .contains("\"inner\" shares its bytes with another entry"),
        "{error}"
    );
}

#[tokio::test]
async fn ends_that_lie_are_refused() {
    let good = zip(&[Zipped::new("f", FILE, b"content")]);
    let at = good.len() - 22;
    let changed = |offset: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at + offset..at + offset + bytes.len()].copy_from_slice(bytes);
        changed
    };
    for (bytes, words) in [
        (changed(4, &[1]), "one part of several"),
        (changed(10, &[2]), "cannot be read"),
        (changed(12, &[9]), "does not lie where its end says"),
        (changed(20, &[1]), "without an end"),
        (zip(&[]), "the archive is empty"),
        (good[..good.len() - 1].to_vec(), "without an end"),
        ([&good[..], b"x"].concat(), "without an end"),
    ] {
        let (_dir, result) = stage(&bytes).await;
        let error = result.expect_err(words);
        assert!(error.message.contains(words), "{error} lacks {words}");
    }
    let mut commented = changed(20, &[5]);
    commented.extend(b"hello");
    let (_dir, result) = stage(&commented).await;
    result.unwrap();
}

/// Zip64 as Python writes it for streams of unknown length, and plain ones.
#[tokio::test]
async fn what_other_programs_write_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
import sys, zipfile
with zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED) as z:
    with z.open("big.txt", "w", force_zip64=True) as f:
        f.write(b"text " * 1000)
    z.writestr("dir/naïve.txt", "text")
"#;
    let path = dir.path().join("a.zip");
    let done = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(&path)
        .status()
        .expect("python3 is needed: apt-get install python3");
    assert!(done.success());
    let (_dir, result) = stage(&std::fs::read(path).unwrap()).await;
    let tree = result.unwrap();
    assert_eq!(std::fs::read(tree.join("big.txt")).unwrap().len(), 5_000);
    assert!(tree.join("dir/naïve.txt").is_file());
}
