//! `homeostat train` and `homeostat choose`: what past incidents teach, and what it says of new ones. Files in, files out.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use remediation::choose::{Model, TrainOptions, table, train};

use super::replace;
use crate::error::Refused;

/// Learns from past incidents which action fits.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat train --input incidents.csv --output model.json")]
pub struct Train {
    /// CSV with columns incident, label, any features, optionally action and outcome
    #[arg(long)]
    input: PathBuf,
    /// Where the model goes
    #[arg(long)]
    output: PathBuf,
    /// Trees that vote
    #[arg(long, default_value_t = TrainOptions::default().trees)]
    trees: u16,
    /// Abstain when the best action leads by fewer votes than this share
    #[arg(long, default_value_t = TrainOptions::default().margin)]
    margin: f64,
    #[arg(long, default_value_t = TrainOptions::default().seed)]
    seed: u64,
}

/// Says which action fits new incidents, and how surely.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat choose --model model.json --input new.csv --output answers.csv")]
pub struct Choose {
    /// A model written by `homeostat train`
    #[arg(long)]
    model: PathBuf,
    /// CSV with the column incident and the features of the training table
    #[arg(long)]
    input: PathBuf,
    /// CSV with columns incident, action, one probability per action, abstained
    #[arg(long)]
    output: PathBuf,
}

impl Train {
    pub fn run(&self) -> anyhow::Result<()> {
        if !(0.0..=1.0).contains(&self.margin) {
            return Err(Refused::new(format!("--margin {} is no share", self.margin))
                .help("give a number from 0 to 1")
                .into());
        }
        let past = past(&self.input)?;
        let options = TrainOptions {
            trees: self.trees,
            margin: self.margin,
            seed: self.seed,
            ..TrainOptions::default()
        };
        let model = train(&past.examples, &options).map_err(|error| unusable(&self.input, &error))?;
        replace(&self.output, &model.to_json())?;
        println!("model {}", model.version());
        println!(
            "learned from {} incidents, {} without a label",
            model.examples(),
            past.unlabelled
        );
        println!("actions: {}", model.actions().join(", "));
        println!(
            "right on incidents not seen (out of bag): {:.3}; always the most frequent: {:.3}",
            model.accuracy(),
            model.majority()
        );
        Ok(())
    }
}

impl Choose {
    pub fn run(&self) -> anyhow::Result<()> {
        let model = Model::from_json(&read(&self.model)?).map_err(|reason| {
            Refused::new(format!("{}: {reason}", self.model.display()))
                .help("a model is a file that `homeostat train` wrote")
        })?;
        let asked = table::asked(&read(&self.input)?).map_err(|error| unusable(&self.input, &error))?;
        let missing = model.columns_missing(asked.iter().map(|row| &row.features));
        if !missing.is_empty() && !asked.is_empty() {
            let shown = missing.iter().take(8).copied().collect::<Vec<_>>().join(", ");
            eprintln!(
                "warning: {} of the model's columns have no value here: {shown}",
                missing.len()
            );
        }
        replace(&self.output, &table::answers(&model, &asked))?;
        println!("{} incidents answered", asked.len());
        Ok(())
    }
}

/// A table of past incidents.
pub(super) fn past(path: &Path) -> anyhow::Result<table::Past> {
    Ok(table::past(&read(path)?).map_err(|error| unusable(path, &error))?)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn unusable(path: &Path, error: &dyn std::error::Error) -> Refused {
    Refused::new(format!("{}: {error}", path.display())).help("docs/healing.md describes the table")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAST: &str = "incident,label,memory_mib,events,action,outcome\n\
        1,restart,900,\"cart-0 memory up\",,\n2,scale_up,100,queue full,,\n3,restart,950,memory up,,\n\
        4,scale_up,NaN,queue full,,\n5,,920,memory up,restart,recovered\n6,,110,queue full,restart,unchanged\n";

    fn run(past: &str, asked: &str) -> anyhow::Result<String> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        fs::write(at("past.csv"), past)?;
        fs::write(at("asked.csv"), asked)?;
        let train = Train {
            input: at("past.csv"),
            output: at("model.json"),
            trees: 25,
            margin: 0.1,
            seed: 1,
        };
        train.run()?;
        let choose = Choose {
            model: at("model.json"),
            input: at("asked.csv"),
            output: at("answers.csv"),
        };
        let done = choose.run();
        let left = fs::read_dir(folder.path())?.count();
        assert_eq!(left, if done.is_ok() { 4 } else { 3 }, "nothing half-written is left");
        done?;
        Ok(fs::read_to_string(at("answers.csv"))?)
    }

    #[test]
    fn new_incidents_are_answered_in_their_order() {
        let answers = run(
            PAST,
            "incident,memory_mib,events\nb,80,queue full\na,990,memory up\nc,,never seen \u{1f980}\n",
        );
        let answers = answers.unwrap();
        let rows: Vec<&str> = answers.lines().collect();
        assert_eq!(rows[0], "incident,action,restart,scale_up,abstained");
        assert!(rows[1].starts_with("b,scale_up,"), "{}", rows[1]);
        assert!(rows[2].starts_with("a,restart,"), "{}", rows[2]);
        assert_eq!(rows.len(), 4);
    }

    #[test]
    fn a_table_that_cannot_be_used_changes_nothing() {
        let error = |past: &str, asked: &str| run(past, asked).unwrap_err().to_string();
        assert!(error("incident,memory\n1,2\n", "").contains("no column \"label\""));
        assert!(error(PAST, "id\n1\n").contains("no column \"incident\""));
        assert!(error(PAST, "").contains("empty"));
        assert!(error(PAST, "incident,memory_mib\n1,2\n3\n").contains("line 3: 1 cells, the header has 2 columns"));
    }
}
