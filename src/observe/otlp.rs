//! Export by OTLP over HTTP with protobuf, as the OpenTelemetry specification lays it down.
//!
//! One thread sends spans a second after they were recorded at the latest, and all metrics at every interval. The ids of
//! spans are given, which an SDK's tracer does not allow, so the messages are made here.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
        ScopeMetrics, Sum, metric, number_data_point,
    },
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Status, span::SpanKind, status::StatusCode},
};
use prost::Message;
use reqwest::blocking::Client;
use uuid::Uuid;

use crate::{Error, Kind, Metrics, Service, Snapshot, Span, Spans, metrics};

const QUEUE_MAX: usize = 8_192;
const BATCH_MAX: usize = 512;
const SPAN_DELAY: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);
const ATTEMPTS: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Where to export to, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Otlp {
    pub traces: Option<Endpoint>,
    pub metrics: Option<Endpoint>,
    pub metrics_interval: Duration,
    pub timeout: Duration,
    pub service_name: Option<String>,
    pub resource: BTreeMap<String, String>,
}

/// A URL and the headers to send there.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub url: String,
    pub headers: BTreeMap<String, String>,
}

impl Otlp {
    /// Reads OpenTelemetry's environment variables through `variable`; `None` when no endpoint is named.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, Error> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        if set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let headers = pairs(
            "OTEL_EXPORTER_OTLP_HEADERS",
            set("OTEL_EXPORTER_OTLP_HEADERS").as_deref(),
        )?;
        let endpoint = |signal: &str, path: &str| -> Result<Option<Endpoint>, Error> {
            let own = format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT");
            let (name, url) = match (set(&own), set("OTEL_EXPORTER_OTLP_ENDPOINT")) {
                (Some(url), _) => (own, url),
                (None, Some(base)) => (
                    "OTEL_EXPORTER_OTLP_ENDPOINT".into(),
                    format!("{}{path}", base.trim_end_matches('/')),
                ),
                (None, None) => return Ok(None),
            };
            let usable = reqwest::Url::parse(&url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
            if !usable {
                return Err(Error::Otlp(format!(
                    "{name} = {url:?} is no http or https URL, such as http://localhost:4318"
                )));
            }
            Ok(Some(Endpoint {
                url,
                headers: headers.clone(),
            }))
        };
        let (traces, metrics) = (endpoint("TRACES", "/v1/traces")?, endpoint("METRICS", "/v1/metrics")?);
        if traces.is_none() && metrics.is_none() {
            return Ok(None);
        }
        let duration = |name: &str, default_ms: u64| match set(name) {
            None => Ok(Duration::from_millis(default_ms)),
            Some(text) => match text.trim().parse() {
                Ok(ms) if ms > 0 => Ok(Duration::from_millis(ms)),
                _ => Err(Error::Otlp(format!("{name} = {text:?} is no number of milliseconds"))),
            },
        };
        Ok(Some(Self {
            traces,
            metrics,
            metrics_interval: duration("OTEL_METRIC_EXPORT_INTERVAL", 60_000)?,
            timeout: duration("OTEL_EXPORTER_OTLP_TIMEOUT", 10_000)?,
            service_name: set("OTEL_SERVICE_NAME"),
            resource: pairs("OTEL_RESOURCE_ATTRIBUTES", set("OTEL_RESOURCE_ATTRIBUTES").as_deref())?,
        }))
    }

    /// From the process's environment.
    pub fn from_environment() -> Result<Option<Self>, Error> {
        Self::from_variables(|name| std::env::var(name).ok())
    }
}

