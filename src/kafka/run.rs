//! The transactional loop: one thread, one stage, one consumer, one producer.
//!
//! Owns polling, assignment, restore, pausing, the clock, the transaction and the crash points; knows nothing of telemetry.
//! Promises that outputs, state and offsets become visible together (or, on a broker without transactions, offsets after
//! outputs), that no transaction spans a change of assignment, and that after any abort every partition is restored as if
//! newly assigned. An unreachable broker is waited for, for ever, with bounded back-off; a partition that cannot be restored
//! stands still with a message while the others go on; only a broken stage or a refused configuration ends the loop.
//!
//! [`run_stage`] is `while turn()`; a simulation calls [`StageLoop::turn`] itself and so interleaves many loops in one thread.

mod commit;
mod reread;
mod restore;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use protocol::{Batch, Committed, Output, Outputs, SidePosition, Stage, StageError, TopicPartition};
use tracing::{info, warn};

use crate::{
    Broker, Class, Clock, Consumer, ConsumerConfig, Error, GroupMetadata, Observer, Polled, Producer, Shutdown,
    SystemClock,
    broker::pause_only,
    crash::{CrashPoint, Point},
};
use reread::Reread;
use restore::Restore;

/// First and longest wait after a failure that may pass.
const BACKOFF_MS: std::ops::RangeInclusive<i64> = 50..=5_000;
/// How often the partition counts of the inputs are looked up.
const PARTITION_COUNT_INTERVAL_MS: i64 = 5_000;
const SAMPLE_INTERVAL_MS: i64 = 1_000;
/// How long one turn may wait for what is read again.
const REREAD_TIMEOUT: Duration = Duration::from_millis(10);
/// Who has waited for partitions so long follows what is said meanwhile.
const IDLE_AFTER_MS: i64 = 3_000;

/// How a loop runs. Two processes may run with equal configurations: nothing in it names the instance.
#[derive(Clone)]
pub struct LoopConfig {
    /// Consumer group, one per stage and fleet.
    pub group: String,
    /// Begins the client ids and the transactional ids.
    pub client_id: String,
    /// Completes the transactional id; `None` draws one, which is what every real process does. A simulation names its own, to be deterministic.
    pub instance: Option<String>,
    /// The longest time without a commit while positions move.
    pub commit_interval_ms: i64,
    /// The shortest time between commits while there is output that is not urgent.
    pub output_interval_ms: i64,
    pub tick_interval_ms: i64,
    /// A transaction with more output than this is committed at once, bytes.
    pub transaction_bytes_max: usize,
    pub transaction_timeout_ms: u32,
    pub session_timeout_ms: u32,
    pub clock: Arc<dyn Clock>,
    /// For tests only.
    pub crash: Option<CrashPoint>,
    /// For tests only.
    pub switches: Switches,
}

impl LoopConfig {
    pub fn new(group: impl Into<String>) -> Self {
        let group = group.into();
        Self {
            client_id: group.clone(),
            group,
            instance: None,
            commit_interval_ms: 1_000,
            output_interval_ms: 50,
            tick_interval_ms: 100,
            transaction_bytes_max: 16 << 20,
            transaction_timeout_ms: 10_000,
            session_timeout_ms: 10_000,
            clock: Arc::new(SystemClock),
            crash: None,
            switches: Switches::default(),
        }
    }
}

/// Safety taken away, to show that the tests notice. Never set outside them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// Transactions carry no offsets.
    pub skip_send_offsets: bool,
    /// Offsets are sent in nobody's name, whatever generation the member is at.
    pub skip_fencing: bool,
}

/// Whether a turn found something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Busy,
    Idle,
}

