//! What sources say of themselves, on a real Kafka: where they begin, how records are compressed, records without a value, and partitions
//! that a topic is given later.

use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::ensure;
use kafka::{KafkaConfig, ProducerConfig};
use protocol::Output;

use crate::fleet::{Fleet, Published};

const MODES: [(&str, &str); 4] = [
    ("early", "'scan.startup.mode' = 'earliest'"),
    ("newest", "'scan.startup.mode' = 'latest'"),
    ("kept", "'scan.startup.mode' = 'group-offsets'"),
    (
        "timed",
        "'scan.startup.mode' = 'timestamp', 'scan.startup.timestamp-millis' = {timestamp}",
    ),
];
const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
const CONFIG: &str = "[stages]\naggregate = 1\n";
const BEGIN_MS: i64 = 1_790_000_000_000;

fn pipeline() -> String {
    let of = |(name, start): (&str, &str)| {
        format!(
            "CREATE SOURCE {name} (service STRING, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '1' SECOND IDLE TIMEOUT INTERVAL '3' SECOND)
             WITH (topic = '{{prefix}}{name}', format = 'json', {start});
             CREATE FEATURE VIEW of_{name} AS SELECT service, window_start, count(*) AS n
             FROM TUMBLE({name}, ts, INTERVAL '1' MINUTE) GROUP BY service, window_start;
             CREATE SINK rows_of_{name} FROM of_{name} WITH (topic = '{{prefix}}of_{name}');"
        )
    };
    let dead = "CREATE SINK dead FROM DEAD LETTERS OF early WITH (topic = '{prefix}dead');";
    MODES.map(of).concat() + dead
}

/// As many rows of a service, a second apart.
fn rows(service: &str, count: i64) -> Vec<(i32, Vec<u8>)> {
    let row = |at: i64| format!("{{\"service\":\"{service}\",\"ts\":{}}}", BEGIN_MS + at % 50 * 1_000).into_bytes();
    (0..count).map(|at| (at as i32 % 2, row(at))).collect()
}

/// Lets every window close, on each of so many partitions.
fn end(partitions: i32) -> impl Iterator<Item = (i32, Vec<u8>)> {
    let row = format!("{{\"service\":\"end\",\"ts\":{}}}", BEGIN_MS + 3_600_000);
    (0..partitions).map(move |partition| (partition, row.clone().into_bytes()))
}

/// By service, how many rows its windows have counted.
fn counted(found: &[Published]) -> BTreeMap<String, i64> {
    let mut counted = BTreeMap::new();
    for row in found.iter().map(Published::json) {
        let service = row["service"].as_str().unwrap_or_default().to_owned();
        *counted.entry(service).or_default() += row["n"].as_i64().unwrap_or_default();
    }
    counted
}

fn expected(services: &[(&str, i64)]) -> BTreeMap<String, i64> {
    services
        .iter()
        .map(|(service, count)| ((*service).to_owned(), *count))
        .collect()
}

#[test]
fn sources_begin_where_they_say_and_read_every_compression_and_partitions_that_come_later() -> anyhow::Result<()> {
    let fleet = Fleet::new("sources", "", CONFIG)?;
    for (name, _) in MODES {
        fleet.create(name, 2, false)?;
        fleet.feed(name, rows("before", 40))?;
    }
    thread::sleep(Duration::from_millis(50));
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    thread::sleep(Duration::from_millis(50));
    for (name, _) in MODES {
        fleet.feed(name, rows("between", 30))?;
    }
    let text = pipeline()
        .replace("{prefix}", &fleet.prefix)
        .replace("{timestamp}", &now_ms.to_string());
    fs::write(fleet.folder.path().join("pipelines/sources/pipeline.sql"), text)?;
    let process = fleet.start(&[])?;
    // Idle: all of the topics were assigned at once, so that each has its beginning by now.
    let begun = |found: &[Published]| counted(found).len() == 2;
    fleet.feed("early", end(2))?;
    let found = fleet.wait("of_early", Duration::from_secs(90), begun)?;
    ensure!(
        counted(&found) == expected(&[("before", 40), ("between", 30)]),
        "{:?}",
        counted(&found)
    );
    drop(process);

    // What comes later has windows of its own, after those that are closed.
    let later = |service: &str| {
        let row = |at: i64| {
            // So close to each other that none is late.
            let ts = BEGIN_MS + 7_200_000 + at * 10;
            format!(
                "{{\"service\":\"{service}\",\"ts\":{ts},\"filler\":\"{}\"}}",
                "filler".repeat(20)
            )
            .into_bytes()
        };
        (0..50).map(|at| (at as i32 % 2, row(at))).collect::<Vec<_>>()
    };
    for codec in CODECS {
        let mut config = KafkaConfig::new(&fleet.bootstrap);
        config.settings.insert("compression.type".into(), codec.into());
        config.settings.insert("linger.ms".into(), "50".into());
        fleet.feed_by(&kafka::Kafka::new(&config)?, "early", later(codec))?;
    }
    let mut producer = fleet.broker.producer(&ProducerConfig::new("test"))?;
    for value in [None, Some(Vec::new())] {
        producer.send(&Output {
            topic: fleet.topic("early").into(),
            partition: Some(0),
            key: Some(b"gone".to_vec()),
            value,
            headers: Vec::new(),
        })?;
    }
    producer.flush()?;
    let process = fleet.start(&[])?;
    let last = |partitions: i32| {
        let row = format!("{{\"service\":\"end\",\"ts\":{}}}", BEGIN_MS + 14_400_000);
        (0..partitions).map(move |partition| (partition, row.clone().into_bytes()))
    };
    for (name, _) in &MODES[1..] {
        fleet.feed(name, rows("after", 20))?;
        fleet.feed(name, end(2))?;
    }
    for (name, services) in [
        ("of_newest", &[("after", 20)][..]),
        ("of_kept", &[("after", 20)]),
        ("of_timed", &[("after", 20), ("between", 30)]),
    ] {
        let found = fleet.wait(name, Duration::from_secs(90), |found| {
            counted(found).contains_key("after")
        })?;
        ensure!(counted(&found) == expected(services), "{name}: {:?}", counted(&found));
    }

    kafka::Kafka::at(&fleet.bootstrap)?.grow(&fleet.topic("early"), 4)?;
    let grown = later("grown").into_iter().map(|(partition, row)| (partition + 2, row));
    fleet.feed("early", grown)?;
    // The group finds the partitions when it looks for them again; then everything closes.
    thread::sleep(Duration::from_secs(20));
    fleet.feed("early", last(4))?;
    let mut all = expected(&[("before", 40), ("between", 30), ("grown", 50), ("end", 2)]);
    all.extend(CODECS.map(|codec| (codec.to_owned(), 50)));
    let complete = |found: &[Published]| counted(found).len() >= all.len();
    let found = fleet.wait("of_early", Duration::from_secs(120), complete)?;
    ensure!(counted(&found) == all, "{:?}", counted(&found));
    ensure!(process.terminate()? == 0);
    let reasons: Vec<String> = fleet
        .read("dead")?
        .iter()
        .map(|letter| letter.json()["reason"].to_string())
        .collect();
    ensure!(reasons.len() == 2, "{reasons:?}");
    Ok(())
}
