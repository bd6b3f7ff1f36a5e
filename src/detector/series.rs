//! Detectors of one series, made into detectors of an entity: one state per feature, the worst feature is the score.

use std::sync::Arc;

use crate::calibration::{Calibration, Promise};
use crate::codec::{Reader, Writer};
use crate::parameter::Options;
use crate::{Detector, Error, Row, Score, State};

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
}

impl Reading {
    pub(crate) const QUIET: Self = Self {
        score: 0.0,
        evidence: f64::NAN,
        expected: f64::NAN,
        lower: f64::NAN,
        upper: f64::NAN,
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
        }
    }
}

/// The state of one series.
pub(crate) trait Series: Send + Sized + 'static {
    type Config: Send + Sync + 'static;
    const NAME: &'static str;
    const TAG: u8;
    const VERSION: u8;

    fn fresh(config: &Self::Config, seed: u64) -> Self;

    /// `value` is finite and of magnitude at most [`crate::VALUE_MAX`].
    fn step(&mut self, config: &Self::Config, time_ms: i64, value: f64, learn: bool) -> Reading;

    fn write(&self, config: &Self::Config, writer: &mut Writer<'_>);

    fn read(config: &Self::Config, version: u8, reader: &mut Reader<'_>) -> Result<Self, Error>;

    fn size_max(config: &Self::Config) -> usize;
}

pub(crate) struct PerFeature<S: Series> {
    config: Arc<S::Config>,
    promise: Promise,
    features: usize,
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
        Ok(Arc::new(Self {
            config: Arc::new(config),
            promise: Promise::read(options)?,
            features,
        }))
    }
}

impl<S: Series> Detector for PerFeature<S> {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn state_size_max(&self) -> usize {
        4 + Calibration::BYTES + self.features * S::size_max(&self.config)
    }

    fn fresh(&self, entity: u64) -> Box<dyn State> {
        Box::new(Bank::<S> {
            config: Arc::clone(&self.config),
            promise: self.promise,
            calibration: Calibration::new(),
            series: (0..self.features)
                .map(|index| S::fresh(&self.config, entity ^ (index as u64).rotate_left(32)))
                .collect(),
        })
    }

    fn restore(&self, _entity: u64, bytes: &[u8]) -> Result<Box<dyn State>, Error> {
        let mut reader = Reader::new(bytes);
        let version = reader.header(S::TAG, S::VERSION, self.features)?;
        let calibration = Calibration::read(&mut reader)?;
        let series = (0..self.features)
            .map(|_| S::read(&self.config, version, &mut reader))
            .collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Box::new(Bank::<S> {
            config: Arc::clone(&self.config),
            promise: self.promise,
            calibration,
            series,
        }))
    }
}

struct Bank<S: Series> {
    config: Arc<S::Config>,
    promise: Promise,
    calibration: Calibration,
    series: Box<[S]>,
}

impl<S: Series> State for Bank<S> {
    fn score(&mut self, row: Row<'_>, out: &mut Score) {
        out.reset(self.series.len());
        let mut evidence = f64::NAN;
        for (index, series) in self.series.iter_mut().enumerate() {
            let Some(value) = crate::known(row.features.get(index)) else {
                continue;
            };
            let reading = series.step(&self.config, row.time_ms, value, row.learn);
            evidence = evidence.max(crate::bounded_or_nan(reading.evidence));
            out.contributions[index] = crate::bounded(reading.score);
            out.expected[index] = reading.expected;
            out.lower[index] = reading.lower;
            out.upper[index] = reading.upper;
        }
        out.share_by_square();
        self.calibration.finish(self.promise, row, evidence, out);
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        let mut writer = Writer::new(out);
        writer.header(S::TAG, S::VERSION, self.series.len());
        self.calibration.write(&mut writer);
        for series in &self.series {
            series.write(&self.config, &mut writer);
        }
    }
}
