//! A fetcher against brokers of the test's own: every record once, in order, whatever goes wrong.

mod cluster;

use std::{sync::Weak, thread};

use self::cluster::{Cluster, Fault, Served};
use super::{
    testing::{Content, Draft, Fields, Log, Row, rows},
    *,
};
use crate::Class;

const TIMEOUT: Duration = Duration::from_secs(20);
/// Longer than a broker waits for records, and than the fetcher does before it tries again.
const A_WHILE: Duration = Duration::from_millis(250);

fn at(partition: i32) -> TopicPartition {
    TopicPartition::new("topic", partition)
}

fn log_of(records: usize) -> Log {
    let mut log = Log::default();
    log.append_values((0..records).map(|n| format!("value {n}")));
    log
}

/// Batches of one record of so many bytes.
fn heavy(batches: usize, bytes: usize) -> Log {
    let mut log = Log::default();
    log.append_values((0..batches).map(|n| vec![n as u8; bytes]));
    log
}

/// A fetcher and what has come of it.
struct Rig {
    cluster: Cluster,
    fetcher: Fetcher,
    batch: Batch,
    read: BTreeMap<TopicPartition, Vec<Row>>,
    errors: Vec<String>,
    out_of_range: Vec<TopicPartition>,
}

impl Rig {
    fn new(brokers: usize, read_committed: bool) -> Self {
        let cluster = Cluster::new(brokers);
        let config = KafkaConfig::new(cluster.bootstrap());
        Self {
            fetcher: Fetcher::new(&config, "tester", read_committed, true),
            cluster,
            batch: Batch::default(),
            read: BTreeMap::new(),
            errors: Vec::new(),
            out_of_range: Vec::new(),
        }
    }

    /// Partitions of these logs, led by the brokers in turn, assigned from their start.
    fn reading<const N: usize>(brokers: usize, logs: [Log; N]) -> Self {
        let mut rig = Self::new(brokers, false);
        let mut positions = Vec::new();
        for (partition, log) in (0..).zip(logs) {
            positions.push((at(partition), log.start));
            rig.cluster.host(&at(partition), partition as usize % brokers, log);
        }
        rig.fetcher.assign(&positions);
        rig
    }

    fn poll(&mut self) {
        self.fetcher.reclaim(&mut self.batch);
        if let Err(error) = self.fetcher.poll(Duration::from_millis(5), &mut self.batch) {
            assert_eq!(error.class(), Class::Retriable, "{error}");
            self.errors.push(error.to_string());
        }
        let all = rows(&self.batch);
        for (partition, range) in self.batch.runs() {
            self.read
                .entry(partition.clone())
                .or_default()
                .extend_from_slice(&all[range]);
        }
        while let Some(partition) = self.fetcher.next_out_of_range() {
            self.out_of_range.push(partition);
        }
    }

