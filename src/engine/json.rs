//! Arrow values as JSON, for people and programs: late rows, replayed rows, the columns of an anomaly.

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Float64Type, Int64Type, TimeUnit, TimestampMillisecondType, UInt64Type},
    util::display::array_value_to_string,
};
use serde_json::{Map, Value};

/// One value: numbers as numbers (NULL, NaN and infinities as null), times as RFC 3339, anything nested as text.
pub fn value(column: &ArrayRef, row: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    let one = column.slice(row, 1);
    let to = |data_type: &DataType| cast(&one, data_type).ok().filter(|one| one.is_valid(0));
    let found = match column.data_type() {
        DataType::Dictionary(_, plain) => return to(plain).map_or(Value::Null, |one| value(&one, 0)),
        DataType::Boolean => Some(Value::from(one.as_boolean().value(0))),
        kind if kind.is_unsigned_integer() => {
            to(&DataType::UInt64).map(|one| Value::from(one.as_primitive::<UInt64Type>().value(0)))
        }
        kind if kind.is_integer() => {
            to(&DataType::Int64).map(|one| Value::from(one.as_primitive::<Int64Type>().value(0)))
        }
        kind if kind.is_floating() || matches!(kind, DataType::Decimal128(..) | DataType::Decimal256(..)) => {
            to(&DataType::Float64).map(|one| Value::from(one.as_primitive::<Float64Type>().value(0)))
        }
        DataType::Timestamp(..) => to(&DataType::Timestamp(TimeUnit::Millisecond, None)).map(|one| {
            Value::from(protocol::time::to_rfc3339(
                one.as_primitive::<TimestampMillisecondType>().value(0),
            ))
        }),
        _ => None,
    };
    found.unwrap_or_else(|| {
        let shown = || array_value_to_string(&one, 0).unwrap_or_default();
        let text = to(&DataType::Utf8);
        Value::from(text.map_or_else(shown, |text| text.as_string::<i32>().value(0).to_owned()))
    })
}

/// One row, by column name in column order.
pub fn row(rows: &RecordBatch, row: usize) -> Map<String, Value> {
    let schema = rows.schema();
    let columns = schema.fields().iter().zip(rows.columns());
    columns
        .map(|(field, column)| (field.name().clone(), value(column, row)))
        .collect()
}
