//! What a record has beside its value, and the METADATA columns that read it.

#[cfg(test)]
mod tests;

use arrow::{
    array::ArrayRef,
    datatypes::{DataType, SchemaRef, TimeUnit},
};

use crate::{
    column::{AnyColumn, Map, REPEAT_BYTES_MAX},
    error::{Error, Fault},
    schema::METADATA,
    time,
};

/// A record without its value.
#[derive(Clone, Copy)]
pub struct RecordMeta<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    /// The record's Kafka timestamp, milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
    /// When the log took the record: the broker's append time where the topic has it, else the time of receipt that the
    /// aggregate stage has written down.
    pub append_ms: i64,
    pub key: Option<&'a [u8]>,
    pub headers: &'a dyn Headers,
}

impl RecordMeta<'_> {
    /// Offset and time; no key, no headers.
    pub fn new(offset: i64, timestamp_ms: i64) -> Self {
        Self {
            topic: "",
            partition: 0,
            offset,
            timestamp_ms,
            append_ms: timestamp_ms,
            key: None,
            headers: &NO_HEADERS,
        }
    }
}

/// The headers of a record, however they are held.
pub trait Headers {
    /// Shows every header, in the order in which they were written.
    fn for_each(&self, show: &mut dyn FnMut(&str, &[u8]));
}

static NO_HEADERS: [(&str, &[u8]); 0] = [];

impl<const N: usize> Headers for [(&str, &[u8]); N] {
    fn for_each(&self, show: &mut dyn FnMut(&str, &[u8])) {
        self.iter().for_each(|(name, value)| show(name, value));
    }
}

/// The columns that come from the record rather than from its value.
pub(crate) struct RecordColumns {
    columns: Vec<RecordColumn>,
    scratch: Vec<u8>,
}

struct RecordColumn {
    property: Property,
    column: AnyColumn,
    data_type: DataType,
    output: usize,
}

enum Property {
    Key,
    Topic,
    Partition,
    Offset,
    Timestamp,
    Headers,
    Header(String),
}

const KNOWN: &str = "key, topic, partition, offset, timestamp, headers and header:NAME";

impl RecordColumns {
    pub fn new(schema: &SchemaRef) -> Result<Self, Error> {
        let mut columns = Vec::new();
        for (output, field) in schema.fields().iter().enumerate() {
            let Some(name) = field.metadata().get(METADATA) else {
                continue;
            };
            let unknown = || Error::MetadataUnknown {
                column: field.name().clone(),
                property: name.clone(),
                known: KNOWN,
            };
            let property = Property::parse(name).ok_or_else(unknown)?;
            let column = AnyColumn::new(field.data_type()).filter(|column| property.fits(column));
            columns.push(RecordColumn {
                column: column.ok_or_else(|| Error::TypeUnusable {
                    column: field.name().clone(),
                    declared: field.data_type().clone(),
                    usable: property.usable_types(),
                })?,
                property,
                data_type: field.data_type().clone(),
                output,
            });
        }
        Ok(Self {
            columns,
            scratch: Vec::new(),
        })
    }

    /// Whether some column is made of headers.
    pub fn reads_headers(&self) -> bool {
        let mut columns = self.columns.iter();
        columns.any(|column| matches!(column.property, Property::Headers | Property::Header(_)))
    }

    /// The record's properties in rows `from..to`.
    #[inline]
    pub fn fill(&mut self, from: usize, to: usize, record: &RecordMeta<'_>) -> Result<(), Fault> {
        if self.columns.is_empty() || from == to {
            return Ok(());
        }
        self.columns
            .iter_mut()
            .try_for_each(|column| column.fill(from, to, record, &mut self.scratch))
    }

    pub fn truncate(&mut self, rows: usize) {
        self.columns.iter_mut().for_each(|column| column.column.truncate(rows));
    }

    pub fn finish(&mut self, rows: usize) -> impl Iterator<Item = (usize, ArrayRef, u64)> {
        self.columns.iter_mut().map(move |column| {
            let (array, generation) = column.column.finish(rows, &column.data_type);
            (column.output, array, generation)
        })
    }
}

