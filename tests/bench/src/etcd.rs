//! etcd as the reference: real processes on loopback with mutual TLS among them and for clients.
//!
//! Everything but addresses, folders and certificates is its default.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustix::process::Signal;
use tidegate_harness::ports::{self, Network};
use tidegate_harness::process::{Process, tail};
use tonic::transport::Channel;

use crate::client::Credentials;
use crate::machine;
use crate::stats::Numbers;
use crate::store::{KEYS, Store, VALUE_BYTES};

/// The generated client.
#[allow(missing_docs, clippy::all, reason = "generated code")]
mod pb {
    tonic::include_proto!("etcdserverpb");
}

use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;

/// A start may take so long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(20);
/// An etcd that does not lead may hold a question for long.
const QUESTION_LIMIT: Duration = Duration::from_secs(2);

struct Member {
    name: String,
    client: SocketAddr,
    arguments: Vec<String>,
    process: Option<Process>,
}

/// A cluster; its processes end with it.
pub struct Etcd {
    program: PathBuf,
    credentials: Credentials,
    members: Vec<Member>,
    folder: tempfile::TempDir,
}

impl Etcd {
    /// What it says of its version.
    ///
    /// # Errors
    /// It is not installed.
    pub fn version() -> anyhow::Result<String> {
        Ok(machine::version(&find()?, "--version"))
    }

