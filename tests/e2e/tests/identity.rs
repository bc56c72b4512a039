//! Who gets in: every listener of a real cluster against strangers, wrong certificates and wrong
//! tokens. Nothing but enrolment answers without a certificate.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use tidegate_coordinator::tls::{Expected, Tls, TlsMaterial};
use tidegate_e2e::story;
use tidegate_e2e::support::{apply, is_there};
use tidegate_harness::cluster::{Output, PATIENCE, number, text};
use tidegate_harness::{Cluster, Process, Shape, poll};
use tidegate_proto::peer::v1::peer_client::PeerClient;
use tidegate_proto::peer::v1::{AskRequest, Envelope};

const DOMAIN: &str = "test.tidegate";

/// Key, certificate chain and roots on disk.
#[derive(Clone)]
struct Papers {
    key: PathBuf,
    certificate: PathBuf,
    roots: PathBuf,
}

impl Papers {
    /// Those of a context or of an agent's identity.
    fn of(folder: &Path) -> Self {
        Self {
            key: folder.join("key.pem"),
            certificate: folder.join("cert.pem"),
            roots: folder.join("roots.pem"),
        }
    }

    fn of_agent(cluster: &Cluster, agent: usize) -> Self {
        Self::of(&cluster.agent_dir(agent).join("identity"))
    }

    /// Those of the person whom the harness logged in.
    fn of_person(cluster: &Cluster) -> Self {
        Self::of(&cluster.dir().join("contexts").join("people"))
    }

    /// Those of a coordinator: key and certificate share a file.
    fn of_coordinator(folder: &Path) -> Self {
        let own = folder.join("tls").join("node.pem");
        Self {
            key: own.clone(),
            certificate: own,
            roots: folder.join("tls").join("roots.pem"),
        }
    }
}

/// Connects as TLS 1.3, or 1.2 at most, and says what came of it: the version if the server
/// answered in HTTP/2, else why not.
const PROBE: &str = "\
import socket, ssl, sys
address, version, certificate, key = sys.argv[1:5]
host, port = address.rsplit(':', 1)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
context.set_alpn_protocols(['h2'])
if version == '1.2':
    context.maximum_version = ssl.TLSVersion.TLSv1_2
if certificate:
    context.load_cert_chain(certificate, key)
try:
    stream = context.wrap_socket(socket.create_connection((host, int(port)), 10))
    stream.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    print('answered over ' + stream.version() if stream.recv(9) else 'closed')
except (ssl.SSLError, OSError) as error:
    print('refused:', error)
";

fn probe(address: &str, version: &str, papers: Option<&Papers>) -> anyhow::Result<String> {
    let none = PathBuf::new();
    let (certificate, key) =
        papers.map_or((&none, &none), |papers| (&papers.certificate, &papers.key));
    let output = Command::new("python3")
        .args(["-c", PROBE, address, version])
        .args([certificate, key])
        .output()
        .context("python3 is missing")?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the probe failed: {errors}");
    Ok(said)
}

fn refuses(
    what: &str,
    address: &str,
    version: &str,
    papers: Option<&Papers>,
) -> anyhow::Result<()> {
    let said = probe(address, version, papers)?;
    let refused = said == "closed" || said.starts_with("refused");
    ensure!(refused, "{what} at {address}: {said}");
    Ok(())
}

/// Runs `tidegate` with papers of any kind against a control listener.
fn tidegate_with(
    cluster: &Cluster,
    papers: &Papers,
    control: &str,
    arguments: &[&str],
) -> anyhow::Result<Output> {
    let folder = tempfile::tempdir_in(cluster.dir())?;
    for (name, from) in [
        ("cert.pem", &papers.certificate),
        ("key.pem", &papers.key),
        ("roots.pem", &papers.roots),
    ] {
        fs::copy(from, folder.path().join(name))?;
    }
    let context = format!(
        "name = \"forged\"\ncluster_id = \"\"\ntrust_domain = \"{DOMAIN}\"\nuser = \"x\"\n\
         control = [\"{control}\"]\n"
    );
    fs::write(folder.path().join("context.toml"), context)?;
    let environment = [
        ("TIDEGATE_CONTEXT", folder.path().display().to_string()),
        (
            "TIDEGATE_CONFIG_DIR",
            folder.path().join("none").display().to_string(),
        ),
        ("TIDEGATE_OUTPUT", "json".to_owned()),
    ];
    let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
    cluster.finish("tidegate", &arguments, &environment)
}

