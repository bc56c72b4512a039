//! A metric that only the application knows of turns bad with a new version, whose pages are as good
//! as ever: the version is taken back, and the evidence says why.

use anyhow::ensure;
use tidegate_e2e::{answers, site, story};
use tidegate_harness::cluster::text;
use tidegate_harness::{Cluster, Shape, archive};

const ONE: Shape = Shape {
    coordinators: 1,
    agents: 1,
};

/// A page, and counters that grow with time: one series is of no interest to the rule.
const APP: &str = r###"
import http.server, sys, time

START = time.time()

class App(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        grown = (time.time() - START) * @RATE@
        text = "version @VERSION@\n"
        if self.path == "/own-metrics":
            text = (
                "# HELP orders_failed_total Orders that failed.\n"
                "# TYPE orders_failed_total counter\n"
                'orders_failed_total{kind="card",shop="a\\"b"} %f\n'
                'orders_failed_total{kind="cash"} %f\n'
                "this line is not sound\n"
                "queue_length 3\n"
            ) % (grown, 1000 * (time.time() - START))
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("", int(sys.argv[1])), App).serve_forever()
"###;

fn publish(cluster: &Cluster, version: &str, rate: &str) -> anyhow::Result<()> {
    let file = cluster.dir().join(format!("app-{version}.tar.gz"));
    let app = APP.replace("@VERSION@", version).replace("@RATE@", rate);
    archive::write(&file, &[("app.py", &app, false)])?;
    let run = "python3 ${RELEASE_DIR}/app.py ${PORT}";
    tidegate_e2e::release(cluster, version, &file, run)
}

fn deploy(cluster: &Cluster, version: &str) -> anyhow::Result<Option<i32>> {
    let rules = r#"rollback.rules=[{metric: 'app.rate(orders_failed_total{kind="card"})', comparison: greater_than, threshold: 1, window: 4s}, {metric: app.queue_length, comparison: greater_than, threshold: 100, window: 4s}]"#;
    let output = cluster.tidegate(&[
        "deploy",
        "site",
        version,
        "--scope",
        "site",
        "--set",
        "traffic.steps=50:6s,100:0s",
        "--set",
        "bake=6s",
        "--set",
        "drain=1s",
        "--set",
        rules,
        "--wait",
        "--timeout",
        "3m",
    ])?;
    Ok(output.status)
}

#[test]
fn a_counter_of_the_application_takes_a_bad_version_back() {
    story(ONE, |cluster| {
        let port = site(cluster)?;
        let manifest = format!(
            "kind: scope\nname: site\nspec:\n  application: site\n  environment: test\n  port: {port}\n  \
             max_restarts: 2\n  metrics: {{path: /own-metrics}}\n  \
             health_check: {{http: {{path: /}}, interval: 200ms, healthy_threshold: 1}}\n"
        );
        tidegate_e2e::support::apply(cluster, &manifest)?;
        publish(cluster, "1.0.0", "0")?;
        let first = deploy(cluster, "1.0.0")?;
        ensure!(first == Some(0), "{first:?}: {}", cluster.newest("site")?);
        // The same rules pass a version that fails seldom.
        publish(cluster, "1.1.0", "0.1")?;
        let second = deploy(cluster, "1.1.0")?;
        ensure!(second == Some(0), "{second:?}: {}", cluster.newest("site")?);
        publish(cluster, "2.0.0", "50")?;
        let third = deploy(cluster, "2.0.0")?;
        let newest = cluster.newest("site")?;
        ensure!(third == Some(3), "{third:?}: {newest}");
        ensure!(text(&newest, "status") == "ROLLED_BACK", "{newest}");
        let said = newest.to_string();
        ensure!(
            said.contains("app.rate(orders_failed_total{kind="),
            "{said}"
        );
        answers(cluster.proxy(0, port), "version 1.1.0")
    });
}

#[test]
fn a_metric_that_is_none_is_told_with_what_would_be_right() {
    story(ONE, |cluster| {
        let port = site(cluster)?;
        publish(cluster, "1.0.0", "0")?;
        for (metric, says) in [
            ("app.most(x)", "want rate"),
            ("app.rate(x{a=1})", "double quotes"),
            ("htp.rpm", "is not a metric"),
        ] {
            let rule = format!(
                "rollback.rules=[{{metric: '{metric}', comparison: greater_than, threshold: 1}}]"
            );
            let output = cluster
                .tidegate(&["deploy", "site", "1.0.0", "--scope", "site", "--set", &rule])?;
            ensure!(
                output.status != Some(0) && output.stderr.contains(says),
                "{output}"
            );
        }
        ensure!(port > 0);
        Ok(())
    });
}
