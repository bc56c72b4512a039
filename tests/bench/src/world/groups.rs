//! Groups in a world: made, and driven member by member or all at once.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tidegate_coordinator_core::command::{Command, CreateDeployments, CreateGroup};
use tidegate_coordinator_core::group::view::view;
use tidegate_coordinator_core::state::ScopeTerm;
use tidegate_coordinator_core::{Item, Reply};
use tidegate_shared::id::{GroupId, Name};
use tidegate_shared::spec::RolloutSpec;
use tidegate_shared::time::Span;

use super::{BATCH, World, deploy};

/// How long the parts of driving a group took.
#[derive(Debug, Default)]
pub struct Driven {
    /// Each entry.
    pub entries: Vec<Duration>,
    /// Each look of the planner, after news.
    pub looks: Vec<Duration>,
    /// Everything together: entries, looks, and what agents were told.
    pub total: Duration,
}

impl World {
    /// A group over these scopes, and how long its entry took. Its rollout has not begun.
    ///
    /// # Errors
    /// It was refused.
    pub fn group(
        &mut self,
        scopes: Vec<Name>,
        version: &str,
        rollout: &str,
    ) -> anyhow::Result<(GroupId, Duration)> {
        let Command::CreateDeployments(deployments) = deploy(scopes, version)? else {
            bail!("no deployments");
        };
        let command = Command::CreateGroup(CreateGroup {
            name: None,
            deployments: CreateDeployments { ..deployments },
            rollout: Some(serde_json::from_str::<RolloutSpec>(rollout)?),
        });
        match self.say(command)? {
            (took, Reply::Group { group, .. }) => Ok((group, took)),
            (_, other) => bail!("no group: {other:?}"),
        }
    }

    /// The agents of all scopes where a deployment is under way do what they are told.
    fn report_under_way(&mut self) -> anyhow::Result<Duration> {
        let scopes = self.state.scopes.keys_of(&ScopeTerm::UnderWay);
        let numbers = scopes.filter_map(|name| name.as_str().rsplit('-').next()?.parse().ok());
        let mut agents: Vec<usize> = numbers.map(Self::agent_of).collect();
        agents.dedup();
        let mut took = Duration::ZERO;
        for agent in agents {
            took += self.report(agent)?;
        }
        Ok(took)
    }

    /// Time passes, and whoever is due starts and is rolled out as far as it goes; so many commands
    /// to an entry.
    ///
    /// # Errors
    /// A command was refused, or it does not come to rest.
    pub fn drive(&mut self, time: Span, batch: usize) -> anyhow::Result<Driven> {
        let mut driven = Driven::default();
        self.pass(time);
        for _ in 0..200 {
            driven.total += self.report_under_way()?;
            let look = self.look();
            driven.looks.push(look);
            driven.total += look;
            let due: Vec<Item> = self.agenda.due().cloned().collect();
            if due.is_empty() {
                return Ok(driven);
            }
            for items in due.chunks(batch) {
                let took = self.enter(items.to_vec())?.0;
                driven.entries.push(took);
                driven.total += took;
            }
        }
        bail!("the planner does not come to rest")
    }

    /// Every member of a group that starts all at once is rolled out; how long that took.
    ///
    /// # Errors
    /// A command was refused, or it does not end.
    pub fn drive_to_the_end(&mut self, group: GroupId) -> anyhow::Result<Duration> {
        let mut took = Duration::ZERO;
        for _ in 0..20 {
            took += self.drive(Span::from_secs(60), BATCH)?.total;
            if !self.state.open_groups.contains_key(&group) {
                return Ok(took);
            }
        }
        bail!("the group does not end")
    }

    /// How long it takes to tell people of a group.
    ///
    /// # Errors
    /// There is no such group.
    pub fn view_of(&self, group: GroupId) -> anyhow::Result<Duration> {
        let found = self.state.groups.get(&group).context("no such group")?;
        let began = Instant::now();
        let seen = view(&self.state, &self.observed, self.now, found);
        let took = began.elapsed();
        if seen.members.len() != found.members.len() {
            bail!("members are missing");
        }
        Ok(took)
    }
}
