//! Checks between steps with real parts: requests to instances, programs on hosts, queries to a
//! Prometheus.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tidegate_e2e::support::apply;
use tidegate_e2e::{answers, site, story};
use tidegate_harness::cluster::text;
use tidegate_harness::{Cluster, Shape, archive, http, poll};

const SMALL: Shape = Shape {
    coordinators: 1,
    agents: 2,
};

/// A page, what it says of itself, and a metric that names its version.
const APP: &str = r###"
import http.server, json, sys

class App(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = "version @VERSION@\n"
        if self.path.startswith("/health?of=@VERSION@"):
            text = json.dumps({"ready": @READY@, "queue": 3})
        elif self.path == "/metrics":
            text = "# TYPE app_quality gauge\n" + 'app_quality{release="@VERSION@"} @QUALITY@\n'
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("", int(sys.argv[1])), App).serve_forever()
"###;

/// How a release does.
struct Traits {
    ready: &'static str,
    exit: u8,
    quality: u8,
}

const GOOD: Traits = Traits {
    ready: "True",
    exit: 0,
    quality: 1,
};

fn publish(cluster: &Cluster, version: &str, traits: &Traits) -> anyhow::Result<()> {
    let app = APP
        .replace("@VERSION@", version)
        .replace("@READY@", traits.ready)
        .replace("@QUALITY@", &traits.quality.to_string());
    let check = format!(
        "#!/bin/sh\necho \"looking at $1 as $TIDEGATE_CHECK\"\necho \"schema of {version}\" >&2\nexit {}\n",
        traits.exit
    );
    let file = cluster.dir().join(format!("app-{version}.tar.gz"));
    archive::write(&file, &[("app.py", &app, false), ("check", &check, true)])?;
    let run = "python3 ${RELEASE_DIR}/app.py ${PORT}";
    tidegate_e2e::release(cluster, version, &file, run)
}

/// A Prometheus of the test's own; ended with it.
struct Prometheus {
    child: Child,
    address: SocketAddr,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Prometheus {
    fn start(cluster: &Cluster, target: SocketAddr) -> anyhow::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = cluster.dir().join("prometheus.yml");
        std::fs::write(
            &config,
            format!(
                "global:\n  scrape_interval: 1s\nscrape_configs:\n- job_name: site\n  static_configs:\n  - targets: ['{target}']\n"
            ),
        )?;
        let log = File::create(cluster.dir().join("prometheus.log"))?;
        let data = cluster.dir().join("prometheus-data");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("prometheus does not start: `tests/run --prepare` installs it")?;
        poll::until(
            "a Prometheus that is ready",
            Duration::from_secs(120),
            || {
                let answer = http::get(address, "/-/ready")?;
                poll::holds(answer.status == 200, || format!("{answer:?}"))
            },
        )?;
        Ok(Self { child, address })
    }
}

fn strategies(prometheus: SocketAddr) -> String {
    let query = r#"max_over_time(app_quality{release="${RELEASE}"}[1m])"#;
    format!(
        r#"kind: strategy
name: checked
spec:
  traffic: {{steps: [{{percent: 50, hold: 1s}}, {{percent: 100, hold: 0s}}]}}
  bake: 1s
  drain: 1s
  on_no_data: {{wait: 90s, then: rollback}}
  verification:
  - name: smoke
    http: {{path: "/health?of=${{RELEASE}}", timeout: 10s}}
    interval: 500ms
    consecutive_successes: 2
    success: result.status == 200 && result.body.ready == true && result.body.queue < 10
  - name: schema
    command: {{command: ./check, args: ["${{SCOPE}}"]}}
    when: [1]
  - name: quality
    prometheus: {{address: "http://{prometheus}", query: '{query}'}}
    interval: 500ms
    success: result.value >= 1
---
kind: strategy
name: blind
spec:
  kind: all_in
  bake: 0s
  drain: 1s
  on_no_data: {{wait: 1s, then: proceed}}
  verification:
  - name: quality
    prometheus: {{address: "http://{prometheus}", query: '{query}', timeout: 1s}}
    interval: 500ms
    success: result.value >= 1
"#
    )
}

