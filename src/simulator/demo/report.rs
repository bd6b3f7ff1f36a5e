//! The timeline, for people and for programs.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use protocol::message::{DecisionKind, Gate, OutcomeStatus};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    observe::{Place, Seen, What, pid_after},
    watch::{FaultReport, Watch, service_of},
};
use crate::Fault;

/// How the timeline is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The end of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub faults: Vec<FaultReport>,
    /// Commands for services without a fault.
    pub false_actions: usize,
    /// Actions of which the services' own logs show more than one start.
    pub repeated_effects: usize,
}

impl Summary {
    /// Every kind of fault was injected, all healed, and nothing else was touched.
    pub fn healed(&self) -> bool {
        let kinds: BTreeSet<Fault> = self.faults.iter().map(|fault| fault.fault).collect();
        kinds.len() == Fault::ALL.len()
            && self.faults.iter().all(|fault| !fault.is_open())
            && self.false_actions == 0
            && self.repeated_effects == 0
    }
}

/// Writes the timeline.
pub struct Report<W> {
    out: W,
    output: Output,
    /// Detectors that alarm now, so that people see an alarm once.
    alarming: BTreeSet<(String, String)>,
}

impl<W: Write> Report<W> {
    pub fn new(out: W, output: Output) -> Self {
        Self {
            out,
            output,
            alarming: BTreeSet::new(),
        }
    }

    /// A word for people that is no event; programs do not see it.
    pub fn say(&mut self, at_ms: u64, text: &str) -> io::Result<()> {
        match self.output {
            Output::Text => writeln!(self.out, "{}  {text}", clock(at_ms)),
            Output::Json => {
                tracing::info!(at_ms, "{text}");
                Ok(())
            }
        }
    }

    pub fn fault(&mut self, at_ms: u64, fault: Fault, service: &str, pid: u32) -> io::Result<()> {
        match self.output {
            Output::Text => {
                writeln!(self.out)?;
                let what = match fault {
                    Fault::Crash => "ends without a word",
                    Fault::Hang => "hangs: no answers, no heartbeats",
                    Fault::Leak => "takes more and more memory",
                    Fault::Latency => "answers slowly, and with errors",
                };
                self.line(at_ms, "fault", service, &format!("process {pid} {what}"))
            }
            Output::Json => {
                let object = json!({"at_ms": at_ms, "kind": "fault", "fault": fault, "service": service, "pid": pid});
                writeln!(self.out, "{object}")
            }
        }
    }

    /// A record of the timeline, with the fault that it belongs to.
    pub fn seen(&mut self, at_ms: u64, fault: Option<Fault>, seen: &Seen) -> io::Result<()> {
        let Some(kind) = kind(&seen.what) else {
            return Ok(());
        };
        let service = service_of(&seen.what).unwrap_or_default().to_owned();
        match self.output {
            Output::Json => {
                let mut object = Map::new();
                object.insert("at_ms".into(), json!(at_ms));
                object.insert("kind".into(), json!(kind));
                object.insert("fault".into(), json!(fault));
                object.insert("service".into(), json!(service));
                object.append(&mut details(&seen.what));
                object.append(&mut place(&seen.place));
                writeln!(self.out, "{}", Value::Object(object))
            }
            Output::Text => match self.sentence(&seen.what) {
                Some(text) => self.line(at_ms, kind, &service, &text),
                None => Ok(()),
            },
        }
    }

    fn line(&mut self, at_ms: u64, kind: &str, service: &str, text: &str) -> io::Result<()> {
        writeln!(self.out, "{}  {kind:<9} {service:<15} {text}", clock(at_ms))
    }

    /// What people read; `None` where they have read enough.
    fn sentence(&mut self, what: &What) -> Option<String> {
        Some(match what {
            What::Heartbeat { .. } | What::Progress { .. } => return None,
            What::Anomaly { service, anomaly } => {
                let key = (service.clone(), anomaly.detector.clone());
                if !anomaly.is_anomaly {
                    self.alarming.remove(&key);
                    return Some(format!("{} is over", anomaly.detector));
                }
                if !self.alarming.insert(key) {
                    return None;
                }
                format!(
                    "{}, score {:.2}{}",
                    anomaly.detector,
                    anomaly.score,
                    features(&anomaly.features)
                )
            }
            What::Decision { decision, .. } => {
                let passed = gates(&decision.gates);
                match decision.verdict {
                    DecisionKind::Act => {
                        let action = decision.action.as_ref().map_or("act", |action| &action.kind);
                        format!("{action}{passed}")
                    }
                    DecisionKind::Shadow => format!("would act, in shadow{passed}"),
                    DecisionKind::AskApproval => format!("asks a person{passed}"),
                    DecisionKind::Refuse => {
                        format!("not now: {}", decision.refused_by.as_deref().unwrap_or("a gate"))
                    }
                }
            }
            What::Command { action, .. } => format!("{} ({})", action.action.kind, action.action_id),
            What::Outcome { outcome, .. } => match outcome.status {
                OutcomeStatus::Accepted | OutcomeStatus::Started => return None,
                status => {
                    let pid = pid_after(outcome)
                        .map(|pid| format!(", process {pid}"))
                        .unwrap_or_default();
                    let error = outcome
                        .error
                        .as_deref()
                        .map(|error| format!(": {error}"))
                        .unwrap_or_default();
                    format!("{}{pid}{error}", status.as_str())
                }
            },
            What::Verdict { verdict, .. } => format!("{}: {}", text_of(&verdict.verdict), verdict.reason),
        })
    }

