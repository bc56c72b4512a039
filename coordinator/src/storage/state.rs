//! The bytes of a state in a snapshot.
//!
//! One value of the codec as long as a member of the cluster may know nothing else; then a byte of its
//! own and, one behind the other, pieces as `length u32 · value of the codec`. A program that knows
//! only the first takes that byte for a version of the encoding and refuses it by name. Checksums and
//! the end are the snapshot file's.

use std::io::{Read, Write};
use std::sync::mpsc::{SyncSender, sync_channel};

use tidegate_coordinator_core::State;
use tidegate_coordinator_core::state::{Assembly, Piece, is_packed, pieces};

use super::codec::{self, CodecError};

/// The first byte of a state in pieces.
const PIECES: u8 = 2;
/// Pieces that are read ahead of those that are in their places.
const AHEAD: usize = 4;

/// Writes a state.
///
/// # Errors
/// [`CodecError::Encode`].
pub fn write(state: &State, out: &mut dyn Write) -> Result<(), CodecError> {
    if !is_packed(state) {
        return codec::encode_into(state, out);
    }
    let failed = |error: std::io::Error| CodecError::Encode(error.to_string());
    out.write_all(&[PIECES]).map_err(failed)?;
    let mut bytes = Vec::new();
    for piece in pieces(state) {
        bytes.clear();
        codec::encode_into(&piece, &mut bytes)?;
        let length = u32::try_from(bytes.len());
        let length = length.map_err(|error| CodecError::Encode(error.to_string()))?;
        out.write_all(&length.to_le_bytes()).map_err(failed)?;
        out.write_all(&bytes).map_err(failed)?;
    }
    Ok(())
}

/// Reads a state to the end of `reader`.
///
/// # Errors
/// Every [`CodecError`].
pub fn read(mut reader: impl Read + Send) -> Result<State, CodecError> {
    let mut first = [0; 1];
    reader
        .read_exact(&mut first)
        .map_err(|_| CodecError::Empty)?;
    if first[0] == PIECES {
        return read_pieces(reader);
    }
    let mut bytes = first.to_vec();
    let read = reader.read_to_end(&mut bytes);
    read.map_err(|error| CodecError::Malformed(error.to_string()))?;
    codec::decode(&bytes)
}

/// One thread reads pieces while this one puts them in their places.
fn read_pieces(reader: impl Read + Send) -> Result<State, CodecError> {
    let malformed = |error: &dyn std::fmt::Display| CodecError::Malformed(error.to_string());
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(AHEAD);
        scope.spawn(move || send_pieces(reader, &sender));
        let mut assembly = Assembly::default();
        for piece in receiver {
            let added = assembly.add(piece?);
            added.map_err(|error| malformed(&error))?;
        }
        assembly.finish().map_err(|error| malformed(&error))
    })
}

/// Ends with the reader, with an error, or when nobody takes pieces any more.
fn send_pieces(mut reader: impl Read, sender: &SyncSender<Result<Piece, CodecError>>) {
    let mut bytes = Vec::new();
    while let Some(piece) = next_piece(&mut reader, &mut bytes).transpose() {
        let is_last = piece.is_err();
        if sender.send(piece).is_err() || is_last {
            return;
        }
    }
}

fn next_piece(reader: &mut impl Read, bytes: &mut Vec<u8>) -> Result<Option<Piece>, CodecError> {
    let malformed = |error: std::io::Error| CodecError::Malformed(error.to_string());
    let cut = || CodecError::Malformed("it ends within a piece".to_owned());
    let mut length = Vec::with_capacity(4);
    reader
        .by_ref()
        .take(4)
        .read_to_end(&mut length)
        .map_err(malformed)?;
    if length.is_empty() {
        return Ok(None);
    }
    let length = <[u8; 4]>::try_from(length.as_slice()).map_err(|_| cut())?;
    let length = u32::from_le_bytes(length);
    bytes.clear();
    reader
        .by_ref()
        .take(u64::from(length))
        .read_to_end(bytes)
        .map_err(malformed)?;
    if bytes.len() != length as usize {
        return Err(cut());
    }
    codec::decode(bytes).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_coordinator_core::state::PACKED_LEVEL;
    use tidegate_coordinator_core::testing;

    fn bytes(state: &State) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(state, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_was_written_is_read_at_every_level() {
        for level in [PACKED_LEVEL - 1, PACKED_LEVEL] {
            let state = testing::deployed(level);
            let bytes = bytes(&state);
            assert_eq!(bytes[0] == PIECES, level == PACKED_LEVEL);
            let read = read(&bytes[..]).unwrap();
            assert_eq!(read, state);
            assert!(read.check().is_empty());
        }
    }

    #[test]
    fn one_value_is_read_whatever_the_level() {
        let state = testing::deployed(PACKED_LEVEL);
        assert_eq!(read(&codec::encode(&state).unwrap()[..]).unwrap(), state);
    }

    #[test]
    fn a_program_that_knows_one_value_alone_says_what_it_needs() {
        let bytes = bytes(&testing::deployed(PACKED_LEVEL));
        let error = codec::decode::<State>(&bytes).unwrap_err();
        assert!(error.to_string().contains("run a newer program"), "{error}");
    }

    #[test]
    fn every_cut_and_what_follows_is_an_error_and_never_a_panic() {
        for level in [PACKED_LEVEL - 1, PACKED_LEVEL] {
            let state = testing::deployed(level);
            let mut bytes = bytes(&state);
            for end in (0..bytes.len()).step_by(97) {
                assert_ne!(read(&bytes[..end]).ok(), Some(state.clone()), "{end}");
            }
            bytes.push(0);
            assert!(read(&bytes[..]).is_err());
        }
    }
}
