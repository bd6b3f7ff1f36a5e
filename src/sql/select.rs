//! The SELECT of a view: the window is taken out, names are resolved, and what a stream cannot answer is refused.
//!
//! What remains is a plain query over one table, which DataFusion plans.

mod mend;
mod names;
mod window;

use datafusion::sql::sqlparser::{
    ast::{
        BinaryOperator, Expr, GroupByExpr, Ident, ObjectNamePart, Query, Select, SelectItem, SetExpr, Spanned,
        TableFactor, Value,
    },
    dialect::GenericDialect,
    parser::{Parser, ParserError},
    tokenizer::{Location, Token as Tok, TokenWithSpan, Word},
};

pub(crate) use mend::{ends_operand, is_operator, keywords, parse_mending};
pub(crate) use window::{Window, first_table, inline_query, reads_window};

use engine::spec::Format;

use crate::{
    ast,
    catalog::Functions,
    diagnostic::{Diagnostic, Span, did_you_mean, nearest},
    lookup::Table,
    source::{self, Source, WINDOW_COLUMNS},
    text::{Cursor, LineMap, Name, Parsed, Token, find, lower_first},
};
use names::TEMPORAL_COLUMNS;
pub(crate) use names::{Names, Place};

/// Beyond this a query is refused rather than planned: planning recurses.
pub(crate) const DEPTH_MAX: usize = 200;
const TOKENS_MAX: usize = 20_000;

/// A query over one source, without its window.
pub(crate) struct Flat {
    /// Index of the source; `None` where there is none of that name, or where that was said to be wrong.
    pub source: Option<usize>,
    /// The source, or what stands in its place.
    pub declared: Source,
    /// `None` where it is wrong.
    pub window: Option<Window>,
    pub window_span: Span,
    pub query: Query,
    /// Output columns: name and place.
    pub outputs: Vec<(String, Span)>,
    /// Place of every expression of SELECT, WHERE and HAVING, for errors that come without one.
    pub spans: Spans,
    /// Where names stand of which nothing is known.
    pub unknown: Vec<Span>,
    /// Something that GROUP BY names was left out.
    pub loose: bool,
    /// Something was left out.
    pub partial: bool,
    /// How many errors there are of it so far, the last ones.
    pub errors: usize,
}

pub(crate) struct Spans {
    pub select: Vec<Span>,
    pub filter: Option<Span>,
    pub having: Option<Span>,
    pub group: Vec<Span>,
    pub whole: Span,
}

/// Everything needed to read a SELECT.
pub(crate) struct Context<'a> {
    pub functions: &'a Functions,
    pub lines: &'a LineMap<'a>,
    /// Names whose own errors are already reported.
    pub failed: &'a [String],
    /// Every view of the text, to tell a view from an unknown source.
    pub views: &'a [ast::View],
    /// Tables of files.
    pub tables: &'a [Table],
}

impl Context<'_> {
    /// Whether a name is of something that was said to be wrong.
    pub fn is_failed(&self, name: &str) -> bool {
        self.failed.iter().any(|failed| failed.eq_ignore_ascii_case(name))
    }
}

/// The conditions that an ON or WHERE joins by AND, the last one first.
pub(crate) fn conjuncts(condition: &Expr) -> Vec<&Expr> {
    let (mut found, mut rest) = (Vec::new(), vec![condition]);
    while let Some(expr) = rest.pop() {
        match expr {
            Expr::Nested(inner) => rest.push(inner),
            Expr::BinaryOp {
                left,
                op: BinaryOperator::And,
                right,
            } => rest.extend([left.as_ref(), right.as_ref()]),
            other => found.push(other),
        }
    }
    found
}

/// What is said to be equal.
pub(crate) fn sides(equality: &Expr) -> Option<(&Expr, &Expr)> {
    match equality {
        Expr::BinaryOp {
            left,
            op: BinaryOperator::Eq,
            right,
        } => Some((left, right)),
        _ => None,
    }
}

