//! States that were written by version 1 of each format, kept as bytes: every later version reads them.

mod every;

use std::path::PathBuf;

use detector::{Row, Score, State};

fn path(name: &str) -> PathBuf {
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
        .join("tests/states_v1")
        .join(format!("{name}.bin"))
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
fn states_of_version_one_are_read() {
    for (name, detector) in every::all() {
        let written = std::fs::read(path(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
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

/// Writes the files for detectors that have none: `cargo test -p detector --test states -- --ignored`. A file that exists
/// stays as it is: that is its purpose.
#[test]
#[ignore = "writes into the source"]
fn write_states_of_new_detectors() {
    for (name, detector) in every::all() {
        let path = path(&name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        if path.exists() {
            continue;
        }
        let mut state = detector.fresh(1);
        run(&mut *state, 0..80);
        let mut bytes = Vec::new();
        state.snapshot(&mut bytes);
        std::fs::write(path, bytes).expect("written");
    }
}
