//! What the transactional loop needs of a broker, and nothing more.
//!
//! Three brokers implement it: [`crate::Kafka`], [`crate::Embedded`] and [`crate::Memory`]. One contract suite runs over all of
//! them and skips by [`Capabilities`]. The words are Kafka's; what Kafka leaves to the client library is fixed here: a
//! rebalance is an answer of [`Consumer::poll`], and nothing changes until [`Consumer::acknowledge`], so that the loop can
//! commit inside a revoke.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use protocol::{Batch, Committed, Output, Progress, TopicPartition, topic};

use crate::Error;

/// What a broker can promise. The contract suite skips by it; the binary refuses to run where a promise is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Outputs and offsets of a transaction become visible together or not at all.
    pub transactions: bool,
    /// Offsets of a member that the group has left behind are refused.
    pub fencing: bool,
    /// Records of open and aborted transactions are not handed out.
    pub aborted_hidden: bool,
    /// Committed offsets keep their metadata.
    pub offset_metadata: bool,
    /// Groups share partitions out and rebalance.
    pub groups: bool,
    /// Members may commit until they acknowledge a revoke, and who leaves is replaced at once.
    pub commit_in_revoke: bool,
    /// Topics can be stamped with the broker's clock.
    pub log_append_time: bool,
    /// Offsets can be looked up by time.
    pub time_index: bool,
    /// The log keeps everything that retention allows; otherwise it is bounded by memory.
    pub unbounded_log: bool,
}

impl Capabilities {
    /// Everything: what exactly-once needs.
    pub const FULL: Self = Self {
        transactions: true,
        fencing: true,
        aborted_hidden: true,
        offset_metadata: true,
        groups: true,
        commit_in_revoke: true,
        log_append_time: true,
        time_index: true,
        unbounded_log: true,
    };

    /// Name and value of each, for the printed matrix.
    pub fn list(&self) -> [(&'static str, bool); 9] {
        [
            ("transactions", self.transactions),
            ("fencing", self.fencing),
            ("aborted_hidden", self.aborted_hidden),
            ("offset_metadata", self.offset_metadata),
            ("groups", self.groups),
            ("commit_in_revoke", self.commit_in_revoke),
            ("log_append_time", self.log_append_time),
            ("time_index", self.time_index),
            ("unbounded_log", self.unbounded_log),
        ]
    }
}

/// How a topic is created when it is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicConfig {
    pub name: String,
    pub partitions: i32,
    pub cleanup: topic::Cleanup,
    /// Stamp records with the broker's clock instead of the producer's.
    pub log_append_time: bool,
    /// `None` takes the broker's default.
    pub replication: Option<i32>,
}

impl TopicConfig {
    /// A topic stamped by the broker, kept for a week.
    pub fn new(name: impl Into<String>, partitions: i32) -> Self {
        Self {
            name: name.into(),
            partitions,
            cleanup: topic::Cleanup::Delete { days: 7 },
            log_append_time: true,
            replication: None,
        }
    }

    /// The topic that a specification asks for, given the counts that are configured.
    pub fn from_spec(spec: &topic::TopicSpec, panes: i32, actions: i32) -> Self {
        Self {
            name: spec.name.clone(),
            partitions: match spec.partitions {
                topic::Partitions::One => 1,
                topic::Partitions::Panes => panes,
                topic::Partitions::Actions => actions,
            },
            cleanup: spec.cleanup,
            log_append_time: true,
            replication: None,
        }
    }
}

/// How a consumer reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerConfig {
    /// The group it may join by [`Consumer::subscribe`], and whose offsets it reads and commits. `None`: it only assigns.
    pub group: Option<String>,
    pub client_id: String,
    /// Hide records of open and aborted transactions.
    pub read_committed: bool,
    /// A member not heard of for so long is dead.
    pub session_timeout_ms: u32,
    /// Read the headers of records. Without them they are passed over unread.
    pub headers: bool,
}

impl ConsumerConfig {
    /// A member of a group, or a reader that joins none; read-committed.
    pub fn new(client_id: impl Into<String>, group: Option<&str>) -> Self {
        Self {
            group: group.map(str::to_owned),
            client_id: client_id.into(),
            read_committed: true,
            session_timeout_ms: 10_000,
            headers: true,
        }
    }
}

