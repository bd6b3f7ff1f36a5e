//! What the novelty detectors share: the series' range and recent past, the row cycle, and how a view becomes a detector.

use std::marker::PhantomData;

use crate::Error;
use crate::cells::{Grid, Move};
use crate::codec::{Reader, Writer};
use crate::evidence::{Peaks, Scale, Usual};
use crate::series::{Band, Reading, Series};

/// A suppressed row of an episode scores at most this: evidence is there, but it is not a new alarm.
pub(crate) const SAME_EPISODE: f64 = 0.5;

/// After an alarm, evidence must exceed the episode's by so much to be a new one.
const GROWN: f64 = 1.5;

/// The last 32 known values as positions on the grid.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub(crate) struct Recent {
    positions: [u16; Self::ROWS],
    /// Known values so far.
    pub(crate) rows: u32,
}

impl Recent {
    pub(crate) const ROWS: usize = 32;
    pub(crate) const BYTES: usize = 2 * Self::ROWS + 4;

    pub(crate) fn new() -> Self {
        Self {
            positions: [0; Self::ROWS],
            rows: 0,
        }
    }

    /// The position `lag` rows before the one that is pushed next; `lag` from 1 to 32.
    pub(crate) fn back(&self, lag: usize) -> Option<u16> {
        let row = self.rows as usize;
        (row >= lag).then(|| self.positions[(row - lag) % Self::ROWS])
    }

    /// Sums of four rows each over this row and the 31 before it, newest first.
    pub(crate) fn blocks(&self, position: u16) -> [u32; 8] {
        let mut sums = [0; 8];
        let row = self.rows as usize;
        for (block, sum) in sums.iter_mut().enumerate() {
            for lag in 4 * block..4 * block + 4 {
                *sum += match lag {
                    0 => u32::from(position),
                    _ => u32::from(self.positions[row.wrapping_sub(lag) % Self::ROWS]),
                };
            }
        }
        sums
    }

    pub(crate) fn push(&mut self, position: u16) {
        self.positions[self.rows as usize % Self::ROWS] = position;
        self.rows = self.rows.checked_add(1).unwrap_or(u32::MAX - 31);
    }

    pub(crate) fn shift(&mut self, by: Move) {
        for position in &mut self.positions {
            *position = by.position(*position);
        }
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        for position in self.positions {
            writer.u16(position);
        }
        writer.u32(self.rows);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut recent = Self::new();
        for position in &mut recent.positions {
            *position = reader.u16()?;
        }
        recent.rows = reader.u32()?;
        Ok(recent)
    }
}

/// A row as views see it. The value has been taken into the grid already if it may be learned.
pub(crate) struct Here<'a> {
    pub(crate) value: f64,
    /// How far the value lay outside the range before this row, in ranges.
    pub(crate) beyond: f64,
    pub(crate) position: u16,
    pub(crate) grid: &'a Grid,
    pub(crate) recent: &'a Recent,
}

/// One way to look at a series: how far the row is from all that it has learned.
pub(crate) trait View: Send + Sized + 'static {
    /// What it was configured with.
    type Config: Send + Sync + 'static;
    const NAME: &'static str;
    const TAG: u8;
    const SCALE: Scale;

    fn fresh(config: &Self::Config) -> Self;

    /// The grid has moved.
    fn shift(&mut self, by: Move);

    fn distance(&mut self, config: &Self::Config, here: &Here<'_>) -> f64;

    fn learn(&mut self, config: &Self::Config, here: &Here<'_>);

    fn write(&self, writer: &mut Writer<'_>);

    fn read(config: &Self::Config, reader: &mut Reader<'_>) -> Result<Self, Error>;

    fn size_max(config: &Self::Config) -> usize;
}

/// A view with the envelope that makes it a detector: warm-up, usual distance, one alarm per episode.
pub(crate) struct Novelty<V> {
    grid: Grid,
    recent: Recent,
    view: V,
    usual: Usual,
    peaks: Peaks,
    band: Band,
    view_kind: PhantomData<V>,
}

pub(crate) struct NoveltyConfig<C> {
    pub(crate) view: C,
    pub(crate) threshold: f64,
    pub(crate) warmup: u32,
}

impl<V: View> Series for Novelty<V> {
    type Config = NoveltyConfig<V::Config>;
    const NAME: &'static str = V::NAME;
    const TAG: u8 = V::TAG;
    const VERSION: u8 = 2;

    fn fresh(config: &Self::Config, _seed: u64) -> Self {
        Self {
            grid: Grid::new(),
            recent: Recent::new(),
            view: V::fresh(&config.view),
            usual: Usual::new(),
            peaks: Peaks::new(),
            band: Band::default(),
            view_kind: PhantomData,
        }
    }

    fn step(&mut self, config: &Self::Config, _time_ms: i64, value: f64, learn: bool) -> Reading {
        let beyond = self.grid.beyond(value);
        let (lower, upper) = if self.grid.is_empty() {
            (f64::NAN, f64::NAN)
        } else {
            (self.grid.low, self.grid.high)
        };
        let band = self.band.step(value, self.recent.rows.saturating_add(1), learn);
        if learn && let Some(by) = self.grid.widen(value) {
            self.view.shift(by);
            self.recent.shift(by);
        }
        let here = Here {
            value,
            beyond,
            position: self.grid.position(value),
            grid: &self.grid,
            recent: &self.recent,
        };
        let distance = self.view.distance(&config.view, &here);
        if learn {
            self.view.learn(&config.view, &here);
        }
        let position = here.position;
        let warm = self.recent.rows >= config.warmup;
        self.recent.push(position);
        if !warm {
            return Reading::QUIET;
        }
        let evidence = self.usual.evidence(V::SCALE, distance) / config.threshold;
        if learn {
            self.usual.learn(V::SCALE, distance);
        }
        Reading {
            score: one_alarm(&mut self.peaks, evidence, learn),
            evidence,
            expected: band.expected.max(lower).min(upper),
            lower,
            upper,
            level_shift: None,
        }
    }

    fn write(&self, _config: &Self::Config, writer: &mut Writer<'_>) {
        self.grid.write(writer);
        self.recent.write(writer);
        self.view.write(writer);
        self.usual.write(writer);
        self.peaks.write(writer);
        self.band.write(writer);
    }

    fn read(config: &Self::Config, version: u8, reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            grid: Grid::read(reader)?,
            recent: Recent::read(reader)?,
            view: V::read(&config.view, reader)?,
            usual: Usual::read(reader)?,
            peaks: Peaks::read(reader)?,
            band: if version >= 2 {
                Band::read(reader)?
            } else {
                Band::default()
            },
            view_kind: PhantomData,
        })
    }

    fn size_max(config: &Self::Config) -> usize {
        Grid::BYTES + Recent::BYTES + V::size_max(&config.view) + Usual::BYTES + Peaks::BYTES + Band::BYTES
    }
}

/// The evidence where it exceeds the whole episode so far, by far if that alarmed, or may not be learned; a bounded rest of it otherwise.
pub(crate) fn one_alarm(peaks: &mut Peaks, evidence: f64, learn: bool) -> f64 {
    let highest = peaks.highest();
    peaks.push(evidence);
    let exceeded = if highest >= 1.0 { GROWN * highest } else { highest };
    if evidence > exceeded || !learn {
        evidence
    } else {
        evidence.min(SAME_EPISODE)
    }
}
