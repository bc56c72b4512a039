//! What needs a newer program on every coordinator: a command that some member cannot read must not
//! reach the log, where it would stop that member.
//!
//! Asked of every command that a front takes, before anybody is asked for a role. What the planner
//! proposes by itself follows from such commands alone. Exhaustive, so that a new command has to say.

use tidegate_coordinator_core::people::ROLES_LEVEL;
use tidegate_coordinator_core::policy::REFERENCES_LEVEL;
use tidegate_coordinator_core::{Command, Rejection, State};
use tidegate_shared::error::Reason;
use tidegate_shared::spec::{ObjectSpec, PolicySpec, StrategySpec};

/// The level from which on a command can be read, and what of it is new there.
type Needed = Option<(u32, &'static str)>;

/// Groups, checks and `auto_deploy` came with the level of roles.
const GROUPS: (u32, &str) = (ROLES_LEVEL, "there are deployment groups");
const CHECKS: (u32, &str) = (ROLES_LEVEL, "there are checks between steps (verification)");
const AUTO_DEPLOY: (u32, &str) = (
    ROLES_LEVEL,
    "scopes take releases by themselves (auto_deploy)",
);
const ROLES: (u32, &str) = (ROLES_LEVEL, "people have roles");
const REVISIONS: (u32, &str) = (
    REFERENCES_LEVEL,
    "members are added to a group and decided at its revision (expected_revision)",
);
const RULE_ORDER: (u32, &str) = (
    REFERENCES_LEVEL,
    "gradual rollout rules have an order of their own (gradual_rollout.order)",
);

/// Whether every member of the cluster can read a command.
///
/// # Errors
/// Some are too old for it.
pub fn is_understood(state: &State, command: &Command) -> Result<(), Rejection> {
    let Some((level, what)) = needed(command).filter(|(level, _)| !state.is_at(*level)) else {
        return Ok(());
    };
    Err(Rejection::new(
        Reason::NotSupported,
        format!("{what} from cluster level {level} on: upgrade every coordinator first"),
    ))
}

fn needed(command: &Command) -> Needed {
    match command {
        Command::UpdatePerson(_) | Command::RemovePerson(_) => Some(ROLES),
        Command::CreateToken(token) => (!token.roles.is_empty()).then_some(ROLES),
        Command::PutObject(put) => object(&put.spec),
        Command::CreateDeployments(wish) => strategy(&wish.overrides),
        Command::AddToGroup(add) if add.expected_revision.is_some() => Some(REVISIONS),
        Command::DecideGroup(decide) if decide.expected_revision.is_some() => Some(REVISIONS),
        Command::CreateGroup(_)
        | Command::ActOnGroup(_)
        | Command::AddToGroup(_)
        | Command::DecideGroup(_) => Some(GROUPS),
        Command::InitCluster(_)
        | Command::DeleteObject(_)
        | Command::CreateRelease(_)
        | Command::SetReleaseStatus(_)
        | Command::ReviewReleases(_)
        | Command::ActOnDeployment(_)
        | Command::Decide(_)
        | Command::StopScope(_)
        | Command::StartScope(_)
        | Command::RestartScope(_)
        | Command::RollbackScope(_)
        | Command::DeleteToken(_)
        | Command::Join(_)
        | Command::UpdateAgent(_)
        | Command::RemoveAgent(_)
        | Command::UpdateMember(_)
        | Command::RemoveMember(_)
        | Command::RaiseLevel(_)
        | Command::CreateSkip(_)
        | Command::DeleteSkip(_)
        | Command::Freeze(_)
        | Command::Thaw(_)
        | Command::AutoDeploy(_)
        | Command::AdvanceGroup(_)
        | Command::Advance(_) => None,
    }
}

fn object(spec: &ObjectSpec) -> Needed {
    match spec {
        ObjectSpec::Team(_) | ObjectSpec::RoleBinding(_) => Some(ROLES),
        ObjectSpec::Scope(spec) => spec.auto_deploy.is_some().then_some(AUTO_DEPLOY),
        ObjectSpec::Strategy(spec) => strategy(spec),
        ObjectSpec::Policy(spec) => policy(spec),
        ObjectSpec::Application(_) | ObjectSpec::Environment(_) | ObjectSpec::Parameter(_) => None,
    }
}

fn strategy(spec: &StrategySpec) -> Needed {
    let checks = spec.verification.is_some().then_some(CHECKS);
    checks.or_else(|| spec.rollout.is_some().then_some(GROUPS))
}

fn policy(spec: &PolicySpec) -> Needed {
    let rule = spec.gradual_rollout.as_ref()?;
    rule.order.is_some().then_some(RULE_ORDER)
}
