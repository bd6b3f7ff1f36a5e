//! Hands commands to another system by HTTP: `POST` of the command's data, with the action's id as `Idempotency-Key`.
//!
//! An answer of 2xx is success, 4xx is failure. No answer, 5xx, 408, 425 and 429 leave open whether the receiver has
//! acted. Where it honours the key (`idempotent`, the default), asking again under the same key settles it, so that is
//! done, with full jitter, for as long as the command may start; where it does not, the outcome is unknown.

use std::{
    collections::BTreeMap,
    fs,
    hash::{BuildHasher, Hasher, RandomState},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use reqwest::{
    Certificate, StatusCode,
    blocking::{Client, Response},
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
    redirect,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    Error,
    adapter::{Adapter, Before, Effect, Failure, Reconciled},
    admission::Refusal,
    command::{Command, describe},
};

const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// The systems that commands may be handed to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub endpoint: Vec<Endpoint>,
}

/// One receiver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// The name by which an allow-list entry refers to it.
    pub name: String,
    pub url: String,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Header name → the environment variable that holds its value, for secrets.
    #[serde(default)]
    pub header_env: BTreeMap<String, String>,
    #[serde(default = "Endpoint::default_timeout_ms")]
    pub timeout_ms: u64,
    #[serde(default = "Endpoint::default_connect_timeout_ms")]
    pub connect_timeout_ms: u64,
    /// Whether the receiver does nothing twice under one `Idempotency-Key`.
    #[serde(default = "Endpoint::default_idempotent")]
    pub idempotent: bool,
    /// PEM of a certificate authority to trust beside the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

impl Endpoint {
    fn default_timeout_ms() -> u64 {
        10_000
    }

    fn default_connect_timeout_ms() -> u64 {
        3_000
    }

    fn default_idempotent() -> bool {
        true
    }

    fn header_map(&self) -> Result<HeaderMap, String> {
        let mut map = HeaderMap::new();
        for (name, value) in &self.headers {
            insert(&mut map, name, value)?;
        }
        for (name, variable) in &self.header_env {
            let value = std::env::var(variable)
                .map_err(|_| format!("header_env.{name}: the environment variable {variable} is not set"))?;
            insert(&mut map, name, &value)?;
        }
        Ok(map)
    }

    fn client(&self) -> Result<Client, String> {
        let mut builder = Client::builder()
            .default_headers(self.header_map()?)
            .connect_timeout(Duration::from_millis(self.connect_timeout_ms))
            // A command must end where the configuration says.
            .redirect(redirect::Policy::none())
            .user_agent(concat!("homeostat-executor/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &self.ca_file {
            let pem = fs::read(path).map_err(|error| format!("ca_file {}: {error}", path.display()))?;
            let certificate =
                Certificate::from_pem(&pem).map_err(|error| format!("ca_file {}: {error}", path.display()))?;
            builder = builder.add_root_certificate(certificate);
        }
        builder.build().map_err(|error| describe(&error))
    }
}

fn insert(map: &mut HeaderMap, name: &str, value: &str) -> Result<(), String> {
    let header: HeaderName = name.parse().map_err(|_| format!("{name:?} is no header name"))?;
    let mut value: HeaderValue = value
        .parse()
        .map_err(|_| format!("the value of header {name:?} has characters that headers may not have"))?;
    value.set_sensitive(true);
    map.insert(header, value);
    Ok(())
}

/// One endpoint, ready to be called.
pub struct WebhookAdapter {
    endpoint: Endpoint,
    client: Client,
}

impl WebhookAdapter {
    pub fn new(endpoint: &Endpoint) -> Result<Self, Error> {
        Self::connect(endpoint)
            .map_err(|reason| Error::Config(format!("[[webhook.endpoint]] {:?}: {reason}", endpoint.name)))
    }

    /// Or what is wrong with the endpoint.
    pub(super) fn connect(endpoint: &Endpoint) -> Result<Self, String> {
        reqwest::Url::parse(&endpoint.url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| "url is no http or https URL".to_owned())?;
        Ok(Self {
            endpoint: endpoint.clone(),
            client: endpoint.client()?,
        })
    }

