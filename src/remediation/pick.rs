//! DO CHOOSE: the model ranks, experience corrects it, the gates mask, and a draw with a known probability picks.

use std::collections::BTreeMap;

use protocol::{
    id,
    message::{Action, Anomaly, Choice, ChoiceOption, Gate, Verdict},
};
use serde_json::json;

use crate::{
    Fleet, Impact, Policy,
    choose::{Arm, Ranking, Value, draw},
    decide::Next,
    gate::{Judgement, Retry},
    state::{Case, Episode, EpisodeKey, Experience, InForce, StateKey},
};

/// To do nothing and watch.
pub(crate) const NOOP: &str = "noop";
/// To leave it to a person.
const ESCALATE: &str = "escalate";
/// Features taken of one anomaly, and bytes of a text among them.
const CONTEXT_MAX: usize = 64;
const TEXT_MAX: usize = 256;
/// Prior means of success for the actions of a policy that has no model, in their order.
const PRIOR_FIRST: f64 = 0.6;
const PRIOR_RATIO: f64 = 0.75;

/// An action under consideration.
struct Candidate {
    kind: String,
    judgement: Judgement,
    impact: Impact,
    probability: Option<f64>,
    arm: Arm,
    refused_by: Option<String>,
}

/// What an anomaly says that a model may learn from.
pub(crate) fn context(data: &Anomaly) -> BTreeMap<String, Value> {
    let features = data
        .features
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), Value::Number((*value)?))));
    let parts = data
        .contributions
        .iter()
        .map(|(name, value)| (format!("by.{name}"), Value::Number(*value)));
    let columns = data.columns.iter().filter_map(|(name, value)| {
        let value = match value {
            serde_json::Value::Number(number) => Value::Number(number.as_f64()?),
            serde_json::Value::Bool(flag) => Value::Number(f64::from(*flag)),
            serde_json::Value::String(text) if text.len() <= TEXT_MAX => Value::Text(text.clone()),
            _ => return None,
        };
        Some((name.clone(), value))
    });
    let finite = |(_, value): &(String, Value)| !matches!(value, Value::Number(number) if !number.is_finite());
    let score = [("score".to_owned(), Value::Number(data.score))];
    features
        .chain(parts)
        .chain(columns)
        .chain(score)
        .filter(finite)
        .take(CONTEXT_MAX)
        .collect()
}

impl Fleet {
    /// The next action of a learned choice with what the gates say of it; `None` when everything was tried.
    pub(crate) fn pick(
        &self,
        key: &EpisodeKey,
        policy: &Policy,
        episode: &Episode,
        case: &Case,
    ) -> Option<(Next, Judgement)> {
        let config = &self.config.choose;
        let kinds = policy.action.kinds(&config.actions);
        let context = self.situation(key, episode, case);
        let model = self.model(policy);
        let ranking = model.map(|in_force| in_force.model.choose(&context));
        let untried = |kind: &&String| !case.tried.contains(kind) && ![NOOP, ESCALATE].contains(&kind.as_str());
        let mut candidates = Vec::new();
        for (rank, kind) in kinds.iter().enumerate().filter(|(_, kind)| untried(kind)) {
            let judgement = self.judge(key, policy, episode, kind)?;
            candidates.push(self.candidate(policy, episode, kind, rank, ranking.as_ref(), judgement));
        }
        let of = kinds.len();
        refuse_unsafe(&mut candidates);
        let first = candidates.iter().max_by(|a, b| mean(&a.arm).total_cmp(&mean(&b.arm)))?;
        if candidates.iter().all(|candidate| candidate.refused_by.is_some()) {
            // A gate that refuses what is best refuses the incident; what is only riskier is no way around it.
            let mut next = Next::only(&first.kind, of);
            next.choice = Some(choice(model, ranking.as_ref(), &candidates, &[], &context, false));
            return Some((next, first.judgement.clone()));
        }
        let judgement = first.judgement.clone();
        let known: f64 = candidates
            .iter()
            .map(|candidate| self.verdicts(policy, fits(ranking.as_ref()), &candidate.kind))
            .sum();
        let undecided = ranking.as_ref().is_some_and(|ranking| ranking.abstained);
        if undecided && known < f64::from(config.experience_min) {
            let choice = choice(model, ranking.as_ref(), &candidates, &[], &context, true);
            return Some(self.leave_to_a_person(choice, of, judgement, 1.0));
        }
        if !case.tried.iter().any(|tried| tried == NOOP) {
            let judgement = self.judge(key, policy, episode, NOOP)?;
            candidates.push(self.candidate(policy, episode, NOOP, of, ranking.as_ref(), judgement));
        }
        candidates.push(self.candidate(policy, episode, ESCALATE, of, ranking.as_ref(), judgement));
        self.draw_one(case, model, ranking.as_ref(), candidates, &context, of)
    }

