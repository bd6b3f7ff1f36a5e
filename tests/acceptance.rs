//! What other stream processors fail at, on a real Kafka: the rows of docs/acceptance.md that no other test has.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        Gauge, Metric, MetricsData, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric::Data, number_data_point,
    },
    resource::v1::Resource,
};
use prost::Message;
use tests::rig::Kafka;

use crate::{
    delivery::{alarms, published_windows},
    fleet::{Fleet, Process},
    workload::{self, BEGIN_MS, CONFIG, PIPELINE},
};

/// For a minute a process joins or leaves the group every two seconds; sessions are short, so that each is a rebalance of its own.
#[test]
fn a_rebalance_storm_stalls_nothing_and_loses_nothing() -> anyhow::Result<()> {
    const STORM: Duration = Duration::from_secs(60);
    let _alone = Kafka::alone();
    let fleet = Fleet::new("storm", PIPELINE, CONFIG)?;
    fleet.create("app", 4, false)?;
    let rows = workload::rows(4, 300, 5, 4);
    let expected = workload::windows(&rows);
    let steady = fleet.start(&[])?;
    let mut guest: Option<Process> = None;
    let (began, mut fed, mut changes) = (Instant::now(), 0, 0);
    let mut closed = Vec::new();
    while began.elapsed() < STORM {
        guest = match guest.take() {
            Some(leaving) => {
                ensure!(leaving.terminate()? == 0, "who leaves drains");
                None
            }
            None => Some(fleet.start(&[])?),
        };
        changes += 1;
        let upto = (rows.len() as f64 * (began.elapsed().as_secs_f64() / STORM.as_secs_f64()).min(0.9)) as usize;
        fleet.feed("app", rows[fed..upto.max(fed)].iter().cloned())?;
        fed = upto.max(fed);
        let due = Duration::from_secs(2 * changes);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        closed.push(alarms(&fleet.read("anomalies")?));
    }
    drop(guest);
    ensure!(changes >= 20, "only {changes} changes of the group in a minute");
    // A stall would be as many windows at the end of the storm as at its half.
    ensure!(
        closed[closed.len() - 1] > closed[closed.len() / 2],
        "nothing was published in the storm: {closed:?}"
    );
    fleet.feed("app", rows[fed..].iter().cloned())?;
    let found = fleet.wait("anomalies", Duration::from_secs(120), |found| {
        alarms(found) >= expected.len()
    })?;
    assert_eq!(published_windows(&found), expected);
    ensure!(
        fleet.read("late")?.is_empty() && fleet.read("dead_letters")?.is_empty(),
        "no row was bad or late"
    );
    println!(
        "{changes} changes of the group in {:?}; windows meanwhile: {closed:?}",
        began.elapsed()
    );
    assert_eq!(steady.terminate()?, 0);
    Ok(())
}

/// The greatest resident memory of a process so far, bytes.
fn peak_bytes(process: &Process) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.child.id()))?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("VmHWM")?;
    let kilobytes: u64 = peak.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes << 10)
}

/// A million groups live at once, under a budget that publishes early: every row is counted, and memory stays within 1.5 GB.
#[test]
fn a_million_keys_under_a_budget_stay_within_their_memory() -> anyhow::Result<()> {
    const KEYS: usize = 1_000_000;
    let _alone = Kafka::alone();
    let pipeline = "
        CREATE SOURCE app (service STRING, ms DOUBLE, ts TIMESTAMP(3),
          WATERMARK FOR ts AS ts - INTERVAL '2' SECOND IDLE TIMEOUT INTERVAL '10' MINUTE)
        WITH (topic = '{prefix}app', format = 'json', 'scan.startup.mode' = 'earliest');
        CREATE FEATURE VIEW load ON STATE LIMIT EVICT AT 16 MB AS
        SELECT service, window_start, window_end, count(*) AS n, sum(ms) AS total
        FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY service, window_start, window_end
        HAVING service LIKE '%0000';
        CREATE SINK rows FROM load WITH (topic = '{prefix}rows', format = 'json');";
    let fleet = Fleet::new("million", pipeline, "")?;
    fleet.create("app", 2, false)?;
    let process = fleet.start(&[])?;
    let row = |key: usize, ts: i64| format!("{{\"service\":\"service-{key:07}\",\"ms\":1.5,\"ts\":{ts}}}").into_bytes();
    for chunk in 0..KEYS / 10_000 {
        let keys = chunk * 10_000..(chunk + 1) * 10_000;
        let second = chunk as i64 * 60 / 100;
        fleet.feed(
            "app",
            keys.map(|key| (key as i32 % 2, row(key, BEGIN_MS + second * 1_000))),
        )?;
    }
    fleet.feed("app", (0..2).map(|partition| (partition, row(0, BEGIN_MS + 90_000))))?;
    let found = fleet.wait("rows", Duration::from_secs(300), |found| found.len() >= KEYS / 10_000)?;
    ensure!(found.len() == KEYS / 10_000, "{} rows", found.len());
    for row in &found {
        let row = row.json();
        ensure!(
            (row["n"].as_i64(), row["total"].as_f64()) == (Some(1), Some(1.5)),
            "{row}"
        );
    }
    let peak = peak_bytes(&process)?;
    println!("{KEYS} live keys: {} MB at most", peak >> 20);
    ensure!(peak <= 1_500 << 20, "{} MB", peak >> 20);
    ensure!(fleet.read("dead_letters")?.is_empty(), "no row was refused");
    assert_eq!(process.terminate()?, 0);
    Ok(())
}

