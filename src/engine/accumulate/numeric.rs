//! Aggregates whose state is a few numbers: count, sum, avg, min, max, variance.
//!
//! Sums of floats carry what rounding takes from them ([`Total`]), so that a result does not depend on how rows were split
//! over partitions, batches and panes, or on the order in which they came.

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

/// A sum of floats with the rounding errors made on the way, by Knuth's exact addition.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Total {
    pub sum: f64,
    /// What is missing from `sum`.
    pub rest: f64,
}

impl Total {
    #[inline]
    pub fn add(&mut self, value: f64) {
        let sum = self.sum + value;
        let added = sum - self.sum;
        self.rest += (self.sum - (sum - added)) + (value - added);
        self.sum = sum;
    }

    /// Adds the exact product of two numbers.
    #[inline]
    pub fn add_product(&mut self, left: f64, right: f64) {
        let product = left * right;
        self.add(product);
        self.rest += left.mul_add(right, -product);
    }

    pub fn merge(&mut self, other: Self) {
        self.add(other.sum);
        self.rest += other.rest;
    }

    pub fn value(self) -> f64 {
        self.normal().sum
    }

    /// The nearest float, and what is missing from it. Beyond the finite numbers nothing is missing.
    pub fn normal(self) -> Self {
        let sum = self.sum + self.rest;
        if !sum.is_finite() {
            return Self {
                sum: if self.sum.is_finite() { sum } else { self.sum },
                rest: 0.0,
            };
        }
        Self {
            sum,
            rest: self.rest - (sum - self.sum),
        }
    }
}

/// Sum of co-deviations of `count` pairs: `products - left · right / count`, as exact as the totals are. What is left of
/// equal values by rounding is zero.
pub(super) fn codeviation(count: i64, left: Total, right: Total, products: Total) -> f64 {
    let (left, right, products) = (left.normal(), right.normal(), products.normal());
    let count = count as f64;
    let high = left.sum * right.sum;
    let low = left.sum.mul_add(right.sum, -high) + left.sum * right.rest + left.rest * right.sum;
    let share = high / count;
    let share_rest = (share.mul_add(-count, high) + low) / count;
    let deviation = (products.sum - share) + (products.rest - share_rest);
    if deviation.abs() <= share.abs() * ROUNDING {
        0.0
    } else {
        deviation
    }
}

/// 2⁻⁹⁶: what totals of a hundred bits and more cannot tell from zero.
const ROUNDING: f64 = 1.0 / (1u128 << 96) as f64;

pub(super) fn total_fields(name: &str) -> [FieldRef; 2] {
    [
        field(name, DataType::Float64, false),
        field(&format!("{name}_rest"), DataType::Float64, false),
    ]
}

/// Totals as two columns of state.
pub(super) fn total_columns(totals: impl Iterator<Item = Total> + Clone) -> [ArrayRef; 2] {
    [
        column::<Float64Type>(totals.clone().map(|total| total.sum).collect(), None),
        column::<Float64Type>(totals.map(|total| total.rest).collect(), None),
    ]
}

/// Totals from two columns of state, the first of them at `index`.
pub(super) fn totals(
    what: &'static str,
    state: &[ArrayRef],
    index: usize,
) -> Result<impl Fn(usize) -> Total + use<>, Error> {
    let sums = primitive::<Float64Type>(what, state, index, &DataType::Float64)?;
    let rests = primitive::<Float64Type>(what, state, index + 1, &DataType::Float64)?;
    Ok(move |row| Total {
        sum: sums.value(row),
        rest: rests.value(row),
    })
}

/// Sum of Float64. NULL without a row.
#[derive(Default)]
pub struct FloatSum {
    sums: Vec<(i64, Total)>,
}

impl Accumulator for FloatSum {
    fn update(
        &mut self,
        groups: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<(), Error> {
        add_floats("argument of sum", &mut self.sums, groups, args, filter, group_count)
    }

    fn state_fields(&self) -> Vec<FieldRef> {
        counted_fields()
    }

    fn state(&mut self) -> Result<Vec<ArrayRef>, Error> {
        Ok(counted_columns(&mut self.sums))
    }

    fn merge(&mut self, groups: &[u32], state: &[ArrayRef], group_count: usize) -> Result<(), Error> {
        merge_counted("state of sum", &mut self.sums, groups, state, group_count)
    }

    fn evaluate(&mut self) -> Result<ArrayRef, Error> {
        let sums = mem::take(&mut self.sums);
        let seen = sums.iter().map(|(count, _)| *count > 0).collect();
        let values = sums.into_iter().map(|(_, sum)| sum.value());
        Ok(column::<Float64Type>(values.collect(), validity(seen)))
    }

    fn size(&self) -> usize {
        bytes(&self.sums)
    }
}

fn add_floats(
    what: &'static str,
    sums: &mut Vec<(i64, Total)>,
    groups: &[u32],
    args: &[ArrayRef],
    filter: Option<&BooleanArray>,
    group_count: usize,
) -> Result<(), Error> {
    grow(sums, group_count, (0, Total::default()));
    let array = primitive::<Float64Type>(what, args, 0, &DataType::Float64)?;
    each(groups, &array, filter, |group, value| {
        let (count, sum) = &mut sums[group];
        *count += 1;
        sum.add(value);
    });
    Ok(())
}

fn counted_fields() -> Vec<FieldRef> {
    let mut fields = vec![field("count", DataType::Int64, false)];
    fields.extend(total_fields("sum"));
    fields
}

fn counted_columns(sums: &mut Vec<(i64, Total)>) -> Vec<ArrayRef> {
    let sums = mem::take(sums);
    let mut columns = vec![column::<Int64Type>(
        sums.iter().map(|(count, _)| *count).collect(),
        None,
    )];
    columns.extend(total_columns(sums.iter().map(|(_, sum)| *sum)));
    columns
}

fn merge_counted(
    what: &'static str,
    sums: &mut Vec<(i64, Total)>,
    groups: &[u32],
    state: &[ArrayRef],
    group_count: usize,
) -> Result<(), Error> {
    grow(sums, group_count, (0, Total::default()));
    let counts = primitive::<Int64Type>(what, state, 0, &DataType::Int64)?;
    let others = totals(what, state, 1)?;
    for (row, group) in groups.iter().enumerate() {
        let (count, sum) = &mut sums[*group as usize];
        *count += counts.value(row);
        sum.merge(others(row));
    }
    Ok(())
}

/// Sums of integers, which wrap as DataFusion's do. NULL without a row.
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
    sums: Vec<(i64, Total)>,
}

