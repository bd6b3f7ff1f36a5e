//! Scenario 6: state that cannot be read back is said to be so, value by value, before anything is decided on it.

use super::{World, key_of};
use crate::{Choice, Fleet, FleetConfig, Policy};

#[test]
fn scenario_06_state_that_cannot_be_read_stops_the_fleet_before_it_decides() {
    let config = FleetConfig {
        startup_grace: std::time::Duration::ZERO,
        settle: std::time::Duration::ZERO,
        settle_silent: std::time::Duration::ZERO,
        ..FleetConfig::default()
    };
    let policy = Policy::new("shop", "heal", "slow", Choice::Fixed("restart".into()));
    let mut world = World::new(config.clone(), vec![policy.clone()]);
    for _ in 0..10 {
        world.second();
    }
    world.window("slow", "cart", 2.0, &["heal"], &[]);
    assert!(world.store.len() >= 4, "{:?}", world.store.keys());
    assert!(
        world
            .store
            .values()
            .any(|value| String::from_utf8_lossy(value).contains(&key_of("cart")))
    );
    for (key, value) in &world.store {
        let mut fleet = Fleet::new(config.clone(), [policy.clone()]);
        for broken in [&value[..value.len() - 1], b"\xff\x00", b"[]x"] {
            let refused = fleet.restore(key, Some(broken));
            assert!(refused.is_err(), "{} = {broken:?}", String::from_utf8_lossy(key));
        }
    }
    let mut fleet = Fleet::new(config, [policy]);
    assert!(fleet.restore(b"decide/nobody-knows-this", Some(b"{}")).is_err());
}
