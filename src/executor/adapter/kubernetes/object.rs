//! What objects of the cluster say, and the changes that are asked of them. Pure: JSON in, JSON or a judgement out.

use serde_json::{Map, Value, json};

use super::Kind;

/// The marker: on the object that was changed and, for a restart, on its pods.
pub const MARKER: &str = "homeostat.dev/action-id";
/// Numbers the templates of a deployment, on the deployment and on its replica sets.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// Told apart by it, the pods of two replica sets; not part of the template as it was written.
const TEMPLATE_HASH: &str = "pod-template-hash";

pub fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer)?.as_str()
}

/// Counters are left out where they are zero.
pub fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// The action that changed the object last.
pub fn marker(object: &Value) -> Option<&str> {
    object.pointer("/metadata/annotations")?.get(MARKER)?.as_str()
}

pub fn revision(object: &Value) -> Option<i64> {
    let text = object.pointer("/metadata/annotations")?.get(REVISION)?.as_str()?;
    text.parse().ok()
}

pub fn replicas(workload: &Value) -> i64 {
    workload.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1)
}

/// Why new pods would not come by themselves.
pub fn obstacle(kind: Kind, workload: &Value) -> Option<&'static str> {
    if workload.pointer("/spec/paused") == Some(&Value::Bool(true)) {
        return Some("its rollouts are paused");
    }
    let by_hand = kind != Kind::Deployment && text(workload, "/spec/updateStrategy/type") == Some("OnDelete");
    by_hand.then_some("its pods are renewed only when they are deleted (updateStrategy OnDelete)")
}

/// How far a change has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Complete,
    UnderWay(String),
    /// The controller has given up.
    Stalled(String),
}

/// Whether everything that the object asks for is there and available.
pub fn progress(kind: Kind, workload: &Value) -> Progress {
    if number(workload, "/status/observedGeneration") < number(workload, "/metadata/generation") {
        return Progress::UnderWay("its controller has not seen the change yet".into());
    }
    if let Some(reason) = stalled(workload) {
        return Progress::Stalled(reason);
    }
    let (wanted, updated, available, all) = if kind == Kind::DaemonSet {
        let wanted = number(workload, "/status/desiredNumberScheduled");
        let updated = number(workload, "/status/updatedNumberScheduled");
        (wanted, updated, number(workload, "/status/numberAvailable"), wanted)
    } else {
        (
            replicas(workload),
            number(workload, "/status/updatedReplicas"),
            number(workload, "/status/availableReplicas"),
            number(workload, "/status/replicas"),
        )
    };
    if updated < wanted {
        Progress::UnderWay(format!("{updated} of {wanted} pods are new"))
    } else if all > wanted {
        Progress::UnderWay(format!("{} pods are still to go", all - wanted))
    } else if available < wanted {
        Progress::UnderWay(format!("{available} of {wanted} pods are available"))
    } else {
        Progress::Complete
    }
}

fn stalled(workload: &Value) -> Option<String> {
    let conditions = workload.pointer("/status/conditions")?.as_array()?;
    let given_up = conditions.iter().find(|condition| {
        text(condition, "/type") == Some("Progressing")
            && text(condition, "/reason") == Some("ProgressDeadlineExceeded")
    })?;
    Some(
        text(given_up, "/message")
            .unwrap_or("its progress deadline has passed")
            .to_owned(),
    )
}

/// A merge patch that puts the marker on the object and holds only for this very version of it.
pub fn marked(object: &Value, action: &str) -> Value {
    json!({
        "metadata": {
            "uid": object.pointer("/metadata/uid"),
            "resourceVersion": object.pointer("/metadata/resourceVersion"),
            "annotations": { MARKER: action },
        }
    })
}

/// The template of a replica set as its deployment had it.
pub fn template_of(replica_set: &Value) -> Option<Value> {
    let mut template = replica_set.pointer("/spec/template")?.clone();
    let labels = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut);
    if let Some(labels) = labels {
        labels.remove(TEMPLATE_HASH);
    }
    Some(template)
}

/// The merge patch that makes `from` into `to`.
pub fn difference(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else {
        return to.clone();
    };
    let mut patch = Map::new();
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in to {
        match from.get(key) {
            Some(old) if old == value => {}
            Some(old) => {
                patch.insert(key.clone(), difference(old, value));
            }
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Object(patch)
}

/// A revision to roll back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    pub revision: i64,
    pub replica_set: String,
}

/// Finds a revision among the replica sets of the deployment; without one, the newest that is older than the running one.
pub fn past(deployment: &Value, replica_sets: &[Value], revision: Option<i64>) -> Result<Past, String> {
    let uid = text(deployment, "/metadata/uid");
    let mut kept: Vec<Past> = replica_sets
        .iter()
        .filter(|set| {
            let owners = set.pointer("/metadata/ownerReferences").and_then(Value::as_array);
            owners.is_some_and(|owners| owners.iter().any(|owner| uid.is_some() && text(owner, "/uid") == uid))
        })
        .filter_map(|set| {
            Some(Past {
                revision: self::revision(set)?,
                replica_set: text(set, "/metadata/name")?.to_owned(),
            })
        })
        .collect();
    kept.sort_by_key(|past| past.revision);
    let running = self::revision(deployment).ok_or("it has no revision yet")?;
    let numbers = |kept: &[Past]| {
        let numbers: Vec<String> = kept.iter().map(|past| past.revision.to_string()).collect();
        numbers.join(", ")
    };
    match revision {
        Some(revision) if revision == running => Err(format!("revision {revision} is the one that runs")),
        Some(revision) => kept
            .iter()
            .find(|past| past.revision == revision)
            .cloned()
            .ok_or_else(|| format!("revision {revision} is not kept; there are {}", numbers(&kept))),
        None => kept
            .iter()
            .rfind(|past| past.revision < running)
            .cloned()
            .ok_or_else(|| format!("revision {running} is the oldest that is kept")),
    }
}

#[cfg(test)]
mod tests;
