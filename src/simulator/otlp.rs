//! Measurements as the OpenTelemetry Collector would write them to Kafka: a bare OTLP export request per record, no
//! key, no headers, and resource blocks side by side rather than merged.

use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Histogram as OtlpHistogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric, number_data_point,
    },
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan, Status, span, status},
};
use prost::Message;

use crate::meter::{BOUNDS_S, Histogram, Scrape, Span};

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub service: String,
    /// Changes with every process.
    pub instance: String,
    pub pid: u32,
}

/// The span of time that measurements cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    pub start_ns: u64,
    pub end_ns: u64,
}

/// Requests and memory, as two resource blocks: that is how the Collector's batches look.
pub fn metrics(identity: &Identity, interval: Interval, scrape: &Scrape, memory_bytes: u64) -> Vec<u8> {
    let mut requests: Vec<HistogramDataPoint> = Vec::new();
    for ending in Scrape::ENDINGS {
        let histogram = &scrape.durations[ending as usize];
        let mut attributes = vec![text("http.request.method", "GET")];
        attributes.push(integer("http.response.status_code", i64::from(ending.status())));
        attributes.extend(ending.error_type().map(|kind| text("error.type", kind)));
        requests.extend(point(histogram, attributes, interval));
    }
    let own: Vec<_> = point(&scrape.own, Vec::new(), interval).into_iter().collect();
    let memory = NumberDataPoint {
        start_time_unix_nano: interval.start_ns,
        time_unix_nano: interval.end_ns,
        value: Some(number_data_point::Value::AsInt(
            i64::try_from(memory_bytes).unwrap_or(i64::MAX),
        )),
        ..Default::default()
    };
    let mut http = Vec::new();
    for (name, description, points) in [
        ("http.server.request.duration", "Duration of requests served.", requests),
        (
            "shop.request.own.duration",
            "Own work on requests, without waiting for other services.",
            own,
        ),
    ] {
        if !points.is_empty() {
            http.push(histogram(name, description, points));
        }
    }
    let process = vec![Metric {
        name: "process.memory.usage".into(),
        description: "Resident memory of the process.".into(),
        unit: "By".into(),
        data: Some(metric::Data::Sum(Sum {
            data_points: vec![memory],
            aggregation_temporality: AggregationTemporality::Cumulative as i32,
            is_monotonic: false,
        })),
        ..Default::default()
    }];
    let blocks = [("shop.http", http), ("shop.process", process)];
    let resource_metrics = blocks
        .into_iter()
        .filter(|(_, metrics)| !metrics.is_empty())
        .map(|(scope, metrics)| ResourceMetrics {
            resource: Some(resource(identity)),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(named(scope)),
                metrics,
                ..Default::default()
            }],
            ..Default::default()
        })
        .collect();
    ExportMetricsServiceRequest { resource_metrics }.encode_to_vec()
}

/// `None` when there is none.
pub fn spans(identity: &Identity, scrape: &Scrape) -> Option<Vec<u8>> {
    if scrape.spans.is_empty() {
        return None;
    }
    let block = ResourceSpans {
        resource: Some(resource(identity)),
        scope_spans: vec![ScopeSpans {
            scope: Some(named("shop.http")),
            spans: scrape.spans.iter().map(otlp_span).collect(),
            ..Default::default()
        }],
        ..Default::default()
    };
    Some(
        ExportTraceServiceRequest {
            resource_spans: vec![block],
        }
        .encode_to_vec(),
    )
}

/// `{"service", "instance", "time"}`.
pub fn heartbeat(identity: &Identity, now_ms: i64) -> Vec<u8> {
    let beat = serde_json::json!({
        "service": identity.service,
        "instance": identity.instance,
        "time": protocol::time::to_rfc3339(now_ms),
    });
    beat.to_string().into_bytes()
}

fn histogram(name: &str, description: &str, data_points: Vec<HistogramDataPoint>) -> Metric {
    Metric {
        name: name.into(),
        description: description.into(),
        unit: "s".into(),
        data: Some(metric::Data::Histogram(OtlpHistogram {
            data_points,
            aggregation_temporality: AggregationTemporality::Delta as i32,
        })),
        ..Default::default()
    }
}

