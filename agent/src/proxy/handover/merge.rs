//! A predecessor's counts in those of its successor: what was counted before goes on, once.
//!
//! Levels are cumulative, and each of the two counts only its own requests, so the sum is what a single
//! proxy would have counted; the start stamp stays the predecessor's. Versions that have left the table
//! take their counts with them, as they do without a predecessor. Pure; the engine calls it.

use super::Level;
use crate::proxy::table::{
    Counters, DrainingProxy, Held, HeldInstance, HeldScope, HeldVersion, ProxyProcess, Table,
};

/// What is known of the proxy before this one.
pub(in crate::proxy) struct Predecessor {
    level: Level,
    process: ProxyProcess,
    /// It still finishes what is open.
    drains: bool,
}

impl Predecessor {
    pub(in crate::proxy) fn new(process: ProxyProcess, level: Level) -> Self {
        Self {
            level,
            process,
            drains: true,
        }
    }

    /// It said how it stands.
    pub(in crate::proxy) fn hear(&mut self, level: Level) {
        self.level = level;
    }

    /// It has ended: nothing is open there any more, its counts stay.
    pub(in crate::proxy) fn end(&mut self) {
        self.drains = false;
        self.level.open = 0;
        self.level.held.draining.clear();
        for scope in &mut self.level.held.scopes {
            for version in &mut scope.versions {
                version.open_requests = 0;
                for instance in &mut version.instances {
                    instance.open_requests = 0;
                }
            }
        }
    }

    /// Forgets versions that are not in the table: one that comes back begins anew.
    pub(in crate::proxy) fn keep_only(&mut self, table: &Table) {
        self.level.held.scopes.retain_mut(|scope| {
            let route = table.scopes.iter().find(|route| route.scope == scope.scope);
            let Some(route) = route else {
                return false;
            };
            scope.versions.retain(|version| {
                let mut named = route.versions.iter();
                named.any(|named| named.deployment == version.deployment)
            });
            true
        });
    }

    /// What is open there.
    pub(in crate::proxy) fn open(&self) -> u64 {
        self.level.open
    }

    /// Adds what it has counted and holds open.
    pub(in crate::proxy) fn add_to(&self, held: &mut Held) {
        for scope in &mut held.scopes {
            if let Some(before) = self.level.held.scope(&scope.scope) {
                add_scope(scope, before);
            }
        }
        if self.drains {
            held.draining.push(DrainingProxy {
                pid: self.process.pid,
                version: self.process.version.clone(),
                since: self.level.since,
                until: self.level.until,
                open: self.level.open,
            });
            held.draining
                .extend(self.level.held.draining.iter().cloned());
        }
    }
}

fn add_scope(scope: &mut HeldScope, before: &HeldScope) {
    scope.unrouted += before.unrouted;
    for version in &mut scope.versions {
        if let Some(before) = before.version(&version.deployment) {
            add_version(version, before);
        }
    }
}

fn add_version(version: &mut HeldVersion, before: &HeldVersion) {
    version.open_requests += before.open_requests;
    version.first_error_at = match (version.first_error_at, before.first_error_at) {
        (Some(one), Some(two)) => Some(one.min(two)),
        (one, two) => one.or(two),
    };
    version.last_error_at = version.last_error_at.max(before.last_error_at);
    for instance in &before.instances {
        let mut known = version.instances.iter_mut();
        match known.find(|known| known.instance == instance.instance) {
            Some(known) => {
                known.open_requests += instance.open_requests;
                known.counters.merge(&instance.counters);
            }
            None if instance.open_requests > 0 || has_counts(&instance.counters) => {
                version.instances.push(HeldInstance {
                    listed: false,
                    healthy: false,
                    ..instance.clone()
                });
            }
            None => {}
        }
    }
    version
        .instances
        .sort_by(|one, two| one.instance.cmp(&two.instance));
}

fn has_counts(counters: &Counters) -> bool {
    counters.requests > 0 || counters.connect_errors > 0 || counters.connections > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, requests: u64, since_ms: u64, open: u64) -> HeldInstance {
        HeldInstance {
            instance: id.to_owned(),
            address: "127.0.0.1:9000".parse().expect("an address"),
            listed: true,
            healthy: true,
            open_requests: open,
            counters: Counters {
                since_ms,
                requests,
                responses: [0, requests, 0, 0, 0],
                ..Counters::default()
            },
        }
    }

    fn held(instances: Vec<HeldInstance>) -> Held {
        let version = HeldVersion {
            deployment: "d".to_owned(),
            weight: 10_000,
            on_demand: false,
            draining: false,
            open_requests: instances.iter().map(|i| i.open_requests).sum(),
            first_error_at: None,
            last_error_at: None,
            instances,
        };
        let scope = HeldScope {
            scope: "s".to_owned(),
            listen: None,
            problem: None,
            revision: String::new(),
            unrouted: 1,
            versions: vec![version],
        };
        Held {
            scopes: vec![scope],
            ..Held::default()
        }
    }

    fn predecessor(held: Held) -> Predecessor {
        let level = Level {
            held,
            open: 3,
            since: 5,
            until: 9,
        };
        Predecessor::new(ProxyProcess::default(), level)
    }

    #[test]
    fn counts_go_on_and_are_not_doubled() {
        let mut before = predecessor(held(vec![instance("a", 10, 100, 2)]));
        let sum = |before: &Predecessor, own: u64| {
            let mut now = held(vec![instance("a", own, 200, 1)]);
            before.add_to(&mut now);
            now
        };
        let now = sum(&before, 4);
        let one = &now.scopes[0].versions[0].instances[0];
        assert_eq!((one.counters.requests, one.counters.since_ms), (14, 100));
        assert_eq!(one.open_requests, 3);
        assert_eq!(now.scopes[0].versions[0].open_requests, 3);
        assert_eq!(now.scopes[0].unrouted, 2);
        assert_eq!(now.draining.len(), 1);
        // Its next level takes the place of the last one.
        let next = predecessor(held(vec![instance("a", 12, 100, 0)])).level;
        before.hear(next);
        assert_eq!(
            sum(&before, 4).scopes[0].versions[0].instances[0]
                .counters
                .requests,
            16
        );
        before.end();
        let last = sum(&before, 5);
        assert_eq!(
            last.scopes[0].versions[0].instances[0].counters.requests,
            17
        );
        assert_eq!(last.scopes[0].versions[0].open_requests, 1);
        assert!(last.draining.is_empty());
    }

    #[test]
    fn an_instance_that_left_keeps_its_counts_and_a_version_that_left_does_not() {
        let mut before = predecessor(held(vec![instance("old", 7, 100, 1)]));
        let mut now = held(vec![instance("new", 1, 200, 0)]);
        before.add_to(&mut now);
        let version = &now.scopes[0].versions[0];
        assert_eq!(version.counters().requests, 8);
        assert!(!version.instances[1].listed && version.instances[1].instance == "old");
        let table: Table = serde_json::from_value(serde_json::json!({"scopes": [{"scope": "s",
                "listen": "127.0.0.1:1", "versions": []}]}))
        .expect("a table");
        before.keep_only(&table);
        let mut again = held(vec![instance("new", 1, 200, 0)]);
        before.add_to(&mut again);
        assert_eq!(again.scopes[0].versions[0].counters().requests, 1);
    }
}
