//! Writes the parameters of an instance that are files, before each start.
//!
//! They lie in the instance's own folder. Folders are opened one part at a time and links are never
//! followed, so that nothing an application leaves there can lead a write elsewhere. Each file is
//! written beside its name and renamed. Which files are ours is kept beside the instance's folder:
//! whatever else lies in the way is a collision, and the parameter says what happens then. Called by
//! [`Prepared`](crate::executor::prepared::Prepared) on a thread that may block.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use tidegate_shared::secret::Secret;
use tidegate_shared::spec::{FileSpec, OnCollision};

use crate::executor::Launch;
use crate::executor::process::Refusal;
use crate::files;

/// Writes every file of an instance.
///
/// # Errors
/// Which parameter, which file and why; nothing after it is written.
pub fn write(launch: &Launch, instance_dir: &Path) -> Result<(), Refusal> {
    let record = Record::of(instance_dir);
    let mut ours = record.read();
    for parameter in &launch.parameters {
        let (Some(file), Some(value)) = (&parameter.file, &parameter.value) else {
            continue;
        };
        let value = if parameter.secret {
            value.clone()
        } else {
            Secret::new(launch.substitute(value.expose(), instance_dir))
        };
        put(instance_dir, file, &value, &record, &mut ours).map_err(|problem| Refusal {
            permanent: problem.permanent,
            message: format!(
                "the parameter {} cannot be the file {}: {}",
                parameter.variable,
                instance_dir.join(&file.path).display(),
                problem.message
            ),
        })?;
    }
    Ok(())
}

/// The list of the files that this agent wrote for an instance.
struct Record(PathBuf);

impl Record {
    fn of(instance_dir: &Path) -> Self {
        let mut name = instance_dir.file_name().unwrap_or_default().to_owned();
        name.push(".files");
        Self(instance_dir.with_file_name(name))
    }

    fn read(&self) -> BTreeSet<String> {
        let bytes = std::fs::read(&self.0).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    fn write(&self, ours: &BTreeSet<String>) -> io::Result<()> {
        let bytes = serde_json::to_vec(ours).map_err(io::Error::other)?;
        files::replace(&self.0, &bytes, 0o600)
    }
}

fn local(error: impl Into<io::Error>) -> Refusal {
    Refusal {
        permanent: false,
        message: error.into().to_string(),
    }
}

fn hopeless(message: impl Into<String>) -> Refusal {
    Refusal {
        permanent: true,
        message: message.into(),
    }
}

fn put(
    instance_dir: &Path,
    file: &FileSpec,
    value: &Secret,
    record: &Record,
    ours: &mut BTreeSet<String>,
) -> Result<(), Refusal> {
    // Checked when it was written and when it arrived; it decides where a privileged process
    // writes, so it is checked here too.
    if let Some(error) = file.validate(false).0.into_iter().next() {
        return Err(hopeless(error.message));
    }
    let owner = file.owner.as_deref().map(owner).transpose()?;
    files::make_folder(instance_dir, 0o700).map_err(local)?;
    if owner.is_some() {
        open_way(instance_dir).map_err(local)?;
    }
    let (folders, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
    let folder = folder(instance_dir, folders, owner.is_some())?;
    match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => {}
        Err(error) => return Err(local(error)),
        Ok(found) => {
            let kind = FileType::from_raw_mode(found.st_mode);
            if kind == FileType::Directory {
                return Err(hopeless("a folder lies there"));
            }
            let is_ours = ours.contains(&file.path) && kind == FileType::RegularFile;
            match (is_ours, file.on_collision) {
                (true, _) | (false, OnCollision::Overwrite) => {}
                (false, OnCollision::Retain) => return Ok(()),
                (false, OnCollision::Refuse) => {
                    return Err(hopeless(
                        "something that Tidegate did not write lies there; remove it, or say on_collision: overwrite or retain",
                    ));
                }
            }
        }
    }
    if ours.insert(file.path.clone()) {
        record.write(ours).map_err(local)?;
    }
    replace(&folder, name, file, value, owner)
}

/// Opens the folder of a file part by part, without following links; makes what is missing.
fn folder(instance_dir: &Path, folders: &str, open: bool) -> Result<OwnedFd, Refusal> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let mut folder = rustix::fs::open(instance_dir, flags, Mode::empty()).map_err(local)?;
    let mode = Mode::from_raw_mode(if open { 0o711 } else { 0o700 });
    for part in folders.split('/').filter(|part| !part.is_empty()) {
        match rustix::fs::mkdirat(&folder, part, mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(local(error)),
        }
        folder = match rustix::fs::openat(&folder, part, flags, Mode::empty()) {
            Ok(inner) => inner,
            Err(Errno::NOTDIR | Errno::LOOP | Errno::MLINK) => {
                return Err(hopeless(format!("\"{part}\" on its way is no folder")));
            }
            Err(error) => return Err(local(error)),
        };
    }
    Ok(folder)
}

