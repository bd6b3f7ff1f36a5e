//! `JOIN owners FOR SYSTEM_TIME AS OF ts ON …`: columns of tables replaced by functions of their keys, before names are resolved.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::{
    ast::{
        BinaryOperator, Expr as SqlExpr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList,
        FunctionArguments, Ident, JoinConstraint, JoinOperator, Select, SelectItem, Spanned, TableFactor, VisitMut,
        VisitorMut,
    },
    tokenizer::Token as Tok,
};

use super::Table;
use crate::{
    diagnostic::{Diagnostic, Span, did_you_mean},
    select::{Context, conjuncts, sides},
    source::Source,
    text::{Cursor, LineMap, Name, Parsed, Token, find},
};

/// Takes `FOR SYSTEM_TIME AS OF t.ts` out of the tokens; the columns that it names.
pub(crate) fn take_as_of(tokens: &[Token]) -> Parsed<(Vec<Token>, Vec<Name>)> {
    let mut cursor = Cursor::new(tokens);
    let (mut out, mut times) = (Vec::with_capacity(tokens.len()), Vec::new());
    while let Some(token) = cursor.peek() {
        if !cursor.is("FOR") || !cursor.is_at(1, "SYSTEM_TIME") {
            out.push(token.clone());
            cursor.skip(1);
            continue;
        }
        cursor.expect("FOR SYSTEM_TIME AS OF")?;
        let mut time = cursor.name("the event time")?;
        if cursor.eat_punct(Tok::Period) {
            time = cursor.name("the event time")?;
        }
        times.push(time);
    }
    Ok((out, times))
}

/// A table that is joined.
struct LookedUp<'a> {
    alias: String,
    table: &'a Table,
    /// What its functions take: by key column, what that is compared with, then the event time, if it has one.
    args: Vec<SqlExpr>,
}

impl LookedUp<'_> {
    fn call(&self, function: &str) -> SqlExpr {
        let arg = |expr: &SqlExpr| FunctionArg::Unnamed(FunctionArgExpr::Expr(expr.clone()));
        SqlExpr::Function(Function {
            name: vec![Ident::with_quote('"', function)].into(),
            uses_odbc_syntax: false,
            parameters: FunctionArguments::None,
            args: FunctionArguments::List(FunctionArgumentList {
                duplicate_treatment: None,
                args: self.args.iter().map(arg).collect(),
                clauses: Vec::new(),
            }),
            filter: None,
            null_treatment: None,
            over: None,
            within_group: Vec::new(),
        })
    }

    fn column(&self, ident: &Ident) -> Option<usize> {
        let names = self.table.columns.iter().map(String::as_str);
        find(&ident.value, ident.quote_style.is_some(), names)
    }
}

/// Replaces joined tables by functions of their keys. `false` where a table itself is wrong, which was said there.
pub(crate) fn look_up(
    select: &mut Select,
    times: &[Name],
    source: &Source,
    context: &Context<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Parsed<bool> {
    let Some(from) = select.from.first_mut() else {
        return Ok(true);
    };
    let joins = std::mem::take(&mut from.joins);
    let mut looked_up = Vec::new();
    for join in &joins {
        let span = context.lines.span(join.relation.span());
        let (optional, constraint) = match &join.join_operator {
            JoinOperator::Join(on) | JoinOperator::Inner(on) => (false, on),
            JoinOperator::Left(on) | JoinOperator::LeftOuter(on) => (true, on),
            _ => return Err(Diagnostic::new("a table is joined by JOIN or LEFT JOIN", span)),
        };
        let (TableFactor::Table { name, alias, .. }, JoinConstraint::On(on)) = (&join.relation, constraint) else {
            return Err(Diagnostic::new("a table is joined ON its key", span));
        };
        let name = name.to_string();
        if context.failed.iter().any(|failed| failed.eq_ignore_ascii_case(&name)) {
            return Ok(false);
        }
        let Some(table) = context
            .tables
            .iter()
            .find(|table| table.name.eq_ignore_ascii_case(&name))
        else {
            let known = context.tables.iter().map(|table| table.name.as_str());
            let help = did_you_mean(&name, known)
                .unwrap_or_else(|| "CREATE TABLE … (…, PRIMARY KEY (…)) WITH (…) declares one".into());
            return Err(Diagnostic::new(format!("`{name}` is no table with a key"), span).help(help));
        };
        let alias = alias.as_ref().map_or(&table.name, |alias| &alias.name.value).clone();
        let mut args = key(on, &alias, table, context)?;
        if table.timed {
            args.push(SqlExpr::Identifier(Ident::with_quote('"', &source.event_time)));
        }
        let joined = LookedUp { alias, table, args };
        if !optional {
            let found = SqlExpr::IsNotNull(Box::new(joined.call(table.found())));
            select.selection = Some(match select.selection.take() {
                None => found,
                Some(filter) => SqlExpr::BinaryOp {
                    left: Box::new(SqlExpr::Nested(Box::new(filter))),
                    op: BinaryOperator::And,
                    right: Box::new(found),
                },
            });
        }
        looked_up.push((joined, span));
    }
    check_as_of(&looked_up, times, source)?;
    let before = errors.len();
    let mut replace = Replace {
        looked_up: &looked_up,
        source,
        lines: context.lines,
        errors,
    };
    for item in &mut select.projection {
        match item {
            // A column is called as it is written.
            SelectItem::UnnamedExpr(SqlExpr::CompoundIdentifier(parts)) if parts.len() == 2 => {
                let alias = Ident::with_quote_and_span('"', parts[1].span, parts[1].value.clone());
                let mut expr = SqlExpr::CompoundIdentifier(parts.clone());
                let _ = expr.visit(&mut replace);
                *item = SelectItem::ExprWithAlias { expr, alias };
            }
            SelectItem::UnnamedExpr(SqlExpr::Identifier(ident)) => {
                let alias = Ident::with_quote_and_span('"', ident.span, ident.value.clone());
                let mut expr = SqlExpr::Identifier(ident.clone());
                let _ = expr.visit(&mut replace);
                *item = SelectItem::ExprWithAlias { expr, alias };
            }
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
                let _ = expr.visit(&mut replace);
            }
            _ => {}
        }
    }
    if let Some(filter) = &mut select.selection {
        let _ = filter.visit(&mut replace);
    }
    Ok(errors.len() == before)
}

