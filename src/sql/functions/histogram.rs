//! `histogram_quantile(q)`: a quantile of what OTLP histograms, explicit and exponential, have counted in a window.
//!
//! Points of delta temporality add up. Of a cumulative series, which its metric, service, instance and attributes name, it is the
//! increase from its first point to its last that counts; a later start of the series is a restart, and counts whole. Within a
//! bucket values are taken to be spread evenly; what is beyond the last bound is taken to be at it, as in Prometheus.
//! Partials are sums and ends, so they may be merged in any order.

use std::{cmp::Ordering, collections::BTreeMap, mem::size_of_val};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, MapArray},
    compute::cast,
    datatypes::{DataType, Field, FieldRef, Float64Type, Int32Type, Int64Type, UInt64Type},
};
use datafusion::{
    common::{DataFusionError, Result, ScalarValue, exec_datafusion_err, plan_err},
    logical_expr::{
        Accumulator, AggregateUDFImpl, Signature, Volatility,
        function::{AccumulatorArgs, StateFieldsArgs},
    },
};

use crate::fingerprint::Fingerprint;

pub(crate) const NAME: &str = "histogram_quantile";

/// Columns of OTLP metrics that it reads, after the share and the event time.
pub(crate) const COLUMNS: [&str; 14] = [
    "start_time",
    "temporality",
    "bucket_counts",
    "explicit_bounds",
    "scale",
    "zero_count",
    "positive_offset",
    "positive_counts",
    "negative_offset",
    "negative_counts",
    "metric_name",
    "service_name",
    "service_instance_id",
    "attributes",
];

#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct HistogramQuantile {
    signature: Signature,
}

impl HistogramQuantile {
    pub(crate) fn new() -> Self {
        Self {
            signature: Signature::user_defined(Volatility::Immutable),
        }
    }
}

impl AggregateUDFImpl for HistogramQuantile {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match arg_types {
            [q, DataType::Timestamp(..), columns @ ..] if q.is_numeric() && columns.len() == COLUMNS.len() => {
                let mut types = arg_types.to_vec();
                types[0] = DataType::Float64;
                Ok(types)
            }
            _ => plan_err!("{NAME} takes a share and the histograms of an otlp_metrics source: {NAME}(0.99)"),
        }
    }

    fn accumulator(&self, _args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Histograms::default()))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let name = format!("{}[histograms]", args.name);
        Ok(vec![Field::new(name, DataType::Binary, true).into()])
    }
}

/// A bound, in the order of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bound(f64);

impl Eq for Bound {}

impl PartialOrd for Bound {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Bound {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// What is in the buckets of one histogram, or of many.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Counts {
    /// By lower and upper bound.
    explicit: BTreeMap<(Bound, Bound), u64>,
    /// By scale, whether it is of negative values, and index.
    exponential: BTreeMap<(i32, bool, i32), u64>,
    zero: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        for (bucket, count) in &other.explicit {
            *self.explicit.entry(*bucket).or_default() += count;
        }
        for (bucket, count) in &other.exponential {
            *self.exponential.entry(*bucket).or_default() += count;
        }
        self.zero += other.zero;
    }

    fn scale(&self) -> Option<i32> {
        self.exponential.keys().map(|(scale, ..)| *scale).min()
    }

    /// At a scale that is no finer: two buckets become one with each step.
    fn at_scale(&self, scale: i32) -> Self {
        let mut coarse = Self {
            exponential: BTreeMap::new(),
            ..self.clone()
        };
        for ((own, negative, index), count) in &self.exponential {
            let steps = (own - scale).clamp(0, 31);
            *coarse
                .exponential
                .entry((own - steps, *negative, index >> steps))
                .or_default() += count;
        }
        coarse
    }

    /// What came since `first`; `None` where a bucket holds less than it did.
    fn since(&self, first: &Self) -> Option<Self> {
        let scale = self.scale().into_iter().chain(first.scale()).min().unwrap_or(0);
        let (last, first) = (self.at_scale(scale), first.at_scale(scale));
        fn less<K: Ord + Copy>(last: &BTreeMap<K, u64>, first: &BTreeMap<K, u64>) -> Option<BTreeMap<K, u64>> {
            let mut less = last.clone();
            for (bucket, count) in first.iter().filter(|(_, count)| **count > 0) {
                let held = less.get_mut(bucket)?;
                *held = held.checked_sub(*count)?;
            }
            Some(less)
        }
        Some(Self {
            explicit: less(&last.explicit, &first.explicit)?,
            exponential: less(&last.exponential, &first.exponential)?,
            zero: last.zero.checked_sub(first.zero)?,
        })
    }

