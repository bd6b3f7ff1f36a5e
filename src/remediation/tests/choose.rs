//! DO CHOOSE inside a fleet: ranked by a model, corrected by experience, masked by gates, drawn with a known probability.

use std::{collections::BTreeMap, time::Duration};

use protocol::message::{Anomaly, Control, Decision, DecisionKind, IncidentState, Mode, OutcomeStatus};

use super::{World, key_of};
use crate::{
    Choice, Effect, FleetConfig, Message, Policy,
    choose::{self, Drawing, Example, Promotion, TrainOptions, Value, evaluate, promote, train},
};

fn world(actions: &[&str]) -> World {
    let config = FleetConfig {
        startup_grace: Duration::ZERO,
        settle: Duration::ZERO,
        settle_silent: Duration::ZERO,
        verify_for: Duration::from_secs(60),
        limits_service: Vec::new(),
        limits_fleet: Vec::new(),
        flips_max: 0,
        breaker_failures: 0,
        ..FleetConfig::default()
    };
    let actions = actions.iter().map(|action| (*action).to_owned()).collect();
    let policy = Policy {
        mode: Mode::Auto,
        cooldown: Duration::ZERO,
        ..Policy::new("shop", "pick", "slow", Choice::Choose(actions))
    };
    let mut world = World::new(config, vec![policy]);
    world.restart_every = 50;
    world.control(&Control::Mode {
        service: "*".into(),
        action: "*".into(),
        mode: Mode::Auto,
        until: None,
        by: "someone".into(),
        reason: String::new(),
    });
    (0..10).for_each(|_| drop(world.second()));
    world
}

/// Memory calls for a restart, requests for more capacity.
fn model(margin: f64) -> Control {
    let example = |at: usize| {
        let leak = at.is_multiple_of(2);
        let spread = (at % 7) as f64 * 10.0;
        Example {
            incident: format!("i{at}"),
            label: if leak { "restart" } else { "scale_up" }.into(),
            features: [
                (
                    "memory_mib".to_owned(),
                    Value::Number(if leak { 900.0 } else { 200.0 } + spread),
                ),
                (
                    "rps".to_owned(),
                    Value::Number(if leak { 90.0 } else { 700.0 } + spread),
                ),
            ]
            .into(),
        }
    };
    let examples: Vec<Example> = (0..40).map(example).collect();
    let options = TrainOptions {
        trees: 20,
        margin,
        ..TrainOptions::default()
    };
    let model = train(&examples, &options).unwrap();
    Control::Model {
        policy: "*".into(),
        model: serde_json::from_slice(&model.to_json()).unwrap(),
        by: "someone".into(),
        reason: String::new(),
    }
}

fn alarm(world: &mut World, service: &str, memory_mib: f64, rps: f64) -> Vec<Effect> {
    let data = Anomaly {
        target: [("service_name".to_owned(), service.into())].into(),
        pipeline: "shop".into(),
        detector: "slow".into(),
        window_start: world.now_ms - 12_000,
        window_end: world.now_ms - 2_000,
        score: 2.0,
        is_anomaly: true,
        features: [
            ("memory_mib".to_owned(), Some(memory_mib)),
            ("rps".to_owned(), Some(rps)),
        ]
        .into(),
        contributions: BTreeMap::new(),
        columns: BTreeMap::new(),
        meets: vec!["pick".into()],
        clears: Vec::new(),
        telemetry_healthy: true,
    };
    let event = world.event(protocol::cloudevent::ANOMALY, &key_of(service));
    world.feed(Message::Anomaly {
        event: &event,
        data: &data,
    })
}

fn decided(effects: &[Effect]) -> &Decision {
    let decision = effects.iter().find_map(|effect| match effect {
        Effect::Decision { data, .. } => Some(data),
        _ => None,
    });
    decision.expect("something was decided")
}

