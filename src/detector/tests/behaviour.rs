//! What detectors claim beyond the promises all of them keep: invariances, gating, seasons, peers, limits ahead, calibration.

mod build;
mod noise;

use build::build;
use detector::{Detector, Row, Score, State, Trend};
use noise::Noise;

fn step(state: &mut dyn State, time_ms: i64, features: &[f64], learn: bool) -> Score {
    let mut out = Score::default();
    state.score(
        Row {
            time_ms,
            features,
            learn,
        },
        &mut out,
    );
    out
}

const STEP_MS: i64 = 300_000;
const START_MS: i64 = 1_700_000_000_000;

/// A series with a daily wave, noise, two spikes and a shift.
fn series(rows: usize) -> Vec<f64> {
    let mut noise = Noise(11);
    (0..rows)
        .map(|row| {
            let wave = (row as f64 * std::f64::consts::TAU / 288.0).sin();
            let spike = if row == 1300 || row == 2100 { 15.0 } else { 0.0 };
            let shift = if row > 2500 { 8.0 } else { 0.0 };
            10.0 + 2.0 * wave + 0.3 * noise.normal() + spike + shift
        })
        .collect()
}

fn scores(detector: &dyn Detector, start_ms: i64, values: &[f64]) -> Vec<f64> {
    let mut state = detector.fresh(1);
    values
        .iter()
        .enumerate()
        .map(|(row, value)| step(&mut *state, start_ms + row as i64 * STEP_MS, &[*value], true).score)
        .collect()
}

#[test]
fn scores_do_not_depend_on_the_unit() {
    let values = series(3000);
    // A power of two scales without rounding, so that the same grid cells are hit.
    let scaled: Vec<f64> = values.iter().map(|value| value * 1024.0).collect();
    for name in [
        "auto",
        "range_novelty",
        "transition_novelty",
        "relative_entropy",
        "fuzzy_art",
        "markov_surprise",
        "ewma",
        "ar",
        "cusum",
        "page_hinkley",
        "bocpd",
        "holt_winters",
        "robust_zscore",
        "spot",
        "isolation_forest",
        "half_space_trees",
    ] {
        let detector = build(name, &[], 1);
        let (plain, scaled) = (
            scores(&*detector, START_MS, &values),
            scores(&*detector, START_MS, &scaled),
        );
        for (row, (a, b)) in plain.iter().zip(&scaled).enumerate() {
            assert!((a - b).abs() <= 1e-3 * a.max(1.0), "{name}, row {row}: {a} is not {b}");
        }
    }
}

#[test]
fn scores_do_not_depend_on_the_week() {
    let values = series(3000);
    let week_ms = 7 * 86_400_000;
    for name in detector::names().filter(|name| {
        ![
            "static_threshold",
            "silence",
            "streaming_pca",
            "forecast_breach",
            "population",
        ]
        .contains(name)
    }) {
        let detector = build(name, &[], 1);
        assert_eq!(
            scores(&*detector, START_MS, &values),
            scores(&*detector, START_MS + 10 * week_ms, &values),
            "{name}"
        );
    }
}

#[test]
fn the_far_past_may_be_cropped() {
    let values = series(3000);
    for name in ["robust_zscore", "ewma"] {
        let detector = build(name, &[("threshold", "5")], 1);
        let whole = scores(&*detector, START_MS, &values);
        let late = scores(&*detector, START_MS, &values[1000..]);
        for (a, b) in whole[2200..].iter().zip(&late[1200..]) {
            assert!((a - b).abs() < 1e-6 * a.max(1.0), "{name}: {a} is not {b}");
        }
    }
}

