//! Columns and functions of a query's expressions: found, spelled as declared, or reported.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::{
    ast::{
        BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectNamePart,
        Spanned, Value, VisitMut, VisitorMut,
    },
    dialect::GenericDialect,
    parser::Parser,
};

use super::DEPTH_MAX;
use crate::{
    catalog::{Function as Found, Functions},
    diagnostic::{Diagnostic, Span, did_you_mean, nearest},
    functions::{histogram, takes_event_time},
    source::{Unknown, WINDOW_COLUMNS},
    text::{LineMap, find},
};

/// Of OTLP points: whether they are totals or changes, and since when.
pub(crate) const TEMPORAL_COLUMNS: [&str; 2] = ["temporality", "start_time"];

/// What the parser takes for a column where an operand is missing.
const KEYWORDS: [&str; 11] = [
    "AS", "AND", "OR", "IN", "IS", "LIKE", "BETWEEN", "THEN", "ELSE", "END", "WHEN",
];

/// Functions of other systems, and what is written instead.
const OTHER_NAMES: [(&str, &str); 11] = [
    ("any", "bool_or(x)"),
    ("average", "avg(x)"),
    ("count_if", "count(*) FILTER (WHERE …)"),
    ("countif", "count(*) FILTER (WHERE …)"),
    ("date_format", "to_char(x, format)"),
    ("every", "bool_and(x)"),
    ("mod", "x % y"),
    ("sign", "signum(x)"),
    ("some", "bool_or(x)"),
    ("total", "sum(x)"),
    ("sum_if", "sum(x) FILTER (WHERE …)"),
];

/// Where an expression stands, which decides what it may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Select,
    Where,
    /// SELECT of a view of rows.
    Row,
    GroupBy,
    Having,
    /// WHEN of a policy.
    Condition,
}

/// Resolves the names of expressions in place.
pub(crate) struct Names<'a> {
    pub columns: Vec<String>,
    /// What a qualified column may be qualified with.
    pub table: String,
    pub event_time: String,
    /// Rows say whether they are totals or changes, as those of OTLP metrics do.
    pub temporal: bool,
    /// Names of output columns, which GROUP BY and HAVING may use.
    pub aliases: Vec<String>,
    pub place: Place,
    pub functions: &'a Functions,
    pub lines: &'a LineMap<'a>,
    pub depth: usize,
    /// What of the columns is not known.
    pub unknown: &'a Unknown,
    /// Where names stand of which nothing is known.
    pub open: Vec<Span>,
    pub errors: &'a mut Vec<Diagnostic>,
}

impl<'a> Names<'a> {
    /// Of conditions, without a column.
    pub fn apart(
        functions: &'a Functions,
        lines: &'a LineMap<'a>,
        unknown: &'a Unknown,
        errors: &'a mut Vec<Diagnostic>,
    ) -> Self {
        Self {
            columns: Vec::new(),
            table: String::new(),
            event_time: WINDOW_COLUMNS[1].to_owned(),
            temporal: false,
            aliases: Vec::new(),
            place: Place::Condition,
            functions,
            lines,
            depth: 0,
            unknown,
            open: Vec::new(),
            errors,
        }
    }
}

