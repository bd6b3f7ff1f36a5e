//! Replay: files → what the pipeline makes of them, through the stages that run in production.
//!
//! Rows are taken in the order of their event times, source by source, those of a UNION ALL together: the watermark is what has been read, so that no
//! row is ever late, and a view holds exactly what a batch query over the files gives. Records go through
//! [`engine::aggregate::Aggregate`] and the panes it publishes through [`Detect`]; only the decoders differ, which read
//! files. The clock plays no part. At the end of a source every window that holds one of its rows closes; nothing is
//! told silent after the last row.
//!
//! Spread over several partitions, in whatever order, the same files give the same bytes: totals are exact, and what
//! depends on order goes by event time.

mod cost;
pub mod input;
mod lines;
#[cfg(test)]
mod oracle;
mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context;
use engine::{
    Error,
    aggregate::{Aggregate, Decode, Decoders, Options, Rows},
    spec::{DetectorInput, Metadata, Pipeline, SinkFormat, SinkInput, SinkSpec, SourceSpec},
    table::TableSpec,
};
use protocol::{
    Assignment, Batch, Clock, Outputs, Stage, TimestampKind, TopicPartition, Topics,
    log::{self, PartitionProgress, SourceProgress},
};
use telemetry::RecordMeta;

use crate::{
    error::Refused,
    stages::{
        aggregate::Telemetry,
        detect::{self, Detect},
    },
};
pub use cost::{Cost, cost_per_row};
pub use input::Input;
pub use lines::Replayed;
use lines::{Lines, Shared};

/// Records between two looks at what has closed.
const RECORDS_PER_CHUNK: usize = 16_384;
/// Silence is judged at every second of event time, as live.
const SILENCE_STEP_MS: i64 = 1_000;
/// Longer than time: a partition never decides by itself that a row is late, or that a pane is full.
const DELAY_MS: i64 = 400_000_000_000_000;
/// Reasons that are named; the rest is counted.
const REASONS_MAX: usize = 5;

/// What became of the records that were no rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    pub count: u64,
    /// The first of them, with where they are.
    pub reasons: Vec<String>,
}

/// Replays one pipeline over the files of its sources: `inputs[i]` is of `pipeline.sources[i]`, `None` where there is
/// none. Those behind the sources' are of [`engine::table::tables`], which need one. `partitions` spreads every source in a fixed random order.
pub fn replay(
    pipeline: &Pipeline,
    inputs: Vec<Option<Input>>,
    partitions: i32,
) -> anyhow::Result<(Replayed, Refusals)> {
    let (mut inputs, tables) = split(pipeline, inputs)?;
    let files = from_files(pipeline);
    let lines = Arc::new(Mutex::new(Lines::new(&files)));
    let mut refusals = Refusals::default();
    let mut waiting = groups(pipeline);
    // A source that reads what a sink writes comes after the source of what it writes.
    while let Some(at) = waiting
        .iter()
        .position(|group| is_ready(pipeline, &inputs, group, &waiting))
    {
        let group = waiting.remove(at);
        for source in &group {
            if inputs[*source].is_none() {
                inputs[*source] = from_sinks(pipeline, *source, &lock(&lines))?.map(Arc::new);
            }
        }
        if group.iter().any(|source| inputs[*source].is_some()) {
            let decoders = Files(&inputs, &tables);
            let mut walk = Walk::new(files.clone(), &decoders, partitions, Shared(Arc::clone(&lines)))?;
            walk.tables(&tables)?;
            walk.sources(&group, &inputs, &lines)?;
            refusals.add(walk.refusals);
        }
    }
    if let Some(source) = waiting.iter().flatten().find(|source| inputs[**source].is_none()) {
        let name = &pipeline.sources[*source].name;
        return Err(Refused::new(format!("source {name} reads what comes of itself"))
            .help("give it a file, or write the sink to another topic")
            .into());
    }
    let replayed = lock(&lines).take();
    Ok((replayed, refusals))
}

