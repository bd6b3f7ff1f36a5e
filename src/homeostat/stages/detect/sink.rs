//! Rows and scores to the topics of sinks.

use std::{collections::BTreeMap, sync::Arc};

use engine::{
    assemble::ClosedWindow,
    json,
    spec::{Pipeline, SinkInput},
};
use protocol::{Outputs, message::Anomaly};
use serde::Serialize;
use serde_json::Value;

use super::watch::Watch;
use crate::stages::rows::RowWriter;

/// The rows of a window to the sinks of its view.
pub(super) fn write_rows(pipeline: &Pipeline, window: &ClosedWindow, out: &mut Outputs) {
    let input = SinkInput::View(window.view);
    for sink in pipeline.sinks.iter().filter(|sink| sink.input == input) {
        let topic: Arc<str> = sink.topic.as_str().into();
        let writer = RowWriter::new(&window.rows);
        for row in 0..window.rows.num_rows() {
            let keys = sink.keys.iter();
            let key: BTreeMap<&String, Value> = keys
                .map(|(name, column)| (name, json::value(window.rows.column(*column), row)))
                .collect();
            let mut value = Vec::new();
            writer.write(row, &mut value);
            out.push(to_sink(&topic, &key, value));
        }
    }
}

pub(super) fn to_sink(topic: &Arc<str>, key: &impl Serialize, value: Vec<u8>) -> protocol::Output {
    protocol::Output {
        topic: Arc::clone(topic),
        partition: None,
        key: Some(serde_json::to_vec(key).expect("keys have names and are JSON values")),
        value: Some(value),
        headers: Vec::new(),
    }
}

impl Watch {
    pub(super) fn write_score(&self, score: &Anomaly, out: &mut Outputs) {
        for topic in &self.sinks {
            let value = serde_json::to_vec(score).expect("scores have string keys");
            out.push(to_sink(topic, &score.target, value));
        }
    }
}
