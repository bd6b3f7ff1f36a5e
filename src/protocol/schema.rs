//! JSON Schemas of the events, as shipped in `schemas/`: the contract for people and other languages. Messages of this
//! crate fit them, and tests hold every published record to them.

use crate::cloudevent::{self, OUTCOME_PREFIX};

macro_rules! schemas {
    ($($file:literal),* $(,)?) => {
        /// Every schema: file name and text.
        pub const ALL: &[(&str, &str)] = &[$(($file, include_str!(concat!("../../schemas/", $file)))),*];
    };
}

schemas![
    "action.cancelled.v1.json",
    "action.requested.v1.json",
    "anomaly.v1.json",
    "approval.denied.v1.json",
    "approval.expired.v1.json",
    "approval.granted.v1.json",
    "approval.refused.v1.json",
    "approval.requested.v1.json",
    "control.v1.json",
    "decision.v1.json",
    "incident.v1.json",
    "journal.v1.json",
    "late.v1.json",
    "level_shift.v1.json",
    "outcome.v1.json",
    "progress.v1.json",
    "verdict.v1.json",
];

/// The file that describes the data of an event type; `None` for a type that is not ours.
pub fn schema_for(kind: &str) -> Option<&'static str> {
    if let Some(status) = kind.strip_prefix(OUTCOME_PREFIX) {
        // One schema serves all statuses: the data names the status again.
        return status.ends_with(".v1").then_some("outcome.v1.json");
    }
    let known = [
        (cloudevent::ACTION_CANCELLED, "action.cancelled.v1.json"),
        (cloudevent::ACTION_REQUESTED, "action.requested.v1.json"),
        (cloudevent::ANOMALY, "anomaly.v1.json"),
        (cloudevent::APPROVAL_DENIED, "approval.denied.v1.json"),
        (cloudevent::APPROVAL_EXPIRED, "approval.expired.v1.json"),
        (cloudevent::APPROVAL_GRANTED, "approval.granted.v1.json"),
        (cloudevent::APPROVAL_REFUSED, "approval.refused.v1.json"),
        (cloudevent::APPROVAL_REQUESTED, "approval.requested.v1.json"),
        (cloudevent::CONTROL, "control.v1.json"),
        (cloudevent::DECISION, "decision.v1.json"),
        (cloudevent::INCIDENT, "incident.v1.json"),
        (cloudevent::JOURNAL, "journal.v1.json"),
        (cloudevent::LATE, "late.v1.json"),
        (cloudevent::LEVEL_SHIFT, "level_shift.v1.json"),
        (cloudevent::PROGRESS, "progress.v1.json"),
        (cloudevent::VERDICT, "verdict.v1.json"),
    ];
    known.iter().find(|(name, _)| *name == kind).map(|(_, file)| *file)
}

/// The text of a schema by its file name.
pub fn text(file: &str) -> Option<&'static str> {
    ALL.iter().find(|(name, _)| *name == file).map(|(_, text)| *text)
}

#[cfg(test)]
mod tests;
