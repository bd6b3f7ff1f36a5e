//! `homeostat validate` and `homeostat explain`: what is wrong with a pipeline, and what it will do.

use std::{io::IsTerminal, path::PathBuf};

use super::{Output, print_json};
use crate::{error::Refused, pipelines};

/// Checks pipelines and says everything that is wrong at once.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat validate pipelines/shop/pipeline.sql")]
pub struct Validate {
    /// Pipeline files, or folders that hold NAME/pipeline.sql
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// Shows the plan of a pipeline: panes, what shares them, windows, state bound.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat explain pipelines/shop/pipeline.sql")]
pub struct Explain {
    path: PathBuf,
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
        let mut wrong = false;
        for file in files(&self.paths)? {
            let diagnostics = pipelines::compile(&file).err();
            wrong |= diagnostics.is_some();
            match (self.output, diagnostics) {
                (Output::Json, diagnostics) => {
                    let found = diagnostics.map(|found| file.to_json(&found)).transpose()?;
                    let found = found.unwrap_or_else(|| serde_json::json!([]));
                    print_json(
                        &serde_json::json!({"file": file.path, "valid": found == serde_json::json!([]), "diagnostics": found}),
                    );
                }
                (Output::Text, None) => {
                    println!("{}: valid", file.path);
                    for note in pipelines::compile(&file).iter().flat_map(notes) {
                        println!("  {note}");
                    }
                }
                (Output::Text, Some(found)) => eprint!("{}", file.render(&found, color)),
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
        for pipeline in pipelines::compile_all(&files, std::io::stderr().is_terminal())?.iter() {
            print!("{}", sql::explain(pipeline));
        }
        Ok(())
    }
}
