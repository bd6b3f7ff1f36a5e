//! `isolation_forest`: Liu, Ting and Zhou, Isolation forest, ICDM 2008.
//!
//! Rows that may be learned enter a reservoir (Vitter, Random sampling with a reservoir, 1985) that forgets slowly. After
//! `warmup` rows, and again whenever the number of learned rows has doubled or grown by [`REFIT_ROWS`], the forest is grown anew from
//! it; between, it is frozen. Scores are mapped linearly so that the median of normal rows is 0 and their `1 − contamination` quantile is 1.
//!
//! A snapshot holds the rows the forest was grown from, not the trees: growing is a function of rows and seed, so the
//! restored forest is the same bit for bit, and a hundred times smaller on the wire.
//!
//! A forest cannot tell how far beyond its sample a value lies: every such value ends in the leaf of the outermost row. So the
//! distance beyond the sample's range, in ranges, is added to the score.
//!
//! Values enter as f32 in units of the sample's range around its median; NULL counts as the median.

use std::sync::Arc;

use crate::codec::{Reader, Writer};
use crate::parameter::{Kind, Options, Parameter};
use crate::random::Random;
use crate::ranking::Ranking;
use crate::reservoir::Reservoir;
use crate::spread::Spread;
use crate::{Detector, Error, Row, Score, State, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS];
pub(crate) const NAME: &str = "isolation_forest";
const TAG: u8 = 4;
const REFIT_ROWS: u64 = 2048;
const LEAF: u16 = u16::MAX;
/// Width of a normal forest's upper half of scores at least; keeps constants from dividing by 0.
const SPREAD_MIN: f64 = 0.02;
/// What one feature can add for lying beyond the sample.
const BEYOND_MAX: f64 = 8.0;

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "n_estimators",
        kind: Kind::Integer { min: 1, max: 1000 },
        default: "100",
        expected: "an integer from 1 to 1000",
        help: "trees",
    },
    Parameter {
        name: "max_samples",
        kind: Kind::Integer { min: 2, max: 4096 },
        default: "256",
        expected: "an integer from 2 to 4096",
        help: "rows that each tree is grown from",
    },
    Parameter {
        name: "contamination",
        kind: Kind::Number { min: 1e-6, max: 0.5 },
        default: "0.01",
        expected: "a number from 0.000001 to 0.5",
        help: "share of rows beyond the alarm level",
    },
    Parameter {
        name: "warmup",
        kind: Kind::Integer { min: 8, max: 100_000 },
        default: "256",
        expected: "an integer from 8 to 100000",
        help: "rows before the first score",
    },
];

#[derive(Clone, Copy, Debug)]
struct Config {
    trees: usize,
    samples: usize,
    contamination: f64,
    warmup: u64,
    features: usize,
}

impl Config {
    /// Twice the samples, so that trees differ in rows as well as in splits.
    fn reservoir(&self) -> usize {
        self.samples * 2
    }
}

struct IsolationForest {
    config: Config,
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    if features == 0 || features > 1024 {
        return Err(Error::Features {
            detector: NAME,
            expected: "1 to 1024",
            given: features,
        });
    }
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let config = Config {
        trees: options.count("n_estimators"),
        samples: options.count("max_samples"),
        contamination: options.required("contamination"),
        warmup: options.required("warmup") as u64,
        features,
    };
    Ok(Arc::new(IsolationForest { config }))
}

impl Detector for IsolationForest {
    fn name(&self) -> &'static str {
        NAME
    }

    fn state_size_max(&self) -> usize {
        4 + Reservoir::size_max(self.config.features, self.config.reservoir()) + Ranking::BYTES
    }

    fn fresh(&self, entity: u64) -> Box<dyn State> {
        Box::new(Entity::fresh(self.config, entity))
    }

    fn restore(&self, entity: u64, bytes: &[u8]) -> Result<Box<dyn State>, Error> {
        let mut reader = Reader::new(bytes);
        reader.header(TAG, 1, self.config.features)?;
        let mut state = Entity::fresh(self.config, entity);
        state.reservoir.read(&mut reader)?;
        state.ranking = Ranking::read(&mut reader)?;
        reader.finish()?;
        state.grow();
        Ok(Box::new(state))
    }
}

