//! The table RPC × role: what a person needs for each call. A call that stands nowhere here is
//! nobody's.
//!
//! [`Need::Object`] says that the role must be held where the object is. For calls that change
//! something that is asked of the command itself, in [`super::commands`], on its way to the log;
//! for calls that show something the service asks [`super::Sight`]. The gate asks before both
//! whether the role is held anywhere at all.

use tidegate_shared::spec::Role;

use Need::{Cluster, Object, Person, Somewhere};
use Role::{Admin, Deployer, Operator, Viewer};

/// What a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Whoever is in the cluster, without any role.
    Person,
    /// The role anywhere: what is shown or done belongs to no application.
    Somewhere(Role),
    /// The role where the object is.
    Object(Role),
    /// The role everywhere.
    Cluster(Role),
}

impl Need {
    /// The role; none: any person may.
    #[must_use]
    pub const fn role(self) -> Option<Role> {
        match self {
            Person => None,
            Somewhere(role) | Object(role) | Cluster(role) => Some(role),
        }
    }
}

/// The services of this package.
pub const PACKAGE: &str = "tidegate.control.v1.";

/// Every call of people: service and method, and what it needs.
pub const TABLE: &[(&str, Need)] = &[
    // By kind: parameters need a deployer, policies, teams and role bindings an administrator,
    // everything else an operator.
    ("Objects/Apply", Object(Deployer)),
    ("Objects/ApplyMany", Object(Deployer)),
    ("Objects/Delete", Object(Deployer)),
    ("Objects/Get", Object(Viewer)),
    ("Objects/List", Object(Viewer)),
    ("Releases/Create", Object(Deployer)),
    ("Releases/Get", Object(Viewer)),
    ("Releases/List", Object(Viewer)),
    ("Releases/SetStatus", Object(Deployer)),
    ("Releases/Blobs", Somewhere(Viewer)),
    ("Deployments/Create", Object(Deployer)),
    ("Deployments/Get", Object(Viewer)),
    ("Deployments/List", Object(Viewer)),
    ("Deployments/Watch", Object(Viewer)),
    ("Deployments/History", Object(Viewer)),
    ("Deployments/Act", Object(Deployer)),
    ("Approvals/List", Object(Viewer)),
    // Whose decision counts is the approval rule's to say.
    ("Approvals/Decide", Object(Viewer)),
    // Over approval rules and guardrails an administrator.
    ("Governance/CreateSkip", Object(Operator)),
    ("Governance/ListSkips", Somewhere(Viewer)),
    ("Governance/DeleteSkip", Object(Operator)),
    ("Governance/Freeze", Cluster(Operator)),
    ("Governance/ListFreezes", Somewhere(Viewer)),
    ("Governance/Thaw", Cluster(Operator)),
    ("Groups/Create", Object(Deployer)),
    ("Groups/List", Object(Viewer)),
    ("Groups/Get", Object(Viewer)),
    ("Groups/Watch", Object(Viewer)),
    ("Groups/Act", Object(Deployer)),
    ("Groups/Add", Object(Deployer)),
    ("Groups/Decide", Object(Viewer)),
    ("Groups/Explain", Object(Viewer)),
    ("Planning/Plan", Object(Viewer)),
    ("Scopes/View", Object(Viewer)),
    ("Scopes/Stop", Object(Operator)),
    ("Scopes/Start", Object(Deployer)),
    ("Scopes/Restart", Object(Deployer)),
    // To a rejected release, by force: an operator.
    ("Scopes/Rollback", Object(Deployer)),
    ("Scopes/Logs", Object(Viewer)),
    ("Scopes/Check", Object(Viewer)),
    ("Agents/List", Somewhere(Viewer)),
    ("Agents/Get", Somewhere(Viewer)),
    ("Agents/Remove", Cluster(Operator)),
    // For agents; for people and coordinators an administrator.
    ("Tokens/Create", Cluster(Operator)),
    ("Tokens/List", Cluster(Operator)),
    ("Tokens/Delete", Cluster(Operator)),
    ("People/List", Somewhere(Viewer)),
    ("People/Get", Somewhere(Viewer)),
    ("People/Update", Cluster(Admin)),
    ("People/Remove", Cluster(Admin)),
    ("Audit/List", Cluster(Viewer)),
    ("Audit/Export", Cluster(Viewer)),
    ("Cluster/Status", Somewhere(Viewer)),
    ("Cluster/TransferLeadership", Cluster(Operator)),
    ("Cluster/RemoveMember", Cluster(Admin)),
    ("Cluster/WhoAmI", Person),
    ("Cluster/RenewCertificate", Person),
    ("Cluster/Events", Cluster(Viewer)),
];

/// What the call at a path (`/package.Service/Method`) needs; none: it is nobody's.
#[must_use]
pub fn need(path: &str) -> Option<Need> {
    let path = path.strip_prefix('/')?;
    let Some(call) = path.strip_prefix(PACKAGE) else {
        // What describes the services, and whether they are well.
        let open = [
            "grpc.reflection.v1.",
            "grpc.reflection.v1alpha.",
            "grpc.health.v1.",
        ];
        return open
            .iter()
            .any(|prefix| path.starts_with(prefix))
            .then_some(Person);
    };
    let mut lines = TABLE.iter();
    lines.find(|(name, _)| *name == call).map(|(_, need)| *need)
}
