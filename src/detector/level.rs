//! Whether a series has settled on a new level, said once.
//!
//! Two references: a *slow* one, the level that is accepted with the deviation around it, and a *fast* one. A *departure* begins where the fast
//! one leaves the slow one, which then learns nothing; it ends where the series comes back, and nothing is said. Rows of a departure are taken by
//! blocks. Two blocks in a row whose means differ by less than half of what their rows deviate by are a settled series: the level gives way, and
//! that is the shift. A ramp does not settle (its blocks differ by more) until it ends, so it is one shift at most; a spike is over before its
//! first block.
//!
//! After Page, Continuous inspection schemes, 1954 (one test from the last accepted level), and the two references of
//! Gama, Žliobaitė, Bifet, Pechenizkiy and Bouchachia, A survey on concept drift adaptation, 2014, section 3.2.

use crate::codec::{Reader, Writer};
use crate::{Error, LevelShift};

/// Rows that the fast reference remembers.
const FAST_ROWS: f64 = 4.0;
/// Rows that the slow reference remembers.
const SLOW_ROWS: f64 = 120.0;
/// Deviations, squared, at which a departure begins, and below which it is over.
const DEPARTED: f64 = 2.5 * 2.5;
const RETURNED: f64 = 1.25 * 1.25;
/// The slow reference learns a row for no more than so many deviations, squared.
const LEARNED_MAX: f64 = 9.0;
/// Deviations, of the rows before or after, whichever are more, that a new level is away at least.
const FAR: f64 = 2.0;
/// Blocks of a settled series differ by no more than half of what their rows deviate by, squared.
const SETTLED: f64 = 0.5 * 0.5;
/// Rows of a block at first.
const BLOCK_ROWS: u32 = 60;
const DOUBLINGS_MAX: u8 = 6;
/// Blocks without a shift after which the doubling is taken back by one.
const CALM_BLOCKS: u32 = 128;

/// Mean and sum of squared differences from it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Block {
    rows: u32,
    mean: f64,
    squares: f64,
}

impl Block {
    const BYTES: usize = 20;
    const EMPTY: Self = Self {
        rows: 0,
        mean: 0.0,
        squares: 0.0,
    };

    fn learn(&mut self, value: f64) {
        self.rows = self.rows.saturating_add(1);
        let change = value - self.mean;
        self.mean += change / f64::from(self.rows);
        self.squares += change * (value - self.mean);
    }

    fn variance(&self) -> f64 {
        self.squares.max(0.0) / f64::from(self.rows.max(1))
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.u32(self.rows);
        writer.f64s(&[self.mean, self.squares]);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let block = Self {
            rows: reader.u32()?,
            mean: reader.f64()?,
            squares: reader.f64()?,
        };
        let sound = block.mean.is_finite() && block.squares.is_finite() && block.rows < u32::MAX;
        sound
            .then_some(block)
            .ok_or_else(|| Error::State("a block of rows is not one".into()))
    }
}

/// A series away from the level that was accepted last.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Departure {
    old_level: f64,
    variance: f64,
    since_ms: i64,
    block: Block,
    /// The last whole block.
    last: Option<Block>,
    settled: bool,
}

/// What became of a departure.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Away,
    /// Settled where it had been before.
    Back,
    /// Settled elsewhere.
    Shifted {
        new_level: f64,
        variance: f64,
    },
}

impl Departure {
    const BYTES: usize = 24 + 2 * Block::BYTES + 2;

    /// From a level, and how far rows deviate from it.
    fn new(old_level: f64, variance: f64, since_ms: i64) -> Self {
        Self {
            old_level,
            variance,
            since_ms,
            block: Block::EMPTY,
            last: None,
            settled: false,
        }
    }

    fn learn(&mut self, value: f64, block_rows: u32) {
        self.block.learn(value);
        if self.block.rows < block_rows {
            return;
        }
        let block = std::mem::replace(&mut self.block, Block::EMPTY);
        self.settled = self.last.is_some_and(|last| {
            let change = block.mean - last.mean;
            // Rounding is no change.
            change * change <= SETTLED * block.variance() + 1e-18 * block.mean * block.mean
        });
        self.last = Some(block);
    }

