//! Rows as JSON lines: a file per view and per detector.
//!
//! Numbers are JSON numbers, NULL is `null`, times are RFC 3339 in UTC. JSON has no NaN and no infinities: they are the
//! strings `"NaN"`, `"Infinity"` and `"-Infinity"`.

use std::{
    fs,
    io::Write,
    path::Path,
    sync::{Arc, Mutex},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, UInt64Array},
    compute::cast,
    datatypes::{DataType, Int64Type, TimeUnit},
    util::display::{ArrayFormatter, FormatOptions},
};
use engine::{assemble::ClosedWindow, spec::Pipeline};
use protocol::message::Anomaly;

use crate::{error::Refused, stages::detect::Tap};

/// What one file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Of the view or detector.
    pub name: String,
    /// File name without its extension.
    pub file: String,
    pub lines: Vec<u8>,
}

/// The rows of every view, then of every detector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    pub views: Vec<Rows>,
    pub detectors: Vec<Rows>,
}

impl Replayed {
    /// Writes `NAME.jsonl` per view and detector into the folder, which is made. Files take their names when all of
    /// them are written.
    pub fn write(&self, folder: &Path) -> Result<(), Refused> {
        let refuse = |path: &Path, error: std::io::Error| Refused::new(format!("{}: {error}", path.display()));
        fs::create_dir_all(folder).map_err(|error| refuse(folder, error))?;
        let files = || self.views.iter().chain(&self.detectors);
        let part = |rows: &Rows| folder.join(format!(".{}.jsonl.part", rows.file));
        for rows in files() {
            let path = part(rows);
            if let Err(error) = fs::write(&path, &rows.lines) {
                files().for_each(|rows| drop(fs::remove_file(part(rows))));
                return Err(refuse(&path, error));
            }
        }
        for rows in files() {
            let path = folder.join(format!("{}.jsonl", rows.file));
            fs::rename(part(rows), &path).map_err(|error| refuse(&path, error))?;
        }
        Ok(())
    }
}

/// Collects what the stages show.
pub struct Lines {
    replayed: Replayed,
    /// Source of each view.
    sources: Vec<usize>,
    /// By source, once all of it has been read: time of its last row.
    last_ms: Vec<Option<i64>>,
    /// The source that is coming to its end.
    ending: Option<usize>,
    /// By detector, its source.
    detector_sources: Vec<usize>,
}

impl Lines {
    pub fn new(pipeline: &Pipeline) -> Self {
        let views: Vec<Rows> = pipeline.views.iter().map(|view| rows(&view.name, "")).collect();
        let source = |set: usize| pipeline.pane_sets[set].source;
        let detectors = pipeline.detectors.iter().map(|detector| {
            let twin = views.iter().any(|view| view.name == detector.name);
            rows(&detector.name, if twin { ".detector" } else { "" })
        });
        Self {
            sources: pipeline.views.iter().map(|view| source(view.pane_set)).collect(),
            last_ms: vec![None; pipeline.sources.len()],
            ending: None,
            detector_sources: pipeline
                .detectors
                .iter()
                .map(|detector| match detector.input {
                    engine::spec::DetectorInput::View(view) => source(pipeline.views[view].pane_set),
                    engine::spec::DetectorInput::PaneSet(set) => source(set),
                })
                .collect(),
            replayed: Replayed {
                detectors: detectors.collect(),
                views,
            },
        }
    }

    /// A source has been read to its end: only windows that hold one of its rows still count.
    pub fn end(&mut self, source: usize, last_ms: i64) {
        self.last_ms[source] = Some(last_ms);
        self.ending = Some(source);
    }

    pub fn take(&mut self) -> Replayed {
        self.replayed.clone()
    }

    fn is_over(&self, source: usize, start_ms: i64) -> bool {
        self.last_ms[source].is_some_and(|last_ms| start_ms > last_ms)
    }

    fn score(&mut self, score: &Anomaly, silent: bool) {
        let mut detectors = self.replayed.detectors.iter();
        let Some(at) = detectors.position(|rows| rows.name == score.detector) else {
            return;
        };
        let source = self.detector_sources[at];
        let over = match silent {
            true => self.last_ms[source].is_some(),
            false => self.is_over(source, score.window_start),
        };
        if over {
            return;
        }
        let lines = &mut self.replayed.detectors[at].lines;
        serde_json::to_writer(&mut *lines, score).expect("scores have string keys, and a Vec takes all");
        lines.push(b'\n');
    }
}

fn rows(name: &str, suffix: &str) -> Rows {
    Rows {
        name: name.to_owned(),
        file: format!("{}{suffix}", file_name(name)),
        lines: Vec::new(),
    }
}

