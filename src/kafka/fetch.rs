//! Reads partitions from the brokers that lead them, beside librdkafka's client.
//!
//! The library allocates, queues and hands over each message on its own, which costs five times what reading whole answers does
//! (`docs/decisions/0011`). So it keeps the group, its offsets and everything that is written, and records come this way: a thread
//! for each broker asks (`reader.rs`), checks and unpacks; the loop's thread takes whole answers and walks their records into
//! its [`Batch`] where they lie (`records.rs`).
//!
//! Every assignment, seek and pause gives a partition a new *version*, and what was asked for under an older one is dropped when it
//! comes: nothing that was read ahead outlives what it was read for.

mod connection;
mod reader;
mod records;
mod request;
#[cfg(test)]
mod testing;
mod wire;

use std::{
    collections::{BTreeMap, VecDeque},
    net::{Shutdown, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use protocol::{Batch, TopicPartition};

use self::records::RecordBatch;
use crate::{Error, KafkaConfig};

/// A poll takes no further answer once it has this much.
const POLL_BYTES: usize = 1 << 20;
/// Buffers kept to be read into, and how large one may have grown.
const SPARE_MAX: usize = 4;
const SPARE_BYTES_MAX: usize = 4 << 20;

/// The reading half of a consumer. Connects when there is something to read; used by one thread.
pub(crate) struct Fetcher {
    shared: Arc<Shared>,
    positions: BTreeMap<TopicPartition, Position>,
    out_of_range: VecDeque<TopicPartition>,
    with_headers: bool,
    /// The thread that finds leaders runs, and starts the others.
    started: bool,
}

/// A partition as its user sees it.
struct Position {
    /// Next offset to be handed out.
    offset: i64,
    version: u64,
    caught_up: bool,
    paused: bool,
    high_watermark: Option<i64>,
    /// Why it cannot be read, once that was told.
    failure: Option<String>,
}

/// What the threads share.
struct Shared {
    config: KafkaConfig,
    client_id: String,
    read_committed: bool,
    state: Mutex<State>,
    /// There is something to ask for, or the end.
    asking: Condvar,
    /// There is news.
    telling: Condvar,
}

#[derive(Default)]
struct State {
    partitions: BTreeMap<TopicPartition, Asked>,
    /// Id and epoch of the leaders known.
    leaders: BTreeMap<TopicPartition, (i32, i32)>,
    /// Of each broker that has a thread.
    addresses: BTreeMap<i32, String>,
    /// What ends a read that waits, of each thread that has connected.
    breakers: BTreeMap<i32, TcpStream>,
    news: VecDeque<News>,
    /// Bytes of answers among the news.
    held_bytes: usize,
    spare: Vec<Vec<u8>>,
    version: u64,
    /// Counts answers, so that partitions take turns.
    turn: u64,
    closed: bool,
}

/// A partition as it is asked for.
#[derive(Clone, Debug)]
struct Asked {
    /// Next offset to be asked for.
    next: i64,
    version: u64,
    paused: bool,
    /// A request for it is under way.
    under_way: bool,
    /// The last answer brought records, and left some.
    behind: bool,
    /// It has no such offset: nothing is asked until a seek.
    out_of_range: bool,
    retry_at: Option<Instant>,
    turn: u64,
}

/// What the threads tell.
enum News {
    Answer(Answer),
    OutOfRange(TopicPartition, u64),
    /// A partition cannot be read for now, and why.
    Failed(TopicPartition, u64, String),
    /// No broker, or none that lets us in.
    Error(Error),
}

struct Answer {
    /// May be longer than the answer, so that no buffer is ever cleared.
    bytes: Vec<u8>,
    /// Bytes that it keeps in memory, packed and unpacked.
    held: usize,
    parts: Vec<Part>,
}

/// What an answer says of one partition.
struct Part {
    partition: TopicPartition,
    version: u64,
    batches: Vec<RecordBatch>,
    /// The offset behind its last batch, where it has any.
    next: Option<i64>,
    /// The end of what may be read, as of the answer.
    end: i64,
    high_watermark: i64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn keep_spare(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < SPARE_MAX && (1..=SPARE_BYTES_MAX).contains(&buffer.capacity()) {
            self.spare.push(buffer);
        }
    }
}

impl Fetcher {
    pub fn new(config: &KafkaConfig, client_id: &str, read_committed: bool, with_headers: bool) -> Self {
        Self {
            shared: Arc::new(Shared {
                config: config.clone(),
                client_id: client_id.to_owned(),
                read_committed,
                state: Mutex::default(),
                asking: Condvar::new(),
                telling: Condvar::new(),
            }),
            positions: BTreeMap::new(),
            out_of_range: VecDeque::new(),
            with_headers,
            started: false,
        }
    }

    /// Reads exactly these from these offsets.
    pub fn assign(&mut self, positions: &[(TopicPartition, i64)]) {
        self.positions.clear();
        self.out_of_range.clear();
        let mut state = self.shared.state();
        state.partitions.clear();
        state.held_bytes = 0;
        for news in std::mem::take(&mut state.news) {
            if let News::Answer(answer) = news {
                state.keep_spare(answer.bytes);
            }
        }
        for (partition, offset) in positions {
            let version = state.next_version();
            state.partitions.insert(partition.clone(), Asked::new(*offset, version));
            let position = Position {
                offset: *offset,
                version,
                caught_up: false,
                paused: false,
                high_watermark: None,
                failure: None,
            };
            self.positions.insert(partition.clone(), position);
        }
        if !positions.is_empty() && !self.started {
            let shared = Arc::clone(&self.shared);
            match reader::spawn("fetch-leaders".into(), move || reader::locate(&shared)) {
                Ok(()) => self.started = true,
                Err(error) => state.complain(News::Error(error)),
            }
        }
        drop(state);
        self.shared.asking.notify_all();
    }

    /// Gives a partition a new version, to be read from where it stands.
    fn renew(&mut self, partition: &TopicPartition, change: impl FnOnce(&mut Position)) -> Result<(), Error> {
        let Some(position) = self.positions.get_mut(partition) else {
            return Err(Error::NotAssigned(partition.clone()));
        };
        change(position);
        position.caught_up = false;
        let mut state = self.shared.state();
        position.version = state.next_version();
        let asked = Asked {
            paused: position.paused,
            ..Asked::new(position.offset, position.version)
        };
        state.partitions.insert(partition.clone(), asked);
        drop(state);
        self.shared.asking.notify_all();
        Ok(())
    }

    pub fn seek(&mut self, partition: &TopicPartition, offset: i64) -> Result<(), Error> {
        self.renew(partition, |position| position.offset = offset)
    }

    /// What has been read ahead is dropped, and read again once it is resumed.
    pub fn pause(&mut self, partition: &TopicPartition) -> Result<(), Error> {
        self.renew(partition, |position| position.paused = true)
    }

    pub fn resume(&mut self, partition: &TopicPartition) -> Result<(), Error> {
        self.renew(partition, |position| position.paused = false)
    }

    pub fn position(&self, partition: &TopicPartition) -> Option<i64> {
        self.positions.get(partition).map(|position| position.offset)
    }

    pub fn high_watermark(&self, partition: &TopicPartition) -> Option<i64> {
        self.positions.get(partition)?.high_watermark
    }

    /// Partitions whose end was met since their last record, in order.
    pub fn caught_up(&self) -> Vec<TopicPartition> {
        let caught_up = self.positions.iter().filter(|(_, position)| position.caught_up);
        caught_up.map(|(partition, _)| partition.clone()).collect()
    }

    /// Nothing is known of any end until the next answer.
    pub fn doubt_ends(&mut self) {
        for position in self.positions.values_mut() {
            position.caught_up = false;
        }
    }

    /// A partition that has no such offset, told once.
    pub fn next_out_of_range(&mut self) -> Option<TopicPartition> {
        self.out_of_range.pop_front()
    }

    /// Waits for news, and appends the records that came.
    ///
    /// # Errors
    /// Retriable: a broker cannot be reached, or does not let this client in. Records appended before stay.
    pub fn poll(&mut self, wait: Duration, batch: &mut Batch) -> Result<(), Error> {
        let mut waited = false;
        while batch.size() < POLL_BYTES {
            let mut state = self.shared.state();
            if state.news.is_empty() && !waited && !wait.is_zero() && batch.is_empty() {
                waited = true;
                let waiting = self.shared.telling.wait_timeout(state, wait);
                state = waiting.unwrap_or_else(PoisonError::into_inner).0;
            }
            let Some(news) = state.news.pop_front() else { break };
            if let News::Answer(answer) = &news {
                let full = state.held_bytes >= reader::HELD_BYTES_MAX;
                state.held_bytes -= answer.held;
                if full && state.held_bytes < reader::HELD_BYTES_MAX {
                    self.shared.asking.notify_all();
                }
            }
            drop(state);
            match news {
                News::Answer(answer) => self.hand_out(answer, batch),
                News::OutOfRange(partition, version) => {
                    if let Some(position) = current(&mut self.positions, &partition, version) {
                        position.caught_up = false;
                        self.out_of_range.push_back(partition);
                    }
                }
                News::Failed(partition, version, reason) => {
                    if let Some(position) = current(&mut self.positions, &partition, version) {
                        position.fail(&partition, reason);
                    }
                }
                News::Error(error) if batch.is_empty() => {
                    self.doubt_ends();
                    return Err(error);
                }
                error => {
                    // First what was read.
                    self.shared.state().news.push_front(error);
                    break;
                }
            }
        }
        Ok(())
    }

    fn hand_out(&mut self, answer: Answer, batch: &mut Batch) {
        let mut block = None;
        for mut part in answer.parts {
            let Some(position) = current(&mut self.positions, &part.partition, part.version) else {
                continue;
            };
            let handle = batch.partition(&part.partition.topic, part.partition.partition);
            position.high_watermark = Some(part.high_watermark);
            let mut walked = Ok(());
            for records in &mut part.batches {
                walked = records::push(
                    records,
                    &answer.bytes,
                    &mut block,
                    &mut position.offset,
                    (handle, self.with_headers),
                    batch,
                );
                if walked.is_err() {
                    break;
                }
            }
            if let Err(malformed) = walked {
                // Its checksum is right: it was written like this. What stands before it was handed out; to pass over it is not ours.
                position.fail(&part.partition, format!("offset {}: {malformed}", position.offset));
                let mut state = self.shared.state();
                position.version = state.next_version();
                let asked = Asked {
                    retry_at: Some(Instant::now() + reader::RETRY_MAX),
                    ..Asked::new(position.offset, position.version)
                };
                state.partitions.insert(part.partition, asked);
                drop(state);
                self.shared.asking.notify_all();
                continue;
            }
            position.offset = part.next.map_or(position.offset, |next| next.max(position.offset));
            let at_end = position.offset >= part.end;
            if at_end || part.next.is_some() {
                position.failure = None;
            }
            position.caught_up = at_end && !position.paused;
        }
        match block {
            Some(block) => batch.adopt(block, answer.bytes),
            None => self.shared.state().keep_spare(answer.bytes),
        }
    }

    /// Forgets the records, and keeps what they were read into for the next.
    pub fn reclaim(&self, batch: &mut Batch) {
        let blocks = batch.reclaim();
        if !blocks.is_empty() {
            let mut state = self.shared.state();
            blocks.into_iter().for_each(|block| state.keep_spare(block));
        }
    }
}

impl Drop for Fetcher {
    /// The threads end by themselves: none waits for longer than it takes to connect.
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.closed = true;
        for breaker in state.breakers.values() {
            // It may be broken already.
            let _ = breaker.shutdown(Shutdown::Both);
        }
        drop(state);
        self.shared.asking.notify_all();
    }
}

fn current<'a>(
    positions: &'a mut BTreeMap<TopicPartition, Position>,
    partition: &TopicPartition,
    version: u64,
) -> Option<&'a mut Position> {
    positions
        .get_mut(partition)
        .filter(|position| position.version == version)
}

impl Position {
    fn fail(&mut self, partition: &TopicPartition, reason: String) {
        self.caught_up = false;
        if self.failure.as_ref() != Some(&reason) {
            tracing::warn!(%partition, reason, "cannot read for now");
            self.failure = Some(reason);
        }
    }
}

impl Asked {
    fn new(next: i64, version: u64) -> Self {
        Self {
            next,
            version,
            paused: false,
            under_way: false,
            behind: false,
            out_of_range: false,
            retry_at: None,
            turn: 0,
        }
    }
}

#[cfg(test)]
mod tests;
