//! Drives the stage by hand, as the loop does: batches, ticks, commits; a crash is a new stage from the last commit.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::*,
    datatypes::{DataType, Field, Float64Type, Int32Type, Int64Type, Schema, SchemaRef, TimeUnit},
};
use datafusion::{
    logical_expr::Operator,
    physical_expr::expressions::{binary, col, lit},
};
use protocol::{
    Assignment, Batch, Clock, Committed, Output, Outputs, Record, Stage, StageError, TimestampKind, TopicPartition,
    Topics,
    log::{self, PaneHeader, SourceProgress},
};

use super::super::{Aggregate, Decode, Decoders, Options, Rows};
use crate::{accumulate::accumulator, error::Error, panes::read_panes, spec::*};

pub const TOPIC: &str = "metrics";
pub const SOURCE: u64 = 7;
/// Per service, 1 s panes; two views.
pub const BY_SERVICE: u64 = 71;
/// Over all rows with value > 10, 500 ms panes.
pub const LARGE: u64 = 72;

/// Service of the rows that only move the watermark, at the end of a log; some of them stay open.
pub const CLOSING: &str = "z";

pub fn schema() -> SchemaRef {
    let service = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    Arc::new(Schema::new(vec![
        Field::new(
            "ts",
            DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
            true,
        ),
        Field::new("service", service, true),
        Field::new("value", DataType::Float64, true),
    ]))
}

fn window(view: &str, size_ms: i64, slide_ms: i64, lateness_ms: i64) -> WindowSpec {
    WindowSpec {
        view: format!("test.{view}"),
        size_ms,
        slide_ms,
        offset_ms: 0,
        lateness_ms,
        late_topic: None,
        early_every_ms: None,
        session_gap_ms: None,
    }
}

pub fn source() -> SourceSpec {
    SourceSpec {
        name: "metrics".into(),
        fingerprint: SOURCE,
        topic: TOPIC.into(),
        format: Format::Json,
        start: StartupMode::Earliest,
        schema: schema(),
        metadata: Vec::new(),
        paths: Vec::new(),
        event_time: 0,
        delay_ms: 700,
        idle_timeout_ms: Some(30_000),
        max_future_skew_ms: 300_000,
        max_drift_ms: 10_000,
    }
}

fn aggregate(kind: AggregateKind, args: &[&str], output: DataType) -> AggregateSpec {
    AggregateSpec {
        kind,
        args: args.iter().map(|name| col(name, &schema()).unwrap()).collect(),
        filter: None,
        output,
    }
}

pub fn by_service() -> PaneSetSpec {
    PaneSetSpec {
        fingerprint: BY_SERVICE,
        source: 0,
        filter: None,
        keys: vec![col("service", &schema()).unwrap()],
        key_fields: vec![Arc::new(schema().field(1).clone())],
        aggregates: vec![
            aggregate(AggregateKind::Count, &[], DataType::Int64),
            aggregate(AggregateKind::Sum, &["value"], DataType::Float64),
            aggregate(AggregateKind::Avg, &["value"], DataType::Float64),
        ],
        width_ms: 1_000,
        windows: vec![window("hop", 3_000, 1_000, 0), window("patient", 4_000, 2_000, 3_000)],
        state_limit: None,
    }
}

pub fn large() -> PaneSetSpec {
    let large = binary(col("value", &schema()).unwrap(), Operator::Gt, lit(10.0), &schema()).unwrap();
    PaneSetSpec {
        fingerprint: LARGE,
        source: 0,
        filter: Some(large),
        keys: Vec::new(),
        key_fields: Vec::new(),
        aggregates: vec![
            aggregate(AggregateKind::Count, &[], DataType::Int64),
            aggregate(AggregateKind::Sum, &["value"], DataType::Float64),
        ],
        width_ms: 500,
        windows: vec![window("large", 1_000, 500, 0)],
        state_limit: None,
    }
}

