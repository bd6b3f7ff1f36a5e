//! The whole walk in one thread: services, the three stages and an executor on the memory broker with a virtual clock, drawn from a
//! seed. Guards invariants 1, 3, 4, 5, 10, 11, 12, 13, 14 and 19 of `src/README.md`.

// A test that cannot go on fails right there.
#![allow(clippy::unwrap_used)]

mod edits;
mod level_shifts;
mod scenarios;
mod tables;
mod world;

use world::{Plan, World};

/// Longer than any idle timeout of the pipeline.
const OUTAGE_MS: i64 = 180_000;

#[test]
fn a_crash_is_healed_by_one_restart_and_nobody_else_is_touched() {
    let mut world = World::new(1, Plan::default());
    world.run_for(40_000);
    world.services[2].crash();
    world.run_for(60_000);
    let restarts = world.restarts();
    assert_eq!(restarts.keys().collect::<Vec<_>>(), ["s2"], "{restarts:?}");
    assert_eq!(restarts["s2"], 1);
    assert!(world.services.iter().all(|service| service.is_up()));
    assert_eq!(world.verdicts(), ["recovered"]);
    world.finish().unwrap();
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let logs = || {
        let plan = Plan {
            crashes: true,
            broker_faults: true,
            ..Plan::default()
        };
        let mut world = World::new(7, plan);
        world.live(60_000);
        world.finish().unwrap();
        world.logs()
    };
    let (first, second) = (logs(), logs());
    assert!(first.iter().map(|(_, records)| records.len()).sum::<usize>() > 1_000);
    for ((topic, first), (_, second)) in first.iter().zip(&second) {
        assert!(first == second, "{topic} differs between two runs of one seed");
    }
}

#[test]
fn a_hundred_seeds_with_faults_keep_the_invariants() {
    let healed = |seeds: std::ops::Range<u64>| {
        let one = |seed| {
            let plan = Plan {
                crashes: true,
                broker_faults: true,
                ..Plan::default()
            };
            let mut world = World::new(seed, plan);
            world.live(25_000);
            world.finish().unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
            world.restarts().len()
        };
        seeds.map(one).sum::<usize>()
    };
    let healed: usize = std::thread::scope(|scope| {
        let halves = [0..50, 50..100].map(|seeds| scope.spawn(move || healed(seeds)));
        halves.into_iter().map(|half| half.join().unwrap()).sum()
    });
    assert!(
        healed > 50,
        "the seeds broke too little to show anything: {healed} restarts"
    );
}

#[test]
fn the_seeds_notice_missing_safety() {
    for plan in [
        Plan {
            skip_send_offsets: true,
            ..Plan::default()
        },
        Plan {
            skip_fencing: true,
            stalls: true,
            ..Plan::default()
        },
    ] {
        let plan = Plan {
            crashes: true,
            broker_faults: true,
            ..plan
        };
        let broken = (0..100).any(|seed| {
            let mut world = World::new(seed, plan);
            world.live(25_000);
            world.finish().is_err()
        });
        assert!(broken, "nobody noticed {plan:?}");
    }
}

#[test]
fn when_all_telemetry_stops_nobody_is_restarted() {
    let mut world = World::new(3, Plan::default());
    world.run_for(40_000);
    world.telemetry = false;
    world.run_for(OUTAGE_MS);
    world.telemetry = true;
    world.run_for(40_000);
    assert!(world.restarts().is_empty(), "{:?}", world.restarts());
    world.finish().unwrap();
}

#[test]
fn when_half_of_the_fleet_falls_silent_at_once_nobody_is_restarted() {
    let mut world = World::new(4, Plan::default());
    world.run_for(40_000);
    world
        .services
        .iter_mut()
        .skip(3)
        .for_each(|service| service.muted = true);
    world.run_for(90_000);
    assert!(world.restarts().is_empty(), "{:?}", world.restarts());
    let held = world.refusals("fleet");
    assert!(held > 0, "the gate that holds is recorded");
    world.finish().unwrap();
}
