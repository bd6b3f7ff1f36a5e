//! The log of a partition as brokers write it, and what a reader must find in it: what the tests here read back.

use std::io::Write as _;

use proptest::prelude::*;
use protocol::{Batch, TimestampKind};

use super::{records::Aborted, wire::Body};

/// A record as it is read: offset, timestamp, key, value, headers.
pub(super) type Row = (
    i64,
    (i64, TimestampKind),
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Vec<(String, Vec<u8>)>,
);

pub(super) fn rows(batch: &Batch) -> Vec<Row> {
    let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    let headers = |record: &protocol::Record<'_>| {
        let headers = record.headers();
        headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect()
    };
    batch
        .iter()
        .map(|record| {
            let timestamp = (record.timestamp_ms, record.timestamp_kind);
            (
                record.offset,
                timestamp,
                owned(record.key),
                owned(record.value),
                headers(&record),
            )
        })
        .collect()
}

/// What is in a record.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Content {
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Content {
    pub fn value(value: impl Into<Vec<u8>>) -> Self {
        Self {
            value: Some(value.into()),
            ..Self::default()
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Codec {
    #[default]
    None,
    Gzip,
    /// One bare block, as librdkafka writes it.
    Snappy,
    /// In the frame of Java's library.
    SnappyFramed,
    Lz4,
    Zstd,
}

pub(super) const CODECS: [Codec; 6] = [
    Codec::None,
    Codec::Gzip,
    Codec::Snappy,
    Codec::SnappyFramed,
    Codec::Lz4,
    Codec::Zstd,
];

impl Codec {
    pub fn pack(self, bytes: &[u8]) -> Vec<u8> {
        let snappy = |bytes: &[u8]| snap::raw::Encoder::new().compress_vec(bytes).unwrap();
        match self {
            Self::None => bytes.to_vec(),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Self::Snappy => snappy(bytes),
            Self::SnappyFramed => {
                let mut framed = Body(b"\x82SNAPPY\0".to_vec());
                framed.i32(1).i32(1);
                for block in bytes.chunks(100) {
                    framed.bytes(&snappy(block));
                }
                framed.0
            }
            Self::Lz4 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Self::Zstd => zstd::stream::encode_all(bytes, 1).unwrap(),
        }
    }

    fn attribute(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy | Self::SnappyFramed => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }
}

/// A batch that is to be written.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    pub codec: Codec,
    /// The broker's clock, where it stamps the records.
    pub appended_ms: Option<i64>,
    /// Whose transaction it is in.
    pub producer: Option<i64>,
    /// `None` where compaction has taken the record away.
    pub records: Vec<Option<Content>>,
}

pub(super) fn varint(into: &mut Vec<u8>, value: i64) {
    let mut zigzag = (value << 1 ^ value >> 63) as u64;
    while zigzag >= 0x80 {
        into.push(zigzag as u8 | 0x80);
        zigzag >>= 7;
    }
    into.push(zigzag as u8);
}

fn varint_bytes(into: &mut Vec<u8>, bytes: Option<&[u8]>) {
    varint(into, bytes.map_or(-1, |bytes| bytes.len() as i64));
    into.extend(bytes.unwrap_or_default());
}

fn record(delta: usize, base_timestamp_ms: i64, content: &Content) -> Vec<u8> {
    let mut fields = vec![0];
    varint(&mut fields, content.timestamp_ms.wrapping_sub(base_timestamp_ms));
    varint(&mut fields, delta as i64);
    varint_bytes(&mut fields, content.key.as_deref());
    varint_bytes(&mut fields, content.value.as_deref());
    varint(&mut fields, content.headers.len() as i64);
    for (name, value) in &content.headers {
        varint_bytes(&mut fields, Some(name));
        varint_bytes(&mut fields, value.as_deref());
    }
    let mut record = Vec::new();
    varint_bytes(&mut record, Some(&fields));
    record
}

/// The fields of a batch of message format 2 (<https://kafka.apache.org/documentation/#recordbatch>), so that tests can get them wrong.
pub(super) struct Fields {
    pub base_offset: i64,
    pub magic: i8,
    pub attributes: i16,
    pub last_delta: i32,
    pub base_timestamp_ms: i64,
    pub max_timestamp_ms: i64,
    pub producer: i64,
    pub count: i32,
    /// Packed already.
    pub records: Vec<u8>,
}

impl Fields {
    pub fn of(base_offset: i64, draft: &Draft) -> Self {
        let contents = || draft.records.iter().flatten();
        let base_timestamp_ms = contents().next().map_or(-1, |content| content.timestamp_ms);
        let max_timestamp_ms = contents().map(|content| content.timestamp_ms).max();
        let mut records = Vec::new();
        for (delta, content) in draft.records.iter().enumerate() {
            records.extend(
                content
                    .iter()
                    .flat_map(|content| record(delta, base_timestamp_ms, content)),
            );
        }
        // A batch that compaction has emptied is a header alone.
        let codec = match contents().next() {
            Some(_) => draft.codec,
            None => Codec::None,
        };
        let log_append = if draft.appended_ms.is_some() { 0x08 } else { 0 };
        let transactional = if draft.producer.is_some() { 0x10 } else { 0 };
        Self {
            base_offset,
            magic: 2,
            attributes: codec.attribute() | log_append | transactional,
            last_delta: draft.records.len() as i32 - 1,
            base_timestamp_ms,
            max_timestamp_ms: draft.appended_ms.or(max_timestamp_ms).unwrap_or(-1),
            producer: draft.producer.unwrap_or(-1),
            count: contents().count() as i32,
            records: codec.pack(&records),
        }
    }

    /// The record that ends a transaction.
    fn marker(base_offset: i64, producer: i64, commit: bool) -> Self {
        let mut key = Body::default();
        key.i16(0).i16(commit.into());
        let content = Content {
            key: Some(key.0),
            value: Some(vec![0; 6]),
            ..Content::default()
        };
        let draft = Draft {
            producer: Some(producer),
            records: vec![Some(content)],
            ..Draft::default()
        };
        let mut fields = Self::of(base_offset, &draft);
        fields.attributes |= 0x20;
        fields
    }

    pub fn write(&self) -> Vec<u8> {
        let mut checked = Body::default();
        checked
            .i16(self.attributes)
            .i32(self.last_delta)
            .i64(self.base_timestamp_ms)
            .i64(self.max_timestamp_ms)
            .i64(self.producer)
            .i16(0)
            .i32(0)
            .i32(self.count);
        checked.0.extend(&self.records);
        let mut batch = Body::default();
        batch
            .i64(self.base_offset)
            .count(checked.0.len() + 9)
            .i32(7)
            .i8(self.magic)
            .i32(crc32c::crc32c(&checked.0) as i32);
        batch.0.extend(checked.0);
        batch.0
    }
}

/// What a broker keeps of a batch.
#[derive(Clone, Debug)]
struct Stored {
    base: i64,
    next: i64,
    bytes: Vec<u8>,
    producer: Option<i64>,
    /// Whether it commits, where it is the end of a transaction.
    commits: Option<bool>,
    rows: Vec<Row>,
}

/// The log of a partition.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    stored: Vec<Stored>,
    pub start: i64,
    pub end: i64,
}

/// What a broker sends of a log.
pub(super) struct Sent {
    pub bytes: Vec<u8>,
    pub aborted: Vec<Aborted>,
}

impl Log {
    pub fn append(&mut self, draft: &Draft) {
        self.append_written(draft, &Fields::of(self.end, draft));
    }

    /// A batch that may not be as it should.
    pub fn append_written(&mut self, draft: &Draft, fields: &Fields) {
        let base = self.end;
        let row = |delta: usize, content: &Content| {
            let timestamp = match draft.appended_ms {
                Some(appended_ms) => (appended_ms, TimestampKind::LogAppend),
                None => (content.timestamp_ms, TimestampKind::Create),
            };
            let text = |(name, value): &(Vec<u8>, Option<Vec<u8>>)| {
                let name = String::from_utf8(name.clone()).ok()?;
                Some((name, value.clone().unwrap_or_default()))
            };
            let headers = content.headers.iter().filter_map(text).collect();
            (
                base + delta as i64,
                timestamp,
                content.key.clone(),
                content.value.clone(),
                headers,
            )
        };
        let rows = draft.records.iter().enumerate();
        let rows = rows
            .filter_map(|(delta, content)| Some(row(delta, content.as_ref()?)))
            .collect();
        self.store(draft.producer, None, rows, draft.records.len(), fields);
    }

    pub fn end_transaction(&mut self, producer: i64, commit: bool) {
        let fields = Fields::marker(self.end, producer, commit);
        self.store(Some(producer), Some(commit), Vec::new(), 1, &fields);
    }

    fn store(&mut self, producer: Option<i64>, commits: Option<bool>, rows: Vec<Row>, offsets: usize, fields: &Fields) {
        self.stored.push(Stored {
            base: self.end,
            next: self.end + offsets as i64,
            bytes: fields.write(),
            producer,
            commits,
            rows,
        });
        self.end += offsets as i64;
    }

    /// One record to a batch.
    pub fn append_values<V: Into<Vec<u8>>>(&mut self, values: impl IntoIterator<Item = V>) {
        for value in values {
            self.append(&Draft {
                records: vec![Some(Content::value(value))],
                ..Draft::default()
            });
        }
    }

    /// Whether the transaction of a batch was committed; `None` while that is open.
    fn committed(&self, index: usize) -> Option<bool> {
        let Some(producer) = self.stored[index].producer else {
            return Some(true);
        };
        let after = self.stored[index..].iter();
        after
            .filter(|later| later.producer == Some(producer))
            .find_map(|later| later.commits)
    }

    /// Everything before it is decided.
    pub fn stable_end(&self) -> i64 {
        let open = (0..self.stored.len()).find(|index| self.committed(*index).is_none());
        open.map_or(self.end, |index| self.stored[index].base)
    }

    /// What a reader finds from an offset on.
    pub fn expected(&self, from: i64, read_committed: bool) -> Vec<Row> {
        let end = self.readable_end(read_committed);
        let visible = |(index, batch): &(usize, &Stored)| {
            batch.base < end && (!read_committed || self.committed(*index) == Some(true))
        };
        let batches = self.stored.iter().enumerate().filter(visible);
        let rows = batches.flat_map(|(_, batch)| batch.rows.clone());
        rows.filter(|row| row.0 >= from).collect()
    }

    pub fn readable_end(&self, read_committed: bool) -> i64 {
        if read_committed { self.stable_end() } else { self.end }
    }

    /// What a broker sends from an offset on: as many bytes as are asked for, but the first batch whole.
    pub fn send(&self, from: i64, bytes_max: usize, read_committed: bool) -> Sent {
        let end = self.readable_end(read_committed);
        let mut bytes = Vec::new();
        let mut upto = from;
        for batch in self.stored.iter().filter(|batch| batch.next > from && batch.base < end) {
            let room = bytes_max.saturating_sub(bytes.len());
            let length = if bytes.is_empty() { usize::MAX } else { room };
            bytes.extend(batch.bytes.iter().take(length));
            upto = batch.next;
            if length < batch.bytes.len() || bytes.len() >= bytes_max {
                break;
            }
        }
        let aborted = if read_committed {
            self.aborted(from, upto)
        } else {
            Vec::new()
        };
        Sent { bytes, aborted }
    }

    /// The aborted transactions that reach into these offsets.
    fn aborted(&self, from: i64, upto: i64) -> Vec<Aborted> {
        let mut aborted = Vec::new();
        for (at, marker) in self.stored.iter().enumerate() {
            if marker.commits != Some(false) || marker.base < from {
                continue;
            }
            let own = self.stored[..at]
                .iter()
                .rev()
                .filter(|batch| batch.producer == marker.producer);
            let first = own.take_while(|batch| batch.commits.is_none()).last();
            if let (Some(first), Some(producer)) = (first.filter(|first| first.base < upto), marker.producer) {
                let first_offset = first.base;
                aborted.push(Aborted { producer, first_offset });
            }
        }
        aborted
    }
}

fn bytes(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), length)
}

