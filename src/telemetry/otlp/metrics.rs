//! Metrics: a row per data point of every kind.
//!
//! A number point without a value, and any point flagged "no recorded value", is no row. Of a metric's data that comes
//! twice, the same kind is merged and another kind replaces it, as the wire format says.

use super::{
    Context, Signal, decode_request,
    message::{
        buckets, exponential_point, gauge_or_summary, histogram, histogram_point, metric, number_point, sum,
        summary_point, value_at_quantile,
    },
    time_ms,
    transcode::{METRICS_DATA, Message},
};
use crate::{
    column::{AnySlot, Booleans, Dictionary, Lists, Primitive, Slot},
    error::Fault,
    wire::{Merged, Reader, packed_fixed64, packed_varint},
};

/// The columns of `otlp_metrics`.
#[derive(Default)]
pub(crate) struct Metrics {
    context: Context,
    event_time: Slot<Primitive<i64>>,
    start_time: Slot<Primitive<i64>>,
    metric_name: Slot<Dictionary>,
    description: Slot<Dictionary>,
    unit: Slot<Dictionary>,
    kind: Slot<Dictionary>,
    value: Slot<Primitive<f64>>,
    value_int: Slot<Primitive<i64>>,
    temporality: Slot<Dictionary>,
    is_monotonic: Slot<Booleans>,
    count: Slot<Primitive<i64>>,
    sum: Slot<Primitive<f64>>,
    min: Slot<Primitive<f64>>,
    max: Slot<Primitive<f64>>,
    bucket_counts: Slot<Lists<u64>>,
    explicit_bounds: Slot<Lists<f64>>,
    scale: Slot<Primitive<i32>>,
    zero_count: Slot<Primitive<i64>>,
    zero_threshold: Slot<Primitive<f64>>,
    positive: BucketColumns,
    negative: BucketColumns,
    quantiles: Slot<Lists<f64>>,
    quantile_values: Slot<Lists<f64>>,
    flags: Slot<Primitive<u32>>,
    scratch: Scratch,
}

#[derive(Default)]
struct BucketColumns {
    offset: Slot<Primitive<i32>>,
    counts: Slot<Lists<u64>>,
}

/// Numbers of the point being read; a point's lists may come in pieces.
#[derive(Default)]
struct Scratch {
    counts: Vec<u64>,
    bounds: Vec<f64>,
    quantiles: Vec<(f64, f64)>,
}

const NO_RECORDED_VALUE: u32 = 1;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    Sum,
    Histogram,
    ExponentialHistogram,
    Summary,
}

impl Kind {
    /// The kind of data that a field of a metric is.
    #[inline(always)]
    fn of(field: u32) -> Option<Self> {
        Some(match field {
            metric::GAUGE => Self::Gauge,
            metric::SUM => Self::Sum,
            metric::HISTOGRAM => Self::Histogram,
            metric::EXPONENTIAL_HISTOGRAM => Self::ExponentialHistogram,
            metric::SUMMARY => Self::Summary,
            _ => return None,
        })
    }

    fn name(self) -> &'static [u8] {
        match self {
            Self::Gauge => b"gauge",
            Self::Sum => b"sum",
            Self::Histogram => b"histogram",
            Self::ExponentialHistogram => b"exponential_histogram",
            Self::Summary => b"summary",
        }
    }
}

enum Value {
    Absent,
    Double(f64),
    Int(i64),
}

impl Signal for Metrics {
    const JSON_ROOT: &'static Message = &METRICS_DATA;

    fn slots(&mut self) -> Vec<(&'static str, &mut dyn AnySlot)> {
        vec![
            ("event_time", &mut self.event_time),
            ("start_time", &mut self.start_time),
            ("metric_name", &mut self.metric_name),
            ("description", &mut self.description),
            ("unit", &mut self.unit),
            ("kind", &mut self.kind),
            ("value", &mut self.value),
            ("value_int", &mut self.value_int),
            ("temporality", &mut self.temporality),
            ("is_monotonic", &mut self.is_monotonic),
            ("count", &mut self.count),
            ("sum", &mut self.sum),
            ("min", &mut self.min),
            ("max", &mut self.max),
            ("bucket_counts", &mut self.bucket_counts),
            ("explicit_bounds", &mut self.explicit_bounds),
            ("scale", &mut self.scale),
            ("zero_count", &mut self.zero_count),
            ("zero_threshold", &mut self.zero_threshold),
            ("positive_offset", &mut self.positive.offset),
            ("positive_counts", &mut self.positive.counts),
            ("negative_offset", &mut self.negative.offset),
            ("negative_counts", &mut self.negative.counts),
            ("quantiles", &mut self.quantiles),
            ("quantile_values", &mut self.quantile_values),
            ("flags", &mut self.flags),
        ]
    }

