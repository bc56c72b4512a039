//! The link to the coordinators: one channel to one of them, the others in reserve.
//!
//! The first address that answers is kept; an address that is silent delays the next one only for
//! a moment. A call that fails because a coordinator went away or froze, nobody leads, or the
//! outcome is not known is repeated, at another coordinator and with the same request id, for a
//! bounded time. A refusal is never repeated.

use std::error::Error as _;
use std::future::Future;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::context::Context;
use crate::errors::{Failure, Result};
use crate::{time, tls};

/// One coordinator has this long to answer the door.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// All coordinators together have this long until one of them answers the door.
const REACH_LIMIT: Duration = Duration::from_secs(3);
/// The next coordinator is tried beside one that has not answered the door for so long.
const PATIENCE: Duration = Duration::from_millis(750);
/// The first attempt of a call has this long, each further one twice as long as the one before: a
/// coordinator that froze is left soon, and a slow one is waited for in the end.
const FIRST_CALL_LIMIT: Duration = Duration::from_secs(2);
/// No attempt of a call has longer.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// A call is repeated for this long.
const RETRY_LIMIT: Duration = Duration::from_secs(20);
/// Largest answer that is read: lists come in pages.
const MESSAGE_LIMIT: usize = 16 << 20;
/// The addresses of a context are looked up again after this long.
const REFRESH_AFTER_MS: u64 = 3_600_000;
/// The same when only two are known: the third may have joined a moment later. A single one, as
/// in a context that `init` wrote, is not relied on at all.
const REFRESH_FEW_AFTER_MS: u64 = 10_000;

/// How rustls begins the text of an alert from the other side.
const ALERT: &str = "received fatal alert: ";

/// Pauses between attempts: 0.1 s, doubled up to 2 s, until a limit.
#[derive(Debug)]
struct Backoff {
    until: Instant,
    next: Duration,
}

impl Backoff {
    fn new(limit: Duration) -> Self {
        Self {
            until: Instant::now() + limit,
            next: Duration::from_millis(100),
        }
    }

    /// Sleeps; `false` when the limit is reached.
    async fn pause(&mut self) -> bool {
        if Instant::now() + self.next > self.until {
            return false;
        }
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(Duration::from_secs(2));
        true
    }
}

/// A person's link to a cluster.
#[derive(Debug)]
pub struct Client {
    context: Context,
    config: Arc<ClientConfig>,
    link: Mutex<Link>,
}

#[derive(Debug, Default)]
struct Link {
    /// Which address is to be tried first.
    first: usize,
    channel: Option<Channel>,
}

impl Client {
    /// Connects to a coordinator of the context, renews the certificate when two thirds of its
    /// life are over and refreshes the addresses now and then.
    ///
    /// # Errors
    /// The certificate ran out or is refused; no coordinator answers.
    pub async fn connect(context: Context) -> Result<Self> {
        let mut client = Self::to_one(context).await?;
        let identity = tls::identity(&client.context)?;
        let now = time::now_ms();
        let life = identity.not_after_ms.saturating_sub(identity.not_before_ms);
        if now > identity.not_before_ms.saturating_add(life / 3 * 2) {
            // It still counts: what stands in the way now may be gone at the next call.
            if let Err(failure) = client.renew().await {
                writeln!(
                    io::stderr(),
                    "warning: the certificate ends at {} and was not renewed: {}",
                    time::stamp(identity.not_after_ms),
                    failure.message()
                )
                .ok();
            }
        }
        let age = now.saturating_sub(client.context.described_at_ms());
        let limit = match client.context.description.control.len() {
            0 | 1 => 0,
            2 => REFRESH_FEW_AFTER_MS,
            _ => REFRESH_AFTER_MS,
        };
        if age >= limit {
            // A context that cannot be written still works with the addresses it has.
            client.refresh_addresses().await.ok();
        }
        Ok(client)
    }

