//! `page_hinkley`: has the mean moved? The cumulated difference from the running mean against its own extreme.
//!
//! Page, 1954; Hinkley, Inference about the change-point from cumulative sum tests, 1971; parameters as in River, differences in
//! deviations of the series. A change that alarmed is accepted: the test starts again from the new mean after `min_instances` rows.

use std::sync::Arc;

use crate::calibration::PROMISE;
use crate::codec::{Reader, Writer};
use crate::ewma::Moments;
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
}

impl Series for PageHinkley {
    type Config = Config;
    const NAME: &'static str = NAME;
    const TAG: u8 = 15;
    const VERSION: u8 = 1;

    fn fresh(_config: &Config, _seed: u64) -> Self {
        Self {
            moments: Moments::new(),
            rising: 0.0,
            falling: 0.0,
            least: 0.0,
            greatest: 0.0,
        }
    }

    fn step(&mut self, config: &Config, _time_ms: i64, value: f64, learn: bool) -> Reading {
        let warm = self.moments.rows >= config.rows_min;
        let (mean, deviation) = (self.moments.mean, self.moments.deviation());
        if !warm {
            if learn {
                self.moments.learn(value, 1e-4);
            }
            return Reading::QUIET;
        }
        // One row moves the test by three deviations at most: it asks for a moved mean, not for a spike.
        let unit = ((value - mean) / deviation).clamp(-3.0, 3.0);
        let rising = config.alpha * self.rising + unit - config.delta;
        let falling = config.alpha * self.falling + unit + config.delta;
        let score = (rising - self.least.min(rising)).max(self.greatest.max(falling) - falling) / config.threshold;
        if learn {
            self.rising = rising;
            self.falling = falling;
            self.least = self.least.min(rising);
            self.greatest = self.greatest.max(falling);
            self.moments
                .learn(value.clamp(mean - 3.0 * deviation, mean + 3.0 * deviation), 1e-4);
            if score >= 1.0 {
                *self = Self::fresh(config, 0);
                self.moments.learn(value, 1e-4);
            }
        }
        Reading {
            score,
            evidence: score,
            expected: mean,
            lower: f64::NAN,
            upper: f64::NAN,
        }
    }

    fn write(&self, _config: &Config, writer: &mut Writer<'_>) {
        self.moments.write(writer);
        writer.f64s(&[self.rising, self.falling, self.least, self.greatest]);
    }

    fn read(_config: &Config, _version: u8, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let moments = Moments::read(reader)?;
        let mut sums = [0.0; 4];
        reader.f64s(&mut sums)?;
        if sums.iter().any(|sum| !sum.is_finite()) {
            return Err(Error::State("a sum is not finite".into()));
        }
        let [rising, falling, least, greatest] = sums;
        Ok(Self {
            moments,
            rising,
            falling,
            least,
            greatest,
        })
    }

    fn size_max(_config: &Config) -> usize {
        Moments::BYTES + 32
    }
}