/// A name that any file system takes: other bytes than letters, digits, `_` and `-` as %XX.
fn file_name(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => text.push(char::from(byte)),
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

/// The collector, as the stage holds it.
pub struct Shared(pub Arc<Mutex<Lines>>);

impl Tap for Shared {
    fn closed(&mut self, window: &ClosedWindow) {
        let mut lines = super::lock(&self.0);
        if window.rows.num_rows() > 0 && !lines.is_over(lines.sources[window.view], window.start_ms) {
            write_rows(&window.rows, &mut lines.replayed.views[window.view].lines);
        }
    }

    fn scored(&mut self, score: &Anomaly) {
        super::lock(&self.0).score(score, false);
    }

    fn silent(&mut self, score: &Anomaly) {
        super::lock(&self.0).score(score, true);
    }
}

/// A column, ready to be written value by value.
enum Column<'a> {
    Bool(BooleanArray),
    Signed(Int64Array),
    Unsigned(UInt64Array),
    Float(Float64Array),
    Text(StringArray),
    Time(Int64Array, TimeUnit),
    Shown(ArrayRef, ArrayFormatter<'a>),
}

impl<'a> Column<'a> {
    fn new(array: &'a ArrayRef, options: &'a FormatOptions<'a>) -> Self {
        let to = |data_type: &DataType| cast(array, data_type).ok();
        let text = |array: ArrayRef| array.as_string_opt::<i32>().cloned().map(Self::Text);
        let found = match array.data_type() {
            DataType::Boolean => array.as_boolean_opt().cloned().map(Self::Bool),
            kind if kind.is_unsigned_integer() => {
                to(&DataType::UInt64).and_then(|array| array.as_primitive_opt().cloned().map(Self::Unsigned))
            }
            kind if kind.is_integer() => {
                to(&DataType::Int64).and_then(|array| array.as_primitive_opt().cloned().map(Self::Signed))
            }
            kind if kind.is_floating() || matches!(kind, DataType::Decimal128(..) | DataType::Decimal256(..)) => {
                to(&DataType::Float64).and_then(|array| array.as_primitive_opt().cloned().map(Self::Float))
            }
            DataType::Timestamp(unit, _) => to(&DataType::Int64)
                .and_then(|array| Some(Self::Time(array.as_primitive_opt::<Int64Type>()?.clone(), *unit))),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => to(&DataType::Utf8).and_then(text),
            DataType::Dictionary(_, value)
                if matches!(**value, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) =>
            {
                to(&DataType::Utf8).and_then(text)
            }
            DataType::Null => Some(Self::Text(StringArray::new_null(array.len()))),
            _ => None,
        };
        found
            .or_else(|| {
                let shown = ArrayFormatter::try_new(array, options).ok()?;
                Some(Self::Shown(Arc::clone(array), shown))
            })
            .unwrap_or_else(|| Self::Text(StringArray::new_null(array.len())))
    }

    fn write(&self, row: usize, out: &mut Vec<u8>) {
        let null = match self {
            Self::Bool(array) => array.is_null(row),
            Self::Signed(array) | Self::Time(array, _) => array.is_null(row),
            Self::Unsigned(array) => array.is_null(row),
            Self::Float(array) => array.is_null(row),
            Self::Text(array) => array.is_null(row),
            Self::Shown(array, _) => array.is_null(row),
        };
        if null {
            out.extend_from_slice(b"null");
            return;
        }
        match self {
            Self::Bool(array) => put(out, &array.value(row)),
            Self::Signed(array) => put(out, &array.value(row)),
            Self::Unsigned(array) => put(out, &array.value(row)),
            Self::Float(array) => float(out, array.value(row)),
            Self::Text(array) => put(out, array.value(row)),
            Self::Time(array, unit) => time(out, array.value(row), *unit),
            Self::Shown(_, shown) => put(out, &shown.value(row).to_string()),
        }
    }
}

fn put<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("a scalar serialises, and a Vec takes all");
}

fn float(out: &mut Vec<u8>, value: f64) {
    match value {
        value if value.is_nan() => out.extend_from_slice(b"\"NaN\""),
        f64::INFINITY => out.extend_from_slice(b"\"Infinity\""),
        f64::NEG_INFINITY => out.extend_from_slice(b"\"-Infinity\""),
        value => put(out, &value),
    }
}

/// RFC 3339 in UTC, with the decimals of the unit but three at least.
fn time(out: &mut Vec<u8>, value: i64, unit: TimeUnit) {
    let stamp = match unit {
        TimeUnit::Second => jiff::Timestamp::from_second(value),
        TimeUnit::Millisecond => jiff::Timestamp::from_millisecond(value),
        TimeUnit::Microsecond => jiff::Timestamp::from_microsecond(value),
        TimeUnit::Nanosecond => jiff::Timestamp::from_nanosecond(i128::from(value)),
    };
    let done = match (stamp, unit) {
        (Err(_), _) => write!(out, "null"),
        (Ok(stamp), TimeUnit::Second | TimeUnit::Millisecond) => write!(out, "\"{stamp:.3}\""),
        (Ok(stamp), TimeUnit::Microsecond) => write!(out, "\"{stamp:.6}\""),
        (Ok(stamp), TimeUnit::Nanosecond) => write!(out, "\"{stamp:.9}\""),
    };
    done.expect("a Vec takes all");
}

/// One JSON object per row, its members in the order of the columns.
pub fn write_rows(rows: &RecordBatch, out: &mut Vec<u8>) {
    let options = FormatOptions::default();
    let schema = rows.schema();
    let columns: Vec<(Vec<u8>, Column<'_>)> = schema
        .fields()
        .iter()
        .zip(rows.columns())
        .enumerate()
        .map(|(index, (field, array))| {
            let mut name = vec![if index == 0 { b'{' } else { b',' }];
            put(&mut name, field.name());
            name.push(b':');
            (name, Column::new(array, &options))
        })
        .collect();
    for row in 0..rows.num_rows() {
        for (name, column) in &columns {
            out.extend_from_slice(name);
            column.write(row, out);
        }
        out.extend_from_slice(if columns.is_empty() { b"{}\n" } else { b"}\n" });
    }
}
