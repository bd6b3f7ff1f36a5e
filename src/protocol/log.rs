//! Records of the internal `panes` log: what aggregate tells detect, and what decide tells detect.
//!
//! Each carries one header, [`KIND`], whose value is the entry's kind, and for panes a second, [`HEADER`], with JSON of [`PaneHeader`].
//! Pane values are an Arrow IPC stream; the others are JSON. The format is internal: both ends are of one version.

use serde::{Deserialize, Serialize};

use crate::message::PipelineText;

/// Name of the header that tells the kind.
pub const KIND: &str = "kind";
/// Value of [`KIND`]: an Arrow IPC stream of partial aggregates.
pub const KIND_PANES: &str = "panes";
/// Value of [`KIND`]: JSON of [`SourceProgress`].
pub const KIND_PROGRESS: &str = "progress";
/// Value of [`KIND`]: JSON of [`Note`].
pub const KIND_NOTE: &str = "note";
/// Value of [`KIND`]: JSON of [`Version`].
pub const KIND_VERSION: &str = "version";
/// Name of the header of a pane record.
pub const HEADER: &str = "pane";

/// What a pane record's columns mean and where its rows came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaneHeader {
    /// Fingerprint of the pane set: source, filter, keys, aggregates, width.
    pub set: u64,
    /// Fingerprint of the source.
    pub source: u64,
    pub source_partition: i32,
    /// The source partition's watermark at the time of these rows, floored to the set's width: they join only windows
    /// still open for it.
    pub watermark_ms: i64,
    /// The source offset that the transaction commits.
    pub source_offset: i64,
}

/// How far the partitions of a source have come, as one instance sees those it owns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceProgress {
    pub source: u64,
    /// Partitions of the source's topic; those never reported hold every window open.
    pub partition_count: i32,
    pub partitions: Vec<PartitionProgress>,
    /// The instance's wall clock, as data.
    #[serde(with = "crate::time")]
    pub clock: i64,
}

/// How far one source partition has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartitionProgress {
    pub partition: i32,
    /// `None` until the first row.
    pub watermark_ms: Option<i64>,
    pub idle: bool,
    /// The source offset that the transaction commits; a record below the last one seen is a stale writer's.
    pub source_offset: i64,
    /// Pane sets active on this partition, with the first pane each of them holds whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<ActiveSet>,
    /// The newest version of the pipelines that the partition is read for.
    #[serde(default, skip_serializing_if = "crate::message::is_zero")]
    pub version: u64,
}

/// A pane set and the start of the first pane that holds all of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveSet {
    pub set: u64,
    /// `None`: since the first row that was ever read.
    pub first_pane_ms: Option<i64>,
    /// For a set that was backfilled, the watermark at which that was done: before it older versions may have closed windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub met_ms: Option<i64>,
}

/// The pipelines at one version. Comes before every pane of a set that only this version has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub version: u64,
    pub pipelines: Vec<PipelineText>,
}

/// What decide tells detect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum Note {
    /// Learning about this target pauses.
    IncidentOpened { target: String, incident: uuid::Uuid },
    /// Learning goes on.
    IncidentClosed { target: String, incident: uuid::Uuid },
    /// A source partition that holds the watermark is excluded, by an operator's word.
    PartitionRetired { source: u64, partition: i32 },
}