/// `key=value,key=value`, values percent-encoded.
fn pairs(name: &str, text: Option<&str>) -> Result<BTreeMap<String, String>, Error> {
    let wrong = |part: &str| Error::Otlp(format!("{name}: {part:?} is not key=value"));
    text.unwrap_or_default()
        .split(',')
        .filter(|part| !part.trim().is_empty())
        .map(|part| {
            let (key, value) = part.split_once('=').ok_or_else(|| wrong(part))?;
            let value = percent_decode(value.trim()).ok_or_else(|| wrong(part))?;
            Ok((key.trim().to_owned(), value))
        })
        .collect()
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let hex = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

/// The way of spans to the exporting thread.
#[derive(Clone)]
pub struct Queue {
    sender: SyncSender<Span>,
    metrics: Arc<Metrics>,
}

impl Queue {
    pub fn push(&self, span: Span) {
        if self.sender.try_send(span).is_err() {
            self.metrics.count("spans_dropped_total", &[("why", "queue")], 1.0);
        }
    }
}

/// The exporting thread. Dropping it sends what is left, each request once.
pub struct Exporter {
    queue: Option<Queue>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    pub fn start(otlp: Otlp, service: &Service, instance: Uuid, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let (sender, spans) = sync_channel(QUEUE_MAX);
        let queue = otlp.traces.is_some().then(|| Queue {
            sender,
            metrics: Arc::clone(&metrics),
        });
        let stop = Arc::new(AtomicBool::new(false));
        let mut work = Work {
            resource: resource(&otlp, service, instance),
            scope: InstrumentationScope {
                name: service.name.to_owned(),
                version: service.version.to_owned(),
                ..InstrumentationScope::default()
            },
            started_ns: now_ns(),
            otlp,
            metrics,
            stop: Arc::clone(&stop),
            warned: false,
        };
        let thread = thread::Builder::new()
            .name("otlp".into())
            .spawn(move || match Client::builder().timeout(work.otlp.timeout).build() {
                Ok(client) => work.run(&client, &spans),
                Err(error) => tracing::error!(%error, "nothing is exported"),
            })
            .map_err(|error| Error::Otlp(format!("the exporting thread cannot be started: {error}")))?;
        Ok(Self {
            queue,
            stop,
            thread: Some(thread),
        })
    }

    pub fn spans(&self) -> Spans {
        Spans(self.queue.clone())
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Work {
    otlp: Otlp,
    resource: Resource,
    scope: InstrumentationScope,
    started_ns: u64,
    metrics: Arc<Metrics>,
    stop: Arc<AtomicBool>,
    /// An endpoint that is away is told of once, until it is back.
    warned: bool,
}

impl Work {
    fn run(&mut self, client: &Client, spans: &Receiver<Span>) {
        let mut batch = Vec::new();
        let mut spans_due = Instant::now() + SPAN_DELAY;
        let mut metrics_due = Instant::now() + self.otlp.metrics_interval;
        while !self.stop.load(Ordering::SeqCst) {
            match spans.recv_timeout(TICK) {
                Ok(span) => batch.push(span),
                Err(RecvTimeoutError::Timeout) => {}
                // Only metrics are exported.
                Err(RecvTimeoutError::Disconnected) => thread::sleep(TICK),
            }
            if batch.len() >= BATCH_MAX || Instant::now() >= spans_due {
                self.send_spans(client, &mut batch);
                spans_due = Instant::now() + SPAN_DELAY;
            }
            if Instant::now() >= metrics_due {
                self.send_metrics(client);
                metrics_due = Instant::now() + self.otlp.metrics_interval;
            }
        }
        batch.extend(spans.try_iter());
        self.send_spans(client, &mut batch);
        self.send_metrics(client);
    }

    fn send_spans(&mut self, client: &Client, batch: &mut Vec<Span>) {
        let Some(endpoint) = self.otlp.traces.clone() else {
            return;
        };
        if batch.is_empty() {
            return;
        }
        let count = batch.len();
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(self.scope.clone()),
                    spans: batch.drain(..).map(proto_span).collect(),
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        if !self.post(client, &endpoint, request.encode_to_vec()) {
            self.metrics
                .count("spans_dropped_total", &[("why", "endpoint")], count as f64);
        }
    }

    fn send_metrics(&mut self, client: &Client) {
        let Some(endpoint) = self.otlp.metrics.clone() else {
            return;
        };
        let request = ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.resource.clone()),
                scope_metrics: vec![ScopeMetrics {
                    scope: Some(self.scope.clone()),
                    metrics: proto_metrics(self.metrics.snapshot(), self.started_ns, now_ns()),
                    ..ScopeMetrics::default()
                }],
                ..ResourceMetrics::default()
            }],
        };
        self.post(client, &endpoint, request.encode_to_vec());
    }

    /// Whether it was taken. Only what may pass is tried again, and at the end nothing is.
    fn post(&mut self, client: &Client, endpoint: &Endpoint, body: Vec<u8>) -> bool {
        let mut reason = String::new();
        for attempt in 0..ATTEMPTS {
            let request = endpoint
                .headers
                .iter()
                .fold(client.post(&endpoint.url), |request, (name, value)| {
                    request.header(name, value)
                })
                .header("content-type", "application/x-protobuf")
                .body(body.clone());
            let may_pass = match request.send() {
                Ok(response) if response.status().is_success() => {
                    self.warned = false;
                    return true;
                }
                Ok(response) => {
                    reason = format!("it answered {}", response.status());
                    matches!(response.status().as_u16(), 429 | 502..=504)
                }
                Err(error) => {
                    reason = error.without_url().to_string();
                    true
                }
            };
            if !may_pass || self.stop.load(Ordering::SeqCst) {
                break;
            }
            thread::sleep(RETRY_PAUSE * 2u32.pow(attempt));
        }
        if !self.warned {
            self.warned = true;
            tracing::warn!(url = endpoint.url, reason, "telemetry cannot be exported");
        }
        false
    }
}

