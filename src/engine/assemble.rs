//! The assembling half of detect: panes of all source partitions → closed windows → feature rows.
//!
//! Owns the rings of panes, the progress table and the moment at which a window closes. Promises that a window's content
//! depends on the panes in it and not on the order in which their writers interleaved: partials merge in the order (pane,
//! pane set, source partition, first source offset). Knows nothing of detectors or topics. Fails with [`Error`] on a pane record that does not
//! fit its pane set; the caller decides what becomes of the record.

mod groups;
mod merge;
mod session;
mod turn;

pub use session::SESSION_PANES_MAX;
pub use turn::{Standing, Turn};

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, RecordBatch, TimestampMillisecondArray, UInt32Array, new_null_array,
    },
    compute::{cast, filter_record_batch, take_arrays},
    datatypes::{DataType, FieldRef, Int64Type},
    row::OwnedRow,
};
use groups::Groups;
use merge::{ABSENT, Intervals, Numbering};
use protocol::log::{ActiveSet, PaneHeader, SourceProgress};
use serde::{Deserialize, Serialize};

use crate::{
    Error,
    accumulate::accumulator,
    expression,
    spec::{PaneSetSpec, Pipeline, ViewSpec, WindowSpec},
};

/// How far every source has come, as one `panes` partition has been told. Written to the state topic as it stood at low-water.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProgressTable {
    pub sources: BTreeMap<u64, SourceTable>,
    /// The watermarks that windows over several sources were closed for, by those sources. They never go back.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unions: BTreeMap<String, i64>,
}

/// How far the partitions of one source have come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceTable {
    pub partition_count: i32,
    pub partitions: BTreeMap<i32, PartitionTable>,
    /// The watermark that windows were closed for. Never goes back.
    pub closed_ms: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PartitionTable {
    pub watermark_ms: Option<i64>,
    pub idle: bool,
    pub source_offset: i64,
    #[serde(default)]
    pub sets: Vec<ActiveSet>,
    /// The latest pane of any set that came from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_pane_ms: Option<i64>,
    /// The newest version of the pipelines that it is read for.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub version: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl ProgressTable {
    /// The watermark that every living source has passed; where none lives, the last one heard of.
    pub fn watermark_ms(&self) -> Option<i64> {
        let living = self.sources.values().filter(|source| !source.all_idle());
        let all = self.sources.values();
        living
            .filter_map(|source| source.closed_ms)
            .min()
            .or_else(|| all.filter_map(|source| source.closed_ms).max())
    }
}

/// Minimum over the partitions of these sources that are not idle; `None` while one of them has never spoken, or all are idle.
fn watermark_ms<'a>(sources: impl IntoIterator<Item = Option<&'a SourceTable>>) -> Option<i64> {
    let mut minimum = None;
    for source in sources {
        let source = source.filter(|source| source.partition_count > 0)?;
        for partition in (0..source.partition_count).map(|partition| source.partitions.get(&partition)) {
            let partition = partition?;
            if !partition.idle {
                let watermark = partition.watermark_ms?;
                minimum = Some(minimum.map_or(watermark, |least: i64| least.min(watermark)));
            }
        }
    }
    minimum
}

impl SourceTable {
    /// Whether every partition is idle: nothing advances, so nothing can be told silent.
    pub fn all_idle(&self) -> bool {
        self.partitions.values().all(|partition| partition.idle)
    }

    /// The latest first pane of a set over the partitions: a window that starts before it may be incomplete.
    fn first_pane_ms(&self, set: u64) -> Option<i64> {
        let sets = self.partitions.values().flat_map(|partition| &partition.sets);
        sets.filter(|active| active.set == set)
            .filter_map(|active| active.first_pane_ms)
            .max()
    }

    /// The greatest watermark over the partitions at which the backfill of a set was done.
    fn met_ms(&self, set: u64) -> Option<i64> {
        let sets = self.partitions.values().flat_map(|partition| &partition.sets);
        sets.filter(|active| active.set == set)
            .filter_map(|active| active.met_ms)
            .max()
    }
}

