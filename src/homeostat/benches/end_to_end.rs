//! Records per second from a filled Kafka topic to published windows, beside a raw consumer of the same topic in the same
//! run: `cargo bench --workspace --bench end_to_end`.
//!
//! The topic holds JSON in four partitions; the program is `homeostat run` with its default settings and a view of one TUMBLE of 10 s
//! per service and metric, whose every window is published and checked. `RECORDS` and `ROUNDS` change the size. Kafka is the one that
//! `KAFKA_BOOTSTRAP` names, or one started here, which shares the processors with what is measured: compare, do not add.

mod program;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use kafka::{Broker, ConsumerConfig, Polled, ProducerConfig, TopicConfig, partitions_of};
use program::Program;
use protocol::{Batch, Output, cloudevent};
use tests::rig;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const PARTITIONS: i32 = 4;
const SERVICES: usize = 100;
const METRICS: [&str; 5] = ["cpu.usage", "http.latency", "http.errors", "memory.used", "queue.depth"];
const BEGIN_MS: i64 = 1_700_000_000_000;
const RECORDS_PER_MS: i64 = 16;
const WINDOW_MS: i64 = 10_000;
const PATIENCE: Duration = Duration::from_secs(180);

const PIPELINE: &str = "
CREATE SOURCE app (service STRING, metric STRING, value DOUBLE, ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '2' SECOND IDLE TIMEOUT INTERVAL '10' MINUTE MAX FUTURE SKEW INTERVAL '1' DAY)
WITH (connector = 'kafka', topic = '{prefix}app', format = 'json', 'scan.startup.mode' = 'earliest');

CREATE FEATURE VIEW load AS
SELECT service, metric, window_start, window_end, count(*) AS n, avg(value) AS mean, max(value) AS most, min(value) AS least
FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '10' SECOND)
GROUP BY service, metric, window_start, window_end;

CREATE DETECTOR every ON load KEY (service, metric) FEATURES (n, mean, most, least) USING static_threshold WITH (upper = -1);
";

