//! Logs, topics, and one consumer that assigns.

use std::time::{SystemTime, UNIX_EPOCH};

use protocol::{Batch, TimestampKind, TopicPartition};

use super::{Entry, World, copy, output, patiently, poll, values, wait_until};
use crate::{Error, Polled, TopicConfig, partition_of, partitions_of};

pub(super) const CASES: &[Entry] = &[
    ("a partition keeps its order", None, order),
    ("keys choose partitions by murmur2", None, keys),
    ("explicit partitions are honoured", None, explicit),
    ("tombstones are not empty values", None, tombstones),
    (
        "headers keep order and repetition, and stay away unasked",
        None,
        headers,
    ),
    ("producers stamp where they may", None, producer_time),
    (
        "brokers stamp where they must",
        Some(("log_append_time", |c| c.log_append_time)),
        append_time,
    ),
    ("topics are created once", None, create),
    ("unknown topics are unknown", None, unknown),
    ("watermarks bound the log", None, watermarks),
    ("seek reads again", None, seek),
    ("caught up is said at the end", None, caught_up),
    ("paused partitions wait", None, pause),
    ("offsets outside the log are told", None, out_of_range),
    (
        "offsets are found by time",
        Some(("time_index", |c| c.time_index)),
        by_time,
    ),
];

fn order(world: &World) {
    let topic = world.topic("t", 1);
    let outputs: Vec<_> = (0..1_000)
        .map(|n| output(&topic, Some(0), None, Some(&n.to_string())))
        .collect();
    world.write(&outputs);
    let read = world.read(&topic, 1);
    assert_eq!(values(&read), (0..1_000).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(read.is_sorted_by(|a, b| a.offset < b.offset));
}

fn keys(world: &World) {
    let topic = world.topic("t", 5);
    let keys: Vec<String> = (0..100).map(|n| format!("key-{n}")).collect();
    let outputs: Vec<_> = keys
        .iter()
        .map(|key| output(&topic, None, Some(key), Some(key)))
        .collect();
    world.write(&outputs);
    let read = world.read(&topic, 5);
    assert_eq!(read.len(), 100);
    for record in read {
        assert_eq!(record.partition, partition_of(record.key.as_deref().unwrap(), 5));
    }
}

fn explicit(world: &World) {
    let topic = world.topic("t", 4);
    let outputs: Vec<_> = (0..40)
        .map(|n| output(&topic, Some(n % 4), Some("the same"), Some(&n.to_string())))
        .collect();
    world.write(&outputs);
    for record in world.read(&topic, 4) {
        let n: i32 = String::from_utf8(record.value.unwrap()).unwrap().parse().unwrap();
        assert_eq!(record.partition, n % 4);
    }
}

fn tombstones(world: &World) {
    let topic = world.topic("t", 1);
    world.write(&[
        output(&topic, Some(0), Some("k"), None),
        output(&topic, Some(0), Some("k"), Some("")),
        output(&topic, Some(0), Some(""), Some("v")),
        output(&topic, Some(0), None, Some("v")),
    ]);
    let read = world.read(&topic, 1);
    assert_eq!(read[0].value, None);
    assert_eq!(read[1].value, Some(Vec::new()));
    assert_eq!(read[2].key, Some(Vec::new()));
    assert_eq!(read[3].key, None);
}

fn headers(world: &World) {
    let topic = world.topic("t", 1);
    let mut with = output(&topic, Some(0), None, Some("v"));
    with.headers = vec![
        ("b".into(), b"1".to_vec()),
        ("a".into(), vec![0, 255]),
        ("b".into(), b"2".to_vec()),
        ("empty".into(), Vec::new()),
    ];
    world.write(&[with.clone(), output(&topic, Some(0), None, Some("none"))]);
    let read = world.read(&topic, 1);
    assert_eq!(read[0].headers, with.headers);
    assert!(read[1].headers.is_empty());
    let without = world.read_by(&mut *world.reader_without_headers(), &topic, 1);
    assert_eq!(values(&without), ["v", "none"]);
    assert!(without.iter().all(|record| record.headers.is_empty()));
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

fn kinds(world: &World, topic: &str) -> Vec<(i64, TimestampKind)> {
    let mut reader = world.reader();
    reader.assign(&[(TopicPartition::new(topic, 0), 0)]).unwrap();
    let mut batch = Batch::default();
    let mut found = Vec::new();
    wait_until("the record", || {
        poll(&mut *reader, &mut batch);
        found.extend(batch.iter().map(|record| (record.timestamp_ms, record.timestamp_kind)));
        !found.is_empty()
    });
    found
}

fn producer_time(world: &World) {
    let topic = world.topic("t", 1);
    let before = now_ms();
    world.write(&[output(&topic, Some(0), None, Some("v"))]);
    let (timestamp_ms, kind) = kinds(world, &topic)[0];
    assert_eq!(kind, TimestampKind::Create);
    assert!((before..=now_ms()).contains(&timestamp_ms));
    assert!(!world.broker.log_append_time(&topic).unwrap());
}

fn append_time(world: &World) {
    let topic = world.name("t");
    patiently(|| world.broker.ensure_topics(&[TopicConfig::new(&topic, 1)]));
    let before = now_ms();
    world.write(&[output(&topic, Some(0), None, Some("v"))]);
    let (timestamp_ms, kind) = kinds(world, &topic)[0];
    assert_eq!(kind, TimestampKind::LogAppend);
    assert!((before..=now_ms()).contains(&timestamp_ms));
    assert!(world.broker.log_append_time(&topic).unwrap());
}

fn create(world: &World) {
    let topics = [
        TopicConfig::new(world.name("a"), 3),
        TopicConfig {
            cleanup: protocol::topic::Cleanup::Compact,
            ..TopicConfig::new(world.name("b"), 2)
        },
    ];
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| patiently(|| world.broker.ensure_topics(&topics)));
        }
    });
    patiently(|| world.broker.ensure_topics(&topics));
    assert_eq!(world.broker.partition_count(&topics[0].name).unwrap(), Some(3));
    assert_eq!(world.broker.partition_count(&topics[1].name).unwrap(), Some(2));
    let other = TopicConfig::new(&topics[0].name, 4);
    match world.broker.ensure_topics(&[other]) {
        Err(Error::PartitionCount {
            actual: 3, wanted: 4, ..
        }) => {}
        other => panic!("{other:?} instead of a complaint about the count"),
    }
}

