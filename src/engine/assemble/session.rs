//! Sessions: rows of one group with gaps of at most the view's gap.
//!
//! A pane is no wider than the gap, so that all rows of a group in one pane are of one session, and the least and greatest
//! event time of every pane tell where sessions begin and end, to the millisecond. A session closes when the watermark
//! passes its last row by gap and lateness. One that goes on for [`SESSION_PANES_MAX`] panes is cut there: nothing is unbounded.

use std::collections::BTreeMap;

use arrow::{
    array::{Array, ArrayRef, AsArray, UInt32Array},
    compute::{cast, take_arrays},
    datatypes::{DataType, Int64Type, TimeUnit},
    row::OwnedRow,
};

use super::{Block, ClosedWindow, Ring, project};
use crate::{
    Error,
    accumulate::{Accumulator, accumulator},
};

/// Panes that one session may have.
pub const SESSION_PANES_MAX: i64 = 4_096;

/// What a view knows of its sessions.
pub struct Sessions {
    /// Panes from here on hold rows of open sessions.
    open_from_ms: i64,
    /// By key, the last row of the last session that was told.
    told: BTreeMap<OwnedRow, i64>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            open_from_ms: i64::MIN,
            told: BTreeMap::new(),
        }
    }
}

impl Sessions {
    /// Whether some session is open that began before this time, by the start of its first pane.
    pub fn are_open_before(&self, time_ms: i64) -> bool {
        self.open_from_ms < time_ms
    }

    /// Whether an open session may have rows in this pane.
    pub fn holds(&self, pane_start_ms: i64) -> bool {
        pane_start_ms >= self.open_from_ms
    }
}

/// First and last event time of some rows of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    first_ms: i64,
    last_ms: i64,
}

/// Spans that are at most the gap apart are of one session.
fn sessions(mut spans: Vec<Span>, gap_ms: i64, longest_ms: i64) -> Vec<Span> {
    spans.sort_unstable();
    let mut found: Vec<Span> = Vec::new();
    for span in spans {
        match found.last_mut() {
            Some(last) if span.first_ms - last.last_ms <= gap_ms && span.last_ms - last.first_ms <= longest_ms => {
                last.last_ms = last.last_ms.max(span.last_ms);
            }
            _ => found.push(span),
        }
    }
    found
}

impl Ring {
    /// Closes the sessions whose end + lateness lies in (before, now], in order of their ends.
    pub(super) fn close_sessions(
        &mut self,
        view: usize,
        gap_ms: i64,
        (before, now): (Option<i64>, i64),
        first_pane: Option<i64>,
        closed: &mut Vec<ClosedWindow>,
    ) -> Result<(), Error> {
        let lateness_ms = self.views[view].spec.window.lateness_ms;
        let width_ms = self.spec.width_ms;
        let mut spans: BTreeMap<u32, Vec<Span>> = BTreeMap::new();
        for block in self.panes.values().flatten() {
            for (group, span) in block.groups.iter().zip(self.spans(view, block)?) {
                spans.entry(*group).or_default().extend(span);
            }
        }
        let mut open_from_ms = i64::MAX;
        let mut over: Vec<(Span, u32)> = Vec::new();
        for (group, spans) in spans {
            let key = self.groups.key(group);
            let told_ms = self.views[view].sessions.told.get(key).copied();
            for session in sessions(spans, gap_ms, SESSION_PANES_MAX * width_ms) {
                let passed_ms = session.last_ms + gap_ms + lateness_ms;
                let known = told_ms.is_some_and(|told| session.last_ms <= told);
                let turn = &self.views[view].turn;
                // The ones that begin later are the next version's, the ones that began before were the last one's.
                if !turn.takes(session.first_ms + 1) || !turn.is_after(session.first_ms + 1) {
                    continue;
                }
                if known || before.is_some_and(|before| passed_ms <= before) {
                    continue;
                }
                if passed_ms > now {
                    open_from_ms = open_from_ms.min(session.first_ms - session.first_ms.rem_euclid(width_ms));
                    continue;
                }
                self.views[view].sessions.told.insert(key.clone(), session.last_ms);
                if first_pane.is_none_or(|first| session.first_ms >= first) {
                    over.push((session, group));
                }
            }
        }
        let oldest_ms = self.panes.first_key_value().map_or(i64::MAX, |(pane, _)| *pane);
        let sessions = &mut self.views[view].sessions;
        sessions.open_from_ms = open_from_ms;
        sessions.told.retain(|_, last| *last >= oldest_ms);
        if over.is_empty() {
            return Ok(());
        }
        let groups = &self.groups;
        over.sort_unstable_by(|(a, left), (b, right)| {
            let order = (a.last_ms, a.first_ms).cmp(&(b.last_ms, b.first_ms));
            order.then_with(|| groups.key(*left).cmp(groups.key(*right)))
        });
        self.tell(view, gap_ms, &over, closed)
    }

