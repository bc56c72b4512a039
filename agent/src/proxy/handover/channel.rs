//! One end of the hand-over's connection: lines of JSON both ways, and open descriptors beside them.
//!
//! Descriptors come with whatever bytes they were sent with, so everything is read by `recvmsg`; a plain
//! read would drop them. It knows nothing of what is said.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Longest line, in bytes.
const LINE_LIMIT: usize = 64 * 1024 * 1024;

/// Descriptors in one message; the kernel takes 253.
const BATCH: usize = 64;

/// See the module.
pub(in crate::proxy) struct Channel {
    stream: UnixStream,
    bytes: Vec<u8>,
    /// Bytes of `bytes` that are known to hold no end of a line.
    searched: usize,
    descriptors: VecDeque<OwnedFd>,
}

impl Channel {
    pub(in crate::proxy) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            bytes: Vec::new(),
            searched: 0,
            descriptors: VecDeque::new(),
        }
    }

    /// Sends one message.
    pub(super) async fn say<T: Serialize>(&self, message: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let mut rest = &line[..];
        while !rest.is_empty() {
            let written = self.send(rest, &[]).await?;
            rest = &rest[written..];
        }
        Ok(())
    }

    /// Passes open descriptors, each batch beside an empty line.
    pub(super) async fn pass(&self, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        for batch in descriptors.chunks(BATCH) {
            self.send(b"\n", batch).await?;
        }
        Ok(())
    }

    async fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let attempt = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
            let mut beside = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(descriptors))
            {
                return Err(io::Error::other("too many descriptors for one message"));
            }
            let parts = [IoSlice::new(bytes)];
            Ok(sendmsg(
                &self.stream,
                &parts,
                &mut beside,
                SendFlags::NOSIGNAL,
            )?)
        };
        self.stream.async_io(Interest::WRITABLE, attempt).await
    }

    /// The next message, waiting at most `limit` for it. Losing the future loses nothing.
    pub(super) async fn hear<T: DeserializeOwned>(&mut self, limit: Duration) -> io::Result<T> {
        let line = tokio::time::timeout(limit, self.line());
        let line = line.await.map_err(|_| {
            let reason = format!("the other side was silent for {} s", limit.as_secs());
            io::Error::new(io::ErrorKind::TimedOut, reason)
        })??;
        serde_json::from_slice(&line).map_err(|error| {
            let text = String::from_utf8_lossy(&line);
            let shown: String = text.chars().take(200).collect();
            io::Error::new(io::ErrorKind::InvalidData, format!("{error}: {shown}"))
        })
    }

    /// Takes `count` descriptors that were announced.
    pub(super) async fn take(&mut self, count: usize, limit: Duration) -> io::Result<Vec<OwnedFd>> {
        let gather = async {
            while self.descriptors.len() < count {
                self.read().await?;
            }
            Ok(self.descriptors.drain(..count).collect())
        };
        match tokio::time::timeout(limit, gather).await {
            Ok(taken) => taken,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// The next line that is not empty.
    async fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let end = self.bytes[self.searched..].iter().position(|b| *b == b'\n');
            match end {
                Some(end) => {
                    let rest = self.bytes.split_off(self.searched + end + 1);
                    let mut line = std::mem::replace(&mut self.bytes, rest);
                    self.searched = 0;
                    line.pop();
                    if !line.is_empty() {
                        return Ok(line);
                    }
                }
                None => {
                    self.searched = self.bytes.len();
                    self.read().await?;
                }
            }
        }
    }

    async fn read(&mut self) -> io::Result<()> {
        let Self {
            stream,
            bytes,
            descriptors,
            ..
        } = self;
        let attempt = || {
            let mut piece = [0; 16 * 1024];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut piece)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let count = recvmsg(&*stream, &mut parts, &mut beside, flags)?.bytes;
            for message in beside.drain() {
                if let RecvAncillaryMessage::ScmRights(passed) = message {
                    descriptors.extend(passed);
                }
            }
            bytes.extend_from_slice(&piece[..count]);
            Ok(count)
        };
        let count = stream.async_io(Interest::READABLE, attempt).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.bytes.len() > LINE_LIMIT {
            let reason = format!("a line is longer than {LINE_LIMIT} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn lines_and_descriptors_arrive_in_order() {
        let (one, two) = UnixStream::pair().expect("a pair");
        let (one, mut two) = (Channel::new(one), Channel::new(two));
        let long = "x".repeat(300_000);
        let files: Vec<std::fs::File> = (0..150)
            .map(|_| tempfile::tempfile().expect("a file"))
            .collect();
        for (position, mut file) in files.iter().enumerate() {
            std::io::Write::write_all(&mut file, position.to_string().as_bytes()).expect("written");
        }
        let send = async {
            one.say(&long).await.expect("sent");
            let descriptors: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            one.pass(&descriptors).await.expect("passed");
            one.say(&"end").await.expect("sent");
        };
        let receive = async {
            assert_eq!(two.hear::<String>(LIMIT).await.expect("a line"), long);
            let taken = two.take(150, LIMIT).await.expect("descriptors");
            for (position, descriptor) in taken.into_iter().enumerate() {
                let file = std::fs::File::from(descriptor);
                let mut text = [0; 8];
                let count = std::os::unix::fs::FileExt::read_at(&file, &mut text, 0).expect("read");
                assert_eq!(&text[..count], position.to_string().as_bytes());
            }
            assert_eq!(two.hear::<String>(LIMIT).await.expect("a line"), "end");
        };
        tokio::join!(send, receive);
        drop(one);
        let error = two.hear::<String>(LIMIT).await.expect_err("the end");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
