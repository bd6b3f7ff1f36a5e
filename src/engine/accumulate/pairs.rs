//! Statistics of pairs of numbers: correlation, covariance, regression. Their totals are exact, as those of [`super::numeric`].

use std::{mem, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array},
    datatypes::*,
};

use super::{
    Accumulator, field, grow,
    numeric::{Of, Total, codeviation, total_columns, total_fields, totals},
    passes, primitive,
};
use crate::{error::Error, spec::PairStatistic};

#[derive(Clone, Copy, Default)]
struct Sums {
    count: i64,
    y: Total,
    x: Total,
    yy: Total,
    xx: Total,
    xy: Total,
}

const TOTALS: [&str; 5] = ["y", "x", "yy", "xx", "xy"];

impl Sums {
    fn totals(&self) -> [Total; 5] {
        [self.y, self.x, self.yy, self.xx, self.xy]
    }

    fn totals_mut(&mut self) -> [&mut Total; 5] {
        [&mut self.y, &mut self.x, &mut self.yy, &mut self.xx, &mut self.xy]
    }

    fn tell(&self, statistic: PairStatistic) -> Option<f64> {
        let xy = codeviation(self.count, self.x, self.y, self.xy);
        let xx = || codeviation(self.count, self.x, self.x, self.xx).max(0.0);
        let yy = || codeviation(self.count, self.y, self.y, self.yy).max(0.0);
        let divided = |of: Of| Some(xy / of.divisor(self.count)?);
        // A line needs two pairs that differ in x.
        let slope = || (self.count > 1 && xx() != 0.0).then(|| xy / xx());
        match statistic {
            PairStatistic::CovarianceSample => divided(Of::Sample),
            PairStatistic::CovariancePopulation => divided(Of::Population),
            PairStatistic::Correlation => {
                let spread = xx().sqrt() * yy().sqrt();
                (self.count > 1 && spread != 0.0).then(|| (xy / spread).clamp(-1.0, 1.0))
            }
            PairStatistic::Slope => slope(),
            PairStatistic::SlopePerSecond => slope().map(|slope| slope * 1e3),
            PairStatistic::Intercept => {
                let count = self.count as f64;
                slope().map(|slope| self.y.value() / count - slope * (self.x.value() / count))
            }
            PairStatistic::R2 => match (slope()?, yy()) {
                // As DataFusion has it: nothing varies that could be explained.
                (_, 0.0) => None,
                (slope, spread) => Some(slope * xy / spread),
            },
        }
    }
}

pub struct Pairs {
    statistic: PairStatistic,
    groups: Vec<Sums>,
}

impl Pairs {
    pub fn new(statistic: PairStatistic) -> Self {
        Self {
            statistic,
            groups: Vec::new(),
        }
    }
}

impl Accumulator for Pairs {
    fn update(
        &mut self,
        groups: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<(), Error> {
        const WHAT: &str = "arguments of a statistic of pairs";
        grow(&mut self.groups, group_count, Sums::default());
        let ys = primitive::<Float64Type>(WHAT, args, 0, &DataType::Float64)?;
        let xs = primitive::<Float64Type>(WHAT, args, 1, &DataType::Float64)?;
        for (row, group) in groups.iter().enumerate() {
            if ys.is_null(row) || xs.is_null(row) || !passes(filter, row) {
                continue;
            }
            let (y, x) = (ys.value(row), xs.value(row));
            let sums = &mut self.groups[*group as usize];
            sums.count += 1;
            sums.y.add(y);
            sums.x.add(x);
            sums.yy.add_product(y, y);
            sums.xx.add_product(x, x);
            sums.xy.add_product(x, y);
        }
        Ok(())
    }

    fn state_fields(&self) -> Vec<FieldRef> {
        let mut fields = vec![field("count", DataType::Int64, false)];
        fields.extend(TOTALS.into_iter().flat_map(total_fields));
        fields
    }

    fn state(&mut self) -> Result<Vec<ArrayRef>, Error> {
        let groups = mem::take(&mut self.groups);
        let counts: Int64Array = groups.iter().map(|sums| sums.count).collect::<Vec<_>>().into();
        let mut columns: Vec<ArrayRef> = vec![Arc::new(counts)];
        for at in 0..TOTALS.len() {
            columns.extend(total_columns(groups.iter().map(|sums| sums.totals()[at])));
        }
        Ok(columns)
    }

    fn merge(&mut self, groups: &[u32], state: &[ArrayRef], group_count: usize) -> Result<(), Error> {
        const WHAT: &str = "state of a statistic of pairs";
        grow(&mut self.groups, group_count, Sums::default());
        let counts = primitive::<Int64Type>(WHAT, state, 0, &DataType::Int64)?;
        for (row, group) in groups.iter().enumerate() {
            self.groups[*group as usize].count += counts.value(row);
        }
        for at in 0..TOTALS.len() {
            let others = totals(WHAT, state, 1 + 2 * at)?;
            for (row, group) in groups.iter().enumerate() {
                self.groups[*group as usize].totals_mut()[at].merge(others(row));
            }
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ArrayRef, Error> {
        let groups = mem::take(&mut self.groups);
        let values: Float64Array = groups.iter().map(|sums| sums.tell(self.statistic)).collect();
        Ok(Arc::new(values))
    }

    fn size(&self) -> usize {
        self.groups.capacity() * size_of::<Sums>()
    }
}
