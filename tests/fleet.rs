//! A fleet under test: processes of `homeostat run` on one topic prefix, what is fed to them, and what they published.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use kafka::{Broker, Class, ConsumerConfig, Polled, ProducerConfig, TopicConfig};
use protocol::{Batch, Output, TopicPartition, schema};
use serde_json::Value;
use tests::rig;

use crate::programs::program;

/// How long records may take to be delivered.
const PATIENCE: Duration = Duration::from_secs(60);

/// Says that a test is over, however it ends: its other threads look at the flag.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// One record as read back.
#[derive(Clone, Debug)]
pub struct Published {
    pub key: Option<String>,
    pub headers: BTreeMap<String, String>,
    pub value: Option<Vec<u8>>,
    /// The record's Kafka timestamp.
    pub timestamp_ms: i64,
}

impl Published {
    pub fn kind(&self) -> &str {
        self.headers.get("ce_type").map_or("", String::as_str)
    }

    /// Invariant 19, for everything that a test reads back.
    fn fits_its_schema(&self) -> anyhow::Result<()> {
        static VALIDATORS: OnceLock<BTreeMap<&str, jsonschema::Validator>> = OnceLock::new();
        if self.kind().is_empty() {
            return Ok(());
        }
        let validators = VALIDATORS.get_or_init(|| {
            let validator = |text| jsonschema::validator_for(&serde_json::from_str(text).expect("a schema is JSON"));
            let all = schema::ALL.iter();
            all.map(|(file, text)| (*file, validator(text).expect("a schema is valid")))
                .collect()
        });
        let file = schema::schema_for(self.kind()).with_context(|| format!("{} has no schema", self.kind()))?;
        match validators[file].iter_errors(&self.json()).next() {
            Some(error) => bail!(
                "{} breaks {file} at {:?}: {error}",
                self.kind(),
                error.instance_path().as_str()
            ),
            None => Ok(()),
        }
    }

    pub fn json(&self) -> Value {
        self.value.as_deref().map_or(Value::Null, |value| {
            serde_json::from_slice(value).expect("event data is JSON")
        })
    }
}

/// A fleet: prefix, folder with pipelines and configuration, and the broker.
pub struct Fleet {
    pub broker: Arc<dyn Broker>,
    pub bootstrap: String,
    pub prefix: String,
    pub tenant: String,
    pub folder: tempfile::TempDir,
}

