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
    /// How much of a partition is asked for at once, bytes; a larger batch comes all the same. `None` is 512 KiB: less where memory
    /// is scarce, more where a broker is far away.
    pub fetch_partition_bytes: Option<u32>,
    /// Settings of librdkafka by name, over all others: for what this crate does not know. Those that would not reach the
    /// fetching of records, which is not the library's, are refused.
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
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

impl Tls {
    /// The certificates that sign the brokers', a file or a folder of them; `None` when this system has none.
    ///
    /// librdkafka is told the same, which looks elsewhere than OpenSSL does: a cluster that one trusts the other trusts.
    pub(crate) fn authorities(&self) -> Option<PathBuf> {
        self.ca_file.clone().or_else(|| {
            let system = openssl_probe::probe();
            system.cert_file.or_else(|| system.cert_dir.into_iter().next())
        })
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

/// How the names of settings begin that librdkafka would take without effect on the fetching of records, and what to do instead.
const NOT_OVERRIDDEN: [(&str, &str); 13] = [
    ("ssl.", "say it in tls"),
    ("sasl.", "say it in sasl"),
    ("security.protocol", "it follows from tls and sasl"),
    (
        "enable.ssl.certificate.verification",
        "brokers' certificates are always verified; name who signs them in tls.ca_file",
    ),
    ("fetch.message.max.bytes", PARTITION),
    ("max.partition.fetch.bytes", PARTITION),
    ("fetch.", FETCHING),
    ("queued.", FETCHING),
    ("check.crcs", "checksums are always verified; leave it out"),
    ("receive.message.max.bytes", FETCHING),
    ("isolation.level", READING),
    ("enable.partition.eof", READING),
    ("auto.offset.reset", READING),
];
const FETCHING: &str = "librdkafka does not fetch here, and what does has sizes and waits of its own; leave it out";
const PARTITION: &str = "it is fetch_partition_bytes of the configuration";
const READING: &str = "what a consumer is for decides it; leave it out";

impl KafkaConfig {
    /// Settings of librdkafka that every client of this cluster shares.
    pub(crate) fn client_settings(&self) -> Result<Vec<(&'static str, String)>, Error> {
        if self.bootstrap.trim().is_empty() {
            return Err(Error::Config(
                "no broker is named: set KAFKA_BOOTSTRAP, or bootstrap in the configuration, to host:port".into(),
            ));
        }
        for name in self.settings.keys() {
            if let Some((_, instead)) = NOT_OVERRIDDEN.iter().find(|(prefix, _)| name.starts_with(prefix)) {
                return Err(Error::Config(format!(
                    "the setting {name} of Kafka cannot be given by name: {instead}"
                )));
            }
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
                ("ca_file", "ssl.ca.location", &tls.ca_file),
                ("certificate_file", "ssl.certificate.location", &tls.certificate_file),
                ("key_file", "ssl.key.location", &tls.key_file),
            ];
            for (name, setting, file) in files {
                let Some(file) = file else { continue };
                if !file.is_file() {
                    return Err(Error::Config(format!(
                        "tls.{name}: there is no file {}",
                        file.display()
                    )));
                }
                settings.push((setting, file.display().to_string()));
            }
            if tls.ca_file.is_none()
                && let Some(system) = tls.authorities()
            {
                settings.push(("ssl.ca.location", system.display().to_string()));
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
    fn refuses_settings_that_would_not_reach_the_fetching() {
        let with = |name: &str| {
            let mut config = KafkaConfig::new("a:1");
            config.settings.insert(name.into(), "1".into());
            config.client_settings()
        };
        let mended = [
            ("ssl.ca.location", "tls"),
            ("sasl.mechanism", "sasl"),
            ("security.protocol", "tls and sasl"),
            ("enable.ssl.certificate.verification", "tls.ca_file"),
            ("fetch.min.bytes", "leave it out"),
            ("fetch.message.max.bytes", "fetch_partition_bytes"),
            ("max.partition.fetch.bytes", "fetch_partition_bytes"),
            ("queued.min.messages", "leave it out"),
            ("check.crcs", "leave it out"),
            ("receive.message.max.bytes", "leave it out"),
            ("isolation.level", "leave it out"),
            ("enable.partition.eof", "leave it out"),
            ("auto.offset.reset", "leave it out"),
        ];
        for (name, instead) in mended {
            let error = with(name).unwrap_err();
            assert_eq!(error.class(), crate::Class::Stop);
            let text = error.to_string();
            assert!(text.contains(name) && text.contains(instead), "{text}");
        }
        for name in ["socket.timeout.ms", "client.rack", "session.timeout.ms", "linger.ms"] {
            with(name).unwrap();
        }
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
