//! The aggregate stage: records of source topics → sealed panes and progress on `panes`.
//!
//! Owns watermarks, lateness, idleness, dead letters and the commit metadata from which a partition is rebuilt. Promises that what it
//! publishes is a function of the records, but for idle verdicts, which the clock decides and the commit records; that every row is
//! published once, or is a dead letter, or a late row, whatever crashes between; and that nothing a record holds stops a
//! partition. Does not know how bytes become rows ([`Decoders`]), nor who merges the panes. Fails on a plan that
//! does not fit its rows, and stops a partition whose commit contradicts the log.

mod follow;
mod lane;
mod metadata;
mod plan;
mod reread;
mod side;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use protocol::{
    Assignment, Batch, Clock, Committed, Output, Outputs, Progress, Record, SidePosition, Stage, StageError, Start,
    TimestampKind, TopicPartition, Topics,
    log::{self, PaneHeader, SourceProgress},
};

use follow::Follow;
pub use lane::Rows;
use lane::{Lane, Past, Remarks};
use metadata::Standing;
pub use metadata::nothing_known;
use plan::SourcePlan;
use reread::Reached;
pub use side::SideSink;
use side::{Fault, LateRow, SideSinks};

use crate::{
    error::Error,
    json,
    panes::{Sealed, write_panes},
    spec::{PaneSetSpec, Pipeline, SourceSpec, StartupMode},
    table::Tables,
    version::{Compile, Version},
};

/// Rows decoded before they are folded: enough to spread the cost of a batch, few enough to stay in the cache.
const ROWS_PER_BATCH: usize = 8_192;
/// What some lanes have sealed waits so long for the others, and never grows beyond so much.
const OTHERS_WAIT_MS: i64 = 100;
const SEALED_BYTES_MAX: usize = 8 << 20;

/// Turns the records of one source into rows.
pub trait Decode: Send {
    /// Appends the rows of one record and returns how many, or says why the record is none; then nothing of it is kept.
    /// `receive_ms` is when this instance received it.
    fn push(&mut self, record: &Record<'_>, receive_ms: i64) -> Result<usize, String>;

    /// Whether the headers of records make a difference to the rows.
    fn reads_headers(&self) -> bool {
        true
    }

    /// The rows since the last time, in the order of the records.
    fn finish(&mut self) -> Result<Rows, Error>;
}

/// Makes decoders.
pub trait Decoders: Send + Sync {
    fn decoder(&self, source: &SourceSpec) -> Result<Box<dyn Decode>, Error>;
}

/// Limits and intervals.
#[derive(Clone, Debug)]
pub struct Options {
    /// Partitions of `panes`, fixed for a topic generation.
    pub panes_partitions: i32,
    /// Bytes of a bad record that its dead letter keeps.
    pub dead_letter_bytes_max: usize,
    /// Keys that one pane of one source partition holds; rows of further keys are dead letters.
    pub keys_max: usize,
    /// `max.message.bytes` of `panes`; records stay below three quarters of it.
    pub message_bytes_max: usize,
    /// Progress goes out at least so often.
    pub progress_interval_ms: i64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            panes_partitions: 1,
            dead_letter_bytes_max: 64 << 10,
            keys_max: 1_000_000,
            message_bytes_max: 1_048_588,
            progress_interval_ms: 1_000,
        }
    }
}

/// One partition of a source topic, with a lane for each source on it.
struct Partition {
    /// Records below were stepped by a transaction that committed.
    committed: i64,
    /// Next offset to read.
    position: i64,
    /// (index of the source, lane).
    lanes: Vec<(usize, Lane)>,
    /// Caught up since this time of the clock, without a record.
    quiet_since_ms: Option<i64>,
    paused: bool,
    /// Read for a newer version of the pipelines than this instance has heard of: left as its last owner committed it.
    held: Option<String>,
}

/// The records of one partition in a batch, in offset order.
struct Run<'a> {
    batch: &'a Batch,
    place: &'a TopicPartition,
    ranges: Vec<Range<usize>>,
}

impl<'a> Run<'a> {
    /// A batch by partition, in order of first appearance: partitions that alternate record by record would be folded row by row.
    fn split(batch: &'a Batch) -> Vec<Self> {
        let mut runs: Vec<Self> = Vec::new();
        for (place, range) in batch.runs() {
            match runs.iter_mut().find(|run| std::ptr::eq(run.place, place)) {
                Some(run) => run.ranges.push(range),
                None => runs.push(Self {
                    batch,
                    place,
                    ranges: vec![range],
                }),
            }
        }
        runs
    }

