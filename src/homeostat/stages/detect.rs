//! Detect: panes → windows → scores → anomalies.
//!
//! Composes `engine::assemble` with the `detector` crate and keeps each entity's detector state. State goes to the compacted
//! topic staggered over an interval, not at every window; recovery replays `panes` from a low-water offset and rolls every entity forward
//! from the offset that its own state includes (`correctness.md` rules 8–12 in spirit; `src/README.md`, "Contracts between
//! the stages"). A pane record that cannot be read becomes a dead letter.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch, StringArray},
    compute::cast,
    datatypes::{DataType, Float64Type},
};
use detector::{Detector, Row, Score, State};
use engine::{
    assemble::{Assembled, Assembler, ClosedWindow, LatePane, ProgressTable, Sighting},
    json,
    panes::read_panes,
    spec::{DetectorInput, DetectorSpec, Pipeline, PolicySpec, SinkInput},
};
use protocol::{
    Assignment, Batch, CloudEvent, Outputs, Progress, Record, Stage, StageError, Start, Target, TopicPartition, Topics,
    cloudevent, id,
    log::{self, Note, PaneHeader, SourceProgress},
    message::{Anomaly, TimeProgress},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{DEAD_LETTER_BYTES, rows::RowWriter};

/// How often detect writes what it knows.
#[derive(Clone, Debug)]
pub struct Options {
    /// Every changed state is rewritten at least so often; the replay after a restart is about as long.
    pub state_interval_ms: i64,
    /// An entity not seen for so long is forgotten.
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

/// A declared detector with its algorithm and the policies that rest on it.
struct Watch {
    pipeline: usize,
    pipeline_name: String,
    spec: DetectorSpec,
    policies: Vec<PolicySpec>,
    algorithm: Arc<dyn Detector>,
    /// `<pipeline>.<detector>`: names it in state keys and metrics.
    id: String,
    /// Topics that take every score.
    sinks: Vec<Arc<str>>,
}

/// The rows of a window to the sinks of its view.
fn write_rows(pipeline: &Pipeline, window: &ClosedWindow, out: &mut Outputs) {
    let input = SinkInput::View(window.view);
    for sink in pipeline.sinks.iter().filter(|sink| sink.input == input) {
        let topic: Arc<str> = sink.topic.as_str().into();
        let writer = RowWriter::new(&window.rows);
        for row in 0..window.rows.num_rows() {
            let keys = sink.keys.iter();
            let key: BTreeMap<&String, Value> = keys
                .map(|(name, column)| (name, json::value(window.rows.column(*column), row)))
                .collect();
            let mut value = Vec::new();
            writer.write(row, &mut value);
            out.push(to_sink(&topic, &key, value));
        }
    }
}

fn to_sink(topic: &Arc<str>, key: &impl Serialize, value: Vec<u8>) -> protocol::Output {
    protocol::Output {
        topic: Arc::clone(topic),
        partition: None,
        key: Some(serde_json::to_vec(key).expect("keys have names and are JSON values")),
        value: Some(value),
        headers: Vec::new(),
    }
}

/// Whether an entity is alarming, for the detector and for each policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Alarm {
    alarming: bool,
    /// By policy: windows in a row that met CLEAR WHEN.
    active: BTreeMap<String, u32>,
    /// Silence: windows of one timeout each that were already said.
    #[serde(default)]
    silent_windows: u64,
}

/// What one detector knows of one entity.
struct Entity {
    state: Box<dyn State>,
    meta: Meta,
    /// Offset of `panes` whose effects the written state includes.
    includes: i64,
    /// The last offset at which the written state still was the state.
    unwritten_since: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Meta {
    target: BTreeMap<String, Value>,
    alarm: Alarm,
    /// Event time of the last row.
    last_ms: i64,
    /// Silence: the last event time by source partition.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    seen: BTreeMap<i32, i64>,
    #[serde(default)]
    source: u64,
}

/// A written entity: this in JSON, a newline, the detector's snapshot.
#[derive(Serialize, Deserialize)]
struct EntityRecord {
    includes: i64,
    meta: Meta,
}

/// The progress table as it stood at low-water, with the open incidents.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct ProgressRecord {
    low_water: i64,
    table: ProgressTable,
    open: BTreeMap<String, uuid::Uuid>,
    clock_ms: i64,
}

struct Snapshot {
    offset: i64,
    needed_since: i64,
    record: ProgressRecord,
}

/// One `panes` partition.
struct Part {
    assembler: Assembler,
    /// By watch, then by the entity's key: JSON of its KEY values.
    entities: Vec<BTreeMap<String, Entity>>,
    open: BTreeMap<String, uuid::Uuid>,
    /// Outputs of records below this were published by an earlier life.
    committed: i64,
    /// Windows closed at or before this offset are scored in every state there is.
    score_from: i64,
    low_water: i64,
    written_low_water: Option<i64>,
    next_offset: i64,
    clock_ms: i64,
    forwarded_ms: i64,
    forwarded_watermark_ms: Option<i64>,
    flushed_slot: Option<i64>,
    snapshots: VecDeque<Snapshot>,
    restored: Option<ProgressRecord>,
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
    late: u64,
    stale: u64,
    dead: u64,
}

/// The detect stage.
pub struct Detect {
    pipelines: Arc<[Pipeline]>,
    watches: Vec<Watch>,
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
        let mut watches = Vec::new();
        for (index, pipeline) in pipelines.iter().enumerate() {
            for (at, spec) in pipeline.detectors.iter().enumerate() {
                let features: Vec<String> = spec.features.iter().map(|(name, _)| name.clone()).collect();
                watches.push(Watch {
                    pipeline: index,
                    pipeline_name: pipeline.name.clone(),
                    policies: pipeline
                        .policies
                        .iter()
                        .filter(|policy| policy.detector == at)
                        .cloned()
                        .collect(),
                    algorithm: detector::build(&spec.using, &super::values(&spec.options), &features)?,
                    id: format!("{}.{}", pipeline.name, spec.name),
                    sinks: pipeline
                        .sinks
                        .iter()
                        .filter(|sink| sink.input == SinkInput::Detector(at))
                        .map(|sink| sink.topic.as_str().into())
                        .collect(),
                    spec: spec.clone(),
                });
            }
        }
        Ok(Self {
            pipelines,
            watches,
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

    fn part(&mut self, partition: &TopicPartition) -> Result<&mut Part, StageError> {
        if !self.parts.contains_key(partition) {
            let assembler = Assembler::new(&self.pipelines).map_err(|error| StageError::Fatal(error.to_string()))?;
            self.parts
                .insert(partition.clone(), Part::new(assembler, self.watches.len()));
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
            for late in &assembled.late {
                self.late(record, late, out);
            }
        }
        if record.offset > part.score_from {
            for window in &assembled.closed {
                self.window(part, record.offset, window, live, out)?;
            }
            if assembled.advanced {
                self.silences(part, record.offset, live, out)?;
            }
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
        self.counts.windows += u64::from(live && window.early_ms.is_none());
        self.counts.rows += if live { window.rows.num_rows() as u64 } else { 0 };
        let mut tap = self.tap.as_mut().filter(|_| live);
        if let Some(tap) = &mut tap {
            tap.closed(window);
        }
        if live {
            write_rows(&self.pipelines[window.pipeline], window, out);
        }
        // What is not over is not scored.
        let over = window.early_ms.is_none();
        for (at, watch) in self.watches.iter().enumerate().filter(|_| over) {
            let input = DetectorInput::View(window.view);
            if watch.pipeline != window.pipeline || watch.spec.input != input || window.rows.num_rows() == 0 {
                continue;
            }
            let fatal = |error: arrow::error::ArrowError| StageError::Fatal(format!("{}: {error}", watch.id));
            let scored = watch.score(part, at, offset, window).map_err(fatal)?;
            let rulings = watch.rulings(&window.rows, &scored).map_err(fatal)?;
            for (row, score) in scored.iter().enumerate() {
                let Some((key, score)) = score else { continue };
                let entity = part.entities[at].get_mut(key).expect("scored above");
                let change = watch.alarm(&mut entity.meta.alarm, score.is_anomaly(), &rulings, row);
                if live && (tap.is_some() || !watch.sinks.is_empty()) {
                    let change = change.clone().unwrap_or_default();
                    let scored = watch.anomaly(&window.rows, row, window, score, change);
                    watch.write_score(&scored, out);
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

    /// Moves the last event time of the entities in a pane, and ends their silence.
    fn sighting(&mut self, part: &mut Part, offset: i64, sighting: &Sighting, live: bool, out: &mut Outputs) {
        for (at, watch) in self.watches.iter().enumerate() {
            let input = DetectorInput::PaneSet(sighting.pane_set);
            if watch.pipeline != sighting.pipeline || watch.spec.input != input {
                continue;
            }
            for (row, seen) in sighting.last_seen_ms.iter().enumerate() {
                let Some(seen) = *seen else { continue };
                let target = watch.keys(&sighting.keys, row);
                let entity = watch.entity(part, at, &target);
                if offset <= entity.includes {
                    continue;
                }
                entity.meta.source = sighting.source;
                let last = entity.meta.seen.entry(sighting.source_partition).or_insert(seen);
                *last = (*last).max(seen);
                let before = entity.meta.last_ms;
                if seen <= before {
                    continue;
                }
                entity.meta.last_ms = seen;
                entity.dirty(offset);
                if !entity.meta.alarm.alarming {
                    continue;
                }
                entity.meta.alarm = Alarm::default();
                let anomaly = watch.silence(&entity.meta, before, seen, 0.0, true, Vec::new());
                if live {
                    watch.write_score(&anomaly, out);
                    if let Some(tap) = &mut self.tap {
                        tap.silent(&anomaly);
                    }
                    self.counts.anomalies += 1;
                    self.urgent = true;
                    out.push(watch.event(&self.topics, &entity.meta.target, &anomaly));
                }
            }
        }
    }

    /// Judges every watched entity against the fleet's progress.
    fn silences(&mut self, part: &mut Part, offset: i64, live: bool, out: &mut Outputs) -> Result<(), StageError> {
        for (at, watch) in self.watches.iter().enumerate() {
            if !matches!(watch.spec.input, DetectorInput::PaneSet(_)) {
                continue;
            }
            for entity in part.entities[at].values_mut() {
                let Some(table) = part.assembler.table().sources.get(&entity.meta.source) else {
                    continue;
                };
                let Some(now) = table.closed_ms else { continue };
                if table.all_idle() || offset <= entity.includes {
                    continue;
                }
                let last = entity.meta.last_ms;
                let row = Row {
                    time_ms: now,
                    features: &[last as f64],
                    learn: true,
                };
                let mut score = Score::default();
                entity.state.score(row, &mut score);
                let idle = |partition: &i32| table.partitions.get(partition).is_some_and(|partition| partition.idle);
                let healthy = !entity.meta.seen.keys().all(idle);
                let threshold = if score.score > 0.0 {
                    (now - last) as f64 / score.score
                } else {
                    continue;
                };
                for said in silent_windows(entity.meta.alarm.silent_windows, score.score) {
                    entity.dirty(offset);
                    entity.meta.alarm.silent_windows = said;
                    entity.meta.alarm.alarming = true;
                    if live {
                        let end = last + (threshold * said as f64) as i64;
                        let meets = watch
                            .met_in_silence(&entity.meta, said as f64)
                            .map_err(|error| StageError::Fatal(format!("{}: {error}", watch.id)))?;
                        let anomaly = watch.silence(&entity.meta, last, end, said as f64, healthy, meets);
                        watch.write_score(&anomaly, out);
                        if let Some(tap) = &mut self.tap {
                            tap.silent(&anomaly);
                        }
                        self.counts.anomalies += 1;
                        self.urgent = true;
                        out.push(watch.event(&self.topics, &entity.meta.target, &anomaly));
                    }
                }
            }
        }
        Ok(())
    }

    fn late(&mut self, record: Record<'_>, late: &LatePane, out: &mut Outputs) {
        let pipeline = &self.pipelines[late.pipeline];
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
        let population = self.watches.iter().zip(&part.entities);
        let data = TimeProgress {
            watermark_ms,
            clock: part.clock_ms,
            partition,
            population: population
                .map(|(watch, entities)| (watch.id.clone(), entities.len() as u64))
                .collect(),
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

/// The windows of silence to speak of now: the first eight one by one, then every doubling, so that a dead entity does not
/// speak for ever.
fn silent_windows(said: u64, score: f64) -> impl Iterator<Item = u64> {
    let reached = score.min(1e9) as u64;
    let worth = |window: &u64| *window <= 8 || window.is_power_of_two();
    let upto = if reached > 8 {
        reached.next_power_of_two() / if reached.is_power_of_two() { 1 } else { 2 }
    } else {
        reached
    };
    let first = said + 1;
    let small = first..=upto.min(8);
    let doublings = (4..40)
        .map(|power| 1u64 << power)
        .filter(move |window| *window >= first && *window <= upto);
    small.chain(doublings).filter(worth)
}

impl Watch {
    fn write_score(&self, score: &Anomaly, out: &mut Outputs) {
        for topic in &self.sinks {
            let value = serde_json::to_vec(score).expect("scores have string keys");
            out.push(to_sink(topic, &score.target, value));
        }
    }

    fn keys(&self, columns: &[ArrayRef], row: usize) -> BTreeMap<String, Value> {
        self.spec
            .keys
            .iter()
            .map(|(name, at)| (name.clone(), json::value(&columns[*at], row)))
            .collect()
    }

    fn entity<'a>(&self, part: &'a mut Part, at: usize, target: &BTreeMap<String, Value>) -> &'a mut Entity {
        let key = self.key(target);
        part.entities[at].entry(key).or_insert_with_key(|key| Entity {
            state: self.algorithm.fresh(seed(&self.id, key)),
            meta: Meta {
                target: target.clone(),
                last_ms: i64::MIN,
                ..Meta::default()
            },
            includes: -1,
            unwritten_since: None,
        })
    }

    fn key(&self, target: &BTreeMap<String, Value>) -> String {
        let values: Vec<&Value> = self.spec.keys.iter().map(|(name, _)| &target[name]).collect();
        serde_json::to_string(&values).expect("JSON values serialise")
    }

    /// One score per row; `None` where the entity's state already includes this window.
    fn score(
        &self,
        part: &mut Part,
        at: usize,
        offset: i64,
        window: &ClosedWindow,
    ) -> Result<Vec<Option<(String, Score)>>, arrow::error::ArrowError> {
        let columns: Vec<Float64Array> = self
            .spec
            .features
            .iter()
            .map(|(_, column)| {
                Ok(cast(window.rows.column(*column), &DataType::Float64)?
                    .as_primitive::<Float64Type>()
                    .clone())
            })
            .collect::<Result<_, arrow::error::ArrowError>>()?;
        let mut features = vec![f64::NAN; columns.len()];
        let mut scores = Vec::with_capacity(window.rows.num_rows());
        for row in 0..window.rows.num_rows() {
            let target = self.keys(window.rows.columns(), row);
            let learn = !part.open.contains_key(&target_of(self, &target).1);
            let entity = self.entity(part, at, &target);
            if offset <= entity.includes {
                scores.push(None);
                continue;
            }
            for (feature, column) in features.iter_mut().zip(&columns) {
                *feature = if column.is_null(row) {
                    f64::NAN
                } else {
                    column.value(row)
                };
            }
            let mut score = Score::default();
            entity.state.score(
                Row {
                    time_ms: window.end_ms,
                    features: &features,
                    learn,
                },
                &mut score,
            );
            entity.meta.last_ms = window.end_ms;
            entity.dirty(offset);
            scores.push(Some((self.key(&target), score)));
        }
        Ok(scores)
    }

    /// WHEN and CLEAR WHEN of every policy, for all rows at once.
    fn rulings(
        &self,
        rows: &RecordBatch,
        scored: &[Option<(String, Score)>],
    ) -> Result<Vec<Ruling>, arrow::error::ArrowError> {
        let score = scored
            .iter()
            .map(|scored| scored.as_ref().map(|(_, score)| score.score));
        let score: Float64Array = score.collect();
        let alarm: BooleanArray = scored
            .iter()
            .map(|scored| scored.as_ref().map(|(_, score)| score.is_anomaly()))
            .collect();
        let mut rulings = Vec::new();
        for policy in &self.policies {
            let mut columns: Vec<ArrayRef> = vec![Arc::new(score.clone()), Arc::new(alarm.clone())];
            columns.extend(rows.columns().iter().cloned());
            let input = RecordBatch::try_new(Arc::clone(&policy.input), columns)?;
            let met = |expression: &Option<Arc<dyn datafusion::physical_expr::PhysicalExpr>>| match expression {
                None => Ok(None),
                Some(expression) => {
                    let value = expression
                        .evaluate(&input)
                        .and_then(|value| value.into_array(input.num_rows()));
                    let value = value.map_err(|error| arrow::error::ArrowError::ExternalError(Box::new(error)))?;
                    Ok::<_, arrow::error::ArrowError>(Some(value.as_boolean().clone()))
                }
            };
            let when = met(&policy.when)?.unwrap_or_else(|| alarm.clone());
            rulings.push(Ruling {
                when,
                clear: met(&policy.clear)?,
            });
        }
        Ok(rulings)
    }

    /// Brings an entity's alarm up to date with one window. `None` when there is nothing to say of it.
    fn alarm(&self, alarm: &mut Alarm, is_anomaly: bool, rulings: &[Ruling], row: usize) -> Option<Change> {
        let mut change = Change::default();
        for (policy, ruling) in self.policies.iter().zip(rulings) {
            let meets = ruling.when.is_valid(row) && ruling.when.value(row);
            if meets {
                alarm.active.insert(policy.name.clone(), 0);
                change.meets.push(policy.name.clone());
            } else if let Some(run) = alarm.active.get_mut(&policy.name) {
                let clear = ruling
                    .clear
                    .as_ref()
                    .is_none_or(|clear| clear.is_valid(row) && clear.value(row));
                *run = if clear { *run + 1 } else { 0 };
                if *run >= policy.clear_windows.max(1) {
                    alarm.active.remove(&policy.name);
                    change.clears.push(policy.name.clone());
                }
            }
        }
        let ended = alarm.alarming && !is_anomaly && alarm.active.is_empty();
        alarm.alarming = is_anomaly || (alarm.alarming && !ended);
        let speak = is_anomaly || ended || !change.meets.is_empty() || !change.clears.is_empty();
        speak.then_some(change)
    }

    fn anomaly(&self, rows: &RecordBatch, row: usize, window: &ClosedWindow, score: &Score, change: Change) -> Anomaly {
        let number = |column: usize| {
            let value = cast(rows.column(column), &DataType::Float64).ok()?;
            let value = value.as_primitive::<Float64Type>();
            (value.is_valid(row) && value.value(row).is_finite()).then(|| value.value(row))
        };
        let features = self.spec.features.iter();
        Anomaly {
            target: self.keys(rows.columns(), row),
            pipeline: self.pipeline_name.clone(),
            detector: self.spec.name.clone(),
            window_start: window.start_ms,
            window_end: window.end_ms,
            score: score.score,
            is_anomaly: score.is_anomaly(),
            features: features
                .clone()
                .map(|(name, column)| (name.clone(), number(*column)))
                .collect(),
            contributions: features
                .zip(&score.contributions)
                .map(|((name, _), part)| (name.clone(), *part))
                .collect(),
            columns: self
                .spec
                .columns
                .iter()
                .map(|(name, at)| (name.clone(), json::value(rows.column(*at), row)))
                .collect(),
            meets: change.meets,
            clears: change.clears,
            telemetry_healthy: true,
        }
    }

    /// Policies of which a silent entity meets WHEN: of its columns it has the score and its KEY values.
    fn met_in_silence(&self, meta: &Meta, score: f64) -> Result<Vec<String>, arrow::error::ArrowError> {
        let mut met = Vec::new();
        for policy in &self.policies {
            let Some(when) = &policy.when else {
                met.push(policy.name.clone());
                continue;
            };
            let mut columns: Vec<ArrayRef> = vec![
                Arc::new(Float64Array::from(vec![score])),
                Arc::new(BooleanArray::from(vec![score >= 1.0])),
            ];
            for field in policy.input.fields().iter().skip(columns.len()) {
                columns.push(key_value(meta.target.get(field.name()), field.data_type())?);
            }
            let input = RecordBatch::try_new(Arc::clone(&policy.input), columns)?;
            let value = when.evaluate(&input).and_then(|value| value.into_array(1));
            let value = value.map_err(|error| arrow::error::ArrowError::ExternalError(Box::new(error)))?;
            // NULL is not met.
            if value.as_boolean().iter().flatten().any(|met| met) {
                met.push(policy.name.clone());
            }
        }
        Ok(met)
    }

    /// An entity was silent from `start` to `end`; score 0 ends the silence.
    fn silence(&self, meta: &Meta, start: i64, end: i64, score: f64, healthy: bool, meets: Vec<String>) -> Anomaly {
        let clears = if score >= 1.0 {
            Vec::new()
        } else {
            self.policies.iter().map(|policy| policy.name.clone()).collect()
        };
        Anomaly {
            target: meta.target.clone(),
            pipeline: self.pipeline_name.clone(),
            detector: self.spec.name.clone(),
            window_start: start,
            window_end: end,
            score,
            is_anomaly: score >= 1.0,
            features: [("silent_s".to_owned(), Some((end - start) as f64 / 1_000.0))].into(),
            contributions: [("silent_s".to_owned(), score)].into(),
            columns: BTreeMap::new(),
            meets,
            clears,
            telemetry_healthy: healthy,
        }
    }

    fn event(&self, topics: &Topics, target: &BTreeMap<String, Value>, anomaly: &Anomaly) -> protocol::Output {
        let (_, key) = target_of(self, target);
        let key = key.replacen('|', &format!("{}|", topics.tenant()), 1);
        let name = if anomaly.is_anomaly { id::anomaly } else { id::clearing };
        let mint = name(
            &self.pipeline_name,
            &self.spec.name,
            &key,
            anomaly.window_start,
            anomaly.window_end,
        );
        let source = format!("/homeostat/{}/{}", topics.tenant(), self.pipeline_name);
        let event = CloudEvent::new(
            mint,
            topics.tenant(),
            &source,
            cloudevent::ANOMALY,
            &key,
            anomaly.window_end,
        );
        event.output(topics.anomalies(), anomaly)
    }
}

/// The target that an entity's anomalies are about: the service that the policies name, or the first key.
fn target_of(watch: &Watch, target: &BTreeMap<String, Value>) -> (Target, String) {
    let named = watch.policies.first().map(|policy| policy.target.as_str());
    let first = watch.spec.keys.first().map(|(name, _)| name.as_str());
    let column = named.or(first).unwrap_or_default();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let name = target.get(column).map(text).unwrap_or_default();
    let rest: Vec<String> = target
        .iter()
        .filter(|(key, _)| *key != column)
        .map(|(key, value)| format!("{key}={}", text(value)))
        .collect();
    let mut found = Target::service("", &name);
    if !rest.is_empty() {
        found.scope = "instance".to_owned();
        found.id = rest.join(",");
    }
    let key = found.key();
    (found, key)
}

struct Ruling {
    when: BooleanArray,
    clear: Option<BooleanArray>,
}

#[derive(Clone, Default)]
struct Change {
    meets: Vec<String>,
    clears: Vec<String>,
}

impl Entity {
    fn dirty(&mut self, offset: i64) {
        self.unwritten_since.get_or_insert(offset - 1);
    }
}

impl Part {
    fn new(assembler: Assembler, watches: usize) -> Self {
        Self {
            assembler,
            entities: (0..watches).map(|_| BTreeMap::new()).collect(),
            open: BTreeMap::new(),
            committed: 0,
            score_from: -1,
            low_water: 0,
            written_low_water: None,
            next_offset: 0,
            clock_ms: 0,
            forwarded_ms: 0,
            forwarded_watermark_ms: None,
            flushed_slot: None,
            snapshots: VecDeque::new(),
            restored: None,
        }
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::IncidentOpened { target, incident } => {
                self.open.insert(tenantless(&target), incident);
            }
            Note::IncidentClosed { target, .. } => {
                self.open.remove(&tenantless(&target));
            }
            Note::PartitionRetired { .. } => {}
        }
    }

    /// Remembers where a replay could start, about once a second of the log's clock.
    fn remember(&mut self) {
        let due = self
            .snapshots
            .back()
            .is_none_or(|last| self.clock_ms >= last.record.clock_ms + 1_000);
        let offset = self.next_offset - 1;
        if !due || self.snapshots.back().is_some_and(|last| last.offset >= offset) {
            return;
        }
        let record = ProgressRecord {
            low_water: self.next_offset,
            table: self.assembler.table().clone(),
            open: self.open.clone(),
            clock_ms: self.clock_ms,
        };
        let needed_since = self.assembler.needed_since().unwrap_or(self.next_offset);
        self.snapshots.push_back(Snapshot {
            offset,
            needed_since,
            record,
        });
    }

    /// Moves low-water as far as the oldest unwritten state allows.
    fn advance_low_water(&mut self) {
        let unwritten = self
            .entities
            .iter()
            .flat_map(BTreeMap::values)
            .filter_map(|entity| entity.unwritten_since)
            .min();
        let oldest = unwritten.unwrap_or(self.next_offset - 1);
        let usable = |snapshot: &&Snapshot| snapshot.offset <= oldest && snapshot.offset >= self.score_from;
        let Some(scored) = self.snapshots.iter().rev().find(usable) else {
            return;
        };
        let needed = scored.needed_since.min(scored.offset + 1);
        let Some(start) = self.snapshots.iter().rposition(|snapshot| snapshot.offset < needed) else {
            return;
        };
        let low_water = self.snapshots[start].offset + 1;
        if low_water <= self.low_water {
            return;
        }
        self.score_from = scored.offset;
        self.low_water = low_water;
        self.snapshots.drain(..start);
    }

    /// State keys and values of the entities whose turn it is, and forgets those long gone.
    fn flush(&mut self, watches: &[Watch], options: &Options) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let slots = (options.state_interval_ms / 1_000).max(1);
        let now = self.clock_ms / 1_000;
        let from = self.flushed_slot.map_or(now, |last| last + 1).max(now - slots + 1);
        if from > now {
            return Vec::new();
        }
        self.flushed_slot = Some(now);
        let turn: BTreeSet<i64> = (from..=now).map(|slot| slot.rem_euclid(slots)).collect();
        let includes = self.next_offset - 1;
        let mut written = Vec::new();
        for (watch, entities) in watches.iter().zip(&mut self.entities) {
            entities.retain(|key, entity| {
                let name = format!("detector/{}/{key}", watch.id);
                if entity.meta.last_ms != i64::MIN && entity.meta.last_ms + options.entity_ttl_ms < self.clock_ms {
                    written.push((name.into_bytes(), None));
                    return false;
                }
                let slot = (seed(&watch.id, key) % slots as u64) as i64;
                if entity.unwritten_since.is_some() && turn.contains(&slot) {
                    entity.unwritten_since = None;
                    entity.includes = includes;
                    written.push((name.into_bytes(), Some(entity.encode())));
                }
                true
            });
        }
        written
    }
}

impl Entity {
    fn encode(&self) -> Vec<u8> {
        let record = EntityRecord {
            includes: self.includes,
            meta: self.meta.clone(),
        };
        let mut bytes = serde_json::to_vec(&record).expect("state has string keys and finite numbers");
        bytes.push(b'\n');
        self.state.snapshot(&mut bytes);
        bytes
    }
}

fn tenantless(target: &str) -> String {
    target
        .find('|')
        .map_or_else(|| target.to_owned(), |at| target[at..].to_owned())
}

/// FNV-1a: fixed for ever, since it seeds detectors and staggers writes.
fn seed(watch: &str, key: &str) -> u64 {
    let bytes = watch.bytes().chain([0]).chain(key.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

enum Entry {
    Panes(PaneHeader, RecordBatch),
    Progress(SourceProgress),
    Note(Note),
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
        let Some((watch, entity_key)) = key.strip_prefix("detector/").and_then(|rest| rest.split_once('/')) else {
            return Ok(());
        };
        // State of a detector that is declared no more stays in the topic until its key is compacted away.
        let Some(at) = self.watches.iter().position(|known| known.id == watch) else {
            return Ok(());
        };
        let Some(value) = value else {
            self.part(partition)?.entities[at].remove(entity_key);
            return Ok(());
        };
        let watch = &self.watches[at];
        let split = value.iter().position(|byte| *byte == b'\n').unwrap_or(value.len());
        let (record, snapshot) = value.split_at(split);
        let record: EntityRecord =
            serde_json::from_slice(record).map_err(|error| broken(format!("state {key}: {error}")))?;
        let state = watch
            .algorithm
            .restore(seed(&watch.id, entity_key), snapshot.get(1..).unwrap_or_default());
        let state = match state {
            Ok(state) => state,
            // Other parameters: the entity learns anew, and its alarm stays.
            Err(_) => watch.algorithm.fresh(seed(&watch.id, entity_key)),
        };
        let entity = Entity {
            state,
            meta: record.meta,
            includes: record.includes,
            unwritten_since: None,
        };
        self.part(partition)?.entities[at].insert(entity_key.to_owned(), entity);
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
        part.assembler.restore(record.table);
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
                for (key, value) in part.flush(&self.watches, &self.options) {
                    write(key, value);
                }
                part.advance_low_water();
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
                part.entities.iter().map(BTreeMap::len).sum::<usize>() as f64,
            );
            sink(
                "replay_span_records",
                &labels,
                (part.next_offset - part.low_water) as f64,
            );
        }
    }
}

impl Part {
    /// The first point a replay can start from: where this life began.
    fn begin(&mut self) {
        let record = ProgressRecord {
            low_water: self.low_water,
            table: self.assembler.table().clone(),
            open: self.open.clone(),
            clock_ms: self.clock_ms,
        };
        self.snapshots.push_back(Snapshot {
            offset: self.low_water - 1,
            needed_since: self.low_water,
            record,
        });
    }
}

fn metadata(text: &str) -> Option<(i64, i64)> {
    let (low, from) = text.strip_prefix("low=")?.split_once(";from=")?;
    Some((low.parse().ok()?, from.parse().ok()?))
}

/// One KEY value of an entity as a column of one row.
fn key_value(value: Option<&Value>, data_type: &DataType) -> Result<ArrayRef, arrow::error::ArrowError> {
    let text = match value {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(other) => Some(other.to_string()),
    };
    cast(&StringArray::from(vec![text]), data_type)
}
