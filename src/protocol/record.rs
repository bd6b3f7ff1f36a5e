//! Records as the loop hands them to a stage, and outputs as a stage hands them back.

use std::{fmt, ops::Range, sync::Arc};

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    pub topic: Arc<str>,
    pub partition: i32,
}

impl TopicPartition {
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self {
            topic: topic.into(),
            partition,
        }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}

/// Who set a record's timestamp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimestampKind {
    /// The producer's clock, or none at all.
    #[default]
    Create,
    /// The broker's clock, when the record was appended.
    LogAppend,
}

/// One record, borrowed from its [`Batch`].
#[derive(Clone, Copy)]
pub struct Record<'a> {
    pub partition: &'a TopicPartition,
    pub offset: i64,
    /// Milliseconds since the Unix epoch; negative when the record has none.
    pub timestamp_ms: i64,
    pub timestamp_kind: TimestampKind,
    pub key: Option<&'a [u8]>,
    /// `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    batch: &'a Batch,
    headers: (u32, u32),
}

impl<'a> Record<'a> {
    /// The headers in the order in which they were written.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let batch = self.batch;
        let (from, to) = self.headers;
        batch.headers[from as usize..to as usize]
            .iter()
            .map(|(name, value)| (batch.text(name), &batch.arena[value.clone()]))
    }

    /// The last header of that name, as Kafka's own clients read it.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().filter(|(n, _)| *n == name).last().map(|(_, v)| v)
    }
}

impl fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}@{} ({} bytes)",
            self.partition,
            self.offset,
            self.value.map_or(0, <[u8]>::len)
        )
    }
}

/// Small, since a batch of small records is otherwise half made of these.
struct Row {
    offset: i64,
    timestamp_ms: i64,
    /// What key and value lie in: 0 is the arena, others are adopted.
    block: u32,
    key: Span,
    value: Span,
    partition: u32,
    headers: (u32, u32),
    timestamp_kind: TimestampKind,
}

/// Where a key or value lies in its block; Kafka's own lengths have 31 bits.
#[derive(Clone, Copy)]
struct Span {
    from: u32,
    length: u32,
}

impl Span {
    const NONE: Self = Self {
        from: 0,
        length: u32::MAX,
    };

    fn of(range: Option<Range<usize>>) -> Self {
        range.map_or(Self::NONE, |range| Self {
            from: range.start as u32,
            length: range.len() as u32,
        })
    }

    fn slice(self, block: &[u8]) -> Option<&[u8]> {
        let from = self.from as usize;
        (self.length != u32::MAX).then(|| &block[from..from + self.length as usize])
    }
}

/// Records of one poll. Their bytes are copied into one arena, or lie in a block that was adopted whole, as it came from the
/// network: then nothing is copied. Both are reused from poll to poll.
///
/// Within a partition the records stand in offset order; partitions may alternate.
#[derive(Default)]
pub struct Batch {
    arena: Vec<u8>,
    adopted: Vec<Vec<u8>>,
    headers: Vec<(Range<usize>, Range<usize>)>,
    rows: Vec<Row>,
    /// Partition and first row of each run.
    runs: Vec<(u32, usize)>,
    partitions: Vec<TopicPartition>,
    size: usize,
}

