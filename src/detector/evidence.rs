//! Evidence of several views in one currency, and one alarm per episode.

use crate::Error;
use crate::codec::{Reader, Writer};

/// No view counts for more, whatever it has seen.
pub(crate) const EVIDENCE_MAX: f64 = 3.0;

/// Turns a view's distance into evidence: distance over (a floor plus a multiple of what is usual for this series).
///
/// The floor keeps evidence absolute (labels follow deviation relative to the range, not to noise); the usual distance lets a
/// series that is always a little new be so without alarms. It is a mean with a long memory in which no single row counts much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Usual {
    mean: f32,
    rows: u16,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) floor: f64,
    pub(crate) usual: f64,
}

impl Usual {
    pub(crate) const BYTES: usize = 6;
    const ROWS_MAX: u16 = 2000;
    const ROWS_PRIOR: u16 = 100;

    pub(crate) fn new() -> Self {
        Self { mean: 0.0, rows: 0 }
    }

    pub(crate) fn evidence(&self, scale: Scale, distance: f64) -> f64 {
        if distance == 0.0 {
            return 0.0;
        }
        (distance / (scale.floor + scale.usual * f64::from(self.mean))).min(EVIDENCE_MAX)
    }

    pub(crate) fn learn(&mut self, scale: Scale, distance: f64) {
        let mean = f64::from(self.mean);
        let rows = f64::from(Self::ROWS_PRIOR + self.rows).min(f64::from(Self::ROWS_MAX));
        let counted = distance.min(20.0 * mean + scale.floor);
        self.mean = (mean + (counted - mean) / rows) as f32;
        self.rows = (self.rows + 1).min(Self::ROWS_MAX);
    }

    pub(crate) fn mean(&self) -> f64 {
        f64::from(self.mean)
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        writer.f32(self.mean);
        writer.u16(self.rows);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mean = reader.f32()?;
        let rows = reader.u16()?;
        if !(mean.is_finite() && mean >= 0.0 && rows <= Self::ROWS_MAX) {
            return Err(Error::State("a mean distance is not one".into()));
        }
        Ok(Self { mean, rows })
    }
}

/// The greatest evidence of the last 110 to 120 rows. Evidence that does not exceed it is the same episode.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub(crate) struct Peaks {
    blocks: [f32; Self::BLOCKS],
    row: u8,
}

impl Peaks {
    pub(crate) const BYTES: usize = 4 * Self::BLOCKS + 1;
    const BLOCKS: usize = 12;
    const ROWS: u8 = 10;

    pub(crate) fn new() -> Self {
        Self {
            blocks: [0.0; Self::BLOCKS],
            row: 0,
        }
    }

    /// As [`crate::State::touch`].
    pub(crate) fn touch(&self) -> u32 {
        u32::from(self.row)
    }

    pub(crate) fn highest(&self) -> f64 {
        // They are finite.
        let larger = |a: f32, b: &f32| if *b > a { *b } else { a };
        f64::from(self.blocks.iter().fold(0.0, larger))
    }

    pub(crate) fn push(&mut self, evidence: f64) {
        let block = usize::from(self.row / Self::ROWS);
        if self.row.is_multiple_of(Self::ROWS) {
            self.blocks[block] = 0.0;
        }
        // Rounded up, so that the same evidence again does not exceed it.
        self.blocks[block] = self.blocks[block].max((evidence as f32).next_up());
        self.row = (self.row + 1) % (Self::BLOCKS as u8 * Self::ROWS);
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        writer.f32s(&self.blocks);
        writer.u8(self.row);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut peaks = Self::new();
        reader.f32s(&mut peaks.blocks)?;
        peaks.row = reader.u8()?;
        if usize::from(peaks.row) >= Self::BLOCKS * usize::from(Self::ROWS)
            || peaks.blocks.iter().any(|block| !block.is_finite())
        {
            return Err(Error::State("peaks are out of place".into()));
        }
        Ok(peaks)
    }
}
