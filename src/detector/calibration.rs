//! From evidence to a promise: p-values, and an alarm level that keeps a stated rate of false alarms.
//!
//! A streaming histogram of the entity's own evidence, eight bins an octave, forgetting by halves. Where it is too thin to
//! rank a row (fewer than [`TAIL_ROWS`] rows beyond), a generalised Pareto tail fitted to the excesses over that point takes over: the Pickands–Balkema–de Haan
//! limit (Siffer, Fouque, Termier and Largouët, Anomaly detection in streams with extreme value theory, KDD 2017).
//! A row is ranked before it is learned.

use crate::codec::{Reader, Writer};
use crate::parameter::{Kind, Options, Parameter};
use crate::{Error, Row, SCORE_MAX, Score};

const BINS: usize = 128;
const OCTAVE: usize = 8;
const OCTAVES: usize = BINS / OCTAVE;
/// Evidence below it is bin 0.
const LOWEST_LOG2: i32 = -10;
const ROWS_MAX: u32 = 60_000;
/// The first halving. Evidence of novelty is largest when little is known, so the early rows soon weigh less.
const ROWS_FIRST: u32 = 500;
const TAIL_ROWS: u32 = 24;
/// Few rows show no heavier tail than this.
const SHAPE_MAX: f64 = 0.5;
/// Below so many rows there is no tail to fit.
const ROWS_MIN: u32 = 200;
const P_MIN: f64 = 1e-12;

/// What is rarer than this among the entity's own rows stands out.
const RARE: f64 = 2e-4;

/// Either parameter turns the score into ln p / ln α: 1.0 exactly where p reaches the promised rate.
pub(crate) const PROMISE: &[Parameter] = &[
    Parameter {
        name: "contamination",
        kind: Kind::NumberOr {
            min: 1e-6,
            max: 0.5,
            word: "auto",
        },
        default: "auto",
        expected: "a number from 0.000001 to 0.5, or 'auto'",
        help: "share of normal rows that may alarm; 'auto' keeps the detector's own alarm level",
    },
    Parameter {
        name: "false_alarms_per_day",
        kind: Kind::Number { min: 1e-4, max: 1e4 },
        default: "",
        expected: "a number from 0.0001 to 10000",
        help: "normal rows of one entity that may alarm in a day",
    },
];

/// What the operator asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Promise {
    None,
    Rate(f64),
    PerDay(f64),
}

impl Promise {
    pub(crate) fn read(options: &Options) -> Result<Self, Error> {
        match (options.number("contamination"), options.number("false_alarms_per_day")) {
            (Some(_), Some(per_day)) => Err(Error::OutOfRange {
                name: "false_alarms_per_day".into(),
                value: per_day.to_string(),
                expected: "left out where contamination is given",
            }),
            (Some(rate), None) => Ok(Self::Rate(rate)),
            (None, Some(per_day)) => Ok(Self::PerDay(per_day)),
            (None, None) => Ok(Self::None),
        }
    }
}

/// Fits a cache line, less one pointer, but for the counts: most rows need one more line at most.
#[derive(Clone, Debug)]
#[repr(C)]
pub(crate) struct Calibration {
    /// Sums of the counts by octave; the total is at most [`ROWS_MAX`].
    octaves: [u16; OCTAVES],
    last_ms: i64,
    since_ms: i64,
    step_ms: f32,
    halvings: u32,
    /// But for bin 0, the usual one, which is what remains of its octave.
    counts: [u16; BINS],
}

impl Calibration {
    pub(crate) const BYTES: usize = 2 * BINS + 1 + 8 + 4 + 8;

    pub(crate) fn new() -> Self {
        Self {
            octaves: [0; OCTAVES],
            last_ms: i64::MIN,
            since_ms: i64::MIN,
            step_ms: 0.0,
            halvings: 0,
            counts: [0; BINS],
        }
    }

    /// As [`crate::State::touch`]: of the counts the line with evidence of a sixteenth.
    pub(crate) fn touch(&self) -> u32 {
        self.halvings ^ u32::from(self.counts[BINS * 3 / 8])
    }

    /// Rows that are remembered.
    pub(crate) fn total(&self) -> u32 {
        self.octaves.iter().map(|count| u32::from(*count)).sum()
    }

    /// Rows in this bin or beyond; `bin` is not 0.
    fn at_or_beyond(&self, bin: usize) -> u32 {
        let sum = |counts: &[u16]| counts.iter().map(|count| u32::from(*count)).sum::<u32>();
        let octave = bin / OCTAVE;
        sum(&self.octaves[octave + 1..]) + sum(&self.counts[bin..(octave + 1) * OCTAVE])
    }

