//! Columns under construction.
//!
//! A value is put at a row; rows that were passed over are NULL, so a column that a record does not touch costs nothing.
//! A record that breaks half way is taken back by cutting every column to the rows before it.

use std::{mem, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, ArrowPrimitiveType, BinaryArray, BooleanArray, BooleanBufferBuilder, DictionaryArray,
        ListArray, MapArray, PrimitiveArray, StringArray, StructArray,
    },
    buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer},
    datatypes::{ArrowNativeType, DataType, Fields, Int32Type, Int64Type, TimeUnit},
    datatypes::{TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType},
};

use crate::{error::Fault, interner::Interner};

/// What every column can do.
pub(crate) trait Column: Default {
    /// Rows that have a value or are known to be NULL.
    fn len(&self) -> usize;
    /// Forgets the rows from `rows` on.
    fn truncate(&mut self, rows: usize);
    /// The rows as an Arrow array of `data_type`; the column is empty afterwards.
    fn finish(&mut self, rows: usize, data_type: &DataType) -> ArrayRef;
    /// Changes when the meaning of dictionary codes does.
    fn generation(&self) -> u64 {
        0
    }
}

/// A column that may or may not have been asked for.
#[derive(Default)]
pub(crate) struct Slot<C> {
    column: C,
    output: Option<(usize, DataType)>,
}

impl<C: Column> Slot<C> {
    /// The column, if it was asked for.
    #[inline(always)]
    pub fn get(&mut self) -> Option<&mut C> {
        self.output.is_some().then_some(&mut self.column)
    }
}

/// A slot whatever its column's type.
pub(crate) trait AnySlot {
    /// Asks for the column, as output number `output`.
    fn bind(&mut self, output: usize, data_type: &DataType);
    fn truncate(&mut self, rows: usize);
    /// Output number, array and dictionary generation, if asked for.
    fn finish(&mut self, rows: usize) -> Option<(usize, ArrayRef, u64)>;
}

impl<C: Column> AnySlot for Slot<C> {
    fn bind(&mut self, output: usize, data_type: &DataType) {
        self.output = Some((output, data_type.clone()));
    }

    fn truncate(&mut self, rows: usize) {
        if self.column.len() > rows {
            self.column.truncate(rows);
        }
    }

    fn finish(&mut self, rows: usize) -> Option<(usize, ArrayRef, u64)> {
        let (output, data_type) = self.output.as_ref()?;
        let generation = self.column.generation();
        Some((*output, self.column.finish(rows, data_type), generation))
    }
}

/// NULL rows as ascending, disjoint runs.
#[derive(Default)]
struct Nulls {
    runs: Vec<(usize, usize)>,
}

impl Nulls {
    fn add(&mut self, from: usize, to: usize) {
        match self.runs.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ => self.runs.push((from, to)),
        }
    }

    fn truncate(&mut self, rows: usize) {
        while let Some(last) = self.runs.last_mut()
            && last.1 > rows
        {
            last.1 = rows;
            if last.0 >= rows {
                self.runs.pop();
            }
        }
    }

    fn finish(&mut self, rows: usize) -> Option<NullBuffer> {
        if self.runs.is_empty() {
            return None;
        }
        let mut bits = BooleanBufferBuilder::new(rows);
        for (from, to) in self.runs.drain(..) {
            bits.append_n(from - bits.len(), true);
            bits.append_n(to - from, false);
        }
        bits.append_n(rows - bits.len(), true);
        Some(NullBuffer::new(bits.finish()))
    }
}

/// Numbers of one width; timestamps, too.
#[derive(Default)]
pub(crate) struct Primitive<T> {
    values: Vec<T>,
    nulls: Nulls,
}

impl<T: Copy + Default> Primitive<T> {
    #[inline(always)]
    pub fn set(&mut self, row: usize, value: T) {
        if self.values.len() != row {
            self.pad(row);
        }
        self.values.push(value);
    }

    #[inline(always)]
    pub fn set_option(&mut self, row: usize, value: Option<T>) {
        if let Some(value) = value {
            self.set(row, value);
        }
    }

    /// The same value in rows `from..to`.
    pub fn fill(&mut self, from: usize, to: usize, value: T) {
        self.pad(from);
        self.values.resize(to, value);
    }

