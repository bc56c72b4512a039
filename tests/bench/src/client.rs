//! The one client of all coordinated stores: tonic over mutual TLS, the same settings for everybody.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// What proves the client and the servers.
#[derive(Debug, Clone)]
pub struct Credentials {
    tls: ClientTlsConfig,
}

impl Credentials {
    /// From three PEM files.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn read(certificate: &Path, key: &Path, roots: &Path) -> anyhow::Result<Self> {
        let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read(roots)?))
            .identity(Identity::from_pem(read(certificate)?, read(key)?));
        Ok(Self { tls })
    }

    /// One connection to a server, made when it is first used and again when it broke.
    ///
    /// # Errors
    /// The address or the certificates cannot be used.
    pub fn channel(&self, address: &str) -> anyhow::Result<Channel> {
        let endpoint = Endpoint::from_shared(format!("https://{address}"))?
            .tls_config(self.tls.clone())?
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(5));
        Ok(endpoint.connect_lazy())
    }
}
