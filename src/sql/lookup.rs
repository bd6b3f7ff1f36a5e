//! Tables, and their rows beside those of a source: `JOIN owners FOR SYSTEM_TIME AS OF ts` in a view of rows.
//!
//! A table is functions: of its key, to each of its columns. One in a file is read when the pipeline is compiled, so that a joined row
//! depends on the row alone, and whatever is exact without a join is exact with one. The name of the function has a hash of
//! the file in it: with another file the view has other panes. One in a topic is a function of time, too; the stage reads it
//! (`engine::table`).

mod join;
mod topic;

use std::{collections::HashMap, io::Cursor as Bytes, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, BooleanArray, RecordBatch, UInt32Array},
    compute::{cast, concat_batches, take},
    csv,
    datatypes::{DataType, Field, Schema},
    error::ArrowError,
    json,
};
use datafusion::{common::Result as PlanResult, logical_expr::ScalarUDF};

use crate::{
    DetectorCatalog,
    ast::{self, ColumnType},
    diagnostic::{Diagnostic, did_you_mean, one_of},
    fingerprint::Fingerprint,
    source,
    text::{At, Parsed},
};
use engine::table::{Column, Lookup, each, keys};

pub(crate) use join::{look_up, take_as_of};

/// A table larger than this belongs into a topic.
const FILE_BYTES_MAX: usize = 64 << 20;
const OPTIONS: [&str; 3] = ["connector", "path", "format"];

/// A table of a file, or of a topic.
pub(crate) struct Table {
    pub name: String,
    /// Whether its functions take the row's event time, after the key.
    pub timed: bool,
    pub columns: Vec<String>,
    /// Names of the key columns.
    pub key: Vec<String>,
    /// By column, the function that finds it; the last one says whether there is a row.
    functions: Vec<Arc<ScalarUDF>>,
}

impl Table {
    pub fn functions(&self) -> impl Iterator<Item = &Arc<ScalarUDF>> {
        self.functions.iter()
    }

    /// The name of the function that finds a column.
    pub fn function_of(&self, column: usize) -> &str {
        self.functions[column].name()
    }

    /// The name of the function that is true where there is a row, and NULL where there is none.
    pub fn found(&self) -> &str {
        self.functions[self.columns.len()].name()
    }
}

/// Whether a declaration is of a table, not of a source: a file, or a topic with a key.
pub(crate) fn is_table(ast: &ast::Source) -> bool {
    is_file(ast) || !ast.primary_key.is_empty()
}

fn is_file(ast: &ast::Source) -> bool {
    ast.options.iter().any(|setting| {
        let file = |value: &engine::spec::OptionValue| {
            matches!(value, engine::spec::OptionValue::Text(text) if text.eq_ignore_ascii_case("file"))
        };
        setting.key.value.eq_ignore_ascii_case("connector") && file(&setting.value.value)
    })
}

/// Reads one table; what is wrong goes to `errors`.
pub(crate) fn resolve(ast: &ast::Source, catalog: &dyn DetectorCatalog, errors: &mut Vec<Diagnostic>) -> Option<Table> {
    if !is_file(ast) {
        return topic::resolve(ast, errors);
    }
    let before = errors.len();
    let options = options(ast, errors);
    let fields = fields(ast, errors);
    let names: Vec<String> = fields.iter().map(|field| field.name().clone()).collect();
    // A column that is itself wrong is no column: it is not blamed twice.
    let is_known = fields.len() == ast.columns.iter().flatten().count() && ast.unknown.is_empty();
    let key = is_known.then(|| key_columns(ast, &names).and_then(|key| some_key(ast, &names, key)));
    let key = key.and_then(|key| key.map_err(|error| errors.push(error)).ok());
    let (path, format) = options?;
    if errors.len() > before {
        return None;
    }
    match read(ast, catalog, &path, format, fields, key?) {
        Ok(table) => Some(table),
        Err(error) => {
            errors.push(error);
            None
        }
    }
}

fn some_key(ast: &ast::Source, names: &[String], key: Vec<usize>) -> Parsed<Vec<usize>> {
    if !key.is_empty() {
        return Ok(key);
    }
    let message = format!("table `{}` has no key to find its rows by", ast.name.text);
    let column = names.first().map_or("column", String::as_str);
    Err(Diagnostic::new(message, ast.name.span).help(format!("add PRIMARY KEY ({column})")))
}

