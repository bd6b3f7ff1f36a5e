//! One source on one partition: watermark, panes, replay.
//!
//! Rows are folded in spans between two crossings of a pane boundary: within a span no floored watermark changes, so judging
//! the span at once is judging each row against the watermark before it. A replay runs the same code from the low-water
//! offset with the watermark that held there and drops what it says; since every row before low-water was published and
//! every seal depends on rows alone, what is open at its end is what was open at the commit.

mod backfill;

use std::collections::BTreeMap;

use arrow::{
    array::{Array, AsArray, Int64Array, RecordBatch},
    buffer::BooleanBuffer,
    compute::cast,
    datatypes::{DataType, Int64Type, TimeUnit},
};
use protocol::log::{ActiveSet, PartitionProgress};

use super::{
    metadata::{FirstPane, Standing},
    plan::SourcePlan,
    side::Fault,
};
use crate::{
    error::Error,
    panes::{PaneStore, Sealed, Span, Unusual},
    spec::{Beyond, Budget, EVENT_TIMES_MS, SourceSpec},
};

/// The rows of a few records of one partition, as a decoder hands them out.
#[derive(Debug)]
pub struct Rows {
    /// Columns of the source's schema.
    pub batch: RecordBatch,
    /// Offset of the record that each row came from, ascending.
    pub offsets: Vec<i64>,
    /// Kafka timestamp of that record, milliseconds since the Unix epoch.
    pub record_ms: Vec<i64>,
}

/// A row that could not be used.
pub struct Unusable {
    pub row: usize,
    pub fault: Fault,
    pub reason: String,
}

/// A row that one view no longer takes.
pub struct LateHit {
    pub row: usize,
    pub set: usize,
    pub window: usize,
    pub event_time_ms: i64,
    pub floor_ms: i64,
}

/// What became of rows beside being folded.
#[derive(Default)]
pub struct Remarks {
    pub unusable: Vec<Unusable>,
    pub late: Vec<LateHit>,
}

/// Whether rows before the position were ever read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Past {
    Unread,
    Read,
}

struct Set {
    store: PaneStore,
    first_pane: FirstPane,
    sealed: Vec<Sealed>,
}

pub struct Lane {
    watermark_ms: Option<i64>,
    delay_ms: i64,
    idle: bool,
    sets: Vec<Set>,
    keys_max: usize,
    /// How often everything was published early, since a pane had no room.
    pub evictions: u64,
    /// Where the partition stood at the commit, until the replay has come there.
    replaying: Option<Standing>,
    /// Records below are no business of this lane.
    read_from: i64,
    /// Event times come from this process' clock, so that a replay would not see them again: nothing stays unpublished over
    /// a commit.
    pub receive_timed: bool,
    /// Quiet for the idle timeout; a fact only with the commit that records it.
    pub idle_due: bool,
    /// A pane boundary was crossed since the last commit.
    pub crossed: bool,
    times_ms: Vec<i64>,
    record_watermarks: Vec<i64>,
}

fn floor(time_ms: i64, width_ms: i64) -> i64 {
    time_ms - time_ms.rem_euclid(width_ms)
}

impl Lane {
    /// A lane whose next new record is at `position`. `standing` is what the last commit says of this source; a source without one is
    /// new, be it on a topic that was read before. `backfills` says from where on sets that come later are to have what was read.
    pub fn new(
        plan: &SourcePlan,
        keys_max: usize,
        position: i64,
        past: Past,
        standing: Option<&Standing>,
        backfills: &BTreeMap<u64, FirstPane>,
    ) -> Result<Self, Error> {
        let delay_ms = plan.spec.delay_ms;
        let mut sets = Vec::with_capacity(plan.sets.len());
        for spec in &plan.sets {
            let known = standing.and_then(|s| s.sets.iter().find(|(set, _)| *set == spec.fingerprint));
            let first_pane = match (known, standing.and_then(|s| s.watermark_ms)) {
                (Some((_, first_pane)), _) => *first_pane,
                (None, _) if past == Past::Unread => FirstPane::Any,
                (None, _) if backfills.contains_key(&spec.fingerprint) => backfills[&spec.fingerprint],
                // Ahead of every event time seen, not only of the watermark: those rows are gone.
                (None, Some(watermark_ms)) => FirstPane::At(next_pane(watermark_ms + delay_ms, spec.width_ms)),
                // Nothing was ever read: a set that comes later has missed as little as those before it.
                (None, None) if standing.is_some_and(Standing::holds_all) => FirstPane::Any,
                (None, None) => FirstPane::Pending,
            };
            sets.push(Set {
                store: PaneStore::new(spec.clone(), keys_max)?,
                first_pane,
                sealed: Vec::new(),
            });
        }
        let mut lane = Self {
            watermark_ms: standing.and_then(|s| s.watermark_ms),
            delay_ms,
            idle: standing.is_some_and(|s| s.idle),
            sets,
            keys_max,
            evictions: 0,
            replaying: None,
            read_from: position,
            receive_timed: false,
            idle_due: false,
            crossed: false,
            times_ms: Vec::new(),
            record_watermarks: Vec::new(),
        };
        if let Some(standing) = standing.filter(|standing| standing.low_water < position) {
            lane.read_from = standing.low_water;
            lane.watermark_ms = standing.low_watermark_ms;
            lane.replaying = Some(Standing {
                sets: lane.first_panes(),
                ..standing.clone()
            });
        }
        Ok(lane)
    }

