//! The contract between a stage, which is pure, and the loop, which owns the broker and the clock.
//!
//! The life of an assigned partition, as the loop drives it:
//!
//! 1. fetch the stable committed offset and its metadata (waiting out open transactions);
//! 2. where [`Stage::state_partition`] names one, read that state partition to its end into [`Stage::restore`];
//! 3. [`Stage::assigned`] answers where to start reading: at or before the committed offset; what [`Stage::tables`] names is read to its end;
//! 4. [`Stage::step`] with batches, [`Stage::tick`] about every 100 ms; where it asks to read something again, [`Stage::reread`] between them;
//! 5. before each commit [`Stage::before_commit`] adds dirty state and says the offset and metadata of *every* assigned partition;
//! 6. [`Stage::revoked`] drops the partition, after a commit, or without one when the assignment was lost.
//!
//! After any abort the loop calls `revoked` for every partition and starts again at 1: no stage survives an abort in memory.

use crate::record::{Batch, Outputs, TopicPartition};

/// Why a stage cannot go on. Bad records are no such reason: they become dead letters.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The durable state cannot be read, or contradicts the log. The partition stops until an operator chooses.
    #[error("{partition}: {reason}")]
    Partition { partition: TopicPartition, reason: String },
    /// A broken invariant. The instance stops.
    #[error("{0}")]
    Fatal(String),
}

/// Where a group's first start on a partition reads from. Never consulted once an offset is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Earliest,
    Latest,
    /// The first record at or after this time, milliseconds since the Unix epoch.
    Timestamp(i64),
}

/// Where a side input is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SidePosition {
    Beginning,
    /// Only what is yet to come: what was said before does not matter.
    End,
    Offset(i64),
}

/// A committed offset with the metadata that travelled with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub offset: i64,
    pub metadata: String,
}

/// What the loop knows of a partition when it is assigned.
#[derive(Clone, Debug)]
pub struct Assignment {
    pub committed: Option<Committed>,
    /// Where a first start would read, resolved from [`Stage::start`].
    pub start_offset: i64,
    /// First offset whose record is of the time that [`Stage::lookback`] names, or later; none where there is no such time or record.
    pub lookback_offset: Option<i64>,
    /// First offset still in the log.
    pub log_start_offset: i64,
    /// High watermark when assigned.
    pub log_end_offset: i64,
    /// Partitions of the topic.
    pub partition_count: i32,
}

/// The clock as data, and which assigned partitions are caught up: an end-of-partition event since their last record, unpaused throughout.
#[derive(Clone, Copy, Debug)]
pub struct Clock<'a> {
    /// Milliseconds since the Unix epoch.
    pub now_ms: i64,
    pub caught_up: &'a [TopicPartition],
    /// Partition counts of the input topics as last seen in the metadata.
    pub partition_counts: &'a [(std::sync::Arc<str>, i32)],
}

/// The offset a partition commits, and its metadata: at most 4,096 bytes of fixed-size fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub partition: TopicPartition,
    /// Next offset to read.
    pub offset: i64,
    pub metadata: String,
}

/// One stage of the walk. Deterministic: the same calls in the same order give the same outputs and state, byte for byte.
pub trait Stage: Send {
    /// `aggregate`, `detect` or `decide`: consumer group suffix, metric label, crash point prefix.
    fn name(&self) -> &'static str;

    /// Topics whose partitions the group shares out.
    fn inputs(&self) -> Vec<String>;

    /// Where a first start on this topic reads from.
    fn start(&self, topic: &str) -> Start;

    /// Topics read whole by whoever owns `partition`, by manual assignment: their positions live in the stage's own state.
    fn side_inputs(&self, _partition: &TopicPartition) -> Vec<TopicPartition> {
        Vec::new()
    }

    /// What is followed, from [`Stage::side_position`] on, while the group has given nothing: who owns no partition hears of changes, too.
    fn idle_inputs(&self) -> Vec<TopicPartition> {
        Vec::new()
    }

