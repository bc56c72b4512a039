//! Policy arithmetic against the vectors in `tests/vectors/policy-vectors.json`, or in the folder
//! that `TIDEGATE_VECTORS` names. A field, a kind or a word that is not known here fails the test.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;
use tidegate_coordinator_core::group::open_time::Openings;
use tidegate_coordinator_core::group::schedule::{Pace, base, schedule};
use tidegate_coordinator_core::policy::approval::{self, Outcome, Vote};
use tidegate_coordinator_core::policy::progression::{self, Environment, Success};
use tidegate_coordinator_core::policy::window::Window;
use tidegate_coordinator_core::policy::{Verdict, cooldown};
use tidegate_shared::spec::{
    FirstDeployment, GradualType, Matching, OnEmpty, WindowKind, WindowOutcome, WindowRule,
};
use tidegate_shared::time::{Span, Timestamp};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "meta")]
    _meta: Value,
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    id: String,
    kind: String,
    input: Value,
    expected: Value,
    #[serde(default)]
    note: String,
}

/// RFC 3339 in UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct At(Timestamp);

impl<'de> Deserialize<'de> for At {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = chrono::DateTime::parse_from_rfc3339(&text);
        let time = time.map_err(serde::de::Error::custom)?;
        let millis = u64::try_from(time.timestamp_millis()).map_err(serde::de::Error::custom)?;
        Ok(Self(Timestamp::from_millis(millis)))
    }
}

/// As the vectors write times: whole seconds.
fn text(at: Timestamp) -> String {
    at.to_string().replace(".000Z", "Z")
}