/// The query of a view, as far as it can be read: what is wrong with it is in `errors`, and nothing of it may be in a plan then.
pub(crate) fn flatten(
    view: &ast::View,
    sources: &mut [Source],
    context: &Context<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Option<Flat> {
    match read(view, sources, context, errors) {
        Ok(flat) => flat,
        Err(error) => {
            errors.push(error);
            None
        }
    }
}

fn read(
    view: &ast::View,
    sources: &mut [Source],
    context: &Context<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Parsed<Option<Flat>> {
    let before = errors.len();
    let whole = checked_span(view)?;
    let tokens = keywords(&view.select, errors);
    let (tokens, from) = window::take_from(&tokens, errors)?;
    let mut unknown = Source::unknown(&from.source.text);
    let index = source_of(&from.source, sources, context, errors);
    let source = index.map_or(&mut unknown, |index| &mut sources[index]);
    let as_of = |pair: &[Token]| pair[0].is_word("FOR") && pair[1].is_word("SYSTEM_TIME");
    if let Some(at) = tokens.windows(2).position(as_of) {
        let error = Diagnostic::new("a table is joined to rows, not to windows", tokens[at].span);
        return Err(error.help("join it in CREATE VIEW, or inside of the window: TUMBLE(TABLE (SELECT … JOIN …), …)"));
    }
    let (tokens, grouped) = window::take_group_by(tokens, context.functions, errors);
    let written = window::only(from.window, grouped, &from.source, source, errors);
    let tokens = map_entries(tokens, source);
    let Some(mut query) = parse_mending(tokens, context.lines, errors) else {
        return Ok(None);
    };
    let select = check_shape(&mut query, context.lines, errors)?;
    one_source(select, context.lines)?;
    rename_table(select, &source.name);
    let outputs = name_outputs(select, context.lines, errors);
    check_window_names(select, context.lines, errors);
    let mut loose = group_by_outputs(select, source, context.lines, errors);
    let unknown = resolve_names(select, source, Place::Select, context, errors);
    let spans = spans(select, context.lines, whole);
    let sets = group_by_window(
        select,
        &from.source,
        written.is_some(),
        &mut loose,
        context.lines,
        errors,
    );
    let unknown = unknown.into_iter().chain(sets).collect();
    Ok(Some(Flat {
        source: index,
        declared: source.clone(),
        window: written.as_ref().and_then(|(window, _)| *window),
        window_span: written.map_or(from.source.span, |(_, span)| span),
        query,
        outputs,
        spans,
        unknown,
        loose,
        partial: false,
        errors: errors.len() - before,
    }))
}

/// Names of the columns that a view with mistakes would have; `None` where it cannot be told.
pub(crate) fn output_names(view: &ast::View, lines: &LineMap<'_>) -> Option<Vec<String>> {
    let mut errors = Vec::new();
    let tokens = keywords(&view.select, &mut errors);
    let (tokens, _) = window::take_from(&tokens, &mut errors).ok()?;
    let mut query = parse_mending(tokens, lines, &mut errors)?;
    let SetExpr::Select(select) = query.body.as_mut() else {
        return None;
    };
    let names = name_outputs(select, lines, &mut errors)
        .into_iter()
        .map(|(name, _)| name);
    known_names(names.collect(), view)
}

/// With what EMIT EVERY adds; `None` where one has no name.
pub(crate) fn known_names(mut names: Vec<String>, view: &ast::View) -> Option<Vec<String>> {
    names.extend(view.early_every.is_some().then(|| "is_final".to_owned()));
    let unnamed = |name: &String| name.starts_with(mend::UNNAMED) || name == "*";
    (!names.iter().any(unnamed)).then_some(names)
}

/// The source that FROM names. One that is misspelt is taken for the one that seems to be meant, so that its columns are checked.
pub(crate) fn source_of(
    name: &Name,
    sources: &[Source],
    context: &Context<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Option<usize> {
    if let Some(index) = source::find(sources, name) {
        return Some(index);
    }
    if context.is_failed(&name.text) {
        return None;
    }
    if context.views.iter().any(|view| view.name.text == name.text) {
        let message = format!("`{}` is a view: it has its windows already", name.text);
        let help = "read it without a window and GROUP BY, or write it to a sink and read that as a source";
        errors.push(Diagnostic::new(message, name.span).help(help));
        return None;
    }
    let known = sources.iter().map(|source| source.name.as_str());
    let known = known.chain(context.failed.iter().map(String::as_str));
    let near = nearest(&name.text, known);
    let help = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("declare it before: CREATE SOURCE {} … WITH (…)", name.text),
    };
    errors.push(Diagnostic::new(format!("unknown source `{}`", name.text), name.span).help(help));
    near.and_then(|near| sources.iter().position(|source| source.name == near))
}

/// Where the SELECT stands; one that is too long to be planned is refused.
pub(crate) fn checked_span(view: &ast::View) -> Parsed<Span> {
    let whole = tokens_span(&view.select);
    match view.select.len() > TOKENS_MAX {
        true => Err(Diagnostic::new(
            format!("a SELECT of more than {TOKENS_MAX} words"),
            whole,
        )),
        false => Ok(whole),
    }
}

pub(crate) fn tokens_span(tokens: &[Token]) -> Span {
    match (tokens.first(), tokens.last()) {
        (Some(first), Some(last)) => first.span.to(last.span),
        _ => Span::default(),
    }
}

/// `attributes['http.route']` becomes a column of that name, which the decoder delivers as such.
pub(crate) fn map_entries(tokens: Vec<Token>, source: &mut Source) -> Vec<Token> {
    let mut out: Vec<Token> = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        let entry = match &tokens[at..] {
            [map, open, key, close, ..] if open.kind == Tok::LBracket && close.kind == Tok::RBracket => {
                entry(map, key, source)
            }
            _ => None,
        };
        match entry {
            Some(name) => {
                let mut token = tokens[at].replaced(Tok::Word(Word {
                    value: name,
                    quote_style: Some('"'),
                    keyword: datafusion::sql::sqlparser::keywords::Keyword::NoKeyword,
                }));
                token.span = token.span.to(tokens[at + 3].span);
                token.location.end = tokens[at + 3].location.end;
                out.push(token);
                at += 4;
            }
            None => {
                out.push(tokens[at].clone());
                at += 1;
            }
        }
    }
    out
}

fn entry(map: &Token, key: &Token, source: &mut Source) -> Option<String> {
    let word = map.word()?;
    let Tok::SingleQuotedString(key) = &key.kind else {
        return None;
    };
    let names: Vec<String> = source.column_names().map(str::to_owned).collect();
    let index = crate::text::find(
        &word.value,
        word.quote_style.is_some(),
        names.iter().map(String::as_str),
    )?;
    source.map_entry(&names[index], key)
}

/// Tokens of a query → its syntax tree.
pub(crate) fn parse(tokens: &[Token], lines: &LineMap<'_>) -> Parsed<Query> {
    let whole = tokens_span(tokens);
    let tokens_with_spans = tokens.iter().map(Token::with_span).collect();
    let dialect = GenericDialect {};
    let mut parser = Parser::new(&dialect).with_tokens_with_locations(tokens_with_spans);
    let query = parser
        .parse_query()
        .map_err(|error| parser_error(error, lines, whole))?;
    let rest = parser.peek_token();
    if rest.token != Tok::EOF {
        return Err(not_the_end(tokens, &rest, lines));
    }
    Ok(*query)
}

/// Something stands where the SELECT might end, or go on with another clause.
fn not_the_end(tokens: &[Token], rest: &TokenWithSpan, lines: &LineMap<'_>) -> Diagnostic {
    let span = lines.span(rest.span);
    let at = tokens
        .iter()
        .position(|token| token.span.start >= span.start)
        .unwrap_or(0);
    let before = at.checked_sub(1).map(|before| &tokens[before]);
    if let Some(group) = before.filter(|before| tokens[at].is_word("BY") && before.is_word("GROUP")) {
        let error = Diagnostic::new("expected an expression, found `GROUP`", group.span);
        return error.help("something is missing before it");
    }
    if tokens[at].is_word("GROUP") {
        return Diagnostic::new("expected `BY` behind `GROUP`", span).help("write GROUP BY");
    }
    let error = Diagnostic::new(format!("expected the end of the SELECT, found `{}`", rest.token), span);
    let Tok::Word(word) = &rest.token else { return error };
    if tokens[at..].iter().any(|token| token.is_word("FROM")) {
        return error.help("is a comma missing before it?");
    }
    error.help_opt(did_you_mean(&word.value, ["WHERE", "GROUP", "HAVING", "EMIT"]))
}

/// What may follow a condition, or a part of one.
const AFTER_CONDITION: [&str; 15] = [
    "AND", "OR", "IN", "LIKE", "BETWEEN", "IS", "FOR", "CLEAR", "COOLDOWN", "LIMIT", "TARGET", "PARAMS", "EXPIRES",
    "MODE", "INTO",
];

/// One expression from all of `tokens`.
pub(crate) fn parse_expr(tokens: &[Token], lines: &LineMap<'_>) -> Parsed<Expr> {
    let whole = tokens_span(tokens);
    if tokens.len() > TOKENS_MAX {
        return Err(Diagnostic::new(
            format!("a condition of more than {TOKENS_MAX} words"),
            whole,
        ));
    }
    let tokens = tokens.iter().map(Token::with_span).collect();
    let dialect = GenericDialect {};
    let mut parser = Parser::new(&dialect).with_tokens_with_locations(tokens);
    let expr = parser.parse_expr().map_err(|error| parser_error(error, lines, whole))?;
    let rest = parser.peek_token();
    if rest.token != Tok::EOF {
        let error = Diagnostic::new(
            format!("expected the end of the condition, found `{}`", rest.token),
            lines.span(rest.span),
        );
        return Err(match &rest.token {
            Tok::Word(word) => error.help_opt(did_you_mean(&word.value, AFTER_CONDITION)),
            _ => error,
        });
    }
    Ok(expr)
}

/// sqlparser writes the place into its message.
fn parser_error(error: ParserError, lines: &LineMap<'_>, whole: Span) -> Diagnostic {
    let message = match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message,
        ParserError::RecursionLimitExceeded => {
            return Diagnostic::new("an expression nested too deeply", whole);
        }
    };
    let (text, place) = message.rsplit_once(" at Line: ").unwrap_or((&message, ""));
    let location = place
        .split_once(", Column: ")
        .and_then(|(line, column)| Some(Location::new(line.parse().ok()?, column.trim().parse().ok()?)));
    let text = lower_first(text.strip_prefix("Expected: ").unwrap_or(text));
    let text = match message.starts_with("Expected: ") {
        true => format!(
            "expected {}",
            text.replace("found: EOF", "found the end of the SELECT")
                .replace("found: ", "found ")
        ),
        false => text,
    };
    let span = match location {
        Some(location) => {
            let at = lines.offset(location);
            Span::new(at, at + 1)
        }
        None => Span::new(whole.end, whole.end),
    };
    Diagnostic::new(text, span)
}

