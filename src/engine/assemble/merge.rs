//! Partials of many panes, added up for a window.
//!
//! Windows that overlap share panes. Their partials are merged ahead into intervals of 4, 16, 64 … panes that begin at multiples of
//! their length in absolute time, so that a window of n panes merges O(log n) of them, whatever the slide (Arasu and Widom,
//! "Resource sharing in continuous sliding-window aggregates", VLDB 2004). The order of time is kept, and which intervals a window
//! is made of follows from its bounds and from the panes there are, so that a restart adds the same numbers in the same order.

use std::{collections::BTreeMap, ops::Range};

use arrow::array::ArrayRef;

use super::Ring;
use crate::{
    Error,
    accumulate::{Accumulator, accumulator},
    spec::ViewSpec,
};

/// Panes, or intervals of the level below, that an interval has.
const FAN: i64 = 4;

/// Some panes' partials as one row per group.
struct Interval {
    /// The greatest watermark of a block in it.
    watermark_ms: i64,
    groups: Vec<u32>,
    /// All state columns of the pane set.
    states: Vec<ArrayRef>,
}

/// Intervals merged ahead: by level, the first being of [`FAN`] panes, then by start.
#[derive(Default)]
pub(super) struct Intervals(Vec<BTreeMap<i64, Interval>>);

impl Intervals {
    fn get(&self, piece: Piece) -> Option<&Interval> {
        self.0.get(piece.level.checked_sub(1)?)?.get(&piece.start_ms)
    }

    fn insert(&mut self, piece: Piece, interval: Interval) {
        if self.0.len() < piece.level {
            self.0.resize_with(piece.level, BTreeMap::new);
        }
        self.0[piece.level - 1].insert(piece.start_ms, interval);
    }

    /// A block has come to this pane.
    pub fn touch(&mut self, pane_start_ms: i64, width_ms: i64) {
        for (below, intervals) in self.0.iter_mut().enumerate() {
            intervals.remove(&floor(pane_start_ms, length_ms(below + 1, width_ms)));
        }
    }