    /// Rows in bin 0.
    fn none(&self) -> u16 {
        self.octaves[0] - self.counts[1..OCTAVE].iter().sum::<u16>()
    }

    /// Fills what follows from evidence and history: p-value, promised score, grade, confidence, since when.
    pub(crate) fn finish(&mut self, promise: Promise, row: Row<'_>, evidence: f64, out: &mut Score) {
        self.step(row.time_ms);
        if evidence.is_nan() {
            return;
        }
        out.p_value = self.p_value(evidence);
        if let Some(rate) = self.rate(promise) {
            let score = if self.total() < ROWS_MIN {
                0.0
            } else {
                (out.p_value.ln() / rate.ln()).clamp(0.0, SCORE_MAX)
            };
            out.share(score);
        }
        self.since_ms = match self.since_ms {
            _ if out.score < 0.5 && evidence < 0.5 => i64::MIN,
            i64::MIN => row.time_ms,
            since_ms => since_ms,
        };
        out.since_ms = Some(self.since_ms).filter(|since_ms| *since_ms != i64::MIN);
        out.grade = if out.score < 1.0 { 0.0 } else { 1.0 - 0.5 / out.score };
        let total = self.total();
        out.confidence = f64::from(total) / f64::from(total + 500);
        if row.learn {
            self.learn(evidence);
        }
    }

    /// Whether so much evidence stands out of the entity's own history: counted, not extrapolated, so that no tail is too heavy for it.
    pub(crate) fn is_rare(&self, evidence: f64, features: usize) -> bool {
        let total = self.total();
        let beyond = match bin(evidence) {
            0 => total,
            bin => self.at_or_beyond(bin),
        };
        f64::from(beyond) * features as f64 <= RARE * f64::from(total)
    }

    /// Whether so much evidence is as rare by the fitted tail: of several features each would set a record too often to be counted.
    pub(crate) fn is_beyond(&self, evidence: f64, features: usize) -> bool {
        self.p_value(evidence) * features as f64 <= RARE
    }

    /// Share of this entity's rows with at least so much evidence.
    fn p_value(&self, evidence: f64) -> f64 {
        let bin = bin(evidence);
        let rows = self.total();
        if bin == 0 || rows == 0 {
            return 1.0;
        }
        let total = f64::from(rows);
        let own = u32::from(self.counts[bin]);
        let beyond = self.at_or_beyond(bin) - own;
        if beyond >= TAIL_ROWS || rows < ROWS_MIN {
            // Where within its bin the row lies says how much of the bin is beyond it.
            let share = (edge(bin + 1) - evidence) / (edge(bin + 1) - edge(bin));
            let rows = f64::from(beyond) + f64::from(own) * share.clamp(0.0, 1.0);
            return ((rows + 1.0) / (total + 1.0)).min(1.0);
        }
        self.tail(evidence, total).clamp(P_MIN, 1.0)
    }

    /// Generalised Pareto tail over the lowest edge with at least twice [`TAIL_ROWS`] rows beyond it, by the method of moments
    /// (Hosking and Wallis, Parameter and quantile estimation for the generalized Pareto distribution, 1987).
    fn tail(&self, evidence: f64, total: f64) -> f64 {
        let mut rows = 0;
        let (mut sum, mut squares) = (0.0, 0.0);
        let mut threshold = edge(1);
        for at in (1..BINS).rev() {
            if self.octaves[at / OCTAVE] == 0 {
                continue;
            }
            let count = u32::from(self.counts[at]);
            rows += count;
            let middle = (edge(at) + edge(at + 1)) / 2.0;
            sum += f64::from(count) * middle;
            squares += f64::from(count) * middle * middle;
            if rows >= 2 * TAIL_ROWS {
                threshold = edge(at);
                break;
            }
        }
        if rows == 0 {
            return 1.0 / (total + 1.0);
        }
        let mean = sum / f64::from(rows);
        let variance = squares / f64::from(rows) - mean * mean;
        let excess = (mean - threshold).max(0.01 * threshold);
        let shape = (0.5 * (1.0 - excess * excess / variance.max(1e-12))).clamp(0.0, SHAPE_MAX);
        let scale = excess * (1.0 - shape);
        let from = (f64::from(rows) + 1.0) / (total + 1.0);
        if evidence <= threshold {
            return from;
        }
        let beyond = (evidence - threshold) / scale;
        if shape < 1e-3 {
            from * (-beyond).exp()
        } else {
            from * (1.0 + shape * beyond).powf(-1.0 / shape)
        }
    }

