use proptest::prelude::*;

use super::*;

#[test]
fn the_text_is_what_prometheus_reads() {
    let metrics = Metrics::default();
    metrics.count("records_total", &[("stage", "detect")], 3.0);
    metrics.count("records_total", &[("stage", "detect")], 4.0);
    metrics.gauge("lag", &[("partition", "0"), ("topic", "a\"b")], 0, 12.0);
    metrics.observe_s("commit_seconds", &[("stage", "detect")], 0.003);
    metrics.observe_s("commit_seconds", &[("stage", "detect")], 60.0);
    let text = metrics.text();
    for line in [
        "# TYPE homeostat_records_total counter",
        "homeostat_records_total{stage=\"detect\"} 7",
        "homeostat_lag{partition=\"0\",topic=\"a\\\"b\"} 12",
        "# TYPE homeostat_commit_seconds histogram",
        "homeostat_commit_seconds_bucket{stage=\"detect\",le=\"0.0025\"} 0",
        "homeostat_commit_seconds_bucket{stage=\"detect\",le=\"0.005\"} 1",
        "homeostat_commit_seconds_bucket{stage=\"detect\",le=\"+Inf\"} 2",
        "homeostat_commit_seconds_sum{stage=\"detect\"} 60.003",
        "homeostat_commit_seconds_count{stage=\"detect\"} 2",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[test]
fn readings_of_several_keepers_add_up_also_when_one_begins_anew() {
    let metrics = Metrics::default();
    let total = || match &metrics.snapshot()[0].value {
        Value::Counter(total) => *total,
        other => panic!("{other:?}"),
    };
    metrics.read_counter("decisions_total", &[], 1, 5.0);
    metrics.read_counter("decisions_total", &[], 2, 2.0);
    metrics.read_counter("decisions_total", &[], 1, 7.0);
    assert_eq!(total(), 9.0);
    metrics.read_counter("decisions_total", &[], 1, 1.0);
    assert_eq!(total(), 10.0);
}

#[test]
fn gauges_add_up_times_do_not_and_forgotten_ones_go() {
    let metrics = Metrics::default();
    for keeper in [1, 2] {
        metrics.gauge("entities", &[], keeper, 10.0);
        metrics.gauge("watermark_delay_seconds", &[], keeper, keeper as f64);
    }
    metrics.gauge("build_info", &[("version", "1")], 0, 1.0);
    let values: Vec<Value> = metrics.snapshot().into_iter().map(|snapshot| snapshot.value).collect();
    assert_eq!(values, [Value::Gauge(1.0), Value::Gauge(20.0), Value::Gauge(2.0)]);
    let later = Instant::now() + GAUGE_TTL + Duration::from_secs(1);
    assert_eq!(metrics.snapshot_at(later).len(), 1);
}

#[test]
fn invariant_17_a_label_with_many_values_is_bounded_and_counted() {
    let metrics = Metrics::default();
    for number in 0..SERIES_MAX + 10 {
        metrics.count("outputs_total", &[("topic", &number.to_string())], 1.0);
    }
    let snapshots = metrics.snapshot();
    assert_eq!(snapshots.len(), SERIES_MAX + 1);
    assert_eq!(snapshots.last().unwrap().value, Value::Counter(10.0));
}

proptest! {
    #[test]
    fn every_observation_is_in_one_bucket(seconds in proptest::collection::vec(0.0f64..20.0, 1..50)) {
        let metrics = Metrics::default();
        for value in &seconds {
            metrics.observe_s("step_seconds", &[], *value);
        }
        let snapshots = metrics.snapshot();
        let Value::Histogram(distribution) = &snapshots[0].value else { panic!() };
        prop_assert_eq!(distribution.count(), seconds.len() as u64);
        for (index, bound) in BOUNDS_S.iter().enumerate() {
            let below: u64 = distribution.counts[..=index].iter().sum();
            prop_assert_eq!(below, seconds.iter().filter(|value| *value <= bound).count() as u64);
        }
    }
}
