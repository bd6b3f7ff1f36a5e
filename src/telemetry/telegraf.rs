//! What Telegraf's Kafka output writes with `data_format = "json"`, a row per field of a metric:
//! `{"fields": {"usage_idle": 97.1}, "name": "cpu", "tags": {"host": "a"}, "timestamp": 1458229140}`, or a batch of them as
//! `{"metrics": [...]}`.
//!
//! The timestamp is a number whose unit nothing tells (`json_timestamp_units`, seconds by default); its size does: the
//! units are a thousandfold apart, and telemetry is of this century. Of a field that is a string only `value_text` is
//! known; a boolean is 1 or 0.

use crate::{
    attributes::Attributes,
    column::{AnySlot, Dictionary, Primitive, Slot},
    error::Fault,
    flatten::Flatten,
    json::{self, Scanner},
    record::RecordMeta,
    time,
};

/// The columns of `telegraf_json`.
#[derive(Default)]
pub(crate) struct Telegraf {
    event_time: Slot<Primitive<i64>>,
    name: Slot<Dictionary>,
    field: Slot<Dictionary>,
    value: Slot<Primitive<f64>>,
    value_int: Slot<Primitive<i64>>,
    value_text: Slot<Dictionary>,
    tags: Attributes,
    scratch: Vec<u8>,
}

impl Flatten for Telegraf {
    fn slots(&mut self) -> Vec<(&'static str, &mut dyn AnySlot)> {
        vec![
            ("event_time", &mut self.event_time),
            ("name", &mut self.name),
            ("field", &mut self.field),
            ("value", &mut self.value),
            ("value_int", &mut self.value_int),
            ("value_text", &mut self.value_text),
        ]
    }

    fn maps(&mut self) -> Vec<(&'static str, &mut Attributes)> {
        vec![("tags", &mut self.tags)]
    }

    fn decode(&mut self, value: &[u8], row: usize, _: &RecordMeta<'_>) -> Result<usize, Fault> {
        self.tags.begin_record();
        let mut scanner = Scanner::new(value);
        let mut batch = None;
        let from = scanner.clone();
        json::each_field(&mut scanner, |field, scanner| {
            if field == b"metrics" {
                batch = Some(scanner.clone());
            }
            scanner.skip_value()
        })?;
        scanner.end()?;
        let mut row = row;
        match batch {
            Some(mut metrics) => json::each_element(&mut metrics, |metric| {
                row = self.metric(metric, row)?;
                Ok(())
            })
            .map_err(|fault| fault.in_field("metrics"))?,
            None => row = self.metric(&mut from.clone(), row)?,
        }
        Ok(row)
    }
}

impl Telegraf {
    fn metric(&mut self, scanner: &mut Scanner<'_>, from: usize) -> Result<usize, Fault> {
        let (mut fields, mut name, mut tags, mut time) = (None, None, None, None);
        json::each_field(scanner, |field, scanner| {
            match field {
                b"fields" => fields = Some(scanner.clone()),
                b"tags" => tags = Some(scanner.clone()),
                b"name" => {
                    name = json::string_or_null(scanner)?;
                    return Ok(());
                }
                b"timestamp" => {
                    time = Some(time_ms(scanner)?);
                    return Ok(());
                }
                _ => {}
            }
            scanner.skip_value()
        })?;
        let mut fields = fields.ok_or_else(|| Fault::new("it is missing").in_field("fields"))?;
        let name = name.ok_or_else(|| Fault::new("it is missing").in_field("name"))?;
        let mut to = from;
        json::each_field(&mut fields, |field, scanner| {
            self.value(field, scanner, to)?;
            to += 1;
            Ok(())
        })?;
        self.tags.begin(from);
        if let Some(mut tags) = tags {
            json::each_entry(&mut tags, |key, value| self.tags.add(key, value, from))?;
        }
        self.tags.end_run(from, to)?;
        if let Some(column) = self.name.get() {
            column.fill_unless_empty(from, to, name.bytes(&mut self.scratch)?)?;
        }
        if let Some(column) = self.event_time.get()
            && let Some(time) = time
        {
            column.fill(from, to, time);
        }
        Ok(to)
    }