/// How a producer writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerConfig {
    pub client_id: String,
    /// `None` writes without transactions. The id must be of this instance alone: see `docs/decisions/0002`.
    pub transactional_id: Option<String>,
    /// The broker aborts a transaction that is open for longer.
    pub transaction_timeout_ms: u32,
    /// A record sent again after a lost answer is written once, and in order. The library takes half a second to get the id that
    /// this needs; a transaction needs it in any case.
    pub idempotent: bool,
}

impl ProducerConfig {
    /// Without transactions.
    pub fn new(client_id: impl Into<String>) -> Self {
        Self {
            client_id: client_id.into(),
            transactional_id: None,
            transaction_timeout_ms: 10_000,
            idempotent: true,
        }
    }

    /// For one record that does no harm when it is written twice.
    pub fn once(client_id: impl Into<String>) -> Self {
        Self {
            idempotent: false,
            ..Self::new(client_id)
        }
    }

    pub fn transactional(client_id: impl Into<String>, transactional_id: impl Into<String>) -> Self {
        Self {
            transactional_id: Some(transactional_id.into()),
            ..Self::new(client_id)
        }
    }
}

/// Leaves exactly these assigned partitions unread, where `paused` were until now.
pub fn pause_only(
    consumer: &mut dyn Consumer,
    paused: &mut BTreeSet<TopicPartition>,
    wanted: BTreeSet<TopicPartition>,
) -> Result<(), Error> {
    let pause: Vec<_> = wanted.difference(paused).cloned().collect();
    let resume: Vec<_> = paused.difference(&wanted).cloned().collect();
    if !pause.is_empty() {
        consumer.pause(&pause)?;
    }
    if !resume.is_empty() {
        consumer.resume(&resume)?;
    }
    *paused = wanted;
    Ok(())
}

/// A log service: topics, consumers, producers.
pub trait Broker: Send + Sync {
    fn name(&self) -> &'static str;

    fn capabilities(&self) -> Capabilities;

    /// Creates what is absent and leaves what exists as it is. Several processes may do this at once. A topic that exists with
    /// another number of partitions is an error.
    fn ensure_topics(&self, topics: &[TopicConfig]) -> Result<(), Error>;

    /// `None` when the topic does not exist.
    fn partition_count(&self, topic: &str) -> Result<Option<i32>, Error>;

    /// First offset in the log, and the one after its last record, committed or not.
    fn watermarks(&self, partition: &TopicPartition) -> Result<(i64, i64), Error>;

    /// Whether the broker stamps the topic's records with its own clock.
    fn log_append_time(&self, topic: &str) -> Result<bool, Error>;

    fn consumer(&self, config: &ConsumerConfig) -> Result<Box<dyn Consumer>, Error>;

    fn producer(&self, config: &ProducerConfig) -> Result<Box<dyn Producer>, Error>;
}

/// What a poll found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Polled {
    /// The batch holds records.
    Records,
    /// Nothing within the timeout.
    Idle,
    /// The group gave these partitions, the whole of the new assignment. Nothing is read until they are acknowledged and assigned with their offsets.
    Assigned(Vec<TopicPartition>),
    /// The group takes all partitions back. Until it is acknowledged the member may still commit, unless they are `lost`.
    Revoked {
        partitions: Vec<TopicPartition>,
        /// The member was dead to the group: others may own the partitions already.
        lost: bool,
    },
    /// The offset asked for is not in the log. The partition stands still; the others go on.
    OutOfRange(TopicPartition),
}

/// A reader, alone or as a member of a group. Used by one thread.
///
/// Groups rebalance eagerly: every rebalance takes all partitions from every member and shares them out anew. Cooperative
/// rebalancing lets the generation change while a transaction of a kept partition is open, and such a transaction must abort
/// (its offsets carry the old generation), which would drop and restore the partitions that it meant to keep. With the eager
/// protocol each member commits inside its revoke, before the generation can change, and no transaction spans an assignment.
pub trait Consumer: Send {
    /// Joins the group for these topics.
    fn subscribe(&mut self, topics: &[String]) -> Result<(), Error>;

