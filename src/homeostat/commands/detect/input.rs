//! Rows of a file, as a stream: CSV by line, Parquet by batch.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array, StringArray},
    compute::cast,
    datatypes::{DataType, Float64Type, TimeUnit, TimestampMillisecondType},
};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
};

use crate::error::Refused;

/// One row. A NULL feature is NaN.
pub struct InputRow<'a> {
    pub time_ms: i64,
    pub time_text: &'a str,
    pub features: &'a [f64],
}

pub enum Rows {
    Csv(Box<Csv>),
    Parquet(Box<Parquet>),
}

/// CSV or Parquet, told by the first bytes.
pub fn open(path: &Path, time: &str, features: &[String]) -> Result<Rows, Refused> {
    let cannot = |error: std::io::Error| Refused::new(format!("cannot read {}: {error}", path.display()));
    let mut file = File::open(path).map_err(cannot)?;
    let bytes = file.metadata().map_err(cannot)?.len();
    let mut magic = [0; 4];
    let is_parquet = file.read_exact(&mut magic).is_ok() && &magic == b"PAR1";
    let file = File::open(path).map_err(cannot)?;
    let place = path.display().to_string();
    if is_parquet {
        Ok(Rows::Parquet(Box::new(Parquet::open(
            file, place, bytes, time, features,
        )?)))
    } else {
        Ok(Rows::Csv(Box::new(Csv::open(file, place, bytes, time, features)?)))
    }
}

impl Rows {
    pub fn next_row(&mut self) -> Result<Option<InputRow<'_>>, Refused> {
        match self {
            Self::Csv(csv) => csv.next_row(),
            Self::Parquet(parquet) => parquet.next_row(),
        }
    }

    pub fn bytes_total(&self) -> u64 {
        match self {
            Self::Csv(csv) => csv.bytes,
            Self::Parquet(parquet) => parquet.bytes,
        }
    }

    pub fn bytes_read(&self) -> u64 {
        match self {
            Self::Csv(csv) => csv.reader.position().byte(),
            Self::Parquet(parquet) => {
                let share = parquet.rows_read as f64 / parquet.rows_total.max(1) as f64;
                (share * parquet.bytes as f64) as u64
            }
        }
    }
}

fn column(place: &str, known: &[&str], name: &str) -> Result<usize, Refused> {
    let mut found = known.iter().enumerate().filter(|(_, column)| **column == name);
    if let Some((at, _)) = found.next() {
        return match found.next() {
            None => Ok(at),
            Some(_) => Err(Refused::new(format!(
                "{place} has more than one column {name:?}; rename the others"
            ))),
        };
    }
    Err(match known {
        [] | [""] => Refused::new(format!("{place} is empty; its first line should name the columns")),
        [line] if line.contains(['\t', ';', '|']) => Refused::new(format!(
            "{place} has no column {name:?}: its only one is {line:?}; columns are separated by commas"
        )),
        _ => {
            let nearest = known
                .iter()
                .map(|column| (strsim::jaro_winkler(column, name), column))
                .filter(|(likeness, _)| *likeness > 0.75)
                .max_by(|a, b| a.0.total_cmp(&b.0));
            let hint = match nearest {
                Some((_, column)) => format!("did you mean {column:?}?"),
                None => format!("it has {}", known.join(", ")),
            };
            Refused::new(format!("{place} has no column {name:?}; {hint}"))
        }
    })
}

pub struct Csv {
    reader: csv::Reader<BufReader<File>>,
    record: csv::StringRecord,
    place: String,
    bytes: u64,
    time: usize,
    columns: Vec<usize>,
    names: Vec<String>,
    clock: Clock,
    features: Vec<f64>,
}

impl Csv {
    fn open(file: File, place: String, bytes: u64, time: &str, features: &[String]) -> Result<Self, Refused> {
        let mut reader = csv::ReaderBuilder::new().from_reader(BufReader::with_capacity(1 << 20, file));
        let header = reader
            .headers()
            .map_err(|error| Refused::new(format!("{place}: {error}")))?;
        let known: Vec<&str> = header
            .iter()
            .map(|name| name.trim_start_matches('\u{feff}').trim())
            .collect();
        let time_column = column(&place, &known, time)?;
        let columns = features
            .iter()
            .map(|feature| column(&place, &known, feature))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            reader,
            record: csv::StringRecord::new(),
            place,
            bytes,
            time: time_column,
            columns,
            names: features.to_vec(),
            clock: Clock::default(),
            features: vec![f64::NAN; features.len()],
        })
    }

    fn next_row(&mut self) -> Result<Option<InputRow<'_>>, Refused> {
        let more = self.reader.read_record(&mut self.record);
        if !more.map_err(|error| Refused::new(format!("{}: {error}", self.place)))? {
            return Ok(None);
        }
        let line = self.record.position().map_or(0, csv::Position::line);
        for ((at, name), value) in self.columns.iter().zip(&self.names).zip(&mut self.features) {
            let text = self.record.get(*at).unwrap_or_default();
            *value = number(text).ok_or_else(|| {
                Refused::new(format!(
                    "{}, line {line}, column {name}: {text:?} is not a number; leave the cell empty for NULL",
                    self.place
                ))
            })?;
        }
        let time_text = self.record.get(self.time).unwrap_or_default();
        let time_ms = self.clock.time_ms(time_text.trim()).ok_or_else(|| {
            Refused::new(format!(
                "{}, line {line}: {time_text:?} is not a time; write RFC 3339, \"2026-01-31 12:00:00\" or a Unix epoch",
                self.place
            ))
        })?;
        Ok(Some(InputRow {
            time_ms,
            time_text,
            features: &self.features,
        }))
    }
}