fn main() -> anyhow::Result<()> {
    let number = |name: &str, or: usize| std::env::var(name).map_or(Ok(or), |text| text.parse());
    let records = number("RECORDS", 4_000_000).context("RECORDS is a number")?;
    let rounds = number("ROUNDS", 3).context("ROUNDS is a number")?.max(1);
    let broker: Arc<dyn Broker> = rig::Kafka::shared().broker()?;
    let prefix = format!("bench-{}.", std::process::id());
    let topic = format!("{prefix}app");
    broker.ensure_topics(&[TopicConfig::new(&topic, PARTITIONS)])?;
    fill(&*broker, &topic, records)?;
    println!("\n{records} JSON records of {PARTITIONS} partitions on a real Kafka, {rounds} rounds, medians");
    let (mut raw, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        raw.push(drain(&*broker, &topic)?);
        ours.push(run(&broker, &prefix, round, records)?);
    }
    let raw = median(raw.into_iter().map(|seconds| records as f64 / seconds));
    let of = |value: fn(&Ran) -> f64| median(ours.iter().map(value));
    let (drained, whole) = (of(|ran| ran.records_per_s), of(|ran| ran.whole_s));
    println!("raw consumer, payload untouched   {:>8.2} M records/s", raw / 1e6);
    println!(
        "homeostat run, while draining     {:>8.2} M records/s   {:.2} of raw",
        drained / 1e6,
        drained / raw
    );
    println!("process start to last window      {:>8.2} s", whole);
    println!(
        "processor time                    {:>8.3} µs a record, all of its threads",
        of(|ran| ran.cpu_us)
    );
    println!("peak resident memory              {:>8.0} MB", of(|ran| ran.peak_mb));
    println!(
        "windows                           {:>8} each checked against the records",
        ours[0].windows
    );
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What record `n` says: its partition, service, metric, value and time, without regularity that a branch predictor could learn.
fn record(n: usize) -> (i32, usize, usize, f64, i64) {
    let mut draw = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    draw = (draw ^ (draw >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    draw ^= draw >> 32;
    let ts = BEGIN_MS + n as i64 / RECORDS_PER_MS - (draw >> 20) as i64 % 500;
    let value = ((draw >> 8) % 1_000_000) as f64 / 100.0;
    (
        (draw % 4) as i32,
        (draw >> 33) as usize % SERVICES,
        (draw >> 45) as usize % METRICS.len(),
        value,
        ts,
    )
}

fn json(n: usize) -> Vec<u8> {
    let (_, service, metric, value, ts) = record(n);
    let metric = METRICS[metric];
    format!(r#"{{"ts":{ts},"service":"svc-{service:04}","metric":"{metric}","value":{value}}}"#).into_bytes()
}

/// One row far in the future of each partition, so that every window closes.
fn closing(records: usize) -> Vec<u8> {
    let ts = BEGIN_MS + records as i64 / RECORDS_PER_MS + 60_000;
    format!(r#"{{"ts":{ts},"service":"end","metric":"end","value":0}}"#).into_bytes()
}

/// (service, metric, window start) → rows.
fn windows(records: usize) -> BTreeMap<(usize, usize, i64), u64> {
    let mut windows = BTreeMap::new();
    for n in 0..records {
        let (_, service, metric, _, ts) = record(n);
        *windows
            .entry((service, metric, ts - ts.rem_euclid(WINDOW_MS)))
            .or_default() += 1;
    }
    windows
}

fn fill(broker: &dyn Broker, topic: &str, records: usize) -> anyhow::Result<()> {
    let mut producer = broker.producer(&ProducerConfig::new("fill"))?;
    let topic: Arc<str> = topic.into();
    let mut send = |partition: i32, value: Vec<u8>| -> anyhow::Result<()> {
        let output = Output {
            topic: Arc::clone(&topic),
            partition: Some(partition),
            key: None,
            value: Some(value),
            headers: Vec::new(),
        };
        // A full queue drains.
        while let Err(error) = producer.send(&output) {
            ensure!(error.class() == kafka::Class::Retriable, "{error}");
        }
        Ok(())
    };
    (0..records).try_for_each(|n| send(record(n).0, json(n)))?;
    (0..PARTITIONS).try_for_each(|partition| send(partition, closing(records)))?;
    Ok(producer.flush()?)
}

/// Seconds from the first record to the last for one consumer that looks at nothing.
fn drain(broker: &dyn Broker, topic: &str) -> anyhow::Result<f64> {
    let partitions = partitions_of(topic, PARTITIONS);
    let mut consumer = broker.consumer(&ConsumerConfig::new("raw", None))?;
    let mut ends = Vec::new();
    for partition in &partitions {
        ends.push((partition.clone(), broker.watermarks(partition)?.1));
    }
    consumer.assign(
        &partitions
            .iter()
            .map(|partition| (partition.clone(), 0))
            .collect::<Vec<_>>(),
    )?;
    let mut batch = Batch::default();
    let mut first = None;
    while ends
        .iter()
        .any(|(partition, end)| consumer.position(partition) < Some(*end))
    {
        if consumer.poll(Duration::from_millis(100), &mut batch)? == Polled::Records {
            first.get_or_insert_with(Instant::now);
        }
    }
    Ok(first.context("the topic is empty")?.elapsed().as_secs_f64())
}

struct Ran {
    records_per_s: f64,
    whole_s: f64,
    cpu_us: f64,
    peak_mb: f64,
    windows: usize,
}

/// One `homeostat run` over the whole topic, from its start to its last window.
fn run(broker: &Arc<dyn Broker>, prefix: &str, round: usize, records: usize) -> anyhow::Result<Ran> {
    let fleet = format!("{prefix}{round}.");
    let started = Instant::now();
    let process = Program::run(&PIPELINE.replace("{prefix}", prefix), &fleet)?;
    let records_per_s = progress(broker, &format!("{prefix}app"), &format!("{fleet}aggregate"), records)
        .with_context(|| process.said())?;
    let expected = windows(records);
    let found = published(&**broker, &format!("{fleet}anomalies"), expected.len())?;
    let whole_s = started.elapsed().as_secs_f64();
    ensure!(found == expected, "the published windows are not those of the records");
    let (cpu_s, peak_mb) = process.usage()?;
    Ok(Ran {
        records_per_s,
        whole_s,
        cpu_us: cpu_s * 1e6 / records as f64,
        peak_mb,
        windows: found.len(),
    })
}

/// Records per second between the first committed offsets seen and the last.
fn progress(broker: &Arc<dyn Broker>, topic: &str, group: &str, records: usize) -> anyhow::Result<f64> {
    let partitions = partitions_of(topic, PARTITIONS);
    let total = records as i64 + i64::from(PARTITIONS);
    let mut consumer = broker.consumer(&ConsumerConfig::new("watch", Some(group)))?;
    let (began, mut first) = (Instant::now(), None);
    loop {
        ensure!(
            began.elapsed() < PATIENCE,
            "the topic was not drained within {PATIENCE:?}"
        );
        let committed = match consumer.committed(&partitions, Duration::from_secs(1)) {
            Ok(committed) => committed
                .iter()
                .flatten()
                .map(|committed| committed.offset)
                .sum::<i64>(),
            // There is no group yet.
            Err(_) => 0,
        };
        let now = Instant::now();
        if committed > 0 {
            let (from, at) = *first.get_or_insert((committed, now));
            if committed >= total {
                return Ok((committed - from) as f64 / (now - at).as_secs_f64().max(1e-9));
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Every window on the topic, once so many are there.
fn published(broker: &dyn Broker, topic: &str, wanted: usize) -> anyhow::Result<BTreeMap<(usize, usize, i64), u64>> {
    let count = broker.partition_count(topic)?.context("the fleet made its topics")?;
    let mut consumer = broker.consumer(&ConsumerConfig::new("windows", None))?;
    let from: Vec<_> = partitions_of(topic, count)
        .into_iter()
        .map(|partition| (partition, 0))
        .collect();
    consumer.assign(&from)?;
    let (began, mut batch, mut found) = (Instant::now(), Batch::default(), BTreeMap::new());
    while found.len() < wanted {
        ensure!(began.elapsed() < PATIENCE, "{} of {wanted} windows came", found.len());
        consumer.poll(Duration::from_millis(100), &mut batch)?;
        for record in batch.iter() {
            if record.header("ce_type") != Some(cloudevent::ANOMALY.as_bytes()) {
                continue;
            }
            let data: serde_json::Value = serde_json::from_slice(record.value.context("an anomaly has data")?)?;
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            let service = text(&data["target"]["service"]);
            let Some(service) = service.strip_prefix("svc-").and_then(|number| number.parse().ok()) else {
                continue;
            };
            let metric = text(&data["target"]["metric"]);
            let metric = METRICS
                .iter()
                .position(|name| *name == metric)
                .context("a known metric")?;
            let start = protocol::time::from_rfc3339(&text(&data["window_start"])).context("a time")?;
            let rows = data["features"]["n"].as_f64().context("a count")? as u64;
            ensure!(
                found.insert((service, metric, start), rows).is_none(),
                "a window came twice: {data}"
            );
        }
    }
    Ok(found)
}