/// Where the columns of PRIMARY KEY stand among these.
fn key_columns(ast: &ast::Source, names: &[String]) -> Parsed<Vec<usize>> {
    let positions = ast.primary_key.iter().map(|name| {
        name.find(names.iter().map(String::as_str)).ok_or_else(|| {
            let near = did_you_mean(&name.text, names.iter().map(String::as_str));
            Diagnostic::new(
                format!("table `{}` has no column `{}`", ast.name.text, name.text),
                name.span,
            )
            .help_opt(near)
        })
    });
    positions.collect()
}

fn read(
    ast: &ast::Source,
    catalog: &dyn DetectorCatalog,
    path: &At<String>,
    format: FileFormat,
    fields: Vec<Field>,
    key: Vec<usize>,
) -> Parsed<Table> {
    let unreadable = |reason: String| Diagnostic::new(format!("`{}`: {reason}", path.value), path.span);
    let bytes = catalog.file(&path.value).map_err(unreadable)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(unreadable(format!(
            "{} bytes; at most {FILE_BYTES_MAX} are read",
            bytes.len()
        )));
    }
    let names: Vec<String> = fields.iter().map(|field| field.name().clone()).collect();
    let rows = rows(&bytes, format, fields).map_err(|error| unreadable(error.to_string()))?;
    let index = Index::new(&rows, &key).map_err(|error| unreadable(error.to_string()))?;
    let index = Arc::new(index.map_err(|row| unreadable(format!("row {row} has the key of an earlier row")))?);
    let mut text = Fingerprint::new("table");
    text.part(&names.join(",")).part(&String::from_utf8_lossy(&bytes));
    let place = format!("{}@{:016x}", ast.name.text, text.finish()).to_ascii_lowercase();
    let function = |name: &str, values: ArrayRef| {
        let name = format!("{place}.{}", name.to_ascii_lowercase());
        let index = Arc::clone(&index);
        Arc::new(ScalarUDF::new_from_impl(Lookup::new(
            name,
            FileColumn { index, values },
        )))
    };
    let mut functions = Vec::new();
    for (name, column) in names.iter().zip(rows.columns()) {
        let values = match column.data_type() {
            DataType::Utf8 => cast(column, &telemetry::dictionary()).map_err(|error| unreadable(error.to_string()))?,
            _ => Arc::clone(column),
        };
        functions.push(function(name, values));
    }
    functions.push(function("", Arc::new(BooleanArray::from(vec![true; rows.num_rows()]))));
    Ok(Table {
        name: ast.name.text.clone(),
        timed: false,
        key: key.iter().map(|at| names[*at].clone()).collect(),
        columns: names,
        functions,
    })
}

#[derive(Clone, Copy)]
enum FileFormat {
    Csv,
    Json,
}

fn options(ast: &ast::Source, errors: &mut Vec<Diagnostic>) -> Option<(At<String>, FileFormat)> {
    let (mut path, mut format) = (None, None);
    for setting in &ast.options {
        let read = match setting.key.value.to_ascii_lowercase().as_str() {
            "connector" => Ok(()),
            "path" => source::text(setting).map(|name| path = Some(name)),
            "format" => file_format(setting).map(|read| format = Some(read)),
            key => {
                let help = did_you_mean(key, OPTIONS).unwrap_or_else(|| format!("use {}", one_of(OPTIONS)));
                Err(Diagnostic::new(format!("unknown option `{key}`"), setting.key.span).help(help))
            }
        };
        errors.extend(read.err());
    }
    if let Some(watermark) = &ast.watermark {
        let error = Diagnostic::new("a table of a file has no event time", watermark.span);
        errors.push(error.help("remove the watermark"));
    }
    for missing in ["path", "format"] {
        if !ast.broken && !source::given(&ast.options, missing, OPTIONS) {
            let message = format!("table `{}` has no {missing}", ast.name.text);
            errors.push(
                Diagnostic::new(message, ast.name.span)
                    .help("write WITH (connector = 'file', path = 'owners.csv', format = 'csv')"),
            );
        }
    }
    Some((path?, format?))
}

fn file_format(setting: &ast::Setting) -> Parsed<FileFormat> {
    let name = source::text(setting)?;
    match name.value.to_ascii_lowercase().as_str() {
        "csv" => Ok(FileFormat::Csv),
        "json" | "jsonl" => Ok(FileFormat::Json),
        other => {
            let message = format!("unknown format `{other}` of a file");
            Err(Diagnostic::new(message, name.span).help("use 'csv' or 'json'"))
        }
    }
}

