//! Views over views: rows of one view, or of several that are equal in window and keys, put together as they close.
//!
//! What is read may itself be a view over views. Views of one source are joined without a second pass: the joined view folds the rows of all of them, each aggregate only
//! those of its own view, and a window has a row where each view would have had one. So it is as exact as its parts, and
//! keeps no state beside theirs. Views of several sources are first moved onto the rows of all of them ([`across`]).

mod across;
mod judge;
mod names;

use std::{collections::BTreeSet, sync::Arc};

use arrow::datatypes::{Field, Schema};
use datafusion::{
    common::{
        Column, DFSchema, Result as PlanResult,
        tree_node::{Transformed, TreeNode},
    },
    functions_aggregate::expr_fn,
    logical_expr::{Expr, ExprSchemable, lit, when},
    sql::sqlparser::ast::{
        BinaryOperator, Expr as SqlExpr, GroupByExpr, JoinConstraint, JoinOperator, Select, SelectItem, SetExpr,
        Spanned, TableFactor,
    },
};
use engine::spec::WindowSpec;

use crate::{
    anomalies, ast,
    diagnostic::{Diagnostic, Span, did_you_mean},
    select::{self, Context, Names, Place, conjuncts, sides},
    simplify::simplify,
    source::{Source, Unknown, WINDOW_COLUMNS},
    text::{Name, Parsed, find},
    view::{View, ViewAggregate, aggregate_name, bare, canonical, condition, planner_error, renamed},
};

use names::Resolver;

/// Whether FROM, or the query in it, begins with a view.
pub(crate) fn reads_views(ast: &ast::View, views: &[ast::View]) -> bool {
    let names = || views.iter().map(|view| view.name.text.as_str());
    let inner = || {
        let (from, to) = select::inline_query(&ast.select)?;
        select::first_table(&ast.select[from + 1..to])
    };
    let table = select::first_table(&ast.select).or_else(inner);
    table.is_some_and(|table| table.find(names()).is_some())
}

/// The views that FROM and JOIN name.
pub(crate) fn read_by<'a>(ast: &ast::View, views: impl Iterator<Item = &'a str> + Clone) -> Vec<&'a str> {
    let named = ast.select.windows(2).filter_map(|pair| {
        let table = pair[0].is_word("FROM") || pair[0].is_word("JOIN");
        let word = pair[1].word().filter(|_| table)?;
        find(&word.value, word.quote_style.is_some(), views.clone())
    });
    named.filter_map(|index| views.clone().nth(index)).collect()
}

/// Plans a view over views; what is wrong goes to `errors`. One over views of several sources adds the rows of these to `sources`.
pub(crate) fn plan(
    pipeline: &str,
    ast: &ast::View,
    views: &[View],
    sources: &mut Vec<Source>,
    context: &Context<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Option<View> {
    match read(pipeline, ast, views, sources, context, errors) {
        Ok(view) => view,
        Err(error) => {
            errors.push(error);
            None
        }
    }
}

/// A view in FROM.
struct Part<'a> {
    /// What its columns are qualified with.
    alias: String,
    view: &'a View,
    /// Right of a LEFT JOIN: NULL where it has no row.
    optional: bool,
    on: Option<SqlExpr>,
    span: Span,
}

impl Part<'_> {
    /// A column of this part among those of all parts.
    fn flat(&self, column: &str) -> String {
        format!("{}.{column}", self.alias)
    }

    /// Columns, without what EMIT EVERY adds.
    fn columns(&self) -> impl Iterator<Item = &Field> {
        let fields = self.view.output.fields().iter().map(AsRef::as_ref);
        fields.take(self.view.projection.len())
    }
}

