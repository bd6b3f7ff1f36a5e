//! Sessions: rows of one group with gaps of at most the view's gap.
//!
//! A pane is no wider than the gap, so that all rows of a group in one pane are of one session, and the least and greatest
//! event time of every pane tell where sessions begin and end, to the millisecond. A session closes when the watermark, floored to
//! the width of a pane, has passed its last row by more than gap and lateness: until then a partition may bring rows of it that are not late.
//! A row behind the watermark of its own partition joins a session that was open for that, and is late where it is near none. One that
//! goes on for [`SESSION_PANES_MAX`] panes is cut there: nothing is unbounded.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array},
    compute::{cast, take_arrays},
    datatypes::{DataType, Int64Type, TimeUnit},
    row::OwnedRow,
};

use super::{Assembled, Block, ClosedWindow, LatePane, Ring, View, merge::floor, project};
use crate::{
    Error,
    accumulate::{Accumulator, accumulator},
    panes::pane_schema,
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

    /// Rows have come to this pane since sessions were last closed.
    pub fn touch(&mut self, pane_start_ms: i64) {
        self.open_from_ms = self.open_from_ms.min(pane_start_ms);
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

impl Span {
    fn with(self, other: Self) -> Self {
        Self {
            first_ms: self.first_ms.min(other.first_ms),
            last_ms: self.last_ms.max(other.last_ms),
        }
    }
}

/// One row of a block: the rows of one group in one pane that came together.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    span: Span,
    /// Of the partition that they came from, before them.
    watermark_ms: i64,
    /// Pane, index of the block in it, row of the block.
    place: (i64, usize, u32),
}

/// A session with its arrivals, by index.
#[derive(Debug)]
struct Session {
    span: Span,
    arrivals: Vec<usize>,
}

/// How sessions are cut.
#[derive(Clone, Copy)]
struct Cut {
    gap_ms: i64,
    lateness_ms: i64,
    longest_ms: i64,
}

impl Cut {
    /// When a session with this last row closes: at a watermark beyond it. At the time itself a row may come that joins it.
    fn passed_ms(self, last_ms: i64) -> i64 {
        last_ms.saturating_add(self.gap_ms).saturating_add(self.lateness_ms)
    }

    /// Whether rows are further behind the watermark of their partition than is allowed.
    fn is_behind(self, arrival: &Arrival) -> bool {
        arrival.place.0.saturating_add(self.lateness_ms) < arrival.watermark_ms
    }

    /// The sessions of one group in order of time, and the arrivals that are late: behind the watermark of their partition, and near no session
    /// that was open for it. They come in the order of those watermarks, so that it does not matter which partition is read first.
    fn sessions(self, arrivals: &[Arrival]) -> (Vec<Session>, Vec<usize>) {
        let mut order: Vec<usize> = (0..arrivals.len()).collect();
        order.sort_unstable_by_key(|at| {
            let arrival = &arrivals[*at];
            (arrival.watermark_ms, self.is_behind(arrival), arrival.span)
        });
        let (mut sessions, mut late) = (Vec::<Session>::new(), Vec::new());
        for at in order {
            let Arrival { span, watermark_ms, .. } = arrivals[at];
            let mut is_late = self.is_behind(&arrivals[at]);
            let mut joined = Session {
                span,
                arrivals: vec![at],
            };
            let mut index = 0;
            while let Some(session) = sessions.get(index) {
                let near = session.span.first_ms.saturating_sub(span.last_ms) <= self.gap_ms
                    && span.first_ms.saturating_sub(session.span.last_ms) <= self.gap_ms;
                let open = self.passed_ms(session.span.last_ms) >= watermark_ms;
                let whole = joined.span.with(session.span);
                if near && open && whole.last_ms.saturating_sub(whole.first_ms) <= self.longest_ms {
                    joined.span = whole;
                    joined.arrivals.extend(sessions.swap_remove(index).arrivals);
                    is_late = false;
                } else {
                    index += 1;
                }
            }
            match is_late {
                true => late.push(at),
                false => sessions.push(joined),
            }
        }
        sessions.sort_unstable_by_key(|session| session.span);
        (sessions, late)
    }
}

/// A session that is over, and its group.
struct Over {
    span: Span,
    group: u32,
    places: Vec<(i64, usize, u32)>,
}

impl Ring {
    /// Closes the sessions whose last row, gap and lateness the watermark has passed from `before` to `now`, in order of their ends; and tells
    /// which rows came for one that was closed for their partition.
    pub(super) fn close_sessions(
        &mut self,
        view: usize,
        gap_ms: i64,
        (before, now): (Option<i64>, i64),
        first_pane: Option<i64>,
        assembled: &mut Assembled,
    ) -> Result<(), Error> {
        let width_ms = self.spec.width_ms;
        let (before, now) = (before.map(|before| floor(before, width_ms)), floor(now, width_ms));
        if before == Some(now) {
            return Ok(());
        }
        let cut = Cut {
            gap_ms,
            lateness_ms: self.views[view].spec.window.lateness_ms,
            longest_ms: SESSION_PANES_MAX * width_ms,
        };
        let mut open_from_ms = i64::MAX;
        let (mut over, mut late) = (Vec::new(), BTreeMap::new());
        for (group, arrivals) in self.arrivals(view)? {
            let View { turn, sessions, .. } = &mut self.views[view];
            let key = self.groups.key(group);
            let told_ms = sessions.told.get(key).copied();
            let (found, behind) = cut.sessions(&arrivals);
            for Arrival {
                watermark_ms, place, ..
            } in behind.into_iter().map(|at| arrivals[at])
            {
                // Before its watermark is passed not every row of the session may be here, after that it has been told.
                if watermark_ms < now && before.is_none_or(|before| watermark_ms >= before) {
                    late.entry((place.0, place.1)).or_insert_with(Vec::new).push(place.2);
                }
            }
            for Session { span, arrivals: of } in found {
                let passed_ms = cut.passed_ms(span.last_ms);
                let known = told_ms.is_some_and(|told| span.last_ms <= told);
                // The ones that begin later are the next version's, the ones that began before were the last one's.
                if !turn.takes(span.first_ms + 1) || !turn.is_after(span.first_ms + 1) {
                    continue;
                }
                if known || before.is_some_and(|before| passed_ms < before) {
                    continue;
                }
                if passed_ms >= now {
                    open_from_ms = open_from_ms.min(floor(span.first_ms, width_ms));
                    continue;
                }
                sessions.told.insert(key.clone(), span.last_ms);
                if first_pane.is_none_or(|first| span.first_ms >= first) {
                    let places = of.into_iter().map(|at| arrivals[at].place).collect();
                    over.push(Over { span, group, places });
                }
            }
        }
        let oldest_ms = self.panes.first_key_value().map_or(i64::MAX, |(pane, _)| *pane);
        let sessions = &mut self.views[view].sessions;
        sessions.open_from_ms = open_from_ms;
        sessions.told.retain(|_, last| *last >= oldest_ms);
        for ((pane, block), rows) in late {
            assembled
                .late
                .push(self.late_rows(view, pane, &self.panes[&pane][block], rows)?);
        }
        if over.is_empty() {
            return Ok(());
        }
        let groups = &self.groups;
        over.sort_unstable_by(|left, right| {
            let order = (left.span.last_ms, left.span.first_ms).cmp(&(right.span.last_ms, right.span.first_ms));
            order.then_with(|| groups.key(left.group).cmp(groups.key(right.group)))
        });
        self.tell(view, gap_ms, &over, &mut assembled.closed)
    }

    /// What there is of each group.
    fn arrivals(&self, view: usize) -> Result<BTreeMap<u32, Vec<Arrival>>, Error> {
        let mut arrivals: BTreeMap<u32, Vec<Arrival>> = BTreeMap::new();
        for (pane, blocks) in &self.panes {
            for (index, block) in blocks.iter().enumerate() {
                let spans = self.spans(view, block)?.into_iter().zip(&block.groups);
                for (row, (span, group)) in spans.enumerate() {
                    arrivals.entry(*group).or_default().extend(span.map(|span| Arrival {
                        span,
                        watermark_ms: block.watermark_ms.max(floor(block.passed_ms, self.spec.width_ms)),
                        place: (*pane, index, row as u32),
                    }));
                }
            }
        }
        Ok(arrivals)
    }

    /// Rows of a block as the pane record had them.
    fn late_rows(&self, view: usize, pane_start_ms: i64, block: &Block, mut rows: Vec<u32>) -> Result<LatePane, Error> {
        rows.sort_unstable();
        let keys = rows.iter().map(|row| self.groups.key(block.groups[*row as usize]));
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_value(pane_start_ms, rows.len())),
            Arc::new(Int64Array::from_value(block.first_offset, rows.len())),
        ];
        columns.extend(self.groups.columns(keys)?);
        columns.extend(take_arrays(&block.states, &UInt32Array::from(rows), None)?);
        let View {
            version,
            pipeline,
            index,
            ..
        } = self.views[view];
        Ok(LatePane {
            version,
            pipeline,
            view: index,
            pane_start_ms,
            rows: RecordBatch::try_new(pane_schema(&self.spec)?, columns)?,
        })
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
    fn tell(&self, view: usize, gap_ms: i64, over: &[Over], closed: &mut Vec<ClosedWindow>) -> Result<(), Error> {
        let spec = self.views[view].spec.clone();
        let mut accumulators: Vec<Box<dyn Accumulator>> = spec
            .aggregates
            .iter()
            .map(|at| accumulator(&self.spec.aggregates[*at]))
            .collect::<Result<_, _>>()?;
        // Rows of each block, with their sessions, in the order in which partials merge.
        let mut blocks: BTreeMap<(i64, usize), Vec<(u32, usize)>> = BTreeMap::new();
        for (session, Over { places, .. }) in over.iter().enumerate() {
            for (pane, block, row) in places {
                blocks.entry((*pane, *block)).or_default().push((*row, session));
            }
        }
        // Accumulators of DataFusion take it that every group has come by the time that it is counted.
        let mut order: Vec<Option<u32>> = vec![None; over.len()];
        let mut met = 0;
        for ((pane, block), mut rows) in blocks {
            rows.sort_unstable();
            let number = |session: usize| {
                *order[session].get_or_insert_with(|| {
                    met += 1;
                    met - 1
                })
            };
            let groups: Vec<u32> = rows.iter().map(|(_, session)| *session).map(number).collect();
            let rows: UInt32Array = rows.into_iter().map(|(row, _)| row).collect();
            let block = &self.panes[&pane][block];
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
            .columns(over.iter().map(|over| self.groups.key(over.group)))?;
        let bounds: Vec<(i64, i64)> = over
            .iter()
            .map(|Over { span, .. }| (span.first_ms, span.last_ms + gap_ms))
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
