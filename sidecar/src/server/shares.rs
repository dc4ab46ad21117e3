//! How many sessions a user of the socket may have opened: one application must not take the whole table.

use super::failure;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use synod_paxos::{SessionId, Settings};
use synod_proto::v1::{Failure, Reason};
use tokio::time::Instant;

/// A user's part of the session table, at one member.
const PARTS: u32 = 8;
/// Of a small table, no less than this.
const LEAST: u32 = 16;

/// Sessions that users opened through this member, and when.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// By user id; none: the system does not say who calls.
    by_user: Mutex<HashMap<Option<u32>, BTreeMap<SessionId, Instant>>>,
}

impl Shares {
    /// Whether `user` may open one more session. One that was opened longer ago than a session may be idle does not count.
    pub(super) fn may_open(&self, user: Option<u32>, settings: &Settings) -> Result<(), Box<Failure>> {
        let share = (settings.limits.session_rows / PARTS).max(LEAST) as usize;
        let mut by_user = self.by_user.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = by_user.entry(user).or_default();
        forget_old(opened, settings.limits.session_idle);
        if opened.len() < share {
            return Ok(());
        }
        let message = format!(
            "this user has opened {share} sessions at this member, its share of the table: close some, or wait until they \
             expire"
        );
        Err(Box::new(failure::refused(Reason::TooManySessions, message)))
    }

    pub(super) fn opened(&self, user: Option<u32>, session: SessionId) {
        let mut by_user = self.by_user.lock().unwrap_or_else(PoisonError::into_inner);
        by_user.entry(user).or_default().insert(session, Instant::now());
    }

    pub(super) fn closed(&self, session: SessionId) {
        let mut by_user = self.by_user.lock().unwrap_or_else(PoisonError::into_inner);
        for opened in by_user.values_mut() {
            opened.remove(&session);
        }
        by_user.retain(|_, opened| !opened.is_empty());
    }
}

fn forget_old(opened: &mut BTreeMap<SessionId, Instant>, idle: Duration) {
    opened.retain(|_, at| at.elapsed() <= idle);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_does_not_take_the_share_of_another() {
        let mut settings = Settings::default();
        settings.limits.session_rows = 160;
        let shares = Shares::default();
        for session in 1..=20 {
            assert!(shares.may_open(Some(1_000), &settings).is_ok());
            shares.opened(Some(1_000), SessionId(session));
        }
        let refused = shares.may_open(Some(1_000), &settings).map_err(|failure| failure.reason());
        assert_eq!(refused, Err(Reason::TooManySessions));
        assert!(shares.may_open(Some(1_001), &settings).is_ok());
        assert!(shares.may_open(None, &settings).is_ok());
        shares.closed(SessionId(2));
        assert!(shares.may_open(Some(1_000), &settings).is_ok());
    }
}
