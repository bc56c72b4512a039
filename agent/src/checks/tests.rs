//! Real requests to a real server, real programs.

use std::time::{Duration, Instant};

use tidegate_agent_core::place::PlaceKey;
use tidegate_shared::measurement::{CheckKind, CheckWish, MOST_BYTES, Sample};
use tidegate_shared::secret::Secret;
use tidegate_shared::spec::{CommandMeasurement, HttpMeasurement, RunSpec, VerificationSpec};
use tidegate_shared::time::{Span, Timestamp};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::executor::Parameter;
use crate::executor::conformance::launch;

/// A server that answers every request with what `answer` makes of it.
async fn server(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let mut request = vec![0; 4_096];
                let count = stream.read(&mut request).await.unwrap();
                let told = answer(&String::from_utf8_lossy(&request[..count]));
                stream.write_all(told.as_bytes()).await.ok();
            });
        }
    });
    address
}

fn reply(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn http(json: &str) -> HttpMeasurement {
    let json = format!(r#"{{"name": "a", "http": {json}}}"#);
    let spec: VerificationSpec = serde_json::from_str(&json).unwrap();
    spec.http.unwrap()
}

struct Bench {
    _dir: tempfile::TempDir,
    target: Target,
}

impl Bench {
    fn new(what: CheckKind, address: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let release = folder.path().join("release");
        std::fs::create_dir(&release).unwrap();
        let mut launch = launch(0, &release, RunSpec::default());
        launch.parameters.push(Parameter {
            variable: "DB".to_owned(),
            value: Some(Secret::new("hunter22secret".to_owned())),
            secret: true,
            file: None,
        });
        let place = launch.instance.place.clone();
        let instance = TargetInstance {
            ordinal: 0,
            dir: folder.path().join("instance"),
            launch,
            address,
        };
        let wish = CheckWish {
            name: Name::new("smoke").unwrap(),
            run: Timestamp::from_millis(7),
            initial_delay: Span::ZERO,
            interval: Span::from_millis(250),
            what,
        };
        Self {
            _dir: folder,
            target: Target {
                place,
                wish,
                instances: vec![instance],
            },
        }
    }

    fn command(script: &str, timeout: Span) -> Self {
        let command = CommandMeasurement {
            command: "/bin/sh".to_owned(),
            args: vec!["-c".to_owned(), script.to_owned()],
            timeout,
            on: tidegate_shared::spec::CommandPlace::Agent,
        };
        Self::new(CheckKind::Command(command), "127.0.0.1:0".parse().unwrap())
    }

    async fn only(&self) -> Sample {
        let mut samples = samples(&self.target).await;
        assert_eq!(samples.len(), 1);
        samples.remove(0).1
    }
}

const MINUTE: Span = Span::from_secs(60);

#[tokio::test]
async fn requests_carry_what_was_said_and_bring_status_and_body() {
    let address = server(|request| {
        let first = request.lines().next().unwrap_or_default();
        let has = |text: &str| request.to_lowercase().contains(text);
        assert!(has("x-tenant: blue"), "{request}");
        assert!(has("host: shop.example.com"), "{request}");
        reply(
            "503 Service Unavailable",
            &format!("{first} hunter22secret"),
        )
    })
    .await;
    let wanted = http(
        r#"{"path": "/ready?deep=1", "method": "POST",
            "headers": {"X-Tenant": "blue", "Host": "shop.example.com"}}"#,
    );
    let bench = Bench::new(CheckKind::Http(wanted), address);
    assert_eq!(
        bench.only().await,
        Sample::Http {
            status: 503,
            body: "POST /ready?deep=1 HTTP/1.1 (secret)".to_owned(),
            cut: false,
        }
    );
}

#[tokio::test]
async fn long_bodies_are_cut() {
    let address = server(|_| reply("200 OK", &"ä".repeat(MOST_BYTES))).await;
    let bench = Bench::new(CheckKind::Http(http(r#"{"path": "/"}"#)), address);
    let Sample::Http { body, cut, .. } = bench.only().await else {
        panic!("no answer");
    };
    assert!(cut);
    assert!(
        body.len() <= MOST_BYTES && body.len() + 4 > MOST_BYTES,
        "{}",
        body.len()
    );
}

#[tokio::test]
async fn what_is_masked_is_no_longer_than_a_report_takes() {
    let address = server(|_| reply("200 OK", &"abcd".repeat(MOST_BYTES / 4))).await;
    let mut bench = Bench::new(CheckKind::Http(http(r#"{"path": "/"}"#)), address);
    bench.target.instances[0].launch.parameters[0].value = Some(Secret::new("abcd".to_owned()));
    let Sample::Http { body, cut, .. } = bench.only().await else {
        panic!("no answer");
    };
    assert!(
        body.len() <= MOST_BYTES && !body.contains("abcd"),
        "{}",
        body.len()
    );
    assert!(cut);
}

#[tokio::test]
async fn nobody_there_and_no_answer_in_time_are_unanswered() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let bench = Bench::new(CheckKind::Http(http(r#"{"path": "/"}"#)), address);
    let Sample::Unanswered(why) = bench.only().await else {
        panic!("somebody answered");
    };
    assert!(why.to_lowercase().contains("refused"), "{why}");
    // It takes the connection and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let wanted = http(r#"{"path": "/", "timeout": "50ms"}"#);
    let bench = Bench::new(CheckKind::Http(wanted), silent.local_addr().unwrap());
    assert_eq!(
        bench.only().await,
        Sample::Unanswered("no answer in 50ms".to_owned())
    );
}

#[tokio::test]
async fn programs_run_in_the_surroundings_of_the_instance() {
    let script = r#"echo "$TIDEGATE_CHECK $TIDEGATE_HOOK $PORT"; pwd; echo "db $DB" >&2; exit 3"#;
    let bench = Bench::command(script, MINUTE);
    let Sample::Command {
        exit_code, output, ..
    } = bench.only().await
    else {
        panic!("it did not end");
    };
    assert_eq!(exit_code, 3);
    let release = &bench.target.instances[0].launch.release_dir;
    let release = release.display().to_string();
    assert!(output.contains("smoke verification 20000"), "{output}");
    assert!(output.contains(&release), "{output}");
    assert!(output.contains("db (secret)"), "{output}");
}

#[tokio::test]
async fn programs_that_take_too_long_are_ended_with_their_children() {
    let script = "trap '' TERM; echo $$ > pid; sleep 600 & wait";
    let bench = Bench::command(script, Span::from_millis(500));
    assert_eq!(
        bench.only().await,
        Sample::Unanswered("took longer than its time-out of 500ms".to_owned())
    );
    let release = &bench.target.instances[0].launch.release_dir;
    let pid = std::fs::read_to_string(release.join("pid")).unwrap();
    assert!(!procfs_lives(pid.trim()));
}

fn procfs_lives(pid: &str) -> bool {
    crate::executor::procfs::group_lives(pid.parse().unwrap())
}

#[tokio::test]
async fn programs_that_are_missing_say_nothing_about_the_version() {
    let command = CommandMeasurement {
        command: "./not-there".to_owned(),
        args: Vec::new(),
        timeout: MINUTE,
        on: tidegate_shared::spec::CommandPlace::Agent,
    };
    let bench = Bench::new(CheckKind::Command(command), "127.0.0.1:0".parse().unwrap());
    assert!(matches!(bench.only().await, Sample::NotMade(_)));
    let bench = Bench::command("kill -9 $$", MINUTE);
    assert_eq!(
        bench.only().await,
        Sample::NotMade("was ended by signal 9".to_owned())
    );
}

async fn until(checker: &Checker, target: &Target, place: &PlaceKey, sequence: u64) -> Sample {
    let deadline = Instant::now() + Duration::from_secs(60);
    let news = checker.news();
    loop {
        checker.ask(vec![target.clone()]);
        if let [latest] = checker.latest(place).as_slice()
            && latest.sequence >= sequence
        {
            return latest.sample.clone();
        }
        assert!(Instant::now() < deadline, "nothing was measured");
        let rest = checker.rest().unwrap_or(Duration::from_secs(5));
        tokio::select! {
            () = news.notified() => {}
            () = tokio::time::sleep(rest) => {}
        }
    }
}

#[tokio::test]
async fn the_latest_is_kept_per_run_until_it_is_not_wished() {
    let address = server(|_| reply("200 OK", "{}")).await;
    let mut bench = Bench::new(CheckKind::Http(http(r#"{"path": "/"}"#)), address);
    let place = bench.target.place.clone();
    let checker = Checker::default();
    until(&checker, &bench.target, &place, 1).await;
    // Measured again and again, with other numbers.
    until(&checker, &bench.target, &place, 3).await;
    assert_eq!(checker.latest(&place)[0].run, Timestamp::from_millis(7));
    // Another run begins without what the one before found.
    bench.target.wish.run = Timestamp::from_millis(8);
    bench.target.wish.initial_delay = MINUTE;
    checker.ask(vec![bench.target.clone()]);
    assert!(checker.latest(&place).is_empty());
    assert!(checker.rest().unwrap() > Duration::from_secs(30));
    checker.ask(Vec::new());
    assert_eq!(checker.rest(), None);
}
