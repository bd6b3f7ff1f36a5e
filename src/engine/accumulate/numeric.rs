//! Aggregates whose state is a few numbers: count, sum, avg, min, max, variance.

use std::{cmp::Ordering, mem, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, ArrowNativeTypeOp, ArrowPrimitiveType, BooleanArray, PrimitiveArray},
    buffer::{BooleanBuffer, NullBuffer},
    datatypes::*,
};

use super::{Accumulator, each, field, grow, passes, primitive};
use crate::error::Error;

/// `count(*)` without an argument, `count(x)` with one.
#[derive(Default)]
pub struct Count {
    counts: Vec<i64>,
}

impl Accumulator for Count {
    fn update(
        &mut self,
        groups: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<(), Error> {
        grow(&mut self.counts, group_count, 0);
        // A dictionary's NULLs may sit among its values.
        let nulls = args.first().and_then(|array| array.logical_nulls());
        let nulls = nulls.filter(|nulls| nulls.null_count() > 0);
        if nulls.is_none() && filter.is_none() {
            for group in groups {
                self.counts[*group as usize] += 1;
            }
            return Ok(());
        }
        for (row, group) in groups.iter().enumerate() {
            if nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)) && passes(filter, row) {
                self.counts[*group as usize] += 1;
            }
        }
        Ok(())
    }

    fn state_fields(&self) -> Vec<FieldRef> {
        vec![field("count", DataType::Int64, false)]
    }

    fn state(&mut self) -> Result<Vec<ArrayRef>, Error> {
        Ok(vec![self.evaluate()?])
    }

    fn merge(&mut self, groups: &[u32], state: &[ArrayRef], group_count: usize) -> Result<(), Error> {
        grow(&mut self.counts, group_count, 0);
        let counts = primitive::<Int64Type>("state of count", state, 0, &DataType::Int64)?;
        each(groups, &counts, None, |group, count| self.counts[group] += count);
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ArrayRef, Error> {
        Ok(column::<Int64Type>(mem::take(&mut self.counts), None))
    }

    fn size(&self) -> usize {
        bytes(&self.counts)
    }
}

/// Sums; integers wrap as DataFusion's do. NULL without a row.
pub struct Sum<T: ArrowPrimitiveType> {
    sums: Vec<T::Native>,
    seen: Vec<bool>,
}

impl<T: ArrowPrimitiveType> Sum<T> {
    pub fn new() -> Self {
        Self {
            sums: Vec::new(),
            seen: Vec::new(),
        }
    }

    fn add(&mut self, groups: &[u32], array: &PrimitiveArray<T>, filter: Option<&BooleanArray>, group_count: usize) {
        grow(&mut self.sums, group_count, T::default_value());
        grow(&mut self.seen, group_count, false);
        let (sums, seen) = (&mut self.sums, &mut self.seen);
        each(groups, array, filter, |group, value| {
            sums[group] = sums[group].add_wrapping(value);
            seen[group] = true;
        });
    }
}

