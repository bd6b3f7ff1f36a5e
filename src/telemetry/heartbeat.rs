//! Heartbeats: `{"service": "cart", "instance": "cart-1", "time": "2026-07-01T12:00:00Z"}`, a row per record.
//!
//! Event time is when the log took the record, never the producer's clock, which may be what is broken; that one is
//! `sent_at`, RFC 3339 or milliseconds since 1970. Who sent it must be said, whichever columns are asked for.

use arrow::datatypes::TimeUnit;

use crate::{
    column::{AnySlot, Dictionary, Primitive, Slot},
    error::Fault,
    flatten::Flatten,
    json::{self, Scanner},
    record::RecordMeta,
};

/// The columns of `heartbeat`.
#[derive(Default)]
pub(crate) struct Heartbeat {
    service: Slot<Dictionary>,
    instance: Slot<Dictionary>,
    sent_at: Slot<Primitive<i64>>,
    event_time: Slot<Primitive<i64>>,
    scratch: Vec<u8>,
}

impl Flatten for Heartbeat {
    fn slots(&mut self) -> Vec<(&'static str, &mut dyn AnySlot)> {
        vec![
            ("service", &mut self.service),
            ("instance", &mut self.instance),
            ("sent_at", &mut self.sent_at),
            ("event_time", &mut self.event_time),
        ]
    }

    fn decode(&mut self, value: &[u8], row: usize, record: &RecordMeta<'_>) -> Result<usize, Fault> {
        let mut scanner = Scanner::new(value);
        let (mut service, mut instance, mut sent_at) = (None, None, None);
        json::each_field(&mut scanner, |name, scanner| {
            match name {
                b"service" => service = json::string_or_null(scanner)?,
                b"instance" => instance = json::string_or_null(scanner)?,
                b"time" => sent_at = json::time_or_null(scanner, TimeUnit::Millisecond)?,
                _ => scanner.skip_value()?,
            }
            Ok(())
        })?;
        scanner.end()?;
        let service = service.ok_or_else(|| Fault::new("it is missing").in_field("service"))?;
        if let Some(column) = self.service.get() {
            column.set(row, service.bytes(&mut self.scratch)?)?;
        }
        if let Some(column) = self.instance.get()
            && let Some(instance) = instance
        {
            column.set(row, instance.bytes(&mut self.scratch)?)?;
        }
        if let Some(column) = self.sent_at.get() {
            column.set_option(row, sent_at);
        }
        if let Some(column) = self.event_time.get() {
            column.set(row, record.append_ms);
        }
        Ok(row + 1)
    }
}
