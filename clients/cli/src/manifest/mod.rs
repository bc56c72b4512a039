//! Manifests: files and folders of `kind`, `name`, `labels`, `spec` in YAML or JSON, read and
//! checked as a whole before anything is sent; JSON may be a list of them, as `export` writes it.
//!
//! Every mistake of every file is told at once, each with file, line, column and field.

mod documents;
mod locate;
pub mod meaning;
pub mod part;
pub mod rollout;
pub mod run;
pub mod value;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tidegate_shared::error::Reason;
use tidegate_shared::secret::Secret;
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{Kind, Manifest, ObjectSpec, validate_labels};

use crate::errors::{Failure, Result};
use crate::names;
use documents::Document;
use locate::Located;

/// Largest file that is read: 8 MiB.
const FILE_LIMIT: u64 = 8 << 20;
/// Most mistakes that are told at once.
const TOLD_LIMIT: usize = 20;

/// One object as a file describes it, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Its spec.
    pub spec: ObjectSpec,
    /// The value of a secret parameter, read from where the manifest says.
    pub secret: Option<Secret>,
    /// `file:line`.
    pub place: String,
    /// The file.
    path: PathBuf,
    /// The document, and how many lines of the file are before it.
    text: String,
    before: usize,
}

impl Wanted {
    /// An object as the cluster has it.
    pub fn of_cluster(kind: Kind, name: String, labels: Labels, spec: ObjectSpec) -> Self {
        Self {
            kind,
            name,
            labels,
            spec,
            secret: None,
            place: "the cluster".to_owned(),
            path: PathBuf::new(),
            text: String::new(),
            before: 0,
        }
    }

    /// Where a field of its spec stands, as `file:line:column: spec.field`; where the field is
    /// absent, its nearest parent's place.
    pub fn locate(&self, field: &str) -> Option<String> {
        let field = format!("spec.{field}");
        let (line, column) = locate::tree(&self.text)?.position_of(&field)?;
        let line = line + self.before as u64;
        Some(format!("{}:{line}:{column}: {field}", self.path.display()))
    }
}

/// Reads everything that files and folders describe, in the order in which kinds refer to each
/// other. `-` is standard input.
///
/// # Errors
/// All mistakes of all files in one failure.
pub fn load(paths: &[PathBuf]) -> Result<Vec<Wanted>> {
    let mut wanted: Vec<Wanted> = Vec::new();
    let mut mistakes: Vec<String> = Vec::new();
    for path in files_of(paths)? {
        let text = read(&path)?;
        for document in documents::split(&text) {
            match parse(&path, &document) {
                Ok(Some(object)) => wanted.push(object),
                Ok(None) => {}
                Err(found) => mistakes.extend(found),
            }
        }
    }
    mistakes.extend(twins(&wanted));
    if !mistakes.is_empty() {
        return Err(told(mistakes));
    }
    if wanted.is_empty() {
        let named: Vec<_> = paths
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        return Err(Failure::new(
            Reason::MalformedFile,
            format!("{} describes nothing", named.join(", ")),
        )
        .hint(
            "a manifest has kind, name and spec; folders are searched for .yaml, .yml and .json",
        ));
    }
    wanted.sort_by_key(|object| object.kind);
    Ok(wanted)
}

fn told(mut mistakes: Vec<String>) -> Failure {
    let count = mistakes.len();
    let message = if count == 1 {
        "the manifest has a mistake; nothing was changed".to_owned()
    } else {
        format!("the manifests have {count} mistakes; nothing was changed")
    };
    if count > TOLD_LIMIT {
        mistakes.truncate(TOLD_LIMIT);
        mistakes.push(format!("… and {} more", count - TOLD_LIMIT));
    }
    let failure = Failure::new(Reason::MalformedFile, message);
    mistakes.into_iter().fold(failure, Failure::at)
}

/// Two documents that describe the same object.
fn twins(wanted: &[Wanted]) -> Vec<String> {
    let mut first: BTreeMap<(Kind, &str), &Wanted> = BTreeMap::new();
    let mut found = Vec::new();
    for object in wanted {
        match first.entry((object.kind, object.name.as_str())) {
            Entry::Vacant(free) => {
                free.insert(object);
            }
            Entry::Occupied(taken) => found.push(format!(
                "{}:1: name: {} \"{}\" is described already at {}",
                object.place,
                object.kind,
                object.name,
                taken.get().place
            )),
        }
    }
    found
}

