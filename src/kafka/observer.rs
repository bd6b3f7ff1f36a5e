//! What the loop tells the outside, and how the outside tells it to stop.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use protocol::{Output, TopicPartition};

/// A transaction that became durable.
#[derive(Clone, Copy, Debug)]
pub struct Commit<'a> {
    pub stage: &'static str,
    /// What became visible, in the order in which the stage said it.
    pub outputs: &'a [Output],
    /// Records read since the last commit, and their bytes.
    pub records: u64,
    pub bytes: u64,
    /// Time spent in the stage since the last commit, seconds.
    pub step_s: f64,
    /// Time spent in the commit, seconds.
    pub commit_s: f64,
    /// Records still to be read, by partition.
    pub lag: &'a [(TopicPartition, i64)],
    /// Wall clock of the loop, milliseconds since the Unix epoch.
    pub now_ms: i64,
}

/// Told by the loop what happened. Must not block.
pub trait Observer: Send + Sync {
    fn committed(&self, _commit: &Commit<'_>) {}

    fn aborted(&self, _stage: &'static str, _reason: &str) {}

    /// Partitions are restored and read from now on.
    fn restored(&self, _stage: &'static str, _partitions: &[TopicPartition], _state_records: u64, _took_s: f64) {}

    /// A partition stands still until an operator chooses; the others go on.
    fn stopped(&self, _stage: &'static str, _partition: &TopicPartition, _reason: &str) {}

    fn revoked(&self, _stage: &'static str, _partitions: &[TopicPartition], _lost: bool) {}

    /// A sample of [`protocol::Stage::observe`], about once a second.
    fn sample(&self, _stage: &'static str, _name: &'static str, _labels: &[(&'static str, &str)], _value: f64) {}
}

/// Nobody watches.
impl Observer for () {}

/// A request to drain and end, shared between threads.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(Arc<AtomicBool>);

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
