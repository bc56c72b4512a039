//! What a scope may ask of its traffic, from the manifest to the client: TLS, TCP, a header, a cookie,
//! WebSocket, and workers without a port.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tidegate_e2e::story;
use tidegate_e2e::support::{
    apply, begin, ends, establish, publish, publish_files, status, weight,
};
use tidegate_harness::cluster::PATIENCE;
use tidegate_harness::{Cluster, Shape, poll};

const ONE: Shape = Shape {
    coordinators: 1,
    agents: 1,
};

const OBJECTS: &str = "\
kind: application
name: shop
spec: {}
---
kind: environment
name: test
spec: {tier: 1}
---
kind: strategy
name: by-hand
spec:
  traffic: {steps: [{percent: 20, hold: manual}, {percent: 100, hold: 0s}]}
  bake: 1h
  drain: 1s
  finalize: manual
---
kind: strategy
name: at-once
spec: {kind: all_in, bake: 0s, drain: 1s}
---
kind: strategy
name: one-by-one
spec: {kind: rolling, batch: {max_unavailable: 1, hold: 0s, overlap: false}, bake: 0s, drain: 0s}
";

/// Makes the shop with a scope that says this too.
fn shop_with(cluster: &Cluster, more: &str) -> anyhow::Result<u16> {
    let port = cluster.scope_port()?;
    apply(cluster, &format!("{OBJECTS}{}", scope(port, more)))?;
    Ok(port)
}

fn scope(port: u16, more: &str) -> String {
    format!(
        "---\nkind: scope\nname: shop\nspec:\n  application: shop\n  environment: test\n  \
         port: {port}\n  health_check: {{tcp: true, interval: 200ms, healthy_threshold: 1}}\n{more}"
    )
}

fn curl(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20"])
        .args(arguments)
        .output()
        .context("curl is missing: apt-get install curl")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "curl {arguments:?}: {errors} {said}"
    );
    Ok(said)
}

/// A certificate for a name, PEM, and the file of its key.
fn pair(cluster: &Cluster, name: &str) -> anyhow::Result<(String, PathBuf)> {
    let file = |kind: &str| cluster.dir().join(format!("{name}.{kind}"));
    let (key, certificate) = (file("key"), file("crt"));
    let output = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .args([
            "-nodes",
            "-days",
            "2",
            "-subj",
            &format!("/CN={name}"),
            "-keyout",
        ])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .context("openssl is missing: apt-get install openssl")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok((std::fs::read_to_string(certificate)?, key))
}

/// Tells the cluster a pair; the key as a secret that the command line reads from a file.
fn parameters(cluster: &Cluster, (certificate, key): &(String, PathBuf)) -> anyhow::Result<()> {
    let target = serde_json::json!({"scope": "shop"});
    let certificate = serde_json::json!({
        "variable": "SHOP_CERT", "value": certificate, "target": target
    });
    let key = serde_json::json!({
        "variable": "SHOP_KEY", "kind": "secret", "value_from": {"file": key}, "target": target
    });
    let manifests = format!(
        "kind: parameter\nname: certificate\nspec: {certificate}\n---\n\
         kind: parameter\nname: key\nspec: {key}\n"
    );
    apply(cluster, &manifests)
}

