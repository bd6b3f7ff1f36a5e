//! Configuration: one TOML file over readable defaults, the environment over both. Unknown keys are refused.

use std::{
    collections::BTreeSet,
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use figment::{
    Figment, Source,
    error::Kind,
    providers::{Env, Format, Toml},
};
use protocol::{Topics, signature::Signer};
use serde::Deserialize;

use crate::{
    Error,
    adapter::{alert, catalogue, docker, kubernetes, log, process, systemd, webhook},
    admission::Limits,
    allow::{AdapterKind, Allow, Unlisted},
    budget::{Bounds, BreakerConfig, Rule, WINDOW_MS_MAX},
    trust,
};

/// The defaults, as shipped.
pub const DEFAULTS: &str = include_str!("default.toml");
const DAY_MS: i64 = 86_400_000;

/// Everything an operator may set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub id: String,
    pub concurrency: usize,
    pub in_flight_max: usize,
    pub drain_timeout_ms: u64,
    /// Executors of one group share the commands out; by default all of the fleet's do.
    #[serde(default)]
    pub group: Option<String>,
    /// What becomes of commands that no entry of `allow` is for.
    pub unlisted: Unlisted,
    pub kafka: kafka::KafkaConfig,
    pub topics: TopicsConfig,
    pub limits: LimitsConfig,
    pub ledger: LedgerConfig,
    pub http: HttpConfig,
    pub log: LoggingConfig,
    /// Whose commands count; empty: everybody's who may write to the topic.
    #[serde(default)]
    pub trust: Vec<trust::Entry>,
    /// Whether an unsigned command is refused; by default when `trust` names a key.
    #[serde(default)]
    pub require_signature: Option<bool>,
    #[serde(default)]
    pub signing: SigningConfig,
    /// What may be done at all.
    #[serde(default)]
    pub allow: Vec<Allow>,
    #[serde(default)]
    pub process: process::Config,
    #[serde(default)]
    pub webhook: webhook::Config,
    #[serde(default)]
    pub command_log: log::Config,
    #[serde(default)]
    pub kubernetes: kubernetes::Config,
    #[serde(default)]
    pub catalogue: catalogue::Config,
    #[serde(default)]
    pub alert: alert::Config,
    #[serde(default)]
    pub docker: docker::Config,
    #[serde(default)]
    pub systemd: systemd::Config,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicsConfig {
    pub prefix: String,
    /// Empty: the prefix without its separator.
    pub tenant: String,
    /// The topic that policies write to by INTO; by default the fleet's `actions`.
    #[serde(default)]
    pub actions: Option<String>,
}

/// Whether outcomes are signed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SigningConfig {
    /// The private key, as `homeostat keys generate` makes it; outcomes are not signed without one.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    pub skew_margin_ms: i64,
    pub age_max_ms: i64,
    pub control_timeout_ms: u64,
    /// Over all actions.
    pub actions_max: u32,
    pub window_ms: i64,
    /// Over some, beside that.
    #[serde(default)]
    pub budget: Vec<Rule>,
    pub breaker: BreakerConfig,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerConfig {
    #[serde(default)]
    pub path: Option<PathBuf>,
    pub retention_days: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    pub listen: SocketAddr,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoggingConfig {
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

impl Config {
    /// Reads the file over the defaults and the environment over both. A file that is named must exist.
    pub fn load(file: Option<&Path>) -> Result<Self, Error> {
        let mut figment = Figment::from(Toml::string(DEFAULTS));
        if let Some(path) = file {
            if !path.is_file() {
                return Err(Error::Config(format!(
                    "the configuration file {} does not exist; without --config the defaults hold",
                    path.display()
                )));
            }
            figment = figment.merge(Toml::file_exact(path));
        }
        figment = figment.merge(Env::prefixed("HOMEOSTAT_EXECUTOR__").split("__"));
        if let Ok(bootstrap) = env::var("KAFKA_BOOTSTRAP") {
            figment = figment.merge(("kafka.bootstrap", bootstrap));
        }
        let config: Self = figment.extract().map_err(|error| explain(&error, file))?;
        config.check()?;
        Ok(config)
    }

    pub fn topics(&self) -> Topics {
        let topics = Topics::new(self.topics.prefix.clone());
        match self.topics.tenant.as_str() {
            "" => topics,
            tenant => topics.with_tenant(tenant),
        }
    }

    /// `None` when neither the configuration nor the environment says where state may be kept.
    pub fn ledger_path(&self) -> Option<PathBuf> {
        let state_home = || {
            let xdg = env::var_os("XDG_STATE_HOME")
                .map(PathBuf::from)
                .filter(|path| path.is_absolute());
            let home = env::var_os("HOME").map(PathBuf::from).filter(|path| path.is_absolute());
            xdg.or_else(|| home.map(|home| home.join(".local/state")))
        };
        self.ledger.path.clone().or_else(|| {
            let directory = format!("homeostat/executor-{}", self.id);
            Some(state_home()?.join(directory).join("ledger.redb"))
        })
    }

    /// Reads the key that outcomes are signed with, if there is one.
    pub fn signer(&self) -> Result<Option<Signer>, Error> {
        let Some(path) = &self.signing.key_file else {
            return Ok(None);
        };
        let wrong = |reason: String| Error::Config(format!("signing.key_file {}: {reason}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        let signer = Signer::from_pem(&text).map_err(|error| wrong(error.to_string()))?;
        Ok(Some(signer))
    }

    pub fn limits(&self) -> Limits {
        Limits {
            skew_margin_ms: self.limits.skew_margin_ms,
            age_ms_max: self.limits.age_max_ms,
        }
    }

    pub fn bounds(&self) -> Bounds {
        let over_all = Rule {
            action: "*".into(),
            target: "*".into(),
            actions_max: self.limits.actions_max,
            window_ms: self.limits.window_ms,
        };
        Bounds {
            budget: [vec![over_all], self.limits.budget.clone()].concat(),
            breaker: self.limits.breaker,
        }
    }

    pub fn retention_ms(&self) -> i64 {
        i64::from(self.ledger.retention_days) * DAY_MS
    }

    pub fn control_timeout(&self) -> Duration {
        Duration::from_millis(self.limits.control_timeout_ms)
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |text: String| Err(Error::Config(text));
        if self.id.is_empty()
            || !self.id.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
            || self.id.starts_with('.')
        {
            return wrong(format!(
                "id = {:?} must be letters, digits, `.`, `_` and `-`, and not begin with `.`",
                self.id
            ));
        }
        if self.topics.prefix.is_empty()
            || !self
                .topics
                .prefix
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        {
            return wrong(format!(
                "topics.prefix = {:?} is no topic name; for example \"homeostat.\"",
                self.topics.prefix
            ));
        }
        for (key, value) in [("concurrency", self.concurrency), ("in_flight_max", self.in_flight_max)] {
            if !(1..=4096).contains(&value) {
                return wrong(format!("{key} = {value} is out of range; it is 1 to 4096"));
            }
        }
        if self.limits.skew_margin_ms < 0 || self.limits.age_max_ms <= 0 {
            return wrong("limits.skew_margin_ms is at least 0 and limits.age_max_ms at least 1".into());
        }
        self.check_bounds()?;
        self.check_services()?;
        self.kubernetes.check()?;
        self.catalogue.check()?;
        self.alert.check()?;
        self.docker.check()?;
        self.systemd.check()?;
        self.check_allow()
    }

    fn check_bounds(&self) -> Result<(), Error> {
        for (index, rule) in self.bounds().budget.iter().enumerate() {
            let place = match index {
                0 => "limits".to_owned(),
                index => format!("[[limits.budget]] entry {index}"),
            };
            let wrong = |text: String| Err(Error::Config(format!("{place}: {text}")));
            if rule.action.is_empty() || rule.target.is_empty() {
                return wrong("action and target must not be empty; \"*\" means every one".into());
            }
            if !(1..=100_000).contains(&rule.actions_max) {
                let given = rule.actions_max;
                return wrong(format!("actions_max = {given} is out of range; it is 1 to 100000"));
            }
            check_span(&place, "window_ms", rule.window_ms)?;
        }
        let BreakerConfig { failures_max, open_ms } = self.limits.breaker;
        if !(1..=1_000_000).contains(&failures_max) {
            let place = "limits.breaker: failures_max";
            let text = format!("{place} = {failures_max} is out of range; it is 1 to 1000000");
            return Err(Error::Config(text));
        }
        check_span("limits.breaker", "open_ms", open_ms)
    }

    fn check_services(&self) -> Result<(), Error> {
        let mut names = BTreeSet::new();
        for service in &self.process.service {
            let wrong = |text: &str| Err(Error::Config(format!("[[process.service]] {:?}: {text}", service.name)));
            if !names.insert(&service.name) {
                return wrong("there are two of this name; names are unique");
            }
            if service.command.first().is_none_or(String::is_empty) {
                return wrong("command is empty; it is the program and its arguments, as [\"program\", \"argument\"]");
            }
            if !service.pid_file.is_absolute() {
                return wrong("pid_file must be an absolute path: who starts the service may do so from elsewhere");
            }
        }
        Ok(())
    }

    fn check_allow(&self) -> Result<(), Error> {
        for (index, allow) in self.allow.iter().enumerate() {
            let wrong = |text: String| {
                let place = format!(
                    "[[allow]] entry {} (action {:?}, target {:?})",
                    index + 1,
                    allow.action,
                    allow.target
                );
                Err(Error::Config(format!("{place}: {text}")))
            };
            if allow.action.is_empty() || allow.target.is_empty() {
                return wrong("action and target must not be empty; target = \"*\" means every service".into());
            }
            let adapter = allow.adapter.as_str();
            match (self.entries(allow.adapter)?, &allow.endpoint) {
                (Some(entries), None) => {
                    let (key, table) = (entries.key, entries.table);
                    return wrong(format!("adapter = {adapter:?} needs {key}, the name of a [[{table}]]"));
                }
                (Some(entries), Some(name)) if !entries.names.contains(&**name) => {
                    let hint = nearest(name, entries.names.iter().copied());
                    return wrong(format!("{} {name:?} is no [[{}]]{hint}", entries.key, entries.table));
                }
                (None, Some(_)) => {
                    return wrong(format!("adapter = {adapter:?} has no endpoint; leave it out"));
                }
                _ => {}
            }
            if let Some(table) = self.lacks_targets(allow.adapter) {
                return wrong(format!(
                    "adapter = {adapter:?} has nothing to act on; add a [[{table}]]"
                ));
            }
        }
        Ok(())
    }

    /// What a permission has to name for an adapter that has several of it.
    fn entries(&self, adapter: AdapterKind) -> Result<Option<Entries<'_>>, Error> {
        let (key, table, names): (_, _, Vec<&str>) = match adapter {
            AdapterKind::Webhook => {
                let names = self.webhook.endpoint.iter().map(|endpoint| &*endpoint.name);
                ("endpoint", "webhook.endpoint", names.collect())
            }
            AdapterKind::Catalogue => {
                let names = self.catalogue.command.iter().map(|entry| &*entry.name);
                ("command", "catalogue.command", names.collect())
            }
            AdapterKind::Alert => {
                let names = self.alert.receiver.iter().map(|receiver| &*receiver.name);
                ("receiver", "alert.receiver", names.collect())
            }
            _ => return Ok(None),
        };
        let all = names.len();
        let names: BTreeSet<&str> = names.into_iter().collect();
        if names.len() < all {
            return Err(Error::Config(format!(
                "two [[{table}]] have the same name; names are unique"
            )));
        }
        Ok(Some(Entries { key, table, names }))
    }

    /// The table that is missing for an adapter that is of no use without.
    fn lacks_targets(&self, adapter: AdapterKind) -> Option<&'static str> {
        match adapter {
            AdapterKind::Kubernetes => self.kubernetes.target.is_empty().then_some("kubernetes.target"),
            AdapterKind::Docker => self.docker.target.is_empty().then_some("docker.target"),
            AdapterKind::Systemd => self.systemd.target.is_empty().then_some("systemd.target"),
            _ => None,
        }
    }
}

fn check_span(place: &str, key: &str, given_ms: i64) -> Result<(), Error> {
    if (1..=WINDOW_MS_MAX).contains(&given_ms) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "{place}: {key} = {given_ms} is out of range; it is 1 to {WINDOW_MS_MAX}, a day"
    )))
}

