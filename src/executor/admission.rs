//! Whether a command may start now. Pure: the ledger's and the control topic's words and the clock are arguments.

use protocol::message::OutcomeStatus;

use crate::{command::Command, control::ControlView};

/// Why a command is not carried out, as its outcome says it.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub status: OutcomeStatus,
    pub code: u16,
    pub reason: String,
}

impl Refusal {
    pub fn rejected(code: u16, reason: impl Into<String>) -> Self {
        Self {
            status: OutcomeStatus::Rejected,
            code,
            reason: reason.into(),
        }
    }

    /// It was withdrawn before it started.
    pub fn cancelled(reason: String) -> Self {
        Self {
            status: OutcomeStatus::Cancelled,
            code: 409,
            reason: format!("withdrawn: {reason}"),
        }
    }
}

/// How old a command may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Clocks may differ by as much: a command that expires within the margin is taken for expired.
    pub skew_margin_ms: i64,
    /// Longest time since the broker appended it.
    pub age_ms_max: i64,
}

/// Everything that may change between the command's arrival and its start, in the order of the contract.
pub fn admit(
    command: &Command,
    control: &ControlView,
    highest_sequence: Option<u64>,
    limits: Limits,
    now_ms: i64,
) -> Result<(), Refusal> {
    if let Some(reason) = control.cancelled(command) {
        return Err(Refusal::cancelled(reason));
    }
    if let Some(reason) = control.refusal(command, now_ms) {
        return Err(Refusal::rejected(423, reason));
    }
    if let Some(highest) = highest_sequence.filter(|highest| *highest > command.sequence) {
        return Err(fenced(command.sequence, highest));
    }
    let expiry_ms = command.expiry_ms();
    if now_ms.saturating_add(limits.skew_margin_ms) > expiry_ms {
        return Err(expired(format!(
            "must not start after {}, and it is {}",
            protocol::time::to_rfc3339(expiry_ms),
            protocol::time::to_rfc3339(now_ms)
        )));
    }
    match command.appended_at_ms {
        Some(appended) if now_ms.saturating_sub(appended) > limits.age_ms_max => Err(expired(format!(
            "was written {} ms ago; this executor takes nothing older than {} ms",
            now_ms.saturating_sub(appended),
            limits.age_ms_max
        ))),
        _ => Ok(()),
    }
}

/// A later command was seen for the target.
pub fn fenced(sequence: u64, highest: u64) -> Refusal {
    Refusal::rejected(
        412,
        format!("sequence {sequence} is below {highest}, the highest seen for this target"),
    )
}

fn expired(reason: String) -> Refusal {
    Refusal {
        status: OutcomeStatus::Expired,
        code: 410,
        reason,
    }
}

#[cfg(test)]
mod tests;
