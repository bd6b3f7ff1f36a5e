//! Expressions that cannot be computed over some of the rows: a division by zero, text that is no number, a number too large.
//!
//! What is computed over a closed window must not stop the stage, for no retry would help it: there it is NULL, as `x / NULL` would be. Plans
//! that fit no row at all fail, as ever.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array},
    compute::concat,
    error::ArrowError,
};
use datafusion::{error::DataFusionError, physical_expr::PhysicalExpr};

use crate::error::Error;

/// One value per row, NULL where there is none.
pub fn values(expression: &Arc<dyn PhysicalExpr>, rows: &RecordBatch) -> Result<ArrayRef, Error> {
    let count = rows.num_rows();
    match expression.evaluate(rows).and_then(|value| value.into_array(count)) {
        Ok(values) => Ok(values),
        Err(error) if !is_of_rows(&error) => Err(error.into()),
        Err(_) if count == 1 => Ok(new_null_array(&expression.data_type(&rows.schema())?, 1)),
        Err(error) if count == 0 => Err(error.into()),
        Err(_) => {
            let half = count / 2;
            let left = values(expression, &rows.slice(0, half))?;
            let right = values(expression, &rows.slice(half, count - half))?;
            Ok(concat(&[&*left, &*right])?)
        }
    }
}

/// Whether a condition is met by each row; NULL is no.
pub fn met(condition: &Arc<dyn PhysicalExpr>, rows: &RecordBatch) -> Result<BooleanArray, Error> {
    let values = values(condition, rows)?;
    values.as_boolean_opt().cloned().ok_or_else(|| Error::Shape {
        what: "condition",
        expected: "boolean".into(),
        found: values.data_type().to_string(),
    })
}

/// The rows are at fault, not the plan.
fn is_of_rows(error: &DataFusionError) -> bool {
    match error.find_root() {
        DataFusionError::ArrowError(error, _) => {
            !matches!(**error, ArrowError::NotYetImplemented(_) | ArrowError::SchemaError(_))
        }
        DataFusionError::Execution(_) => true,
        _ => false,
    }
}
