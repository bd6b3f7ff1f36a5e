//! Pipelines that are edited while processes run, on a real Kafka: what is applied goes over without a gap or a double row, through a
//! SIGKILL; what is not valid changes nothing.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use protocol::cloudevent;
use serde_json::Value;

use crate::{
    fleet::{Fleet, Published},
    programs::program,
    workload::{self, CONFIG, PIPELINE},
};

const WIDER: (&str, &str) = ("INTERVAL '10' SECOND)", "INTERVAL '20' SECOND)");
const LOWER: (&str, &str) = ("(upper = 0)", "(upper = -1)");

/// What `homeostat` answers: exit code and everything it said.
fn homeostat(fleet: &Fleet, arguments: &[&str]) -> anyhow::Result<(i32, String)> {
    let done = program("homeostat")
        .args(arguments)
        .args(["--config", "homeostat.toml", "--by", "ada"])
        .env("KAFKA_BOOTSTRAP", &fleet.bootstrap)
        .current_dir(fleet.folder.path())
        .output()?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    Ok((done.status.code().unwrap_or(-1), said))
}

/// Writes the pipeline, edited, into a folder of its own or of the fleet's.
fn write(fleet: &Fleet, folder: &str, edits: &[(&str, &str)]) -> anyhow::Result<()> {
    let mut text = PIPELINE.replace("{prefix}", &fleet.prefix);
    for (from, to) in edits {
        ensure!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let folder = fleet.folder.path().join(folder).join("edits");
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join("pipeline.sql"), text)?)
}

/// (service, start) → (end, rows, sum).
type Windows = BTreeMap<(String, i64), (i64, i64, f64)>;

/// No window comes twice.
fn windows(anomalies: &[Published]) -> anyhow::Result<Windows> {
    let time = |value: &Value| protocol::time::from_rfc3339(value.as_str().unwrap_or_default()).unwrap_or_default();
    let mut windows = BTreeMap::new();
    for record in anomalies.iter().filter(|record| record.kind() == cloudevent::ANOMALY) {
        let data = record.json();
        let service = data["target"]["service"].as_str().unwrap_or_default().to_owned();
        if service == "end" {
            continue;
        }
        let number = |name: &str| data["features"][name].as_f64().unwrap_or_default();
        let window = (time(&data["window_end"]), number("n") as i64, number("total"));
        let double = windows.insert((service, time(&data["window_start"])), window);
        ensure!(double.is_none(), "a window was published twice: {data}");
    }
    Ok(windows)
}

/// Every window is whole, none overlaps another, and every row is in one.
fn are_exact(windows: &Windows, rows: &[(i32, Vec<u8>)]) -> anyhow::Result<()> {
    let mut read = Vec::new();
    for (_, row) in rows {
        let row: Value = serde_json::from_slice(row)?;
        let service = row["service"].as_str().unwrap_or_default().to_owned();
        if service != "end" {
            read.push((
                service,
                row["ts"].as_i64().unwrap_or_default(),
                row["ms"].as_f64().unwrap_or_default(),
            ));
        }
    }
    let mut last: Option<(&String, i64)> = None;
    for ((service, start), (end, n, total)) in windows {
        let within = read
            .iter()
            .filter(|(of, ts, _)| of == service && (*start..*end).contains(ts));
        let (count, sum) = within.fold((0, 0.0), |(count, sum), (_, _, ms)| (count + 1, sum + ms));
        ensure!(
            (count, sum) == (*n, *total),
            "{service} {start} to {end}: {n}, {total}, not {count}, {sum}"
        );
        ensure!(
            last.is_none_or(|last| last.0 != service || last.1 <= *start),
            "{service} {start} overlaps"
        );
        last = Some((service, *end));
    }
    let counted: i64 = windows.values().map(|(_, n, _)| n).sum();
    ensure!(
        counted == read.len() as i64,
        "{counted} of {} rows are in windows",
        read.len()
    );
    Ok(())
}

