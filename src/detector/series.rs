//! Detectors of one series, made into detectors of an entity: one state per feature, the worst feature is the score.
//!
//! At a default alarm level a row must also stand out of the entity's own history. Each of several features has
//! a history of its own, so that one which is always far off does not hide the others, and must stand out of it as many times more rarely (Bonferroni),
//! so that the entity alarms no oftener than with one feature. An alarm of one of several
//! stands ([`crate::standing`]).

use std::sync::Arc;

use crate::calibration::{Calibration, Promise};
use crate::codec::{Reader, Writer};
use crate::level::Level;
use crate::parameter::Options;
use crate::standing::{RELEASE, Standing};
use crate::{Detector, Error, LevelShift, Row, Score, State};

/// What a series detector says of one value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// Finite, ≥ 0, 1.0 is the alarm level.
    pub score: f64,
    /// What calibration ranks: the score before anything was held back. NaN while warming up.
    pub evidence: f64,
    pub expected: f64,
    pub lower: f64,
    pub upper: f64,
    /// Of the feature that it is a series of.
    pub level_shift: Option<LevelShift>,
}

impl Reading {
    pub(crate) const QUIET: Self = Self {
        score: 0.0,
        evidence: f64::NAN,
        expected: f64::NAN,
        lower: f64::NAN,
        upper: f64::NAN,
        level_shift: None,
    };

    /// A band of `width` around `expected`; the score is the distance in widths.
    pub(crate) fn band(value: f64, expected: f64, width: f64) -> Self {
        let score = (value - expected).abs() / width;
        Self {
            score,
            evidence: score,
            expected,
            lower: expected - width,
            upper: expected + width,
            level_shift: None,
        }
    }
}

/// Mean and mean square deviation of the last sixty rows or so: what to expect, and a band of three deviations around it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Band {
    mean: f32,
    variance: f32,
}

impl Band {
    pub(crate) const BYTES: usize = 8;
    const ROWS: u32 = 60;

    /// What to expect of the row; then learns its value, the first `rows` of them alike.
    pub(crate) fn step(&mut self, value: f64, rows: u32, learn: bool) -> Reading {
        let (mean, variance) = (f64::from(self.mean), f64::from(self.variance));
        let width = 3.0 * variance.max(0.0).sqrt();
        if learn && value.abs() < 1e18 {
            let weight = 1.0 / f64::from(rows.clamp(1, Self::ROWS));
            let change = value - mean;
            self.mean = (mean + weight * change) as f32;
            self.variance = ((1.0 - weight) * (variance + weight * change * change)) as f32;
        }
        Reading {
            expected: mean,
            lower: mean - width,
            upper: mean + width,
            ..Reading::QUIET
        }
    }

    /// Where the series has been of late, after so many rows.
    pub(crate) fn level(&self, rows: u32) -> Level {
        Level::of(f64::from(self.mean), f64::from(self.variance), rows)
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        writer.f32s(&[self.mean, self.variance]);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            mean: reader.f32()?,
            variance: reader.f32()?,
        })
    }
}

