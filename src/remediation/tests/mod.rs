//! A world around one fleet: a virtual clock, services that alarm, executors and people that answer. After every record
//! the fleet is thrown away and restored from its state topic, so that every test is also a test of restoring.

mod approval;
mod backtest;
mod choose;
mod gates;
mod property;
mod scenario;
mod unreadable;

use std::{collections::BTreeMap, sync::LazyLock};

use protocol::{
    CloudEvent, Target, Topics, cloudevent, id,
    message::{
        Action, Anomaly, ApprovalRecord, Control, Decision, DecisionKind, Executor, Outcome, OutcomeStatus,
        TimeProgress,
    },
    schema,
};

use crate::{Effect, Fleet, FleetConfig, Input, Message, Policy, Standing};

pub(crate) const START_MS: i64 = 1_700_000_000_000;

/// A fleet with its state topic and everything it ever said.
pub(crate) struct World {
    pub config: FleetConfig,
    pub policies: Vec<Policy>,
    pub fleet: Fleet,
    pub store: BTreeMap<Vec<u8>, Vec<u8>>,
    pub now_ms: i64,
    pub watermark_ms: i64,
    /// The watermark follows the clock.
    pub flowing: bool,
    pub telemetry_healthy: bool,
    pub population: BTreeMap<String, u64>,
    pub said: Vec<Effect>,
    pub actions: BTreeMap<String, Action>,
    pub requests: BTreeMap<String, ApprovalRecord>,
    events: u64,
    records: i64,
    /// Crash after so many records, and after each that says something; `i64::MAX`: never.
    pub restart_every: i64,
}

impl World {
    pub fn new(config: FleetConfig, policies: Vec<Policy>) -> Self {
        let groups = policies
            .iter()
            .map(|policy| format!("{}.{}", policy.pipeline, policy.detector));
        Self {
            fleet: Fleet::new(config.clone(), policies.clone()),
            population: groups.map(|group| (group, 20)).collect(),
            config,
            policies,
            store: BTreeMap::new(),
            now_ms: START_MS,
            watermark_ms: START_MS,
            flowing: true,
            telemetry_healthy: true,
            said: Vec::new(),
            actions: BTreeMap::new(),
            requests: BTreeMap::new(),
            events: 0,
            records: 0,
            restart_every: 7,
        }
    }

    /// Feeds one record, commits, crashes, restores.
    pub fn feed(&mut self, message: Message<'_>) -> Vec<Effect> {
        let mut out = Vec::new();
        let broker_ms = self.now_ms;
        self.fleet.apply(Input { broker_ms, message }, &mut out);
        self.commit();
        self.records += 1;
        // Restoring costs more than the step: quiet records are checked now and then.
        if self.records % self.restart_every == 0 || !out.is_empty() && self.restart_every < i64::MAX {
            self.restart();
        }
        for effect in &out {
            fits_its_schema(effect);
            match effect {
                Effect::Action { data, .. } => {
                    self.actions.insert(data.target.target.name.clone(), data.clone());
                }
                Effect::Approval { event, data } if event.kind == cloudevent::APPROVAL_REQUESTED => {
                    self.requests.insert(name_of(&data.target_key), data.clone());
                }
                _ => {}
            }
        }
        self.said.extend(out.iter().cloned());
        out
    }

    fn commit(&mut self) {
        for (key, value) in self.fleet.take_dirty() {
            match value {
                Some(value) => self.store.insert(key, value),
                None => self.store.remove(&key),
            };
        }
    }

    fn restart(&mut self) {
        let mut restored = Fleet::new(self.config.clone(), self.policies.clone());
        for (key, value) in &self.store {
            restored.restore(key, Some(value)).unwrap();
        }
        assert_eq!(
            restored.state, self.fleet.state,
            "the state topic holds the whole state"
        );
        assert_eq!(restored.index, self.fleet.index, "the index follows from the state");
        self.fleet = restored;
    }

    /// One second passes: a progress record.
    pub fn second(&mut self) -> Vec<Effect> {
        self.now_ms += 1_000;
        if self.flowing {
            self.watermark_ms = self.now_ms - 2_000;
        }
        let data = TimeProgress {
            watermark_ms: Some(self.watermark_ms),
            clock: self.now_ms,
            partition: 0,
            population: self.population.clone(),
            version: 0,
        };
        self.feed(Message::Progress(&data))
    }

    pub fn event(&mut self, kind: &str, subject: &str) -> CloudEvent {
        self.events += 1;
        let event_id = id::derived("test", &[&self.events.to_string()]);
        CloudEvent::new(event_id, "homeostat", "/test", kind, subject, self.now_ms)
    }

    /// A window of a service: `meets` and `clears` name policies.
    pub fn window(
        &mut self,
        detector: &str,
        service: &str,
        score: f64,
        meets: &[&str],
        clears: &[&str],
    ) -> Vec<Effect> {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        let data = Anomaly {
            meets: names(meets),
            clears: names(clears),
            ..self.anomaly(detector, &[("service_name", service)], score)
        };
        let event = self.event(cloudevent::ANOMALY, &key_of(service));
        self.feed(Message::Anomaly {
            event: &event,
            data: &data,
        })
    }

    /// A window of the detector `calls`, which saw one service call another.
    pub fn call(&mut self, caller: &str, callee: &str) -> Vec<Effect> {
        let data = self.anomaly("calls", &[("caller", caller), ("callee", callee)], 2.0);
        let event = self.event(cloudevent::ANOMALY, &key_of(caller));
        self.feed(Message::Anomaly {
            event: &event,
            data: &data,
        })
    }

