//! `range_novelty`: a value outside everything seen so far, by how much of the range.
//!
//! The oldest novelty test there is (a record; Glick, Breaking records and breaking boards, 1978), in 16 bytes. On labelled
//! telemetry it is as good as detectors a thousand times its size, because people label what leaves the range.

use std::sync::Arc;

use crate::calibration::PROMISE;
use crate::cells::Move;
use crate::codec::{Reader, Writer};
use crate::evidence::Scale;
use crate::novelty::{Here, Novelty, NoveltyConfig, View};
use crate::parameter::{Kind, Options, Parameter};
use crate::series::PerFeature;
use crate::{Detector, Error, Value};

pub(crate) const ALL_PARAMETERS: &[&[Parameter]] = &[PARAMETERS, PROMISE];
pub(crate) const NAME: &str = "range_novelty";
pub(crate) const SCALE: Scale = Scale {
    floor: 0.03,
    usual: 3.0,
};

pub(crate) const THRESHOLD: Parameter = Parameter {
    name: "threshold",
    kind: Kind::Number { min: 0.01, max: 3.0 },
    default: "1",
    expected: "a number from 0.01 to 3",
    help: "evidence that alarms: distance over a floor plus what is usual for the series",
};

pub(crate) const WARMUP: Parameter = Parameter {
    name: "warmup",
    kind: Kind::Integer { min: 2, max: 1_000_000 },
    default: "250",
    expected: "an integer from 2 to 1000000",
    help: "rows before the first score",
};

pub(crate) const PARAMETERS: &[Parameter] = &[THRESHOLD, WARMUP];

pub(crate) fn build(options: &[(String, Value)], features: usize) -> Result<Arc<dyn Detector>, Error> {
    let options = Options::check(NAME, ALL_PARAMETERS, options)?;
    let config = NoveltyConfig {
        view: (),
        threshold: options.required("threshold"),
        warmup: options.count("warmup") as u32,
    };
    PerFeature::<Novelty<RangeNovelty>>::detector(config, &options, features)
}

/// The range itself is the grid's.
struct RangeNovelty;

impl View for RangeNovelty {
    type Config = ();
    const NAME: &'static str = NAME;
    const TAG: u8 = 5;
    const SCALE: Scale = SCALE;

    fn fresh(_config: &()) -> Self {
        Self
    }

    fn shift(&mut self, _by: Move) {}

    fn distance(&mut self, _config: &(), here: &Here<'_>) -> f64 {
        here.beyond
    }

    fn learn(&mut self, _config: &(), _here: &Here<'_>) {}

    fn write(&self, _writer: &mut Writer<'_>) {}

    fn read(_config: &(), _reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self)
    }

    fn size_max(_config: &()) -> usize {
        0
    }
}
