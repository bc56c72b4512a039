//! Wire messages ⇄ the core's values; the only place where they meet.
//!
//! This file reads inputs (names, ids, specs) and shows objects, releases, tokens and events;
//! [`link`] is the agents' link, [`deployment`] the view of a deployment, [`group`] that of a group.

use std::collections::{BTreeMap, HashMap};

use tidegate_coordinator_core::command::{OnConflict, TokenKind, Verb};
use tidegate_coordinator_core::preflight::{Finding, Severity};
use tidegate_coordinator_core::state::{Addresses, Meta, Object, Release, Scope, Token};
use tidegate_coordinator_core::{Event, Outcome, Reply, State};
use tidegate_proto::control::v1 as pb;
use tidegate_proto::enroll::v1::CoordinatorAddresses;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, Name, ShortId, TokenId, Version};
use tidegate_shared::secret::WITHHELD;
use tidegate_shared::selector::{LabelSelector, Labels};
use tidegate_shared::spec::{
    Kind, ObjectSpec, ParameterKind, ParameterSpec, ReleaseSpec, ReleaseStatus, StrategySpec,
    validate_labels,
};
use tidegate_shared::weight::Weight;
use tonic::Status;

use super::status;

mod checks;
pub mod deployment;
pub mod group;
pub mod link;
pub mod people;
pub mod plan;

/// A name in a field.
///
/// # Errors
/// The field and what would be right.
pub fn name(field: &str, text: &str) -> Result<Name, Status> {
    if text.is_empty() {
        return Err(status::wrong_field(field, "is missing"));
    }
    Name::new(text).map_err(|error| status::wrong_field(field, error.message))
}

/// A version in a field.
///
/// # Errors
/// The field and what would be right.
pub fn version(field: &str, text: &str) -> Result<Version, Status> {
    if text.is_empty() {
        return Err(status::wrong_field(field, "is missing"));
    }
    Version::new(text).map_err(|error| status::wrong_field(field, error.message))
}

/// A kind of object.
///
/// # Errors
/// The field and what would be right.
pub fn kind(text: &str) -> Result<Kind, Status> {
    text.parse()
        .map_err(|error: String| status::wrong_field("kind", error))
}

/// Labels of an object.
///
/// # Errors
/// The field and what would be right.
pub fn labels(found: HashMap<String, String>) -> Result<Labels, Status> {
    let labels: Labels = found.into_iter().collect();
    match validate_labels(&labels).into_result() {
        Ok(()) => Ok(labels),
        Err(errors) => Err(status::wrong_fields("labels", errors)),
    }
}

/// A label selector.
///
/// # Errors
/// Where it is wrong.
pub fn selector(text: &str) -> Result<LabelSelector, Status> {
    text.parse()
        .map_err(|error: tidegate_shared::selector::SelectorError| {
            status::wrong_field("selector", error.to_string())
        })
}

/// The spec of an object, checked for itself.
///
/// # Errors
/// Every wrong field.
pub fn object_spec(kind: Kind, name: &Name, json: &str) -> Result<ObjectSpec, Status> {
    let spec = ObjectSpec::from_json(kind, json)
        .map_err(|error| status::wrong_field("spec", error.to_string()))?;
    match spec.validate().into_result() {
        Ok(()) => Ok(spec),
        Err(errors) => Err(status::wrong_fields(&format!("{kind} \"{name}\""), errors)),
    }
}

/// The spec of a release, checked for itself.
///
/// # Errors
/// Every wrong field.
pub fn release_spec(what: &str, json: &str) -> Result<ReleaseSpec, Status> {
    let spec: ReleaseSpec = serde_json::from_str(json)
        .map_err(|error| status::wrong_field("spec", error.to_string()))?;
    match spec.validate().into_result() {
        Ok(()) => Ok(spec),
        Err(errors) => Err(status::wrong_fields(what, errors)),
    }
}

