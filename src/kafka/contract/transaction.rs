//! Transactions: atomic, hidden until they end, fenced.

use std::time::{Duration, Instant};

use protocol::{Batch, TopicPartition};

use super::{
    Entry, Needs, PATIENCE, World,
    group::{committed, progress, settle},
    output, patiently, poll, values, wait_until,
};
use crate::{Class, ConsumerConfig, Polled, ProducerConfig, partitions_of};

const TRANSACTIONS: Option<Needs> = Some(("transactions", |c| c.transactions));
const HIDDEN: Option<Needs> = Some(("aborted_hidden", |c| c.aborted_hidden));
const FENCING: Option<Needs> = Some(("fencing", |c| c.fencing));

pub(super) const CASES: &[Entry] = &[
    ("a transaction is visible whole or not at all", TRANSACTIONS, atomic),
    ("aborted records are hidden", HIDDEN, aborted),
    ("a producer goes on after an abort", TRANSACTIONS, goes_on),
    (
        "an open transaction holds back what follows",
        HIDDEN,
        last_stable_offset,
    ),
    ("positions pass markers and aborted records", HIDDEN, positions),
    ("offsets in doubt are waited for", TRANSACTIONS, unstable),
    ("a producer of the same id fences the last", FENCING, fenced),
    ("a transaction left open is aborted in time", TRANSACTIONS, timeout),
    ("a dead member's partitions go to the others", FENCING, dead),
];

fn atomic(world: &World) {
    let (topic, other) = (world.topic("t", 2), world.topic("u", 1));
    let source = partitions_of(&world.topic("source", 1), 1);
    let mut member = world.member("g");
    member.subscribe(&[source[0].topic.to_string()]).unwrap();
    settle(&mut [&mut member], &source);
    let mut producer = world.transactional("p");
    for (round, commits) in [(0, false), (1, true), (2, false), (3, true)] {
        patiently(|| producer.begin());
        for partition in 0..2 {
            let value = format!("{round}");
            patiently(|| producer.send(&output(&topic, Some(partition), None, Some(&value))));
            patiently(|| producer.send(&output(&other, Some(0), None, Some(&value))));
        }
        let group = member.group_metadata().unwrap();
        patiently(|| producer.send_offsets(&[progress(&source[0], round, "m")], &group));
        match commits {
            true => patiently(|| producer.commit()),
            false => patiently(|| producer.abort()),
        }
    }
    assert_eq!(values(&world.read(&topic, 2)), ["1", "3", "1", "3"]);
    assert_eq!(values(&world.read(&other, 1)), ["1", "1", "3", "3"]);
    let found = committed(&mut *member, &source[0]).unwrap();
    assert_eq!((found.offset, found.metadata.as_str()), (3, "m"));
}

fn aborted(world: &World) {
    let topic = world.topic("t", 1);
    let mut producer = world.transactional("p");
    for round in 0..6 {
        patiently(|| producer.begin());
        for n in 0..10 {
            let value = format!("{round}-{n}");
            patiently(|| producer.send(&output(&topic, Some(0), None, Some(&value))));
        }
        // Delivered, so that there is something to hide.
        patiently(|| producer.flush());
        match round % 2 {
            0 => patiently(|| producer.commit()),
            _ => patiently(|| producer.abort()),
        }
    }
    let read = values(&world.read(&topic, 1));
    assert_eq!(read.len(), 30);
    assert!(
        read.iter()
            .all(|value| ["0-", "2-", "4-"].iter().any(|p| value.starts_with(p)))
    );
    let mut config = ConsumerConfig::new(world.name("uncommitted"), None);
    config.read_committed = false;
    let mut reader = world.broker.consumer(&config).unwrap();
    reader.assign(&[(TopicPartition::new(topic, 0), 0)]).unwrap();
    let mut batch = Batch::default();
    let mut count = 0;
    wait_until("the aborted records too", || {
        if poll(&mut *reader, &mut batch) == Polled::Records {
            count += batch.len();
        }
        count == 60
    });
}

/// Aborts while records are still on their way, many times over.
fn goes_on(world: &World) {
    let topic = world.topic("t", 3);
    let mut producer = world.transactional("p");
    for round in 0..30 {
        patiently(|| producer.begin());
        for n in 0..100 {
            let value = round.to_string();
            patiently(|| producer.send(&output(&topic, Some(n % 3), None, Some(&value))));
        }
        match round % 3 {
            2 => patiently(|| producer.commit()),
            _ => patiently(|| producer.abort()),
        }
    }
    let read = values(&world.read(&topic, 3));
    assert_eq!(read.len(), 1_000);
    assert!(read.iter().all(|round| round.parse::<u32>().unwrap() % 3 == 2));
}

