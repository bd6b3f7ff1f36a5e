//! One program for all tests that cross crates, most of them on a real Kafka.

// A test that cannot go on fails right there.
#![allow(clippy::unwrap_used)]

mod acceptance;
mod classes;
mod commands;
mod contract;
mod delivery;
mod demo;
mod edits;
mod examples;
mod fleet;
mod front_door;
mod kill;
mod language;
mod live;
mod programs;
mod recovery;
mod sinks;
mod sources;
mod starter;
mod workload;
