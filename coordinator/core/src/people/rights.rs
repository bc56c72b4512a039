//! What one person may do, asked by the API front: roles with their selectors compiled once.

use tidegate_shared::id::Name;
use tidegate_shared::spec::Role;

use super::place::{Facing, facing};
use super::{Place, grants};
use crate::policy::expression::{Expression, Facts, Subject};
use crate::state::State;

/// The roles of one person, ready to be asked about many places.
#[derive(Debug, Clone)]
pub struct Rights {
    /// None: everywhere.
    held: Vec<(Role, Option<Expression>)>,
}

impl Rights {
    /// Of a person. A selector that cannot be understood any more gives nothing.
    pub fn of(state: &State, user: &Name) -> Self {
        let grants = grants(state, user).into_iter();
        let held = grants.filter_map(|grant| {
            if grant.is_everywhere() {
                return Some((grant.role, None));
            }
            let selector = Expression::compile(grant.selector, Subject::Place).ok()?;
            Some((grant.role, Some(selector)))
        });
        Self {
            held: held.collect(),
        }
    }

    /// Whether the role is held everywhere, in the cluster itself too.
    pub fn everywhere(&self, role: Role) -> bool {
        let mut held = self.held.iter();
        held.any(|(own, selector)| selector.is_none() && own.includes(role))
    }

    /// Whether the role is held anywhere at all.
    pub fn anywhere(&self, role: Role) -> bool {
        self.held.iter().any(|(own, _)| own.includes(role))
    }

    /// Whether the role is held at a place. A selector that cannot be evaluated there gives
    /// nothing.
    pub fn at(&self, state: &State, role: Role, place: &Place) -> bool {
        if self.everywhere(role) {
            return true;
        }
        if !self.anywhere(role) {
            return false;
        }
        match facing(state, place) {
            Facing::Everywhere => false,
            Facing::Anywhere => true,
            Facing::One(facts) => facts.iter().any(|facts| self.holds(role, facts)),
            Facing::Each(facts) => facts.iter().all(|facts| self.holds(role, facts)),
        }
    }

    fn holds(&self, role: Role, facts: &Facts) -> bool {
        let fitting = self.held.iter().filter(|(own, _)| own.includes(role));
        let mut selectors = fitting.filter_map(|(_, selector)| selector.as_ref());
        selectors.any(|selector| selector.holds(facts).unwrap_or(false))
    }
}
