//! `bocpd`: how surprising a value is to every hypothesis of when the present regime began, weighed by belief.
//!
//! Adams and MacKay, Bayesian online changepoint detection, 2007: run lengths with a constant hazard and a normal-inverse-gamma
//! prior, so that each predicts by a Student t. At most [`RUNS`] run lengths are kept: the least believed gives way.
//! Where belief goes over to a younger regime, and that settles elsewhere, it is a level shift.
//! The score is the surprise beyond that of a value at the centre of the most believed regime.

use std::sync::Arc;

use crate::calibration::PROMISE;
use crate::codec::{Reader, Writer};
use crate::ewma::{Moments, SHORT_WARMUP};
use crate::level::Change;
use crate::parameter::{Kind, Options, Parameter};
use crate::series::{PerFeature, Reading, Series};
use crate::{Detector, Error, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS, PROMISE];
pub(crate) const NAME: &str = "bocpd";
const RUNS: usize = 64;
/// Deviations that a new level is away at least.
const FAR: f64 = 1.0;

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "hazard",
        kind: Kind::Number { min: 2.0, max: 1e7 },
        default: "250",
        expected: "a number from 2 to 10000000",
        help: "rows that a regime is expected to last",
    },
    Parameter {
        name: "threshold",
        kind: Kind::Number { min: 0.1, max: 100.0 },
        default: "8",
        expected: "a number from 0.1 to 100",
        help: "nats of surprise that alarm",
    },
    SHORT_WARMUP,
];

pub(crate) struct Config {
    hazard: f64,
    threshold: f64,
    warmup: u32,
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let config = Config {
        hazard: 1.0 / options.required("hazard"),
        threshold: options.required("threshold"),
        warmup: options.count("warmup") as u32,
    };
    PerFeature::<Bocpd>::detector(config, &options, features)
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Run {
    belief: f64,
    mean: f64,
    /// Sum of squared departures, halved, prior included.
    spread: f64,
    rows: f64,
}

impl Run {
    const PRIOR: Self = Self {
        belief: 0.0,
        mean: 0.0,
        spread: 0.5,
        rows: 0.0,
    };

    /// Kappa, alpha of the posterior; the prior is one row wide.
    fn scale(&self) -> (f64, f64) {
        let kappa = self.rows + 0.2;
        let freedom = self.rows + 2.0;
        ((2.0 * self.spread * (kappa + 1.0) / (freedom * kappa)).sqrt(), freedom)
    }

    /// ln of the Student t density, up to the constants of its degrees of freedom, which Stirling gives well enough.
    fn log_density(&self, unit: f64) -> f64 {
        let (scale, freedom) = self.scale();
        let z = (unit - self.mean) / scale;
        -0.5 * (freedom + 1.0) * (z * z / freedom).ln_1p() - scale.ln() - 0.919 - 0.25 / freedom
    }

    fn learn(&mut self, unit: f64) {
        let kappa = self.rows + 0.2;
        let change = unit - self.mean;
        self.spread += kappa * change * change / (2.0 * (kappa + 1.0));
        self.mean += change / (kappa + 1.0);
        self.rows += 1.0;
        // An unbounded run would hear nothing new.
        if self.rows > 1000.0 {
            self.spread *= 1000.0 / self.rows;
            self.rows = 1000.0;
        }
    }
}

struct Bocpd {
    reference: Moments,
    runs: Vec<Run>,
    /// From the regime that was believed, until it is known where the series settles.
    change: Change,
}

impl Series for Bocpd {
    type Config = Config;
    const NAME: &'static str = NAME;
    const TAG: u8 = 16;
    const VERSION: u8 = 4;
    const RANKED_FROM: u8 = 3;
    const LEVEL: Option<&'static str> = Some("threshold");

    fn fresh(_config: &Config, _seed: u64) -> Self {
        Self {
            reference: Moments::new(),
            runs: Vec::with_capacity(RUNS),
            change: Change::default(),
        }
    }

    fn step(&mut self, config: &Config, time_ms: i64, value: f64, learn: bool) -> Reading {
        let warm = self.reference.rows >= config.warmup;
        let (mean, deviation) = (self.reference.mean, self.reference.deviation());
        if !warm {
            if learn {
                self.reference.learn(value, 1e-3);
            }
            return Reading::QUIET;
        }
        if self.runs.is_empty() {
            self.runs.push(Run {
                belief: 1.0,
                ..Run::PRIOR
            });
        }
        let unit = ((value - mean) / deviation).clamp(-1e3, 1e3);
        let mut density = 0.0;
        let mut best = self.runs[0];
        for run in &self.runs {
            density += run.belief * run.log_density(unit).exp();
            if run.belief > best.belief {
                best = *run;
            }
        }
        let surprise = (best.log_density(best.mean) - density.max(1e-300).ln()).max(0.0);
        let spread = best.scale().0 * deviation;
        let width = 3.0 * spread;
        let expected = mean + best.mean * deviation;
        let mut level_shift = None;
        if learn {
            self.learn(config.hazard, unit, density);
            if self.believed().is_some_and(|run| run.rows < best.rows) {
                self.change.begin(expected, spread, time_ms);
            }
            level_shift = self.change.learn(value, FAR);
        }
        let score = surprise / config.threshold;
        Reading {
            score,
            evidence: score,
            expected,
            lower: expected - width,
            upper: expected + width,
            level_shift,
        }
    }

    fn write(&self, _config: &Config, writer: &mut Writer<'_>) {
        self.reference.write(writer);
        writer.u32(self.runs.len() as u32);
        for run in &self.runs {
            writer.f64s(&[run.belief, run.mean, run.spread, run.rows]);
        }
        self.change.write(writer);
    }

    fn read(config: &Config, version: u8, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut state = Self::fresh(config, 0);
        state.reference = Moments::read(reader)?;
        for _ in 0..reader.length(RUNS)? {
            let mut fields = [0.0; 4];
            reader.f64s(&mut fields)?;
            let [belief, mean, spread, rows] = fields;
            let sound = fields.iter().all(|field| field.is_finite())
                && spread > 0.0
                && rows >= 0.0
                && (0.0..=1.0).contains(&belief);
            if !sound {
                return Err(Error::State("a run is not one".into()));
            }
            state.runs.push(Run {
                belief,
                mean,
                spread,
                rows,
            });
        }
        if version >= 2 {
            state.change = Change::read(reader)?;
        }
        Ok(state)
    }

    fn size_max(_config: &Config) -> usize {
        Moments::BYTES + 4 + RUNS * 32 + Change::BYTES
    }
}

impl Bocpd {
    fn believed(&self) -> Option<&Run> {
        self.runs.iter().max_by(|a, b| a.belief.total_cmp(&b.belief))
    }

    fn learn(&mut self, hazard: f64, unit: f64, density: f64) {
        let density = density.max(1e-300);
        for run in &mut self.runs {
            run.belief *= (1.0 - hazard) * run.log_density(unit).exp() / density;
            run.learn(unit);
        }
        let mut begun = Run {
            belief: hazard,
            ..Run::PRIOR
        };
        begun.learn(unit);
        if self.runs.len() < RUNS {
            self.runs.push(begun);
        } else if let Some(least) = self.runs.iter_mut().min_by(|a, b| a.belief.total_cmp(&b.belief)) {
            *least = begun;
        }
        let total: f64 = self.runs.iter().map(|run| run.belief).sum();
        for run in &mut self.runs {
            run.belief /= total;
        }
    }
}