fn read(
    pipeline: &str,
    ast: &ast::View,
    views: &[View],
    sources: &mut Vec<Source>,
    context: &Context<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Parsed<Option<View>> {
    let before = errors.len();
    errors.extend(check_clauses(ast).err());
    let whole = select::checked_span(ast)?;
    let tokens = select::keywords(&ast.select, errors);
    let (tokens, calls) = anomalies::take(&tokens, context.lines)?;
    let Some(mut query) = select::parse_mending(tokens, context.lines, errors) else {
        return Ok(None);
    };
    let merged = errors.len();
    let mut judged_filter = anomalies::merge(&mut query, context.lines, errors)?;
    if errors.len() > merged {
        return Ok(None);
    }
    if calls.is_empty() && judged_filter.is_some() {
        // Nothing is judged: one WHERE is as good as the other.
        let SetExpr::Select(select) = query.body.as_mut() else {
            return Ok(None);
        };
        let outer = judged_filter.take().into_iter();
        let and = |left: SqlExpr, right: SqlExpr| SqlExpr::BinaryOp {
            left: Box::new(SqlExpr::Nested(Box::new(left))),
            op: BinaryOperator::And,
            right: Box::new(SqlExpr::Nested(Box::new(right))),
        };
        select.selection = select.selection.take().into_iter().chain(outer).reduce(and);
    }
    let select = select::check_shape(&mut query, context.lines, errors)?;
    let outputs = select::name_outputs(select, context.lines, errors);
    let spans = select::spans(select, context.lines, whole);
    check_select(select, &spans)?;
    let parts = match parts(select, views, sources, context) {
        Ok(Some(parts)) => parts,
        other => {
            errors.extend(other.err());
            check_apart(select, context, errors);
            return Ok(None);
        }
    };
    errors.extend(check_parts(&parts).err());
    let mut calls = calls;
    let named = errors.len();
    judge::fields(select, &mut judged_filter, &calls, context, errors)?;
    if errors.len() > named {
        return Ok(None);
    }
    let columns: Vec<String> = calls
        .iter()
        .flat_map(|call| call.fields())
        .map(|field| field.name().clone())
        .collect();
    let mut resolver = Resolver {
        parts: &parts,
        columns: &columns,
        context,
        errors,
    };
    let mut names = resolver.flat_names();
    for call in &mut calls {
        let exprs = [&mut call.value, &mut call.time, &mut call.order].into_iter();
        for expr in exprs.chain(&mut call.partition) {
            resolver.resolve(expr, &mut names);
        }
    }
    let mut ons: Vec<Option<SqlExpr>> = parts.iter().map(|part| part.on.clone()).collect();
    for on in ons.iter_mut().flatten() {
        resolver.resolve(on, &mut names);
    }
    let exprs = select::items(&mut select.projection);
    for expr in exprs.chain(&mut select.selection).chain(&mut judged_filter) {
        resolver.resolve(expr, &mut names);
    }
    if errors.len() > before {
        return Ok(None);
    }
    let mut parts = parts;
    for (part, on) in parts.iter_mut().zip(ons) {
        part.on = on;
    }
    let moved = match across::together(&ast.name.text, &parts, sources, context)? {
        None => Vec::new(),
        Some((rows, views)) => {
            sources.push(rows);
            views
        }
    };
    for (part, view) in parts.iter_mut().zip(&moved) {
        part.view = view;
    }
    for part in &parts {
        if let Some(on) = &part.on {
            errors.extend(check_on(on, part, &parts, context).err());
        }
    }
    if errors.len() > before {
        return Ok(None);
    }
    let rows = sources[parts[0].view.source].schema();
    let planned = |error| planner_error(&error, whole, context.lines);
    let mut joined = Joined::new(&parts, rows).map_err(planned)?;
    let window = WindowSpec {
        view: format!("{pipeline}.{}", ast.name.text),
        late_topic: ast.late_topic.as_ref().map(|topic| topic.value.clone()),
        early_every_ms: None,
        ..parts[0].view.window.clone()
    };
    joined.view.name.clone_from(&ast.name.text);
    joined.view.window = window;
    let list = List {
        select,
        outputs: &outputs,
        spans: &spans,
    };
    match calls.is_empty() {
        true => joined.project(&list, context, errors)?,
        false => joined.judge(&list, &calls, judged_filter, context, errors)?,
    }
    Ok(Some(joined.view).filter(|_| errors.len() == before && !ast.broken))
}

/// What can be said of a SELECT over views of which nothing is known.
fn check_apart(select: &mut Select, context: &Context<'_>, errors: &mut Vec<Diagnostic>) {
    let unknown = Unknown::all();
    let mut names = Names::apart(context.functions, context.lines, &unknown, errors);
    let exprs = select::items(&mut select.projection);
    for expr in exprs.chain(&mut select.selection) {
        names.resolve(expr, Place::Condition);
    }
}

fn check_clauses(ast: &ast::View) -> Parsed<()> {
    let lateness = ast.lateness.as_ref().map(|at| (at.span, "ALLOW LATENESS"));
    let early = ast.early_every.as_ref().map(|at| (at.span, "EMIT EVERY"));
    let fill = (ast.fill_missing_windows > 0).then_some((ast.name.span, "FILL MISSING"));
    let limit = ast.state_limit.map(|_| (ast.name.span, "ON STATE LIMIT"));
    match lateness.or(early).or(fill).or(limit) {
        None => Ok(()),
        Some((span, clause)) => Err(Diagnostic::new(
            format!("a view over views takes no {clause}: its windows are those of what it reads"),
            span,
        )
        .help("write it at the views that read the source")),
    }
}

fn check_select(select: &Select, spans: &select::Spans) -> Parsed<()> {
    let grouped = !matches!(&select.group_by, GroupByExpr::Expressions(exprs, _) if exprs.is_empty());
    if grouped || select.having.is_some() {
        let span = spans.group.first().copied().or(spans.having).unwrap_or(spans.whole);
        return Err(
            Diagnostic::new("a view over views has the rows of those views: it does not group", span)
                .help("remove GROUP BY and filter with WHERE, or write the view to a sink and read that as a source"),
        );
    }
    Ok(())
}

/// The views of FROM; `None` where one of them failed.
fn parts<'a>(
    select: &Select,
    views: &'a [View],
    sources: &[Source],
    context: &Context<'_>,
) -> Parsed<Option<Vec<Part<'a>>>> {
    let [from] = select.from.as_slice() else {
        let spans = select.from.iter().map(|from| context.lines.span(from.span()));
        let span = spans.reduce(Span::to).unwrap_or_default();
        return Err(
            Diagnostic::new("a list of views says not how they belong together", span)
                .help("write a JOIN b ON a.service = b.service AND a.window_start = b.window_start"),
        );
    };
    let mut parts: Vec<Part<'a>> = Vec::new();
    let first = (&from.relation, false, None);
    let mut tables = vec![first];
    for join in &from.joins {
        let span = context.lines.span(join.relation.span());
        let (optional, constraint) = match &join.join_operator {
            JoinOperator::Join(on) | JoinOperator::Inner(on) => (false, on),
            JoinOperator::Left(on) | JoinOperator::LeftOuter(on) => (true, on),
            _ => {
                return Err(Diagnostic::new("views are joined by JOIN or LEFT JOIN", span)
                    .help("RIGHT JOIN is a LEFT JOIN the other way round; a FULL JOIN would need two views"));
            }
        };
        let JoinConstraint::On(on) = constraint else {
            return Err(Diagnostic::new("a join of views says ON what", span)
                .help("write ON a.service = b.service AND a.window_start = b.window_start"));
        };
        tables.push((&join.relation, optional, Some(on.clone())));
    }
    for (table, optional, on) in tables {
        let Some((alias, view, span)) = table_view(table, views, sources, context)? else {
            return Ok(None);
        };
        if parts.iter().any(|part| part.alias == alias) {
            return Err(Diagnostic::new(format!("two views are called `{alias}` here"), span)
                .help("give one of them another name with AS"));
        }
        parts.push(Part {
            alias,
            view,
            optional,
            on,
            span,
        });
    }
    Ok(Some(parts))
}

