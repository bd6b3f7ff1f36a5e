//! One series: the mean of several views' evidence, one alarm per episode.
//!
//! *lean*: range, and transitions two and 32 rows apart. *standard* adds transitions from the same time yesterday and a
//! week ago, and the distribution of the last 52 rows. *full* adds the shape of the last 32 rows. Every view is scaled by a floor and by
//! what is usual for it ([`crate::evidence::Usual`]), clipped and averaged; the mean over the tier's alarm level is the score.
//!
//! The views and why these, with figures: `docs/detection.md`.

use crate::auto::Tier;
use crate::cells::{Cells, Grid, cell};
use crate::codec::{Reader, Writer};
use crate::evidence::{Peaks, Scale, Usual};
use crate::fuzzy_art::{self, FuzzyArt};
use crate::level::Level;
use crate::novelty::{Here, Recent, SAME_EPISODE, View, one_alarm};
use crate::relative_entropy::{self, RelativeEntropy};
use crate::series::{Band, Reading, Series};
use crate::{Error, range_novelty, transition_novelty};

const LAGS: [usize; 2] = [2, 32];
/// A departure ends when evidence has stayed below this for [`CALM_ROWS`] rows.
const CLEAR: f64 = 0.9;
const CALM_ROWS: u8 = 5;

pub(crate) struct Config {
    pub(crate) tier: Tier,
    pub(crate) warmup: u32,
    pub(crate) hold: u32,
}

impl Config {
    /// Mean evidence that alarms: the middle of the levels that served 29 labelled series well, fixed for all.
    fn alarm(&self) -> f64 {
        match self.tier {
            Tier::Lean => 1.11,
            Tier::Standard => 1.01,
            Tier::Full => 0.93,
        }
    }
}

/// By cache line: a fleet is bound by how many of them a row touches. The first four are of every row, of the cells one or two a map.
#[derive(Clone)]
#[repr(C, align(64))]
pub(crate) struct Metric {
    grid: Grid,
    range: Usual,
    transitions: [Usual; 2],
    held_rows: u32,
    calm_rows: u8,

    recent: Recent,
    peaks: Peaks,
    band: Band,

    level: Level,
    seasonal: Option<Box<Seasonal>>,
    art: Option<Box<Shapes>>,

    cells: [Cells; 2],
}

#[derive(Clone)]
#[repr(C, align(64))]
struct Shapes {
    usual: Usual,
    art: FuzzyArt,
}

impl Series for Metric {
    type Config = Config;
    const NAME: &'static str = super::NAME;
    const TAG: u8 = 9;
    const VERSION: u8 = 3;

    fn fresh(config: &Config, _seed: u64) -> Self {
        Self {
            grid: Grid::new(),
            recent: Recent::new(),
            range: Usual::new(),
            transitions: [Usual::new(); 2],
            cells: [Cells::default(); 2],
            peaks: Peaks::new(),
            band: Band::default(),
            level: Level::new(),
            held_rows: 0,
            calm_rows: 0,
            seasonal: (config.tier >= Tier::Standard).then(|| Box::new(Seasonal::new(config))),
            art: (config.tier == Tier::Full).then(|| {
                Box::new(Shapes {
                    usual: Usual::new(),
                    art: FuzzyArt::fresh(&()),
                })
            }),
        }
    }

    fn step(&mut self, config: &Config, time_ms: i64, value: f64, learn: bool) -> Reading {
        if config.hold == 0 || !learn || self.held_rows > 0 {
            return self.take(config, time_ms, value, learn && self.held_rows == 0);
        }
        // A departure that is held must not be known from its first row on.
        let before = self.clone();
        let reading = self.take(config, time_ms, value, true);
        if reading.score >= 1.0 {
            *self = before;
            self.take(config, time_ms, value, false);
            self.held_rows = 1;
        }
        reading
    }

    fn touch(&self, time_ms: i64) -> u32 {
        let from = LAGS.map(|lag| self.recent.back(lag).map_or(0, cell));
        let maps = self.cells.iter().zip(from);
        let cells = maps.fold(0, |read, (cells, row)| read ^ cells.touch(row));
        let seasonal = self.seasonal.as_ref().map_or(0, |seasonal| seasonal.touch(time_ms));
        let shapes = self.art.as_ref().map_or(0, |shapes| shapes.art.touch());
        self.held_rows ^ self.peaks.touch() ^ self.level.touch() ^ cells ^ seasonal ^ shapes
    }

    fn write(&self, _config: &Config, writer: &mut Writer<'_>) {
        self.grid.write(writer);
        self.recent.write(writer);
        self.range.write(writer);
        for (cells, usual) in self.cells.iter().zip(&self.transitions) {
            cells.write(writer);
            usual.write(writer);
        }
        self.peaks.write(writer);
        self.band.write(writer);
        writer.u32(self.held_rows);
        writer.u8(self.calm_rows);
        self.level.write(writer);
        if let Some(seasonal) = &self.seasonal {
            seasonal.write(writer);
        }
        if let Some(shapes) = &self.art {
            shapes.art.write(writer);
            shapes.usual.write(writer);
        }
    }