    pub fn read_from(&self) -> i64 {
        self.read_from
    }

    pub fn is_replaying(&self) -> bool {
        self.replaying.is_some()
    }

    pub fn is_idle(&self) -> bool {
        self.idle
    }

    /// The watermark that others may know: during a replay the recorded one.
    pub fn watermark_ms(&self) -> Option<i64> {
        self.replaying.as_ref().map_or(self.watermark_ms, |s| s.watermark_ms)
    }

    pub fn greatest_time_ms(&self) -> Option<i64> {
        Some(self.watermark_ms()? + self.delay_ms)
    }

    /// A record came: whatever it holds, the partition is not quiet.
    pub fn wake(&mut self) {
        self.idle_due = false;
        if self.idle && !self.is_replaying() {
            self.idle = false;
            self.crossed = true;
        }
    }

    /// The replay has read everything below the committed offset.
    pub fn end_replay(&mut self) -> Result<(), Error> {
        let Some(standing) = self.replaying.take() else {
            return Ok(());
        };
        if self.watermark_ms != standing.watermark_ms {
            tracing::warn!(
                source = format!("{:016x}", standing.source),
                recorded_ms = standing.watermark_ms,
                replayed_ms = self.watermark_ms,
                "replay came to another watermark than the commit; the recorded one holds"
            );
            if let Some(recorded_ms) = standing.watermark_ms {
                self.advance(recorded_ms, Publish::No)?;
            }
            self.watermark_ms = standing.watermark_ms;
        }
        self.idle = standing.idle;
        self.crossed = false;
        Ok(())
    }

    /// Judges and folds decoded rows, in order.
    pub fn process(&mut self, spec: &SourceSpec, rows: &Rows) -> Result<Remarks, Error> {
        let mut remarks = Remarks::default();
        let usable = self.usable(spec, rows, &mut remarks)?;
        self.find_record_watermarks(rows, &usable);
        for set in self.sets.iter_mut().filter(|set| set.is_followed()) {
            for (row, reason) in set.store.prepare(&rows.batch, &self.times_ms, &usable)? {
                remarks.unusable.push(Unusable {
                    row: row as usize,
                    fault: Fault::Expression,
                    reason,
                });
            }
        }
        let mut from = 0;
        let mut boundary_ms = self.boundary_ms();
        for row in usable.set_indices() {
            let watermark_ms = self.times_ms[row] - self.delay_ms;
            if watermark_ms < boundary_ms {
                continue;
            }
            if boundary_ms == i64::MIN {
                self.activate(self.times_ms[row]);
            }
            // The row that crosses is judged by the watermark before it, like every other.
            self.raise(from, row, &usable);
            self.fold(from..row + 1, rows, &mut remarks)?;
            self.advance(watermark_ms, self.publishing())?;
            boundary_ms = self.boundary_ms();
            from = row + 1;
        }
        self.fold(from..rows.offsets.len(), rows, &mut remarks)?;
        self.raise(from, rows.offsets.len(), &usable);
        if self.is_replaying() {
            return Ok(Remarks::default());
        }
        Ok(remarks)
    }