/// Keys, window end, count and sum of every window of every set.
fn views(sets: &[PaneSetSpec]) -> Vec<ViewSpec> {
    let mut views = Vec::new();
    for (pane_set, set) in sets.iter().enumerate() {
        for window in &set.windows {
            let time = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
            let mut fields: Vec<Field> = set.key_fields.iter().map(|field| field.as_ref().clone()).collect();
            fields.push(Field::new("window_start", time.clone(), false));
            fields.push(Field::new("window_end", time, false));
            fields.push(Field::new("agg_0", DataType::Int64, true));
            fields.push(Field::new("agg_1", DataType::Float64, true));
            let input = Arc::new(Schema::new(fields));
            let projection = input.fields().iter().map(|field| col(field.name(), &input).unwrap());
            views.push(ViewSpec {
                name: window.view.clone(),
                pane_sets: vec![pane_set],
                window: window.clone(),
                aggregates: vec![0, 1],
                projection: projection.collect(),
                output: Arc::clone(&input),
                input,
                having: None,
                fill_missing_windows: 0,
                judged: None,
            });
        }
    }
    views
}

pub fn pipeline(sets: Vec<PaneSetSpec>) -> Pipeline {
    Pipeline {
        name: "test".into(),
        sources: vec![source()],
        views: views(&sets),
        pane_sets: sets,
        detectors: Vec::new(),
        policies: Vec::new(),
        sinks: Vec::new(),
    }
}

/// One row of a test record. Without a time it is written `-`.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub ts: Option<i64>,
    pub service: String,
    pub value: f64,
}

pub fn row(ts: i64, service: &str, value: f64) -> Row {
    Row {
        ts: Some(ts),
        service: service.into(),
        value,
    }
}

/// A record in the log: its rows, or bytes that are none.
#[derive(Clone, Debug)]
pub struct Entry {
    pub timestamp_ms: i64,
    pub rows: Vec<Row>,
    pub poison: bool,
}

pub fn entry(rows: Vec<Row>) -> Entry {
    let timestamp_ms = rows.iter().filter_map(|row| row.ts).min().unwrap_or(0);
    Entry {
        timestamp_ms,
        rows,
        poison: false,
    }
}

impl Entry {
    /// `receive`: without a time of their own.
    fn bytes(&self, receive: bool) -> Vec<u8> {
        if self.poison {
            return b"\xff poison".to_vec();
        }
        let time = |row: &Row| match row.ts {
            _ if receive => "receive".to_owned(),
            Some(ts) => ts.to_string(),
            None => "-".to_owned(),
        };
        let line = |row: &Row| format!("{} {} {:?}\n", time(row), row.service, row.value);
        self.rows.iter().map(line).collect::<String>().into_bytes()
    }
}

/// Reads the lines that [`Entry`] writes.
#[derive(Default)]
struct Lines {
    rows: Vec<Row>,
    offsets: Vec<i64>,
    record_ms: Vec<i64>,
}

impl Decode for Lines {
    fn push(&mut self, record: &Record<'_>, receive_ms: i64) -> Result<usize, String> {
        let text = std::str::from_utf8(record.value.unwrap_or_default()).map_err(|error| error.to_string())?;
        let from = self.rows.len();
        for line in text.lines() {
            let parts: Vec<&str> = line.split(' ').collect();
            let [ts, service, value] = parts[..] else {
                return Err("not three words".into());
            };
            let ts = if ts == "receive" {
                Some(receive_ms)
            } else {
                ts.parse().ok()
            };
            self.rows.push(Row {
                ts,
                service: service.into(),
                value: value.parse().map_err(|_| "no number".to_owned())?,
            });
            self.offsets.push(record.offset);
            self.record_ms.push(record.timestamp_ms);
        }
        Ok(self.rows.len() - from)
    }

    fn finish(&mut self) -> Result<Rows, Error> {
        let Self {
            rows,
            offsets,
            record_ms,
        } = std::mem::take(self);
        let ts: TimestampMillisecondArray = rows.iter().map(|row| row.ts).collect();
        let service: DictionaryArray<Int32Type> = rows.iter().map(|row| Some(row.service.as_str())).collect();
        let value: Float64Array = rows.iter().map(|row| Some(row.value)).collect();
        let columns: Vec<ArrayRef> = vec![Arc::new(ts.with_timezone("UTC")), Arc::new(service), Arc::new(value)];
        Ok(Rows {
            batch: RecordBatch::try_new(schema(), columns)?,
            offsets,
            record_ms,
        })
    }
}

pub struct LineDecoders;

impl Decoders for LineDecoders {
    fn decoder(&self, _source: &SourceSpec) -> Result<Box<dyn Decode>, Error> {
        Ok(Box::<Lines>::default())
    }
}

