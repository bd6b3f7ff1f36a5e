//! The gates as a whole: their order, what they say when they know nothing, what they remember and for how long.

use std::time::Duration;

use protocol::message::{Anomaly, Decision, DecisionKind, OutcomeStatus, TimeProgress};

use super::{START_MS, World};
use crate::{Choice, Effect, FleetConfig, Message, Policy};

/// Where operators read which gates there are.
const PAGE: &str = include_str!("../../../docs/healing.md");

fn world(config: FleetConfig) -> World {
    let policy = Policy {
        mode: protocol::message::Mode::Auto,
        latched: true,
        ..Policy::new("shop", "heal", "silent", Choice::Fixed("restart".into()))
    };
    World::new(config, vec![policy])
}

fn config() -> FleetConfig {
    FleetConfig {
        default_mode: protocol::message::Mode::Auto,
        startup_grace: Duration::ZERO,
        settle: Duration::ZERO,
        settle_silent: Duration::ZERO,
        ..FleetConfig::default()
    }
}

fn decided(effects: &[Effect]) -> Decision {
    let found = effects.iter().find_map(|effect| match effect {
        Effect::Decision { data, .. } => Some(data.clone()),
        _ => None,
    });
    found.expect("something was decided")
}

#[test]
fn gates_are_asked_in_the_order_of_the_page_and_the_first_refusal_is_the_last_asked() {
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `"));
    let named: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
    let start = named.iter().position(|name| *name == "control").unwrap();
    let mut world = world(config());
    (0..10).for_each(|_| drop(world.second()));
    let acted = decided(&world.window("silent", "cart", 2.0, &["heal"], &[]));
    let asked: Vec<&str> = acted.gates.iter().map(|gate| gate.gate.as_str()).collect();
    assert_eq!(acted.verdict, DecisionKind::Act);
    assert_eq!(named[start..][..asked.len()], asked);
    assert!(acted.gates.iter().all(|gate| gate.passed));

    // A protected service that is in maintenance as well: the earlier gate answers, the later one is not asked.
    world.control(&protocol::message::Control::Maintenance {
        service: "*".into(),
        from: START_MS,
        to: START_MS + 3_600_000,
        by: "someone".into(),
        reason: String::new(),
    });
    let refused = decided(&world.window("silent", "kafka-1", 2.0, &["heal"], &[]));
    let asked: Vec<(&str, bool)> = refused
        .gates
        .iter()
        .map(|gate| (gate.gate.as_str(), gate.passed))
        .collect();
    assert_eq!(asked, [("control", true), ("protected", false)]);
    assert_eq!(
        refused.gates[1].values["protected_by"], "kafka*",
        "it says what it compared"
    );
}

#[test]
fn what_a_gate_cannot_know_it_refuses() {
    // Nobody has said how time goes.
    let mut blind = world(config());
    let refused = decided(&blind.window("silent", "cart", 2.0, &["heal"], &[]));
    assert_eq!(refused.refused_by.as_deref(), Some("telemetry"));
    // Nobody has said how many there are.
    let mut uncounted = world(config());
    uncounted.population.clear();
    (0..10).for_each(|_| drop(uncounted.second()));
    let refused = decided(&uncounted.window("silent", "cart", 2.0, &["heal"], &[]));
    assert_eq!(refused.refused_by.as_deref(), Some("fleet_wide"));
    // The watermark of one partition is not known.
    let mut half = world(config());
    (0..10).for_each(|_| drop(half.second()));
    let unknown = TimeProgress {
        watermark_ms: Some(START_MS - 3_600_000),
        clock: half.now_ms,
        partition: 1,
        population: half.population.clone(),
        version: 0,
    };
    half.feed(Message::Progress(&unknown));
    let refused = decided(&half.window("silent", "cart", 2.0, &["heal"], &[]));
    assert_eq!(refused.refused_by.as_deref(), Some("telemetry"));
}

/// I11: what is remembered of services ends with its use; but neither a lock nor an open breaker ends by itself.
#[test]
fn what_no_longer_matters_of_a_service_is_forgotten() {
    let mut world = world(FleetConfig {
        breaker_failures: 1,
        limits_fleet: Vec::new(),
        ..config()
    });
    world.restart_every = 1_000;
    (0..10).for_each(|_| drop(world.second()));
    for service in ["healed", "failed", "waiting"] {
        world.window("silent", service, 2.0, &["heal"], &[]);
        if service != "waiting" {
            world.outcome(service, OutcomeStatus::Succeeded, 200);
        }
        if service == "healed" {
            world.window("silent", service, 0.1, &[], &["heal"]);
        }
        (0..300).for_each(|_| drop(world.second()));
    }
    let known = |world: &World| -> Vec<String> {
        let keys = world.store.keys().filter_map(|key| std::str::from_utf8(key).ok());
        let targets = keys.filter_map(|key| key.strip_prefix("decide/target/"));
        targets.map(super::name_of).collect()
    };
    assert_eq!(known(&world), ["failed", "healed", "waiting"]);
    world.now_ms += 25 * 3_600_000;
    world.second();
    let left = known(&world);
    assert!(!left.contains(&"healed".to_owned()), "{left:?}");
    assert!(
        left.contains(&"failed".to_owned()),
        "its breaker waits for a person: {left:?}"
    );
    world.window("silent", "failed", 0.1, &[], &["heal"]);
    world.second();
    let refused = decided(&world.window("silent", "failed", 2.0, &["heal"], &[]));
    assert_eq!(refused.refused_by.as_deref(), Some("breaker"));
}

#[test]
fn nothing_from_telemetry_becomes_a_parameter() {
    let mut world = world(config());
    world.policies[0].params = [("grace_s".to_owned(), 20.into())].into_iter().collect();
    world.fleet.set_policies(world.policies.clone());
    (0..10).for_each(|_| drop(world.second()));
    let hostile = serde_json::json!("20; rm -rf /");
    let columns = ["grace_s", "params", "reason", "service_name"].map(|name| (name.to_owned(), hostile.clone()));
    let data = Anomaly {
        meets: vec!["heal".into()],
        columns: columns.into(),
        features: [("grace_s".to_owned(), Some(9_999.0))].into(),
        ..world.anomaly("silent", &[("service_name", "cart"), ("zone", "$(reboot)")], 2.0)
    };
    let event = world.event(protocol::cloudevent::ANOMALY, &super::key_of("cart"));
    let effects = world.feed(Message::Anomaly {
        event: &event,
        data: &data,
    });
    let command = effects.iter().find_map(|effect| match effect {
        Effect::Action { data, .. } => Some(data),
        _ => None,
    });
    let command = command.expect("it acts");
    assert_eq!(command.action.params, world.policies[0].params);
    assert_eq!(command.target.target.name, "cart");
    let text = serde_json::to_string(&command).unwrap();
    assert!(!text.contains("rm -rf") && !text.contains("9999"), "{text}");
}
