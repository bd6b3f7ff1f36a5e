//! `mahalanobis`: distance from the mean in the metric of the covariance.
//!
//! Mahalanobis, On the generalised distance in statistics, 1936. Moments as in [`crate::streaming_pca`]: forgetting, and
//! learning less from rows that stand out. The covariance is shrunk to its diagonal (Ledoit and Wolf, 2004, with a fixed
//! share), so that it can always be inverted; the inverse is renewed at intervals.

use std::sync::Arc;

use crate::codec::{Reader, Writer};
use crate::half_space_trees::CONTAMINATION;
use crate::linear::eigen;
use crate::parameter::{Options, Parameter};
use crate::ranking::Ranking;
use crate::standing::Standing;
use crate::streaming_pca::{Covariance, HORIZON, WARMUP, level, squash, unsquash};
use crate::{Detector, Error, Row, Score, State, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS];
pub(crate) const NAME: &str = "mahalanobis";
pub(crate) const PARAMETERS: &[Parameter] = &[HORIZON, WARMUP, CONTAMINATION];
const VERSION: u8 = 2;
const TAG: u8 = 22;
const SHRINKAGE: f64 = 0.05;
const UNIT_MAX: f64 = 20.0;

#[derive(Clone, Copy)]
struct Config {
    horizon: f64,
    warmup: u64,
    contamination: f64,
    features: usize,
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    if !(1..=128).contains(&features) {
        return Err(Error::Features {
            detector: NAME,
            expected: "1 to 128",
            given: features,
        });
    }
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    Ok(Arc::new(Mahalanobis {
        config: Config {
            horizon: options.required("horizon"),
            warmup: options.required("warmup") as u64,
            contamination: options.required("contamination"),
            features,
        },
    }))
}

struct Mahalanobis {
    config: Config,
}

impl Detector for Mahalanobis {
    fn name(&self) -> &'static str {
        NAME
    }

    fn state_size_max(&self) -> usize {
        4 + Covariance::size(self.config.features) + Ranking::BYTES + Standing::BYTES + 8
    }

    fn fresh(&self, _entity: u64) -> Box<dyn State> {
        Box::new(Entity::new(self.config))
    }

    fn restore(&self, _entity: u64, bytes: &[u8]) -> Result<Box<dyn State>, Error> {
        let mut reader = Reader::new(bytes);
        let version = reader.header(TAG, VERSION, self.config.features)?;
        let mut state = Entity::new(self.config);
        state.covariance = Covariance::read(&mut reader, self.config.features)?;
        state.ranking = Ranking::read(&mut reader)?;
        if version >= 2 {
            state.alarm = Standing::read(&mut reader)?;
            state.level = level(&mut reader)?;
        }
        reader.finish()?;
        state.renew();
        Ok(Box::new(state))
    }
}

struct Entity {
    config: Config,
    covariance: Covariance,
    /// Of the shrunk correlation, row by row; empty while warming up.
    inverse: Vec<f64>,
    ranking: Ranking,
    alarm: Standing,
    /// Raw score that alarms; while an alarm stands, the one that it began with.
    level: f64,
    unit: Vec<f64>,
}

impl State for Entity {
    fn score(&mut self, row: Row<'_>, out: &mut Score) {
        let size = self.config.features;
        out.reset(size);
        if !row.features.iter().take(size).any(|value| value.is_finite()) {
            return;
        }
        let (mut share, mut learn) = (1.0, row.learn);
        if !self.inverse.is_empty() {
            let raw = squash(self.distance(row.features, out));
            if self.ranking.rows() >= 100.0 {
                if self.alarm.may_learn() {
                    self.level = self
                        .ranking
                        .quantile(self.config.contamination)
                        .max(self.ranking.quantile(0.02));
                }
                let score = unsquash(raw) / unsquash(self.level).max(1e-3);
                let mut judged = score;
                if row.learn {
                    (judged, learn) = self.alarm.step(score, size > 1, self.ranking.rows() as u32);
                }
                out.share(judged);
                share = (1.0 / score.max(1e-9)).min(1.0) * if score >= 1.0 { 0.1 } else { 1.0 };
            } else {
                out.contributions.fill(0.0);
            }
            if row.learn {
                let rows_max = 64.0 / self.config.contamination.max(1e-3);
                self.ranking.learn(raw, rows_max as f32);
            }
        }
        if learn && self.covariance.learn(row.features, share, self.config.horizon) {
            self.renew();
        }
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        let mut writer = Writer::new(out);
        writer.header(TAG, VERSION, self.config.features);
        self.covariance.write(&mut writer);
        self.ranking.write(&mut writer);
        self.alarm.write(&mut writer);
        writer.f64(self.level);
    }
}

impl Entity {
    fn new(config: Config) -> Self {
        Self {
            config,
            covariance: Covariance::new(config.features, config.warmup),
            inverse: Vec::new(),
            ranking: Ranking::new(),
            alarm: Standing::default(),
            level: 0.0,
            unit: vec![0.0; config.features],
        }
    }

    /// Squared distance per dimension; the parts of the features go to the contributions.
    fn distance(&mut self, row: &[f64], out: &mut Score) -> f64 {
        let size = self.config.features;
        let frozen = &self.covariance.frozen;
        for (at, unit) in self.unit.iter_mut().enumerate() {
            let deviation = frozen.deviation(at);
            *unit = crate::known(row.get(at)).map_or(0.0, |value| {
                ((value - frozen.mean[at]) / deviation).clamp(-UNIT_MAX, UNIT_MAX)
            });
            out.expected[at] = frozen.mean[at];
            out.lower[at] = frozen.mean[at] - 3.0 * deviation;
            out.upper[at] = frozen.mean[at] + 3.0 * deviation;
        }
        let mut distance = 0.0;
        for (at, unit) in self.unit.iter().enumerate() {
            let row = &self.inverse[at * size..][..size];
            let part = unit * row.iter().zip(&self.unit).map(|(a, b)| a * b).sum::<f64>();
            out.contributions[at] = part.max(0.0);
            distance += part;
        }
        distance / size as f64
    }

    fn renew(&mut self) {
        let size = self.config.features;
        let frozen = &self.covariance.frozen;
        if frozen.matrix.iter().all(|entry| *entry == 0.0) && frozen.mean.iter().all(|mean| *mean == 0.0) {
            return;
        }
        let deviations: Vec<f64> = (0..size).map(|feature| frozen.deviation(feature)).collect();
        let correlation: Vec<f64> = frozen
            .matrix
            .iter()
            .enumerate()
            .map(|(at, entry)| {
                let (row, column) = (at / size, at % size);
                if row == column {
                    1.0
                } else {
                    (1.0 - SHRINKAGE) * entry / deviations[row] / deviations[column]
                }
            })
            .collect();
        let (values, vectors) = eigen(correlation, size);
        self.inverse = vec![0.0; size * size];
        for (value, vector) in values.iter().zip(vectors.chunks_exact(size)) {
            let weight = 1.0 / value.max(0.01);
            for row in 0..size {
                for column in 0..size {
                    self.inverse[row * size + column] += weight * vector[row] * vector[column];
                }
            }
        }
    }
}
