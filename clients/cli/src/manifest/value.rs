//! Values that do not stand in a manifest: read from the environment, a file, standard input or the
//! keyboard. They are never told in an error.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::Path;

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use tidegate_shared::error::Reason;
use tidegate_shared::secret::Secret;
use tidegate_shared::spec::{MAX_VALUE_BYTES, ParameterKind, ParameterSpec, check_value};
use zeroize::Zeroizing;

use crate::errors::{Failure, Result};

/// Reads what `value_from` names. A plain value goes into the spec; a secret one is returned and
/// stands nowhere else.
///
/// # Errors
/// It is not there, or is no acceptable value.
pub fn take(
    spec: &mut ParameterSpec,
    manifest: &Path,
) -> std::result::Result<Option<Secret>, String> {
    let Some(from) = spec.value_from.take() else {
        return Ok(None);
    };
    let value = match (&from.env, &from.file) {
        (Some(name), _) => of_env(name)?,
        (None, Some(file)) => {
            let beside = manifest.parent().unwrap_or(Path::new(""));
            of_file(&beside.join(file))?
        }
        (None, None) => return Err("want either env or file".to_owned()),
    };
    check_value(&spec.variable, value.expose())?;
    match spec.kind {
        ParameterKind::Secret => Ok(Some(value)),
        ParameterKind::Plain => {
            spec.value = Some(value.expose().to_owned());
            Ok(None)
        }
    }
}

/// The value of an environment variable.
///
/// # Errors
/// It is not set, or no text.
pub fn of_env(name: &str) -> std::result::Result<Secret, String> {
    match std::env::var(name) {
        Ok(value) => Ok(Secret::new(value)),
        Err(std::env::VarError::NotPresent) => {
            Err(format!("the environment variable {name} is not set"))
        }
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(format!("the environment variable {name} is no text"))
        }
    }
}

/// The content of a file without one line end at its end; - is standard input.
///
/// # Errors
/// It cannot be read, is too long or no text.
pub fn of_file(path: &Path) -> std::result::Result<Secret, String> {
    let name = path.display();
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_VALUE_BYTES + 3));
    let limit = MAX_VALUE_BYTES as u64 + 3;
    let read = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    read.map_err(|error| format!("{name} cannot be read: {error}"))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("{name} is no text in UTF-8"))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.len() > MAX_VALUE_BYTES {
        return Err(format!("{name} is longer than the 32 KiB of a value"));
    }
    Ok(Secret::new(text.to_owned()))
}

/// Asks at the keyboard without showing what is typed, or reads standard input if that is no
/// terminal.
///
/// # Errors
/// Nothing was given.
pub fn asked(what: &str) -> Result<Secret> {
    let stdin = std::io::stdin();
    let value = if stdin.is_terminal() {
        typed(what).map_err(|error| {
            Failure::new(
                Reason::InvalidRequest,
                format!("the value was not read: {error}"),
            )
        })?
    } else {
        of_file(Path::new("-")).map_err(|message| Failure::new(Reason::InvalidField, message))?
    };
    if value.expose().is_empty() {
        return Err(Failure::new(
            Reason::InvalidField,
            format!("no value for {what} came"),
        )
        .hint("type it, pipe it into standard input, or say --value-file FILE or --value-env NAME"));
    }
    Ok(value)
}

fn typed(what: &str) -> std::io::Result<Secret> {
    let stdin = std::io::stdin();
    let mut stderr = std::io::stderr();
    write!(stderr, "Value of {what} (not shown): ")?;
    stderr.flush()?;
    let shown = tcgetattr(&stdin)?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &hidden)?;
    let mut line = Zeroizing::new(String::new());
    let read = stdin.read_line(&mut line);
    tcsetattr(&stdin, OptionalActions::Flush, &shown)?;
    writeln!(stderr)?;
    read?;
    Ok(Secret::new(line.trim_end_matches(['\n', '\r']).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: &str, from: &str) -> ParameterSpec {
        let json = format!(
            r#"{{"variable": "A", "kind": "{kind}", "value_from": {from}, "target": {{"scope": "s"}}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn a_value_comes_from_the_file_beside_the_manifest_and_a_secret_stays_out_of_the_spec() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = folder.path().join("m.yaml");
        std::fs::write(folder.path().join("key.pem"), "one\ntwo\n").unwrap();
        let mut secret = spec("secret", r#"{"file": "key.pem"}"#);
        let value = take(&mut secret, &manifest).unwrap().unwrap();
        assert_eq!(value.expose(), "one\ntwo");
        assert_eq!((secret.value, secret.value_from), (None, None));
        let mut plain = spec("plain", r#"{"file": "key.pem"}"#);
        assert_eq!(take(&mut plain, &manifest), Ok(None));
        assert_eq!(plain.value.as_deref(), Some("one\ntwo"));
    }

    #[test]
    fn what_is_missing_too_long_or_no_text_is_named_without_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = folder.path().join("m.yaml");
        std::fs::write(folder.path().join("long"), "x".repeat(40_000)).unwrap();
        std::fs::write(folder.path().join("odd"), [0xff, 0xfe]).unwrap();
        std::fs::write(folder.path().join("nul"), "hush\0hush").unwrap();
        let cases = [
            (r#"{"file": "none"}"#, "cannot be read"),
            (r#"{"file": "long"}"#, "32 KiB"),
            (r#"{"file": "odd"}"#, "no text"),
            (r#"{"file": "nul"}"#, "without NUL"),
            (r#"{"env": "TIDEGATE_TEST_IS_NOT_SET"}"#, "is not set"),
        ];
        for (from, words) in cases {
            let told = take(&mut spec("secret", from), &manifest).unwrap_err();
            assert!(told.contains(words), "{told}");
            assert!(!told.contains("hush") && !told.contains("xxx"), "{told}");
        }
    }
}
