//! What a metric costs: time with many entities live and visited in shuffled order, bytes, snapshot and restore.

use std::time::Instant;

use detector::{Detector, Row, Score, State, slab};

use crate::{breach::Random, build};

/// Time that this thread has run: other work on the machine does not count where the system tells.
pub struct Stopwatch {
    wall: Instant,
    run_ns: Option<u64>,
}

impl Stopwatch {
    pub fn start() -> Self {
        Self {
            wall: Instant::now(),
            run_ns: run_ns(),
        }
    }

    pub fn ns(&self) -> f64 {
        match (self.run_ns, run_ns()) {
            (Some(from), Some(to)) if to > from => (to - from) as f64,
            _ => self.wall.elapsed().as_nanos() as f64,
        }
    }
}

fn run_ns() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok()
}

/// Of these detectors, or where there are none of the usual ones.
pub fn print(asked: &[String]) {
    println!("\n### Cost, one core, entities live and visited in shuffled order\n");
    println!("A detector without state shows what the visit itself costs: the call and the machine's memory.\n");
    println!(
        "| detector | ns a point, 100000 entities | the same, one call each | ns a point, 1000 entities | bytes a metric |"
    );
    println!("|---|---|---|---|---|");
    let usual = [
        "static_threshold(upper=100)",
        "auto(tier=lean)",
        "auto(tier=standard)",
        "auto",
    ];
    let usual = usual.map(String::from);
    for name in if asked.is_empty() { &usual } else { asked } {
        if let Ok(detector) = build(name, 1) {
            let many = visit(&*detector, 100_000, 300, 3, Call::Slab);
            let single = visit(&*detector, 100_000, 300, 3, Call::OneByOne);
            let few = visit(&*detector, 1000, 300, 300, Call::Slab);
            println!(
                "| {name} | {:.0} | {:.0} | {:.0} | {} |",
                many.ns, single.ns, few.ns, many.bytes
            );
        }
    }
    if !asked.is_empty() {
        return;
    }
    println!("\n| 1000000 lean metrics | |");
    println!("|---|---|");
    match build("auto(tier=lean)", 1).and_then(|detector| slab(&*detector, 1_000_000)) {
        Ok((written, read, same, bytes)) => {
            println!("| snapshot | {written:.2} s |\n| restore | {read:.2} s |");
            println!("| bit-equal | {same} |\n| size | {} MB |", bytes / 1_000_000);
        }
        Err(error) => println!("| {error} | |"),
    }
}

struct Cost {
    ns: f64,
    bytes: usize,
}

#[derive(Clone, Copy)]
enum Call {
    OneByOne,
    Slab,
}

/// Every entity learns `warm_rows` first; then each is visited once a round, in another order each round.
fn visit(detector: &dyn Detector, entities: usize, warm_rows: usize, rounds: usize, call: Call) -> Cost {
    let mut random = Random::new(1);
    let mut out = Score::default();
    let mut states: Vec<Box<dyn State>> = (0..entities).map(|entity| detector.fresh(entity as u64)).collect();
    let value = |random: &mut Random, entity: usize, row: usize| {
        let wave = (row as f64 * std::f64::consts::TAU / 288.0 + entity as f64).sin();
        10.0 + 2.0 * wave + 0.3 * random.normal()
    };
    let time = |row: usize| 1_700_000_000_000 + row as i64 * 10_000;
    for (entity, state) in states.iter_mut().enumerate() {
        for row in 0..warm_rows {
            let features = [value(&mut random, entity, row)];
            state.score(
                Row {
                    time_ms: time(row),
                    features: &features,
                    learn: true,
                },
                &mut out,
            );
        }
    }
    let mut order: Vec<usize> = (0..entities).collect();
    let mut spent = 0.0;
    for round in 0..rounds {
        for at in (1..entities).rev() {
            order.swap(at, (random.unit() * (at + 1) as f64) as usize);
        }
        let values: Vec<f64> = (0..entities)
            .map(|entity| value(&mut random, entity, warm_rows + round))
            .collect();
        let rows: Vec<(usize, Row<'_>)> = order
            .iter()
            .map(|entity| {
                let row = Row {
                    time_ms: time(warm_rows + round),
                    features: &values[*entity..=*entity],
                    learn: true,
                };
                (*entity, row)
            })
            .collect();
        let start = Stopwatch::start();
        match call {
            Call::OneByOne => {
                for (entity, row) in &rows {
                    states[*entity].score(*row, &mut out);
                }
            }
            Call::Slab => slab::score(
                &mut states,
                |state| &mut **state,
                &rows,
                |_, score| {
                    std::hint::black_box(score.score);
                },
            ),
        }
        spent += start.ns();
    }
    let mut bytes = Vec::new();
    states[0].snapshot(&mut bytes);
    Cost {
        ns: spent / (entities * rounds) as f64,
        bytes: bytes.len(),
    }
}

/// Seconds to write and to read back as many entities, and whether the bytes are the same again.
fn slab(detector: &dyn Detector, entities: usize) -> Result<(f64, f64, bool, usize), detector::Error> {
    let mut out = Score::default();
    let mut random = Random::new(2);
    let states: Vec<Box<dyn State>> = (0..entities)
        .map(|entity| {
            let mut state = detector.fresh(entity as u64);
            for row in 0..4 {
                let features = [random.normal()];
                state.score(
                    Row {
                        time_ms: row * 10_000,
                        features: &features,
                        learn: true,
                    },
                    &mut out,
                );
            }
            state
        })
        .collect();
    let named = |states: &'_ [Box<dyn State>]| -> Vec<u8> {
        let mut bytes = Vec::with_capacity(entities * 800);
        slab::snapshot(
            states
                .iter()
                .enumerate()
                .map(|(entity, state)| (entity as u64, &**state)),
            &mut bytes,
        );
        bytes
    };
    let start = Stopwatch::start();
    let bytes = named(&states);
    let written = start.ns() / 1e9;
    drop(states);
    let start = Stopwatch::start();
    let restored = slab::restore(detector, &bytes)?;
    let read = start.ns() / 1e9;
    let mut again = Vec::with_capacity(bytes.len());
    slab::snapshot(restored.iter().map(|(entity, state)| (*entity, &**state)), &mut again);
    Ok((written, read, again == bytes, bytes.len()))
}
