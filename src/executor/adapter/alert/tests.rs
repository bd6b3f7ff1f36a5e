use super::*;
use crate::{
    adapter::webhook::tests::{pending, receiver},
    command::tests::{action, command},
};

fn to(kind: &str, url: &str, more: Value) -> Receiver {
    let mut text = json!({"name": "oncall", "kind": kind, "url": url});
    for (key, value) in more.as_object().unwrap() {
        text[key] = value.clone();
    }
    serde_json::from_value(text).unwrap()
}

/// One alert to a server on the way, and what that server received: the line of the request, and the body.
fn told(kind: &str, more: Value, params: Value) -> (Command, String, Value) {
    let (url, requests) = receiver(&[202]);
    let url = url.strip_suffix("/hook").unwrap().to_owned();
    let mut action = pending(5_000).action;
    action.action.kind = "page".into();
    action.action.params = params.as_object().unwrap().clone();
    let command = command(action, 1);
    let adapter = AlertAdapter::new(&to(kind, &url, more)).unwrap();
    adapter.knows(&command).unwrap();
    let effect = adapter.act(&command, &Before::new()).unwrap();
    assert_eq!(
        (&effect["endpoint"], &effect["status"]),
        (&json!("oncall"), &json!(202))
    );
    let request = requests.lock().unwrap()[0].clone();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(
        head.to_ascii_lowercase().contains("content-type: application/json"),
        "{head}"
    );
    let line = head.lines().next().unwrap().to_owned();
    (command, line, serde_json::from_str(body).unwrap())
}

#[test]
fn alertmanager_gets_an_alert_with_labels_to_route_by() {
    let more = json!({"labels": {"team": "shop", "severity": "none"}, "lasts_ms": 60_000});
    let (command, line, body) = told("alertmanager", more, json!({"reason": "p99 anomaly"}));
    assert_eq!(line, "POST /api/v2/alerts HTTP/1.1");
    let timing = &command.action.timing;
    assert_eq!(
        body,
        json!([{
            "labels": {
                "team": "shop", "severity": "error", "alertname": "page", "service": "cart", "tenant": "homeostat",
                "policy": command.action.explain.policy, "detector": command.action.explain.detector,
                "incident_id": command.action.incident_id, "action_id": command.id(),
            },
            "annotations": {"summary": "page of cart: p99 anomaly", "score": command.action.explain.score.to_string()},
            "startsAt": to_rfc3339(timing.decided_at),
            "endsAt": to_rfc3339(timing.decided_at + 60_000),
        }])
    );
}

#[test]
fn slack_gets_a_text_that_calls_nobody_by_itself() {
    let (command, line, body) = told(
        "slack",
        json!({}),
        json!({"severity": "critical", "reason": "<!channel> & more"}),
    );
    assert_eq!(line, "POST / HTTP/1.1");
    let text = body["text"].as_str().unwrap();
    assert!(
        text.starts_with("*critical* page of cart: &lt;!channel&gt; &amp; more\n"),
        "{text}"
    );
    assert!(
        text.contains(&format!("action_id: {}", command.id())) && !text.contains('<'),
        "{text}"
    );
}

#[test]
fn pagerduty_gets_an_event_under_the_actions_id() {
    // A variable that is always there stands for the secret.
    let more = json!({"routing_key_env": "PATH"});
    let (command, _, body) = told("pagerduty", more, json!({"severity": "warning"}));
    let explain = &command.action.explain;
    assert_eq!(body["routing_key"], env::var("PATH").unwrap());
    assert_eq!(body["event_action"], "trigger");
    assert_eq!(body["dedup_key"], command.id().to_string());
    let payload = &body["payload"];
    assert_eq!(payload["severity"], "warning");
    assert_eq!(
        payload["summary"],
        format!("page of cart: {} is firing", explain.detector)
    );
    assert_eq!(
        (&payload["component"], &payload["class"]),
        (&json!("cart"), &json!(explain.detector))
    );
    assert_eq!(payload["source"], command.action.target.key);
    assert_eq!(payload["timestamp"], to_rfc3339(command.action.timing.decided_at));
    assert_eq!(
        payload["custom_details"]["incident_id"],
        command.action.incident_id.to_string()
    );
}