    fn records(&self) -> impl Iterator<Item = Record<'a>> + use<'a, '_> {
        let indices = self.ranges.iter().flat_map(Range::clone);
        indices.map(|index| self.batch.get(index))
    }

    /// The offset behind the last record.
    fn end(&self) -> Option<i64> {
        Some(self.batch.get(self.ranges.last()?.end - 1).offset + 1)
    }

    fn find(&self, offset: i64) -> Option<Record<'a>> {
        let offset_at = |index: usize| self.batch.get(index).offset;
        let range = self.ranges.iter().find(|range| offset_at(range.end - 1) >= offset)?;
        let (mut from, mut to) = (range.start, range.end);
        while from < to {
            let middle = from.midpoint(to);
            match offset_at(middle) < offset {
                true => from = middle + 1,
                false => to = middle,
            }
        }
        Some(self.batch.get(from)).filter(|record| record.offset == offset)
    }
}

/// What another instance says of a partition.
struct Peer {
    watermark_ms: Option<i64>,
    idle: bool,
}

#[derive(Default)]
struct Counters {
    rows: u64,
    rows_backfilled: u64,
    dead_letters: BTreeMap<(usize, Fault), u64>,
    late: BTreeMap<String, u64>,
    /// By source.
    evictions: BTreeMap<usize, u64>,
}

/// The stage. See the module's documentation.
pub struct Aggregate {
    sources: Vec<SourcePlan>,
    follow: Follow,
    topics: Topics,
    dead_letters: Arc<str>,
    panes: Arc<str>,
    options: Options,
    sinks: SideSinks,
    decoders: Vec<Box<dyn Decode>>,
    tables: Tables,
    partitions: BTreeMap<TopicPartition, Partition>,
    partition_counts: BTreeMap<Arc<str>, i32>,
    peers: BTreeMap<(u64, i32), Peer>,
    now_ms: i64,
    /// The tick at which some lane had passed a pane's end since the last commit.
    news_since_ms: Option<i64>,
    last_progress_ms: i64,
    progress_due: bool,
    counters: Counters,
}

impl Aggregate {
    pub fn new(
        pipelines: &[Pipeline],
        topics: Topics,
        options: Options,
        decoders: &dyn Decoders,
    ) -> Result<Self, Error> {
        let (sources, decoders, tables) = planned(pipelines, decoders)?;
        Ok(Self {
            decoders,
            sources,
            tables,
            follow: Follow::default(),
            dead_letters: topics.dead_letters().into(),
            panes: topics.panes().into(),
            topics,
            options,
            sinks: SideSinks::new(pipelines),
            partitions: BTreeMap::new(),
            partition_counts: BTreeMap::new(),
            peers: BTreeMap::new(),
            now_ms: 0,
            news_since_ms: None,
            last_progress_ms: 0,
            progress_due: false,
            counters: Counters::default(),
        })
    }

    /// The stage of a fleet whose pipelines are versioned: it starts with these versions, oldest first, and takes over what `control`
    /// says later.
    pub fn following(
        versions: Vec<Version>,
        topics: Topics,
        options: Options,
        decoders: Arc<dyn Decoders>,
        compile: Arc<dyn Compile>,
    ) -> Result<Self, Error> {
        let newest = versions.last().map_or(&[][..], |version| &version.pipelines[..]);
        let sinks = SideSinks::new(newest);
        let mut stage = Self::new(&all(&versions), topics, options, &*decoders)?;
        stage.sinks = sinks;
        stage.follow = Follow::new(versions, decoders, compile);
        Ok(stage)
    }

    /// The last record of a table that was no row: its offset, and why.
    pub fn refused_by_table(&self, table: &str) -> Option<(i64, &str)> {
        let (offset, reason) = self.tables.refusal(table)?;
        Some((*offset, reason))
    }

    /// What other instances say of their progress (rule 4): it steers which partitions are paused, never what is published.
    fn peers_say(&mut self, run: &Run<'_>) {
        for record in run.records() {
            if record.header(log::KIND) != Some(log::KIND_PROGRESS.as_bytes()) {
                continue;
            }
            // What cannot be read is detect's to complain of; here it steers nothing.
            if let Some(Ok(progress)) = record.value.map(serde_json::from_slice) {
                self.peers(&progress);
            }
        }
    }

