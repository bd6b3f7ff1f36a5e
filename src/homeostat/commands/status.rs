//! `homeostat status` and `homeostat incidents`: what is going on, read from the fleet's topics.

use std::collections::BTreeMap;

use protocol::{
    CloudEvent, cloudevent,
    message::{self, Control, Incident, IncidentState},
};

use super::{
    Output,
    approve::waiting,
    control::{Fleet, now_ms},
    print_json,
};
use crate::topic_reader;

/// Shows open incidents, what waits for approval, and the control records in force.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat status --output json")]
pub struct Status {
    #[command(flatten)]
    fleet: Fleet,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// Lists incidents, the latest state of each.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat incidents --all")]
pub struct Incidents {
    /// Closed ones too
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    fleet: Fleet,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// Incidents on record, the latest state of each; `all` also those that are closed.
pub(super) fn incidents(broker: &dyn kafka::Broker, topic: &str, all: bool) -> anyhow::Result<Vec<Incident>> {
    let mut latest: BTreeMap<uuid::Uuid, Incident> = BTreeMap::new();
    topic_reader::read(broker, topic, |record| {
        if CloudEvent::kind_of(&record) != Some(cloudevent::INCIDENT) {
            return;
        }
        if let Some(incident) = record
            .value
            .and_then(|value| message::read::<Incident>("incident", value).ok())
        {
            latest.insert(incident.incident_id, incident);
        }
    })?;
    let mut found: Vec<Incident> = latest
        .into_values()
        .filter(|incident| all || incident.state != IncidentState::Closed)
        .collect();
    found.sort_by_key(|incident| incident.opened_at);
    Ok(found)
}

fn line(incident: &Incident) -> String {
    format!(
        "{}  {:<16} {:<40} {}.{}  {}",
        protocol::time::to_rfc3339(incident.opened_at),
        format!("{:?}", incident.state).to_lowercase(),
        incident.target_key,
        incident.pipeline,
        incident.policy,
        incident.reason
    )
}

impl Incidents {
    pub fn run(&self) -> anyhow::Result<()> {
        let (broker, topics, _) = self.fleet.open()?;
        let found = incidents(&*broker, &topics.incidents(), self.all)?;
        match self.output {
            Output::Json => found.iter().for_each(print_json),
            Output::Text if found.is_empty() => println!("no incidents"),
            Output::Text => found.iter().for_each(|incident| println!("{}", line(incident))),
        }
        Ok(())
    }
}

impl Status {
    pub fn run(&self) -> anyhow::Result<()> {
        let (broker, topics, _) = self.fleet.open()?;
        let open = incidents(&*broker, &topics.incidents(), false)?;
        let waiting = waiting(&*broker, &topics, now_ms())?;
        let mut controls: BTreeMap<String, Control> = BTreeMap::new();
        topic_reader::read(&*broker, &topics.control(), |record| {
            let Some(scope) = record.key.and_then(|key| std::str::from_utf8(key).ok()) else {
                return;
            };
            match record
                .value
                .and_then(|value| message::read::<Control>("control", value).ok())
            {
                Some(control) => controls.insert(scope.to_owned(), control),
                None => controls.remove(scope),
            };
        })?;
        if self.output == Output::Json {
            print_json(&serde_json::json!({"incidents": open, "waiting": waiting, "control": controls}));
            return Ok(());
        }
        println!(
            "fleet {}: {} open incidents, {} waiting for approval",
            topics.tenant(),
            open.len(),
            waiting.len()
        );
        open.iter().for_each(|incident| println!("  {}", line(incident)));
        for request in &waiting {
            let action = request.action.as_ref().map_or("action", |action| action.kind.as_str());
            let until = protocol::time::to_rfc3339(request.expires_at);
            println!(
                "  waiting: {action} on {} until {until}: homeostat approve {}",
                request.target_key, request.approval_id
            );
        }
        // What was said once about one command is no state of the fleet.
        controls.retain(|_, control| !matches!(control, Control::Cancel { .. }));
        for (scope, control) in &controls {
            println!("  control {scope}: {}", serde_json::to_string(control)?);
        }
        Ok(())
    }
}
