//! How far a row lies from a slow reference as a whole: Mahalanobis' distance (On the generalised distance in statistics, 1936) in
//! the metric of a ridged covariance (Hoerl and Kennard, Ridge regression, 1970).
//!
//! A feature is taken in units of its deviation, within [`UNIT_MAX`] of them, and the covariance is that of these units: one that is quiet but
//! for a few wild values has a large deviation and little covariance, so it is far off when it is moderately off for
//! long. What is learned is *known* or *pending*, as the maps of [`super::multivariate`] are: rows are held against the known only.
//! Features are taken in blocks of [`BLOCK`] neighbours, so that one costs no more than so many products a row, however many there are.

use crate::Error;
use crate::codec::{Reader, Writer};
use crate::linear::inverse;

const BLOCK: usize = 64;
/// Deviations that a feature counts for at most.
const UNIT_MAX: f64 = 10.0;
/// Deviations from its mean with which a feature's deviation is learned at most: one wild value does not mute it.
const SPREAD_MAX: f64 = 30.0;
/// No feature deviates less than this share of its range: a constant is not infinitely far when it moves.
const RANGE_SHARE: f64 = 0.01;
/// Added to every variance, and more while rows are few beside the features.
const RIDGE: f64 = 0.05;
/// Rows of a feature before its distance counts.
const ROWS_MIN: f64 = 30.0;
/// Rows that are remembered.
const MEMORY_ROWS: f64 = 30_000.0;

pub(super) struct Displacement {
    warmup: f64,
    blocks: Box<[Block]>,
}

impl Displacement {
    /// Says nothing until it knows `warmup` rows.
    pub(super) fn new(features: usize, warmup: u32) -> Self {
        Self {
            warmup: f64::from(warmup),
            blocks: sizes(features).map(Block::new).collect(),
        }
    }

    pub(super) fn bytes(features: usize) -> usize {
        sizes(features).map(Block::bytes).sum()
    }

    /// The squared distance a feature, which is about 1 for rows like the known, and in `parts` what each feature has of it. None while too
    /// little is known. `values` may be NaN; `ranges` are those of the features so far.
    pub(super) fn measure(&mut self, values: &[f64], ranges: &[f64], parts: &mut [f64]) -> Option<f64> {
        if self.blocks.iter().all(|block| block.known.rows_max() < self.warmup) {
            return None;
        }
        let mut total = 0.0;
        let mut from = 0;
        for block in &mut self.blocks {
            let span = from..from + block.deviations.len();
            from = span.end;
            total += block.measure(&values[span.clone()], &ranges[span.clone()], &mut parts[span]);
        }
        let features = values.len() as f64;
        for part in parts {
            *part /= features;
        }
        Some(total / features)
    }

    /// The row is pending; or known, before the first consolidation.
    pub(super) fn learn(&mut self, values: &[f64], ranges: &[f64]) {
        let mut from = 0;
        for block in &mut self.blocks {
            let span = from..from + block.deviations.len();
            from = span.end;
            block.learn(&values[span.clone()], &ranges[span]);
        }
    }

    /// Pending turns known.
    pub(super) fn consolidate(&mut self, ranges: &[f64]) {
        let mut from = 0;
        for block in &mut self.blocks {
            let span = from..from + block.deviations.len();
            from = span.end;
            block.consolidate(&ranges[span]);
        }
    }

    pub(super) fn write(&self, writer: &mut Writer<'_>) {
        for block in &self.blocks {
            writer.f64s(&block.deviations);
            block.known.write(writer);
            block.pending.write(writer);
        }
    }

    pub(super) fn read(features: usize, warmup: u32, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut read = Self::new(features, warmup);
        for block in &mut read.blocks {
            reader.f64s(&mut block.deviations)?;
            block.known.read(reader)?;
            block.pending.read(reader)?;
            if !block
                .deviations
                .iter()
                .all(|deviation| deviation.is_finite() && *deviation >= 0.0)
            {
                return Err(Error::State("a deviation is not one".into()));
            }
            block.invert();
        }
        Ok(read)
    }
}

fn sizes(features: usize) -> impl Iterator<Item = usize> {
    (0..features)
        .step_by(BLOCK)
        .map(move |from| (features - from).min(BLOCK))
}

struct Block {
    known: Moments,
    pending: Moments,
    /// As they were when the known was last added to; 0 before.
    deviations: Box<[f64]>,
    /// Of the ridged covariance of the known, row by row: made anew from the known and the deviations.
    inverse: Box<[f32]>,
    units: Box<[f32]>,
}

