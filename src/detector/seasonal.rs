//! `seasonal`: what is usual at this hour of the week, where a test finds that the hour matters.
//!
//! Three models of the level run side by side: none, by hour of day, by hour of week (168 buckets). Buckets are shrunk towards the coarser
//! model by the number of rows that they have seen (James and Stein, Estimation with quadratic loss, 1961). The model whose
//! forecasts were best so far speaks, and a finer one only if it is a fifth better: the season is used where a test finds it.
//! A clock change shows as forecasts that fit an hour earlier or later: three offsets run side by side too, and the better one is adopted.

use std::sync::Arc;

use crate::calibration::PROMISE;
use crate::codec::{Reader, Writer};
use crate::ewma::{DEVIATIONS, SHORT_WARMUP};
use crate::parameter::{Kind, Options, Parameter};
use crate::series::{PerFeature, Reading, Series};
use crate::{Detector, Error, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS, PROMISE];
pub(crate) const NAME: &str = "seasonal";

const HOURS: usize = 168;
const HOUR_MS: i64 = 3_600_000;
/// Rows after which a bucket counts for as much as the coarser model.
const SHRINKAGE: f64 = 4.0;
/// Rows a bucket remembers.
const MEMORY: f64 = 200.0;
/// A finer model must have at most this share of the coarser one's error; so must another clock of the present one's.
const BETTER: f64 = 0.8;
const OFFSETS: [i64; 3] = [0, -1, 1];

pub(crate) const PARAMETERS: &[Parameter] = &[
    DEVIATIONS,
    SHORT_WARMUP,
    Parameter {
        name: "utc_offset",
        kind: Kind::Duration {
            min_ms: -14 * HOUR_MS,
            max_ms: 14 * HOUR_MS,
        },
        default: "0 h",
        expected: "a duration from -14 h to 14 h, as '5.5 h'",
        help: "local time less UTC when the detector starts; later clock changes are found from the data",
    },
];

pub(crate) struct Config {
    threshold: f64,
    warmup: u32,
    utc_offset_ms: i64,
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let config = Config {
        threshold: options.required("threshold"),
        warmup: options.count("warmup") as u32,
        utc_offset_ms: options.required("utc_offset") as i64,
    };
    PerFeature::<Seasonal>::detector(config, &options, features)
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    mean: f32,
    rows: u16,
}

struct Seasonal {
    /// First value: buckets hold differences from it, so that f32 suffices.
    origin: f64,
    rows: u32,
    level: f64,
    week: [Bucket; HOURS],
    day: [Bucket; 24],
    /// Mean absolute errors: no season, by hour of day, by hour of week.
    errors: [f64; 3],
    /// Mean absolute errors of the best model by clock.
    clocks: [f64; 3],
    clock_hours: i8,
}

impl Series for Seasonal {
    type Config = Config;
    const NAME: &'static str = NAME;
    const TAG: u8 = 19;
    const VERSION: u8 = 3;
    const LEVEL: Option<&'static str> = Some("threshold");

    fn fresh(_config: &Config, _seed: u64) -> Self {
        Self {
            origin: 0.0,
            rows: 0,
            level: 0.0,
            week: [Bucket::default(); HOURS],
            day: [Bucket::default(); 24],
            errors: [0.0; 3],
            clocks: [0.0; 3],
            clock_hours: 0,
        }
    }

    fn step(&mut self, config: &Config, time_ms: i64, value: f64, learn: bool) -> Reading {
        if self.rows == 0 {
            self.origin = value;
        }
        let value_here = value - self.origin;
        let local_ms = time_ms.saturating_add(config.utc_offset_ms);
        let hour = (local_ms.div_euclid(HOUR_MS) + i64::from(self.clock_hours)).rem_euclid(HOURS as i64) as usize;
        let forecasts = self.forecasts(hour);
        let model = self.model();
        let expected = forecasts[model];
        // 1.25 mean absolute errors are a deviation of a normal.
        let deviation = (1.2533 * self.errors[model])
            .max(1e-3 * (expected + self.origin).abs())
            .max(1e-12);
        let width = config.threshold * deviation;
        let warm = self.rows >= config.warmup;
        let reading = if warm {
            Reading::band(value, expected + self.origin, width)
        } else {
            Reading::QUIET
        };
        if learn {
            let learned = if warm {
                value_here.clamp(expected - width, expected + width)
            } else {
                value_here
            };
            // Not clamped: an hour that is off shows by how far, which no outlier does for one clock only.
            self.check_clock(hour, model, value_here);
            self.learn(hour, forecasts, learned);
        }
        reading
    }

