//! The first and the last value of a window, by event time. NULL is no value; of equal times the least value is first and
//! the greatest last, so that the answer does not depend on the order of rows.

use std::{cmp::Ordering, mem, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, BooleanArray, Int64Array, new_null_array},
    compute::{cast, concat, take},
    datatypes::*,
    row::{OwnedRow, RowConverter, SortField},
};

use super::{Accumulator, field, passes, primitive};
use crate::{error::Error, panes::plain};

/// Which end.
#[derive(Clone, Copy)]
pub enum Side {
    First,
    Last,
}

pub struct Edge {
    side: Side,
    output: DataType,
    /// Without its dictionary.
    data_type: DataType,
    /// Orders values of any type.
    converter: RowConverter,
    groups: Vec<Option<(i64, OwnedRow)>>,
}

impl Edge {
    pub fn new(side: Side, output: DataType) -> Result<Self, Error> {
        let data_type = plain(&output).clone();
        Ok(Self {
            side,
            converter: RowConverter::new(vec![SortField::new(data_type.clone())])?,
            data_type,
            output,
            groups: Vec::new(),
        })
    }

    fn add(
        &mut self,
        groups: &[u32],
        columns: &[ArrayRef],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<(), Error> {
        if self.groups.len() < group_count {
            self.groups.resize(group_count, None);
        }
        let shape = || Error::Shape {
            what: "first or last",
            expected: "value and event time".into(),
            found: format!("{} columns", columns.len()),
        };
        let values = cast(columns.first().ok_or_else(shape)?, &self.data_type)?;
        let times = cast(columns.get(1).ok_or_else(shape)?, &DataType::Int64)?;
        let times = primitive::<Int64Type>("event time", &[times], 0, &DataType::Int64)?;
        let rows = self.converter.convert_columns(&[Arc::clone(&values)])?;
        for (row, group) in groups.iter().enumerate() {
            if values.is_null(row) || times.is_null(row) || !passes(filter, row) {
                continue;
            }
            let (time, value) = (times.value(row), rows.row(row));
            let best = &mut self.groups[*group as usize];
            let order = |(best_time, best): &(i64, OwnedRow)| time.cmp(best_time).then_with(|| value.cmp(&best.row()));
            let wins = match (self.side, best.as_ref().map(order)) {
                (_, None) => true,
                (Side::First, Some(order)) => order == Ordering::Less,
                (Side::Last, Some(order)) => order == Ordering::Greater,
            };
            if wins {
                *best = Some((time, value.owned()));
            }
        }
        Ok(())
    }

    /// The values of all groups, NULL where there is none.
    fn values(&self) -> Result<ArrayRef, Error> {
        let found: Vec<&OwnedRow> = self.groups.iter().flatten().map(|(_, value)| value).collect();
        let mut next = 0u32;
        let nothing = found.len() as u32;
        let at: arrow::array::UInt32Array = self
            .groups
            .iter()
            .map(|group| {
                let at = if group.is_some() { next } else { nothing };
                next += u32::from(group.is_some());
                at
            })
            .collect::<Vec<_>>()
            .into();
        let converted = self.converter.convert_rows(found.iter().map(|row| row.row()))?;
        let null = new_null_array(&self.data_type, 1);
        let pool = match converted.first() {
            Some(values) => concat(&[values, &null])?,
            None => null,
        };
        Ok(take(&pool, &at, None)?)
    }
}

impl Accumulator for Edge {
    fn update(
        &mut self,
        groups: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<(), Error> {
        self.add(groups, args, filter, group_count)
    }

    fn state_fields(&self) -> Vec<FieldRef> {
        vec![
            field("value", self.data_type.clone(), true),
            field("time", DataType::Int64, true),
        ]
    }

    fn state(&mut self) -> Result<Vec<ArrayRef>, Error> {
        let values = self.values()?;
        let groups = mem::take(&mut self.groups);
        let times: Int64Array = groups.iter().map(|best| best.as_ref().map(|(time, _)| *time)).collect();
        Ok(vec![values, Arc::new(times)])
    }

    fn merge(&mut self, groups: &[u32], state: &[ArrayRef], group_count: usize) -> Result<(), Error> {
        self.add(groups, state, None, group_count)
    }

    fn evaluate(&mut self) -> Result<ArrayRef, Error> {
        let values = self.values()?;
        self.groups.clear();
        Ok(cast(&values, &self.output)?)
    }

    fn size(&self) -> usize {
        let row = size_of::<Option<(i64, OwnedRow)>>() + 16;
        self.groups.capacity() * row
    }
}
