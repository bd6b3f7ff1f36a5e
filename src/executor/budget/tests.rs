use super::*;

fn rule(action: &str, target: &str, actions_max: u32) -> Rule {
    Rule {
        action: action.into(),
        target: target.into(),
        actions_max,
        window_ms: 100,
    }
}

#[test]
fn every_rule_that_is_for_an_action_must_have_room() {
    let bounds = Bounds {
        budget: vec![rule("*", "*", 3), rule("restart", "cart-*", 1), rule("scale", "*", 2)],
        breaker: BreakerConfig {
            failures_max: 1,
            open_ms: 1,
        },
    };
    let starts = |all: &[(i64, &str, &str)]| -> Vec<Start> {
        let start = |(at_ms, action, service): &(i64, &str, &str)| Start {
            at_ms: *at_ms,
            action: (*action).into(),
            service: (*service).into(),
        };
        all.iter().map(start).collect()
    };
    let cart = (950, "restart", "cart-1");
    for (started, action, service, fits) in [
        (vec![], "restart", "cart-1", true),
        (vec![cart], "restart", "cart-1", false),
        (vec![cart], "restart", "cart-2", false),
        (vec![cart], "restart", "web", true),
        (vec![cart], "stop", "cart-1", true),
        (
            vec![cart, (951, "scale", "web"), (952, "scale", "web")],
            "stop",
            "db",
            false,
        ),
        (vec![(901, "restart", "cart-1")], "restart", "cart-1", false),
        (vec![(900, "restart", "cart-1")], "restart", "cart-1", true),
        (vec![(1_099, "restart", "cart-1")], "restart", "cart-1", false),
        (vec![(1_100, "restart", "cart-1")], "restart", "cart-1", true),
    ] {
        let room = bounds.room(&starts(&started), action, service, 1_000);
        assert_eq!(room.is_ok(), fits, "{action} on {service} after {started:?}: {room:?}");
    }
}

/// What happens to a breaker that opens after two failures, for 100 ms, and whether the next one may start.
#[test]
fn a_breaker_opens_after_failures_in_a_row_and_lets_one_through() {
    use Ending::{Failed, SaysNothing, Worked};
    const CONFIG: BreakerConfig = BreakerConfig {
        failures_max: 2,
        open_ms: 100,
    };
    let id = |number: usize| Uuid::from_u128(number as u128);
    type Case<'a> = (&'a [(i64, Ending)], i64, bool);
    let cases: &[Case<'_>] = &[
        (&[], 0, true),
        (&[(0, Failed)], 1, true),
        (&[(0, Failed), (1, Failed)], 2, false),
        (&[(0, Failed), (1, Worked), (2, Failed)], 3, true),
        (&[(0, Failed), (1, SaysNothing), (2, Failed)], 3, false),
        (&[(0, Failed), (1, Failed)], 100, false),
        (&[(0, Failed), (1, Failed)], 101, true),
        // Half open: the one that was let through decides.
        (&[(0, Failed), (1, Failed), (101, Failed)], 102, false),
        (&[(0, Failed), (1, Failed), (101, Failed)], 201, true),
        (&[(0, Failed), (1, Failed), (101, Worked)], 102, true),
        (&[(0, Failed), (1, Failed), (101, SaysNothing)], 102, true),
        // The clock was set back by far.
        (&[(9_000, Failed), (9_001, Failed)], 1, true),
    ];
    for (ended, now_ms, admitted) in cases {
        let mut breaker = Breaker::default();
        for (number, (at_ms, how)) in ended.iter().enumerate() {
            breaker.admit(CONFIG, "lane", id(number), *at_ms).unwrap();
            breaker.ended(id(number), *how, *at_ms);
        }
        let found = breaker.admit(CONFIG, "lane", id(99), *now_ms);
        assert_eq!(found.is_ok(), *admitted, "{ended:?} at {now_ms}: {found:?}");
    }
    let mut breaker = Breaker {
        failures: 2,
        ..Breaker::default()
    };
    breaker.admit(CONFIG, "lane", id(1), 100).unwrap();
    breaker.admit(CONFIG, "lane", id(2), 199).unwrap_err();
    breaker.admit(CONFIG, "lane", id(1), 199).unwrap();
    breaker.admit(CONFIG, "lane", id(2), 299).unwrap();
}
