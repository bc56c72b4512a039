//! Values for tests of this crate and of the scenarios: agents that do at once what they are told.
//!
//! Not part of the product: behind the feature `testing`.

use tidegate_shared::assignment::{
    Assignment, Counters, InstanceState, ObservedInstance, ObservedPlace, Report, WishedState,
};
use tidegate_shared::id::Name;
use tidegate_shared::time::Timestamp;
use tidegate_shared::weight::Weight;

use crate::desired::desired;
use crate::state::State;

/// The report of an agent that has fulfilled its present assignments to the letter.
pub fn fulfilled(state: &State, agent: &Name, sequence: u64) -> Report {
    let wished = desired(state, agent);
    Report {
        start: 1,
        sequence,
        applied: wished.generation,
        places: wished.items.iter().filter_map(place).collect(),
        ..Report::default()
    }
}

fn place(item: &Assignment) -> Option<ObservedPlace> {
    let count = match item.state {
        WishedState::Staged => 0,
        WishedState::Running | WishedState::Drained => item.count,
        WishedState::Absent => return None,
    };
    Some(ObservedPlace {
        scope: item.scope.clone(),
        deployment: item.deployment,
        staged: true,
        instances: (0..count).map(|n| instance(item, n)).collect(),
        weight: Some(item.weight),
        open_requests: 0,
        drained: item.weight == Weight::ZERO,
        permanent_error: None,
        transient_error: None,
        checks: Vec::new(),
    })
}

/// A healthy instance of an item, with its counters at zero.
pub fn instance(item: &Assignment, ordinal: u32) -> ObservedInstance {
    ObservedInstance {
        id: format!(
            "tidegate-{}-{}-{ordinal}",
            item.scope,
            item.deployment.short()
        ),
        ordinal,
        state: InstanceState::Healthy,
        restarts: 0,
        port: 20_000,
        pid: 100,
        start_stamp: Timestamp::from_millis(1),
        counters: Counters::default(),
        last_exit: None,
        cpu_basis_points: 1_000,
        memory_bytes: 1 << 20,
        app: Vec::new(),
    }
}
