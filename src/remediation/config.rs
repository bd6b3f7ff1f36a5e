//! What an operator may set for a fleet. The defaults are the product's.

use std::{collections::BTreeMap, time::Duration};

use protocol::message::Mode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Thresholds of one fleet. Unknown keys are errors; durations read like `5m` or `30s`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FleetConfig {
    /// The fleet's name: its topic prefix without the separator. The binary sets it.
    pub tenant: String,
    /// Mode of a service and action that no control record speaks of.
    pub default_mode: Mode,
    /// Nothing starts for so long after the first record that the fleet ever gave.
    #[serde(with = "readable")]
    pub startup_grace: Duration,
    /// An incident waits so long before it is first considered, so that failures with one cause are seen together.
    #[serde(with = "readable")]
    pub settle: Duration,
    /// The same, for a service that calls others: theirs may be the cause, and show later.
    #[serde(with = "readable")]
    pub settle_callers: Duration,
    /// The same, for a service that is merely silent: while no other detector alarms about it, silence alone is a suspicion.
    #[serde(with = "readable")]
    pub settle_silent: Duration,
    /// How long after an executor's success the effect is first judged.
    #[serde(with = "readable")]
    pub verify_after: Duration,
    /// For how long the signal is watched before the verdict falls against the action.
    #[serde(with = "readable")]
    pub verify_for: Duration,
    /// A score at or above this multiple of the score at the decision is worse.
    pub worse_ratio: f64,
    /// Hold when more than this share of a group is sick at once.
    pub fleet_sick_share: f64,
    /// Hold when more than so many targets are sick at once.
    pub fleet_sick_max: u32,
    /// A share says nothing about a group smaller than this.
    pub min_group: u32,
    /// Hold for so long after the fleet was last too sick.
    #[serde(with = "readable")]
    pub storm_cooldown: Duration,
    /// Services never acted on; `*` stands for any text.
    pub protected: Vec<String>,
    /// A request for approval is void after this.
    #[serde(with = "readable")]
    pub approval_expiry: Duration,
    /// How many different people have to agree.
    pub approval_quorum: u32,
    /// An answer counts only from an approver who has one of these roles; empty: from every approver.
    pub approval_roles: Vec<String>,
    /// Act only while the watermark is not further behind the clock than this.
    #[serde(with = "readable")]
    pub telemetry_lag_max: Duration,
    /// Commands for one service, over any policy.
    pub limits_service: Vec<Limit>,
    /// Commands for the whole fleet.
    pub limits_fleet: Vec<Limit>,
    /// Commands in flight at once: this share of the group, but at least `concurrency_min`.
    pub concurrency_share: f64,
    pub concurrency_min: u32,
    /// So many failed verdicts in a row at one service stop all action there until a person resets.
    pub breaker_failures: u32,
    /// Failed verdicts are forgotten after so long without another, unless the breaker is open.
    #[serde(with = "readable")]
    pub breaker_forget: Duration,
    /// Attempts of one action within one incident.
    pub attempts_max: u32,
    /// So many changes between sick and healthy that nobody caused, within `flips_within`, are flapping.
    pub flips_max: u32,
    #[serde(with = "readable")]
    pub flips_within: Duration,
    /// A high-impact action without a person needs a detector right this often.
    pub precision_min: f64,
    /// The same refusal of one incident is recorded again after this at the earliest.
    #[serde(with = "readable")]
    pub refusal_interval: Duration,
    /// A refused incident is considered again after this, or sooner when it is known when the gate may open.
    #[serde(with = "readable")]
    pub reconsider: Duration,
    /// Who calls whom, beside what is learned: services by their caller.
    pub calls: BTreeMap<String, Vec<String>>,
    /// Detectors, as `pipeline.detector` with `*`, whose windows say who calls whom: their KEY is `caller` and `callee`. What they score
    /// does not matter.
    pub calls_detectors: Vec<String>,
    /// A learned call that was not seen for so long is forgotten.
    #[serde(with = "readable")]
    pub calls_forget: Duration,
    /// Detectors, as `pipeline.detector` with `*`, that alarm about a service that serves but cannot keep up. While one
    /// does, what would take capacity away is refused.
    pub overload_detectors: Vec<String>,
    /// Kinds of action that take capacity away while they run.
    pub overload_refuses: Vec<String>,
    /// Episodes held at once; further ones are refused and counted.
    pub episodes_max: usize,
    /// What is known of each kind of action, beside what is built in.
    pub actions: BTreeMap<String, ActionClass>,
    /// DO CHOOSE.
    pub choose: ChooseConfig,
    /// What differs for some services and actions; a later one counts before an earlier.
    #[serde(deserialize_with = "checked")]
    pub overrides: Vec<Override>,
}

