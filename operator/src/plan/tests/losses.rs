//! What would cost data, by the names of the cases that were seen: each course ends with every copy it began
//! with, or with the copy replaced after its member was removed.

use k8s_openapi::jiff::SignedDuration;

use super::world::{World, desired};
use crate::crd::{ReplacePolicy, WhenDeleted};
use crate::names::MemberId;
use crate::observed::{MemberState, Trouble, TroubleKind};
use crate::plan::{ClaimChange, GateKind, Plan, Step};
use crate::status;

fn gate(world: &mut World) -> Option<GateKind> {
    world.next().gate.map(|g| g.kind)
}

/// Status as it is written after a look, and `seconds` go by.
fn pass(world: &mut World, seconds: i64) {
    let plan = world.plan();
    world.o.status = status::compose(&world.desired, &world.o, &plan, &crate::apply::Outcome::Nothing, &[]);
    world.o.now += SignedDuration::from_secs(seconds);
}

fn owning(plan: &Plan) -> Vec<(u32, bool)> {
    let owned = plan.claims.iter().map(|c| match &c.change {
        ClaimChange::Own(owned) => (c.ordinal, *owned),
        ClaimChange::Resize(_) => panic!("{plan:?}"),
    });
    owned.collect()
}

/// O1: whoever keeps the disks says so before deleting, in whatever state the cluster is.
#[test]
fn o1_when_deleted_takes_effect_in_every_state() {
    type State = (&'static str, fn(&mut World));
    let states: [State; 6] = [
        ("hibernated", |w| {
            w.want(0);
            w.settle();
        }),
        ("paused", |w| w.desired.spec.paused = true),
        ("being deleted", |w| w.o.deleting = true),
        ("without a quorum", |w| (0..3).for_each(|o| w.silence(o))),
        ("with a change pending", |w| w.o.reports.get_mut(&0).unwrap().in_force = false),
        ("rolling", |w| w.new_revision("r2")),
    ];
    for (what, bring) in states {
        let mut world = World::new(desired(3, |s| s.storage.when_deleted = WhenDeleted::Delete));
        world.settle();
        assert!(world.o.claims.values().all(|c| c.owned));
        bring(&mut world);
        world.desired.spec.storage.when_deleted = WhenDeleted::Retain;
        let plan = world.plan();
        assert_eq!(owning(&plan), [(0, false), (1, false), (2, false)], "{what}");
        world.patch_claims(&plan);
        assert_eq!(world.plan().claims, [], "{what}: once");
    }
}

#[test]
fn o1_retired_claims_follow_when_deleted_too() {
    let mut world = World::formed(3);
    world.desired.spec.storage.when_scaled = crate::crd::WhenScaled::Retain;
    world.want(1);
    world.settle();
    world.desired.spec.storage.when_deleted = WhenDeleted::Delete;
    assert_eq!(owning(&world.plan()), [(0, true), (1, true), (2, true)]);
}

/// O11: a full disk may be what took the quorum.
#[test]
fn o11_claims_grow_without_a_quorum_and_not_while_paused() {
    let mut world = World::formed(3);
    world.desired.storage_bytes = 20 << 30;
    for ordinal in 0..3 {
        world.silence(ordinal);
    }
    assert_eq!(world.plan().claims.len(), 3);
    world.desired.spec.paused = true;
    assert_eq!(world.plan().claims, []);
    world.desired.spec.paused = false;
    world.settle();
    assert!(world.o.claims.values().all(|c| c.requested == 20 << 30));
    assert_eq!(gate(&mut world), Some(GateKind::QuorumLost));
}

#[test]
fn o11_a_claim_that_waits_for_a_restart_gets_one_by_the_rules_of_a_roll() {
    let mut world = World::formed(3);
    for claim in world.o.claims.values_mut() {
        claim.waits_for_restart = true;
    }
    let plan = world.next();
    assert!(matches!(plan.step, Some(Step::Evict { ordinal: 2, .. })), "{plan:?}");
}

/// O2: the disk of a member is corrupt, its pod crash-loops, and a person asks for another.
#[test]
fn o2_replacing_by_hand_carries_through_to_a_new_voter_in_every_policy() {
    for policy in [ReplacePolicy::NodeGone, ReplacePolicy::Manual] {
        for with_nodes in [true, false] {
            let mut world = World::formed(3);
            world.desired.spec.storage.replace_lost.policy = policy;
            if with_nodes {
                world.with_nodes();
            }
            let old = world.corrupt(2);
            world.settle();
            assert_eq!(world.course(), [""; 0], "nothing by itself: its disk is there");
            world.o.replace = Some(old);
            world.settle();
            let course = ["remove 2", "delete claim 2", "delete pod 2", "join 2", "add 2", "promote 2"];
            assert_eq!(world.course(), course, "{policy:?} {with_nodes}");
            assert_eq!(world.config().voters().count(), 3);
            assert!(world.config().get(old).is_none());
        }
    }
}

#[test]
fn o2_a_member_that_is_declared_lost_and_answers_is_replaced_too() {
    let mut world = World::formed(3);
    world.lead(1);
    let old = world.o.reports[&1].member;
    world.o.replace = Some(old);
    world.settle();
    let course =
        ["transfer 1->0", "remove 1", "delete claim 1", "delete pod 1", "join 1", "add 1", "promote 1"];
    assert_eq!(world.course(), course);
    assert_eq!(world.config().voters().count(), 3);
}

/// Two members of the configuration at one ordinal: the one that its pod is not leaves.
#[test]
fn a_voter_whose_ordinal_another_member_has_is_taken_out() {
    let mut world = World::formed(3);
    let gone = world.o.reports[&2].member;
    let other = super::world::report(MemberId(999), Some(super::world::LOG));
    world.o.reports.insert(2, other);
    world.join_config(MemberId(999), 2);
    world.settle();
    assert!(world.config().get(gone).is_none(), "{:?}", world.taken);
    assert_eq!(world.config().voters().count(), 3);
}

/// Shrinking to one while the one that stays has an empty disk: it gets its vote back before the others leave.
#[test]
fn the_member_that_stays_votes_before_the_last_of_the_others_leaves() {
    let mut world = World::formed(2);
    world.o.claims.get_mut(&0).unwrap().deleting = true;
    world.want(1);
    world.settle();
    assert_eq!(world.config().voters().count(), 1, "{:?}", world.taken);
    assert_eq!(world.o.set.as_ref().unwrap().replicas, 1, "{:?}", world.taken);
    assert_eq!(world.course().last(), Some(&"delete claim 1"));
}

/// All claims are being deleted while the cluster shrinks to one: the copy that stays is made anew first.
#[test]
fn o33_shrinking_to_one_with_every_claim_going_keeps_the_log() {
    let mut world = World::formed(3);
    world.want(1);
    world.o.claims.values_mut().for_each(|c| c.deleting = true);
    let end = world.settle();
    assert_eq!(end.gate, None, "{:?}", world.taken);
    assert_eq!(world.config().voters().count(), 1);
    assert!(!world.goes(0), "{:?}", world.taken);
}

/// O4: nothing is deleted because a Node object vanished; only time, and a volume that is bound to it.
#[test]
fn o4_a_volume_bound_to_a_vanished_node_is_given_up_after_the_time_that_was_set() {
    let mut world = World::formed(3);
    world.with_nodes();
    world.lose_node(2, true);
    for _ in 0..4 {
        pass(&mut world, 60);
        assert_eq!(world.next().step, None, "not before 5 minutes");
    }
    pass(&mut world, 60);
    pass(&mut world, 1);
    world.settle();
    let course = ["remove 2", "delete claim 2", "delete pod 2", "join 2", "add 2", "promote 2"];
    assert_eq!(world.course(), course);
    assert_eq!(world.config().voters().count(), 3);
}

#[test]
fn o4_a_member_that_answers_again_starts_its_clock_anew() {
    let mut world = World::formed(3);
    world.with_nodes();
    world.lose_node(2, true);
    pass(&mut world, 400);
    world.o.claims.get_mut(&2).unwrap().stranded = false;
    world.restart(2);
    pass(&mut world, 1);
    world.o.claims.get_mut(&2).unwrap().stranded = true;
    world.silence(2);
    pass(&mut world, 200);
    assert_eq!(world.next().step, None);
}

#[test]
fn o4_manual_and_what_the_leader_hears_are_never_lost() {
    let mut world = World::formed(3);
    world.with_nodes();
    world.desired.spec.storage.replace_lost.policy = ReplacePolicy::Manual;
    world.lose_node(2, true);
    pass(&mut world, 4000);
    pass(&mut world, 1);
    assert_eq!(world.next().step, None, "by hand only");
    // The operator does not reach it, the leader does: its node is there, whatever the API says.
    let mut world = World::formed(3);
    world.with_nodes();
    let member = world.o.reports[&2].member;
    world.lose_node(2, true);
    for report in world.o.reports.values_mut() {
        report.peers.iter_mut().filter(|p| p.member == member).for_each(|p| p.connected = true);
    }
    pass(&mut world, 4000);
    pass(&mut world, 1);
    assert_eq!(world.next().step, None);
}

#[test]
fn o4_a_volume_that_other_nodes_can_use_is_kept_and_its_pod_comes_back_elsewhere() {
    for lose in [(|w: &mut World| w.lose_node(2, false)) as fn(&mut World), |w| {
        let node = w.o.pods[&2].node.clone().unwrap();
        w.o.nodes.as_mut().unwrap().get_mut(&node).unwrap().out_of_service = true;
        w.silence(2);
    }] {
        let mut world = World::formed(3);
        world.with_nodes();
        let uid = world.o.claims[&2].uid.clone();
        lose(&mut world);
        let plan = world.next();
        let Some(Step::DeletePod { ordinal: 2, force: true, .. }) = plan.step else { panic!("{plan:?}") };
        // Also where that is what brings the quorum back.
        world.silence(1);
        let plan = world.next();
        assert!(matches!(plan.step, Some(Step::DeletePod { ordinal: 2, force: true, .. })), "{plan:?}");
        pass(&mut world, 4000);
        assert_eq!(world.o.claims[&2].uid, uid);
        assert!(
            !world.taken.iter().any(|s| s.contains("claim") || s.contains("remove")),
            "{:?}",
            world.taken
        );
    }
}

/// O33: claims that somebody deleted are held by their pods: replaced one at a time before any pod restarts.
#[test]
fn o33_claims_that_are_being_deleted_are_replaced_in_order() {
    let mut world = World::formed(3);
    let before: Vec<MemberId> = world.o.reports.values().map(|r| r.member).collect();
    for claim in world.o.claims.values_mut() {
        claim.deleting = true;
    }
    world.new_revision("r2");
    world.settle();
    assert_eq!(world.config().voters().count(), 3);
    assert!(before.iter().all(|old| world.config().get(*old).is_none()));
    assert!(world.o.claims.values().all(|c| !c.deleting));
    assert_eq!(world.course()[..6], ["remove 1", "delete pod 1", "join 1", "add 1", "promote 1", "remove 2"]);
}

#[test]
fn o33_no_pod_is_stopped_whose_disk_would_go_with_it() {
    let mut world = World::formed(3);
    world.o.claims.get_mut(&1).unwrap().deleting = true;
    world.want(0);
    assert_eq!((gate(&mut world), world.next().step), (Some(GateKind::ClaimTerminating), None));
    // The only copy: more members first.
    let mut world = World::formed(1);
    world.o.claims.get_mut(&0).unwrap().deleting = true;
    world.new_revision("r2");
    assert_eq!((gate(&mut world), world.next().step), (Some(GateKind::QuorumAtRisk), None));
}

/// O18: a voter that answers the operator and is cut off from its peers is no part of a live quorum.
#[test]
fn o18_live_is_what_the_leader_hears() {
    let mut world = World::formed(3);
    world.cut(1);
    world.want(2);
    assert_eq!(
        gate(&mut world),
        Some(GateKind::QuorumAtRisk),
        "0 would be alone with a voter it does not hear"
    );
    let mut world = World::formed(3);
    world.cut(1);
    world.new_revision("r2");
    assert_eq!((gate(&mut world), world.next().step), (Some(GateKind::MembersNotReady), None));
}

/// A voter whose stream stands and whose disk hangs is no part of a quorum: appends would need it.
#[test]
fn a_voter_that_hangs_is_no_part_of_a_live_quorum() {
    let hangs: [fn(&mut World); 3] =
        [|w| w.lag(1), |w| w.stick(1, MemberState::Recovering), |w| w.stick(1, MemberState::Halted)];
    for hang in hangs {
        let mut world = World::formed(3);
        hang(&mut world);
        world.want(2);
        assert_eq!((gate(&mut world), world.next().step), (Some(GateKind::QuorumAtRisk), None));
        assert!(!world.o.pods[&1].counted, "nor does the budget count it");
        world.keep_up();
        world.settle();
        assert_eq!(world.config().voters().count(), 2, "{:?}", world.taken);
    }
    // A fenced one is replaced itself, and never by taking out one that works.
    let mut world = World::formed(3);
    world.stick(1, MemberState::Fenced);
    world.want(2);
    let plan = world.next();
    assert!(matches!(&plan.step, Some(Step::RemoveMember(c)) if c.ordinal == 1), "{plan:?}");
}

/// F6: two volumes changed places, and one of the two pods is not up yet: its disk is whole.
#[test]
fn a_member_whose_disk_may_be_at_a_silent_pod_is_not_gone() {
    let mut world = World::formed(5);
    let second = world.o.reports[&2].clone();
    let first = world.o.reports.insert(1, second).unwrap();
    world.silence(2);
    let plan = world.next();
    assert!(!matches!(plan.step, Some(Step::RemoveMember(_))), "{plan:?}");
    world.o.silent.remove(&2);
    world.o.reports.insert(2, first);
    world.lead(0);
    let plan = world.next();
    assert!(!matches!(plan.step, Some(Step::RemoveMember(_))), "both are there: {plan:?}");
    assert_eq!(world.config().voters().count(), 5);
}

/// A person declares a dead member lost while another pod finds no node.
#[test]
fn a_dead_member_that_is_declared_lost_waits_for_no_other_pod() {
    let mut world = World::formed(3);
    world.want(4);
    while !world.o.pods.contains_key(&3) {
        world.steps(1);
    }
    world.silence(3);
    world.o.replace = Some(world.corrupt(2));
    world.settle();
    assert!(world.course().contains(&"remove 2"), "{:?}", world.taken);
    assert!(world.course().contains(&"promote 2"), "{:?}", world.taken);
}

/// A pod in trouble is kept for as long as its member takes part, whoever says so.
#[test]
fn a_pod_whose_member_takes_part_is_not_deleted() {
    let trouble = || Some(Trouble { kind: TroubleKind::Crash, message: "CrashLoopBackOff".into() });
    let deletes = |plan: &Plan| matches!(plan.step, Some(Step::DeletePod { .. }));
    // It answers, and the leader does not hear it.
    let mut world = World::formed(3);
    world.cut(1);
    world.new_revision("r2");
    world.o.pods.get_mut(&1).unwrap().trouble = trouble();
    assert!(!deletes(&world.next()), "{:?}", world.next());
    // The leader hears it, and it does not answer.
    let mut world = World::formed(3);
    let report = world.o.reports.remove(&1).unwrap();
    world.new_revision("r2");
    world.o.pods.get_mut(&1).unwrap().trouble = trouble();
    assert!(!deletes(&world.next()), "{:?}", world.next());
    world.o.reports.insert(1, report);
    world.silence(1);
    assert!(deletes(&world.next()), "nobody hears it: {:?}", world.next());
}

/// O9: what the budget counts are voters that the leader hears and that keep up.
#[test]
fn o9_a_voter_that_is_cut_off_does_not_count_in_the_budget() {
    let mut world = World::formed(3);
    world.cut(2);
    world.next();
    let counted: Vec<bool> = world.o.pods.values().map(|p| p.counted).collect();
    assert_eq!((counted, world.o.budget), (vec![true, true, false], Some(2)), "no drain is allowed");
    assert!(world.o.pods.values().all(|p| p.ready && p.role.as_deref() == Some("voter")));
    let mut world = World::formed(3);
    let behind = world.o.reports[&1].member;
    for report in world.o.reports.values_mut() {
        report.peers.iter_mut().filter(|p| p.member == behind).for_each(|p| p.caught_up = false);
    }
    world.next();
    assert!(!world.o.pods[&1].counted, "nor one that lags behind");
}

/// O6: the disk of a founder is lost after the list was written and before all of them confirmed it.
#[test]
fn o6_a_founder_lost_before_the_forming_is_noticed() {
    for told in [0, 1, 2] {
        let mut world = World::new(desired(3, |_| {}));
        while world.o.status.bootstrap.is_none() {
            world.steps(1);
        }
        let first = world.o.status.cluster_id.clone().unwrap();
        for ordinal in 0..told {
            let report = world.o.reports.get_mut(&ordinal).unwrap();
            (report.state, report.cluster) = (MemberState::Joining, Some(super::world::LOG));
        }
        let lost = world.o.reports[&2].member;
        world.o.claims.remove(&2);
        world.restart(2);
        let fresh = super::world::report(MemberId(777), None);
        world.o.reports.insert(2, fresh);
        world.o.fresh_id = uuid::Uuid::from_u128(99);
        world.settle();
        let course = world.course();
        assert_eq!(course.iter().filter(|s| s.starts_with("renew")).count(), told as usize, "{course:?}");
        assert!(world.config().get(lost).is_none() && world.config().get(MemberId(777)).is_some());
        assert_ne!(world.o.status.cluster_id.clone().unwrap(), first, "a new list has a new id");
        assert_eq!(world.config().voters().count(), 3);
    }
}

/// Most founders are lost before the one that is left confirmed the list: they may have chosen entries without it.
#[test]
fn o6_most_founders_lost_is_for_a_person_to_decide() {
    for (n, lost) in [(3, 1..3), (5, 2..5), (1, 0..1)] {
        let mut world = World::new(desired(n, |_| {}));
        while world.o.status.bootstrap.is_none() {
            world.steps(1);
        }
        for ordinal in lost.clone() {
            let fresh = super::world::report(MemberId(777 + u64::from(ordinal)), None);
            world.o.reports.insert(ordinal, fresh);
        }
        world.o.fresh_id = uuid::Uuid::from_u128(99);
        world.settle();
        let course = world.course();
        assert!(course.iter().all(|s| !s.starts_with("renew")), "{course:?}");
        assert_eq!(course.iter().filter(|s| **s == "record").count(), 1, "{course:?}");
        let gate = world.next().gate.unwrap();
        assert_eq!(gate.kind, GateKind::BootstrapAgreement);
        assert!(gate.message.contains("bring their volumes back"), "{}", gate.message);
    }
}

/// A founder that is lost when others have confirmed the list: the log may hold entries, nothing is formed anew.
#[test]
fn o6_once_anybody_confirmed_a_lost_founder_is_replaced_like_any_member() {
    let mut world = World::formed(3);
    world.o.status.bootstrap = serde_json::from_value(serde_json::json!({ "members":
        world.o.reports.iter().map(|(o, r)| serde_json::json!({
            "pod": world.desired.name.pod(*o), "memberId": r.member.to_string(),
        })).collect::<Vec<_>>()
    }))
    .unwrap();
    let fresh = super::world::report(MemberId(777), None);
    world.o.reports.insert(2, fresh);
    world.settle();
    assert_eq!(world.course(), ["confirm", "remove 2", "join 2", "add 2", "promote 2"]);
    assert_eq!(world.o.status.cluster_id.as_deref(), Some(super::world::LOG.to_string().as_str()));
}

/// O17: what is stuck past its deadline yields step after step, not one step for each deadline.
#[test]
fn o17_a_stuck_class_yields_until_its_gate_opens() {
    let mut world = World::formed(3);
    world.corrupt(1);
    world.new_revision("r2");
    world.want(5);
    pass(&mut world, 700);
    assert_eq!(world.plan().gate, None);
    for _ in 0..20 {
        pass(&mut world, 1);
        world.steps(1);
    }
    assert_eq!(world.config().voters().count(), 5, "{:?}", world.taken);
    assert!(!world.taken.iter().any(|s| s.starts_with("evict")), "{:?}", world.taken);
}

#[test]
fn o17_a_learner_that_lags_behind_holds_up_no_roll() {
    let mut world = World::formed(3);
    world.want(4);
    while !world.taken.iter().any(|s| s.starts_with("add")) {
        world.steps(1);
    }
    world.want(4);
    let learner = world.o.reports[&3].member;
    for report in world.o.reports.values_mut() {
        report.peers.iter_mut().filter(|p| p.member == learner).for_each(|p| p.caught_up = false);
    }
    world.new_revision("r2");
    let plan = world.next();
    assert!(matches!(plan.step, Some(Step::Evict { .. })), "{plan:?}");
}

/// O31: an application that ends after five seconds is ready for a moment in each pod.
#[test]
fn o31_a_pod_of_the_new_revision_is_trusted_after_a_while() {
    let template = serde_json::json!({ "spec": { "containers": [{ "name": "a", "image": "a" }] } });
    let mut world = World::new(desired(3, |s| s.template = template.as_object().cloned()));
    world.settle();
    world.new_revision("r2");
    while !world.taken.iter().any(|s| s.starts_with("evict")) {
        world.steps(1);
    }
    world.o.pods.get_mut(&2).unwrap().ready_since = Some(world.o.now);
    world.o.now += SignedDuration::from_secs(9);
    assert_eq!(gate(&mut world), Some(GateKind::MembersNotReady));
    world.o.now += SignedDuration::from_secs(1);
    assert!(matches!(world.next().step, Some(Step::Evict { ordinal: 1, .. })));
}

/// Pods 2 and 4 of five are silent while volumes may have changed places, and ordinal 4 is to go.
#[test]
fn a_silent_disk_is_not_shrunk_away_while_a_configured_member_is_silent() {
    let mut world = World::formed(5);
    for ordinal in 0..5 {
        world.o.claims.get_mut(&ordinal).unwrap().volume = Some(format!("pv-{ordinal}"));
    }
    world.want(4);
    while !world.taken.iter().any(|t| t == "remove 4") {
        world.steps(1);
    }
    world.silence(4);
    world.silence(2);
    assert_eq!(gate(&mut world), Some(GateKind::MembersNotReady));
    world.restart(2);
    world.settle();
    assert_eq!(world.o.set.as_ref().unwrap().replicas, 4);
}

/// The claim of 4 is being deleted; 3 and 4 are silent: the member that was at 4 may be at 3 by now.
#[test]
fn a_silent_member_is_not_taken_for_that_of_a_going_claim_beside_another_silent_pod() {
    let mut world = World::formed(5);
    world.o.claims.get_mut(&4).unwrap().deleting = true;
    world.silence(4);
    world.silence(3);
    let plan = world.next();
    assert!(!matches!(plan.step, Some(Step::RemoveMember(_))), "{plan:?}");
    world.restart(3);
    let plan = world.next();
    assert!(matches!(plan.step, Some(Step::RemoveMember(_))), "{plan:?}");
}