/// The files that paths stand for; folders are searched, hidden names left out.
fn files_of(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" || !path.is_dir() {
            files.push(path.clone());
        } else {
            search(path, &mut files, 0)?;
        }
    }
    Ok(files)
}

fn search(folder: &Path, files: &mut Vec<PathBuf>, depth: usize) -> Result<()> {
    let wrong =
        |error: &std::io::Error| Failure::file(Reason::MalformedFile, folder, "read", error);
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(|error| wrong(&error))?
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(|error| wrong(&error))?
        .into_iter()
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    for path in entries {
        let hidden = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let fits = path
            .extension()
            .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|e| extension == *e));
        if hidden {
            continue;
        }
        if path.is_dir() {
            if depth < 16 {
                search(&path, files, depth + 1)?;
            }
        } else if fits {
            files.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    use std::io::Read as _;
    let wrong = |error: &std::io::Error| Failure::file(Reason::MalformedFile, path, "read", error);
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        std::io::stdin()
            .lock()
            .take(FILE_LIMIT + 1)
            .read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(FILE_LIMIT + 1).read_to_end(&mut bytes))
    }
    .map_err(|error| wrong(&error))?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(Failure::new(
            Reason::MalformedFile,
            format!(
                "{} is larger than 8 MiB, which no manifest is",
                path.display()
            ),
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            + 1;
        Failure::new(
            Reason::MalformedFile,
            format!("{} is no text", path.display()),
        )
        .at(format!("{}:{line}: want UTF-8", path.display()))
    })
}

/// What every manifest starts with; the rest is read once the kind is known.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    kind: Option<serde_saphyr::Spanned<String>>,
}

/// One document: nothing, an object, or what is wrong with it.
fn parse(path: &Path, document: &Document) -> std::result::Result<Option<Wanted>, Vec<String>> {
    if document.is_empty() {
        return Ok(None);
    }
    let place = Place {
        path,
        document,
        tree: locate::tree(&document.text),
    };
    refuse_list(&place)?;
    let head: Head =
        serde_saphyr::from_str(&document.text).map_err(|error| vec![place.of(&error)])?;
    let Some(kind) = head.kind else {
        return Err(vec![place.at(
            "kind",
            "is missing; want one of application, environment, strategy, scope, policy, parameter, team, role_binding",
        )]);
    };
    let kind: Kind = kind.value.parse().map_err(|message| {
        let words = Kind::ALL.iter().map(|kind| kind.as_str());
        let near = names::nearest(&kind.value, words)
            .map(|near| format!("; did you mean {near}?"))
            .unwrap_or_default();
        vec![place.at("kind", &format!("{message}{near}"))]
    })?;
    let (name, labels, mut spec) = match kind {
        Kind::Application => typed(&place, ObjectSpec::Application),
        Kind::Environment => typed(&place, ObjectSpec::Environment),
        Kind::Strategy => typed(&place, ObjectSpec::Strategy),
        Kind::Scope => typed(&place, ObjectSpec::Scope),
        Kind::Policy => typed(&place, ObjectSpec::Policy),
        Kind::Parameter => typed(&place, ObjectSpec::Parameter),
        Kind::Team => typed(&place, ObjectSpec::Team),
        Kind::RoleBinding => typed(&place, ObjectSpec::RoleBinding),
    }?;
    let mut errors = validate_labels(&labels);
    errors.nest("spec", spec.validate());
    if !errors.0.is_empty() {
        let told = errors
            .0
            .iter()
            .map(|error| place.at(&error.field, &error.message));
        return Err(told.collect());
    }
    let secret = match &mut spec {
        ObjectSpec::Parameter(parameter) => value::take(parameter, path)
            .map_err(|message| vec![place.at("spec.value_from", &message)])?,
        ObjectSpec::Application(_)
        | ObjectSpec::Environment(_)
        | ObjectSpec::Strategy(_)
        | ObjectSpec::Scope(_)
        | ObjectSpec::Policy(_)
        | ObjectSpec::Team(_)
        | ObjectSpec::RoleBinding(_) => None,
    };
    Ok(Some(Wanted {
        kind,
        name,
        labels,
        spec,
        secret,
        place: format!("{}:{}", path.display(), document.first_line),
        path: path.to_owned(),
        text: document.text.clone(),
        before: document.before,
    }))
}