    fn context(&mut self) -> &mut Context {
        &mut self.context
    }

    fn decode(&mut self, request: &[u8], row: usize) -> Result<usize, Fault> {
        decode_request(self, request, row, Self::metric)
    }
}

impl Metrics {
    fn metric(&mut self, metric: &[u8], from: usize) -> Result<usize, Fault> {
        let mut reader = Reader::new(metric);
        let (mut name, mut description, mut unit): (&[u8], &[u8], &[u8]) = (&[], &[], &[]);
        let (mut data, mut in_pieces) = (None, false);
        while let Some(field) = reader.tag()? {
            match (Kind::of(field), field) {
                // Read where it stands, as long as nothing shows that there is more of it: what comes after it is far from the cache.
                (Some(kind), _) if data.is_none() => data = Some((kind, self.data(kind, reader.bytes()?, from)?)),
                (Some(_), _) => {
                    reader.bytes()?;
                    in_pieces = true;
                }
                (None, metric::NAME) => name = reader.string(name)?,
                (None, metric::DESCRIPTION) => description = reader.string(description)?,
                (None, metric::UNIT) => unit = reader.string(unit)?,
                (None, other) => reader.skip_other(other, &metric::KNOWN)?,
            }
        }
        if in_pieces {
            self.truncate(from);
            data = self.data_in_pieces(metric, from)?;
        }
        let (to, kind_name) = data.map_or((from, &[][..]), |(kind, to)| (to, kind.name()));
        for (slot, string) in [
            (&mut self.metric_name, name),
            (&mut self.description, description),
            (&mut self.unit, unit),
            (&mut self.kind, kind_name),
        ] {
            if let Some(column) = slot.get() {
                column.fill_unless_empty(from, to, string)?;
            }
        }
        Ok(to)
    }

    /// Pieces of one kind count as one message; another kind replaces what came before it, which must be right, but is no rows.
    #[cold]
    fn data_in_pieces(&mut self, metric: &[u8], from: usize) -> Result<Option<(Kind, usize)>, Fault> {
        let mut reader = Reader::new(metric);
        let mut data = None;
        while let Some(field) = reader.tag()? {
            let Some(kind) = Kind::of(field) else {
                reader.skip_other(field, &metric::KNOWN)?;
                continue;
            };
            let mut pieces = match data.take() {
                None => Merged::default(),
                Some((known, pieces)) if known == kind => pieces,
                Some((other, replaced)) => {
                    self.data(other, replaced.get().unwrap_or_default(), from)?;
                    self.truncate(from);
                    Merged::default()
                }
            };
            pieces.add(reader.bytes()?)?;
            data = Some((kind, pieces));
        }
        let Some((kind, data)) = data else { return Ok(None) };
        Ok(Some((kind, self.data(kind, data.get().unwrap_or_default(), from)?)))
    }

    /// Takes back the columns that have been put for rows from `row` on; those of resource and scope come later.
    fn truncate(&mut self, row: usize) {
        self.slots().into_iter().for_each(|(_, slot)| slot.truncate(row));
        self.context.attributes.take_back(row);
    }

    fn data(&mut self, kind: Kind, data: &[u8], from: usize) -> Result<usize, Fault> {
        match kind {
            Kind::Gauge => self.points(data, from, Self::number_point),
            Kind::Sum => self.sum(data, from),
            Kind::Histogram => self.histogram(data, from, Self::histogram_point),
            Kind::ExponentialHistogram => self.histogram(data, from, Self::exponential_point),
            Kind::Summary => self.points(data, from, Self::summary_point),
        }
    }

    fn points(
        &mut self,
        data: &[u8],
        mut row: usize,
        point: fn(&mut Self, &[u8], usize) -> Result<bool, Fault>,
    ) -> Result<usize, Fault> {
        let mut reader = Reader::new(data);
        while let Some(field) = reader.tag()? {
            match field {
                gauge_or_summary::POINT => row += usize::from(point(self, reader.bytes()?, row)?),
                other => reader.skip_other(other, &gauge_or_summary::KNOWN)?,
            }
        }
        Ok(row)
    }

