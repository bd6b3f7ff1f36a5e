//! `fuzzy_art`: novelty of shape. Categories of the last 32 rows, learned by fuzzy ART.
//!
//! Carpenter, Grossberg and Rosen, Fuzzy ART: fast stable learning and categorization of analog patterns, 1991. A pattern is eight
//! means of four rows each, complement coded, so that a category is a box (its corners are the weights) and the match
//! |I ∧ w| / |I| is one minus the size of the smallest box that holds both. The pattern's distance from the nearest box is
//! the novelty. The vigilance adapts to how far patterns of this series usually lie from their box; a category may not outgrow a fixed
//! size. When all categories are taken, the one least recently in resonance gives way.

use std::sync::Arc;

use crate::calibration::PROMISE;
use crate::cells::Move;
use crate::codec::{Reader, Writer};
use crate::evidence::{Scale, Usual};
use crate::novelty::{Here, Novelty, NoveltyConfig, Recent, View};
use crate::parameter::{Options, Parameter};
use crate::range_novelty::{THRESHOLD, WARMUP};
use crate::series::PerFeature;
use crate::{Detector, Error, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS, PROMISE];
pub(crate) const NAME: &str = "fuzzy_art";
pub(crate) const PARAMETERS: &[Parameter] = &[THRESHOLD, WARMUP];
pub(crate) const SCALE: Scale = Scale { floor: 0.1, usual: 3.0 };

const BLOCKS: usize = 8;
const BLOCK_ROWS: usize = Recent::ROWS / BLOCKS;
const CATEGORIES: usize = 128;
/// Mean width of a category over the blocks, in ranges.
const SIZE_MAX: f64 = 0.15;
/// Distance within which a category resonates, in ranges: a floor and a multiple of the usual.
const TOLERANCE: Scale = Scale {
    floor: 0.05,
    usual: 2.0,
};

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let config = NoveltyConfig {
        view: (),
        threshold: options.required("threshold"),
        warmup: options.count("warmup") as u32,
    };
    PerFeature::<Novelty<FuzzyArt>>::detector(config, &options, features)
}

type Pattern = [u8; BLOCKS];

#[derive(Clone)]
pub(crate) struct FuzzyArt {
    usual: Usual,
    clock: u32,
    known: u8,
    lower: [Pattern; CATEGORIES],
    upper: [Pattern; CATEGORIES],
    resonated: [u32; CATEGORIES],
    pattern: Pattern,
    nearest: u8,
    distance: f64,
}

impl View for FuzzyArt {
    type Config = ();
    const NAME: &'static str = NAME;
    const TAG: u8 = 8;
    const SCALE: Scale = SCALE;

    fn fresh(_config: &()) -> Self {
        Self {
            usual: Usual::new(),
            clock: 0,
            known: 0,
            lower: [[0; BLOCKS]; CATEGORIES],
            upper: [[0; BLOCKS]; CATEGORIES],
            resonated: [0; CATEGORIES],
            pattern: [0; BLOCKS],
            nearest: 0,
            distance: 0.0,
        }
    }

    fn shift(&mut self, by: Move) {
        for corner in self.lower.iter_mut().chain(&mut self.upper).flatten() {
            *corner = (by.position((u16::from(*corner) << 8) + 128) >> 8) as u8;
        }
    }

    fn distance(&mut self, _config: &(), here: &Here<'_>) -> f64 {
        self.distance = 0.0;
        if (here.recent.rows as usize) < Recent::ROWS - 1 {
            return 0.0;
        }
        for (part, sum) in self.pattern.iter_mut().zip(here.recent.blocks(here.position)) {
            *part = ((sum / BLOCK_ROWS as u32) >> 8) as u8;
        }
        if self.known > 0 {
            self.distance = f64::from(self.find()) / (256 * BLOCKS) as f64 * here.grid.spans();
        }
        self.distance
    }

    fn learn(&mut self, _config: &(), here: &Here<'_>) {
        if (here.recent.rows as usize) < Recent::ROWS - 1 {
            return;
        }
        self.clock = self.clock.saturating_add(1);
        let tolerance = TOLERANCE.floor + TOLERANCE.usual * self.usual.mean();
        self.usual.learn(TOLERANCE, self.distance);
        if self.known > 0 && self.distance <= tolerance && self.resonate(here.grid.spans()) {
            return;
        }
        let at = if usize::from(self.known) < CATEGORIES {
            self.known += 1;
            usize::from(self.known) - 1
        } else {
            (0..CATEGORIES).min_by_key(|at| self.resonated[*at]).unwrap_or(0)
        };
        self.lower[at] = self.pattern;
        self.upper[at] = self.pattern;
        self.resonated[at] = self.clock;
    }

    fn write(&self, writer: &mut Writer<'_>) {
        self.usual.write(writer);
        writer.u32(self.clock);
        writer.u8(self.known);
        for at in 0..usize::from(self.known) {
            writer.bytes(&self.lower[at]);
            writer.bytes(&self.upper[at]);
            writer.u32(self.resonated[at]);
        }
    }

    fn read(config: &(), reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut view = Self::fresh(config);
        view.usual = Usual::read(reader)?;
        view.clock = reader.u32()?;
        view.known = reader.u8()?;
        if usize::from(view.known) > CATEGORIES {
            return Err(Error::State("categories are out of place".into()));
        }
        for at in 0..usize::from(view.known) {
            reader.bytes(&mut view.lower[at])?;
            reader.bytes(&mut view.upper[at])?;
            view.resonated[at] = reader.u32()?;
        }
        Ok(view)
    }

    fn size_max(_config: &()) -> usize {
        Self::BYTES
    }
}

impl FuzzyArt {
    pub(crate) const BYTES: usize = Usual::BYTES + 5 + CATEGORIES * (2 * BLOCKS + 4);

    /// As [`crate::State::touch`]: eight corners are a cache line.
    pub(crate) fn touch(&self) -> u32 {
        let known = usize::from(self.known);
        let corners = self.lower[..known]
            .iter()
            .step_by(8)
            .zip(self.upper[..known].iter().step_by(8));
        corners.fold(self.clock, |read, (lower, upper)| read ^ u32::from(lower[0] ^ upper[0]))
    }

    /// City-block distance to the nearest box.
    fn find(&mut self) -> u16 {
        let mut least = u16::MAX;
        let known = usize::from(self.known);
        for (at, (lower, upper)) in self.lower[..known].iter().zip(&self.upper[..known]).enumerate() {
            let mut distance = 0u16;
            for ((low, high), value) in lower.iter().zip(upper).zip(&self.pattern) {
                distance += u16::from(low.saturating_sub(*value)) + u16::from(value.saturating_sub(*high));
            }
            if distance < least {
                least = distance;
                self.nearest = at as u8;
            }
        }
        least
    }

    /// Grows the nearest box to hold the pattern, unless it would outgrow its size.
    fn resonate(&mut self, spans: f64) -> bool {
        let at = usize::from(self.nearest);
        let (lower, upper) = (&mut self.lower[at], &mut self.upper[at]);
        let mut size = 0u32;
        for ((low, high), value) in lower.iter().zip(upper.iter()).zip(&self.pattern) {
            size += u32::from(*high.max(value)) - u32::from(*low.min(value));
        }
        let inside = self.distance == 0.0;
        if !inside && f64::from(size) / (256 * BLOCKS) as f64 * spans >= SIZE_MAX {
            return false;
        }
        for ((low, high), value) in lower.iter_mut().zip(upper).zip(&self.pattern) {
            *low = (*low).min(*value);
            *high = (*high).max(*value);
        }
        self.resonated[at] = self.clock;
        true
    }
}
