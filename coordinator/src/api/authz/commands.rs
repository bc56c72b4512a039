//! What a person needs for each command, asked on its way to the log: no service can forget it.
//! Exhaustive, so that a new command has to say.

use tidegate_coordinator_core::command::{
    CreateSkip, DecideGroup, DeleteObject, PutObject, TokenKind,
};
use tidegate_coordinator_core::people::{Place, Reach};
use tidegate_coordinator_core::policy::{approval, skip};
use tidegate_coordinator_core::state::Status;
use tidegate_coordinator_core::{Command, Rejection, State};
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, GroupId, Name};
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{Kind, ObjectSpec, Role};
use tidegate_shared::time::Timestamp;

/// Roles, each with the place where it is needed; all of them.
pub type Needs = Vec<(Role, Place)>;

/// What a person needs to give a command.
#[must_use]
pub fn needs(state: &State, command: &Command) -> Needs {
    use Role::{Admin, Deployer, Operator, Viewer};
    let cluster = |role| vec![(role, Place::Cluster)];
    let scope = |role, name: &Name| vec![(role, Place::Scope(name.clone()))];
    match command {
        Command::PutObject(command) => put(state, command),
        Command::DeleteObject(command) => delete(state, command),
        Command::CreateRelease(command) => {
            let application = command.application.clone();
            vec![(Deployer, Place::Application(application, Reach::Any))]
        }
        Command::SetReleaseStatus(command) => {
            let application = command.application.clone();
            vec![(Deployer, Place::Application(application, Reach::Every))]
        }
        Command::CreateDeployments(command) => each(Deployer, &command.scopes),
        Command::CreateGroup(command) => each(Deployer, &command.deployments.scopes),
        Command::AddToGroup(command) => each(Deployer, &command.scopes),
        Command::ActOnGroup(command) => members(state, Deployer, command.group),
        Command::DecideGroup(command) => members(state, Viewer, command.group),
        Command::ActOnDeployment(command) => deployment(state, Deployer, command.deployment),
        Command::Decide(command) => deployment(state, Viewer, command.deployment),
        Command::StopScope(command) => scope(Operator, &command.name),
        Command::StartScope(command) | Command::RestartScope(command) => {
            scope(Deployer, &command.name)
        }
        Command::RollbackScope(command) => {
            let role = if command.force { Operator } else { Deployer };
            scope(role, &command.name)
        }
        Command::CreateToken(command) => cluster(inviter(command.kind)),
        Command::DeleteToken(command) => {
            let token = state.tokens.get(&command.id);
            cluster(token.map_or(Operator, |token| inviter(token.kind)))
        }
        Command::RemoveAgent(_) | Command::Freeze(_) | Command::Thaw(_) => cluster(Operator),
        Command::CreateSkip(command) => skipping(state, command),
        Command::DeleteSkip(command) => match state.skips.get(&command.name) {
            Some(found) => vec![(
                Operator,
                skip_place(found.scope.as_ref(), found.application.as_ref()),
            )],
            None => vec![(Operator, Place::Somewhere)],
        },
        Command::RemoveMember(_) | Command::UpdatePerson(_) | Command::RemovePerson(_) => {
            cluster(Admin)
        }
        // Not people's: of the cluster's own parts, and of newcomers.
        Command::InitCluster(_)
        | Command::ReviewReleases(_)
        | Command::Join(_)
        | Command::UpdateAgent(_)
        | Command::UpdateMember(_)
        | Command::RaiseLevel(_)
        | Command::AutoDeploy(_)
        | Command::AdvanceGroup(_)
        | Command::Advance(_) => cluster(Admin),
    }
}

fn each(role: Role, scopes: &[Name]) -> Needs {
    let scopes = scopes.iter();
    scopes
        .map(|name| (role, Place::Scope(name.clone())))
        .collect()
}

/// Who may make and take back tokens of a kind.
const fn inviter(kind: TokenKind) -> Role {
    match kind {
        TokenKind::Agent => Role::Operator,
        TokenKind::User | TokenKind::Coordinator => Role::Admin,
    }
}

fn deployment(state: &State, role: Role, id: DeploymentId) -> Needs {
    let place = match state.deployments.get(&id) {
        Some(found) => super::place_of(state, &found.origin),
        None => Place::Somewhere,
    };
    vec![(role, place)]
}

/// What is done to a group is done to all of its members.
fn members(state: &State, role: Role, id: GroupId) -> Needs {
    let scopes = state
        .groups
        .get(&id)
        .into_iter()
        .flat_map(|group| group.scopes.keys());
    let needs: Needs = scopes
        .map(|name| (role, Place::Scope(name.clone())))
        .collect();
    match needs.is_empty() {
        true => vec![(role, Place::Somewhere)],
        false => needs,
    }
}