    fn read(config: &Config, version: u8, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut metric = Self {
            grid: Grid::read(reader)?,
            recent: Recent::read(reader)?,
            range: Usual::read(reader)?,
            ..Self::fresh(config, 0)
        };
        for (cells, usual) in metric.cells.iter_mut().zip(&mut metric.transitions) {
            *cells = Cells::read(reader)?;
            *usual = Usual::read(reader)?;
        }
        metric.peaks = Peaks::read(reader)?;
        metric.band = Band::read(reader)?;
        metric.held_rows = reader.u32()?;
        metric.calm_rows = reader.u8()?;
        metric.level = match version {
            1 => metric.band.level(metric.recent.rows),
            _ => Level::read(reader)?,
        };
        if let Some(seasonal) = &mut metric.seasonal {
            **seasonal = Seasonal::read(config, reader)?;
        }
        if let Some(shapes) = &mut metric.art {
            shapes.art = FuzzyArt::read(&(), reader)?;
            shapes.usual = Usual::read(reader)?;
        }
        Ok(metric)
    }

    fn size_max(config: &Config) -> usize {
        let lean = Grid::BYTES
            + Recent::BYTES
            + Usual::BYTES
            + 2 * (Cells::BYTES + Usual::BYTES)
            + Peaks::BYTES
            + Band::BYTES
            + Level::BYTES
            + 5;
        match config.tier {
            Tier::Lean => lean,
            Tier::Standard => lean + Seasonal::BYTES,
            Tier::Full => lean + Seasonal::BYTES + FuzzyArt::BYTES + Usual::BYTES,
        }
    }
}

impl Metric {
    fn take(&mut self, config: &Config, time_ms: i64, value: f64, learn: bool) -> Reading {
        let beyond = self.grid.beyond(value);
        if learn {
            self.widen(value);
        }
        let position = self.grid.position(value);
        let warm = self.recent.rows >= config.warmup;
        let here = Here {
            value,
            beyond,
            position,
            grid: &self.grid,
            recent: &self.recent,
        };
        let mut sum = Sum::new(warm, learn);
        sum.add(&mut self.range, range_novelty::SCALE, beyond);
        for ((cells, usual), lag) in self.cells.iter_mut().zip(&mut self.transitions).zip(LAGS) {
            let distance = match here.recent.back(lag) {
                Some(from) => {
                    let distance = transition_novelty::distance(cells, cell(from), &here);
                    if learn {
                        cells.set(cell(from), cell(position));
                    }
                    distance
                }
                None => 0.0,
            };
            sum.add(usual, transition_novelty::SCALE, distance);
        }
        if let Some(seasonal) = &mut self.seasonal {
            seasonal.step(config, time_ms, &here, &mut sum);
        }
        if let Some(shapes) = &mut self.art {
            let distance = shapes.art.distance(&(), &here);
            if learn {
                shapes.art.learn(&(), &here);
            }
            sum.add(&mut shapes.usual, fuzzy_art::SCALE, distance);
        }
        self.recent.push(position);
        let band = self.band.step(value, self.recent.rows, learn);
        let level_shift = if learn {
            self.level.learn(time_ms, value, warm, true)
        } else {
            None
        };
        if !warm {
            return Reading::QUIET;
        }
        let evidence = sum.mean() / config.alarm();
        Reading {
            score: self.episode(config, evidence, learn),
            evidence,
            level_shift,
            ..band
        }
    }

    fn widen(&mut self, value: f64) {
        let Some(by) = self.grid.widen(value) else {
            return;
        };
        self.recent.shift(by);
        for cells in &mut self.cells {
            cells.shift(by, by);
        }
        if let Some(seasonal) = &mut self.seasonal {
            for cells in &mut seasonal.cells {
                cells.shift(by, by);
            }
            for slot in seasonal.slots.iter_mut().filter(|slot| **slot != EMPTY) {
                let centre = (u16::from(*slot) << 11) + 1024;
                *slot = cell(by.position(centre)) as u8;
            }
        }
        if let Some(shapes) = &mut self.art {
            shapes.art.shift(by);
        }
    }

    /// One alarm per episode; with `hold`, an alarm that stands while the departure lasts.
    fn episode(&mut self, config: &Config, evidence: f64, learn: bool) -> f64 {
        if self.held_rows > 0 {
            self.calm_rows = if evidence < CLEAR { self.calm_rows + 1 } else { 0 };
            self.held_rows += 1;
            if self.calm_rows >= CALM_ROWS || self.held_rows > config.hold {
                self.held_rows = 0;
                self.calm_rows = 0;
            }
            self.peaks.push(evidence);
            return if evidence < CLEAR {
                evidence.min(CLEAR)
            } else {
                evidence.max(1.0)
            };
        }
        one_alarm(&mut self.peaks, evidence, learn)
    }
}

/// Adds up views.
struct Sum {
    evidence: f64,
    views: u32,
    warm: bool,
    learn: bool,
}