/// The rows of a view for one closed window.
#[derive(Debug)]
pub struct ClosedWindow {
    /// Version of the pipelines that the view is of.
    pub version: u64,
    /// Index of the pipeline in it, and of the view in that.
    pub pipeline: usize,
    pub view: usize,
    pub start_ms: i64,
    pub end_ms: i64,
    /// Of early rows, the time up to which they hold the window; it is not closed.
    pub early_ms: Option<i64>,
    /// The view's output, after HAVING, in key order. May have no rows.
    pub rows: RecordBatch,
}

/// The last event time of entities that a silence detector watches, as one pane record has them.
#[derive(Debug)]
pub struct Sighting {
    pub version: u64,
    pub pipeline: usize,
    pub pane_set: usize,
    pub source: u64,
    pub source_partition: i32,
    /// Key columns.
    pub keys: Vec<ArrayRef>,
    pub last_seen_ms: Vec<Option<i64>>,
}

/// Rows of a pane that came for windows already closed here: they are late, and nothing re-opens.
#[derive(Debug)]
pub struct LatePane {
    pub version: u64,
    pub pipeline: usize,
    pub view: usize,
    pub pane_start_ms: i64,
    /// `pane_start`, `first_offset`, keys, states.
    pub rows: RecordBatch,
}

/// What one record of the `panes` log brought about.
#[derive(Debug, Default)]
pub struct Assembled {
    pub closed: Vec<ClosedWindow>,
    pub sightings: Vec<Sighting>,
    pub late: Vec<LatePane>,
    /// The watermark that windows are closed for moved.
    pub advanced: bool,
    /// The record was below the last one seen from its source partition: a stale writer's.
    pub stale: bool,
    /// No pipeline here has this pane set or source.
    pub unknown: bool,
    /// A view's next version took over: no window of an older one is left.
    pub handed_over: bool,
}

/// One pane's partials from one record.
struct Block {
    log_offset: i64,
    /// Position among the pane sets of its ring.
    set: usize,
    source_partition: i32,
    first_offset: i64,
    watermark_ms: i64,
    /// The watermark that windows had been closed for when it came: a partition that was idle is as far as the others.
    passed_ms: i64,
    /// Of each row, by number.
    groups: Vec<u32>,
    states: Vec<ArrayRef>,
}

/// A pane set that fills a ring.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Feed {
    /// Fingerprints of the set and of its source.
    set: u64,
    source: u64,
}

/// The panes of one pane set, or of the sets of a UNION ALL, which are alike.
struct Ring {
    /// Name of the pipeline.
    pipeline: String,
    feeds: Vec<Feed>,
    /// Names the sources of a union in the progress table; `None` where there is one source.
    union: Option<String>,
    spec: PaneSetSpec,
    /// State columns of each aggregate, among the states: from, to.
    states: Vec<(usize, usize)>,
    groups: Groups,
    panes: BTreeMap<i64, Vec<Block>>,
    intervals: Intervals,
    numbering: Numbering,
    /// Panes let go since keys that no pane has were looked for.
    let_go: usize,
    views: Vec<View>,
    /// Version, index of the pipeline and of the set, where some silence detector watches this set directly.
    watched: Option<(u64, usize, usize)>,
}

struct View {
    version: u64,
    /// Index of the pipeline, and of the view in it.
    pipeline: usize,
    index: usize,
    turn: Turn,
    spec: ViewSpec,
    /// For FILL MISSING: keys seen lately, with the windows since.
    missing: BTreeMap<OwnedRow, u32>,
    /// The groups of the last window, and their keys as columns of the view's input.
    shown: (Vec<u32>, Vec<ArrayRef>),
    sessions: session::Sessions,
}

/// Assembles the windows of one `panes` partition.
pub struct Assembler {
    table: ProgressTable,
    rings: Vec<Ring>,
}

impl Assembler {
    pub fn new(pipelines: &[Pipeline]) -> Result<Self, Error> {
        Self::of(0, pipelines)
    }

    /// The windows of one version of the pipelines.
    pub fn of(version: u64, pipelines: &[Pipeline]) -> Result<Self, Error> {
        let mut assembler = Self {
            table: ProgressTable::default(),
            rings: Vec::new(),
        };
        assembler.follow(version, pipelines)?;
        Ok(assembler)
    }

