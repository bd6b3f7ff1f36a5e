//! Restarts, stops and starts containers of a Docker Engine, or of what speaks its API.
//!
//! Owns the names: which containers are meant by which service, by name or by labels, and never more than so many. An
//! engine keeps no marker, so what is remembered is when each container was started: a restart happens only to a
//! container that still runs since then, and has happened once it runs since later. Stopping and starting are states,
//! and asking for one again does no harm. An engine that took a request goes on with it when the connection is lost, so
//! after a lost answer the container is watched for as long as it may take to stop, and not asked twice.
//!
//! Success is seen, not said: the container runs for a while, and is healthy where it says so itself.

mod container;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{runtime::Runtime, time::sleep};

use self::container::{Engine, Found, Health, Trouble};
use crate::{
    Error,
    adapter::{Adapter, Before, Effect, Failure, Lifecycle, Reconciled, client_runtime, unknown_target},
    admission::Refusal,
    allow,
    command::Command,
};

const CONTAINERS: &str = "containers";
const POLL: Duration = Duration::from_millis(100);
/// Beside the grace that a container has to stop.
const SLACK: Duration = Duration::from_secs(2);

/// The engine, and which of its containers commands may be about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `unix:///path` or `http://host:port`.
    pub host: String,
    /// How long one answer may take, beside a container's grace.
    pub timeout_ms: u64,
    /// How long a container may take to end after SIGTERM before it is killed.
    pub stop_timeout_s: u32,
    /// How long a container without a health check must run for its start to count.
    pub settle_ms: u64,
    pub target: Vec<Target>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            host: "unix:///var/run/docker.sock".into(),
            timeout_ms: 10_000,
            stop_timeout_s: 10,
            settle_ms: 1_000,
            target: vec![],
        }
    }
}

/// Which containers are meant by which names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Names as commands give them; `*` stands for any run of characters.
    pub service: String,
    /// The container's name; without it and without labels, the name in the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Labels that a container must have, all of them; `{service}` in a value is the name in the command.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// More containers than this are a mistake: none of them is touched.
    #[serde(default = "Target::default_containers_max")]
    pub containers_max: usize,
}

impl Target {
    fn default_containers_max() -> usize {
        1
    }

    fn check(&self) -> Result<(), String> {
        if self.service.is_empty() {
            return Err("service is empty; \"*\" means every name".into());
        }
        if self.container.is_some() && !self.labels.is_empty() {
            return Err("container and labels are both set; one says which".into());
        }
        if let Some(name) = self.container.as_ref().filter(|name| !is_name(name)) {
            return Err(format!("container = {name:?} is no name of a container"));
        }
        if let Some(name) = self.labels.keys().find(|name| name.is_empty() || name.contains('=')) {
            return Err(format!("labels: {name:?} is no label"));
        }
        if !(1..=100).contains(&self.containers_max) {
            return Err(format!(
                "containers_max = {} is out of range; it is 1 to 100",
                self.containers_max
            ));
        }
        Ok(())
    }
}

impl Config {
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |text: String| Err(Error::Config(text));
        if !["unix:///", "http://"]
            .iter()
            .any(|scheme| self.host.starts_with(scheme))
        {
            return wrong(format!(
                "docker.host = {:?} is neither unix:///path nor http://host:port",
                self.host
            ));
        }
        if !(1..=600_000).contains(&self.timeout_ms) {
            return wrong(format!(
                "docker.timeout_ms = {} is out of range; it is 1 to 600000",
                self.timeout_ms
            ));
        }
        if self.stop_timeout_s > 3_600 || self.settle_ms > 600_000 {
            return wrong("docker.stop_timeout_s is at most 3600, docker.settle_ms at most 600000".into());
        }
        for target in &self.target {
            if let Err(reason) = target.check() {
                return wrong(format!("[[docker.target]] of service {:?}: {reason}", target.service));
            }
        }
        Ok(())
    }
}

/// What a container may be called: it becomes part of a URL.
fn is_name(text: &str) -> bool {
    text.len() <= 253
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// A command that was understood.
struct Job<'a> {
    target: &'a Target,
    request: Lifecycle,
    service: &'a str,
    engine: Engine,
    deadline: Instant,
    /// No call that changes something is repeated later.
    repeat_until: Instant,
}

/// One engine.
pub struct DockerAdapter {
    config: Config,
    runtime: Runtime,
}

impl DockerAdapter {
    /// Connects when there is something to do.
    pub fn new(config: &Config) -> Result<Self, Error> {
        config.check()?;
        let runtime = client_runtime("docker").map_err(|error| Error::Config(format!("[docker]: {error}")))?;
        Ok(Self {
            config: config.clone(),
            runtime,
        })
    }

