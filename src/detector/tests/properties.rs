//! What every detector promises, whatever it is fed (invariants 5 and 11): finite scores, contributions that sum,
//! prefixes that agree, snapshots that continue bit for bit, bounded states, and no panic.

mod build;
mod every;

use detector::{Row, SCORE_MAX, Score, State, Trend, slab};
use every::all;
use proptest::prelude::*;

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
        1 => any::<f64>(),
    ]
}

/// From now on: the usual step, none, back, a gap of a day, or anywhere at all.
#[derive(Clone, Copy, Debug)]
enum Step {
    By(i64),
    To(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        16 => Just(Step::By(10_000)),
        2 => Just(Step::By(0)),
        2 => Just(Step::By(-60_000)),
        2 => Just(Step::By(86_400_000)),
        1 => prop::sample::select(vec![i64::MIN, i64::MIN + 1, -1, 0, 1_700_000_000_000, i64::MAX - 1, i64::MAX])
            .prop_map(Step::To),
        1 => any::<i64>().prop_map(Step::To),
    ]
}

/// Values that come again and again, so that warm-ups end, constants and duplicates occur, and grids are narrow.
fn series() -> impl Strategy<Value = Vec<[f64; 3]>> {
    let varied = prop::collection::vec([value(), value(), value()], 0..150);
    let constant = (value(), 0usize..150).prop_map(|(value, rows)| vec![[value; 3]; rows]);
    let narrow = (-1e6..1e6f64, prop::collection::vec(0.0..1e-9f64, 0..150)).prop_map(|(level, noise)| {
        noise
            .into_iter()
            .map(|noise| [level + noise, level, -level - noise])
            .collect()
    });
    let binary = prop::collection::vec(any::<bool>(), 0..150)
        .prop_map(|bits| bits.into_iter().map(|bit| [f64::from(u8::from(bit)); 3]).collect());
    prop_oneof![4 => varied, 1 => constant, 1 => narrow, 1 => binary]
}

