//! What the core asks for: sends, writes, reads, answers; each checked and counted on its way.

use crate::coverage::Rule;
use crate::faults::Fault;
use crate::invariants::{epochs, leases, leaving, memory, stream, told, votes};
use crate::member::AskedRead;
use crate::oracle::{Outcome, Violation, violation};
use crate::world::{Effect, World};
use synod_paxos::message::Message;
use synod_paxos::status::MemberState;
use synod_paxos::value::Value;
use synod_paxos::{Applied, MemberId, Node, Notice, Output, Refusal, Reply, Slot, Write};

impl World {
    /// Takes a member's outputs, then checks what must hold.
    pub(crate) fn pump(&mut self, id: MemberId) -> Result<(), Violation> {
        let mut applied = false;
        loop {
            let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
            let local = member.clock.local(self.now);
            let wall = member.clock.wall(self.now);
            let output = member.node.as_mut().and_then(|node| {
                node.set_wall_clock(wall);
                node.poll_output(local)
            });
            let Some(output) = output else { break };
            applied |= matches!(output, Output::Applied(_));
            self.take_output(id, output)?;
        }
        self.want_tick(id);
        self.check(id, applied)
    }

    fn check(&mut self, id: MemberId, applied: bool) -> Result<(), Violation> {
        let Some(member) = self.members.get(&id) else { return Ok(()) };
        let (local, began_removed) = (member.clock.local(self.now), member.began_removed);
        let Some(node) = &member.node else { return Ok(()) };
        node.check_invariants();
        memory::check(id, node, &self.bounds, (self.clients.len(), self.padding))?;
        if applied {
            if !self.diverged.contains(&id) {
                self.agreement.check(id, node)?;
            }
            epochs::check(node)?;
            if let Some(system) = node.system() {
                self.chosen.check(node, system.applied)?;
                self.oracle.dense(system.applied)?;
            }
            self.oracle.settle_owed()?;
            let rests = node.next_deadline().is_none() && !began_removed;
            if rests && node.status(local).state == MemberState::Removed {
                self.check_retired(id)?;
            }
        }
        self.proposals.check(&self.chosen, node)
    }

    fn want_tick(&mut self, id: MemberId) {
        let now = self.now;
        let Some(member) = self.members.get_mut(&id) else { return };
        let Some(deadline) = member.node.as_ref().and_then(Node::next_deadline) else { return };
        let at = member.clock.global(deadline).max(now);
        if member.tick_at.is_none_or(|scheduled| at < scheduled) {
            member.tick_at = Some(at);
            self.effects.push(Effect::Tick(id, at));
        }
    }

    fn take_output(&mut self, id: MemberId, output: Output) -> Result<(), Violation> {
        match output {
            Output::Send(outgoing) => {
                self.check_leaving(id, outgoing.message())?;
                self.effects.push(Effect::Sent(Box::new(outgoing.to_incoming())));
            }
            Output::Persist(batch) => {
                let diverged = self.diverged.contains(&id);
                for write in batch.writes().iter().filter(|_| !diverged) {
                    self.snapshots.written(id, write)?;
                }
                if let Some(member) = self.members.get_mut(&id) {
                    for write in batch.writes() {
                        if let Write::Row(row) = write {
                            self.recovery.proposed(id, &member.disk, row)?;
                        }
                    }
                    member.disk.pending.push_back(batch);
                }
                self.start_sync(id);
            }
            Output::OpenView { view } => {
                if let Some(member) = self.members.get_mut(&id) {
                    member.disk.open(view);
                }
            }
            Output::ReadView { view, from, bytes } => {
                if let Some(member) = self.members.get_mut(&id) {
                    member.reads.push_back(AskedRead { view, from, bytes });
                    self.effects.push(Effect::Reading(id));
                }
            }
            Output::CloseView(view) => {
                if let Some(member) = self.members.get_mut(&id) {
                    member.disk.close(view);
                }
            }
            Output::ReadSnapshot { slot } => {
                if let Some(member) = self.members.get_mut(&id) {
                    let state = member.disk.snapshot(slot)?;
                    let local = member.clock.local(self.now);
                    if let Some(node) = member.node.as_mut() {
                        node.handle(local, synod_paxos::Input::SnapshotRead { slot, state });
                    }
                }
            }
            Output::Applied(applied) => self.take_applied(id, &applied)?,
            Output::Installed { slot, index } => {
                self.trace.line(self.now, || format!("{id:?} installs a snapshot at {slot:?}, {index:?}"));
                self.coverage.rule(Rule::Installed);
                if let Some(member) = self.members.get_mut(&id) {
                    if let Some(node) = &member.node {
                        self.snapshots.installed(id, slot, node)?;
                        votes::kept(id, self.genesis.cluster, &member.disk, node)?;
                    }
                    // A subscriber that was behind it is told that the log begins later.
                    member.streamed = member.streamed.max(index);
                }
            }
            Output::Trimmed { slot, index } => {
                self.trace.line(self.now, || format!("{id:?} trims to {slot:?}, {index:?}"));
                self.coverage.rule(Rule::Trimmed);
                let newest = self.node(id).and_then(|n| n.system()?.checkpoints.last().copied());
                if newest.is_some_and(|checkpoint| checkpoint.index < index) {
                    let evidence = format!("trimmed to {index:?}, saved is {newest:?}");
                    return violation("checkpoints hold back the trim", evidence);
                }
                let passed = self.clients.iter().filter_map(|c| c.cursor).find(|cursor| *cursor < index);
                if let Some(cursor) = passed {
                    return violation(
                        "cursors hold back the trim",
                        format!("{cursor:?}, trimmed to {index:?}"),
                    );
                }
            }
            Output::CallReply { request, outcome } => {
                let outcome = match outcome {
                    Ok(Reply::Appended { first, last, .. }) => Outcome::Appended(first, last),
                    Ok(Reply::SessionOpened(session)) => Outcome::Session(session.0),
                    Ok(Reply::CursorSet(index) | Reply::CursorNew(index)) => Outcome::Cursor(index),
                    Ok(Reply::CheckpointSaved) => Outcome::Checkpoint,
                    Ok(Reply::SettingsChanged(settings)) => Outcome::Settings(settings.version),
                    Ok(_) => Outcome::Unknown,
                    Err(Refusal::OutcomeUnknown) => Outcome::Unknown,
                    Err(refusal) => Outcome::Refused(refusal),
                };
                self.answer(id, request, &outcome)?;
            }
            Output::ReadReady { request, outcome } => {
                let outcome = outcome.map_or_else(Outcome::Refused, Outcome::Read);
                self.answer(id, request, &outcome)?;
            }
            Output::AdminReply { request, outcome } => {
                self.judge_admin(request, &outcome)?;
                self.trace.line(self.now, || format!("{id:?} answers {request:?}: {outcome:?}"));
            }
            Output::LeaderChanged { leader } => {
                self.trace.line(self.now, || format!("{id:?} follows {leader:?}"));
            }
            Output::Notice(notice) => {
                self.judge_notice(id, &notice)?;
                self.take_notice(id, &notice);
            }
        }
        Ok(())
    }

