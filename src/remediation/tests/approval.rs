//! A grant is for exactly what was shown, by whom it says, once.

use std::time::Duration;

use protocol::message::{ApprovalRecord, Control, Mode};

use super::{World, key_of, words};
use crate::{Choice, FleetConfig, Message, Policy};

fn asked() -> World {
    let config = FleetConfig {
        startup_grace: Duration::ZERO,
        settle: Duration::ZERO,
        ..FleetConfig::default()
    };
    let policy = Policy {
        latched: true,
        ..Policy::new("shop", "heal", "silent", Choice::Fixed("restart".into()))
    };
    let mut world = World::new(config, vec![policy]);
    world.control(&Control::Mode {
        service: "*".into(),
        action: "*".into(),
        mode: Mode::Auto,
        by: "someone".into(),
        reason: String::new(),
    });
    (0..10).for_each(|_| drop(world.second()));
    world.window("silent", "cart", 1.0, &["heal"], &[]);
    assert!(world.requests.contains_key("cart"));
    world
}

fn said(effects: &[crate::Effect]) -> Vec<String> {
    effects.iter().filter_map(words).collect()
}

fn answer(world: &mut World, change: impl FnOnce(&mut ApprovalRecord)) -> Vec<String> {
    let mut data = world.requests["cart"].clone();
    data.by = Some("ada".into());
    change(&mut data);
    let event = world.event(protocol::cloudevent::APPROVAL_GRANTED, &key_of("cart"));
    said(&world.feed(Message::Approval {
        event: &event,
        data: &data,
    }))
}

#[test]
fn an_answer_to_another_proposal_does_not_count() {
    let mut world = asked();
    let too_late = "approval expired cart: the answer of ada came too late: the answer is to another proposal";
    assert_eq!(
        answer(&mut world, |data| data.payload_sha256 = "0".repeat(64)),
        [too_late]
    );
    assert_eq!(
        answer(&mut world, |data| data.approval_id = uuid::Uuid::nil()),
        [too_late]
    );
    assert!(answer(&mut world, |data| data.by = None)[0].starts_with("unusable: answer"));
    assert!(answer(&mut world, |_| {}).contains(&"command restart cart 1/1".to_owned()));
}

/// The policy's parameters changed between the question and the answer: the yes was to something else, so it is asked again.
#[test]
fn a_grant_does_not_cover_what_the_policy_became() {
    let mut world = asked();
    world.policies[0].params.insert("grace_s".into(), 0.into());
    world.fleet.set_policies(world.policies.clone());
    let effects = answer(&mut world, |_| {});
    assert_eq!(
        effects,
        [
            "approval expired cart: the policy changed after the request",
            "ask restart cart",
            "approval requested cart: please",
        ]
    );
    assert!(answer(&mut world, |_| {}).contains(&"command restart cart 1/2".to_owned()));
}
