//! `tidegate group`: one release on its way to many scopes, and the verbs that steer all of it.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use tidegate_proto::control::v1 as api;
use tidegate_proto::control::v1::act_request::Verb;
use tidegate_shared::error::Reason;
use tidegate_shared::spec::Kind;

use super::RevisionArgs;
use super::deploy::tell_left;
use super::steering::{
    ActArgs, ActWaitArgs, Group, PromoteArgs, ReferenceArgs, TrafficArgs, UnderWayArgs, WatchArgs,
};
use super::wish::SelectionArgs;
use crate::errors::{Failure, Result};
use crate::follow::follow_group;
use crate::output::{Output, Table, Tone, printable};
use crate::render::group as page;
use crate::session::Session;
use crate::{entropy, names, pages, render, rpc, time};

/// Members that a verb left as they are, in its answer for people.
const MOST_LEFT: usize = 20;

/// The verbs of a group. GROUP is its name, its id or its short id. Each member stays a deployment of
/// its own: `tidegate deployment …` steers it alone.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "What a status means:\n  PENDING            no member has started yet\n  CREATING_APPROVAL  every member waits for an approval\n  RUNNING            some member is on its way, or has still to start\n  FINALIZING         all are at their last phase or at an end: no way back until the end\n  FINALIZED          every member is at an end; succeeded, mixed or failed\n  ROLLED_BACK, CANCELLED, CREATING_APPROVAL_DENIED: the whole group was\n\nA verb reaches the members whose status allows it and names the others.\n  cancel    only while every member is RUNNING\n  rollback  unless the group is FINALIZING: turns back what runs, cancels what waits, returns what is finalized\n\nExamples:\n  tidegate group watch spring\n  tidegate group explain spring            what is in the way, of the group and of each member\n  tidegate group pause spring --reason 'looking at latency'\n  tidegate group rollback spring --wait"
)]
pub enum GroupCommand {
    /// List them, newest first
    List(UnderWayArgs),
    /// Show one: what is in the way, budget, waves, one row per member
    Get(ReferenceArgs<Group>),
    /// Watch one live until its end; exit status as with deploy --wait
    Watch(WatchArgs<Group>),
    /// Why is it where it is? The group's own gates and each member's first one
    Explain(ReferenceArgs<Group>),
    /// Stop every member's clock, and start no further member
    Pause(ActArgs<Group>),
    /// Go on
    Resume(ActArgs<Group>),
    /// End the present step of every member that runs
    Promote(PromoteArgs<Group>),
    /// Set the share of the new version in every member that runs, and pause there
    Traffic(TrafficArgs<Group>),
    /// Take all of it back while every member is RUNNING
    Cancel(ActWaitArgs<Group>),
    /// Everything to the version before, finalized members too
    Rollback(ActWaitArgs<Group>),
    /// End the bake of every member that has come so far
    Finalize(ActWaitArgs<Group>),
    /// Add scopes; they start after all others
    Add(AddArgs),
    /// Agree to every member that waits for approval
    Approve(ActArgs<Group>),
    /// Refuse every member that waits for approval; that is final
    Deny(ActArgs<Group>),
}

/// What to add.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// To which one.
    #[command(flatten)]
    of: ReferenceArgs<Group>,
    /// What to add.
    #[command(flatten)]
    selection: SelectionArgs,
    /// At which revision.
    #[command(flatten)]
    expected: RevisionArgs,
}

impl GroupCommand {
    /// Does it; answers with the exit status.
    ///
    /// # Errors
    /// A wrong flag, or the cluster's refusal.
    pub async fn run(self, session: &Session) -> Result<u8> {
        match self {
            Self::List(args) => list(session, args).await?,
            Self::Get(args) => {
                let found = get(session, &args.reference).await?;
                let output = session.output;
                output.emit(&found, |wide| page::page(output, &found, wide))?;
            }
            Self::Watch(args) => return watch(session, &args).await,
            Self::Explain(args) => explain(session, &args).await?,
            Self::Pause(args) => act(session, &args, Verb::Pause, 0, "paused").await?,
            Self::Resume(args) => act(session, &args, Verb::Resume, 0, "resumed").await?,
            Self::Promote(args) => act(session, &args.act, args.verb(), 0, "promoted").await?,
            Self::Traffic(args) => traffic(session, &args).await?,
            Self::Cancel(args) => {
                return act_and_wait(session, &args, Verb::Cancel, "being cancelled").await;
            }
            Self::Rollback(args) => {
                return act_and_wait(session, &args, Verb::Rollback, "being rolled back").await;
            }
            Self::Finalize(args) => {
                return act_and_wait(session, &args, Verb::Finalize, "being finalized").await;
            }
            Self::Add(args) => add(session, &args).await?,
            Self::Approve(args) => decide(session, &args, true).await?,
            Self::Deny(args) => decide(session, &args, false).await?,
        }
        Ok(0)
    }
}

