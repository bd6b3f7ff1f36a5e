//! Panes and windows: the aggregate stage, and the half of detect that assembles windows. See `src/README.md`.
//!
//! Owns what one row does to a window: partial aggregates ([`accumulate`]), the panes they live in ([`panes`]), tables beside them ([`table`]), and the
//! plan both run ([`spec`]). Promises that the same rows in the same order give the same bytes, and that partials merged
//! in canonical order give what a batch query over all rows gives. Knows nothing of brokers, decoders or SQL text.
//! Fails with [`Error`], which never means a bad record.

pub mod accumulate;
pub mod aggregate;
pub mod assemble;
pub mod error;
pub mod expression;
pub mod json;
pub mod panes;
pub mod spec;
pub mod table;
pub mod version;

pub use accumulate::{Accumulator, accumulator};
pub use error::Error;