    fn peers(&mut self, progress: &SourceProgress) {
        for partition in &progress.partitions {
            let peer = Peer {
                watermark_ms: partition.watermark_ms,
                idle: partition.idle,
            };
            self.peers.insert((progress.source, partition.partition), peer);
        }
    }

    fn sources_of(&self, topic: &str) -> impl Iterator<Item = (usize, &SourcePlan)> {
        let sources = self.sources.iter().enumerate();
        sources.filter(move |(_, source)| source.spec.topic == topic)
    }

    /// Steps the records of one partition through every source on its topic.
    fn run(&mut self, run: &Run<'_>, out: &mut Outputs) -> Result<(), Error> {
        let Some(mut partition) = self.partitions.remove(run.place) else {
            return Ok(());
        };
        if partition.held.is_some() {
            self.partitions.insert(run.place.clone(), partition);
            return Ok(());
        }
        partition.quiet_since_ms = None;
        let reached = partition.reached();
        let mut result = Ok(());
        for (source, lane) in &mut partition.lanes {
            let position = partition.position;
            result = result
                .and_then(|()| self.meet(*source, lane, run.place, position, &reached))
                .and_then(|()| self.run_lane(*source, lane, partition.committed, &reached, run, out));
        }
        partition.position = partition.position.max(run.end().unwrap_or_default());
        self.partitions.insert(run.place.clone(), partition);
        result
    }

    fn run_lane(
        &mut self,
        source: usize,
        lane: &mut Lane,
        committed: i64,
        reached: &Reached,
        run: &Run<'_>,
        out: &mut Outputs,
    ) -> Result<(), Error> {
        let timed_by_log = self.sources[source].spec.format.is_timed_by_log();
        let mut rows = 0;
        for record in run.records() {
            if record.offset < lane.read_from() {
                continue;
            }
            if record.offset >= committed && lane.is_replaying() {
                self.fold(source, lane, run, out)?;
                rows = 0;
                lane.end_replay()?;
                self.meet(source, lane, run.place, committed, reached)?;
            }
            lane.wake();
            lane.receive_timed |= timed_by_log && record.timestamp_kind == TimestampKind::Create;
            // Until the first tick the last time this source has seen stands in for the clock.
            let receive_ms = match self.now_ms {
                0 => lane.greatest_time_ms().unwrap_or(record.timestamp_ms),
                now_ms => now_ms,
            };
            match self.decoders[source].push(&record, receive_ms) {
                Ok(decoded) => rows += decoded,
                Err(reason) if !lane.is_replaying() => {
                    self.dead_letter(source, &record, Fault::Decode, &reason, out);
                }
                Err(_) => {}
            }
            if rows >= ROWS_PER_BATCH {
                self.fold(source, lane, run, out)?;
                rows = 0;
            }
        }
        self.fold(source, lane, run, out)
    }

    /// Hands what has been decoded to the lane, and says what became of rows that were not folded.
    fn fold(&mut self, source: usize, lane: &mut Lane, run: &Run<'_>, out: &mut Outputs) -> Result<(), Error> {
        let rows = self.decoders[source].finish()?;
        if rows.batch.num_rows() == 0 {
            return Ok(());
        }
        if !lane.is_replaying() {
            self.counters.rows += rows.batch.num_rows() as u64;
        }
        let remarks = lane.process(&self.sources[source].spec, &rows)?;
        let evictions = std::mem::take(&mut lane.evictions);
        if evictions > 0 {
            *self.counters.evictions.entry(source).or_default() += evictions;
        }
        self.say(source, &remarks, &rows, run, out);
        Ok(())
    }

    fn say(&mut self, source: usize, remarks: &Remarks, rows: &Rows, run: &Run<'_>, out: &mut Outputs) {
        let mut said = BTreeSet::new();
        for unusable in &remarks.unusable {
            let offset = rows.offsets[unusable.row];
            // One dead letter per record and reason, however many of its rows share it.
            if said.insert((offset, unusable.fault))
                && let Some(record) = run.find(offset)
            {
                self.dead_letter(source, &record, unusable.fault, &unusable.reason, out);
            }
        }
        let mut said_late = BTreeSet::new();
        for late in &remarks.late {
            let window = &self.sources[source].sets[late.set].windows[late.window];
            let offset = rows.offsets[late.row];
            let Some(record) = run.find(offset) else { continue };
            // Two versions of a view may both miss the row.
            if !said_late.insert((window.view.as_str(), late.row)) {
                continue;
            }
            let row = LateRow {
                record,
                index: late.row - rows.offsets.partition_point(|other| *other < offset),
                rows: &rows.batch,
                row: late.row,
                event_time_ms: late.event_time_ms,
                floor_ms: late.floor_ms,
            };
            side::late_row(&self.topics, window, self.sinks.late(&window.view), &row, out);
            *self.counters.late.entry(window.view.clone()).or_default() += 1;
        }
    }