/// Runs a stage until shutdown is requested, then drains: a final tick, a final commit, leaving the group.
pub fn run_stage(
    broker: Arc<dyn Broker>,
    stage: Box<dyn Stage>,
    config: LoopConfig,
    observer: &dyn Observer,
    shutdown: &Shutdown,
) -> Result<(), Error> {
    let wait = Duration::from_millis(config.tick_interval_ms.max(1) as u64);
    let mut stage_loop = StageLoop::new(broker, stage, config, observer)?;
    while !shutdown.is_requested() {
        if let Err(error) = stage_loop.turn(wait) {
            stage_loop.give_up();
            return Err(error);
        }
    }
    stage_loop.drain()
}

enum Phase {
    /// No assignment.
    Waiting,
    Restoring(Box<Restore>),
    Running,
}

/// The loop, one turn at a time.
pub struct StageLoop<'o> {
    broker: Arc<dyn Broker>,
    stage: Box<dyn Stage>,
    name: &'static str,
    config: LoopConfig,
    observer: &'o dyn Observer,
    consumer: Box<dyn Consumer>,
    /// Whether the consumer was made for a stage that looks at headers.
    reads_headers: bool,
    side: Option<Box<dyn Consumer>>,
    reread: Option<Reread>,
    /// A group member that never joined: the identity that `skip_fencing` commits with.
    nobody: Option<Box<dyn Consumer>>,
    producer: Option<Box<dyn Producer>>,
    transactional: bool,
    phase: Phase,
    /// What the group gave.
    assigned: Vec<TopicPartition>,
    /// What is being read: assigned, restored and not stopped.
    active: Vec<TopicPartition>,
    /// What the stage has heard of since it was last told to forget it.
    known: BTreeSet<TopicPartition>,
    /// Partitions of this assignment that stand still until an operator chooses.
    stopped: BTreeMap<TopicPartition, String>,
    paused: BTreeSet<TopicPartition>,
    committed: HashMap<TopicPartition, Committed>,
    batch: Batch,
    outputs: Outputs,
    /// Outputs of the open transaction.
    sent: Vec<Output>,
    sent_bytes: usize,
    transaction: Transaction,
    opened_ms: i64,
    /// Whether the open transaction, with output in it, has come past the crash point.
    reached: bool,
    window: Window,
    /// Commit without waiting for the interval: a first start must become durable.
    commit_now: bool,
    last_commit_ms: i64,
    /// How long the last commit took: it bounds how soon the next one may come.
    commit_took_ms: i64,
    next_tick_ms: i64,
    next_sample_ms: i64,
    next_count_ms: i64,
    partition_counts: Vec<(Arc<str>, i32)>,
    /// Of the tables that are read.
    table_counts: Vec<(Arc<str>, i32)>,
    /// Since when the group has given nothing; 0 until it is first seen.
    waiting_since_ms: i64,
    retry_at_ms: i64,
    backoff_ms: i64,
    producers_made: u64,
}

/// Whether a transaction is open, and in whose name.
enum Transaction {
    Closed,
    /// `None` where the broker has no transactions.
    Open(Option<GroupMetadata>),
}

/// What was read and how long the stage took since the last commit.
#[derive(Default)]
struct Window {
    records: u64,
    bytes: u64,
    step: Duration,
}

