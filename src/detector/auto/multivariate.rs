//! Several features of one entity: how far each one's transitions lie from a slow reference, and how they go together.
//!
//! Every feature keeps maps of its transitions two rows apart and of its pairs with two other features ([`crate::cells`]), each
//! twice: what is *known*, and what is *pending*. A row is held against the known only. Pending turns known in steps that grow with the
//! history, but not while an alarm stands: so a fault is judged by what was there before it, for its whole length, and a new normal is
//! accepted in the end.
//! The score is the distance summed over the features, smoothed over a few rows (a fault moves several features for several
//! rows, noise does not), over an alarm level: a floor plus a multiple of what is usual for the entity. So an entity whose features
//! always show a little that is new (noise, drift, a short history) is judged by its own calm; what it learns of that while an
//! alarm stands counts for little.

use std::sync::Arc;

use crate::calibration::{Calibration, Promise};
use crate::cells::{Cells, Grid, Move, SIDE, cell};
use crate::codec::{Reader, Writer};
use crate::series::Band;
use crate::{Detector, Error, Row, Score, State};

const TAG: u8 = 40;
const VERSION: u8 = 2;
const LAG: usize = 2;
/// Rows over which evidence is smoothed: an exponential mean.
const SMOOTHING_ROWS: f64 = 3.5;
/// Other features that each one is paired with.
const PARTNERS: usize = 2;
const MAPS: usize = 1 + PARTNERS;
/// What a transition and what all pairs of a feature count for.
const TRANSITION_SHARE: f64 = 0.7;
const PAIR_SHARE: f64 = 0.3 / PARTNERS as f64 * 0.8;
/// The alarm level: a sum of distances, in grids, over all features.
const LEVEL_FLOOR: f64 = 0.015;
/// Multiples of the usual sum of distances that the level lies above the floor.
const LEVEL_USUAL: f64 = 2.0;
/// Rows that the usual sum remembers.
const USUAL_ROWS: u32 = 4000;
/// The usual sum learns no row for more than so many levels, and a row of a standing alarm with this share of its weight.
const USUAL_MAX: f64 = 1.5;
const USUAL_ALARM_SHARE: f64 = 0.25;
/// Evidence below which a standing alarm ends.
const RELEASE: f64 = 0.7;
/// One row counts for so many alarm levels at most.
const ROW_MAX: f64 = 15.0;
/// What a feature can be away from the known at most, in grids.
const DISTANCE_MAX: f64 = 0.5;
/// How far off a feature counts in full, and its share beyond: one value far out in a heavy tail is not a fault of the entity.
const FEATURE_FULL: f64 = 0.05;
const FEATURE_SHARE: f64 = 0.2;
/// An alarm that stands puts this off for so long, or as long as the history is: a long fault is not cut short by the schedule.
const PATIENCE_ROWS: u32 = 4000;
/// Pending turns known when the history has grown by a quarter, and after so many rows at the latest.
const CONSOLIDATION_ROWS_MAX: u32 = 2000;

pub(crate) fn build(warmup: u32, promise: Promise, features: usize) -> Result<Arc<dyn Detector>, Error> {
    if features > 4096 {
        return Err(Error::Features {
            detector: super::NAME,
            expected: "1 to 4096",
            given: features,
        });
    }
    Ok(Arc::new(Ensemble {
        warmup,
        promise,
        features,
    }))
}

#[derive(Clone, Copy)]
struct Ensemble {
    warmup: u32,
    promise: Promise,
    features: usize,
}

impl Detector for Ensemble {
    fn name(&self) -> &'static str {
        super::NAME
    }

    fn state_size_max(&self) -> usize {
        4 + 9 + Usual::BYTES + Calibration::BYTES + self.features * Feature::BYTES
    }

    fn fresh(&self, _entity: u64) -> Box<dyn State> {
        Box::new(Entity {
            config: *self,
            rows: 0,
            consolidate_at: self.warmup,
            alarmed: false,
            usual: Usual::default(),
            calibration: Calibration::new(),
            features: (0..self.features).map(|_| Feature::new()).collect(),
        })
    }

    fn restore(&self, _entity: u64, bytes: &[u8]) -> Result<Box<dyn State>, Error> {
        let mut reader = Reader::new(bytes);
        let version = reader.header(TAG, VERSION, self.features)?;
        let rows = reader.u32()?;
        let consolidate_at = reader.u32()?;
        let alarmed = reader.u8()? != 0;
        let usual = (version >= 2).then(|| Usual::read(&mut reader)).transpose()?;
        let calibration = Calibration::read(&mut reader)?;
        let features: Box<[Feature]> = (0..self.features)
            .map(|_| Feature::read(version, &mut reader))
            .collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Box::new(Entity {
            config: *self,
            rows,
            consolidate_at,
            alarmed,
            // Version 1 had a fixed level: what it saw last is the first that is usual.
            usual: usual.unwrap_or_else(|| Usual {
                mean: features.iter().map(|feature| feature.smoothed).sum(),
                rows: SMOOTHING_ROWS as u32,
            }),
            calibration,
            features,
        }))
    }
}

