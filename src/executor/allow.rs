//! The allow-list: what this executor may do at all. Held here and never taken from a command: whoever can write
//! to the `actions` topic can at most ask for what is listed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command::Command;

/// A person's words on why; no adapter reads it, so any text of bounded length may pass.
const FREE_PARAM: &str = "reason";
const FREE_PARAM_BYTES_MAX: usize = 1024;

/// One permission: an action on targets, with these parameters, by this adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// The action's type, as policies name it.
    pub action: String,
    /// Service names; `*` stands for any run of characters.
    pub target: String,
    pub adapter: AdapterKind,
    /// Which of an adapter's named parts: a webhook's endpoint, a command of the catalogue, the receiver of an alert.
    #[serde(
        default,
        alias = "command",
        alias = "receiver",
        skip_serializing_if = "Option::is_none"
    )]
    pub endpoint: Option<String>,
    /// Bounds by parameter. A parameter that is not listed is refused.
    #[serde(default)]
    pub params: BTreeMap<String, Bound>,
}

/// Who carries an action out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterKind {
    Process,
    Webhook,
    Log,
    Kubernetes,
    Catalogue,
    Alert,
    Docker,
    Systemd,
}

impl AdapterKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Webhook => "webhook",
            Self::Log => "log",
            Self::Kubernetes => "kubernetes",
            Self::Catalogue => "catalogue",
            Self::Alert => "alert",
            Self::Docker => "docker",
            Self::Systemd => "systemd",
        }
    }
}

/// What a parameter may be. An empty bound admits nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bound {
    /// Smallest number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// The values it may have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub one_of: Vec<Value>,
}

impl Bound {
    fn admits(&self, value: &Value) -> bool {
        if self.one_of.contains(value) {
            return true;
        }
        let (Some(number), true) = (value.as_f64(), self.min.is_some() || self.max.is_some()) else {
            return false;
        };
        self.min.is_none_or(|min| number >= min) && self.max.is_none_or(|max| number <= max)
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.min, self.max) {
            (Some(min), Some(max)) => write!(f, "{min} to {max}")?,
            (Some(min), None) => write!(f, "at least {min}")?,
            (None, Some(max)) => write!(f, "at most {max}")?,
            (None, None) if self.one_of.is_empty() => write!(f, "nothing")?,
            (None, None) => {}
        }
        for (index, value) in self.one_of.iter().enumerate() {
            let before = if index == 0 && self.min.is_none() && self.max.is_none() {
                ""
            } else {
                " or "
            };
            write!(f, "{before}{value}")?;
        }
        Ok(())
    }
}

/// Why no permission admits a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// None is for this action on this target.
    Unlisted(String),
    /// One is, and a parameter is out of its bounds.
    OutOfBounds(String),
}

/// What becomes of commands that are not in the allow-list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unlisted {
    /// They are refused: this executor is the only one.
    #[default]
    Reject,
    /// They are another executor's, of another group: nothing is said of them.
    Ignore,
}

/// The first permission that admits the command, or why none does.
pub fn permit<'a>(list: &'a [Allow], command: &Command) -> Result<&'a Allow, Denied> {
    let (kind, service) = (command.kind(), command.service());
    let mut refusal = None;
    for allow in list {
        if allow.action != kind || !matches(&allow.target, service) {
            continue;
        }
        match refused_param(allow, command) {
            None => return Ok(allow),
            Some(reason) => {
                refusal.get_or_insert(reason);
            }
        }
    }
    Err(refusal.map_or_else(
        || {
            let entry = "an [[allow]] entry would permit it";
            Denied::Unlisted(format!(
                "action {kind:?} on {service:?} is not in this executor's allow-list; {entry}"
            ))
        },
        Denied::OutOfBounds,
    ))
}

fn refused_param(allow: &Allow, command: &Command) -> Option<String> {
    command
        .action
        .action
        .params
        .iter()
        .find_map(|(name, value)| match allow.params.get(name) {
            Some(bound) if bound.admits(value) => None,
            Some(bound) => Some(format!("parameter {name:?} is {value}; the allow-list admits {bound}")),
            None if name == FREE_PARAM => match value.as_str() {
                Some(text) if text.len() <= FREE_PARAM_BYTES_MAX => None,
                _ => Some(format!(
                    "parameter {name:?} is no text of at most {FREE_PARAM_BYTES_MAX} bytes"
                )),
            },
            None => Some(format!("parameter {name:?} is not in this executor's allow-list")),
        })
}

/// Whether `text` fits a pattern in which `*` stands for any run of characters.
pub fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests;