    /// The last line, or the table.
    pub fn summary(&mut self, at_ms: u64, summary: &Summary) -> io::Result<()> {
        match self.output {
            Output::Json => {
                let mut object = Map::new();
                object.insert("at_ms".into(), json!(at_ms));
                object.insert("kind".into(), json!("summary"));
                object.insert("fault".into(), Value::Null);
                object.insert("service".into(), Value::Null);
                object.insert("healed".into(), json!(summary.healed()));
                if let Ok(Value::Object(mut rest)) = serde_json::to_value(summary) {
                    object.append(&mut rest);
                }
                writeln!(self.out, "{}", Value::Object(object))?;
            }
            Output::Text => self.table(summary)?,
        }
        self.out.flush()
    }

    fn table(&mut self, summary: &Summary) -> io::Result<()> {
        let seconds = |ms: Option<u64>| ms.map_or("never".to_owned(), |ms| format!("{:.1} s", ms as f64 / 1000.0));
        writeln!(self.out)?;
        writeln!(
            self.out,
            "{:<9} {:<15} {:>14} {:>13} {:>8}  process",
            "fault", "service", "detected after", "healed after", "actions"
        )?;
        for fault in &summary.faults {
            let after = fault.pid_after.map_or("none".to_owned(), |pid| pid.to_string());
            writeln!(
                self.out,
                "{:<9} {:<15} {:>14} {:>13} {:>8}  {} → {after}",
                fault.fault.as_str(),
                fault.service,
                seconds(fault.detected_ms),
                seconds(fault.healed_ms),
                fault.actions,
                fault.pid_before,
            )?;
        }
        writeln!(self.out)?;
        let open = summary.faults.iter().filter(|fault| fault.is_open()).count();
        writeln!(
            self.out,
            "false actions (on services without a fault): {}",
            summary.false_actions
        )?;
        writeln!(self.out, "{}", ending(summary, open))
    }
}

fn ending(summary: &Summary, open: usize) -> String {
    let all = summary.faults.len();
    match summary {
        summary if summary.healed() => format!("all {all} faults healed; no healthy service was touched"),
        _ if open > 0 => format!("{open} of {all} faults did not heal"),
        Summary { false_actions: 1.., .. } => "every fault healed, but a healthy service was touched".to_owned(),
        Summary {
            repeated_effects: 1.., ..
        } => "every fault healed, but an action had its effect twice".to_owned(),
        _ => "it ended before every kind of fault was shown".to_owned(),
    }
}

/// The gates that a decision passed, below it.
fn gates(gates: &[Gate]) -> String {
    const LINE: usize = 84;
    let mut text = String::new();
    let mut width = LINE;
    for gate in gates.iter().filter(|gate| gate.passed) {
        if width + gate.gate.len() + 1 > LINE {
            text.push_str(&format!("\n{:>43}", "passed"));
            width = 0;
        }
        text.push(' ');
        text.push_str(&gate.gate);
        width += gate.gate.len() + 1;
    }
    text
}

fn clock(at_ms: u64) -> String {
    format!("{:>6.1} s", at_ms as f64 / 1000.0)
}

fn kind(what: &What) -> Option<&'static str> {
    Some(match what {
        What::Heartbeat { .. } | What::Progress { .. } => return None,
        What::Anomaly { .. } => "anomaly",
        What::Decision { .. } => "decision",
        What::Command { .. } => "command",
        What::Outcome { .. } => "outcome",
        What::Verdict { .. } => "verdict",
    })
}

fn features(features: &std::collections::BTreeMap<String, Option<f64>>) -> String {
    let said: Vec<String> = features
        .iter()
        .filter_map(|(name, value)| value.map(|value| format!("{name} {value:.1}")))
        .collect();
    if said.is_empty() {
        String::new()
    } else {
        format!(" ({})", said.join(", "))
    }
}

fn place(place: &Place) -> Map<String, Value> {
    object(json!({"topic": place.topic, "partition": place.partition, "offset": place.offset}))
}

/// What a program may want to know beside the fields that every line has.
fn details(what: &What) -> Map<String, Value> {
    object(match what {
        What::Heartbeat { .. } | What::Progress { .. } => json!({}),
        What::Anomaly { anomaly, .. } => json!({
            "detector": anomaly.detector,
            "score": anomaly.score,
            "is_anomaly": anomaly.is_anomaly,
            "features": anomaly.features,
        }),
        What::Decision { decision, .. } => {
            let gates: Vec<Value> = decision
                .gates
                .iter()
                .map(|gate| json!({"gate": gate.gate, "passed": gate.passed}))
                .collect();
            let mut object = json!({
                "policy": decision.policy,
                "decision": decision.verdict,
                "mode": decision.mode,
                "refused_by": decision.refused_by,
                "gates": gates,
            });
            if let Some(id) = decision.action_id {
                object["action_id"] = json!(id);
            }
            object
        }
        What::Command { action, .. } => json!({
            "action_id": action.action_id,
            "action": action.action.kind,
            "mode": action.mode,
        }),
        What::Outcome { outcome, .. } => {
            let mut object = json!({
                "action_id": outcome.action_id,
                "status": outcome.status,
                "code": outcome.code,
            });
            if let Some(pid) = pid_after(outcome) {
                object["pid"] = json!(pid);
            }
            if let Some(error) = &outcome.error {
                object["error"] = json!(error);
            }
            object
        }
        What::Verdict { verdict, .. } => json!({
            "action_id": verdict.action_id,
            "verdict": verdict.verdict,
            "reason": verdict.reason,
        }),
    })
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

fn text_of(value: &impl Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// The summary of what was watched.
pub fn summary(watch: &Watch, repeated_effects: usize) -> Summary {
    Summary {
        faults: watch.faults().to_vec(),
        false_actions: watch.false_actions(),
        repeated_effects,
    }
}