struct Entity {
    config: Ensemble,
    rows: u32,
    consolidate_at: u32,
    /// An alarm stands until evidence falls to [`RELEASE`].
    alarmed: bool,
    usual: Usual,
    calibration: Calibration,
    features: Box<[Feature]>,
}

impl State for Entity {
    fn score(&mut self, row: Row<'_>, out: &mut Score) {
        out.reset(self.features.len());
        let warm = self.rows >= self.config.warmup;
        let known = self.place(row);
        let total = self.measure(row.learn, warm, &mut out.contributions);
        let level = self.usual.level();
        let most = if warm { ROW_MAX * level } else { f64::INFINITY };
        let clip = if total > most { most / total } else { 1.0 };
        let mut smoothed = 0.0;
        for (index, feature) in self.features.iter_mut().enumerate() {
            let change = out.contributions[index] * clip - f64::from(feature.smoothed);
            feature.smoothed = (f64::from(feature.smoothed) + change / SMOOTHING_ROWS) as f32;
            smoothed += f64::from(feature.smoothed);
            out.contributions[index] = f64::from(feature.smoothed) / level;
            if let Some(now) = feature.now {
                let band = feature
                    .band
                    .step(now.value, u32::from(feature.rows), row.learn && !self.alarmed);
                (out.expected[index], out.lower[index], out.upper[index]) = (band.expected, band.lower, band.upper);
            }
        }
        if known && row.learn {
            self.rows = self.rows.saturating_add(1);
            let patience = if self.alarmed { self.rows.min(PATIENCE_ROWS) } else { 0 };
            if self.rows >= self.consolidate_at.saturating_add(patience) {
                self.consolidate();
            }
        }
        let mut evidence = f64::NAN;
        if warm {
            evidence = crate::bounded(out.contributions.iter().sum());
            self.alarmed = evidence >= 1.0 || (self.alarmed && evidence >= RELEASE);
            out.share(if self.alarmed { evidence.max(1.0) } else { evidence });
        } else {
            out.contributions.fill(0.0);
        }
        if known && row.learn && self.rows > self.config.warmup / 2 {
            self.usual.learn(smoothed, warm, self.alarmed);
        }
        self.calibration.finish(self.config.promise, row, evidence, out);
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        let mut writer = Writer::new(out);
        writer.header(TAG, VERSION, self.features.len());
        writer.u32(self.rows);
        writer.u32(self.consolidate_at);
        writer.u8(u8::from(self.alarmed));
        self.usual.write(&mut writer);
        self.calibration.write(&mut writer);
        for feature in &self.features {
            feature.write(&mut writer);
        }
    }
}

impl Entity {
    /// Takes the row into the grids. True when any of its values is known.
    fn place(&mut self, row: Row<'_>) -> bool {
        let mut known = false;
        let count = self.features.len();
        for index in 0..count {
            let value = crate::known(row.features.get(index));
            let feature = &mut self.features[index];
            feature.now = value.map(|value| {
                known = true;
                let moved = if row.learn { feature.grid.widen(value) } else { None };
                Now {
                    value,
                    moved,
                    off: feature.grid.off(value),
                    position: feature.grid.position(value),
                }
            });
            let Some(Now { moved: Some(by), .. }) = feature.now else {
                continue;
            };
            for position in &mut feature.recent {
                *position = by.position(*position);
            }
            for maps in [&mut feature.known, &mut feature.pending] {
                maps[0].shift(by, by);
                for pair in &mut maps[1..] {
                    pair.shift(by, Move::NONE);
                }
            }
            for partner in 1..=PARTNERS {
                let other = &mut self.features[(index + count - partner % count) % count];
                for maps in [&mut other.known, &mut other.pending] {
                    maps[partner].shift(Move::NONE, by);
                }
            }
        }
        known
    }

