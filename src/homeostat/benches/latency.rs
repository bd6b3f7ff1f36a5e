//! From the append of the record that lets the watermark pass to the anomaly in a reader's hand, while 100,000 records a second come
//! in: `cargo bench --workspace --bench latency`.
//!
//! Four partitions stamped by the broker, JSON, one TUMBLE of 1 s per service, every window of which is an anomaly; the program is
//! `homeostat run` with its default settings. A window can close when every partition holds a record at or behind its end: the append
//! times of those records are read back from the topic afterwards, the time of receipt is that of a read-committed consumer. Both are
//! the clock of one machine, in whole milliseconds. `RATE` (records a second) and `SECONDS` change the load.

mod program;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use kafka::{Broker, Clock, ConsumerConfig, Polled, ProducerConfig, SystemClock, TopicConfig, partitions_of};
use program::Program;
use protocol::{Batch, Output, cloudevent};
use tests::rig;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const PARTITIONS: i32 = 4;
const SERVICES: usize = 20;
/// Windows that begin within so many seconds of the first are left out: the program starts, joins its groups, catches up.
const WARM_UP_MS: i64 = 10_000;
/// As clients of many services batch: one request per record or two would measure the broker.
const STEP: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(30);

const PIPELINE: &str = "
CREATE SOURCE app (service STRING, value DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '0' SECOND)
WITH (topic = '{topic}', format = 'json', 'scan.startup.mode' = 'earliest');

CREATE FEATURE VIEW load AS
SELECT service, window_end, count(*) AS n, avg(value) AS mean
FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '1' SECOND)
GROUP BY service, window_start, window_end;

CREATE DETECTOR every ON load KEY (service) FEATURES (n, mean) USING static_threshold WITH (upper = -1);
";

fn main() -> anyhow::Result<()> {
    let number = |name: &str, or: usize| std::env::var(name).map_or(Ok(or), |text| text.parse());
    let rate = number("RATE", 100_000).context("RATE is a number")?.max(1_000);
    let seconds = number("SECONDS", 75).context("SECONDS is a number")?.max(20);
    let broker: Arc<dyn Broker> = rig::Kafka::shared().broker()?;
    let fleet = format!("latency-{}.", std::process::id());
    let topic = format!("{fleet}app");
    broker.ensure_topics(&[TopicConfig::new(&topic, PARTITIONS)])?;
    let process = Program::run(&PIPELINE.replace("{topic}", &topic), &fleet)?;
    let sent = AtomicBool::new(false);
    let received = thread::scope(|scope| {
        let reader = scope.spawn(|| receive(&*broker, &format!("{fleet}anomalies"), &sent));
        let written = produce(&*broker, &topic, rate, seconds);
        sent.store(true, Ordering::Release);
        let received = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        written.and(received)
    });
    let received = received.with_context(|| process.said())?;
    let (cpu_s, peak_mb) = process.usage()?;
    let passed = passed(&*broker, &topic)?;
    let begin_ms = *passed.keys().next().context("no window can have closed")? + WARM_UP_MS;
    let mut latencies_ms = Vec::new();
    for (end_ms, at_ms) in passed.range(begin_ms..) {
        let windows = received.get(end_ms).map_or(&[][..], Vec::as_slice);
        ensure!(
            windows.len() == SERVICES,
            "{} of {SERVICES} windows ended at {end_ms}",
            windows.len()
        );
        latencies_ms.extend(windows.iter().map(|received_ms| received_ms - at_ms));
    }
    latencies_ms.sort_unstable();
    ensure!(!latencies_ms.is_empty(), "the run was too short");
    let quantile = |q: f64| latencies_ms[((latencies_ms.len() - 1) as f64 * q).round() as usize];
    println!(
        "append of the record that lets the watermark pass → anomaly read, {rate} records/s, {} windows: p50 {} ms, p90 {} ms, p99 {} ms, most {} ms",
        latencies_ms.len(),
        quantile(0.5),
        quantile(0.9),
        quantile(0.99),
        quantile(1.0),
    );
    println!(
        "processor time {:.3} µs a record, peak resident memory {peak_mb:.0} MB",
        cpu_s * 1e6 / (rate * seconds) as f64
    );
    Ok(())
}

