//! What a format of known columns is: its columns and maps by name, and how a value becomes rows.

use crate::{attributes::Attributes, column::AnySlot, error::Fault, record::RecordMeta};

/// A format whose columns are known; values are flattened into rows.
pub(crate) trait Flatten: Send {
    /// The columns of its own, by name.
    fn slots(&mut self) -> Vec<(&'static str, &mut dyn AnySlot)>;

    /// Further columns, by name: what surrounds the rows.
    fn context_slots(&mut self) -> Vec<(&'static str, &mut dyn AnySlot)> {
        Vec::new()
    }

    /// The maps, by name.
    fn maps(&mut self) -> Vec<(&'static str, &mut Attributes)> {
        Vec::new()
    }

    /// Columns that are entries of maps.
    fn entry_columns(&self) -> &'static [EntryColumn] {
        &[]
    }

    /// Appends the rows of a value; returns the row count then. On a fault the columns may hold part of it.
    fn decode(&mut self, value: &[u8], row: usize, record: &RecordMeta<'_>) -> Result<usize, Fault>;
}

/// A column that reads an entry of a map.
pub(crate) struct EntryColumn {
    pub column: &'static str,
    pub map: &'static str,
    pub key: &'static str,
}

/// Does something to every column.
pub(crate) fn for_each_slot(format: &mut dyn Flatten, mut each: impl FnMut(&mut dyn AnySlot)) {
    format.slots().into_iter().for_each(|(_, slot)| each(slot));
    format.context_slots().into_iter().for_each(|(_, slot)| each(slot));
    for (_, map) in format.maps() {
        map.slots().for_each(&mut each);
    }
}
