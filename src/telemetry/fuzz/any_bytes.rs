//! Any bytes as a record of any format: what the fuzzer and the crate's own tests run.
//!
//! No input panics; a rejected record leaves nothing behind; an accepted one gives the same rows to a decoder that has
//! seen others before.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use telemetry::{Decoder, Format, RecordMeta, dictionary, map_entry, schema};

pub const FORMATS: [Format; 11] = [
    Format::OtlpMetrics { json: false },
    Format::OtlpMetrics { json: true },
    Format::OtlpLogs { json: false },
    Format::OtlpLogs { json: true },
    Format::OtlpSpans { json: false },
    Format::OtlpSpans { json: true },
    Format::Json,
    Format::Heartbeat,
    Format::PrometheusJson,
    Format::TelegrafJson,
    Format::Alertmanager,
];

fn columns(format: Format) -> SchemaRef {
    let known = schema(format);
    let mut fields: Vec<Field> = known.fields().iter().map(|field| field.as_ref().clone()).collect();
    if format == Format::Json {
        fields = vec![
            Field::new("service", dictionary(), true),
            Field::new("note", DataType::Utf8, true),
            Field::new("ms", DataType::Float64, true),
            Field::new("n", DataType::Int64, true),
            Field::new("ok", DataType::Boolean, true),
            Field::new("ts", DataType::Timestamp(TimeUnit::Nanosecond, None), true),
        ];
    } else if known.field_with_name("attributes").is_ok() {
        fields.push(map_entry("route", "attributes", "http.route"));
    }
    Arc::new(Schema::new(fields))
}

/// One input: its first byte chooses the format, the rest is a record.
pub fn decode(input: &[u8]) {
    let Some((choice, value)) = input.split_first() else {
        return;
    };
    let format = FORMATS[usize::from(*choice) % FORMATS.len()];
    let mut fresh = Decoder::new(format, columns(format), &[]).expect("the columns are the format's own");
    let mut used = Decoder::new(format, columns(format), &[]).expect("the columns are the format's own");
    for half in [&value[..value.len() / 2], value] {
        let _ = used.push(half, &RecordMeta::new(0, 0));
        used.finish();
    }
    let rows = fresh.push(value, &RecordMeta::new(0, 0));
    let again = used.push(value, &RecordMeta::new(0, 0));
    assert_eq!(rows, again);
    let batch = fresh.finish().batch;
    assert_eq!(batch.num_rows(), rows.unwrap_or(0));
    assert_eq!(batch.num_rows(), used.finish().batch.num_rows());
}
