//! `homeostat explain-decision`: why something was done, or was not.

use std::{collections::BTreeMap, path::PathBuf};

use protocol::message::Anomaly;
use remediation::backtest::Past;

use super::{Output, control::Fleet, print_json, recording::Recording};
use crate::error::Refused;

/// Says in words why an action was taken or refused, and what came of it.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat explain-decision 5f0c…")]
pub struct ExplainDecision {
    /// Decision, action or incident id, or the beginning of one
    id: String,
    /// Records saved by `homeostat backtest --save`, instead of the fleet's topics
    #[arg(long)]
    input: Option<PathBuf>,
    #[command(flatten)]
    fleet: Fleet,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

impl ExplainDecision {
    pub fn run(&self) -> anyhow::Result<()> {
        let recording = Recording::open(&self.fleet, self.input.as_deref())?;
        let anomalies: BTreeMap<uuid::Uuid, &Anomaly> = recording
            .past
            .iter()
            .filter_map(|recorded| match &recorded.message {
                Past::Anomaly { event, data } => Some((event.id, data)),
                _ => None,
            })
            .collect();
        let named = |id: uuid::Uuid| !self.id.is_empty() && id.to_string().starts_with(&self.id);
        let mut found = 0;
        for decision in &recording.decisions {
            let ids = [
                Some(decision.decision_id),
                Some(decision.incident_id),
                decision.action_id,
            ];
            if !ids.into_iter().flatten().any(named) {
                continue;
            }
            found += 1;
            let of_action = |id| recording.verdicts.iter().find(|verdict| verdict.action_id == id);
            let verdict = decision.action_id.and_then(of_action);
            match self.output {
                Output::Json => {
                    let evidence: Vec<&Anomaly> = decision
                        .evidence
                        .iter()
                        .filter_map(|id| anomalies.get(id).copied())
                        .collect();
                    print_json(&serde_json::json!({"decision": decision, "evidence": evidence, "verdict": verdict}));
                }
                Output::Text => {
                    println!("decision {}", decision.decision_id);
                    for line in remediation::explain(decision, verdict, |id| anomalies.get(&id).copied()) {
                        println!("  {line}");
                    }
                }
            }
        }
        if found > 0 {
            return Ok(());
        }
        let refused = Refused::new(format!("no decision with an id that begins with {:?}", self.id));
        Err(refused.help("`homeostat incidents --all` lists incidents").into())
    }
}
