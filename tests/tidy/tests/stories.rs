//! The table of `tests/scenarios/README.md`: which story or test holds which sentence of the design.
//! What it names is there, and says what the table claims of it.

use std::collections::BTreeMap;

use tidegate_tidy::{File, files, report, root};

const TABLE: &str = "tests/scenarios/README.md";

/// Rows of the tables: what is held, and by what.
fn rows(text: &str) -> Vec<(usize, &str, &str)> {
    let lines = text.lines().enumerate();
    lines
        .filter_map(|(number, line)| {
            let (what, by) = line
                .strip_prefix("| ")?
                .strip_suffix(" |")?
                .rsplit_once(" | ")?;
            let is_head = matches!(by, "held by" | "---");
            (!is_head).then_some((number + 1, what, by))
        })
        .collect()
}

fn names(by: &str) -> impl Iterator<Item = &str> {
    by.split('`').skip(1).step_by(2)
}

/// Stories by name.
fn stories() -> BTreeMap<String, File> {
    let found = files("tests/scenarios").into_iter();
    let stories = found.filter_map(|file| {
        let name = file
            .path
            .rsplit('/')
            .next()?
            .strip_suffix(".txt")?
            .to_owned();
        Some((name, file))
    });
    stories.collect()
}

/// What is wrong with a reference; none: it is there.
fn wrong(stories: &BTreeMap<String, File>, name: &str) -> Option<String> {
    if let Some((path, test)) = name.split_once("::") {
        let Ok(text) = std::fs::read_to_string(root().join(path)) else {
            return Some(format!("there is no file {path}"));
        };
        let is_there = text.contains(&format!("fn {test}("));
        return (!is_there).then(|| format!("{path} has no test {test}"));
    }
    let (story, step) = match name.split_once(": ") {
        Some((story, step)) => (story, Some(step)),
        None => (name, None),
    };
    let Some(found) = stories.get(story) else {
        return Some(format!("there is no story {story}"));
    };
    let Some((script, trace)) = found.text.split_once("\n----\n") else {
        return Some(format!("{story} has no trace"));
    };
    if trace.trim().is_empty() {
        return Some(format!("{story} has an empty trace"));
    }
    let is_said = step.is_none_or(|step| script.lines().any(|line| line == step));
    (!is_said).then(|| format!("{story} has no line `{}`", step.unwrap_or_default()))
}

#[test]
fn what_holds_a_sentence_is_there() {
    let text = std::fs::read_to_string(root().join(TABLE)).unwrap_or_default();
    let stories = stories();
    let rows = rows(&text);
    assert!(
        rows.len() > 100,
        "{TABLE} has lost its rows: {}",
        rows.len()
    );
    let mut findings = Vec::new();
    for (line, what, by) in rows {
        let mut any = false;
        for name in names(by) {
            any = true;
            findings.extend(wrong(&stories, name).map(|why| format!("{TABLE}:{line}: {why}")));
        }
        if !any {
            findings.push(format!("{TABLE}:{line}: nothing holds \"{what}\""));
        }
    }
    report(
        "Whoever changes what the design says looks here for what would fail: a name that leads \
         nowhere is a promise that nobody keeps.",
        &findings,
    );
}

#[test]
fn every_story_of_the_product_holds_a_sentence() {
    let text = std::fs::read_to_string(root().join(TABLE)).unwrap_or_default();
    let rows = rows(&text);
    let named: Vec<&str> = rows.iter().flat_map(|(.., by)| names(by)).collect();
    let is_named = |story: &str| {
        let mut named = named.iter();
        named.any(|name| name.split(": ").next() == Some(story))
    };
    let stories = stories();
    let own = stories
        .iter()
        .filter(|(_, file)| file.path.contains("/p-product/"));
    let findings: Vec<String> = own
        .filter(|(name, _)| !is_named(name))
        .map(|(name, _)| format!("{name} stands in no row of {TABLE}"))
        .collect();
    report(
        "A story of the product is there for a sentence; its row says for which.",
        &findings,
    );
}

#[test]
fn references_that_lead_nowhere_are_found() {
    let stories = stories();
    let story = "d08-candidates-stop";
    let test = "tests/tidy/tests/stories.rs::references_that_lead_nowhere_are_found";
    for good in [story, "d08-candidates-stop: rollback d2", test] {
        assert_eq!(wrong(&stories, good), None);
    }
    for bad in [
        "d08-candidates-start",
        "d08-candidates-stop: cancel d2",
        "tests/tidy/tests/stories.rs::nobody_wrote_this",
        "tests/tidy/tests/nowhere.rs::nobody_wrote_this",
    ] {
        assert!(wrong(&stories, bad).is_some(), "{bad}");
    }
}
