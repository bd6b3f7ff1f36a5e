//! Entity keys: rows → dense ids, and the canonical bytes by which stages agree on a key.
//!
//! A value is found once per distinct dictionary entry and batch; a row costs array look-ups and, for composite keys, one
//! probe. Ids follow first appearance and never leave this process; order and partition follow the canonical bytes.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, StringBuilder},
    compute::cast,
    datatypes::{DataType, Int32Type, Int64Type},
};
use datafusion::common::ScalarValue;
use foldhash::fast::RandomState;

use crate::error::Error;

/// No id, no code.
pub const ABSENT: u32 = u32::MAX;
/// Code of NULL in every column.
const NULL: u32 = 0;

type Map<K> = HashMap<K, u32, RandomState>;

/// Appends the canonical bytes of one row's key. Equal keys have equal bytes whether their columns are plain or
/// dictionaries; no key is a prefix of another. Of each column a tag, then: text its length and bytes; integers,
/// booleans and times eight bytes that sort as they do; anything else its type and its text.
pub fn encode_key(columns: &[ArrayRef], row: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
    for column in columns {
        encode_value(column, row, bytes)?;
    }
    Ok(())
}

/// The partition of a key by its canonical bytes: murmur2, as Java's producer partitions keys.
pub fn partition_of(encoded_key: &[u8], partitions: i32) -> i32 {
    partition_of_hash(murmur2(encoded_key), partitions)
}

pub(super) fn partition_of_hash(hash: u32, partitions: i32) -> i32 {
    (hash & 0x7fff_ffff) as i32 % partitions.max(1)
}

/// MurmurHash2, 32 bits, with the seed that Kafka's clients use.
pub(super) fn murmur2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ bytes.len() as u32;
    let (words, tail) = bytes.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    for (index, byte) in tail.iter().enumerate() {
        hash ^= u32::from(*byte) << (8 * index);
    }
    if !tail.is_empty() {
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// How a column's values are kept.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    /// Whatever casts to Int64 and back without loss.
    Long,
    Other,
}

fn kind(data_type: &DataType) -> Kind {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Kind::Text,
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::Date32
        | DataType::Date64
        | DataType::Timestamp(..) => Kind::Long,
        _ => Kind::Other,
    }
}

/// A dictionary's value type, or the type itself.
pub fn plain(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, value) => value,
        other => other,
    }
}

fn encode_value(column: &ArrayRef, row: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
    if let Some(dictionary) = column.as_any_dictionary_opt() {
        if dictionary.keys().is_null(row) {
            bytes.push(0);
            return Ok(());
        }
        let code = cast(&dictionary.keys().slice(row, 1), &DataType::Int64)?;
        let code = code.as_primitive::<Int64Type>().value(0);
        return encode_value(dictionary.values(), code as usize, bytes);
    }
    if column.is_null(row) {
        bytes.push(0);
        return Ok(());
    }
    match kind(column.data_type()) {
        Kind::Text => put_text(text(column, row), bytes),
        Kind::Long => {
            let long = cast(&column.slice(row, 1), &DataType::Int64)?;
            put_long(long.as_primitive::<Int64Type>().value(0), bytes);
        }
        Kind::Other => put_other(&ScalarValue::try_from_array(column, row)?, bytes),
    }
    Ok(())
}

fn text(column: &ArrayRef, row: usize) -> &str {
    match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row),
        DataType::LargeUtf8 => column.as_string::<i64>().value(row),
        _ => column.as_string_view().value(row),
    }
}