    fn draw_one(
        &self,
        case: &Case,
        model: Option<&InForce>,
        ranking: Option<&Ranking>,
        candidates: Vec<Candidate>,
        context: &BTreeMap<String, Value>,
        of: usize,
    ) -> Option<(Next, Judgement)> {
        let config = &self.config.choose;
        let allowed: Vec<&Candidate> = candidates
            .iter()
            .filter(|candidate| candidate.refused_by.is_none())
            .collect();
        let arms: Vec<Arm> = allowed.iter().map(|candidate| candidate.arm.clone()).collect();
        let names = [case.id.to_string(), case.step.to_string(), case.attempt.to_string()];
        let seed = id::derived("choice", &names.each_ref().map(String::as_str)).as_u128();
        let drawn = draw(&arms, config.propensity_min, config.propensity_max, seed)?;
        let chosen = allowed.get(drawn.chosen)?;
        let propensities: Vec<(&str, f64)> = allowed
            .iter()
            .map(|candidate| candidate.kind.as_str())
            .zip(drawn.propensities.iter().copied())
            .collect();
        let propensity = *drawn.propensities.get(drawn.chosen)?;
        let choice = choice(model, ranking, &candidates, &propensities, context, false);
        if chosen.kind == ESCALATE {
            return Some(self.leave_to_a_person(choice, of, chosen.judgement.clone(), propensity));
        }
        let mut next = Next::only(&chosen.kind, of);
        next.propensity = propensity;
        next.choice = Some(choice);
        Some((next, chosen.judgement.clone()))
    }

    fn leave_to_a_person(&self, choice: Choice, of: usize, judgement: Judgement, propensity: f64) -> (Next, Judgement) {
        let mut judgement = judgement;
        judgement.gates.push(Gate {
            gate: "choice".into(),
            passed: false,
            values: [
                ("chosen".to_owned(), json!(ESCALATE)),
                ("abstained".to_owned(), json!(choice.abstained)),
            ]
            .into(),
        });
        judgement.refused = Some(Retry::Never);
        let mut next = Next::only(ESCALATE, of);
        next.propensity = propensity;
        next.choice = Some(choice);
        (next, judgement)
    }

    fn candidate(
        &self,
        policy: &Policy,
        episode: &Episode,
        kind: &str,
        rank: usize,
        ranking: Option<&Ranking>,
        judgement: Judgement,
    ) -> Candidate {
        let config = &self.config.choose;
        let impact = self.config.action_class(kind).impact;
        let probability = ranking.and_then(|ranking| ranking.probability(kind));
        let ranked = || PRIOR_FIRST * PRIOR_RATIO.powi(i32::try_from(rank).unwrap_or(i32::MAX));
        // What a model was never shown is unlikely, not impossible.
        let prior = match (ranking, probability) {
            (_, Some(probability)) => probability,
            (Some(_), None) => 0.05,
            (None, None) => ranked(),
        };
        let cost = match impact {
            Impact::None => 0.0,
            Impact::Low => config.cost_low,
            Impact::Medium => config.cost_medium,
            Impact::High => config.cost_high,
        };
        let arm = match kind {
            ESCALATE => Arm {
                action: kind.to_owned(),
                healed: 100.0 * config.escalate_value,
                failed: 100.0 * (1.0 - config.escalate_value),
                cost: 0.0,
            },
            _ => self.arm(policy, episode, fits(ranking), kind, prior, cost),
        };
        Candidate {
            kind: kind.to_owned(),
            refused_by: judgement.refused_by().map(str::to_owned),
            judgement,
            impact,
            probability,
            arm,
        }
    }

    /// The model's word as a prior, and from incidents that it took for the same kind what other services taught up to a bound, and all that this service taught.
    fn arm(&self, policy: &Policy, episode: &Episode, fits: Option<&str>, kind: &str, prior: f64, cost: f64) -> Arm {
        let config = &self.config.choose;
        let all = self.learned(&of_all(policy, fits, kind));
        let own = self.learned(&of_service(policy, fits, kind, &episode.target.name));
        let (others_healed, others_failed) = (all.healed - own.healed, all.failed - own.failed);
        let others = f64::from(others_healed) + f64::from(others_failed);
        let weight = if others > 0.0 {
            (config.pooled_max / others).min(1.0)
        } else {
            0.0
        };
        let prior = prior.clamp(0.02, 0.98);
        Arm {
            action: kind.to_owned(),
            healed: config.prior_strength * prior + weight * f64::from(others_healed) + f64::from(own.healed),
            failed: config.prior_strength * (1.0 - prior) + weight * f64::from(others_failed) + f64::from(own.failed),
            cost,
        }
    }

    fn learned(&self, of: &str) -> Experience {
        self.state.experience.get(of).copied().unwrap_or_default()
    }

