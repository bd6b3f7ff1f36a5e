//! The transaction: opened by its first output, committed with the position of every partition.

use std::time::{Duration, Instant};

use protocol::{Progress, TopicPartition};

use super::{StageLoop, Transaction, Window};
use crate::{
    Class, Commit, Error, GroupMetadata, Producer, ProducerConfig,
    crash::{CrashPoint, Point},
};

/// What a committed offset's metadata may hold (`offset.metadata.max.bytes` of the broker), bytes.
const METADATA_BYTES_MAX: usize = 4_096;
/// How often a call that may succeed later is tried before its transaction is given up.
const ATTEMPTS_MAX: u32 = 50;
/// Behind a backlog, commits that follow one another take at most one part in so many of the loop's time: the stage would
/// otherwise wait for the broker more than it works.
const COMMIT_SHARE: i64 = 20;
/// How long a transaction is held open for a test.
const HOLD_MAX_MS: i64 = 3_000;

impl StageLoop<'_> {
    /// Sends what the stage has said into the transaction, opening it if need be.
    pub(super) fn publish(&mut self) -> Result<(), Error> {
        if self.outputs.records.is_empty() {
            return Ok(());
        }
        self.open()?;
        let mut producer = self.take_producer()?;
        let mut result = Ok(());
        for output in self.outputs.records.drain(..) {
            result = retry(&*self.config.clock, || producer.send(&output));
            if result.is_err() {
                break;
            }
            self.sent_bytes += size(&output);
            self.sent.push(output);
        }
        if result.is_ok() && self.config.crash.is_some() {
            // A test that dies with a transaction open wants its records on the broker, not in a queue.
            result = retry(&*self.config.clock, || producer.flush());
        }
        self.producer = Some(producer);
        result?;
        self.reach(Point::AfterProduce)
    }

    pub(super) fn commit_is_due(&self) -> bool {
        let elapsed_ms = self.now_ms() - self.last_commit_ms;
        let has_output = !self.sent.is_empty();
        // A stage may hold what it has to say until `before_commit`, when the offset that it names is known.
        // With a crash point set nothing is urgent: a test wants transactions to be open for a while.
        let wants_to = (has_output && elapsed_ms >= self.config.output_interval_ms)
            || (self.config.crash.is_none() && self.stage.urgent());
        self.commit_now
            || elapsed_ms >= self.config.commit_interval_ms
            || self.sent_bytes > self.config.transaction_bytes_max
            || (wants_to && elapsed_ms >= self.spacing_ms())
    }

    /// The least time between two commits. Who reads at the end of every partition has time to wait for the broker, and somebody
    /// waits for what is committed.
    fn spacing_ms(&self) -> i64 {
        match self.consumer.caught_up().len() < self.active.len() {
            true => self.commit_took_ms * COMMIT_SHARE,
            false => self.commit_took_ms,
        }
    }

    /// Commits outputs and positions, if either changed. Tells whether it did. `last`: there is no next turn to wait for.
    pub(super) fn commit(&mut self, last: bool) -> Result<bool, Error> {
        if !last && self.waits_to_die() {
            return Ok(false);
        }
        let (started, started_ms) = (Instant::now(), self.now_ms());
        self.last_commit_ms = started_ms;
        self.commit_now = false;
        let progress = self
            .stage
            .before_commit(&mut self.outputs)
            .map_err(|error| self.stage_error(error))?;
        self.check(&progress)?;
        let moved = progress.iter().any(|p| {
            self.committed
                .get(&p.partition)
                .is_none_or(|committed| committed.offset != p.offset || committed.metadata != p.metadata)
        });
        if self.outputs.records.is_empty() && self.sent.is_empty() && !moved {
            return Ok(false);
        }
        self.publish()?;
        if !last && self.waits_to_die() {
            return Ok(false);
        }
        match self.transactional {
            true => self.commit_transaction(&progress)?,
            false => self.commit_at_least_once(&progress)?,
        }
        self.transaction = Transaction::Closed;
        self.commit_took_ms = self.now_ms() - started_ms;
        self.stage.committed();
        self.report(&progress, started.elapsed());
        let died = self.reach(Point::AfterCommit);
        self.sent.clear();
        self.sent_bytes = 0;
        self.window = Window::default();
        for p in progress {
            let committed = protocol::Committed {
                offset: p.offset,
                metadata: p.metadata,
            };
            self.committed.insert(p.partition, committed);
        }
        died.map(|()| true)
    }

    /// A stage that commits in the turn in which it speaks has no transaction open when it polls. Where a test wants it to die
    /// there, the transaction stays open until records have come, but not for ever.
    fn waits_to_die(&self) -> bool {
        let between_polls = |crash: &CrashPoint| crash.is_between_polls(self.name);
        self.config.crash.as_ref().is_some_and(between_polls)
            && !self.reached
            && !self.sent.is_empty()
            && self.now_ms() - self.opened_ms < HOLD_MAX_MS
    }

    fn commit_transaction(&mut self, progress: &[Progress]) -> Result<(), Error> {
        self.open()?;
        let group = self.commit_identity()?;
        let mut producer = self.take_producer()?;
        let clock = std::sync::Arc::clone(&self.config.clock);
        let result = (|| {
            if !self.config.switches.skip_send_offsets && !progress.is_empty() {
                retry(&*clock, || producer.send_offsets(progress, &group))?;
            }
            self.reach(Point::AfterSendOffsets)?;
            retry(&*clock, || producer.flush())?;
            self.reach(Point::BeforeCommit)?;
            retry(&*clock, || producer.commit())
        })();
        self.producer = Some(producer);
        result
    }

    /// Outputs first, offsets second: a crash between them repeats outputs and loses none.
    fn commit_at_least_once(&mut self, progress: &[Progress]) -> Result<(), Error> {
        let mut producer = self.take_producer()?;
        let clock = std::sync::Arc::clone(&self.config.clock);
        let result = (|| {
            retry(&*clock, || producer.flush())?;
            self.reach(Point::AfterSendOffsets)?;
            self.reach(Point::BeforeCommit)?;
            match self.config.switches.skip_send_offsets || progress.is_empty() {
                true => Ok(()),
                false => retry(&*clock, || self.consumer.commit(progress)),
            }
        })();
        self.producer = Some(producer);
        result
    }

    /// Invariant 4, fencing: the member at the generation that the transaction was begun with, or nobody.
    fn commit_identity(&mut self) -> Result<GroupMetadata, Error> {
        let no_group = || Error::abort("commit", "this consumer is no member of its group");
        if let Some(nobody) = &mut self.nobody {
            return nobody.group_metadata().ok_or_else(no_group);
        }
        let now = self.consumer.group_metadata().ok_or_else(no_group)?;
        let same = match &self.transaction {
            Transaction::Open(Some(begun)) => now.is_member() && now.is_same(begun),
            Transaction::Open(None) | Transaction::Closed => false,
        };
        match same {
            true => Ok(now),
            false => Err(Error::abort(
                "commit",
                format!("the group moved on to {now:?} while the transaction was open"),
            )),
        }
    }

    fn open(&mut self) -> Result<(), Error> {
        if matches!(self.transaction, Transaction::Open(_)) {
            return Ok(());
        }
        let mut producer = self.take_producer()?;
        let result = match self.transactional {
            true => retry(&*self.config.clock, || producer.begin()),
            false => Ok(()),
        };
        self.producer = Some(producer);
        result?;
        let group = match self.transactional {
            true => self.consumer.group_metadata(),
            false => None,
        };
        self.transaction = Transaction::Open(group);
        self.opened_ms = self.now_ms();
        self.reached = false;
        Ok(())
    }

    /// Ends an open transaction without its effects, however the broker answers: what cannot be aborted now times out.
    pub(super) fn abort_open(&mut self) {
        if let Transaction::Closed = std::mem::replace(&mut self.transaction, Transaction::Closed) {
            return;
        }
        if !self.transactional {
            // Whatever still sits in the queue of a broken batch need not go out.
            self.producer = None;
            return;
        }
        let Some(mut producer) = self.producer.take() else {
            return;
        };
        match retry(&*self.config.clock, || producer.abort()) {
            Ok(()) => self.producer = Some(producer),
            Err(error) => tracing::warn!(stage = self.name, %error, "cannot abort; a new producer takes over"),
        }
    }

    fn take_producer(&mut self) -> Result<Box<dyn Producer>, Error> {
        if let Some(producer) = self.producer.take() {
            return Ok(producer);
        }
        let instance = self.config.instance.as_deref().unwrap_or_default();
        let id = format!("{}-{instance}-{}", self.config.client_id, self.producers_made);
        self.producers_made += 1;
        let mut config = ProducerConfig::new(&id);
        config.transaction_timeout_ms = self.config.transaction_timeout_ms;
        if self.transactional {
            config.transactional_id = Some(id);
        }
        self.broker.producer(&config)
    }

    /// Invariant 2: every partition that the instance owns has its position in the transaction.
    fn check(&self, progress: &[Progress]) -> Result<(), Error> {
        let broken = |reason: String| Error::Stage {
            stage: self.name,
            source: protocol::StageError::Fatal(reason),
        };
        for partition in &self.active {
            if !progress.iter().any(|p| p.partition == *partition) {
                return Err(broken(format!("no position for {partition} before the commit")));
            }
        }
        for p in progress {
            if !self.active.contains(&p.partition) {
                return Err(broken(format!("a position for {}, which is not assigned", p.partition)));
            }
            if p.metadata.len() > METADATA_BYTES_MAX {
                let length = p.metadata.len();
                return Err(broken(format!("{} bytes of metadata for {}", length, p.partition)));
            }
        }
        Ok(())
    }

    fn report(&self, progress: &[Progress], took: Duration) {
        let lag: Vec<(TopicPartition, i64)> = progress
            .iter()
            .filter_map(|p| {
                let high = self.consumer.high_watermark(&p.partition)?;
                let position = self.consumer.position(&p.partition)?;
                Some((p.partition.clone(), (high - position).max(0)))
            })
            .collect();
        self.observer.committed(&Commit {
            stage: self.name,
            outputs: &self.sent,
            records: self.window.records,
            bytes: self.window.bytes,
            step_s: self.window.step.as_secs_f64(),
            commit_s: took.as_secs_f64(),
            lag: &lag,
            now_ms: self.now_ms(),
        });
    }
}

/// Repeats a call while it may still succeed. What does not in the end leaves the producer in doubt: that is fatal to it.
fn retry(clock: &dyn crate::Clock, mut call: impl FnMut() -> Result<(), Error>) -> Result<(), Error> {
    let deadline = Instant::now() + Duration::from_secs(15);
    let mut wait = Duration::from_millis(5);
    for _ in 0..ATTEMPTS_MAX {
        match call() {
            Err(error) if error.class() == Class::Retriable => {
                tracing::debug!(%error, "trying again");
                if Instant::now() >= deadline {
                    return Err(Error::fatal("transaction given up", error));
                }
                clock.sleep(wait);
                wait = (wait * 2).min(Duration::from_millis(500));
            }
            result => return result,
        }
    }
    Err(Error::fatal(
        "transaction given up",
        format!("{ATTEMPTS_MAX} attempts failed"),
    ))
}

fn size(output: &protocol::Output) -> usize {
    let headers: usize = output
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    output.key.as_ref().map_or(0, Vec::len) + output.value.as_ref().map_or(0, Vec::len) + headers
}
