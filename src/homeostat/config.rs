//! Configuration: one TOML file over readable defaults, the environment over both. Unknown keys are refused.
//!
//! Each component declares its own part beside its code; here they are composed. Passed as arguments, never global.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use figment::{
    Figment,
    error::Kind,
    providers::{Env, Format, Toml},
};
use protocol::Topics;
use remediation::FleetConfig;
use serde::Deserialize;

use crate::error::Refused;

/// The defaults, as shipped and as shown by `homeostat config`.
pub const DEFAULTS: &str = include_str!("default.toml");

/// Everything an operator may set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub kafka: kafka::KafkaConfig,
    pub topics: TopicsConfig,
    pub stages: StagesConfig,
    pub detect: DetectConfig,
    pub http: HttpConfig,
    pub log: LogConfig,
    pub decide: FleetConfig,
    pub signing: SigningConfig,
    /// Who may approve; empty: whoever may write to the topic.
    #[serde(default)]
    pub approver: Vec<ApproverConfig>,
    /// Whose outcomes are believed; empty: everybody's who may write to the topic.
    #[serde(default)]
    pub executor: Vec<ExecutorConfig>,
}

impl Config {
    /// The fleet's topics.
    pub fn topics(&self) -> Topics {
        let topics = Topics::new(self.topics.prefix.clone());
        if self.topics.tenant.is_empty() {
            topics
        } else {
            topics.with_tenant(self.topics.tenant.clone())
        }
    }
}

/// Names and sizes of the fleet's topics.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicsConfig {
    pub prefix: String,
    /// Part of every id and target key; empty: the prefix without its separator.
    pub tenant: String,
    pub panes_partitions: i32,
    pub actions_partitions: i32,
    pub replication_factor: i32,
}

/// How much of each stage runs in one process.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagesConfig {
    pub aggregate: usize,
    pub detect: usize,
    pub decide: usize,
    #[serde(with = "remediation::config::readable")]
    pub commit_interval: Duration,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectConfig {
    #[serde(with = "remediation::config::readable")]
    pub state_interval: Duration,
    #[serde(with = "remediation::config::readable")]
    pub entity_ttl: Duration,
}

/// Whether commands are signed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SigningConfig {
    /// The private key; commands are not signed without one.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
}

/// One `[[approver]]`: a person and the key that their answers are signed with.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApproverConfig {
    pub name: String,
    #[serde(default)]
    pub roles: Vec<String>,
    /// The public key in PEM, as `homeostat keys public` prints it.
    pub key_file: PathBuf,
    /// RFC 3339; what was written before does not count.
    #[serde(default)]
    pub not_before: Option<String>,
    /// RFC 3339; what was written then or later does not count.
    #[serde(default)]
    pub not_after: Option<String>,
}

/// One `[[executor]]`: its id and the key that its outcomes are signed with.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutorConfig {
    pub id: String,
    /// The public key in PEM, as `homeostat keys public` prints it.
    pub key_file: PathBuf,
    /// RFC 3339; what was written before does not count.
    #[serde(default)]
    pub not_before: Option<String>,
    /// RFC 3339; what was written then or later does not count.
    #[serde(default)]
    pub not_after: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    pub listen: SocketAddr,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// Reads the configuration. A file that was named must exist; the default one may be absent.
pub fn load(file: Option<&Path>) -> Result<Config, Refused> {
    let mut figment = Figment::from(Toml::string(DEFAULTS));
    if let Some(path) = file {
        if !path.is_file() {
            return Err(
                Refused::new(format!("configuration file {} does not exist", path.display()))
                    .help("leave --config out to run with the defaults"),
            );
        }
        figment = figment.merge(Toml::file_exact(path));
    }
    finish(figment)
}

/// As [`load`], with the text of a file that ships in the program.
pub fn load_text(text: &str) -> Result<Config, Refused> {
    finish(Figment::from(Toml::string(DEFAULTS)).merge(Toml::string(text)))
}

fn finish(mut figment: Figment) -> Result<Config, Refused> {
    figment = figment.merge(Env::prefixed("HOMEOSTAT__").split("__"));
    if let Ok(bootstrap) = std::env::var("KAFKA_BOOTSTRAP") {
        figment = figment.merge(("kafka.bootstrap", bootstrap));
    }
    let mut config: Config = figment.extract().map_err(|error| explain(&error))?;
    check(&config)?;
    config.decide.tenant = config.topics().tenant().to_owned();
    Ok(config)
}

fn check(config: &Config) -> Result<(), Refused> {
    let positive = [
        ("topics.panes_partitions", i64::from(config.topics.panes_partitions)),
        ("topics.actions_partitions", i64::from(config.topics.actions_partitions)),
        ("stages.aggregate", config.stages.aggregate as i64),
        ("stages.detect", config.stages.detect as i64),
        ("stages.decide", config.stages.decide as i64),
    ];
    for (key, value) in positive {
        if value < 1 {
            return Err(
                Refused::new(format!("configuration: {key} = {value} is out of range")).help("it is at least 1")
            );
        }
    }
    let held = |role: &&String| config.approver.iter().any(|approver| approver.roles.contains(role));
    if let Some(role) = config.decide.approval_roles.iter().find(|role| !held(role)) {
        return Err(Refused::new(format!(
            "configuration: nobody has the role {role:?} of decide.approval_roles"
        ))
        .help("[[approver]] entries have `name`, `key_file` and `roles`"));
    }
    let topic = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if config.topics.prefix.is_empty() || !config.topics.prefix.chars().all(topic) {
        return Err(Refused::new(format!(
            "configuration: topics.prefix = {:?} is no topic name",
            config.topics.prefix
        ))
        .help("letters, digits, `.`, `_` and `-`, for example \"homeostat.\""));
    }
    Ok(())
}

/// The first error with its place, and the nearest key where one is unknown.
fn explain(error: &figment::Error) -> Refused {
    let place = error
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.source.as_ref())
        .map(ToString::to_string);
    let path = error.path.join(".");
    let place = place.map_or_else(String::new, |place| format!(" in {place}"));
    if let Kind::UnknownField(name, known) = &error.kind {
        let nearest = known
            .iter()
            .max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)));
        let within = error.path[..error.path.len().saturating_sub(1)].join(".");
        let within = if within.is_empty() {
            String::new()
        } else {
            format!(" in [{within}]")
        };
        let refused = Refused::new(format!("configuration{place}: unknown key {name:?}{within}"));
        return match nearest {
            Some(nearest) => refused.help(format!("did you mean {nearest:?}?")),
            None => refused,
        };
    }
    let at = if path.is_empty() {
        String::new()
    } else {
        format!(" at {path}")
    };
    Refused::new(format!("configuration{place}{at}: {}", error.kind))
        .help("`homeostat config` prints every key with its default")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_threshold_is_shown_with_the_default_that_counts() {
        let defaults = FleetConfig::default();
        assert_eq!(load_text("").unwrap().decide, defaults);
        let decide = DEFAULTS.split("[decide]").nth(1).unwrap();
        let keys = serde_json::to_value(&defaults).unwrap();
        let choose = keys["choose"].as_object().unwrap().keys();
        for key in keys.as_object().unwrap().keys().chain(choose) {
            // The one is the binary's to set, the other a table.
            let shown = decide.lines().any(|line| line.starts_with(&format!("{key} = ")));
            assert!(
                shown || ["tenant", "choose"].contains(&key.as_str()),
                "{key} is not shown"
            );
        }
    }
}
