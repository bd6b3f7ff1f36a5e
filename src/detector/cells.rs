//! A square map of which pairs of values have been seen, 32 × 32 cells over a range that grows.
//!
//! The detectors that use it ask how far a pair lies from the nearest pair ever seen, in units of the series' own range. That
//! is a novelty in delay space (the pair is a value and one some rows earlier), and needs 128 bytes a map, no arithmetic
//! but bit scans, and no threshold of its own. Positions are kept as fractions of the grid in 16 bits, so that memory of
//! earlier values costs two bytes a row and survives a change of the grid.

use crate::Error;
use crate::codec::{Reader, Writer};

pub(crate) const SIDE: usize = 32;
/// Beyond the range seen so far, on either side, before the grid must grow.
const MARGIN: f64 = 0.25;
const SHIFT: u32 = 11;

/// The range of a series and the grid laid over it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) low: f64,
    pub(crate) high: f64,
    origin: f64,
    span: f64,
}

/// How positions on the old grid turn into positions on the new one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Move {
    offset: f64,
    scale: f64,
}

impl Grid {
    pub(crate) const BYTES: usize = 32;

    pub(crate) fn new() -> Self {
        Self {
            low: f64::INFINITY,
            high: f64::NEG_INFINITY,
            origin: 0.0,
            span: 0.0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.low > self.high
    }

    /// Never 0: a constant has the range of its own rounding.
    pub(crate) fn range(&self) -> f64 {
        (self.high - self.low).max(1e-9 * self.low.abs().max(self.high.abs()).max(1e-3))
    }

    /// How far outside the range a value lies, in ranges.
    pub(crate) fn beyond(&self, value: f64) -> f64 {
        if self.is_empty() {
            return 0.0;
        }
        self.in_ranges((value - self.high).max(self.low - value))
    }

    /// Takes the value into the range; says how positions move when the grid had to be laid anew.
    pub(crate) fn widen(&mut self, value: f64) -> Option<Move> {
        self.low = self.low.min(value);
        self.high = self.high.max(value);
        if self.span > 0.0 && value >= self.origin && value < self.origin + self.span {
            return None;
        }
        let (origin, span) = (self.origin, self.span);
        let range = self.range();
        self.origin = self.low - MARGIN * range;
        self.span = range * (1.0 + 2.0 * MARGIN);
        Some(Move {
            offset: (origin - self.origin) / self.span,
            scale: span / self.span,
        })
    }

    /// Position of a value as a fraction of the grid, clamped to its ends.
    pub(crate) fn position(&self, value: f64) -> u16 {
        if self.span <= 0.0 {
            return 0;
        }
        ((value - self.origin) / self.span * 65536.0) as u16
    }

    /// Length of the whole grid in ranges.
    pub(crate) fn spans(&self) -> f64 {
        self.span / self.range()
    }

    /// How far off the grid a value lies, in ranges; positions are clamped there.
    pub(crate) fn off(&self, value: f64) -> f64 {
        self.in_ranges((value - (self.origin + self.span)).max(self.origin - value))
    }

    /// Most values are within, and need no division.
    fn in_ranges(&self, outside: f64) -> f64 {
        if outside > 0.0 { outside / self.range() } else { 0.0 }
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        writer.f64s(&[self.low, self.high, self.origin, self.span]);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut fields = [0.0; 4];
        reader.f64s(&mut fields)?;
        let [low, high, origin, span] = fields;
        let empty = low == f64::INFINITY && high == f64::NEG_INFINITY;
        let sound = origin.is_finite() && span.is_finite() && span >= 0.0;
        if !sound || !(empty || (low.is_finite() && high.is_finite() && low <= high)) {
            return Err(Error::State("a range is not a range".into()));
        }
        Ok(Self {
            low,
            high,
            origin,
            span,
        })
    }
}

impl Move {
    pub(crate) const NONE: Self = Self {
        offset: 0.0,
        scale: 1.0,
    };

