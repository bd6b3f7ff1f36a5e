//! The threads of a [`super::Fetcher`]: one finds the leaders, one for each broker asks it.
//!
//! Answers come in the order of requests, and a broker keeps a request for which it has nothing for a while: so a second request
//! is sent ahead only where the first is certain to be answered at once.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use protocol::TopicPartition;

use super::{
    Answer, News, Part, Shared, State,
    connection::Connection,
    records::{self, RecordBatch, Unpacked},
    request::{self, FETCH, Limits, METADATA, Metadata, Wanted, meaning},
};
use crate::Error;

/// Answers held for the loop: beyond it nothing more is asked for.
pub(super) const HELD_BYTES_MAX: usize = 4 << 20;
/// How long a broker keeps a request for which it has nothing.
const WAIT: Duration = Duration::from_millis(100);
/// Small answers are unpacked and folded while they are in the cache.
const ANSWER_BYTES: i32 = 2 << 20;
const PARTITION_BYTES: u32 = 512 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Whose connection it is that finds the leaders: no broker's id.
const LOCATOR: i32 = -1;
/// Between two attempts at the same.
const RETRY: Duration = Duration::from_millis(100);
pub(super) const RETRY_MAX: Duration = Duration::from_secs(2);
/// The pause after an answer that is worth a word. Brokers make it last by not reading what is sent.
const THROTTLE_TOLD: Duration = Duration::from_secs(1);

/// Its name is what `top -H` shows; the system keeps 15 bytes of it.
pub(super) fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let spawned = thread::Builder::new().name(name).spawn(run);
    spawned
        .map(drop)
        .map_err(|error| Error::retriable("thread", format!("the system gives no more: {error}")))
}

