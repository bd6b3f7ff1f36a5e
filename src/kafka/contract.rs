//! What every broker must do: one list of cases, skipped by [`Capabilities`], whose results make a matrix.
//!
//! A case gets a broker and fresh names, and panics where the broker breaks its promise. Behind the feature `contract`.

#![allow(clippy::unwrap_used)]

mod cases;
mod group;
mod stage;
mod transaction;

pub use stage::Counter;

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use protocol::{Batch, Output, TopicPartition};

use crate::{
    Broker, Capabilities, Consumer, ConsumerConfig, Error, Polled, Producer, ProducerConfig, TopicConfig, partitions_of,
};

/// The longest that anything of a case may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Cases that run at once: most of their time is waiting for groups to form.
const THREADS: usize = 8;

/// A capability by name, and how to ask for it.
pub type Needs = (&'static str, fn(&Capabilities) -> bool);

/// One promise.
pub struct Case {
    pub name: &'static str,
    /// The capability that it needs, if any.
    pub needs: Option<Needs>,
    run: fn(&World),
}

/// How one case ended on one broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    /// The broker does not have this capability.
    Skipped(&'static str),
    Failed(String),
}

/// How all cases ended on one broker.
pub struct Report {
    pub broker: &'static str,
    pub outcomes: Vec<(&'static str, Outcome)>,
}

impl Report {
    /// # Panics
    /// When a case failed.
    pub fn assert_passed(&self) {
        let failed: Vec<String> = self
            .outcomes
            .iter()
            .filter_map(|(name, outcome)| match outcome {
                Outcome::Failed(reason) => Some(format!("{name}: {reason}")),
                Outcome::Passed | Outcome::Skipped(_) => None,
            })
            .collect();
        assert!(failed.is_empty(), "broken on {}:\n{}", self.broker, failed.join("\n"));
    }
}

/// Cases down, brokers across.
pub struct Matrix<'a>(pub &'a [Report]);

impl fmt::Display for Matrix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<64}", "")?;
        for report in self.0 {
            write!(f, "{:>10}", report.broker)?;
        }
        for case in cases() {
            write!(f, "\n{:<64}", case.name)?;
            for report in self.0 {
                let outcome = report.outcomes.iter().find(|(name, _)| *name == case.name);
                let text = match outcome.map(|(_, outcome)| outcome) {
                    Some(Outcome::Passed) => "yes",
                    Some(Outcome::Skipped(_)) => "-",
                    Some(Outcome::Failed(_)) => "BROKEN",
                    None => "?",
                };
                write!(f, "{text:>10}")?;
            }
        }
        Ok(())
    }
}

/// The whole contract.
pub fn cases() -> Vec<Case> {
    [cases::CASES, group::CASES, transaction::CASES, stage::CASES]
        .into_iter()
        .flatten()
        .map(|(name, needs, run)| Case {
            name,
            needs: *needs,
            run: *run,
        })
        .collect()
}

type Entry = (&'static str, Option<Needs>, fn(&World));

/// Runs every case that the broker claims to be able to.
pub fn run(broker: &Arc<dyn Broker>) -> Report {
    let cases = cases();
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(vec![None; cases.len()]);
    let salt = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    let Some(case) = cases.get(index) else { return };
                    let outcome = run_one(broker, case, &salt);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    Report {
        broker: broker.name(),
        outcomes: cases
            .iter()
            .zip(outcomes)
            .filter_map(|(case, outcome)| Some((case.name, outcome?)))
            .collect(),
    }
}

fn run_one(broker: &Arc<dyn Broker>, case: &Case, salt: &str) -> Outcome {
    if let Some((name, has)) = case.needs
        && !has(&broker.capabilities())
    {
        return Outcome::Skipped(name);
    }
    let world = World {
        broker: Arc::clone(broker),
        prefix: format!(
            "{}-{salt}",
            case.name.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
        ),
    };
    match catch_unwind(AssertUnwindSafe(|| (case.run)(&world))) {
        Ok(()) => Outcome::Passed,
        Err(panic) => Outcome::Failed(reason_of(&*panic)),
    }
}

fn reason_of(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "panicked".to_owned())
}

/// A broker, and names that no other case uses.
struct World {
    broker: Arc<dyn Broker>,
    prefix: String,
}

/// A record as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Read {
    partition: i32,
    offset: i64,
    timestamp_ms: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
}

impl World {
    fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Creates a topic stamped by its producers.
    fn topic(&self, name: &str, partitions: i32) -> String {
        let name = self.name(name);
        let config = TopicConfig {
            log_append_time: false,
            ..TopicConfig::new(&name, partitions)
        };
        patiently(|| self.broker.ensure_topics(std::slice::from_ref(&config)));
        name
    }

