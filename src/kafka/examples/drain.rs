//! How fast the loop's poll path is: fills a topic, then drains it through `Consumer::poll` into batches.
//!
//! `KAFKA_BOOTSTRAP=host:port cargo run --release -p kafka --example drain [RECORDS] [CONSUMERS]`

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use kafka::{Broker, ConsumerConfig, Error, Kafka, Polled, ProducerConfig, TopicConfig, partitions_of};
use protocol::{Batch, Output, TopicPartition};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const PARTITIONS: i32 = 4;

fn main() -> Result<(), Error> {
    let bootstrap = std::env::var("KAFKA_BOOTSTRAP").unwrap_or_else(|_| "127.0.0.1:9092".into());
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().ok());
    let records = arguments.next().flatten().unwrap_or(4_000_000);
    let consumers = arguments.next().flatten().unwrap_or(1).clamp(1, PARTITIONS as usize);

    let broker: Arc<dyn Broker> = Arc::new(Kafka::at(&bootstrap)?);
    let topic = format!("drain-{}", std::process::id());
    broker.ensure_topics(&[TopicConfig::new(&topic, PARTITIONS)])?;
    fill(&*broker, &topic, records)?;

    let partitions = partitions_of(&topic, PARTITIONS);
    let started = Instant::now();
    let threads: Vec<_> = (0..consumers)
        .map(|n| {
            let broker = Arc::clone(&broker);
            let mine: Vec<TopicPartition> = partitions.iter().skip(n).step_by(consumers).cloned().collect();
            thread::spawn(move || drain(&*broker, &mine))
        })
        .collect();
    let (mut count, mut bytes) = (0, 0);
    for thread in threads {
        let (records, size) = thread.join().expect("a drain does not panic")?;
        count += records;
        bytes += size;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{count} records, {} MB by {consumers} consumer(s) in {seconds:.2} s: {:.2} M records/s",
        bytes / 1_000_000,
        count as f64 / seconds / 1e6
    );
    Ok(())
}

fn fill(broker: &dyn Broker, topic: &str, records: usize) -> Result<(), Error> {
    let mut producer = broker.producer(&ProducerConfig::new("drain"))?;
    for n in 0..records {
        let value = format!(
            r#"{{"service":"service-{:02}","metric":"latency_ms","value":{}.5,"ts":{}}}"#,
            n % 100,
            n % 977,
            1_700_000_000_000_u64 + n as u64
        );
        producer.send(&Output {
            topic: topic.into(),
            partition: Some((n % PARTITIONS as usize) as i32),
            key: None,
            value: Some(value.into_bytes()),
            headers: Vec::new(),
        })?;
    }
    producer.flush()
}

fn drain(broker: &dyn Broker, partitions: &[TopicPartition]) -> Result<(usize, usize), Error> {
    let mut consumer = broker.consumer(&ConsumerConfig::new("drain", None))?;
    let mut positions = Vec::new();
    let mut ends = Vec::new();
    for partition in partitions {
        let (low, high) = broker.watermarks(partition)?;
        positions.push((partition.clone(), low));
        ends.push(high);
    }
    consumer.assign(&positions)?;
    let mut batch = Batch::default();
    let (mut records, mut bytes) = (0, 0);
    while partitions
        .iter()
        .zip(&ends)
        .any(|(p, end)| consumer.position(p) < Some(*end))
    {
        if consumer.poll(Duration::from_millis(100), &mut batch)? == Polled::Records {
            records += batch.len();
            bytes += batch.size();
        }
    }
    Ok((records, bytes))
}
