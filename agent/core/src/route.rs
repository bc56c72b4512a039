//! Routes: what the data plane should hold, and whether it does.
//!
//! Plain values; the planner makes them, the shell turns them into the data plane's own words.

use std::collections::BTreeMap;

use tidegate_shared::assignment::Assignment;
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::spec::ScopeTraffic;
use tidegate_shared::weight::Weight;

use crate::observed::Traffic;

/// Every route of the host, by scope: the complete wish for the data plane.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes(pub BTreeMap<Name, ScopeRoute>);

/// The routes of one scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopeRoute {
    /// Where clients connect to.
    pub port: u16,
    /// How requests come in there.
    pub settings: ScopeTraffic,
    /// Whose settings they are, and whose parameters hold certificate and key.
    pub settings_of: DeploymentId,
    /// Names the settings with the values of those parameters; empty for the ordinary ones.
    pub revision: String,
    /// Its versions.
    pub versions: BTreeMap<DeploymentId, VersionRoute>,
}

/// The route of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRoute {
    /// Its share.
    pub weight: Weight,
    /// Gets the requests that ask for it, whatever its share.
    pub on_demand: bool,
    /// The drain time is over: cut off what is open.
    pub close: bool,
    /// Its instances that have a process, by ordinal.
    pub instances: BTreeMap<u32, InstanceRoute>,
}

/// The route of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRoute {
    /// Its own port.
    pub port: u16,
    /// It may get new requests.
    pub healthy: bool,
}

/// A name for settings and the values that they refer to, which do not follow from it.
pub(crate) fn revision(settings: &ScopeTraffic, item: &Assignment) -> String {
    if settings.is_default() {
        return String::new();
    }
    let mut text = format!("{settings:?}");
    for variable in settings
        .tls
        .iter()
        .flat_map(|tls| [&tls.certificate, &tls.key])
    {
        let parameter = item.parameters.iter().find(|p| p.variable == *variable);
        match parameter.map(|parameter| &parameter.content) {
            Some(content) => text.push_str(&format!("\n{variable}={content:?}")),
            None => text.push_str(&format!("\n{variable}={:?}", item.run.env.get(variable))),
        }
    }
    Digest::of(text.as_bytes()).to_string()
}

/// Whether the data plane holds exactly these routes.
pub(crate) fn held_as(traffic: &Traffic, routes: &Routes) -> bool {
    let Traffic::Held(held) = traffic else {
        return false;
    };
    if held.len() != routes.0.len() {
        return false;
    }
    routes.0.iter().all(|(name, route)| {
        let Some(scope) = held.get(name) else {
            return false;
        };
        let strangers = scope.versions.iter().any(|(deployment, version)| {
            version.weight > Weight::ZERO && !route.versions.contains_key(deployment)
        });
        !strangers
            && scope.revision == route.revision
            && route.versions.iter().all(|(deployment, version)| {
                scope.versions.get(deployment).is_some_and(|held| {
                    let listed = held.instances.iter().filter(|(_, i)| i.listed);
                    let listed: BTreeMap<u32, InstanceRoute> = listed
                        .map(|(ordinal, i)| {
                            let route = InstanceRoute {
                                port: i.port,
                                healthy: i.healthy,
                            };
                            (*ordinal, route)
                        })
                        .collect();
                    held.weight == version.weight
                        && held.on_demand == version.on_demand
                        && listed == version.instances
                        && (!version.close || held.open_requests == 0)
                })
            })
    })
}
