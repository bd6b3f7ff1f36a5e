//! The columns that each format knows, and how a projected field says that it is more than a column by name.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

/// How the value of a record is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `MetricsData`, which is also `ExportMetricsServiceRequest`: a row per data point.
    OtlpMetrics { json: bool },
    /// `LogsData`: a row per log record.
    OtlpLogs { json: bool },
    /// `TracesData`: a row per span.
    OtlpSpans { json: bool },
    /// One object per record, columns declared: a row per record.
    Json,
    /// `{"service", "instance", "time"}`: a row per record.
    Heartbeat,
    /// A sample of `prometheus-kafka-adapter`: a row per record.
    PrometheusJson,
    /// Telegraf's JSON, single or batch: a row per field of a metric.
    TelegrafJson,
    /// Alertmanager's webhook: a row per alert.
    Alertmanager,
}

impl Format {
    /// The name as the pipeline language writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::OtlpMetrics { json: false } => "otlp_metrics",
            Self::OtlpMetrics { json: true } => "otlp_metrics_json",
            Self::OtlpLogs { json: false } => "otlp_logs",
            Self::OtlpLogs { json: true } => "otlp_logs_json",
            Self::OtlpSpans { json: false } => "otlp_spans",
            Self::OtlpSpans { json: true } => "otlp_spans_json",
            Self::Json => "json",
            Self::Heartbeat => "heartbeat",
            Self::PrometheusJson => "prometheus_json",
            Self::TelegrafJson => "telegraf_json",
            Self::Alertmanager => "alertmanager",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The columns of a self-describing format; none for [`Format::Json`], whose columns are declared.
pub fn schema(format: Format) -> SchemaRef {
    static METRICS: LazyLock<SchemaRef> = LazyLock::new(metrics);
    static LOGS: LazyLock<SchemaRef> = LazyLock::new(logs);
    static SPANS: LazyLock<SchemaRef> = LazyLock::new(spans);
    static HEARTBEAT: LazyLock<SchemaRef> = LazyLock::new(heartbeat);
    static PROMETHEUS: LazyLock<SchemaRef> = LazyLock::new(prometheus);
    static TELEGRAF: LazyLock<SchemaRef> = LazyLock::new(telegraf);
    static ALERTMANAGER: LazyLock<SchemaRef> = LazyLock::new(alertmanager);
    match format {
        Format::OtlpMetrics { .. } => Arc::clone(&METRICS),
        Format::OtlpLogs { .. } => Arc::clone(&LOGS),
        Format::OtlpSpans { .. } => Arc::clone(&SPANS),
        Format::Heartbeat => Arc::clone(&HEARTBEAT),
        Format::PrometheusJson => Arc::clone(&PROMETHEUS),
        Format::TelegrafJson => Arc::clone(&TELEGRAF),
        Format::Alertmanager => Arc::clone(&ALERTMANAGER),
        Format::Json => Arc::new(Schema::empty()),
    }
}

/// A column that holds one entry of a map: `map_entry("route", "attributes", "http.route")` is what
/// `attributes['http.route']` reads, without building the map. NULL where the row has no such entry.
pub fn map_entry(name: &str, map: &str, key: &str) -> Field {
    Field::new(name, dictionary(), true).with_metadata(
        [(MAP, map), (KEY, key)]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
    )
}

/// Makes a declared column one that is read from the record rather than from its value: `key` (STRING or BYTES),
/// `topic`, `partition`, `offset`, `timestamp`, `headers` (a map), or `header:NAME` for one of them.
pub fn metadata_column(field: Field, property: &str) -> Field {
    let mut metadata = field.metadata().clone();
    metadata.insert(METADATA.to_owned(), property.to_owned());
    field.with_metadata(metadata)
}

pub(crate) const MAP: &str = "map";
pub(crate) const KEY: &str = "key";
pub(crate) const METADATA: &str = "metadata";

/// Strings that come again and again.
pub fn dictionary() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// Event time and its kin.
pub fn timestamp_ms() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

/// `resource`, `attributes`, `headers`.
pub fn string_map() -> DataType {
    let entries = Fields::from(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", DataType::Utf8, true),
    ]);
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false)
}

fn list(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, true)))
}

