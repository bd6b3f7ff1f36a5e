//! A level that a detector has accepted is told once, whatever dies meanwhile, and nothing is done about it.

use crate::world::{Plan, World};

const PACE: &str = "
CREATE FEATURE VIEW pace AS
SELECT service, window_start, window_end, avg(ms) AS mean
FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '1' SECOND)
GROUP BY service, window_start, window_end;

CREATE DETECTOR level ON pace KEY (service) FEATURES (mean) USING auto WITH (tier = 'lean', warmup = 30);
";

fn told(seed: u64, kills: bool) -> Vec<(String, String, f64, f64)> {
    let mut world = World::versioned(seed, Plan::default(), PACE);
    world.run_for(60_000);
    world.services[3].slower_ms = 5_000.0;
    world.services[5].slower_ms = 5_000.0;
    world.run_for(3_000);
    // One was a spike.
    world.services[5].slower_ms = 0.0;
    for _ in 0..9 {
        world.run_for(20_000);
        if kills {
            world.kill_all();
        }
    }
    world.run_for(60_000);
    world.finish().unwrap();
    assert_eq!(world.count("dead_letters"), 0, "decide reads past it");
    assert!(world.commands().is_empty(), "nothing is done about it");
    world.level_shifts()
}

#[test]
fn a_level_shift_is_told_once_through_kills() {
    let undisturbed = told(401, false);
    let [(service, feature, old_level, new_level)] = &undisturbed[..] else {
        panic!("told of {undisturbed:?}");
    };
    assert_eq!((service.as_str(), feature.as_str()), ("s3", "mean"));
    assert!((old_level - 250.0).abs() < 50.0, "{old_level}");
    assert!((new_level - 5_250.0).abs() < 50.0, "{new_level}");
    assert_eq!(
        told(401, true),
        undisturbed,
        "what is told does not depend on what dies"
    );
}
