//! CloudEvents 1.0 in Kafka's binary mode: attributes in `ce_` headers, data in the value.
//! Specification: `cloudevents/bindings/kafka-protocol-binding.md`, version 1.0.2.

use uuid::Uuid;

use crate::{Error, Output, Record, time};

/// Type of an anomaly's event.
pub const ANOMALY: &str = "dev.homeostat.anomaly.v1";
/// A new level of a series, accepted by a detector: on `anomalies`, said once, and nothing is decided on it.
pub const LEVEL_SHIFT: &str = "dev.homeostat.level_shift.v1";
/// Time as data on `anomalies`, for decide; not a result.
pub const PROGRESS: &str = "dev.homeostat.progress.v1";
pub const ACTION_REQUESTED: &str = "dev.homeostat.action.requested.v1";
pub const ACTION_CANCELLED: &str = "dev.homeostat.action.cancelled.v1";
/// Prefix of an executor's reports; the status follows: `dev.homeostat.outcome.succeeded.v1`.
pub const OUTCOME_PREFIX: &str = "dev.homeostat.outcome.";
pub const VERDICT: &str = "dev.homeostat.verdict.v1";
pub const DECISION: &str = "dev.homeostat.decision.v1";
/// What a decide transaction consumed, in order.
pub const JOURNAL: &str = "dev.homeostat.journal.v1";
pub const INCIDENT: &str = "dev.homeostat.incident.v1";
pub const APPROVAL_REQUESTED: &str = "dev.homeostat.approval.requested.v1";
pub const APPROVAL_GRANTED: &str = "dev.homeostat.approval.granted.v1";
pub const APPROVAL_DENIED: &str = "dev.homeostat.approval.denied.v1";
pub const APPROVAL_REFUSED: &str = "dev.homeostat.approval.refused.v1";
pub const APPROVAL_EXPIRED: &str = "dev.homeostat.approval.expired.v1";
/// Kill switch, modes, protected targets, maintenance: the key names the scope.
pub const CONTROL: &str = "dev.homeostat.control.v1";
pub const LATE: &str = "dev.homeostat.late.v1";
/// Of sinks: a row of a view, a score of a detector, what is no row of a source. Their data is what the pipeline makes of it.
pub const ROW: &str = "dev.homeostat.row.v1";
pub const SCORE: &str = "dev.homeostat.score.v1";
pub const DEAD_LETTER: &str = "dev.homeostat.dead_letter.v1";

/// One event. Attributes that are `None` have no header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudEvent {
    pub id: Uuid,
    /// `/homeostat/<tenant>/<pipeline>`: the same for every instance, never a host's name.
    pub source: String,
    pub kind: String,
    /// The target's key; also the record's key.
    pub subject: String,
    /// Event time, milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// Wall clock at which it was recorded, as data. A wall-clock field: two runs differ in it.
    pub recorded_time_ms: Option<i64>,
    /// Must not start after.
    pub expiry_time_ms: Option<i64>,
    /// Incident id.
    pub correlation_id: Option<Uuid>,
    /// The event that caused this one.
    pub causation_id: Option<Uuid>,
    /// Fencing token of the target, never below the highest seen.
    pub sequence: Option<u64>,
    pub traceparent: Option<String>,
    pub tenant: String,
    /// `live`, `dryrun` or `shadow`.
    pub mode: Option<String>,
}

impl CloudEvent {
    /// An event with the required attributes; the rest is set by field.
    pub fn new(id: Uuid, tenant: &str, source: &str, kind: &str, subject: &str, time_ms: i64) -> Self {
        Self {
            id,
            source: source.to_owned(),
            kind: kind.to_owned(),
            subject: subject.to_owned(),
            time_ms,
            recorded_time_ms: None,
            expiry_time_ms: None,
            correlation_id: None,
            causation_id: None,
            sequence: None,
            traceparent: None,
            tenant: tenant.to_owned(),
            mode: None,
        }
    }

