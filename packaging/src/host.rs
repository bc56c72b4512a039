//! The steps on a host, each of which can be repeated: on the running one, or in a folder that will
//! become one. A dry run tells them and does none.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest as _, Sha256};

use crate::plan::{FileStep, Folder, Plan};
use crate::{Done, InstallError, Options};

/// The first line of a file that was written here, with the digest of what follows it.
const MARK: &str = "# Written by tidegate; changed files are kept. ";

/// Where packages put units.
const PACKAGED: [&str; 2] = ["/lib/systemd/system", "/usr/lib/systemd/system"];

pub(crate) struct Host {
    root: Option<PathBuf>,
    dry_run: bool,
    force: bool,
}

/// What stands at the place of a file.
enum Present {
    Nothing,
    Same,
    /// Ours, of another version.
    Older,
    /// Somebody's.
    Changed,
}

impl Host {
    pub fn new(options: &Options) -> Result<Self, InstallError> {
        let is_root = rustix::process::geteuid().is_root();
        if !is_root && !options.dry_run && options.root.is_none() {
            return Err(InstallError(
                "only root can install on this host: use sudo, or --dry-run to see what would be done, or --root DIR".to_owned(),
            ));
        }
        if let Some(root) = options.root.as_ref().filter(|root| !root.is_dir()) {
            let message = format!("--root: {} is not a folder", root.display());
            return Err(InstallError(message));
        }
        Ok(Self {
            root: options.root.clone(),
            dry_run: options.dry_run,
            force: options.force,
        })
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        match &self.root {
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_path_buf(),
        }
    }

    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.at(path).exists()
    }

    pub fn is_packaged(&self, unit: &str) -> bool {
        PACKAGED
            .iter()
            .any(|folder| self.exists(Path::new(folder).join(unit)))
    }

    fn present(path: &Path, step: &FileStep) -> Result<Present, InstallError> {
        let held = match fs::read_to_string(path) {
            Ok(held) => held,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Present::Nothing),
            Err(error) => return Err(failed(path, "cannot be read", &error)),
        };
        if held == marked(&step.text) {
            return Ok(Present::Same);
        }
        let ours = held
            .split_once('\n')
            .is_some_and(|(first, rest)| first.strip_prefix(MARK) == Some(digest(rest).as_str()));
        Ok(if ours {
            Present::Older
        } else {
            Present::Changed
        })
    }

    /// Writes a file; whether there is a new one.
    pub fn write(&self, step: &FileStep, done: &mut Done) -> Result<bool, InstallError> {
        let path = self.at(&step.path);
        let (verb, writes) = match Self::present(&path, step)? {
            Present::Same => ("is as it should be", false),
            Present::Nothing => ("is written", true),
            Present::Older => ("is replaced by this version's", true),
            Present::Changed if self.force && !step.once => ("was changed and is replaced", true),
            Present::Changed if step.once => ("is kept as it was changed", false),
            Present::Changed => ("is kept as it was changed; --force replaces it", false),
        };
        done.push(format!("{} {verb}", step.path.display()));
        if writes && !self.dry_run {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)
                    .map_err(|error| failed(folder, "cannot be made", &error))?;
            }
            replace(&path, marked(&step.text).as_bytes())
                .map_err(|error| failed(&path, "cannot be written", &error))?;
        }
        Ok(writes)
    }

    /// Removes a file that nobody changed.
    pub fn take_away(&self, step: &FileStep, done: &mut Done) -> Result<(), InstallError> {
        let path = self.at(&step.path);
        match Self::present(&path, step)? {
            Present::Nothing => return Ok(()),
            Present::Changed if !self.force => {
                done.push(format!(
                    "{} is kept as it was changed; --force removes it",
                    step.path.display()
                ));
                return Ok(());
            }
            Present::Changed | Present::Same | Present::Older => {}
        }
        done.push(format!("{} is removed", step.path.display()));
        if !self.dry_run {
            fs::remove_file(&path).map_err(|error| failed(&path, "cannot be removed", &error))?;
        }
        Ok(())
    }

    /// Number and group of a user of that host.
    fn user(&self, name: &str) -> Option<(u32, u32)> {
        let text = fs::read_to_string(self.at("/etc/passwd")).ok()?;
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then_some(())?;
            let uid = fields.nth(1)?.parse().ok()?;
            Some((uid, fields.next()?.parse().ok()?))
        })
    }

    pub fn make_users(&self, plan: &Plan, done: &mut Done) -> Result<(), InstallError> {
        let missing: Vec<_> = plan
            .users
            .iter()
            .filter(|user| self.user(user.name).is_none())
            .collect();
        for user in &missing {
            done.push(format!("the system user {} is made", user.name));
        }
        if missing.is_empty() || self.dry_run {
            return Ok(());
        }
        let mut sysusers = Command::new("systemd-sysusers");
        if let Some(root) = &self.root {
            sysusers.arg("--root").arg(root);
        }
        let file = plan.users_file().path;
        sysusers.arg(file.file_name().unwrap_or_default());
        // Where it is missing, or an old one that fails: the classic way.
        if run(&mut sysusers).is_err() {
            for user in &missing {
                let mut useradd = Command::new("useradd");
                if let Some(root) = &self.root {
                    useradd.arg("--prefix").arg(root);
                }
                useradd.args(["--system", "--user-group", "--no-create-home"]);
                useradd.args(["--shell", "/usr/sbin/nologin", "--home-dir", user.home]);
                run(useradd.arg(user.name))?;
            }
        }
        match missing.iter().find(|user| self.user(user.name).is_none()) {
            Some(user) => Err(InstallError(format!(
                "the system user {} was not made; make it with useradd --system --user-group {} and repeat",
                user.name, user.name
            ))),
            None => Ok(()),
        }
    }

    pub fn remove_users(&self, plan: &Plan, done: &mut Done) -> Result<(), InstallError> {
        for user in &plan.users {
            if self.user(user.name).is_none() {
                continue;
            }
            done.push(format!("the system user {} is removed", user.name));
            if !self.dry_run {
                let mut userdel = Command::new("userdel");
                if let Some(root) = &self.root {
                    userdel.arg("--prefix").arg(root);
                }
                run(userdel.arg(user.name))?;
            }
        }
        Ok(())
    }

    pub fn make_folder(&self, folder: &Folder, done: &mut Done) -> Result<(), InstallError> {
        let path = self.at(folder.path);
        let owner = match folder.owner {
            "root" => (0, 0),
            name => match self.user(name) {
                Some(owner) => owner,
                None if self.dry_run => (0, 0),
                None => return Err(InstallError(format!("there is no user {name}"))),
            },
        };
        let error = |error: &io::Error| failed(&path, "cannot be made ready", error);
        // Without root, files cannot be given away: whoever works in --root owns them all.
        let may_give = rustix::process::geteuid().is_root();
        let right = fs::symlink_metadata(&path).is_ok_and(|held| {
            held.is_dir()
                && (!may_give || (held.uid(), held.gid()) == owner)
                && held.permissions().mode() & 0o7777 == 0o700
        });
        if right {
            done.push(format!("{} is as it should be", folder.path));
            return Ok(());
        }
        done.push(format!(
            "{} is a folder of {} alone (0700)",
            folder.path, folder.owner
        ));
        if self.dry_run {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| error(&e))?;
        }
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(error(&e)),
            Ok(()) | Err(_) => {}
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(|e| error(&e))?;
        if may_give {
            std::os::unix::fs::lchown(&path, Some(owner.0), Some(owner.1))
                .map_err(|e| error(&e))?;
        }
        Ok(())
    }

    pub fn purge_folder(&self, folder: &Folder, done: &mut Done) -> Result<(), InstallError> {
        let path = self.at(folder.path);
        if !path.exists() {
            return Ok(());
        }
        done.push(format!("{} is removed with everything in it", folder.path));
        if !self.dry_run {
            fs::remove_dir_all(&path)
                .map_err(|error| failed(&path, "cannot be removed", &error))?;
        }
        Ok(())
    }

    /// Whether systemd runs the host that is changed.
    fn is_booted(&self) -> bool {
        self.root.is_none() && Path::new("/run/systemd/system").is_dir()
    }

    /// A command of systemctl to the running manager; nothing where there is none.
    pub fn manager(&self, arguments: &[&str], done: &mut Done) -> Result<(), InstallError> {
        if !self.is_booted() {
            return Ok(());
        }
        done.push(format!("systemctl {}", arguments.join(" ")));
        if self.dry_run {
            return Ok(());
        }
        run(Command::new("systemctl").args(arguments))
    }

    /// Has a unit started at boot. Without systemctl that is the link that it would make.
    pub fn enable(&self, unit: &str, done: &mut Done) -> Result<(), InstallError> {
        let link = Path::new("/etc/systemd/system/multi-user.target.wants").join(unit);
        let path = self.at(&link);
        if fs::symlink_metadata(&path).is_ok() {
            done.push(format!("{unit} starts at boot already"));
            return Ok(());
        }
        done.push(format!("{unit} will start at boot"));
        if self.dry_run {
            return Ok(());
        }
        if self.is_booted() {
            return run(Command::new("systemctl").args(["enable", unit]));
        }
        let target = PACKAGED
            .iter()
            .map(|folder| Path::new(folder).join(unit))
            .find(|file| self.exists(file))
            .unwrap_or_else(|| Path::new("/etc/systemd/system").join(unit));
        let error = |error: io::Error| failed(&path, "cannot be made", &error);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(error)?;
        }
        std::os::unix::fs::symlink(target, &path).map_err(error)
    }

    /// Stops a unit and has it no longer started at boot.
    pub fn disable(&self, unit: &str, done: &mut Done) -> Result<(), InstallError> {
        self.manager(&["disable", "--now", unit], done)?;
        let link = Path::new("/etc/systemd/system/multi-user.target.wants").join(unit);
        let path = self.at(&link);
        if self.dry_run || fs::symlink_metadata(&path).is_err() {
            return Ok(());
        }
        done.push(format!("{unit} no longer starts at boot"));
        fs::remove_file(&path).map_err(|error| failed(&path, "cannot be removed", &error))
    }
}

fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

/// A text with its mark.
fn marked(text: &str) -> String {
    format!("{MARK}{}\n{text}", digest(text))
}

fn failed(path: &Path, what: &str, error: &io::Error) -> InstallError {
    InstallError(format!("{} {what}: {error}", path.display()))
}

/// Writes beside, syncs and renames, so that nobody ever reads a part.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tidegate-new");
    let beside = path.with_file_name(name);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

/// Runs a program of the host; what it said is the error.
fn run(command: &mut Command) -> Result<(), InstallError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| InstallError(format!("{name} cannot be run: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().next_back().unwrap_or_default();
    Err(InstallError(format!(
        "{name} ended with {}: {last}",
        output.status
    )))
}