type Inputs = (Vec<Option<Arc<Input>>>, Vec<(Arc<TableSpec>, Arc<Input>)>);

/// Inputs of sources, and those of tables, each of which needs one.
fn split(pipeline: &Pipeline, mut inputs: Vec<Option<Input>>) -> Result<Inputs, Refused> {
    inputs.resize_with(inputs.len().max(pipeline.sources.len()), || None);
    let mut tables = Vec::new();
    let mut given = inputs.split_off(pipeline.sources.len()).into_iter();
    for table in engine::table::tables(pipeline) {
        let Some(Some(input)) = given.next() else {
            let name = &table.name;
            return Err(Refused::new(format!("table {name} has no file"))
                .help(format!("give it one, if only an empty one: --source {name}=FILE")));
        };
        tables.push((table, Arc::new(input)));
    }
    Ok((inputs.into_iter().map(|input| input.map(Arc::new)).collect(), tables))
}

/// Sources that views read, each once.
fn sources_of(pipeline: &Pipeline, view: usize) -> Vec<usize> {
    let sets = pipeline.views[view].pane_sets.iter();
    let mut sources: Vec<usize> = sets.map(|set| pipeline.pane_sets[*set].source).collect();
    sources.sort_unstable();
    sources.dedup();
    sources
}

/// Sources that some view reads together, by the least of them.
fn groups(pipeline: &Pipeline) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = (0..pipeline.sources.len()).map(|source| vec![source]).collect();
    for view in 0..pipeline.views.len() {
        let sources = sources_of(pipeline, view);
        let (joined, apart): (Vec<_>, Vec<_>) = groups
            .into_iter()
            .partition(|group| group.iter().any(|source| sources.contains(source)));
        groups = apart;
        let mut joined = joined.concat();
        joined.sort_unstable();
        groups.push(joined);
    }
    groups.sort_unstable();
    groups
}

/// The sinks that write to a source's topic, with the sources of what each writes.
fn feeding(pipeline: &Pipeline, source: usize) -> impl Iterator<Item = (&SinkSpec, Vec<usize>)> {
    let topic = &pipeline.sources[source].topic;
    let sinks = pipeline.sinks.iter().filter(move |sink| sink.topic == *topic);
    sinks.map(move |sink| {
        let from = match sink.input {
            SinkInput::View(view) | SinkInput::Late(view) => sources_of(pipeline, view),
            SinkInput::DeadLetters(source) => vec![source],
            SinkInput::Detector(detector) => match pipeline.detectors[detector].input {
                DetectorInput::View(view) => sources_of(pipeline, view),
                DetectorInput::PaneSet(set) => vec![pipeline.pane_sets[set].source],
            },
        };
        (sink, from)
    })
}

/// Whether all that feeds these sources has been read.
fn is_ready(pipeline: &Pipeline, inputs: &[Option<Arc<Input>>], group: &[usize], waiting: &[Vec<usize>]) -> bool {
    let unread = |from: &usize| waiting.iter().flatten().any(|source| source == from);
    group
        .iter()
        .all(|source| inputs[*source].is_some() || !feeding(pipeline, *source).any(|(_, from)| from.iter().any(unread)))
}

/// What sinks have written to the topic of a source, as its input.
fn from_sinks(pipeline: &Pipeline, source: usize, lines: &Lines) -> anyhow::Result<Option<Input>> {
    let mut text = Vec::new();
    let mut names = Vec::new();
    for (sink, _) in feeding(pipeline, source) {
        let what = &pipeline.sources[source].name;
        if sink.format != SinkFormat::Json {
            let message = format!(
                "source {what} reads what sink {} writes, which is no plain JSON",
                sink.name
            );
            return Err(Refused::new(message)
                .help(format!("give it a file: --source {what}=FILE"))
                .into());
        }
        text.extend_from_slice(lines.of(sink.input));
        names.push(sink.name.as_str());
    }
    if names.is_empty() {
        return Ok(None);
    }
    let place = PathBuf::from(format!("sink {}", names.join(", ")));
    Ok(Some(Input::from_lines(&pipeline.sources[source], &place, &text)?))
}

