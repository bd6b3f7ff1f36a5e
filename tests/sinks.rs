//! Invariants 1 and 5 for what sinks write, on a real Kafka: windows, sessions, early rows, a union of sources, rows joined
//! with a table in a topic, and judged rows are,
//! over a SIGKILL, what a replay of the same records gives, in every format of a sink.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::{Context, ensure};
use opentelemetry_proto::tonic::metrics::v1::{MetricsData, metric::Data, number_data_point};
use prost::Message;
use serde_json::Value;

use crate::{
    fleet::{Fleet, Published},
    programs::program,
    workload::{self, BEGIN_MS},
};

const PIPELINE: &str = "
CREATE SOURCE app (service STRING, ms DOUBLE, ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '2' SECOND IDLE TIMEOUT INTERVAL '10' MINUTE)
WITH (topic = '{prefix}app', format = 'json', 'scan.startup.mode' = 'earliest');
CREATE SOURCE jobs (job STRING, took_s DOUBLE, at TIMESTAMP(3),
  WATERMARK FOR at AS at - INTERVAL '2' SECOND IDLE TIMEOUT INTERVAL '10' MINUTE)
WITH (topic = '{prefix}jobs', format = 'json', 'scan.startup.mode' = 'earliest');

CREATE FEATURE VIEW load AS
SELECT service, window_start, window_end, count(*) AS n, sum(ms) AS total, avg(ms) AS mean
FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '10' SECOND) GROUP BY service, window_start, window_end;
CREATE FEATURE VIEW bursts AS
SELECT service, window_start, window_end, count(*) AS n, max(ms) AS worst
FROM SESSION(TABLE app, DESCRIPTOR(ts), INTERVAL '2' SECOND) GROUP BY service, window_start, window_end;
CREATE FEATURE VIEW so_far AS
SELECT service, window_start, count(*) AS n, sum(ms) AS total
FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '20' SECOND) GROUP BY service, window_start EMIT EVERY INTERVAL '5' SECOND;
CREATE FEATURE VIEW work AS
SELECT service, window_end, count(*) AS n, sum(ms) AS total
FROM HOP(TABLE (SELECT ts, service, ms FROM app UNION ALL SELECT at, job, took_s * 1000 FROM jobs), DESCRIPTOR(ts),
  INTERVAL '5' SECOND, INTERVAL '10' SECOND) GROUP BY service, window_end;
CREATE FEATURE VIEW judged AS
SELECT service, window_end, total,
  ML_DETECT_ANOMALIES(total, window_end, JSON_OBJECT('minTrainingSize' VALUE 3, 'confidencePercentage' VALUE 50))
    OVER (PARTITION BY service ORDER BY window_end) AS found
FROM load;

CREATE TABLE teams (service STRING, team STRING, since TIMESTAMP(3), PRIMARY KEY (service), WATERMARK FOR since AS since)
WITH (connector = 'kafka', topic = '{prefix}teams', format = 'json');
CREATE VIEW owned AS SELECT ts, t.team, ms FROM app LEFT JOIN teams FOR SYSTEM_TIME AS OF ts AS t ON app.service = t.service
WHERE app.service <> 'end';
CREATE FEATURE VIEW by_team AS
SELECT team, window_end, count(*) AS n, sum(ms) AS total
FROM TUMBLE(TABLE owned, DESCRIPTOR(ts), INTERVAL '10' SECOND) GROUP BY team, window_end;

CREATE SINK team_rows FROM by_team WITH (topic = '{prefix}by_team', format = 'json');
CREATE SINK load_rows FROM load WITH (topic = '{prefix}load', format = 'json');
CREATE SINK burst_rows FROM bursts WITH (topic = '{prefix}bursts', format = 'json');
CREATE SINK so_far_rows FROM so_far WITH (topic = '{prefix}so_far', format = 'json');
CREATE SINK work_rows FROM work WITH (topic = '{prefix}work', format = 'json');
CREATE SINK judged_rows FROM judged WITH (topic = '{prefix}judged', format = 'json');
CREATE SINK load_events FROM load WITH (topic = '{prefix}load_events', format = 'cloudevents');
CREATE SINK load_gauges FROM load WITH (topic = '{prefix}load_gauges', format = 'otlp_metrics');
CREATE SINK late_rows FROM LATE ROWS OF load WITH (topic = '{prefix}late_rows', format = 'json');
CREATE SINK bad_rows FROM DEAD LETTERS OF app WITH (topic = '{prefix}bad_rows', format = 'cloudevents');
";

const VIEWS: [&str; 6] = ["load", "bursts", "so_far", "work", "judged", "by_team"];
const CONFIG: &str = "[detect]\nstate_interval = \"5s\"\n";
const SECONDS: i64 = 80;