    fn anomaly(&self, detector: &str, target: &[(&str, &str)], score: f64) -> Anomaly {
        let named = |(column, name): &(&str, &str)| ((*column).to_owned(), (*name).into());
        Anomaly {
            target: target.iter().map(named).collect(),
            pipeline: self.policies[0].pipeline.clone(),
            detector: detector.to_owned(),
            window_start: self.now_ms - 12_000,
            window_end: self.now_ms - 2_000,
            score,
            is_anomaly: score >= 1.0,
            features: BTreeMap::new(),
            contributions: BTreeMap::new(),
            columns: BTreeMap::new(),
            meets: Vec::new(),
            clears: Vec::new(),
            telemetry_healthy: self.telemetry_healthy,
        }
    }

    pub fn outcome(&mut self, service: &str, status: OutcomeStatus, code: u16) -> Vec<Effect> {
        let action = self.actions.get(service).expect("an action was published").clone();
        let data = Outcome {
            action_id: action.action_id,
            incident_id: action.incident_id,
            attempt: action.attempt,
            executor: Executor {
                id: "test".into(),
                version: "1".into(),
            },
            status,
            code,
            retryable: false,
            at: self.now_ms,
            effect: serde_json::Map::new(),
            error: (code >= 400).then(|| format!("code {code}")),
            payload_sha256: String::new(),
        };
        let kind = format!("{}{}.v1", cloudevent::OUTCOME_PREFIX, status.as_str());
        let event = self.event(&kind, &key_of(service));
        self.feed(Message::Outcome {
            event: &event,
            data: &data,
        })
    }

    pub fn answer(&mut self, service: &str, by: &str, granted: bool) -> Vec<Effect> {
        let request = self.requests.get(service).expect("approval was requested").clone();
        let data = ApprovalRecord {
            by: Some(by.to_owned()),
            ..request
        };
        let kind = match granted {
            true => cloudevent::APPROVAL_GRANTED,
            false => cloudevent::APPROVAL_DENIED,
        };
        let event = self.event(kind, &key_of(service));
        self.feed(Message::Approval {
            event: &event,
            data: &data,
            standing: Standing::Anybody,
        })
    }

    pub fn control(&mut self, control: &Control) -> Vec<Effect> {
        let scope = control.scope();
        self.feed(Message::Control {
            scope: &scope,
            data: Some(control),
        })
    }

    pub fn withdraw(&mut self, scope: &str) -> Vec<Effect> {
        self.feed(Message::Control { scope, data: None })
    }
}

/// Invariant 19: every published event fits its JSON Schema.
fn fits_its_schema(effect: &Effect) {
    static SCHEMAS: LazyLock<BTreeMap<&'static str, jsonschema::Validator>> = LazyLock::new(|| {
        let compile = |(file, text): &(&'static str, &str)| {
            let schema = serde_json::from_str(text).unwrap();
            (
                *file,
                jsonschema::options()
                    .should_validate_formats(true)
                    .build(&schema)
                    .unwrap(),
            )
        };
        schema::ALL.iter().map(compile).collect()
    });
    let Some(output) = effect.output(&Topics::new("homeostat.")) else {
        return;
    };
    let kind = output.headers.iter().find(|(name, _)| name == "ce_type").unwrap();
    let file = schema::schema_for(std::str::from_utf8(&kind.1).unwrap()).unwrap();
    let value = serde_json::from_slice(&output.value.unwrap()).unwrap();
    let errors: Vec<String> = SCHEMAS[file]
        .iter_errors(&value)
        .map(|error| error.to_string())
        .collect();
    assert!(errors.is_empty(), "{file}: {errors:?} in {value}");
}

pub(crate) fn key_of(service: &str) -> String {
    Target::service("homeostat", service).key()
}

pub(crate) fn name_of(key: &str) -> String {
    let target = Target::from_key(key).unwrap();
    if target.scope == "fleet" {
        "the fleet".into()
    } else {
        target.name
    }
}

/// One effect in a few words, as scenarios write it.
pub(crate) fn words(effect: &Effect) -> Option<String> {
    Some(match effect {
        Effect::Decision { data, .. } => decision(data),
        Effect::Action { data, .. } => {
            let (kind, name) = (&data.action.kind, &data.target.target.name);
            format!("command {kind} {name} {}/{}", data.ladder.step, data.attempt)
        }
        Effect::Cancelled { data, .. } => format!("cancelled {}", name_of(&data.target_key)),
        Effect::Verdict { data, .. } => {
            let verdict = serde_json::to_value(data.verdict).unwrap();
            let verdict = verdict.as_str().unwrap();
            format!("verdict {verdict} {}: {}", name_of(&data.target_key), data.reason)
        }
        Effect::Incident { data, .. } => {
            let state = serde_json::to_value(data.state).unwrap();
            format!(
                "incident {} {}: {}",
                state.as_str().unwrap(),
                name_of(&data.target_key),
                data.reason
            )
        }
        Effect::Approval { event, data } => {
            let kind = event
                .kind
                .trim_start_matches("dev.homeostat.approval.")
                .trim_end_matches(".v1");
            let reason = data.reason.as_deref().unwrap_or("please");
            format!("approval {kind} {}: {reason}", name_of(&data.target_key))
        }
        Effect::Note(_) => return None,
        Effect::Unusable(reason) => format!("unusable: {reason}"),
    })
}

fn decision(data: &Decision) -> String {
    let name = name_of(&data.target_key);
    let kind = data.action.as_ref().map_or("-", |action| action.kind.as_str());
    match data.verdict {
        DecisionKind::Act => format!("act {kind} {name}"),
        DecisionKind::Shadow => format!("shadow {kind} {name}"),
        DecisionKind::AskApproval => format!("ask {kind} {name}"),
        DecisionKind::Refuse => {
            format!(
                "refuse {kind} {name} by {}",
                data.refused_by.as_deref().unwrap_or_default()
            )
        }
    }
}
