//! `ML_DETECT_ANOMALIES(value, time[, JSON_OBJECT(…)]) OVER (PARTITION BY … ORDER BY …)` in a view over views.
//!
//! Every call becomes a detector of the view's own: exponential smoothing by Holt and Winters, which is ARIMA of a fixed order,
//! that alarms outside of the forecast's interval of confidence. The call is replaced by a name before the SELECT is parsed; its fields
//! are columns that the rest of the SELECT is planned over.

use std::ops::ControlFlow;

use arrow::datatypes::{DataType, Field};
use datafusion::sql::sqlparser::{
    ast::{
        AccessExpr, Expr, Ident, Query, Select, SelectItem, SetExpr, Spanned, Subscript, TableFactor, Value, VisitMut,
        VisitorMut,
    },
    dialect::GenericDialect,
    keywords::Keyword,
    parser::Parser,
    tokenizer::{Token as Tok, Word},
};
use engine::spec::OptionValue;

use crate::{
    diagnostic::{Diagnostic, Span, did_you_mean, one_of},
    select::{self, is_call},
    text::{At, Cursor, LineMap, Parsed, Token, find},
};

const FUNCTION: &str = "ML_DETECT_ANOMALIES";
/// Calls in one view.
const CALLS_MAX: usize = 32;
/// Fields of a result, in order.
pub(crate) const FIELDS: [&str; 6] = [
    "timestamp",
    "actual_value",
    "forecast_value",
    "lower_bound",
    "upper_bound",
    "is_anomaly",
];
/// Those that say how a model is fitted anew; here it learns at every row.
const WITHOUT_EFFECT: [&str; 7] = [
    "maxTrainingSize",
    "p",
    "d",
    "q",
    "updateInterval",
    "evalWindowSize",
    "rmseThreshold",
];
const ALGORITHM: &str = "holt_winters";
const OPTIONS: [&str; 11] = [
    "minTrainingSize",
    "maxTrainingSize",
    "confidencePercentage",
    "enableStl",
    "m",
    "p",
    "d",
    "q",
    "updateInterval",
    "evalWindowSize",
    "rmseThreshold",
];

/// One call, as written.
pub(crate) struct Call {
    /// What stands in its place.
    pub name: String,
    pub value: Expr,
    pub time: Expr,
    pub partition: Vec<Expr>,
    pub order: Expr,
    pub using: &'static str,
    pub options: Vec<(String, OptionValue)>,
    pub span: Span,
}

impl Call {
    /// The column that a field of the result is.
    pub fn column(&self, field: &str) -> String {
        format!("{}.{field}", self.name)
    }

    /// The columns of all fields.
    pub fn fields(&self) -> Vec<Field> {
        let field = |name: &&str| {
            let data_type = match *name {
                "timestamp" => crate::view::window_type(),
                "is_anomaly" => DataType::Boolean,
                _ => DataType::Float64,
            };
            Field::new(self.column(name), data_type, true)
        };
        FIELDS.iter().map(field).collect()
    }
}

/// Takes the calls out of the tokens of a SELECT.
pub(crate) fn take(tokens: &[Token], lines: &LineMap<'_>) -> Parsed<(Vec<Token>, Vec<Call>)> {
    let mut cursor = Cursor::new(tokens);
    let mut out = Vec::with_capacity(tokens.len());
    let mut calls = Vec::new();
    while let Some(token) = cursor.peek() {
        if !is_call(&cursor, &[FUNCTION]) {
            out.push(token.clone());
            cursor.skip(1);
            continue;
        }
        let name = format!("anomalies {}", calls.len());
        let call = call(&mut cursor, name.clone(), lines)?;
        let mut word = token.replaced(Tok::Word(Word {
            value: name,
            quote_style: Some('"'),
            keyword: Keyword::NoKeyword,
        }));
        word.span = call.span;
        out.push(word);
        calls.push(call);
        if calls.len() > CALLS_MAX {
            let message = format!("more than {CALLS_MAX} calls of {FUNCTION} in one view");
            return Err(Diagnostic::new(message, token.span).help("write several views"));
        }
    }
    Ok((out, calls))
}

