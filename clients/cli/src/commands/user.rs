//! `tidegate user`: people of the cluster and their own roles.

use clap::{Args, Subcommand};
use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;
use tidegate_shared::spec::Role;

use super::objects::{DeleteArgs, ListArgs, NameArgs};
use super::{RevisionArgs, token};
use crate::errors::{Failure, Result};
use crate::output::{Table, Tone, dash, pairs};
use crate::session::{self, Session};
use crate::{entropy, names, pages, rpc, time};

/// The verbs of a person.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// List them with their roles and teams
    List(ListArgs),
    /// Show one: every role, where it holds and where it comes from
    Get(NameArgs),
    /// Invite one: makes a token, which is shown once
    Create(token::InviteArgs),
    /// Change its own roles, which hold everywhere, and its labels
    Update(UpdateArgs),
    /// Take one out of the cluster; its certificate is worth nothing any more
    Delete(DeleteArgs),
}

/// What to change.
#[derive(Debug, Args)]
#[command(
    after_help = "Roles that hold in some places only are role bindings: see `tidegate role create --help`.\n\nExamples:\n  tidegate user update ann --role operator --role approver\n  tidegate user update bob --no-roles"
)]
pub struct UpdateArgs {
    /// Its name
    name: String,
    /// viewer, deployer, approver, operator or admin, everywhere; all of them
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// Take all its own roles
    #[arg(long, conflicts_with = "roles")]
    no_roles: bool,
    /// Labels
    #[arg(long = "label", value_name = "K=V")]
    labels: Vec<String>,
    /// At which revision.
    #[command(flatten)]
    expected: RevisionArgs,
}

/// Refuses a word that is no role before anything is sent.
///
/// # Errors
/// Which one.
pub fn check_roles(words: &[String]) -> Result<()> {
    for word in words {
        word.parse::<Role>()
            .map_err(|error| Failure::usage(format!("--role: {error}")))?;
    }
    Ok(())
}

impl UserCommand {
    /// Does it.
    ///
    /// # Errors
    /// A wrong flag, or the cluster's.
    pub async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::List(args) => list(session, &args.selector).await,
            Self::Get(args) => get(session, &args.name).await,
            Self::Create(args) => token::invite(session, args).await,
            Self::Update(args) => update(session, args).await,
            Self::Delete(args) => delete(session, &args).await,
        }
    }
}

async fn all(session: &Session, selector: &str) -> Result<Vec<api::Person>> {
    let client = session.client().await?;
    let people = pages::gather(0, |page| {
        let request = api::ListPeopleRequest {
            selector: selector.to_owned(),
            page,
        };
        async move {
            let answer = rpc!(client, people_client::PeopleClient, list, request).await?;
            Ok((answer.people, answer.next_page_token))
        }
    });
    people.await
}

async fn list(session: &Session, selector: &str) -> Result<()> {
    let answer = api::ListPeopleResponse {
        people: all(session, selector).await?,
        next_page_token: String::new(),
    };
    session.output.emit(&answer, |wide| {
        let mut headings = vec!["NAME", "ROLES", "IN PLACES", "TEAMS", "AGE"];
        if wide {
            headings.extend(["LABELS", "INVITED BY", "REVISION"]);
        }
        let now = time::now_ms();
        let mut table = Table::new(&headings);
        for person in &answer.people {
            let metadata = person.metadata.clone().unwrap_or_default();
            let bound = person.grants.iter().filter(|grant| grant.via != "own");
            let bound: Vec<&str> = bound.map(|grant| grant.role.as_str()).collect();
            let mut cells = vec![
                (Tone::Strong, metadata.name),
                (Tone::Plain, dash(&person.roles.join(",")).to_owned()),
                (Tone::Plain, dash(&bound.join(",")).to_owned()),
                (Tone::Plain, dash(&person.teams.join(",")).to_owned()),
                (Tone::Faint, time::age(metadata.created_at_ms, now)),
            ];
            if wide {
                cells.push((Tone::Plain, pairs(&metadata.labels)));
                cells.push((Tone::Plain, dash(&metadata.created_by).to_owned()));
                cells.push((Tone::Plain, metadata.revision.to_string()));
            }
            table.toned(cells);
        }
        table.render(session.output, "Nobody matches.")
    })
}

