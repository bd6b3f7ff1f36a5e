//! The public sets: incidents, what is known of each when it is noticed, and its fault type.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use protocol::time::from_rfc3339;
use remediation::choose::{Example, Value};
use serde::Deserialize;
use serde_json::Value as Json;

type Features = BTreeMap<String, Value>;
/// The columns of a table: seconds and values, where there is one.
type Columns = BTreeMap<String, Vec<(i64, f64)>>;

/// The alerts of each incident as texts, and the instance they are about.
pub fn tvdiag(folder: &Path) -> Result<Vec<Example>> {
    let mut kinds = Vec::new();
    for kind in ["metrics", "logs", "traces"] {
        let text = fs::read(folder.join("raw").join(format!("{kind}.json")))?;
        kinds.push((kind, serde_json::from_slice::<BTreeMap<String, Json>>(&text)?));
    }
    let mut examples = Vec::new();
    let mut labels = csv::Reader::from_path(folder.join("label.csv"))?;
    for row in labels.deserialize::<BTreeMap<String, String>>() {
        let row = row?;
        let incident = column(&row, "index")?.to_owned();
        let mut features = Features::new();
        features.insert("instance".into(), Value::Text(column(&row, "instance")?.to_owned()));
        for (kind, alerts) in &kinds {
            let text = alerts.get(&incident).map(Json::to_string);
            features.extend(text.map(|text| ((*kind).to_owned(), Value::Text(text))));
        }
        examples.push(Example {
            incident,
            label: column(&row, "anomaly_type")?.to_owned(),
            features,
        });
    }
    Ok(examples)
}

#[derive(Deserialize)]
struct Injection {
    inject_timestamp: String,
    inject_pod: String,
    inject_type: String,
}

/// How long a fault of Nezha lasts, and how long before it is normal.
const NEZHA_FAULT_S: i64 = 180;
const NEZHA_BEFORE_S: i64 = 600;

/// How far each metric of the pod, and of the front, has moved from the ten minutes before the fault to its three minutes.
pub fn nezha(folder: &Path) -> Result<Vec<Example>> {
    let mut examples = Vec::new();
    for day in below(folder)? {
        let name = day
            .file_name()
            .and_then(|name| name.to_str())
            .context("a day")?
            .to_owned();
        let list = fs::read(day.join(format!("{name}-fault_list.json")))?;
        let hours: BTreeMap<String, Vec<Injection>> = serde_json::from_slice(&list)?;
        let front = nezha_columns(&day.join("metric/front_service.csv"))?;
        for injection in hours.values().flatten() {
            let pod = &injection.inject_pod;
            let from_s: i64 = injection.inject_timestamp.parse()?;
            let windows = ((from_s - NEZHA_BEFORE_S, from_s), (from_s, from_s + NEZHA_FAULT_S));
            let columns = nezha_columns(&day.join(format!("metric/{pod}_metric.csv")))?;
            let mut features = Features::new();
            for (of, columns) in [("pod", &columns), ("front", &front)] {
                let moved = columns.iter().filter_map(|(name, values)| {
                    let moved = moved(values, windows.0, windows.1)?;
                    Some((format!("{of} {name}"), Value::Number(moved)))
                });
                features.extend(moved);
            }
            examples.push(Example {
                incident: format!("{name} {from_s} {pod}"),
                label: injection.inject_type.clone(),
                features,
            });
        }
    }
    Ok(examples)
}

/// `Time` is right; `TimeStamp` is not, for one pod.
fn nezha_columns(path: &Path) -> Result<Columns> {
    let mut columns = Columns::new();
    let mut reader = csv::Reader::from_path(path).with_context(|| path.display().to_string())?;
    for row in reader.deserialize::<BTreeMap<String, String>>() {
        let row = row?;
        let time = column(&row, "Time")?.get(..19).context("a time")?.replace(' ', "T");
        let at_s = from_rfc3339(&format!("{time}Z")).context("a time")? / 1_000;
        for (name, value) in row {
            if let (false, Ok(value)) = (name.starts_with("Time"), value.parse()) {
                columns.entry(name).or_default().push((at_s, value));
            }
        }
    }
    Ok(columns)
}

#[derive(Deserialize)]
struct Issue {
    target: IssueTarget,
    metadata: Json,
}

#[derive(Deserialize)]
struct IssueTarget {
    timestamp: i64,
}