/// The state of one series.
pub(crate) trait Series: Send + Sized + 'static {
    type Config: Send + Sync + 'static;
    const NAME: &'static str;
    const TAG: u8;
    const VERSION: u8;
    /// The parameter that is the alarm level, for detectors whose model of noise is narrower than life: left at its default, only
    /// what also stands out of the entity's own history alarms; a level that the operator wrote is taken at its word.
    const LEVEL: Option<&'static str> = None;
    /// The version since which each of several features has a history; since the next its alarms stand.
    const RANKED_FROM: u8 = 2;

    fn fresh(config: &Self::Config, seed: u64) -> Self;

    /// `value` is finite and of magnitude at most [`crate::VALUE_MAX`].
    fn step(&mut self, config: &Self::Config, time_ms: i64, value: f64, learn: bool) -> Reading;

    /// As [`State::touch`].
    fn touch(&self, _time_ms: i64) -> u32 {
        0
    }

    /// The entity has alarmed at a row that may be learned: for detectors that start again after an alarm.
    fn alarmed(&mut self, _config: &Self::Config) {}

    fn write(&self, config: &Self::Config, writer: &mut Writer<'_>);

    fn read(config: &Self::Config, version: u8, reader: &mut Reader<'_>) -> Result<Self, Error>;

    fn size_max(config: &Self::Config) -> usize;
}

pub(crate) struct PerFeature<S: Series> {
    shared: Arc<Shared<S::Config>>,
    features: usize,
}

/// What all entities of a detector have in common.
struct Shared<C> {
    config: C,
    promise: Promise,
    own_history: bool,
}

impl<S: Series> PerFeature<S> {
    pub(crate) fn detector(config: S::Config, options: &Options, features: usize) -> Result<Arc<dyn Detector>, Error> {
        if features == 0 || features > usize::from(u16::MAX) {
            return Err(Error::Features {
                detector: S::NAME,
                expected: "1 to 65535",
                given: features,
            });
        }
        let promise = Promise::read(options)?;
        let shared = Shared {
            config,
            promise,
            own_history: promise == Promise::None && S::LEVEL.is_some_and(|level| !options.is_given(level)),
        };
        Ok(Arc::new(Self {
            shared: Arc::new(shared),
            features,
        }))
    }
}

impl<S: Series> Detector for PerFeature<S> {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn state_size_max(&self) -> usize {
        let histories = if self.ranks_each() { self.features } else { 0 };
        4 + Calibration::BYTES + histories * History::BYTES + self.features * S::size_max(&self.shared.config)
    }

    fn fresh(&self, entity: u64) -> Box<dyn State> {
        let series = |index: usize| S::fresh(&self.shared.config, entity ^ (index as u64).rotate_left(32));
        match self.features {
            1 => self.bank(Calibration::new(), [series(0)]),
            _ => self.bank(
                Calibration::new(),
                Many {
                    series: (0..self.features).map(series).collect(),
                    histories: self.histories(),
                },
            ),
        }
    }

    fn restore(&self, _entity: u64, bytes: &[u8]) -> Result<Box<dyn State>, Error> {
        let mut reader = Reader::new(bytes);
        let version = reader.header(S::TAG, S::VERSION, self.features)?;
        let calibration = Calibration::read(&mut reader)?;
        let mut series = || S::read(&self.shared.config, version, &mut reader);
        let bank = match self.features {
            1 => self.bank(calibration, [series()?]),
            _ => {
                let series = (0..self.features).map(|_| series()).collect::<Result<_, _>>()?;
                let mut histories = self.histories();
                // Without them a version goes on from none.
                if version >= S::RANKED_FROM {
                    for history in &mut histories {
                        *history = History::read(version > S::RANKED_FROM, &mut reader)?;
                    }
                }
                self.bank(calibration, Many { series, histories })
            }
        };
        reader.finish()?;
        Ok(bank)
    }
}

impl<S: Series> PerFeature<S> {
    fn ranks_each(&self) -> bool {
        self.shared.own_history && self.features > 1
    }

    fn histories(&self) -> Box<[History]> {
        let count = if self.ranks_each() { self.features } else { 0 };
        (0..count).map(|_| History::new()).collect()
    }

    fn bank(&self, calibration: Calibration, series: impl Several<S>) -> Box<dyn State> {
        Box::new(Bank {
            shared: Arc::clone(&self.shared),
            calibration,
            series,
        })
    }
}

/// Where the series of a bank live: one within it, so that an entity is one block of memory; several apart, with the history of each if it is
/// ranked.
trait Several<S>: Send + 'static {
    fn all(&self) -> (&[S], &[History]);
    fn all_mut(&mut self) -> (&mut [S], &mut [History]);
}

impl<S: Send + 'static> Several<S> for [S; 1] {
    fn all(&self) -> (&[S], &[History]) {
        (self, &[])
    }

    fn all_mut(&mut self) -> (&mut [S], &mut [History]) {
        (self, &mut [])
    }
}

struct Many<S> {
    series: Box<[S]>,
    histories: Box<[History]>,
}