    /// The progress table as it stands.
    pub fn table(&self) -> &ProgressTable {
        &self.table
    }

    /// Least log offset of a pane that an open window still needs.
    pub fn needed_since(&self) -> Option<i64> {
        let blocks = self.rings.iter().flat_map(|ring| ring.panes.values().flatten());
        blocks.map(|block| block.log_offset).min()
    }

    /// Panes held, for the operator's eyes.
    pub fn pane_count(&self) -> usize {
        self.rings.iter().map(|ring| ring.panes.len()).sum()
    }

    /// Takes in a pane record.
    pub fn panes(&mut self, log_offset: i64, header: &PaneHeader, rows: &RecordBatch) -> Result<Assembled, Error> {
        let mut assembled = Assembled::default();
        if !self.reads(header.source) {
            assembled.unknown = true;
            return Ok(assembled);
        }
        let source = self.table.sources.entry(header.source).or_default();
        let partition = source.partitions.entry(header.source_partition).or_default();
        if header.source_offset < partition.source_offset {
            assembled.stale = true;
            return Ok(assembled);
        }
        partition.source_offset = header.source_offset;
        if rows.num_columns() > 0 {
            let latest_ms = int64s(rows, 0)?.iter().copied().max();
            partition.latest_pane_ms = partition.latest_pane_ms.max(latest_ms);
        }
        assembled.unknown = true;
        for ring in &mut self.rings {
            let closed_ms = ring.closed_ms(&self.table);
            // UNION ALL of a set with itself has its rows twice.
            for feed in 0..ring.feeds.len() {
                if ring.feeds[feed].set == header.set {
                    assembled.unknown = false;
                    ring.take(log_offset, feed, header, rows, closed_ms, &mut assembled)?;
                }
            }
        }
        Ok(assembled)
    }

    /// Takes in a progress record, and closes what it lets close.
    pub fn progress(&mut self, progress: &SourceProgress) -> Result<Assembled, Error> {
        let mut assembled = Assembled::default();
        // What no version reads any more would stand still in the table, and hold everybody's time.
        if !self.reads(progress.source) {
            assembled.unknown = true;
            return Ok(assembled);
        }
        let source = self.table.sources.entry(progress.source).or_default();
        source.partition_count = source.partition_count.max(progress.partition_count);
        for told in &progress.partitions {
            let partition = source.partitions.entry(told.partition).or_default();
            if told.source_offset < partition.source_offset {
                assembled.stale = true;
                continue;
            }
            partition.source_offset = told.source_offset;
            partition.watermark_ms = partition.watermark_ms.max(told.watermark_ms);
            partition.idle = told.idle;
            partition.sets.clone_from(&told.sets);
            partition.version = told.version;
        }
        self.appoint();
        let told = self.rings.iter_mut().filter(|ring| ring.reads(progress.source));
        let mut passed = Vec::new();
        for ring in told {
            let before = ring.closed_ms(&self.table);
            let sources = ring.sources().into_iter().map(|source| self.table.sources.get(&source));
            let Some(now) = watermark_ms(sources).filter(|now| before.is_none_or(|before| *now > before)) else {
                continue;
            };
            let first_pane = ring.first_pane_ms(&self.table);
            for view in 0..ring.views.len() {
                ring.close(view, before, now, first_pane, &mut assembled)?;
            }
            ring.evict(now);
            passed.extend(ring.union.clone().map(|union| (union, now)));
        }
        assembled.advanced = !passed.is_empty();
        self.table.unions.extend(passed);
        let source = self.table.sources.entry(progress.source).or_default();
        if let Some(now) = watermark_ms([Some(&*source)])
            && source.closed_ms.is_none_or(|before| now > before)
        {
            source.closed_ms = Some(now);
            assembled.advanced = true;
        }
        self.hand_over(&mut assembled)?;
        assembled.closed.sort_by_key(|closed| {
            (
                closed.early_ms.unwrap_or(closed.end_ms),
                closed.version,
                closed.pipeline,
                closed.view,
            )
        });
        Ok(assembled)
    }
}

