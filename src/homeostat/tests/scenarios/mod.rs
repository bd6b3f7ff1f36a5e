//! Fault scenarios of `docs/scenarios.md` that need the whole walk: the broker away, upgrades, floods, wrong clocks. Numbers in names
//! are the scenarios'.

use kafka::memory::Operation;

use crate::world::{Pace, Plan, World};

const COOLDOWN_MS: i64 = 10_000;

fn calm(seed: u64) -> World {
    let plan = Plan {
        honours_expiry: true,
        ..Plan::default()
    };
    let mut world = World::new(seed, plan);
    world.run_for(40_000);
    world
}

fn restarted(world: &World) -> Vec<(String, u32)> {
    world.restarts().into_iter().collect()
}

fn once(service: &str) -> Vec<(String, u32)> {
    vec![(service.to_owned(), 1)]
}

/// I4: what was done to one service lies at least a cooldown apart, by the broker's time.
fn keeps_cooldowns(world: &World) {
    let commands = world.commands();
    for (at, (id, service, at_ms)) in commands.iter().enumerate() {
        let before = commands[..at].iter().rev().find(|(_, name, _)| name == service);
        if let Some((_, _, before_ms)) = before {
            assert!(
                at_ms - before_ms >= COOLDOWN_MS,
                "{id} came {} ms after the last",
                at_ms - before_ms
            );
        }
    }
}

/// I7: nothing was commanded that no decision on record explains.
fn every_command_is_decided_on_record(world: &World) {
    let decided = world.decided();
    for (id, service, _) in world.commands() {
        assert!(decided.contains(&id), "{id} on {service} has no decision");
    }
}

#[test]
fn scenario_01_a_broker_that_takes_no_writes_loses_nothing() {
    let mut world = calm(101);
    world.fail(|operation| {
        matches!(
            operation,
            Operation::Begin | Operation::Send | Operation::SendOffsets | Operation::Commit
        )
    });
    world.run_for(20_000);
    world.services[2].crash();
    world.run_for(20_000);
    assert!(world.commands().is_empty(), "nothing can be said");
    world.heal();
    world.run_for(60_000);
    assert_eq!(restarted(&world), once("s2"));
    every_command_is_decided_on_record(&world);
    world.finish().unwrap();
}

#[test]
fn scenario_02_after_ten_minutes_without_kafka_only_what_is_still_broken_is_healed() {
    let mut world = calm(102);
    world.fail(|_| true);
    world.telemetry = false;
    world.run_for(60_000);
    world.services[2].crash();
    let up_ms = world.now_ms() + 120_000;
    world.services[5].crash_until(up_ms);
    world.run_for(540_000);
    world.heal();
    world.telemetry = true;
    world.run_for(120_000);
    assert_eq!(restarted(&world), once("s2"));
    world.finish().unwrap();
}

#[test]
fn scenario_05_an_upgrade_under_load_keeps_cooldowns_and_acts_once() {
    let mut world = calm(105);
    world.services[2].crash();
    world.upgrade(2_000);
    world.run_for(30_000);
    assert_eq!(restarted(&world), once("s2"));
    world.services[2].crash();
    world.upgrade(700);
    world.run_for(60_000);
    assert_eq!(restarted(&world), vec![("s2".to_owned(), 2)]);
    keeps_cooldowns(&world);
    world.finish().unwrap();
}

#[test]
fn scenario_11_telemetry_played_ten_times_gives_the_same_commands() {
    let commands = |copies: u32| {
        let mut world = World::new(111, Plan::default());
        world.services.iter_mut().for_each(|service| service.copies = copies);
        world.run_for(40_000);
        world.services[2].crash();
        world.run_for(60_000);
        world.finish().unwrap();
        let ids: Vec<String> = world.commands().into_iter().map(|(id, _, _)| id).collect();
        ids
    };
    let (once, ten_times) = (commands(1), commands(10));
    assert_eq!(once.len(), 1);
    assert_eq!(once, ten_times, "I8: ids are those of one life");
}

