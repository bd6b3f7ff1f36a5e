//! Sources: what is declared, resolved against what formats know.

use std::{collections::BTreeSet, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use engine::spec::{Format, Metadata, OptionValue, SourceSpec, StartupMode};

use crate::{
    ast::{self, Column, ColumnFrom, ColumnType, IdleTimeout, Setting},
    diagnostic::{Diagnostic, Span, did_you_mean, nearest, one_of},
    duration,
    fingerprint::Fingerprint,
    text::{At, Name},
    union::Part,
};

/// Used where the clause is absent.
const IDLE_TIMEOUT_MS: i64 = 60_000;
const MAX_FUTURE_SKEW_MS: i64 = 300_000;
const MAX_DRIFT_MS: i64 = 300_000;
/// Collectors reorder by up to half a second, batches wait for some more.
const TELEMETRY_DELAY_MS: i64 = 5_000;
/// Broker and receive times only step back when a clock does.
const LOG_DELAY_MS: i64 = 1_000;
/// Columns that windows add.
pub(crate) const WINDOW_COLUMNS: [&str; 2] = ["window_start", "window_end"];

const OPTIONS: [&str; 6] = [
    "connector",
    "topic",
    "format",
    "scan.startup.mode",
    "scan.startup.timestamp-millis",
    "scan.watermark.alignment.max-drift",
];

const FORMATS: [(&str, Format); 17] = [
    ("json", Format::Json),
    ("heartbeat", Format::Heartbeat),
    ("prometheus_json", Format::PrometheusJson),
    ("telegraf_json", Format::TelegrafJson),
    ("alertmanager", Format::Alertmanager),
    ("otlp_metrics", Format::OtlpMetrics { json: false }),
    ("otlp_metrics_proto", Format::OtlpMetrics { json: false }),
    ("otlp_metrics_json", Format::OtlpMetrics { json: true }),
    ("otlp_logs", Format::OtlpLogs { json: false }),
    ("otlp_logs_proto", Format::OtlpLogs { json: false }),
    ("otlp_logs_json", Format::OtlpLogs { json: true }),
    ("otlp_spans", Format::OtlpSpans { json: false }),
    ("otlp_spans_proto", Format::OtlpSpans { json: false }),
    ("otlp_spans_json", Format::OtlpSpans { json: true }),
    ("otlp_traces", Format::OtlpSpans { json: false }),
    ("otlp_traces_proto", Format::OtlpSpans { json: false }),
    ("otlp_traces_json", Format::OtlpSpans { json: true }),
];

/// A column of a source, delivered only where some view uses it.
#[derive(Clone, Debug)]
pub(crate) struct SourceColumn {
    pub field: Field,
    pub path: Option<Vec<String>>,
    pub metadata: Option<Metadata>,
}

/// A source with all its columns.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub name: String,
    pub fingerprint: u64,
    pub topic: String,
    pub format: Format,
    pub start: StartupMode,
    pub columns: Vec<SourceColumn>,
    pub event_time: String,
    pub delay_ms: i64,
    pub idle_timeout_ms: Option<i64>,
    pub max_future_skew_ms: i64,
    pub max_drift_ms: i64,
    /// Of a view of rows, what it is made of; it has no topic of its own.
    pub parts: Vec<Part>,
    /// Of a declaration that is wrong.
    pub unknown: Unknown,
}

/// What a wrong declaration leaves open, so that nobody who uses it is blamed for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unknown {
    /// Names of columns whose types are not known.
    pub columns: Vec<String>,
    /// There may be others.
    pub others: bool,
    pub event_time: bool,
}

impl Unknown {
    /// Nothing is known.
    pub fn all() -> Self {
        Self {
            columns: Vec::new(),
            others: true,
            event_time: true,
        }
    }

    /// Whether a name may mean a column that is not known.
    pub fn may_be(&self, name: &str) -> bool {
        self.others || self.columns.iter().any(|column| column.eq_ignore_ascii_case(name))
    }
}