fn fields(ast: &ast::Source, errors: &mut Vec<Diagnostic>) -> Vec<Field> {
    let columns = ast.columns.iter().flatten().map(|column| {
        let data_type = match column.data_type.value {
            ColumnType::Text => DataType::Utf8,
            ColumnType::Float => DataType::Float64,
            ColumnType::Integer => DataType::Int64,
            ColumnType::Boolean => DataType::Boolean,
            ColumnType::Timestamp(_) | ColumnType::Map => {
                let message = "a column of a file is STRING, DOUBLE, BIGINT or BOOLEAN";
                return Err(Diagnostic::new(message, column.data_type.span));
            }
        };
        match &column.from {
            None => Ok(Field::new(&column.name.text, data_type, true)),
            Some(_) => Err(Diagnostic::new(
                "a column of a file is called as in the file",
                column.name.span,
            )),
        }
    });
    let mut fields = Vec::new();
    for column in columns {
        match column {
            Ok(field) => fields.push(field),
            Err(error) => errors.push(error),
        }
    }
    if ast.columns.as_ref().is_none_or(Vec::is_empty) && ast.unknown.is_empty() {
        errors.push(Diagnostic::new("a table of a file declares its columns", ast.name.span));
    }
    fields
}

fn rows(bytes: &[u8], format: FileFormat, fields: Vec<Field>) -> Result<RecordBatch, ArrowError> {
    let declared = Arc::new(Schema::new(fields));
    let batches: Vec<RecordBatch> = match format {
        FileFormat::Json => json::ReaderBuilder::new(Arc::clone(&declared))
            .build(Bytes::new(bytes))?
            .collect::<Result<_, _>>()?,
        FileFormat::Csv => {
            let (header, _) = csv::reader::Format::default()
                .with_header(true)
                .infer_schema(Bytes::new(bytes), Some(0))?;
            let absent = declared
                .fields()
                .iter()
                .find(|field| header.field_with_name(field.name()).is_err());
            if let Some(absent) = absent {
                return Err(ArrowError::CsvError(format!(
                    "the header has no column {}",
                    absent.name()
                )));
            }
            let all = header
                .fields()
                .iter()
                .map(|field| match declared.field_with_name(field.name()) {
                    Ok(declared) => declared.clone(),
                    Err(_) => Field::new(field.name(), DataType::Utf8, true),
                });
            let all = Arc::new(Schema::new(all.collect::<Vec<_>>()));
            csv::ReaderBuilder::new(all)
                .with_header(true)
                .build(Bytes::new(bytes))?
                .collect::<Result<_, _>>()?
        }
    };
    let Some(first) = batches.first() else {
        return Ok(RecordBatch::new_empty(declared));
    };
    let whole = concat_batches(&first.schema(), &batches)?;
    let columns = declared.fields().iter().map(|field| {
        let column = whole.column_by_name(field.name()).cloned();
        column.ok_or_else(|| ArrowError::SchemaError(format!("no column {}", field.name())))
    });
    RecordBatch::try_new(Arc::clone(&declared), columns.collect::<Result<_, _>>()?)
}

/// The row of every key.
#[derive(Debug)]
struct Index {
    types: Vec<DataType>,
    rows: HashMap<Box<[u8]>, u32>,
}

impl Index {
    /// The number of a row whose key there is already.
    fn new(rows: &RecordBatch, key: &[usize]) -> Result<Result<Self, usize>, ArrowError> {
        let columns: Vec<ArrayRef> = key.iter().map(|at| Arc::clone(rows.column(*at))).collect();
        let mut index = Self {
            types: columns.iter().map(|column| column.data_type().clone()).collect(),
            rows: HashMap::new(),
        };
        for (row, key) in keys(&columns, &index.types)?.into_iter().enumerate() {
            let Some(key) = key else { continue };
            if index.rows.insert(key, row as u32).is_some() {
                return Ok(Err(row + 1));
            }
        }
        Ok(Ok(index))
    }

    fn find(&self, columns: &[ArrayRef]) -> Result<Vec<Option<u32>>, ArrowError> {
        each(columns, &self.types, &|key| self.rows.get(key).copied())
    }
}

/// One column of a table in a file.
#[derive(Debug)]
struct FileColumn {
    index: Arc<Index>,
    values: ArrayRef,
}

impl Column for FileColumn {
    fn data_type(&self) -> DataType {
        self.values.data_type().clone()
    }

    fn key_types(&self) -> Vec<DataType> {
        self.index.types.clone()
    }

    fn find(&self, args: Vec<ArrayRef>) -> PlanResult<ArrayRef> {
        let found: UInt32Array = self.index.find(&args)?.into_iter().collect();
        Ok(take(&self.values, &found, None)?)
    }
}