impl WindowSpec {
    /// The first window end after this time.
    fn end_after(&self, time_ms: i64) -> i64 {
        let phase = self.offset_ms + self.size_ms;
        time_ms - (time_ms - phase).rem_euclid(self.slide_ms) + self.slide_ms
    }

    /// The end of the last window that covers this pane.
    fn last_end(&self, pane_start_ms: i64) -> i64 {
        pane_start_ms - (pane_start_ms - self.offset_ms).rem_euclid(self.slide_ms) + self.size_ms
    }
}

/// What each ring is filled from: the sets of every view, and sets that only a detector watches.
fn ring_sets(pipeline: &Pipeline) -> BTreeSet<Vec<usize>> {
    let views = pipeline.views.iter().map(|view| view.pane_sets.clone());
    let mut rings: BTreeSet<Vec<usize>> = views.collect();
    let read: BTreeSet<usize> = rings.iter().flatten().copied().collect();
    let watched = (0..pipeline.pane_sets.len()).filter(|set| !read.contains(set));
    rings.extend(watched.map(|set| vec![set]));
    rings
}

impl Ring {
    fn new(sets: &[usize], all: &Pipeline) -> Result<Self, Error> {
        let feeds = feeds(sets, all);
        let set = *sets.first().ok_or_else(|| Error::Shape {
            what: "view",
            expected: "a pane set".into(),
            found: "none".into(),
        })?;
        let spec = &all.pane_sets[set];
        let sources: BTreeSet<u64> = feeds.iter().map(|feed| feed.source).collect();
        let union = (sources.len() > 1).then(|| {
            let names: Vec<String> = sources.iter().map(|source| format!("{source:016x}")).collect();
            names.join("+")
        });
        let mut states = Vec::new();
        let mut from = 0;
        for aggregate in &spec.aggregates {
            let to = from + accumulator(aggregate)?.state_fields().len();
            states.push((from, to));
            from = to;
        }
        Ok(Self {
            pipeline: all.name.clone(),
            feeds,
            union,
            spec: spec.clone(),
            states,
            groups: Groups::new(&spec.key_fields)?,
            panes: BTreeMap::new(),
            intervals: Intervals::default(),
            numbering: Numbering::default(),
            let_go: 0,
            views: Vec::new(),
            watched: None,
        })
    }

    fn reads(&self, source: u64) -> bool {
        self.feeds.iter().any(|feed| feed.source == source)
    }

    fn sources(&self) -> BTreeSet<u64> {
        self.feeds.iter().map(|feed| feed.source).collect()
    }

    /// The watermark that its windows were closed for.
    fn closed_ms(&self, table: &ProgressTable) -> Option<i64> {
        match &self.union {
            Some(union) => table.unions.get(union).copied(),
            None => table.sources.get(&self.feeds[0].source)?.closed_ms,
        }
    }

    /// A window that starts before this may be incomplete.
    fn first_pane_ms(&self, table: &ProgressTable) -> Option<i64> {
        let first = |feed: &Feed| table.sources.get(&feed.source)?.first_pane_ms(feed.set);
        self.feeds.iter().filter_map(first).max()
    }

    /// How far older versions may have closed windows before the last partition was backfilled: the same for every partition of `panes`.
    fn met_ms(&self, table: &ProgressTable) -> Option<i64> {
        let met = |feed: &Feed| table.sources.get(&feed.source)?.met_ms(feed.set);
        self.feeds.iter().filter_map(met).max()
    }

