//! What every detector promises, whatever it is fed (invariants 5 and 11): finite scores, contributions that sum,
//! prefixes that agree, snapshots that continue bit for bit, bounded states, and no panic.

use std::sync::Arc;

use detector::{Detector, Row, SCORE_MAX, Score, State, Value};
use proptest::prelude::*;

/// Every detector with options that make it leave its warm-up early.
fn all() -> Vec<(&'static str, Arc<dyn Detector>)> {
    detector::names()
        .map(|name| {
            let short: &[(&str, f64)] = match name {
                "static_threshold" => &[("lower", -2.0), ("upper", 5.0)],
                "isolation_forest" => &[("n_estimators", 10.0), ("warmup", 16.0), ("max_samples", 32.0)],
                "robust_zscore" => &[("window", 32.0), ("warmup", 8.0)],
                "ewma" | "cusum" | "bocpd" | "ar" => &[("warmup", 8.0)],
                "holt_winters" => &[("warmup", 8.0), ("seasonality", 5.0)],
                "page_hinkley" => &[("min_instances", 8.0)],
                "half_space_trees" => &[("window_size", 16.0), ("n_trees", 5.0), ("height", 5.0)],
                "extra_trees" => &[("warmup", 16.0), ("n_estimators", 4.0), ("max_samples", 24.0)],
                "forecast_breach" => &[("ceiling", 12.0), ("horizon", 120.0)],
                "spot" => &[("warmup", 50.0)],
                "streaming_pca" | "mahalanobis" => &[("warmup", 16.0), ("horizon", 50.0)],
                "auto" => &[("warmup", 10.0), ("hold", 6.0)],
                _ if detector::parameters(name)
                    .is_some_and(|mut known| known.any(|parameter| parameter.name == "warmup")) =>
                {
                    &[("warmup", 10.0)]
                }
                _ => &[],
            };
            let options: Vec<(String, Value)> = short
                .iter()
                .map(|(name, value)| ((*name).into(), Value::Number(*value)))
                .collect();
            let width = match name {
                "silence" | "population" => 1,
                _ => 3,
            };
            let features: Vec<String> = (0..width).map(|index| format!("f{index}")).collect();
            let built = detector::build(name, &options, &features).unwrap_or_else(|error| panic!("{name}: {error}"));
            (name, built)
        })
        .collect()
}

#[derive(Clone, Debug)]
struct Input {
    time_ms: i64,
    features: [f64; 3],
    learn: bool,
}

fn value() -> impl Strategy<Value = f64> {
    prop_oneof![
        6 => -10.0..10.0f64,
        2 => Just(3.0),
        1 => prop::sample::select(vec![
            f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, f64::MIN_POSITIVE, 0.0, -0.0, 1e-300, 1e300,
        ]),
    ]
}

fn rows() -> impl Strategy<Value = Vec<Input>> {
    let step = prop_oneof![8 => Just(10_000i64), 1 => Just(0), 1 => Just(-60_000), 1 => Just(86_400_000)];
    prop::collection::vec((step, [value(), value(), value()], prop::bool::weighted(0.9)), 0..150).prop_map(|rows| {
        let mut time_ms = 1_700_000_000_000;
        rows.into_iter()
            .map(|(step, features, learn)| {
                time_ms += step;
                Input {
                    time_ms,
                    features,
                    learn,
                }
            })
            .collect()
    })
}

fn run(state: &mut dyn State, name: &str, rows: &[Input]) -> Vec<Score> {
    rows.iter()
        .map(|input| {
            let mut out = Score::default();
            let mut features = input.features;
            if name == "silence" {
                features[0] += input.time_ms as f64;
            }
            let features = if name == "silence" {
                &features[..1]
            } else {
                &features[..]
            };
            state.score(
                Row {
                    time_ms: input.time_ms,
                    features,
                    learn: input.learn,
                },
                &mut out,
            );
            out
        })
        .collect()
}

fn bits(scores: &[Score]) -> Vec<u64> {
    scores
        .iter()
        .flat_map(|score| {
            [score.score, score.p_value]
                .into_iter()
                .chain(score.contributions.iter().copied())
                .chain(score.expected.iter().copied())
                .chain(score.lower.iter().copied())
                .chain(score.upper.iter().copied())
                .map(f64::to_bits)
                .collect::<Vec<_>>()
        })
        .collect()
}

fn snapshot(state: &dyn State) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.snapshot(&mut bytes);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn scores_are_finite_and_explained(rows in rows()) {
        for (name, detector) in all() {
            let mut state = detector.fresh(7);
            for score in run(&mut *state, name, &rows) {
                prop_assert!(score.score.is_finite() && (0.0..=SCORE_MAX).contains(&score.score), "{name}: {score:?}");
                let sum: f64 = score.contributions.iter().sum();
                prop_assert!((sum - score.score).abs() <= 1e-9, "{name}: {sum} is not {}", score.score);
                prop_assert!(score.contributions.iter().all(|part| *part >= 0.0), "{name}: {score:?}");
                prop_assert!(score.p_value.is_nan() || (0.0..=1.0).contains(&score.p_value), "{name}: {score:?}");
            }
            prop_assert!(snapshot(&*state).len() <= detector.state_size_max(), "{name}");
        }
    }

    #[test]
    fn snapshots_continue_bit_for_bit(rows in rows(), at in 0.0..1.0f64) {
        let at = (rows.len() as f64 * at) as usize;
        for (name, detector) in all() {
            let mut state = detector.fresh(7);
            run(&mut *state, name, &rows[..at]);
            let bytes = snapshot(&*state);
            let mut restored = detector.restore(7, &bytes).unwrap();
            prop_assert_eq!(snapshot(&*restored), bytes, "{}", name);
            let expected = run(&mut *state, name, &rows[at..]);
            let found = run(&mut *restored, name, &rows[at..]);
            prop_assert_eq!(bits(&found), bits(&expected), "{}", name);
            prop_assert_eq!(snapshot(&*restored), snapshot(&*state), "{}", name);
        }
    }

    #[test]
    fn a_prefix_of_the_input_gives_a_prefix_of_the_output(rows in rows(), at in 0.0..1.0f64) {
        let at = (rows.len() as f64 * at) as usize;
        for (name, detector) in all() {
            let whole = run(&mut *detector.fresh(7), name, &rows);
            let part = run(&mut *detector.fresh(7), name, &rows[..at]);
            prop_assert_eq!(bits(&part), bits(&whole[..at]), "{}", name);
        }
    }

    #[test]
    fn foreign_bytes_are_refused_or_harmless(rows in rows(), flips in prop::collection::vec((0usize..4000, any::<u8>()), 1..8), cut in 0usize..4000) {
        for (name, detector) in all() {
            let mut state = detector.fresh(7);
            run(&mut *state, name, &rows);
            let mut bytes = snapshot(&*state);
            for (at, flip) in &flips {
                let length = bytes.len();
                bytes[at % length] ^= flip;
            }
            for bytes in [&bytes[..], &bytes[..cut % bytes.len()]] {
                if let Ok(mut state) = detector.restore(7, bytes) {
                    let scores = run(&mut *state, name, &rows);
                    prop_assert!(scores.iter().all(|score| score.score.is_finite()), "{name}");
                }
            }
        }
    }
}
