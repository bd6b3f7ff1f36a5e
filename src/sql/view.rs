//! Views: one SELECT over windows of a source, planned by DataFusion and taken apart into filter, keys, aggregates and
//! projection. Nothing here is physical yet: which columns a source delivers is known only when every view is planned.

mod apart;

use std::{ops::ControlFlow, sync::Arc};

use arrow::datatypes::{DataType, Field, FieldRef, Schema, TimeUnit};
use datafusion::{
    common::{
        Column, DFSchema, DataFusionError, Result as PlanResult, ScalarValue, plan_err,
        tree_node::{Transformed, TreeNode},
    },
    functions_aggregate::expr_fn,
    logical_expr::{
        Aggregate, Expr, ExprSchemable, LogicalPlan,
        expr::{AggregateFunction, AggregateFunctionParams, Cast, NullTreatment},
    },
    sql::sqlparser::{
        ast::{Expr as SqlExpr, Query, Spanned, visit_expressions},
        tokenizer,
    },
};
use engine::spec::{AggregateKind, DetectorSpec, StateLimit, WindowSpec};

use crate::{
    ast,
    catalog::Functions,
    detector::type_name,
    diagnostic::{Diagnostic, Span},
    functions::histogram,
    pane_set::{Planner, WIDTH_MAX_PANES, pane_width_ms},
    select::{self, Flat, Window},
    simplify::{plain_text, simplify},
    source::{Source, WINDOW_COLUMNS},
    text::{LineMap, lower_first},
};

use apart::{Part, blame};

/// A view, in logical expressions. Row expressions are over the source's columns, unqualified.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub name: String,
    pub source: usize,
    pub filter: Option<Expr>,
    /// Sorted by canonical text, so that views that group by the same share panes.
    pub keys: Vec<Key>,
    pub window: WindowSpec,
    pub state_limit: Option<StateLimit>,
    pub aggregates: Vec<ViewAggregate>,
    /// SELECT list over keys by name, window columns, and aggregates as `agg_0`, `agg_1`, ….
    pub projection: Vec<Expr>,
    pub having: Option<Expr>,
    pub output: Arc<Schema>,
    pub fill_missing_windows: u32,
    /// Rows are judged before they are the view's.
    pub judged: Option<Judged>,
}

/// ML_DETECT_ANOMALIES: what follows the projection.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    /// What the projection gives: the columns of the views that are read, and a value for each detector.
    pub rows: Arc<Schema>,
    /// `rows`, then the fields of each detector's result.
    pub input: Arc<Schema>,
    /// For each detector, the index in `rows` of the time that its result repeats.
    pub times: Vec<usize>,
    pub detectors: Vec<DetectorSpec>,
    /// SELECT list over `input`.
    pub projection: Vec<Expr>,
    pub filter: Option<Expr>,
}

#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub expr: Expr,
    pub field: FieldRef,
}

#[derive(Clone, Debug)]
pub(crate) struct ViewAggregate {
    /// An aggregate function over typed, simplified arguments.
    pub expr: Expr,
    pub canonical: String,
    pub output: FieldRef,
}

impl View {
    /// Index of the key that an output column is, if it is one.
    pub fn key_of_output(&self, output: usize) -> Option<usize> {
        let Some(judged) = &self.judged else {
            return self.key_of_row(output);
        };
        match bare(judged.projection.get(output)?) {
            Expr::Column(column) => self.key_of_row(judged.rows.index_of(&column.name).ok()?),
            _ => None,
        }
    }

    /// Index of the key that a column of the projection is.
    pub fn key_of_row(&self, output: usize) -> Option<usize> {
        match bare(self.projection.get(output)?) {
            Expr::Column(column) => self.keys.iter().position(|key| *key.field.name() == column.name),
            _ => None,
        }
    }

    /// Schema of what the projection is planned over.
    pub fn input(&self) -> Schema {
        let keys = self.keys.iter().map(|key| Arc::clone(&key.field));
        let windows = WINDOW_COLUMNS.map(|name| Arc::new(Field::new(name, window_type(), false)));
        let aggregates = self.aggregates.iter().enumerate().map(|(index, aggregate)| {
            let field = aggregate.output.as_ref().clone().with_name(aggregate_name(index));
            // A window that is filled in has no count either.
            let nullable = field.is_nullable() || self.fill_missing_windows > 0;
            Arc::new(field.with_nullable(nullable))
        });
        Schema::new(keys.chain(windows).chain(aggregates).collect::<Vec<FieldRef>>())
    }
}

