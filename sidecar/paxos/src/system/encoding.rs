//! The bytes of the system state: what is stored beside the rows, and what a snapshot consists of.

use super::{CHAIN_POINTS, LEADERS, Mark, SystemState};
use crate::codec::{DecodeError, Reader, Writer};
use crate::configuration::ConfigurationHistory;
use crate::limits;
use crate::sessions::Sessions;
use crate::settings::{Settings, nanos};
use crate::types::{Ballot, Index, MemberId, Slot, Time};
use crate::value::Checkpoint;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;
use core::time::Duration;

/// Version of the encoding.
const VERSION: u8 = 1;

impl SystemState {
    /// The bytes that are stored beside the rows, and that a snapshot consists of.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(512 + self.leaders.len() * 24 + self.sessions.rows() * 96);
        w.u8(VERSION);
        w.u64(self.applied.0);
        w.u64(self.last_index.0);
        w.u64(self.payload_bytes);
        w.u64(crate::settings::nanos(self.log_time));
        self.settings.write(&mut w);
        if self.settings.format_level >= Settings::TIMES {
            w.u64(self.entry_time.0);
        }
        w.array(&self.chain.to_le_bytes());
        w.length(self.chain_points.len());
        for (slot, chain) in &self.chain_points {
            w.u64(slot.0);
            w.array(&chain.to_le_bytes());
        }
        self.configurations.encode(&mut w);
        w.length(self.leaders.len());
        for (slot, ballot) in &self.leaders {
            w.u64(slot.0);
            w.u64(ballot.round);
            w.u64(ballot.member.0);
        }
        w.u32(self.recoveries);
        w.length(self.cursors.len());
        for (name, index) in &self.cursors {
            w.bytes(name.as_bytes());
            w.u64(index.0);
        }
        if self.settings.format_level >= Settings::TIMES {
            w.length(self.cursor_expiry.len());
            for (name, (expiry, heard)) in &self.cursor_expiry {
                w.bytes(name.as_bytes());
                w.u64(nanos(*expiry));
                w.u64(nanos(*heard));
            }
        }
        w.length(self.checkpoints.len());
        self.checkpoints.iter().for_each(|checkpoint| checkpoint.write(&mut w));
        self.trim.write(&mut w);
        w.length(self.marks.len());
        self.marks.iter().for_each(|mark| mark.write(&mut w));
        self.sessions.write(&mut w, self.settings.format_level);
        w.finish()
    }

    /// Reads what [`SystemState::encode`] wrote.
    ///
    /// # Errors
    /// Where the bytes are not a system state of a known version, or not those that this state has.
    pub fn decode(bytes: Bytes) -> Result<SystemState, DecodeError> {
        let mut r = Reader::new(bytes.clone());
        let version = r.u8()?;
        if version != VERSION {
            return Err(DecodeError::Unknown { what: "system state version", found: u64::from(version) });
        }
        let (applied, last_index) = (Slot(r.position("slot")?), Index(r.position("index")?));
        let (payload_bytes, log_time) = (r.position("payload")?, Duration::from_nanos(r.u64()?));
        let settings = Settings::read(&mut r)?;
        let timed = settings.format_level >= Settings::TIMES;
        let entry_time = Time(if timed { r.position("time")? } else { 0 });
        let chain = u128::from_le_bytes(r.array()?);
        let mut chain_points = Vec::new();
        for _ in 0..r.length("chain points", CHAIN_POINTS, 24)? {
            chain_points.push((Slot(r.u64()?), u128::from_le_bytes(r.array()?)));
        }
        let configurations = ConfigurationHistory::decode(&mut r)?;
        let mut leaders = Vec::new();
        for _ in 0..r.length("leaders", LEADERS, 24)? {
            let slot = Slot(r.u64()?);
            leaders.push((slot, Ballot { round: r.u64()?, member: MemberId(r.u64()?) }));
        }
        let recoveries = r.u32()?;
        let mut cursors = BTreeMap::new();
        for _ in 0..r.length("cursors", limits::CURSORS, 12)? {
            let name = r.text("cursor", limits::NAME_BYTES)?;
            cursors.insert(name, Index(r.u64()?));
        }
        let mut cursor_expiry = BTreeMap::new();
        let expiring = if timed { r.length("cursors that expire", limits::CURSORS, 20)? } else { 0 };
        for _ in 0..expiring {
            let name = r.text("cursor", limits::NAME_BYTES)?;
            let (expiry, heard) = (Duration::from_nanos(r.u64()?), Duration::from_nanos(r.u64()?));
            cursor_expiry.insert(name, (expiry, heard));
        }
        let mut checkpoints = Vec::new();
        for _ in 0..r.length("checkpoints", limits::CHECKPOINTS, 48)? {
            checkpoints.push(Checkpoint::read(&mut r)?);
        }
        let trim = Mark::read(&mut r)?;
        let mut marks = Vec::new();
        for _ in 0..r.length("marks", limits::MARKS, 32)? {
            marks.push(Mark::read(&mut r)?);
        }
        let sessions = Sessions::read(&mut r, settings.format_level)?;
        r.end()?;
        let state = SystemState {
            applied,
            last_index,
            payload_bytes,
            log_time,
            entry_time,
            settings,
            configurations,
            leaders,
            recoveries,
            sessions,
            cursors,
            cursor_expiry,
            checkpoints,
            marks,
            trim,
            chain,
            chain_points,
        };
        // One encoding for each state: a session or a key that stands there twice would leave its tables at odds.
        if state.encode() == bytes { Ok(state) } else { Err(DecodeError::Disordered) }
    }
}

impl Mark {
    fn write(&self, w: &mut Writer) {
        w.u64(self.slot.0);
        w.u64(self.index.0);
        w.u64(self.payload_bytes);
        w.u64(crate::settings::nanos(self.log_time));
    }

    fn read(r: &mut Reader) -> Result<Mark, DecodeError> {
        Ok(Mark {
            slot: Slot(r.u64()?),
            index: Index(r.u64()?),
            payload_bytes: r.u64()?,
            log_time: Duration::from_nanos(r.u64()?),
        })
    }
}