async fn list(session: &Session, args: UnderWayArgs) -> Result<()> {
    let client = session.client().await?;
    let groups = pages::gather(args.limit, |page| {
        let request = api::ListGroupsRequest {
            application: args.application.clone(),
            unfinished: args.unfinished,
            page,
        };
        async move {
            let answer = rpc!(client, groups_client::GroupsClient, list, request).await?;
            Ok((answer.groups, answer.next_page_token))
        }
    });
    let groups = match groups.await {
        Ok(groups) => groups,
        Err(failure) => {
            let given = [(Kind::Application, args.application.as_str())];
            return Err(session.suggest(failure, &given).await);
        }
    };
    let answer = api::ListGroupsResponse {
        groups,
        next_page_token: String::new(),
    };
    session.output.emit(&answer, |wide| {
        let empty =
            "No group. Start one with `tidegate deploy APP VERSION --environment ENVIRONMENT`.";
        page::list(session.output, &answer.groups, wide, empty)
    })
}

async fn get(session: &Session, reference: &str) -> Result<api::Group> {
    let client = session.client().await?;
    let request = api::GetGroupRequest {
        id: reference.to_owned(),
    };
    match rpc!(client, groups_client::GroupsClient, get, request).await {
        Ok(found) => Ok(found),
        Err(failure) => Err(suggest(session, failure, reference).await),
    }
}

/// Adds the group that is perhaps meant to a refusal that says not found.
async fn suggest(session: &Session, failure: Failure, reference: &str) -> Failure {
    if !failure.is(Reason::NotFound) || !failure.message().contains("there is no group") {
        return failure;
    }
    let failure = failure.hint("`tidegate group list` shows what is there");
    let Ok(client) = session.client().await else {
        return failure;
    };
    let request = api::ListGroupsRequest {
        page: Some(api::Page {
            size: pages::size(0),
            token: String::new(),
        }),
        ..api::ListGroupsRequest::default()
    };
    let Ok(answer) = rpc!(client, groups_client::GroupsClient, list, request).await else {
        return failure;
    };
    let present: Vec<String> = answer.groups.iter().map(page::name).collect();
    if present.is_empty() {
        return failure
            .hint("there is no group yet: `tidegate deploy` makes one of several scopes");
    }
    match names::nearest(reference, present.iter().map(String::as_str)) {
        Some(near) => failure.hint(format!(
            "did you mean \"{near}\"? `tidegate group list` shows all"
        )),
        None => failure,
    }
}

async fn watch(session: &Session, args: &WatchArgs<Group>) -> Result<u8> {
    let following = args.following()?;
    let found = get(session, args.reference()).await?;
    follow_group(session, &found.id, following).await
}

async fn explain(session: &Session, args: &ReferenceArgs<Group>) -> Result<()> {
    let client = session.client().await?;
    let request = api::GetGroupRequest {
        id: args.reference.clone(),
    };
    let found = match rpc!(client, groups_client::GroupsClient, explain, request).await {
        Ok(found) => found,
        Err(failure) => return Err(suggest(session, failure, &args.reference).await),
    };
    let output = session.output;
    output.emit(&found, |_| explanation(output, &found))
}

