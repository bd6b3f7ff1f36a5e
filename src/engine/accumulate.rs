//! Partial aggregates of many groups, kept as one array per aggregate and indexed by group.
//!
//! Owns the state of every aggregate, how it travels as columns, and how partials add up. Promises that rows in the same
//! order give the same bits whatever the batches, and that merging partials in canonical order gives what DataFusion's
//! own aggregate gives over all rows (floats: up to rounding; quantiles: within 1 %). NULL arguments are skipped. A NaN
//! makes sums, averages and variances NaN; for min, max and quantile it is the greatest of all values, as in
//! DataFusion's scalar accumulators and unlike its grouped ones, whose answer depends on the order of rows.
//! Knows nothing of keys, panes or time. Fails when columns do not have the types that the plan promises.

mod edge;
mod numeric;
mod other;
mod pairs;
mod quantile;
mod rate;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, ArrowPrimitiveType, BooleanArray, PrimitiveArray},
    compute::cast,
    datatypes::*,
};

use crate::{
    error::Error,
    spec::{AggregateKind, AggregateSpec},
};

/// Partial aggregates of many groups; group ids are dense from 0.
pub trait Accumulator: Send {
    /// Folds rows, in order: row `i` into group `groups[i]`, unless `filter` is false or NULL for it. `group_count` is
    /// one more than the greatest group so far and never shrinks until the next reset; every group below it has had a row, be it
    /// one that its filter refused (DataFusion's own accumulators rely on that).
    fn update(
        &mut self,
        groups: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<(), Error>;

    /// Name and type of each state column; fixed per [`AggregateSpec`].
    fn state_fields(&self) -> Vec<FieldRef>;

    /// The state of groups `0..group_count`, one row each, in group order; then empty again.
    fn state(&mut self) -> Result<Vec<ArrayRef>, Error>;

    /// Adds partial states, in row order, which must be the canonical order: row `i` to group `groups[i]`.
    fn merge(&mut self, groups: &[u32], state: &[ArrayRef], group_count: usize) -> Result<(), Error>;

    /// The results of groups `0..group_count` in group order; then empty again.
    fn evaluate(&mut self) -> Result<ArrayRef, Error>;

    /// Bytes held, roughly.
    fn size(&self) -> usize;
}

/// The accumulator for an aggregate of the plan.
pub fn accumulator(spec: &AggregateSpec) -> Result<Box<dyn Accumulator>, Error> {
    let unsupported = |aggregate| {
        Err(Error::Unsupported {
            aggregate,
            what: spec.output.to_string(),
        })
    };
    Ok(match &spec.kind {
        AggregateKind::Count => Box::new(numeric::Count::default()),
        AggregateKind::Sum => match spec.output {
            DataType::Int64 => Box::new(numeric::Sum::<Int64Type>::new()),
            DataType::UInt64 => Box::new(numeric::Sum::<UInt64Type>::new()),
            DataType::Float64 => Box::new(numeric::FloatSum::default()),
            _ => return unsupported("sum"),
        },
        AggregateKind::Avg => Box::new(numeric::Avg::default()),
        AggregateKind::Min => match numeric::extreme(&spec.output, numeric::Keep::Least) {
            Some(accumulator) => accumulator,
            None => return unsupported("min"),
        },
        AggregateKind::Max => match numeric::extreme(&spec.output, numeric::Keep::Greatest) {
            Some(accumulator) => accumulator,
            None => return unsupported("max"),
        },
        AggregateKind::Var => Box::new(numeric::Variance::new(numeric::Spread::Variance, numeric::Of::Sample)),
        AggregateKind::Stddev => Box::new(numeric::Variance::new(numeric::Spread::Deviation, numeric::Of::Sample)),
        AggregateKind::VarPop => Box::new(numeric::Variance::new(
            numeric::Spread::Variance,
            numeric::Of::Population,
        )),
        AggregateKind::StddevPop => Box::new(numeric::Variance::new(
            numeric::Spread::Deviation,
            numeric::Of::Population,
        )),
        AggregateKind::Pairs(what) => Box::new(pairs::Pairs::new(*what)),
        AggregateKind::First => Box::new(edge::Edge::new(edge::Side::First, spec.output.clone())?),
        AggregateKind::Last => Box::new(edge::Edge::new(edge::Side::Last, spec.output.clone())?),
        AggregateKind::Quantile { q } => Box::new(quantile::Quantile::new(*q)),
        AggregateKind::Rate => Box::new(rate::Rate::new(rate::Measure::PerSecond)),
        AggregateKind::Increase => Box::new(rate::Rate::new(rate::Measure::Increase)),
        AggregateKind::Delta => Box::new(rate::Rate::new(rate::Measure::Delta)),
        AggregateKind::Other(function) => other::other(Arc::clone(function))?,
    })
}

/// Argument or state column `index` as a primitive array, cast where the plan left another numeric type.
fn primitive<T: ArrowPrimitiveType>(
    what: &'static str,
    columns: &[ArrayRef],
    index: usize,
    data_type: &DataType,
) -> Result<PrimitiveArray<T>, Error> {
    let column = columns.get(index).ok_or_else(|| Error::Shape {
        what,
        expected: format!("a column {index} of {data_type}"),
        found: format!("{} columns", columns.len()),
    })?;
    let column = if column.data_type() == data_type {
        Arc::clone(column)
    } else {
        cast(column, data_type)?
    };
    let array = column.as_any().downcast_ref::<PrimitiveArray<T>>();
    array.cloned().ok_or_else(|| Error::Shape {
        what,
        expected: data_type.to_string(),
        found: column.data_type().to_string(),
    })
}

/// Calls `fold(group, value)` for each row that has a value and passes the filter, in order.
#[inline]
fn each<T: ArrowPrimitiveType>(
    groups: &[u32],
    array: &PrimitiveArray<T>,
    filter: Option<&BooleanArray>,
    mut fold: impl FnMut(usize, T::Native),
) {
    if array.null_count() == 0 && filter.is_none() {
        for (group, value) in groups.iter().zip(array.values()) {
            fold(*group as usize, *value);
        }
        return;
    }
    for (row, group) in groups.iter().enumerate() {
        if array.is_valid(row) && passes(filter, row) {
            fold(*group as usize, array.value(row));
        }
    }
}

#[inline]
fn passes(filter: Option<&BooleanArray>, row: usize) -> bool {
    filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row))
}

/// Grows a state array to `group_count`; it never shrinks, since group ids are dense.
#[inline]
fn grow<V: Clone>(values: &mut Vec<V>, group_count: usize, empty: V) {
    if values.len() < group_count {
        values.resize(group_count, empty);
    }
}

fn field(name: &str, data_type: DataType, nullable: bool) -> FieldRef {
    Arc::new(Field::new(name, data_type, nullable))
}
