//! Records beside the panes: dead letters and late rows.

use std::sync::Arc;

use arrow::array::RecordBatch;
use protocol::{CloudEvent, Output, Record, Topics, cloudevent, id, time};

use crate::{json, spec::WindowSpec};

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

/// A row that came when every window of this view over it had closed.
pub fn late_row(topics: &Topics, window: &WindowSpec, late: &LateRow<'_>) -> Output {
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
    output
}
