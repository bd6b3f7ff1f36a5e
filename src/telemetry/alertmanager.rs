//! Alertmanager's webhook body (version 4), a row per alert; also one alert alone, or an array of them, as bridges to Kafka
//! write them.
//!
//! Event time is when the log took the notification: a firing alert is repeated for as long as it fires, always with the
//! time at which it started, which is the column `starts_at`. An alert without an end has the year 1 there: NULL.

use arrow::datatypes::TimeUnit;

use crate::{
    attributes::Attributes,
    column::{AnySlot, Dictionary, Primitive, Slot, Text},
    error::Fault,
    flatten::{EntryColumn, Flatten},
    json::{self, RawString, Scanner},
    record::RecordMeta,
};

/// The columns of `alertmanager`.
#[derive(Default)]
pub(crate) struct Alertmanager {
    event_time: Slot<Primitive<i64>>,
    starts_at: Slot<Primitive<i64>>,
    ends_at: Slot<Primitive<i64>>,
    status: Slot<Dictionary>,
    fingerprint: Slot<Dictionary>,
    generator_url: Slot<Text>,
    receiver: Slot<Dictionary>,
    group_key: Slot<Dictionary>,
    external_url: Slot<Dictionary>,
    labels: Attributes,
    annotations: Attributes,
    scratch: Vec<u8>,
}

impl Flatten for Alertmanager {
    fn slots(&mut self) -> Vec<(&'static str, &mut dyn AnySlot)> {
        vec![
            ("event_time", &mut self.event_time),
            ("starts_at", &mut self.starts_at),
            ("ends_at", &mut self.ends_at),
            ("status", &mut self.status),
            ("fingerprint", &mut self.fingerprint),
            ("generator_url", &mut self.generator_url),
            ("receiver", &mut self.receiver),
            ("group_key", &mut self.group_key),
            ("external_url", &mut self.external_url),
        ]
    }

    fn maps(&mut self) -> Vec<(&'static str, &mut Attributes)> {
        vec![("labels", &mut self.labels), ("annotations", &mut self.annotations)]
    }

    fn entry_columns(&self) -> &'static [EntryColumn] {
        &[
            EntryColumn {
                column: "alert_name",
                map: "labels",
                key: "alertname",
            },
            EntryColumn {
                column: "severity",
                map: "labels",
                key: "severity",
            },
        ]
    }

    fn decode(&mut self, value: &[u8], from: usize, record: &RecordMeta<'_>) -> Result<usize, Fault> {
        let mut scanner = Scanner::new(value);
        let to = match scanner.token() {
            Some(b'[') => self.alerts(&mut scanner, from, None)?,
            _ => self.notification(&mut scanner, from)?,
        };
        scanner.end()?;
        if let Some(column) = self.event_time.get() {
            column.fill(from, to, record.append_ms);
        }
        Ok(to)
    }
}

impl Alertmanager {
    /// A group of alerts, or one alone, which has labels instead.
    fn notification(&mut self, scanner: &mut Scanner<'_>, from: usize) -> Result<usize, Fault> {
        let whole = scanner.clone();
        let (mut alerts, mut labels) = (None, false);
        let (mut status, mut receiver, mut group_key, mut external_url) = (None, None, None, None);
        json::each_field(scanner, |field, scanner| {
            match field {
                b"alerts" => alerts = Some(scanner.clone()),
                b"labels" => labels = true,
                b"status" if scanner.byte() == Some(b'"') => status = json::string_or_null(&mut scanner.clone())?,
                b"receiver" => receiver = json::string_or_null(&mut scanner.clone())?,
                b"groupKey" => group_key = json::string_or_null(&mut scanner.clone())?,
                b"externalURL" => external_url = json::string_or_null(&mut scanner.clone())?,
                _ => {}
            }
            scanner.skip_value()
        })?;
        let to = match alerts {
            Some(mut alerts) => self
                .alerts(&mut alerts, from, status)
                .map_err(|fault| fault.in_field("alerts"))?,
            None if labels => self.alert(&mut whole.clone(), from, None)?,
            None => return Err(whole.fault("neither alerts nor an alert's labels are there")),
        };
        let group = [
            (&mut self.receiver, receiver),
            (&mut self.group_key, group_key),
            (&mut self.external_url, external_url),
        ];
        for (slot, string) in group {
            if let (Some(column), Some(string)) = (slot.get(), string) {
                column.fill_unless_empty(from, to, string.bytes(&mut self.scratch)?)?;
            }
        }
        Ok(to)
    }

    fn alerts(
        &mut self,
        scanner: &mut Scanner<'_>,
        from: usize,
        group_status: Option<RawString<'_>>,
    ) -> Result<usize, Fault> {
        let mut row = from;
        json::each_element(scanner, |alert| {
            row = self.alert(alert, row, group_status)?;
            Ok(())
        })?;
        Ok(row)
    }