    /// NULL up to `rows`.
    pub fn pad(&mut self, rows: usize) {
        let length = self.values.len();
        debug_assert!(length <= rows, "a row is set once");
        if length < rows {
            self.nulls.add(length, rows);
            self.values.resize(rows, T::default());
        }
    }

    /// The last row again, up to `rows`.
    pub fn repeat(&mut self, rows: usize) {
        let length = self.values.len();
        if self.nulls.runs.last().is_some_and(|run| run.1 == length) {
            self.pad(rows);
        } else if let Some(last) = self.values.last().copied() {
            self.values.resize(rows, last);
        }
    }

    fn take(&mut self, rows: usize) -> (Vec<T>, Option<NullBuffer>) {
        self.pad(rows);
        let next = Vec::with_capacity(rows);
        (mem::replace(&mut self.values, next), self.nulls.finish(rows))
    }

    fn cut(&mut self, rows: usize) {
        self.values.truncate(rows);
        self.nulls.truncate(rows);
    }
}

/// The Arrow type of a native one.
pub(crate) trait Native: ArrowNativeType + Default {
    type Arrow: ArrowPrimitiveType<Native = Self>;
}

macro_rules! native {
    ($($native:ty => $arrow:ident),*) => {
        $(impl Native for $native { type Arrow = arrow::datatypes::$arrow; })*
    };
}
native!(i64 => Int64Type, i32 => Int32Type, u32 => UInt32Type, u64 => UInt64Type, f64 => Float64Type, f32 => Float32Type);

impl<T: Native> Column for Primitive<T> {
    fn len(&self) -> usize {
        self.values.len()
    }

    fn truncate(&mut self, rows: usize) {
        self.cut(rows);
    }

    fn finish(&mut self, rows: usize, data_type: &DataType) -> ArrayRef {
        let (values, nulls) = self.take(rows);
        let array = PrimitiveArray::<T::Arrow>::new(ScalarBuffer::from(values), nulls);
        match data_type {
            DataType::Timestamp(..) => as_timestamps(&array, data_type),
            _ => Arc::new(array),
        }
    }
}

/// Takes 64-bit integers for timestamps of their unit, without copying.
fn as_timestamps(array: &dyn Array, data_type: &DataType) -> ArrayRef {
    let integers = array.as_any().downcast_ref::<PrimitiveArray<Int64Type>>();
    let (Some(integers), DataType::Timestamp(unit, zone)) = (integers, data_type) else {
        unreachable!("only 64-bit integers are bound to timestamps");
    };
    let zone = zone.clone();
    match unit {
        TimeUnit::Second => Arc::new(
            integers
                .reinterpret_cast::<TimestampSecondType>()
                .with_timezone_opt(zone),
        ),
        TimeUnit::Millisecond => Arc::new(
            integers
                .reinterpret_cast::<TimestampMillisecondType>()
                .with_timezone_opt(zone),
        ),
        TimeUnit::Microsecond => Arc::new(
            integers
                .reinterpret_cast::<TimestampMicrosecondType>()
                .with_timezone_opt(zone),
        ),
        TimeUnit::Nanosecond => Arc::new(
            integers
                .reinterpret_cast::<TimestampNanosecondType>()
                .with_timezone_opt(zone),
        ),
    }
}

/// True and false.
#[derive(Default)]
pub(crate) struct Booleans(Primitive<bool>);

impl Booleans {
    pub fn set(&mut self, row: usize, value: bool) {
        self.0.set(row, value);
    }

    pub fn fill(&mut self, from: usize, to: usize, value: bool) {
        self.0.fill(from, to, value);
    }
}

impl Column for Booleans {
    fn len(&self) -> usize {
        self.0.values.len()
    }

    fn truncate(&mut self, rows: usize) {
        self.0.cut(rows);
    }

    fn finish(&mut self, rows: usize, _: &DataType) -> ArrayRef {
        let (values, nulls) = self.0.take(rows);
        Arc::new(BooleanArray::new(BooleanBuffer::from(values), nulls))
    }
}

/// Strings as codes of a kept dictionary.
#[derive(Default)]
pub(crate) struct Dictionary {
    codes: Primitive<i32>,
    interner: Interner,
}

