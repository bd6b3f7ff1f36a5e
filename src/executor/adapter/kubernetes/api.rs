//! Calls to the API server, and what its answers mean to an operator.

use std::time::{Duration, Instant};

use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::Kind;
use crate::{adapter::Failure, command::describe};

/// Why a call did not do what it should.
#[derive(Clone, Debug, PartialEq)]
pub enum Trouble {
    /// The API server said no, or that there is nothing: nothing was changed.
    Refused(Failure),
    /// Somebody else's change came between.
    Conflict(String),
    /// No answer, or none that says whether the call had an effect.
    Open(String),
}

impl Trouble {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(Failure::Failed { code: 404, .. }))
    }
}

impl From<Trouble> for Failure {
    /// For calls that change nothing.
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Refused(failure) => failure,
            Trouble::Conflict(reason) => Self::coded(409, reason),
            Trouble::Open(reason) => Self::retryable(reason),
        }
    }
}

/// One object of the cluster.
pub struct Object {
    api: Api<DynamicObject>,
    pub kind: Kind,
    pub name: String,
    /// Kind and name, for people.
    pub label: String,
    client: Client,
    namespace: Option<String>,
    call_timeout: Duration,
}

impl Object {
    pub fn new(client: &Client, kind: Kind, namespace: Option<&str>, name: &str, call_timeout: Duration) -> Self {
        Self {
            api: api(client, &resource(kind), namespace),
            kind,
            name: name.to_owned(),
            label: match namespace {
                Some(namespace) => format!("{} {namespace}/{name}", kind.as_str()),
                None => format!("{} {name}", kind.as_str()),
            },
            client: client.clone(),
            namespace: namespace.map(str::to_owned),
            call_timeout,
        }
    }

    pub async fn get(&self) -> Result<Value, Trouble> {
        let got = self.call("get", self.api.get(&self.name)).await?;
        Ok(as_json(&got))
    }

    /// Reads until there is an answer or no time left.
    pub async fn read(&self, deadline: Instant, pause: Duration) -> Result<Value, Trouble> {
        loop {
            match self.get().await {
                Err(Trouble::Open(reason)) if Instant::now() + pause < deadline => {
                    tracing::warn!(object = %self.label, %reason, "asking again");
                    sleep(pause).await;
                }
                answer => return answer,
            }
        }
    }

    pub async fn patch(&self, patch: &Value) -> Result<Value, Trouble> {
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        let patched = self.api.patch(&self.name, &params, &patch);
        Ok(as_json(&self.call("patch", patched).await?))
    }

    /// Deletes this object only, not another of the same name.
    pub async fn delete(&self, uid: &str) -> Result<(), Trouble> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        self.call("delete", self.api.delete(&self.name, &params)).await?;
        Ok(())
    }

    pub async fn replica_sets(&self) -> Result<Vec<Value>, Trouble> {
        let gvk = GroupVersionKind::gvk("apps", "v1", "ReplicaSet");
        let sets = api(
            &self.client,
            &ApiResource::from_gvk_with_plural(&gvk, "replicasets"),
            self.namespace.as_deref(),
        );
        let params = ListParams::default();
        let listed = self.call("list", sets.list(&params)).await?;
        Ok(listed.items.iter().map(as_json).collect())
    }

    async fn call<T>(&self, verb: &str, call: impl Future<Output = kube::Result<T>>) -> Result<T, Trouble> {
        match timeout(self.call_timeout, call).await {
            Ok(answer) => answer.map_err(|error| trouble(&self.label, verb, &error)),
            Err(_) => Err(Trouble::Open(format!(
                "{}: no answer to {verb} within {} ms",
                self.label,
                self.call_timeout.as_millis()
            ))),
        }
    }
}

/// What an answer means to an operator.
fn trouble(label: &str, verb: &str, error: &kube::Error) -> Trouble {
    let kube::Error::Api(status) = error else {
        return Trouble::Open(format!("{label}: {verb}: {}", describe(error)));
    };
    let message = &status.message;
    let refused = |code, reason: String| Trouble::Refused(Failure::coded(code, reason));
    match status.code {
        401 => refused(
            401,
            format!("{label}: the API server does not take this executor's credentials ({message})"),
        ),
        403 => refused(
            403,
            format!("{label}: this executor's account may not {verb} it; see deploy/kubernetes ({message})"),
        ),
        404 => refused(404, format!("{label} does not exist ({message})")),
        409 => Trouble::Conflict(format!("{label} was changed or replaced meanwhile ({message})")),
        410 => refused(410, format!("{label} is gone ({message})")),
        408 | 429 | 500.. => Trouble::Open(format!("{label}: the API server answered {} ({message})", status.code)),
        code => refused(
            500,
            format!("{label}: the API server refuses to {verb} it: {code} ({message})"),
        ),
    }
}

fn api(client: &Client, resource: &ApiResource, namespace: Option<&str>) -> Api<DynamicObject> {
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    }
}

fn resource(kind: Kind) -> ApiResource {
    let (group, name, plural) = match kind {
        Kind::Deployment => ("apps", "Deployment", "deployments"),
        Kind::StatefulSet => ("apps", "StatefulSet", "statefulsets"),
        Kind::DaemonSet => ("apps", "DaemonSet", "daemonsets"),
        Kind::Pod => ("", "Pod", "pods"),
        Kind::Node => ("", "Node", "nodes"),
    };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", name), plural)
}

fn as_json(object: &DynamicObject) -> Value {
    serde_json::to_value(object).expect("it was read from JSON")
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn answers_are_named_for_an_operator() {
        for (code, expected, part) in [
            (401, Some(401), "does not take this executor's credentials"),
            (403, Some(403), "may not patch it; see deploy/kubernetes"),
            (404, Some(404), "deployment shop/cart does not exist"),
            (410, Some(410), "deployment shop/cart is gone"),
            (422, Some(500), "refuses to patch it: 422"),
            (400, Some(500), "refuses to patch it: 400"),
        ] {
            let error = kube::Error::Api(Box::new(Status::failure("words", "Reason").with_code(code)));
            let Trouble::Refused(Failure::Failed {
                code,
                reason,
                retryable,
            }) = trouble("deployment shop/cart", "patch", &error)
            else {
                panic!("{code}");
            };
            assert_eq!((Some(code), retryable), (expected, false));
            assert!(reason.contains(part) && reason.contains("words"), "{reason}");
        }
        let answer = |code| {
            let error = kube::Error::Api(Box::new(Status::failure("words", "Reason").with_code(code)));
            trouble("node n", "get", &error)
        };
        assert!(matches!(answer(409), Trouble::Conflict(reason) if reason.contains("changed or replaced")));
        // The API server may have done it.
        for code in [408, 429, 500, 503, 504] {
            assert!(matches!(answer(code), Trouble::Open(_)), "{code}");
        }
    }
}
