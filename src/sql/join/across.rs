//! Views of different sources: moved onto the rows of all of them, as a UNION ALL would put them together.
//!
//! Each source is a part of one view of rows, with its own columns under a name of their own, NULL in the others' rows, and a column
//! that says whose the row is. A view then reads those rows that are its source's; what it makes of them stays as it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::{
    common::{Column, DFSchema, Result as PlanResult, ScalarValue},
    logical_expr::{Expr, ExprSchemable, lit},
    sql::sqlparser::ast::Expr as SqlExpr,
};

use super::{Part, column};
use crate::{
    diagnostic::{Diagnostic, Span},
    select::{Context, conjuncts, sides},
    source::{Source, SourceColumn},
    text::Parsed,
    union,
    view::{Key, View, ViewAggregate, bare, canonical, planner_error, renamed},
};

/// Puts the sources of these parts together, where there are several: the view of rows, which has yet to be among the sources, and the
/// views over it. `sources.len()` will be its index.
pub(super) fn together(
    name: &str,
    parts: &[Part<'_>],
    sources: &[Source],
    context: &Context<'_>,
) -> Parsed<Option<(Source, Vec<View>)>> {
    let mut read: Vec<usize> = Vec::new();
    for part in parts {
        if !read.contains(&part.view.source) {
            read.push(part.view.source);
        }
    }
    if read.len() < 2 {
        return Ok(None);
    }
    let orders = key_orders(parts)?;
    check_keys(parts, &orders)?;
    let planned = |span: Span| move |error| planner_error(&error, span, context.lines);
    let views = parts.iter().zip(&orders).map(|(part, order)| {
        let own = read.iter().position(|source| *source == part.view.source);
        let own = own.expect("every source is read");
        moved(part.view, &parts[0].view.keys, order, own, sources.len()).map_err(planned(part.span))
    });
    let views = views.collect::<Parsed<Vec<View>>>()?;
    let rows = rows(name, parts, &orders, &read, sources).map_err(planned(parts[0].span))?;
    Ok(Some((rows, views)))
}

/// For each part, by key of the first part the place of its own key that ON says is equal.
fn key_orders(parts: &[Part<'_>]) -> Parsed<Vec<Vec<usize>>> {
    let count = parts[0].view.keys.len();
    let mut orders: Vec<BTreeMap<usize, usize>> = vec![(0..count).map(|key| (key, key)).collect()];
    for (at, part) in parts.iter().enumerate().skip(1) {
        let mut order = BTreeMap::new();
        for conjunct in part.on.as_ref().map(conjuncts).unwrap_or_default() {
            let pair = sides(conjunct).and_then(|(left, right)| key_pair(left, right, at, parts));
            let Some((own, other, key)) = pair else { continue };
            let first = orders[other].iter().find(|(_, of_other)| **of_other == key);
            if let Some((first, _)) = first {
                order.insert(*first, own);
            }
        }
        if order.len() != count || part.view.keys.len() != count {
            let message = format!(
                "`{}` and `{}` are not joined on every key of both",
                parts[0].alias, part.alias
            );
            return Err(Diagnostic::new(message, part.span).help("views are joined on equal windows and equal keys"));
        }
        orders.push(order);
    }
    Ok(orders.into_iter().map(|order| order.into_values().collect()).collect())
}

/// An equality of a key of part `at` with a key of a part before it: the own key, the other part, its key.
fn key_pair(left: &SqlExpr, right: &SqlExpr, at: usize, parts: &[Part<'_>]) -> Option<(usize, usize, usize)> {
    let key = |side: &SqlExpr| match side {
        SqlExpr::Identifier(ident) => {
            let (part, output) = column(&ident.value, parts)?;
            let position = parts.iter().position(|other| other.alias == part.alias)?;
            Some((position, part.view.key_of_output(output)?))
        }
        _ => None,
    };
    match (key(left)?, key(right)?) {
        ((own, key), (other, of)) if own == at && other < at => Some((key, other, of)),
        ((other, of), (own, key)) if own == at && other < at => Some((key, other, of)),
        _ => None,
    }
}

fn check_keys(parts: &[Part<'_>], orders: &[Vec<usize>]) -> Parsed<()> {
    for (at, (part, order)) in parts.iter().zip(orders).enumerate() {
        let keys = |at: usize| {
            orders[at]
                .iter()
                .map(|key| canonical(&parts[at].view.keys[*key].expr))
                .collect::<Vec<_>>()
        };
        let other = parts[..at]
            .iter()
            .position(|other| other.view.source == part.view.source);
        if let Some(other) = other.filter(|other| keys(*other) != keys(at)) {
            let message = format!("`{}` and `{}` do not group by the same", parts[other].alias, part.alias);
            return Err(
                Diagnostic::new(message, part.span).help("views of one source are joined on equal columns of it")
            );
        }
        for (first, own) in parts[0].view.keys.iter().zip(order) {
            let own = &part.view.keys[*own];
            let types = [&first.field, &own.field].map(|field| field.data_type().clone());
            if types[0] != types[1] && !types.iter().all(union::is_text) {
                let message = format!(
                    "`{}` and `{}` have different types",
                    first.field.name(),
                    own.field.name()
                );
                return Err(Diagnostic::new(message, part.span).help("CAST one of them where the view groups by it"));
            }
        }
    }
    Ok(())
}

fn key_name(key: usize) -> String {
    format!("key.{key}")
}

/// A column of the source that is read as number `own`.
fn column_name(own: usize, column: &str) -> String {
    format!("{own}.{column}")
}

const HERE: &str = "here";
const TIME: &str = "time";

/// A view of one source over the rows of all.
fn moved(view: &View, keys: &[Key], order: &[usize], own: usize, source: usize) -> PlanResult<View> {
    let of_row = |expr: &Expr| {
        renamed(bare(expr).clone(), &|column| {
            Ok(Column::from_name(column_name(own, &column.name)))
        })
    };
    let names: BTreeMap<&str, &str> = keys
        .iter()
        .zip(order)
        .map(|(first, own)| (view.keys[*own].field.name().as_str(), first.field.name().as_str()))
        .collect();
    let of_group = |expr: &Expr| {
        renamed(expr.clone(), &|column| {
            let name = names.get(column.name.as_str()).copied().unwrap_or(&column.name);
            Ok(Column::from_name(name))
        })
    };
    let here = Expr::Column(Column::from_name(column_name(own, HERE)));
    let filter = match &view.filter {
        None => here,
        Some(filter) => here.and(of_row(filter)?),
    };
    let keys = keys.iter().enumerate().map(|(at, first)| Key {
        expr: Expr::Column(Column::from_name(key_name(at))),
        field: Arc::clone(&first.field),
    });
    let aggregates = view.aggregates.iter().map(|aggregate| {
        let expr = of_row(&aggregate.expr)?;
        Ok(ViewAggregate {
            canonical: canonical(&expr),
            output: Arc::clone(&aggregate.output),
            expr,
        })
    });
    Ok(View {
        source,
        filter: Some(filter),
        keys: keys.collect(),
        aggregates: aggregates.collect::<PlanResult<_>>()?,
        projection: view.projection.iter().map(of_group).collect::<PlanResult<_>>()?,
        having: view.having.as_ref().map(of_group).transpose()?,
        ..view.clone()
    })
}

/// Columns of a source that views of it read, beside their keys.
fn used<'a>(parts: &[Part<'_>], source: usize, declared: &'a Source) -> Vec<&'a Field> {
    let views = parts.iter().map(|part| part.view).filter(|view| view.source == source);
    let exprs = views.flat_map(|view| {
        view.filter
            .iter()
            .chain(view.aggregates.iter().map(|aggregate| &aggregate.expr))
    });
    let names: BTreeSet<&str> = exprs
        .flat_map(Expr::column_refs)
        .map(|column| column.name.as_str())
        .collect();
    let fields = declared.columns.iter().map(|column| &column.field);
    fields.filter(|field| names.contains(field.name().as_str())).collect()
}

/// The rows of all sources that are read.
fn rows(
    name: &str,
    parts: &[Part<'_>],
    orders: &[Vec<usize>],
    read: &[usize],
    sources: &[Source],
) -> PlanResult<Source> {
    let keys: Vec<FieldRef> = parts[0].view.keys.iter().map(|key| Arc::clone(&key.field)).collect();
    let of_source = |source: usize| {
        let at = parts.iter().position(|part| part.view.source == source);
        let at = at.expect("every source is a part's");
        (parts[at].view, &orders[at])
    };
    let time = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let mut fields = vec![Field::new(TIME, time, true)];
    fields.extend((0..keys.len()).map(|at| {
        let data_type = keys[at].data_type().clone();
        let data_type = if union::is_text(&data_type) {
            telemetry::dictionary()
        } else {
            data_type
        };
        Field::new(key_name(at), data_type, true)
    }));
    for (own, source) in read.iter().enumerate() {
        fields.push(Field::new(column_name(own, HERE), DataType::Boolean, true));
        let columns = used(parts, *source, &sources[*source]).into_iter();
        fields.extend(columns.map(|field| {
            field
                .clone()
                .with_name(column_name(own, field.name()))
                .with_nullable(true)
        }));
    }
    let mut branches = Vec::new();
    for (own, source) in read.iter().enumerate() {
        let (view, order) = of_source(*source);
        let declared = &sources[*source];
        let schema = DFSchema::try_from(declared.schema())?;
        let event_time = Expr::Column(Column::from_name(declared.event_time.clone()));
        let mut columns = vec![event_time.cast_to(fields[0].data_type(), &schema)?];
        for (at, key) in order.iter().enumerate() {
            let expr = view.keys[*key].expr.clone();
            columns.push(expr.cast_to(fields[at + 1].data_type(), &schema)?);
        }
        for (other, source) in read.iter().enumerate() {
            columns.push(lit(other == own));
            for field in used(parts, *source, &sources[*source]) {
                columns.push(match other == own {
                    true => Expr::Column(Column::from_name(field.name())),
                    false => Expr::Literal(ScalarValue::try_from(field.data_type())?, None),
                });
            }
        }
        branches.extend(union::branches(*source, declared, columns)?);
    }
    let columns = fields.into_iter().map(|field| SourceColumn {
        field,
        path: None,
        metadata: None,
    });
    Ok(Source {
        name: format!("rows of {name}"),
        topic: String::new(),
        event_time: TIME.to_owned(),
        columns: columns.collect(),
        parts: branches,
        ..sources[read[0]].clone()
    })
}
