//! What an operator says of the cluster: where it is, and which of its objects are meant by which names.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::request::Request;
use crate::Error;

/// The cluster, and which of its objects commands may be about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// By default KUBECONFIG, ~/.kube/config, or the account of the pod in which the executor runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,
    /// One of the kubeconfig's; by default its current one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// How long one answer of the API server may take.
    pub timeout_ms: u64,
    /// Between two looks at a change that is under way.
    pub poll_ms: u64,
    pub target: Vec<Target>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            context: None,
            timeout_ms: 10_000,
            poll_ms: 500,
            target: vec![],
        }
    }
}

/// Which objects are meant by which names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Names as commands give them; `*` stands for any run of characters.
    pub service: String,
    pub kind: Kind,
    /// Of everything but nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The object's name; by default the one in the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// No scaling below.
    #[serde(default = "Target::default_replicas_min")]
    pub replicas_min: i64,
    /// No scaling above; without it no scaling at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas_max: Option<i64>,
}

impl Target {
    fn default_replicas_min() -> i64 {
        1
    }

    fn check(&self) -> Result<(), String> {
        if self.service.is_empty() {
            return Err("service is empty; \"*\" means every name".into());
        }
        match (&self.namespace, self.kind) {
            (None, Kind::Node) => {}
            (Some(_), Kind::Node) => return Err("nodes have no namespace; leave it out".into()),
            (None, kind) => return Err(format!("a {} needs its namespace", kind.as_str())),
            (Some(namespace), _) if !is_name(namespace) => {
                return Err(format!("namespace = {namespace:?} is no name of a namespace"));
            }
            (Some(_), _) => {}
        }
        if let Some(name) = self.name.as_ref().filter(|name| !is_name(name)) {
            return Err(format!("name = {name:?} is no name of an object"));
        }
        let max = self.replicas_max.unwrap_or(i64::from(i32::MAX));
        if self.replicas_min < 0 || max < self.replicas_min || max > i64::from(i32::MAX) {
            return Err(format!(
                "replicas_min = {} and replicas_max = {max} are no range from 0",
                self.replicas_min
            ));
        }
        if self.replicas_max.is_some() && !matches!(self.kind, Kind::Deployment | Kind::StatefulSet) {
            return Err("replicas_max is for deployments and stateful sets".into());
        }
        Ok(())
    }

    /// Whether it may be scaled to so many.
    pub fn check_replicas(&self, replicas: i64) -> Result<(), String> {
        match self.replicas_max {
            None => Err("its [[kubernetes.target]] has no replicas_max, so it may not be scaled".into()),
            Some(max) if (self.replicas_min..=max).contains(&replicas) => Ok(()),
            Some(max) => Err(format!(
                "{replicas} replicas are out of bounds; its [[kubernetes.target]] admits {} to {max}",
                self.replicas_min
            )),
        }
    }
}

/// Kinds of objects that can be acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Deployment,
    StatefulSet,
    DaemonSet,
    Pod,
    Node,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::StatefulSet => "statefulset",
            Self::DaemonSet => "daemonset",
            Self::Pod => "pod",
            Self::Node => "node",
        }
    }

    /// Whether the action makes sense for such objects.
    pub fn takes(self, request: &Request) -> bool {
        match request {
            Request::Restart => matches!(self, Self::Deployment | Self::StatefulSet | Self::DaemonSet),
            Request::Scale { .. } | Request::ScaleUp { .. } => matches!(self, Self::Deployment | Self::StatefulSet),
            Request::Rollback { .. } => self == Self::Deployment,
            Request::DeletePod => self == Self::Pod,
            Request::Cordon | Request::Uncordon => self == Self::Node,
        }
    }
}

impl Config {
    pub fn check(&self) -> Result<(), Error> {
        for (key, value) in [("timeout_ms", self.timeout_ms), ("poll_ms", self.poll_ms)] {
            if !(10..=600_000).contains(&value) {
                return Err(Error::Config(format!(
                    "kubernetes.{key} = {value} is out of range; it is 10 to 600000"
                )));
            }
        }
        for target in &self.target {
            target.check().map_err(|reason| {
                let place = format!("[[kubernetes.target]] of service {:?}", target.service);
                Error::Config(format!("{place}: {reason}"))
            })?;
        }
        Ok(())
    }
}

/// What a name of the cluster may be: it becomes part of a URL.
pub fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= 253
        && text.starts_with(plain)
        && text.ends_with(plain)
        && text.chars().all(|c| plain(c) || c == '-' || c == '.')
}