struct Entity {
    config: Config,
    reservoir: Reservoir,
    forest: Option<Forest>,
    /// Raw scores of rows that the forest had not seen.
    ranking: Ranking,
    unit: Vec<f32>,
}

impl State for Entity {
    fn score(&mut self, row: Row<'_>, out: &mut Score) {
        let features = self.config.features;
        out.reset(features);
        let known = row.features.iter().take(features).any(|value| value.is_finite());
        if !known {
            return;
        }
        if let Some(forest) = &self.forest {
            Spread::tell(&forest.spreads, out);
            forest.to_unit(row.features, &mut self.unit);
            let raw = forest.score(&self.unit, &mut out.contributions);
            let seen = self.ranking.quantile(self.config.contamination);
            let alarm = forest.quantile.max(seen);
            let score = ((raw - forest.median) / (alarm - forest.median).max(SPREAD_MIN)).max(0.0);
            out.share(score);
            for (part, (value, (low, high))) in out.contributions.iter_mut().zip(self.unit.iter().zip(&forest.bounds)) {
                let beyond = f64::from((value - high).max(low - value).max(0.0));
                *part += beyond.min(BEYOND_MAX);
            }
            out.score = crate::bounded(out.contributions.iter().sum());
            if row.learn {
                let rows_max = 64.0 / self.config.contamination.max(1e-3);
                self.ranking.learn(raw, rows_max as f32);
            }
        }
        if row.learn && self.reservoir.learn(row.features) {
            self.grow();
        }
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        let mut writer = Writer::new(out);
        writer.header(TAG, 1, self.config.features);
        self.reservoir.write(&mut writer);
        self.ranking.write(&mut writer);
    }
}

impl Entity {
    fn fresh(config: Config, entity: u64) -> Self {
        Self {
            config,
            reservoir: Reservoir::new(config.features, config.reservoir(), config.warmup, REFIT_ROWS, entity),
            forest: None,
            ranking: Ranking::new(),
            unit: vec![0.0; config.features],
        }
    }

    fn grow(&mut self) {
        let fitted = self.reservoir.fitted();
        self.forest = fitted.map(|(rows, seed)| Forest::grow(&self.config, rows, seed));
    }
}

/// A node in preorder: the left child follows, the right one is at `right`.
#[derive(Clone, Copy, Debug)]
struct Node {
    threshold: f32,
    feature: u16,
    /// Relative to the tree's root.
    right: u16,
    /// Rows of the sample that came here.
    rows: u16,
}

struct Forest {
    nodes: Vec<Node>,
    roots: Vec<u32>,
    spreads: Vec<Option<Spread>>,
    centre: Vec<f64>,
    range: Vec<f64>,
    /// Least and greatest value of the sample per feature, in units.
    bounds: Vec<(f32, f32)>,
    normaliser: f64,
    median: f64,
    quantile: f64,
}

impl Forest {
    fn grow(config: &Config, rows: &[f64], seed: u64) -> Self {
        let width = config.features;
        let count = rows.len() / width;
        let samples = config.samples.min(count);
        let mut forest = Self::scaled(rows, width, samples);
        let mut random = Random::new(seed);
        let mut units = vec![0.0f32; rows.len()];
        for (row, unit) in rows.chunks_exact(width).zip(units.chunks_exact_mut(width)) {
            forest.to_unit(row, unit);
            for (value, (low, high)) in unit.iter().zip(&mut forest.bounds) {
                *low = low.min(*value);
                *high = high.max(*value);
            }
        }
        let depth_max = (samples.max(2) as f64).log2().ceil() as u32;
        let mut order: Vec<u32> = (0..count as u32).collect();
        for _ in 0..config.trees {
            for at in 0..samples {
                order.swap(at, at + random.below(count - at));
            }
            let root = forest.nodes.len();
            forest.roots.push(root as u32);
            forest.branch(&units, &mut order[..samples], depth_max, root, &mut random);
        }
        let mut weights = vec![0.0; width];
        let mut scores: Vec<f64> = units
            .chunks_exact(width)
            .map(|unit| forest.score(unit, &mut weights))
            .collect();
        scores.sort_unstable_by(f64::total_cmp);
        forest.median = scores[(scores.len() - 1) / 2];
        let at = ((scores.len() as f64) * (1.0 - config.contamination)).ceil() as usize;
        forest.quantile = scores[at.clamp(1, scores.len()) - 1].max(forest.median + SPREAD_MIN);
        forest
    }

