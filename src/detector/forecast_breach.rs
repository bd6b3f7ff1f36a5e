//! `forecast_breach`: how likely a limit is reached within the horizon.
//!
//! Rows are gathered into blocks of a twelfth of the horizon, each with its median and its low. Over the last 12, 24 and 48
//! blocks a line is fitted after Theil (1950) and Sen, Estimates of the regression coefficient based on Kendall's tau, 1968; it
//! counts only if the trend is significant (Mann, Nonparametric tests against trend, 1945; Kendall), if a line explains the window better
//! than one step does, and if the newer half still rises: a rise that slows is extrapolated as one that flattens
//! out. The probability is that of the line, with the errors of slope and level, being beyond the limit at the horizon; the best
//! window speaks. A level that the series has left by itself before is no cause for concern until it is passed.
//!
//! The score is the probability over `probability`; beyond the limit it is at least 1. Time counts, not rows: steps may be irregular.

use std::sync::Arc;

use crate::codec::{Reader, Writer};
use crate::parameter::{Kind, Options, Parameter};
use crate::{Breach, Detector, Error, Row, Score, State, Trend, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS];
pub(crate) const NAME: &str = "forecast_breach";
const TAG: u8 = 24;

/// Blocks in a horizon, and those remembered.
const HORIZON_BLOCKS: i64 = 12;
const BLOCKS: usize = 48;
const WINDOWS: [usize; 3] = [12, 24, 48];
/// Values of a block that its median is taken of.
const BLOCK_VALUES: usize = 33;
/// Rows whose median says whether the limit is passed: no spike or two can.
const RECENT: usize = 9;
/// Mann–Kendall z that makes a trend.
const TREND_Z: f64 = 4.0;
/// A step that leaves less than this share of what the line leaves is the better story.
const STEP_SHARE: f64 = 0.9;
/// Share of a rise that must be given back for its top to be one the series leaves by itself.
const GIVEN_BACK: f64 = 0.7;

const LIMIT: Kind = Kind::Number {
    min: -1e150,
    max: 1e150,
};

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "ceiling",
        kind: LIMIT,
        default: "",
        expected: "a number",
        help: "limit from below: out of memory, a full disk, an objective",
    },
    Parameter {
        name: "floor",
        kind: LIMIT,
        default: "",
        expected: "a number",
        help: "limit from above: free connections, remaining budget",
    },
    Parameter {
        name: "horizon",
        kind: Kind::Duration {
            min_ms: 60_000,
            max_ms: 7 * 86_400_000,
        },
        default: "1 h",
        expected: "a duration from 1 min to 7 days",
        help: "how far ahead to look",
    },
    Parameter {
        name: "probability",
        kind: Kind::Number { min: 0.01, max: 0.999 },
        default: "0.5",
        expected: "a number from 0.01 to 0.999",
        help: "probability of a breach within the horizon that alarms",
    },
];

#[derive(Clone, Copy)]
struct Config {
    /// Upward: the floor is the ceiling of the negated series.
    limit: f64,
    sign: f64,
    block_ms: i64,
    probability: f64,
    features: usize,
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    if !(1..=1024).contains(&features) {
        return Err(Error::Features {
            detector: NAME,
            expected: "1 to 1024",
            given: features,
        });
    }
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let (limit, sign) = match (options.number("ceiling"), options.number("floor")) {
        (Some(ceiling), None) => (ceiling, 1.0),
        (None, Some(floor)) => (-floor, -1.0),
        _ => {
            return Err(Error::Missing {
                detector: NAME,
                expected: "ceiling or floor, one of the two",
            });
        }
    };
    let horizon_ms = options.required("horizon") as i64;
    Ok(Arc::new(ForecastBreach {
        config: Config {
            limit,
            sign,
            block_ms: horizon_ms / HORIZON_BLOCKS,
            probability: options.required("probability"),
            features,
        },
    }))
}

struct ForecastBreach {
    config: Config,
}