impl Dictionary {
    #[inline(always)]
    pub fn set(&mut self, row: usize, string: &[u8]) -> Result<(), Fault> {
        let code = self.interner.intern(string)?;
        self.codes.set(row, code);
        Ok(())
    }

    /// The same string in rows `from..to`; nothing, and so NULL, for an empty one.
    pub fn fill_unless_empty(&mut self, from: usize, to: usize, string: &[u8]) -> Result<(), Fault> {
        if !string.is_empty() {
            let code = self.interner.intern(string)?;
            self.codes.fill(from, to, code);
        }
        Ok(())
    }

    pub fn set_null(&mut self, row: usize) {
        self.codes.pad(row + 1);
    }

    pub fn repeat(&mut self, rows: usize) {
        self.codes.repeat(rows);
    }
}

impl Column for Dictionary {
    fn len(&self) -> usize {
        self.codes.values.len()
    }

    fn truncate(&mut self, rows: usize) {
        self.codes.cut(rows);
    }

    fn finish(&mut self, rows: usize, _: &DataType) -> ArrayRef {
        let (codes, nulls) = self.codes.take(rows);
        let keys = PrimitiveArray::<Int32Type>::new(ScalarBuffer::from(codes), nulls);
        let array = DictionaryArray::new(keys, self.interner.array());
        self.interner.end_batch(rows);
        Arc::new(array)
    }

    fn generation(&self) -> u64 {
        self.interner.generation()
    }
}

/// Byte strings one after another.
#[derive(Default)]
struct Bytes {
    ends: Vec<i32>,
    bytes: Vec<u8>,
}

impl Bytes {
    fn push(&mut self, value: &[u8]) -> Result<(), Fault> {
        let end = self.end_after(value.len())?;
        self.bytes.extend_from_slice(value);
        self.ends.push(end);
        Ok(())
    }

    /// Where a string of `length` bytes would end; an error when offsets cannot say it.
    fn end_after(&self, length: usize) -> Result<i32, Fault> {
        i32::try_from(self.bytes.len() + length).map_err(|_| too_large())
    }

    fn get(&self, index: usize) -> &[u8] {
        &self.bytes[self.start(index)..self.ends[index] as usize]
    }

    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |previous| self.ends[previous] as usize)
    }

    /// Bytes of strings `from..to`.
    fn size(&self, from: usize, to: usize) -> usize {
        self.start(to) - self.start(from)
    }

    /// Empty strings up to `count`.
    fn pad(&mut self, count: usize) {
        self.ends.resize(count, self.bytes.len() as i32);
    }

    /// Strings `from..to` once more.
    fn repeat(&mut self, from: usize, to: usize) -> Result<(), Fault> {
        let (start, end) = (self.start(from), self.start(to));
        let shift = self.bytes.len() - start;
        self.end_after(end - start)?;
        self.bytes.extend_from_within(start..end);
        for index in from..to {
            self.ends.push(self.ends[index] + shift as i32);
        }
        Ok(())
    }

    fn truncate(&mut self, count: usize) {
        self.ends.truncate(count);
        self.bytes.truncate(self.start(count));
    }

    fn take(&mut self) -> (OffsetBuffer<i32>, Buffer) {
        let offsets = offsets(&mut self.ends);
        let next = Vec::with_capacity(self.bytes.len());
        (offsets, Buffer::from(mem::replace(&mut self.bytes, next)))
    }
}

#[cold]
fn too_large() -> Fault {
    Fault::new("the strings of one column exceed 2 GiB in a batch")
}

fn offsets(ends: &mut Vec<i32>) -> OffsetBuffer<i32> {
    let mut offsets = Vec::with_capacity(ends.len() + 1);
    offsets.push(0);
    offsets.append(ends);
    OffsetBuffer::new(ScalarBuffer::from(offsets))
}

/// Strings that hardly come twice: ids, log lines; also bytes, where the type says so.
#[derive(Default)]
pub(crate) struct Text {
    strings: Bytes,
    nulls: Nulls,
}

impl Text {
    /// Puts a string; an error when it is not UTF-8.
    pub fn set(&mut self, row: usize, string: &[u8]) -> Result<(), Fault> {
        std::str::from_utf8(string).map_err(|_| Fault::at("a string is not UTF-8", string))?;
        self.set_bytes(row, string)
    }