    /// Rows with a time that may move the watermark; the others are remarked upon.
    fn usable(&mut self, spec: &SourceSpec, rows: &Rows, remarks: &mut Remarks) -> Result<BooleanBuffer, Error> {
        let count = rows.batch.num_rows();
        if rows.offsets.len() != count || rows.record_ms.len() != count {
            return Err(Error::Shape {
                what: "decoded rows",
                expected: format!("{count} offsets and timestamps"),
                found: format!("{} and {}", rows.offsets.len(), rows.record_ms.len()),
            });
        }
        let times = event_times_ms(&rows.batch, spec.event_time)?;
        self.times_ms.clear();
        self.times_ms.extend_from_slice(times.values());
        let skew_ms = (!spec.format.is_timed_by_log()).then_some(spec.max_future_skew_ms);
        let verdict = |row: usize| -> Option<(Fault, String)> {
            if times.is_null(row) {
                return Some((Fault::NoEventTime, "the event time is NULL".into()));
            }
            let (time_ms, record_ms) = (times.value(row), rows.record_ms[row]);
            if !EVENT_TIMES_MS.contains(&time_ms) {
                return Some((
                    Fault::EventTimeRange,
                    format!("event time {time_ms} ms is beyond the years 1 to 9997"),
                ));
            }
            let limit_ms = record_ms.saturating_add(skew_ms?);
            (time_ms > limit_ms).then(|| {
                let ahead_ms = time_ms.saturating_sub(record_ms);
                let reason = format!("event time is {ahead_ms} ms ahead of the record's timestamp");
                (Fault::Future, reason)
            })
        };
        Ok(BooleanBuffer::collect_bool(count, |row| match verdict(row) {
            None => true,
            Some((fault, reason)) => {
                remarks.unusable.push(Unusable { row, fault, reason });
                false
            }
        }))
    }

    /// For each row, the watermark before its record: where a replay from that record has to begin.
    fn find_record_watermarks(&mut self, rows: &Rows, usable: &BooleanBuffer) {
        self.record_watermarks.clear();
        let mut watermark_ms = self.watermark_ms.unwrap_or(i64::MIN);
        let mut before_record_ms = watermark_ms;
        let mut last = None;
        for (row, offset) in rows.offsets.iter().enumerate() {
            if last != Some(*offset) {
                last = Some(*offset);
                before_record_ms = watermark_ms;
            }
            self.record_watermarks.push(before_record_ms);
            if usable.value(row) {
                watermark_ms = watermark_ms.max(self.times_ms[row] - self.delay_ms);
            }
        }
    }

    /// Moves the watermark over rows that cross no boundary.
    fn raise(&mut self, from: usize, to: usize, usable: &BooleanBuffer) {
        let rows = (from..to).filter(|row| usable.value(*row));
        if let Some(greatest_ms) = rows.map(|row| self.times_ms[row]).max() {
            self.watermark_ms = self.watermark_ms.max(Some(greatest_ms - self.delay_ms));
        }
    }

    /// The least watermark at which some set crosses into its next pane.
    fn boundary_ms(&self) -> i64 {
        let Some(watermark_ms) = self.watermark_ms else {
            return i64::MIN;
        };
        let followed = self.sets.iter().filter(|set| set.is_followed());
        let next = followed.map(|set| next_pane(watermark_ms, set.store.spec().width_ms));
        next.min().unwrap_or(i64::MAX)
    }

    /// Sets that wait for the first row: nothing is known of rows before, except that by the watermark's own assumption they are
    /// at most the delay ahead of this one.
    fn activate(&mut self, time_ms: i64) {
        for set in self.sets.iter_mut().filter(|set| set.first_pane == FirstPane::Pending) {
            set.first_pane = FirstPane::At(next_pane(time_ms + self.delay_ms, set.store.spec().width_ms));
        }
    }

    /// Folds rows into every set. Where a set has no room for a record and publishes early, all of them do, so that no row before
    /// that record is unpublished and a replay never begins before it. So nothing was published early in what is replayed, and must not be
    /// now: a pane that began before may have known keys, taken with a record that alone was too much, for which there is no room here.
    fn fold(&mut self, mut span: std::ops::Range<usize>, rows: &Rows, remarks: &mut Remarks) -> Result<(), Error> {
        while !self.is_replaying()
            && let Some(full) = self.full_before(&span, rows)
        {
            self.fold_span(span.start..full, rows, remarks)?;
            self.publish_all()?;
            self.evictions += 1;
            span.start = full;
        }
        self.fold_span(span, rows, remarks)
    }

    fn full_before(&self, span: &std::ops::Range<usize>, rows: &Rows) -> Option<usize> {
        let evicting = self.sets.iter().filter(|set| set.is_followed() && set.store.evicts());
        let full = evicting.filter_map(|set| set.store.full_before(&self.span(set, span.clone(), rows)));
        full.min()
    }

    fn span<'a>(&'a self, set: &Set, span: std::ops::Range<usize>, rows: &'a Rows) -> Span<'a> {
        Span {
            rows: span,
            floor_ms: self.watermark_ms.map(|ms| floor(ms, set.store.spec().width_ms)),
            first_pane_ms: set.first_pane_ms(),
            offsets: &rows.offsets,
            record_watermarks: &self.record_watermarks,
        }
    }

