//! Detect: panes → windows → scores → anomalies.
//!
//! Composes `engine::assemble` with the `detector` crate and keeps each entity's detector state. State goes to the compacted
//! topic staggered over an interval, not at every window; recovery replays `panes` from a low-water offset and rolls every entity forward
//! from the offset that its own state includes (`correctness.md` rules 8–12 in spirit; `src/README.md`, "Contracts between
//! the stages"). A pane record that cannot be read becomes a dead letter.

mod entities;
mod judge;
mod live;
mod part;
mod silence;
mod sink;
mod watch;

use std::{collections::BTreeMap, sync::Arc};

use arrow::array::RecordBatch;
use engine::{
    aggregate::SideSink,
    assemble::{Assembled, Assembler, ClosedWindow, LatePane},
    json,
    panes::read_panes,
    spec::{Pipeline, SinkInput},
    version::{Compile, Version},
};
use protocol::{
    Assignment, Batch, CloudEvent, Outputs, Progress, Record, Stage, StageError, Start, TopicPartition, Topics,
    cloudevent, id,
    log::{self, Note, PaneHeader, SourceProgress},
    message::{Anomaly, TimeProgress},
};

use super::DEAD_LETTER_BYTES;
use entities::Entities;
use live::Live;
use part::{EntityRecord, Part, ProgressRecord};
use sink::write_rows;

/// How often detect writes what it knows.
#[derive(Clone, Debug)]
pub struct Options {
    /// Every changed state is rewritten at least so often; the replay after a restart is about as long.
    pub state_interval_ms: i64,
    /// An entity not seen for so long, in event time, is forgotten.
    pub entity_ttl_ms: i64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            state_interval_ms: 30_000,
            entity_ttl_ms: 24 * 3_600_000,
        }
    }
}

/// Sees what becomes of windows, alarm or not: what a replay writes down.
pub trait Tap: Send {
    /// A window closed, or spoke early; its rows may be none.
    fn closed(&mut self, window: &ClosedWindow);
    /// A detector scored one row of a window.
    fn scored(&mut self, score: &Anomaly);
    /// A silence detector spoke.
    fn silent(&mut self, score: &Anomaly);
}

/// Counters for the operator.
#[derive(Default)]
struct Counts {
    windows: u64,
    rows: u64,
    anomalies: u64,
    level_shifts: u64,
    late: u64,
    stale: u64,
    dead: u64,
}

/// The detect stage.
pub struct Detect {
    /// What a partition without a state begins with.
    initial: Arc<Live>,
    /// The same for every partition that is at these versions.
    lives: BTreeMap<Vec<u64>, Arc<Live>>,
    compile: Option<Arc<dyn Compile>>,
    topics: Topics,
    options: Options,
    parts: BTreeMap<TopicPartition, Part>,
    counts: Counts,
    urgent: bool,
    tap: Option<Box<dyn Tap>>,
}

impl Detect {
    /// Fails when a detector's name or options are not valid; `validate` says the same with a place.
    pub fn new(pipelines: Arc<[Pipeline]>, topics: Topics, options: Options) -> Result<Self, detector::Error> {
        Self::of(Version::fixed(pipelines), topics, options, None)
    }

    /// The stage of a fleet whose pipelines are versioned: it begins with this version where there is no state, and goes over to others
    /// where the log says so.
    pub fn following(
        version: Version,
        topics: Topics,
        options: Options,
        compile: Arc<dyn Compile>,
    ) -> Result<Self, detector::Error> {
        Self::of(version, topics, options, Some(compile))
    }

    fn of(
        version: Version,
        topics: Topics,
        options: Options,
        compile: Option<Arc<dyn Compile>>,
    ) -> Result<Self, detector::Error> {
        Ok(Self {
            initial: Arc::new(Live::new(vec![version])?),
            lives: BTreeMap::new(),
            compile,
            topics,
            options,
            parts: BTreeMap::new(),
            counts: Counts::default(),
            urgent: false,
            tap: None,
        })
    }

    /// Shows everything to `tap`, too.
    pub fn tapped(mut self, tap: Box<dyn Tap>) -> Self {
        self.tap = Some(tap);
        self
    }

