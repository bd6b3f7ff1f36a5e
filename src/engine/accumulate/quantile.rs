//! Quantiles by DDSketch (Masson, Rim and Lee, VLDB 2019): logarithmic buckets, so that every estimate is within 1 % of a
//! value that is there, and merging is exact addition.
//!
//! Between two ranks the estimate is interpolated as `percentile_cont` does. Beyond 2,048 buckets of one sign the least
//! magnitudes share a bucket, which loosens only quantiles that fall there: 2,048 buckets span a ratio of 10^17.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, BinaryArray, BinaryBuilder, BooleanArray, Float64Builder},
    datatypes::*,
};

use super::{Accumulator, each, field, primitive};
use crate::error::Error;

/// Relative error α.
const ERROR: f64 = 0.01;
/// γ = (1 + α) / (1 − α): bucket k holds magnitudes in (γ^(k−1), γ^k].
const GAMMA: f64 = (1.0 + ERROR) / (1.0 - ERROR);
const BUCKETS_MAX: usize = 2_048;

pub struct Quantile {
    q: f64,
    ln_gamma: f64,
    sketches: Vec<Sketch>,
}

impl Quantile {
    pub fn new(q: f64) -> Self {
        Self {
            q: q.clamp(0.0, 1.0),
            ln_gamma: GAMMA.ln(),
            sketches: Vec::new(),
        }
    }

    fn grow(&mut self, group_count: usize) {
        if self.sketches.len() < group_count {
            self.sketches.resize_with(group_count, Sketch::default);
        }
    }
}