    /// Spans of values and how many are in each; a point is a span without length.
    fn spans(&self) -> Vec<(f64, f64, f64)> {
        let mut spans = Vec::new();
        for ((Bound(low), Bound(high)), count) in &self.explicit {
            spans.push(match (low.is_finite(), high.is_finite()) {
                (true, true) => (*low, *high, *count as f64),
                (false, true) if *high > 0.0 => (0.0, *high, *count as f64),
                (false, true) => (*high, *high, *count as f64),
                (true, false) => (*low, *low, *count as f64),
                // One bucket of everything says nothing of where.
                (false, false) => continue,
            });
        }
        for ((scale, negative, index), count) in &self.exponential {
            let bound = |index: f64| (index * (-f64::from(*scale)).exp2()).exp2().min(f64::MAX);
            let (low, high) = (bound(f64::from(*index)), bound(f64::from(*index) + 1.0));
            spans.push(match negative {
                false => (low, high, *count as f64),
                true => (-high, -low, *count as f64),
            });
        }
        spans.push((0.0, 0.0, self.zero as f64));
        spans.retain(|(.., count)| *count > 0.0);
        spans
    }

    fn quantile(&self, q: f64) -> Option<f64> {
        let spans = self.spans();
        let rank = q * spans.iter().map(|(.., count)| count).sum::<f64>();
        let mut edges: Vec<f64> = spans.iter().flat_map(|(low, high, _)| [*low, *high]).collect();
        edges.sort_by(f64::total_cmp);
        edges.dedup();
        let mut below = 0.0;
        for (at, edge) in edges.iter().enumerate() {
            let points = spans.iter().filter(|(low, high, _)| low == high && low == edge);
            below += points.map(|(.., count)| count).sum::<f64>();
            let Some(next) = edges.get(at + 1).filter(|_| below < rank) else {
                return Some(*edge);
            };
            let over = spans
                .iter()
                .filter(|(low, high, _)| low < high && low <= edge && next <= high);
            let within: f64 = over
                .map(|(low, high, count)| count * ((next - edge) / (high - low)))
                .sum();
            if below + within >= rank {
                return Some(edge + (next - edge) * ((rank - below) / within));
            }
            below += within;
        }
        edges.last().copied()
    }
}

/// A point of a cumulative series. Of equal times the greater one is later.
type Point = (i64, Counts);

#[derive(Debug, Default)]
struct Histograms {
    q: Option<f64>,
    /// Points of delta temporality.
    changes: Counts,
    /// By series and start, the first and the last point.
    totals: BTreeMap<(u64, i64), (Point, Point)>,
}

impl Histograms {
    fn point(&mut self, series: (u64, i64), point: Point) {
        match self.totals.get_mut(&series) {
            None => {
                self.totals.insert(series, (point.clone(), point));
            }
            Some((first, last)) => {
                if point < *first {
                    *first = point.clone();
                }
                if point > *last {
                    *last = point;
                }
            }
        }
    }

    fn all(&self) -> Counts {
        let mut all = self.changes.clone();
        let mut before = None;
        for ((series, _), ((_, first), (_, last))) in &self.totals {
            let restarted = before.replace(*series) == Some(*series);
            match last.since(first).filter(|_| !restarted) {
                Some(increase) => all.add(&increase),
                None => all.add(last),
            }
        }
        all
    }

    fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.q.unwrap_or(f64::NAN).to_le_bytes());
        write_counts(&self.changes, &mut out);
        write_number(self.totals.len() as u64, &mut out);
        for ((series, start), (first, last)) in &self.totals {
            write_number(*series, &mut out);
            write_number(*start as u64, &mut out);
            for (time, counts) in [first, last] {
                write_number(*time as u64, &mut out);
                write_counts(counts, &mut out);
            }
        }
        out
    }

    fn read(&mut self, mut bytes: &[u8]) -> Result<()> {
        let bytes = &mut bytes;
        let q = f64::from_bits(number(bytes)?);
        self.q = self.q.or(Some(q).filter(|q| !q.is_nan()));
        self.changes.add(&counts(bytes)?);
        for _ in 0..number(bytes)? {
            let series = (number(bytes)?, number(bytes)? as i64);
            for _ in 0..2 {
                let point = (number(bytes)? as i64, counts(bytes)?);
                self.point(series, point);
            }
        }
        Ok(())
    }
}

