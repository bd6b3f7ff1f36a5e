//! Structured logs on stderr: stdout belongs to answers.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::{
    config::{LogConfig, LogFormat},
    error::Refused,
};

/// Starts logging; `RUST_LOG` overrides the configured filter.
pub fn start(config: &LogConfig) -> Result<(), Refused> {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| config.filter.clone());
    let filter = EnvFilter::try_new(&filter).map_err(|error| {
        Refused::new(format!("log filter {filter:?}: {error}")).help("for example \"info,kafka=debug\"")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match config.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| Refused::new(format!("logging cannot start: {error}")))
}
