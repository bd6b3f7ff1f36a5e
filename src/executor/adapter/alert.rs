//! Tells people, through the systems that call them: Alertmanager, a Slack-compatible webhook, PagerDuty.
//!
//! Owns the bodies that these systems understand; the asking, and asking again, is the webhook adapter's. An alert
//! carries the action's id where the receiver can tell a repetition by it (PagerDuty's `dedup_key`, the labels of
//! Alertmanager), and then it is repeated until it is known to have arrived. A chat cannot: a message without an answer
//! is unknown.

use std::{collections::BTreeMap, env, path::PathBuf};

use protocol::time::to_rfc3339;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Error,
    adapter::{
        Adapter, Before, Effect, Failure, Reconciled,
        webhook::{Endpoint, WebhookAdapter},
    },
    admission::Refusal,
    command::Command,
};

const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";
const ALERTS_PATH: &str = "/api/v2/alerts";
const SEVERITIES: [&str; 4] = ["critical", "error", "warning", "info"];
const SEVERITY: &str = "severity";
const REASON: &str = "reason";
/// PagerDuty takes no longer summary.
const SUMMARY_CHARS_MAX: usize = 1_024;
const LASTS_MS_MAX: u64 = 7 * 86_400_000;

/// Who may be told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub receiver: Vec<Receiver>,
}

/// One system that calls people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receiver {
    /// The name by which an allow-list entry refers to it.
    pub name: String,
    pub kind: Kind,
    /// Alertmanager: where it listens. Slack: the incoming webhook. PagerDuty: its own by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The environment variable that holds the URL, where the URL is a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_env: Option<String>,
    /// PagerDuty: the environment variable that holds the integration's routing key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing_key_env: Option<String>,
    /// When the command has no parameter `severity`: critical, error, warning or info.
    #[serde(default = "Receiver::default_severity")]
    pub severity: String,
    /// Alertmanager: labels to route by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Alertmanager: how long the alert stands.
    #[serde(default = "Receiver::default_lasts_ms")]
    pub lasts_ms: u64,
    /// Header name → the environment variable that holds its value.
    #[serde(default)]
    pub header_env: BTreeMap<String, String>,
    #[serde(default = "Receiver::default_timeout_ms")]
    pub timeout_ms: u64,
    /// PEM of a certificate authority to trust beside the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// What language a receiver speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Alertmanager,
    Slack,
    Pagerduty,
}

impl Receiver {
    fn default_severity() -> String {
        "error".into()
    }

    fn default_lasts_ms() -> u64 {
        3_600_000
    }

    fn default_timeout_ms() -> u64 {
        10_000
    }

    fn check(&self) -> Result<(), String> {
        if !SEVERITIES.contains(&&*self.severity) {
            return Err(format!(
                "severity = {:?} is not one of {}",
                self.severity,
                SEVERITIES.join(", ")
            ));
        }
        if !(1..=600_000).contains(&self.timeout_ms) {
            return Err(format!(
                "timeout_ms = {} is out of range; it is 1 to 600000",
                self.timeout_ms
            ));
        }
        if !(1_000..=LASTS_MS_MAX).contains(&self.lasts_ms) {
            return Err(format!(
                "lasts_ms = {} is out of range; it is 1000 to {LASTS_MS_MAX}",
                self.lasts_ms
            ));
        }
        match (&self.url, &self.url_env) {
            (Some(_), Some(_)) => return Err("url and url_env are both set; one says where".into()),
            (None, None) if self.kind != Kind::Pagerduty => return Err("url or url_env is missing".into()),
            _ => {}
        }
        match (self.kind, &self.routing_key_env) {
            (Kind::Pagerduty, None) => Err("routing_key_env is missing".into()),
            (Kind::Alertmanager | Kind::Slack, Some(_)) => Err("routing_key_env is for kind = \"pagerduty\"".into()),
            _ if self.kind != Kind::Alertmanager && !self.labels.is_empty() => {
                Err("labels are for kind = \"alertmanager\"".into())
            }
            _ => Ok(()),
        }
    }

    fn url(&self) -> Result<String, String> {
        let url = match (&self.url, &self.url_env) {
            (Some(url), _) => url.clone(),
            (None, Some(variable)) => variable_of("url_env", variable)?,
            (None, None) => PAGERDUTY.to_owned(),
        };
        let path = if self.kind == Kind::Alertmanager {
            ALERTS_PATH
        } else {
            ""
        };
        Ok(format!("{}{path}", url.strip_suffix('/').unwrap_or(&url)))
    }

    fn endpoint(&self) -> Result<Endpoint, String> {
        Ok(Endpoint {
            name: self.name.clone(),
            url: self.url()?,
            headers: BTreeMap::new(),
            header_env: self.header_env.clone(),
            timeout_ms: self.timeout_ms,
            connect_timeout_ms: self.timeout_ms,
            idempotent: self.kind != Kind::Slack,
            ca_file: self.ca_file.clone(),
        })
    }
}

fn variable_of(key: &str, variable: &str) -> Result<String, String> {
    env::var(variable).map_err(|_| format!("{key}: the environment variable {variable} is not set"))
}

impl Config {
    pub fn check(&self) -> Result<(), Error> {
        for receiver in &self.receiver {
            receiver.check().map_err(|reason| wrong(receiver, &reason))?;
        }
        Ok(())
    }
}

fn wrong(receiver: &Receiver, reason: &str) -> Error {
    Error::Config(format!("[[alert.receiver]] {:?}: {reason}", receiver.name))
}

