//! A connection that was accepted, as the server of gRPC sees it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tonic::transport::server::Connected;

use super::ConnectionInfo;

/// An accepted connection after its handshake.
pub struct TlsConnection {
    pub(super) stream: tokio_rustls::server::TlsStream<TcpStream>,
    pub(super) info: ConnectionInfo,
    /// Since the last flush, other tasks had their turn before the first byte was written.
    pub(super) has_yielded: bool,
    /// A stranger's place, for as long as it is connected.
    pub(super) slot: Option<OwnedSemaphorePermit>,
}

impl TlsConnection {
    /// Who is at the other end.
    #[must_use]
    pub fn info(&self) -> &ConnectionInfo {
        &self.info
    }
}

impl Connected for TlsConnection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Requests of one connection are often answered together, since their commands shared an
        // entry; each answer wakes this connection. Letting the others go first puts all of them
        // into one TLS record and one call of the system.
        if !self.has_yielded {
            self.has_yielded = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if flushed.is_ready() {
            self.has_yielded = false;
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
