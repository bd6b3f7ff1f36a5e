//! `AnyValue` as text, the way the Collector's `AsString` has it: strings as they are, numbers in JSON's notation, bytes in
//! base64, lists and maps as JSON. A value without an arm is NULL.

use std::{io::Write, mem};

use super::{
    base64,
    message::{any_value, key_value, list},
};
use crate::{
    error::Fault,
    wire::{Merged, Reader},
};

/// Nested lists and maps that are read; deeper ones are an attack, not telemetry.
const DEPTH_MAX: usize = 64;

enum AnyValue<'a> {
    Empty,
    String(&'a [u8]),
    Bool(bool),
    Int(i64),
    Double(f64),
    Array(Merged<'a>),
    Map(Merged<'a>),
    Bytes(&'a [u8]),
}

/// The text of an encoded value: a piece of it where it is a string, else written to `scratch`. Strings are not checked
/// for UTF-8: whoever keeps them does.
#[inline]
pub(super) fn text<'a>(value: &'a [u8], scratch: &'a mut Vec<u8>) -> Result<Option<&'a [u8]>, Fault> {
    if let [tag, length, string @ ..] = value
        && u32::from(*tag) == any_value::STRING
        && usize::from(*length) == string.len()
        && *length < 0x80
    {
        return Ok(Some(string));
    }
    text_of_any(value, scratch)
}

#[inline(never)]
fn text_of_any<'a>(value: &'a [u8], scratch: &'a mut Vec<u8>) -> Result<Option<&'a [u8]>, Fault> {
    scratch.clear();
    match parse(value)? {
        AnyValue::Empty => return Ok(None),
        AnyValue::String(string) => return Ok(Some(string)),
        AnyValue::Bytes(bytes) => base64::encode(bytes, scratch),
        other => write_json(&other, scratch, 0)?,
    }
    Ok(Some(scratch))
}

fn parse(value: &[u8]) -> Result<AnyValue<'_>, Fault> {
    let mut reader = Reader::new(value);
    let mut any = AnyValue::Empty;
    while let Some(field) = reader.tag()? {
        let next = match field {
            any_value::STRING => AnyValue::String(reader.bytes()?),
            any_value::BOOL => AnyValue::Bool(reader.varint()? != 0),
            any_value::INT => AnyValue::Int(reader.varint()? as i64),
            any_value::DOUBLE => AnyValue::Double(reader.double()?),
            any_value::ARRAY => {
                let mut pieces = any.take_array();
                pieces.add(reader.bytes()?)?;
                AnyValue::Array(pieces)
            }
            any_value::MAP => {
                let mut pieces = any.take_map();
                pieces.add(reader.bytes()?)?;
                AnyValue::Map(pieces)
            }
            any_value::RAW_BYTES => AnyValue::Bytes(reader.bytes()?),
            // An index into a table that only profiles have.
            any_value::STRINDEX => {
                reader.varint()?;
                AnyValue::Empty
            }
            other => {
                reader.skip_other(other, &any_value::KNOWN)?;
                continue;
            }
        };
        // The last value counts, but those before it must be right, too.
        match mem::replace(&mut any, next) {
            AnyValue::Empty => {}
            replaced => write_json(&replaced, &mut Vec::new(), 0)?,
        }
    }
    Ok(any)
}

impl<'a> AnyValue<'a> {
    /// The pieces so far, if this is a list.
    fn take_array(&mut self) -> Merged<'a> {
        match self {
            Self::Array(pieces) => {
                let pieces = mem::take(pieces);
                *self = Self::Empty;
                pieces
            }
            _ => Merged::default(),
        }
    }

    /// The pieces so far, if this is a map.
    fn take_map(&mut self) -> Merged<'a> {
        match self {
            Self::Map(pieces) => {
                let pieces = mem::take(pieces);
                *self = Self::Empty;
                pieces
            }
            _ => Merged::default(),
        }
    }
}

fn write_json(any: &AnyValue<'_>, out: &mut Vec<u8>, depth: usize) -> Result<(), Fault> {
    if depth > DEPTH_MAX {
        return Err(Fault::new("an attribute value is nested too deep"));
    }
    match any {
        AnyValue::Empty => out.extend_from_slice(b"null"),
        AnyValue::String(string) => write_string(string, out)?,
        AnyValue::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        AnyValue::Int(value) => write(out, format_args!("{value}")),
        AnyValue::Double(value) => write_double(*value, out),
        AnyValue::Array(pieces) => write_array(pieces, out, depth)?,
        AnyValue::Map(pieces) => write_map(pieces, out, depth)?,
        AnyValue::Bytes(bytes) => {
            out.push(b'"');
            base64::encode(bytes, out);
            out.push(b'"');
        }
    }
    Ok(())
}