    #[track_caller]
    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}: never. Errors: {:?}", self.errors);
            self.poll();
        }
    }

    fn for_a_while(&mut self) {
        let end = Instant::now() + A_WHILE;
        while Instant::now() < end {
            self.poll();
        }
    }

    fn is_at_end(&self, partition: &TopicPartition) -> bool {
        let end = self.cluster.state().partitions[partition]
            .log
            .readable_end(self.fetcher.shared.read_committed);
        self.fetcher.position(partition) == Some(end) && self.fetcher.caught_up().contains(partition)
    }

    /// Reads on to the end of all logs, and finds what is in them.
    #[track_caller]
    fn read_all(&mut self) {
        let partitions: Vec<TopicPartition> = self.fetcher.positions.keys().cloned().collect();
        self.until("the end", |rig| {
            partitions.iter().all(|partition| rig.is_at_end(partition))
        });
        for partition in &partitions {
            self.assert_read(partition, 0);
        }
    }

    /// Everything from an offset up to the position has been read: once, and in order.
    #[track_caller]
    fn assert_read(&self, partition: &TopicPartition, from: i64) {
        let log = &self.cluster.state().partitions[partition].log;
        let mut expected = log.expected(from.max(log.start), self.fetcher.shared.read_committed);
        expected.retain(|row| row.0 < self.fetcher.position(partition).unwrap());
        let read = self.read.get(partition).map_or(&[][..], Vec::as_slice);
        let offsets = |rows: &[Row]| rows.iter().map(|row| row.0).collect::<Vec<_>>();
        assert_eq!(offsets(read), offsets(&expected), "{partition}");
        assert!(read == expected, "{partition}: not what was written");
    }

    fn append(&self, partition: &TopicPartition, values: &[&str]) {
        self.cluster
            .change_log(partition, |log| log.append_values(values.iter().copied()));
    }

    /// Waits until a broker has been asked for what is held back.
    #[track_caller]
    fn until_asked(&self, asked: &Served) {
        let deadline = Instant::now() + TIMEOUT;
        while !self.cluster.state().served.contains(asked) {
            assert!(Instant::now() < deadline, "{asked:?}: never asked");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until something has been read that is not handed out yet.
    fn until_held(&self, bytes: usize) {
        let deadline = Instant::now() + TIMEOUT;
        while self.fetcher.shared.state().held_bytes < bytes {
            assert!(Instant::now() < deadline, "nothing came");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn failure(&self, partition: &TopicPartition) -> Option<&str> {
        self.fetcher.positions[partition].failure.as_deref()
    }
}

fn served(broker: usize, partition: TopicPartition, offset: i64) -> Served {
    Served {
        broker,
        partition,
        offset,
    }
}

#[test]
fn leaders_are_found_and_read_on_and_on() {
    let mut rig = Rig::reading(2, [log_of(10), log_of(0), log_of(3)]);
    for round in 0..5 {
        rig.read_all();
        assert_eq!(rig.fetcher.high_watermark(&at(2)), Some(3 + round));
        for partition in 0..3 {
            rig.append(&at(partition), &["another"]);
        }
    }
    rig.read_all();
    assert_eq!(rig.errors, [""; 0]);
    let asked_of = |broker, partition| {
        let state = rig.cluster.state();
        state
            .served
            .iter()
            .any(|served| served.broker == broker && served.partition == at(partition))
    };
    assert!(asked_of(0, 0) && asked_of(1, 1) && asked_of(0, 2));
    assert!(!asked_of(0, 1) && !asked_of(1, 0) && !asked_of(1, 2));
}

#[test]
fn an_end_is_told_with_the_records_before_it() {
    let mut rig = Rig::reading(1, [log_of(10)]);
    for _ in 0..5 {
        rig.until("records", |rig| !rig.batch.is_empty());
        assert!(rig.is_at_end(&at(0)));
        rig.append(&at(0), &["another"]);
        rig.batch.clear();
    }
}

#[test]
fn a_partition_is_read_on_from_its_new_leader() {
    let mut rig = Rig::reading(2, [log_of(10), log_of(10)]);
    for round in 0..4 {
        rig.read_all();
        let position = rig.fetcher.position(&at(0)).unwrap();
        let to = (round + 1) % 2;
        rig.cluster.lead(&at(0), to);
        rig.append(&at(0), &["after the move"]);
        rig.read_all();
        rig.until_asked(&served(to, at(0), position));
    }
    // The same broker again, under another epoch.
    rig.cluster.lead(&at(1), 1);
    rig.append(&at(1), &["after the epoch"]);
    rig.read_all();
    assert_eq!(rig.errors, [""; 0]);
}

#[test]
fn what_fails_is_asked_for_again() {
    let codes = [-1, 2, 3, 5, 6, 7, 9, 13, 29, 56, 74, 75, 78, 99];
    let broken = [
        Fault::CloseBefore,
        Fault::CloseWithin,
        Fault::CloseAfter,
        Fault::LeaveOut,
        Fault::Damage,
    ];
    let faults = broken.into_iter().chain(codes.map(Fault::Code));
    let mut rig = Rig::reading(1, [log_of(3), log_of(3)]);
    rig.read_all();
    for fault in faults {
        rig.cluster.change(|state| {
            state.faults.push_back(fault);
            for hosted in state.partitions.values_mut() {
                hosted.log.append_values([format!("{fault:?}")]);
            }
        });
        rig.until("the fault", |rig| rig.cluster.state().faults.is_empty());
        rig.read_all();
    }
    // The broker was there all the time.
    assert_eq!(rig.errors, [""; 0]);
}

#[test]
fn a_broker_that_is_gone_is_told_and_read_again_once_it_is_back() {
    let mut rig = Rig::reading(2, [log_of(3), log_of(3)]);
    rig.read_all();
    rig.cluster.stop(1);
    rig.append(&at(0), &["of the other"]);
    rig.append(&at(1), &["meanwhile"]);
    rig.until("the other's", |rig| rig.is_at_end(&at(0)));
    // What the one that is there says: nobody leads it.
    rig.until("doubt", |rig| !rig.fetcher.caught_up().contains(&at(1)));
    rig.until("a reason", |rig| {
        rig.failure(&at(1)) == Some("the partition has no leader now")
    });
    rig.cluster.stop(0);
    rig.until("an error", |rig| !rig.errors.is_empty());
    assert_eq!(rig.fetcher.caught_up(), []);
    assert!(rig.errors[0].contains("cannot be reached"), "{:?}", rig.errors);
    rig.for_a_while();
    rig.cluster.start(0);
    rig.cluster.start(1);
    rig.read_all();
    assert_eq!(rig.failure(&at(1)), None);
}

/// Nobody wants to hear all of it once it is over.
#[test]
fn of_a_long_failure_the_last_word_is_told() {
    let mut rig = Rig::reading(1, [log_of(3)]);
    rig.read_all();
    rig.cluster.stop(0);
    rig.append(&at(0), &["meanwhile"]);
    rig.until("an error", |rig| !rig.errors.is_empty());
    // Several attempts, and nobody polls.
    thread::sleep(Duration::from_millis(1_500));
    rig.cluster.start(0);
    rig.errors.clear();
    rig.until_held(1);
    rig.read_all();
    assert!(rig.errors.len() <= 1, "{:?}", rig.errors);
}

#[test]
fn out_of_range_is_told_once_until_a_seek() {
    let mut retained = log_of(10);
    retained.start = 5;
    let mut rig = Rig::reading(1, [log_of(3), retained]);
    for offset in [4, 11] {
        rig.fetcher.seek(&at(1), offset).unwrap();
        rig.until("out of range", |rig| !rig.out_of_range.is_empty());
        rig.append(&at(0), &["of another"]);
        rig.for_a_while();
        assert_eq!(std::mem::take(&mut rig.out_of_range), [at(1)]);
        assert!(rig.is_at_end(&at(0)));
        assert_eq!(rig.fetcher.caught_up(), [at(0)]);
        assert_eq!(rig.fetcher.position(&at(1)), Some(offset));
    }
    rig.read.remove(&at(1));
    rig.fetcher.seek(&at(1), 5).unwrap();
    rig.read_all();
    assert_eq!(rig.out_of_range, []);
}

/// Under way at the broker, or read and not handed out: neither outlives what it was asked for.
#[test]
fn what_was_asked_for_before_is_never_handed_out() {
    for under_way in [true, false] {
        let rig = || {
            let rig = Rig::reading(1, [log_of(10), log_of(3)]);
            match under_way {
                true => {
                    rig.cluster.change(|state| state.holds_fetch = true);
                    rig.until_asked(&served(0, at(0), 0));
                }
                false => rig.until_held(1),
            }
            rig
        };
        let go_on = |rig: &mut Rig| {
            rig.cluster.change(|state| state.holds_fetch = false);
        };

        let mut seeking = rig();
        seeking.fetcher.seek(&at(0), 7).unwrap();
        go_on(&mut seeking);
        seeking.until("both", |rig| rig.is_at_end(&at(0)) && rig.is_at_end(&at(1)));
        seeking.assert_read(&at(0), 7);
        seeking.assert_read(&at(1), 0);

        let mut pausing = rig();
        pausing.fetcher.pause(&at(0)).unwrap();
        go_on(&mut pausing);
        pausing.for_a_while();
        assert_eq!(pausing.fetcher.caught_up(), [at(1)]);
        assert_eq!(pausing.fetcher.position(&at(0)), Some(0));
        assert_eq!(pausing.read.get(&at(0)), None);
        pausing.fetcher.resume(&at(0)).unwrap();
        pausing.read_all();

        let mut assigning = rig();
        assigning.fetcher.assign(&[(at(1), 1)]);
        go_on(&mut assigning);
        assigning.until("the other", |rig| rig.is_at_end(&at(1)));
        assigning.for_a_while();
        assert_eq!(assigning.read.keys().collect::<Vec<_>>(), [&at(1)]);
        assigning.assert_read(&at(1), 1);
        assert!(matches!(assigning.fetcher.seek(&at(0), 0), Err(Error::NotAssigned(_))));
        assert_eq!(assigning.fetcher.shared.state().held_bytes, 0);
    }
}

#[test]
fn paused_partitions_are_not_asked_for() {
    let mut rig = Rig::reading(1, [log_of(3), log_of(3)]);
    rig.read_all();
    rig.fetcher.pause(&at(0)).unwrap();
    rig.for_a_while();
    rig.cluster.change(|state| state.served.clear());
    rig.append(&at(0), &["unseen"]);
    rig.append(&at(1), &["seen"]);
    rig.for_a_while();
    assert_eq!(rig.fetcher.caught_up(), [at(1)]);
    assert!(rig.is_at_end(&at(1)));
    assert!(
        !rig.cluster
            .state()
            .served
            .iter()
            .any(|served| served.partition == at(0))
    );
    rig.fetcher.seek(&at(0), 1).unwrap();
    rig.for_a_while();
    assert!(
        !rig.cluster
            .state()
            .served
            .iter()
            .any(|served| served.partition == at(0))
    );
    rig.read.get_mut(&at(0)).unwrap().truncate(1);
    rig.fetcher.resume(&at(0)).unwrap();
    rig.read_all();
}

#[test]
fn read_committed_ends_where_a_transaction_is_open() {
    let mut log = log_of(3);
    let of = |producer, value: &str| Draft {
        producer: Some(producer),
        records: vec![Some(Content::value(value))],
        ..Draft::default()
    };
    log.append(&of(1, "committed"));
    log.append(&of(2, "aborted"));
    log.end_transaction(1, true);
    log.end_transaction(2, false);
    log.append(&of(1, "open"));
    log.append_values(["behind it"]);
    let mut rig = Rig::new(1, true);
    rig.cluster.host(&at(0), 0, log);
    rig.fetcher.assign(&[(at(0), 0)]);
    rig.read_all();
    assert_eq!(rig.fetcher.position(&at(0)), Some(7));
    assert_eq!(rig.fetcher.high_watermark(&at(0)), Some(9));
    assert_eq!(rig.read[&at(0)].len(), 4);
    rig.cluster.change_log(&at(0), |log| log.end_transaction(1, true));
    rig.until("the rest", |rig| rig.fetcher.position(&at(0)) == Some(10));
    rig.read_all();
    assert_eq!(rig.read[&at(0)].len(), 6);
}

#[test]
fn a_topic_is_found_once_it_exists() {
    let mut rig = Rig::reading(1, [log_of(3)]);
    let other = TopicPartition::new("other", 1);
    rig.fetcher.assign(&[(at(0), 0), (other.clone(), 0)]);
    rig.until("a reason", |rig| {
        rig.failure(&other) == Some("the broker does not know this topic or partition")
    });
    rig.cluster.host(&TopicPartition::new("other", 0), 0, log_of(1));
    rig.for_a_while();
    assert!(rig.is_at_end(&at(0)) && rig.failure(&other).is_some());
    assert_eq!(rig.fetcher.caught_up(), [at(0)]);
    rig.cluster.host(&other, 0, log_of(2));
    rig.read_all();
    assert_eq!((rig.failure(&other), rig.failure(&at(0))), (None, None));
}

#[test]
fn of_topics_that_nobody_asked_about_nothing_is_said() {
    let mut rig = Rig::new(1, false);
    rig.cluster.change(|state| state.holds_metadata = true);
    let other = TopicPartition::new("other", 0);
    rig.cluster.host(&at(0), 0, log_of(1));
    rig.cluster.host(&other, 0, log_of(1));
    rig.fetcher.assign(&[(at(0), 0)]);
    rig.for_a_while();
    rig.fetcher.assign(&[(at(0), 0), (other.clone(), 0)]);
    rig.cluster.change(|state| state.holds_metadata = false);
    rig.until("both", |rig| {
        assert_eq!(rig.failure(&other), None);
        rig.is_at_end(&at(0)) && rig.is_at_end(&other)
    });
}

#[test]
fn a_leader_without_an_address_is_none_yet() {
    let mut rig = Rig::new(2, false);
    rig.cluster.change(|state| state.names_absent_leaders = true);
    rig.cluster.stop(1);
    rig.cluster.host(&at(0), 1, log_of(3));
    rig.fetcher.assign(&[(at(0), 0)]);
    rig.until("a reason", |rig| {
        rig.failure(&at(0)) == Some("the partition has no leader now")
    });
    rig.cluster.start(1);
    rig.read_all();
}

#[test]
fn with_nobody_polling_no_more_is_asked_for() {
    let mut rig = Rig::reading(1, [heavy(30, 400_000), heavy(3, 100)]);
    rig.until_held(reader::HELD_BYTES_MAX);
    thread::sleep(A_WHILE);
    let held = rig.fetcher.shared.state().held_bytes;
    let asked = rig.cluster.state().served.len();
    // What was asked for before the bound was met: two answers.
    assert!(held < reader::HELD_BYTES_MAX + (4 << 20), "{held}");
    thread::sleep(A_WHILE);
    assert_eq!(rig.fetcher.shared.state().held_bytes, held);
    assert_eq!(rig.cluster.state().served.len(), asked);
    rig.read_all();
    // An answer without records may still be on its way to where it is let go.
    rig.until("nothing held", |rig| rig.fetcher.shared.state().held_bytes == 0);
}

#[test]
fn partitions_that_fill_every_answer_leave_room_for_others() {
    let logs = [(); 7].map(|()| heavy(8, 400_000));
    let mut rig = Rig::reading(1, logs);
    let light = TopicPartition::new("zzz", 0);
    rig.cluster.host(&light, 0, log_of(1));
    let mut positions: Vec<_> = (0..7).map(|partition| (at(partition), 0)).collect();
    positions.push((light.clone(), 0));
    rig.fetcher.assign(&positions);
    rig.until("the light one", |rig| rig.read.contains_key(&light));
    let heavy: Vec<usize> = (0..7)
        .map(|partition| rig.read.get(&at(partition)).map_or(0, Vec::len))
        .collect();
    assert!(heavy.iter().sum::<usize>() <= 28, "{heavy:?}");
    rig.until("one of the heavy", |rig| {
        (0..7).any(|partition| rig.is_at_end(&at(partition)))
    });
    let least = (0..7)
        .map(|partition| rig.read.get(&at(partition)).map_or(0, Vec::len))
        .min();
    assert!(least >= Some(3), "{least:?}");
    rig.read_all();
}

#[test]
fn records_larger_than_what_is_asked_for_come() {
    let large = || {
        let mut log = log_of(2);
        log.append_values([vec![1; 3_000_000], vec![2; 700_000]]);
        log.append_values(["behind"]);
        log
    };
    let mut rig = Rig::reading(1, [large(), large(), large()]);
    rig.read_all();
}

#[test]
fn a_broker_that_holds_back_for_a_quota_is_not_taken_for_dead() {
    let mut rig = Rig::reading(1, [log_of(3)]);
    rig.read_all();
    let patience = |rig: &Rig| rig.fetcher.shared.state().breakers[&0].read_timeout().unwrap().unwrap();
    let usual = patience(&rig);
    rig.cluster.change(|state| state.throttle_ms = 200);
    rig.append(&at(0), &["held back for a moment"]);
    rig.read_all();
    rig.for_a_while();
    assert_eq!(patience(&rig), usual + Duration::from_millis(200));
    assert_eq!(rig.errors, [""; 0]);

    rig.cluster.change(|state| state.throttle_ms = 60_000);
    rig.append(&at(0), &["held back for long"]);
    rig.until("an error", |rig| !rig.errors.is_empty());
    assert!(
        rig.errors[0].contains("60000 ms") && rig.errors[0].contains("quota"),
        "{:?}",
        rig.errors
    );
    assert_eq!(rig.fetcher.caught_up(), []);
    assert_eq!(patience(&rig), usual + Duration::from_secs(60));

    rig.cluster.change(|state| state.throttle_ms = 0);
    rig.append(&at(0), &["free"]);
    rig.read_all();
    rig.for_a_while();
    assert_eq!(patience(&rig), usual);
}

#[test]
fn damaged_records_are_told_and_read_once_they_are_whole() {
    let mut rig = Rig::reading(1, [log_of(3), log_of(3)]);
    rig.read_all();
    rig.cluster.change(|state| {
        state.faults.extend([Fault::Damage; 3]);
        let hosted = state.partitions.get_mut(&at(0)).unwrap();
        hosted.log.append_values(["damaged on the way"]);
    });
    rig.until("a reason", |rig| {
        rig.failure(&at(0))
            .is_some_and(|reason| reason.contains("offset 3") && reason.contains("checksum"))
    });
    assert!(!rig.fetcher.caught_up().contains(&at(0)));
    rig.read_all();
    assert_eq!(rig.failure(&at(0)), None);
}

/// It will not get better: nothing of it is passed over, and who wants to go on seeks.
#[test]
fn a_batch_that_was_written_wrong_holds_its_partition_only() {
    let mut log = log_of(3);
    let values = ["good", "bad", "behind"];
    let records = values.iter().map(|value| Some(Content::value(*value))).collect();
    let draft = Draft {
        records,
        ..Draft::default()
    };
    let mut fields = Fields::of(3, &draft);
    let bad = fields.records.windows(3).position(|window| window == b"bad").unwrap();
    fields.records[bad - 1] = 0x70;
    log.append_written(&draft, &fields);
    log.append_values(["after"]);
    let mut rig = Rig::reading(1, [log, log_of(3)]);
    rig.until("a reason", |rig| rig.failure(&at(0)).is_some());
    rig.append(&at(1), &["of another"]);
    rig.for_a_while();
    rig.until("the other", |rig| rig.is_at_end(&at(1)));
    let reason = rig.failure(&at(0)).unwrap();
    assert!(reason.contains("offset 4"), "{reason}");
    assert_eq!(rig.fetcher.position(&at(0)), Some(4));
    rig.assert_read(&at(0), 0);
    assert_eq!(rig.fetcher.caught_up(), [at(1)]);
    rig.fetcher.seek(&at(0), 6).unwrap();
    rig.until("what is behind", |rig| rig.is_at_end(&at(0)));
    let offsets: Vec<i64> = rig.read[&at(0)].iter().map(|row| row.0).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 6]);
}

/// Where a fetcher stands when it is dropped.
type Ending = fn() -> Rig;

#[test]
fn a_fetcher_that_is_dropped_leaves_no_thread() {
    let ends: [(&str, Ending); 7] = [
        ("never assigned", || Rig::new(1, false)),
        ("waiting at the end", || {
            let mut rig = Rig::reading(2, [log_of(3), log_of(3)]);
            rig.read_all();
            rig
        }),
        ("an answer is due", || {
            let rig = Rig::reading(1, [log_of(3)]);
            rig.cluster.change(|state| state.holds_fetch = true);
            rig.until_asked(&served(0, at(0), 0));
            rig
        }),
        ("a leader is being asked for", || {
            let mut rig = Rig::new(1, false);
            rig.cluster.change(|state| state.holds_metadata = true);
            rig.fetcher.assign(&[(at(0), 0)]);
            thread::sleep(A_WHILE);
            rig
        }),
        ("full", || {
            let rig = Rig::reading(1, [heavy(20, 400_000)]);
            rig.until_held(reader::HELD_BYTES_MAX);
            rig
        }),
        ("no broker", || {
            let mut rig = Rig::reading(1, [log_of(3)]);
            rig.read_all();
            rig.cluster.stop(0);
            rig.until("an error", |rig| !rig.errors.is_empty());
            rig
        }),
        ("paused", || {
            let mut rig = Rig::reading(1, [log_of(3)]);
            rig.read_all();
            rig.fetcher.pause(&at(0)).unwrap();
            rig.for_a_while();
            rig
        }),
    ];
    for (what, rig) in ends {
        let Rig { cluster, fetcher, .. } = rig();
        let shared: Weak<Shared> = Arc::downgrade(&fetcher.shared);
        let dropped = Instant::now();
        drop(fetcher);
        assert!(
            dropped.elapsed() < Duration::from_millis(100),
            "{what}: dropping it waits"
        );
        while shared.strong_count() > 0 {
            assert!(dropped.elapsed() < Duration::from_secs(2), "{what}: a thread is left");
            thread::sleep(Duration::from_millis(1));
        }
        drop(cluster);
    }
}

#[test]
fn threads_have_names() {
    let mut rig = Rig::reading(1, [log_of(1)]);
    rig.read_all();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names: Vec<String> = tasks
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .collect();
    for name in ["fetch-leaders\n", "fetch-broker-0\n"] {
        assert!(names.iter().any(|known| known == name), "{names:?}");
    }
}

/// Splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % bound as u64) as usize
    }
}