fn call(cursor: &mut Cursor<'_>, name: String, lines: &LineMap<'_>) -> Parsed<Call> {
    let start = cursor.here();
    cursor.skip(1);
    let arguments = parentheses(cursor)?;
    let arguments = split(arguments);
    let (value, time, settings) = match arguments.as_slice() {
        [value, time] => (*value, *time, None),
        [value, time, settings] => (*value, *time, Some(*settings)),
        _ => {
            return Err(Diagnostic::new(
                format!("{FUNCTION} takes a value, a time and options"),
                start.to(cursor.last()),
            )
            .help("write ML_DETECT_ANOMALIES(p99_ms, window_end, JSON_OBJECT('minTrainingSize' VALUE 30))"));
        }
    };
    if !cursor.eat("OVER") || !cursor.is_punct(&Tok::LParen) {
        return Err(
            Diagnostic::new(format!("{FUNCTION} needs OVER (…)"), start.to(cursor.last()))
                .help("write OVER (PARTITION BY service ORDER BY window_end)"),
        );
    }
    let (partition, order) = over(parentheses(cursor)?, start, lines)?;
    let span = start.to(cursor.last());
    let (using, options) = algorithm(&settings.map_or(Ok(Vec::new()), options)?)?;
    Ok(Call {
        name,
        value: select::parse_expr(value, lines)?,
        time: select::parse_expr(time, lines)?,
        partition,
        order,
        using,
        options,
        span,
    })
}

/// The tokens inside the parentheses that the cursor stands before; steps behind them.
fn parentheses<'t>(cursor: &mut Cursor<'t>) -> Parsed<&'t [Token]> {
    cursor.expect_punct(Tok::LParen)?;
    let rest = cursor.rest();
    let mut depth = 1;
    let length = rest.iter().position(|token| {
        match token.kind {
            Tok::LParen => depth += 1,
            Tok::RParen => depth -= 1,
            _ => {}
        }
        depth == 0
    });
    let length = length.ok_or_else(|| cursor.expected("`)`", &[]))?;
    cursor.skip(length + 1);
    Ok(&rest[..length])
}

/// The parts between commas outside of parentheses.
fn split(tokens: &[Token]) -> Vec<&[Token]> {
    let mut depth = 0;
    let comma = |token: &Token| {
        match token.kind {
            Tok::LParen | Tok::LBracket => depth += 1,
            Tok::RParen | Tok::RBracket => depth -= 1,
            _ => {}
        }
        depth == 0 && token.kind == Tok::Comma
    };
    tokens.split(comma).collect()
}

/// `PARTITION BY … ORDER BY … [RANGE|ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW]`
fn over(tokens: &[Token], start: Span, lines: &LineMap<'_>) -> Parsed<(Vec<Expr>, Expr)> {
    let mut cursor = Cursor::new(tokens);
    let mut partition = Vec::new();
    if cursor.eat("PARTITION") {
        cursor.expect("BY")?;
        let columns = cursor.until(&["ORDER", "RANGE", "ROWS"]);
        for column in split(columns) {
            partition.push(select::parse_expr(column, lines)?);
        }
    }
    if !cursor.eat("ORDER") {
        return Err(
            Diagnostic::new("rows are judged in the order of their windows", start).help("add ORDER BY window_end")
        );
    }
    cursor.expect("BY")?;
    let order = cursor.until(&["ASC", "DESC", "RANGE", "ROWS"]);
    let order = select::parse_expr(order, lines)?;
    if cursor.is("DESC") {
        return Err(Diagnostic::new("windows close in ascending order", cursor.here()).help("remove DESC"));
    }
    cursor.eat("ASC");
    let frame = cursor.here();
    if cursor.eat("RANGE") || cursor.eat("ROWS") {
        let everything = "BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW";
        if cursor.expect(everything).is_err() {
            return Err(
                Diagnostic::new("a model learns from all rows before", frame).help(format!(
                    "write RANGE {everything}, and maxTrainingSize for how fast it forgets"
                )),
            );
        }
    }
    cursor.expect_end(&[])?;
    Ok((partition, order))
}