    /// Distances of the row from what is known, per feature; then the row is pending. Returns their sum.
    fn measure(&mut self, learn: bool, warm: bool, distances: &mut [f64]) -> f64 {
        let mut total = 0.0;
        let count = self.features.len();
        for (index, counted) in distances.iter_mut().enumerate() {
            let partners: [Option<u16>; PARTNERS] =
                std::array::from_fn(|partner| self.features[(index + partner + 1) % count].now.map(|now| now.position));
            let feature = &mut self.features[index];
            let Some(Now { off, position, .. }) = feature.now else {
                *counted = 0.0;
                continue;
            };
            let to = cell(position);
            let from = (usize::from(feature.rows) >= LAG).then(|| cell(feature.recent[LAG - 1]));
            let mut distance = TRANSITION_SHARE * off.min(DISTANCE_MAX);
            if let Some(from) = from {
                distance += TRANSITION_SHARE * feature.judge(0, from, to, learn, warm);
            }
            for (partner, position) in partners.into_iter().enumerate() {
                if let Some(position) = position {
                    distance += PAIR_SHARE * feature.judge(partner + 1, to, cell(position), learn, warm);
                }
            }
            feature.rows = feature.rows.saturating_add(1);
            feature.recent.copy_within(..LAG - 1, 1);
            feature.recent[0] = position;
            *counted = distance.min(FEATURE_FULL) + FEATURE_SHARE * (distance - FEATURE_FULL).max(0.0);
            total += *counted;
        }
        total
    }

    fn consolidate(&mut self) {
        let grown = (self.rows / 4).min(CONSOLIDATION_ROWS_MAX);
        self.consolidate_at = self.rows.saturating_add(grown.max(1));
        for feature in &mut self.features {
            for (known, pending) in feature.known.iter_mut().zip(&mut feature.pending) {
                known.merge(pending);
            }
        }
    }
}

/// What is usual for the sum of distances: a mean with a long memory.
#[derive(Clone, Copy, Default)]
struct Usual {
    mean: f32,
    rows: u32,
}

impl Usual {
    const BYTES: usize = 8;

    /// The sum of distances that alarms.
    fn level(&self) -> f64 {
        LEVEL_FLOOR + LEVEL_USUAL * f64::from(self.mean)
    }

    fn learn(&mut self, sum: f64, warm: bool, alarmed: bool) {
        let counted = if warm { sum.min(USUAL_MAX * self.level()) } else { sum };
        self.rows = (self.rows + 1).min(USUAL_ROWS);
        let share = if alarmed { USUAL_ALARM_SHARE } else { 1.0 };
        let mean = f64::from(self.mean);
        self.mean = (mean + share * (counted - mean) / f64::from(self.rows)) as f32;
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.f32(self.mean);
        writer.u32(self.rows);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let usual = Self {
            mean: reader.f32()?,
            rows: reader.u32()?,
        };
        if usual.mean.is_finite() && usual.mean >= 0.0 && usual.rows <= USUAL_ROWS {
            Ok(usual)
        } else {
            Err(Error::State("a usual distance is not one".into()))
        }
    }
}

/// The value of the present row: how the grid moved for it, how far off the grid it lies, where it lies.
#[derive(Clone, Copy)]
struct Now {
    value: f64,
    moved: Option<Move>,
    off: f64,
    position: u16,
}

struct Feature {
    grid: Grid,
    /// Positions of the last rows, newest first.
    recent: [u16; LAG],
    rows: u8,
    /// Transitions, then pairs with the next features.
    known: [Cells; MAPS],
    pending: [Cells; MAPS],
    smoothed: f32,
    band: Band,
    now: Option<Now>,
}

impl Feature {
    const BYTES: usize = Grid::BYTES + 2 * LAG + 1 + 2 * MAPS * Cells::BYTES + 4 + Band::BYTES;

    fn new() -> Self {
        Self {
            grid: Grid::new(),
            recent: [0; LAG],
            rows: 0,
            known: [Cells::default(); MAPS],
            pending: [Cells::default(); MAPS],
            smoothed: 0.0,
            band: Band::default(),
            now: None,
        }
    }

    fn judge(&mut self, map: usize, row: usize, column: usize, learn: bool, warm: bool) -> f64 {
        let distance = (self.known[map].distance(row, column) as f64 / SIDE as f64).min(DISTANCE_MAX);
        if learn {
            let maps = if warm { &mut self.pending } else { &mut self.known };
            maps[map].set(row, column);
        }
        distance
    }

    fn write(&self, writer: &mut Writer<'_>) {
        self.grid.write(writer);
        for position in self.recent {
            writer.u16(position);
        }
        writer.u8(self.rows);
        for map in self.known.iter().chain(&self.pending) {
            map.write(writer);
        }
        writer.f32(self.smoothed);
        self.band.write(writer);
    }

    fn read(version: u8, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut feature = Self::new();
        feature.grid = Grid::read(reader)?;
        for position in &mut feature.recent {
            *position = reader.u16()?;
        }
        feature.rows = reader.u8()?;
        for map in feature.known.iter_mut().chain(&mut feature.pending) {
            *map = Cells::read(reader)?;
        }
        feature.smoothed = reader.f32()?;
        if !(feature.smoothed >= 0.0 && feature.smoothed <= 10.0) {
            return Err(Error::State("a distance is not one".into()));
        }
        if version >= 2 {
            feature.band = Band::read(reader)?;
        }
        Ok(feature)
    }
}
