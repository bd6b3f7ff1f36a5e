//! How often the learned choice is right on incidents that it has not seen: `cargo bench -p remediation --bench choice -- --data DIR`.
//!
//! Reads the alerts of `tvdiag` (sockshop and gaia) and cross-validates: five folds, every fault type in each by its share,
//! twice with other folds. Fault types are the set's own labels; which action each calls for is a rule of this project.
//! `--csv FILE` cross-validates a table as `homeostat train` takes it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use remediation::choose::{Example, TrainOptions, Value, table, train};
use serde_json::Value as Json;

const FOLDS: usize = 5;
const ROUNDS: u64 = 2;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    println!("{:<34} {:>9} {:>9} {:>9}", "incidents", "count", "majority", "right");
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
    for set in ["sockshop", "gaia"] {
        let folder = data.join("tvdiag").join(set);
        if !folder.is_dir() {
            println!("{set}: not there, left out");
            continue;
        }
        let faults = alerts(&folder).with_context(|| folder.display().to_string())?;
        report(&format!("tvdiag {set}, fault type"), &faults)?;
        let mut actions = faults;
        for example in &mut actions {
            example.label = action(&example.label).to_owned();
        }
        report(&format!("tvdiag {set}, action"), &actions)?;
    }
    Ok(())
}

/// The rule of this project: which action a type of fault calls for.
fn action(fault: &str) -> &'static str {
    match fault.trim_matches(['[', ']']) {
        "cpu" | "file moving program" => "scale_up",
        "memory" | "memory_anomalies" => "restart",
        "pod-failure" => "failover",
        "network-delay" | "network-loss" | "network-corrupt" => "drain",
        // The platform brings the pod back; freed memory heals itself.
        "pod-kill" | "normal memory freed label" => "noop",
        _ => "escalate",
    }
}

/// The alerts of each incident as texts, and the instance they are about.
fn alerts(folder: &Path) -> Result<Vec<Example>> {
    let mut kinds = Vec::new();
    for kind in ["metrics", "logs", "traces"] {
        let text = fs::read(folder.join("raw").join(format!("{kind}.json")))?;
        kinds.push((kind, serde_json::from_slice::<BTreeMap<String, Json>>(&text)?));
    }
    let mut examples = Vec::new();
    let mut labels = csv::Reader::from_path(folder.join("label.csv"))?;
    for row in labels.deserialize::<BTreeMap<String, String>>() {
        let row = row?;
        let column = |name: &str| row.get(name).cloned().with_context(|| format!("no column {name}"));
        let incident = column("index")?;
        let mut features: BTreeMap<String, Value> = BTreeMap::new();
        features.insert("instance".into(), Value::Text(column("instance")?));
        for (kind, alerts) in &kinds {
            let text = alerts.get(&incident).map(Json::to_string);
            features.extend(text.map(|text| ((*kind).to_owned(), Value::Text(text))));
        }
        let label = column("anomaly_type")?;
        examples.push(Example {
            incident,
            label,
            features,
        });
    }
    Ok(examples)
}

fn report(name: &str, examples: &[Example]) -> Result<()> {
    let mut by_label: BTreeMap<&str, Vec<&Example>> = BTreeMap::new();
    for example in examples {
        by_label.entry(&example.label).or_default().push(example);
    }
    let most = by_label.values().map(Vec::len).max().context("an empty table")?;
    let (mut right, mut asked) = (0, 0);
    for round in 0..ROUNDS {
        let mixed = |example: &&Example| protocol::id::derived("fold", &[&example.incident, &round.to_string()]);
        let mut folds: Vec<Vec<&Example>> = vec![Vec::new(); FOLDS];
        let mut at = 0;
        for examples in by_label.values_mut() {
            examples.sort_by_key(mixed);
            for example in examples {
                folds[at % FOLDS].push(example);
                at += 1;
            }
        }
        for held_back in 0..FOLDS {
            let others = (0..FOLDS).filter(|fold| *fold != held_back);
            let learned: Vec<Example> = others
                .flat_map(|fold| &folds[fold])
                .map(|example| (*example).clone())
                .collect();
            let model = train(&learned, &TrainOptions::default())?;
            let is_right = |example: &&&Example| model.choose(&example.features).best() == Some(&example.label);
            right += folds[held_back].iter().filter(is_right).count();
            asked += folds[held_back].len();
        }
    }
    let share = |part: usize, whole: usize| part as f64 / whole as f64;
    let (count, majority, right) = (examples.len(), share(most, examples.len()), share(right, asked));
    println!("{name:<34} {count:>9} {majority:>9.3} {right:>9.3}");
    Ok(())
}
