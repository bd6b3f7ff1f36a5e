//! How often the learned choice is right on incidents that it has not seen: `cargo bench -p remediation --bench choice -- --data DIR`.
//!
//! Reads public sets of labelled incidents and cross-validates: five folds, every label in each by its share, twice with
//! other folds. A model never sees the incidents it is asked about, and no feature is made from a label. Fault types are
//! the sets' own labels; which action each calls for is a rule of this project, in `actions.csv`: what is not there is
//! `escalate`. `--csv FILE` cross-validates a table as `homeostat train` takes it.

mod score;
mod sets;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use remediation::choose::{Example, table};

use self::score::report;

const ACTIONS: &str = include_str!("actions.csv");

/// Reads the incidents of a set, with their fault types, below a folder.
type Read = fn(&Path) -> Result<Vec<Example>>;

/// Name, whose rule in `actions.csv`, folder below DIR, reader.
const SETS: [(&str, &str, &str, Read); 5] = [
    ("tvdiag sockshop", "tvdiag", "tvdiag/sockshop", sets::tvdiag),
    ("tvdiag gaia", "tvdiag", "tvdiag/gaia", sets::tvdiag),
    ("nezha", "nezha", "nezha", sets::nezha),
    ("petshop", "petshop", "petshop", sets::petshop),
    ("itbench", "itbench", "itbench", sets::itbench),
];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        let path = PathBuf::from(arguments.next().context("a path is missing")?);
        match argument.as_str() {
            "--data" => public(&path)?,
            "--csv" => {
                let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
                report(&path.display().to_string(), &table::past(&bytes)?.examples)?;
            }
            other => bail!("unknown argument {other}: --data DIR or --csv FILE"),
        }
    }
    Ok(())
}

fn public(data: &Path) -> Result<()> {
    for (name, rule, folder, read) in SETS {
        let folder = data.join(folder);
        if !folder.is_dir() {
            println!("{name}: not there, left out\n");
            continue;
        }
        let faults = read(&folder).with_context(|| folder.display().to_string())?;
        let actions = actions(rule, &faults)?;
        report(&format!("{name}, fault type"), &faults)?;
        report(&format!("{name}, action"), &actions)?;
    }
    Ok(())
}

/// The same incidents with the action that the rule has for their fault type.
fn actions(set: &str, faults: &[Example]) -> Result<Vec<Example>> {
    let mut rule = BTreeMap::new();
    for row in csv::Reader::from_reader(ACTIONS.as_bytes()).deserialize() {
        let (of, fault, action): (String, String, String) = row?;
        if of == set {
            rule.insert(fault, action);
        }
    }
    let label = |fault: &str| rule.get(fault.trim_matches(['[', ']'])).cloned();
    let action = |example: &Example| Example {
        label: label(&example.label).unwrap_or_else(|| "escalate".into()),
        ..example.clone()
    };
    Ok(faults.iter().map(action).collect())
}