/// A plain SELECT; anything else is refused here.
pub(crate) fn check_shape<'q>(
    query: &'q mut Query,
    lines: &LineMap<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Parsed<&'q mut Select> {
    let mut refuse = |present: bool, span: Span, what: &str, help: &str| {
        if present {
            errors.push(Diagnostic::new(what, span).help(help));
        }
    };
    let span_of = |span| lines.span(span);
    if let Some(with) = &query.with {
        refuse(
            true,
            span_of(with.span()),
            "WITH is not supported in a view",
            "write the expressions into the SELECT",
        );
    }
    if let Some(order_by) = &query.order_by {
        let what = "ORDER BY has no meaning in a view: rows come as their windows close";
        refuse(true, span_of(order_by.span()), what, "remove it");
    }
    if let Some(limit) = &query.limit_clause {
        let what = "LIMIT has no meaning in a view: it speaks for every window";
        refuse(
            true,
            span_of(limit.span()),
            what,
            "remove it, or keep fewer rows with HAVING",
        );
    }
    (query.with, query.order_by, query.limit_clause) = (None, None, None);
    let rest = query.fetch.is_some()
        || !query.locks.is_empty()
        || query.for_clause.is_some()
        || query.settings.is_some()
        || query.format_clause.is_some()
        || !query.pipe_operators.is_empty();
    let body = span_of(query.body.span());
    refuse(
        rest,
        body,
        "a view is SELECT … FROM … WHERE … GROUP BY … HAVING …",
        "remove what follows it",
    );
    let SetExpr::Select(select) = query.body.as_mut() else {
        return Err(Diagnostic::new("a view is one SELECT", body).help(
            "UNION ALL puts rows together inside FROM: TUMBLE(TABLE (SELECT … UNION ALL SELECT …), DESCRIPTOR(ts), …)",
        ));
    };
    check_select(select, lines, &mut refuse);
    select.distinct = None;
    Ok(select)
}