/// Thresholds that differ for a service and action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// `*` stands for any text.
    #[serde(default = "any")]
    pub service: String,
    #[serde(default = "any")]
    pub action: String,
    /// Keys of this configuration with the values that count here.
    pub set: Map<String, Value>,
}

fn any() -> String {
    "*".into()
}

/// What belongs to the fleet as a whole and cannot differ by service.
const FLEET_ONLY: [&str; 8] = [
    "tenant",
    "overrides",
    "calls",
    "calls_detectors",
    "calls_forget",
    "actions",
    "choose",
    "episodes_max",
];

fn checked<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Override>, D::Error> {
    let overrides = Vec::<Override>::deserialize(deserializer)?;
    for over in &overrides {
        let result = FleetConfig::default().with(&over.set);
        result.map_err(|error| serde::de::Error::custom(format!("overrides for {:?}: {error}", over.service)))?;
    }
    Ok(overrides)
}

/// How DO CHOOSE picks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChooseConfig {
    /// What it picks from, most harmless first; `noop` and `escalate` are always added.
    pub actions: Vec<String>,
    /// Every allowed action keeps this probability, none exceeds that one.
    pub propensity_min: f64,
    pub propensity_max: f64,
    /// Past incidents that the model's word is worth.
    pub prior_strength: f64,
    /// Past incidents that what other services taught is worth at most.
    pub pooled_max: f64,
    /// Verdicts at hand without which an undecided model leaves the matter to a person.
    pub experience_min: u32,
    /// What it is worth to leave an incident to a person, against 1 for healing it.
    pub escalate_value: f64,
    /// What an action costs by itself, by its impact, against 1 for a healed incident.
    pub cost_low: f64,
    pub cost_medium: f64,
    pub cost_high: f64,
}

impl Default for ChooseConfig {
    fn default() -> Self {
        Self {
            actions: ["restart", "scale_up", "rollback"].map(String::from).to_vec(),
            propensity_min: 0.01,
            propensity_max: 0.97,
            prior_strength: 5.0,
            pooled_max: 20.0,
            experience_min: 20,
            escalate_value: 0.3,
            cost_low: 0.05,
            cost_medium: 0.15,
            cost_high: 0.3,
        }
    }
}

impl Default for FleetConfig {
    fn default() -> Self {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let limit = |actions, per| Limit { actions, per };
        Self {
            tenant: "homeostat".into(),
            default_mode: Mode::Shadow,
            startup_grace: minutes(5),
            settle: Duration::from_secs(10),
            settle_callers: Duration::from_secs(30),
            settle_silent: Duration::from_secs(15),
            verify_after: Duration::from_secs(30),
            verify_for: minutes(3),
            worse_ratio: 1.25,
            fleet_sick_share: 0.4,
            fleet_sick_max: 10,
            min_group: 3,
            storm_cooldown: minutes(1),
            protected: [
                "homeostat*",
                "kafka*",
                "zookeeper*",
                "etcd*",
                "kube-*",
                "*otel-collector*",
            ]
            .map(String::from)
            .to_vec(),
            approval_expiry: minutes(15),
            approval_quorum: 1,
            approval_roles: Vec::new(),
            telemetry_lag_max: Duration::from_secs(30),
            limits_service: vec![limit(3, minutes(15)), limit(7, minutes(24 * 60))],
            limits_fleet: vec![limit(10, minutes(15))],
            concurrency_share: 0.1,
            concurrency_min: 2,
            breaker_failures: 3,
            breaker_forget: minutes(60),
            attempts_max: 3,
            flips_max: 3,
            flips_within: minutes(10),
            precision_min: 0.9,
            refusal_interval: minutes(1),
            reconsider: Duration::from_secs(2),
            calls: BTreeMap::new(),
            calls_detectors: Vec::new(),
            calls_forget: minutes(24 * 60),
            overload_detectors: Vec::new(),
            overload_refuses: ["restart", "restart_instance", "delete_pod", "scale_down", "cordon"]
                .map(String::from)
                .to_vec(),
            episodes_max: 100_000,
            actions: BTreeMap::new(),
            choose: ChooseConfig::default(),
            overrides: Vec::new(),
        }
    }
}