fn write_number(number: u64, out: &mut Vec<u8>) {
    out.extend(number.to_le_bytes());
}

fn write_counts(counts: &Counts, out: &mut Vec<u8>) {
    write_number(counts.explicit.len() as u64, out);
    for ((low, high), count) in &counts.explicit {
        for number in [low.0.to_bits(), high.0.to_bits(), *count] {
            write_number(number, out);
        }
    }
    write_number(counts.exponential.len() as u64, out);
    for ((scale, negative, index), count) in &counts.exponential {
        let numbers = [*scale as u32 as u64, u64::from(*negative), *index as u32 as u64, *count];
        for number in numbers {
            write_number(number, out);
        }
    }
    write_number(counts.zero, out);
}

fn number(bytes: &mut &[u8]) -> Result<u64> {
    let (number, rest) = bytes.split_first_chunk().ok_or_else(broken)?;
    *bytes = rest;
    Ok(u64::from_le_bytes(*number))
}

fn broken() -> DataFusionError {
    exec_datafusion_err!("the state of {NAME} is cut off")
}

fn counts(bytes: &mut &[u8]) -> Result<Counts> {
    let mut counts = Counts::default();
    for _ in 0..number(bytes)? {
        let bounds = (
            Bound(f64::from_bits(number(bytes)?)),
            Bound(f64::from_bits(number(bytes)?)),
        );
        *counts.explicit.entry(bounds).or_default() += number(bytes)?;
    }
    for _ in 0..number(bytes)? {
        let bucket = (
            number(bytes)? as u32 as i32,
            number(bytes)? > 0,
            number(bytes)? as u32 as i32,
        );
        *counts.exponential.entry(bucket).or_default() += number(bytes)?;
    }
    counts.zero = number(bytes)?;
    Ok(counts)
}

/// The arguments, as columns.
struct Columns<'a> {
    all: &'a [ArrayRef],
    times: Int64Array,
    starts: Int64Array,
}