#[test]
fn auto_alarms_once_at_a_spike_and_stands_while_it_may_not_learn() {
    let values = series(2000);
    let detector = build("auto", &[], 1);
    let alarms: Vec<usize> = scores(&*detector, START_MS, &values)
        .iter()
        .enumerate()
        .filter(|(_, score)| **score >= 1.0)
        .map(|(row, _)| row)
        .collect();
    assert_eq!(alarms, [1300]);
    let mut state = detector.fresh(1);
    for (row, value) in values[..1200].iter().enumerate() {
        step(&mut *state, START_MS + row as i64 * STEP_MS, &[*value], true);
    }
    let standing = (1200..2400)
        .filter(|row| step(&mut *state, START_MS + row * STEP_MS, &[26.0], false).score >= 1.0)
        .count();
    assert_eq!(
        standing, 1200,
        "a fault of 1200 rows that is not learned is seen for its whole length"
    );
}

#[test]
fn auto_holds_an_alarm_when_asked_to() {
    let mut values = series(1200);
    values.extend(std::iter::repeat_n(26.0, 40));
    let held = scores(&*build("auto", &[("hold", "30")], 1), START_MS, &values);
    let alarms = held[1200..].iter().filter(|score| **score >= 1.0).count();
    assert!((28..=32).contains(&alarms), "{alarms}");
}

#[test]
fn auto_sees_a_long_fault_of_several_features_for_its_whole_length() {
    let detector = build("auto", &[], 6);
    let (mut seen, mut rows, mut quiet, mut false_alarms) = (0, 0, 0, 0);
    for seed in 0..10 {
        let mut noise = Noise(seed + 1);
        let mut state = detector.fresh(seed);
        for row in 0..4800i64 {
            let load = (row as f64 * std::f64::consts::TAU / 288.0).sin() + 0.1 * noise.normal();
            let fault = (4300..4700).contains(&row);
            let features: Vec<f64> = (0..6)
                .map(|feature| {
                    let shift = if fault && feature < 3 {
                        3.0 + 0.3 * feature as f64
                    } else {
                        0.0
                    };
                    f64::from(feature + 1) * load + shift * f64::from(feature + 1) + 0.1 * noise.normal()
                })
                .collect();
            let alarm = step(&mut *state, START_MS + row * STEP_MS, &features, true).score >= 1.0;
            if fault {
                rows += 1;
                seen += usize::from(alarm);
            } else if (1000..4300).contains(&row) {
                quiet += 1;
                false_alarms += usize::from(alarm);
            }
        }
    }
    assert!(seen as f64 >= 0.95 * f64::from(rows), "{seen} of {rows} rows");
    assert!(false_alarms * 100 < 3 * quiet, "{false_alarms} of {quiet} rows");
}

/// Rows of stationary noise by kind: independent, correlated, heavy-tailed on both sides and on one, persistent, daily.
fn stationary(kind: usize, features: usize, rows: usize, noise: &mut Noise) -> Vec<Vec<f64>> {
    let mut level = vec![0.0; features];
    (0..rows)
        .map(|row| {
            let common = noise.normal();
            let wave = 3.0 * (row as f64 * std::f64::consts::TAU / 288.0).sin();
            level
                .iter_mut()
                .map(|level| {
                    let own = noise.normal();
                    *level = 0.9 * *level + own;
                    10.0 + match kind {
                        0 => own,
                        1 => 0.8 * common + 0.6 * own,
                        // Student's t with three degrees of freedom.
                        2 => {
                            own / ((0..3).map(|_| noise.normal().powi(2)).sum::<f64>() / 3.0)
                                .sqrt()
                                .max(1e-3)
                        }
                        3 => own.exp(),
                        4 => *level,
                        _ => wave + own,
                    }
                })
                .collect()
        })
        .collect()
}