/// Asks a peer listener something with these papers; the answer's code and message.
fn ask_peer(address: &str, papers: &Papers, from: u64) -> anyhow::Result<(String, String)> {
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    let material = TlsMaterial::from_pem(
        &read(&papers.certificate)?,
        &read(&papers.key)?,
        &read(&papers.roots)?,
    )?;
    let (_keep, material) = tokio::sync::watch::channel(Arc::new(material));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let channel = Tls::new(material, DOMAIN).channel(address, Expected::AnyCoordinator)?;
        let request = AskRequest {
            envelope: Some(Envelope {
                from,
                to: 1,
                ..Envelope::default()
            }),
            ..AskRequest::default()
        };
        match PeerClient::new(channel).ask(request).await {
            Ok(_) => anyhow::bail!("{address} answered node {from}"),
            Err(status) => Ok((format!("{:?}", status.code()), format!("{status:?}"))),
        }
    })
}

fn log_of(cluster: &Cluster, coordinator: usize) -> String {
    let name = format!("c{}.log", coordinator + 1);
    fs::read_to_string(cluster.dir().join("logs").join(name)).unwrap_or_default()
}

/// Makes a foreign cluster of the same trust domain with a coordinator of this name.
fn foreign(cluster: &Cluster, name: &str) -> anyhow::Result<PathBuf> {
    let folder = cluster.dir().join("foreign");
    let flags = [
        "init",
        "--dir",
        &folder.display().to_string(),
        "--name",
        name,
        "--trust-domain",
        DOMAIN,
    ];
    cluster
        .finish("tidegate-coordinator", &flags.map(str::to_owned), &[])?
        .ok()?;
    Ok(folder)
}

#[test]
fn every_door_is_closed_to_strangers() {
    let shape = Shape {
        coordinators: 1,
        agents: 1,
    };
    story(shape, |cluster| {
        let doors = cluster.listeners(0);
        let folder = foreign(cluster, "c1")?;
        let stranger = Papers::of(&folder.join("admin"));
        let person = Papers::of_person(cluster);
        for (name, door) in [
            ("control", &doors.control),
            ("peer", &doors.peer),
            ("http", &doors.http),
        ] {
            refuses(&format!("{name} without a certificate"), door, "1.3", None)?;
            refuses(
                &format!("{name} to a stranger"),
                door,
                "1.3",
                Some(&stranger),
            )?;
            refuses(&format!("{name} over TLS 1.2"), door, "1.2", Some(&person))?;
            let said = probe(door, "1.3", Some(&person))?;
            ensure!(said == "answered over TLSv1.3", "{name}: {said}");
        }
        refuses("enrolment over TLS 1.2", &doors.enroll, "1.2", None)?;
        let said = probe(&doors.enroll, "1.3", None)?;
        ensure!(said == "answered over TLSv1.3", "enrolment: {said}");
        // Nothing else is behind that door, not even for a person.
        let asked = tidegate_with(cluster, &person, &doors.enroll, &["cluster", "status"])?;
        asked.refused(1, &["TG-13"])?;

        // A stranger who trusts our root, and one who trusts only the own.
        let forged = Papers {
            roots: person.roots.clone(),
            ..stranger.clone()
        };
        agents_are_no_people(cluster)?;
        only_members_are_peers(cluster, &forged)?;
        for papers in [&forged, &stranger] {
            let asked = tidegate_with(cluster, papers, &doors.control, &["cluster", "status"])?;
            asked.refused(1, &["code: TG-13"])?;
        }
        Ok(())
    });
}

/// An agent's certificate opens the agents' link alone.
fn agents_are_no_people(cluster: &Cluster) -> anyhow::Result<()> {
    let control = cluster.listeners(0).control;
    let agent = Papers::of_agent(cluster, 0);
    let verbs: [&[&str]; 5] = [
        &["cluster", "status"],
        &["token", "create", "agent"],
        &["agent", "remove", "a1"],
        &["environment", "create", "stolen", "--tier", "1"],
        &["audit", "list"],
    ];
    for verb in verbs {
        let asked = tidegate_with(cluster, &agent, &control, verb)?;
        asked.refused(1, &["code: TG-1302", "agent/a1 may not"])?;
    }
    let stolen = cluster.tidegate(&["environment", "get", "stolen"])?;
    stolen.refused(1, &["TG-1101"])
}