    /// Makes and starts one of `size` members; comes back when one leads.
    ///
    /// # Errors
    /// What did not start, with the end of its log.
    pub async fn start(size: u8) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tidegate-").tempdir()?;
        let network = Network::new();
        let addresses: Vec<IpAddr> = (1..=size).map(|n| network.address(n)).collect();
        write_certificates(folder.path(), &addresses)?;
        let credentials = Credentials::read(
            &folder.path().join("cert.pem"),
            &folder.path().join("key.pem"),
            &folder.path().join("ca.pem"),
        )?;
        let mut etcd = Self {
            program: find()?,
            credentials,
            members: plan(folder.path(), &addresses)?,
            folder,
        };
        for position in 0..etcd.members.len() {
            etcd.start_member(position)?;
        }
        let led = etcd.leader().await;
        led.with_context(|| etcd.tails())?;
        Ok(etcd)
    }

    /// Starts a member that does not run; from 0.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_member(&mut self, position: usize) -> anyhow::Result<()> {
        let log = self.folder.path().join("log");
        let member = &mut self.members[position];
        let log = log.with_extension(&member.name);
        let process = Process::start(&member.name, &self.program, &member.arguments, &[], &log)?;
        member.process = Some(process);
        Ok(())
    }

    /// Ends a member as `kill -9` does.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_member(&mut self, position: usize) -> anyhow::Result<()> {
        let process = self.members[position].process.take();
        process.context("it does not run")?.kill()
    }

    /// Tells a member to end, as SIGTERM does; it may still be ending.
    ///
    /// # Errors
    /// It does not run.
    pub fn stop_member(&mut self, position: usize) -> anyhow::Result<()> {
        let process = self.members[position].process.as_ref();
        process.context("it does not run")?.signal(Signal::TERM)
    }

    /// Waits for the end of a member that was told to end.
    ///
    /// # Errors
    /// It does not end.
    pub fn wait_member(&mut self, position: usize) -> anyhow::Result<()> {
        let process = self.members[position].process.take();
        process.context("it does not run")?.wait(PATIENCE)?;
        Ok(())
    }

    /// The member that leads, from 0, once one does.
    ///
    /// # Errors
    /// Nobody leads in time.
    pub async fn leader(&self) -> anyhow::Result<usize> {
        let began = std::time::Instant::now();
        loop {
            for position in 0..self.members.len() {
                if self.members[position].process.is_none() {
                    continue;
                }
                if let Ok(status) = self.status(position).await
                    && status.leader != 0
                    && status.leader == own_id(&status)
                {
                    return Ok(position);
                }
            }
            if began.elapsed() > PATIENCE {
                bail!("no etcd leads after {PATIENCE:?}");
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Waits until every member runs, knows a leader and has the leader's log.
    ///
    /// # Errors
    /// Not in time.
    pub async fn whole(&self) -> anyhow::Result<()> {
        let began = std::time::Instant::now();
        while began.elapsed() < PATIENCE {
            let mut indexes = Vec::new();
            for position in 0..self.members.len() {
                if let Ok(status) = self.status(position).await
                    && status.leader != 0
                {
                    indexes.push(status.raft_index);
                }
            }
            let first = indexes.first().copied().unwrap_or(0);
            // Asked one after the other while nothing is written.
            if indexes.len() == self.members.len() && indexes.iter().all(|i| i.abs_diff(first) < 8)
            {
                return Ok(());
            }
            tokio::time::sleep(INTERVAL).await;
        }
        bail!("etcd's members do not agree: {}", self.tails())
    }

    async fn status(&self, position: usize) -> anyhow::Result<pb::StatusResponse> {
        let mut client = MaintenanceClient::new(self.channel(position)?);
        let asked = client.status(pb::StatusRequest {});
        let status = tokio::time::timeout(QUESTION_LIMIT, asked).await??;
        Ok(status.into_inner())
    }

    /// Hands the lead from one member to another.
    ///
    /// # Errors
    /// It refuses.
    pub async fn move_leader(&self, from: usize, to: usize) -> anyhow::Result<()> {
        let target = own_id(&self.status(to).await?);
        let mut client = MaintenanceClient::new(self.channel(from)?);
        client
            .move_leader(pb::MoveLeaderRequest { target_id: target })
            .await?;
        Ok(())
    }

    fn channel(&self, position: usize) -> anyhow::Result<Channel> {
        let member = &self.members[position];
        self.credentials.channel(&member.client.to_string())
    }

    /// Connections to a member; from 0.
    ///
    /// # Errors
    /// The certificates cannot be used.
    pub fn connect(&self, position: usize, count: usize) -> anyhow::Result<Vec<EtcdStore>> {
        (0..count)
            .map(|_| {
                let client = KvClient::new(self.channel(position)?);
                Ok(EtcdStore { client })
            })
            .collect()
    }

    fn tails(&self) -> String {
        self.members
            .iter()
            .map(|member| {
                let log = self.folder.path().join("log").with_extension(&member.name);
                let text = std::fs::read_to_string(log).unwrap_or_default();
                format!("-- {}\n{}\n", member.name, tail(&text))
            })
            .collect()
    }
}

fn find() -> anyhow::Result<PathBuf> {
    machine::program("etcd", "etcd-server")
}

fn own_id(status: &pb::StatusResponse) -> u64 {
    status.header.as_ref().map_or(0, |header| header.member_id)
}

fn plan(folder: &Path, addresses: &[IpAddr]) -> anyhow::Result<Vec<Member>> {
    let mut places = Vec::new();
    for (position, address) in addresses.iter().enumerate() {
        let client = ports::free(*address)?;
        let mut peer = ports::free(*address)?;
        while peer == client {
            peer = ports::free(*address)?;
        }
        let name = format!("e{}", position + 1);
        places.push((
            name,
            SocketAddr::new(*address, client),
            SocketAddr::new(*address, peer),
        ));
    }
    let everybody: Vec<String> = places
        .iter()
        .map(|(name, _, peer)| format!("{name}=https://{peer}"))
        .collect();
    let everybody = everybody.join(",");
    let pem = |name: &str| folder.join(name).display().to_string();
    Ok(places
        .into_iter()
        .map(|(name, client, peer)| {
            let options = [
                ("--name", name.clone()),
                ("--data-dir", pem(&name)),
                ("--listen-client-urls", format!("https://{client}")),
                ("--advertise-client-urls", format!("https://{client}")),
                ("--listen-peer-urls", format!("https://{peer}")),
                ("--initial-advertise-peer-urls", format!("https://{peer}")),
                ("--initial-cluster", everybody.clone()),
                ("--initial-cluster-state", "new".to_owned()),
                ("--trusted-ca-file", pem("ca.pem")),
                ("--cert-file", pem("cert.pem")),
                ("--key-file", pem("key.pem")),
                ("--peer-trusted-ca-file", pem("ca.pem")),
                ("--peer-cert-file", pem("cert.pem")),
                ("--peer-key-file", pem("key.pem")),
            ];
            let mut arguments: Vec<String> = options
                .into_iter()
                .flat_map(|(flag, value)| [flag.to_owned(), value])
                .collect();
            arguments.push("--client-cert-auth".to_owned());
            arguments.push("--peer-client-cert-auth".to_owned());
            Member {
                name,
                client,
                arguments,
                process: None,
            }
        })
        .collect())
}

/// An authority and one certificate that is good for every member and for the client.
fn write_certificates(folder: &Path, addresses: &[IpAddr]) -> anyhow::Result<()> {
    let authority_key = KeyPair::generate()?;
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = authority.self_signed(&authority_key)?;
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate()?;
    let mut holder = CertificateParams::default();
    // A member calls its peers from the first address of the loopback, which they look for too.
    let caller = IpAddr::from([127, 0, 0, 1]);
    let named = addresses.iter().copied().chain([caller]);
    holder.subject_alt_names = named.map(SanType::IpAddress).collect();
    holder.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let certificate = holder.signed_by(&key, &issuer)?;
    std::fs::write(folder.join("ca.pem"), root.pem())?;
    std::fs::write(folder.join("cert.pem"), certificate.pem())?;
    std::fs::write(folder.join("key.pem"), key.serialize_pem())?;
    Ok(())
}

/// One connection.
#[derive(Debug, Clone)]
pub struct EtcdStore {
    client: KvClient<Channel>,
}

fn key(number: u64) -> Vec<u8> {
    format!("bench/{:05}", number % KEYS).into_bytes()
}

impl Store for EtcdStore {
    async fn put(&self, numbers: &mut Numbers) -> anyhow::Result<()> {
        let request = pb::PutRequest {
            key: key(numbers.draw()),
            value: numbers.text(VALUE_BYTES).into_bytes(),
        };
        self.client.clone().put(request).await?;
        Ok(())
    }

    async fn put_many(&self, numbers: &mut Numbers, count: usize) -> anyhow::Result<()> {
        let first = numbers.draw();
        let success = (0..count as u64)
            .map(|offset| pb::RequestOp {
                request: Some(pb::request_op::Request::RequestPut(pb::PutRequest {
                    key: key(first.wrapping_add(offset)),
                    value: numbers.text(VALUE_BYTES).into_bytes(),
                })),
            })
            .collect();
        let answer = self.client.clone().txn(pb::TxnRequest { success }).await?;
        ensure!(answer.into_inner().succeeded, "the transaction was refused");
        Ok(())
    }

    async fn get(&self, numbers: &mut Numbers) -> anyhow::Result<()> {
        let request = pb::RangeRequest {
            key: key(numbers.draw()),
            serializable: false,
        };
        let answer = self.client.clone().range(request).await?.into_inner();
        ensure!(answer.kvs.len() == 1, "the key is not there");
        Ok(())
    }
}

/// Writes every key once, so that reads find them.
///
/// # Errors
/// A write is refused.
pub async fn fill(store: &EtcdStore) -> anyhow::Result<()> {
    let mut numbers = Numbers::new(0);
    for first in (0..KEYS).step_by(100) {
        let success = (first..first + 100)
            .map(|number| pb::RequestOp {
                request: Some(pb::request_op::Request::RequestPut(pb::PutRequest {
                    key: key(number),
                    value: numbers.text(VALUE_BYTES).into_bytes(),
                })),
            })
            .collect();
        store.client.clone().txn(pb::TxnRequest { success }).await?;
    }
    Ok(())
}
