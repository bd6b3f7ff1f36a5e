//! Views of rows: `SELECT … FROM a UNION ALL SELECT … FROM b`, by name or inside a window.
//!
//! Windows over such a view are planned over its columns, as over a source's. Then every part gets panes of its own, over what
//! its source delivers, and the panes of all parts meet in the same windows: no row is copied.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, TimeUnit};
use datafusion::{
    common::{
        Column, DFSchema, Result as PlanResult, ScalarValue,
        tree_node::{Transformed, TreeNode},
    },
    logical_expr::{Expr, ExprSchemable, LogicalPlan, expr::Cast},
    sql::sqlparser::{
        ast::{Expr as SqlExpr, GroupByExpr, Query, Select, SelectItem, SetExpr, Spanned, Value},
        tokenizer::{Token as Tok, Word},
    },
};

use crate::{
    ast::Rows,
    compile::Statements,
    detector::type_name,
    diagnostic::{Diagnostic, Span, one_of},
    join, lookup,
    pane_set::PaneSet,
    select::{self, Context, Place},
    simplify::simplify,
    source::{Source, SourceColumn, WINDOW_COLUMNS},
    text::{Cursor, Name, Parsed, Token},
    view::{Key, ViewAggregate, bare, canonical, planner_error, renamed},
};

/// Parts of one view; each has panes of its own.
const PARTS_MAX: usize = 32;

/// One SELECT of a view of rows, over the columns of its source.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// Index of the source.
    pub source: usize,
    pub filter: Option<Expr>,
    /// The view's columns in order, in the view's types.
    pub columns: Vec<Expr>,
    /// As a batch query over a table called as the source.
    pub sql: String,
}

/// Takes queries out of the FROM of views: each becomes a view of rows that the view reads by name.
pub(crate) fn take_inline(statements: &mut Statements) {
    let over_views: Vec<bool> = statements
        .views
        .iter()
        .map(|view| join::reads_views(view, &statements.views))
        .collect();
    let over_sources = statements
        .views
        .iter_mut()
        .zip(over_views)
        .filter(|(_, over_views)| !over_views);
    for (view, _) in over_sources {
        let Some((from, to)) = select::inline_query(&view.select) else {
            continue;
        };
        let span = view.select[from].span.to(view.select[to].span);
        let name = Name {
            text: format!("rows of {}", view.name.text),
            quoted: true,
            span,
        };
        let mut word = view.select[from].replaced(Tok::Word(Word {
            value: name.text.clone(),
            quote_style: Some('"'),
            keyword: datafusion::sql::sqlparser::keywords::Keyword::NoKeyword,
        }));
        word.span = span;
        let select = view.select.splice(from..=to, [word]).collect::<Vec<Token>>();
        statements.rows.push(Rows {
            name,
            select: select[1..select.len() - 1].to_vec(),
            broken: false,
            span,
        });
    }
}

