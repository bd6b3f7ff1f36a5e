//! Measures every detector on public labelled data: `make bench-detection DATA=…`.
//!
//! Detectors are built through the public door with their defaults, fed row by row, and never see a label or a file name.

mod breach;
mod cost;
mod measures;
mod nab;
mod servers;

use std::path::PathBuf;
use std::time::Instant;

use detector::{Detector, Row, Score, Value};

struct Arguments {
    data: Option<PathBuf>,
    only: Option<String>,
    detectors: Vec<String>,
    seed: u64,
}

fn arguments() -> Arguments {
    let mut arguments = Arguments {
        data: None,
        only: None,
        detectors: Vec::new(),
        seed: 1,
    };
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--data" => arguments.data = given.next().map(PathBuf::from),
            "--seed" => arguments.seed = given.next().and_then(|seed| seed.parse().ok()).unwrap_or(1),
            "--only" => arguments.only = given.next(),
            "--detector" => arguments.detectors.extend(given.next()),
            _ => {}
        }
    }
    arguments
}

fn main() {
    let arguments = arguments();
    let Some(data) = arguments.data else {
        println!("detection is measured on data that is not part of this repository: --data DIR");
        return;
    };
    let wanted = |part: &str| arguments.only.as_deref().is_none_or(|only| only == part);
    let detectors = if arguments.detectors.is_empty() {
        defaults()
    } else {
        arguments.detectors
    };
    if wanted("nab") {
        match nab::load(&data.join("nab")) {
            Ok(corpus) => univariate(&corpus, &detectors),
            Err(error) => println!("nab: {error}"),
        }
    }
    if wanted("calibration") {
        calibration(&data);
    }
    if wanted("cost") {
        costs();
    }
    if wanted("breach") {
        forecasts(arguments.seed);
    }
    for (name, step_ms) in [("asd", 300_000), ("smd", 60_000)] {
        if wanted(name) {
            match servers::load(&data.join(name), step_ms) {
                Ok(servers) => multivariate(name, &servers, &detectors),
                Err(error) => println!("{name}: {error}"),
            }
        }
    }
}

fn defaults() -> Vec<String> {
    let tiers = ["auto(tier=lean)", "auto(tier=standard)", "auto"].map(String::from);
    let others = detector::names().filter(|name| !["auto", "static_threshold", "silence"].contains(name));
    tiers.into_iter().chain(others.map(String::from)).collect()
}

/// `name(key=value, …)`
fn build(text: &str, features: usize) -> Result<std::sync::Arc<dyn Detector>, detector::Error> {
    let (name, options) = text.trim_end_matches(')').split_once('(').unwrap_or((text, ""));
    let options: Vec<(String, Value)> = options
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| {
            let value = value.trim();
            let value = value.parse().map_or_else(|_| Value::Text(value.into()), Value::Number);
            (key.trim().into(), value)
        })
        .collect();
    let features: Vec<String> = (0..features).map(|index| format!("f{index}")).collect();
    detector::build(name, &options, &features)
}

/// Scores row by row; also the p-values, ns a row and the size of the state at the end.
struct Run {
    scores: Vec<f64>,
    p_values: Vec<f64>,
    ns: f64,
    bytes: usize,
}

fn run(
    detector: &dyn Detector,
    entity: u64,
    times_ms: impl Iterator<Item = i64>,
    rows: &[f64],
    features: usize,
) -> Run {
    let mut state = detector.fresh(entity);
    let mut out = Score::default();
    let mut scores = Vec::with_capacity(rows.len() / features);
    let mut p_values = Vec::with_capacity(rows.len() / features);
    let start = Instant::now();
    for (time_ms, row) in times_ms.zip(rows.chunks_exact(features)) {
        state.score(
            Row {
                time_ms,
                features: row,
                learn: true,
            },
            &mut out,
        );
        scores.push(out.score);
        p_values.push(out.p_value);
    }
    let ns = start.elapsed().as_nanos() as f64 / scores.len().max(1) as f64;
    let mut bytes = Vec::new();
    state.snapshot(&mut bytes);
    Run {
        scores,
        p_values,
        ns,
        bytes: bytes.len(),
    }
}