/// Rows of both topics. Services pause, each at its own seconds, so that sessions end; what is in the last rows closes
/// everything before.
fn feeds() -> [Vec<(i32, Vec<u8>)>; 2] {
    let pauses = |service: &str, second: i64| {
        let number = service.as_bytes()[1] as i64;
        (second + number * 3) % 20 < 4
    };
    let mut app = Vec::new();
    let mut jobs = Vec::new();
    for (partition, row) in workload::rows(4, SECONDS, 10, 4) {
        let value: Value = serde_json::from_slice(&row).expect("the workload is JSON");
        let (service, ts) = (
            value["service"].as_str().unwrap_or_default(),
            value["ts"].as_i64().unwrap_or_default(),
        );
        if service == "end" || pauses(service, (ts - BEGIN_MS).div_euclid(1_000)) {
            continue;
        }
        if ts % 3 == 0 {
            let row = format!("{{\"job\":\"{service}\",\"took_s\":{},\"at\":{ts}}}", ts % 100);
            jobs.push((partition % 2, row.into_bytes()));
        }
        app.push((partition, row));
    }
    let end = BEGIN_MS + (SECONDS + 60) * 1_000;
    app.extend((0..4).map(|p| (p, format!("{{\"service\":\"end\",\"ms\":0,\"ts\":{end}}}").into_bytes())));
    jobs.extend((0..2).map(|p| (p, format!("{{\"job\":\"end\",\"took_s\":0,\"at\":{end}}}").into_bytes())));
    [app, jobs]
}

/// Who owns a service, known at the start, and what changes in the second half.
fn teams() -> [Vec<(i32, Vec<u8>)>; 2] {
    let row = |partition: i32, service: &str, team: &str, second: i64| {
        let since = BEGIN_MS + second * 1_000;
        let row = format!("{{\"service\":\"{service}\",\"team\":\"{team}\",\"since\":{since}}}");
        (partition, row.into_bytes())
    };
    let known = [row(0, "s0", "red", 0), row(1, "s1", "red", 0), row(1, "s1", "blue", 25)];
    [
        known.to_vec(),
        vec![row(0, "s0", "green", 65), row(1, "s1", "green", 70)],
    ]
}

/// Rows as text, each as often as it is there; those of the closing service apart.
fn counted(rows: impl Iterator<Item = Value>) -> BTreeMap<String, u32> {
    let mut counted = BTreeMap::new();
    for row in rows.filter(|row| row["service"] != "end") {
        *counted.entry(row.to_string()).or_default() += 1;
    }
    counted
}

fn replayed(
    fleet: &Fleet,
    feeds: &[Vec<(i32, Vec<u8>)>; 2],
) -> anyhow::Result<BTreeMap<&'static str, BTreeMap<String, u32>>> {
    let folder = fleet.folder.path();
    let mut command = program("homeostat");
    let pipeline = folder.join("pipelines").join("sinks").join("pipeline.sql");
    command
        .arg("replay")
        .arg("--pipeline")
        .arg(pipeline)
        .arg("--output")
        .arg(folder.join("replayed"));
    let teams = teams().concat();
    for (name, rows) in [("app", &feeds[0]), ("jobs", &feeds[1]), ("teams", &teams)] {
        let file = folder.join(format!("{name}.jsonl"));
        let lines: Vec<&[u8]> = rows.iter().map(|(_, row)| row.as_slice()).collect();
        fs::write(&file, lines.join(&b'\n'))?;
        command.arg("--source").arg(format!("{name}={}", file.display()));
    }
    let done = command.output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let read = |view: &&'static str| {
        let text = fs::read_to_string(Path::new(folder).join("replayed").join(format!("{view}.jsonl")))?;
        let rows = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("a row is JSON"));
        Ok((*view, counted(rows)))
    };
    VIEWS.iter().map(read).collect()
}

fn json(found: &[Published]) -> BTreeMap<String, u32> {
    counted(found.iter().map(Published::json))
}

