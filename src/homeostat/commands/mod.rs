//! What `homeostat` can be told to do, one file each.

pub mod apply;
pub mod approve;
pub mod backtest;
pub mod choose;
pub mod control;
pub mod demo;
pub mod detect;
pub mod diff;
pub mod explain_decision;
pub mod keys;
pub mod model;
pub mod preview;
pub mod recording;
pub mod replay;
pub mod run;
pub mod schemas;
pub mod status;
pub mod suggest;
pub mod test;
pub mod validate;

use std::{fs, io, path::Path};

use anyhow::Context;
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

/// Writes a file whole or not at all: beside its place, then renamed. A pipe or device is written to as it is.
pub fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let whole = || -> io::Result<()> {
        if fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
            return fs::write(path, bytes);
        }
        let mut name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let beside = path.with_file_name(name);
        let done = fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, path));
        if done.is_err() {
            // What could not be finished leaves nothing; that it may not even have begun changes nothing.
            let _ = fs::remove_file(&beside);
        }
        done
    };
    whole().with_context(|| format!("writing {}", path.display()))
}
