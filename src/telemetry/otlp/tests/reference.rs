//! The rows that the full messages mean, said a second time without a thought for speed; and cut-down messages, which hold
//! only what is read here, to judge records whose unread parts are broken.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    logs::v1::LogsData,
    metrics::v1::{MetricsData, exponential_histogram_data_point::Buckets, metric::Data, number_data_point},
    resource::v1::Resource,
    trace::v1::TracesData,
};
use prost::Message;

use super::{ENTRIES, Row};
use crate::Format;

struct Builder(Row);

impl Builder {
    fn set(&mut self, column: &str, value: impl ToString) {
        self.0.insert(column.to_owned(), value.to_string());
    }

    fn unless_empty(&mut self, column: &str, value: &str) {
        if !value.is_empty() {
            self.set(column, value);
        }
    }

    fn double(&mut self, column: &str, value: f64) {
        self.set(column, format!("{value:?}"));
    }

    fn double_if_any(&mut self, column: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.double(column, value);
        }
    }

    fn time(&mut self, column: &str, nanoseconds: u64) {
        if nanoseconds != 0 {
            self.set(column, nanoseconds / 1_000_000);
        }
    }

    fn list<T>(&mut self, column: &str, values: &[T], text: impl Fn(&T) -> String) {
        let texts: Vec<_> = values.iter().map(text).collect();
        self.set(column, texts.join(" "));
    }

    fn hex(&mut self, column: &str, bytes: &[u8]) {
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.unless_empty(column, &text);
    }

    fn attributes(&mut self, map: &str, attributes: &[KeyValue]) {
        let mut entries: Vec<(&str, Option<String>)> = Vec::new();
        for attribute in attributes {
            if entries.iter().all(|(key, _)| *key != attribute.key) {
                entries.push((&attribute.key, attribute.value.as_ref().and_then(text)));
            }
        }
        let texts: Vec<_> = entries
            .iter()
            .map(|(key, value)| format!("{key}={}", value.as_deref().unwrap_or("NULL")))
            .collect();
        self.set(map, texts.join(","));
        let mut columns: Vec<_> = ENTRIES
            .into_iter()
            .filter(|(of, _)| *of == map)
            .map(|(map, key)| (format!("{map}.{key}"), key))
            .collect();
        if map == "resource" {
            columns.push(("service_name".to_owned(), "service.name"));
            columns.push(("service_instance_id".to_owned(), "service.instance.id"));
        }
        for (column, wanted) in columns {
            if let Some((_, Some(value))) = entries.iter().find(|(key, _)| *key == wanted) {
                self.set(&column, value);
            }
        }
    }

    fn context(&mut self, resource: Option<&Resource>, scope: Option<&InstrumentationScope>) {
        self.attributes("resource", resource.map_or(&[], |resource| &resource.attributes));
        self.unless_empty("scope_name", scope.map_or("", |scope| &scope.name));
    }

    fn buckets(&mut self, side: &str, buckets: Option<&Buckets>) {
        if let Some(buckets) = buckets {
            self.set(&format!("{side}_offset"), buckets.offset);
            self.list(&format!("{side}_counts"), &buckets.bucket_counts, u64::to_string);
        }
    }
}

fn text(value: &AnyValue) -> Option<String> {
    Some(match value.value.as_ref()? {
        Value::StringValue(string) => string.clone(),
        Value::BytesValue(bytes) => base64(bytes),
        Value::StringValueStrindex(_) => return None,
        other => json(other),
    })
}

/// Written by hand, since a JSON library's map would lose keys that come twice.
fn json(value: &Value) -> String {
    let or_null = |value: Option<&AnyValue>| value.and_then(|v| v.value.as_ref()).map_or("null".to_owned(), json);
    match value {
        Value::StringValue(string) => serde_json::to_string(string).unwrap(),
        Value::BoolValue(value) => value.to_string(),
        Value::IntValue(value) => value.to_string(),
        Value::DoubleValue(value) => double(*value),
        Value::BytesValue(bytes) => format!("\"{}\"", base64(bytes)),
        Value::ArrayValue(array) => {
            let values: Vec<_> = array.values.iter().map(|value| or_null(Some(value))).collect();
            format!("[{}]", values.join(","))
        }
        Value::KvlistValue(list) => {
            let entries = list.values.iter();
            let entries = entries.map(|kv| {
                format!(
                    "{}:{}",
                    serde_json::to_string(&kv.key).unwrap(),
                    or_null(kv.value.as_ref())
                )
            });
            format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
        }
        Value::StringValueStrindex(_) => "null".to_owned(),
    }
}

