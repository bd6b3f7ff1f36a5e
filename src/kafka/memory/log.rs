//! One partition's log: records, control records, and where the last stable offset lies.

use std::collections::{BTreeMap, HashMap, VecDeque};

use protocol::{Batch, TimestampKind, TopicPartition};

/// What a producer wrote.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

struct Entry {
    timestamp: (i64, TimestampKind),
    /// Number of the transaction that it belongs to.
    transaction: Option<u64>,
    /// `None` is a control record: it takes an offset and is never handed out.
    content: Option<Content>,
}

#[derive(Default)]
pub(super) struct Log {
    start: i64,
    entries: VecDeque<Entry>,
    /// Transactions without a marker here, and their first offsets.
    open: BTreeMap<u64, i64>,
    /// How the transactions with a marker here ended: committed or not.
    ended: HashMap<u64, bool>,
}

impl Log {
    pub fn start(&self) -> i64 {
        self.start
    }

    /// The high watermark.
    pub fn end(&self) -> i64 {
        self.start + self.entries.len() as i64
    }

    /// The last stable offset: no record at or beyond it is decided.
    pub fn stable_end(&self) -> i64 {
        self.open.values().min().copied().unwrap_or_else(|| self.end())
    }

    pub fn append(&mut self, timestamp: (i64, TimestampKind), transaction: Option<u64>, content: Content) -> i64 {
        let offset = self.end();
        if let Some(number) = transaction {
            self.open.entry(number).or_insert(offset);
        }
        self.entries.push_back(Entry {
            timestamp,
            transaction,
            content: Some(content),
        });
        offset
    }

    /// Ends a transaction in this partition: a control record, and its records are decided.
    pub fn mark(&mut self, transaction: u64, committed: bool, now_ms: i64) {
        if self.open.remove(&transaction).is_none() {
            return;
        }
        self.ended.insert(transaction, committed);
        self.entries.push_back(Entry {
            timestamp: (now_ms, TimestampKind::Create),
            transaction: Some(transaction),
            content: None,
        });
    }

    pub fn truncate(&mut self, below: i64) {
        let below = below.min(self.end());
        while self.start < below {
            self.entries.pop_front();
            self.start += 1;
        }
    }

    pub fn offset_for_time(&self, timestamp_ms: i64) -> Option<i64> {
        let index = self
            .entries
            .iter()
            .position(|entry| entry.content.is_some() && entry.timestamp.0 >= timestamp_ms)?;
        Some(self.start + index as i64)
    }

    /// Copies at most `count` records from `position` on, with their headers or without; returns the next position, beyond what
    /// is skipped.
    pub fn read(
        &self,
        partition: &TopicPartition,
        mut position: i64,
        (read_committed, with_headers): (bool, bool),
        count: usize,
        batch: &mut Batch,
    ) -> i64 {
        let end = match read_committed {
            true => self.stable_end(),
            false => self.end(),
        };
        let handle = batch.partition(&partition.topic, partition.partition);
        let mut taken = 0;
        while position < end && taken < count {
            let entry = &self.entries[(position - self.start) as usize];
            if let Some(content) = entry
                .content
                .as_ref()
                .filter(|_| !read_committed || self.is_kept(entry))
            {
                let headers = content.headers.iter().filter(|_| with_headers);
                let headers = headers.map(|(n, v)| (n.as_str(), v.as_slice()));
                let (key, value) = (content.key.as_deref(), content.value.as_deref());
                batch.push(handle, position, entry.timestamp, key, value, headers);
                taken += 1;
            }
            position += 1;
        }
        position
    }

    fn is_kept(&self, entry: &Entry) -> bool {
        entry
            .transaction
            .is_none_or(|number| self.ended.get(&number).copied().unwrap_or(false))
    }
}
