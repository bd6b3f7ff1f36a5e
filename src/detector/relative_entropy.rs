//! `relative_entropy`: whether the distribution of the last 52 values is one of those known.
//!
//! Wang, Viswanathan, Choudur, Talwar, Satterfield and Schwan, Statistical techniques for online anomaly detection in data
//! centers, 2011: multinomial goodness of fit. The window's histogram over five bins is compared with every accepted
//! hypothesis by 2·W·KL, which is χ² with four degrees of freedom under it; a window that fits none becomes a hypothesis.

use std::sync::{Arc, LazyLock};

use crate::calibration::PROMISE;
use crate::cells::Move;
use crate::codec::{Reader, Writer};
use crate::evidence::Scale;
use crate::novelty::{Here, Novelty, NoveltyConfig, View};
use crate::parameter::{Options, Parameter};
use crate::range_novelty::{THRESHOLD, WARMUP};
use crate::series::PerFeature;
use crate::{Detector, Error, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS, PROMISE];
pub(crate) const NAME: &str = "relative_entropy";
pub(crate) const PARAMETERS: &[Parameter] = &[THRESHOLD, WARMUP];
/// The floor is the mean of χ² with four degrees of freedom.
pub(crate) const SCALE: Scale = Scale { floor: 4.0, usual: 3.0 };

const BINS: usize = 5;
const WINDOW: usize = 52;
const HYPOTHESES: usize = 32;
/// χ², four degrees of freedom, 99 %.
const CRITICAL: f32 = 13.28;

/// count · ln(share), with the share as a hypothesis has it.
static ENTROPY: LazyLock<[f32; WINDOW + 1]> = LazyLock::new(|| {
    let mut table = [0.0; WINDOW + 1];
    for (count, entry) in (0u8..).zip(&mut table) {
        *entry = f32::from(count) * log_share(count);
    }
    table
});

