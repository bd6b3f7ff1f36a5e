//! Consumers and producers of the memory broker.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use protocol::{Batch, Committed, Output, Progress, TopicPartition};

use super::{Operation, Shared, cluster::Cluster, group::Standing};
use crate::{Consumer, ConsumerConfig, Error, GroupMetadata, Polled, Producer, ProducerConfig, broker::Native};

/// Records of one poll, at most.
const POLL_RECORDS_MAX: usize = 500;

struct Position {
    offset: i64,
    paused: bool,
    /// Met its end since its last record, unpaused throughout.
    caught_up: bool,
    /// Told once; the partition stands still.
    out_of_range: bool,
}

impl Position {
    fn at(offset: i64) -> Self {
        Self {
            offset,
            paused: false,
            caught_up: false,
            out_of_range: false,
        }
    }
}

pub(super) struct MemoryConsumer {
    shared: Arc<Shared>,
    config: ConsumerConfig,
    topics: Vec<String>,
    /// Id and last known generation, once joined.
    member: Option<(String, i32)>,
    /// What the member owns as far as it knows.
    owned: Vec<TopicPartition>,
    positions: BTreeMap<TopicPartition, Position>,
    pending: Option<Polled>,
    /// Which partition the next poll begins with.
    turn: usize,
}

impl MemoryConsumer {
    pub fn new(shared: Arc<Shared>, config: ConsumerConfig) -> Self {
        Self {
            shared,
            config,
            topics: Vec::new(),
            member: None,
            owned: Vec::new(),
            positions: BTreeMap::new(),
            pending: None,
            turn: 0,
        }
    }

    fn try_poll(&mut self, batch: &mut Batch) -> Result<Polled, Error> {
        let shared = Arc::clone(&self.shared);
        shared.call(Operation::Poll, |cluster, now_ms| {
            if let Some(event) = self.group_event(cluster, now_ms) {
                self.pending = Some(event.clone());
                return Ok(event);
            }
            self.read(cluster, batch)
        })
    }

    /// What the group has to say to this member, who is alive, since it asks.
    fn group_event(&mut self, cluster: &mut Cluster, now_ms: i64) -> Option<Polled> {
        if self.topics.is_empty() {
            return None;
        }
        if let Some(pending) = &self.pending {
            // Not acknowledged yet: say it again.
            return Some(pending.clone());
        }
        let group = cluster.group(self.config.group.as_deref()?);
        let known = self.member.as_ref().and_then(|(id, _)| group.members.get(id));
        if known.is_none() {
            if !self.owned.is_empty() {
                self.member = None;
                return Some(Polled::Revoked {
                    partitions: self.owned.clone(),
                    lost: true,
                });
            }
            let timeout_ms = i64::from(self.config.session_timeout_ms);
            let id = group.join(&self.config.client_id, &self.topics, timeout_ms, now_ms);
            self.member = Some((id, -1));
            cluster.pass_time(now_ms);
        }
        let group = cluster.group(self.config.group.as_deref()?);
        let (id, generation) = self.member.as_mut()?;
        group.seen(id, now_ms);
        let member = group.members.get_mut(id.as_str())?;
        match member.standing {
            Standing::Revoking => Some(Polled::Revoked {
                partitions: self.owned.clone(),
                lost: false,
            }),
            Standing::Assigned { .. } => {
                member.standing = Standing::Assigned { told: true };
                *generation = member.generation;
                Some(Polled::Assigned(member.assignment.clone()))
            }
            Standing::Steady | Standing::Joined => None,
        }
    }

    fn read(&mut self, cluster: &mut Cluster, batch: &mut Batch) -> Result<Polled, Error> {
        let count = self.positions.len();
        let order: Vec<TopicPartition> = (0..count)
            .filter_map(|i| self.positions.keys().nth((self.turn + i) % count).cloned())
            .collect();
        self.turn = self.turn.wrapping_add(1);
        for partition in order {
            let Some(position) = self.positions.get_mut(&partition) else {
                continue;
            };
            if position.paused || position.out_of_range {
                continue;
            }
            let log = cluster.log(&partition)?;
            if position.offset < log.start() || position.offset > log.end() {
                position.out_of_range = true;
                position.caught_up = false;
                return Ok(Polled::OutOfRange(partition));
            }
            let before = batch.len();
            let seen = (self.config.read_committed, self.config.headers);
            let left = POLL_RECORDS_MAX.saturating_sub(before);
            position.offset = log.read(&partition, position.offset, seen, left, batch);
            let end = match self.config.read_committed {
                true => log.stable_end(),
                false => log.end(),
            };
            position.caught_up = match batch.len() == before {
                true => position.offset >= end,
                // Seen at the next poll, after the records have been handed out.
                false => false,
            };
        }
        Ok(match batch.is_empty() {
            true => Polled::Idle,
            false => Polled::Records,
        })
    }

