//! What goes out comes back: events, keys, times, batches.

use proptest::prelude::*;
use uuid::Uuid;

use crate::{Batch, CloudEvent, Error, Record, Target, TimestampKind, Topics, id, time};

fn text() -> impl Strategy<Value = String> {
    ".{0,24}"
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

prop_compose! {
    fn event()(
        ids in (uuid(), prop::option::of(uuid()), prop::option::of(uuid())),
        texts in (text(), text(), text(), text()),
        optional in (prop::option::of(text()), prop::option::of(text())),
        times in (0..4_000_000_000_000i64, prop::option::of(0..4_000_000_000_000i64), prop::option::of(0..4_000_000_000_000i64)),
        sequence in prop::option::of(any::<u64>()),
    ) -> CloudEvent {
        CloudEvent {
            id: ids.0, source: texts.0, kind: texts.1, subject: texts.2, time_ms: times.0, recorded_time_ms: times.1,
            expiry_time_ms: times.2, correlation_id: ids.1, causation_id: ids.2, sequence, traceparent: optional.0,
            tenant: texts.3, mode: optional.1,
        }
    }
}

fn in_batch<T>(event: &CloudEvent, read: impl FnOnce(Record<'_>) -> T) -> T {
    let output = event.output("topic", &serde_json::json!({}));
    let mut batch = Batch::default();
    let partition = batch.partition("topic", 3);
    let headers = output
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_slice()));
    let (key, value) = (output.key.as_deref(), output.value.as_deref());
    batch.push(partition, 7, (1, TimestampKind::LogAppend), key, value, headers);
    read(batch.get(0))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn events_come_back(event in event()) {
        let read = in_batch(&event, |record| {
            assert_eq!(record.key, Some(event.subject.as_bytes()));
            CloudEvent::read(&record)
        });
        prop_assert_eq!(read.unwrap(), event);
    }

    #[test]
    fn equal_events_give_equal_bytes(event in event()) {
        prop_assert_eq!(event.headers(), event.clone().headers());
    }

    #[test]
    fn target_keys_come_back(parts in prop::array::uniform6("[a-z|%0-9C]{0,8}")) {
        let [tenant, environment, namespace, name, scope, id] = parts;
        let target = Target { tenant, environment, namespace, name, scope, id };
        prop_assert_eq!(Target::from_key(&target.key()).unwrap(), target);
    }

    #[test]
    fn no_key_panics(key in text()) {
        let _ = Target::from_key(&key);
    }

    #[test]
    fn times_come_back(ms in -60_000_000_000_000i64..253_402_300_799_000) {
        prop_assert_eq!(time::from_rfc3339(&time::to_rfc3339(ms)), Some(ms));
    }

    #[test]
    fn no_time_panics(ms in any::<i64>(), words in text()) {
        prop_assert!(time::to_rfc3339(ms).ends_with('Z'));
        let _ = time::from_rfc3339(&words);
    }

    #[test]
    fn ids_tell_their_parts_apart(parts in prop::array::uniform3("[a-c:0-9]{0,4}"), others in prop::array::uniform3("[a-c:0-9]{0,4}")) {
        let mint = |parts: &[String; 3]| id::derived("test", &parts.each_ref().map(String::as_str));
        prop_assert_eq!(parts == others, mint(&parts) == mint(&others));
    }

    /// Whether they are copied or lie in one of two adopted blocks, and again in the memory of the round before.
    #[test]
    fn batches_hold_what_was_pushed(
        rows in prop::collection::vec(
            (0..3usize, 0..3i32, prop::option::of(prop::collection::vec(any::<u8>(), 0..9)), prop::option::of(text()), prop::collection::vec((text(), text()), 0..3)),
            0..12,
        ),
        rounds in 1..3,
    ) {
        let mut batch = Batch::default();
        for _ in 0..rounds {
            prop_assert!(batch.reclaim().len() <= 2 && batch.is_empty() && batch.size() == 0);
            let mut blocks = [(batch.open_block(), b"first".to_vec()), (batch.open_block(), Vec::new())];
            let mut size = 0;
            for (offset, (place, partition, key, value, headers)) in rows.iter().enumerate() {
                let at = batch.partition("topic", *partition);
                let (offset, time) = (offset as i64, (5, TimestampKind::Create));
                let (key, value) = (key.as_deref(), value.as_ref().map(String::as_bytes));
                size += key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
                size += headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
                let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
                match blocks.get_mut(*place) {
                    None => batch.push(at, offset, time, key, value, headers),
                    Some((block, bytes)) => {
                        let mut lay = |part: &[u8]| {
                            bytes.extend(part);
                            bytes.len() - part.len()..bytes.len()
                        };
                        batch.push_adopted(at, offset, time, *block, key.map(&mut lay), value.map(lay), headers);
                    }
                }
            }
            for (block, bytes) in blocks {
                batch.adopt(block, bytes);
            }
            prop_assert_eq!(batch.len(), rows.len());
            prop_assert_eq!(batch.size(), size);
        }
        for (index, (record, (_, partition, key, value, headers))) in batch.iter().zip(&rows).enumerate() {
            prop_assert_eq!(record.offset, index as i64);
            prop_assert_eq!(record.partition.partition, *partition);
            prop_assert_eq!(record.key, key.as_deref());
            prop_assert_eq!(record.value, value.as_ref().map(String::as_bytes));
            let read: Vec<_> = record.headers().map(|(name, value)| (name.to_owned(), String::from_utf8(value.to_vec()).unwrap())).collect();
            prop_assert_eq!(&read, headers);
        }
        let covered: usize = batch.runs().map(|(_, range)| range.len()).sum();
        prop_assert_eq!(covered, rows.len());
        let adopted = batch.reclaim();
        prop_assert!(adopted.len() == 2 && adopted[0].starts_with(b"first"));
    }
}