impl<S: Send + 'static> Several<S> for Many<S> {
    fn all(&self) -> (&[S], &[History]) {
        (&self.series, &self.histories)
    }

    fn all_mut(&mut self) -> (&mut [S], &mut [History]) {
        (&mut self.series, &mut self.histories)
    }
}

/// What one of several features has shown, and whether it alarms.
struct History {
    evidence: Calibration,
    alarm: Standing,
}

impl History {
    const BYTES: usize = Calibration::BYTES + Standing::BYTES;

    fn new() -> Self {
        Self {
            evidence: Calibration::new(),
            alarm: Standing::default(),
        }
    }

    /// The score of one of `features` at a row that may be learned, given what its detector says of it.
    fn judge(&mut self, score: f64, found: f64, features: usize) -> f64 {
        let stands_out =
            score >= RELEASE && self.evidence.is_rare(found, features) && self.evidence.is_beyond(found, features);
        let (judged, _) = self.alarm.step(score, stands_out, self.evidence.total());
        self.evidence.learn(found);
        if score >= RELEASE && !stands_out && !self.alarm.stands() {
            held_back(score)
        } else {
            judged
        }
    }

    fn write(&self, writer: &mut Writer<'_>) {
        self.evidence.write(writer);
        self.alarm.write(writer);
    }

    fn read(with_alarm: bool, reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            evidence: Calibration::read(reader)?,
            alarm: if with_alarm {
                Standing::read(reader)?
            } else {
                Standing::default()
            },
        })
    }
}

/// A cache line of what every row needs, four of counts, then the series.
#[repr(C, align(64))]
struct Bank<S: Series, A> {
    shared: Arc<Shared<S::Config>>,
    calibration: Calibration,
    series: A,
}

impl<S: Series, A: Several<S>> State for Bank<S, A> {
    fn score(&mut self, row: Row<'_>, out: &mut Score) {
        let shared = &*self.shared;
        let (all, histories) = self.series.all_mut();
        let count = all.len();
        let stands_out = shared.own_history && row.learn;
        out.reset(all.len());
        let mut evidence = f64::NAN;
        for (index, series) in all.iter_mut().enumerate() {
            let Some(value) = crate::known(row.features.get(index)) else {
                continue;
            };
            let learn = row.learn && histories.get(index).is_none_or(|history| history.alarm.may_learn());
            let reading = series.step(&shared.config, row.time_ms, value, learn);
            let found = crate::bounded_or_nan(reading.evidence);
            let mut score = crate::bounded(reading.score);
            if let Some(history) = histories.get_mut(index).filter(|_| row.learn && !found.is_nan()) {
                score = history.judge(score, found, count);
            }
            evidence = evidence.max(found);
            out.contributions[index] = score;
            out.expected[index] = reading.expected;
            out.lower[index] = reading.lower;
            out.upper[index] = reading.upper;
            let shift = reading.level_shift;
            out.level_shifts.extend(shift.map(|shift| LevelShift {
                feature: index,
                ..shift
            }));
        }
        out.share_by_square();
        // A row that may not be learned belongs to what is known to be wrong: there the alarm stands as long as the departure does.
        if stands_out && histories.is_empty() && out.score >= 0.5 && !self.calibration.is_rare(evidence, 1) {
            out.share(held_back(out.score));
        }
        self.calibration.finish(shared.promise, row, evidence, out);
        if row.learn && out.is_anomaly() {
            for series in all {
                series.alarmed(&shared.config);
            }
        }
    }

    fn touch(&self, time_ms: i64) -> u32 {
        let (all, _) = self.series.all();
        let series = all.iter().fold(0, |read, series| read ^ series.touch(time_ms));
        self.calibration.touch() ^ series
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        let mut writer = Writer::new(out);
        let (all, histories) = self.series.all();
        writer.header(S::TAG, S::VERSION, all.len());
        self.calibration.write(&mut writer);
        for series in all {
            series.write(&self.shared.config, &mut writer);
        }
        for history in histories {
            history.write(&mut writer);
        }
    }
}

/// Below the alarm level, in the order of the evidence; the same at [`RELEASE`].
fn held_back(score: f64) -> f64 {
    1.0 - 0.25 / score
}