    fn dead_letter(&mut self, source: usize, record: &Record<'_>, fault: Fault, reason: &str, out: &mut Outputs) {
        let bytes_max = self.options.dead_letter_bytes_max;
        let name = &self.sources[source].name;
        let letter = protocol::dead_letter(&self.dead_letters, name, record, reason, bytes_max);
        let fingerprint = self.sources[source].spec.fingerprint;
        self.sinks.dead_letter(&self.topics, fingerprint, &letter, out);
        out.push(letter);
        *self.counters.dead_letters.entry((source, fault)).or_default() += 1;
    }

    /// The pane records of one lane.
    fn publish_panes(
        &mut self,
        place: &TopicPartition,
        source: usize,
        set: usize,
        sealed: &Sealed,
        source_offset: i64,
        out: &mut Outputs,
    ) -> Result<(), Error> {
        let plan = &self.sources[source];
        let header = PaneHeader {
            set: plan.sets[set].fingerprint,
            source: plan.spec.fingerprint,
            source_partition: place.partition,
            watermark_ms: sealed.floor_ms,
            source_offset,
        };
        let header = serde_json::to_string(&header).map_err(|error| Error::Unreadable {
            what: "pane header",
            reason: error.to_string(),
        })?;
        let bytes_max = self.options.message_bytes_max / 4 * 3;
        let mut records = Vec::new();
        for target in 0..self.options.panes_partitions {
            let Some(rows) = sealed.rows_for(target, self.options.panes_partitions)? else {
                continue;
            };
            let mut refused = 0;
            write_panes(&rows, bytes_max, &mut records, &mut |row, bytes| {
                let key = serde_json::Value::from(json::row(row, 0)).to_string();
                let offset = json::value(row.column(1), 0).as_i64().unwrap_or_default();
                let key: String = key.chars().take(1_000).collect();
                let letter = side::oversized(&self.dead_letters, &plan.name, &header, &key, bytes, offset);
                self.sinks
                    .dead_letter(&self.topics, plan.spec.fingerprint, &letter, out);
                out.push(letter);
                refused += 1;
            })?;
            if refused > 0 {
                let count = self.counters.dead_letters.entry((source, Fault::StateSize));
                *count.or_default() += refused;
            }
            for record in records.drain(..) {
                out.push(Output {
                    topic: Arc::clone(&self.panes),
                    partition: Some(target),
                    key: None,
                    value: Some(record),
                    headers: vec![
                        (log::KIND.to_owned(), log::KIND_PANES.as_bytes().to_vec()),
                        (log::HEADER.to_owned(), header.clone().into_bytes()),
                    ],
                });
            }
        }
        Ok(())
    }

    /// One record per source and `panes` partition, about every partition that this instance owns.
    fn publish_progress(&self, out: &mut Outputs) -> Result<(), Error> {
        for (index, source) in self.sources.iter().enumerate() {
            let mut partitions = Vec::new();
            for (place, partition) in &self.partitions {
                let lanes = partition.lanes.iter().filter(|(source, _)| *source == index);
                let version = self.follow.version();
                partitions.extend(lanes.map(|(_, lane)| lane.progress(place.partition, partition.commits(), version)));
            }
            if partitions.is_empty() {
                continue;
            }
            let count = self
                .partition_counts
                .get(&*source.spec.topic)
                .copied()
                .unwrap_or_default();
            let progress = SourceProgress {
                source: source.spec.fingerprint,
                partition_count: count,
                partitions,
                clock: self.now_ms,
            };
            let value = serde_json::to_vec(&progress).map_err(|error| Error::Unreadable {
                what: "progress",
                reason: error.to_string(),
            })?;
            for target in 0..self.options.panes_partitions {
                out.push(Output {
                    topic: Arc::clone(&self.panes),
                    partition: Some(target),
                    key: None,
                    value: Some(value.clone()),
                    headers: vec![(log::KIND.to_owned(), log::KIND_PROGRESS.as_bytes().to_vec())],
                });
            }
        }
        Ok(())
    }

