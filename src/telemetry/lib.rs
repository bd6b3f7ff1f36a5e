//! Bytes of Kafka records to Arrow columns: OTLP metrics, logs and spans, JSON with declared columns, heartbeats, and what
//! Prometheus, Telegraf and Alertmanager write. And, the other way, gauges as OTLP ([`write_gauges`]).
//!
//! **Owns** the formats: which columns each has ([`schema`]), and how they are read ([`Decoder`]). Only the columns asked
//! for are built; a single entry of an attribute map can be asked for as a column ([`map_entry`]), so that the map is not.
//!
//! **Promises.** A record gives all its rows or none. What is rejected comes with a reason that names the byte or the
//! field. The same records give the same rows, however they are split into batches. No input makes it panic, recurse
//! without end or allocate beyond a small multiple of the record, the projection and the rows' own strings. Strings that
//! repeat are dictionary columns over dictionaries that are kept from batch to batch and bounded.
//!
//! **Does not know** topics, SQL, time other than what the records carry, or what the rows are for. A record without an
//! event time is decoded with NULL there; who needs the time rejects it.
//!
//! **Fails** with [`Error`] when a projection cannot be served, with [`Reject`] when a record cannot be read. Unknown
//! fields are skipped. Bytes inside fields that no column reads are not looked at: a record may pass here that a full
//! parser of its format refuses.

mod alertmanager;
// The fuzzer's body names this crate as everybody else does.
#[cfg(test)]
extern crate self as telemetry;

mod attributes;
mod column;
mod decoder;
mod error;
mod flatten;
mod gauge;
mod heartbeat;
mod interner;
mod json;
mod otlp;
mod prometheus;
mod record;
mod schema;
mod telegraf;
#[cfg(test)]
mod testing;
mod time;
mod wire;

pub use decoder::{Decoder, Rows};
pub use error::{Error, Reject};
pub use gauge::{Gauge, GaugeValue, write_gauges};
pub use record::{Headers, RecordMeta};
pub use schema::{Format, dictionary, map_entry, metadata_column, schema, string_map, timestamp_ms};
