//! What travels: records, topics, identifiers and messages, and the contract between a stage and the loop that runs it.
//!
//! Owns the words every other crate shares. Promises that the same message gives the same bytes and the same ids.
//! Does no I/O, reads no clock, draws no randomness; knows nothing of Kafka clients, Arrow or SQL.
//! Fails only with [`Error`]: bytes that are not the message they claim to be.

pub mod cloudevent;
mod dead_letter;
pub mod error;
pub mod id;
pub mod log;
pub mod message;
pub mod record;
pub mod schema;
pub mod signature;
pub mod stage;
pub mod target;
pub mod time;
pub mod topic;

pub use cloudevent::CloudEvent;
pub use dead_letter::dead_letter;
pub use error::Error;
pub use record::{Batch, Output, Outputs, Record, TimestampKind, TopicPartition};
pub use stage::{Assignment, Clock, Committed, Progress, SidePosition, Stage, StageError, Start};
pub use target::Target;
pub use topic::Topics;

#[cfg(test)]
mod tests;