    fn take(
        &mut self,
        log_offset: i64,
        feed: usize,
        header: &PaneHeader,
        rows: &RecordBatch,
        closed_ms: Option<i64>,
        assembled: &mut Assembled,
    ) -> Result<(), Error> {
        let expected = self.first_state() + self.states.last().map_or(0, |(_, to)| *to);
        if rows.num_columns() != expected {
            let found = format!("{} columns", rows.num_columns());
            return Err(Error::Shape {
                what: "pane record",
                expected: format!("{expected} columns"),
                found,
            });
        }
        let starts = int64s(rows, 0)?;
        let first_offsets = int64s(rows, 1)?;
        if let Some(watched) = self.watched {
            assembled.sightings.push(self.sighting(watched, header, rows)?);
        }
        if self.views.is_empty() {
            return Ok(());
        }
        let mut groups = None;
        let mut from = 0;
        while from < rows.num_rows() {
            let pane_start = starts[from];
            let length = starts[from..].iter().take_while(|start| **start == pane_start).count();
            let slice = rows.slice(from, length);
            let first_offset = first_offsets[from..from + length].iter().copied().min().unwrap_or(0);
            self.late(pane_start, header.watermark_ms, closed_ms, &slice, assembled);
            if self.needed(pane_start, closed_ms) {
                // Who waits for its turn reads what others have closed.
                let waits = self.views.iter().any(|view| view.waits_for(pane_start).is_some());
                let passed_ms = closed_ms.filter(|_| !waits).unwrap_or(i64::MIN);
                let groups = match &groups {
                    Some(groups) => groups,
                    None => groups.insert(
                        self.groups
                            .numbers(&rows.columns()[2..2 + self.spec.keys.len()], rows.num_rows())?,
                    ),
                };
                self.insert(
                    pane_start,
                    Block {
                        log_offset,
                        set: feed,
                        source_partition: header.source_partition,
                        first_offset,
                        watermark_ms: header.watermark_ms,
                        passed_ms,
                        groups: groups[from..from + length].to_vec(),
                        states: slice.columns()[self.first_state()..].to_vec(),
                    },
                );
            }
            from += length;
        }
        Ok(())
    }

    /// A pane whose row would have joined a window that is closed by now is late for that window.
    fn late(&self, pane: i64, watermark: i64, closed: Option<i64>, rows: &RecordBatch, assembled: &mut Assembled) {
        let Some(closed) = closed else { return };
        for view in self.views.iter().filter(|view| !view.turn.is_waiting()) {
            let window = &view.spec.window;
            if let Some(gap) = window.session_gap_ms {
                if pane + self.spec.width_ms + gap + window.lateness_ms <= closed {
                    assembled.late.push(LatePane {
                        version: view.version,
                        pipeline: view.pipeline,
                        view: view.index,
                        pane_start_ms: pane,
                        rows: rows.clone(),
                    });
                }
                continue;
            }
            let open = pane.max(watermark.saturating_sub(window.lateness_ms));
            let end = window.end_after(open);
            if end <= window.last_end(pane) && end + window.lateness_ms <= closed {
                let late = LatePane {
                    version: view.version,
                    pipeline: view.pipeline,
                    view: view.index,
                    pane_start_ms: pane,
                    rows: rows.clone(),
                };
                assembled.late.push(late);
            }
        }
    }

    /// Whether some window over the pane is still open, or a silent key may have to be filled in from it.
    fn needed(&self, pane_start_ms: i64, closed_ms: Option<i64>) -> bool {
        let Some(closed) = closed_ms else { return true };
        self.views.iter().any(|view| {
            let window = &view.spec.window;
            let kept = window.lateness_ms + i64::from(view.spec.fill_missing_windows) * window.slide_ms;
            if let Some(needed) = view.waits_for(pane_start_ms) {
                return needed;
            }
            window.last_end(pane_start_ms) + kept > closed
                || (window.session_gap_ms.is_some() && view.sessions.holds(pane_start_ms))
        })
    }

    fn insert(&mut self, pane_start: i64, block: Block) {
        let blocks = self.panes.entry(pane_start).or_default();
        let order = |block: &Block| (block.set, block.source_partition, block.first_offset, block.log_offset);
        let at = blocks.partition_point(|other| order(other) <= order(&block));
        blocks.insert(at, block);
        self.intervals.touch(pane_start, self.spec.width_ms);
        self.views.iter_mut().for_each(|view| view.sessions.touch(pane_start));
    }

    /// Columns of a pane record before its states.
    fn first_state(&self) -> usize {
        2 + self.spec.keys.len()
    }

