//! A shop of services, and what can go wrong with them.
//!
//! Owns the services of the demonstration (real processes that call one another and publish telemetry), their faults,
//! and the demonstration that breaks them one after another and watches whether they heal. It knows nothing of
//! pipelines, detectors or policies: what it sees of the processor stands on topics. Fails with [`Error`].

pub mod call;
pub mod control;
pub mod demo;
mod error;
pub mod fault;
pub mod graph;
pub mod meter;
pub mod otlp;
mod random;
pub mod service;
pub mod visitors;

pub use error::Error;
pub use fault::Fault;
pub use random::Random;