/// Whether a row of a view that speaks early is the window's last word.
const IS_FINAL: &str = "is_final";

pub(crate) fn aggregate_name(index: usize) -> String {
    format!("agg_{index}")
}

pub(crate) fn window_type() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

/// Without the alias.
pub(crate) fn bare(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => bare(&alias.expr),
        other => other,
    }
}

/// Plans one view. What is wrong goes to `errors`; of a view that is not there, the names of its columns, where they can be told.
pub(crate) fn plan(
    pipeline: &str,
    ast: &ast::View,
    sources: &mut [Source],
    context: &select::Context<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Result<View, Option<Vec<String>>> {
    let Some(flat) = select::flatten(ast, sources, context, errors) else {
        return Err(select::output_names(ast, context.lines));
    };
    let names = flat.output_names(ast);
    planned(pipeline, ast, flat, context, errors).ok_or(names)
}

/// A view with mistakes is planned without the parts that they are in, for what else is wrong; there is no view then.
fn planned(
    pipeline: &str,
    ast: &ast::View,
    mut flat: Flat,
    context: &select::Context<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Option<View> {
    let before = errors.len() - flat.errors;
    let window = window_spec(pipeline, ast, &flat, errors);
    flat.leave_out_wrong(&errors[before..]);
    let source = flat.declared.clone();
    let plan = loop {
        match context
            .functions
            .plan(flat.query.clone(), &source.name, &windowed(&source))
        {
            Ok(plan) => break plan,
            Err(error) => {
                let found = blame(error, &flat, &source, context);
                let wrong: Vec<Part> = found.iter().filter_map(|(part, _)| *part).collect();
                errors.extend(found.into_iter().filter_map(|(_, error)| error));
                if wrong.is_empty() {
                    return None;
                }
                flat.leave_out(&wrong);
            }
        }
    };
    let parts = match Parts::take(plan) {
        Ok(parts) => parts,
        Err(error) => {
            errors.push(planner_error(&error, flat.spans.whole, context.lines));
            return None;
        }
    };
    let window = window?;
    let mut builder = Builder {
        flat: &flat,
        source: &source,
        context,
        errors,
    };
    let view = builder.view(ast, window, parts);
    view.filter(|_| errors.len() == before && !ast.broken && !flat.partial)
}

/// The source's columns and those of the window, as the planner sees the table.
fn windowed(source: &Source) -> Schema {
    let mut fields: Vec<Field> = source.columns.iter().map(|column| column.field.clone()).collect();
    fields.extend(WINDOW_COLUMNS.map(|name| Field::new(name, window_type(), false)));
    Schema::new(fields)
}

fn window_spec(pipeline: &str, ast: &ast::View, flat: &Flat, errors: &mut Vec<Diagnostic>) -> Option<WindowSpec> {
    let Window {
        size_ms,
        slide_ms,
        offset_ms,
        gap_ms,
    } = flat.window?;
    if let (Some(_), Some(every)) = (gap_ms, &ast.early_every) {
        errors.push(Diagnostic::new("a session does not speak early", every.span).help("write EMIT ON WINDOW CLOSE"));
        return None;
    }
    if gap_ms.is_some() && ast.fill_missing_windows > 0 {
        let error = Diagnostic::new(
            "a session without rows is none: FILL MISSING has no meaning",
            ast.name.span,
        );
        errors.push(error.help("remove FILL MISSING, or watch for silence with a detector"));
        return None;
    }
    let window = WindowSpec {
        view: format!("{pipeline}.{}", ast.name.text),
        size_ms,
        slide_ms,
        offset_ms,
        lateness_ms: ast.lateness.as_ref().map_or(0, |lateness| lateness.value),
        late_topic: ast.late_topic.as_ref().map(|topic| topic.value.clone()),
        early_every_ms: ast.early_every.as_ref().map(|every| every.value),
        session_gap_ms: gap_ms,
    };
    if let Some(every) = ast.early_every.as_ref().filter(|every| every.value >= size_ms) {
        errors.push(
            Diagnostic::new("early rows come before the window's end", every.span).help(format!(
                "write a length shorter than {}, or EMIT ON WINDOW CLOSE",
                crate::duration::display(size_ms)
            )),
        );
        return None;
    }
    let width_ms = pane_width_ms([&window]);
    let panes = window.size_ms / width_ms;
    if panes > WIDTH_MAX_PANES {
        let least = pane_at_least(&window);
        errors.push(
            Diagnostic::new(
                format!(
                    "a window of {} would be {panes} panes of {}, more than {WIDTH_MAX_PANES}",
                    crate::duration::display(size_ms),
                    crate::duration::display(width_ms)
                ),
                flat.window_span,
            )
            .help(format!(
                "make slide, size, offset and lateness multiples of {}",
                crate::duration::display(least)
            )),
        );
        return None;
    }
    Some(window)
}

/// The smallest round pane that keeps a window within the limit.
fn pane_at_least(window: &WindowSpec) -> i64 {
    let least = (window.size_ms + WIDTH_MAX_PANES - 1) / WIDTH_MAX_PANES;
    let round = [
        10, 20, 50, 100, 200, 250, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000,
    ];
    round.into_iter().find(|width| *width >= least).unwrap_or(600_000)
}

/// A planned query taken apart.
struct Parts {
    filter: Option<Expr>,
    aggregate: Aggregate,
    having: Option<Expr>,
    projection: Vec<Expr>,
}

impl Parts {
    fn take(plan: LogicalPlan) -> PlanResult<Self> {
        let LogicalPlan::Projection(projection) = plan else {
            return plan_err!("a view is SELECT … FROM … GROUP BY …");
        };
        let (having, below) = match projection.input.as_ref() {
            LogicalPlan::Filter(filter) => (Some(filter.predicate.clone()), filter.input.as_ref()),
            other => (None, other),
        };
        let LogicalPlan::Aggregate(aggregate) = below else {
            return plan_err!("a view aggregates: it needs GROUP BY with the window");
        };
        let mut filter = None;
        let mut below = aggregate.input.as_ref();
        loop {
            below = match below {
                LogicalPlan::Filter(rows) if filter.is_none() => {
                    filter = Some(rows.predicate.clone());
                    rows.input.as_ref()
                }
                LogicalPlan::SubqueryAlias(alias) => alias.input.as_ref(),
                LogicalPlan::TableScan(_) => break,
                _ => return plan_err!("a view reads one source"),
            };
        }
        Ok(Self {
            filter,
            aggregate: aggregate.clone(),
            having,
            projection: projection.expr,
        })
    }
}

struct Builder<'a> {
    flat: &'a Flat,
    source: &'a Source,
    context: &'a select::Context<'a>,
    errors: &'a mut Vec<Diagnostic>,
}

impl Builder<'_> {
    fn view(&mut self, ast: &ast::View, window: WindowSpec, parts: Parts) -> Option<View> {
        let before = self.errors.len();
        let rows = Arc::new(DFSchema::try_from(self.source.schema()).ok()?);
        let filter = self.filter(parts.filter.clone(), &rows);
        let keys = self.keys(&parts.aggregate, &rows);
        let mut aggregates = self.aggregates(&parts.aggregate, &rows);
        if window.session_gap_ms.is_some() {
            aggregates.extend(self.session_bounds(&rows));
        }
        if self.errors.len() > before {
            return None;
        }
        let mut view = View {
            name: ast.name.text.clone(),
            source: self.flat.source?,
            filter,
            keys: keys.iter().map(|(_, key)| key.clone()).collect(),
            window,
            state_limit: ast.state_limit,
            aggregates,
            projection: Vec::new(),
            having: None,
            output: Arc::new(Schema::empty()),
            fill_missing_windows: ast.fill_missing_windows,
            judged: None,
        };
        view.keys.sort_by(|a, b| a.field.name().cmp(b.field.name()));
        self.project(&mut view, &keys, &parts)?;
        (self.errors.len() == before).then_some(view)
    }

    fn filter(&mut self, filter: Option<Expr>, rows: &Arc<DFSchema>) -> Option<Expr> {
        let span = self.flat.spans.filter.unwrap_or(self.flat.spans.whole);
        let filter = self.simplified(unqualified(filter?), rows, span)?;
        match filter {
            Expr::Literal(ScalarValue::Boolean(Some(true)), _) => None,
            filter => Some(filter),
        }
    }

    /// The grouping expressions besides the window, each with its column in the aggregate's output.
    fn keys(&mut self, aggregate: &Aggregate, rows: &Arc<DFSchema>) -> Vec<(Column, Key)> {
        let mut keys: Vec<(Column, Key)> = Vec::new();
        let spans = &self.flat.spans.group;
        for (index, group) in aggregate.group_expr.iter().enumerate() {
            let span = spans.get(index).copied().unwrap_or(self.flat.spans.whole);
            let column = Column::from(aggregate.schema.qualified_field(index));
            if let Expr::Column(group) = bare(group)
                && WINDOW_COLUMNS.contains(&group.name.as_str())
            {
                continue;
            }
            if let Some(name) = names_window(group) {
                let message = format!("a key cannot be computed from `{name}`: keys are values of rows");
                self.errors
                    .push(Diagnostic::new(message, span).help("compute it in SELECT"));
                continue;
            }
            if let Expr::GroupingSet(_) = bare(group) {
                self.errors
                    .push(Diagnostic::new("grouping sets are not supported", span).help("write one view per grouping"));
                continue;
            }
            let Some(expr) = self.simplified(unqualified(bare(group).clone()), rows, span) else {
                continue;
            };
            let data_type = match expr.get_type(rows) {
                Ok(data_type) => data_type,
                Err(error) => {
                    self.errors.push(planner_error(&error, span, self.context.lines));
                    continue;
                }
            };
            if data_type.is_nested() {
                let message = format!("a key cannot be a {}", type_name(&data_type));
                self.errors
                    .push(Diagnostic::new(message, span).help("group by one entry of it: attributes['http.route']"));
                continue;
            }
            let name = key_name(&expr);
            if is_aggregate_name(&name) {
                let message = format!("`{name}` is what the plan calls an aggregate");
                self.errors.push(
                    Diagnostic::new(message, span).help("declare the column under another name, with FROM 'path'"),
                );
            }
            let field = Arc::new(Field::new(name, data_type, true));
            keys.push((column, Key { expr, field }));
        }
        keys
    }

    fn aggregates(&mut self, aggregate: &Aggregate, rows: &Arc<DFSchema>) -> Vec<ViewAggregate> {
        let mut aggregates = Vec::new();
        for (index, expr) in aggregate.aggr_expr.iter().enumerate() {
            let Expr::AggregateFunction(function) = bare(expr) else {
                self.errors.push(Diagnostic::new(
                    format!("`{expr}` is not an aggregate"),
                    self.flat.spans.whole,
                ));
                continue;
            };
            let before = aggregate.aggr_expr[..index].iter().filter(|other| {
                matches!(bare(other), Expr::AggregateFunction(other) if other.func.name() == function.func.name())
            });
            let span = self.aggregate_span(function, before.count());
            if let Err(error) = mergeable(function, span) {
                self.errors.push(error);
                continue;
            }
            let Some(function) = self.simplified_aggregate(function, rows, span) else {
                continue;
            };
            if let Err(error) = check_quantile(&function, span) {
                self.errors.push(error);
                continue;
            }
            let expr = Expr::AggregateFunction(function);
            match expr.to_field(rows) {
                Ok((_, output)) => {
                    let aggregate = ViewAggregate {
                        canonical: canonical(&expr),
                        output,
                        expr,
                    };
                    match runs(&aggregate, rows) {
                        Ok(()) => aggregates.push(aggregate),
                        Err(error) => self.errors.push(planner_error(&error, span, self.context.lines)),
                    }
                }
                Err(error) => self.errors.push(planner_error(&error, span, self.context.lines)),
            }
        }
        aggregates
    }

    /// Least and greatest event time, from which sessions are told.
    fn session_bounds(&mut self, rows: &Arc<DFSchema>) -> Vec<ViewAggregate> {
        let time = || Expr::Column(Column::from_name(self.source.event_time.clone()));
        let exprs = [expr_fn::min(time()), expr_fn::max(time())];
        let bounds = exprs.map(|expr| {
            let (_, output) = expr.to_field(rows)?;
            Ok(ViewAggregate {
                canonical: canonical(&expr),
                output,
                expr,
            })
        });
        let bounds: PlanResult<Vec<ViewAggregate>> = bounds.into_iter().collect();
        bounds.unwrap_or_else(|error| {
            let error = planner_error(&error, self.flat.window_span, self.context.lines);
            self.errors.push(error);
            Vec::new()
        })
    }

    /// Where the call of an aggregate stands that comes after so many others of the same function.
    fn aggregate_span(&self, function: &AggregateFunction, others: usize) -> Span {
        let calls = function_spans(&self.flat.query, function.func.name(), self.context.lines);
        let found = calls.get(others).or(calls.last());
        found.copied().unwrap_or(self.flat.spans.whole)
    }

    fn simplified_aggregate(
        &mut self,
        function: &AggregateFunction,
        rows: &Arc<DFSchema>,
        span: Span,
    ) -> Option<AggregateFunction> {
        let params = &function.params;
        let mut args = Vec::with_capacity(params.args.len());
        for arg in &params.args {
            let arg = self.simplified(unqualified(arg.clone()), rows, span)?;
            args.push(match function.func.name() {
                // It has no hash for floats; equal ones are equal texts.
                "approx_distinct" if arg.get_type(rows).is_ok_and(|data_type| data_type.is_floating()) => {
                    Expr::Cast(Cast::new(Box::new(arg), DataType::Utf8))
                }
                name if KNOWS_DICTIONARIES.contains(&name) => arg,
                _ => plain_text(arg, rows).ok()?.data,
            });
        }
        let filter = match &params.filter {
            None => None,
            Some(filter) => Some(Box::new(self.simplified(
                unqualified(filter.as_ref().clone()),
                rows,
                span,
            )?)),
        };
        let mut order_by = params.order_by.clone();
        for sort in &mut order_by {
            sort.expr = self.simplified(unqualified(sort.expr.clone()), rows, span)?;
        }
        Some(AggregateFunction {
            func: Arc::clone(&function.func),
            params: AggregateFunctionParams {
                args,
                distinct: params.distinct,
                filter,
                order_by,
                null_treatment: params.null_treatment,
            },
        })
    }

    fn simplified(&mut self, expr: Expr, schema: &Arc<DFSchema>, span: Span) -> Option<Expr> {
        match simplify(expr, schema) {
            Ok(expr) => Some(expr),
            Err(error) => {
                self.errors.push(planner_error(&error, span, self.context.lines));
                None
            }
        }
    }

    /// SELECT list and HAVING over keys, window and aggregates.
    fn project(&mut self, view: &mut View, keys: &[(Column, Key)], parts: &Parts) -> Option<()> {
        let input = Arc::new(DFSchema::try_from(view.input()).ok()?);
        let schema = &parts.aggregate.schema;
        let groups = parts.aggregate.group_expr.len();
        let rename = |column: &Column| -> PlanResult<Column> {
            let index = schema.index_of_column(column)?;
            if index >= groups {
                return Ok(Column::from_name(aggregate_name(index - groups)));
            }
            let column = Column::from(schema.qualified_field(index));
            let key = keys.iter().find(|(key, _)| *key == column);
            Ok(Column::from_name(key.map_or(&column.name, |(_, key)| key.field.name())))
        };
        let mut fields = Vec::with_capacity(parts.projection.len());
        for (index, expr) in parts.projection.iter().enumerate() {
            let span = self
                .flat
                .spans
                .select
                .get(index)
                .copied()
                .unwrap_or(self.flat.spans.whole);
            let renamed = match renamed(bare(expr).clone(), &rename) {
                Ok(renamed) => renamed,
                Err(error) => {
                    self.errors.push(planner_error(&error, span, self.context.lines));
                    continue;
                }
            };
            let renamed = self.simplified(renamed, &input, span)?;
            let (_, field) = renamed.to_field(&input).ok()?;
            let name = self.flat.outputs.get(index).map_or("", |(name, _)| name.as_str());
            // What cannot be computed over a row is NULL there, whatever its operands are.
            let nullable = field.is_nullable() || !matches!(bare(&renamed), Expr::Column(_));
            fields.push(Field::new(name, field.data_type().clone(), nullable));
            view.projection.push(renamed);
        }
        if view.window.early_every_ms.is_some() {
            if let Some((_, span)) = self.flat.outputs.iter().find(|(name, _)| name == IS_FINAL) {
                let error = Diagnostic::new(format!("`{IS_FINAL}` is what EMIT EVERY adds"), *span);
                self.errors.push(error.help("give it another name with AS"));
            }
            fields.push(Field::new(IS_FINAL, DataType::Boolean, false));
        }
        view.output = Arc::new(Schema::new(fields));
        if let Some(having) = &parts.having {
            let span = self.flat.spans.having.unwrap_or(self.flat.spans.whole);
            let having = renamed(having.clone(), &rename).ok()?;
            view.having = Some(self.simplified(having, &input, span)?);
        }
        Some(())
    }
}