/// Of so many rows of a window: no bin is taken for impossible (Krichevsky and Trofimov, 1981).
fn log_share(count: u8) -> f32 {
    ((f64::from(count) + 0.5) / (WINDOW as f64 + 0.5 * BINS as f64)).ln() as f32
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let warmup = options.count("warmup") as u32;
    let config = NoveltyConfig {
        view: warmup,
        threshold: options.required("threshold"),
        warmup,
    };
    PerFeature::<Novelty<RelativeEntropy>>::detector(config, &options, features)
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RelativeEntropy {
    /// The bins, fixed when the warm-up has shown the range.
    low: f64,
    width: f64,
    statistic: f32,
    counts: [u8; BINS],
    next: u8,
    filled: bool,
    known: u8,
    nearest: u8,
    window: [u8; WINDOW],
    hits: [u16; HYPOTHESES],
    /// Logarithms of the hypotheses' probabilities.
    logs: [[f32; BINS]; HYPOTHESES],
}

impl View for RelativeEntropy {
    /// Rows of warm-up, after which the bins are laid.
    type Config = u32;
    const NAME: &'static str = NAME;
    const TAG: u8 = 7;
    const SCALE: Scale = SCALE;

    fn fresh(_warmup: &u32) -> Self {
        Self {
            low: 0.0,
            width: 0.0,
            window: [0; WINDOW],
            counts: [0; BINS],
            next: 0,
            filled: false,
            known: 0,
            hits: [0; HYPOTHESES],
            logs: [[0.0; BINS]; HYPOTHESES],
            nearest: 0,
            statistic: 0.0,
        }
    }

    fn shift(&mut self, _by: Move) {}

    fn distance(&mut self, warmup: &u32, here: &Here<'_>) -> f64 {
        self.statistic = 0.0;
        if here.recent.rows < *warmup || here.grid.is_empty() {
            return 0.0;
        }
        if self.width <= 0.0 {
            let range = here.grid.range();
            self.low = here.grid.low - 0.25 * range;
            self.width = 1.5 * range / BINS as f64;
        }
        self.push(here.value);
        if self.filled {
            self.compare();
        }
        f64::from(self.statistic)
    }

    fn learn(&mut self, _warmup: &u32, _here: &Here<'_>) {
        if !self.filled || self.width <= 0.0 {
            return;
        }
        if self.known > 0 && self.statistic < CRITICAL {
            let hits = &mut self.hits[usize::from(self.nearest)];
            *hits = hits.saturating_add(1);
            return;
        }
        let at = if usize::from(self.known) < HYPOTHESES {
            self.known += 1;
            usize::from(self.known) - 1
        } else {
            (0..HYPOTHESES).min_by_key(|at| self.hits[*at]).unwrap_or(0)
        };
        self.hits[at] = 1;
        for (log, count) in self.logs[at].iter_mut().zip(self.counts) {
            *log = log_share(count);
        }
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.f64s(&[self.low, self.width]);
        writer.bytes(&self.window);
        writer.u8(self.next);
        writer.u8(u8::from(self.filled));
        writer.u8(self.known);
        for (hits, logs) in self.hits.iter().zip(&self.logs) {
            writer.u16(*hits);
            writer.f32s(logs);
        }
    }

    fn read(warmup: &u32, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut view = Self::fresh(warmup);
        view.low = reader.f64()?;
        view.width = reader.f64()?;
        reader.bytes(&mut view.window)?;
        view.next = reader.u8()?;
        view.filled = reader.u8()? != 0;
        view.known = reader.u8()?;
        for (hits, logs) in view.hits.iter_mut().zip(&mut view.logs) {
            *hits = reader.u16()?;
            reader.f32s(logs)?;
        }
        let sound = usize::from(view.next) < WINDOW
            && usize::from(view.known) <= HYPOTHESES
            && view.window.iter().all(|bin| usize::from(*bin) < BINS)
            && view.logs.iter().flatten().all(|log| log.is_finite())
            && view.low.is_finite()
            && view.width.is_finite();
        if !sound {
            return Err(Error::State("hypotheses are out of place".into()));
        }
        let held = if view.filled { WINDOW } else { usize::from(view.next) };
        for bin in &view.window[..held] {
            view.counts[usize::from(*bin)] += 1;
        }
        Ok(view)
    }

    fn size_max(_warmup: &u32) -> usize {
        Self::BYTES
    }
}

impl RelativeEntropy {
    pub(crate) const BYTES: usize = 16 + WINDOW + 3 + HYPOTHESES * (2 + 4 * BINS);

    /// As [`crate::State::touch`]: three hypotheses are a cache line.
    pub(crate) fn touch(&self) -> u32 {
        let logs = self.logs[..usize::from(self.known)].iter().step_by(3);
        let first = u32::from(self.window[usize::from(self.next)] ^ self.hits[0] as u8);
        logs.fold(first, |read, logs| read ^ logs[0].to_bits())
    }

    fn push(&mut self, value: f64) {
        let bin = (((value - self.low) / self.width).max(0.0) as usize).min(BINS - 1);
        let next = usize::from(self.next);
        if self.filled {
            self.counts[usize::from(self.window[next])] -= 1;
        }
        self.window[next] = bin as u8;
        self.counts[bin] += 1;
        self.next = ((next + 1) % WINDOW) as u8;
        self.filled |= self.next == 0;
    }

    fn compare(&mut self) {
        let table = &*ENTROPY;
        let own: f32 = self.counts.iter().map(|count| table[usize::from(*count)]).sum();
        let counts = self.counts.map(f32::from);
        let mut likeliest = f32::NEG_INFINITY;
        for (at, logs) in self.logs[..usize::from(self.known)].iter().enumerate() {
            let likelihood: f32 = counts.iter().zip(logs).map(|(count, log)| count * log).sum();
            if likelihood > likeliest {
                likeliest = likelihood;
                self.nearest = at as u8;
            }
        }
        if likeliest.is_finite() {
            self.statistic = (2.0 * (own - likeliest)).max(0.0);
        }
    }
}
