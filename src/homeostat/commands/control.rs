//! The operator's word: everything that changes what the fleet does enters through `control` or `approvals`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::Context;
use kafka::{Broker, ProducerConfig};
use protocol::{
    CloudEvent, Output, Topics, cloudevent, id,
    message::{self, Control, Decision, Mode},
};
use serde_json::{Map, Value};

use crate::{config, error::Refused, topic_reader};

/// Where the fleet is.
#[derive(clap::Args, Debug, Clone)]
pub struct Fleet {
    /// Configuration file; defaults when it is left out
    #[arg(long)]
    pub config: Option<PathBuf>,
}

impl Fleet {
    pub fn config(&self) -> Result<config::Config, Refused> {
        config::load(self.config.as_deref())
    }

    /// A client of the fleet's broker, and the fleet's topics.
    pub fn open(&self) -> anyhow::Result<(Box<dyn Broker>, Topics, config::Config)> {
        let config = self.config()?;
        let broker = kafka::Kafka::new(&config.kafka)?;
        let topics = config.topics();
        Ok((Box::new(broker), topics, config))
    }
}

/// Who speaks, and why.
#[derive(clap::Args, Debug, Clone)]
pub struct Author {
    /// Who says so
    #[arg(long, env = "USER", default_value = "operator")]
    pub by: String,
    /// Why
    #[arg(long, default_value = "")]
    pub reason: String,
}

/// Stops every new action in the fleet at once.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat pause --reason 'database maintenance'")]
pub struct Pause {
    #[command(flatten)]
    fleet: Fleet,
    #[command(flatten)]
    author: Author,
}

/// Releases the kill switch.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat resume")]
pub struct Resume {
    #[command(flatten)]
    fleet: Fleet,
    #[command(flatten)]
    author: Author,
}

/// Sets how far policies may go for a service and action.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat mode auto --service cart --action restart")]
pub struct SetMode {
    /// off, shadow, approve or auto
    #[arg(value_parser = parse_mode, required_unless_present = "withdraw")]
    mode: Option<Mode>,
    /// Takes the record back: what is less specific counts again, at last decide.default_mode
    #[arg(long, conflicts_with = "mode")]
    withdraw: bool,
    /// A service's name; * for all
    #[arg(long, default_value = "*")]
    service: String,
    /// An action's name; * for all
    #[arg(long, default_value = "*")]
    action: String,
    /// How long, from now; afterwards the record counts as withdrawn
    #[arg(long = "for", value_parser = humantime::parse_duration, conflicts_with = "withdraw")]
    duration: Option<Duration>,
    #[command(flatten)]
    fleet: Fleet,
    #[command(flatten)]
    author: Author,
}

/// Declares a maintenance window: nothing starts on the service while it lasts.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat maintenance --service cart --for 30m")]
pub struct Maintenance {
    /// A service's name; * for all
    #[arg(long, default_value = "*")]
    service: String,
    /// How long, from now
    #[arg(long = "for", value_parser = humantime::parse_duration)]
    duration: Duration,
    #[command(flatten)]
    fleet: Fleet,
    #[command(flatten)]
    author: Author,
}

/// Puts a service out of reach of every action, whatever the configuration says.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat protect billing --reason 'month end'")]
pub struct Protect {
    /// A service's name; * stands for any text
    service: String,
    /// Takes the protection back; what the configuration protects stays protected
    #[arg(long)]
    withdraw: bool,
    #[command(flatten)]
    fleet: Fleet,
    #[command(flatten)]
    author: Author,
}

/// Says that a person has looked: breakers close, and escalated incidents are considered again.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat reset cart --reason 'disk replaced'")]
pub struct Reset {
    /// A service's name; * stands for any text
    service: String,
    #[command(flatten)]
    fleet: Fleet,
    #[command(flatten)]
    author: Author,
}

/// Sets thresholds of the decide stage for a service and action, in place of what was set for the two before.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example: homeostat thresholds breaker_failures=5 verify_for=5m --service cart --action restart"
)]
pub struct Thresholds {
    /// KEY=VALUE with keys of the configuration's [decide]; a value is text or JSON
    #[arg(value_name = "KEY=VALUE", value_parser = parse_threshold, required_unless_present = "withdraw")]
    set: Vec<(String, Value)>,
    /// A service's name; * stands for any text
    #[arg(long, default_value = "*")]
    service: String,
    /// An action's name; * stands for any text
    #[arg(long, default_value = "*")]
    action: String,
    /// Takes the record back: the configuration counts again
    #[arg(long, conflicts_with = "set")]
    withdraw: bool,
    #[command(flatten)]
    fleet: Fleet,
    #[command(flatten)]
    author: Author,
}

