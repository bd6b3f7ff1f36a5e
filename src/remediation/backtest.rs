//! What a set of policies would have done on records of the past.
//!
//! The records are the fleet's own, in the order of its journal. What happened, happened: an action that was not taken then
//! leaves no trace in the signal now. So a backtest tells which actions would have fired, when, and what refused the others;
//! how likely they would have healed is estimated from past verdicts on the same kinds of action, with an interval.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{
    CloudEvent, cloudevent, id,
    message::{
        Action, Anomaly, ApprovalRecord, Control, DecisionKind, Executor, Mode, Outcome, OutcomeStatus, TimeProgress,
        Verdict,
    },
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Effect, Fleet, FleetConfig, Input, Message, Policy, Standing};

/// One record of the past.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    pub broker_ms: i64,
    pub message: Past,
}

/// What a record of the past said.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)]
pub enum Past {
    Anomaly { event: CloudEvent, data: Anomaly },
    Progress(TimeProgress),
    Outcome { event: CloudEvent, data: Outcome },
    Approval { event: CloudEvent, data: ApprovalRecord },
    Control { scope: String, data: Option<Control> },
}

impl Past {
    fn message(&self) -> Message<'_> {
        match self {
            Self::Anomaly { event, data } => Message::Anomaly { event, data },
            Self::Progress(data) => Message::Progress(data),
            Self::Outcome { event, data } => Message::Outcome { event, data },
            Self::Approval { event, data } => Message::Approval {
                event,
                data,
                standing: Standing::Anybody,
            },
            Self::Control { scope, data } => Message::Control {
                scope,
                data: data.as_ref(),
            },
        }
    }
}

/// What is assumed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Assume {
    /// Every mode record of the past is passed over and this mode stands for all; `None`: as it was.
    pub mode: Option<Mode>,
}

/// An action that would have been taken, or asked about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fired {
    #[serde(with = "protocol::time")]
    pub at: i64,
    pub incident_id: Uuid,
    pub target_key: String,
    pub policy: String,
    pub action: String,
    /// `act`, `shadow` or `ask_approval`.
    pub verdict: DecisionKind,
}

/// Share of past actions of a kind that healed, with its 95 % interval (Wilson).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Success {
    pub judged: u64,
    pub healed: u64,
    pub share: f64,
    pub low: f64,
    pub high: f64,
}

/// What a backtest found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub incidents: usize,
    pub fired: Vec<Fired>,
    /// Refusals recorded, by gate.
    pub refusals: BTreeMap<String, u64>,
    /// Verdicts that the recorded signal would have given.
    pub verdicts: BTreeMap<String, u64>,
    /// By kind of action fired: what the past says of it.
    pub success: BTreeMap<String, Success>,
    /// Expected share of the fired actions that heal, where the past says anything of them.
    pub expected: Option<Success>,
}

/// What two sets of policies would have done differently: actions by target and incident that only one of them fires.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    pub both: usize,
    pub only_first: Vec<Fired>,
    pub only_second: Vec<Fired>,
    /// Gate, refusals by the first, refusals by the second.
    pub refusals: Vec<(String, u64, u64)>,
}

/// Runs policies over the past. `verdicts` are kinds of action with whether they healed, as far as that was clear.
pub fn backtest<'a>(
    config: FleetConfig,
    policies: impl IntoIterator<Item = Policy>,
    past: impl IntoIterator<Item = &'a Recorded>,
    verdicts: &[(String, bool)],
    assume: Assume,
) -> Report {
    let mut run = Run {
        fleet: Fleet::new(config, policies),
        report: Report::default(),
        reported: BTreeSet::new(),
        queue: Vec::new(),
    };
    let past: Vec<&Recorded> = past.into_iter().collect();
    // An action that was taken then has its own reports; one that was not is assumed to have been carried out at once.
    run.reported = past
        .iter()
        .filter_map(|record| match &record.message {
            Past::Outcome { data, .. } => Some(data.action_id),
            _ => None,
        })
        .collect();
    if let (Some(mode), Some(first)) = (assume.mode, past.first()) {
        let control = Control::Mode {
            service: "*".into(),
            action: "*".into(),
            mode,
            until: None,
            by: "backtest".into(),
            reason: String::new(),
        };
        let scope = control.scope();
        run.apply(
            first.broker_ms,
            Message::Control {
                scope: &scope,
                data: Some(&control),
            },
        );
    }
    for record in past {
        let overruled = assume.mode.is_some()
            && matches!(&record.message, Past::Control { scope, .. } if scope.starts_with("mode/"));
        if !overruled {
            run.apply(record.broker_ms, record.message.message());
            run.carry_out(record.broker_ms);
        }
    }
    run.report.estimate(verdicts);
    run.report
}

struct Run {
    fleet: Fleet,
    report: Report,
    reported: BTreeSet<Uuid>,
    /// Commands that nobody reported on.
    queue: Vec<Action>,
}

impl Run {
    fn apply(&mut self, broker_ms: i64, message: Message<'_>) {
        let mut effects = Vec::new();
        self.fleet.apply(Input { broker_ms, message }, &mut effects);
        // A backtest commits nothing.
        drop(self.fleet.take_dirty());
        for effect in effects {
            self.note(effect);
        }
    }

