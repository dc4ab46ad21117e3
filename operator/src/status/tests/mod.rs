//! What the status says, data in and data out.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::*;
use crate::observed::{Room, Trouble, TroubleKind};
use crate::plan::tests::world::World;

fn of(world: &World) -> PaxosClusterStatus {
    compose(&world.desired, &world.o, &world.plan(), &Outcome::Nothing, &[])
}

/// Type, status and reason of a condition.
fn says<'a>(status: &'a PaxosClusterStatus, kind: &str) -> (&'a str, &'a str) {
    let c = status.conditions.iter().find(|c| c.type_ == kind).unwrap();
    (&c.status, &c.reason)
}

#[test]
fn a_cluster_at_rest_is_ready() {
    let world = World::formed(3);
    let status = of(&world);
    assert_eq!(says(&status, "Ready"), ("True", "AsDesired"));
    assert_eq!(says(&status, "Available"), ("True", "QuorumAvailable"));
    assert_eq!(says(&status, "Reconciling"), ("False", "Idle"));
    assert_eq!(says(&status, "Stalled"), ("False", "NotStalled"));
    assert_eq!(says(&status, "Degraded"), ("False", "Healthy"));
    assert_eq!(says(&status, "Bootstrapped"), ("True", "Formed"));
    assert_eq!((status.leader.as_deref(), status.voters, status.ready_replicas), (Some("demo-0"), 3, 3));
    assert_eq!(status.operation, None);
    assert!(status.conditions.iter().all(|c| c.observed_generation == Some(1)));
}

#[test]
fn growing_is_not_ready_and_says_what_it_waits_for() {
    let mut world = World::formed(3);
    world.want(5);
    let status = of(&world);
    assert_eq!(says(&status, "Ready"), ("False", "Growing"));
    assert_eq!(says(&status, "Available"), ("True", "QuorumAvailable"));
    assert_eq!(status.operation.unwrap().kind, crate::crd::OperationType::Grow);
}

#[test]
fn changing_settings_is_told_until_the_members_report_them() {
    let mut world = World::formed(3);
    world.desired.settings.leases = true;
    let status = of(&world);
    assert_eq!(says(&status, "Ready"), ("False", "Configuring"));
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready").unwrap();
    assert!(ready.message.contains("leases on"), "{}", ready.message);
    world.settle();
    assert_eq!(says(&of(&world), "Ready"), ("True", "AsDesired"));
}

#[test]
fn f13_after_a_total_loss_the_status_is_not_available() {
    let mut world = World::formed(3);
    for ordinal in 0..3 {
        world.silence(ordinal);
    }
    let status = of(&world);
    assert_eq!(says(&status, "Available"), ("False", "QuorumLost"));
    assert_eq!(says(&status, "Ready").0, "False");
    assert_eq!(status.leader, None);
}

#[test]
fn a_lost_quorum_keeps_each_members_last_position() {
    let mut world = World::formed(3);
    world.o.status = of(&world);
    world.o.status.members[1].chosen_through = Some(41);
    for ordinal in 0..3 {
        world.silence(ordinal);
    }
    assert_eq!(of(&world).members[1].chosen_through, Some(41));
}

/// O19: the first seconds of a pull, a crash or a Pending pod are no stall; tools would read it as failed.
#[test]
fn an_image_that_does_not_exist_is_named_at_once_and_stalls_after_the_deadline() {
    let mut world = World::formed(3);
    world.o.status = of(&world);
    world.silence(2);
    let trouble = Trouble { kind: TroubleKind::Image, message: "cannot get image nope:1".into() };
    world.o.pods.get_mut(&2).unwrap().trouble = Some(trouble);
    let status = of(&world);
    assert_eq!(says(&status, "Stalled"), ("False", "NotStalled"));
    assert_eq!(says(&status, "Ready"), ("False", "ImagePullFailed"));
    assert_eq!(says(&status, "Available"), ("True", "QuorumAvailable"), "the quorum is kept");
    assert_eq!(says(&status, "Degraded"), ("True", "VoterDown"));
    let told = |status: &PaxosClusterStatus, kind: &str| {
        let condition = status.conditions.iter().find(|c| c.type_ == kind).unwrap();
        assert!(condition.message.contains("nope:1"), "{}", condition.message);
    };
    told(&status, "Ready");
    world.o.status = status;
    world.o.now += SignedDuration::from_secs(601);
    let status = of(&world);
    assert_eq!(says(&status, "Stalled"), ("True", "ImagePullFailed"));
    told(&status, "Stalled");
}

/// O25: the deadline holds for a lost quorum too.
#[test]
fn a_lost_quorum_stalls_after_the_deadline() {
    let mut world = World::formed(3);
    world.o.status = of(&world);
    (0..3).for_each(|o| world.silence(o));
    world.o.status = of(&world);
    assert_eq!(says(&world.o.status, "Stalled").0, "False");
    world.o.now += SignedDuration::from_secs(601);
    assert_eq!(says(&of(&world), "Stalled"), ("True", "ProgressDeadlineExceeded"));
    assert_eq!(says(&of(&world), "Degraded"), ("True", "QuorumLost"), "O38: not Healthy");
}

