//! Reads a topic from its beginning to where it ends now: what the operator's commands ask of the fleet.

use std::time::{Duration, Instant};

use kafka::{Broker, ConsumerConfig, Error, Polled};
use protocol::{Batch, Record, TopicPartition};

/// How long a command waits for a broker that does not answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Calls `each` with every committed record there is, partition by partition in offset order. Half a topic is an error: a command
/// that took it for the whole would say or write what is wrong.
pub fn read(broker: &dyn Broker, topic: &str, mut each: impl FnMut(Record<'_>)) -> Result<(), Error> {
    let count = broker
        .partition_count(topic)?
        .ok_or_else(|| Error::UnknownTopic(topic.to_owned()))?;
    for partition in kafka::partitions_of(topic, count) {
        read_partition(broker, &partition, &mut each)?;
    }
    Ok(())
}

fn read_partition(
    broker: &dyn Broker,
    partition: &TopicPartition,
    each: &mut impl FnMut(Record<'_>),
) -> Result<(), Error> {
    let (low, high) = broker.watermarks(partition)?;
    if low >= high {
        return Ok(());
    }
    let mut consumer = broker.consumer(&ConsumerConfig::new("homeostat-cli", None))?;
    consumer.assign(&[(partition.clone(), low)])?;
    let mut batch = Batch::default();
    let deadline = Instant::now() + PATIENCE;
    while consumer.position(partition).unwrap_or(low) < high {
        if Instant::now() >= deadline {
            let reason = format!("{partition} was not read up to offset {high} within {PATIENCE:?}");
            return Err(Error::retriable("reading a topic", reason));
        }
        if consumer.poll(Duration::from_millis(100), &mut batch)? == Polled::Records {
            batch.iter().for_each(&mut *each);
        }
    }
    Ok(())
}
