//! The processor and its command line: the only crate that composes the others.
//!
//! Owns configuration, the three stages as the loop runs them, and what an operator types. Decides nothing itself.
//! Input that cannot be used is refused with [`error::Refused`] before anything is applied.

pub mod commands;
pub mod config;
pub mod error;
pub mod log;
pub mod observe;
pub mod pipelines;
pub mod preview;
pub mod processor;
pub mod replay;
pub mod signals;
pub mod stages;
pub mod topic_reader;
pub mod trust;
pub mod versions;
