//! A command as it arrives: envelope and data, checked against the schema and against each other.
//!
//! Owns what makes a record a command at all. Whether it may be carried out is for [`crate::admission`]. Fails with
//! [`Malformed`], which still says whom to tell when that much could be read.

use std::time::Duration;

use protocol::{
    CloudEvent, Record, TimestampKind,
    cloudevent::ACTION_REQUESTED,
    message::{self, Action},
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

const SCHEMA: &str = include_str!("../../schemas/action.requested.v1.json");

/// A command whose envelope and data agree.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    pub action: Action,
    pub event: CloudEvent,
    /// Fencing token of the target.
    pub sequence: u64,
    /// SHA-256 of the data as it was received.
    pub payload_sha256: String,
    /// The data as it was received.
    pub data: Vec<u8>,
    /// When the broker appended it; `None` where the broker does not say.
    pub appended_at_ms: Option<i64>,
}

impl Command {
    /// Must not start after.
    pub fn expiry_ms(&self) -> i64 {
        let deadline = self.action.timing.start_deadline;
        self.event
            .expiry_time_ms
            .map_or(deadline, |expiry| expiry.min(deadline))
    }

    /// How long it may still be started: asking again is a start, too.
    pub fn may_start_for(&self) -> Duration {
        let now_ms = crate::clock::now_ms();
        Duration::from_millis(u64::try_from(self.expiry_ms().saturating_sub(now_ms)).unwrap_or(0))
    }

    pub fn exec_timeout(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.action.timing.exec_timeout_ms).unwrap_or(0))
    }

    pub fn id(&self) -> Uuid {
        self.action.action_id
    }

    /// The service that the action is for.
    pub fn service(&self) -> &str {
        &self.action.target.target.name
    }

    pub fn kind(&self) -> &str {
        &self.action.action.kind
    }
}

/// Bytes that are no command.
#[derive(Clone, Debug, PartialEq)]
pub struct Malformed {
    pub reason: String,
    /// Who waits for an answer, when the envelope says so.
    pub addressee: Option<Box<Addressee>>,
}

/// What an outcome needs of the command it answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Addressee {
    pub action_id: Uuid,
    pub incident_id: Uuid,
    pub attempt: u32,
    pub target_key: String,
    pub sequence: Option<u64>,
    pub payload_sha256: String,
}

impl From<&Command> for Addressee {
    fn from(command: &Command) -> Self {
        Self {
            action_id: command.action.action_id,
            incident_id: command.action.incident_id,
            attempt: command.action.attempt,
            target_key: command.action.target.key.clone(),
            sequence: Some(command.sequence),
            payload_sha256: command.payload_sha256.clone(),
        }
    }
}

/// Reads records against the command's JSON Schema.
pub struct Reader {
    schema: jsonschema::Validator,
}

impl Default for Reader {
    fn default() -> Self {
        let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is part of the program and is JSON");
        Self {
            schema: jsonschema::validator_for(&schema).expect("the schema is part of the program and is valid"),
        }
    }
}

impl Reader {
    pub fn read(&self, record: &Record<'_>) -> Result<Command, Malformed> {
        let data = record.value.unwrap_or_default();
        let payload_sha256 = sha256(data);
        let event = CloudEvent::read(record).map_err(|error| Malformed {
            reason: error.to_string(),
            addressee: None,
        })?;
        let malformed = |reason: String| Malformed {
            reason,
            addressee: addressee(&event, data, &payload_sha256),
        };
        if event.kind != ACTION_REQUESTED {
            return Err(malformed(format!(
                "ce_type is {:?}, not {ACTION_REQUESTED:?}",
                event.kind
            )));
        }
        let value: Value =
            serde_json::from_slice(data).map_err(|error| malformed(format!("the data is not JSON: {error}")))?;
        if let Some(error) = self.schema.iter_errors(&value).next() {
            return Err(malformed(format!(
                "the data breaks its schema at {:?}: {error}",
                error.instance_path().as_str()
            )));
        }
        let action: Action = message::read("action", data).map_err(|error| malformed(describe(&error)))?;
        let sequence = event
            .sequence
            .ok_or_else(|| malformed("ce_sequence, the fencing token, is missing".into()))?;
        disagreement(record, &event, &action).map_or(Ok(()), |reason| Err(malformed(reason)))?;
        Ok(Command {
            action,
            sequence,
            payload_sha256,
            data: data.to_vec(),
            appended_at_ms: (record.timestamp_kind == TimestampKind::LogAppend).then_some(record.timestamp_ms),
            event,
        })
    }
}

/// Where record, envelope and data say different things. Any of them would let a command be routed, ordered or fenced
/// as something else than what it does.
fn disagreement(record: &Record<'_>, event: &CloudEvent, action: &Action) -> Option<String> {
    let key = &action.target.key;
    let differs = |what: &str, left: &dyn std::fmt::Debug, right: &dyn std::fmt::Debug| {
        Some(format!("{what}: {left:?} is not {right:?}"))
    };
    if record.key != Some(key.as_bytes()) {
        let record_key = String::from_utf8_lossy(record.key.unwrap_or_default());
        return differs("record key and target.key", &record_key, key);
    }
    if event.subject != *key {
        return differs("ce_subject and target.key", &event.subject, key);
    }
    if action.target.target.key() != *key {
        return differs("the target's parts and target.key", &action.target.target.key(), key);
    }
    if event.id != action.action_id {
        return differs("ce_id and action_id", &event.id, &action.action_id);
    }
    if event.tenant != action.target.target.tenant {
        return differs(
            "ce_tenant and target.tenant",
            &event.tenant,
            &action.target.target.tenant,
        );
    }
    if event.correlation_id.is_some_and(|id| id != action.incident_id) {
        return differs(
            "ce_correlationid and incident_id",
            &event.correlation_id,
            &action.incident_id,
        );
    }
    match &event.mode {
        Some(mode) if *mode != action.mode => differs("ce_mode and mode", mode, &action.mode),
        _ => None,
    }
}

/// The envelope alone names action, incident and target; the attempt is in the data, if that can be read so far.
fn addressee(event: &CloudEvent, data: &[u8], payload_sha256: &str) -> Option<Box<Addressee>> {
    let attempt = serde_json::from_slice::<Value>(data)
        .ok()
        .and_then(|value| value.get("attempt")?.as_u64())
        .and_then(|attempt| u32::try_from(attempt).ok())
        .unwrap_or(1);
    Some(Box::new(Addressee {
        action_id: event.id,
        incident_id: event.correlation_id?,
        attempt,
        target_key: event.subject.clone(),
        sequence: event.sequence,
        payload_sha256: payload_sha256.to_owned(),
    }))
}

/// An error with its causes, on one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
pub(crate) mod tests;