impl<'o> StageLoop<'o> {
    /// Joins the group; does not wait for the broker.
    pub fn new(
        broker: Arc<dyn Broker>,
        stage: Box<dyn Stage>,
        mut config: LoopConfig,
        observer: &'o dyn Observer,
    ) -> Result<Self, Error> {
        config.instance.get_or_insert_with(|| uuid::Uuid::new_v4().to_string());
        let name = stage.name();
        let reads_headers = stage.reads_headers();
        let consumer_config = consumer_config(&config, reads_headers);
        let mut consumer = broker.consumer(&consumer_config)?;
        let inputs = stage.inputs();
        consumer.subscribe(&inputs)?;
        let nobody = match config.switches.skip_fencing {
            true => Some(broker.consumer(&consumer_config)?),
            false => None,
        };
        let transactional = broker.capabilities().transactions;
        if !transactional {
            info!(
                stage = name,
                broker = broker.name(),
                "no transactions on this broker: the stage runs at least once"
            );
        }
        Ok(Self {
            broker,
            stage,
            name,
            observer,
            consumer,
            reads_headers,
            side: None,
            reread: None,
            nobody,
            producer: None,
            transactional,
            phase: Phase::Waiting,
            assigned: Vec::new(),
            active: Vec::new(),
            known: BTreeSet::new(),
            stopped: BTreeMap::new(),
            paused: BTreeSet::new(),
            committed: HashMap::new(),
            batch: Batch::default(),
            outputs: Outputs::default(),
            sent: Vec::new(),
            sent_bytes: 0,
            transaction: Transaction::Closed,
            opened_ms: 0,
            reached: false,
            window: Window::default(),
            commit_now: false,
            last_commit_ms: 0,
            commit_took_ms: 0,
            next_tick_ms: 0,
            next_sample_ms: 0,
            next_count_ms: 0,
            partition_counts: inputs.iter().map(|topic| (topic.as_str().into(), 0)).collect(),
            table_counts: Vec::new(),
            waiting_since_ms: 0,
            retry_at_ms: 0,
            backoff_ms: *BACKOFF_MS.start(),
            producers_made: 0,
            config,
        })
    }

    /// Partitions being read now.
    pub fn active(&self) -> &[TopicPartition] {
        &self.active
    }

    /// Partitions that stand still, and why.
    pub fn stopped(&self) -> &BTreeMap<TopicPartition, String> {
        &self.stopped
    }

    /// One poll and what follows from it. Waits at most `wait` for records.
    ///
    /// # Errors
    /// Only what waiting cannot mend: a broken stage, a refused configuration, a record that the broker will never take.
    pub fn turn(&mut self, wait: Duration) -> Result<Turn, Error> {
        match self.attempt(wait) {
            Ok(turn) => Ok(turn),
            Err(error) => self.recover(error).map(|()| Turn::Busy),
        }
    }

    /// Ends in order: a final tick and commit where there is an assignment, then leaves the group.
    ///
    /// What cannot be committed now is not lost: the next owner reads it again.
    pub fn drain(&mut self) -> Result<(), Error> {
        let result = match self.phase {
            Phase::Running => self.final_commit(),
            Phase::Waiting | Phase::Restoring(_) => Ok(()),
        };
        if let Err(error) = &result {
            warn!(stage = self.name, %error, "the last commit failed; its input will be read again");
            self.abort_open();
        }
        self.forget_everything();
        self.consumer.close();
        match result {
            Err(error) if error.class() == Class::Stop => Err(error),
            _ => Ok(()),
        }
    }

    /// Ends without a commit. An open transaction would hold back every reader of its topics until it timed out.
    fn give_up(&mut self) {
        self.abort_open();
        self.forget_everything();
        self.consumer.close();
    }

    fn attempt(&mut self, wait: Duration) -> Result<Turn, Error> {
        if self.now_ms() < self.retry_at_ms {
            let pause = (self.retry_at_ms - self.now_ms()).clamp(1, 100) as u64;
            self.config.clock.sleep(Duration::from_millis(pause).min(wait));
            return Ok(Turn::Idle);
        }
        match self.phase {
            Phase::Waiting => self.wait(wait),
            Phase::Restoring(_) => self.restore(),
            Phase::Running => self.run(wait),
        }
    }

    fn wait(&mut self, wait: Duration) -> Result<Turn, Error> {
        let mut batch = std::mem::take(&mut self.batch);
        let polled = self.consumer.poll(wait, &mut batch);
        self.batch = batch;
        match polled? {
            Polled::Idle | Polled::Records => self.follow_idle(),
            event => self.rebalance(event),
        }
    }