    fn scaled(rows: &[f64], width: usize, samples: usize) -> Self {
        let spreads = Spread::of(rows, width);
        let mut centre = Vec::with_capacity(width);
        let mut range = Vec::with_capacity(width);
        for spread in &spreads {
            let Some(Spread { low, median, high }) = *spread else {
                centre.push(0.0);
                range.push(1.0);
                continue;
            };
            centre.push(median);
            // A constant has no range: a tenth of it stands in.
            let tenth = (0.1 * high.abs()).max(1e-9);
            range.push(if high > low { high - low } else { tenth });
        }
        Self {
            nodes: Vec::new(),
            roots: Vec::new(),
            spreads,
            centre,
            range,
            bounds: vec![(0.0, 0.0); width],
            normaliser: path_length(samples as f64).max(1.0),
            median: 0.0,
            quantile: 1.0,
        }
    }

    fn to_unit(&self, row: &[f64], unit: &mut [f32]) {
        for (index, value) in unit.iter_mut().enumerate() {
            *value = crate::known(row.get(index)).map_or(0.0, |known| {
                (((known - self.centre[index]) / self.range[index]).clamp(-1e30, 1e30)) as f32
            });
        }
    }

    fn branch(&mut self, units: &[f32], rows: &mut [u32], depth_left: u32, root: usize, random: &mut Random) {
        let at = self.nodes.len();
        self.nodes.push(Node {
            threshold: 0.0,
            feature: LEAF,
            right: 0,
            rows: rows.len() as u16,
        });
        if rows.len() <= 1 || depth_left == 0 {
            return;
        }
        let Some((feature, threshold)) = self.split(units, rows, random) else {
            return;
        };
        let width = self.centre.len();
        let mut left = 0;
        for index in 0..rows.len() {
            if units[rows[index] as usize * width + feature] < threshold {
                rows.swap(index, left);
                left += 1;
            }
        }
        let (low, high) = rows.split_at_mut(left);
        self.branch(units, low, depth_left - 1, root, random);
        self.nodes[at].right = (self.nodes.len() - root) as u16;
        self.branch(units, high, depth_left - 1, root, random);
        self.nodes[at].feature = feature as u16;
        self.nodes[at].threshold = threshold;
    }

    /// A feature that still varies, and a threshold that leaves rows on both sides.
    fn split(&self, units: &[f32], rows: &[u32], random: &mut Random) -> Option<(usize, f32)> {
        let width = self.centre.len();
        let first = random.below(width);
        for step in 0..width {
            // Where the drawn feature is constant the next one that is not stands in.
            let feature = (first + step) % width;
            let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
            for row in rows {
                let value = units[*row as usize * width + feature];
                low = low.min(value);
                high = high.max(value);
            }
            if low < high {
                let drawn = f64::from(low) + (f64::from(high) - f64::from(low)) * random.unit();
                let threshold = drawn as f32;
                return Some((feature, if threshold > low { threshold } else { high }));
            }
        }
        None
    }