/// Overrides of a strategy; empty: none.
///
/// # Errors
/// Every wrong field.
pub fn overrides(json: &str) -> Result<StrategySpec, Status> {
    if json.trim().is_empty() {
        return Ok(StrategySpec::default());
    }
    let overrides: StrategySpec = serde_json::from_str(json)
        .map_err(|error| status::wrong_field("overrides", error.to_string()))?;
    check_conditions("overrides", &overrides)?;
    Ok(overrides)
}

/// The conditions of a strategy's checks.
///
/// # Errors
/// Every wrong one, with its place in the text.
pub fn check_conditions(what: &str, strategy: &StrategySpec) -> Result<(), Status> {
    let checks = strategy.verification.as_deref().unwrap_or_default();
    tidegate_coordinator_core::verification::check(checks)
        .into_result()
        .map_err(|errors| status::wrong_fields(what, errors))
}

/// What a release can be set to.
///
/// # Errors
/// Any other word.
pub fn release_status(text: &str) -> Result<ReleaseStatus, Status> {
    match text {
        "ready" => Ok(ReleaseStatus::Ready),
        "paused" => Ok(ReleaseStatus::Paused),
        "rejected" => Ok(ReleaseStatus::Rejected),
        _ => Err(status::wrong_field(
            "status",
            format!("\"{text}\" is not a status: want ready, paused or rejected"),
        )),
    }
}

/// What a new deployment does about one under way; empty: fail.
///
/// # Errors
/// Any other word.
pub fn on_conflict(text: &str) -> Result<OnConflict, Status> {
    match text {
        "" | "fail" => Ok(OnConflict::Fail),
        "queue" => Ok(OnConflict::Queue),
        "supersede" => Ok(OnConflict::Supersede),
        _ => Err(status::wrong_field(
            "on_conflict",
            format!("\"{text}\" is not an answer: want fail, queue or supersede"),
        )),
    }
}

/// A person's verb.
///
/// # Errors
/// None was given, or the weight is no share.
pub fn verb(verb: pb::act_request::Verb, weight: u32) -> Result<Verb, Status> {
    use pb::act_request::Verb as Wire;
    Ok(match verb {
        Wire::Unspecified => return Err(status::wrong_field("verb", "is missing")),
        Wire::Pause => Verb::Pause,
        Wire::Resume => Verb::Resume,
        Wire::Promote => Verb::Promote,
        Wire::PromoteFull => Verb::PromoteFull,
        Wire::Traffic => Verb::Traffic(
            Weight::from_basis_points(u64::from(weight))
                .map_err(|error| status::wrong_field("weight", error.to_string()))?,
        ),
        Wire::Finalize => Verb::Finalize,
        Wire::Cancel => Verb::Cancel,
        Wire::Rollback => Verb::Rollback,
        Wire::Retry => Verb::Retry,
    })
}

/// What a token lets its holder become.
///
/// # Errors
/// Any other word.
pub fn token_kind(text: &str) -> Result<TokenKind, Status> {
    match text {
        "agent" => Ok(TokenKind::Agent),
        "user" => Ok(TokenKind::User),
        "coordinator" => Ok(TokenKind::Coordinator),
        _ => Err(status::wrong_field(
            "kind",
            format!("\"{text}\" is not a kind of token: want agent, user or coordinator"),
        )),
    }
}

/// The word for a kind of token.
#[must_use]
pub const fn token_word(kind: TokenKind) -> &'static str {
    match kind {
        TokenKind::Agent => "agent",
        TokenKind::User => "user",
        TokenKind::Coordinator => "coordinator",
    }
}

/// A token's id.
///
/// # Errors
/// It is no ULID.
pub fn token_id(text: &str) -> Result<TokenId, Status> {
    text.parse()
        .map_err(|error: tidegate_shared::id::IdError| status::wrong_field("id", error.message))
}