impl Accumulator for Quantile {
    fn update(
        &mut self,
        groups: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<(), Error> {
        self.grow(group_count);
        let array = primitive::<Float64Type>("argument of quantile", args, 0, &DataType::Float64)?;
        let per_ln = 1.0 / self.ln_gamma;
        each(groups, &array, filter, |group, value| {
            self.sketches[group].add(value, per_ln);
        });
        Ok(())
    }

    fn state_fields(&self) -> Vec<FieldRef> {
        vec![field("sketch", DataType::Binary, false)]
    }

    fn state(&mut self) -> Result<Vec<ArrayRef>, Error> {
        let mut builder = BinaryBuilder::new();
        let mut bytes = Vec::new();
        for sketch in std::mem::take(&mut self.sketches) {
            bytes.clear();
            sketch.encode(&mut bytes);
            builder.append_value(&bytes);
        }
        Ok(vec![Arc::new(builder.finish())])
    }

    fn merge(&mut self, groups: &[u32], state: &[ArrayRef], group_count: usize) -> Result<(), Error> {
        self.grow(group_count);
        let sketches = state.first().and_then(|a| a.as_any().downcast_ref::<BinaryArray>());
        let sketches = sketches.ok_or_else(|| Error::Shape {
            what: "state of quantile",
            expected: "Binary".into(),
            found: format!("{:?}", state.first().map(|a| a.data_type())),
        })?;
        for (group, bytes) in groups.iter().zip(sketches.iter().flatten()) {
            let sketch = Sketch::decode(bytes).ok_or_else(|| Error::Unreadable {
                what: "state of quantile",
                reason: format!("{} bytes are no sketch", bytes.len()),
            })?;
            self.sketches[*group as usize].merge(&sketch);
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ArrayRef, Error> {
        let sketches = std::mem::take(&mut self.sketches);
        let mut builder = Float64Builder::with_capacity(sketches.len());
        for sketch in sketches {
            builder.append_option(sketch.quantile(self.q, self.ln_gamma));
        }
        Ok(Arc::new(builder.finish()))
    }

    fn size(&self) -> usize {
        let heap = |s: &Sketch| (s.negative.0.capacity() + s.positive.0.capacity()) * size_of::<(i32, u64)>();
        self.sketches.capacity() * size_of::<Sketch>() + self.sketches.iter().map(heap).sum::<usize>()
    }
}

/// Counts of values by magnitude; values in order are −∞, negatives, zeros, positives, +∞, NaN.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sketch {
    zeros: u64,
    nans: u64,
    negative_infinities: u64,
    positive_infinities: u64,
    negative: Buckets,
    positive: Buckets,
    /// Least and greatest finite value, which no estimate leaves.
    range: Option<(f64, f64)>,
}

impl Sketch {
    #[inline]
    fn add(&mut self, value: f64, per_ln: f64) {
        if !value.is_finite() {
            match value {
                f64::INFINITY => self.positive_infinities += 1,
                f64::NEG_INFINITY => self.negative_infinities += 1,
                _ => self.nans += 1,
            }
            return;
        }
        self.widen(value, value);
        if value == 0.0 {
            self.zeros += 1;
            return;
        }
        let bucket = (value.abs().ln() * per_ln).ceil() as i32;
        if value > 0.0 {
            self.positive.add(bucket, 1);
        } else {
            self.negative.add(bucket, 1);
        }
    }

    fn widen(&mut self, least: f64, greatest: f64) {
        let (low, high) = self.range.get_or_insert((least, greatest));
        *low = low.min(least);
        *high = high.max(greatest);
    }

    fn merge(&mut self, other: &Self) {
        let add = |count: &mut u64, more: u64| *count = count.saturating_add(more);
        add(&mut self.zeros, other.zeros);
        add(&mut self.nans, other.nans);
        add(&mut self.negative_infinities, other.negative_infinities);
        add(&mut self.positive_infinities, other.positive_infinities);
        self.negative.merge(&other.negative);
        self.positive.merge(&other.positive);
        if let Some((least, greatest)) = other.range {
            self.widen(least, greatest);
        }
    }

    fn count(&self) -> u64 {
        let specials = [
            self.zeros,
            self.nans,
            self.negative_infinities,
            self.positive_infinities,
        ];
        let buckets = self.negative.0.iter().chain(&self.positive.0).map(|(_, count)| *count);
        specials.into_iter().chain(buckets).fold(0, u64::saturating_add)
    }

    fn quantile(&self, q: f64, ln_gamma: f64) -> Option<f64> {
        let last = self.count().checked_sub(1)?;
        let rank = q * last as f64;
        let (below, above) = (rank.floor() as u64, (rank.ceil() as u64).min(last));
        let low = self.at(below, ln_gamma);
        let fraction = rank - below as f64;
        if fraction <= 0.0 || above == below {
            return Some(low);
        }
        let high = self.at(above, ln_gamma);
        // Infinities would give ∞ − ∞.
        if low == high {
            return Some(low);
        }
        Some(low * (1.0 - fraction) + high * fraction)
    }

    /// The value of the rank-th smallest, from 0.
    fn at(&self, rank: u64, ln_gamma: f64) -> f64 {
        let (least, greatest) = self.range.unwrap_or((0.0, 0.0));
        // The ends are known exactly.
        if self.range.is_some() && rank == self.negative_infinities {
            return least;
        }
        if self.range.is_some() && rank + 1 + self.positive_infinities + self.nans == self.count() {
            return greatest;
        }
        let estimate = |bucket: i32| (f64::from(bucket) * ln_gamma).exp() * (2.0 / (1.0 + GAMMA));
        let mut left = rank;
        let mut within = |count: u64| {
            let here = left < count;
            left = left.saturating_sub(count);
            here
        };
        if within(self.negative_infinities) {
            return f64::NEG_INFINITY;
        }
        for (bucket, count) in self.negative.0.iter().rev() {
            if within(*count) {
                return (-estimate(*bucket)).clamp(least, greatest);
            }
        }
        if within(self.zeros) {
            return 0.0;
        }
        for (bucket, count) in &self.positive.0 {
            if within(*count) {
                return estimate(*bucket).clamp(least, greatest);
            }
        }
        if within(self.positive_infinities) {
            return f64::INFINITY;
        }
        f64::NAN
    }

    /// Nothing for an empty sketch; else counts as LEB128, the range as two doubles, the buckets by difference.
    fn encode(&self, bytes: &mut Vec<u8>) {
        if self.count() == 0 {
            return;
        }
        let specials = [
            self.zeros,
            self.nans,
            self.negative_infinities,
            self.positive_infinities,
        ];
        specials.iter().for_each(|count| put(bytes, *count));
        put(bytes, u64::from(self.range.is_some()));
        if let Some((least, greatest)) = self.range {
            bytes.extend_from_slice(&least.to_le_bytes());
            bytes.extend_from_slice(&greatest.to_le_bytes());
        }
        self.negative.encode(bytes);
        self.positive.encode(bytes);
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut sketch = Self::default();
        if bytes.is_empty() {
            return Some(sketch);
        }
        let input = &mut bytes;
        sketch.zeros = get(input)?;
        sketch.nans = get(input)?;
        sketch.negative_infinities = get(input)?;
        sketch.positive_infinities = get(input)?;
        if get(input)? != 0 {
            let (least, rest) = input.split_first_chunk::<8>()?;
            let (greatest, rest) = rest.split_first_chunk::<8>()?;
            let (least, greatest) = (f64::from_le_bytes(*least), f64::from_le_bytes(*greatest));
            // `clamp` would not survive these.
            if least > greatest || least.is_nan() || greatest.is_nan() {
                return None;
            }
            sketch.range = Some((least, greatest));
            *input = rest;
        }
        sketch.negative = Buckets::decode(input)?;
        sketch.positive = Buckets::decode(input)?;
        input.is_empty().then_some(sketch)
    }
}

/// Counts per bucket, ascending.
#[derive(Clone, Debug, Default, PartialEq)]
struct Buckets(Vec<(i32, u64)>);

impl Buckets {
    #[inline]
    fn add(&mut self, bucket: i32, count: u64) {
        match self.0.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(at) => self.0[at].1 = self.0[at].1.saturating_add(count),
            Err(at) => {
                self.0.insert(at, (bucket, count));
                self.bound();
            }
        }
    }

    fn bound(&mut self) {
        while self.0.len() > BUCKETS_MAX {
            let (_, count) = self.0.remove(0);
            self.0[0].1 = self.0[0].1.saturating_add(count);
        }
    }

    fn merge(&mut self, other: &Self) {
        if self.0.is_empty() {
            self.0.clone_from(&other.0);
            return;
        }
        for (bucket, count) in &other.0 {
            self.add(*bucket, *count);
        }
    }

    fn encode(&self, bytes: &mut Vec<u8>) {
        put(bytes, self.0.len() as u64);
        let mut last = 0_i64;
        for (bucket, count) in &self.0 {
            let step = i64::from(*bucket) - last;
            put(bytes, ((step << 1) ^ (step >> 63)) as u64);
            put(bytes, *count);
            last = i64::from(*bucket);
        }
    }

    fn decode(input: &mut &[u8]) -> Option<Self> {
        let len = get(input)?;
        if len > BUCKETS_MAX as u64 {
            return None;
        }
        let mut buckets: Vec<(i32, u64)> = Vec::with_capacity(len as usize);
        let mut last = 0_i64;
        for _ in 0..len {
            let step = get(input)?;
            let step = (step >> 1) as i64 ^ -((step & 1) as i64);
            last = last.checked_add(step)?;
            let bucket = i32::try_from(last).ok()?;
            if buckets.last().is_some_and(|(before, _)| *before >= bucket) {
                return None;
            }
            buckets.push((bucket, get(input)?));
        }
        Some(Self(buckets))
    }
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn get(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = input.split_first()?;
        *input = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