    /// Windows and versions as they stood at low-water.
    fn restored(
        &mut self,
        partition: &TopicPartition,
        record: &ProgressRecord,
    ) -> Result<(Assembler, Arc<Live>), StageError> {
        let mut versions = Vec::new();
        for number in &record.versions {
            let told = self.part(partition)?.stored_versions.get(number).cloned();
            let told = told.ok_or_else(|| StageError::Partition {
                partition: partition.clone(),
                reason: format!("the state topic has no version {number} of the pipelines, which windows are open of"),
            })?;
            versions.push(self.compiled(told)?);
        }
        let live = match versions.is_empty() {
            true => Arc::clone(&self.initial),
            false => self.live(versions)?,
        };
        let versions = live.versions.iter();
        let versions: Vec<_> = versions.map(|version| (version.number, &*version.pipelines)).collect();
        let standings = Some(&*record.standings).filter(|_| !record.versions.is_empty());
        let assembler = Assembler::restored(&versions, record.table.clone(), standings);
        Ok((assembler.map_err(|error| StageError::Fatal(chain(&error)))?, live))
    }

    fn part(&mut self, partition: &TopicPartition) -> Result<&mut Part, StageError> {
        if !self.parts.contains_key(partition) {
            let live = Arc::clone(&self.initial);
            let version = &live.versions[0];
            let assembler =
                Assembler::of(version.number, &version.pipelines).map_err(|error| StageError::Fatal(chain(&error)))?;
            self.parts.insert(partition.clone(), Part::new(assembler, live));
        }
        Ok(self.parts.get_mut(partition).expect("inserted above"))
    }

    fn record(&mut self, record: Record<'_>, out: &mut Outputs) -> Result<(), StageError> {
        let Some(mut part) = self.parts.remove(record.partition) else {
            return Ok(());
        };
        let done = self.record_in(&mut part, record, out);
        part.next_offset = record.offset + 1;
        self.parts.insert(record.partition.clone(), part);
        done
    }

    fn record_in(&mut self, part: &mut Part, record: Record<'_>, out: &mut Outputs) -> Result<(), StageError> {
        let live = record.offset >= part.committed;
        let assembled = match read(&record) {
            Ok(Entry::Panes(header, rows)) => part.assembler.panes(record.offset, &header, &rows),
            Ok(Entry::Progress(progress)) => {
                part.clock_ms = part.clock_ms.max(progress.clock);
                part.assembler.progress(&progress)
            }
            Ok(Entry::Note(note)) => {
                part.note(note);
                return Ok(());
            }
            Ok(Entry::Version(version)) => return self.follow(part, record.offset, version),
            Err(reason) => {
                self.reject(&record, &reason, live, out);
                return Ok(());
            }
        };
        let spoken = out.records.len();
        match assembled {
            Ok(assembled) => {
                let first_end = assembled.closed.first().map(|window| window.end_ms);
                self.assembled(part, record, assembled, live, out)?;
                if live {
                    self.forward_time(part, &record, spoken, first_end, out);
                }
            }
            Err(error) => self.reject(&record, &chain(&error), live, out),
        }
        Ok(())
    }

    /// Goes over to a version of the pipelines.
    fn follow(&mut self, part: &mut Part, offset: i64, told: log::Version) -> Result<(), StageError> {
        if told.version <= part.live.newest() || self.compile.is_none() {
            return Ok(());
        }
        let version = self.compiled(told)?;
        tracing::info!(version = version.number, offset, "pipelines taken over");
        part.assembler
            .follow(version.number, &version.pipelines)
            .map_err(|error| StageError::Fatal(chain(&error)))?;
        let versions = part.live.versions.iter().cloned().chain([version]).collect();
        self.renew(part, versions, offset)
    }

    /// Goes on with those of these versions that still have windows to close.
    fn renew(&mut self, part: &mut Part, mut versions: Vec<Version>, offset: i64) -> Result<(), StageError> {
        let newest = versions.last().map_or(0, |version| version.number);
        let oldest = part.assembler.oldest_version().unwrap_or(newest);
        versions.retain(|version| version.number >= oldest || version.number == newest);
        let live = self.live(versions)?;
        part.adopt(live, offset);
        Ok(())
    }

    fn live(&mut self, versions: Vec<Version>) -> Result<Arc<Live>, StageError> {
        let numbers: Vec<u64> = versions.iter().map(|version| version.number).collect();
        if let Some(live) = self.lives.get(&numbers) {
            return Ok(Arc::clone(live));
        }
        let live = Live::new(versions).map_err(|error| StageError::Fatal(chain(&error)))?;
        let live = Arc::new(live);
        // Those that no partition is at any more.
        self.lives.retain(|_, live| Arc::strong_count(live) > 1);
        self.lives.insert(numbers, Arc::clone(&live));
        Ok(live)
    }

