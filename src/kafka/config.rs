//! How to reach a Kafka cluster.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::Deserialize;

use crate::Error;

/// Where the cluster is and how it is spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaConfig {
    /// `host:port`, several separated by commas.
    pub bootstrap: String,
    pub tls: Option<Tls>,
    pub sasl: Option<Sasl>,
    /// Settings of librdkafka by name, over all others: for what this crate does not know.
    pub settings: BTreeMap<String, String>,
}

impl KafkaConfig {
    /// Plain text, no authentication.
    pub fn new(bootstrap: impl Into<String>) -> Self {
        Self {
            bootstrap: bootstrap.into(),
            ..Self::default()
        }
    }
}

/// Encryption, and who the two ends are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Certificates that sign the brokers', PEM. `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// This client's certificate, PEM, for mutual TLS.
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub key_password: Option<Secret>,
}

/// A name and a password.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    pub mechanism: Mechanism,
    pub username: String,
    pub password: Secret,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Mechanism {
    #[serde(rename = "PLAIN")]
    Plain,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl KafkaConfig {
    /// Settings of librdkafka that every client of this cluster shares.
    pub(crate) fn client_settings(&self) -> Result<Vec<(&'static str, String)>, Error> {
        if self.bootstrap.trim().is_empty() {
            return Err(Error::Config(
                "no broker is named: set KAFKA_BOOTSTRAP, or bootstrap in the configuration, to host:port".into(),
            ));
        }
        let mut settings = vec![("bootstrap.servers", self.bootstrap.clone())];
        let protocol = match (&self.tls, &self.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        settings.push(("security.protocol", protocol.to_owned()));
        if let Some(tls) = &self.tls {
            let files = [
                ("ssl.ca.location", &tls.ca_file),
                ("ssl.certificate.location", &tls.certificate_file),
                ("ssl.key.location", &tls.key_file),
            ];
            for (name, file) in files {
                let Some(file) = file else { continue };
                if !file.is_file() {
                    return Err(Error::Config(format!("{name}: there is no file {}", file.display())));
                }
                settings.push((name, file.display().to_string()));
            }
            if tls.certificate_file.is_some() != tls.key_file.is_some() {
                return Err(Error::Config(
                    "a client certificate needs its key: set both certificate_file and key_file".into(),
                ));
            }
            if let Some(password) = &tls.key_password {
                settings.push(("ssl.key.password", password.0.clone()));
            }
        }
        if let Some(sasl) = &self.sasl {
            settings.push(("sasl.mechanism", sasl.mechanism.name().to_owned()));
            settings.push(("sasl.username", sasl.username.clone()));
            settings.push(("sasl.password", sasl.password.0.clone()));
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_half_a_configuration() {
        let refused = |config: KafkaConfig| config.client_settings().unwrap_err().to_string();
        assert!(refused(KafkaConfig::default()).contains("KAFKA_BOOTSTRAP"));
        let mut config = KafkaConfig::new("a:1");
        config.tls = Some(Tls {
            ca_file: Some("/no/such/file".into()),
            ..Tls::default()
        });
        assert!(refused(config).contains("/no/such/file"));
    }

    #[test]
    fn secrets_are_not_printed() {
        let sasl = Sasl {
            mechanism: Mechanism::ScramSha512,
            username: "u".into(),
            password: Secret("hunter2".into()),
        };
        assert!(!format!("{sasl:?}").contains("hunter2"));
    }
}
