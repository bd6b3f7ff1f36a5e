//! An accepted level shift is said once: not for spikes, nor along a ramp, nor again after a restart.

mod build;
mod noise;

use std::sync::Arc;

use build::build;
use detector::{Detector, LevelShift, Row, Score};
use noise::Noise;

const START_MS: i64 = 1_700_000_000_000;
const STEP_MS: i64 = 10_000;
/// Rows of a test's unit of time: `auto` over several features accepts a new level late, as it does a long fault.
const UNIT: usize = 1_000;
const UNIT_SEVERAL: usize = 4_000;

/// Every detector that accepts a new level; all features of several move together.
fn all() -> Vec<(&'static str, usize, Arc<dyn Detector>)> {
    let forms: [(_, &[(&str, &str)], _); 7] = [
        ("page_hinkley", &[], 1),
        ("page_hinkley", &[], 3),
        ("bocpd", &[], 1),
        ("auto", &[("tier", "lean")], 1),
        ("auto", &[], 1),
        ("auto", &[("hold", "30")], 1),
        ("auto", &[], 3),
    ];
    forms
        .into_iter()
        .map(|(name, options, features)| (name, features, build(name, options, features)))
        .collect()
}

fn unit(features: usize) -> usize {
    if features > 1 { UNIT_SEVERAL } else { UNIT }
}

/// Rows around the level, deviating by 1.
fn rows(seed: u64, features: usize, level: impl Fn(usize) -> f64) -> Vec<Vec<f64>> {
    let mut noise = Noise(seed);
    (0..5 * unit(features))
        .map(|row| (0..features).map(|_| level(row) + noise.normal()).collect())
        .collect()
}

/// The shifts with their rows. The state is written and read again at the given rows.
fn shifts(detector: &dyn Detector, rows: &[Vec<f64>], restarts: &[usize]) -> Vec<(usize, LevelShift)> {
    let mut state = detector.fresh(1);
    let mut out = Score::default();
    let mut found = Vec::new();
    for (at, features) in rows.iter().enumerate() {
        if restarts.contains(&at) {
            let mut bytes = Vec::new();
            state.snapshot(&mut bytes);
            state = detector.restore(1, &bytes).expect("it was written by itself");
        }
        let row = Row {
            time_ms: START_MS + at as i64 * STEP_MS,
            features,
            learn: true,
        };
        state.score(row, &mut out);
        found.extend(out.level_shifts.iter().map(|shift| (at, *shift)));
    }
    found
}

#[test]
fn a_shift_is_said_once_with_both_levels_and_since_when() {
    for (name, features, detector) in all() {
        for seed in 1..=5 {
            for (old, new) in [(100.0, 112.0), (100.0, 90.0)] {
                let at = unit(features);
                let rows = rows(seed, features, |row| if row < at { old } else { new });
                let found = shifts(&*detector, &rows, &[]);
                let mut shifted: Vec<usize> = found.iter().map(|(_, shift)| shift.feature).collect();
                shifted.sort_unstable();
                assert!(shifted.into_iter().eq(0..features), "{name}, seed {seed}: {found:?}");
                for (said, shift) in &found {
                    assert!(*said > at, "{name}, seed {seed}: {shift:?} at row {said}");
                    assert!((shift.old_level - old).abs() < 1.0, "{name}, seed {seed}: {shift:?}");
                    assert!((shift.new_level - new).abs() < 1.0, "{name}, seed {seed}: {shift:?}");
                    let since = ((shift.since_ms - START_MS) / STEP_MS) as usize;
                    // Hinkley's estimate of when is as wide as the tolerated drift is small; rows that are held are not of a departure.
                    let near = if name == "page_hinkley" { 80 } else { 40 };
                    assert!(since.abs_diff(at) < near, "{name}, seed {seed}: since row {since}");
                }
                // A restart anywhere around it changes nothing, and nothing is said twice.
                let accepted = found[0].0;
                let restarts = [
                    at - 1,
                    at + 1,
                    at + 20,
                    accepted - 1,
                    accepted,
                    accepted + 1,
                    accepted + 40,
                ];
                assert_eq!(shifts(&*detector, &rows, &restarts), found, "{name}, seed {seed}");
            }
        }
    }
}

