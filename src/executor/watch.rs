//! What the executor shows of its work: outcomes counted, actions timed, and the span of each action in its
//! incident's trace, under the command that asked for it.

use std::sync::Arc;

use observe::{Health, Kind, Metrics, Span, Spans, parse_traceparent};
use protocol::{
    id,
    message::{Outcome, OutcomeStatus},
};

use crate::command::Command;

/// Name of the executor's own part in `/healthz`.
const LOOP: &str = "executor";

/// Where the work is shown.
#[derive(Clone)]
pub struct Watch {
    pub metrics: Arc<Metrics>,
    pub health: Arc<Health>,
    pub spans: Spans,
}

impl Watch {
    /// Nobody watches.
    pub fn none() -> Self {
        Self {
            metrics: Arc::default(),
            health: Arc::default(),
            spans: Spans::none(),
        }
    }

    /// The loop went round once.
    pub fn alive(&self, in_flight: usize, held: usize) {
        self.health.beat(LOOP);
        self.health.set_ready(true);
        self.metrics.gauge("executor_in_flight", &[], 0, in_flight as f64);
        self.metrics.gauge("executor_partitions_held", &[], 0, held as f64);
    }

    /// A final word was said, for the first time or again.
    pub fn said(&self, outcome: &Outcome) {
        let code = outcome.code.to_string();
        let labels = [("status", outcome.status.as_str()), ("code", code.as_str())];
        self.metrics.count("executor_outcomes_total", &labels, 1.0);
    }

    /// The executor's own budget or breaker held an action back; the reason begins with which.
    pub fn bounded(&self, action: &str, reason: &str) {
        let by = reason.split(':').next().unwrap_or_default();
        let labels = [("action", action), ("by", by)];
        self.metrics.count("executor_held_back_total", &labels, 1.0);
    }

    /// An action came to its end.
    pub fn finished(&self, command: &Command, outcome: &Outcome, since_ms: i64) {
        let seconds = outcome.at.saturating_sub(since_ms).max(0) as f64 / 1_000.0;
        let labels = [("action", command.kind()), ("status", outcome.status.as_str())];
        self.metrics.observe_s("executor_action_seconds", &labels, seconds);
        if self.spans.are_wanted() {
            self.spans.record(span(command, outcome, since_ms));
        }
    }
}

fn span(command: &Command, outcome: &Outcome, since_ms: i64) -> Span {
    let own = (id::trace_id(outcome.incident_id), id::span_id(outcome.action_id));
    let given = command.event.traceparent.as_deref().and_then(parse_traceparent);
    let (trace_id, parent) = given.unwrap_or(own);
    let event_id = id::outcome(outcome.action_id, outcome.attempt, outcome.status.as_str());
    let healthy = outcome.status == OutcomeStatus::Succeeded;
    Span {
        trace_id,
        span_id: id::span_id(event_id),
        parent: Some(parent),
        name: format!("outcome {}", outcome.status.as_str()).into(),
        kind: Kind::Consumer,
        start_ms: since_ms.min(outcome.at),
        end_ms: outcome.at,
        attributes: vec![
            ("homeostat.incident_id", outcome.incident_id.to_string()),
            ("homeostat.action_id", outcome.action_id.to_string()),
            ("homeostat.target", command.action.target.key.clone()),
            ("homeostat.action", command.kind().to_owned()),
            ("homeostat.executor", outcome.executor.id.clone()),
            ("homeostat.code", outcome.code.to_string()),
        ],
        error: (!healthy).then(|| {
            outcome
                .error
                .clone()
                .unwrap_or_else(|| outcome.status.as_str().to_owned())
        }),
    }
}

#[cfg(test)]
mod tests {
    use protocol::message::Executor;

    use super::*;
    use crate::command::tests::{NOW_MS, action, command};

    #[test]
    fn the_span_hangs_under_the_command_in_the_trace_of_its_incident() {
        let mut command = command(action("cart", 1), 1);
        let outcome = Outcome {
            action_id: command.id(),
            incident_id: command.action.incident_id,
            attempt: 1,
            executor: Executor {
                id: "local".into(),
                version: "0".into(),
            },
            status: OutcomeStatus::Failed,
            code: 500,
            retryable: false,
            at: NOW_MS + 5,
            effect: serde_json::Map::new(),
            error: Some("no such file".into()),
            payload_sha256: command.payload_sha256.clone(),
        };
        let from_traceparent = span(&command, &outcome, NOW_MS);
        assert_eq!(from_traceparent.trace_id, id::trace_id(outcome.incident_id));
        assert_eq!(from_traceparent.parent, Some(id::span_id(command.id())));
        assert_eq!(from_traceparent.error.as_deref(), Some("no such file"));
        command.event.traceparent = Some("nonsense".into());
        assert_eq!(span(&command, &outcome, NOW_MS), from_traceparent);
    }
}
