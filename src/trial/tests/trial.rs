//! The rehearsal itself: catalogues that cannot be used, worlds that repeat, a fleet that heals what it can.
#![allow(clippy::unwrap_used)]

use trial::{
    Random,
    arm::{Arm, Product, Run, StaticRule, Way, live, storm},
    catalogue::{Catalogue, DEFAULT},
    world::World,
};

fn catalogue() -> Catalogue {
    Catalogue::read("shipped", DEFAULT).unwrap()
}

fn lived(catalogue: &Catalogue, fault: Option<&str>, arm: &mut dyn Arm) -> Run {
    let fault = fault.map(|name| catalogue.faults.iter().find(|fault| fault.name == name).unwrap());
    let mut world = World::new(catalogue, fault, Random::derive(5, 5));
    live(&mut world, &mut trial::watch(catalogue).unwrap(), arm).unwrap()
}

#[test]
fn a_catalogue_that_cannot_be_used_is_refused() {
    let error = |from: &str, to: &str| {
        Catalogue::read("mine", &DEFAULT.replacen(from, to, 1))
            .unwrap_err()
            .to_string()
    };
    assert!(error("\"stock\": []", "\"stock\": [\"web\"]").contains("call in a circle"));
    assert!(error("[\"prices\", \"stock\"]", "[\"prices\", \"nowhere\"]").contains("\"nowhere\" is called"));
    assert!(error("\"cures\": [\"restart\"]", "\"cures\": [\"pray\"]").contains("unknown action \"pray\""));
    assert!(error("\"weight\": 4", "\"wait\": 4").contains("unknown field `wait`"));
}

#[test]
fn the_same_seed_is_the_same_world() {
    let catalogue = catalogue();
    let fault = catalogue.faults.first();
    let mut worlds = [3, 3, 4].map(|seed| World::new(&catalogue, fault, Random::derive(seed, 0)));
    for _ in 0..300 {
        let [one, same, other] = worlds.each_mut().map(World::step);
        assert_eq!(one, same);
        assert_ne!(one, other);
    }
}

/// Killed at every decision, a fleet says the same again, and every effect is there once.
#[test]
fn rules_restart_what_crashed_whatever_is_killed() {
    let catalogue = catalogue();
    let mut product = Product::new(&catalogue, &Way::Rules, 1, 1.0).unwrap();
    let run = lived(&catalogue, Some("crash"), &mut product);
    assert!(run.right() && run.healed_ms.is_some_and(|ms| ms < 120_000), "{run:?}");
    assert!(run.kills >= 3 && run.replayed == run.replayed_same, "{run:?}");
    assert_eq!(run.duplicates, 0);
}

#[test]
fn nothing_is_done_where_nothing_is_wrong() {
    let catalogue = catalogue();
    let mut product = Product::new(&catalogue, &Way::Rules, 1, 0.0).unwrap();
    for fault in [None, Some("telemetry_lost"), Some("zone_silent")] {
        let run = lived(&catalogue, fault, &mut product);
        assert!(run.done.is_empty(), "{run:?}");
    }
    let rule = lived(&catalogue, Some("zone_silent"), &mut StaticRule::default());
    assert!(
        rule.done.len() >= 10,
        "a rule without a gate restarts them all: {rule:?}"
    );
}

#[test]
fn a_storm_stays_within_its_budget() {
    let (busiest, budget) = storm(&catalogue(), 300, 20).unwrap();
    assert!((1..=budget).contains(&busiest), "{busiest} of {budget}");
}

/// A run that ends badly leaves nothing behind for the next.
#[test]
fn what_a_person_had_to_mend_is_mended_in_the_next_run() {
    let catalogue = catalogue();
    let mut product = Product::new(&catalogue, &Way::Rules, 1, 0.0).unwrap();
    lived(&catalogue, Some("provider_down"), &mut product);
    lived(&catalogue, Some("crash_loop_after_deploy"), &mut product);
    assert!(lived(&catalogue, None, &mut product).done.is_empty());
    assert!(lived(&catalogue, Some("crash"), &mut product).right());
}