impl Source {
    /// In the place of one that is not there, or that is wrong beyond repair.
    pub fn unknown(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            fingerprint: 0,
            topic: String::new(),
            format: Format::Json,
            start: StartupMode::GroupOffsets,
            columns: Vec::new(),
            event_time: String::new(),
            delay_ms: 0,
            idle_timeout_ms: None,
            max_future_skew_ms: 0,
            max_drift_ms: 0,
            parts: Vec::new(),
            unknown: Unknown::all(),
        }
    }

    pub fn column(&self, name: &str) -> Option<&SourceColumn> {
        self.columns.iter().find(|column| column.field.name() == name)
    }

    pub fn column_names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|column| column.field.name().as_str())
    }

    /// Schema of all columns.
    pub fn schema(&self) -> Schema {
        Schema::new(
            self.columns
                .iter()
                .map(|column| column.field.clone())
                .collect::<Vec<_>>(),
        )
    }

    /// Adds the column that reads one entry of a map, and returns its name; `None` when `map` is no map of this source.
    pub fn map_entry(&mut self, map: &str, key: &str) -> Option<String> {
        let column = self.column(map)?;
        if !matches!(column.field.data_type(), DataType::Map(..)) {
            return None;
        }
        let metadata = column.metadata;
        let name = format!("{map}['{}']", key.replace('\'', "''"));
        if self.column(&name).is_none() {
            let field = match metadata {
                Some(_) => telemetry::metadata_column(
                    Field::new(&name, telemetry::dictionary(), true),
                    &format!("header:{key}"),
                ),
                None => telemetry::map_entry(&name, map, key),
            };
            self.columns.push(SourceColumn {
                field,
                path: None,
                metadata,
            });
        }
        Some(name)
    }

    /// The plan of this source, with only `used` columns and the event time.
    pub fn spec(&self, used: &BTreeSet<String>) -> SourceSpec {
        let kept: Vec<&SourceColumn> = self
            .columns
            .iter()
            .filter(|column| used.contains(column.field.name()) || *column.field.name() == self.event_time)
            .collect();
        let metadata = kept.iter().enumerate();
        let event_time = kept.iter().position(|column| *column.field.name() == self.event_time);
        SourceSpec {
            name: self.name.clone(),
            fingerprint: self.fingerprint,
            topic: self.topic.clone(),
            format: self.format,
            start: self.start,
            metadata: metadata
                .filter_map(|(index, column)| Some((index, column.metadata?)))
                .collect(),
            paths: kept.iter().map(|column| column.path.clone()).collect(),
            schema: Arc::new(Schema::new(
                kept.iter().map(|column| column.field.clone()).collect::<Vec<_>>(),
            )),
            event_time: event_time.expect("the event time is a column of its source"),
            delay_ms: self.delay_ms,
            idle_timeout_ms: self.idle_timeout_ms,
            max_future_skew_ms: self.max_future_skew_ms,
            max_drift_ms: self.max_drift_ms,
        }
    }
}

/// Of what decides which rows and watermarks a source yields, whatever its name and whichever columns views use.
fn fingerprint(source: &Source) -> u64 {
    let mut text = Fingerprint::new("source");
    text.part(&source.topic)
        .part(&format!("{:?} {:?}", source.format, source.start));
    for column in &source.columns {
        text.part(column.field.name())
            .part(&column.field.data_type().to_string())
            .part(&format!("{:?} {:?}", column.path, column.metadata));
        text.part(column.field.metadata().get("metadata").map_or("", String::as_str));
    }
    text.part(&source.event_time).part(&format!(
        "{} {:?} {} {}",
        source.delay_ms, source.idle_timeout_ms, source.max_future_skew_ms, source.max_drift_ms
    ));
    text.finish()
}