impl Names<'_> {
    pub fn resolve(&mut self, expr: &mut Expr, place: Place) {
        self.place = place;
        self.depth = 0;
        let _ = expr.visit(self);
    }

    fn identifier(&mut self, ident: &mut Ident) {
        let exact = ident.quote_style.is_some();
        if let Some(index) = find(&ident.value, exact, self.columns.iter().map(String::as_str)) {
            let name = self.columns[index].clone();
            if self.place == Place::Where && WINDOW_COLUMNS.contains(&name.as_str()) {
                self.error(ident, format!("WHERE sees rows, which have no `{name}`"), "use HAVING");
            }
            *ident = quoted(ident, name);
            return;
        }
        if self.unknown.may_be(&ident.value) {
            return self.open.push(self.lines.span(ident.span));
        }
        let alias = find(&ident.value, exact, self.aliases.iter().map(String::as_str));
        match (alias, self.place) {
            (Some(index), Place::GroupBy | Place::Having) => *ident = quoted(ident, self.aliases[index].clone()),
            (Some(_), Place::Select | Place::Where | Place::Row) => {
                let message = format!(
                    "`{}` is a name that this SELECT gives, not a column of its source",
                    ident.value
                );
                match ident.quote_style {
                    Some('"') => self.error(
                        ident,
                        message,
                        &format!("a string takes single quotes: '{}'", ident.value),
                    ),
                    _ => self.error(ident, message, "repeat the expression here"),
                }
            }
            _ => self.unknown(ident),
        }
    }

    /// A name that seems to mean a column is taken for it, so that what else names the column is not blamed.
    fn unknown(&mut self, ident: &mut Ident) {
        let span = self.lines.span(ident.span);
        let keyword =
            ident.quote_style.is_none() && KEYWORDS.iter().any(|word| word.eq_ignore_ascii_case(&ident.value));
        if keyword {
            self.open.push(span);
            let message = format!("expected an expression, found `{}`", ident.value);
            return self.errors.push(Diagnostic::new(message, span));
        }
        let error = Diagnostic::new(format!("unknown column `{}`", ident.value), span);
        let aliases = matches!(self.place, Place::GroupBy | Place::Having).then_some(&self.aliases);
        let aliases = aliases.into_iter().flatten();
        let columns = aliases.chain(&self.columns).chain(&self.unknown.columns);
        let nearest = nearest(&ident.value, columns.map(String::as_str)).map(str::to_owned);
        let near = nearest.as_ref().map(|name| format!("did you mean `{name}`?"));
        let quoted =
            (ident.quote_style == Some('"')).then(|| format!("a string takes single quotes: '{}'", ident.value));
        let list = || {
            let names: Vec<&str> = self.columns.iter().map(String::as_str).take(20).collect();
            format!("there are {}", names.join(", "))
        };
        let help = match (near, quoted) {
            (Some(near), Some(quoted)) => format!("{near} {quoted}"),
            (near, quoted) => near.or(quoted).unwrap_or_else(list),
        };
        self.errors.push(error.help(help));
        match nearest {
            Some(name) => *ident = self::quoted(ident, name),
            None => self.open.push(span),
        }
    }

    fn error(&mut self, ident: &Ident, message: String, help: &str) {
        let span = self.lines.span(ident.span);
        self.open.push(span);
        self.errors.push(Diagnostic::new(message, span).help(help));
    }

    fn compound(&mut self, parts: &mut [Ident]) {
        let [table, column] = parts else {
            let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
                return;
            };
            let span = self.lines.span(first.span).to(self.lines.span(last.span));
            self.open.push(span);
            self.errors.push(
                Diagnostic::new("columns have no fields of their own", span)
                    .help("declare the nested value as a column: name STRING FROM 'a.b.c'"),
            );
            return;
        };
        if find(&table.value, table.quote_style.is_some(), [self.table.as_str()]).is_none() {
            if self.columns.contains(&table.value) {
                let message = format!("`{}` has no fields of its own", table.value);
                let help = format!(
                    "an entry of a map is {}['{}']; a nested value is declared as a column: name STRING FROM 'a.b.c'",
                    table.value, column.value
                );
                self.error(table, message, &help);
                return;
            }
            if self.unknown.others {
                let span = self.lines.span(table.span).to(self.lines.span(column.span));
                return self.open.push(span);
            }
            let help = format!("columns are those of `{}`", self.table);
            self.error(table, format!("unknown table `{}`", table.value), &help);
            return;
        }
        *table = quoted(table, self.table.clone());
        self.identifier(column);
    }

    fn function(&mut self, function: &mut Function) {
        let span = self.lines.span(function.name.span());
        let name = match function.name.0.as_slice() {
            [ObjectNamePart::Identifier(ident)] => ident.value.clone(),
            _ => function.name.to_string(),
        };
        let mut refuse = |message: String, help: String| {
            self.open.push(span);
            self.errors.push(Diagnostic::new(message, span).help(help));
        };
        if function.over.is_some() {
            let help = "a view has one row per group and window; compare windows in a detector, or by ML_DETECT_ANOMALIES(…) OVER (…) in a view over views";
            return refuse("OVER is not supported".into(), help.into());
        }
        let lower = name.to_ascii_lowercase();
        if matches!(lower.as_str(), "hop" | "tumble" | "session") {
            let help = "put it into FROM or GROUP BY, and select window_start and window_end";
            return refuse(format!("`{name}` is a window, not a value"), help.into());
        }
        match self.functions.find(&lower) {
            None => {
                let percentile = lower.strip_prefix('p').filter(|digits| digits.parse::<u16>().is_ok());
                let own = percentile.map(|digits| format!("write quantile(x, 0.{digits})"));
                let own = own.or_else(|| (lower == "percentile").then(|| "write quantile(x, 0.99)".to_owned()));
                let own = own.or_else(|| {
                    let (window, end) = lower.rsplit_once('_')?;
                    let known = ["hop", "tumble", "session"].contains(&window) && ["start", "end"].contains(&end);
                    known.then(|| format!("select window_{end}"))
                });
                let own = own.or_else(|| {
                    let other = OTHER_NAMES.iter().find(|(name, _)| *name == lower);
                    other.map(|(_, ours)| format!("write {ours}"))
                });
                let near = own.or_else(|| did_you_mean(&lower, self.functions.names()));
                let help = near.unwrap_or_else(|| {
                    "functions are those of DataFusion, and quantile, rate, increase, delta, slope and histogram_quantile".into()
                });
                refuse(format!("unknown function `{name}`"), help)
            }
            Some(Found::Scalar(scalar)) if !Functions::is_pure(scalar) => {
                let help = format!("use the event time, `{}`, or window_end", self.event_time);
                let message = format!("`{name}` gives another answer at every run, so a replay would differ");
                refuse(message, help)
            }
            Some(Found::Aggregate) if !matches!(self.place, Place::Select | Place::Having) => {
                let help = match self.place {
                    Place::Where => "filter aggregates with HAVING, rows inside one with FILTER (WHERE …)",
                    Place::GroupBy => "group by a value of the row",
                    Place::Row => "a view of rows aggregates nothing: write CREATE FEATURE VIEW with a window over it",
                    _ => "compute it in the view and name its column here",
                };
                refuse(
                    format!("`{name}` is an aggregate, which has no place here"),
                    help.into(),
                )
            }
            Some(Found::Aggregate) => self.aggregate(function, &lower),
            Some(Found::Scalar(_)) => {}
        }
    }

    /// Aggregates see rows, not windows; those with several spellings get one.
    fn aggregate(&mut self, function: &mut Function, name: &str) {
        let mut windows = WindowColumns(Vec::new());
        let _ = function.args.visit(&mut windows);
        let _ = function.filter.visit(&mut windows);
        for ident in windows.0 {
            self.error(
                &ident,
                format!("an aggregate sees rows, which have no `{}`", ident.value),
                "use it outside of the aggregate",
            );
        }
        let rename = |function: &mut Function, to: &str| {
            if let Some(ObjectNamePart::Identifier(ident)) = function.name.0.last_mut() {
                ident.value = to.to_owned();
            }
        };
        let FunctionArguments::List(list) = &mut function.args else {
            return;
        };
        match name {
            name if takes_event_time(name) && list.args.len() == 1 => {
                list.args.push(argument(Expr::Identifier(Ident::new(&self.event_time))))
            }
            // Which columns make a histogram is the format's to know.
            histogram::NAME if list.args.len() == 1 && self.columns.iter().any(|column| column == "bucket_counts") => {
                let columns = [self.event_time.as_str()].into_iter().chain(histogram::COLUMNS);
                let columns = columns.map(|column| argument(Expr::Identifier(Ident::with_quote('"', column))));
                list.args.extend(columns);
            }
            "variance" => rename(function, "var"),
            "approx_median" if list.args.len() == 1 => {
                list.args.push(argument(number("0.5")));
                rename(function, "quantile");
            }
            "approx_percentile_cont" => match (list.args.len(), function.within_group.len()) {
                (2, 0) => rename(function, "quantile"),
                (1, 1) => {
                    let order = function.within_group.remove(0);
                    let mut q = list.args.remove(0);
                    if order.options.asc == Some(false)
                        && let FunctionArg::Unnamed(FunctionArgExpr::Expr(share)) = q
                    {
                        q = argument(Expr::BinaryOp {
                            left: Box::new(number("1.0")),
                            op: BinaryOperator::Minus,
                            right: Box::new(share),
                        });
                    }
                    list.args.extend([argument(order.expr), q]);
                    rename(function, "quantile");
                }
                _ => {}
            },
            _ => {}
        }
    }
}

