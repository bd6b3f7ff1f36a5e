//! Several features of one entity: how far each one's transitions lie from a slow reference.
//!
//! Every feature keeps two maps of its transitions two rows apart: what is *known*, and what is *pending*. A row is held
//! against the known only. Pending turns known in steps that grow with the history: so a fault is judged by what was there
//! before it, for its whole length, and a new normal is accepted in the end. The score is the mean distance over the features, smoothed over a few rows
//! (a fault touches several features in a row or two, noise does not), over an alarm level that depends only on their number.

use std::sync::Arc;

use crate::calibration::{Calibration, Promise};
use crate::cells::{Cells, Grid, SIDE, cell};
use crate::codec::{Reader, Writer};
use crate::{Detector, Error, Row, Score, State};

const TAG: u8 = 40;
const LAG: usize = 2;
/// Rows over which evidence is smoothed.
const SMOOTHING: f64 = 5.0;
/// What a feature can be away from the known at most, in grids.
const DISTANCE_MAX: f64 = 0.5;
/// Rows after which pending turns known at the latest.
const CONSOLIDATION_MAX: u32 = 20_000;

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

impl Ensemble {
    /// Mean distance that alarms, in grids: many features average noise away, few do not.
    fn alarm(&self) -> f64 {
        0.0014 + 0.0052 / self.features as f64
    }
}

impl Detector for Ensemble {
    fn name(&self) -> &'static str {
        super::NAME
    }

    fn state_size_max(&self) -> usize {
        4 + 8 + Calibration::BYTES + self.features * Feature::BYTES
    }

    fn fresh(&self, _entity: u64) -> Box<dyn State> {
        Box::new(Entity {
            config: *self,
            rows: 0,
            consolidate_at: self.warmup,
            calibration: Calibration::new(),
            features: (0..self.features).map(|_| Feature::new()).collect(),
        })
    }

    fn restore(&self, entity: u64, bytes: &[u8]) -> Result<Box<dyn State>, Error> {
        let mut reader = Reader::new(bytes);
        reader.header(TAG, 1, self.features)?;
        let _ = entity;
        let rows = reader.u32()?;
        let consolidate_at = reader.u32()?;
        let calibration = Calibration::read(&mut reader)?;
        let features = (0..self.features)
            .map(|_| Feature::read(&mut reader))
            .collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Box::new(Entity {
            config: *self,
            rows,
            consolidate_at,
            calibration,
            features,
        }))
    }
}

struct Entity {
    config: Ensemble,
    rows: u32,
    consolidate_at: u32,
    calibration: Calibration,
    features: Box<[Feature]>,
}

impl State for Entity {
    fn score(&mut self, row: Row<'_>, out: &mut Score) {
        out.reset(self.features.len());
        let warm = self.rows >= self.config.warmup;
        let alarm = self.config.alarm() * self.features.len() as f64;
        let mut known = false;
        for (index, feature) in self.features.iter_mut().enumerate() {
            if let Some(value) = crate::known(row.features.get(index)) {
                known = true;
                feature.step(value, row.learn, warm);
            }
            out.contributions[index] = f64::from(feature.smoothed) / alarm;
            out.lower[index] = feature.grid.low;
            out.upper[index] = feature.grid.high;
        }
        if known && row.learn {
            self.rows = self.rows.saturating_add(1);
            if self.rows >= self.consolidate_at {
                self.consolidate();
            }
        }
        let mut evidence = f64::NAN;
        if warm {
            out.score = crate::bounded(out.contributions.iter().sum());
            evidence = out.score;
        } else {
            out.contributions.fill(0.0);
        }
        self.calibration.finish(self.config.promise, row, evidence, out);
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        let mut writer = Writer::new(out);
        writer.header(TAG, 1, self.features.len());
        writer.u32(self.rows);
        writer.u32(self.consolidate_at);
        self.calibration.write(&mut writer);
        for feature in &self.features {
            feature.write(&mut writer);
        }
    }
}

impl Entity {
    fn consolidate(&mut self) {
        self.consolidate_at = self.rows.saturating_add(self.rows.min(CONSOLIDATION_MAX));
        for feature in &mut self.features {
            feature.known.merge(&mut feature.pending);
        }
    }
}

struct Feature {
    grid: Grid,
    /// Positions of the last rows, newest first.
    recent: [u16; LAG],
    rows: u8,
    known: Cells,
    pending: Cells,
    smoothed: f32,
}

impl Feature {
    const BYTES: usize = Grid::BYTES + 2 * LAG + 1 + 2 * Cells::BYTES + 4;

    fn new() -> Self {
        Self {
            grid: Grid::new(),
            recent: [0; LAG],
            rows: 0,
            known: Cells::default(),
            pending: Cells::default(),
            smoothed: 0.0,
        }
    }

    fn step(&mut self, value: f64, learn: bool, warm: bool) {
        if learn && let Some(by) = self.grid.widen(value) {
            self.known.shift(by);
            self.pending.shift(by);
            for position in &mut self.recent {
                *position = by.position(*position);
            }
        }
        let position = self.grid.position(value);
        let mut distance = 0.0;
        if usize::from(self.rows) >= LAG {
            let (from, to) = (cell(self.recent[LAG - 1]), cell(position));
            if warm {
                distance = self.known.distance(from, to) as f64 / SIDE as f64 + self.grid.off(value);
            }
            if learn && warm {
                self.pending.set(from, to);
            } else if learn {
                self.known.set(from, to);
            }
        } else {
            self.rows += 1;
        }
        self.recent.copy_within(..LAG - 1, 1);
        self.recent[0] = position;
        let change = distance.min(DISTANCE_MAX) - f64::from(self.smoothed);
        self.smoothed = (f64::from(self.smoothed) + change / SMOOTHING) as f32;
    }

    fn write(&self, writer: &mut Writer<'_>) {
        self.grid.write(writer);
        for position in self.recent {
            writer.u16(position);
        }
        writer.u8(self.rows);
        self.known.write(writer);
        self.pending.write(writer);
        writer.f32(self.smoothed);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut feature = Self::new();
        feature.grid = Grid::read(reader)?;
        for position in &mut feature.recent {
            *position = reader.u16()?;
        }
        feature.rows = reader.u8()?;
        feature.known = Cells::read(reader)?;
        feature.pending = Cells::read(reader)?;
        feature.smoothed = reader.f32()?;
        if !(feature.smoothed >= 0.0 && feature.smoothed <= 1.0) {
            return Err(Error::State("a distance is not one".into()));
        }
        Ok(feature)
    }
}
