//! A cluster that tests drive by commands.

use std::collections::BTreeMap;

use tidegate_shared::digest::Digest;
use tidegate_shared::id::{ClusterId, DeploymentId, Name, RequestId, TokenId, Version};
use tidegate_shared::spec::{
    AssetKind, AssetSource, AssetSpec, Kind, ObjectSpec, ReleaseSpec, ReleaseStatus, RunSpec,
    StrategySpec,
};
use tidegate_shared::time::{Span, Timestamp};

use crate::apply::apply;
use crate::command::{
    ActOnDeployment, Action, Actor, Advance, Applied, Cause, Command, CreateDeployments,
    CreateRelease, CreateToken, Entry, InitCluster, Item, Join, OnConflict, Outcome, PutObject,
    Reply, RequestKey, SetReleaseStatus, TokenKind, Verb,
};
use crate::deployment::phase;
use crate::rejection::Rejection;
use crate::state::{Addresses, CaRecord, Deployment, Scope, ScopeStatus, SealedKey, State, Status};

pub(super) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(super) fn version(text: &str) -> Version {
    Version::new(text).unwrap()
}

pub(super) fn names(list: &[&str]) -> Vec<Name> {
    list.iter().map(|text| name(text)).collect()
}

pub(super) fn user(text: &str) -> Actor {
    Actor::User(name(text))
}

pub(super) fn cause(kind: &str) -> Cause {
    Cause {
        kind: kind.to_owned(),
        message: format!("because of {kind}"),
    }
}

pub(super) fn release_spec(content: &str) -> ReleaseSpec {
    ReleaseSpec {
        assets: vec![AssetSpec {
            name: name("main"),
            kind: AssetKind::Binary,
            platform: "any".to_owned(),
            sha256: Digest::of(content.as_bytes()),
            size: 10,
            source: AssetSource::Store,
            run: RunSpec {
                command: "serve".to_owned(),
                ..RunSpec::default()
            },
        }],
        ..ReleaseSpec::default()
    }
}

/// Three agents, application `shop`, environment `production`, scopes `web` and `api`, releases
/// 1.0.0 to 4.0.0.
#[derive(Clone)]
pub(super) struct World {
    pub(super) state: State,
    pub(super) index: u64,
    pub(super) now: Timestamp,
    /// Of the next deployments.
    pub(super) strategy: StrategySpec,
    pub(super) on_conflict: OnConflict,
    /// The invariants are checked after each command, which costs as much as the state is large.
    pub(super) is_checked: bool,
}

impl World {
    pub(super) fn empty() -> Self {
        Self {
            state: State::default(),
            index: 0,
            now: Timestamp::from_millis(1_700_000_000_000),
            strategy: StrategySpec::default(),
            on_conflict: OnConflict::Fail,
            is_checked: true,
        }
    }

    pub(super) fn new() -> Self {
        let mut world = Self::empty();
        world.must(Command::InitCluster(init()));
        world.must(world.object("shop", Kind::Application, "{}"));
        world.must(world.object("production", Kind::Environment, "{}"));
        world.must(Command::CreateToken(CreateToken {
            id: token(),
            kind: TokenKind::Agent,
            secret_hash: Digest::of(b"secret"),
            labels: BTreeMap::from([("role".to_owned(), "web".to_owned())]),
            expires_at: world.now + Span::from_days(365),
            uses: 100,
            name: None,
            roles: Vec::new(),
        }));
        for agent in ["a1", "a2", "a3"] {
            world.must(join(agent));
        }
        for scope in ["web", "api"] {
            world.must(world.object(scope, Kind::Scope, SCOPE));
        }
        for release in ["1.0.0", "2.0.0", "3.0.0", "4.0.0"] {
            world.must(create_release(release));
        }
        world
    }

    /// Version 1.0.0 is active in `web`.
    pub(super) fn with_active() -> Self {
        let mut world = Self::new();
        let id = world.deploy("1.0.0");
        world.finish(id);
        world
    }

    pub(super) fn object(&self, object: &str, kind: Kind, spec: &str) -> Command {
        Command::PutObject(PutObject {
            name: name(object),
            labels: BTreeMap::new(),
            spec: ObjectSpec::from_json(kind, spec).unwrap(),
            expected_revision: None,
            must_not_exist: false,
        })
    }

    pub(super) fn strategy(&mut self, json: &str) {
        self.strategy = serde_json::from_str(json).unwrap();
    }

    pub(super) fn apply(&mut self, item: Item) -> Applied {
        self.index += 1;
        let entry = Entry {
            at: self.now,
            items: vec![item],
        };
        let mut applied = apply(&mut self.state, self.index, &entry);
        if self.is_checked {
            assert_eq!(self.state.check(), Vec::<String>::new());
        }
        assert_eq!(applied.len(), 1);
        applied.remove(0)
    }

    pub(super) fn item(&self, actor: Actor, command: Command) -> Item {
        let id = RequestId::derived(self.now, "test", self.index, 0);
        Item {
            actor,
            request: RequestKey::Client(id),
            command: Box::new(command),
        }
    }