/// Resolves one declaration. What is wrong goes to `errors`; what is known of the source all the same is what its views are checked
/// against.
pub(crate) fn resolve(ast: &ast::Source, errors: &mut Vec<Diagnostic>) -> Source {
    let options = Options::read(ast, errors);
    let has_fields = ast.columns.iter().flatten().any(|column| !is_metadata(column));
    // Only JSON declares what a record holds.
    let format = options.format.or_else(|| has_fields.then_some(Format::Json));
    let mut unknown = Unknown {
        columns: ast.unknown.clone(),
        others: format.is_none(),
        event_time: false,
    };
    let mut columns = format.map_or_else(Vec::new, known_columns);
    let known = columns.len();
    unknown.columns.extend(declared_columns(
        ast,
        format.unwrap_or(Format::Json),
        &mut columns,
        errors,
    ));
    let event_time = match format {
        Some(Format::Json) if ast.columns.as_ref().is_none_or(Vec::is_empty) && unknown.columns.is_empty() => {
            unknown.others = true;
            errors.push(
                Diagnostic::new("a JSON source declares its columns", ast.name.span).help(format!(
                    "write CREATE SOURCE {} (service STRING, ms DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (…)",
                    ast.name.text
                )),
            );
            None
        }
        Some(format) => event_time(ast, format, &columns[..], known, &unknown, errors),
        None => None,
    };
    unknown.event_time = event_time.is_none();
    let event_time = event_time.unwrap_or_else(|| {
        let written = ast.watermark.as_ref().map(|watermark| watermark.column.text.clone());
        let name = written.unwrap_or_default();
        unknown.columns.push(name.clone());
        name
    });
    let format = format.unwrap_or(Format::Json);
    let watermark = ast.watermark.as_ref();
    let delay_ms = match format.is_timed_by_log() {
        true => LOG_DELAY_MS,
        false => TELEMETRY_DELAY_MS,
    };
    let mut source = Source {
        name: ast.name.text.clone(),
        fingerprint: 0,
        topic: options.topic.unwrap_or_default(),
        format,
        start: options.start,
        columns,
        event_time,
        delay_ms: watermark.map_or(delay_ms, |watermark| watermark.delay_ms),
        idle_timeout_ms: match watermark.and_then(|watermark| watermark.idle) {
            None => Some(IDLE_TIMEOUT_MS),
            Some(IdleTimeout::After { ms }) => Some(ms),
            Some(IdleTimeout::Never) => None,
        },
        max_future_skew_ms: watermark
            .and_then(|watermark| watermark.max_future_skew_ms)
            .unwrap_or(MAX_FUTURE_SKEW_MS),
        max_drift_ms: options.max_drift_ms,
        parts: Vec::new(),
        unknown,
    };
    source.fingerprint = fingerprint(&source);
    source
}

fn is_metadata(column: &Column) -> bool {
    matches!(column.from, Some(ColumnFrom::Metadata(_)))
}

struct Options {
    topic: Option<String>,
    format: Option<Format>,
    start: StartupMode,
    max_drift_ms: i64,
}

impl Options {
    fn read(ast: &ast::Source, errors: &mut Vec<Diagnostic>) -> Self {
        let mut options = Self {
            topic: None,
            format: None,
            start: StartupMode::GroupOffsets,
            max_drift_ms: MAX_DRIFT_MS,
        };
        let mut mode = None;
        let mut timestamp = None;
        for setting in &ast.options {
            let result = match setting.key.value.to_ascii_lowercase().as_str() {
                "connector" => connector(setting),
                "topic" => topic(setting).map(|topic| options.topic = Some(topic)),
                "format" => format(setting)
                    .map(|format| options.format = Some(format))
                    .inspect_err(|_| {
                        // The one that seems to be meant is what its columns are checked against.
                        options.format = text(setting).ok().and_then(|name| near_format(&name.value));
                    }),
                "scan.startup.mode" => text(setting).map(|text| mode = Some(text)),
                "scan.startup.timestamp-millis" => millis(setting).map(|ms| timestamp = Some((ms, setting.key.span))),
                "scan.watermark.alignment.max-drift" => drift(setting).map(|ms| options.max_drift_ms = ms),
                key => Err(unknown_option(key, setting)),
            };
            errors.extend(result.err());
        }
        match start(mode, timestamp) {
            Ok(start) => options.start = start,
            Err(error) => errors.push(error),
        }
        for missing in ["topic", "format"] {
            if !ast.broken && !given(&ast.options, missing, OPTIONS) {
                let example = if missing == "topic" { "'metrics'" } else { "'json'" };
                errors.push(
                    Diagnostic::new(format!("source `{}` has no {missing}", ast.name.text), ast.name.span)
                        .help(format!("add {missing} = {example} to WITH (…)")),
                );
            }
        }
        options
    }
}

/// Whether an option is there, or one that is misspelt and means it.
pub(crate) fn given<'a>(options: &[Setting], name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> bool {
    options.iter().any(|setting| {
        let key = setting.key.value.as_str();
        let is_known = known.clone().into_iter().any(|known| known.eq_ignore_ascii_case(key));
        key.eq_ignore_ascii_case(name) || (!is_known && nearest(key, known.clone()) == Some(name))
    })
}

fn unknown_option(key: &str, setting: &Setting) -> Diagnostic {
    let error = Diagnostic::new(format!("unknown option `{key}`"), setting.key.span);
    if key.starts_with("properties.") {
        return error
            .help("the broker and how to reach it are configuration (KAFKA_BOOTSTRAP), not part of a pipeline");
    }
    error.help(did_you_mean(key, OPTIONS).unwrap_or_else(|| format!("use {}", one_of(OPTIONS))))
}

