//! Trying again what may be repeated.

use crate::error::CallError;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(20);
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a call is tried by default.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How long one try may take where the call as a whole may take longer: a member that hangs is asked anew.
pub(crate) const TRY: Duration = Duration::from_secs(10);
/// A member says something on a stream every 10 s: one that says nothing for so long does not live.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);
/// No call takes longer; more than the clock can add is not an error.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// So long from now, ten years at most.
pub(crate) fn within(span: Duration) -> Instant {
    Instant::now() + span.min(LONGEST)
}

/// Carries out a call whose repeats do no harm, again and again until it is answered or `patience` is over.
pub(crate) async fn until_answered<Q: Clone, A, F>(
    patience: Duration,
    request: Q,
    mut call: impl FnMut(Request<Q>) -> F,
) -> Result<A, CallError>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    let deadline = within(patience);
    let mut pause = FIRST_PAUSE;
    loop {
        let mut one = Request::new(request.clone());
        one.set_timeout(deadline.saturating_duration_since(Instant::now()).min(TRY));
        let error = match call(one).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => CallError::from_status(&status),
        };
        let wait = error.retry_after.unwrap_or(pause);
        if !error.is_resumable() || Instant::now() + wait >= deadline {
            return Err(error);
        }
        tokio::time::sleep(wait).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