/// A list is read in JSON alone, where each of its elements is a document of its own: one that is whole
/// here is something else, or within another list.
fn refuse_list(place: &Place<'_>) -> std::result::Result<(), Vec<String>> {
    let text = place.document.text.as_str();
    let (position, message) = match &place.tree {
        Some(list) if list.is_list() => {
            let message = "is a list, which is read in JSON alone: want one object, or several with --- between them";
            (list.position_of(""), message.to_owned())
        }
        None if text.trim_start().starts_with('[') => {
            match serde_json::from_str::<serde::de::IgnoredAny>(text) {
                Ok(_) => return Ok(()),
                Err(error) => {
                    let position = (error.line() as u64, error.column().max(1) as u64);
                    let message = error.to_string();
                    let message = message.split(" at line ").next().unwrap_or_default();
                    (Some(position), format!("is no JSON: {message}"))
                }
            }
        }
        Some(_) | None => return Ok(()),
    };
    let (line, column) = place.in_file(position);
    let name = place.path.display();
    Err(vec![format!("{name}:{line}:{column}: {message}")])
}

fn typed<S: DeserializeOwned>(
    place: &Place<'_>,
    wrap: fn(S) -> ObjectSpec,
) -> std::result::Result<(String, Labels, ObjectSpec), Vec<String>> {
    let manifest: Manifest<S> =
        serde_saphyr::from_str(&place.document.text).map_err(|error| vec![place.of(&error)])?;
    Ok((
        manifest.name.to_string(),
        manifest.labels,
        wrap(manifest.spec),
    ))
}

/// Where the mistakes of one document are.
struct Place<'a> {
    path: &'a Path,
    document: &'a Document,
    tree: Option<Located>,
}

