//! OTLP: the three signals as rows, read from the wire without building messages.
//!
//! Fields may come in any order (the Collector writes them from last to first, so a resource follows its points) and a
//! submessage in several pieces. What is the same for a run of rows, such as a metric's name, is filled in when the run
//! is known; no message is read twice. An empty string is an absent one, as in protobuf itself: NULL.

mod any_value;
mod attributes;
mod base64;
mod logs;
mod message;
mod metrics;
mod spans;
#[cfg(test)]
mod tests;
mod transcode;

pub(crate) use logs::Logs;
pub(crate) use metrics::Metrics;
pub(crate) use spans::Spans;
pub(crate) use transcode::{LOGS_DATA, METRICS_DATA, TRACES_DATA, Transcoder};

use crate::{
    column::{AnySlot, Dictionary, Slot},
    error::Fault,
    wire::{Merged, Reader},
};
use attributes::Attributes;
use message::{request, resource, resource_block, scope, scope_block};

/// One signal's columns and how they are read.
pub(crate) trait Signal: Send {
    /// The columns by name, but for those of the context.
    fn slots(&mut self) -> Vec<(&'static str, &mut dyn AnySlot)>;
    fn context(&mut self) -> &mut Context;
    /// Appends the rows of an export request; returns the row count then.
    fn decode(&mut self, request: &[u8], row: usize) -> Result<usize, Fault>;
}

/// What the rows of every signal have around them: resource, scope, and their own attributes.
#[derive(Default)]
pub(crate) struct Context {
    pub resource: Attributes,
    pub attributes: Attributes,
    pub scope_name: Slot<Dictionary>,
}

/// Resource attributes that are columns of their own.
pub(crate) const RESOURCE_COLUMNS: [(&str, &str); 2] = [
    ("service_name", "service.name"),
    ("service_instance_id", "service.instance.id"),
];

/// The first three levels, which all signals share: request, resource block, scope block. `element` appends the rows of a
/// metric, log record or span and returns the row count then.
fn decode_request<S: Signal>(
    signal: &mut S,
    request: &[u8],
    mut row: usize,
    element: fn(&mut S, &[u8], usize) -> Result<usize, Fault>,
) -> Result<usize, Fault> {
    signal.context().resource.begin_record();
    let mut reader = Reader::new(request);
    while let Some(field) = reader.tag()? {
        match field {
            request::RESOURCE_BLOCK => row = decode_resource_block(signal, reader.bytes()?, row, element)?,
            other => reader.skip_other(other, &request::KNOWN)?,
        }
    }
    Ok(row)
}

fn decode_resource_block<S: Signal>(
    signal: &mut S,
    block: &[u8],
    from: usize,
    element: fn(&mut S, &[u8], usize) -> Result<usize, Fault>,
) -> Result<usize, Fault> {
    let mut reader = Reader::new(block);
    let mut resource = Merged::default();
    let mut row = from;
    while let Some(field) = reader.tag()? {
        match field {
            resource_block::RESOURCE => resource.add(reader.bytes()?)?,
            resource_block::SCOPE_BLOCK => row = decode_scope_block(signal, reader.bytes()?, row, element)?,
            other => reader.skip_other(other, &resource_block::KNOWN)?,
        }
    }
    let attributes = &mut signal.context().resource;
    if attributes.wanted() {
        attributes.begin(from);
        if let Some(resource) = resource.get() {
            read_resource(attributes, resource, from)?;
        }
        attributes.end_run(from, row)?;
    }
    Ok(row)
}

fn read_resource(attributes: &mut Attributes, resource: &[u8], row: usize) -> Result<(), Fault> {
    let mut reader = Reader::new(resource);
    while let Some(field) = reader.tag()? {
        match field {
            resource::ATTRIBUTE => attributes.add(reader.bytes()?, row)?,
            other => reader.skip_other(other, &resource::KNOWN)?,
        }
    }
    Ok(())
}

fn decode_scope_block<S: Signal>(
    signal: &mut S,
    block: &[u8],
    from: usize,
    element: fn(&mut S, &[u8], usize) -> Result<usize, Fault>,
) -> Result<usize, Fault> {
    let mut reader = Reader::new(block);
    let mut scope = Merged::default();
    let mut row = from;
    while let Some(field) = reader.tag()? {
        match field {
            scope_block::SCOPE => scope.add(reader.bytes()?)?,
            scope_block::ELEMENT => row = element(signal, reader.bytes()?, row)?,
            other => reader.skip_other(other, &scope_block::KNOWN)?,
        }
    }
    if let Some(names) = signal.context().scope_name.get()
        && let Some(scope) = scope.get()
    {
        names.fill_unless_empty(from, row, scope_name(scope)?)?;
    }
    Ok(row)
}

fn scope_name(scope: &[u8]) -> Result<&[u8], Fault> {
    let mut reader = Reader::new(scope);
    let mut name: &[u8] = &[];
    while let Some(field) = reader.tag()? {
        match field {
            scope::NAME => name = reader.string(name)?,
            other => reader.skip_other(other, &scope::KNOWN)?,
        }
    }
    Ok(name)
}

/// Milliseconds since the Unix epoch; 0 is "unknown" in OTLP.
#[inline(always)]
fn time_ms(time_unix_nano: u64) -> Option<i64> {
    (time_unix_nano != 0).then_some((time_unix_nano / 1_000_000) as i64)
}

/// Puts a string that comes with one row; an empty one is NULL.
fn set_unless_empty(slot: &mut Slot<Dictionary>, row: usize, string: &[u8]) -> Result<(), Fault> {
    match slot.get() {
        Some(column) if !string.is_empty() => column.set(row, string),
        _ => Ok(()),
    }
}

/// Cuts every column of a signal back to `rows`.
pub(crate) fn truncate(signal: &mut dyn Signal, rows: usize) {
    for (_, slot) in signal.slots() {
        slot.truncate(rows);
    }
    for slot in signal.context().slots() {
        slot.truncate(rows);
    }
}

impl Context {
    pub fn slots(&mut self) -> Vec<&mut dyn AnySlot> {
        let mut slots: Vec<&mut dyn AnySlot> = vec![&mut self.scope_name];
        slots.extend(self.resource.slots());
        slots.extend(self.attributes.slots());
        slots
    }
}
