//! `ar`: an autoregression fitted by recursive least squares; the score is the forecast error.
//!
//! Plackett, Some theorems in least squares, 1950; with a forgetting factor as in Ljung and Söderström, Theory and practice of recursive identification,
//! 1983. The series is standardised by slow moments first, so that the regression is well conditioned whatever its unit.

use std::sync::Arc;

use crate::calibration::PROMISE;
use crate::codec::{Reader, Writer};
use crate::ewma::{DEVIATIONS, Moments, SHORT_WARMUP};
use crate::parameter::{Kind, Options, Parameter};
use crate::series::{PerFeature, Reading, Series};
use crate::{Detector, Error, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS, PROMISE];
pub(crate) const NAME: &str = "ar";
const ORDER_MAX: usize = 16;

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "order",
        kind: Kind::Integer {
            min: 1,
            max: ORDER_MAX as i64,
        },
        default: "4",
        expected: "an integer from 1 to 16",
        help: "earlier rows that the forecast rests on",
    },
    Parameter {
        name: "forgetting_factor",
        kind: Kind::Number { min: 0.9, max: 1.0 },
        default: "0.999",
        expected: "a number from 0.9 to 1",
        help: "weight of the past against the newest row",
    },
    DEVIATIONS,
    SHORT_WARMUP,
];

pub(crate) struct Config {
    order: usize,
    forgetting: f64,
    threshold: f64,
    warmup: u32,
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let config = Config {
        order: options.count("order"),
        forgetting: options.required("forgetting_factor"),
        threshold: options.required("threshold"),
        warmup: options.count("warmup") as u32,
    };
    PerFeature::<Autoregression>::detector(config, &options, features)
}

struct Autoregression {
    moments: Moments,
    errors: Moments,
    /// Newest first, standardised.
    past: [f64; ORDER_MAX],
    weights: [f64; ORDER_MAX],
    /// Inverse correlation, row by row, order × order of it in use.
    inverse: Box<[f64]>,
}

impl Series for Autoregression {
    type Config = Config;
    const NAME: &'static str = NAME;
    const TAG: u8 = 12;
    const VERSION: u8 = 3;
    const LEVEL: Option<&'static str> = Some("threshold");

    fn fresh(config: &Config, _seed: u64) -> Self {
        let mut state = Self {
            moments: Moments::new(),
            errors: Moments::new(),
            past: [0.0; ORDER_MAX],
            weights: [0.0; ORDER_MAX],
            inverse: vec![0.0; config.order * config.order].into(),
        };
        state.forget(config);
        state
    }

    fn step(&mut self, config: &Config, _time_ms: i64, value: f64, learn: bool) -> Reading {
        let deviation = self.moments.deviation();
        let unit = ((value - self.moments.mean) / deviation).clamp(-1e3, 1e3);
        let past = &self.past[..config.order];
        let forecast: f64 = past
            .iter()
            .zip(&self.weights)
            .map(|(value, weight)| value * weight)
            .sum();
        let forecast = if forecast.is_finite() {
            forecast.clamp(-1e3, 1e3)
        } else {
            0.0
        };
        let width = config.threshold * self.errors.deviation().max(1e-3);
        let warm = self.errors.rows >= config.warmup;
        let reading = if warm {
            let expected = self.moments.mean + forecast * deviation;
            Reading::band(value, expected, width * deviation)
        } else {
            Reading::QUIET
        };
        let learned = if warm {
            unit.clamp(forecast - width, forecast + width)
        } else {
            unit
        };
        if learn {
            self.fit(config, learned - forecast);
            self.errors.learn(learned - forecast, 0.01);
            self.moments.learn(self.moments.mean + learned * deviation, 1e-3);
            if self.moments.rows == 1 {
                self.moments.mean = value;
            }
        }
        self.past.copy_within(..config.order - 1, 1);
        self.past[0] = if learn { learned } else { forecast };
        reading
    }

    fn write(&self, config: &Config, writer: &mut Writer<'_>) {
        self.moments.write(writer);
        self.errors.write(writer);
        writer.f64s(&self.past[..config.order]);
        writer.f64s(&self.weights[..config.order]);
        writer.f64s(&self.inverse);
    }

    fn read(config: &Config, _version: u8, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut state = Self::fresh(config, 0);
        state.moments = Moments::read(reader)?;
        state.errors = Moments::read(reader)?;
        reader.f64s(&mut state.past[..config.order])?;
        reader.f64s(&mut state.weights[..config.order])?;
        reader.f64s(&mut state.inverse)?;
        Ok(state)
    }

    fn size_max(config: &Config) -> usize {
        2 * Moments::BYTES + 8 * (2 * config.order + config.order * config.order)
    }
}

impl Autoregression {
    fn forget(&mut self, config: &Config) {
        self.weights = [0.0; ORDER_MAX];
        self.inverse.fill(0.0);
        for at in 0..config.order {
            self.inverse[at * config.order + at] = 10.0;
        }
    }

    fn fit(&mut self, config: &Config, error: f64) {
        let order = config.order;
        let mut gain = [0.0; ORDER_MAX];
        for (row, gain) in gain[..order].iter_mut().enumerate() {
            *gain = self.inverse[row * order..][..order]
                .iter()
                .zip(&self.past)
                .map(|(a, b)| a * b)
                .sum();
        }
        let denominator: f64 =
            config.forgetting + gain[..order].iter().zip(&self.past).map(|(a, b)| a * b).sum::<f64>();
        let mut finite = denominator.is_finite() && denominator > 0.0;
        for row in 0..order {
            self.weights[row] += gain[row] / denominator * error;
            for column in 0..order {
                let entry = &mut self.inverse[row * order + column];
                *entry = (*entry - gain[row] * gain[column] / denominator) / config.forgetting;
                finite &= entry.is_finite() && entry.abs() < 1e6;
            }
            finite &= self.weights[row].is_finite();
        }
        if !finite {
            // Without excitation the inverse winds up; start it again rather than follow it.
            self.forget(config);
        }
    }
}
