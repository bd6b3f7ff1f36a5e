//! The judge is prost over `opentelemetry-proto`: random messages, in any order of fields, whole and broken.

mod generate;
mod reference;
mod reorder;
mod samples;

use std::sync::Arc;

use arrow::datatypes::{Field, Schema};
use opentelemetry_proto::tonic::{logs::v1::LogsData, metrics::v1::MetricsData, trace::v1::TracesData};
use prost::Message;

use super::transcode::{LOGS_DATA, METRICS_DATA, TRACES_DATA};
use crate::{
    Decoder, Format, RecordMeta, Reject, map_entry, schema,
    testing::{self, Row, rows_of},
};
use generate::Generator;

/// Entries of maps that the tests read as columns.
const ENTRIES: [(&str, &str); 3] = [("attributes", "route"), ("attributes", "b"), ("resource", "a")];

const FORMATS: [Format; 3] = [
    Format::OtlpMetrics { json: false },
    Format::OtlpLogs { json: false },
    Format::OtlpSpans { json: false },
];

fn as_json(format: Format) -> Format {
    match format {
        Format::OtlpMetrics { .. } => Format::OtlpMetrics { json: true },
        Format::OtlpLogs { .. } => Format::OtlpLogs { json: true },
        _ => Format::OtlpSpans { json: true },
    }
}

/// A decoder of every column and some entries.
fn decoder(format: Format) -> Decoder {
    let mut fields: Vec<Field> = schema(format)
        .fields()
        .iter()
        .map(|field| field.as_ref().clone())
        .collect();
    fields.extend(ENTRIES.map(|(map, key)| map_entry(&format!("{map}.{key}"), map, key)));
    Decoder::new(format, Arc::new(Schema::new(fields)), &[]).unwrap()
}

fn decode(decoder: &mut Decoder, value: &[u8]) -> Result<Vec<Row>, Reject> {
    let pushed = decoder.push(value, &RecordMeta::new(3, 4))?;
    let rows = decoder.finish();
    assert_eq!(pushed, rows.batch.num_rows());
    assert_eq!(rows.offsets, vec![3; pushed]);
    assert_eq!(rows.record_ms, vec![4; pushed]);
    Ok(rows_of(&rows.batch))
}

/// A random request of a signal: its encoding and JSON.
fn random(format: Format, generator: &mut Generator) -> (Vec<u8>, String) {
    match format {
        Format::OtlpMetrics { .. } => encoded(&generator.metrics_data()),
        Format::OtlpLogs { .. } => encoded(&generator.logs_data()),
        _ => encoded(&generator.traces_data()),
    }
}

fn encoded<M: Message + serde::Serialize>(message: &M) -> (Vec<u8>, String) {
    (message.encode_to_vec(), serde_json::to_string(message).unwrap())
}

fn root(format: Format) -> &'static super::transcode::Message {
    match format {
        Format::OtlpMetrics { .. } => &METRICS_DATA,
        Format::OtlpLogs { .. } => &LOGS_DATA,
        _ => &TRACES_DATA,
    }
}

/// What the full parser makes of a record; `None` when it rejects it.
fn reference_rows(format: Format, value: &[u8]) -> Option<Vec<Row>> {
    Some(match format {
        Format::OtlpMetrics { .. } => reference::metrics(&MetricsData::decode(value).ok()?),
        Format::OtlpLogs { .. } => reference::logs(&LogsData::decode(value).ok()?),
        _ => reference::spans(&TracesData::decode(value).ok()?),
    })
}

#[test]
fn rows_are_those_of_prost() {
    for format in FORMATS {
        let mut decoder = decoder(format);
        for seed in 0..testing::count(200) {
            let (value, _) = random(format, &mut Generator::new(seed));
            let expected = reference_rows(format, &value).unwrap();
            assert_eq!(decode(&mut decoder, &value).unwrap(), expected, "{format} seed {seed}");
        }
    }
}

/// Backwards as the Collector writes, shuffled, submessages in pieces, numbers packed and not.
#[test]
fn rows_are_those_of_prost_in_any_order_of_fields() {
    for format in FORMATS {
        let mut decoder = decoder(format);
        for seed in 0..testing::count(200) {
            let (value, _) = random(format, &mut Generator::new(seed));
            let backwards = reorder::backwards(root(format), &value);
            let shuffled = reorder::shuffled(root(format), &value, &mut Generator::new(seed));
            for value in [backwards, shuffled] {
                let expected = reference_rows(format, &value).unwrap();
                assert_eq!(decode(&mut decoder, &value).unwrap(), expected, "{format} seed {seed}");
            }
        }
    }
}

