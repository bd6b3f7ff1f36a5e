//! Off-policy evaluation: what another policy would have earned, from decisions that logged their propensity.
//!
//! Three estimates stand side by side: inverse propensity scoring (unbiased, noisy), its self-normalised form (a little
//! biased, calmer), and doubly robust (a model corrected by the log). Each with a 95 % interval; with them how many logged
//! decisions the estimate really rests on. A policy is promoted only when all of that allows it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One logged decision whose outcome is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Logged {
    pub action: String,
    /// Probability with which the logging policy chose it.
    pub propensity: f64,
    /// 1 for healed, 0 for not, anything between for something between.
    pub reward: f64,
    /// What the evaluated policy would have done: probabilities by action.
    pub target: BTreeMap<String, f64>,
    /// What a model expects each action to earn here; without one the mean of what it earned elsewhere.
    pub expected: BTreeMap<String, f64>,
}

/// An estimate with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// What the log says of a policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    pub decisions: usize,
    pub ips: Estimate,
    pub snips: Estimate,
    pub dr: Estimate,
    /// What the logging policy earned.
    pub logged: Estimate,
    /// Logged decisions that the weighted ones are worth.
    pub effective_samples: f64,
    /// Actions that the policy would take and the log never tried.
    pub unsupported: Vec<String>,
}

/// Whether a policy may replace the one that logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "promotion")]
pub enum Promotion {
    Promote,
    /// The log cannot tell.
    InsufficientEvidence {
        reason: String,
    },
    /// The log says that it is worse.
    Worse {
        reason: String,
    },
}

/// Weights beyond this count no more: one lucky rare choice must not decide.
const WEIGHT_MAX: f64 = 20.0;
const SAMPLES_MIN: f64 = 200.0;
const SAMPLES_SHARE_MIN: f64 = 0.1;

/// Evaluates a policy on a log. `None` when there is nothing in it.
pub fn evaluate(log: &[Logged]) -> Option<Evaluation> {
    if log.is_empty() {
        return None;
    }
    let means = mean_rewards(log);
    let weight = |entry: &Logged| {
        let target = entry.target.get(&entry.action).copied().unwrap_or(0.0);
        (target / entry.propensity.max(1e-6)).clamp(0.0, WEIGHT_MAX)
    };
    let weights: Vec<f64> = log.iter().map(weight).collect();
    let sum: f64 = weights.iter().sum();
    let squares: f64 = weights.iter().map(|weight| weight * weight).sum();
    let ips: Vec<f64> = log
        .iter()
        .zip(&weights)
        .map(|(entry, weight)| weight * entry.reward)
        .collect();
    let dr: Vec<f64> = log
        .iter()
        .zip(&weights)
        .map(|(entry, weight)| doubly_robust(entry, *weight, &means))
        .collect();
    let rewards: Vec<f64> = log.iter().map(|entry| entry.reward).collect();
    let mut unsupported: Vec<String> = log
        .iter()
        .flat_map(|entry| &entry.target)
        .filter(|(action, probability)| **probability > 0.0 && !means.contains_key(action.as_str()))
        .map(|(action, _)| action.clone())
        .collect();
    unsupported.sort();
    unsupported.dedup();
    Some(Evaluation {
        decisions: log.len(),
        ips: mean_interval(&ips),
        snips: ratio_interval(&ips, &weights),
        dr: mean_interval(&dr),
        logged: mean_interval(&rewards),
        effective_samples: if squares > 0.0 { sum * sum / squares } else { 0.0 },
        unsupported,
    })
}

/// The rule of promotion: enough evidence, every action of the policy tried before, and no worse than what runs.
pub fn promote(evaluation: &Evaluation, incumbent: f64) -> Promotion {
    let needed = SAMPLES_MIN.max(SAMPLES_SHARE_MIN * evaluation.decisions as f64);
    if !evaluation.unsupported.is_empty() {
        let actions = evaluation.unsupported.join(", ");
        let reason = format!("the log never tried {actions}");
        return Promotion::InsufficientEvidence { reason };
    }
    if evaluation.dr.high < incumbent {
        let reason = format!("at best {:.3}, against {incumbent:.3} now", evaluation.dr.high);
        return Promotion::Worse { reason };
    }
    if evaluation.effective_samples < needed {
        let have = evaluation.effective_samples;
        let reason = format!("the estimate rests on {have:.0} decisions, {needed:.0} are needed");
        return Promotion::InsufficientEvidence { reason };
    }
    if evaluation.dr.low < incumbent {
        let reason = format!("at worst {:.3}, against {incumbent:.3} now", evaluation.dr.low);
        return Promotion::InsufficientEvidence { reason };
    }
    Promotion::Promote
}

