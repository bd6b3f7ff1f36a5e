//! Arrow values as JSON: what anomalies, late rows and replayed rows say to people and programs.

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Float64Type, Int64Type, TimeUnit, TimestampMillisecondType, UInt64Type},
};
use serde_json::{Map, Value};

/// One value: numbers as numbers (NULL, NaN and infinities as null), times as RFC 3339, anything nested as text.
pub fn value(column: &ArrayRef, row: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    let one = column.slice(row, 1);
    let plain = |to: &DataType| cast(&one, to).ok();
    let found = match column.data_type() {
        DataType::Dictionary(_, inner) => return plain(inner).map_or(Value::Null, |inner| value(&inner, 0)),
        DataType::Boolean => Some(Value::from(one.as_boolean().value(0))),
        DataType::UInt64 | DataType::UInt32 | DataType::UInt16 | DataType::UInt8 => {
            plain(&DataType::UInt64).map(|one| Value::from(one.as_primitive::<UInt64Type>().value(0)))
        }
        kind if kind.is_integer() => {
            plain(&DataType::Int64).map(|one| Value::from(one.as_primitive::<Int64Type>().value(0)))
        }
        kind if kind.is_floating() || matches!(kind, DataType::Decimal128(..) | DataType::Decimal256(..)) => {
            plain(&DataType::Float64).map(|one| Value::from(one.as_primitive::<Float64Type>().value(0)))
        }
        DataType::Timestamp(..) => plain(&DataType::Timestamp(TimeUnit::Millisecond, None)).map(|one| {
            Value::from(protocol::time::to_rfc3339(
                one.as_primitive::<TimestampMillisecondType>().value(0),
            ))
        }),
        _ => None,
    };
    found.unwrap_or_else(|| {
        let text = plain(&DataType::Utf8).filter(|text| text.is_valid(0));
        let shown = || arrow::util::display::array_value_to_string(&one, 0).unwrap_or_default();
        Value::from(text.map_or_else(shown, |text| text.as_string::<i32>().value(0).to_owned()))
    })
}

/// One row, by column name in column order.
pub fn row(rows: &RecordBatch, row: usize) -> Map<String, Value> {
    let schema = rows.schema();
    let fields = schema.fields().iter().zip(rows.columns());
    fields
        .map(|(field, column)| (field.name().clone(), value(column, row)))
        .collect()
}