    /// The group has given nothing: what the stage follows all the same.
    fn follow_idle(&mut self) -> Result<Turn, Error> {
        let now_ms = self.now_ms();
        if self.waiting_since_ms == 0 {
            self.waiting_since_ms = now_ms;
        }
        if !self.assigned.is_empty() || now_ms - self.waiting_since_ms < IDLE_AFTER_MS {
            return Ok(Turn::Idle);
        }
        if self.side.is_none() {
            let places = self.stage.idle_inputs();
            if places.is_empty() {
                return Ok(Turn::Idle);
            }
            self.open_side(&places, &[])?;
        }
        if !self.poll_side(Duration::ZERO)? {
            return Ok(Turn::Idle);
        }
        if self.stage.is_changing() {
            self.change()?;
        }
        Ok(Turn::Busy)
    }

    fn run(&mut self, wait: Duration) -> Result<Turn, Error> {
        let until_tick = (self.next_tick_ms - self.now_ms()).max(0) as u64;
        let timeout = match self.reread {
            Some(_) => Duration::ZERO,
            None => wait.min(Duration::from_millis(until_tick)),
        };
        let mut batch = std::mem::take(&mut self.batch);
        let polled = self.consumer.poll(timeout, &mut batch);
        let stepped = match polled {
            Ok(Polled::Records) => self.reach(Point::AfterPoll).and_then(|()| self.step(&batch)),
            _ => Ok(()),
        };
        self.batch = batch;
        stepped?;
        let mut turn = match polled? {
            Polled::Records => Turn::Busy,
            Polled::Idle => Turn::Idle,
            event => return self.rebalance(event),
        };
        if self.poll_side(Duration::ZERO)? {
            turn = Turn::Busy;
        }
        if self.stage.is_changing() {
            self.change()?;
            return Ok(Turn::Busy);
        }
        // Where neither has anything, what is read again comes first: it has been there for long.
        let wait = match turn {
            Turn::Busy => Duration::ZERO,
            Turn::Idle => wait.min(REREAD_TIMEOUT),
        };
        if self.poll_reread(wait)? {
            turn = Turn::Busy;
        }
        if self.now_ms() >= self.next_tick_ms {
            self.tick()?;
        }
        self.apply_pauses()?;
        if self.commit_is_due() {
            self.commit(false)?;
        }
        self.sample();
        self.backoff_ms = *BACKOFF_MS.start();
        Ok(turn)
    }

    /// Answers a change of assignment, or a partition whose offset is gone.
    fn rebalance(&mut self, event: Polled) -> Result<Turn, Error> {
        match event {
            Polled::Records | Polled::Idle => {}
            Polled::Assigned(partitions) => {
                self.forget_everything();
                self.consumer.acknowledge()?;
                info!(stage = self.name, partitions = %list(&partitions), "assigned");
                self.stopped.clear();
                self.assigned = partitions;
                self.begin_restore();
            }
            Polled::Revoked { partitions, lost } => {
                let committed = match self.phase {
                    Phase::Running if !lost => self.final_commit(),
                    _ => Ok(()),
                };
                if let Err(error) = committed {
                    if error.class() == Class::Stop {
                        return Err(error);
                    }
                    self.report_abort(&error);
                }
                self.abort_open();
                self.forget_everything();
                self.assigned.clear();
                self.stopped.clear();
                self.phase = Phase::Waiting;
                self.consumer.acknowledge()?;
                info!(stage = self.name, partitions = %list(&partitions), lost, "revoked");
                self.observer.revoked(self.name, &partitions, lost);
            }
            Polled::OutOfRange(partition) => {
                let reason = "its offset is no longer in the log".to_owned();
                return Err(self.stop_partition(partition, reason));
            }
        }
        Ok(Turn::Busy)
    }