    fn commit(&mut self, out: &mut Outputs) -> Result<Vec<Progress>, Error> {
        let mut positions = Vec::with_capacity(self.partitions.len());
        // Before the panes, so that nobody sees those of a set that he has not heard of.
        self.follow.announce(&self.panes, self.options.panes_partitions, out)?;
        for (place, mut partition) in std::mem::take(&mut self.partitions) {
            let offset = partition.commits();
            if let Some(metadata) = partition.held.clone() {
                positions.push(Progress {
                    partition: place.clone(),
                    offset,
                    metadata,
                });
                self.partitions.insert(place, partition);
                continue;
            }
            let mut standings = Vec::with_capacity(partition.lanes.len());
            for (source, lane) in &mut partition.lanes {
                lane.publish_backfill()?;
                lane.settle()?;
                for (set, sealed) in lane.take_sealed() {
                    self.publish_panes(&place, *source, set, &sealed, offset, out)?;
                }
                self.progress_due |= std::mem::take(&mut lane.crossed);
                standings.push(lane.standing(self.sources[*source].spec.fingerprint, offset));
            }
            positions.push(Progress {
                partition: place.clone(),
                offset,
                metadata: metadata::encode(self.follow.version(), &standings),
            });
            self.partitions.insert(place, partition);
        }
        // After the panes, so that no window closes before its panes are there.
        if std::mem::take(&mut self.progress_due) {
            self.publish_progress(out)?;
            self.last_progress_ms = self.now_ms;
        }
        Ok(positions)
    }

    fn open(&self, place: &TopicPartition, assignment: &Assignment) -> Result<Partition, Error> {
        let committed = assignment.committed.as_ref();
        let (version, mut standings): (u64, Vec<Standing>) = match committed {
            Some(committed) if !committed.metadata.is_empty() => metadata::decode(&committed.metadata)?,
            _ => (0, Vec::new()),
        };
        // An offset without metadata is an operator's reset: a first start at that offset.
        let known = committed.is_some_and(|committed| !committed.metadata.is_empty());
        let position = committed.map_or(assignment.start_offset, |committed| committed.offset);
        let past = if known { Past::Read } else { Past::Unread };
        let held = committed.filter(|_| self.follow.is_behind(version));
        let held = held.map(|committed| committed.metadata.clone());
        let backfills = match held {
            None => self.backfills(place, assignment, position, &mut standings),
            Some(_) => BTreeMap::new(),
        };
        let mut lanes = Vec::new();
        for (index, source) in self.sources_of(&place.topic).filter(|_| held.is_none()) {
            let standing = standings
                .iter()
                .find(|standing| standing.source == source.spec.fingerprint);
            let lane = Lane::new(source, self.options.keys_max, position, past, standing, &backfills)?;
            lanes.push((index, lane));
        }
        Ok(Partition {
            committed: position,
            position,
            lanes,
            quiet_since_ms: None,
            paused: held.is_some(),
            held,
        })
    }

    /// Decides which partitions run too far ahead of the slowest one that is known and not idle. A partition that is paused
    /// goes on when it is within half of the drift, so that it does not flap.
    fn align(&mut self) {
        let mut slowest: BTreeMap<usize, i64> = BTreeMap::new();
        let mut seen = |source: usize, watermark_ms: Option<i64>| {
            if let Some(watermark_ms) = watermark_ms {
                let least = slowest.entry(source).or_insert(watermark_ms);
                *least = watermark_ms.min(*least);
            }
        };
        for partition in self.partitions.values() {
            for (source, lane) in partition.lanes.iter().filter(|(_, lane)| !lane.is_idle()) {
                seen(*source, lane.watermark_ms());
            }
        }
        for (index, source) in self.sources.iter().enumerate() {
            let peers = self
                .peers
                .range((source.spec.fingerprint, i32::MIN)..=(source.spec.fingerprint, i32::MAX));
            for ((_, partition), peer) in peers.filter(|(_, peer)| !peer.idle) {
                let place = TopicPartition::new(source.spec.topic.as_str(), *partition);
                if !self.partitions.contains_key(&place) {
                    seen(index, peer.watermark_ms);
                }
            }
        }
        for partition in self.partitions.values_mut() {
            let paused = partition.paused;
            let ahead = |(source, lane): &(usize, Lane)| {
                let drift_ms = self.sources[*source].spec.max_drift_ms;
                let drift_ms = if paused { drift_ms / 2 } else { drift_ms };
                let lead_ms = lane
                    .watermark_ms()
                    .zip(slowest.get(source))
                    .map(|(own, least)| own - least);
                lead_ms.is_some_and(|lead_ms| lead_ms > drift_ms)
            };
            // A lane that is not ahead may be the one that others wait for.
            let mut lanes = partition.lanes.iter().filter(|(_, lane)| !lane.is_idle()).peekable();
            let is_ahead = lanes.peek().is_some() && lanes.all(ahead);
            partition.paused = partition.held.is_some() || is_ahead || partition.is_waiting_to_meet();
        }
    }
}

