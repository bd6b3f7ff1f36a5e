//! What can go wrong with a broker, shaped by what the loop does next: try again, abort and restore, start over, or stop.

use protocol::{StageError, TopicPartition};

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing happened; the same call may succeed later.
    Retriable,
    /// The transaction cannot be committed: abort it and restore everything.
    Abort,
    /// The producer is of no further use (fenced, or in an unknown state): make another and restore everything.
    Fatal,
    /// The same input gives the same failure: stop and say so.
    Stop,
}

/// A failed broker operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that the client refuses.
    #[error("configuration: {0}")]
    Config(String),
    #[error(
        "topic {topic} has {actual} partitions where {wanted} are configured: set the configuration to {actual}, \
         or use another topic prefix"
    )]
    PartitionCount { topic: String, actual: i32, wanted: i32 },
    #[error("topic {0} does not exist on the broker: create it, or correct its name in the pipeline")]
    UnknownTopic(String),
    #[error("{what}: {reason}")]
    Retriable { what: &'static str, reason: String },
    #[error("{what}: {reason}")]
    Abort { what: &'static str, reason: String },
    #[error("{what}: {reason}")]
    Fatal { what: &'static str, reason: String },
    /// The broker will never take this record or request, whoever sends it.
    #[error("{what}: {reason}")]
    Rejected { what: &'static str, reason: String },
    #[error("the {broker} broker has no {what}")]
    Unsupported { broker: &'static str, what: &'static str },
    #[error("{0} is not assigned to this consumer")]
    NotAssigned(TopicPartition),
    #[error("stage {stage} cannot go on")]
    Stage {
        stage: &'static str,
        #[source]
        source: StageError,
    },
    /// A crash point of a simulation was reached: the caller drops the loop as if its process had been killed.
    #[error("crashed at {0}")]
    Crashed(&'static str),
}

impl Error {
    pub fn class(&self) -> Class {
        match self {
            Self::Retriable { .. } => Class::Retriable,
            Self::Abort { .. } | Self::NotAssigned(_) => Class::Abort,
            Self::Fatal { .. } => Class::Fatal,
            Self::Config(_)
            | Self::PartitionCount { .. }
            | Self::UnknownTopic(_)
            | Self::Rejected { .. }
            | Self::Unsupported { .. }
            | Self::Stage { .. }
            | Self::Crashed(_) => Class::Stop,
        }
    }

    pub fn retriable(what: &'static str, reason: impl ToString) -> Self {
        Self::Retriable {
            what,
            reason: reason.to_string(),
        }
    }

    pub fn abort(what: &'static str, reason: impl ToString) -> Self {
        Self::Abort {
            what,
            reason: reason.to_string(),
        }
    }

    pub fn fatal(what: &'static str, reason: impl ToString) -> Self {
        Self::Fatal {
            what,
            reason: reason.to_string(),
        }
    }

    pub fn rejected(what: &'static str, reason: impl ToString) -> Self {
        Self::Rejected {
            what,
            reason: reason.to_string(),
        }
    }
}
