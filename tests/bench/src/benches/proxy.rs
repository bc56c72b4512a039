//! The data plane on one core beside HAProxy on the same core, with the same backend and load.
//!
//! The proxies take turns on the first core; nginx as the backend and wrk as the load run on the
//! others. On two cores these two may reach their limit before a proxy does, so the processor
//! time that a proxy takes for a request is told too: that figure does not depend on them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tidegate_harness::cluster::programs;
use tidegate_harness::ports::{self, Network};
use tidegate_harness::{Process, poll};

use crate::Effort;
use crate::machine::{self, Machine};
use crate::measured::Pair;
use crate::ours::Ours;
use crate::report::{Better, Goal, Report};

/// A program may take so long to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an answer's body.
const BODY: usize = 1_024;
/// The core of the proxies.
const PROXY_CORE: usize = 0;

/// Where everything runs.
struct Stage {
    folder: tempfile::TempDir,
    network: Network,
    backend: SocketAddr,
    backend_core: usize,
    load_core: usize,
    _nginx: Process,
}

/// What one turn of load came to.
#[derive(Debug, Clone, Copy)]
struct Turn {
    per_second: f64,
    p99_ms: f64,
    failures: u64,
    /// Microseconds of the proxy's processor time per request.
    cost: f64,
    /// Share of its core that the proxy used, 0 to 1.
    busy: f64,
}

/// Measures.
pub(super) async fn run(effort: Effort, machine: &Machine) -> anyhow::Result<Report> {
    let cores = machine.cores();
    tokio::task::spawn_blocking(move || measure(effort, cores)).await?
}

fn measure(effort: Effort, cores: usize) -> anyhow::Result<Report> {
    let stage = Stage::set(cores)?;
    let ours_at = SocketAddr::new(
        stage.network.address(2),
        ports::free(stage.network.address(2))?,
    );
    let theirs_at = SocketAddr::new(
        stage.network.address(3),
        ports::free(stage.network.address(3))?,
    );
    let ours = stage.our_proxy(ours_at)?;
    let theirs = stage.haproxy(theirs_at)?;
    let mut figures = Vec::new();
    let mut notes = Vec::new();
    for connections in [8, 64] {
        let (mut rate, mut p99) = (Pair::default(), Pair::default());
        let (mut cost, mut busy) = (Pair::default(), Pair::default());
        for _ in 0..effort.repetitions {
            let turn = stage.load(theirs_at, &theirs, connections, effort)?;
            note(&mut notes, "HAProxy", connections, turn);
            rate.theirs.push(turn.per_second);
            p99.theirs.push(turn.p99_ms);
            cost.theirs.push(turn.cost);
            busy.theirs.push(turn.busy * 100.0);
            let turn = stage.load(ours_at, &ours, connections, effort)?;
            note(&mut notes, "Tidegate", connections, turn);
            rate.ours.push(turn.per_second);
            p99.ours.push(turn.p99_ms);
            cost.ours.push(turn.cost);
            busy.ours.push(turn.busy * 100.0);
        }
        let of = |what: &str| format!("{what}, {connections} connections");
        let (higher, lower) = (Better::Higher, Better::Lower);
        let goal = Goal::RatioAtLeast(0.5);
        figures.push(rate.figure(of("requests"), "1/s", higher, "HAProxy", goal));
        figures.push(p99.figure(of("p99"), "ms", lower, "HAProxy", Goal::RatioAtMost(2.0)));
        figures.push(cost.figure(
            of("processor time of a request"),
            "µs",
            lower,
            "HAProxy",
            Goal::None,
        ));
        figures.push(busy.figure(
            of("use of the proxy's core"),
            "%",
            lower,
            "HAProxy",
            Goal::None,
        ));
    }
    Ok(Report {
        bench: "proxy",
        versions: vec![
            ("Tidegate".to_owned(), Ours::version()),
            (
                "HAProxy".to_owned(),
                machine::version(&find_haproxy()?, "-v"),
            ),
            ("nginx".to_owned(), machine::version(&find_nginx()?, "-v")),
            ("wrk".to_owned(), machine::version(&find_wrk()?, "-v")),
        ],
        method: vec![
            format!(
                "each proxy with one thread alone on core {PROXY_CORE}, by turns, {} of {} s; nginx with one worker on core {}, wrk with one thread on core {}",
                effort.repetitions,
                effort.length.as_secs_f64(),
                stage.backend_core,
                stage.load_core
            ),
            format!(
                "GET over kept HTTP/1.1 connections, answers of {BODY} bytes, one backend; HAProxy in HTTP mode with http-reuse always"
            ),
        ],
        figures,
        notes,
    })
}

fn note(notes: &mut Vec<String>, who: &str, connections: usize, turn: Turn) {
    if turn.failures > 0 {
        notes.push(format!(
            "{who}, {connections} connections: {} requests failed",
            turn.failures
        ));
    }
}

