//! Tar: entries in a row, from whatever decoder.

use std::io::{self, Read};

use tar::{Archive, Entry, EntryType};

use super::budget::{Budget, Guarded};
use super::tree::{Node, Tree, bad};
use super::{StageError, damaged};

/// Most bytes between the contents of two files: headers, long names, extensions.
const MAX_HEADERS: u64 = 1 << 20;
/// Contents are padded to this.
const BLOCK: u64 = 512;

/// Reads every entry into the tree.
///
/// # Errors
/// It is unsafe, damaged, or the disk is full.
pub fn read<R: Read>(source: R, budget: &Budget, tree: &mut Tree<'_>) -> Result<(), StageError> {
    let mut archive = Archive::new(budget.guard(source));
    budget.allow(MAX_HEADERS);
    for entry in archive.entries().map_err(|error| damaged(&error))? {
        let entry = entry.map_err(|error| damaged(&error))?;
        take(entry, budget, tree)?;
        budget.allow(MAX_HEADERS);
    }
    // To the end, so that a checksum there is looked at.
    io::copy(&mut archive.into_inner(), &mut io::sink())
        .map(drop)
        .map_err(|error| damaged(&error))
}

fn take<R: Read>(
    mut entry: Entry<'_, Guarded<R>>,
    budget: &Budget,
    tree: &mut Tree<'_>,
) -> Result<(), StageError> {
    let kind = entry.header().entry_type();
    if kind == EntryType::XGlobalHeader {
        return Ok(());
    }
    let name = entry.path_bytes().into_owned();
    let mode = entry
        .header()
        .mode()
        .map_err(|_| bad(&name, "has no readable mode"))?;
    let size = entry.size();
    let link = |entry: &Entry<'_, Guarded<R>>| match entry.link_name_bytes() {
        Some(link) if !link.is_empty() => Ok(link.into_owned()),
        Some(_) | None => Err(bad(&name, "is a link to nowhere")),
    };
    match kind {
        EntryType::Directory => tree.take(&name, mode, Node::Directory),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            budget.allow(size.saturating_add(BLOCK));
            let content: &mut dyn Read = &mut entry;
            tree.take(&name, mode, Node::File { size, content })
        }
        EntryType::Symlink => {
            let target = link(&entry)?;
            tree.take(&name, mode, Node::Symlink { target: &target })
        }
        EntryType::Link => {
            let target = link(&entry)?;
            tree.take(&name, mode, Node::HardLink { target: &target })
        }
        _ => Err(bad(
            &name,
            "is a device, a pipe or something else that is no file",
        )),
    }
}

/// So that a short content is told as damage, not as an end.
pub fn copy_exactly(content: &mut dyn Read, file: &mut std::fs::File, size: u64) -> io::Result<()> {
    let copied = io::copy(&mut content.take(size), file)?;
    if copied < size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
