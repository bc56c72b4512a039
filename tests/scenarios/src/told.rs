//! What a script leaves out: commands and values made of the few words that it says.

use tidegate_coordinator_core::Command;
use tidegate_coordinator_core::command::{PutObject, RollbackScope, ScopeName, StopScope};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{Name, Version};
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{
    AssetKind, AssetSource, AssetSpec, Kind, ObjectSpec, ReleaseSpec, RunSpec,
};

pub(crate) fn put(kind: &str, name: &Name, json: &str) -> Result<Command, String> {
    let kind: Kind = kind.parse()?;
    Ok(Command::PutObject(PutObject {
        name: name.clone(),
        labels: Labels::new(),
        spec: ObjectSpec::from_json(kind, json).map_err(|error| error.to_string())?,
        expected_revision: None,
        must_not_exist: false,
    }))
}

/// The fields of a scope that a script does not say.
pub(crate) fn scope_json(json: &str) -> Result<String, String> {
    let mut scope = serde_json::json!({
        "application": "shop",
        "environment": "production",
        "port": 8080,
        "health_check": {"http": {"path": "/"}, "interval": "5s", "healthy_threshold": 1},
    });
    let told: serde_json::Value = serde_json::from_str(if json.is_empty() { "{}" } else { json })
        .map_err(|error| error.to_string())?;
    let (Some(scope), Some(told)) = (scope.as_object_mut(), told.as_object()) else {
        return Err("a scope is a JSON object".to_owned());
    };
    for (key, value) in told {
        scope.insert(key.clone(), value.clone());
    }
    serde_json::to_string(scope).map_err(|error| error.to_string())
}

pub(crate) fn scope_command(
    verb: &str,
    name: &Name,
    version: Option<&Version>,
    flag: bool,
) -> Command {
    let scope = ScopeName { name: name.clone() };
    match verb {
        "stop" => Command::StopScope(StopScope {
            name: name.clone(),
            cancel: flag,
        }),
        "start" => Command::StartScope(scope),
        "restart" => Command::RestartScope(scope),
        _ => Command::RollbackScope(RollbackScope {
            name: name.clone(),
            version: version.cloned(),
            force: flag,
            reason: "told by the script".to_owned(),
        }),
    }
}

pub(crate) fn release_spec(version: &Version) -> Result<ReleaseSpec, String> {
    let asset = AssetSpec {
        name: Name::new("app").map_err(|error| error.to_string())?,
        kind: AssetKind::Archive,
        platform: "any".to_owned(),
        sha256: Digest::of(version.as_str().as_bytes()),
        size: 1_000,
        source: AssetSource::Store,
        run: RunSpec {
            command: "./app".to_owned(),
            ..RunSpec::default()
        },
    };
    Ok(ReleaseSpec {
        assets: vec![asset],
        ..ReleaseSpec::default()
    })
}
