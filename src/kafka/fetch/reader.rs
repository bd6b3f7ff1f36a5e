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
    Answer, News, Part, Peer, Shared, State,
    connection::Connection,
    records::{self, Unpacked},
    request::{self, FETCH, Limits, METADATA, Metadata, Wanted, meaning},
};
use crate::Error;

/// Answers held for the loop: beyond it nothing more is asked for.
pub(super) const HELD_BYTES_MAX: usize = 4 << 20;
/// Small answers are unpacked and folded while they are in the cache. Ends of partitions are learnt from empty ones.
const LIMITS: Limits = Limits {
    wait: Duration::from_millis(100),
    answer_bytes: 2 << 20,
    partition_bytes: 512 << 10,
};
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two attempts at the same.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
const COMPLAINTS_MAX: usize = 1_000;

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
        let known: Vec<String> = state.brokers.values().map(|peer| peer.address.clone()).collect();
        drop(state);
        let pause = match ask(shared, &mut connection, &known, &topics) {
            Ok(metadata) => {
                retry = RETRY;
                // With all of them led there is nothing to wait for.
                if learn(shared, &metadata) {
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
        let opened = Connection::open(&shared.config, &shared.client_id, &address, CONNECT_TIMEOUT);
        match opened.and_then(|mut open| answered(&mut open).map(|metadata| (open, metadata))) {
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

/// Whether every partition has a leader now.
fn learn(shared: &Arc<Shared>, metadata: &Metadata) -> bool {
    let mut state = shared.state();
    for led in &metadata.partitions {
        if led.leader >= 0 && state.partitions.contains_key(&led.partition) {
            let leader = (led.leader, led.leader_epoch);
            state.leaders.insert(led.partition.clone(), leader);
        }
    }
    let State { leaders, brokers, .. } = &mut *state;
    let leading: BTreeSet<i32> = leaders.values().map(|(id, _)| *id).collect();
    for (id, address) in &metadata.brokers {
        match brokers.get_mut(id) {
            Some(peer) => peer.address.clone_from(address),
            None if leading.contains(id) => {
                let peer = Peer {
                    address: address.clone(),
                    breaker: None,
                };
                brokers.insert(*id, peer);
                let (shared, id) = (Arc::clone(shared), *id);
                thread::spawn(move || Reader::new(&shared, id).run());
            }
            None => {}
        }
    }
    let unled: Vec<TopicPartition> = state.unled().cloned().collect();
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
        let body = request::fetch(&request.wanted, self.shared.read_committed, LIMITS);
        self.under_way.push_back(request);
        let connection = match &mut self.connection {
            Some(connection) => connection,
            empty => {
                let shared = self.shared;
                let address = shared.state().brokers[&self.broker].address.clone();
                let open = Connection::open(&shared.config, &shared.client_id, &address, CONNECT_TIMEOUT)?;
                let breaker = open
                    .breaker()
                    .map_err(|error| Error::retriable("broker connection", error))?;
                if let Some(peer) = shared.state().brokers.get_mut(&self.broker) {
                    peer.breaker = Some(breaker);
                }
                empty.insert(open)
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
        let told = sort_out(&bytes[..length], &request.wanted, self.shared.read_committed)
            .map_err(|malformed| Error::retriable("fetch", malformed))?;
        self.retry = RETRY;
        self.under_way.pop_front();
        self.shared.state().take_in(bytes, length, told);
        self.shared.telling.notify_one();
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

    fn take_in(&mut self, bytes: Vec<u8>, length: usize, told: Vec<Told>) {
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
                self.held_bytes += length;
                self.news.push_back(News::Answer(Answer { bytes, length, parts }));
            }
        }
        for (wanted, reason) in failed {
            self.give_up(&wanted, reason, Instant::now() + RETRY);
        }
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

    /// Tells of what does not work, again and again while nobody listens: up to a bound.
    fn complain(&mut self, news: News) {
        if self.news.len() < COMPLAINTS_MAX {
            self.news.push_back(news);
        }
    }

    fn current(&mut self, partition: &TopicPartition, version: u64) -> Option<&mut super::Asked> {
        self.partitions
            .get_mut(partition)
            .filter(|asked| asked.version == version)
    }
}