    /// First and last event time of each row of a block.
    fn spans(&self, view: usize, block: &Block) -> Result<Vec<Option<Span>>, Error> {
        let aggregates = &self.views[view].spec.aggregates;
        let times = |from_end: usize| -> Result<Vec<Option<i64>>, Error> {
            let at = aggregates.len().checked_sub(from_end).and_then(|at| aggregates.get(at));
            let column = at.and_then(|at| block.states.get(self.states[*at].0));
            milliseconds(column.ok_or_else(|| Error::Shape {
                what: "session",
                expected: "least and greatest event time".into(),
                found: format!("{} aggregates", aggregates.len()),
            })?)
        };
        let pairs = times(2)?.into_iter().zip(times(1)?);
        Ok(pairs
            .map(|(first, last)| {
                Some(Span {
                    first_ms: first?,
                    last_ms: last?,
                })
            })
            .collect())
    }

    /// The rows of sessions that are over.
    fn tell(
        &self,
        view: usize,
        gap_ms: i64,
        over: &[(Span, u32)],
        closed: &mut Vec<ClosedWindow>,
    ) -> Result<(), Error> {
        let spec = self.views[view].spec.clone();
        let mut accumulators: Vec<Box<dyn Accumulator>> = spec
            .aggregates
            .iter()
            .map(|at| accumulator(&self.spec.aggregates[*at]))
            .collect::<Result<_, _>>()?;
        let mut places: BTreeMap<(u32, i64), (usize, i64)> = BTreeMap::new();
        for (place, (session, group)) in over.iter().enumerate() {
            places.insert((*group, session.first_ms), (place, session.last_ms));
        }
        // Accumulators of DataFusion take it that every group has come by the time that it is counted.
        let mut order: Vec<Option<u32>> = vec![None; over.len()];
        let mut met = 0;
        for block in self.panes.values().flatten() {
            let (mut rows, mut groups) = (Vec::new(), Vec::new());
            for (row, span) in self.spans(view, block)?.into_iter().enumerate() {
                let Some(span) = span else { continue };
                let group = block.groups[row];
                let found = places.range((group, i64::MIN)..=(group, span.first_ms)).next_back();
                if let Some((_, (place, last_ms))) = found.filter(|(_, (_, last_ms))| span.last_ms <= *last_ms) {
                    debug_assert!(span.first_ms <= *last_ms);
                    rows.push(row as u32);
                    groups.push(*order[*place].get_or_insert_with(|| {
                        met += 1;
                        met - 1
                    }));
                }
            }
            if rows.is_empty() {
                continue;
            }
            let rows = UInt32Array::from(rows);
            for (accumulator, at) in accumulators.iter_mut().zip(&spec.aggregates) {
                let (from, to) = self.states[*at];
                let states = take_arrays(&block.states[from..to], &rows, None)?;
                accumulator.merge(&groups, &states, met as usize)?;
            }
        }
        let values: Vec<ArrayRef> = accumulators
            .iter_mut()
            .map(|accumulator| accumulator.evaluate())
            .collect::<Result<_, _>>()?;
        let values = take_arrays(&values, &UInt32Array::from(order), None)?;
        let keys = self
            .groups
            .columns(over.iter().map(|(_, group)| self.groups.key(*group)))?;
        let bounds: Vec<(i64, i64)> = over
            .iter()
            .map(|(session, _)| (session.first_ms, session.last_ms + gap_ms))
            .collect();
        let (rows, bounds) = project(&spec, keys, values, &bounds, true)?;
        let mut from = 0;
        for same in bounds.chunk_by(|left, right| left == right) {
            closed.push(self.views[view].closed(same[0], None, rows.slice(from, same.len())));
            from += same.len();
        }
        Ok(())
    }
}

/// Timestamps of any unit, rounded down.
fn milliseconds(column: &ArrayRef) -> Result<Vec<Option<i64>>, Error> {
    let per_ms = |value: i64| match column.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => value.saturating_mul(1_000),
        DataType::Timestamp(TimeUnit::Microsecond, _) => value.div_euclid(1_000),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => value.div_euclid(1_000_000),
        _ => value,
    };
    let values = cast(column, &DataType::Int64)?;
    let values = values.as_primitive::<Int64Type>();
    Ok(values.iter().map(|value| value.map(per_ms)).collect())
}
