//! `pipelines/starter` on a real Kafka, as the README leads a newcomer through it: shadow, then approve.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use kafka::{Broker, Consumer, ConsumerConfig, ProducerConfig, TopicConfig};
use protocol::{
    Batch, CloudEvent, Output, Topics, cloudevent,
    message::{self, Action, Anomaly, ApprovalRecord, Decision, DecisionKind, Mode, TimeProgress},
};
use rustix::process::{Pid, Signal, kill_process};
use tests::rig::Kafka;

use crate::programs::{program, root};

/// Enough of them that two silent ones are no failure of the whole fleet.
const SERVICES: [&str; 8] = [
    "checkout",
    "payment",
    "cart",
    "catalogue",
    "frontend",
    "shipping",
    "search",
    "mail",
];

/// A fleet with the starter's pipeline, alone on its topics.
struct Fleet {
    broker: Arc<kafka::Kafka>,
    topics: Topics,
    folder: tempfile::TempDir,
    source: String,
    processor: Option<Child>,
    /// Services that send no heartbeat.
    silent: Arc<[AtomicBool; SERVICES.len()]>,
    over: Arc<AtomicBool>,
}

impl Fleet {
    fn new() -> Self {
        let broker = Kafka::shared().broker().unwrap();
        let name = format!("starter-{}", std::process::id());
        let (topics, source) = (Topics::new(format!("{name}.")), format!("{name}-heartbeats"));
        tests::rig::patiently(|| broker.ensure_topics(&[TopicConfig::new(&source, 2)])).unwrap();
        let fleet = Self {
            broker,
            topics,
            folder: tempfile::tempdir().unwrap(),
            source,
            processor: None,
            silent: Arc::default(),
            over: Arc::default(),
        };
        fleet.send_heartbeats();
        fleet
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program("homeostat");
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("KAFKA_BOOTSTRAP", &Kafka::shared().bootstrap)
            .env("HOMEOSTAT__TOPICS__PREFIX", self.topics.prefix())
            // The shipped grace of five minutes is longer than a test may take; the rest is as shipped.
            .env("HOMEOSTAT__DECIDE__STARTUP_GRACE", "1s")
            .stdin(Stdio::null());
        command
    }

