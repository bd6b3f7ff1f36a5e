//! Expressions made ready to run: constants folded, texts out of their dictionaries where a function needs that, and tried on no rows,
//! so that what a function says only when it runs is said when the text is read.

use std::sync::Arc;

use arrow::{array::RecordBatch, datatypes::DataType};
use datafusion::{
    common::{
        DFSchema, Result,
        tree_node::{Transformed, TreeNode},
    },
    execution::context::ExecutionProps,
    logical_expr::{
        Expr, ExprSchemable, expr::Cast, physical_planning_context::PhysicalPlanningContext, simplify::SimplifyContext,
    },
    optimizer::simplify_expressions::ExprSimplifier,
    physical_expr::create_physical_expr,
};

/// Folds constants, and casts literals to the column's type rather than columns to the literal's: a string column is
/// compared by its dictionary, never row by row. Casts get the text of each row instead, for a cast of a dictionary fails for every row where
/// one of its entries is no number; so do functions that know no dictionaries.
pub(crate) fn simplify(expr: Expr, schema: &Arc<DFSchema>) -> Result<Expr> {
    let simplifier = simplifier(schema);
    let plain = simplifier
        .simplify(expr)?
        .transform_up(|expr| out_of_dictionaries(expr, schema))?;
    let expr = match plain.transformed {
        true => simplifier.simplify(simplifier.coerce(plain.data, schema)?)?,
        false => plain.data,
    };
    runs(&expr, schema)?;
    Ok(expr)
}

/// Tries an expression on no rows.
fn runs(expr: &Expr, schema: &DFSchema) -> Result<()> {
    let (props, context) = (ExecutionProps::new(), PhysicalPlanningContext::default());
    let physical = create_physical_expr(expr, schema, &props, &context)?;
    physical.evaluate(&RecordBatch::new_empty(Arc::clone(schema.inner())))?;
    Ok(())
}

pub(crate) fn simplifier(schema: &Arc<DFSchema>) -> ExprSimplifier {
    ExprSimplifier::new(SimplifyContext::builder().with_schema(Arc::clone(schema)).build())
}

fn out_of_dictionaries(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::Cast(cast) if !is_text(cast.field.data_type()) => {
            let inner = plain_text(*cast.expr, schema)?;
            Ok(inner.update_data(|inner| {
                Expr::Cast(Cast {
                    expr: Box::new(inner),
                    field: cast.field,
                })
            }))
        }
        function @ Expr::ScalarFunction(_) if runs(&function, schema).is_err() => {
            function.map_children(|arg| plain_text(arg, schema))
        }
        other => Ok(Transformed::no(other)),
    }
}

/// The expression with the text of each row in place of a dictionary of texts.
pub(crate) fn plain_text(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match expr.get_type(schema)? {
        DataType::Dictionary(_, value) => Ok(Transformed::yes(Expr::Cast(Cast::new(Box::new(expr), *value)))),
        _ => Ok(Transformed::no(expr)),
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Dictionary(..)) || data_type.is_string()
}
