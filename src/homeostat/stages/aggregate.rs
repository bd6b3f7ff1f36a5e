//! Aggregate: telemetry → panes. The `engine` crate's stage over the `telemetry` crate's decoders.

use std::sync::Arc;

use engine::{
    Error,
    aggregate::{Aggregate, Decode, Decoders, Options, Rows},
    spec::{Format, Pipeline, SourceSpec},
    version::{Compile, Version},
};
use protocol::{Record, TimestampKind, Topics};
use telemetry::{Decoder, Headers, RecordMeta};

/// The aggregate stage of these pipelines.
pub fn stage(pipelines: Arc<[Pipeline]>, topics: Topics, panes_partitions: i32) -> Result<Aggregate, Error> {
    let options = Options {
        panes_partitions,
        ..Options::default()
    };
    Aggregate::new(&pipelines, topics, options, &Telemetry)
}

/// The aggregate stage of a fleet whose pipelines are versioned.
pub fn following(
    versions: Vec<Version>,
    topics: Topics,
    panes_partitions: i32,
    compile: Arc<dyn Compile>,
) -> Result<Aggregate, Error> {
    let options = Options {
        panes_partitions,
        ..Options::default()
    };
    Aggregate::following(versions, topics, options, Arc::new(Telemetry), compile)
}

/// The `telemetry` crate as the engine asks for it.
pub struct Telemetry;

impl Decoders for Telemetry {
    fn decoder(&self, source: &SourceSpec) -> Result<Box<dyn Decode>, Error> {
        let decoder = Decoder::new(format_of(source.format), Arc::clone(&source.schema), &source.paths);
        let unusable = |error: telemetry::Error| Error::Unreadable {
            what: "source",
            reason: error.to_string(),
        };
        Ok(Box::new(Source(decoder.map_err(unusable)?)))
    }
}

/// A format of the pipeline language as the decoder names it.
pub fn format_of(format: Format) -> telemetry::Format {
    match format {
        Format::OtlpMetrics { json } => telemetry::Format::OtlpMetrics { json },
        Format::OtlpLogs { json } => telemetry::Format::OtlpLogs { json },
        Format::OtlpSpans { json } => telemetry::Format::OtlpSpans { json },
        Format::Json => telemetry::Format::Json,
        Format::Heartbeat => telemetry::Format::Heartbeat,
        Format::PrometheusJson => telemetry::Format::PrometheusJson,
        Format::TelegrafJson => telemetry::Format::TelegrafJson,
        Format::Alertmanager => telemetry::Format::Alertmanager,
    }
}

struct Source(Decoder);

impl Decode for Source {
    fn push(&mut self, record: &Record<'_>, receive_ms: i64) -> Result<usize, String> {
        let value = record.value.ok_or("a tombstone or empty record")?;
        // The producer's clock never says when a heartbeat came.
        let append_ms = match record.timestamp_kind {
            TimestampKind::LogAppend => record.timestamp_ms,
            TimestampKind::Create => receive_ms,
        };
        let meta = RecordMeta {
            topic: &record.partition.topic,
            partition: record.partition.partition,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            append_ms,
            key: record.key,
            headers: &RecordHeaders(record),
        };
        self.0.push(value, &meta).map_err(|reject| reject.to_string())
    }

    fn reads_headers(&self) -> bool {
        self.0.reads_headers()
    }

    fn finish(&mut self) -> Result<Rows, Error> {
        let rows = self.0.finish();
        Ok(Rows {
            batch: rows.batch,
            offsets: rows.offsets,
            record_ms: rows.record_ms,
        })
    }
}

struct RecordHeaders<'a>(&'a Record<'a>);

impl Headers for RecordHeaders<'_> {
    fn for_each(&self, show: &mut dyn FnMut(&str, &[u8])) {
        self.0.headers().for_each(|(name, value)| show(name, value));
    }
}
