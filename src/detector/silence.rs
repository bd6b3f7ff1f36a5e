//! `silence`: nothing has been heard of an entity for too long.
//!
//! It is asked, not fed: a row is a question at `time_ms` (how far the fleet has come), its first feature the time the
//! entity was last heard of, in milliseconds. Without that feature, or with NULL, what the state remembers counts.
//! The score is the gap over the threshold: exactly 1 when the timeout is reached.
//!
//! `timeout = 'auto'` learns the threshold of each entity from its own gaps: their largest in a forgetting maximum,
//! and their mean and deviation (the chi-accrual idea of Hayashibara et al., The φ accrual failure detector, SRDS 2004).

use std::sync::Arc;

use crate::codec::{Reader, Writer};
use crate::parameter::{Kind, Options, Parameter};
use crate::{Detector, Error, Row, SCORE_MAX, Score, State, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS];
pub(crate) const NAME: &str = "silence";
const TAG: u8 = 2;
const DAY_MS: i64 = 86_400_000;
/// Until this many gaps have been seen the learned threshold is the ceiling.
const GAPS_MIN: u32 = 16;

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "timeout",
        kind: Kind::DurationOr {
            min_ms: 1,
            max_ms: 30 * DAY_MS,
            word: "auto",
        },
        default: "30 s",
        expected: "a duration from 1 ms to 30 days, as '30 s', or 'auto'",
        help: "silent for this long alarms; 'auto' learns it per entity",
    },
    Parameter {
        name: "min_timeout",
        kind: Kind::Duration {
            min_ms: 1,
            max_ms: 30 * DAY_MS,
        },
        default: "30 s",
        expected: "a duration from 1 ms to 30 days",
        help: "floor of a learned timeout",
    },
    Parameter {
        name: "max_timeout",
        kind: Kind::Duration {
            min_ms: 1,
            max_ms: 30 * DAY_MS,
        },
        default: "10 min",
        expected: "a duration from min_timeout to 30 days",
        help: "ceiling of a learned timeout, and its value until gaps are known",
    },
];

#[derive(Clone, Copy, Debug)]
enum Timeout {
    Fixed(f64),
    Learned { min_ms: f64, max_ms: f64 },
}

struct Silence {
    timeout: Timeout,
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    if features > 1 {
        return Err(Error::Features {
            detector: NAME,
            expected: "no",
            given: features,
        });
    }
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let (min_ms, max_ms) = (options.required("min_timeout"), options.required("max_timeout"));
    if min_ms > max_ms {
        return Err(Error::OutOfRange {
            name: "max_timeout".into(),
            value: format!("{max_ms} ms"),
            expected: "a duration from min_timeout to 30 days",
        });
    }
    let timeout = match options.word("timeout") {
        Some(_) => Timeout::Learned { min_ms, max_ms },
        None => Timeout::Fixed(options.required("timeout")),
    };
    Ok(Arc::new(Silence { timeout }))
}

impl Detector for Silence {
    fn name(&self) -> &'static str {
        NAME
    }

    fn state_size_max(&self) -> usize {
        4 + 8 + 4 + 3 * 8
    }

    fn fresh(&self, _entity: u64) -> Box<dyn State> {
        Box::new(Gaps {
            timeout: self.timeout,
            last_seen_ms: None,
            gaps: 0,
            mean_ms: 0.0,
            variance: 0.0,
            longest_ms: 0.0,
        })
    }

    fn restore(&self, _entity: u64, bytes: &[u8]) -> Result<Box<dyn State>, Error> {
        let mut reader = Reader::new(bytes);
        reader.header(TAG, 1, 0)?;
        let last_seen_ms = reader.i64()?;
        let gaps = Gaps {
            timeout: self.timeout,
            last_seen_ms: (last_seen_ms != i64::MIN).then_some(last_seen_ms),
            gaps: reader.u32()?,
            mean_ms: reader.f64()?,
            variance: reader.f64()?,
            longest_ms: reader.f64()?,
        };
        reader.finish()?;
        Ok(Box::new(gaps))
    }
}

struct Gaps {
    timeout: Timeout,
    last_seen_ms: Option<i64>,
    gaps: u32,
    mean_ms: f64,
    variance: f64,
    longest_ms: f64,
}

impl State for Gaps {
    fn score(&mut self, row: Row<'_>, out: &mut Score) {
        out.reset(row.features.len());
        if let Some(seen) = row.features.first().filter(|seen| seen.is_finite()) {
            // The least instant stands for "never" in a snapshot.
            self.hear((*seen as i64).max(i64::MIN + 1), row.learn);
        }
        let Some(last_seen_ms) = self.last_seen_ms else {
            return;
        };
        let gap_ms = row.time_ms.saturating_sub(last_seen_ms).max(0) as f64;
        out.score = (gap_ms / self.timeout_ms()).min(SCORE_MAX);
        if let Some(first) = out.contributions.first_mut() {
            *first = out.score;
        }
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        let mut writer = Writer::new(out);
        writer.header(TAG, 1, 0);
        writer.i64(self.last_seen_ms.unwrap_or(i64::MIN));
        writer.u32(self.gaps);
        writer.f64(self.mean_ms);
        writer.f64(self.variance);
        writer.f64(self.longest_ms);
    }
}

impl Gaps {
    /// Time never goes back: an older sighting changes nothing.
    fn hear(&mut self, seen_ms: i64, learn: bool) {
        let Some(last_ms) = self.last_seen_ms else {
            self.last_seen_ms = Some(seen_ms);
            return;
        };
        if seen_ms <= last_ms {
            return;
        }
        self.last_seen_ms = Some(seen_ms);
        let gap_ms = seen_ms.saturating_sub(last_ms) as f64;
        // An outage is not a habit: a gap far beyond the threshold is not learned whole.
        if !learn || gap_ms > 4.0 * self.timeout_ms() {
            return;
        }
        self.gaps = self.gaps.saturating_add(1);
        let weight = 1.0 / f64::from(self.gaps.min(500));
        let change = gap_ms - self.mean_ms;
        self.mean_ms += weight * change;
        self.variance = (1.0 - weight) * (self.variance + weight * change * change);
        self.longest_ms = (self.longest_ms * 0.999).max(gap_ms);
    }

    fn timeout_ms(&self) -> f64 {
        match self.timeout {
            Timeout::Fixed(timeout_ms) => timeout_ms,
            Timeout::Learned { max_ms, .. } if self.gaps < GAPS_MIN => max_ms,
            Timeout::Learned { min_ms, max_ms } => {
                let spread_ms = self.mean_ms + 8.0 * self.variance.max(0.0).sqrt();
                (spread_ms.max(3.0 * self.mean_ms))
                    .max(1.5 * self.longest_ms)
                    .clamp(min_ms, max_ms)
            }
        }
    }
}
