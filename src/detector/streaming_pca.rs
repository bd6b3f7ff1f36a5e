//! `streaming_pca`: T² within the principal subspace and Q outside it.
//!
//! Hotelling, 1947; Jackson and Mudholkar, Control procedures for residuals associated with principal component analysis, 1979. Means and
//! covariance forget exponentially and learn less from rows that stand out (weight min(1, alarm/score)), so that a fault
//! does not become normal while it lasts; the basis is renewed from them at intervals. Each statistic is scaled by its own
//! quantile over rows it had not learned; the score is the larger.

use std::sync::Arc;

use crate::codec::{Reader, Writer};
use crate::half_space_trees::CONTAMINATION;
use crate::linear::eigen;
use crate::parameter::{Kind, Options, Parameter};
use crate::ranking::Ranking;
use crate::standing::Standing;
use crate::{Detector, Error, Row, Score, State, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS];
pub(crate) const NAME: &str = "streaming_pca";
const VERSION: u8 = 2;
const TAG: u8 = 21;
const FEATURES_MAX: usize = 128;
/// Deviations that one feature counts for at most.
const UNIT_MAX: f64 = 20.0;

pub(crate) const WARMUP: Parameter = Parameter {
    name: "warmup",
    kind: Kind::Integer { min: 16, max: 100_000 },
    default: "250",
    expected: "an integer from 16 to 100000",
    help: "rows before the first score",
};

pub(crate) const HORIZON: Parameter = Parameter {
    name: "horizon",
    kind: Kind::Integer {
        min: 50,
        max: 10_000_000,
    },
    default: "5000",
    expected: "an integer from 50 to 10000000",
    help: "rows that the model remembers",
};

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "n_components",
        kind: Kind::Number { min: 0.01, max: 128.0 },
        default: "0.9",
        expected: "a share of the variance below 1, or a count from 1 to 128",
        help: "principal subspace, by variance explained or by count",
    },
    HORIZON,
    WARMUP,
    CONTAMINATION,
];

#[derive(Clone, Copy)]
pub(crate) struct Config {
    components: f64,
    horizon: f64,
    warmup: u64,
    contamination: f64,
    features: usize,
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    if !(2..=FEATURES_MAX).contains(&features) {
        return Err(Error::Features {
            detector: NAME,
            expected: "2 to 128",
            given: features,
        });
    }
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    Ok(Arc::new(StreamingPca {
        config: Config {
            components: options.required("n_components"),
            horizon: options.required("horizon"),
            warmup: options.required("warmup") as u64,
            contamination: options.required("contamination"),
            features,
        },
    }))
}

struct StreamingPca {
    config: Config,
}

impl Detector for StreamingPca {
    fn name(&self) -> &'static str {
        NAME
    }

    fn state_size_max(&self) -> usize {
        4 + Covariance::size(self.config.features) + 2 * Ranking::BYTES + Standing::BYTES + 16
    }

    fn fresh(&self, _entity: u64) -> Box<dyn State> {
        Box::new(Entity::new(self.config))
    }

    fn restore(&self, _entity: u64, bytes: &[u8]) -> Result<Box<dyn State>, Error> {
        let mut reader = Reader::new(bytes);
        let version = reader.header(TAG, VERSION, self.config.features)?;
        let mut state = Entity::new(self.config);
        state.covariance = Covariance::read(&mut reader, self.config.features)?;
        state.rankings = [Ranking::read(&mut reader)?, Ranking::read(&mut reader)?];
        if version >= 2 {
            state.alarm = Standing::read(&mut reader)?;
            state.levels = [level(&mut reader)?, level(&mut reader)?];
        }
        reader.finish()?;
        state.renew();
        Ok(Box::new(state))
    }
}

/// Means and covariances, and both as they stood when the basis was last renewed, from which it is renewed on restore.
#[derive(Clone, Debug)]
pub(crate) struct Covariance {
    pub(crate) rows: u64,
    pub(crate) renew_at: u64,
    pub(crate) live: Statistics,
    pub(crate) frozen: Statistics,
}

#[derive(Clone, Debug)]
pub(crate) struct Statistics {
    pub(crate) mean: Vec<f64>,
    /// Row by row, symmetric.
    pub(crate) matrix: Vec<f64>,
}