    fn check_leaving(&mut self, id: MemberId, message: &Message) -> Result<(), Violation> {
        let Some(member) = self.members.get(&id) else { return Ok(()) };
        leaving::check(&member.disk, self.genesis.cluster, &self.chosen, message)?;
        if self.rolled_back.contains(&id) {
            leaving::check_rolled_back(id, message)?;
        }
        leaving::check_barred(member, message)?;
        told::check(&self.chosen, id, message)?;
        if !self.rolled_back.contains(&id) {
            self.names.sent(id, member.disk.state().incarnation, message)?;
        }
        self.whole_promises.check(id, &member.disk, message)?;
        self.proposals.sent(id, message)?;
        self.trims.sent(id, &self.members, &self.rolled_back, message)?;
        match message {
            Message::Promise { chunk, rows, .. } => {
                if *chunk > 0 {
                    self.coverage.rule(Rule::PromiseInChunks);
                }
                if rows.iter().any(|row| !row.chosen) {
                    self.coverage.rule(Rule::PromiseWithRows);
                }
            }
            Message::SnapshotRequest { offset, .. } if *offset > 0 => {
                let resumes = member.began_fetched == Some(*offset);
                self.coverage.rule(if resumes { Rule::FetchResumed } else { Rule::FetchedInParts });
            }
            Message::Learned { rows, .. } if !rows.is_empty() => self.coverage.rule(Rule::ChosenSent),
            Message::Welcome { full_genesis: Some(_), .. } => self.coverage.rule(Rule::GenesisSent),
            _ => {}
        }
        Ok(())
    }

    fn take_applied(&mut self, id: MemberId, applied: &Applied) -> Result<(), Violation> {
        self.trace.step(self.now, 3, id.0, applied.slot.0);
        self.trace.line(self.now, || format!("{id:?} applies {:?}", applied.slot));
        if let Some(member) = self.members.get_mut(&id) {
            let level = member.node.as_ref().and_then(|node| node.system());
            let level = level.map_or(1, |system| system.settings.format_level);
            member.disk.applied(applied, level);
            let behind = member.streamed;
            stream::check(member, applied)?;
            if member.boot > 2 && behind.0 > 0 && behind < member.streamed && !member.was_active {
                self.coverage.rule(Rule::StreamResumed);
            }
            let state = member.node.as_ref().filter(|_| !member.was_active);
            if state.is_some_and(|node| *node.member_state() == MemberState::Active) {
                member.was_active = true;
                if member.boot > 2 {
                    self.coverage.rule(Rule::RecoveredMember);
                }
            }
        }
        self.oracle.applied(id, applied)?;
        if self.chosen.value(applied.slot).is_none() {
            self.count_value(id, applied)?;
        }
        Ok(())
    }