    fn verdicts(&self, policy: &Policy, fits: Option<&str>, kind: &str) -> f64 {
        let learned = self.learned(&of_all(policy, fits, kind));
        f64::from(learned.healed) + f64::from(learned.failed)
    }

    /// Counts a clear verdict on an action that was carried out and watched, for incidents that the model took for such.
    pub(crate) fn experience(&mut self, key: &EpisodeKey, action: &Action, fits: Option<&str>, verdict: Verdict) {
        let healed = match verdict {
            Verdict::Recovered => true,
            Verdict::Unchanged | Verdict::Worse => false,
            _ => return,
        };
        let Some(policy) = self.policy(key) else { return };
        let kind = &action.action.kind;
        for of in [
            of_all(&policy, fits, kind),
            of_service(&policy, fits, kind, &action.target.target.name),
        ] {
            let learned = self.state.experience.entry(of.clone()).or_default();
            match healed {
                true => learned.healed = learned.healed.saturating_add(1),
                false => learned.failed = learned.failed.saturating_add(1),
            }
            self.dirty.insert(StateKey::Experience(of));
        }
    }

    fn model(&self, policy: &Policy) -> Option<&InForce> {
        let scopes = [format!("model/{}", policy.id()), "model/*".to_owned()];
        let model = scopes.iter().find_map(|scope| self.index.models.get(scope));
        model.map(|model| model.as_ref())
    }

    /// Everything a choice may rest on: the last window, the other alarms at the service, and how far the ladder is.
    fn situation(&self, key: &EpisodeKey, episode: &Episode, case: &Case) -> BTreeMap<String, Value> {
        let mut context = episode.context.clone();
        context.insert("detector".into(), Value::Text(episode.detector.clone()));
        context.insert("step".into(), Value::Number(f64::from(case.step)));
        let name = &episode.target.name;
        for (group, sick) in &self.index.sick {
            let alarms = sick.values().any(|sick| sick.name == *name);
            if alarms && *group != crate::state::group(&key.pipeline, &episode.detector) {
                context.insert(format!("alarm.{group}"), Value::Number(1.0));
            }
        }
        let sick_callees = self.callees(name).filter(|callee| self.is_sick(callee)).count();
        context.insert("sick_callees".into(), Value::Number(sick_callees as f64));
        context
    }
}

/// Past the impact of what fits best nothing is tried: exploring stays among what is as safe.
fn refuse_unsafe(candidates: &mut [Candidate]) {
    let allowed = candidates.iter().filter(|candidate| candidate.refused_by.is_none());
    let best = allowed.max_by(|a, b| mean(&a.arm).total_cmp(&mean(&b.arm)));
    let Some(limit) = best.map(|best| best.impact.max(Impact::Low)) else {
        return;
    };
    for candidate in candidates {
        if candidate.refused_by.is_none() && candidate.impact > limit {
            candidate.refused_by = Some("unsafe".into());
        }
    }
}

fn mean(arm: &Arm) -> f64 {
    arm.healed / (arm.healed + arm.failed)
}

/// What the model alone takes an incident for: the context in which experience counts.
fn fits(ranking: Option<&Ranking>) -> Option<&str> {
    ranking.and_then(Ranking::best)
}

fn of_all(policy: &Policy, fits: Option<&str>, kind: &str) -> String {
    format!("{}/{}/{kind}", policy.id(), fits.unwrap_or_default())
}

fn of_service(policy: &Policy, fits: Option<&str>, kind: &str, service: &str) -> String {
    format!("{}/{service}", of_all(policy, fits, kind))
}

fn choice(
    model: Option<&InForce>,
    ranking: Option<&Ranking>,
    candidates: &[Candidate],
    propensities: &[(&str, f64)],
    context: &BTreeMap<String, Value>,
    abstained: bool,
) -> Choice {
    let option = |candidate: &Candidate| {
        let drawn = propensities.iter().find(|(kind, _)| *kind == candidate.kind);
        ChoiceOption {
            action: candidate.kind.clone(),
            probability: candidate.probability,
            expected: mean(&candidate.arm),
            propensity: drawn.map_or(0.0, |(_, propensity)| *propensity),
            refused_by: candidate.refused_by.clone(),
        }
    };
    let value = |(name, value): (&String, &Value)| {
        let value = match value {
            Value::Number(number) => json!(number),
            Value::Text(text) => json!(text),
        };
        (name.clone(), value)
    };
    Choice {
        model: model.map(|in_force| in_force.version.clone()),
        abstained,
        fits: fits(ranking).map(str::to_owned),
        path: ranking.map(|ranking| ranking.path.clone()).unwrap_or_default(),
        options: candidates.iter().map(option).collect(),
        context: context.iter().map(value).collect(),
    }
}