    fn sum(&mut self, data: &[u8], from: usize) -> Result<usize, Fault> {
        let mut reader = Reader::new(data);
        let mut row = from;
        let (mut temporality, mut is_monotonic) = (0, false);
        while let Some(field) = reader.tag()? {
            match field {
                sum::POINT => row += usize::from(self.number_point(reader.bytes()?, row)?),
                sum::TEMPORALITY => temporality = reader.varint()? as i32,
                sum::IS_MONOTONIC => is_monotonic = reader.varint()? != 0,
                other => reader.skip_other(other, &sum::KNOWN)?,
            }
        }
        self.fill_temporality(from, row, temporality)?;
        if let Some(column) = self.is_monotonic.get() {
            column.fill(from, row, is_monotonic);
        }
        Ok(row)
    }

    fn histogram(
        &mut self,
        data: &[u8],
        from: usize,
        point: fn(&mut Self, &[u8], usize) -> Result<bool, Fault>,
    ) -> Result<usize, Fault> {
        let mut reader = Reader::new(data);
        let mut row = from;
        let mut temporality = 0;
        while let Some(field) = reader.tag()? {
            match field {
                histogram::POINT => row += usize::from(point(self, reader.bytes()?, row)?),
                histogram::TEMPORALITY => temporality = reader.varint()? as i32,
                other => reader.skip_other(other, &histogram::KNOWN)?,
            }
        }
        self.fill_temporality(from, row, temporality)?;
        Ok(row)
    }

    fn fill_temporality(&mut self, from: usize, to: usize, temporality: i32) -> Result<(), Fault> {
        let name: &[u8] = match temporality {
            1 => b"delta",
            2 => b"cumulative",
            _ => b"",
        };
        match self.temporality.get() {
            Some(column) => column.fill_unless_empty(from, to, name),
            None => Ok(()),
        }
    }

    #[inline]
    fn number_point(&mut self, point: &[u8], row: usize) -> Result<bool, Fault> {
        let mut reader = Reader::new(point);
        let (mut start, mut time, mut flags, mut value) = (0, 0, 0, Value::Absent);
        let attributes_wanted = self.context.begin_attributes(row);
        while let Some(field) = reader.tag()? {
            match field {
                number_point::START_TIME => start = reader.fixed64()?,
                number_point::TIME => time = reader.fixed64()?,
                number_point::AS_DOUBLE => value = Value::Double(reader.double()?),
                number_point::AS_INT => value = Value::Int(reader.fixed64()? as i64),
                number_point::ATTRIBUTE => {
                    let attribute = reader.bytes()?;
                    if attributes_wanted {
                        self.context.add_attribute(attribute, row)?;
                    }
                }
                number_point::FLAGS => flags = reader.varint()? as u32,
                other => reader.skip_other(other, &number_point::KNOWN)?,
            }
        }
        if flags & NO_RECORDED_VALUE != 0 || matches!(value, Value::Absent) {
            return Ok(self.no_row(row));
        }
        match value {
            Value::Absent => {}
            Value::Double(double) => {
                if let Some(column) = self.value.get() {
                    column.set(row, double);
                }
            }
            Value::Int(int) => {
                if let Some(column) = self.value.get() {
                    column.set(row, int as f64);
                }
                if let Some(column) = self.value_int.get() {
                    column.set(row, int);
                }
            }
        }
        self.end_point(row, start, time, flags, attributes_wanted);
        Ok(true)
    }