fn number(text: &str) -> Option<f64> {
    match text.trim() {
        "" | "null" | "NULL" | "NaN" | "nan" | "NA" => Some(f64::NAN),
        text => text.parse().ok(),
    }
}

/// Reads times; the unit of an epoch is told by the first one and holds for the whole file.
#[derive(Default)]
struct Clock {
    ms_per_unit: Option<f64>,
}

impl Clock {
    /// RFC 3339, the same without a zone (UTC), a Unix epoch, or a plain count, which is taken for seconds.
    fn time_ms(&mut self, text: &str) -> Option<i64> {
        if let Ok(epoch) = text.parse::<f64>() {
            return self.epoch_ms(epoch);
        }
        let has_zone = text.get(10..).is_some_and(|rest| rest.contains(['+', '-', 'Z', 'z']));
        let instant = if has_zone {
            text.parse::<jiff::Timestamp>().ok()?
        } else {
            jiff::tz::Offset::UTC.to_timestamp(text.parse().ok()?).ok()?
        };
        Some(instant.as_millisecond())
    }

    /// Seconds, milliseconds, microseconds or nanoseconds, told by size: the four do not overlap from 1973 to 5138.
    fn epoch_ms(&mut self, epoch: f64) -> Option<i64> {
        if !epoch.is_finite() {
            return None;
        }
        let ms_per_unit = *self.ms_per_unit.get_or_insert(match epoch.abs() {
            size if size < 1e11 => 1e3,
            size if size < 1e14 => 1.0,
            size if size < 1e17 => 1e-3,
            _ => 1e-6,
        });
        Some((epoch * ms_per_unit).round() as i64)
    }
}

pub struct Parquet {
    reader: ParquetRecordBatchReader,
    place: String,
    bytes: u64,
    rows_total: u64,
    rows_read: u64,
    time_name: String,
    names: Vec<String>,
    clock: Clock,
    batch: Batch,
    at: usize,
    features: Vec<f64>,
}

/// Rows decoded together.
#[derive(Default)]
struct Batch {
    times_ms: Vec<i64>,
    time_texts: Option<StringArray>,
    columns: Vec<Float64Array>,
}

impl Parquet {
    fn open(file: File, place: String, bytes: u64, time: &str, features: &[String]) -> Result<Self, Refused> {
        let wrong = |error: &dyn std::fmt::Display| Refused::new(format!("{place}: {error}"));
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| wrong(&error))?;
        let schema = builder.schema().clone();
        let known: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let mut indices = vec![column(&place, &known, time)?];
        for feature in features {
            indices.push(column(&place, &known, feature)?);
        }
        let rows_total = builder.metadata().file_metadata().num_rows().max(0) as u64;
        let mask = ProjectionMask::roots(builder.parquet_schema(), indices);
        let reader = builder
            .with_projection(mask)
            .with_batch_size(8192)
            .build()
            .map_err(|error| wrong(&error))?;
        Ok(Self {
            reader,
            place,
            bytes,
            rows_total,
            rows_read: 0,
            time_name: time.into(),
            names: features.to_vec(),
            clock: Clock::default(),
            batch: Batch::default(),
            at: 0,
            features: vec![f64::NAN; features.len()],
        })
    }

    fn next_row(&mut self) -> Result<Option<InputRow<'_>>, Refused> {
        while self.at >= self.batch.times_ms.len() {
            if !self.next_batch()? {
                return Ok(None);
            }
        }
        let at = self.at;
        for (value, column) in self.features.iter_mut().zip(&self.batch.columns) {
            *value = if column.is_null(at) { f64::NAN } else { column.value(at) };
        }
        self.at += 1;
        self.rows_read += 1;
        Ok(Some(InputRow {
            time_ms: self.batch.times_ms[at],
            time_text: self.batch.time_texts.as_ref().map_or("", |texts| texts.value(at)),
            features: &self.features,
        }))
    }

    fn next_batch(&mut self) -> Result<bool, Refused> {
        let Some(batch) = self.reader.next() else {
            return Ok(false);
        };
        let rows_read = self.rows_read;
        let wrong = |name: &str, error: &dyn std::fmt::Display| {
            Refused::new(format!("{}, column {name}, after row {rows_read}: {error}", self.place))
        };
        let batch = batch.map_err(|error| wrong(&self.time_name, &error))?;
        let named = |name: &str| batch.column_by_name(name).ok_or_else(|| wrong(name, &"is missing"));
        let (times_ms, time_texts) =
            times(&mut self.clock, named(&self.time_name)?).map_err(|error| wrong(&self.time_name, &error))?;
        let mut columns = Vec::with_capacity(self.names.len());
        for name in &self.names {
            columns.push(numbers(named(name)?).map_err(|error| wrong(name, &error))?);
        }
        self.batch = Batch {
            times_ms,
            time_texts: Some(time_texts),
            columns,
        };
        self.at = 0;
        Ok(true)
    }
}

