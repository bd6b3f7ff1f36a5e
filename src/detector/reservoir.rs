//! Rows kept for growing a forest from, and when to grow it anew.
//!
//! Vitter, Random sampling with a reservoir, 1985; beyond 16 reservoirs of rows the past fades instead of weighing ever more. A forest is a function of the
//! rows that it was grown from and of a seed, so a snapshot has these and no trees.

use crate::Error;
use crate::codec::{Reader, Writer};
use crate::random::Random;

pub(crate) struct Reservoir {
    width: usize,
    capacity: usize,
    refit_rows: u64,
    learned: u64,
    next_fit: u64,
    random: Random,
    fit_seed: u64,
    rows: Vec<f64>,
    fitted: Vec<f64>,
}

impl Reservoir {
    /// Of rows of so many features. The forest is to be grown after `warmup` rows, and again whenever those learned have doubled or
    /// are `refit_rows` more.
    pub(crate) fn new(width: usize, capacity: usize, warmup: u64, refit_rows: u64, seed: u64) -> Self {
        Self {
            width,
            capacity,
            refit_rows,
            learned: 0,
            next_fit: warmup,
            random: Random::new(seed),
            fit_seed: 0,
            rows: Vec::new(),
            fitted: Vec::new(),
        }
    }

    pub(crate) fn size_max(width: usize, capacity: usize) -> usize {
        8 * 4 + 2 * (4 + 8 * capacity * width)
    }

    /// True when the forest is to be grown.
    pub(crate) fn learn(&mut self, row: &[f64]) -> bool {
        let held = self.rows.len() / self.width;
        let slot = if held < self.capacity {
            self.rows.resize((held + 1) * self.width, 0.0);
            Some(held)
        } else {
            let horizon = self.learned.min(16 * self.capacity as u64) as usize + 1;
            Some(self.random.below(horizon)).filter(|slot| *slot < self.capacity)
        };
        if let Some(slot) = slot {
            for (index, kept) in self.rows[slot * self.width..][..self.width].iter_mut().enumerate() {
                *kept = crate::known(row.get(index)).unwrap_or(f64::NAN);
            }
        }
        self.learned += 1;
        let is_due = self.learned >= self.next_fit;
        if is_due {
            self.next_fit = self.learned + self.learned.min(self.refit_rows);
            self.fit_seed = self.random.next();
            self.fitted.clone_from(&self.rows);
        }
        is_due
    }

    /// What the forest is grown from: rows, in which NaN is NULL, and a seed. None before the first time.
    pub(crate) fn fitted(&self) -> Option<(&[f64], u64)> {
        (!self.fitted.is_empty()).then_some((&self.fitted, self.fit_seed))
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        for word in [self.learned, self.next_fit, self.random.state, self.fit_seed] {
            writer.u64(word);
        }
        for rows in [&self.rows, &self.fitted] {
            writer.u32(rows.len() as u32);
            writer.f64s(rows);
        }
    }

    /// Into one that is new.
    pub(crate) fn read(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        self.learned = reader.u64()?;
        self.next_fit = reader.u64()?;
        self.random.state = reader.u64()?;
        self.fit_seed = reader.u64()?;
        if self.learned.max(self.next_fit) > 1 << 62 {
            return Err(Error::State("more rows than can have been learned".into()));
        }
        for rows in [&mut self.rows, &mut self.fitted] {
            let length = reader.length(self.capacity * self.width)?;
            if length % self.width != 0 {
                return Err(Error::State("a row is cut short".into()));
            }
            rows.resize(length, 0.0);
            reader.f64s(rows)?;
            if rows.iter().any(|value| value.is_infinite()) {
                return Err(Error::State("a row is infinite".into()));
            }
        }
        Ok(())
    }
}