/// An identifier at the same place that means `name` whatever its case.
fn quoted(ident: &Ident, name: String) -> Ident {
    Ident::with_quote_and_span('"', ident.span, name)
}

fn argument(expr: Expr) -> FunctionArg {
    FunctionArg::Unnamed(FunctionArgExpr::Expr(expr))
}

fn number(text: &str) -> Expr {
    Expr::value(Value::Number(text.into(), false))
}

impl VisitorMut for Names<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        self.depth += 1;
        let span = self.lines.span(expr.span());
        if self.depth > DEPTH_MAX {
            self.errors.push(
                Diagnostic::new(format!("an expression nested more than {DEPTH_MAX} deep"), span)
                    .help("use IN (…) for long lists of alternatives"),
            );
            return ControlFlow::Break(());
        }
        match expr {
            Expr::Identifier(ident) => self.identifier(ident),
            Expr::CompoundIdentifier(parts) => self.compound(parts),
            Expr::Function(function) => self.function(function),
            Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } => {
                self.open.push(span);
                self.errors.push(
                    Diagnostic::new("a query inside an expression is not supported", span)
                        .help("write a view of its own"),
                );
                return ControlFlow::Break(());
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    /// After the arguments, so that what is wrong in them is said once.
    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        self.depth -= 1;
        if self.temporal
            && let Expr::Function(function) = expr
            && let Some(text) = both_temporalities(function, &self.event_time)
        {
            match Parser::new(&GenericDialect {})
                .try_with_sql(&text)
                .and_then(|mut parser| parser.parse_expr())
            {
                Ok(both) => *expr = both,
                Err(error) => {
                    let span = self.lines.span(function.name.span());
                    self.errors.push(Diagnostic::new(error.to_string(), span));
                }
            }
        }
        ControlFlow::Continue(())
    }
}