pub(crate) fn text(setting: &Setting) -> Result<At<String>, Diagnostic> {
    match &setting.value.value {
        OptionValue::Text(text) => Ok(At::new(text.clone(), setting.value.span)),
        _ => Err(
            Diagnostic::new(format!("`{}` is a string", setting.key.value), setting.value.span)
                .help("put it in single quotes"),
        ),
    }
}

pub(crate) fn connector(setting: &Setting) -> Result<(), Diagnostic> {
    let connector = text(setting)?;
    if connector.value.eq_ignore_ascii_case("kafka") {
        return Ok(());
    }
    Err(
        Diagnostic::new(format!("unknown connector `{}`", connector.value), connector.span)
            .help("use 'kafka', or 'file' for a table that is joined"),
    )
}

pub(crate) fn topic(setting: &Setting) -> Result<String, Diagnostic> {
    let topic = text(setting)?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.value.is_empty() || topic.value.len() > 249 || !topic.value.chars().all(legal) {
        return Err(
            Diagnostic::new(format!("`{}` is not a name of a topic", topic.value), topic.span)
                .help("letters, digits, `.`, `_` and `-`, at most 249 of them"),
        );
    }
    Ok(topic.value)
}

fn format(setting: &Setting) -> Result<Format, Diagnostic> {
    let name = text(setting)?;
    let found = FORMATS
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(&name.value));
    found.map(|(_, format)| *format).ok_or_else(|| {
        let names = || FORMATS.iter().map(|(name, _)| *name);
        let main = names().filter(|name| !name.ends_with("_proto") && !name.starts_with("otlp_traces"));
        Diagnostic::new(format!("unknown format `{}`", name.value), name.span)
            .help(did_you_mean(&name.value, names()).unwrap_or_else(|| format!("use {}", one_of(main))))
    })
}

/// Whether a source may have this format.
pub(crate) fn is_format(name: &str) -> bool {
    FORMATS.iter().any(|(known, _)| known.eq_ignore_ascii_case(name))
}

fn near_format(name: &str) -> Option<Format> {
    let near = nearest(name, FORMATS.iter().map(|(name, _)| *name))?;
    FORMATS
        .iter()
        .find(|(known, _)| *known == near)
        .map(|(_, format)| *format)
}

fn millis(setting: &Setting) -> Result<i64, Diagnostic> {
    let value = match &setting.value.value {
        OptionValue::Number(number) if number.fract() == 0.0 && *number >= 0.0 && *number < 1e16 => {
            Some(*number as i64)
        }
        OptionValue::Text(text) => text.parse::<i64>().ok().filter(|ms| *ms >= 0),
        _ => None,
    };
    value.ok_or_else(|| {
        Diagnostic::new(
            format!("`{}` is milliseconds since the Unix epoch", setting.key.value),
            setting.value.span,
        )
        .help("write 1767225600000 for 2026-01-01T00:00:00Z")
    })
}

fn drift(setting: &Setting) -> Result<i64, Diagnostic> {
    let text = text(setting)?;
    let ms = duration::parse(&text.value).map_err(|reason| Diagnostic::new(reason, text.span).help("write '5 min'"))?;
    if ms <= 0 {
        return Err(Diagnostic::new("the drift must be longer than zero", text.span));
    }
    Ok(ms)
}

fn start(mode: Option<At<String>>, timestamp: Option<(i64, Span)>) -> Result<StartupMode, Diagnostic> {
    let modes = ["group-offsets", "earliest", "latest", "timestamp"];
    let Some(mode) = mode else {
        return match timestamp {
            Some((_, span)) => Err(Diagnostic::new(
                "`scan.startup.timestamp-millis` needs 'scan.startup.mode' = 'timestamp'",
                span,
            )),
            None => Ok(StartupMode::GroupOffsets),
        };
    };
    let start = match mode.value.as_str() {
        "group-offsets" => StartupMode::GroupOffsets,
        "earliest" | "earliest-offset" => StartupMode::Earliest,
        "latest" | "latest-offset" => StartupMode::Latest,
        "timestamp" => {
            let (ms, _) = timestamp.ok_or_else(|| {
                Diagnostic::new("starting from a time needs the time", mode.span)
                    .help("add 'scan.startup.timestamp-millis' = 1767225600000")
            })?;
            return Ok(StartupMode::TimestampMs(ms));
        }
        other => {
            return Err(Diagnostic::new(format!("unknown startup mode `{other}`"), mode.span)
                .help(did_you_mean(other, modes).unwrap_or_else(|| format!("use {}", one_of(modes)))));
        }
    };
    match timestamp {
        Some((_, span)) => Err(Diagnostic::new(
            format!(
                "`scan.startup.timestamp-millis` means nothing when starting from {}",
                mode.value
            ),
            span,
        )),
        None => Ok(start),
    }
}