impl<'a> Columns<'a> {
    fn new(all: &'a [ArrayRef]) -> Result<Self> {
        if all.len() != COLUMNS.len() + 2 {
            return Err(exec_datafusion_err!("{} arguments are planned", COLUMNS.len() + 2));
        }
        let integers = |column: &ArrayRef| -> Result<Int64Array> {
            Ok(cast(column, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
        };
        Ok(Self {
            times: integers(&all[1])?,
            starts: integers(&all[2])?,
            all,
        })
    }

    fn column(&self, name: &str) -> &'a ArrayRef {
        let at = COLUMNS.iter().position(|column| *column == name);
        &self.all[at.expect("it is one of the columns") + 2]
    }

    fn list(&self, name: &str, row: usize) -> Option<ArrayRef> {
        let lists = self.column(name).as_list::<i32>();
        lists.is_valid(row).then(|| lists.value(row))
    }

    fn integer(&self, name: &str, row: usize) -> i32 {
        let integers = self.column(name).as_primitive::<Int32Type>();
        if integers.is_valid(row) { integers.value(row) } else { 0 }
    }

    /// What a row has counted; `None` where it is no histogram.
    fn counts(&self, row: usize) -> Option<Counts> {
        let mut counts = Counts::default();
        if let Some(buckets) = self.list("bucket_counts", row) {
            let buckets = buckets.as_primitive::<UInt64Type>();
            let bounds = self.list("explicit_bounds", row);
            let bounds = bounds
                .as_ref()
                .map_or(&[][..], |bounds| bounds.as_primitive::<Float64Type>().values());
            let bound = |at: Option<usize>, beyond: f64| at.and_then(|at| bounds.get(at)).copied().unwrap_or(beyond);
            for (at, count) in buckets.values().iter().enumerate().filter(|(_, count)| **count > 0) {
                let low = bound(at.checked_sub(1), f64::NEG_INFINITY);
                let high = bound(Some(at), f64::INFINITY);
                *counts.explicit.entry((Bound(low), Bound(high))).or_default() += count;
            }
            return Some(counts);
        }
        let scales = self.column("scale");
        if scales.is_null(row) {
            return None;
        }
        let scale = self.integer("scale", row);
        for (negative, offset, buckets) in [
            (false, "positive_offset", "positive_counts"),
            (true, "negative_offset", "negative_counts"),
        ] {
            let Some(buckets) = self.list(buckets, row) else {
                continue;
            };
            let offset = self.integer(offset, row);
            let buckets = buckets.as_primitive::<UInt64Type>().values().iter().enumerate();
            for (at, count) in buckets.filter(|(_, count)| **count > 0) {
                let index = offset.saturating_add(at as i32);
                *counts.exponential.entry((scale, negative, index)).or_default() += count;
            }
        }
        let zero = self.column("zero_count").as_primitive::<Int64Type>();
        counts.zero = if zero.is_valid(row) { zero.value(row) as u64 } else { 0 };
        Some(counts)
    }

    fn text(&self, name: &str, row: usize) -> Result<ScalarValue> {
        let text = ScalarValue::try_from_array(self.column(name), row)?;
        Ok(match text {
            ScalarValue::Dictionary(_, text) => *text,
            text => text,
        })
    }

    fn is_change(&self, row: usize) -> Result<bool> {
        Ok(matches!(self.text("temporality", row)?, ScalarValue::Utf8(Some(text)) if text == "delta"))
    }

    /// What tells the series of a row from others.
    fn series(&self, row: usize) -> Result<u64> {
        let mut text = Fingerprint::new("series");
        for name in ["metric_name", "service_name", "service_instance_id"] {
            text.part(&self.text(name, row)?.to_string());
        }
        let attributes: &MapArray = self.column("attributes").as_map();
        if attributes.is_valid(row) {
            let entries = attributes.value(row);
            let names = entries.column(0).as_string::<i32>().iter();
            let mut entries: Vec<_> = names.zip(entries.column(1).as_string::<i32>().iter()).collect();
            entries.sort_unstable();
            for (name, value) in entries {
                text.part(name.unwrap_or_default()).part(value.unwrap_or_default());
            }
        }
        Ok(text.finish())
    }
}

impl Accumulator for Histograms {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let columns = Columns::new(values)?;
        let shares = values[0].as_primitive::<Float64Type>();
        self.q = self.q.or(shares.iter().flatten().next());
        for row in 0..columns.times.len() {
            let Some(counts) = columns.counts(row).filter(|_| columns.times.is_valid(row)) else {
                continue;
            };
            if columns.is_change(row)? {
                self.changes.add(&counts);
                continue;
            }
            let start = match columns.starts.is_valid(row) {
                true => columns.starts.value(row),
                false => i64::MIN,
            };
            self.point((columns.series(row)?, start), (columns.times.value(row), counts));
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let all = self.all();
        let found = self.q.filter(|_| !all.spans().is_empty());
        Ok(ScalarValue::Float64(found.and_then(|q| all.quantile(q))))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::Binary(Some(self.write()))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let states = states.first().ok_or_else(broken)?;
        states
            .as_binary::<i32>()
            .iter()
            .flatten()
            .try_for_each(|state| self.read(state))
    }

