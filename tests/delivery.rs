//! Invariants 1, 5, 6, 7 and 8 on a real Kafka: windows are exact for two processes, and nothing bad stops or vanishes.

use std::{collections::BTreeMap, time::Duration};

use anyhow::ensure;
use protocol::cloudevent;

use crate::{
    fleet::{Fleet, Published},
    workload::{self, BEGIN_MS, CONFIG, PIPELINE},
};

/// (service, window start) → (n, total), as published.
pub fn published_windows(anomalies: &[Published]) -> BTreeMap<(String, i64), (i64, f64)> {
    let mut windows = BTreeMap::new();
    for record in anomalies.iter().filter(|record| record.kind() == cloudevent::ANOMALY) {
        let data = record.json();
        let service = data["target"]["service"].as_str().unwrap_or_default().to_owned();
        let start = protocol::time::from_rfc3339(data["window_start"].as_str().unwrap_or_default()).unwrap_or_default();
        let n = data["features"]["n"].as_f64().unwrap_or_default() as i64;
        let total = data["features"]["total"].as_f64().unwrap_or_default();
        if service != "end" {
            assert!(
                windows.insert((service, start), (n, total)).is_none(),
                "a window was published twice: {data}"
            );
        }
    }
    windows
}

pub fn alarms(found: &[Published]) -> usize {
    found
        .iter()
        .filter(|record| record.kind() == cloudevent::ANOMALY)
        .count()
}

#[test]
fn two_processes_share_four_partitions_and_count_every_window_exactly() -> anyhow::Result<()> {
    let fleet = Fleet::new("exact", PIPELINE, CONFIG)?;
    fleet.create("app", 4, false)?;
    let rows = workload::rows(6, 120, 20, 4);
    let expected = workload::windows(&rows);
    let half = rows.len() / 2;
    let first = fleet.start(&[])?;
    let second = fleet.start(&[])?;
    fleet.feed("app", rows[..half].iter().cloned())?;
    std::thread::sleep(Duration::from_secs(3));
    fleet.feed("app", rows[half..].iter().cloned())?;
    let anomalies = fleet.wait("anomalies", Duration::from_secs(90), |found| {
        alarms(found) >= expected.len()
    })?;
    assert_eq!(published_windows(&anomalies), expected);
    // Both drain and exit 0; nothing is said twice on the way out.
    assert_eq!(first.terminate()?, 0);
    assert_eq!(second.terminate()?, 0);
    assert_eq!(published_windows(&fleet.read("anomalies")?), expected);
    ensure!(fleet.read("dead_letters")?.is_empty(), "no row was bad");
    ensure!(fleet.read("late")?.is_empty(), "no row was late");
    Ok(())
}

#[test]
fn poison_future_idle_and_late_rows_leave_windows_right_and_nothing_stops() -> anyhow::Result<()> {
    let pipeline = PIPELINE
        .replace("IDLE TIMEOUT INTERVAL '10' MINUTE", "IDLE TIMEOUT INTERVAL '3' SECOND")
        .replace(
            "FEATURE VIEW load AS",
            "FEATURE VIEW load ALLOW LATENESS INTERVAL '10' SECOND AS",
        );
    let fleet = Fleet::new("dirty", &pipeline, CONFIG)?;
    fleet.create("app", 4, false)?;
    let row = |second: i64, ms: i64| {
        let ts = BEGIN_MS + second * 1_000;
        format!("{{\"service\":\"a\",\"ms\":{ms},\"ts\":{ts}}}").into_bytes()
    };
    // Partition 3 never gets a row: it is idle. Everything else on partition 0, whose order decides what is late.
    let mut feed = vec![
        (0, row(1, 1)),
        (0, b"{\"service\":".to_vec()),
        (0, b"not json at all".to_vec()),
        (0, b"{\"service\":\"a\",\"ms\":\"seven\",\"ts\":1}".to_vec()),
        (0, b"{\"service\":\"a\",\"ms\":7,\"ts\":4102444800000}".to_vec()),
        (0, row(15, 2)),
        // Watermark 13 s: [0, 10) is open until 20 s.
        (0, row(2, 4)),
        (0, row(33, 8)),
        // Watermark 31 s: [0, 10) closed at 20 s, [20, 30) is open until 40 s.
        (0, row(3, 16)),
        (0, row(25, 32)),
        (0, row(90, 64)),
    ];
    feed.extend((1..3).map(|partition| (partition, row(90, 128))));
    fleet.feed("app", feed)?;
    let process = fleet.start(&[])?;
    // The others go on talking, or nothing would advance: where all are idle, telemetry is silent and windows wait.
    for _ in 0..8 {
        std::thread::sleep(Duration::from_secs(1));
        fleet.feed("app", (0..3).map(|partition| (partition, row(90, 128))))?;
    }
    let found = fleet.wait("anomalies", Duration::from_secs(60), |found| alarms(found) >= 4)?;
    let expected: BTreeMap<(String, i64), (i64, f64)> =
        [(0, (2, 5.0)), (10, (1, 2.0)), (20, (1, 32.0)), (30, (1, 8.0))]
            .into_iter()
            .map(|(start, window)| (("a".to_owned(), BEGIN_MS + start * 1_000), window))
            .collect();
    assert_eq!(published_windows(&found), expected);
    let dead = fleet.read("dead_letters")?;
    let places: Vec<(&str, &str)> = dead
        .iter()
        .map(|record| {
            (
                record.headers["source_partition"].as_str(),
                record.headers["source_offset"].as_str(),
            )
        })
        .collect();
    assert_eq!(places, [("0", "1"), ("0", "2"), ("0", "3"), ("0", "4")], "{dead:#?}");
    assert!(
        dead.iter().all(|record| !record.headers["reason"].is_empty()),
        "{dead:#?}"
    );
    let late = fleet.read("late")?;
    assert_eq!(late.len(), 1, "{late:#?}");
    assert_eq!(process.terminate()?, 0);
    Ok(())
}