impl<T: ArrowPrimitiveType> Accumulator for Sum<T> {
    fn update(
        &mut self,
        groups: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<(), Error> {
        let array = primitive::<T>("argument of sum", args, 0, &T::DATA_TYPE)?;
        self.add(groups, &array, filter, group_count);
        Ok(())
    }

    fn state_fields(&self) -> Vec<FieldRef> {
        vec![field("sum", T::DATA_TYPE, true)]
    }

    fn state(&mut self) -> Result<Vec<ArrayRef>, Error> {
        Ok(vec![self.evaluate()?])
    }

    fn merge(&mut self, groups: &[u32], state: &[ArrayRef], group_count: usize) -> Result<(), Error> {
        let array = primitive::<T>("state of sum", state, 0, &T::DATA_TYPE)?;
        self.add(groups, &array, None, group_count);
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ArrayRef, Error> {
        Ok(column::<T>(
            mem::take(&mut self.sums),
            validity(mem::take(&mut self.seen)),
        ))
    }

    fn size(&self) -> usize {
        bytes(&self.sums) + bytes(&self.seen)
    }
}

/// Mean of Float64. NULL without a row.
#[derive(Default)]
pub struct Avg {
    sums: Vec<(i64, f64)>,
}

impl Accumulator for Avg {
    fn update(
        &mut self,
        groups: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<(), Error> {
        grow(&mut self.sums, group_count, (0, 0.0));
        let array = primitive::<Float64Type>("argument of avg", args, 0, &DataType::Float64)?;
        each(groups, &array, filter, |group, value| {
            let (count, sum) = &mut self.sums[group];
            *count += 1;
            *sum += value;
        });
        Ok(())
    }

    fn state_fields(&self) -> Vec<FieldRef> {
        vec![
            field("count", DataType::Int64, false),
            field("sum", DataType::Float64, false),
        ]
    }

    fn state(&mut self) -> Result<Vec<ArrayRef>, Error> {
        let (counts, sums) = mem::take(&mut self.sums).into_iter().unzip();
        Ok(vec![
            column::<Int64Type>(counts, None),
            column::<Float64Type>(sums, None),
        ])
    }

    fn merge(&mut self, groups: &[u32], state: &[ArrayRef], group_count: usize) -> Result<(), Error> {
        grow(&mut self.sums, group_count, (0, 0.0));
        let counts = primitive::<Int64Type>("state of avg", state, 0, &DataType::Int64)?;
        let sums = primitive::<Float64Type>("state of avg", state, 1, &DataType::Float64)?;
        for ((group, more), value) in groups.iter().zip(counts.values()).zip(sums.values()) {
            let (count, sum) = &mut self.sums[*group as usize];
            *count += more;
            *sum += value;
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ArrayRef, Error> {
        let sums = mem::take(&mut self.sums);
        let seen = sums.iter().map(|(count, _)| *count > 0).collect();
        let means = sums
            .into_iter()
            .map(|(count, sum)| if count > 0 { sum / count as f64 } else { 0.0 });
        Ok(column::<Float64Type>(means.collect(), validity(seen)))
    }

    fn size(&self) -> usize {
        bytes(&self.sums)
    }
}

/// Which of two values stays.
#[derive(Clone, Copy)]
pub enum Keep {
    Least,
    Greatest,
}

/// Least or greatest value. NULL without a row.
struct Extreme<T: ArrowPrimitiveType> {
    /// The type with its time zone, which `T` does not know.
    data_type: DataType,
    keep: Keep,
    values: Vec<T::Native>,
    seen: Vec<bool>,
}

impl<T: ArrowPrimitiveType> Extreme<T> {
    fn add(&mut self, groups: &[u32], array: &PrimitiveArray<T>, filter: Option<&BooleanArray>, group_count: usize) {
        grow(&mut self.values, group_count, T::default_value());
        grow(&mut self.seen, group_count, false);
        let wins = match self.keep {
            Keep::Least => Ordering::Less,
            Keep::Greatest => Ordering::Greater,
        };
        let (values, seen) = (&mut self.values, &mut self.seen);
        each(groups, array, filter, |group, value| {
            if !seen[group] || order::<T>(value, values[group]) == wins {
                values[group] = value;
                seen[group] = true;
            }
        });
    }
}

/// Total order in which every NaN is the greatest, whatever its sign.
#[inline]
fn order<T: ArrowPrimitiveType>(left: T::Native, right: T::Native) -> Ordering {
    // Only a NaN differs from itself.
    let nan = |value: T::Native| value.partial_cmp(&value).is_none();
    match (nan(left), nan(right)) {
        (false, false) => left.compare(right),
        (left, right) => left.cmp(&right),
    }
}

impl<T: ArrowPrimitiveType> Accumulator for Extreme<T> {
    fn update(
        &mut self,
        groups: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<(), Error> {
        let array = primitive::<T>("argument of min or max", args, 0, &self.data_type)?;
        self.add(groups, &array, filter, group_count);
        Ok(())
    }

    fn state_fields(&self) -> Vec<FieldRef> {
        let name = match self.keep {
            Keep::Least => "min",
            Keep::Greatest => "max",
        };
        vec![field(name, self.data_type.clone(), true)]
    }

    fn state(&mut self) -> Result<Vec<ArrayRef>, Error> {
        Ok(vec![self.evaluate()?])
    }

    fn merge(&mut self, groups: &[u32], state: &[ArrayRef], group_count: usize) -> Result<(), Error> {
        let array = primitive::<T>("state of min or max", state, 0, &self.data_type)?;
        self.add(groups, &array, None, group_count);
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ArrayRef, Error> {
        let seen = validity(mem::take(&mut self.seen));
        let array = PrimitiveArray::<T>::new(mem::take(&mut self.values).into(), seen);
        Ok(Arc::new(array.with_data_type(self.data_type.clone())))
    }

    fn size(&self) -> usize {
        bytes(&self.values) + bytes(&self.seen)
    }
}

/// Min or max over a fixed-width type; `None` for others.
pub fn extreme(data_type: &DataType, keep: Keep) -> Option<Box<dyn Accumulator>> {
    macro_rules! over {
        ($($pattern:pat => $type:ty),* $(,)?) => {
            match data_type {
                $($pattern => Some(Box::new(Extreme::<$type> {
                    data_type: data_type.clone(), keep, values: Vec::new(), seen: Vec::new(),
                })),)*
                _ => None,
            }
        };
    }
    over! {
        DataType::Int8 => Int8Type,
        DataType::Int16 => Int16Type,
        DataType::Int32 => Int32Type,
        DataType::Int64 => Int64Type,
        DataType::UInt8 => UInt8Type,
        DataType::UInt16 => UInt16Type,
        DataType::UInt32 => UInt32Type,
        DataType::UInt64 => UInt64Type,
        DataType::Float32 => Float32Type,
        DataType::Float64 => Float64Type,
        DataType::Date32 => Date32Type,
        DataType::Date64 => Date64Type,
        DataType::Timestamp(TimeUnit::Second, _) => TimestampSecondType,
        DataType::Timestamp(TimeUnit::Millisecond, _) => TimestampMillisecondType,
        DataType::Timestamp(TimeUnit::Microsecond, _) => TimestampMicrosecondType,
        DataType::Timestamp(TimeUnit::Nanosecond, _) => TimestampNanosecondType,
        DataType::Duration(TimeUnit::Second) => DurationSecondType,
        DataType::Duration(TimeUnit::Millisecond) => DurationMillisecondType,
        DataType::Duration(TimeUnit::Microsecond) => DurationMicrosecondType,
        DataType::Duration(TimeUnit::Nanosecond) => DurationNanosecondType,
    }
}

/// What is made of the second moment.
#[derive(Clone, Copy)]
pub enum Spread {
    Variance,
    Deviation,
}

#[derive(Clone, Copy, Default)]
struct Moments {
    count: i64,
    mean: f64,
    m2: f64,
}

/// Sample variance or standard deviation of Float64, by Welford's update and Chan's merge. NULL below two rows.
pub struct Variance {
    spread: Spread,
    moments: Vec<Moments>,
}

impl Variance {
    pub fn new(spread: Spread) -> Self {
        Self {
            spread,
            moments: Vec::new(),
        }
    }
}

impl Accumulator for Variance {
    fn update(
        &mut self,
        groups: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<(), Error> {
        grow(&mut self.moments, group_count, Moments::default());
        let array = primitive::<Float64Type>("argument of variance", args, 0, &DataType::Float64)?;
        each(groups, &array, filter, |group, value| {
            let moments = &mut self.moments[group];
            moments.count += 1;
            let before = value - moments.mean;
            moments.mean += before / moments.count as f64;
            moments.m2 += before * (value - moments.mean);
        });
        Ok(())
    }

    fn state_fields(&self) -> Vec<FieldRef> {
        vec![
            field("count", DataType::Int64, false),
            field("mean", DataType::Float64, false),
            field("m2", DataType::Float64, false),
        ]
    }

    fn state(&mut self) -> Result<Vec<ArrayRef>, Error> {
        let moments = mem::take(&mut self.moments);
        Ok(vec![
            column::<Int64Type>(moments.iter().map(|m| m.count).collect(), None),
            column::<Float64Type>(moments.iter().map(|m| m.mean).collect(), None),
            column::<Float64Type>(moments.iter().map(|m| m.m2).collect(), None),
        ])
    }

    fn merge(&mut self, groups: &[u32], state: &[ArrayRef], group_count: usize) -> Result<(), Error> {
        grow(&mut self.moments, group_count, Moments::default());
        let counts = primitive::<Int64Type>("state of variance", state, 0, &DataType::Int64)?;
        let means = primitive::<Float64Type>("state of variance", state, 1, &DataType::Float64)?;
        let m2s = primitive::<Float64Type>("state of variance", state, 2, &DataType::Float64)?;
        for (row, group) in groups.iter().enumerate() {
            let other = Moments {
                count: counts.value(row),
                mean: means.value(row),
                m2: m2s.value(row),
            };
            let moments = &mut self.moments[*group as usize];
            if other.count == 0 {
                continue;
            }
            if moments.count == 0 {
                *moments = other;
                continue;
            }
            let (left, right) = (moments.count as f64, other.count as f64);
            let delta = other.mean - moments.mean;
            moments.count += other.count;
            let count = moments.count as f64;
            moments.mean += delta * right / count;
            moments.m2 += other.m2 + delta * delta * left * right / count;
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ArrayRef, Error> {
        let moments = mem::take(&mut self.moments);
        let seen = moments.iter().map(|m| m.count > 1).collect();
        let values = moments.iter().map(|m| {
            let variance = if m.count > 1 { m.m2 / (m.count - 1) as f64 } else { 0.0 };
            match self.spread {
                Spread::Variance => variance,
                Spread::Deviation => variance.sqrt(),
            }
        });
        Ok(column::<Float64Type>(values.collect(), validity(seen)))
    }

    fn size(&self) -> usize {
        bytes(&self.moments)
    }
}

fn validity(seen: Vec<bool>) -> Option<NullBuffer> {
    if seen.iter().all(|seen| *seen) {
        return None;
    }
    Some(NullBuffer::new(BooleanBuffer::from(seen)))
}

fn column<T: ArrowPrimitiveType>(values: Vec<T::Native>, nulls: Option<NullBuffer>) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::new(values.into(), nulls))
}

fn bytes<V>(values: &Vec<V>) -> usize {
    values.capacity() * size_of::<V>()
}
