//! The port accepts a connection.

use std::net::SocketAddr;

use tokio::net::TcpStream;

/// One sample.
///
/// # Errors
/// What the system says.
pub async fn sample(address: SocketAddr) -> Result<(), String> {
    match TcpStream::connect(address).await {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("connecting to {address}: {error}")),
    }
}