    pub(crate) fn learn(&mut self, evidence: f64) {
        if self.total() >= (ROWS_FIRST << self.halvings.min(10)).min(ROWS_MAX) {
            self.halvings = (self.halvings + 1).min(u32::from(u8::MAX));
            let none = self.none();
            for count in &mut self.counts {
                *count /= 2;
            }
            self.sum(none / 2);
        }
        let bin = bin(evidence);
        self.octaves[bin / OCTAVE] += 1;
        if bin > 0 {
            self.counts[bin] += 1;
        }
    }

    /// The octaves, from the counts and the rows in bin 0.
    fn sum(&mut self, none: u16) {
        for (octave, counts) in self.octaves.iter_mut().zip(self.counts.chunks_exact(OCTAVE)) {
            *octave = counts.iter().sum();
        }
        self.octaves[0] += none;
    }

    fn step(&mut self, time_ms: i64) {
        if self.last_ms != i64::MIN && time_ms > self.last_ms {
            let step_ms = time_ms.saturating_sub(self.last_ms) as f32;
            // A long gap says nothing about the usual step.
            let step_ms = if self.step_ms > 0.0 {
                step_ms.min(4.0 * self.step_ms)
            } else {
                step_ms
            };
            let weight = if self.step_ms > 0.0 { 0.05 } else { 1.0 };
            self.step_ms += weight * (step_ms - self.step_ms);
        }
        self.last_ms = self.last_ms.max(time_ms);
    }

    fn rate(&self, promise: Promise) -> Option<f64> {
        match promise {
            Promise::None => None,
            Promise::Rate(rate) => Some(rate),
            Promise::PerDay(per_day) => {
                let rows_per_day = 86_400_000.0 / f64::from(self.step_ms.max(1.0));
                Some((per_day / rows_per_day).clamp(1e-9, 0.5))
            }
        }
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        writer.u16(self.none());
        for count in &self.counts[1..] {
            writer.u16(*count);
        }
        writer.u8(self.halvings as u8);
        writer.i64(self.last_ms);
        writer.f32(self.step_ms);
        writer.i64(self.since_ms);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut calibration = Self::new();
        let none = reader.u16()?;
        for count in &mut calibration.counts[1..] {
            *count = reader.u16()?;
        }
        let total = u32::from(none) + calibration.counts.iter().map(|count| u32::from(*count)).sum::<u32>();
        if total > ROWS_MAX {
            return Err(Error::State("a histogram is not one".into()));
        }
        calibration.sum(none);
        calibration.halvings = u32::from(reader.u8()?);
        calibration.last_ms = reader.i64()?;
        calibration.step_ms = reader.f32()?;
        calibration.since_ms = reader.i64()?;
        if !(calibration.step_ms >= 0.0 && calibration.step_ms.is_finite()) {
            return Err(Error::State("a step is not one".into()));
        }
        Ok(calibration)
    }
}

/// Eight bins an octave, straight from exponent and mantissa.
fn bin(evidence: f64) -> usize {
    let bits = (evidence as f32).to_bits() >> 20;
    let lowest = ((127 + LOWEST_LOG2) as u32) << 3;
    (bits.saturating_sub(lowest) as usize).min(BINS - 1)
}

/// Least evidence of a bin.
fn edge(bin: usize) -> f64 {
    let octave = ((bin / 8) as i32 + 1023 + LOWEST_LOG2) as u64;
    f64::from_bits(octave << 52 | ((bin % 8) as u64) << 49)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_between_their_edges() {
        for at in 1..BINS - 1 {
            for evidence in [edge(at), (edge(at) + edge(at + 1)) / 2.0] {
                assert_eq!(bin(evidence), at);
            }
        }
        assert_eq!(bin(0.0), 0);
        assert_eq!(bin(1e300), BINS - 1);
    }

    #[test]
    fn p_values_of_exponential_evidence_are_uniform() {
        let mut random = crate::random::Random::new(5);
        let mut calibration = Calibration::new();
        let mut below = [0u32; 3];
        let rows = 400_000;
        for row in 0..rows {
            let evidence = -(1.0 - random.unit()).ln() * 0.2;
            if row >= 50_000 {
                for (count, level) in below.iter_mut().zip([1e-2, 1e-3, 1e-4]) {
                    *count += u32::from(calibration.p_value(evidence) <= level);
                }
            }
            calibration.learn(evidence);
        }
        let nominal = [3500.0, 350.0, 35.0];
        for (count, expected) in below.iter().zip(nominal) {
            let ratio = f64::from(*count) / expected;
            assert!((0.6..1.6).contains(&ratio), "{below:?}");
        }
    }
}