    fn reader(&self) -> Box<dyn Consumer> {
        self.broker
            .consumer(&ConsumerConfig::new(self.name("reader"), None))
            .unwrap()
    }

    fn reader_without_headers(&self) -> Box<dyn Consumer> {
        let mut config = ConsumerConfig::new(self.name("reader"), None);
        config.headers = false;
        self.broker.consumer(&config).unwrap()
    }

    /// A consumer that can read and commit offsets of a group.
    fn member(&self, group: &str) -> Box<dyn Consumer> {
        let group = self.name(group);
        let mut config = ConsumerConfig::new(self.name("member"), Some(&group));
        config.session_timeout_ms = 6_000;
        self.broker.consumer(&config).unwrap()
    }

    fn producer(&self) -> Box<dyn Producer> {
        self.broker
            .producer(&ProducerConfig::new(self.name("producer")))
            .unwrap()
    }

    fn transactional(&self, id: &str) -> Box<dyn Producer> {
        let mut config = ProducerConfig::transactional(self.name("producer"), self.name(id));
        // A slow machine is no broken promise.
        config.transaction_timeout_ms = 60_000;
        self.broker.producer(&config).unwrap()
    }

    /// Writes records outside transactions.
    fn write(&self, outputs: &[Output]) {
        let mut producer = self.producer();
        for output in outputs {
            patiently(|| producer.send(output));
        }
        patiently(|| producer.flush());
    }

    fn high(&self, partition: &TopicPartition) -> i64 {
        let mut high = 0;
        patiently(|| self.broker.watermarks(partition).map(|(_, found)| high = found));
        high
    }

    /// Everything that a read-committed consumer sees of a topic, once its positions have passed what is there now.
    fn read(&self, topic: &str, partitions: i32) -> Vec<Read> {
        self.read_by(&mut *self.reader(), topic, partitions)
    }

    fn read_by(&self, reader: &mut dyn Consumer, topic: &str, partitions: i32) -> Vec<Read> {
        let partitions = partitions_of(topic, partitions);
        let ends: Vec<i64> = partitions.iter().map(|partition| self.high(partition)).collect();
        let positions: Vec<_> = partitions.iter().map(|partition| (partition.clone(), 0)).collect();
        reader.assign(&positions).unwrap();
        let mut read = Vec::new();
        let mut batch = Batch::default();
        let started = Instant::now();
        while partitions
            .iter()
            .zip(&ends)
            .any(|(p, end)| reader.position(p).unwrap() < *end)
        {
            assert!(started.elapsed() < PATIENCE, "{topic} was not read to its end");
            if poll(reader, &mut batch) == Polled::Records {
                read.extend(copy(&batch));
            }
        }
        read.sort_by_key(|record| (record.partition, record.offset));
        read
    }
}

/// Calls until it succeeds: a broker that is still busy is no broken promise.
fn patiently(mut call: impl FnMut() -> Result<(), Error>) {
    let started = Instant::now();
    while let Err(error) = call() {
        let passing = error.class() == crate::Class::Retriable && started.elapsed() < PATIENCE;
        assert!(passing, "{error}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn poll(consumer: &mut dyn Consumer, batch: &mut Batch) -> Polled {
    match consumer.poll(Duration::from_millis(50), batch) {
        Ok(polled) => polled,
        Err(error) if error.class() == crate::Class::Retriable => Polled::Idle,
        Err(error) => panic!("poll: {error}"),
    }
}

fn copy(batch: &Batch) -> Vec<Read> {
    let read = |record: protocol::Record<'_>| Read {
        partition: record.partition.partition,
        offset: record.offset,
        timestamp_ms: record.timestamp_ms,
        key: record.key.map(<[u8]>::to_vec),
        value: record.value.map(<[u8]>::to_vec),
        headers: record.headers().map(|(n, v)| (n.to_owned(), v.to_vec())).collect(),
    };
    batch.iter().map(read).collect()
}

fn output(topic: &str, partition: Option<i32>, key: Option<&str>, value: Option<&str>) -> Output {
    Output {
        topic: topic.into(),
        partition,
        key: key.map(|key| key.as_bytes().to_vec()),
        value: value.map(|value| value.as_bytes().to_vec()),
        headers: Vec::new(),
    }
}

fn values(read: &[Read]) -> Vec<String> {
    read.iter()
        .map(|record| String::from_utf8_lossy(record.value.as_deref().unwrap_or(b"-")).into_owned())
        .collect()
}

/// Polls until `done`, failing after a while.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "waited in vain: {what}");
    }
}
