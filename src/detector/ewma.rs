//! `ewma`: distance from an exponentially weighted mean, in exponentially weighted deviations.
//!
//! Roberts, Control chart tests based on geometric moving averages, 1959; the incremental variance is Finch, Incremental
//! calculation of weighted mean and variance, 2009. What lies beyond the alarm level is learned only up to it, so that one spike does not
//! widen the band for those that follow.

use std::sync::Arc;

use crate::calibration::PROMISE;
use crate::codec::{Reader, Writer};
use crate::parameter::{Kind, Options, Parameter};
use crate::series::{PerFeature, Reading, Series};
use crate::{Detector, Error, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS, PROMISE];
pub(crate) const NAME: &str = "ewma";

pub(crate) const DEVIATIONS: Parameter = Parameter {
    name: "threshold",
    kind: Kind::Number { min: 0.1, max: 1e6 },
    default: "5",
    expected: "a number from 0.1 to 1000000",
    help: "deviations that alarm",
};

pub(crate) const SHORT_WARMUP: Parameter = Parameter {
    name: "warmup",
    kind: Kind::Integer { min: 2, max: 1_000_000 },
    default: "60",
    expected: "an integer from 2 to 1000000",
    help: "rows before the first score",
};

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "fading_factor",
        kind: Kind::Number { min: 1e-5, max: 0.9 },
        default: "0.02",
        expected: "a number from 0.00001 to 0.9",
        help: "weight of the newest row",
    },
    DEVIATIONS,
    SHORT_WARMUP,
];

pub(crate) struct Config {
    weight: f64,
    threshold: f64,
    warmup: u32,
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let config = Config {
        weight: options.required("fading_factor"),
        threshold: options.required("threshold"),
        warmup: options.count("warmup") as u32,
    };
    PerFeature::<Ewma>::detector(config, &options, features)
}

struct Ewma {
    moments: Moments,
}

impl Series for Ewma {
    type Config = Config;
    const NAME: &'static str = NAME;
    const TAG: u8 = 10;
    const VERSION: u8 = 3;
    const LEVEL: Option<&'static str> = Some("threshold");

    fn fresh(_config: &Config, _seed: u64) -> Self {
        Self {
            moments: Moments::new(),
        }
    }

    fn step(&mut self, config: &Config, _time_ms: i64, value: f64, learn: bool) -> Reading {
        let width = config.threshold * self.moments.deviation();
        let warm = self.moments.rows >= config.warmup;
        let reading = if warm {
            Reading::band(value, self.moments.mean, width)
        } else {
            Reading::QUIET
        };
        if learn {
            let learned = if warm {
                value.clamp(self.moments.mean - width, self.moments.mean + width)
            } else {
                value
            };
            self.moments.learn(learned, config.weight);
        }
        reading
    }

    fn write(&self, _config: &Config, writer: &mut Writer<'_>) {
        self.moments.write(writer);
    }

    fn read(_config: &Config, _version: u8, reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            moments: Moments::read(reader)?,
        })
    }

    fn size_max(_config: &Config) -> usize {
        Moments::BYTES
    }
}

/// Exponentially weighted mean and variance; the first rows weigh alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Moments {
    pub(crate) mean: f64,
    variance: f64,
    pub(crate) rows: u32,
}

impl Moments {
    pub(crate) const BYTES: usize = 20;

    pub(crate) fn new() -> Self {
        Self {
            mean: 0.0,
            variance: 0.0,
            rows: 0,
        }
    }

    pub(crate) fn learn(&mut self, value: f64, weight: f64) {
        self.rows = self.rows.saturating_add(1);
        let weight = weight.max(1.0 / f64::from(self.rows));
        let change = value - self.mean;
        self.mean += weight * change;
        self.variance = (1.0 - weight) * (self.variance + weight * change * change);
    }

    /// Never 0: a constant deviates by a thousandth of itself.
    pub(crate) fn deviation(&self) -> f64 {
        self.variance.max(0.0).sqrt().max(1e-3 * self.mean.abs()).max(1e-12)
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        writer.f64(self.mean);
        writer.f64(self.variance);
        writer.u32(self.rows);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let moments = Self {
            mean: reader.f64()?,
            variance: reader.f64()?,
            rows: reader.u32()?,
        };
        if moments.mean.is_finite() && moments.variance.is_finite() {
            Ok(moments)
        } else {
            Err(Error::State("moments are not finite".into()))
        }
    }
}
