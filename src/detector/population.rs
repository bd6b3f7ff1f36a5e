//! `population`: an entity against its peers at the same time.
//!
//! A row holds the entity's own features first and then the same features of its peers, peer by peer. Each feature's robust distance from
//! the peers' median (Rousseeuw and Croux, Alternatives to the median absolute deviation, 1993, motivate the scale) is
//! compared with what is usual for this entity, in deviations of the peers or of its own, whichever are wider: a service that
//! always runs hotter than the others is no news.
//! Fewer peers than `min_peers` say nothing.

use std::sync::Arc;

use crate::calibration::{Calibration, PROMISE, Promise};
use crate::codec::{Reader, Writer};
use crate::ewma::Moments;
use crate::parameter::{Kind, Options, Parameter};
use crate::{Detector, Error, Row, Score, State, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS, PROMISE];
pub(crate) const NAME: &str = "population";
const TAG: u8 = 23;
/// Rows after which an entity's place among its peers is known.
const PLACE_ROWS: u32 = 20;

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "threshold",
        kind: Kind::Number { min: 0.1, max: 1e6 },
        default: "5",
        expected: "a number from 0.1 to 1000000",
        help: "robust deviations from the peers, beyond what is usual, that alarm",
    },
    Parameter {
        name: "min_peers",
        kind: Kind::Integer { min: 3, max: 10_000 },
        default: "4",
        expected: "an integer from 3 to 10000",
        help: "peers below which nothing is said",
    },
];

#[derive(Clone, Copy)]
struct Config {
    threshold: f64,
    peers_min: usize,
    features: usize,
    promise: Promise,
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    if !(1..=4096).contains(&features) {
        return Err(Error::Features {
            detector: NAME,
            expected: "1 to 4096",
            given: features,
        });
    }
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    Ok(Arc::new(Population {
        config: Config {
            threshold: options.required("threshold"),
            peers_min: options.count("min_peers"),
            features,
            promise: Promise::read(&options)?,
        },
    }))
}

struct Population {
    config: Config,
}

impl Detector for Population {
    fn name(&self) -> &'static str {
        NAME
    }

    fn state_size_max(&self) -> usize {
        4 + Calibration::BYTES + self.config.features * Moments::BYTES
    }

    fn fresh(&self, _entity: u64) -> Box<dyn State> {
        Box::new(Entity {
            config: self.config,
            calibration: Calibration::new(),
            usual: vec![Moments::new(); self.config.features],
            peers: Vec::new(),
        })
    }

    fn restore(&self, _entity: u64, bytes: &[u8]) -> Result<Box<dyn State>, Error> {
        let mut reader = Reader::new(bytes);
        reader.header(TAG, 1, self.config.features)?;
        let calibration = Calibration::read(&mut reader)?;
        let usual = (0..self.config.features)
            .map(|_| Moments::read(&mut reader))
            .collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Box::new(Entity {
            config: self.config,
            calibration,
            usual,
            peers: Vec::new(),
        }))
    }
}

struct Entity {
    config: Config,
    calibration: Calibration,
    /// The usual distance of each feature, with its sign.
    usual: Vec<Moments>,
    peers: Vec<f64>,
}

impl State for Entity {
    fn score(&mut self, row: Row<'_>, out: &mut Score) {
        let width = self.config.features;
        out.reset(width);
        let mut evidence = f64::NAN;
        for index in 0..width {
            let Some(value) = crate::known(row.features.get(index)) else {
                continue;
            };
            self.peers.clear();
            self.peers.extend(
                row.features
                    .iter()
                    .skip(width + index)
                    .step_by(width)
                    .filter_map(|value| crate::known(Some(value))),
            );
            if self.peers.len() < self.config.peers_min {
                continue;
            }
            let (median, spread) = centre(&mut self.peers);
            let usual = &mut self.usual[index];
            // Until its place is known an entity stands where its peers do.
            let (offset, own) = if usual.rows < PLACE_ROWS {
                (usual.mean * f64::from(usual.rows) / f64::from(PLACE_ROWS), 0.0)
            } else {
                (usual.mean, usual.deviation())
            };
            let width = self.config.threshold * spread.max(own);
            let departure = value - median - offset;
            let score = departure.abs() / width;
            out.contributions[index] = crate::bounded(score);
            out.expected[index] = median + offset;
            out.lower[index] = out.expected[index] - width;
            out.upper[index] = out.expected[index] + width;
            evidence = evidence.max(crate::bounded(score));
            if row.learn {
                usual.learn(offset + departure.clamp(-width, width), 1e-3);
            }
        }
        out.share_by_square();
        self.calibration.finish(self.config.promise, row, evidence, out);
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        let mut writer = Writer::new(out);
        writer.header(TAG, 1, self.config.features);
        self.calibration.write(&mut writer);
        for usual in &self.usual {
            usual.write(&mut writer);
        }
    }
}

/// Median and robust deviation, never 0.
fn centre(values: &mut [f64]) -> (f64, f64) {
    values.sort_unstable_by(f64::total_cmp);
    let middle = |sorted: &[f64]| sorted[(sorted.len() - 1) / 2] / 2.0 + sorted[sorted.len() / 2] / 2.0;
    let median = middle(values);
    for value in values.iter_mut() {
        *value = (*value - median).abs();
    }
    values.sort_unstable_by(f64::total_cmp);
    (median, (1.4826 * middle(values)).max(0.01 * median.abs()).max(1e-9))
}
