//! OTLP: the three signals as rows, read from the wire without building messages.
//!
//! Fields may come in any order (the Collector writes them from last to first, so a resource follows its points) and a
//! submessage in several pieces. What is the same for a run of rows, such as a metric's name, is filled in when the run
//! is known; no message is read twice. An empty string is an absent one, as in protobuf itself: NULL.

mod any_value;
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
use transcode::{Message, Transcoder};

use crate::{
    attributes::Attributes,
    column::{AnySlot, Dictionary, Slot},
    error::Fault,
    flatten::{EntryColumn, Flatten},
    record::RecordMeta,
    wire::{Merged, Reader},
};
use message::{key_value, request, resource, resource_block, scope, scope_block};

/// One signal: its columns, and how its messages are read.
pub(crate) trait Signal: Default + Send {
    /// The documents of its JSON encoding.
    const JSON_ROOT: &'static Message;
    /// The columns by name, but for those of the context.
    fn slots(&mut self) -> Vec<(&'static str, &mut dyn AnySlot)>;
    fn context(&mut self) -> &mut Context;
    /// Appends the rows of an export request; returns the row count then.
    fn decode(&mut self, request: &[u8], row: usize) -> Result<usize, Fault>;
}

/// What the rows of every signal have around them: resource, scope, and their own attributes.
#[derive(Default)]
pub(crate) struct Context {
    resource: Attributes,
    attributes: Attributes,
    scope_name: Slot<Dictionary>,
    text: Vec<u8>,
}

/// A signal as a format: from the wire, or from JSON by way of it.
pub(crate) struct Otlp<S> {
    signal: S,
    transcoder: Option<Transcoder>,
}

impl<S: Signal> Otlp<S> {
    pub fn new(json: bool) -> Self {
        Self {
            signal: S::default(),
            transcoder: json.then(|| Transcoder::new(S::JSON_ROOT)),
        }
    }
}

impl<S: Signal> Flatten for Otlp<S> {
    fn slots(&mut self) -> Vec<(&'static str, &mut dyn AnySlot)> {
        self.signal.slots()
    }

    fn context_slots(&mut self) -> Vec<(&'static str, &mut dyn AnySlot)> {
        vec![("scope_name", &mut self.signal.context().scope_name)]
    }

    fn maps(&mut self) -> Vec<(&'static str, &mut Attributes)> {
        let context = self.signal.context();
        vec![
            ("resource", &mut context.resource),
            ("attributes", &mut context.attributes),
        ]
    }

    fn entry_columns(&self) -> &'static [EntryColumn] {
        &[
            EntryColumn {
                column: "service_name",
                map: "resource",
                key: "service.name",
            },
            EntryColumn {
                column: "service_instance_id",
                map: "resource",
                key: "service.instance.id",
            },
        ]
    }

    fn decode(&mut self, value: &[u8], row: usize, _: &RecordMeta<'_>) -> Result<usize, Fault> {
        match &mut self.transcoder {
            None => self.signal.decode(value, row),
            Some(transcoder) => self.signal.decode(transcoder.transcode(value)?, row),
        }
    }
}

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
    let context = signal.context();
    if context.resource.wanted() {
        context.resource.begin(from);
        if let Some(resource) = resource.get() {
            read_resource(context, resource, from)?;
        }
        context.resource.end_run(from, row)?;
    }
    Ok(row)
}

fn read_resource(context: &mut Context, resource: &[u8], row: usize) -> Result<(), Fault> {
    let mut reader = Reader::new(resource);
    while let Some(field) = reader.tag()? {
        match field {
            resource::ATTRIBUTE => add_key_value(&mut context.resource, reader.bytes()?, row, &mut context.text)?,
            other => reader.skip_other(other, &resource::KNOWN)?,
        }
    }
    Ok(())
}

/// Takes one `KeyValue`.
#[inline]
fn add_key_value(
    attributes: &mut Attributes,
    key_value: &[u8],
    row: usize,
    scratch: &mut Vec<u8>,
) -> Result<(), Fault> {
    match short_key_value(key_value) {
        Some((key, value)) => add_encoded(attributes, key, value, row, scratch),
        None => add_any_key_value(attributes, key_value, row, scratch),
    }
}

/// One key and one value, both shorter than 128 bytes, in either order, and nothing else: nearly every `KeyValue`.
#[inline(always)]
fn short_key_value(key_value: &[u8]) -> Option<(&[u8], &[u8])> {
    let [first, length, rest @ ..] = key_value else {
        return None;
    };
    let (head, rest) = rest.split_at_checked(usize::from(*length))?;
    let [second, rest_length, tail @ ..] = rest else {
        return None;
    };
    if *length >= 0x80 || *rest_length >= 0x80 || usize::from(*rest_length) != tail.len() {
        return None;
    }
    match (u32::from(*first), u32::from(*second)) {
        (key_value::KEY, key_value::VALUE) => Some((head, tail)),
        (key_value::VALUE, key_value::KEY) => Some((tail, head)),
        _ => None,
    }
}

#[inline(never)]
fn add_any_key_value(
    attributes: &mut Attributes,
    key_value: &[u8],
    row: usize,
    scratch: &mut Vec<u8>,
) -> Result<(), Fault> {
    let mut reader = Reader::new(key_value);
    let mut key: &[u8] = &[];
    let mut value = Merged::default();
    while let Some(field) = reader.tag()? {
        match field {
            key_value::KEY => key = reader.string(key)?,
            key_value::VALUE => value.add(reader.bytes()?)?,
            other => reader.skip_other(other, &key_value::KNOWN)?,
        }
    }
    add_encoded(attributes, key, value.get().unwrap_or_default(), row, scratch)
}

#[inline(always)]
fn add_encoded(
    attributes: &mut Attributes,
    key: &[u8],
    value: &[u8],
    row: usize,
    scratch: &mut Vec<u8>,
) -> Result<(), Fault> {
    if attributes.reads(key) {
        attributes.add(key, any_value::text(value, scratch)?, row)?;
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

impl Context {
    /// Opens the row's attributes, if some column reads them.
    #[inline(always)]
    fn begin_attributes(&mut self, row: usize) -> bool {
        let wanted = self.attributes.wanted();
        if wanted {
            self.attributes.begin(row);
        }
        wanted
    }

    #[inline(always)]
    fn add_attribute(&mut self, key_value: &[u8], row: usize) -> Result<(), Fault> {
        add_key_value(&mut self.attributes, key_value, row, &mut self.text)
    }
}