/// As ECMAScript's `Number.prototype.toString`.
fn double(value: f64) -> String {
    let plain = value == 0.0 || !value.is_finite() || (1e-6..1e21).contains(&value.abs());
    match (plain, format!("{value:e}").split_once('e')) {
        (false, Some((digits, exponent))) if exponent.starts_with('-') => format!("{digits}e{exponent}"),
        (false, Some((digits, exponent))) => format!("{digits}e+{exponent}"),
        _ => value.to_string().replace("inf", "Infinity"),
    }
}

fn base64(bytes: &[u8]) -> String {
    let mut text = Vec::new();
    super::super::base64::encode(bytes, &mut text);
    String::from_utf8(text).unwrap()
}

pub(super) fn metrics(data: &MetricsData) -> Vec<Row> {
    let mut rows = Vec::new();
    for block in &data.resource_metrics {
        for scope_block in &block.scope_metrics {
            for metric in &scope_block.metrics {
                for mut point in points(metric.data.as_ref()) {
                    point.context(block.resource.as_ref(), scope_block.scope.as_ref());
                    point.unless_empty("metric_name", &metric.name);
                    point.unless_empty("description", &metric.description);
                    point.unless_empty("unit", &metric.unit);
                    rows.push(point.0);
                }
            }
        }
    }
    rows
}

/// What all kinds of points have; `None` when the point says that it has no value.
fn point(kind: &str, attributes: &[KeyValue], start: u64, time: u64, flags: u32) -> Option<Builder> {
    let mut row = Builder(Row::new());
    row.set("kind", kind);
    row.attributes("attributes", attributes);
    row.time("start_time", start);
    row.time("event_time", time);
    row.set("flags", flags);
    (flags & 1 == 0).then_some(row)
}

fn temporality(row: &mut Builder, temporality: i32) {
    match temporality {
        1 => row.set("temporality", "delta"),
        2 => row.set("temporality", "cumulative"),
        _ => {}
    }
}

fn points(data: Option<&Data>) -> Vec<Builder> {
    match data {
        None => Vec::new(),
        Some(Data::Gauge(gauge)) => {
            let points = gauge.data_points.iter();
            points.filter_map(|point| number_point("gauge", point)).collect()
        }
        Some(Data::Sum(sum)) => {
            let points = sum.data_points.iter();
            let rows = points.filter_map(|point| {
                let mut row = number_point("sum", point)?;
                temporality(&mut row, sum.aggregation_temporality);
                row.set("is_monotonic", sum.is_monotonic);
                Some(row)
            });
            rows.collect()
        }
        Some(Data::Histogram(histogram)) => {
            let rows = histogram.data_points.iter().filter_map(|p| {
                let mut row = point(
                    "histogram",
                    &p.attributes,
                    p.start_time_unix_nano,
                    p.time_unix_nano,
                    p.flags,
                )?;
                temporality(&mut row, histogram.aggregation_temporality);
                row.set("count", p.count);
                row.double_if_any("sum", p.sum);
                row.double_if_any("min", p.min);
                row.double_if_any("max", p.max);
                row.list("bucket_counts", &p.bucket_counts, u64::to_string);
                row.list("explicit_bounds", &p.explicit_bounds, |bound| format!("{bound:?}"));
                Some(row)
            });
            rows.collect()
        }
        Some(Data::ExponentialHistogram(histogram)) => {
            let rows = histogram.data_points.iter().filter_map(|p| {
                let kind = "exponential_histogram";
                let mut row = point(kind, &p.attributes, p.start_time_unix_nano, p.time_unix_nano, p.flags)?;
                temporality(&mut row, histogram.aggregation_temporality);
                row.set("count", p.count);
                row.double_if_any("sum", p.sum);
                row.double_if_any("min", p.min);
                row.double_if_any("max", p.max);
                row.set("scale", p.scale);
                row.set("zero_count", p.zero_count);
                row.double("zero_threshold", p.zero_threshold);
                row.buckets("positive", p.positive.as_ref());
                row.buckets("negative", p.negative.as_ref());
                Some(row)
            });
            rows.collect()
        }
        Some(Data::Summary(summary)) => {
            let rows = summary.data_points.iter().filter_map(|p| {
                let mut row = point(
                    "summary",
                    &p.attributes,
                    p.start_time_unix_nano,
                    p.time_unix_nano,
                    p.flags,
                )?;
                row.set("count", p.count);
                row.double("sum", p.sum);
                row.list("quantiles", &p.quantile_values, |pair| format!("{:?}", pair.quantile));
                row.list("quantile_values", &p.quantile_values, |pair| {
                    format!("{:?}", pair.value)
                });
                Some(row)
            });
            rows.collect()
        }
    }
}