impl RecordColumn {
    fn fill(&mut self, from: usize, to: usize, record: &RecordMeta<'_>, scratch: &mut Vec<u8>) -> Result<(), Fault> {
        match (&self.property, &mut self.column) {
            (Property::Headers, AnyColumn::Map(map)) => return fill_headers(map, from, to, record),
            (Property::Offset, AnyColumn::Int64(column)) => column.fill(from, to, record.offset),
            (Property::Partition, AnyColumn::Int64(column)) => column.fill(from, to, i64::from(record.partition)),
            (Property::Partition, AnyColumn::Int32(column)) => column.fill(from, to, record.partition),
            (Property::Timestamp, AnyColumn::Int64(column)) => column.fill(from, to, record.timestamp_ms),
            (Property::Timestamp, AnyColumn::Timestamp(column, unit)) => {
                column.fill(from, to, from_ms(record.timestamp_ms, *unit));
            }
            (Property::Topic, column) => return fill_bytes(column, from, to, record.topic.as_bytes(), scratch),
            (Property::Key, column) => {
                return record
                    .key
                    .map_or(Ok(()), |key| fill_bytes(column, from, to, key, scratch));
            }
            (Property::Header(wanted), column) => {
                // The last of that name, as Kafka's own clients read it.
                let mut found = None;
                record.headers.for_each(&mut |name, value| {
                    if name == wanted {
                        found = Some(value.to_vec());
                    }
                });
                return found.map_or(Ok(()), |value| fill_bytes(column, from, to, &value, scratch));
            }
            _ => {}
        }
        Ok(())
    }
}

/// Bytes as they are, or as text; what is not UTF-8 becomes hexadecimal digits, since a key may be raw bytes (the
/// Collector's hash of resource attributes is) and must not cost the record.
fn fill_bytes(
    column: &mut AnyColumn,
    from: usize,
    to: usize,
    bytes: &[u8],
    scratch: &mut Vec<u8>,
) -> Result<(), Fault> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.as_bytes(),
        Err(_) => {
            scratch.clear();
            scratch.extend(bytes.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()));
            scratch
        }
    };
    match column {
        AnyColumn::Dictionary(column) => {
            column.set(from, text)?;
            column.repeat(to);
        }
        AnyColumn::Text(column) => {
            column.set(from, text)?;
            column.repeat(to)?;
        }
        AnyColumn::Bytes(column) => {
            column.set_bytes(from, bytes)?;
            column.repeat(to)?;
        }
        _ => {}
    }
    Ok(())
}

fn fill_headers(map: &mut Map, from: usize, to: usize, record: &RecordMeta<'_>) -> Result<(), Fault> {
    let mut headers = Vec::new();
    record
        .headers
        .for_each(&mut |name, value| headers.push((name.to_owned(), value.to_vec())));
    map.open(from);
    // The map keeps the first of equal keys, a header's last value counts.
    for (name, value) in headers.iter().rev() {
        map.entry(name.as_bytes(), Some(String::from_utf8_lossy(value).as_bytes()))?;
    }
    map.close();
    let mut budget = REPEAT_BYTES_MAX;
    map.repeat(to, &mut budget)
}

fn from_ms(ms: i64, unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => ms.div_euclid(1000),
        TimeUnit::Millisecond => ms,
        _ => ms.saturating_mul(time::per_second(unit) / 1000),
    }
}

impl Property {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "key" => Self::Key,
            "topic" => Self::Topic,
            "partition" => Self::Partition,
            "offset" => Self::Offset,
            "timestamp" => Self::Timestamp,
            "headers" => Self::Headers,
            _ => Self::Header(name.strip_prefix("header:")?.to_owned()),
        })
    }

    fn fits(&self, column: &AnyColumn) -> bool {
        match self {
            Self::Key | Self::Topic | Self::Header(_) => {
                matches!(
                    column,
                    AnyColumn::Dictionary(_) | AnyColumn::Text(_) | AnyColumn::Bytes(_)
                )
            }
            Self::Partition => matches!(column, AnyColumn::Int64(_) | AnyColumn::Int32(_)),
            Self::Offset => matches!(column, AnyColumn::Int64(_)),
            Self::Timestamp => matches!(column, AnyColumn::Int64(_) | AnyColumn::Timestamp(..)),
            Self::Headers => matches!(column, AnyColumn::Map(_)),
        }
    }

    fn usable_types(&self) -> &'static str {
        match self {
            Self::Key | Self::Topic | Self::Header(_) => "STRING or BYTES",
            Self::Partition => "INT or BIGINT",
            Self::Offset => "BIGINT",
            Self::Timestamp => "TIMESTAMP(3) or BIGINT",
            Self::Headers => "MAP<STRING, STRING>",
        }
    }
}
