//! `markov_surprise`: how improbable the step from the value `lag` rows ago to this one is.
//!
//! A first-order chain over 32 levels of the range, estimated after Krichevsky and Trofimov, The performance of universal encoding, 1981: the
//! conditional frequency, backed off to the marginal one, backed off to a half count a level. Surprise is −ln of it.

use std::sync::Arc;

use crate::calibration::PROMISE;
use crate::cells::{Move, SIDE, cell};
use crate::codec::{Reader, Writer};
use crate::evidence::Scale;
use crate::novelty::{Here, Novelty, NoveltyConfig, Recent, View};
use crate::parameter::{Kind, Options, Parameter};
use crate::range_novelty::{THRESHOLD, WARMUP};
use crate::series::PerFeature;
use crate::{Detector, Error, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS, PROMISE];
pub(crate) const NAME: &str = "markov_surprise";

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "lag",
        kind: Kind::Integer {
            min: 1,
            max: Recent::ROWS as i64,
        },
        default: "16",
        expected: "an integer from 1 to 32",
        help: "rows between the two values of a step",
    },
    THRESHOLD,
    WARMUP,
];

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let config = NoveltyConfig {
        view: options.count("lag"),
        threshold: options.required("threshold"),
        warmup: options.count("warmup") as u32,
    };
    PerFeature::<Novelty<Chain>>::detector(config, &options, features)
}

struct Chain {
    counts: Box<[[u16; SIDE]; SIDE]>,
}

impl View for Chain {
    type Config = usize;
    const NAME: &'static str = NAME;
    const TAG: u8 = 13;
    const SCALE: Scale = Scale { floor: 7.2, usual: 2.4 };

    fn fresh(_lag: &usize) -> Self {
        Self {
            counts: Box::new([[0; SIDE]; SIDE]),
        }
    }

    fn shift(&mut self, by: Move) {
        let mut moved = Box::new([[0u16; SIDE]; SIDE]);
        for (from, row) in self.counts.iter().enumerate() {
            for (to, count) in row.iter().enumerate().filter(|(_, count)| **count > 0) {
                let kept = &mut moved[by.cell(from)][by.cell(to)];
                *kept = kept.saturating_add(*count);
            }
        }
        self.counts = moved;
    }

    fn distance(&mut self, lag: &usize, here: &Here<'_>) -> f64 {
        let Some(from) = here.recent.back(*lag) else {
            return 0.0;
        };
        let to = cell(here.position);
        let row = &self.counts[cell(from)];
        let sum = |row: &[u16; SIDE]| row.iter().map(|count| u32::from(*count)).sum::<u32>();
        let all: u32 = self.counts.iter().map(sum).sum();
        let marginal: u32 = self.counts.iter().map(|row| u32::from(row[to])).sum();
        let prior = (f64::from(marginal) + 0.5) / (f64::from(all) + 0.5 * SIDE as f64);
        -((f64::from(row[to]) + prior) / (f64::from(sum(row)) + 1.0)).ln()
    }

    fn learn(&mut self, lag: &usize, here: &Here<'_>) {
        let Some(from) = here.recent.back(*lag) else {
            return;
        };
        let count = &mut self.counts[cell(from)][cell(here.position)];
        if *count == u16::MAX {
            for count in self.counts.iter_mut().flatten() {
                *count /= 2;
            }
        }
        self.counts[cell(from)][cell(here.position)] += 1;
    }

    fn write(&self, writer: &mut Writer<'_>) {
        for count in self.counts.iter().flatten() {
            writer.u16(*count);
        }
    }

    fn read(lag: &usize, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut chain = Self::fresh(lag);
        for count in chain.counts.iter_mut().flatten() {
            *count = reader.u16()?;
        }
        Ok(chain)
    }

    fn size_max(_lag: &usize) -> usize {
        2 * SIDE * SIDE
    }
}
