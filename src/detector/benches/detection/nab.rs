//! The Numenta Anomaly Benchmark: files, windows and score, as NAB v1.1 defines them (sweeper, profiles, probation).

use std::collections::BTreeMap;
use std::path::Path;

pub struct Series {
    /// Folder and file, for people.
    pub name: String,
    pub times_ms: Vec<i64>,
    pub values: Vec<f64>,
    /// Per row: weight in a sweep, and where the row lies.
    layout: Vec<(f64, Place)>,
    windows: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Probation,
    Outside,
    Window(usize),
}

/// Weights of true positives, false positives, false negatives: standard, low FP, low FN.
const PROFILES: [[f64; 3]; 3] = [[1.0, 0.11, 1.0], [1.0, 0.22, 1.0], [1.0, 0.11, 2.0]];

/// The three profiles' scores.
pub type Scores = [f64; 3];

pub fn load(directory: &Path) -> Result<Vec<Series>, String> {
    let labels = directory.join("labels/combined_windows.json");
    let text = std::fs::read_to_string(&labels).map_err(|error| format!("{}: {error}", labels.display()))?;
    let windows: BTreeMap<String, Vec<[String; 2]>> =
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", labels.display()))?;
    let mut all = Vec::new();
    for (name, windows) in windows {
        let path = directory.join("data").join(&name);
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        let mut times_ms = Vec::new();
        let mut values = Vec::new();
        for line in text.lines().skip(1) {
            let row = line
                .split_once(',')
                .and_then(|(time, value)| Some((time_ms(time)?, value.trim().parse().ok()?)));
            let (time, value) = row.ok_or_else(|| format!("{}: {line:?}", path.display()))?;
            times_ms.push(time);
            values.push(value);
        }
        let windows: Option<Vec<(i64, i64)>> = windows
            .iter()
            .map(|[from, to]| Some((time_ms(from)?, time_ms(to)?)))
            .collect();
        let windows = windows.ok_or_else(|| format!("{name}: window"))?;
        all.push(Series {
            name,
            layout: layout(&times_ms, &windows)?,
            times_ms,
            values,
            windows: windows.len(),
        });
    }
    Ok(all)
}

/// `2014-04-01 00:00:00`, with or without a fraction.
fn time_ms(text: &str) -> Option<i64> {
    let text = text.trim();
    let part = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted - era * 400;
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some((days * 86_400 + part(11, 13)? * 3600 + part(14, 16)? * 60 + part(17, 19)?) * 1000)
}

fn sigmoid(y: f64) -> f64 {
    if y > 3.0 {
        -1.0
    } else {
        2.0 / (1.0 + (5.0 * y).exp()) - 1.0
    }
}

fn layout(times_ms: &[i64], windows: &[(i64, i64)]) -> Result<Vec<(f64, Place)>, String> {
    let first = |time: i64| {
        times_ms
            .iter()
            .position(|at| *at == time)
            .map(|at| at as f64)
            .ok_or("a window's edge is not among the timestamps")
    };
    let probation = ((0.15 * times_ms.len() as f64).floor() as usize).min(750);
    let mut current: Option<(usize, i64, f64, f64)> = None;
    let mut previous: Option<(f64, f64)> = None;
    let mut next = 0;
    let mut layout = Vec::with_capacity(times_ms.len());
    for (row, time) in times_ms.iter().enumerate() {
        if let Some((from, to)) = windows.get(next)
            && time == from
        {
            let right = first(*to)?;
            current = Some((next, *to, right, right - first(*from)? + 1.0));
            next += 1;
        }
        let at = row as f64;
        let weight = match (current, previous) {
            (Some((_, _, right, width)), _) => sigmoid(-(right - at + 1.0) / width) / sigmoid(-1.0),
            (None, Some((right, width))) => sigmoid((right - at).abs() / (width - 1.0)),
            (None, None) => -1.0,
        };
        let place = match current {
            _ if row < probation => Place::Probation,
            Some((window, ..)) => Place::Window(window),
            None => Place::Outside,
        };
        layout.push((weight, place));
        if let Some((_, to, _, width)) = current
            && *time == to
        {
            previous = Some((at, width));
            current = None;
        }
    }
    Ok(layout)
}

impl Series {
    /// Rows outside windows widened by their own width on both sides, and outside probation: where any alarm is false.
    pub fn is_quiet(&self) -> Vec<bool> {
        let mut quiet: Vec<bool> = self.layout.iter().map(|(_, place)| *place == Place::Outside).collect();
        let mut at = 0;
        while at < self.layout.len() {
            let Place::Window(window) = self.layout[at].1 else {
                at += 1;
                continue;
            };
            let width = self.layout[at..]
                .iter()
                .take_while(|(_, place)| *place == Place::Window(window))
                .count();
            let end = (at + 2 * width).min(quiet.len());
            quiet[at.saturating_sub(width)..end].fill(false);
            at += width;
        }
        quiet
    }
}

/// All three profiles at one threshold, normalised.
pub fn score_at(corpus: &[(&Series, &[f64])], threshold: f64) -> Scores {
    PROFILES.map(|[hit, false_alarm, miss]| {
        let mut raw = 0.0;
        let mut windows = 0;
        for (series, scores) in corpus {
            let mut best = vec![-miss; series.windows];
            for ((weight, place), score) in series.layout.iter().zip(*scores) {
                match place {
                    Place::Outside if *score >= threshold => raw += weight * false_alarm,
                    Place::Window(at) if *score >= threshold => {
                        best[*at] = best[*at].max(weight * hit);
                    }
                    _ => {}
                }
            }
            raw += best.iter().sum::<f64>();
            windows += series.windows;
        }
        let windows = windows as f64;
        100.0 * (raw + miss * windows) / ((hit + miss) * windows)
    })
}

/// Each profile at the threshold that is best for it in hindsight, as published figures are made.
pub fn score_swept(corpus: &[(&Series, &[f64])]) -> Scores {
    let mut rows = Vec::new();
    let mut windows = 0;
    for (series, scores) in corpus {
        for ((weight, place), score) in series.layout.iter().zip(*scores) {
            match place {
                Place::Probation => {}
                Place::Outside => rows.push((*score, *weight, None)),
                Place::Window(at) => rows.push((*score, *weight, Some(windows + at))),
            }
        }
        windows += series.windows;
    }
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    PROFILES.map(|[hit, false_alarm, miss]| {
        let mut best = vec![-miss; windows];
        let mut total = -miss * windows as f64;
        let (mut highest, mut current) = (total, f64::INFINITY);
        for (score, weight, window) in &rows {
            if *score != current {
                highest = highest.max(total);
                current = *score;
            }
            match window {
                None => total += weight * false_alarm,
                Some(window) => {
                    let gained = (weight * hit - best[*window]).max(0.0);
                    best[*window] += gained;
                    total += gained;
                }
            }
        }
        let windows = windows as f64;
        100.0 * (highest.max(total) + miss * windows) / ((hit + miss) * windows)
    })
}
