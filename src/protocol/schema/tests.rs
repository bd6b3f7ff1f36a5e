use std::{collections::BTreeMap, sync::LazyLock};

use jsonschema::Validator;
use proptest::{prelude::*, strategy::ValueTree};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::*;
use crate::{Target, message::*};

static VALIDATORS: LazyLock<BTreeMap<&'static str, Validator>> = LazyLock::new(|| {
    let compile = |(file, text): &(&'static str, &str)| {
        let schema: Value = serde_json::from_str(text).expect("schemas are JSON");
        let validator = jsonschema::options().should_validate_formats(true).build(&schema);
        (*file, validator.unwrap_or_else(|error| panic!("{file}: {error}")))
    };
    ALL.iter().map(compile).collect()
});

fn validator(file: &str) -> &'static Validator {
    &VALIDATORS[file]
}

/// Fits the schema, and reads back as what it was.
fn fits<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(kind: &str, data: &T) {
    let value = serde_json::to_value(data).unwrap();
    let file = schema_for(kind).unwrap();
    let errors: Vec<String> = validator(file)
        .iter_errors(&value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{file} does not fit {value}: {errors:?}");
    assert_eq!(&serde_json::from_value::<T>(value).unwrap(), data);
}

#[test]
fn every_schema_is_valid_and_named_after_its_file() {
    for (file, text) in ALL {
        let schema: Value = serde_json::from_str(text).unwrap();
        assert_eq!(schema["$id"], json!(file));
        assert_eq!(schema["$schema"], json!("https://json-schema.org/draft/2020-12/schema"));
        jsonschema::meta::validate(&schema).unwrap_or_else(|error| panic!("{file}: {error}"));
        validator(file);
    }
}

#[test]
fn types_that_are_not_ours_have_no_schema() {
    for kind in ["com.example.thing", "dev.homeostat.outcome.succeeded.v2", ""] {
        assert_eq!(schema_for(kind), None, "{kind}");
    }
    assert_eq!(
        schema_for("dev.homeostat.outcome.succeeded.v1"),
        Some("outcome.v1.json")
    );
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn uuids() -> impl Strategy<Value = Vec<Uuid>> {
    prop::collection::vec(uuid(), 0..3)
}

/// Wall clocks of the years 1 to 9999.
fn time() -> impl Strategy<Value = i64> {
    -60_000_000_000_000i64..253_402_300_799_000
}

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9_.-]{0,12}"
}

fn words() -> impl Strategy<Value = String> {
    ".{0,20}"
}

fn number() -> impl Strategy<Value = f64> {
    -1e9..1e9f64
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number().prop_map(Value::from),
        words().prop_map(Value::from),
    ]
}

fn scalars() -> impl Strategy<Value = BTreeMap<String, Value>> {
    prop::collection::btree_map(name(), scalar(), 0..3)
}

fn map() -> impl Strategy<Value = Map<String, Value>> {
    scalars().prop_map(|map| map.into_iter().collect())
}

fn target() -> impl Strategy<Value = Target> {
    (
        name(),
        words(),
        name(),
        prop::sample::select(vec!["service", "instance", "workload", "host"]),
        words(),
    )
        .prop_map(|(tenant, namespace, name, scope, id)| Target {
            tenant,
            namespace,
            name,
            scope: scope.into(),
            id,
            ..Target::default()
        })
}

fn key() -> impl Strategy<Value = String> {
    target().prop_map(|target| target.key())
}

fn mode() -> impl Strategy<Value = Mode> {
    prop::sample::select(vec![Mode::Off, Mode::Shadow, Mode::Approve, Mode::Auto])
}

fn gate(passed: impl Strategy<Value = bool>) -> impl Strategy<Value = Gate> {
    (name(), passed, scalars()).prop_map(|(gate, passed, values)| Gate { gate, passed, values })
}

fn body() -> impl Strategy<Value = ActionBody> {
    (name(), 1..9u32, map()).prop_map(|(kind, version, params)| ActionBody { kind, version, params })
}

