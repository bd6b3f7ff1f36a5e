//! A SELECT with mistakes, part by part: which parts are wrong, and what is left without them.

use std::ops::ControlFlow;

use datafusion::{
    common::DataFusionError,
    sql::sqlparser::ast::{Expr as SqlExpr, GroupByExpr, Select, SelectItem, SetExpr, visit_expressions},
};

use super::{NOT_GROUPED, planner_error, windowed};
use crate::{
    ast,
    diagnostic::{Diagnostic, Span},
    select::{self, Flat},
    source::{Source, WINDOW_COLUMNS},
};

/// A part of a SELECT that is planned by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Select(usize),
    Filter,
    Group(usize),
    Having,
}

impl Flat {
    /// Names of the columns; a column that is misspelt has the name of the one that is meant.
    pub(super) fn output_names(&self, ast: &ast::View) -> Option<Vec<String>> {
        let SetExpr::Select(select) = self.query.body.as_ref() else {
            return None;
        };
        let names = self.outputs.iter().zip(&select.projection).map(|((name, _), item)| {
            let own = match item {
                SelectItem::UnnamedExpr(SqlExpr::Identifier(ident)) => Some(&ident.value),
                SelectItem::UnnamedExpr(SqlExpr::CompoundIdentifier(parts)) => parts.last().map(|part| &part.value),
                _ => None,
            };
            own.filter(|own| !own.eq_ignore_ascii_case(name))
                .unwrap_or(name)
                .clone()
        });
        select::known_names(names.collect(), ast)
    }

    fn parts(&self) -> Vec<(Part, Span)> {
        let group = self
            .spans
            .group
            .iter()
            .enumerate()
            .map(|(at, span)| (Part::Group(at), *span));
        let select = self
            .spans
            .select
            .iter()
            .enumerate()
            .map(|(at, span)| (Part::Select(at), *span));
        let filter = self.spans.filter.map(|span| (Part::Filter, span));
        let having = self.spans.having.map(|span| (Part::Having, span));
        filter.into_iter().chain(group).chain(select).chain(having).collect()
    }

    /// Leaves out the parts that mistakes are in, and those of which nothing can be said.
    pub(super) fn leave_out_wrong(&mut self, errors: &[Diagnostic]) {
        let wrong = errors.iter().map(|error| error.span).collect::<Vec<Span>>();
        let holds = |span: &Span, places: &[Span]| {
            places
                .iter()
                .any(|place| span.start <= place.start && place.end <= span.end)
        };
        let found = self.parts().into_iter().filter(|(part, span)| match part {
            // A misspelt column in GROUP BY is read as the one that is meant.
            Part::Group(_) => holds(span, &self.unknown),
            _ => holds(span, &wrong) || holds(span, &self.unknown),
        });
        let found: Vec<Part> = found.map(|(part, _)| part).collect();
        self.leave_out(&found);
    }

    /// The query without these parts, and without what names them.
    pub(super) fn leave_out(&mut self, wrong: &[Part]) {
        if wrong.is_empty() {
            return;
        }
        self.partial = true;
        let SetExpr::Select(select) = self.query.body.as_mut() else {
            return;
        };
        let names: Vec<String> = wrong
            .iter()
            .filter_map(|part| match part {
                Part::Select(at) => self.outputs.get(*at).map(|(name, _)| name.clone()),
                _ => None,
            })
            .collect();
        let columns = self.declared.column_names().chain(WINDOW_COLUMNS).map(str::to_owned);
        let columns: Vec<String> = columns.collect();
        let is_left_out = |expr: &SqlExpr| names_any(expr, &names, &columns);
        let keep = |part: Part| !wrong.contains(&part);
        let mut at = 0..;
        select
            .projection
            .retain(|_| keep(Part::Select(at.next().unwrap_or_default())));
        let mut at = 0..;
        self.spans
            .select
            .retain(|_| keep(Part::Select(at.next().unwrap_or_default())));
        let mut at = 0..;
        self.outputs
            .retain(|_| keep(Part::Select(at.next().unwrap_or_default())));
        if let GroupByExpr::Expressions(exprs, _) = &mut select.group_by {
            let kept: Vec<bool> = exprs
                .iter()
                .enumerate()
                .map(|(at, expr)| keep(Part::Group(at)) && !is_left_out(expr))
                .collect();
            let mut at = kept.iter();
            exprs.retain(|_| at.next().is_none_or(|kept| *kept));
            let mut at = kept.iter();
            self.spans.group.retain(|_| at.next().is_none_or(|kept| *kept));
            self.loose |= kept.contains(&false);
        }
        if !keep(Part::Filter) {
            select.selection = None;
            self.spans.filter = None;
        }
        if !keep(Part::Having) || select.having.as_ref().is_some_and(is_left_out) {
            select.having = None;
            self.spans.having = None;
        }
        if select.projection.is_empty() {
            select
                .projection
                .push(SelectItem::UnnamedExpr(SqlExpr::Identifier(WINDOW_COLUMNS[0].into())));
            self.spans.select.push(self.spans.whole);
            self.outputs.push((WINDOW_COLUMNS[0].to_owned(), self.spans.whole));
        }
    }
}