    fn post(&self, command: &Command, body: &[u8], timeout: Duration) -> Answer {
        let sent = self
            .client
            .post(&self.endpoint.url)
            .timeout(timeout)
            .header(CONTENT_TYPE, "application/json")
            .header("idempotency-key", command.id().to_string())
            .headers(trace_headers(command))
            .body(body.to_vec())
            .send();
        match sent {
            Ok(response) => answer(&response),
            // The request was never written: nothing can have happened. URLs may be secrets.
            Err(error) if error.is_connect() || error.is_builder() => {
                Answer::Unreachable(describe(&error.without_url()))
            }
            Err(error) => Answer::Open(describe(&error.without_url())),
        }
    }
}

/// What one request tells.
enum Answer {
    Accepted(StatusCode),
    Refused(StatusCode),
    /// The receiver was not reached.
    Unreachable(String),
    /// The receiver may have acted.
    Open(String),
}

fn answer(response: &Response) -> Answer {
    let status = response.status();
    let try_again = [
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::TOO_EARLY,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    if status.is_success() {
        Answer::Accepted(status)
    } else if status.is_server_error() || try_again.contains(&status) {
        Answer::Open(format!("the receiver answered {status}"))
    } else {
        Answer::Refused(status)
    }
}

fn trace_headers(command: &Command) -> HeaderMap {
    let traceparent = command.event.traceparent.as_deref().and_then(|text| text.parse().ok());
    traceparent
        .map(|value| HeaderMap::from_iter([(HeaderName::from_static("traceparent"), value)]))
        .unwrap_or_default()
}

impl Adapter for WebhookAdapter {
    fn knows(&self, _command: &Command) -> Result<(), Refusal> {
        Ok(())
    }

    fn reconcile(&self, _command: &Command, _before: Option<&Before>) -> Reconciled {
        if self.endpoint.idempotent {
            Reconciled::Repeatable
        } else {
            Reconciled::Unknown(format!("{:?} cannot say whether it has acted", self.endpoint.name))
        }
    }

    fn act(&self, command: &Command, _before: &Before) -> Result<Effect, Failure> {
        self.deliver(command, &command.data)
    }
}

impl WebhookAdapter {
    /// Asks, and asks again, until it is known whether the body has arrived.
    pub(super) fn deliver(&self, command: &Command, body: &[u8]) -> Result<Effect, Failure> {
        let started = Instant::now();
        let may_retry_for = command.may_start_for().min(command.exec_timeout());
        let request_timeout = Duration::from_millis(self.endpoint.timeout_ms).min(command.exec_timeout());
        let mut acted = None;
        for attempt in 0u32.. {
            let reason = match self.post(command, body, request_timeout) {
                Answer::Accepted(status) => return Ok(effect(&self.endpoint, status, attempt + 1)),
                Answer::Refused(status) => {
                    return Err(Failure::failed(format!("the receiver refused with {status}")));
                }
                Answer::Unreachable(reason) => reason,
                Answer::Open(reason) => {
                    acted = Some(reason.clone());
                    reason
                }
            };
            let pause = backoff(attempt, random());
            let settled = acted.is_some() && !self.endpoint.idempotent;
            if settled || started.elapsed() + pause >= may_retry_for {
                return Err(give_up(acted, reason, attempt + 1));
            }
            tracing::warn!(action_id = %command.id(), endpoint = %self.endpoint.name, %reason, "asking again");
            thread::sleep(pause);
        }
        Err(Failure::Unknown("no answer".into()))
    }
}

fn give_up(acted: Option<String>, last: String, attempts: u32) -> Failure {
    match acted {
        Some(reason) => Failure::Unknown(format!("{reason} (after {attempts} requests)")),
        None => Failure::Failed {
            code: 500,
            reason: format!("{last} (after {attempts} requests)"),
            retryable: true,
        },
    }
}

fn effect(endpoint: &Endpoint, status: StatusCode, requests: u32) -> Effect {
    Effect::from_iter([
        ("endpoint".to_owned(), json!(endpoint.name)),
        ("status".to_owned(), json!(status.as_u16())),
        ("requests".to_owned(), json!(requests)),
    ])
}

/// Full jitter: anything from nothing to the doubled pause.
fn backoff(attempt: u32, random: u64) -> Duration {
    let ceiling = BACKOFF_FIRST.saturating_mul(1 << attempt.min(16)).min(BACKOFF_MAX);
    let ceiling_ms = u64::try_from(ceiling.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(random % (ceiling_ms + 1))
}

/// Good enough to keep executors from asking in step.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
pub(super) mod tests;