    fn alert(
        &mut self,
        scanner: &mut Scanner<'_>,
        row: usize,
        group_status: Option<RawString<'_>>,
    ) -> Result<usize, Fault> {
        let (mut status, mut fingerprint, mut generator_url) = (None, None, None);
        let (mut starts_at, mut ends_at) = (None, None);
        self.labels.begin(row);
        self.annotations.begin(row);
        json::each_field(scanner, |field, scanner| {
            match field {
                b"labels" => json::each_entry(scanner, |key, value| self.labels.add(key, value, row))?,
                b"annotations" => json::each_entry(scanner, |key, value| self.annotations.add(key, value, row))?,
                b"startsAt" => starts_at = json::time_or_null(scanner, TimeUnit::Millisecond)?,
                b"endsAt" => ends_at = json::time_or_null(scanner, TimeUnit::Millisecond)?,
                b"status" if scanner.byte() == Some(b'"') => status = json::string_or_null(scanner)?,
                b"fingerprint" => fingerprint = json::string_or_null(scanner)?,
                b"generatorURL" => generator_url = json::string_or_null(scanner)?,
                _ => scanner.skip_value()?,
            }
            Ok(())
        })?;
        self.labels.end();
        self.annotations.end();
        for (slot, time) in [(&mut self.starts_at, starts_at), (&mut self.ends_at, ends_at)] {
            if let Some(column) = slot.get() {
                column.set_option(row, time.filter(|time| *time > 0));
            }
        }
        for (slot, string) in [(&mut self.status, status), (&mut self.fingerprint, fingerprint)] {
            if let (Some(column), Some(string)) = (slot.get(), string) {
                column.set(row, string.bytes(&mut self.scratch)?)?;
            }
        }
        if let (Some(column), None, Some(string)) = (self.status.get(), status, group_status) {
            column.set(row, string.bytes(&mut self.scratch)?)?;
        }
        if let (Some(column), Some(string)) = (self.generator_url.get(), generator_url) {
            column.set(row, string.bytes(&mut self.scratch)?)?;
        }
        Ok(row + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Format,
        testing::{Row, decode_one},
    };

    fn decode(value: &str) -> Result<Vec<Row>, String> {
        let record = RecordMeta {
            append_ms: 99,
            ..RecordMeta::new(0, 5)
        };
        decode_one(Format::Alertmanager, value, &record)
    }

    const ALERT: &str = r#"{"status":"firing","labels":{"alertname":"HighLatency","severity":"page","service":"cart"},
        "annotations":{"summary":"slow"},"startsAt":"2026-07-01T12:00:00.5Z","endsAt":"0001-01-01T00:00:00Z",
        "generatorURL":"http://p/graph","fingerprint":"c0ffee"}"#;

    #[test]
    fn a_row_per_alert() {
        let webhook = format!(
            r#"{{"version":"4","groupKey":"g","truncatedAlerts":0,"status":"resolved","receiver":"r","groupLabels":{{}},
            "externalURL":"http://a","alerts":[{ALERT},{{"labels":{{}},"endsAt":"2026-07-01T12:01:00Z"}}]}}"#
        );
        let rows = decode(&webhook).unwrap();
        assert_eq!(rows.len(), 2);
        let expected = [
            ("event_time", "99"),
            ("starts_at", "1782907200500"),
            ("status", "firing"),
            ("alert_name", "HighLatency"),
            ("severity", "page"),
            ("fingerprint", "c0ffee"),
            ("generator_url", "http://p/graph"),
            ("receiver", "r"),
            ("group_key", "g"),
            ("external_url", "http://a"),
            ("labels", "alertname=HighLatency,severity=page,service=cart"),
            ("annotations", "summary=slow"),
        ];
        assert_eq!(rows[0], crate::testing::row(expected));
        assert_eq!(rows[1]["status"], "resolved", "the group's, where the alert has none");
        assert_eq!(rows[1]["ends_at"], "1782907260000");
    }

    #[test]
    fn alerts_alone_and_in_arrays() {
        assert_eq!(decode(ALERT).unwrap().len(), 1);
        assert_eq!(decode(&format!("[{ALERT},{ALERT}]")).unwrap().len(), 2);
        // As Alertmanager's own API lists them.
        let listed = r#"[{"labels":{"alertname":"A"},"status":{"state":"active"},"receivers":[{"name":"r"}]}]"#;
        assert_eq!(decode(listed).unwrap()[0]["alert_name"], "A");
        assert_eq!(decode("[]").unwrap().len(), 0);
    }

    #[test]
    fn wrong_ones() {
        for text in [
            "{}",
            r#"{"alerts":{}}"#,
            r#"{"alerts":[5]}"#,
            r#"{"labels":{"a":{}}}"#,
            r#"{"labels":{},"startsAt":"now"}"#,
        ] {
            assert!(decode(text).is_err(), "{text}");
        }
    }
}
