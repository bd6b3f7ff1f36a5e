//! Ranks of raw scores between 0 and 1, forgetting: what is normal for a model on rows that it has not seen.

use crate::Error;
use crate::codec::{Reader, Writer};

const BINS: usize = 256;

#[derive(Clone, Debug)]
pub(crate) struct Ranking {
    counts: [f32; BINS],
    total: f32,
}

impl Ranking {
    pub(crate) const BYTES: usize = 4 * BINS;

    pub(crate) fn new() -> Self {
        Self {
            counts: [0.0; BINS],
            total: 0.0,
        }
    }

    pub(crate) fn learn(&mut self, raw: f64, rows_max: f32) {
        let bin = ((raw * BINS as f64) as usize).min(BINS - 1);
        self.counts[bin] += 1.0;
        self.total += 1.0;
        if self.total > rows_max {
            self.total = 0.0;
            for count in &mut self.counts {
                *count *= 0.5;
                self.total += *count;
            }
        }
    }

    pub(crate) fn rows(&self) -> f32 {
        self.total
    }

    /// Least raw score that at most `share` of the rows exceed; 0 while there are too few to tell.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let allowed = f64::from(self.total) * share;
        if allowed < 1.0 {
            return 0.0;
        }
        let mut above = 0.0;
        for (bin, count) in self.counts.iter().enumerate().rev() {
            above += f64::from(*count);
            if above > allowed {
                return (bin + 1) as f64 / BINS as f64;
            }
        }
        0.0
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        writer.f32s(&self.counts);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut ranking = Self::new();
        reader.f32s(&mut ranking.counts)?;
        let sound = |count: &f32| *count >= 0.0 && *count < 1e9;
        if !ranking.counts.iter().all(sound) {
            return Err(Error::State("a ranking is not one".into()));
        }
        // Halves are exact, so the sum is the one that was kept.
        ranking.total = ranking.counts.iter().sum();
        Ok(ranking)
    }
}
