//! Spans: a row per span. Event time is the span's end: then it is complete, and then it is sent.

use super::{
    Context, Signal, decode_request,
    message::{span, status},
    set_unless_empty, time_ms,
    transcode::{Message, TRACES_DATA},
};
use crate::{
    column::{AnySlot, Dictionary, Primitive, Slot, Text},
    error::Fault,
    wire::{Merged, Reader},
};

/// The columns of `otlp_spans`.
#[derive(Default)]
pub(crate) struct Spans {
    context: Context,
    event_time: Slot<Primitive<i64>>,
    start_time: Slot<Primitive<i64>>,
    end_time: Slot<Primitive<i64>>,
    duration_ms: Slot<Primitive<f64>>,
    trace_id: Slot<Text>,
    span_id: Slot<Text>,
    parent_span_id: Slot<Text>,
    name: Slot<Dictionary>,
    kind: Slot<Dictionary>,
    status_code: Slot<Dictionary>,
    status_message: Slot<Dictionary>,
    flags: Slot<Primitive<u32>>,
}

impl Signal for Spans {
    const JSON_ROOT: &'static Message = &TRACES_DATA;

    fn slots(&mut self) -> Vec<(&'static str, &mut dyn AnySlot)> {
        vec![
            ("event_time", &mut self.event_time),
            ("start_time", &mut self.start_time),
            ("end_time", &mut self.end_time),
            ("duration_ms", &mut self.duration_ms),
            ("trace_id", &mut self.trace_id),
            ("span_id", &mut self.span_id),
            ("parent_span_id", &mut self.parent_span_id),
            ("name", &mut self.name),
            ("kind", &mut self.kind),
            ("status_code", &mut self.status_code),
            ("status_message", &mut self.status_message),
            ("flags", &mut self.flags),
        ]
    }

    fn context(&mut self) -> &mut Context {
        &mut self.context
    }

    fn decode(&mut self, request: &[u8], row: usize) -> Result<usize, Fault> {
        decode_request(self, request, row, Self::span)
    }
}

impl Spans {
    fn span(&mut self, span: &[u8], row: usize) -> Result<usize, Fault> {
        let mut reader = Reader::new(span);
        let (mut start, mut end, mut kind, mut flags) = (0, 0, 0, 0);
        let (mut trace_id, mut span_id, mut parent_span_id): (&[u8], &[u8], &[u8]) = (&[], &[], &[]);
        let mut name: &[u8] = &[];
        let mut status = Merged::default();
        let attributes_wanted = self.context.begin_attributes(row);
        while let Some(field) = reader.tag()? {
            match field {
                span::TRACE_ID => trace_id = reader.bytes()?,
                span::SPAN_ID => span_id = reader.bytes()?,
                span::PARENT_SPAN_ID => parent_span_id = reader.bytes()?,
                span::NAME => name = reader.string(name)?,
                span::KIND => kind = reader.varint()? as i32,
                span::START_TIME => start = reader.fixed64()?,
                span::END_TIME => end = reader.fixed64()?,
                span::ATTRIBUTE => {
                    let attribute = reader.bytes()?;
                    if attributes_wanted {
                        self.context.add_attribute(attribute, row)?;
                    }
                }
                span::STATUS => status.add(reader.bytes()?)?,
                span::FLAGS => flags = reader.fixed32()?,
                other => reader.skip_other(other, &span::KNOWN)?,
            }
        }
        if attributes_wanted {
            self.context.attributes.end();
        }
        self.set_times(row, start, end);
        for (slot, id) in [
            (&mut self.trace_id, trace_id),
            (&mut self.span_id, span_id),
            (&mut self.parent_span_id, parent_span_id),
        ] {
            if let Some(column) = slot.get() {
                column.set_hex(row, id)?;
            }
        }
        if let Some(column) = self.flags.get() {
            column.set(row, flags);
        }
        set_unless_empty(&mut self.name, row, name)?;
        set_unless_empty(&mut self.kind, row, kind_name(kind))?;
        self.set_status(row, status.get().unwrap_or_default())?;
        Ok(row + 1)
    }

    fn set_times(&mut self, row: usize, start: u64, end: u64) {
        for slot in [&mut self.event_time, &mut self.end_time] {
            if let Some(column) = slot.get() {
                column.set_option(row, time_ms(end));
            }
        }
        if let Some(column) = self.start_time.get() {
            column.set_option(row, time_ms(start));
        }
        if let Some(column) = self.duration_ms.get() {
            let known = start != 0 && end != 0;
            // Below zero where the clocks of start and end disagree.
            let duration_ns = end as i128 - start as i128;
            column.set_option(row, known.then_some(duration_ns as f64 / 1e6));
        }
    }

    fn set_status(&mut self, row: usize, status: &[u8]) -> Result<(), Fault> {
        let mut reader = Reader::new(status);
        let (mut code, mut message): (i32, &[u8]) = (0, &[]);
        while let Some(field) = reader.tag()? {
            match field {
                status::MESSAGE => message = reader.string(message)?,
                status::CODE => code = reader.varint()? as i32,
                other => reader.skip_other(other, &status::KNOWN)?,
            }
        }
        set_unless_empty(&mut self.status_code, row, status_code_name(code))?;
        set_unless_empty(&mut self.status_message, row, message)
    }
}

fn kind_name(kind: i32) -> &'static [u8] {
    match kind {
        1 => b"internal",
        2 => b"server",
        3 => b"client",
        4 => b"producer",
        5 => b"consumer",
        _ => b"",
    }
}

fn status_code_name(code: i32) -> &'static [u8] {
    match code {
        0 => b"unset",
        1 => b"ok",
        2 => b"error",
        _ => b"",
    }
}
