//! What must hold of everything that a fleet has published, told by the rows that its services wrote.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
};

use kafka::memory::Stored;
use protocol::{cloudevent, schema};
use serde_json::Value;

use super::{SERVICES, WINDOW_MS, World};

impl World {
    /// Windows that a detector has scored: service, start, end, rows, sum.
    pub fn windows(&self, detector: &str) -> Vec<(String, i64, i64, u64, f64)> {
        let time = |value: &Value| protocol::time::from_rfc3339(value.as_str().unwrap()).unwrap();
        let anomalies = self.events(&self.processor.topics().anomalies(), cloudevent::ANOMALY);
        let of = anomalies.iter().filter(|data| data["detector"] == detector);
        of.map(|data| {
            let number = |name: &str| data["features"][name].as_f64().unwrap();
            let service = data["target"]["service"].as_str().unwrap().to_owned();
            let (start, end) = (time(&data["window_start"]), time(&data["window_end"]));
            (service, start, end, number("n") as u64, number("total"))
        })
        .collect()
    }

    /// Windows of `load` of any length: each whole, none twice, and every row up to the last of its service in exactly one.
    pub fn rows_are_shared_out(&self) -> Result<(), String> {
        let mut windows = self.windows("every");
        windows.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        for pair in windows.windows(2) {
            if pair[0].0 == pair[1].0 && pair[1].1 < pair[0].2 {
                return Err(format!("windows overlap: {:?} {:?}", pair[0], pair[1]));
            }
        }
        let mut counted: BTreeMap<&str, u64> = BTreeMap::new();
        for (service, start, end, n, total) in &windows {
            let own = |(at, ts, _): &&(usize, i64, f64)| *service == format!("s{at}") && (*start..*end).contains(ts);
            let rows: Vec<f64> = self.rows.iter().filter(own).map(|(_, _, ms)| *ms).collect();
            let sum: f64 = rows.iter().sum();
            if rows.len() as u64 != *n || (sum - total).abs() > 1e-6 * sum.abs().max(1.0) {
                return Err(format!(
                    "window {start} to {end} of {service} is {n}, {total}, not {}, {sum}",
                    rows.len()
                ));
            }
            *counted.entry(service).or_default() += n;
        }
        for at in 0..SERVICES {
            let service = format!("s{at}");
            let rows = self.rows.iter().filter(|(of, _, _)| *of == at).count() as u64;
            let found = counted.get(service.as_str()).copied().unwrap_or_default();
            if rows != found {
                return Err(format!("{found} of {rows} rows of {service} are in a window"));
            }
        }
        Ok(())
    }

    /// Windows of a detector on rows of `app`, of any length and whichever case its keys are in: each whole, none twice, and none missing
    /// between two. `slide_ms` tells by a window's length how far ends are apart.
    pub fn every_end_has_its_window(&self, detector: &str, slide_ms: fn(i64) -> i64) -> Result<(), String> {
        let mut ends: BTreeMap<(String, i64), i64> = BTreeMap::new();
        for (service, start, end, n, total) in self.windows(detector) {
            let service = service.to_lowercase();
            let own = |(at, ts, _): &&(usize, i64, f64)| service == format!("s{at}") && (start..end).contains(ts);
            let rows: Vec<f64> = self.rows.iter().filter(own).map(|(_, _, ms)| *ms).collect();
            let sum: f64 = rows.iter().sum();
            if service != "end" && (rows.len() as u64 != n || (sum - total).abs() > 1e-6 * sum.abs().max(1.0)) {
                return Err(format!(
                    "{start} to {end} of {service} is {n}, {total}, not {}, {sum}",
                    rows.len()
                ));
            }
            if ends.insert((service.clone(), end), end - start).is_some() {
                return Err(format!("two windows of {service} end at {end}"));
            }
        }
        let ends: Vec<_> = ends.iter().filter(|((service, _), _)| service != "end").collect();
        for pair in ends.windows(2) {
            let (((before, a), length_a), ((service, b), length_b)) = (pair[0], pair[1]);
            // Where one version follows another, ends between are either's.
            if before == service && b - slide_ms(*length_b) >= a + slide_ms(*length_a) {
                return Err(format!(
                    "no window of {service} ends between {a} ({length_a}) and {b} ({length_b})"
                ));
            }
        }
        for at in 0..SERVICES {
            let service = format!("s{at}");
            let rows = self.rows.iter().filter(|(of, _, _)| *of == at).map(|(_, ts, _)| *ts);
            let told = ends
                .iter()
                .filter(|((of, _), _)| *of == service)
                .map(|((_, end), _)| *end);
            let ((first, last), told_last) = ((rows.clone().min(), rows.max()), told.clone().max());
            if told_last <= last || told.min() > first.map(|first| first + 20_000) {
                return Err(format!(
                    "windows of {service} end at {told_last:?}, its rows at {last:?}"
                ));
            }
        }
        Ok(())
    }