/// Aggregates that take texts as dictionaries, and give them back as such.
const KNOWS_DICTIONARIES: [&str; 5] = ["count", "min", "max", "first", "last"];

/// Whether the engine has an accumulator for it: a function may refuse a type only when it is asked for one.
fn runs(aggregate: &ViewAggregate, rows: &DFSchema) -> PlanResult<()> {
    let spec = Planner::new(rows.inner())?.aggregate(aggregate)?;
    if let AggregateKind::Other(function) = &spec.kind
        && !function.groups_accumulator_supported()
    {
        function.create_accumulator()?;
    }
    match engine::accumulator(&spec) {
        Ok(_) => Ok(()),
        Err(engine::Error::Expression(error)) => Err(*error),
        Err(error) => plan_err!("{error}"),
    }
}

/// The bare column for a column, the canonical text for anything else.
fn key_name(expr: &Expr) -> String {
    match expr {
        Expr::Column(column) => column.name.clone(),
        other => canonical(other),
    }
}

fn is_aggregate_name(name: &str) -> bool {
    name.strip_prefix("agg_")
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn names_window(expr: &Expr) -> Option<String> {
    let columns = expr.column_refs();
    let window = columns
        .iter()
        .find(|column| WINDOW_COLUMNS.contains(&column.name.as_str()));
    window.map(|column| column.name.clone())
}

/// Columns without their table: the same expression in two views is the same.
fn unqualified(expr: Expr) -> Expr {
    let rename = |column: &Column| Ok(Column::from_name(column.name.clone()));
    renamed(expr.clone(), &rename).unwrap_or(expr)
}

pub(crate) fn renamed(expr: Expr, rename: &dyn Fn(&Column) -> PlanResult<Column>) -> PlanResult<Expr> {
    let transformed = expr.transform(|expr| match expr {
        Expr::Column(column) => Ok(Transformed::yes(Expr::Column(rename(&column)?))),
        // A name given to a subexpression by type coercion; the column it names keeps its own.
        Expr::Alias(alias) => Ok(Transformed::yes(*alias.expr)),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(transformed.data)
}

/// Text that is equal only for equal expressions: column names are quoted.
pub(crate) fn canonical(expr: &Expr) -> String {
    let quote = |column: &Column| Ok(Column::from_name(format!("\"{}\"", column.name.replace('"', "\"\""))));
    match renamed(expr.clone(), &quote) {
        Ok(quoted) => quoted.to_string(),
        Err(_) => expr.to_string(),
    }
}

/// Refuses aggregates whose partials do not add up, or that would hold every row.
fn mergeable(function: &AggregateFunction, span: Span) -> Result<(), Diagnostic> {
    let name = function.func.name();
    let refuse = |message: String, help: &str| Err(Diagnostic::new(message, span).help(help));
    match name {
        "array_agg" | "string_agg" => refuse(
            format!("`{name}` would hold every value of a window"),
            "use count(DISTINCT x) or approx_distinct(x)",
        ),
        "first_value" | "last_value" | "nth_value" | "any_value" => refuse(
            format!("`{name}` depends on the order in which partitions are read, so its partials do not add up"),
            "use first(x) or last(x), which go by event time",
        ),
        "bit_xor" if function.params.distinct => refuse(
            "`bit_xor(DISTINCT …)` is not supported".into(),
            "bit_or and bit_and are the same with DISTINCT and without",
        ),
        "grouping" => refuse(
            "`grouping` needs grouping sets, which are not supported".into(),
            "remove it",
        ),
        "percentile_cont" => refuse(
            format!("`{name}` would hold every value of a window"),
            "use quantile(x, 0.99), or median(x) where it has to be exact",
        ),
        _ if !function.params.order_by.is_empty() => refuse(
            format!("`{name}` with an order depends on every row, so its partials do not add up"),
            "remove ORDER BY",
        ),
        _ if function.params.null_treatment == Some(NullTreatment::RespectNulls) => {
            refuse("RESPECT NULLS is not supported".into(), "aggregates skip NULL")
        }
        _ => Ok(()),
    }
}

/// The share of a quantile, where the function is one.
pub(crate) fn quantile_share(function: &AggregateFunction) -> Option<f64> {
    match function.params.args.as_slice() {
        [_, Expr::Literal(ScalarValue::Float64(Some(q)), _)] => Some(*q),
        [Expr::Literal(ScalarValue::Float64(Some(q)), _), _, ..] if function.func.name() == histogram::NAME => Some(*q),
        _ => None,
    }
}

fn check_quantile(function: &AggregateFunction, span: Span) -> Result<(), Diagnostic> {
    let name = function.func.name();
    let example = match name {
        "quantile" => "quantile(x, 0.99)",
        histogram::NAME => "histogram_quantile(0.99)",
        _ => return Ok(()),
    };
    if function.params.distinct {
        return Err(Diagnostic::new(format!("{name}(DISTINCT …) is not supported"), span).help("remove DISTINCT"));
    }
    let wrong = match quantile_share(function) {
        Some(q) if (0.0..=1.0).contains(&q) => return Ok(()),
        Some(q) => format!("{q} is not a share between 0 and 1"),
        None => "the share of a quantile is a constant".into(),
    };
    Err(Diagnostic::new(wrong, span).help(format!("write {example}")))
}

/// Where the calls of a function stand in a query.
fn function_spans(query: &Query, name: &str, lines: &LineMap<'_>) -> Vec<Span> {
    let mut found = Vec::new();
    let _ = visit_expressions(query, |expr| {
        if let SqlExpr::Function(function) = expr
            && same_function(&function.name.to_string(), name)
        {
            found.push(lines.span(function.name.span()));
        }
        ControlFlow::<()>::Continue(())
    });
    found
}

/// Whether a name in the text is another name of an aggregate.
fn same_function(written: &str, name: &str) -> bool {
    let written = written.to_ascii_lowercase();
    written == name
        || match name {
            "var" => matches!(written.as_str(), "var_samp" | "var_sample" | "variance"),
            "stddev" => written == "stddev_samp",
            "avg" => written == "mean",
            _ => false,
        }
}

/// What is said of a column that GROUP BY does not name.
const NOT_GROUPED: &str = "is neither grouped by nor aggregated";

/// DataFusion's error in the project's manner, at its own place if it has one.
pub(crate) fn planner_error(error: &DataFusionError, fallback: Span, lines: &LineMap<'_>) -> Diagnostic {
    if let Some(found) = error.diagnostic() {
        let span = found.span.map_or(fallback, |span| {
            let location = |at: datafusion::common::Location| tokenizer::Location::new(at.line, at.column);
            Span::new(lines.offset(location(span.start)), lines.offset(location(span.end)))
        });
        if let Some((column, _)) = found
            .message
            .strip_prefix('\'')
            .and_then(|rest| rest.split_once("' must appear in GROUP BY clause"))
        {
            let column = column.rsplit('.').next().unwrap_or(column).trim_matches('"');
            return Diagnostic::new(format!("`{column}` {NOT_GROUPED}"), span).help(format!(
                "add it to GROUP BY, or take one of its values: first({column}), last({column}), max({column})"
            ));
        }
        let help = found.helps.first().map(|help| lower_first(&help.message));
        let notes: Vec<String> = found.notes.iter().map(|note| lower_first(&note.message)).collect();
        let types: Vec<&str> = notes.iter().filter_map(|note| note.strip_prefix("has type ")).collect();
        if let [left, right] = types[..] {
            let [left, right] = [left, right].map(named_type);
            let error = Diagnostic::new(format!("a {left} and a {right} do not go together"), span);
            return error.help(match [left, right].contains(&"boolean") {
                true => "what is true or false is a condition by itself: x, or NOT x",
                false => "CAST(x AS DOUBLE) and CAST(x AS VARCHAR) change a type",
            });
        }
        return Diagnostic::new(lower_first(&found.message), span).help_opt(help.or(notes.into_iter().next()));
    }
    let message = error.find_root().message().into_owned();
    let first = message.lines().next().unwrap_or_default();
    if let Some(reason) = first
        .split_once("coercion failed with: Error during planning: ")
        .map(|(_, rest)| rest.split(". No function matches").next().unwrap_or(rest))
    {
        return Diagnostic::new(reason, fallback).help("CAST(x AS DOUBLE) and CAST(x AS VARCHAR) change a type");
    }
    if let Some((function, wanted, given)) = wrong_count(first) {
        return Diagnostic::new(format!("`{function}` takes {wanted}, not {given}"), fallback);
    }
    if let Some((function, given)) = wrong_argument(first).or_else(|| wrong_types(first)) {
        let help = match given.as_str() {
            "boolean" => "count(*) FILTER (WHERE x) counts the rows where it is true",
            _ => "CAST(x AS DOUBLE) makes a number of text",
        };
        return Diagnostic::new(format!("`{function}` does not take a {given}"), fallback).help(help);
    }
    if let Some((_, data_type)) = first
        .split_once("non-boolean predicate")
        .and_then(|(_, rest)| rest.split_once(" returning "))
    {
        let data_type = named_type(data_type);
        return Diagnostic::new(format!("a condition is true or false, not a {data_type}"), fallback)
            .help("compare it with something: value > 0");
    }
    Diagnostic::new(lower_first(first.trim_end_matches('.')), fallback)
}

/// What people call a type that is known by its name in a message only.
fn named_type(name: &str) -> &str {
    const NAMES: [(&str, &str); 9] = [
        ("Dictionary", "string"),
        ("Utf8", "string"),
        ("Boolean", "boolean"),
        ("Timestamp", "timestamp"),
        ("Map", "map"),
        ("Interval", "interval"),
        ("Int", "number"),
        ("UInt", "number"),
        ("Float", "number"),
    ];
    let known = NAMES.iter().find(|(prefix, _)| name.starts_with(prefix));
    known.map_or(name, |(_, known)| known)
}

/// How many arguments a function takes, and how many it was given.
fn wrong_count(message: &str) -> Option<(&str, String, &str)> {
    let arguments = |count: &str| format!("{count} argument{}", if count == "1" { "" } else { "s" });
    if let Some((function, _)) = message.split_once(" does not support zero arguments") {
        return Some((function.trim_matches('\''), "an argument".into(), "none"));
    }
    let (_, rest) = message.split_once("Function '")?;
    let (function, rest) = rest.split_once('\'')?;
    let (_, rest) = rest.split_once(" expects ")?;
    let (wanted, rest) = rest.split_once(" arguments but received ")?;
    let given = rest.split(|letter: char| !letter.is_ascii_digit()).next()?;
    Some((function, arguments(wanted), given))
}

/// `Function 'avg' failed to match any signature, … but received String (…`: the function and what it was given.
fn wrong_argument(message: &str) -> Option<(&str, String)> {
    let (_, rest) = message.split_once("Function '")?;
    let (function, rest) = rest.split_once('\'')?;
    let (_, given) = rest.split_once("but received ")?;
    let (given, _) = given.split_once(" (")?;
    let (given, _) = given.split_once('(').unwrap_or((given, ""));
    Some((function, given.to_lowercase()))
}

/// `… a call to 'corr' function: coercion from Boolean, Float64 to the signature …`: the function and what it was given.
fn wrong_types(message: &str) -> Option<(&str, String)> {
    let (_, rest) = message.split_once("a call to '")?;
    let (function, rest) = rest.split_once("' function: coercion from ")?;
    let (given, _) = rest.split_once(" to the signature")?;
    let mut depth = 0;
    let types = given.split(|letter: char| {
        depth += i32::from(letter == '(') - i32::from(letter == ')');
        letter == ',' && depth == 0
    });
    let types: Vec<&str> = types.map(|name| named_type(name.trim())).collect();
    Some((function, types.join(" and a ")))
}

/// A condition over `schema`, typed and simplified; it must be a truth value.
pub(crate) fn condition(
    expr: SqlExpr,
    schema: &Arc<DFSchema>,
    functions: &Functions,
    span: Span,
    lines: &LineMap<'_>,
) -> Result<Expr, Diagnostic> {
    let planned = functions
        .expression(expr, schema)
        .and_then(|expr| simplify(expr, schema));
    let expr = planned.map_err(|error| planner_error(&error, span, lines))?;
    match expr.get_type(schema) {
        Ok(DataType::Boolean) => Ok(expr),
        Ok(other) => Err(Diagnostic::new(
            format!("a condition is true or false, not a {}", type_name(&other)),
            span,
        )
        .help("compare it with something: score > 1")),
        Err(error) => Err(planner_error(&error, span, lines)),
    }
}
