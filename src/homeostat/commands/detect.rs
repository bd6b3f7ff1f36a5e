//! `homeostat detect`: any detector over a file, row by row, as it would have judged in production.
//!
//! Reads CSV or Parquet as a stream, writes one line per row in order. Causal: a row's line depends on that row and earlier
//! ones only. The output file appears whole or not at all.

mod input;
mod plot;
mod specification;

use std::{
    fs::File,
    io::{BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
};

use detector::{Row, Score};
use indicatif::{ProgressBar, ProgressStyle};

use crate::error::Refused;

/// Scores every row of a CSV or Parquet file.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example: homeostat detect --input latency.csv --time ts --features p99_ms --detector \"auto WITH (tier = 'lean')\" --output scores.csv --plot scores.svg"
)]
pub struct Detect {
    /// CSV with a header, or Parquet
    #[arg(long)]
    input: PathBuf,
    /// Column with the time of the row: RFC 3339, "2026-01-31 12:00:00" (UTC), the Unix epoch in s, ms, µs or ns, or a
    /// count of seconds
    #[arg(long)]
    time: String,
    /// Columns to score, separated by commas, one that has a comma in double quotes; an empty cell is NULL. For `population` the
    /// first one, against the others; for `silence` when it was last heard of, in Unix milliseconds
    #[arg(long)]
    features: String,
    /// NAME, or "NAME WITH (parameter = value, …)"
    #[arg(long, default_value = "auto")]
    detector: String,
    /// Where the scores go; standard output when left out
    #[arg(long)]
    output: Option<PathBuf>,
    /// Draws the features with their bands, the alarms and the level shifts that were accepted
    #[arg(long)]
    plot: Option<PathBuf>,
    /// First row (counted from 0) that is written; the rows before are learned all the same
    #[arg(long, default_value_t = 0)]
    score_from: u64,
}

impl Detect {
    pub fn run(&self) -> anyhow::Result<()> {
        let (name, options) = specification::parse(&self.detector)?;
        let features = columns(&self.features)?;
        // `population` judges the first column; the others are its peers, which a row carries but the detector does not count.
        let judged = match name.as_str() {
            "population" => &features[..features.len().min(1)],
            _ => &features[..],
        };
        let detector = detector::build(&name, &options, judged)
            .map_err(|error| Refused::new(format!("--detector {:?}: {error}", self.detector)))?;
        let mut rows = input::open(&self.input, &self.time, &features)?;
        if let (Some(output), Some(plot)) = (&self.output, &self.plot)
            && std::path::absolute(output).ok() == std::path::absolute(plot).ok()
        {
            return Err(Refused::new(format!(
                "--output and --plot are both {}; give one another name",
                plot.display()
            ))
            .into());
        }
        let mut output = Output::create(self.output.as_deref(), &self.input)?;
        let mut plot = match &self.plot {
            Some(path) => Some((Output::create(Some(path), &self.input)?, plot::Plot::new(&features))),
            None => None,
        };
        let progress = progress(rows.bytes_total());
        // The name of the file must not matter, so every file is the same entity.
        let mut state = detector.fresh(0);
        let mut score = Score::default();
        let mut row_number = 0u64;
        text(&mut output, &self.time)?;
        output.write_all(b",score,p_value,is_anomaly,expected,lower,upper\n")?;
        while let Some(row) = rows.next_row()? {
            state.score(
                Row {
                    time_ms: row.time_ms,
                    features: row.features,
                    learn: true,
                },
                &mut score,
            );
            if row_number >= self.score_from {
                write(&mut output, row.time_text, &score)?;
                if let Some((_, plot)) = &mut plot {
                    plot.push(row.time_ms, row.features, &score);
                }
            }
            row_number += 1;
            if row_number.is_multiple_of(4096) {
                progress.set_position(rows.bytes_read());
            }
        }
        progress.finish_and_clear();
        if self.score_from > 0 && self.score_from >= row_number {
            return Err(Refused::new(format!(
                "--score-from {} leaves nothing to write: {} has {row_number} rows",
                self.score_from,
                self.input.display()
            ))
            .into());
        }
        if let Some((mut file, plot)) = plot {
            file.write_all(plot.svg().as_bytes())?;
            file.finish()?;
        }
        output.finish()
    }
}

