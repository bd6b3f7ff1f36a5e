//! Gauges and counters of a fleet. Counters start at zero with the process; nothing durable depends on them.

use std::collections::BTreeMap;

use protocol::{
    cloudevent,
    message::{DecisionKind, IncidentState},
};

use crate::{Effect, Fleet};

#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    decisions: BTreeMap<(&'static str, String), u64>,
    verdicts: BTreeMap<String, u64>,
    unusable: u64,
    answers_refused: u64,
}

impl Counters {
    pub(crate) fn count(&mut self, effect: &Effect) {
        match effect {
            Effect::Decision { data, .. } => {
                let kind = match data.verdict {
                    DecisionKind::Act => "act",
                    DecisionKind::Shadow => "shadow",
                    DecisionKind::AskApproval => "ask_approval",
                    DecisionKind::Refuse => "refuse",
                };
                let reason = data.refused_by.clone().unwrap_or_default();
                *self.decisions.entry((kind, reason)).or_default() += 1;
            }
            Effect::Verdict { data, .. } => {
                let name = format!("{:?}", data.verdict).to_lowercase();
                *self.verdicts.entry(name).or_default() += 1;
            }
            Effect::Unusable(_) => self.unusable += 1,
            Effect::Approval { event, .. } if event.kind == cloudevent::APPROVAL_REFUSED => self.answers_refused += 1,
            _ => {}
        }
    }
}

impl Fleet {
    /// `sink(name, labels, value)` for every gauge and counter; names ending in `_total` are counters.
    #[allow(clippy::type_complexity)]
    pub fn observe(&self, sink: &mut dyn FnMut(&'static str, &[(&'static str, &str)], f64)) {
        for ((kind, reason), count) in &self.counters.decisions {
            sink("decisions_total", &[("kind", kind), ("reason", reason)], *count as f64);
        }
        for (verdict, count) in &self.counters.verdicts {
            sink("verdicts_total", &[("verdict", verdict)], *count as f64);
        }
        sink("decide_unusable_total", &[], self.counters.unusable as f64);
        sink("answers_refused_total", &[], self.counters.answers_refused as f64);
        sink("episodes", &[], self.state.episodes.len() as f64);
        sink("sick_targets", &[], self.index.sick_targets.len() as f64);
        sink("actions_in_flight", &[], self.index.actions.len() as f64);
        let mut states: BTreeMap<&'static str, u32> = BTreeMap::new();
        for (_, key) in &self.index.cases {
            let case = self.state.episodes.get(key).and_then(|episode| episode.case.as_ref());
            if let Some(case) = case {
                *states.entry(name(case.state)).or_default() += 1;
            }
        }
        for (state, count) in states {
            sink("incidents_open", &[("state", state)], f64::from(count));
        }
        if let Some(watermark_ms) = self.watermark_ms() {
            sink("decide_watermark_lag_ms", &[], (self.now_ms() - watermark_ms) as f64);
        }
    }
}

fn name(state: IncidentState) -> &'static str {
    match state {
        IncidentState::Open => "open",
        IncidentState::Acting => "acting",
        IncidentState::Verifying => "verifying",
        IncidentState::AwaitingApproval => "awaiting_approval",
        IncidentState::Suppressed => "suppressed",
        IncidentState::Escalated => "escalated",
        IncidentState::Closed => "closed",
    }
}
