//! `cusum`: a cumulative sum of standardised departures, both ways.
//!
//! Page, Continuous inspection schemes, 1954. The reference mean and deviation are those of the warm-up, followed slowly and
//! only as far as the chart allows; it sums what exceeds `drift` deviations and alarms at `threshold`. After an alarm the chart starts
//! again, as Page's does: it learns the mean that it has found and sums from 0. One row adds a third of the threshold at most: the chart
//! asks for a moved mean, not for a spike (Lucas and Crosier, Robust CUSUM, 1982).

use std::sync::Arc;

use crate::calibration::PROMISE;
use crate::codec::{Reader, Writer};
use crate::ewma::{Moments, SHORT_WARMUP};
use crate::parameter::{Kind, Options, Parameter};
use crate::series::{PerFeature, Reading, Series};
use crate::{Detector, Error, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS, PROMISE];
pub(crate) const NAME: &str = "cusum";
/// A chart stays finite while it may not start again.
const SUM_MAX: f64 = 1e6;

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "drift",
        kind: Kind::Number { min: 0.0, max: 100.0 },
        default: "1",
        expected: "a number from 0 to 100",
        help: "deviations that are not summed: half the shift to be found",
    },
    Parameter {
        name: "threshold",
        kind: Kind::Number { min: 0.1, max: 1e6 },
        default: "12",
        expected: "a number from 0.1 to 1000000",
        help: "summed deviations that alarm",
    },
    SHORT_WARMUP,
];

pub(crate) struct Config {
    drift: f64,
    threshold: f64,
    warmup: u32,
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let config = Config {
        drift: options.required("drift"),
        threshold: options.required("threshold"),
        warmup: options.count("warmup") as u32,
    };
    PerFeature::<Cusum>::detector(config, &options, features)
}

struct Cusum {
    reference: Moments,
    above: f64,
    below: f64,
}

impl Series for Cusum {
    type Config = Config;
    const NAME: &'static str = NAME;
    const TAG: u8 = 14;
    const VERSION: u8 = 3;
    const LEVEL: Option<&'static str> = Some("threshold");

    fn fresh(_config: &Config, _seed: u64) -> Self {
        Self {
            reference: Moments::new(),
            above: 0.0,
            below: 0.0,
        }
    }

    fn step(&mut self, config: &Config, _time_ms: i64, value: f64, learn: bool) -> Reading {
        let warm = self.reference.rows >= config.warmup;
        let mean = self.reference.mean;
        let deviation = self.reference.deviation();
        let mut reading = Reading::QUIET;
        if warm {
            let unit = (value - mean) / deviation;
            let most = config.threshold / 3.0;
            self.above = (self.above + (unit - config.drift).min(most)).clamp(0.0, SUM_MAX);
            self.below = (self.below + (-unit - config.drift).min(most)).clamp(0.0, SUM_MAX);
            let score = self.above.max(self.below) / config.threshold;
            let width = (config.drift + config.threshold) * deviation;
            reading = Reading {
                score,
                evidence: score,
                expected: mean,
                lower: mean - width,
                upper: mean + width,
                level_shift: None,
            };
        }
        if learn {
            let reach = 3.0 * deviation;
            let learned = if warm {
                value.clamp(mean - reach, mean + reach)
            } else {
                value
            };
            self.reference.learn(learned, 2e-3);
        }
        reading
    }

    fn alarmed(&mut self, config: &Config) {
        if self.above.max(self.below) >= config.threshold {
            *self = Self::fresh(config, 0);
        }
    }

    fn write(&self, _config: &Config, writer: &mut Writer<'_>) {
        self.reference.write(writer);
        writer.f64s(&[self.above, self.below]);
    }

    fn read(_config: &Config, _version: u8, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let chart = Self {
            reference: Moments::read(reader)?,
            above: reader.f64()?,
            below: reader.f64()?,
        };
        if chart.above.is_finite() && chart.below.is_finite() {
            Ok(chart)
        } else {
            Err(Error::State("a sum is not finite".into()))
        }
    }

    fn size_max(_config: &Config) -> usize {
        Moments::BYTES + 16
    }
}