/// Without the dictionary that a column of few different values may be kept with.
fn unpacked(column: &ArrayRef) -> Result<ArrayRef, String> {
    match column.data_type() {
        DataType::Dictionary(_, of) => cast(column, of).map_err(|error| error.to_string()),
        _ => Ok(column.clone()),
    }
}

fn numbers(column: &ArrayRef) -> Result<Float64Array, String> {
    let column = &unpacked(column)?;
    if !is_text(column.data_type()) {
        let numbers = cast(column, &DataType::Float64).map_err(|error| error.to_string())?;
        return Ok(numbers.as_primitive::<Float64Type>().clone());
    }
    let texts = cast(column, &DataType::Utf8).map_err(|error| error.to_string())?;
    texts
        .as_string::<i32>()
        .iter()
        .map(|text| {
            let text = text.unwrap_or_default();
            number(text).ok_or_else(|| format!("{text:?} is not a number"))
        })
        .collect()
}

/// Milliseconds, and the times as the output shows them: UTC without a zone, or what the file has.
fn times(clock: &mut Clock, column: &ArrayRef) -> Result<(Vec<i64>, StringArray), String> {
    let column = &unpacked(column)?;
    if column.null_count() > 0 {
        return Err("a row has no time".into());
    }
    let to = |column: &ArrayRef, target: &DataType| cast(column, target).map_err(|error| error.to_string());
    let as_text = |column: &ArrayRef| Ok::<_, String>(to(column, &DataType::Utf8)?.as_string::<i32>().clone());
    match column.data_type() {
        DataType::Timestamp(unit, _) => {
            let texts = as_text(&to(column, &DataType::Timestamp(*unit, None))?)?;
            let instants = to(column, &DataType::Timestamp(TimeUnit::Millisecond, None))?;
            Ok((
                instants.as_primitive::<TimestampMillisecondType>().values().to_vec(),
                texts,
            ))
        }
        DataType::Date32 | DataType::Date64 => {
            let instants = to(column, &DataType::Timestamp(TimeUnit::Millisecond, None))?;
            let times_ms = instants.as_primitive::<TimestampMillisecondType>().values().to_vec();
            Ok((times_ms, as_text(column)?))
        }
        kind if is_text(kind) => {
            let texts = as_text(column)?;
            let times_ms = texts.iter().flatten().map(|text| {
                let time_ms = clock.time_ms(text.trim());
                time_ms.ok_or_else(|| format!("{text:?} is not a time"))
            });
            Ok((times_ms.collect::<Result<_, _>>()?, texts))
        }
        _ => {
            let epochs = to(column, &DataType::Float64)?;
            let epochs = epochs.as_primitive::<Float64Type>().values();
            let times_ms = epochs.iter().map(|epoch| {
                let time_ms = clock.epoch_ms(*epoch);
                time_ms.ok_or_else(|| format!("{epoch} is not a time"))
            });
            Ok((times_ms.collect::<Result<_, _>>()?, as_text(column)?))
        }
    }
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_every_form_are_the_same_instant() {
        for text in [
            "1700000000",
            "1700000000000",
            "1700000000000000",
            "1700000000000000000",
            "1.7e9",
            "2023-11-14T22:13:20Z",
            "2023-11-14 22:13:20",
            "2023-11-14 22:13:20.000000",
            "2023-11-14T23:13:20+01:00",
            "2023-11-14 23:13:20+01",
            "2023-11-14 17:13:20-05",
        ] {
            assert_eq!(Clock::default().time_ms(text), Some(1_700_000_000_000), "{text}");
        }
        for wrong in [
            "yesterday",
            "NaN",
            "inf",
            "",
            "2023-11-14T25:00:00Z",
            "2023-02-30 00:00:00",
            "é",
        ] {
            assert_eq!(Clock::default().time_ms(wrong), None, "{wrong}");
        }
        assert_eq!(Clock::default().time_ms("2023-11-14"), Some(1_699_920_000_000));
    }

    #[test]
    fn a_count_goes_on_in_the_unit_of_its_first() {
        let mut clock = Clock::default();
        let times = ["0", "1", "200000000000"].map(|text| clock.time_ms(text));
        assert_eq!(times, [Some(0), Some(1000), Some(200_000_000_000_000)]);
        assert_eq!(clock.time_ms("1e300"), Some(i64::MAX));
    }
}
