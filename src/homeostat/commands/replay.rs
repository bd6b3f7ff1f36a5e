//! `homeostat replay`: what a pipeline makes of files, without a broker and without a clock.

use std::{collections::BTreeMap, io::IsTerminal, path::PathBuf};

use engine::spec::Pipeline;

use crate::{
    error::Refused,
    pipelines,
    replay::{Input, Refusals, replay},
};

/// Runs a pipeline over files and writes the rows of every view and detector.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example: homeostat replay --pipeline pipelines/shop/pipeline.sql --source metrics=metrics.jsonl --output out\n\n\
                  Rows are taken in the order of their event times, so that none is late. OUT holds NAME.jsonl for every \
                  view and detector."
)]
pub struct Replay {
    /// Pipeline file, or a folder with pipeline.sql
    #[arg(long)]
    pipeline: PathBuf,
    /// File of a source: .jsonl, .ndjson, .json, .csv, .parquet, or .pb for OTLP; may be given several times
    #[arg(long = "source", value_name = "NAME=FILE", value_parser = named_file)]
    sources: Vec<(String, PathBuf)>,
    /// Folder to write to; it is made
    #[arg(long)]
    output: PathBuf,
    /// Spreads every source over so many partitions, in a fixed random order; the output is the same
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=1024))]
    shuffle_partitions: i32,
}

pub(super) fn named_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => Ok((name.to_owned(), PathBuf::from(file))),
        _ => Err("write NAME=FILE: the name of a source of the pipeline, and its file".into()),
    }
}

impl Replay {
    pub fn run(&self) -> anyhow::Result<()> {
        let path = match self.pipeline.is_dir() {
            true => self.pipeline.join("pipeline.sql"),
            false => self.pipeline.clone(),
        };
        let files = [pipelines::read(&path)?];
        let compiled = pipelines::compile_all(&files, std::io::stderr().is_terminal())?;
        let pipeline = &compiled[0];
        let declared = pipelines::source_names(&files[0]);
        let inputs = inputs(pipeline, &declared, &self.sources)?;
        let (replayed, refusals) = replay(pipeline, inputs, self.shuffle_partitions)?;
        replayed.write(&self.output)?;
        warn(&refusals);
        Ok(())
    }
}

/// Says which records were no rows: live they would be dead letters.
fn warn(refusals: &Refusals) {
    if refusals.count == 0 {
        return;
    }
    eprintln!(
        "warning: {} records or rows refused, as dead letters would be:",
        refusals.count
    );
    for reason in &refusals.reasons {
        eprintln!("  {reason}");
    }
    if refusals.count > refusals.reasons.len() as u64 {
        eprintln!("  …");
    }
}

/// Reads the files given, by source of the plan. A source that no view uses is not read.
pub(super) fn inputs(
    pipeline: &Pipeline,
    declared: &[String],
    given: &[(String, PathBuf)],
) -> Result<Vec<Option<Input>>, Refused> {
    let mut paths: BTreeMap<&str, Vec<PathBuf>> = BTreeMap::new();
    for (name, path) in given {
        let exact = declared.iter().find(|known| *known == name);
        let known = exact.or_else(|| declared.iter().find(|known| known.eq_ignore_ascii_case(name)));
        let known = known.ok_or_else(|| {
            Refused::new(format!("the pipeline has no source {name:?}"))
                .help(format!("its sources are {}", declared.join(", ")))
        })?;
        paths.entry(known).or_default().push(path.clone());
    }
    for path in paths.values().flatten() {
        std::fs::metadata(path).map_err(|error| Refused::new(format!("{}: {error}", path.display())))?;
    }
    let inputs = pipeline.sources.iter().map(|source| {
        let Some(paths) = paths.get(source.name.as_str()) else {
            if pipeline.sinks.iter().all(|sink| sink.topic != source.topic) {
                eprintln!("warning: no file for source {}: it is empty", source.name);
            }
            return Ok(None);
        };
        Input::read(source, paths).map(Some)
    });
    let tables = engine::table::tables(pipeline);
    let tables = tables.iter().map(|table| {
        let paths = paths.get(table.name.as_str());
        paths.map(|paths| Input::read_table(table, paths)).transpose()
    });
    inputs.chain(tables).collect()
}
