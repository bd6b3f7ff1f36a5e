//! States that were written by every version of each format, kept as bytes: every later version reads them.

mod build;
mod every;

use std::path::PathBuf;

use detector::{Row, Score, State};

/// The folder of a version has the states of those detectors whose format is new in it.
const NEWEST: u8 = 4;

fn path(version: u8, name: &str) -> PathBuf {
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    let name = name
        .split('_')
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join("_");
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(format!("tests/states_v{version}"))
        .join(format!("{name}.bin"))
}

/// The versions of a detector's format of which a state is kept, newest first.
fn kept(name: &str) -> Vec<u8> {
    (1..=NEWEST)
        .rev()
        .filter(|version| path(*version, name).exists())
        .collect()
}

fn run(state: &mut dyn State, rows: std::ops::Range<i64>) -> Vec<Score> {
    rows.map(|row| {
        let wave = (row % 12 - 6).abs() as f64;
        let noise = (row * row % 7) as f64 / 16.0;
        let mut out = Score::default();
        state.score(
            Row {
                time_ms: 1_700_000_000_000 + row * 10_000,
                features: &[wave + noise, noise, 2.0 * wave],
                learn: row % 9 != 0,
            },
            &mut out,
        );
        out
    })
    .collect()
}

#[test]
fn states_of_the_present_version_go_on_as_if_never_written() {
    for (name, detector) in every::all() {
        let version = *kept(&name)
            .first()
            .unwrap_or_else(|| panic!("{name}: no state is kept"));
        let written = std::fs::read(path(version, &name)).expect("it exists");
        let mut restored = detector
            .restore(1, &written)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut fresh = detector.fresh(1);
        run(&mut *fresh, 0..80);
        for (row, (found, expected)) in run(&mut *restored, 80..100)
            .iter()
            .zip(run(&mut *fresh, 80..100))
            .enumerate()
        {
            assert!(
                (found.score - expected.score).abs() < 1e-6,
                "{name}, row {row}: {found:?} is not {expected:?}"
            );
        }
    }
}

/// What an older version knew is known still: rows like those that it learned are no alarm, and the state is written as the present one.
#[test]
fn states_of_older_versions_are_read() {
    for (name, detector) in every::all() {
        for version in kept(&name).into_iter().skip(1) {
            let written = std::fs::read(path(version, &name)).expect("it exists");
            let mut restored = detector
                .restore(1, &written)
                .unwrap_or_else(|error| panic!("{name}, version {version}: {error}"));
            let scores = run(&mut *restored, 80..100);
            let alarms = scores.iter().filter(|score| score.is_anomaly()).count();
            assert!(alarms <= 2, "{name}, version {version}: {scores:?}");
            let mut bytes = Vec::new();
            restored.snapshot(&mut bytes);
            assert!(bytes[1] > written[1], "{name}: written as version {}", bytes[1]);
            detector
                .restore(1, &bytes)
                .unwrap_or_else(|error| panic!("{name}, rewritten: {error}"));
        }
    }
}

/// Writes the files of formats that are new: `cargo test -p detector --test states -- --ignored`. A file that exists stays as it
/// is: that is its purpose.
#[test]
#[ignore = "writes into the source"]
fn write_states_of_new_formats() {
    for (name, detector) in every::all() {
        let mut state = detector.fresh(1);
        run(&mut *state, 0..80);
        let mut bytes = Vec::new();
        state.snapshot(&mut bytes);
        let has_version = bytes.len() > 4 && (1..=NEWEST).contains(&bytes[1]);
        let path = path(if has_version { bytes[1] } else { 1 }, &name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        if !path.exists() {
            std::fs::write(path, bytes).expect("written");
        }
    }
}
