//! `tests/bench/run`: measures, prints one table for each bench and writes JSON beside it.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use tidegate_bench::Effort;
use tidegate_bench::benches::Bench;
use tidegate_bench::machine::Machine;

/// What the coordinator has: the bench `state` runs its state machine in this process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Tidegate beside programs that do the same, on this machine in one run.
#[derive(Debug, Parser)]
#[command(
    name = "tests/bench/run",
    after_help = "Both sides run by turns, several times; medians and their ratios are printed, every value is in\nthe JSON. Let the machine do nothing else meanwhile. docs/performance.md says what was found.\n\nExamples:\n  tests/bench/run --list\n  tests/bench/run commits reads\n  tests/bench/run --all --repetitions 5"
)]
struct Arguments {
    /// What to measure; see --list
    #[arg(value_name = "NAME")]
    benches: Vec<Bench>,
    /// Measure everything
    #[arg(long, conflicts_with = "benches")]
    all: bool,
    /// Say what there is, and measure nothing
    #[arg(long)]
    list: bool,
    /// As little as shows that a bench works; its figures mean nothing
    #[arg(long)]
    short: bool,
    /// Turns of each side; 1 to 100, default 3
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    repetitions: Option<u8>,
    /// Counted seconds of one turn; 1 to 600, default 5
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: Option<u16>,
    /// Where the JSON goes
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match measure(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            writeln!(std::io::stderr(), "tests/bench/run: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    if arguments.list {
        for bench in Bench::ALL {
            writeln!(out, "{:<10} {}", bench.name(), bench.about())?;
        }
        return Ok(());
    }
    let benches = match (arguments.all, arguments.benches.as_slice()) {
        (true, _) => Bench::ALL.to_vec(),
        (false, []) => anyhow::bail!("name a bench, or --all; --list says what there is"),
        (false, named) => named.to_vec(),
    };
    let mut effort = if arguments.short {
        Effort::short()
    } else {
        Effort::full()
    };
    if let Some(repetitions) = arguments.repetitions {
        effort.repetitions = usize::from(repetitions);
    }
    if let Some(seconds) = arguments.seconds {
        effort.length = Duration::from_secs(u64::from(seconds));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    for bench in benches {
        let machine = Machine::look()?;
        let report = runtime
            .block_on(bench.run(effort, &machine))
            .with_context(|| bench.name())?;
        let file = report.store(&arguments.out, &machine, arguments.short)?;
        writeln!(out, "{}", report.text(&machine, arguments.short))?;
        writeln!(out, "written to {}\n", file.display())?;
    }
    Ok(())
}