    pub(crate) fn position(&self, position: u16) -> u16 {
        let fraction = (f64::from(position) + 0.5) / 65536.0;
        ((self.offset + self.scale * fraction) * 65536.0) as u16
    }

    pub(crate) fn cell(&self, cell: usize) -> usize {
        let fraction = (cell as f64 + 0.5) / SIDE as f64;
        (((self.offset + self.scale * fraction) * SIDE as f64) as usize).min(SIDE - 1)
    }
}

/// The cell of a position.
pub(crate) fn cell(position: u16) -> usize {
    usize::from(position >> SHIFT)
}

/// Which cells have been seen: a row per earlier value, a bit per value.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cells {
    rows: [u32; SIDE],
}

impl Cells {
    pub(crate) const BYTES: usize = 4 * SIDE;

    pub(crate) fn set(&mut self, row: usize, column: usize) {
        // What is known already is not written: its cache line stays clean.
        if self.rows[row] >> column & 1 == 0 {
            self.rows[row] |= 1 << column;
        }
    }

    /// As [`crate::State::touch`]; most distances are found about this row.
    pub(crate) fn touch(&self, row: usize) -> u32 {
        self.rows[row]
    }

    pub(crate) fn merge(&mut self, other: &mut Self) {
        for (row, more) in self.rows.iter_mut().zip(&mut other.rows) {
            *row |= std::mem::take(more);
        }
    }

    /// Greatest coordinate distance to the nearest cell seen, in cells; [`SIDE`] when none has been.
    pub(crate) fn distance(&self, row: usize, column: usize) -> usize {
        // The rows and the columns of a square around the cell, which grows until it holds a cell seen.
        let mut seen = self.rows[row];
        let mut columns = 1u32 << column;
        let mut away = 0;
        while seen & columns == 0 {
            away += 1;
            if away == SIDE {
                break;
            }
            columns |= columns << 1 | columns >> 1;
            seen |= row.checked_sub(away).map_or(0, |above| self.rows[above]);
            seen |= self.rows.get(row + away).copied().unwrap_or(0);
        }
        away
    }

    /// The grids of rows and columns have moved.
    pub(crate) fn shift(&mut self, by_rows: Move, by_columns: Move) {
        let mut moved = [0; SIDE];
        let to_row: [usize; SIDE] = std::array::from_fn(|cell| by_rows.cell(cell));
        let to_column: [usize; SIDE] = std::array::from_fn(|cell| by_columns.cell(cell));
        for (row, bits) in self.rows.iter().enumerate() {
            let mut left = *bits;
            while left != 0 {
                moved[to_row[row]] |= 1u32 << to_column[left.trailing_zeros() as usize];
                left &= left - 1;
            }
        }
        self.rows = moved;
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        for row in self.rows {
            writer.u32(row);
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut cells = Self::default();
        for row in &mut cells.rows {
            *row = reader.u32()?;
        }
        Ok(cells)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn distance_is_that_of_the_nearest_cell(seen in prop::collection::vec((0..SIDE, 0..SIDE), 0..12), row in 0..SIDE, column in 0..SIDE) {
            let mut cells = Cells::default();
            for (row, column) in &seen {
                cells.set(*row, *column);
            }
            let nearest = seen
                .iter()
                .map(|(a, b)| a.abs_diff(row).max(b.abs_diff(column)))
                .min()
                .unwrap_or(SIDE);
            prop_assert_eq!(cells.distance(row, column), nearest);
        }

        #[test]
        fn a_moved_grid_keeps_what_was_seen_within_a_cell(values in prop::collection::vec(-100.0..100.0f64, 2..40)) {
            let mut grid = Grid::new();
            let mut cells = Cells::default();
            for value in &values {
                if let Some(by) = grid.widen(*value) {
                    cells.shift(by, by);
                }
                let at = cell(grid.position(*value));
                cells.set(at, at);
            }
            for value in &values {
                let at = cell(grid.position(*value));
                prop_assert!(cells.distance(at, at) <= 2);
            }
        }
    }
}
