//! Views whose rows are judged before they are written: `ML_DETECT_ANOMALIES`.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch, RecordBatchOptions},
    compute::{cast, filter_record_batch},
    datatypes::{DataType, Float64Type},
    error::ArrowError,
};
use detector::Score;
use engine::{assemble::ClosedWindow, expression, spec::JudgedSpec};
use protocol::StageError;

use super::{Detect, part::Part};

impl Detect {
    /// Scores the rows of a closed window with the view's own detectors, and computes from both what the view says.
    pub(super) fn judge(
        &self,
        part: &mut Part,
        offset: i64,
        window: &ClosedWindow,
    ) -> Result<ClosedWindow, StageError> {
        let live = Arc::clone(&part.live);
        let pipeline = live.pipeline(window.version, window.pipeline);
        let view = &pipeline.views[window.view];
        let fatal = |error: ArrowError| StageError::Fatal(format!("{}.{}: {error}", pipeline.name, view.name));
        let judged = view
            .judged
            .as_ref()
            .ok_or_else(|| StageError::Fatal(format!("{} is not judged", view.name)))?;
        let mut columns = window.rows.columns().to_vec();
        let own = live.watches.iter().enumerate();
        let own = own.filter(|(_, watch)| watch.is_inner && watch.is_on(window));
        for ((at, watch), time) in own.zip(&judged.times) {
            part.own(at, offset);
            let scored = watch.score(part, offset, window).map_err(fatal)?;
            let (_, value) = &watch.spec.features[0];
            let value = window.rows.column(*value);
            columns.push(Arc::clone(window.rows.column(*time)));
            columns.extend(results(value, &scored).map_err(fatal)?);
        }
        Ok(ClosedWindow {
            rows: project(judged, columns, window.rows.num_rows()).map_err(fatal)?,
            ..*window
        })
    }
}

/// `actual_value`, `forecast_value`, `lower_bound`, `upper_bound`, `is_anomaly`; NULL where there is no forecast.
fn results(value: &ArrayRef, scored: &[Option<(u32, Score)>]) -> Result<[ArrayRef; 5], ArrowError> {
    let actual = cast(value, &DataType::Float64)?;
    let known = |row: usize| {
        let (_, score) = scored[row].as_ref()?;
        let forecast = score.expected.first().copied().filter(|value| value.is_finite())?;
        actual
            .as_primitive::<Float64Type>()
            .is_valid(row)
            .then_some((forecast, score))
    };
    let numbers = |number: fn(&Score) -> Option<&f64>| -> ArrayRef {
        let rows = (0..scored.len()).map(|row| number(known(row)?.1).copied());
        Arc::new(rows.collect::<Float64Array>())
    };
    let anomalies = (0..scored.len()).map(|row| Some(known(row)?.1.is_anomaly()));
    Ok([
        Arc::clone(&actual),
        numbers(|score| score.expected.first()),
        numbers(|score| score.lower.first()),
        numbers(|score| score.upper.first()),
        Arc::new(anomalies.collect::<BooleanArray>()),
    ])
}

fn project(judged: &JudgedSpec, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch, ArrowError> {
    let mut input = RecordBatch::try_new(Arc::clone(&judged.input), columns)?;
    debug_assert_eq!(input.num_rows(), rows);
    let external = |error| ArrowError::ExternalError(Box::new(error));
    if let Some(filter) = &judged.filter {
        input = filter_record_batch(&input, &expression::met(filter, &input).map_err(external)?)?;
    }
    let count = input.num_rows();
    let columns = judged
        .projection
        .iter()
        .zip(judged.output.fields())
        .map(|(column, field)| {
            cast(
                &expression::values(column, &input).map_err(external)?,
                field.data_type(),
            )
        });
    let options = RecordBatchOptions::new().with_row_count(Some(count));
    RecordBatch::try_new_with_options(Arc::clone(&judged.output), columns.collect::<Result<_, _>>()?, &options)
}
