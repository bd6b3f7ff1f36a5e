//! The decoder: what a projection binds to, how a record is taken or taken back, and the batch that comes out.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions},
    datatypes::{DataType, Field, SchemaRef},
};

use crate::{
    column::{AnyColumn, AnySlot, Primitive, Slot},
    error::{Error, Fault, Reject},
    json::{Declared, Json},
    otlp::{self, LOGS_DATA, Logs, METRICS_DATA, Metrics, RESOURCE_COLUMNS, Signal, Spans, TRACES_DATA, Transcoder},
    record::{RecordColumns, RecordMeta},
    schema::{self, Format, KEY, MAP, METADATA},
};

/// Turns the values of records into rows of the columns asked for.
///
/// One decoder serves one projection of one format. It keeps the strings it has seen from batch to batch, so that codes of
/// a dictionary stay what they were until [`Rows::generations`] says otherwise.
pub struct Decoder {
    columns: SchemaRef,
    body: Body,
    record_columns: RecordColumns,
    rows: usize,
    offsets: Vec<i64>,
    record_ms: Vec<i64>,
}

enum Body {
    Otlp {
        signal: Box<dyn Signal>,
        transcoder: Option<Transcoder>,
    },
    Json(Json),
    Heartbeat {
        json: Json,
        event_time: Slot<Primitive<i64>>,
    },
}

/// The rows decoded since the last time.
#[derive(Debug)]
pub struct Rows {
    pub batch: RecordBatch,
    /// Offset of the record that each row came from.
    pub offsets: Vec<i64>,
    /// Kafka timestamp of the record that each row came from.
    pub record_ms: Vec<i64>,
    /// Per column: while its generation stays, a dictionary code means what it meant in the batches before.
    pub generations: Vec<u64>,
}

impl Decoder {
    /// A decoder for the columns wanted, in their order: by name those of [`schema`](crate::schema) or, for
    /// [`Format::Json`], as declared; entries of maps ([`map_entry`](crate::map_entry)) and columns of the record itself
    /// ([`metadata_column`](crate::metadata_column)) for every format. `paths` holds, per column, where its value lies in
    /// a JSON document if not at its name; it may be shorter than the columns.
    pub fn new(format: Format, columns: SchemaRef, paths: &[Option<Vec<String>>]) -> Result<Self, Error> {
        let mut names: Vec<_> = columns.fields().iter().map(|field| field.name()).collect();
        names.sort();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            let column = pair[0].clone();
            return Err(Error::ColumnTwice { column });
        }
        let body = match format {
            Format::Json => Body::Json(Json::new(Json::declared(&columns, paths))?),
            Format::Heartbeat => heartbeat(&columns)?,
            Format::OtlpMetrics { json } => {
                let transcoder = json.then(|| Transcoder::new(&METRICS_DATA));
                signal(format, Box::<Metrics>::default(), transcoder, &columns)?
            }
            Format::OtlpLogs { json } => {
                let transcoder = json.then(|| Transcoder::new(&LOGS_DATA));
                signal(format, Box::<Logs>::default(), transcoder, &columns)?
            }
            Format::OtlpSpans { json } => {
                let transcoder = json.then(|| Transcoder::new(&TRACES_DATA));
                signal(format, Box::<Spans>::default(), transcoder, &columns)?
            }
        };
        Ok(Self {
            record_columns: RecordColumns::new(&columns)?,
            columns,
            body,
            rows: 0,
            offsets: Vec::new(),
            record_ms: Vec::new(),
        })
    }

    /// The columns delivered.
    pub fn columns(&self) -> &SchemaRef {
        &self.columns
    }

    /// Rows held.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Appends the rows of one record and returns how many; or rejects the record, and nothing of it is kept.
    pub fn push(&mut self, value: &[u8], record: &RecordMeta<'_>) -> Result<usize, Reject> {
        let from = self.rows;
        match self.decode(value, record) {
            Ok(to) => {
                self.offsets.resize(to, record.offset);
                self.record_ms.resize(to, record.timestamp_ms);
                self.rows = to;
                Ok(to - from)
            }
            Err(fault) => {
                self.truncate(from);
                Err(fault.reject(value))
            }
        }
    }

    /// The rows so far; the next batch begins.
    pub fn finish(&mut self) -> Rows {
        let rows = std::mem::take(&mut self.rows);
        let mut outputs: Vec<Option<(ArrayRef, u64)>> = vec![None; self.columns.fields().len()];
        let mut put = |(output, array, generation): (usize, ArrayRef, u64)| outputs[output] = Some((array, generation));
        match &mut self.body {
            Body::Otlp { signal, .. } => {
                let named = signal.slots();
                named
                    .into_iter()
                    .filter_map(|(_, slot)| slot.finish(rows))
                    .for_each(&mut put);
                let context = signal.context().slots();
                context
                    .into_iter()
                    .filter_map(|slot| slot.finish(rows))
                    .for_each(&mut put);
            }
            Body::Json(json) => json.finish(rows).for_each(&mut put),
            Body::Heartbeat { json, event_time } => {
                json.finish(rows).for_each(&mut put);
                event_time.finish(rows).into_iter().for_each(&mut put);
            }
        }
        self.record_columns.finish(rows).for_each(&mut put);
        let (arrays, generations) = outputs
            .into_iter()
            .map(|output| output.expect("every column of the projection was bound"))
            .unzip();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.columns), arrays, &options)
            .expect("columns were bound by type, and all have the same rows");
        Rows {
            batch,
            offsets: std::mem::replace(&mut self.offsets, Vec::with_capacity(rows)),
            record_ms: std::mem::replace(&mut self.record_ms, Vec::with_capacity(rows)),
            generations,
        }
    }

    #[inline]
    fn decode(&mut self, value: &[u8], record: &RecordMeta<'_>) -> Result<usize, Fault> {
        let from = self.rows;
        let to = match &mut self.body {
            Body::Json(json) => {
                json.decode(value, from)?;
                from + 1
            }
            Body::Otlp {
                signal,
                transcoder: None,
            } => signal.decode(value, from)?,
            Body::Otlp {
                signal,
                transcoder: Some(transcoder),
            } => signal.decode(transcoder.transcode(value)?, from)?,
            Body::Heartbeat { json, event_time } => {
                json.decode(value, from)?;
                if let Some(column) = event_time.get() {
                    column.set(from, record.append_ms);
                }
                from + 1
            }
        };
        self.record_columns.fill(from, to, record)?;
        Ok(to)
    }

    #[cold]
    fn truncate(&mut self, rows: usize) {
        match &mut self.body {
            Body::Otlp { signal, .. } => otlp::truncate(signal.as_mut(), rows),
            Body::Json(json) => json.truncate(rows),
            Body::Heartbeat { json, event_time } => {
                json.truncate(rows);
                event_time.truncate(rows);
            }
        }
        self.record_columns.truncate(rows);
    }
}

