//! `homeostat suggest`: modes that the record speaks for. It changes nothing.

use std::{collections::BTreeSet, path::PathBuf};

use protocol::{cloudevent, message::Mode};
use remediation::backtest::Past;

use super::{Output, control::Fleet, print_json, recording::Recording};

/// Says which services and actions the record would trust further, or less, and with what command.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat suggest")]
pub struct Suggest {
    /// Records saved by `homeostat backtest --save`, instead of the fleet's topics
    #[arg(long)]
    input: Option<PathBuf>,
    #[command(flatten)]
    fleet: Fleet,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

impl Suggest {
    pub fn run(&self) -> anyhow::Result<()> {
        let recording = Recording::open(&self.fleet, self.input.as_deref())?;
        let denied: BTreeSet<uuid::Uuid> = recording
            .past
            .iter()
            .filter_map(|recorded| match &recorded.message {
                Past::Approval { event, data } if event.kind == cloudevent::APPROVAL_DENIED => Some(data.action_id),
                _ => None,
            })
            .collect();
        let found = remediation::suggest(&recording.decisions, &recording.verdicts, &denied);
        for suggestion in &found {
            if self.output == Output::Json {
                print_json(suggestion);
                continue;
            }
            let (service, action) = (&suggestion.service, &suggestion.action);
            let (from, to) = (word(suggestion.from), word(suggestion.to));
            println!("{action} on {service}: {from} -> {to}: {}", suggestion.why);
            println!("  homeostat mode {to} --service {service} --action {action}");
        }
        if found.is_empty() && self.output == Output::Text {
            println!(
                "nothing to suggest from {} decisions and {} verdicts",
                recording.decisions.len(),
                recording.verdicts.len()
            );
        }
        Ok(())
    }
}

fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::Off => "off",
        Mode::Shadow => "shadow",
        Mode::Approve => "approve",
        Mode::Auto => "auto",
    }
}
