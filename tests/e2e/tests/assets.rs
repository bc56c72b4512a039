//! What a release is delivered as, and where it is fetched from: every bundle of the same files
//! becomes the same tree on the hosts (J1), and a web server that dies in the middle of a transfer
//! is asked for the rest only.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use tidegate_e2e::{answers, deploy, goes_well, site, story};
use tidegate_harness::cluster::{PATIENCE, text};
use tidegate_harness::{Cluster, Process, Shape, poll, ports};

const ONE: Shape = Shape {
    coordinators: 1,
    agents: 1,
};

const NGINX: &str = "/usr/sbin/nginx";
const RUN: &str = "python3 -m http.server ${PORT} --directory ${RELEASE_DIR}";
/// Bytes of the asset that is cut: random, so that they stay so many.
const LARGE: usize = 24 << 20;

fn shell(folder: &Path, line: &str) -> anyhow::Result<String> {
    let done = Command::new("sh")
        .args(["-c", line])
        .current_dir(folder)
        .output()?;
    ensure!(
        done.status.success(),
        "`{line}`: {}; zip and zstd are needed: apt-get install -y --no-install-recommends zip zstd",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

/// Path → mode and content of everything below a folder.
fn picture(folder: &Path) -> anyhow::Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(place) = waiting.pop() {
        for entry in fs::read_dir(place)? {
            let path = entry?.path();
            let data = fs::symlink_metadata(&path)?;
            let mode = data.permissions().mode() & 0o7777;
            let told = if data.is_dir() {
                waiting.push(path.clone());
                format!("folder {mode:o}")
            } else if data.is_symlink() {
                format!("→ {}", fs::read_link(&path)?.display())
            } else {
                format!("{mode:o} {:?}", fs::read(&path)?)
            };
            found.insert(path.strip_prefix(folder)?.to_path_buf(), told);
        }
    }
    Ok(found)
}

/// Folder of the newest release on the first agent.
fn newest_tree(cluster: &Cluster) -> anyhow::Result<PathBuf> {
    let releases = cluster.agent_dir(0).join("releases");
    let mut newest = None;
    for entry in fs::read_dir(&releases)? {
        let entry = entry?;
        if entry.file_name() != ".work" {
            let made = entry.metadata()?.created()?;
            newest = newest.max(Some((made, entry.path())));
        }
    }
    Ok(newest.context("no release is on the host")?.1)
}

#[test]
fn every_bundle_installs_the_same_tree() {
    story(ONE, |cluster| {
        let port = site(cluster)?;
        let files = cluster.dir().join("files");
        fs::create_dir_all(files.join("deep/er"))?;
        fs::write(files.join("deep/er/data"), [0, 159, 146, 150])?;
        fs::write(files.join("run.sh"), "#!/bin/sh\n")?;
        fs::set_permissions(files.join("run.sh"), fs::Permissions::from_mode(0o755))?;
        std::os::unix::fs::symlink("deep/er/data", files.join("link"))?;
        let bundles = [
            ("files", "true"),
            ("b.zip", "cd files && zip -qry ../b.zip ."),
            ("b.tar", "tar -C files -cf b.tar ."),
            ("b.tgz", "tar -C files -czf b.tgz ."),
            ("b.tar.zst", "tar -C files -cf - . | zstd -q -o b.tar.zst"),
        ];
        let mut first: Option<BTreeMap<PathBuf, String>> = None;
        for (number, (bundle, pack)) in bundles.into_iter().enumerate() {
            let version = format!("1.{number}.0");
            // The same files but for one line, so that each release has a digest of its own.
            fs::write(files.join("index.html"), format!("version {version}\n"))?;
            shell(cluster.dir(), pack)?;
            let asset = cluster.dir().join(bundle).display().to_string();
            let arguments = ["release", "create", "site", &version, "--asset", &asset];
            let made = cluster.tidegate(&[&arguments[..], &["--run", RUN]].concat())?;
            made.ok()?;
            goes_well(cluster, &version)?;
            answers(cluster.proxy(0, port), &format!("version {version}"))?;
            let mut tree = picture(&newest_tree(cluster)?)?;
            tree.remove(Path::new("index.html"));
            ensure!(tree.len() == 5, "{bundle}: {tree:?}");
            match &first {
                None => first = Some(tree),
                Some(first) => ensure!(tree == *first, "{bundle}: {tree:?} is not {first:?}"),
            }
        }
        Ok(())
    });
}

#[test]
fn a_hostile_archive_fails_by_the_name_of_its_entry_and_changes_nothing() {
    story(ONE, |cluster| {
        let port = site(cluster)?;
        let dir = cluster.dir().join("good");
        fs::create_dir(&dir)?;
        fs::write(dir.join("index.html"), "the good one\n")?;
        let asset = dir.display().to_string();
        let create = |version: &str, asset: &str| {
            let arguments = ["release", "create", "site", version, "--asset", asset];
            cluster.tidegate(&[&arguments[..], &["--run", RUN]].concat())
        };
        create("1.0.0", &asset)?.ok()?;
        goes_well(cluster, "1.0.0")?;
        let script = "import sys, zipfile\n\
            with zipfile.ZipFile('evil.zip', 'w') as z:\n    z.writestr('../../out', 'x')\n";
        fs::write(cluster.dir().join("evil.py"), script)?;
        shell(cluster.dir(), "python3 evil.py")?;
        let evil = cluster.dir().join("evil.zip").display().to_string();
        create("2.0.0", &evil)?.ok()?;
        ensure!(deploy(cluster, "2.0.0")? == Some(5));
        let said = cluster.newest("site")?.to_string();
        for part in ["UNSAFE_ARCHIVE", "../../out", "TG-1006"] {
            ensure!(said.contains(part), "{said}");
        }
        ensure!(!cluster.agent_dir(0).join("out").exists());
        answers(cluster.proxy(0, port), "the good one")
    });
}

/// A web server with a folder, slow enough to be cut.
struct Web {
    dir: PathBuf,
    port: u16,
}

impl Web {
    fn new(cluster: &Cluster) -> anyhow::Result<Self> {
        ensure!(
            Path::new(NGINX).is_file(),
            "{NGINX} is missing: apt-get install -y --no-install-recommends nginx-light"
        );
        let dir = cluster.dir().join("web");
        fs::create_dir_all(dir.join("files"))?;
        let port = ports::free([127, 0, 0, 1].into())?;
        let place = dir.display();
        let settings = format!(
            "daemon off;\nmaster_process off;\npid {place}/pid;\nerror_log stderr warn;\nevents {{}}\n\
             http {{\n  log_format parts '$status \"$http_range\" $body_bytes_sent \"$http_if_range\"';\n  \
             access_log {place}/log parts;\n  client_body_temp_path {place}/a;\n  \
             proxy_temp_path {place}/b;\n  fastcgi_temp_path {place}/c;\n  uwsgi_temp_path {place}/d;\n  \
             scgi_temp_path {place}/e;\n  server {{\n    listen 127.0.0.1:{port};\n    root {place}/files;\n    \
             location = /moved {{ return 302 /large.tar; }}\n    limit_rate 4m;\n  }}\n}}\n"
        );
        fs::write(dir.join("conf"), settings)?;
        Ok(Self { dir, port })
    }

    fn start(&self) -> anyhow::Result<Process> {
        let conf = self.dir.join("conf").display().to_string();
        let prefix = self.dir.display().to_string();
        let log = self.dir.join("output");
        let server = Process::start(
            "nginx",
            Path::new(NGINX),
            &["-e", "stderr", "-p", &prefix, "-c", &conf],
            &[],
            &log,
        )?;
        let address = ([127, 0, 0, 1], self.port).into();
        poll::until("nginx answers", PATIENCE, || {
            tidegate_harness::http::get(address, "/none")
        })?;
        Ok(server)
    }
}

#[test]
fn a_web_server_that_dies_in_the_middle_is_asked_for_the_rest() {
    story(ONE, |cluster| {
        let port = site(cluster)?;
        let web = Web::new(cluster)?;
        let files = web.dir.join("files");
        fs::write(files.join("index.html"), "from the web\n")?;
        let line = format!("head -c {LARGE} /dev/urandom > random");
        shell(&files, &line)?;
        shell(&files, "tar -cf large.tar index.html random && rm random")?;
        let sha256 = shell(&files, "sha256sum large.tar | cut -d' ' -f1")?;
        let size = fs::metadata(files.join("large.tar"))?.len();
        let source = format!("http://127.0.0.1:{}/moved", web.port);
        cluster
            .tidegate(&[
                "release",
                "create",
                "site",
                "1.0.0",
                "--asset",
                "name=site,kind=archive",
                "--source",
                &source,
                "--sha256",
                &sha256,
                "--size",
                &size.to_string(),
                "--run",
                RUN,
            ])?
            .ok()?;
        let mut server = web.start()?;
        let begun = cluster.tidegate(&[
            "deploy",
            "site",
            "1.0.0",
            "--scope",
            "site",
            "--strategy",
            "quick",
        ])?;
        begun.ok()?;
        let part = cluster
            .agent_dir(0)
            .join(format!("releases/.work/{sha256}.part"));
        poll::until("some of the asset is here", PATIENCE, || {
            let length = fs::metadata(&part)?.len();
            poll::holds(length > 2 << 20, || format!("{length} bytes"))
        })?;
        server.kill()?;
        let had = fs::metadata(&part)?.len();
        ensure!(had < size, "all of it came before the server was killed");
        let _server = web.start()?;
        poll::until("the release is active", PATIENCE, || {
            let newest = cluster.newest("site")?;
            poll::holds(text(&newest, "status") == "FINALIZED", || {
                newest.to_string()
            })
        })?;
        answers(cluster.proxy(0, port), "from the web")?;
        let log = fs::read_to_string(web.dir.join("log"))?;
        let rest: Vec<(u64, u64)> = log.lines().filter_map(resumed).collect();
        let [(from, sent)] = rest.as_slice() else {
            bail!("not one request for the rest: {log}");
        };
        // Not one byte of what was here was asked for again.
        ensure!(
            *from >= had && from + sent == size,
            "{had} of {size}: {log}"
        );
        ensure!(log.contains("\\x22"), "no If-Range: {log}");

        // A file that is not what the release says changes nothing.
        fs::write(files.join("other"), "something else")?;
        let source = format!("http://127.0.0.1:{}/other", web.port);
        cluster
            .tidegate(&[
                "release",
                "create",
                "site",
                "2.0.0",
                "--asset",
                "name=site,kind=archive",
                "--source",
                &source,
                "--sha256",
                &"1".repeat(64),
                "--size",
                "14",
                "--run",
                RUN,
            ])?
            .ok()?;
        ensure!(deploy(cluster, "2.0.0")? == Some(5));
        let said = cluster.newest("site")?.to_string();
        ensure!(
            said.contains("DIGEST_MISMATCH") && said.contains("/other"),
            "{said}"
        );
        answers(cluster.proxy(0, port), "from the web")
    });
}

/// First byte and bytes sent of a log line about a part.
fn resumed(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("206 \"bytes=")?;
    let (from, rest) = rest.split_once("-\" ")?;
    let sent = rest.split(' ').next()?;
    Some((from.parse().ok()?, sent.parse().ok()?))
}

#[test]
fn the_store_gives_up_what_no_scope_could_return_to() {
    story(ONE, |cluster| {
        let port = site(cluster)?;
        let settings = cluster.coordinator_dir(0).join("coordinator.toml");
        let more = "\n[blobs]\nkeep = \"10s\"\nunclaimed = \"2s\"\n";
        let text_now = fs::read_to_string(&settings)?;
        cluster.stop_coordinator(0)?;
        fs::write(&settings, text_now + more)?;
        cluster.start_coordinator(0)?;
        for version in ["1.0.0", "2.0.0"] {
            tidegate_e2e::python_release(cluster, version)?;
            goes_well(cluster, version)?;
        }
        tidegate_e2e::python_release(cluster, "3.0.0")?;
        let release = |version: &str| {
            cluster
                .tidegate(&["release", "get", "site", version])?
                .json()
        };
        poll::until("3.0.0 is collected", PATIENCE, || {
            let found = release("3.0.0")?;
            poll::holds(text(&found, "status") == "collected", || found.to_string())
        })?;
        let blobs = cluster.coordinator_dir(0).join("blobs");
        let count = || -> anyhow::Result<usize> { Ok(fs::read_dir(&blobs)?.count()) };
        poll::until("its blob is gone", PATIENCE, || {
            let found = count()?;
            poll::holds(found == 2, || format!("{found} blobs"))
        })?;
        for version in ["1.0.0", "2.0.0"] {
            let found = release(version)?;
            ensure!(text(&found, "status") == "ready", "{found}");
        }
        let refused = cluster.tidegate(&["deploy", "site", "3.0.0", "--scope", "site"])?;
        refused.refused(1, &["TG-1213", "release create"])?;
        // The very same command brings it back.
        tidegate_e2e::python_release(cluster, "3.0.0")?;
        goes_well(cluster, "3.0.0")?;
        answers(cluster.proxy(0, port), "this is version 3.0.0")
    });
}
