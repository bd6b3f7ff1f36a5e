//! A view as a plain batch query: what the engine's windows must contain.

use datafusion::sql::sqlparser::ast::{GroupByExpr, Ident, SetExpr, TableAlias, TableFactor};

use crate::{
    catalog::Functions,
    compile::parsed,
    diagnostic::{Diagnostic, Diagnostics, Span},
    lookup, on_large_stack,
    select::{self, Flat, flatten},
    source::{self, Source, WINDOW_COLUMNS},
    text::LineMap,
    union,
};

/// Name of the derived table; no source is called so.
const WINDOWED: &str = "homeostat_windowed";

/// SQL that computes `view` with DataFusion over a table called as its source, with its columns (an entry of a map is a
/// column named like `attributes['http.route']`). `quantile` and `rate` are [`oracle_aggregates`](crate::oracle_aggregates).
/// Rows come in no order. Lateness, FILL MISSING and watermarks have no meaning in a batch and are left out.
pub fn view_oracle_sql(text: &str, view: &str) -> Result<String, Diagnostics> {
    on_large_stack(|| {
        let mut errors = Vec::new();
        match oracle(text, view, &mut errors) {
            Some(sql) if errors.is_empty() => Ok(sql),
            _ => Err(Diagnostics::locate(errors, text)),
        }
    })
}

fn oracle(text: &str, view: &str, errors: &mut Vec<Diagnostic>) -> Option<String> {
    let mut statements = parsed(text, errors);
    union::take_inline(&mut statements);
    let mut sources: Vec<Source> = statements
        .sources
        .iter()
        .filter(|ast| !lookup::is_table(ast))
        .map(|ast| source::resolve(ast, errors))
        .collect();
    let Some(ast) = statements.views.iter().find(|ast| ast.name.text == view) else {
        errors.push(Diagnostic::new(format!("there is no view `{view}`"), Span::default()));
        return None;
    };
    let functions = Functions::new();
    let lines = LineMap::new(text);
    let context = select::Context {
        functions: &functions,
        lines: &lines,
        failed: &[],
        views: &statements.views,
        tables: &[],
    };
    for ast in &statements.rows {
        let rows = union::resolve(ast, &mut sources.clone(), &context, errors);
        sources.push(rows);
    }
    let flat = flatten(ast, &mut sources, &context, errors)?;
    let source = &flat.declared;
    let window = flat.window?;
    let windowed = match window.gap_ms {
        Some(gap_ms) => sessions(&flat, source, gap_ms),
        None => windowed(&window, source),
    };
    let mut query = flat.query;
    let SetExpr::Select(select) = query.body.as_mut() else {
        return None;
    };
    if let Some(TableFactor::Table { name, alias, .. }) = select.from.first_mut().map(|from| &mut from.relation) {
        *name = vec![Ident::new(WINDOWED)].into();
        alias.get_or_insert_with(|| TableAlias {
            explicit: true,
            name: Ident::with_quote('"', &source.name),
            columns: Vec::new(),
            at: None,
        });
    }
    Some(format!("WITH {WINDOWED} AS (\n{windowed}\n)\n{query}"))
}

/// The source's rows, each once per window that it belongs to.
fn windowed(window: &select::Window, source: &Source) -> String {
    let select::Window {
        size_ms,
        slide_ms,
        offset_ms,
        gap_ms: _,
    } = *window;
    let (time, table) = (quote(&source.event_time), table(source));
    let ms = format!("CAST(arrow_cast({time}, {MS_TYPE}) AS BIGINT)");
    let ms_type = MS_TYPE;
    // Rounding down to the slide, also before 1970.
    let down = |value: String| format!("({value} - (({value} % {slide_ms}) + {slide_ms}) % {slide_ms})");
    let last = down(format!("({ms} - {offset_ms})"));
    let first = down(format!("({ms} - {offset_ms} - {size_ms})"));
    format!(
        "  SELECT *, arrow_cast(homeostat_start, {ms_type}) AS window_start, \
         arrow_cast(homeostat_start + {size_ms}, {ms_type}) AS window_end FROM (\n    \
         SELECT *, unnest(generate_series({first} + {offset_ms} + {slide_ms}, {last} + {offset_ms}, {slide_ms})) AS homeostat_start\n    \
         FROM {table} WHERE {time} IS NOT NULL)"
    )
}

const MS_TYPE: &str = r#"'Timestamp(Millisecond, Some("UTC"))'"#;

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn table(source: &Source) -> String {
    match source.parts.as_slice() {
        [] => quote(&source.name),
        parts => {
            let parts: Vec<&str> = parts.iter().map(|part| part.sql.as_str()).collect();
            format!("({}) AS {}", parts.join(" UNION ALL "), quote(&source.name))
        }
    }
}

/// The source's rows, each with the session that it is in: those of one group, where none is further than the gap from the one before.
fn sessions(flat: &Flat, source: &Source, gap_ms: i64) -> String {
    let SetExpr::Select(select) = flat.query.body.as_ref() else {
        return String::new();
    };
    let GroupByExpr::Expressions(group, _) = &select.group_by else {
        return String::new();
    };
    let group = group.iter().map(ToString::to_string);
    let group = group.filter(|key| !WINDOW_COLUMNS.iter().any(|column| key.trim_matches('"') == *column));
    let group: Vec<String> = group.collect();
    let by = |more: &[&str]| {
        let all: Vec<&str> = group.iter().map(String::as_str).chain(more.iter().copied()).collect();
        match all.is_empty() {
            true => String::new(),
            false => format!("PARTITION BY {}", all.join(", ")),
        }
    };
    let (time, table) = (quote(&source.event_time), table(source));
    let filter = select
        .selection
        .as_ref()
        .map_or_else(String::new, |filter| format!(" AND ({filter})"));
    let ms = format!("CAST(arrow_cast({time}, {MS_TYPE}) AS BIGINT)");
    let (alone, numbered) = (by(&[]), by(&["homeostat_session"]));
    format!(
        "  SELECT *, arrow_cast(min(homeostat_ms) OVER ({numbered}), {MS_TYPE}) AS window_start, \
         arrow_cast(max(homeostat_ms) OVER ({numbered}) + {gap_ms}, {MS_TYPE}) AS window_end FROM (\n    \
         SELECT *, sum(CASE WHEN homeostat_ms - homeostat_before <= {gap_ms} THEN 0 ELSE 1 END) \
         OVER ({alone} ORDER BY homeostat_ms ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS homeostat_session FROM (\n      \
         SELECT *, {ms} AS homeostat_ms, lag({ms}) OVER ({alone} ORDER BY {ms}) AS homeostat_before \
         FROM {table} WHERE {time} IS NOT NULL{filter}) AS {name}) AS {name}",
        name = quote(&source.name)
    )
}