/// "Did you mean" for a person.
async fn suggest(session: &Session, failure: Failure, name: &str) -> Failure {
    if !failure.is(Reason::NotFound) {
        return failure;
    }
    let Ok(people) = all(session, "").await else {
        return failure;
    };
    let present = people.iter().filter_map(|person| person.metadata.as_ref());
    match names::nearest(name, present.map(|metadata| metadata.name.as_str())) {
        Some(near) => failure.hint(format!(
            "did you mean \"{near}\"? `tidegate user list` shows all"
        )),
        None => failure.hint("`tidegate user list` shows who is there"),
    }
}

async fn fetch(session: &Session, name: &str) -> Result<api::Person> {
    let client = session.client().await?;
    let request = api::GetPersonRequest {
        name: name.to_owned(),
    };
    match rpc!(client, people_client::PeopleClient, get, request).await {
        Ok(person) => Ok(person),
        Err(failure) => Err(suggest(session, failure, name).await),
    }
}

/// Roles as lines: role, where, where from.
pub fn grants_told(session: &Session, grants: &[api::RoleGrant]) -> String {
    let mut table = Table::new(&["ROLE", "WHERE", "FROM"]);
    for grant in grants {
        let place = match grant.selector.as_str() {
            "" => "everywhere",
            selector => selector,
        };
        table.row([grant.role.as_str(), place, grant.via.as_str()]);
    }
    table.render(session.output, "No role: only who it is can be asked.")
}

async fn get(session: &Session, name: &str) -> Result<()> {
    let person = fetch(session, name).await?;
    session.output.emit(&person, |_| {
        let metadata = person.metadata.clone().unwrap_or_default();
        let field = |name: &str, value: &str| session.output.field(name, dash(value));
        [
            field("user", &metadata.name),
            field("teams", &person.teams.join(", ")),
            field("labels", &pairs(&metadata.labels)),
            field("joined", &time::stamp(metadata.created_at_ms)),
            field("invited by", &metadata.created_by),
            field("revision", &metadata.revision.to_string()),
            grants_told(session, &person.grants),
        ]
        .concat()
    })
}

async fn update(session: &Session, args: UpdateArgs) -> Result<()> {
    check_roles(&args.roles)?;
    if args.roles.is_empty() && !args.no_roles && args.labels.is_empty() {
        return Err(Failure::usage("nothing is to change")
            .hint("say --role ROLE, --no-roles or --label K=V"));
    }
    let present = fetch(session, &args.name).await?;
    let metadata = present.metadata.clone().unwrap_or_default();
    let mut labels = metadata.labels;
    labels.extend(session::pairs("--label", &args.labels, true)?);
    let roles = match (args.roles.is_empty(), args.no_roles) {
        (true, false) => present.roles,
        (_, _) => args.roles,
    };
    let request = api::UpdatePersonRequest {
        request_id: entropy::request_id()?.to_string(),
        // What was read must be what is changed, or the flags would undo another change.
        expected_revision: match args.expected.revision {
            0 => metadata.revision,
            revision => revision,
        },
        name: args.name.clone(),
        roles,
        labels,
    };
    let client = session.client().await?;
    let person = rpc!(client, people_client::PeopleClient, update, request).await?;
    session.output.emit(&person, |_| {
        let roles = match person.roles.as_slice() {
            [] => "no role of its own".to_owned(),
            roles => format!("{} everywhere", roles.join(", ")),
        };
        format!("user \"{}\" has {roles} now\n", args.name)
    })
}

async fn delete(session: &Session, args: &DeleteArgs) -> Result<()> {
    let client = session.client().await?;
    let request = api::RemovePersonRequest {
        request_id: entropy::request_id()?.to_string(),
        expected_revision: args.expected.revision,
        name: args.name.clone(),
    };
    match rpc!(client, people_client::PeopleClient, remove, request).await {
        Ok(answer) => session.output.emit(&answer, |_| {
            format!(
                "user \"{}\" deleted; its certificate is worth nothing any more\n",
                args.name
            )
        }),
        Err(failure) => Err(suggest(session, failure, &args.name).await),
    }
}