/// `JSON_OBJECT('name' VALUE literal, …)`
fn options(tokens: &[Token]) -> Parsed<Vec<(At<String>, At<OptionValue>)>> {
    let mut cursor = Cursor::new(tokens);
    cursor.expect("JSON_OBJECT")?;
    let inside = parentheses(&mut cursor)?;
    cursor.expect_end(&[])?;
    let mut found: Vec<(At<String>, At<OptionValue>)> = Vec::new();
    for setting in split(inside).into_iter().filter(|setting| !setting.is_empty()) {
        let mut cursor = Cursor::new(setting);
        cursor.eat("KEY");
        let name = cursor.string("the name of an option")?;
        if !cursor.eat_punct(Tok::Colon) {
            cursor.expect("VALUE")?;
        }
        let value = crate::parse::literal(&mut cursor, crate::parse::Values::Option)?;
        cursor.expect_end(&[])?;
        let Some(index) = find(&name.value, false, OPTIONS) else {
            let help = did_you_mean(&name.value, OPTIONS).unwrap_or_else(|| format!("use {}", one_of(OPTIONS)));
            return Err(Diagnostic::new(format!("unknown option `{}`", name.value), name.span).help(help));
        };
        let name = At::new(OPTIONS[index].to_owned(), name.span);
        if found.iter().any(|(other, _)| other.value == name.value) {
            return Err(Diagnostic::new(format!("`{}` is given twice", name.value), name.span));
        }
        found.push((name, value));
    }
    Ok(found)
}

/// The detector that does what the options say.
fn algorithm(options: &[(At<String>, At<OptionValue>)]) -> Parsed<(&'static str, Vec<(String, OptionValue)>)> {
    let number = |name: &str, least: f64, most: f64| -> Parsed<Option<f64>> {
        let Some((_, value)) = options.iter().find(|(known, _)| known.value == name) else {
            return Ok(None);
        };
        match value.value {
            OptionValue::Number(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(Diagnostic::new(
                format!("`{name}` is a number from {least} to {most}"),
                value.span,
            )),
        }
    };
    for name in WITHOUT_EFFECT {
        number(name, 0.0, 1e9)?;
    }
    let confidence = number("confidencePercentage", 10.0, 99.9999)?.unwrap_or(99.0);
    let warmup = number("minTrainingSize", 2.0, 1e6)?.unwrap_or(128.0).round();
    let season = number("m", 0.0, 10_080.0)?.unwrap_or(0.0).round();
    if let Some((name, value)) = options.iter().find(|(name, _)| name.value == "enableStl") {
        match value.value {
            OptionValue::Bool(true) if season < 2.0 => {
                return Err(Diagnostic::new("`enableStl` needs the length of a season", name.span)
                    .help("add 'm' VALUE 24: so many rows are a season"));
            }
            OptionValue::Bool(_) => {}
            _ => return Err(Diagnostic::new("`enableStl` is TRUE or FALSE", value.span)),
        }
    }
    // Six decimals: equal on every machine.
    let threshold = (deviations(confidence / 100.0) * 1e6).round() / 1e6;
    let chosen = [("threshold", threshold), ("warmup", warmup), ("seasonality", season)].into_iter();
    let chosen = chosen.map(|(name, value)| (name.to_owned(), OptionValue::Number(value)));
    Ok((ALGORITHM, chosen.collect()))
}

/// How many standard deviations around the mean hold this share of a normal distribution: the inverse of its distribution function,
/// found by halving.
fn deviations(share: f64) -> f64 {
    let (mut low, mut high) = (0.0, 40.0);
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if within(middle) < share {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// The share of a normal distribution within so many deviations (Abramowitz and Stegun, 7.1.26: to 1.5e-7).
fn within(deviations: f64) -> f64 {
    let x = deviations / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let polynomial = [
        1.061_405_429,
        -1.453_152_027,
        1.421_413_741,
        -0.284_496_736,
        0.254_829_592,
    ];
    let sum = polynomial.iter().fold(0.0, |sum, coefficient| sum * t + coefficient) * t;
    1.0 - sum * (-x * x).exp()
}

/// The SELECT of a query around another one, put into one: what is left is over the views of the inner FROM. Returns the
/// outer WHERE, which sees what was judged.
pub(crate) fn merge(query: &mut Query, lines: &LineMap<'_>, errors: &mut Vec<Diagnostic>) -> Parsed<Option<Expr>> {
    let SetExpr::Select(outer) = query.body.as_mut() else {
        return Ok(None);
    };
    let derived = |select: &Select| matches!(select.from.as_slice(), [from] if matches!(from.relation, TableFactor::Derived { .. }));
    if !derived(outer) {
        return Ok(None);
    }
    let from = outer.from.remove(0);
    if let Some(join) = from.joins.first() {
        let span = lines.span(join.relation.span());
        return Err(Diagnostic::new("a query in FROM stands alone", span).help("join the views inside of it"));
    }
    let TableFactor::Derived {
        mut subquery, alias, ..
    } = from.relation
    else {
        return Ok(None);
    };
    let inner = select::check_shape(&mut subquery, lines, errors)?;
    if derived(inner) {
        let span = lines.span(inner.select_token.0.span);
        return Err(Diagnostic::new("a query in a query in FROM", span).help("one is enough: put them together"));
    }
    let names = select::name_outputs(inner, lines, errors);
    let exprs = inner.projection.iter().filter_map(|item| match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr.clone()),
        _ => None,
    });
    let mut insert = Insert {
        table: alias.map(|alias| alias.name.value),
        columns: names.into_iter().map(|(name, _)| name).zip(exprs).collect(),
        lines,
        errors,
    };
    for item in &mut outer.projection {
        // A column is called as it is written, whatever stands behind the name.
        if let SelectItem::UnnamedExpr(expr) = item {
            let name = match &*expr {
                Expr::Identifier(ident) => ident.value.clone(),
                Expr::CompoundIdentifier(parts) => parts.last().map(|part| part.value.clone()).unwrap_or_default(),
                other => other.to_string(),
            };
            let (expr, alias) = (expr.clone(), Ident::with_quote_and_span('"', expr.span(), name));
            *item = SelectItem::ExprWithAlias { expr, alias };
        }
        if let SelectItem::ExprWithAlias { expr, .. } = item {
            let _ = expr.visit(&mut insert);
        }
    }
    let mut filter = outer.selection.take();
    if let Some(filter) = &mut filter {
        let _ = filter.visit(&mut insert);
    }
    outer.from.clone_from(&inner.from);
    outer.selection.clone_from(&inner.selection);
    Ok(filter)
}

/// Puts the expressions of the inner SELECT where the outer one names them.
struct Insert<'a> {
    table: Option<String>,
    columns: Vec<(String, Expr)>,
    lines: &'a LineMap<'a>,
    errors: &'a mut Vec<Diagnostic>,
}