pub fn options() -> Options {
    Options {
        panes_partitions: 3,
        dead_letter_bytes_max: 16,
        ..Options::default()
    }
}

/// A topic, what was committed of it, and a stage that reads it.
pub struct Harness {
    pub log: Vec<Vec<Entry>>,
    pub pipelines: Vec<Pipeline>,
    pub options: Options,
    pub stage: Aggregate,
    /// Partitions assigned to this instance.
    pub owned: Vec<usize>,
    /// Next record to hand to the stage, per partition.
    pub positions: Vec<i64>,
    pub committed: BTreeMap<i32, Committed>,
    pub now_ms: i64,
    /// Rows have the time at which they are received.
    pub receive: bool,
    /// Records below were removed.
    pub log_start: usize,
    pending: Outputs,
    /// What became visible.
    pub visible: Vec<Output>,
}

impl Harness {
    pub fn new(pipelines: Vec<Pipeline>, log: Vec<Vec<Entry>>) -> Self {
        Self::with(pipelines, log, options())
    }

    pub fn with(pipelines: Vec<Pipeline>, log: Vec<Vec<Entry>>, options: Options) -> Self {
        let owned = (0..log.len()).collect();
        Self::owning(pipelines, log, options, owned)
    }

    pub fn owning(pipelines: Vec<Pipeline>, log: Vec<Vec<Entry>>, options: Options, owned: Vec<usize>) -> Self {
        let stage = Self::stage(&pipelines, &options);
        let mut harness = Self {
            owned,
            positions: vec![0; log.len()],
            log,
            pipelines,
            options,
            stage,
            committed: BTreeMap::new(),
            now_ms: 1_000_000,
            receive: false,
            log_start: 0,
            pending: Outputs::default(),
            visible: Vec::new(),
        };
        harness.assign().unwrap();
        harness
    }

    fn stage(pipelines: &[Pipeline], options: &Options) -> Aggregate {
        Aggregate::new(pipelines, Topics::new("t."), options.clone(), &LineDecoders).unwrap()
    }

    /// The side reader brings another instance's progress.
    pub fn hears(&mut self, progress: &protocol::log::SourceProgress) {
        let mut batch = Batch::default();
        let panes = batch.partition("t.panes", 0);
        let value = serde_json::to_vec(progress).unwrap();
        let headers = [(protocol::log::KIND, protocol::log::KIND_PROGRESS.as_bytes())];
        batch.push(panes, 0, (0, TimestampKind::LogAppend), None, Some(&value), headers);
        self.stage.step(&batch, &mut Outputs::default()).unwrap();
    }

    pub fn place(&self, partition: usize) -> TopicPartition {
        TopicPartition::new(TOPIC, partition as i32)
    }

    pub fn assign(&mut self) -> Result<(), StageError> {
        for partition in self.owned.clone() {
            let committed = self.committed.get(&(partition as i32)).cloned();
            let time = self.stage.lookback(&self.place(partition), committed.as_ref());
            let young = |offset: &usize| time.is_some_and(|time| self.log[partition][*offset].timestamp_ms >= time);
            let mut held = self.log_start..self.log[partition].len();
            let assignment = Assignment {
                committed,
                start_offset: 0,
                lookback_offset: held.find(young).map(|offset| offset as i64),
                log_start_offset: self.log_start as i64,
                log_end_offset: self.log[partition].len() as i64,
                partition_count: self.log.len() as i32,
            };
            let place = self.place(partition);
            self.positions[partition] = self.stage.assigned(&place, &assignment)?;
        }
        Ok(())
    }

    /// Dies with whatever was not committed, and comes back.
    pub fn crash(&mut self) {
        self.pending = Outputs::default();
        self.stage = Self::stage(&self.pipelines, &self.options);
        self.assign().unwrap();
    }

