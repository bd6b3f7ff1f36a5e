//! Whether p-values keep their word: realised over nominal rates of normal rows.

use std::path::Path;

use crate::{breach::Random, build, measures, nab, run, servers};

const LEVELS: [f64; 2] = [1e-3, 1e-4];
const DETECTORS: [&str; 6] = [
    "auto(tier=lean)",
    "auto(tier=standard)",
    "auto",
    "ewma",
    "robust_zscore",
    "markov_surprise",
];

/// Quiet rows of NAB and ASD, and seeded stationary series to a million rows, pooled.
pub fn print(data: &Path) {
    println!("\n### Realised over nominal false alarms of p-values\n");
    println!(
        "Rows outside labels widened by their own length on both sides, and a million rows of 20 seeded stationary series, pooled; 95 % intervals.\n"
    );
    println!("| detector | at 1e-3 | at 1e-4 | rows | NAB | ASD | stationary |");
    println!("|---|---|---|---|---|---|---|");
    for name in DETECTORS {
        let parts = [from_nab(name, data), from_asd(name, data), from_stationary(name)];
        let mut pooled = Tally::default();
        for part in &parts {
            pooled.add(part);
        }
        let [nab, asd, stationary] = parts.map(|part| part.ratios());
        let (first, second) = (pooled.interval(0), pooled.interval(1));
        println!(
            "| {name} | {first} | {second} | {} | {nab} | {asd} | {stationary} |",
            pooled.rows
        );
    }
}

fn from_nab(name: &str, data: &Path) -> Tally {
    let mut tally = Tally::default();
    let (Ok(detector), Ok(corpus)) = (build(name, 1), nab::load(&data.join("nab"))) else {
        return tally;
    };
    for series in &corpus {
        let run = run(
            &*detector,
            1,
            series.times_ms.iter().copied(),
            &series.values,
            1,
            usize::MAX,
        );
        tally.count(&run.p_values, &series.is_quiet());
    }
    tally
}

fn from_asd(name: &str, data: &Path) -> Tally {
    let mut tally = Tally::default();
    for server in servers::load(&data.join("asd"), 300_000).unwrap_or_default() {
        let Ok(detector) = build(name, server.features) else {
            continue;
        };
        let run = run(
            &*detector,
            1,
            server.times_ms(),
            &server.rows,
            server.features,
            usize::MAX,
        );
        let tested = run.p_values.get(server.train_rows..).unwrap_or_default();
        tally.count(tested, &measures::away_from(&server.labels));
    }
    tally
}

fn from_stationary(name: &str) -> Tally {
    let mut tally = Tally::default();
    let Ok(detector) = build(name, 1) else {
        return tally;
    };
    for seed in 0..20u64 {
        let mut random = Random::new(seed);
        let mut level = 0.0;
        let values: Vec<f64> = (0..50_000)
            .map(|row| {
                level = 0.9 * level + random.normal();
                let wave = (f64::from(row) * std::f64::consts::TAU / 288.0).sin();
                if seed % 2 == 0 {
                    10.0 + level
                } else {
                    (1.0 + 0.5 * wave + 0.3 * random.normal()).exp()
                }
            })
            .collect();
        let times = (0..).map(|row| 1_700_000_000_000 + row * 300_000);
        let run = run(&*detector, seed, times, &values, 1, usize::MAX);
        tally.count(&run.p_values, &vec![true; values.len()]);
    }
    tally
}

/// Rows with a p-value, and those at or below each level.
#[derive(Default)]
pub struct Tally {
    rows: u64,
    hits: [u64; 2],
}

impl Tally {
    pub fn count(&mut self, p_values: &[f64], quiet: &[bool]) {
        for (p, _) in p_values.iter().zip(quiet).filter(|(p, quiet)| **quiet && !p.is_nan()) {
            self.rows += 1;
            for (hits, level) in self.hits.iter_mut().zip(LEVELS) {
                *hits += u64::from(*p <= level);
            }
        }
    }

    fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        for (hits, more) in self.hits.iter_mut().zip(other.hits) {
            *hits += more;
        }
    }

    pub fn ratios(&self) -> String {
        let ratio = |at: usize| self.hits[at] as f64 / (self.rows as f64 * LEVELS[at]).max(1e-9);
        if self.rows == 0 {
            "–".into()
        } else {
            format!("{:.2} / {:.2}", ratio(0), ratio(1))
        }
    }

    /// Normal interval of a Poisson count.
    fn interval(&self, at: usize) -> String {
        let expected = (self.rows as f64 * LEVELS[at]).max(1e-9);
        let hits = self.hits[at] as f64;
        let spread = 1.96 * hits.sqrt();
        let (low, high) = ((hits - spread).max(0.0) / expected, (hits + spread) / expected);
        format!("{:.2} ({low:.2}–{high:.2})", hits / expected)
    }
}