    fn write(&self, _config: &Config, writer: &mut Writer<'_>) {
        writer.f64s(&[self.origin, self.level]);
        writer.u32(self.rows);
        for bucket in self.week.iter().chain(&self.day) {
            writer.f32(bucket.mean);
            writer.u16(bucket.rows);
        }
        writer.f64s(&self.errors);
        writer.f64s(&self.clocks);
        writer.u8(self.clock_hours as u8);
    }

    fn read(config: &Config, _version: u8, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut state = Self::fresh(config, 0);
        state.origin = reader.f64()?;
        state.level = reader.f64()?;
        state.rows = reader.u32()?;
        let mut finite = state.origin.is_finite() && state.level.is_finite();
        for bucket in state.week.iter_mut().chain(&mut state.day) {
            bucket.mean = reader.f32()?;
            bucket.rows = reader.u16()?;
            finite &= bucket.mean.is_finite();
        }
        reader.f64s(&mut state.errors)?;
        reader.f64s(&mut state.clocks)?;
        state.clock_hours = reader.u8()? as i8;
        finite &= state.errors.iter().chain(&state.clocks).all(|error| error.is_finite());
        if finite {
            Ok(state)
        } else {
            Err(Error::State("a season is not finite".into()))
        }
    }

    fn size_max(_config: &Config) -> usize {
        16 + 4 + 6 * (HOURS + 24) + 48 + 1
    }
}

impl Seasonal {
    /// No season, by hour of day, by hour of week; each shrunk towards the one before.
    fn forecasts(&self, hour: usize) -> [f64; 3] {
        let shrink = |bucket: Bucket, towards: f64| {
            let rows = f64::from(bucket.rows);
            (rows * f64::from(bucket.mean) + SHRINKAGE * towards) / (rows + SHRINKAGE)
        };
        let by_day = shrink(self.day[hour % 24], self.level);
        [self.level, by_day, shrink(self.week[hour], by_day)]
    }

    fn model(&self) -> usize {
        let mut best = 0;
        for finer in 1..3 {
            if self.errors[finer] < BETTER * self.errors[best] {
                best = finer;
            }
        }
        best
    }

    fn learn(&mut self, hour: usize, forecasts: [f64; 3], value: f64) {
        self.rows = self.rows.saturating_add(1);
        let weight = (1.0 / f64::from(self.rows)).max(0.002);
        for (error, forecast) in self.errors.iter_mut().zip(forecasts) {
            *error += weight * ((value - forecast).abs() - *error);
        }
        self.level += (1.0 / f64::from(self.rows)).max(0.01) * (value - self.level);
        for bucket in [&mut self.week[hour], &mut self.day[hour % 24]] {
            bucket.rows = (bucket.rows + 1).min(MEMORY as u16);
            let change = value - f64::from(bucket.mean);
            let mean = f64::from(bucket.mean) + change / f64::from(bucket.rows);
            bucket.mean = mean.clamp(-3e38, 3e38) as f32;
        }
    }

    fn check_clock(&mut self, hour: usize, model: usize, value: f64) {
        if model == 0 {
            self.clocks = [0.0; 3];
            return;
        }
        for (index, offset) in OFFSETS.into_iter().enumerate() {
            let there = (hour as i64 + offset).rem_euclid(HOURS as i64) as usize;
            let departure = (value - self.forecasts(there)[model]).abs();
            let error = &mut self.clocks[index];
            *error = if *error == 0.0 {
                departure
            } else {
                *error + 0.01 * (departure - *error)
            };
        }
        for (index, offset) in OFFSETS.iter().enumerate().skip(1) {
            if self.rows > 2000 && self.clocks[index] < 0.6 * self.clocks[0] {
                let hours = i64::from(self.clock_hours) + offset;
                self.clock_hours = hours.rem_euclid(HOURS as i64).min(127) as i8;
                self.clocks = [0.0; 3];
                return;
            }
        }
    }
}
