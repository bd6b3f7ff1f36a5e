//! `static_threshold`: fixed bounds. At or beyond a bound the score is at least 1; between the bounds it grows
//! continuously from 0 (far from every bound) towards 1.

use std::sync::Arc;

use crate::codec::{Reader, Writer};
use crate::parameter::{Kind, Options, Parameter};
use crate::{Detector, Error, Row, SCORE_MAX, Score, State, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS];
pub(crate) const NAME: &str = "static_threshold";
const TAG: u8 = 1;
const ANY: Kind = Kind::Number {
    min: f64::MIN,
    max: f64::MAX,
};

pub(crate) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "lower",
        kind: ANY,
        default: "",
        expected: "a number",
        help: "values at or below it alarm",
    },
    Parameter {
        name: "upper",
        kind: ANY,
        default: "",
        expected: "a number",
        help: "values at or above it alarm",
    },
];

#[derive(Clone, Copy, Debug)]
struct Bounds {
    lower: Option<f64>,
    upper: Option<f64>,
}

struct StaticThreshold {
    bounds: Bounds,
    features: usize,
}

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let bounds = Bounds {
        lower: options.number("lower"),
        upper: options.number("upper"),
    };
    if let (Some(lower), Some(upper)) = (bounds.lower, bounds.upper)
        && lower >= upper
    {
        return Err(Error::OutOfRange {
            name: "lower".into(),
            value: lower.to_string(),
            expected: "a number below upper",
        });
    }
    if bounds.lower.is_none() && bounds.upper.is_none() {
        return Err(Error::Missing {
            detector: NAME,
            expected: "upper, lower, or both",
        });
    }
    Ok(Arc::new(StaticThreshold { bounds, features }))
}

impl Detector for StaticThreshold {
    fn name(&self) -> &'static str {
        NAME
    }

    fn state_size_max(&self) -> usize {
        4
    }

    fn fresh(&self, _entity: u64) -> Box<dyn State> {
        Box::new(Stateless {
            bounds: self.bounds,
            features: self.features,
        })
    }

    fn restore(&self, entity: u64, bytes: &[u8]) -> Result<Box<dyn State>, Error> {
        let mut reader = Reader::new(bytes);
        reader.header(TAG, 1, self.features)?;
        reader.finish()?;
        Ok(self.fresh(entity))
    }
}

struct Stateless {
    bounds: Bounds,
    features: usize,
}

impl State for Stateless {
    fn score(&mut self, row: Row<'_>, out: &mut Score) {
        out.reset(self.features);
        for (index, value) in row.features.iter().take(self.features).enumerate() {
            out.contributions[index] = self.bounds.score(*value);
            out.lower[index] = self.bounds.lower.unwrap_or(f64::NAN);
            out.upper[index] = self.bounds.upper.unwrap_or(f64::NAN);
        }
        out.share_by_square();
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        Writer::new(out).header(TAG, 1, self.features);
    }
}

impl Bounds {
    fn score(&self, value: f64) -> f64 {
        if value.is_nan() {
            return 0.0;
        }
        let score = match (self.lower, self.upper) {
            (Some(lower), Some(upper)) => {
                let half = upper / 2.0 - lower / 2.0;
                (value / 2.0 - lower / 4.0 - upper / 4.0).abs() * 2.0 / half
            }
            (None, Some(upper)) => one_sided(value, upper),
            (Some(lower), None) if lower > 0.0 && value > lower => lower / value,
            (Some(lower), None) if lower > 0.0 => 2.0 - value / lower,
            (Some(lower), None) => one_sided(-value, -lower),
            (None, None) => 0.0,
        };
        let beyond = self.upper.is_some_and(|upper| value >= upper) || self.lower.is_some_and(|lower| value <= lower);
        // Rounding must not move a value across the bound.
        if beyond {
            score.clamp(1.0, SCORE_MAX)
        } else {
            score.clamp(0.0, 1.0 - f64::EPSILON)
        }
    }
}

fn one_sided(value: f64, upper: f64) -> f64 {
    if upper > 0.0 {
        return value.max(0.0) / upper;
    }
    let distance = (value - upper) / upper.abs().max(1.0);
    if distance >= 0.0 {
        1.0 + distance
    } else {
        1.0 / (1.0 - distance)
    }
}
