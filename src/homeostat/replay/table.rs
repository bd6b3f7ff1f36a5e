//! CSV and Parquet: files whose rows are columns already. A column is found by its name, or by its path.

use std::{fs::File, path::Path, path::PathBuf, sync::Arc};

use arrow::{
    array::{
        ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, UInt32Array,
        new_null_array,
    },
    compute::{cast, concat_batches, take_record_batch},
    datatypes::{DataType, TimeUnit},
};
use engine::{
    Error,
    aggregate::{Decode, Rows},
    spec::{Metadata, SourceSpec},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{input::milliseconds, number};
use crate::error::Refused;

/// The rows of all files of a source, in the source's columns.
pub struct Table {
    batch: RecordBatch,
    /// Path, its first row, and how rows are counted in it.
    files: Vec<(PathBuf, usize, &'static str)>,
    /// By row, where it stands in its file.
    lines: Vec<u32>,
}

impl Table {
    pub fn rows(&self) -> usize {
        self.batch.num_rows()
    }

    pub fn times_ms(&self, source: &SourceSpec) -> Vec<Option<(i64, i64)>> {
        let times = milliseconds(self.batch.column(source.event_time));
        times.into_iter().map(|time| time.map(|ms| (ms, ms))).collect()
    }

    pub fn place(&self, at: u32) -> String {
        let at = at as usize;
        let file = self.files.partition_point(|(_, start, _)| *start <= at);
        let (path, _, unit) = &self.files[file.saturating_sub(1)];
        format!("{}:{unit}{}", path.display(), self.lines[at])
    }
}

/// Reads Parquet files.
pub fn parquet(source: &SourceSpec, paths: &[PathBuf]) -> Result<Table, Refused> {
    let mut batches = Vec::new();
    let mut files = Vec::new();
    let mut lines: Vec<u32> = Vec::new();
    for path in paths {
        let refuse = |error: &dyn std::fmt::Display| Refused::new(format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(|error| refuse(&error))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(ParquetRecordBatchReaderBuilder::build);
        files.push((path.clone(), lines.len(), "row "));
        let mut row = 0;
        for batch in reader.map_err(|error| refuse(&error))? {
            let batch = batch.map_err(|error| refuse(&error))?;
            batches.push(project(source, path, &batch, row)?);
            lines.extend((row..row + batch.num_rows()).map(|row| row as u32 + 1));
            row += batch.num_rows();
        }
    }
    let batch = concat_batches(&source.schema, &batches)
        .map_err(|error| Refused::new(format!("source {}: {error}", source.name)))?;
    Ok(Table { batch, files, lines })
}

/// The source's columns out of a batch of a file, from its row `first` on.
fn project(source: &SourceSpec, path: &Path, batch: &RecordBatch, first: usize) -> Result<RecordBatch, Refused> {
    let mut columns = Vec::with_capacity(source.schema.fields().len());
    for (index, field) in source.schema.fields().iter().enumerate() {
        let wanted = field.data_type();
        let told = batch.column_by_name(field.name()).is_some();
        if let Some(column) = of_the_record(source, index, first, batch.num_rows(), told) {
            columns.push(column);
            continue;
        }
        let found = find(source, index, batch).ok_or_else(|| {
            let schema = batch.schema();
            missing(
                source,
                index,
                path,
                schema.fields().iter().map(|field| field.name().as_str()),
            )
        })?;
        let column = cast(&found, wanted)
            .map_err(|error| Refused::new(format!("{}: column `{}`: {error}", path.display(), field.name())))?;
        columns.push(column);
    }
    RecordBatch::try_new(Arc::clone(&source.schema), columns)
        .map_err(|error| Refused::new(format!("{}: {error}", path.display())))
}

fn missing<'a>(source: &SourceSpec, index: usize, path: &Path, has: impl Iterator<Item = &'a str>) -> Refused {
    let names: Vec<&str> = has.take(20).collect();
    let column = source.schema.field(index).name();
    Refused::new(format!(
        "{}: no column `{column}`, which the views on source {} use",
        path.display(),
        source.name
    ))
    .help(format!("the file has {}", names.join(", ")))
}

/// METADATA columns: the row's number is its offset; a file has neither headers nor timestamps of records, and a key only where a column is
/// called as the one that is declared, which is found as any other.
fn of_the_record(source: &SourceSpec, index: usize, first: usize, rows: usize, told: bool) -> Option<ArrayRef> {
    let (_, metadata) = source.metadata.iter().find(|(column, _)| *column == index)?;
    let wanted = source.schema.field(index).data_type();
    let plain: ArrayRef = match metadata {
        Metadata::Offset => Arc::new(Int64Array::from_iter_values(first as i64..(first + rows) as i64)),
        Metadata::Partition => Arc::new(Int64Array::from(vec![0; rows])),
        Metadata::Topic => Arc::new(StringArray::from(vec![source.topic.as_str(); rows])),
        Metadata::Key if told => return None,
        _ => return Some(new_null_array(wanted, rows)),
    };
    cast(&plain, wanted).ok()
}

fn find(source: &SourceSpec, index: usize, batch: &RecordBatch) -> Option<ArrayRef> {
    let name = source.schema.field(index).name();
    let path = source.paths.get(index).cloned().flatten();
    let nested = || {
        let path = path.as_ref()?;
        let mut column = Arc::clone(batch.column_by_name(path.first()?)?);
        for part in &path[1..] {
            let next = Arc::clone(column.as_struct_opt()?.column_by_name(part)?);
            column = next;
        }
        Some(column)
    };
    let dotted = path.as_ref().and_then(|path| batch.column_by_name(&path.join(".")));
    batch.column_by_name(name).or(dotted).cloned().or_else(nested)
}

/// Reads CSV files with a header line. An empty cell is NULL.
pub fn csv(source: &SourceSpec, paths: &[PathBuf]) -> Result<Table, Refused> {
    let mut batches = Vec::new();
    let mut files = Vec::new();
    let mut lines: Vec<u32> = Vec::new();
    for path in paths {
        let refuse = |error: &dyn std::fmt::Display| Refused::new(format!("{}: {error}", path.display()));
        let mut reader = csv::ReaderBuilder::new()
            .flexible(false)
            .from_path(path)
            .map_err(|error| refuse(&error))?;
        let header = reader.headers().map_err(|error| refuse(&error))?.clone();
        if header.is_empty() {
            // A file without a byte has no rows, either.
            files.push((path.clone(), lines.len(), ""));
            continue;
        }
        let cells = places(source, path, &header)?;
        let mut texts: Vec<Vec<Option<String>>> = vec![Vec::new(); cells.len()];
        files.push((path.clone(), lines.len(), ""));
        let first = lines.len();
        for record in reader.records() {
            let record = record.map_err(|error| refuse(&error))?;
            for (text, cell) in texts.iter_mut().zip(&cells) {
                let cell = cell.and_then(|cell| record.get(cell)).filter(|cell| !cell.is_empty());
                text.push(cell.map(str::to_owned));
            }
            lines.push(record.position().map_or(0, |position| position.line() as u32));
        }
        let mut columns = Vec::with_capacity(cells.len());
        for (index, text) in texts.into_iter().enumerate() {
            if let Some(column) = of_the_record(source, index, 0, text.len(), cells[index].is_some()) {
                columns.push(column);
                continue;
            }
            let field = source.schema.field(index);
            let column = typed(&text, field.data_type()).map_err(|(row, expected)| {
                let cell = text[row].clone().unwrap_or_default();
                let place = format!("{}:{}", path.display(), lines[first + row]);
                Refused::new(format!(
                    "{place}: column `{}`: {cell:?} is not {expected}",
                    field.name()
                ))
            })?;
            columns.push(column);
        }
        let batch = RecordBatch::try_new(Arc::clone(&source.schema), columns);
        batches.push(batch.map_err(|error| refuse(&error))?);
    }
    let batch = concat_batches(&source.schema, &batches)
        .map_err(|error| Refused::new(format!("source {}: {error}", source.name)))?;
    Ok(Table { batch, files, lines })
}

/// By column of the source, where it stands in a line; `None` for columns of the record that no line has.
fn places(source: &SourceSpec, path: &Path, header: &csv::StringRecord) -> Result<Vec<Option<usize>>, Refused> {
    let at = |name: &str| {
        header
            .iter()
            .position(|column| column.trim_start_matches('\u{feff}') == name)
    };
    let fields = source.schema.fields().iter().enumerate();
    fields
        .map(|(index, field)| {
            let metadata = source.metadata.iter().find(|(column, _)| *column == index);
            match metadata.map(|(_, metadata)| metadata) {
                Some(Metadata::Key) => return Ok(at(field.name())),
                Some(_) => return Ok(None),
                None => {}
            }
            let dotted = source.paths.get(index).cloned().flatten().map(|path| path.join("."));
            let found = at(field.name()).or_else(|| at(dotted.as_deref()?));
            found
                .map(Some)
                .ok_or_else(|| missing(source, index, path, header.iter()))
        })
        .collect()
}

/// Cells in the type of their column, or the first that is none and what it should be.
fn typed(cells: &[Option<String>], wanted: &DataType) -> Result<ArrayRef, (usize, &'static str)> {
    fn parse<T>(
        cells: &[Option<String>],
        expected: &'static str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<Option<T>>, (usize, &'static str)> {
        let cells = cells.iter().enumerate();
        cells
            .map(|(row, cell)| match cell {
                None => Ok(None),
                Some(text) => read(text.trim()).map(Some).ok_or((row, expected)),
            })
            .collect()
    }
    let array: ArrayRef = match wanted {
        DataType::Float64 | DataType::Float32 => {
            Arc::new(Float64Array::from(parse(cells, "a number", |text| text.parse().ok())?))
        }
        kind if kind.is_integer() => Arc::new(Int64Array::from(parse(cells, "an integer", integer)?)),
        DataType::Boolean => Arc::new(BooleanArray::from(parse(cells, "true or false", truth)?)),
        DataType::Timestamp(unit, _) => {
            let times = parse(
                cells,
                "a time like 2026-07-01T12:00:00Z, or a number since 1970",
                |text| time(text, *unit),
            )?;
            Arc::new(Int64Array::from(times))
        }
        _ => Arc::new(StringArray::from(cells.to_vec())),
    };
    cast(&array, wanted).map_err(|_| (0, "of the declared type"))
}

fn integer(text: &str) -> Option<i64> {
    // Programs that know only floats write 3 as 3.0.
    text.strip_suffix(".0").unwrap_or(text).parse().ok()
}

fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" => Some(true),
        "false" | "f" | "0" => Some(false),
        _ => None,
    }
}

