//! The commands, one file per group. Each takes its arguments and a [`Session`] and answers with
//! an exit status or a [`Failure`](crate::errors::Failure).

pub mod agent;
pub mod application;
pub mod apply;
pub mod approval;
pub mod audit;
pub mod cluster;
pub mod context;
pub mod deploy;
pub mod deployment;
pub mod diff;
pub mod environment;
pub mod export;
pub mod generate;
pub mod governance;
pub mod group;
pub mod init;
pub mod login;
pub mod logs;
pub mod objects;
pub mod parameter;
pub mod plan;
pub mod policy;
pub mod release;
pub mod role;
pub mod rollback;
pub mod rollout;
pub mod schema;
pub mod scope;
pub mod steering;
pub mod strategy;
pub mod team;
pub mod token;
pub mod user;
pub mod whoami;
pub mod wish;

use clap::{Args, Subcommand};
use tidegate_proto::control::v1 as api;

use crate::dev;
use crate::errors::Result;
use crate::follow::{Following, follow, follow_group, parse_timeout};
use crate::render;
use crate::session::Session;
use objects::ObjectCommand;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Publish a release to scopes
    Deploy(deploy::DeployArgs),
    /// Print the whole schedule of a deployment before anything is made
    Plan(plan::PlanArgs),
    /// What is in motion, why, and the verbs that steer it
    #[command(subcommand)]
    Deployment(deployment::DeploymentCommand),
    /// One release on its way to many scopes: one view, one handle
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Why is a deployment where it is? Every rule's answer, the one in the way first
    Explain(steering::ReferenceArgs<steering::Deployment>),
    /// Return a scope to a release that it had before
    Rollback(rollback::RollbackArgs),
    /// Make releases from files, list and reject them
    #[command(subcommand)]
    Release(release::ReleaseCommand),
    /// Deployments that wait for people
    #[command(subcommand)]
    Approval(approval::ApprovalCommand),
    /// Rules that are passed over for a while
    #[command(subcommand)]
    Skip(governance::SkipCommand),
    /// Hold everything up: nothing new starts
    Freeze(governance::FreezeArgs),
    /// End a freeze before its time
    Thaw(governance::ThawArgs),
    /// Places where an application runs
    #[command(subcommand)]
    Scope(Box<scope::ScopeCommand>),
    /// Programs that are deployed
    #[command(subcommand)]
    Application(ObjectCommand<application::ApplicationFlags>),
    /// development, staging, production …
    #[command(subcommand)]
    Environment(ObjectCommand<environment::EnvironmentFlags>),
    /// Reusable rules of how to roll out
    #[command(subcommand)]
    Strategy(ObjectCommand<strategy::StrategyFlags>),
    /// Rules of whether and when
    #[command(subcommand)]
    Policy(ObjectCommand<policy::PolicyFlags>),
    /// Configuration values of applications
    #[command(subcommand)]
    Parameter(Box<ObjectCommand<parameter::ParameterFlags>>),
    /// People, and the roles that they have everywhere
    #[command(subcommand)]
    User(user::UserCommand),
    /// Groups of people, for approvals and roles
    #[command(subcommand)]
    Team(ObjectCommand<team::TeamFlags>),
    /// Who has which role where
    #[command(subcommand)]
    Role(ObjectCommand<role::RoleFlags>),
    /// Make the cluster's objects as manifests describe them
    Apply(apply::ApplyArgs),
    /// In what the cluster's objects differ from manifests
    Diff(diff::DiffArgs),
    /// Print objects as manifests
    Export(export::ExportArgs),
    /// Write a commented set of manifests to begin with
    Init(init::InitArgs),
    /// Print the JSON Schema of manifests
    Schema,
    /// What instances print
    Logs(logs::LogsArgs),
    /// Hosts that run releases
    #[command(subcommand)]
    Agent(agent::AgentCommand),
    /// How newcomers get in
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// The coordinators themselves
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Who did what
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Get a certificate by a token
    Login(login::LoginArgs),
    /// Which clusters are known here, and which is in use
    #[command(subcommand)]
    Context(context::ContextCommand),
    /// As whom the cluster sees you
    Whoami,
    /// Run a whole cluster of real processes on this machine, with a demo if wanted
    Dev(dev::DevArgs),
    /// Print the completion script of a shell
    Completion(generate::CompletionArgs),
    /// Write manual pages
    Man(generate::ManArgs),
    /// The demo's application.
    #[command(hide = true)]
    DemoApp(dev::app::DemoAppArgs),
    /// A child of `dev` that ends with it.
    #[command(hide = true)]
    DevChild(dev::process::DevChildArgs),
}

/// Flags of commands that start something which takes a while.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Wait for the end: exit status 0 finalized, 3 rolled back, 4 denied, 5 failed or cancelled, 6 timed out
    #[arg(long)]
    pub wait: bool,
    /// With --wait: end the waiting after so long, such as 10m
    #[arg(long, value_name = "SPAN", requires = "wait")]
    pub timeout: Option<String>,
}

/// Why something is done.
#[derive(Debug, Args)]
pub struct ReasonArgs {
    /// Why, for the audit log
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub reason: String,
}

/// What is changed must be what was seen.
#[derive(Debug, Args)]
pub struct RevisionArgs {
    /// Only if it is still at this revision
    #[arg(
        long,
        value_name = "REVISION",
        default_value_t = 0,
        hide_default_value = true
    )]
    pub revision: u64,
}

