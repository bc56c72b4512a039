//! `tidegate group`: one release on its way to many scopes, and the verbs that steer all of it.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use tidegate_proto::control::v1 as api;
use tidegate_proto::control::v1::act_request::Verb;
use tidegate_shared::error::Reason;
use tidegate_shared::spec::{Kind, parse_percent};

use super::deploy::tell_left;
use super::wish::SelectionArgs;
use super::{WaitArgs, page_size};
use crate::errors::{Failure, Result};
use crate::follow::{Following, follow_group, parse_timeout};
use crate::output::{Output, Table, Tone, printable};
use crate::render::group as page;
use crate::session::Session;
use crate::{entropy, names, render, rpc, time};

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
    List(ListArgs),
    /// Show one: what is in the way, budget, waves, one row per member
    Get(ReferenceArgs),
    /// Watch one live until its end; exit status as with deploy --wait
    Watch(WatchArgs),
    /// Why is it where it is? The group's own gates and each member's first one
    Explain(ReferenceArgs),
    /// Stop every member's clock, and start no further member
    Pause(ActArgs),
    /// Go on
    Resume(ActArgs),
    /// End the present step of every member that runs
    Promote(PromoteArgs),
    /// Set the share of the new version in every member that runs, and pause there
    Traffic(TrafficArgs),
    /// Take all of it back while every member is RUNNING
    Cancel(ActWaitArgs),
    /// Everything to the version before, finalized members too
    Rollback(ActWaitArgs),
    /// End the bake of every member that has come so far
    Finalize(ActWaitArgs),
    /// Add scopes; they start after all others
    Add(AddArgs),
    /// Agree to every member that waits for approval
    Approve(DecideArgs),
    /// Refuse every member that waits for approval; that is final
    Deny(DecideArgs),
}

/// Which ones to list.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those of this application
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    application: String,
    /// Only those that have not ended
    #[arg(long)]
    unfinished: bool,
    /// At most so many; 0: all
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

/// Which one.
#[derive(Debug, Args)]
pub struct ReferenceArgs {
    /// Name, id or short id
    #[arg(value_name = "GROUP")]
    reference: String,
}

/// What to watch.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Name, id or short id
    #[arg(value_name = "GROUP")]
    reference: String,
    /// End after so long with exit status 6
    #[arg(
        long,
        value_name = "SPAN",
        default_value = "0s",
        hide_default_value = true
    )]
    timeout: String,
}

/// Which one, and why.
#[derive(Debug, Args)]
pub struct ActArgs {
    /// Name, id or short id
    #[arg(value_name = "GROUP")]
    reference: String,
    /// Why, for the audit log
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    reason: String,
    /// Only if it is still at this revision
    #[arg(
        long,
        value_name = "REVISION",
        default_value_t = 0,
        hide_default_value = true
    )]
    revision: u64,
}

/// Which one, why, and whether to wait.
#[derive(Debug, Args)]
pub struct ActWaitArgs {
    /// Which one.
    #[command(flatten)]
    act: ActArgs,
    /// Whether to wait.
    #[command(flatten)]
    wait: WaitArgs,
}

/// What to promote.
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// Which one.
    #[command(flatten)]
    act: ActArgs,
    /// End all steps, not only the present one
    #[arg(long)]
    full: bool,
}

/// How much traffic.
#[derive(Debug, Args)]
pub struct TrafficArgs {
    /// Which one.
    #[command(flatten)]
    act: ActArgs,
    /// Share of the new version in per cent: 0 to 100, at most two decimals
    #[arg(value_name = "PERCENT")]
    percent: String,
}

/// What to add.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Name, id or short id
    #[arg(value_name = "GROUP")]
    reference: String,
    /// What to add.
    #[command(flatten)]
    selection: SelectionArgs,
}

