//! What the process shows of itself: `/metrics`, `/healthz`, `/readyz`, and what it exports where the environment names
//! an endpoint. The work is the `observe` crate's; here it learns whose it is.

use std::net::SocketAddr;

use ::observe::{Error, Observation, Otlp, Service};

/// Observes until the answer is dropped; [`Observation::stages`] is for the loop.
pub fn start(listen: SocketAddr, service: &'static str) -> Result<Observation, Error> {
    let service = Service {
        name: service,
        version: env!("CARGO_PKG_VERSION"),
    };
    Observation::start(&service, listen, Otlp::from_environment()?)
}