impl Place<'_> {
    /// A mistake that the parser found.
    fn of(&self, error: &serde_saphyr::Error) -> String {
        let message = locate::message(error);
        let position = error
            .location()
            .map(|location| (location.line(), location.column()));
        let field = self.tree.as_ref().zip(position);
        let field = field.and_then(|(tree, (line, column))| tree.field_at(line, column));
        let (line, column) = self.in_file(position);
        match field.filter(|field| !field.is_empty()) {
            Some(field) => format!(
                "{}:{line}:{column}: {field}: {message}",
                self.path.display()
            ),
            None => format!("{}:{line}:{column}: {message}", self.path.display()),
        }
    }

    /// Line and column in the file; of the document's first line where none is known.
    fn in_file(&self, position: Option<(u64, u64)>) -> (u64, u64) {
        match position {
            Some((line, column)) => (line + self.document.before as u64, column),
            None => (self.document.first_line as u64, 1),
        }
    }

    /// A mistake in a field; where the field is absent, its nearest parent is named.
    fn at(&self, field: &str, message: &str) -> String {
        let position = self.tree.as_ref();
        let position = position.and_then(|tree| tree.position_of(field));
        let (line, column) = self.in_file(position);
        format!(
            "{}:{line}:{column}: {field}: {message}",
            self.path.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<Vec<Wanted>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.yaml");
        std::fs::write(&path, text).unwrap();
        load(&[path])
    }

    fn mistakes(text: &str) -> String {
        let rendered = load_text(text).unwrap_err().render(false);
        let lines = rendered
            .lines()
            .filter_map(|line| line.split_once("/m.yaml:"));
        lines.map(|(_, rest)| rest).collect::<Vec<_>>().join("\n")
    }

    const SCOPE: &str = "kind: scope\nname: web-prod\nspec:\n  application: web\n  environment: production\n  port: 8080\n";

    #[test]
    fn documents_come_in_the_order_of_reference() {
        let text =
            format!("# places\n{SCOPE}---\nkind: application\nname: web\nspec: {{}}\n--- \n\n");
        let wanted = load_text(&text).unwrap();
        let kinds: Vec<_> = wanted.iter().map(|object| object.kind).collect();
        assert_eq!(kinds, [Kind::Application, Kind::Scope]);
        assert!(wanted[0].place.ends_with("m.yaml:9"), "{}", wanted[0].place);
    }

    #[test]
    fn json_is_read_too() {
        let wanted = load_text(r#"{"kind":"environment","name":"dev","spec":{"tier":1}}"#).unwrap();
        assert_eq!(wanted[0].name, "dev");
    }

    #[test]
    fn json_may_be_a_list_or_a_row_and_its_mistakes_are_located() {
        let app = r#"{"kind":"application","name":"web","spec":{}}"#;
        let dev = r#"{"kind":"environment","name":"dev","spec":{"tier":1}}"#;
        for text in [
            format!("[{app},\n {dev}]"),
            format!("{app}{dev}"),
            format!("[{app}]\n---\n[{dev}]\n"),
            format!("[\n{dev}\n]\n{app}\n"),
        ] {
            let wanted = load_text(&text).unwrap();
            let names: Vec<_> = wanted.iter().map(|object| object.name.as_str()).collect();
            assert_eq!(names, ["web", "dev"], "{text}");
        }
        let wrong = dev.replace("tier", "teir");
        let text = mistakes(&format!("[{app},\n\n  {wrong}]"));
        assert!(text.starts_with("3:46: spec.teir: unknown field"), "{text}");
        let text = mistakes(&format!("{app}\n{wrong}\n[[{app}]]"));
        assert!(text.starts_with("2:44: spec.teir: "), "{text}");
        assert!(text.contains("3:2: is a list"), "{text}");
        let text = mistakes(&format!("[{app},\n{dev}\n"));
        assert_eq!(text, "3:1: is no JSON: EOF while parsing a list");
        assert!(mistakes("- kind: application\n").contains("1:1: is a list"));
    }

    #[test]
    fn unknown_fields_are_located_and_named() {
        let text = mistakes(&SCOPE.replace("port:", "prot:"));
        assert!(text.starts_with("6:3: spec.prot: "), "{text}");
        assert!(text.contains("unknown field"), "{text}");
    }

    #[test]
    fn wrong_values_are_located() {
        let text = mistakes(&SCOPE.replace("8080", "70000"));
        assert!(text.starts_with("6:9: spec.port: "), "{text}");
        assert!(text.contains("want 1 to 65535"), "{text}");
    }

    #[test]
    fn failed_checks_are_located_in_later_documents() {
        let text = format!(
            "{SCOPE}---\nkind: strategy\nname: slow\nspec:\n  traffic:\n    steps:\n      - percent: 50\n      - percent: 20\n  keep_releases: 0\n"
        );
        assert_eq!(
            mistakes(&text),
            "14:18: spec.traffic.steps[1].percent: must be greater than the step before\n15:18: spec.keep_releases: want 1 to 100"
        );
    }

    #[test]
    fn missing_parts_and_syntax_are_located() {
        assert!(mistakes("name: x\nspec: {}\n").starts_with("1:1: kind: is missing"));
        let text = mistakes("kind: scop\nname: x\nspec: {}\n");
        assert!(text.starts_with("1:7: kind: "), "{text}");
        assert!(text.contains("did you mean scope?"), "{text}");
        let text = mistakes(&SCOPE.replace("  port: 8080\n", ""));
        assert!(text.contains("port"), "{text}");
        let text = mistakes("kind: scope\nname: [\n");
        assert!(text.starts_with("2:") || text.starts_with("3:"), "{text}");
        let text = mistakes("kind: application\nname: Web\nspec: {}\n");
        assert!(
            text.starts_with("2:7: name: \"Web\" is not a name"),
            "{text}"
        );
    }

    #[test]
    fn the_same_object_twice_is_a_mistake() {
        let text = mistakes(&format!("{SCOPE}---\n{SCOPE}"));
        assert!(
            text.starts_with("8:1: name: scope \"web-prod\" is described already at"),
            "{text}"
        );
    }

    #[test]
    fn nothing_at_all_is_a_mistake() {
        assert!(
            load_text("# only a remark\n")
                .unwrap_err()
                .message()
                .ends_with("describes nothing")
        );
        let missing = load(&[PathBuf::from("/nonexistent/x.yaml")]).unwrap_err();
        assert_eq!(missing.code(), "TG-1002");
    }
}