fn put_text(text: &str, bytes: &mut Vec<u8>) {
    bytes.push(1);
    bytes.extend_from_slice(&(text.len() as u32).to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

fn put_long(long: i64, bytes: &mut Vec<u8>) {
    bytes.push(2);
    bytes.extend_from_slice(&(long as u64 ^ (1 << 63)).to_be_bytes());
}

fn put_other(value: &ScalarValue, bytes: &mut Vec<u8>) {
    bytes.push(3);
    for part in [value.data_type().to_string(), value.to_string()] {
        put_text(&part, bytes);
    }
}

/// The distinct values of one key column; code 0 is NULL.
struct Column {
    data_type: DataType,
    kind: Kind,
    texts: Vec<Box<str>>,
    text_codes: Map<Box<str>>,
    longs: Vec<i64>,
    long_codes: Map<i64>,
    others: Vec<ScalarValue>,
    other_codes: Map<ScalarValue>,
    /// Codes of the current batch's dictionary entries.
    entries: Vec<u32>,
}

impl Column {
    fn new(data_type: &DataType) -> Self {
        let data_type = plain(data_type).clone();
        Self {
            kind: kind(&data_type),
            data_type,
            texts: Vec::new(),
            text_codes: Map::default(),
            longs: Vec::new(),
            long_codes: Map::default(),
            others: Vec::new(),
            other_codes: Map::default(),
            entries: Vec::new(),
        }
    }

    /// Appends the code of each row.
    fn codes(&mut self, array: &ArrayRef, codes: &mut Vec<u32>) -> Result<(), Error> {
        if let Some(dictionary) = array.as_dictionary_opt::<Int32Type>() {
            let values = self.plain_values(dictionary.values())?;
            let mut entries = std::mem::take(&mut self.entries);
            entries.clear();
            entries.resize(values.len(), ABSENT);
            let keys = dictionary.keys();
            for (row, key) in keys.values().iter().enumerate() {
                if keys.null_count() > 0 && keys.is_null(row) {
                    codes.push(NULL);
                    continue;
                }
                let entry = &mut entries[*key as usize];
                if *entry == ABSENT {
                    *entry = self.code(&values, *key as usize)?;
                }
                codes.push(*entry);
            }
            self.entries = entries;
            return Ok(());
        }
        let values = self.plain_values(array)?;
        codes.reserve(values.len());
        for row in 0..values.len() {
            let code = self.code(&values, row)?;
            codes.push(code);
        }
        Ok(())
    }

    /// The values in the form in which they are kept: Int64 for whatever casts to it.
    fn plain_values(&self, array: &ArrayRef) -> Result<ArrayRef, Error> {
        let array = match array.data_type() {
            DataType::Dictionary(..) => cast(array, &self.data_type)?,
            _ => Arc::clone(array),
        };
        let found = kind(array.data_type());
        if found != self.kind {
            return Err(Error::Shape {
                what: "key column",
                expected: self.data_type.to_string(),
                found: array.data_type().to_string(),
            });
        }
        Ok(match found {
            Kind::Long => cast(&array, &DataType::Int64)?,
            _ => array,
        })
    }

    fn code(&mut self, values: &ArrayRef, row: usize) -> Result<u32, Error> {
        if values.is_null(row) {
            return Ok(NULL);
        }
        Ok(match self.kind {
            Kind::Text => {
                let text = text(values, row);
                if let Some(code) = self.text_codes.get(text) {
                    return Ok(*code);
                }
                self.texts.push(text.into());
                insert(&mut self.text_codes, text.into(), self.texts.len())
            }
            Kind::Long => {
                let long = values.as_primitive::<Int64Type>().value(row);
                if let Some(code) = self.long_codes.get(&long) {
                    return Ok(*code);
                }
                self.longs.push(long);
                insert(&mut self.long_codes, long, self.longs.len())
            }
            Kind::Other => {
                let mut value = ScalarValue::try_from_array(values, row)?;
                // A slice of a list would keep the whole batch alive.
                value.compact();
                if let Some(code) = self.other_codes.get(&value) {
                    return Ok(*code);
                }
                self.others.push(value.clone());
                insert(&mut self.other_codes, value, self.others.len())
            }
        })
    }

    fn encode(&self, code: u32, bytes: &mut Vec<u8>) {
        let Some(index) = (code as usize).checked_sub(1) else {
            bytes.push(0);
            return;
        };
        match self.kind {
            Kind::Text => put_text(&self.texts[index], bytes),
            Kind::Long => put_long(self.longs[index], bytes),
            Kind::Other => put_other(&self.others[index], bytes),
        }
    }

    /// The values of these codes, in the column's plain type.
    fn array(&self, codes: impl Iterator<Item = u32>) -> Result<ArrayRef, Error> {
        let indices = codes.map(|code| (code as usize).checked_sub(1));
        let array: ArrayRef = match self.kind {
            Kind::Text => {
                let mut builder = StringBuilder::new();
                indices.for_each(|index| builder.append_option(index.map(|index| &*self.texts[index])));
                Arc::new(builder.finish())
            }
            Kind::Long => Arc::new(
                indices
                    .map(|index| index.map(|i| self.longs[i]))
                    .collect::<Int64Array>(),
            ),
            Kind::Other => {
                let null = ScalarValue::try_from(&self.data_type)?;
                let value = |index: Option<usize>| index.map_or_else(|| null.clone(), |i| self.others[i].clone());
                let values: Vec<ScalarValue> = indices.map(value).collect();
                if values.is_empty() {
                    return Ok(arrow::array::new_empty_array(&self.data_type));
                }
                ScalarValue::iter_to_array(values)?
            }
        };
        Ok(cast(&array, &self.data_type)?)
    }
}

/// Remembers a value under the code that its position, counted from 1, is.
fn insert<K: Eq + Hash>(codes: &mut Map<K>, value: K, position: usize) -> u32 {
    let code = position as u32;
    codes.insert(value, code);
    code
}

/// From the codes of a row to the key's id.
enum Table {
    None,
    One(Vec<u32>),
    Two(Map<u64>),
    Four(Map<u128>),
    Many(Map<Box<[u32]>>),
}

/// The keys of one pane set on one source partition.
pub struct Keys {
    columns: Vec<Column>,
    table: Table,
    /// Codes of key `id` at `id * columns.len()`.
    tuples: Vec<u32>,
    encoded: Vec<u8>,
    /// End of each key in `encoded`.
    ends: Vec<usize>,
    hashes: Vec<u32>,
    /// Position of each key in the order of canonical bytes; shorter than `ends` while keys are new.
    ranks: Vec<u32>,
    sorted: Vec<u32>,
    /// Codes of the current batch, one list per column.
    codes: Vec<Vec<u32>>,
}

impl Keys {
    pub fn new<'a>(types: impl Iterator<Item = &'a DataType>) -> Self {
        let columns: Vec<Column> = types.map(Column::new).collect();
        let table = match columns.len() {
            0 => Table::None,
            1 => Table::One(Vec::new()),
            2 => Table::Two(Map::default()),
            3 | 4 => Table::Four(Map::default()),
            _ => Table::Many(Map::default()),
        };
        Self {
            codes: vec![Vec::new(); columns.len()],
            columns,
            table,
            tuples: Vec::new(),
            encoded: Vec::new(),
            ends: Vec::new(),
            hashes: Vec::new(),
            ranks: Vec::new(),
            sorted: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Replaces `ids` by the id of each of `rows` rows.
    pub fn intern(&mut self, arrays: &[ArrayRef], rows: usize, ids: &mut Vec<u32>) -> Result<(), Error> {
        if arrays.len() != self.columns.len() {
            return Err(Error::Shape {
                what: "key",
                expected: format!("{} columns", self.columns.len()),
                found: format!("{} columns", arrays.len()),
            });
        }
        for ((column, array), codes) in self.columns.iter_mut().zip(arrays).zip(&mut self.codes) {
            codes.clear();
            column.codes(array, codes)?;
        }
        ids.clear();
        ids.reserve(rows);
        let codes = std::mem::take(&mut self.codes);
        match &codes[..] {
            [] => {
                let id = if self.len() == 0 { self.add(&[]) } else { 0 };
                ids.resize(rows, id);
            }
            [one] => one.iter().for_each(|code| ids.push(self.one(*code))),
            [one, two] => {
                for (one, two) in one.iter().zip(two) {
                    ids.push(self.two(*one, *two));
                }
            }
            _ => {
                let mut tuple = vec![0; codes.len()];
                for row in 0..rows {
                    for (slot, codes) in tuple.iter_mut().zip(&codes) {
                        *slot = codes[row];
                    }
                    ids.push(self.many(&tuple));
                }
            }
        }
        self.codes = codes;
        Ok(())
    }

    #[inline]
    fn one(&mut self, code: u32) -> u32 {
        if let Table::One(ids) = &mut self.table {
            if ids.len() <= code as usize {
                ids.resize(code as usize + 1, ABSENT);
            }
            if ids[code as usize] != ABSENT {
                return ids[code as usize];
            }
        }
        let id = self.add(&[code]);
        if let Table::One(ids) = &mut self.table {
            ids[code as usize] = id;
        }
        id
    }

    #[inline]
    fn two(&mut self, one: u32, two: u32) -> u32 {
        let tuple = u64::from(one) << 32 | u64::from(two);
        if let Table::Two(ids) = &self.table
            && let Some(id) = ids.get(&tuple)
        {
            return *id;
        }
        let id = self.add(&[one, two]);
        if let Table::Two(ids) = &mut self.table {
            ids.insert(tuple, id);
        }
        id
    }

    fn many(&mut self, tuple: &[u32]) -> u32 {
        let wide = |tuple: &[u32]| tuple.iter().fold(0_u128, |wide, code| wide << 32 | u128::from(*code));
        let known = match &self.table {
            Table::Four(ids) => ids.get(&wide(tuple)),
            Table::Many(ids) => ids.get(tuple),
            _ => None,
        };
        if let Some(id) = known {
            return *id;
        }
        let id = self.add(tuple);
        match &mut self.table {
            Table::Four(ids) => drop(ids.insert(wide(tuple), id)),
            Table::Many(ids) => drop(ids.insert(tuple.into(), id)),
            _ => {}
        }
        id
    }

    fn add(&mut self, tuple: &[u32]) -> u32 {
        let id = self.ends.len() as u32;
        let from = self.encoded.len();
        for (column, code) in self.columns.iter().zip(tuple) {
            column.encode(*code, &mut self.encoded);
        }
        self.tuples.extend_from_slice(tuple);
        self.ends.push(self.encoded.len());
        self.hashes.push(murmur2(&self.encoded[from..]));
        id
    }

    pub fn encoded(&self, id: u32) -> &[u8] {
        let from = (id as usize).checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.encoded[from..self.ends[id as usize]]
    }

    /// murmur2 of the canonical bytes.
    pub fn hash(&self, id: u32) -> u32 {
        self.hashes[id as usize]
    }

    /// The keys as columns, in this order.
    pub fn arrays(&self, ids: &[u32]) -> Result<Vec<ArrayRef>, Error> {
        let width = self.columns.len();
        let column = |(index, column): (usize, &Column)| {
            column.array(ids.iter().map(|id| self.tuples[*id as usize * width + index]))
        };
        self.columns.iter().enumerate().map(column).collect()
    }

    /// Position of each key in the order of canonical bytes. Only keys that are new since the last call are sorted.
    pub fn ranks(&mut self) -> &[u32] {
        if self.ranks.len() == self.len() {
            return &self.ranks;
        }
        let mut new: Vec<u32> = (self.ranks.len() as u32..self.len() as u32).collect();
        new.sort_unstable_by(|a, b| self.encoded(*a).cmp(self.encoded(*b)));
        let mut sorted = Vec::with_capacity(self.len());
        let mut old = self.sorted.iter().copied().peekable();
        for key in new {
            while let Some(before) = old.next_if(|old| self.encoded(*old) < self.encoded(key)) {
                sorted.push(before);
            }
            sorted.push(key);
        }
        sorted.extend(old);
        self.ranks = vec![0; self.len()];
        for (rank, key) in sorted.iter().enumerate() {
            self.ranks[*key as usize] = rank as u32;
        }
        self.sorted = sorted;
        &self.ranks
    }

    /// The same keys without those that `keep` refuses, and the new id of each old one.
    pub fn retain(&self, keep: impl Fn(u32) -> bool) -> Result<(Self, Vec<u32>), Error> {
        let kept: Vec<u32> = (0..self.len() as u32).filter(|id| keep(*id)).collect();
        let mut keys = Self::new(self.columns.iter().map(|column| &column.data_type));
        let mut ids = Vec::new();
        keys.intern(&self.arrays(&kept)?, kept.len(), &mut ids)?;
        let mut moved = vec![ABSENT; self.len()];
        for (old, new) in kept.iter().zip(&ids) {
            moved[*old as usize] = *new;
        }
        Ok((keys, moved))
    }

    /// Bytes held, roughly.
    pub fn size(&self) -> usize {
        let texts: usize = self
            .columns
            .iter()
            .flat_map(|c| &c.texts)
            .map(|text| 2 * text.len() + 48)
            .sum();
        texts + self.encoded.capacity() + self.len() * (48 + 8 * self.columns.len())
    }
}