    fn histogram_point(&mut self, point: &[u8], row: usize) -> Result<bool, Fault> {
        let mut reader = Reader::new(point);
        let (mut start, mut time, mut flags, mut count) = (0, 0, 0, 0);
        let (mut sum, mut min, mut max) = (None, None, None);
        let counts_wanted = self.bucket_counts.get().is_some();
        let bounds_wanted = self.explicit_bounds.get().is_some();
        let attributes_wanted = self.context.begin_attributes(row);
        self.scratch.counts.clear();
        self.scratch.bounds.clear();
        while let Some(field) = reader.tag()? {
            match field {
                histogram_point::START_TIME => start = reader.fixed64()?,
                histogram_point::TIME => time = reader.fixed64()?,
                histogram_point::COUNT => count = reader.fixed64()?,
                histogram_point::SUM => sum = Some(reader.double()?),
                histogram_point::BUCKET_COUNTS => {
                    let packed = packed_fixed64(reader.bytes()?)?;
                    if counts_wanted {
                        self.scratch.counts.extend(packed);
                    }
                }
                histogram_point::BUCKET_COUNT => self.scratch.counts.push(reader.fixed64()?),
                histogram_point::EXPLICIT_BOUNDS => {
                    let packed = packed_fixed64(reader.bytes()?)?;
                    if bounds_wanted {
                        self.scratch.bounds.extend(packed.map(f64::from_bits));
                    }
                }
                histogram_point::EXPLICIT_BOUND => self.scratch.bounds.push(reader.double()?),
                histogram_point::ATTRIBUTE => {
                    let attribute = reader.bytes()?;
                    if attributes_wanted {
                        self.context.add_attribute(attribute, row)?;
                    }
                }
                histogram_point::FLAGS => flags = reader.varint()? as u32,
                histogram_point::MIN => min = Some(reader.double()?),
                histogram_point::MAX => max = Some(reader.double()?),
                other => reader.skip_other(other, &histogram_point::KNOWN)?,
            }
        }
        if flags & NO_RECORDED_VALUE != 0 {
            return Ok(self.no_row(row));
        }
        set_count(&mut self.count, row, count)?;
        set_statistics([(&mut self.sum, sum), (&mut self.min, min), (&mut self.max, max)], row);
        set_list(&mut self.bucket_counts, row, &self.scratch.counts)?;
        set_list(&mut self.explicit_bounds, row, &self.scratch.bounds)?;
        self.end_point(row, start, time, flags, attributes_wanted);
        Ok(true)
    }

    fn exponential_point(&mut self, point: &[u8], row: usize) -> Result<bool, Fault> {
        let mut reader = Reader::new(point);
        let (mut start, mut time, mut flags, mut count) = (0, 0, 0, 0);
        let (mut sum, mut min, mut max) = (None, None, None);
        let (mut scale, mut zero_count, mut zero_threshold) = (0, 0, 0.0);
        let (mut positive, mut negative) = (Merged::default(), Merged::default());
        let attributes_wanted = self.context.begin_attributes(row);
        while let Some(field) = reader.tag()? {
            match field {
                exponential_point::ATTRIBUTE => {
                    let attribute = reader.bytes()?;
                    if attributes_wanted {
                        self.context.add_attribute(attribute, row)?;
                    }
                }
                exponential_point::START_TIME => start = reader.fixed64()?,
                exponential_point::TIME => time = reader.fixed64()?,
                exponential_point::COUNT => count = reader.fixed64()?,
                exponential_point::SUM => sum = Some(reader.double()?),
                exponential_point::SCALE => scale = reader.sint32()?,
                exponential_point::ZERO_COUNT => zero_count = reader.fixed64()?,
                exponential_point::POSITIVE => positive.add(reader.bytes()?)?,
                exponential_point::NEGATIVE => negative.add(reader.bytes()?)?,
                exponential_point::FLAGS => flags = reader.varint()? as u32,
                exponential_point::MIN => min = Some(reader.double()?),
                exponential_point::MAX => max = Some(reader.double()?),
                exponential_point::ZERO_THRESHOLD => zero_threshold = reader.double()?,
                other => reader.skip_other(other, &exponential_point::KNOWN)?,
            }
        }
        if flags & NO_RECORDED_VALUE != 0 {
            read_buckets(&positive, &mut self.scratch.counts)?;
            read_buckets(&negative, &mut self.scratch.counts)?;
            return Ok(self.no_row(row));
        }
        set_count(&mut self.count, row, count)?;
        set_statistics([(&mut self.sum, sum), (&mut self.min, min), (&mut self.max, max)], row);
        if let Some(column) = self.scale.get() {
            column.set(row, scale);
        }
        set_count(&mut self.zero_count, row, zero_count)?;
        if let Some(column) = self.zero_threshold.get() {
            column.set(row, zero_threshold);
        }
        self.positive.set(row, &positive, &mut self.scratch.counts)?;
        self.negative.set(row, &negative, &mut self.scratch.counts)?;
        self.end_point(row, start, time, flags, attributes_wanted);
        Ok(true)
    }

