//! Identifiers are functions of what they name, so that replaying the input mints the same ones (UUIDv5, RFC 9562).

use uuid::Uuid;

/// Namespace of every id minted here.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f0d_8b1e_52c4_5f7a_9a3b_1c64_7e20_d9f1);

fn mint(kind: &str, parts: &[&str]) -> Uuid {
    let mut name = String::from(kind);
    for part in parts {
        // Length before content: no two lists of parts run together.
        name.push_str(&format!("\u{1f}{}:{part}", part.len()));
    }
    Uuid::new_v5(&NAMESPACE, name.as_bytes())
}

/// One anomaly: what was watched, by which detector, in which window.
pub fn anomaly(pipeline: &str, detector: &str, target: &str, window_start_ms: i64, window_end_ms: i64) -> Uuid {
    of_window("anomaly", pipeline, detector, target, window_start_ms, window_end_ms)
}

/// The end of an alarm, which may name the very window that an alarm named: a sign of life may come at the moment at which
/// silence was spoken of.
pub fn clearing(pipeline: &str, detector: &str, target: &str, window_start_ms: i64, window_end_ms: i64) -> Uuid {
    of_window("clearing", pipeline, detector, target, window_start_ms, window_end_ms)
}

/// A new level of one feature, which the detector accepted in this window.
pub fn level_shift(
    pipeline: &str,
    detector: &str,
    target: &str,
    feature: &str,
    window_start_ms: i64,
    window_end_ms: i64,
) -> Uuid {
    let (start, end) = (window_start_ms.to_string(), window_end_ms.to_string());
    mint("level_shift", &[pipeline, detector, target, feature, &start, &end])
}

fn of_window(kind: &str, pipeline: &str, detector: &str, target: &str, start_ms: i64, end_ms: i64) -> Uuid {
    let (start, end) = (start_ms.to_string(), end_ms.to_string());
    mint(kind, &[pipeline, detector, target, &start, &end])
}

/// One incident: a target, the policy that opened it, and the event time at which its episode started.
pub fn incident(tenant: &str, target: &str, policy: &str, episode_start_ms: i64) -> Uuid {
    mint("incident", &[tenant, target, policy, &episode_start_ms.to_string()])
}

/// One command. A crash, an abort or a full replay cannot mint a second one.
pub fn action(tenant: &str, target: &str, incident: Uuid, ladder_step: u32, attempt: u32) -> Uuid {
    mint(
        "action",
        &[
            tenant,
            target,
            &incident.to_string(),
            &ladder_step.to_string(),
            &attempt.to_string(),
        ],
    )
}

/// One report of an executor on one attempt.
pub fn outcome(action: Uuid, attempt: u32, status: &str) -> Uuid {
    mint("outcome", &[&action.to_string(), &attempt.to_string(), status])
}

/// Anything else that is said once per subject: a decision, a verdict, an approval request.
pub fn derived(kind: &str, parts: &[&str]) -> Uuid {
    mint(kind, parts)
}

/// The W3C trace of an incident: its id is the trace id, so every process that knows the incident knows the trace.
pub fn trace_id(incident: Uuid) -> [u8; 16] {
    incident.into_bytes()
}

/// The span of one message within its incident's trace.
pub fn span_id(message: Uuid) -> [u8; 8] {
    let bytes = message.into_bytes();
    std::array::from_fn(|i| bytes[i] ^ bytes[i + 8])
}

/// W3C `traceparent`, sampled.
pub fn traceparent(incident: Uuid, message: Uuid) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    format!("00-{}-{}-01", hex(&trace_id(incident)), hex(&span_id(message)))
}
