//! The files of one source, whole in memory: which records they hold, and when.

use std::{fs, path::Path, path::PathBuf, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray},
    compute::cast,
    datatypes::{DataType, Field, Int64Type, Schema, TimeUnit},
};
use engine::{
    spec::{EVENT_TIMES_MS, Format, SourceSpec},
    table::TableSpec,
};
use serde_json::value::RawValue;
use telemetry::{Decoder, RecordMeta};

use super::table::{self, Table};
use crate::{error::Refused, stages};

/// How the records of a file are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A JSON document per line, or one that is the whole file.
    Json,
    Csv,
    Parquet,
    /// One OTLP message in protobuf.
    Protobuf,
}

impl Kind {
    fn of(path: &Path) -> Result<Self, Refused> {
        let extension = path.extension().and_then(|extension| extension.to_str());
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("jsonl" | "ndjson" | "json") => Ok(Self::Json),
            Some("csv") => Ok(Self::Csv),
            Some("parquet") => Ok(Self::Parquet),
            Some("pb" | "bin" | "binpb" | "otlp") => Ok(Self::Protobuf),
            _ => Err(
                Refused::new(format!("{}: not a kind of file that can be replayed", path.display()))
                    .help("the extension tells: .jsonl, .ndjson, .json, .csv, .parquet, or .pb for OTLP as protobuf"),
            ),
        }
    }
}

/// The records of one source.
pub struct Input {
    pub topic: String,
    /// By record, first and last event time of its rows; `None` where none has one.
    pub times_ms: Vec<Option<(i64, i64)>>,
    pub(super) table: Option<Arc<Table>>,
    format: telemetry::Format,
    bytes: Vec<u8>,
    /// Where each record lies in `bytes`.
    spans: Vec<(usize, usize)>,
    /// Where each file begins in `bytes`.
    files: Vec<(PathBuf, usize)>,
}

impl Input {
    /// Reads the files of a source.
    pub fn read(source: &SourceSpec, paths: &[PathBuf]) -> Result<Self, Refused> {
        check_event_time(source)?;
        let mut input = Self::load(source, paths)?;
        input.times_ms = match &input.table {
            Some(table) => table.times_ms(source),
            None => input.scan_times(source)?,
        };
        Ok(input)
    }

    /// Reads the files of a table that is in a topic, live: its rows have no place in time but what they say themselves.
    pub fn read_table(table: &TableSpec, paths: &[PathBuf]) -> Result<Self, Refused> {
        Self::load(&table.source, paths)
    }

    fn load(source: &SourceSpec, paths: &[PathBuf]) -> Result<Self, Refused> {
        let mut kinds = paths.iter().map(|path| Kind::of(path));
        let kind = kinds.next().unwrap_or(Ok(Kind::Json))?;
        for (other, path) in kinds.zip(&paths[1..]) {
            if other? != kind {
                return Err(Refused::new(format!(
                    "{}: of another kind than {}",
                    path.display(),
                    paths[0].display()
                ))
                .help("the files of one source are of one kind"));
            }
        }
        let mut input = Self {
            topic: source.topic.clone(),
            times_ms: Vec::new(),
            table: None,
            format: file_format(source, kind, paths)?,
            bytes: Vec::new(),
            spans: Vec::new(),
            files: Vec::new(),
        };
        if matches!(kind, Kind::Csv | Kind::Parquet) {
            let table = match kind {
                Kind::Csv => table::csv(source, paths)?,
                _ => table::parquet(source, paths)?,
            };
            input.table = Some(Arc::new(table));
            return Ok(input);
        }
        for path in paths {
            input.append(path, kind)?;
        }
        if input.spans.len() > u32::MAX as usize {
            return Err(Refused::new(format!(
                "source {}: more than {} records",
                source.name,
                u32::MAX
            )));
        }
        Ok(input)
    }

    /// How many records there are.
    pub fn records(&self) -> usize {
        self.table.as_ref().map_or(self.spans.len(), |table| table.rows())
    }

    /// Takes rows as they are written in a case: JSON documents of one source.
    pub fn from_lines(source: &SourceSpec, path: &Path, text: &[u8]) -> Result<Self, Refused> {
        check_event_time(source)?;
        let mut input = Self {
            topic: source.topic.clone(),
            times_ms: Vec::new(),
            table: None,
            format: file_format(source, Kind::Json, &[path.to_owned()])?,
            bytes: text.to_vec(),
            spans: Vec::new(),
            files: vec![(path.to_owned(), 0)],
        };
        input.split_lines(0);
        input.times_ms = input.scan_times(source)?;
        Ok(input)
    }

    fn append(&mut self, path: &Path, kind: Kind) -> Result<(), Refused> {
        let from = self.bytes.len();
        let read = fs::read(path).map_err(|error| Refused::new(format!("{}: {error}", path.display())))?;
        self.files.push((path.to_owned(), from));
        if from == 0 {
            self.bytes = read;
        } else {
            self.bytes.extend_from_slice(&read);
        }
        if kind == Kind::Protobuf {
            self.spans.push((from, self.bytes.len()));
        } else if !(path.extension().is_some_and(|extension| extension == "json") && self.one_document(from)) {
            self.split_lines(from);
        }
        Ok(())
    }

    /// A file that is one JSON document is one record, or one per element of its array.
    fn one_document(&mut self, from: usize) -> bool {
        let bytes = &self.bytes[from..];
        let place = |raw: &RawValue| {
            let start = raw.get().as_ptr() as usize - self.bytes.as_ptr() as usize;
            (start, start + raw.get().len())
        };
        let spans: Vec<_> = if let Ok(elements) = serde_json::from_slice::<Vec<&RawValue>>(bytes) {
            elements.into_iter().map(place).collect()
        } else if let Ok(document) = serde_json::from_slice::<&RawValue>(bytes) {
            vec![place(document)]
        } else {
            return false;
        };
        self.spans.extend(spans);
        true
    }