prop_compose! {
    fn anomaly()(
        target in prop::collection::btree_map(name(), scalar(), 1..3),
        names in (name(), name()),
        times in (time(), time()),
        score in 0.0..1e6f64,
        features in prop::collection::btree_map(name(), prop::option::of(number()), 0..3),
        contributions in prop::collection::btree_map(name(), number(), 0..3),
        columns in scalars(),
        meets in prop::collection::btree_set(name(), 0..3),
        clears in prop::collection::btree_set(name(), 0..3),
        telemetry_healthy in any::<bool>(),
    ) -> Anomaly {
        Anomaly {
            target, pipeline: names.0, detector: names.1, window_start: times.0, window_end: times.1,
            score, is_anomaly: score >= 1.0, features, contributions, columns,
            meets: meets.into_iter().collect(), clears: clears.into_iter().collect(), telemetry_healthy,
        }
    }
}

prop_compose! {
    fn action()(
        ids in (uuid(), uuid(), uuid(), prop::option::of(uuid())),
        counts in (1..9u32, 1..9u32, 1..9u32),
        names in (name(), name(), name()),
        action in body(),
        target in target(),
        times in (time(), time()),
        spans in (0..1_000_000i64, 0..1_000_000i64, 0..1_000_000i64),
        required in any::<bool>(),
        score in number(),
        evidence in uuids(),
        gates in prop::collection::vec(gate(Just(true)), 0..3),
    ) -> Action {
        Action {
            action_id: ids.0, incident_id: ids.1, decision_id: ids.2, attempt: counts.0,
            ladder: Ladder { step: counts.1, of: counts.2, policy: names.0.clone() },
            action, target: ActionTarget { key: target.key(), target },
            timing: Timing {
                decided_at: times.0, start_deadline: times.1,
                exec_timeout_ms: spans.0, verify_after_ms: spans.1, verify_for_ms: spans.2,
            },
            mode: "live".into(),
            approval: Approval {
                required, state: if required { "granted" } else { "not_required" }.into(), id: ids.3,
            },
            explain: Explain { policy: names.0, detector: names.1, pipeline: names.2, score, evidence, gates },
        }
    }
}

prop_compose! {
    fn outcome()(
        ids in (uuid(), uuid()), attempt in 0..9u32, executor in (words(), words()),
        status in prop::sample::select(vec![
            OutcomeStatus::Accepted, OutcomeStatus::Started, OutcomeStatus::Succeeded, OutcomeStatus::Failed,
            OutcomeStatus::Rejected, OutcomeStatus::Expired, OutcomeStatus::Unknown,
        ]),
        code in 100..600u16, retryable in any::<bool>(), at in time(), effect in map(),
        error in prop::option::of(words()), payload_sha256 in "([0-9a-f]{64})?",
    ) -> Outcome {
        Outcome {
            action_id: ids.0, incident_id: ids.1, attempt,
            executor: Executor { id: executor.0, version: executor.1 },
            status, code, retryable, at, effect, error, payload_sha256,
        }
    }
}

fn choice() -> impl Strategy<Value = Choice> {
    let option = (
        name(),
        prop::option::of(0.0..=1.0f64),
        0.0..=1.0f64,
        0.0..=1.0f64,
        prop::option::of(name()),
    )
        .prop_map(|(action, probability, expected, propensity, refused_by)| ChoiceOption {
            action,
            probability,
            expected,
            propensity,
            refused_by,
        });
    let value = prop_oneof![number().prop_map(Value::from), words().prop_map(Value::from)];
    (
        prop::option::of(name()),
        any::<bool>(),
        prop::option::of(name()),
        prop::collection::vec(words(), 0..3),
        prop::collection::vec(option, 0..3),
        prop::collection::btree_map(name(), value, 0..3),
    )
        .prop_map(|(model, abstained, fits, path, options, context)| Choice {
            model,
            abstained,
            fits,
            path,
            options,
            context,
        })
}

prop_compose! {
    fn decision()(
        ids in (uuid(), uuid(), prop::option::of(uuid())), target_key in key(), names in (name(), name(), name()),
        decided_at in time(), mode in mode(), refused_by in prop::option::of(name()),
        verdict in prop::sample::select(vec![DecisionKind::Act, DecisionKind::Shadow, DecisionKind::AskApproval]),
        gates in prop::collection::vec(gate(any::<bool>()), 0..3), action in prop::option::of(body()),
        propensity in 0.0..=1.0f64, score in number(), evidence in uuids(), choice in prop::option::of(choice()),
    ) -> Decision {
        Decision {
            decision_id: ids.0, incident_id: ids.1, target_key, policy: names.0, pipeline: names.1, detector: names.2,
            decided_at, verdict: if refused_by.is_some() { DecisionKind::Refuse } else { verdict }, refused_by, gates,
            mode, action_id: ids.2, action, propensity, score, evidence, choice,
        }
    }
}

