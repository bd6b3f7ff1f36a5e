//! Containers as the engine tells of them, and the calls that change them.

use std::{collections::HashMap, time::Duration};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    errors::Error as EngineError,
    models::{ContainerInspectResponse, HealthStatusEnum},
    query_parameters::{ListContainersOptions, RestartContainerOptions, StopContainerOptions},
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::{adapter::Lifecycle, command::describe};

/// Why a call did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The engine said so.
    Refused(u16, String),
    /// The engine was not reached.
    Unreachable(String),
    /// The engine may have done it.
    Open(String),
}

impl Trouble {
    /// For people, with the container's name.
    pub fn reason(&self, container: &str) -> String {
        let (Self::Refused(_, reason) | Self::Unreachable(reason) | Self::Open(reason)) = self;
        format!("container {container}: {reason}")
    }
}

/// One container, as it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub id: String,
    pub name: String,
    pub started_at: String,
    pub running: bool,
    #[serde(skip)]
    pub restarting: bool,
    #[serde(skip)]
    pub exit_code: i64,
    #[serde(skip)]
    pub health: Health,
}

/// What a container says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// It has no health check.
    #[default]
    None,
    Starting,
    Good,
    Bad,
}

impl From<ContainerInspectResponse> for Found {
    fn from(answer: ContainerInspectResponse) -> Self {
        let state = answer.state.unwrap_or_default();
        let health = state.health.and_then(|health| health.status);
        Self {
            id: answer.id.unwrap_or_default(),
            name: answer.name.unwrap_or_default().trim_start_matches('/').to_owned(),
            started_at: state.started_at.unwrap_or_default(),
            running: state.running.unwrap_or_default() && !state.restarting.unwrap_or_default(),
            restarting: state.restarting.unwrap_or_default(),
            exit_code: state.exit_code.unwrap_or_default(),
            health: match health {
                None | Some(HealthStatusEnum::EMPTY | HealthStatusEnum::NONE) => Health::None,
                Some(HealthStatusEnum::STARTING) => Health::Starting,
                Some(HealthStatusEnum::HEALTHY) => Health::Good,
                Some(HealthStatusEnum::UNHEALTHY) => Health::Bad,
            },
        }
    }
}

/// Where calls go. Each has a connection of its own, so an engine that was restarted is no trouble.
pub struct Engine {
    host: String,
    call_timeout: Duration,
    pub stop_timeout: Duration,
}

impl Engine {
    pub fn new(host: &str, call_timeout: Duration, stop_timeout: Duration) -> Self {
        Self {
            host: host.to_owned(),
            call_timeout,
            stop_timeout,
        }
    }

    /// The client leaves the version of the API to the engine.
    fn connect(&self) -> Result<Docker, Trouble> {
        let seconds = (self.call_timeout + self.stop_timeout).as_secs() + 1;
        let connected = if self.host.starts_with("unix://") {
            Docker::connect_with_unix(&self.host, seconds, API_DEFAULT_VERSION)
        } else {
            Docker::connect_with_http(&self.host, seconds, API_DEFAULT_VERSION)
        };
        connected.map_err(|error| Trouble::Unreachable(describe(&error)))
    }

    async fn call<T>(&self, limit: Duration, call: impl Future<Output = Result<T, EngineError>>) -> Result<T, Trouble> {
        match timeout(limit, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(EngineError::DockerResponseServerError { status_code, message })) => Err(match status_code {
                404 => Trouble::Refused(404, format!("does not exist: {message}")),
                409 => Trouble::Refused(409, message),
                code => Trouble::Refused(500, format!("the engine answered {code}: {message}")),
            }),
            Ok(Err(EngineError::HyperLegacyError { err })) if err.is_connect() => {
                Err(Trouble::Unreachable(describe(&err)))
            }
            Ok(Err(error)) => Err(Trouble::Open(describe(&error))),
            Err(_) => Err(Trouble::Open(format!("no answer within {} ms", limit.as_millis()))),
        }
    }

    pub async fn inspect(&self, id: &str) -> Result<Found, Trouble> {
        let docker = self.connect()?;
        let answer = self.call(self.call_timeout, docker.inspect_container(id, None)).await?;
        Ok(answer.into())
    }

    /// An engine takes the start of an id for a name, too: that is not what is meant.
    pub async fn by_name(&self, name: &str) -> Result<Found, Trouble> {
        let found = self.inspect(name).await.map_err(|trouble| match trouble {
            Trouble::Refused(code, reason) => Trouble::Refused(code, format!("container {name}: {reason}")),
            other => other,
        })?;
        if found.name == name {
            return Ok(found);
        }
        Err(Trouble::Refused(404, format!("container {name} does not exist")))
    }

    /// In the order of their names.
    pub async fn by_labels(&self, labels: Vec<String>) -> Result<Vec<Found>, Trouble> {
        let docker = self.connect()?;
        let options = ListContainersOptions {
            all: true,
            filters: Some(HashMap::from([("label".to_owned(), labels)])),
            ..ListContainersOptions::default()
        };
        let listed = self
            .call(self.call_timeout, docker.list_containers(Some(options)))
            .await?;
        let mut found = Vec::new();
        for id in listed.into_iter().filter_map(|container| container.id) {
            found.push(self.inspect(&id).await?);
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    pub async fn post(&self, request: Lifecycle, id: &str) -> Result<(), Trouble> {
        let docker = self.connect()?;
        let limit = self.call_timeout + self.stop_timeout;
        let grace_s = i32::try_from(self.stop_timeout.as_secs()).ok();
        match request {
            Lifecycle::Restart => {
                let options = RestartContainerOptions {
                    t: grace_s,
                    signal: None,
                };
                self.call(limit, docker.restart_container(id, Some(options))).await
            }
            Lifecycle::Stop => {
                let options = StopContainerOptions {
                    t: grace_s,
                    signal: None,
                };
                self.call(limit, docker.stop_container(id, Some(options))).await
            }
            Lifecycle::Start => self.call(limit, docker.start_container(id, None)).await,
        }
    }
}