    /// Puts bytes, for a column of type BYTES, or what is known to be UTF-8.
    pub fn set_bytes(&mut self, row: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.pad(row);
        self.strings.push(bytes)
    }

    /// Puts bytes as hexadecimal digits; nothing, and so NULL, where there are none.
    pub fn set_hex(&mut self, row: usize, bytes: &[u8]) -> Result<(), Fault> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        if bytes.is_empty() {
            return Ok(());
        }
        self.pad(row);
        let end = self.strings.end_after(bytes.len() * 2)?;
        for byte in bytes {
            let pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
            self.strings.bytes.extend_from_slice(&pair);
        }
        self.strings.ends.push(end);
        Ok(())
    }

    pub fn repeat(&mut self, rows: usize) -> Result<(), Fault> {
        let length = self.len();
        if length == 0 || self.nulls.runs.last().is_some_and(|run| run.1 == length) {
            self.pad(rows);
            return Ok(());
        }
        (length..rows).try_for_each(|_| self.strings.repeat(length - 1, length))
    }

    fn pad(&mut self, rows: usize) {
        let length = self.len();
        if length < rows {
            self.nulls.add(length, rows);
            self.strings.pad(rows);
        }
    }
}

impl Column for Text {
    fn len(&self) -> usize {
        self.strings.ends.len()
    }

    fn truncate(&mut self, rows: usize) {
        self.strings.truncate(rows);
        self.nulls.truncate(rows);
    }

    fn finish(&mut self, rows: usize, data_type: &DataType) -> ArrayRef {
        self.pad(rows);
        let (offsets, bytes) = self.strings.take();
        let nulls = self.nulls.finish(rows);
        match data_type {
            DataType::Binary => Arc::new(BinaryArray::new(offsets, bytes, nulls)),
            _ => Arc::new(StringArray::new(offsets, bytes, nulls)),
        }
    }
}

/// String to string. Of equal keys in one row the first counts, as the OpenTelemetry Collector looks them up.
///
/// A row is opened, filled and closed; an open row is taken back by `truncate`.
#[derive(Default)]
pub(crate) struct Map {
    /// Entry count at the end of each closed row.
    ends: Vec<i32>,
    nulls: Nulls,
    keys: Bytes,
    values: Bytes,
    value_nulls: Nulls,
}

/// Bytes of one record's maps that may be copied into further rows of it.
pub(crate) const REPEAT_BYTES_MAX: usize = 256 << 20;
/// Entries of a row up to which a key is looked for by walking them.
const WALK_MAX: usize = 32;

impl Map {
    /// Rows before `row` that were not set are NULL.
    pub fn open(&mut self, row: usize) {
        let length = self.ends.len();
        if length < row {
            self.nulls.add(length, row);
            self.ends.resize(row, self.keys.ends.len() as i32);
        }
    }

    pub fn entry(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), Fault> {
        if let Some(value) = value {
            std::str::from_utf8(value).map_err(|_| Fault::at("a string is not UTF-8", value))?;
        }
        let from = self.row_start(self.ends.len());
        let index = self.keys.ends.len();
        if index - from < WALK_MAX && (from..index).any(|known| self.keys.get(known) == key) {
            return Ok(());
        }
        std::str::from_utf8(key).map_err(|_| Fault::at("a key is not UTF-8", key))?;
        self.keys.push(key)?;
        match value {
            Some(value) => self.values.push(value),
            None => {
                self.value_nulls.add(index, index + 1);
                self.values.push(&[])
            }
        }
    }

    pub fn close(&mut self) {
        let from = self.row_start(self.ends.len());
        if self.keys.ends.len() - from > WALK_MAX {
            self.drop_repeated_keys(from);
        }
        self.ends.push(self.keys.ends.len() as i32);
    }

