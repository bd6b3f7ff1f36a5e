//! Acts on a Kubernetes cluster: restarts, scales and rolls back workloads, deletes pods, cordons nodes.
//!
//! Owns the names: a command says which service is meant, the configuration which object that is. What makes an action
//! exact is one patch that carries the change, the action's id as an annotation, and the version of the object that was
//! looked at: the API server takes it once or not at all, and who comes later finds the id there. A pod is deleted under
//! the uid that was seen before. Whether the change worked is the probe's word: complete, stalled, or still under way
//! when the command's time is over.
//!
//! Fails with what the operator can mend: 403 names what the account may not do, 404 what does not exist, 409 who came
//! first. A call without an answer is settled by looking, and is unknown only when nobody answers until the end.

mod api;
mod config;
mod object;
mod request;

use std::time::{Duration, Instant};

use kube::{
    Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, time::sleep};

pub use self::config::{Config, Kind, Target};
use self::{
    api::{Object, Trouble},
    config::is_name,
    object::{MARKER, Progress},
    request::Request,
};
use crate::{
    Error,
    adapter::{Adapter, Before, Effect, Failure, Reconciled, client_runtime, unknown_target},
    admission::Refusal,
    allow,
    command::{Command, describe},
};

/// A connection to one cluster.
pub struct KubernetesAdapter {
    config: Config,
    client: Client,
    runtime: Runtime,
}

/// A command that was understood: what to do to which object.
struct Job<'a> {
    target: &'a Target,
    request: Request,
    object: Object,
    action: String,
    deadline: Instant,
    /// No call that changes something is repeated later.
    repeat_until: Instant,
}

impl KubernetesAdapter {
    /// Reads the kubeconfig; connects when there is something to do.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let wrong = |error: &dyn std::error::Error| Error::Config(format!("[kubernetes]: {}", describe(error)));
        let runtime = client_runtime("kubernetes").map_err(|error| wrong(&error))?;
        let options = KubeConfigOptions {
            context: config.context.clone(),
            ..KubeConfigOptions::default()
        };
        let from_file = |file| runtime.block_on(kube::Config::from_custom_kubeconfig(file, &options));
        let mut access = match (&config.kubeconfig, &config.context) {
            (Some(path), _) => {
                from_file(Kubeconfig::read_from(path).map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?
            }
            (None, Some(_)) => {
                from_file(Kubeconfig::read().map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?
            }
            (None, None) => runtime.block_on(kube::Config::infer()).map_err(|error| wrong(&error))?,
        };
        access.connect_timeout = Some(Duration::from_millis(config.timeout_ms));
        // A call is repeated here, where it is known whether that may be.
        access.default_retry = false;
        let client = {
            let _entered = runtime.enter();
            Client::try_from(access).map_err(|error| wrong(&error))?
        };
        Ok(Self {
            config: config.clone(),
            client,
            runtime,
        })
    }

    fn job(&self, command: &Command) -> Result<Job<'_>, Refusal> {
        let action = command.kind();
        let request = Request::read(action, &command.action.action.params)
            .ok_or_else(|| unknown_target(format!("the kubernetes adapter knows no action {action:?}")))?
            .map_err(|reason| Refusal::rejected(412, reason))?;
        let service = command.service();
        let mut named = self
            .config
            .target
            .iter()
            .filter(|target| allow::matches(&target.service, service))
            .peekable();
        if named.peek().is_none() {
            return Err(unknown_target(format!(
                "no [[kubernetes.target]] is for {service:?}; add one that names its object"
            )));
        }
        let target = named.find(|target| target.kind.takes(&request)).ok_or_else(|| {
            unknown_target(format!(
                "no [[kubernetes.target]] for {service:?} is of a kind with {action:?}"
            ))
        })?;
        let name = target.name.as_deref().unwrap_or(service);
        if !is_name(name) {
            return Err(unknown_target(format!("{name:?} is no name of a Kubernetes object")));
        }
        if let Request::Scale { replicas } = request {
            target
                .check_replicas(replicas)
                .map_err(|reason| Refusal::rejected(403, reason))?;
        }
        let call_timeout = Duration::from_millis(self.config.timeout_ms);
        Ok(Job {
            target,
            request,
            object: Object::new(
                &self.client,
                target.kind,
                target.namespace.as_deref(),
                name,
                call_timeout,
            ),
            action: command.id().to_string(),
            deadline: Instant::now() + command.exec_timeout(),
            repeat_until: Instant::now() + command.exec_timeout().min(command.may_start_for()),
        })
    }