    fn split_lines(&mut self, from: usize) {
        const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
        let mut start = from;
        if self.bytes[from..].starts_with(BYTE_ORDER_MARK) {
            start += BYTE_ORDER_MARK.len();
        }
        for line in self.bytes[start..].split(|byte| *byte == b'\n') {
            let end = start + line.len();
            let text = line.trim_ascii();
            if !text.is_empty() {
                let lead = line.len() - line.trim_ascii_start().len();
                self.spans.push((start + lead, start + lead + text.len()));
            }
            start = end + 1;
        }
    }

    /// The value of a record.
    pub fn value(&self, at: u32) -> &[u8] {
        let (from, to) = self.spans[at as usize];
        &self.bytes[from..to]
    }

    /// Where a record stands, for people.
    pub fn place(&self, at: u32) -> String {
        if let Some(table) = &self.table {
            return table.place(at);
        }
        let (from, _) = self.spans[at as usize];
        let file = self.files.partition_point(|(_, start)| *start <= from) - 1;
        let (path, start) = &self.files[file];
        let lines = self.bytes[*start..from].iter().filter(|byte| **byte == b'\n').count();
        format!("{}:{}", path.display(), lines + 1)
    }

    /// A decoder of the columns that the pipeline uses.
    pub fn decoder(&self, source: &SourceSpec) -> Result<Decoder, telemetry::Error> {
        Decoder::new(self.format, Arc::clone(&source.schema), &source.paths)
    }

    /// First and last event time of every record, by decoding no other column.
    fn scan_times(&self, source: &SourceSpec) -> Result<Vec<Option<(i64, i64)>>, Refused> {
        const BATCH: usize = 8_192;
        // What the log would have timed is told by the producer here.
        let told = |name: &str| (Field::new(name, telemetry::timestamp_ms(), true), None);
        let (field, path) = match source.format {
            Format::Heartbeat => told("sent_at"),
            Format::Alertmanager => told("starts_at"),
            _ => {
                let path = source.paths.get(source.event_time).cloned().flatten();
                (source.schema.field(source.event_time).clone(), path)
            }
        };
        let decoder = Decoder::new(self.format, Arc::new(Schema::new(vec![field])), &[path]);
        let mut decoder = decoder.map_err(|error| Refused::new(format!("source {}: {error}", source.name)))?;
        let mut times = vec![None; self.spans.len()];
        for at in 0..self.spans.len() {
            // What cannot be read is refused when its turn comes.
            let _ = decoder.push(self.value(at as u32), &RecordMeta::new(at as i64, 0));
            if decoder.rows() >= BATCH || at + 1 == self.spans.len() {
                let rows = decoder.finish();
                let ms = milliseconds(rows.batch.column(0));
                for (offset, ms) in rows.offsets.iter().zip(ms) {
                    widen(&mut times[*offset as usize], ms);
                }
            }
        }
        Ok(times)
    }
}

fn widen(span: &mut Option<(i64, i64)>, ms: Option<i64>) {
    let Some(ms) = ms.filter(|ms| EVENT_TIMES_MS.contains(ms)) else {
        return;
    };
    let (from, to) = span.unwrap_or((ms, ms));
    *span = Some((from.min(ms), to.max(ms)));
}

/// A column of timestamps in milliseconds, rounded down.
pub(super) fn milliseconds(column: &ArrayRef) -> Vec<Option<i64>> {
    let DataType::Timestamp(unit, _) = column.data_type() else {
        return vec![None; column.len()];
    };
    let Ok(raw) = cast(column, &DataType::Int64) else {
        return vec![None; column.len()];
    };
    let to_ms = |value: i64| match unit {
        TimeUnit::Second => value.saturating_mul(1_000),
        TimeUnit::Millisecond => value,
        TimeUnit::Microsecond => value.div_euclid(1_000),
        TimeUnit::Nanosecond => value.div_euclid(1_000_000),
    };
    raw.as_primitive::<Int64Type>()
        .iter()
        .map(|value| value.map(to_ms))
        .collect()
}

fn check_event_time(source: &SourceSpec) -> Result<(), Refused> {
    if source.metadata.iter().any(|(column, _)| *column == source.event_time) {
        return Err(Refused::new(format!(
            "source {}: its event time is the record's timestamp, which a file does not have",
            source.name
        ))
        .help("declare a column of the value as the event time"));
    }
    Ok(())
}

/// The format of the source, in the encoding of its file.
fn file_format(source: &SourceSpec, kind: Kind, paths: &[PathBuf]) -> Result<telemetry::Format, Refused> {
    let json = kind == Kind::Json;
    Ok(match source.format {
        Format::OtlpMetrics { .. } => telemetry::Format::OtlpMetrics { json },
        Format::OtlpLogs { .. } => telemetry::Format::OtlpLogs { json },
        Format::OtlpSpans { .. } => telemetry::Format::OtlpSpans { json },
        other if kind == Kind::Protobuf => {
            let path = paths.first().map(|path| path.display().to_string()).unwrap_or_default();
            return Err(Refused::new(format!(
                "{path}: source {} is of format {other:?}, which is not OTLP",
                source.name
            ))
            .help("give it JSON lines, CSV or Parquet"));
        }
        other => stages::aggregate::format_of(other),
    })
}