    /// `far`: deviations between levels at least.
    fn outcome(&self, far: f64) -> Outcome {
        let Some(last) = self.last.filter(|_| self.settled) else {
            return Outcome::Away;
        };
        let change = last.mean - self.old_level;
        let variance = last.variance();
        if change * change <= far * far * floored(self.variance.max(variance), self.old_level) {
            return Outcome::Back;
        }
        Outcome::Shifted {
            new_level: last.mean,
            variance,
        }
    }

    fn shift(&self, new_level: f64) -> LevelShift {
        LevelShift {
            feature: 0,
            old_level: self.old_level,
            new_level,
            since_ms: self.since_ms,
        }
    }

    /// Of a departure that may be none.
    fn write(departure: Option<&Self>, writer: &mut Writer<'_>) {
        let Some(this) = departure else {
            return writer.u8(0);
        };
        writer.u8(1 + u8::from(this.settled) + 2 * u8::from(this.last.is_some()));
        writer.f64s(&[this.old_level, this.variance]);
        writer.i64(this.since_ms);
        for block in [Some(this.block), this.last].into_iter().flatten() {
            block.write(writer);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Option<Self>, Error> {
        let kind = match reader.u8()? {
            0 => return Ok(None),
            kind @ (1 | 3 | 4) => kind - 1,
            _ => return Err(Error::State("a departure is of no kind".into())),
        };
        let mut departure = Self::new(reader.f64()?, reader.f64()?, reader.i64()?);
        departure.block = Block::read(reader)?;
        departure.last = if kind & 2 != 0 {
            Some(Block::read(reader)?)
        } else {
            None
        };
        departure.settled = kind & 1 != 0;
        if departure.old_level.is_finite() && departure.variance.is_finite() {
            Ok(Some(departure))
        } else {
            Err(Error::State("a level is not finite".into()))
        }
    }
}

/// How long a departure must have settled. Every shift doubles it, so that a series that goes to and fro between levels, or drifts, is told of a
/// few times, not for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Patience {
    /// Learned so far, and when the last shift was, or the last doubling taken back.
    rows: u32,
    calm_since: u32,
    doublings: u8,
}

impl Patience {
    const BYTES: usize = 9;

    fn step(&mut self, block_rows: u32) {
        self.rows = self.rows.saturating_add(1);
        if self.doublings > 0 && self.rows - self.calm_since >= CALM_BLOCKS * (block_rows << self.doublings) {
            self.doublings -= 1;
            self.calm_since = self.rows;
        }
    }

    fn double(&mut self) {
        self.doublings = (self.doublings + 1).min(DOUBLINGS_MAX);
        self.calm_since = self.rows;
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.u32(self.rows);
        writer.u32(self.calm_since);
        writer.u8(self.doublings);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let patience = Self {
            rows: reader.u32()?,
            calm_since: reader.u32()?,
            doublings: reader.u8()?,
        };
        if patience.doublings <= DOUBLINGS_MAX && patience.calm_since <= patience.rows {
            Ok(patience)
        } else {
            Err(Error::State("a patience is not one".into()))
        }
    }
}

/// Never 0: a constant deviates by a thousandth of itself.
fn floored(variance: f64, level: f64) -> f64 {
    variance.max(1e-6 * level * level).max(1e-24)
}

/// The level of a series. A departure is rare, and lies apart.
#[derive(Clone, Debug)]
#[repr(C)]
pub(crate) struct Level {
    mean: f64,
    variance: f64,
    fast: f64,
    patience: Patience,
    departure: Option<Box<Departure>>,
}

impl Level {
    pub(crate) const BYTES: usize = 24 + Patience::BYTES + Departure::BYTES;

    pub(crate) fn new() -> Self {
        Self::of(0.0, 0.0, 0)
    }

    /// As known from elsewhere after so many rows.
    pub(crate) fn of(mean: f64, variance: f64, rows: u32) -> Self {
        Self {
            mean,
            variance,
            fast: mean,
            patience: Patience {
                rows,
                calm_since: rows,
                doublings: 0,
            },
            departure: None,
        }
    }

    /// As [`crate::State::touch`].
    pub(crate) fn touch(&self) -> u32 {
        self.patience.rows
    }

