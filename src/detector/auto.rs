//! `auto`, the default: an ensemble that needs no tuning.
//!
//! One feature: novelty of range, of transitions, of distribution and of shape ([`univariate`]). More: novelty of every
//! feature's transitions against a slow reference, and of how features go together ([`multivariate`]).

use std::sync::Arc;

use crate::calibration::{PROMISE, Promise};
use crate::parameter::{Kind, Options, Parameter};
use crate::range_novelty::WARMUP;
use crate::series::PerFeature;
use crate::{Detector, Error, Value};

mod displacement;
mod multivariate;
mod univariate;

pub(crate) const NAME: &str = "auto";
pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS, PROMISE];

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "tier",
        kind: Kind::Choice(&["lean", "standard", "full"]),
        default: "full",
        expected: "'lean', 'standard' or 'full'",
        help: "what one metric may cost: under 1 KB and 150 ns, or under 8 KB and 1 µs",
    },
    Parameter {
        name: "hold",
        kind: Kind::Integer { min: 0, max: 100_000 },
        default: "0",
        expected: "an integer from 0 to 100000",
        help: "one feature: rows for which an alarm stands, unlearned, while the departure lasts; 0 alarms once per episode",
    },
    WARMUP,
];

/// What one metric may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    Lean,
    Standard,
    Full,
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let tier = match options.word("tier") {
        Some("lean") => Tier::Lean,
        Some("standard") => Tier::Standard,
        _ => Tier::Full,
    };
    if features > 1 {
        let promise = Promise::read(&options)?;
        return multivariate::build(options.count("warmup") as u32, promise, features);
    }
    let config = univariate::Config {
        tier,
        warmup: options.count("warmup") as u32,
        hold: options.count("hold") as u32,
    };
    PerFeature::<univariate::Metric>::detector(config, &options, features)
}