    /// Takes out what is open, as partials that later ones add to.
    fn publish_all(&mut self) -> Result<(), Error> {
        let publish = self.publishing();
        for set in self.sets.iter_mut().filter(|set| set.is_followed()) {
            let floor_ms = self.watermark_ms.map(|ms| floor(ms, set.store.spec().width_ms));
            let sealed = set.store.flush(floor_ms)?.filter(|_| publish == Publish::Yes);
            sealed.into_iter().for_each(|sealed| set.keep(sealed));
        }
        Ok(())
    }

    fn fold_span(&mut self, span: std::ops::Range<usize>, rows: &Rows, remarks: &mut Remarks) -> Result<(), Error> {
        let mut unusual = Unusual::default();
        let followed = self.sets.iter_mut().enumerate().filter(|(_, set)| set.is_followed());
        for (index, set) in followed {
            let floor_ms = self.watermark_ms.map(|ms| floor(ms, set.store.spec().width_ms));
            let span = Span {
                rows: span.clone(),
                floor_ms,
                first_pane_ms: set.first_pane_ms(),
                offsets: &rows.offsets,
                record_watermarks: &self.record_watermarks,
            };
            set.store.fold(&span, &mut unusual)?;
            remarks.late.extend(unusual.late.drain(..).map(|(row, window)| LateHit {
                row: row as usize,
                set: index,
                window: window as usize,
                event_time_ms: self.times_ms[row as usize],
                floor_ms: floor_ms.unwrap_or(i64::MIN),
            }));
            set.refuse(self.keys_max, &mut unusual, remarks)?;
        }
        Ok(())
    }

    fn publishing(&self) -> Publish {
        match self.is_replaying() {
            true => Publish::No,
            false => Publish::Yes,
        }
    }

    /// Moves the watermark and seals what it passes.
    fn advance(&mut self, watermark_ms: i64, publish: Publish) -> Result<(), Error> {
        let before_ms = self.watermark_ms;
        for set in self.sets.iter_mut().filter(|set| set.is_followed()) {
            let width_ms = set.store.spec().width_ms;
            let (old, new) = (before_ms.map(|ms| floor(ms, width_ms)), floor(watermark_ms, width_ms));
            if old.is_some_and(|old| old >= new) {
                continue;
            }
            let sealed = set.store.seal(old, new)?;
            if publish == Publish::Yes {
                self.crossed = true;
                sealed.into_iter().for_each(|sealed| set.keep(sealed));
            }
        }
        self.watermark_ms = before_ms.max(Some(watermark_ms));
        Ok(())
    }

    /// Called once before each commit: says everything where nothing may stay unsaid.
    pub fn settle(&mut self) -> Result<(), Error> {
        if self.is_replaying() {
            return Ok(());
        }
        let falls_idle = std::mem::take(&mut self.idle_due) && !self.idle;
        if falls_idle || self.receive_timed {
            self.publish_all()?;
        }
        if falls_idle {
            self.idle = true;
            self.crossed = true;
        }
        Ok(())
    }

    /// What was sealed since the last commit: index of the set, and its panes.
    pub fn take_sealed(&mut self) -> Vec<(usize, Sealed)> {
        let sets = self.sets.iter_mut().enumerate();
        sets.flat_map(|(index, set)| {
            std::mem::take(&mut set.sealed)
                .into_iter()
                .map(move |sealed| (index, sealed))
        })
        .collect()
    }

    pub fn sealed_bytes(&self) -> usize {
        self.sets.iter().flat_map(|set| &set.sealed).map(Sealed::size).sum()
    }

    /// Where this source stands when `position` is the next offset to read.
    pub fn standing(&self, source: u64, position: i64) -> Standing {
        if let Some(standing) = &self.replaying {
            return Standing {
                sets: self.first_panes(),
                ..standing.clone()
            };
        }
        let unpublished = self.sets.iter().filter_map(|set| set.store.low_water()).min();
        let (low_water, low_watermark_ms) = match unpublished {
            Some((offset, watermark_ms)) => (offset, (watermark_ms != i64::MIN).then_some(watermark_ms)),
            None => (position, self.watermark_ms),
        };
        Standing {
            source,
            watermark_ms: self.watermark_ms,
            low_water,
            low_watermark_ms,
            idle: self.idle,
            sets: self.first_panes(),
        }
    }

    fn first_panes(&self) -> Vec<(u64, FirstPane)> {
        let sets = self.sets.iter();
        sets.map(|set| (set.store.spec().fingerprint, set.first_pane)).collect()
    }

