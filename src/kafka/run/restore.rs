//! From an assignment to the first record: committed offsets, state, positions.
//!
//! Runs in small steps, so that the loop keeps answering the group while it waits for other instances' transactions to end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use protocol::{Assignment, Batch, Committed, SidePosition, Start, TopicPartition};
use tracing::info;

use super::{Phase, StageLoop, Turn};
use crate::{Class, Consumer, ConsumerConfig, Error, Polled};

/// How long one step may wait for the broker.
const STEP_TIMEOUT: Duration = Duration::from_millis(500);
/// How long one step may wait for records of a table.
const TABLE_TIMEOUT: Duration = Duration::from_millis(50);

/// How far a restore has come.
pub(super) struct Restore {
    started: Instant,
    step: Step,
    state_records: u64,
}

enum Step {
    Committed,
    State(Vec<Option<Committed>>, StateRead),
    Assign(Vec<Option<Committed>>),
    Tables(Told),
}

/// What the stage was told of every partition, and answered.
struct Told {
    partitions: Vec<TopicPartition>,
    assignments: Vec<Assignment>,
    positions: Vec<(TopicPartition, i64)>,
    /// Where the tables end: they are read so far before the first record.
    ends: BTreeMap<TopicPartition, i64>,
}

/// State partitions being read to their ends.
struct StateRead {
    reader: Box<dyn Consumer>,
    batch: Batch,
    /// Input partitions by the state partition that holds their state.
    owners: BTreeMap<TopicPartition, Vec<TopicPartition>>,
    /// High watermarks that the positions must pass.
    ends: BTreeMap<TopicPartition, i64>,
}

