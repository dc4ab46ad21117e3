//! Random edits and mishaps at random moments.

use proptest::prelude::*;

use super::world::World;
use crate::observed::MemberState;

/// What happens between steps.
#[derive(Clone, Debug)]
enum Act {
    Want(u32),
    Steps(u8),
    Roll,
    Restart(u32),
    Lead(u32),
    Leases(bool),
    /// A disk is lost: the pod comes back on an empty one.
    Empty(u32),
    /// Somebody deletes a claim.
    DeleteClaim(u32),
    /// A member falls behind.
    Lag(u32),
    /// A member says that it does not take part.
    Stick(u32, MemberState),
    /// All of them keep up again.
    KeepUp,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (1u32..=9).prop_map(Act::Want),
        (1u8..12).prop_map(Act::Steps),
        Just(Act::Roll),
        (0u32..9).prop_map(Act::Restart),
        (0u32..9).prop_map(Act::Lead),
        any::<bool>().prop_map(Act::Leases),
        (0u32..9).prop_map(Act::Empty),
        (0u32..9).prop_map(Act::DeleteClaim),
        (0u32..9).prop_map(Act::Lag),
        (0u32..9, state()).prop_map(|(o, state)| Act::Stick(o, state)),
        Just(Act::KeepUp),
    ]
}

fn state() -> impl Strategy<Value = MemberState> {
    prop_oneof![Just(MemberState::Recovering), Just(MemberState::Halted), Just(MemberState::Fenced)]
}

proptest! {
    /// Whatever is edited, restarted or re-elected in the middle of whatever, the plan arrives at what is
    /// wanted, and on the way no configured member is without a pod, no two members are unstarted, no
    /// leader is removed, no change is planned from a stale version and no eviction asks for more than the
    /// budget gives. A lost disk and claims that somebody deletes are replaced on the way; while members hang, no
    /// voter is taken out at the price of appends. docs: operator-rules.md, rules 2 to 4, 8 and 9, F20.
    #[test]
    fn every_course_of_edits_converges(acts in prop::collection::vec(act(), 1..20)) {
        let mut world = World::formed(3);
        let mut revision = 1;
        for act in acts {
            match act {
                Act::Want(n) => world.want(n),
                Act::Steps(n) => world.steps(n),
                Act::Roll => {
                    revision += 1;
                    world.new_revision(&format!("r{revision}"));
                }
                Act::Restart(o) if world.o.pods.contains_key(&o) && !world.goes(o) => world.restart(o),
                // Never so many that the log itself is lost: the others are a quorum and have whole disks.
                Act::Empty(o) if world.votes(o) && world.is_whole() && world.spares(o) => world.empty(o),
                Act::Lag(o) if world.o.reports.contains_key(&o) => world.lag(o),
                Act::Stick(o, state) if world.votes(o) && world.is_whole() && world.spares(o) => world.stick(o, state),
                Act::KeepUp => world.keep_up(),
                Act::DeleteClaim(o) if world.votes(o) && world.config().voters().count() > 1 => {
                    world.o.claims.get_mut(&o).unwrap().deleting = true;
                }
                Act::Lead(o) if world.can_lead(o) => world.lead(o),
                Act::Leases(on) => world.desired.settings.leases = on,
                Act::Restart(_) | Act::Lead(_) | Act::Empty(_) | Act::DeleteClaim(_) => {}
                Act::Lag(_) | Act::Stick(..) => {}
            }
        }
        world.keep_up();
        let end = world.settle();
        prop_assert_eq!(end.gate, None);
        let wanted = world.desired.replicas;
        prop_assert_eq!(world.o.set.as_ref().unwrap().replicas, wanted);
        prop_assert_eq!(u32::try_from(world.config().members.len()).unwrap(), wanted);
        prop_assert_eq!(u32::try_from(world.config().voters().count()).unwrap(), wanted.min(7));
        prop_assert_eq!(u32::try_from(world.o.claims.len()).unwrap(), wanted);
        prop_assert!(world.o.claims.values().all(|c| !c.deleting));
        prop_assert_eq!(world.settings.values, world.desired.settings);
        let revision = &world.o.set.as_ref().unwrap().update_revision;
        prop_assert!(world.o.pods.values().all(|p| &p.revision == revision));
    }
}
