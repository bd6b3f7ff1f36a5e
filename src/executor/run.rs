//! The edge: commands from the broker to the workers, reports and offsets back.
//!
//! One thread polls. A command goes to the pool under its target's key; when the pool is full the partitions are
//! paused and the records not taken are read again later, so nothing piles up. An offset is committed when every
//! record before it has had its final outcome written to the broker and to the ledger.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use kafka::{Broker, Class, Consumer, ConsumerConfig, Polled, Producer, ProducerConfig};
use protocol::{
    Batch, Output, Progress, Record, TopicPartition, Topics,
    cloudevent::{ACTION_CANCELLED, CloudEvent},
    dead_letter,
    message::{self, ActionCancelled},
};
use uuid::Uuid;

use crate::{
    Error,
    command::{Addressee, Command, Malformed, Reader, describe},
    control::ControlView,
    crash::CrashPoint,
    offsets::{Epoch, Offsets},
    pool::Pool,
    report::Reporter,
    trust::Trust,
    worker::{ControlSource, Worker},
};

const POLL: Duration = Duration::from_millis(100);
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const COMMIT_INTERVAL: Duration = Duration::from_millis(200);
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);
/// Bytes of a bad record that its dead letter keeps.
const DEAD_LETTER_BYTES: usize = 64 * 1024;

/// A request to drain and end.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// How the executor reads.
#[derive(Clone, Debug)]
pub struct Settings {
    pub topics: Topics,
    /// Where commands are read.
    pub actions_topic: String,
    pub group: String,
    pub client_id: String,
    pub threads: usize,
    /// Commands waiting or running.
    pub in_flight_max: usize,
    /// How long running actions may take to end when the process is to stop or loses its partitions.
    pub drain_timeout: Duration,
    /// A first start reads commands no older than this; older ones would only be refused.
    pub age_ms_max: i64,
    pub retention_ms: i64,
    /// Whose commands count.
    pub trust: Trust,
}

/// One record for the pool.
enum Task {
    Command(Box<Command>),
    Malformed(Malformed, Box<Output>),
    Cancelled(Uuid),
}

struct Job {
    epoch: Epoch,
    partition: TopicPartition,
    offset: i64,
    task: Task,
}

struct Done {
    epoch: Epoch,
    partition: TopicPartition,
    offset: i64,
    result: Result<(), Error>,
}

/// Waits until the fleet's topics exist: the processor creates them, the executor has no right to.
pub fn await_topics(broker: &dyn Broker, settings: &Settings, stop: &Stop) -> Result<(), Error> {
    let mut told = false;
    let topics = &settings.topics;
    for topic in [
        settings.actions_topic.clone(),
        topics.outcomes(),
        topics.control(),
        topics.dead_letters(),
    ] {
        while !stop.is_requested() {
            match broker.partition_count(&topic) {
                Ok(Some(_)) => break,
                Ok(None) if !told => {
                    tracing::warn!(%topic, "topic does not exist yet; waiting for `homeostat run` to create it");
                    told = true;
                }
                Ok(None) => {}
                Err(error) if error.class() == Class::Retriable => {
                    tracing::warn!(%error, "the broker cannot be asked yet");
                }
                Err(error) => return Err(refused("describing its topics", error)),
            }
            thread::sleep(RETRY_PAUSE);
        }
    }
    Ok(())
}

/// Runs until it is asked to stop. Then what runs is drained, what waits is left for the next start.
pub fn run(broker: Arc<dyn Broker>, worker: Arc<Worker>, settings: Settings, stop: &Stop) -> Result<(), Error> {
    let mut runner = Runner::new(broker, worker, settings)?;
    let mut ended = Ok(());
    while ended.is_ok() && !stop.is_requested() {
        ended = runner.turn(stop);
    }
    ended.and(runner.drain())
}

/// The loop, one turn at a time.
pub struct Runner {
    broker: Arc<dyn Broker>,
    consumer: Box<dyn Consumer>,
    worker: Arc<Worker>,
    settings: Settings,
    reader: Reader,
    pool: Pool<Vec<u8>, Job, Done>,
    batch: Batch,
    offsets: Offsets,
    /// Partitions paused because the pool was full, their first record not taken sought back to.
    held: HashSet<TopicPartition>,
    /// Commands finished since the last commit.
    finished: usize,
    committed_at: Instant,
    pruned_at: Option<Instant>,
}

