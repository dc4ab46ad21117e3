//! Whole courses of steps, played through a fake world that checks the rules after every one.

use super::world::{World, desired};
use crate::crd::{Budget, WhenScaled};
use crate::observed::{MemberState, Trouble, TroubleKind};
use crate::plan::{GateKind, Step};

#[test]
fn rule_5_a_cluster_is_formed_once_by_a_written_list() {
    let mut world = World::new(desired(3, |_| {}));
    let end = world.settle();
    assert_eq!(world.course(), ["scale 3", "record", "initialize [0, 1, 2]", "confirm"]);
    assert_eq!((end.size, end.budget, end.gate), (3, Some(2), None));
    assert!(world.o.claims.values().all(|c| c.cluster.is_some()), "every disk is marked");
    assert!(world.o.pods.values().all(|p| p.role.as_deref() == Some("voter")));
}

#[test]
fn rule_5_marks_are_written_before_anyone_is_told() {
    let mut world = World::new(desired(3, |_| {}));
    world.settle();
    let at = |s: &str| world.taken.iter().position(|t| t == s).unwrap();
    let between = &world.taken[at("record")..at("initialize [0, 1, 2]")];
    assert!(between.contains(&"tighten".to_owned()), "{:?}", world.taken);
}

#[test]
fn rule_6_growing_adds_one_at_a_time() {
    let mut world = World::formed(1);
    world.want(3);
    world.settle();
    let course = ["scale 2", "join 1", "add 1", "promote 1", "scale 3", "join 2", "add 2", "promote 2"];
    assert_eq!(world.course(), course);
    assert_eq!(world.config().voters().count(), 3);
}

#[test]
fn rule_7_shrinking_takes_the_highest_first_and_deletes_its_disk_last() {
    let mut world = World::formed(5);
    world.want(3);
    world.settle();
    assert_eq!(
        world.course(),
        ["remove 4", "scale 4", "delete claim 4", "remove 3", "scale 3", "delete claim 3"]
    );
}

#[test]
fn rule_7_a_leader_hands_over_before_it_is_removed() {
    let mut world = World::formed(5);
    world.lead(4);
    world.want(4);
    world.settle();
    assert_eq!(world.course(), ["transfer 4->0", "remove 4", "scale 4", "delete claim 4"]);
}

#[test]
fn f3_seven_three_five_with_kept_disks_mints_new_ids() {
    let mut world = World::formed(7);
    world.desired.spec.storage.when_scaled = WhenScaled::Retain;
    let before: Vec<_> = world.o.reports.values().map(|r| r.member).collect();
    world.want(3);
    world.settle();
    assert_eq!(world.o.claims.values().filter(|c| c.retired.is_some()).count(), 4);
    world.taken.clear();
    world.want(5);
    world.settle();
    let course = [
        "scale 4",
        "renew 3",
        "join 3",
        "add 3",
        "promote 3",
        "scale 5",
        "renew 4",
        "join 4",
        "add 4",
        "promote 4",
    ];
    assert_eq!(world.course(), course);
    for ordinal in [3, 4] {
        assert!(!before.contains(&world.o.reports[&ordinal].member), "an id came back");
        assert_eq!(world.o.claims[&ordinal].retired, None);
    }
}

#[test]
fn f3_seven_three_five_with_deleted_disks() {
    let mut world = World::formed(7);
    world.want(3);
    world.settle();
    assert_eq!(world.o.claims.len(), 3);
    world.want(5);
    world.settle();
    assert_eq!(world.config().voters().count(), 5);
}

#[test]
fn rule_9_the_leader_rolls_last() {
    let mut world = World::formed(3);
    world.lead(2);
    world.new_revision("r2");
    world.settle();
    assert_eq!(world.course(), ["evict 1", "evict 0", "transfer 2->0", "evict 2"]);
}

#[test]
fn rule_9_one_and_two_voters_roll_too() {
    let mut world = World::formed(1);
    world.new_revision("r2");
    let end = world.settle();
    assert_eq!(world.course(), ["evict 0"]);
    assert_eq!(end.budget, Some(1), "the budget stands again afterwards");
    let mut world = World::formed(2);
    world.new_revision("r2");
    world.settle();
    assert_eq!(world.course(), ["evict 1", "transfer 0->1", "evict 0"]);
}

/// With the same poison in every pod the budget counts one as down, and lets none of the others go.
#[test]
fn rule_9_an_unready_pod_rolls_first_even_where_it_leads() {
    let mut world = World::formed(3);
    world.o.pods.get_mut(&0).unwrap().ready = false;
    world.new_revision("r2");
    world.settle();
    assert_eq!(world.course()[..2], ["transfer 0->1", "delete pod 0"]);
}