impl Block {
    fn bytes(size: usize) -> usize {
        8 * size + 2 * Moments::bytes(size)
    }

    fn new(size: usize) -> Self {
        Self {
            known: Moments::new(size),
            pending: Moments::new(size),
            deviations: vec![0.0; size].into(),
            inverse: vec![0.0; size * size].into(),
            units: vec![0.0; size].into(),
        }
    }

    fn measure(&mut self, values: &[f64], ranges: &[f64], parts: &mut [f64]) -> f64 {
        for (at, unit) in self.units.iter_mut().enumerate() {
            let units = (values[at] - self.known.means[at]) / self.deviations[at].max(RANGE_SHARE * ranges[at]);
            *unit = if units.is_nan() || self.known.rows[at] < ROWS_MIN {
                0.0
            } else {
                units.clamp(-UNIT_MAX, UNIT_MAX) as f32
            };
        }
        let (mut total, mut positive) = (0.0, 0.0);
        for ((part, unit), row) in parts
            .iter_mut()
            .zip(&self.units)
            .zip(self.inverse.chunks_exact(self.units.len()))
        {
            let along: f32 = row.iter().zip(&self.units).map(|(entry, unit)| entry * unit).sum();
            let product = f64::from(unit * along);
            total += product;
            *part = product.max(0.0);
            positive += *part;
        }
        // A feature that others explain has a negative part: theirs are cut by it.
        let total = total.max(0.0);
        let share = if positive > 0.0 { total / positive } else { 0.0 };
        for part in parts {
            *part *= share;
        }
        total
    }

    fn learn(&mut self, values: &[f64], ranges: &[f64]) {
        if self.deviations.iter().all(|deviation| *deviation == 0.0) {
            self.known.learn(|at| values[at]);
            for (at, spread) in self.known.spreads.iter_mut().enumerate() {
                *spread = self.known.scatter[index(at, at)];
            }
            return;
        }
        let Self {
            known,
            pending,
            deviations,
            ..
        } = self;
        let within = |at: usize, most: f64| {
            let reach = if known.rows[at] > 0.0 {
                most * f64::max(deviations[at], RANGE_SHARE * ranges[at])
            } else {
                f64::INFINITY
            };
            (values[at] - known.means[at]).clamp(-reach, reach)
        };
        for (at, spread) in pending.spreads.iter_mut().enumerate() {
            if !values[at].is_nan() {
                *spread += within(at, SPREAD_MAX).powi(2);
            }
        }
        pending.learn(|at| known.means[at] + within(at, UNIT_MAX));
    }

    fn consolidate(&mut self, ranges: &[f64]) {
        self.known.merge(&mut self.pending);
        for (at, deviation) in self.deviations.iter_mut().enumerate() {
            let variance = self.known.spreads[at] / self.known.rows[at].max(1.0);
            *deviation = variance.sqrt().max(RANGE_SHARE * ranges[at]);
        }
        self.invert();
    }

    fn invert(&mut self) {
        let size = self.deviations.len();
        let ridge = RIDGE + size as f64 / self.known.rows_max().max(1.0);
        let units: Vec<f64> = self
            .deviations
            .iter()
            .zip(&self.known.rows)
            .map(|(deviation, rows)| {
                let unit = 1.0 / (deviation * rows.max(1.0).sqrt());
                if unit.is_finite() { unit } else { 0.0 }
            })
            .collect();
        let mut matrix = vec![0.0; size * size];
        for row in 0..size {
            for column in 0..=row {
                matrix[row * size + column] = self.known.scatter[index(row, column)] * units[row] * units[column];
            }
            matrix[row * size + row] += ridge;
        }
        for (entry, inverted) in self.inverse.iter_mut().zip(inverse(matrix, size)) {
            *entry = inverted as f32;
        }
    }
}

/// Where the lower triangle of a symmetric matrix keeps the entry of a row and a column not beyond it.
fn index(row: usize, column: usize) -> usize {
    row * (row + 1) / 2 + column
}

/// Per feature: rows, mean, sum of squares around the mean. And sums of products, of values that are held within [`UNIT_MAX`].
struct Moments {
    rows: Box<[f64]>,
    means: Box<[f64]>,
    spreads: Box<[f64]>,
    /// The lower triangle, row by row.
    scatter: Box<[f64]>,
}

impl Moments {
    fn bytes(size: usize) -> usize {
        8 * (3 * size + index(size, 0))
    }