fn lock(lines: &Mutex<Lines>) -> MutexGuard<'_, Lines> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pipeline as it reads files: sources apart from each other, and no judgement that rests on the clock or the log.
fn from_files(pipeline: &Pipeline) -> Pipeline {
    let mut pipeline = pipeline.clone();
    for (index, source) in pipeline.sources.iter_mut().enumerate() {
        source.topic = format!("{index}.{}", source.topic);
        source.fingerprint = index as u64;
        source.delay_ms = DELAY_MS;
        source.idle_timeout_ms = Some(1);
        source.max_future_skew_ms = i64::MAX;
    }
    for (index, set) in pipeline.pane_sets.iter_mut().enumerate() {
        set.fingerprint = index as u64;
        // How many keys meet in a pane of a partition is a matter of partitions.
        set.state_limit = None;
    }
    pipeline
}

impl Refusals {
    fn add(&mut self, more: Self) {
        self.count += more.count;
        self.reasons.extend(more.reasons);
        self.reasons.truncate(REASONS_MAX);
    }
}

/// One record of a source, in the order of replay.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    /// Least event time of its rows; of a record without one the least there is.
    from_ms: i64,
    source: usize,
    at: u32,
    to_ms: i64,
}

/// The stages and what goes between them.
struct Walk {
    pipeline: Arc<[Pipeline]>,
    aggregate: Aggregate,
    detect: Detect,
    topics: Topics,
    partitions: i32,
    records: Batch,
    panes: Batch,
    panes_offset: i64,
    /// By source and partition.
    offsets: Vec<Vec<i64>>,
    now_ms: i64,
    refusals: Refusals,
}

impl Walk {
    fn new(pipeline: Pipeline, decoders: &Files<'_>, partitions: i32, tap: Shared) -> anyhow::Result<Self> {
        let pipeline: Arc<[Pipeline]> = vec![pipeline].into();
        let topics = Topics::new("replay.");
        let options = Options {
            message_bytes_max: i32::MAX as usize,
            keys_max: i32::MAX as usize / 4,
            ..Options::default()
        };
        let mut aggregate = Aggregate::new(&pipeline, topics.clone(), options, decoders)?;
        let mut detect =
            Detect::new(Arc::clone(&pipeline), topics.clone(), detect::Options::default())?.tapped(Box::new(tap));
        let first = |partition_count| Assignment {
            committed: None,
            start_offset: 0,
            lookback_offset: None,
            log_start_offset: 0,
            log_end_offset: 0,
            partition_count,
        };
        for source in &pipeline[0].sources {
            for partition in 0..partitions {
                let place = TopicPartition::new(source.topic.as_str(), partition);
                aggregate.assigned(&place, &first(partitions))?;
            }
        }
        detect.assigned(&TopicPartition::new(topics.panes(), 0), &first(1))?;
        Ok(Self {
            offsets: vec![vec![0; partitions as usize]; pipeline[0].sources.len()],
            pipeline,
            aggregate,
            detect,
            topics,
            partitions,
            records: Batch::default(),
            panes: Batch::default(),
            panes_offset: 0,
            now_ms: 1,
            refusals: Refusals::default(),
        })
    }

    /// The rows of tables, in the order of their files; all of them before the first row of a source, as live.
    fn tables(&mut self, tables: &[(Arc<TableSpec>, Arc<Input>)]) -> anyhow::Result<()> {
        for (table, input) in tables {
            self.records.clear();
            let handle = self.records.partition(&table.source.topic, 0);
            for at in 0..input.records() as u32 {
                let (time, key) = ((0, TimestampKind::LogAppend), at.to_le_bytes());
                // With a value, for without one it would end the row; which, its file tells.
                self.records
                    .push(handle, i64::from(at), time, Some(&key), Some(&key), []);
            }
            self.aggregate.step(&self.records, &mut Outputs::default())?;
            if let Some((offset, reason)) = self.aggregate.refused_by_table(&table.name) {
                let place = input.place(offset as u32);
                return Err(Refused::new(format!("{place}: no row of table {}: {reason}", table.name)).into());
            }
        }
        Ok(())
    }