    /// Headers in a fixed order, so that equal events give equal bytes.
    pub fn headers(&self) -> Vec<(String, Vec<u8>)> {
        let uuid = |id: &Uuid| id.to_string();
        let stamp = |ms: &i64| time::to_rfc3339(*ms);
        let attributes: [(&str, Option<String>); 16] = [
            ("ce_specversion", Some("1.0".into())),
            ("ce_id", Some(self.id.to_string())),
            ("ce_source", Some(self.source.clone())),
            ("ce_type", Some(self.kind.clone())),
            ("ce_subject", Some(self.subject.clone())),
            ("ce_partitionkey", Some(self.subject.clone())),
            ("ce_time", Some(stamp(&self.time_ms))),
            ("ce_recordedtime", self.recorded_time_ms.as_ref().map(stamp)),
            ("ce_expirytime", self.expiry_time_ms.as_ref().map(stamp)),
            ("ce_correlationid", self.correlation_id.as_ref().map(uuid)),
            ("ce_causationid", self.causation_id.as_ref().map(uuid)),
            ("ce_sequence", self.sequence.map(|sequence| format!("{sequence:020}"))),
            ("ce_traceparent", self.traceparent.clone()),
            ("ce_tenant", Some(self.tenant.clone())),
            ("ce_mode", self.mode.clone()),
            ("content-type", Some("application/json".into())),
        ];
        attributes
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.into_bytes())))
            .collect()
    }

    /// The record that carries this event with its data, keyed by the subject.
    pub fn output(&self, topic: impl Into<std::sync::Arc<str>>, data: &impl serde::Serialize) -> Output {
        Output {
            topic: topic.into(),
            partition: None,
            key: Some(self.subject.clone().into_bytes()),
            value: Some(serde_json::to_vec(data).expect("message types have string keys and finite numbers")),
            headers: self.headers(),
        }
    }

    /// The record that carries this event in structured mode: attributes and data, which is JSON, in one document.
    pub fn structured(&self, topic: std::sync::Arc<str>, key: Option<Vec<u8>>, data: &[u8]) -> Output {
        let attributes = serde_json::json!({
            "specversion": "1.0", "id": self.id.to_string(), "source": self.source, "type": self.kind,
            "subject": self.subject, "time": time::to_rfc3339(self.time_ms), "tenant": self.tenant,
            "datacontenttype": "application/json",
        });
        let mut value = attributes.to_string().into_bytes();
        value.pop();
        value.extend_from_slice(b",\"data\":");
        value.extend_from_slice(data);
        value.push(b'}');
        let content_type = b"application/cloudevents+json; charset=UTF-8".to_vec();
        Output {
            topic,
            partition: None,
            key,
            value: Some(value),
            headers: vec![("content-type".to_owned(), content_type)],
        }
    }

    /// The type of a record's event, without reading the rest.
    pub fn kind_of<'a>(record: &Record<'a>) -> Option<&'a str> {
        record
            .header("ce_type")
            .and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Reads the attributes of a record.
    pub fn read(record: &Record<'_>) -> Result<Self, Error> {
        let text = |name: &'static str| -> Result<Option<String>, Error> {
            record
                .header(name)
                .map(|value| std::str::from_utf8(value).map(str::to_owned))
                .transpose()
                .map_err(|_| Error::HeaderInvalid {
                    name,
                    reason: "not UTF-8".into(),
                })
        };
        let required = |name: &'static str| text(name)?.ok_or(Error::HeaderMissing(name));
        let version = required("ce_specversion")?;
        if version != "1.0" {
            return Err(Error::HeaderInvalid {
                name: "ce_specversion",
                reason: format!("{version:?} is not 1.0"),
            });
        }
        Ok(Self {
            id: parse_uuid("ce_id", &required("ce_id")?)?,
            source: required("ce_source")?,
            kind: required("ce_type")?,
            subject: required("ce_subject")?,
            time_ms: parse_time("ce_time", &required("ce_time")?)?,
            recorded_time_ms: text("ce_recordedtime")?
                .map(|t| parse_time("ce_recordedtime", &t))
                .transpose()?,
            expiry_time_ms: text("ce_expirytime")?
                .map(|t| parse_time("ce_expirytime", &t))
                .transpose()?,
            correlation_id: text("ce_correlationid")?
                .map(|t| parse_uuid("ce_correlationid", &t))
                .transpose()?,
            causation_id: text("ce_causationid")?
                .map(|t| parse_uuid("ce_causationid", &t))
                .transpose()?,
            sequence: text("ce_sequence")?
                .map(|t| {
                    t.parse().map_err(|_| Error::HeaderInvalid {
                        name: "ce_sequence",
                        reason: format!("{t:?} is no number"),
                    })
                })
                .transpose()?,
            traceparent: text("ce_traceparent")?,
            tenant: text("ce_tenant")?.unwrap_or_default(),
            mode: text("ce_mode")?,
        })
    }
}

fn parse_uuid(name: &'static str, text: &str) -> Result<Uuid, Error> {
    text.parse().map_err(|_| Error::HeaderInvalid {
        name,
        reason: format!("{text:?} is not a UUID"),
    })
}

fn parse_time(name: &'static str, text: &str) -> Result<i64, Error> {
    time::from_rfc3339(text).ok_or_else(|| Error::HeaderInvalid {
        name,
        reason: format!("{text:?} is not an RFC 3339 time"),
    })
}