impl Statistics {
    fn new(features: usize) -> Self {
        Self {
            mean: vec![0.0; features],
            matrix: vec![0.0; features * features],
        }
    }

    /// Never 0.
    pub(crate) fn deviation(&self, feature: usize) -> f64 {
        let size = self.mean.len();
        self.matrix[feature * size + feature]
            .max(0.0)
            .sqrt()
            .max(1e-3 * self.mean[feature].abs())
            .max(1e-9)
    }
}

impl Covariance {
    pub(crate) fn size(features: usize) -> usize {
        16 + 16 * (features + features * features)
    }

    pub(crate) fn new(features: usize, warmup: u64) -> Self {
        Self {
            rows: 0,
            renew_at: warmup,
            live: Statistics::new(features),
            frozen: Statistics::new(features),
        }
    }

    /// Learns a row, NULL as the mean. True when the basis is to be renewed.
    pub(crate) fn learn(&mut self, row: &[f64], share: f64, horizon: f64) -> bool {
        self.rows += 1;
        let weight = share * (1.0 / self.rows as f64).max(1.0 / horizon);
        let size = self.live.mean.len();
        let Statistics { mean, matrix } = &mut self.live;
        for at in 0..size {
            let change = crate::known(row.get(at)).map_or(0.0, |value| value - mean[at]);
            for other in 0..=at {
                let other_change = crate::known(row.get(other)).map_or(0.0, |value| {
                    // Means below `at` have moved already: take that back.
                    if other == at {
                        change
                    } else {
                        (value - mean[other]) / (1.0 - weight).max(1e-9)
                    }
                });
                let entry = &mut matrix[at * size + other];
                *entry = (1.0 - weight) * (*entry + weight * change * other_change);
                matrix[other * size + at] = matrix[at * size + other];
            }
            mean[at] += weight * change;
        }
        if self.rows < self.renew_at {
            return false;
        }
        self.renew_at = self.rows + self.rows.min(500);
        self.frozen = self.live.clone();
        true
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        writer.u64(self.rows);
        writer.u64(self.renew_at);
        for statistics in [&self.live, &self.frozen] {
            writer.f64s(&statistics.mean);
            writer.f64s(&statistics.matrix);
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>, features: usize) -> Result<Self, Error> {
        let mut covariance = Self::new(features, 0);
        covariance.rows = reader.u64()?;
        covariance.renew_at = reader.u64()?;
        for statistics in [&mut covariance.live, &mut covariance.frozen] {
            reader.f64s(&mut statistics.mean)?;
            reader.f64s(&mut statistics.matrix)?;
            if statistics
                .mean
                .iter()
                .chain(&statistics.matrix)
                .any(|value| value.is_nan())
            {
                return Err(Error::State("a covariance is not a number".into()));
            }
        }
        if covariance.rows.max(covariance.renew_at) > 1 << 62 {
            return Err(Error::State("more rows than can have been learned".into()));
        }
        Ok(covariance)
    }
}

struct Entity {
    config: Config,
    covariance: Covariance,
    /// Principal directions as rows, with their variances.
    basis: Vec<f64>,
    variances: Vec<f64>,
    /// Of T² and of Q.
    rankings: [Ranking; 2],
    alarm: Standing,
    /// Raw scores that alarm; while an alarm stands, those that it began with.
    levels: [f64; 2],
    unit: Vec<f64>,
    projected: Vec<f64>,
}

impl State for Entity {
    fn score(&mut self, row: Row<'_>, out: &mut Score) {
        out.reset(self.config.features);
        if !row
            .features
            .iter()
            .take(self.config.features)
            .any(|value| value.is_finite())
        {
            return;
        }
        let (mut share, mut learn) = (1.0, row.learn);
        if !self.variances.is_empty() {
            self.center(row.features, out);
            let (t2, q) = self.statistics();
            let raws = [t2, q].map(squash);
            let rows = self.rankings[0].rows();
            if rows >= 100.0 {
                let mut worst = (0.0, 0);
                for (at, (raw, ranking)) in raws.iter().zip(&self.rankings).enumerate() {
                    if self.alarm.may_learn() {
                        // Either may alarm, so each has half of the share.
                        let share = self.config.contamination / 2.0;
                        self.levels[at] = ranking.quantile(share).max(ranking.quantile(0.02));
                    }
                    let score = unsquash(*raw) / unsquash(self.levels[at]).max(1e-3);
                    if score > worst.0 {
                        worst = (score, at);
                    }
                }
                self.attribute(worst.1, &mut out.contributions);
                let mut judged = worst.0;
                if row.learn {
                    (judged, learn) = self.alarm.step(judged, true, rows as u32);
                }
                out.share(judged);
                share = (1.0 / worst.0.max(1e-9)).min(1.0);
                if worst.0 >= 1.0 {
                    share *= 0.1;
                }
            }
            if row.learn {
                let rows_max = (64.0 / self.config.contamination.max(1e-3)) as f32;
                for (raw, ranking) in raws.iter().zip(&mut self.rankings) {
                    ranking.learn(*raw, rows_max);
                }
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
        for ranking in &self.rankings {
            ranking.write(&mut writer);
        }
        self.alarm.write(&mut writer);
        writer.f64s(&self.levels);
    }
}

/// A raw score as a snapshot has it.
pub(crate) fn level(reader: &mut Reader<'_>) -> Result<f64, Error> {
    let level = reader.f64()?;
    if (0.0..=1.0).contains(&level) {
        Ok(level)
    } else {
        Err(Error::State("an alarm level is not one".into()))
    }
}

/// Ranks are kept over [0, 1).
pub(crate) fn squash(statistic: f64) -> f64 {
    let root = statistic.max(0.0).sqrt();
    root / (root + 4.0)
}

pub(crate) fn unsquash(raw: f64) -> f64 {
    let raw = raw.clamp(0.0, 0.9999);
    (4.0 * raw / (1.0 - raw)).powi(2)
}

impl Entity {
    fn new(config: Config) -> Self {
        Self {
            config,
            covariance: Covariance::new(config.features, config.warmup),
            basis: Vec::new(),
            variances: Vec::new(),
            rankings: [Ranking::new(), Ranking::new()],
            alarm: Standing::default(),
            levels: [0.0; 2],
            unit: vec![0.0; config.features],
            projected: Vec::new(),
        }
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
            .map(|(at, entry)| entry / deviations[at / size] / deviations[at % size])
            .collect();
        let (values, vectors) = eigen(correlation, size);
        let total: f64 = values.iter().map(|value| value.max(0.0)).sum();
        let mut kept = 0;
        let mut explained = 0.0;
        while kept < size - 1 {
            let enough = if self.config.components < 1.0 {
                explained >= self.config.components * total
            } else {
                kept as f64 >= self.config.components
            };
            if enough && kept > 0 {
                break;
            }
            explained += values[kept].max(0.0);
            kept += 1;
        }
        self.variances = values[..kept].iter().map(|value| value.max(0.05)).collect();
        self.basis = vectors[..kept * size].to_vec();
        self.projected = vec![0.0; kept];
    }

    fn center(&mut self, row: &[f64], out: &mut Score) {
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
    }

    /// Both per dimension.
    fn statistics(&mut self) -> (f64, f64) {
        let size = self.config.features;
        let mut inside = 0.0;
        let mut t2 = 0.0;
        for (at, projected) in self.projected.iter_mut().enumerate() {
            let direction = &self.basis[at * size..][..size];
            *projected = direction.iter().zip(&self.unit).map(|(a, b)| a * b).sum();
            inside += *projected * *projected;
            t2 += *projected * *projected / self.variances[at];
        }
        let all: f64 = self.unit.iter().map(|unit| unit * unit).sum();
        let outside = (size - self.projected.len()).max(1) as f64;
        (
            t2 / self.projected.len().max(1) as f64,
            (all - inside).max(0.0) / outside,
        )
    }

    /// Weights of the features in T² (0) or Q (1): their squared parts of the projection or of the residual.
    fn attribute(&self, statistic: usize, weights: &mut [f64]) {
        let size = self.config.features;
        for (at, weight) in weights.iter_mut().enumerate() {
            let mut back = 0.0;
            let mut scaled = 0.0;
            for (component, projected) in self.projected.iter().enumerate() {
                let loading = self.basis[component * size + at];
                back += projected * loading;
                scaled += projected * loading / self.variances[component];
            }
            *weight = if statistic == 0 {
                (self.unit[at] * scaled).max(0.0)
            } else {
                (self.unit[at] - back).powi(2)
            };
        }
    }
}