    fn size(&self) -> usize {
        let size = |counts: &Counts| 24 * (counts.explicit.len() + counts.exponential.len()) + size_of_val(counts);
        let totals = self.totals.values();
        let totals = totals.map(|((_, first), (_, last))| size(first) + size(last) + 48);
        size_of_val(self) + size(&self.changes) + totals.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explicit(bounds: &[f64], buckets: &[u64]) -> Counts {
        let bound = |at: usize| bounds.get(at).copied().unwrap_or(f64::INFINITY);
        let low = |at: usize| at.checked_sub(1).map_or(f64::NEG_INFINITY, bound);
        let buckets = buckets.iter().enumerate();
        Counts {
            explicit: buckets
                .map(|(at, count)| ((Bound(low(at)), Bound(bound(at))), *count))
                .collect(),
            ..Counts::default()
        }
    }

    #[test]
    fn a_quantile_lies_within_its_bucket_as_prometheus_has_it() {
        let counts = explicit(&[1.0, 2.0, 4.0], &[10, 20, 60, 10]);
        for (q, expected) in [
            (0.0, 0.0),
            (0.05, 0.5),
            (0.1, 1.0),
            (0.3, 2.0),
            (0.6, 3.0),
            (0.9, 4.0),
            (0.99, 4.0),
            (1.0, 4.0),
        ] {
            let found = counts.quantile(q).unwrap();
            assert!((found - expected).abs() < 1e-12, "{q}: {found} is not {expected}");
        }
        // Bounds below zero have no lower end to be spread over.
        assert_eq!(explicit(&[-2.0, 3.0], &[5, 5, 0]).quantile(0.25), Some(-2.0));
        assert_eq!(explicit(&[], &[7]).spans(), []);
    }

    #[test]
    fn histograms_of_other_bounds_share_their_values_out() {
        let mut counts = explicit(&[10.0], &[10, 0]);
        counts.add(&explicit(&[5.0, 15.0], &[0, 10, 0]));
        // Five are below 5, ten between 5 and 10, five above.
        for (q, expected) in [(0.25, 5.0), (0.5, 7.5), (0.75, 10.0), (1.0, 15.0)] {
            let found = counts.quantile(q).unwrap();
            assert!((found - expected).abs() < 1e-12, "{q}: {found} is not {expected}");
        }
    }

    fn exponential(scale: i32, negative: bool, buckets: &[(i32, u64)]) -> Counts {
        Counts {
            exponential: buckets
                .iter()
                .map(|(index, count)| ((scale, negative, *index), *count))
                .collect(),
            ..Counts::default()
        }
    }

    #[test]
    fn exponential_buckets_are_powers_of_their_base() {
        // Scale 0: (1, 2], (2, 4], (4, 8].
        let mut counts = exponential(0, false, &[(0, 4), (1, 4), (2, 8)]);
        counts.zero = 4;
        counts.add(&exponential(0, true, &[(1, 4)]));
        // Four in (-4, -2], four at zero, then the rest.
        for (q, expected) in [
            (2.0 / 24.0, -3.0),
            (6.0 / 24.0, 0.0),
            (10.0 / 24.0, 1.5),
            (20.0 / 24.0, 6.0),
        ] {
            let found = counts.quantile(q).unwrap();
            assert!((found - expected).abs() < 1e-9, "{q}: {found} is not {expected}");
        }
        let fine = exponential(1, false, &[(-3, 1), (0, 2), (1, 3), (2, 4)]);
        assert_eq!(fine.at_scale(0), exponential(0, false, &[(-2, 1), (0, 5), (1, 4)]));
    }

    #[test]
    fn a_series_counts_from_its_first_point_to_its_last_and_whole_after_a_restart() {
        let bounds = [1.0, 2.0];
        let points = [
            ((7, 100), (110, explicit(&bounds, &[100, 5, 0]))),
            ((7, 100), (120, explicit(&bounds, &[110, 15, 0]))),
            ((7, 100), (130, explicit(&bounds, &[120, 25, 1]))),
            ((7, 140), (150, explicit(&bounds, &[3, 0, 0]))),
            ((8, 100), (110, explicit(&bounds, &[1_000, 0, 0]))),
        ];
        let expected = explicit(&bounds, &[23, 20, 1]);
        for rotation in 0..points.len() {
            let mut order = points.clone();
            order.rotate_left(rotation);
            for cut in 0..=order.len() {
                let mut halves = [Histograms::default(), Histograms::default()];
                for (at, (series, point)) in order.clone().into_iter().enumerate() {
                    halves[usize::from(at >= cut)].point(series, point);
                }
                let mut merged = Histograms::default();
                for half in halves {
                    merged.read(&half.write()).unwrap();
                }
                let mut all = merged.all();
                all.explicit.retain(|_, count| *count > 0);
                assert_eq!(all, expected, "rotated by {rotation}, cut at {cut}");
            }
        }
        // The SDK made the buckets coarser in between.
        let (first, last) = (
            exponential(2, false, &[(4, 8), (5, 8)]),
            exponential(0, false, &[(1, 20)]),
        );
        assert_eq!(last.since(&first), Some(exponential(0, false, &[(1, 4)])));
    }

    #[test]
    fn a_state_that_is_cut_off_is_an_error() {
        let mut histograms = Histograms::default();
        histograms.point((1, 2), (3, explicit(&[1.0], &[4, 5])));
        let bytes = histograms.write();
        for length in 0..bytes.len() {
            assert!(Histograms::default().read(&bytes[..length]).is_err());
        }
    }
}
