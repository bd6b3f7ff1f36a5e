//! The decoder: what a projection binds to, how a record is taken or taken back, and the batch that comes out.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions},
    datatypes::{DataType, Field, SchemaRef},
};

use crate::{
    alertmanager::Alertmanager,
    column::AnyColumn,
    error::{Error, Fault, Reject},
    flatten::{self, Flatten},
    heartbeat::Heartbeat,
    json::Json,
    otlp::{Logs, Metrics, Otlp, Spans},
    prometheus::Prometheus,
    record::{RecordColumns, RecordMeta},
    schema::{self, Format, KEY, MAP, METADATA},
    telegraf::Telegraf,
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
    Json(Json),
    Known(Box<dyn Flatten>),
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
            Format::Heartbeat => known(format, Heartbeat::default(), &columns)?,
            Format::OtlpMetrics { json } => known(format, Otlp::<Metrics>::new(json), &columns)?,
            Format::OtlpLogs { json } => known(format, Otlp::<Logs>::new(json), &columns)?,
            Format::OtlpSpans { json } => known(format, Otlp::<Spans>::new(json), &columns)?,
            Format::PrometheusJson => known(format, Prometheus::default(), &columns)?,
            Format::TelegrafJson => known(format, Telegraf::default(), &columns)?,
            Format::Alertmanager => known(format, Alertmanager::default(), &columns)?,
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

    /// Whether [`RecordMeta::headers`] makes a difference.
    pub fn reads_headers(&self) -> bool {
        self.record_columns.reads_headers()
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
            Body::Json(json) => json.finish(rows).for_each(&mut put),
            Body::Known(format) => flatten::for_each_slot(format.as_mut(), |slot| {
                slot.finish(rows).into_iter().for_each(&mut put);
            }),
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
            Body::Json(json) => json.decode(value, from).map(|()| from + 1)?,
            Body::Known(format) => format.decode(value, from, record)?,
        };
        self.record_columns.fill(from, to, record)?;
        Ok(to)
    }

    #[cold]
    fn truncate(&mut self, rows: usize) {
        match &mut self.body {
            Body::Json(json) => json.truncate(rows),
            Body::Known(format) => flatten::for_each_slot(format.as_mut(), |slot| slot.truncate(rows)),
        }
        self.record_columns.truncate(rows);
    }
}

/// Binds a projection to a format of known columns.
fn known(format: Format, mut flatten: impl Flatten + 'static, columns: &SchemaRef) -> Result<Body, Error> {
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
        match field.metadata().get(MAP) {
            Some(map) => bind_entry(format, &mut flatten, field, map, output)?,
            None => bind_column(format, &mut flatten, field, output)?,
        }
    }
    Ok(Body::Known(Box::new(flatten)))
}

fn bind_column(format: Format, flatten: &mut dyn Flatten, field: &Field, output: usize) -> Result<(), Error> {
    let data_type = known_type(format, field)?;
    let name = field.name().as_str();
    if let Some(alias) = flatten.entry_columns().iter().find(|alias| alias.column == name) {
        if let Some((_, map)) = flatten.maps().into_iter().find(|(map, _)| *map == alias.map) {
            map.bind_entry(alias.key, output);
        }
    } else if let Some((_, map)) = flatten.maps().into_iter().find(|(map, _)| *map == name) {
        map.bind_map(output, data_type);
    } else if let Some((_, slot)) = flatten.slots().into_iter().find(|(slot, _)| *slot == name) {
        slot.bind(output, data_type);
    } else if let Some((_, slot)) = flatten.context_slots().into_iter().find(|(slot, _)| *slot == name) {
        slot.bind(output, data_type);
    }
    Ok(())
}

fn bind_entry(format: Format, flatten: &mut dyn Flatten, field: &Field, map: &str, output: usize) -> Result<(), Error> {
    expect_type(format, field, &schema::dictionary())?;
    let key = field.metadata().get(KEY).map_or("", String::as_str);
    let mut maps = flatten.maps();
    if let Some((_, known)) = maps.iter_mut().find(|(known, _)| *known == map) {
        known.bind_entry(key, output);
        return Ok(());
    }
    let known: Vec<_> = maps.iter().map(|(known, _)| *known).collect();
    Err(Error::MapUnknown {
        format: format.name(),
        column: field.name().clone(),
        map: map.to_owned(),
        known: if known.is_empty() {
            "no maps".to_owned()
        } else {
            known.join(" and ")
        },
    })
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

/// So that a decoder can move to the thread that owns its partition.
const _: fn() = || {
    fn assert_send<T: Send>() {}
    assert_send::<Decoder>();
    assert_send::<AnyColumn>();
};
