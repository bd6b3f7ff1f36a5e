//! `homeostat`: exit code 0 is fine, 1 a finding, 2 could not run.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use homeostat::{
    commands::{
        apply, approve, backtest, choose, control, demo, detect, diff, explain_decision, keys, model, preview, replay,
        run, schemas, status, suggest, test, validate,
    },
    error::{Differs, Found, NotHealed, Refused},
};

/// librdkafka allocates in one thread and frees in another, which glibc's allocator pays for with lock waits: this one
/// serves the C library too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The stream processor that keeps services healthy.
#[derive(Parser)]
#[command(name = "homeostat", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Run),
    Demo(demo::Demo),
    Validate(validate::Validate),
    Explain(validate::Explain),
    Detect(detect::Detect),
    Diff(diff::Diff),
    Apply(apply::Apply),
    Rollback(apply::Rollback),
    Test(test::Test),
    Replay(replay::Replay),
    Preview(preview::Preview),
    Status(status::Status),
    Incidents(status::Incidents),
    Approve(approve::Approve),
    Deny(approve::Deny),
    Approver(control::SetApprover),
    Cancel(control::Cancel),
    Pause(control::Pause),
    Resume(control::Resume),
    Mode(control::SetMode),
    Suggest(suggest::Suggest),
    Maintenance(control::Maintenance),
    Protect(control::Protect),
    Thresholds(control::Thresholds),
    Reset(control::Reset),
    Train(choose::Train),
    Choose(choose::Choose),
    Keys(keys::Keys),
    Model(model::Model),
    Backtest(backtest::Backtest),
    ExplainDecision(explain_decision::ExplainDecision),
    Schemas(schemas::Schemas),
    /// Prints every configuration key with its default.
    Config,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Validate(command) => command.run(),
        Command::Explain(command) => command.run(),
        Command::Detect(command) => command.run(),
        Command::Diff(command) => command.run(),
        Command::Apply(command) => command.run(),
        Command::Rollback(command) => command.run(),
        Command::Test(command) => command.run(),
        Command::Replay(command) => command.run(),
        Command::Preview(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Incidents(command) => command.run(),
        Command::Approve(command) => command.run(),
        Command::Deny(command) => command.run(),
        Command::Approver(command) => command.run(),
        Command::Cancel(command) => command.run(),
        Command::Pause(command) => command.run(),
        Command::Resume(command) => command.run(),
        Command::Mode(command) => command.run(),
        Command::Suggest(command) => command.run(),
        Command::Maintenance(command) => command.run(),
        Command::Protect(command) => command.run(),
        Command::Thresholds(command) => command.run(),
        Command::Reset(command) => command.run(),
        Command::Train(command) => command.run(),
        Command::Choose(command) => command.run(),
        Command::Keys(command) => command.run(),
        Command::Model(command) => command.run(),
        Command::Backtest(command) => command.run(),
        Command::ExplainDecision(command) => command.run(),
        Command::Schemas(command) => command.run(),
        Command::Config => {
            print!("{}", homeostat::config::DEFAULTS);
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<NotHealed>() || error.is::<Differs>() => ExitCode::from(1),
        Err(error) if error.is::<Found>() => ExitCode::from(2),
        Err(error) => {
            match error.downcast_ref::<Refused>() {
                Some(refused) => eprintln!("{}", refused.text()),
                None => eprintln!("error: {error:#}"),
            }
            let broker_is_away = |cause: &(dyn std::error::Error + 'static)| {
                let error = cause.downcast_ref::<kafka::Error>();
                error.is_some_and(|error| error.class() == kafka::Class::Retriable)
            };
            if error.chain().any(broker_is_away) {
                eprintln!(
                    "  help: is the broker up? KAFKA_BOOTSTRAP, or kafka.bootstrap in the configuration, says where it is"
                );
            }
            ExitCode::from(2)
        }
    }
}
