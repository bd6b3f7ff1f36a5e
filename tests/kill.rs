//! Invariants 1 to 4 on a real Kafka, for the loop alone: a process killed or stopped at any named point leaves counts exact,
//! and without offsets or without fencing it does not.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use kafka::{
    Broker, CrashPoint, Kafka, LoopConfig, Point, ProducerConfig, Shutdown, Switches, TopicConfig, contract::Counter,
    partitions_of, run_stage,
};
use protocol::{Batch, Output};
use tests::rig;

/// Environment variable that makes [`child`] run the loop: the prefix of its topics.
const PREFIX: &str = "HOMEOSTAT_TEST_LOOP";
const CRASH: &str = "HOMEOSTAT_TEST_LOOP_CRASH";
const SWITCH: &str = "HOMEOSTAT_TEST_LOOP_SWITCH";
const PARTITIONS: i32 = 4;
const KEYS: usize = 8;
const RECORDS: usize = 1_600;
const PATIENCE: Duration = Duration::from_secs(120);

/// Not a test: the process that the tests of this file start, kill and stop.
#[test]
fn child() {
    let Ok(prefix) = std::env::var(PREFIX) else { return };
    let broker = Kafka::at(&std::env::var("KAFKA_BOOTSTRAP").unwrap()).unwrap();
    let stage = Counter::new(
        &format!("{prefix}-in"),
        &format!("{prefix}-out"),
        &format!("{prefix}-state"),
    );
    let mut config = LoopConfig::new(prefix);
    config.session_timeout_ms = 6_000;
    config.transaction_timeout_ms = 6_000;
    // Transactions that stay open for several polls, on a slow machine too.
    config.output_interval_ms = 300;
    config.crash = std::env::var(CRASH).ok().map(|text| CrashPoint::parse(&text).unwrap());
    match std::env::var(SWITCH).as_deref() {
        Ok("offsets") => {
            config.switches = Switches {
                skip_send_offsets: true,
                ..Switches::default()
            }
        }
        Ok("fencing") => {
            config.switches = Switches {
                skip_fencing: true,
                ..Switches::default()
            }
        }
        _ => {}
    }
    if std::env::var(CRASH).is_ok_and(|text| text.contains(":stop:")) {
        // It must outlive its stop: only the generation tells that its owner is a zombie.
        config.transaction_timeout_ms = 120_000;
    }
    run_stage(Arc::new(broker), Box::new(stage), config, &(), &Shutdown::new()).unwrap();
}