/// Everything at once, in an order that the seed decides: every record once, in order, and no end that is none.
#[test]
fn any_schedule_of_faults_loses_nothing_and_repeats_nothing() {
    // Mostly they wait: side by side.
    let schedules = (0..32).map(|seed| {
        thread::Builder::new()
            .name(format!("seed {seed}"))
            .spawn(move || schedule(seed))
    });
    let schedules: Vec<_> = schedules.map(Result::unwrap).collect();
    let failed = schedules
        .into_iter()
        .map(thread::JoinHandle::join)
        .filter(Result::is_err)
        .count();
    assert_eq!(failed, 0, "the panics above name their seeds");
}

fn schedule(seed: u64) {
    const PARTITIONS: usize = 4;
    let mut random = Random(seed);
    let mut rig = Rig::new(2, seed.is_multiple_of(2));
    let mut positions = Vec::new();
    for partition in 0..PARTITIONS {
        rig.cluster.host(&at(partition as i32), partition % 2, log_of(3));
        positions.push((at(partition as i32), 0));
    }
    rig.fetcher.assign(&positions);
    for step in 0..120 {
        let partition = at(random.below(PARTITIONS) as i32);
        match random.below(16) {
            0..5 => rig.cluster.change_log(&partition, |log| {
                let records = (0..=random.below(20)).map(|n| Some(Content::value(format!("{step} {n}"))));
                log.append(&Draft {
                    codec: testing::CODECS[random.below(testing::CODECS.len())],
                    producer: [None, Some(1), Some(2)][random.below(3)],
                    records: records.collect(),
                    ..Draft::default()
                });
            }),
            5..7 => rig.cluster.change_log(&partition, |log| {
                log.end_transaction(1 + random.below(2) as i64, random.below(2) == 0);
            }),
            7 => rig.cluster.lead(&partition, random.below(2)),
            8..10 => {
                let faults = [
                    Fault::CloseBefore,
                    Fault::CloseWithin,
                    Fault::CloseAfter,
                    Fault::Code(6),
                    Fault::Code(78),
                    Fault::Damage,
                    Fault::LeaveOut,
                ];
                rig.cluster
                    .change(|state| state.faults.push_back(faults[random.below(faults.len())]));
            }
            10 => {
                let broker = random.below(2);
                match rig.cluster.is_up(broker) {
                    true => rig.cluster.stop(broker),
                    false => rig.cluster.start(broker),
                }
            }
            11 => {
                let back = random.below(5) as i64;
                let to = (rig.fetcher.position(&partition).unwrap() - back).max(0);
                rig.fetcher.seek(&partition, to).unwrap();
                if let Some(read) = rig.read.get_mut(&partition) {
                    read.retain(|row| row.0 < to);
                }
            }
            12 => rig.fetcher.pause(&partition).unwrap(),
            13 => rig.fetcher.resume(&partition).unwrap(),
            _ => {
                for _ in 0..random.below(20) {
                    rig.poll();
                }
            }
        }
        rig.poll();
        for partition in (0..PARTITIONS as i32).map(at) {
            rig.assert_read(&partition, 0);
        }
    }
    rig.cluster.change(|state| state.faults.clear());
    for broker in 0..2 {
        if !rig.cluster.is_up(broker) {
            rig.cluster.start(broker);
        }
    }
    for partition in (0..PARTITIONS as i32).map(at) {
        rig.fetcher.resume(&partition).unwrap();
    }
    rig.read_all();
    assert_eq!(rig.out_of_range, []);
}
