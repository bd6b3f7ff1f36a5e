//! Strings to codes, kept from batch to batch, so that equal strings have equal codes and a predicate on a string is
//! evaluated once per distinct value.
//!
//! A small direct-mapped memo answers for strings seen a moment ago without hashing the whole of them. Codes are given in
//! order of first sight: the seed of the hash never shows. UTF-8 is checked when a string is first seen.

use std::{hash::BuildHasher, mem, sync::Arc};

use arrow::{
    array::{ArrayRef, StringArray},
    buffer::{Buffer, OffsetBuffer, ScalarBuffer},
};

use crate::error::Fault;

/// Distinct strings after which a new dictionary is started.
const STRINGS_MAX: usize = 1_000_000;
/// Bytes of distinct strings after which a new dictionary is started.
const BYTES_MAX: usize = 64 << 20;
/// The Arrow array of a dictionary that still grows is copied at every batch. Copying beyond this many bytes a row, on
/// top of a flat allowance, starts a new dictionary: interning anew is cheaper.
const COPY_BYTES_PER_ROW: usize = 64;
const COPY_BYTES_ALLOWED: usize = 8 << 20;
/// Slots of the memo, for few strings and for many.
const MEMO_SLOTS: [usize; 2] = [256, 4096];

/// Bytes of a string up to which its [`Outline`] is all of it.
pub(crate) const OUTLINE_WHOLE: usize = 16;

/// A string's outline: its ends and its length.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outline {
    head: u64,
    tail: u64,
    length: u32,
}

#[derive(Clone, Copy)]
struct Memo {
    outline: Outline,
    code: u32,
}

/// Unreachable as an outline: length and code stand for no string.
const MEMO_EMPTY: Memo = Memo {
    outline: Outline {
        head: 0,
        tail: 0,
        length: u32::MAX,
    },
    code: u32::MAX,
};

#[derive(Default)]
pub(crate) struct Interner {
    bytes: Vec<u8>,
    /// End of each string in `bytes`.
    ends: Vec<u32>,
    /// Open addressing: upper half of the hash, then code + 1; 0 is free. At most half full.
    table: Vec<u64>,
    memo: Vec<Memo>,
    hasher: foldhash::fast::RandomState,
    array: Option<ArrayRef>,
    copied_bytes: usize,
    generation: u64,
}

impl Interner {
    /// The code of a string; an error when it is not UTF-8.
    #[inline]
    pub fn intern(&mut self, string: &[u8]) -> Result<i32, Fault> {
        let outline = outline(string);
        let slot = memo_slot(outline, self.memo.len());
        if let Some(memo) = self.memo.get(slot)
            && memo.outline == outline
            && (string.len() <= OUTLINE_WHOLE || self.get(memo.code) == string)
        {
            return Ok(memo.code as i32);
        }
        self.intern_slow(string, outline)
    }

    #[inline(never)]
    fn intern_slow(&mut self, string: &[u8], outline: Outline) -> Result<i32, Fault> {
        let code = self.find_or_insert(string)?;
        let slot = memo_slot(outline, self.memo.len());
        self.memo[slot] = Memo { outline, code };
        Ok(code as i32)
    }

    /// Distinct strings held.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Changes when a new dictionary is started: within one generation a code always means the same string.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The dictionary as an Arrow array.
    pub fn array(&mut self) -> ArrayRef {
        if let Some(array) = &self.array
            && array.len() == self.len()
        {
            return Arc::clone(array);
        }
        let mut offsets = Vec::with_capacity(self.len() + 1);
        offsets.push(0);
        offsets.extend(self.ends.iter().map(|end| *end as i32));
        self.copied_bytes += self.bytes.len() + offsets.len() * 4;
        let array: ArrayRef = Arc::new(StringArray::new(
            OffsetBuffer::new(ScalarBuffer::from(offsets)),
            Buffer::from_slice_ref(&self.bytes),
            None,
        ));
        self.array = Some(Arc::clone(&array));
        array
    }

    /// To be called after a batch of `rows`: starts a new dictionary when this one has grown out of its bounds.
    pub fn end_batch(&mut self, rows: usize) {
        self.copied_bytes = self.copied_bytes.saturating_sub(rows * COPY_BYTES_PER_ROW);
        let copies_too_much = self.copied_bytes > COPY_BYTES_ALLOWED;
        if copies_too_much || self.len() > STRINGS_MAX || self.bytes.len() > BYTES_MAX {
            *self = Self {
                hasher: mem::take(&mut self.hasher),
                generation: self.generation + 1,
                ..Self::default()
            };
        }
    }

    #[inline]
    fn get(&self, code: u32) -> &[u8] {
        let code = code as usize;
        let from = if code == 0 { 0 } else { self.ends[code - 1] as usize };
        &self.bytes[from..self.ends[code] as usize]
    }