impl FleetConfig {
    /// This configuration with some of its values replaced.
    pub fn with(&self, set: &Map<String, Value>) -> Result<Self, String> {
        if let Some(key) = set.keys().find(|key| FLEET_ONLY.contains(&key.as_str())) {
            return Err(format!("{key} belongs to the fleet as a whole"));
        }
        let mut value = serde_json::to_value(self).map_err(|error| error.to_string())?;
        if let Value::Object(fields) = &mut value {
            fields.extend(set.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    /// The class of an action: configured, built in, or the cautious guess for a name never heard of.
    pub fn action_class(&self, kind: &str) -> ActionClass {
        self.actions
            .get(kind)
            .cloned()
            .unwrap_or_else(|| ActionClass::built_in(kind))
    }
}

/// At most so many actions within any span of this length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    pub actions: u32,
    #[serde(with = "readable")]
    pub per: Duration,
}

/// How much an action may break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Impact {
    /// Changes nothing that serves.
    None,
    Low,
    Medium,
    High,
}

/// What is known of a kind of action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionClass {
    pub impact: Impact,
    /// Whether it can be taken back.
    #[serde(default)]
    pub reversible: bool,
    /// The action that takes it back, when it made things worse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<String>,
}

impl ActionClass {
    fn built_in(kind: &str) -> Self {
        let (impact, reversible) = match kind {
            "noop" | "alert" | "escalate" => (Impact::None, true),
            "restart" | "scale_up" | "restart_instance" | "delete_pod" => (Impact::Low, true),
            "rollback" | "failover" | "scale_down" => (Impact::High, true),
            "cordon" | "flag_off" | "shed_load" => (Impact::Medium, true),
            _ => (Impact::Medium, false),
        };
        Self {
            impact,
            reversible,
            undo: None,
        }
    }
}

/// Whether `pattern` matches all of `text`; `*` stands for any text.
pub fn glob(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut last = None;
    for piece in pieces {
        if let Some(earlier) = last.replace(piece) {
            let Some(at) = rest.find(earlier) else { return false };
            rest = &rest[at + earlier.len()..];
        }
    }
    match last {
        None => rest.is_empty(),
        Some(piece) => rest.ends_with(piece),
    }
}

/// Durations as people write them: `1h 30m`, `250ms`.
pub mod readable {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map_err(|error| D::Error::custom(format!("{text:?} is no duration such as \"30s\" or \"5m\": {error}")))
    }
}

/// Milliseconds of a duration, saturating: a configured age of the universe is as good as never.
pub(crate) fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_names() {
        for (pattern, text, matches) in [
            ("cart", "cart", true),
            ("cart", "carts", false),
            ("kafka*", "kafka-0", true),
            ("*collector*", "otel-collector-1", true),
            ("*", "", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "ac", false),
            ("a*a", "a", false),
            ("*ab", "aab", true),
        ] {
            assert_eq!(glob(pattern, text), matches, "{pattern} {text}");
        }
    }

    #[test]
    fn unknown_keys_and_bad_durations_are_refused() {
        assert!(serde_json::from_str::<FleetConfig>(r#"{"startup_grase":"5m"}"#).is_err());
        let error = serde_json::from_str::<FleetConfig>(r#"{"settle":"soon"}"#).unwrap_err();
        assert!(error.to_string().contains("\"soon\" is no duration"), "{error}");
        let config: FleetConfig = serde_json::from_str(r#"{"settle":"1500ms"}"#).unwrap();
        assert_eq!(config.settle, Duration::from_millis(1500));
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<FleetConfig>(&text).unwrap(), config);
    }
}