    /// Hands up to `count` records of each of these partitions over, in one batch.
    pub fn step(&mut self, partitions: &[usize], count: usize) {
        let mut batch = Batch::default();
        for partition in partitions.iter().filter(|partition| self.owned.contains(partition)) {
            let handle = batch.partition(TOPIC, *partition as i32);
            let from = self.positions[*partition] as usize;
            let to = (from + count).min(self.log[*partition].len());
            for offset in from..to {
                let entry = &self.log[*partition][offset];
                let stamp = (entry.timestamp_ms, TimestampKind::Create);
                batch.push(
                    handle,
                    offset as i64,
                    stamp,
                    Some(b"k"),
                    Some(&entry.bytes(self.receive)),
                    [],
                );
            }
            self.positions[*partition] = to as i64;
        }
        self.stage.step(&batch, &mut self.pending).unwrap();
    }

    /// Reads up to `count` records again of each partition of which something is to be; tells whether there was one.
    pub fn reread(&mut self, count: usize) -> bool {
        let mut batch = Batch::default();
        let mut next = Vec::new();
        for (place, from) in self.stage.rereads() {
            let partition = place.partition as usize;
            let handle = batch.partition(TOPIC, place.partition);
            let to = (from as usize + count).min(self.log[partition].len());
            for offset in from as usize..to {
                let entry = &self.log[partition][offset];
                let stamp = (entry.timestamp_ms, TimestampKind::Create);
                let value = entry.bytes(self.receive);
                batch.push(handle, offset as i64, stamp, Some(b"k"), Some(&value), []);
            }
            next.push((place, to as i64));
        }
        self.stage.reread(&batch, &next, &mut self.pending).unwrap();
        !next.is_empty()
    }

    pub fn tick(&mut self, elapsed_ms: i64) {
        self.now_ms += elapsed_ms;
        let caught_up: Vec<TopicPartition> = self
            .owned
            .iter()
            .filter(|partition| self.positions[**partition] as usize == self.log[**partition].len())
            .map(|partition| self.place(*partition))
            .collect();
        let clock = Clock {
            now_ms: self.now_ms,
            caught_up: &caught_up,
            partition_counts: &[],
        };
        self.stage.tick(clock, &mut self.pending).unwrap();
    }

    pub fn commit(&mut self) {
        let positions = self.stage.before_commit(&mut self.pending).unwrap();
        for progress in positions {
            assert!(progress.metadata.len() <= 4_096);
            let before = self.committed.insert(
                progress.partition.partition,
                Committed {
                    offset: progress.offset,
                    metadata: progress.metadata,
                },
            );
            assert!(
                before.is_none_or(|before| before.offset <= progress.offset),
                "offsets never go back"
            );
        }
        self.visible.append(&mut self.pending.records);
        self.stage.committed();
    }

    /// Reads everything that is left, in steps of this size.
    pub fn drain(&mut self, count: usize) {
        let owned = self.owned.clone();
        while owned
            .iter()
            .any(|partition| (self.positions[*partition] as usize) < self.log[*partition].len())
        {
            self.step(&owned, count);
        }
    }

    pub fn panes(&self) -> Vec<(i32, PaneHeader, RecordBatch)> {
        let mut panes = Vec::new();
        for output in self
            .visible
            .iter()
            .filter(|output| header(output, log::KIND) == Some(log::KIND_PANES))
        {
            let read = serde_json::from_str(header(output, log::HEADER).unwrap()).unwrap();
            let rows = read_panes(output.value.as_ref().unwrap()).unwrap();
            panes.push((output.partition.unwrap(), read, rows));
        }
        panes
    }

    pub fn progress(&self) -> Vec<SourceProgress> {
        let progress = self
            .visible
            .iter()
            .filter(|o| header(o, log::KIND) == Some(log::KIND_PROGRESS));
        progress
            .map(|output| serde_json::from_slice(output.value.as_ref().unwrap()).unwrap())
            .collect()
    }

    pub fn on(&self, topic: &str) -> Vec<&Output> {
        self.visible.iter().filter(|output| &*output.topic == topic).collect()
    }

