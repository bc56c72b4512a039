//! Every bench still works: the short form runs against the real programs, and what it reports has
//! its shape. Speeds are not looked at.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails, with the place where"
)]

use serde_json::Value;
use tidegate_bench::Effort;
use tidegate_bench::benches::Bench;
use tidegate_bench::machine::Machine;

/// One bench at a time: each has a cluster or two of its own.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Runs a bench; checks what it writes. `figures`: how many lines it must have at least.
fn works(bench: Bench, reference: &str, figures: usize) {
    // A bench that failed in its turn has told so; the others go on.
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let machine = Machine::look().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let report = match runtime.block_on(bench.run(Effort::short(), &machine)) {
        Ok(report) => report,
        Err(error) => panic!("{error:?}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let file = report.store(folder.path(), &machine, true).unwrap();
    assert!(file.ends_with(format!("{}.json", bench.name())));
    let json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(json["bench"], bench.name());
    assert_eq!(json["short"], true);
    assert!(json["machine"]["cores"].as_u64().unwrap() > 0);
    assert!(!json["versions"].as_object().unwrap().is_empty());
    assert!(!json["method"].as_array().unwrap().is_empty());
    let found = json["figures"].as_array().unwrap();
    assert!(found.len() >= figures, "{json:#}");
    for figure in found {
        assert!(!figure["name"].as_str().unwrap().is_empty());
        assert!(!figure["unit"].as_str().unwrap().is_empty());
        assert!(["higher", "lower"].contains(&figure["better"].as_str().unwrap()));
        let samples = figure["ours"]["samples"].as_array().unwrap();
        assert!(!samples.is_empty(), "{figure:#}");
        assert!(samples.iter().all(Value::is_number), "{figure:#}");
        assert!(figure["ours"]["median"].is_number(), "{figure:#}");
    }
    let compared = found.iter().find(|figure| figure["reference"].is_object());
    let compared = compared.unwrap_or_else(|| panic!("nothing is compared: {json:#}"));
    assert_eq!(compared["reference"]["name"], reference);
    assert!(compared["reference"]["median"].as_f64().unwrap() > 0.0);
    assert!(compared["ratio"].is_number(), "{compared:#}");
    let table = report.text(&machine, true);
    assert!(table.contains("its figures mean nothing"), "{table}");
    assert!(table.contains("ratio"), "{table}");
    assert!(
        table.contains(found[0]["name"].as_str().unwrap()),
        "{table}"
    );
}

#[test]
fn commits() {
    works(Bench::Commits, "etcd", 12);
}

#[test]
fn reads() {
    works(Bench::Reads, "etcd", 2);
}

#[test]
fn failover() {
    works(Bench::Failover, "etcd", 5);
}

#[test]
fn rollback() {
    works(Bench::Rollback, "30 s check", 4);
}

#[test]
fn proxy() {
    works(Bench::Proxy, "HAProxy", 8);
}

#[test]
fn agent() {
    works(Bench::Agent, "node exporter", 5);
}

#[test]
fn state() {
    works(Bench::State, "the fewest scopes", 19);
}

#[test]
fn the_list_names_every_bench_and_a_stranger_is_refused() {
    let run = |argument: &str| {
        std::process::Command::new(env!("CARGO_BIN_EXE_tidegate-bench"))
            .arg(argument)
            .output()
            .unwrap()
    };
    let list = run("--list");
    assert!(list.status.success());
    let said = String::from_utf8(list.stdout).unwrap();
    for bench in Bench::ALL {
        assert!(said.contains(bench.name()), "{said}");
    }
    let stranger = run("speed");
    assert!(!stranger.status.success());
    let said = String::from_utf8(stranger.stderr).unwrap();
    assert!(
        said.contains("there is no bench \"speed\": want commits"),
        "{said}"
    );
    assert!(!run("--short").status.success(), "nothing was named");
}
