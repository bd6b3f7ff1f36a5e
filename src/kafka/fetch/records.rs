//! Record batches (KIP-98, message format 2): checked and unpacked where they are received, read where they are used.
//!
//! [`unpack`] runs on the thread that reads from the broker: structure, checksum, compression, aborted transactions. [`push`]
//! runs on the loop's thread and walks the records of a batch into a [`Batch`], without copying them.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    ops::Range,
};

use protocol::{Batch, TimestampKind};

use super::wire::{Malformed, Reader};

/// Base offset and length, ahead of what the length counts.
const PREFIX: usize = 12;
/// The least that a batch has behind its prefix.
const HEADER: usize = 49;
/// What the checksum does not cover: leader epoch, magic and the checksum itself.
const UNCHECKED: usize = 9;
/// A batch that unpacks to more is refused: brokers take at most 1 MB by default.
const UNPACKED_MAX: u64 = 256 << 20;
/// With so much unpacked, what an answer holds behind it is left for the next, as if it had been cut off: many small batches that
/// each unpack to much are not in memory together.
const UNPACKED_AT_ONCE: usize = 32 << 20;

const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;
const LOG_APPEND: i16 = 0x08;
const ABORT: i16 = 0;

/// The first offset of a transaction that was aborted, and its producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Aborted {
    pub producer: i64,
    pub first_offset: i64,
}

/// The records of one batch, unpacked.
pub(super) struct RecordBatch {
    base_offset: i64,
    base_timestamp_ms: i64,
    /// The broker's, for all records, where it stamps them.
    appended_ms: Option<i64>,
    count: i32,
    records: Records,
}

enum Records {
    /// As they came, within the answer.
    At(Range<usize>),
    Unpacked(Vec<u8>),
}

impl RecordBatch {
    /// What it has in memory beside the answer.
    pub fn unpacked_bytes(&self) -> usize {
        match &self.records {
            Records::At(_) => 0,
            Records::Unpacked(bytes) => bytes.len(),
        }
    }
}

/// What [`unpack`] found.
#[derive(Default)]
pub(super) struct Unpacked {
    pub batches: Vec<RecordBatch>,
    /// The offset behind the last whole batch, whether its records are to be seen or not; `None` where there is none.
    pub next: Option<i64>,
}

/// Checks the batches in `answer[range]` and leaves out control records and those of aborted transactions. A batch that is cut
/// off at the end is left for the next answer, as the protocol has it; the first never is, or there would be no end of asking.
///
/// # Errors
/// Says what is wrong with the first batch that is; `found` holds what stands before it.
pub(super) fn unpack(
    answer: &[u8],
    range: Range<usize>,
    aborted: &mut Vec<Aborted>,
    found: &mut Unpacked,
) -> Result<(), String> {
    // By first offset from the back, so that they can be popped.
    aborted.sort_unstable_by_key(|aborted| std::cmp::Reverse(aborted.first_offset));
    let mut aborting = BTreeSet::new();
    let mut at = range.start;
    let mut unpacked = 0;
    while at < range.end && unpacked < UNPACKED_AT_ONCE {
        let mut reader = Reader::new(&answer[at..range.end]);
        let mut prefix = || {
            Ok((
                reader.i64("the first batch")?,
                reader.length("the first batch")?.unwrap_or_default(),
            ))
        };
        let whole =
            prefix().and_then(|(base_offset, length)| Ok((base_offset, reader.take(length, "the first batch")?)));
        let (base_offset, body) = match whole {
            Ok(whole) => whole,
            Err(_) if found.next.is_some() => return Ok(()),
            Err(cut) => return Err(text(cut)),
        };
        let batch = unpack_one(base_offset, body, at + PREFIX, aborted, &mut aborting)
            .map_err(|reason| format!("the batch at offset {base_offset}: {reason}"))?;
        found.next = Some(batch.next);
        if let Some(RecordBatch {
            records: Records::Unpacked(bytes),
            ..
        }) = &batch.records
        {
            unpacked += bytes.len();
        }
        found.batches.extend(batch.records);
        at += PREFIX + body.len();
    }
    Ok(())
}

fn text(error: Malformed) -> String {
    error.to_string()
}

struct One {
    next: i64,
    records: Option<RecordBatch>,
}

