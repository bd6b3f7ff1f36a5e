//! `spot`: a threshold from extreme value theory, on the departure from a moving mean, both ways.
//!
//! Siffer, Fouque, Termier and Largouët, Anomaly detection in streams with extreme value theory, KDD 2017: DSPOT. Departures
//! beyond the initial quantile are excesses, a generalised Pareto law is fitted to them (here by probability-weighted moments:
//! Hosking and Wallis, 1987, which has no iteration to fail), and the level that is exceeded with probability `q` alarms.

use std::sync::Arc;

use crate::calibration::PROMISE;
use crate::codec::{Reader, Writer};
use crate::parameter::{Kind, Options, Parameter};
use crate::series::{PerFeature, Reading, Series};
use crate::{Detector, Error, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS, PROMISE];
pub(crate) const NAME: &str = "spot";
const EXCESSES: usize = 200;
const INITIAL_MAX: usize = 1000;
const DEPTH_MAX: usize = 256;

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "q",
        kind: Kind::Number { min: 1e-8, max: 0.1 },
        default: "0.0001",
        expected: "a number from 0.00000001 to 0.1",
        help: "probability of a false alarm",
    },
    Parameter {
        name: "level",
        kind: Kind::Number { min: 0.5, max: 0.999 },
        default: "0.98",
        expected: "a number from 0.5 to 0.999",
        help: "quantile beyond which values are excesses",
    },
    Parameter {
        name: "depth",
        kind: Kind::Integer {
            min: 1,
            max: DEPTH_MAX as i64,
        },
        default: "10",
        expected: "an integer from 1 to 256",
        help: "rows of the moving mean",
    },
    Parameter {
        name: "warmup",
        kind: Kind::Integer {
            min: 50,
            max: INITIAL_MAX as i64,
        },
        default: "300",
        expected: "an integer from 50 to 1000",
        help: "rows that set the initial quantile",
    },
];

pub(crate) struct Config {
    q: f64,
    level: f64,
    depth: usize,
    warmup: usize,
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let config = Config {
        q: options.required("q"),
        level: options.required("level"),
        depth: options.count("depth"),
        warmup: options.count("warmup"),
    };
    PerFeature::<Spot>::detector(config, &options, features)
}

/// One tail: the point beyond which values are excesses, and the law of the excesses.
#[derive(Clone, Debug, Default)]
struct Tail {
    point: f64,
    excesses: Vec<f64>,
    seen: u64,
    alarm: f64,
}

impl Tail {
    fn exceed(&mut self, excess: f64) {
        if self.excesses.len() == EXCESSES {
            self.excesses.remove(0);
        }
        self.excesses.push(excess);
        self.seen += 1;
    }

    /// The level exceeded with probability q after `rows` rows.
    fn fit(&mut self, q: f64, rows: u64) {
        let mut sorted = self.excesses.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let count = sorted.len() as f64;
        let mean = sorted.iter().sum::<f64>() / count;
        let weighted = sorted
            .iter()
            .enumerate()
            .map(|(rank, excess)| (count - rank as f64 - 0.65) / count * excess)
            .sum::<f64>()
            / count;
        let spread = mean - 2.0 * weighted;
        let (shape, scale) = if spread > 1e-12 * mean {
            (2.0 - mean / spread, 2.0 * mean * weighted / spread)
        } else {
            (0.0, mean)
        };
        let shape = shape.clamp(-0.5, 0.5);
        let ratio = q * rows as f64 / self.seen.max(1) as f64;
        let beyond = if shape.abs() < 1e-6 {
            -scale * ratio.ln()
        } else {
            scale / shape * (ratio.powf(-shape) - 1.0)
        };
        self.alarm = beyond.max(mean).max(1e-12);
    }
}

struct Spot {
    recent: Vec<f64>,
    next: usize,
    rows: u64,
    /// Rows of alarm without a break.
    alarmed: u32,
    initial: Vec<f64>,
    upper: Tail,
    lower: Tail,
}

impl Series for Spot {
    type Config = Config;
    const NAME: &'static str = NAME;
    const TAG: u8 = 20;
    const VERSION: u8 = 3;
    const LEVEL: Option<&'static str> = Some("q");

    fn fresh(config: &Config, _seed: u64) -> Self {
        Self {
            recent: Vec::with_capacity(config.depth),
            next: 0,
            rows: 0,
            alarmed: 0,
            initial: Vec::new(),
            upper: Tail::default(),
            lower: Tail::default(),
        }
    }