fn put(state: &State, command: &PutObject) -> Needs {
    let name = &command.name;
    match &command.spec {
        ObjectSpec::Scope(spec) => {
            let labels: Labels = command.labels.clone();
            let place = Place::NewScope(name.clone(), labels, Box::new(spec.clone()));
            vec![(Role::Operator, place)]
        }
        ObjectSpec::Parameter(spec) => {
            let mut needs = present_target(state, name);
            needs.push((Role::Deployer, Place::Target(Box::new(spec.target.clone()))));
            needs
        }
        ObjectSpec::Application(_)
        | ObjectSpec::Environment(_)
        | ObjectSpec::Strategy(_)
        | ObjectSpec::Policy(_)
        | ObjectSpec::Team(_)
        | ObjectSpec::RoleBinding(_) => vec![owning(command.spec.kind(), name)],
    }
}

fn delete(state: &State, command: &DeleteObject) -> Needs {
    match command.kind {
        Kind::Parameter => present_target(state, &command.name),
        Kind::Application
        | Kind::Environment
        | Kind::Strategy
        | Kind::Scope
        | Kind::Policy
        | Kind::Team
        | Kind::RoleBinding => vec![owning(command.kind, &command.name)],
    }
}

/// Who may write an object of a kind, where that does not hang on its spec.
fn owning(kind: Kind, name: &Name) -> (Role, Place) {
    let name = name.clone();
    match kind {
        Kind::Application => (Role::Operator, Place::Application(name, Reach::Every)),
        Kind::Environment => (Role::Operator, Place::Environment(name, Reach::Every)),
        Kind::Scope => (Role::Operator, Place::Scope(name)),
        Kind::Strategy => (Role::Operator, Place::Cluster),
        Kind::Parameter => (Role::Deployer, Place::Somewhere),
        // Who may write these could give itself everything.
        Kind::Policy | Kind::Team | Kind::RoleBinding => (Role::Admin, Place::Cluster),
    }
}

fn present_target(state: &State, name: &Name) -> Needs {
    let present = state.parameters.get(name);
    let target = present.map(|object| Box::new(object.spec.target.clone()));
    let place = target.map_or(Place::Somewhere, Place::Target);
    vec![(Role::Deployer, place)]
}

/// Who passes over what others have to agree to must be trusted with everything.
fn skipping(state: &State, command: &CreateSkip) -> Needs {
    let (policy, rest) = match command.rule.split_once('/') {
        Some((policy, rest)) => (policy, Some(rest)),
        None => (command.rule.as_str(), None),
    };
    let policy = Name::new(policy).ok();
    let policy = policy.and_then(|name| state.policies.get(&name));
    let rules = policy.map_or(Vec::new(), |policy| policy.spec.rule_names());
    let passed = |rule: &String| rest.is_none_or(|rest| skip::covers(rest, rule));
    let weighty = ["approval", "guardrail"];
    let role = match rules
        .iter()
        .any(|rule| passed(rule) && weighty.contains(&rule.as_str()))
    {
        true => Role::Admin,
        false => Role::Operator,
    };
    let place = skip_place(command.scope.as_ref(), command.application.as_ref());
    vec![(role, place)]
}

fn skip_place(scope: Option<&Name>, application: Option<&Name>) -> Place {
    match (scope, application) {
        (Some(scope), _) => Place::Scope(scope.clone()),
        (None, Some(name)) => Place::Application(name.clone(), Reach::Every),
        (None, None) => Place::Cluster,
    }
}

/// Whether an approval rule that is waited for asks this person; what does not wait is left to the
/// state machine to refuse.
///
/// # Errors
/// It does not; says whom it asks.
pub fn may_decide(
    state: &State,
    user: &Name,
    deployment: DeploymentId,
    now: Timestamp,
) -> Result<(), Rejection> {
    let Some(found) = state.deployments.get(&deployment) else {
        return Ok(());
    };
    let waits = found.status == Status::CreatingApproval && found.required.is_some();
    if !waits || approval::may_decide(state, found, user, now) {
        return Ok(());
    }
    Err(Rejection::new(
        Reason::RoleNeeded,
        format!(
            "user \"{user}\" may not decide about deployment {} of {} {} to scope \"{}\": {}; {}",
            found.short,
            found.origin.application,
            found.origin.version,
            found.origin.scope,
            approval::asked_of(state, found),
            super::whom_to_ask(state),
        ),
    ))
}

/// As [`may_decide`], for all members of a group: the state machine leaves out whom no rule asks, and
/// cannot know where a role holds.
///
/// # Errors
/// A member whose rules would ask this person elsewhere only.
pub fn may_decide_group(
    state: &State,
    user: &Name,
    command: &DecideGroup,
    now: Timestamp,
) -> Result<(), Rejection> {
    let group = state.groups.get(&command.group);
    let members = group.into_iter().flat_map(|group| group.members.values());
    for member in members {
        let found = state.deployments.get(&member.deployment);
        let asked = found.is_some_and(|found| approval::could_decide(state, found, user));
        if asked {
            may_decide(state, user, member.deployment, now)?;
        }
    }
    Ok(())
}
