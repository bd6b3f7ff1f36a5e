//! Many entities at once: scored, and as one run of bytes and back, a shard's snapshot.
//!
//! Per entity its key, the length of its state, the state. A state names its detector's format and version, so a slab may be read by a
//! later program; it does not name its entity, so a new instance can start warm from the state of another of its service.

use crate::codec::{Reader, Writer};
use crate::{Detector, Error, Row, Score, State};

/// States that are read ahead together: enough for their cache misses to overlap, few enough to stay in the cache.
const GROUP: usize = 16;

/// Scores rows in the order given, each by the state of the entity at its index, and says what each scored. The same as one call after the other,
/// but a large fleet waits for memory rather than for arithmetic: so the states of a group are read before the first is scored.
pub fn score<E>(
    entities: &mut [E],
    state: impl Fn(&mut E) -> &mut dyn State,
    rows: &[(usize, Row<'_>)],
    mut say: impl FnMut(usize, &Score),
) {
    let mut out = Score::default();
    for group in rows.chunks(GROUP) {
        let read = group
            .iter()
            .fold(0, |read, (at, row)| read ^ state(&mut entities[*at]).touch(row.time_ms));
        std::hint::black_box(read);
        for (at, row) in group {
            state(&mut entities[*at]).score(*row, &mut out);
            say(*at, &out);
        }
    }
}

/// Appends the states, in the order given.
pub fn snapshot<'a>(states: impl IntoIterator<Item = (u64, &'a dyn State)>, out: &mut Vec<u8>) {
    for (entity, state) in states {
        let start = out.len();
        let mut writer = Writer::new(out);
        writer.u64(entity);
        writer.u32(0);
        state.snapshot(out);
        let length = (out.len() - start - 12) as u32;
        out[start + 8..start + 12].copy_from_slice(&length.to_le_bytes());
    }
}

/// Entities with their states.
pub type Entities = Vec<(u64, Box<dyn State>)>;

/// Reads what [`snapshot`] wrote, bit for bit.
pub fn restore(detector: &dyn Detector, mut bytes: &[u8]) -> Result<Entities, Error> {
    let mut states = Vec::new();
    while !bytes.is_empty() {
        let mut reader = Reader::new(bytes);
        let entity = reader.u64()?;
        let length = reader.length(detector.state_size_max())?;
        let state = bytes
            .get(12..12 + length)
            .ok_or_else(|| Error::State("cut short".into()))?;
        states.push((entity, detector.restore(entity, state)?));
        bytes = &bytes[12 + length..];
    }
    Ok(states)
}
