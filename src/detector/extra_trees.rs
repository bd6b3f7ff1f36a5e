//! `extra_trees`: extremely randomised trees that tell rows from noise.
//!
//! Geurts, Ernst and Wehenkel, Extremely randomized trees, 2006, fitted by smartcore to real rows (0) against uniform noise
//! in the widened box around them (1): the contrast of Steinwart, Hush and Scovel, A classification framework for anomaly detection, 2005. The
//! forest's mean is the raw score. It is grown off the hot path from a reservoir, at `warmup` rows and whenever the rows learned have doubled or
//! grown by [`REFIT_ROWS`], and compiled to flat arrays whose sums equal smartcore's own, in its order. The snapshot holds the rows
//! and the seed, from which the same forest grows again.
//!
//! Contributions follow the path of a row: what each split moved the mean by, where it moved it towards noise (Saabas, 2014).

use std::sync::Arc;

use serde::Deserialize;
use smartcore::ensemble::extra_trees_regressor::{ExtraTreesRegressor, ExtraTreesRegressorParameters};
use smartcore::linalg::basic::matrix::DenseMatrix;

use crate::codec::{Reader, Writer};
use crate::half_space_trees::CONTAMINATION;
use crate::parameter::{Kind, Options, Parameter};
use crate::random::Random;
use crate::ranking::Ranking;
use crate::reservoir::Reservoir;
use crate::spread::Spread;
use crate::{Detector, Error, Row, Score, State, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS];
pub(crate) const NAME: &str = "extra_trees";
const TAG: u8 = 18;
const REFIT_ROWS: u64 = 4096;
/// The box around the rows, widened by this share of the range on each side.
const MARGIN: f64 = 0.25;

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "n_estimators",
        kind: Kind::Integer { min: 1, max: 500 },
        default: "50",
        expected: "an integer from 1 to 500",
        help: "trees",
    },
    Parameter {
        name: "max_samples",
        kind: Kind::Integer { min: 16, max: 4096 },
        default: "512",
        expected: "an integer from 16 to 4096",
        help: "rows kept to grow from; as many rows of noise stand against them",
    },
    Parameter {
        name: "min_samples_leaf",
        kind: Kind::Integer { min: 1, max: 100 },
        default: "2",
        expected: "an integer from 1 to 100",
        help: "rows that a leaf needs",
    },
    Parameter {
        name: "warmup",
        kind: Kind::Integer { min: 16, max: 100_000 },
        default: "256",
        expected: "an integer from 16 to 100000",
        help: "rows before the first score",
    },
    CONTAMINATION,
];

#[derive(Clone, Copy)]
struct Config {
    trees: usize,
    samples: usize,
    leaf: usize,
    warmup: u64,
    contamination: f64,
    features: usize,
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
    Ok(Arc::new(ExtraTrees {
        config: Config {
            trees: options.count("n_estimators"),
            samples: options.count("max_samples"),
            leaf: options.count("min_samples_leaf"),
            warmup: options.required("warmup") as u64,
            contamination: options.required("contamination"),
            features,
        },
    }))
}

struct ExtraTrees {
    config: Config,
}

impl Detector for ExtraTrees {
    fn name(&self) -> &'static str {
        NAME
    }

    fn state_size_max(&self) -> usize {
        4 + Reservoir::size_max(self.config.features, self.config.samples) + Ranking::BYTES
    }

    fn fresh(&self, entity: u64) -> Box<dyn State> {
        Box::new(Entity::new(self.config, entity))
    }

    fn restore(&self, entity: u64, bytes: &[u8]) -> Result<Box<dyn State>, Error> {
        let mut reader = Reader::new(bytes);
        reader.header(TAG, 1, self.config.features)?;
        let mut state = Entity::new(self.config, entity);
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
    ranking: Ranking,
    filled: Vec<f64>,
}

