//! What an agent costs that has nothing to do, beside Debian's node exporter that is scraped.
//!
//! The agent is connected to a coordinator and reports; its data plane is a process of its own and
//! is told apart. The exporter is scraped every 15 s. Bytes are those of the TCP streams, which for
//! the agent means within TLS.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tidegate_harness::ports::{self, Network};
use tidegate_harness::{Process, Shape, poll};

use crate::Effort;
use crate::machine;
use crate::measured::{Pair, alone};
use crate::ours::Ours;
use crate::report::{Better, Goal, Report};

const PATIENCE: Duration = Duration::from_secs(60);
/// As Prometheus is often set.
const SCRAPE_EVERY: Duration = Duration::from_secs(15);
/// A turn takes so many counted times of other benches: an idle process does little.
const LONGER: u32 = 6;

/// Measures.
pub(super) async fn run(effort: Effort) -> anyhow::Result<Report> {
    let shape = Shape {
        coordinators: 1,
        agents: 1,
    };
    let ours = Ours::start(shape, super::DEFAULT_TICK).await?;
    let (ours, (agent, planes)) = ours
        .with_cluster(|cluster| {
            let planes: Vec<u32> = cluster
                .children_of_agent(0)
                .iter()
                .map(|process| process.pid)
                .collect();
            Ok((cluster.agent_pid(0)?, planes))
        })
        .await?;
    let report = tokio::task::spawn_blocking(move || measure(effort, agent, &planes)).await?;
    ours.end().await?;
    report
}

fn measure(effort: Effort, agent: u32, planes: &[u32]) -> anyhow::Result<Report> {
    let program = machine::program("prometheus-node-exporter", "prometheus-node-exporter")?;
    let folder = tempfile::Builder::new().prefix("tidegate-").tempdir()?;
    let network = Network::new();
    let address = network.address(1);
    let at = SocketAddr::new(address, ports::free(address)?);
    let exporter = Process::start(
        "node-exporter",
        &program,
        &[format!("--web.listen-address={at}")],
        &[],
        &folder.path().join("log"),
    )?;
    poll::until("node exporter", PATIENCE, || scrape(at))?;
    let length = effort.length * if effort.short { 1 } else { LONGER };
    // What is loaded at the start and given back later is no idle cost.
    std::thread::sleep(effort.warm_up * LONGER);
    let (mut memory, mut processor, mut bytes) =
        (Pair::default(), Pair::default(), Pair::default());
    let (mut plane_memory, mut plane_processor) = (Vec::new(), Vec::new());
    for _ in 0..effort.repetitions {
        let before = Look::at(agent, planes, exporter.id())?;
        let scraped = scrape_for(at, length)?;
        let after = Look::at(agent, planes, exporter.id())?;
        let took = after.at - before.at;
        let per_minute = |used: Duration| used.as_secs_f64() * 1e3 * 60.0 / took.as_secs_f64();
        memory.ours.push(resident_mib(agent)?);
        memory.theirs.push(resident_mib(exporter.id())?);
        processor.ours.push(per_minute(after.agent - before.agent));
        processor
            .theirs
            .push(per_minute(after.exporter - before.exporter));
        plane_processor.push(per_minute(after.planes - before.planes));
        let mut resident = 0.0;
        for plane in planes {
            resident += resident_mib(*plane)?;
        }
        plane_memory.push(resident);
        let sent = after.bytes.saturating_sub(before.bytes);
        bytes.ours.push(sent as f64 / took.as_secs_f64());
        bytes.theirs.push(scraped as f64 / took.as_secs_f64());
    }
    let lower = Better::Lower;
    let reference = "node exporter";
    let goal = Goal::RatioAtMost(1.0);
    Ok(Report {
        bench: "agent",
        versions: vec![
            ("Tidegate".to_owned(), Ours::version()),
            (reference.to_owned(), machine::version(&program, "--version")),
        ],
        method: vec![
            format!(
                "{} turns of {} s: an agent that is connected and has no scope beside an exporter that is scraped every {} s",
                effort.repetitions,
                length.as_secs_f64(),
                SCRAPE_EVERY.as_secs()
            ),
            "memory is the resident set at the end of a turn; processor time is that of all threads; bytes are both directions of the TCP streams".to_owned(),
        ],
        figures: vec![
            memory.figure("resident memory", "MiB", lower, reference, goal),
            processor.figure("processor time in a minute", "ms", lower, reference, goal),
            bytes.figure("network", "B/s", lower, reference, Goal::None),
            alone("resident memory of its data plane", "MiB", lower, plane_memory, Goal::None),
            alone("processor time of its data plane in a minute", "ms", lower, plane_processor, Goal::None),
        ],
        notes: Vec::new(),
    })
}

