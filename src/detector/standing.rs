//! An alarm stands until its score falls to [`RELEASE`]. So that the detector does not become used to the fault meanwhile, its rows are not learned, for as
//! long as [`PATIENCE_ROWS`]; the first one is, so that alarms by chance count among what is usual.

use crate::Error;
use crate::codec::{Reader, Writer};

/// Score below which a standing alarm ends.
pub(crate) const RELEASE: f64 = 0.5;
/// Rows of a standing alarm that are not learned, and no more than there were before it: then what lasts is the new normal.
const PATIENCE_ROWS: u32 = 1000;

/// Whether an alarm stands, and if so, how many rows of it are still not to be learned.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Standing(Option<u32>);

impl Standing {
    pub(crate) const BYTES: usize = 4;

    /// Whether a row that may be learned should be, before its score is known.
    pub(crate) fn may_learn(self) -> bool {
        self.0.is_none_or(|rows| rows == 0)
    }

    pub(crate) fn stands(self) -> bool {
        self.0.is_some()
    }

    /// Takes the score of a row that may be learned, after `rows_before`; where `begins` is false no alarm begins with it. Answers with the score, which
    /// is 1 at least while the alarm stands, and whether the row should be learned.
    pub(crate) fn step(&mut self, score: f64, begins: bool, rows_before: u32) -> (f64, bool) {
        let may_learn = self.may_learn();
        self.0 = match self.0 {
            Some(rows) if score >= RELEASE => Some(rows.saturating_sub(1)),
            None if score >= 1.0 && begins => Some(rows_before.min(PATIENCE_ROWS)),
            _ => None,
        };
        if self.stands() {
            (score.max(1.0), may_learn)
        } else {
            (score, true)
        }
    }

    pub(crate) fn write(self, writer: &mut Writer<'_>) {
        writer.u32(self.0.map_or(0, |rows| rows + 1));
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let rows = reader.u32()?.checked_sub(1);
        if rows.is_some_and(|rows| rows > PATIENCE_ROWS) {
            return Err(Error::State("an alarm stands for too long".into()));
        }
        Ok(Self(rows))
    }
}
