use std::sync::Arc;

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Field, Int64Type, Schema, TimeUnit},
};

use super::*;
use crate::{Decoder, Format, dictionary, metadata_column, string_map};

fn batch(fields: Vec<Field>, record: &RecordMeta<'_>) -> RecordBatch {
    let mut decoder = Decoder::new(Format::Json, Arc::new(Schema::new(fields)), &[]).unwrap();
    for _ in 0..2 {
        decoder.push(b"{}", record).unwrap();
    }
    decoder.finish().batch
}

#[test]
fn every_property() {
    let fields = vec![
        metadata_column(Field::new("k", DataType::Utf8, true), "key"),
        metadata_column(Field::new("kd", dictionary(), true), "key"),
        metadata_column(Field::new("kb", DataType::Binary, true), "key"),
        metadata_column(Field::new("t", dictionary(), true), "topic"),
        metadata_column(Field::new("p", DataType::Int32, true), "partition"),
        metadata_column(Field::new("o", DataType::Int64, true), "offset"),
        metadata_column(
            Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, None), true),
            "timestamp",
        ),
        metadata_column(Field::new("h", string_map(), true), "headers"),
        metadata_column(Field::new("h1", DataType::Utf8, true), "header:trace"),
        metadata_column(Field::new("h2", DataType::Utf8, true), "header:absent"),
    ];
    let record = RecordMeta {
        topic: "metrics",
        partition: 3,
        key: Some(&[0xff, 0x01]),
        headers: &[("trace", b"a" as &[u8]), ("other", b"b"), ("trace", b"c")],
        ..RecordMeta::new(9, 1_700_000_000_123)
    };
    let batch = batch(fields, &record);
    for row in 0..2 {
        assert_eq!(
            batch.column(0).as_string::<i32>().value(row),
            "ff01",
            "not UTF-8, so hexadecimal"
        );
        assert_eq!(batch.column(2).as_binary::<i32>().value(row), [0xff, 0x01]);
        assert_eq!(batch.column(5).as_primitive::<Int64Type>().value(row), 9);
        let headers = batch.column(7).as_map().value(row);
        assert_eq!(
            headers
                .column(0)
                .as_string::<i32>()
                .iter()
                .flatten()
                .collect::<Vec<_>>(),
            ["trace", "other"]
        );
        assert_eq!(
            headers
                .column(1)
                .as_string::<i32>()
                .iter()
                .flatten()
                .collect::<Vec<_>>(),
            ["c", "b"]
        );
        assert_eq!(batch.column(8).as_string::<i32>().value(row), "c");
        assert!(batch.column(9).is_null(row));
    }
    let micros = arrow::compute::cast(batch.column(6), &DataType::Int64).unwrap();
    assert_eq!(micros.as_primitive::<Int64Type>().values(), &[1_700_000_000_123_000; 2]);
}

#[test]
fn a_record_without_key_or_headers() {
    let fields = vec![
        metadata_column(Field::new("k", DataType::Utf8, true), "key"),
        metadata_column(Field::new("h", string_map(), true), "headers"),
    ];
    let batch = batch(fields, &RecordMeta::new(0, 0));
    assert_eq!(batch.column(0).null_count(), 2);
    assert_eq!(batch.column(1).as_map().value(1).len(), 0);
}

#[test]
fn headers_are_read_only_where_a_column_is_made_of_them() {
    for (property, reads) in [
        ("headers", true),
        ("header:trace", true),
        ("key", false),
        ("offset", false),
    ] {
        let data_type = match property {
            "headers" => string_map(),
            "offset" => DataType::Int64,
            _ => DataType::Utf8,
        };
        let fields = vec![metadata_column(Field::new("c", data_type, true), property)];
        let decoder = Decoder::new(Format::Json, Arc::new(Schema::new(fields)), &[]).unwrap();
        assert_eq!(decoder.reads_headers(), reads, "{property}");
    }
}

#[test]
fn wrong_declarations_are_refused() {
    let unknown = metadata_column(Field::new("x", DataType::Utf8, true), "colour");
    let mistyped = metadata_column(Field::new("x", DataType::Boolean, true), "offset");
    for field in [unknown, mistyped] {
        assert!(Decoder::new(Format::Json, Arc::new(Schema::new(vec![field])), &[]).is_err());
    }
}
