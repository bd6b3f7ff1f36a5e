//! `page_hinkley`: has the mean moved? The cumulated difference from the running mean against its own extreme.
//!
//! Page, 1954; Hinkley, Inference about the change-point from cumulative sum tests, 1971; parameters as in River, differences in
//! deviations of the series. A change that alarmed is accepted: the test starts again from the new mean after `min_instances` rows.
//! Where the mean then settles elsewhere, that is a level shift, since the row at which the sum was at its extreme (Hinkley's estimate).

use std::sync::Arc;

use crate::calibration::PROMISE;
use crate::codec::{Reader, Writer};
use crate::ewma::Moments;
use crate::level::Change;
use crate::parameter::{Kind, Options, Parameter};
use crate::series::{PerFeature, Reading, Series};
use crate::{Detector, Error, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS, PROMISE];
pub(crate) const NAME: &str = "page_hinkley";

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "delta",
        kind: Kind::Number { min: 0.0, max: 100.0 },
        default: "0.25",
        expected: "a number from 0 to 100",
        help: "deviations of the mean that are tolerated",
    },
    Parameter {
        name: "threshold",
        kind: Kind::Number { min: 0.1, max: 1e6 },
        default: "50",
        expected: "a number from 0.1 to 1000000",
        help: "cumulated deviations that alarm",
    },
    Parameter {
        name: "min_instances",
        kind: Kind::Integer { min: 2, max: 1_000_000 },
        default: "60",
        expected: "an integer from 2 to 1000000",
        help: "rows before the first score, and after an accepted change",
    },
    Parameter {
        name: "alpha",
        kind: Kind::Number { min: 0.5, max: 1.0 },
        default: "0.9999",
        expected: "a number from 0.5 to 1",
        help: "forgetting of the sums",
    },
];

pub(crate) struct Config {
    delta: f64,
    threshold: f64,
    rows_min: u32,
    alpha: f64,
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let config = Config {
        delta: options.required("delta"),
        threshold: options.required("threshold"),
        rows_min: options.count("min_instances") as u32,
        alpha: options.required("alpha"),
    };
    PerFeature::<PageHinkley>::detector(config, &options, features)
}

struct PageHinkley {
    moments: Moments,
    rising: f64,
    falling: f64,
    least: f64,
    greatest: f64,
    /// Since the sums were at their extremes.
    since_least: Since,
    since_greatest: Since,
    /// From an alarm until it is known where the mean has moved.
    change: Change,
}

/// When a sum was at its extreme, and the mean then.
#[derive(Clone, Copy)]
struct Since {
    time_ms: i64,
    mean: f64,
}

impl Series for PageHinkley {
    type Config = Config;
    const NAME: &'static str = NAME;
    const TAG: u8 = 15;
    const VERSION: u8 = 2;

    fn fresh(_config: &Config, _seed: u64) -> Self {
        Self {
            moments: Moments::new(),
            rising: 0.0,
            falling: 0.0,
            least: 0.0,
            greatest: 0.0,
            since_least: Since::NEVER,
            since_greatest: Since::NEVER,
            change: Change::default(),
        }
    }

    fn step(&mut self, config: &Config, time_ms: i64, value: f64, learn: bool) -> Reading {
        let warm = self.moments.rows >= config.rows_min;
        let (mean, deviation) = (self.moments.mean, self.moments.deviation());
        let level_shift = if learn {
            self.change.learn(value, 2.0 * config.delta)
        } else {
            None
        };
        if !warm {
            if learn {
                self.moments.learn(value, 1e-4);
            }
            return Reading {
                level_shift,
                ..Reading::QUIET
            };
        }
        // One row moves the test by three deviations at most: it asks for a moved mean, not for a spike.
        let unit = ((value - mean) / deviation).clamp(-3.0, 3.0);
        let rising = config.alpha * self.rising + unit - config.delta;
        let falling = config.alpha * self.falling + unit + config.delta;
        let score = (rising - self.least.min(rising)).max(self.greatest.max(falling) - falling) / config.threshold;
        if learn {
            self.rising = rising;
            self.falling = falling;
            self.since_least.step(rising <= self.least, time_ms, mean);
            self.since_greatest.step(falling >= self.greatest, time_ms, mean);
            self.least = self.least.min(rising);
            self.greatest = self.greatest.max(falling);
            self.moments
                .learn(value.clamp(mean - 3.0 * deviation, mean + 3.0 * deviation), 1e-4);
            if score >= 1.0 {
                let rose = rising - self.least >= self.greatest - falling;
                let since = if rose { self.since_least } else { self.since_greatest };
                let mut change = std::mem::take(&mut self.change);
                change.begin(since.mean, deviation, since.time_ms);
                *self = Self {
                    change,
                    ..Self::fresh(config, 0)
                };
                self.moments.learn(value, 1e-4);
            }
        }
        Reading {
            score,
            evidence: score,
            expected: mean,
            lower: mean - 3.0 * deviation,
            upper: mean + 3.0 * deviation,
            level_shift,
        }
    }

    fn write(&self, _config: &Config, writer: &mut Writer<'_>) {
        self.moments.write(writer);
        writer.f64s(&[self.rising, self.falling, self.least, self.greatest]);
        for since in [&self.since_least, &self.since_greatest] {
            writer.i64(since.time_ms);
            writer.f64(since.mean);
        }
        self.change.write(writer);
    }

    fn read(config: &Config, version: u8, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let moments = Moments::read(reader)?;
        let mut sums = [0.0; 4];
        reader.f64s(&mut sums)?;
        if sums.iter().any(|sum| !sum.is_finite()) {
            return Err(Error::State("a sum is not finite".into()));
        }
        let [rising, falling, least, greatest] = sums;
        let mut state = Self {
            moments,
            rising,
            falling,
            least,
            greatest,
            ..Self::fresh(config, 0)
        };
        if version >= 2 {
            for since in [&mut state.since_least, &mut state.since_greatest] {
                *since = Since {
                    time_ms: reader.i64()?,
                    mean: reader.f64()?,
                };
                if !since.mean.is_finite() {
                    return Err(Error::State("a mean is not finite".into()));
                }
            }
            state.change = Change::read(reader)?;
        }
        Ok(state)
    }

    fn size_max(_config: &Config) -> usize {
        Moments::BYTES + 32 + 32 + Change::BYTES
    }
}

impl Since {
    const NEVER: Self = Self {
        time_ms: i64::MIN,
        mean: 0.0,
    };

    fn step(&mut self, is_extreme: bool, time_ms: i64, mean: f64) {
        if is_extreme || self.time_ms == i64::MIN {
            *self = Self { time_ms, mean };
        }
    }
}
