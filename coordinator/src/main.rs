//! The coordinator's program: `init`, `join`, `run`, `admin`.

use std::io::{IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tidegate_coordinator::clock::Clock;
use tidegate_coordinator::config::{Config, FILE_NAME, LogFormat};
use tidegate_coordinator::node::Node;
use tidegate_coordinator::raft::end_process;
use tidegate_coordinator::service::{self, Reload, SetFilter};
use tidegate_coordinator::setup::{self, AdminRequest, Init, JoinRequest, Places, SetupError};
use tidegate_packaging::{InstallError, Options};
use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Handle;

/// The state's tables copy nodes of one to four KiB with every command: that is where the system's
/// allocator spends most of a command's time. See docs/decisions/0017.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A Tidegate coordinator.
#[derive(Parser)]
#[command(name = "tidegate-coordinator", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Begins a cluster: its first coordinator, its certificate authority, its first administrator.
    Init(InitArgs),
    /// Adds a coordinator to a cluster, with a token from `tidegate token create coordinator`.
    Join(JoinArgs),
    /// Runs a coordinator that `init` or `join` made.
    Run(RunArgs),
    /// Makes this host one of a coordinator: unit, user, folder; then `init` or `join`, then start it.
    Install(InstallArgs),
    /// Stops the coordinator and takes its unit off this host.
    Uninstall(UninstallArgs),
    /// Makes a fresh certificate for an administrator whose own ran out, from a coordinator's folder.
    Admin(AdminArgs),
}

#[derive(Args)]
struct PlaceArgs {
    /// Address that every listener binds to (ports 7440 to 7443).
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    listen: IpAddr,
    /// Host under which others reach this node; default: the address that it listens on.
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// Listener for people and agents, if elsewhere.
    #[arg(long, value_name = "IP:PORT")]
    control: Option<SocketAddr>,
    /// Listener for other coordinators, if elsewhere.
    #[arg(long, value_name = "IP:PORT")]
    peer: Option<SocketAddr>,
    /// Listener for blobs and health, if elsewhere.
    #[arg(long, value_name = "IP:PORT")]
    http: Option<SocketAddr>,
    /// Listener for newcomers, if elsewhere.
    #[arg(long, value_name = "IP:PORT")]
    enroll: Option<SocketAddr>,
}

impl PlaceArgs {
    fn places(self) -> Places {
        Places {
            listen: Some(self.listen),
            advertise: self.advertise,
            control: self.control,
            peer: self.peer,
            http: self.http,
            enroll: self.enroll,
        }
    }
}

#[derive(Args)]
struct InitArgs {
    /// The data folder; made if it is missing.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Name of this coordinator.
    #[arg(long, value_name = "NAME")]
    name: Name,
    /// Host part of every identity of the cluster, for ever; such as example.com.
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: String,
    #[command(flatten)]
    places: PlaceArgs,
    /// Name of the first administrator.
    #[arg(long, value_name = "NAME", default_value = "admin")]
    admin: Name,
    /// Where the administrator's context is written; default: `admin` in the data folder.
    #[arg(long, value_name = "DIR")]
    admin_out: Option<PathBuf>,
}

#[derive(Args)]
struct JoinArgs {
    /// The token as printed; read from standard input if it is `-`.
    #[arg(long, env = "TIDEGATE_COORDINATOR_TOKEN", hide_env_values = true)]
    token: String,
    /// Enrolment listener of a coordinator of the cluster.
    #[arg(long, value_name = "HOST:PORT")]
    server: String,
    /// The data folder; made if it is missing.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Name of this coordinator.
    #[arg(long, value_name = "NAME")]
    name: Name,
    #[command(flatten)]
    places: PlaceArgs,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct RunArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_COORDINATOR_CONFIG")]
    config: Option<PathBuf>,
    /// The data folder with its `coordinator.toml`.
    #[arg(long, value_name = "DIR", env = "TIDEGATE_COORDINATOR_DIR")]
    dir: Option<PathBuf>,
}