fn univariate(corpus: &[nab::Series], detectors: &[String]) {
    println!(
        "\nNAB, {} series: score at 1.0 (standard / low FP / low FN), swept in hindsight, thresholds",
        corpus.len()
    );
    for name in detectors {
        let built = match build(name, 1) {
            Ok(built) => built,
            Err(error) => {
                println!("{name:24} {error}");
                continue;
            }
        };
        let runs: Vec<Run> = corpus
            .iter()
            .map(|series| run(&*built, 1, series.times_ms.iter().copied(), &series.values, 1))
            .collect();
        let scored: Vec<(&nab::Series, &[f64])> = corpus
            .iter()
            .zip(&runs)
            .map(|(series, run)| (series, &run.scores[..]))
            .collect();
        let fixed = nab::score_at(&scored, 1.0);
        let (swept, thresholds) = nab::score_swept(&scored);
        let ns = runs.iter().map(|run| run.ns).sum::<f64>() / runs.len() as f64;
        let bytes = runs.iter().map(|run| run.bytes).max().unwrap_or(0);
        let mut quiet_rows = 0usize;
        let mut below = [0usize; 2];
        for (series, run) in corpus.iter().zip(&runs) {
            for (quiet, p) in series.is_quiet().iter().zip(&run.p_values) {
                if *quiet && !p.is_nan() {
                    quiet_rows += 1;
                    for (count, level) in below.iter_mut().zip([1e-3, 1e-4]) {
                        *count += usize::from(*p <= level);
                    }
                }
            }
        }
        let ratio = |at: usize, level: f64| below[at] as f64 / (quiet_rows as f64 * level).max(1e-9);
        println!(
            "{name:24} {:5.1} /{:5.1} /{:5.1}   swept {:5.1} /{:5.1} /{:5.1} at {:.2} {:.2} {:.2}   realised/nominal {:.2} {:.2}   {ns:5.0} ns {bytes:6} B",
            fixed[0],
            fixed[1],
            fixed[2],
            swept[0],
            swept[1],
            swept[2],
            thresholds[0],
            thresholds[1],
            thresholds[2],
            ratio(0, 1e-3),
            ratio(1, 1e-4),
        );
    }
}

/// Realised over nominal rate of p-values: quiet rows of NAB and ASD, and seeded stationary series up to a million rows.
fn calibration(data: &std::path::Path) {
    println!("\nrealised / nominal at 1e-3 and 1e-4, with 95 % intervals");
    let levels = [1e-3, 1e-4];
    for name in ["auto(tier=lean)", "auto", "ewma", "robust_zscore"] {
        let mut pooled = [Tally::default(), Tally::default()];
        let mut parts = Vec::new();
        let mut add = |part: &str, rows: &mut dyn Iterator<Item = f64>| {
            let mut tally = [Tally::default(), Tally::default()];
            for p in rows.filter(|p| !p.is_nan()) {
                for ((tally, pooled), level) in tally.iter_mut().zip(&mut pooled).zip(levels) {
                    tally.count(p <= level);
                    pooled.count(p <= level);
                }
            }
            parts.push(format!(
                "{part} {:.2} {:.2}",
                tally[0].ratio(levels[0]),
                tally[1].ratio(levels[1])
            ));
        };
        if let (Ok(detector), Ok(corpus)) = (build(name, 1), nab::load(&data.join("nab"))) {
            let mut rows = corpus.iter().flat_map(|series| {
                let run = run(&*detector, 1, series.times_ms.iter().copied(), &series.values, 1);
                let quiet = series.is_quiet();
                run.p_values
                    .into_iter()
                    .zip(quiet)
                    .filter(|(_, quiet)| *quiet)
                    .map(|(p, _)| p)
            });
            add("NAB", &mut rows);
        }
        if let Ok(servers) = servers::load(&data.join("asd"), 300_000) {
            let mut rows = servers.iter().flat_map(|server| {
                let detector = build(name, server.features);
                let times = (0..).map(|row| 1_700_000_000_000 + row * server.step_ms);
                let run = detector.map(|detector| run(&*detector, 1, times, &server.rows, server.features));
                let p_values = run.map_or(Vec::new(), |run| {
                    run.p_values.get(server.train_rows..).unwrap_or_default().to_vec()
                });
                let quiet = measures::away_from(&server.labels);
                p_values
                    .into_iter()
                    .zip(quiet)
                    .filter(|(_, quiet)| *quiet)
                    .map(|(p, _)| p)
            });
            add("ASD", &mut rows);
        }
        if let Ok(detector) = build(name, 1) {
            let mut rows = (0..20u64).flat_map(|seed| {
                let mut random = breach::Random::new(seed);
                let mut level = 0.0;
                let values: Vec<f64> = (0..50_000)
                    .map(|row| {
                        level = 0.9 * level + random.normal();
                        let wave = (row as f64 * std::f64::consts::TAU / 288.0).sin();
                        if seed % 2 == 0 {
                            10.0 + level
                        } else {
                            (1.0 + 0.5 * wave + 0.3 * random.normal()).exp()
                        }
                    })
                    .collect();
                let times = (0..).map(|row| 1_700_000_000_000 + row * 300_000);
                run(&*detector, seed, times, &values, 1).p_values
            });
            add("stationary", &mut rows);
        }
        println!(
            "{name:20} {} at 1e-3, {} at 1e-4   of {} rows   ({})",
            pooled[0].interval(levels[0]),
            pooled[1].interval(levels[1]),
            pooled[0].rows,
            parts.join(", ")
        );
    }
}

#[derive(Default)]
struct Tally {
    rows: u64,
    hits: u64,
}

impl Tally {
    fn count(&mut self, hit: bool) {
        self.rows += 1;
        self.hits += u64::from(hit);
    }

