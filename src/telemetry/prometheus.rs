//! What `prometheus-kafka-adapter` writes, a row per sample:
//! `{"timestamp": "1970-01-01T00:00:00Z", "value": "9876543210", "name": "up", "labels": {"__name__": "up", "job": "a"}}`.
//!
//! The value is a string, since it may be NaN, +Inf or -Inf; a number is taken, too. A number for the timestamp is
//! milliseconds since 1970, as Prometheus counts.

use arrow::datatypes::TimeUnit;

use crate::{
    attributes::Attributes,
    column::{AnySlot, Dictionary, Primitive, Slot},
    error::Fault,
    flatten::Flatten,
    json::{self, Scanner},
    record::RecordMeta,
};

/// The columns of `prometheus_json`.
#[derive(Default)]
pub(crate) struct Prometheus {
    event_time: Slot<Primitive<i64>>,
    metric_name: Slot<Dictionary>,
    value: Slot<Primitive<f64>>,
    labels: Attributes,
    scratch: Vec<u8>,
}

impl Flatten for Prometheus {
    fn slots(&mut self) -> Vec<(&'static str, &mut dyn AnySlot)> {
        vec![
            ("event_time", &mut self.event_time),
            ("metric_name", &mut self.metric_name),
            ("value", &mut self.value),
        ]
    }

    fn maps(&mut self) -> Vec<(&'static str, &mut Attributes)> {
        vec![("labels", &mut self.labels)]
    }

    fn decode(&mut self, value: &[u8], row: usize, _: &RecordMeta<'_>) -> Result<usize, Fault> {
        let mut scanner = Scanner::new(value);
        let (mut time, mut name, mut sample) = (None, None, None);
        self.labels.begin(row);
        json::each_field(&mut scanner, |field, scanner| {
            match field {
                b"timestamp" => time = json::time_or_null(scanner, TimeUnit::Millisecond)?,
                b"name" => name = json::string_or_null(scanner)?,
                b"value" => sample = Some(sample_value(scanner)?),
                b"labels" => json::each_entry(scanner, |key, value| self.labels.add(key, value, row))?,
                _ => scanner.skip_value()?,
            }
            Ok(())
        })?;
        scanner.end()?;
        self.labels.end();
        let sample = sample.ok_or_else(|| Fault::new("it is missing").in_field("value"))?;
        let name = name.ok_or_else(|| Fault::new("it is missing").in_field("name"))?;
        if let Some(column) = self.event_time.get() {
            column.set_option(row, time);
        }
        if let Some(column) = self.metric_name.get() {
            column.set(row, name.bytes(&mut self.scratch)?)?;
        }
        if let Some(column) = self.value.get() {
            column.set(row, sample);
        }
        Ok(row + 1)
    }
}

fn sample_value(scanner: &mut Scanner<'_>) -> Result<f64, Fault> {
    let from = scanner.clone();
    let wrong = || from.fault("not a sample's value");
    match scanner.token() {
        Some(b'"') => {
            let mut scratch = Vec::new();
            // NaN, +Inf and -Inf are among the forms that Rust reads.
            scanner.string()?.text(&mut scratch)?.parse().map_err(|_| wrong())
        }
        Some(b'-' | b'0'..=b'9') => scanner.number()?.to_f64().ok_or_else(wrong),
        _ => Err(scanner.expected("a string or a number")),
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        Format, RecordMeta,
        testing::{decode_one, row},
    };

    fn decode(value: &str) -> Result<Vec<crate::testing::Row>, String> {
        decode_one(Format::PrometheusJson, value, &RecordMeta::new(0, 5))
    }

    #[test]
    fn samples() {
        let text = r#"{"timestamp":"1970-01-01T00:00:01.5Z","value":"9876543210","name":"up","labels":{"__name__":"up","job":"a\u0062"}}"#;
        let expected = row([
            ("event_time", "1500"),
            ("metric_name", "up"),
            ("value", "9876543210.0"),
            ("labels", "__name__=up,job=ab"),
        ]);
        assert_eq!(decode(text).unwrap(), [expected]);
        for (written, value) in [("NaN", "NaN"), ("+Inf", "inf"), ("-Inf", "-inf"), ("1e3", "1000.0")] {
            let rows = decode(&format!(
                r#"{{"labels":{{}},"name":"up","value":"{written}","timestamp":7}}"#
            ))
            .unwrap();
            assert_eq!(
                (rows[0]["value"].as_str(), rows[0]["event_time"].as_str()),
                (value, "7")
            );
        }
        assert_eq!(decode(r#"{"name":"up","value":1.5}"#).unwrap()[0]["value"], "1.5");
    }

    #[test]
    fn wrong_ones() {
        let reasons = [
            (r#"{"name":"up"}"#, "field \"value\": it is missing"),
            (r#"{"value":"1"}"#, "field \"name\": it is missing"),
            (
                r#"{"name":"up","value":"one"}"#,
                "field \"value\": not a sample's value at byte 21",
            ),
            (
                r#"{"name":"up","value":"1","labels":{"a":{}}}"#,
                "field \"a\": expected a string, found an object at byte 39",
            ),
            ("[]", "expected an object, found an array at byte 0"),
        ];
        for (text, reason) in reasons {
            assert_eq!(decode(text).unwrap_err(), reason);
        }
    }
}