pub(crate) fn one_source(select: &Select, lines: &LineMap<'_>) -> Parsed<()> {
    if select.from.len() == 1 && select.from.iter().all(|from| from.joins.is_empty()) {
        return Ok(());
    }
    let from = select.from.iter().map(|from| lines.span(from.span()));
    let span = from.reduce(Span::to).unwrap_or_default();
    Err(Diagnostic::new("a view reads one source", span)
        .help("write one view per source, and join the views; a table of a file is joined in CREATE VIEW"))
}

fn check_select(select: &Select, lines: &LineMap<'_>, refuse: &mut impl FnMut(bool, Span, &str, &str)) {
    let head = lines.span(select.select_token.0.span);
    refuse(
        select.distinct.is_some(),
        head,
        "SELECT DISTINCT is not needed: a view has one row per group and window",
        "remove DISTINCT",
    );
    let exotic = select.top.is_some()
        || select.exclude.is_some()
        || select.into.is_some()
        || !select.lateral_views.is_empty()
        || select.prewhere.is_some()
        || !select.connect_by.is_empty()
        || !select.cluster_by.is_empty()
        || !select.distribute_by.is_empty()
        || !select.sort_by.is_empty()
        || !select.named_window.is_empty()
        || select.qualify.is_some()
        || select.value_table_mode.is_some()
        || select.select_modifiers.is_some();
    refuse(
        exotic,
        head,
        "a view is SELECT … FROM … WHERE … GROUP BY … HAVING …",
        "remove the other clauses",
    );
}

