//! Rows as JSON: what sinks and replays write.
//!
//! Numbers are JSON numbers, NULL is `null`, times are RFC 3339 in UTC. JSON has no NaN and no infinities: they are the
//! strings `"NaN"`, `"Infinity"` and `"-Infinity"`.

use std::{io::Write, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, StructArray,
        UInt64Array,
    },
    compute::cast,
    datatypes::{DataType, Fields, Int64Type, TimeUnit},
    util::display::{ArrayFormatter, FormatOptions},
};

/// A column, ready to be written value by value.
enum Column<'a> {
    Bool(BooleanArray),
    Signed(Int64Array),
    Unsigned(UInt64Array),
    Float(Float64Array),
    Text(StringArray),
    Time(Int64Array, TimeUnit, Written),
    Object(&'a StructArray, Vec<(Vec<u8>, Column<'a>)>),
    Shown(ArrayRef, ArrayFormatter<'a>),
}

/// The last time written, as text: rows of a window have the same bounds.
#[derive(Default)]
struct Written {
    value: Option<i64>,
    text: Vec<u8>,
}

impl<'a> Column<'a> {
    fn new(array: &'a ArrayRef) -> Self {
        const OPTIONS: &FormatOptions<'static> = &FormatOptions::new();
        let to = |data_type: &DataType| cast(array, data_type).ok();
        let text = |array: ArrayRef| array.as_string_opt::<i32>().cloned().map(Self::Text);
        let found = match array.data_type() {
            DataType::Boolean => array.as_boolean_opt().cloned().map(Self::Bool),
            kind if kind.is_unsigned_integer() => {
                to(&DataType::UInt64).and_then(|array| array.as_primitive_opt().cloned().map(Self::Unsigned))
            }
            kind if kind.is_integer() => {
                to(&DataType::Int64).and_then(|array| array.as_primitive_opt().cloned().map(Self::Signed))
            }
            kind if kind.is_floating() || matches!(kind, DataType::Decimal128(..) | DataType::Decimal256(..)) => {
                to(&DataType::Float64).and_then(|array| array.as_primitive_opt().cloned().map(Self::Float))
            }
            DataType::Timestamp(unit, _) => to(&DataType::Int64).and_then(|array| {
                Some(Self::Time(
                    array.as_primitive_opt::<Int64Type>()?.clone(),
                    *unit,
                    Written::default(),
                ))
            }),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => to(&DataType::Utf8).and_then(text),
            DataType::Dictionary(_, value)
                if matches!(**value, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) =>
            {
                to(&DataType::Utf8).and_then(text)
            }
            DataType::Struct(fields) => array
                .as_struct_opt()
                .map(|object| Self::Object(object, members(named(fields, object.columns())))),
            DataType::Null => Some(Self::Text(StringArray::new_null(array.len()))),
            _ => None,
        };
        found
            .or_else(|| {
                let shown = ArrayFormatter::try_new(array, OPTIONS).ok()?;
                Some(Self::Shown(Arc::clone(array), shown))
            })
            .unwrap_or_else(|| Self::Text(StringArray::new_null(array.len())))
    }

    fn write(&mut self, row: usize, out: &mut Vec<u8>) {
        let null = match self {
            Self::Bool(array) => array.is_null(row),
            Self::Signed(array) | Self::Time(array, ..) => array.is_null(row),
            Self::Unsigned(array) => array.is_null(row),
            Self::Float(array) => array.is_null(row),
            Self::Text(array) => array.is_null(row),
            Self::Object(array, _) => array.is_null(row),
            Self::Shown(array, _) => array.is_null(row),
        };
        if null {
            out.extend_from_slice(b"null");
            return;
        }
        match self {
            Self::Bool(array) => put(out, &array.value(row)),
            Self::Signed(array) => put(out, &array.value(row)),
            Self::Unsigned(array) => put(out, &array.value(row)),
            Self::Float(array) => float(out, array.value(row)),
            Self::Text(array) => put(out, array.value(row)),
            Self::Time(array, unit, written) => {
                let value = array.value(row);
                if written.value != Some(value) {
                    written.value = Some(value);
                    written.text.clear();
                    time(&mut written.text, value, *unit);
                }
                out.extend_from_slice(&written.text);
            }
            Self::Object(_, members) => object(members, row, out),
            Self::Shown(_, shown) => put(out, &shown.value(row).to_string()),
        }
    }
}

