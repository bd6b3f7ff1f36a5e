use protocol::message::{Executor, OutcomeStatus};

use super::*;

const A: Uuid = Uuid::from_u128(1);
const B: Uuid = Uuid::from_u128(2);

fn open(path: &Path) -> Ledger {
    Ledger::open(path, Uuid::from_u128(99)).unwrap()
}

fn outcome(action_id: Uuid) -> Outcome {
    Outcome {
        action_id,
        incident_id: Uuid::from_u128(7),
        attempt: 1,
        executor: Executor {
            id: "local".into(),
            version: "0".into(),
        },
        status: OutcomeStatus::Succeeded,
        code: 200,
        retryable: false,
        at: 5,
        effect: serde_json::Map::new(),
        error: None,
        payload_sha256: "p".into(),
    }
}

#[test]
fn remembers_every_step_across_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/er/ledger.redb");
    let entry = {
        let ledger = open(&path);
        assert_eq!(ledger.find(A).unwrap(), None);
        let entry = ledger.entry("p", "target", 3, 10);
        assert_eq!(ledger.claim(A, entry.clone()).unwrap(), Claim::Granted);
        entry
    };
    let ledger = open(&path);
    assert_eq!(ledger.find(A).unwrap().unwrap(), entry);
    let before = Before::from_iter([("uid".to_owned(), "u-1".into())]);
    ledger.intend(A, entry.clone(), before.clone()).unwrap();
    assert_eq!(ledger.find(A).unwrap().unwrap().state, State::Intent { before });
    drop(ledger);
    let ledger = open(&path);
    ledger.finish(A, entry, &outcome(A)).unwrap();
    drop(ledger);
    let State::Done { outcome: stored } = open(&path).find(A).unwrap().unwrap().state else {
        panic!("not done");
    };
    assert_eq!(*stored, outcome(A));
}

#[test]
fn a_lower_sequence_is_fenced_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.redb");
    open(&path).claim(A, open_entry(5)).unwrap();
    let ledger = open(&path);
    assert_eq!(ledger.highest("target").unwrap(), Some(5));
    assert_eq!(ledger.claim(B, open_entry(4)).unwrap(), Claim::Fenced { highest: 5 });
    assert_eq!(ledger.find(B).unwrap(), None);
    assert_eq!(ledger.claim(B, open_entry(5)).unwrap(), Claim::Granted);
    // A refusal is remembered and does not lower what was seen.
    ledger.finish(Uuid::from_u128(3), open_entry(1), &outcome(A)).unwrap();
    assert_eq!(ledger.highest("target").unwrap(), Some(5));
}

#[test]
fn a_second_executor_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.redb");
    let _first = open(&path);
    assert!(matches!(
        Ledger::open(&path, Uuid::nil()),
        Err(Error::LedgerInUse { .. })
    ));
}

#[test]
fn forgets_by_time_what_is_finished_only() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(&directory.path().join("ledger.redb"));
    ledger.finish(A, at(10), &outcome(A)).unwrap();
    ledger.intend(B, at(10), Before::new()).unwrap();
    let late = Uuid::from_u128(3);
    ledger.finish(late, at(20), &outcome(late)).unwrap();
    assert_eq!(ledger.prune(10).unwrap(), 0);
    assert_eq!(ledger.prune(15).unwrap(), 1);
    assert_eq!(ledger.find(A).unwrap(), None);
    assert!(ledger.find(B).unwrap().is_some() && ledger.find(late).unwrap().is_some());
    // A touched entry counts from its last change.
    ledger.finish(B, at(30), &outcome(B)).unwrap();
    assert_eq!(ledger.prune(25).unwrap(), 1);
    assert!(ledger.find(B).unwrap().is_some());
}

fn at(changed_at_ms: i64) -> Entry {
    Entry {
        changed_at_ms,
        ..open_entry(1)
    }
}

fn open_entry(sequence: u64) -> Entry {
    Entry {
        payload_sha256: "p".into(),
        target_key: "target".into(),
        sequence,
        owner: Uuid::nil(),
        changed_at_ms: 1,
        state: State::Claimed,
    }
}