/// The table is called as its source, whatever the case it was written in.
pub(crate) fn rename_table(select: &mut Select, table: &str) {
    if let Some(TableFactor::Table { name, .. }) = select.from.first_mut().map(|from| &mut from.relation)
        && let Some(ObjectNamePart::Identifier(ident)) = name.0.last_mut()
    {
        *ident = Ident::with_quote('"', table);
    }
}

/// Names every output column, by its alias, its column or its text.
pub(crate) fn name_outputs(
    select: &mut Select,
    lines: &LineMap<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Vec<(String, Span)> {
    let mut outputs: Vec<(String, Span)> = Vec::new();
    for item in &mut select.projection {
        let span = lines.span(item.span());
        let (name, span) = match item {
            SelectItem::ExprWithAlias { alias, .. } => {
                alias.quote_style = Some('"');
                (alias.value.clone(), lines.span(alias.span))
            }
            SelectItem::UnnamedExpr(Expr::Identifier(ident)) => (ident.value.clone(), span),
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => {
                (parts.last().map(|part| part.value.clone()).unwrap_or_default(), span)
            }
            SelectItem::UnnamedExpr(expr) => {
                let name = expr.to_string();
                let alias = Ident::with_quote('"', name.clone());
                let expr = expr.clone();
                *item = SelectItem::ExprWithAlias { expr, alias };
                (name, span)
            }
            _ => {
                errors.push(
                    Diagnostic::new("a view names its columns: `*` is not supported", span)
                        .help("list the columns that detectors and policies use"),
                );
                outputs.push(("*".to_owned(), span));
                continue;
            }
        };
        if outputs.iter().any(|(other, _)| *other == name) {
            let error = Diagnostic::new(format!("two columns of the view are called `{name}`"), span);
            errors.push(error.help("give one of them another name with AS"));
        }
        outputs.push((name, span));
    }
    outputs
}

/// No other column is called as the window's: a comma that is missing makes an alias of it.
fn check_window_names(select: &Select, lines: &LineMap<'_>, errors: &mut Vec<Diagnostic>) {
    for item in &select.projection {
        if let SelectItem::ExprWithAlias {
            expr: Expr::Identifier(column),
            alias,
        } = item
            && find(&alias.value, true, WINDOW_COLUMNS).is_some()
            && find(&column.value, false, WINDOW_COLUMNS).is_none()
        {
            let message = format!("`{}` is the window's, not `{}`", alias.value, column.value);
            let error = Diagnostic::new(message, lines.span(alias.span));
            errors.push(error.help("is a comma missing before it?"));
        }
    }
}

/// GROUP BY may say a column of the SELECT by its position, and the window's columns by the names that the SELECT gives them.
///
/// Whether a position was left out, because there is no such column.
fn group_by_outputs(select: &mut Select, source: &Source, lines: &LineMap<'_>, errors: &mut Vec<Diagnostic>) -> bool {
    let Select {
        projection,
        group_by: GroupByExpr::Expressions(exprs, _),
        ..
    } = select
    else {
        return false;
    };
    let names = |ident: &Ident, known: &mut dyn Iterator<Item = &str>| {
        find(&ident.value, ident.quote_style.is_some(), known).is_some()
    };
    let is_window = |expr: &Expr| match expr {
        Expr::Identifier(name) => names(name, &mut WINDOW_COLUMNS.into_iter()),
        Expr::CompoundIdentifier(parts) => parts
            .last()
            .is_some_and(|name| names(name, &mut WINDOW_COLUMNS.into_iter())),
        _ => false,
    };
    let before = exprs.len();
    exprs.retain_mut(|group| match group {
        Expr::Value(value) => {
            let Value::Number(position, _) = &value.value else {
                return true;
            };
            let at = position
                .parse::<usize>()
                .ok()
                .and_then(|position| position.checked_sub(1));
            let item = at.and_then(|at| projection.get(at));
            let Some(SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else {
                let count = projection.len();
                let message = format!("GROUP BY {position} is no column of the SELECT, which has {count}");
                let error = Diagnostic::new(message, lines.span(value.span));
                errors.push(error.help("positions count from 1; a name says more"));
                return false;
            };
            *group = expr.clone();
            true
        }
        Expr::Identifier(name) if !names(name, &mut source.column_names().chain(WINDOW_COLUMNS)) => {
            let meant = projection.iter().find_map(|item| match item {
                SelectItem::ExprWithAlias { expr, alias } if is_window(expr) => {
                    names(name, &mut [alias.value.as_str()].into_iter()).then(|| expr.clone())
                }
                _ => None,
            });
            *group = meant.unwrap_or_else(|| group.clone());
            true
        }
        _ => true,
    });
    exprs.len() < before
}

/// Resolves names of a SELECT over one source, among these columns.
pub(crate) fn names<'a>(
    select: &Select,
    source: &'a Source,
    columns: Vec<String>,
    context: &Context<'a>,
    errors: &'a mut Vec<Diagnostic>,
) -> Names<'a> {
    let alias = match select.from.first().map(|from| &from.relation) {
        Some(TableFactor::Table { alias: Some(alias), .. }) => Some(alias.name.value.clone()),
        _ => None,
    };
    let given = select.projection.iter().filter_map(|item| match item {
        SelectItem::ExprWithAlias {
            expr: Expr::Identifier(ident),
            alias,
        } if ident.value == alias.value => None,
        SelectItem::ExprWithAlias { alias, .. } => Some(alias.value.clone()),
        _ => None,
    });
    Names {
        columns,
        table: alias.unwrap_or_else(|| source.name.clone()),
        event_time: source.event_time.clone(),
        temporal: matches!(source.format, Format::OtlpMetrics { .. })
            && TEMPORAL_COLUMNS.iter().all(|name| source.column(name).is_some()),
        aliases: given.collect(),
        place: Place::Select,
        functions: context.functions,
        lines: context.lines,
        depth: 0,
        unknown: &source.unknown,
        open: Vec::new(),
        errors,
    }
}