impl Runner {
    /// Joins the group; does not wait for the broker.
    pub fn new(broker: Arc<dyn Broker>, worker: Arc<Worker>, settings: Settings) -> Result<Self, Error> {
        let config = ConsumerConfig::new(&settings.client_id, Some(&settings.group));
        let mut consumer = broker.consumer(&config).map_err(|error| refused("a consumer", error))?;
        consumer
            .subscribe(std::slice::from_ref(&settings.actions_topic))
            .map_err(|error| refused("the subscription", error))?;
        let carrier = Arc::clone(&worker);
        let pool = Pool::new(settings.threads, settings.in_flight_max, move |job: Job| Done {
            epoch: job.epoch,
            partition: job.partition,
            offset: job.offset,
            result: carry_out(&carrier, job.task),
        });
        Ok(Self {
            broker,
            consumer,
            worker,
            settings,
            reader: Reader::default(),
            pool,
            batch: Batch::default(),
            offsets: Offsets::default(),
            held: HashSet::new(),
            finished: 0,
            committed_at: Instant::now(),
            pruned_at: None,
        })
    }

    /// One poll and what follows from it.
    ///
    /// # Errors
    /// Only what waiting cannot mend.
    pub fn turn(&mut self, stop: &Stop) -> Result<(), Error> {
        let mut batch = std::mem::take(&mut self.batch);
        let polled = self.consumer.poll(POLL, &mut batch);
        let heard = self.hear(polled, &batch, stop);
        self.batch = batch;
        heard?;
        self.collect()?;
        self.release()?;
        let in_flight = self.settings.in_flight_max.saturating_sub(self.pool.room());
        self.worker.watch.alive(in_flight, self.held.len());
        if self.committed_at.elapsed() >= COMMIT_INTERVAL {
            self.commit()?;
        }
        self.prune()
    }

    fn hear(&mut self, polled: Result<Polled, kafka::Error>, batch: &Batch, stop: &Stop) -> Result<(), Error> {
        match polled {
            Ok(Polled::Records) => self.dispatch(batch),
            Ok(Polled::Idle) => Ok(()),
            Ok(Polled::Assigned(partitions)) => self.assign(&partitions, stop),
            Ok(Polled::Revoked { partitions, lost }) => self.revoke(&partitions, lost),
            Ok(Polled::OutOfRange(partition)) => self.restart_at_log_start(&partition, stop),
            Err(error) if error.class() == Class::Retriable => {
                tracing::warn!(%error, "the broker cannot be read; trying again");
                thread::sleep(RETRY_PAUSE);
                Ok(())
            }
            Err(error) => Err(refused("reading commands", error)),
        }
    }

    /// Waits for what runs or waits, as long as the drain may take, and commits what is finished. Whether all is.
    pub fn settle(&mut self) -> Result<bool, Error> {
        let settled = self.pool.settle(self.settings.drain_timeout);
        self.collect()?;
        self.commit()?;
        Ok(settled)
    }

    fn dispatch(&mut self, batch: &Batch) -> Result<(), Error> {
        // Withdrawals first: what they withdraw may stand in the same batch, and would begin at once.
        for cancelled in batch.iter().filter_map(|record| self.cancellation(&record)?.ok()) {
            self.worker.cancelled.insert(cancelled.action_id, cancelled.reason);
        }
        for record in batch.iter() {
            if self.held.contains(record.partition) {
                continue;
            }
            if self.pool.room() == 0 {
                self.hold(&record)?;
                continue;
            }
            self.offsets.begun(record.partition, record.offset);
            let job = Job {
                epoch: self.offsets.epoch(),
                partition: record.partition.clone(),
                offset: record.offset,
                task: self.task(&record),
            };
            self.pool.submit(record.key.unwrap_or_default().to_vec(), job);
        }
        Ok(())
    }

    fn task(&self, record: &Record<'_>) -> Task {
        let read = match self.cancellation(record) {
            Some(cancelled) => cancelled.map(|cancelled| Task::Cancelled(cancelled.action_id)),
            None => self.command(record).map(|command| Task::Command(Box::new(command))),
        };
        read.unwrap_or_else(|malformed| {
            let topic = self.settings.topics.dead_letters().into();
            let letter = dead_letter(&topic, "executor", record, &malformed.reason, DEAD_LETTER_BYTES);
            Task::Malformed(malformed, Box::new(letter))
        })
    }