#[test]
fn auto_is_quiet_on_stationary_noise_of_several_features() {
    let (mut alarms, mut judged) = (0, 0);
    for features in [2, 4, 12, 30] {
        let detector = build("auto", &[], features);
        for kind in 0..6 {
            let (mut alarms_here, mut judged_here) = (0, 0);
            for seed in 0..2 {
                let mut noise = Noise(100 * features as u64 + 10 * kind as u64 + seed);
                let mut state = detector.fresh(seed);
                for (row, values) in stationary(kind, features, 5000, &mut noise).iter().enumerate() {
                    let score = step(&mut *state, START_MS + row as i64 * STEP_MS, values, true);
                    judged_here += 1;
                    alarms_here += usize::from(score.is_anomaly());
                }
            }
            assert!(
                alarms_here * 1000 <= 12 * judged_here,
                "{features} features of kind {kind}: {alarms_here} of {judged_here} rows"
            );
            alarms += alarms_here;
            judged += judged_here;
        }
    }
    assert!(alarms * 1000 <= 5 * judged, "{alarms} of {judged} rows");
}

/// As those of one series: their level is a rank, which a fault of hundreds of rows would reach, were it not for the alarm that stands.
#[test]
fn an_alarm_of_a_distance_stands_until_its_departure_ends() {
    for name in ["mahalanobis", "streaming_pca"] {
        let mut noise = Noise(17);
        let mut state = build(name, &[], 8).fresh(1);
        let (mut seen, mut after) = (0, 0);
        for row in 0..5_000 {
            let is_fault = (3_000..3_600).contains(&row);
            let shift = if is_fault { 12.0 } else { 0.0 };
            let values: Vec<f64> = (0..8)
                .map(|at| noise.normal() + if at == 2 { shift } else { 0.0 })
                .collect();
            let alarm = step(&mut *state, START_MS + row * STEP_MS, &values, true).is_anomaly();
            seen += i32::from(alarm && is_fault);
            after += i32::from(alarm && row >= 3_620);
        }
        assert!(seen >= 570, "{name}: {seen} of 600 rows");
        assert!(after < 20, "{name}: {after} rows after it");
    }
}

/// Share of rows over what was asked for, where what is normal does not change.
#[test]
fn contamination_of_distances_is_kept_on_stationary_noise() {
    for name in ["mahalanobis", "streaming_pca"] {
        for kind in 0..6 {
            let (mut alarms, mut judged) = (0, 0);
            for seed in 0..2 {
                let mut noise = Noise(500 + 10 * kind as u64 + seed);
                let mut state = build(name, &[], 8).fresh(seed);
                for (row, values) in stationary(kind, 8, 10_000, &mut noise).iter().enumerate() {
                    let score = step(&mut *state, START_MS + row as i64 * STEP_MS, values, true);
                    judged += i32::from(row >= 2_000);
                    alarms += i32::from(row >= 2_000 && score.is_anomaly());
                }
            }
            let ratio = f64::from(alarms) / f64::from(judged) / 5e-3;
            assert!(
                (0.6..2.0).contains(&ratio),
                "{name}, kind {kind}: realised over nominal {ratio:.2}"
            );
        }
    }
}

#[test]
fn auto_says_what_to_expect_of_several_features() {
    let detector = build("auto", &[], 3);
    let mut state = detector.fresh(1);
    let mut noise = Noise(9);
    for row in 0..400i64 {
        let values = [50.0 + noise.normal(), -7.0, 1e6 + 1e3 * noise.normal()];
        let score = step(&mut *state, START_MS + row * STEP_MS, &values, true);
        if row < 60 {
            continue;
        }
        for (feature, (level, off)) in [(50.0, 2.0), (-7.0, 1e-6), (1e6, 2e3)].into_iter().enumerate() {
            let (low, expected, high) = (score.lower[feature], score.expected[feature], score.upper[feature]);
            assert!(
                (expected - level).abs() <= off,
                "row {row}, feature {feature}: {expected}"
            );
            assert!(
                low <= expected && expected <= high,
                "row {row}, feature {feature}: {low} to {high}"
            );
        }
    }
}