    /// Reads exactly these partitions from these offsets, in place of what was read before. In a group: only what it gave, once acknowledged.
    fn assign(&mut self, positions: &[(TopicPartition, i64)]) -> Result<(), Error>;

    /// Clears the batch and waits for records or an event.
    fn poll(&mut self, timeout: Duration, batch: &mut Batch) -> Result<Polled, Error>;

    /// Answers the last [`Polled::Assigned`] or [`Polled::Revoked`]. Afterwards nothing is read until [`Consumer::assign`].
    fn acknowledge(&mut self) -> Result<(), Error>;

    /// Assigned partitions that met their end since their last record, unpaused throughout.
    fn caught_up(&self) -> Vec<TopicPartition>;

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), Error>;

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), Error>;

    fn seek(&mut self, partition: &TopicPartition, offset: i64) -> Result<(), Error>;

    /// Next offset to be read: beyond the last record handed out, and beyond control records where the end was met.
    fn position(&self, partition: &TopicPartition) -> Option<i64>;

    /// The high watermark as last seen, without asking the broker.
    fn high_watermark(&self, partition: &TopicPartition) -> Option<i64>;

    /// The group's committed offsets, once no open transaction can still change them. While one can, the error is retriable.
    fn committed(&mut self, partitions: &[TopicPartition], timeout: Duration) -> Result<Vec<Option<Committed>>, Error>;

    /// First offset at or after a time; `None` when every record is older.
    fn offset_for_time(
        &mut self,
        partition: &TopicPartition,
        timestamp_ms: i64,
        timeout: Duration,
    ) -> Result<Option<i64>, Error>;

    /// Who this member is to the group now; `None` while it is no member.
    fn group_metadata(&mut self) -> Option<GroupMetadata>;

    /// Commits offsets outside any transaction.
    fn commit(&mut self, progress: &[Progress]) -> Result<(), Error>;

    /// Leaves the group, so that the others take over at once. Dropping without it is a crash to the memory broker.
    fn close(&mut self);
}

/// A writer. Used by one thread.
pub trait Producer: Send {
    /// Opens a transaction. May wait for the transaction coordinator.
    fn begin(&mut self) -> Result<(), Error>;

    /// Queues a record; waits while the queue is full. Failures to deliver surface at [`Producer::flush`] or [`Producer::commit`].
    fn send(&mut self, output: &Output) -> Result<(), Error>;

    /// Adds offsets of the group to the open transaction.
    fn send_offsets(&mut self, progress: &[Progress], group: &GroupMetadata) -> Result<(), Error>;

    /// Delivers what was sent and makes it visible. An error other than [`crate::Class::Retriable`] leaves the outcome unknown.
    fn commit(&mut self) -> Result<(), Error>;

    fn abort(&mut self) -> Result<(), Error>;

    /// Waits until what was sent is delivered, outside transactions.
    fn flush(&mut self) -> Result<(), Error>;
}

/// A member's identity at one generation of its group.
pub struct GroupMetadata {
    pub generation: i32,
    pub member: String,
    pub(crate) native: Native,
}

/// What the broker itself needs of a [`GroupMetadata`].
pub(crate) enum Native {
    Memory { group: String },
    Kafka(rdkafka::consumer::ConsumerGroupMetadata),
}

impl GroupMetadata {
    /// Whether this is a member that may commit.
    pub fn is_member(&self) -> bool {
        self.generation >= 0 && !self.member.is_empty()
    }

    /// Whether both name the same member at the same generation.
    pub fn is_same(&self, other: &Self) -> bool {
        self.generation == other.generation && self.member == other.member
    }
}

impl fmt::Debug for GroupMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.member, self.generation)
    }
}

/// Partitions of one topic.
pub fn partitions_of(topic: &str, count: i32) -> Vec<TopicPartition> {
    let topic: Arc<str> = topic.into();
    (0..count)
        .map(|partition| TopicPartition::new(Arc::clone(&topic), partition))
        .collect()
}
