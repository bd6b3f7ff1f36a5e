//! Tables in compacted topics.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::logical_expr::ScalarUDF;
use engine::{
    spec::{Format, Metadata, SourceSpec, StartupMode},
    table::{Lookup, TableSpec, TopicColumn},
};

use super::{Table, key_columns};
use crate::{
    ast::{self, Setting},
    diagnostic::{Diagnostic, did_you_mean, one_of},
    fingerprint::Fingerprint,
    source::{self, SourceColumn},
    text::Parsed,
};

const OPTIONS: [&str; 4] = ["connector", "topic", "format", "scan.startup.mode"];
/// Since when a version holds where no column says it; no name of SQL is equal to it.
const RECORD_TIME: &str = "";

/// Resolves one declaration; what is wrong goes to `errors`.
pub(super) fn resolve(ast: &ast::Source, errors: &mut Vec<Diagnostic>) -> Option<Table> {
    let before = errors.len();
    let mut columns = Vec::new();
    let wrong = source::declared_columns(ast, Format::Json, &mut columns, errors);
    let topic = options(ast, errors);
    let time = take(valid_from(ast, &columns), errors);
    let names: Vec<String> = columns.iter().map(|column| column.field.name().clone()).collect();
    // A column that is itself wrong is no column: it is not blamed twice.
    let is_known = wrong.is_empty() && ast.unknown.is_empty();
    let key = is_known.then(|| take(key_columns(ast, &names), errors)).flatten();
    let map = columns
        .iter()
        .find(|column| matches!(column.field.data_type(), DataType::Map(..)));
    if let Some(map) = map {
        let message = format!("`{}` is a map, which has no place in a table", map.field.name());
        errors
            .push(Diagnostic::new(message, ast.name.span).help("name the header: STRING METADATA FROM 'header:NAME'"));
    }
    if errors.len() > before {
        return None;
    }
    let spec = Arc::new(spec(ast, topic?, columns, time?, key?));
    let place = format!("{}@{:016x}", ast.name.text, spec.source.fingerprint).to_ascii_lowercase();
    let function = |name: &str, column: Option<usize>| {
        let name = format!("{place}.{}", name.to_ascii_lowercase());
        Arc::new(ScalarUDF::new_from_impl(Lookup::new(
            name,
            TopicColumn::new(Arc::clone(&spec), column),
        )))
    };
    let mut functions: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(at, name)| function(name, Some(at)))
        .collect();
    functions.push(function("", None));
    Some(Table {
        name: ast.name.text.clone(),
        timed: true,
        key: spec.key.iter().map(|at| names[*at].clone()).collect(),
        columns: names,
        functions,
    })
}

fn take<T>(parsed: Parsed<T>, errors: &mut Vec<Diagnostic>) -> Option<T> {
    parsed.map_err(|error| errors.push(error)).ok()
}

/// The topic.
fn options(ast: &ast::Source, errors: &mut Vec<Diagnostic>) -> Option<String> {
    let mut topic = None;
    for setting in &ast.options {
        let read = match setting.key.value.to_ascii_lowercase().as_str() {
            "connector" => connector(setting),
            "topic" => source::topic(setting).map(|name| topic = Some(name)),
            "format" => format(setting),
            "scan.startup.mode" => startup(setting),
            key => {
                let help = did_you_mean(key, OPTIONS).unwrap_or_else(|| format!("use {}", one_of(OPTIONS)));
                Err(Diagnostic::new(format!("unknown option `{key}` of a table"), setting.key.span).help(help))
            }
        };
        errors.extend(read.err());
    }
    for missing in ["topic", "format"] {
        if !ast.broken && !source::given(&ast.options, missing, OPTIONS) {
            let message = format!("table `{}` has no {missing}", ast.name.text);
            errors.push(Diagnostic::new(message, ast.name.span).help("write WITH (topic = 'owners', format = 'json')"));
        }
    }
    topic
}

