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

/// Categories that are compared with a pattern at once.
const LANES: usize = 16;
const GROUPS: usize = CATEGORIES / LANES;

type Pattern = [u8; BLOCKS];
/// Corners by group of categories, then by block: what one instruction takes lies together.
type Corners = [[[u8; LANES]; BLOCKS]; GROUPS];

#[derive(Clone)]
#[repr(C)]
pub(crate) struct FuzzyArt {
    distance: f64,
    usual: Usual,
    pattern: Pattern,
    clock: u32,
    known: u8,
    nearest: u8,
    resonated: [u32; CATEGORIES],
    lower: Corners,
    upper: Corners,
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
            lower: [[[0; LANES]; BLOCKS]; GROUPS],
            upper: [[[0; LANES]; BLOCKS]; GROUPS],
            resonated: [0; CATEGORIES],
            pattern: [0; BLOCKS],
            nearest: 0,
            distance: 0.0,
        }
    }

    fn shift(&mut self, by: Move) {
        for corner in self.lower.iter_mut().chain(&mut self.upper).flatten().flatten() {
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
        put(&mut self.lower, at, &self.pattern);
        put(&mut self.upper, at, &self.pattern);
        self.resonated[at] = self.clock;
    }

    fn write(&self, writer: &mut Writer<'_>) {
        self.usual.write(writer);
        writer.u32(self.clock);
        writer.u8(self.known);
        for at in 0..usize::from(self.known) {
            writer.bytes(&corner(&self.lower, at));
            writer.bytes(&corner(&self.upper, at));
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
            for corners in [&mut view.lower, &mut view.upper] {
                let mut corner = [0; BLOCKS];
                reader.bytes(&mut corner)?;
                put(corners, at, &corner);
            }
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

    /// As [`crate::State::touch`]: the categories that are compared first; most patterns lie in one of them. Four blocks are a cache line.
    pub(crate) fn touch(&self) -> u32 {
        let corners = [&self.lower[0], &self.upper[0]];
        corners.into_iter().fold(self.clock, |read, group| {
            read ^ u32::from(group[0][0] ^ group[BLOCKS / 2][0])
        })
    }

    /// City-block distance to the nearest box; of several the oldest.
    fn find(&mut self) -> u16 {
        let mut least = i16::MAX;
        let known = usize::from(self.known);
        for (group, (lower, upper)) in self.lower[..known.div_ceil(LANES)].iter().zip(&self.upper).enumerate() {
            let mut distances = [0i16; LANES];
            for ((low, high), value) in lower.iter().zip(upper).zip(self.pattern) {
                for ((distance, low), high) in distances.iter_mut().zip(low).zip(high) {
                    // At most one of them is not 0.
                    *distance += i16::from(low.saturating_sub(value) | value.saturating_sub(*high));
                }
            }
            let first = group * LANES;
            if known - first < LANES {
                distances[known - first..].fill(i16::MAX);
            }
            let nearest = distances.iter().fold(i16::MAX, |least, distance| least.min(*distance));
            if nearest < least {
                least = nearest;
                let at = distances.iter().position(|distance| *distance == nearest);
                self.nearest = (first + at.unwrap_or(0)) as u8;
            }
            if least == 0 {
                break;
            }
        }
        least as u16
    }

    /// Grows the nearest box to hold the pattern, unless it would outgrow its size.
    fn resonate(&mut self, spans: f64) -> bool {
        let at = usize::from(self.nearest);
        if self.distance > 0.0 {
            let (mut lower, mut upper) = (corner(&self.lower, at), corner(&self.upper, at));
            let mut size = 0u32;
            for ((low, high), value) in lower.iter_mut().zip(&mut upper).zip(self.pattern) {
                *low = (*low).min(value);
                *high = (*high).max(value);
                size += u32::from(*high - *low);
            }
            if f64::from(size) / (256 * BLOCKS) as f64 * spans >= SIZE_MAX {
                return false;
            }
            put(&mut self.lower, at, &lower);
            put(&mut self.upper, at, &upper);
        }
        self.resonated[at] = self.clock;
        true
    }
}

/// Corner of a category.
fn corner(corners: &Corners, at: usize) -> Pattern {
    std::array::from_fn(|block| corners[at / LANES][block][at % LANES])
}

fn put(corners: &mut Corners, at: usize, corner: &Pattern) {
    for (lanes, value) in corners[at / LANES].iter_mut().zip(corner) {
        lanes[at % LANES] = *value;
    }
}
