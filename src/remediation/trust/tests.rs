use protocol::{
    Batch, CloudEvent, Output, cloudevent, id,
    message::{Executor, OutcomeStatus},
    signature::Signer,
};

use super::*;

const AT_MS: i64 = 1_700_000_000_000;

fn signer(seed: u8) -> Signer {
    Signer::from_seed(&[seed; 32])
}

fn key(seed: u8) -> TrustedKey {
    TrustedKey::from_pem(&signer(seed).public_pem()).unwrap()
}

/// Ada has two keys, the second from a second after `AT_MS` on; `one` is an executor.
fn trust() -> Trust {
    let mut trust = Trust::default();
    let ada = || Approver {
        name: "ada".into(),
        roles: vec!["sre".into()],
    };
    trust.add_approver(ada(), key(1));
    let later = protocol::time::to_rfc3339(AT_MS + 1_000);
    trust.add_approver(ada(), key(2).between(Some(&later), None).unwrap());
    trust.add_executor("one".into(), key(3));
    trust
}

fn approval(by: &str) -> ApprovalRecord {
    ApprovalRecord {
        approval_id: id::derived("approval", &["1"]),
        action_id: id::derived("action", &["1"]),
        incident_id: id::derived("incident", &["1"]),
        target_key: "homeostat|||cart|service|".into(),
        payload_sha256: "0".repeat(64),
        requested_at: AT_MS,
        expires_at: AT_MS + 60_000,
        by: Some(by.into()),
        reason: None,
        action: None,
    }
}

fn outcome(by: &str) -> Outcome {
    Outcome {
        action_id: id::derived("action", &["1"]),
        incident_id: id::derived("incident", &["1"]),
        attempt: 1,
        executor: Executor {
            id: by.into(),
            version: "1".into(),
        },
        status: OutcomeStatus::Succeeded,
        code: 200,
        retryable: false,
        at: AT_MS,
        effect: serde_json::Map::new(),
        error: None,
        payload_sha256: String::new(),
    }
}

fn output(kind: &str, data: &impl serde::Serialize, seed: Option<u8>) -> Output {
    let event = CloudEvent::new(
        id::derived("answer", &["1"]),
        "homeostat",
        "/homeostat/homeostat/operator",
        kind,
        "homeostat|||cart|service|",
        AT_MS,
    );
    let mut output = event.output("homeostat.x", data);
    if let Some(seed) = seed {
        signer(seed).sign(&mut output);
    }
    output
}

fn with<T>(output: &Output, at_ms: i64, look: impl FnOnce(&Record<'_>) -> T) -> T {
    let mut batch = Batch::default();
    let partition = batch.partition(&output.topic, 0);
    batch.push(
        partition,
        0,
        (at_ms, TimestampKind::LogAppend),
        output.key.as_deref(),
        output.value.as_deref(),
        output.headers.iter().map(|(name, value)| (&**name, &**value)),
    );
    look(&batch.get(0))
}

/// By name, or why not.
fn approved(trust: &Trust, by: &str, seed: Option<u8>, at_ms: i64) -> Result<String, String> {
    let data = approval(by);
    let output = output(cloudevent::APPROVAL_GRANTED, &data, seed);
    let found = with(&output, at_ms, |record| {
        trust
            .approver(record, &data, at_ms)
            .map(|approver| approver.map(|approver| approver.name.clone()))
    });
    found.map(Option::unwrap_or_default)
}

#[test]
fn an_answer_counts_by_its_signature_and_in_the_name_that_it_gives() {
    let trust = trust();
    assert_eq!(approved(&trust, "ada", Some(1), AT_MS), Ok("ada".into()));
    let refused = |by: &str, seed, at_ms| approved(&trust, by, seed, at_ms).unwrap_err();
    assert!(refused("ada", None, AT_MS).starts_with("unsigned"));
    assert!(refused("ada", Some(9), AT_MS).starts_with("signed by unknown key"));
    assert!(
        refused("ada", Some(3), AT_MS).starts_with("signed by unknown key"),
        "an executor is no approver"
    );
    assert_eq!(
        refused("bob", Some(1), AT_MS),
        "signed by ada, and says that it is by \"bob\""
    );
    assert!(refused("ada", Some(2), AT_MS).contains("not valid before"));
    assert_eq!(
        approved(&trust, "ada", Some(2), AT_MS + 1_000),
        Ok("ada".into()),
        "a key that took over"
    );
    assert_eq!(
        approved(&Trust::default(), "eve", None, AT_MS),
        Ok(String::new()),
        "nobody is listed"
    );
}

#[test]
fn what_was_changed_after_it_was_signed_does_not_count() {
    let trust = trust();
    let data = approval("ada");
    let signed = output(cloudevent::APPROVAL_DENIED, &data, Some(1));
    let mut granted = signed.clone();
    for (name, value) in &mut granted.headers {
        if name == "ce_type" {
            *value = cloudevent::APPROVAL_GRANTED.into();
        }
    }
    let check = |output: &Output| with(output, AT_MS, |record| trust.approver(record, &data, AT_MS).map(|_| ()));
    assert_eq!(check(&signed), Ok(()));
    assert!(
        check(&granted).unwrap_err().contains("does not fit"),
        "a no does not become a yes"
    );
}

#[test]
fn an_executor_speaks_for_itself_alone() {
    let trust = trust();
    let said = |trust: &Trust, by: &str, seed: Option<u8>| {
        let data = outcome(by);
        let output = output("dev.homeostat.outcome.succeeded.v1", &data, seed);
        with(&output, AT_MS, |record| trust.executor(record, &data, AT_MS))
    };
    assert_eq!(said(&trust, "one", Some(3)), Ok(()));
    assert!(said(&trust, "one", None).unwrap_err().starts_with("unsigned"));
    assert!(
        said(&trust, "one", Some(1))
            .unwrap_err()
            .starts_with("signed by unknown key")
    );
    assert!(
        said(&trust, "two", Some(3))
            .unwrap_err()
            .contains("\"two\", signed by executor \"one\"")
    );
    assert_eq!(said(&Trust::default(), "two", None), Ok(()), "nobody is listed");
}