/// What the processes have used so far.
struct Look {
    at: Instant,
    agent: Duration,
    planes: Duration,
    exporter: Duration,
    bytes: u64,
}

impl Look {
    fn at(agent: u32, planes: &[u32], exporter: u32) -> anyhow::Result<Self> {
        let mut of_planes = Duration::ZERO;
        for plane in planes {
            of_planes += super::proxy::processor_time(*plane)?;
        }
        Ok(Self {
            at: Instant::now(),
            agent: super::proxy::processor_time(agent)?,
            planes: of_planes,
            exporter: super::proxy::processor_time(exporter)?,
            bytes: bytes_of(agent)?,
        })
    }
}

fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    text.lines()
        .filter_map(|line| line.strip_prefix("VmRSS:"))
        .find_map(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
        .map(|kib| kib / 1024.0)
        .with_context(|| format!("process {pid} tells no memory"))
}

/// Bytes of the TCP streams of a process that are open, in both directions.
fn bytes_of(pid: u32) -> anyhow::Result<u64> {
    let output = Command::new(machine::program("ss", "iproute2")?)
        .arg("-tnHipO")
        .output()?;
    ensure!(output.status.success(), "ss failed");
    Ok(bytes_in(&String::from_utf8_lossy(&output.stdout), pid))
}

fn bytes_in(said: &str, pid: u32) -> u64 {
    let holder = format!("pid={pid},");
    said.lines()
        .filter(|line| line.contains(&holder))
        .flat_map(str::split_whitespace)
        .filter_map(|word| {
            let count = word
                .strip_prefix("bytes_sent:")
                .or_else(|| word.strip_prefix("bytes_received:"))?;
            count.parse::<u64>().ok()
        })
        .sum()
}

/// Scrapes at once and then every 15 s; bytes of both directions.
fn scrape_for(at: SocketAddr, length: Duration) -> anyhow::Result<u64> {
    let began = Instant::now();
    let mut bytes = 0;
    loop {
        bytes += scrape(at)?;
        let left = length.saturating_sub(began.elapsed());
        std::thread::sleep(left.min(SCRAPE_EVERY));
        if began.elapsed() >= length {
            return Ok(bytes);
        }
    }
}

fn scrape(at: SocketAddr) -> anyhow::Result<u64> {
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!(
        "GET /metrics HTTP/1.1\r\nHost: {at}\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "the exporter refuses");
    Ok((request.len() + answer.len()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_one_process_alone_are_added() {
        let said = "ESTAB 0 0 127.0.0.1:1 127.0.0.1:2 users:((\"a\",pid=12,fd=9)) cubic bytes_sent:100 bytes_acked:100 bytes_received:20 segs_out:3\n\
             ESTAB 0 0 127.0.0.1:1 127.0.0.1:3 users:((\"a\",pid=12,fd=10)) cubic bytes_received:3\n\
             ESTAB 0 0 127.0.0.1:1 127.0.0.1:4 users:((\"b\",pid=123,fd=9)) cubic bytes_sent:999\n";
        assert_eq!(bytes_in(said, 12), 123);
        assert_eq!(bytes_in(said, 7), 0);
    }
}
