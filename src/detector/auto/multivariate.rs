//! Several features of one entity: how far each one's transitions lie from a slow reference, and how they go together.
//!
//! Two views of a row. *Transitions*: every feature keeps maps of its transitions two rows apart and of its pairs with two other features
//! ([`crate::cells`]), and the row's distances from them are summed. *Displacement*: how far the row lies from the centre of what was, in the metric
//! of how the features go together ([`super::displacement`]). Both have what is *known* and what is *pending*. A row is
//! held against the known only. Pending turns known in steps that grow with the history, but not while an alarm stands: so a fault is judged by
//! what was there before it, for its whole length, and a new normal is accepted in the end.
//! The score is the mean of the views, each over its alarm level, smoothed over a few rows (a fault moves several features for
//! several rows, noise does not). A level is a floor plus a multiple of what is usual for the entity. So an entity whose features
//! always show a little that is new (noise, drift, a short history) is judged by its own calm; what it learns of that while an
//! alarm stands counts for little.

use std::sync::Arc;

use super::displacement::Displacement;
use crate::calibration::{Calibration, Promise};
use crate::cells::{Cells, Grid, Move, SIDE, cell};
use crate::codec::{Reader, Writer};
use crate::level::Level;
use crate::series::Band;
use crate::{Detector, Error, LevelShift, Row, Score, State};

const TAG: u8 = 40;
const VERSION: u8 = 4;
const LAG: usize = 2;
/// Rows over which evidence is smoothed: an exponential mean.
const SMOOTHING_ROWS: f64 = 3.5;
/// Other features that each one is paired with.
const PARTNERS: usize = 2;
const MAPS: usize = 1 + PARTNERS;
/// What a transition and what all pairs of a feature count for.
const TRANSITION_SHARE: f64 = 0.7;
const PAIR_SHARE: f64 = 0.3 / PARTNERS as f64 * 0.8;
/// Alarm levels: of the sum of distances, in grids, and of the displacement, which is about 1 for usual rows.
const TRANSITIONS: AlarmLevel = AlarmLevel {
    floor: 0.015,
    multiple: 2.0,
    row_max: 15.0,
};
/// The displacement's multiple grows by so much over the number of features: a mean of few squares is a wild one.
const DISPLACEMENT_FEW: f64 = 12.0;
const DISPLACEMENT: AlarmLevel = AlarmLevel {
    floor: 0.3,
    multiple: 3.1,
    row_max: 5.0,
};
/// What the displacement counts for; the transitions have the rest.
const DISPLACEMENT_SHARE: f64 = 0.3;
/// Rows that what is usual remembers.
const USUAL_ROWS: u32 = 4000;
/// What is usual learns no row for more than so many levels, and a row of a standing alarm with this share of its weight.
const USUAL_MAX: f64 = 1.5;
const USUAL_ALARM_SHARE: f64 = 0.25;
/// Evidence below which a standing alarm ends.
const RELEASE: f64 = 0.5;
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
        4 + 9
            + 2 * Usual::BYTES
            + Calibration::BYTES
            + Displacement::bytes(self.features)
            + self.features * Feature::BYTES
    }

    fn fresh(&self, _entity: u64) -> Box<dyn State> {
        Box::new(Entity::new(*self))
    }

    fn restore(&self, _entity: u64, bytes: &[u8]) -> Result<Box<dyn State>, Error> {
        let mut reader = Reader::new(bytes);
        let version = reader.header(TAG, VERSION, self.features)?;
        let mut entity = Entity::new(*self);
        entity.rows = reader.u32()?;
        entity.consolidate_at = reader.u32()?;
        entity.alarmed = reader.u8()? != 0;
        if version >= 2 {
            entity.transitions = Usual::read(version, &mut reader)?;
        }
        if version >= 3 {
            entity.displaced = Usual::read(version, &mut reader)?;
        }
        entity.calibration = Calibration::read(&mut reader)?;
        for feature in &mut entity.features {
            *feature = Feature::read(version, &mut reader)?;
        }
        if version >= 3 {
            entity.displacement = Displacement::read(self.features, self.warmup, &mut reader)?;
        } else {
            entity.without_displacement(version);
        }
        reader.finish()?;
        Ok(Box::new(entity))
    }
}

struct Entity {
    config: Ensemble,
    rows: u32,
    consolidate_at: u32,
    /// An alarm stands until evidence falls to [`RELEASE`].
    alarmed: bool,
    /// Of the two views.
    transitions: Usual,
    displaced: Usual,
    calibration: Calibration,
    features: Box<[Feature]>,
    displacement: Displacement,
    /// Of the present row.
    values: Box<[f64]>,
    ranges: Box<[f64]>,
    parts: Box<[f64]>,
}

