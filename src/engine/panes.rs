//! The panes of one pane set on one source partition.
//!
//! Owns open panes: partial aggregates per key over `width_ms` of event time. Promises that what a pane holds depends on
//! the rows and their order only, not on batches, and that publishing is deterministic: rows by (pane, key), each key on the
//! partition its canonical bytes hash to. Judges lateness per pane, since every window edge is a multiple of the width.
//! Knows nothing of watermarks' making, offsets' commits or topics. Rows that cannot be folded are named to the caller,
//! with the reason; an error is a plan that does not fit its rows.

mod budget;
mod keys;
mod record;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, mem, ops::Range, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt32Array},
    buffer::BooleanBuffer,
    compute::{cast, concat_batches, filter_record_batch, take},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use datafusion::physical_expr::PhysicalExpr;

use crate::{
    accumulate::{Accumulator, accumulator},
    error::Error,
    spec::{PaneSetSpec, WindowSpec},
};
use budget::Room;
use keys::{ABSENT, Keys};
pub use keys::{encode_key, partition_of, plain};
pub use record::{read_panes, write_panes};

/// Seals between two looks for keys that are no longer used.
const SEALS_PER_SWEEP: u32 = 16;
/// Fewer keys than this are never swept.
const KEYS_SWEPT_MIN: usize = 4_096;
/// Panes kept for reuse with their memory.
const SPARE_MAX: usize = 4;

/// Where no view but only a silence detector looks at the panes, rows so far behind the watermark tell nothing any more.
const SIGHTING_LATENESS_MS: i64 = 600_000;

/// Which rows of the prepared batch to fold, and where they stand.
#[derive(Clone, Debug)]
pub struct Span<'a> {
    /// Rows of the source batch.
    pub rows: Range<usize>,
    /// The partition's watermark before these rows, floored to the width; `None` before the first row.
    pub floor_ms: Option<i64>,
    /// The first pane that the set takes; `None`: any.
    pub first_pane_ms: Option<i64>,
    /// Source offset of each row of the batch.
    pub offsets: &'a [i64],
    /// For each row of the batch, the watermark before its record; `i64::MIN` where there was none.
    pub record_watermarks: &'a [i64],
}

/// Rows that did not go the normal way.
#[derive(Debug, Default)]
pub struct Unusual {
    /// (row of the batch, index of the window spec): no window of that view over the row is open. Another view may have taken it.
    pub late: Vec<(u32, u32)>,
    /// Rows refused because their pane holds as many keys as it may.
    pub over_limit: Vec<u32>,
}

/// Published panes, until the commit that carries them.
#[derive(Debug)]
pub struct Sealed {
    /// The floored watermark at which these rows were judged; `i64::MIN` where there was none.
    pub floor_ms: i64,
    /// Whether some rows belong to panes that were sealed before.
    pub has_deltas: bool,
    rows: Vec<RecordBatch>,
    /// Per batch and row, murmur2 of the key.
    hashes: Vec<Vec<u32>>,
}

impl Sealed {
    /// Adds panes sealed later. Their own floor is not needed: every window over a pane that was open is open for the earlier
    /// floor too. Deltas need theirs, so they refuse and are handed back.
    pub fn join(&mut self, later: Self) -> Option<Self> {
        if self.floor_ms != later.floor_ms && (self.has_deltas || later.has_deltas) {
            return Some(later);
        }
        self.has_deltas |= later.has_deltas;
        self.rows.extend(later.rows);
        self.hashes.extend(later.hashes);
        None
    }

    /// The rows of one target partition out of `partitions`.
    pub fn rows_for(&self, partition: i32, partitions: i32) -> Result<Option<RecordBatch>, Error> {
        let mut parts = Vec::new();
        for (rows, hashes) in self.rows.iter().zip(&self.hashes) {
            let here = |hash: &u32| keys::partition_of_hash(*hash, partitions) == partition;
            let mask = BooleanBuffer::collect_bool(hashes.len(), |row| here(&hashes[row]));
            match mask.count_set_bits() {
                0 => {}
                all if all == hashes.len() => parts.push(rows.clone()),
                _ => parts.push(filter_record_batch(rows, &BooleanArray::new(mask, None))?),
            }
        }
        let Some(first) = parts.first() else { return Ok(None) };
        Ok(Some(concat_batches(&first.schema(), &parts)?))
    }