/// Why a group is where it is: sentences about the group, then a row for each member.
fn explanation(output: Output, found: &api::GroupExplanation) -> String {
    let now = time::now_ms();
    let group = found.group.clone().unwrap_or_default();
    let counts = group.counts.unwrap_or_default();
    let created = group.metadata.as_ref().map_or(0, |meta| meta.created_at_ms);
    let mut text = format!(
        "{} {} to {} scopes is {}, {} after it was made: {}.\n",
        printable(&group.application),
        printable(&group.version),
        counts.members,
        output.paint(page::tone(&group), group.status().as_str_name()),
        time::age(
            created,
            if group.ended_at_ms > 0 {
                group.ended_at_ms
            } else {
                now
            }
        ),
        page::counts_line(&counts),
    );
    let mut say = |line: String| {
        writeln!(text, "{}", printable(&line)).ok();
    };
    if !group.outcome.is_empty() {
        say(format!("Its outcome: {}.", group.outcome));
    }
    for (word, line) in [("", &group.message), ("In the way: ", &group.why)] {
        if !line.is_empty() {
            let line = time::told(line, now);
            say(format!("{word}{}.", line.trim_end_matches('.')));
        }
    }
    for (word, hold) in [("paused", &group.paused), ("halted", &group.halted)] {
        if let Some(hold) = hold {
            say(format!("It is {word} {}.", render::hold_line(hold, now)));
        }
    }
    for gate in &found.gates {
        let needs = match gate.needs.as_str() {
            "" => String::new(),
            needs => format!(" It needs: {}.", time::told(needs, now)),
        };
        say(format!(
            "Gate {}: {}: {}.{needs}",
            gate.kind,
            gate.answer,
            render::gate_line(gate, now).trim_end_matches('.')
        ));
    }
    let mut table = Table::new(&["#", "SCOPE", "STATUS", "GATE", "WHY"]);
    for member in &found.members {
        let status = member.status();
        let (gate, why) = match &member.gate {
            Some(gate) => (gate.kind.clone(), render::gate_line(gate, now)),
            None => {
                let row = group.members.get(member.position as usize);
                let why = row.map_or_else(String::new, |row| page::member_why(row, now));
                ("-".to_owned(), why)
            }
        };
        table.toned([
            (Tone::Faint, (member.position + 1).to_string()),
            (Tone::Strong, member.scope.clone()),
            (render::tone(status), status.as_str_name().to_owned()),
            (Tone::Plain, gate),
            (Tone::Plain, why),
        ]);
    }
    text.push('\n');
    text.push_str(&table.render(output, "It has no members."));
    text
}

async fn ask(
    session: &Session,
    args: &ActArgs<Group>,
    verb: Verb,
    weight: u32,
) -> Result<api::GroupActed> {
    let client = session.client().await?;
    let request = api::ActOnGroupRequest {
        request_id: entropy::request_id()?.to_string(),
        expected_revision: args.revision(),
        id: args.reference().to_owned(),
        verb: verb.into(),
        weight,
        reason: args.reason(),
    };
    match rpc!(client, groups_client::GroupsClient, act, request).await {
        Ok(answer) => Ok(answer),
        Err(failure) => Err(suggest(session, failure, args.reference()).await),
    }
}

async fn act(
    session: &Session,
    args: &ActArgs<Group>,
    verb: Verb,
    weight: u32,
    word: &str,
) -> Result<()> {
    let answer = ask(session, args, verb, weight).await?;
    told(session, &answer, word)
}

/// Tells whom a verb reached and whom not.
fn told(session: &Session, answer: &api::GroupActed, word: &str) -> Result<()> {
    let output = session.output;
    output.emit(answer, |_| reached(output, answer, word))
}

fn reached(output: Output, answer: &api::GroupActed, word: &str) -> String {
    let group = answer.group.clone().unwrap_or_default();
    let whom = match answer.done.len() {
        0 => "no member had to be changed".to_owned(),
        count => format!(
            "{count} of {} members",
            group.counts.unwrap_or_default().members
        ),
    };
    let mut text = format!(
        "group {} ({} {}) is {word}: {whom}; status {}\n",
        page::name(&group),
        printable(&group.application),
        printable(&group.version),
        output.paint(page::tone(&group), group.status().as_str_name())
    );
    let shown = answer.left.iter().take(MOST_LEFT);
    let widths = shown.clone().map(|left| left.scope.chars().count());
    let width = widths.max().unwrap_or_default();
    for left in shown {
        let line = format!("  left as it is: {:<width$}  {}", left.scope, left.why);
        let line = printable(&time::told(&line, time::now_ms()));
        writeln!(text, "{}", output.paint(Tone::Busy, &line)).ok();
    }
    if answer.left.len() > MOST_LEFT {
        let more = answer.left.len() - MOST_LEFT;
        writeln!(text, "  … and {more} more; -o json tells of all").ok();
    }
    text
}

