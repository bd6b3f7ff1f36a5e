//! Aggregates of the language that DataFusion has not: `quantile(x, q)`, and those over event time: `rate`, `increase`,
//! `delta`, `slope`, `first` and `last` of `(x[, event_time])`; and `histogram_quantile(q)`.
//!
//! The engine runs them natively, but for the last. These definitions plan them, and compute them exactly over all rows: what a batch query
//! with them gives is the oracle of the engine's.

pub(crate) mod histogram;

use std::{mem::size_of_val, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray},
    compute::cast,
    datatypes::{DataType, Field, FieldRef, Float64Type, Int64Type, TimeUnit},
};
use datafusion::{
    common::{Result, ScalarValue, exec_datafusion_err, plan_err},
    logical_expr::{
        Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility,
        function::{AccumulatorArgs, StateFieldsArgs},
    },
};

/// These aggregates, to be registered where a view is to run as a batch query.
pub fn aggregates() -> Vec<AggregateUDF> {
    Kind::ALL
        .into_iter()
        .map(|kind| AggregateUDF::new_from_impl(Exact::new(kind)))
        .chain([AggregateUDF::new_from_impl(histogram::HistogramQuantile::new())])
        .collect()
}

/// Whether an aggregate takes the event time as its second argument, which the text may leave out.
pub(crate) fn takes_event_time(name: &str) -> bool {
    Kind::ALL
        .into_iter()
        .any(|kind| kind != Kind::Quantile && kind.name() == name)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Quantile,
    Rate,
    Increase,
    Delta,
    Slope,
    First,
    Last,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Quantile,
        Self::Rate,
        Self::Increase,
        Self::Delta,
        Self::Slope,
        Self::First,
        Self::Last,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Quantile => "quantile",
            Self::Rate => "rate",
            Self::Increase => "increase",
            Self::Delta => "delta",
            Self::Slope => "slope",
            Self::First => "first",
            Self::Last => "last",
        }
    }

    fn is_edge(self) -> bool {
        matches!(self, Self::First | Self::Last)
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Exact {
    kind: Kind,
    signature: Signature,
}

impl Exact {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            signature: Signature::user_defined(Volatility::Immutable),
        }
    }
}

impl AggregateUDFImpl for Exact {
    fn name(&self) -> &str {
        self.kind.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(match arg_types.first() {
            Some(first) if self.kind.is_edge() => first.clone(),
            _ => DataType::Float64,
        })
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match (self.kind, arg_types) {
            (Kind::Quantile, [value, q]) if number(value) && number(q) => {
                Ok(vec![DataType::Float64, DataType::Float64])
            }
            (Kind::Quantile, _) => plan_err!("quantile takes a number and a share between 0 and 1: quantile(x, 0.99)"),
            (kind, [value, time @ DataType::Timestamp(..)]) if kind.is_edge() => Ok(vec![value.clone(), time.clone()]),
            (_, [value, time @ DataType::Timestamp(..)]) if number(value) => Ok(vec![DataType::Float64, time.clone()]),
            (kind, _) => {
                let (name, what) = (kind.name(), if kind.is_edge() { "value" } else { "number" });
                plan_err!("{name} takes a {what}: {name}(x)")
            }
        }
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let unit = match args.expr_fields.get(1).map(|field| field.data_type()) {
            Some(DataType::Timestamp(unit, _)) => *unit,
            _ => TimeUnit::Nanosecond,
        };
        if self.kind.is_edge() {
            return Ok(Box::new(Edge {
                first: self.kind == Kind::First,
                none: ScalarValue::try_from(args.return_type())?,
                best: None,
            }));
        }
        Ok(Box::new(Points {
            kind: self.kind,
            unit,
            first: Vec::new(),
            second: Vec::new(),
        }))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let list = |name: &str| -> FieldRef {
            let item = Arc::new(Field::new_list_field(DataType::Float64, true));
            Arc::new(Field::new(format!("{}[{name}]", args.name), DataType::List(item), true))
        };
        if self.kind.is_edge() {
            let field = |name: &str, data_type: DataType| -> FieldRef {
                Arc::new(Field::new(format!("{}[{name}]", args.name), data_type, true))
            };
            let value = field("value", args.return_field.data_type().clone());
            return Ok(vec![value, field("time", DataType::Int64)]);
        }
        Ok(vec![list("first"), list("second")])
    }
}

fn number(data_type: &DataType) -> bool {
    data_type.is_numeric() || data_type.is_null()
}

/// Every pair of arguments.
#[derive(Debug)]
struct Points {
    kind: Kind,
    unit: TimeUnit,
    first: Vec<f64>,
    /// The share, or the event time as a number of units: exact up to 2^53.
    second: Vec<f64>,
}

