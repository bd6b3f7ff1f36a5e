//! Sets that come later, and the rows before: read again for them, beside what is new, until both meet.
//!
//! What was read before goes into panes without regard to lateness: it is all there. It is published with every commit, so that nothing of
//! it stays unsaid and an offset is all that a restore needs. Where the reading again has come to the position of the partition, the set
//! is followed like every other.

use std::ops::Range;

use super::{FirstPane, Lane, Remarks, Rows, Set};
use crate::{
    aggregate::side::Fault,
    error::Error,
    panes::{Span, Unusual},
    spec::SourceSpec,
};

/// Partials of open panes, of all sets that are backfilled, from which on a commit is due.
const GROUPS_MAX: usize = 100_000;

impl Set {
    /// Up to where it was backfilled; `None` where it is not.
    fn backfilled_to(&self) -> Option<i64> {
        match self.first_pane {
            FirstPane::Backfilling { offset, .. } => Some(offset),
            _ => None,
        }
    }
}

impl Lane {
    fn backfilling(&self) -> impl Iterator<Item = (&Set, i64)> {
        self.sets.iter().filter_map(|set| Some((set, set.backfilled_to()?)))
    }

    /// The least offset that is to be read again; `None` where nothing is.
    pub fn rereads_from(&self) -> Option<i64> {
        self.backfilling().map(|(_, offset)| offset).min()
    }

    /// Whether all of the source is read again: nobody has said yet what was wrong with its records.
    pub fn is_new(&self) -> bool {
        self.sets.iter().all(|set| !set.is_followed())
    }

    /// Folds rows that are read again into the sets that do not have them.
    pub fn reread(&mut self, spec: &SourceSpec, rows: &Rows) -> Result<Remarks, Error> {
        let mut remarks = Remarks::default();
        let usable = self.usable(spec, rows, &mut remarks)?;
        if !self.is_new() {
            remarks.unusable.clear();
        }
        self.record_watermarks.clear();
        self.record_watermarks.resize(rows.offsets.len(), i64::MIN);
        let count = rows.offsets.len();
        for at in 0..self.sets.len() {
            let Some(offset) = self.sets[at].backfilled_to() else {
                continue;
            };
            let set = &mut self.sets[at];
            let from = rows.offsets.partition_point(|other| *other < offset);
            for (row, reason) in set.store.prepare(&rows.batch, &self.times_ms, &usable)? {
                if row as usize >= from {
                    remarks.unusable.push(super::Unusable {
                        row: row as usize,
                        fault: Fault::Expression,
                        reason,
                    });
                }
            }
            self.fold_again(at, from..count, rows, &mut remarks)?;
        }
        Ok(remarks)
    }

    fn fold_again(
        &mut self,
        at: usize,
        mut span: Range<usize>,
        rows: &Rows,
        remarks: &mut Remarks,
    ) -> Result<(), Error> {
        let mut unusual = Unusual::default();
        let set = &mut self.sets[at];
        let first_pane_ms = set.first_pane_ms();
        let record_watermarks = &self.record_watermarks;
        let part = |rows_of: Range<usize>| Span {
            rows: rows_of,
            floor_ms: None,
            first_pane_ms,
            offsets: &rows.offsets,
            record_watermarks,
        };
        while set.store.evicts()
            && let Some(full) = set.store.full_before(&part(span.clone()))
        {
            set.store.fold(&part(span.start..full), &mut unusual)?;
            set.publish_backfill()?;
            span.start = full;
        }
        set.store.fold(&part(span), &mut unusual)?;
        set.refuse(self.keys_max, &mut unusual, remarks)
    }

    /// Everything below this offset was read again.
    pub fn has_reread(&mut self, next: i64) {
        for set in &mut self.sets {
            if let FirstPane::Backfilling { offset, .. } = &mut set.first_pane {
                *offset = next.max(*offset);
            }
        }
    }

    /// Sets that have what is below the partition's `position` are followed from there on. `met_ms` is the partition's watermark, for each
    /// set. Tells which these are. All of the lane is published then: a replay that began before would put rows into them twice.
    pub fn meet(&mut self, position: i64, met_ms: impl Fn(usize) -> Option<i64>) -> Result<Vec<usize>, Error> {
        let mut met = Vec::new();
        if self.is_replaying() {
            return Ok(met);
        }
        for (at, set) in self.sets.iter_mut().enumerate() {
            let FirstPane::Backfilling { first_pane_ms, offset } = set.first_pane else {
                continue;
            };
            if offset < position {
                continue;
            }
            set.publish_backfill()?;
            let met_ms = met_ms(at).unwrap_or(first_pane_ms);
            set.first_pane = FirstPane::Backfilled { first_pane_ms, met_ms };
            self.crossed = true;
            met.push(at);
        }
        if !met.is_empty() {
            self.publish_all()?;
        }
        Ok(met)
    }

    /// Called once before each commit: nothing that was read again stays unsaid.
    pub fn publish_backfill(&mut self) -> Result<(), Error> {
        let backfilling = self.sets.iter_mut().filter(|set| !set.is_followed());
        backfilling.into_iter().try_for_each(Set::publish_backfill)
    }

    /// Whether so much was read again that a commit is due.
    pub fn is_backfill_full(&self) -> bool {
        self.backfilling()
            .map(|(set, _)| set.store.open_groups())
            .sum::<usize>()
            > GROUPS_MAX
    }
}

impl Set {
    fn publish_backfill(&mut self) -> Result<(), Error> {
        let sealed = self.store.flush(None)?;
        sealed.into_iter().for_each(|sealed| self.keep(sealed));
        Ok(())
    }
}