impl Partition {
    /// The offset to commit: a replay never takes it back.
    fn commits(&self) -> i64 {
        self.position.max(self.committed)
    }
}

type Planned = (Vec<SourcePlan>, Vec<Box<dyn Decode>>, Tables);

fn planned(pipelines: &[Pipeline], decoders: &dyn Decoders) -> Result<Planned, Error> {
    let mut sources = plan::plan(pipelines)?;
    let mut tables = Tables::default();
    for set in sources.iter_mut().flat_map(|source| &mut source.sets) {
        tables.bind(set, decoders)?;
    }
    let decoders = sources.iter().map(|source| decoders.decoder(&source.spec));
    let decoders = decoders.collect::<Result<_, _>>()?;
    Ok((sources, decoders, tables))
}

/// The pipelines of all versions, newest first: what they share is named as the newest names it.
fn all(versions: &[Version]) -> Vec<Pipeline> {
    let pipelines = versions.iter().rev().flat_map(|version| version.pipelines.iter());
    pipelines.cloned().collect()
}

/// Whether one instance can run these versions side by side, as it does while one replaces another. The views of the newest one that are
/// backfilled, each with how far behind the watermark that begins, milliseconds.
pub fn check(versions: &[Version]) -> Result<Vec<(String, i64)>, Error> {
    let sources = plan::plan(&all(versions))?;
    let (newest, before) = versions
        .split_last()
        .map_or((&[][..], versions), |(newest, before)| (&newest.pipelines[..], before));
    let sets = |pipelines: &[Pipeline]| -> BTreeSet<u64> {
        let sets = pipelines.iter().flat_map(|pipeline| &pipeline.pane_sets);
        sets.map(|set| set.fingerprint).collect()
    };
    let known: BTreeSet<u64> = before.iter().flat_map(|version| sets(&version.pipelines)).collect();
    let new = sets(newest);
    let mut backfilled: BTreeMap<String, i64> = BTreeMap::new();
    for source in sources.iter().filter(|_| !before.is_empty()) {
        let added = |set: &&PaneSetSpec| new.contains(&set.fingerprint) && !known.contains(&set.fingerprint);
        for set in source.sets.iter().filter(added) {
            let lookback_ms = plan::lookback_ms(set, &sources);
            for window in &set.windows {
                let longest = backfilled.entry(window.view.clone()).or_default();
                *longest = lookback_ms.max(*longest);
            }
        }
    }
    Ok(backfilled.into_iter().collect())
}