/// Kafka, or as Flink calls a topic whose records replace each other.
fn connector(setting: &Setting) -> Parsed<()> {
    match source::text(setting)?.value.eq_ignore_ascii_case("upsert-kafka") {
        true => Ok(()),
        false => source::connector(setting),
    }
}

fn format(setting: &Setting) -> Parsed<()> {
    let name = source::text(setting)?;
    if name.value.eq_ignore_ascii_case("json") {
        return Ok(());
    }
    let error = Diagnostic::new(format!("a table in a topic is 'json', not '{}'", name.value), name.span);
    Err(match source::is_format(&name.value) {
        true => error.help(
            "a record of telemetry has many rows, a record of a table is one: write its columns to a topic as JSON",
        ),
        false => error.help("write format = 'json': a record is an object with the columns"),
    })
}

fn startup(setting: &Setting) -> Parsed<()> {
    let mode = source::text(setting)?;
    if matches!(mode.value.as_str(), "earliest" | "earliest-offset") {
        return Ok(());
    }
    let message = format!("a table is read whole, not from '{}' on", mode.value);
    Err(Diagnostic::new(message, mode.span).help("leave it out, or write 'earliest'"))
}

/// The column that says since when a version holds, if one does.
fn valid_from(ast: &ast::Source, columns: &[SourceColumn]) -> Parsed<Option<usize>> {
    let Some(watermark) = &ast.watermark else {
        return Ok(None);
    };
    let name = &watermark.column;
    let found = name.find(columns.iter().map(|column| column.field.name().as_str()));
    let Some(found) = found else {
        return Err(Diagnostic::new(format!("unknown column `{}`", name.text), name.span));
    };
    if !matches!(columns[found].field.data_type(), DataType::Timestamp(..)) {
        return Err(Diagnostic::new(
            format!("`{}`, since when a version holds, is not a timestamp", name.text),
            name.span,
        )
        .help("declare it as TIMESTAMP(3) for milliseconds"));
    }
    if watermark.delay_ms > 0 || watermark.idle.is_some() || watermark.max_future_skew_ms.is_some() {
        let message = "nothing waits for a table: a version holds from its own time on";
        return Err(Diagnostic::new(message, watermark.span).help(format!("write WATERMARK FOR {0} AS {0}", name.text)));
    }
    Ok(Some(found))
}

fn spec(
    ast: &ast::Source,
    topic: String,
    mut columns: Vec<SourceColumn>,
    valid_from: Option<usize>,
    key: Vec<usize>,
) -> TableSpec {
    let event_time = valid_from.unwrap_or(columns.len());
    if valid_from.is_none() {
        let field = Field::new(RECORD_TIME, telemetry::timestamp_ms(), true);
        columns.push(SourceColumn {
            field: telemetry::metadata_column(field, "timestamp"),
            path: None,
            metadata: Some(Metadata::Timestamp),
        });
    }
    let mut text = Fingerprint::new("table in a topic");
    text.part(&topic).part(&format!("{event_time} {key:?}"));
    for column in &columns {
        text.part(column.field.name())
            .part(&column.field.data_type().to_string())
            .part(&format!("{:?} {:?}", column.path, column.metadata))
            .part(column.field.metadata().get("metadata").map_or("", String::as_str));
    }
    let metadata = columns.iter().enumerate();
    let source = SourceSpec {
        name: ast.name.text.clone(),
        fingerprint: text.finish(),
        topic,
        format: Format::Json,
        start: StartupMode::Earliest,
        metadata: metadata
            .filter_map(|(at, column)| Some((at, column.metadata?)))
            .collect(),
        paths: columns.iter().map(|column| column.path.clone()).collect(),
        schema: Arc::new(Schema::new(
            columns.into_iter().map(|column| column.field).collect::<Vec<_>>(),
        )),
        event_time,
        delay_ms: 0,
        idle_timeout_ms: None,
        max_future_skew_ms: i64::MAX,
        max_drift_ms: i64::MAX,
    };
    TableSpec {
        name: ast.name.text.clone(),
        source,
        key,
    }
}
