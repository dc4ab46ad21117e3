//! When nothing is done, and why.

use serde_json::json;

use super::world::{World, desired, nothing};
use crate::names::{ClusterId, MemberId};
use crate::observed::{ClaimFacts, MemberState, Removed};
use crate::plan::{GateKind, Step, plan};

fn gate(world: &mut World) -> Option<GateKind> {
    world.next().gate.map(|g| g.kind)
}

#[test]
fn paused_and_deleting_do_nothing() {
    let mut world = World::formed(3);
    world.want(5);
    world.desired.spec.paused = true;
    assert_eq!((gate(&mut world), world.next().step), (Some(GateKind::Paused), None));
    world.o.deleting = true;
    assert_eq!((gate(&mut world), world.next().step), (Some(GateKind::Deleting), None));
}

/// docs: operator-rules.md, rule 4, as a table: claims (ordinal, cluster, retired), status knows the log,
/// wanted, size.
#[test]
fn rule_4_the_size_of_a_set_that_is_gone() {
    type Case<'a> = (&'a str, &'a [(u32, bool, bool)], bool, i32, u32);
    let cases: &[Case<'_>] = &[
        ("before bootstrap: as wanted", &[], false, 3, 3),
        ("never more than may vote", &[], false, 9, 7),
        ("fresh claims do not hold it down", &[(0, false, false)], false, 3, 3),
        ("disks with a life decide", &[(0, true, false), (1, true, false), (2, true, false)], true, 5, 3),
        ("also where status is new", &[(0, true, false), (4, true, false)], false, 3, 5),
        ("retired disks do not count", &[(0, true, false), (1, true, false), (2, true, true)], true, 5, 2),
        ("more disks than wanted", &[(0, true, false), (1, true, false), (2, true, false)], true, 1, 3),
    ];
    for (what, claims, known, wanted, size) in cases {
        let mut o = nothing();
        for (ordinal, life, retired) in *claims {
            let facts = ClaimFacts {
                uid: "c".into(),
                member: life.then_some(MemberId(u64::from(*ordinal))),
                cluster: life.then_some(super::world::LOG),
                retired: retired.then(|| "m".to_owned()),
                ..ClaimFacts::default()
            };
            o.claims.insert(*ordinal, facts);
        }
        if *known {
            o.status.cluster_id = Some(super::world::LOG.to_string());
        }
        let plan = plan(&desired(*wanted, |_| {}), &o);
        assert_eq!(plan.step, Some(Step::Scale { from: 0, to: *size }), "{what}");
        assert_eq!(plan.size, *size, "{what}");
    }
}

#[test]
fn rule_4_a_set_scaled_down_by_hand_gets_its_pods_back() {
    let mut world = World::formed(3);
    world.o.set.as_mut().unwrap().replicas = 2;
    world.o.pods.remove(&2);
    world.o.reports.remove(&2);
    assert_eq!(world.plan().step, Some(Step::Scale { from: 2, to: 3 }));
}

#[test]
fn rule_4_no_answer_no_change() {
    let mut world = World::formed(3);
    world.want(1);
    for ordinal in 0..3 {
        world.silence(ordinal);
    }
    let plan = world.plan();
    assert_eq!((plan.size, plan.step), (3, None));
    assert_eq!(plan.gate.map(|g| g.kind), Some(GateKind::QuorumLost));
    assert_eq!(plan.budget, Some(2), "the budget stays as it was decided with more knowledge");
}

#[test]
fn rule_5_disks_of_several_clusters_stall() {
    let mut o = nothing();
    for (ordinal, cluster) in [(0, 1), (1, 2)] {
        let cluster = Some(ClusterId(uuid::Uuid::from_u128(cluster)));
        o.claims.insert(ordinal, ClaimFacts { member: Some(MemberId(1)), cluster, ..ClaimFacts::default() });
    }
    let mut world = World::new(desired(3, |_| {}));
    world.o = o;
    world.scale(3);
    let end = world.next();
    assert_eq!(end.gate.map(|g| g.kind), Some(GateKind::ForeignDisks));
    assert_eq!(end.step, None);
}

