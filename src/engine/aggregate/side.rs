//! Records beside the panes: dead letters and late rows, and what sinks write of them.

use std::{collections::BTreeMap, sync::Arc};

use arrow::array::RecordBatch;
use protocol::{CloudEvent, Output, Outputs, Record, Topics, cloudevent, id, time};
use serde_json::{Map, Value};

use crate::{
    json,
    spec::{Pipeline, SinkFormat, SinkInput, WindowSpec},
};

/// A topic that takes late rows or dead letters, too.
#[derive(Clone, Debug)]
pub struct SideSink {
    topic: Arc<str>,
    format: SinkFormat,
}

impl SideSink {
    pub fn new(topic: &str, format: SinkFormat) -> Self {
        Self {
            topic: topic.into(),
            format,
        }
    }

    /// The event as this sink writes it.
    pub fn output(&self, event: &CloudEvent, key: Option<&[u8]>, data: &Value) -> Output {
        let key = key.map(<[u8]>::to_vec);
        let data = data.to_string().into_bytes();
        match self.format {
            SinkFormat::CloudEvents => event.structured(Arc::clone(&self.topic), key, &data),
            // The language has no metrics of these.
            SinkFormat::Json | SinkFormat::OtlpMetrics => Output {
                topic: Arc::clone(&self.topic),
                partition: None,
                key,
                value: Some(data),
                headers: Vec::new(),
            },
        }
    }
}

/// The sinks of all pipelines for what is beside the panes.
#[derive(Debug, Default)]
pub struct SideSinks {
    /// By view, as windows name it.
    late: BTreeMap<String, Vec<SideSink>>,
    /// By fingerprint of the source.
    dead_letters: BTreeMap<u64, Vec<SideSink>>,
}

impl SideSinks {
    pub fn new(pipelines: &[Pipeline]) -> Self {
        let mut sinks = Self::default();
        for (pipeline, spec) in pipelines.iter().flat_map(|p| p.sinks.iter().map(move |spec| (p, spec))) {
            let sink = SideSink::new(&spec.topic, spec.format);
            match spec.input {
                SinkInput::Late(view) => {
                    let view = pipeline.views[view].window.view.clone();
                    sinks.late.entry(view).or_default().push(sink);
                }
                SinkInput::DeadLetters(source) => {
                    let source = pipeline.sources[source].fingerprint;
                    sinks.dead_letters.entry(source).or_default().push(sink);
                }
                SinkInput::View(_) | SinkInput::Detector(_) => {}
            }
        }
        sinks
    }

    pub fn late(&self, view: &str) -> &[SideSink] {
        self.late.get(view).map_or(&[], Vec::as_slice)
    }

    /// A dead letter to the sinks of its source.
    pub fn dead_letter(&self, topics: &Topics, source: u64, letter: &Output, out: &mut Outputs) {
        let Some(sinks) = self.dead_letters.get(&source) else {
            return;
        };
        let data = letter_data(letter);
        let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
        let parts = [
            "source",
            "source_topic",
            "source_partition",
            "source_offset",
            "pane",
            "key",
            "reason",
        ]
        .map(text);
        let event_id = id::derived("dead_letter", &parts.each_ref().map(String::as_str));
        let mut event = CloudEvent::new(
            event_id,
            topics.tenant(),
            &format!(
                "/homeostat/{}/{}",
                topics.tenant(),
                text("source").split('.').next().unwrap_or_default()
            ),
            cloudevent::DEAD_LETTER,
            &text("source"),
            text("timestamp").parse().unwrap_or(0),
        );
        event.tenant = topics.tenant().to_owned();
        let outputs = sinks
            .iter()
            .map(|sink| sink.output(&event, letter.key.as_deref(), &data));
        out.records.extend(outputs);
    }
}

/// A dead letter as one document: its headers, its key, and its value as text or, where it is none, in hexadecimal.
fn letter_data(letter: &Output) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = letter
        .headers
        .iter()
        .map(|(name, value)| (name.clone(), Value::from(text(value))));
    let mut data: Map<String, Value> = headers.collect();
    if let Some(key) = &letter.key {
        data.insert("key".into(), text(key).into());
    }
    if let Some(value) = &letter.value {
        let (name, value) = match std::str::from_utf8(value) {
            Ok(text) => ("payload", text.to_owned()),
            Err(_) => ("payload_hex", value.iter().map(|byte| format!("{byte:02x}")).collect()),
        };
        data.insert(name.into(), value.into());
    }
    data.into()
}

/// Why a record, or a row of it, could not be used; a metric label, so the set is fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    Decode,
    NoEventTime,
    EventTimeRange,
    Future,
    Expression,
    KeyLimit,
    StateSize,
}

impl Fault {
    pub fn label(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::NoEventTime => "no_event_time",
            Self::EventTimeRange => "event_time_range",
            Self::Future => "future",
            Self::Expression => "expression",
            Self::KeyLimit => "key_limit",
            Self::StateSize => "state_size",
        }
    }
}

/// A partial that no record takes: what is left of many rows, so it names the span of offsets instead of one.
pub fn oversized(topic: &Arc<str>, source: &str, header: &str, key: &str, bytes: usize, offset: i64) -> Output {
    let reason = format!("the state of key {key} takes {bytes} bytes, more than a record may have");
    let headers = [
        ("source", source.to_owned()),
        ("source_offset", offset.to_string()),
        ("pane", header.to_owned()),
        ("reason", reason),
        ("length", bytes.to_string()),
    ];
    Output {
        topic: Arc::clone(topic),
        partition: None,
        key: Some(key.as_bytes().to_vec()),
        value: None,
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.into_bytes()))
            .into(),
    }
}

/// A row and the moment at which it was late.
pub struct LateRow<'a> {
    pub record: Record<'a>,
    /// Position of the row within its record.
    pub index: usize,
    pub rows: &'a RecordBatch,
    pub row: usize,
    pub event_time_ms: i64,
    pub floor_ms: i64,
}

/// A row that came when every window of this view over it had closed, to the topic of late rows and to sinks.
pub fn late_row(topics: &Topics, window: &WindowSpec, sinks: &[SideSink], late: &LateRow<'_>, out: &mut Outputs) {
    let place = late.record.partition;
    let offset = late.record.offset;
    let event_id = id::derived(
        "late",
        &[
            &window.view,
            &place.topic,
            &place.partition.to_string(),
            &offset.to_string(),
            &late.index.to_string(),
        ],
    );
    let pipeline = window.view.split('.').next().unwrap_or_default();
    let source = format!("/homeostat/{}/{pipeline}", topics.tenant());
    let mut event = CloudEvent::new(
        event_id,
        topics.tenant(),
        &source,
        cloudevent::LATE,
        &window.view,
        late.event_time_ms,
    );
    event.tenant = topics.tenant().to_owned();
    let data = serde_json::json!({
        "view": window.view,
        "reason": "no window over this row was open",
        "event_time": time::to_rfc3339(late.event_time_ms),
        "watermark": time::to_rfc3339(late.floor_ms),
        "columns": json::row(late.rows, late.row),
        "topic": &*place.topic,
        "partition": place.partition,
        "offset": offset,
    });
    let topic = match &window.late_topic {
        Some(topic) => format!("{}{topic}", topics.prefix()),
        None => topics.late(),
    };
    let mut output = event.output(topic, &data);
    output.key = late.record.key.map(<[u8]>::to_vec);
    out.push(output);
    let outputs = sinks.iter().map(|sink| sink.output(&event, late.record.key, &data));
    out.records.extend(outputs);
}