impl State for Entity {
    fn score(&mut self, row: Row<'_>, out: &mut Score) {
        out.reset(self.features.len());
        let warm = self.rows >= self.config.warmup;
        let known = self.place(row);
        let distance = self.measure(row.learn, warm, &mut out.contributions);
        let displacement = self.displacement.measure(&self.values, &self.ranges, &mut self.parts);
        let transitions = self.transitions.step(TRANSITIONS, distance, warm);
        let displacement_level = AlarmLevel {
            multiple: DISPLACEMENT.multiple + DISPLACEMENT_FEW / self.features.len() as f64,
            ..DISPLACEMENT
        };
        let displaced = displacement.map(|distance| self.displaced.step(displacement_level, distance, warm));
        let share = if displaced.is_some() { DISPLACEMENT_SHARE } else { 0.0 };
        for (index, feature) in self.features.iter_mut().enumerate() {
            let moved = displaced.map_or(0.0, |scale| scale * self.parts[index]);
            let evidence = (1.0 - share) * transitions * out.contributions[index] + share * moved;
            if warm {
                feature.smoothed += ((evidence - f64::from(feature.smoothed)) / SMOOTHING_ROWS) as f32;
            }
            out.contributions[index] = f64::from(feature.smoothed);
            if feature.rows > 0 {
                // A value that is not known was to be expected as well.
                let (value, learn) = feature
                    .now
                    .map_or((0.0, false), |now| (now.value, row.learn && !self.alarmed));
                let band = feature.band.step(value, u32::from(feature.rows), learn);
                (out.expected[index], out.lower[index], out.upper[index]) = (band.expected, band.lower, band.upper);
            }
        }
        if known && row.learn {
            self.rows = self.rows.saturating_add(1);
            self.displacement.learn(&self.values, &self.ranges);
            let patience = if self.alarmed { self.rows.min(PATIENCE_ROWS) } else { 0 };
            let accepts = self.rows >= self.consolidate_at.saturating_add(patience);
            if accepts {
                self.consolidate();
            }
            self.levels(row.time_ms, warm, accepts, &mut out.level_shifts);
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
            self.transitions.learn(TRANSITIONS, warm, self.alarmed);
            if displaced.is_some() {
                self.displaced.learn(displacement_level, warm, self.alarmed);
            }
        }
        self.calibration.finish(self.config.promise, row, evidence, out);
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        let mut writer = Writer::new(out);
        writer.header(TAG, VERSION, self.features.len());
        writer.u32(self.rows);
        writer.u32(self.consolidate_at);
        writer.u8(u8::from(self.alarmed));
        self.transitions.write(&mut writer);
        self.displaced.write(&mut writer);
        self.calibration.write(&mut writer);
        for feature in &self.features {
            feature.write(&mut writer);
        }
        self.displacement.write(&mut writer);
    }
}

impl Entity {
    fn new(config: Ensemble) -> Self {
        Self {
            config,
            rows: 0,
            consolidate_at: config.warmup,
            alarmed: false,
            transitions: Usual::default(),
            displaced: Usual::EXPECTED,
            calibration: Calibration::new(),
            features: (0..config.features).map(|_| Feature::new()).collect(),
            displacement: Displacement::new(config.features, config.warmup),
            values: vec![f64::NAN; config.features].into(),
            ranges: vec![0.0; config.features].into(),
            parts: vec![0.0; config.features].into(),
        }
    }

    /// Before version 3 transitions were all there was, and features were smoothed before they were held against the level, which in version 1
    /// was fixed: what it saw last is the first that is usual.
    fn without_displacement(&mut self, version: u8) {
        let smoothed = self.features.iter().map(|feature| feature.smoothed).sum();
        if version == 1 {
            self.transitions.mean = smoothed;
            self.transitions.rows = SMOOTHING_ROWS as u32;
        }
        self.transitions.smoothed = smoothed;
        let level = TRANSITIONS.of(self.transitions.mean);
        for feature in &mut self.features {
            feature.smoothed = (f64::from(feature.smoothed) / level).min(TRANSITIONS.row_max) as f32;
        }
    }

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
            self.values[index] = value.unwrap_or(f64::NAN);
            self.ranges[index] = if feature.grid.is_empty() {
                0.0
            } else {
                feature.grid.range()
            };
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

