//! The state behind [`super::Memory`]: topics, groups, and the transaction coordinator.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{Batch, Output, Progress, TimestampKind, TopicPartition};

use super::{
    Stored,
    group::Group,
    log::{Content, Log},
};
use crate::{Error, TopicConfig, partitioner::partition_of};

struct Topic {
    config: TopicConfig,
    logs: Vec<Log>,
}

/// A transactional id's current owner, and its transaction.
struct Owner {
    epoch: u32,
    open: Option<Transaction>,
}

struct Transaction {
    number: u64,
    started_ms: i64,
    timeout_ms: i64,
    partitions: BTreeSet<TopicPartition>,
    offsets: BTreeMap<String, Vec<Progress>>,
}

/// An effect of a decided transaction that has not reached its place.
struct Marker {
    number: u64,
    committed: bool,
    place: Place,
}

enum Place {
    Partition(TopicPartition),
    Group(String, Vec<Progress>),
}

#[derive(Default)]
pub(super) struct Cluster {
    topics: BTreeMap<String, Topic>,
    groups: BTreeMap<String, Group>,
    owners: BTreeMap<String, Owner>,
    transactions: u64,
    markers: Vec<Marker>,
    /// State of the generator that orders late markers; `None` applies them at once.
    marker_seed: Option<u64>,
    keyless: u64,
}

impl Cluster {
    pub fn ensure_topic(&mut self, config: &TopicConfig) -> Result<(), Error> {
        if let Some(topic) = self.topics.get(&config.name) {
            let actual = topic.logs.len() as i32;
            return match actual == config.partitions {
                true => Ok(()),
                false => Err(Error::PartitionCount {
                    topic: config.name.clone(),
                    actual,
                    wanted: config.partitions,
                }),
            };
        }
        if config.partitions < 1 {
            return Err(Error::Config(format!(
                "topic {} needs at least one partition",
                config.name
            )));
        }
        let topic = Topic {
            config: config.clone(),
            logs: (0..config.partitions).map(|_| Log::default()).collect(),
        };
        self.topics.insert(config.name.clone(), topic);
        Ok(())
    }

    pub fn grow(&mut self, topic: &str, partitions: i32) -> Result<(), Error> {
        let topic = self.topic(topic)?;
        while (topic.logs.len() as i32) < partitions {
            topic.logs.push(Log::default());
        }
        Ok(())
    }

    pub fn partition_count(&self, topic: &str) -> Option<i32> {
        self.topics.get(topic).map(|topic| topic.logs.len() as i32)
    }

    pub fn log_append_time(&mut self, topic: &str) -> Result<bool, Error> {
        Ok(self.topic(topic)?.config.log_append_time)
    }

    fn topic(&mut self, name: &str) -> Result<&mut Topic, Error> {
        self.topics
            .get_mut(name)
            .ok_or_else(|| Error::UnknownTopic(name.to_owned()))
    }

    pub fn log(&mut self, partition: &TopicPartition) -> Result<&mut Log, Error> {
        self.topic(&partition.topic)?
            .logs
            .get_mut(partition.partition as usize)
            .ok_or_else(|| Error::rejected("partition", format!("{partition} does not exist")))
    }

    pub fn group(&mut self, name: &str) -> &mut Group {
        self.groups.entry(name.to_owned()).or_default()
    }

    pub fn append(
        &mut self,
        partition: &TopicPartition,
        timestamp_ms: i64,
        now_ms: i64,
        transaction: Option<u64>,
        content: Content,
    ) -> Result<i64, Error> {
        let timestamp = match self.log_append_time(&partition.topic)? {
            true => (now_ms, TimestampKind::LogAppend),
            false => (timestamp_ms, TimestampKind::Create),
        };
        Ok(self.log(partition)?.append(timestamp, transaction, content))
    }