#[test]
fn f10_labels_replicas_and_image_in_one_edit() {
    let mut world = World::formed(5);
    world.new_revision("r2");
    world.want(3);
    world.settle();
    let course = world.course();
    let last_remove = course.iter().rposition(|s| s.starts_with("remove")).unwrap();
    let first_evict = course.iter().position(|s| s.starts_with("evict")).unwrap();
    assert!(last_remove < first_evict, "{course:?}");
    assert_eq!(course.iter().filter(|s| s.starts_with("evict")).count(), 3);
}

#[test]
fn f10_an_image_and_more_replicas_in_one_edit() {
    // The budget of the target must not forbid the roll that comes first.
    let mut world = World::formed(3);
    world.new_revision("r2");
    world.want(5);
    world.settle();
    assert_eq!(world.course()[..4], ["evict 2", "evict 1", "transfer 0->1", "evict 0"]);
    assert_eq!(world.config().voters().count(), 5);
}

#[test]
fn f11_a_bad_image_that_is_mended_rolls_by_itself() {
    let mut world = World::formed(3);
    world.new_revision("bad");
    let step = world.next();
    // The first pod comes back in the bad revision and cannot start.
    world.take(step.step.as_ref().unwrap(), &step);
    world.silence(2);
    let trouble = Trouble { kind: TroubleKind::Image, message: "cannot get image".into() };
    world.o.pods.get_mut(&2).unwrap().trouble = Some(trouble);
    let stuck = world.settle();
    assert_eq!(stuck.gate.map(|g| g.kind), Some(GateKind::MembersNotReady));
    assert_eq!(world.o.reports.len(), 2, "the quorum was kept");
    // The image is mended: the broken pod goes first, then the others, nobody's hand needed.
    world.taken.clear();
    world.new_revision("good");
    let repair = world.plan();
    assert!(matches!(repair.step, Some(Step::DeletePod { ordinal: 2, force: false, .. })), "{repair:?}");
}

#[test]
fn f11_a_bad_image_before_the_bootstrap() {
    let mut world = World::new(desired(3, |_| {}));
    let first = world.plan();
    world.take(first.step.as_ref().unwrap(), &first);
    for ordinal in 0..3 {
        world.silence(ordinal);
        let trouble = Trouble { kind: TroubleKind::Image, message: "cannot get image".into() };
        world.o.pods.get_mut(&ordinal).unwrap().trouble = Some(trouble);
    }
    let waits = world.settle();
    assert_eq!(waits.gate.map(|g| g.kind), Some(GateKind::PodsStarting));
    world.new_revision("good");
    assert!(matches!(world.plan().step, Some(Step::DeletePod { .. })));
}

#[test]
fn f22_a_mended_application_reaches_pods_whose_budget_refuses_evictions() {
    let mut world = World::formed(3);
    for pod in world.o.pods.values_mut() {
        pod.ready = false;
        pod.trouble = Some(Trouble { kind: TroubleKind::Crash, message: "app does not run".into() });
    }
    world.new_revision("good");
    world.settle();
    assert_eq!(world.course(), ["delete pod 2", "delete pod 1", "transfer 0->1", "delete pod 0"]);
}

#[test]
fn f12_hibernation_keeps_every_disk_and_wakes_at_the_old_size() {
    let mut world = World::formed(3);
    world.want(0);
    let end = world.settle();
    assert_eq!(end.gate.map(|g| g.kind), Some(GateKind::Hibernated));
    assert_eq!((world.course(), world.o.claims.len()), (vec!["scale 0"], 3));
    world.o.set = None;
    world.taken.clear();
    world.want(5);
    world.settle();
    assert_eq!(world.course()[..2], ["scale 3", "scale 4"]);
    assert_eq!(world.config().voters().count(), 5);
}

#[test]
fn f16_kept_claims_are_adopted_and_nobody_is_initialised() {
    let mut world = World::formed(3);
    world.o.status = Default::default();
    world.o.set = None;
    world.o.pods.clear();
    world.o.reports.clear();
    world.o.budget = None;
    world.settle();
    assert_eq!(world.course(), ["scale 3", "adopt", "confirm"]);
}

#[test]
fn f16_a_forming_that_was_cut_short_goes_on_from_the_marks() {
    let mut world = World::new(desired(3, |_| {}));
    while !world.o.claims.values().any(|c| c.cluster.is_some()) {
        let plan = world.plan();
        world.take(plan.step.as_ref().unwrap(), &plan);
    }
    // The PaxosCluster is deleted and made again before anyone was told.
    world.o.status = Default::default();
    world.taken.clear();
    world.settle();
    assert_eq!(world.course(), ["adopt", "record", "initialize [0, 1, 2]", "confirm"]);
}