    /// Sources that views read together, by event time.
    fn sources(&mut self, group: &[usize], inputs: &[Option<Arc<Input>>], lines: &Mutex<Lines>) -> anyhow::Result<()> {
        let files = || {
            group
                .iter()
                .filter_map(|source| Some((*source, inputs[*source].as_ref()?)))
        };
        let items = items(files());
        let watched = self.pipeline[0].detectors.iter().any(|detector| match detector.input {
            DetectorInput::PaneSet(set) => group.contains(&self.pipeline[0].pane_sets[set].source),
            DetectorInput::View(_) => false,
        });
        // By source, where its last record stands, and the time of its last row.
        let mut ends: BTreeMap<usize, (usize, i64)> = BTreeMap::new();
        for (at, item) in items.iter().enumerate() {
            let (end, last_ms) = ends.entry(item.source).or_insert((at, item.to_ms));
            (*end, *last_ms) = (at, item.to_ms.max(*last_ms));
        }
        let mut last_ms = i64::MIN;
        let mut from = 0;
        while from < items.len() {
            let to = chunk_end(&items, from, watched);
            for (source, input) in files() {
                let chunk = items[from..to].iter().filter(|item| item.source == source);
                self.feed(source, input, chunk.copied().collect())?;
                if let Some((_, last_ms)) = ends.get(&source).filter(|(end, _)| *end < to) {
                    lock(lines).end(source, *last_ms);
                }
            }
            last_ms = items[from..to].iter().map(|item| item.to_ms).fold(last_ms, i64::max);
            let next_ms = items.get(to).map_or(i64::MAX, |item| item.from_ms);
            self.advance(group, last_ms.min(next_ms))?;
            from = to;
        }
        if last_ms == i64::MIN {
            return Ok(());
        }
        for source in group.iter().filter(|source| !ends.contains_key(source)) {
            lock(lines).end(*source, i64::MIN);
        }
        let windows = self.pipeline[0]
            .pane_sets
            .iter()
            .filter(|set| group.contains(&set.source));
        let windows = windows.flat_map(|set| &set.windows);
        let longest_ms = windows.map(|window| window.size_ms + window.lateness_ms).max();
        self.advance(group, last_ms + longest_ms.unwrap_or(0))
    }

    /// Records → panes → detect.
    fn feed(&mut self, source: usize, input: &Input, mut order: Vec<Item>) -> anyhow::Result<()> {
        if order.is_empty() {
            return Ok(());
        }
        let topic = self.pipeline[0].sources[source].topic.clone();
        self.records.clear();
        let handles: Vec<u32> = (0..self.partitions)
            .map(|partition| self.records.partition(&topic, partition))
            .collect();
        if self.partitions > 1 {
            order.sort_unstable_by_key(|item| mix(u64::from(item.at)));
        }
        for item in &order {
            let partition = (mix(u64::from(item.at) ^ 0x5bd1_e995) % self.partitions as u64) as usize;
            let offset = &mut self.offsets[source][partition];
            let time = (item.from_ms.max(0), TimestampKind::LogAppend);
            let key = item.at.to_le_bytes();
            self.records
                .push(handles[partition], *offset, time, Some(&key), None, []);
            *offset += 1;
        }
        let mut out = Outputs::default();
        self.aggregate.step(&self.records, &mut out)?;
        let places: Vec<TopicPartition> = (0..self.partitions)
            .map(|partition| TopicPartition::new(topic.as_str(), partition))
            .collect();
        // Caught up and quiet: what is folded is said, however full its panes are.
        for _ in 0..2 {
            self.now_ms += 1;
            let clock = Clock {
                now_ms: self.now_ms,
                caught_up: &places,
                partition_counts: &[],
            };
            self.aggregate.tick(clock, &mut out)?;
        }
        self.aggregate.before_commit(&mut out)?;
        self.aggregate.committed();
        self.forward(input, out)
    }

