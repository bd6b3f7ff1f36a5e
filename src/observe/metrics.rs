//! The store of metrics: counters, gauges and histograms by name and labels, read as a whole.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use prometheus::{
    TextEncoder,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

/// Every name on the wire begins so.
const PREFIX: &str = "homeostat_";
/// Series of one name; a label with many values must not take the memory of the process.
const SERIES_MAX: usize = 2_000;
/// A gauge that was not set for so long is of something that has gone: a partition given back, a stage ended.
const GAUGE_TTL: Duration = Duration::from_secs(30);
/// Upper bounds of histogram buckets, seconds.
pub(crate) const BOUNDS_S: [f64; 14] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

type Labels = Vec<(&'static str, Box<str>)>;

/// Metrics of this process.
#[derive(Default)]
pub struct Metrics {
    families: Mutex<BTreeMap<&'static str, Family>>,
}

#[derive(Default)]
struct Family {
    series: BTreeMap<Labels, Series>,
}

enum Series {
    Counter {
        total: f64,
        /// Last readings of counters that are kept elsewhere, by who keeps them.
        readings: BTreeMap<u64, f64>,
    },
    Gauge(BTreeMap<u64, (f64, Instant)>),
    Histogram(Box<Distribution>),
}

/// A histogram's state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// One more than the bounds: the last is unbounded. Not cumulative.
    pub counts: [u64; BOUNDS_S.len() + 1],
    pub sum: f64,
}

