//! How far the record says that a service and action may be trusted. It suggests and changes nothing: the mode is a person's word.
//!
//! Shadow → approve when it would have acted often enough for a person to have looked; approve → auto when people always agreed and
//! what was done healed; auto → approve when it does not heal. Only clear verdicts count.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{
    Target,
    message::{Decision, DecisionKind, Mode, Verdict, VerdictRecord},
};
use serde::Serialize;
use uuid::Uuid;

use crate::backtest::Success;

/// Incidents in which it would have acted, before it may ask.
const SHADOWED_MIN: usize = 10;
/// Yeses without a no, and clear verdicts, before it may act by itself.
const GRANTED_MIN: u32 = 10;
const JUDGED_MIN: u64 = 20;
/// The lower end of the share that healed, to be trusted; the upper end, not to be trusted any more.
const HEALED_MIN: f64 = 0.8;
const HEALED_DOUBTFUL: f64 = 0.5;

/// A mode that the record speaks for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Suggestion {
    pub service: String,
    pub action: String,
    pub from: Mode,
    pub to: Mode,
    pub why: String,
}

/// What is on record of one service and action.
#[derive(Default)]
struct Evidence {
    mode: Option<Mode>,
    shadowed: BTreeSet<Uuid>,
    asked: BTreeSet<Uuid>,
    granted: u32,
    denied: u32,
    healed: u64,
    judged: u64,
}

/// `decisions` in the order in which they were taken; `denied` names the actions that somebody said no to.
pub fn suggest(decisions: &[Decision], verdicts: &[VerdictRecord], denied: &BTreeSet<Uuid>) -> Vec<Suggestion> {
    let clear: BTreeMap<Uuid, bool> = verdicts
        .iter()
        .filter_map(|record| match record.verdict {
            Verdict::Recovered => Some((record.action_id, true)),
            Verdict::Unchanged | Verdict::Worse => Some((record.action_id, false)),
            _ => None,
        })
        .collect();
    let mut found = BTreeMap::<(String, String), Evidence>::new();
    for decision in decisions {
        let (Some(action), Ok(target)) = (&decision.action, Target::from_key(&decision.target_key)) else {
            continue;
        };
        let evidence = found.entry((target.name, action.kind.clone())).or_default();
        evidence.note(decision, &clear, denied);
    }
    let suggestion = |((service, action), evidence): ((String, String), Evidence)| {
        let (from, (to, why)) = (evidence.mode?, evidence.speaks_for()?);
        Some(Suggestion {
            service,
            action,
            from,
            to,
            why,
        })
    };
    found.into_iter().filter_map(suggestion).collect()
}

impl Evidence {
    fn note(&mut self, decision: &Decision, clear: &BTreeMap<Uuid, bool>, denied: &BTreeSet<Uuid>) {
        // What was learned in one mode says little of another.
        if self.mode.replace(decision.mode) != Some(decision.mode) {
            *self = Self {
                mode: Some(decision.mode),
                ..Self::default()
            };
        }
        match (decision.verdict, decision.action_id) {
            (DecisionKind::Shadow, _) => {
                self.shadowed.insert(decision.incident_id);
            }
            (DecisionKind::AskApproval, Some(action)) => {
                self.asked.insert(action);
                self.denied += u32::from(denied.contains(&action));
            }
            (DecisionKind::Act, Some(action)) => {
                self.granted += u32::from(self.asked.contains(&action));
                if let Some(healed) = clear.get(&action) {
                    self.judged += 1;
                    self.healed += u64::from(*healed);
                }
            }
            _ => {}
        }
    }

    fn speaks_for(&self) -> Option<(Mode, String)> {
        let success = Success::of(self.judged, self.healed);
        let healed = format!(
            "healed {} of {} ({:.2}-{:.2})",
            self.healed, self.judged, success.low, success.high
        );
        match self.mode? {
            Mode::Shadow if self.shadowed.len() >= SHADOWED_MIN => {
                let why = format!("it would have acted in {} incidents", self.shadowed.len());
                Some((Mode::Approve, why))
            }
            Mode::Approve
                if self.granted >= GRANTED_MIN
                    && self.denied == 0
                    && self.judged >= JUDGED_MIN
                    && success.low >= HEALED_MIN =>
            {
                Some((
                    Mode::Auto,
                    format!("granted {} times and never denied; {healed}", self.granted),
                ))
            }
            Mode::Auto if self.judged >= JUDGED_MIN && success.high < HEALED_DOUBTFUL => Some((Mode::Approve, healed)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