/// Whether an expression names one of `names` that is no column.
fn names_any(expr: &SqlExpr, names: &[String], columns: &[String]) -> bool {
    let mut found = false;
    let _ = visit_expressions(expr, |expr| {
        if let SqlExpr::Identifier(ident) = expr {
            found |= names.contains(&ident.value) && !columns.contains(&ident.value);
        }
        ControlFlow::<()>::Continue(())
    });
    found
}

/// Why a query does not plan, at every one of its parts that does not plan by itself. A part without an error is wrong because of
/// another one.
pub(super) fn blame(
    error: DataFusionError,
    flat: &Flat,
    source: &Source,
    context: &select::Context<'_>,
) -> Vec<(Option<Part>, Option<Diagnostic>)> {
    let whole = planner_error(&error, flat.spans.whole, context.lines);
    let schema = windowed(source);
    // Without the SELECT list, which may be long: each trial copies what it needs of it.
    let mut rest = flat.query.clone();
    let items = match rest.body.as_mut() {
        SetExpr::Select(select) => std::mem::take(&mut select.projection),
        _ => Vec::new(),
    };
    let fails = |edit: &dyn Fn(&mut Select)| {
        let mut query = rest.clone();
        let SetExpr::Select(select) = query.body.as_mut() else {
            return None;
        };
        edit(select);
        context.functions.plan(query, &source.name, &schema).err()
    };
    let window = || SqlExpr::Identifier(WINDOW_COLUMNS[0].into());
    let group_only = |select: &mut Select, kept: &[usize]| {
        if let GroupByExpr::Expressions(exprs, _) = &mut select.group_by {
            let written = flat.spans.group.len();
            let mut at = 0..;
            exprs.retain(|_| at.next().is_some_and(|at| at >= written || kept.contains(&at)));
            exprs.push(window());
        }
    };
    let mut found = Vec::new();
    let (mut sound, mut wrong): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    for (part, span) in flat.parts() {
        let error = fails(&|select| {
            if part != Part::Filter {
                select.selection = None;
            }
            if part != Part::Having {
                select.having = None;
            }
            match part {
                Part::Select(at) => {
                    select.projection = items.get(at).cloned().into_iter().collect();
                    group_only(select, &sound);
                }
                Part::Having => {
                    group_only(select, &sound);
                    let sound = items.iter().enumerate().filter(|(at, _)| !wrong.contains(at));
                    select.projection = sound.map(|(_, item)| item.clone()).collect();
                }
                Part::Filter => group_only(select, &[]),
                Part::Group(at) => group_only(select, &[at]),
            }
            if !matches!(part, Part::Select(_) | Part::Having) || select.projection.is_empty() {
                select.projection = vec![SelectItem::UnnamedExpr(window())];
            }
        });
        match (error, part) {
            (None, Part::Group(at)) => sound.push(at),
            (None, _) => {}
            // HAVING may name what SELECT computes, and is wrong with it.
            (Some(_), Part::Having) if names_wrong(flat, &found) => found.push((Some(part), None)),
            (Some(error), _) => {
                if let Part::Select(at) = part {
                    wrong.push(at);
                }
                let loose = flat.loose || sound.len() < flat.spans.group.len();
                let error = planner_error(&error, span, context.lines);
                // A column that GROUP BY does not name may be one that it does, under a name that is not known.
                let follows =
                    loose && matches!(part, Part::Select(_) | Part::Having) && error.message.ends_with(NOT_GROUPED);
                found.push((Some(part), (!follows).then_some(error)));
            }
        }
    }
    if found.is_empty() {
        found.push((None, Some(whole)));
    }
    found
}

/// Whether HAVING names a column that is wrong.
fn names_wrong(flat: &Flat, found: &[(Option<Part>, Option<Diagnostic>)]) -> bool {
    let wrong = found.iter().filter_map(|(part, _)| match part {
        Some(Part::Select(at)) => Some(flat.outputs.get(*at)?.0.clone()),
        _ => None,
    });
    let wrong: Vec<String> = wrong.collect();
    match flat.query.body.as_ref() {
        SetExpr::Select(select) => select
            .having
            .as_ref()
            .is_some_and(|having| names_any(having, &wrong, &[])),
        _ => false,
    }
}