    pub fn read_committed(&mut self, topic: &str) -> Vec<Stored> {
        let Some(known) = self.topics.get(topic) else {
            return Vec::new();
        };
        let mut batch = Batch::default();
        for (index, log) in known.logs.iter().enumerate() {
            let partition = TopicPartition::new(topic, index as i32);
            log.read(&partition, log.start(), (true, true), usize::MAX, &mut batch);
        }
        let stored = |record: protocol::Record<'_>| Stored {
            partition: record.partition.clone(),
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            timestamp_kind: record.timestamp_kind,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers().map(|(n, v)| (n.to_owned(), v.to_vec())).collect(),
        };
        batch.iter().map(stored).collect()
    }

    /// What time alone brings about: timed out transactions, silent members, late markers.
    pub fn pass_time(&mut self, now_ms: i64) {
        let late: Vec<String> = self
            .owners
            .iter()
            .filter(|(_, owner)| {
                owner
                    .open
                    .as_ref()
                    .is_some_and(|open| now_ms - open.started_ms > open.timeout_ms)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in late {
            if let Some(owner) = self.owners.get_mut(&id) {
                // As Kafka does: whoever held the transaction is fenced by it.
                owner.epoch += 1;
                let open = owner.open.take();
                self.decide(open, false, now_ms);
            }
        }
        self.apply_one_marker(now_ms);
        let topics = &self.topics;
        for group in self.groups.values_mut() {
            group.pass_time(now_ms, |topic| topics.get(topic).map_or(0, |t| t.logs.len() as i32));
        }
    }

    pub fn delay_markers(&mut self, seed: Option<u64>) {
        self.marker_seed = seed;
    }

    /// Takes over a transactional id: its last owner is fenced and its transaction aborted. Returns the new epoch.
    pub fn take_over(&mut self, id: &str, now_ms: i64) -> Result<u32, Error> {
        let owner = self
            .owners
            .entry(id.to_owned())
            .or_insert(Owner { epoch: 0, open: None });
        owner.epoch += 1;
        let epoch = owner.epoch;
        let open = owner.open.take();
        self.decide(open, false, now_ms);
        Ok(epoch)
    }

    pub fn begin(&mut self, id: &str, epoch: u32, timeout_ms: i64, now_ms: i64) -> Result<(), Error> {
        self.owner(id, epoch)?;
        if !self.markers.is_empty() && self.marker_seed.is_some() {
            return Err(Error::retriable(
                "begin",
                "concurrent transactions: markers are still being written",
            ));
        }
        self.transactions += 1;
        let number = self.transactions;
        self.owner(id, epoch)?.open = Some(Transaction {
            number,
            started_ms: now_ms,
            timeout_ms,
            partitions: BTreeSet::new(),
            offsets: BTreeMap::new(),
        });
        Ok(())
    }

    /// The owner, if nobody has taken over since.
    fn owner(&mut self, id: &str, epoch: u32) -> Result<&mut Owner, Error> {
        self.owners
            .get_mut(id)
            .filter(|owner| owner.epoch == epoch)
            .ok_or_else(|| Error::fatal("transaction", format!("producer {id} is fenced")))
    }

    fn open(&mut self, id: &str, epoch: u32) -> Result<&mut Transaction, Error> {
        self.owner(id, epoch)?
            .open
            .as_mut()
            .ok_or_else(|| Error::abort("transaction", "none is open"))
    }

    pub fn send(&mut self, owner: Option<(&str, u32)>, output: &Output, now_ms: i64) -> Result<(), Error> {
        let count = self
            .partition_count(&output.topic)
            .ok_or_else(|| Error::UnknownTopic(output.topic.to_string()))?;
        let partition = match (output.partition, &output.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_of(key, count),
            (None, None) => {
                self.keyless += 1;
                (self.keyless % count as u64) as i32
            }
        };
        let partition = TopicPartition {
            topic: std::sync::Arc::clone(&output.topic),
            partition,
        };
        let transaction = match owner {
            Some((id, epoch)) => {
                let open = self.open(id, epoch)?;
                open.partitions.insert(partition.clone());
                Some(open.number)
            }
            None => None,
        };
        let content = Content {
            key: output.key.clone(),
            value: output.value.clone(),
            headers: output.headers.clone(),
        };
        self.append(&partition, now_ms, now_ms, transaction, content)?;
        Ok(())
    }

    pub fn send_offsets(
        &mut self,
        (id, epoch): (&str, u32),
        group: &str,
        (member, generation): (&str, i32),
        progress: &[Progress],
    ) -> Result<(), Error> {
        self.open(id, epoch)?;
        self.group(group).check(member, generation)?;
        let open = self.open(id, epoch)?;
        let number = open.number;
        open.offsets
            .entry(group.to_owned())
            .or_default()
            .extend_from_slice(progress);
        self.group(group).hold(number, progress);
        Ok(())
    }

    pub fn end(&mut self, id: &str, epoch: u32, committed: bool, now_ms: i64) -> Result<(), Error> {
        let open = self.owner(id, epoch)?.open.take();
        if open.is_none() && committed {
            return Err(Error::abort("transaction", "none is open"));
        }
        self.decide(open, committed, now_ms);
        Ok(())
    }

    fn decide(&mut self, transaction: Option<Transaction>, committed: bool, now_ms: i64) {
        let Some(transaction) = transaction else { return };
        let number = transaction.number;
        let partitions = transaction.partitions.into_iter().map(Place::Partition);
        let groups = transaction.offsets.into_iter().map(|(g, p)| Place::Group(g, p));
        let markers = partitions.chain(groups).map(|place| Marker {
            number,
            committed,
            place,
        });
        self.markers.extend(markers);
        if self.marker_seed.is_none() {
            while !self.markers.is_empty() {
                self.apply_marker(0, now_ms);
            }
        }
    }

    /// One late marker arrives. Xorshift: any order will do, as long as the seed gives it again.
    fn apply_one_marker(&mut self, now_ms: i64) {
        if self.markers.is_empty() {
            return;
        }
        let index = match &mut self.marker_seed {
            Some(seed) => {
                *seed ^= *seed << 13;
                *seed ^= *seed >> 7;
                *seed ^= *seed << 17;
                (*seed % self.markers.len() as u64) as usize
            }
            None => 0,
        };
        self.apply_marker(index, now_ms);
    }

    fn apply_marker(&mut self, index: usize, now_ms: i64) {
        let Marker {
            number,
            committed,
            place,
        } = self.markers.swap_remove(index);
        match place {
            Place::Partition(partition) => {
                if let Ok(log) = self.log(&partition) {
                    log.mark(number, committed, now_ms);
                }
            }
            Place::Group(name, progress) => {
                let group = self.group(&name);
                if committed {
                    group.store(&progress);
                }
                group.release(number);
            }
        }
    }
}
