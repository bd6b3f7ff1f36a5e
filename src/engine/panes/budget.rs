//! How much a pane may hold: keys, or the bytes that keys and their partials count for.
//!
//! What counts is decided by the rows alone, never by the memory that holds them, so that every run and every replay refuses the
//! same rows, and publishes early before the same records.

use std::collections::{HashMap, HashSet};

use super::{ABSENT, Pane, PaneStore, Span};
use crate::{
    accumulate::accumulator,
    error::Error,
    spec::{Beyond, Budget, PaneSetSpec},
};

/// What a state counts for that has no fixed size: a sketch, a list.
const UNFIXED_STATE_BYTES: u64 = 2_048;
/// What a key counts for beside itself.
const KEY_BYTES: u64 = 48;

/// The most that one pane of a set holds.
pub(super) struct Room {
    keys_max: usize,
    bytes_max: u64,
    /// What a key counts for, beside its own bytes.
    bytes_per_key: u64,
}

impl Room {
    /// `keys_max` holds where the set says nothing.
    pub(super) fn new(spec: &PaneSetSpec, keys_max: usize) -> Result<Self, Error> {
        let mut bytes_per_key = KEY_BYTES;
        for aggregate in &spec.aggregates {
            let fields = accumulator(aggregate)?.state_fields();
            let width =
                |field: &arrow::datatypes::FieldRef| field.data_type().primitive_width().map(|width| width as u64);
            let bytes = fields.iter().map(|field| width(field).unwrap_or(UNFIXED_STATE_BYTES));
            bytes_per_key += bytes.sum::<u64>();
        }
        let budget = spec.state_limit.map(|limit| limit.budget);
        Ok(Self {
            keys_max: match budget {
                None => keys_max,
                Some(Budget::Keys(keys)) => keys as usize,
                Some(Budget::Bytes(bytes)) => (bytes / bytes_per_key).max(1) as usize,
            },
            bytes_max: match budget {
                Some(Budget::Bytes(bytes)) => bytes,
                _ => u64::MAX,
            },
            bytes_per_key,
        })
    }

    /// How many keys it is for, about.
    pub(super) fn keys(&self) -> usize {
        self.keys_max
    }

    pub(super) fn bytes(&self, encoded_key: &[u8]) -> u64 {
        self.bytes_per_key + encoded_key.len() as u64
    }

    /// Whether a pane of so many keys and bytes takes one more key. The first one always fits.
    pub(super) fn takes(&self, keys: usize, bytes: u64, more: u64) -> bool {
        keys == 0 || keys < self.keys_max && bytes + more <= self.bytes_max
    }
}

/// Keys that a pane would have beside those it has.
#[derive(Default)]
struct More {
    keys: HashSet<u32>,
    bytes: u64,
}

impl PaneStore {
    /// Whether it publishes panes early rather than refuse rows.
    pub fn evicts(&self) -> bool {
        self.spec.state_limit.is_some_and(|limit| limit.beyond == Beyond::Evict)
    }

    /// The first row of the first record of the span that a pane has no room for, if anything is there that could be published. A
    /// record is never parted: what it alone brings too much of is taken.
    pub fn full_before(&self, span: &Span<'_>) -> Option<usize> {
        let at = |row: usize| self.prepared.rows.partition_point(|other| (*other as usize) < row);
        let range = at(span.rows.start)..at(span.rows.end);
        let fullest = self.open.values().map(|pane| pane.keys.len()).max().unwrap_or_default();
        if self.room.bytes_max == u64::MAX && fullest + range.len() <= self.room.keys_max {
            return None;
        }
        let mut more: HashMap<i64, More> = HashMap::new();
        let mut record = None;
        let mut anything = !self.open.is_empty();
        let mut taken = false;
        for index in range {
            let offset = span.offsets[self.prepared.rows[index] as usize];
            if record != Some(offset) {
                record = Some(offset);
                anything |= taken;
            }
            let time_ms = self.prepared.times_ms[index];
            let start_ms = time_ms - time_ms.rem_euclid(self.spec.width_ms);
            if !self.takes_pane(start_ms, span, &mut Vec::new()) {
                continue;
            }
            taken = true;
            let id = self.prepared.ids[index];
            let pane = self.open.get(&start_ms);
            let known = |pane: &Pane| pane.groups.get(id as usize).is_some_and(|group| *group != ABSENT);
            let more = more.entry(start_ms).or_default();
            if pane.is_some_and(known) || !more.keys.insert(id) {
                continue;
            }
            let bytes = self.room.bytes(self.keys.encoded(id));
            let (keys, held) = pane.map_or((0, 0), |pane| (pane.keys.len(), pane.bytes));
            let first_row = span.offsets.partition_point(|other| *other < offset);
            let fits = self.room.takes(keys + more.keys.len() - 1, held + more.bytes, bytes);
            if !fits && anything && first_row >= span.rows.start {
                return Some(first_row);
            }
            more.bytes += bytes;
        }
        None
    }
}