/// Whose certificate is shown at an address.
fn shown(at: SocketAddr) -> anyhow::Result<String> {
    let script = format!(
        "openssl s_client -connect {at} -servername shop.test </dev/null 2>/dev/null | openssl x509 -noout -subject"
    );
    let output = Command::new("sh").args(["-c", &script]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn tls_ends_at_the_proxy_and_changes_with_a_deployment() {
    story(ONE, |cluster| {
        let port = shop_with(cluster, "  tls: {certificate: SHOP_CERT, key: SHOP_KEY}\n")?;
        publish(cluster, "1")?;
        // Without the parameters nothing begins.
        let arguments = [
            "deploy",
            "shop",
            "1",
            "--scope",
            "shop",
            "--strategy",
            "at-once",
        ];
        cluster
            .tidegate(&arguments)?
            .refused(1, &["TG-1003", "tls.certificate", "SHOP_CERT"])?;
        parameters(cluster, &pair(cluster, "one.test")?)?;
        let first = begin(cluster, "1", "at-once", &[])?;
        ends(cluster, &first, "FINALIZED")?;
        let at = cluster.proxy(0, port);
        let url = format!("https://{at}/");
        for protocol in ["--http1.1", "--http2"] {
            let told = curl(&["-k", "-i", protocol, &url])?.to_lowercase();
            ensure!(
                told.contains(" 200") && told.contains("x-demo-version: 1"),
                "{told}"
            );
            let version = if protocol == "--http2" {
                "http/2 200"
            } else {
                "http/1.1 200"
            };
            ensure!(told.starts_with(version), "{told}");
        }
        ensure!(shown(at)?.contains("one.test"), "{}", shown(at)?);

        // Another pair, in force with the next deployment and not before it.
        parameters(cluster, &pair(cluster, "two.test")?)?;
        ensure!(shown(at)?.contains("one.test"), "{}", shown(at)?);
        establish(cluster, "2")?;
        poll::until("the other certificate", PATIENCE, || {
            let shown = shown(at)?;
            poll::holds(shown.contains("two.test"), || shown.clone())
        })?;
        ensure!(
            curl(&["-k", "-i", &url])?.contains("x-demo-version: 2"),
            "not version 2"
        );

        // A pair that does not fit takes the deployment back, and the one that fits goes on.
        let (good, _) = pair(cluster, "three.test")?;
        let (_, other) = pair(cluster, "four.test")?;
        parameters(cluster, &(good, other))?;
        publish(cluster, "3")?;
        let bad = begin(cluster, "3", "at-once", &[])?;
        let ended = ends(cluster, &bad, "ROLLED_BACK")?;
        ensure!(ended.to_string().contains("BAD_CERTIFICATE"), "{ended}");
        ensure!(
            curl(&["-k", "-i", &url])?.contains("x-demo-version: 2"),
            "not version 2"
        );
        let stored = std::fs::read_to_string(cluster.agent_dir(0).join("proxy/table.json"))?;
        ensure!(!stored.contains("PRIVATE KEY"), "the key is on disk");
        Ok(())
    });
}

/// A program that says its version to whoever connects, then sends everything back.
const ECHO: &str = "\
import os, socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(os.environ['SAYS'].encode() + b'\\n')
        while data := self.request.recv(4096):
            self.request.sendall(data)
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer((os.environ['TIDEGATE_ADDRESS'], int(os.environ['PORT'])), Echo).serve_forever()
";

#[test]
fn raw_connections_are_moved_step_by_step_and_rules_on_requests_are_refused() {
    story(ONE, |cluster| {
        let port = shop_with(cluster, "  protocol: tcp\n")?;
        for version in ["1", "2"] {
            let says = format!("env SAYS=v{version} python3 ${{RELEASE_DIR}}/echo.py");
            publish_files(cluster, version, &[("echo.py", ECHO, false)], &says)?;
        }
        let rule = "rollback.rules=[{metric: http.error_rate, comparison: greater_than, threshold: 0.1, judge: raw}]";
        let arguments = ["deploy", "shop", "1", "--scope", "shop", "--set", rule];
        cluster
            .tidegate(&arguments)?
            .refused(1, &["TG-1207", "speaks tcp", "http.error_rate"])?;
        let first = begin(cluster, "1", "at-once", &[])?;
        ends(cluster, &first, "FINALIZED")?;
        let at = cluster.proxy(0, port);
        ensure!(hello(at)? == "v1", "{}", hello(at)?);
        let rollout = begin(cluster, "2", "by-hand", &[])?;
        weight(cluster, &rollout, 2_000)?;
        let said: Vec<String> = (0..10).map(|_| hello(at)).collect::<Result<_, _>>()?;
        ensure!(
            said.iter().filter(|said| *said == "v2").count() == 2,
            "{said:?}"
        );
        cluster
            .tidegate(&["deployment", "promote", &rollout])?
            .ok()?;
        weight(cluster, &rollout, 10_000)?;
        ensure!(hello(at)? == "v2", "{}", hello(at)?);
        cluster
            .tidegate(&["deployment", "rollback", &rollout])?
            .ok()?;
        ends(cluster, &rollout, "ROLLED_BACK")?;
        ensure!(hello(at)? == "v1", "{}", hello(at)?);
        Ok(())
    });
}

fn hello(at: SocketAddr) -> anyhow::Result<String> {
    use std::io::{BufRead as _, BufReader};
    let stream = std::net::TcpStream::connect(at)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

#[test]
fn a_header_reaches_the_candidate_at_no_weight_and_a_cookie_keeps_a_client() {
    story(ONE, |cluster| {
        let port = shop_with(
            cluster,
            "  sticky: {cookie: tide, ttl: 1h}\n  route: {header: X-Canary, value: please}\n",
        )?;
        publish(cluster, "1")?;
        let first = begin(cluster, "1", "at-once", &[])?;
        ends(cluster, &first, "FINALIZED")?;
        publish(cluster, "2")?;
        let rollout = begin(cluster, "2", "by-hand", &[])?;
        status(cluster, &rollout, "RUNNING")?;
        weight(cluster, &rollout, 2_000)?;
        cluster
            .tidegate(&["deployment", "traffic", &rollout, "0"])?
            .ok()?;
        let url = format!("http://{}/", cluster.proxy(0, port));
        poll::until("no weight", PATIENCE, || {
            let found = cluster.tidegate(&["deployment", "get", &rollout])?.json()?;
            let actual = &found["traffic"]["actual"];
            poll::holds(*actual == Value::Null || *actual == 0, || found.to_string())
        })?;
        let canary = ["-i", "-H", "X-Canary: please", &url];
        for _ in 0..5 {
            ensure!(
                version(&curl(&canary)?)? == "2",
                "the candidate was not reached"
            );
            ensure!(
                version(&curl(&["-i", &url])?)? == "1",
                "it got others' requests"
            );
        }
        // A cookie of the old version keeps its client there when almost all traffic has moved.
        let told = curl(&["-i", &url])?;
        let cookie = told.lines().find_map(|line| {
            let rest = line.strip_prefix("set-cookie: ")?;
            rest.split(';').next().map(str::to_owned)
        });
        let cookie = cookie.with_context(|| told.clone())?;
        cluster
            .tidegate(&["deployment", "traffic", &rollout, "99"])?
            .ok()?;
        weight(cluster, &rollout, 9_900)?;
        for _ in 0..10 {
            let told = curl(&["-i", "-H", &format!("Cookie: {cookie}"), &url])?;
            ensure!(version(&told)? == "1", "{told}");
            ensure!(!told.contains("set-cookie"), "{told}");
        }
        cluster
            .tidegate(&["deployment", "rollback", &rollout])?
            .ok()?;
        ends(cluster, &rollout, "ROLLED_BACK")?;
        ensure!(
            version(&curl(&canary)?)? == "1",
            "there is no candidate any more"
        );
        Ok(())
    });
}

fn version(told: &str) -> anyhow::Result<String> {
    let line = told.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.eq_ignore_ascii_case("x-demo-version")).then(|| value.trim().to_owned())
    });
    line.with_context(|| told.to_owned())
}

