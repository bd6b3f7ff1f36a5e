//! Rows and scores to the topics of sinks, each in the sink's format. What is written is a function of the row alone, so that
//! a restart writes the same bytes.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Float64Type, Int64Type},
};
use engine::{
    assemble::ClosedWindow,
    json,
    spec::{Pipeline, SinkFormat, SinkInput, SinkSpec},
};
use protocol::{CloudEvent, Output, Outputs, Topics, cloudevent, id, message::Anomaly};
use serde_json::Value;
use telemetry::{Gauge, GaugeValue, write_gauges};

use super::watch::Watch;
use crate::stages::rows::RowWriter;

/// One row or score.
struct Entry<'a> {
    pipeline: &'a str,
    /// Of the view or detector.
    name: &'a str,
    kind: &'static str,
    /// The group as a JSON object, its members in the order of their names.
    key: Vec<u8>,
    start_ms: i64,
    end_ms: i64,
    early_ms: Option<i64>,
}

impl Entry<'_> {
    fn record(self, topic: &Arc<str>, value: Vec<u8>) -> Output {
        Output {
            topic: Arc::clone(topic),
            partition: None,
            key: Some(self.key),
            value: Some(value),
            headers: Vec::new(),
        }
    }

    fn event(self, topics: &Topics, topic: &Arc<str>, json: &[u8]) -> Output {
        let subject = String::from_utf8_lossy(&self.key).into_owned();
        let early = self.early_ms.map_or_else(|| "final".to_owned(), |ms| ms.to_string());
        let (start, end) = (self.start_ms.to_string(), self.end_ms.to_string());
        let mint = id::derived(self.kind, &[self.pipeline, self.name, &subject, &start, &end, &early]);
        let source = format!("/homeostat/{}/{}", topics.tenant(), self.pipeline);
        let event = CloudEvent::new(mint, topics.tenant(), &source, self.kind, &subject, self.end_ms);
        event.structured(Arc::clone(topic), Some(self.key), json)
    }

    /// Gauges with the group as attributes; `None` where there is no number.
    fn metrics(
        self,
        topic: &Arc<str>,
        group: impl Iterator<Item = (String, Value)>,
        numbers: &[(&str, GaugeValue)],
    ) -> Option<Output> {
        let text = |value: Value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let known = group.filter(|(_, value)| !value.is_null());
        let attributes: Vec<(String, String)> = known.map(|(name, value)| (name, text(value))).collect();
        let names: Vec<String> = numbers
            .iter()
            .map(|(name, _)| format!("{}.{name}", self.name))
            .collect();
        let gauges = names.iter().zip(numbers).map(|(name, (_, value))| Gauge {
            name,
            start_ms: self.start_ms,
            time_ms: self.end_ms,
            value: *value,
            attributes: &attributes,
        });
        let gauges: Vec<Gauge<'_>> = gauges.collect();
        let resource = [("service.name", "homeostat"), ("homeostat.pipeline", self.pipeline)];
        let resource = resource.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut value = Vec::new();
        write_gauges(&resource, &gauges, &mut value);
        let is_any = !gauges.is_empty();
        is_any.then(|| self.record(topic, value))
    }
}

