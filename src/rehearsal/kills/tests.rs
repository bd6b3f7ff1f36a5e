#![allow(clippy::unwrap_used)]

use trial::{arm::live, catalogue::DEFAULT, world::World};

use super::*;

/// The product lives through so many faults that call for a restart or a rollback.
fn killed(seed: u64, runs: u64, forgetful: bool) -> Kills {
    let catalogue = Catalogue::read("shipped", DEFAULT).unwrap();
    let mut watch = trial::watch(&catalogue).unwrap();
    let mut arm = Killed::new(&catalogue, seed);
    arm.forgetful = forgetful;
    for run in 0..runs {
        let name = if run % 2 == 0 { "crash" } else { "bad_deploy_errors" };
        let fault = catalogue.faults.iter().find(|fault| fault.name == name);
        let mut world = World::new(&catalogue, fault, Random::derive(seed, run));
        let run = live(&mut world, &mut watch, &mut arm).unwrap();
        assert_eq!(run.duplicates == 0, world.effects.values().all(|times| *times == 1));
    }
    arm.total
}

#[test]
fn invariant_13_whoever_is_killed_nothing_is_done_twice() {
    let kills = killed(1, 6, false);
    assert!(
        kills.processor >= 12 && kills.executor >= 5 && kills.effects >= 6,
        "{kills:?}"
    );
    assert_eq!(
        (kills.duplicate_effects, kills.contradictions, kills.unreported),
        (0, 0, 0),
        "{kills:?}"
    );
    assert_eq!(killed(1, 6, false), kills, "a seed is one history");
}

#[test]
fn who_loses_the_ledger_does_things_twice_and_is_caught() {
    let kills = (1..=4).map(|seed| killed(seed, 6, true).duplicate_effects).sum::<u32>();
    assert!(kills > 0, "nothing was done twice");
}