/// A busy series: a daily wave, noise of a heavy tail, bursts; one shift of the level at row 6000.
fn busy(seed: u64, rows: usize) -> Vec<f64> {
    let mut noise = Noise(seed);
    let mut burst = 0.0;
    (0..rows)
        .map(|row| {
            let wave = (row as f64 * std::f64::consts::TAU / 288.0).sin();
            let tail = (1.2 * noise.normal()).exp();
            burst = if noise.unit() < 0.003 { 30.0 } else { 0.7 * burst };
            let shift = if row >= 6000 { 60.0 } else { 0.0 };
            100.0 + 10.0 * wave + tail + burst + shift
        })
        .collect()
}

#[test]
fn defaults_alarm_seldom_on_a_busy_series_and_still_see_a_shift() {
    for name in [
        "ar",
        "bocpd",
        "cusum",
        "ewma",
        "holt_winters",
        "robust_zscore",
        "seasonal",
        "spot",
    ] {
        let detector = build(name, &[], 1);
        let (mut alarms, mut seen) = (0, 0);
        for seed in 0..3 {
            let scores = scores(&*detector, START_MS, &busy(40 + seed, 6300));
            alarms += scores[1000..6000].iter().filter(|score| **score >= 1.0).count();
            seen += usize::from(scores[6000..].iter().any(|score| *score >= 1.0));
        }
        assert!(alarms <= 30, "{name}: {alarms} of 15000 rows");
        // A burst surprises `bocpd` as much as the shift does.
        assert!(
            seen >= 1 || name == "bocpd",
            "{name}: the shift is seen in {seen} of 3 series"
        );
    }
}

#[test]
fn a_default_alarm_stands_while_it_may_not_learn() {
    for name in ["ewma", "robust_zscore", "seasonal", "holt_winters"] {
        let mut state = build(name, &[], 1).fresh(1);
        let mut noise = Noise(17);
        let mut at = |row: i64, shift: f64, learn: bool| {
            let value = 50.0 + noise.normal() + shift;
            step(&mut *state, START_MS + row * STEP_MS, &[value], learn).is_anomaly()
        };
        for row in 0..2000 {
            at(row, 0.0, true);
        }
        assert!(at(2000, 40.0, true), "{name}: the fault begins");
        let standing = (2001..2021).filter(|row| at(*row, 40.0, false)).count();
        assert_eq!(standing, 20, "{name}: the fault lasts");
    }
}

#[test]
fn an_alarm_level_that_is_written_is_taken_at_its_word() {
    let values = busy(40, 5000);
    for (name, level) in [
        ("ewma", "3"),
        ("robust_zscore", "3"),
        ("seasonal", "3"),
        ("holt_winters", "3"),
    ] {
        let alarms = |options: &[(&str, &str)]| {
            let scores = scores(&*build(name, options, 1), START_MS, &values);
            scores[1000..].iter().filter(|score| **score >= 1.0).count()
        };
        let (written, default) = (alarms(&[("threshold", level)]), alarms(&[]));
        assert!(
            written > 20 && written > 3 * default,
            "{name}: {written}, by default {default}"
        );
    }
}

#[test]
fn a_promised_rate_is_kept() {
    for (promise, nominal) in [
        (("contamination", "0.001"), 1e-3),
        (("false_alarms_per_day", "0.5"), 0.5 / 288.0),
    ] {
        let detector = build("ewma", &[promise], 1);
        let mut alarms = 0u32;
        let mut rows = 0u32;
        for seed in 0..8 {
            let mut noise = Noise(seed + 3);
            let mut state = detector.fresh(seed);
            for row in 0..25_000i64 {
                let alarm = step(&mut *state, START_MS + row * STEP_MS, &[noise.normal()], true).is_anomaly();
                if row >= 2000 {
                    rows += 1;
                    alarms += u32::from(alarm);
                }
            }
        }
        let ratio = f64::from(alarms) / (f64::from(rows) * nominal);
        assert!(
            (0.7..1.4).contains(&ratio),
            "{promise:?}: realised over nominal {ratio:.2}"
        );
    }
}