async fn act_and_wait(
    session: &Session,
    args: &ActWaitArgs<Group>,
    verb: Verb,
    word: &str,
) -> Result<u8> {
    args.wait.check()?;
    let answer = ask(session, &args.act, verb, 0).await?;
    if !args.wait.wait {
        told(session, &answer, word)?;
        return Ok(0);
    }
    let output = session.output;
    output.note(reached(output, &answer, word).trim_end())?;
    let group = answer.group.unwrap_or_default();
    follow_group(session, &group.id, args.wait.following()?).await
}

async fn traffic(session: &Session, args: &TrafficArgs<Group>) -> Result<()> {
    let share = args.share()?;
    let weight = u32::from(share.basis_points());
    let word = format!("set to {share} of the traffic, until `resume`");
    act(session, &args.act, Verb::Traffic, weight, &word).await
}

async fn add(session: &Session, args: &AddArgs) -> Result<()> {
    let client = session.client().await?;
    let request = api::AddToGroupRequest {
        request_id: entropy::request_id()?.to_string(),
        id: args.of.reference.clone(),
        scopes: args.selection.scopes.clone(),
        selector: args.selection.selector.clone().unwrap_or_default(),
        environment: args.selection.environment.clone().unwrap_or_default(),
        expected_revision: args.expected.revision,
    };
    let answer = match rpc!(client, groups_client::GroupsClient, add, request).await {
        Ok(answer) => answer,
        Err(failure) => {
            let failure = suggest(session, failure, &args.of.reference).await;
            return Err(session.suggest(failure, &args.selection.given()).await);
        }
    };
    tell_left(session, &answer.left)?;
    let group = answer.group.unwrap_or_default();
    let output = session.output;
    output.emit(&group, |wide| page::page(output, &group, wide))
}

async fn decide(session: &Session, args: &ActArgs<Group>, grant: bool) -> Result<()> {
    let client = session.client().await?;
    let request = api::DecideGroupRequest {
        request_id: entropy::request_id()?.to_string(),
        id: args.reference().to_owned(),
        grant,
        reason: args.reason(),
        expected_revision: args.revision(),
    };
    let answer = match rpc!(client, groups_client::GroupsClient, decide, request).await {
        Ok(answer) => answer,
        Err(failure) => return Err(suggest(session, failure, args.reference()).await),
    };
    told(session, &answer, if grant { "approved" } else { "denied" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    fn acted(done: usize) -> api::GroupActed {
        api::GroupActed {
            group: Some(page::tests::sample()),
            done: vec![api::Reached::default(); done],
            left: vec![api::LeftAlone {
                scope: "web-zz".to_owned(),
                why: "is PENDING".to_owned(),
            }],
        }
    }

    #[test]
    fn a_verb_names_whom_it_reached_and_whom_not() {
        let text = reached(Output::plain(Format::Table), &acted(2), "promoted");
        assert_eq!(
            text,
            "group spring (web 1.4.0) is promoted: 2 of 3 members; status RUNNING\n  left as it is: web-zz  is PENDING\n"
        );
        let text = reached(Output::plain(Format::Table), &acted(0), "resumed");
        assert!(
            text.contains("is resumed: no member had to be changed"),
            "{text}"
        );
    }

    #[test]
    fn an_explanation_tells_the_group_and_then_each_member() {
        let group = page::tests::sample();
        let found = api::GroupExplanation {
            gates: vec![api::Gate {
                kind: "rollout".to_owned(),
                answer: "pending".to_owned(),
                why: "wave canary bakes".to_owned(),
                ..api::Gate::default()
            }],
            members: vec![api::ExplainedMember {
                scope: "web-zz".to_owned(),
                position: 2,
                status: api::deployment::Status::Pending.into(),
                gate: Some(api::Gate {
                    kind: "agents".to_owned(),
                    answer: "pending".to_owned(),
                    why: "no_agents: none matches".to_owned(),
                    ..api::Gate::default()
                }),
                ..api::ExplainedMember::default()
            }],
            group: Some(group),
        };
        let text = explanation(Output::plain(Format::Table), &found);
        for line in [
            "In the way: member web-us is RUNNING: the hold of step 2.\n",
            "Gate rollout: pending: wave canary bakes.\n",
            "3  web-zz  PENDING  agents  no_agents: none matches\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in:\n{text}");
        }
    }
}