/// How far each kind of metric has moved since the issue was noticed, at the component where it rose, and fell, most. The fault
/// type is the parameter that was set; which metric was noticed is not a feature, as it gives the type away.
pub fn petshop(folder: &Path) -> Result<Vec<Example>> {
    let mut examples = Vec::new();
    for traffic in below(folder)? {
        for issue in below(&traffic.join("train"))? {
            let target: Issue = serde_json::from_slice(&fs::read(issue.join("target.json"))?)?;
            let command = target.metadata["reproducibility"]["command"].as_str();
            let command = command.context("no command in target.json")?;
            let label = command.split('\'').nth(1).and_then(|name| name.rsplit('/').next());
            examples.push(Example {
                incident: issue.display().to_string(),
                label: label.context("no parameter in the command")?.to_owned(),
                features: petshop_features(&issue.join("metrics.csv"), target.target.timestamp)?,
            });
        }
    }
    Ok(examples)
}

fn petshop_features(path: &Path, noticed_s: i64) -> Result<Features> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_path(path)?;
    let rows: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>()?;
    let [_, metrics, statistics, _, values @ ..] = rows.as_slice() else {
        return Ok(Features::new());
    };
    let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (index, (metric, statistic)) in metrics.iter().zip(statistics).enumerate().skip(1) {
        let value = |row: &csv::StringRecord| {
            let at_s: f64 = row.get(0)?.parse().ok()?;
            Some((at_s as i64, row.get(index)?.parse().ok()?))
        };
        let column: Vec<(i64, f64)> = values.iter().filter_map(value).collect();
        let moved = moved(&column, (i64::MIN, noticed_s), (noticed_s, i64::MAX));
        let name = format!("{metric} {statistic}");
        all.entry(name).or_default().extend(moved);
    }
    let mut features = Features::new();
    for (name, moved) in all.into_iter().filter(|(_, moved)| !moved.is_empty()) {
        let (rise, fall) = moved.iter().fold((0.0_f64, 0.0_f64), |(rise, fall), moved| {
            (rise.max(*moved), fall.min(*moved))
        });
        features.insert(format!("{name} rise"), Value::Number(rise));
        features.insert(format!("{name} fall"), Value::Number(fall));
    }
    Ok(features)
}

/// Which alerts there were, and how many; the fault type is the injection, of several the first.
pub fn itbench(folder: &Path) -> Result<Vec<Example>> {
    let mut rows = Vec::new();
    let mut reader = csv::Reader::from_path(folder.join("itbench_fault_actions.csv"))?;
    for row in reader.deserialize::<BTreeMap<String, String>>() {
        rows.push(row?);
    }
    let parts = |text: &str| -> BTreeSet<String> {
        let parts = text.split('|').map(str::trim).filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect()
    };
    let mut names = BTreeSet::new();
    for row in &rows {
        names.extend(parts(column(row, "alerts")?));
    }
    let (mut examples, mut without) = (Vec::new(), 0);
    for row in &rows {
        let (alerts, injected) = (parts(column(row, "alerts")?), column(row, "injections")?);
        let label = injected.split('|').next().unwrap_or_default().trim();
        if alerts.is_empty() || label.is_empty() {
            without += 1;
            continue;
        }
        let flag = |name: &String| (name.clone(), Value::Number(f64::from(u8::from(alerts.contains(name)))));
        let mut features: Features = names.iter().map(flag).collect();
        features.insert("alerts".into(), Value::Number(alerts.len() as f64));
        examples.push(Example {
            incident: column(row, "scenario")?.to_owned(),
            label: label.to_owned(),
            features,
        });
    }
    println!(
        "itbench: {without} of {} scenarios have no alert or no injection, left out",
        rows.len()
    );
    Ok(examples)
}

/// The logarithm of how many times as large the mean of the second window is as the first's; from a second on, to before
/// another.
fn moved(values: &[(i64, f64)], before: (i64, i64), during: (i64, i64)) -> Option<f64> {
    const NOTHING: f64 = 1e-6;
    let mean = |(from_s, to_s): (i64, i64)| {
        let within = values.iter().filter(|(at_s, _)| (from_s..to_s).contains(at_s));
        let (sum, count) = within.fold((0.0, 0_u32), |(sum, count), (_, value)| (sum + value, count + 1));
        (count > 0).then(|| (sum / f64::from(count)).abs() + NOTHING)
    };
    let moved = (mean(during)? / mean(before)?).ln();
    moved.is_finite().then_some(moved)
}

fn column<'a>(row: &'a BTreeMap<String, String>, name: &str) -> Result<&'a str> {
    row.get(name)
        .map(String::as_str)
        .with_context(|| format!("no column {name}"))
}

/// The folders in a folder, by name.
fn below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
