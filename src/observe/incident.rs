//! Spans of incidents, read off committed messages.
//!
//! One trace per incident: its id is the incident's, a span's id is made from its message's ([`protocol::id`]), and its
//! parent is the message that caused it. Whoever publishes a message exports its span, so nobody has to hand anything
//! on but the `traceparent` that travels with the message.

use std::borrow::Cow;

use protocol::{
    Output, cloudevent, id,
    message::{Action, ApprovalRecord, Decision, VerdictRecord},
    time,
};
use uuid::Uuid;

/// One span, as it is exported.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    pub parent: Option<[u8; 8]>,
    pub name: Cow<'static, str>,
    pub kind: Kind,
    pub start_ms: i64,
    pub end_ms: i64,
    pub attributes: Vec<(&'static str, String)>,
    /// What went wrong, if something did.
    pub error: Option<String>,
}

/// Which end of a message the span stands at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Internal,
    Producer,
    Consumer,
}

/// The spans that a committed output of decide stands for. The anomaly that a decision rests on comes with it: only
/// there are anomaly and incident known together.
pub fn spans_of(output: &Output) -> Vec<Span> {
    let header = |name: &str| {
        let found = output.headers.iter().find(|(header, _)| header == name)?;
        std::str::from_utf8(&found.1).ok()
    };
    let uuid = |name: &str| header(name)?.parse::<Uuid>().ok();
    let (Some(kind), Some(event_id), Some(incident)) = (header("ce_type"), uuid("ce_id"), uuid("ce_correlationid"))
    else {
        return Vec::new();
    };
    let time_ms = header("ce_time").and_then(time::from_rfc3339).unwrap_or_default();
    let recorded_ms = header("ce_recordedtime")
        .and_then(time::from_rfc3339)
        .unwrap_or(time_ms);
    let span = Span {
        trace_id: id::trace_id(incident),
        span_id: id::span_id(event_id),
        parent: uuid("ce_causationid").map(id::span_id),
        name: Cow::Borrowed(""),
        kind: Kind::Internal,
        start_ms: recorded_ms,
        end_ms: recorded_ms,
        attributes: vec![
            ("homeostat.incident_id", incident.to_string()),
            ("homeostat.target", header("ce_subject").unwrap_or_default().to_owned()),
        ],
        error: None,
    };
    let value = output.value.as_deref().unwrap_or_default();
    match kind {
        cloudevent::DECISION => {
            serde_json::from_slice(value).map_or_else(|_| Vec::new(), |data| decision(span, &data, time_ms))
        }
        cloudevent::ACTION_REQUESTED => serde_json::from_slice(value)
            .ok()
            .map(|data| action(span, &data))
            .into_iter()
            .collect(),
        cloudevent::VERDICT => serde_json::from_slice(value)
            .ok()
            .map(|data| verdict(span, &data))
            .into_iter()
            .collect(),
        cloudevent::ACTION_CANCELLED => vec![named(span, "action cancelled".into())],
        cloudevent::APPROVAL_REQUESTED | cloudevent::APPROVAL_EXPIRED => serde_json::from_slice(value)
            .ok()
            .map(|data| approval(span, kind, &data))
            .into_iter()
            .collect(),
        _ => Vec::new(),
    }
}

fn named(span: Span, name: Cow<'static, str>) -> Span {
    Span { name, ..span }
}

fn decision(mut span: Span, data: &Decision, window_end_ms: i64) -> Vec<Span> {
    let verdict = word(&data.verdict);
    span.attributes.extend([
        ("homeostat.policy", data.policy.clone()),
        ("homeostat.verdict", verdict.clone()),
        ("homeostat.mode", word(&data.mode)),
        ("homeostat.refused_by", data.refused_by.clone().unwrap_or_default()),
    ]);
    span.attributes.retain(|(_, value)| !value.is_empty());
    span.start_ms = data.decided_at;
    span.end_ms = span.end_ms.max(data.decided_at);
    let cause = span.parent;
    let anomaly = cause.map(|span_id| Span {
        span_id,
        parent: None,
        name: format!("anomaly {}", data.detector).into(),
        // From the end of the window to the decision: how long detection took.
        start_ms: window_end_ms.min(data.decided_at),
        end_ms: data.decided_at,
        attributes: vec![
            ("homeostat.incident_id", span.attributes[0].1.clone()),
            ("homeostat.target", data.target_key.clone()),
            ("homeostat.pipeline", data.pipeline.clone()),
            ("homeostat.detector", data.detector.clone()),
            ("homeostat.score", data.score.to_string()),
        ],
        ..span.clone()
    });
    let decision = named(span, format!("decision {verdict}").into());
    anomaly.into_iter().chain([decision]).collect()
}

fn action(mut span: Span, data: &Action) -> Span {
    span.kind = Kind::Producer;
    span.start_ms = data.timing.decided_at;
    span.end_ms = span.end_ms.max(data.timing.decided_at);
    span.attributes
        .push(("homeostat.action_id", data.action_id.to_string()));
    named(span, format!("action {}", data.action.kind).into())
}

fn verdict(mut span: Span, data: &VerdictRecord) -> Span {
    span.start_ms = data.from;
    span.end_ms = data.to.max(data.from);
    span.attributes
        .push(("homeostat.action_id", data.action_id.to_string()));
    span.attributes.push(("homeostat.reason", data.reason.clone()));
    named(span, format!("verdict {}", word(&data.verdict)).into())
}

fn approval(mut span: Span, kind: &str, data: &ApprovalRecord) -> Span {
    span.start_ms = data.requested_at;
    span.end_ms = span.end_ms.max(data.requested_at);
    span.attributes
        .push(("homeostat.action_id", data.action_id.to_string()));
    let what = if kind == cloudevent::APPROVAL_REQUESTED {
        "approval requested"
    } else {
        "approval expired"
    };
    named(span, what.into())
}

/// The word by which a message names the variant.
fn word(variant: &impl serde::Serialize) -> String {
    match serde_json::to_value(variant) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

/// Reads the trace and the span from a W3C `traceparent`.
pub fn parse_traceparent(text: &str) -> Option<([u8; 16], [u8; 8])> {
    let mut parts = text.split('-');
    let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next()?;
    if version.len() != 2 || version == "ff" {
        return None;
    }
    let (trace, span) = (bytes(trace)?, bytes(span)?);
    (trace != [0; 16] && span != [0; 8]).then_some((trace, span))
}

fn bytes<const N: usize>(hex: &str) -> Option<[u8; N]> {
    if hex.len() != N * 2 || !hex.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
pub(crate) mod tests;