/// The named parts of one adapter's configuration.
struct Entries<'a> {
    key: &'static str,
    table: &'static str,
    names: BTreeSet<&'a str>,
}

/// The first error with its place, and the nearest key where one is unknown.
fn explain(error: &figment::Error, file: Option<&Path>) -> Error {
    let metadata = error.metadata.as_ref();
    let place = match metadata.map(|metadata| &metadata.source) {
        Some(Some(Source::File(_))) => file.map_or_else(String::new, |file| match line_of(file, error) {
            Some(line) => format!("{}, line {line}", file.display()),
            None => file.display().to_string(),
        }),
        _ => metadata.map(|metadata| metadata.name.to_string()).unwrap_or_default(),
    };
    let path = error.path.join(".");
    let at = if path.is_empty() {
        String::new()
    } else {
        format!(" {path}:")
    };
    let place = if place.is_empty() {
        String::new()
    } else {
        format!(" ({place})")
    };
    Error::Config(match &error.kind {
        Kind::UnknownField(name, known) => {
            format!("unknown key {name:?}{place}{}", nearest(name, known.iter().copied()))
        }
        Kind::UnknownVariant(name, known) => format!("{at} {name:?} is not one of {}{place}", known.join(", "))
            .trim_start()
            .to_owned(),
        kind => format!("{at} {kind}{place}").trim_start().to_owned(),
    })
}

/// The line of the key that the error is about; the parser does not keep it.
fn line_of(file: &Path, error: &figment::Error) -> Option<usize> {
    let key = match &error.kind {
        Kind::UnknownField(name, _) => name,
        _ => error.path.iter().rev().find(|part| part.parse::<usize>().is_err())?,
    };
    let text = std::fs::read_to_string(file).ok()?;
    let index = text.lines().position(|line| {
        let line = line.trim_start();
        let names = |rest: &str| rest.trim_start().starts_with(['=', '.', ']']);
        line.strip_prefix(&**key).is_some_and(names)
            || (line.starts_with('[') && line.trim_matches(['[', ']']).split('.').any(|part| part.trim() == key))
    })?;
    Some(index + 1)
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let best = known.max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
    best.map(|best| format!("; did you mean {best:?}?")).unwrap_or_default()
}

#[cfg(test)]
mod tests;