fn unknown(world: &World) {
    // The embedded broker creates what it is asked about.
    if world.broker.capabilities().unbounded_log {
        assert_eq!(world.broker.partition_count(&world.name("never")).unwrap(), None);
    }
    let topic = world.topic("t", 1);
    assert_eq!(world.broker.partition_count(&topic).unwrap(), Some(1));
}

fn watermarks(world: &World) {
    let topic = world.topic("t", 2);
    let partitions = partitions_of(&topic, 2);
    assert_eq!(world.high(&partitions[0]), 0);
    world.write(&[
        output(&topic, Some(1), None, Some("a")),
        output(&topic, Some(1), None, Some("b")),
    ]);
    assert_eq!(world.broker.watermarks(&partitions[0]).unwrap(), (0, 0));
    assert_eq!(world.broker.watermarks(&partitions[1]).unwrap(), (0, 2));
}

fn seek(world: &World) {
    let topic = world.topic("t", 1);
    let outputs: Vec<_> = (0..20)
        .map(|n| output(&topic, Some(0), None, Some(&n.to_string())))
        .collect();
    world.write(&outputs);
    let partition = TopicPartition::new(topic.as_str(), 0);
    let mut reader = world.reader();
    reader.assign(&[(partition.clone(), 5)]).unwrap();
    let mut batch = Batch::default();
    let mut read = Vec::new();
    let mut read_to = |reader: &mut dyn crate::Consumer, count: usize| {
        read.clear();
        wait_until("records", || {
            poll(reader, &mut batch);
            read.extend(copy(&batch));
            read.len() >= count
        });
        values(&read)
    };
    assert_eq!(read_to(&mut *reader, 15).first().unwrap(), "5");
    assert_eq!(reader.position(&partition), Some(20));
    patiently(|| reader.seek(&partition, 0));
    assert_eq!(reader.position(&partition), Some(0));
    assert_eq!(read_to(&mut *reader, 20).first().unwrap(), "0");
    patiently(|| reader.seek(&partition, 18));
    assert_eq!(read_to(&mut *reader, 2), ["18", "19"]);
}