    fn command(&self, record: &Record<'_>) -> Result<Command, Malformed> {
        let command = self.reader.read(record)?;
        let checked = self.settings.trust.check(record, (self.worker.now_ms)());
        checked.map_err(|reason| Malformed {
            reason: reason.to_string(),
            addressee: Some(Box::new(Addressee::from(&command))),
        })?;
        Ok(command)
    }

    /// A withdrawal, if the record is one. Nobody waits for an answer to it but the command's own.
    fn cancellation(&self, record: &Record<'_>) -> Option<Result<ActionCancelled, Malformed>> {
        if CloudEvent::kind_of(record) != Some(ACTION_CANCELLED) {
            return None;
        }
        let malformed = |reason: String| Malformed {
            reason,
            addressee: None,
        };
        let read = message::read::<ActionCancelled>("cancellation", record.value.unwrap_or_default());
        let read = read.map_err(|error| malformed(describe(&error))).and_then(|cancelled| {
            let checked = self.settings.trust.check(record, (self.worker.now_ms)());
            checked
                .map(|()| cancelled)
                .map_err(|reason| malformed(reason.to_string()))
        });
        Some(read)
    }

    /// The pool is full: this record and those behind it are read again when there is room.
    fn hold(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let partition = record.partition.clone();
        self.consumer
            .pause(std::slice::from_ref(&partition))
            .and_then(|()| self.consumer.seek(&partition, record.offset))
            .map_err(|error| refused("pausing a partition", error))?;
        self.held.insert(partition);
        Ok(())
    }

    fn release(&mut self) -> Result<(), Error> {
        if self.held.is_empty() || self.pool.room() <= self.settings.in_flight_max / 2 {
            return Ok(());
        }
        let held: Vec<TopicPartition> = self.held.drain().collect();
        self.consumer
            .resume(&held)
            .map_err(|error| refused("resuming a partition", error))
    }

    fn assign(&mut self, partitions: &[TopicPartition], stop: &Stop) -> Result<(), Error> {
        self.consumer
            .acknowledge()
            .map_err(|error| refused("taking partitions over", error))?;
        let Some(positions) = self.positions(partitions, stop)? else {
            return Ok(());
        };
        self.consumer
            .assign(&positions)
            .map_err(|error| refused("taking partitions over", error))?;
        tracing::info!(partitions = partitions.len(), "reading commands");
        self.held.clear();
        self.offsets.assigned(&positions);
        Ok(())
    }

    /// Where to go on. `None` when the process is to end.
    fn positions(
        &mut self,
        partitions: &[TopicPartition],
        stop: &Stop,
    ) -> Result<Option<Vec<(TopicPartition, i64)>>, Error> {
        while !stop.is_requested() {
            match self.try_positions(partitions) {
                Ok(positions) => return Ok(Some(positions)),
                Err(error) if error.class() == Class::Retriable => {
                    tracing::warn!(%error, "offsets cannot be read yet");
                    thread::sleep(RETRY_PAUSE);
                }
                Err(error) => return Err(refused("reading offsets", error)),
            }
        }
        Ok(None)
    }

    fn try_positions(&mut self, partitions: &[TopicPartition]) -> Result<Vec<(TopicPartition, i64)>, kafka::Error> {
        let committed = self.consumer.committed(partitions, BROKER_TIMEOUT)?;
        let mut positions = Vec::with_capacity(partitions.len());
        for (partition, committed) in partitions.iter().zip(committed) {
            let offset = match committed {
                Some(committed) => committed.offset,
                None => self.first_position(partition)?,
            };
            positions.push((partition.clone(), offset));
        }
        Ok(positions)
    }

    /// Where a first start reads from: the first command that is not too old. Where the broker does not stamp records
    /// with its own clock their age is not known, and all are read; what has expired is refused.
    fn first_position(&mut self, partition: &TopicPartition) -> Result<i64, kafka::Error> {
        let (start, end) = self.broker.watermarks(partition)?;
        if !self.broker.log_append_time(&partition.topic).unwrap_or(false) {
            return Ok(start);
        }
        let oldest_ms = (self.worker.now_ms)().saturating_sub(self.settings.age_ms_max);
        let found = self.consumer.offset_for_time(partition, oldest_ms, BROKER_TIMEOUT)?;
        Ok(found.unwrap_or(end))
    }

    /// Commands that were committed to be read and are gone from the log are too old to be carried out.
    fn restart_at_log_start(&mut self, partition: &TopicPartition, stop: &Stop) -> Result<(), Error> {
        let start = first_offset(&*self.broker, partition, stop)?;
        tracing::warn!(%partition, offset = start, "commands were deleted before they were read; going on behind them");
        self.consumer
            .seek(partition, start)
            .map_err(|error| refused("a seek", error))
    }

