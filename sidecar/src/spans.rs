//! Spans of calls, sent to a collector by OTLP where there is one (docs: tracing.md).

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    Link, Span as _, SpanContext, SpanKind, Status, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;
use tonic::codegen::http::HeaderMap;

/// The header that names the caller's span (W3C Trace Context).
pub const TRACEPARENT: &str = "traceparent";
/// The span of an entry that was appended in a trace, when it goes to a subscriber.
const DELIVERED: &str = "Log.Subscribe (one entry)";
/// How long what was not sent yet may take at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// None: nothing is traced, which costs nothing.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Sends spans until it is ended.
#[derive(Debug)]
pub struct Exporting(SdkTracerProvider);

/// Begins to send spans to the collector at `endpoint`, over plain gRPC, in the name of the member. Traced is what callers
/// trace: a call without a sampled `traceparent` makes no span.
///
/// # Errors
/// If the endpoint is none.
pub fn export(endpoint: &str, member: &str) -> anyhow::Result<Exporting> {
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    let resource = Resource::builder_empty()
        .with_service_name("synod-sidecar")
        .with_attribute(KeyValue::new("service.instance.id", member.to_owned()))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOff)))
        .build();
    // A process has one member.
    drop(TRACER.set(provider.tracer("synod")));
    Ok(Exporting(provider))
}

impl Exporting {
    /// Sends what is left.
    pub async fn end(self) {
        // It waits for the collector, on a thread of its own.
        let ended = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(LAST_WORDS)).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::warn!("the last spans could not be sent");
        }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}

/// The span of one call; it ends when it is dropped.
#[derive(Debug)]
pub struct Span(opentelemetry_sdk::trace::Span);

impl Span {
    /// The span of a call that its caller traces.
    pub(crate) fn of_call(call: &'static str, headers: &HeaderMap) -> Option<Span> {
        let tracer = TRACER.get()?;
        headers.get(TRACEPARENT)?;
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        let sampled = parent.span().span_context().is_sampled();
        let builder = || tracer.span_builder(call).with_kind(SpanKind::Server);
        sampled.then(|| Span(builder().start_with_context(tracer, &parent)))
    }

    /// The call has ended.
    pub(crate) fn end(mut self, reason: &'static str, is_done: bool) {
        self.0.set_attribute(KeyValue::new("synod.reason", reason));
        self.0.set_status(if is_done { Status::Ok } else { Status::error(reason) });
        self.0.end();
    }
}

/// What a call passes on: the `traceparent` of its span here, or else the one that its caller sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace(pub String);

impl Trace {
    pub(crate) fn of(span: Option<&Span>, headers: &HeaderMap) -> Option<Trace> {
        match span {
            Some(span) => Some(Trace(written(span.0.span_context()))),
            None => Some(Trace(headers.get(TRACEPARENT)?.to_str().ok()?.to_owned())),
        }
    }
}

impl Trace {
    /// Whether somebody looks at it, and it is one.
    pub(crate) fn is_sampled(&self) -> bool {
        context(&self.0).is_some_and(|context| context.span().span_context().is_sampled())
    }
}

fn context(traceparent: &str) -> Option<Context> {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    context.span().span_context().is_valid().then_some(context)
}

/// Whether spans are sent.
pub(crate) fn is_on() -> bool {
    TRACER.get().is_some()
}

/// An entry goes to a subscriber. Where its append was traced that is a span of the append's trace, linked to the
/// subscriber's own call.
pub(crate) fn delivered(traceparent: &str, index: u64, call: Option<&Trace>) {
    let (Some(tracer), Some(parent)) = (TRACER.get(), context(traceparent)) else { return };
    if !parent.span().span_context().is_sampled() {
        return;
    }
    let of_call = call.and_then(|call| context(&call.0));
    let links = of_call.map(|call| Link::with_context(call.span().span_context().clone()));
    let index = i64::try_from(index).unwrap_or(i64::MAX);
    let builder = tracer.span_builder(DELIVERED).with_kind(SpanKind::Consumer);
    let builder = builder.with_attributes([KeyValue::new("synod.index", index)]);
    builder.with_links(links.into_iter().collect()).start_with_context(tracer, &parent).end();
}

/// W3C Trace Context, version 00.
fn written(span: &SpanContext) -> String {
    format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8())
}
