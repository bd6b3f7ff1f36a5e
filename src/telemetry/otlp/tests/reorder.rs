//! Other encodings of the same message: fields backwards or shuffled, submessages in pieces, packed numbers one by one.

use super::{
    super::transcode::{Kind, Message},
    Generator,
};
use crate::wire::Reader;

/// Tag and payload of a message's fields.
type Fields = Vec<(u32, Vec<u8>)>;

struct RawField<'a> {
    tag: u32,
    /// After the tag; without the length where there is one.
    payload: &'a [u8],
}

/// As the Collector writes: every message from its last field to its first, repeated fields in their order.
pub(super) fn backwards(message: &Message, bytes: &[u8]) -> Vec<u8> {
    rewrite(
        message,
        bytes,
        &mut |fields| {
            // Stable: what is repeated stays in order.
            fields.sort_by_key(|(tag, _)| std::cmp::Reverse(tag >> 3));
        },
        &mut |_| false,
    )
}

pub(super) fn shuffled(message: &Message, bytes: &[u8], generator: &mut Generator) -> Vec<u8> {
    let mut other = Generator::new(generator.next());
    rewrite(message, bytes, &mut |fields| shuffle(fields, generator), &mut |_| {
        other.chance(0.3)
    })
}

/// Shuffles, but keeps fields of one number in their order.
fn shuffle(fields: &mut Fields, generator: &mut Generator) {
    let mut slots: Vec<u32> = fields.iter().map(|(tag, _)| tag >> 3).collect();
    for index in (1..slots.len()).rev() {
        slots.swap(index, generator.below(index + 1));
    }
    let mut taken = std::mem::take(fields);
    for number in slots {
        let next = taken.iter().position(|(tag, _)| tag >> 3 == number).unwrap();
        fields.push(taken.remove(next));
    }
}

fn rewrite(
    message: &Message,
    bytes: &[u8],
    order: &mut dyn FnMut(&mut Fields),
    split: &mut dyn FnMut(u32) -> bool,
) -> Vec<u8> {
    let mut fields = Vec::new();
    for field in read(bytes) {
        let number = field.tag >> 3;
        let kind = message.kind_of(number);
        let mut push = |tag: u32, payload: Vec<u8>| fields.push((tag, payload));
        match kind {
            Some(Kind::Messages(inner)) => push(field.tag, rewrite(inner, field.payload, order, split)),
            Some(Kind::Message(inner)) if split(number) => {
                let parts = read(field.payload);
                let (head, tail) = parts.split_at(parts.len() / 2);
                for part in [head, tail] {
                    push(field.tag, rewrite(inner, &write(part), order, split));
                }
            }
            Some(Kind::Message(inner)) => push(field.tag, rewrite(inner, field.payload, order, split)),
            Some(Kind::Fixed64s | Kind::Doubles) if split(number) => {
                let (head, tail) = field.payload.split_at(field.payload.len() / 16 * 8);
                push(field.tag, head.to_vec());
                for number in tail.as_chunks::<8>().0 {
                    push(crate::wire::tag(field.tag >> 3, crate::wire::FIXED64), number.to_vec());
                }
            }
            _ => push(field.tag, field.payload.to_vec()),
        }
    }
    order(&mut fields);
    let raw: Vec<_> = fields
        .iter()
        .map(|(tag, payload)| RawField { tag: *tag, payload })
        .collect();
    write(&raw)
}

fn read(bytes: &[u8]) -> Vec<RawField<'_>> {
    let mut reader = Reader::new(bytes);
    let mut fields = Vec::new();
    while let Some(tag) = reader.tag().unwrap() {
        let from = bytes.len() - reader.rest().len();
        let payload = match tag & 7 {
            crate::wire::VARINT => {
                reader.varint().unwrap();
                &bytes[from..bytes.len() - reader.rest().len()]
            }
            crate::wire::FIXED64 => {
                reader.fixed64().unwrap();
                &bytes[from..from + 8]
            }
            crate::wire::FIXED32 => {
                reader.fixed32().unwrap();
                &bytes[from..from + 4]
            }
            _ => reader.bytes().unwrap(),
        };
        fields.push(RawField { tag, payload });
    }
    fields
}

fn write(fields: &[RawField<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in fields {
        prost::encoding::encode_varint(u64::from(field.tag), &mut bytes);
        if field.tag & 7 == crate::wire::BYTES {
            prost::encoding::encode_varint(field.payload.len() as u64, &mut bytes);
        }
        bytes.extend_from_slice(field.payload);
    }
    bytes
}
