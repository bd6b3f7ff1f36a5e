//! `homeostat validate` and `homeostat explain`: what is wrong with a pipeline, and what it will do.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
};

use engine::spec::Pipeline;

use super::{
    Output, print_json,
    replay::{self, named_file},
    test,
};
use crate::{
    config,
    error::Refused,
    pipelines,
    replay::{Cost, cost_per_row},
};

/// Checks pipelines and says everything that is wrong at once.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat validate pipelines/shop/pipeline.sql")]
pub struct Validate {
    /// Pipeline files, or folders that hold NAME/pipeline.sql
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Configuration of the fleet, for its topics, which pipelines may not use
    #[arg(long)]
    config: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// Shows the plan of a pipeline: panes, what shares them, windows, state bound, and what a row costs.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat explain pipelines/shop/pipeline.sql\n\n\
                  What a row costs is measured on the files given, or else on those of the first case beside the pipeline.")]
pub struct Explain {
    path: PathBuf,
    /// File of a source, as for `replay`, to measure on; may be given several times
    #[arg(long = "source", value_name = "NAME=FILE", value_parser = named_file)]
    sources: Vec<(String, PathBuf)>,
}

/// The pipelines that paths name: files, folders of one, folders of several.
pub fn files(paths: &[PathBuf]) -> Result<Vec<pipelines::File>, Refused> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() && !path.join("pipeline.sql").is_file() {
            files.extend(pipelines::find(path)?);
        } else if path.is_dir() {
            files.push(pipelines::read(&path.join("pipeline.sql"))?);
        } else {
            files.push(pipelines::read(path)?);
        }
    }
    Ok(files)
}

impl Validate {
    pub fn run(&self) -> anyhow::Result<()> {
        let color = std::io::stderr().is_terminal();
        let topics = config::load(self.config.as_deref())?.topics();
        let mut wrong = false;
        for file in files(&self.paths)? {
            let compiled = pipelines::compile_for(&file, Some(&topics));
            wrong |= compiled.is_err();
            match (self.output, compiled) {
                (Output::Json, compiled) => {
                    let found = compiled.err().map(|found| file.to_json(&found)).transpose()?;
                    let found = found.unwrap_or_else(|| serde_json::json!([]));
                    print_json(
                        &serde_json::json!({"file": file.path, "valid": found == serde_json::json!([]), "diagnostics": found}),
                    );
                }
                (Output::Text, Ok(pipeline)) => {
                    println!("{}: valid", file.path);
                    for note in notes(&pipeline) {
                        println!("  {note}");
                    }
                }
                (Output::Text, Err(found)) => eprint!("{}", file.render(&found, color)),
            }
        }
        if wrong { Err(crate::error::Found.into()) } else { Ok(()) }
    }
}

/// What an operator should know of a valid pipeline.
fn notes(pipeline: &engine::spec::Pipeline) -> Vec<String> {
    let timed_by_log = |source: &&engine::spec::SourceSpec| source.format.is_timed_by_log();
    let sources = pipeline.sources.iter().filter(timed_by_log);
    sources
        .map(|source| {
            format!(
                "source {}: event_time is the broker's append time where topic {} uses LogAppendTime, else the time at which aggregate received the record; the producer's own time is sent_at or starts_at",
                source.name, source.topic
            )
        })
        .collect()
}

impl Explain {
    pub fn run(&self) -> anyhow::Result<()> {
        let files = files(std::slice::from_ref(&self.path))?;
        let compiled = pipelines::compile_all(&files, std::io::stderr().is_terminal())?;
        for (file, pipeline) in files.iter().zip(compiled.iter()) {
            print!("{}", sql::explain(pipeline));
            for Cost {
                source,
                rows,
                ns_per_row,
            } in self.costs(file, pipeline)?
            {
                println!(
                    "\ncost of {source}\n  {ns_per_row:.0} ns per row, decoded, filtered and folded on one core, measured on {rows} rows"
                );
            }
        }
        Ok(())
    }

    fn costs(&self, file: &pipelines::File, pipeline: &Pipeline) -> anyhow::Result<Vec<Cost>> {
        let declared = pipelines::source_names(file);
        if !self.sources.is_empty() {
            return cost_per_row(pipeline, replay::inputs(pipeline, &declared, &self.sources)?);
        }
        let cases = Path::new(&file.path).parent().unwrap_or(Path::new("")).join("cases");
        let first = match cases.is_dir() {
            true => test::entries(&cases)?.into_iter().find(|case| case.is_dir()),
            false => None,
        };
        match first {
            Some(case) => cost_per_row(pipeline, test::inputs(pipeline, &declared, &case)?),
            None => Ok(Vec::new()),
        }
    }
}