    /// Connects to a coordinator of the context and leaves the context's files alone.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn to_one(context: Context) -> Result<Self> {
        let identity = tls::identity(&context)?;
        let now = time::now_ms();
        if now >= identity.not_after_ms {
            return Err(Failure::new(
                Reason::Credentials,
                format!(
                    "the certificate of {} in {} ran out at {}",
                    identity.uri,
                    context.folder.display(),
                    time::stamp(identity.not_after_ms)
                ),
            )
            .hint("ask for a token (`tidegate token create user --name NAME`) and log in again with `tidegate login --token …`; if nobody can make one any more, run `tidegate-coordinator admin --dir DIR` on a coordinator's host"));
        }
        let config = tls::mutual(&context, b"h2")?;
        let client = Self {
            context,
            config,
            link: Mutex::default(),
        };
        client.channel().await?;
        Ok(client)
    }

    /// The context in use.
    pub const fn context(&self) -> &Context {
        &self.context
    }

    /// Calls a service; repeats while the failure may pass. `operation` is given a channel and
    /// must send the same request each time.
    ///
    /// # Errors
    /// The refusal, or what stood in the way at the last attempt.
    pub async fn call<T, F, Fut>(&self, operation: F) -> Result<T>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = std::result::Result<tonic::Response<T>, Status>>,
    {
        self.call_for(FIRST_CALL_LIMIT, operation).await
    }

    /// The same for what takes a coordinator its time: the first attempt has `first`.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call_for<T, F, Fut>(&self, first: Duration, operation: F) -> Result<T>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = std::result::Result<tonic::Response<T>, Status>>,
    {
        let mut backoff = Backoff::new(RETRY_LIMIT);
        let mut limit = first;
        loop {
            let channel = self.channel().await?;
            let answer = tokio::time::timeout(limit, operation(channel)).await;
            limit = (limit * 2).min(CALL_LIMIT.max(first));
            let failure = match answer {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => failure_of(status),
                Err(_) => Failure::from(Status::deadline_exceeded("no answer in time")),
            };
            if !failure.is_transient() || failure.is_about_credentials() {
                return Err(failure);
            }
            self.leave().await;
            if !backoff.pause().await {
                return Err(failure);
            }
        }
    }

    /// Gives up the present coordinator; the next call goes to another one.
    pub async fn leave(&self) {
        let mut link = self.link.lock().await;
        if link.channel.take().is_some() {
            link.first = (link.first + 1) % self.context.description.control.len().max(1);
        }
    }

    /// The channel to the present coordinator, or to the first that answers.
    async fn channel(&self) -> Result<Channel> {
        let mut link = self.link.lock().await;
        if let Some(channel) = &link.channel {
            return Ok(channel.clone());
        }
        let addresses = &self.context.description.control;
        let mut backoff = Backoff::new(REACH_LIMIT);
        loop {
            let order = (0..addresses.len()).map(|offset| (link.first + offset) % addresses.len());
            let failures = match self.first_of(addresses, order).await {
                Ok((position, channel)) => {
                    link.first = position;
                    link.channel = Some(channel.clone());
                    return Ok(channel);
                }
                Err(failures) => failures,
            };
            let hopeless = failures
                .iter()
                .all(|(_, failure)| failure.is_about_credentials());
            if hopeless || !backoff.pause().await {
                return Err(unreachable(failures, "control"));
            }
        }
    }

    /// The first coordinator that answers the door: each is tried as soon as the one before
    /// failed or was silent for a moment.
    async fn first_of(
        &self,
        addresses: &[String],
        order: impl Iterator<Item = usize>,
    ) -> std::result::Result<(usize, Channel), Vec<(String, Failure)>> {
        let mut order = order.fuse();
        let mut attempts = JoinSet::new();
        let mut failures = Vec::new();
        loop {
            let next = order.next();
            if let Some(position) = next {
                let (address, config) = (addresses[position].clone(), self.config.clone());
                attempts.spawn(async move { (position, open(&address, config).await) });
            }
            let answered = match next {
                Some(_) => tokio::time::timeout(PATIENCE, attempts.join_next()).await,
                None => Ok(attempts.join_next().await),
            };
            match answered {
                // Silent for now.
                Err(_) => {}
                Ok(Some(Ok((position, Ok(channel))))) => return Ok((position, channel)),
                Ok(Some(Ok((position, Err(failure))))) => {
                    failures.push((addresses[position].clone(), failure));
                }
                Ok(Some(Err(_))) => {}
                Ok(None) if next.is_none() => return Err(failures),
                Ok(None) => {}
            }
        }
    }

    /// A new certificate for the same key and name.
    async fn renew(&mut self) -> Result<()> {
        let csr = csr_for(&self.context)?;
        let request = api::RenewCertificateRequest { csr: csr.into() };
        let answer = self
            .call(|channel| {
                let request = request.clone();
                async move { cluster(channel).renew_certificate(request).await }
            })
            .await?;
        self.context.replace_certificate(
            answer.certificate_chain.into_bytes(),
            answer.roots.into_bytes(),
        )?;
        self.config = tls::mutual(&self.context, b"h2")?;
        Ok(())
    }

    /// Looks up the members' addresses and keeps them in the context.
    ///
    /// # Errors
    /// The cluster's, or the context cannot be written.
    pub async fn refresh_addresses(&mut self) -> Result<()> {
        let status =
            self.call(|channel| async move {
                cluster(channel).status(api::ClusterStatusRequest {}).await
            })
            .await?;
        let gather = |pick: fn(&api::MemberStatus) -> &String| -> Vec<String> {
            let addresses = status.members.iter().map(pick);
            addresses
                .filter(|address| !address.is_empty())
                .cloned()
                .collect()
        };
        let control = gather(|member| &member.control);
        if !control.is_empty() {
            let link = self.link.get_mut();
            // The one that answers now stays the first to be asked.
            let present = self.context.description.control.get(link.first);
            link.first = present
                .and_then(|present| control.iter().position(|address| address == present))
                .unwrap_or(0);
            let description = &mut self.context.description;
            description.control = control;
            description.http = gather(|member| &member.http);
            description.enroll = gather(|member| &member.enroll);
            self.context.write_description()?;
        }
        Ok(())
    }
}