/// Resolves one view of rows to a source that has parts. What is wrong goes to `errors`; the columns of a view with mistakes are known
/// by name.
pub(crate) fn resolve(
    ast: &Rows,
    sources: &mut [Source],
    context: &Context<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Source {
    let before = errors.len();
    let texts = match split(ast) {
        Ok(texts) => texts,
        Err(error) => {
            errors.push(error);
            return Source::unknown(&ast.name.text);
        }
    };
    let mut names = None;
    let mut parts = Vec::new();
    let count = texts.len();
    for (at, tokens) in texts.into_iter().enumerate() {
        let own = match part(tokens, sources, context, errors) {
            Ok(part) => part,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        match own {
            Read::Planned(part) => parts.push(*part),
            Read::Wrong(outputs) if at == 0 => names = outputs,
            Read::Wrong(_) => {}
        }
    }
    if let (0, Some(first)) = (errors.len() - before, parts.first())
        && parts.len() == count
    {
        names = Some(first.names.iter().map(|(name, _)| name.clone()).collect());
        match align(ast, parts, sources, context) {
            Ok(source) => return source,
            Err(error) => errors.push(error),
        }
    } else if let Some(first) = parts.first() {
        names = names.or_else(|| Some(first.names.iter().map(|(name, _)| name.clone()).collect()));
    }
    let mut unknown = Source::unknown(&ast.name.text);
    if let Some(names) = names.filter(|names| names.iter().all(|name| name != "*")) {
        unknown.unknown.columns = names;
        unknown.unknown.others = false;
    }
    unknown
}

/// What became of one SELECT.
enum Read {
    Planned(Box<Planned>),
    /// Something in it is wrong; the names of its columns, where they can be told.
    Wrong(Option<Vec<String>>),
}

/// The SELECTs between UNION ALL.
fn split(ast: &Rows) -> Parsed<Vec<&[Token]>> {
    let mut cursor = Cursor::new(&ast.select);
    let mut parts = Vec::new();
    loop {
        let tokens = cursor.until(&["UNION", "INTERSECT", "EXCEPT"]);
        if !tokens.first().is_some_and(|token| token.is_word("SELECT")) {
            let place = tokens.first().map_or(ast.span, |token| token.span);
            return Err(
                Diagnostic::new("expected SELECT", place).help("write SELECT … FROM a UNION ALL SELECT … FROM b")
            );
        }
        parts.push(tokens);
        if cursor.peek().is_none() {
            break;
        }
        let operator = cursor.here();
        if !cursor.eat("UNION") || !cursor.eat("ALL") {
            return Err(
                Diagnostic::new("rows of several sources are put together by UNION ALL", operator)
                    .help("UNION without ALL would have to remember every row to leave out what is equal"),
            );
        }
    }
    if parts.len() > PARTS_MAX {
        let message = format!("a view of {} parts; at most {PARTS_MAX} are read", parts.len());
        return Err(Diagnostic::new(message, ast.span));
    }
    Ok(parts)
}

/// A part whose columns have the types that its SELECT gives them.
struct Planned {
    part: Part,
    fields: Vec<FieldRef>,
    names: Vec<(String, Span)>,
    span: Span,
}

fn part(tokens: &[Token], sources: &mut [Source], context: &Context<'_>, errors: &mut Vec<Diagnostic>) -> Parsed<Read> {
    let whole = select::tokens_span(tokens);
    let before = errors.len();
    let tokens = select::keywords(tokens, errors);
    let Some(from) = select::first_table(&tokens) else {
        if select::reads_window(&tokens) {
            let error = Diagnostic::new("a view of rows reads a source, without a window", whole);
            return Err(error.help("write CREATE FEATURE VIEW for windows over rows"));
        }
        return Err(
            Diagnostic::new("a view of rows reads a source, without a window", whole)
                .help("write SELECT … FROM source, and put the window around the view"),
        );
    };
    let index = select::source_of(&from, sources, context, errors);
    let mut unknown = Source::unknown(&from.text);
    let source = index.map_or(&mut unknown, |index| &mut sources[index]);
    if !source.parts.is_empty() {
        let message = format!("`{}` is itself a view of rows", from.text);
        return Err(Diagnostic::new(message, from.span).help("read the sources that it reads"));
    }
    let (tokens, times) = lookup::take_as_of(&tokens)?;
    let tokens = select::map_entries(tokens, source);
    let source: &Source = source;
    let Some(mut query) = select::parse_mending(tokens, context.lines, errors) else {
        return Ok(Read::Wrong(None));
    };
    let select = select::check_shape(&mut query, context.lines, errors)?;
    if !lookup::look_up(select, &times, source, context, errors)? {
        let names = select::name_outputs(select, context.lines, &mut Vec::new());
        return Ok(Read::Wrong(Some(names.into_iter().map(|(name, _)| name).collect())));
    }
    select::one_source(select, context.lines)?;
    if let Err(error) = check_rows(select, context, whole) {
        errors.push(error);
        select.group_by = GroupByExpr::Expressions(Vec::new(), Vec::new());
        select.having = None;
    }
    select::rename_table(select, &source.name);
    let names = select::name_outputs(select, context.lines, errors);
    let spans = select::spans(select, context.lines, whole);
    let open = select::resolve_names(select, source, Place::Row, context, errors);
    if errors.len() > before || !open.is_empty() || index.is_none() {
        check_apart(&query, source, &spans, &open, before, context, errors);
        return Ok(Read::Wrong(Some(names.into_iter().map(|(name, _)| name).collect())));
    }
    let sql = query.to_string();
    let (filter, exprs) = match planned(query.clone(), source, context) {
        Ok(planned) => planned,
        Err(error) => {
            check_apart(&query, source, &spans, &[], before, context, errors);
            if errors.len() == before {
                errors.push(planner_error(&error, whole, context.lines));
            }
            return Ok(Read::Wrong(Some(names.into_iter().map(|(name, _)| name).collect())));
        }
    };
    let schema =
        Arc::new(DFSchema::try_from(source.schema()).map_err(|error| planner_error(&error, whole, context.lines))?);
    let mut columns = Vec::with_capacity(exprs.len());
    let mut fields = Vec::with_capacity(exprs.len());
    for (at, expr) in exprs.into_iter().enumerate() {
        let span = spans.select.get(at).copied().unwrap_or(whole);
        let planned = simplify(expr, &schema).and_then(|expr| Ok((expr.to_field(&schema)?.1, expr)));
        let (field, expr) = planned.map_err(|error| planner_error(&error, span, context.lines))?;
        if field.data_type().is_nested() {
            let message = format!(
                "`{}` is a {}, which has no place in a view of rows",
                names[at].0,
                type_name(field.data_type())
            );
            errors.push(
                Diagnostic::new(message, span)
                    .help("name the entries that are needed: attributes['http.route'] AS route"),
            );
        }
        columns.push(expr);
        fields.push(field);
    }
    let Some(index) = index.filter(|_| errors.len() == before) else {
        return Ok(Read::Wrong(Some(names.into_iter().map(|(name, _)| name).collect())));
    };
    let part = Part {
        source: index,
        filter,
        columns,
        sql,
    };
    Ok(Read::Planned(Box::new(Planned {
        part,
        fields,
        names,
        span: whole,
    })))
}

/// Plans every part of a SELECT by itself, for what is wrong with its types; without those that mistakes, or names of which nothing is
/// known, are in.
fn check_apart(
    query: &Query,
    source: &Source,
    spans: &select::Spans,
    open: &[Span],
    before: usize,
    context: &Context<'_>,
    errors: &mut Vec<Diagnostic>,
) {
    let places: Vec<Span> = errors[before..]
        .iter()
        .map(|error| error.span)
        .chain(open.iter().copied())
        .collect();
    let sound = |span: &Span| {
        !places
            .iter()
            .any(|place| span.start <= place.start && place.end <= span.end)
    };
    // Without the SELECT list, which may be long: each trial copies what it needs of it.
    let mut rest = query.clone();
    let items = match rest.body.as_mut() {
        SetExpr::Select(select) => std::mem::take(&mut select.projection),
        _ => Vec::new(),
    };
    let mut check = |span: Span, edit: &dyn Fn(&mut Select)| {
        let mut query = rest.clone();
        if let SetExpr::Select(select) = query.body.as_mut() {
            edit(select);
        }
        if let Err(error) = planned(query, source, context) {
            let error = planner_error(&error, span, context.lines);
            // A key of a join is in every column of its table.
            if errors[before..].iter().all(|other| other.message != error.message) {
                errors.push(error);
            }
        }
    };
    if let Some(span) = spans.filter.filter(sound) {
        check(span, &|select| {
            select.projection = vec![SelectItem::UnnamedExpr(SqlExpr::value(Value::Null))];
        });
    }
    for (at, span) in spans.select.iter().enumerate().filter(|(_, span)| sound(span)) {
        check(*span, &|select| {
            select.selection = None;
            select.projection = items.get(at).cloned().into_iter().collect();
        });
    }
}

fn check_rows(select: &Select, context: &Context<'_>, whole: Span) -> Parsed<()> {
    let grouped = !matches!(&select.group_by, GroupByExpr::Expressions(exprs, _) if exprs.is_empty());
    if !grouped && select.having.is_none() {
        return Ok(());
    }
    let span = match &select.group_by {
        GroupByExpr::Expressions(exprs, _) => exprs
            .iter()
            .map(|expr| context.lines.span(expr.span()))
            .reduce(Span::to),
        GroupByExpr::All(_) => None,
    };
    Err(Diagnostic::new("a view of rows does not group", span.unwrap_or(whole))
        .help("group in a feature view over it: CREATE FEATURE VIEW … FROM TUMBLE(TABLE rows, …) GROUP BY …"))
}

/// WHERE and the SELECT list, typed.
fn planned(query: Query, source: &Source, context: &Context<'_>) -> PlanResult<(Option<Expr>, Vec<Expr>)> {
    let plan = context.functions.plan(query, &source.name, &source.schema())?;
    let schema = Arc::new(DFSchema::try_from(source.schema())?);
    let own = |expr: &Expr| renamed(bare(expr).clone(), &|column| Ok(Column::from_name(column.name.clone())));
    let LogicalPlan::Projection(projection) = plan else {
        return datafusion::common::plan_err!("a view of rows is SELECT … FROM … WHERE …");
    };
    let mut filter = None;
    let mut below = projection.input.as_ref();
    loop {
        below = match below {
            LogicalPlan::Filter(rows) if filter.is_none() => {
                filter = Some(simplify(own(&rows.predicate)?, &schema)?);
                rows.input.as_ref()
            }
            LogicalPlan::SubqueryAlias(alias) => alias.input.as_ref(),
            LogicalPlan::TableScan(_) => break,
            _ => return datafusion::common::plan_err!("a view of rows reads one source in each SELECT"),
        };
    }
    let columns = projection.expr.iter().map(own).collect::<PlanResult<_>>()?;
    Ok((filter, columns))
}

/// Puts the parts side by side: columns by position, with the names of the first part.
fn align(ast: &Rows, mut planned: Vec<Planned>, sources: &[Source], context: &Context<'_>) -> Parsed<Source> {
    let count = planned[0].fields.len();
    if let Some(other) = planned.iter().find(|planned| planned.fields.len() != count) {
        let message = format!("{} columns here, {count} in the first SELECT", other.fields.len());
        return Err(Diagnostic::new(message, other.span).help("UNION ALL puts columns together by their position"));
    }
    let event_time = event_time(ast, &planned, sources)?;
    let mut columns = Vec::with_capacity(count);
    for at in 0..count {
        let data_type = common_type(&planned, at)?;
        for planned in &mut planned {
            if planned.fields[at].data_type() != &data_type {
                let schema = DFSchema::try_from(sources[planned.part.source].schema());
                let column = &mut planned.part.columns[at];
                let cast = Expr::Cast(Cast::new(Box::new(column.clone()), data_type.clone()));
                let cast = schema.and_then(|schema| simplify(cast, &Arc::new(schema)));
                *column = cast.map_err(|error| planner_error(&error, planned.names[at].1, context.lines))?;
            }
        }
        let (name, span) = &planned[0].names[at];
        if WINDOW_COLUMNS.contains(&name.as_str()) {
            return Err(Diagnostic::new(format!("rows have no `{name}`: windows add it"), *span));
        }
        columns.push(SourceColumn {
            field: Field::new(name, data_type, true),
            path: None,
            metadata: None,
        });
    }
    let first = &sources[planned[0].part.source];
    Ok(Source {
        name: ast.name.text.clone(),
        event_time: planned[0].names[event_time].0.clone(),
        columns,
        parts: planned.into_iter().map(|planned| planned.part).collect(),
        topic: String::new(),
        ..first.clone()
    })
}

/// The first column that is the event time of every part's source.
fn event_time(ast: &Rows, planned: &[Planned], sources: &[Source]) -> Parsed<usize> {
    let is_time = |planned: &Planned, at: usize| {
        let time = &sources[planned.part.source].event_time;
        matches!(&planned.part.columns[at], Expr::Column(column) if column.name == *time)
    };
    let found = (0..planned[0].fields.len()).find(|at| planned.iter().all(|planned| is_time(planned, *at)));
    found.ok_or_else(|| {
        let names = planned.iter().map(|planned| &sources[planned.part.source]);
        let names = names.map(|source| format!("`{}` of `{}`", source.event_time, source.name));
        let names: std::collections::BTreeSet<String> = names.collect();
        let message = "no column is the event time in every SELECT, so no window could be cut";
        Diagnostic::new(message, ast.name.span).help(format!(
            "select {} at the same position, unchanged",
            one_of(names.iter().map(String::as_str)).replace(" or ", " and ")
        ))
    })
}

/// One type for a column: texts, numbers and times each have a common one.
fn common_type(planned: &[Planned], at: usize) -> Parsed<DataType> {
    let mut common = planned[0].fields[at].data_type().clone();
    for planned in &planned[1..] {
        let own = planned.fields[at].data_type();
        common = widened(&common, own).ok_or_else(|| {
            let message = format!(
                "column {} is a {} here, a {} in the first SELECT",
                at + 1,
                type_name(own),
                type_name(&common)
            );
            Diagnostic::new(message, planned.names[at].1)
                .help("CAST(x AS DOUBLE) and CAST(x AS VARCHAR) make them alike")
        })?;
    }
    // Texts of several dictionaries are told apart by their value.
    Ok(match common {
        text if is_text(&text) => telemetry::dictionary(),
        DataType::Null => telemetry::dictionary(),
        other => other,
    })
}

pub(crate) fn is_text(data_type: &DataType) -> bool {
    matches!(type_name(data_type), "string")
}

fn widened(a: &DataType, b: &DataType) -> Option<DataType> {
    let unit = |data_type: &DataType| match data_type {
        DataType::Timestamp(unit, _) => Some(*unit),
        _ => None,
    };
    match (a, b) {
        (a, b) if a == b => Some(a.clone()),
        (DataType::Null, other) | (other, DataType::Null) => Some(other.clone()),
        (a, b) if is_text(a) && is_text(b) => Some(telemetry::dictionary()),
        (a, b) if a.is_integer() && b.is_integer() => Some(DataType::Int64),
        (a, b) if a.is_numeric() && b.is_numeric() => Some(DataType::Float64),
        (a, b) => {
            let finest: TimeUnit = unit(a)?.max(unit(b)?);
            Some(DataType::Timestamp(finest, Some("UTC".into())))
        }
    }
}

/// Replaces every set over a view of rows by one set for each of its parts, equal in layout. Returns the sets that each set
/// has become; the first keeps its place.
pub(crate) fn expand(sets: &mut Vec<PaneSet>, sources: &[Source]) -> PlanResult<Vec<Vec<usize>>> {
    let mut places = Vec::with_capacity(sets.len());
    for at in 0..sets.len() {
        let of = &sources[sets[at].source];
        let mut place = vec![at];
        let whole = sets[at].clone();
        for (index, part) in of.parts.iter().enumerate() {
            let set = over_part(&whole, of, part, &sources[part.source].schema())?;
            if index == 0 {
                sets[at] = set;
            } else {
                place.push(sets.len());
                sets.push(set);
            }
        }
        places.push(place);
    }
    Ok(places)
}

/// A source, or the parts of a view of rows, as parts of another one whose columns these are, over the source's.
pub(crate) fn branches(index: usize, of: &Source, columns: Vec<Expr>) -> PlanResult<Vec<Part>> {
    if of.parts.is_empty() {
        return Ok(vec![Part {
            source: index,
            filter: None,
            columns,
            sql: String::new(),
        }]);
    }
    let branch = |part: &Part| {
        Ok(Part {
            columns: columns
                .iter()
                .map(|column| over(column, of, part))
                .collect::<PlanResult<_>>()?,
            ..part.clone()
        })
    };
    of.parts.iter().map(branch).collect()
}

/// An expression over the columns of a part's own source.
fn over(expr: &Expr, of: &Source, part: &Part) -> PlanResult<Expr> {
    let replaced = expr.clone().transform_up(|expr| {
        let Expr::Column(column) = &expr else {
            return Ok(Transformed::no(expr));
        };
        let at = of.column_names().position(|name| name == column.name);
        Ok(at.map_or(Transformed::no(expr), |at| Transformed::yes(part.columns[at].clone())))
    })?;
    Ok(replaced.data)
}

/// The set over the columns of a part's own source.
fn over_part(set: &PaneSet, of: &Source, part: &Part, schema: &Schema) -> PlanResult<PaneSet> {
    let schema = Arc::new(DFSchema::try_from(schema.clone())?);
    let own = |expr: &Expr| over(expr, of, part);
    let filter = set.filter.as_ref().map(own).transpose()?;
    let filter = match (part.filter.clone(), filter) {
        (Some(rows), Some(view)) => Some(rows.and(view)),
        (rows, view) => rows.or(view),
    };
    let filter = filter.map(|filter| simplify(filter, &schema)).transpose()?;
    let keys = set.keys.iter().map(|key| {
        Ok(Key {
            expr: simplify(own(&key.expr)?, &schema)?,
            field: Arc::clone(&key.field),
        })
    });
    let aggregates = set.aggregates.iter().map(|aggregate| {
        let expr = own(bare(&aggregate.expr))?;
        Ok(ViewAggregate {
            canonical: canonical(&expr),
            output: Arc::clone(&aggregate.output),
            expr,
        })
    });
    Ok(PaneSet {
        source: part.source,
        filter: filter.filter(|filter| !matches!(filter, Expr::Literal(ScalarValue::Boolean(Some(true)), _))),
        keys: keys.collect::<PlanResult<_>>()?,
        aggregates: aggregates.collect::<PlanResult<_>>()?,
        width_ms: set.width_ms,
        windows: set.windows.clone(),
        state_limit: set.state_limit,
    })
}
