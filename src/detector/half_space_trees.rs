//! `half_space_trees`: mass in random half-space trees, one window against the one before.
//!
//! Tan, Ting and Liu, Fast anomaly detection for streaming data, IJCAI 2011; parameters as in River. Trees are random and never change;
//! only masses do: a window's masses become the reference when the next window begins. Features are scaled to
//! [0, 1] by their range so far, taken from the first window on.

use std::sync::Arc;

use crate::codec::{Reader, Writer};
use crate::parameter::{Kind, Options, Parameter};
use crate::random::Random;
use crate::ranking::Ranking;
use crate::series::Band;
use crate::{Detector, Error, Row, Score, State, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS];
pub(crate) const NAME: &str = "half_space_trees";
const TAG: u8 = 17;
const VERSION: u8 = 2;

pub(crate) const CONTAMINATION: Parameter = Parameter {
    name: "contamination",
    kind: Kind::Number { min: 1e-6, max: 0.5 },
    default: "0.005",
    expected: "a number from 0.000001 to 0.5",
    help: "share of rows beyond the alarm level",
};

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "n_trees",
        kind: Kind::Integer { min: 1, max: 200 },
        default: "25",
        expected: "an integer from 1 to 200",
        help: "trees",
    },
    Parameter {
        name: "height",
        kind: Kind::Integer { min: 1, max: 12 },
        default: "8",
        expected: "an integer from 1 to 12",
        help: "splits from root to leaf",
    },
    Parameter {
        name: "window_size",
        kind: Kind::Integer { min: 8, max: 50_000 },
        default: "250",
        expected: "an integer from 8 to 50000",
        help: "rows of a window; the first is the warm-up",
    },
    CONTAMINATION,
];

#[derive(Clone, Copy)]
struct Config {
    trees: usize,
    height: usize,
    window: u32,
    contamination: f64,
    features: usize,
}

impl Config {
    fn nodes(&self) -> usize {
        (1 << (self.height + 1)) - 1
    }
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
    Ok(Arc::new(HalfSpaceTrees {
        config: Config {
            trees: options.count("n_trees"),
            height: options.count("height"),
            window: options.count("window_size") as u32,
            contamination: options.required("contamination"),
            features,
        },
    }))
}

struct HalfSpaceTrees {
    config: Config,
}

impl Detector for HalfSpaceTrees {
    fn name(&self) -> &'static str {
        NAME
    }

    fn state_size_max(&self) -> usize {
        let config = &self.config;
        4 + 13 + (16 + Band::BYTES + 1) * config.features + 4 * config.trees * config.nodes() + Ranking::BYTES
    }

    fn fresh(&self, entity: u64) -> Box<dyn State> {
        Box::new(Entity::new(self.config, entity))
    }

    fn restore(&self, _entity: u64, bytes: &[u8]) -> Result<Box<dyn State>, Error> {
        let mut reader = Reader::new(bytes);
        let version = reader.header(TAG, VERSION, self.config.features)?;
        let seed = reader.u64()?;
        let mut state = Entity::new(self.config, seed);
        state.rows = reader.u32()?;
        state.has_reference = reader.u8()? != 0;
        for (low, high) in &mut state.ranges {
            *low = reader.f64()?;
            *high = reader.f64()?;
        }
        for mass in state.reference.iter_mut().chain(&mut state.latest) {
            *mass = reader.u16()?;
        }
        state.ranking = Ranking::read(&mut reader)?;
        if version >= 2 {
            for (band, rows) in &mut state.bands {
                *band = Band::read(&mut reader)?;
                *rows = reader.u8()?;
            }
        }
        reader.finish()?;
        Ok(Box::new(state))
    }
}

/// A split: feature, and where on its unit range.
#[derive(Clone, Copy)]
struct Split {
    feature: u16,
    at: f32,
}

struct Entity {
    config: Config,
    seed: u64,
    /// All trees in heap order; a function of the seed, so no part of the snapshot.
    splits: Vec<Split>,
    ranges: Vec<(f64, f64)>,
    /// What to expect, and of how many rows it is.
    bands: Vec<(Band, u8)>,
    reference: Vec<u16>,
    latest: Vec<u16>,
    rows: u32,
    has_reference: bool,
    ranking: Ranking,
    unit: Vec<f32>,
}

impl State for Entity {
    fn score(&mut self, row: Row<'_>, out: &mut Score) {
        out.reset(self.config.features);
        if !self.place(row, out) {
            return;
        }
        if self.has_reference {
            let raw = self.rank(&mut out.contributions);
            if self.ranking.rows() >= 50.0 {
                let median = self.ranking.quantile(0.5);
                let alarm = self
                    .ranking
                    .quantile(self.config.contamination)
                    .max(self.ranking.quantile(0.02));
                let score = (raw - median) / (alarm - median).max(0.02);
                out.share(score.max(0.0));
            } else {
                out.contributions.fill(0.0);
            }
            if row.learn {
                let rows_max = 64.0 / self.config.contamination.max(1e-3);
                self.ranking.learn(raw, rows_max as f32);
            }
        }
        if row.learn {
            self.learn();
        }
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        let mut writer = Writer::new(out);
        writer.header(TAG, VERSION, self.config.features);
        writer.u64(self.seed);
        writer.u32(self.rows);
        writer.u8(u8::from(self.has_reference));
        for (low, high) in &self.ranges {
            writer.f64s(&[*low, *high]);
        }
        for mass in self.reference.iter().chain(&self.latest) {
            writer.u16(*mass);
        }
        self.ranking.write(&mut writer);
        for (band, rows) in &self.bands {
            band.write(&mut writer);
            writer.u8(*rows);
        }
    }
}

