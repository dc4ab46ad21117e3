//! What becomes of the calls of a member's sockets: counted by call and reason, timed, and traced.

use crate::spans::Span;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use tokio::time::Instant;
use tonic::codegen::http::request::Parts;
use tonic::codegen::http::{Extensions, HeaderMap};

/// The reason of a call that did what it was asked for.
pub(crate) const DONE: &str = "OK";
/// The reason of a call whose caller went away, or was cut off, before the whole answer was given.
const GONE: &str = "GONE";

/// The labels `call` and `reason`.
type ByReason = [(&'static str, &'static str); 2];
/// The label `call`.
type ByCall = [(&'static str, &'static str); 1];

/// Counts and times calls. Clones count into the same.
#[derive(Clone, Debug)]
pub struct Calls {
    /// Calls that have ended, by call and reason.
    pub answered: Family<ByReason, Counter>,
    /// How long a call took until it was answered; of a stream, until the answer began.
    pub seconds: Family<ByCall, Histogram, fn() -> Histogram>,
    /// Calls that have not ended.
    pub open: Gauge,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 4.0, 9))
}

impl Default for Calls {
    fn default() -> Calls {
        Calls {
            answered: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            open: Gauge::default(),
        }
    }
}

impl Calls {
    /// Counts one that has ended.
    pub(crate) fn count(&self, call: &'static str, reason: &'static str) {
        self.answered.get_or_create(&[("call", call), ("reason", reason)]).inc();
    }
}

/// How calls are told apart, and what their answers say. Everything that comes is one of few names.
#[derive(Clone, Debug)]
pub struct Observed {
    /// What is counted.
    pub calls: Calls,
    /// The name of a call, and whether it came over gRPC.
    pub name: fn(&Parts, bool) -> &'static str,
    /// The reason in an answer's head or trailers; none, if they say nothing yet of how it ends.
    pub reason: fn(&HeaderMap, &Extensions) -> Option<&'static str>,
}

impl Observed {
    /// A call has come.
    pub(super) fn begin(&self, request: &mut Parts, is_plain: bool) -> Seen {
        let call = (self.name)(request, is_plain);
        self.calls.open.inc();
        let span = Span::of_call(call, &request.headers);
        if let Some(trace) = crate::spans::Trace::of(span.as_ref(), &request.headers) {
            request.extensions.insert(trace);
        }
        Seen { observed: self.clone(), call, span, began: Instant::now(), ended: false }
    }
}

/// A call until it ends.
#[derive(Debug)]
pub(super) struct Seen {
    observed: Observed,
    call: &'static str,
    span: Option<Span>,
    began: Instant,
    ended: bool,
}

impl Seen {
    /// The head of the answer is there.
    pub(super) fn answered(&mut self, headers: &HeaderMap, extensions: &Extensions) {
        let seconds = self.began.elapsed().as_secs_f64();
        self.observed.calls.seconds.get_or_create(&[("call", self.call)]).observe(seconds);
        if let Some(reason) = (self.observed.reason)(headers, extensions) {
            self.end(reason);
        }
    }

    /// The last part of the answer is given.
    pub(super) fn trailers(&mut self, trailers: &HeaderMap) {
        let reason = (self.observed.reason)(trailers, &Extensions::new());
        self.end(reason.unwrap_or(DONE));
    }

    pub(super) fn end(&mut self, reason: &'static str) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.observed.calls.open.dec();
        self.observed.calls.count(self.call, reason);
        if let Some(span) = self.span.take() {
            span.end(reason, reason == DONE);
        }
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.end(GONE);
    }
}
