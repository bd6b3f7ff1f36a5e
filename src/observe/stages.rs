//! What the loop tells, as metrics, health and spans.

use std::{
    cell::Cell,
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use kafka::{Commit, Observer};
use protocol::TopicPartition;

use crate::{Health, Metrics, Spans, incident};

/// Spans of anomalies lately exported: several decisions may rest on one anomaly.
const ANOMALIES_MAX: usize = 4_096;

/// Watches every stage instance of the process.
pub struct Stages {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    spans: Spans,
    anomalies: Mutex<HashSet<[u8; 8]>>,
}

impl Stages {
    pub(crate) fn new(metrics: Arc<Metrics>, health: Arc<Health>, spans: Spans) -> Self {
        Self {
            metrics,
            health,
            spans,
            anomalies: Mutex::default(),
        }
    }

    /// A stage that says anything has its topics and runs.
    fn alive(&self, stage: &'static str) {
        self.health.beat(stage);
        self.health.set_ready(true);
    }

    fn trace(&self, commit: &Commit<'_>) {
        if commit.stage != "decide" || !self.spans.are_wanted() {
            return;
        }
        for span in commit.outputs.iter().flat_map(incident::spans_of) {
            if span.parent.is_some() || self.is_first(span.span_id) {
                self.spans.record(span);
            }
        }
    }

    fn is_first(&self, anomaly: [u8; 8]) -> bool {
        let mut anomalies = self.anomalies.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if anomalies.len() >= ANOMALIES_MAX {
            anomalies.clear();
        }
        anomalies.insert(anomaly)
    }
}

impl Observer for Stages {
    fn committed(&self, commit: &Commit<'_>) {
        let stage = [("stage", commit.stage)];
        let metrics = &self.metrics;
        metrics.count("commits_total", &stage, 1.0);
        metrics.count("records_total", &stage, commit.records as f64);
        metrics.count("bytes_total", &stage, commit.bytes as f64);
        metrics.observe_s("step_seconds", &stage, commit.step_s);
        metrics.observe_s("commit_seconds", &stage, commit.commit_s);
        for (partition, lag) in commit.lag {
            let number = partition.partition.to_string();
            let labels = [
                ("stage", commit.stage),
                ("topic", &*partition.topic),
                ("partition", &*number),
            ];
            metrics.gauge("lag", &labels, 0, *lag as f64);
        }
        let mut rest = commit.outputs;
        while let Some(first) = rest.first() {
            let run = rest.iter().take_while(|output| output.topic == first.topic).count();
            let labels = [("stage", commit.stage), ("topic", &*first.topic)];
            metrics.count("outputs_total", &labels, run as f64);
            if first.topic.ends_with("state") {
                let bytes = rest[..run]
                    .iter()
                    .map(|output| output.value.as_ref().map_or(0, Vec::len))
                    .sum::<usize>();
                metrics.count("state_bytes_total", &stage, bytes as f64);
            }
            rest = &rest[run..];
        }
        self.alive(commit.stage);
        self.trace(commit);
    }

    fn aborted(&self, stage: &'static str, _reason: &str) {
        self.metrics.count("aborts_total", &[("stage", stage)], 1.0);
        self.alive(stage);
    }

    fn restored(&self, stage: &'static str, partitions: &[TopicPartition], state_records: u64, took_s: f64) {
        let labels = [("stage", stage)];
        self.metrics.count("restores_total", &labels, 1.0);
        self.metrics
            .count("restored_state_records_total", &labels, state_records as f64);
        self.metrics.observe_s("restore_seconds", &labels, took_s);
        for partition in partitions {
            self.health.resumed(&partition.to_string());
        }
        self.alive(stage);
    }

    fn stopped(&self, stage: &'static str, partition: &TopicPartition, reason: &str) {
        self.metrics.count("partitions_stopped_total", &[("stage", stage)], 1.0);
        self.health.stopped(&partition.to_string(), reason);
    }

    fn revoked(&self, stage: &'static str, partitions: &[TopicPartition], lost: bool) {
        let labels = [("stage", stage), ("lost", if lost { "true" } else { "false" })];
        self.metrics.count("revokes_total", &labels, 1.0);
        for partition in partitions {
            self.health.resumed(&partition.to_string());
        }
        self.alive(stage);
    }

    fn sample(&self, stage: &'static str, name: &'static str, labels: &[(&'static str, &str)], value: f64) {
        let mut labels = labels.to_vec();
        if labels.iter().all(|(label, _)| *label != "stage") {
            labels.push(("stage", stage));
        }
        if name.ends_with("_total") {
            self.metrics.read_counter(name, &labels, instance(), value);
        } else {
            self.metrics.gauge(name, &labels, instance(), value);
        }
        self.alive(stage);
    }
}

/// A stage instance is a thread of its own; this numbers them.
fn instance() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static OWN: Cell<u64> = const { Cell::new(0) });
    OWN.with(|own| {
        if own.get() == 0 {
            own.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        own.get()
    })
}