    fn ratio(&self, level: f64) -> f64 {
        self.hits as f64 / (self.rows as f64 * level).max(1e-9)
    }

    /// Normal interval of a Poisson count.
    fn interval(&self, level: f64) -> String {
        let expected = (self.rows as f64 * level).max(1e-9);
        let spread = 1.96 * (self.hits as f64).sqrt();
        let hits = self.hits as f64;
        format!(
            "{:.2} [{:.2}, {:.2}]",
            hits / expected,
            (hits - spread).max(0.0) / expected,
            (hits + spread) / expected
        )
    }
}

fn costs() {
    println!("\ncost, one core, 100000 entities live, visited in shuffled order");
    for name in ["auto(tier=lean)", "auto(tier=standard)", "auto"] {
        match build(name, 1) {
            Ok(detector) => {
                let cost = cost::visit(&*detector, 100_000, 300, 3);
                println!("{name:24} {:6.0} ns a point   {} bytes a metric", cost.ns, cost.bytes);
            }
            Err(error) => println!("{name}: {error}"),
        }
    }
    if let Ok(detector) = build("auto(tier=lean)", 1) {
        match cost::slab(&*detector, 1_000_000) {
            Ok((written, read, same, bytes)) => {
                println!(
                    "1000000 lean metrics: snapshot {written:.2} s, restore {read:.2} s, bit-equal {same}, {} MB",
                    bytes / 1_000_000
                );
            }
            Err(error) => println!("{error}"),
        }
    }
}

fn forecasts(seed: u64) {
    println!("\nbreach, 5000 entity-days, seed {seed}: warned 30 min ahead, false alarms per entity-day");
    for options in [
        "ceiling=100, probability=0.2",
        "ceiling=100, probability=0.35",
        "ceiling=100",
    ] {
        let name = format!("forecast_breach({options})");
        match build(&name, 1) {
            Ok(detector) => {
                let outcome = breach::measure(&*detector, seed, 5000, 1_800_000);
                let mut shapes: Vec<(String, usize)> = Vec::new();
                for (shape, count) in &outcome.false_by_shape {
                    let shape = format!("{shape:?}");
                    match shapes.iter_mut().find(|(known, _)| *known == shape) {
                        Some(known) => known.1 += count,
                        None => shapes.push((shape, *count)),
                    }
                }
                println!(
                    "{name:44} {:.3} of {}   {:.4}   {shapes:?}",
                    outcome.warned as f64 / outcome.breaches.max(1) as f64,
                    outcome.breaches,
                    outcome.false_alarms as f64 / outcome.days as f64,
                );
            }
            Err(error) => println!("{name}: {error}"),
        }
    }
}

fn multivariate(name: &str, servers: &[servers::Server], detectors: &[String]) {
    println!(
        "\n{name}, {} servers: point F1, AUC-PR, VUS-PR, event F1, delay, long faults",
        servers.len()
    );
    for detector in detectors {
        let mut sums = [0.0; 4];
        let mut delays = Vec::new();
        let mut long = (0, 0);
        let mut ns = 0.0;
        let mut bytes = 0;
        let mut failed = None;
        let mut each = Vec::new();
        for server in servers {
            let built = match build(detector, server.features) {
                Ok(built) => built,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            };
            let times = (0..).map(|row| 1_700_000_000_000 + row * server.step_ms);
            let run = run(&*built, 1, times, &server.rows, server.features);
            let scores = &run.scores[server.train_rows..];
            let alarms: Vec<bool> = scores.iter().map(|score| *score >= 1.0).collect();
            let labels = &server.labels;
            let measured = [
                measures::point_f1(&alarms, labels),
                measures::auc_pr(scores, labels),
                measures::vus_pr(scores, labels, 20),
                measures::event_f1(&alarms, labels),
            ];
            for (sum, value) in sums.iter_mut().zip(measured) {
                *sum += value / servers.len() as f64;
            }
            each.push(format!("{} {:.2}/{:.2}", server.name, measured[0], measured[1]));
            delays.extend(measures::delay(&alarms, labels));
            let (alarmed, all) = measures::long_fault_rows(&alarms, labels, 200);
            long = (long.0 + alarmed, long.1 + all);
            ns += run.ns / servers.len() as f64;
            bytes = bytes.max(run.bytes);
        }
        if let Some(error) = failed {
            println!("{detector:24} {error}");
            continue;
        }
        delays.sort_unstable();
        println!(
            "{detector:24} {:.3}  {:.3}  {:.3}  {:.3}  {:>4}  {:.3} of {}   {ns:5.0} ns {bytes:6} B   {}",
            sums[0],
            sums[1],
            sums[2],
            sums[3],
            delays.get(delays.len() / 2).map_or("-".into(), ToString::to_string),
            long.0 as f64 / (long.1 as f64).max(1.0),
            long.1,
            each.join("  "),
        );
    }
}