    pub(super) fn run_as(&mut self, actor: Actor, command: Command) -> Outcome {
        let item = self.item(actor, command);
        self.apply(item).outcome
    }

    pub(super) fn run(&mut self, command: Command) -> Outcome {
        self.run_as(user("ann"), command)
    }

    pub(super) fn must(&mut self, command: Command) -> Reply {
        self.run(command.clone())
            .unwrap_or_else(|rejection| panic!("{command:?}: {rejection}"))
    }

    /// Refused, with the state as before but for the audit log and the remembered request.
    pub(super) fn refused(&mut self, command: Command) -> Rejection {
        let before = self.state.clone();
        let rejection = self
            .run(command.clone())
            .expect_err(&format!("{command:?}"));
        self.unchanged_since(&before);
        rejection
    }

    pub(super) fn unchanged_since(&self, before: &State) {
        let mut now = self.state.clone();
        now.events = before.events.clone();
        now.last_hash = before.last_hash;
        now.archive = before.archive;
        now.requests = before.requests.clone();
        now.at = before.at;
        assert_eq!(now, *before);
    }

    pub(super) fn deploy_command(&self, scope: &str, release: &str) -> Command {
        Command::CreateDeployments(CreateDeployments {
            application: name("shop"),
            version: version(release),
            scopes: vec![name(scope)],
            strategy: None,
            overrides: self.strategy.clone(),
            labels: BTreeMap::new(),
            on_conflict: self.on_conflict,
        })
    }

    pub(super) fn deploy_to(&mut self, scope: &str, release: &str) -> Outcome {
        let command = self.deploy_command(scope, release);
        self.run(command)
    }

    pub(super) fn deploy(&mut self, release: &str) -> DeploymentId {
        one(self.deploy_to("web", release).unwrap())
    }

    pub(super) fn get(&self, id: DeploymentId) -> &Deployment {
        self.state.deployment(id).unwrap()
    }

    pub(super) fn scope(&self) -> &Scope {
        self.state.scope(&name("web")).unwrap()
    }

    pub(super) fn status(&self, id: DeploymentId) -> Status {
        self.get(id).status
    }

    pub(super) fn outcome(&self, id: DeploymentId) -> &str {
        self.get(id).outcome.as_deref().unwrap_or("")
    }

    pub(super) fn act(&mut self, id: DeploymentId, verb: Verb) -> Outcome {
        self.run(verb_command(id, verb))
    }

    pub(super) fn advance(&mut self, id: DeploymentId, action: Action) -> Outcome {
        let revision = self.get(id).meta.revision;
        let index = self.index;
        let item = Item {
            actor: Actor::System,
            request: RequestKey::Planner(Digest::of(format!("{id} {revision} {index}").as_bytes())),
            command: Box::new(Command::Advance(Advance {
                deployment: id,
                revision,
                action,
            })),
        };
        self.apply(item).outcome
    }

    pub(super) fn step(&mut self, id: DeploymentId, action: Action) {
        self.advance(id, action.clone())
            .unwrap_or_else(|rejection| panic!("{action:?}: {rejection}"));
    }

    pub(super) fn start(&mut self, id: DeploymentId) {
        let participants = names(&["a1", "a2", "a3"]);
        self.step(
            id,
            Action::Start {
                participants,
                gates: None,
            },
        );
    }

    /// From `PENDING` to `RUNNING`.
    pub(super) fn run_up(&mut self, id: DeploymentId) {
        self.start(id);
        self.step(id, Action::Staged);
        self.step(id, Action::InstancesReady);
    }

    /// From `RUNNING` to the end of the last step.
    pub(super) fn through_steps(&mut self, id: DeploymentId) {
        for _ in 0..200 {
            let traffic = self.get(id).traffic;
            if traffic.step.is_some_and(|step| step.reached_at.is_none()) {
                self.step(id, Action::StepReached);
            }
            if crate::deployment::steps::at_last(self.get(id)) {
                return;
            }
            self.step(id, Action::StepDone { unverified: false });
        }
        panic!("the steps do not end");
    }

    pub(super) fn settle(&mut self, id: DeploymentId) {
        let leftovers = Vec::new();
        self.step(id, Action::Settled { leftovers });
    }

    /// From `PENDING` to `FINALIZED`, without a hitch.
    pub(super) fn finish(&mut self, id: DeploymentId) {
        self.run_up(id);
        self.through_steps(id);
        self.step(id, Action::Finalize { unverified: false });
        self.step(id, Action::Drained);
        self.settle(id);
        assert_eq!(self.status(id), Status::Finalized);
    }

