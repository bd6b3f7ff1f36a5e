//! A decision in words: what it rests on, which gates it passed, what else was considered, what came of it.

use protocol::{
    Target,
    message::{Anomaly, Decision, DecisionKind, Gate, VerdictRecord},
    time,
};
use serde_json::Value;
use uuid::Uuid;

/// Lines of text for people, most important first. `anomaly` finds what the decision rests on, as far as it is still on record.
pub fn explain<'a>(
    decision: &Decision,
    verdict: Option<&VerdictRecord>,
    anomaly: impl Fn(Uuid) -> Option<&'a Anomaly>,
) -> Vec<String> {
    let name =
        Target::from_key(&decision.target_key).map_or_else(|_| decision.target_key.clone(), |target| target.name);
    let action = decision
        .action
        .as_ref()
        .map_or("nothing", |action| action.kind.as_str());
    let refused = decision.refused_by.as_deref().unwrap_or("no gate");
    let mut lines = vec![match decision.verdict {
        DecisionKind::Act => format!("{action} {name}"),
        DecisionKind::Shadow => format!("would {action} {name}, had the mode allowed"),
        DecisionKind::AskApproval => format!("asked a person whether to {action} {name}"),
        DecisionKind::Refuse => format!("did not {action} {name}: refused by {refused}"),
    }];
    lines.push(format!(
        "decided at {} by policy {}.{} on detector {}, score {:.3}",
        time::to_rfc3339(decision.decided_at),
        decision.pipeline,
        decision.policy,
        decision.detector,
        decision.score
    ));
    let seen = |id: &Uuid| anomaly(*id).map_or_else(|| "no longer on record".to_owned(), evidence);
    lines.extend(
        decision
            .evidence
            .iter()
            .map(|id| format!("evidence: anomaly {id}: {}", seen(id))),
    );
    lines.extend(decision.gates.iter().map(gate));
    if let Some(choice) = &decision.choice {
        let model = choice.model.as_deref().unwrap_or("none");
        lines.push(format!(
            "model {model}{}",
            if choice.abstained { ", which could not tell" } else { "" }
        ));
        lines.extend(choice.path.iter().map(|condition| format!("because {condition}")));
        for option in &choice.options {
            let refused = option
                .refused_by
                .as_ref()
                .map(|gate| format!(", refused by {gate}"))
                .unwrap_or_default();
            lines.push(format!(
                "option {}: expected to heal {:.2}, chosen with probability {:.3}{refused}",
                option.action, option.expected, option.propensity
            ));
        }
    }
    let expected = decision.choice.as_ref().and_then(|choice| {
        let option = choice.options.iter().find(|option| option.action == action)?;
        Some(format!(", expected with {:.2}", option.expected))
    });
    if let Some(verdict) = verdict {
        let after = verdict
            .score_after
            .map_or("nothing".to_owned(), |score| format!("{score:.3}"));
        let seen = serde_json::to_value(verdict.verdict).unwrap_or_default();
        lines.push(format!(
            "came of it: {}{}; score {:.3} before, {after} after: {}",
            seen.as_str().unwrap_or_default(),
            expected.unwrap_or_default(),
            verdict.score_before,
            verdict.reason
        ));
    } else if decision.verdict == DecisionKind::Act {
        lines.push(format!("came of it: not judged yet{}", expected.unwrap_or_default()));
    }
    lines
}

/// What one window showed: its score, and the features, those that the score comes from first.
fn evidence(anomaly: &Anomaly) -> String {
    const SHOWN: usize = 5;
    let part = |name: &str| anomaly.contributions.get(name).copied().unwrap_or(0.0);
    let mut features: Vec<(&str, f64)> = anomaly
        .features
        .iter()
        .filter_map(|(name, value)| Some((name.as_str(), (*value)?)))
        .collect();
    features.sort_by(|(a, _), (b, _)| part(b).abs().total_cmp(&part(a).abs()).then(a.cmp(b)));
    let shown: Vec<String> = features
        .iter()
        .take(SHOWN)
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    format!(
        "window {} to {}, score {:.3}, {}",
        time::to_rfc3339(anomaly.window_start),
        time::to_rfc3339(anomaly.window_end),
        anomaly.score,
        if shown.is_empty() {
            "no features".into()
        } else {
            shown.join(" ")
        }
    )
}

fn gate(gate: &Gate) -> String {
    let values = gate.values.iter().filter(|(_, value)| !value.is_null());
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let values: Vec<String> = values.map(|(name, value)| format!("{name}={}", text(value))).collect();
    let passed = if gate.passed { "passed" } else { "refused" };
    format!("gate {}: {passed} ({})", gate.gate, values.join(", "))
}
