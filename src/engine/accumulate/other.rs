//! Any DataFusion aggregate, through its own state and merge.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, UInt32Array},
    compute::take_arrays,
    datatypes::FieldRef,
};
use datafusion::{
    common::ScalarValue,
    error::DataFusionError,
    logical_expr::{Accumulator as RowAccumulator, EmitTo, GroupsAccumulator},
    physical_expr::aggregate::AggregateFunctionExpr,
};

use super::{Accumulator, passes};
use crate::error::Error;

/// The function's grouped form where it has one, else one accumulator of its own per group.
pub fn other(function: Arc<AggregateFunctionExpr>) -> Result<Box<dyn Accumulator>, Error> {
    let fields = function.state_fields()?;
    if function.groups_accumulator_supported() {
        return Ok(Box::new(Grouped {
            inner: function.create_groups_accumulator()?,
            function,
            fields,
            indices: Vec::new(),
        }));
    }
    Ok(Box::new(PerGroup {
        function,
        fields,
        groups: Vec::new(),
    }))
}

struct Grouped {
    function: Arc<AggregateFunctionExpr>,
    fields: Vec<FieldRef>,
    inner: Box<dyn GroupsAccumulator>,
    indices: Vec<usize>,
}

impl Grouped {
    fn index(&mut self, groups: &[u32]) {
        self.indices.clear();
        self.indices.extend(groups.iter().map(|group| *group as usize));
    }

    /// A fresh one after each emission: not every function is empty after `EmitTo::All`.
    fn reset(&mut self) -> Result<(), Error> {
        self.inner = self.function.create_groups_accumulator()?;
        Ok(())
    }
}

impl Accumulator for Grouped {
    fn update(
        &mut self,
        groups: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<(), Error> {
        self.index(groups);
        Ok(self.inner.update_batch(args, &self.indices, filter, group_count)?)
    }

    fn state_fields(&self) -> Vec<FieldRef> {
        self.fields.clone()
    }

    fn state(&mut self) -> Result<Vec<ArrayRef>, Error> {
        let state = self.inner.state(EmitTo::All)?;
        self.reset()?;
        Ok(state)
    }

    fn merge(&mut self, groups: &[u32], state: &[ArrayRef], group_count: usize) -> Result<(), Error> {
        self.index(groups);
        Ok(self.inner.merge_batch(state, &self.indices, group_count)?)
    }

    fn evaluate(&mut self) -> Result<ArrayRef, Error> {
        let values = self.inner.evaluate(EmitTo::All)?;
        self.reset()?;
        Ok(values)
    }

    fn size(&self) -> usize {
        self.inner.size()
    }
}

struct PerGroup {
    function: Arc<AggregateFunctionExpr>,
    fields: Vec<FieldRef>,
    groups: Vec<Box<dyn RowAccumulator>>,
}

impl PerGroup {
    fn grow(&mut self, group_count: usize) -> Result<(), Error> {
        while self.groups.len() < group_count {
            self.groups.push(self.function.create_accumulator()?);
        }
        Ok(())
    }

    /// Hands each group its rows, in order, as columns of their own.
    fn scatter(
        &mut self,
        groups: &[u32],
        columns: &[ArrayRef],
        filter: Option<&BooleanArray>,
        fold: impl Fn(&mut dyn RowAccumulator, &[ArrayRef]) -> Result<(), DataFusionError>,
    ) -> Result<(), Error> {
        let mut rows: Vec<u32> = (0..groups.len() as u32)
            .filter(|row| passes(filter, *row as usize))
            .collect();
        rows.sort_by_key(|row| groups[*row as usize]);
        for run in rows.chunk_by(|left, right| groups[*left as usize] == groups[*right as usize]) {
            let columns = take_arrays(columns, &UInt32Array::from(run.to_vec()), None)?;
            fold(self.groups[groups[run[0] as usize] as usize].as_mut(), &columns)?;
        }
        Ok(())
    }
}

impl Accumulator for PerGroup {
    fn update(
        &mut self,
        groups: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<(), Error> {
        self.grow(group_count)?;
        self.scatter(groups, args, filter, |group, args| group.update_batch(args))
    }

    fn state_fields(&self) -> Vec<FieldRef> {
        self.fields.clone()
    }

    fn state(&mut self) -> Result<Vec<ArrayRef>, Error> {
        let mut columns: Vec<Vec<ScalarValue>> = vec![Vec::with_capacity(self.groups.len()); self.fields.len()];
        for mut group in std::mem::take(&mut self.groups) {
            for (column, value) in columns.iter_mut().zip(group.state()?) {
                column.push(value);
            }
        }
        columns
            .into_iter()
            .zip(&self.fields)
            .map(|(values, field)| scalars(values, field.data_type()))
            .collect()
    }

    fn merge(&mut self, groups: &[u32], state: &[ArrayRef], group_count: usize) -> Result<(), Error> {
        self.grow(group_count)?;
        self.scatter(groups, state, None, |group, state| group.merge_batch(state))
    }

    fn evaluate(&mut self) -> Result<ArrayRef, Error> {
        let groups = std::mem::take(&mut self.groups);
        let values = groups.into_iter().map(|mut group| group.evaluate());
        let values = values.collect::<Result<Vec<_>, _>>()?;
        scalars(values, self.function.field().data_type())
    }

    fn size(&self) -> usize {
        self.groups.iter().map(|group| group.size()).sum()
    }
}

fn scalars(values: Vec<ScalarValue>, data_type: &arrow::datatypes::DataType) -> Result<ArrayRef, Error> {
    if values.is_empty() {
        return Ok(arrow::array::new_empty_array(data_type));
    }
    Ok(ScalarValue::iter_to_array(values)?)
}