struct Run {
    broker: Arc<Kafka>,
    prefix: String,
    folder: tempfile::TempDir,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Run {
    fn new(name: &str) -> Self {
        let broker = rig::Kafka::shared().broker().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let unique = folder.path().file_name().unwrap().to_string_lossy().replace('.', "");
        let prefix = format!("kill-{name}-{unique}");
        let topics = [("in", PARTITIONS), ("out", 2), ("state", PARTITIONS)];
        let topics = topics.map(|(name, count)| TopicConfig::new(format!("{prefix}-{name}"), count));
        patiently(|| broker.ensure_topics(&topics));
        Self { broker, prefix, folder }
    }

    fn marks(&self) -> std::path::PathBuf {
        self.folder.path().join("marks")
    }

    fn start(&self, crash: Option<&str>, switch: Option<&str>) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "kill::child", "--nocapture"])
            .env(PREFIX, &self.prefix)
            .env("KAFKA_BOOTSTRAP", self.broker.bootstrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if let Some(crash) = crash {
            command.env(CRASH, format!("counter:{crash}{}", self.marks().display()));
        }
        if let Some(switch) = switch {
            command.env(SWITCH, switch);
        }
        Process(command.spawn().unwrap())
    }

    /// Writes over about three seconds, so that there are many transactions to die in.
    fn write(&self) {
        let mut producer = self.broker.producer(&ProducerConfig::new("kill")).unwrap();
        for n in 0..RECORDS {
            let key = n % KEYS;
            let output = Output {
                topic: format!("{}-in", self.prefix).into(),
                partition: Some(key as i32 % PARTITIONS),
                key: Some(format!("key{key}").into_bytes()),
                value: Some(b"v".to_vec()),
                headers: Vec::new(),
            };
            patiently(|| producer.send(&output));
            if n % 16 == 15 {
                patiently(|| producer.flush());
                thread::sleep(Duration::from_millis(30));
            }
        }
        patiently(|| producer.flush());
    }

    /// The numbers said for each key, in order.
    fn said(&self) -> BTreeMap<String, Vec<u64>> {
        let topic = format!("{}-out", self.prefix);
        let partitions = partitions_of(&topic, 2);
        let mut consumer = self.broker.consumer(&kafka::ConsumerConfig::new("kill", None)).unwrap();
        let mut ends = BTreeMap::new();
        for partition in &partitions {
            patiently(|| {
                self.broker
                    .watermarks(partition)
                    .map(|(_, high)| _ = ends.insert(partition.clone(), high))
            });
        }
        let from: Vec<_> = partitions.iter().map(|partition| (partition.clone(), 0)).collect();
        consumer.assign(&from).unwrap();
        let mut said: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut batch = Batch::default();
        let started = Instant::now();
        // An open transaction holds the position back: then this is all there is to see for now.
        while ends.iter().any(|(p, end)| consumer.position(p) < Some(*end))
            && started.elapsed() < Duration::from_secs(2)
        {
            let _ = consumer.poll(Duration::from_millis(100), &mut batch);
            for record in batch.iter() {
                let number = String::from_utf8_lossy(record.value.unwrap()).parse().unwrap();
                let key = String::from_utf8_lossy(record.key.unwrap()).into_owned();
                said.entry(key).or_default().push(number);
            }
        }
        said
    }

    /// Waits until everything has been said, and tells whether it was said once and in order.
    fn is_exact(&self) -> bool {
        let expected: Vec<u64> = (1..=(RECORDS / KEYS) as u64).collect();
        let started = Instant::now();
        loop {
            let said = self.said();
            let complete = said.len() == KEYS && said.values().all(|numbers| numbers.len() >= expected.len());
            if complete {
                return said.values().all(|numbers| *numbers == expected);
            }
            assert!(started.elapsed() < PATIENCE, "{}: the work did not go on", self.prefix);
            thread::sleep(Duration::from_millis(500));
        }
    }

    fn wait_for_mark(&self) -> String {
        let started = Instant::now();
        loop {
            let marks = fs::read_to_string(self.marks()).unwrap_or_default();
            if marks.ends_with('\n') {
                return marks;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "{}: its crash point was not reached",
                self.prefix
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn patiently(mut call: impl FnMut() -> Result<(), kafka::Error>) {
    let started = Instant::now();
    while let Err(error) = call() {
        assert!(
            error.class() == kafka::Class::Retriable && started.elapsed() < PATIENCE,
            "{error}"
        );
        thread::sleep(Duration::from_millis(50));
    }
}

fn killed_at(point: Point, nth: u32) {
    let run = Run::new(&format!("{}-{nth}", point.name()));
    let mut first = run.start(Some(&format!("{}:{nth}:", point.name())), None);
    // What it would find written already, it would read at once and commit in one transaction.
    wait_for_offsets(&run, 0);
    thread::scope(|scope| {
        scope.spawn(|| run.write());
        let mark = run.wait_for_mark();
        let records: usize = mark.split_whitespace().last().unwrap().parse().unwrap();
        assert!(records > 0, "{mark}: no output was in the open transaction");
        assert_eq!(first.0.wait().unwrap().signal(), Some(9));
        let _second = run.start(None, None);
        // What is said twice may be said last: nothing is judged before everything is read.
        wait_for_offsets(&run, RECORDS as i64);
        assert!(run.is_exact(), "{point:?}, {nth}");
    });
}

#[test]
fn killed_at_any_point_the_counts_are_exact() {
    let _alone = rig::Kafka::alone();
    thread::scope(|scope| {
        for point in Point::ALL {
            for nth in [1, 4] {
                scope.spawn(move || killed_at(point, nth));
            }
        }
    });
}

/// Stops a process between its poll and its commit, lets another take over, and wakes it in the middle of its transaction.
fn zombie(switch: Option<&str>) -> bool {
    let run = Run::new(&format!("zombie-{}", switch.unwrap_or("fenced")));
    // After a step, not after its state is written: that would hold the successor's restore back, as it must.
    let first = run.start(Some("after_step:3:stop:"), switch);
    wait_for_offsets(&run, 0);
    thread::scope(|scope| {
        scope.spawn(|| run.write());
        run.wait_for_mark();
        let _second = run.start(None, None);
        // Its transaction holds readers back: what the second says is counted by its committed offsets.
        wait_for_offsets(&run, RECORDS as i64);
        signal("-CONT", &first);
        run.is_exact() && {
            // What the zombie still wanted to say has had time to come.
            thread::sleep(Duration::from_secs(3));
            run.is_exact()
        }
    })
}

/// Waits until the group has committed offsets for every partition that add up to so many records.
fn wait_for_offsets(run: &Run, records: i64) {
    let partitions = partitions_of(&format!("{}-in", run.prefix), PARTITIONS);
    let config = kafka::ConsumerConfig::new("kill", Some(&run.prefix));
    let mut consumer = run.broker.consumer(&config).unwrap();
    let started = Instant::now();
    loop {
        assert!(
            started.elapsed() < PATIENCE,
            "{}: the offsets did not get to {records}",
            run.prefix
        );
        if let Ok(committed) = consumer.committed(&partitions, Duration::from_secs(2)) {
            let known: Vec<i64> = committed.iter().flatten().map(|committed| committed.offset).collect();
            if known.len() == partitions.len() && known.iter().sum::<i64>() >= records {
                return;
            }
        }
        thread::sleep(Duration::from_millis(200));
    }
}

fn signal(name: &str, process: &Process) {
    let sent = Command::new("kill").args([name, &process.0.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

#[test]
fn a_zombie_is_fenced_and_without_fencing_it_is_not() {
    let _alone = rig::Kafka::alone();
    thread::scope(|scope| {
        let fenced = scope.spawn(|| zombie(None));
        let unfenced = scope.spawn(|| zombie(Some("fencing")));
        assert!(fenced.join().unwrap(), "a zombie doubled something");
        assert!(
            !unfenced.join().unwrap(),
            "without fencing, a zombie must be seen to double"
        );
    });
}

#[test]
fn without_offsets_a_restart_doubles() {
    let run = Run::new("offsets");
    let mut first = run.start(Some("after_commit:1:"), Some("offsets"));
    thread::scope(|scope| {
        scope.spawn(|| run.write());
        run.wait_for_mark();
        first.0.wait().unwrap();
        let _second = run.start(None, None);
        wait_for_offsets(&run, RECORDS as i64);
        assert!(!run.is_exact(), "without offsets, a restart must be seen to double");
    });
    assert!(Path::new(&run.marks()).is_file());
}
