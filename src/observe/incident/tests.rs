use std::collections::BTreeMap;

use proptest::prelude::*;
use protocol::{
    CloudEvent, Target,
    message::{ActionBody, ActionTarget, Approval, DecisionKind, Explain, Gate, Ladder, Mode, Timing, Verdict},
};

use super::*;

const AT_MS: i64 = 1_767_323_045_000;

fn incident() -> Uuid {
    id::incident("homeostat", "target", "policy", 1)
}

fn anomaly() -> Uuid {
    id::anomaly("shop", "slow", "target", 0, AT_MS)
}

fn event(kind: &str, event_id: Uuid, cause: Uuid) -> CloudEvent {
    CloudEvent {
        recorded_time_ms: Some(AT_MS + 700),
        correlation_id: Some(incident()),
        causation_id: Some(cause),
        ..CloudEvent::new(
            event_id,
            "homeostat",
            "/homeostat/homeostat/shop",
            kind,
            "target",
            AT_MS,
        )
    }
}

pub(crate) fn chain() -> [Output; 3] {
    let action_body = ActionBody {
        kind: "restart".into(),
        version: 1,
        params: serde_json::Map::new(),
    };
    let decision = Decision {
        decision_id: Uuid::from_u128(2),
        incident_id: incident(),
        target_key: "target".into(),
        policy: "restart_slow".into(),
        pipeline: "shop".into(),
        detector: "slow".into(),
        decided_at: AT_MS + 500,
        verdict: DecisionKind::Act,
        refused_by: None,
        gates: vec![Gate {
            gate: "mode".into(),
            passed: true,
            values: BTreeMap::new(),
        }],
        mode: Mode::Auto,
        action_id: Some(Uuid::from_u128(3)),
        action: Some(action_body.clone()),
        propensity: 1.0,
        score: 1.5,
        evidence: vec![anomaly()],
        choice: None,
    };
    let target = Target::service("homeostat", "cart");
    let action = Action {
        action_id: Uuid::from_u128(3),
        incident_id: incident(),
        decision_id: Uuid::from_u128(2),
        attempt: 1,
        ladder: Ladder {
            step: 1,
            of: 1,
            policy: "restart_slow".into(),
        },
        action: action_body,
        target: ActionTarget {
            key: target.key(),
            target,
        },
        timing: Timing {
            decided_at: AT_MS + 500,
            start_deadline: AT_MS + 30_000,
            exec_timeout_ms: 1,
            verify_after_ms: 1,
            verify_for_ms: 1,
        },
        mode: "live".into(),
        approval: Approval {
            required: false,
            state: "not_required".into(),
            id: None,
        },
        explain: Explain {
            policy: "restart_slow".into(),
            detector: "slow".into(),
            pipeline: "shop".into(),
            score: 1.5,
            evidence: vec![anomaly()],
            gates: vec![],
        },
    };
    let verdict = VerdictRecord {
        action_id: Uuid::from_u128(3),
        incident_id: incident(),
        target_key: "target".into(),
        verdict: Verdict::Recovered,
        from: AT_MS + 10_000,
        to: AT_MS + 20_000,
        score_before: 1.5,
        score_after: Some(0.2),
        reason: "quiet".into(),
    };
    [
        event(cloudevent::DECISION, Uuid::from_u128(2), anomaly()).output("decisions", &decision),
        event(cloudevent::ACTION_REQUESTED, Uuid::from_u128(3), Uuid::from_u128(2)).output("actions", &action),
        event(cloudevent::VERDICT, Uuid::from_u128(4), Uuid::from_u128(3)).output("outcomes", &verdict),
    ]
}

#[test]
fn one_trace_from_anomaly_to_verdict() {
    let spans: Vec<Span> = chain().iter().flat_map(spans_of).collect();
    let names: Vec<&str> = spans.iter().map(|span| &*span.name).collect();
    assert_eq!(
        names,
        ["anomaly slow", "decision act", "action restart", "verdict recovered"]
    );
    assert!(
        spans
            .iter()
            .all(|span| span.trace_id == id::trace_id(incident()) && span.start_ms <= span.end_ms)
    );
    assert_eq!(spans[0].span_id, id::span_id(anomaly()));
    assert_eq!(spans[0].parent, None);
    for pair in spans.windows(2) {
        assert_eq!(
            pair[1].parent,
            Some(pair[0].span_id),
            "{} under {}",
            pair[1].name,
            pair[0].name
        );
    }
    assert_eq!((spans[0].start_ms, spans[0].end_ms), (AT_MS, AT_MS + 500));
    // The trace of a command is the one that its traceparent names.
    let traceparent = id::traceparent(incident(), Uuid::from_u128(3));
    assert_eq!(
        parse_traceparent(&traceparent),
        Some((spans[2].trace_id, spans[2].span_id))
    );
}

#[test]
fn what_belongs_to_no_incident_has_no_span() {
    let mut output = chain()[0].clone();
    output.headers.retain(|(name, _)| name != "ce_correlationid");
    assert!(spans_of(&output).is_empty());
    let mut output = chain()[0].clone();
    output.value = Some(b"{".to_vec());
    assert!(spans_of(&output).is_empty());
}

proptest! {
    #[test]
    fn any_traceparent_is_read_or_refused(text in "[0-9a-fA-F-]{0,60}|\\PC{0,60}") {
        let _ = parse_traceparent(&text);
    }
}

#[test]
fn traceparents() {
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert!(parse_traceparent(good).is_some());
    for bad in [
        "",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
    ] {
        assert_eq!(parse_traceparent(bad), None, "{bad}");
    }
}