/// Finds what the names mean, with `place` for those of the SELECT list: rows have no window. Where names stand of which nothing is known is
/// returned.
pub(crate) fn resolve_names(
    select: &mut Select,
    source: &Source,
    place: Place,
    context: &Context<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Vec<Span> {
    let window = WINDOW_COLUMNS.into_iter().filter(|_| place == Place::Select);
    let columns = source.column_names().chain(window).map(str::to_owned).collect();
    let mut names = names(select, source, columns, context, errors);
    for expr in items(&mut select.projection) {
        names.resolve(expr, place);
    }
    if let Some(filter) = &mut select.selection {
        names.resolve(filter, Place::Where);
    }
    if let GroupByExpr::Expressions(exprs, _) = &mut select.group_by {
        for expr in exprs {
            names.resolve(expr, Place::GroupBy);
        }
    }
    if let Some(having) = &mut select.having {
        names.resolve(having, Place::Having);
    }
    names.open
}

/// The expressions of a SELECT list.
pub(crate) fn items(projection: &mut [SelectItem]) -> impl Iterator<Item = &mut Expr> {
    projection.iter_mut().filter_map(|item| match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr),
        _ => None,
    })
}

pub(crate) fn spans(select: &Select, lines: &LineMap<'_>, whole: Span) -> Spans {
    let span = |expr: &Expr| lines.span(expr.span());
    Spans {
        select: select.projection.iter().map(|item| lines.span(item.span())).collect(),
        filter: select.selection.as_ref().map(span),
        having: select.having.as_ref().map(span),
        group: match &select.group_by {
            GroupByExpr::Expressions(exprs, _) => exprs.iter().map(span).collect(),
            GroupByExpr::All(_) => Vec::new(),
        },
        whole,
    }
}