fn number_point(kind: &str, p: &opentelemetry_proto::tonic::metrics::v1::NumberDataPoint) -> Option<Builder> {
    let mut row = point(kind, &p.attributes, p.start_time_unix_nano, p.time_unix_nano, p.flags)?;
    match p.value? {
        number_data_point::Value::AsDouble(value) => row.double("value", value),
        number_data_point::Value::AsInt(value) => {
            row.double("value", value as f64);
            row.set("value_int", value);
        }
    }
    Some(row)
}

pub(super) fn logs(data: &LogsData) -> Vec<Row> {
    let mut rows = Vec::new();
    for block in &data.resource_logs {
        for scope_block in &block.scope_logs {
            for record in &scope_block.log_records {
                let mut row = Builder(Row::new());
                row.context(block.resource.as_ref(), scope_block.scope.as_ref());
                row.attributes("attributes", &record.attributes);
                row.time("event_time", record.observed_time_unix_nano);
                row.time("event_time", record.time_unix_nano);
                row.time("observed_time", record.observed_time_unix_nano);
                if record.severity_number != 0 {
                    row.set("severity_number", record.severity_number);
                }
                row.unless_empty("severity_text", &record.severity_text);
                if let Some(body) = record.body.as_ref().and_then(text) {
                    row.set("body", body);
                }
                row.hex("trace_id", &record.trace_id);
                row.hex("span_id", &record.span_id);
                row.unless_empty("event_name", &record.event_name);
                row.set("flags", record.flags);
                rows.push(row.0);
            }
        }
    }
    rows
}

pub(super) fn spans(data: &TracesData) -> Vec<Row> {
    let mut rows = Vec::new();
    for block in &data.resource_spans {
        for scope_block in &block.scope_spans {
            for span in &scope_block.spans {
                let mut row = Builder(Row::new());
                row.context(block.resource.as_ref(), scope_block.scope.as_ref());
                row.attributes("attributes", &span.attributes);
                let (start, end) = (span.start_time_unix_nano, span.end_time_unix_nano);
                row.time("event_time", end);
                row.time("end_time", end);
                row.time("start_time", start);
                if start != 0 && end != 0 {
                    row.double("duration_ms", (i128::from(end) - i128::from(start)) as f64 / 1e6);
                }
                row.hex("trace_id", &span.trace_id);
                row.hex("span_id", &span.span_id);
                row.hex("parent_span_id", &span.parent_span_id);
                row.unless_empty("name", &span.name);
                let kinds = ["", "internal", "server", "client", "producer", "consumer"];
                row.unless_empty("kind", kinds.get(span.kind as usize).unwrap_or(&""));
                let status = span.status.clone().unwrap_or_default();
                let codes = ["unset", "ok", "error"];
                row.unless_empty("status_code", codes.get(status.code as usize).unwrap_or(&""));
                row.unless_empty("status_message", &status.message);
                row.set("flags", span.flags);
                rows.push(row.0);
            }
        }
    }
    rows
}

/// Do the parts that are read here hold what a full parser takes?
pub(super) fn judge_read_parts(format: Format, value: &[u8]) -> Result<(), prost::DecodeError> {
    match format {
        Format::OtlpMetrics { .. } => cut::MetricsData::decode(value).map(drop),
        Format::OtlpLogs { .. } => cut::LogsData::decode(value).map(drop),
        _ => cut::TracesData::decode(value).map(drop),
    }
}

/// The messages with the fields that are read, and no others.
mod cut {
    use prost::{Message, Oneof};

