//! Every detector, for tests of what all of them promise.

use std::sync::Arc;

use detector::Detector;

use crate::build::build;

/// Every detector with options that make it leave its warm-up early, and `auto` in every form it takes.
pub fn all() -> Vec<(String, Arc<dyn Detector>)> {
    let by_name = detector::names().map(|name| {
        let (options, width): (&[(&str, &str)], _) = match name {
            "static_threshold" => (&[("lower", "-2"), ("upper", "5")], 3),
            "isolation_forest" => (&[("n_estimators", "10"), ("warmup", "16"), ("max_samples", "32")], 3),
            "robust_zscore" => (&[("window", "32"), ("warmup", "8")], 3),
            "ewma" | "cusum" | "bocpd" | "ar" => (&[("warmup", "8")], 3),
            "holt_winters" => (&[("warmup", "8"), ("seasonality", "5")], 3),
            "page_hinkley" => (&[("min_instances", "8")], 3),
            "half_space_trees" => (&[("window_size", "16"), ("n_trees", "5"), ("height", "5")], 3),
            "extra_trees" => (&[("warmup", "16"), ("n_estimators", "4"), ("max_samples", "24")], 3),
            "forecast_breach" => (&[("ceiling", "12"), ("horizon", "120 s")], 3),
            "spot" => (&[("warmup", "50")], 3),
            "streaming_pca" | "mahalanobis" => (&[("warmup", "16"), ("horizon", "50")], 3),
            "silence" => (&[("timeout", "auto")], 1),
            "population" => (&[], 1),
            _ if detector::parameters(name)
                .is_some_and(|mut known| known.any(|parameter| parameter.name == "warmup")) =>
            {
                (&[("warmup", "10")], 3)
            }
            _ => (&[], 3),
        };
        (name, options, width)
    });
    let more: [(_, &[(&str, &str)], _); 7] = [
        ("auto", &[("warmup", "10"), ("tier", "lean")], 1),
        ("auto", &[("warmup", "10"), ("tier", "standard"), ("hold", "6")], 1),
        ("auto", &[("warmup", "10")], 1),
        ("auto", &[("warmup", "10"), ("false_alarms_per_day", "20")], 2),
        ("ewma", &[("warmup", "8"), ("contamination", "0.1")], 1),
        (
            "isolation_forest",
            &[("n_estimators", "10"), ("warmup", "16"), ("max_samples", "32")],
            1,
        ),
        ("silence", &[], 0),
    ];
    by_name
        .chain(more)
        .map(|(name, options, width)| (format!("{name} {width} {options:?}"), build(name, options, width)))
        .collect()
}
