//! What `homeostat` can be told to do, one file each.

pub mod control;
pub mod demo;
pub mod diff;
pub mod replay;
pub mod run;
pub mod schemas;
pub mod status;
pub mod test;
pub mod validate;

use serde::Serialize;

/// How a command answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// One JSON value on a line of its own.
pub fn print_json(value: &impl Serialize) {
    println!(
        "{}",
        serde_json::to_string(value).expect("answers have string keys and finite numbers")
    );
}
