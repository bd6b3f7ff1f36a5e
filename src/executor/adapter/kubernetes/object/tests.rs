use proptest::prelude::*;

use super::*;

fn workload(spec: Value, status: Value) -> Value {
    json!({"metadata": {"generation": 2}, "spec": spec, "status": status})
}

#[test]
fn progress_is_what_the_controllers_say() {
    use Kind::*;
    let deadline = json!([{"type": "Available", "status": "True"},
        {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "no pods"}]);
    for (kind, spec, status, expected) in [
        (
            Deployment,
            json!({"replicas": 3}),
            json!({"observedGeneration": 1, "updatedReplicas": 3}),
            "not seen",
        ),
        (
            Deployment,
            json!({"replicas": 3}),
            json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 1}),
            "1 of 3 pods are new",
        ),
        (
            Deployment,
            json!({"replicas": 3}),
            json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 3}),
            "1 pods are still to go",
        ),
        (
            Deployment,
            json!({"replicas": 3}),
            json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 2}),
            "2 of 3 pods are available",
        ),
        (
            Deployment,
            json!({"replicas": 3}),
            json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}),
            "",
        ),
        (
            Deployment,
            json!({}),
            json!({"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}),
            "",
        ),
        (Deployment, json!({"replicas": 0}), json!({"observedGeneration": 2}), ""),
        (
            Deployment,
            json!({"replicas": 3}),
            json!({"observedGeneration": 2, "updatedReplicas": 1, "conditions": deadline}),
            "!no pods",
        ),
        (
            StatefulSet,
            json!({"replicas": 2}),
            json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 1, "availableReplicas": 2}),
            "1 of 2 pods are new",
        ),
        (
            StatefulSet,
            json!({"replicas": 2}),
            json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}),
            "",
        ),
        (
            DaemonSet,
            json!({}),
            json!({"observedGeneration": 2, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 1}),
            "1 of 2 pods are available",
        ),
        (
            DaemonSet,
            json!({}),
            json!({"observedGeneration": 2, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 2}),
            "",
        ),
    ] {
        let object = workload(spec, status);
        match progress(kind, &object) {
            Progress::Complete => assert_eq!(expected, "", "{object}"),
            Progress::UnderWay(state) => assert!(!expected.is_empty() && state.contains(expected), "{state} {object}"),
            Progress::Stalled(reason) => assert_eq!(format!("!{reason}"), expected),
        }
    }
}

#[test]
fn a_workload_whose_pods_would_not_change_is_told() {
    assert!(obstacle(Kind::Deployment, &json!({"spec": {"paused": true}})).is_some());
    assert!(obstacle(Kind::Deployment, &json!({"spec": {"paused": false}})).is_none());
    let by_hand = json!({"spec": {"updateStrategy": {"type": "OnDelete"}}});
    assert!(obstacle(Kind::DaemonSet, &by_hand).is_some() && obstacle(Kind::StatefulSet, &by_hand).is_some());
}

fn replica_set(name: &str, owner: &str, revision: &str) -> Value {
    json!({"metadata": {"name": name, "ownerReferences": [{"uid": owner}], "annotations": {REVISION: revision}}})
}

#[test]
fn the_revision_is_named_or_the_newest_older_one() {
    let deployment = json!({"metadata": {"uid": "d", "annotations": {REVISION: "4"}}});
    let sets = [
        replica_set("a", "d", "1"),
        replica_set("c", "d", "3"),
        replica_set("other", "x", "2"),
        replica_set("d", "d", "4"),
    ];
    let name = |revision| past(&deployment, &sets, revision).map(|past| past.replica_set);
    assert_eq!(name(None).unwrap(), "c");
    assert_eq!(name(Some(1)).unwrap(), "a");
    assert!(name(Some(2)).unwrap_err().contains("not kept; there are 1, 3, 4"));
    assert!(name(Some(4)).unwrap_err().contains("the one that runs"));
    assert!(past(&deployment, &sets[3..], None).unwrap_err().contains("oldest"));
    assert!(past(&json!({"metadata": {}}), &sets, None).is_err());
}

#[test]
fn the_template_is_the_deployments_without_the_replica_sets_own_label() {
    let set = json!({"spec": {"template": {"metadata": {"labels": {"app": "cart", TEMPLATE_HASH: "5d"}}, "spec": {}}}});
    assert_eq!(
        template_of(&set).unwrap(),
        json!({"metadata": {"labels": {"app": "cart"}}, "spec": {}})
    );
}

/// A merge patch as RFC 7386 applies it.
fn apply(target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else {
        return patch.clone();
    };
    let Value::Object(mut target) = target else {
        return apply(json!({}), &Value::Object(patch.clone()));
    };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            let old = target.remove(key).unwrap_or(Value::Null);
            target.insert(key.clone(), apply(old, value));
        }
    }
    Value::Object(target)
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![any::<bool>().prop_map(Value::from), any::<i32>().prop_map(Value::from)];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn the_difference_makes_one_template_the_other(from in json_value(), to in json_value()) {
        prop_assert_eq!(apply(from.clone(), &difference(&from, &to)), to);
    }

    #[test]
    fn no_object_makes_the_judgement_panic(object in json_value()) {
        for kind in [Kind::Deployment, Kind::StatefulSet, Kind::DaemonSet] {
            let _ = (progress(kind, &object), obstacle(kind, &object), marker(&object), template_of(&object));
            let _ = past(&object, std::slice::from_ref(&object), None);
        }
    }
}