impl StageLoop<'_> {
    pub(super) fn begin_restore(&mut self) {
        self.phase = match self.assigned.is_empty() {
            true => Phase::Waiting,
            false => Phase::Restoring(Box::new(Restore {
                started: Instant::now(),
                step: Step::Committed,
                state_records: 0,
            })),
        };
    }

    /// One step; a rebalance in between ends the restore.
    pub(super) fn restore(&mut self) -> Result<Turn, Error> {
        let mut batch = std::mem::take(&mut self.batch);
        let polled = self.consumer.poll(Duration::ZERO, &mut batch);
        self.batch = batch;
        match polled? {
            Polled::Idle | Polled::Records => {}
            event => return self.rebalance(event),
        }
        let Phase::Restoring(mut restore) = std::mem::replace(&mut self.phase, Phase::Waiting) else {
            return Ok(Turn::Idle);
        };
        let result = self.restore_step(&mut restore);
        match result {
            Ok(true) => {
                let took_s = restore.started.elapsed().as_secs_f64();
                info!(
                    stage = self.name,
                    partitions = %super::list(&self.active),
                    state_records = restore.state_records,
                    took_s,
                    "restored"
                );
                self.observer
                    .restored(self.name, &self.active, restore.state_records, took_s);
                self.phase = Phase::Running;
                Ok(Turn::Busy)
            }
            Ok(false) => {
                self.phase = Phase::Restoring(restore);
                Ok(Turn::Busy)
            }
            // A step that may succeed later is repeated as it was; anything else starts the restore anew.
            Err(error) => {
                if error.class() == Class::Retriable {
                    self.phase = Phase::Restoring(restore);
                }
                Err(error)
            }
        }
    }

    /// Tells whether the restore is complete. On an error the step is as it was before.
    fn restore_step(&mut self, restore: &mut Restore) -> Result<bool, Error> {
        match &mut restore.step {
            Step::Committed => {
                let partitions = self.to_restore();
                let committed = self.consumer.committed(&partitions, STEP_TIMEOUT)?;
                // Rule 18: only now that the offsets are stable, the ends of the state.
                restore.step = match self.open_state()? {
                    Some(read) => Step::State(committed, read),
                    None => Step::Assign(committed),
                };
                Ok(false)
            }
            Step::State(committed, read) => {
                restore.state_records += self.read_state(read)?;
                if read.is_complete() {
                    restore.step = Step::Assign(std::mem::take(committed));
                }
                Ok(false)
            }
            Step::Assign(committed) => {
                let committed = committed.clone();
                let told = self.tell(&committed)?;
                restore.step = Step::Tables(told);
                self.read_tables(restore)
            }
            Step::Tables(_) => self.read_tables(restore),
        }
    }

    fn to_restore(&self) -> Vec<TopicPartition> {
        self.assigned
            .iter()
            .filter(|partition| !self.stopped.contains_key(*partition))
            .cloned()
            .collect()
    }

    fn open_state(&mut self) -> Result<Option<StateRead>, Error> {
        let mut owners: BTreeMap<TopicPartition, Vec<TopicPartition>> = BTreeMap::new();
        for partition in self.to_restore() {
            if let Some(state) = self.stage.state_partition(&partition) {
                owners.entry(state).or_default().push(partition);
            }
        }
        let mut ends = BTreeMap::new();
        let mut positions = Vec::new();
        for state in owners.keys() {
            let (low, high) = self.broker.watermarks(state)?;
            if low < high {
                ends.insert(state.clone(), high);
                positions.push((state.clone(), low));
            }
        }
        if positions.is_empty() {
            return Ok(None);
        }
        let client_id = format!("{}-state", self.config.client_id);
        let mut reader = self.broker.consumer(&ConsumerConfig::new(client_id, None))?;
        reader.assign(&positions)?;
        Ok(Some(StateRead {
            reader,
            batch: Batch::default(),
            owners,
            ends,
        }))
    }

    fn read_state(&mut self, read: &mut StateRead) -> Result<u64, Error> {
        match read.reader.poll(Duration::from_millis(50), &mut read.batch)? {
            Polled::Records => {}
            Polled::OutOfRange(partition) => {
                return Err(Error::abort(
                    "state",
                    format!("{partition} was truncated while it was read"),
                ));
            }
            _ => return Ok(0),
        }
        for record in read.batch.iter() {
            // Records beyond the end were committed by nobody who could have owned these partitions after us.
            let Some(key) = record.key else { continue };
            for owner in read.owners.get(record.partition).into_iter().flatten() {
                self.known.insert(owner.clone());
                self.stage
                    .restore(owner, key, record.value)
                    .map_err(|error| self.stage_error(error))?;
            }
        }
        Ok(read.batch.len() as u64)
    }

    /// Tells the stage of its partitions, and opens what it reads beside them.
    fn tell(&mut self, committed: &[Option<Committed>]) -> Result<Told, Error> {
        let partitions = self.to_restore();
        let tables = self.table_partitions()?;
        let mut assignments = Vec::new();
        for (partition, committed) in partitions.iter().zip(committed) {
            assignments.push(self.describe(partition, committed.clone())?);
        }
        let mut positions = Vec::new();
        for (partition, assignment) in partitions.iter().zip(&assignments) {
            self.known.insert(partition.clone());
            let offset = self
                .stage
                .assigned(partition, assignment)
                .map_err(|error| self.stage_error(error))?;
            let committed = assignment.committed.as_ref().map(|committed| committed.offset);
            if let Some(reason) = committed
                .into_iter()
                .chain([offset])
                .find_map(|offset| out_of_range(offset, assignment))
            {
                return Err(self.stop_partition(partition.clone(), reason));
            }
            positions.push((partition.clone(), offset));
        }
        // The stage has been told: a failure from here on, even a passing one, starts the restore anew.
        let ends = self.assign_side(&partitions, &tables).map_err(anew)?;
        Ok(Told {
            partitions,
            assignments,
            positions,
            ends,
        })
    }

    /// Reads on in the tables; at their ends the partitions are read. Tells whether they are.
    fn read_tables(&mut self, restore: &mut Restore) -> Result<bool, Error> {
        let Step::Tables(told) = &mut restore.step else {
            return Ok(false);
        };
        if let Some(side) = &self.side {
            let position = |table: &TopicPartition| side.position(table);
            told.ends
                .retain(|table, end| position(table).is_none_or(|position| position < *end));
        }
        if !told.ends.is_empty() {
            self.poll_side(TABLE_TIMEOUT).map_err(anew)?;
            return Ok(false);
        }
        self.consumer.assign(&told.positions).map_err(anew)?;
        self.open_reread().map_err(anew)?;
        self.active = std::mem::take(&mut told.partitions);
        self.commit_now = false;
        for (partition, assignment) in self.active.iter().zip(std::mem::take(&mut told.assignments)) {
            match assignment.committed {
                Some(committed) => {
                    self.committed.insert(partition.clone(), committed);
                }
                // Where a first start reads from is decided once: it must outlive a crash before the first record.
                None => self.commit_now = true,
            }
        }
        self.last_commit_ms = self.now_ms();
        self.next_tick_ms = 0;
        self.next_count_ms = 0;
        Ok(true)
    }

    /// Every partition of every table; a topic that is not there yet is waited for.
    fn table_partitions(&mut self) -> Result<Vec<TopicPartition>, Error> {
        let mut found = Vec::new();
        self.table_counts.clear();
        for topic in self.stage.tables() {
            let count = self.broker.partition_count(&topic)?;
            let count = count.ok_or_else(|| Error::retriable("table", format!("there is no topic {topic}")))?;
            found.extend(crate::partitions_of(&topic, count));
            self.table_counts.push((topic.into(), count));
        }
        Ok(found)
    }

    fn describe(&mut self, partition: &TopicPartition, committed: Option<Committed>) -> Result<Assignment, Error> {
        let (low, high) = self.broker.watermarks(partition)?;
        let partition_count = self
            .broker
            .partition_count(&partition.topic)?
            .ok_or_else(|| Error::retriable("metadata", format!("topic {} is not known", partition.topic)))?;
        let start_offset = match self.stage.start(&partition.topic) {
            Start::Earliest => low,
            Start::Latest => high,
            Start::Timestamp(ms) => self
                .consumer
                .offset_for_time(partition, ms, STEP_TIMEOUT)?
                .unwrap_or(high),
        };
        let lookback_offset = match self.stage.lookback(partition, committed.as_ref()) {
            Some(ms) => self.consumer.offset_for_time(partition, ms, STEP_TIMEOUT)?,
            None => None,
        };
        Ok(Assignment {
            committed,
            start_offset,
            lookback_offset,
            log_start_offset: low,
            log_end_offset: high,
            partition_count,
        })
    }

    /// Opens side inputs and tables; where the tables end.
    fn assign_side(
        &mut self,
        partitions: &[TopicPartition],
        tables: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, i64>, Error> {
        let sides: BTreeSet<TopicPartition> = partitions
            .iter()
            .flat_map(|partition| self.stage.side_inputs(partition))
            .collect();
        let sides: Vec<TopicPartition> = sides.into_iter().collect();
        self.open_side(&sides, tables)
    }

    /// Begins to read `sides` where the stage says, and `tables` from their beginning; where the tables end.
    pub(super) fn open_side(
        &mut self,
        sides: &[TopicPartition],
        tables: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, i64>, Error> {
        self.side = None;
        let mut ends = BTreeMap::new();
        let mut positions = Vec::new();
        for table in tables {
            let (low, high) = self.broker.watermarks(table)?;
            positions.push((table.clone(), low));
            if low < high {
                ends.insert(table.clone(), high);
            }
        }
        for side in sides {
            let (low, high) = self.broker.watermarks(side)?;
            let position = match self.stage.side_position(side) {
                SidePosition::Beginning => low,
                SidePosition::End => high,
                SidePosition::Offset(offset) => offset,
            };
            if !(low..=high).contains(&position) {
                let reason = format!("its state names offset {position} of {side}, which holds {low} to {high}");
                let owner = self
                    .assigned
                    .iter()
                    .find(|owner| self.stage.side_inputs(owner).contains(side));
                return Err(match owner.cloned() {
                    Some(owner) => self.stop_partition(owner, reason),
                    None => Error::abort("side input", reason),
                });
            }
            positions.push((side.clone(), position));
        }
        if positions.is_empty() {
            return Ok(ends);
        }
        let client_id = format!("{}-side", self.config.client_id);
        let mut consumer = self.broker.consumer(&ConsumerConfig::new(client_id, None))?;
        consumer.assign(&positions)?;
        self.side = Some(consumer);
        Ok(ends)
    }
}

/// What may pass by itself makes no difference once the stage has been told: the restore starts anew.
fn anew(error: Error) -> Error {
    match error.class() {
        Class::Retriable => Error::abort("restore", error),
        _ => error,
    }
}

impl StateRead {
    /// Rule 18: the position, not the last stable offset, has passed the high watermark taken after the offsets were stable.
    fn is_complete(&self) -> bool {
        self.ends
            .iter()
            .all(|(partition, end)| self.reader.position(partition).is_some_and(|position| position >= *end))
    }
}

/// Why an offset cannot be read from, with the operator's choices.
fn out_of_range(offset: i64, assignment: &Assignment) -> Option<String> {
    let (low, high) = (assignment.log_start_offset, assignment.log_end_offset);
    if offset < low {
        return Some(format!(
            "it must be read from offset {offset}, but retention has removed everything below {low}: stop all instances, \
             then reset the group's offset (kafka-consumer-groups.sh --reset-offsets) to accept the gap, and raise retention.ms"
        ));
    }
    if offset > high {
        return Some(format!(
            "it must be read from offset {offset}, but the log ends at {high}: the topic seems to have been deleted and created \
             anew; stop all instances and reset the group's offset to go on with the new one"
        ));
    }
    None
}
