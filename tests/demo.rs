//! `homeostat demo`, as a newcomer and as a script meets it: every fault heals with an executor, none without.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Output,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::programs::program;

/// Runs the demonstration from a folder that is none of the project's; its temporary files go there too.
fn demo(arguments: &[&str]) -> (Output, Vec<Value>, Duration) {
    let elsewhere = tempfile::tempdir().unwrap();
    let since = Instant::now();
    let output = program("homeostat")
        .args(["demo", "--output", "json"])
        .args(arguments)
        .current_dir(elsewhere.path())
        .env("TMPDIR", elsewhere.path())
        .env_remove("KAFKA_BOOTSTRAP")
        .output()
        .unwrap();
    let lines = String::from_utf8(output.stdout.clone()).unwrap();
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")));
    let lines = lines.collect();
    let left: Vec<_> = fs::read_dir(elsewhere.path())
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    (output, lines, since.elapsed())
}

fn said(output: &Output, lines: &[Value]) -> String {
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    format!(
        "{}\n{}\n{}",
        output.status,
        lines.join("\n"),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn every_fault_heals_and_nothing_healthy_is_touched() {
    let (output, lines, took) = demo(&["--duration", "60", "--seed", "11"]);
    let said = said(&output, &lines);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(took < Duration::from_secs(120), "took {took:?}");
    for line in &lines {
        for field in ["at_ms", "kind", "fault", "service"] {
            assert!(line.get(field).is_some(), "{field} in {line}");
        }
    }
    let summary = lines.last().unwrap();
    assert_eq!(summary["kind"], "summary");
    assert_eq!(summary["false_actions"], 0);
    let faults = summary["faults"].as_array().unwrap();
    let kinds: BTreeSet<&str> = faults.iter().map(|fault| fault["fault"].as_str().unwrap()).collect();
    assert_eq!(kinds, BTreeSet::from(["crash", "hang", "latency", "leak"]));
    for fault in faults {
        assert!(
            fault["detected_ms"].as_u64().unwrap() <= fault["healed_ms"].as_u64().unwrap(),
            "{fault}"
        );
        assert!(fault["actions"].as_u64().unwrap() >= 1, "{fault}");
        assert_ne!(fault["pid_before"], fault["pid_after"], "{fault}");
    }
    each_action_has_its_whole_story(&lines);
}

/// From decision to verdict, in the order of the loop, each at its place on a topic.
fn each_action_has_its_whole_story(lines: &[Value]) {
    let mut stories: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for line in lines {
        if let Some(id) = line["action_id"].as_str() {
            stories.entry(id).or_default().push(line);
            assert!(
                line["topic"].is_string() && line["offset"].is_u64() && line["partition"].is_u64(),
                "{line}"
            );
        }
    }
    for (id, story) in stories
        .iter()
        .filter(|(_, story)| story.iter().any(|line| line["kind"] == "command"))
    {
        let of = |kind: &str| story.iter().filter(|line| line["kind"] == kind).count();
        assert_eq!(of("command"), 1, "{id}");
        assert_eq!(
            story.iter().filter(|line| line["status"] == "succeeded").count(),
            1,
            "{id}: {story:?}"
        );
        assert_eq!(of("verdict"), 1, "{id}");
        assert!(of("decision") >= 1, "{id}");
    }
}

#[test]
fn without_an_executor_nothing_heals() {
    let (output, lines, took) = demo(&["--duration", "60", "--seed", "12", "--no-executor"]);
    let said = said(&output, &lines);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(took < Duration::from_secs(120), "took {took:?}");
    let summary = lines.last().unwrap();
    assert_eq!(summary["kind"], "summary");
    for fault in summary["faults"].as_array().unwrap() {
        assert_eq!(fault["healed_ms"], Value::Null, "{said}");
    }
    assert!(lines.iter().any(|line| line["kind"] == "command"), "{said}");
    assert!(lines.iter().all(|line| line["kind"] != "outcome"), "{said}");
}

#[test]
fn what_cannot_be_run_is_refused_with_the_fix() {
    for (arguments, fix) in [
        (["--duration", "5"], "60 seconds"),
        (["--duration", "soon"], "invalid value"),
        (["--pipelines", "/nowhere"], "/nowhere"),
        (["--config", "/nowhere.toml"], "/nowhere.toml"),
        (["--seed", "one"], "invalid value"),
    ] {
        let (output, lines, _) = demo(&arguments);
        let said = said(&output, &lines);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(fix), "{arguments:?}: {said}");
    }
}
