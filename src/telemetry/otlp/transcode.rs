//! OTLP/JSON to the wire format, so that both encodings share one reader and one meaning.
//!
//! As the specification has it: lowerCamelCase keys, unknown ones skipped, ids in hexadecimal, 64-bit integers as strings
//! or numbers, enums as numbers. Tolerant of protobuf's own JSON mapping, too: enums by name, ids in base64, NaN and
//! infinities as strings, null as absent. A record holds one document or several, one after another; all of them, or none.

use super::base64;
use crate::{
    error::Fault,
    json::{Number, RawString, Scanner},
    wire::{BYTES, FIXED32, FIXED64, VARINT, tag},
};

/// Messages and lists within each other. The deepest OTLP message has about ten, the rest is for nested values.
const DEPTH_MAX: usize = 100;
/// A length is written before it is known: as a varint padded to so many bytes, enough for any Kafka record.
const LENGTH_BYTES: usize = 5;

/// A message's fields.
pub(crate) struct Message {
    fields: &'static [Field],
}

struct Field {
    key: &'static str,
    number: u32,
    kind: Kind,
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    Message(&'static Message),
    Messages(&'static Message),
    String,
    /// Bytes in base64.
    Bytes,
    /// A trace's or span's id.
    Id,
    Bool,
    Double,
    Doubles,
    Fixed32,
    Fixed64,
    Fixed64s,
    Sfixed64,
    Uint32,
    Uint64s,
    Sint32,
    Int64,
    Enum(&'static [&'static str]),
}

const fn field(key: &'static str, number: u32, kind: Kind) -> Field {
    Field { key, number, kind }
}

macro_rules! messages {
    ($($(#[$doc:meta])* $visibility:vis $name:ident { $($key:literal = $number:literal $kind:expr),* $(,)? })*) => {
        $($(#[$doc])* $visibility static $name: Message = Message {
            fields: &[$(field($key, $number, $kind)),*],
        };)*
    };
}

messages! {
    /// Metrics.
    pub(super) METRICS_DATA { "resourceMetrics" = 1 Kind::Messages(&RESOURCE_METRICS) }
    RESOURCE_METRICS {
        "resource" = 1 Kind::Message(&RESOURCE),
        "scopeMetrics" = 2 Kind::Messages(&SCOPE_METRICS),
    }
    SCOPE_METRICS {
        "scope" = 1 Kind::Message(&SCOPE),
        "metrics" = 2 Kind::Messages(&METRIC),
    }
    METRIC {
        "name" = 1 Kind::String,
        "description" = 2 Kind::String,
        "unit" = 3 Kind::String,
        "gauge" = 5 Kind::Message(&GAUGE),
        "sum" = 7 Kind::Message(&SUM),
        "histogram" = 9 Kind::Message(&HISTOGRAM),
        "exponentialHistogram" = 10 Kind::Message(&EXPONENTIAL_HISTOGRAM),
        "summary" = 11 Kind::Message(&SUMMARY),
    }
    GAUGE { "dataPoints" = 1 Kind::Messages(&NUMBER_POINT) }
    SUM {
        "dataPoints" = 1 Kind::Messages(&NUMBER_POINT),
        "aggregationTemporality" = 2 Kind::Enum(TEMPORALITY),
        "isMonotonic" = 3 Kind::Bool,
    }
    HISTOGRAM {
        "dataPoints" = 1 Kind::Messages(&HISTOGRAM_POINT),
        "aggregationTemporality" = 2 Kind::Enum(TEMPORALITY),
    }
    EXPONENTIAL_HISTOGRAM {
        "dataPoints" = 1 Kind::Messages(&EXPONENTIAL_POINT),
        "aggregationTemporality" = 2 Kind::Enum(TEMPORALITY),
    }
    SUMMARY { "dataPoints" = 1 Kind::Messages(&SUMMARY_POINT) }
    NUMBER_POINT {
        "attributes" = 7 Kind::Messages(&KEY_VALUE),
        "startTimeUnixNano" = 2 Kind::Fixed64,
        "timeUnixNano" = 3 Kind::Fixed64,
        "asDouble" = 4 Kind::Double,
        "asInt" = 6 Kind::Sfixed64,
        "flags" = 8 Kind::Uint32,
    }
    HISTOGRAM_POINT {
        "attributes" = 9 Kind::Messages(&KEY_VALUE),
        "startTimeUnixNano" = 2 Kind::Fixed64,
        "timeUnixNano" = 3 Kind::Fixed64,
        "count" = 4 Kind::Fixed64,
        "sum" = 5 Kind::Double,
        "bucketCounts" = 6 Kind::Fixed64s,
        "explicitBounds" = 7 Kind::Doubles,
        "flags" = 10 Kind::Uint32,
        "min" = 11 Kind::Double,
        "max" = 12 Kind::Double,
    }
    EXPONENTIAL_POINT {
        "attributes" = 1 Kind::Messages(&KEY_VALUE),
        "startTimeUnixNano" = 2 Kind::Fixed64,
        "timeUnixNano" = 3 Kind::Fixed64,
        "count" = 4 Kind::Fixed64,
        "sum" = 5 Kind::Double,
        "scale" = 6 Kind::Sint32,
        "zeroCount" = 7 Kind::Fixed64,
        "positive" = 8 Kind::Message(&BUCKETS),
        "negative" = 9 Kind::Message(&BUCKETS),
        "flags" = 10 Kind::Uint32,
        "min" = 12 Kind::Double,
        "max" = 13 Kind::Double,
        "zeroThreshold" = 14 Kind::Double,
    }
    BUCKETS {
        "offset" = 1 Kind::Sint32,
        "bucketCounts" = 2 Kind::Uint64s,
    }
    SUMMARY_POINT {
        "attributes" = 7 Kind::Messages(&KEY_VALUE),
        "startTimeUnixNano" = 2 Kind::Fixed64,
        "timeUnixNano" = 3 Kind::Fixed64,
        "count" = 4 Kind::Fixed64,
        "sum" = 5 Kind::Double,
        "quantileValues" = 6 Kind::Messages(&VALUE_AT_QUANTILE),
        "flags" = 8 Kind::Uint32,
    }
    VALUE_AT_QUANTILE {
        "quantile" = 1 Kind::Double,
        "value" = 2 Kind::Double,
    }
    /// Logs.
    pub(super) LOGS_DATA { "resourceLogs" = 1 Kind::Messages(&RESOURCE_LOGS) }
    RESOURCE_LOGS {
        "resource" = 1 Kind::Message(&RESOURCE),
        "scopeLogs" = 2 Kind::Messages(&SCOPE_LOGS),
    }
    SCOPE_LOGS {
        "scope" = 1 Kind::Message(&SCOPE),
        "logRecords" = 2 Kind::Messages(&LOG_RECORD),
    }
    LOG_RECORD {
        "timeUnixNano" = 1 Kind::Fixed64,
        "severityNumber" = 2 Kind::Enum(SEVERITY),
        "severityText" = 3 Kind::String,
        "body" = 5 Kind::Message(&ANY_VALUE),
        "attributes" = 6 Kind::Messages(&KEY_VALUE),
        "flags" = 8 Kind::Fixed32,
        "traceId" = 9 Kind::Id,
        "spanId" = 10 Kind::Id,
        "observedTimeUnixNano" = 11 Kind::Fixed64,
        "eventName" = 12 Kind::String,
    }
    /// Spans.
    pub(super) TRACES_DATA { "resourceSpans" = 1 Kind::Messages(&RESOURCE_SPANS) }
    RESOURCE_SPANS {
        "resource" = 1 Kind::Message(&RESOURCE),
        "scopeSpans" = 2 Kind::Messages(&SCOPE_SPANS),
    }
    SCOPE_SPANS {
        "scope" = 1 Kind::Message(&SCOPE),
        "spans" = 2 Kind::Messages(&SPAN),
    }
    SPAN {
        "traceId" = 1 Kind::Id,
        "spanId" = 2 Kind::Id,
        "parentSpanId" = 4 Kind::Id,
        "name" = 5 Kind::String,
        "kind" = 6 Kind::Enum(SPAN_KIND),
        "startTimeUnixNano" = 7 Kind::Fixed64,
        "endTimeUnixNano" = 8 Kind::Fixed64,
        "attributes" = 9 Kind::Messages(&KEY_VALUE),
        "status" = 15 Kind::Message(&STATUS),
        "flags" = 16 Kind::Fixed32,
    }
    STATUS {
        "message" = 2 Kind::String,
        "code" = 3 Kind::Enum(STATUS_CODE),
    }
    RESOURCE { "attributes" = 1 Kind::Messages(&KEY_VALUE) }
    SCOPE { "name" = 1 Kind::String }
    KEY_VALUE {
        "key" = 1 Kind::String,
        "value" = 2 Kind::Message(&ANY_VALUE),
    }
    ANY_VALUE {
        "stringValue" = 1 Kind::String,
        "boolValue" = 2 Kind::Bool,
        "intValue" = 3 Kind::Int64,
        "doubleValue" = 4 Kind::Double,
        "arrayValue" = 5 Kind::Message(&ARRAY_VALUE),
        "kvlistValue" = 6 Kind::Message(&KEY_VALUE_LIST),
        "bytesValue" = 7 Kind::Bytes,
    }
    ARRAY_VALUE { "values" = 1 Kind::Messages(&ANY_VALUE) }
    KEY_VALUE_LIST { "values" = 1 Kind::Messages(&KEY_VALUE) }
}

const TEMPORALITY: &[&str] = &[
    "AGGREGATION_TEMPORALITY_UNSPECIFIED",
    "AGGREGATION_TEMPORALITY_DELTA",
    "AGGREGATION_TEMPORALITY_CUMULATIVE",
];
const SPAN_KIND: &[&str] = &[
    "SPAN_KIND_UNSPECIFIED",
    "SPAN_KIND_INTERNAL",
    "SPAN_KIND_SERVER",
    "SPAN_KIND_CLIENT",
    "SPAN_KIND_PRODUCER",
    "SPAN_KIND_CONSUMER",
];
const STATUS_CODE: &[&str] = &["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"];
const SEVERITY: &[&str] = &[
    "SEVERITY_NUMBER_UNSPECIFIED",
    "SEVERITY_NUMBER_TRACE",
    "SEVERITY_NUMBER_TRACE2",
    "SEVERITY_NUMBER_TRACE3",
    "SEVERITY_NUMBER_TRACE4",
    "SEVERITY_NUMBER_DEBUG",
    "SEVERITY_NUMBER_DEBUG2",
    "SEVERITY_NUMBER_DEBUG3",
    "SEVERITY_NUMBER_DEBUG4",
    "SEVERITY_NUMBER_INFO",
    "SEVERITY_NUMBER_INFO2",
    "SEVERITY_NUMBER_INFO3",
    "SEVERITY_NUMBER_INFO4",
    "SEVERITY_NUMBER_WARN",
    "SEVERITY_NUMBER_WARN2",
    "SEVERITY_NUMBER_WARN3",
    "SEVERITY_NUMBER_WARN4",
    "SEVERITY_NUMBER_ERROR",
    "SEVERITY_NUMBER_ERROR2",
    "SEVERITY_NUMBER_ERROR3",
    "SEVERITY_NUMBER_ERROR4",
    "SEVERITY_NUMBER_FATAL",
    "SEVERITY_NUMBER_FATAL2",
    "SEVERITY_NUMBER_FATAL3",
    "SEVERITY_NUMBER_FATAL4",
];

/// Rewrites documents of one kind; the buffer is kept.
pub(super) struct Transcoder {
    root: &'static Message,
    out: Vec<u8>,
    scratch: Vec<u8>,
}

impl Transcoder {
    pub fn new(root: &'static Message) -> Self {
        Self {
            root,
            out: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// The wire format of a record's documents; concatenated messages are their union.
    pub fn transcode(&mut self, value: &[u8]) -> Result<&[u8], Fault> {
        self.out.clear();
        let mut scanner = Scanner::new(value);
        if scanner.token().is_none() {
            return Err(scanner.expected("a document"));
        }
        while scanner.token().is_some() {
            self.document(&mut scanner)?;
        }
        Ok(&self.out)
    }

    /// A document that has keys, but not the signal's own, is something else that must not vanish.
    fn document(&mut self, scanner: &mut Scanner<'_>) -> Result<(), Fault> {
        let before = scanner.clone();
        let (any_key, known_key) = self.message(self.root, scanner, 0)?;
        if any_key && !known_key {
            return Err(before.fault(format!("the document has no {:?}", self.root.fields[0].key)));
        }
        Ok(())
    }

    /// Writes the fields of an object; returns whether there were any, and any known ones.
    fn message(
        &mut self,
        message: &'static Message,
        scanner: &mut Scanner<'_>,
        depth: usize,
    ) -> Result<(bool, bool), Fault> {
        if depth > DEPTH_MAX {
            return Err(scanner.fault("nested too deep"));
        }
        scanner.begin_object()?;
        let (mut first, mut known) = (true, false);
        while let Some(key) = scanner.next_key(first)? {
            first = false;
            match message.find(key) {
                Some(field) => {
                    known = true;
                    self.field(field, scanner, depth)
                        .map_err(|fault| fault.in_field(field.key))?;
                }
                None => {
                    key.check()?;
                    scanner.skip_value()?;
                }
            }
        }
        Ok((!first, known))
    }

    fn field(&mut self, field: &'static Field, scanner: &mut Scanner<'_>, depth: usize) -> Result<(), Fault> {
        if scanner.token() == Some(b'n') {
            return scanner.literal("null");
        }
        match field.kind {
            Kind::Message(message) => self.submessage(field.number, message, scanner, depth),
            Kind::Messages(message) => {
                begin_array(scanner)?;
                let mut first = true;
                while scanner.next_element(first)? {
                    first = false;
                    self.submessage(field.number, message, scanner, depth)?;
                }
                Ok(())
            }
            Kind::Doubles | Kind::Fixed64s | Kind::Uint64s => {
                begin_array(scanner)?;
                let mut first = true;
                while scanner.next_element(first)? {
                    first = false;
                    scanner.token();
                    self.scalar(field, scanner)?;
                }
                Ok(())
            }
            _ => self.scalar(field, scanner),
        }
    }

    fn submessage(
        &mut self,
        number: u32,
        message: &'static Message,
        scanner: &mut Scanner<'_>,
        depth: usize,
    ) -> Result<(), Fault> {
        let length_at = self.begin(number);
        self.message(message, scanner, depth + 1)?;
        self.end(length_at, scanner)
    }

    /// Writes a tag and the room for a length.
    fn begin(&mut self, number: u32) -> usize {
        varint(&mut self.out, u64::from(tag(number, BYTES)));
        let length_at = self.out.len();
        self.out.extend_from_slice(&[0; LENGTH_BYTES]);
        length_at
    }

    fn end(&mut self, length_at: usize, scanner: &Scanner<'_>) -> Result<(), Fault> {
        let length = self.out.len() - length_at - LENGTH_BYTES;
        let mut rest = u32::try_from(length).map_err(|_| scanner.fault("a document exceeds 4 GiB"))?;
        for byte in &mut self.out[length_at..length_at + LENGTH_BYTES] {
            *byte = (rest & 0x7f) as u8 | 0x80;
            rest >>= 7;
        }
        self.out[length_at + LENGTH_BYTES - 1] &= 0x7f;
        Ok(())
    }

    fn scalar(&mut self, field: &'static Field, scanner: &mut Scanner<'_>) -> Result<(), Fault> {
        let number = field.number;
        match field.kind {
            Kind::String => {
                let string = string(scanner, "a string")?;
                let bytes = string.bytes(&mut self.scratch)?;
                if std::str::from_utf8(bytes).is_err() {
                    return Err(Fault::at("a string is not UTF-8", string.raw));
                }
                varint(&mut self.out, u64::from(tag(number, BYTES)));
                varint(&mut self.out, bytes.len() as u64);
                self.out.extend_from_slice(bytes);
                Ok(())
            }
            Kind::Bytes => {
                let string = string(scanner, "bytes in base64")?;
                let length_at = self.begin(number);
                base64::decode(string.bytes(&mut self.scratch)?, &mut self.out)
                    .ok_or_else(|| Fault::at("not base64", string.raw))?;
                self.end(length_at, scanner)
            }
            Kind::Id => {
                let string = string(scanner, "an id in hexadecimal digits")?;
                let length_at = self.begin(number);
                write_id(string.bytes(&mut self.scratch)?, &mut self.out)
                    .ok_or_else(|| Fault::at("not an id of 8 or 16 bytes in hexadecimal digits", string.raw))?;
                self.end(length_at, scanner)
            }
            Kind::Bool => {
                let value = bool_value(scanner)?;
                self.tagged_varint(number, u64::from(value))
            }
            Kind::Double | Kind::Doubles => {
                let value = double(scanner, &mut self.scratch)?;
                self.tagged_fixed64(number, value.to_bits())
            }
            Kind::Fixed64 | Kind::Fixed64s => {
                let value = integer(scanner, &mut self.scratch, |number| number.to_u64())?;
                self.tagged_fixed64(number, value)
            }
            Kind::Sfixed64 => {
                let value = integer(scanner, &mut self.scratch, |number| number.to_i64())?;
                self.tagged_fixed64(number, value as u64)
            }
            Kind::Int64 => {
                let value = integer(scanner, &mut self.scratch, |number| number.to_i64())?;
                self.tagged_varint(number, value as u64)
            }
            Kind::Uint64s => {
                let value = integer(scanner, &mut self.scratch, |number| number.to_u64())?;
                self.tagged_varint(number, value)
            }
            Kind::Uint32 => {
                let value = integer(scanner, &mut self.scratch, to_u32)?;
                self.tagged_varint(number, u64::from(value))
            }
            Kind::Fixed32 => {
                let value = integer(scanner, &mut self.scratch, to_u32)?;
                varint(&mut self.out, u64::from(tag(number, FIXED32)));
                self.out.extend_from_slice(&value.to_le_bytes());
                Ok(())
            }
            Kind::Sint32 => {
                let value = integer(scanner, &mut self.scratch, to_i32)?;
                self.tagged_varint(number, u64::from((value << 1 ^ value >> 31) as u32))
            }
            Kind::Enum(names) => {
                let value = enum_value(scanner, &mut self.scratch, names)?;
                self.tagged_varint(number, value as u64)
            }
            Kind::Message(_) | Kind::Messages(_) => Err(scanner.expected("an object")),
        }
    }

    fn tagged_varint(&mut self, number: u32, value: u64) -> Result<(), Fault> {
        varint(&mut self.out, u64::from(tag(number, VARINT)));
        varint(&mut self.out, value);
        Ok(())
    }

    fn tagged_fixed64(&mut self, number: u32, value: u64) -> Result<(), Fault> {
        varint(&mut self.out, u64::from(tag(number, FIXED64)));
        self.out.extend_from_slice(&value.to_le_bytes());
        Ok(())
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

impl Message {
    #[cfg(test)]
    pub(super) fn kind_of(&self, number: u32) -> Option<Kind> {
        self.fields
            .iter()
            .find(|field| field.number == number)
            .map(|field| field.kind)
    }

    fn find(&self, key: RawString<'_>) -> Option<&'static Field> {
        if !key.escaped {
            return self.fields.iter().find(|field| field.key.as_bytes() == key.raw);
        }
        let mut scratch = Vec::new();
        let key = key.bytes(&mut scratch).ok()?;
        self.fields.iter().find(|field| field.key.as_bytes() == key)
    }
}

fn begin_array(scanner: &mut Scanner<'_>) -> Result<(), Fault> {
    match scanner.token() {
        Some(b'[') => {
            scanner.pass_byte();
            Ok(())
        }
        _ => Err(scanner.expected("an array")),
    }
}

fn string<'a>(scanner: &mut Scanner<'a>, expected: &str) -> Result<RawString<'a>, Fault> {
    match scanner.token() {
        Some(b'"') => scanner.string(),
        _ => Err(scanner.expected(expected)),
    }
}

fn bool_value(scanner: &mut Scanner<'_>) -> Result<bool, Fault> {
    match scanner.token() {
        Some(b't') => scanner.literal("true").map(|()| true),
        Some(b'f') => scanner.literal("false").map(|()| false),
        _ => Err(scanner.expected("a boolean")),
    }
}

/// A number, or a string that is one.
fn integer<T>(
    scanner: &mut Scanner<'_>,
    scratch: &mut Vec<u8>,
    convert: impl Fn(Number<'_>) -> Option<T>,
) -> Result<T, Fault> {
    let from = scanner.clone();
    let wrong = || from.fault("not an integer in range");
    match scanner.token() {
        Some(b'-' | b'0'..=b'9') => convert(scanner.number()?).ok_or_else(wrong),
        Some(b'"') => {
            let text = scanner.string()?.bytes(scratch)?;
            let mut inner = Scanner::new(text);
            let number = inner.number().map_err(|_| wrong())?;
            let value = inner.rest().is_empty().then(|| convert(number)).flatten();
            value.ok_or_else(wrong)
        }
        _ => Err(scanner.expected("an integer")),
    }
}

fn to_u32(number: Number<'_>) -> Option<u32> {
    number.to_i64().and_then(|value| u32::try_from(value).ok())
}

fn to_i32(number: Number<'_>) -> Option<i32> {
    number.to_i64().and_then(|value| i32::try_from(value).ok())
}

fn double(scanner: &mut Scanner<'_>, scratch: &mut Vec<u8>) -> Result<f64, Fault> {
    let from = scanner.clone();
    let wrong = || from.fault("not a number in range");
    match scanner.token() {
        Some(b'-' | b'0'..=b'9') => scanner.number()?.to_f64().ok_or_else(wrong),
        Some(b'"') => match scanner.string()?.bytes(scratch)? {
            b"NaN" => Ok(f64::NAN),
            b"Infinity" => Ok(f64::INFINITY),
            b"-Infinity" => Ok(f64::NEG_INFINITY),
            text => {
                let mut inner = Scanner::new(text);
                let number = inner.number().map_err(|_| wrong())?;
                inner
                    .rest()
                    .is_empty()
                    .then(|| number.to_f64())
                    .flatten()
                    .ok_or_else(wrong)
            }
        },
        _ => Err(scanner.expected("a number")),
    }
}

fn enum_value(scanner: &mut Scanner<'_>, scratch: &mut Vec<u8>, names: &[&str]) -> Result<i32, Fault> {
    if scanner.token() != Some(b'"') {
        return integer(scanner, scratch, to_i32);
    }
    let string = scanner.string()?;
    let name = string.bytes(scratch)?;
    match names.iter().position(|known| known.as_bytes() == name) {
        Some(value) => Ok(value as i32),
        None => Err(Fault::at("an enum value that does not exist", string.raw)),
    }
}

/// 8 or 16 bytes in hexadecimal digits or, from protobuf's own JSON mapping, in base64. Nothing is no id.
fn write_id(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    match text.len() {
        0 => Some(()),
        16 | 32 => {
            for pair in text.as_chunks::<2>().0 {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                out.push((digit(pair[0])? << 4 | digit(pair[1])?) as u8);
            }
            Some(())
        }
        // With their padding, as 8 and 16 bytes have it.
        12 | 24 => base64::decode(text, out),
        _ => None,
    }
}