    /// The last row again, up to `rows`. What is copied is taken from `budget`: a few bytes of a record must not become
    /// gigabytes.
    pub fn repeat(&mut self, rows: usize, budget: &mut usize) -> Result<(), Fault> {
        let length = self.ends.len();
        let Some(last) = length.checked_sub(1) else {
            return Ok(());
        };
        let (from, to) = (self.row_start(last), self.row_start(length));
        let row_bytes = self.keys.size(from, to) + self.values.size(from, to) + (to - from) * 8;
        *budget = row_bytes
            .checked_mul(rows.saturating_sub(length))
            .and_then(|bytes| budget.checked_sub(bytes))
            .ok_or_else(|| Fault::new("a map of it would be repeated in too many rows"))?;
        let null_values: Vec<_> = (from..to).map(|index| self.value_is_null(index)).collect();
        for _ in length..rows {
            let start = self.keys.ends.len();
            self.keys.repeat(from, to)?;
            self.values.repeat(from, to)?;
            for (index, null) in null_values.iter().enumerate() {
                if *null {
                    self.value_nulls.add(start + index, start + index + 1);
                }
            }
            self.ends.push(self.keys.ends.len() as i32);
        }
        Ok(())
    }

    fn row_start(&self, row: usize) -> usize {
        row.checked_sub(1).map_or(0, |previous| self.ends[previous] as usize)
    }

    fn value_is_null(&self, index: usize) -> bool {
        let run = self.value_nulls.runs.partition_point(|run| run.1 <= index);
        self.value_nulls.runs.get(run).is_some_and(|run| run.0 <= index)
    }

    /// For rows of many entries, where walking them for every entry would be quadratic.
    #[cold]
    fn drop_repeated_keys(&mut self, from: usize) {
        let entries: Vec<_> = (from..self.keys.ends.len())
            .map(|index| {
                let value = (!self.value_is_null(index)).then(|| self.values.get(index).to_vec());
                (self.keys.get(index).to_vec(), value)
            })
            .collect();
        self.cut_entries(from);
        let mut seen = std::collections::HashSet::new();
        for (key, value) in &entries {
            if !seen.insert(key) {
                continue;
            }
            let index = self.keys.ends.len();
            let pushed = self
                .keys
                .push(key)
                .and_then(|()| self.values.push(value.as_deref().unwrap_or_default()));
            pushed.expect("the same bytes were held before");
            if value.is_none() {
                self.value_nulls.add(index, index + 1);
            }
        }
    }

    fn cut_entries(&mut self, entries: usize) {
        self.keys.truncate(entries);
        self.values.truncate(entries);
        self.value_nulls.truncate(entries);
    }
}

impl Column for Map {
    /// One more than the closed rows when a row is open, so that truncation takes it back.
    fn len(&self) -> usize {
        let closed = self.ends.len();
        closed + usize::from(self.keys.ends.len() > self.row_start(closed))
    }

    fn truncate(&mut self, rows: usize) {
        self.ends.truncate(rows);
        self.nulls.truncate(rows);
        self.cut_entries(self.row_start(self.ends.len()));
    }

    fn finish(&mut self, rows: usize, data_type: &DataType) -> ArrayRef {
        self.open(rows);
        let entry_count = self.keys.ends.len();
        let (key_offsets, key_bytes) = self.keys.take();
        let (value_offsets, value_bytes) = self.values.take();
        let keys = StringArray::new(key_offsets, key_bytes, None);
        let values = StringArray::new(value_offsets, value_bytes, self.value_nulls.finish(entry_count));
        let DataType::Map(entries, sorted) = data_type else {
            unreachable!("maps are bound to map types only");
        };
        let DataType::Struct(fields) = entries.data_type() else {
            unreachable!("the entries of a map are a struct");
        };
        let fields: Fields = fields.clone();
        let pairs = StructArray::new(fields, vec![Arc::new(keys), Arc::new(values)], None);
        let nulls = self.nulls.finish(rows);
        Arc::new(MapArray::new(
            Arc::clone(entries),
            offsets(&mut self.ends),
            pairs,
            nulls,
            *sorted,
        ))
    }
}

/// Lists of numbers.
#[derive(Default)]
pub(crate) struct Lists<T> {
    ends: Vec<i32>,
    values: Vec<T>,
    nulls: Nulls,
}

impl<T: Native> Lists<T> {
    /// Puts a list of what `fill` appends.
    pub fn set(&mut self, row: usize, fill: impl FnOnce(&mut Vec<T>) -> Result<(), Fault>) -> Result<(), Fault> {
        self.pad(row);
        fill(&mut self.values)?;
        let end = i32::try_from(self.values.len()).map_err(|_| too_large())?;
        self.ends.push(end);
        Ok(())
    }

