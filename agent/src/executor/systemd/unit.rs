//! The unit of an instance as values: its properties, and in plain words how it ended.
//!
//! Nothing here talks to the manager. Parameters reach the program through an environment file that
//! only root can read: properties of a unit are shown to everybody.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use super::super::Launch;
use super::super::limits::out_of_memory;
use super::super::process::Refusal;
use super::limits;
use crate::files;
use crate::systemd::{Property, UnitState, Variant};

/// What is said of an end that nobody saw.
pub const UNKNOWN_END: &str =
    "ended; its exit status is unknown, because systemd no longer knows the unit";

/// All instances of the host lie in it.
const SLICE: &str = "tidegate.slice";

/// Bind mounts take what is mounted below with them.
const RECURSIVE: u64 = 16_384;

/// Exit statuses that mean that the program was never run (systemd.exec(5), "Process exit codes").
const SETUP_FAILURES: std::ops::RangeInclusive<i32> = 200..=245;
const CHDIR: i32 = 200;
const EXEC: i32 = 203;

/// The description of an instance's unit, by which an agent knows its own.
fn description(launch: &Launch) -> String {
    format!(
        "Tidegate instance {} of agent {}",
        launch.instance, launch.agent
    )
}

/// Whether a unit of that description is one of this agent.
pub fn is_of(text: &str, launch: &Launch) -> bool {
    text == description(launch)
}

/// The program as an absolute path, found through the instance's own `PATH`.
///
/// # Errors
/// It is not there or may not be executed.
pub fn program(launch: &Launch, dir: &Path) -> Result<PathBuf, Refusal> {
    let program = launch.program(&launch.run.command, dir);
    let found = if program.is_absolute() {
        Some(program.clone()).filter(|path| path.exists())
    } else {
        let environment = launch.environment(dir);
        let path = environment
            .get("PATH")
            .map_or("/usr/local/bin:/usr/bin:/bin", String::as_str);
        std::env::split_paths(path)
            .map(|folder| folder.join(&program))
            .find(|path| path.is_file())
    };
    let refuse = |kind: io::ErrorKind| Refusal::of(&kind.into(), &program, launch);
    let found = found.ok_or_else(|| refuse(io::ErrorKind::NotFound))?;
    let may_run = std::fs::metadata(&found)
        .is_ok_and(|held| held.is_file() && held.permissions().mode() & 0o111 != 0);
    if may_run {
        // Without `.` in it, as systemd wants it.
        Ok(found.components().collect())
    } else {
        Err(refuse(io::ErrorKind::PermissionDenied))
    }
}

/// Makes the instance's folder and environment file, and names the properties of its unit.
///
/// # Errors
/// A folder or file cannot be made.
pub fn properties(
    launch: &Launch,
    dir: &Path,
    agent_dir: &Path,
    program: &Path,
    grace: Duration,
) -> Result<Vec<Property>, Refusal> {
    let limits = limits::properties(&launch.run.limits)?;
    let environment = dir.with_extension("env");
    prepare(launch, dir, &environment).map_err(|error| Refusal {
        permanent: false,
        message: format!("{}: {error}", dir.display()),
    })?;
    let mut arguments = vec![program.display().to_string()];
    arguments.extend(
        launch
            .run
            .args
            .iter()
            .map(|arg| launch.substitute(arg, dir)),
    );
    // systemd replaces variables in arguments; a doubled dollar is one that it leaves alone. (To forbid
    // it needs `ExecStartEx`, which systemd 252 cannot read back from the unit that it writes: the
    // next daemon-reload would break every running instance's unit.)
    let arguments: Vec<String> = arguments.iter().map(|arg| arg.replace('$', "$$")).collect();
    let start = (program.display().to_string(), arguments, false);
    let file = (environment.display().to_string(), false);
    let bind = |path: &Path| {
        let path = path.display().to_string();
        vec![(path.clone(), path, false, RECURSIVE)]
    };
    let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
    let text = |text: &str| Variant::from(text.to_owned());
    let mut all = vec![
        ("Description", text(&description(launch))),
        ("Slice", text(SLICE)),
        // Up once the program runs, so that one that cannot be run is told from one that ends; or
        // once it says that it is ready.
        (
            "Type",
            text(if launch.run.notify { "notify" } else { "exec" }),
        ),
        // A program that speaks to systemd is heard: status text, its main process, its watchdog.
        ("NotifyAccess", text("all")),
        ("ExecStart", Variant::from(vec![start])),
        ("EnvironmentFiles", Variant::from(vec![file])),
        (
            "WorkingDirectory",
            text(&launch.release_dir.display().to_string()),
        ),
        ("StandardOutput", text("journal")),
        ("StandardError", text("journal")),
        (
            "SyslogIdentifier",
            text(launch.instance.place.scope.as_str()),
        ),
        ("Restart", text("no")),
        ("KillMode", text("control-group")),
        ("TimeoutStopUSec", Variant::from(micros(grace))),
        // A user of its own, and with it: the host read-only, a /tmp of its own, no new privileges.
        ("DynamicUser", Variant::from(true)),
        ("ProtectHome", text("yes")),
        ("PrivateDevices", Variant::from(true)),
        ("ProtectControlGroups", Variant::from(true)),
        ("ProtectKernelModules", Variant::from(true)),
        ("ProtectKernelTunables", Variant::from(true)),
        ("RestrictRealtime", Variant::from(true)),
        // Of the agent's folder: its release to read, its own folder to write, nothing else.
        (
            "TemporaryFileSystem",
            Variant::from(vec![(agent_dir.display().to_string(), "ro".to_owned())]),
        ),
        (
            "BindReadOnlyPaths",
            Variant::from(bind(&launch.release_dir)),
        ),
        ("BindPaths", Variant::from(bind(dir))),
    ];
    all.extend(limits);
    Ok(all)
}