impl State for Entity {
    fn score(&mut self, row: Row<'_>, out: &mut Score) {
        let features = self.config.features;
        out.reset(features);
        if !row.features.iter().take(features).any(|value| value.is_finite()) {
            return;
        }
        if let Some(forest) = &self.forest {
            for (index, value) in self.filled.iter_mut().enumerate() {
                *value = crate::known(row.features.get(index)).unwrap_or_else(|| centre(&forest.spreads[index]));
            }
            Spread::tell(&forest.spreads, out);
            let raw = forest.predict(&self.filled, Some(&mut out.contributions));
            if self.ranking.rows() >= 50.0 {
                let median = self.ranking.quantile(0.5);
                let alarm = self
                    .ranking
                    .quantile(self.config.contamination)
                    .max(self.ranking.quantile(0.02));
                out.share(((raw - median) / (alarm - median).max(0.05)).max(0.0));
            } else {
                out.contributions.fill(0.0);
            }
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
    fn new(config: Config, entity: u64) -> Self {
        Self {
            config,
            reservoir: Reservoir::new(config.features, config.samples, config.warmup, REFIT_ROWS, entity),
            forest: None,
            ranking: Ranking::new(),
            filled: vec![0.0; config.features],
        }
    }

    fn grow(&mut self) {
        let fitted = self.reservoir.fitted();
        self.forest = fitted.and_then(|(rows, seed)| Forest::grow(&self.config, rows, seed));
    }
}

#[derive(Clone, Copy, Debug)]
struct Node {
    threshold: f64,
    output: f64,
    feature: u32,
    /// Child where the value is at or below the threshold; the other one follows it. 0 for a leaf.
    child: u32,
}

struct Forest {
    nodes: Vec<Node>,
    roots: Vec<u32>,
    spreads: Vec<Option<Spread>>,
}

/// smartcore's forest as serde shows it; its nodes are private otherwise.
#[derive(Deserialize)]
struct Regressor {
    forest_regressor: Trees,
}

#[derive(Deserialize)]
struct Trees {
    trees: Vec<Tree>,
}

#[derive(Deserialize)]
struct Tree {
    nodes: Vec<TreeNode>,
}

#[derive(Deserialize)]
struct TreeNode {
    output: f64,
    split_feature: usize,
    split_value: Option<f64>,
    true_child: Option<usize>,
    false_child: Option<usize>,
}

impl Forest {
    /// None when smartcore cannot fit the rows.
    fn grow(config: &Config, rows: &[f64], seed: u64) -> Option<Self> {
        let (matrix, labels, spreads) = contrast(config, rows, seed)?;
        let parameters = ExtraTreesRegressorParameters::default()
            .with_n_trees(config.trees)
            .with_min_samples_leaf(config.leaf)
            .with_min_samples_split(2 * config.leaf)
            .with_seed(seed);
        let fitted = ExtraTreesRegressor::fit(&matrix, &labels, parameters).ok()?;
        let shown = serde_json::to_value(&fitted).ok()?;
        Self::compile(Regressor::deserialize(shown).ok()?, spreads)
    }

    fn compile(regressor: Regressor, spreads: Vec<Option<Spread>>) -> Option<Self> {
        let mut forest = Self {
            nodes: Vec::new(),
            roots: Vec::new(),
            spreads,
        };
        for tree in regressor.forest_regressor.trees {
            forest.roots.push(forest.nodes.len() as u32);
            let leaf = |from: &TreeNode| Node {
                threshold: 0.0,
                output: from.output,
                feature: 0,
                child: 0,
            };
            forest.nodes.push(leaf(tree.nodes.first()?));
            let mut waiting = vec![(0, forest.nodes.len() - 1)];
            while let Some((from, at)) = waiting.pop() {
                let node = tree.nodes.get(from)?;
                let (Some(low), Some(high)) = (node.true_child, node.false_child) else {
                    continue;
                };
                let child = forest.nodes.len();
                forest.nodes.push(leaf(tree.nodes.get(low)?));
                forest.nodes.push(leaf(tree.nodes.get(high)?));
                forest.nodes[at].child = child as u32;
                forest.nodes[at].feature = node.split_feature as u32;
                forest.nodes[at].threshold = node.split_value.unwrap_or(f64::NAN);
                waiting.push((low, child));
                waiting.push((high, child + 1));
            }
        }
        Some(forest)
    }

    /// As smartcore predicts, in the same order of additions; optionally what each feature moved towards noise.
    fn predict(&self, row: &[f64], mut weights: Option<&mut [f64]>) -> f64 {
        let mut sum = 0.0;
        for root in &self.roots {
            let mut node = self.nodes[*root as usize];
            while node.child != 0 {
                let feature = node.feature as usize;
                let high = row[feature] > node.threshold || row[feature].is_nan();
                let next = self.nodes[node.child as usize + usize::from(high)];
                if let Some(weights) = weights.as_deref_mut() {
                    weights[feature] += (next.output - node.output).max(0.0);
                }
                node = next;
            }
            sum += node.output;
        }
        sum / self.roots.len() as f64
    }
}

/// What stands in for a value that is not known.
fn centre(spread: &Option<Spread>) -> f64 {
    spread.map_or(0.0, |spread| spread.median)
}

/// Rows labelled 0 and as much uniform noise labelled 1, and where the features lie.
type Contrast = (DenseMatrix<f64>, Vec<f64>, Vec<Option<Spread>>);

fn contrast(config: &Config, rows: &[f64], seed: u64) -> Option<Contrast> {
    let width = config.features;
    let count = rows.len() / width;
    let spreads = Spread::of(rows, width);
    let bounds: Vec<(f64, f64)> = spreads
        .iter()
        .map(|spread| {
            let (low, high) = spread.map_or((0.0, 0.0), |spread| (spread.low, spread.high));
            let margin = MARGIN * (high - low).max(0.1 * high.abs().max(low.abs())).max(1e-9);
            (low - margin, high + margin)
        })
        .collect();
    let mut random = Random::new(seed ^ 0x006e_6f69_7365);
    let mut values = Vec::with_capacity(2 * rows.len());
    for (index, value) in rows.iter().enumerate() {
        values.push(if value.is_nan() {
            centre(&spreads[index % width])
        } else {
            *value
        });
    }
    for _ in 0..count {
        for (low, high) in &bounds {
            values.push(low + (high - low) * random.unit());
        }
    }
    let labels = (0..2 * count).map(|row| if row < count { 0.0 } else { 1.0 }).collect();
    let matrix = DenseMatrix::new(2 * count, width, values, false).ok()?;
    Some((matrix, labels, spreads))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiled_trees_predict_what_smartcore_predicts() {
        let config = Config {
            trees: 20,
            samples: 200,
            leaf: 2,
            warmup: 200,
            contamination: 0.01,
            features: 5,
        };
        let mut random = Random::new(9);
        let rows: Vec<f64> = (0..1000).map(|_| random.unit() * random.unit()).collect();
        let (matrix, labels, spreads) = contrast(&config, &rows, 7).expect("rows make a matrix");
        let parameters = ExtraTreesRegressorParameters::default().with_n_trees(20).with_seed(3);
        let fitted = ExtraTreesRegressor::fit(&matrix, &labels, parameters).expect("fits");
        let shown = serde_json::to_value(&fitted).expect("serialises");
        let forest =
            Forest::compile(Regressor::deserialize(shown).expect("is what serde shows"), spreads).expect("compiles");
        let asked: Vec<f64> = (0..500).map(|_| 2.0 * random.unit() - 0.5).collect();
        let asked_matrix = DenseMatrix::new(100, 5, asked.clone(), false).expect("rows make a matrix");
        let expected: Vec<f64> = fitted.predict(&asked_matrix).expect("predicts");
        for (row, expected) in asked.chunks_exact(5).zip(expected) {
            assert_eq!(forest.predict(row, None).to_bits(), expected.to_bits());
        }
    }
}