    /// Whether it looks at the headers of its inputs: one that does not is handed records without them. Side inputs have theirs.
    fn reads_headers(&self) -> bool {
        true
    }

    /// Where to read a side input from, asked after [`Stage::assigned`].
    fn side_position(&self, _side: &TopicPartition) -> SidePosition {
        SidePosition::Beginning
    }

    /// Topics that are read whole, every partition from its beginning, between [`Stage::assigned`] and the first record, and followed
    /// from then on. They are read anew for every assignment; a stage that is assigned its first partition has forgotten them.
    fn tables(&self) -> Vec<String> {
        Vec::new()
    }

    /// The compacted partition that holds the durable state of an input partition.
    fn state_partition(&self, _partition: &TopicPartition) -> Option<TopicPartition> {
        None
    }

    /// A state record of `partition`, in log order; `None` is a tombstone.
    fn restore(&mut self, _partition: &TopicPartition, _key: &[u8], _value: Option<&[u8]>) -> Result<(), StageError> {
        Ok(())
    }

    /// A time from which on the stage would read again what it has read of `partition`: it is answered as [`Assignment::lookback_offset`],
    /// before [`Stage::assigned`]. Kafka's timestamps, milliseconds since the Unix epoch.
    fn lookback(&self, _partition: &TopicPartition, _committed: Option<&Committed>) -> Option<i64> {
        None
    }

    /// State is complete. Returns the offset to read from: low-water, at or before the committed offset.
    fn assigned(&mut self, partition: &TopicPartition, assignment: &Assignment) -> Result<i64, StageError>;

    /// The partition belongs to someone else, or must be restored: forget everything about it.
    fn revoked(&mut self, partition: &TopicPartition);

    /// Records of assigned partitions and side inputs. Records below the committed offset are a replay: the stage folds
    /// them and publishes nothing for them.
    fn step(&mut self, batch: &Batch, out: &mut Outputs) -> Result<(), StageError>;

    /// Partitions of which something is read again, beside what is new, and from which offset on. Asked when restored, and after every
    /// [`Stage::reread`].
    fn rereads(&self) -> Vec<(TopicPartition, i64)> {
        Vec::new()
    }

    /// Records of partitions that [`Stage::rereads`] names, maybe none, and the offset that comes next of each: all records below have
    /// been handed over.
    fn reread(
        &mut self,
        _batch: &Batch,
        _next: &[(TopicPartition, i64)],
        _out: &mut Outputs,
    ) -> Result<(), StageError> {
        Ok(())
    }

    /// About every 100 ms, and once before each revoke. Only the aggregate stage may let the clock change what it says.
    fn tick(&mut self, _clock: Clock<'_>, _out: &mut Outputs) -> Result<(), StageError> {
        Ok(())
    }

    /// Whether what the stage has said should not wait for the commit interval.
    fn urgent(&self) -> bool {
        false
    }

    /// Whether the stage has heard of something that it can take over only between two assignments. The loop then commits what there is,
    /// forgets every partition as if it were revoked, calls [`Stage::change`] and restores. Asked in every turn.
    fn is_changing(&self) -> bool {
        false
    }

    /// Takes over what it has heard of; no partition is assigned. Afterwards [`Stage::inputs`] and [`Stage::reads_headers`] may differ.
    fn change(&mut self) {}

    /// Assigned partitions to leave unread for now (watermark alignment). Asked after every step and tick.
    fn paused(&self) -> Vec<TopicPartition> {
        Vec::new()
    }

    /// Adds dirty state to `out` and returns the position of every assigned partition, changed or not.
    fn before_commit(&mut self, out: &mut Outputs) -> Result<Vec<Progress>, StageError>;

    /// What was said since the last commit is now durable.
    fn committed(&mut self) {}

    /// Gauges and counters by name and labels, read by the loop about once a second: `sink(name, labels, value)`.
    /// Names ending in `_total` are counters.
    #[allow(clippy::type_complexity)]
    fn observe(&self, _sink: &mut dyn FnMut(&'static str, &[(&'static str, &str)], f64)) {}
}
