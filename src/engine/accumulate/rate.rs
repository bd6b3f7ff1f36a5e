//! Increase of a counter, in all or per second, as Prometheus' `increase` and `rate` without their extrapolation.
//!
//! Over the points of a window in event-time order, the increase is the sum of the differences, where a value below its
//! predecessor is a restart from zero and counts whole. The rate is the increase divided by the time from the first point
//! to the last; NULL for fewer than two points in time. The delta is the last value less the first, restarts or not: of a
//! gauge. NULL and non-finite values, and points without a time, are no points.
//!
//! One counter may come through several source partitions and out of order, so a partial is its points, sorted; merging
//! interleaves them, and the answer does not depend on how rows were split. Beyond [`POINTS_MAX`] per group, points inside a
//! rising run are dropped, which changes nothing unless another partial holds a restart within that run; if restarts
//! alone are more than that, the earliest half is summed up into first, last and the height lost at restarts.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, BooleanArray, Float64Array, Float64Builder, Int64Array, ListArray, PrimitiveArray},
    buffer::OffsetBuffer,
    compute::cast,
    datatypes::*,
};

use super::{Accumulator, field, passes, primitive};
use crate::error::Error;

/// Points kept per group: 16 KB.
pub const POINTS_MAX: usize = 1_024;

/// What is told of the points.
#[derive(Clone, Copy)]
pub enum Measure {
    PerSecond,
    Increase,
    Delta,
}

pub struct Rate {
    measure: Measure,
    groups: Vec<Points>,
}

impl Rate {
    pub fn new(measure: Measure) -> Self {
        Self {
            measure,
            groups: Vec::new(),
        }
    }

    fn grow(&mut self, group_count: usize) {
        if self.groups.len() < group_count {
            self.groups.resize_with(group_count, Points::default);
        }
    }
}