/// Binds a projection to an OTLP signal.
fn signal(
    format: Format,
    mut signal: Box<dyn Signal>,
    transcoder: Option<Transcoder>,
    columns: &SchemaRef,
) -> Result<Body, Error> {
    for (output, field) in columns.fields().iter().enumerate() {
        if field.metadata().contains_key(METADATA) {
            continue;
        }
        if !field.is_nullable() {
            let column = field.name().clone();
            return Err(Error::ColumnNotNull {
                format: format.name(),
                column,
            });
        }
        if let Some(map) = field.metadata().get(MAP) {
            bind_map_entry(format, signal.as_mut(), field, map, output)?;
            continue;
        }
        let data_type = known_type(format, field)?;
        let name = field.name().as_str();
        if let Some((_, slot)) = signal.slots().into_iter().find(|(known, _)| *known == name) {
            slot.bind(output, data_type);
            continue;
        }
        let context = signal.context();
        match name {
            "resource" => context.resource.bind_map(output, data_type),
            "attributes" => context.attributes.bind_map(output, data_type),
            "scope_name" => context.scope_name.bind(output, data_type),
            _ => {
                let (_, key) = RESOURCE_COLUMNS
                    .iter()
                    .find(|(column, _)| *column == name)
                    .expect("every column of the schema has a slot");
                context.resource.bind_entry(key, output);
            }
        }
    }
    Ok(Body::Otlp { signal, transcoder })
}

fn bind_map_entry(
    format: Format,
    signal: &mut dyn Signal,
    field: &Field,
    map: &str,
    output: usize,
) -> Result<(), Error> {
    let column = || field.name().clone();
    let key = field.metadata().get(KEY).map_or("", String::as_str);
    expect_type(format, field, &schema::dictionary())?;
    let context = signal.context();
    match map {
        "resource" => context.resource.bind_entry(key, output),
        "attributes" => context.attributes.bind_entry(key, output),
        _ => {
            return Err(Error::MapUnknown {
                format: format.name(),
                column: column(),
                map: map.to_owned(),
                known: "resource and attributes",
            });
        }
    }
    Ok(())
}

/// The type of a column by name; an error when the format has none, or another.
fn known_type(format: Format, field: &Field) -> Result<&DataType, Error> {
    let schema = crate::schema::schema(format);
    let known = schema.field_with_name(field.name()).map_err(|_| {
        let names: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        Error::ColumnUnknown {
            format: format.name(),
            column: field.name().clone(),
            known: names.join(", "),
        }
    })?;
    expect_type(format, field, known.data_type())?;
    Ok(field.data_type())
}

fn expect_type(format: Format, field: &Field, delivered: &DataType) -> Result<(), Error> {
    if field.data_type() == delivered {
        return Ok(());
    }
    Err(Error::ColumnType {
        format: format.name(),
        column: field.name().clone(),
        declared: field.data_type().clone(),
        delivered: delivered.clone(),
    })
}

/// A heartbeat is JSON of fixed columns; who sent it must be said, whichever columns are asked for. Event time is when the
/// log took the record, never the producer's clock, which may be what is broken.
fn heartbeat(columns: &SchemaRef) -> Result<Body, Error> {
    let format = Format::Heartbeat;
    let mut event_time = Slot::default();
    let mut outputs = [None; 3];
    const FIELDS: [(&str, &str); 3] = [("service", "service"), ("instance", "instance"), ("sent_at", "time")];
    for (output, field) in columns.fields().iter().enumerate() {
        if field.metadata().contains_key(METADATA) {
            continue;
        }
        if let Some(map) = field.metadata().get(MAP) {
            return Err(Error::MapUnknown {
                format: format.name(),
                column: field.name().clone(),
                map: map.clone(),
                known: "no maps",
            });
        }
        let data_type = known_type(format, field)?;
        match FIELDS.iter().position(|(column, _)| column == field.name()) {
            Some(index) => outputs[index] = Some(output),
            None => event_time.bind(output, data_type),
        }
    }
    let declared = FIELDS.iter().zip(outputs).map(|((column, path), output)| Declared {
        name: (*path).to_owned(),
        data_type: match *column {
            "sent_at" => schema::timestamp_ms(),
            _ => schema::dictionary(),
        },
        required: *column == "service",
        path: vec![(*path).to_owned()],
        output,
    });
    let json = Json::new(declared.collect())?;
    Ok(Body::Heartbeat { json, event_time })
}

/// So that a decoder can move to the thread that owns its partition.
const _: fn() = || {
    fn assert_send<T: Send>() {}
    assert_send::<Decoder>();
    assert_send::<AnyColumn>();
};