/// A running process of the fleet; killed when dropped.
pub struct Process {
    pub child: Child,
    pub log: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Fleet {
    /// A fleet with one pipeline. `config` is TOML beyond the prefix.
    pub fn new(name: &str, pipeline: &str, config: &str) -> anyhow::Result<Self> {
        let kafka = rig::Kafka::shared();
        let prefix = format!("{name}-{}.", uuid_like());
        let folder = tempfile::tempdir()?;
        let pipelines = folder.path().join("pipelines").join(name);
        fs::create_dir_all(&pipelines)?;
        fs::write(pipelines.join("pipeline.sql"), pipeline.replace("{prefix}", &prefix))?;
        let config = format!("[topics]\nprefix = \"{prefix}\"\ntenant = \"{name}\"\n{config}");
        fs::write(folder.path().join("homeostat.toml"), config)?;
        Ok(Self {
            broker: kafka.broker()?,
            bootstrap: kafka.bootstrap.clone(),
            prefix,
            tenant: name.to_owned(),
            folder,
        })
    }

    /// The full name of a topic of this fleet, also of its sources.
    pub fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub fn create(&self, name: &str, partitions: i32, log_append_time: bool) -> anyhow::Result<()> {
        let mut topic = TopicConfig::new(self.topic(name), partitions);
        topic.log_append_time = log_append_time;
        rig::patiently(|| self.broker.ensure_topics(std::slice::from_ref(&topic)))
    }

    /// Writes values to explicit partitions, in order.
    pub fn feed(&self, name: &str, rows: impl IntoIterator<Item = (i32, Vec<u8>)>) -> anyhow::Result<()> {
        self.feed_by(&*self.broker, name, rows)
    }

    /// [`feed`](Self::feed) through a client of other settings.
    pub fn feed_by(
        &self,
        broker: &dyn Broker,
        name: &str,
        rows: impl IntoIterator<Item = (i32, Vec<u8>)>,
    ) -> anyhow::Result<()> {
        let mut producer = broker.producer(&ProducerConfig::new("test"))?;
        let topic: Arc<str> = self.topic(name).into();
        for (partition, value) in rows {
            producer.send(&Output {
                topic: Arc::clone(&topic),
                partition: Some(partition),
                key: None,
                value: Some(value),
                headers: Vec::new(),
            })?;
        }
        // A broker that shares its machine with a build may take longer than one call waits.
        let begun = Instant::now();
        loop {
            match producer.flush() {
                Err(error) if error.class() == Class::Retriable && begun.elapsed() < PATIENCE => {}
                flushed => return Ok(flushed?),
            }
        }
    }

    /// Starts one more process of the fleet: identical configuration, environment and working directory.
    pub fn start(&self, environment: &[(&str, &str)]) -> anyhow::Result<Process> {
        self.start_with(&[], environment)
    }

    /// The same, with more to say to it.
    pub fn start_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<Process> {
        let log = self.folder.path().join(format!("{}.log", uuid_like()));
        let child = program("homeostat")
            .arg("run")
            .arg("--pipelines")
            .arg(self.folder.path().join("pipelines"))
            .arg("--config")
            .arg(self.folder.path().join("homeostat.toml"))
            .args(arguments)
            .env("KAFKA_BOOTSTRAP", &self.bootstrap)
            .envs(environment.iter().copied())
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("starting homeostat")?;
        Ok(Process { child, log })
    }

    /// Everything committed on a topic so far.
    pub fn read(&self, name: &str) -> anyhow::Result<Vec<Published>> {
        // A topic that was only just created may not have a leader yet.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match self.read_now(name) {
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(200)),
                done => return done,
            }
        }
    }

    fn read_now(&self, name: &str) -> anyhow::Result<Vec<Published>> {
        let topic = self.topic(name);
        let Some(count) = self.broker.partition_count(&topic)? else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for partition in kafka::partitions_of(&topic, count) {
            self.read_partition(&partition, &mut found)?;
        }
        Ok(found)
    }

    fn read_partition(&self, partition: &TopicPartition, found: &mut Vec<Published>) -> anyhow::Result<()> {
        let (low, high) = self.broker.watermarks(partition)?;
        let mut consumer = self.broker.consumer(&ConsumerConfig::new("test", None))?;
        consumer.assign(&[(partition.clone(), low)])?;
        let mut batch = Batch::default();
        let deadline = Instant::now() + Duration::from_secs(15);
        while consumer.position(partition).unwrap_or(low) < high && Instant::now() < deadline {
            if consumer.poll(Duration::from_millis(100), &mut batch)? != Polled::Records {
                // What stays open at the end belongs to a transaction that is not committed yet.
                if consumer.caught_up().contains(partition) {
                    break;
                }
                continue;
            }
            for record in batch.iter() {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let published = Published {
                    key: record.key.map(text),
                    headers: record
                        .headers()
                        .map(|(name, value)| (name.to_owned(), text(value)))
                        .collect(),
                    value: record.value.map(<[u8]>::to_vec),
                    timestamp_ms: record.timestamp_ms,
                };
                published.fits_its_schema()?;
                found.push(published);
            }
        }
        Ok(())
    }

    /// Reads a topic until `done` says so; the error shows what there was.
    pub fn wait(
        &self,
        name: &str,
        patience: Duration,
        done: impl Fn(&[Published]) -> bool,
    ) -> anyhow::Result<Vec<Published>> {
        let deadline = Instant::now() + patience;
        loop {
            let found = self.read(name)?;
            if done(&found) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                let last: Vec<String> = found
                    .iter()
                    .rev()
                    .take(3)
                    .map(|record| format!("{} {}", record.kind(), record.json()))
                    .collect();
                bail!(
                    "{} has {} records after {patience:?} and is not complete; the last: {last:#?}",
                    name,
                    found.len()
                );
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

impl Process {
    /// SIGTERM, then the exit code.
    pub fn terminate(mut self) -> anyhow::Result<i32> {
        Command::new("kill")
            .arg("-TERM")
            .arg(self.child.id().to_string())
            .status()?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return status.code().with_context(|| format!("ended by {status}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!(
            "did not drain within 30 s; its log:\n{}",
            fs::read_to_string(&self.log)?
        )
    }

    /// Waits for the process to die by SIGKILL, as at a crash point.
    pub fn wait_killed(&mut self, patience: Duration) -> anyhow::Result<()> {
        use std::os::unix::process::ExitStatusExt;
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                if status.signal() == Some(9) {
                    return Ok(());
                }
                bail!(
                    "ended by {status} instead of SIGKILL; its log:\n{}",
                    fs::read_to_string(&self.log)?
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!(
            "the crash point was not reached within {patience:?}; its log:\n{}",
            fs::read_to_string(&self.log)?
        )
    }
}

/// Events of a topic as comparable sets: per key, in order, (id, type, data) without the wall-clock and trace fields that
/// `src/README.md` lists.
pub fn comparable(published: &[Published]) -> BTreeMap<String, Vec<(String, String, Value)>> {
    let mut by_key: BTreeMap<String, Vec<(String, String, Value)>> = BTreeMap::new();
    for record in published {
        if [protocol::cloudevent::PROGRESS, protocol::cloudevent::JOURNAL].contains(&record.kind()) {
            continue;
        }
        let mut data = record.json();
        strip(&mut data);
        let id = record.headers.get("ce_id").cloned().unwrap_or_default();
        let entry = (id, record.kind().to_owned(), data);
        by_key
            .entry(record.key.clone().unwrap_or_default())
            .or_default()
            .push(entry);
    }
    by_key
}

fn strip(data: &mut Value) {
    const WALL_CLOCK: [&str; 8] = [
        "decided_at",
        "start_deadline",
        "at",
        "clock",
        "changed_at",
        "opened_at",
        "requested_at",
        "expires_at",
    ];
    match data {
        Value::Object(fields) => {
            fields.retain(|name, _| {
                !WALL_CLOCK.contains(&name.as_str()) && !name.ends_with("_ms") && !name.ends_with("_now")
            });
            fields.values_mut().for_each(strip);
        }
        Value::Array(values) => values.iter_mut().for_each(strip),
        _ => {}
    }
}

/// Unique within a test run.
pub fn uuid_like() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_millis());
    format!(
        "{:x}{:x}{:x}",
        now,
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}