/// The folder is open to every user, because that of the unit is only known when it runs; the
/// folders around it are root's alone, so that nobody else gets to it.
fn prepare(launch: &Launch, dir: &Path, environment: &Path) -> io::Result<()> {
    files::make_folder(dir, 0o700)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777))?;
    let mut variables = launch.environment(dir);
    if !launch.run.env.contains_key("HOME") {
        // Not the agent's own, which the unit may not enter.
        variables.insert("HOME".to_owned(), dir.display().to_string());
    }
    let seen = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let secret = launch
        .secret_environment()
        .map(|(name, value)| (name, value.expose()));
    let lines: String = seen
        .chain(secret)
        .map(|(name, value)| format!("{name}={}\n", quoted(value)))
        .collect();
    let lines = zeroize::Zeroizing::new(lines);
    files::replace(environment, lines.as_bytes(), 0o600)?;
    for parameter in &launch.parameters {
        if let Some(file) = &parameter.file {
            open_to_unit(dir, &file.path)?;
        }
    }
    Ok(())
}

/// Lets the unit's user read a parameter's file, whatever its mode says: no other user gets to the
/// instance's folder. Links are not followed, and what is not the agent's own stays as it is: the
/// application of an earlier start may have left either there.
fn open_to_unit(dir: &Path, path: &str) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let root = rustix::fs::open(dir, flags | OFlags::DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let folders = path.match_indices('/').map(|(end, _)| (&path[..end], true));
    for (part, is_folder) in folders.chain([(path, false)]) {
        let opened = rustix::fs::openat2(&root, part, flags, Mode::empty(), resolve)?;
        let held = rustix::fs::fstat(&opened)?;
        let kind = FileType::from_raw_mode(held.st_mode);
        let mode = held.st_mode & 0o7777;
        if held.st_uid != own {
            continue;
        }
        if is_folder && kind == FileType::Directory {
            rustix::fs::fchmod(&opened, Mode::from_raw_mode(mode | 0o055))?;
        } else if kind == FileType::RegularFile && held.st_nlink == 1 {
            // As its owner may: read, and execute if it is a program.
            let as_owner = (mode >> 6) & 0o5;
            rustix::fs::fchmod(&opened, Mode::from_raw_mode(mode | as_owner))?;
        }
    }
    Ok(())
}

/// A value for an environment file (systemd.exec(5)): within double quotes these four are escaped.
fn quoted(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 2);
    text.push('"');
    for letter in value.chars() {
        if matches!(letter, '"' | '\\' | '`' | '$') {
            text.push('\\');
        }
        text.push(letter);
    }
    text.push('"');
    text
}

/// Whether the program itself was run, as its end tells: set-up ends with a status of its own.
pub fn was_run(state: &UnitState) -> bool {
    let failed_before = state.code == 1 && SETUP_FAILURES.contains(&state.status);
    state.last_pid > 0 && state.code > 0 && !failed_before
}

