//! Restarts, stops and starts units of systemd, over D-Bus.
//!
//! Owns the names: which unit is meant by which service. Every start of a unit has an id of systemd's own, its invocation:
//! what is remembered is the one that ran, a restart happens only to that one, and has happened once another runs.
//! Stopping and starting are states. The manager is asked for a job, the job is waited for, and then the unit is looked
//! at: success is that it is active, for a while, and not that a job ended.

mod manager;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{runtime::Runtime, time::sleep};

use self::manager::{Manager, Trouble, Unit};
use crate::{
    Error,
    adapter::{Adapter, Before, Effect, Failure, Lifecycle, Reconciled, client_runtime, unknown_target},
    admission::Refusal,
    allow,
    command::Command,
};

const UNIT: &str = "unit";
const SERVICE: &str = "{service}";
const POLL: Duration = Duration::from_millis(100);
/// How long a call whose answer was lost may still be on its way.
const SLACK: Duration = Duration::from_secs(2);

/// The manager, and which of its units commands may be about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `system`, `session` (of the user's own manager), or an address such as `unix:path=/run/user/1000/bus`.
    pub bus: String,
    /// How long one answer may take.
    pub timeout_ms: u64,
    /// How long a unit must be active for its start to count.
    pub settle_ms: u64,
    pub target: Vec<Target>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bus: "system".into(),
            timeout_ms: 10_000,
            settle_ms: 1_000,
            target: vec![],
        }
    }
}

/// Which unit is meant by which names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Names as commands give them; `*` stands for any run of characters.
    pub service: String,
    /// With its suffix; `{service}` is the name in the command.
    #[serde(default = "Target::default_unit")]
    pub unit: String,
}

impl Target {
    fn default_unit() -> String {
        format!("{SERVICE}.service")
    }
}

impl Config {
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |text: String| Err(Error::Config(text));
        if !["system", "session"].contains(&&*self.bus) && !self.bus.contains(':') {
            return wrong(format!(
                "systemd.bus = {:?} is neither system, session nor an address",
                self.bus
            ));
        }
        if !(1..=600_000).contains(&self.timeout_ms) || self.settle_ms > 600_000 {
            return wrong("systemd.timeout_ms is 1 to 600000, systemd.settle_ms at most 600000".into());
        }
        for target in &self.target {
            let place = format!("[[systemd.target]] of service {:?}", target.service);
            if target.service.is_empty() {
                return wrong(format!("{place}: service is empty; \"*\" means every name"));
            }
            if !is_unit(&target.unit.replace(SERVICE, "x")) {
                return wrong(format!(
                    "{place}: unit = {:?} is no name of a unit, such as cart.service",
                    target.unit
                ));
            }
        }
        Ok(())
    }
}

fn is_unit(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let suffix = text.rsplit_once('.').map(|(name, suffix)| (name.is_empty(), suffix));
    let known = ["service", "socket", "timer", "target", "path", "mount"];
    text.len() < 256 && text.chars().all(plain) && matches!(suffix, Some((false, suffix)) if known.contains(&suffix))
}

/// The manager's method that does it.
fn method(request: Lifecycle) -> &'static str {
    match request {
        Lifecycle::Restart => "RestartUnit",
        Lifecycle::Stop => "StopUnit",
        Lifecycle::Start => "StartUnit",
    }
}

/// A command that was understood.
struct Job {
    request: Lifecycle,
    unit: String,
    deadline: Instant,
}

/// One manager.
pub struct SystemdAdapter {
    config: Config,
    runtime: Runtime,
}

impl SystemdAdapter {
    /// Connects when there is something to do.
    pub fn new(config: &Config) -> Result<Self, Error> {
        config.check()?;
        let runtime = client_runtime("systemd").map_err(|error| Error::Config(format!("[systemd]: {error}")))?;
        Ok(Self {
            config: config.clone(),
            runtime,
        })
    }

