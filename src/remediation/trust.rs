//! Whose word counts: people who may approve, and executors whose reports are believed, each by the key that they sign with.
//!
//! Without approvers whoever may write to `approvals` is one, and without executors whoever may write to `outcomes`: then the broker's
//! access lists are all there is. Where one is listed, everybody else's word is refused. Reads no file and no clock.

use protocol::{
    Record, TimestampKind,
    message::{ApprovalRecord, Outcome},
    signature::{self, TrustedKey},
};

/// A person who may answer requests for approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approver {
    pub name: String,
    /// What `approval_roles` may ask for.
    pub roles: Vec<String>,
}

/// What is known of who gave an answer.
#[derive(Clone, Copy, Debug)]
pub enum Standing<'a> {
    /// No approvers are listed.
    Anybody,
    /// The answer is signed by this approver's key.
    Approver(&'a Approver),
    /// It is nobody's who may answer, for this reason.
    Refused(&'a str),
}

/// The keys that count, and whose they are. Two keys of one name are one approver who changes keys.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    approvers: Vec<Approver>,
    approver_keys: Vec<TrustedKey>,
    executors: Vec<String>,
    executor_keys: Vec<TrustedKey>,
}

impl Trust {
    pub fn add_approver(&mut self, approver: Approver, key: TrustedKey) {
        self.approvers.push(approver);
        self.approver_keys.push(key);
    }

    /// `id` is the one in the executor's own configuration.
    pub fn add_executor(&mut self, id: String, key: TrustedKey) {
        self.executors.push(id);
        self.executor_keys.push(key);
    }

    /// Whether answers have to be signed.
    pub fn knows_approvers(&self) -> bool {
        !self.approvers.is_empty()
    }

    pub fn knows_executors(&self) -> bool {
        !self.executors.is_empty()
    }

    /// Who answered; `None` when nobody is listed. `Err` says why the answer is nobody's.
    pub(crate) fn approver(
        &self,
        record: &Record<'_>,
        data: &ApprovalRecord,
        now_ms: i64,
    ) -> Result<Option<&Approver>, String> {
        let Some(at) = signed_by(&self.approver_keys, record, now_ms)? else {
            return Ok(None);
        };
        let (approver, by) = (&self.approvers[at], data.by.as_deref().unwrap_or_default());
        match approver.name == by {
            true => Ok(Some(approver)),
            false => Err(format!("signed by {}, and says that it is by {by:?}", approver.name)),
        }
    }

    /// Whether an executor may say this.
    pub(crate) fn executor(&self, record: &Record<'_>, data: &Outcome, now_ms: i64) -> Result<(), String> {
        let Some(at) = signed_by(&self.executor_keys, record, now_ms)? else {
            return Ok(());
        };
        let (executor, by) = (&self.executors[at], &data.executor.id);
        match executor == by {
            true => Ok(()),
            false => Err(format!(
                "an outcome of executor {by:?}, signed by executor {executor:?}"
            )),
        }
    }
}

/// Which of the keys signed; `None` when there are none. A key's time is compared with the broker's time of the append.
fn signed_by(keys: &[TrustedKey], record: &Record<'_>, now_ms: i64) -> Result<Option<usize>, String> {
    if keys.is_empty() {
        return Ok(None);
    }
    let at_ms = match record.timestamp_kind {
        TimestampKind::LogAppend => record.timestamp_ms,
        TimestampKind::Create => now_ms,
    };
    let id = signature::verify(record, keys, at_ms).map_err(|reason| reason.to_string())?;
    Ok(keys.iter().position(|key| key.id() == id))
}

#[cfg(test)]
mod tests;