/// Why a unit did not come up, from how its set-up ended.
pub fn why_not_up(
    launch: &Launch,
    program: &Path,
    state: &UnitState,
    words: Option<String>,
) -> Refusal {
    if state.code == 1 && state.status == EXEC {
        let script = std::fs::read(program).is_ok_and(|bytes| bytes.starts_with(b"#!"));
        let error = if script {
            io::ErrorKind::NotFound.into()
        } else {
            io::Error::from(rustix::io::Errno::NOEXEC)
        };
        return Refusal::of(&error, program, launch);
    }
    let name = program.display();
    let mut message = if state.code == 1 && state.status == CHDIR {
        format!(
            "the release's folder {} cannot be entered",
            launch.release_dir.display()
        )
    } else if state.code == 1 && SETUP_FAILURES.contains(&state.status) {
        format!(
            "systemd could not set up the unit for {name} (step {})",
            state.status
        )
    } else {
        format!("the command {name} did not come up: it {}", describe(state))
    };
    if let Some(words) = words {
        message.push_str("; systemd says: ");
        message.push_str(&words);
    }
    Refusal {
        permanent: false,
        message,
    }
}

/// How a run ended, in plain words.
pub fn describe(state: &UnitState) -> String {
    let status = state.status;
    match (state.result.as_str(), state.code) {
        ("watchdog", _) => "was ended by systemd: it did not feed its watchdog in time".to_owned(),
        ("oom-kill", _) => out_of_memory(state.memory_max),
        ("timeout", _) => format!("did not end in time and was killed (signal {status})"),
        ("resources", _) => "could not be given what it needs by systemd".to_owned(),
        (_, 1) => format!("ended with exit status {status}"),
        (_, 2) => format!("was ended by signal {status}"),
        (_, 3) => format!("was ended by signal {status}, with a memory dump"),
        (word, _) => format!("ended ({word})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::conformance::launch;
    use crate::systemd::Active;
    use tidegate_shared::spec::RunSpec;

    fn state(code: i32, status: i32, result: &str) -> UnitState {
        UnitState {
            active: Active::Failed,
            description: String::new(),
            was_up: true,
            invocation: String::new(),
            started_at: 0,
            main_pid: 0,
            last_pid: 7,
            code,
            status,
            result: result.to_owned(),
            status_text: String::new(),
            memory_max: Some(64 << 20),
        }
    }

    #[test]
    fn ends_are_told_in_plain_words() {
        let cases = [
            (state(1, 3, "exit-code"), "ended with exit status 3"),
            (state(1, 0, "success"), "ended with exit status 0"),
            (state(2, 9, "signal"), "was ended by signal 9"),
            (state(2, 6, "watchdog"), "did not feed its watchdog"),
            (state(2, 9, "oom-kill"), "limits.memory is 64MiB"),
            (state(2, 9, "timeout"), "did not end in time"),
        ];
        for (state, words) in cases {
            let told = describe(&state);
            assert!(told.contains(words), "{told} lacks {words}");
        }
    }

    #[test]
    fn a_unit_that_never_came_up_says_which_step() {
        let dir = tempfile::tempdir().unwrap();
        let launch = launch(0, dir.path(), RunSpec::default());
        let why = why_not_up(
            &launch,
            Path::new("/bin/app"),
            &state(1, 226, "exit-code"),
            Some("Failed to set up mount namespacing".to_owned()),
        );
        assert!(!why.permanent);
        assert!(why.message.contains("step 226"), "{}", why.message);
        assert!(why.message.contains("mount namespacing"), "{}", why.message);
        assert!(!was_run(&state(1, 226, "exit-code")));
        assert!(was_run(&state(2, 9, "signal")));
        assert!(was_run(&state(1, 3, "exit-code")));
        assert!(!was_run(&state(0, 0, "resources")));
    }

    #[test]
    fn values_of_the_environment_file_are_quoted() {
        assert_eq!(quoted("a b"), "\"a b\"");
        assert_eq!(quoted("$HOME `x` \"q\" \\"), r#""\$HOME \`x\` \"q\" \\""#);
    }

    #[test]
    fn the_environment_is_for_root_alone_and_not_in_the_unit() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("instances/shop-eu-q69g5fav/0");
        let mut launch = launch(0, root.path(), RunSpec::default());
        launch.run.command = "sh".to_owned();
        launch.run.env.insert("KEY".into(), "hidden \"one\"".into());
        let program = program(&launch, &dir).map_err(|r| r.message).unwrap();
        assert!(program.is_absolute());
        let all = properties(&launch, &dir, root.path(), &program, Duration::from_secs(1));
        let all = all.map_err(|refusal| refusal.message).unwrap();
        assert!(!format!("{all:?}").contains("hidden"));
        let file = dir.with_extension("env");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("KEY=\"hidden \\\"one\\\"\"\n"), "{text}");
        let mode = std::fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