    fn sighting(
        &self,
        (version, pipeline, pane_set): (u64, usize, usize),
        header: &PaneHeader,
        rows: &RecordBatch,
    ) -> Result<Sighting, Error> {
        let mut latest = accumulator(&self.spec.aggregates[0])?;
        let groups: Vec<u32> = (0..rows.num_rows() as u32).collect();
        let (from, to) = self.states[0];
        latest.merge(&groups, &rows.columns()[self.first_state()..][from..to], groups.len())?;
        let seen = cast(
            &latest.evaluate()?,
            &DataType::Timestamp(arrow::datatypes::TimeUnit::Millisecond, None),
        )?;
        let seen = cast(&seen, &DataType::Int64)?;
        Ok(Sighting {
            version,
            pipeline,
            pane_set,
            source: header.source,
            source_partition: header.source_partition,
            keys: self.groups.plain(&rows.columns()[2..self.first_state()])?,
            last_seen_ms: seen.as_primitive::<Int64Type>().iter().collect(),
        })
    }

    /// Closes every window of a view whose end + lateness lies in (before, now], in order of their ends.
    fn close(
        &mut self,
        view: usize,
        before: Option<i64>,
        now: i64,
        first_pane: Option<i64>,
        assembled: &mut Assembled,
    ) -> Result<(), Error> {
        if self.views[view].turn.is_waiting() {
            return Ok(());
        }
        let window = self.views[view].spec.window.clone();
        let turn = &mut self.views[view].turn;
        let first_pane = first_pane.max(turn.since_ms);
        let resumes = turn.resume();
        turn.fresh = false;
        let before = if resumes.is_some() { None } else { before };
        if let Some(gap) = window.session_gap_ms {
            return self.close_sessions(view, gap, (before, now), first_pane, assembled);
        }
        let closed = &mut assembled.closed;
        let spoken = before.max(resumes.filter(|from| *from > i64::MIN));
        self.speak_early(view, &window, spoken, now, first_pane, closed)?;
        let Some((earliest, _)) = self.panes.first_key_value() else {
            return Ok(());
        };
        let mut end = match (resumes, before) {
            (Some(from), _) => window.end_after(from.max(*earliest)),
            (None, Some(before)) => window.end_after(self.views[view].turn.not_before(before - window.lateness_ms)),
            (None, None) => window.end_after(*earliest),
        };
        while end + window.lateness_ms <= now && self.views[view].turn.takes(end) {
            if self.views[view].missing.is_empty() {
                // Nothing to say for windows without panes: on to the next pane's first window.
                let Some((pane, _)) = self.panes.range(end - window.size_ms..).next() else {
                    break;
                };
                if *pane >= end {
                    end = window.end_after(*pane);
                    continue;
                }
            }
            let start = end - window.size_ms;
            if first_pane.is_none_or(|first| start >= first) {
                let rows = self.evaluate(view, start, end, None)?;
                closed.push(self.views[view].closed((start, end), None, rows));
            }
            end += window.slide_ms;
        }
        Ok(())
    }

    /// Early rows of the windows that are open at each step in (before, now]: every row before the step has been read.
    fn speak_early(
        &mut self,
        view: usize,
        window: &WindowSpec,
        before: Option<i64>,
        now: i64,
        first_pane: Option<i64>,
        closed: &mut Vec<ClosedWindow>,
    ) -> Result<(), Error> {
        let (Some(every), Some((earliest, _))) = (window.early_every_ms, self.panes.first_key_value()) else {
            return Ok(());
        };
        let step_after = |time: i64| time - (time - window.offset_ms).rem_euclid(every) + every;
        let mut step = step_after(before.unwrap_or(*earliest));
        while step <= now {
            let Some((pane, _)) = self.panes.range(step - window.size_ms..).next() else {
                break;
            };
            if *pane >= step {
                step = step_after(*pane);
                continue;
            }
            let mut end = window.end_after(step);
            while end - window.size_ms < step {
                let start = end - window.size_ms;
                let begun = self.panes.range(start..step).next().is_some();
                let turn = &self.views[view].turn;
                if begun && turn.takes(end) && turn.is_after(end) && first_pane.is_none_or(|first| start >= first) {
                    let rows = self.evaluate(view, start, end, Some(step))?;
                    closed.push(self.views[view].closed((start, end), Some(step), rows));
                }
                end += window.slide_ms;
            }
            step += every;
        }
        Ok(())
    }