    fn job<'a>(&'a self, command: &'a Command) -> Result<Job<'a>, Refusal> {
        let request = Lifecycle::of(command, "docker")?;
        let service = command.service();
        let target = self
            .config
            .target
            .iter()
            .find(|target| allow::matches(&target.service, service))
            .ok_or_else(|| unknown_target(format!("no [[docker.target]] is for {service:?}; add one")))?;
        if !is_name(service) {
            return Err(unknown_target(format!("{service:?} is no name of a container")));
        }
        let stop_timeout = Duration::from_secs(self.config.stop_timeout_s.into());
        Ok(Job {
            target,
            request,
            service,
            engine: Engine::new(
                &self.config.host,
                Duration::from_millis(self.config.timeout_ms),
                stop_timeout,
            ),
            deadline: Instant::now() + command.exec_timeout(),
            repeat_until: Instant::now() + command.exec_timeout().min(command.may_start_for()),
        })
    }

    async fn find(&self, job: &Job<'_>) -> Result<Vec<Found>, Trouble> {
        let found = if job.target.labels.is_empty() {
            let name = job.target.container.as_deref().unwrap_or(job.service);
            vec![job.engine.by_name(name).await?]
        } else {
            let labels = job.target.labels.iter();
            let labels = labels.map(|(name, value)| format!("{name}={}", value.replace("{service}", job.service)));
            job.engine.by_labels(labels.collect()).await?
        };
        let max = job.target.containers_max;
        match found.len() {
            0 => Err(Trouble::Refused(
                404,
                format!("no container has the labels of {:?}", job.service),
            )),
            many if many > max => {
                let names: Vec<&str> = found.iter().map(|found| &*found.name).collect();
                let names = names.join(", ");
                Err(Trouble::Refused(
                    409,
                    format!("{many} containers match, containers_max is {max}: {names}"),
                ))
            }
            _ => Ok(found),
        }
    }

    async fn act_on(&self, job: &Job<'_>, containers: &[Found]) -> Result<Effect, Failure> {
        let mut after = Vec::new();
        for before in containers {
            let asked = match job.request {
                Lifecycle::Restart => self.restart(job, before).await,
                Lifecycle::Stop => self.ask(job, before, |found| !found.running).await,
                Lifecycle::Start => self.ask(job, before, |found| found.running).await,
            };
            asked.map_err(|trouble| named(before, trouble))?;
            after.push(self.settled(job, before).await?);
        }
        Ok(effect(containers, &after))
    }

    /// Restarts a container that still runs since it was seen, once.
    async fn restart(&self, job: &Job<'_>, before: &Found) -> Result<(), Trouble> {
        let now = job.engine.inspect(&before.id).await?;
        if now.started_at != before.started_at {
            return Ok(());
        }
        match job.engine.post(job.request, &before.id).await {
            Err(Trouble::Open(reason)) => {
                if self.changed(job, before).await? {
                    return Ok(());
                }
                Err(Trouble::Open(reason))
            }
            answer => answer,
        }
    }

    /// Whether the container is started again, for as long as an engine may take that was asked to.
    async fn changed(&self, job: &Job<'_>, before: &Found) -> Result<bool, Trouble> {
        let until = Instant::now() + job.engine.stop_timeout + SLACK;
        loop {
            match job.engine.inspect(&before.id).await {
                Ok(now) if now.started_at != before.started_at => return Ok(true),
                Ok(_) | Err(Trouble::Open(_) | Trouble::Unreachable(_)) => {}
                Err(trouble) => return Err(trouble),
            }
            if Instant::now() >= until.min(job.deadline) {
                return Ok(false);
            }
            sleep(POLL).await;
        }
    }

    /// Asks for a state until it is there: asking again does no harm while the command may start.
    async fn ask(&self, job: &Job<'_>, before: &Found, is: impl Fn(&Found) -> bool) -> Result<(), Trouble> {
        let mut last = None;
        loop {
            let trouble = match (job.engine.inspect(&before.id).await, &last) {
                (Ok(now), _) if is(&now) => return Ok(()),
                (Ok(_), Some(last)) if Instant::now() >= job.repeat_until => Trouble::clone(last),
                (Ok(_), _) => match job.engine.post(job.request, &before.id).await {
                    Ok(()) => return Ok(()),
                    Err(trouble) => trouble,
                },
                (Err(trouble), _) => trouble,
            };
            if matches!(trouble, Trouble::Refused(..)) || Instant::now() + POLL >= job.deadline {
                return Err(trouble);
            }
            last = Some(trouble);
            sleep(POLL).await;
        }
    }

