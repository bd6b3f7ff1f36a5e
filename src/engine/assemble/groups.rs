//! The groups of a ring: every key that its panes hold, by a dense number.

use std::collections::HashMap;

use arrow::{
    array::ArrayRef,
    datatypes::FieldRef,
    row::{OwnedRow, RowConverter, SortField},
};

use super::{as_type, plain};
use crate::Error;

/// Keys by number, and numbers by key.
pub(super) struct Groups {
    converter: RowConverter,
    fields: Vec<FieldRef>,
    ids: HashMap<Box<[u8]>, u32, foldhash::fast::RandomState>,
    keys: Vec<OwnedRow>,
    /// Numbers in the order of their keys, but for those that have come since it was last asked for.
    order: Vec<u32>,
}

impl Groups {
    pub fn new(fields: &[FieldRef]) -> Result<Self, Error> {
        let sorts = fields.iter().map(|field| SortField::new(plain(field.data_type())));
        Ok(Self {
            converter: RowConverter::new(sorts.collect())?,
            fields: fields.to_vec(),
            ids: HashMap::default(),
            keys: Vec::new(),
            order: Vec::new(),
        })
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn key(&self, number: u32) -> &OwnedRow {
        &self.keys[number as usize]
    }

    /// Key columns as they are compared: dictionaries of different records number the same text differently.
    pub fn plain(&self, columns: &[ArrayRef]) -> Result<Vec<ArrayRef>, Error> {
        let columns = columns.iter().zip(&self.fields);
        columns
            .map(|(column, field)| as_type(column, &plain(field.data_type())))
            .collect()
    }

    /// The number of each of these rows; keys not seen before get the next ones.
    pub fn numbers(&mut self, columns: &[ArrayRef], rows: usize) -> Result<Vec<u32>, Error> {
        // Without key columns the converter sees no rows: all of them are of the one group there is.
        if columns.is_empty() {
            let nobody = self.converter.parser().parse(&[]).owned();
            return Ok(vec![self.number(&[], || nobody); rows]);
        }
        let converted = self.converter.convert_columns(&self.plain(columns)?)?;
        Ok(converted
            .iter()
            .map(|row| self.number(row.as_ref(), || row.owned()))
            .collect())
    }

    fn number(&mut self, bytes: &[u8], key: impl FnOnce() -> OwnedRow) -> u32 {
        if let Some(number) = self.ids.get(bytes) {
            return *number;
        }
        let number = self.keys.len() as u32;
        self.ids.insert(bytes.into(), number);
        self.keys.push(key());
        number
    }

    /// All numbers, in the order of their keys.
    pub fn order(&mut self) -> &[u32] {
        if self.order.len() < self.keys.len() {
            let keys = &self.keys;
            self.order.extend(self.order.len() as u32..keys.len() as u32);
            // A stable sort finds the part that is in order.
            self.order.sort_by(|a, b| keys[*a as usize].cmp(&keys[*b as usize]));
        }
        &self.order
    }

    /// Keys as plain columns.
    pub fn columns<'a>(&self, keys: impl Iterator<Item = &'a OwnedRow>) -> Result<Vec<ArrayRef>, Error> {
        Ok(self.converter.convert_rows(keys.map(|key| key.row()))?)
    }

    /// Forgets all but these, which get new numbers in this order.
    pub fn retain(&mut self, numbers: &[u32]) {
        self.keys = numbers.iter().map(|number| self.key(*number).clone()).collect();
        let keys = self.keys.iter().map(|key| key.as_ref().into());
        self.ids = keys.zip(0..).collect();
        self.order.clear();
    }
}
