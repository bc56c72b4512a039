//! The table of statuses walked in full: every mix of up to three members in every situation.

use super::*;

/// Every situation of a member: its status, whether it is over, whether it ever started.
fn situations() -> Vec<MemberState> {
    let mut all = Vec::new();
    for status in Status::ALL {
        if matches!(status, Status::Deleting | Status::Deleted) {
            continue; // A member's end is kept as it was; what its scope does later is not asked.
        }
        let waits = matches!(status, Status::CreatingApproval | Status::Pending);
        let ended_waiting = matches!(status, Status::CreatingApprovalDenied | Status::Cancelled);
        for has_started in [false, true] {
            if has_started && status == Status::CreatingApprovalDenied {
                continue;
            }
            if !has_started && !waits && !ended_waiting {
                continue;
            }
            let ends: &[bool] = match status {
                // Failed, and another try may follow.
                Status::Failed => &[false, true],
                status if status.is_end() => &[true],
                _ => &[false],
            };
            for is_over in ends {
                all.push(MemberState {
                    status,
                    is_over: *is_over,
                    has_started,
                });
            }
        }
    }
    all
}

/// The lines of the table of the design, each told on its own.
fn lines(
    given: Option<GivenVerb>,
    members: &[MemberState],
    returns_move: bool,
) -> Vec<(GroupStatus, bool)> {
    let some_move = members.iter().any(|m| !m.is_over) || returns_move;
    let over = members.iter().all(|m| m.is_over);
    let count = |status: Status| members.iter().filter(|m| m.status == status).count();
    let total = members.len();
    let finalizing = count(Status::Finalizing);
    let ended = members.iter().filter(|m| m.is_over).count();
    let rolled = given == Some(GivenVerb::Rollback);
    let cancelled = given == Some(GivenVerb::Cancel);
    vec![
        (GroupStatus::RollingBack, rolled && some_move),
        (GroupStatus::Cancelling, cancelled && some_move),
        (
            GroupStatus::CreatingApproval,
            count(Status::CreatingApproval) == total,
        ),
        (
            GroupStatus::Pending,
            members.iter().all(|m| !m.has_started) && !over,
        ),
        (
            GroupStatus::Finalizing,
            finalizing >= 1 && finalizing + ended == total,
        ),
        (GroupStatus::Running, !over),
        (GroupStatus::RolledBack, rolled),
        (
            GroupStatus::Cancelled,
            cancelled || count(Status::Cancelled) == total,
        ),
        (
            GroupStatus::CreatingApprovalDenied,
            count(Status::CreatingApprovalDenied) == total,
        ),
        (GroupStatus::Finalized, true),
    ]
}

#[test]
fn the_first_line_that_fits_is_the_status() {
    let situations = situations();
    let mut mixes: Vec<Vec<MemberState>> = Vec::new();
    for one in &situations {
        mixes.push(vec![*one]);
        for two in &situations {
            mixes.push(vec![*one, *two]);
            mixes.extend(situations.iter().map(|three| vec![*one, *two, *three]));
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    for members in &mixes {
        for given in [None, Some(GivenVerb::Cancel), Some(GivenVerb::Rollback)] {
            for returns_move in [false, true] {
                if returns_move && given != Some(GivenVerb::Rollback) {
                    continue;
                }
                let wanted = lines(given, members, returns_move);
                let wanted = wanted.into_iter().find(|(_, fits)| *fits).unwrap().0;
                let found = derive(given, members, returns_move);
                assert_eq!(found, wanted, "{given:?} {members:?} {returns_move}");
                let over = members.iter().all(|m| m.is_over) && !returns_move;
                assert_eq!(found.is_end(), over, "{given:?} {members:?}");
                seen.insert(found);
            }
        }
    }
    assert_eq!(seen.len(), GroupStatus::ALL.len());
}

#[test]
fn words_on_the_wire_are_those_of_serde() {
    for status in GroupStatus::ALL {
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(json, format!("\"{}\"", status.as_str()));
    }
}

#[test]
fn counting_an_end_and_taking_it_back_leaves_nothing() {
    let before = Counts {
        ended: 5,
        executed: 4,
        failures: 2,
        excused: 1,
    };
    for fate in [
        Fate::Good,
        Fate::Unverified,
        Fate::Undecided,
        Fate::Failed,
        Fate::Neutral,
    ] {
        let mut counts = before;
        counts.count(fate, false);
        assert_eq!(counts.ended - before.ended, u32::from(fate.is_decided()));
        assert_eq!(
            counts.failures - before.failures,
            u32::from(fate == Fate::Failed)
        );
        counts.count(fate, true);
        assert_eq!(counts, before);
    }
}