impl Accumulator for Avg {
    fn update(
        &mut self,
        groups: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<(), Error> {
        add_floats("argument of avg", &mut self.sums, groups, args, filter, group_count)
    }

    fn state_fields(&self) -> Vec<FieldRef> {
        counted_fields()
    }

    fn state(&mut self) -> Result<Vec<ArrayRef>, Error> {
        Ok(counted_columns(&mut self.sums))
    }

    fn merge(&mut self, groups: &[u32], state: &[ArrayRef], group_count: usize) -> Result<(), Error> {
        merge_counted("state of avg", &mut self.sums, groups, state, group_count)
    }

    fn evaluate(&mut self) -> Result<ArrayRef, Error> {
        let sums = mem::take(&mut self.sums);
        let seen = sums.iter().map(|(count, _)| *count > 0).collect();
        let means = sums.into_iter().map(|(count, sum)| match count {
            0 => 0.0,
            count => sum.value() / count as f64,
        });
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

/// What the sum of squares is divided by.
#[derive(Clone, Copy)]
pub enum Of {
    /// One less than the rows: NULL below two.
    Sample,
    /// The rows: NULL without one.
    Population,
}

impl Of {
    /// The divisor for so many rows, if there are enough.
    pub(super) fn divisor(self, count: i64) -> Option<f64> {
        match self {
            Self::Sample => (count > 1).then(|| (count - 1) as f64),
            Self::Population => (count > 0).then_some(count as f64),
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Moments {
    count: i64,
    sum: Total,
    squares: Total,
}

/// Variance or standard deviation of Float64.
pub struct Variance {
    spread: Spread,
    of: Of,
    moments: Vec<Moments>,
}

impl Variance {
    pub fn new(spread: Spread, of: Of) -> Self {
        Self {
            spread,
            of,
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
            moments.sum.add(value);
            moments.squares.add_product(value, value);
        });
        Ok(())
    }

    fn state_fields(&self) -> Vec<FieldRef> {
        let mut fields = vec![field("count", DataType::Int64, false)];
        fields.extend(total_fields("sum"));
        fields.extend(total_fields("squares"));
        fields
    }

    fn state(&mut self) -> Result<Vec<ArrayRef>, Error> {
        let moments = mem::take(&mut self.moments);
        let mut columns = vec![column::<Int64Type>(moments.iter().map(|m| m.count).collect(), None)];
        columns.extend(total_columns(moments.iter().map(|m| m.sum)));
        columns.extend(total_columns(moments.iter().map(|m| m.squares)));
        Ok(columns)
    }

    fn merge(&mut self, groups: &[u32], state: &[ArrayRef], group_count: usize) -> Result<(), Error> {
        const WHAT: &str = "state of variance";
        grow(&mut self.moments, group_count, Moments::default());
        let counts = primitive::<Int64Type>(WHAT, state, 0, &DataType::Int64)?;
        let (sums, squares) = (totals(WHAT, state, 1)?, totals(WHAT, state, 3)?);
        for (row, group) in groups.iter().enumerate() {
            let moments = &mut self.moments[*group as usize];
            moments.count += counts.value(row);
            moments.sum.merge(sums(row));
            moments.squares.merge(squares(row));
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ArrayRef, Error> {
        let values = mem::take(&mut self.moments).into_iter().map(|moments| {
            let divisor = self.of.divisor(moments.count)?;
            let deviation = codeviation(moments.count, moments.sum, moments.sum, moments.squares);
            // A NaN stays one.
            let variance = if deviation < 0.0 { 0.0 } else { deviation / divisor };
            Some(match self.spread {
                Spread::Variance => variance,
                Spread::Deviation => variance.sqrt(),
            })
        });
        Ok(Arc::new(values.collect::<PrimitiveArray<Float64Type>>()))
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
