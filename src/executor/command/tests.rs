use std::collections::BTreeMap;

use proptest::prelude::*;
use protocol::{
    Batch, Target, TimestampKind, Topics, id,
    message::{ActionBody, ActionTarget, Approval, Explain, Ladder, Timing},
};
use serde_json::json;

use super::*;

pub(crate) const NOW_MS: i64 = 1_767_323_045_000;

/// A command for `service`, the `number`th of its kind, that may start for half a minute after [`NOW_MS`].
pub(crate) fn action(service: &str, number: u32) -> Action {
    let target = Target::service("homeostat", service);
    let incident_id = id::incident("homeostat", &target.key(), "policy", 1);
    Action {
        action_id: id::action("homeostat", &target.key(), incident_id, 1, number),
        incident_id,
        decision_id: id::derived("decision", &[service]),
        attempt: number,
        ladder: Ladder {
            step: 1,
            of: 1,
            policy: "restart_slow".into(),
        },
        action: ActionBody {
            kind: "restart".into(),
            version: 1,
            params: serde_json::Map::from_iter([("reason".to_owned(), json!("p99 anomaly"))]),
        },
        target: ActionTarget {
            key: target.key(),
            target,
        },
        timing: Timing {
            decided_at: NOW_MS,
            start_deadline: NOW_MS + 30_000,
            exec_timeout_ms: 10_000,
            verify_after_ms: 30_000,
            verify_for_ms: 60_000,
        },
        mode: "live".into(),
        approval: Approval {
            required: false,
            state: "not_required".into(),
            id: None,
        },
        explain: Explain {
            policy: "restart_slow".into(),
            detector: "slow".into(),
            pipeline: "shop".into(),
            score: 1.5,
            evidence: vec![],
            gates: vec![],
        },
    }
}

pub(crate) fn event(action: &Action, sequence: u64) -> CloudEvent {
    let key = &action.target.key;
    CloudEvent {
        expiry_time_ms: Some(action.timing.start_deadline),
        correlation_id: Some(action.incident_id),
        causation_id: Some(action.decision_id),
        sequence: Some(sequence),
        traceparent: Some(id::traceparent(action.incident_id, action.action_id)),
        mode: Some(action.mode.clone()),
        ..CloudEvent::new(
            action.action_id,
            &action.target.target.tenant,
            "/homeostat/homeostat/shop",
            ACTION_REQUESTED,
            key,
            NOW_MS,
        )
    }
}

pub(crate) fn command(action: Action, sequence: u64) -> Command {
    read_output(&event(&action, sequence).output(Topics::new("homeostat.").actions(), &action)).unwrap()
}

pub(crate) fn read_output(output: &protocol::Output) -> Result<Command, Malformed> {
    let mut batch = Batch::default();
    let partition = batch.partition(&output.topic, 0);
    let headers = output.headers.iter().map(|(name, value)| (&**name, &**value));
    batch.push(
        partition,
        7,
        (NOW_MS, TimestampKind::LogAppend),
        output.key.as_deref(),
        output.value.as_deref(),
        headers,
    );
    Reader::default().read(&batch.get(0))
}

fn output() -> protocol::Output {
    let action = action("cart", 1);
    event(&action, 3).output("homeostat.actions", &action)
}

#[test]
fn reads_what_the_decider_writes() {
    let command = read_output(&output()).unwrap();
    assert_eq!(command.service(), "cart");
    assert_eq!(command.sequence, 3);
    assert_eq!(command.appended_at_ms, Some(NOW_MS));
    assert_eq!(command.expiry_ms(), NOW_MS + 30_000);
    assert_eq!(command.payload_sha256, sha256(&command.data));
}

#[test]
fn the_earlier_of_both_expiries_counts() {
    let mut command = command(action("cart", 1), 1);
    command.event.expiry_time_ms = Some(5);
    assert_eq!(command.expiry_ms(), 5);
    command.event.expiry_time_ms = None;
    assert_eq!(command.expiry_ms(), NOW_MS + 30_000);
}

#[test]
fn envelope_and_data_must_agree() {
    let other = Target::service("homeostat", "other").key();
    type Change = Box<dyn Fn(&mut protocol::Output)>;
    let cases: Vec<(&str, Change)> = vec![
        ("record key", Box::new(|o| o.key = Some(b"x".to_vec()))),
        ("record key", Box::new(|o| o.key = None)),
        ("ce_subject", Box::new(move |o| set(o, "ce_subject", &other))),
        (
            "ce_id",
            Box::new(|o| set(o, "ce_id", "6f0d8b1e-52c4-5f7a-9a3b-1c647e20d9f1")),
        ),
        ("ce_tenant", Box::new(|o| set(o, "ce_tenant", "someone"))),
        (
            "ce_correlationid",
            Box::new(|o| set(o, "ce_correlationid", "6f0d8b1e-52c4-5f7a-9a3b-1c647e20d9f1")),
        ),
        ("ce_mode", Box::new(|o| set(o, "ce_mode", "shadow"))),
        (
            "ce_sequence",
            Box::new(|o| o.headers.retain(|(name, _)| name != "ce_sequence")),
        ),
        ("ce_type", Box::new(|o| set(o, "ce_type", "dev.homeostat.verdict.v1"))),
        ("not JSON", Box::new(|o| o.value = Some(b"{".to_vec()))),
        ("schema", Box::new(|o| o.value = Some(b"{}".to_vec()))),
        ("ce_id", Box::new(|o| o.headers.retain(|(name, _)| name != "ce_id"))),
        ("not JSON", Box::new(|o| o.value = None)),
    ];
    for (index, (expected, change)) in cases.into_iter().enumerate() {
        let mut output = output();
        change(&mut output);
        let reason = read_output(&output).unwrap_err().reason;
        assert!(reason.contains(expected), "case {index}: {reason}");
    }
}

#[test]
fn an_empty_target_is_no_target() {
    let mut action = action("cart", 1);
    action.target.target.name = String::new();
    action.target.key = action.target.target.key();
    let malformed = read_output(&event(&action, 1).output("homeostat.actions", &action)).unwrap_err();
    assert!(malformed.reason.contains("/target/name"), "{}", malformed.reason);
}

#[test]
fn a_bad_command_still_says_whom_to_answer() {
    let mut output = output();
    output.value = Some(br#"{"attempt": 4}"#.to_vec());
    let to = read_output(&output).unwrap_err().addressee.unwrap();
    assert_eq!(to.action_id, action("cart", 1).action_id);
    assert_eq!((to.attempt, to.sequence), (4, Some(3)));
}

fn set(output: &mut protocol::Output, name: &str, value: &str) {
    for (header, old) in &mut output.headers {
        if header == name {
            *old = value.as_bytes().to_vec();
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(
        value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200)),
        headers in proptest::collection::btree_map("ce_[a-z]{1,12}", proptest::collection::vec(any::<u8>(), 0..40), 0..6),
        cut in 0usize..2000,
    ) {
        let mut arbitrary = output();
        arbitrary.value = value;
        arbitrary.headers = BTreeMap::into_iter(headers).collect();
        let _ = read_output(&arbitrary);

        let mut truncated = output();
        truncated.value.as_mut().unwrap().truncate(cut);
        if truncated.value.as_ref().unwrap().len() < output().value.unwrap().len() {
            prop_assert!(read_output(&truncated).is_err());
        }
    }
}