fn table_view<'a>(
    table: &TableFactor,
    views: &'a [View],
    sources: &[Source],
    context: &Context<'_>,
) -> Parsed<Option<(String, &'a View, Span)>> {
    let span = context.lines.span(table.span());
    let not_a_view = || Diagnostic::new("a view over views reads views", span).help("name a feature view");
    let TableFactor::Table { name, alias, .. } = table else {
        return Err(not_a_view());
    };
    let Some(ident) = name
        .0
        .last()
        .and_then(|part| part.as_ident())
        .filter(|_| name.0.len() == 1)
    else {
        return Err(not_a_view());
    };
    let name = Name {
        text: ident.value.clone(),
        quoted: ident.quote_style.is_some(),
        span,
    };
    let names = || views.iter().map(|view| view.name.as_str());
    let Some(index) = name.find(names()) else {
        if context.failed.contains(&name.text) {
            return Ok(None);
        }
        if crate::source::find(sources, &name).is_some() {
            let message = format!("`{}` is a source: a view over views reads views", name.text);
            let help = "join a view of it with the same window and keys, or a table in CREATE VIEW";
            return Err(Diagnostic::new(message, span).help(help));
        }
        let failed = context.failed.iter().map(String::as_str);
        let near = did_you_mean(&name.text, names().chain(failed));
        return Err(Diagnostic::new(format!("there is no view `{}`", name.text), span).help_opt(near));
    };
    let view = &views[index];
    let alias = alias.as_ref().map_or(&view.name, |alias| &alias.name.value);
    Ok(Some((alias.clone(), view, span)))
}