    /// The rows of a window, or what there is of it before `early`.
    fn evaluate(&mut self, view: usize, start: i64, end: i64, early: Option<i64>) -> Result<RecordBatch, Error> {
        let spec = self.views[view].spec.clone();
        let (numbering, mut values) = self.merge(&spec, (start, end), early.unwrap_or(end))?;
        let order = self.groups.order().iter().copied();
        let present: Vec<u32> = order.filter(|group| numbering.of(*group) != ABSENT).collect();
        let mut places: Vec<u32> = present.iter().map(|group| numbering.of(*group)).collect();
        self.numbering = numbering;
        let keys = if spec.fill_missing_windows > 0 && early.is_none() {
            let mut keys: Vec<OwnedRow> = present.iter().map(|group| self.groups.key(*group).clone()).collect();
            let filled = fill(&mut self.views[view].missing, &keys, spec.fill_missing_windows);
            for value in &mut values {
                let nulls = new_null_array(value.data_type(), filled.len());
                *value = arrow::compute::concat(&[&*value, &nulls])?;
            }
            places.extend(keys.len() as u32..(keys.len() + filled.len()) as u32);
            keys.extend(filled);
            let mut rows: Vec<(OwnedRow, u32)> = keys.into_iter().zip(places).collect();
            rows.sort_unstable();
            places = rows.iter().map(|(_, place)| *place).collect();
            self.groups.columns(rows.iter().map(|(key, _)| key))?
        } else {
            self.shown(view, present)?
        };
        let places = UInt32Array::from(places);
        let values = take_arrays(&values, &places, None)?;
        let bounds = vec![(start, end); places.len()];
        Ok(project(&spec, keys, values, &bounds, early.is_none())?.0)
    }

    /// Keys of these groups as the view's columns: those of the last window where they are the same, as they mostly are.
    fn shown(&mut self, view: usize, groups: Vec<u32>) -> Result<Vec<ArrayRef>, Error> {
        let View { spec, shown, .. } = &mut self.views[view];
        if shown.0 != groups || shown.1.is_empty() {
            let plain = self
                .groups
                .columns(groups.iter().map(|group| self.groups.key(*group)))?;
            let columns = plain.iter().zip(spec.input.fields());
            let columns = columns.map(|(column, field)| as_type(column, field.data_type()));
            *shown = (groups, columns.collect::<Result<_, _>>()?);
        }
        Ok(shown.1.clone())
    }

    /// Forgets panes that no open window needs, and keys that no pane has any more.
    fn evict(&mut self, closed: i64) {
        while let Some((pane, _)) = self.panes.first_key_value() {
            let pane = *pane;
            if self.needed(pane, Some(closed)) {
                break;
            }
            self.panes.pop_first();
            self.intervals.forget(pane);
            self.let_go += 1;
        }
        // To look at every pane for every pane that goes would cost their square.
        if self.groups.len() < 4096 || self.let_go < self.panes.len() {
            return;
        }
        self.let_go = 0;
        let mut places = vec![ABSENT; self.groups.len()];
        let mut live = Vec::new();
        for group in self.panes.values().flatten().flat_map(|block| &block.groups) {
            let place = &mut places[*group as usize];
            if *place == ABSENT {
                *place = live.len() as u32;
                live.push(*group);
            }
        }
        if live.len() * 2 > self.groups.len() {
            return;
        }
        for group in self.panes.values_mut().flatten().flat_map(|block| &mut block.groups) {
            *group = places[*group as usize];
        }
        self.groups.retain(&live);
        self.intervals.clear();
        self.views.iter_mut().for_each(|view| view.shown = Default::default());
    }
}

impl View {
    fn closed(&self, (start_ms, end_ms): (i64, i64), early_ms: Option<i64>, rows: RecordBatch) -> ClosedWindow {
        ClosedWindow {
            version: self.version,
            pipeline: self.pipeline,
            view: self.index,
            start_ms,
            end_ms,
            early_ms,
            rows,
        }
    }
}