fn put<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("a scalar serialises, and a Vec takes all");
}

fn float(out: &mut Vec<u8>, value: f64) {
    match value {
        value if value.is_nan() => out.extend_from_slice(b"\"NaN\""),
        f64::INFINITY => out.extend_from_slice(b"\"Infinity\""),
        f64::NEG_INFINITY => out.extend_from_slice(b"\"-Infinity\""),
        value => put(out, &value),
    }
}

/// RFC 3339 in UTC, with the decimals of the unit but three at least.
fn time(out: &mut Vec<u8>, value: i64, unit: TimeUnit) {
    let stamp = match unit {
        TimeUnit::Second => jiff::Timestamp::from_second(value),
        TimeUnit::Millisecond => jiff::Timestamp::from_millisecond(value),
        TimeUnit::Microsecond => jiff::Timestamp::from_microsecond(value),
        TimeUnit::Nanosecond => jiff::Timestamp::from_nanosecond(i128::from(value)),
    };
    let done = match (stamp, unit) {
        (Err(_), _) => write!(out, "null"),
        (Ok(stamp), TimeUnit::Second | TimeUnit::Millisecond) => write!(out, "\"{stamp:.3}\""),
        (Ok(stamp), TimeUnit::Microsecond) => write!(out, "\"{stamp:.6}\""),
        (Ok(stamp), TimeUnit::Nanosecond) => write!(out, "\"{stamp:.9}\""),
    };
    done.expect("a Vec takes all");
}

/// Writes the rows of a batch, each a JSON object with its members in the order of the columns.
pub struct RowWriter<'a>(Vec<(Vec<u8>, Column<'a>)>);

impl<'a> RowWriter<'a> {
    pub fn new(rows: &'a RecordBatch) -> Self {
        Self::of(named(rows.schema_ref().fields(), rows.columns()))
    }

    /// Members of these names and columns.
    pub fn of<'n>(columns: impl Iterator<Item = (&'n str, &'a ArrayRef)>) -> Self {
        Self(members(columns))
    }

    pub fn write(&mut self, row: usize, out: &mut Vec<u8>) {
        object(&mut self.0, row, out);
    }
}

fn named<'n, 'a>(fields: &'n Fields, columns: &'a [ArrayRef]) -> impl Iterator<Item = (&'n str, &'a ArrayRef)> {
    fields.iter().map(|field| field.name().as_str()).zip(columns)
}

/// Columns with what stands before their values.
fn members<'n, 'a>(columns: impl Iterator<Item = (&'n str, &'a ArrayRef)>) -> Vec<(Vec<u8>, Column<'a>)> {
    let columns = columns.enumerate().map(|(index, (name, array))| {
        let mut before = vec![if index == 0 { b'{' } else { b',' }];
        put(&mut before, name);
        before.push(b':');
        (before, Column::new(array))
    });
    columns.collect()
}

fn object(members: &mut [(Vec<u8>, Column<'_>)], row: usize, out: &mut Vec<u8>) {
    for (name, column) in &mut *members {
        out.extend_from_slice(name);
        column.write(row, out);
    }
    out.extend_from_slice(if members.is_empty() { b"{}" } else { b"}" });
}

/// One line per row.
pub fn write_rows(rows: &RecordBatch, out: &mut Vec<u8>) {
    let mut writer = RowWriter::new(rows);
    for row in 0..rows.num_rows() {
        writer.write(row, out);
        out.push(b'\n');
    }
}