impl Detector for ForecastBreach {
    fn name(&self) -> &'static str {
        NAME
    }

    fn state_size_max(&self) -> usize {
        4 + self.config.features * Series::BYTES
    }

    fn fresh(&self, _entity: u64) -> Box<dyn State> {
        Box::new(Entity {
            config: self.config,
            series: (0..self.config.features).map(|_| Series::new()).collect(),
            scratch: Scratch::default(),
        })
    }

    fn restore(&self, _entity: u64, bytes: &[u8]) -> Result<Box<dyn State>, Error> {
        let mut reader = Reader::new(bytes);
        reader.header(TAG, 1, self.config.features)?;
        let series = (0..self.config.features)
            .map(|_| Series::read(&mut reader))
            .collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Box::new(Entity {
            config: self.config,
            series,
            scratch: Scratch::default(),
        }))
    }
}

struct Entity {
    config: Config,
    series: Box<[Series]>,
    scratch: Scratch,
}

impl State for Entity {
    fn score(&mut self, row: Row<'_>, out: &mut Score) {
        out.reset(self.series.len());
        for (index, series) in self.series.iter_mut().enumerate() {
            let Some(value) = crate::known(row.features.get(index)) else {
                continue;
            };
            series.step(
                &self.config,
                &mut self.scratch,
                row.time_ms,
                self.config.sign * value,
                row.learn,
            );
            let beyond = series.typical >= self.config.limit;
            let probability = if beyond { 1.0 } else { series.forecast.probability };
            out.contributions[index] = probability / self.config.probability;
            if series.forecast.level.is_finite() {
                out.expected[index] = self.config.sign * series.forecast.level;
            }
            if self.config.sign > 0.0 {
                out.upper[index] = self.config.limit;
            } else {
                out.lower[index] = -self.config.limit;
            }
            let sooner = out.breach.is_none_or(|breach| breach.probability < probability);
            if probability > 0.0 && sooner {
                out.breach = Some(series.forecast.breach(beyond));
            }
        }
        out.share_by_square();
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        let mut writer = Writer::new(out);
        writer.header(TAG, 1, self.series.len());
        for series in &self.series {
            series.write(&mut writer);
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Block {
    index: i64,
    median: f64,
    low: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Forecast {
    probability: f64,
    level: f64,
    median_ms: f64,
    earliest_ms: f64,
    latest_ms: f64,
    is_leak: bool,
}

impl Forecast {
    fn breach(&self, beyond: bool) -> Breach {
        let left = |ms: f64| if beyond { 0.0 } else { ms };
        Breach {
            probability: if beyond { 1.0 } else { self.probability },
            median_ms: left(self.median_ms),
            earliest_ms: left(self.earliest_ms),
            latest_ms: left(self.latest_ms),
            trend: if self.is_leak { Trend::Leak } else { Trend::Ramp },
        }
    }
}

#[derive(Default)]
struct Scratch {
    slopes: Vec<f64>,
    values: Vec<f64>,
}

/// One series, rising towards its limit.
struct Series {
    blocks: Vec<Block>,
    block: i64,
    values: Vec<f64>,
    recent: Vec<f64>,
    /// Median of the recent rows; far below any limit until there are enough.
    typical: f64,
    /// Lowest and highest block of the present rise, and the highest top that was left without help.
    bottom: f64,
    top: f64,
    left_top: f64,
    forecast: Forecast,
}

impl Series {
    const BYTES: usize = 4 + 24 * BLOCKS + 8 + 8 + 8 * (BLOCK_VALUES + RECENT) + 4 * 8 + 5 * 8 + 1;

    fn new() -> Self {
        Self {
            blocks: Vec::with_capacity(BLOCKS),
            block: i64::MIN,
            values: Vec::with_capacity(BLOCK_VALUES),
            recent: Vec::with_capacity(RECENT),
            typical: f64::NEG_INFINITY,
            bottom: f64::INFINITY,
            top: f64::NEG_INFINITY,
            left_top: f64::NEG_INFINITY,
            forecast: Forecast::default(),
        }
    }

    fn step(&mut self, config: &Config, scratch: &mut Scratch, time_ms: i64, value: f64, learn: bool) {
        let block = time_ms.div_euclid(config.block_ms);
        if block > self.block {
            self.close(config, scratch, learn);
            self.block = block;
            self.values.clear();
        }
        if self.values.len() < BLOCK_VALUES {
            self.values.push(value);
        } else {
            // Keeps the newest of a crowded block.
            self.values.copy_within(1.., 0);
            self.values[BLOCK_VALUES - 1] = value;
        }
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push(value);
        if self.recent.len() > RECENT / 2 {
            self.typical = median(&self.recent, &mut scratch.values);
        }
    }

    fn close(&mut self, config: &Config, scratch: &mut Scratch, learn: bool) {
        if self.values.is_empty() {
            return;
        }
        let typical = median(&self.values, &mut scratch.values);
        let low = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        if self.blocks.len() == BLOCKS {
            self.blocks.remove(0);
        }
        self.blocks.push(Block {
            index: self.block,
            median: typical,
            low,
        });
        self.follow(config, typical, learn);
        self.forecast = self.look_ahead(config, scratch);
    }

    /// Remembers tops that the series has come back from. One beyond the limit, or left while an incident was open, is no comfort.
    fn follow(&mut self, config: &Config, level: f64, learn: bool) {
        self.bottom = self.bottom.min(level);
        self.top = self.top.max(level);
        if self.top - level >= GIVEN_BACK * (self.top - self.bottom) && self.top > self.bottom {
            if learn && self.top < config.limit {
                self.left_top = self.left_top.max(self.top);
            }
            (self.bottom, self.top) = (level, level);
        }
        // Forgotten in the course of days, towards where the series is.
        if self.left_top.is_finite() {
            self.left_top -= (self.left_top - level).max(0.0) * 0.0005;
        }
    }

    fn look_ahead(&self, config: &Config, scratch: &mut Scratch) -> Forecast {
        let mut best = Forecast {
            level: self.typical,
            ..Forecast::default()
        };
        let Some(last) = self.blocks.last() else {
            return best;
        };
        for window in WINDOWS {
            let from = self.blocks.len().saturating_sub(window);
            let blocks = &self.blocks[from..];
            let spanned = last.index - blocks[0].index + 1;
            if blocks.len() < window * 3 / 4 || spanned > window as i64 * 3 / 2 {
                continue;
            }
            let Some(line) = Line::fit(blocks, scratch) else {
                continue;
            };
            if line.level <= self.left_top + line.noise {
                continue;
            }
            let forecast = line.forecast(config);
            if forecast.probability > best.probability {
                best = forecast;
                best.is_leak = window > WINDOWS[0] && lows_rise(blocks);
            }
        }
        best
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.u32(self.blocks.len() as u32);
        for block in &self.blocks {
            writer.i64(block.index);
            writer.f64s(&[block.median, block.low]);
        }
        writer.i64(self.block);
        writer.u32(self.values.len() as u32);
        writer.f64s(&self.values);
        writer.u32(self.recent.len() as u32);
        writer.f64s(&self.recent);
        writer.f64s(&[self.typical, self.bottom, self.top, self.left_top]);
        let forecast = &self.forecast;
        writer.f64s(&[
            forecast.probability,
            forecast.level,
            forecast.median_ms,
            forecast.earliest_ms,
            forecast.latest_ms,
        ]);
        writer.u8(u8::from(forecast.is_leak));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut series = Self::new();
        let mut finite = true;
        for _ in 0..reader.length(BLOCKS)? {
            let block = Block {
                index: reader.i64()?,
                median: reader.f64()?,
                low: reader.f64()?,
            };
            finite &= block.median.is_finite() && block.low.is_finite();
            finite &= series.blocks.last().is_none_or(|last| last.index < block.index);
            finite &= block.index.unsigned_abs() < 1 << 60;
            series.blocks.push(block);
        }
        series.block = reader.i64()?;
        for (values, most) in [(&mut series.values, BLOCK_VALUES), (&mut series.recent, RECENT)] {
            let count = reader.length(most)?;
            values.resize(count, 0.0);
            reader.f64s(values)?;
            finite &= values.iter().all(|value| value.is_finite());
        }
        for field in [
            &mut series.typical,
            &mut series.bottom,
            &mut series.top,
            &mut series.left_top,
        ] {
            *field = reader.f64()?;
            finite &= !field.is_nan();
        }
        let forecast = &mut series.forecast;
        for field in [
            &mut forecast.probability,
            &mut forecast.level,
            &mut forecast.median_ms,
            &mut forecast.earliest_ms,
            &mut forecast.latest_ms,
        ] {
            *field = reader.f64()?;
            finite &= !field.is_nan();
        }
        forecast.is_leak = reader.u8()? != 0;
        if finite && (0.0..=1.0).contains(&forecast.probability) {
            Ok(series)
        } else {
            Err(Error::State("a forecast is not one".into()))
        }
    }
}

fn median(values: &[f64], scratch: &mut Vec<f64>) -> f64 {
    scratch.clear();
    scratch.extend_from_slice(values);
    scratch.sort_unstable_by(f64::total_cmp);
    middle(scratch)
}

fn middle(sorted: &[f64]) -> f64 {
    sorted[(sorted.len() - 1) / 2] / 2.0 + sorted[sorted.len() / 2] / 2.0
}

/// A significant line through blocks; time in blocks from the last one.
struct Line {
    slope: f64,
    /// Slope of the newer half over that of the older, at most 1.
    slowing: f64,
    span: f64,
    level: f64,
    slope_error: f64,
    level_error: f64,
    noise: f64,
}

impl Line {
    fn fit(blocks: &[Block], scratch: &mut Scratch) -> Option<Self> {
        let last = blocks[blocks.len() - 1].index;
        let time = |block: &Block| (block.index - last) as f64;
        if mann_kendall(blocks, |block| block.median) < TREND_Z {
            return None;
        }
        let slope = theil_sen(blocks, scratch);
        if slope <= 0.0 {
            return None;
        }
        scratch.values.clear();
        scratch
            .values
            .extend(blocks.iter().map(|block| block.median - slope * time(block)));
        scratch.values.sort_unstable_by(f64::total_cmp);
        let level = middle(&scratch.values);
        let residual = |block: &Block| block.median - level - slope * time(block);
        if step_explains_better(blocks, &residual) {
            return None;
        }
        scratch.values.clear();
        scratch.values.extend(blocks.iter().map(|block| residual(block).abs()));
        scratch.values.sort_unstable_by(f64::total_cmp);
        let noise = (1.4826 * middle(&scratch.values)).max(1e-6 * level.abs()).max(1e-12);
        let (older, newer) = blocks.split_at(blocks.len() / 2);
        let newer_slope = theil_sen(newer, scratch);
        let older_slope = theil_sen(older, scratch);
        // Where the older half did not rise yet, the newer one is not slower than it.
        let slowing = if older_slope > 0.25 * slope {
            newer_slope / older_slope
        } else {
            1.0
        };
        if slowing <= 0.05 {
            return None;
        }
        let count = blocks.len() as f64;
        let mean = blocks.iter().map(time).sum::<f64>() / count;
        let spread: f64 = blocks.iter().map(|block| (time(block) - mean).powi(2)).sum();
        Some(Self {
            slope: slope.min(newer_slope.max(0.5 * slope)),
            slowing: slowing.min(1.0),
            span: blocks.len() as f64 / 2.0,
            level,
            slope_error: noise / spread.sqrt().max(1.0),
            level_error: noise * (1.0 / count + mean * mean / spread.max(1.0)).sqrt(),
            noise,
        })
    }

    /// Rise from now on after so many blocks: straight, or flattening out as fast as it slowed.
    fn rise(&self, slope: f64, blocks: f64) -> f64 {
        if self.slowing > 0.75 {
            return slope * blocks;
        }
        let decay = -self.slowing.ln() / self.span;
        slope * (1.0 - (-decay * blocks).exp()) / decay
    }

    fn forecast(&self, config: &Config) -> Forecast {
        let horizon = HORIZON_BLOCKS as f64;
        let ahead = self.level + self.rise(self.slope, horizon);
        let error = self.level_error.hypot(self.rise(self.slope_error, horizon));
        let reach = |slope: f64| {
            let block_ms = config.block_ms as f64;
            let gap = config.limit - self.level;
            if slope <= 0.0 || self.rise(slope, 1e4) < gap {
                return f64::INFINITY;
            }
            if self.slowing > 0.75 {
                return (gap / slope).max(0.0) * block_ms;
            }
            let decay = -self.slowing.ln() / self.span;
            (-(1.0 - gap * decay / slope).ln() / decay).max(0.0) * block_ms
        };
        // 80 % of a normal lie within 1.2816 deviations; the level's error counts as slope over the horizon.
        let slack = 1.2816 * error / horizon;
        Forecast {
            probability: normal_below((ahead - config.limit) / error.max(1e-12)),
            level: self.level,
            median_ms: reach(self.slope),
            earliest_ms: reach(self.slope + slack),
            latest_ms: reach(self.slope - slack),
            is_leak: false,
        }
    }
}

/// Median slope over all pairs, per block.
fn theil_sen(blocks: &[Block], scratch: &mut Scratch) -> f64 {
    scratch.slopes.clear();
    for (at, later) in blocks.iter().enumerate() {
        for earlier in &blocks[..at] {
            let time = (later.index - earlier.index) as f64;
            scratch.slopes.push((later.median - earlier.median) / time);
        }
    }
    if scratch.slopes.is_empty() {
        return 0.0;
    }
    scratch.slopes.sort_unstable_by(f64::total_cmp);
    middle(&scratch.slopes)
}

/// Standardised Kendall statistic against time.
fn mann_kendall(blocks: &[Block], value: impl Fn(&Block) -> f64) -> f64 {
    let mut sum = 0i64;
    for (at, later) in blocks.iter().enumerate() {
        for earlier in &blocks[..at] {
            sum += match value(later).total_cmp(&value(earlier)) {
                std::cmp::Ordering::Greater => 1,
                std::cmp::Ordering::Less => -1,
                std::cmp::Ordering::Equal => 0,
            };
        }
    }
    let count = blocks.len() as f64;
    let variance = count * (count - 1.0) * (2.0 * count + 5.0) / 18.0;
    sum as f64 / variance.max(1.0).sqrt()
}

fn lows_rise(blocks: &[Block]) -> bool {
    mann_kendall(blocks, |block| block.low) >= TREND_Z
}

/// Whether two levels with one step between them leave less than the line does.
fn step_explains_better(blocks: &[Block], residual: &impl Fn(&Block) -> f64) -> bool {
    let line: f64 = blocks.iter().map(|block| residual(block).abs()).sum();
    let mean = |part: &[Block]| part.iter().map(|block| block.median / part.len() as f64).sum::<f64>();
    (2..blocks.len() - 1).any(|at| {
        let (before, after) = blocks.split_at(at);
        let (low, high) = (mean(before), mean(after));
        let left: f64 = before.iter().map(|block| (block.median - low).abs()).sum();
        let right: f64 = after.iter().map(|block| (block.median - high).abs()).sum();
        left + right < STEP_SHARE * line
    })
}

/// Normal distribution function, by the error function of Abramowitz and Stegun 7.1.26.
fn normal_below(z: f64) -> f64 {
    let x = z.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let poly =
        t * (0.254_829_592 + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let erf = 1.0 - poly * (-x * x).exp();
    if z >= 0.0 { 0.5 + erf / 2.0 } else { 0.5 - erf / 2.0 }
}