fn unpack_one(
    base_offset: i64,
    body: &[u8],
    at: usize,
    aborted: &mut Vec<Aborted>,
    aborting: &mut BTreeSet<i64>,
) -> Result<One, String> {
    match body.get(4) {
        Some(2) => {}
        Some(magic @ (0 | 1)) => {
            return Err(format!(
                "it is in message format {magic}, of before Kafka 0.11: have the topic's records written again"
            ));
        }
        Some(magic) => return Err(format!("it is in message format {magic}, which is not known here")),
        None => return Err(text(Malformed("its header"))),
    }
    if body.len() < HEADER {
        return Err(text(Malformed("its header")));
    }
    let header = |malformed: Malformed| text(malformed);
    let mut reader = Reader::new(&body[5..]);
    let checksum = reader.u32("its checksum").map_err(header)?;
    if crc32c::crc32c(&body[UNCHECKED..]) != checksum {
        return Err("its checksum is wrong: it was damaged on the way or on the broker's disk".into());
    }
    let attributes = reader.i16("its attributes").map_err(header)?;
    let last_delta = reader.i32("its last offset").map_err(header)?;
    let base_timestamp_ms = reader.i64("its first timestamp").map_err(header)?;
    let max_timestamp_ms = reader.i64("its greatest timestamp").map_err(header)?;
    let producer = reader.i64("its producer").map_err(header)?;
    reader.take(6, "its sequence").map_err(header)?;
    let count = reader.i32("its count").map_err(header)?;
    // Neither checksum nor broker vouches for the base offset.
    let next = base_offset.checked_add(i64::from(last_delta) + 1);
    let (0.., 0.., 0.., Some(next)) = (base_offset, last_delta, count, next) else {
        return Err("its offsets or its count of records are impossible".into());
    };
    let mut one = One { next, records: None };

    while aborted.last().is_some_and(|aborted| aborted.first_offset < next) {
        aborting.extend(aborted.pop().map(|aborted| aborted.producer));
    }
    if attributes & CONTROL != 0 {
        // A control record's key: version and type, two bytes each.
        if attributes & TRANSACTIONAL != 0 && control_type(&body[HEADER..]) == Some(ABORT) {
            aborting.remove(&producer);
        }
        return Ok(one);
    }
    if attributes & TRANSACTIONAL != 0 && aborting.contains(&producer) {
        return Ok(one);
    }
    let packed = &body[HEADER..];
    let records = match attributes & 7 {
        0 => Records::At(at + HEADER..at + body.len()),
        codec => Records::Unpacked(decompress(codec, packed).map_err(|error| format!("it does not unpack: {error}"))?),
    };
    one.records = Some(RecordBatch {
        base_offset,
        base_timestamp_ms,
        appended_ms: (attributes & LOG_APPEND != 0).then_some(max_timestamp_ms),
        count,
        records,
    });
    Ok(one)
}

fn control_type(records: &[u8]) -> Option<i16> {
    let mut reader = Reader::new(records);
    reader.varint("length").ok()?;
    reader.i8("attributes").ok()?;
    reader.varint("timestamp").ok()?;
    reader.varint("offset").ok()?;
    let mut key = Reader::new(reader.varint_bytes("key").ok()??);
    key.i16("version").ok()?;
    key.i16("type").ok()
}

fn decompress(codec: i16, packed: &[u8]) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::with_capacity(packed.len().saturating_mul(4).min(4 << 20));
    let read = match codec {
        1 => flate2::read::MultiGzDecoder::new(packed)
            .take(UNPACKED_MAX + 1)
            .read_to_end(&mut unpacked)?,
        2 => {
            snappy(packed, &mut unpacked)?;
            unpacked.len()
        }
        3 => lz4_flex::frame::FrameDecoder::new(packed)
            .take(UNPACKED_MAX + 1)
            .read_to_end(&mut unpacked)?,
        4 => zstd::stream::read::Decoder::new(packed)?
            .take(UNPACKED_MAX + 1)
            .read_to_end(&mut unpacked)?,
        other => return Err(io::Error::other(format!("compression {other} is not known"))),
    };
    match read as u64 > UNPACKED_MAX {
        true => Err(io::Error::other(format!("it has more than {} MB", UNPACKED_MAX >> 20))),
        false => Ok(unpacked),
    }
}

