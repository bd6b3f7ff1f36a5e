//! Why a batch could not be folded, sealed or read. None of these is a bad record's fault: those are dead letters.

/// A plan that does not fit its rows, or bytes on the internal log that are not a pane record.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plan asks for something no accumulator does; `sql` should have refused it.
    #[error("aggregate {aggregate} over {what} is not supported")]
    Unsupported { aggregate: &'static str, what: String },
    /// Columns do not have the shape that the plan promises.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        what: &'static str,
        expected: String,
        found: String,
    },
    #[error("evaluating an expression")]
    Expression(#[source] Box<datafusion::error::DataFusionError>),
    #[error("arrow")]
    Arrow(#[from] arrow::error::ArrowError),
    /// More than one partition's commit metadata can name.
    #[error(
        "topic {topic}: {sources} sources with {sets} pane sets do not fit into the {bytes_max} bytes of commit metadata; merge views or split the topic"
    )]
    TooManySets {
        topic: String,
        sources: usize,
        sets: usize,
        bytes_max: usize,
    },
    /// ON STATE LIMIT FAIL.
    #[error(
        "view {view}: a pane of one source partition holds {most}, and ON STATE LIMIT FAIL says to stop; raise AT …, or group by fewer values"
    )]
    StateLimit { view: String, most: String },
    /// Bytes of a pane record or of commit metadata that cannot be read.
    #[error("{what} cannot be read: {reason}")]
    Unreadable { what: &'static str, reason: String },
}

impl From<datafusion::error::DataFusionError> for Error {
    fn from(error: datafusion::error::DataFusionError) -> Self {
        Self::Expression(Box::new(error))
    }
}
