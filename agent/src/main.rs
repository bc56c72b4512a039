//! The program `tidegate-agent`: reads its arguments and hands over to the library.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tidegate_agent::proxy::{self, ProxyArgs};

/// Runs, watches and switches what the coordinators assign to this host.
#[derive(Parser)]
#[command(name = "tidegate-agent", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the data plane of this host: listens for the scopes and spreads requests over versions by weight
    Proxy(ProxyArgs),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Proxy(args) => proxy::main(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