fn find_haproxy() -> anyhow::Result<PathBuf> {
    machine::program("haproxy", "haproxy")
}

fn find_nginx() -> anyhow::Result<PathBuf> {
    machine::program("nginx", "nginx-light")
}

fn find_wrk() -> anyhow::Result<PathBuf> {
    machine::program("wrk", "wrk")
}

impl Stage {
    fn set(cores: usize) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tidegate-").tempdir()?;
        let network = Network::new();
        let backend = SocketAddr::new(network.address(1), ports::free(network.address(1))?);
        let backend_core = 1.min(cores - 1);
        let load_core = 2.min(cores - 1);
        let dir = folder.path().display();
        let body = "x".repeat(BODY);
        let config = format!(
            "daemon off;\nworker_processes 1;\npid {dir}/nginx.pid;\nerror_log {dir}/nginx.err;\n\
             events {{ worker_connections 4096; }}\nhttp {{\n  access_log off;\n  keepalive_requests 1000000000;\n  \
             keepalive_timeout 3600s;\n  client_body_temp_path {dir}/nginx.body;\n  proxy_temp_path {dir}/nginx.proxy;\n  \
             fastcgi_temp_path {dir}/nginx.fastcgi;\n  uwsgi_temp_path {dir}/nginx.uwsgi;\n  scgi_temp_path {dir}/nginx.scgi;\n  \
             server {{ listen {backend}; location / {{ return 200 \"{body}\"; }} }}\n}}\n"
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, config)?;
        let arguments = [
            "-c".to_owned(),
            file.display().to_string(),
            "-e".to_owned(),
            folder.path().join("nginx.err").display().to_string(),
        ];
        let nginx = start(
            folder.path(),
            "nginx",
            &find_nginx()?,
            &arguments,
            backend_core,
        )?;
        answers(backend, &nginx)?;
        Ok(Self {
            folder,
            network,
            backend,
            backend_core,
            load_core,
            _nginx: nginx,
        })
    }

    fn haproxy(&self, at: SocketAddr) -> anyhow::Result<Process> {
        let backend = self.backend;
        let config = format!(
            "global\n  nbthread 1\n  maxconn 4096\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  \
             timeout server 60s\n  http-reuse always\nfrontend f\n  bind {at}\n  default_backend b\nbackend b\n  \
             server s {backend}\n"
        );
        let file = self.folder.path().join("haproxy.cfg");
        std::fs::write(&file, config)?;
        let arguments = [
            "-db".to_owned(),
            "-f".to_owned(),
            file.display().to_string(),
        ];
        let process = start(
            self.folder.path(),
            "haproxy",
            &find_haproxy()?,
            &arguments,
            PROXY_CORE,
        )?;
        answers(at, &process)?;
        Ok(process)
    }

    fn our_proxy(&self, at: SocketAddr) -> anyhow::Result<Process> {
        let dir = self.folder.path().join("proxy");
        let arguments = [
            "proxy".to_owned(),
            "--dir".to_owned(),
            dir.display().to_string(),
            "--threads".to_owned(),
            "1".to_owned(),
        ];
        let program = programs()?.join("tidegate-agent");
        let process = start(
            self.folder.path(),
            "tidegate-proxy",
            &program,
            &arguments,
            PROXY_CORE,
        )?;
        let table = json!({ "op": "converge", "table": { "scopes": [{
            "scope": "bench", "listen": at, "versions": [{
                "deployment": "one", "weight": 10_000, "instances": [{
                    "instance": "one", "address": self.backend, "healthy": true,
                }],
            }],
        }] } });
        poll::until("the proxy's control socket", PATIENCE, || {
            let held = told(&dir.join("control"), &table)?;
            poll::holds(held["reply"] != "refused", || held.to_string())
        })?;
        answers(at, &process)?;
        Ok(process)
    }

    fn load(
        &self,
        at: SocketAddr,
        proxy: &Process,
        connections: usize,
        effort: Effort,
    ) -> anyhow::Result<Turn> {
        wrk(self.load_core, at, connections, effort.warm_up)?;
        let before = processor_time(proxy.id())?;
        let said = wrk(self.load_core, at, connections, effort.length)?;
        let used = processor_time(proxy.id())?.saturating_sub(before);
        let (requests, took) = total(&said)?;
        Ok(Turn {
            per_second: figure(&said, "Requests/sec:")?,
            p99_ms: latency(&said, "99%")?,
            failures: failures(&said),
            cost: used.as_secs_f64() * 1e6 / requests.max(1.0),
            busy: used.as_secs_f64() / took,
        })
    }
}

/// Starts a program on one core.
fn start(
    folder: &Path,
    name: &str,
    program: &Path,
    arguments: &[String],
    core: usize,
) -> anyhow::Result<Process> {
    let mut all = vec![
        "-c".to_owned(),
        core.to_string(),
        program.display().to_string(),
    ];
    all.extend(arguments.iter().cloned());
    let log = folder.join(format!("{name}.log"));
    Process::start(
        name,
        &machine::program("taskset", "util-linux")?,
        &all,
        &[],
        &log,
    )
}