#[test]
fn a_repetition_is_made_where_the_receiver_can_tell() {
    let command = command(action("cart", 1), 1);
    let more = json!({"routing_key_env": "PATH"});
    for (receiver, repeatable) in [
        (to("alertmanager", "http://127.0.0.1:1", json!({})), true),
        (to("pagerduty", "http://127.0.0.1:1", more), true),
        (to("slack", "http://127.0.0.1:1", json!({})), false),
    ] {
        let adapter = AlertAdapter::new(&receiver).unwrap();
        assert_eq!(adapter.reconcile(&command, None), Reconciled::NotDone);
        let found = adapter.reconcile(&command, Some(&Before::new()));
        assert_eq!(found == Reconciled::Repeatable, repeatable, "{found:?}");
    }
}

#[test]
fn a_message_without_an_answer_is_sent_once_and_an_alert_until_it_has_arrived() {
    let (url, requests) = receiver(&[0, 200]);
    let failure = AlertAdapter::new(&to("slack", &url, json!({})))
        .unwrap()
        .act(&pending(5_000), &Before::new())
        .unwrap_err();
    assert!(
        matches!(&failure, Failure::Unknown(reason) if !reason.contains("http://")),
        "the URL is a secret: {failure:?}"
    );
    assert_eq!(requests.lock().unwrap().len(), 1);
    let (url, requests) = receiver(&[500, 0, 200]);
    let alert = AlertAdapter::new(&to("alertmanager", &url, json!({}))).unwrap();
    alert.act(&pending(20_000), &Before::new()).unwrap();
    let bodies: Vec<String> = requests
        .lock()
        .unwrap()
        .iter()
        .map(|request| request.split_once("\r\n\r\n").unwrap().1.to_owned())
        .collect();
    assert!(bodies.len() == 3 && bodies.iter().all(|body| *body == bodies[0]));
}

#[test]
fn parameters_are_severity_and_reason() {
    let adapter = AlertAdapter::new(&to("slack", "http://127.0.0.1:1", json!({}))).unwrap();
    for (params, expected) in [
        (json!({"severity": "info", "reason": "x"}), None),
        (json!({"severity": "high"}), Some("not one of critical, error")),
        (json!({"severity": 1}), Some("not one of")),
        (json!({"channel": "#all"}), Some("\"channel\" is none")),
    ] {
        let mut action = action("cart", 1);
        action.action.params = params.as_object().unwrap().clone();
        let knows = adapter.knows(&command(action, 1));
        match expected {
            None => assert_eq!(knows, Ok(())),
            Some(part) => assert!(knows.unwrap_err().reason.contains(part), "{params}"),
        }
    }
}

#[test]
fn a_wrong_receiver_is_refused_at_the_start() {
    let x = "http://x";
    for (receiver, expected) in [
        (to("slack", "x", json!({})), "no http or https URL"),
        (to("slack", x, json!({"url_env": "X"})), "both set"),
        (
            to("slack", x, json!({"url": null, "url_env": "HOMEOSTAT_TEST_UNSET"})),
            "HOMEOSTAT_TEST_UNSET is not set",
        ),
        (to("slack", x, json!({"url": null})), "url or url_env is missing"),
        (to("slack", x, json!({"labels": {"a": "b"}})), "labels are for"),
        (to("slack", x, json!({"routing_key_env": "X"})), "is for kind"),
        (to("pagerduty", x, json!({})), "routing_key_env is missing"),
        (
            to("alertmanager", x, json!({"severity": "high"})),
            "severity = \"high\"",
        ),
        (to("alertmanager", x, json!({"timeout_ms": 0})), "timeout_ms = 0"),
        (to("alertmanager", x, json!({"lasts_ms": 1})), "lasts_ms = 1"),
        (
            to(
                "alertmanager",
                x,
                json!({"header_env": {"authorization": "HOMEOSTAT_TEST_UNSET"}}),
            ),
            "is not set",
        ),
    ] {
        let error = AlertAdapter::new(&receiver).err().unwrap().to_string();
        assert!(error.contains(expected) && error.contains("\"oncall\""), "{error}");
    }
}