    fn new(size: usize) -> Self {
        Self {
            rows: vec![0.0; size].into(),
            means: vec![0.0; size].into(),
            spreads: vec![0.0; size].into(),
            scatter: vec![0.0; index(size, 0)].into(),
        }
    }

    fn rows_max(&self) -> f64 {
        self.rows.iter().copied().fold(0.0, f64::max)
    }

    /// Welford, Note on a method for calculating corrected sums of squares and products, 1962. NaN is not learned.
    fn learn(&mut self, value: impl Fn(usize) -> f64) {
        let mut changes = [0.0; BLOCK];
        for (at, scaled) in changes[..self.rows.len()].iter_mut().enumerate() {
            let change = value(at) - self.means[at];
            if change.is_nan() {
                continue;
            }
            let rows = self.rows[at];
            self.rows[at] = rows + 1.0;
            self.means[at] += change / (rows + 1.0);
            *scaled = change * (rows / (rows + 1.0)).sqrt();
        }
        self.scatter_by(&changes);
    }

    /// Stays positive semidefinite where features differ in how many of their values are known.
    fn scatter_by(&mut self, changes: &[f64; BLOCK]) {
        let mut rest = &mut self.scatter[..];
        for (row, change) in changes[..self.rows.len()].iter().enumerate() {
            let (entries, after) = rest.split_at_mut(row + 1);
            for (entry, other) in entries.iter_mut().zip(changes) {
                *entry += change * other;
            }
            rest = after;
        }
    }

    /// As if the other's rows, whose spreads are around this mean, had been learned here. Of old rows those beyond [`MEMORY_ROWS`] are forgotten;
    /// the other is empty afterwards.
    fn merge(&mut self, other: &mut Self) {
        let keep = ((MEMORY_ROWS - other.rows_max()) / self.rows_max().max(1.0)).clamp(0.0, 1.0);
        for sum in self.rows.iter_mut().chain(&mut self.spreads).chain(&mut self.scatter) {
            *sum *= keep;
        }
        let mut changes = [0.0; BLOCK];
        for (at, scaled) in changes[..self.rows.len()].iter_mut().enumerate() {
            let (old, new) = (self.rows[at], other.rows[at]);
            if new > 0.0 {
                let change = other.means[at] - self.means[at];
                let moved = change * new / (old + new);
                self.rows[at] = old + new;
                self.means[at] += moved;
                self.spreads[at] = if old > 0.0 {
                    (self.spreads[at] + other.spreads[at] - (old + new) * moved * moved).max(0.0)
                } else {
                    other.scatter[index(at, at)]
                };
                *scaled = change * (old * new / (old + new)).sqrt();
            }
        }
        for (sum, more) in self.scatter.iter_mut().zip(&other.scatter) {
            *sum += more;
        }
        self.scatter_by(&changes);
        *other = Self::new(self.rows.len());
    }

    fn write(&self, writer: &mut Writer<'_>) {
        for values in [&self.rows, &self.means, &self.spreads, &self.scatter] {
            writer.f64s(values);
        }
    }

    fn read(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        for values in [&mut self.rows, &mut self.means, &mut self.spreads, &mut self.scatter] {
            reader.f64s(values)?;
        }
        let sums = self.rows.iter().chain(&self.spreads);
        let squares = (0..self.rows.len()).map(|at| &self.scatter[index(at, at)]);
        let sound = sums.chain(squares).all(|sum| *sum >= 0.0)
            && [&self.rows, &self.means, &self.spreads, &self.scatter]
                .into_iter()
                .all(|values| values.iter().all(|value| value.is_finite()));
        if sound {
            Ok(())
        } else {
            Err(Error::State("moments are not moments".into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn moments_learned_apart_and_merged_are_those_of_all_rows(
            rows in prop::collection::vec(prop::collection::vec(-5.0..5.0f64, 3), 2..40),
            split in 0.0..1.0f64,
        ) {
            let split = (split * rows.len() as f64) as usize;
            let mut all = Moments::new(3);
            let (mut first, mut second) = (Moments::new(3), Moments::new(3));
            for (at, row) in rows.iter().enumerate() {
                all.learn(|feature| row[feature]);
                let half = if at < split { &mut first } else { &mut second };
                half.learn(|feature| row[feature]);
            }
            first.merge(&mut second);
            for (found, expected) in first.scatter.iter().zip(&all.scatter).chain(first.means.iter().zip(&all.means)) {
                prop_assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
            }
            prop_assert_eq!(&first.rows, &all.rows);
        }
    }
}