/// A deployment by ULID or short id.
///
/// # Errors
/// It is neither, or there is none.
pub fn deployment_id(state: &State, text: &str) -> Result<DeploymentId, Status> {
    let missing = || {
        status::refusal(
            Reason::NotFound,
            format!("there is no deployment \"{text}\""),
        )
    };
    if text.len() == ShortId::LEN {
        let short: ShortId = text
            .parse()
            .map_err(|error: tidegate_shared::id::IdError| {
                status::wrong_field("id", error.message)
            })?;
        // Newest first: that is what people ask for.
        return state
            .deployments
            .values()
            .rev()
            .find(|deployment| deployment.short == short)
            .map(|deployment| deployment.id)
            .ok_or_else(missing);
    }
    let id: DeploymentId = text.parse().map_err(|_| {
        status::wrong_field(
            "id",
            format!(
                "\"{text}\" is not a deployment id: want a ULID or the 8 characters of the short id"
            ),
        )
    })?;
    if state.deployments.contains_key(&id) {
        Ok(id)
    } else {
        Err(missing())
    }
}

/// What every object carries.
#[must_use]
pub fn metadata(name: &str, meta: &Meta) -> pb::Metadata {
    pb::Metadata {
        name: name.to_owned(),
        labels: to_map(&meta.labels),
        created_at_ms: meta.created_at.millis(),
        created_by: meta.created_by.to_string(),
        revision: meta.revision,
    }
}

