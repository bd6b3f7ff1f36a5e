//! Carries out commands from the `actions` topic and reports to `outcomes`: verify, claim, act, report, commit.
//!
//! Owns the last word: whatever a command says, only what this process's own allow-list admits is done, only while the
//! kill switch is not engaged, never after its expiry, and at most once per action id, through any crash. It knows
//! nothing of telemetry, of pipelines or of why something should be done, and links none of that.
//! What is wrong with a command becomes an outcome; what is wrong with this process is an [`Error`] and ends it, with
//! nothing committed that is not finished.
//!
//! The walk of one command: [`run`] polls it, [`command`] reads it, [`pool`] queues it under its target, [`worker`]
//! carries it out: [`trust`], [`allow`], [`control`], [`admission`] and [`budget`] say whether, the [`ledger`] whether it was done before, an
//! [`adapter`] does it, [`report`] says so, and [`offsets`] tells what may be committed.

pub mod adapter;
pub mod admission;
pub mod allow;
pub mod budget;
pub mod clock;
pub mod command;
pub mod config;
pub mod control;
pub mod crash;
pub mod error;
pub mod ledger;
pub mod offsets;
pub mod pool;
pub mod report;
pub mod run;
pub mod trust;
pub mod watch;
pub mod worker;

pub use config::Config;
pub use error::Error;