impl Insert<'_> {
    fn is_table(&self, ident: &Ident) -> bool {
        let table = self.table.as_ref();
        table.is_some_and(|table| table.eq_ignore_ascii_case(&ident.value))
    }

    fn column(&mut self, ident: &Ident) -> Option<Expr> {
        let names = self.columns.iter().map(|(name, _)| name.as_str());
        if let Some(index) = find(&ident.value, ident.quote_style.is_some(), names.clone()) {
            return Some(match &self.columns[index].1 {
                name @ (Expr::Identifier(_) | Expr::CompoundIdentifier(_)) => name.clone(),
                other => Expr::Nested(Box::new(other.clone())),
            });
        }
        let near = did_you_mean(&ident.value, names);
        let error = Diagnostic::new(format!("unknown column `{}`", ident.value), self.lines.span(ident.span));
        self.errors.push(error.help_opt(near));
        None
    }

    fn compound(&mut self, parts: &[Ident]) -> Option<Expr> {
        match parts {
            [table, rest @ ..] if self.is_table(table) && !rest.is_empty() => match rest {
                [column] => self.column(column),
                rest => self.compound(rest),
            },
            [column, field] => match self.column(column)? {
                Expr::Identifier(call) => Some(Expr::CompoundIdentifier(vec![call, field.clone()])),
                _ => {
                    let message = format!("`{}` has no fields", column.value);
                    self.errors.push(Diagnostic::new(message, self.lines.span(column.span)));
                    None
                }
            },
            _ => None,
        }
    }
}