/// A delta without requests says nothing and is not sent.
fn point(histogram: &Histogram, attributes: Vec<KeyValue>, interval: Interval) -> Option<HistogramDataPoint> {
    (histogram.count > 0).then(|| HistogramDataPoint {
        attributes,
        start_time_unix_nano: interval.start_ns,
        time_unix_nano: interval.end_ns,
        count: histogram.count,
        sum: Some(histogram.sum_s),
        min: Some(histogram.min_s),
        max: Some(histogram.max_s),
        bucket_counts: histogram.buckets.to_vec(),
        explicit_bounds: BOUNDS_S.to_vec(),
        ..Default::default()
    })
}

fn otlp_span(finished: &Span) -> OtlpSpan {
    let kind = if finished.client {
        span::SpanKind::Client
    } else {
        span::SpanKind::Server
    };
    let code = if finished.failed {
        status::StatusCode::Error
    } else {
        status::StatusCode::Unset
    };
    OtlpSpan {
        trace_id: finished.context.trace_id.to_vec(),
        span_id: finished.context.span_id.to_vec(),
        parent_span_id: finished.parent.map(|id| id.to_vec()).unwrap_or_default(),
        name: finished.name.clone(),
        kind: kind as i32,
        start_time_unix_nano: finished.start_ns,
        end_time_unix_nano: finished.end_ns,
        status: Some(Status {
            code: code as i32,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn resource(identity: &Identity) -> Resource {
    Resource {
        attributes: vec![
            text("service.name", &identity.service),
            text("service.instance.id", &identity.instance),
            text("service.namespace", "shop"),
            integer("process.pid", i64::from(identity.pid)),
        ],
        ..Default::default()
    }
}

fn named(scope: &str) -> InstrumentationScope {
    InstrumentationScope {
        name: scope.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..Default::default()
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value.into()))
}

fn integer(key: &str, value: i64) -> KeyValue {
    attribute(key, any_value::Value::IntValue(value))
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(value) }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::metrics::v1::MetricsData;

    use super::*;
    use crate::{call::TraceContext, meter::Ending};

    fn identity() -> Identity {
        Identity {
            service: "cart".into(),
            instance: "cart-17".into(),
            pid: 17,
        }
    }

    #[test]
    fn a_record_holds_every_metric_of_the_interval() {
        let mut scrape = Scrape::default();
        scrape.request(Ending::Served, 0.02, 0.01);
        scrape.request(Ending::Failed, 0.4, 0.4);
        let bytes = metrics(&identity(), Interval { start_ns: 1, end_ns: 2 }, &scrape, 4096);
        let read = MetricsData::decode(bytes.as_slice()).unwrap();
        let metrics: Vec<_> = read
            .resource_metrics
            .iter()
            .flat_map(|block| &block.scope_metrics)
            .flat_map(|scope| &scope.metrics)
            .map(|metric| metric.name.as_str())
            .collect();
        assert_eq!(
            metrics,
            [
                "http.server.request.duration",
                "shop.request.own.duration",
                "process.memory.usage"
            ]
        );
        assert_eq!(read.resource_metrics.len(), 2);
    }

    #[test]
    fn without_requests_only_memory_is_said() {
        let bytes = metrics(
            &identity(),
            Interval { start_ns: 1, end_ns: 2 },
            &Scrape::default(),
            4096,
        );
        let read = MetricsData::decode(bytes.as_slice()).unwrap();
        assert_eq!(read.resource_metrics.len(), 1);
    }

    #[test]
    fn spans_keep_their_parent() {
        let mut scrape = Scrape::default();
        assert_eq!(spans(&identity(), &scrape), None);
        let context = TraceContext {
            trace_id: [1; 16],
            span_id: [2; 8],
        };
        scrape.span(Span {
            context,
            parent: Some([3; 8]),
            name: "show".into(),
            client: true,
            start_ns: 5,
            end_ns: 9,
            failed: true,
        });
        let bytes = spans(&identity(), &scrape).unwrap();
        let read = ExportTraceServiceRequest::decode(bytes.as_slice()).unwrap();
        let span = &read.resource_spans[0].scope_spans[0].spans[0];
        assert_eq!(
            (span.parent_span_id.as_slice(), span.kind),
            ([3u8; 8].as_slice(), span::SpanKind::Client as i32)
        );
    }

    #[test]
    fn a_heartbeat_is_three_fields() {
        let beat: serde_json::Value = serde_json::from_slice(&heartbeat(&identity(), 0)).unwrap();
        assert_eq!(
            beat,
            serde_json::json!({"service": "cart", "instance": "cart-17", "time": "1970-01-01T00:00:00.000Z"})
        );
    }
}