fn approval() -> impl Strategy<Value = ApprovalRecord> {
    let ids = (uuid(), uuid(), uuid());
    (ids, key(), "[0-9a-f]{64}", (time(), time()), name(), words(), body()).prop_map(
        |(ids, target_key, payload_sha256, times, by, reason, action)| ApprovalRecord {
            approval_id: ids.0,
            action_id: ids.1,
            incident_id: ids.2,
            target_key,
            payload_sha256,
            requested_at: times.0,
            expires_at: times.1,
            by: Some(by),
            reason: Some(reason),
            action: Some(action),
        },
    )
}

fn pipelines() -> impl Strategy<Value = (u64, Vec<PipelineText>)> {
    let files = prop::collection::btree_map(name(), words(), 0..2);
    let begun = prop::collection::btree_map("[0-9a-f]{16}", 1..1_000_000u64, 0..2);
    let pipeline = (name(), words(), files, begun).prop_map(|(name, text, files, begun)| PipelineText {
        name,
        text,
        files,
        begun,
    });
    (1..1_000_000u64, prop::collection::vec(pipeline, 0..3))
}

fn control() -> impl Strategy<Value = Control> {
    let pair = || (name(), words(), words());
    prop_oneof![
        (any::<bool>(), words(), words()).prop_map(|(engaged, by, reason)| Control::KillSwitch { engaged, by, reason }),
        (pair(), name(), mode(), prop::option::of(time())).prop_map(|((service, by, reason), action, mode, until)| {
            Control::Mode {
                service,
                action,
                mode,
                until,
                by,
                reason,
            }
        }),
        pair().prop_map(|(service, by, reason)| Control::Protected { service, by, reason }),
        (pair(), time(), time()).prop_map(|((service, by, reason), from, to)| Control::Maintenance {
            service,
            from,
            to,
            by,
            reason
        }),
        (pair(), any::<bool>()).prop_map(|((name, by, reason), revoked)| Control::Approver {
            name,
            revoked,
            by,
            reason
        }),
        (pair(), time()).prop_map(|((service, by, reason), at)| Control::Reset {
            service,
            by,
            at,
            reason
        }),
        (uuid(), words(), time(), words()).prop_map(|(action, by, at, reason)| Control::Cancel {
            action,
            by,
            at,
            reason
        }),
        (name(), name(), map(), words()).prop_map(|(service, action, set, by)| Control::Thresholds {
            service,
            action,
            set,
            by,
            reason: String::new()
        }),
        (name(), map(), words()).prop_map(|(policy, model, by)| Control::Model {
            policy,
            model: model.into(),
            by,
            reason: String::new()
        }),
        (1..64i32).prop_map(|panes_partitions| Control::Generation { panes_partitions }),
        (
            pipelines(),
            proptest::option::of(1..9u64),
            pair(),
            time(),
            any::<bool>()
        )
            .prop_map(
                |((version, pipelines), restores, (_, by, reason), at, folder)| Control::Pipelines {
                    version,
                    pipelines,
                    origin: if folder {
                        PipelinesOrigin::Folder
                    } else {
                        PipelinesOrigin::Operator
                    },
                    restores,
                    by,
                    at,
                    reason,
                }
            ),
        (1..9u64).prop_map(|version| Control::PipelinesSettled { version }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Invariant 19: every message type serialises to what its schema accepts.
    #[test]
    fn messages_fit_their_schemas(
        anomaly in anomaly(),
        action in action(),
        outcome in outcome(),
        decision in decision(),
        approval in approval(),
        control in control(),
        other in (uuid(), uuid(), key(), time(), time(), words()),
        numbers in (number(), prop::option::of(number()), prop::option::of(-1_000_000i64..1_000_000_000)),
    ) {
        fits(cloudevent::ANOMALY, &anomaly);
        fits(cloudevent::LEVEL_SHIFT, &LevelShift {
            target: anomaly.target.clone(), pipeline: anomaly.pipeline.clone(), detector: anomaly.detector.clone(),
            window_start: anomaly.window_start, window_end: anomaly.window_end, feature: anomaly.detector.clone(),
            old_level: anomaly.score, new_level: numbers.0, since: anomaly.window_start,
        });
        fits(cloudevent::ACTION_REQUESTED, &action);
        let kind = format!("{OUTCOME_PREFIX}{}.v1", outcome.status.as_str());
        fits(&kind, &outcome);
        fits(cloudevent::DECISION, &decision);
        fits(cloudevent::APPROVAL_GRANTED, &approval);
        fits(cloudevent::APPROVAL_DENIED, &approval);
        fits(cloudevent::APPROVAL_EXPIRED, &approval);
        fits(cloudevent::APPROVAL_REQUESTED, &ApprovalRecord { by: None, reason: None, ..approval });
        fits(cloudevent::CONTROL, &control);
        let (first, second, target_key, from, to, reason) = other;
        fits(cloudevent::ACTION_CANCELLED, &ActionCancelled {
            action_id: first, incident_id: second, target_key: target_key.clone(), at: from, reason: reason.clone(),
        });
        for verdict in [
            Verdict::Recovered, Verdict::Improved, Verdict::Unchanged, Verdict::Worse, Verdict::Inconclusive,
            Verdict::Confounded, Verdict::Superseded,
        ] {
            fits(cloudevent::VERDICT, &VerdictRecord {
                action_id: first, incident_id: second, target_key: target_key.clone(), verdict, from, to,
                score_before: numbers.0, score_after: numbers.1, reason: reason.clone(),
            });
        }
        for state in [
            IncidentState::Open, IncidentState::Acting, IncidentState::Verifying, IncidentState::AwaitingApproval,
            IncidentState::Suppressed, IncidentState::Escalated, IncidentState::Closed,
        ] {
            fits(cloudevent::INCIDENT, &Incident {
                incident_id: first, target_key: target_key.clone(), policy: "p".into(), pipeline: "q".into(),
                detector: "d".into(), state, opened_at: from, changed_at: to, actions: vec![second], reason: reason.clone(),
            });
        }
        fits(cloudevent::PROGRESS, &TimeProgress {
            watermark_ms: numbers.2, clock: from, partition: 3, population: [("shop.slow".to_owned(), 6)].into(), version: 2,
        });
        fits(cloudevent::JOURNAL, &Journal {
            consumed: vec![("homeostat.anomalies".into(), 0, 17)],
            control: [(control.scope(), Some(control)), ("kill_switch".to_owned(), None)].into(),
        });
    }
}

/// A good value of each kind, and what must not be accepted in its place.
#[test]
fn wrong_data_is_rejected() {
    let id = "00000000-0000-0000-0000-000000000001";
    let key = "shop|||cart|service|";
    let at = "2026-01-02T03:04:05.678Z";
    let anomaly = json!({
        "target": {"service_name": "cart"}, "pipeline": "shop", "detector": "slow", "window_start": at, "window_end": at,
        "score": 1.5, "is_anomaly": true, "features": {"p99_ms": 812.0}, "contributions": {"p99_ms": 1.5},
    });
    let outcome = json!({
        "action_id": id, "incident_id": id, "attempt": 1, "executor": {"id": "e", "version": "1"}, "status": "succeeded",
        "code": 200, "retryable": false, "at": at, "payload_sha256": "",
    });
    let verdict = json!({
        "action_id": id, "incident_id": id, "target_key": key, "verdict": "recovered", "from": at, "to": at,
        "score_before": 2.0, "score_after": null, "reason": "",
    });
    let granted = json!({
        "approval_id": id, "action_id": id, "incident_id": id, "target_key": key, "payload_sha256": "a".repeat(64),
        "requested_at": at, "expires_at": at, "by": "ada",
    });
    let decision = json!({
        "decision_id": id, "incident_id": id, "target_key": key, "policy": "p", "pipeline": "q", "detector": "d",
        "decided_at": at, "verdict": "act", "gates": [], "mode": "auto", "propensity": 1.0, "score": 2.0, "evidence": [],
    });
    let mode = json!({"control": "mode", "service": "*", "action": "*", "mode": "auto", "by": "ada"});
    type Wrong = (&'static str, Value);
    let cases: [(&str, &Value, &[Wrong]); 6] = [
        (
            "anomaly.v1.json",
            &anomaly,
            &[
                ("target", json!({})),
                ("target", json!("cart")),
                ("score", json!(-1)),
                ("score", json!("high")),
                ("window_end", json!("yesterday")),
                ("window_end", json!("2026-01-02T03:04:05+01:00")),
                ("features", json!({"p99_ms": "slow"})),
                ("surprise", json!(1)),
            ],
        ),
        (
            "outcome.v1.json",
            &outcome,
            &[
                ("status", json!("done")),
                ("code", json!(7)),
                ("action_id", json!("7")),
                ("attempt", json!(-1)),
            ],
        ),
        (
            "verdict.v1.json",
            &verdict,
            &[("verdict", json!("ok")), ("target_key", json!("cart"))],
        ),
        (
            "approval.granted.v1.json",
            &granted,
            &[
                ("by", json!("")),
                ("payload_sha256", json!("abc")),
                ("expires_at", json!(7)),
            ],
        ),
        (
            "decision.v1.json",
            &decision,
            &[
                ("verdict", json!("refuse")),
                ("refused_by", json!("cooldown")),
                ("propensity", json!(1.5)),
                ("mode", json!("live")),
            ],
        ),
        (
            "control.v1.json",
            &mode,
            &[
                ("mode", json!("on")),
                ("control", json!("modes")),
                ("service", json!("")),
                ("extra", json!(1)),
            ],
        ),
    ];
    for (file, good, changes) in cases {
        let schema = validator(file);
        assert!(
            schema.is_valid(good),
            "{file}: {:?}",
            schema.iter_errors(good).map(|e| e.to_string()).next()
        );
        for (field, wrong) in changes {
            let mut bad = good.clone();
            bad[*field] = wrong.clone();
            assert!(!schema.is_valid(&bad), "{file} accepts {field} = {wrong}");
        }
        // Every field that is required is missed.
        let text = super::text(file).unwrap();
        let described: Value = serde_json::from_str(text).unwrap();
        for field in described["required"].as_array().into_iter().flatten() {
            let mut bad = good.clone();
            bad.as_object_mut().unwrap().remove(field.as_str().unwrap());
            assert!(!schema.is_valid(&bad), "{file} does without {field}");
        }
    }
}

/// A command without a target name is refused: empty never means all.
#[test]
fn an_empty_target_is_rejected() {
    let schema = validator("action.requested.v1.json");
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let action = action().new_tree(&mut runner).unwrap().current();
    let mut value = serde_json::to_value(action).unwrap();
    assert!(schema.is_valid(&value));
    value["target"]["name"] = json!("");
    assert!(!schema.is_valid(&value));
}

/// The AsyncAPI document names every topic that others may read, and every schema under the type it describes.
#[test]
fn asyncapi_covers_topics_and_schemas() {
    let document: Value = serde_yaml_ng::from_str(include_str!("../../../schemas/asyncapi.yaml")).unwrap();
    let addresses: Vec<&str> = document["channels"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(|channel| channel["address"].as_str())
        .collect();
    let topics = crate::Topics::new("homeostat.");
    let internal = [topics.panes(), topics.state()];
    for topic in topics.all() {
        let described = addresses.contains(&topic.name.as_str());
        assert_eq!(described, !internal.contains(&topic.name), "{}", topic.name);
    }
    let messages = document["components"]["messages"].as_object().unwrap();
    let mut named: Vec<&str> = Vec::new();
    for message in messages.values() {
        let Some(file) = message["payload"]["$ref"].as_str() else {
            continue;
        };
        let kind = message["name"].as_str().unwrap().replace("<status>", "succeeded");
        assert_eq!(schema_for(&kind), Some(file));
        named.push(file);
    }
    named.sort_unstable();
    let files: Vec<&str> = ALL.iter().map(|(file, _)| *file).collect();
    assert_eq!(named, files);
}