/// Takes an approver's right to answer away, or gives it back.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat approver ada --revoke --reason 'lost her laptop'")]
pub struct SetApprover {
    /// As in the configuration's [[approver]]
    name: String,
    /// No answer of this approver counts any more, also where it was given before
    #[arg(long, required_unless_present = "restore")]
    revoke: bool,
    /// Answers count again
    #[arg(long, conflicts_with = "revoke")]
    restore: bool,
    #[command(flatten)]
    fleet: Fleet,
    #[command(flatten)]
    author: Author,
}

/// Takes a command back that is on its way: executors do not start it, and stop it where they can.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat cancel 5f0c… --reason 'deploy under way'")]
pub struct Cancel {
    /// Action id, or the beginning of one
    id: String,
    #[command(flatten)]
    fleet: Fleet,
    #[command(flatten)]
    author: Author,
}

pub fn parse_mode(text: &str) -> Result<Mode, String> {
    serde_json::from_value(text.into()).map_err(|_| "one of off, shadow, approve, auto".to_owned())
}

fn parse_threshold(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("a threshold is KEY=VALUE, as verify_for=5m")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((key.to_owned(), value))
}

/// Publishes one control record, which replaces an earlier one of its scope.
pub fn publish(broker: &dyn Broker, topics: &Topics, control: &Control, now_ms: i64) -> anyhow::Result<()> {
    let scope = control.scope();
    let mint = id::derived("control", &[&scope, &now_ms.to_string()]);
    let source = format!("/homeostat/{}/operator", topics.tenant());
    let event = CloudEvent::new(mint, topics.tenant(), &source, cloudevent::CONTROL, &scope, now_ms);
    send(broker, &event.output(topics.control(), control))
}

pub(super) fn send(broker: &dyn Broker, output: &Output) -> anyhow::Result<()> {
    let mut producer = broker.producer(&ProducerConfig::once("homeostat-cli"))?;
    producer.send(output)?;
    producer.flush().with_context(|| format!("writing to {}", output.topic))
}

/// The wall clock: commands run at the edge.
pub fn now_ms() -> i64 {
    kafka::Clock::now_ms(&kafka::SystemClock)
}

fn say(fleet: &Fleet, control: &Control, said: &str) -> anyhow::Result<()> {
    let (broker, topics, _) = fleet.open()?;
    publish(&*broker, &topics, control, now_ms())?;
    println!("{said}");
    Ok(())
}

/// Takes the record of a scope back, as a tombstone, where `withdrawn` has words for it; else says it.
fn say_or_withdraw(fleet: &Fleet, control: &Control, said: &str, withdrawn: Option<&str>) -> anyhow::Result<()> {
    let Some(withdrawn) = withdrawn else {
        return say(fleet, control, said);
    };
    let (broker, topics, _) = fleet.open()?;
    let tombstone = Output {
        topic: topics.control().into(),
        partition: None,
        key: Some(control.scope().into_bytes()),
        value: None,
        headers: Vec::new(),
    };
    send(&*broker, &tombstone)?;
    println!("{withdrawn}");
    Ok(())
}

impl Pause {
    pub fn run(&self) -> anyhow::Result<()> {
        let Author { by, reason } = self.author.clone();
        say(
            &self.fleet,
            &Control::KillSwitch {
                engaged: true,
                by,
                reason,
            },
            "paused: nothing new starts",
        )
    }
}

impl Resume {
    pub fn run(&self) -> anyhow::Result<()> {
        let Author { by, reason } = self.author.clone();
        say(
            &self.fleet,
            &Control::KillSwitch {
                engaged: false,
                by,
                reason,
            },
            "resumed",
        )
    }
}

impl SetMode {
    pub fn run(&self) -> anyhow::Result<()> {
        let Author { by, reason } = self.author.clone();
        let (service, action) = (self.service.clone(), self.action.clone());
        // Without one it is withdrawn, and what the record says does not matter.
        let mode = self.mode.unwrap_or(Mode::Off);
        let until = self.duration.map(|duration| now_ms() + duration.as_millis() as i64);
        let mut said = format!("mode of {action} on {service} is at most {mode:?}").to_lowercase();
        if let Some(until) = until {
            said += &format!(" until {}", protocol::time::to_rfc3339(until));
        }
        let control = Control::Mode {
            service,
            action,
            mode,
            until,
            by,
            reason,
        };
        let withdrawn = self.withdraw.then_some("withdrawn: what is less specific counts again");
        say_or_withdraw(&self.fleet, &control, &said, withdrawn)
    }
}