impl VisitorMut for Insert<'_> {
    type Break = ();

    /// `table.column[…]` is `column[…]`.
    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::CompoundFieldAccess { root, access_chain } = expr
            && let (Expr::Identifier(table), Some(AccessExpr::Dot(Expr::Identifier(column)))) =
                (&**root, access_chain.first())
            && self.is_table(table)
        {
            **root = Expr::Identifier(column.clone());
            access_chain.remove(0);
        }
        ControlFlow::Continue(())
    }

    /// After the parts of an expression: what is put in is not looked at again.
    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let put = match expr {
            Expr::Identifier(ident) => self.column(&ident.clone()),
            Expr::CompoundIdentifier(parts) => self.compound(&parts.clone()),
            _ => None,
        };
        if let Some(put) = put {
            *expr = put;
        }
        ControlFlow::Continue(())
    }
}

/// Replaces what names a call, or a field of its result, by the columns of the fields.
pub(crate) struct Fields<'a> {
    pub calls: &'a [Call],
    pub lines: &'a LineMap<'a>,
    pub errors: &'a mut Vec<Diagnostic>,
    /// Calls named.
    pub named: usize,
}

impl<'a> Fields<'a> {
    fn call(&self, ident: &Ident) -> Option<&'a Call> {
        self.calls.iter().find(|call| call.name == ident.value)
    }

    fn field(&mut self, call: &Call, name: &str, quoted: bool, span: Span) -> Option<Expr> {
        if let Some(index) = find(name, quoted, FIELDS) {
            return Some(Expr::Identifier(Ident::with_quote('"', call.column(FIELDS[index]))));
        }
        let help = did_you_mean(name, FIELDS).unwrap_or_else(|| format!("it has {}", FIELDS.join(", ")));
        let error = Diagnostic::new(format!("{FUNCTION} gives no `{name}`"), span);
        self.errors.push(error.help(help));
        None
    }

    fn accessed(&mut self, root: &Expr, chain: &[AccessExpr]) -> Option<Expr> {
        let mut root = root;
        while let Expr::Nested(inner) = root {
            root = inner;
        }
        let Expr::Identifier(ident) = root else { return None };
        let call = self.call(ident)?;
        match chain {
            [AccessExpr::Dot(Expr::Identifier(field))] => self.field(
                call,
                &field.value,
                field.quote_style.is_some(),
                self.lines.span(field.span),
            ),
            [
                AccessExpr::Subscript(Subscript::Index {
                    index: Expr::Value(value),
                }),
            ] => {
                let span = self.lines.span(value.span);
                match &value.value {
                    Value::Number(digits, _) => {
                        let field = digits
                            .parse::<usize>()
                            .ok()
                            .and_then(|at| FIELDS.get(at.checked_sub(1)?));
                        self.field(call, field.copied().unwrap_or(digits), true, span)
                    }
                    Value::SingleQuotedString(name) => self.field(call, name, true, span),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

impl VisitorMut for Fields<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let put = match expr {
            Expr::Identifier(ident) => self.call(ident).map(whole),
            Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                [call, field] => self.call(call).and_then(|call| {
                    let (name, quoted, span) = (
                        field.value.clone(),
                        field.quote_style.is_some(),
                        self.lines.span(field.span),
                    );
                    self.field(call, &name, quoted, span)
                }),
                _ => None,
            },
            Expr::CompoundFieldAccess { root, access_chain } => self.accessed(&root.clone(), &access_chain.clone()),
            _ => None,
        };
        if let Some(put) = put {
            self.named += 1;
            *expr = put;
        }
        ControlFlow::Continue(())
    }
}

/// All fields of a result as one value.
fn whole(call: &Call) -> Expr {
    let fields = FIELDS.map(|field| format!("'{field}', \"{}\"", call.column(field)));
    let text = format!("named_struct({})", fields.join(", "));
    let parsed = Parser::new(&GenericDialect {})
        .try_with_sql(&text)
        .and_then(|mut parser| parser.parse_expr());
    parsed.expect("a call of a function with literals and quoted names is an expression")
}

#[cfg(test)]
mod tests {
    use super::deviations;

    #[test]
    fn confidence_is_so_many_deviations() {
        for (share, expected) in [(0.5, 0.674_49), (0.95, 1.959_96), (0.99, 2.575_83), (0.999, 3.290_53)] {
            assert!((deviations(share) - expected).abs() < 1e-3, "{share}");
        }
    }
}