fn optional_text(at: Option<Timestamp>) -> Value {
    at.map_or(Value::Null, |at| Value::String(text(at)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WindowInput {
    kind: WindowKind,
    rrules: Vec<String>,
    dtstart: String,
    duration_s: u64,
    time_zone: String,
}

impl WindowInput {
    fn compile(&self) -> Window {
        let rule = WindowRule {
            kind: self.kind,
            rrules: self.rrules.clone(),
            dtstart: Some(self.dtstart.clone()),
            duration: Span::from_secs(self.duration_s),
            time_zone: self.time_zone.clone(),
            outcome: WindowOutcome::Wait,
            first_deployment: FirstDeployment::Obey,
        };
        Window::compile(&rule).unwrap()
    }
}

fn window_state(input: Value) -> Value {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Input {
        window: WindowInput,
        at: At,
    }
    let input: Input = serde_json::from_value(input).unwrap();
    let state = input.window.compile().state(input.at.0);
    serde_json::json!({"open": state.open, "changes_at": optional_text(state.changes_at)})
}

fn rollout_offset(input: Value) -> Value {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Input {
        r#type: GradualType,
        n: u64,
        position: u64,
        interval_s: u64,
    }
    let input: Input = serde_json::from_value(input).unwrap();
    let pace = Pace {
        kind: input.r#type,
        interval: Span::from_secs(input.interval_s),
    };
    let offset = pace.offset(input.n, input.position);
    assert_eq!(offset.millis() % 1_000, 0);
    serde_json::json!({"offset_s": offset.millis() / 1_000})
}

fn rollout_schedule(input: Value) -> Value {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Gate {
        #[serde(rename = "rule")]
        _rule: GateRule,
        satisfied_at: Option<At>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum GateRule {
        Approval,
        Progression,
        Skip,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Input {
        r#type: GradualType,
        n: u64,
        interval_s: u64,
        created_at: At,
        gates: Vec<Gate>,
        windows: Vec<WindowInput>,
    }
    let input: Input = serde_json::from_value(input).unwrap();
    let gates = input
        .gates
        .iter()
        .map(|gate| gate.satisfied_at.map(|at| at.0));
    let Some(base) = base(input.created_at.0, gates) else {
        return serde_json::json!({"started": false});
    };
    let pace = Pace {
        kind: input.r#type,
        interval: Span::from_secs(input.interval_s),
    };
    let windows: Vec<Window> = input.windows.iter().map(WindowInput::compile).collect();
    let openings = Openings {
        windows: &windows,
        stops: &[],
    };
    let found = schedule(pace, input.n, base, openings);
    let due: Vec<Value> = found.due.into_iter().map(optional_text).collect();
    serde_json::json!({
        "started": true,
        "base": text(found.base),
        "start": optional_text(found.start),
        "due": due,
    })
}

fn cooldown_of(input: Value) -> Value {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Previous {
        release: String,
        started_at: At,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Input {
        interval_s: u64,
        previous: Option<Previous>,
        candidate: String,
        now: At,
    }
    let input: Input = serde_json::from_value(input).unwrap();
    let previous = input.previous.as_ref().map(|previous| cooldown::Previous {
        release: &previous.release,
        started_at: previous.started_at.0,
    });
    let interval = Span::from_secs(input.interval_s);
    let answer = cooldown::answer(interval, previous, &input.candidate, input.now.0);
    match answer.verdict {
        Verdict::Allowed => serde_json::json!({"result": "allowed"}),
        Verdict::Pending { until, .. } => {
            serde_json::json!({"result": "pending", "until": optional_text(until)})
        }
        Verdict::Denied => serde_json::json!({"result": "denied"}),
    }
}

fn progression_of(input: Value) -> Value {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct SuccessInput {
        at: At,
        rolled_back_at: Option<At>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct EnvironmentInput {
        scopes: u64,
        successes: Vec<SuccessInput>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Input {
        created_at: At,
        now: At,
        environments: Vec<EnvironmentInput>,
        r#match: Matching,
        min_success_percentage: u32,
        soak_s: u64,
        on_empty: OnEmpty,
        max_age_s: Option<u64>,
    }
    let input: Input = serde_json::from_value(input).unwrap();
    let environments: Vec<Environment<'_>> = input
        .environments
        .iter()
        .map(|environment| Environment {
            name: "before",
            scopes: environment.scopes,
            successes: environment
                .successes
                .iter()
                .map(|success| Success {
                    at: success.at.0,
                    rolled_back_at: success.rolled_back_at.map(|at| at.0),
                })
                .collect(),
        })
        .collect();
    let demand = progression::Demand {
        percentage: input.min_success_percentage,
        soak: Span::from_secs(input.soak_s),
        max_age: input.max_age_s.map(Span::from_secs),
        matching: input.r#match,
        on_empty: input.on_empty,
    };
    let answer = progression::answer(demand, &environments, input.created_at.0, input.now.0);
    match answer.verdict {
        Verdict::Allowed => serde_json::json!({
            "result": "allowed",
            "satisfied_at": optional_text(answer.satisfied_at),
        }),
        Verdict::Pending { .. } | Verdict::Denied => serde_json::json!({"result": "blocked"}),
    }
}

fn approval_of(input: Value) -> Value {
    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Word {
        Grant,
        Deny,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Decision {
        user: String,
        at: At,
        decision: Word,
        bound: bool,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Input {
        required: u32,
        not_requester: bool,
        requester: String,
        entitled: Vec<String>,
        created_at: At,
        expires_s: u64,
        now: At,
        decisions: Vec<Decision>,
    }
    let input: Input = serde_json::from_value(input).unwrap();
    let expires_at = input.created_at.0 + Span::from_secs(input.expires_s);
    let demand = approval::Demand {
        required: input.required,
        not_requester: input.not_requester,
        requester: &input.requester,
        created_at: input.created_at.0,
        expires_at,
    };
    let votes: Vec<Vote<'_>> = input
        .decisions
        .iter()
        .map(|decision| Vote {
            user: &decision.user,
            at: decision.at.0,
            granted: matches!(decision.decision, Word::Grant),
            bound: decision.bound,
        })
        .collect();
    let entitled = |user: &str| input.entitled.iter().any(|known| known == user);
    match approval::count(demand, &votes, entitled, input.now.0) {
        Outcome::Satisfied { at } => {
            serde_json::json!({"result": "satisfied", "satisfied_at": text(at)})
        }
        Outcome::Pending { missing } => serde_json::json!({
            "result": "pending",
            "missing": missing,
            "expires_at": text(expires_at),
        }),
        Outcome::Denied { .. } => serde_json::json!({"result": "denied", "why": "denied"}),
        Outcome::Expired => serde_json::json!({"result": "denied", "why": "expired"}),
    }
}

fn answer(kind: &str, input: Value) -> Value {
    match kind {
        "window_state" => window_state(input),
        "rollout_offset" => rollout_offset(input),
        "rollout_schedule" => rollout_schedule(input),
        "cooldown" => cooldown_of(input),
        "progression" => progression_of(input),
        "approval" => approval_of(input),
        other => panic!("vectors of kind \"{other}\" are not known"),
    }
}

#[test]
fn every_policy_of_the_vectors_answers_as_written() {
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors");
    let folder = std::env::var_os("TIDEGATE_VECTORS").map_or_else(|| here.into(), PathBuf::from);
    let path = folder.join("policy-vectors.json");
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file: File = serde_json::from_slice(&bytes).unwrap();
    assert!(!file.vectors.is_empty());
    let mut wrong = BTreeMap::new();
    for vector in &file.vectors {
        let found = answer(&vector.kind, vector.input.clone());
        if found != vector.expected {
            let line = format!("wanted {}, found {found} {}", vector.expected, vector.note);
            wrong.insert(&vector.id, line);
        }
    }
    let count = file.vectors.len();
    assert!(
        wrong.is_empty(),
        "{} of {count} are wrong: {wrong:#?}",
        wrong.len()
    );
}