    fn value(&mut self, field: &[u8], scanner: &mut Scanner<'_>, row: usize) -> Result<(), Fault> {
        let (value, integer) = match scanner.token() {
            Some(b'"') => {
                let string = scanner.string()?;
                string.check()?;
                if let Some(column) = self.value_text.get() {
                    column.set(row, string.bytes(&mut self.scratch)?)?;
                }
                (None, None)
            }
            Some(b't') => scanner.literal("true").map(|()| (Some(1.0), Some(1)))?,
            Some(b'f') => scanner.literal("false").map(|()| (Some(0.0), Some(0)))?,
            Some(b'n') => scanner.literal("null").map(|()| (None, None))?,
            Some(b'-' | b'0'..=b'9') => {
                let number = scanner.number()?;
                let value = number.to_f64().ok_or_else(|| scanner.fault("a number is too large"))?;
                (Some(value), number.to_i64())
            }
            _ => return Err(scanner.expected("a number, a string or a boolean")),
        };
        if let Some(column) = self.field.get() {
            column.set(row, field)?;
        }
        if let Some(column) = self.value.get() {
            column.set_option(row, value);
        }
        if let Some(column) = self.value_int.get() {
            column.set_option(row, integer);
        }
        Ok(())
    }
}

/// Milliseconds of a timestamp in whatever unit, or of RFC 3339.
fn time_ms(scanner: &mut Scanner<'_>) -> Result<i64, Fault> {
    let from = scanner.clone();
    let number = match scanner.token() {
        Some(b'-' | b'0'..=b'9') => scanner.number()?,
        Some(b'"') => {
            let mut scratch = Vec::new();
            let text = scanner.string()?.bytes(&mut scratch)?;
            let time = time::parse(text, arrow::datatypes::TimeUnit::Millisecond);
            return time.ok_or_else(|| from.fault("expected a time like 2026-07-01T12:00:00.000Z"));
        }
        _ => return Err(scanner.expected("a time")),
    };
    let value = number.to_i64_floor().ok_or_else(|| from.fault("a time is too large"))?;
    Ok(match value.unsigned_abs() {
        // The year 5138 in seconds is 1973 in milliseconds.
        0..100_000_000_000 => match number.to_f64() {
            Some(seconds) if value as f64 != seconds => (seconds * 1000.0).floor() as i64,
            _ => value * 1000,
        },
        100_000_000_000..100_000_000_000_000 => value,
        100_000_000_000_000..100_000_000_000_000_000 => value.div_euclid(1000),
        _ => value.div_euclid(1_000_000),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Format,
        testing::{Row, decode_one, row},
    };

    fn decode(value: &str) -> Result<Vec<Row>, String> {
        decode_one(Format::TelegrafJson, value, &RecordMeta::new(0, 5))
    }

    #[test]
    fn a_row_per_field() {
        let text = r#"{"fields":{"usage_idle":97.5,"n":3,"state":"up","ok":true,"gone":null},"name":"cpu","tags":{"host":"a","cpu":"0"},"timestamp":1458229140}"#;
        let rows = decode(text).unwrap();
        let common = |field| {
            row([
                ("event_time", "1458229140000"),
                ("name", "cpu"),
                ("tags", "host=a,cpu=0"),
                ("field", field),
            ])
        };
        let with = |field, values: &[(&str, &str)]| {
            let mut row = common(field);
            row.extend(
                values
                    .iter()
                    .map(|(column, value)| ((*column).to_owned(), (*value).to_owned())),
            );
            row
        };
        let expected = [
            with("usage_idle", &[("value", "97.5")]),
            with("n", &[("value", "3.0"), ("value_int", "3")]),
            with("state", &[("value_text", "up")]),
            with("ok", &[("value", "1.0"), ("value_int", "1")]),
            with("gone", &[]),
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn batches() {
        let one = r#"{"timestamp":1458229140000,"name":"mem","fields":{"free":1}}"#;
        let rows = decode(&format!(r#"{{"metrics":[{one},{one}]}}"#)).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0], decode(one).unwrap()[0]);
        assert_eq!(rows[1]["event_time"], "1458229140000");
        assert!(
            decode(&format!(r#"{{"metrics":[{one},{{}}]}}"#)).is_err(),
            "all of a batch, or none"
        );
    }

    #[test]
    fn units_of_time() {
        for written in [
            "1458229140.25",
            "1458229140250",
            "1458229140250000",
            "1458229140250000000",
            "\"2016-03-17T15:39:00.25Z\"",
        ] {
            let rows = decode(&format!(r#"{{"fields":{{"a":1}},"name":"x","timestamp":{written}}}"#)).unwrap();
            assert_eq!(rows[0]["event_time"], "1458229140250", "{written}");
        }
    }

    #[test]
    fn wrong_ones() {
        let reasons = [
            ("{}", "field \"fields\": it is missing"),
            (
                r#"{"fields":{"a":[]},"name":"x"}"#,
                "field \"a\": expected a number, a string or a boolean, found an array at byte 15",
            ),
            (
                r#"{"fields":{"a":1},"name":5}"#,
                "field \"name\": expected a string, found a number at byte 25",
            ),
        ];
        for (text, reason) in reasons {
            assert_eq!(decode(text).unwrap_err(), reason);
        }
    }
}