    /// Bytes held, roughly.
    pub fn size(&self) -> usize {
        self.rows.iter().map(RecordBatch::get_array_memory_size).sum()
    }
}

/// Open panes and the keys in them.
pub struct PaneStore {
    spec: PaneSetSpec,
    schema: SchemaRef,
    room: Room,
    keys: Keys,
    /// Per key, the seal at which it was last published.
    last_sealed: Vec<u32>,
    seals: u32,
    /// Keys left by the last sweep.
    keys_swept: usize,
    open: BTreeMap<i64, Pane>,
    spare: Vec<Pane>,
    prepared: Prepared,
    touched: Vec<Touched>,
}

/// One batch with everything evaluated that its rows need.
#[derive(Default)]
struct Prepared {
    /// Rows of the source batch that pass the filter, ascending.
    rows: Vec<u32>,
    times_ms: Vec<i64>,
    ids: Vec<u32>,
    /// Per aggregate.
    args: Vec<Vec<ArrayRef>>,
    filters: Vec<Option<BooleanArray>>,
}

struct Pane {
    /// Offset of the first row, and the watermark before its record: where a replay has to start.
    first_offset: i64,
    first_watermark_ms: i64,
    /// Key id → group.
    groups: Vec<u32>,
    /// Group → key id.
    keys: Vec<u32>,
    /// What its keys count for.
    bytes: u64,
    accumulators: Vec<Box<dyn Accumulator>>,
    /// The rows being folded: indices into the prepared batch, and their groups.
    rows: Vec<u32>,
    row_groups: Vec<u32>,
}

/// A pane that the span being folded has met, and what becomes of its rows.
struct Touched {
    start_ms: i64,
    pane: Option<Pane>,
    late: Vec<u32>,
}

impl PaneStore {
    /// `spec.windows` must hold the windows of every view served, of all pipelines that share the set. `keys_max` is how many keys a
    /// pane may hold where the set does not say it.
    pub fn new(spec: PaneSetSpec, keys_max: usize) -> Result<Self, Error> {
        Ok(Self {
            schema: pane_schema(&spec)?,
            keys: Keys::new(spec.key_fields.iter().map(|field| field.data_type())),
            room: Room::new(&spec, keys_max)?,
            spec,
            last_sealed: Vec::new(),
            seals: 0,
            keys_swept: 0,
            open: BTreeMap::new(),
            spare: Vec::new(),
            prepared: Prepared::default(),
            touched: Vec::new(),
        })
    }

    pub fn spec(&self) -> &PaneSetSpec {
        &self.spec
    }

    /// Evaluates filter, keys and arguments over a batch, once. Rows where `usable` is false are left out. Rows over which an
    /// expression fails are left out too, and named with the reason.
    pub fn prepare(
        &mut self,
        batch: &RecordBatch,
        times_ms: &[i64],
        usable: &BooleanBuffer,
    ) -> Result<Vec<(u32, String)>, Error> {
        self.sweep()?;
        match self.evaluate(batch, times_ms, usable) {
            Ok(()) => Ok(Vec::new()),
            Err(Error::Expression(_) | Error::Arrow(_)) => self.prepare_by_row(batch, times_ms, usable),
            Err(error) => Err(error),
        }
    }

