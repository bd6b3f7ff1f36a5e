//! What the demonstration sees of the processor: records on its topics, read as anybody else would read them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::SyncSender,
    },
    time::Duration,
};

use kafka::{Broker, ConsumerConfig, Polled};
use protocol::{
    Batch, CloudEvent, Record, Target, Topics, cloudevent,
    message::{self, Action, Anomaly, Decision, Outcome, TimeProgress, VerdictRecord},
};
use serde::Deserialize;
use uuid::Uuid;

use crate::{Error, service::HEARTBEATS_TOPIC};

/// Where a record stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
}

/// One record, as far as the timeline cares.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub place: Place,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// A process says that it lives.
    Heartbeat {
        service: String,
        pid: u32,
    },
    /// Event time has come so far: the processor works.
    Progress {
        watermark_ms: Option<i64>,
    },
    Anomaly {
        service: String,
        anomaly: Box<Anomaly>,
    },
    Decision {
        service: String,
        decision: Box<Decision>,
    },
    Command {
        service: String,
        action: Box<Action>,
    },
    Outcome {
        service: String,
        outcome: Box<Outcome>,
    },
    Verdict {
        service: String,
        verdict: VerdictRecord,
    },
}

#[derive(Deserialize)]
struct Heartbeat {
    service: String,
    instance: String,
}

/// Reads a record; `None` for what the timeline does not show.
pub fn read(topics: &Topics, record: &Record<'_>) -> Option<Seen> {
    let value = record.value?;
    let topic = &*record.partition.topic;
    let what = if topic == HEARTBEATS_TOPIC {
        let beat: Heartbeat = serde_json::from_slice(value).ok()?;
        let pid = beat.instance.rsplit('-').next()?.parse().ok()?;
        What::Heartbeat {
            service: beat.service,
            pid,
        }
    } else {
        event(topics, record, value)?
    };
    let place = Place {
        topic: topic.to_owned(),
        partition: record.partition.partition,
        offset: record.offset,
    };
    Some(Seen { place, what })
}

fn event(topics: &Topics, record: &Record<'_>, value: &[u8]) -> Option<What> {
    let topic = &*record.partition.topic;
    let kind = CloudEvent::kind_of(record)?;
    Some(match kind {
        cloudevent::PROGRESS => {
            let progress: TimeProgress = message::read("progress", value).ok()?;
            What::Progress {
                watermark_ms: progress.watermark_ms,
            }
        }
        cloudevent::ANOMALY => {
            let anomaly: Anomaly = message::read("anomaly", value).ok()?;
            What::Anomaly {
                service: service_of(record)?,
                anomaly: Box::new(anomaly),
            }
        }
        cloudevent::DECISION => {
            let decision: Decision = message::read("decision", value).ok()?;
            What::Decision {
                service: service_of(record)?,
                decision: Box::new(decision),
            }
        }
        cloudevent::ACTION_REQUESTED if topic == topics.actions() => {
            let action: Action = message::read("action", value).ok()?;
            What::Command {
                service: action.target.target.name.clone(),
                action: Box::new(action),
            }
        }
        cloudevent::VERDICT => {
            let verdict: VerdictRecord = message::read("verdict", value).ok()?;
            What::Verdict {
                service: service_of(record)?,
                verdict,
            }
        }
        kind if kind.starts_with(cloudevent::OUTCOME_PREFIX) => {
            let outcome: Outcome = message::read("outcome", value).ok()?;
            What::Outcome {
                service: service_of(record)?,
                outcome: Box::new(outcome),
            }
        }
        _ => return None,
    })
}

/// The service that a record is about: its key is the target's.
fn service_of(record: &Record<'_>) -> Option<String> {
    let key = std::str::from_utf8(record.key?).ok()?;
    Some(Target::from_key(key).ok()?.name)
}

/// Reads the fleet's topics and the heartbeats from where they end now, until told to stop.
pub fn follow(broker: &dyn Broker, topics: &Topics, out: &SyncSender<Seen>, stop: &AtomicBool) -> Result<(), Error> {
    let mut positions = Vec::new();
    let followed = [
        topics.anomalies(),
        topics.decisions(),
        topics.actions(),
        topics.outcomes(),
    ];
    for topic in followed.into_iter().chain([HEARTBEATS_TOPIC.to_owned()]) {
        let partitions = broker
            .partition_count(&topic)?
            .ok_or_else(|| kafka::Error::UnknownTopic(topic.clone()))?;
        for partition in kafka::partitions_of(&topic, partitions) {
            let (_, end) = broker.watermarks(&partition)?;
            positions.push((partition, end));
        }
    }
    let mut consumer = broker.consumer(&ConsumerConfig::new("homeostat-demo", None))?;
    consumer.assign(&positions)?;
    let mut batch = Batch::default();
    while !stop.load(Ordering::Relaxed) {
        if consumer.poll(Duration::from_millis(100), &mut batch)? != Polled::Records {
            continue;
        }
        for seen in batch.iter().filter_map(|record| read(topics, &record)) {
            if out.send(seen).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Follows on a thread of its own, until dropped.
pub struct Follower {
    stop: Arc<AtomicBool>,
}

impl Follower {
    pub fn start(broker: Arc<dyn Broker>, topics: Topics, out: SyncSender<Seen>) -> Result<Self, Error> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let run = move || {
            if let Err(error) = follow(&*broker, &topics, &out, &told) {
                tracing::error!(%error, "the timeline cannot be followed any further");
            }
        };
        std::thread::Builder::new()
            .name("timeline".into())
            .spawn(run)
            .map_err(Error::system("cannot start a thread"))?;
        Ok(Self { stop })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The process that an outcome says it started.
pub fn pid_after(outcome: &Outcome) -> Option<u32> {
    outcome.effect.get("pid_after")?.as_u64()?.try_into().ok()
}

impl What {
    /// Where in the loop it stands: records of several topics that arrive together are told in this order.
    pub fn rank(&self) -> u8 {
        match self {
            Self::Heartbeat { .. } | Self::Progress { .. } => 0,
            Self::Anomaly { .. } => 1,
            Self::Decision { .. } => 2,
            Self::Command { .. } => 3,
            Self::Outcome { .. } => 4,
            Self::Verdict { .. } => 5,
        }
    }
}

/// For messages that name an action.
pub fn action_id(what: &What) -> Option<Uuid> {
    match what {
        What::Decision { decision, .. } => decision.action_id,
        What::Command { action, .. } => Some(action.action_id),
        What::Outcome { outcome, .. } => Some(outcome.action_id),
        What::Verdict { verdict, .. } => Some(verdict.action_id),
        What::Heartbeat { .. } | What::Progress { .. } | What::Anomaly { .. } => None,
    }
}
