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
use tidegate_agent::service::{Reload, SetFilter};
use tidegate_packaging::Options;
use tidegate_shared::error::Reason;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Handle;

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
    /// Make this host one of Tidegate: units, the proxy's user, folders; then join, then start
    Install(InstallArguments),
    /// Stop the agent with everything that it started, and take its units off this host
    Uninstall(UninstallArguments),
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
/// _EXECUTOR (`auto`, `process` or `systemd`), _PROXY_UNIT, _LOG (as `info,tidegate_agent=debug`), _LOG_FORMAT (`text` or `json`).
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

/// Make this host one of Tidegate.
///
/// Writes tidegate-agent.service and tidegate-proxy.service, the user of the proxy, the folder
/// /var/lib/tidegate-agent (0700) and /etc/default/tidegate-agent, and has the agent started at boot. It can
/// be repeated; what was changed by hand is kept. The agent starts once it has joined:
///
///   tidegate-agent install
///   tidegate-agent join --token tg1_… --server coordinator.example:7443
///   systemctl start tidegate-agent
#[derive(Args)]
#[command(verbatim_doc_comment)]
struct InstallArguments {
    #[command(flatten)]
    host: HostArguments,
}

#[derive(Args)]
struct HostArguments {
    /// Work in this folder, which will become a host's root, instead of on this host
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
    /// Replace or remove units that were changed by hand, too
    #[arg(long)]
    force: bool,
    /// Where this program is on the host [default: where it is now; with --root /usr/bin/tidegate-agent]
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// Stop the agent with everything that it started, and take its units off this host.
///
/// /var/lib/tidegate-agent stays, so that `install` can take it up again, unless --purge is given. The
/// cluster is not told: `tidegate agent remove` there.
#[derive(Args)]
struct UninstallArguments {
    #[command(flatten)]
    host: HostArguments,
    /// Remove the folder with the identity and all releases, and the proxy's user, too
    #[arg(long)]
    purge: bool,
    /// Let applications and the proxy go on
    #[arg(long, conflicts_with = "purge")]
    keep_running: bool,
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
        Command::Install(arguments) => install(&arguments),
        Command::Uninstall(arguments) => uninstall(&arguments),
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

/// Starts the log; the answer changes its filter.
fn init_log(filter: &str, json: bool) -> SetFilter {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr);
    let (set, change): (_, SetFilter) = if json {
        let builder = builder.json().with_filter_reloading();
        let handle = builder.reload_handle();
        (
            builder.try_init(),
            Box::new(move |filter| set_filter(&handle, filter)),
        )
    } else {
        let builder = builder.with_filter_reloading();
        let handle = builder.reload_handle();
        (
            builder.try_init(),
            Box::new(move |filter| set_filter(&handle, filter)),
        )
    };
    if let Err(error) = set {
        eprintln!("warning: nothing will be logged: {error}");
    }
    change
}

fn set_filter<S>(handle: &Handle<EnvFilter, S>, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| error.to_string())?;
    handle.reload(filter).map_err(|error| error.to_string())
}

fn run_agent(arguments: &RunArguments) -> Result<(), AgentError> {
    let config = arguments.config.clone();
    let read = move || Config::load(&config, |name| std::env::var(name).ok());
    let settings: Settings = read()?;
    let reload = Reload {
        set_filter: init_log(&settings.log, settings.log_json),
        read: Box::new(read),
    };
    let stop_everything = arguments.stop_everything_on_exit;
    runtime()?.block_on(run::run(settings, stop_everything, reload))
}

fn join(arguments: JoinArguments) -> Result<(), AgentError> {
    drop(init_log("warn", false));
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
    drop(init_log("warn", false));
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
    drop(init_log("warn", false));
    let layout = Layout { dir: arguments.dir };
    let stopped = runtime()?.block_on(run::stop_all(&layout))?;
    println!("stopped {stopped} instances, and the proxy if it ran");
    Ok(())
}

fn host_options(arguments: &HostArguments) -> Result<Options, AgentError> {
    let program = match (&arguments.program, &arguments.root) {
        (Some(program), _) => program.clone(),
        (None, Some(_)) => PathBuf::from("/usr/bin/tidegate-agent"),
        (None, None) => std::env::current_exe().map_err(|error| {
            let message =
                format!("the path of this program cannot be found: {error}; use --program");
            AgentError::new(Reason::HostSetup, message)
        })?,
    };
    Ok(Options {
        root: arguments.root.clone(),
        program,
        dry_run: arguments.dry_run,
        force: arguments.force,
    })
}

fn tell_done(dry_run: bool, done: &[String]) {
    let would = if dry_run { "would: " } else { "" };
    for line in done {
        println!("{would}{line}");
    }
}

fn host_error(error: &tidegate_packaging::InstallError) -> AgentError {
    AgentError::new(Reason::HostSetup, error.to_string())
}

fn install(arguments: &InstallArguments) -> Result<(), AgentError> {
    let options = host_options(&arguments.host)?;
    let done = tidegate_packaging::install(&tidegate_packaging::agent(), &options)
        .map_err(|error| host_error(&error))?;
    tell_done(options.dry_run, &done);
    if !options.dry_run && options.root.is_none() {
        println!(
            "next: tidegate-agent join --token … --server …, then systemctl start tidegate-agent"
        );
    }
    Ok(())
}

fn uninstall(arguments: &UninstallArguments) -> Result<(), AgentError> {
    let options = host_options(&arguments.host)?;
    let layout = Layout {
        dir: PathBuf::from(DEFAULT_DIR),
    };
    let plan = tidegate_packaging::agent();
    let is_here = options.root.is_none() && !options.dry_run;
    if is_here && !arguments.keep_running && layout.ledger().exists() {
        tidegate_packaging::stop(&plan, &options).map_err(|error| host_error(&error))?;
        stop_all(StopArguments { dir: layout.dir })?;
    }
    let done = tidegate_packaging::uninstall(&plan, &options, arguments.purge)
        .map_err(|error| host_error(&error))?;
    tell_done(options.dry_run, &done);
    Ok(())
}
