//! Views over views that judge what they read: the rows, then detectors, then the SELECT list.

use std::{collections::BTreeSet, sync::Arc};

use arrow::datatypes::{Field, Schema};
use datafusion::{
    common::DFSchema,
    logical_expr::{Expr, ExprSchemable},
    sql::sqlparser::ast::{Expr as SqlExpr, Ident, Select, SelectItem, Spanned, VisitMut},
};
use engine::spec::{DetectorInput, DetectorSpec};

use super::{Joined, List};
use crate::{
    anomalies::{self, Call},
    diagnostic::{Diagnostic, Span},
    select::{self, Context},
    simplify::simplify,
    source::WINDOW_COLUMNS,
    text::Parsed,
    view::{Judged, bare, condition, planner_error},
};

/// Puts columns where the SELECT and the outer WHERE name calls. The inner WHERE comes before them.
pub(super) fn fields(
    select: &mut Select,
    judged_filter: &mut Option<SqlExpr>,
    calls: &[Call],
    context: &Context<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Parsed<()> {
    let mut fields = anomalies::Fields {
        calls,
        lines: context.lines,
        errors,
        named: 0,
    };
    if let Some(filter) = &mut select.selection {
        let span = context.lines.span(filter.span());
        let _ = filter.visit(&mut fields);
        if fields.named > 0 {
            return Err(Diagnostic::new(
                "WHERE chooses the rows that are judged: it comes before the result",
                span,
            )
            .help("write SELECT … FROM (SELECT …, ML_DETECT_ANOMALIES(…) OVER (…) AS a FROM v) WHERE a.is_anomaly"));
        }
    }
    let exprs = select::items(&mut select.projection);
    for expr in exprs.chain(judged_filter) {
        let _ = expr.visit(&mut fields);
    }
    Ok(())
}

impl Joined<'_> {
    /// As [`project`](Self::project), with detectors between the rows and the SELECT list.
    pub(super) fn judge(
        &mut self,
        list: &List<'_>,
        calls: &[Call],
        judged_filter: Option<SqlExpr>,
        context: &Context<'_>,
        errors: &mut Vec<Diagnostic>,
    ) -> Parsed<()> {
        let List { select, outputs, spans } = *list;
        let before = errors.len();
        let at = |span: Span| move |error| planner_error(&error, span, context.lines);
        let parts = self.parts;
        let flat: Vec<String> = parts
            .iter()
            .flat_map(|part| part.columns().map(|field| part.flat(field.name())))
            .collect();
        let mut rows = select.clone();
        let quoted = |name: String| SqlExpr::Identifier(Ident::with_quote('"', name));
        rows.projection = flat
            .iter()
            .map(|name| SelectItem::UnnamedExpr(quoted(name.clone())))
            .collect();
        let mut names: Vec<(String, Span)> = flat.into_iter().map(|name| (name, spans.whole)).collect();
        for call in calls {
            rows.projection.push(SelectItem::UnnamedExpr(call.value.clone()));
            names.push((call.name.clone(), call.span));
        }
        let row_spans = select::Spans {
            select: names.iter().map(|(_, span)| *span).collect(),
            filter: spans.filter,
            having: None,
            group: Vec::new(),
            whole: spans.whole,
        };
        let row_list = List {
            select: &rows,
            outputs: &names,
            spans: &row_spans,
        };
        self.project(&row_list, context, errors)?;
        if errors.len() > before {
            return Ok(());
        }
        let rows = Arc::clone(&self.view.output);
        let mut times = Vec::new();
        let mut detectors = Vec::new();
        for (index, call) in calls.iter().enumerate() {
            times.push(self.window_column(&call.time, &rows, call.span)?);
            self.window_column(&call.order, &rows, call.span)?;
            let value = rows.index_of(&call.name).map_err(|error| at(call.span)(error.into()))?;
            if !rows.field(value).data_type().is_numeric() {
                let error = Diagnostic::new("what is judged is a number", call.span);
                return Err(error.help("CAST(x AS DOUBLE) makes a number of text"));
            }
            detectors.push(DetectorSpec {
                name: format!("{}.{index}", self.view.name),
                input: DetectorInput::View(0),
                keys: self.partition(call, &rows)?,
                features: vec![("value".into(), value)],
                using: call.using.to_owned(),
                options: call.options.clone(),
                columns: Vec::new(),
            });
        }
        let fields = rows.fields().iter().map(|field| field.as_ref().clone());
        let input = Schema::new(fields.chain(calls.iter().flat_map(Call::fields)).collect::<Vec<_>>());
        let schema = Arc::new(DFSchema::try_from(input.clone()).map_err(at(spans.whole))?);
        let mut judged = Judged {
            rows,
            input: Arc::new(input),
            times,
            detectors,
            projection: Vec::new(),
            filter: None,
        };
        let mut fields = Vec::new();
        for (index, (item, (name, _))) in select.projection.iter().zip(outputs).enumerate() {
            let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else {
                continue;
            };
            let span = spans.select.get(index).copied().unwrap_or(spans.whole);
            let planned = context.functions.expression(expr.clone(), &schema);
            let planned = planned.and_then(|expr| simplify(expr, &schema)).map_err(at(span))?;
            let (_, field) = planned.to_field(&schema).map_err(at(span))?;
            fields.push(Field::new(name, field.data_type().clone(), true));
            judged.projection.push(planned);
        }
        if let Some(filter) = judged_filter {
            let filter = condition(filter, &schema, context.functions, spans.whole, context.lines)?;
            judged.filter = Some(simplify(filter, &schema).map_err(at(spans.whole))?);
        }
        self.view.output = Arc::new(Schema::new(fields));
        self.view.judged = Some(judged);
        Ok(())
    }

    /// The column of the rows that is the start or the end of their window.
    fn window_column(&self, expr: &SqlExpr, rows: &Schema, span: Span) -> Parsed<usize> {
        let column = match expr {
            SqlExpr::Identifier(ident) => rows.index_of(&ident.value).ok(),
            _ => None,
        };
        let is_window = |index: &usize| {
            let expr = self.view.projection.get(*index).map(bare);
            matches!(expr, Some(Expr::Column(column)) if WINDOW_COLUMNS.contains(&column.name.as_str()))
        };
        column.filter(is_window).ok_or_else(|| {
            Diagnostic::new("rows are judged in the order of their windows", span)
                .help("give window_end as the time and in ORDER BY, and select it in the view that is read")
        })
    }

    /// KEY of a detector from PARTITION BY: exactly the grouping columns.
    fn partition(&self, call: &Call, rows: &Schema) -> Parsed<Vec<(String, usize)>> {
        let mut keys = Vec::new();
        let mut covered = BTreeSet::new();
        for expr in &call.partition {
            let column = match expr {
                SqlExpr::Identifier(ident) => rows.index_of(&ident.value).ok(),
                _ => None,
            };
            let key = column.and_then(|column| Some((column, self.view.key_of_row(column)?)));
            let Some((column, key)) = key else {
                let message = format!("PARTITION BY names what the views group by, not `{expr}`");
                return Err(Diagnostic::new(message, call.span));
            };
            if covered.insert(key) {
                keys.push((self.view.keys[key].field.name().clone(), column));
            }
        }
        let all = self.view.keys.iter().enumerate();
        let missing: Vec<&str> = all
            .filter(|(key, _)| !covered.contains(key))
            .map(|(_, key)| key.field.name().as_str())
            .collect();
        match missing.is_empty() {
            true => Ok(keys),
            false => Err(Diagnostic::new(
                format!(
                    "PARTITION BY leaves out `{}`, so that a model would see several rows per window",
                    missing.join("`, `")
                ),
                call.span,
            )),
        }
    }
}