/// Rows belong together by window and keys, so these are equal.
fn check_parts(parts: &[Part<'_>]) -> Parsed<()> {
    let first = &parts[0].view;
    let alone = parts.iter().all(|part| part.view.source == first.source);
    let lengths = |window: &WindowSpec| (window.size_ms, window.slide_ms, window.offset_ms, window.lateness_ms);
    let keys = |view: &View| -> Vec<String> { view.keys.iter().map(|key| canonical(&key.expr)).collect() };
    for part in parts {
        let view = part.view;
        let refuse = |message: String, help: &str| Err(Diagnostic::new(message, part.span).help(help));
        if view.window.session_gap_ms.is_some() || view.fill_missing_windows > 0 {
            let message = format!("`{}` has sessions or FILL MISSING, which no view reads", view.name);
            return refuse(message, "write it to a sink and read that as a source");
        }
        if view.judged.is_some() {
            let message = format!("`{}` judges its rows, which no view reads", view.name);
            return refuse(
                message,
                "read the views that it reads, or write it to a sink and read that as a source",
            );
        }
        if lengths(&view.window) != lengths(&first.window) {
            let message = format!("the windows of `{}` and `{}` are not equal", first.name, view.name);
            return refuse(message, "give both the same window and the same ALLOW LATENESS");
        }
        if view.state_limit != first.state_limit {
            let message = format!("`{}` and `{}` have different state limits", first.name, view.name);
            return refuse(message, "give both the same ON STATE LIMIT");
        }
        if alone && keys(view) != keys(first) {
            let message = format!("`{}` and `{}` do not group by the same", first.name, view.name);
            return refuse(message, "give both the same GROUP BY");
        }
    }
    Ok(())
}

/// ON is equality of the window and of every key, with a view that is there in every row.
fn check_on(on: &SqlExpr, part: &Part<'_>, parts: &[Part<'_>], context: &Context<'_>) -> Parsed<()> {
    let mut keys = BTreeSet::new();
    let mut window = false;
    for conjunct in conjuncts(on) {
        let span = context.lines.span(conjunct.span());
        match sides(conjunct).and_then(|(left, right)| equal(left, right, part, parts)) {
            Some(Equal::Window) => window = true,
            Some(Equal::Key(key)) => {
                keys.insert(key);
            }
            None => return Err(not_equal(span)),
        }
    }
    if !window {
        return Err(
            Diagnostic::new("the join is not on the window", context.lines.span(on.span()))
                .help("add AND a.window_start = b.window_start"),
        );
    }
    if let Some(missing) = (0..part.view.keys.len()).find(|key| !keys.contains(key)) {
        let message = format!("the join is not on `{}`", part.view.keys[missing].field.name());
        return Err(Diagnostic::new(message, context.lines.span(on.span())).help("join on every key of the views"));
    }
    Ok(())
}

fn not_equal(span: Span) -> Diagnostic {
    Diagnostic::new("views are joined on equal windows and equal keys, nothing else", span)
        .help("write other conditions into WHERE")
}

enum Equal {
    Window,
    Key(usize),
}