/// Records at an even pace, each at the time at which it is sent.
fn produce(broker: &dyn Broker, topic: &str, rate: usize, seconds: usize) -> anyhow::Result<()> {
    let mut producer = broker.producer(&ProducerConfig::new("load"))?;
    let topic: Arc<str> = topic.into();
    let began = Instant::now();
    let mut n = 0;
    while n < rate * seconds {
        let due = (began.elapsed().as_secs_f64() * rate as f64) as usize;
        let now_ms = SystemClock.now_ms();
        while n < due.min(rate * seconds) {
            let service = n / PARTITIONS as usize % SERVICES;
            let value = format!(
                r#"{{"ts":{now_ms},"service":"svc-{service:04}","value":{}.25}}"#,
                n % 997
            );
            let output = Output {
                topic: Arc::clone(&topic),
                partition: Some((n % PARTITIONS as usize) as i32),
                key: None,
                value: Some(value.into_bytes()),
                headers: Vec::new(),
            };
            producer.send(&output)?;
            n += 1;
        }
        thread::sleep(STEP);
    }
    producer
        .flush()
        .with_context(|| format!("the broker does not keep up with {rate} records/s"))
}

/// Window end → when each of its anomalies was received, until nothing more comes.
fn receive(broker: &dyn Broker, topic: &str, sent: &AtomicBool) -> anyhow::Result<BTreeMap<i64, Vec<i64>>> {
    let began = Instant::now();
    let count = loop {
        match broker.partition_count(topic)? {
            Some(count) => break count,
            None => ensure!(began.elapsed() < PATIENCE, "the fleet has not made its topics"),
        }
        thread::sleep(Duration::from_millis(50));
    };
    let mut consumer = broker.consumer(&ConsumerConfig::new("reader", None))?;
    let from: Vec<_> = partitions_of(topic, count)
        .into_iter()
        .map(|place| (place, 0))
        .collect();
    consumer.assign(&from)?;
    let (mut batch, mut received) = (Batch::default(), BTreeMap::<i64, Vec<i64>>::new());
    let mut quiet_since = Instant::now();
    while !sent.load(Ordering::Acquire) || quiet_since.elapsed() < Duration::from_secs(3) {
        if consumer.poll(Duration::from_millis(100), &mut batch)? != Polled::Records {
            continue;
        }
        let now_ms = SystemClock.now_ms();
        let anomalies = batch
            .iter()
            .filter(|record| record.header("ce_type") == Some(cloudevent::ANOMALY.as_bytes()));
        for record in anomalies {
            let data: serde_json::Value = serde_json::from_slice(record.value.context("an anomaly has data")?)?;
            let end = data["window_end"].as_str().and_then(protocol::time::from_rfc3339);
            received.entry(end.context("a window's end")?).or_default().push(now_ms);
            // Not by the records between them, which say how far time has come and never end.
            quiet_since = Instant::now();
        }
    }
    Ok(received)
}

/// End of each window → append time of the record with which every partition had passed it.
fn passed(broker: &dyn Broker, topic: &str) -> anyhow::Result<BTreeMap<i64, i64>> {
    let mut passed = BTreeMap::<i64, (i32, i64)>::new();
    for partition in partitions_of(topic, PARTITIONS) {
        let (low, high) = broker.watermarks(&partition)?;
        let mut consumer = broker.consumer(&ConsumerConfig::new("appended", None))?;
        consumer.assign(&[(partition.clone(), low)])?;
        let (mut batch, mut greatest_ms) = (Batch::default(), None);
        while consumer.position(&partition).unwrap_or(low) < high {
            if consumer.poll(Duration::from_millis(100), &mut batch)? != Polled::Records {
                continue;
            }
            for record in batch.iter() {
                let value = record.value.context("a record has a value")?;
                let digits = value.get(6..19).and_then(|digits| std::str::from_utf8(digits).ok());
                let ts_ms: i64 = digits.context("a record begins with its time")?.parse()?;
                let (second, before) = (ts_ms / 1_000, greatest_ms.unwrap_or(ts_ms) / 1_000);
                for end in before + 1..=second {
                    let (partitions, at_ms) = passed.entry(end * 1_000).or_default();
                    *partitions += 1;
                    *at_ms = (*at_ms).max(record.timestamp_ms);
                }
                greatest_ms = greatest_ms.max(Some(ts_ms));
            }
        }
    }
    let by_all = passed
        .into_iter()
        .filter(|(_, (partitions, _))| *partitions == PARTITIONS);
    Ok(by_all.map(|(end_ms, (_, at_ms))| (end_ms, at_ms)).collect())
}