/// A worker that must not run twice at once: it takes a folder as its lock and tells what it met.
const SINGLE: &str = "\
#!/bin/sh
mkdir \"$LOCK.held\" 2>/dev/null || echo \"$SAYS met another one\" >>\"$LOCK\"
echo \"$SAYS begins\" >>\"$LOCK\"
trap 'echo \"$SAYS ends\" >>\"$LOCK\"; rmdir \"$LOCK.held\"; exit 0' TERM
while :; do sleep 0.1; done
";

#[test]
fn a_single_consumer_without_a_port_is_never_there_twice() {
    story(ONE, |cluster| {
        apply(
            cluster,
            &format!(
                "{OBJECTS}---\nkind: scope\nname: shop\nspec:\n  application: shop\n  environment: test\n  port: none\n"
            ),
        )?;
        let lock = cluster.dir().join("lock");
        for version in ["1", "2", "3"] {
            let run = format!(
                "env SAYS=v{version} LOCK={} sh ${{RELEASE_DIR}}/single",
                lock.display()
            );
            publish_files(cluster, version, &[("single", SINGLE, true)], &run)?;
        }
        // A strategy that moves traffic does not fit.
        let arguments = [
            "deploy",
            "shop",
            "1",
            "--scope",
            "shop",
            "--strategy",
            "by-hand",
        ];
        cluster
            .tidegate(&arguments)?
            .refused(1, &["TG-1207", "port: none"])?;
        for version in ["1", "2", "3"] {
            let rollout = begin(cluster, version, "one-by-one", &[])?;
            ends(cluster, &rollout, "FINALIZED")?;
        }
        let told = poll::until("version 3 alone", PATIENCE, || {
            let told = std::fs::read_to_string(&lock)?;
            poll::holds(told.trim_end().ends_with("v3 begins"), || told.clone())?;
            Ok(told)
        })?;
        let lines: Vec<&str> = told.lines().collect();
        let wanted = ["v1 begins", "v1 ends", "v2 begins", "v2 ends", "v3 begins"];
        ensure!(lines == wanted, "{lines:?}");
        Ok(())
    });
}