impl Batch {
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of keys, values and headers held.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Forgets the records and keeps the memory.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.adopted.clear();
        self.headers.clear();
        self.rows.clear();
        self.runs.clear();
        self.size = 0;
    }

    /// As [`Batch::clear`]; what was adopted comes back, for the next answer to be read into.
    pub fn reclaim(&mut self) -> Vec<Vec<u8>> {
        let adopted = std::mem::take(&mut self.adopted);
        self.clear();
        adopted
    }

    /// The number of a new block, for [`Batch::push_adopted`]: records may be pushed while their bytes are still being read.
    pub fn open_block(&mut self) -> u32 {
        self.adopted.push(Vec::new());
        self.adopted.len() as u32
    }

    /// Takes over the bytes of an open block, of at most 4 GiB.
    pub fn adopt(&mut self, block: u32, bytes: Vec<u8>) {
        self.adopted[block as usize - 1] = bytes;
    }

    /// A handle for [`Batch::push`], stable for the life of the batch.
    pub fn partition(&mut self, topic: &str, partition: i32) -> u32 {
        let known = self
            .partitions
            .iter()
            .position(|p| p.partition == partition && &*p.topic == topic);
        known.unwrap_or_else(|| {
            self.partitions.push(TopicPartition::new(topic, partition));
            self.partitions.len() - 1
        }) as u32
    }

    /// Appends a record. `headers` are copied in order.
    #[allow(clippy::too_many_arguments)]
    pub fn push<'h>(
        &mut self,
        partition: u32,
        offset: i64,
        timestamp: (i64, TimestampKind),
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl IntoIterator<Item = (&'h str, &'h [u8])>,
    ) {
        let headers = self.push_headers(headers);
        let key = key.map(|key| self.copy(key));
        let value = value.map(|value| self.copy(value));
        self.push_row(partition, offset, timestamp, 0, (key, value), headers);
    }

    /// Appends a record whose key and value lie in an open block, that [`Batch::adopt`] takes before the record is read.
    ///
    /// # Panics
    /// Reading the record does, where a range is not within the block.
    #[allow(clippy::too_many_arguments)]
    pub fn push_adopted<'h>(
        &mut self,
        partition: u32,
        offset: i64,
        timestamp: (i64, TimestampKind),
        block: u32,
        key: Option<Range<usize>>,
        value: Option<Range<usize>>,
        headers: impl IntoIterator<Item = (&'h str, &'h [u8])>,
    ) {
        let headers = self.push_headers(headers);
        self.push_row(partition, offset, timestamp, block, (key, value), headers);
    }

    fn push_headers<'h>(&mut self, headers: impl IntoIterator<Item = (&'h str, &'h [u8])>) -> (u32, u32) {
        let first = self.headers.len() as u32;
        for (name, value) in headers {
            let name = self.copy(name.as_bytes());
            let value = self.copy(value);
            self.size += name.len() + value.len();
            self.headers.push((name, value));
        }
        (first, self.headers.len() as u32)
    }

    fn push_row(
        &mut self,
        partition: u32,
        offset: i64,
        (timestamp_ms, timestamp_kind): (i64, TimestampKind),
        block: u32,
        (key, value): (Option<Range<usize>>, Option<Range<usize>>),
        headers: (u32, u32),
    ) {
        if self.runs.last().is_none_or(|run| run.0 != partition) {
            self.runs.push((partition, self.rows.len()));
        }
        self.size += key.as_ref().map_or(0, ExactSizeIterator::len) + value.as_ref().map_or(0, ExactSizeIterator::len);
        self.rows.push(Row {
            offset,
            timestamp_ms,
            block,
            key: Span::of(key),
            value: Span::of(value),
            partition,
            headers,
            timestamp_kind,
        });
    }

    pub fn get(&self, index: usize) -> Record<'_> {
        let row = &self.rows[index];
        let block = match row.block {
            0 => &self.arena,
            adopted => &self.adopted[adopted as usize - 1],
        };
        Record {
            partition: &self.partitions[row.partition as usize],
            offset: row.offset,
            timestamp_ms: row.timestamp_ms,
            timestamp_kind: row.timestamp_kind,
            key: row.key.slice(block),
            value: row.value.slice(block),
            batch: self,
            headers: row.headers,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// The records as maximal runs of one partition: index ranges for [`Batch::get`].
    pub fn runs(&self) -> impl Iterator<Item = (&TopicPartition, Range<usize>)> {
        let ends = self.runs.iter().skip(1).map(|run| run.1).chain([self.rows.len()]);
        let runs = self.runs.iter().zip(ends);
        runs.map(|((partition, from), end)| (&self.partitions[*partition as usize], *from..end))
    }

    fn copy(&mut self, bytes: &[u8]) -> Range<usize> {
        let from = self.arena.len();
        self.arena.extend_from_slice(bytes);
        from..self.arena.len()
    }

    fn text(&self, range: &Range<usize>) -> &str {
        std::str::from_utf8(&self.arena[range.clone()]).expect("header names were pushed as str")
    }
}

/// A record that a stage wants published in the transaction of its inputs' offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub topic: Arc<str>,
    /// An explicit partition, or the one the key hashes to (murmur2, as Java's producer).
    pub partition: Option<i32>,
    pub key: Option<Vec<u8>>,
    /// `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

/// What a stage has said since the last commit.
#[derive(Debug, Default)]
pub struct Outputs {
    pub records: Vec<Output>,
}

impl Outputs {
    pub fn push(&mut self, output: Output) {
        self.records.push(output);
    }
}
