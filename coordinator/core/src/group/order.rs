//! In what order the members of a group start (product.md §3). Fixed when the rollout begins; who
//! joins later comes last.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_shared::digest::Digest;
use tidegate_shared::id::Name;
use tidegate_shared::spec::RolloutOrder;

/// How members are ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Pseudo-random, the same for the same group.
    Hash,
    /// By name.
    Name,
    /// As they were listed.
    Listed,
    /// By the value of a label, then by name; without it at the end.
    Label(String),
}

impl From<&RolloutOrder> for Order {
    fn from(written: &RolloutOrder) -> Self {
        match written {
            RolloutOrder::Hash => Self::Hash,
            RolloutOrder::Name => Self::Name,
            RolloutOrder::Listed => Self::Listed,
            RolloutOrder::Label(label) => Self::Label(label.clone()),
        }
    }
}

/// A scope that takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The scope.
    pub name: Name,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// Scopes that come first, in this order, and last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pinned {
    /// Before all others.
    pub first: Vec<Name>,
    /// After all others.
    pub last: Vec<Name>,
}

/// The order of a rollout; `seed` is the id of the group. Pinned scopes that are no members are left
/// out; one that is pinned first and last comes first.
pub fn arrange(members: &[Member], order: &Order, pinned: &Pinned, seed: &str) -> Vec<Name> {
    let mut sorted: Vec<&Member> = members.iter().collect();
    match order {
        Order::Listed => {}
        Order::Name => sorted.sort_by(|one, other| one.name.cmp(&other.name)),
        Order::Hash => sorted.sort_by_cached_key(|member| {
            Digest::of(format!("{seed}\n{}", member.name).as_bytes()).to_string()
        }),
        Order::Label(label) => sorted.sort_by(|one, other| {
            let key = |member: &Member| {
                let value = member.labels.get(label).cloned();
                (value.is_none(), value, member.name.clone())
            };
            key(one).cmp(&key(other))
        }),
    }
    let mut place = BTreeMap::new();
    for (index, name) in pinned.last.iter().enumerate() {
        place.insert(name, (2, index));
    }
    for (index, name) in pinned.first.iter().enumerate() {
        place.insert(name, (0, index));
    }
    sorted.sort_by_key(|member| place.get(&member.name).copied().unwrap_or((1, 0)));
    let mut seen = BTreeSet::new();
    sorted.retain(|member| seen.insert(&member.name));
    sorted
        .into_iter()
        .map(|member| member.name.clone())
        .collect()
}

/// The order after others joined.
pub fn joined(order: &[Name], newcomers: &[Name]) -> Vec<Name> {
    let mut all = order.to_vec();
    let mut seen: BTreeSet<&Name> = order.iter().collect();
    all.extend(newcomers.iter().filter(|name| seen.insert(name)).cloned());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(names: &[&str]) -> Vec<Member> {
        let member = |name: &&str| Member {
            name: Name::new(*name).unwrap(),
            labels: match *name {
                "a" => BTreeMap::from([("zone".to_owned(), "2".to_owned())]),
                "b" => BTreeMap::from([("zone".to_owned(), "1".to_owned())]),
                _ => BTreeMap::new(),
            },
        };
        names.iter().map(member).collect()
    }

    fn arranged(names: &[&str], order: &Order, first: &[&str], last: &[&str]) -> String {
        let names_of = |names: &[&str]| names.iter().map(|n| Name::new(*n).unwrap()).collect();
        let pinned = Pinned {
            first: names_of(first),
            last: names_of(last),
        };
        let found = arrange(&members(names), order, &pinned, "g1");
        found.iter().map(Name::as_str).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_order_is_stable_and_pins_hold() {
        let all = ["d", "a", "c", "b"];
        assert_eq!(arranged(&all, &Order::Listed, &[], &[]), "d a c b");
        assert_eq!(arranged(&all, &Order::Name, &["c"], &["a", "b"]), "c d a b");
        let zone = Order::Label("zone".to_owned());
        assert_eq!(arranged(&all, &zone, &[], &[]), "b a c d");
        let hash = arranged(&all, &Order::Hash, &[], &[]);
        let other = arranged(&["a", "b", "c", "d"], &Order::Hash, &[], &[]);
        assert_eq!(hash, other);
        assert_eq!(arranged(&all, &Order::Name, &["x", "b"], &["b"]), "b a c d");
        assert_eq!(arranged(&["a", "a"], &Order::Name, &[], &[]), "a");
        let order: Vec<Name> = ["b", "a"].map(|n| Name::new(n).unwrap()).to_vec();
        let late = [Name::new("a").unwrap(), Name::new("0").unwrap()];
        let names: Vec<String> = joined(&order, &late).iter().map(Name::to_string).collect();
        assert_eq!(names, ["b", "a", "0"]);
    }
}