/// On what to decide.
#[derive(Debug, Args)]
pub struct DecideArgs {
    /// Name, id or short id
    #[arg(value_name = "GROUP")]
    reference: String,
    /// Why, for the audit log
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    reason: String,
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
            Self::Promote(args) => {
                let verb = if args.full {
                    Verb::PromoteFull
                } else {
                    Verb::Promote
                };
                act(session, &args.act, verb, 0, "promoted").await?;
            }
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

async fn list(session: &Session, args: ListArgs) -> Result<()> {
    let client = session.client().await?;
    let mut groups = Vec::new();
    let mut token = String::new();
    loop {
        let request = api::ListGroupsRequest {
            application: args.application.clone(),
            unfinished: args.unfinished,
            page: Some(api::Page {
                size: page_size(args.limit),
                token,
            }),
        };
        let answer = match rpc!(client, groups_client::GroupsClient, list, request).await {
            Ok(answer) => answer,
            Err(failure) => {
                let given = [(Kind::Application, args.application.as_str())];
                return Err(session.suggest(failure, &given).await);
            }
        };
        groups.extend(answer.groups);
        token = answer.next_page_token;
        if token.is_empty() || (args.limit > 0 && groups.len() >= args.limit) {
            break;
        }
    }
    if args.limit > 0 {
        groups.truncate(args.limit);
    }
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
            size: page_size(0),
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

async fn watch(session: &Session, args: &WatchArgs) -> Result<u8> {
    let timeout = parse_timeout(&args.timeout)?;
    let found = get(session, &args.reference).await?;
    let following = Following {
        timeout,
        picture: true,
    };
    follow_group(session, &found.id, following).await
}

async fn explain(session: &Session, args: &ReferenceArgs) -> Result<()> {
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
    args: &ActArgs,
    verb: Verb,
    weight: u32,
) -> Result<api::GroupActed> {
    let client = session.client().await?;
    let request = api::ActOnGroupRequest {
        request_id: entropy::request_id()?.to_string(),
        expected_revision: args.revision,
        id: args.reference.clone(),
        verb: verb.into(),
        weight,
        reason: args.reason.clone(),
    };
    match rpc!(client, groups_client::GroupsClient, act, request).await {
        Ok(answer) => Ok(answer),
        Err(failure) => {
            let failure = spread(failure, time::now_ms());
            Err(suggest(session, failure, &args.reference).await)
        }
    }
}

/// A refusal that names the members in the way, one to a line.
fn spread(failure: Failure, now: u64) -> Failure {
    let reasons = [Reason::GroupNotRunning, Reason::GroupNothingToDo];
    let Some(reason) = reasons.into_iter().find(|reason| failure.is(*reason)) else {
        return failure;
    };
    let message = failure.message();
    let marks = ["in the way", "no member takes", "nothing to roll back"];
    let cut = marks.iter().find_map(|mark| {
        let start = message.find(mark)?;
        Some(start + message.get(start..)?.find(": ")?)
    });
    let Some((head, list)) = cut.and_then(|at| message.split_at_checked(at)) else {
        return failure;
    };
    let list = list.trim_start_matches(": ");
    let spread = Failure::new(reason, head);
    list.split("; ").fold(spread, |spread, item| {
        spread.at(printable(&time::told(item, now)))
    })
}

async fn act(session: &Session, args: &ActArgs, verb: Verb, weight: u32, word: &str) -> Result<()> {
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

async fn act_and_wait(session: &Session, args: &ActWaitArgs, verb: Verb, word: &str) -> Result<u8> {
    args.wait.check()?;
    let answer = ask(session, &args.act, verb, 0).await?;
    if !args.wait.wait {
        told(session, &answer, word)?;
        return Ok(0);
    }
    let output = session.output;
    output.note(reached(output, &answer, word).trim_end())?;
    let following = Following {
        timeout: parse_timeout(args.wait.timeout.as_deref().unwrap_or("0s"))?,
        picture: false,
    };
    let group = answer.group.unwrap_or_default();
    follow_group(session, &group.id, following).await
}

async fn traffic(session: &Session, args: &TrafficArgs) -> Result<()> {
    let share = parse_percent(&args.percent).ok_or_else(|| {
        Failure::usage(format!(
            "\"{}\" is not a share of traffic: want 0 to 100 with at most two decimals",
            args.percent
        ))
        .hint("for example `tidegate group traffic spring 25`")
    })?;
    let weight = u32::from(share.basis_points());
    let word = format!("set to {share} of the traffic, until `resume`");
    act(session, &args.act, Verb::Traffic, weight, &word).await
}

async fn add(session: &Session, args: &AddArgs) -> Result<()> {
    let client = session.client().await?;
    let request = api::AddToGroupRequest {
        request_id: entropy::request_id()?.to_string(),
        id: args.reference.clone(),
        scopes: args.selection.scopes.clone(),
        selector: args.selection.selector.clone().unwrap_or_default(),
        environment: args.selection.environment.clone().unwrap_or_default(),
    };
    let answer = match rpc!(client, groups_client::GroupsClient, add, request).await {
        Ok(answer) => answer,
        Err(failure) => {
            let failure = suggest(session, failure, &args.reference).await;
            return Err(session.suggest(failure, &args.selection.given()).await);
        }
    };
    tell_left(session, &answer.left)?;
    let group = answer.group.unwrap_or_default();
    let output = session.output;
    output.emit(&group, |wide| page::page(output, &group, wide))
}

async fn decide(session: &Session, args: &DecideArgs, grant: bool) -> Result<()> {
    let client = session.client().await?;
    let request = api::DecideGroupRequest {
        request_id: entropy::request_id()?.to_string(),
        id: args.reference.clone(),
        grant,
        reason: args.reason.clone(),
    };
    let answer = match rpc!(client, groups_client::GroupsClient, decide, request).await {
        Ok(answer) => answer,
        Err(failure) => return Err(suggest(session, failure, &args.reference).await),
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
    fn a_refusal_has_a_line_for_each_member_in_the_way() {
        let failure = Failure::new(
            Reason::GroupNotRunning,
            "group spring is cancelled only while every member is RUNNING; in the way: a: is PENDING; b: is FINALIZED",
        );
        let text = spread(failure, 0).render(false);
        assert!(
            text.starts_with("error: group spring is cancelled only while every member is RUNNING; in the way\n  --> a: is PENDING\n  --> b: is FINALIZED\nhint: "),
            "{text}"
        );
        let other = Failure::new(Reason::GroupEnded, "in the way: a");
        assert_eq!(spread(other.clone(), 0), other);
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