    /// One row at a time, to find those at fault; whether a row fails does not depend on its neighbours.
    fn prepare_by_row(
        &mut self,
        batch: &RecordBatch,
        times_ms: &[i64],
        usable: &BooleanBuffer,
    ) -> Result<Vec<(u32, String)>, Error> {
        let mut failures = Vec::new();
        let mut good = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            let one = BooleanBuffer::new_set(1);
            let result = match usable.value(row) {
                true => self.evaluate(&batch.slice(row, 1), &times_ms[row..=row], &one),
                false => Ok(()),
            };
            match result {
                Ok(()) => good.push(usable.value(row)),
                Err(error @ (Error::Expression(_) | Error::Arrow(_))) => {
                    good.push(false);
                    failures.push((row as u32, reason(&error)));
                }
                Err(error) => return Err(error),
            }
        }
        self.evaluate(batch, times_ms, &BooleanBuffer::from(good))?;
        Ok(failures)
    }

    fn evaluate(&mut self, batch: &RecordBatch, times_ms: &[i64], usable: &BooleanBuffer) -> Result<(), Error> {
        let Self { spec, prepared, .. } = self;
        prepared.clear();
        let all = usable.count_set_bits() == batch.num_rows();
        let usable_rows = match all {
            true => None,
            false => Some(filter_record_batch(batch, &BooleanArray::new(usable.clone(), None))?),
        };
        let selected = usable_rows.as_ref().unwrap_or(batch);
        let passing = match &spec.filter {
            None => None,
            Some(filter) => Some(boolean(filter, selected)?),
        };
        let rows = (0..batch.num_rows() as u32).filter(|row| all || usable.value(*row as usize));
        let filtered = match &passing {
            Some(passing) if passing.true_count() < selected.num_rows() => {
                let keep =
                    |(index, row): (usize, u32)| (passing.is_valid(index) && passing.value(index)).then_some(row);
                prepared.rows.extend(rows.enumerate().filter_map(keep));
                Some(filter_record_batch(selected, passing)?)
            }
            _ => {
                prepared.rows.extend(rows);
                None
            }
        };
        let selected = filtered.as_ref().unwrap_or(selected);
        prepared
            .times_ms
            .extend(prepared.rows.iter().map(|row| times_ms[*row as usize]));
        for aggregate in &spec.aggregates {
            prepared.args.push(arrays(&aggregate.args, selected)?);
            let filter = aggregate.filter.as_ref().map(|filter| boolean(filter, selected));
            prepared.filters.push(filter.transpose()?);
        }
        let keys = arrays(&spec.keys, selected)?;
        self.keys.intern(&keys, selected.num_rows(), &mut prepared.ids)
    }

    /// Folds rows of the prepared batch, in order.
    pub fn fold(&mut self, span: &Span<'_>, unusual: &mut Unusual) -> Result<(), Error> {
        let at = |row: usize| self.prepared.rows.partition_point(|other| (*other as usize) < row);
        let range = at(span.rows.start)..at(span.rows.end);
        let mut current = usize::MAX;
        let evicts = self.evicts();
        let (mut start_ms, mut end_ms) = (0, 0);
        for index in range {
            let time_ms = self.prepared.times_ms[index];
            let row = self.prepared.rows[index];
            if time_ms < start_ms || time_ms >= end_ms {
                current = self.touch(time_ms, row, span)?;
                start_ms = self.touched[current].start_ms;
                end_ms = start_ms + self.spec.width_ms;
            }
            let touched = &mut self.touched[current];
            unusual.late.extend(touched.late.iter().map(|window| (row, *window)));
            let Some(pane) = &mut touched.pane else { continue };
            let id = self.prepared.ids[index];
            let mut group = pane.groups[id as usize];
            if group == ABSENT {
                let bytes = self.room.bytes(self.keys.encoded(id));
                if !evicts && !self.room.takes(pane.keys.len(), pane.bytes, bytes) {
                    unusual.over_limit.push(row);
                    continue;
                }
                pane.bytes += bytes;
                group = pane.keys.len() as u32;
                pane.groups[id as usize] = group;
                pane.keys.push(id);
            }
            pane.rows.push(index as u32);
            pane.row_groups.push(group);
        }
        self.put_back()
    }

    /// Finds or opens the pane of a row, once per span.
    fn touch(&mut self, time_ms: i64, row: u32, span: &Span<'_>) -> Result<usize, Error> {
        let width_ms = self.spec.width_ms;
        let holds = |touched: &Touched| touched.start_ms <= time_ms && time_ms < touched.start_ms + width_ms;
        // Rows of a few panes alternate: a look at each is cheaper than a division.
        if let Some(known) = self.touched.iter().position(holds) {
            return Ok(known);
        }
        let start_ms = time_ms - time_ms.rem_euclid(width_ms);
        let mut touched = Touched {
            start_ms,
            pane: None,
            late: Vec::new(),
        };
        if self.takes_pane(start_ms, span, &mut touched.late) {
            let mut pane = match self.open.remove(&start_ms) {
                Some(pane) => pane,
                None => self.open_pane(row as usize, span)?,
            };
            pane.groups.resize(self.keys.len(), ABSENT);
            touched.pane = Some(pane);
        }
        self.touched.push(touched);
        Ok(self.touched.len() - 1)
    }

    fn takes_pane(&self, start_ms: i64, span: &Span<'_>, late: &mut Vec<u32>) -> bool {
        span.first_pane_ms.is_none_or(|first| first <= start_ms) && self.judge(start_ms, span, late)
    }

    /// Whether any view takes rows of this pane; and the views for which they are late.
    fn judge(&self, start_ms: i64, span: &Span<'_>, late: &mut Vec<u32>) -> bool {
        let Some(floor_ms) = span.floor_ms else { return true };
        if self.spec.windows.is_empty() {
            return start_ms + self.spec.width_ms > floor_ms - SIGHTING_LATENESS_MS;
        }
        let mut taken = false;
        for (index, window) in self.spec.windows.iter().enumerate() {
            match window.last_close_ms(start_ms) {
                Some(close_ms) if close_ms <= floor_ms => late.push(index as u32),
                Some(_) => taken = true,
                // Between the windows of a view that leaves gaps.
                None => {}
            }
        }
        taken
    }

    fn open_pane(&mut self, row: usize, span: &Span<'_>) -> Result<Pane, Error> {
        let mut pane = match self.spare.pop() {
            Some(pane) => pane,
            None => Pane {
                first_offset: 0,
                first_watermark_ms: 0,
                groups: Vec::new(),
                keys: Vec::new(),
                bytes: 0,
                accumulators: self.spec.aggregates.iter().map(accumulator).collect::<Result<_, _>>()?,
                rows: Vec::new(),
                row_groups: Vec::new(),
            },
        };
        pane.bytes = 0;
        pane.first_offset = span.offsets[row];
        pane.first_watermark_ms = span.record_watermarks[row];
        Ok(pane)
    }

    /// Hands the touched panes their rows and puts them back.
    fn put_back(&mut self) -> Result<(), Error> {
        let mut touched = mem::take(&mut self.touched);
        for Touched { start_ms, pane, .. } in touched.drain(..) {
            let Some(mut pane) = pane else { continue };
            pane.fold(&self.prepared)?;
            if pane.keys.is_empty() {
                self.spare(pane);
            } else {
                self.open.insert(start_ms, pane);
            }
        }
        self.touched = touched;
        Ok(())
    }

    /// Takes out the panes that end at or before `floor_ms`: those the watermark has passed, and deltas of earlier ones.
    /// `before_ms` is the floored watermark under which their rows were judged.
    pub fn seal(&mut self, before_ms: Option<i64>, floor_ms: i64) -> Result<Option<Sealed>, Error> {
        let open = match floor_ms.checked_sub(self.spec.width_ms - 1) {
            Some(first_open_ms) => self.open.split_off(&first_open_ms),
            None => return Ok(None),
        };
        let closed = mem::replace(&mut self.open, open);
        self.publish(closed, before_ms)
    }

    /// Takes out every pane, as partials that later ones add to.
    pub fn flush(&mut self, floor_ms: Option<i64>) -> Result<Option<Sealed>, Error> {
        let all = mem::take(&mut self.open);
        self.publish(all, floor_ms)
    }

    fn publish(&mut self, panes: BTreeMap<i64, Pane>, before_ms: Option<i64>) -> Result<Option<Sealed>, Error> {
        if panes.is_empty() {
            return Ok(None);
        }
        self.seals = self.seals.wrapping_add(1);
        self.last_sealed.resize(self.keys.len(), self.seals);
        let mut sealed = Sealed {
            floor_ms: before_ms.unwrap_or(i64::MIN),
            has_deltas: false,
            rows: Vec::with_capacity(panes.len()),
            hashes: Vec::with_capacity(panes.len()),
        };
        for (start_ms, mut pane) in panes {
            sealed.has_deltas |= before_ms.is_some_and(|before_ms| start_ms + self.spec.width_ms <= before_ms);
            sealed.rows.push(self.pane_rows(start_ms, &mut pane)?);
            pane.keys
                .iter()
                .for_each(|key| self.last_sealed[*key as usize] = self.seals);
            sealed
                .hashes
                .push(pane.keys.iter().map(|key| self.keys.hash(*key)).collect());
            self.spare(pane);
        }
        Ok(Some(sealed))
    }

    /// A pane's rows in key order; leaves `pane.keys` in that order.
    fn pane_rows(&mut self, start_ms: i64, pane: &mut Pane) -> Result<RecordBatch, Error> {
        let ranks = self.keys.ranks();
        let mut order: Vec<u32> = (0..pane.keys.len() as u32).collect();
        order.sort_unstable_by_key(|group| ranks[pane.keys[*group as usize] as usize]);
        let ordered: Vec<u32> = order.iter().map(|group| pane.keys[*group as usize]).collect();
        for key in &pane.keys {
            pane.groups[*key as usize] = ABSENT;
        }
        pane.keys = ordered;
        let order = UInt32Array::from(order);
        let count = pane.keys.len();
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_value(start_ms, count)),
            Arc::new(Int64Array::from_value(pane.first_offset, count)),
        ];
        columns.extend(self.keys.arrays(&pane.keys)?);
        for accumulator in &mut pane.accumulators {
            for state in accumulator.state()? {
                // Some functions differ from the fields they declare in the nullability of nested ones.
                let state = cast(&state, self.schema.field(columns.len()).data_type())?;
                columns.push(take(&state, &order, None)?);
            }
        }
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }

    fn spare(&mut self, mut pane: Pane) {
        if self.spare.len() >= SPARE_MAX {
            return;
        }
        pane.keys.clear();
        self.spare.push(pane);
    }

    /// The least source offset of a row that is not yet published, and the watermark before its record.
    pub fn low_water(&self) -> Option<(i64, i64)> {
        let first = self.open.values().min_by_key(|pane| pane.first_offset)?;
        Some((first.first_offset, first.first_watermark_ms))
    }

    /// Forgets keys that no open pane holds and that were not published for a while, so that names that come and go do not
    /// add up. Ids change, so this happens between batches only; no result depends on it.
    fn sweep(&mut self) -> Result<(), Error> {
        let crowded = self.keys.len() > 2 * self.room.keys().max(self.keys_swept).max(KEYS_SWEPT_MIN);
        if !crowded && (self.keys.len() < KEYS_SWEPT_MIN || self.seals < SEALS_PER_SWEEP) {
            return Ok(());
        }
        let seals = mem::take(&mut self.seals);
        let oldest = if crowded { seals.max(1) } else { 1 };
        let mut used: Vec<bool> = self.last_sealed.iter().map(|sealed| *sealed >= oldest).collect();
        used.resize(self.keys.len(), false);
        let open = self.open.values().flat_map(|pane| &pane.keys);
        open.for_each(|key| used[*key as usize] = true);
        // What counts from here on is whether a key is published before the next sweep.
        self.last_sealed.iter_mut().for_each(|sealed| *sealed = 0);
        if !crowded && 2 * used.iter().filter(|used| **used).count() > used.len() {
            return Ok(());
        }
        let (keys, moved) = self.keys.retain(|id| used[id as usize])?;
        for pane in self.open.values_mut() {
            pane.keys.iter_mut().for_each(|key| *key = moved[*key as usize]);
            pane.groups = vec![ABSENT; keys.len()];
            for (group, key) in pane.keys.iter().enumerate() {
                pane.groups[*key as usize] = group as u32;
            }
        }
        self.spare.clear();
        self.last_sealed = vec![0; keys.len()];
        self.keys_swept = keys.len();
        self.keys = keys;
        Ok(())
    }

    pub fn open_panes(&self) -> usize {
        self.open.len()
    }

    /// Partials of open panes.
    pub fn open_groups(&self) -> usize {
        self.open.values().map(|pane| pane.keys.len()).sum()
    }

    /// Keys known, in open panes or lately.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Bytes held, roughly.
    pub fn size(&self) -> usize {
        let pane = |pane: &Pane| {
            let states: usize = pane.accumulators.iter().map(|accumulator| accumulator.size()).sum();
            states + 4 * (pane.groups.capacity() + pane.keys.capacity())
        };
        self.keys.size() + self.open.values().chain(&self.spare).map(pane).sum::<usize>()
    }
}