    /// Where `accepts` is false a level that is new stays so for now.
    pub(crate) fn learn(&mut self, time_ms: i64, value: f64, warm: bool, accepts: bool) -> Option<LevelShift> {
        if self.patience.rows == 0 {
            (self.mean, self.fast) = (value, value);
        }
        self.patience.step(BLOCK_ROWS);
        let change = value - self.mean;
        self.fast += (value - self.fast) / FAST_ROWS;
        let away = (self.fast - self.mean) * (self.fast - self.mean);
        let variance = floored(self.variance, self.mean);
        if self.departure.is_none() {
            if !warm || away <= DEPARTED * variance {
                self.follow(change, variance, warm);
                return None;
            }
            self.departure = Some(Box::new(Departure::new(self.mean, self.variance, time_ms)));
        }
        let departure = self.departure.as_mut()?;
        if away < RETURNED * variance {
            self.departure = None;
            return None;
        }
        departure.learn(value, BLOCK_ROWS << self.patience.doublings);
        match departure.outcome(FAR) {
            Outcome::Away => None,
            Outcome::Shifted { .. } if !accepts => None,
            Outcome::Back => {
                let last = departure.last?;
                self.settle(last.mean, last.variance());
                None
            }
            Outcome::Shifted { new_level, variance } => {
                let shift = departure.shift(new_level);
                self.settle(new_level, variance);
                self.patience.double();
                Some(shift)
            }
        }
    }

    fn settle(&mut self, level: f64, variance: f64) {
        self.mean = level;
        self.fast = level;
        self.variance = variance;
        self.departure = None;
    }

    fn follow(&mut self, change: f64, variance: f64, warm: bool) {
        let weight = 1.0 / f64::from(self.patience.rows).min(SLOW_ROWS);
        let square = change * change;
        let most = LEARNED_MAX * variance;
        let counted = if warm && square > most {
            change * (most / square).sqrt()
        } else {
            change
        };
        self.mean += weight * counted;
        self.variance += weight * ((1.0 - weight) * counted * counted - self.variance);
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        writer.f64s(&[self.mean, self.variance, self.fast]);
        self.patience.write(writer);
        Departure::write(self.departure.as_deref(), writer);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut fields = [0.0; 3];
        reader.f64s(&mut fields)?;
        let [mean, variance, fast] = fields;
        let level = Self {
            mean,
            variance,
            fast,
            patience: Patience::read(reader)?,
            departure: Departure::read(reader)?.map(Box::new),
        };
        if fields.iter().all(|field| field.is_finite()) {
            Ok(level)
        } else {
            Err(Error::State("a level is not one".into()))
        }
    }
}

/// For detectors that find changes themselves: what becomes of one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Change {
    patience: Patience,
    departure: Option<Box<Departure>>,
}

impl Change {
    pub(crate) const BYTES: usize = Patience::BYTES + Departure::BYTES;
    /// Small shifts are what such detectors are for, and need long means.
    const BLOCK_ROWS: u32 = 2 * BLOCK_ROWS;

    /// The detector has found one: from this level, from which rows deviated so much. Found again before it has settled it is the same.
    pub(crate) fn begin(&mut self, old_level: f64, deviation: f64, since_ms: i64) {
        let new = || Box::new(Departure::new(old_level, deviation * deviation, since_ms));
        self.departure.get_or_insert_with(new);
    }

    /// `far`: deviations between levels at least.
    pub(crate) fn learn(&mut self, value: f64, far: f64) -> Option<LevelShift> {
        self.patience.step(Self::BLOCK_ROWS);
        let departure = self.departure.as_mut()?;
        departure.learn(value, Self::BLOCK_ROWS << self.patience.doublings);
        let shift = match departure.outcome(far) {
            Outcome::Away => return None,
            Outcome::Back => None,
            Outcome::Shifted { new_level, .. } => Some(departure.shift(new_level)),
        };
        self.departure = None;
        if shift.is_some() {
            self.patience.double();
        }
        shift
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        self.patience.write(writer);
        Departure::write(self.departure.as_deref(), writer);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            patience: Patience::read(reader)?,
            departure: Departure::read(reader)?.map(Box::new),
        })
    }
}