/// Waits until something answers at an address.
fn answers(at: SocketAddr, process: &Process) -> anyhow::Result<()> {
    poll::until(&format!("an answer at {at}"), PATIENCE, || {
        tidegate_harness::http::get(at, "/").map(drop)
    })
    .with_context(|| format!("{} does not start: {}", process.name, process.output()))
}

/// Asks the proxy's control socket one thing.
fn told(socket: &Path, request: &Value) -> anyhow::Result<Value> {
    use std::io::{BufRead as _, BufReader, Write as _};
    let mut stream = UnixStream::connect(socket)?;
    let mut line = request.to_string();
    line.write_char('\n')?;
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

/// Processor time of all threads of a process.
pub(super) fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let mut nanos = 0_u64;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        let own = text
            .split_whitespace()
            .next()
            .and_then(|n| n.parse::<u64>().ok());
        nanos += own.unwrap_or(0);
    }
    ensure!(nanos > 0, "process {pid} tells no processor time");
    Ok(Duration::from_nanos(nanos))
}

fn wrk(
    core: usize,
    at: SocketAddr,
    connections: usize,
    length: Duration,
) -> anyhow::Result<String> {
    let output = Command::new(machine::program("taskset", "util-linux")?)
        .args(["-c", &core.to_string()])
        .arg(find_wrk()?)
        .args(["-t", "1", "-c", &connections.to_string(), "--latency", "-d"])
        .arg(format!("{}s", length.as_secs().max(1)))
        .arg(format!("http://{at}/"))
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "wrk failed: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

/// The number behind a word.
fn figure(said: &str, word: &str) -> anyhow::Result<f64> {
    said.lines()
        .filter_map(|line| line.trim().strip_prefix(word))
        .find_map(|rest| rest.trim().parse().ok())
        .with_context(|| format!("wrk does not tell {word} {said}"))
}

/// Milliseconds of a percentile.
fn latency(said: &str, percentile: &str) -> anyhow::Result<f64> {
    let text = said
        .lines()
        .filter_map(|line| line.trim().strip_prefix(percentile))
        .map(str::trim)
        .next()
        .with_context(|| format!("wrk does not tell {percentile}: {said}"))?;
    seconds(text)
        .map(|seconds| seconds * 1e3)
        .with_context(|| format!("no time: {text}"))
}

fn seconds(text: &str) -> Option<f64> {
    let units = [("us", 1e-6), ("ms", 1e-3), ("m", 60.0), ("s", 1.0)];
    units.iter().find_map(|(unit, factor)| {
        let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
        Some(number * factor)
    })
}

/// "N requests in T, …"
fn total(said: &str) -> anyhow::Result<(f64, f64)> {
    let found = said.lines().find_map(|line| {
        let (count, rest) = line.trim().split_once(" requests in ")?;
        let (time, _) = rest.split_once(',')?;
        Some((count.parse().ok()?, seconds(time)?))
    });
    found.with_context(|| format!("wrk does not tell its requests: {said}"))
}

/// Answers that were not good, and connections that broke.
fn failures(said: &str) -> u64 {
    let bad = said
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Non-2xx or 3xx responses:"))
        .find_map(|rest| rest.trim().parse::<u64>().ok());
    let broken: u64 = said
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Socket errors:"))
        .flat_map(|rest| rest.split(','))
        .filter_map(|part| part.split_whitespace().last()?.parse::<u64>().ok())
        .sum();
    bad.unwrap_or(0) + broken
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Running 1s test @ http://127.0.0.1:8080/\n  1 threads and 64 connections\n  \
        Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency     1.21ms  100.00us   4.00ms   90.00%\n  \
        Latency Distribution\n     50%    1.20ms\n     99%  980.00us\n  52000 requests in 1.10s, 60.00MB read\n  \
        Socket errors: connect 0, read 2, write 0, timeout 1\n  Non-2xx or 3xx responses: 4\n\
        Requests/sec:  47272.73\nTransfer/sec:     54.00MB\n";

    #[test]
    fn what_wrk_says_is_read() {
        assert_eq!(figure(SAID, "Requests/sec:").unwrap(), 47_272.73);
        assert_eq!(latency(SAID, "99%").unwrap(), 0.98);
        assert_eq!(total(SAID).unwrap(), (52_000.0, 1.1));
        assert_eq!(failures(SAID), 7);
        assert!(figure("", "Requests/sec:").is_err());
    }

    #[test]
    fn times_of_every_unit_are_read() {
        for (text, wanted) in [("10us", 1e-5), ("2ms", 2e-3), ("3s", 3.0), ("1m", 60.0)] {
            let read = seconds(text).unwrap();
            assert!((read - wanted).abs() < 1e-12, "{text}: {read}");
        }
        assert_eq!(seconds("x"), None);
    }
}
