//! What the loop and the data plane tell each other: routes there, what is held and counted back.
//!
//! The loop calls these at its turns; which routes are wished is the core's to decide.

use std::collections::BTreeMap;
use std::time::Instant;

use tidegate_agent_core::observed::{Event, Traffic};
use tidegate_agent_core::place::PlaceKey;
use tidegate_agent_core::plan::Routes;
use tidegate_shared::assignment::ParameterContent;
use tidegate_shared::spec::Port;
use tracing::warn;

use super::route::{self, Addresses};
use super::{ROUTE_AGAIN, Reconciler};
use crate::proxy::table::Held;

impl Reconciler {
    /// Tells the data plane its routes, unless it has just been told the same.
    pub(super) async fn route(&mut self, routes: Routes) -> bool {
        let told = self.routed.as_ref();
        if told.is_some_and(|(at, same)| *same == routes && at.elapsed() < ROUTE_AGAIN) {
            return false;
        }
        let addresses = Addresses {
            listen: self.parts.settings.listen_address,
            instance: self.parts.settings.instance_address,
        };
        let (table, conflicts) = route::table(&routes, addresses, |place, variable| {
            self.value_of(place, variable)
        });
        self.routed = Some((Instant::now(), routes));
        self.looked = Some(Instant::now());
        let traffic = match self.parts.traffic.converge(table).await {
            Ok(held) => {
                self.conflicts = conflicts;
                self.hear_proxy(&held)
            }
            Err(error) => {
                warn!(%error, "the routes were not taken");
                self.complaints.insert("proxy", error.to_string());
                Traffic::Unknown
            }
        };
        self.observed
            .apply(Event::Traffic(traffic), self.clock.now());
        true
    }

    /// The value of a parameter that a place runs with.
    fn value_of(&self, place: &PlaceKey, variable: &str) -> Option<String> {
        let item = &self.observed.places.get(place)?.item;
        let mut others = item.parameters.iter();
        match others.find(|parameter| parameter.variable == variable) {
            None => item.run.env.get(variable).cloned(),
            Some(parameter) => match &parameter.content {
                ParameterContent::Plain(value) => Some(value.clone()),
                ParameterContent::Secret(version) => {
                    let secret = self.parts.secrets.get(version)?;
                    Some(secret.expose().to_owned())
                }
            },
        }
    }

    /// Asks the data plane what it holds.
    pub(super) async fn look(&mut self) {
        self.looked = Some(Instant::now());
        let traffic = if self.needs_traffic() {
            match self.parts.traffic.observe().await {
                Ok(held) => self.hear_proxy(&held),
                Err(error) => {
                    if self.complaints.insert("proxy", error.to_string()).is_none() {
                        warn!(%error, "the data plane does not answer");
                    }
                    Traffic::Unknown
                }
            }
        } else {
            Traffic::Held(BTreeMap::new())
        };
        self.observed
            .apply(Event::Traffic(traffic), self.clock.now());
    }

    /// What the data plane told of itself and of what it holds.
    fn hear_proxy(&mut self, held: &Held) -> Traffic {
        self.complaints.remove("proxy");
        let stored = held.persist_problem.as_ref().map(|problem| {
            format!("the proxy cannot store its routes, a restart of it would bring back older ones: {problem}")
        });
        for (key, problem) in [
            ("proxy-table", stored),
            ("proxy-build", held.replace_problem.clone()),
        ] {
            match problem {
                Some(problem) => drop(self.complaints.insert(key, problem)),
                None => drop(self.complaints.remove(key)),
            }
        }
        self.proxy = route::proxy(held);
        route::traffic(held, &self.conflicts)
    }

    /// Whether there is anything to route, or a data plane that may hold routes of old.
    fn needs_traffic(&self) -> bool {
        let wished = self.desired.places.values();
        let held = self.observed.places.values().map(|place| &place.item);
        let known = self.ledger.places.iter();
        wished
            .chain(held)
            .chain(known)
            .any(|item| item.port != Port::None)
            || self.parts.settings.layout.proxy().exists()
    }
}