/// The service of the cluster itself.
pub fn cluster(channel: Channel) -> api::cluster_client::ClusterClient<Channel> {
    api::cluster_client::ClusterClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// Opens a TLS connection to `host:port`.
///
/// # Errors
/// Says whether nobody listens, nobody answers, or who is there is not who should be.
pub async fn dial(address: &str, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
    let unreachable = |cause: String| Failure::new(Reason::Unreachable, cause);
    let dialing = async {
        let stream = TcpStream::connect(address).await.map_err(|error| {
            unreachable(match error.kind() {
                io::ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
                _ => error.to_string(),
            })
        })?;
        stream
            .set_nodelay(true)
            .map_err(|error| unreachable(error.to_string()))?;
        let name =
            ServerName::try_from("tidegate").map_err(|error| unreachable(error.to_string()))?;
        TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(|error| of_io(&error))
    };
    tokio::time::timeout(CONNECT_LIMIT, dialing)
        .await
        .unwrap_or_else(|_| Err(unreachable("no answer within 3 s".to_owned())))
}

/// A channel over our own TLS, connected.
///
/// # Errors
/// As [`dial`].
pub async fn open(address: &str, config: Arc<ClientConfig>) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| Failure::new(Reason::Config, format!("\"{address}\" is not an address")))?
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .tcp_nodelay(true);
    // The first connection is made here, so that its failure can be told precisely.
    let first = Arc::new(Mutex::new(Some(dial(address, config.clone()).await?)));
    let address: Arc<str> = Arc::from(address);
    let connector = tower::service_fn(move |_: hyper::Uri| {
        let (first, address, config) = (first.clone(), address.clone(), config.clone());
        async move {
            let waiting = first.lock().await.take();
            let stream = match waiting {
                Some(stream) => stream,
                None => dial(&address, config)
                    .await
                    .map_err(|failure| io::Error::other(failure.message().to_owned()))?,
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|error| {
            in_chain(&error).unwrap_or_else(|| Failure::new(Reason::Unreachable, error.to_string()))
        })
}

/// A certificate signing request with the context's own key.
///
/// # Errors
/// The key file is no key.
pub fn csr_for(context: &Context) -> Result<Vec<u8>> {
    let wrong = |message: String| {
        Failure::new(
            Reason::Credentials,
            format!(
                "{} cannot be used: {message}",
                context.folder.join(crate::context::KEY).display()
            ),
        )
    };
    let pem = std::str::from_utf8(&context.key).map_err(|error| wrong(error.to_string()))?;
    let key = rcgen::KeyPair::from_pem(pem).map_err(|error| wrong(error.to_string()))?;
    csr(&key).map_err(wrong)
}

/// A certificate signing request; only its public key is looked at.
///
/// # Errors
/// The key cannot sign.
pub fn csr(key: &rcgen::KeyPair) -> std::result::Result<Vec<u8>, String> {
    let parameters =
        rcgen::CertificateParams::new(Vec::<String>::new()).map_err(|error| error.to_string())?;
    let request = parameters
        .serialize_request(key)
        .map_err(|error| error.to_string())?;
    Ok(request.der().to_vec())
}

/// A refusal or a broken link as a failure.
pub fn failure_of(status: Status) -> Failure {
    // What stands at the bottom of a broken link says more than the status.
    let cause = status.source().and_then(in_chain);
    match cause {
        Some(cause) if cause.is_about_credentials() => cause,
        _ => Failure::from(status),
    }
}

fn in_chain(error: &(dyn std::error::Error + 'static)) -> Option<Failure> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error
                .get_ref()
                .is_some_and(|inner| inner.is::<rustls::Error>())
        {
            return Some(of_io(error));
        }
        // HTTP/2 passes on what went wrong below it as text alone.
        if error.is::<io::Error>()
            && let Some(alert) = error.to_string().strip_prefix(ALERT)
        {
            return Some(refused_by_alert(alert));
        }
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(of_tls(error));
        }
        next = error.source();
    }
    None
}

fn of_io(error: &io::Error) -> Failure {
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    {
        Some(error) => of_tls(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => Failure::new(
            Reason::Unreachable,
            "the connection was closed during the TLS handshake",
        ),
        None => Failure::new(Reason::Unreachable, error.to_string()),
    }
}

fn refused_by_alert(alert: &str) -> Failure {
    Failure::new(
        Reason::Unauthenticated,
        format!("the coordinator refuses our certificate ({alert})"),
    )
}

fn of_tls(error: &rustls::Error) -> Failure {
    use rustls::Error;
    match error {
        Error::AlertReceived(alert) => refused_by_alert(&format!("{alert:?}")),
        Error::InvalidCertificate(cause) => Failure::new(
            Reason::WrongServer,
            format!("the server's certificate is not one of this cluster ({cause:?})"),
        ),
        Error::General(message) => Failure::new(Reason::WrongServer, message.clone()),
        Error::InvalidMessage(_) => {
            Failure::new(Reason::Unreachable, "who listens there does not speak TLS")
        }
        other => Failure::new(Reason::Unreachable, format!("TLS failed: {other}")),
    }
}

/// One failure out of one per address.
pub fn unreachable(failures: Vec<(String, Failure)>, what: &str) -> Failure {
    let told = failures
        .iter()
        .find(|(_, failure)| failure.is_about_credentials())
        .map(|(_, failure)| failure.clone());
    let places = failures
        .iter()
        .map(|(address, failure)| format!("{address}: {}", failure.message()));
    let base = match told {
        Some(failure) => failure,
        None if failures.len() == 1 => {
            Failure::new(Reason::Unreachable, "the coordinator cannot be reached")
        }
        None => Failure::new(
            Reason::Unreachable,
            format!("none of {} coordinators can be reached", failures.len()),
        ),
    };
    let base = if failures.is_empty() {
        base.hint(format!(
            "the context names no {what} address; log in again with `tidegate login --token …`"
        ))
    } else {
        base
    };
    places.fold(base, Failure::at)
}

/// Calls a method of a service with a request that is the same at each attempt.
#[macro_export]
macro_rules! rpc {
    ($client:expr, $service:ident :: $type:ident, $method:ident, $request:expr) => {{
        let request = $request;
        $client.call(move |channel| {
            let request = request.clone();
            async move {
                tidegate_proto::control::v1::$service::$type::new(channel)
                    .max_decoding_message_size($crate::connect::message_limit())
                    .$method(request)
                    .await
            }
        })
    }};
}

/// Largest answer that is read, in bytes.
pub const fn message_limit() -> usize {
    MESSAGE_LIMIT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_told_with_its_cause() {
        let refused = || Failure::new(Reason::Unreachable, "nobody listens there");
        let failure = unreachable(
            vec![("a:1".to_owned(), refused()), ("b:2".to_owned(), refused())],
            "control",
        );
        let text = failure.render(false);
        assert!(
            text.starts_with("error: none of 2 coordinators can be reached\n  --> a:1: nobody")
        );
        assert!(text.contains("code: TG-1409"));
    }

    #[test]
    fn an_alert_is_known_by_its_text_too() {
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA);
        let text = io::Error::new(io::ErrorKind::InvalidData, alert.to_string());
        for error in [text, io::Error::new(io::ErrorKind::InvalidData, alert)] {
            let failure = in_chain(&error).unwrap();
            assert_eq!(failure.code(), "TG-1301");
            assert!(failure.message().contains("UnknownCA"), "{failure}");
        }
        assert!(in_chain(&io::Error::from(io::ErrorKind::BrokenPipe)).is_none());
    }

    #[test]
    fn a_wrong_certificate_outweighs_a_closed_door() {
        let failure = unreachable(
            vec![
                ("a:1".to_owned(), Failure::new(Reason::Unreachable, "x")),
                (
                    "b:2".to_owned(),
                    Failure::new(Reason::WrongServer, "another cluster"),
                ),
            ],
            "control",
        );
        assert_eq!(failure.code(), "TG-1307");
    }
}