    fn poll(&self) -> Duration {
        Duration::from_millis(self.config.poll_ms)
    }

    async fn observe_job(&self, job: &Job<'_>) -> Result<Before, Failure> {
        let object = job.object.read(job.deadline, self.poll()).await?;
        let conflict = |reason: &str| Failure::coded(409, format!("{}: {reason}", job.object.label));
        let mut before = Before::from_iter([("uid".to_owned(), json!(object::text(&object, "/metadata/uid")))]);
        if object.pointer("/metadata/deletionTimestamp").is_some() {
            return Err(conflict("is being deleted already"));
        }
        match job.request {
            Request::DeletePod => {
                let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
                let controlled =
                    owners.is_some_and(|owners| owners.iter().any(|owner| owner["controller"] == Value::Bool(true)));
                if !controlled {
                    return Err(conflict("belongs to no controller, so nothing would replace it"));
                }
                return Ok(before);
            }
            Request::Cordon | Request::Uncordon => {
                let cordoned = object.pointer("/spec/unschedulable") == Some(&Value::Bool(true));
                before.insert("cordoned".into(), json!(cordoned));
                return Ok(before);
            }
            _ => {}
        }
        before.insert(
            "generation".into(),
            json!(object::number(&object, "/metadata/generation")),
        );
        before.insert("replicas".into(), json!(object::replicas(&object)));
        if let Some(revision) = object::revision(&object) {
            before.insert("revision".into(), json!(revision));
        }
        self.resolve(job, &object, &mut before).await?;
        Ok(before)
    }

    /// Settles what the request leaves open, so that every later attempt means the same.
    async fn resolve(&self, job: &Job<'_>, object: &Value, before: &mut Before) -> Result<(), Failure> {
        let conflict = |reason: &str| Failure::coded(409, format!("{}: {reason}", job.object.label));
        match &job.request {
            Request::Scale { replicas } => {
                before.insert("to_replicas".into(), json!(replicas));
            }
            Request::ScaleUp { more } => {
                let replicas = object::replicas(object).saturating_add(*more);
                job.target
                    .check_replicas(replicas)
                    .map_err(|reason| conflict(&reason))?;
                before.insert("to_replicas".into(), json!(replicas));
            }
            Request::Restart => {
                if let Some(obstacle) = object::obstacle(job.object.kind, object) {
                    return Err(conflict(obstacle));
                }
            }
            Request::Rollback {
                revision,
                from_revision,
            } => {
                if let Some(obstacle) = object::obstacle(job.object.kind, object) {
                    return Err(conflict(obstacle));
                }
                let running = object::revision(object);
                if let Some(from) = from_revision.filter(|from| running != Some(*from)) {
                    let running = running.map_or("none".to_owned(), |running| running.to_string());
                    return Err(conflict(&format!("revision {running} runs, not {from}")));
                }
                let sets = job.object.replica_sets().await?;
                let past = object::past(object, &sets, *revision).map_err(|reason| conflict(&reason))?;
                before.insert("to_revision".into(), json!(past.revision));
                before.insert("replica_set".into(), json!(past.replica_set));
            }
            Request::DeletePod | Request::Cordon | Request::Uncordon => {}
        }
        Ok(())
    }

    /// The patch that is the action, for this version of the object.
    async fn patch(&self, job: &Job<'_>, object: &Value, before: &Before) -> Result<Value, Trouble> {
        let mut patch = object::marked(object, &job.action);
        match &job.request {
            Request::Restart => {
                patch["spec"] = json!({ "template": { "metadata": { "annotations": { MARKER: job.action } } } });
            }
            Request::Scale { .. } | Request::ScaleUp { .. } => {
                patch["spec"] = json!({ "replicas": before.get("to_replicas") });
            }
            Request::Rollback { .. } => {
                let template = self.template(job, before).await?;
                let running = object.pointer("/spec/template").unwrap_or(&Value::Null);
                patch["spec"] = json!({ "template": object::difference(running, &template) });
            }
            Request::Cordon => patch["spec"] = json!({ "unschedulable": true }),
            Request::Uncordon => patch["spec"] = json!({ "unschedulable": null }),
            Request::DeletePod => {}
        }
        Ok(patch)
    }