impl Prepared {
    fn clear(&mut self) {
        self.rows.clear();
        self.times_ms.clear();
        self.ids.clear();
        self.args.clear();
        self.filters.clear();
    }
}

impl Pane {
    fn fold<'p>(&mut self, prepared: &'p Prepared) -> Result<(), Error> {
        let (Some(first), Some(last)) = (self.rows.first(), self.rows.last()) else {
            return Ok(());
        };
        let (from, length) = (*first as usize, self.rows.len());
        let contiguous = (*last - *first) as usize + 1 == length;
        let indices = (!contiguous).then(|| UInt32Array::from(mem::take(&mut self.rows)));
        // Aggregates of one column share what is taken of it.
        let mut taken: Vec<(&ArrayRef, ArrayRef)> = Vec::new();
        let mut rows_of = |array: &'p ArrayRef, indices: &UInt32Array| -> Result<ArrayRef, Error> {
            if let Some((_, rows)) = taken.iter().find(|(known, _)| Arc::ptr_eq(known, array)) {
                return Ok(Arc::clone(rows));
            }
            let rows = take(array, indices, None)?;
            taken.push((array, Arc::clone(&rows)));
            Ok(rows)
        };
        for ((accumulator, args), filter) in self.accumulators.iter_mut().zip(&prepared.args).zip(&prepared.filters) {
            let (args, filter): (Vec<ArrayRef>, _) = match &indices {
                None => {
                    let args = args.iter().map(|array| array.slice(from, length)).collect();
                    (args, filter.as_ref().map(|filter| filter.slice(from, length)))
                }
                Some(indices) => {
                    let filter = filter.as_ref().map(|filter| take(filter, indices, None)).transpose()?;
                    let filter = filter.map(|filter| filter.as_boolean().clone());
                    let args = args.iter().map(|array| rows_of(array, indices));
                    (args.collect::<Result<_, _>>()?, filter)
                }
            };
            accumulator.update(&self.row_groups, &args, filter.as_ref(), self.keys.len())?;
        }
        self.rows.clear();
        self.row_groups.clear();
        Ok(())
    }
}

