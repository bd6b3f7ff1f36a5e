//! A consumer group: members, generations, eager rebalances, committed and pending offsets.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{Committed, Progress, TopicPartition};

use crate::{Error, broker::partitions_of};

/// Where a member stands in the current rebalance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Owns its assignment.
    Steady,
    /// Has been told to give its assignment back, and has not answered.
    Revoking,
    /// Waits for the next generation.
    Joined,
    /// The generation stands; the member has not been told, or has not answered.
    Assigned { told: bool },
}

#[derive(Clone, Debug)]
pub(super) struct Member {
    pub topics: Vec<String>,
    pub standing: Standing,
    pub assignment: Vec<TopicPartition>,
    pub generation: i32,
    last_seen_ms: i64,
    session_timeout_ms: i64,
}

#[derive(Default)]
pub(super) struct Group {
    pub generation: i32,
    pub members: BTreeMap<String, Member>,
    pub offsets: BTreeMap<TopicPartition, Committed>,
    /// Transactions that may still change a partition's offset.
    pending: BTreeMap<TopicPartition, BTreeSet<u64>>,
    rebalancing: bool,
    /// Partition counts that the current assignment was made from.
    counts: BTreeMap<String, i32>,
    members_made: u64,
}

impl Group {
    /// Adds a member, which starts a rebalance. Returns its id.
    pub fn join(&mut self, client_id: &str, topics: &[String], session_timeout_ms: i64, now_ms: i64) -> String {
        self.members_made += 1;
        let id = format!("{client_id}-{}", self.members_made);
        self.members.insert(
            id.clone(),
            Member {
                topics: topics.to_vec(),
                standing: Standing::Joined,
                assignment: Vec::new(),
                generation: -1,
                last_seen_ms: now_ms,
                session_timeout_ms,
            },
        );
        self.rebalance();
        id
    }

    pub fn leave(&mut self, member: &str) {
        if self.members.remove(member).is_some() {
            self.rebalance();
        }
    }

    pub fn seen(&mut self, member: &str, now_ms: i64) {
        if let Some(member) = self.members.get_mut(member) {
            member.last_seen_ms = now_ms;
        }
    }

    /// Everyone gives back what it has. Who owns nothing, or has not been told yet, joins again at once.
    fn rebalance(&mut self) {
        self.rebalancing = true;
        for member in self.members.values_mut() {
            let keeps_nothing = member.assignment.is_empty();
            member.standing = match member.standing {
                Standing::Steady | Standing::Revoking | Standing::Assigned { told: true } if !keeps_nothing => {
                    Standing::Revoking
                }
                _ => {
                    member.assignment.clear();
                    Standing::Joined
                }
            };
        }
    }

    /// Buries the silent, notices new partitions, and completes a rebalance that everyone has joined.
    pub fn pass_time(&mut self, now_ms: i64, counts: impl Fn(&str) -> i32) {
        let dead: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| now_ms - member.last_seen_ms > member.session_timeout_ms)
            .map(|(id, _)| id.clone())
            .collect();
        for id in dead {
            self.leave(&id);
        }
        let grown = self.counts.iter().any(|(topic, count)| counts(topic) != *count);
        if grown && !self.rebalancing {
            self.rebalance();
        }
        let ready = self.members.values().all(|member| member.standing == Standing::Joined);
        if self.rebalancing && ready {
            self.complete(counts);
        }
    }

    /// A new generation: the partitions of all topics, in turn over the members that subscribe to them.
    fn complete(&mut self, counts: impl Fn(&str) -> i32) {
        self.rebalancing = false;
        self.generation += 1;
        let topics: BTreeSet<String> = self.members.values().flat_map(|m| m.topics.clone()).collect();
        self.counts = topics.iter().map(|topic| (topic.clone(), counts(topic))).collect();
        for member in self.members.values_mut() {
            member.generation = self.generation;
            member.standing = Standing::Assigned { told: false };
            member.assignment.clear();
        }
        let ids: Vec<String> = self.members.keys().cloned().collect();
        let mut next = 0;
        for (topic, count) in &self.counts {
            for partition in partitions_of(topic, *count) {
                let takers = (0..ids.len()).map(|i| &ids[(next + i) % ids.len()]);
                let taker = takers
                    .filter_map(|id| self.members.get(id).map(|m| (id, m)))
                    .find(|(_, m)| m.topics.contains(topic));
                let Some(id) = taker.map(|(id, _)| id.clone()) else {
                    continue;
                };
                next = ids.iter().position(|known| *known == id).unwrap_or(0) + 1;
                if let Some(member) = self.members.get_mut(&id) {
                    member.assignment.push(partition);
                }
            }
        }
    }

    /// Whether an offset may be committed in this member's name.
    pub fn check(&self, member: &str, generation: i32) -> Result<(), Error> {
        if member.is_empty() && generation < 0 {
            return Ok(());
        }
        let Some(known) = self.members.get(member) else {
            return Err(Error::abort("offset commit", format!("unknown member {member}")));
        };
        if generation != self.generation || known.generation != generation {
            return Err(Error::abort(
                "offset commit",
                format!("illegal generation {generation}, the group is at {}", self.generation),
            ));
        }
        Ok(())
    }

    pub fn store(&mut self, progress: &[Progress]) {
        for p in progress {
            let committed = Committed {
                offset: p.offset,
                metadata: p.metadata.clone(),
            };
            self.offsets.insert(p.partition.clone(), committed);
        }
    }

    pub fn hold(&mut self, transaction: u64, progress: &[Progress]) {
        for p in progress {
            self.pending.entry(p.partition.clone()).or_default().insert(transaction);
        }
    }

    pub fn release(&mut self, transaction: u64) {
        self.pending.retain(|_, transactions| {
            transactions.remove(&transaction);
            !transactions.is_empty()
        });
    }

    pub fn is_stable(&self, partition: &TopicPartition) -> bool {
        !self.pending.contains_key(partition)
    }
}