    fn job(&self, command: &Command) -> Result<Job, Refusal> {
        let request = Lifecycle::of(command, "systemd")?;
        let service = command.service();
        let target = self
            .config
            .target
            .iter()
            .find(|target| allow::matches(&target.service, service))
            .ok_or_else(|| unknown_target(format!("no [[systemd.target]] is for {service:?}; add one")))?;
        let unit = target.unit.replace(SERVICE, service);
        if !is_unit(&unit) {
            return Err(unknown_target(format!("{unit:?} is no name of a unit")));
        }
        Ok(Job {
            request,
            unit,
            deadline: Instant::now() + command.exec_timeout(),
        })
    }

    async fn connect(&self) -> Result<Manager, Trouble> {
        Manager::connect(&self.config.bus, Duration::from_millis(self.config.timeout_ms)).await
    }

    async fn look(&self, unit: &str) -> Result<Unit, Trouble> {
        self.connect().await?.unit(unit).await
    }

    async fn observe_job(&self, job: &Job) -> Result<Before, Failure> {
        let unit = self.look(&job.unit).await.map_err(|trouble| match trouble {
            // Nothing was asked for yet.
            Trouble::Open(reason) => Failure::retryable(format!("unit {}: {reason}", job.unit)),
            other => named(job, other),
        })?;
        match &*unit.load_state {
            "loaded" => Ok(Before::from_iter([(UNIT.to_owned(), json!(unit))])),
            "not-found" => Err(Failure::coded(404, format!("unit {} does not exist", job.unit))),
            state => Err(Failure::coded(
                409,
                format!("unit {} cannot be used: it is {state}", job.unit),
            )),
        }
    }

    /// Asks the manager at most once for a restart, and for a state until it is there.
    async fn act_on(&self, job: &Job, before: &Unit) -> Result<Effect, Failure> {
        let now = self.look(&job.unit).await.map_err(|trouble| match trouble {
            Trouble::Open(reason) => Failure::retryable(format!("unit {}: {reason}", job.unit)),
            other => named(job, other),
        })?;
        if !there(job, before, &now) {
            let asked = match self.connect().await {
                Ok(manager) => manager.ask(method(job.request), &job.unit).await,
                Err(trouble) => Err(trouble),
            };
            match asked {
                Err(Trouble::Open(reason)) if !self.arrived(job, before).await => {
                    return Err(Failure::Unknown(format!("unit {}: {reason}", job.unit)));
                }
                Ok(()) | Err(Trouble::Open(_)) => {}
                Err(trouble) => return Err(named(job, trouble)),
            }
        }
        self.settled(job, before).await
    }