impl WindowSpec {
    /// When the last window over a pane closes; `None` when no window covers it.
    pub fn last_close_ms(&self, pane_start_ms: i64) -> Option<i64> {
        let into = (pane_start_ms - self.offset_ms).rem_euclid(self.slide_ms);
        let end_ms = pane_start_ms - into + self.size_ms;
        (pane_start_ms < end_ms).then_some(end_ms + self.lateness_ms)
    }
}

/// Columns of a pane record.
pub fn pane_schema(spec: &PaneSetSpec) -> Result<SchemaRef, Error> {
    let mut fields = vec![
        Field::new("pane_start", DataType::Int64, false),
        Field::new("first_offset", DataType::Int64, false),
    ];
    for field in &spec.key_fields {
        fields.push(Field::new(field.name(), plain(field.data_type()).clone(), true));
    }
    for (index, aggregate) in spec.aggregates.iter().enumerate() {
        for field in accumulator(aggregate)?.state_fields() {
            let name = format!("{index}.{}", field.name());
            fields.push(Field::new(name, field.data_type().clone(), true));
        }
    }
    Ok(Arc::new(Schema::new(fields)))
}

fn arrays(expressions: &[Arc<dyn PhysicalExpr>], batch: &RecordBatch) -> Result<Vec<ArrayRef>, Error> {
    let array = |expression: &Arc<dyn PhysicalExpr>| Ok(expression.evaluate(batch)?.into_array(batch.num_rows())?);
    expressions.iter().map(array).collect()
}

fn boolean(expression: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<BooleanArray, Error> {
    let array = expression.evaluate(batch)?.into_array(batch.num_rows())?;
    array.as_boolean_opt().cloned().ok_or_else(|| Error::Shape {
        what: "filter",
        expected: "boolean".into(),
        found: array.data_type().to_string(),
    })
}

/// The innermost cause, which names the value at fault.
fn reason(error: &Error) -> String {
    match error {
        Error::Expression(error) => error.strip_backtrace(),
        other => other.to_string(),
    }
}
