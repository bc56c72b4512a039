//! What a command is about, for the lines of the audit log.

use super::{Command, Verb};

impl Command {
    /// For audit lines: the stable name of the command, the kind of its object, and the object.
    pub fn subject(&self) -> (&'static str, &'static str, String) {
        match self {
            Self::InitCluster(c) => ("init_cluster", "cluster", c.cluster.to_string()),
            Self::PutObject(c) => ("put_object", c.spec.kind().as_str(), c.name.to_string()),
            Self::DeleteObject(c) => ("delete_object", c.kind.as_str(), c.name.to_string()),
            Self::CreateRelease(c) => (
                "create_release",
                "release",
                format!("{} {}", c.application, c.version),
            ),
            Self::SetReleaseStatus(c) => (
                "set_release_status",
                "release",
                format!("{} {}", c.application, c.version),
            ),
            Self::ReviewReleases(c) => (
                "review_releases",
                "release",
                format!("{} idle, {} collected", c.idle.len(), c.collected.len()),
            ),
            Self::CreateDeployments(c) => (
                "create_deployments",
                "release",
                format!("{} {}", c.application, c.version),
            ),
            Self::ActOnDeployment(c) => (c.verb.as_str(), "deployment", c.deployment.to_string()),
            Self::Decide(c) => ("decide", "deployment", c.deployment.to_string()),
            Self::StopScope(c) => ("stop_scope", "scope", c.name.to_string()),
            Self::StartScope(c) => ("start_scope", "scope", c.name.to_string()),
            Self::RestartScope(c) => ("restart_scope", "scope", c.name.to_string()),
            Self::RollbackScope(c) => ("rollback_scope", "scope", c.name.to_string()),
            Self::CreateToken(c) => ("create_token", "token", c.id.to_string()),
            Self::DeleteToken(c) => ("delete_token", "token", c.id.to_string()),
            Self::Join(c) => ("join", "token", c.token.to_string()),
            Self::UpdateAgent(c) => ("update_agent", "agent", c.name.to_string()),
            Self::RemoveAgent(c) => ("remove_agent", "agent", c.name.to_string()),
            Self::UpdateMember(c) => ("update_member", "member", c.node.to_string()),
            Self::RemoveMember(c) => ("remove_member", "member", c.node.to_string()),
            Self::RaiseLevel(c) => ("raise_level", "cluster", c.level.to_string()),
            Self::CreateSkip(c) => ("create_skip", "policy", c.rule.clone()),
            Self::DeleteSkip(c) => ("delete_skip", "skip", c.name.to_string()),
            Self::Freeze(_) => ("freeze", "cluster", String::new()),
            Self::Thaw(c) => ("thaw", "freeze", c.name.to_string()),
            Self::UpdatePerson(c) => ("update_person", "person", c.name.to_string()),
            Self::RemovePerson(c) => ("remove_person", "person", c.name.to_string()),
            Self::AutoDeploy(c) => ("auto_deploy", "scope", c.scope.to_string()),
            Self::Advance(c) => (c.action.as_str(), "deployment", c.deployment.to_string()),
            Self::CreateGroup(c) => (
                "create_group",
                "release",
                format!("{} {}", c.deployments.application, c.deployments.version),
            ),
            Self::ActOnGroup(c) => (c.verb.as_str(), "group", c.group.to_string()),
            Self::AddToGroup(c) => ("add_to_group", "group", c.group.to_string()),
            Self::DecideGroup(c) => ("decide", "group", c.group.to_string()),
            Self::AdvanceGroup(c) => (c.action.as_str(), "group", c.group.to_string()),
        }
    }
}

impl Verb {
    /// The word on the wire, without its argument.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Promote => "promote",
            Self::PromoteFull => "promote_full",
            Self::Traffic(_) => "traffic",
            Self::Finalize => "finalize",
            Self::Cancel => "cancel",
            Self::Rollback => "rollback",
            Self::Retry => "retry",
        }
    }
}
