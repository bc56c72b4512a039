//! What would happen, on the wire: a forecast, and what a scope makes of new releases.

use tidegate_coordinator_core::auto::{AutoView, Looked};
use tidegate_coordinator_core::forecast::{
    Approval, Forecast, Member, Moment, MomentEvent, Remark, RemarkWeight, Wait,
};
use tidegate_proto::control::v1 as pb;
use tidegate_shared::id::Name;
use tidegate_shared::time::Timestamp;

use super::deployment::status;

fn at(at: Option<Timestamp>) -> u64 {
    at.map_or(0, Timestamp::millis)
}

/// The whole schedule.
#[must_use]
pub fn response(found: Forecast) -> pb::PlanResponse {
    pb::PlanResponse {
        at_ms: found.at.millis(),
        ends_at_ms: at(found.ends_at),
        followed_to_ms: found.followed_to.millis(),
        members: found.members.into_iter().map(member).collect(),
        remarks: found.remarks.into_iter().map(remark).collect(),
        cut: found
            .cut
            .map_or_else(String::new, |cut| cut.as_str().to_owned()),
        ..pb::PlanResponse::default()
    }
}

fn member(found: Member) -> pb::PlannedMember {
    pb::PlannedMember {
        scope: found.scope.to_string(),
        replaces_version: found.replaces.map_or_else(String::new, |v| v.to_string()),
        agents: u32::try_from(found.agents).unwrap_or(u32::MAX),
        starts_at_ms: at(found.starts_at),
        ends_at_ms: at(found.ends_at),
        status: status(found.status).into(),
        message: found.message,
        approval: found.approval.map(approval),
        waits: found.waits.into_iter().map(wait).collect(),
        moments: found.moments.iter().map(moment).collect(),
    }
}

fn approval(found: Approval) -> pb::PlannedApproval {
    let asked = |(policy, grants): (Name, u32)| pb::planned_approval::Asked {
        policy: policy.to_string(),
        grants,
    };
    pb::PlannedApproval {
        policies: found.policies.into_iter().map(asked).collect(),
        at_ms: found.at.millis(),
        expires_at_ms: found.expires_at.millis(),
    }
}

fn wait(found: Wait) -> pb::PlannedWait {
    pb::PlannedWait {
        kind: found.kind.to_owned(),
        rule: found.rule,
        why: found.why,
        from_ms: found.from.millis(),
        until_ms: at(found.until),
    }
}

fn moment(found: &Moment) -> pb::PlannedMoment {
    use pb::planned_moment::What;
    let told = pb::PlannedMoment {
        at_ms: found.at.millis(),
        ..pb::PlannedMoment::default()
    };
    match found.event {
        MomentEvent::Status(found) => pb::PlannedMoment {
            what: What::Status.into(),
            status: status(found).into(),
            ..told
        },
        MomentEvent::Step { number, weight } => pb::PlannedMoment {
            what: What::Step.into(),
            step: number,
            weight: u32::from(weight.basis_points()),
            ..told
        },
        MomentEvent::Held { number, weight } => pb::PlannedMoment {
            what: What::Held.into(),
            step: number,
            weight: u32::from(weight.basis_points()),
            ..told
        },
        MomentEvent::Person(verb) => pb::PlannedMoment {
            what: What::Person.into(),
            verb: verb.to_owned(),
            ..told
        },
    }
}

fn remark(found: Remark) -> pb::PlanRemark {
    pb::PlanRemark {
        warning: match found.weight {
            RemarkWeight::Warning => true,
            RemarkWeight::Assumption => false,
        },
        kind: found.kind.to_owned(),
        scope: found
            .scope
            .map_or_else(String::new, |scope| scope.to_string()),
        message: found.message,
    }
}

/// What a scope makes of new releases.
#[must_use]
pub fn auto_deploy(found: AutoView) -> pb::AutoDeploy {
    let looked = |found: Looked| pb::auto_deploy::Looked {
        version: found.version.to_string(),
        outlook: found.outlook.as_str().to_owned(),
        why: found.why,
    };
    pb::AutoDeploy {
        when: found.rule.when,
        strategy: found
            .rule
            .strategy
            .map_or_else(String::new, |name| name.to_string()),
        since_ms: found.since.millis(),
        stands: found.stands,
        looked: found.looked.into_iter().map(looked).collect(),
    }
}