#[test]
fn rule_5_a_disk_with_a_life_is_never_initialised() {
    // Status names a log and every disk is empty: nothing is formed anew over a loss.
    let mut world = World::formed(3);
    for ordinal in 0..3 {
        let empty = super::world::report(MemberId(500 + u64::from(ordinal)), None);
        world.o.reports.insert(ordinal, empty);
    }
    for _ in 0..5 {
        let plan = world.plan();
        assert!(
            !matches!(plan.step, Some(Step::Initialize { .. } | Step::RecordBootstrap { .. })),
            "{plan:?}"
        );
        if let Some(step @ Step::Tighten { .. }) = &plan.step {
            world.take(step, &plan);
        }
    }
    assert_eq!(gate(&mut world), Some(GateKind::QuorumLost));
}

/// A set that sleeps has a template already: a bad one in the spec does not keep it down.
#[test]
fn rule_12_a_fault_does_not_keep_a_sleeping_set_down() {
    use crate::validate::{Fault, Invalid, Part};
    let mut world = World::formed(3);
    world.want(0);
    world.settle();
    world.desired.faults.push(Fault { part: Part::Template, why: Invalid::Template("bad".into()) });
    world.want(3);
    assert_eq!(world.next().step, Some(Step::Scale { from: 0, to: 3 }));
}

/// What stands in the set may be by somebody's hand: the operator cannot put it back now.
#[test]
fn rule_9_nothing_is_rolled_by_a_template_that_cannot_be_written() {
    use crate::validate::{Fault, Invalid, Part};
    let mut world = World::formed(3);
    world.new_revision("r2");
    assert!(matches!(world.plan().step, Some(Step::Evict { .. })));
    world.o.waits_turn = true;
    assert_eq!(world.plan().step, None);
    world.o.waits_turn = false;
    world.desired.faults.push(Fault { part: Part::Template, why: Invalid::Template("bad".into()) });
    assert_eq!(world.plan().step, None);
}

/// A pod that does not start holds up no other that has.
#[test]
fn f5_a_low_ordinal_that_does_not_start_holds_nobody_up() {
    let mut world = World::formed(3);
    world.want(5);
    world.scale(5);
    world.silence(3);
    assert!(matches!(world.next().step, Some(Step::Join { ordinal: 4, .. })));
}

/// Its claim takes no mark any more, and the log is formed all the same.
#[test]
fn rule_5_a_founder_whose_claim_goes_is_told() {
    let mut world = World::new(desired(3, |_| {}));
    while world.o.status.bootstrap.is_none() {
        world.steps(1);
    }
    world.o.claims.get_mut(&1).unwrap().deleting = true;
    let plan = world.next();
    assert!(matches!(plan.step, Some(Step::Initialize { .. })), "{plan:?}");
}

#[test]
fn rule_3_one_change_at_a_time() {
    let mut world = World::formed(3);
    world.want(5);
    let leader = world.o.reports.get_mut(&0).unwrap();
    leader.in_force = false;
    assert_eq!(gate(&mut world), Some(GateKind::ChangePending));
    let leader = world.o.reports.get_mut(&0).unwrap();
    leader.in_force = true;
    let version = leader.config.as_ref().unwrap().version;
    leader.removed = vec![Removed { member: MemberId(9), version, retired: false }];
    assert_eq!(gate(&mut world), Some(GateKind::Retiring));
    // An older change took it out, and its disk is gone: nothing is left to wait for.
    world.o.reports.get_mut(&0).unwrap().removed[0].version = 0;
    assert_eq!(gate(&mut world), None);
    world.o.claims.insert(9, ClaimFacts { member: Some(MemberId(9)), ..ClaimFacts::default() });
    assert_eq!(gate(&mut world), Some(GateKind::Retiring));
}

#[test]
fn rule_3_no_removal_at_the_price_of_the_quorum() {
    // Two of four answer beside the one to go: 3 live of 4; without it 2 of 3 live: allowed. With one
    // more silent it is not.
    let mut world = World::formed(4);
    world.silence(0);
    world.want(3);
    assert!(matches!(world.next().step, Some(Step::RemoveMember(_))));
    let mut world = World::formed(5);
    world.silence(0);
    world.silence(1);
    world.want(4);
    assert_eq!(gate(&mut world), Some(GateKind::QuorumAtRisk));
}

