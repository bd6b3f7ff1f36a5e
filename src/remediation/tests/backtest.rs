//! Policies on the past: what would have fired, what was refused, what differs; and a decision in words.

use std::time::Duration;

use protocol::message::{Decision, Mode, Verdict, VerdictRecord};

use super::{START_MS, key_of};
use crate::{
    Choice, Effect, FleetConfig, Policy,
    backtest::{Assume, Past, Recorded, Report, backtest},
    explain,
};

fn config() -> FleetConfig {
    FleetConfig {
        startup_grace: Duration::ZERO,
        settle: Duration::ZERO,
        settle_silent: Duration::ZERO,
        ..FleetConfig::default()
    }
}

fn policy(k: u32) -> Policy {
    Policy {
        for_k: k,
        for_n: 5,
        mode: Mode::Auto,
        ..Policy::new("shop", "heal", "slow", Choice::Fixed("restart".into()))
    }
}

/// Ten minutes: cart alarms for one window at two minutes, db for good from five minutes on.
fn past() -> Vec<Recorded> {
    let mut past = Vec::new();
    for second in 0..600i64 {
        let at_ms = START_MS + second * 1_000;
        let progress = protocol::message::TimeProgress {
            watermark_ms: Some(at_ms - 2_000),
            clock: at_ms,
            partition: 0,
            population: [("shop.slow".to_owned(), 20)].into(),
            version: 0,
        };
        past.push(Recorded {
            broker_ms: at_ms,
            message: Past::Progress(progress),
        });
        let alarms = [("cart", second == 120), ("db", second >= 300 && second % 10 == 0)];
        for (service, alarming) in alarms {
            if alarming {
                past.push(alarm(service, at_ms));
            }
        }
    }
    past
}

fn alarm(service: &str, at_ms: i64) -> Recorded {
    let data = protocol::message::Anomaly {
        target: [("service_name".to_owned(), service.into())].into(),
        pipeline: "shop".into(),
        detector: "slow".into(),
        window_start: at_ms - 12_000,
        window_end: at_ms - 2_000,
        score: 2.0,
        is_anomaly: true,
        features: Default::default(),
        contributions: Default::default(),
        columns: Default::default(),
        meets: vec!["heal".into()],
        clears: Vec::new(),
        telemetry_healthy: true,
    };
    let event_id = protocol::id::anomaly("shop", "slow", service, data.window_start, data.window_end);
    let kind = protocol::cloudevent::ANOMALY;
    let event = protocol::CloudEvent::new(event_id, "homeostat", "/test", kind, &key_of(service), data.window_end);
    Recorded {
        broker_ms: at_ms,
        message: Past::Anomaly { event, data },
    }
}

fn run(k: u32, mode: Option<Mode>) -> Report {
    let verdicts: Vec<(String, bool)> = (0..10).map(|at| ("restart".to_owned(), at < 8)).collect();
    backtest(config(), [policy(k)], &past(), &verdicts, Assume { mode })
}

#[test]
fn a_hasty_policy_acts_on_what_passes_by_itself() {
    let (hasty, patient) = (run(1, Some(Mode::Auto)), run(3, Some(Mode::Auto)));
    let names = |report: &Report| {
        report
            .fired
            .iter()
            .map(|fired| super::name_of(&fired.target_key))
            .collect::<Vec<_>>()
    };
    assert!(names(&hasty).contains(&"cart".to_owned()), "{hasty:?}");
    assert!(!names(&patient).contains(&"cart".to_owned()), "{patient:?}");
    assert!(names(&patient).contains(&"db".to_owned()));
    let difference = hasty.difference(&patient);
    assert!(
        difference
            .only_first
            .iter()
            .any(|fired| fired.target_key == key_of("cart"))
    );
    assert!(
        patient.verdicts.get("unchanged").is_some_and(|count| *count >= 1),
        "{patient:?}"
    );
    let expected = patient.expected.expect("the past says something of restarts");
    assert!(
        (expected.share - 0.8).abs() < 1e-9 && expected.low < 0.6 && expected.high > 0.9,
        "{expected:?}"
    );
}

#[test]
fn without_an_assumed_mode_the_past_modes_count() {
    let report = run(1, None);
    assert!(
        report
            .fired
            .iter()
            .all(|fired| fired.verdict == protocol::message::DecisionKind::Shadow)
    );
}

#[test]
fn the_same_past_gives_the_same_report() {
    assert_eq!(run(1, Some(Mode::Auto)), run(1, Some(Mode::Auto)));
}

#[test]
fn a_decision_is_explained() {
    let mut world = super::World::new(config(), vec![policy(1)]);
    (0..10).for_each(|_| drop(world.second()));
    let effects = world.window("slow", "cart", 2.0, &["heal"], &[]);
    let decision: &Decision = effects
        .iter()
        .find_map(|effect| match effect {
            Effect::Decision { data, .. } => Some(data),
            _ => None,
        })
        .unwrap();
    let verdict = VerdictRecord {
        action_id: decision.action_id.unwrap(),
        incident_id: decision.incident_id,
        target_key: decision.target_key.clone(),
        verdict: Verdict::Recovered,
        from: 0,
        to: 1,
        score_before: 2.0,
        score_after: Some(0.2),
        reason: "the signal cleared after the action".into(),
    };
    let mut anomaly = match alarm("cart", START_MS).message {
        Past::Anomaly { data, .. } => data,
        other => panic!("{other:?}"),
    };
    anomaly.features = [("p99_ms", Some(812.0)), ("rps", Some(40.0)), ("errors", None)]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
    anomaly.contributions = [("p99_ms".to_owned(), 0.9), ("rps".to_owned(), 0.1)].into();
    let lines = explain(decision, Some(&verdict), |id| {
        (id == decision.evidence[0]).then_some(&anomaly)
    });
    assert_eq!(lines[0], "would restart cart, had the mode allowed");
    let evidence = "window 2023-11-14T22:13:08.000Z to 2023-11-14T22:13:18.000Z, score 2.000, p99_ms=812 rps=40";
    assert_eq!(
        lines[2],
        format!("evidence: anomaly {}: {evidence}", decision.evidence[0])
    );
    let gone = explain(decision, None, |_| None);
    assert!(gone[2].ends_with(": no longer on record"), "{gone:?}");
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("gate telemetry: passed (lag_max_ms=30000, lag_ms=2000")),
        "{lines:?}"
    );
    assert_eq!(
        lines.last().unwrap(),
        "came of it: recovered; score 2.000 before, 0.200 after: the signal cleared after the action"
    );
}
