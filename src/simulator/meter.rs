//! What a service measures of itself between two exports.

use std::mem;

use crate::call::TraceContext;

/// Bounds of the duration histograms, seconds: those of OpenTelemetry's HTTP conventions.
pub const BOUNDS_S: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
/// Spans kept between two exports; more are counted and dropped, as an SDK does.
const SPANS_MAX: usize = 512;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Served,
    /// Its own doing.
    Failed,
    /// Somebody it called failed or did not answer.
    DependencyFailed,
}

impl Ending {
    pub fn status(self) -> u16 {
        match self {
            Self::Served => 200,
            Self::Failed => 500,
            Self::DependencyFailed => 502,
        }
    }

    /// `error.type`, for what is no success.
    pub fn error_type(self) -> Option<&'static str> {
        match self {
            Self::Served => None,
            Self::Failed => Some("internal"),
            Self::DependencyFailed => Some("dependency"),
        }
    }
}

/// A distribution of durations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    pub count: u64,
    pub sum_s: f64,
    pub min_s: f64,
    pub max_s: f64,
    pub buckets: [u64; BOUNDS_S.len() + 1],
}

impl Histogram {
    pub fn record(&mut self, seconds: f64) {
        self.min_s = if self.count == 0 {
            seconds
        } else {
            self.min_s.min(seconds)
        };
        self.max_s = self.max_s.max(seconds);
        self.count += 1;
        self.sum_s += seconds;
        self.buckets[BOUNDS_S.partition_point(|bound| *bound < seconds)] += 1;
    }
}

/// One finished span.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub context: TraceContext,
    pub parent: Option<[u8; 8]>,
    pub name: String,
    /// A call to another rather than a request served.
    pub client: bool,
    pub start_ns: u64,
    pub end_ns: u64,
    pub failed: bool,
}

/// Everything since the last export.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    /// By ending: served, failed, dependency failed.
    pub durations: [Histogram; 3],
    /// Own work, without waiting for others.
    pub own: Histogram,
    pub spans: Vec<Span>,
    pub spans_dropped: u64,
}

impl Scrape {
    pub const ENDINGS: [Ending; 3] = [Ending::Served, Ending::Failed, Ending::DependencyFailed];

    pub fn request(&mut self, ending: Ending, total_s: f64, own_s: f64) {
        self.durations[ending as usize].record(total_s);
        self.own.record(own_s);
    }

    pub fn span(&mut self, span: Span) {
        if self.spans.len() < SPANS_MAX {
            self.spans.push(span);
        } else {
            self.spans_dropped += 1;
        }
    }

    /// Takes what has gathered and starts anew.
    pub fn take(&mut self) -> Self {
        mem::take(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_a_bound_into_its_own_bucket() {
        let mut histogram = Histogram::default();
        for seconds in [0.005, 0.006, 20.0] {
            histogram.record(seconds);
        }
        assert_eq!(
            (histogram.buckets[0], histogram.buckets[1], histogram.buckets[14]),
            (1, 1, 1)
        );
        assert_eq!((histogram.min_s, histogram.max_s, histogram.count), (0.005, 20.0, 3));
    }

    #[test]
    fn spans_are_bounded() {
        let span = Span {
            context: TraceContext {
                trace_id: [1; 16],
                span_id: [1; 8],
            },
            parent: None,
            name: "show".into(),
            client: false,
            start_ns: 0,
            end_ns: 1,
            failed: false,
        };
        let mut scrape = Scrape::default();
        (0..SPANS_MAX + 3).for_each(|_| scrape.span(span.clone()));
        assert_eq!((scrape.spans.len(), scrape.spans_dropped), (SPANS_MAX, 3));
        assert_eq!(scrape.take().spans.len(), SPANS_MAX);
        assert_eq!(scrape, Scrape::default());
    }
}
