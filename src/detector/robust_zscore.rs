//! `robust_zscore`: distance from the median of a bounded window, in robust deviations.
//!
//! Iglewicz and Hoaglin, How to detect and handle outliers, 1993: the modified z-score, median and MAD. Where the MAD
//! is 0 (more than half of the window equal) the standard deviation of the window stands in, so that a rare but regular value is no alarm.

use std::sync::Arc;

use crate::calibration::PROMISE;
use crate::codec::{Reader, Writer};
use crate::parameter::{Kind, Options, Parameter};
use crate::series::{PerFeature, Reading, Series};
use crate::{Detector, Error, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS, PROMISE];
pub(crate) const NAME: &str = "robust_zscore";

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "threshold",
        kind: Kind::Number { min: 0.1, max: 1e6 },
        default: "3.5",
        expected: "a number from 0.1 to 1000000",
        help: "robust deviations that alarm",
    },
    Parameter {
        name: "window",
        kind: Kind::Integer { min: 8, max: 10_000 },
        default: "120",
        expected: "an integer from 8 to 10000",
        help: "rows remembered",
    },
    Parameter {
        name: "warmup",
        kind: Kind::Integer { min: 2, max: 10_000 },
        default: "30",
        expected: "an integer from 2 to window",
        help: "rows before the first score",
    },
];

pub(crate) struct Config {
    threshold: f64,
    window: usize,
    warmup: usize,
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    let given_warmup = options.iter().any(|(name, _)| name == "warmup");
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let window = options.count("window");
    let warmup = options.count("warmup");
    if given_warmup && warmup > window {
        return Err(Error::OutOfRange {
            name: "warmup".into(),
            value: warmup.to_string(),
            expected: "an integer from 2 to window",
        });
    }
    let config = Config {
        threshold: options.required("threshold"),
        window,
        warmup: warmup.min(window),
    };
    PerFeature::<RobustZscore>::detector(config, &options, features)
}

struct RobustZscore {
    /// The window in order of arrival; `next` is the oldest once it is full.
    ring: Vec<f64>,
    next: usize,
    /// The same values in `total_cmp` order.
    sorted: Vec<f64>,
}

impl Series for RobustZscore {
    type Config = Config;
    const NAME: &'static str = NAME;
    const TAG: u8 = 3;
    const VERSION: u8 = 3;
    const LEVEL: Option<&'static str> = Some("threshold");

    fn fresh(config: &Config, _seed: u64) -> Self {
        Self {
            ring: Vec::with_capacity(config.window),
            next: 0,
            sorted: Vec::with_capacity(config.window),
        }
    }

    fn step(&mut self, config: &Config, _time_ms: i64, value: f64, learn: bool) -> Reading {
        let reading = if self.ring.len() < config.warmup {
            Reading::QUIET
        } else {
            let median = self.median();
            Reading::band(value, median, config.threshold * self.deviation(median))
        };
        if learn {
            self.push(config.window, value);
        }
        reading
    }

    fn write(&self, _config: &Config, writer: &mut Writer<'_>) {
        writer.u32(self.ring.len() as u32);
        writer.u32(self.next as u32);
        writer.f64s(&self.ring);
    }

    fn read(config: &Config, _version: u8, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut state = Self::fresh(config, 0);
        let length = reader.length(config.window)?;
        state.next = reader.length(config.window.saturating_sub(1))?;
        state.ring.resize(length, 0.0);
        reader.f64s(&mut state.ring)?;
        state.sorted.extend_from_slice(&state.ring);
        state.sorted.sort_unstable_by(f64::total_cmp);
        Ok(state)
    }

    fn size_max(config: &Config) -> usize {
        8 + 8 * config.window
    }
}

impl RobustZscore {
    fn push(&mut self, window: usize, value: f64) {
        if self.ring.len() < window {
            self.ring.push(value);
        } else {
            let oldest = std::mem::replace(&mut self.ring[self.next], value);
            self.next = (self.next + 1) % window;
            let at = self.sorted.partition_point(|kept| kept.total_cmp(&oldest).is_lt());
            self.sorted.remove(at);
        }
        let at = self.sorted.partition_point(|kept| kept.total_cmp(&value).is_lt());
        self.sorted.insert(at, value);
    }

    fn median(&self) -> f64 {
        let n = self.sorted.len();
        self.sorted[(n - 1) / 2] / 2.0 + self.sorted[n / 2] / 2.0
    }

    /// Robust standard deviation, never 0.
    fn deviation(&self, median: f64) -> f64 {
        let floor = (1e-3 * median.abs()).max(1e-12);
        let mad = 1.4826 * self.median_deviation(median);
        if mad > floor {
            return mad;
        }
        // Scaled first: the squares of large values would overflow.
        let reach = (median - self.sorted[0]).max(self.sorted[self.sorted.len() - 1] - median);
        if reach <= 0.0 {
            return floor;
        }
        let squares: f64 = self.sorted.iter().map(|value| ((value - median) / reach).powi(2)).sum();
        (reach * (squares / self.sorted.len() as f64).sqrt()).max(floor)
    }

    /// The deviations below and above the median are two sorted runs: merge them up to the middle.
    fn median_deviation(&self, median: f64) -> f64 {
        let mut above = self.sorted.partition_point(|value| *value < median);
        let mut below = above;
        let middle = self.sorted.len() / 2;
        let mut deviation = 0.0;
        for _ in 0..=middle {
            let up = self.sorted.get(above).map(|value| value - median);
            let down = below.checked_sub(1).map(|at| median - self.sorted[at]);
            match (up, down) {
                (Some(up), Some(down)) if up <= down => {
                    deviation = up;
                    above += 1;
                }
                (_, Some(down)) => {
                    deviation = down;
                    below -= 1;
                }
                (Some(up), None) => {
                    deviation = up;
                    above += 1;
                }
                (None, None) => break,
            }
        }
        deviation
    }
}
