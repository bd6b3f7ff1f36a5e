//! What the tests of this crate share.

use std::collections::BTreeMap;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    datatypes::{DataType, Float64Type, Int32Type, Int64Type, TimestampMillisecondType, UInt32Type, UInt64Type},
};
use proptest::prelude::ProptestConfig;

use crate::{Decoder, Format, RecordMeta, schema};

/// A row as text per column, NULL left out.
pub(crate) type Row = BTreeMap<String, String>;

/// All columns of one record's rows; or why it is rejected.
pub(crate) fn decode_one(format: Format, value: &str, record: &RecordMeta<'_>) -> Result<Vec<Row>, String> {
    let mut decoder = Decoder::new(format, schema(format), &[]).unwrap();
    let pushed = decoder.push(value.as_bytes(), record);
    let rows = rows_of(&decoder.finish().batch);
    assert_eq!(rows.len(), pushed.clone().unwrap_or(0));
    pushed.map(|_| rows).map_err(|reject| reject.reason)
}

/// A row written down.
pub(crate) fn row<const N: usize>(columns: [(&str, &str); N]) -> Row {
    columns
        .map(|(column, value)| (column.to_owned(), value.to_owned()))
        .into()
}

/// How many random cases; `PROPTEST_CASES` asks for more.
pub(crate) fn count(default: u64) -> u64 {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    cases.unwrap_or(default)
}

/// So many random cases; `PROPTEST_CASES` asks for more.
pub(crate) fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(default),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Every row of a batch.
pub(crate) fn rows_of(batch: &RecordBatch) -> Vec<Row> {
    (0..batch.num_rows())
        .map(|row| {
            let columns = batch.schema_ref().fields().iter().zip(batch.columns());
            let set = columns.filter(|(_, array)| array.is_valid(row));
            set.map(|(field, array)| (field.name().clone(), cell(array, row)))
                .collect()
        })
        .collect()
}

fn cell(array: &ArrayRef, row: usize) -> String {
    match array.data_type() {
        DataType::Dictionary(..) => {
            let array = array.as_dictionary::<Int32Type>();
            array
                .values()
                .as_string::<i32>()
                .value(array.keys().value(row) as usize)
                .to_owned()
        }
        DataType::Utf8 => array.as_string::<i32>().value(row).to_owned(),
        DataType::Float64 => format!("{:?}", array.as_primitive::<Float64Type>().value(row)),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).to_string(),
        DataType::UInt32 => array.as_primitive::<UInt32Type>().value(row).to_string(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(row).to_string(),
        DataType::Boolean => array.as_boolean().value(row).to_string(),
        DataType::Timestamp(..) => array.as_primitive::<TimestampMillisecondType>().value(row).to_string(),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            let items: Vec<_> = (0..items.len()).map(|item| cell(&items, item)).collect();
            items.join(" ")
        }
        DataType::Map(..) => {
            let entries = array.as_map().value(row);
            let (keys, values) = (entries.column(0), entries.column(1));
            let text = |index| {
                if values.is_valid(index) {
                    cell(values, index)
                } else {
                    "NULL".to_owned()
                }
            };
            let entries: Vec<_> = (0..entries.len())
                .map(|index| format!("{}={}", cell(keys, index), text(index)))
                .collect();
            entries.join(",")
        }
        other => panic!("no column has type {other}"),
    }
}

/// SplitMix64: a test that fails says its seed.
pub(crate) struct Random {
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64 <= probability
    }

    /// Bytes changed, removed, added or cut off; `None` when there is nothing to break.
    pub fn break_bytes(&mut self, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        if bytes.is_empty() {
            return None;
        }
        for _ in 0..=self.below(2) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes[at] = self.next() as u8,
                1 => bytes[at] ^= 1 << self.below(8),
                2 => drop(bytes.remove(at)),
                3 => bytes.insert(at, self.next() as u8),
                _ => bytes.truncate(at),
            }
            if bytes.is_empty() {
                break;
            }
        }
        Some(bytes)
    }
}