#[test]
fn two_shifts_are_two() {
    for (name, features, detector) in all() {
        for seed in 1..=5 {
            for last in [124.0, 100.0] {
                let halves = |row: usize| 2 * row / unit(features);
                let rows = rows(seed, features, |row| match halves(row) {
                    0..3 => 100.0,
                    3..7 => 112.0,
                    _ => last,
                });
                let found = shifts(&*detector, &rows, &[]);
                assert_eq!(found.len(), 2 * features, "{name}, seed {seed}: {found:?}");
                for (_, shift) in &found[features..] {
                    assert!((shift.old_level - 112.0).abs() < 1.0, "{name}, seed {seed}: {shift:?}");
                    assert!((shift.new_level - last).abs() < 1.0, "{name}, seed {seed}: {shift:?}");
                }
            }
        }
    }
}

#[test]
fn spikes_noise_and_waves_are_no_shifts() {
    let spike = |row: usize| if row == 900 { 50.0 } else { 0.0 };
    let burst = |row: usize| if (900..906).contains(&row) { 20.0 } else { 0.0 };
    let spikes = |row: usize| {
        if row > 500 && row.is_multiple_of(97) { 15.0 } else { 0.0 }
    };
    let wave = |row: usize| 20.0 * (row as f64 * std::f64::consts::TAU / 1440.0).sin();
    let shapes: [(&str, &dyn Fn(usize) -> f64); 5] = [
        ("noise", &|_| 0.0),
        ("spike", &spike),
        ("burst", &burst),
        ("spikes", &spikes),
        ("wave", &wave),
    ];
    for (name, features, detector) in all() {
        for (shape, level) in shapes {
            // To tests for a moved mean a wave is what they are for.
            if shape == "wave" && name != "auto" {
                continue;
            }
            for seed in 1..=5 {
                let found = shifts(&*detector, &rows(seed, features, |row| 100.0 + level(row)), &[]);
                assert!(found.is_empty(), "{name}, {shape}, seed {seed}: {found:?}");
            }
        }
    }
}

#[test]
fn a_ramp_is_one_shift_at_most() {
    for (name, features, detector) in all() {
        for slope in [0.01, 0.03, 0.1, 1.0] {
            let rows = rows(3, features, |row| {
                100.0 + slope * row.clamp(unit(features), 3 * unit(features)) as f64
            });
            let found = shifts(&*detector, &rows, &[]);
            assert!(found.len() <= features, "{name}, slope {slope}: {found:?}");
        }
    }
}

/// What goes to and fro between two levels is soon known to.
#[test]
fn alternation_is_not_told_of_for_ever() {
    for (name, features, detector) in all() {
        if name == "auto" {
            let rows = rows(4, features, |row| if row / 300 % 2 == 0 { 100.0 } else { 120.0 });
            let found = shifts(&*detector, &rows, &[]);
            assert!(found.len() <= 4 * features, "{name}: {found:?}");
        }
    }
}

/// A row that may not be learned belongs to an incident: a level is accepted when it is over, if the series has not come back.
#[test]
fn an_incident_is_not_accepted_while_it_is_open() {
    for (name, features, detector) in all() {
        for back in [false, true] {
            let mut state = detector.fresh(1);
            let mut out = Score::default();
            let mut found = 0;
            let incident = unit(features)..2 * unit(features);
            let level = |row: usize| {
                if row < incident.start || (back && row >= incident.end) {
                    100.0
                } else {
                    112.0
                }
            };
            for (at, features) in rows(5, features, level).iter().enumerate() {
                let learn = !incident.contains(&at);
                let time_ms = START_MS + at as i64 * STEP_MS;
                state.score(
                    Row {
                        time_ms,
                        features,
                        learn,
                    },
                    &mut out,
                );
                assert!(learn || out.level_shifts.is_empty(), "{name}: row {at}");
                found += out.level_shifts.len();
            }
            assert_eq!(found, if back { 0 } else { features }, "{name}");
        }
    }
}