/// O10: a full disk at one voter is Degraded; where appends are refused the log is not Available.
#[test]
fn o10_full_disks_are_told() {
    let mut world = World::formed(3);
    let room = |world: &mut World, ordinal: u32, room| world.o.reports.get_mut(&ordinal).unwrap().room = room;
    room(&mut world, 1, Room::Low);
    assert_eq!(says(&of(&world), "Degraded"), ("True", "DiskLow"));
    assert_eq!(says(&of(&world), "Available").0, "True");
    room(&mut world, 1, Room::Full);
    assert_eq!(says(&of(&world), "Degraded"), ("True", "DiskFull"));
    assert_eq!(says(&of(&world), "Available").0, "True", "the others are a quorum");
    room(&mut world, 2, Room::Full);
    assert_eq!(says(&of(&world), "Available"), ("False", "DiskFull"));
    let mut world = World::formed(3);
    room(&mut world, 0, Room::Full);
    assert_eq!(says(&of(&world), "Available"), ("False", "DiskFull"), "the leader refuses appends");
}

/// O11: a volume counts as grown when its capacity says so.
#[test]
fn o11_ready_waits_for_the_capacity() {
    let mut world = World::formed(3);
    world.desired.storage_bytes = 20 << 30;
    assert_eq!(says(&of(&world), "Ready"), ("False", "Resizing"), "the claim does not ask for it yet");
    world.settle();
    world.o.claims.values_mut().for_each(|c| c.capacity = 10 << 30);
    assert_eq!(says(&of(&world), "Ready"), ("False", "Resizing"));
    world.o.claims.values_mut().for_each(|c| c.capacity = 20 << 30);
    assert_eq!(says(&of(&world), "Ready"), ("True", "AsDesired"));
}

#[test]
fn o33_claims_that_are_being_deleted_are_told() {
    let mut world = World::formed(3);
    world.o.claims.get_mut(&1).unwrap().deleting = true;
    let status = of(&world);
    assert_eq!(says(&status, "Degraded"), ("True", "ClaimTerminating"));
    let degraded = status.conditions.iter().find(|c| c.type_ == "Degraded").unwrap();
    assert!(degraded.message.contains("data-demo-1"), "{}", degraded.message);
}

/// O8: a fault of one part is told, and hides nothing of the rest.
#[test]
fn o8_a_bad_template_is_told_and_the_quorum_is_reported_as_it_is() {
    let mut world = World::formed(3);
    let template = serde_json::json!({ "spec": { "hostNetwork": true, "containers": [{ "name": "a" }] } });
    let bad = crate::plan::tests::world::desired(3, |s| s.template = template.as_object().cloned());
    world.desired = bad;
    (0..3).for_each(|o| world.silence(o));
    let status = of(&world);
    assert_eq!(says(&status, "Stalled"), ("True", "InvalidTemplate"));
    assert_eq!(says(&status, "Available"), ("False", "QuorumLost"));
}

#[test]
fn one_or_two_voters_say_that_drains_are_blocked() {
    for n in [1, 2] {
        assert_eq!(says(&of(&World::formed(n)), "Degraded"), ("True", "DrainsBlocked"));
    }
}

#[test]
fn voters_on_one_node_are_reported() {
    let mut world = World::formed(3);
    for pod in world.o.pods.values_mut() {
        pod.node = Some("node0".into());
    }
    assert_eq!(says(&of(&world), "Degraded"), ("True", "VotersShareNode"));
}

#[test]
fn hibernation_is_its_own_state() {
    let mut world = World::formed(3);
    world.want(0);
    world.settle();
    let status = of(&world);
    assert_eq!(says(&status, "Available"), ("False", "Hibernated"));
    assert_eq!(says(&status, "Ready"), ("False", "Hibernated"));
    assert_eq!(says(&status, "Reconciling"), ("False", "Hibernated"));
}

#[test]
fn a_refusal_by_the_server_stalls_and_keeps_the_rest() {
    let world = World::formed(3);
    let stall = [Refusal { reason: Reason::InvalidTemplate, message: "no such field".into() }];
    let status = compose(&world.desired, &world.o, &world.plan(), &Outcome::Nothing, &stall);
    assert_eq!(says(&status, "Stalled"), ("True", "InvalidTemplate"));
    assert_eq!(says(&status, "Ready"), ("False", "InvalidTemplate"));
    assert_eq!(says(&status, "Available"), ("True", "QuorumAvailable"));
}

#[test]
fn transition_times_move_only_with_the_status() {
    let mut world = World::formed(3);
    world.o.status = of(&world);
    let before = world.o.now;
    world.o.now = before + SignedDuration::from_secs(60);
    let again = of(&world);
    assert!(again.conditions.iter().all(|c| c.last_transition_time.0 == before));
    world.want(5);
    let grown = of(&world);
    let ready = grown.conditions.iter().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!(ready.last_transition_time.0, world.o.now);
}

#[test]
fn an_operation_keeps_its_start_while_it_is_the_same() {
    let mut world = World::formed(3);
    world.want(5);
    world.o.status = of(&world);
    let started = world.o.status.operation.clone().unwrap().started_at;
    world.o.now += SignedDuration::from_secs(60);
    assert_eq!(of(&world).operation.unwrap().started_at, started);
}

#[test]
fn positions_alone_are_written_every_thirty_seconds() {
    let world = World::formed(3);
    let old = of(&world);
    let mut moved = old.clone();
    moved.last_index = Some(7);
    moved.members[0].applied_index = Some(7);
    let now = Timestamp::from_second(1_000_000).unwrap();
    let ago = |s| Some(now - SignedDuration::from_secs(s));
    assert!(!worth_writing(&old, &old, None, now));
    assert!(!worth_writing(&old, &moved, ago(29), now));
    assert!(worth_writing(&old, &moved, ago(30), now));
    assert!(worth_writing(&old, &moved, None, now));
    moved.leader = Some("demo-1".into());
    assert!(worth_writing(&old, &moved, ago(1), now));
}