#[test]
fn f20_growing_is_called_off_in_the_middle() {
    // Interrupted after every single step of growing 3 -> 4.
    for cut in 1..6 {
        let mut world = World::formed(3);
        world.want(4);
        for _ in 0..cut {
            let plan = world.plan();
            if let Some(step) = plan.step.clone() {
                world.take(&step, &plan);
            }
        }
        world.want(3);
        world.settle();
        assert_eq!(world.config().members.len(), 3, "cut after {cut}: {:?}", world.taken);
        assert_eq!(world.o.set.as_ref().unwrap().replicas, 3);
    }
}

#[test]
fn f2_an_empty_disk_on_a_known_ordinal_becomes_a_new_member() {
    let mut world = World::formed(3);
    let old = world.o.reports[&1].member;
    world.o.reports.insert(1, super::world::report(crate::names::MemberId(999), None));
    world.settle();
    assert_eq!(world.course(), ["remove 1", "join 1", "add 1", "promote 1"]);
    assert!(world.config().get(old).is_none());
    assert_eq!(world.config().voters().count(), 3);
}

#[test]
fn rule_8_a_fenced_member_leaves_before_its_disk_does() {
    let mut world = World::formed(3);
    world.o.reports.get_mut(&2).unwrap().state = MemberState::Fenced;
    // The removal first; never the claim before it.
    let plan = world.next();
    assert!(matches!(plan.step, Some(Step::RemoveMember(_))), "{plan:?}");
    world.take(plan.step.as_ref().unwrap(), &plan);
    world.o.reports.get_mut(&2).unwrap().state = MemberState::Fenced;
    let plan = world.next();
    assert!(matches!(plan.step, Some(Step::DeleteClaim { ordinal: 2, .. })), "{plan:?}");
}

#[test]
fn rule_10_leases_change_by_one_step_at_the_leader_and_no_pod_restarts() {
    let mut world = World::formed(3);
    world.lead(1);
    world.desired.settings.leases = true;
    let plan = world.next();
    let Some(Step::ChangeSettings { via, version, settings, .. }) = &plan.step else { panic!("{plan:?}") };
    assert_eq!((*via, *version, *settings), (1, 1, world.desired.settings));
    world.settle();
    assert_eq!(world.course(), ["settings leases=true"]);
    assert_eq!(world.settings.version, 2);
    // At rest nothing is asked again.
    assert_eq!(world.plan().step, None);
}

#[test]
fn rule_10_retention_and_election_go_the_same_way() {
    let mut world = World::formed(3);
    world.desired.settings.retention.entries = Some(1_000);
    world.desired.settings.heartbeat_ms = 50;
    world.settle();
    assert_eq!(world.course(), ["settings leases=false"]);
    assert_eq!(world.settings.values, world.desired.settings);
}

#[test]
fn rule_10_without_a_leader_or_with_an_old_sidecar_nothing_is_asked() {
    let mut world = World::formed(3);
    world.desired.settings.leases = true;
    for report in world.o.reports.values_mut() {
        report.settings = None;
    }
    assert_eq!(world.plan().step, None);
    let mut world = World::formed(3);
    world.desired.settings.leases = true;
    world.silence(0);
    world.silence(1);
    assert_eq!(world.next().gate.map(|g| g.kind), Some(GateKind::QuorumLost));
}

#[test]
fn rule_10_a_cluster_is_formed_with_its_settings() {
    let mut world = World::new(desired(3, |s| s.reads.leases = true));
    world.settle();
    assert_eq!(world.course(), ["scale 3", "record", "initialize [0, 1, 2]", "confirm"]);
}

#[test]
fn rule_10_an_adopted_log_is_brought_to_the_new_spec() {
    let mut world = World::formed(3);
    world.o.status = Default::default();
    world.o.set = None;
    world.o.pods.clear();
    world.o.reports.clear();
    world.o.budget = None;
    world.desired.settings.leases = true;
    world.settle();
    assert_eq!(world.course(), ["scale 3", "adopt", "confirm", "settings leases=true"]);
}

#[test]
fn max_voters_leaves_the_rest_learners() {
    let mut world = World::new(desired(5, |s| s.max_voters = 3));
    world.settle();
    assert_eq!(world.config().voters().count(), 3);
    assert_eq!(world.config().members.len(), 5);
    assert_eq!(world.o.pods[&4].role.as_deref(), Some("learner"));
}

#[test]
fn budget_none_makes_no_budget() {
    let mut world = World::new(desired(3, |s| s.disruption.budget = Budget::None));
    assert_eq!(world.settle().budget, None);
    assert_eq!(world.o.budget, None);
}
