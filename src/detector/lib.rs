//! Feature vector → score. See `src/README.md`.
//!
//! Score 1.0 is the alarm level. Strictly causal: the score of a row depends on that row and earlier ones only.
//! No I/O, no clock, no Arrow, no SQL: time reaches a detector as an argument.
//!
//! [`build`] is the door: a name and options in, a validated [`Detector`] out. One file per detector, its paper cited there.
//! NULL and infinities are "not known" (but a `static_threshold` takes an infinity at its word): such a value is neither scored nor learned.

mod ar;
mod auto;
mod bocpd;
mod calibration;
mod catalog;
mod cells;
mod codec;
mod cusum;
mod evidence;
mod ewma;
mod extra_trees;
mod forecast_breach;
mod fuzzy_art;
mod half_space_trees;
mod holt_winters;
mod isolation_forest;
mod level;
mod linear;
mod mahalanobis;
mod markov_surprise;
mod novelty;
mod page_hinkley;
mod parameter;
mod population;
mod random;
mod range_novelty;
mod ranking;
mod relative_entropy;
mod reservoir;
mod robust_zscore;
mod seasonal;
mod series;
mod silence;
pub mod slab;
mod spot;
mod spread;
mod standing;
mod static_threshold;
mod streaming_pca;
mod transition_novelty;

pub use catalog::{build, names, parameters};
pub use parameter::{Kind, Parameter};

/// No score is larger.
pub const SCORE_MAX: f64 = 1e4;

/// Values beyond this magnitude count as this: differences and ranges of two of them stay finite.
pub(crate) const VALUE_MAX: f64 = 1e150;

/// The value if it can be worked with.
pub(crate) fn known(value: Option<&f64>) -> Option<f64> {
    value
        .copied()
        .filter(|value| value.is_finite())
        .map(|value| value.clamp(-VALUE_MAX, VALUE_MAX))
}

/// As [`bounded`], but what is not known stays so.
pub(crate) fn bounded_or_nan(evidence: f64) -> f64 {
    evidence.clamp(0.0, SCORE_MAX)
}

/// A score that keeps the promise of [`Score::score`].
pub(crate) fn bounded(score: f64) -> f64 {
    if score.is_nan() {
        0.0
    } else {
        score.clamp(0.0, SCORE_MAX)
    }
}

/// One row of one entity.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Event time, milliseconds since the Unix epoch: the end of the window.
    pub time_ms: i64,
    /// One value per feature; NaN is NULL.
    pub features: &'a [f64],
    /// Learn from this row. False while an incident is open at the entity, or in a maintenance window.
    pub learn: bool,
}

/// What a detector says of one row. Reused from row to row: a detector overwrites every field.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Score {
    /// Finite and ≥ 0; 1.0 is the alarm level; 0 while warming up.
    pub score: f64,
    /// One per feature; they sum to `score` within 1e-9.
    pub contributions: Vec<f64>,
    /// Calibrated; NaN when the detector has none.
    pub p_value: f64,
    /// Per feature where the detector has a notion of it, NaN otherwise.
    pub expected: Vec<f64>,
    pub lower: Vec<f64>,
    pub upper: Vec<f64>,
    /// How bad an alarm is, 0 to 1; 0 below the alarm level.
    pub grade: f64,
    /// How much the detector knows of the entity, 0 to 1.
    pub confidence: f64,
    /// When the present departure from the usual began: half the alarm level, without a break.
    pub since_ms: Option<i64>,
    /// Features that have settled on a new level, which the detector has accepted. Said once, on the row of acceptance.
    pub level_shifts: Vec<LevelShift>,
    /// When a limit will be reached, from detectors that forecast it.
    pub breach: Option<Breach>,
}

/// A new level of one feature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LevelShift {
    /// Index of the feature.
    pub feature: usize,
    /// Means of the rows before the departure and after; finite.
    pub old_level: f64,
    pub new_level: f64,
    /// When the departure from the old level began.
    pub since_ms: i64,
}

/// A limit ahead.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Breach {
    /// That the limit is reached within the horizon.
    pub probability: f64,
    /// Time until then in the middle case, and the 80 % interval around it; no end where the trend may flatten out.
    pub median_ms: f64,
    pub earliest_ms: f64,
    pub latest_ms: f64,
    pub trend: Trend,
}

