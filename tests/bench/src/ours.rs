//! Tidegate as it is measured: real processes on loopback, and the control API over mutual TLS.
//!
//! The value that is written is a parameter of an application (`Objects.Apply`): a mutation that
//! people make, checked, replicated, audited and remembered by its request id like any other.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use tidegate_harness::{Cluster, Shape};
use tidegate_proto::control::v1 as api;
use tidegate_proto::control::v1::objects_client::ObjectsClient;
use tonic::transport::Channel;
use ulid::Ulid;

use crate::client::Credentials;
use crate::stats::Numbers;
use crate::store::{KEYS, Store, VALUE_BYTES};

/// The application whose parameters are written.
const APPLICATION: &str = "bench";
/// A call of the preparation.
const FILL_LIMIT: Duration = Duration::from_secs(60);

/// A cluster with everything that clients need.
pub struct Ours {
    /// The processes.
    pub cluster: Cluster,
    credentials: Credentials,
}

impl Ours {
    /// Makes and starts one.
    ///
    /// # Errors
    /// What did not start, with the end of its log.
    pub async fn start(shape: Shape, tick: &'static str) -> anyhow::Result<Self> {
        let started = tokio::task::spawn_blocking(move || Cluster::start_with_tick(shape, tick));
        let cluster = started.await??;
        let admin = cluster.dir().join("admin");
        let credentials = Credentials::read(
            &admin.join("cert.pem"),
            &admin.join("key.pem"),
            &admin.join("roots.pem"),
        )?;
        let ours = Self {
            cluster,
            credentials,
        };
        ours.objects(0)?.apply(application()).await?;
        Ok(ours)
    }

    /// What the programs say of their version.
    pub fn version() -> String {
        format!("tidegate {}", env!("CARGO_PKG_VERSION"))
    }

    /// A connection to a coordinator; from 0.
    ///
    /// # Errors
    /// The certificates cannot be used.
    pub fn channel(&self, position: usize) -> anyhow::Result<Channel> {
        let address = self.cluster.listeners(position).control;
        self.credentials.channel(&address)
    }

    fn objects(&self, position: usize) -> anyhow::Result<ObjectsClient<Channel>> {
        Ok(ObjectsClient::new(self.channel(position)?))
    }

    /// Connections to a coordinator; from 0.
    ///
    /// # Errors
    /// The certificates cannot be used.
    pub fn connect(&self, position: usize, count: usize) -> anyhow::Result<Vec<OurStore>> {
        (0..count)
            .map(|_| {
                Ok(OurStore {
                    client: self.objects(position)?,
                })
            })
            .collect()
    }

    /// Runs the command line or waits for processes, off the tasks that measure.
    ///
    /// # Errors
    /// Those of `act`.
    pub async fn with_cluster<T: Send + 'static>(
        self,
        act: impl FnOnce(&mut Cluster) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<(Self, T)> {
        let Self {
            mut cluster,
            credentials,
        } = self;
        let acted = tokio::task::spawn_blocking(move || {
            let result = act(&mut cluster);
            (cluster, result)
        });
        let (cluster, result) = acted.await?;
        let ours = Self {
            cluster,
            credentials,
        };
        Ok((ours, result?))
    }

    /// Ends the processes, off the tasks that measure.
    ///
    /// # Errors
    /// The runtime is ending.
    pub async fn end(self) -> anyhow::Result<()> {
        tokio::task::spawn_blocking(move || drop(self)).await?;
        Ok(())
    }

    /// The coordinator that leads, from 0, asked over the API.
    ///
    /// # Errors
    /// Nobody leads.
    pub async fn leader(self) -> anyhow::Result<(Self, usize)> {
        self.with_cluster(|cluster| cluster.leader()).await
    }
}

fn application() -> api::ApplyRequest {
    api::ApplyRequest {
        kind: "application".to_owned(),
        name: APPLICATION.to_owned(),
        spec: "{}".to_owned(),
        request_id: request_id(&mut Numbers::new(1)),
        ..api::ApplyRequest::default()
    }
}

fn request_id(numbers: &mut Numbers) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.map_or(0, |since| since.as_millis() as u64);
    // Clients draw the same numbers in every run, and a cluster is asked within one millisecond by
    // many of them: their seeds keep the ids apart.
    let random = u128::from(numbers.draw()) << 64 | u128::from(numbers.draw());
    Ulid::from_parts(millis, random).to_string()
}

fn parameter(key: u64, numbers: &mut Numbers) -> api::ApplyRequest {
    let value = numbers.text(VALUE_BYTES);
    api::ApplyRequest {
        kind: "parameter".to_owned(),
        name: name(key),
        spec: format!(
            "{{\"variable\":\"BENCH\",\"value\":\"{value}\",\"target\":{{\"application\":\"{APPLICATION}\"}}}}"
        ),
        request_id: request_id(numbers),
        ..api::ApplyRequest::default()
    }
}

fn name(key: u64) -> String {
    format!("bench-{:05}", key % KEYS)
}

/// One connection.
#[derive(Debug, Clone)]
pub struct OurStore {
    client: ObjectsClient<Channel>,
}

impl Store for OurStore {
    async fn put(&self, numbers: &mut Numbers) -> anyhow::Result<()> {
        let request = parameter(numbers.draw(), numbers);
        self.client.clone().apply(request).await?;
        Ok(())
    }

    async fn put_many(&self, numbers: &mut Numbers, count: usize) -> anyhow::Result<()> {
        let first = numbers.draw();
        let objects = (0..count as u64)
            .map(|offset| parameter(first.wrapping_add(offset), numbers))
            .collect();
        let request = api::ApplyManyRequest {
            objects,
            ..api::ApplyManyRequest::default()
        };
        let answer = self.client.clone().apply_many(request).await?.into_inner();
        ensure!(answer.results.len() == count, "answers are missing");
        for result in answer.results {
            if let Some(api::apply_result::Result::Refusal(refusal)) = result.result {
                bail!("{}: {}", refusal.code, refusal.message);
            }
        }
        Ok(())
    }

    async fn get(&self, numbers: &mut Numbers) -> anyhow::Result<()> {
        let request = api::GetObjectRequest {
            kind: "parameter".to_owned(),
            name: name(numbers.draw()),
        };
        let found = self.client.clone().get(request).await?.into_inner();
        ensure!(found.spec.len() > VALUE_BYTES, "the value is not there");
        Ok(())
    }
}

/// Writes every key once, so that reads find them.
///
/// # Errors
/// A write is refused.
pub async fn fill(store: &OurStore) -> anyhow::Result<()> {
    let mut numbers = Numbers::new(7);
    for first in (0..KEYS).step_by(100) {
        let objects = (first..first + 100)
            .map(|key| parameter(key, &mut numbers))
            .collect();
        let request = api::ApplyManyRequest {
            objects,
            ..api::ApplyManyRequest::default()
        };
        let mut client = store.client.clone();
        let call = client.apply_many(request);
        tokio::time::timeout(FILL_LIMIT, call)
            .await
            .context("no answer in time")??;
    }
    Ok(())
}