    fn note(&mut self, effect: Effect) {
        match effect {
            Effect::Decision { data, .. } if data.verdict == DecisionKind::Refuse => {
                let gate = data.refused_by.unwrap_or_default();
                *self.report.refusals.entry(gate).or_default() += 1;
            }
            Effect::Decision { data, .. } => self.report.fired.push(Fired {
                at: data.decided_at,
                incident_id: data.incident_id,
                target_key: data.target_key,
                policy: format!("{}.{}", data.pipeline, data.policy),
                action: data.action.map(|action| action.kind).unwrap_or_default(),
                verdict: data.verdict,
            }),
            Effect::Action { data, .. } if !self.reported.contains(&data.action_id) => self.queue.push(data),
            Effect::Verdict { data, .. } => {
                let name = verdict_name(data.verdict);
                *self.report.verdicts.entry(name.to_owned()).or_default() += 1;
            }
            Effect::Note(protocol::log::Note::IncidentOpened { .. }) => self.report.incidents += 1,
            _ => {}
        }
    }

    fn carry_out(&mut self, broker_ms: i64) {
        while let Some(action) = self.queue.pop() {
            let data = Outcome {
                action_id: action.action_id,
                incident_id: action.incident_id,
                attempt: action.attempt,
                executor: Executor {
                    id: "backtest".into(),
                    version: String::new(),
                },
                status: OutcomeStatus::Succeeded,
                code: 200,
                retryable: false,
                at: broker_ms,
                effect: serde_json::Map::new(),
                error: None,
                payload_sha256: String::new(),
            };
            let kind = format!("{}succeeded.v1", cloudevent::OUTCOME_PREFIX);
            let event_id = id::outcome(data.action_id, data.attempt, "succeeded");
            let tenant = &action.target.target.tenant;
            let event = CloudEvent::new(event_id, tenant, "/backtest", &kind, &action.target.key, broker_ms);
            self.apply(
                broker_ms,
                Message::Outcome {
                    event: &event,
                    data: &data,
                },
            );
        }
    }
}

fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Recovered => "recovered",
        Verdict::Improved => "improved",
        Verdict::Unchanged => "unchanged",
        Verdict::Worse => "worse",
        Verdict::Inconclusive => "inconclusive",
        Verdict::Confounded => "confounded",
        Verdict::Superseded => "superseded",
    }
}

impl Report {
    fn estimate(&mut self, verdicts: &[(String, bool)]) {
        let kinds: BTreeSet<&str> = self.fired.iter().map(|fired| fired.action.as_str()).collect();
        for kind in kinds {
            let known = verdicts.iter().filter(|(action, _)| action == kind);
            let (judged, healed) = known.fold((0, 0), |(all, good), (_, healed)| (all + 1, good + u64::from(*healed)));
            self.success.insert(kind.to_owned(), Success::of(judged, healed));
        }
        let known = self.fired.iter().filter_map(|fired| self.success.get(&fired.action));
        let known: Vec<&Success> = known.filter(|success| success.judged > 0).collect();
        if known.is_empty() {
            return;
        }
        let mean = |of: fn(&Success) -> f64| known.iter().map(|success| of(success)).sum::<f64>() / known.len() as f64;
        // The bounds of a mean of shares that may err together are the means of their bounds.
        self.expected = Some(Success {
            judged: known.iter().map(|success| success.judged).max().unwrap_or(0),
            healed: known.iter().map(|success| success.healed).max().unwrap_or(0),
            share: mean(|success| success.share),
            low: mean(|success| success.low),
            high: mean(|success| success.high),
        });
    }

    /// What this set of policies and another would have done differently.
    pub fn difference(&self, other: &Self) -> Difference {
        let name = |fired: &Fired| (fired.incident_id, fired.target_key.clone(), fired.action.clone());
        let names = |report: &Self| report.fired.iter().map(name).collect::<BTreeSet<_>>();
        let (mine, others) = (names(self), names(other));
        let without = |report: &Self, others: &BTreeSet<_>| {
            let only = report.fired.iter().filter(|fired| !others.contains(&name(fired)));
            only.cloned().collect()
        };
        let gates: BTreeSet<&String> = self.refusals.keys().chain(other.refusals.keys()).collect();
        let count = |report: &Self, gate: &String| report.refusals.get(gate).copied().unwrap_or(0);
        Difference {
            both: mine.intersection(&others).count(),
            only_first: without(self, &others),
            only_second: without(other, &mine),
            refusals: gates
                .into_iter()
                .map(|gate| (gate.clone(), count(self, gate), count(other, gate)))
                .collect(),
        }
    }
}

impl Success {
    pub(crate) fn of(judged: u64, healed: u64) -> Self {
        const Z: f64 = 1.96;
        if judged == 0 {
            return Self {
                high: 1.0,
                ..Self::default()
            };
        }
        let (n, share) = (judged as f64, healed as f64 / judged as f64);
        let centre = (share + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
        let half = Z / (1.0 + Z * Z / n) * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
        Self {
            judged,
            healed,
            share,
            low: (centre - half).max(0.0),
            high: (centre + half).min(1.0),
        }
    }
}