    /// Count and sum per (window end, key), merged from the published panes as detect merges them.
    pub fn windows(&self, set: &PaneSetSpec, window: &WindowSpec) -> Windows {
        let mut panes = self.panes();
        panes.retain(|(_, header, _)| header.set == set.fingerprint);
        panes.sort_by_key(|(target, header, rows)| (header.source_partition, int64(rows, 1, 0), *target));
        let keys = set.keys.len();
        let mut windows: BTreeMap<(i64, String), [Vec<Vec<ArrayRef>>; 2]> = BTreeMap::new();
        for (_, header, rows) in &panes {
            for at in 0..rows.num_rows() {
                let start = int64(rows, 0, at);
                let key = match keys {
                    0 => String::new(),
                    _ => rows.column(2).as_string::<i32>().value(at).to_owned(),
                };
                if key == CLOSING {
                    continue;
                }
                let first = (start - window.offset_ms).div_euclid(window.slide_ms) * window.slide_ms + window.offset_ms;
                let mut begin = first;
                while begin + window.size_ms > start {
                    let end = begin + window.size_ms;
                    if header.watermark_ms < end + window.lateness_ms {
                        let states = windows.entry((end, key.clone())).or_default();
                        let row = rows.slice(at, 1);
                        states[0].push(row.columns()[2 + keys..3 + keys].to_vec());
                        states[1].push(row.columns()[3 + keys..6 + keys].to_vec());
                    }
                    begin -= window.slide_ms;
                }
            }
        }
        let value = |spec: &AggregateSpec, states: &[Vec<ArrayRef>]| {
            let mut accumulator = accumulator(spec).unwrap();
            states
                .iter()
                .for_each(|state| accumulator.merge(&[0], state, 1).unwrap());
            accumulator.evaluate().unwrap()
        };
        windows
            .into_iter()
            .map(|(window, [counts, sums])| {
                let count = value(&set.aggregates[0], &counts).as_primitive::<Int64Type>().value(0);
                let sum = value(&set.aggregates[1], &sums).as_primitive::<Float64Type>().value(0);
                (window, (count, sum))
            })
            .collect()
    }
}

pub type Windows = BTreeMap<(i64, String), (i64, f64)>;

fn int64(rows: &RecordBatch, column: usize, row: usize) -> i64 {
    rows.column(column).as_primitive::<Int64Type>().value(row)
}

pub fn header<'a>(output: &'a Output, name: &str) -> Option<&'a str> {
    let found = output.headers.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| std::str::from_utf8(value).unwrap())
}

/// What has to come out, row by row and without panes.
#[derive(Debug, Default)]
pub struct Expected {
    pub windows: Windows,
    pub late: usize,
    pub dead: usize,
}

pub fn expected(log: &[Vec<Entry>], set: &PaneSetSpec, window: &WindowSpec) -> Expected {
    let mut expected = Expected::default();
    let (delay, skew) = (source().delay_ms, source().max_future_skew_ms);
    for entries in log {
        let mut watermark: Option<i64> = None;
        for entry in entries {
            let timeless = entry.rows.iter().any(|row| row.ts.is_none());
            let mad = entry
                .rows
                .iter()
                .any(|row| row.ts.is_some_and(|ts| ts > entry.timestamp_ms + skew));
            expected.dead += match entry.poison {
                true => 1,
                false => usize::from(timeless) + usize::from(mad),
            };
            for row in entry.rows.iter().filter(|_| !entry.poison) {
                let Some(ts) = row.ts.filter(|ts| *ts <= entry.timestamp_ms + skew) else {
                    continue;
                };
                if row.service != CLOSING && (set.filter.is_none() || row.value > 10.0) {
                    let floor = watermark.map(|ms| ms.div_euclid(set.width_ms) * set.width_ms);
                    let mut end = ts - ts.rem_euclid(window.slide_ms) + window.size_ms;
                    let mut taken = false;
                    while end > ts {
                        if floor.is_none_or(|floor| end + window.lateness_ms > floor) {
                            let key = if set.keys.is_empty() {
                                String::new()
                            } else {
                                row.service.clone()
                            };
                            let (count, sum) = expected.windows.entry((end, key)).or_default();
                            *count += 1;
                            *sum += row.value;
                            taken = true;
                        }
                        end -= window.slide_ms;
                    }
                    expected.late += usize::from(!taken);
                }
                watermark = watermark.max(Some(ts - delay));
            }
        }
    }
    expected
}

pub fn assert_windows(found: &Windows, expected: &Windows, what: &str) {
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>(),
        "{what}"
    );
    for (window, (count, sum)) in expected {
        let (found_count, found_sum) = &found[window];
        assert_eq!(found_count, count, "{what}: rows in {window:?}");
        assert!(
            (found_sum - sum).abs() <= 1e-9 * sum.abs().max(1.0),
            "{what}: sum of {window:?}"
        );
    }
}
