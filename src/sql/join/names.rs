//! Names in a view over views.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, Ident, VisitMut, VisitorMut};

use super::Part;
use crate::{
    diagnostic::{Diagnostic, did_you_mean},
    select::{Context, DEPTH_MAX, Names, Place},
    source::Unknown,
    text::find,
};

/// Turns `a.column`, and a column that only one view has, into the one name it has among the columns of all views.
pub(super) struct Resolver<'a> {
    pub parts: &'a [Part<'a>],
    /// Columns of no part.
    pub columns: &'a [String],
    pub context: &'a Context<'a>,
    pub errors: &'a mut Vec<Diagnostic>,
}

impl Resolver<'_> {
    pub fn flat_names(&self) -> Vec<String> {
        let parts = self.parts.iter();
        parts
            .flat_map(|part| part.columns().map(|field| part.flat(field.name())))
            .chain(self.columns.iter().cloned())
            .collect()
    }

    pub fn resolve(&mut self, expr: &mut SqlExpr, names: &mut Vec<String>) {
        let mut flatten = Flatten {
            parts: self.parts,
            columns: self.columns,
            context: self.context,
            depth: 0,
            errors: self.errors,
        };
        let before = flatten.errors.len();
        let _ = expr.visit(&mut flatten);
        if flatten.errors.len() > before {
            return;
        }
        let known = Unknown::default();
        let mut resolved = Names {
            columns: std::mem::take(names),
            table: self.parts[0].alias.clone(),
            ..Names::apart(self.context.functions, self.context.lines, &known, self.errors)
        };
        resolved.resolve(expr, Place::Condition);
        *names = resolved.columns;
    }
}

struct Flatten<'a> {
    parts: &'a [Part<'a>],
    columns: &'a [String],
    context: &'a Context<'a>,
    depth: usize,
    errors: &'a mut Vec<Diagnostic>,
}

impl Flatten<'_> {
    /// The flat name of a column of one of `parts`.
    fn found(&mut self, ident: &Ident, parts: &[&Part<'_>]) -> Option<Ident> {
        let quoted = ident.quote_style.is_some();
        let span = self.context.lines.span(ident.span);
        let mut found = parts.iter().filter_map(|part| {
            let names: Vec<&str> = part.columns().map(|field| field.name().as_str()).collect();
            let index = find(&ident.value, quoted, names.iter().copied())?;
            Some((part.alias.clone(), part.flat(names[index])))
        });
        let Some((first, flat)) = found.next() else {
            let message = format!("unknown column `{}`", ident.value);
            let names = parts
                .iter()
                .flat_map(|part| part.columns().map(|field| field.name().as_str()));
            let near = did_you_mean(&ident.value, names);
            self.errors.push(Diagnostic::new(message, span).help_opt(near));
            return None;
        };
        if let Some((second, _)) = found.next() {
            let message = format!("`{}` is a column of `{first}` and of `{second}`", ident.value);
            let help = format!("write {first}.{}", ident.value);
            self.errors.push(Diagnostic::new(message, span).help(help));
            return None;
        }
        Some(Ident::with_quote_and_span('"', ident.span, flat))
    }

    fn qualified(&mut self, table: &Ident, column: &Ident) -> Option<Ident> {
        let aliases = self.parts.iter().map(|part| part.alias.as_str());
        let Some(index) = find(&table.value, table.quote_style.is_some(), aliases) else {
            let message = format!("`{}` is no view of this FROM", table.value);
            let aliases = self.parts.iter().map(|part| part.alias.as_str());
            let near = did_you_mean(&table.value, aliases);
            let span = self.context.lines.span(table.span);
            self.errors.push(Diagnostic::new(message, span).help_opt(near));
            return None;
        };
        self.found(column, &[&self.parts[index]])
    }
}

impl VisitorMut for Flatten<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut SqlExpr) -> ControlFlow<()> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            // Whoever resolves the functions says so.
            return ControlFlow::Break(());
        }
        let flat = match expr {
            SqlExpr::Identifier(ident) if self.columns.contains(&ident.value) => None,
            SqlExpr::Identifier(ident) => {
                let parts: Vec<&Part<'_>> = self.parts.iter().collect();
                self.found(&ident.clone(), &parts)
            }
            SqlExpr::CompoundIdentifier(idents) => match idents.clone().as_slice() {
                [table, column] => self.qualified(table, column),
                _ => None,
            },
            _ => None,
        };
        if let Some(flat) = flat {
            *expr = SqlExpr::Identifier(flat);
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, _expr: &mut SqlExpr) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}