#[test]
fn seasonal_finds_the_hour_and_follows_the_clock() {
    let detector = build("seasonal", &[("threshold", "6")], 1);
    let mut state = detector.fresh(1);
    let mut noise = Noise(5);
    let level = |hour: i64| if (9..17).contains(&(hour % 24)) { 100.0 } else { 10.0 };
    let (mut before, mut after) = (0, 0);
    for row in 0..24 * 4 * 60i64 {
        let time_ms = 1_699_833_600_000 + row * 900_000;
        // The clock goes forward on day 40.
        let hour = row / 4 + i64::from(row >= 24 * 4 * 40);
        let score = step(&mut *state, time_ms, &[level(hour) + noise.normal()], true).score;
        if (24 * 4 * 20..24 * 4 * 40).contains(&row) {
            before += usize::from(score >= 1.0);
        }
        if row > 24 * 4 * 50 {
            after += usize::from(score >= 1.0);
        }
    }
    assert!(
        before <= 2 && after <= 2,
        "false alarms {before} before the clock change, {after} after"
    );
    let night = step(
        &mut *state,
        1_699_833_600_000 + (24 * 4 * 60 + 4) * 900_000,
        &[100.0],
        true,
    );
    assert!(night.is_anomaly(), "the day's load at night: {night:?}");
}

#[test]
fn seasonal_ignores_the_hour_where_it_tells_nothing() {
    let detector = build("seasonal", &[], 1);
    let mut state = detector.fresh(1);
    let mut noise = Noise(6);
    for row in 0..5000i64 {
        step(&mut *state, START_MS + row * 900_000, &[50.0 + noise.normal()], true);
    }
    let expected: Vec<f64> = (0..24)
        .map(|hour| step(&mut *state, START_MS + (5000 + 4 * hour) * 900_000, &[50.0], false).expected[0])
        .collect();
    assert!(expected.iter().all(|value| *value == expected[0]), "{expected:?}");
}

#[test]
fn population_blames_the_one_that_left_its_peers() {
    let detector = build("population", &[], 1);
    let mut states: Vec<_> = (0..8).map(|entity| detector.fresh(entity)).collect();
    let mut noise = Noise(7);
    let mut alarmed = Vec::new();
    for row in 0..600i64 {
        // All follow one load; entity 7 always runs hotter, entity 3 leaves from row 500.
        let load = 100.0 + 50.0 * (row as f64 / 40.0).sin();
        let values: Vec<f64> = (0..8)
            .map(|entity| {
                let own = if entity == 7 { 12.0 } else { 0.0 } + if entity == 3 && row >= 500 { 40.0 } else { 0.0 };
                load + own + noise.normal()
            })
            .collect();
        for (entity, state) in states.iter_mut().enumerate() {
            let mut features = vec![values[entity]];
            features.extend(
                values
                    .iter()
                    .enumerate()
                    .filter(|(peer, _)| *peer != entity)
                    .map(|(_, value)| value),
            );
            if step(&mut **state, START_MS + row * STEP_MS, &features, true).is_anomaly() && row >= 100 {
                alarmed.push((entity, row));
            }
        }
    }
    assert!(
        alarmed.iter().any(|(entity, row)| *entity == 3 && *row == 500),
        "{alarmed:?}"
    );
    assert!(
        alarmed.iter().filter(|(entity, _)| *entity != 3).count() <= 2,
        "{alarmed:?}"
    );
}

