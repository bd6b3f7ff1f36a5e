//! The protobuf wire format, read in place.
//!
//! As strict as prost: lengths within bounds, varints of at most 64 bits, no tag 0, groups closed by their own tag and
//! not nested without end, and a known field only in its own wire type.

use crate::error::Fault;

/// Nested groups that are skipped; deeper ones are an attack, not telemetry.
const GROUP_DEPTH_MAX: usize = 32;

pub(crate) const VARINT: u32 = 0;
pub(crate) const FIXED64: u32 = 1;
pub(crate) const BYTES: u32 = 2;
const GROUP: u32 = 3;
const GROUP_END: u32 = 4;
pub(crate) const FIXED32: u32 = 5;

/// A field's number and wire type, as they stand on the wire.
pub(crate) const fn tag(number: u32, wire_type: u32) -> u32 {
    number << 3 | wire_type
}

/// A message's name and its fields with their wire types: what must not come in a foreign one.
pub(crate) struct Known {
    message: &'static str,
    /// Wire type by field number; [`UNKNOWN`] where there is no such field.
    wire_types: [u8; 32],
}

const UNKNOWN: u8 = u8::MAX;

impl Known {
    /// From `(number, wire type)` of each field.
    pub const fn new(message: &'static str, fields: &[(u32, u32)]) -> Self {
        let mut wire_types = [UNKNOWN; 32];
        let mut index = 0;
        while index < fields.len() {
            wire_types[fields[index].0 as usize] = fields[index].1 as u8;
            index += 1;
        }
        Self { message, wire_types }
    }
}

/// Reads one message from its first byte to its last.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline(always)]
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    #[cfg(test)]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next field's tag; `None` at the end of the message.
    #[inline(always)]
    pub fn tag(&mut self) -> Result<Option<u32>, Fault> {
        match self.rest.split_first() {
            None => Ok(None),
            Some((&byte, rest)) if byte < 0x80 => {
                self.rest = rest;
                Ok(Some(u32::from(byte)))
            }
            Some(_) => self.tag_long().map(Some),
        }
    }

    #[inline(never)]
    fn tag_long(&mut self) -> Result<u32, Fault> {
        let start = self.rest;
        let value = self.varint()?;
        u32::try_from(value).map_err(|_| Fault::at("a tag exceeds 32 bits", start))
    }

    #[inline(always)]
    pub fn varint(&mut self) -> Result<u64, Fault> {
        match self.rest.split_first() {
            Some((&byte, rest)) if byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(byte))
            }
            _ => self.varint_long(),
        }
    }

    fn varint_long(&mut self) -> Result<u64, Fault> {
        let mut value = 0u64;
        for (index, &byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (index * 7);
            if byte < 0x80 {
                if index == 9 && byte > 1 {
                    break;
                }
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        let reason = if self.rest.len() < 10 {
            "truncated"
        } else {
            "a varint exceeds 64 bits"
        };
        Err(Fault::at(reason, self.rest))
    }

    #[inline(always)]
    pub fn fixed64(&mut self) -> Result<u64, Fault> {
        let Some((bytes, rest)) = self.rest.split_first_chunk::<8>() else {
            return Err(self.truncated());
        };
        self.rest = rest;
        Ok(u64::from_le_bytes(*bytes))
    }

    #[inline(always)]
    pub fn double(&mut self) -> Result<f64, Fault> {
        self.fixed64().map(f64::from_bits)
    }

    #[inline(always)]
    pub fn fixed32(&mut self) -> Result<u32, Fault> {
        let Some((bytes, rest)) = self.rest.split_first_chunk::<4>() else {
            return Err(self.truncated());
        };
        self.rest = rest;
        Ok(u32::from_le_bytes(*bytes))
    }

    /// The bytes of a string, a message or packed numbers.
    #[inline(always)]
    pub fn bytes(&mut self) -> Result<&'a [u8], Fault> {
        let length = self.varint()?;
        if length > self.rest.len() as u64 {
            return Err(self.truncated());
        }
        let (bytes, rest) = self.rest.split_at(length as usize);
        self.rest = rest;
        Ok(bytes)
    }

    /// The bytes of a singular string, in place of those that came before. Its UTF-8 is checked by whoever keeps it; what
    /// is replaced is checked here, since nobody keeps it.
    #[inline(always)]
    pub fn string(&mut self, before: &[u8]) -> Result<&'a [u8], Fault> {
        if !before.is_empty() {
            std::str::from_utf8(before).map_err(|_| Fault::at("a string is not UTF-8", before))?;
        }
        self.bytes()
    }

    /// `sint32`: zigzag.
    pub fn sint32(&mut self) -> Result<i32, Fault> {
        let value = self.varint()? as u32;
        Ok((value >> 1) as i32 ^ -((value & 1) as i32))
    }

    /// Skips a field that the caller does not read: an unknown one, or a known one in its own wire type. A known field
    /// in a foreign wire type is an error.
    #[inline(never)]
    pub fn skip_other(&mut self, tag: u32, known: &Known) -> Result<(), Fault> {
        let expected = known
            .wire_types
            .get((tag >> 3) as usize)
            .copied()
            .filter(|expected| *expected != UNKNOWN);
        if let Some(expected) = expected
            && u32::from(expected) != tag & 7
        {
            let reason = format!(
                "field {} of {} has wire type {} instead of {expected}",
                tag >> 3,
                known.message,
                tag & 7
            );
            return Err(Fault::at(reason, self.rest));
        }
        self.skip(tag, 0)
    }

    fn skip(&mut self, tag: u32, depth: usize) -> Result<(), Fault> {
        if tag >> 3 == 0 {
            return Err(Fault::at("a tag with field number 0", self.rest));
        }
        match tag & 7 {
            VARINT => self.varint().map(drop),
            FIXED64 => self.fixed64().map(drop),
            FIXED32 => self.fixed32().map(drop),
            BYTES => self.bytes().map(drop),
            GROUP if depth < GROUP_DEPTH_MAX => self.skip_group(tag >> 3, depth),
            GROUP => Err(Fault::at("groups nested too deep", self.rest)),
            GROUP_END => Err(Fault::at("a group ends that did not begin", self.rest)),
            other => Err(Fault::at(format!("wire type {other} does not exist"), self.rest)),
        }
    }

    fn skip_group(&mut self, number: u32, depth: usize) -> Result<(), Fault> {
        while let Some(tag) = self.tag()? {
            if tag & 7 != GROUP_END {
                self.skip(tag, depth + 1)?;
            } else if tag >> 3 == number {
                return Ok(());
            } else {
                return Err(Fault::at("a group ends that did not begin", self.rest));
            }
        }
        Err(self.truncated())
    }

    #[cold]
    fn truncated(&self) -> Fault {
        Fault::at("truncated", self.rest)
    }
}

