//! The loop itself on each broker: exactly once where there are transactions, at least once elsewhere.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use protocol::{
    Assignment, Batch, Output, Outputs, Progress, Stage, StageError, Start, TopicPartition, topic::Cleanup,
};

use super::{Entry, World, output, patiently, wait_until};
use crate::{LoopConfig, Shutdown, TopicConfig, run_stage};

pub(super) const CASES: &[Entry] = &[(
    "a stage counts every record, over restarts and rebalances",
    None,
    counts,
)];

/// Says a running number for every record of a key, and keeps the numbers as state.
pub struct Counter {
    input: String,
    output: Arc<str>,
    state: Arc<str>,
    partitions: BTreeMap<TopicPartition, Counted>,
}

#[derive(Default)]
struct Counted {
    counts: BTreeMap<Vec<u8>, u64>,
    dirty: BTreeMap<Vec<u8>, u64>,
    next: i64,
}

impl Counter {
    pub fn new(input: &str, output: &str, state: &str) -> Self {
        Self {
            input: input.to_owned(),
            output: output.into(),
            state: state.into(),
            partitions: BTreeMap::new(),
        }
    }
}

impl Stage for Counter {
    fn name(&self) -> &'static str {
        "counter"
    }

    fn inputs(&self) -> Vec<String> {
        vec![self.input.clone()]
    }

    fn start(&self, _topic: &str) -> Start {
        Start::Earliest
    }

    fn state_partition(&self, partition: &TopicPartition) -> Option<TopicPartition> {
        Some(TopicPartition::new(Arc::clone(&self.state), partition.partition))
    }

    fn restore(&mut self, partition: &TopicPartition, key: &[u8], value: Option<&[u8]>) -> Result<(), StageError> {
        let count = value
            .and_then(|v| std::str::from_utf8(v).ok())
            .and_then(|v| v.parse().ok());
        let counts = &mut self.partitions.entry(partition.clone()).or_default().counts;
        counts.insert(key.to_vec(), count.unwrap_or(0));
        Ok(())
    }

    fn assigned(&mut self, partition: &TopicPartition, assignment: &Assignment) -> Result<i64, StageError> {
        let counted = self.partitions.entry(partition.clone()).or_default();
        counted.next = assignment
            .committed
            .as_ref()
            .map_or(assignment.start_offset, |c| c.offset);
        Ok(counted.next)
    }

    fn revoked(&mut self, partition: &TopicPartition) {
        self.partitions.remove(partition);
    }

    fn step(&mut self, batch: &Batch, out: &mut Outputs) -> Result<(), StageError> {
        for record in batch.iter() {
            let counted = self.partitions.entry(record.partition.clone()).or_default();
            let key = record.key.unwrap_or_default().to_vec();
            let count = counted.counts.entry(key.clone()).or_default();
            *count += 1;
            counted.dirty.insert(key.clone(), *count);
            counted.next = record.offset + 1;
            out.push(Output {
                topic: Arc::clone(&self.output),
                partition: None,
                key: Some(key),
                value: Some(count.to_string().into_bytes()),
                headers: Vec::new(),
            });
        }
        Ok(())
    }

    fn before_commit(&mut self, out: &mut Outputs) -> Result<Vec<Progress>, StageError> {
        let mut progress = Vec::new();
        for (partition, counted) in &mut self.partitions {
            for (key, count) in std::mem::take(&mut counted.dirty) {
                out.push(Output {
                    topic: Arc::clone(&self.state),
                    partition: Some(partition.partition),
                    key: Some(key),
                    value: Some(count.to_string().into_bytes()),
                    headers: Vec::new(),
                });
            }
            progress.push(Progress {
                partition: partition.clone(),
                offset: counted.next,
                metadata: String::new(),
            });
        }
        Ok(progress)
    }
}

fn counts(world: &World) {
    let (input, result, state) = (world.topic("in", 4), world.topic("out", 2), world.name("state"));
    let compacted = TopicConfig {
        cleanup: Cleanup::Compact,
        ..TopicConfig::new(&state, 4)
    };
    patiently(|| world.broker.ensure_topics(std::slice::from_ref(&compacted)));
    let start = || {
        let stage = Counter::new(&input, &result, &state);
        let shutdown = Shutdown::new();
        let mut config = LoopConfig::new(world.name("group"));
        config.session_timeout_ms = 6_000;
        let thread = std::thread::spawn({
            let (broker, shutdown) = (Arc::clone(&world.broker), shutdown.clone());
            move || run_stage(broker, Box::new(stage), config, &(), &shutdown)
        });
        (shutdown, thread)
    };
    let stop = |(shutdown, thread): (Shutdown, std::thread::JoinHandle<Result<(), crate::Error>>)| {
        shutdown.request();
        thread.join().unwrap().unwrap();
    };
    let mut written = 0;
    let mut write = |count: usize| {
        let outputs: Vec<_> = (0..count)
            .map(|n| {
                let key = format!("key{}", (written + n) % 10);
                output(&input, None, Some(&key), Some("v"))
            })
            .collect();
        written += count;
        world.write(&outputs);
        written
    };
    let seen = |at_least: usize| {
        let mut read = Vec::new();
        wait_until("the outputs", || {
            std::thread::sleep(Duration::from_millis(50));
            read = world.read(&result, 2);
            read.len() >= at_least
        });
        read
    };
    let first = start();
    seen(write(500));
    let second = start();
    write(500);
    std::thread::sleep(Duration::from_secs(1));
    seen(write(500));
    stop(first);
    seen(write(500));
    stop(second);
    let third = start();
    let total = write(500);
    // Records may count again where there are no transactions: it is complete when the last number of every key is there.
    let last = total as u64 / 10;
    let mut counts: BTreeMap<Vec<u8>, Vec<u64>> = BTreeMap::new();
    wait_until("the last number of every key", || {
        counts.clear();
        for record in seen(total) {
            let count = String::from_utf8(record.value.unwrap()).unwrap().parse().unwrap();
            counts.entry(record.key.unwrap()).or_default().push(count);
        }
        counts.len() == 10 && counts.values().all(|counts| counts.iter().max() >= Some(&last))
    });
    stop(third);
    let expected: Vec<u64> = (1..=last).collect();
    for (key, mut counts) in counts {
        if !world.broker.capabilities().transactions {
            // At least once: some records may count again, none is missing.
            counts.sort_unstable();
            counts.dedup();
            counts.truncate(expected.len());
        }
        assert_eq!(counts, expected, "{}", String::from_utf8_lossy(&key));
    }
}