/// One receiver, ready to be told.
pub struct AlertAdapter {
    receiver: Receiver,
    routing_key: Option<String>,
    webhook: WebhookAdapter,
}

impl AlertAdapter {
    pub fn new(receiver: &Receiver) -> Result<Self, Error> {
        let wrong = |reason: String| wrong(receiver, &reason);
        receiver.check().map_err(wrong)?;
        let key = receiver.routing_key_env.as_deref();
        let key = key.map(|variable| variable_of("routing_key_env", variable)).transpose();
        Ok(Self {
            receiver: receiver.clone(),
            routing_key: key.map_err(wrong)?,
            webhook: WebhookAdapter::connect(&receiver.endpoint().map_err(wrong)?).map_err(wrong)?,
        })
    }

    fn severity<'a>(&'a self, command: &'a Command) -> Result<&'a str, Refusal> {
        let refused = |reason: String| Err(Refusal::rejected(412, reason));
        let params = &command.action.action.params;
        if let Some(name) = params.keys().find(|name| ![SEVERITY, REASON].contains(&name.as_str())) {
            return refused(format!("parameter {name:?} is none of an alert's: severity, reason"));
        }
        match params.get(SEVERITY) {
            None => Ok(&self.receiver.severity),
            Some(value) => match value.as_str().filter(|text| SEVERITIES.contains(text)) {
                Some(severity) => Ok(severity),
                None => refused(format!("severity {value} is not one of {}", SEVERITIES.join(", "))),
            },
        }
    }

    fn body(&self, command: &Command) -> Result<Value, Refusal> {
        let severity = self.severity(command)?;
        Ok(match self.receiver.kind {
            Kind::Alertmanager => alertmanager(command, severity, &self.receiver),
            Kind::Slack => slack(command, severity),
            Kind::Pagerduty => pagerduty(command, severity, self.routing_key.as_deref().unwrap_or_default()),
        })
    }
}

/// One line that says it all.
fn summary(command: &Command) -> String {
    let action = &command.action;
    let reason = action
        .action
        .params
        .get(REASON)
        .and_then(Value::as_str)
        .unwrap_or_default();
    let why = match reason {
        "" => format!("{} is firing", action.explain.detector),
        reason => reason.to_owned(),
    };
    let line = format!("{} of {}: {why}", command.kind(), command.service());
    line.chars().take(SUMMARY_CHARS_MAX).collect()
}

/// What identifies the alert and where it comes from, for people and for routing.
fn details(command: &Command) -> BTreeMap<&'static str, String> {
    let action = &command.action;
    let target = &action.target.target;
    let mut details = BTreeMap::from([
        ("service", target.name.clone()),
        ("namespace", target.namespace.clone()),
        ("environment", target.environment.clone()),
        ("tenant", target.tenant.clone()),
        ("policy", action.explain.policy.clone()),
        ("detector", action.explain.detector.clone()),
        ("incident_id", action.incident_id.to_string()),
        ("action_id", command.id().to_string()),
    ]);
    details.retain(|_, value| !value.is_empty());
    details
}

/// The same labels are the same alert: they are functions of the command.
fn alertmanager(command: &Command, severity: &str, receiver: &Receiver) -> Value {
    let mut labels = json!(receiver.labels);
    for (name, value) in details(command) {
        labels[name] = json!(value);
    }
    labels["alertname"] = json!(command.kind());
    labels["severity"] = json!(severity);
    let starts_ms = command.action.timing.decided_at;
    let ends_ms = starts_ms.saturating_add(i64::try_from(receiver.lasts_ms).unwrap_or(i64::MAX));
    json!([{
        "labels": labels,
        "annotations": { "summary": summary(command), "score": command.action.explain.score.to_string() },
        "startsAt": to_rfc3339(starts_ms),
        "endsAt": to_rfc3339(ends_ms),
    }])
}

fn slack(command: &Command, severity: &str) -> Value {
    let lines: Vec<String> = details(command)
        .into_iter()
        .map(|(name, value)| format!("{name}: {}", escaped(&value)))
        .collect();
    let text = format!("*{severity}* {}\n{}", escaped(&summary(command)), lines.join("\n"));
    json!({ "text": text })
}

/// The three characters by which Slack's markup would call people or link elsewhere.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn pagerduty(command: &Command, severity: &str, routing_key: &str) -> Value {
    let action = &command.action;
    json!({
        "routing_key": routing_key,
        "event_action": "trigger",
        "dedup_key": command.id(),
        "client": "homeostat",
        "payload": {
            "summary": summary(command),
            "source": action.target.key,
            "severity": severity,
            "timestamp": to_rfc3339(action.timing.decided_at),
            "component": command.service(),
            "group": action.target.target.namespace,
            "class": action.explain.detector,
            "custom_details": details(command),
        },
    })
}

impl Adapter for AlertAdapter {
    fn knows(&self, command: &Command) -> Result<(), Refusal> {
        self.severity(command).map(|_| ())
    }

    fn reconcile(&self, command: &Command, before: Option<&Before>) -> Reconciled {
        match before {
            None => Reconciled::NotDone,
            Some(_) => self.webhook.reconcile(command, before),
        }
    }

    fn act(&self, command: &Command, _before: &Before) -> Result<Effect, Failure> {
        let body = self.body(command)?;
        self.webhook.deliver(command, &body.to_string().into_bytes())
    }
}

#[cfg(test)]
mod tests;