/// Does a message consist of whole fields?
fn check_fields(message: &[u8]) -> Result<(), Fault> {
    let mut reader = Reader::new(message);
    while let Some(tag) = reader.tag()? {
        reader.skip(tag, 0)?;
    }
    Ok(())
}

/// Packed `fixed64` or `double`: eight bytes each.
pub(crate) fn packed_fixed64(packed: &[u8]) -> Result<impl Iterator<Item = u64>, Fault> {
    let (values, rest) = packed.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(Fault::at("packed 64-bit numbers are cut", rest));
    }
    Ok(values.iter().map(|bytes| u64::from_le_bytes(*bytes)))
}

/// Packed varints.
pub(crate) fn packed_varint(packed: &[u8], values: &mut Vec<u64>) -> Result<(), Fault> {
    let mut reader = Reader::new(packed);
    while !reader.rest.is_empty() {
        values.push(reader.varint()?);
    }
    Ok(())
}

/// A singular submessage that may come in several pieces, which count as their concatenation.
#[derive(Default)]
pub(crate) enum Merged<'a> {
    #[default]
    Absent,
    One(&'a [u8]),
    Several(Vec<u8>),
}

impl<'a> Merged<'a> {
    #[inline(always)]
    pub fn add(&mut self, piece: &'a [u8]) -> Result<(), Fault> {
        match self {
            Self::Absent => {
                *self = Self::One(piece);
                Ok(())
            }
            _ => self.add_further(piece),
        }
    }

    /// Pieces must be whole messages: else what one leaves unfinished the next might finish.
    #[cold]
    fn add_further(&mut self, piece: &'a [u8]) -> Result<(), Fault> {
        check_fields(piece)?;
        match self {
            Self::Several(all) => all.extend_from_slice(piece),
            Self::One(first) => {
                check_fields(first)?;
                *self = Self::Several([*first, piece].concat());
            }
            Self::Absent => *self = Self::One(piece),
        }
        Ok(())
    }

    #[inline(always)]
    pub fn get(&self) -> Option<&[u8]> {
        match self {
            Self::Absent => None,
            Self::One(piece) => Some(piece),
            Self::Several(all) => Some(all),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Known = Known::new("Nothing", &[(1, BYTES)]);

    fn skip_all(bytes: &[u8]) -> Result<(), Fault> {
        let mut reader = Reader::new(bytes);
        while let Some(tag) = reader.tag()? {
            reader.skip_other(tag, &NOTHING)?;
        }
        Ok(())
    }

    #[test]
    fn varints_of_every_length() {
        for shift in 0..64 {
            let value = 1u64 << shift;
            let mut bytes = Vec::new();
            prost::encoding::encode_varint(value, &mut bytes);
            let mut reader = Reader::new(&bytes);
            assert_eq!(reader.varint().unwrap(), value);
            assert!(reader.rest.is_empty());
            assert!(Reader::new(&bytes[..bytes.len() - 1]).varint().is_err());
        }
        assert!(Reader::new(&[0xff; 11]).varint().is_err());
        assert!(
            Reader::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2])
                .varint()
                .is_err()
        );
    }

    #[test]
    fn unknown_fields_are_skipped_and_broken_ones_are_not() {
        assert!(skip_all(&[0x10, 0x01]).is_ok());
        assert!(skip_all(&[0x13, 0x18, 0x05, 0x14]).is_ok(), "a group");
        assert!(
            skip_all(&[0x13, 0x18, 0x05, 0x1c]).is_err(),
            "a group closed by another's tag"
        );
        assert!(skip_all(&[0x13, 0x18, 0x05]).is_err(), "a group without end");
        assert!(skip_all(&[0x14]).is_err(), "an end without a group");
        assert!(skip_all(&[0x16]).is_err(), "wire type 6");
        assert!(skip_all(&[0x00, 0x01]).is_err(), "field number 0");
        assert!(skip_all(&[0x08, 0x01]).is_err(), "a known field in a foreign wire type");
        assert!(skip_all(&[0x12, 0x05, 0x01]).is_err(), "a length beyond the end");
        assert!(skip_all(&[0x13; 100]).is_err(), "groups without end");
        let mut deep = vec![0x13; 100];
        deep.extend([0x14; 100]);
        assert!(skip_all(&deep).is_err(), "groups nested too deep");
    }
}