fn check_as_of(looked_up: &[(LookedUp<'_>, Span)], times: &[Name], source: &Source) -> Parsed<()> {
    if let Some((joined, span)) = looked_up.get(times.len()) {
        let help = format!(
            "write JOIN {} FOR SYSTEM_TIME AS OF {}",
            joined.table.name, source.event_time
        );
        return Err(Diagnostic::new("a join with a table says as of when", *span).help(help));
    }
    let other = times
        .iter()
        .find(|time| time.find([source.event_time.as_str()]).is_none());
    other.map_or(Ok(()), |time| {
        let message = format!("rows are joined as of their event time, not of `{}`", time.text);
        Err(Diagnostic::new(message, time.span).help(format!("write FOR SYSTEM_TIME AS OF {}", source.event_time)))
    })
}

/// ON: equality with every key column of the table. What stands on the other side, by key column.
fn key(on: &SqlExpr, alias: &str, table: &Table, context: &Context<'_>) -> Parsed<Vec<SqlExpr>> {
    let mut found: Vec<Option<SqlExpr>> = vec![None; table.key.len()];
    for conjunct in conjuncts(on) {
        let not_key = || {
            let span = context.lines.span(conjunct.span());
            Diagnostic::new("a table is joined on its key, nothing else", span)
                .help("write other conditions into WHERE")
        };
        let of_table = |side: &SqlExpr| match side {
            SqlExpr::CompoundIdentifier(parts) => match parts.as_slice() {
                [of, column] if of.value.eq_ignore_ascii_case(alias) => {
                    table.key.iter().position(|key| key.eq_ignore_ascii_case(&column.value))
                }
                _ => None,
            },
            _ => None,
        };
        let (left, right) = sides(conjunct).ok_or_else(not_key)?;
        match (of_table(left), of_table(right)) {
            (Some(at), None) => found[at] = Some(right.clone()),
            (None, Some(at)) => found[at] = Some(left.clone()),
            _ => return Err(not_key()),
        }
    }
    let missing = found.iter().position(Option::is_none);
    if let Some(missing) = missing {
        let message = format!(
            "the join leaves out `{}` of the key of `{}`",
            table.key[missing], table.name
        );
        return Err(Diagnostic::new(message, context.lines.span(on.span())));
    }
    Ok(found.into_iter().flatten().collect())
}

/// Puts functions where columns of tables are named.
struct Replace<'a> {
    looked_up: &'a [(LookedUp<'a>, Span)],
    source: &'a Source,
    lines: &'a LineMap<'a>,
    errors: &'a mut Vec<Diagnostic>,
}

impl VisitorMut for Replace<'_> {
    type Break = ();

    /// After the parts of an expression: what is put in is not looked at again.
    fn post_visit_expr(&mut self, expr: &mut SqlExpr) -> ControlFlow<()> {
        let put = match expr {
            SqlExpr::CompoundIdentifier(parts) => match parts.as_slice() {
                [of, column] => {
                    let mut joined = self.looked_up.iter().map(|(joined, _)| joined);
                    joined
                        .find(|joined| joined.alias.eq_ignore_ascii_case(&of.value))
                        .and_then(|joined| {
                            let Some(at) = joined.column(column) else {
                                let message = format!("table `{}` has no column `{}`", joined.table.name, column.value);
                                let near = did_you_mean(&column.value, joined.table.columns.iter().map(String::as_str));
                                let error = Diagnostic::new(message, self.lines.span(column.span));
                                self.errors.push(error.help_opt(near));
                                return None;
                            };
                            Some(joined.call(joined.table.function_of(at)))
                        })
                }
                _ => None,
            },
            SqlExpr::Identifier(ident) => {
                let own = find(&ident.value, ident.quote_style.is_some(), self.source.column_names()).is_some();
                let mut joined = self.looked_up.iter().map(|(joined, _)| joined).filter(|_| !own);
                joined.find_map(|joined| Some(joined.call(joined.table.function_of(joined.column(ident)?))))
            }
            _ => None,
        };
        if let Some(put) = put {
            *expr = put;
        }
        ControlFlow::Continue(())
    }
}