    /// A new level is accepted when it is known.
    fn levels(&mut self, time_ms: i64, warm: bool, accepts: bool, shifts: &mut Vec<LevelShift>) {
        for (index, feature) in self.features.iter_mut().enumerate() {
            let Some(now) = feature.now else { continue };
            let shift = feature.level.learn(time_ms, now.value, warm, accepts);
            shifts.extend(shift.map(|shift| LevelShift {
                feature: index,
                ..shift
            }));
        }
    }

    fn consolidate(&mut self) {
        let grown = (self.rows / 4).min(CONSOLIDATION_ROWS_MAX);
        self.consolidate_at = self.rows.saturating_add(grown.max(1));
        for feature in &mut self.features {
            for (known, pending) in feature.known.iter_mut().zip(&mut feature.pending) {
                known.merge(pending);
            }
        }
        self.displacement.consolidate(&self.ranges);
    }
}

/// An alarm level: a floor, and a multiple of what is usual above it. One row counts for `row_max` of them at most.
#[derive(Clone, Copy)]
struct AlarmLevel {
    floor: f64,
    multiple: f64,
    row_max: f64,
}

impl AlarmLevel {
    fn of(self, usual: f32) -> f64 {
        self.floor + self.multiple * f64::from(usual)
    }
}

/// What is usual for one view: a mean with a long memory, of what was smoothed over a few rows.
#[derive(Clone, Copy, Default)]
struct Usual {
    mean: f32,
    rows: u32,
    smoothed: f32,
}

impl Usual {
    const BYTES: usize = 12;
    /// Of a displacement before any was seen.
    const EXPECTED: Self = Self {
        mean: 1.0,
        rows: 30,
        smoothed: 1.0,
    };

    /// Takes in what the view says of a row; answers with what turns it into alarm levels.
    fn step(&mut self, level: AlarmLevel, found: f64, warm: bool) -> f64 {
        let usual = level.of(self.mean);
        let most = if warm { level.row_max * usual } else { f64::INFINITY };
        let clip = if found > most { most / found } else { 1.0 };
        let smoothed = f64::from(self.smoothed);
        self.smoothed = (smoothed + (found * clip - smoothed) / SMOOTHING_ROWS) as f32;
        clip / usual
    }

    fn learn(&mut self, level: AlarmLevel, warm: bool, alarmed: bool) {
        let smoothed = f64::from(self.smoothed);
        let counted = if warm {
            smoothed.min(USUAL_MAX * level.of(self.mean))
        } else {
            smoothed
        };
        self.rows = (self.rows + 1).min(USUAL_ROWS);
        let share = if alarmed { USUAL_ALARM_SHARE } else { 1.0 };
        let mean = f64::from(self.mean);
        self.mean = (mean + share * (counted - mean) / f64::from(self.rows)) as f32;
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.f32(self.mean);
        writer.u32(self.rows);
        writer.f32(self.smoothed);
    }

    fn read(version: u8, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let usual = Self {
            mean: reader.f32()?,
            rows: reader.u32()?,
            smoothed: if version >= 3 { reader.f32()? } else { 0.0 },
        };
        let sound = |value: f32| value.is_finite() && value >= 0.0;
        if sound(usual.mean) && sound(usual.smoothed) && usual.rows <= USUAL_ROWS {
            Ok(usual)
        } else {
            Err(Error::State("what is usual cannot be".into()))
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
    /// Evidence, in alarm levels.
    smoothed: f32,
    band: Band,
    level: Level,
    now: Option<Now>,
}

impl Feature {
    const BYTES: usize = Grid::BYTES + 2 * LAG + 1 + 2 * MAPS * Cells::BYTES + 4 + Band::BYTES + Level::BYTES;

    fn new() -> Self {
        Self {
            grid: Grid::new(),
            recent: [0; LAG],
            rows: 0,
            known: [Cells::default(); MAPS],
            pending: [Cells::default(); MAPS],
            smoothed: 0.0,
            band: Band::default(),
            level: Level::new(),
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
        self.level.write(writer);
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
        if !(feature.smoothed >= 0.0 && f64::from(feature.smoothed) <= 2.0 * TRANSITIONS.row_max) {
            return Err(Error::State("a distance is not one".into()));
        }
        if version >= 2 {
            feature.band = Band::read(reader)?;
        }
        feature.level = match version {
            // The band has no rows to tell of before version 2.
            1 => Level::new(),
            2 | 3 => feature.band.level(u32::from(feature.rows)),
            _ => Level::read(reader)?,
        };
        Ok(feature)
    }
}