/// Finds out who leads the partitions that are wanted, and starts a thread for each broker that does.
pub(super) fn locate(shared: &Arc<Shared>) {
    let mut connection = None;
    let mut retry = RETRY;
    loop {
        let mut state = shared.state();
        let topics = loop {
            if state.closed {
                return;
            }
            let unled: BTreeSet<Arc<str>> = state.unled().map(|partition| Arc::clone(&partition.topic)).collect();
            if !unled.is_empty() {
                break unled;
            }
            state = shared.asking.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        let known: Vec<String> = state.addresses.values().cloned().collect();
        drop(state);
        let pause = match ask(shared, &mut connection, &known, &topics) {
            Ok(metadata) => {
                retry = RETRY;
                // With all of them led there is nothing to wait for.
                if learn(shared, &metadata, &topics) {
                    Duration::ZERO
                } else {
                    RETRY
                }
            }
            Err(error) => {
                shared.state().complain(News::Error(error));
                shared.telling.notify_one();
                let pause = retry;
                retry = (retry * 2).min(RETRY_MAX);
                pause
            }
        };
        pause_for(shared, pause);
    }
}

/// Waits, but not beyond the end.
fn pause_for(shared: &Shared, pause: Duration) {
    let until = Instant::now() + pause;
    let mut state = shared.state();
    while !state.closed {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let waiting = shared.asking.wait_timeout(state, left);
        state = waiting.unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// A connection that the end of the fetcher breaks.
fn connect(shared: &Shared, owner: i32, address: &str) -> Result<Connection, Error> {
    let connection = Connection::open(&shared.config, &shared.client_id, address, CONNECT_TIMEOUT)?;
    let breaker = connection
        .breaker()
        .map_err(|error| Error::retriable("broker connection", error))?;
    let mut state = shared.state();
    if state.closed {
        return Err(Error::retriable("broker connection", "it is not needed any more"));
    }
    state.breakers.insert(owner, breaker);
    Ok(connection)
}

fn ask(
    shared: &Shared,
    connection: &mut Option<Connection>,
    known: &[String],
    topics: &BTreeSet<Arc<str>>,
) -> Result<Metadata, Error> {
    let body = request::metadata(topics.iter().map(|topic| &**topic));
    let answered = |connection: &mut Connection| -> Result<Metadata, Error> {
        connection.send(METADATA.0, METADATA.1, &body)?;
        let mut buffer = Vec::new();
        let length = connection.receive(&mut buffer)?;
        request::led(&buffer[..length]).map_err(|malformed| Error::retriable("metadata", malformed))
    };
    // The one of the last time may have been closed for being idle.
    if let Some(open) = connection
        && let Ok(metadata) = answered(open)
    {
        return Ok(metadata);
    }
    *connection = None;
    let bootstrap = shared
        .config
        .bootstrap
        .split(',')
        .map(|address| address.trim().to_owned());
    let mut failed = Error::retriable("broker connection", "no broker is named");
    for address in bootstrap.chain(known.iter().cloned()) {
        match connect(shared, LOCATOR, &address)
            .and_then(|mut open| answered(&mut open).map(|metadata| (open, metadata)))
        {
            Ok((open, metadata)) => {
                *connection = Some(open);
                return Ok(metadata);
            }
            Err(error) => failed = error,
        }
        if shared.state().closed {
            break;
        }
    }
    Err(failed)
}

/// Whether every partition of the topics that were asked for has a leader now.
fn learn(shared: &Arc<Shared>, metadata: &Metadata, topics: &BTreeSet<Arc<str>>) -> bool {
    let mut state = shared.state();
    for led in &metadata.partitions {
        let is_known = metadata.brokers.iter().any(|(id, _)| *id == led.leader);
        if is_known && state.partitions.contains_key(&led.partition) {
            let leader = (led.leader, led.leader_epoch);
            state.leaders.insert(led.partition.clone(), leader);
        }
    }
    let leading: BTreeSet<i32> = state.leaders.values().map(|(id, _)| *id).collect();
    for (id, address) in &metadata.brokers {
        if let Some(known) = state.addresses.get_mut(id) {
            known.clone_from(address);
        } else if leading.contains(id) {
            let (shared, id) = (Arc::clone(shared), *id);
            match spawn(format!("fetch-broker-{id}"), move || Reader::new(&shared, id).run()) {
                Ok(()) => {
                    state.addresses.insert(id, address.clone());
                }
                Err(error) => {
                    state.leaders.retain(|_, (leader, _)| *leader != id);
                    state.complain(News::Error(error));
                }
            }
        }
    }
    let asked = |partition: &&TopicPartition| topics.contains(&partition.topic);
    let unled: Vec<TopicPartition> = state.unled().filter(asked).cloned().collect();
    for partition in &unled {
        let failed = metadata.failed.iter().find(|(topic, _)| **topic == *partition.topic);
        let exists = metadata.partitions.iter().any(|led| led.partition == *partition);
        let code = failed.map_or(if exists { 5 } else { 3 }, |(_, code)| *code);
        let version = state.partitions[partition].version;
        state.complain(News::Failed(partition.clone(), version, meaning(code)));
    }
    drop(state);
    shared.telling.notify_one();
    shared.asking.notify_all();
    unled.is_empty()
}

/// A request whose answer has not come yet.
struct UnderWay {
    wanted: Vec<Wanted>,
    /// There are records for it, so that the broker answers at once.
    immediate: bool,
}

/// Asks one broker for what it leads.
struct Reader<'s> {
    shared: &'s Shared,
    broker: i32,
    connection: Option<Connection>,
    under_way: VecDeque<UnderWay>,
    retry: Duration,
}

impl<'s> Reader<'s> {
    fn new(shared: &'s Shared, broker: i32) -> Self {
        Self {
            shared,
            broker,
            connection: None,
            under_way: VecDeque::new(),
            retry: RETRY,
        }
    }

    fn run(&mut self) {
        while let Some(request) = self.next_request() {
            let done = match request {
                Some(request) => self.send(request),
                None => self.receive(),
            };
            if let Err(error) = done {
                self.fail(error);
            }
        }
    }

    /// What to ask for next, or `Some(None)` where an answer is to be awaited first; `None` at the end.
    fn next_request(&self) -> Option<Option<UnderWay>> {
        let mut state = self.shared.state();
        loop {
            if state.closed {
                return None;
            }
            let now = Instant::now();
            let ahead = match self.under_way.back() {
                None => Some(false),
                Some(request) => (self.under_way.len() == 1 && request.immediate).then_some(true),
            };
            if let Some(request) = ahead.and_then(|ahead| state.take_request(self.broker, now, ahead)) {
                return Some(Some(request));
            }
            if !self.under_way.is_empty() {
                return Some(None);
            }
            state = self.wait(state, now);
        }
    }

    /// Until something changes, or a partition may be asked for again.
    fn wait(&self, state: MutexGuard<'s, State>, now: Instant) -> MutexGuard<'s, State> {
        let retry_at = state
            .partitions
            .values()
            .filter_map(|asked| asked.retry_at)
            .filter(|at| *at > now)
            .min();
        let asking = &self.shared.asking;
        match retry_at {
            None => asking.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(at) => {
                let waiting = asking.wait_timeout(state, at - now);
                waiting.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    fn send(&mut self, request: UnderWay) -> Result<(), Error> {
        let partition_bytes = self.shared.config.fetch_partition_bytes.unwrap_or(PARTITION_BYTES);
        let limits = Limits {
            wait: WAIT,
            answer_bytes: ANSWER_BYTES,
            partition_bytes: partition_bytes.clamp(1, ANSWER_BYTES as u32) as i32,
        };
        let body = request::fetch(&request.wanted, self.shared.read_committed, limits);
        self.under_way.push_back(request);
        let connection = match &mut self.connection {
            Some(connection) => connection,
            empty => {
                let shared = self.shared;
                let address = shared.state().addresses[&self.broker].clone();
                empty.insert(connect(shared, self.broker, &address)?)
            }
        };
        connection.send(FETCH.0, FETCH.1, &body)?;
        Ok(())
    }

    fn receive(&mut self) -> Result<(), Error> {
        let (Some(connection), Some(request)) = (&mut self.connection, self.under_way.front()) else {
            return Ok(());
        };
        let mut bytes = self.shared.state().spare.pop().unwrap_or_default();
        let length = connection.receive(&mut bytes)?;
        let malformed = |malformed| Error::retriable("fetch", malformed);
        let told = sort_out(&bytes[..length], &request.wanted, self.shared.read_committed).map_err(malformed)?;
        let throttled = request::throttled(&bytes[..length]).map_err(malformed)?;
        connection.excuse(throttled)?;
        self.retry = RETRY;
        self.under_way.pop_front();
        let mut state = self.shared.state();
        let failed = state.take_in(bytes, length, told);
        if throttled >= THROTTLE_TOLD {
            let reason = format!(
                "broker {} holds this client back for {} ms: its quota (consumer_byte_rate) is less than what is to be read",
                self.broker,
                throttled.as_millis()
            );
            state.complain(News::Error(Error::retriable("fetch", reason)));
        }
        drop(state);
        self.shared.telling.notify_one();
        if failed {
            self.shared.asking.notify_all();
        }
        Ok(())
    }

    /// Whatever is under way will not be answered any more: its partitions are asked for again, of whoever leads them then.
    fn fail(&mut self, error: Error) {
        let reason = error.to_string();
        let was_open = self.connection.take().is_some();
        let retry_at = Instant::now() + self.retry;
        self.retry = (self.retry * 2).min(RETRY_MAX);
        let mut state = self.shared.state();
        for wanted in self.under_way.drain(..).flat_map(|request| request.wanted) {
            state.give_up(&wanted, reason.clone(), retry_at);
        }
        // A connection may close for reasons of its own; only where no other can be had is it worth more than doubt.
        if !was_open && !state.closed {
            state.complain(News::Error(error));
        }
        drop(state);
        self.shared.telling.notify_one();
        self.shared.asking.notify_all();
    }
}

/// What an answer says of one partition, for the loop and for what is asked next.
enum Told {
    Part(Part),
    OutOfRange(Wanted),
    Failed(Wanted, String),
}

fn sort_out(bytes: &[u8], wanted: &[Wanted], read_committed: bool) -> Result<Vec<Told>, super::wire::Malformed> {
    let mut told = Vec::with_capacity(wanted.len());
    let mut unanswered: Vec<bool> = vec![true; wanted.len()];
    for (index, mut fetched) in request::fetched(bytes)?.into_iter().enumerate() {
        let is_it = |wanted: &Wanted| {
            wanted.partition.partition == fetched.partition && *wanted.partition.topic == *fetched.topic
        };
        // In the order of the request, mostly.
        let at = match wanted.get(index).is_some_and(is_it) {
            true => Some(index),
            false => wanted.iter().position(is_it),
        };
        let Some(at) = at else { continue };
        unanswered[at] = false;
        let wanted = wanted[at].clone();
        match fetched.code {
            0 => {}
            request::OFFSET_OUT_OF_RANGE => {
                told.push(Told::OutOfRange(wanted));
                continue;
            }
            code => {
                told.push(Told::Failed(wanted, meaning(code)));
                continue;
            }
        }
        let mut unpacked = Unpacked::default();
        let whole = records::unpack(bytes, fetched.records.clone(), &mut fetched.aborted, &mut unpacked);
        let end = match read_committed && fetched.last_stable_offset >= 0 {
            true => fetched.last_stable_offset,
            false => fetched.high_watermark,
        };
        told.push(Told::Part(Part {
            partition: wanted.partition.clone(),
            version: wanted.version,
            batches: unpacked.batches,
            next: unpacked.next,
            end,
            high_watermark: fetched.high_watermark,
        }));
        if let Err(reason) = whole {
            told.push(Told::Failed(wanted, reason));
        }
    }
    for (wanted, _) in wanted.iter().zip(unanswered).filter(|(_, unanswered)| *unanswered) {
        told.push(Told::Failed(wanted.clone(), "the broker's answer leaves it out".into()));
    }
    Ok(told)
}

impl State {
    fn unled(&self) -> impl Iterator<Item = &TopicPartition> {
        self.partitions
            .keys()
            .filter(|partition| !self.leaders.contains_key(*partition))
    }

    /// Takes what may be asked of a broker now. `ahead`: behind a request under way, so only where this one, too, is answered
    /// at once. Otherwise the first of two leaves half of the partitions with records to the second.
    fn take_request(&mut self, broker: i32, now: Instant, ahead: bool) -> Option<UnderWay> {
        if self.held_bytes >= HELD_BYTES_MAX {
            return None;
        }
        let Self {
            partitions, leaders, ..
        } = self;
        let mut ready: Vec<(&TopicPartition, &mut super::Asked, i32)> = partitions
            .iter_mut()
            .filter_map(|(partition, asked)| {
                let (leader, epoch) = *leaders.get(partition)?;
                let may = leader == broker
                    && !asked.under_way
                    && !asked.paused
                    && !asked.out_of_range
                    && asked.retry_at.is_none_or(|at| at <= now);
                may.then_some((partition, asked, epoch))
            })
            .collect();
        let behind = ready.iter().filter(|(_, asked, _)| asked.behind).count();
        if ready.is_empty() || (ahead && behind == 0) {
            return None;
        }
        // Those that had their turn longest ago come first, since an answer may be full before the last.
        ready.sort_by_key(|(_, asked, _)| asked.turn);
        let mut left_to_second = if ahead { 0 } else { behind / 2 };
        let mut wanted = Vec::with_capacity(ready.len());
        for (partition, asked, leader_epoch) in ready.into_iter().rev() {
            if asked.behind && left_to_second > 0 {
                left_to_second -= 1;
                continue;
            }
            asked.under_way = true;
            asked.retry_at = None;
            wanted.push(Wanted {
                partition: partition.clone(),
                offset: asked.next,
                leader_epoch,
                version: asked.version,
            });
        }
        wanted.reverse();
        Some(UnderWay {
            wanted,
            immediate: behind > 0,
        })
    }

    /// Whether a partition lost its leader by it, so that one is to be found.
    fn take_in(&mut self, bytes: Vec<u8>, length: usize, told: Vec<Told>) -> bool {
        self.turn += 1;
        let mut parts = Vec::with_capacity(told.len());
        let mut failed = Vec::new();
        for told in told {
            match told {
                Told::Part(part) => {
                    let turn = self.turn;
                    let Some(asked) = self.current(&part.partition, part.version) else {
                        continue;
                    };
                    asked.under_way = false;
                    asked.behind = part.next.is_some_and(|next| next < part.end);
                    if let Some(next) = part.next {
                        asked.next = asked.next.max(next);
                        asked.turn = turn;
                    }
                    parts.push(part);
                }
                Told::OutOfRange(wanted) => {
                    if let Some(asked) = self.current(&wanted.partition, wanted.version) {
                        asked.under_way = false;
                        asked.out_of_range = true;
                        self.news.push_back(News::OutOfRange(wanted.partition, wanted.version));
                    }
                }
                Told::Failed(wanted, reason) => failed.push((wanted, reason)),
            }
        }
        match parts.is_empty() {
            true => self.keep_spare(bytes),
            false => {
                let unpacked = parts
                    .iter()
                    .flat_map(|part| &part.batches)
                    .map(RecordBatch::unpacked_bytes);
                let held = length + unpacked.sum::<usize>();
                self.held_bytes += held;
                self.news.push_back(News::Answer(Answer { bytes, held, parts }));
            }
        }
        let any_failed = !failed.is_empty();
        for (wanted, reason) in failed {
            self.give_up(&wanted, reason, Instant::now() + RETRY);
        }
        any_failed
    }

    /// A partition cannot be read: it is asked for again later, of whoever leads it then.
    fn give_up(&mut self, wanted: &Wanted, reason: String, retry_at: Instant) {
        let Some(asked) = self.current(&wanted.partition, wanted.version) else {
            return;
        };
        asked.under_way = false;
        asked.behind = false;
        asked.retry_at = Some(retry_at);
        self.leaders.remove(&wanted.partition);
        self.complain(News::Failed(wanted.partition.clone(), wanted.version, reason));
    }

    /// Tells of what does not work. While nobody listens that is told again and again: the last word stands for those before it.
    pub(super) fn complain(&mut self, news: News) {
        self.news.retain(|older| match (older, &news) {
            (News::Error(_), News::Error(_)) => false,
            (News::Failed(older, ..), News::Failed(partition, ..)) => older != partition,
            _ => true,
        });
        self.news.push_back(news);
    }

    fn current(&mut self, partition: &TopicPartition, version: u64) -> Option<&mut super::Asked> {
        self.partitions
            .get_mut(partition)
            .filter(|asked| asked.version == version)
    }
}
