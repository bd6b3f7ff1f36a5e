//! `homeostat backtest`: two sets of policies on one past, side by side.

use std::path::{Path, PathBuf};

use protocol::{
    Target, Topics,
    message::{DecisionKind, Mode},
    time,
};
use remediation::{
    FleetConfig, Policy,
    backtest::{Assume, Difference, Fired, Recorded, Report, Success, backtest},
};

use super::{Output, control::Fleet, print_json, recording::Recording};
use crate::{config, error::Refused, pipelines, stages::decide};

/// Says what policies would have done on recorded anomalies, and where two sets of them differ.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example: homeostat backtest --policy pipelines/shop --policy changed/shop --from 2026-01-01T00:00:00Z"
)]
pub struct Backtest {
    /// A pipeline, file or folder, whose policies are tried; twice for two sets
    #[arg(long = "policy", required = true, num_args = 1)]
    policies: Vec<PathBuf>,
    /// From this time of the record on (RFC 3339)
    #[arg(long, value_parser = parse_time)]
    from: Option<i64>,
    /// Before this time of the record (RFC 3339)
    #[arg(long, value_parser = parse_time)]
    to: Option<i64>,
    /// Records saved with --save, instead of the fleet's topics
    #[arg(long)]
    input: Option<PathBuf>,
    /// Also saves the records that were read, for --input
    #[arg(long)]
    save: Option<PathBuf>,
    /// Stands for every mode record of the past: off, shadow, approve or auto
    #[arg(long, value_parser = super::control::parse_mode)]
    mode: Option<Mode>,
    #[command(flatten)]
    fleet: Fleet,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

fn parse_time(text: &str) -> Result<i64, String> {
    time::from_rfc3339(text).ok_or_else(|| "a time like 2026-01-31T12:00:00Z".to_owned())
}

impl Backtest {
    pub fn run(&self) -> anyhow::Result<()> {
        if self.policies.len() > 2 {
            return Err(Refused::new("more than two sets of policies")
                .help("give --policy once or twice")
                .into());
        }
        let config = config::load(self.fleet.config.as_deref())?;
        let sets: Vec<Vec<Policy>> = self
            .policies
            .iter()
            .map(|path| policies(path, &config.topics()))
            .collect::<Result<_, _>>()?;
        let recording = Recording::open(&self.fleet, self.input.as_deref())?;
        if let Some(path) = &self.save {
            super::replace(path, recording.text().as_bytes())?;
        }
        let reports: Vec<Report> = sets
            .into_iter()
            .map(|set| self.report(config.decide.clone(), set, &recording))
            .collect();
        let difference = match reports.as_slice() {
            [first, second] => Some(first.difference(second)),
            _ => None,
        };
        match self.output {
            Output::Json => print_json(&serde_json::json!({
                "records": recording.past.len(), "unusable": recording.unusable,
                "reports": reports, "difference": difference,
            })),
            Output::Text => {
                println!("{} records, {} passed over", recording.past.len(), recording.unusable);
                for (path, report) in self.policies.iter().zip(&reports) {
                    print_report(path, report);
                }
                difference.iter().for_each(print_difference);
            }
        }
        Ok(())
    }