    async fn template(&self, job: &Job<'_>, before: &Before) -> Result<Value, Trouble> {
        let wanted = before.get("replica_set").and_then(Value::as_str);
        let sets = job.object.replica_sets().await?;
        sets.iter()
            .find(|set| wanted.is_some() && object::text(set, "/metadata/name") == wanted)
            .and_then(object::template_of)
            .ok_or_else(|| {
                let reason = format!("{}: the replica set of that revision is gone", job.object.label);
                Trouble::Refused(Failure::coded(409, reason))
            })
    }

    /// Changes the object once, however often it must ask; asks no more once the command may not start any more, and looks
    /// until its time is over.
    async fn change(&self, job: &Job<'_>, before: &Before) -> Result<Value, Failure> {
        let mut unanswered = None;
        loop {
            let in_time = Instant::now() < job.repeat_until;
            let trouble = match job.object.get().await {
                Ok(object) if object::marker(&object) == Some(&job.action) => return Ok(object),
                Ok(object) if in_time || unanswered.is_none() => {
                    unchanged(job, &object, before)?;
                    match self.ask(job, &object, before).await {
                        Ok(object) => return Ok(object),
                        Err(Trouble::Open(reason)) => {
                            unanswered = Some(reason.clone());
                            Trouble::Open(reason)
                        }
                        Err(trouble) => trouble,
                    }
                }
                Ok(_) => Trouble::Open("its answer was lost".into()),
                Err(trouble) => trouble,
            };
            if let Trouble::Refused(_) = trouble {
                return Err(trouble.into());
            }
            let until = if unanswered.is_some() {
                job.deadline
            } else {
                job.repeat_until
            };
            if Instant::now() + self.poll() >= until {
                return Err(unanswered.map_or_else(|| trouble.into(), Failure::Unknown));
            }
            tracing::warn!(action_id = %job.action, object = %job.object.label, ?trouble, "looking again");
            sleep(self.poll()).await;
        }
    }

    async fn ask(&self, job: &Job<'_>, object: &Value, before: &Before) -> Result<Value, Trouble> {
        let patch = self.patch(job, object, before).await?;
        job.object.patch(&patch).await
    }

    /// Waits for the change to work, as long as the command allows.
    async fn settled(&self, job: &Job<'_>, mut object: Value, before: &Before) -> Result<Effect, Failure> {
        let kind = job.object.kind;
        if kind == Kind::Node {
            return Ok(effect(job, &object, before));
        }
        loop {
            let state = match object::progress(kind, &object) {
                Progress::Complete => return Ok(effect(job, &object, before)),
                Progress::Stalled(reason) => {
                    return Err(Failure::failed(format!(
                        "{}: the rollout stalled: {reason}",
                        job.object.label
                    )));
                }
                Progress::UnderWay(state) => state,
            };
            if Instant::now() + self.poll() >= job.deadline {
                let reason = format!("{}: changed, and not finished in time: {state}", job.object.label);
                return Err(Failure::Unknown(reason));
            }
            sleep(self.poll()).await;
            object = match job.object.get().await {
                Ok(object) => object,
                Err(Trouble::Open(_)) => continue,
                Err(trouble) => return Err(trouble.into()),
            };
        }
    }

    async fn delete(&self, job: &Job<'_>, before: &Before) -> Result<Effect, Failure> {
        let uid = before.get("uid").and_then(Value::as_str).unwrap_or_default();
        let mut unanswered = None;
        loop {
            match job.object.delete(uid).await {
                Ok(()) => break,
                // After a call whose answer was lost, gone is what was asked for.
                Err(trouble) if trouble.is_not_found() && unanswered.is_some() => break,
                Err(Trouble::Conflict(_)) if unanswered.is_some() => break,
                Err(Trouble::Open(reason)) if Instant::now() + self.poll() < job.repeat_until => {
                    unanswered = Some(reason);
                }
                // Too late to ask again, not to look.
                Err(Trouble::Open(_)) => break,
                Err(trouble) => return Err(trouble.into()),
            }
            sleep(self.poll()).await;
        }
        self.gone(job, before).await
    }

    /// Waits until the pod that was meant is no more.
    async fn gone(&self, job: &Job<'_>, before: &Before) -> Result<Effect, Failure> {
        loop {
            match job.object.get().await {
                Ok(pod) if !is_the_pod(&pod, before) => break,
                Err(trouble) if trouble.is_not_found() => break,
                Ok(_) | Err(Trouble::Open(_)) => {}
                Err(trouble) => return Err(trouble.into()),
            }
            if Instant::now() + self.poll() >= job.deadline {
                let reason = format!("{}: asked to go, and still there", job.object.label);
                return Err(Failure::Unknown(reason));
            }
            sleep(self.poll()).await;
        }
        Ok(effect(job, &Value::Null, before))
    }