fn equal(left: &SqlExpr, right: &SqlExpr, part: &Part<'_>, parts: &[Part<'_>]) -> Option<Equal> {
    let [left, right] = [left, right].map(|side| match side {
        SqlExpr::Identifier(ident) => column(&ident.value, parts),
        _ => None,
    });
    let (left, right) = (left?, right?);
    let other = match (left.0.alias == part.alias, right.0.alias == part.alias) {
        (true, false) => right.0,
        (false, true) => left.0,
        _ => return None,
    };
    let position = |alias: &str| parts.iter().position(|part| part.alias == alias);
    if other.optional || position(&other.alias) > position(&part.alias) {
        return None;
    }
    let keys = (left.0.view.key_of_output(left.1), right.0.view.key_of_output(right.1));
    if let (Some(left), Some(right)) = keys {
        return (left == right).then_some(Equal::Key(left));
    }
    let exprs = [left, right].map(|(part, output)| bare(&part.view.projection[output]).clone());
    let window = matches!(&exprs[0], Expr::Column(column) if WINDOW_COLUMNS.contains(&column.name.as_str()));
    (window && exprs[0] == exprs[1]).then_some(Equal::Window)
}

/// The part and its output column that a flat name means.
fn column<'a, 'b>(flat: &str, parts: &'b [Part<'a>]) -> Option<(&'b Part<'a>, usize)> {
    parts.iter().find_map(|part| {
        let index = part.columns().position(|field| part.flat(field.name()) == flat)?;
        Some((part, index))
    })
}

/// A SELECT list and WHERE, the names of the columns, and where everything stands.
#[derive(Clone, Copy)]
struct List<'a> {
    select: &'a Select,
    outputs: &'a [(String, Span)],
    spans: &'a select::Spans,
}

/// The joined view while it is put together.
struct Joined<'a> {
    parts: &'a [Part<'a>],
    /// For each part, where its aggregates are among those of the joined view.
    places: Vec<Vec<usize>>,
    /// For each part, what holds of a group in which it has a row.
    present: Vec<Option<Expr>>,
    rows: DFSchema,
    view: View,
}