    /// What detect is told. A set that waits for its first row is held back for ever, unless the partition is idle: then it
    /// holds nobody up. One that is backfilled is held back until that is done.
    pub fn progress(&self, partition: i32, source_offset: i64, version: u64) -> PartitionProgress {
        let idle = self.replaying.as_ref().map_or(self.idle, |standing| standing.idle);
        let active = |(set, first_pane)| {
            let (first_pane_ms, met_ms) = match first_pane {
                FirstPane::Any => (None, None),
                FirstPane::At(ms) => (Some(ms), None),
                FirstPane::Backfilled { first_pane_ms, met_ms } => (Some(first_pane_ms), Some(met_ms)),
                FirstPane::Pending if idle => return None,
                FirstPane::Pending | FirstPane::Backfilling { .. } => (Some(i64::MAX), None),
            };
            Some(ActiveSet {
                set,
                first_pane_ms,
                met_ms,
            })
        };
        PartitionProgress {
            partition,
            watermark_ms: self.watermark_ms(),
            idle,
            source_offset,
            sets: self.first_panes().into_iter().filter_map(active).collect(),
            version,
        }
    }

    pub fn stores(&self) -> impl Iterator<Item = &PaneStore> {
        self.sets.iter().map(|set| &set.store)
    }
}

/// Whether what is sealed is said, or was said before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Publish {
    Yes,
    No,
}

impl Set {
    /// The first pane that takes rows; `None`: any.
    fn first_pane_ms(&self) -> Option<i64> {
        match self.first_pane {
            FirstPane::Any => None,
            FirstPane::At(first_pane_ms)
            | FirstPane::Backfilling { first_pane_ms, .. }
            | FirstPane::Backfilled { first_pane_ms, .. } => Some(first_pane_ms),
            FirstPane::Pending => Some(i64::MAX),
        }
    }

    /// Whether rows go into it as they come. Where not, they do when they are read again.
    fn is_followed(&self) -> bool {
        !matches!(self.first_pane, FirstPane::Backfilling { .. })
    }

    /// Remarks on rows that found no room.
    fn refuse(&self, keys_max: usize, unusual: &mut Unusual, remarks: &mut Remarks) -> Result<(), Error> {
        let limit = self.store.spec().state_limit;
        let most = match limit.map_or(Budget::Keys(keys_max as u32), |limit| limit.budget) {
            Budget::Keys(keys) => format!("{keys} keys"),
            Budget::Bytes(bytes) => format!("{bytes} bytes"),
        };
        if !unusual.over_limit.is_empty() && limit.is_some_and(|limit| limit.beyond == Beyond::Fail) {
            let views = self.store.spec().windows.iter().map(|window| window.view.as_str());
            let view = views.collect::<Vec<_>>().join(", ");
            return Err(Error::StateLimit { view, most });
        }
        let refused = unusual.over_limit.drain(..).map(|row| Unusable {
            row: row as usize,
            fault: Fault::KeyLimit,
            reason: format!("its pane holds {most} already, as many as it may"),
        });
        remarks.unusable.extend(refused);
        Ok(())
    }

    fn keep(&mut self, sealed: Sealed) {
        let rest = match self.sealed.last_mut() {
            Some(last) => last.join(sealed),
            None => Some(sealed),
        };
        self.sealed.extend(rest);
    }
}

/// Start of the first pane after the one that holds this time.
fn next_pane(time_ms: i64, width_ms: i64) -> i64 {
    floor(time_ms, width_ms) + width_ms
}

/// The event times in milliseconds, rounded down, whatever their unit.
fn event_times_ms(batch: &RecordBatch, column: usize) -> Result<Int64Array, Error> {
    let shape = |found: String| Error::Shape {
        what: "event time",
        expected: "a timestamp".into(),
        found,
    };
    if column >= batch.num_columns() {
        return Err(shape(format!("{} columns", batch.num_columns())));
    }
    let column = batch.column(column);
    let DataType::Timestamp(unit, _) = column.data_type() else {
        return Err(shape(column.data_type().to_string()));
    };
    let raw = cast(column, &DataType::Int64)?;
    let raw = raw.as_primitive::<Int64Type>();
    Ok(match unit {
        TimeUnit::Second => raw.unary(|time| time.saturating_mul(1_000)),
        TimeUnit::Millisecond => raw.clone(),
        TimeUnit::Microsecond => raw.unary(|time| time.div_euclid(1_000)),
        TimeUnit::Nanosecond => raw.unary(|time| time.div_euclid(1_000_000)),
    })
}
