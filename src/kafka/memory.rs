//! A broker in memory: deterministic, single process, on a clock that is handed in.
//!
//! Models what exactly-once rests on: partitions with control records, groups with generations and eager rebalances, members
//! that die of silence, transactions with timeouts, fencing, aborted records, the last stable offset, offsets with metadata and
//! pending offsets. Checked against a real Kafka by the contract suite. On a [`crate::VirtualClock`] nothing blocks, so that a
//! seeded simulation interleaves any number of loops in one thread; a consumer dropped without [`Consumer::close`] is a
//! process killed, a loop not stepped while time passes is a process stopped.
//!
//! Differs from Kafka on purpose: a member proves that it lives by polling (Kafka's client has a thread for it), keys are never
//! compacted away, and a record without a key goes to the partitions in turn.

mod client;
mod cluster;
mod group;
mod log;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use protocol::{TimestampKind, TopicPartition};

use crate::{
    Broker, Capabilities, Class, Clock, Consumer, ConsumerConfig, Error, Producer, ProducerConfig, TopicConfig,
};
use client::{MemoryConsumer, MemoryProducer};
use cluster::Cluster;

/// A call that a fault can be injected into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Poll,
    Committed,
    Watermarks,
    Begin,
    Send,
    SendOffsets,
    Commit,
    Abort,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails and has no effect.
    Before(Class),
    /// It takes effect, and the answer is lost.
    After(Class),
}

type Faults = Box<dyn FnMut(Operation) -> Option<Fault> + Send>;

/// A record as it lies in the log, for tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub partition: TopicPartition,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub timestamp_kind: TimestampKind,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

/// A handle to the broker; clones share it.
#[derive(Clone)]
pub struct Memory(Arc<Shared>);

struct Shared {
    clock: Arc<dyn Clock>,
    cluster: Mutex<Cluster>,
    changed: Condvar,
    faults: Mutex<Option<Faults>>,
}

impl Memory {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Shared {
            clock,
            cluster: Mutex::new(Cluster::default()),
            changed: Condvar::new(),
            faults: Mutex::new(None),
        }))
    }

    /// Asks before every call of a client what should go wrong with it.
    pub fn inject(&self, faults: impl FnMut(Operation) -> Option<Fault> + Send + 'static) {
        *self.0.faults.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(faults));
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        *self.0.faults.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Lets the effects of a decided transaction reach its partitions one call after another, in an order drawn from the
    /// seed, as Kafka's markers do. `None` applies them at once.
    pub fn delay_markers(&self, seed: Option<u64>) {
        self.0.cluster().delay_markers(seed);
    }

    /// Appends a record with a timestamp of the caller's choice (on a topic with LogAppendTime it is the clock's).
    pub fn append(
        &self,
        partition: &TopicPartition,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, &[u8])],
    ) -> Result<i64, Error> {
        let record = log::Content {
            key: key.map(<[u8]>::to_vec),
            value: value.map(<[u8]>::to_vec),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.to_vec()))
                .collect(),
        };
        let now_ms = self.0.clock.now_ms();
        let offset = self.0.cluster().append(partition, timestamp_ms, now_ms, None, record)?;
        self.0.changed.notify_all();
        Ok(offset)
    }

    /// Every record of a topic that a read-committed consumer sees, by partition and offset.
    pub fn read_committed(&self, topic: &str) -> Vec<Stored> {
        self.0.cluster().read_committed(topic)
    }

    /// Removes what lies below an offset, as retention does.
    pub fn truncate(&self, partition: &TopicPartition, below: i64) -> Result<(), Error> {
        self.0.cluster().log(partition)?.truncate(below);
        Ok(())
    }

    /// Adds partitions to a topic.
    pub fn grow(&self, topic: &str, partitions: i32) -> Result<(), Error> {
        self.0.cluster().grow(topic, partitions)
    }

    /// The group's committed offset, pending ones left out.
    pub fn committed(&self, group: &str, partition: &TopicPartition) -> Option<protocol::Committed> {
        self.0.cluster().group(group).offsets.get(partition).cloned()
    }
}

impl Broker for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::FULL
    }

    fn ensure_topics(&self, topics: &[TopicConfig]) -> Result<(), Error> {
        let mut cluster = self.0.cluster();
        topics.iter().try_for_each(|topic| cluster.ensure_topic(topic))
    }

    fn partition_count(&self, topic: &str) -> Result<Option<i32>, Error> {
        Ok(self.0.cluster().partition_count(topic))
    }

    fn watermarks(&self, partition: &TopicPartition) -> Result<(i64, i64), Error> {
        self.0.call(Operation::Watermarks, |cluster, _| {
            let log = cluster.log(partition)?;
            Ok((log.start(), log.end()))
        })
    }

    fn log_append_time(&self, topic: &str) -> Result<bool, Error> {
        self.0.cluster().log_append_time(topic)
    }

    fn consumer(&self, config: &ConsumerConfig) -> Result<Box<dyn Consumer>, Error> {
        Ok(Box::new(MemoryConsumer::new(Arc::clone(&self.0), config.clone())))
    }

    fn producer(&self, config: &ProducerConfig) -> Result<Box<dyn Producer>, Error> {
        Ok(Box::new(MemoryProducer::new(Arc::clone(&self.0), config.clone())))
    }
}

impl Shared {
    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one call of a client: time passes first, and a fault may strike before or after.
    fn call<T>(
        &self,
        operation: Operation,
        work: impl FnOnce(&mut Cluster, i64) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let fault = self
            .faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            .and_then(|faults| faults(operation));
        if let Some(Fault::Before(class)) = fault {
            return Err(injected(class));
        }
        let now_ms = self.clock.now_ms();
        let mut cluster = self.cluster();
        cluster.pass_time(now_ms);
        let result = work(&mut cluster, now_ms);
        drop(cluster);
        self.changed.notify_all();
        match fault {
            Some(Fault::After(class)) => result.and(Err(injected(class))),
            _ => result,
        }
    }
}

fn injected(class: Class) -> Error {
    let what = "injected fault";
    match class {
        Class::Retriable => Error::retriable(what, "retriable"),
        Class::Abort => Error::abort(what, "abort"),
        Class::Fatal => Error::fatal(what, "fatal"),
        Class::Stop => Error::rejected(what, "stop"),
    }
}
