//! What an anomaly is about and an action acts on.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Error;

/// A target, named by OpenTelemetry's resource attributes. Its key is the Kafka key of everything said about it:
/// `tenant|environment|service.namespace|service.name|scope|id`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    pub tenant: String,
    #[serde(default)]
    pub environment: String,
    #[serde(default)]
    pub namespace: String,
    pub name: String,
    /// `service`, `instance`, `workload` or `host`.
    pub scope: String,
    /// Empty for a service: a lock on a service must survive the change of its instances.
    #[serde(default)]
    pub id: String,
}

impl Target {
    /// A service as a whole.
    pub fn service(tenant: &str, name: &str) -> Self {
        Self {
            tenant: tenant.into(),
            name: name.into(),
            scope: "service".into(),
            ..Self::default()
        }
    }

    pub fn key(&self) -> String {
        let part = |text: &str| text.replace('%', "%25").replace('|', "%7C");
        [
            &self.tenant,
            &self.environment,
            &self.namespace,
            &self.name,
            &self.scope,
            &self.id,
        ]
        .map(|p| part(p))
        .join("|")
    }

    pub fn from_key(key: &str) -> Result<Self, Error> {
        let parts: Vec<String> = key
            .split('|')
            .map(|p| p.replace("%7C", "|").replace("%25", "%"))
            .collect();
        let [tenant, environment, namespace, name, scope, id] =
            <[String; 6]>::try_from(parts).map_err(|_| Error::TargetKey(key.to_owned()))?;
        Ok(Self {
            tenant,
            environment,
            namespace,
            name,
            scope,
            id,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key())
    }
}