    fn pad(&mut self, rows: usize) {
        let length = self.ends.len();
        if length < rows {
            self.nulls.add(length, rows);
            self.ends.resize(rows, self.ends.last().copied().unwrap_or(0));
        }
    }
}

impl<T: Native> Column for Lists<T> {
    /// One more than the lists when values of an unfinished one are held, so that truncation takes them back.
    fn len(&self) -> usize {
        let held = self.ends.last().map_or(0, |end| *end as usize);
        self.ends.len() + usize::from(self.values.len() > held)
    }

    fn truncate(&mut self, rows: usize) {
        self.ends.truncate(rows);
        self.nulls.truncate(rows);
        let held = self.ends.last().map_or(0, |end| *end as usize);
        self.values.truncate(held);
    }

    fn finish(&mut self, rows: usize, data_type: &DataType) -> ArrayRef {
        self.pad(rows);
        let DataType::List(item) = data_type else {
            unreachable!("lists are bound to list types only");
        };
        let values = PrimitiveArray::<T::Arrow>::new(ScalarBuffer::from(mem::take(&mut self.values)), None);
        let nulls = self.nulls.finish(rows);
        Arc::new(ListArray::new(
            Arc::clone(item),
            offsets(&mut self.ends),
            Arc::new(values),
            nulls,
        ))
    }
}

/// A column whose type is known at run time only: declared ones, and those read from the record.
pub(crate) enum AnyColumn {
    Dictionary(Dictionary),
    Text(Text),
    Bytes(Text),
    Int64(Primitive<i64>),
    Int32(Primitive<i32>),
    Float64(Primitive<f64>),
    Float32(Primitive<f32>),
    Boolean(Booleans),
    Timestamp(Primitive<i64>, TimeUnit),
    Map(Map),
}

/// Does the same for whichever column it is.
macro_rules! whichever {
    ($column:expr, $name:ident => $do:expr) => {
        match $column {
            AnyColumn::Dictionary($name) => $do,
            AnyColumn::Text($name) | AnyColumn::Bytes($name) => $do,
            AnyColumn::Int64($name) | AnyColumn::Timestamp($name, _) => $do,
            AnyColumn::Int32($name) => $do,
            AnyColumn::Float64($name) => $do,
            AnyColumn::Float32($name) => $do,
            AnyColumn::Boolean($name) => $do,
            AnyColumn::Map($name) => $do,
        }
    };
}

impl AnyColumn {
    /// A column for values of `data_type`, if there is one.
    pub fn new(data_type: &DataType) -> Option<Self> {
        Some(match data_type {
            DataType::Dictionary(..) if *data_type == crate::schema::dictionary() => {
                Self::Dictionary(Dictionary::default())
            }
            DataType::Utf8 => Self::Text(Text::default()),
            DataType::Binary => Self::Bytes(Text::default()),
            DataType::Int64 => Self::Int64(Primitive::default()),
            DataType::Int32 => Self::Int32(Primitive::default()),
            DataType::Float64 => Self::Float64(Primitive::default()),
            DataType::Float32 => Self::Float32(Primitive::default()),
            DataType::Boolean => Self::Boolean(Booleans::default()),
            DataType::Timestamp(unit, _) => Self::Timestamp(Primitive::default(), *unit),
            DataType::Map(entries, _) if is_string_map(entries.data_type()) => Self::Map(Map::default()),
            _ => return None,
        })
    }

    #[inline]
    pub fn len(&self) -> usize {
        whichever!(self, column => column.len())
    }

    #[inline]
    pub fn truncate(&mut self, rows: usize) {
        if self.len() > rows {
            whichever!(self, column => column.truncate(rows));
        }
    }

    pub fn finish(&mut self, rows: usize, data_type: &DataType) -> (ArrayRef, u64) {
        let generation = whichever!(self, column => column.generation());
        (whichever!(self, column => column.finish(rows, data_type)), generation)
    }
}

fn is_string_map(entries: &DataType) -> bool {
    let DataType::Struct(fields) = entries else {
        return false;
    };
    fields.len() == 2 && fields.iter().all(|field| *field.data_type() == DataType::Utf8)
}
