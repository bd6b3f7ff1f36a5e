//! Where the known values of a feature lie among rows that were kept.

use crate::Score;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// Of each feature of rows of this width; NaN is not known. None where no value is.
    pub(crate) fn of(rows: &[f64], width: usize) -> Vec<Option<Self>> {
        let spread = |feature: usize| {
            let mut column: Vec<f64> = rows
                .iter()
                .skip(feature)
                .step_by(width)
                .copied()
                .filter(|value| value.is_finite())
                .collect();
            column.sort_unstable_by(f64::total_cmp);
            Some(Self {
                low: *column.first()?,
                median: column[column.len() / 2],
                high: *column.last()?,
            })
        };
        (0..width).map(spread).collect()
    }

    /// The band is all that was kept.
    pub(crate) fn tell(spreads: &[Option<Self>], out: &mut Score) {
        for (index, spread) in spreads.iter().enumerate() {
            if let Some(spread) = spread {
                out.expected[index] = spread.median;
                out.lower[index] = spread.low;
                out.upper[index] = spread.high;
            }
        }
    }
}