    fn find_or_insert(&mut self, string: &[u8]) -> Result<u32, Fault> {
        if self.table.len() < (self.len() + 1) * 2 {
            self.grow();
        }
        let hash = self.hasher.hash_one(string);
        let mask = self.table.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let entry = self.table[slot];
            if entry == 0 {
                break;
            }
            let code = entry as u32 - 1;
            if entry >> 32 == hash >> 32 && self.get(code) == string {
                return Ok(code);
            }
            slot = (slot + 1) & mask;
        }
        std::str::from_utf8(string).map_err(|_| Fault::at("a string is not UTF-8", string))?;
        let end = u32::try_from(self.bytes.len() + string.len())
            .ok()
            .filter(|end| *end <= i32::MAX as u32)
            .ok_or_else(|| Fault::new("the distinct strings of one column exceed 2 GiB in a batch"))?;
        self.bytes.extend_from_slice(string);
        self.ends.push(end);
        let code = self.len() as u32 - 1;
        self.table[slot] = (hash >> 32 << 32) | u64::from(code + 1);
        Ok(code)
    }

    fn grow(&mut self) {
        if self.memo.is_empty() {
            self.memo = vec![MEMO_EMPTY; MEMO_SLOTS[0]];
        } else if self.table.len() >= MEMO_SLOTS[0] && self.memo.len() < MEMO_SLOTS[1] {
            self.memo = vec![MEMO_EMPTY; MEMO_SLOTS[1]];
        }
        let size = (self.table.len() * 2).max(64);
        let mask = size - 1;
        let mut table = vec![0u64; size];
        for code in 0..self.len() as u32 {
            let hash = self.hasher.hash_one(self.get(code));
            let mut slot = hash as usize & mask;
            while table[slot] != 0 {
                slot = (slot + 1) & mask;
            }
            table[slot] = (hash >> 32 << 32) | u64::from(code + 1);
        }
        self.table = table;
    }
}

#[inline]
pub(crate) fn outline(string: &[u8]) -> Outline {
    let length = string.len();
    let (head, tail) = match (string.first_chunk::<8>(), string.last_chunk::<8>()) {
        (Some(head), Some(tail)) => (u64::from_le_bytes(*head), u64::from_le_bytes(*tail)),
        _ => outline_short(string),
    };
    Outline {
        head,
        tail,
        length: length as u32,
    }
}

#[inline]
fn outline_short(string: &[u8]) -> (u64, u64) {
    match (string.first_chunk::<4>(), string.last_chunk::<4>()) {
        (Some(head), Some(tail)) => (
            u64::from(u32::from_le_bytes(*head)),
            u64::from(u32::from_le_bytes(*tail)),
        ),
        _ => string
            .iter()
            .fold((0, 0), |(head, tail), byte| (head << 8 | u64::from(*byte), tail)),
    }
}

/// A slot of a memo whose size is a power of two; none of an empty one.
#[inline]
fn memo_slot(outline: Outline, slots: usize) -> usize {
    let mixed =
        (outline.head ^ outline.tail.rotate_left(29) ^ u64::from(outline.length)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 48) as usize & slots.wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow::array::{Array, AsArray};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(crate::testing::cases(64))]

        #[test]
        fn codes_are_first_sight_order(strings in proptest::collection::vec("[ab\u{e9}]{0,20}", 0..400)) {
            let mut interner = Interner::default();
            let mut reference: HashMap<String, i32> = HashMap::new();
            for string in &strings {
                let next = reference.len() as i32;
                let expected = *reference.entry(string.clone()).or_insert(next);
                prop_assert_eq!(interner.intern(string.as_bytes()).unwrap(), expected);
            }
            let array = interner.array();
            let values = array.as_string::<i32>();
            prop_assert_eq!(values.len(), reference.len());
            for (string, code) in reference {
                prop_assert_eq!(values.value(code as usize), string);
            }
        }
    }

    #[test]
    fn not_utf8_is_refused_and_leaves_nothing() {
        let mut interner = Interner::default();
        assert!(interner.intern(b"\xff").is_err());
        assert_eq!(interner.len(), 0);
        assert_eq!(interner.intern(b"a").unwrap(), 0);
    }

    #[test]
    fn a_dictionary_that_only_grows_is_started_anew() {
        let mut interner = Interner::default();
        let mut next = 0u64;
        for _ in 0..200 {
            for _ in 0..1000 {
                next += 1;
                interner
                    .intern(format!("a-rather-long-string-{next:020}").as_bytes())
                    .unwrap();
            }
            interner.array();
            interner.end_batch(1000);
        }
        assert!(interner.generation() > 0);
        assert!(interner.len() < 100_000);
    }

    #[test]
    fn a_dictionary_that_stays_is_kept() {
        let mut interner = Interner::default();
        for batch in 0..100 {
            for i in 0..10_000 {
                interner.intern(format!("service-{i}").as_bytes()).unwrap();
            }
            let before = interner.array();
            interner.end_batch(10_000);
            assert_eq!(interner.generation(), 0, "batch {batch}");
            assert!(Arc::ptr_eq(&before, &interner.array()));
        }
    }
}