fn replace(
    folder: &OwnedFd,
    name: &str,
    file: &FileSpec,
    value: &Secret,
    owner: Option<(Uid, Option<Gid>)>,
) -> Result<(), Refusal> {
    let beside = format!(".{name}.tidegate-tmp");
    match rustix::fs::unlinkat(folder, &beside, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(local(error)),
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd =
        rustix::fs::openat(folder, &beside, flags, Mode::from_raw_mode(0o600)).map_err(local)?;
    let mut written = File::from(fd);
    written
        .write_all(value.expose().as_bytes())
        .map_err(local)?;
    if let Some((user, group)) = owner {
        rustix::fs::fchown(&written, Some(user), group).map_err(|error| match error {
            Errno::PERM => hopeless(
                "the agent may not give files to another user; run it as root, or leave owner out",
            ),
            other => local(other),
        })?;
    }
    let mode = std::fs::Permissions::from_mode(file.mode.bits());
    written.set_permissions(mode).map_err(local)?;
    written.sync_all().map_err(local)?;
    rustix::fs::renameat(folder, &beside, folder, name).map_err(local)?;
    rustix::fs::fsync(folder.as_fd()).map_err(local)
}

/// Lets another user reach a file whose name it knows: the folders above it may be passed, not
/// listed.
fn open_way(instance_dir: &Path) -> io::Result<()> {
    for folder in instance_dir.ancestors().take(3) {
        let mode = std::fs::metadata(folder)?.permissions().mode();
        if mode & 0o011 != 0o011 {
            let passable = std::fs::Permissions::from_mode((mode & 0o7777) | 0o011);
            std::fs::set_permissions(folder, passable)?;
        }
    }
    Ok(())
}

/// User and group of `user` or `user:group`.
fn owner(text: &str) -> Result<(Uid, Option<Gid>), Refusal> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let unknown = |what: &str, name: &str| hopeless(format!("this host has no {what} \"{name}\""));
    let uid = id_of("/etc/passwd", user).ok_or_else(|| unknown("user", user))?;
    let gid = match group {
        Some(group) => {
            let gid = id_of("/etc/group", group).ok_or_else(|| unknown("group", group))?;
            Some(Gid::from_raw(gid))
        }
        None => None,
    };
    Ok((Uid::from_raw(uid), gid))
}