/// RFC 3339, a date and time in UTC, or a number in the unit since 1970; rounded down.
fn time(text: &str, unit: TimeUnit) -> Option<i64> {
    if let Ok(number) = text.parse::<i64>() {
        return Some(number);
    }
    if let Ok(number) = text.parse::<f64>() {
        return number.is_finite().then(|| number.floor() as i64);
    }
    let utc = || format!("{text}Z").parse::<jiff::Timestamp>().ok();
    let nanoseconds = text.parse::<jiff::Timestamp>().ok().or_else(utc)?.as_nanosecond();
    let per_unit = match unit {
        TimeUnit::Second => 1_000_000_000,
        TimeUnit::Millisecond => 1_000_000,
        TimeUnit::Microsecond => 1_000,
        TimeUnit::Nanosecond => 1,
    };
    i64::try_from(nanoseconds.div_euclid(per_unit)).ok()
}

/// Hands out rows of a table.
pub struct TableDecode {
    table: Arc<Table>,
    rows: Vec<u32>,
    offsets: Vec<i64>,
    record_ms: Vec<i64>,
}

impl TableDecode {
    pub fn new(table: Arc<Table>) -> Self {
        Self {
            table,
            rows: Vec::new(),
            offsets: Vec::new(),
            record_ms: Vec::new(),
        }
    }
}

impl Decode for TableDecode {
    fn push(&mut self, record: &protocol::Record<'_>, _receive_ms: i64) -> Result<usize, String> {
        self.rows.push(number(record.key)?);
        self.offsets.push(record.offset);
        self.record_ms.push(record.timestamp_ms);
        Ok(1)
    }

    fn finish(&mut self) -> Result<Rows, Error> {
        let rows = UInt32Array::from(std::mem::take(&mut self.rows));
        Ok(Rows {
            batch: take_record_batch(&self.table.batch, &rows)?,
            offsets: std::mem::take(&mut self.offsets),
            record_ms: std::mem::take(&mut self.record_ms),
        })
    }
}
