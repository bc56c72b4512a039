//! The program `tidegate-agent`: reads its arguments and hands over to the library.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its answers to people go to the terminal"
)]

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tidegate_agent::config::{Config, Layout, PortRange, Settings};
use tidegate_agent::enroll::{self, JoinOptions};
use tidegate_agent::error::AgentError;
use tidegate_agent::executor::limits::{self, ExecArgs};
use tidegate_agent::proxy::{self, ProxyArgs, status};
use tidegate_agent::run;
use tidegate_shared::error::Reason;
use tracing_subscriber::EnvFilter;

/// Where the agent lives unless told otherwise.
const DEFAULT_DIR: &str = "/var/lib/tidegate-agent";

/// Runs, watches and switches what the coordinators assign to this host.
///
/// A host joins its cluster once, with a token that `tidegate token create agent` prints, and then
/// runs the agent as a service:
///
///   tidegate-agent join --token tg1_… --server coordinator.example:7443
///   tidegate-agent run
///
/// Applications and the proxy are processes of their own: they go on when the agent stops, is
/// killed or is upgraded, and the next agent takes them up again.
#[derive(Parser)]
#[command(name = "tidegate-agent", version, verbatim_doc_comment)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent until SIGTERM; applications and the proxy go on after it
    Run(RunArguments),
    /// Join a cluster with a token: get a certificate and write agent.toml
    Join(JoinArguments),
    /// Stop every instance and the proxy of an agent that does not run
    StopAll(StopArguments),
    /// Run the data plane of this host: listens for the scopes and spreads requests over versions by weight
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Proxy(ProxyCommand),
    /// Become a program with limits; the agent runs it for instances that have them
    #[command(hide = true, name = limits::SUBCOMMAND)]
    ExecLimited(ExecArgs),
}

#[derive(Args)]
struct ProxyCommand {
    #[command(subcommand)]
    ask: Option<ProxyAsk>,
    #[command(flatten)]
    run: Option<ProxyArgs>,
}

#[derive(Subcommand)]
enum ProxyAsk {
    /// Tell how the running proxy does: process, listeners, weights, counts, replaced ones that drain
    Status(ProxyAskArguments),
    /// Replace the running proxy by one of this program, without dropping a connection
    Replace(ProxyAskArguments),
}

#[derive(Args)]
struct ProxyAskArguments {
    /// The agent's folder
    #[arg(long, default_value = DEFAULT_DIR)]
    dir: PathBuf,
}

/// Run the agent until SIGTERM; applications and the proxy go on after it.
///
/// Every key of agent.toml can be replaced by an environment variable: TIDEGATE_AGENT_NAME,
/// _COORDINATORS and _HTTP (lists with commas), _LISTEN_ADDRESS, _INSTANCE_ADDRESS, _PORT_RANGE,
/// _LOG (as `info,tidegate_agent=debug`), _LOG_FORMAT (`text` or `json`).
#[derive(Args)]
struct RunArguments {
    /// The configuration; its folder is the agent's folder
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/lib/tidegate-agent/agent.toml"
    )]
    #[arg(env = "TIDEGATE_AGENT_CONFIG")]
    config: PathBuf,
    /// At the end, stop every instance and the proxy too (for trying things out)
    #[arg(long)]
    stop_everything_on_exit: bool,
}

#[derive(Args)]
struct JoinArguments {
    /// The token, as `tidegate token create agent` printed it
    #[arg(long, env = "TIDEGATE_AGENT_TOKEN", hide_env_values = true)]
    token: String,
    /// Enrolment listeners of coordinators
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', required = true)]
    server: Vec<String>,
    /// The agent's name in the cluster [default: the token's, or this host's name]
    #[arg(long)]
    name: Option<String>,
    /// The agent's folder
    #[arg(long, default_value = DEFAULT_DIR)]
    dir: PathBuf,
    /// Where the proxy listens for the scopes [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    listen_address: Option<IpAddr>,
    /// Where instances listen and are checked [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    instance_address: Option<IpAddr>,
    /// Ports for instances [default: 20000-29999]
    #[arg(long, value_name = "FIRST-LAST")]
    port_range: Option<PortRange>,
}

#[derive(Args)]
struct StopArguments {
    /// The agent's folder
    #[arg(long, default_value = DEFAULT_DIR)]
    dir: PathBuf,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Proxy(ProxyCommand { ask: Some(ask), .. }) => ask_proxy(&ask),
        Command::Proxy(ProxyCommand { run: None, .. }) => {
            eprintln!(
                "error: --dir is missing\nhint: tidegate-agent proxy --dir DIR runs the proxy; see --help"
            );
            return ExitCode::FAILURE;
        }
        Command::Proxy(ProxyCommand {
            run: Some(arguments),
            ..
        }) => {
            return match proxy::main(arguments) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("error: {error:#}");
                    ExitCode::FAILURE
                }
            };
        }
        Command::ExecLimited(arguments) => {
            eprintln!("error: {}", limits::exec(arguments));
            // As shells say it: the command was found and did not become the program.
            return ExitCode::from(126);
        }
        Command::Run(arguments) => run_agent(&arguments),
        Command::Join(arguments) => join(arguments),
        Command::StopAll(arguments) => stop_all(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}\nhint: {}", error.reason.hint());
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, AgentError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| {
            AgentError::new(
                Reason::Internal,
                format!("the runtime does not start: {error}"),
            )
        })
}

fn init_log(filter: &str, json: bool) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr);
    let set = if json {
        builder.json().try_init()
    } else {
        builder.try_init()
    };
    if let Err(error) = set {
        eprintln!("warning: nothing will be logged: {error}");
    }
}

fn run_agent(arguments: &RunArguments) -> Result<(), AgentError> {
    let settings: Settings = Config::load(&arguments.config, |name| std::env::var(name).ok())?;
    init_log(&settings.log, settings.log_json);
    runtime()?.block_on(run::run(settings, arguments.stop_everything_on_exit))
}

fn join(arguments: JoinArguments) -> Result<(), AgentError> {
    init_log("warn", false);
    let options = JoinOptions {
        token: arguments.token,
        servers: arguments.server,
        name: arguments.name,
        dir: arguments.dir,
        listen_address: arguments.listen_address,
        instance_address: arguments.instance_address,
        port_range: arguments.port_range,
    };
    let joined = runtime()?.block_on(enroll::join(&options))?;
    println!(
        "joined cluster {} as {}\nstart it with: tidegate-agent run --config {}",
        joined.cluster,
        joined.name,
        joined.config.display()
    );
    Ok(())
}

fn ask_proxy(ask: &ProxyAsk) -> Result<(), AgentError> {
    init_log("warn", false);
    let (ProxyAsk::Status(arguments) | ProxyAsk::Replace(arguments)) = ask;
    let layout = Layout {
        dir: arguments.dir.clone(),
    };
    let told = match ask {
        ProxyAsk::Status(_) => runtime()?.block_on(status::look(&layout.proxy()))?,
        ProxyAsk::Replace(_) => runtime()?.block_on(status::replace(&layout.proxy()))?,
    };
    print!("{told}");
    Ok(())
}

fn stop_all(arguments: StopArguments) -> Result<(), AgentError> {
    init_log("warn", false);
    let layout = Layout { dir: arguments.dir };
    let stopped = runtime()?.block_on(run::stop_all(&layout))?;
    println!("stopped {stopped} instances, and the proxy if it ran");
    Ok(())
}