/// GROUP BY names the window; either of its ends names both.
///
/// Returns where grouping sets stand, which are refused. `loose`: nothing is named, so that whatever should have been is not known.
fn group_by_window(
    select: &mut Select,
    source: &Name,
    windowed: bool,
    loose: &mut bool,
    lines: &LineMap<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Vec<Span> {
    let mut sets = Vec::new();
    let unbounded = |span| {
        Diagnostic::new("GROUP BY without the window would aggregate without end", span)
            .help("group by window_start and window_end, too")
    };
    match &mut select.group_by {
        GroupByExpr::All(_) => {
            let span = lines.span(select.select_token.0.span);
            errors.push(Diagnostic::new("GROUP BY ALL is not supported", span).help("name the columns"));
        }
        GroupByExpr::Expressions(exprs, modifiers) => {
            let set = |expr: &Expr| matches!(expr, Expr::Rollup(_) | Expr::Cube(_) | Expr::GroupingSets(_));
            if !modifiers.is_empty() || exprs.iter().any(set) {
                let span = exprs.iter().map(|expr| lines.span(expr.span())).reduce(Span::to);
                let span = span.unwrap_or(source.span);
                sets.extend(
                    exprs
                        .iter()
                        .filter(|expr| set(expr))
                        .map(|expr| lines.span(expr.span())),
                );
                errors.push(
                    Diagnostic::new("ROLLUP, CUBE and GROUPING SETS are not supported", span)
                        .help("write one view per grouping"),
                );
            }
            let is = |expr: &Expr, name: &str| match expr {
                Expr::Identifier(ident) => ident.value == name,
                Expr::CompoundIdentifier(parts) => parts.last().is_some_and(|part| part.value == name),
                _ => false,
            };
            let [start, end] = WINDOW_COLUMNS.map(|name| exprs.iter().any(|expr| is(expr, name)));
            if exprs.is_empty() {
                *loose = true;
            }
            if !start && !end && windowed {
                let span = exprs.iter().map(|expr| lines.span(expr.span())).reduce(Span::to);
                errors.push(unbounded(span.unwrap_or(source.span)));
            }
            for (present, name) in [(start, WINDOW_COLUMNS[0]), (end, WINDOW_COLUMNS[1])] {
                if !present {
                    exprs.push(Expr::Identifier(Ident::new(name)));
                }
            }
        }
    }
    sets
}

/// What a cursor over the rest of a FROM needs.
pub(crate) fn is_call(cursor: &Cursor<'_>, names: &[&str]) -> bool {
    let next = cursor.rest().get(1).is_some_and(|token| token.kind == Tok::LParen);
    next && names.iter().any(|name| cursor.is(name))
}
