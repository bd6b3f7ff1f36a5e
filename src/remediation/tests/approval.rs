//! A grant is for exactly what was shown, by whom it says, once.

use std::time::Duration;

use protocol::message::{ApprovalRecord, Control, Mode};

use super::{World, key_of, words};
use crate::{Approver, Choice, Fleet, FleetConfig, Input, Message, Policy, Standing};

fn asked() -> World {
    let config = FleetConfig {
        startup_grace: Duration::ZERO,
        settle: Duration::ZERO,
        settle_silent: Duration::ZERO,
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
        until: None,
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
        standing: Standing::Anybody,
    }))
}

#[test]
fn an_answer_to_another_proposal_does_not_count() {
    let mut world = asked();
    let refused = format!("{REFUSED} ada does not count: it is to another proposal");
    assert_eq!(
        answer(&mut world, |data| data.payload_sha256 = "0".repeat(64)),
        [refused.as_str()]
    );
    assert_eq!(
        answer(&mut world, |data| data.approval_id = uuid::Uuid::nil()),
        [refused.as_str()]
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

fn approver(name: &str, roles: &[&str]) -> Approver {
    Approver {
        name: name.into(),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
    }
}

fn granted(world: &mut World, by: &str, standing: Standing<'_>) -> Vec<String> {
    let mut data = world.requests["cart"].clone();
    data.by = Some(by.into());
    let event = world.event(protocol::cloudevent::APPROVAL_GRANTED, &key_of("cart"));
    said(&world.feed(Message::Approval {
        event: &event,
        data: &data,
        standing,
    }))
}

fn revoke(world: &mut World, name: &str, revoked: bool) -> Vec<String> {
    said(&world.control(&Control::Approver {
        name: name.into(),
        revoked,
        by: "grace".into(),
        reason: String::new(),
    }))
}

fn thresholds(world: &mut World, key: &str, value: serde_json::Value) {
    world.control(&Control::Thresholds {
        service: "cart".into(),
        action: "restart".into(),
        set: [(key.to_owned(), value)].into_iter().collect(),
        by: "grace".into(),
        reason: String::new(),
    });
}

const REFUSED: &str = "approval refused cart: the answer of";

#[test]
fn who_is_unknown_or_revoked_approves_nothing() {
    let mut world = asked();
    let ada = approver("ada", &[]);
    assert_eq!(
        granted(&mut world, "eve", Standing::Refused("unsigned")),
        [format!("{REFUSED} eve does not count: unsigned")]
    );
    revoke(&mut world, "ada", true);
    assert_eq!(
        granted(&mut world, "ada", Standing::Approver(&ada)),
        [format!(
            "{REFUSED} ada does not count: ada may no longer approve, says grace"
        )]
    );
    revoke(&mut world, "ada", false);
    assert!(granted(&mut world, "ada", Standing::Approver(&ada)).contains(&"command restart cart 1/1".to_owned()));
}

#[test]
fn an_answer_needs_a_role_where_one_is_asked_for() {
    let mut world = asked();
    thresholds(&mut world, "approval_roles", serde_json::json!(["sre", "owner"]));
    let (ada, bob) = (approver("ada", &["owner"]), approver("bob", &["intern"]));
    for standing in [Standing::Approver(&bob), Standing::Anybody] {
        assert_eq!(
            granted(&mut world, "bob", standing),
            [format!(
                "{REFUSED} bob does not count: bob has none of the roles sre, owner"
            )]
        );
    }
    assert!(granted(&mut world, "ada", Standing::Approver(&ada)).contains(&"command restart cart 1/1".to_owned()));
}

/// What the second person agrees to is no longer what two agreed to.
#[test]
fn who_is_revoked_before_the_quorum_is_full_has_not_agreed() {
    let mut world = asked();
    thresholds(&mut world, "approval_quorum", serde_json::json!(2));
    let names = ["ada", "bob", "eva"].map(|name| approver(name, &[]));
    assert!(granted(&mut world, "ada", Standing::Approver(&names[0])).is_empty());
    revoke(&mut world, "ada", true);
    assert!(granted(&mut world, "bob", Standing::Approver(&names[1])).is_empty());
    assert!(granted(&mut world, "eva", Standing::Approver(&names[2])).contains(&"command restart cart 1/1".to_owned()));
}

#[test]
fn answers_that_do_not_count_are_counted() {
    let mut world = asked();
    let mut data = world.requests["cart"].clone();
    data.by = Some("eve".into());
    let event = world.event(protocol::cloudevent::APPROVAL_GRANTED, &key_of("cart"));
    let mut fleet = Fleet::new(FleetConfig::default(), []);
    for _ in 0..2 {
        let message = Message::Approval {
            event: &event,
            data: &data,
            standing: Standing::Refused("unsigned"),
        };
        fleet.apply(Input { broker_ms: 1, message }, &mut Vec::new());
    }
    let mut refused = 0.0;
    fleet.observe(&mut |name, _, value| {
        if name == "answers_refused_total" {
            refused = value;
        }
    });
    assert!((refused - 2.0_f64).abs() < f64::EPSILON);
}
