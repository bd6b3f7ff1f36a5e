use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::command::tests::{action, command};

fn entry(text: &str) -> Allow {
    serde_json::from_value(serde_json::from_str(text).unwrap()).unwrap()
}

fn with_params(params: serde_json::Value) -> Command {
    let mut action = action("cart", 1);
    action.action.params = params.as_object().unwrap().clone();
    command(action, 1)
}

#[test]
fn an_empty_list_permits_nothing() {
    assert!(matches!(permit(&[], &with_params(json!({}))), Err(Denied::Unlisted(_))));
}

#[test]
fn action_and_target_must_fit() {
    let list = [
        entry(r#"{"action":"scale","target":"*","adapter":"log"}"#),
        entry(r#"{"action":"restart","target":"ca*","adapter":"process"}"#),
    ];
    assert_eq!(
        permit(&list, &with_params(json!({"reason": "x"}))).unwrap().adapter,
        AdapterKind::Process
    );
    assert!(permit(&list, &command(action("payment", 1), 1)).is_err());
}

#[test]
fn parameters_stay_within_bounds() {
    let list = [entry(
        r#"{"action":"restart","target":"*","adapter":"log",
            "params":{"grace_s":{"min":0,"max":60},"strategy":{"one_of":["rolling",null]},"nothing":{}}}"#,
    )];
    let permitted = |params| permit(&list, &with_params(params)).map(|_| ());
    for good in [
        json!({}),
        json!({"grace_s": 60}),
        json!({"grace_s": 0.5, "strategy": "rolling"}),
        json!({"strategy": null}),
    ] {
        assert_eq!(permitted(good.clone()), Ok(()), "{good}");
    }
    for bad in [
        json!({"grace_s": 61}),
        json!({"grace_s": "5"}),
        json!({"strategy": "all"}),
        json!({"nothing": 1}),
        json!({"unlisted": 1}),
        json!({"reason": 1}),
        json!({"reason": "x".repeat(2000)}),
    ] {
        let Err(Denied::OutOfBounds(reason)) = permitted(bad.clone()) else {
            panic!("{bad}");
        };
        assert!(reason.contains("parameter"), "{bad}: {reason}");
    }
}

#[test]
fn patterns() {
    for (pattern, text, fits) in [
        ("*", "", true),
        ("cart", "cart", true),
        ("cart", "carts", false),
        ("ca*", "cart", true),
        ("*rt", "cart", true),
        ("c*r*t", "cart", true),
        ("c*x*t", "cart", false),
        ("ab*ba", "aba", false),
        ("", "cart", false),
    ] {
        assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
    }
}

proptest! {
    #[test]
    fn a_pattern_made_from_a_text_fits_it(parts in proptest::collection::vec("[a-c]{0,3}", 1..5), fill in "[a-c]{0,3}") {
        prop_assert!(matches(&parts.join("*"), &parts.join(&fill)));
    }

    #[test]
    fn a_pattern_without_star_fits_itself_only(pattern in "[a-c|.]{0,4}", text in "[a-c|.]{0,4}") {
        prop_assert_eq!(matches(&pattern, &text), pattern == text);
    }
}