impl Points {
    fn quantile(&self) -> Option<f64> {
        let mut values = self.first.clone();
        values.sort_by(f64::total_cmp);
        let q = *self.second.first()?;
        let rank = q * (values.len() - 1) as f64;
        let (low, high) = (values[rank.floor() as usize], values[rank.ceil() as usize]);
        Some(low + (high - low) * rank.fract())
    }

    fn units_per_second(&self) -> f64 {
        match self.unit {
            TimeUnit::Second => 1.0,
            TimeUnit::Millisecond => 1e3,
            TimeUnit::Microsecond => 1e6,
            TimeUnit::Nanosecond => 1e9,
        }
    }

    fn over_time(&self) -> Option<f64> {
        let mut points: Vec<(f64, f64)> = self.second.iter().copied().zip(self.first.iter().copied()).collect();
        points.retain(|(_, value)| value.is_finite());
        points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let (first, last) = (*points.first()?, *points.last()?);
        if last.0 <= first.0 {
            return None;
        }
        let rises = points.windows(2).map(|pair| {
            let (before, after) = (pair[0].1, pair[1].1);
            if after < before { after } else { after - before }
        });
        Some(match self.kind {
            Kind::Rate => rises.sum::<f64>() / ((last.0 - first.0) / self.units_per_second()),
            Kind::Increase => rises.sum(),
            _ => last.1 - first.1,
        })
    }

    /// Of the least-squares line, per second.
    fn slope(&self) -> Option<f64> {
        let count = self.first.len() as f64;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / count;
        // Times are large and close to each other.
        let origin = self.second.first().copied()?;
        let times: Vec<f64> = self.second.iter().map(|time| time - origin).collect();
        let (time_mean, mean) = (mean(&times), mean(&self.first));
        let pairs = || times.iter().map(|time| time - time_mean).zip(&self.first);
        let spread: f64 = pairs().map(|(time, _)| time * time).sum();
        let joint: f64 = pairs().map(|(time, value)| time * (value - mean)).sum();
        (self.first.len() > 1 && spread > 0.0).then(|| joint / spread * self.units_per_second())
    }
}

/// The value at one end of event time; of equal times the least value is first, the greatest last.
#[derive(Debug)]
struct Edge {
    first: bool,
    /// NULL of the type.
    none: ScalarValue,
    best: Option<(i64, ScalarValue)>,
}

impl Accumulator for Edge {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let [values, times] = values else {
            return Err(exec_datafusion_err!("two arguments are planned"));
        };
        let times = cast(times, &DataType::Int64)?;
        let times = times.as_primitive::<Int64Type>();
        for row in 0..values.len() {
            let value = ScalarValue::try_from_array(values, row)?;
            if value.is_null() || times.is_null(row) {
                continue;
            }
            let time = times.value(row);
            let wins = self.best.as_ref().is_none_or(|(best_time, best)| {
                let order = time.cmp(best_time);
                let order = order.then(value.partial_cmp(best).unwrap_or(std::cmp::Ordering::Equal));
                if self.first { order.is_lt() } else { order.is_gt() }
            });
            if wins {
                self.best = Some((time, value));
            }
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let best = self.best.as_ref().map(|(_, value)| value.clone());
        Ok(best.unwrap_or_else(|| self.none.clone()))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let time = self.best.as_ref().map(|(time, _)| *time);
        Ok(vec![self.evaluate()?, ScalarValue::Int64(time)])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.best.as_ref().map_or(0, |(_, value)| value.size())
    }
}

impl Accumulator for Points {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let [first, second] = values else {
            return Err(exec_datafusion_err!("two arguments are planned"));
        };
        let first = first.as_primitive::<Float64Type>();
        let second = match second.data_type() {
            DataType::Timestamp(..) => {
                let integers = cast(second, &DataType::Int64)?;
                integers
                    .as_primitive::<Int64Type>()
                    .unary::<_, Float64Type>(|time| time as f64)
            }
            _ => second.as_primitive::<Float64Type>().clone(),
        };
        for row in 0..first.len() {
            if first.is_valid(row) && second.is_valid(row) {
                self.first.push(first.value(row));
                self.second.push(second.value(row));
            }
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let result = match self.kind {
            Kind::Quantile => self.quantile(),
            Kind::Slope => self.slope(),
            _ => self.over_time(),
        };
        Ok(ScalarValue::Float64(result))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let list = |values: &[f64]| {
            let values: Vec<_> = values.iter().map(|value| ScalarValue::Float64(Some(*value))).collect();
            ScalarValue::List(ScalarValue::new_list_nullable(&values, &DataType::Float64))
        };
        Ok(vec![list(&self.first), list(&self.second)])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for (state, values) in states.iter().zip([&mut self.first, &mut self.second]) {
            for list in state.as_list::<i32>().iter().flatten() {
                values.extend(list.as_primitive::<Float64Type>().iter().flatten());
            }
        }
        Ok(())
    }

    fn size(&self) -> usize {
        size_of_val(self) + (self.first.capacity() + self.second.capacity()) * size_of::<f64>()
    }
}