    fn step(&mut self, config: &Config, _time_ms: i64, value: f64, learn: bool) -> Reading {
        if self.recent.len() < config.depth {
            if learn {
                self.recent.push(value);
            }
            return Reading::QUIET;
        }
        let mean = self.recent.iter().map(|value| value / config.depth as f64).sum::<f64>();
        let departure = value - mean;
        if self.rows < config.warmup as u64 {
            if learn {
                self.rows += 1;
                self.initial.push(departure);
                self.slide(config, value);
                if self.rows == config.warmup as u64 {
                    self.start(config);
                }
            }
            return Reading::QUIET;
        }
        let up = (departure - self.upper.point) / self.upper.alarm;
        let down = (-departure - self.lower.point) / self.lower.alarm;
        let score = up.max(down).max(0.0);
        let reading = Reading {
            score,
            evidence: score,
            expected: mean,
            lower: mean - self.lower.point - self.lower.alarm,
            upper: mean + self.upper.point + self.upper.alarm,
            level_shift: None,
        };
        // An alarm is no normal row: neither the law nor the mean learns it, until it has lasted for longer than the mean remembers.
        if learn {
            self.alarmed = if score < 1.0 { 0 } else { self.alarmed.saturating_add(1) };
        }
        if learn && (score < 1.0 || self.alarmed as usize > config.depth) {
            self.rows += 1;
            for (tail, excess) in [(&mut self.upper, departure), (&mut self.lower, -departure)] {
                if excess > tail.point {
                    tail.exceed(excess - tail.point);
                    tail.fit(config.q, self.rows);
                }
            }
            self.slide(config, value);
        }
        reading
    }

    fn write(&self, _config: &Config, writer: &mut Writer<'_>) {
        writer.u64(self.rows);
        writer.u32(self.next as u32);
        writer.u32(self.alarmed);
        for values in [&self.recent, &self.initial, &self.upper.excesses, &self.lower.excesses] {
            writer.u32(values.len() as u32);
            writer.f64s(values);
        }
        for tail in [&self.upper, &self.lower] {
            writer.f64s(&[tail.point, tail.alarm]);
            writer.u64(tail.seen);
        }
    }

    fn read(config: &Config, _version: u8, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut state = Self::fresh(config, 0);
        state.rows = reader.u64()?.min(1 << 62);
        state.next = reader.length(config.depth - 1)?;
        state.alarmed = reader.u32()?;
        for (values, max) in [
            (&mut state.recent, config.depth),
            (&mut state.initial, config.warmup),
            (&mut state.upper.excesses, EXCESSES),
            (&mut state.lower.excesses, EXCESSES),
        ] {
            let length = reader.length(max)?;
            values.resize(length, 0.0);
            reader.f64s(values)?;
            if values.iter().any(|value| !value.is_finite()) {
                return Err(Error::State("a value is not finite".into()));
            }
        }
        for tail in [&mut state.upper, &mut state.lower] {
            tail.point = reader.f64()?;
            tail.alarm = reader.f64()?;
            tail.seen = reader.u64()?.min(1 << 62);
        }
        let begun = state.rows >= config.warmup as u64;
        for tail in [&state.upper, &state.lower] {
            let sound = tail.point.is_finite() && tail.alarm.is_finite() && (!begun || tail.alarm > 0.0);
            if !sound {
                return Err(Error::State("a tail is not one".into()));
            }
        }
        if !begun && state.initial.len() as u64 != state.rows {
            return Err(Error::State("warm-up rows are missing".into()));
        }
        Ok(state)
    }

    fn size_max(config: &Config) -> usize {
        16 + 16 + 8 * (config.depth + config.warmup + 2 * EXCESSES) + 2 * 24
    }
}

impl Spot {
    fn slide(&mut self, config: &Config, value: f64) {
        self.recent[self.next] = value;
        self.next = (self.next + 1) % config.depth;
    }

    fn start(&mut self, config: &Config) {
        let mut departures = std::mem::take(&mut self.initial);
        for (tail, sign) in [(&mut self.upper, 1.0), (&mut self.lower, -1.0)] {
            let mut values: Vec<f64> = departures.iter().map(|value| sign * value).collect();
            values.sort_unstable_by(f64::total_cmp);
            let at = ((values.len() - 1) as f64 * config.level) as usize;
            tail.point = values[at].max(0.0);
            for value in &values[at..] {
                tail.exceed((value - tail.point).max(1e-9 * tail.point.abs().max(1e-3)));
            }
            tail.fit(config.q, self.rows);
        }
        departures.clear();
    }
}