/// Snappy as Java's library frames it (a magic, then blocks behind their lengths), or one bare block.
fn snappy(packed: &[u8], into: &mut Vec<u8>) -> io::Result<()> {
    const MAGIC: &[u8] = b"\x82SNAPPY\0";
    let mut block = |bytes: &[u8]| -> io::Result<()> {
        let length = snap::raw::decompress_len(bytes)?;
        let from = into.len();
        if (from + length) as u64 > UNPACKED_MAX {
            return Err(io::Error::other(format!("it has more than {} MB", UNPACKED_MAX >> 20)));
        }
        // A copy of 64 bytes takes three.
        if length / 32 > bytes.len() {
            return Err(io::Error::other("it says that it has more than so few bytes can hold"));
        }
        into.resize(from + length, 0);
        snap::raw::Decoder::new().decompress(bytes, &mut into[from..])?;
        Ok(())
    };
    let Some(framed) = packed.strip_prefix(MAGIC) else {
        return block(packed);
    };
    let mut reader = Reader::new(framed);
    let cut = |error: Malformed| io::Error::other(error.to_string());
    reader.take(8, "its versions").map_err(cut)?;
    while !reader.is_empty() {
        block(reader.bytes("a snappy block").map_err(cut)?.unwrap_or_default())?;
    }
    Ok(())
}

/// Appends the records from offset `position` on, which moves behind each of them. `answer` is what the batch came in: where the
/// records lie in it, `answer_block` is the block of `into` that the caller lets adopt it.
///
/// # Errors
/// When a record is not as the format has it; those before it have been appended.
pub(super) fn push(
    batch: &mut RecordBatch,
    answer: &[u8],
    answer_block: &mut Option<u32>,
    position: &mut i64,
    (handle, with_headers): (u32, bool),
    into: &mut Batch,
) -> Result<(), Malformed> {
    match std::mem::replace(&mut batch.records, Records::Unpacked(Vec::new())) {
        Records::At(range) => {
            let block = *answer_block.get_or_insert_with(|| into.open_block());
            walk(
                batch,
                &answer[..range.end],
                range.start,
                block,
                position,
                (handle, with_headers),
                into,
            )
        }
        Records::Unpacked(bytes) => {
            let block = into.open_block();
            let walked = walk(batch, &bytes, 0, block, position, (handle, with_headers), into);
            into.adopt(block, bytes);
            walked
        }
    }
}

fn walk(
    batch: &RecordBatch,
    bytes: &[u8],
    start: usize,
    block: u32,
    position: &mut i64,
    (handle, with_headers): (u32, bool),
    into: &mut Batch,
) -> Result<(), Malformed> {
    let mut reader = Reader::new(&bytes[start..]);
    for _ in 0..batch.count {
        let record = reader.varint_bytes("a record")?.ok_or(Malformed("a record"))?;
        let end = start + reader.position();
        let mut fields = Reader::new(record);
        fields.i8("a record's attributes")?;
        let timestamp_ms = batch
            .base_timestamp_ms
            .wrapping_add(fields.varint("a record's timestamp")?);
        let offset = batch.base_offset.wrapping_add(fields.varint("a record's offset")?);
        let mut place = |what| -> Result<Option<Range<usize>>, Malformed> {
            let bytes = fields.varint_bytes(what)?;
            let end = end - record.len() + fields.position();
            Ok(bytes.map(|bytes| end - bytes.len()..end))
        };
        let key = place("a record's key")?;
        let value = place("a record's value")?;
        if offset < *position {
            continue;
        }
        let timestamp = match batch.appended_ms {
            Some(appended_ms) => (appended_ms, TimestampKind::LogAppend),
            None => (timestamp_ms, TimestampKind::Create),
        };
        let headers = match with_headers {
            true => Headers::checked(fields)?,
            false => Headers::default(),
        };
        into.push_adopted(handle, offset, timestamp, block, key, value, headers);
        *position = offset.saturating_add(1);
    }
    match reader.is_empty() {
        true => Ok(()),
        // None of them may vanish.
        false => Err(Malformed("the count of a batch's records")),
    }
}

/// The headers of a record; names that are no text cannot be asked for and are left out.
#[derive(Clone, Default)]
struct Headers<'a> {
    left: i64,
    reader: Reader<'a>,
}

impl<'a> Headers<'a> {
    /// All of them are there, and nothing behind them: walking them cannot fail.
    fn checked(mut reader: Reader<'a>) -> Result<Self, Malformed> {
        let left = reader.varint("a record's headers")?;
        let headers = Self { left, reader };
        let mut checking = headers.clone();
        while checking.left > 0 {
            checking.one()?;
        }
        match checking.reader.is_empty() {
            true => Ok(headers),
            false => Err(Malformed("a record")),
        }
    }

    fn one(&mut self) -> Result<(&'a [u8], &'a [u8]), Malformed> {
        self.left -= 1;
        let name = self.reader.varint_bytes("a header's name")?.unwrap_or_default();
        let value = self.reader.varint_bytes("a header's value")?.unwrap_or_default();
        Ok((name, value))
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while self.left > 0 {
            let (name, value) = self.one().ok()?;
            if let Ok(name) = std::str::from_utf8(name) {
                return Some((name, value));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