/// People, agents and strangers are nobody's peers, and a member is only itself.
fn only_members_are_peers(cluster: &Cluster, forged: &Papers) -> anyhow::Result<()> {
    let peer = cluster.listeners(0).peer;
    let (code, told) = ask_peer(&peer, forged, 1)?;
    // Refused by TLS, before there is anybody to answer.
    let cut_off = ["Unavailable", "Unknown", "Cancelled"];
    ensure!(cut_off.contains(&code.as_str()), "{told}");
    for papers in [Papers::of_person(cluster), Papers::of_agent(cluster, 0)] {
        let (code, told) = ask_peer(&peer, &papers, 1)?;
        ensure!(code == "PermissionDenied", "{told}");
        ensure!(told.contains("only coordinators"), "{told}");
    }
    let member = Papers::of_coordinator(cluster.coordinator_dir(0));
    let (code, told) = ask_peer(&peer, &member, 2)?;
    ensure!(
        ["PermissionDenied", "FailedPrecondition"].contains(&code.as_str()),
        "{told}"
    );
    Ok(())
}

#[test]
fn a_coordinator_with_a_foreign_certificate_is_refused() {
    let shape = Shape {
        coordinators: 3,
        agents: 0,
    };
    story(shape, |cluster| {
        let victim = if cluster.leader()? == 2 { 1 } else { 2 };
        let name = format!("c{}", victim + 1);
        let stranger = foreign(cluster, &name)?;
        cluster.kill_coordinator(victim)?;
        let own = cluster.coordinator_dir(victim).join("tls").join("node.pem");
        let kept = fs::read(&own)?;
        fs::copy(stranger.join("tls").join("node.pem"), &own)?;
        let program = tidegate_harness::cluster::programs()?.join("tidegate-coordinator");
        let log = cluster.dir().join("logs").join("foreign.log");
        let arguments = [
            "run".into(),
            "--dir".into(),
            cluster.coordinator_dir(victim).to_owned(),
        ];
        let wrong = Process::start(&name, &program, &arguments, &[], &log)?;
        // Those whom it calls refuse it, and say so.
        poll::until("the refusal", PATIENCE, || {
            let others = (0..3).filter(|position| *position != victim);
            let said: String = others.map(|position| log_of(cluster, position)).collect();
            let refused = said.contains("a connection was refused") && said.contains("certificate");
            poll::holds(refused, || said)
        })?;
        let said = wrong.output();
        ensure!(
            !said.contains("panicked") && !said.contains("ready"),
            "{said}"
        );
        // The two others go on, and the third is nobody to them.
        apply(
            cluster,
            "kind: environment\nname: meanwhile\nspec: {tier: 1}\n",
        )?;
        poll::until("the third out of reach", PATIENCE, || {
            let status = cluster.tidegate(&["cluster", "status"])?.json()?;
            let members = status["members"].as_array().cloned().unwrap_or_default();
            let third = members.iter().find(|member| text(member, "name") == name);
            let role = third.map(|member| text(member, "role").to_owned());
            poll::holds(role.as_deref() == Some("unreachable"), || {
                status.to_string()
            })
        })?;
        drop(wrong);
        fs::write(&own, kept)?;
        cluster.start_coordinator(victim)?;
        cluster.agree()?;
        is_there(cluster, "environment", "meanwhile")
    });
}

/// Tries to join as an agent.
fn join(cluster: &Cluster, name: &str, token: &str, server: &str) -> anyhow::Result<Output> {
    let folder = cluster.dir().join(format!("join-{name}"));
    let flags = [
        "join",
        "--name",
        name,
        "--server",
        server,
        "--dir",
        &folder.display().to_string(),
    ];
    let environment = [("TIDEGATE_AGENT_TOKEN", token.to_owned())];
    let output = cluster.finish("tidegate-agent", &flags.map(str::to_owned), &environment)?;
    ensure!(
        output.status == Some(0) || !folder.exists(),
        "a refused join leaves {}: {output}",
        folder.display()
    );
    Ok(output)
}