impl Distribution {
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// One series as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// With the prefix.
    pub name: String,
    pub labels: Vec<(&'static str, String)>,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Counter(f64),
    Gauge(f64),
    Histogram(Distribution),
}

impl Metrics {
    /// Adds to a counter.
    pub fn count(&self, name: &'static str, labels: &[(&'static str, &str)], by: f64) {
        self.with(
            name,
            labels,
            || Series::Counter {
                total: 0.0,
                readings: BTreeMap::new(),
            },
            |series| {
                if let Series::Counter { total, .. } = series {
                    *total += by;
                }
            },
        );
    }

    /// Takes the reading of a counter that `keeper` keeps. One that has fallen began anew.
    pub fn read_counter(&self, name: &'static str, labels: &[(&'static str, &str)], keeper: u64, reading: f64) {
        self.with(
            name,
            labels,
            || Series::Counter {
                total: 0.0,
                readings: BTreeMap::new(),
            },
            |series| {
                if let Series::Counter { total, readings } = series {
                    let before = readings.insert(keeper, reading).filter(|before| *before <= reading);
                    *total += reading - before.unwrap_or(0.0);
                }
            },
        );
    }

    /// Sets a gauge as `keeper` sees it. Those of several keepers add up; times do not, of them the longest counts.
    pub fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)], keeper: u64, value: f64) {
        self.with(
            name,
            labels,
            || Series::Gauge(BTreeMap::new()),
            |series| {
                if let Series::Gauge(values) = series {
                    values.insert(keeper, (value, Instant::now()));
                }
            },
        );
    }

    /// Adds to a histogram of seconds.
    pub fn observe_s(&self, name: &'static str, labels: &[(&'static str, &str)], seconds: f64) {
        self.with(
            name,
            labels,
            || Series::Histogram(Box::default()),
            |series| {
                if let Series::Histogram(distribution) = series {
                    distribution.counts[BOUNDS_S.partition_point(|bound| *bound < seconds)] += 1;
                    distribution.sum += seconds;
                }
            },
        );
    }

    /// All series, in the order of their names and labels.
    pub fn snapshot(&self) -> Vec<Snapshot> {
        self.snapshot_at(Instant::now())
    }

    fn snapshot_at(&self, now: Instant) -> Vec<Snapshot> {
        let mut families = self.lock();
        let mut snapshots = Vec::new();
        for (name, family) in families.iter_mut() {
            let time = name.ends_with("_seconds") || name.ends_with("_ms");
            family.series.retain(|labels, series| {
                let Some(value) = series.value(*name == "build_info", time, now) else {
                    return false;
                };
                snapshots.push(Snapshot {
                    name: format!("{PREFIX}{name}"),
                    labels: labels
                        .iter()
                        .map(|(label, value)| (*label, value.to_string()))
                        .collect(),
                    value,
                });
                true
            });
        }
        snapshots
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        let mut families: Vec<MetricFamily> = Vec::new();
        for snapshot in self.snapshot() {
            if families.last().is_none_or(|family| family.name() != snapshot.name) {
                let mut family = MetricFamily::default();
                family.set_field_type(match snapshot.value {
                    Value::Counter(_) => MetricType::COUNTER,
                    Value::Gauge(_) => MetricType::GAUGE,
                    Value::Histogram(_) => MetricType::HISTOGRAM,
                });
                family.set_help(help(&snapshot.name).to_owned());
                family.set_name(snapshot.name.clone());
                families.push(family);
            }
            if let Some(family) = families.last_mut() {
                family.mut_metric().push(metric(snapshot));
            }
        }
        TextEncoder::new()
            .encode_to_string(&families)
            .unwrap_or_else(|error| format!("# {error}\n"))
    }

    fn with(
        &self,
        name: &'static str,
        labels: &[(&'static str, &str)],
        new: impl FnOnce() -> Series,
        change: impl FnOnce(&mut Series),
    ) {
        let mut labels: Labels = labels
            .iter()
            .map(|(label, value)| (*label, Box::from(*value)))
            .collect();
        labels.sort_unstable();
        let mut families = self.lock();
        let family = families.entry(name).or_default();
        if let Some(series) = family.series.get_mut(&labels) {
            return change(series);
        }
        if family.series.len() < SERIES_MAX {
            return change(family.series.entry(labels).or_insert_with(new));
        }
        drop(families);
        if name != "series_dropped_total" {
            self.count("series_dropped_total", &[("name", name)], 1.0);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Family>> {
        self.families.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Series {
    /// `None` when nobody has set it for long.
    fn value(&mut self, lasting: bool, time: bool, now: Instant) -> Option<Value> {
        match self {
            Self::Counter { total, .. } => Some(Value::Counter(*total)),
            Self::Histogram(distribution) => Some(Value::Histogram((**distribution).clone())),
            Self::Gauge(values) => {
                values.retain(|_, (_, at)| lasting || now.saturating_duration_since(*at) < GAUGE_TTL);
                let values = values.values().map(|(value, _)| *value);
                let joined = if time {
                    values.reduce(f64::max)
                } else {
                    values.reduce(|a, b| a + b)
                };
                joined.map(Value::Gauge)
            }
        }
    }
}

fn metric(snapshot: Snapshot) -> Metric {
    let labels = snapshot.labels.into_iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value);
        pair
    });
    let mut metric = Metric::from_label(labels.collect());
    match snapshot.value {
        Value::Counter(total) => {
            let mut counter = Counter::default();
            counter.set_value(total);
            metric.set_counter(counter);
        }
        Value::Gauge(value) => {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        Value::Histogram(distribution) => {
            let mut histogram = Histogram::default();
            histogram.set_sample_count(distribution.count());
            histogram.set_sample_sum(distribution.sum);
            let mut below = 0;
            let buckets = BOUNDS_S.iter().zip(&distribution.counts).map(|(bound, count)| {
                below += count;
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(*bound);
                bucket.set_cumulative_count(below);
                bucket
            });
            histogram.set_bucket(buckets.collect());
            metric.set_histogram(histogram);
        }
    }
    metric
}

/// What the less obvious names mean.
fn help(name: &str) -> &'static str {
    match name.strip_prefix(PREFIX).unwrap_or(name) {
        "lag" => "records still to be read, by input partition",
        "records_total" => "records read, by stage",
        "outputs_total" => {
            "records published in committed transactions, by stage and topic; dead_letters and late among them"
        }
        "state_bytes_total" => "bytes of state written, by stage",
        "restored_state_records" => "state records read at the last assignment, by stage",
        "step_seconds" => "time in the stage between two commits",
        "commit_seconds" => "time of a transaction's commit",
        "watermark_delay_seconds" => "how far the watermark is behind the clock",
        "rows_backfilled_total" => "rows read again for views that were edited, by stage",
        "backfill_lag_records" => "records yet to be read again for views that were edited, by input partition",
        "decisions_total" => "decisions by kind and by the gate that refused",
        "spans_dropped_total" => "spans that could not be exported",
        "series_dropped_total" => "readings of series beyond the limit of one name",
        _ => "see src/README.md",
    }
}

#[cfg(test)]
mod tests;