fn rows() -> impl Strategy<Value = Vec<Input>> {
    let steps = prop::collection::vec((step(), prop::bool::weighted(0.9)), 150);
    (series(), steps).prop_map(|(series, steps)| {
        let mut time_ms: i64 = 1_700_000_000_000;
        series
            .into_iter()
            .zip(steps)
            .map(|(features, (step, learn))| {
                time_ms = match step {
                    Step::By(step_ms) => time_ms.saturating_add(step_ms),
                    Step::To(time_ms) => time_ms,
                };
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
            let features = if name.starts_with("silence") {
                features[0] += input.time_ms as f64;
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

/// Every field, so that NaN equals NaN and 0 is not −0.
fn bits(scores: &[Score]) -> Vec<u64> {
    let mut bits = Vec::new();
    for score in scores {
        bits.extend([score.score, score.p_value, score.grade, score.confidence].map(f64::to_bits));
        for values in [&score.contributions, &score.expected, &score.lower, &score.upper] {
            bits.extend(values.iter().map(|value| value.to_bits()));
        }
        bits.push(score.since_ms.map_or(1, |since_ms| since_ms as u64));
        for shift in &score.level_shifts {
            bits.extend([shift.feature as u64, shift.since_ms as u64]);
            bits.extend([shift.old_level, shift.new_level].map(f64::to_bits));
        }
        if let Some(breach) = score.breach {
            let times = [breach.median_ms, breach.earliest_ms, breach.latest_ms];
            bits.extend([breach.probability, times[0], times[1], times[2]].map(f64::to_bits));
            bits.push(u64::from(breach.trend == Trend::Leak));
        }
    }
    bits
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
            for score in run(&mut *state, &name, &rows) {
                prop_assert!(score.score.is_finite() && (0.0..=SCORE_MAX).contains(&score.score), "{name}: {score:?}");
                let sum: f64 = score.contributions.iter().sum();
                prop_assert!((sum - score.score).abs() <= 1e-9, "{name}: {sum} is not {}", score.score);
                prop_assert!(score.contributions.iter().all(|part| *part >= 0.0), "{name}: {score:?}");
                prop_assert!(score.p_value.is_nan() || (0.0..=1.0).contains(&score.p_value), "{name}: {score:?}");
                prop_assert!((0.0..=1.0).contains(&score.grade) && (0.0..=1.0).contains(&score.confidence), "{name}: {score:?}");
                for ((expected, lower), upper) in score.expected.iter().zip(&score.lower).zip(&score.upper) {
                    let band = [expected, lower, upper];
                    prop_assert!(!band.iter().any(|value| value.is_infinite()), "{name}: {score:?}");
                    let is_whole = band.iter().all(|value| value.is_finite());
                    prop_assert!(!is_whole || (lower <= expected && expected <= upper), "{name}: {score:?}");
                }
                if let Some(breach) = score.breach {
                    prop_assert!((0.0..=1.0).contains(&breach.probability), "{name}: {breach:?}");
                    prop_assert!(0.0 <= breach.earliest_ms && breach.earliest_ms <= breach.median_ms && breach.median_ms <= breach.latest_ms, "{name}: {breach:?}");
                }
            }
            prop_assert!(snapshot(&*state).len() <= detector.state_size_max(), "{name}");
        }
    }

    #[test]
    fn snapshots_continue_bit_for_bit(rows in rows(), at in 0.0..1.0f64) {
        let at = (rows.len() as f64 * at) as usize;
        for (name, detector) in all() {
            let mut state = detector.fresh(7);
            run(&mut *state, &name, &rows[..at]);
            let bytes = snapshot(&*state);
            let mut restored = detector.restore(7, &bytes).unwrap();
            prop_assert_eq!(snapshot(&*restored), bytes, "{}", name);
            let expected = run(&mut *state, &name, &rows[at..]);
            let found = run(&mut *restored, &name, &rows[at..]);
            prop_assert_eq!(bits(&found), bits(&expected), "{}", name);
            prop_assert_eq!(snapshot(&*restored), snapshot(&*state), "{}", name);
        }
    }

    #[test]
    fn a_prefix_of_the_input_gives_a_prefix_of_the_output(rows in rows(), at in 0.0..1.0f64) {
        let at = (rows.len() as f64 * at) as usize;
        for (name, detector) in all() {
            let whole = run(&mut *detector.fresh(7), &name, &rows);
            let part = run(&mut *detector.fresh(7), &name, &rows[..at]);
            prop_assert_eq!(bits(&part), bits(&whole[..at]), "{}", name);
        }
    }

    #[test]
    fn foreign_bytes_are_refused_or_harmless(rows in rows(), flips in prop::collection::vec((0usize..4000, any::<u8>()), 1..8), cut in 0usize..4000) {
        for (name, detector) in all() {
            let mut state = detector.fresh(7);
            run(&mut *state, &name, &rows);
            let mut bytes = snapshot(&*state);
            for (at, flip) in &flips {
                let length = bytes.len();
                bytes[at % length] ^= flip;
            }
            for bytes in [&bytes[..], &bytes[..cut % bytes.len()]] {
                if let Ok(mut state) = detector.restore(7, bytes) {
                    let scores = run(&mut *state, &name, &rows);
                    prop_assert!(scores.iter().all(|score| score.score.is_finite()), "{name}");
                }
            }
        }
    }
}

/// A fleet scored at once is scored as one entity after the other, to the last bit of every state.
#[test]
fn a_slab_scores_as_single_calls_do() {
    for (name, detector) in all() {
        let fleet = || -> Vec<Box<dyn State>> { (0..37).map(|entity| detector.fresh(entity)).collect() };
        let (mut single, mut at_once) = (fleet(), fleet());
        for round in 0..40i64 {
            let order: Vec<usize> = (0..37).map(|at| (at * 11 + round as usize) % 37).collect();
            let values: Vec<[f64; 3]> = order
                .iter()
                .map(|at| {
                    let wave = ((round + *at as i64) % 7) as f64;
                    [wave, 3.0 - wave, if round == 30 { 50.0 } else { wave * wave }]
                })
                .collect();
            let rows: Vec<(usize, Row<'_>)> = order
                .iter()
                .zip(&values)
                .map(|(at, features)| {
                    let row = Row {
                        time_ms: 1_700_000_000_000 + round * 10_000,
                        features,
                        learn: round != 31,
                    };
                    (*at, row)
                })
                .collect();
            let mut scores = rows.iter().map(|(at, row)| {
                let mut out = Score::default();
                single[*at].score(*row, &mut out);
                (*at, out.score.to_bits())
            });
            slab::score(
                &mut at_once,
                |state| &mut **state,
                &rows,
                |at, score| {
                    assert_eq!(
                        scores.next(),
                        Some((at, score.score.to_bits())),
                        "{name}, round {round}"
                    );
                },
            );
        }
        for (a, b) in single.iter().zip(&at_once) {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            a.snapshot(&mut ours);
            b.snapshot(&mut theirs);
            assert_eq!(ours, theirs, "{name}");
        }
    }
}