fn deploy(cluster: &Cluster, version: &str, more: &[&str]) -> anyhow::Result<(Option<i32>, Value)> {
    let mut arguments = vec!["deploy", "site", version, "--scope", "site"];
    arguments.extend(["--wait", "--timeout", "5m"]);
    arguments.extend(more);
    let output = cluster.tidegate(&arguments)?;
    let newest = cluster.newest("site")?;
    let found = cluster.tidegate(&["deployment", "get", text(&newest, "id")])?;
    Ok((output.status, found.json()?))
}

/// The moment and the state of each check of a name.
fn states(deployment: &Value, name: &str) -> Vec<String> {
    let checks = deployment["checks"].as_array().cloned().unwrap_or_default();
    let of_name = checks.iter().filter(|check| text(check, "name") == name);
    of_name
        .map(|check| format!("{}: {}", text(check, "moment"), text(check, "state")))
        .collect()
}

#[test]
fn good_versions_pass_and_each_bad_one_goes_back_for_its_own_reason() {
    story(SMALL, |cluster| {
        let port = site(cluster)?;
        let page = cluster.proxy(0, port);
        let prometheus = Prometheus::start(cluster, page)?;
        apply(cluster, &strategies(prometheus.address))?;
        let checked = ["--strategy", "checked"];

        publish(cluster, "1.0.0", &GOOD)?;
        let (status, first) = deploy(cluster, "1.0.0", &checked)?;
        ensure!(status == Some(0), "{first}");
        // A first deployment has one step, at which everything is checked.
        for name in ["smoke", "schema", "quality"] {
            let found = states(&first, name);
            ensure!(found == ["step 1: success"], "{name}: {found:?}: {first}");
        }

        publish(cluster, "1.1.0", &GOOD)?;
        let (status, second) = deploy(cluster, "1.1.0", &checked)?;
        ensure!(status == Some(0), "{second}");
        for (name, wanted) in [
            ("smoke", &["step 1: success", "step 2: success"][..]),
            ("quality", &["step 1: success", "step 2: success"][..]),
            ("schema", &["step 1: success"][..]),
        ] {
            let found = states(&second, name);
            ensure!(found == wanted, "{name}: {found:?}: {second}");
        }
        ensure!(second["unverified"] != true, "{second}");

        let bad = [
            (
                "2.0.0",
                Traits {
                    ready: "False",
                    ..GOOD
                },
                "check smoke failed",
                "HTTP 200; not result.status == 200 && result.body.ready == true",
            ),
            (
                "2.1.0",
                Traits { exit: 3, ..GOOD },
                "check schema failed",
                "exit status 3: schema of 2.1.0",
            ),
            (
                "2.2.0",
                Traits { quality: 0, ..GOOD },
                "check quality failed",
                "the leader: 0; not result.value >= 1",
            ),
        ];
        for (version, traits, failed, why) in bad {
            publish(cluster, version, &traits)?;
            let (status, found) = deploy(cluster, version, &checked)?;
            ensure!(status == Some(3), "{status:?}: {found}");
            ensure!(text(&found, "status") == "ROLLED_BACK", "{found}");
            ensure!(text(&found, "reason") == "verification", "{found}");
            let message = text(&found, "message");
            ensure!(
                message.contains(failed) && message.contains(why),
                "{message}"
            );
        }
        answers(page, "version 1.1.0")?;

        // Nobody answers for the Prometheus any more.
        drop(prometheus);
        publish(cluster, "3.0.0", &GOOD)?;
        let back = [
            "--strategy",
            "blind",
            "--set",
            "on_no_data={wait: 1s, then: rollback}",
        ];
        let (status, found) = deploy(cluster, "3.0.0", &back)?;
        ensure!(status == Some(3), "{status:?}: {found}");
        ensure!(text(&found, "reason") == "no_data", "{found}");
        let message = text(&found, "message");
        ensure!(
            message.contains("check quality is inconclusive") && message.contains("refused"),
            "{message}"
        );
        let (status, found) = deploy(cluster, "3.0.0", &["--strategy", "blind"])?;
        ensure!(status == Some(0), "{status:?}: {found}");
        ensure!(found["unverified"] == true, "{found}");
        ensure!(
            states(&found, "quality") == ["step 1: inconclusive"],
            "{found}"
        );
        answers(page, "version 3.0.0")
    });
}

/// The scope and the status of each member, in the group's order.
fn members(cluster: &Cluster, group: &str) -> anyhow::Result<Vec<String>> {
    let found = cluster.tidegate(&["group", "get", group])?.json()?;
    let all = found["members"].as_array().cloned().unwrap_or_default();
    let told = all
        .iter()
        .map(|one| format!("{} {}", text(one, "scope"), text(one, "status")));
    Ok(told.collect())
}