/// One incident from alarm to verdict, in a world where only `cure` heals. What was decided.
fn incident(world: &mut World, service: &str, cure: &str, memory_mib: f64, rps: f64) -> Decision {
    let effects = alarm(world, service, memory_mib, rps);
    let decision = decided(&effects).clone();
    let kind = decision
        .action
        .as_ref()
        .map(|action| action.kind.clone())
        .unwrap_or_default();
    if decision.verdict == DecisionKind::Act && kind != "noop" {
        world.outcome(service, OutcomeStatus::Succeeded, 200);
    }
    if decision.verdict == DecisionKind::Act && kind == cure {
        (0..20).for_each(|_| drop(world.second()));
        world.window("slow", service, 0.1, &[], &["pick"]);
        (0..20).for_each(|_| drop(world.second()));
        return decision;
    }
    for second in 0..100 {
        world.second();
        let closed = world
            .said
            .iter()
            .rev()
            .take(3)
            .any(|effect| matches!(effect, Effect::Verdict { .. }));
        if closed {
            break;
        }
        if second % 10 == 9 {
            alarm(world, service, memory_mib, rps);
        }
    }
    world.window("slow", service, 0.1, &[], &["pick"]);
    (0..10).for_each(|_| drop(world.second()));
    decision
}

#[test]
fn the_model_ranks_and_the_decision_says_everything() {
    let mut world = world(&["restart", "scale_up"]);
    world.control(&model(0.1));
    let effects = alarm(&mut world, "cart", 950.0, 100.0);
    let decision = decided(&effects);
    let choice = decision.choice.as_ref().expect("a choice was made");
    assert!(choice.model.is_some() && !choice.path.is_empty(), "{choice:?}");
    let sum: f64 = choice.options.iter().map(|option| option.propensity).sum();
    assert!((sum - 1.0).abs() < 1e-9, "{choice:?}");
    let option = |name: &str| choice.options.iter().find(|option| option.action == name).unwrap();
    assert!(option("restart").probability > option("scale_up").probability);
    assert!(option("restart").propensity > 0.5);
    assert!(option("noop").propensity > 0.0 && option("escalate").propensity > 0.0);
    let chosen = decision.action.as_ref().unwrap();
    assert!(
        (option(&chosen.kind).propensity - decision.propensity).abs() < 1e-12,
        "the logged propensity is the one used"
    );
    assert_eq!(choice.context["memory_mib"], serde_json::json!(950.0));
}

#[test]
fn gates_mask_what_may_not_be_chosen() {
    let mut world = world(&["restart", "scale_up"]);
    world.control(&model(0.1));
    world.control(&Control::Mode {
        service: "cart".into(),
        action: "restart".into(),
        mode: Mode::Off,
        until: None,
        by: "someone".into(),
        reason: String::new(),
    });
    let effects = alarm(&mut world, "cart", 950.0, 100.0);
    let choice = decided(&effects).choice.as_ref().unwrap();
    let restart = choice.options.iter().find(|option| option.action == "restart").unwrap();
    assert_eq!(
        (restart.propensity, restart.refused_by.as_deref()),
        (0.0, Some("control"))
    );
}

#[test]
fn exploring_stays_among_what_is_as_safe() {
    let mut world = world(&["restart", "scale_up", "rollback"]);
    world.control(&model(0.1));
    let effects = alarm(&mut world, "cart", 950.0, 100.0);
    let choice = decided(&effects).choice.as_ref().unwrap();
    let rollback = choice
        .options
        .iter()
        .find(|option| option.action == "rollback")
        .unwrap();
    assert_eq!(
        (rollback.propensity, rollback.refused_by.as_deref()),
        (0.0, Some("unsafe"))
    );
}

#[test]
fn an_undecided_model_leaves_it_to_a_person() {
    let mut world = world(&["restart", "scale_up"]);
    world.control(&model(1.5));
    let effects = alarm(&mut world, "cart", 950.0, 100.0);
    let decision = decided(&effects);
    assert_eq!(
        (decision.verdict, decision.refused_by.as_deref()),
        (DecisionKind::Refuse, Some("choice"))
    );
    assert!(decision.choice.as_ref().is_some_and(|choice| choice.abstained));
    let escalated = effects.iter().any(|effect| match effect {
        Effect::Incident { data, .. } => data.state == IncidentState::Escalated,
        _ => false,
    });
    assert!(escalated);
}