    fn compiled(&self, told: log::Version) -> Result<Version, StageError> {
        let lives = self.lives.values().chain([&self.initial]);
        let mut known = lives.flat_map(|live| &live.versions);
        if let Some(version) = known.find(|version| version.number == told.version) {
            return Ok(version.clone());
        }
        let refused = |reason: String| {
            StageError::Fatal(format!(
                "version {} of the pipelines is in force, and this program cannot run it: {reason}",
                told.version
            ))
        };
        let compile = self
            .compile
            .as_ref()
            .ok_or_else(|| refused("it follows no versions".into()))?;
        Ok(Version {
            number: told.version,
            pipelines: compile.compile(&told.pipelines).map_err(refused)?,
            texts: told.pipelines.into(),
        })
    }

    fn reject(&mut self, record: &Record<'_>, reason: &str, live: bool, out: &mut Outputs) {
        if live {
            self.counts.dead += 1;
            let topic = self.topics.dead_letters().into();
            out.push(protocol::dead_letter(
                &topic,
                "detect",
                record,
                reason,
                DEAD_LETTER_BYTES,
            ));
        }
    }

    fn assembled(
        &mut self,
        part: &mut Part,
        record: Record<'_>,
        assembled: Assembled,
        live: bool,
        out: &mut Outputs,
    ) -> Result<(), StageError> {
        self.counts.stale += u64::from(assembled.stale);
        for sighting in &assembled.sightings {
            self.sighting(part, record.offset, sighting, live, out);
        }
        if live {
            for (at, late) in assembled.late.iter().enumerate() {
                let live = Arc::clone(&part.live);
                self.late(live.pipeline(late.version, late.pipeline), record, at, late, out);
            }
        }
        let scored = record.offset > part.score_from;
        for window in assembled.closed.iter().filter(|_| scored) {
            self.window(part, record.offset, window, live, out)?;
        }
        if assembled.handed_over {
            self.renew(part, part.live.versions.clone(), record.offset)?;
        }
        if assembled.advanced && scored {
            self.silences(part, record.offset, live, out)?;
        }
        Ok(())
    }

    /// Scores the rows of one closed window with every detector on its view.
    fn window(
        &mut self,
        part: &mut Part,
        offset: i64,
        window: &ClosedWindow,
        live: bool,
        out: &mut Outputs,
    ) -> Result<(), StageError> {
        let versions = Arc::clone(&part.live);
        let pipeline = versions.pipeline(window.version, window.pipeline);
        let judged = match &pipeline.views[window.view].judged {
            Some(_) if window.rows.num_rows() > 0 => Some(self.judge(part, offset, window)?),
            _ => None,
        };
        let window = judged.as_ref().unwrap_or(window);
        self.counts.windows += u64::from(live && window.early_ms.is_none());
        self.counts.rows += if live { window.rows.num_rows() as u64 } else { 0 };
        let mut tap = self.tap.as_mut().filter(|_| live);
        if let Some(tap) = &mut tap {
            tap.closed(window);
        }
        if live {
            write_rows(&self.topics, pipeline, window, out);
        }
        // What is not over is not scored.
        let over = window.early_ms.is_none();
        for (at, watch) in versions.watches.iter().enumerate().filter(|_| over) {
            if watch.is_inner || !watch.is_on(window) || window.rows.num_rows() == 0 {
                continue;
            }
            part.own(at, offset);
            let fatal = |error: arrow::error::ArrowError| StageError::Fatal(format!("{}: {error}", watch.id));
            let scored = watch.score(part, offset, window).map_err(fatal)?;
            let rulings = watch.rulings(&window.rows, &scored).map_err(fatal)?;
            for (row, score) in scored.iter().enumerate() {
                let Some((number, score)) = score else { continue };
                let entity = &mut part.entities[watch.slot][*number];
                for shift in score.level_shifts.iter().filter(|_| live) {
                    self.counts.level_shifts += 1;
                    out.push(watch.level_shift(&self.topics, &entity.meta.target, window, shift));
                }
                let change = watch.alarm(&mut entity.meta.alarm, score.is_anomaly(), &rulings, row);
                if live && (tap.is_some() || !watch.sinks.is_empty()) {
                    let change = change.clone().unwrap_or_default();
                    let scored = watch.anomaly(&window.rows, row, window, score, change);
                    watch.write_score(&self.topics, &scored, out);
                    if let Some(tap) = &mut tap {
                        tap.scored(&scored);
                    }
                }
                let Some(change) = change else { continue };
                if live {
                    let anomaly = watch.anomaly(&window.rows, row, window, score, change);
                    self.counts.anomalies += 1;
                    self.urgent = true;
                    out.push(watch.event(&self.topics, &entity.meta.target, &anomaly));
                }
            }
        }
        Ok(())
    }