#[test]
fn json_gives_the_rows_of_the_wire() {
    for format in FORMATS {
        let (mut wire, mut json) = (decoder(format), decoder(as_json(format)));
        for seed in 0..testing::count(200) {
            let (value, text) = random(format, &mut Generator::finite(seed));
            let expected = decode(&mut wire, &value).unwrap();
            assert_eq!(
                decode(&mut json, text.as_bytes()).unwrap(),
                expected,
                "{format} seed {seed}: {text}"
            );
            let twice = format!("{text}\n{text}\n");
            assert_eq!(
                decode(&mut json, twice.as_bytes()).unwrap(),
                [expected.clone(), expected].concat()
            );
        }
    }
}

/// Bytes changed, removed, added, cut off. What the full parser takes is taken, with its rows; and of what is taken here,
/// the parts that are read are what the full parser takes. Nothing of a rejected record is kept.
#[test]
fn broken_records() {
    let mut judged = [0u32; 2];
    for format in FORMATS {
        let mut decoder = decoder(format);
        let (before, _) = random(format, &mut Generator::new(1));
        let rows_before = reference_rows(format, &before).unwrap();
        for seed in 0..testing::count(1000) {
            let mut generator = Generator::new(seed);
            let (value, _) = random(format, &mut generator);
            let value = reorder::shuffled(root(format), &value, &mut generator);
            let Some(broken) = generator.break_bytes(value) else {
                continue;
            };
            decoder.push(&before, &RecordMeta::new(0, 0)).unwrap();
            let pushed = decoder.push(&broken, &RecordMeta::new(0, 0));
            let rows = rows_of(&decoder.finish().batch);
            assert_eq!(rows[..rows_before.len()], rows_before, "{format} seed {seed}");
            let added = &rows[rows_before.len()..];
            let expected = reference_rows(format, &broken);
            judged[usize::from(expected.is_some())] += 1;
            match (pushed, expected) {
                (Ok(_), Some(expected)) => assert_eq!(added, expected, "{format} seed {seed}"),
                (Ok(_), None) => reference::judge_read_parts(format, &broken)
                    .unwrap_or_else(|error| panic!("{format} seed {seed}: {error}")),
                (Err(_), None) => assert!(added.is_empty()),
                (Err(reject), Some(_)) => {
                    assert!(
                        reject.reason.contains("exceeds 63 bits"),
                        "{format} seed {seed}: {reject}"
                    );
                }
            }
        }
    }
    assert!(
        judged.iter().all(|count| *count > 0),
        "both kinds were seen: {judged:?}"
    );
}

#[test]
fn broken_json() {
    for format in FORMATS {
        let mut decoder = decoder(as_json(format));
        for seed in 0..testing::count(300) {
            let mut generator = Generator::finite(seed);
            let (_, text) = random(format, &mut generator);
            let Some(broken) = generator.break_bytes(text.into_bytes()) else {
                continue;
            };
            let pushed = decoder.push(&broken, &RecordMeta::new(0, 0));
            let rows = decoder.finish().batch.num_rows();
            assert_eq!(rows, pushed.clone().unwrap_or(0));
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

/// A projection gives the columns it would give among all others.
#[test]
fn fewer_columns_hold_the_same() {
    for format in FORMATS {
        let mut all = decoder(format);
        let fields = all.columns().fields().clone();
        for seed in 0..testing::count(100) {
            let mut generator = Generator::new(seed);
            let (value, _) = random(format, &mut generator);
            let expected = decode(&mut all, &value).unwrap();
            let mut kept: Vec<_> = fields.iter().filter(|_| generator.chance(0.3)).cloned().collect();
            if generator.chance(0.5) {
                kept.reverse();
            }
            let names: Vec<_> = kept.iter().map(|field| field.name().clone()).collect();
            let mut some = Decoder::new(format, Arc::new(Schema::new(kept)), &[]).unwrap();
            let rows = decode(&mut some, &value).unwrap();
            assert_eq!(rows.len(), expected.len());
            for (row, expected) in rows.iter().zip(&expected) {
                let mut expected = expected.clone();
                expected.retain(|name, _| names.contains(name));
                assert_eq!(*row, expected, "{format} seed {seed}");
            }
        }
    }
}

#[test]
fn reasons_name_what_is_wrong() {
    let mut decoder = decoder(FORMATS[0]);
    let mut reason = |value: &[u8]| decoder.push(value, &RecordMeta::new(0, 0)).unwrap_err().reason;
    assert_eq!(reason(&[0x0a, 0x05, 0x12]), "truncated at byte 2");
    assert_eq!(
        reason(&[0x0a, 0x02, 0x08, 0x01]),
        "field 1 of the resource block has wire type 0 instead of 2 at byte 3"
    );
    assert_eq!(reason(&[0x16]), "wire type 6 does not exist at byte 1");
}
