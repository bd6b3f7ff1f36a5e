//! Each detector on the case it exists for, and options that must be refused.

use detector::{Error, Row, Score, State, Value};

fn build(
    name: &str,
    options: &[(&str, Value)],
    features: usize,
) -> Result<std::sync::Arc<dyn detector::Detector>, Error> {
    let options: Vec<(String, Value)> = options
        .iter()
        .map(|(name, value)| ((*name).into(), value.clone()))
        .collect();
    let features: Vec<String> = (0..features).map(|index| format!("f{index}")).collect();
    detector::build(name, &options, &features)
}

fn number(value: f64) -> Value {
    Value::Number(value)
}

fn text(value: &str) -> Value {
    Value::Text(value.into())
}

fn score(state: &mut dyn State, time_ms: i64, features: &[f64]) -> Score {
    let mut out = Score::default();
    state.score(
        Row {
            time_ms,
            features,
            learn: true,
        },
        &mut out,
    );
    out
}

/// A reproducible stream of numbers in [0, 1).
fn noise(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[test]
fn static_threshold_alarms_at_its_bounds_and_not_before() {
    for (lower, upper) in [
        (Some(0.1), Some(0.3)),
        (None, Some(100.0)),
        (Some(3.0), None),
        (None, Some(-1.0)),
        (Some(-7.0), None),
        (None, Some(0.0)),
    ] {
        let options: Vec<(&str, Value)> = lower
            .map(|bound| ("lower", number(bound)))
            .into_iter()
            .chain(upper.map(|bound| ("upper", number(bound))))
            .collect();
        let mut state = build("static_threshold", &options, 1).unwrap().fresh(0);
        let mut at = |value: f64| score(&mut *state, 0, &[value]).score;
        if let Some(upper) = upper {
            assert!(at(upper) >= 1.0 && at(upper.next_up()) >= 1.0 && at(f64::INFINITY) >= 1.0);
            assert!(at(upper.next_down()) < 1.0);
        }
        if let Some(lower) = lower {
            assert!(at(lower) >= 1.0 && at(lower.next_down()) >= 1.0 && at(f64::NEG_INFINITY) >= 1.0);
            assert!(at(lower.next_up()) < 1.0);
        }
        assert_eq!(at(f64::NAN), 0.0);
    }
}

#[test]
fn silence_is_the_gap_over_the_timeout() {
    let mut state = build("silence", &[], 0).unwrap().fresh(0);
    assert_eq!(score(&mut *state, 5_000, &[f64::NAN]).score, 0.0);
    assert_eq!(score(&mut *state, 10_000, &[10_000.0]).score, 0.0);
    assert_eq!(score(&mut *state, 25_000, &[10_000.0]).score, 0.5);
    assert!(score(&mut *state, 40_000, &[10_000.0]).is_anomaly());
    assert!(!score(&mut *state, 41_000, &[40_500.0]).is_anomaly());
    let mut quick = build("silence", &[("timeout", text("1500 ms"))], 0).unwrap().fresh(0);
    score(&mut *quick, 0, &[0.0]);
    assert_eq!(score(&mut *quick, 1_500, &[]).score, 1.0);
}

#[test]
fn silence_learns_each_entitys_own_pace() {
    let learned = |more: &[(&str, Value)]| {
        let options = [&[("timeout", text("auto"))], more].concat();
        build("silence", &options, 0).unwrap()
    };
    let detector = learned(&[("min_timeout", text("5 s"))]);
    let (mut quick, mut slow, mut floored) = (detector.fresh(0), detector.fresh(1), learned(&[]).fresh(2));
    for beat in 0..200i64 {
        score(&mut *quick, beat * 2_000, &[(beat * 2_000) as f64]);
        score(&mut *floored, beat * 2_000, &[(beat * 2_000) as f64]);
        score(&mut *slow, beat * 60_000, &[(beat * 60_000) as f64]);
    }
    let (quick_end, slow_end) = (199 * 2_000, 199 * 60_000);
    assert!(score(&mut *quick, quick_end + 10_000, &[]).is_anomaly());
    // Whatever it learned, thirty seconds are the floor, unless somebody says otherwise.
    assert!(!score(&mut *floored, quick_end + 29_000, &[]).is_anomaly());
    assert!(score(&mut *floored, quick_end + 30_000, &[]).is_anomaly());
    assert!(!score(&mut *slow, slow_end + 90_000, &[]).is_anomaly());
    assert!(score(&mut *slow, slow_end + 240_000, &[]).is_anomaly());
}

#[test]
fn robust_zscore_finds_a_spike_and_says_where_it_expected_the_value() {
    let mut state = build("robust_zscore", &[], 2).unwrap().fresh(0);
    let mut random = noise(1);
    let alarms = (0..500)
        .filter(|row| score(&mut *state, row * 1000, &[100.0 + random(), 5.0]).is_anomaly())
        .count();
    assert_eq!(alarms, 0);
    let spike = score(&mut *state, 500_000, &[110.0, 5.0]);
    assert!(spike.is_anomaly());
    assert!(spike.contributions[0] > 0.99 * spike.score);
    assert!((spike.expected[0] - 100.5).abs() < 0.2 && spike.upper[0] < 110.0);
}

#[test]
fn isolation_forest_finds_the_odd_row_and_names_the_feature() {
    let detector = build("isolation_forest", &[], 4).unwrap();
    let mut state = detector.fresh(42);
    let mut random = noise(3);
    let mut alarms = 0;
    for row in 0..3000 {
        let features = [random(), random() * 10.0, 5.0, random() + random()];
        alarms += usize::from(score(&mut *state, row * 1000, &features).is_anomaly());
    }
    assert!(alarms < 90, "{alarms} alarms in 3000 normal rows");
    let odd = score(&mut *state, 3_000_000, &[0.5, 40.0, 5.0, 1.0]);
    assert!(odd.is_anomaly(), "{odd:?}");
    let blamed = (0..4).max_by(|a, b| odd.contributions[*a].total_cmp(&odd.contributions[*b]));
    assert_eq!(blamed, Some(1), "{odd:?}");
}

#[test]
fn mistakes_are_refused_with_what_was_meant() {
    let message = |built: Result<_, Error>| built.err().map(|error: Error| error.to_string()).unwrap_or_default();
    assert_eq!(
        message(build("isolation_forrest", &[], 1)),
        "no detector is named \"isolation_forrest\"; did you mean \"isolation_forest\"?"
    );
    assert_eq!(
        message(build("robust_zscore", &[("treshold", number(3.0))], 1)),
        "robust_zscore has no parameter \"treshold\"; did you mean \"threshold\"?"
    );
    assert_eq!(
        message(build("static_threshold", &[("q", number(3.0))], 1)),
        "static_threshold has no parameter \"q\"; there are lower, upper"
    );
    assert_eq!(
        message(build("static_threshold", &[], 1)),
        "static_threshold needs upper, lower, or both"
    );
    assert_eq!(
        message(build(
            "ewma",
            &[("threshold", number(3.0)), ("threshold", number(4.0))],
            1
        )),
        "threshold is given twice"
    );
    for (name, options, features) in [
        ("isolation_forest", vec![("contamination", number(0.7))], 1),
        ("isolation_forest", vec![("n_estimators", number(1.5))], 1),
        ("isolation_forest", vec![("warmup", text("soon"))], 1),
        ("robust_zscore", vec![("threshold", number(f64::NAN))], 1),
        (
            "robust_zscore",
            vec![("window", number(16.0)), ("warmup", number(17.0))],
            1,
        ),
        (
            "robust_zscore",
            vec![("window", number(16.0)), ("window", number(17.0))],
            1,
        ),
        ("robust_zscore", vec![], 0),
        ("silence", vec![("timeout", text("30 parsecs"))], 0),
        ("silence", vec![("timeout", Value::Bool(true))], 0),
        ("static_threshold", vec![], 1),
        (
            "static_threshold",
            vec![("lower", number(2.0)), ("upper", number(1.0))],
            1,
        ),
    ] {
        assert!(build(name, &options, features).is_err(), "{name} {options:?}");
    }
    for duration in ["30 s", "30s", "0.5 min", "30000 ms", "30"] {
        let mut state = build("silence", &[("timeout", text(duration))], 0).unwrap().fresh(0);
        score(&mut *state, 0, &[0.0]);
        assert_eq!(score(&mut *state, 30_000, &[]).score, 1.0, "{duration}");
    }
}