    fn report(&self, config: FleetConfig, policies: Vec<Policy>, recording: &Recording) -> Report {
        let chosen = |record: &&Recorded| {
            self.from.is_none_or(|from| record.broker_ms >= from) && self.to.is_none_or(|to| record.broker_ms < to)
        };
        let past = recording.past.iter().filter(chosen);
        backtest(config, policies, past, &recording.healed(), Assume { mode: self.mode })
    }
}

fn policies(path: &Path, topics: &Topics) -> Result<Vec<Policy>, Refused> {
    let files = if path.is_dir() && !path.join("pipeline.sql").is_file() {
        pipelines::find(path)?
    } else if path.is_dir() {
        vec![pipelines::read(&path.join("pipeline.sql"))?]
    } else {
        vec![pipelines::read(path)?]
    };
    let pipelines = pipelines::compile_all(&files, false)?;
    Ok(decide::policies(&pipelines, topics))
}

fn print_report(path: &Path, report: &Report) {
    println!(
        "{}: {} incidents, {} actions",
        path.display(),
        report.incidents,
        report.fired.len()
    );
    report.fired.iter().map(line).for_each(|line| println!("  {line}"));
    for (gate, count) in &report.refusals {
        println!("  refused by {gate}: {count}");
    }
    for (verdict, count) in &report.verdicts {
        println!("  the signal afterwards: {verdict} {count}");
    }
    for (action, success) in &report.success {
        println!("  {action}: {}", estimate(success));
    }
    if let Some(expected) = &report.expected {
        println!(
            "  expected to heal: {:.2} of the actions ({:.2} to {:.2})",
            expected.share, expected.low, expected.high
        );
    }
}

fn estimate(success: &Success) -> String {
    if success.judged == 0 {
        return "the past says nothing of it".into();
    }
    format!(
        "healed {} of {} in the past, {:.2} ({:.2} to {:.2})",
        success.healed, success.judged, success.share, success.low, success.high
    )
}

fn print_difference(difference: &Difference) {
    println!("both fire: {}", difference.both);
    for (sign, only) in [
        ("only the first", &difference.only_first),
        ("only the second", &difference.only_second),
    ] {
        println!("{sign}: {}", only.len());
        only.iter().map(line).for_each(|line| println!("  {line}"));
    }
    for (gate, first, second) in difference.refusals.iter().filter(|(_, first, second)| first != second) {
        println!("refused by {gate}: {first} by the first, {second} by the second");
    }
}

fn line(fired: &Fired) -> String {
    let at = time::to_rfc3339(fired.at);
    let how = match fired.verdict {
        DecisionKind::Shadow => " (in shadow)",
        DecisionKind::AskApproval => " (after a yes)",
        DecisionKind::Act | DecisionKind::Refuse => "",
    };
    let service = Target::from_key(&fired.target_key).map_or_else(|_| fired.target_key.clone(), |target| target.name);
    format!("{at} {} on {service} by {}{how}", fired.action, fired.policy)
}

#[cfg(test)]
mod tests {
    use protocol::{CloudEvent, cloudevent, id};
    use serde_json::{Value, json};

    use super::*;

    const PIPELINE: &str = include_str!("../../../pipelines/starter/pipeline.sql");

    /// Checkout falls silent at two minutes; 19 others go on.
    fn lines() -> String {
        let mut lines = String::new();
        let mut line = |at: i64, headers: Value, value: Value| {
            let line = json!({"topic": "anomalies", "timestamp_ms": at, "headers": headers, "value": value});
            lines += &format!("{line}\n");
        };
        for second in 0..400 {
            let at = second * 1_000;
            let stamp = time::to_rfc3339(at);
            let population = json!({"starter.quiet": 20});
            line(
                at,
                json!({"ce_type": cloudevent::PROGRESS}),
                json!({"watermark_ms": at, "clock": stamp, "partition": 0, "population": population}),
            );
            if second == 120 {
                let key = "homeostat/default/service/checkout";
                let event = CloudEvent::new(
                    id::derived("test", &[]),
                    "homeostat",
                    "/t",
                    cloudevent::ANOMALY,
                    key,
                    at,
                );
                let text = |(name, value): (String, Vec<u8>)| (name, Value::from(String::from_utf8(value).unwrap()));
                let headers: serde_json::Map<String, Value> = event.headers().into_iter().map(text).collect();
                let anomaly = json!({
                    "target": {"service": "checkout"}, "pipeline": "starter", "detector": "quiet",
                    "window_start": time::to_rfc3339(at - 30_000), "window_end": stamp, "score": 1.5, "is_anomaly": true,
                    "features": {}, "contributions": {}, "meets": ["restart_quiet"],
                });
                line(at, headers.into(), anomaly);
            }
        }
        lines
    }

    #[test]
    fn policies_are_tried_on_a_file_of_records() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let auto = write("starter.sql", PIPELINE);
        let input = write("records.jsonl", &lines());
        let mut command = Backtest {
            policies: vec![auto.clone(), auto.clone()],
            from: None,
            to: None,
            input: Some(input.clone()),
            save: Some(folder.path().join("saved.jsonl")),
            mode: Some(Mode::Auto),
            fleet: Fleet { config: None },
            output: Output::Text,
        };
        command.run().unwrap();
        let recording = Recording::open(&command.fleet, Some(&input)).unwrap();
        let report = |command: &Backtest| {
            let config = FleetConfig {
                startup_grace: std::time::Duration::ZERO,
                ..FleetConfig::default()
            };
            let policies = policies(&auto, &Topics::new("homeostat.")).unwrap();
            command.report(config, policies, &recording)
        };
        let all = report(&command);
        assert!(all.fired.iter().any(|fired| fired.action == "restart"), "{all:?}");
        let saved = Recording::open(&command.fleet, command.save.as_deref()).unwrap();
        assert_eq!(saved.past, recording.past);
        command.to = Some(60_000);
        assert!(report(&command).fired.is_empty());
        command.policies.push(input);
        assert!(command.run().is_err());
    }
}
