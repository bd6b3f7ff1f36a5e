//! Which offsets may be committed when records finish out of order: those below the first that has not finished.

use std::collections::{BTreeMap, BTreeSet};

use protocol::TopicPartition;

/// One life of an assignment. Records of an earlier life finish into nothing.
pub type Epoch = u64;

/// The records under way, by partition.
#[derive(Debug, Default)]
pub struct Offsets {
    epoch: Epoch,
    partitions: BTreeMap<TopicPartition, Partition>,
}

#[derive(Debug, Default)]
struct Partition {
    open: BTreeSet<i64>,
    /// One past the last record that was begun.
    next: i64,
    committed: Option<i64>,
}

impl Offsets {
    /// A new assignment: nothing of the old one counts.
    pub fn assigned(&mut self, positions: &[(TopicPartition, i64)]) {
        self.epoch += 1;
        self.partitions = positions
            .iter()
            .map(|(partition, next)| {
                let partition_state = Partition {
                    next: *next,
                    ..Partition::default()
                };
                (partition.clone(), partition_state)
            })
            .collect();
    }

    pub fn revoked(&mut self) {
        self.assigned(&[]);
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn partitions(&self) -> impl Iterator<Item = &TopicPartition> {
        self.partitions.keys()
    }

    pub fn begun(&mut self, partition: &TopicPartition, offset: i64) {
        if let Some(partition) = self.partitions.get_mut(partition) {
            partition.open.insert(offset);
            partition.next = partition.next.max(offset + 1);
        }
    }

    pub fn finished(&mut self, epoch: Epoch, partition: &TopicPartition, offset: i64) {
        if epoch == self.epoch
            && let Some(partition) = self.partitions.get_mut(partition)
        {
            partition.open.remove(&offset);
        }
    }

    /// Partitions whose committable offset has moved since [`Offsets::committed`], with that offset.
    pub fn committable(&self) -> Vec<(TopicPartition, i64)> {
        self.partitions
            .iter()
            .filter_map(|(name, partition)| {
                let offset = partition.open.first().copied().unwrap_or(partition.next);
                (partition.committed != Some(offset)).then(|| (name.clone(), offset))
            })
            .collect()
    }

    pub fn committed(&mut self, offsets: &[(TopicPartition, i64)]) {
        for (name, offset) in offsets {
            if let Some(partition) = self.partitions.get_mut(name) {
                partition.committed = Some(*offset);
            }
        }
    }
}

#[cfg(test)]
mod tests;