    /// 2^(−mean path / c), and into `weights` how much each feature helped to isolate the row: the information
    /// gained at its splits, ln(rows of the parent / rows of the child).
    fn score(&self, unit: &[f32], weights: &mut [f64]) -> f64 {
        weights.fill(0.0);
        let mut total = 0.0;
        for root in &self.roots {
            let root = *root as usize;
            let mut at = root;
            let mut depth = 0.0;
            loop {
                let node = self.nodes[at];
                if node.feature == LEAF {
                    total += depth + path_length(f64::from(node.rows));
                    break;
                }
                let feature = usize::from(node.feature);
                at = if unit[feature] < node.threshold {
                    at + 1
                } else {
                    root + usize::from(node.right)
                };
                depth += 1.0;
                weights[feature] += (f64::from(node.rows) / f64::from(self.nodes[at].rows)).ln();
            }
        }
        (-total / self.roots.len() as f64 / self.normaliser).exp2()
    }
}

/// Mean path length of an unsuccessful search in a binary tree of `rows` (equation 1 of the paper).
fn path_length(rows: f64) -> f64 {
    const EULER: f64 = 0.577_215_664_901_532_9;
    if rows <= 1.0 {
        0.0
    } else if rows <= 2.0 {
        1.0
    } else {
        2.0 * ((rows - 1.0).ln() + EULER) - 2.0 * (rows - 1.0) / rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(random: &mut Random) -> f64 {
        let (u, v) = (random.unit(), random.unit());
        (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    fn row(random: &mut Random, kind: &str, odd: bool) -> Vec<f64> {
        match kind {
            "blob" => (0..4)
                .map(|_| if odd { 6.0 * random.unit() - 3.0 } else { normal(random) })
                .collect(),
            "clusters" => {
                let centre = match odd {
                    true => 0.0,
                    false if random.unit() < 0.5 => 4.0,
                    false => -4.0,
                };
                (0..3).map(|_| centre + normal(random)).collect()
            }
            _ => {
                let first = normal(random);
                let second = if odd { normal(random) } else { first };
                vec![2.0 * first, 2.0 * second + 0.3 * normal(random), normal(random)]
            }
        }
    }

    /// Area under the ROC curve, by ranks.
    fn auc(scores: &mut [(f64, bool)]) -> f64 {
        scores.sort_by(|a, b| a.0.total_cmp(&b.0));
        let odd = scores.iter().filter(|(_, odd)| *odd).count() as f64;
        let ranks: f64 = (1..)
            .zip(scores.iter())
            .filter(|(_, (_, odd))| *odd)
            .map(|(rank, _)| f64::from(rank))
            .sum();
        (ranks - odd * (odd + 1.0) / 2.0) / odd / (scores.len() as f64 - odd)
    }

    /// Figures of scikit-learn 1.7.2, mean of ten seeds; `tests/isolation_forest_reference.py` makes them.
    #[test]
    fn ranks_as_well_as_scikit_learn() {
        for (kind, reference) in [("blob", 0.9132), ("clusters", 0.9990), ("correlated", 0.6863)] {
            let mut random = Random::new(7);
            let train: Vec<f64> = (0..512).flat_map(|_| row(&mut random, kind, false)).collect();
            let width = train.len() / 512;
            let test: Vec<(Vec<f64>, bool)> = (0..5000)
                .map(|at| (row(&mut random, kind, at % 10 == 0), at % 10 == 0))
                .collect();
            let config = Config {
                trees: 100,
                samples: 256,
                contamination: 0.01,
                warmup: 512,
                features: width,
            };
            let mut mean = 0.0;
            for seed in 0..10 {
                let forest = Forest::grow(&config, &train, seed);
                let mut unit = vec![0.0; width];
                let mut weights = vec![0.0; width];
                let mut scores: Vec<(f64, bool)> = test
                    .iter()
                    .map(|(row, odd)| {
                        forest.to_unit(row, &mut unit);
                        (forest.score(&unit, &mut weights), *odd)
                    })
                    .collect();
                mean += auc(&mut scores) / 10.0;
            }
            assert!(
                (mean - reference).abs() < 0.02,
                "{kind}: {mean:.4}, scikit-learn {reference}"
            );
        }
    }
}