fn known_columns(format: Format) -> Vec<SourceColumn> {
    let schema = telemetry::schema(telemetry_format(format));
    let fields = schema.fields().iter().map(|field| field.as_ref().clone());
    fields
        .map(|field| SourceColumn {
            field,
            path: None,
            metadata: None,
        })
        .collect()
}

/// The same format as the decoder calls it.
pub(crate) fn telemetry_format(format: Format) -> telemetry::Format {
    match format {
        Format::OtlpMetrics { json } => telemetry::Format::OtlpMetrics { json },
        Format::OtlpLogs { json } => telemetry::Format::OtlpLogs { json },
        Format::OtlpSpans { json } => telemetry::Format::OtlpSpans { json },
        Format::Json => telemetry::Format::Json,
        Format::Heartbeat => telemetry::Format::Heartbeat,
        Format::PrometheusJson => telemetry::Format::PrometheusJson,
        Format::TelegrafJson => telemetry::Format::TelegrafJson,
        Format::Alertmanager => telemetry::Format::Alertmanager,
    }
}

/// Appends the columns that a declaration names; returns the names of those that are wrong.
pub(crate) fn declared_columns(
    ast: &ast::Source,
    format: Format,
    columns: &mut Vec<SourceColumn>,
    errors: &mut Vec<Diagnostic>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for column in ast.columns.iter().flatten() {
        let name = &column.name;
        if columns.iter().any(|other| *other.field.name() == name.text) {
            errors.push(Diagnostic::new(
                format!("column `{}` is declared twice", name.text),
                name.span,
            ));
            continue;
        }
        if WINDOW_COLUMNS
            .iter()
            .any(|reserved| reserved.eq_ignore_ascii_case(&name.text))
        {
            errors.push(
                Diagnostic::new(
                    format!("`{}` is what windows call their own column", name.text),
                    name.span,
                )
                .help(format!("rename it: started STRING FROM '{}'", name.text)),
            );
            wrong.push(name.text.clone());
            continue;
        }
        match declared(column, format) {
            Ok(column) => columns.push(column),
            Err(error) => {
                errors.push(error);
                wrong.push(name.text.clone());
            }
        }
    }
    wrong
}

fn declared(column: &Column, format: Format) -> Result<SourceColumn, Diagnostic> {
    let name = &column.name.text;
    let field = Field::new(name, data_type(column.data_type.value), true);
    match &column.from {
        Some(ColumnFrom::Metadata(what)) => metadata_column(field, what, &column.data_type),
        _ if format != Format::Json => Err(Diagnostic::new(
            format!("the format {} knows its columns", telemetry_format(format)),
            column.name.span,
        )
        .help("remove it, or say METADATA FROM 'key' where it comes from the record")),
        _ if column.data_type.value == ColumnType::Map => Err(Diagnostic::new(
            "a map comes from the record's headers only",
            column.data_type.span,
        )
        .help(format!("write {name} STRING FROM 'a.b.c' for a nested value"))),
        Some(ColumnFrom::Path(path)) => {
            let parts: Vec<String> = path.value.split('.').map(str::to_owned).collect();
            if parts.iter().any(String::is_empty) {
                return Err(Diagnostic::new(format!("`{}` is not a path", path.value), path.span).help("write 'a.b.c'"));
            }
            Ok(SourceColumn {
                field,
                path: Some(parts),
                metadata: None,
            })
        }
        None => Ok(SourceColumn {
            field,
            path: None,
            metadata: None,
        }),
    }
}