    /// Takes a `PENDING` deployment to a status by good moves.
    pub(super) fn bring(&mut self, id: DeploymentId, to: Status) {
        match to {
            Status::Pending => {}
            Status::CreatingApproval => self.step(id, require_approval(self.now)),
            Status::CreatingApprovalDenied => {
                self.bring(id, Status::CreatingApproval);
                self.step(id, Action::ApprovalDenied { expired: true });
            }
            Status::Creating => self.start(id),
            Status::WaitingForInstances => {
                self.start(id);
                self.step(id, Action::Staged);
            }
            Status::Running => self.run_up(id),
            Status::Finalizing => {
                self.run_up(id);
                self.through_steps(id);
                self.step(id, Action::Finalize { unverified: false });
            }
            Status::Finalized => self.finish(id),
            Status::Cancelling => {
                self.run_up(id);
                self.act(id, Verb::Cancel).unwrap();
            }
            Status::Cancelled => {
                self.act(id, Verb::Cancel).unwrap();
            }
            Status::RollingBack => {
                self.run_up(id);
                self.act(id, Verb::Rollback).unwrap();
            }
            Status::RolledBack => {
                self.bring(id, Status::RollingBack);
                self.settle(id);
            }
            Status::Failed => {
                self.start(id);
                let leftovers = Vec::new();
                self.step(id, Action::Expire { leftovers });
            }
            Status::Deleting => {
                self.finish(id);
                self.must(stop(false));
            }
            Status::Deleted => {
                self.bring(id, Status::Deleting);
                self.settle(id);
            }
        }
        assert_eq!(self.status(id), to);
    }

    /// A deployment of 2.0.0 in a status, and whether 1.0.0 was active before it.
    pub(super) fn at(status: Status, initial: bool) -> (Self, DeploymentId) {
        let mut world = if initial {
            Self::new()
        } else {
            Self::with_active()
        };
        let id = world.deploy("2.0.0");
        world.bring(id, status);
        (world, id)
    }

    /// Lets the present deadline pass and does what it declares.
    pub(super) fn expire(&mut self, id: DeploymentId) {
        let due = phase::due(self.get(id)).unwrap();
        self.now = self.now.max(due.at);
        let action = match due.expiry {
            phase::Expiry::Expire => Action::Expire {
                leftovers: Vec::new(),
            },
            phase::Expiry::TakeBack(kind) => Action::TakeBack {
                cause: cause(kind),
                evidence: Vec::new(),
            },
            phase::Expiry::Finalize => Action::Finalize { unverified: false },
            phase::Expiry::Halt(kind) => Action::Halt {
                cause: cause(kind),
                evidence: Vec::new(),
            },
        };
        self.step(id, action);
    }

    pub(super) fn wait(&mut self, span: Span) {
        self.now = self.now + span;
    }

    pub(super) fn is(&self, status: ScopeStatus) {
        assert_eq!(self.scope().status, status);
    }
}

pub(super) const SCOPE: &str = r#"{
    "application": "shop", "environment": "production", "port": 8080,
    "agents": "role=web", "dimensions": {"region": "eu"}
}"#;

pub(super) fn one(reply: Reply) -> DeploymentId {
    match reply {
        Reply::Deployments(ids) => *ids.first().unwrap(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn token() -> TokenId {
    "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap()
}

pub(super) fn init() -> InitCluster {
    InitCluster {
        cluster: "01ARZ3NDEKTSV4RRFFQ69G5FAW".parse::<ClusterId>().unwrap(),
        trust_domain: "tidegate.test".to_owned(),
        name: name("c1"),
        addresses: Addresses::default(),
        ca: CaRecord {
            certificate: "PEM".to_owned(),
            key: SealedKey {
                nonce: vec![0; 12],
                sealed: vec![1; 48],
            },
        },
        admin: name("ann"),
        level: 1,
    }
}

pub(super) fn join(agent: &str) -> Command {
    Command::Join(Join {
        token: token(),
        secret_hash: Digest::of(b"secret"),
        name: name(agent),
        facts: BTreeMap::new(),
        addresses: None,
    })
}

pub(super) fn create_release(release: &str) -> Command {
    Command::CreateRelease(CreateRelease {
        application: name("shop"),
        version: version(release),
        labels: BTreeMap::new(),
        spec: release_spec(release),
        stored: true,
    })
}

pub(super) fn verb_command(id: DeploymentId, verb: Verb) -> Command {
    Command::ActOnDeployment(ActOnDeployment {
        deployment: id,
        verb,
        expected_revision: None,
        reason: String::new(),
    })
}

pub(super) fn stop(cancel: bool) -> Command {
    Command::StopScope(crate::command::StopScope {
        name: name("web"),
        cancel,
    })
}

pub(super) fn require_approval(now: Timestamp) -> Action {
    Action::RequireApproval {
        policies: vec![(name("two-eyes"), 1)],
        expires_at: now + Span::from_hours(72),
        withdrawn: Vec::new(),
    }
}

pub(super) fn set_status(release: &str, status: ReleaseStatus) -> Command {
    Command::SetReleaseStatus(SetReleaseStatus {
        application: name("shop"),
        version: version(release),
        status,
        reason: "bad".to_owned(),
        expected_revision: None,
    })
}
