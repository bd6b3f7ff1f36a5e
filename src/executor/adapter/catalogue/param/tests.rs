use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::command::tests::{action, command};

fn params(value: Value) -> BTreeMap<String, Param> {
    serde_json::from_value(value).unwrap()
}

fn asked(service: &str, given: Value) -> Command {
    let mut action = action(service, 1);
    action.action.params = given.as_object().unwrap().clone();
    command(action, 1)
}

fn args(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn declarations_are_checked() {
    let integer = json!({"type": "integer", "min": 1, "max": 3});
    for (list, declared, expected) in [
        (vec!["{n}"], json!({"n": integer}), ""),
        (vec!["--a={n}-{service}", "{action_id}"], json!({"n": integer}), ""),
        (vec!["{m}"], json!({}), "{m} is no parameter"),
        (vec!["x"], json!({"n": integer}), "no argument has {n}"),
        (vec!["{n", "{n}"], json!({"n": integer}), "has a brace"),
        (vec!["}{n}"], json!({"n": integer}), "has a brace"),
        (vec!["{n}}"], json!({"n": integer}), "has a brace"),
        (vec!["{}"], json!({}), "has a brace"),
        (vec!["{service}"], json!({"service": integer}), "the name is taken"),
        (
            vec!["{n}"],
            json!({"n": {"type": "integer", "min": 3, "max": 1}}),
            "admit nothing",
        ),
        (
            vec!["{n}"],
            json!({"n": {"type": "word", "length_max": 0}}),
            "admit nothing",
        ),
        (
            vec!["{n}"],
            json!({"n": {"type": "choice", "one_of": []}}),
            "admit nothing",
        ),
        (
            vec!["{n}"],
            json!({"n": {"type": "integer", "min": 1, "max": 3, "default": 4}}),
            "default: 4 is not",
        ),
    ] {
        let declared = params(declared);
        let checked = declared.values().try_for_each(Param::check);
        let read = checked.and_then(|()| Template::read(&args(&list), &declared).map(|_| ()));
        match read {
            Ok(()) => assert_eq!(expected, "", "{list:?}"),
            Err(reason) => assert!(!expected.is_empty() && reason.contains(expected), "{list:?}: {reason}"),
        }
    }
}

#[test]
fn values_are_typed_and_bounded() {
    let declared = params(json!({
        "n": {"type": "integer", "min": 1, "max": 3, "default": 2},
        "x": {"type": "number", "min": 0.0, "max": 1.0, "default": 0.5},
        "w": {"type": "word", "length_max": 5, "default": "all"},
        "c": {"type": "choice", "one_of": ["--soft", "--hard"]},
    }));
    let template = Template::read(&args(&["{c}", "{n}:{x}", "{w}", "{service}"]), &declared).unwrap();
    for (given, expected) in [
        (json!({"c": "--soft"}), Ok(["--soft", "2:0.5", "all", "cart"])),
        (
            json!({"c": "--hard", "n": 3, "x": 1, "w": "a.b-1", "reason": "$(x)"}),
            Ok(["--hard", "3:1", "a.b-1", "cart"]),
        ),
        (json!({}), Err("\"c\" is missing")),
        (json!({"c": "--other"}), Err("one of")),
        (json!({"c": "--soft", "n": 4}), Err("from 1 to 3")),
        (json!({"c": "--soft", "n": 1.5}), Err("a whole number")),
        (json!({"c": "--soft", "n": "1"}), Err("a whole number")),
        (json!({"c": "--soft", "x": 1.01}), Err("from 0 to 1")),
        (json!({"c": "--soft", "w": "-rf"}), Err("a word")),
        (json!({"c": "--soft", "w": "../x"}), Err("a word")),
        (json!({"c": "--soft", "w": "a b"}), Err("a word")),
        (json!({"c": "--soft", "w": "abcdef"}), Err("at most 5")),
        (json!({"c": "--soft", "other": 1}), Err("\"other\" is none")),
    ] {
        let filled = template.fill(&declared, &asked("cart", given.clone()));
        match (filled, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(reason), Err(part)) => assert!(reason.contains(part), "{reason}"),
            (filled, _) => panic!("{given}: {filled:?}"),
        }
    }
    for name in ["-rf", "a/b", "a b", "$(x)"] {
        let reason = template
            .fill(&declared, &asked(name, json!({"c": "--soft"})))
            .unwrap_err();
        assert!(reason.contains("no word"), "{reason}");
    }
}

proptest! {
    #[test]
    fn whatever_is_given_an_argument_stays_one_argument_and_no_option(text in ".{0,40}") {
        let declared = params(json!({"w": {"type": "word", "length_max": 30}}));
        let template = Template::read(&args(&["{w}"]), &declared).unwrap();
        if let Ok(filled) = template.fill(&declared, &asked("cart", json!({"w": text}))) {
            prop_assert_eq!(&filled, &[text]);
            prop_assert!(!filled[0].starts_with('-') && !filled[0].contains(['/', ' ', '\0', '$', '\n']));
        }
    }

    #[test]
    fn any_argument_is_read_or_refused(text in ".{0,40}") {
        let _ = parts(&text);
    }
}