/// Names as a line of CSV has them.
fn columns(text: &str) -> Result<Vec<String>, Refused> {
    // A space before a quote would make the quote part of the name.
    let text = text.trim().replace(", \"", ",\"");
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let mut record = csv::StringRecord::new();
    reader
        .read_record(&mut record)
        .map_err(|error| Refused::new(format!("--features {text:?}: {error}")))?;
    let names: Vec<String> = record.iter().map(str::to_owned).collect();
    match names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
        Some((_, name)) => Err(Refused::new(format!("--features names {name:?} twice"))),
        None if names.is_empty() => Err(Refused::new("--features names no column")),
        None => Ok(names),
    }
}

/// One line; what the detector expected is told of the feature that contributes most.
fn write(output: &mut Output, time: &str, score: &Score) -> std::io::Result<()> {
    let mut leading = 0;
    for (index, contribution) in score.contributions.iter().enumerate() {
        if *contribution > score.contributions[leading] {
            leading = index;
        }
    }
    text(output, time)?;
    write!(output, ",{:?}", score.score)?;
    number(output, score.p_value)?;
    output.write_all(if score.is_anomaly() { b",true" } else { b",false" })?;
    for values in [&score.expected, &score.lower, &score.upper] {
        number(output, values.get(leading).copied().unwrap_or(f64::NAN))?;
    }
    output.write_all(b"\n")
}

fn text(output: &mut Output, text: &str) -> std::io::Result<()> {
    if text.contains([',', '"', '\n', '\r']) {
        write!(output, "\"{}\"", text.replace('"', "\"\""))
    } else {
        output.write_all(text.as_bytes())
    }
}

/// What is not known is an empty cell.
fn number(output: &mut Output, value: f64) -> std::io::Result<()> {
    if value.is_finite() {
        write!(output, ",{value:?}")
    } else {
        output.write_all(b",")
    }
}

fn progress(bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {eta}");
    ProgressBar::new(bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A file that takes its name only when it is whole, or standard output.
struct Output {
    sink: BufWriter<Box<dyn Write>>,
    rename: Option<(PathBuf, PathBuf)>,
}

impl Output {
    fn create(path: Option<&Path>, input: &Path) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self {
                sink: BufWriter::with_capacity(1 << 16, Box::new(std::io::stdout())),
                rename: None,
            });
        };
        let same = |other: &Path| Some(path.canonicalize().ok()? == other.canonicalize().ok()?);
        if same(input) == Some(true) {
            return Err(Refused::new(format!("{} would replace the input; give another name", path.display())).into());
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let partial = path.with_file_name(name);
        let cannot = |error| Refused::new(format!("cannot write {}: {error}", path.display()));
        if path.is_dir() {
            return Err(cannot(std::io::ErrorKind::IsADirectory.into()).into());
        }
        let file = File::create(&partial).map_err(cannot)?;
        Ok(Self {
            sink: BufWriter::with_capacity(1 << 20, Box::new(file)),
            rename: Some((partial, path.to_owned())),
        })
    }

    fn finish(mut self) -> anyhow::Result<()> {
        self.sink.flush()?;
        if let Some((partial, path)) = &self.rename {
            std::fs::rename(partial, path)
                .map_err(|error| Refused::new(format!("cannot write {}: {error}", path.display())))?;
            self.rename = None;
        }
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.sink.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.sink.flush()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some((partial, _)) = &self.rename {
            // Nothing more can be done about a half-written file than to remove it.
            let _ = std::fs::remove_file(partial);
        }
    }
}