    /// Waits until the container does what it should, as long as the command allows.
    async fn settled(&self, job: &Job<'_>, before: &Found) -> Result<Found, Failure> {
        let settle = Duration::from_millis(self.config.settle_ms);
        let mut running_since = None;
        loop {
            match job.engine.inspect(&before.id).await {
                Ok(now) if job.request == Lifecycle::Stop && !now.running => return Ok(now),
                Ok(now) if job.request != Lifecycle::Stop => {
                    let since = *running_since.get_or_insert_with(Instant::now);
                    match (now.running, now.health) {
                        (true, Health::Good) => return Ok(now),
                        (true, Health::None) if since.elapsed() >= settle => return Ok(now),
                        (true, Health::Bad) => return Err(failed(before, "runs, and says that it is not healthy")),
                        (true, _) => {}
                        (false, _) if now.restarting => running_since = None,
                        (false, _) => {
                            let code = now.exit_code;
                            return Err(failed(before, &format!("was started, and ended with code {code}")));
                        }
                    }
                }
                Ok(_) | Err(Trouble::Open(_) | Trouble::Unreachable(_)) => {}
                Err(trouble) => return Err(named(before, trouble)),
            }
            if Instant::now() + POLL >= job.deadline {
                let reason = format!("container {}: asked, and not settled in time", before.name);
                return Err(Failure::Unknown(reason));
            }
            sleep(POLL).await;
        }
    }

    async fn reconcile_job(&self, job: &Job<'_>, before: &Before) -> Reconciled {
        let Some(containers) = remembered(before) else {
            return Reconciled::Unknown("what was seen before cannot be read".into());
        };
        let mut after = Vec::new();
        for before in &containers {
            let there = match job.request {
                Lifecycle::Restart => self.changed(job, before).await,
                Lifecycle::Stop => job.engine.inspect(&before.id).await.map(|now| !now.running),
                Lifecycle::Start => job.engine.inspect(&before.id).await.map(|now| now.running),
            };
            match there {
                Ok(true) => {}
                Ok(false) => return Reconciled::NotDone,
                Err(trouble) => return Reconciled::Unknown(trouble.reason(&before.name)),
            }
            match self.settled(job, before).await {
                Ok(found) => after.push(found),
                Err(Failure::Unknown(reason)) => return Reconciled::Unknown(reason),
                Err(failure) => return Reconciled::Failed(failure),
            }
        }
        Reconciled::Done(effect(&containers, &after))
    }
}

fn remembered(before: &Before) -> Option<Vec<Found>> {
    let found: Vec<Found> = serde_json::from_value(before.get(CONTAINERS)?.clone()).ok()?;
    (!found.is_empty()).then_some(found)
}

fn failed(container: &Found, what: &str) -> Failure {
    Failure::failed(format!("container {} {what}", container.name))
}

fn named(container: &Found, trouble: Trouble) -> Failure {
    let reason = trouble.reason(&container.name);
    match trouble {
        Trouble::Refused(code, _) => Failure::coded(code, reason),
        Trouble::Unreachable(_) => Failure::retryable(reason),
        Trouble::Open(_) => Failure::Unknown(reason),
    }
}

fn effect(before: &[Found], after: &[Found]) -> Effect {
    Effect::from_iter([("before".to_owned(), json!(before)), ("after".to_owned(), json!(after))])
}

impl Adapter for DockerAdapter {
    fn knows(&self, command: &Command) -> Result<(), Refusal> {
        self.job(command).map(|_| ())
    }

    fn observe(&self, command: &Command) -> Result<Before, Failure> {
        let job = self.job(command)?;
        let found = self
            .runtime
            .block_on(self.find(&job))
            .map_err(|trouble| match trouble {
                Trouble::Refused(code, reason) => Failure::coded(code, reason),
                Trouble::Open(reason) | Trouble::Unreachable(reason) => Failure::retryable(reason),
            })?;
        Ok(Before::from_iter([(CONTAINERS.to_owned(), json!(found))]))
    }

    fn reconcile(&self, command: &Command, before: Option<&Before>) -> Reconciled {
        match (self.job(command), before) {
            (Ok(_), None) => Reconciled::NotDone,
            (Ok(job), Some(before)) => self.runtime.block_on(self.reconcile_job(&job, before)),
            (Err(refusal), _) => Reconciled::Unknown(refusal.reason),
        }
    }

    fn act(&self, command: &Command, before: &Before) -> Result<Effect, Failure> {
        let job = self.job(command)?;
        let containers = remembered(before).ok_or_else(|| Failure::failed("no container was seen before"))?;
        self.runtime.block_on(self.act_on(&job, &containers))
    }
}

#[cfg(test)]
mod tests;
