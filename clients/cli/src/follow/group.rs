//! What a group shows while it is followed: a line for each change of it or of a member that has
//! started, or its page in place.

use tidegate_proto::control::v1 as api;
use tidegate_proto::control::v1::deployment::Status as MemberStatus;
use tonic::Streaming;

use super::engine::Followed;
use crate::connect::Client;
use crate::errors::Result;
use crate::output::{Output, Tone, printable};
use crate::render;
use crate::render::group;

/// Lines of a picture that are not members, at most.
const HEADER_LINES: usize = 16;
/// Members of a picture, at least.
const FEWEST: usize = 5;

impl Followed for api::Group {
    type Memory = ();
    const NOUN: &'static str = "group";

    async fn open(client: &Client, id: &str, interval_ms: u32) -> Result<Streaming<Self>> {
        let request = api::WatchGroupRequest {
            id: id.to_owned(),
            interval_ms,
        };
        crate::rpc!(client, groups_client::GroupsClient, watch, request).await
    }

    fn short_id(&self) -> &str {
        &self.short_id
    }

    fn has_ended(&self) -> bool {
        group::has_ended(self.status())
    }

    fn exit_status(&self) -> u8 {
        group::exit_status(self)
    }

    fn tone(&self) -> Tone {
        group::tone(self)
    }

    fn outcome_line(&self) -> String {
        group::outcome_line(self)
    }

    fn news(&self) -> Vec<(String, String)> {
        let mut news = vec![(String::new(), whole(self))];
        let width = self.members.iter().map(|m| m.scope.len()).max();
        let width = width.unwrap_or_default();
        // Those that wait are told of by the whole, or there would be a line for each at the start.
        let started = self.members.iter().filter(|member| has_started(member));
        news.extend(started.map(|member| (member.scope.clone(), line_of(member, width))));
        news
    }

    fn trouble(&self) -> String {
        let is_bad = |member: &&api::GroupMember| {
            matches!(
                member.status(),
                MemberStatus::Failed | MemberStatus::RolledBack | MemberStatus::RollingBack
            )
        };
        let first = self.members.iter().find(is_bad);
        first.map_or_else(String::new, |member| {
            printable(&format!("{}: {}", member.scope, member.why))
        })
    }

    fn remember(&self, (): &mut ()) {}

    fn picture(&self, output: Output, (): &()) -> String {
        let room = output.height().saturating_sub(HEADER_LINES).max(FEWEST);
        let mut text = group::heading(output, self);
        text.push('\n');
        text.push_str(&group::members(output, self, room, false));
        if !self.has_ended() {
            let line = "\nCtrl-C ends the watching, not the rollout";
            text.push_str(&output.paint(Tone::Faint, line));
            text.push('\n');
        }
        text
    }
}

fn has_started(member: &api::GroupMember) -> bool {
    match member.status() {
        MemberStatus::CreatingApproval | MemberStatus::Pending | MemberStatus::Unspecified => false,
        MemberStatus::CreatingApprovalDenied
        | MemberStatus::Creating
        | MemberStatus::WaitingForInstances
        | MemberStatus::Running
        | MemberStatus::Finalizing
        | MemberStatus::Finalized
        | MemberStatus::Cancelling
        | MemberStatus::Cancelled
        | MemberStatus::RollingBack
        | MemberStatus::RolledBack
        | MemberStatus::Failed
        | MemberStatus::Deleting
        | MemberStatus::Deleted => true,
    }
}

/// The group as a line: status, how many are where, what is in the way.
fn whole(found: &api::Group) -> String {
    let counts = found.counts.unwrap_or_default();
    let mut line = format!(
        "group {:<13} {}",
        found.status().as_str_name(),
        group::counts_line(&counts)
    );
    if found.budget.as_ref().is_some_and(|budget| budget.exceeded) {
        line.push_str("; failure budget exceeded");
    }
    // While members are under way their own lines tell more.
    let is_held = found.halted.is_some() || found.paused.is_some();
    if (is_held || counts.under_way == 0) && !found.why.is_empty() {
        line.push_str("; ");
        line.push_str(&found.why);
    }
    printable(&line)
}

fn line_of(member: &api::GroupMember, width: usize) -> String {
    let status = member.status();
    let mut parts = Vec::new();
    if render::has_traffic(status) {
        let traffic = member.traffic.unwrap_or_default();
        parts.push(format!("traffic {}", render::weight_on_its_way(&traffic)));
    }
    let why = if member.why.is_empty() {
        member.outcome.replace('_', " ")
    } else {
        member.why.clone()
    };
    if !why.is_empty() {
        parts.push(why);
    }
    let line = format!(
        "  {:<width$}  {:<21} {}",
        member.scope,
        status.as_str_name(),
        parts.join("; ")
    );
    printable(line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;
    use crate::render::group::tests::sample;

    #[test]
    fn news_are_of_the_whole_and_of_members_that_started() {
        let news = sample().news();
        let about: Vec<&str> = news.iter().map(|(about, _)| about.as_str()).collect();
        assert_eq!(about, ["", "web-eu", "web-us"]);
        assert_eq!(
            news[0].1,
            "group RUNNING       1 finalized, 1 under way, 1 waiting of 3 members"
        );
        assert_eq!(
            news[2].1,
            "  web-us  RUNNING               traffic 50 % → 100 %; the hold of step 2"
        );
    }

    #[test]
    fn what_holds_the_whole_up_is_told_where_no_member_can_tell_it() {
        let mut group = sample();
        group.paused = Some(api::Hold::default());
        group.why = "paused by user:ann".to_owned();
        assert!(
            group.news()[0]
                .1
                .ends_with("of 3 members; paused by user:ann")
        );
        group.paused = None;
        group.counts = Some(api::GroupCounts {
            members: 3,
            waiting: 3,
            ..api::GroupCounts::default()
        });
        assert!(
            group.news()[0]
                .1
                .ends_with("of 3 members; paused by user:ann")
        );
    }

    #[test]
    fn the_picture_says_how_to_leave_it_until_the_end() {
        let mut group = sample();
        let output = Output::plain(Format::Table);
        assert!(group.picture(output, &()).contains("not the rollout"));
        group.status = api::group::Status::Finalized.into();
        assert!(!group.picture(output, &()).contains("not the rollout"));
    }
}
