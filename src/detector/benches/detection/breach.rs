//! Simulated services on their way to a limit, or not: seeded, one day at a minute's step or so each.
//!
//! A tenth of the entity-days leak and breach in 2 to 12 hours; the rest never do: flat, seasonal, saw-tooth, saturating,
//! batch ramps, level shifts, spikes. Noise is 5 to 20 % of the level, steps are irregular, some rows are missing.

use detector::{Detector, Row, Score};

use crate::build;

/// The default, and how warnings trade against false alarms.
pub fn print(seed: u64) {
    const DAYS: usize = 5000;
    println!("\n### Forecast to breach, {DAYS} entity-days, seed {seed}\n");
    println!("Warned: at least 30 min ahead. False alarms: per entity-day, over all days; by shape as counts.\n");
    println!("| detector | warned | of breaches | false alarms a day | by shape |");
    println!("|---|---|---|---|---|");
    for options in [
        "ceiling=100",
        "ceiling=100, probability=0.2",
        "ceiling=100, probability=0.8",
    ] {
        let name = format!("forecast_breach({options})");
        let Ok(detector) = build(&name, 1) else {
            continue;
        };
        let outcome = measure(&*detector, seed, DAYS, 1_800_000);
        let shapes: Vec<String> = SHAPES
            .iter()
            .filter_map(|shape| {
                let of_shape = outcome.false_by_shape.iter().filter(|(found, _)| found == shape);
                let count: usize = of_shape.map(|(_, count)| count).sum();
                (count > 0).then(|| format!("{shape:?} {count}"))
            })
            .collect();
        println!(
            "| {name} | {:.3} | {} | {:.4} | {} |",
            outcome.warned as f64 / outcome.breaches.max(1) as f64,
            outcome.breaches,
            outcome.false_alarms as f64 / outcome.days as f64,
            shapes.join(", "),
        );
    }
    println!("| *Theil–Sen over 2 h and 4 h with Mann–Kendall, on another generator* | *.937* | – | *.0134* | – |");
}

pub const LIMIT: f64 = 100.0;
const MINUTES: usize = 24 * 60;

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995)
    }

    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    pub fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Leak,
    Flat,
    Seasonal,
    Sawtooth,
    Saturating,
    Ramp,
    Shift,
    Spikes,
}

/// Those that never reach the limit.
const SHAPES: [Shape; 7] = [
    Shape::Flat,
    Shape::Seasonal,
    Shape::Sawtooth,
    Shape::Saturating,
    Shape::Ramp,
    Shape::Shift,
    Shape::Spikes,
];

pub struct Day {
    pub shape: Shape,
    pub rows: Vec<(i64, f64)>,
    /// When the noise-free series reaches the limit.
    pub breach_ms: Option<i64>,
}

pub fn day(random: &mut Random) -> Day {
    let shape = if random.unit() < 0.1 {
        Shape::Leak
    } else {
        SHAPES[(random.unit() * SHAPES.len() as f64) as usize]
    };
    let clean = clean(shape, random);
    let noise = random.between(0.05, 0.2);
    let spikes = if shape == Shape::Spikes { 0.01 } else { 0.001 };
    let mut rows = Vec::with_capacity(MINUTES);
    for (minute, level) in clean.iter().enumerate() {
        if random.unit() < 0.03 {
            continue;
        }
        let jitter_ms = random.between(-20_000.0, 20_000.0) as i64;
        let spike = if random.unit() < spikes {
            random.between(0.3, 1.0) * LIMIT
        } else {
            0.0
        };
        let value = level * (1.0 + noise * random.normal()) + spike;
        rows.push((1_700_000_000_000 + minute as i64 * 60_000 + jitter_ms, value));
    }
    let breach_ms = clean
        .iter()
        .position(|level| *level >= LIMIT)
        .map(|minute| 1_700_000_000_000 + minute as i64 * 60_000);
    Day { shape, rows, breach_ms }
}

fn clean(shape: Shape, random: &mut Random) -> Vec<f64> {
    let base = random.between(20.0, 45.0);
    let start = random.between(4.0 * 60.0, 11.0 * 60.0);
    let ramp = |minute: f64, from: f64, minutes: f64| ((minute - from) / minutes).clamp(0.0, 1.0);
    let (a, b, c) = (random.unit(), random.unit(), random.unit());
    (0..MINUTES)
        .map(|minute| {
            let minute = minute as f64;
            match shape {
                Shape::Leak => {
                    let minutes = 60.0 * (2.0 + 10.0 * a);
                    base + (LIMIT - base) * ((minute - start) / minutes).max(0.0)
                }
                Shape::Flat | Shape::Spikes => base,
                Shape::Seasonal => {
                    let top = 40.0 + 35.0 * a;
                    let wave = (std::f64::consts::TAU * (minute / MINUTES as f64 + b)).sin();
                    (base.min(top) + top) / 2.0 + (top - base.min(top)) / 2.0 * wave
                }
                Shape::Sawtooth => {
                    let period = 30.0 + 210.0 * a;
                    base + (72.0 - base) * b.max(0.2) * ((minute / period + c) % 1.0)
                }
                Shape::Saturating => {
                    let top = base + (78.0 - base) * a;
                    base + (top - base) * (1.0 - (-(minute - start).max(0.0) / (60.0 + 240.0 * b)).exp())
                }
                Shape::Ramp => {
                    let top = base + (70.0 - base) * a;
                    let minutes = 60.0 + 180.0 * b;
                    base + (top - base) * ramp(minute, start, minutes)
                        - (top - base) * ramp(minute, start + minutes + 120.0 * c + 30.0, minutes)
                }
                Shape::Shift => base + if minute >= start { (75.0 - base) * a } else { 0.0 },
            }
        })
        .collect()
}

pub struct Outcome {
    pub breaches: usize,
    pub warned: usize,
    pub false_alarms: usize,
    pub days: usize,
    pub false_by_shape: Vec<(Shape, usize)>,
}

/// Warned: an alarm at least `ahead_ms` before the breach that began within 12 h of it and stood. An alarm that starts on a day
/// without a breach, or before a leak can be seen, is false; alarms within an hour are one.
pub fn measure(detector: &dyn Detector, seed: u64, days: usize, ahead_ms: i64) -> Outcome {
    let mut random = Random::new(seed);
    let mut outcome = Outcome {
        breaches: 0,
        warned: 0,
        false_alarms: 0,
        days,
        false_by_shape: Vec::new(),
    };
    let mut out = Score::default();
    for entity in 0..days {
        let day = day(&mut random);
        let mut state = detector.fresh(entity as u64);
        let mut starts: Vec<i64> = Vec::new();
        let mut last_alarm = i64::MIN / 2;
        for (time_ms, value) in &day.rows {
            state.score(
                Row {
                    time_ms: *time_ms,
                    features: &[*value],
                    learn: true,
                },
                &mut out,
            );
            if out.is_anomaly() {
                if time_ms - last_alarm > 3_600_000 {
                    starts.push(*time_ms);
                }
                last_alarm = *time_ms;
            }
        }
        match day.breach_ms {
            Some(breach_ms) => {
                outcome.breaches += 1;
                outcome.warned += usize::from(
                    starts
                        .iter()
                        .any(|start| *start <= breach_ms - ahead_ms && *start >= breach_ms - 12 * 3_600_000),
                );
            }
            None => {
                outcome.false_alarms += starts.len();
                if !starts.is_empty() {
                    outcome.false_by_shape.push((day.shape, starts.len()));
                }
            }
        }
    }
    outcome
}