impl<'a> Joined<'a> {
    fn new(parts: &'a [Part<'a>], rows: Schema) -> PlanResult<Self> {
        let filters: Vec<Option<&Expr>> = parts.iter().map(|part| part.view.filter.as_ref()).collect();
        let texts: BTreeSet<Option<String>> = filters.iter().map(|filter| filter.map(canonical)).collect();
        let alike = texts.len() == 1;
        let any = filters.iter().copied().collect::<Option<Vec<&Expr>>>();
        let filter = match alike {
            true => filters[0].cloned(),
            false => any.and_then(|filters| filters.into_iter().cloned().reduce(Expr::or)),
        };
        let mut joined = Self {
            parts,
            places: Vec::new(),
            present: Vec::new(),
            rows: DFSchema::try_from(rows)?,
            view: View {
                filter,
                aggregates: Vec::new(),
                projection: Vec::new(),
                having: None,
                output: Arc::new(Schema::empty()),
                fill_missing_windows: 0,
                judged: None,
                ..parts[0].view.clone()
            },
        };
        for part in 0..parts.len() {
            joined.fold(part, alike)?;
        }
        Ok(joined)
    }

    /// Adds the aggregates of a part, over its own rows.
    fn fold(&mut self, index: usize, alike: bool) -> PlanResult<()> {
        let view = self.parts[index].view;
        let filter = view.filter.as_ref().filter(|_| !alike);
        let mut places = Vec::with_capacity(view.aggregates.len());
        for aggregate in &view.aggregates {
            places.push(self.aggregate(aggregate.expr.clone(), filter)?);
        }
        self.places.push(places);
        let mut present = Vec::new();
        if filter.is_some() {
            let count = self.aggregate(expr_fn::count(lit(1i64)), filter)?;
            present.push(Expr::Column(Column::from_name(aggregate_name(count))).gt(lit(0i64)));
        }
        if let Some(having) = &view.having {
            present.push(self.moved(index, having)?);
        }
        if index > 0 {
            // NULL equals nothing.
            let keys = view.keys.iter();
            present.extend(keys.map(|key| Expr::Column(Column::from_name(key.field.name())).is_not_null()));
        }
        self.present.push(present.into_iter().reduce(Expr::and));
        Ok(())
    }

    fn aggregate(&mut self, expr: Expr, filter: Option<&Expr>) -> PlanResult<usize> {
        let expr = match (bare(&expr).clone(), filter) {
            (Expr::AggregateFunction(mut function), Some(filter)) => {
                let own = function.params.filter.take();
                let both = own.map_or_else(|| filter.clone(), |own| filter.clone().and(*own));
                function.params.filter = Some(Box::new(both));
                Expr::AggregateFunction(function)
            }
            (expr, _) => expr,
        };
        let canonical = canonical(&expr);
        let aggregates = &mut self.view.aggregates;
        if let Some(index) = aggregates.iter().position(|other| other.canonical == canonical) {
            return Ok(index);
        }
        let (_, output) = expr.to_field(&self.rows)?;
        aggregates.push(ViewAggregate {
            expr,
            canonical,
            output,
        });
        Ok(aggregates.len() - 1)
    }

    /// What a part computes over its own aggregates, over those of the joined view.
    fn moved(&self, part: usize, expr: &Expr) -> PlanResult<Expr> {
        let places = self.places[part].iter().enumerate();
        let places: Vec<(String, String)> = places
            .map(|(from, to)| (aggregate_name(from), aggregate_name(*to)))
            .collect();
        renamed(bare(expr).clone(), &|column| {
            let moved = places.iter().find(|(from, _)| *from == column.name);
            Ok(Column::from_name(moved.map_or(&column.name, |(_, to)| to)))
        })
    }

    /// Columns of the parts replaced by what they are computed from.
    fn computed(&self, expr: Expr) -> PlanResult<Expr> {
        let transformed = expr.transform_up(|expr| {
            let Expr::Column(named) = &expr else {
                return Ok(Transformed::no(expr));
            };
            let found = self.parts.iter().enumerate().find_map(|(index, part)| {
                let output = part.columns().position(|field| part.flat(field.name()) == named.name)?;
                Some((index, output))
            });
            let Some((part, output)) = found else {
                return Ok(Transformed::no(expr));
            };
            let value = self.moved(part, &self.parts[part].view.projection[output])?;
            match &self.present[part] {
                Some(present) if self.parts[part].optional => Ok(Transformed::yes(when(present.clone(), value).end()?)),
                _ => Ok(Transformed::yes(value)),
            }
        })?;
        Ok(transformed.data)
    }

    fn project(&mut self, list: &List<'_>, context: &Context<'_>, errors: &mut Vec<Diagnostic>) -> Parsed<()> {
        let List { select, outputs, spans } = *list;
        let at = |span: Span| move |error| planner_error(&error, span, context.lines);
        let columns = self.parts.iter().flat_map(|part| {
            part.columns()
                .map(|field| Field::new(part.flat(field.name()), field.data_type().clone(), true))
        });
        let columns = Schema::new(columns.collect::<Vec<_>>());
        let columns = Arc::new(DFSchema::try_from(columns).map_err(at(spans.whole))?);
        let input = Arc::new(DFSchema::try_from(self.view.input()).map_err(at(spans.whole))?);
        let mut fields = Vec::with_capacity(outputs.len());
        for (index, (item, (name, _))) in select.projection.iter().zip(outputs).enumerate() {
            let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else {
                continue;
            };
            let span = spans.select.get(index).copied().unwrap_or(spans.whole);
            let planned = context.functions.expression(expr.clone(), &columns);
            let planned = planned.and_then(|expr| simplify(self.computed(expr)?, &input));
            let planned = planned.and_then(|expr| Ok((expr.to_field(&input)?.1, expr)));
            let (field, planned) = match planned {
                Ok(planned) => planned,
                Err(error) => {
                    errors.push(at(span)(error));
                    continue;
                }
            };
            // What cannot be computed over a row is NULL there, whatever its operands are.
            let nullable = field.is_nullable() || !matches!(bare(&planned), Expr::Column(_));
            fields.push(Field::new(name, field.data_type().clone(), nullable));
            self.view.projection.push(planned);
        }
        self.view.output = Arc::new(Schema::new(fields));
        let parts = self.parts.iter().zip(&self.present);
        let required = parts.filter(|(part, _)| !part.optional);
        let mut conditions: Vec<Expr> = required.filter_map(|(_, present)| present.clone()).collect();
        if let Some(filter) = &select.selection {
            let span = spans.filter.unwrap_or(spans.whole);
            let filter = condition(filter.clone(), &columns, context.functions, span, context.lines)?;
            conditions.push(self.computed(filter).map_err(at(span))?);
        }
        if let Some(having) = conditions.into_iter().reduce(Expr::and) {
            self.view.having = Some(simplify(having, &input).map_err(at(spans.whole))?);
        }
        Ok(())
    }
}