fn chain(error: &Error) -> String {
    use std::error::Error as _;
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn fatal(error: Error) -> StageError {
    StageError::Fatal(chain(&error))
}

impl Stage for Aggregate {
    fn name(&self) -> &'static str {
        "aggregate"
    }

    fn inputs(&self) -> Vec<String> {
        let topics: BTreeSet<&String> = self.sources.iter().map(|source| &source.spec.topic).collect();
        topics.into_iter().cloned().collect()
    }

    /// The earliest start that a source on the topic asks for.
    fn start(&self, topic: &str) -> Start {
        let mut start = Start::Latest;
        for (_, source) in self.sources_of(topic) {
            start = match (source.spec.start, start) {
                (StartupMode::Earliest, _) | (_, Start::Earliest) => Start::Earliest,
                (StartupMode::TimestampMs(ms), Start::Timestamp(other)) => Start::Timestamp(ms.min(other)),
                (StartupMode::TimestampMs(ms), Start::Latest) => Start::Timestamp(ms),
                (StartupMode::GroupOffsets | StartupMode::Latest, start) => start,
            };
        }
        start
    }

    fn reads_headers(&self) -> bool {
        self.decoders.iter().any(|decoder| decoder.reads_headers())
    }

    fn tables(&self) -> Vec<String> {
        let topics: BTreeSet<&str> = self.tables.topics().collect();
        topics.into_iter().map(str::to_owned).collect()
    }

    /// Every instance's progress goes to every partition of `panes`: one of them tells it all.
    fn side_inputs(&self, _partition: &TopicPartition) -> Vec<TopicPartition> {
        let mut sides = vec![TopicPartition::new(Arc::clone(&self.panes), 0)];
        if self.follow.is_on() {
            sides.push(TopicPartition::new(self.topics.control(), 0));
        }
        sides
    }

    fn idle_inputs(&self) -> Vec<TopicPartition> {
        let control = self
            .follow
            .is_on()
            .then(|| TopicPartition::new(self.topics.control(), 0));
        control.into_iter().collect()
    }

    fn side_position(&self, side: &TopicPartition) -> SidePosition {
        match side.topic == self.panes {
            true => SidePosition::End,
            false => SidePosition::Beginning,
        }
    }

    fn is_changing(&self) -> bool {
        self.follow.is_changing()
    }

    fn change(&mut self) {
        self.partitions.clear();
        let (changed, newest) = self
            .follow
            .change(|versions, decoders| planned(&all(versions), decoders));
        if let Some((sources, decoders, tables)) = changed {
            self.sources = sources;
            self.tables = tables;
            self.decoders = decoders;
            self.sinks = SideSinks::new(&newest);
            // Named by index, and the indices are others now.
            self.counters.dead_letters.clear();
            self.counters.evictions.clear();
        }
    }

    fn lookback(&self, place: &TopicPartition, committed: Option<&Committed>) -> Option<i64> {
        self.looks_back(place, committed)
    }

    fn assigned(&mut self, place: &TopicPartition, assignment: &Assignment) -> Result<i64, StageError> {
        let stop = |reason: String| StageError::Partition {
            partition: place.clone(),
            reason,
        };
        let partition = self.open(place, assignment).map_err(|error| match error {
            Error::Unreadable { .. } => stop(format!("{error}; reset the group's offset to start afresh")),
            error => fatal(error),
        })?;
        let low_water = partition.lanes.iter().map(|(_, lane)| lane.read_from()).min();
        let from = low_water.unwrap_or(partition.committed);
        if from > partition.committed || partition.committed > assignment.log_end_offset {
            return Err(stop(format!(
                "offset {} is committed and rows from offset {from} on are not published yet, but the log ends at {}; was the topic made anew?",
                partition.committed, assignment.log_end_offset
            )));
        }
        if from < assignment.log_start_offset {
            return Err(stop(format!(
                "rows from offset {from} on are not published yet, but the log starts at {}; they are lost unless the topic's retention is longer: reset the group's offset to go on without them",
                assignment.log_start_offset
            )));
        }
        self.partition_counts
            .insert(Arc::clone(&place.topic), assignment.partition_count);
        if self.partitions.is_empty() {
            self.follow.announce_anew();
            self.tables.forget();
        }
        self.partitions.insert(place.clone(), partition);
        self.progress_due = true;
        self.align();
        Ok(from)
    }

    fn revoked(&mut self, partition: &TopicPartition) {
        self.partitions.remove(partition);
        self.align();
    }

    fn step(&mut self, batch: &Batch, out: &mut Outputs) -> Result<(), StageError> {
        for run in Run::split(batch) {
            if run.place.topic == self.panes {
                self.peers_say(&run);
            } else if *run.place.topic == *self.topics.control() {
                run.records().for_each(|record| self.follow.hear(&record));
            } else if self.tables.topics().any(|topic| topic == &*run.place.topic) {
                run.records().for_each(|record| self.tables.read(&record));
            } else {
                self.run(&run, out).map_err(fatal)?;
            }
        }
        self.align();
        Ok(())
    }

    fn rereads(&self) -> Vec<(TopicPartition, i64)> {
        self.reread_places()
    }

    fn reread(&mut self, batch: &Batch, next: &[(TopicPartition, i64)], out: &mut Outputs) -> Result<(), StageError> {
        self.reread_batch(batch, next, out).map_err(fatal)
    }

    fn tick(&mut self, clock: Clock<'_>, _out: &mut Outputs) -> Result<(), StageError> {
        self.now_ms = clock.now_ms;
        for (topic, count) in clock.partition_counts {
            if let Some(known) = self.partition_counts.get_mut(topic) {
                *known = (*known).max(*count);
            }
        }
        let Self {
            partitions, sources, ..
        } = self;
        for (place, partition) in partitions {
            if !clock.caught_up.contains(place) {
                partition.quiet_since_ms = None;
                partition.lanes.iter_mut().for_each(|(_, lane)| lane.idle_due = false);
                continue;
            }
            let since_ms = *partition.quiet_since_ms.get_or_insert(clock.now_ms);
            for (source, lane) in &mut partition.lanes {
                // Nothing more is there: what is missing up to the committed offset are the markers of transactions.
                lane.end_replay().map_err(fatal)?;
                let timeout_ms = sources[*source].spec.idle_timeout_ms;
                lane.idle_due =
                    !lane.is_idle() && timeout_ms.is_some_and(|timeout_ms| clock.now_ms - since_ms >= timeout_ms);
            }
        }
        let mut lanes = self.partitions.values().flat_map(|partition| &partition.lanes);
        if lanes.any(|(_, lane)| lane.crossed || lane.idle_due) {
            self.news_since_ms.get_or_insert(clock.now_ms);
        }
        self.progress_due |= clock.now_ms - self.last_progress_ms >= self.options.progress_interval_ms;
        self.align();
        Ok(())
    }

    /// A window closes with the last of its partitions, so the commit waits until all have passed its end: one for the first would make
    /// the others wait for the next.
    fn urgent(&self) -> bool {
        let lanes = || self.partitions.values().flat_map(|partition| &partition.lanes);
        let has_news = |(_, lane): &(usize, Lane)| lane.crossed || lane.idle_due;
        if lanes().any(|(_, lane)| lane.is_backfill_full()) {
            return true;
        }
        lanes().any(has_news)
            && (lanes().all(|lane| has_news(lane) || lane.1.is_idle())
                || self
                    .news_since_ms
                    .is_some_and(|since_ms| self.now_ms - since_ms >= OTHERS_WAIT_MS)
                || lanes().map(|(_, lane)| lane.sealed_bytes()).sum::<usize>() > SEALED_BYTES_MAX)
    }

    fn paused(&self) -> Vec<TopicPartition> {
        let paused = self.partitions.iter().filter(|(_, partition)| partition.paused);
        paused.map(|(place, _)| place.clone()).collect()
    }

    fn before_commit(&mut self, out: &mut Outputs) -> Result<Vec<Progress>, StageError> {
        self.commit(out).map_err(fatal)
    }

    fn committed(&mut self) {
        self.news_since_ms = None;
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, &[(&'static str, &str)], f64)) {
        if self.follow.is_on() {
            sink("pipelines_version", &[], self.follow.version() as f64);
        }
        sink("rows_total", &[], self.counters.rows as f64);
        sink("rows_backfilled_total", &[], self.counters.rows_backfilled as f64);
        for ((source, fault), count) in &self.counters.dead_letters {
            let labels = [
                ("source", self.sources[*source].name.as_str()),
                ("reason", fault.label()),
            ];
            sink("dead_letters_total", &labels, *count as f64);
        }
        for (source, count) in &self.counters.evictions {
            let labels = [("source", self.sources[*source].name.as_str())];
            sink("state_evictions_total", &labels, *count as f64);
        }
        self.tables.observe(|table, keys, refused| {
            sink("table_keys", &[("table", table)], keys as f64);
            sink("table_records_refused_total", &[("table", table)], refused as f64);
        });
        for (view, count) in &self.counters.late {
            sink("late_rows_total", &[("view", view)], *count as f64);
        }
        for (place, partition) in &self.partitions {
            let number = place.partition.to_string();
            for (source, lane) in &partition.lanes {
                let labels = [
                    ("source", self.sources[*source].name.as_str()),
                    ("partition", number.as_str()),
                ];
                if let Some(watermark_ms) = lane.watermark_ms().filter(|_| self.now_ms > 0) {
                    let delay_ms = self.now_ms - watermark_ms;
                    sink("watermark_delay_seconds", &labels, delay_ms as f64 / 1_000.0);
                }
                sink("idle", &labels, f64::from(u8::from(lane.is_idle())));
                sink(
                    "open_panes",
                    &labels,
                    lane.stores().map(|store| store.open_panes()).sum::<usize>() as f64,
                );
                sink(
                    "keys",
                    &labels,
                    lane.stores().map(|store| store.keys()).sum::<usize>() as f64,
                );
                sink(
                    "pane_bytes",
                    &labels,
                    lane.stores().map(|store| store.size()).sum::<usize>() as f64,
                );
            }
            let left = partition.rereads_from().map_or(0, |from| partition.position - from);
            sink(
                "backfill_lag_records",
                &[("topic", &place.topic), ("partition", &number)],
                left as f64,
            );
            sink(
                "paused",
                &[("topic", &place.topic), ("partition", &number)],
                f64::from(u8::from(partition.paused)),
            );
        }
    }
}