#[test]
fn tokens_are_refused_with_the_word_that_fits() {
    let shape = Shape {
        coordinators: 1,
        agents: 1,
    };
    story(shape, |cluster| {
        let server = cluster.listeners(0).enroll;
        let once = cluster.token(&["agent"])?;
        join(cluster, "first", &once, &server)?.ok()?;
        let used = join(cluster, "second", &once, &server)?;
        used.refused(1, &["TG-1305", "used up", "hint:"])?;

        let short = cluster.tidegate(&["token", "create", "agent", "--ttl", "1s"])?;
        let short = short.json()?;
        let end = u128::from(number(&short, "expiresAtMs"));
        poll::until("the end of the token", PATIENCE, || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
            poll::holds(now > end, || format!("{now} is before {end}"))
        })?;
        let expired = join(cluster, "third", text(&short, "token"), &server)?;
        expired.refused(1, &["TG-1304", "expired"])?;

        // One digit of the secret is another one.
        let fresh = cluster.token(&["agent"])?;
        let mut parts: Vec<String> = fresh.split('_').map(str::to_owned).collect();
        let other = if parts[2].starts_with('0') { "1" } else { "0" };
        parts[2].replace_range(0..1, other);
        let wrong = join(cluster, "fourth", &parts.join("_"), &server)?;
        wrong.refused(1, &["TG-1303"])?;
        let malformed = join(cluster, "fifth", &fresh[..40], &server)?;
        malformed.refused(1, &["TG-1306", "tg1_"])?;
        // The fingerprint is that of another authority, so this server is the wrong one.
        let digit = if fresh.ends_with('0') { "1" } else { "0" };
        let elsewhere = format!("{}{digit}", &fresh[..fresh.len() - 1]);
        let elsewhere = join(cluster, "sixth", &elsewhere, &server)?;
        elsewhere.refused(1, &["TG-1307"])?;
        let person = cluster.token(&["user", "--name", "eve"])?;
        let kind = join(cluster, "seventh", &person, &server)?;
        ensure!(
            kind.status == Some(1),
            "an agent with a user's token: {kind}"
        );
        let named = cluster.token(&["agent", "--name", "eighth"])?;
        let other = join(cluster, "ninth", &named, &server)?;
        other.refused(1, &["TG-1302", "eighth"])?;
        // What was refused cost the token nothing.
        join(cluster, "tenth", &fresh, &server)?.ok()?;
        others_refuse_alike(cluster)?;
        a_removed_agent_is_out(cluster)
    });
}

/// People and coordinators meet the same words.
fn others_refuse_alike(cluster: &Cluster) -> anyhow::Result<()> {
    let server = cluster.listeners(0).enroll;
    let folder = cluster.dir().join("bob").display().to_string();
    let login = ["login", "--server", &server].map(str::to_owned);
    let used = cluster.token(&["user", "--name", "bob"])?;
    let environment = [
        ("TIDEGATE_TOKEN", used.clone()),
        ("TIDEGATE_CONFIG_DIR", folder.clone()),
    ];
    cluster.finish("tidegate", &login, &environment)?.ok()?;
    for (token, code) in [(used.as_str(), "TG-1305"), ("tg1_x", "TG-1306")] {
        let environment = [
            ("TIDEGATE_TOKEN", token.to_owned()),
            ("TIDEGATE_CONFIG_DIR", folder.clone()),
        ];
        let output = cluster.finish("tidegate", &login, &environment)?;
        ensure!(output.status != Some(0), "{output}");
        ensure!(output.stderr.contains(code), "want {code}: {output}");
        let flags = [
            "join",
            "--server",
            &server,
            "--name",
            "c9",
            "--dir",
            &cluster.dir().join("c9").display().to_string(),
        ];
        let environment = [("TIDEGATE_COORDINATOR_TOKEN", token.to_owned())];
        let flags = flags.map(str::to_owned);
        let output = cluster.finish("tidegate-coordinator", &flags, &environment)?;
        output.refused(1, &[code])?;
    }
    Ok(())
}

/// Removal ends the agent's session at once, and its certificate is worth nothing.
fn a_removed_agent_is_out(cluster: &mut Cluster) -> anyhow::Result<()> {
    let connected = |cluster: &Cluster| -> anyhow::Result<u64> {
        let status = cluster.tidegate(&["cluster", "status"])?.json()?;
        Ok(number(&status, "agentsConnected"))
    };
    ensure!(connected(cluster)? == 1);
    cluster.tidegate(&["agent", "remove", "a1"])?.ok()?;
    poll::until("the end of the session", PATIENCE, || {
        let connected = connected(cluster)?;
        poll::holds(connected == 0, || format!("{connected} are connected"))
    })?;
    let agent = Papers::of_agent(cluster, 0);
    let control = cluster.listeners(0).control;
    let asked = tidegate_with(cluster, &agent, &control, &["whoami"])?;
    ensure!(asked.status == Some(1), "{asked}");
    // It tries again and is told why not.
    let log = cluster.dir().join("logs").join("a1.log");
    poll::until("the word in the agent's log", PATIENCE, || {
        let said = fs::read_to_string(&log)?;
        let told = said.contains("was taken out of the cluster");
        poll::holds(told, || said)
    })?;
    let gone = cluster.tidegate(&["agent", "get", "a1"])?;
    gone.refused(1, &["TG-1101"])
}
