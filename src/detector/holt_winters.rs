//! `holt_winters`: level, trend and season, each smoothed exponentially; the score is the forecast error.
//!
//! Holt, Forecasting seasonals and trends by exponentially weighted moving averages, 1957; Winters, Forecasting sales by exponentially weighted moving averages,
//! 1960; additive, with the trend damped (Gardner and McKenzie, 1985) so that one bad row does not shoot off.

use std::sync::Arc;

use crate::calibration::PROMISE;
use crate::codec::{Reader, Writer};
use crate::ewma::{DEVIATIONS, Moments, SHORT_WARMUP};
use crate::parameter::{Kind, Options, Parameter};
use crate::series::{PerFeature, Reading, Series};
use crate::{Detector, Error, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS, PROMISE];
pub(crate) const NAME: &str = "holt_winters";
const DAMPING: f64 = 0.98;

const fn share(name: &'static str, default: &'static str, help: &'static str) -> Parameter {
    Parameter {
        name,
        kind: Kind::Number { min: 0.0, max: 1.0 },
        default,
        expected: "a number from 0 to 1",
        help,
    }
}

pub(crate) const PARAMETERS: &[Parameter] = &[
    share("alpha", "0.2", "smoothing of the level"),
    share("beta", "0.02", "smoothing of the trend"),
    share("gamma", "0.2", "smoothing of the season"),
    Parameter {
        name: "seasonality",
        kind: Kind::Integer { min: 0, max: 10_080 },
        default: "0",
        expected: "an integer from 0 to 10080",
        help: "rows of a season; 0 for none",
    },
    DEVIATIONS,
    SHORT_WARMUP,
];

pub(crate) struct Config {
    alpha: f64,
    beta: f64,
    gamma: f64,
    seasonality: usize,
    threshold: f64,
    warmup: u32,
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let config = Config {
        alpha: options.required("alpha"),
        beta: options.required("beta"),
        gamma: options.required("gamma"),
        seasonality: options.count("seasonality"),
        threshold: options.required("threshold"),
        warmup: (options.count("warmup") as u32).max(2 * options.count("seasonality") as u32),
    };
    PerFeature::<HoltWinters>::detector(config, &options, features)
}

struct HoltWinters {
    level: f64,
    trend: f64,
    season: Box<[f64]>,
    at: u32,
    errors: Moments,
}

impl Series for HoltWinters {
    type Config = Config;
    const NAME: &'static str = NAME;
    const TAG: u8 = 11;
    const VERSION: u8 = 3;
    const LEVEL: Option<&'static str> = Some("threshold");

    fn fresh(config: &Config, _seed: u64) -> Self {
        Self {
            level: f64::NAN,
            trend: 0.0,
            season: vec![0.0; config.seasonality].into(),
            at: 0,
            errors: Moments::new(),
        }
    }

    fn step(&mut self, config: &Config, _time_ms: i64, value: f64, learn: bool) -> Reading {
        if self.level.is_nan() {
            self.level = value;
        }
        let at = self.at as usize;
        let seasonal = self.season.get(at).copied().unwrap_or(0.0);
        let forecast = self.level + DAMPING * self.trend + seasonal;
        let width = config.threshold * self.errors.deviation().max(1e-3 * forecast.abs());
        let warm = self.errors.rows >= config.warmup;
        let reading = if warm {
            Reading::band(value, forecast, width)
        } else {
            Reading::QUIET
        };
        self.at = if at + 1 < self.season.len() { self.at + 1 } else { 0 };
        // What may not be learned passes as forecast: the level goes on, the season keeps its place.
        let learned = match (learn, warm) {
            (false, _) => forecast,
            (true, true) => value.clamp(forecast - width, forecast + width),
            (true, false) => value,
        };
        let level = config.alpha * (learned - seasonal) + (1.0 - config.alpha) * (self.level + DAMPING * self.trend);
        self.trend = config.beta * (level - self.level) + (1.0 - config.beta) * DAMPING * self.trend;
        self.level = level.clamp(-crate::VALUE_MAX, crate::VALUE_MAX);
        if learn {
            if let Some(season) = self.season.get_mut(at) {
                *season += config.gamma * (learned - level - seasonal);
            }
            self.errors.learn(learned - forecast, 0.01);
        }
        reading
    }

    fn write(&self, _config: &Config, writer: &mut Writer<'_>) {
        writer.f64s(&[self.level, self.trend]);
        writer.u32(self.at);
        self.errors.write(writer);
        writer.f64s(&self.season);
    }

    fn read(config: &Config, _version: u8, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut state = Self::fresh(config, 0);
        state.level = reader.f64()?;
        state.trend = reader.f64()?;
        state.at = reader.u32()?;
        state.errors = Moments::read(reader)?;
        reader.f64s(&mut state.season)?;
        let finite =
            !state.level.is_infinite() && state.trend.is_finite() && state.season.iter().all(|value| value.is_finite());
        if !finite || state.at as usize > state.season.len() {
            return Err(Error::State("a forecast is not finite".into()));
        }
        Ok(state)
    }

    fn size_max(config: &Config) -> usize {
        20 + Moments::BYTES + 8 * config.seasonality
    }
}