    /// The pipeline as shipped, on this fleet's topic, in this mode.
    fn run(&mut self, mode: &str) {
        let shipped = fs::read_to_string(root().join("pipelines/starter/pipeline.sql")).unwrap();
        assert!(shipped.contains("topic = 'heartbeats'") && shipped.contains("MODE SHADOW;"));
        let ours = shipped
            .replace("topic = 'heartbeats'", &format!("topic = '{}'", self.source))
            .replace("MODE SHADOW;", &format!("MODE {mode};"));
        let folder = self.folder.path().join("fleet/starter");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("pipeline.sql"), ours).unwrap();
        let log = fs::File::create(self.folder.path().join("processor.log")).unwrap();
        let mut command = self.command(&["run", "--pipelines", "fleet"]);
        self.processor = Some(command.stderr(log).spawn().unwrap());
    }

    /// SIGTERM drains and ends well.
    fn stop(&mut self) {
        let mut child = self.processor.take().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return assert!(status.success(), "{status}: {}", self.log());
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                panic!("did not drain: {}", self.log());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("processor.log")).unwrap_or_default()
    }

    fn send_heartbeats(&self) {
        let (silent, over) = (Arc::clone(&self.silent), Arc::clone(&self.over));
        let (broker, topic) = (Arc::clone(&self.broker), self.source.clone());
        thread::spawn(move || {
            let mut producer = broker.producer(&ProducerConfig::new("starter-test")).unwrap();
            while !over.load(Ordering::Relaxed) {
                for (index, service) in SERVICES.iter().enumerate() {
                    if !silent[index].load(Ordering::Relaxed) {
                        let beat = serde_json::json!({"service": service, "instance": format!("{service}-1"), "time": "2026-01-02T03:04:05Z"});
                        let value = Some(beat.to_string().into_bytes());
                        let partition = Some((index % 2) as i32);
                        let record = Output {
                            topic: topic.as_str().into(),
                            partition,
                            key: None,
                            value,
                            headers: Vec::new(),
                        };
                        producer.send(&record).unwrap();
                    }
                }
                producer.flush().unwrap();
                thread::sleep(Duration::from_secs(1));
            }
        });
    }

    fn silence(&self, service: &str, silent: bool) {
        let index = SERVICES.iter().position(|name| *name == service).unwrap();
        self.silent[index].store(silent, Ordering::Relaxed);
    }

    fn follow(&self, topic: &str) -> Follow {
        let count = self.broker.partition_count(topic).unwrap().unwrap();
        let mut consumer = self
            .broker
            .consumer(&ConsumerConfig::new("starter-test", None))
            .unwrap();
        let positions: Vec<_> = kafka::partitions_of(topic, count)
            .into_iter()
            .map(|partition| (partition, 0))
            .collect();
        consumer.assign(&positions).unwrap();
        Follow {
            consumer,
            batch: Batch::default(),
        }
    }

    fn operator(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{arguments:?}: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        said
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(child) = &mut self.processor {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Reads one topic from its beginning.
struct Follow {
    consumer: Box<dyn Consumer>,
    batch: Batch,
}

impl Follow {
    /// The first record for which `found` has an answer.
    fn until<T>(&mut self, timeout: Duration, mut found: impl FnMut(&str, &[u8]) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            self.consumer.poll(Duration::from_millis(100), &mut self.batch).unwrap();
            for record in self.batch.iter() {
                let (Some(kind), Some(value)) = (CloudEvent::kind_of(&record), record.value) else {
                    continue;
                };
                if let Some(found) = found(kind, value) {
                    return Some(found);
                }
            }
        }
        None
    }
}

fn decision(kind: &str, value: &[u8]) -> Option<Decision> {
    (kind == cloudevent::DECISION).then(|| message::read("decision", value).unwrap())
}

/// Waits until every service has been heard of, since whoever never spoke cannot fall silent.
fn wait_until_heard(fleet: &Fleet, anomalies: &mut Follow) {
    let mut population: BTreeMap<i32, u64> = BTreeMap::new();
    let heard = anomalies.until(Duration::from_secs(60), |kind, value| {
        if kind == cloudevent::PROGRESS {
            let progress: TimeProgress = message::read("progress", value).unwrap();
            population.insert(progress.partition, progress.population.values().sum());
        }
        (population.values().sum::<u64>() >= SERVICES.len() as u64).then_some(())
    });
    assert_eq!(heard, Some(()), "not every service was heard of: {}", fleet.log());
}

fn wait_for_topic(fleet: &Fleet, topic: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while fleet.broker.partition_count(topic).unwrap().is_none() {
        assert!(Instant::now() < deadline, "{topic} was not created: {}", fleet.log());
        thread::sleep(Duration::from_millis(100));
    }
}

/// On the live record the same policy comes to the same decision, and one that would only alert to that.
fn shadow_is_tried_again_on_what_the_fleet_recorded(fleet: &Fleet, shadow: &Decision) {
    let ours = fs::read_to_string(fleet.folder.path().join("fleet/starter/pipeline.sql")).unwrap();
    let milder = ours.replace("DO ACTION 'restart'", "DO ACTION 'alert'");
    assert_ne!(ours, milder);
    fs::write(fleet.folder.path().join("starter.sql"), milder).unwrap();
    let policies = ["--policy", "fleet/starter", "--policy", "starter.sql"];
    let told = fleet.operator(&[["backtest"].as_slice(), &policies, &["--output", "json"]].concat());
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    for (report, only, action) in [(0, "only_first", "restart"), (1, "only_second", "alert")] {
        let fired = &told["reports"][report]["fired"];
        assert_eq!(fired.as_array().map(Vec::len), Some(1), "{told}");
        assert_eq!(fired[0]["incident_id"], shadow.incident_id.to_string(), "{told}");
        assert_eq!(
            (&fired[0]["verdict"], &fired[0]["action"]),
            (&"shadow".into(), &action.into())
        );
        assert_eq!(&told["difference"][only], fired);
    }
    let why = fleet.operator(&["explain-decision", &shadow.decision_id.to_string()]);
    assert!(why.contains("would restart checkout, had the mode allowed"), "{why}");
    assert!(
        why.contains(&format!("evidence: anomaly {}: window ", shadow.evidence[0])),
        "{why}"
    );
}

#[test]
fn the_starter_watches_in_shadow_and_asks_when_told_to() {
    let mut fleet = Fleet::new();
    fleet.run("SHADOW");
    wait_for_topic(&fleet, &fleet.topics.decisions());
    let mut anomalies = fleet.follow(&fleet.topics.anomalies());
    let mut decisions = fleet.follow(&fleet.topics.decisions());
    let mut actions = fleet.follow(&fleet.topics.actions());

    wait_until_heard(&fleet, &mut anomalies);
    // Two fall silent: one that the policy names, and one that it does not.
    let since = Instant::now();
    fleet.silence("checkout", true);
    fleet.silence("cart", true);
    let mut quiet = Vec::new();
    anomalies.until(Duration::from_secs(75), |kind, value| {
        if kind == cloudevent::ANOMALY {
            let anomaly: Anomaly = message::read("anomaly", value).unwrap();
            quiet.push(anomaly.target["service"].as_str().unwrap().to_owned());
        }
        (quiet.contains(&"checkout".to_owned()) && quiet.contains(&"cart".to_owned())).then_some(())
    });
    assert!(
        since.elapsed() > Duration::from_secs(28),
        "{quiet:?} after {:?}",
        since.elapsed()
    );
    quiet.sort();
    quiet.dedup();
    assert_eq!(quiet, ["cart", "checkout"], "{}", fleet.log());
    let shadow = decisions.until(Duration::from_secs(30), |kind, value| {
        let decision = decision(kind, value)?;
        assert!(
            decision.target_key.contains("checkout"),
            "only what the policy names: {decision:?}"
        );
        (decision.verdict == DecisionKind::Shadow).then_some(decision)
    });
    let shadow = shadow.unwrap_or_else(|| panic!("no decision: {}", fleet.log()));
    assert_eq!(shadow.mode, Mode::Shadow);
    assert!(
        !shadow.gates.is_empty() && shadow.gates.iter().all(|gate| gate.passed),
        "{shadow:?}"
    );
    let live = actions.until(Duration::from_secs(2), |kind, value| {
        let live =
            kind == cloudevent::ACTION_REQUESTED && message::read::<Action>("action", value).unwrap().mode == "live";
        live.then_some(())
    });
    assert_eq!(live, None, "shadow asks nobody to do anything");
    fleet.operator(&["status"]);
    shadow_is_tried_again_on_what_the_fleet_recorded(&fleet, &shadow);
    fleet.stop();

    // The same pipeline in APPROVE, and the fleet told that it may ask.
    fleet.silence("checkout", false);
    fleet.silence("cart", false);
    fleet.operator(&["mode", "approve", "--service", "payment", "--action", "restart"]);
    fleet.run("APPROVE");
    // It is restored, reads on, and has heard the two again: a silence that began before it was stopped has ended.
    let mut again = Vec::new();
    let ended = anomalies.until(Duration::from_secs(60), |kind, value| {
        if kind == cloudevent::ANOMALY {
            let anomaly: Anomaly = message::read("anomaly", value).unwrap();
            if !anomaly.is_anomaly {
                again.push(anomaly.target["service"].as_str().unwrap().to_owned());
            }
        }
        (again.contains(&"checkout".to_owned()) && again.contains(&"cart".to_owned())).then_some(())
    });
    assert_eq!(ended, Some(()), "{again:?}: {}", fleet.log());
    fleet.silence("payment", true);
    let mut approvals = fleet.follow(&fleet.topics.approvals());
    let asked = approvals.until(Duration::from_secs(90), |kind, value| {
        (kind == cloudevent::APPROVAL_REQUESTED).then(|| message::read::<ApprovalRecord>("approval", value).unwrap())
    });
    let asked = asked.unwrap_or_else(|| panic!("nobody was asked: {}", fleet.log()));
    assert!(asked.target_key.contains("payment"));
    fleet.operator(&["approve", &asked.approval_id.to_string()]);
    let command = actions.until(Duration::from_secs(30), |kind, value| {
        (kind == cloudevent::ACTION_REQUESTED).then(|| message::read::<Action>("action", value).unwrap())
    });
    let command = command.unwrap_or_else(|| panic!("no command after the approval: {}", fleet.log()));
    assert_eq!((command.mode.as_str(), command.action_id), ("live", asked.action_id));
    assert_eq!(command.target.target.name, "payment");
    fleet.stop();
}