impl Maintenance {
    pub fn run(&self) -> anyhow::Result<()> {
        let Author { by, reason } = self.author.clone();
        let from = now_ms();
        let to = from + self.duration.as_millis() as i64;
        let said = format!(
            "maintenance of {} until {}",
            self.service,
            protocol::time::to_rfc3339(to)
        );
        say(
            &self.fleet,
            &Control::Maintenance {
                service: self.service.clone(),
                from,
                to,
                by,
                reason,
            },
            &said,
        )
    }
}

impl Protect {
    pub fn run(&self) -> anyhow::Result<()> {
        let Author { by, reason } = self.author.clone();
        let service = self.service.clone();
        let said = format!("protected: nothing acts on {service}");
        let control = Control::Protected { service, by, reason };
        let withdrawn = self
            .withdraw
            .then_some("withdrawn: the configuration's `protected` alone counts");
        say_or_withdraw(&self.fleet, &control, &said, withdrawn)
    }
}

impl Reset {
    pub fn run(&self) -> anyhow::Result<()> {
        let Author { by, reason } = self.author.clone();
        let service = self.service.clone();
        let said = format!("reset: breakers of {service} are closed, and what was escalated is considered again");
        let control = Control::Reset {
            service,
            by,
            at: now_ms(),
            reason,
        };
        say(&self.fleet, &control, &said)
    }
}

impl Thresholds {
    pub fn run(&self) -> anyhow::Result<()> {
        let Author { by, reason } = self.author.clone();
        let set: Map<String, Value> = self.set.iter().cloned().collect();
        let (service, action) = (self.service.clone(), self.action.clone());
        let said = format!("{action} on {service}: {}", Value::from(set.clone()));
        let decide = config::load(self.fleet.config.as_deref())?.decide;
        decide.with(&set).map_err(|reason| {
            Refused::new(format!("not set: {reason}"))
                .help("`homeostat config` prints every key of [decide] with its default")
        })?;
        let control = Control::Thresholds {
            service,
            action,
            set,
            by,
            reason,
        };
        let withdrawn = self.withdraw.then_some("withdrawn: the configuration counts again");
        say_or_withdraw(&self.fleet, &control, &said, withdrawn)
    }
}

impl SetApprover {
    pub fn run(&self) -> anyhow::Result<()> {
        let Author { by, reason } = self.author.clone();
        let said = match self.revoke {
            true => format!("revoked: no answer of {} counts any more", self.name),
            false => format!("restored: answers of {} count", self.name),
        };
        let (name, revoked) = (self.name.clone(), self.revoke);
        let control = Control::Approver {
            name,
            revoked,
            by,
            reason,
        };
        say(&self.fleet, &control, &said)
    }
}

impl Cancel {
    pub fn run(&self) -> anyhow::Result<()> {
        let (broker, topics, _) = self.fleet.open()?;
        let actions = on_record(&*broker, &topics, &self.id)?;
        let (action, target) = match actions.iter().next() {
            Some((action, target)) if actions.len() == 1 => (*action, target),
            None => {
                let refused = Refused::new(format!(
                    "no decision on record is about an action whose id begins with {:?}",
                    self.id
                ));
                return Err(refused
                    .help("`homeostat incidents --output json` has the actions of every incident")
                    .into());
            }
            Some(_) => {
                let refused = Refused::new(format!("{} actions begin with {:?}", actions.len(), self.id));
                return Err(refused.help("give more of the id").into());
            }
        };
        let Author { by, reason } = self.author.clone();
        let at = now_ms();
        publish(&*broker, &topics, &Control::Cancel { action, by, at, reason }, at)?;
        println!("cancelled: action {action} on {target}, unless it has been carried out already");
        Ok(())
    }
}

/// Actions whose ids begin so, with their targets.
fn on_record(broker: &dyn Broker, topics: &Topics, id: &str) -> anyhow::Result<BTreeMap<uuid::Uuid, String>> {
    let mut actions = BTreeMap::new();
    topic_reader::read(broker, &topics.decisions(), |record| {
        if CloudEvent::kind_of(&record) != Some(cloudevent::DECISION) {
            return;
        }
        let decision = message::read::<Decision>("decision", record.value.unwrap_or_default());
        let Ok(Decision {
            action_id: Some(action),
            target_key,
            ..
        }) = decision
        else {
            return;
        };
        if action.to_string().starts_with(id) {
            actions.insert(action, target_key);
        }
    })?;
    Ok(actions)
}