fn resource(otlp: &Otlp, service: &Service, instance: Uuid) -> Resource {
    let mut attributes = otlp.resource.clone();
    let name = otlp.service_name.clone().or_else(|| attributes.remove("service.name"));
    attributes.insert("service.name".into(), name.unwrap_or_else(|| service.name.to_owned()));
    attributes.insert("service.version".into(), service.version.to_owned());
    attributes
        .entry("service.instance.id".into())
        .or_insert_with(|| instance.to_string());
    Resource {
        attributes: attributes
            .into_iter()
            .map(|(key, value)| key_value(&key, value))
            .collect(),
        ..Resource::default()
    }
}

fn key_value(key: &str, value: String) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(any_value::Value::StringValue(value)),
        }),
        ..KeyValue::default()
    }
}

fn proto_span(span: Span) -> opentelemetry_proto::tonic::trace::v1::Span {
    let kind = match span.kind {
        Kind::Internal => SpanKind::Internal,
        Kind::Producer => SpanKind::Producer,
        Kind::Consumer => SpanKind::Consumer,
    };
    opentelemetry_proto::tonic::trace::v1::Span {
        trace_id: span.trace_id.to_vec(),
        span_id: span.span_id.to_vec(),
        parent_span_id: span.parent.map(|parent| parent.to_vec()).unwrap_or_default(),
        // Sampled.
        flags: 1,
        name: span.name.into_owned(),
        kind: kind as i32,
        start_time_unix_nano: nanoseconds(span.start_ms),
        end_time_unix_nano: nanoseconds(span.end_ms),
        attributes: span
            .attributes
            .into_iter()
            .map(|(key, value)| key_value(key, value))
            .collect(),
        status: span.error.map(|message| Status {
            message,
            code: StatusCode::Error as i32,
        }),
        ..opentelemetry_proto::tonic::trace::v1::Span::default()
    }
}

fn nanoseconds(ms: i64) -> u64 {
    u64::try_from(ms).unwrap_or(0).saturating_mul(1_000_000)
}

fn now_ns() -> u64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

fn proto_metrics(snapshots: Vec<Snapshot>, started_ns: u64, now_ns: u64) -> Vec<Metric> {
    let mut metrics: Vec<Metric> = Vec::new();
    for snapshot in snapshots {
        let attributes = snapshot
            .labels
            .into_iter()
            .map(|(key, value)| key_value(key, value))
            .collect();
        let number = |value: f64, attributes| NumberDataPoint {
            attributes,
            start_time_unix_nano: started_ns,
            time_unix_nano: now_ns,
            value: Some(number_data_point::Value::AsDouble(value)),
            ..NumberDataPoint::default()
        };
        let data = match snapshot.value {
            metrics::Value::Counter(total) => metric::Data::Sum(Sum {
                data_points: vec![number(total, attributes)],
                aggregation_temporality: AggregationTemporality::Cumulative as i32,
                is_monotonic: true,
            }),
            metrics::Value::Gauge(value) => metric::Data::Gauge(Gauge {
                data_points: vec![number(value, attributes)],
            }),
            metrics::Value::Histogram(distribution) => metric::Data::Histogram(Histogram {
                data_points: vec![HistogramDataPoint {
                    attributes,
                    start_time_unix_nano: started_ns,
                    time_unix_nano: now_ns,
                    count: distribution.count(),
                    sum: Some(distribution.sum),
                    bucket_counts: distribution.counts.to_vec(),
                    explicit_bounds: metrics::BOUNDS_S.to_vec(),
                    ..HistogramDataPoint::default()
                }],
                aggregation_temporality: AggregationTemporality::Cumulative as i32,
            }),
        };
        match metrics.last_mut().filter(|metric| metric.name == snapshot.name) {
            Some(metric) => join(metric, data),
            None => metrics.push(Metric {
                unit: if snapshot.name.ends_with("_seconds") {
                    "s".into()
                } else {
                    String::new()
                },
                name: snapshot.name,
                data: Some(data),
                ..Metric::default()
            }),
        }
    }
    metrics
}

/// Points of one name stand in one metric.
fn join(metric: &mut Metric, data: metric::Data) {
    match (&mut metric.data, data) {
        (Some(metric::Data::Sum(all)), metric::Data::Sum(one)) => all.data_points.extend(one.data_points),
        (Some(metric::Data::Gauge(all)), metric::Data::Gauge(one)) => all.data_points.extend(one.data_points),
        (Some(metric::Data::Histogram(all)), metric::Data::Histogram(one)) => all.data_points.extend(one.data_points),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