#[test]
fn experience_corrects_a_wrong_prior() {
    let mut world = world(&["restart", "scale_up"]);
    world.control(&model(0.1));
    // The model says restart; here only more capacity helps.
    let mut last = Vec::new();
    for round in 0..60 {
        let service = ["a", "b", "c"][round % 3];
        let decision = incident(&mut world, service, "scale_up", 950.0, 100.0);
        if round >= 40 {
            last.push(decision.action.map(|action| action.kind).unwrap_or_default());
        }
    }
    let right = last.iter().filter(|kind| *kind == "scale_up").count();
    assert!(right >= 14, "{right} of 20: {last:?}");
}

#[test]
fn a_model_that_cannot_be_read_changes_nothing() {
    let mut world = world(&["restart", "scale_up"]);
    world.control(&model(0.1));
    let broken = Control::Model {
        policy: "*".into(),
        model: serde_json::json!({"format": 7}),
        by: "someone".into(),
        reason: String::new(),
    };
    let effects = world.control(&broken);
    assert!(matches!(effects.as_slice(), [Effect::Unusable(_)]), "{effects:?}");
    let effects = alarm(&mut world, "cart", 950.0, 100.0);
    assert!(
        decided(&effects)
            .choice
            .as_ref()
            .is_some_and(|choice| choice.model.is_some())
    );
}

/// What the fleet published is enough to train the next model, and to judge it before it is promoted.
#[test]
fn a_new_model_is_trained_and_judged_from_what_was_published() {
    let mut world = world(&["restart", "scale_up"]);
    world.control(&model(0.1));
    for round in 0..40 {
        let (cure, memory_mib, rps) = if round % 2 == 0 {
            ("restart", 950.0, 100.0)
        } else {
            ("scale_up", 220.0, 800.0)
        };
        incident(&mut world, ["a", "b", "c"][round % 3], cure, memory_mib, rps);
    }
    let decisions: Vec<Decision> = world
        .said
        .iter()
        .filter_map(|effect| match effect {
            Effect::Decision { data, .. } => Some(data.clone()),
            _ => None,
        })
        .collect();
    let verdicts: Vec<_> = world
        .said
        .iter()
        .filter_map(|effect| match effect {
            Effect::Verdict { data, .. } => Some(data.clone()),
            _ => None,
        })
        .collect();
    // What judges a model has not taught it, and nothing that teaches or judges is left out.
    let (older, newer) = choose::halves(&decisions, &verdicts);
    let times = |half: &[Decision]| half.iter().map(|decision| decision.decided_at).collect::<Vec<_>>();
    assert!(times(&older).iter().max() < times(&newer).iter().min());
    let taught = |half: &[Decision]| choose::examples(half, &verdicts);
    let examples = choose::examples(&decisions, &verdicts);
    assert_eq!([taught(&older), taught(&newer)].concat().len(), examples.len());
    assert!(examples.len() >= 20, "{} examples", examples.len());
    let options = TrainOptions {
        trees: 20,
        ..TrainOptions::default()
    };
    let next = train(&examples, &options).unwrap();
    let drawing = Drawing {
        propensity_min: 0.02,
        propensity_max: 0.95,
        prior_strength: 4.0,
    };
    let log = choose::log(&decisions, &verdicts, &next, drawing);
    let evaluation = evaluate(&log).unwrap();
    assert!(evaluation.dr.value > 0.5, "{evaluation:?}");
    // Forty incidents are no evidence, however good they look.
    let promotion = promote(&evaluation, evaluation.logged.value);
    assert!(
        matches!(promotion, Promotion::InsufficientEvidence { .. }),
        "{promotion:?}"
    );
}

/// G10: the same records give the same draws, bit for bit.
#[test]
fn choices_are_reproduced_on_replay() {
    let run = || {
        let mut world = world(&["restart", "scale_up"]);
        world.control(&model(0.1));
        for round in 0..6 {
            incident(&mut world, ["a", "b"][round % 2], "scale_up", 950.0, 100.0);
        }
        (world.said, world.store)
    };
    assert_eq!(run(), run());
}