impl WaitArgs {
    /// Refuses a wrong time limit before anything is done.
    ///
    /// # Errors
    /// It is no length of time.
    pub fn check(&self) -> Result<()> {
        self.timeout
            .as_deref()
            .map_or(Ok(()), |text| parse_timeout(text).map(|_| ()))
    }

    /// How to wait.
    ///
    /// # Errors
    /// The time limit is no length of time.
    pub fn following(&self) -> Result<Following> {
        Ok(Following {
            timeout: parse_timeout(self.timeout.as_deref().unwrap_or("0s"))?,
            picture: false,
        })
    }

    /// Tells that a group was started; waits for its end if that is wanted.
    ///
    /// # Errors
    /// No coordinator answers any more.
    pub async fn after_group(&self, session: &Session, group: &api::Group) -> Result<u8> {
        let output = session.output;
        if output.is_for_people() || self.wait {
            let next = if self.wait {
                String::new()
            } else {
                format!("\nnext: tidegate group watch {}", group.short_id)
            };
            let members = group.counts.unwrap_or_default().members;
            output.note(&format!(
                "group {} of {} {} to {members} scope{} is {}{next}",
                render::group::name(group),
                group.application,
                group.version,
                if members == 1 { "" } else { "s" },
                group.status().as_str_name(),
            ))?;
        }
        if !self.wait {
            if !output.is_for_people() {
                output.emit(group, |_| String::new())?;
            }
            return Ok(0);
        }
        follow_group(session, &group.id, self.following()?).await
    }

    /// Tells what was started; waits for its end if that is wanted. With several deployments the
    /// exit status is that of the worst.
    ///
    /// # Errors
    /// No coordinator answers any more.
    pub async fn after(&self, session: &Session, started: &[api::Deployment]) -> Result<u8> {
        let output = session.output;
        if output.is_for_people() || self.wait {
            for deployment in started {
                let next = if self.wait {
                    String::new()
                } else {
                    format!("\nnext: tidegate deployment watch {}", deployment.short_id)
                };
                output.note(&format!(
                    "deployment {} of {} {} to {} is {}{next}",
                    deployment.short_id,
                    deployment.application,
                    deployment.version,
                    deployment.scope,
                    deployment.status().as_str_name(),
                ))?;
            }
        }
        if !self.wait {
            if !output.is_for_people() {
                let answer = api::ListDeploymentsResponse {
                    deployments: started.to_vec(),
                    next_page_token: String::new(),
                };
                match started {
                    [only] => output.emit(only, |_| String::new())?,
                    _ => output.emit(&answer, |_| String::new())?,
                }
            }
            return Ok(0);
        }
        let following = self.following()?;
        let mut worst = render::EXIT_FINALIZED;
        for deployment in started {
            worst = worst.max(follow(session, &deployment.id, following).await?);
        }
        Ok(worst)
    }
}

impl Command {
    /// Does it; answers with the exit status.
    ///
    /// # Errors
    /// What is to be told to the person.
    pub async fn run(self, session: &Session) -> Result<u8> {
        match self {
            Self::Deploy(args) => return args.run(session).await,
            Self::Plan(args) => return args.run(session).await,
            Self::Deployment(command) => return command.run(session).await,
            Self::Group(command) => return command.run(session).await,
            Self::Explain(args) => {
                let command = deployment::DeploymentCommand::Explain(args);
                return command.run(session).await;
            }
            Self::Rollback(args) => return args.run(session).await,
            Self::Scope(command) => return command.run(session).await,
            Self::Diff(args) => return args.run(session).await,
            Self::Dev(args) => return dev::run(args, session).await,
            Self::Release(command) => command.run(session).await?,
            Self::Approval(command) => command.run(session).await?,
            Self::Skip(command) => command.run(session).await?,
            Self::Freeze(args) => args.run(session).await?,
            Self::Thaw(args) => args.run(session).await?,
            Self::Application(command) => command.run(session).await?,
            Self::Environment(command) => command.run(session).await?,
            Self::Strategy(command) => command.run(session).await?,
            Self::Policy(command) => command.run(session).await?,
            Self::Parameter(command) => (*command).run(session).await?,
            Self::User(command) => command.run(session).await?,
            Self::Team(command) => command.run(session).await?,
            Self::Role(command) => command.run(session).await?,
            Self::Apply(args) => args.run(session).await?,
            Self::Export(args) => args.run(session).await?,
            Self::Init(args) => args.run(session)?,
            Self::Schema => schema::run(session)?,
            Self::Logs(args) => args.run(session).await?,
            Self::Agent(command) => command.run(session).await?,
            Self::Token(command) => command.run(session).await?,
            Self::Cluster(command) => command.run(session).await?,
            Self::Audit(command) => command.run(session).await?,
            Self::Login(args) => args.run(session).await?,
            Self::Context(command) => command.run(session)?,
            Self::Whoami => whoami::run(session).await?,
            Self::Completion(args) => args.run(crate::command(), session.output)?,
            Self::Man(args) => args.run(crate::command(), session.output)?,
            Self::DemoApp(args) => dev::app::run(args).await?,
            Self::DevChild(args) => return Err(args.run()),
        }
        Ok(0)
    }
}