fn nullable(columns: Vec<(&str, DataType)>) -> SchemaRef {
    let fields: Vec<_> = columns
        .into_iter()
        .map(|(name, data_type)| Field::new(name, data_type, true))
        .collect();
    Arc::new(Schema::new(fields))
}

fn metrics() -> SchemaRef {
    nullable(vec![
        ("event_time", timestamp_ms()),
        ("start_time", timestamp_ms()),
        ("metric_name", dictionary()),
        ("description", dictionary()),
        ("unit", dictionary()),
        ("kind", dictionary()),
        ("value", DataType::Float64),
        ("value_int", DataType::Int64),
        ("temporality", dictionary()),
        ("is_monotonic", DataType::Boolean),
        ("count", DataType::Int64),
        ("sum", DataType::Float64),
        ("min", DataType::Float64),
        ("max", DataType::Float64),
        ("bucket_counts", list(DataType::UInt64)),
        ("explicit_bounds", list(DataType::Float64)),
        ("scale", DataType::Int32),
        ("zero_count", DataType::Int64),
        ("zero_threshold", DataType::Float64),
        ("positive_offset", DataType::Int32),
        ("positive_counts", list(DataType::UInt64)),
        ("negative_offset", DataType::Int32),
        ("negative_counts", list(DataType::UInt64)),
        ("quantiles", list(DataType::Float64)),
        ("quantile_values", list(DataType::Float64)),
        ("service_name", dictionary()),
        ("service_instance_id", dictionary()),
        ("scope_name", dictionary()),
        ("resource", string_map()),
        ("attributes", string_map()),
        ("flags", DataType::UInt32),
    ])
}

fn logs() -> SchemaRef {
    nullable(vec![
        ("event_time", timestamp_ms()),
        ("observed_time", timestamp_ms()),
        ("severity_number", DataType::Int32),
        ("severity_text", dictionary()),
        ("body", DataType::Utf8),
        ("trace_id", DataType::Utf8),
        ("span_id", DataType::Utf8),
        ("event_name", dictionary()),
        ("service_name", dictionary()),
        ("service_instance_id", dictionary()),
        ("scope_name", dictionary()),
        ("resource", string_map()),
        ("attributes", string_map()),
        ("flags", DataType::UInt32),
    ])
}

fn spans() -> SchemaRef {
    nullable(vec![
        ("event_time", timestamp_ms()),
        ("start_time", timestamp_ms()),
        ("end_time", timestamp_ms()),
        ("duration_ms", DataType::Float64),
        ("trace_id", DataType::Utf8),
        ("span_id", DataType::Utf8),
        ("parent_span_id", DataType::Utf8),
        ("name", dictionary()),
        ("kind", dictionary()),
        ("status_code", dictionary()),
        ("status_message", dictionary()),
        ("service_name", dictionary()),
        ("service_instance_id", dictionary()),
        ("scope_name", dictionary()),
        ("resource", string_map()),
        ("attributes", string_map()),
        ("flags", DataType::UInt32),
    ])
}

fn heartbeat() -> SchemaRef {
    nullable(vec![
        ("service", dictionary()),
        ("instance", dictionary()),
        ("sent_at", timestamp_ms()),
        ("event_time", timestamp_ms()),
    ])
}

fn prometheus() -> SchemaRef {
    nullable(vec![
        ("event_time", timestamp_ms()),
        ("metric_name", dictionary()),
        ("value", DataType::Float64),
        ("labels", string_map()),
    ])
}

fn telegraf() -> SchemaRef {
    nullable(vec![
        ("event_time", timestamp_ms()),
        ("name", dictionary()),
        ("field", dictionary()),
        ("value", DataType::Float64),
        ("value_int", DataType::Int64),
        ("value_text", dictionary()),
        ("tags", string_map()),
    ])
}

fn alertmanager() -> SchemaRef {
    nullable(vec![
        ("event_time", timestamp_ms()),
        ("starts_at", timestamp_ms()),
        ("ends_at", timestamp_ms()),
        ("status", dictionary()),
        ("alert_name", dictionary()),
        ("severity", dictionary()),
        ("fingerprint", dictionary()),
        ("generator_url", DataType::Utf8),
        ("receiver", dictionary()),
        ("group_key", dictionary()),
        ("external_url", dictionary()),
        ("labels", string_map()),
        ("annotations", string_map()),
    ])
}
