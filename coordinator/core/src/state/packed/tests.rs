//! What was written once is held once, and damage is told.

use super::*;
use crate::testing::deployed;

fn assembled(pieces: impl IntoIterator<Item = Piece>) -> Result<State, Unpackable> {
    let mut assembly = Assembly::default();
    for piece in pieces {
        assembly.add(piece)?;
    }
    assembly.finish()
}

fn origins(state: &State) -> Vec<&Origin> {
    state.deployments.values().map(|d| &*d.origin).collect()
}

#[test]
fn pieces_are_a_state_again_with_its_indexes() {
    let state = deployed(PACKED_LEVEL);
    assert!(is_packed(&state) && !is_packed(&deployed(PACKED_LEVEL - 1)));
    let read = assembled(pieces(&state)).unwrap();
    assert_eq!(read, state);
    assert_eq!(read.check(), Vec::<String>::new());
}

#[test]
fn what_deployments_have_in_common_is_held_once() {
    // As a program that shared nothing had it.
    let mut state = deployed(PACKED_LEVEL);
    let ids: Vec<DeploymentId> = state.deployments.keys().copied().collect();
    for id in ids {
        let changed = state.deployments.beside_terms(&id).map(|deployment| {
            let own = Arc::make_mut(&mut deployment.origin);
            own.strategy = Arc::new(Strategy::clone(&own.strategy));
            own.scope_spec = Arc::new(ScopeSpec::clone(&own.scope_spec));
            own.parameters = own.parameters.clone().into_iter().collect();
        });
        assert!(changed.is_some());
    }
    let read = assembled(pieces(&state)).unwrap();
    assert_eq!(read, state);
    let found = origins(&read);
    let of = |version: &str| {
        let same = |origin: &&&Origin| origin.version.as_str() == version;
        found.iter().filter(same).copied().collect::<Vec<_>>()
    };
    for version in ["1.0.0", "2.0.0"] {
        let same = of(version);
        assert_eq!(same.len(), 3);
        for one in &same {
            assert!(Arc::ptr_eq(&one.strategy, &same[0].strategy));
            assert!(Arc::ptr_eq(&one.asset, &same[0].asset));
            assert!(one.parameters.ptr_eq(&same[0].parameters));
        }
    }
    for origin in of("2.0.0") {
        assert!(Arc::ptr_eq(
            &origin.scope_spec,
            &read.scopes[&origin.scope].spec
        ));
    }
    let earlier = of("1.0.0");
    let changed = earlier.iter().find(|origin| origin.scope.as_str() == "s3");
    assert_ne!(
        changed.unwrap().scope_spec,
        read.scopes[&Name::new("s3").unwrap()].spec
    );
}

#[test]
fn deployments_share_with_those_of_the_same_command() {
    let state = deployed(PACKED_LEVEL);
    let found = origins(&state);
    let first: Vec<_> = found
        .iter()
        .filter(|o| o.version.as_str() == "1.0.0")
        .collect();
    for one in &first {
        assert!(Arc::ptr_eq(&one.strategy, &first[0].strategy));
        assert!(Arc::ptr_eq(&one.health_check, &first[0].health_check));
        assert!(one.parameters.ptr_eq(&first[0].parameters));
    }
}

#[test]
fn many_parts_are_written_again_and_none_is_mixed_up() {
    let mut pool = Pool::default();
    let draws = (0..1_000_u32).map(|n| (n * 7) % (WINDOW as u32 * 2));
    let mut written = Vec::new();
    for value in draws {
        let number = pool.place(|known| *known == value, || value);
        written.append(&mut pool.new);
        assert_eq!(written[number as usize], value);
        assert!(pool.recent.len() <= WINDOW);
    }
    assert!(written.len() > WINDOW);
}

#[test]
fn a_missing_base_and_a_missing_part_are_told() {
    let state = deployed(PACKED_LEVEL);
    let all: Vec<Piece> = pieces(&state).collect();
    assert_eq!(assembled(all[1..].to_vec()), Err(Unpackable::NoBase));
    let is_scopes = |piece: &Piece| matches!(piece, Piece::Scopes(_));
    let without = all.iter().filter(|piece| !is_scopes(piece)).cloned();
    assert!(matches!(assembled(without), Err(Unpackable::NoPart(_))));
    let mut spoilt = all;
    for piece in &mut spoilt {
        if let Piece::Deployments(piece) = piece {
            piece.makes.clear();
        }
    }
    assert!(matches!(assembled(spoilt), Err(Unpackable::NoPart(_))));
}

/// A deployment as programs before this form wrote it: nothing is left out.
const BEFORE: &str = include_str!("before.json");

#[test]
fn a_deployment_that_names_what_it_has_not_is_read() {
    let read: Deployment = serde_json::from_str(BEFORE).unwrap();
    assert_eq!((read.replaces, read.halted.is_none()), (None, true));
    assert_eq!(read.origin.scope.as_str(), "scope-000189");
    let written = serde_json::to_string(&read).unwrap();
    assert!(!written.contains("null"), "{written}");
    assert_eq!(serde_json::from_str::<Deployment>(&written).unwrap(), read);
}