/// The sets of a ring with their sources.
fn feeds(sets: &[usize], pipeline: &Pipeline) -> Vec<Feed> {
    let sets = sets.iter().map(|set| &pipeline.pane_sets[*set]);
    sets.map(|set| Feed {
        set: set.fingerprint,
        source: pipeline.sources[set.source].fingerprint,
    })
    .collect()
}

/// Keys seen lately but not in this window; brings the memory of them up to date.
fn fill(missing: &mut BTreeMap<OwnedRow, u32>, present: &[OwnedRow], windows_max: u32) -> Vec<OwnedRow> {
    let here: std::collections::HashSet<&OwnedRow> = present.iter().collect();
    let mut filled = Vec::new();
    missing.retain(|key, windows| {
        if here.contains(key) {
            return true;
        }
        *windows += 1;
        filled.push(key.clone());
        *windows < windows_max
    });
    for key in present {
        missing.insert(key.clone(), 0);
    }
    filled
}

/// HAVING and SELECT over merged aggregates, each row with the bounds of its window; and the bounds of the rows that are left.
fn project(
    spec: &ViewSpec,
    mut columns: Vec<ArrayRef>,
    values: Vec<ArrayRef>,
    bounds: &[(i64, i64)],
    is_final: bool,
) -> Result<(RecordBatch, Vec<(i64, i64)>), Error> {
    let fields = spec.input.fields();
    let times = |time: fn(&(i64, i64)) -> i64, field: Option<&FieldRef>| -> ArrayRef {
        let times = TimestampMillisecondArray::from_iter_values(bounds.iter().map(time));
        // As they are in UTC, the zone is a name only.
        let zone = field.and_then(|field| match field.data_type() {
            DataType::Timestamp(_, zone) => zone.clone(),
            _ => None,
        });
        Arc::new(times.with_timezone_opt(zone))
    };
    columns.push(times(|bounds| bounds.0, fields.get(columns.len())));
    columns.push(times(|bounds| bounds.1, fields.get(columns.len())));
    columns.extend(values);
    let columns: Vec<ArrayRef> = columns
        .iter()
        .zip(fields)
        .map(|(column, field)| as_type(column, field.data_type()))
        .collect::<Result<_, _>>()?;
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(bounds.len()));
    let mut bounds = bounds.to_vec();
    let mut input = RecordBatch::try_new_with_options(Arc::clone(&spec.input), columns, &options)?;
    if let Some(having) = &spec.having {
        let kept = expression::met(having, &input)?;
        input = filter_record_batch(&input, &kept)?;
        let mut keep = kept.iter();
        bounds.retain(|_| keep.next() == Some(Some(true)));
    }
    let mut output = Vec::with_capacity(spec.projection.len());
    for (column, field) in spec.projection.iter().zip(spec.output.fields()) {
        output.push(as_type(&expression::values(column, &input)?, field.data_type())?);
    }
    if spec.window.early_every_ms.is_some() {
        output.push(Arc::new(BooleanArray::from(vec![is_final; input.num_rows()])));
    }
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(input.num_rows()));
    let rows = RecordBatch::try_new_with_options(Arc::clone(&spec.output), output, &options)?;
    Ok((rows, bounds))
}

/// The column as this type.
fn as_type(column: &ArrayRef, data_type: &DataType) -> Result<ArrayRef, Error> {
    if column.data_type() == data_type {
        return Ok(Arc::clone(column));
    }
    Ok(cast(column, data_type)?)
}

/// Keys are compared by value: dictionaries of different records number the same text differently.
fn plain(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Dictionary(_, value) => (**value).clone(),
        other => other.clone(),
    }
}

fn int64s(rows: &RecordBatch, column: usize) -> Result<&[i64], Error> {
    let found = rows.column(column).as_primitive_opt::<Int64Type>();
    let shape = || Error::Shape {
        what: "pane_start and first_offset",
        expected: "int64".into(),
        found: rows.column(column).data_type().to_string(),
    };
    Ok(found.ok_or_else(shape)?.values())
}

#[cfg(test)]
mod tests;