    /// What runs may end, what waits goes to the next owner.
    fn revoke(&mut self, partitions: &[TopicPartition], lost: bool) -> Result<(), Error> {
        tracing::info!(partitions = partitions.len(), lost, "partitions are taken back");
        self.pool.withdraw();
        if !lost {
            self.settle()?;
        }
        self.offsets.revoked();
        self.held.clear();
        self.worker.cancelled.clear();
        self.consumer
            .acknowledge()
            .map_err(|error| refused("giving partitions back", error))
    }

    fn collect(&mut self) -> Result<(), Error> {
        for done in self.pool.finished().ok_or(Error::WorkerDied)? {
            match done.result {
                Ok(()) => {
                    self.finished += 1;
                    self.offsets.finished(done.epoch, &done.partition, done.offset);
                }
                Err(Error::Stopped) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Error> {
        self.worker.crash.alive()?;
        self.committed_at = Instant::now();
        let offsets = self.offsets.committable();
        if offsets.is_empty() {
            return Ok(());
        }
        if self.finished > 0 {
            self.worker.crash.reach(CrashPoint::BeforeCommit)?;
        }
        let progress: Vec<Progress> = offsets
            .iter()
            .map(|(partition, offset)| Progress {
                partition: partition.clone(),
                offset: *offset,
                metadata: String::new(),
            })
            .collect();
        match self.consumer.commit(&progress) {
            Ok(()) => {
                self.finished = 0;
                self.offsets.committed(&offsets);
                Ok(())
            }
            // What is not committed is read again, and the ledger knows it.
            Err(error) if error.class() != Class::Stop => {
                tracing::warn!(%error, "offsets cannot be committed");
                Ok(())
            }
            Err(error) => Err(refused("the commit of offsets", error)),
        }
    }

    fn prune(&mut self) -> Result<(), Error> {
        if self.pruned_at.is_some_and(|at| at.elapsed() < PRUNE_INTERVAL) {
            return Ok(());
        }
        self.pruned_at = Some(Instant::now());
        let before_ms = (self.worker.now_ms)().saturating_sub(self.settings.retention_ms);
        let pruned = self.worker.ledger.prune(before_ms)?;
        tracing::debug!(pruned, "ledger entries past retention");
        Ok(())
    }

    /// The end: what waits is left, what runs is waited for.
    pub fn drain(&mut self) -> Result<(), Error> {
        let left = self.pool.withdraw().len();
        let settled = self.settle();
        self.consumer.close();
        tracing::info!(
            left,
            settled = settled.as_ref().is_ok_and(|settled| *settled),
            "drained"
        );
        settled.map(|_| ())
    }
}

fn carry_out(worker: &Worker, task: Task) -> Result<(), Error> {
    match task {
        Task::Command(command) => worker.carry_out(&command),
        Task::Cancelled(action) => {
            worker.cancelled.remove(action);
            Ok(())
        }
        Task::Malformed(malformed, letter) => {
            tracing::error!(reason = %malformed.reason, "a record on the actions topic is no command");
            worker.reporter.publish(*letter)?;
            worker.answer_malformed(&malformed)
        }
    }
}

fn refused(doing: &'static str, error: kafka::Error) -> Error {
    Error::Broker {
        doing,
        source: Box::new(error),
    }
}

/// Reports through one producer. A final report is sent until the broker has it; ids make repetitions harmless.
pub struct BrokerReporter {
    producer: Mutex<Box<dyn Producer>>,
    stop: Stop,
    /// How long a report may be retried once the process is to end.
    drain_timeout: Duration,
}

impl BrokerReporter {
    pub fn new(broker: &dyn Broker, settings: &Settings, stop: Stop) -> Result<Self, Error> {
        let producer = broker
            .producer(&ProducerConfig::new(&settings.client_id))
            .map_err(|error| refused("a producer", error))?;
        Ok(Self {
            producer: Mutex::new(producer),
            stop,
            drain_timeout: settings.drain_timeout,
        })
    }

    fn with<T>(&self, call: impl FnOnce(&mut dyn Producer) -> T) -> T {
        let mut producer = self.producer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        call(producer.as_mut())
    }
}

impl Reporter for BrokerReporter {
    fn announce(&self, output: Output) {
        if let Err(error) = self.with(|producer| producer.send(&output)) {
            tracing::warn!(%error, "a progress report was not sent");
        }
    }

    fn publish(&self, output: Output) -> Result<(), Error> {
        let mut stopping_since = None;
        loop {
            let sent = self.with(|producer| {
                producer.send(&output)?;
                producer.flush()
            });
            let error = match sent {
                Ok(()) => return Ok(()),
                Err(error) if error.class() == Class::Stop => return Err(refused("a report", error)),
                Err(error) => error,
            };
            tracing::warn!(%error, "a report was not delivered; sending it again");
            if self.stop.is_requested() {
                let since = *stopping_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= self.drain_timeout {
                    return Err(Error::Stopped);
                }
            }
            thread::sleep(RETRY_PAUSE);
        }
    }
}

/// The control topic, read to its end at every question: a kill switch engaged before the question is in the answer.
pub struct BrokerControl {
    broker: Arc<dyn Broker>,
    partition: TopicPartition,
    timeout: Duration,
    stop: Stop,
    reading: Mutex<Reading>,
}

struct Reading {
    consumer: Box<dyn Consumer>,
    batch: Batch,
    view: Arc<ControlView>,
    /// Next offset to be read.
    position: i64,
}

impl BrokerControl {
    pub fn new(broker: Arc<dyn Broker>, settings: &Settings, timeout: Duration, stop: Stop) -> Result<Self, Error> {
        let config = ConsumerConfig::new(format!("{}-control", settings.client_id), None);
        let mut consumer = broker.consumer(&config).map_err(|error| refused("a consumer", error))?;
        let partition = TopicPartition::new(settings.topics.control(), 0);
        let start = first_offset(&*broker, &partition, &stop)?;
        consumer
            .assign(&[(partition.clone(), start)])
            .map_err(|error| refused("the control topic", error))?;
        Ok(Self {
            broker,
            partition,
            timeout,
            stop,
            reading: Mutex::new(Reading {
                consumer,
                batch: Batch::default(),
                view: Arc::default(),
                position: start,
            }),
        })
    }

    fn read_to(&self, end: i64, deadline: Instant) -> Result<Option<Arc<ControlView>>, Error> {
        let mut reading = self.reading.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Reading {
            consumer,
            batch,
            view,
            position,
        } = &mut *reading;
        while *position < end {
            if self.stop.is_requested() {
                return Err(Error::Stopped);
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            match consumer.poll(POLL, batch) {
                Ok(Polled::Records) => {
                    for record in batch.iter() {
                        Arc::make_mut(view).apply(record.key.unwrap_or_default(), record.value);
                        *position = (*position).max(record.offset + 1);
                    }
                }
                Ok(Polled::OutOfRange(partition)) => {
                    let start = first_offset(&*self.broker, &partition, &self.stop)?;
                    consumer
                        .seek(&partition, start)
                        .map_err(|error| refused("the control topic", error))?;
                }
                Ok(_) => {}
                Err(error) if error.class() == Class::Retriable => thread::sleep(POLL),
                Err(error) => return Err(refused("reading the control topic", error)),
            }
            // Compaction and transaction markers leave offsets without records.
            *position = (*position).max(consumer.position(&self.partition).unwrap_or(0));
        }
        Ok(Some(Arc::clone(view)))
    }
}

/// Where a partition begins. A topic that was only just created may not have a leader yet: that is waited for.
fn first_offset(broker: &dyn Broker, partition: &TopicPartition, stop: &Stop) -> Result<i64, Error> {
    loop {
        match broker.watermarks(partition) {
            Ok((start, _)) => return Ok(start),
            Err(error) if error.class() == Class::Retriable && !stop.is_requested() => {
                tracing::warn!(%partition, %error, "the partition cannot be read yet");
                thread::sleep(RETRY_PAUSE);
            }
            Err(error) => return Err(refused("where a partition begins", error)),
        }
    }
}

impl ControlSource for BrokerControl {
    fn current(&self) -> Result<Option<Arc<ControlView>>, Error> {
        let deadline = Instant::now() + self.timeout;
        if self.stop.is_requested() {
            return Err(Error::Stopped);
        }
        match self.broker.watermarks(&self.partition) {
            Ok((_, end)) => self.read_to(end, deadline),
            Err(error) if error.class() == Class::Retriable => {
                tracing::warn!(%error, "the end of the control topic is not known");
                thread::sleep(RETRY_PAUSE);
                Ok(None)
            }
            Err(error) => Err(refused("the end of the control topic", error)),
        }
    }
}
