//! Zstandard: one or more frames in a row, skippable ones among them (RFC 8878 §3.1).
//!
//! The decoder holds a window in memory, at most 128 MiB by its own limit; nothing beyond that is
//! kept.

use std::io::{self, BufRead as _, BufReader, Read};

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

const MAGIC: u32 = 0xfd2f_b528;
const SKIPPABLE: u32 = 0x184d_2a50;

/// The content of every frame of a source.
pub struct Frames<R: Read> {
    source: BufReader<R>,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: Read> Frames<R> {
    /// Nothing is read yet.
    pub fn new(source: R) -> Self {
        Self {
            source: BufReader::with_capacity(64 * 1024, source),
            decoder: FrameDecoder::new(),
            in_frame: false,
        }
    }

    /// Goes to the next frame; false at the end.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            let start = self.source.fill_buf()?;
            if start.is_empty() {
                return Ok(false);
            }
            let mut magic = [0; 4];
            // The decoder wants the mark of a frame itself, so it is put before the rest again.
            self.source.read_exact(&mut magic)?;
            match u32::from_le_bytes(magic) {
                MAGIC => {
                    self.decoder
                        .reset(magic.as_slice().chain(&mut self.source))
                        .map_err(io::Error::other)?;
                    self.in_frame = true;
                    return Ok(true);
                }
                mark if mark & 0xffff_fff0 == SKIPPABLE => {
                    let mut length = [0; 4];
                    self.source.read_exact(&mut length)?;
                    let length = u64::from(u32::from_le_bytes(length));
                    let skipped = io::copy(&mut (&mut self.source).take(length), &mut io::sink())?;
                    if skipped < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                _ => {
                    let message = "something that is no zstd frame follows";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
            }
        }
    }

    fn end(&mut self) -> io::Result<()> {
        self.in_frame = false;
        let told = self.decoder.get_checksum_from_data();
        if told.is_some() && told != self.decoder.get_calculated_checksum() {
            let message = "a zstd frame has a wrong checksum";
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(())
    }
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.in_frame {
                while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                    self.decoder
                        .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                        .map_err(io::Error::other)?;
                }
                let read = self.decoder.read(buffer)?;
                if read > 0 || buffer.is_empty() {
                    return Ok(read);
                }
                self.end()?;
            } else if !self.begin()? {
                return Ok(0);
            }
        }
    }
}