/// A record that claims to be an event and is not is refused by the header at fault.
#[test]
fn broken_events_name_the_header() {
    let event = CloudEvent::new(Uuid::nil(), "t", "/s", "k", "subject", 0);
    let cases: [(&str, Option<&[u8]>, &str); 5] = [
        ("ce_id", None, "header ce_id is missing"),
        ("ce_id", Some(b"seven"), "header ce_id is not valid"),
        ("ce_specversion", Some(b"0.3"), "header ce_specversion is not valid"),
        ("ce_time", Some(b"noon"), "header ce_time is not valid"),
        ("ce_subject", Some(&[0xff]), "header ce_subject is not valid"),
    ];
    for (name, value, expected) in cases {
        let mut headers = event.headers();
        headers.retain(|(header, _)| header != name);
        headers.extend(value.map(|value| (name.to_owned(), value.to_vec())));
        let mut batch = Batch::default();
        let partition = batch.partition("topic", 0);
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        batch.push(partition, 0, (0, TimestampKind::Create), None, None, headers);
        let error: Error = CloudEvent::read(&batch.get(0)).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}

/// A person agrees to the deed, not to when it happens: timing, approval and explanation may still change, nothing else.
#[test]
fn a_proposal_is_the_deed() {
    let text = serde_json::json!({
        "action_id": Uuid::nil(), "incident_id": Uuid::nil(), "decision_id": Uuid::nil(), "attempt": 1,
        "ladder": {"step": 1, "of": 1, "policy": "p"}, "action": {"type": "restart", "version": 1, "params": {"grace_s": 20}},
        "target": {"key": "t|||cart|service|", "tenant": "t", "name": "cart", "scope": "service"},
        "timing": {"decided_at": time::to_rfc3339(0), "start_deadline": time::to_rfc3339(9), "exec_timeout_ms": 1,
                   "verify_after_ms": 1, "verify_for_ms": 1},
        "mode": "live", "approval": {"required": true, "state": "requested"},
        "explain": {"policy": "p", "detector": "d", "pipeline": "q", "score": 1.0, "evidence": [], "gates": []},
    });
    let action: crate::message::Action = serde_json::from_value(text).unwrap();
    let agreed = action.proposal_sha256();
    let mut later = action.clone();
    later.timing.start_deadline = 99;
    later.approval.state = "granted".into();
    assert_eq!(later.proposal_sha256(), agreed);
    let mut other = action.clone();
    other.action.params.insert("grace_s".into(), 0.into());
    assert_ne!(other.proposal_sha256(), agreed);
    let mut elsewhere = action;
    elsewhere.target.key = "t|||db|service|".into();
    assert_ne!(elsewhere.proposal_sha256(), agreed);
}

#[test]
fn topics_carry_the_prefix() {
    let topics = Topics::new("homeostat.");
    assert!(topics.all().iter().all(|topic| topic.name.starts_with("homeostat.")));
    assert_eq!(topics.tenant(), "homeostat");
}