/// A client that speaks WebSocket as RFC 6455 says, over what `socket` gives: the upgrade, a masked text
/// frame, the echo.
const WEBSOCKET: &str = "\
import base64, hashlib, os, socket, struct, sys
host, port = sys.argv[1].rsplit(':', 1)
s = socket.create_connection((host, int(port)), 20)
f = s.makefile('rb')
key = base64.b64encode(os.urandom(16)).decode()
s.sendall(f'GET /chat HTTP/1.1\\r\\nHost: shop\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\nSec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: {key}\\r\\n\\r\\n'.encode())
status = f.readline().decode()
assert ' 101 ' in status, status
head = {}
while (line := f.readline().strip()):
    name, value = line.decode().split(':', 1)
    head[name.lower()] = value.strip()
want = base64.b64encode(hashlib.sha1((key + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').encode()).digest()).decode()
assert head['sec-websocket-accept'] == want, head
def say(text):
    data, mask = text.encode(), os.urandom(4)
    s.sendall(struct.pack('!BB', 0x81, 0x80 | len(data)) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))
    first, length = f.read(2)
    assert first == 0x81, first
    return f.read(length).decode()
print(say('hello'), flush=True)
sys.stdin.readline()
print(say('still here'), flush=True)
";

/// The other end of it, on Python's own web server.
const CHAT: &str = "\
import base64, hashlib, http.server, os
class Chat(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        key = self.headers.get('Sec-WebSocket-Key')
        if not key:
            self.send_response(200); self.send_header('Content-Length', '0'); self.end_headers(); return
        accept = base64.b64encode(hashlib.sha1((key + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').encode()).digest())
        self.send_response(101)
        for name, value in (('Connection', 'Upgrade'), ('Upgrade', 'websocket'), ('Sec-WebSocket-Accept', accept.decode())):
            self.send_header(name, value)
        self.end_headers(); self.wfile.flush()
        self.close_connection = True
        while head := self.rfile.read(2):
            mask = self.rfile.read(4); length = head[1] & 127
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(length)))
            self.wfile.write(bytes([0x81, length]) + data); self.wfile.flush()
http.server.ThreadingHTTPServer((os.environ['TIDEGATE_ADDRESS'], int(os.environ['PORT'])), Chat).serve_forever()
";

#[test]
fn a_websocket_lives_through_an_upgrade_of_the_proxy() {
    use std::io::{BufRead as _, BufReader, Write as _};
    story(ONE, |cluster| {
        let port = shop_with(cluster, "")?;
        let run = "python3 ${RELEASE_DIR}/chat.py";
        publish_files(cluster, "1", &[("chat.py", CHAT, false)], run)?;
        let first = begin(cluster, "1", "at-once", &[])?;
        ends(cluster, &first, "FINALIZED")?;
        let at = cluster.proxy(0, port);
        let mut client = Command::new("python3")
            .args(["-c", WEBSOCKET, &at.to_string()])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .context("python3 is missing")?;
        let mut said = BufReader::new(client.stdout.take().context("no output")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        ensure!(line.trim() == "hello", "{line:?}");
        let dir = cluster.agent_dir(0).display().to_string();
        let flags = ["proxy", "replace", "--dir", &dir].map(str::to_owned);
        cluster.finish("tidegate-agent", &flags, &[])?.ok()?;
        poll::until(
            "the old proxy, draining, in what the cluster knows",
            PATIENCE,
            || {
                let agent = cluster.tidegate(&["agent", "get", "a1"])?.json()?;
                let draining = agent["proxy"]["draining"].as_array().map_or(0, Vec::len);
                poll::holds(draining == 1, || agent["proxy"].to_string())
            },
        )?;
        client.stdin.take().context("no input")?.write_all(b"\n")?;
        line.clear();
        said.read_line(&mut line)?;
        ensure!(line.trim() == "still here", "{line:?}");
        ensure!(client.wait()?.success(), "the client failed");
        poll::until("nothing drains", PATIENCE, || {
            let agent = cluster.tidegate(&["agent", "get", "a1"])?.json()?;
            let draining = agent["proxy"]["draining"].as_array().map_or(0, Vec::len);
            poll::holds(draining == 0, || agent["proxy"].to_string())
        })?;
        Ok(())
    });
}
