//! From decisions and their verdicts to what a model learns from, and to what a new model is judged by.

use std::collections::{BTreeMap, BTreeSet};

use protocol::message::{Choice, Decision, DecisionKind, Verdict, VerdictRecord};
use uuid::Uuid;

use super::{Arm, Example, Logged, Model, Value, draw};

/// How a policy that follows a model draws.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawing {
    pub propensity_min: f64,
    pub propensity_max: f64,
    /// Past incidents that the model's word is worth.
    pub prior_strength: f64,
}

/// What was clear of past choices: only recovered, unchanged and worse teach.
struct Judged<'a> {
    decision: &'a Decision,
    choice: &'a Choice,
    action: &'a str,
    healed: bool,
}

fn judged<'a>(decisions: &'a [Decision], verdicts: &'a [VerdictRecord]) -> Vec<Judged<'a>> {
    let verdicts: BTreeMap<Uuid, Verdict> = verdicts
        .iter()
        .map(|record| (record.action_id, record.verdict))
        .collect();
    let judge = |decision: &'a Decision| {
        let healed = match verdicts.get(&decision.action_id?)? {
            Verdict::Recovered => true,
            Verdict::Unchanged | Verdict::Worse => false,
            _ => return None,
        };
        Some(Judged {
            decision,
            choice: decision.choice.as_ref()?,
            action: &decision.action.as_ref()?.kind,
            healed,
        })
    };
    let acted = decisions
        .iter()
        .filter(|decision| decision.verdict == DecisionKind::Act);
    acted.filter_map(judge).collect()
}

fn features(choice: &Choice) -> BTreeMap<String, Value> {
    let value = |(name, value): (&String, &serde_json::Value)| {
        let value = match value {
            serde_json::Value::Number(number) => Value::Number(number.as_f64()?),
            serde_json::Value::String(text) => Value::Text(text.clone()),
            _ => return None,
        };
        Some((name.clone(), value))
    };
    choice.context.iter().filter_map(value).collect()
}

/// Incidents that an action healed, with that action as the label.
pub fn examples(decisions: &[Decision], verdicts: &[VerdictRecord]) -> Vec<Example> {
    let healed = judged(decisions, verdicts)
        .into_iter()
        .filter(|judged| judged.healed && judged.action != "noop");
    let mut examples: BTreeMap<Uuid, Example> = BTreeMap::new();
    for judged in healed {
        let incident = judged.decision.incident_id;
        examples.entry(incident).or_insert_with(|| Example {
            incident: incident.to_string(),
            label: judged.action.to_owned(),
            features: features(judged.choice),
        });
    }
    examples.into_values().collect()
}

/// The older half of the incidents whose end was clear, to learn from, and the newer half, to judge by: what judges a model must not have
/// taught it.
pub fn halves(decisions: &[Decision], verdicts: &[VerdictRecord]) -> (Vec<Decision>, Vec<Decision>) {
    let mut began: BTreeMap<Uuid, i64> = BTreeMap::new();
    for Judged { decision, .. } in judged(decisions, verdicts) {
        let at = began.entry(decision.incident_id).or_insert(decision.decided_at);
        *at = decision.decided_at.min(*at);
    }
    let mut incidents: Vec<(i64, Uuid)> = began.into_iter().map(|(incident, at)| (at, incident)).collect();
    incidents.sort_unstable();
    let newer = incidents.split_off(incidents.len() / 2);
    let of = |incidents: Vec<(i64, Uuid)>| {
        let incidents: BTreeSet<Uuid> = incidents.into_iter().map(|(_, incident)| incident).collect();
        let among = |decision: &&Decision| incidents.contains(&decision.incident_id);
        decisions.iter().filter(among).cloned().collect()
    };
    (of(incidents), of(newer))
}

/// The log as a new model would be judged by it: for every clear verdict, what a policy that follows the model would have
/// done among the actions that were allowed then. Pass it to [`super::evaluate`].
pub fn log(decisions: &[Decision], verdicts: &[VerdictRecord], model: &Model, drawing: Drawing) -> Vec<Logged> {
    let entry = |judged: Judged<'_>| {
        let ranking = model.choose(&features(judged.choice));
        let allowed: Vec<_> = judged
            .choice
            .options
            .iter()
            .filter(|option| option.propensity > 0.0)
            .collect();
        let arm = |action: &str| {
            let prior = ranking.probability(action).unwrap_or(0.05).clamp(0.02, 0.98);
            Arm {
                action: action.to_owned(),
                healed: drawing.prior_strength * prior,
                failed: drawing.prior_strength * (1.0 - prior),
                cost: 0.0,
            }
        };
        let arms: Vec<Arm> = allowed.iter().map(|option| arm(&option.action)).collect();
        let seed = judged.decision.decision_id.as_u128();
        let drawn = draw(&arms, drawing.propensity_min, drawing.propensity_max, seed)?;
        let target = allowed
            .iter()
            .map(|option| option.action.clone())
            .zip(drawn.propensities);
        Some(Logged {
            action: judged.action.to_owned(),
            propensity: judged.decision.propensity,
            reward: f64::from(judged.healed),
            target: target.collect(),
            expected: allowed
                .iter()
                .map(|option| (option.action.clone(), option.expected))
                .collect(),
        })
    };
    judged(decisions, verdicts).into_iter().filter_map(entry).collect()
}
