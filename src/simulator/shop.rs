//! `homeostat-shop`: the processes of the demonstration. `homeostat demo` starts them; people need not.

use std::{os::unix::process::CommandExt, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};
use rustix::process::{Signal, set_parent_process_death_signal};
use simulator::{service, visitors};

/// One process of the shop that `homeostat demo` breaks and heals.
#[derive(Parser)]
#[command(name = "homeostat-shop", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Is a service of the shop
    Serve {
        /// Which one
        #[arg(long)]
        service: String,
        /// The shop's folder: addresses, control channel, logs
        #[arg(long)]
        folder: PathBuf,
        /// Kafka to publish telemetry to
        #[arg(long, env = "KAFKA_BOOTSTRAP")]
        bootstrap: String,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// The action that started this process
        #[arg(long, env = "HOMEOSTAT_ACTION_ID")]
        action_id: Option<String>,
    },
    /// Is the visitors of the shop
    Visit {
        #[arg(long)]
        folder: PathBuf,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Becomes another program that ends when the process that started it ends
    WithParent {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve {
            service,
            folder,
            bootstrap,
            seed,
            action_id,
        } => {
            start_log()?;
            let broker = kafka::Kafka::at(&bootstrap)?;
            let options = service::Options {
                service,
                folder,
                seed,
                action_id,
            };
            Ok(service::run(&options, &broker)?)
        }
        Command::Visit { folder, seed } => {
            start_log()?;
            Ok(visitors::run(folder, seed)?)
        }
        Command::WithParent { command } => {
            set_parent_process_death_signal(Some(Signal::KILL)).context("prctl")?;
            let (program, arguments) = command.split_first().context("no program was named")?;
            // The signal survives `exec`.
            let error = std::process::Command::new(program).args(arguments).exec();
            Err(error).with_context(|| format!("cannot start {program}"))
        }
    }
}

fn start_log() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new("info"))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init()
        .map_err(|error| anyhow::anyhow!("logging cannot start: {error}"))
}
