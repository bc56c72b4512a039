//! In what order members are counted: the group's own, fixed when its rollout begins, and that of a
//! gradual rollout rule which has one (product.md §3, §5.5).

use tidegate_shared::id::Name;
use tidegate_shared::spec::RolloutOrder;

use crate::group::order::{Member, Order, Pinned, arrange};
use crate::state::{Group, GroupMember, State};

/// Members in an order; whom the group pins comes first or last in each.
pub(super) fn arranged<'a>(
    state: &State,
    group: &Group,
    order: &RolloutOrder,
    members: impl Iterator<Item = &'a GroupMember>,
) -> Vec<Name> {
    let members = members.map(|member| Member {
        name: member.scope.clone(),
        labels: state
            .scopes
            .get(&member.scope)
            .map(|scope| scope.meta.labels.clone())
            .unwrap_or_default(),
    });
    let members: Vec<Member> = members.collect();
    let pinned = Pinned {
        first: group.rollout.pinned.first.clone(),
        last: group.rollout.pinned.last.clone(),
    };
    // Not of the group's id: what is planned before it is made has the same order.
    let seed = format!("{} {}", group.application, group.version);
    arrange(&members, &Order::from(order), &pinned, &seed)
}

/// Numbers of members as a rule counts them, which come in the group's order: those that were there
/// when the rollout began in the rule's order, whoever joined later behind them.
pub(super) fn counted(
    state: &State,
    group: &Group,
    order: Option<&RolloutOrder>,
    members: &[(u32, &GroupMember)],
) -> Vec<u32> {
    let number = |(number, _): &(u32, &GroupMember)| *number;
    let Some(order) = order else {
        return members.iter().map(number).collect();
    };
    let (mut first, late): (Vec<_>, Vec<_>) = members
        .iter()
        .copied()
        .partition(|(_, member)| was_there(state, group, member));
    first.sort_by_key(number);
    let names = arranged(state, group, order, first.iter().map(|(_, member)| *member));
    let numbers = names.iter().filter_map(|name| group.scopes.get(name));
    numbers.copied().chain(late.iter().map(number)).collect()
}

fn was_there(state: &State, group: &Group, member: &GroupMember) -> bool {
    let first = member.former.first().unwrap_or(&member.deployment);
    let made = state.deployments.get(first).map(|d| d.meta.created_at);
    made.zip(group.begun_at)
        .is_none_or(|(made, begun)| made <= begun)
}