#[test]
fn rule_9_nobody_restarts_while_another_is_not_ready() {
    let mut world = World::formed(3);
    world.new_revision("r2");
    world.silence(1);
    assert_eq!((gate(&mut world), world.next().step), (Some(GateKind::MembersNotReady), None));
}

#[test]
fn rule_9_a_revision_is_not_judged_before_the_controller_saw_it() {
    let mut world = World::formed(3);
    world.new_revision("r2");
    world.o.set.as_mut().unwrap().generation = 2;
    assert_eq!(gate(&mut world), Some(GateKind::RevisionUnknown));
}

#[test]
fn rule_9_a_bad_application_stops_at_its_first_pod() {
    let mut world = World::formed(3);
    world.new_revision("r2");
    while !world.taken.iter().any(|s| s.starts_with("evict")) {
        let plan = world.plan();
        world.take(plan.step.as_ref().unwrap(), &plan);
    }
    // Its member takes part; its application does not start.
    world.o.pods.get_mut(&2).unwrap().ready = false;
    assert_eq!((gate(&mut world), world.next().step), (Some(GateKind::MembersNotReady), None));
}

#[test]
fn f4_a_restart_in_the_middle_of_growing_starts_nobody_else() {
    let mut world = World::formed(1);
    world.want(3);
    let plan = world.next();
    world.take(plan.step.as_ref().unwrap(), &plan);
    world.silence(0);
    assert_eq!(world.next().step, None);
    assert_eq!(world.o.set.as_ref().unwrap().replicas, 2);
}

#[test]
fn f5_a_learner_that_never_catches_up_does_not_block_a_roll_for_ever() {
    let mut world = World::formed(3);
    world.want(4);
    while !world.taken.iter().any(|s| s.starts_with("add")) {
        let plan = world.plan();
        world.take(plan.step.as_ref().unwrap(), &plan);
    }
    let learner = world.o.reports[&3].member;
    for report in world.o.reports.values_mut() {
        report.peers.iter_mut().filter(|p| p.member == learner).for_each(|p| p.caught_up = false);
    }
    assert_eq!(gate(&mut world), Some(GateKind::CatchingUp));
    // The user gives it up: it leaves, without any wait.
    world.want(3);
    let plan = world.next();
    assert!(matches!(plan.step, Some(Step::RemoveMember(_))), "{plan:?}");
}

#[test]
fn f14_readiness_does_not_deadlock_the_repair() {
    // Nobody is Ready as the kubelet sees it; the members take part: growing goes on.
    let mut world = World::formed(3);
    for pod in world.o.pods.values_mut() {
        pod.ready = false;
    }
    world.want(4);
    assert_eq!(world.next().step, Some(Step::Scale { from: 3, to: 4 }));
}

#[test]
fn a_stuck_gate_past_its_deadline_yields_to_what_lowers_no_voter() {
    let mut world = World::formed(3);
    world.new_revision("r2");
    world.silence(1);
    world.want(4);
    assert_eq!(gate(&mut world), Some(GateKind::MembersNotReady));
    let started = "1970-01-01T00:00:00Z";
    world.o.status.operation = serde_json::from_value(
        json!({ "id": "x", "type": "Roll", "member": "demo-1", "startedAt": started }),
    )
    .unwrap();
    assert_eq!(world.next().step, Some(Step::Scale { from: 3, to: 4 }));
}

#[test]
fn a_repeat_of_a_change_has_the_same_operation_id() {
    let mut world = World::formed(3);
    world.want(2);
    let removal = |world: &mut World| loop {
        let plan = world.plan();
        match plan.step.clone() {
            Some(Step::RemoveMember(change)) => return change,
            Some(step) => world.take(&step, &plan),
            None => panic!("{plan:?}"),
        }
    };
    let first = removal(&mut world);
    assert_eq!(removal(&mut world), first);
    assert_eq!(world.o.reports[&2].state, MemberState::Active);
}