    /// No window needs this pane any more, or one before it.
    pub fn forget(&mut self, pane_start_ms: i64) {
        for intervals in &mut self.0 {
            while intervals
                .first_key_value()
                .is_some_and(|(start, _)| *start <= pane_start_ms)
            {
                intervals.pop_first();
            }
        }
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// A pane (level 0) or an interval.
#[derive(Clone, Copy)]
struct Piece {
    level: usize,
    start_ms: i64,
}

fn length_ms(level: usize, width_ms: i64) -> i64 {
    width_ms.saturating_mul(FAN.saturating_pow(level as u32))
}

pub(super) fn floor(time_ms: i64, length_ms: i64) -> i64 {
    time_ms.saturating_sub(time_ms.rem_euclid(length_ms))
}

/// The groups of a merge, numbered as they come.
#[derive(Default)]
pub(super) struct Numbering {
    /// By number of the ring; [`ABSENT`] but for the groups of this merge.
    places: Vec<u32>,
    /// Numbers of the ring, by place.
    groups: Vec<u32>,
}

pub(super) const ABSENT: u32 = u32::MAX;

impl Numbering {
    fn place(&mut self, groups: &[u32], places: &mut Vec<u32>) {
        places.clear();
        for group in groups {
            let place = &mut self.places[*group as usize];
            if *place == ABSENT {
                *place = self.groups.len() as u32;
                self.groups.push(*group);
            }
            places.push(*place);
        }
    }

    /// The place of a group in this merge, or [`ABSENT`].
    pub fn of(&self, group: u32) -> u32 {
        self.places[group as usize]
    }

    fn begin(&mut self, groups: usize) {
        for group in self.groups.drain(..) {
            self.places[group as usize] = ABSENT;
        }
        self.places.resize(groups, ABSENT);
    }
}

impl Ring {
    /// Merges the panes of one window that start before `until`: the view's aggregates, a row per group in it, and which group has which
    /// row. The caller hands the numbering back to the ring.
    pub(super) fn merge(
        &mut self,
        spec: &ViewSpec,
        (start, end): (i64, i64),
        until: i64,
    ) -> Result<(Numbering, Vec<ArrayRef>), Error> {
        let horizon = end + spec.window.lateness_ms;
        let overlap = spec.window.size_ms > spec.window.slide_ms || spec.window.early_every_ms.is_some();
        let fits = |level: &usize| overlap && length_ms(*level, self.spec.width_ms) <= spec.window.size_ms;
        let top = (1..).take_while(fits).count();
        let pieces = self.pieces(start..until, horizon, top)?;
        let (numbering, mut merged) = self.add_up(&spec.aggregates, &pieces, horizon)?;
        let values = merged.iter_mut().map(|accumulator| accumulator.evaluate());
        Ok((numbering, values.collect::<Result<_, _>>()?))
    }

    /// What has all panes that start in a range and reach a window that closes at the horizon: in order of time, as few as there can be.
    fn pieces(&mut self, range: Range<i64>, horizon: i64, top: usize) -> Result<Vec<Piece>, Error> {
        let mut pieces = Vec::new();
        let mut from = range.start;
        while let Some((pane, _)) = self.panes.range(from..range.end).next() {
            let pane = *pane;
            let mut found = Piece {
                level: 0,
                start_ms: pane,
            };
            let mut next = pane + self.spec.width_ms;
            for level in (1..=top).rev() {
                let length = length_ms(level, self.spec.width_ms);
                let start_ms = floor(pane, length);
                if start_ms < from || start_ms + length > range.end {
                    continue;
                }
                if let Some(piece) = self.piece(Piece { level, start_ms }, horizon)? {
                    found = piece;
                    next = start_ms + length;
                    break;
                }
            }
            pieces.push(found);
            from = next;
        }
        Ok(pieces)
    }

    /// The piece that has all panes of this one: itself, or the only part of it that has any. `None` where some of its rows are too late
    /// for the horizon.
    fn piece(&mut self, piece: Piece, horizon: i64) -> Result<Option<Piece>, Error> {
        if piece.level == 0 {
            return Ok(Some(piece));
        }
        if let Some(interval) = self.intervals.get(piece) {
            return Ok((interval.watermark_ms < horizon).then_some(piece));
        }
        let length = length_ms(piece.level - 1, self.spec.width_ms);
        let starts = (0..FAN).map(|part| piece.start_ms + part * length);
        let parts = starts.filter(|start| self.panes.range(*start..start + length).next().is_some());
        let parts: Vec<Piece> = parts
            .map(|start_ms| Piece {
                level: piece.level - 1,
                start_ms,
            })
            .collect();
        if let [only] = parts[..] {
            return self.piece(only, horizon);
        }
        let mut whole = Vec::new();
        for part in parts {
            whole.extend(self.piece(part, i64::MAX)?);
        }
        let interval = self.interval(&whole)?;
        let in_time = interval.watermark_ms < horizon;
        self.intervals.insert(piece, interval);
        Ok(in_time.then_some(piece))
    }

    fn interval(&mut self, parts: &[Piece]) -> Result<Interval, Error> {
        let aggregates: Vec<usize> = (0..self.spec.aggregates.len()).collect();
        let (numbering, mut merged) = self.add_up(&aggregates, parts, i64::MAX)?;
        let mut states = Vec::new();
        for accumulator in &mut merged {
            states.extend(accumulator.state()?);
        }
        let groups = numbering.groups.clone();
        self.numbering = numbering;
        let latest = |piece: &Piece| match self.intervals.get(*piece) {
            Some(interval) => Some(interval.watermark_ms),
            None => self.panes[&piece.start_ms].iter().map(|block| block.watermark_ms).max(),
        };
        Ok(Interval {
            watermark_ms: parts.iter().filter_map(latest).max().unwrap_or(i64::MIN),
            groups,
            states,
        })
    }

    /// Adds up those rows of pieces that are in time for the horizon.
    fn add_up(
        &mut self,
        aggregates: &[usize],
        pieces: &[Piece],
        horizon: i64,
    ) -> Result<(Numbering, Vec<Box<dyn Accumulator>>), Error> {
        let accumulators = aggregates.iter().map(|at| accumulator(&self.spec.aggregates[*at]));
        let mut accumulators: Vec<Box<dyn Accumulator>> = accumulators.collect::<Result<_, _>>()?;
        let mut numbering = std::mem::take(&mut self.numbering);
        numbering.begin(self.groups.len());
        let mut places = Vec::new();
        let mut add = |groups: &[u32], states: &[ArrayRef]| -> Result<(), Error> {
            numbering.place(groups, &mut places);
            for (accumulator, at) in accumulators.iter_mut().zip(aggregates) {
                let (from, to) = self.states[*at];
                accumulator.merge(&places, &states[from..to], numbering.groups.len())?;
            }
            Ok(())
        };
        for piece in pieces {
            match self.intervals.get(*piece) {
                Some(interval) => add(&interval.groups, &interval.states)?,
                None => {
                    let blocks = self.panes.get(&piece.start_ms).into_iter().flatten();
                    for block in blocks.filter(|block| block.watermark_ms < horizon) {
                        add(&block.groups, &block.states)?;
                    }
                }
            }
        }
        Ok((numbering, accumulators))
    }
}