    /// Between two assignments the stage takes over what it has heard of. Who reads other topics afterwards joins the group anew.
    fn change(&mut self) -> Result<(), Error> {
        if matches!(self.phase, Phase::Running) {
            self.final_commit()?;
        }
        self.forget_everything();
        self.stage.change();
        let inputs = self.stage.inputs();
        let known = self.partition_counts.iter().map(|(topic, _)| &**topic);
        let same = known.eq(inputs.iter().map(String::as_str)) && self.reads_headers == self.stage.reads_headers();
        if same {
            self.begin_restore();
            return Ok(());
        }
        self.consumer.close();
        self.assigned.clear();
        self.stopped.clear();
        self.reads_headers = self.stage.reads_headers();
        self.partition_counts = inputs.iter().map(|topic| (topic.as_str().into(), 0)).collect();
        self.next_count_ms = 0;
        let mut consumer = self
            .broker
            .consumer(&consumer_config(&self.config, self.reads_headers))?;
        consumer.subscribe(&inputs)?;
        self.consumer = consumer;
        Ok(())
    }

    /// The last words of an assignment: the stage may tick once more, then everything is committed.
    fn final_commit(&mut self) -> Result<(), Error> {
        self.tick()?;
        self.commit(true).map(|_| ())
    }

    fn step(&mut self, batch: &Batch) -> Result<(), Error> {
        let started = Instant::now();
        let result = self.stage.step(batch, &mut self.outputs);
        self.window.step += started.elapsed();
        self.window.records += batch.len() as u64;
        self.window.bytes += batch.size() as u64;
        result.map_err(|error| self.stage_error(error))?;
        self.reach(Point::AfterStep)?;
        self.publish()
    }

    fn poll_side(&mut self, wait: Duration) -> Result<bool, Error> {
        let Some(mut side) = self.side.take() else {
            return Ok(false);
        };
        let mut batch = std::mem::take(&mut self.batch);
        let polled = side.poll(wait, &mut batch);
        let stepped = match &polled {
            Ok(Polled::Records) => self.step(&batch).map(|()| true),
            _ => Ok(false),
        };
        self.batch = batch;
        self.side = Some(side);
        let found = stepped?;
        match polled {
            Ok(Polled::OutOfRange(partition)) => {
                let table = self.table_counts.iter().any(|(topic, _)| *topic == partition.topic);
                if table || self.stage.side_position(&partition) == SidePosition::End {
                    let end = if table { "beginning" } else { "end" };
                    return Err(Error::abort(
                        "side input",
                        format!("{partition} is followed from its {end} again"),
                    ));
                }
                let owner = self
                    .active
                    .iter()
                    .find(|active| self.stage.side_inputs(active).contains(&partition));
                let reason = format!("its side input {partition} no longer holds the position that the state names");
                Err(match owner.cloned() {
                    Some(owner) => self.stop_partition(owner, reason),
                    None => Error::abort("side input", reason),
                })
            }
            Ok(_) => Ok(found),
            Err(error) => Err(error),
        }
    }

    fn tick(&mut self) -> Result<(), Error> {
        let now_ms = self.now_ms();
        self.next_tick_ms = now_ms + self.config.tick_interval_ms;
        if now_ms >= self.next_count_ms {
            self.next_count_ms = now_ms + PARTITION_COUNT_INTERVAL_MS;
            for (topic, count) in &mut self.partition_counts {
                // An unknown count is no count: the last one stands until the broker answers again.
                if let Ok(Some(known)) = self.broker.partition_count(topic) {
                    *count = known;
                }
            }
            for (topic, count) in &self.table_counts {
                if matches!(self.broker.partition_count(topic), Ok(Some(known)) if known > *count) {
                    return Err(Error::abort(
                        "table",
                        format!("{topic} has more partitions now: it is read anew"),
                    ));
                }
            }
        }
        let caught_up = self.consumer.caught_up();
        let clock = protocol::Clock {
            now_ms,
            caught_up: &caught_up,
            partition_counts: &self.partition_counts,
        };
        let started = Instant::now();
        let result = self.stage.tick(clock, &mut self.outputs);
        self.window.step += started.elapsed();
        result.map_err(|error| self.stage_error(error))?;
        self.publish()
    }

    fn apply_pauses(&mut self) -> Result<(), Error> {
        let wanted: BTreeSet<TopicPartition> = self
            .stage
            .paused()
            .into_iter()
            .filter(|partition| self.active.contains(partition))
            .collect();
        pause_only(&mut *self.consumer, &mut self.paused, wanted)
    }