fn caught_up(world: &World) {
    let topic = world.topic("t", 2);
    let partitions = partitions_of(&topic, 2);
    world.write(&[output(&topic, Some(0), None, Some("a"))]);
    let mut reader = world.reader();
    let positions: Vec<_> = partitions.iter().map(|p| (p.clone(), 0)).collect();
    reader.assign(&positions).unwrap();
    assert!(reader.caught_up().is_empty());
    let mut batch = Batch::default();
    let mut seen = 0;
    wait_until("both ends", || {
        poll(&mut *reader, &mut batch);
        seen += batch.len();
        reader.caught_up() == partitions
    });
    assert_eq!(seen, 1);
    world.write(&[output(&topic, Some(1), None, Some("b"))]);
    wait_until("the new record, and the end behind it", || {
        if poll(&mut *reader, &mut batch) == Polled::Records {
            seen += batch.len();
        }
        seen == 2 && reader.caught_up() == partitions
    });
}

fn pause(world: &World) {
    let topic = world.topic("t", 2);
    let partitions = partitions_of(&topic, 2);
    let mut reader = world.reader();
    let positions: Vec<_> = partitions.iter().map(|p| (p.clone(), 0)).collect();
    reader.assign(&positions).unwrap();
    let mut batch = Batch::default();
    wait_until("both ends", || {
        poll(&mut *reader, &mut batch);
        reader.caught_up() == partitions
    });
    reader.pause(&partitions[..1]).unwrap();
    assert_eq!(
        reader.caught_up(),
        partitions[1..],
        "a paused partition is never caught up"
    );
    world.write(&[
        output(&topic, Some(0), None, Some("waits")),
        output(&topic, Some(1), None, Some("comes")),
    ]);
    let mut read = Vec::new();
    wait_until("the record of the other partition", || {
        poll(&mut *reader, &mut batch);
        read.extend(copy(&batch));
        !read.is_empty() && reader.caught_up() == partitions[1..]
    });
    for _ in 0..5 {
        poll(&mut *reader, &mut batch);
        read.extend(copy(&batch));
    }
    assert_eq!(values(&read), ["comes"]);
    reader.resume(&partitions[..1]).unwrap();
    wait_until("what waited, and both ends", || {
        poll(&mut *reader, &mut batch);
        read.extend(copy(&batch));
        read.len() == 2 && reader.caught_up() == partitions
    });
    assert_eq!(values(&read), ["comes", "waits"]);
    reader.pause(&partitions).unwrap();
    reader.resume(&partitions).unwrap();
    wait_until("both ends again, though nothing came", || {
        poll(&mut *reader, &mut batch);
        reader.caught_up() == partitions
    });
}

fn out_of_range(world: &World) {
    let topic = world.topic("t", 2);
    let partitions = partitions_of(&topic, 2);
    world.write(&[output(&topic, Some(1), None, Some("a"))]);
    let mut reader = world.reader();
    reader
        .assign(&[(partitions[0].clone(), 1_000), (partitions[1].clone(), 0)])
        .unwrap();
    let mut batch = Batch::default();
    let (mut told, mut read) = (false, 0);
    wait_until("the news, and the record of the other partition", || {
        match poll(&mut *reader, &mut batch) {
            Polled::OutOfRange(partition) => {
                assert_eq!(partition, partitions[0]);
                told = true;
            }
            _ => read += batch.len(),
        }
        told && read == 1
    });
}

fn by_time(world: &World) {
    let topic = world.topic("t", 1);
    let partition = TopicPartition::new(topic.as_str(), 0);
    world.write(&[output(&topic, Some(0), None, Some("a"))]);
    std::thread::sleep(std::time::Duration::from_millis(20));
    let between = now_ms();
    std::thread::sleep(std::time::Duration::from_millis(20));
    world.write(&[output(&topic, Some(0), None, Some("b"))]);
    let mut reader = world.reader();
    let timeout = std::time::Duration::from_secs(5);
    assert_eq!(reader.offset_for_time(&partition, 0, timeout).unwrap(), Some(0));
    assert_eq!(reader.offset_for_time(&partition, between, timeout).unwrap(), Some(1));
    assert_eq!(
        reader.offset_for_time(&partition, now_ms() + 1_000, timeout).unwrap(),
        None
    );
}
