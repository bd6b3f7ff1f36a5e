//! Random messages from a seed.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value::Value},
    logs::v1::{LogRecord, LogsData, ResourceLogs, ScopeLogs},
    metrics::v1::{
        Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric,
        MetricsData, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint,
        exponential_histogram_data_point::Buckets, metric::Data, number_data_point,
        summary_data_point::ValueAtQuantile,
    },
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, TracesData, span::Event},
};

use crate::testing::Random;

/// What the tests draw from a seed.
pub(super) struct Generator {
    random: Random,
    /// No NaN, no infinities: JSON has none.
    finite: bool,
}

/// So that a generator draws like its source.
impl std::ops::Deref for Generator {
    type Target = Random;

    fn deref(&self) -> &Random {
        &self.random
    }
}

impl std::ops::DerefMut for Generator {
    fn deref_mut(&mut self) -> &mut Random {
        &mut self.random
    }
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            finite: false,
        }
    }

    pub fn finite(seed: u64) -> Self {
        Self {
            finite: true,
            ..Self::new(seed)
        }
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn many<T>(&mut self, max: usize, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(max + 1)).map(|_| one(self)).collect()
    }

    fn maybe<T>(&mut self, one: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.chance(0.7).then(|| one(self))
    }

    fn string(&mut self) -> String {
        match self.below(8) {
            0 => String::new(),
            1 => "grüße \"漢\"\n".to_owned(),
            2 => "x".repeat(self.below(300)),
            _ => format!("{}-{}", self.pick(&["http.server.duration", "cpu", "a"]), self.below(5)),
        }
    }

    fn key(&mut self) -> String {
        self.pick(&[
            "route",
            "a",
            "b",
            "service.name",
            "service.instance.id",
            "k8s.pod.name",
            "",
        ])
        .to_owned()
    }

    fn double(&mut self) -> f64 {
        let special = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        match self.below(10) {
            0 if !self.finite => self.pick(&special),
            1 => 0.0,
            _ => self.below(1 << 20) as f64 / 8.0 - 1000.0,
        }
    }

    /// A double whose text is plain in every notation.
    fn attribute_double(&mut self) -> f64 {
        self.below(1 << 16) as f64 / 8.0 - 1000.0
    }

    fn time(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => self.below(5) as u64,
            _ => 1_700_000_000_000_000_000 + self.next() % 1_000_000_000_000,
        }
    }

    fn any_value(&mut self, depth: usize) -> AnyValue {
        let nested = if depth < 3 { 10 } else { 8 };
        let value = match self.below(nested) {
            0 => None,
            1 => Some(Value::BoolValue(self.chance(0.5))),
            2 => Some(Value::IntValue(self.next() as i64)),
            3 => Some(Value::DoubleValue(self.attribute_double())),
            4 => Some(Value::BytesValue(self.many(5, |g| g.next() as u8))),
            8 => {
                let values = self.many(3, |g| g.any_value(depth + 1));
                Some(Value::ArrayValue(ArrayValue { values }))
            }
            9 => {
                let values = self.many(3, |g| g.key_value(depth + 1));
                Some(Value::KvlistValue(KeyValueList { values }))
            }
            _ => Some(Value::StringValue(self.string())),
        };
        AnyValue { value }
    }

    fn key_value(&mut self, depth: usize) -> KeyValue {
        KeyValue {
            key: self.key(),
            value: self.maybe(|g| g.any_value(depth)),
            ..KeyValue::default()
        }
    }

    fn attributes(&mut self) -> Vec<KeyValue> {
        let max = if self.chance(0.02) { 60 } else { 5 };
        self.many(max, |g| g.key_value(0))
    }

    fn resource(&mut self) -> Resource {
        Resource {
            attributes: self.attributes(),
            dropped_attributes_count: self.below(2) as u32,
            ..Resource::default()
        }
    }

    fn scope(&mut self) -> InstrumentationScope {
        InstrumentationScope {
            name: self.string(),
            version: "1.0".to_owned(),
            attributes: self.attributes(),
            ..InstrumentationScope::default()
        }
    }

    pub fn metrics_data(&mut self) -> MetricsData {
        MetricsData {
            resource_metrics: self.many(3, |g| ResourceMetrics {
                resource: g.maybe(Self::resource),
                scope_metrics: g.many(3, |g| ScopeMetrics {
                    scope: g.maybe(Self::scope),
                    metrics: g.many(4, Self::metric),
                    schema_url: g.string(),
                }),
                schema_url: g.string(),
            }),
        }
    }

    fn metric(&mut self) -> Metric {
        Metric {
            name: self.string(),
            description: self.string(),
            unit: self.pick(&["ms", "By", ""]).to_owned(),
            metadata: self.attributes(),
            data: self.maybe(Self::data),
        }
    }

    fn data(&mut self) -> Data {
        let aggregation_temporality = self.below(4) as i32;
        match self.below(5) {
            0 => Data::Gauge(Gauge {
                data_points: self.many(4, Self::number_point),
            }),
            1 => Data::Sum(Sum {
                data_points: self.many(4, Self::number_point),
                aggregation_temporality,
                is_monotonic: self.chance(0.5),
            }),
            2 => Data::Histogram(Histogram {
                data_points: self.many(4, Self::histogram_point),
                aggregation_temporality,
            }),
            3 => Data::ExponentialHistogram(ExponentialHistogram {
                data_points: self.many(4, Self::exponential_point),
                aggregation_temporality,
            }),
            _ => Data::Summary(Summary {
                data_points: self.many(4, Self::summary_point),
            }),
        }
    }

    fn flags(&mut self) -> u32 {
        self.pick(&[0, 0, 0, 1, 2, 3])
    }

    fn exemplar(&mut self) -> Exemplar {
        Exemplar {
            filtered_attributes: self.attributes(),
            time_unix_nano: self.time(),
            span_id: vec![1; 8],
            trace_id: vec![2; 16],
            ..Exemplar::default()
        }
    }

    fn number_point(&mut self) -> NumberDataPoint {
        NumberDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: self.time(),
            time_unix_nano: self.time(),
            exemplars: self.many(1, Self::exemplar),
            flags: self.flags(),
            value: self.maybe(|g| match g.below(2) {
                0 => number_data_point::Value::AsDouble(g.double()),
                _ => number_data_point::Value::AsInt(g.next() as i64),
            }),
        }
    }

    fn histogram_point(&mut self) -> HistogramDataPoint {
        HistogramDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: self.time(),
            time_unix_nano: self.time(),
            count: self.below(1000) as u64,
            sum: self.maybe(Self::double),
            bucket_counts: self.many(6, |g| g.next()),
            explicit_bounds: self.many(6, Self::double),
            exemplars: self.many(1, Self::exemplar),
            flags: self.flags(),
            min: self.maybe(Self::double),
            max: self.maybe(Self::double),
        }
    }

    fn exponential_point(&mut self) -> ExponentialHistogramDataPoint {
        ExponentialHistogramDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: self.time(),
            time_unix_nano: self.time(),
            count: self.below(1000) as u64,
            sum: self.maybe(Self::double),
            scale: self.below(40) as i32 - 20,
            zero_count: self.below(5) as u64,
            positive: self.maybe(Self::buckets),
            negative: self.maybe(Self::buckets),
            flags: self.flags(),
            exemplars: self.many(1, Self::exemplar),
            min: self.maybe(Self::double),
            max: self.maybe(Self::double),
            zero_threshold: self.double(),
        }
    }

    fn buckets(&mut self) -> Buckets {
        Buckets {
            offset: self.below(1000) as i32 - 500,
            bucket_counts: self.many(20, |g| g.next() >> g.below(64)),
        }
    }

    fn summary_point(&mut self) -> SummaryDataPoint {
        SummaryDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: self.time(),
            time_unix_nano: self.time(),
            count: self.below(1000) as u64,
            sum: self.double(),
            quantile_values: self.many(4, |g| ValueAtQuantile {
                quantile: g.below(100) as f64 / 100.0,
                value: g.double(),
            }),
            flags: self.flags(),
        }
    }

    fn id(&mut self, length: usize) -> Vec<u8> {
        let length = self.pick(&[0, length, length]);
        (0..length).map(|_| self.next() as u8).collect()
    }

    pub fn logs_data(&mut self) -> LogsData {
        LogsData {
            resource_logs: self.many(3, |g| ResourceLogs {
                resource: g.maybe(Self::resource),
                scope_logs: g.many(3, |g| ScopeLogs {
                    scope: g.maybe(Self::scope),
                    log_records: g.many(4, Self::log_record),
                    schema_url: g.string(),
                }),
                schema_url: g.string(),
            }),
        }
    }

    fn log_record(&mut self) -> LogRecord {
        LogRecord {
            time_unix_nano: self.time(),
            observed_time_unix_nano: self.time(),
            severity_number: self.below(30) as i32,
            severity_text: self.string(),
            body: self.maybe(|g| g.any_value(0)),
            attributes: self.attributes(),
            dropped_attributes_count: self.below(2) as u32,
            flags: self.next() as u32,
            trace_id: self.id(16),
            span_id: self.id(8),
            event_name: self.string(),
        }
    }

    pub fn traces_data(&mut self) -> TracesData {
        TracesData {
            resource_spans: self.many(3, |g| ResourceSpans {
                resource: g.maybe(Self::resource),
                scope_spans: g.many(3, |g| ScopeSpans {
                    scope: g.maybe(Self::scope),
                    spans: g.many(4, Self::span),
                    schema_url: g.string(),
                }),
                schema_url: g.string(),
            }),
        }
    }

    fn span(&mut self) -> Span {
        Span {
            trace_id: self.id(16),
            span_id: self.id(8),
            trace_state: self.string(),
            parent_span_id: self.id(8),
            flags: self.next() as u32,
            name: self.string(),
            kind: self.below(7) as i32,
            start_time_unix_nano: self.time(),
            end_time_unix_nano: self.time(),
            attributes: self.attributes(),
            events: self.many(1, |g| Event {
                time_unix_nano: g.time(),
                name: g.string(),
                attributes: g.attributes(),
                ..Event::default()
            }),
            status: self.maybe(|g| Status {
                message: g.string(),
                code: g.below(4) as i32,
            }),
            ..Span::default()
        }
    }
}
