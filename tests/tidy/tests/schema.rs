//! The JSON Schema of manifests: the file in `packaging/schema` is what the types say, every manifest
//! of the tree fits it, and what `apply` refuses for its shape does not.
//!
//! `UPDATE=1 cargo test -p tidegate-tidy --test schema` writes the file.

use serde_json::{Value, json};
use tidegate_shared::spec::{Kind, ObjectSpec, schema};
use tidegate_tidy::{files, json_schema, report, root};

const PATH: &str = "packaging/schema/manifest.schema.json";

fn text() -> String {
    // A value is always JSON.
    serde_json::to_string_pretty(&schema::manifest()).unwrap_or_default() + "\n"
}

/// Everything in which a manifest does not fit.
fn misfits(manifest: &Value) -> Vec<String> {
    json_schema::misfits(&schema::manifest(), manifest)
}

#[test]
fn the_file_is_what_the_types_say() {
    let path = root().join(PATH);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, text()).expect("the schema can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == text(),
        "{PATH} is not what the types in shared/src/spec say: \
         UPDATE=1 cargo test -p tidegate-tidy --test schema writes it"
    );
}

/// Manifests in the files of the tree: whole YAML files under `packaging/config` and the command
/// line's own, and what stands between ```yaml fences of documents. Each with where it stands.
fn manifests() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for folder in ["packaging/config", "clients/cli/src/commands/init"] {
        for file in files(folder) {
            if file.path.ends_with(".yaml") {
                documents(&file.path, &file.text, &mut found);
            }
        }
    }
    let mut texts = files("docs");
    texts.extend(files("packaging"));
    for file in texts {
        if !file.path.ends_with(".md") {
            continue;
        }
        for (number, block) in file.text.split("```yaml\n").enumerate().skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            // Excerpts, such as a part of a release, begin with no kind.
            if block.lines().any(|line| line.starts_with("kind: ")) {
                let place = format!("{} block {number}", file.path);
                documents(&place, block, &mut found);
            }
        }
    }
    found
}

fn documents(place: &str, text: &str, found: &mut Vec<(String, Value)>) {
    for (number, document) in text.split("\n---\n").enumerate() {
        let empty = |line: &str| line.trim().is_empty() || line.trim().starts_with('#');
        if document.lines().all(empty) {
            continue;
        }
        let place = format!("{place} document {}", number + 1);
        match serde_saphyr::from_str(document) {
            Ok(value) => found.push((place, value)),
            Err(error) => panic!("{place}: {error}"),
        }
    }
}

/// What the program itself says of the shape of a manifest.
fn refused(manifest: &Value) -> Option<String> {
    let kind: Result<Kind, String> = manifest["kind"].as_str().unwrap_or_default().parse();
    let kind = match kind {
        Ok(kind) => kind,
        Err(error) => return Some(error),
    };
    let spec = ObjectSpec::from_json(kind, &manifest["spec"].to_string());
    match spec {
        Ok(spec) => {
            let errors = spec.validate().0;
            let told = errors.iter().map(|e| format!("{}: {}", e.field, e.message));
            (!errors.is_empty()).then(|| told.collect::<Vec<_>>().join("; "))
        }
        Err(error) => Some(error.to_string()),
    }
}

#[test]
fn every_manifest_of_the_tree_fits() {
    let manifests = manifests();
    assert!(manifests.len() >= 15, "the manifests could not be found");
    let mut findings = Vec::new();
    for (place, manifest) in &manifests {
        for error in misfits(manifest) {
            findings.push(format!("{place}: {error}"));
        }
        if let Some(error) = refused(manifest) {
            findings.push(format!("{place}: {error}"));
        }
    }
    report(
        "What a person copies from the documents is taken by apply, and editors that know the \
         schema find nothing wrong with it.",
        &findings,
    );
}

