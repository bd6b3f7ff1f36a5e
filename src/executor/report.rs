//! Outcomes as events: who reports what about which action, under ids that a repeated report shares.

use std::sync::Arc;

use protocol::{
    CloudEvent, Output, Topics, cloudevent, id,
    message::{Executor, Outcome, OutcomeStatus},
    signature::Signer,
};

use crate::{Error, adapter::Effect, adapter::Failure, admission::Refusal, command::Addressee};

/// Takes reports to the `outcomes` topic.
pub trait Reporter: Send + Sync {
    /// Says something that nothing depends on, without waiting for the broker.
    fn announce(&self, output: Output);

    /// Durable when it returns.
    fn publish(&self, output: Output) -> Result<(), Error>;
}

/// Who reports, and where.
#[derive(Clone, Debug)]
pub struct Identity {
    pub executor: Executor,
    pub topics: Topics,
    pub tenant: String,
    /// Signs what is reported.
    pub signer: Option<Arc<Signer>>,
}

/// What is said of an action.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    pub status: OutcomeStatus,
    pub code: u16,
    pub retryable: bool,
    pub effect: Effect,
    pub error: Option<String>,
}

impl Statement {
    pub fn accepted() -> Self {
        Self::plain(OutcomeStatus::Accepted, 102)
    }

    pub fn started() -> Self {
        Self::plain(OutcomeStatus::Started, 102)
    }

    pub fn succeeded(effect: Effect) -> Self {
        Self {
            effect,
            ..Self::plain(OutcomeStatus::Succeeded, 200)
        }
    }

    pub fn unknown(reason: impl Into<String>) -> Self {
        Self {
            error: Some(reason.into()),
            ..Self::plain(OutcomeStatus::Unknown, 504)
        }
    }

    fn plain(status: OutcomeStatus, code: u16) -> Self {
        Self {
            status,
            code,
            retryable: false,
            effect: Effect::new(),
            error: None,
        }
    }
}

impl From<Refusal> for Statement {
    fn from(refusal: Refusal) -> Self {
        Self {
            error: Some(refusal.reason),
            ..Self::plain(refusal.status, refusal.code)
        }
    }
}

impl From<Failure> for Statement {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Failed {
                code,
                reason,
                retryable,
            } => Self {
                retryable,
                error: Some(reason),
                ..Self::plain(OutcomeStatus::Failed, code)
            },
            Failure::Unknown(reason) => Self::unknown(reason),
            Failure::Stopped(reason) => Refusal::cancelled(reason).into(),
        }
    }
}

impl Identity {
    /// The outcome's data.
    pub fn outcome(&self, to: &Addressee, statement: Statement, now_ms: i64) -> Outcome {
        Outcome {
            action_id: to.action_id,
            incident_id: to.incident_id,
            attempt: to.attempt,
            executor: self.executor.clone(),
            status: statement.status,
            code: statement.code,
            retryable: statement.retryable,
            at: now_ms,
            effect: statement.effect,
            error: statement.error,
            payload_sha256: to.payload_sha256.clone(),
        }
    }

    /// The outcome's event. The same outcome gives the same bytes, whenever it is said.
    pub fn event(&self, to: &Addressee, outcome: &Outcome) -> Output {
        let status = outcome.status.as_str();
        let event_id = id::outcome(outcome.action_id, outcome.attempt, status);
        let event = CloudEvent {
            recorded_time_ms: Some(outcome.at),
            correlation_id: Some(outcome.incident_id),
            causation_id: Some(outcome.action_id),
            sequence: to.sequence,
            traceparent: Some(id::traceparent(outcome.incident_id, event_id)),
            mode: Some("live".into()),
            ..CloudEvent::new(
                event_id,
                &self.tenant,
                &format!("/homeostat/{}/executor/{}", self.tenant, self.executor.id),
                &format!("{}{status}.v1", cloudevent::OUTCOME_PREFIX),
                &to.target_key,
                outcome.at,
            )
        };
        let mut output = event.output(self.topics.outcomes(), outcome);
        if let Some(signer) = &self.signer {
            signer.sign(&mut output);
        }
        output
    }
}