    /// Hands panes to detect, and keeps what was refused.
    fn forward(&mut self, input: &Input, out: Outputs) -> anyhow::Result<()> {
        let (panes, dead) = (self.topics.panes(), self.topics.dead_letters());
        self.panes.clear();
        let handle = self.panes.partition(&panes, 0);
        for output in &out.records {
            let header = |name: &str| {
                let found = output.headers.iter().find(|(known, _)| known == name);
                found.map(|(_, value)| value.as_slice())
            };
            if *output.topic == *dead {
                let reason = String::from_utf8_lossy(header("reason").unwrap_or_default()).into_owned();
                self.refuse(input, output.key.as_deref(), &reason);
            } else if *output.topic == *panes && header(log::KIND) == Some(log::KIND_PANES.as_bytes()) {
                let headers = output
                    .headers
                    .iter()
                    .map(|(name, value)| (name.as_str(), value.as_slice()));
                let time = (0, TimestampKind::Create);
                self.panes
                    .push(handle, self.panes_offset, time, None, output.value.as_deref(), headers);
                self.panes_offset += 1;
            }
        }
        self.step_detect()
    }

    fn refuse(&mut self, input: &Input, key: Option<&[u8]>, reason: &str) {
        self.refusals.count += 1;
        if self.refusals.reasons.len() < REASONS_MAX {
            let at = key.and_then(|key| Some(u32::from_le_bytes(key.try_into().ok()?)));
            let place = at.map_or_else(String::new, |at| format!("{}: ", input.place(at)));
            self.refusals.reasons.push(format!("{place}{reason}"));
        }
    }

    /// Everything before this time has been read.
    fn advance(&mut self, group: &[usize], watermark_ms: i64) -> anyhow::Result<()> {
        group
            .iter()
            .try_for_each(|source| self.advance_source(*source, watermark_ms))
    }

    fn advance_source(&mut self, source: usize, watermark_ms: i64) -> anyhow::Result<()> {
        let offsets = &self.offsets[source];
        let partitions = offsets.iter().enumerate().map(|(partition, offset)| PartitionProgress {
            partition: partition as i32,
            watermark_ms: Some(watermark_ms),
            idle: false,
            source_offset: *offset,
            sets: Vec::new(),
            version: 0,
        });
        let progress = SourceProgress {
            source: self.pipeline[0].sources[source].fingerprint,
            partition_count: self.partitions,
            partitions: partitions.collect(),
            clock: 0,
        };
        let value = serde_json::to_vec(&progress).context("progress")?;
        self.panes.clear();
        let handle = self.panes.partition(&self.topics.panes(), 0);
        let headers = [(log::KIND, log::KIND_PROGRESS.as_bytes())];
        let time = (0, TimestampKind::Create);
        self.panes
            .push(handle, self.panes_offset, time, None, Some(&value), headers);
        self.panes_offset += 1;
        self.step_detect()
    }

    /// What detect publishes is not wanted here: the tap has seen all of it.
    fn step_detect(&mut self) -> anyhow::Result<()> {
        let mut out = Outputs::default();
        self.detect.step(&self.panes, &mut out)?;
        let dead = self.topics.dead_letters();
        if let Some(letter) = out.records.iter().find(|output| *output.topic == *dead) {
            let reason = letter.headers.iter().find(|(name, _)| name == "reason");
            let reason = reason.map(|(_, reason)| String::from_utf8_lossy(reason).into_owned());
            anyhow::bail!("detect refuses panes: {}", reason.unwrap_or_default());
        }
        Ok(())
    }
}

/// The records of inputs by event time; equal times stay in the order of the file.
fn items<'a>(inputs: impl Iterator<Item = (usize, &'a Arc<Input>)>) -> Vec<Item> {
    let mut items = Vec::new();
    for (source, input) in inputs {
        items.extend(input.times_ms.iter().enumerate().map(|(at, span)| {
            let (from_ms, to_ms) = span.unwrap_or((i64::MIN, i64::MIN));
            Item {
                from_ms,
                source,
                at: at as u32,
                to_ms,
            }
        }));
    }
    items.sort_unstable();
    items
}