#[test]
fn scenario_13_clocks_ten_minutes_off_heal_nobody_and_hide_nobody() {
    let mut world = calm(113);
    world.services[1].skew_ms = 600_000;
    world.services[3].skew_ms = -600_000;
    world.run_for(30_000);
    assert!(world.restarts().is_empty(), "{:?}", world.restarts());
    assert!(
        world.count("dead_letters") > 0,
        "what comes from the future is put aside"
    );
    assert!(world.count("late") > 0, "what comes from the past is late");
    world.services[5].crash();
    world.run_for(60_000);
    assert_eq!(restarted(&world), once("s5"));
}

#[test]
fn scenario_15_a_flood_on_one_key_delays_nobody_elses_healing() {
    let mut world = calm(115);
    world.services[0].copies = 100;
    world.run_for(5_000);
    world.services[5].crash();
    world.run_for(20_000);
    assert_eq!(restarted(&world), once("s5"));
    world.services[0].copies = 1;
    world.run_for(20_000);
    assert_eq!(restarted(&world), once("s5"));
    world.finish().unwrap();
}

#[test]
fn scenario_31_a_healer_that_keeps_crashing_keeps_its_limits() {
    let mut world = calm(131);
    // Three actions at a service within fifteen minutes are the default.
    for round in 1..=3 {
        world.services[2].crash();
        let until_ms = world.now_ms() + 60_000;
        while world.restarts().get("s2") != Some(&round) {
            assert!(world.now_ms() < until_ms, "round {round}: nobody healed s2");
            world.run_for(500);
        }
        // Dead before it could remember anything that it has not committed.
        world.kill_all();
        world.run_for(2_000);
    }
    keeps_cooldowns(&world);
    // The last one is judged first: what fails while it is being judged is a person's.
    world.run_for(40_000);
    world.services[2].crash();
    for _ in 0..2 {
        world.run_for(60_000);
        world.kill_all();
    }
    world.run_for(60_000);
    assert_eq!(
        restarted(&world),
        vec![("s2".to_owned(), 3)],
        "the fourth is over the limit"
    );
    assert!(world.refused_by().contains("limit"), "{:?}", world.refused_by());
    every_command_is_decided_on_record(&world);
}

/// The executor of this world remembers nothing: a command that comes twice is done twice, and counted.
#[test]
#[ignore = "takes a minute: make soak"]
fn a_thousand_kills_of_processors_double_no_effect() {
    let (mut kills, mut effects) = (0, 0);
    for seed in 0..20 {
        let mut world = calm(1_000 + seed);
        for round in 0..50 {
            // More at once would be a storm, which the gates hold.
            if round % 25 == 0 {
                world.services[round as usize / 25 * 3].crash();
            }
            world.run_for(200 + i64::from(round % 7) * 150);
            world.kill_one();
            kills += 1;
        }
        world.run_for(60_000);
        world.finish().unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
        effects += world.restarts().values().sum::<u32>();
    }
    println!("{kills} kills, {effects} effects, none twice");
    assert!(kills >= 1_000 && effects >= 40, "{kills} kills, {effects} effects");
}

#[test]
fn scenario_40_without_a_place_for_the_record_nothing_is_done() {
    let mut world = calm(140);
    world.fail(|operation| operation == Operation::Send);
    world.services[2].crash();
    world.run_for(60_000);
    assert!(world.restarts().is_empty(), "no act without its record");
    world.heal();
    world.run_for(60_000);
    assert_eq!(restarted(&world), once("s2"));
    every_command_is_decided_on_record(&world);
    world.finish().unwrap();
}

#[test]
fn scenario_42_ten_minutes_without_faults_do_nothing() {
    let mut world = calm(142);
    world.run_for(10 * 60_000);
    assert!(world.commands().is_empty(), "{:?}", world.commands());
    world.finish().unwrap();
}

#[test]
#[ignore = "a day takes minutes: make soak"]
fn scenario_42_a_day_without_faults_does_nothing() {
    let mut world = calm(143);
    world.pace = Pace::EASY;
    for _ in 0..24 {
        world.run_for(3_600_000);
        assert!(world.commands().is_empty(), "{:?}", world.commands());
    }
    world.finish().unwrap();
}