impl Accumulator for Rate {
    fn update(
        &mut self,
        groups: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<(), Error> {
        self.grow(group_count);
        let values = primitive::<Float64Type>("argument of rate", args, 0, &DataType::Float64)?;
        let times = times(args)?;
        for (row, group) in groups.iter().enumerate() {
            if values.is_valid(row) && times.is_valid(row) && values.value(row).is_finite() && passes(filter, row) {
                let point = (times.value(row), values.value(row));
                self.groups[*group as usize].add(point);
            }
        }
        Ok(())
    }

    fn state_fields(&self) -> Vec<FieldRef> {
        vec![
            field("lost", DataType::Float64, false),
            field("times", DataType::new_list(DataType::Int64, false), false),
            field("values", DataType::new_list(DataType::Float64, false), false),
        ]
    }

    fn state(&mut self) -> Result<Vec<ArrayRef>, Error> {
        let groups = std::mem::take(&mut self.groups);
        let offsets = || OffsetBuffer::from_lengths(groups.iter().map(|group| group.points.len()));
        let points = || groups.iter().flat_map(|group| &group.points);
        let times: Int64Array = points().map(|(time, _)| *time).collect::<Vec<_>>().into();
        let values: Float64Array = points().map(|(_, value)| *value).collect::<Vec<_>>().into();
        let lost: Float64Array = groups.iter().map(|group| group.lost).collect::<Vec<_>>().into();
        let list = |values: ArrayRef| -> Result<ArrayRef, Error> {
            let item = Arc::new(Field::new_list_field(values.data_type().clone(), false));
            Ok(Arc::new(ListArray::try_new(item, offsets(), values, None)?))
        };
        Ok(vec![Arc::new(lost), list(Arc::new(times))?, list(Arc::new(values))?])
    }

    fn merge(&mut self, groups: &[u32], state: &[ArrayRef], group_count: usize) -> Result<(), Error> {
        self.grow(group_count);
        let lost = primitive::<Float64Type>("state of rate", state, 0, &DataType::Float64)?;
        let times = list::<Int64Type>(state, 1)?;
        let values = list::<Float64Type>(state, 2)?;
        for (row, group) in groups.iter().enumerate() {
            let group = &mut self.groups[*group as usize];
            group.lost += lost.value(row);
            let (from, to) = (times.0[row] as usize, times.0[row + 1] as usize);
            let start = values.0[row] as usize;
            if values.0[row + 1] as usize - start != to - from {
                return Err(Error::Unreadable {
                    what: "state of rate",
                    reason: "as many values as times".into(),
                });
            }
            let points = times.1.values()[from..to].iter().copied();
            let points = points.zip(values.1.values()[start..].iter().copied());
            group.merge(points);
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ArrayRef, Error> {
        let groups = std::mem::take(&mut self.groups);
        let mut builder = Float64Builder::with_capacity(groups.len());
        for group in groups {
            builder.append_option(group.measure(self.measure));
        }
        Ok(Arc::new(builder.finish()))
    }

    fn size(&self) -> usize {
        let points: usize = self.groups.iter().map(|group| group.points.capacity()).sum();
        self.groups.capacity() * size_of::<Points>() + points * size_of::<(i64, f64)>()
    }
}

/// Event times as nanoseconds since the Unix epoch, whatever their unit; held at the ends of the range.
fn times(args: &[ArrayRef]) -> Result<Int64Array, Error> {
    let column = args.get(1).ok_or_else(|| Error::Shape {
        what: "arguments of rate",
        expected: "value and event time".into(),
        found: format!("{} arguments", args.len()),
    })?;
    let scale = match column.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => 1_000_000_000,
        DataType::Timestamp(TimeUnit::Millisecond, _) => 1_000_000,
        DataType::Timestamp(TimeUnit::Microsecond, _) => 1_000,
        DataType::Timestamp(TimeUnit::Nanosecond, _) | DataType::Int64 => 1,
        other => {
            return Err(Error::Shape {
                what: "event time of rate",
                expected: "a timestamp".into(),
                found: other.to_string(),
            });
        }
    };
    let raw = cast(column, &DataType::Int64)?;
    let raw = primitive::<Int64Type>("event time of rate", &[raw], 0, &DataType::Int64)?;
    Ok(raw.unary(|time: i64| time.saturating_mul(scale)))
}

fn list<T: ArrowPrimitiveType>(
    state: &[ArrayRef],
    index: usize,
) -> Result<(OffsetBuffer<i32>, PrimitiveArray<T>), Error> {
    let list = state.get(index).and_then(|a| a.as_any().downcast_ref::<ListArray>());
    let values = list.and_then(|list| list.values().as_any().downcast_ref::<PrimitiveArray<T>>());
    match (list, values) {
        (Some(list), Some(values)) => Ok((list.offsets().clone(), values.clone())),
        _ => Err(Error::Shape {
            what: "state of rate",
            expected: format!("a list of {}", T::DATA_TYPE),
            found: format!("{:?}", state.get(index).map(|a| a.data_type())),
        }),
    }
}

/// Points of one counter, by (time, value).
#[derive(Clone, Debug, Default)]
struct Points {
    /// Height lost at restarts among points that are no longer kept.
    lost: f64,
    points: Vec<(i64, f64)>,
}

fn before(left: &(i64, f64), right: &(i64, f64)) -> bool {
    left.0.cmp(&right.0).then(left.1.total_cmp(&right.1)).is_lt()
}

impl Points {
    #[inline]
    fn add(&mut self, point: (i64, f64)) {
        match self.points.last() {
            Some(last) if before(&point, last) => {
                let at = self.points.partition_point(|other| !before(&point, other));
                self.points.insert(at, point);
            }
            _ => self.points.push(point),
        }
        self.bound();
    }

    fn merge(&mut self, others: impl Iterator<Item = (i64, f64)>) {
        let old = std::mem::take(&mut self.points);
        let mut old = old.into_iter().peekable();
        for point in others {
            while let Some(earlier) = old.next_if(|other| !before(&point, other)) {
                self.points.push(earlier);
            }
            self.points.push(point);
        }
        self.points.extend(old);
        self.bound();
    }

    fn bound(&mut self) {
        if self.points.len() <= POINTS_MAX {
            return;
        }
        let mut kept: Vec<(i64, f64)> = Vec::with_capacity(POINTS_MAX);
        for (index, point) in self.points.iter().enumerate() {
            let next = self.points.get(index + 1);
            let rises = |left: &(i64, f64), right: &(i64, f64)| left.1 <= right.1;
            match (kept.last(), next) {
                (Some(last), Some(next)) if rises(last, point) && rises(point, next) => {}
                _ => kept.push(*point),
            }
        }
        if kept.len() > POINTS_MAX / 2 {
            let half = kept.len() / 2;
            self.lost += lost(&kept[..=half]);
            // What was lost between them is in `lost` now; a fall from the first to this one would count twice.
            let (first, last) = (kept[0], kept[half]);
            if last.1 < first.1 {
                self.lost -= first.1;
            }
            kept.drain(1..half);
        }
        self.points = kept;
    }

    fn measure(&self, measure: Measure) -> Option<f64> {
        let (first, last) = (self.points.first()?, self.points.last()?);
        let span = i128::from(last.0) - i128::from(first.0);
        if span <= 0 {
            return None;
        }
        let increase = last.1 - first.1 + self.lost + lost(&self.points);
        Some(match measure {
            Measure::PerSecond => increase / (span as f64 / 1e9),
            Measure::Increase => increase,
            Measure::Delta => last.1 - first.1,
        })
    }
}

/// Heights from which the counter fell.
fn lost(points: &[(i64, f64)]) -> f64 {
    let falls = points.windows(2).filter(|pair| pair[1].1 < pair[0].1);
    falls.map(|pair| pair[0].1).sum()
}