#[test]
fn what_sinks_write_over_a_kill_is_what_a_replay_gives() -> anyhow::Result<()> {
    let fleet = Fleet::new("sinks", PIPELINE, CONFIG)?;
    fleet.create("app", 4, false)?;
    fleet.create("jobs", 2, false)?;
    fleet.create("teams", 3, false)?;
    let [known, changed] = teams();
    fleet.feed("teams", known)?;
    let feeds = feeds();
    let expected = replayed(&fleet, &feeds)?;
    let halves = feeds.each_ref().map(|rows| rows.split_at(rows.len() / 2));
    let first = fleet.start(&[])?;
    for (topic, (half, _)) in ["app", "jobs"].into_iter().zip(halves) {
        fleet.feed(topic, half.iter().cloned())?;
    }
    fleet.wait("work", Duration::from_secs(60), |found| found.len() > 10)?;
    // SIGKILL.
    drop(first);
    fleet.feed("teams", changed)?;
    let second = fleet.start(&[])?;
    for (topic, (_, half)) in ["app", "jobs"].into_iter().zip(halves) {
        fleet.feed(topic, half.iter().cloned())?;
    }
    // Nothing of these is a row in time.
    let late = format!("{{\"service\":\"tardy\",\"ms\":1,\"ts\":{BEGIN_MS}}}");
    fleet.feed("app", [(0, b"{\"service\":".to_vec()), (0, late.into_bytes())])?;
    for view in VIEWS {
        let rows: u32 = expected[view].values().sum();
        ensure!(rows > 0, "{view} has rows");
        let complete = |found: &[Published]| json(found).values().sum::<u32>() >= rows;
        let found = fleet.wait(view, Duration::from_secs(90), complete)?;
        assert_eq!(json(&found), expected[view], "{view}");
    }
    ensure!(expected["so_far"].keys().any(|row| row.contains("\"is_final\":false")));
    for team in ["red", "blue", "green"] {
        ensure!(expected["by_team"].keys().any(|row| row.contains(team)), "{team}");
    }
    ensure!(expected["judged"].keys().any(|row| row.contains("\"is_anomaly\":true")));
    fleet.wait("late_rows", Duration::from_secs(30), |found| !found.is_empty())?;
    ensure!(second.terminate()? == 0);
    let rows = expected["load"].values().sum::<u32>();
    assert_eq!(previewed(&fleet, rows)?, expected["load"]);

    let events = fleet.read("load_events")?;
    let ids: BTreeSet<String> = events.iter().map(|event| event.json()["id"].to_string()).collect();
    assert_eq!(ids.len(), events.len(), "an id is given once");
    assert_eq!(
        counted(events.iter().map(|event| event.json()["data"].clone())),
        expected["load"]
    );
    assert!(
        events
            .iter()
            .all(|event| event.headers["content-type"].starts_with("application/cloudevents+json"))
    );
    assert_eq!(gauges(&fleet.read("load_gauges")?)?, expected_gauges(&expected["load"]));

    let late = fleet.read("late_rows")?;
    assert_eq!(late.len(), 1);
    assert_eq!(late[0].json()["columns"]["service"], "tardy");
    let bad = fleet.read("bad_rows")?;
    assert_eq!(bad.len(), 1);
    assert_eq!(bad[0].json()["type"], "dev.homeostat.dead_letter.v1");
    assert_eq!(bad[0].json()["data"]["payload"], "{\"service\":");
    Ok(())
}

/// The first rows of `load` that a preview shows.
fn previewed(fleet: &Fleet, rows: u32) -> anyhow::Result<BTreeMap<String, u32>> {
    let folder = fleet.folder.path();
    let mut command = program("homeostat");
    command
        .arg("preview")
        .arg("--pipeline")
        .arg(folder.join("pipelines").join("sinks"));
    command.args([
        "--view",
        "load",
        "--from",
        "earliest",
        "--output",
        "json",
        "--limit",
        &rows.to_string(),
    ]);
    let done = command.env("KAFKA_BOOTSTRAP", &fleet.bootstrap).output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let text = String::from_utf8(done.stdout)?;
    Ok(counted(
        text.lines()
            .map(|line| serde_json::from_str(line).expect("a row is JSON")),
    ))
}

/// (metric, service, end of the window in nanoseconds) → value.
type Gauges = BTreeMap<(String, String, u64), f64>;

fn gauges(found: &[Published]) -> anyhow::Result<Gauges> {
    let mut gauges = Gauges::new();
    for record in found {
        let data = MetricsData::decode(record.value.as_deref().unwrap_or_default())?;
        let scopes = data.resource_metrics.iter().flat_map(|of| &of.scope_metrics);
        for metric in scopes.flat_map(|scope| &scope.metrics) {
            let Some(Data::Gauge(gauge)) = &metric.data else {
                continue;
            };
            let point = gauge.data_points.first().context("a data point")?;
            let service = format!("{:?}", point.attributes.first().and_then(|of| of.value.as_ref()));
            let service = service.split('"').nth(1).unwrap_or_default().to_owned();
            let value = match point.value {
                Some(number_data_point::Value::AsDouble(value)) => value,
                Some(number_data_point::Value::AsInt(value)) => value as f64,
                None => f64::NAN,
            };
            if service != "end" {
                let before = gauges.insert((metric.name.clone(), service, point.time_unix_nano), value);
                ensure!(before.is_none(), "{} was written twice", metric.name);
            }
        }
    }
    Ok(gauges)
}

fn expected_gauges(rows: &BTreeMap<String, u32>) -> Gauges {
    let rows = rows
        .keys()
        .map(|row| serde_json::from_str::<Value>(row).expect("a row is JSON"));
    rows.flat_map(|row| {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let end_ms = protocol::time::from_rfc3339(&text("window_end")).unwrap_or_default();
        ["n", "total", "mean"].map(|name| {
            let key = (format!("load.{name}"), text("service"), end_ms as u64 * 1_000_000);
            (key, row[name].as_f64().unwrap_or(f64::NAN))
        })
    })
    .collect()
}