/// The rows of a window to the sinks of its view.
pub(super) fn write_rows(topics: &Topics, pipeline: &Pipeline, window: &ClosedWindow, out: &mut Outputs) {
    let input = SinkInput::View(window.view);
    for sink in pipeline.sinks.iter().filter(|sink| sink.input == input) {
        let topic: Arc<str> = sink.topic.as_str().into();
        let keys: BTreeMap<&str, &ArrayRef> = sink
            .keys
            .iter()
            .map(|(name, column)| (name.as_str(), window.rows.column(*column)))
            .collect();
        let mut key_writer = RowWriter::of(keys.iter().map(|(name, column)| (*name, *column)));
        let mut row_writer = RowWriter::new(&window.rows);
        let numbers = match sink.format {
            SinkFormat::OtlpMetrics => Numbers::of(&window.rows, sink),
            _ => Numbers(Vec::new()),
        };
        let (mut key_bytes, mut row_bytes) = (0, 0);
        for row in 0..window.rows.num_rows() {
            let mut key = Vec::with_capacity(key_bytes);
            key_writer.write(row, &mut key);
            key_bytes = key.len();
            let entry = Entry {
                pipeline: &pipeline.name,
                name: &pipeline.views[window.view].name,
                kind: cloudevent::ROW,
                key,
                start_ms: window.start_ms,
                end_ms: window.end_ms,
                early_ms: window.early_ms,
            };
            let mut value = Vec::new();
            if sink.format != SinkFormat::OtlpMetrics {
                value.reserve(row_bytes);
                row_writer.write(row, &mut value);
                row_bytes = value.len();
            }
            out.records.extend(match sink.format {
                SinkFormat::Json => Some(entry.record(&topic, value)),
                SinkFormat::CloudEvents => Some(entry.event(topics, &topic, &value)),
                SinkFormat::OtlpMetrics => {
                    let group = keys
                        .iter()
                        .map(|(name, column)| ((*name).to_owned(), json::value(column, row)));
                    entry.metrics(&topic, group, &numbers.row(row))
                }
            });
        }
    }
}

/// The columns of a batch that are numbers or truth values, and no keys.
struct Numbers<'a>(Vec<(&'a str, Number)>);

enum Number {
    Int(arrow::array::Int64Array),
    Double(arrow::array::Float64Array),
}

impl<'a> Numbers<'a> {
    fn of(rows: &'a RecordBatch, sink: &SinkSpec) -> Self {
        let fields = rows.schema_ref().fields().iter().enumerate();
        let own = fields.filter(|(index, _)| sink.keys.iter().all(|(_, key)| key != index));
        let numbers = own.filter_map(|(index, field)| {
            let column = rows.column(index);
            let data_type = field.data_type();
            let number = if data_type.is_integer() || *data_type == DataType::Boolean {
                Number::Int(
                    cast(column, &DataType::Int64)
                        .ok()?
                        .as_primitive_opt::<Int64Type>()?
                        .clone(),
                )
            } else if data_type.is_numeric() {
                let column = cast(column, &DataType::Float64).ok()?;
                Number::Double(column.as_primitive_opt::<Float64Type>()?.clone())
            } else {
                return None;
            };
            Some((field.name().as_str(), number))
        });
        Self(numbers.collect())
    }

    fn row(&self, row: usize) -> Vec<(&'a str, GaugeValue)> {
        let value = |number: &Number| match number {
            Number::Int(column) => column.is_valid(row).then(|| GaugeValue::Int(column.value(row))),
            Number::Double(column) => column.is_valid(row).then(|| GaugeValue::Double(column.value(row))),
        };
        let columns = self.0.iter();
        columns
            .filter_map(|(name, number)| Some((*name, value(number)?)))
            .collect()
    }
}

impl Watch {
    /// A score to the sinks of its detector.
    pub(super) fn write_score(&self, topics: &Topics, score: &Anomaly, out: &mut Outputs) {
        for sink in &self.sinks {
            let topic: Arc<str> = sink.topic.as_str().into();
            let entry = Entry {
                pipeline: &self.pipeline_name,
                name: &self.spec.name,
                kind: cloudevent::SCORE,
                key: serde_json::to_vec(&score.target).expect("keys have names and are JSON values"),
                start_ms: score.window_start,
                end_ms: score.window_end,
                early_ms: None,
            };
            let json = || serde_json::to_vec(score).expect("scores have string keys");
            out.records.extend(match sink.format {
                SinkFormat::Json => Some(entry.record(&topic, json())),
                SinkFormat::CloudEvents => Some(entry.event(topics, &topic, &json())),
                SinkFormat::OtlpMetrics => {
                    let numbers = [
                        ("score", GaugeValue::Double(score.score)),
                        ("is_anomaly", GaugeValue::Int(i64::from(score.is_anomaly))),
                    ];
                    entry.metrics(&topic, score.target.clone().into_iter(), &numbers)
                }
            });
        }
    }
}