impl Sum {
    fn new(warm: bool, learn: bool) -> Self {
        Self {
            evidence: 0.0,
            views: 0,
            warm,
            learn,
        }
    }

    fn add(&mut self, usual: &mut Usual, scale: Scale, distance: f64) {
        if self.warm {
            self.evidence += usual.evidence(scale, distance);
            if self.learn {
                usual.learn(scale, distance);
            }
        }
        self.views += 1;
    }

    fn mean(&self) -> f64 {
        self.evidence / f64::from(self.views.max(1))
    }
}

const SLOT_MS: i64 = 15 * 60_000;
const SLOTS: usize = 7 * 96;
const DAY_SLOTS: usize = 96;
/// Slots that a value stands for when the steps are longer than a slot.
const FILL_SLOTS: i64 = 4;
const EMPTY: u8 = u8::MAX;

/// The value at this time yesterday and a week ago, by quarter hours of the week, and how the present goes with them.
#[derive(Clone)]
#[repr(C, align(64))]
struct Seasonal {
    last_slot: i64,
    /// Of yesterday's and last week's pairs, and of the distribution.
    usual: [Usual; 2],
    usual_entropy: Usual,
    entropy: RelativeEntropy,
    slots: [u8; SLOTS],
    cells: [Cells; 2],
}

/// Slots back to yesterday and to last week, which is where the present one is.
const BACK: [usize; 2] = [DAY_SLOTS, SLOTS];

impl Seasonal {
    const BYTES: usize = SLOTS + 8 + 2 * (Cells::BYTES + Usual::BYTES) + RelativeEntropy::BYTES + Usual::BYTES;

    fn new(config: &Config) -> Self {
        Self {
            last_slot: i64::MIN,
            usual: [Usual::new(); 2],
            usual_entropy: Usual::new(),
            entropy: RelativeEntropy::fresh(&config.warmup),
            slots: [EMPTY; SLOTS],
            cells: [Cells::default(); 2],
        }
    }

    fn touch(&self, time_ms: i64) -> u32 {
        let index = time_ms.div_euclid(SLOT_MS).rem_euclid(SLOTS as i64) as usize;
        let from = BACK.map(|back| self.slots[(index + SLOTS - back) % SLOTS]);
        let maps = self.cells.iter().zip(from).filter(|(_, from)| *from != EMPTY);
        let cells = maps.fold(0, |read, (cells, from)| read ^ cells.touch(usize::from(from)));
        self.last_slot as u32 ^ cells ^ self.entropy.touch()
    }

    fn step(&mut self, config: &Config, time_ms: i64, here: &Here<'_>, sum: &mut Sum) {
        let slot = time_ms.div_euclid(SLOT_MS);
        let index = slot.rem_euclid(SLOTS as i64) as usize;
        let to = cell(here.position);
        for ((cells, usual), back) in self.cells.iter_mut().zip(&mut self.usual).zip(BACK) {
            let from = self.slots[(index + SLOTS - back) % SLOTS];
            let distance = if from == EMPTY {
                0.0
            } else {
                let from = usize::from(from);
                let distance = transition_novelty::distance(cells, from, here);
                if sum.learn {
                    cells.set(from, to);
                }
                distance
            };
            sum.add(usual, transition_novelty::SCALE, distance);
        }
        if sum.learn {
            self.fill(slot, to as u8);
        }
        let distance = self.entropy.distance(&config.warmup, here);
        if sum.learn {
            self.entropy.learn(&config.warmup, here);
        }
        sum.add(&mut self.usual_entropy, relative_entropy::SCALE, distance);
    }

    fn fill(&mut self, slot: i64, value: u8) {
        let from = if self.last_slot != i64::MIN && slot > self.last_slot {
            self.last_slot.max(slot - FILL_SLOTS - 1) + 1
        } else {
            slot
        };
        for slot in from..=slot {
            self.slots[slot.rem_euclid(SLOTS as i64) as usize] = value;
        }
        self.last_slot = slot;
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.bytes(&self.slots);
        writer.i64(self.last_slot);
        for (cells, usual) in self.cells.iter().zip(&self.usual) {
            cells.write(writer);
            usual.write(writer);
        }
        self.entropy.write(writer);
        self.usual_entropy.write(writer);
    }

    fn read(config: &Config, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut seasonal = Self::new(config);
        reader.bytes(&mut seasonal.slots)?;
        seasonal.last_slot = reader.i64()?;
        for (cells, usual) in seasonal.cells.iter_mut().zip(&mut seasonal.usual) {
            *cells = Cells::read(reader)?;
            *usual = Usual::read(reader)?;
        }
        seasonal.entropy = RelativeEntropy::read(&config.warmup, reader)?;
        seasonal.usual_entropy = Usual::read(reader)?;
        let sound = seasonal
            .slots
            .iter()
            .all(|slot| *slot == EMPTY || usize::from(*slot) < crate::cells::SIDE);
        if !sound {
            return Err(Error::State("a slot is off the grid".into()));
        }
        Ok(seasonal)
    }
}

const _: () = assert!(SAME_EPISODE < CLEAR);
