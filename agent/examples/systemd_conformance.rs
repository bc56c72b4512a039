//! The executors' conformance suite over a real systemd, as a program that can be copied to a host.
//!
//! Run as root on a host that systemd runs. It makes a folder under /var/lib, starts and stops units
//! called `tidegate-shop-eu-…`, says one line per case, and exits with 0 if all of them passed. Not
//! for a host with an agent in use.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it answers on the terminal"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tidegate_agent::executor::conformance::systemd::{CASES, run_case};
use tidegate_agent::executor::systemd::SystemdExecutor;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(reason) = runtime.block_on(SystemdExecutor::usable()) {
        eprintln!("this host cannot run the suite: {reason}");
        return ExitCode::FAILURE;
    }
    let root = PathBuf::from(format!(
        "/var/lib/tidegate-conformance-{}",
        std::process::id()
    ));
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let mut failed = 0;
    for (name, _) in CASES {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        match runtime.block_on(run_case(name, &root)) {
            Ok(()) => println!("ok      {name}"),
            Err(why) => {
                failed += 1;
                println!("FAILED  {name}: {why}");
            }
        }
        clean(&root);
    }
    println!("{} failed", failed);
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn clean(root: &Path) {
    if let Err(error) = std::fs::remove_dir_all(root) {
        eprintln!("{} stays: {error}", root.display());
    }
}