/// The Collector writes without a key, so that a service's points are on every partition; a record holds several services.
#[test]
fn a_collector_with_its_defaults_gives_right_windows_over_all_partitions() -> anyhow::Result<()> {
    let pipeline = "
        CREATE SOURCE otel WATERMARK FOR event_time AS event_time - INTERVAL '2' SECOND IDLE TIMEOUT INTERVAL '10' MINUTE
        WITH (topic = '{prefix}otlp_metrics', format = 'otlp_metrics', 'scan.startup.mode' = 'earliest');
        CREATE FEATURE VIEW load AS
        SELECT service_name, window_start, count(*) AS n, sum(value) AS total
        FROM TUMBLE(TABLE otel, DESCRIPTOR(event_time), INTERVAL '10' SECOND)
        WHERE metric_name = 'queue.length' GROUP BY service_name, window_start;
        CREATE SINK rows FROM load WITH (topic = '{prefix}rows', format = 'json');";
    let fleet = Fleet::new("collector", pipeline, "")?;
    fleet.create("otlp_metrics", 4, false)?;
    let mut expected: BTreeMap<(String, i64), (i64, f64)> = BTreeMap::new();
    let mut records = Vec::new();
    for second in 0..60 {
        let at_ms = BEGIN_MS + second * 1_000;
        let mut resources = Vec::new();
        for service in 0..3 {
            let (name, value) = (format!("s{service}"), (second * 7 + service) % 50);
            let window = expected
                .entry((name.clone(), at_ms - at_ms.rem_euclid(10_000)))
                .or_default();
            *window = (window.0 + 1, window.1 + value as f64);
            resources.push(resource(&name, at_ms, &[("queue.length", value), ("threads", 8)]));
        }
        let partition = (second * 5 % 4) as i32;
        records.push((
            partition,
            MetricsData {
                resource_metrics: resources,
            }
            .encode_to_vec(),
        ));
    }
    let end = |partition: i32| {
        let resource_metrics = vec![resource("end", BEGIN_MS + 72_000, &[("queue.length", 0)])];
        (partition, MetricsData { resource_metrics }.encode_to_vec())
    };
    records.extend((0..4).map(end));
    fleet.feed("otlp_metrics", records)?;
    let processes = [fleet.start(&[])?, fleet.start(&[])?];
    let found = fleet.wait("rows", Duration::from_secs(60), |found| found.len() >= expected.len())?;
    let mut windows = BTreeMap::new();
    for row in &found {
        let row = row.json();
        let start = protocol::time::from_rfc3339(row["window_start"].as_str().unwrap_or_default()).context("a time")?;
        let counted = (
            row["n"].as_i64().unwrap_or_default(),
            row["total"].as_f64().unwrap_or_default(),
        );
        let service = row["service_name"].as_str().unwrap_or_default().to_owned();
        ensure!(windows.insert((service, start), counted).is_none(), "twice: {row}");
    }
    assert_eq!(windows, expected);
    for process in processes {
        assert_eq!(process.terminate()?, 0);
    }
    Ok(())
}

fn resource(service: &str, at_ms: i64, gauges: &[(&str, i64)]) -> ResourceMetrics {
    let text = |value: &str| {
        Some(AnyValue {
            value: Some(any_value::Value::StringValue(value.to_owned())),
        })
    };
    let metrics = gauges.iter().map(|(name, value)| Metric {
        name: (*name).to_owned(),
        data: Some(Data::Gauge(Gauge {
            data_points: vec![NumberDataPoint {
                time_unix_nano: at_ms as u64 * 1_000_000,
                value: Some(number_data_point::Value::AsInt(*value)),
                ..Default::default()
            }],
        })),
        ..Default::default()
    });
    ResourceMetrics {
        resource: Some(Resource {
            attributes: vec![KeyValue {
                key: "service.name".into(),
                value: text(service),
                ..Default::default()
            }],
            ..Default::default()
        }),
        scope_metrics: vec![ScopeMetrics {
            scope: Some(InstrumentationScope {
                name: "app".into(),
                ..Default::default()
            }),
            metrics: metrics.collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}