/// Where the chunk that begins at `from` ends.
fn chunk_end(items: &[Item], from: usize, watched: bool) -> usize {
    let most = (from + RECORDS_PER_CHUNK).min(items.len());
    if !watched {
        return most;
    }
    let step = |item: &Item| item.from_ms.div_euclid(SILENCE_STEP_MS);
    let first = step(&items[from]);
    items[from..most].partition_point(|item| step(item) <= first) + from
}

/// The finaliser of SplitMix64: a fixed random order.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Decoders that find the value of a record in its file, by the number that is its key.
struct Files<'a>(&'a [Option<Arc<Input>>], &'a [(Arc<TableSpec>, Arc<Input>)]);

impl Decoders for Files<'_> {
    fn decoder(&self, source: &SourceSpec) -> Result<Box<dyn Decode>, Error> {
        let table = self
            .1
            .iter()
            .find(|(table, _)| table.source.fingerprint == source.fingerprint);
        let input = match table {
            Some((_, input)) => Some(input),
            None => usize::try_from(source.fingerprint)
                .ok()
                .and_then(|at| self.0.get(at)?.as_ref()),
        };
        let Some(input) = input else {
            return Telemetry.decoder(source);
        };
        if let Some(table) = &input.table {
            return Ok(Box::new(table::TableDecode::new(table.clone())));
        }
        let decoder = input.decoder(source).map_err(|error| Error::Unreadable {
            what: "source",
            reason: error.to_string(),
        })?;
        Ok(Box::new(FileDecode {
            input: Arc::clone(input),
            decoder,
            key: key_column(source).map(str::to_owned),
            offsets: Vec::new(),
        }))
    }
}

/// Name of the first METADATA column that is the record's key.
fn key_column(source: &SourceSpec) -> Option<&str> {
    let mut metadata = source.metadata.iter();
    let (column, _) = metadata.find(|(_, metadata)| *metadata == Metadata::Key)?;
    Some(source.schema.field(*column).name())
}

/// A field of a JSON object as text, if it has one.
fn text_of(document: &[u8], field: &str) -> Option<String> {
    let mut fields: BTreeMap<String, serde_json::Value> = serde_json::from_slice(document).ok()?;
    match fields.remove(field)? {
        serde_json::Value::String(text) => Some(text),
        serde_json::Value::Null => None,
        other => Some(other.to_string()),
    }
}

/// The number of a record in its input.
fn number(key: Option<&[u8]>) -> Result<u32, String> {
    let key = key.and_then(|key| key.try_into().ok());
    key.map(u32::from_le_bytes).ok_or_else(|| "no number".to_owned())
}

struct FileDecode {
    input: Arc<Input>,
    decoder: telemetry::Decoder,
    /// The column that is the record's key, live.
    key: Option<String>,
    /// Of the record that each row came from, as the stage counts them.
    offsets: Vec<i64>,
}

impl Decode for FileDecode {
    fn push(&mut self, record: &protocol::Record<'_>, _receive_ms: i64) -> Result<usize, String> {
        let at = number(record.key)?;
        let mut meta = RecordMeta::new(i64::from(at), record.timestamp_ms);
        meta.topic = &self.input.topic;
        let value = self.input.value(at);
        let key = self.key.as_ref().and_then(|column| text_of(value, column));
        meta.key = key.as_deref().map(str::as_bytes);
        let decoded = self.decoder.push(value, &meta);
        let rows = decoded.map_err(|reject| reject.to_string())?;
        self.offsets.resize(self.offsets.len() + rows, record.offset);
        Ok(rows)
    }

    fn finish(&mut self) -> Result<Rows, Error> {
        let rows = self.decoder.finish();
        Ok(Rows {
            batch: rows.batch,
            offsets: std::mem::take(&mut self.offsets),
            record_ms: rows.record_ms,
        })
    }
}
