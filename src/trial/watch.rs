//! From samples to anomalies, with the product's detectors: what the detect stage does, without Kafka and windows.

use std::{collections::BTreeMap, sync::Arc};

use detector::{Detector, Row, Score, State, Value};
use protocol::message::Anomaly;

use crate::{Error, world::Sample};

pub const PIPELINE: &str = "shop";
/// Alarms about what a service measures, about its heartbeat, and about work that outgrows it.
pub const SICK: &str = "sick";
pub const SILENT: &str = "silent";
const FEATURES: [&str; 4] = ["errors", "latency", "memory", "cpu"];

/// The detectors of every service.
pub struct Watch {
    sick: Arc<dyn Detector>,
    silent: Arc<dyn Detector>,
    entities: Vec<Entity>,
}

struct Entity {
    sick: Box<dyn State>,
    silent: Box<dyn State>,
    heard_ms: Option<i64>,
    alarms: BTreeMap<&'static str, bool>,
    usual: [f64; 3],
    deployed: bool,
}

impl Watch {
    pub fn new(services: usize) -> Result<Self, Error> {
        let names: Vec<String> = FEATURES.iter().map(|name| (*name).to_owned()).collect();
        let number = |name: &str, value: f64| (name.to_owned(), Value::Number(value));
        let text = |name: &str, value: &str| (name.to_owned(), Value::Text(value.to_owned()));
        let sick = detector::build(
            "robust_zscore",
            &[number("threshold", 12.0), number("window", 120.0)],
            &names,
        )?;
        let silent = detector::build("silence", &[text("timeout", "30 s")], &[])?;
        let entity = |at: usize| Entity {
            sick: sick.fresh(at as u64),
            silent: silent.fresh(at as u64),
            heard_ms: None,
            alarms: BTreeMap::new(),
            usual: [f64::NAN; 3],
            deployed: false,
        };
        let entities = (0..services).map(entity).collect();
        Ok(Self { sick, silent, entities })
    }

    /// Everything is as if never seen.
    pub fn reset(&mut self) {
        for (at, entity) in self.entities.iter_mut().enumerate() {
            entity.sick = self.sick.fresh(at as u64);
            entity.silent = self.silent.fresh(at as u64);
            entity.heard_ms = None;
            entity.alarms.clear();
            entity.usual = [f64::NAN; 3];
            entity.deployed = false;
        }
    }

    /// What is to be said of one service now. `flows`: telemetry arrives at all; where it does not, nobody is silent.
    pub fn see(&mut self, at: usize, name: &str, sample: Option<&Sample>, now_ms: i64, flows: bool) -> Vec<Anomaly> {
        let entity = &mut self.entities[at];
        let mut said = Vec::new();
        let mut score = Score::default();
        if let Some(sample) = sample {
            entity.heard_ms = Some(now_ms);
            entity.deployed = sample.deployed;
            let features = [sample.errors, sample.latency.ln(), sample.memory.ln(), sample.cpu];
            let learn = !entity.alarms.get(SICK).copied().unwrap_or(false);
            entity.sick.score(
                Row {
                    time_ms: now_ms,
                    features: &features,
                    learn,
                },
                &mut score,
            );
            entity.remember(sample, learn);
            said.extend(entity.anomaly(SICK, name, &score, Some(sample), now_ms));
        }
        if flows && let Some(heard_ms) = entity.heard_ms {
            let row = Row {
                time_ms: now_ms,
                features: &[heard_ms as f64],
                learn: true,
            };
            entity.silent.score(row, &mut score);
            said.extend(entity.anomaly(SILENT, name, &score, None, now_ms));
        }
        said
    }
}

impl Entity {
    /// Slow means of what a rise is measured against.
    fn remember(&mut self, sample: &Sample, learn: bool) {
        for (usual, value) in self
            .usual
            .iter_mut()
            .zip([sample.rps, sample.own_latency, sample.memory])
        {
            if usual.is_nan() {
                *usual = value;
            } else if learn {
                *usual += 0.02 * (value - *usual);
            }
        }
    }

    /// An alarm at every window that has one; silence only when it begins; both when it ends.
    fn anomaly(
        &mut self,
        detector: &'static str,
        service: &str,
        score: &Score,
        sample: Option<&Sample>,
        now_ms: i64,
    ) -> Option<Anomaly> {
        let (is, was) = (
            score.is_anomaly(),
            self.alarms.insert(detector, score.is_anomaly()).unwrap_or(false),
        );
        let speaks = if detector == SILENT { is != was } else { is || was };
        if !speaks {
            return None;
        }
        let policy = vec![format!("heal_{detector}")];
        let (meets, clears) = if is { (policy, Vec::new()) } else { (Vec::new(), policy) };
        let mut features = BTreeMap::new();
        let mut columns = BTreeMap::new();
        if let Some(sample) = sample {
            let mut feature = |name: &str, value: f64| features.insert(name.to_owned(), Some(value));
            feature("errors", sample.errors);
            feature("latency", sample.latency);
            feature("cpu", sample.cpu);
            feature("rps_ratio", sample.rps / self.usual[0]);
            feature("own_latency_ratio", sample.own_latency / self.usual[1]);
            feature("memory_ratio", sample.memory / self.usual[2]);
        }
        columns.insert("deployed".to_owned(), self.deployed.into());
        let contributions = FEATURES.iter().zip(&score.contributions);
        Some(Anomaly {
            target: [("service_name".to_owned(), service.into())].into(),
            pipeline: PIPELINE.into(),
            detector: detector.into(),
            window_start: now_ms - 2 * crate::world::STEP_MS,
            window_end: now_ms - crate::world::STEP_MS,
            score: score.score,
            is_anomaly: is,
            features,
            contributions: contributions
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect(),
            columns,
            meets,
            clears,
            telemetry_healthy: true,
        })
    }
}