/// An ordered map as the wire's.
#[must_use]
pub fn to_map(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn json<T: serde::Serialize>(value: &T) -> String {
    // Specs have text keys only, so this cannot fail.
    serde_json::to_string(value).unwrap_or_default()
}

fn object<S: serde::Serialize>(kind: Kind, name: &Name, found: &Object<S>) -> pb::Object {
    pb::Object {
        kind: kind.as_str().to_owned(),
        metadata: Some(metadata(name.as_str(), &found.meta)),
        spec: json(&found.spec),
        status: String::new(),
    }
}

/// A parameter; a secret without its value, sealed or not.
fn parameter(name: &Name, found: &Object<ParameterSpec>) -> pb::Object {
    let mut shown = found.clone();
    if shown.spec.kind == ParameterKind::Secret {
        shown.spec.sealed = None;
        shown.spec.value = Some(WITHHELD.to_owned());
    }
    object(Kind::Parameter, name, &shown)
}

/// A scope as an object.
#[must_use]
pub fn scope_object(name: &Name, scope: &Scope) -> pb::Object {
    pb::Object {
        kind: Kind::Scope.as_str().to_owned(),
        metadata: Some(metadata(name.as_str(), &scope.meta)),
        spec: json(&scope.spec),
        status: scope.status.as_str().to_owned(),
    }
}

/// One object of a kind.
#[must_use]
pub fn object_of(state: &State, kind: Kind, name: &Name) -> Option<pb::Object> {
    match kind {
        Kind::Application => state
            .applications
            .get(name)
            .map(|found| object(kind, name, found)),
        Kind::Environment => state
            .environments
            .get(name)
            .map(|found| object(kind, name, found)),
        Kind::Strategy => state
            .strategies
            .get(name)
            .map(|found| object(kind, name, found)),
        Kind::Scope => state
            .scopes
            .get(name)
            .map(|found| scope_object(name, found)),
        Kind::Policy => state
            .policies
            .get(name)
            .map(|found| object(kind, name, found)),
        Kind::Parameter => state
            .parameters
            .get(name)
            .map(|found| parameter(name, found)),
        Kind::Team => state.teams.get(name).map(|found| object(kind, name, found)),
        Kind::RoleBinding => state
            .role_bindings
            .get(name)
            .map(|found| object(kind, name, found)),
    }
}

/// The names of every object of a kind, in order, with their labels.
#[must_use]
pub fn names_of(state: &State, kind: Kind) -> Vec<(Name, Labels)> {
    fn all<S: Clone>(
        table: &tidegate_coordinator_core::state::Table<Name, Object<S>>,
    ) -> Vec<(Name, Labels)> {
        table
            .iter()
            .map(|(name, found)| (name.clone(), found.meta.labels.clone()))
            .collect()
    }
    match kind {
        Kind::Application => all(&state.applications),
        Kind::Environment => all(&state.environments),
        Kind::Strategy => all(&state.strategies),
        Kind::Policy => all(&state.policies),
        Kind::Parameter => all(&state.parameters),
        Kind::Team => all(&state.teams),
        Kind::RoleBinding => all(&state.role_bindings),
        Kind::Scope => state
            .scopes
            .iter()
            .map(|(name, scope)| (name.clone(), scope.meta.labels.clone()))
            .collect(),
    }
}

/// What a command did to its object.
#[must_use]
pub const fn change(reply: &Reply) -> pb::apply_response::Change {
    match reply {
        Reply::Object { created: true, .. } => pb::apply_response::Change::Created,
        Reply::Object { changed: true, .. } => pb::apply_response::Change::Changed,
        Reply::Object { .. }
        | Reply::Done
        | Reply::Named(_)
        | Reply::Deployments(_)
        | Reply::Group { .. }
        | Reply::GroupActed { .. }
        | Reply::Joined { .. } => pb::apply_response::Change::Unchanged,
    }
}

/// The answer to one of many objects, or to one of many deletions: the one command on objects that
/// answers with nothing but that it is done.
#[must_use]
pub fn apply_result(outcome: &Outcome) -> pb::ApplyResult {
    use pb::apply_result::{Applied, Refusal, Result, WrongField};
    let result = match outcome {
        Ok(reply) => {
            let (change, revision) = match reply {
                Reply::Object { revision, .. } => (change(reply), *revision),
                Reply::Done => (pb::apply_response::Change::Deleted, 0),
                Reply::Named(_)
                | Reply::Deployments(_)
                | Reply::Group { .. }
                | Reply::GroupActed { .. }
                | Reply::Joined { .. } => (pb::apply_response::Change::Unspecified, 0),
            };
            Result::Applied(Applied {
                change: change.into(),
                revision,
            })
        }
        Err(rejection) => Result::Refusal(Refusal {
            reason: rejection.reason.as_str().to_owned(),
            code: rejection.reason.code().to_owned(),
            message: rejection.to_string(),
            hint: rejection.reason.hint().to_owned(),
            fields: rejection
                .fields
                .iter()
                .map(|found| WrongField {
                    field: found.field.clone(),
                    message: found.message.clone(),
                })
                .collect(),
        }),
    };
    pb::ApplyResult {
        result: Some(result),
    }
}

/// A release.
#[must_use]
pub fn release(application: &Name, version: &Version, found: &Release) -> pb::Release {
    pb::Release {
        application: application.to_string(),
        metadata: Some(metadata(version.as_str(), &found.meta)),
        spec: json(&found.spec),
        status: found.status.as_str().to_owned(),
        digest: found.digest.to_string(),
    }
}

/// A token, without its secret.
#[must_use]
pub fn token(id: TokenId, found: &Token) -> pb::Token {
    pb::Token {
        id: id.to_string(),
        kind: token_word(found.kind).to_owned(),
        labels: to_map(&found.labels),
        expires_at_ms: found.expires_at.millis(),
        uses: found.uses,
        used: found.used,
        name: found.name.as_ref().map(Name::to_string).unwrap_or_default(),
        created_at_ms: found.created_at.millis(),
        created_by: found.created_by.to_string(),
        roles: found.roles.iter().map(ToString::to_string).collect(),
    }
}

/// A line of the audit log.
#[must_use]
pub fn event(found: &Event) -> pb::Event {
    pb::Event {
        index: found.index,
        ordinal: found.ordinal,
        at_ms: found.at.millis(),
        actor: found.actor.to_string(),
        kind: found.kind.clone(),
        object_kind: found.object_kind.clone(),
        object: found.object.clone(),
        outcome: found.outcome.clone(),
        message: found.message.clone(),
        previous_hash: found.previous_hash.to_string(),
        hash: found.hash.to_string(),
        details: json(found),
    }
}

/// A finding of a look at a scope.
#[must_use]
pub fn finding(found: Finding) -> pb::CheckFinding {
    let severity = match found.severity {
        Severity::Good => pb::check_finding::Severity::Good,
        Severity::Warning => pb::check_finding::Severity::Warning,
        Severity::Error => pb::check_finding::Severity::Error,
    };
    pb::CheckFinding {
        severity: severity.into(),
        subject: found.subject,
        message: found.message,
        hint: found.hint,
    }
}

/// Addresses of a coordinator.
#[must_use]
pub fn addresses(found: &Addresses) -> CoordinatorAddresses {
    CoordinatorAddresses {
        control: found.control.clone(),
        peer: found.peer.clone(),
        http: found.http.clone(),
        enroll: found.enroll.clone(),
    }
}

/// Addresses that a joining coordinator tells.
///
/// # Errors
/// One is no `host:port`.
pub fn addresses_from(found: Option<CoordinatorAddresses>) -> Result<Addresses, Status> {
    let found = found.ok_or_else(|| status::wrong_field("addresses", "are missing"))?;
    let check = |field: &str, text: &str| match crate::config::split_address(text) {
        Some((host, port)) if !host.is_empty() && port > 0 => Ok(()),
        Some(_) | None => Err(status::wrong_field(
            &format!("addresses.{field}"),
            format!("\"{text}\" is not an address: want HOST:PORT"),
        )),
    };
    check("control", &found.control)?;
    check("peer", &found.peer)?;
    check("http", &found.http)?;
    check("enroll", &found.enroll)?;
    Ok(Addresses {
        control: found.control,
        peer: found.peer,
        http: found.http,
        enroll: found.enroll,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_of_every_kind_read_back_what_they_show() {
        let specs = [
            (Kind::Application, r#"{"description":"shop"}"#),
            (Kind::Environment, r#"{"tier":3}"#),
            (
                Kind::Strategy,
                r#"{"kind":"blue_green","traffic":{"steps":[{"percent":12.5,"hold":"30s"},{"percent":100,"hold":"manual"}]},"drain":"5s"}"#,
            ),
            (
                Kind::Scope,
                r#"{"application":"shop","environment":"prod","agents":"role=web","port":8080}"#,
            ),
            (Kind::Policy, r#"{"approval":{"required":2}}"#),
            (
                Kind::Parameter,
                r#"{"variable":"A","value":"1","target":{"application":"shop"}}"#,
            ),
            (Kind::Team, r#"{"members":["ann"]}"#),
            (Kind::RoleBinding, r#"{"role":"deployer","teams":["sre"]}"#),
        ];
        let name = Name::new("x").unwrap();
        for (kind, text) in specs {
            let spec = object_spec(kind, &name, text).unwrap();
            let shown = spec.to_json().unwrap();
            assert_eq!(object_spec(kind, &name, &shown).unwrap(), spec, "{shown}");
        }
    }

    #[test]
    fn wrong_inputs_name_their_field() {
        let name_x = Name::new("x").unwrap();
        let errors = [
            name("name", "").unwrap_err(),
            name("name", "A").unwrap_err(),
            version("version", "-1").unwrap_err(),
            kind("thing").unwrap_err(),
            object_spec(Kind::Application, &name_x, r#"{"descripton":""}"#).unwrap_err(),
            object_spec(Kind::Policy, &name_x, "{}").unwrap_err(),
            overrides("{").unwrap_err(),
            verb(pb::act_request::Verb::Traffic, 10_001).unwrap_err(),
            on_conflict("maybe").unwrap_err(),
        ];
        for error in errors {
            assert_eq!(
                status::reason_of(&error).as_deref(),
                Some("INVALID_FIELD"),
                "{error}"
            );
        }
    }
}