/// The number of a name in a table of `name:password:number:…`; a number stands for itself.
fn id_of(table: &str, name: &str) -> Option<u32> {
    if let Ok(number) = name.parse() {
        return (number != u32::MAX).then_some(number);
    }
    let text = std::fs::read_to_string(table).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::Parameter;
    use crate::executor::conformance::launch;
    use std::os::unix::fs::{MetadataExt as _, symlink};
    use tidegate_shared::spec::RunSpec;

    fn file(json: &str) -> FileSpec {
        serde_json::from_str(json).unwrap()
    }

    fn with(file: FileSpec, value: &str, secret: bool) -> Launch {
        let mut launch = launch(0, Path::new("/"), RunSpec::default());
        launch.parameters.push(Parameter {
            variable: "CONF".to_owned(),
            value: Some(Secret::new(value.to_owned())),
            secret,
            file: Some(file),
        });
        launch
    }

    fn dir(folder: &tempfile::TempDir) -> PathBuf {
        folder.path().join("place").join("0")
    }

    #[test]
    fn a_file_is_there_with_its_mode_and_changes_with_the_value() {
        let folder = tempfile::tempdir().unwrap();
        let dir = dir(&folder);
        let spec = || file(r#"{"path": "conf/deep/app.toml", "mode": "0440"}"#);
        for (value, expected) in [("port = ${PORT}", "port = 20000"), ("x", "x")] {
            write(&with(spec(), value, false), &dir).unwrap();
            let path = dir.join("conf/deep/app.toml");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o440);
        }
        write(&with(spec(), "${PORT}", true), &dir).unwrap();
        let verbatim = std::fs::read_to_string(dir.join("conf/deep/app.toml")).unwrap();
        assert_eq!(verbatim, "${PORT}", "a secret is written as it is");
        let names = std::fs::read_dir(dir.join("conf/deep")).unwrap().count();
        assert_eq!(names, 1, "nothing is left beside it");
    }

    #[test]
    fn what_lies_there_already_is_refused_overwritten_or_retained() {
        for (word, expected) in [
            ("refuse", None),
            ("overwrite", Some("new")),
            ("retain", Some("old")),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let dir = dir(&folder);
            files::make_folder(&dir, 0o700).unwrap();
            std::fs::write(dir.join("app.toml"), "old").unwrap();
            let spec = file(&format!(
                r#"{{"path": "app.toml", "on_collision": "{word}"}}"#
            ));
            let written = write(&with(spec, "new", false), &dir);
            let content = std::fs::read_to_string(dir.join("app.toml")).unwrap();
            match expected {
                Some(expected) => {
                    written.unwrap();
                    assert_eq!(content, expected, "{word}");
                }
                None => {
                    let refusal = written.unwrap_err();
                    assert!(refusal.permanent);
                    for word in ["CONF", "app.toml", "on_collision"] {
                        assert!(refusal.message.contains(word), "{}", refusal.message);
                    }
                    assert_eq!(content, "old");
                }
            }
        }
    }

    #[test]
    fn links_and_folders_in_the_way_lead_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        let dir = dir(&folder);
        files::make_folder(&dir, 0o700).unwrap();
        symlink(&outside, dir.join("conf")).unwrap();
        symlink(outside.join("target"), dir.join("direct")).unwrap();
        std::fs::create_dir(dir.join("taken")).unwrap();
        std::fs::write(dir.join("plain"), "").unwrap();
        for path in [
            "conf/app.toml",
            "direct",
            "taken",
            "plain/app.toml",
            "../outside/x",
            "/tmp/x",
        ] {
            let spec = file(&format!(r#"{{"path": "{path}"}}"#));
            let refusal = write(&with(spec, "new", true), &dir).unwrap_err();
            assert!(refusal.permanent, "{path}: {}", refusal.message);
        }
        let spec = file(r#"{"path": "direct", "on_collision": "overwrite"}"#);
        write(&with(spec, "new", true), &dir).unwrap();
        let written = std::fs::symlink_metadata(dir.join("direct")).unwrap();
        assert!(written.is_file(), "the link is replaced, not followed");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn owners_are_looked_up() {
        let (root, group) = owner("root:0").unwrap();
        assert_eq!((root.as_raw(), group.unwrap().as_raw()), (0, 0));
        assert!(
            owner("nobody-of-this-name")
                .unwrap_err()
                .message
                .contains("no user")
        );
        assert!(owner("root:no-such-group").unwrap_err().permanent);
    }
}