    #[derive(Clone, PartialEq, Message)]
    pub struct MetricsData {
        #[prost(message, repeated, tag = "1")]
        blocks: Vec<ResourceMetrics>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct ResourceMetrics {
        #[prost(message, optional, tag = "1")]
        resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        scopes: Vec<ScopeMetrics>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct ScopeMetrics {
        #[prost(message, optional, tag = "1")]
        scope: Option<Scope>,
        #[prost(message, repeated, tag = "2")]
        metrics: Vec<Metric>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Metric {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(string, tag = "2")]
        description: String,
        #[prost(string, tag = "3")]
        unit: String,
        #[prost(oneof = "Data", tags = "5, 7, 9, 10, 11")]
        data: Option<Data>,
    }

    #[derive(Clone, PartialEq, Oneof)]
    pub enum Data {
        #[prost(message, tag = "5")]
        Gauge(Sum),
        #[prost(message, tag = "7")]
        Sum(Sum),
        #[prost(message, tag = "9")]
        Histogram(Histogram),
        #[prost(message, tag = "10")]
        Exponential(Exponential),
        #[prost(message, tag = "11")]
        Summary(Summary),
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Sum {
        #[prost(message, repeated, tag = "1")]
        points: Vec<NumberPoint>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Histogram {
        #[prost(message, repeated, tag = "1")]
        points: Vec<HistogramPoint>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Exponential {
        #[prost(message, repeated, tag = "1")]
        points: Vec<ExponentialPoint>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Summary {
        #[prost(message, repeated, tag = "1")]
        points: Vec<SummaryPoint>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct NumberPoint {
        #[prost(message, repeated, tag = "7")]
        attributes: Vec<KeyValue>,
        #[prost(fixed64, tag = "3")]
        time: u64,
        #[prost(uint32, tag = "8")]
        flags: u32,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct HistogramPoint {
        #[prost(message, repeated, tag = "9")]
        attributes: Vec<KeyValue>,
        #[prost(fixed64, repeated, tag = "6")]
        counts: Vec<u64>,
        #[prost(double, repeated, tag = "7")]
        bounds: Vec<f64>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct ExponentialPoint {
        #[prost(message, repeated, tag = "1")]
        attributes: Vec<KeyValue>,
        #[prost(message, optional, tag = "8")]
        positive: Option<Buckets>,
        #[prost(message, optional, tag = "9")]
        negative: Option<Buckets>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Buckets {
        #[prost(sint32, tag = "1")]
        offset: i32,
        #[prost(uint64, repeated, tag = "2")]
        counts: Vec<u64>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct SummaryPoint {
        #[prost(message, repeated, tag = "7")]
        attributes: Vec<KeyValue>,
        #[prost(message, repeated, tag = "6")]
        quantiles: Vec<Quantile>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Quantile {
        #[prost(double, tag = "1")]
        quantile: f64,
        #[prost(double, tag = "2")]
        value: f64,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Resource {
        #[prost(message, repeated, tag = "1")]
        attributes: Vec<KeyValue>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Scope {
        #[prost(string, tag = "1")]
        name: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct KeyValue {
        #[prost(string, tag = "1")]
        key: String,
        #[prost(message, optional, tag = "2")]
        value: Option<AnyValue>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct AnyValue {
        #[prost(oneof = "Value", tags = "1, 2, 3, 4, 5, 6, 7")]
        value: Option<Value>,
    }

    #[derive(Clone, PartialEq, Oneof)]
    pub enum Value {
        #[prost(string, tag = "1")]
        String(String),
        #[prost(bool, tag = "2")]
        Bool(bool),
        #[prost(int64, tag = "3")]
        Int(i64),
        #[prost(double, tag = "4")]
        Double(f64),
        #[prost(message, tag = "5")]
        Array(Array),
        #[prost(message, tag = "6")]
        Map(Map),
        #[prost(bytes, tag = "7")]
        Bytes(Vec<u8>),
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Array {
        #[prost(message, repeated, tag = "1")]
        values: Vec<AnyValue>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Map {
        #[prost(message, repeated, tag = "1")]
        values: Vec<KeyValue>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct LogsData {
        #[prost(message, repeated, tag = "1")]
        blocks: Vec<ResourceLogs>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct ResourceLogs {
        #[prost(message, optional, tag = "1")]
        resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        scopes: Vec<ScopeLogs>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct ScopeLogs {
        #[prost(message, optional, tag = "1")]
        scope: Option<Scope>,
        #[prost(message, repeated, tag = "2")]
        records: Vec<LogRecord>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct LogRecord {
        #[prost(string, tag = "3")]
        severity_text: String,
        #[prost(message, optional, tag = "5")]
        body: Option<AnyValue>,
        #[prost(message, repeated, tag = "6")]
        attributes: Vec<KeyValue>,
        #[prost(string, tag = "12")]
        event_name: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct TracesData {
        #[prost(message, repeated, tag = "1")]
        blocks: Vec<ResourceSpans>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct ResourceSpans {
        #[prost(message, optional, tag = "1")]
        resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        scopes: Vec<ScopeSpans>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct ScopeSpans {
        #[prost(message, optional, tag = "1")]
        scope: Option<Scope>,
        #[prost(message, repeated, tag = "2")]
        spans: Vec<Span>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Span {
        #[prost(string, tag = "5")]
        name: String,
        #[prost(message, repeated, tag = "9")]
        attributes: Vec<KeyValue>,
        #[prost(message, optional, tag = "15")]
        status: Option<Status>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Status {
        #[prost(string, tag = "2")]
        message: String,
    }
}