    /// The rows of a late pane, which is the `at`th that the record brought about.
    fn late(&mut self, pipeline: &Pipeline, record: Record<'_>, at: usize, late: &LatePane, out: &mut Outputs) {
        let view = &pipeline.views[late.view];
        self.counts.late += late.rows.num_rows() as u64;
        let name = format!("{}.{}", pipeline.name, view.name);
        let topic = view.window.late_topic.as_ref().map_or_else(
            || self.topics.late(),
            |topic| format!("{}{topic}", self.topics.prefix()),
        );
        for row in 0..late.rows.num_rows() {
            let columns = json::row(&late.rows, row);
            let key = id::derived(
                "late",
                &[
                    &name,
                    &record.partition.to_string(),
                    &record.offset.to_string(),
                    &at.to_string(),
                    &row.to_string(),
                ],
            );
            let mut event = CloudEvent::new(
                key,
                self.topics.tenant(),
                &format!("/homeostat/{}/{}", self.topics.tenant(), pipeline.name),
                cloudevent::LATE,
                &name,
                late.pane_start_ms,
            );
            event.tenant = self.topics.tenant().to_owned();
            let data = serde_json::json!({
                "view": name, "reason": "the window was closed when this partial arrived", "columns": columns,
                "topic": &*record.partition.topic, "partition": record.partition.partition, "offset": record.offset,
            });
            let key = event.subject.clone();
            let sinks = pipeline
                .sinks
                .iter()
                .filter(|sink| sink.input == SinkInput::Late(late.view));
            for sink in sinks {
                let sink = SideSink::new(&sink.topic, sink.format);
                out.push(sink.output(&event, Some(key.as_bytes()), &data));
            }
            out.push(event.output(topic.clone(), &data));
        }
    }

    /// Tells decide the time: about once a second, and around what this record brought about, which begins at `spoken` in
    /// the outputs. A watermark follows the windows that it closed: told before them, it would make them old news, and how
    /// old would depend on how many windows one record closes.
    fn forward_time(
        &self,
        part: &mut Part,
        record: &Record<'_>,
        spoken: usize,
        first_end_ms: Option<i64>,
        out: &mut Outputs,
    ) {
        let watermark = part.assembler.table().watermark_ms();
        let news = out.records.len() > spoken && watermark != part.forwarded_watermark_ms;
        if news && part.forwarded_watermark_ms.is_none() && first_end_ms.is_some() {
            out.records
                .insert(spoken, self.time(part, record, "before", first_end_ms));
        }
        if news || part.clock_ms >= part.forwarded_ms + 1_000 {
            part.forwarded_ms = part.clock_ms;
            part.forwarded_watermark_ms = watermark;
            out.push(self.time(part, record, "after", watermark));
        }
    }