#[test]
fn forecast_breach_sees_a_leak_coming_and_a_plateau_not() {
    let detector = build("forecast_breach", &[("ceiling", "100")], 1);
    let mut noise = Noise(8);
    let mut leak = detector.fresh(1);
    let mut plateau = detector.fresh(2);
    let mut warned = None;
    for minute in 0..900i64 {
        let risen = (minute - 240).max(0) as f64 / 6.0;
        let time_ms = START_MS + minute * 60_000;
        let score = step(&mut *leak, time_ms, &[30.0 + risen + 3.0 * noise.normal()], true);
        if score.is_anomaly() && warned.is_none() {
            let breach = score.breach.expect("an alarm of a forecast has one");
            assert_eq!(breach.trend, Trend::Leak);
            assert!(
                breach.earliest_ms <= breach.median_ms && breach.median_ms <= breach.latest_ms,
                "{breach:?}"
            );
            warned = Some((minute, breach.median_ms / 60_000.0));
        }
        let level = 30.0 + risen.min(25.0) + 3.0 * noise.normal();
        assert!(
            !step(&mut *plateau, time_ms, &[level], true).is_anomaly(),
            "minute {minute}"
        );
    }
    // The limit is reached at minute 660.
    let (minute, left) = warned.expect("a leak is seen");
    assert!((560..=630).contains(&minute), "warned at {minute}");
    assert!(
        (f64::from(660 - minute as i32) - left).abs() < 30.0,
        "{left} minutes left at {minute}"
    );
    let floor = build("forecast_breach", &[("floor", "-100")], 1);
    let mut falling = floor.fresh(1);
    let warned = (0..900i64).any(|minute| {
        let risen = (minute - 240).max(0) as f64 / 6.0;
        step(&mut *falling, START_MS + minute * 60_000, &[-30.0 - risen], true).is_anomaly()
    });
    assert!(warned, "a floor is a ceiling upside down");
}

/// Share of rows that alarm, of entities with so many features: noise with heavy tails, of which features share a part.
fn alarmed_share(detector: &dyn Detector, features: usize, shared: f64, from: i64, to: i64) -> f64 {
    let mut alarms = 0u32;
    let seeds = 5;
    for seed in 0..seeds {
        let mut noise = Noise(seed * 31 + 7);
        let heavy = |noise: &mut Noise| noise.normal() * (0.3 * noise.normal()).exp();
        let mut state = detector.fresh(seed);
        for row in 0..to {
            let common = heavy(&mut noise);
            let values: Vec<f64> = (0..features)
                .map(|_| shared * common + (1.0 - shared) * heavy(&mut noise))
                .collect();
            let alarm = step(&mut *state, START_MS + row * STEP_MS, &values, true).is_anomaly();
            alarms += u32::from(alarm && row >= from);
        }
    }
    f64::from(alarms) / (seeds as i64 * (to - from)) as f64
}

#[test]
fn a_promised_rate_is_kept_over_several_features() {
    for name in ["ewma", "seasonal"] {
        let detector = build(name, &[("contamination", "0.003")], 8);
        for shared in [0.0, 0.5, 0.9] {
            let ratio = alarmed_share(&*detector, 8, shared, 3_000, 15_000) / 3e-3;
            assert!(
                (0.7..1.4).contains(&ratio),
                "{name}, {shared} shared: realised over nominal {ratio:.2}"
            );
        }
    }
}

/// At most one row in 5,000 stands out, however many features there are and however they go together. By its level alone each feature alarms by
/// itself.
#[test]
fn defaults_alarm_over_several_features_as_seldom_as_over_one() {
    for (name, level) in [
        ("ewma", ("threshold", "5")),
        ("holt_winters", ("threshold", "5")),
        ("seasonal", ("threshold", "5")),
    ] {
        let ratio = |options: &[(&str, &str)], shared: f64| {
            alarmed_share(&*build(name, options, 8), 8, shared, 8_000, 20_000) / 2e-4
        };
        let alone = ratio(&[level], 0.0);
        assert!(alone > 4.0, "{name}: by its level alone {alone:.2}");
        for shared in [0.0, 0.9] {
            let ratio = ratio(&[], shared);
            // What features share is counted for each of them: there it is at most the rate.
            let least = if shared == 0.0 { 0.5 } else { 0.0 };
            assert!(
                (least..2.0).contains(&ratio),
                "{name}, {shared} shared: realised over nominal {ratio:.2}"
            );
        }
    }
}

