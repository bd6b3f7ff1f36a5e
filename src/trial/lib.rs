//! A rehearsal of healing: simulated services break with faults whose cure is known, and the production decision code is
//! judged by what it does.
//!
//! Owns the environment ([`world`]: services that call one another, faults, what actions do to them, a virtual clock), the
//! catalogue of faults as data ([`catalogue`]), the competitors ([`arm`]) and their marks ([`marks`]). Detectors and decisions are
//! those of the product; only the environment knows what is broken. Everything follows from a seed. Fails with [`Error`].

pub mod arm;
pub mod catalogue;
pub mod marks;
mod random;
pub mod watch;
pub mod world;

pub use random::Random;

/// Why nothing could be tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("catalogue {name}: {reason}")]
    Catalogue { name: String, reason: String },
    #[error("detector: {0}")]
    Detector(#[from] detector::Error),
    #[error("past incidents teach nothing: {0}")]
    Train(#[from] remediation::choose::TrainError),
    #[error("state that was written cannot be read: {0}")]
    State(#[from] remediation::Error),
    #[error("an arm cannot go on: {0}")]
    Arm(String),
}

/// The detectors of every service of a catalogue.
pub fn watch(catalogue: &catalogue::Catalogue) -> Result<watch::Watch, Error> {
    watch::Watch::new(catalogue.calls.len())
}