    pub(super) fn events(&self, topic: &str, kind: &str) -> Vec<Value> {
        let records = self.memory.read_committed(topic);
        let of_kind = records.iter().filter(|record| header(record, "ce_type") == Some(kind));
        of_kind
            .map(|record| serde_json::from_slice(record.value.as_deref().unwrap()).unwrap())
            .collect()
    }

    /// Level shifts that were told: service, feature, old and new level.
    pub fn level_shifts(&self) -> Vec<(String, String, f64, f64)> {
        let told = self.events(&self.processor.topics().anomalies(), cloudevent::LEVEL_SHIFT);
        told.iter()
            .map(|data| {
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                let level = |name: &str| data[name].as_f64().unwrap();
                (
                    text(&data["target"]["service"]),
                    text(&data["feature"]),
                    level("old_level"),
                    level("new_level"),
                )
            })
            .collect()
    }

    pub fn verdicts(&self) -> Vec<String> {
        let verdicts = self.events(&self.processor.topics().outcomes(), cloudevent::VERDICT);
        verdicts
            .iter()
            .map(|data| data["verdict"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// Decisions that a gate with this in its name refused.
    pub fn refusals(&self, gate: &str) -> usize {
        let decisions = self.events(&self.processor.topics().decisions(), cloudevent::DECISION);
        let refused = |data: &&Value| {
            let gates = data["gates"].as_array().map(Vec::as_slice).unwrap_or_default();
            gates
                .iter()
                .any(|found| found["passed"] == false && found["gate"].as_str().is_some_and(|name| name.contains(gate)))
        };
        decisions.iter().filter(refused).count()
    }

    pub(super) fn check(&self, end_ms: i64) -> Result<(), String> {
        let both = [self.rows.as_slice(), &self.jobs].concat();
        are_exact("every", self.scored("every")?, &self.rows, end_ms)?;
        are_exact("everywhere", self.scored("everywhere")?, &both, end_ms)?;
        are_exact("the sink", self.sunk()?, &both, end_ms)?;
        self.ids_are_unique()?;
        self.records_fit_their_schemas()?;
        let touched = self.restarts();
        for service in &self.services {
            let restarts = touched.get(&service.name).copied().unwrap_or_default();
            if restarts > 0 && service.crashed == 0 {
                return Err(format!("{} was healthy and was restarted", service.name));
            }
            if !service.is_up() {
                return Err(format!("{} crashed and nobody restarted it", service.name));
            }
        }
        match self.executor.effects.iter().find(|(_, (_, times))| *times > 1) {
            Some((id, (service, times))) => Err(format!("action {id} restarted {service} {times} times")),
            None => Ok(()),
        }
    }

    /// Windows as a detector that alarms about each of them has published them.
    fn scored(&self, detector: &str) -> Result<Windows, String> {
        let mut found = Windows::new();
        for data in self.events(&self.processor.topics().anomalies(), cloudevent::ANOMALY) {
            if data["detector"] == detector {
                let number = |name: &str| data["features"][name].as_f64().unwrap();
                let counted = (number("n") as u64, number("total"));
                insert(&mut found, &data["target"]["service"], &data["window_start"], counted)?;
            }
        }
        Ok(found)
    }

    /// Windows as a sink has written them.
    fn sunk(&self) -> Result<Windows, String> {
        let mut found = Windows::new();
        for record in self.memory.read_committed("work_rows") {
            let row: Value = serde_json::from_slice(record.value.as_deref().unwrap()).unwrap();
            let counted = (row["n"].as_u64().unwrap(), row["total"].as_f64().unwrap());
            insert(&mut found, &row["service"], &row["window_start"], counted)?;
        }
        Ok(found)
    }

    fn ids_are_unique(&self) -> Result<(), String> {
        let topics = self.processor.topics();
        for topic in [
            topics.anomalies(),
            topics.actions(),
            topics.decisions(),
            topics.outcomes(),
            topics.incidents(),
        ] {
            let mut seen = BTreeSet::new();
            for record in self.memory.read_committed(&topic) {
                let kind = header(&record, "ce_type").unwrap_or_default();
                // They carry time and batching, not results.
                if [cloudevent::PROGRESS, cloudevent::JOURNAL].contains(&kind) {
                    continue;
                }
                let id = header(&record, "ce_id").unwrap_or_default();
                if !seen.insert(id.to_owned()) {
                    return Err(format!("{topic} has {kind} {id} twice"));
                }
            }
        }
        Ok(())
    }

    fn records_fit_their_schemas(&self) -> Result<(), String> {
        let topics = self.processor.topics();
        for topic in topics.all() {
            for record in self.memory.read_committed(&topic.name) {
                let Some(kind) = header(&record, "ce_type") else {
                    continue;
                };
                let file = schema::schema_for(kind).ok_or_else(|| format!("{}: {kind} has no schema", topic.name))?;
                let data: Value = serde_json::from_slice(record.value.as_deref().unwrap_or_default())
                    .map_err(|error| format!("{kind}: {error}"))?;
                if let Some(error) = validators()[file].iter_errors(&data).next() {
                    return Err(format!("{kind} at {:?}: {error}", error.instance_path().as_str()));
                }
            }
        }
        Ok(())
    }
}

/// By service and start: rows, and their sum.
type Windows = BTreeMap<(String, i64), (u64, f64)>;

fn insert(windows: &mut Windows, service: &Value, start: &Value, counted: (u64, f64)) -> Result<(), String> {
    let start = protocol::time::from_rfc3339(start.as_str().unwrap()).unwrap();
    let service = service.as_str().unwrap().to_owned();
    match windows.insert((service.clone(), start), counted) {
        None => Ok(()),
        Some(_) => Err(format!("window {start} of {service} was published twice")),
    }
}

fn are_exact(whose: &str, mut found: Windows, rows: &[(usize, i64, f64)], end_ms: i64) -> Result<(), String> {
    let mut expected = Windows::new();
    for (service, ts, ms) in rows {
        let start = ts - ts.rem_euclid(WINDOW_MS);
        let window = expected.entry((format!("s{service}"), start)).or_default();
        *window = (window.0 + 1, window.1 + ms);
    }
    expected.retain(|(_, start), _| start + WINDOW_MS <= end_ms - 1_000);
    for (key, (n, total)) in &expected {
        match found.remove(key) {
            Some((count, sum)) if count == *n && (sum - total).abs() < 1e-6 * total.abs().max(1.0) => {}
            other => return Err(format!("{whose}: window {key:?} is {other:?}, not {:?}", (n, total))),
        }
    }
    match found.first_key_value() {
        Some((key, _)) => Err(format!("{whose}: window {key:?} has no rows")),
        None => Ok(()),
    }
}

pub(super) fn header<'r>(record: &'r Stored, name: &str) -> Option<&'r str> {
    let found = record.headers.iter().find(|(header, _)| header == name)?;
    std::str::from_utf8(&found.1).ok()
}

fn validators() -> &'static BTreeMap<&'static str, jsonschema::Validator> {
    static VALIDATORS: OnceLock<BTreeMap<&'static str, jsonschema::Validator>> = OnceLock::new();
    VALIDATORS.get_or_init(|| {
        let read = |(name, text): &(&'static str, &'static str)| {
            let schema: Value = serde_json::from_str(text).unwrap();
            (*name, jsonschema::validator_for(&schema).unwrap())
        };
        schema::ALL.iter().map(read).collect()
    })
}