fn log_says(log: &Path, what: &str, patience: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    while !fs::read_to_string(log)?.contains(what) {
        ensure!(
            Instant::now() < deadline,
            "{what:?} is not in {}",
            fs::read_to_string(log)?
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

#[test]
fn an_applied_edit_loses_no_window_and_doubles_none_through_a_kill_and_a_rollback() -> anyhow::Result<()> {
    let fleet = Fleet::new("edits", PIPELINE, CONFIG)?;
    fleet.create("app", 4, false)?;
    let rows = workload::rows(4, 320, 5, 4);
    let part = rows.len() / 4;
    let mut first = fleet.start(&[])?;
    let second = fleet.start(&[])?;
    fleet.feed("app", rows[..part].iter().cloned())?;
    fleet.wait("anomalies", Duration::from_secs(60), |found| found.len() > 10)?;

    // What is not valid changes nothing and says why.
    write(&fleet, "wrong", &[("sum(ms)", "sun(ms)")])?;
    let (code, said) = homeostat(&fleet, &["apply", "wrong"])?;
    ensure!(code == 2 && said.contains("sun"), "{code} {said}");
    let (_, listed) = homeostat(&fleet, &["rollback", "--list"])?;
    ensure!(listed.lines().count() == 1 && listed.starts_with("* 1 "), "{listed}");

    // A threshold, then a window, with a process that dies while it goes over.
    write(&fleet, "lower", &[LOWER])?;
    let (code, said) = homeostat(&fleet, &["apply", "lower", "--reason", "see more"])?;
    ensure!(
        code == 0 && said.contains("~ detector edits.every") && said.contains("version 2 is applied"),
        "{said}"
    );
    fleet.feed("app", rows[part..2 * part].iter().cloned())?;
    write(&fleet, "wider", &[LOWER, WIDER])?;
    let (code, said) = homeostat(&fleet, &["apply", "wider"])?;
    ensure!(code == 0 && said.contains("view edits.load"), "{said}");
    std::thread::sleep(Duration::from_millis(1_500));
    first.child.kill()?;
    first.child.wait()?;
    let third = fleet.start(&[])?;
    log_says(&third.log, "pipelines in force version=3", Duration::from_secs(60))?;
    fleet.feed("app", rows[2 * part..3 * part].iter().cloned())?;
    let wide = |found: &[Published]| {
        let windows = windows(found).unwrap_or_default();
        windows
            .iter()
            .filter(|((_, start), (end, _, _))| end - start == 20_000)
            .count()
    };
    fleet.wait("anomalies", Duration::from_secs(90), |found| wide(found) > 4)?;

    let (code, said) = homeostat(&fleet, &["rollback"])?;
    ensure!(code == 0 && said.contains("version 4 is applied"), "{said}");
    std::thread::sleep(Duration::from_secs(5));
    fleet.feed("app", rows[3 * part..].iter().cloned())?;
    let all = rows.len() as i64 - 4;
    let counted = |found: &[Published]| windows(found).map_or(i64::MAX, |all| all.values().map(|(_, n, _)| n).sum());
    let found = fleet.wait("anomalies", Duration::from_secs(120), |found| counted(found) >= all)?;
    are_exact(&windows(&found)?, &rows)?;
    let (_, listed) = homeostat(&fleet, &["rollback", "--list"])?;
    ensure!(
        listed
            .lines()
            .last()
            .is_some_and(|line| line.contains("by ada, as version 2")),
        "{listed}"
    );
    ensure!(
        fleet.read("late")?.is_empty() && fleet.read("dead_letters")?.is_empty(),
        "no row was bad or late"
    );
    assert_eq!(second.terminate()?, 0);
    assert_eq!(third.terminate()?, 0);
    are_exact(&windows(&fleet.read("anomalies")?)?, &rows)
}

/// Every end has one window per service, which equals what a batch over all rows makes of it; the lengths, in the order of their ends.
fn every_end_is_exact(anomalies: &[Published], rows: &[(i32, Vec<u8>)]) -> anyhow::Result<Vec<i64>> {
    let mut read = Vec::new();
    for (_, row) in rows {
        let row: Value = serde_json::from_slice(row)?;
        let service = row["service"].as_str().unwrap_or_default().to_owned();
        let (ts, ms) = (
            row["ts"].as_i64().unwrap_or_default(),
            row["ms"].as_f64().unwrap_or_default(),
        );
        read.push((service, ts, ms));
    }
    let time = |value: &Value| protocol::time::from_rfc3339(value.as_str().unwrap_or_default()).unwrap_or_default();
    let mut ends: BTreeMap<String, BTreeMap<i64, i64>> = BTreeMap::new();
    for record in anomalies.iter().filter(|record| record.kind() == cloudevent::ANOMALY) {
        let data = record.json();
        let service = data["target"]["service"].as_str().unwrap_or_default().to_owned();
        if service == "end" {
            continue;
        }
        let (start, end) = (time(&data["window_start"]), time(&data["window_end"]));
        let within = read
            .iter()
            .filter(|(of, ts, _)| *of == service && (start..end).contains(ts));
        let (count, sum) = within.fold((0, 0.0), |(count, sum), (_, _, ms)| (count + 1, sum + ms));
        let found = (data["features"]["n"].as_f64(), data["features"]["total"].as_f64());
        ensure!(
            found == (Some(f64::from(count)), Some(sum)),
            "{service} {start} to {end}: {found:?}, not {count}, {sum}"
        );
        let double = ends.entry(service).or_default().insert(end, end - start);
        ensure!(double.is_none(), "two windows of one service end at one time: {data}");
    }
    for (service, ends) in &ends {
        let ends: Vec<i64> = ends.keys().copied().collect();
        ensure!(
            ends.windows(2).all(|pair| pair[1] - pair[0] == 10_000),
            "{service} lacks a window: {ends:?}"
        );
    }
    let first = ends.into_values().next().unwrap_or_default();
    Ok(first.into_values().collect())
}

#[test]
fn an_edited_view_is_whole_at_once_though_processes_are_killed_while_it_is_backfilled() -> anyhow::Result<()> {
    let fleet = Fleet::new("edits", PIPELINE, CONFIG)?;
    fleet.create("app", 4, false)?;
    let rows = workload::rows(4, 320, 5, 4);
    let part = rows.len() / 4;
    let mut first = fleet.start(&[])?;
    let mut second = fleet.start(&[])?;
    fleet.feed("app", rows[..2 * part].iter().cloned())?;
    fleet.wait("anomalies", Duration::from_secs(120), |found| found.len() > 40)?;
    // Two minutes, of which there are more in the log than are yet to come.
    let sliding = (
        "TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '10' SECOND)",
        "HOP(TABLE app, DESCRIPTOR(ts), INTERVAL '10' SECOND, INTERVAL '2' MINUTE)",
    );
    write(&fleet, "sliding", &[sliding])?;
    let (code, said) = homeostat(&fleet, &["apply", "sliding"])?;
    ensure!(code == 0 && said.contains("view edits.load is backfilled"), "{said}");
    first.child.kill()?;
    first.child.wait()?;
    let third = fleet.start(&[])?;
    std::thread::sleep(Duration::from_millis(1_500));
    second.child.kill()?;
    second.child.wait()?;
    log_says(&third.log, "backfill is done", Duration::from_secs(120))?;
    fleet.feed("app", rows[2 * part..3 * part].iter().cloned())?;
    // Without the past there would be none before the end of the rows.
    let wide = |found: &[Published]| every_end_is_exact(found, &rows).is_ok_and(|lengths| lengths.contains(&120_000));
    fleet.wait("anomalies", Duration::from_secs(120), wide)?;
    fleet.feed("app", rows[3 * part..].iter().cloned())?;
    let all = |found: &[Published]| every_end_is_exact(found, &rows).is_ok_and(|lengths| lengths.len() >= 32);
    let found = fleet.wait("anomalies", Duration::from_secs(120), all)?;
    let lengths = every_end_is_exact(&found, &rows)?;
    ensure!(lengths.is_sorted(), "one version follows the other: {lengths:?}");
    let narrow = lengths.iter().filter(|length| **length == 10_000).count();
    ensure!(
        (10..=20).contains(&narrow),
        "the new version speaks from the edit on: {lengths:?}"
    );
    ensure!(
        fleet.read("late")?.is_empty() && fleet.read("dead_letters")?.is_empty(),
        "no row was bad or late"
    );
    assert_eq!(third.terminate()?, 0);
    Ok(())
}

#[test]
fn a_watched_folder_is_applied_when_it_changes_and_never_when_it_is_wrong() -> anyhow::Result<()> {
    let fleet = Fleet::new("watched", PIPELINE, CONFIG)?;
    fs::rename(
        fleet.folder.path().join("pipelines/watched"),
        fleet.folder.path().join("pipelines/edits"),
    )?;
    fleet.create("app", 2, false)?;
    let rows = workload::rows(3, 120, 5, 2);
    let half = rows.len() / 2;
    let process = fleet.start_with(&["--watch"], &[])?;
    fleet.feed("app", rows[..half].iter().cloned())?;
    fleet.wait("anomalies", Duration::from_secs(60), |found| found.len() > 5)?;
    write(&fleet, "pipelines", &[("count(*) AS n", "count(*) AS")])?;
    log_says(&process.log, "are not applied", Duration::from_secs(20))?;
    write(&fleet, "pipelines", &[LOWER])?;
    log_says(
        &process.log,
        "the folder's pipelines are applied version=2",
        Duration::from_secs(20),
    )?;
    fleet.feed("app", rows[half..].iter().cloned())?;
    let all = rows.len() as i64 - 2;
    let counted = |found: &[Published]| windows(found).map_or(i64::MAX, |all| all.values().map(|(_, n, _)| n).sum());
    let found = fleet.wait("anomalies", Duration::from_secs(60), |found| counted(found) >= all)?;
    are_exact(&windows(&found)?, &rows)?;
    let (_, listed) = homeostat(&fleet, &["rollback", "--list"])?;
    let newest = listed.lines().last().context("versions")?;
    ensure!(
        newest.starts_with("* 2 ") && newest.contains("by homeostat run"),
        "{listed}"
    );
    assert_eq!(process.terminate()?, 0);
    Ok(())
}

/// Heartbeats and alerts, which have the broker's time; every window is written out.
const BROKER_TIMED: &str = "
CREATE SOURCE beats WATERMARK FOR event_time AS event_time - INTERVAL '200' MILLISECOND IDLE TIMEOUT INTERVAL '2' SECOND
WITH (topic = '{prefix}beats', format = 'heartbeat', 'scan.startup.mode' = 'earliest');
CREATE SOURCE alerts WATERMARK FOR event_time AS event_time - INTERVAL '200' MILLISECOND IDLE TIMEOUT INTERVAL '2' SECOND
WITH (topic = '{prefix}alerts', format = 'alertmanager', 'scan.startup.mode' = 'earliest');

CREATE FEATURE VIEW beating AS
SELECT service, window_start, window_end, count(*) AS n
FROM TUMBLE(TABLE beats, DESCRIPTOR(event_time), INTERVAL '2' SECOND)
GROUP BY service, window_start, window_end;
CREATE FEATURE VIEW firing AS
SELECT labels['service'] AS service, window_start, window_end, count(*) AS n
FROM TUMBLE(TABLE alerts, DESCRIPTOR(event_time), INTERVAL '2' SECOND)
GROUP BY labels['service'], window_start, window_end;

CREATE SINK all_beating FROM beating WITH (topic = '{prefix}beating');
CREATE SINK all_firing FROM firing WITH (topic = '{prefix}firing');
";

/// For each row of a view: how long its window is, and when it ends. Every row counts what the broker took in within its window.
fn counts_by_broker_time(rows: &[Published], records: &[(String, i64)]) -> anyhow::Result<Vec<(i64, i64)>> {
    let mut windows = Vec::new();
    for row in rows.iter().map(Published::json) {
        let time =
            |name: &str| protocol::time::from_rfc3339(row[name].as_str().unwrap_or_default()).unwrap_or_default();
        let (start, end) = (time("window_start"), time("window_end"));
        let within = records
            .iter()
            .filter(|(service, taken)| row["service"] == **service && (start..end).contains(taken));
        let (counted, n) = (within.count() as i64, row["n"].as_i64().unwrap_or_default());
        ensure!(counted == n, "{row} counts {n}, not {counted}");
        windows.push((end - start, end));
    }
    Ok(windows)
}

#[test]
fn heartbeats_and_alerts_are_read_again_by_the_time_at_which_the_broker_took_them() -> anyhow::Result<()> {
    let fleet = Fleet::new("timed", BROKER_TIMED, CONFIG)?;
    fleet.create("beats", 2, true)?;
    fleet.create("alerts", 2, true)?;
    let beat = |service: &str| format!("{{\"service\":\"{service}\"}}");
    let alert = |service: &str| {
        let labels = format!("{{\"alertname\":\"Slow\",\"service\":\"{service}\"}}");
        // The producer's clock is wrong by years.
        let one = format!("{{\"status\":\"firing\",\"labels\":{labels},\"startsAt\":\"2020-01-01T00:00:00Z\"}}");
        format!("{{\"status\":\"firing\",\"alerts\":[{one}]}}")
    };
    let rounds = |count: usize, text: &dyn Fn(&str) -> String| -> Vec<[(i32, Vec<u8>); 2]> {
        let round = |round| [0, 1].map(|at| (at as i32, text(&format!("s{}", (round + at) % 3)).into_bytes()));
        (0..count).map(round).collect()
    };
    let speak = |count: usize| -> anyhow::Result<()> {
        let slowly = |topic, rounds: Vec<[(i32, Vec<u8>); 2]>| {
            let records = rounds.into_iter().flat_map(|round| {
                std::thread::sleep(Duration::from_millis(150));
                round
            });
            fleet.feed(topic, records)
        };
        let (beats, alerts) = (rounds(count, &beat), rounds(count, &alert));
        std::thread::scope(|scope| {
            let beating = scope.spawn(|| slowly("beats", beats));
            slowly("alerts", alerts)?;
            beating.join().expect("the thread does not panic")
        })
    };
    let process = fleet.start(&[])?;
    speak(40)?;
    for (sink, windows) in [("beating", 3), ("firing", 3)] {
        fleet.wait(sink, Duration::from_secs(60), |found| found.len() >= windows)?;
    }
    let folder = fleet.folder.path().join("wide/timed");
    fs::create_dir_all(&folder)?;
    let wide = BROKER_TIMED
        .replace("TUMBLE(", "HOP(")
        .replace("INTERVAL '2' SECOND)", "INTERVAL '2' SECOND, INTERVAL '40' SECOND)");
    fs::write(folder.join("pipeline.sql"), wide.replace("{prefix}", &fleet.prefix))?;
    let (code, said) = homeostat(&fleet, &["apply", "wide"])?;
    for view in ["beating", "firing"] {
        ensure!(
            code == 0 && said.contains(&format!("view timed.{view} is backfilled")),
            "{said}"
        );
    }
    let edited_ms = fleet
        .read("beats")?
        .iter()
        .map(|record| record.timestamp_ms)
        .max()
        .context("beats")?;
    for (records, sink) in [("beats", "beating"), ("alerts", "firing")] {
        // Windows close while somebody speaks.
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            speak(10)?;
            let taken: Vec<(String, i64)> = fleet
                .read(records)?
                .iter()
                .map(|record| {
                    let data = record.json();
                    let service = data["service"]
                        .as_str()
                        .or(data["alerts"][0]["labels"]["service"].as_str());
                    (service.unwrap_or_default().to_owned(), record.timestamp_ms)
                })
                .collect();
            let windows = counts_by_broker_time(&fleet.read(sink)?, &taken)?;
            if windows
                .iter()
                .any(|(length, end)| *length == 40_000 && *end > edited_ms)
            {
                let first_ms = taken.iter().map(|(_, taken)| *taken).min().context("records")?;
                let reaches_back = |(length, end): &&(i64, i64)| *length == 40_000 && end - length <= first_ms;
                ensure!(
                    windows.iter().any(|window| reaches_back(&window)),
                    "no window holds the past: {windows:?}"
                );
                break;
            }
            ensure!(Instant::now() < deadline, "{sink}: no wide window yet: {windows:?}");
        }
    }
    ensure!(
        fleet.read("late")?.is_empty() && fleet.read("dead_letters")?.is_empty(),
        "no record was bad or late"
    );
    assert_eq!(process.terminate()?, 0);
    Ok(())
}