/// What kind of rise it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trend {
    /// Long and steady, and its lows rise too: what a garbage collector cannot take back.
    Leak,
    /// Shorter, or its lows stay.
    Ramp,
}

impl Score {
    /// An alarm: score at or beyond 1.
    pub fn is_anomaly(&self) -> bool {
        self.score >= 1.0
    }

    /// Nothing known: score 0, everything else NaN.
    pub(crate) fn reset(&mut self, features: usize) {
        self.score = 0.0;
        self.p_value = f64::NAN;
        self.grade = 0.0;
        self.confidence = 0.0;
        self.since_ms = None;
        self.level_shifts.clear();
        self.breach = None;
        self.contributions.clear();
        self.contributions.resize(features, 0.0);
        for values in [&mut self.expected, &mut self.lower, &mut self.upper] {
            values.clear();
            values.resize(features, f64::NAN);
        }
    }

    /// Takes the contributions for scores of their own: the worst is the score, shared among all by their squares.
    pub(crate) fn share_by_square(&mut self) {
        let worst = self.contributions.iter().copied().fold(0.0, f64::max);
        for contribution in &mut self.contributions {
            *contribution *= *contribution;
        }
        self.share(worst);
    }

    /// Takes the contributions for weights and scales them so that they sum to `score`.
    pub(crate) fn share(&mut self, score: f64) {
        self.score = bounded(score);
        let total: f64 = self.contributions.iter().sum();
        if total > 0.0 && total.is_finite() {
            for contribution in &mut self.contributions {
                *contribution *= self.score / total;
            }
        } else {
            let even = self.score / self.contributions.len().max(1) as f64;
            self.contributions.fill(even);
        }
    }
}

/// Why a detector cannot be built or restored.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("no detector is named {name:?}{}", suggestion(.nearest, names()))]
    UnknownDetector {
        name: String,
        nearest: Option<&'static str>,
    },
    #[error("{detector} has no parameter {name:?}{}", suggestion(.nearest, parameters(.detector).into_iter().flatten().map(|known| known.name)))]
    UnknownParameter {
        detector: &'static str,
        name: String,
        nearest: Option<&'static str>,
    },
    #[error("{name} is given twice")]
    Twice { name: String },
    #[error("{detector} needs {expected}")]
    Missing {
        detector: &'static str,
        expected: &'static str,
    },
    #[error("{name} = {value} is out of range: {expected}")]
    OutOfRange {
        name: String,
        value: String,
        expected: &'static str,
    },
    #[error("{detector} needs {expected} features, not {given}")]
    Features {
        detector: &'static str,
        expected: &'static str,
        given: usize,
    },
    #[error("state cannot be read: {0}")]
    State(String),
}

fn suggestion(nearest: &Option<&'static str>, known: impl Iterator<Item = &'static str>) -> String {
    match nearest {
        Some(name) => format!("; did you mean {name:?}?"),
        None => format!("; there are {}", known.collect::<Vec<_>>().join(", ")),
    }
}

/// A parameter's value, as written in WITH (…).
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Number(f64),
    Text(String),
    Bool(bool),
}

/// A validated detector: algorithm and parameters, shared by all entities. Builds one state per entity.
pub trait Detector: Send + Sync {
    fn name(&self) -> &'static str;

    /// Bytes one entity's state may take at most.
    fn state_size_max(&self) -> usize;

    /// The state of an entity never seen; `entity` seeds what is random in it, so that it is a function of the input.
    fn fresh(&self, entity: u64) -> Box<dyn State>;

    /// Reads what [`State::snapshot`] wrote: bit for bit the same scores follow.
    fn restore(&self, entity: u64, bytes: &[u8]) -> Result<Box<dyn State>, Error>;
}

/// The state of one entity.
pub trait State: Send {
    /// Scores the row, then learns from it if it may.
    fn score(&mut self, row: Row<'_>, out: &mut Score);

    /// Reads a word of every cache line that scoring a row of this time is likely to need, so that what is not in the cache comes at once; for [`slab::score`]. The
    /// answer means nothing.
    fn touch(&self, _time_ms: i64) -> u32 {
        0
    }

    /// Appends a versioned little-endian snapshot.
    fn snapshot(&self, out: &mut Vec<u8>);
}
