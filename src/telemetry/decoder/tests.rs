use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};

#[path = "../fuzz/any_bytes.rs"]
mod any_bytes;

use super::*;
use crate::{
    dictionary, map_entry, metadata_column, schema,
    testing::{self, Random, rows_of},
};

/// A record of each format that is not OTLP, which has tests of its own.
const SAMPLES: [(Format, &str); 5] = [
    (Format::Json, r#"{"service":"cart","ms":1.5,"n":3,"x":[1,{"y":null}]}"#),
    (
        Format::Heartbeat,
        r#"{"service":"cart","instance":"a","time":"2026-07-01T12:00:00Z"}"#,
    ),
    (
        Format::PrometheusJson,
        r#"{"timestamp":"2026-07-01T12:00:00Z","value":"NaN","name":"up","labels":{"job":"a"}}"#,
    ),
    (
        Format::TelegrafJson,
        r#"{"metrics":[{"fields":{"a":1,"b":"x"},"name":"cpu","tags":{"host":"h"},"timestamp":1458229140}]}"#,
    ),
    (
        Format::Alertmanager,
        r#"{"status":"firing","alerts":[{"labels":{"alertname":"A"},"annotations":{},"startsAt":"2026-07-01T12:00:00Z"}]}"#,
    ),
];

fn columns(format: Format) -> SchemaRef {
    if format != Format::Json {
        return schema(format);
    }
    Arc::new(Schema::new(vec![
        Field::new("service", dictionary(), true),
        Field::new("ms", DataType::Float64, true),
        Field::new("n", DataType::Int64, true),
    ]))
}

fn decoder(format: Format) -> Decoder {
    Decoder::new(format, columns(format), &[]).unwrap()
}

#[test]
fn broken_records_leave_nothing_behind() {
    for (format, sample) in SAMPLES {
        let mut used = decoder(format);
        assert!(
            used.push(sample.as_bytes(), &RecordMeta::new(0, 0)).unwrap() > 0,
            "{format}"
        );
        let before = rows_of(&used.finish().batch);
        for seed in 0..testing::count(2000) {
            let mut random = Random::new(seed);
            let Some(broken) = random.break_bytes(sample.as_bytes().to_vec()) else {
                continue;
            };
            used.push(sample.as_bytes(), &RecordMeta::new(0, 0)).unwrap();
            let pushed = used.push(&broken, &RecordMeta::new(0, 0));
            let rows = rows_of(&used.finish().batch);
            assert_eq!(rows[..before.len()], before, "{format} seed {seed}");
            let mut fresh = decoder(format);
            assert_eq!(
                fresh.push(&broken, &RecordMeta::new(0, 0)),
                pushed,
                "{format} seed {seed}"
            );
            assert_eq!(
                rows_of(&fresh.finish().batch),
                rows[before.len()..],
                "{format} seed {seed}"
            );
            if serde_json::from_slice::<serde_json::Value>(&broken).is_err() {
                assert!(
                    pushed.is_err(),
                    "{format} seed {seed}: {}",
                    String::from_utf8_lossy(&broken)
                );
            }
        }
    }
}

#[test]
fn no_bytes_panic() {
    let otlp = [false, true].into_iter().flat_map(|json| {
        [
            Format::OtlpMetrics { json },
            Format::OtlpLogs { json },
            Format::OtlpSpans { json },
        ]
    });
    for format in otlp.chain(SAMPLES.map(|(format, _)| format)) {
        let mut decoder = decoder(format);
        for seed in 0..testing::count(500) {
            let mut random = Random::new(seed);
            let length = random.below(60);
            let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
            let pushed = decoder.push(&bytes, &RecordMeta::new(0, 0)).unwrap_or(0);
            assert_eq!(decoder.finish().batch.num_rows(), pushed);
        }
    }
}

#[test]
fn codes_stay_what_they_were_while_the_generation_stays() {
    let mut decoder = decoder(Format::Json);
    let mut known: Vec<String> = Vec::new();
    for batch in 0..20 {
        for row in 0..10 {
            let value = format!(r#"{{"service":"s{}"}}"#, (batch * 7 + row * 3) % 50);
            decoder.push(value.as_bytes(), &RecordMeta::new(0, 0)).unwrap();
        }
        let rows = decoder.finish();
        assert_eq!(rows.generations, [0, 0, 0]);
        let services = arrow::array::AsArray::as_dictionary::<arrow::datatypes::Int32Type>(rows.batch.column(0));
        let values = arrow::array::AsArray::as_string::<i32>(services.values());
        let values: Vec<_> = values.iter().flatten().map(str::to_owned).collect();
        assert_eq!(values[..known.len()], known);
        known = values;
    }
}

#[test]
fn offsets_and_times_follow_the_rows() {
    let mut decoder = decoder(Format::TelegrafJson);
    let (_, two_rows) = SAMPLES[3];
    decoder.push(two_rows.as_bytes(), &RecordMeta::new(5, 50)).unwrap();
    decoder.push(b"broken", &RecordMeta::new(6, 60)).unwrap_err();
    decoder.push(two_rows.as_bytes(), &RecordMeta::new(7, 70)).unwrap();
    let rows = decoder.finish();
    assert_eq!(rows.offsets, [5, 5, 7, 7]);
    assert_eq!(rows.record_ms, [50, 50, 70, 70]);
    assert_eq!(decoder.finish().batch.num_rows(), 0);
}

#[test]
fn no_columns_at_all_still_count_rows() {
    let empty = Arc::new(Schema::empty());
    let mut decoder = Decoder::new(Format::TelegrafJson, empty, &[]).unwrap();
    decoder.push(SAMPLES[3].1.as_bytes(), &RecordMeta::new(0, 0)).unwrap();
    assert_eq!(decoder.finish().batch.num_rows(), 2);
}

#[test]
fn projections_that_cannot_be_served() {
    let metrics = Format::OtlpMetrics { json: false };
    let cases = [
        (
            metrics,
            Field::new("valu", DataType::Float64, true),
            "format otlp_metrics has no column \"valu\"; it has event_time, ",
        ),
        (
            metrics,
            Field::new("value", DataType::Utf8, true),
            "column \"value\" is declared as Utf8, but format otlp_metrics delivers Float64",
        ),
        (
            metrics,
            Field::new("value", DataType::Float64, false),
            "column \"value\" cannot be NOT NULL",
        ),
        (
            metrics,
            map_entry("x", "labels", "job"),
            "column \"x\" reads an entry of map \"labels\"; format otlp_metrics has resource and attributes",
        ),
        (
            Format::Heartbeat,
            map_entry("x", "labels", "job"),
            "column \"x\" reads an entry of map \"labels\"; format heartbeat has no maps",
        ),
        (
            Format::Json,
            Field::new("x", DataType::Date32, true),
            "column \"x\" has type Date32, which JSON cannot be read into",
        ),
        (
            metrics,
            metadata_column(Field::new("x", DataType::Utf8, true), "colour"),
            "column \"x\" reads \"colour\" of the record; a record has key, ",
        ),
    ];
    for (format, field, message) in cases {
        let error = Decoder::new(format, Arc::new(Schema::new(vec![field])), &[])
            .err()
            .unwrap();
        assert!(error.to_string().starts_with(message), "{error}");
    }
    let twice = Schema::new(vec![Field::new("value", DataType::Float64, true); 2]);
    assert!(Decoder::new(metrics, Arc::new(twice), &[]).is_err());
}

/// Few bytes of a record must not become gigabytes of rows.
#[test]
fn maps_repeated_in_many_rows_are_bounded() {
    use opentelemetry_proto::tonic::{
        common::v1::{AnyValue, KeyValue, any_value::Value},
        metrics::v1::{
            Gauge, Metric, MetricsData, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric::Data, number_data_point,
        },
        resource::v1::Resource,
    };
    use prost::Message;

    let point = NumberDataPoint {
        value: Some(number_data_point::Value::AsInt(1)),
        ..NumberDataPoint::default()
    };
    let attribute = KeyValue {
        key: "large".to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue("x".repeat(100_000))),
        }),
        ..KeyValue::default()
    };
    let metric = Metric {
        data: Some(Data::Gauge(Gauge {
            data_points: vec![point; 10_000],
        })),
        ..Metric::default()
    };
    let request = MetricsData {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource {
                attributes: vec![attribute],
                ..Resource::default()
            }),
            scope_metrics: vec![ScopeMetrics {
                metrics: vec![metric],
                ..ScopeMetrics::default()
            }],
            ..ResourceMetrics::default()
        }],
    };
    let value = request.encode_to_vec();
    let format = Format::OtlpMetrics { json: false };
    let reason = decoder(format).push(&value, &RecordMeta::new(0, 0)).unwrap_err().reason;
    assert_eq!(reason, "a map of it would be repeated in too many rows");
    let entry = Arc::new(Schema::new(vec![map_entry("large", "resource", "large")]));
    let mut decoder = Decoder::new(format, entry, &[]).unwrap();
    assert_eq!(
        decoder.push(&value, &RecordMeta::new(0, 0)),
        Ok(10_000),
        "as an entry it is a code"
    );
}

/// The fuzzer's body on a bounded number of inputs: good records, spliced into each other and broken.
#[test]
fn any_bytes_are_rows_or_a_rejection() {
    let corpus = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata")).unwrap();
    let mut corpus: Vec<Vec<u8>> = corpus
        .map(|file| std::fs::read(file.unwrap().path()).unwrap())
        .collect();
    corpus.sort();
    corpus.extend(SAMPLES.iter().map(|(_, sample)| sample.as_bytes().to_vec()));
    let mut random = Random::new(5);
    for _ in 0..testing::count(6_000) {
        let mut input = corpus[random.below(corpus.len())].clone();
        if random.chance(0.3) {
            let other = &corpus[random.below(corpus.len())];
            input.truncate(random.below(input.len()));
            input.extend(&other[random.below(other.len())..]);
        }
        if random.chance(0.9) {
            input = random.break_bytes(input).unwrap_or_default();
        }
        input.insert(0, random.below(any_bytes::FORMATS.len()) as u8);
        any_bytes::decode(&input);
    }
}