fn doubly_robust(entry: &Logged, weight: f64, means: &BTreeMap<&str, f64>) -> f64 {
    let expect = |action: &str| {
        let known = entry.expected.get(action).copied();
        known.or_else(|| means.get(action).copied()).unwrap_or(0.0)
    };
    let direct: f64 = entry.target.iter().map(|(action, p)| p * expect(action)).sum();
    direct + weight * (entry.reward - expect(&entry.action))
}

fn mean_rewards(log: &[Logged]) -> BTreeMap<&str, f64> {
    let mut sums: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for entry in log {
        let sum = sums.entry(&entry.action).or_default();
        sum.0 += entry.reward;
        sum.1 += 1.0;
    }
    sums.into_iter()
        .map(|(action, (sum, count))| (action, sum / count))
        .collect()
}

/// Mean with the normal interval of its standard error.
fn mean_interval(values: &[f64]) -> Estimate {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    interval(mean, (variance / count).sqrt())
}

/// Ratio of sums with the delta method's interval.
fn ratio_interval(weighted: &[f64], weights: &[f64]) -> Estimate {
    let total: f64 = weights.iter().sum();
    if total <= 0.0 {
        return interval(0.0, 0.0);
    }
    let ratio = weighted.iter().sum::<f64>() / total;
    let residuals = weighted
        .iter()
        .zip(weights)
        .map(|(value, weight)| (value - ratio * weight).powi(2));
    interval(ratio, residuals.sum::<f64>().sqrt() / total)
}

fn interval(value: f64, error: f64) -> Estimate {
    Estimate {
        value,
        low: value - 1.96 * error,
        high: value + 1.96 * error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two actions, healing 0.3 and 0.7 of the time, logged half and half.
    fn log(count: usize, target_second: f64) -> Vec<Logged> {
        (0..count)
            .map(|at| {
                let second = at % 2 == 1;
                let healed = if second { at % 20 < 14 } else { at % 20 < 6 };
                Logged {
                    action: if second { "scale_up" } else { "restart" }.into(),
                    propensity: 0.5,
                    reward: f64::from(healed),
                    target: [
                        ("restart".to_owned(), 1.0 - target_second),
                        ("scale_up".to_owned(), target_second),
                    ]
                    .into(),
                    expected: BTreeMap::new(),
                }
            })
            .collect()
    }

    #[test]
    fn all_three_find_the_value_of_a_better_policy() {
        let evaluation = evaluate(&log(2_000, 0.9)).unwrap();
        let truth = 0.1 * 0.3 + 0.9 * 0.7;
        for estimate in [evaluation.ips, evaluation.snips, evaluation.dr] {
            assert!(
                estimate.low <= truth && truth <= estimate.high,
                "{estimate:?} against {truth}"
            );
        }
        assert!((evaluation.logged.value - 0.5).abs() < 0.05);
        assert_eq!(promote(&evaluation, evaluation.logged.value), Promotion::Promote);
    }

    #[test]
    fn a_worse_policy_is_called_worse() {
        let evaluation = evaluate(&log(2_000, 0.0)).unwrap();
        assert!(matches!(promote(&evaluation, 0.5), Promotion::Worse { .. }));
    }

    #[test]
    fn little_evidence_is_called_so() {
        let evaluation = evaluate(&log(100, 0.9)).unwrap();
        assert!(matches!(
            promote(&evaluation, 0.5),
            Promotion::InsufficientEvidence { .. }
        ));
        let mut untried = log(2_000, 0.9);
        for entry in &mut untried {
            entry.target.insert("rollback".into(), 0.2);
        }
        let evaluation = evaluate(&untried).unwrap();
        let Promotion::InsufficientEvidence { reason } = promote(&evaluation, 0.5) else {
            panic!("promoted");
        };
        assert_eq!(reason, "the log never tried rollback");
        assert_eq!(evaluate(&[]), None);
    }
}