#[derive(Args)]
struct AdminArgs {
    /// The data folder of a coordinator, which may be running.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Name of the administrator.
    #[arg(long, value_name = "NAME", default_value = "admin")]
    name: Name,
    /// Where the context is written; default: `admin` in the data folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Makes this host one of a coordinator.
///
/// Writes tidegate-coordinator.service, its user, the folder /var/lib/tidegate-coordinator (0700) and
/// /etc/default/tidegate-coordinator, and has it started at boot. It can be repeated; what was changed by hand is
/// kept. The service starts once `init` or `join` has filled the folder.
#[derive(Args)]
struct InstallArgs {
    #[command(flatten)]
    host: HostArgs,
}

#[derive(Args)]
struct HostArgs {
    /// Work in this folder, which will become a host's root, instead of on this host.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Only tell what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Replace or remove a unit that was changed by hand, too.
    #[arg(long)]
    force: bool,
    /// Where this program is on the host; default: where it is now, with --root /usr/bin/tidegate-coordinator.
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// Stops the coordinator and takes its unit off this host.
///
/// The cluster is not told: `tidegate cluster remove` first, or its members go on waiting for this one. The
/// folder stays unless --purge is given; it holds the cluster key, so whoever has the disk can read the cluster's
/// secrets.
#[derive(Args)]
struct UninstallArgs {
    #[command(flatten)]
    host: HostArgs,
    /// Remove the folder with log, state and cluster key, and the user, too.
    #[arg(long)]
    purge: bool,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            // One line, as every other refusal; the usage that clap adds is left to --help.
            let text = error.to_string();
            let lines: Vec<&str> = text
                .lines()
                .take_while(|line| !line.is_empty())
                .map(str::trim)
                .collect();
            let line = lines.join(" ");
            say(&format!(
                "error {}: {}\nhint: {}",
                Reason::InvalidRequest.code(),
                line.trim_start_matches("error: "),
                Reason::InvalidRequest.hint()
            ));
            return ExitCode::from(2);
        }
    };
    let result = match cli.command {
        Verb::Init(args) => init(args),
        Verb::Join(args) => join(args),
        Verb::Run(args) => run(args),
        Verb::Admin(args) => admin(args),
        Verb::Install(args) => install(args),
        Verb::Uninstall(args) => uninstall(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!(
                "error {}: {}\nhint: {}",
                error.code, error.message, error.hint
            ));
            ExitCode::FAILURE
        }
    }
}

/// A line for whoever started the program; a closed standard error is no reason to stop.
fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").ok();
}

fn runtime() -> Result<tokio::runtime::Runtime, SetupError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| SetupError::new(Reason::Internal, format!("no runtime: {error}")))
}

/// As root in a folder that belongs to the service's user, everything is done as that user: files
/// of root in it would keep the service from starting.
fn as_owner_of(dir: &Path) -> Result<(), SetupError> {
    let Ok(held) = std::fs::metadata(dir) else {
        return Ok(());
    };
    if held.uid() == 0 || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let failed = |error: std::io::Error| {
        SetupError::new(
            Reason::DataFolder,
            format!("cannot act as the owner of {}: {error}", dir.display()),
        )
    };
    let program = std::env::current_exe().map_err(failed)?;
    // Comes back only with an error.
    Err(failed(
        std::process::Command::new(program)
            .args(std::env::args_os().skip(1))
            .uid(held.uid())
            .gid(held.gid())
            .exec(),
    ))
}

fn host_error(error: &InstallError) -> SetupError {
    SetupError::new(Reason::HostSetup, error.to_string())
}

fn host_options(args: HostArgs) -> Result<Options, SetupError> {
    let program = match (args.program, &args.root) {
        (Some(program), _) => program,
        (None, Some(_)) => PathBuf::from("/usr/bin/tidegate-coordinator"),
        (None, None) => std::env::current_exe().map_err(|error| {
            SetupError::new(
                Reason::HostSetup,
                format!("the path of this program cannot be found: {error}; use --program"),
            )
        })?,
    };
    Ok(Options {
        root: args.root,
        program,
        dry_run: args.dry_run,
        force: args.force,
    })
}

fn tell_done(dry_run: bool, done: &[String]) {
    for line in done {
        say(&format!("{}{line}", if dry_run { "would: " } else { "" }));
    }
}

fn install(args: InstallArgs) -> Result<(), SetupError> {
    let options = host_options(args.host)?;
    let done = tidegate_packaging::install(&tidegate_packaging::coordinator(), &options)
        .map_err(|error| host_error(&error))?;
    tell_done(options.dry_run, &done);
    if !options.dry_run && options.root.is_none() {
        say(
            "next: tidegate-coordinator init or join with --dir /var/lib/tidegate-coordinator, then systemctl start tidegate-coordinator",
        );
    }
    Ok(())
}

fn uninstall(args: UninstallArgs) -> Result<(), SetupError> {
    let options = host_options(args.host)?;
    let done =
        tidegate_packaging::uninstall(&tidegate_packaging::coordinator(), &options, args.purge)
            .map_err(|error| host_error(&error))?;
    tell_done(options.dry_run, &done);
    Ok(())
}

