//! Does a list of steps again, from a file or from memory.
//!
//! An event file is JSON lines: the setup first, then one step a line.

use crate::action::{Action, Step};
use crate::coverage::MessageKind;
use crate::disk_faults::DiskFault;
use crate::member::Clock;
use crate::oracle::Violation;
use crate::run::assertion;
use crate::setup::Setup;
use crate::world::{Effect, World};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use synod_paxos::{Incoming, MemberId, RequestId, Slot};

/// Messages on their way, by link and kind, oldest first.
type Pool = BTreeMap<(u64, u64, MessageKind), VecDeque<Incoming>>;

/// What a replay came to.
#[derive(Debug)]
pub struct Replayed {
    /// What broke, if something did.
    pub violation: Option<Violation>,
    /// Of the steps, those that did something before it broke, by place.
    pub effective: Vec<usize>,
    /// The world at the end.
    pub world: World,
}

/// Does `steps` in a world made by `setup`.
pub fn replay(setup: &Setup, steps: &[Step], keep_trace: bool) -> Replayed {
    let mut world = World::new(setup, keep_trace);
    let mut pool = Pool::new();
    let mut effective = Vec::new();
    let mut violation = None;
    for (place, step) in steps.iter().enumerate() {
        world.now = world.now.max(step.at);
        let done = catch_unwind(AssertUnwindSafe(|| perform(&mut world, &mut pool, &step.action)));
        match done {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => effective.push(place),
            Ok(Err(broken)) => violation = Some(broken),
            Err(panic) => violation = Some(assertion(&*panic)),
        }
        if violation.is_some() {
            effective.push(place);
            break;
        }
        for effect in std::mem::take(&mut world.effects) {
            if let Effect::Sent(incoming) = effect {
                let key = (incoming.from.0, incoming.to.0, MessageKind::of(&incoming.message));
                pool.entry(key).or_default().push_back(*incoming);
            }
        }
    }
    Replayed { violation, effective, world }
}

/// Does one step; false: it was not possible.
fn perform(world: &mut World, pool: &mut Pool, action: &Action) -> Result<bool, Violation> {
    let id = |number: &u64| MemberId(*number);
    match action {
        Action::Add { member } => world.add(id(member)),
        Action::Start { member, seed, offset, drift } => {
            world.start(id(member), *seed, Clock { offset: *offset, drift: *drift })
        }
        Action::Crash { member, kept, torn } => world.crash(id(member), *kept, *torn),
        Action::Connect { member, peer } => world.connection(id(member), id(peer), true),
        Action::Disconnect { member, peer } => world.connection(id(member), id(peer), false),
        Action::Deliver { from, to, kind, nth, again } => {
            let waiting = pool.entry((*from, *to, *kind)).or_default();
            let message = match again {
                true => waiting.get(*nth).cloned(),
                false => waiting.remove(*nth),
            };
            match message {
                Some(message) => world.deliver(message).map(|()| true),
                None => Ok(false),
            }
        }
        Action::Drop { from, to, kind, nth } => {
            Ok(pool.entry((*from, *to, *kind)).or_default().remove(*nth).is_some())
        }
        Action::Tick { member } => world.tick(id(member)),
        Action::Synced { member } => world.synced(id(member)),
        Action::Read { member, rows } => world.read_rows(id(member), *rows),
        Action::Call { client, member, request, operation } => {
            world.call(*client, id(member), RequestId(*request), operation)
        }
        Action::Cancel { client, request } => world.cancel(*client, RequestId(*request)),
        Action::Admin { member, request, command } => world.admin(id(member), RequestId(*request), command),
        Action::Destroy { member } => world.destroy(id(member)),
        Action::Flip { member, slot } => {
            Ok(world.disk(id(member), DiskFault::FlippedRow, |m| m.disk.damage(Slot(*slot))))
        }
        Action::FlipFlag { member, slot } => {
            Ok(world.disk(id(member), DiskFault::FlippedFlag, |m| m.disk.flip_flag(Slot(*slot))))
        }
        Action::Lose { member, slot } => {
            Ok(world.disk(id(member), DiskFault::LostRow, |m| m.disk.lose(Slot(*slot))))
        }
        Action::FlipByte { member, chance } => {
            Ok(world.disk(id(member), DiskFault::FlippedByte, |m| m.disk.flip_byte(*chance)))
        }
        Action::Scrub { member, slot } => world.scrub(id(member), Slot(*slot)),
        Action::Misdirect { member, slot, over } => {
            Ok(world.disk(id(member), DiskFault::MisdirectedWrite, |m| {
                m.disk.misdirect(Slot(*slot), Slot(*over))
            }))
        }
        Action::LoseSyncs { member } => Ok(with_disk(world, id(member), |m| m.disk.lose_syncs())),
        Action::KeepSyncs { member } => Ok(with_disk(world, id(member), |m| m.disk.keep_syncs())),
        Action::Copy { member } => Ok(with_disk(world, id(member), |m| m.disk.put_copy_aside())),
        Action::Restore { member } => Ok(world.restore(id(member))),
        Action::Diverge { member } => Ok(world.diverge(id(member))),
        Action::Jump { member, by } => world.jump(id(member), *by),
        Action::Note { text, .. } => {
            world.trace.line(world.now, || format!("-- {text}"));
            Ok(true)
        }
    }
}

fn with_disk(world: &mut World, id: MemberId, change: impl FnOnce(&mut crate::member::Member)) -> bool {
    world.members.get_mut(&id).map(change).is_some()
}

/// The lines of an event file.
///
/// # Errors
/// Where a value cannot be written as JSON.
pub fn write_events(setup: &Setup, steps: &[Step]) -> Result<String, serde_json::Error> {
    let mut text = serde_json::to_string(setup)? + "\n";
    for step in steps {
        text += &serde_json::to_string(step)?;
        text.push('\n');
    }
    Ok(text)
}

/// Reads what [`write_events`] wrote.
///
/// # Errors
/// The first line that is not what it should be, by its number.
pub fn read_events(text: &str) -> Result<(Setup, Vec<Step>), (usize, serde_json::Error)> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let (_, first) = lines.next().unwrap_or((0, ""));
    let setup = serde_json::from_str(first).map_err(|error| (1, error))?;
    let steps = lines.map(|(i, line)| serde_json::from_str(line).map_err(|error| (i + 1, error)));
    Ok((setup, steps.collect::<Result<_, _>>()?))
}