#[test]
fn a_constant_never_alarms() {
    for name in detector::names().filter(|name| !["silence", "population", "streaming_pca"].contains(name)) {
        let options: &[(&str, &str)] = match name {
            "static_threshold" => &[("upper", "8")],
            "forecast_breach" => &[("ceiling", "8")],
            _ => &[],
        };
        let alarmed = scores(&*build(name, options, 1), START_MS, &[7.0; 1_500])
            .iter()
            .position(|score| *score >= 1.0);
        assert_eq!(alarmed, None, "{name}");
    }
}

/// Who reads of an alarm wants to know what the value should have been: of the rows before, so that an alarming value is not within its own band.
#[test]
fn what_is_scored_has_an_expected_value_and_a_band() {
    for name in detector::names()
        .filter(|name| !["silence", "static_threshold", "forecast_breach", "population"].contains(name))
    {
        let mut noise = Noise(5);
        let mut state = build(name, &[], 3).fresh(1);
        let mut scored = 0;
        for row in 0..1_500 {
            let fault = if (1_200..1_230).contains(&row) { 40.0 } else { 0.0 };
            let mut values = [
                10.0 + noise.normal(),
                20.0 + noise.normal() + fault,
                -30.0 + noise.normal(),
            ];
            if row % 11 == 0 {
                values[row as usize % 3] = f64::NAN;
            }
            let score = step(&mut *state, START_MS + row * STEP_MS, &values, true);
            let leading = (0..score.contributions.len())
                .max_by(|a, b| score.contributions[*a].total_cmp(&score.contributions[*b]))
                .expect("there are features");
            let (lower, expected, upper) = (score.lower[leading], score.expected[leading], score.upper[leading]);
            if score.score > 0.0 {
                scored += 1;
                let whole = lower <= expected && expected <= upper && (upper - lower).is_finite();
                assert!(whole, "{name}, row {row}: {score:?}");
            }
            if row == 1_200 && leading == 1 && score.is_anomaly() {
                assert!(values[1] > upper, "{name}: {score:?}");
            }
        }
        assert!(scored > 0, "{name}");
    }
}

/// A fault of one feature of three: those that hold a value against a level that they know alarm until it is over, and where it never ends until it is the
/// new normal.
#[test]
fn an_alarm_of_one_of_several_features_stands_until_its_departure_ends() {
    let (from, to, settled) = (2_000, 2_600, 6_000);
    for name in ["ewma", "seasonal", "holt_winters", "robust_zscore", "spot"] {
        for fault in [from..to, from..i64::MAX] {
            let mut noise = Noise(3);
            let detector = build(name, &[], 3);
            let mut state = detector.fresh(1);
            let alarms: Vec<bool> = (0..settled + 1_000)
                .map(|row| {
                    if row % 500 == 250 {
                        let mut bytes = Vec::new();
                        state.snapshot(&mut bytes);
                        state = detector.restore(1, &bytes).expect("it was written by this version");
                    }
                    let shift = if fault.contains(&row) { 12.0 } else { 0.0 };
                    let values = [noise.normal(), noise.normal() + shift, noise.normal()];
                    step(&mut *state, START_MS + row * STEP_MS, &values, true).is_anomaly()
                })
                .collect();
            let alarmed = |rows: std::ops::Range<i64>| {
                let rows = &alarms[rows.start as usize..rows.end as usize];
                rows.iter().filter(|alarm| **alarm).count()
            };
            assert!(alarms[from as usize], "{name}: no alarm at the first row");
            assert_eq!(alarmed(from..to), (to - from) as usize, "{name}, {fault:?}");
            let after = if fault.end == to { to + 20 } else { settled };
            assert!(
                alarmed(after..after + 1_000) <= 2,
                "{name}, {fault:?}: {}",
                alarmed(after..after + 1_000)
            );
        }
    }
}