/// A manifest of a kind, as full as can be: every field of the schema has to be read by the program
/// too.
fn full() -> Vec<Value> {
    vec![
        json!({"kind": "application", "name": "shop", "labels": {"app": "shop"}, "spec": {"description": "x"}}),
        json!({"kind": "environment", "name": "e", "spec": {"tier": 3, "description": "x"}}),
        json!({"kind": "scope", "name": "s", "spec": {
            "application": "a", "environment": "e", "type": "hosts", "dimensions": {"region": "eu"},
            "asset": "web", "agents": "role=web", "instances_per_agent": 2, "port": 8080,
            "protocol": "http", "tls": {"certificate": "C", "key": "K"}, "http2": true,
            "sticky": {"cookie": "c", "ttl": "1h"}, "route": {"header": "X-Canary", "value": "1"},
            "health_check": {"http": {"path": "/", "status": 204, "body_contains": "ok"}, "interval": "2s",
                "timeout": "1s", "healthy_threshold": 1, "unhealthy_threshold": 2, "start_period": "0"},
            "metrics": {"path": "/metrics", "port": 9100}, "max_restarts": 3,
            "parameters": {"A": "b"},
            "limits": {"memory": "512MiB", "cpu": 0.5, "open_files": 1024, "processes": 64}
        }}),
        json!({"kind": "scope", "name": "worker", "spec": {
            "application": "a", "environment": "e", "port": "none",
            "health_check": {"exec": {"command": "check", "args": ["-q"]}},
            "limits": {"memory": 1073741824, "cpu": "2"}
        }}),
        json!({"kind": "strategy", "name": "s", "spec": {
            "kind": "blue_green",
            "traffic": {"steps": [{"percent": 12.5, "hold": "manual"}, {"percent": "50"}, {"percent": 100, "hold": "0"}]},
            "rollback": {"rules": [
                {"metric": "http.error_rate", "comparison": "greater_than", "threshold": 0.1, "judge": "raw",
                 "window": "1m", "min_samples": 5, "for": "30s", "action": "halt", "dry_run": true},
                {"metric": "app.rate(failures_total{kind=\"x\"})", "comparison": "less_than", "threshold": "-1.5"}
            ]},
            "on_no_data": {"wait": "1m", "then": "halt"}, "bake": "10m", "bake_share": 2.5,
            "finalize": "manual", "drain": "1m", "deadlines": {"stall": "1h", "halt_max": "1d"},
            "on_stall": "finalize", "max_lost": "10%", "keep_releases": 5
        }}),
        json!({"kind": "strategy", "name": "r", "spec": {
            "kind": "rolling", "batch": {"max_unavailable": "25%", "overlap": false, "hold": "30s"}, "max_lost": 2
        }}),
        json!({"kind": "strategy", "name": "i", "spec": {"traffic": {"increment": 10, "interval": "30s"}}}),
        json!({"kind": "strategy", "name": "g", "spec": {"rollout": {
            "kind": "waves", "gate": "healthy", "order": {"label": "zone"},
            "waves": [{"name": "first", "count": 1, "bake": "5m"}, {"name": "some", "percent": 25},
                {"name": "rest", "selector": "true"}],
            "budget": {"max_failures": "10%", "min_executed": 3, "on_breach": "rollback"},
            "pinned": {"first": ["a"], "last": ["b"]}
        }}}),
        json!({"kind": "strategy", "name": "l", "spec": {"rollout": {
            "kind": "linear", "time_scale_interval": "1m", "order": "name"
        }}}),
        json!({"kind": "policy", "name": "p", "spec": {
            "selector": "true", "enabled": true, "priority": -3,
            "approval": {"required": 2, "from": ["role:approver", "team:sre", "user:ann"], "not_requester": true,
                "condition": "true", "on_true": "deny", "expires": "1h"},
            "windows": [{"kind": "deny", "rrules": ["FREQ=DAILY"], "dtstart": "2026-01-05T09:00:00",
                "duration": "2h", "time_zone": "Europe/Berlin", "outcome": "deny", "first_deployment": "exempt"}],
            "cooldown": {"interval": "1h"},
            "progression": {"after": "true", "min_success_percentage": 50, "soak": "1m", "max_age": "1d",
                "require_verification": true, "match": "any", "on_empty": "allow"},
            "gradual_rollout": {"type": "linear", "interval": "5m"},
            "dependencies": [{"application": "db", "version": ">=2", "where": "anywhere"}],
            "release_selector": {"condition": "true"}, "concurrency": {"max": 3},
            "retry": {"max": 3, "on": ["failed"], "backoff": "linear", "initial": "1s", "max_pause": "1m"},
            "guardrail": {"condition": "true", "message": "x"}
        }}),
        json!({"kind": "policy", "name": "q", "spec": {
            "approval": {"from": "user:ann"},
            "gradual_rollout": {"type": "linear_normalized", "time_scale_interval": "5m"}
        }}),
        json!({"kind": "parameter", "name": "p", "spec": {
            "variable": "A", "kind": "secret", "value_from": {"env": "A"}, "on_rollback": "latest",
            "file": {"path": "a/b", "mode": "0640", "owner": "app", "on_collision": "retain"},
            "target": {"application": "a", "environment": "e", "dimensions": {"region": "eu"}}
        }}),
        json!({"kind": "parameter", "name": "q", "spec": {
            "variable": "A", "kind": "plain", "value": "x", "target": {"scope": "s"}
        }}),
    ]
}