    fn time(&self, part: &Part, record: &Record<'_>, place: &str, watermark_ms: Option<i64>) -> protocol::Output {
        let partition = record.partition.partition;
        let owners = part.owners.iter().map(|owner| &part.live.watches[*owner]);
        let population = owners.zip(&part.entities);
        let data = TimeProgress {
            watermark_ms,
            clock: part.clock_ms,
            partition,
            population: population
                .filter(|(watch, _)| !watch.is_inner)
                .map(|(watch, entities)| (watch.id.clone(), entities.len() as u64))
                .collect(),
            version: part.live.versions[0].number,
        };
        let tenant = self.topics.tenant();
        let key = id::derived("progress", &[&partition.to_string(), &record.offset.to_string(), place]);
        let source = format!("/homeostat/{tenant}/detect");
        let event = CloudEvent::new(key, tenant, &source, cloudevent::PROGRESS, "progress", part.clock_ms);
        event.output(self.topics.anomalies(), &data)
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

enum Entry {
    Panes(PaneHeader, RecordBatch),
    Progress(SourceProgress),
    Note(Note),
    Version(log::Version),
}

fn read(record: &Record<'_>) -> Result<Entry, String> {
    let value = record.value.ok_or("an empty record")?;
    let kind = record.header(log::KIND).ok_or("no header `kind`")?;
    let json = |error: serde_json::Error| error.to_string();
    match std::str::from_utf8(kind) {
        Ok(log::KIND_PANES) => {
            let header = record.header(log::HEADER).ok_or("no header `pane`")?;
            let header = serde_json::from_slice(header).map_err(json)?;
            Ok(Entry::Panes(
                header,
                read_panes(value).map_err(|error| error.to_string())?,
            ))
        }
        Ok(log::KIND_PROGRESS) => Ok(Entry::Progress(serde_json::from_slice(value).map_err(json)?)),
        Ok(log::KIND_VERSION) => Ok(Entry::Version(serde_json::from_slice(value).map_err(json)?)),
        Ok(log::KIND_NOTE) => Ok(Entry::Note(serde_json::from_slice(value).map_err(json)?)),
        other => Err(format!("unknown kind {other:?}")),
    }
}

impl Stage for Detect {
    fn name(&self) -> &'static str {
        "detect"
    }

    fn inputs(&self) -> Vec<String> {
        vec![self.topics.panes()]
    }

    fn start(&self, _topic: &str) -> Start {
        Start::Earliest
    }

    fn state_partition(&self, partition: &TopicPartition) -> Option<TopicPartition> {
        Some(TopicPartition::new(self.topics.state(), partition.partition))
    }

    fn restore(&mut self, partition: &TopicPartition, key: &[u8], value: Option<&[u8]>) -> Result<(), StageError> {
        let broken = |reason: String| StageError::Partition {
            partition: partition.clone(),
            reason,
        };
        let Ok(key) = std::str::from_utf8(key) else {
            return Err(broken("a state key is not text".into()));
        };
        if key == "progress/" {
            let record = value.map(serde_json::from_slice::<ProgressRecord>).transpose();
            let record = record.map_err(|error| broken(format!("state {key}: {error}")))?;
            self.part(partition)?.restored = record;
            return Ok(());
        }
        if let Some(number) = key.strip_prefix("version/") {
            let number: u64 = number.parse().map_err(|_| broken(format!("state {key}: no number")))?;
            let version = value.map(serde_json::from_slice).transpose();
            let version = version.map_err(|error| broken(format!("state {key}: {error}")))?;
            let stored = &mut self.part(partition)?.stored_versions;
            stored.remove(&number);
            stored.extend(version.map(|version| (number, version)));
            return Ok(());
        }
        let Some((id, entity_key)) = key.strip_prefix("detector/").and_then(|rest| rest.split_once('/')) else {
            return Ok(());
        };
        let Some(value) = value else {
            if let Some(stored) = self.part(partition)?.stored.get_mut(id) {
                stored.remove(entity_key);
            }
            return Ok(());
        };
        let split = value.iter().position(|byte| *byte == b'\n').unwrap_or(value.len());
        serde_json::from_slice::<EntityRecord>(&value[..split])
            .map_err(|error| broken(format!("state {key}: {error}")))?;
        let stored = self.part(partition)?.stored.entry(id.to_owned()).or_default();
        stored.insert(entity_key.to_owned(), value.to_vec());
        Ok(())
    }

    fn assigned(&mut self, partition: &TopicPartition, assignment: &Assignment) -> Result<i64, StageError> {
        let part = self.part(partition)?;
        let Some(committed) = &assignment.committed else {
            part.committed = assignment.start_offset;
            part.low_water = assignment.start_offset;
            part.next_offset = assignment.start_offset;
            part.score_from = assignment.start_offset - 1;
            part.begin();
            return Ok(assignment.start_offset);
        };
        let broken = |reason: String| StageError::Partition {
            partition: partition.clone(),
            reason,
        };
        let (low_water, score_from) = metadata(&committed.metadata)
            .ok_or_else(|| broken(format!("commit metadata {:?} is not detect's", committed.metadata)))?;
        if low_water < assignment.log_start_offset {
            return Err(broken(format!(
                "recovery needs offset {low_water}, but the log starts at {}: raise the retention of the topic, or reset the group's offset to accept the loss",
                assignment.log_start_offset
            )));
        }
        let record = part.restored.take().ok_or_else(|| {
            broken("offsets are committed, but the state topic has no progress record: restore the state topic, or reset the group's offsets to start anew".into())
        })?;
        if record.low_water != low_water {
            return Err(broken(format!(
                "state is of low-water {}, the commit of {low_water}",
                record.low_water
            )));
        }
        let (assembler, live) = self.restored(partition, &record)?;
        let part = self.part(partition)?;
        part.assembler = assembler;
        part.owners = live.owners(&part.assembler);
        part.entities = live.slots.iter().map(|_| Entities::default()).collect();
        part.live = live;
        (0..part.owners.len()).for_each(|slot| part.revive(slot));
        part.open = record.open;
        part.clock_ms = record.clock_ms;
        part.written_low_water = Some(low_water);
        part.committed = committed.offset;
        part.low_water = low_water;
        part.score_from = score_from;
        part.next_offset = low_water;
        part.begin();
        Ok(low_water)
    }

    fn revoked(&mut self, partition: &TopicPartition) {
        self.parts.remove(partition);
    }

    fn step(&mut self, batch: &Batch, out: &mut Outputs) -> Result<(), StageError> {
        for record in batch.iter() {
            self.record(record, out)?;
        }
        for part in self.parts.values_mut() {
            part.remember();
        }
        Ok(())
    }

    fn urgent(&self) -> bool {
        self.urgent
    }

    fn before_commit(&mut self, out: &mut Outputs) -> Result<Vec<Progress>, StageError> {
        let state = self.topics.state();
        let mut progress = Vec::new();
        for (partition, part) in &mut self.parts {
            // A replay says nothing: until it is over the commit stays where it was.
            let replaying = part.next_offset < part.committed;
            let mut write = |key: Vec<u8>, value: Option<Vec<u8>>| {
                out.push(protocol::Output {
                    topic: state.as_str().into(),
                    partition: Some(partition.partition),
                    key: Some(key),
                    value,
                    headers: Vec::new(),
                });
            };
            if !replaying {
                for (key, value) in part.flush(&self.options) {
                    write(key, value);
                }
                part.advance_low_water();
                for (key, value) in part.flush_versions() {
                    write(key, value);
                }
                let start = part
                    .snapshots
                    .front()
                    .filter(|first| first.offset + 1 == part.low_water);
                if let Some(start) = start.filter(|_| part.written_low_water != Some(part.low_water)) {
                    let record = serde_json::to_vec(&start.record).expect("state has string keys");
                    write(b"progress/".to_vec(), Some(record));
                    part.written_low_water = Some(part.low_water);
                }
            }
            progress.push(Progress {
                partition: partition.clone(),
                offset: part.next_offset.max(part.committed),
                metadata: format!("low={};from={}", part.low_water, part.score_from),
            });
        }
        Ok(progress)
    }

    fn committed(&mut self) {
        self.urgent = false;
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, &[(&'static str, &str)], f64)) {
        sink("windows_closed_total", &[], self.counts.windows as f64);
        sink("feature_rows_total", &[], self.counts.rows as f64);
        sink("anomalies_total", &[], self.counts.anomalies as f64);
        sink("level_shifts_total", &[], self.counts.level_shifts as f64);
        sink("late_rows_total", &[("where", "detect")], self.counts.late as f64);
        sink("stale_records_total", &[], self.counts.stale as f64);
        sink("dead_letters_total", &[("stage", "detect")], self.counts.dead as f64);
        for (partition, part) in &self.parts {
            let label = partition.partition.to_string();
            let labels = [("partition", label.as_str())];
            let watermark = part
                .assembler
                .table()
                .sources
                .values()
                .filter_map(|source| source.closed_ms)
                .min();
            let delay = watermark.map_or(0, |watermark| part.clock_ms - watermark);
            sink("watermark_delay_seconds", &labels, delay as f64 / 1_000.0);
            sink("panes_held", &labels, part.assembler.pane_count() as f64);
            sink(
                "entities",
                &labels,
                part.entities.iter().map(Entities::len).sum::<usize>() as f64,
            );
            sink(
                "replay_span_records",
                &labels,
                (part.next_offset - part.low_water) as f64,
            );
        }
    }
}

fn metadata(text: &str) -> Option<(i64, i64)> {
    let (low, from) = text.strip_prefix("low=")?.split_once(";from=")?;
    Some((low.parse().ok()?, from.parse().ok()?))
}