    fn position_mut(&mut self, partition: &TopicPartition) -> Result<&mut Position, Error> {
        self.positions
            .get_mut(partition)
            .ok_or_else(|| Error::NotAssigned(partition.clone()))
    }

    fn group_name(&self) -> Result<&str, Error> {
        self.config
            .group
            .as_deref()
            .ok_or_else(|| Error::Config("a consumer without a group has no committed offsets".into()))
    }
}

impl Consumer for MemoryConsumer {
    fn subscribe(&mut self, topics: &[String]) -> Result<(), Error> {
        self.group_name()?;
        self.topics = topics.to_vec();
        Ok(())
    }

    fn assign(&mut self, positions: &[(TopicPartition, i64)]) -> Result<(), Error> {
        self.positions = positions
            .iter()
            .map(|(partition, offset)| (partition.clone(), Position::at(*offset)))
            .collect();
        Ok(())
    }

    fn poll(&mut self, timeout: Duration, batch: &mut Batch) -> Result<Polled, Error> {
        batch.clear();
        let deadline = Instant::now() + timeout;
        loop {
            let polled = self.try_poll(batch)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if polled != Polled::Idle || left.is_zero() || self.shared.clock.is_virtual() {
                return Ok(polled);
            }
            // Time brings about things that nobody signals, a dead member for one: look again soon.
            let wait = left.min(Duration::from_millis(20));
            let cluster = self.shared.cluster();
            let waited = self.shared.changed.wait_timeout(cluster, wait);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn acknowledge(&mut self) -> Result<(), Error> {
        let Some(pending) = self.pending.take() else {
            return Ok(());
        };
        self.positions.clear();
        self.owned = match &pending {
            Polled::Assigned(partitions) => partitions.clone(),
            _ => Vec::new(),
        };
        let now_ms = self.shared.clock.now_ms();
        let mut cluster = self.shared.cluster();
        let (Some((id, generation)), Some(group)) = (&self.member, &self.config.group) else {
            return Ok(());
        };
        if let Some(member) = cluster.group(group).members.get_mut(id) {
            match (&pending, &member.standing) {
                (Polled::Assigned(_), Standing::Assigned { .. }) if member.generation == *generation => {
                    member.standing = Standing::Steady;
                }
                (Polled::Revoked { .. }, Standing::Revoking) => {
                    member.assignment.clear();
                    member.standing = Standing::Joined;
                }
                // The group went on meanwhile; the next poll tells.
                _ => {}
            }
        }
        cluster.pass_time(now_ms);
        drop(cluster);
        self.shared.changed.notify_all();
        Ok(())
    }

    fn caught_up(&self) -> Vec<TopicPartition> {
        let caught_up = self.positions.iter().filter(|(_, position)| position.caught_up);
        caught_up.map(|(partition, _)| partition.clone()).collect()
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        for partition in partitions {
            let position = self.position_mut(partition)?;
            position.paused = true;
            position.caught_up = false;
        }
        Ok(())
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        for partition in partitions {
            self.position_mut(partition)?.paused = false;
        }
        Ok(())
    }

    fn seek(&mut self, partition: &TopicPartition, offset: i64) -> Result<(), Error> {
        let paused = self.position_mut(partition)?.paused;
        *self.position_mut(partition)? = Position {
            paused,
            ..Position::at(offset)
        };
        Ok(())
    }

    fn position(&self, partition: &TopicPartition) -> Option<i64> {
        self.positions.get(partition).map(|position| position.offset)
    }

    fn high_watermark(&self, partition: &TopicPartition) -> Option<i64> {
        self.shared.cluster().log(partition).ok().map(|log| log.end())
    }

    fn committed(
        &mut self,
        partitions: &[TopicPartition],
        _timeout: Duration,
    ) -> Result<Vec<Option<Committed>>, Error> {
        let group = self.group_name()?;
        self.shared.call(Operation::Committed, |cluster, _| {
            let group = cluster.group(group);
            if let Some(unstable) = partitions.iter().find(|partition| !group.is_stable(partition)) {
                let reason = format!("the offset of {unstable} is part of an open transaction");
                return Err(Error::retriable("committed offsets", reason));
            }
            Ok(partitions.iter().map(|p| group.offsets.get(p).cloned()).collect())
        })
    }

    fn offset_for_time(
        &mut self,
        partition: &TopicPartition,
        timestamp_ms: i64,
        _timeout: Duration,
    ) -> Result<Option<i64>, Error> {
        Ok(self.shared.cluster().log(partition)?.offset_for_time(timestamp_ms))
    }

    fn group_metadata(&mut self) -> Option<GroupMetadata> {
        let group = self.config.group.clone()?;
        let (member, generation) = self.member.clone().unwrap_or((String::new(), -1));
        Some(GroupMetadata {
            generation,
            member,
            native: Native::Memory { group },
        })
    }

    fn commit(&mut self, progress: &[Progress]) -> Result<(), Error> {
        let group = self.group_name()?;
        let (member, generation) = self.member.clone().unwrap_or((String::new(), -1));
        self.shared.call(Operation::SendOffsets, |cluster, _| {
            let group = cluster.group(group);
            group.check(&member, generation)?;
            group.store(progress);
            Ok(())
        })
    }

    fn close(&mut self) {
        let now_ms = self.shared.clock.now_ms();
        if let (Some((id, _)), Some(group)) = (self.member.take(), &self.config.group) {
            let mut cluster = self.shared.cluster();
            cluster.group(group).leave(&id);
            cluster.pass_time(now_ms);
            drop(cluster);
            self.shared.changed.notify_all();
        }
        self.topics.clear();
        self.owned.clear();
        self.positions.clear();
        self.pending = None;
    }
}

pub(super) struct MemoryProducer {
    shared: Arc<Shared>,
    config: ProducerConfig,
    /// Epoch at which this producer owns its transactional id, once it has asked for it.
    epoch: Option<u32>,
}

impl MemoryProducer {
    pub fn new(shared: Arc<Shared>, config: ProducerConfig) -> Self {
        Self {
            shared,
            config,
            epoch: None,
        }
    }

    fn owner(&self) -> Result<(&str, u32), Error> {
        match (&self.config.transactional_id, self.epoch) {
            (Some(id), Some(epoch)) => Ok((id, epoch)),
            _ => Err(Error::abort("transaction", "none was begun")),
        }
    }
}

impl Producer for MemoryProducer {
    fn begin(&mut self) -> Result<(), Error> {
        let Some(id) = &self.config.transactional_id else {
            return Err(Error::Config(
                "a producer without a transactional id has no transactions".into(),
            ));
        };
        let timeout_ms = i64::from(self.config.transaction_timeout_ms);
        let known = self.epoch;
        let epoch = self.shared.call(Operation::Begin, |cluster, now_ms| {
            let epoch = match known {
                Some(epoch) => epoch,
                None => cluster.take_over(id, now_ms)?,
            };
            cluster.begin(id, epoch, timeout_ms, now_ms)?;
            Ok(epoch)
        })?;
        self.epoch = Some(epoch);
        Ok(())
    }

    fn send(&mut self, output: &Output) -> Result<(), Error> {
        let owner = match self.config.transactional_id {
            Some(_) => Some(self.owner()?),
            None => None,
        };
        self.shared
            .call(Operation::Send, |cluster, now_ms| cluster.send(owner, output, now_ms))
    }

    fn send_offsets(&mut self, progress: &[Progress], group: &GroupMetadata) -> Result<(), Error> {
        let Native::Memory { group: name } = &group.native else {
            return Err(Error::Config("group metadata of another broker".into()));
        };
        let owner = self.owner()?;
        let member = (group.member.as_str(), group.generation);
        self.shared.call(Operation::SendOffsets, |cluster, _| {
            cluster.send_offsets(owner, name, member, progress)
        })
    }

    fn commit(&mut self) -> Result<(), Error> {
        let (id, epoch) = self.owner()?;
        self.shared.call(Operation::Commit, |cluster, now_ms| {
            cluster.end(id, epoch, true, now_ms)
        })
    }

    fn abort(&mut self) -> Result<(), Error> {
        let (id, epoch) = self.owner()?;
        self.shared.call(Operation::Abort, |cluster, now_ms| {
            cluster.end(id, epoch, false, now_ms)
        })
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}