fn init(args: InitArgs) -> Result<(), SetupError> {
    as_owner_of(&args.dir)?;
    let dir = args.dir.clone();
    let wish = Init {
        dir: args.dir,
        name: args.name,
        trust_domain: args.trust_domain,
        places: args.places.places(),
        admin: args.admin,
        admin_out: args.admin_out,
    };
    let admin = setup::init(&wish, &Clock::system())?;
    say(&format!(
        "cluster made; the context of {} is in {}\nstart it with: tidegate-coordinator run --dir {}",
        wish.admin,
        admin.display(),
        dir.display()
    ));
    Ok(())
}

fn join(args: JoinArgs) -> Result<(), SetupError> {
    as_owner_of(&args.dir)?;
    let token = if args.token == "-" {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map_err(|error| {
            SetupError::new(
                Reason::TokenMalformed,
                format!("the token cannot be read from standard input: {error}"),
            )
        })?;
        line.trim().to_owned()
    } else {
        args.token
    };
    let request = JoinRequest {
        dir: args.dir,
        name: args.name,
        token,
        server: args.server,
        places: args.places.places(),
    };
    let node = runtime()?.block_on(setup::join(&request, &Clock::system()))?;
    say(&format!(
        "joined as node {node}\nstart it with: tidegate-coordinator run --dir {}",
        request.dir.display()
    ));
    Ok(())
}

fn run(args: RunArgs) -> Result<(), SetupError> {
    let file = match (args.config, args.dir) {
        (Some(file), _) => file,
        (None, Some(dir)) => dir.join(FILE_NAME),
        (None, None) => PathBuf::from(FILE_NAME),
    };
    as_owner_of(file.parent().unwrap_or(Path::new(".")))?;
    let read = move || {
        let environment = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
        Config::load(&file, environment)
    };
    let config = read()?;
    let reload = Reload {
        set_filter: start_log(&config),
        config: config.clone(),
        read: Box::new(read),
    };
    runtime()?.block_on(serve(config, reload))
}

fn admin(args: AdminArgs) -> Result<(), SetupError> {
    if args.out.is_none() {
        as_owner_of(&args.dir)?;
    }
    let request = AdminRequest {
        dir: args.dir,
        name: args.name,
        out: args.out,
    };
    let folder = setup::admin(&request, &Clock::system())?;
    say(&format!(
        "the context of {} is in {}",
        request.name,
        folder.display()
    ));
    Ok(())
}

/// Starts the log; the answer changes its filter.
fn start_log(config: &Config) -> SetFilter {
    let filter = EnvFilter::new(&config.log_filter);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => {
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |filter| set_filter(&handle, filter))
        }
        LogFormat::Json => {
            let builder = builder.json().with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |filter| set_filter(&handle, filter))
        }
    }
}

fn set_filter<S>(handle: &Handle<EnvFilter, S>, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| error.to_string())?;
    handle.reload(filter).map_err(|error| error.to_string())
}

/// Why a node stops that nobody told to.
const REMOVED: &str = "removal from the cluster";

async fn serve(config: Config, reload: Reload) -> Result<(), SetupError> {
    let handler = |kind: SignalKind| {
        signal(kind)
            .map_err(|error| SetupError::new(Reason::Internal, format!("no signals: {error}")))
    };
    let mut terminated = handler(SignalKind::terminate())?;
    let mut interrupted = handler(SignalKind::interrupt())?;
    let hang_up = handler(SignalKind::hangup())?;
    let node = Node::start(config, Clock::system(), end_process()).await?;
    service::attend(&node, reload, hang_up);
    let listen = node.listen();
    let starting = tokio::select! {
        () = node.ready() => None,
        () = node.removed() => Some(REMOVED),
        _ = terminated.recv() => Some("SIGTERM"),
        _ = interrupted.recv() => Some("SIGINT"),
    };
    let stopped_by = match starting {
        Some(name) => name,
        None => {
            say(&format!(
                "ready node={} control={} peer={} http={} enroll={}",
                node.context().identity.node_id,
                listen.control,
                listen.peer,
                listen.http,
                listen.enroll
            ));
            tokio::select! {
                _ = terminated.recv() => "SIGTERM",
                _ = interrupted.recv() => "SIGINT",
                () = node.removed() => REMOVED,
            }
        }
    };
    if stopped_by == REMOVED {
        say(&format!(
            "{} was taken out of the cluster and ends; to bring this machine back, join it with a new token and an empty data folder",
            node.context().identity.name
        ));
    }
    tracing::info!(cause = stopped_by, "stopping");
    service::stopping(stopped_by);
    node.shutdown().await;
    Ok(())
}