fn content() -> impl Strategy<Value = Content> {
    let name = prop_oneof![
        3 => prop::sample::select(vec!["", "a", "ce_type", "\u{e9}t\u{e9}"]).prop_map(|name| name.as_bytes().to_vec()),
        1 => bytes(0..4),
    ];
    let value = prop_oneof![
        4 => bytes(0..40).prop_map(Some),
        1 => Just(None),
        1 => (any::<u8>(), 0..3_000usize).prop_map(|(byte, length)| Some(vec![byte; length])),
    ];
    let timestamp_ms = prop_oneof![4 => 1_700_000_000_000..1_700_000_100_000i64, 1 => Just(-1), 1 => any::<i64>()];
    let headers = prop::collection::vec((name, prop::option::of(bytes(0..6))), 0..4);
    (timestamp_ms, prop::option::of(bytes(0..20)), value, headers).prop_map(|(timestamp_ms, key, value, headers)| {
        Content {
            timestamp_ms,
            key,
            value,
            headers,
        }
    })
}

pub(super) fn draft() -> impl Strategy<Value = Draft> {
    let records = prop::collection::vec(prop::option::weighted(0.85, content()), 1..6);
    let appended_ms = prop::option::weighted(0.3, 1_700_000_000_000..1_700_000_100_000i64);
    let producer = prop::option::weighted(0.7, 1..4i64);
    (prop::sample::select(CODECS.to_vec()), appended_ms, producer, records).prop_map(
        |(codec, appended_ms, producer, records)| Draft {
            codec,
            appended_ms,
            producer,
            records,
        },
    )
}

/// A log with transactions of three producers, some of them open, some begun and ended without a record.
pub(super) fn log() -> impl Strategy<Value = Log> {
    let step = (
        prop::option::weighted(0.6, draft()),
        1..4i64,
        any::<bool>(),
        prop::option::weighted(0.1, 1..5i64),
    );
    let start = prop_oneof![3 => 0..100i64, 1 => Just(i64::from(u32::MAX) * 1_000)];
    (start, prop::collection::vec(step, 0..20)).prop_map(|(start, steps)| {
        let mut log = Log {
            start,
            end: start,
            ..Log::default()
        };
        for (draft, producer, commit, gap) in steps {
            match (gap, draft) {
                // Compaction has taken whole batches.
                (Some(offsets), _) => log.end += offsets,
                (None, Some(draft)) => log.append(&draft),
                (None, None) => log.end_transaction(producer, commit),
            }
        }
        log
    })
}
