//! `transition_novelty`: how far a pair of values, now and `lag` rows ago, lies from the nearest pair ever seen.
//!
//! A delay embedding in two dimensions (Takens, Detecting strange attractors in turbulence, 1981) whose visited cells are kept as
//! a bit map. Where a Markov chain asks how improbable a transition is, this asks how *far* it is from every transition seen, in
//! units of the range: a transition next to a known one is hardly news, however rare. It subsumes range novelty and costs
//! 128 bytes. Measured against the probability of the same transition in `docs/detection.md`.

use std::sync::Arc;

use crate::calibration::PROMISE;
use crate::cells::{Cells, Move, SIDE, cell};
use crate::codec::{Reader, Writer};
use crate::evidence::Scale;
use crate::novelty::{Here, Novelty, NoveltyConfig, Recent, View};
use crate::parameter::{Kind, Options, Parameter};
use crate::range_novelty::{THRESHOLD, WARMUP};
use crate::series::PerFeature;
use crate::{Detector, Error, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS, PROMISE];
pub(crate) const NAME: &str = "transition_novelty";
pub(crate) const SCALE: Scale = crate::range_novelty::SCALE;

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "lag",
        kind: Kind::Integer {
            min: 1,
            max: Recent::ROWS as i64,
        },
        default: "2",
        expected: "an integer from 1 to 32",
        help: "rows between the two values of a pair",
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
    PerFeature::<Novelty<Transitions>>::detector(config, &options, features)
}

/// How far the transition is from the nearest one seen, in ranges.
pub(crate) fn distance(cells: &Cells, from: usize, here: &Here<'_>) -> f64 {
    let away = match cells.distance(from, cell(here.position)) {
        0 => 0.0,
        away => away as f64 / SIDE as f64 * here.grid.spans(),
    };
    away + here.grid.off(here.value)
}

struct Transitions {
    cells: Cells,
}

impl View for Transitions {
    type Config = usize;
    const NAME: &'static str = NAME;
    const TAG: u8 = 6;
    const SCALE: Scale = SCALE;

    fn fresh(_lag: &usize) -> Self {
        Self {
            cells: Cells::default(),
        }
    }

    fn shift(&mut self, by: Move) {
        self.cells.shift(by, by);
    }

    fn distance(&mut self, lag: &usize, here: &Here<'_>) -> f64 {
        here.recent
            .back(*lag)
            .map_or(0.0, |from| distance(&self.cells, cell(from), here))
    }

    fn learn(&mut self, lag: &usize, here: &Here<'_>) {
        if let Some(from) = here.recent.back(*lag) {
            self.cells.set(cell(from), cell(here.position));
        }
    }

    fn write(&self, writer: &mut Writer<'_>) {
        self.cells.write(writer);
    }

    fn read(_lag: &usize, reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            cells: Cells::read(reader)?,
        })
    }

    fn size_max(_lag: &usize) -> usize {
        Cells::BYTES
    }
}