fn last_stable_offset(world: &World) {
    let topic = world.topic("t", 1);
    let partition = TopicPartition::new(topic.as_str(), 0);
    let mut open = world.transactional("open");
    patiently(|| open.begin());
    patiently(|| open.send(&output(&topic, Some(0), None, Some("open"))));
    patiently(|| open.flush());
    world.write(&[output(&topic, Some(0), None, Some("later"))]);
    assert_eq!(
        world.high(&partition),
        2,
        "the high watermark counts what is not committed"
    );
    let mut reader = world.reader();
    reader.assign(&[(partition.clone(), 0)]).unwrap();
    let mut batch = Batch::default();
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(700) {
        assert_ne!(
            poll(&mut *reader, &mut batch),
            Polled::Records,
            "read beyond the last stable offset"
        );
    }
    patiently(|| open.abort());
    let mut read = Vec::new();
    wait_until("the record behind the aborted one", || {
        poll(&mut *reader, &mut batch);
        read.extend(super::copy(&batch));
        !read.is_empty()
    });
    assert_eq!(values(&read), ["later"]);
}

fn positions(world: &World) {
    let topic = world.topic("t", 1);
    let partition = TopicPartition::new(topic.as_str(), 0);
    let mut producer = world.transactional("p");
    for commits in [true, false] {
        patiently(|| producer.begin());
        patiently(|| producer.send(&output(&topic, Some(0), None, Some("v"))));
        patiently(|| producer.flush());
        match commits {
            true => patiently(|| producer.commit()),
            false => patiently(|| producer.abort()),
        }
    }
    // Two records and two markers.
    wait_until("the markers", || world.high(&partition) == 4);
    let mut reader = world.reader();
    reader.assign(&[(partition.clone(), 0)]).unwrap();
    let mut batch = Batch::default();
    wait_until("the position to pass them", || {
        poll(&mut *reader, &mut batch);
        reader.position(&partition) == Some(4)
    });
}

fn unstable(world: &World) {
    let topic = world.topic("t", 1);
    let partitions = partitions_of(&topic, 1);
    let mut member = world.member("g");
    member.subscribe(&[topic]).unwrap();
    settle(&mut [&mut member], &partitions);
    let mut producer = world.transactional("p");
    patiently(|| producer.begin());
    let group = member.group_metadata().unwrap();
    patiently(|| producer.send_offsets(&[progress(&partitions[0], 9, "")], &group));
    let mut other = world.member("g");
    let asked = other.committed(&partitions, Duration::from_millis(500));
    assert_eq!(asked.map_err(|error| error.class()), Err(Class::Retriable));
    patiently(|| producer.commit());
    assert_eq!(committed(&mut *other, &partitions[0]).unwrap().offset, 9);
}

fn fenced(world: &World) {
    let topic = world.topic("t", 1);
    let mut old = world.transactional("p");
    patiently(|| old.begin());
    patiently(|| old.send(&output(&topic, Some(0), None, Some("old"))));
    patiently(|| old.flush());
    let mut new = world.transactional("p");
    patiently(|| new.begin());
    patiently(|| new.send(&output(&topic, Some(0), None, Some("new"))));
    patiently(|| new.commit());
    let refused = old.commit().unwrap_err();
    assert_eq!(refused.class(), Class::Fatal, "{refused}");
    drop(old);
    assert_eq!(values(&world.read(&topic, 1)), ["new"]);
}

fn timeout(world: &World) {
    let topic = world.topic("t", 1);
    let mut config = ProducerConfig::transactional(world.name("producer"), world.name("p"));
    config.transaction_timeout_ms = 1_000;
    let mut producer = world.broker.producer(&config).unwrap();
    patiently(|| producer.begin());
    patiently(|| producer.send(&output(&topic, Some(0), None, Some("forgotten"))));
    patiently(|| producer.flush());
    world.write(&[output(&topic, Some(0), None, Some("later"))]);
    // A broker looks for such transactions every 10 s.
    let started = Instant::now();
    assert_eq!(values(&world.read(&topic, 1)), ["later"]);
    assert!(started.elapsed() < PATIENCE);
    let refused = producer.commit().unwrap_err();
    assert!(matches!(refused.class(), Class::Abort | Class::Fatal), "{refused}");
}

/// Not the client's death, which no case can bring about, but its silence: nobody polls it, and it is not closed.
fn dead(world: &World) {
    if world.broker.name() != "memory" {
        // A live process's client sends heartbeats by itself; the tests that kill processes show this for Kafka.
        return;
    }
    let topic = world.topic("t", 2);
    let partitions = partitions_of(&topic, 2);
    let (mut one, mut two) = (world.member("g"), world.member("g"));
    one.subscribe(std::slice::from_ref(&topic)).unwrap();
    two.subscribe(&[topic]).unwrap();
    settle(&mut [&mut one, &mut two], &partitions);
    settle(&mut [&mut two], &partitions);
    let mut batch = Batch::default();
    match poll(&mut *one, &mut batch) {
        Polled::Revoked { lost: true, .. } => {}
        other => panic!("{other:?} instead of the loss"),
    }
}