impl Entity {
    fn new(config: Config, entity: u64) -> Self {
        let mut random = Random::new(entity);
        let masses = config.trees * config.nodes();
        let mut splits = Vec::with_capacity(config.trees << config.height);
        for _ in 0..config.trees {
            grow(&config, &mut random, &mut splits);
        }
        Self {
            config,
            seed: entity,
            splits,
            ranges: vec![(f64::INFINITY, f64::NEG_INFINITY); config.features],
            bands: vec![(Band::default(), 0); config.features],
            reference: vec![0; masses],
            latest: vec![0; masses],
            rows: 0,
            has_reference: false,
            ranking: Ranking::new(),
            unit: vec![0.5; config.features],
        }
    }

    /// Scales the row into the unit cube; what is not known lies in the middle. False when nothing is known. Tells what was to be expected, once
    /// there is a score.
    fn place(&mut self, row: Row<'_>, out: &mut Score) -> bool {
        let mut any = false;
        for (index, unit) in self.unit.iter_mut().enumerate() {
            *unit = 0.5;
            let Some(value) = crate::known(row.features.get(index)) else {
                continue;
            };
            any = true;
            let (band, rows) = &mut self.bands[index];
            *rows = rows.saturating_add(u8::from(row.learn));
            let band = band.step(value, u32::from(*rows), row.learn);
            if self.has_reference {
                (out.expected[index], out.lower[index], out.upper[index]) = (band.expected, band.lower, band.upper);
            }
            let (low, high) = &mut self.ranges[index];
            if row.learn {
                *low = low.min(value);
                *high = high.max(value);
            }
            if *high > *low {
                *unit = ((value - *low) / (*high - *low)).clamp(-1.0, 2.0) as f32;
            }
        }
        any
    }

    /// Visits the path of every tree: tree, node, depth, and the feature that led to the node.
    fn paths(&self, mut visit: impl FnMut(usize, usize, usize, Option<u16>)) {
        let inner = (1 << self.config.height) - 1;
        for tree in 0..self.config.trees {
            let mut node = 0;
            let mut by = None;
            for depth in 0..=self.config.height {
                visit(tree, node, depth, by);
                if node < inner {
                    let split = self.splits[tree * inner + node];
                    by = Some(split.feature);
                    let right = self.unit[usize::from(split.feature)] >= split.at;
                    node = 2 * node + 1 + usize::from(right);
                }
            }
        }
    }

    /// 1 − mean mass of the leaves against uniform mass, clipped; weights by the mass lost at each split.
    fn rank(&self, weights: &mut [f64]) -> f64 {
        let nodes = self.config.nodes();
        let mut mass = 0.0;
        let mut before = 0.0;
        self.paths(|tree, node, depth, by| {
            let here = f64::from(self.reference[tree * nodes + node]);
            if let Some(feature) = by {
                weights[usize::from(feature)] += ((before + 1.0) / (here + 1.0)).ln().max(0.0);
            }
            before = here;
            if depth == self.config.height {
                mass += (1.0 + here).log2() + depth as f64;
            }
        });
        let most = self.config.height as f64 + f64::from(self.config.window + 1).log2();
        (1.0 - mass / self.config.trees as f64 / most).clamp(0.0, 1.0)
    }

    fn learn(&mut self) {
        let nodes = self.config.nodes();
        let mut latest = std::mem::take(&mut self.latest);
        self.paths(|tree, node, _, _| {
            let mass = &mut latest[tree * nodes + node];
            *mass = mass.saturating_add(1);
        });
        self.latest = latest;
        self.rows = self.rows.saturating_add(1);
        if self.rows >= self.config.window {
            self.rows = 0;
            self.has_reference = true;
            std::mem::swap(&mut self.reference, &mut self.latest);
            self.latest.fill(0);
        }
    }
}

/// A tree in heap order: every inner node halves the work range of a random feature.
fn grow(config: &Config, random: &mut Random, splits: &mut Vec<Split>) {
    // The work range of the paper: a random centre, wide enough to hold [0, 1].
    let mut ranges = vec![Vec::new(); 1 << config.height];
    ranges[0] = (0..config.features)
        .map(|_| {
            let centre = random.unit();
            let reach = 2.0 * centre.max(1.0 - centre);
            (centre - reach, centre + reach)
        })
        .collect();
    for node in 0..(1 << config.height) - 1 {
        let feature = random.below(config.features);
        let range: Vec<(f64, f64)> = std::mem::take(&mut ranges[node]);
        let (low, high) = range[feature];
        let middle = (low + high) / 2.0;
        splits.push(Split {
            feature: feature as u16,
            at: middle as f32,
        });
        for (child, half) in [(2 * node + 1, (low, middle)), (2 * node + 2, (middle, high))] {
            if let Some(place) = ranges.get_mut(child) {
                *place = range.clone();
                place[feature] = half;
            }
        }
    }
}