    /// The first member to apply a slot tells what kind of value it holds.
    fn count_value(&mut self, id: MemberId, applied: &Applied) -> Result<(), Violation> {
        let Some(node) = self.node(id) else { return Ok(()) };
        // Its own disk may not have it yet, or what a lying disk put there.
        let mut rows = self.members.values().filter_map(|m| m.disk.rows().get(&applied.slot));
        let row = rows.find(|row| row.slot == applied.slot && self.chosen.is_winner(node, row));
        let Some(value) = row.and_then(|row| Value::decode(row.value.clone()).ok()) else { return Ok(()) };
        let ballot = row.map(|row| row.ballot);
        match value {
            Value::NoOp => self.coverage.rule(Rule::NoOpChosen),
            Value::LeaderStart { .. } | Value::Mark | Value::Trim { .. } | Value::Recovered { .. } => {}
            Value::Batch { ballot: taken, .. } => {
                if ballot.is_some_and(|under| taken < under) {
                    self.coverage.rule(Rule::ValueAdopted);
                }
                if let (Some(system), Some(under)) = (self.node(id).and_then(Node::system), ballot) {
                    epochs::check_batch(system, applied, taken, under)?;
                }
                let void = applied.entries.is_empty() && self.is_void(id, applied.slot, taken);
                self.coverage.rule(if void { Rule::VoidBatchChosen } else { Rule::BatchChosen });
            }
            Value::Configuration(entry) => {
                let made = self.node(id).and_then(|n| n.system()).is_some_and(|s| {
                    s.configurations.made_by(&entry.operation).is_some_and(|c| c.slot == applied.slot)
                });
                let rule = if made { Rule::ConfigurationChosen } else { Rule::ConfigurationVoid };
                self.coverage.rule(rule);
            }
        }
        Ok(())
    }

    fn is_void(&self, id: MemberId, slot: Slot, taken: synod_paxos::Ballot) -> bool {
        let system = self.node(id).and_then(|n| n.system());
        system.is_some_and(|s| s.leaders.iter().any(|(at, ballot)| *at < slot && taken < *ballot))
    }

    fn judge_notice(&mut self, id: MemberId, notice: &Notice) -> Result<(), Violation> {
        match notice {
            Notice::Leading { ballot, .. } => leases::check(&self.members, self.now, *ballot),
            Notice::Removed => self.check_retired(id),
            // All members run one version here: what one proposes, every other reads.
            Notice::Undecodable { .. }
            | Notice::Unreadable { .. }
            | Notice::NotProposed { .. }
            | Notice::Withheld { .. } => {
                violation("whatever is proposed can be read", format!("{id:?}: {notice:?}"))
            }
            _ => Ok(()),
        }
    }

    /// `id` answers nobody from now on.
    fn check_retired(&self, id: MemberId) -> Result<(), Violation> {
        let systems = self.members.values().filter_map(|m| m.node.as_ref()?.system());
        match systems.max_by_key(|system| system.applied) {
            Some(system) => self.retirement.check(id, &system.configurations),
            None => Ok(()),
        }
    }

    fn take_notice(&mut self, id: MemberId, notice: &Notice) {
        self.trace.line(self.now, || format!("{id:?}: {notice:?}"));
        match notice {
            Notice::Campaigning(_)
            | Notice::Leading { .. }
            | Notice::SteppedDown { .. }
            | Notice::Configured(_)
            | Notice::Installed { .. } => self.effects.push(Effect::Moment(id)),
            Notice::Diverged { .. } => self.effects.push(Effect::Halted(id)),
            _ => {}
        }
        let rule = match notice {
            Notice::Campaigning(_) => Rule::Campaigned,
            Notice::Leading { .. } => Rule::LeaderStarted,
            Notice::SteppedDown { why, .. } => match *why {
                "no answers from a quorum" => Rule::SteppedDownSilent,
                "a peer has promised a higher ballot" => Rule::SteppedDownNacked,
                "promised a higher ballot" => Rule::SteppedDownPromised,
                "another member leads under a higher ballot" => Rule::SteppedDownHeard,
                "another batch was chosen in a slot of ours" => Rule::SteppedDownOtherBatch,
                _ => Rule::SteppedDownOtherwise,
            },
            Notice::Configured(configuration) => {
                let removed = configuration.removed.as_ref().map(|(member, _)| *member);
                let leads = self.node(id).is_some_and(|n| n.role() == synod_paxos::status::Role::Leader);
                if removed == Some(id) && leads {
                    self.coverage.rule(Rule::LeaderRemoved);
                }
                return;
            }
            Notice::Removed => Rule::Retired,
            Notice::Fenced(_) => Rule::Fenced,
            Notice::Damaged { from: None, .. } => {
                if self.members.get(&id).is_some_and(|m| m.tick_at.is_none()) {
                    self.coverage.rule(Rule::DamageBars);
                }
                Rule::DamageMet
            }
            Notice::Diverged { .. } => Rule::DivergenceFound,
            Notice::Damaged { .. }
            | Notice::Healed { .. }
            | Notice::DamagedSnapshot { .. }
            | Notice::Undecodable { .. }
            | Notice::Unreadable { .. }
            | Notice::NotProposed { .. }
            | Notice::Withheld { .. }
            | Notice::Installed { .. } => return,
        };
        self.coverage.rule(rule);
    }

    /// Counts a fault that only its driver can see.
    pub fn met(&mut self, fault: Fault) {
        self.coverage.fault(fault);
    }
}