#[test]
fn a_member_of_a_group_proves_itself_before_the_next_one_starts() {
    story(SMALL, |cluster| {
        site(cluster)?;
        let port = cluster.scope_port()?;
        let objects = format!(
            "kind: scope\nname: site-b\nspec:\n  application: site\n  environment: test\n  port: {port}\n  \
             health_check: {{http: {{path: /}}, interval: 200ms, healthy_threshold: 1}}\n"
        );
        apply(cluster, &objects)?;
        let rollout = cluster.dir().join("rollout.yaml");
        std::fs::write(
            &rollout,
            "kind: linear\ninterval: 1s\norder: name\ngate: verified\nverification:\n\
             - {name: front, http: {path: \"/health?of=${RELEASE}\"}, interval: 500ms, success: result.body.ready == true}\n",
        )?;
        let rollout = rollout.display().to_string();
        let deploy = |version: &str, group: &str, more: &[&str]| {
            let mut arguments = vec!["deploy", "site", version, "--environment", "test"];
            arguments.extend([
                "--strategy",
                "quick",
                "--group",
                group,
                "--rollout",
                &rollout,
            ]);
            arguments.extend(more);
            cluster.tidegate(&arguments)
        };
        publish(cluster, "1.0.0", &GOOD)?;
        let good = deploy("1.0.0", "good", &["--wait", "--timeout", "3m"])?;
        ensure!(good.status == Some(0), "{good}");
        for scope in ["site", "site-b"] {
            let newest = cluster.newest(scope)?;
            let found = cluster.tidegate(&["deployment", "get", text(&newest, "id")])?;
            let found = found.json()?;
            ensure!(states(&found, "front") == ["step 1: success"], "{found}");
        }
        publish(
            cluster,
            "2.0.0",
            &Traits {
                ready: "False",
                ..GOOD
            },
        )?;
        deploy("2.0.0", "bad", &[])?.ok()?;
        let wanted = ["site ROLLED_BACK", "site-b PENDING"];
        poll::until(
            "a first member that went back",
            Duration::from_secs(120),
            || {
                let found = members(cluster, "bad")?;
                poll::holds(found == wanted, || format!("{found:?}"))
            },
        )?;
        let explained = cluster
            .tidegate(&["group", "explain", "bad", "-o", "table"])?
            .ok()?;
        ensure!(explained.stdout.contains("budget"), "{explained}");
        Ok(())
    });
}

#[test]
fn what_cannot_be_checked_is_refused_with_its_place() {
    story(
        Shape {
            coordinators: 1,
            agents: 1,
        },
        |cluster| {
            let port = site(cluster)?;
            ensure!(port > 0);
            let file = cluster.dir().join("wrong.yaml");
            for (spec, says) in [
                (
                    "verification: [{name: a, http: {path: /}, success: result.stat == 200}]",
                    "verification[0].success: at character 7: result has no \"stat\"",
                ),
                (
                    "verification: [{name: a, http: {path: /}, when: [9]}]",
                    "verification[0].when[0]: there is no step 9",
                ),
                (
                    "verification: [{name: a, http: {path: /}, interval: 1ms}]",
                    "verification[0].interval: want 250ms to 1h",
                ),
            ] {
                std::fs::write(
                    &file,
                    format!("kind: strategy\nname: wrong\nspec:\n  {spec}\n"),
                )?;
                let output = cluster.tidegate(&["apply", "-f", &file.display().to_string()])?;
                ensure!(
                    output.status != Some(0) && output.stderr.contains(says),
                    "{says}: {output}"
                );
            }
            let example = concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../packaging/config/strategy-with-checks.yaml"
            );
            cluster.tidegate(&["apply", "-f", example])?.ok()?;
            publish(cluster, "1.0.0", &GOOD)?;
            let output = cluster.tidegate(&[
                "deploy",
                "site",
                "1.0.0",
                "--scope",
                "site",
                "--set",
                "capacity=proportional",
            ])?;
            ensure!(
                output.status != Some(0)
                    && output.stderr.contains("TG-1620")
                    && output.stderr.contains("kubernetes"),
                "{output}"
            );
            Ok(())
        },
    );
}
