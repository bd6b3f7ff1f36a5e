//! Decide: what pipelines say of policies, as `remediation` knows it.

use std::{sync::Arc, time::Duration};

use engine::{
    spec::{ActionSpec, DetectorInput, OptionValue, Pipeline, PolicySpec},
    version::Compile,
};
use protocol::Topics;
use remediation::{Choice, Limit, PoliciesOfTexts, Policy};
use serde_json::{Map, Value};

/// The detector that alarms about what has not come yet.
const FORECASTS: &str = "forecast_breach";
/// How long an executor has for an action that does not say.
const EXEC_TIMEOUT: Duration = Duration::from_secs(120);

/// The policies of pipelines, in their order.
pub fn policies(pipelines: &[Pipeline], topics: &Topics) -> Vec<Policy> {
    let of = |pipeline: &Pipeline| {
        let convert = |policy: &PolicySpec| policy_of(pipeline, policy, topics);
        pipeline.policies.iter().map(convert).collect::<Vec<_>>()
    };
    pipelines.iter().flat_map(of).collect()
}

/// The policies of a version's pipelines, whose texts a control record holds.
pub fn policies_of_texts(compile: Arc<dyn Compile>, topics: Topics) -> PoliciesOfTexts {
    Arc::new(move |texts| compile.compile(texts).map(|compiled| policies(&compiled, &topics)))
}

/// The decided part of a policy, as `remediation` knows it.
fn policy_of(pipeline: &Pipeline, policy: &PolicySpec, topics: &Topics) -> Policy {
    let detector = &pipeline.detectors[policy.detector];
    let action = match &policy.action {
        ActionSpec::Fixed(name) => Choice::Fixed(name.clone()),
        ActionSpec::Ladder(steps) => Choice::Ladder(steps.clone()),
        ActionSpec::Choose => Choice::Choose(Vec::new()),
    };
    let mut made = Policy::new(&pipeline.name, &policy.name, &detector.name, action);
    made.for_k = policy.for_k;
    made.for_n = policy.for_n;
    made.window_step_ms = policy.window_step_ms;
    made.lateness_ms = match detector.input {
        DetectorInput::View(view) => pipeline.views[view].window.lateness_ms,
        DetectorInput::PaneSet(_) => 0,
    };
    made.predictive = detector.using == FORECASTS;
    made.latched = matches!(detector.input, DetectorInput::PaneSet(_));
    made.clear_windows = policy.clear.as_ref().map(|_| policy.clear_windows);
    made.cooldown = policy.cooldown;
    made.limits = policy
        .limits
        .iter()
        .map(|(actions, per)| Limit {
            actions: *actions,
            per: *per,
        })
        .collect();
    made.target_key_column = policy.target.clone();
    made.params = params(&policy.params);
    made.expires_after = policy.expires_after;
    made.mode = policy.mode;
    made.into_topic = format!("{}{}", topics.prefix(), policy.into);
    made.exec_timeout = EXEC_TIMEOUT;
    made
}

fn params(params: &[(String, OptionValue)]) -> Map<String, Value> {
    let value = |value: &OptionValue| match value {
        OptionValue::Number(number) => Value::from(*number),
        OptionValue::Text(text) => Value::from(text.as_str()),
        OptionValue::Bool(flag) => Value::from(*flag),
    };
    params
        .iter()
        .map(|(name, given)| (name.clone(), value(given)))
        .collect()
}

#[cfg(test)]
mod tests;
