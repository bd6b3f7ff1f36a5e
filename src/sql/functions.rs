//! Aggregates of the language that DataFusion has not: `quantile(x, q)` and `rate(x[, event_time])`.
//!
//! The engine runs them natively. These definitions plan them, and compute them exactly over all rows: what a batch query
//! with them gives is the oracle of the engine's.

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

/// `quantile` and `rate`, to be registered where a view is to run as a batch query.
pub fn aggregates() -> Vec<AggregateUDF> {
    vec![
        AggregateUDF::new_from_impl(Exact::new(Kind::Quantile)),
        AggregateUDF::new_from_impl(Exact::new(Kind::Rate)),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Quantile,
    Rate,
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
        match self.kind {
            Kind::Quantile => "quantile",
            Kind::Rate => "rate",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match (self.kind, arg_types) {
            (Kind::Quantile, [value, q]) if number(value) && number(q) => {
                Ok(vec![DataType::Float64, DataType::Float64])
            }
            (Kind::Quantile, _) => plan_err!("quantile takes a number and a share between 0 and 1: quantile(x, 0.99)"),
            (Kind::Rate, [value, time @ DataType::Timestamp(..)]) if number(value) => {
                Ok(vec![DataType::Float64, time.clone()])
            }
            (Kind::Rate, _) => plan_err!("rate takes a counter: rate(x)"),
        }
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let unit = match args.expr_fields.get(1).map(|field| field.data_type()) {
            Some(DataType::Timestamp(unit, _)) => *unit,
            _ => TimeUnit::Nanosecond,
        };
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

    fn rate(&self) -> Option<f64> {
        let mut points: Vec<(f64, f64)> = self.second.iter().copied().zip(self.first.iter().copied()).collect();
        points.retain(|(_, value)| value.is_finite());
        points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let (first, last) = (points.first()?.0, points.last()?.0);
        let per_second = match self.unit {
            TimeUnit::Second => 1.0,
            TimeUnit::Millisecond => 1e3,
            TimeUnit::Microsecond => 1e6,
            TimeUnit::Nanosecond => 1e9,
        };
        let rises = points.windows(2).map(|pair| {
            let (before, after) = (pair[0].1, pair[1].1);
            if after < before { after } else { after - before }
        });
        let increase: f64 = rises.sum();
        (last > first).then(|| increase / ((last - first) / per_second))
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
            Kind::Rate => self.rate(),
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