/// `rate`, `increase` and `delta` of OTLP points of both temporalities. A point of delta temporality is itself the change since
/// its start: changes add up, and a rate is over the time from the first start to the last point. In the text of SQL, so
/// that a batch query says the same.
fn both_temporalities(function: &Function, event_time: &str) -> Option<String> {
    let name = function.name.to_string().to_ascii_lowercase();
    if !matches!(name.as_str(), "rate" | "increase" | "delta") {
        return None;
    }
    let FunctionArguments::List(list) = &function.args else {
        return None;
    };
    let [
        value,
        FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Identifier(time))),
    ] = list.args.as_slice()
    else {
        return None;
    };
    if time.value != event_time {
        return None;
    }
    let [delta, start] = TEMPORAL_COLUMNS.map(|name| format!("\"{name}\""));
    let own = function
        .filter
        .as_ref()
        .map_or_else(String::new, |filter| format!("({filter}) AND "));
    let changes = format!("FILTER (WHERE {own}{delta} = 'delta')");
    let totals = format!("{name}({value}, {time}) FILTER (WHERE {own}({delta} IS NULL OR {delta} <> 'delta'))");
    let sum = format!("CAST(sum({value}) {changes} AS DOUBLE)");
    let of_changes = match name.as_str() {
        "rate" => {
            let ms =
                |time: String| format!("CAST(arrow_cast({time}, 'Timestamp(Millisecond, Some(\"UTC\"))') AS BIGINT)");
            let last = ms(format!("max({time}) {changes}"));
            let first = ms(format!("coalesce(min({start}) {changes}, min({time}) {changes})"));
            format!("{sum} * 1000.0 / nullif({last} - {first}, 0)")
        }
        _ => sum,
    };
    Some(format!("coalesce({totals} + {of_changes}, {totals}, {of_changes})"))
}

/// Collects what names a window's column.
struct WindowColumns(Vec<Ident>);

impl VisitorMut for WindowColumns {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let ident = match expr {
            Expr::Identifier(ident) => Some(&*ident),
            Expr::CompoundIdentifier(parts) => parts.last(),
            _ => None,
        };
        if let Some(ident) = ident
            && WINDOW_COLUMNS
                .iter()
                .any(|name| name.eq_ignore_ascii_case(&ident.value))
        {
            self.0.push(ident.clone());
        }
        ControlFlow::Continue(())
    }
}