    async fn reconcile_job(&self, job: &Job<'_>, before: Option<&Before>) -> Reconciled {
        let found = job.object.read(job.deadline, self.poll()).await;
        let none = Before::new();
        let ended = if job.request == Request::DeletePod {
            let Some(before) = before else {
                return Reconciled::NotDone;
            };
            match found {
                Ok(pod) if is_the_pod(&pod, before) && pod.pointer("/metadata/deletionTimestamp").is_none() => {
                    return Reconciled::NotDone;
                }
                Ok(_) => self.gone(job, before).await,
                Err(trouble) if trouble.is_not_found() => self.gone(job, before).await,
                Err(trouble) => return doubt(trouble),
            }
        } else {
            match found {
                Ok(object) if object::marker(&object) == Some(&job.action) => {
                    self.settled(job, object, before.unwrap_or(&none)).await
                }
                Ok(_) => return Reconciled::NotDone,
                Err(trouble) if trouble.is_not_found() => return Reconciled::NotDone,
                Err(trouble) => return doubt(trouble),
            }
        };
        match ended {
            Ok(effect) => Reconciled::Done(effect),
            Err(Failure::Unknown(reason)) => Reconciled::Unknown(reason),
            Err(failure) => Reconciled::Failed(failure),
        }
    }
}

/// Whether the object still asks for what it asked for. Its status may have changed, and its version with that.
fn unchanged(job: &Job<'_>, object: &Value, before: &Before) -> Result<(), Failure> {
    let differs = |key: &str, now: Value| before.get(key).is_some_and(|then| *then != now);
    let conflict = |reason: &str| Err(Failure::coded(409, format!("{}: {reason}", job.object.label)));
    if differs("uid", json!(object::text(object, "/metadata/uid"))) {
        return conflict("was replaced by another of the same name");
    }
    if differs("generation", json!(object::number(object, "/metadata/generation"))) {
        return conflict("was changed by somebody else at the same time");
    }
    Ok(())
}

fn doubt(trouble: Trouble) -> Reconciled {
    match trouble.into() {
        Failure::Failed { reason, .. } | Failure::Unknown(reason) | Failure::Stopped(reason) => {
            Reconciled::Unknown(reason)
        }
    }
}

fn is_the_pod(pod: &Value, before: &Before) -> bool {
    before.get("uid").and_then(Value::as_str) == object::text(pod, "/metadata/uid")
}

fn effect(job: &Job<'_>, object: &Value, before: &Before) -> Effect {
    let mut effect = Effect::from_iter([
        ("object".to_owned(), json!(job.object.label)),
        ("before".to_owned(), json!(before)),
    ]);
    if let Some(marker) = object::marker(object) {
        effect.insert("marker".into(), json!(marker));
    }
    if matches!(job.object.kind, Kind::Deployment | Kind::StatefulSet) {
        effect.insert("replicas".into(), json!(object::replicas(object)));
    }
    if let Some(revision) = object::revision(object) {
        effect.insert("revision".into(), json!(revision));
    }
    effect
}

impl Adapter for KubernetesAdapter {
    fn knows(&self, command: &Command) -> Result<(), Refusal> {
        self.job(command).map(|_| ())
    }

    fn observe(&self, command: &Command) -> Result<Before, Failure> {
        let job = self.job(command).map_err(Failure::from)?;
        self.runtime.block_on(self.observe_job(&job))
    }

    fn reconcile(&self, command: &Command, before: Option<&Before>) -> Reconciled {
        match self.job(command) {
            Ok(job) => self.runtime.block_on(self.reconcile_job(&job, before)),
            Err(refusal) => Reconciled::Unknown(refusal.reason),
        }
    }

    fn act(&self, command: &Command, before: &Before) -> Result<Effect, Failure> {
        let job = self.job(command).map_err(Failure::from)?;
        self.runtime.block_on(async {
            if job.request == Request::DeletePod {
                return self.delete(&job, before).await;
            }
            let object = self.change(&job, before).await?;
            self.settled(&job, object, before).await
        })
    }
}

#[cfg(test)]
mod tests;
