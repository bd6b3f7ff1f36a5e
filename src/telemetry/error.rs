//! What can go wrong: a projection that the format cannot serve, and a record that does not decode.

use std::borrow::Cow;

use arrow::datatypes::DataType;

/// A projection that a decoder cannot serve. The definition is wrong, no record is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("format {format} has no column {column:?}; it has {known}")]
    ColumnUnknown {
        format: &'static str,
        column: String,
        known: String,
    },
    #[error("column {column:?} is declared as {declared}, but format {format} delivers {delivered}")]
    ColumnType {
        format: &'static str,
        column: String,
        declared: DataType,
        delivered: DataType,
    },
    #[error("column {column:?} stands twice in the projection")]
    ColumnTwice { column: String },
    #[error("column {column:?} cannot be NOT NULL: format {format} leaves out what a record leaves out")]
    ColumnNotNull { format: &'static str, column: String },
    #[error("column {column:?} has type {declared}, which JSON cannot be read into; use {usable}")]
    TypeUnusable {
        column: String,
        declared: DataType,
        usable: &'static str,
    },
    #[error("column {column:?} reads {inner}, which lies inside the value that column {outer:?} reads")]
    PathInsidePath {
        column: String,
        inner: String,
        outer: String,
    },
    #[error("column {column:?} reads an entry of map {map:?}; format {format} has {known}")]
    MapUnknown {
        format: &'static str,
        column: String,
        map: String,
        known: String,
    },
    #[error("column {column:?} reads {property:?} of the record; a record has {known}")]
    MetadataUnknown {
        column: String,
        property: String,
        known: &'static str,
    },
}

/// Why a record was rejected, whole. Of a rejected record no row is kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Reject {
    /// For people: what, in which field, at which byte.
    pub reason: String,
}

/// A fault on its way up, in one word so that results stay in registers. Allocates: faults are the rare case.
#[derive(Debug)]
pub(crate) struct Fault(Box<FaultBody>);

#[derive(Debug)]
struct FaultBody {
    reason: Cow<'static, str>,
    field: Option<String>,
    /// Address of the offending byte. Nested readers know only their own slice; the distance to the record's first
    /// byte is taken at the end.
    address: Option<usize>,
}

impl Fault {
    #[cold]
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(FaultBody {
            reason: reason.into(),
            field: None,
            address: None,
        }))
    }

    /// A fault at the first byte of `rest`.
    #[cold]
    pub fn at(reason: impl Into<Cow<'static, str>>, rest: &[u8]) -> Self {
        let mut fault = Self::new(reason);
        fault.0.address = Some(rest.as_ptr() as usize);
        fault
    }

    /// Names the field, unless one nearer to the fault has been named.
    #[cold]
    pub fn in_field(mut self, field: &str) -> Self {
        self.0.field.get_or_insert_with(|| field.to_owned());
        self
    }

    /// The rejection of the record that holds `value`.
    #[cold]
    pub fn reject(self, value: &[u8]) -> Reject {
        let FaultBody { reason, field, address } = *self.0;
        let start = value.as_ptr() as usize;
        let position = address
            .and_then(|address| address.checked_sub(start))
            .filter(|position| *position <= value.len());
        let mut text = field.map_or_else(String::new, |field| format!("field {field:?}: "));
        text.push_str(&reason);
        if let Some(position) = position {
            text.push_str(&format!(" at byte {position}"));
        }
        Reject { reason: text }
    }
}
