//! What reaches a fleet, and what it says.

use protocol::{
    CloudEvent, Output, Topics,
    log::Note,
    message::{
        Action, ActionCancelled, Anomaly, ApprovalRecord, Control, Decision, Incident, Outcome, TimeProgress,
        VerdictRecord,
    },
};

use crate::Standing;

/// One record for the fleet, with the broker's timestamp of its append.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    pub broker_ms: i64,
    pub message: Message<'a>,
}

/// What a record says.
#[derive(Clone, Copy, Debug)]
pub enum Message<'a> {
    /// From `anomalies`.
    Anomaly { event: &'a CloudEvent, data: &'a Anomaly },
    /// From `anomalies`.
    Progress(&'a TimeProgress),
    /// From `outcomes`; the fleet's own verdicts there are not fed back.
    Outcome { event: &'a CloudEvent, data: &'a Outcome },
    /// From `approvals`: granted and denied matter, the fleet's own requests are passed over.
    Approval {
        event: &'a CloudEvent,
        data: &'a ApprovalRecord,
        standing: Standing<'a>,
    },
    /// From `control`; `None` withdraws.
    Control { scope: &'a str, data: Option<&'a Control> },
    /// A record that says nothing to the fleet but that time has passed.
    Other,
}

/// Something to publish in the transaction of the inputs. Few exist at a time, and not for long.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Decision {
        event: CloudEvent,
        data: Decision,
    },
    /// A command, for the policy's own topic.
    Action {
        topic: String,
        event: CloudEvent,
        data: Action,
    },
    Cancelled {
        topic: String,
        event: CloudEvent,
        data: ActionCancelled,
    },
    Verdict {
        event: CloudEvent,
        data: VerdictRecord,
    },
    Incident {
        event: CloudEvent,
        data: Incident,
    },
    /// Requested, expired or refused; the event's type tells.
    Approval {
        event: CloudEvent,
        data: ApprovalRecord,
    },
    /// For every partition of `panes`.
    Note(Note),
    /// The input cannot be used: a dead letter, with this reason.
    Unusable(String),
}

impl Effect {
    /// The record that carries it; `None` for notes and unusable input, which the stage routes itself.
    pub fn output(&self, topics: &Topics) -> Option<Output> {
        Some(match self {
            Self::Decision { event, data } => event.output(topics.decisions(), data),
            Self::Action { topic, event, data } => event.output(topic.as_str(), data),
            Self::Cancelled { topic, event, data } => event.output(topic.as_str(), data),
            Self::Verdict { event, data } => event.output(topics.outcomes(), data),
            Self::Incident { event, data } => event.output(topics.incidents(), data),
            Self::Approval { event, data } => event.output(topics.approvals(), data),
            Self::Note(_) | Self::Unusable(_) => return None,
        })
    }
}
