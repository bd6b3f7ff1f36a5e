use protocol::message::{Executor, OutcomeStatus};

use proptest::prelude::*;

use super::*;
use crate::budget::{BreakerConfig, Rule};

const A: Uuid = Uuid::from_u128(1);
const B: Uuid = Uuid::from_u128(2);

fn open(path: &Path) -> Ledger {
    Ledger::open(path, Uuid::from_u128(99)).unwrap()
}

const LANE: &str = "restart by process";
const WINDOW_MS: i64 = 100;

fn bounds(actions_max: u32) -> Bounds {
    Bounds {
        budget: vec![Rule {
            action: "*".into(),
            target: "*".into(),
            actions_max,
            window_ms: WINDOW_MS,
        }],
        breaker: BreakerConfig {
            failures_max: 2,
            open_ms: 50,
        },
    }
}

fn start(ledger: &Ledger, action: Uuid, entry: Entry, before: Before, bounds: &Bounds) -> Result<(), Refusal> {
    let starting = Starting {
        action,
        kind: "restart",
        service: "cart",
        lane: LANE,
        before,
    };
    ledger.start(starting, entry, bounds).unwrap()
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
    start(&ledger, A, entry.clone(), before.clone(), &bounds(9)).unwrap();
    assert_eq!(
        ledger.find(A).unwrap().unwrap().state,
        State::Intent {
            before,
            lane: LANE.into()
        }
    );
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
    start(&ledger, B, at(10), Before::new(), &bounds(9)).unwrap();
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

fn ended(action: Uuid, status: OutcomeStatus, code: u16) -> Outcome {
    Outcome {
        status,
        code,
        ..outcome(action)
    }
}

#[test]
fn what_was_started_counts_after_a_restart_and_after_pruning() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.redb");
    start(&open(&path), A, at(1_000), Before::new(), &bounds(1)).unwrap();
    let ledger = open(&path);
    let refusal = start(&ledger, B, at(1_099), Before::new(), &bounds(1)).unwrap_err();
    assert_eq!((refusal.status, refusal.code), (OutcomeStatus::Rejected, 429));
    assert!(refusal.reason.starts_with("budget: "), "{}", refusal.reason);
    // The same action, begun again, is one; and its later start is the one that counts.
    start(&ledger, A, at(1_050), Before::new(), &bounds(1)).unwrap();
    ledger.finish(A, at(1_060), &outcome(A)).unwrap();
    ledger.prune(1_100).unwrap();
    assert!(start(&ledger, B, at(1_149), Before::new(), &bounds(1)).is_err());
    assert_eq!(ledger.find(B).unwrap(), None);
    start(&ledger, B, at(1_150), Before::new(), &bounds(1)).unwrap();
}

#[test]
fn a_breaker_stays_open_after_a_restart_and_lets_one_through() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.redb");
    let id = |number: u128| Uuid::from_u128(100 + number);
    for (number, status, code) in [(1, OutcomeStatus::Failed, 500), (2, OutcomeStatus::Unknown, 504)] {
        let ledger = open(&path);
        start(&ledger, id(number), at(10), Before::new(), &bounds(9)).unwrap();
        ledger
            .finish(id(number), at(10), &ended(id(number), status, code))
            .unwrap();
    }
    let ledger = open(&path);
    let refusal = start(&ledger, id(3), at(59), Before::new(), &bounds(9)).unwrap_err();
    assert_eq!(refusal.code, 429);
    assert!(
        refusal.reason.starts_with("breaker: restart by process"),
        "{}",
        refusal.reason
    );
    start(&ledger, id(4), at(60), Before::new(), &bounds(9)).unwrap();
    drop(ledger);
    let ledger = open(&path);
    assert!(start(&ledger, id(5), at(61), Before::new(), &bounds(9)).is_err());
    start(&ledger, id(4), at(62), Before::new(), &bounds(9)).unwrap();
    ledger.finish(id(4), at(63), &outcome(id(4))).unwrap();
    start(&ledger, id(5), at(64), Before::new(), &bounds(9)).unwrap();
}

#[test]
fn an_entry_of_an_older_version_is_read() {
    let state: State = serde_json::from_str(r#"{"state":"intent","before":{}}"#).unwrap();
    let before = Before::new();
    assert_eq!(
        state,
        State::Intent {
            before,
            lane: String::new()
        }
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever the clock does and however often the executor is restarted.
    #[test]
    fn no_window_ever_holds_more_than_the_budget(
        actions_max in 1u32..4,
        steps in prop::collection::vec((-60i64..80, 0u128..40, prop::bool::weighted(0.1)), 1..60),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.redb");
        let mut ledger = open(&path);
        let bounds = bounds(actions_max);
        let mut now_ms = 10_000;
        let mut started = std::collections::BTreeMap::<u128, i64>::new();
        for (by_ms, action, restarts) in steps {
            now_ms += by_ms;
            if restarts {
                drop(ledger);
                ledger = open(&path);
            }
            if start(&ledger, Uuid::from_u128(action), at(now_ms), Before::new(), &bounds).is_ok() {
                started.insert(action, now_ms);
            }
            for from_ms in started.values() {
                let within = started.values().filter(|at_ms| (*from_ms..from_ms + WINDOW_MS).contains(at_ms));
                prop_assert!(within.count() <= actions_max as usize);
            }
        }
    }
}