fn metadata_column(field: Field, what: &At<String>, declared: &At<ColumnType>) -> Result<SourceColumn, Diagnostic> {
    let known = ["key", "partition", "offset", "timestamp", "topic", "headers"];
    let (metadata, wanted) = match what.value.as_str() {
        "key" => (Metadata::Key, "STRING"),
        "partition" => (Metadata::Partition, "BIGINT"),
        "offset" => (Metadata::Offset, "BIGINT"),
        "timestamp" => (Metadata::Timestamp, "TIMESTAMP(3)"),
        "topic" => (Metadata::Topic, "STRING"),
        "headers" => (Metadata::Headers, "MAP<STRING, STRING>"),
        other if other.strip_prefix("header:").is_some_and(|name| !name.is_empty()) => (Metadata::Headers, "STRING"),
        other => {
            return Err(Diagnostic::new(format!("a record has no `{other}`"), what.span).help(
                did_you_mean(other, known).unwrap_or_else(|| format!("use {} or header:NAME", known.join(", "))),
            ));
        }
    };
    let fits = match wanted {
        "STRING" => declared.value == ColumnType::Text,
        "BIGINT" => declared.value == ColumnType::Integer,
        "TIMESTAMP(3)" => declared.value == ColumnType::Timestamp(3),
        _ => declared.value == ColumnType::Map,
    };
    if !fits {
        return Err(Diagnostic::new(
            format!("the {} of a record has another type", what.value),
            declared.span,
        )
        .help(format!(
            "write {} {wanted} METADATA FROM '{}'",
            field.name(),
            what.value
        )));
    }
    Ok(SourceColumn {
        field: telemetry::metadata_column(field, &what.value),
        path: None,
        metadata: Some(metadata),
    })
}

fn data_type(declared: ColumnType) -> DataType {
    match declared {
        ColumnType::Text => telemetry::dictionary(),
        ColumnType::Float => DataType::Float64,
        ColumnType::Integer => DataType::Int64,
        ColumnType::Boolean => DataType::Boolean,
        ColumnType::Timestamp(precision) => {
            let unit = match precision {
                0 => TimeUnit::Second,
                3 => TimeUnit::Millisecond,
                6 => TimeUnit::Microsecond,
                _ => TimeUnit::Nanosecond,
            };
            DataType::Timestamp(unit, Some("UTC".into()))
        }
        ColumnType::Map => telemetry::string_map(),
    }
}

/// The column that WATERMARK FOR names, or the one that the format knows.
fn event_time(
    ast: &ast::Source,
    format: Format,
    columns: &[SourceColumn],
    known: usize,
    unknown: &Unknown,
    errors: &mut Vec<Diagnostic>,
) -> Option<String> {
    let timestamps = || {
        let columns = columns
            .iter()
            .filter(|column| matches!(column.field.data_type(), DataType::Timestamp(..)));
        columns.map(|column| column.field.name().as_str())
    };
    let Some(watermark) = &ast.watermark else {
        if format != Format::Json {
            return Some("event_time".to_owned());
        }
        if ast.broken {
            return None;
        }
        let column = timestamps().next().unwrap_or("ts");
        errors.push(
            Diagnostic::new(
                format!("source `{}` does not say which column is its event time", ast.name.text),
                ast.name.span,
            )
            .help(format!(
                "add WATERMARK FOR {column} AS {column} - INTERVAL '5' SECOND to the column list"
            )),
        );
        return None;
    };
    let name = &watermark.column;
    let Some(index) = name.find(columns.iter().map(|column| column.field.name().as_str())) else {
        if !unknown.may_be(&name.text) {
            let help = did_you_mean(&name.text, timestamps());
            errors.push(Diagnostic::new(format!("unknown column `{}`", name.text), name.span).help_opt(help));
        }
        return None;
    };
    let field = &columns[index].field;
    if !matches!(field.data_type(), DataType::Timestamp(..)) {
        errors.push(
            Diagnostic::new(format!("the event time `{}` is not a timestamp", name.text), name.span)
                .help("declare it as TIMESTAMP(3) for milliseconds"),
        );
        return None;
    }
    if index < known && field.name() != "event_time" {
        errors.push(
            Diagnostic::new(
                format!("the event time of {} is `event_time`", telemetry_format(format)),
                name.span,
            )
            .help("write WATERMARK FOR event_time AS event_time - INTERVAL '5' SECOND"),
        );
        return None;
    }
    Some(field.name().clone())
}

/// Index of the source that a name means.
pub(crate) fn find(sources: &[Source], name: &Name) -> Option<usize> {
    name.find(sources.iter().map(|source| source.name.as_str()))
}