    fn sample(&mut self) {
        let now_ms = self.now_ms();
        if now_ms < self.next_sample_ms {
            return;
        }
        self.next_sample_ms = now_ms + SAMPLE_INTERVAL_MS;
        let (observer, name) = (self.observer, self.name);
        self.stage
            .observe(&mut |metric, labels, value| observer.sample(name, metric, labels, value));
    }

    /// Decides what an error leads to. Returns it when nothing but stopping is left.
    fn recover(&mut self, error: Error) -> Result<(), Error> {
        match error.class() {
            Class::Stop => return Err(error),
            Class::Retriable => {
                warn!(stage = self.name, %error, retry_ms = self.backoff_ms, "broker not available; trying again");
            }
            Class::Abort | Class::Fatal => {
                self.report_abort(&error);
                if error.class() == Class::Fatal {
                    self.producer = None;
                }
                self.abort_open();
                self.forget_everything();
                if !self.assigned.is_empty() {
                    self.begin_restore();
                }
            }
        }
        self.retry_at_ms = self.now_ms() + self.backoff_ms;
        self.backoff_ms = (self.backoff_ms * 2).min(*BACKOFF_MS.end());
        Ok(())
    }

    fn report_abort(&self, error: &Error) {
        warn!(stage = self.name, %error, "transaction aborted; every partition is restored");
        self.observer.aborted(self.name, &error.to_string());
    }

    /// Invariant 3, nothing survives an abort: the stage forgets every partition, and nothing of them is read on.
    fn forget_everything(&mut self) {
        for partition in std::mem::take(&mut self.known) {
            self.stage.revoked(&partition);
        }
        if !self.active.is_empty() {
            // It fails only for a consumer that is closing, which reads nothing either.
            if let Err(error) = self.consumer.assign(&[]) {
                warn!(stage = self.name, %error, "cannot stop reading");
            }
        }
        self.active.clear();
        self.paused.clear();
        self.committed.clear();
        self.side = None;
        self.reread = None;
        self.waiting_since_ms = 0;
        self.outputs.records.clear();
        self.sent.clear();
        self.sent_bytes = 0;
        self.window = Window::default();
        if !matches!(self.phase, Phase::Waiting) {
            self.phase = Phase::Waiting;
        }
    }

    /// Notes that a partition stands still. The error it returns restores the others without it.
    fn stop_partition(&mut self, partition: TopicPartition, reason: String) -> Error {
        tracing::error!(stage = self.name, %partition, reason, "partition stopped: it needs an operator's choice");
        self.observer.stopped(self.name, &partition, &reason);
        self.stopped.insert(partition, reason);
        Error::abort("partition stopped", "the others are restored without it")
    }

    fn stage_error(&mut self, error: StageError) -> Error {
        match error {
            StageError::Partition { partition, reason } => self.stop_partition(partition, reason),
            StageError::Fatal(_) => Error::Stage {
                stage: self.name,
                source: error,
            },
        }
    }

    fn reach(&mut self, point: Point) -> Result<(), Error> {
        let records = self.sent.len();
        match &mut self.config.crash {
            Some(crash) => {
                self.reached |= records > 0 && crash.point == point;
                crash.reach(self.name, point, records)
            }
            None => Ok(()),
        }
    }

    fn now_ms(&self) -> i64 {
        self.config.clock.now_ms()
    }
}

fn consumer_config(config: &LoopConfig, headers: bool) -> ConsumerConfig {
    let instance = config.instance.as_deref().unwrap_or_default();
    let mut consumer = ConsumerConfig::new(format!("{}-{instance}", config.client_id), Some(&config.group));
    consumer.session_timeout_ms = config.session_timeout_ms;
    consumer.headers = headers;
    consumer
}

fn list(partitions: &[TopicPartition]) -> String {
    let names: Vec<String> = partitions.iter().map(ToString::to_string).collect();
    names.join(" ")
}