fn write_array(pieces: &Merged<'_>, out: &mut Vec<u8>, depth: usize) -> Result<(), Fault> {
    let mut reader = Reader::new(pieces.get().unwrap_or_default());
    let mut separator: &[u8] = b"[";
    while let Some(field) = reader.tag()? {
        match field {
            list::VALUE => {
                out.extend_from_slice(separator);
                write_json(&parse(reader.bytes()?)?, out, depth + 1)?;
                separator = b",";
            }
            other => reader.skip_other(other, &list::KNOWN)?,
        }
    }
    out.extend_from_slice(if separator == b"[" { b"[]" } else { b"]" });
    Ok(())
}

fn write_map(pieces: &Merged<'_>, out: &mut Vec<u8>, depth: usize) -> Result<(), Fault> {
    let mut reader = Reader::new(pieces.get().unwrap_or_default());
    let mut separator: &[u8] = b"{";
    while let Some(field) = reader.tag()? {
        match field {
            list::VALUE => {
                out.extend_from_slice(separator);
                write_entry(reader.bytes()?, out, depth)?;
                separator = b",";
            }
            other => reader.skip_other(other, &list::KNOWN)?,
        }
    }
    out.extend_from_slice(if separator == b"{" { b"{}" } else { b"}" });
    Ok(())
}

fn write_entry(key_value: &[u8], out: &mut Vec<u8>, depth: usize) -> Result<(), Fault> {
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
    write_string(key, out)?;
    out.push(b':');
    write_json(&parse(value.get().unwrap_or_default())?, out, depth + 1)
}

fn write_string(string: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    let text = std::str::from_utf8(string).map_err(|_| Fault::at("a string is not UTF-8", string))?;
    serde_json::to_writer(out, text).expect("a string is written to memory");
    Ok(())
}

/// As ECMAScript and Go write it: no exponent between 1e-6 and 1e21.
fn write_double(value: f64, out: &mut Vec<u8>) {
    let magnitude = value.abs();
    if magnitude != 0.0 && magnitude.is_finite() && !(1e-6..1e21).contains(&magnitude) {
        let text = format!("{value:e}");
        let signed = if magnitude >= 1e21 {
            text.replace('e', "e+")
        } else {
            text
        };
        out.extend_from_slice(signed.as_bytes());
    } else if value.is_infinite() {
        out.extend_from_slice(if value > 0.0 { b"Infinity" } else { b"-Infinity" });
    } else {
        write(out, format_args!("{value}"));
    }
}

fn write(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("memory takes every write");
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList, any_value::Value};
    use prost::Message;

    fn text(value: Option<Value>) -> Option<String> {
        let encoded = AnyValue { value }.encode_to_vec();
        let mut scratch = Vec::new();
        let text = super::text(&encoded, &mut scratch).unwrap();
        text.map(|text| String::from_utf8(text.to_vec()).unwrap())
    }

    #[test]
    fn every_arm_as_text() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(text(None), None);
        assert_eq!(text(Some(Value::StringValue("a\"b".into()))), some("a\"b"));
        assert_eq!(text(Some(Value::StringValue("x".repeat(300)))), Some("x".repeat(300)));
        assert_eq!(text(Some(Value::StringValue(String::new()))), some(""));
        assert_eq!(text(Some(Value::BoolValue(true))), some("true"));
        assert_eq!(text(Some(Value::IntValue(-5))), some("-5"));
        assert_eq!(text(Some(Value::DoubleValue(1.0))), some("1"));
        assert_eq!(text(Some(Value::DoubleValue(0.25))), some("0.25"));
        assert_eq!(text(Some(Value::DoubleValue(1e21))), some("1e+21"));
        assert_eq!(text(Some(Value::DoubleValue(-1.5e-7))), some("-1.5e-7"));
        assert_eq!(text(Some(Value::DoubleValue(f64::NAN))), some("NaN"));
        assert_eq!(text(Some(Value::BytesValue(vec![1, 2, 3, 4]))), some("AQIDBA=="));
        let nested = Value::ArrayValue(ArrayValue {
            values: vec![
                AnyValue {
                    value: Some(Value::StringValue("a\"".into())),
                },
                AnyValue { value: None },
                AnyValue {
                    value: Some(Value::KvlistValue(KeyValueList {
                        values: vec![KeyValue {
                            key: "k".into(),
                            value: Some(AnyValue {
                                value: Some(Value::IntValue(1)),
                            }),
                            ..KeyValue::default()
                        }],
                    })),
                },
            ],
        });
        assert_eq!(text(Some(nested)), some(r#"["a\"",null,{"k":1}]"#));
        assert_eq!(text(Some(Value::ArrayValue(ArrayValue::default()))), some("[]"));
        assert_eq!(text(Some(Value::KvlistValue(KeyValueList::default()))), some("{}"));
    }

    #[test]
    fn depth_is_bounded() {
        let mut value = AnyValue {
            value: Some(Value::IntValue(1)),
        };
        for _ in 0..80 {
            value = AnyValue {
                value: Some(Value::ArrayValue(ArrayValue { values: vec![value] })),
            };
        }
        assert!(super::text(&value.encode_to_vec(), &mut Vec::new()).is_err());
    }
}