    fn summary_point(&mut self, point: &[u8], row: usize) -> Result<bool, Fault> {
        let mut reader = Reader::new(point);
        let (mut start, mut time, mut flags, mut count, mut sum) = (0, 0, 0, 0, 0.0);
        let attributes_wanted = self.context.begin_attributes(row);
        self.scratch.quantiles.clear();
        while let Some(field) = reader.tag()? {
            match field {
                summary_point::START_TIME => start = reader.fixed64()?,
                summary_point::TIME => time = reader.fixed64()?,
                summary_point::COUNT => count = reader.fixed64()?,
                summary_point::SUM => sum = reader.double()?,
                summary_point::QUANTILE_VALUE => self.scratch.quantiles.push(value_at_quantile(reader.bytes()?)?),
                summary_point::ATTRIBUTE => {
                    let attribute = reader.bytes()?;
                    if attributes_wanted {
                        self.context.add_attribute(attribute, row)?;
                    }
                }
                summary_point::FLAGS => flags = reader.varint()? as u32,
                other => reader.skip_other(other, &summary_point::KNOWN)?,
            }
        }
        if flags & NO_RECORDED_VALUE != 0 {
            return Ok(self.no_row(row));
        }
        set_count(&mut self.count, row, count)?;
        set_statistics([(&mut self.sum, Some(sum))], row);
        let pairs = &self.scratch.quantiles;
        if let Some(column) = self.quantiles.get() {
            column.set(row, |list| {
                list.extend(pairs.iter().map(|pair| pair.0));
                Ok(())
            })?;
        }
        if let Some(column) = self.quantile_values.get() {
            column.set(row, |list| {
                list.extend(pairs.iter().map(|pair| pair.1));
                Ok(())
            })?;
        }
        self.end_point(row, start, time, flags, attributes_wanted);
        Ok(true)
    }

    /// What all kinds of points have.
    #[inline(always)]
    fn end_point(&mut self, row: usize, start: u64, time: u64, flags: u32, attributes_wanted: bool) {
        if let Some(column) = self.event_time.get() {
            column.set_option(row, time_ms(time));
        }
        if let Some(column) = self.start_time.get() {
            column.set_option(row, time_ms(start));
        }
        if let Some(column) = self.flags.get() {
            column.set(row, flags);
        }
        if attributes_wanted {
            self.context.attributes.end();
        }
    }

    #[cold]
    fn no_row(&mut self, row: usize) -> bool {
        self.context.attributes.take_back(row);
        false
    }
}

impl BucketColumns {
    fn set(&mut self, row: usize, buckets: &Merged<'_>, scratch: &mut Vec<u64>) -> Result<(), Fault> {
        let Some(offset) = read_buckets(buckets, scratch)? else {
            return Ok(());
        };
        if let Some(column) = self.offset.get() {
            column.set(row, offset);
        }
        set_list(&mut self.counts, row, scratch)
    }
}

/// Offset and counts of one side of an exponential histogram, if it is there.
fn read_buckets(buckets: &Merged<'_>, counts: &mut Vec<u64>) -> Result<Option<i32>, Fault> {
    let Some(buckets) = buckets.get() else {
        return Ok(None);
    };
    counts.clear();
    let mut offset = 0;
    let mut reader = Reader::new(buckets);
    while let Some(field) = reader.tag()? {
        match field {
            buckets::OFFSET => offset = reader.sint32()?,
            buckets::COUNTS => packed_varint(reader.bytes()?, counts)?,
            buckets::COUNT => counts.push(reader.varint()?),
            other => reader.skip_other(other, &buckets::KNOWN)?,
        }
    }
    Ok(Some(offset))
}

fn set_count(slot: &mut Slot<Primitive<i64>>, row: usize, count: u64) -> Result<(), Fault> {
    if let Some(column) = slot.get() {
        let count = i64::try_from(count).map_err(|_| Fault::new(format!("count {count} exceeds 63 bits")))?;
        column.set(row, count);
    }
    Ok(())
}

fn set_statistics<const N: usize>(statistics: [(&mut Slot<Primitive<f64>>, Option<f64>); N], row: usize) {
    for (slot, value) in statistics {
        if let Some(column) = slot.get() {
            column.set_option(row, value);
        }
    }
}

fn set_list<T: crate::column::Native>(slot: &mut Slot<Lists<T>>, row: usize, values: &[T]) -> Result<(), Fault> {
    match slot.get() {
        Some(column) => column.set(row, |list| {
            list.extend_from_slice(values);
            Ok(())
        }),
        None => Ok(()),
    }
}

fn value_at_quantile(pair: &[u8]) -> Result<(f64, f64), Fault> {
    let mut reader = Reader::new(pair);
    let (mut quantile, mut value) = (0.0, 0.0);
    while let Some(field) = reader.tag()? {
        match field {
            value_at_quantile::QUANTILE => quantile = reader.double()?,
            value_at_quantile::VALUE => value = reader.double()?,
            other => reader.skip_other(other, &value_at_quantile::KNOWN)?,
        }
    }
    Ok((quantile, value))
}
