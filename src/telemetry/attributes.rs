//! Attributes, labels, tags of a row or of many: single entries as columns, and the whole map where somebody asks for it.

use arrow::datatypes::DataType;

use crate::{
    column::{AnySlot, Column, Dictionary, Map, REPEAT_BYTES_MAX, Slot},
    error::Fault,
    interner::{OUTLINE_WHOLE, Outline, outline},
    schema,
};

/// The columns that read one kind of attributes. Of equal keys the first counts.
#[derive(Default)]
pub(crate) struct Attributes {
    entries: Vec<Entry>,
    map: Slot<Map>,
    wanted: bool,
    map_wanted: bool,
    repeat_budget: usize,
}

struct Entry {
    key: Box<[u8]>,
    outline: Outline,
    column: Slot<Dictionary>,
}

impl Entry {
    #[inline(always)]
    fn is(&self, key: &[u8], outline: Outline) -> bool {
        self.outline == outline && (key.len() <= OUTLINE_WHOLE || *self.key == *key)
    }

    /// The first of equal keys counts.
    fn set(&mut self, value: Option<&[u8]>, row: usize) -> Result<(), Fault> {
        match (self.column.get(), value) {
            (Some(column), _) if column.len() > row => Ok(()),
            (Some(column), Some(value)) => column.set(row, value),
            (Some(column), None) => {
                column.set_null(row);
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }
}

impl Attributes {
    /// Asks for one entry as a column.
    pub fn bind_entry(&mut self, key: &str, output: usize) {
        let mut column = Slot::default();
        column.bind(output, &schema::dictionary());
        self.entries.push(Entry {
            key: key.as_bytes().into(),
            outline: outline(key.as_bytes()),
            column,
        });
        self.wanted = true;
    }

    /// Asks for the whole map.
    pub fn bind_map(&mut self, output: usize, data_type: &DataType) {
        self.map.bind(output, data_type);
        self.map_wanted = true;
        self.wanted = true;
    }

    /// Does any column read these attributes?
    #[inline(always)]
    pub fn wanted(&self) -> bool {
        self.wanted
    }

    pub fn slots(&mut self) -> impl Iterator<Item = &mut dyn AnySlot> {
        let entries = self
            .entries
            .iter_mut()
            .map(|entry| &mut entry.column as &mut dyn AnySlot);
        entries.chain([&mut self.map as &mut dyn AnySlot])
    }

    /// To be called before the first row of a record.
    pub fn begin_record(&mut self) {
        self.repeat_budget = REPEAT_BYTES_MAX;
    }

    /// Opens `row`; its entries follow.
    #[inline(always)]
    pub fn begin(&mut self, row: usize) {
        if let Some(map) = self.map.get() {
            map.open(row);
        }
    }

    /// Does any column read the value at this key?
    #[inline]
    pub fn reads(&self, key: &[u8]) -> bool {
        let outline = outline(key);
        self.map_wanted || self.entries.iter().any(|entry| entry.is(key, outline))
    }

    /// Takes one attribute; `None` is NULL.
    #[inline]
    pub fn add(&mut self, key: &[u8], value: Option<&[u8]>, row: usize) -> Result<(), Fault> {
        let outline = outline(key);
        for entry in &mut self.entries {
            if entry.is(key, outline) {
                entry.set(value, row)?;
            }
        }
        self.map.get().map_or(Ok(()), |map| map.entry(key, value))
    }

    /// Closes the row opened last.
    #[inline(always)]
    pub fn end(&mut self) {
        if let Some(map) = self.map.get() {
            map.close();
        }
    }

    /// Closes row `from` and repeats it up to row `to`; takes it back when there is no such row.
    pub fn end_run(&mut self, from: usize, to: usize) -> Result<(), Fault> {
        self.end();
        if from == to {
            self.take_back(from);
            return Ok(());
        }
        for entry in &mut self.entries {
            if let Some(column) = entry.column.get()
                && column.len() > from
            {
                column.repeat(to);
            }
        }
        self.map
            .get()
            .map_or(Ok(()), |map| map.repeat(to, &mut self.repeat_budget))
    }

    /// Takes back what was put for rows from `row` on.
    #[cold]
    pub fn take_back(&mut self, row: usize) {
        self.slots().for_each(|slot| slot.truncate(row));
    }
}
