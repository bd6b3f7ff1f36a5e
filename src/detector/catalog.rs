//! All detectors by name.

use std::sync::Arc;

use crate::parameter::{Parameter, nearest};
use crate::{Detector, Error, Value};
use crate::{
    ar, auto, bocpd, cusum, ewma, extra_trees, forecast_breach, fuzzy_art, half_space_trees, holt_winters,
    isolation_forest, mahalanobis, markov_surprise, page_hinkley, population, range_novelty, relative_entropy,
    robust_zscore, seasonal, silence, spot, static_threshold, streaming_pca, transition_novelty,
};

type Build = fn(&[(String, Value)], usize) -> Result<Arc<dyn Detector>, Error>;

struct Entry {
    name: &'static str,
    parameters: &'static [&'static [Parameter]],
    build: Build,
}

macro_rules! entries {
    ($($detector:ident),* $(,)?) => {
        &[$(Entry {
            name: $detector::NAME,
            parameters: $detector::ALL_PARAMETERS,
            build: $detector::build,
        }),*]
    };
}

const CATALOG: &[Entry] = entries![
    ar,
    auto,
    bocpd,
    cusum,
    ewma,
    extra_trees,
    forecast_breach,
    fuzzy_art,
    half_space_trees,
    holt_winters,
    isolation_forest,
    mahalanobis,
    markov_surprise,
    page_hinkley,
    population,
    range_novelty,
    relative_entropy,
    robust_zscore,
    seasonal,
    silence,
    spot,
    static_threshold,
    streaming_pca,
    transition_novelty,
];

/// A detector over `features`, or what is wrong with its name or options.
pub fn build(name: &str, options: &[(String, Value)], features: &[String]) -> Result<Arc<dyn Detector>, Error> {
    let entry = CATALOG
        .iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| Error::UnknownDetector {
            name: name.into(),
            nearest: nearest(name, names()),
        })?;
    (entry.build)(options, features.len())
}

/// The names that [`build`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    CATALOG.iter().map(|entry| entry.name)
}

/// The parameters of a detector.
pub fn parameters(name: &str) -> Option<impl Iterator<Item = &'static Parameter>> {
    CATALOG
        .iter()
        .find(|entry| entry.name == name)
        .map(|entry| entry.parameters.iter().copied().flatten())
}
