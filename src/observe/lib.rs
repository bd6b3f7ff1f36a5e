//! How a process shows itself: metrics, health and spans, served over HTTP and sent by OTLP.
//!
//! Owns one store of metrics, read by `/metrics` and by the OTLP export alike, and the spans of incidents, whose ids are
//! given by the messages they stand for, so that processes that never speak to each other build one trace.
//! Promises never to hold up who is observed: stores are bounded, exports have their own thread, and what cannot be
//! delivered is dropped and counted. Knows the loop's [`kafka::Observer`] and the messages of `protocol`, no stage.
//! Fails only at the start, when the address cannot be taken.

mod health;
mod http;
mod incident;
mod metrics;
mod otlp;
mod stages;

use std::{net::SocketAddr, sync::Arc};

use uuid::Uuid;

pub use health::Health;
pub use incident::{Kind, Span, parse_traceparent};
pub use metrics::{Metrics, Snapshot};
pub use otlp::{Endpoint, Otlp};
pub use stages::Stages;

/// Observation could not begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("http.listen = {address}: the address cannot be taken; another program may use it, or take port 0")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Otlp(String),
}

/// Who is observed.
#[derive(Clone, Debug)]
pub struct Service {
    /// `homeostat` or `homeostat-executor`: `service.name`, and the prefix of every metric's name is `homeostat_`.
    pub name: &'static str,
    pub version: &'static str,
}

/// The observation of one process. Dropping it delivers what is left.
pub struct Observation {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    spans: Spans,
    address: SocketAddr,
    _server: http::Server,
    _exporter: Option<otlp::Exporter>,
}

impl Observation {
    /// Takes the address and, where the environment names an endpoint, starts to export.
    pub fn start(service: &Service, listen: SocketAddr, otlp: Option<Otlp>) -> Result<Self, Error> {
        let metrics = Arc::new(Metrics::default());
        let health = Arc::new(Health::default());
        metrics.gauge("build_info", &[("version", service.version)], 0, 1.0);
        let server = http::Server::start(listen, Arc::clone(&metrics), Arc::clone(&health))?;
        let address = server.address();
        tracing::info!(%address, "serving /metrics, /healthz and /readyz");
        let exporter = otlp
            .map(|otlp| otlp::Exporter::start(otlp, service, Uuid::new_v4(), Arc::clone(&metrics)))
            .transpose()?;
        Ok(Self {
            spans: exporter.as_ref().map_or_else(Spans::none, otlp::Exporter::spans),
            metrics,
            health,
            address,
            _server: server,
            _exporter: exporter,
        })
    }

    /// For [`kafka::run_stage`].
    pub fn stages(&self) -> Arc<Stages> {
        Arc::new(Stages::new(
            Arc::clone(&self.metrics),
            Arc::clone(&self.health),
            self.spans.clone(),
        ))
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    pub fn spans(&self) -> &Spans {
        &self.spans
    }

    /// The address that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Takes spans for export; without an endpoint it takes them for nothing.
#[derive(Clone)]
pub struct Spans(Option<otlp::Queue>);

impl Spans {
    pub fn none() -> Self {
        Self(None)
    }

    /// Whether anybody listens.
    pub fn are_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Never waits: a span that finds the queue full is dropped and counted.
    pub fn record(&self, span: Span) {
        if let Some(queue) = &self.0 {
            queue.push(span);
        }
    }
}

#[cfg(test)]
mod tests;