#[test]
fn what_the_program_reads_fits() {
    for manifest in full() {
        let wrong = misfits(&manifest);
        assert!(wrong.is_empty(), "{manifest}\n{}", wrong.join("\n"));
        assert_eq!(refused(&manifest), None, "{manifest}");
    }
}

#[test]
fn what_is_wrong_does_not_fit() {
    let of = |kind: &str, spec: Value| json!({"kind": kind, "name": "x", "spec": spec});
    let scope = |port: Value| json!({"application": "a", "environment": "e", "port": port});
    let cases = [
        json!({"kind": "aplication", "name": "x", "spec": {}}),
        json!({"kind": "application", "name": "x", "spec": {}, "more": 1}),
        json!({"name": "x", "spec": {}}),
        json!({"kind": "application", "name": "Not A Name", "spec": {}}),
        of("application", json!({"colour": 1})),
        of("environment", json!({"tier": "many"})),
        of("scope", json!({"application": "a", "port": 80})),
        of("scope", scope(json!(70_000))),
        of("scope", scope(json!(null))),
        of("strategy", json!({"bake": "10 parsecs"})),
        of("strategy", json!({"bake": 10})),
        of("strategy", json!({"kind": "canary"})),
        of("strategy", json!({"traffic": {"steps": [{"hold": "1s"}]}})),
        of(
            "strategy",
            json!({"traffic": {"steps": [{"percent": 101}]}}),
        ),
        of(
            "strategy",
            json!({"rollback": {"rules": [{"metric": "http.errors", "comparison": "equal", "threshold": 1}]}}),
        ),
        of("policy", json!({"approval": {"from": "ann"}})),
        of("policy", json!({"windows": [{"rrules": ["FREQ=DAILY"]}]})),
        of("policy", json!({"gradual_rollout": {"type": "linear"}})),
        of(
            "parameter",
            json!({"variable": "A", "value": 1, "target": {"scope": "s"}}),
        ),
        of(
            "parameter",
            json!({"variable": "A", "value": "x", "sealed": "00", "target": {"scope": "s"}}),
        ),
    ];
    for case in cases {
        assert!(!misfits(&case).is_empty(), "{case}");
    }
}

/// Each field that is taken out of a full manifest, or misspelt in it, is seen by both alike, as far
/// as the shape goes.
#[test]
fn a_misspelt_field_fits_nowhere() {
    let mut tried = 0;
    for manifest in full() {
        for path in paths(&manifest["spec"]) {
            let mut wrong = manifest.clone();
            let Some(parent) = wrong["spec"].pointer_mut(&path) else {
                continue;
            };
            let Some(fields) = parent.as_object_mut() else {
                continue;
            };
            // Maps with names of the person's own take any name.
            if path.ends_with("/dimensions") || path.ends_with("/parameters") {
                continue;
            }
            fields.insert("misspelt".to_owned(), json!(1));
            tried += 1;
            assert!(refused(&wrong).is_some(), "the program takes {wrong}");
            assert!(!misfits(&wrong).is_empty(), "the schema takes {wrong}");
        }
    }
    assert!(tried > 25, "only {tried} places were tried");
}

/// Pointers to every object within a value, itself first.
fn paths(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) => {
            found.push(String::new());
            fields
                .iter()
                .map(|(name, inner)| (name.clone(), inner))
                .collect()
        }
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(at, inner)| (at.to_string(), inner))
            .collect(),
        _ => Vec::new(),
    };
    for (name, inner) in inner {
        found.extend(
            paths(inner)
                .into_iter()
                .map(|rest| format!("/{name}{rest}")),
        );
    }
    found
}