    /// Whether a call without an answer shows: a job, or what it is for.
    async fn arrived(&self, job: &Job, before: &Unit) -> bool {
        let until = (Instant::now() + SLACK).min(job.deadline);
        loop {
            if let Ok(now) = self.look(&job.unit).await
                && (now.has_job || there(job, before, &now))
            {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            sleep(POLL).await;
        }
    }

    /// Waits for the job to be gone and for the unit to be as it should, as long as the command allows.
    async fn settled(&self, job: &Job, before: &Unit) -> Result<Effect, Failure> {
        let settle = Duration::from_millis(self.config.settle_ms);
        let mut since: Option<(Instant, String)> = None;
        loop {
            match self.look(&job.unit).await {
                Ok(now) if now.has_job => {}
                Ok(now) if !there(job, before, &now) && now.is_down() => {
                    let (state, result) = (&now.active_state, &now.result);
                    return Err(Failure::failed(format!(
                        "unit {} is {state}, with result {result}",
                        job.unit
                    )));
                }
                Ok(now) if there(job, before, &now) => {
                    if job.request == Lifecycle::Stop || now.has_run() {
                        return Ok(effect(job, before, &now));
                    }
                    match &since {
                        // Another invocation than a moment ago: it was started again by itself.
                        Some((_, invocation)) if *invocation != now.invocation => {
                            return Err(Failure::failed(format!(
                                "unit {} ends and is started over and over",
                                job.unit
                            )));
                        }
                        Some((at, _)) if now.active_state == "active" && at.elapsed() >= settle => {
                            return Ok(effect(job, before, &now));
                        }
                        Some(_) if now.is_down() => {
                            let result = &now.result;
                            return Err(Failure::failed(format!(
                                "unit {} was started and ended: {result}",
                                job.unit
                            )));
                        }
                        Some(_) => {}
                        None => since = Some((Instant::now(), now.invocation)),
                    }
                }
                Ok(_) | Err(Trouble::Open(_) | Trouble::Unreachable(_)) => {}
                Err(trouble) => return Err(named(job, trouble)),
            }
            if Instant::now() + POLL >= job.deadline {
                return Err(Failure::Unknown(format!(
                    "unit {}: asked, and not settled in time",
                    job.unit
                )));
            }
            sleep(POLL).await;
        }
    }

    async fn reconcile_job(&self, job: &Job, before: &Unit) -> Reconciled {
        if !self.arrived(job, before).await {
            return match self.look(&job.unit).await {
                Ok(_) => Reconciled::NotDone,
                Err(trouble) => Reconciled::Unknown(trouble.reason()),
            };
        }
        match self.settled(job, before).await {
            Ok(effect) => Reconciled::Done(effect),
            Err(Failure::Unknown(reason)) => Reconciled::Unknown(reason),
            Err(failure) => Reconciled::Failed(failure),
        }
    }
}

/// Whether what was asked for has begun.
fn there(job: &Job, before: &Unit, now: &Unit) -> bool {
    match job.request {
        Lifecycle::Restart => now.invocation != before.invocation && !now.invocation.is_empty(),
        Lifecycle::Stop => now.is_down(),
        Lifecycle::Start => !now.is_down() || (now.invocation != before.invocation && now.has_run()),
    }
}

fn remembered(before: &Before) -> Option<Unit> {
    serde_json::from_value(before.get(UNIT)?.clone()).ok()
}

fn named(job: &Job, trouble: Trouble) -> Failure {
    let reason = format!("unit {}: {}", job.unit, trouble.reason());
    match trouble {
        Trouble::Refused(code, _) => Failure::coded(code, reason),
        Trouble::Unreachable(_) => Failure::retryable(reason),
        Trouble::Open(_) => Failure::Unknown(reason),
    }
}

fn effect(job: &Job, before: &Unit, after: &Unit) -> Effect {
    Effect::from_iter([
        (UNIT.to_owned(), json!(job.unit)),
        ("before".to_owned(), json!(before)),
        ("after".to_owned(), json!(after)),
    ])
}

impl Adapter for SystemdAdapter {
    fn knows(&self, command: &Command) -> Result<(), Refusal> {
        self.job(command).map(|_| ())
    }

    fn observe(&self, command: &Command) -> Result<Before, Failure> {
        let job = self.job(command)?;
        self.runtime.block_on(self.observe_job(&job))
    }

    fn reconcile(&self, command: &Command, before: Option<&Before>) -> Reconciled {
        let Some(before) = before else {
            return Reconciled::NotDone;
        };
        match (self.job(command), remembered(before)) {
            (Ok(job), Some(before)) => self.runtime.block_on(self.reconcile_job(&job, &before)),
            (Ok(_), None) => Reconciled::Unknown("what was seen before cannot be read".into()),
            (Err(refusal), _) => Reconciled::Unknown(refusal.reason),
        }
    }

    fn act(&self, command: &Command, before: &Before) -> Result<Effect, Failure> {
        let job = self.job(command)?;
        let before = remembered(before).ok_or_else(|| Failure::failed("no unit was seen before"))?;
        self.runtime.block_on(self.act_on(&job, &before))
    }
}

#[cfg(test)]
mod tests;
