//! Logs: a row per log record. Event time is the record's time or, where it has none, the time it was observed.

use super::{
    Context, Signal, any_value, decode_request,
    message::log_record,
    set_unless_empty, time_ms,
    transcode::{LOGS_DATA, Message},
};
use crate::{
    column::{AnySlot, Dictionary, Primitive, Slot, Text},
    error::Fault,
    wire::{Merged, Reader},
};

/// The columns of `otlp_logs`.
#[derive(Default)]
pub(crate) struct Logs {
    context: Context,
    event_time: Slot<Primitive<i64>>,
    observed_time: Slot<Primitive<i64>>,
    severity_number: Slot<Primitive<i32>>,
    severity_text: Slot<Dictionary>,
    body: Slot<Text>,
    trace_id: Slot<Text>,
    span_id: Slot<Text>,
    event_name: Slot<Dictionary>,
    flags: Slot<Primitive<u32>>,
    scratch: Vec<u8>,
}

impl Signal for Logs {
    const JSON_ROOT: &'static Message = &LOGS_DATA;

    fn slots(&mut self) -> Vec<(&'static str, &mut dyn AnySlot)> {
        vec![
            ("event_time", &mut self.event_time),
            ("observed_time", &mut self.observed_time),
            ("severity_number", &mut self.severity_number),
            ("severity_text", &mut self.severity_text),
            ("body", &mut self.body),
            ("trace_id", &mut self.trace_id),
            ("span_id", &mut self.span_id),
            ("event_name", &mut self.event_name),
            ("flags", &mut self.flags),
        ]
    }

    fn context(&mut self) -> &mut Context {
        &mut self.context
    }

    fn decode(&mut self, request: &[u8], row: usize) -> Result<usize, Fault> {
        decode_request(self, request, row, Self::log_record)
    }
}

impl Logs {
    fn log_record(&mut self, record: &[u8], row: usize) -> Result<usize, Fault> {
        let mut reader = Reader::new(record);
        let (mut time, mut observed, mut severity_number, mut flags) = (0, 0, 0, 0);
        let (mut severity_text, mut event_name): (&[u8], &[u8]) = (&[], &[]);
        let (mut trace_id, mut span_id): (&[u8], &[u8]) = (&[], &[]);
        let mut body = Merged::default();
        let attributes_wanted = self.context.begin_attributes(row);
        while let Some(field) = reader.tag()? {
            match field {
                log_record::TIME => time = reader.fixed64()?,
                log_record::SEVERITY_NUMBER => severity_number = reader.varint()? as i32,
                log_record::SEVERITY_TEXT => severity_text = reader.string(severity_text)?,
                log_record::BODY => body.add(reader.bytes()?)?,
                log_record::ATTRIBUTE => {
                    let attribute = reader.bytes()?;
                    if attributes_wanted {
                        self.context.add_attribute(attribute, row)?;
                    }
                }
                log_record::FLAGS => flags = reader.fixed32()?,
                log_record::TRACE_ID => trace_id = reader.bytes()?,
                log_record::SPAN_ID => span_id = reader.bytes()?,
                log_record::OBSERVED_TIME => observed = reader.fixed64()?,
                log_record::EVENT_NAME => event_name = reader.string(event_name)?,
                other => reader.skip_other(other, &log_record::KNOWN)?,
            }
        }
        if attributes_wanted {
            self.context.attributes.end();
        }
        if let Some(column) = self.event_time.get() {
            column.set_option(row, time_ms(time).or(time_ms(observed)));
        }
        if let Some(column) = self.observed_time.get() {
            column.set_option(row, time_ms(observed));
        }
        if let Some(column) = self.severity_number.get() {
            column.set_option(row, (severity_number != 0).then_some(severity_number));
        }
        if let Some(column) = self.flags.get() {
            column.set(row, flags);
        }
        if let Some(column) = self.body.get()
            && let Some(text) = any_value::text(body.get().unwrap_or_default(), &mut self.scratch)?
        {
            column.set(row, text)?;
        }
        for (slot, id) in [(&mut self.trace_id, trace_id), (&mut self.span_id, span_id)] {
            if let Some(column) = slot.get() {
                column.set_hex(row, id)?;
            }
        }
        set_unless_empty(&mut self.severity_text, row, severity_text)?;
        set_unless_empty(&mut self.event_name, row, event_name)?;
        Ok(row + 1)
    }
}
