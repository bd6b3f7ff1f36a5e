//! The operator's word: everything that changes what the fleet does enters through `control` or `approvals`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;
use kafka::{Broker, ProducerConfig};
use protocol::{
    CloudEvent, Topics, cloudevent, id,
    message::{self, ApprovalRecord, Control, Decision, Incident, IncidentState, Mode},
};

use super::{keys, status};
use crate::{config, error::Refused, topic_reader};

/// Where the fleet is.
#[derive(clap::Args, Debug, Clone)]
pub struct Fleet {
    /// Configuration file; defaults when it is left out
    #[arg(long)]
    pub config: Option<PathBuf>,
}

impl Fleet {
    /// A client of the fleet's broker, and the fleet's topics.
    pub fn open(&self) -> anyhow::Result<(Box<dyn Broker>, Topics, config::Config)> {
        let config = config::load(self.config.as_deref())?;
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
    #[arg(value_parser = parse_mode)]
    mode: Mode,
    /// A service's name; * for all
    #[arg(long, default_value = "*")]
    service: String,
    /// An action's name; * for all
    #[arg(long, default_value = "*")]
    action: String,
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

/// To what, and with whose key.
#[derive(clap::Args, Debug)]
struct Answer {
    /// Approval id or action id, or the beginning of one
    id: String,
    /// The private key to sign with, where the fleet lists approvers; --by is the name there
    #[arg(long, value_name = "FILE", env = "HOMEOSTAT_APPROVER_KEY")]
    key_file: Option<PathBuf>,
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

/// Grants what a policy asked for.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat approve 5f0c…  (`homeostat status` lists what waits)")]
pub struct Approve {
    #[command(flatten)]
    answer: Answer,
    #[command(flatten)]
    fleet: Fleet,
    #[command(flatten)]
    author: Author,
}

/// Refuses what a policy asked for.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat deny 5f0c… --reason 'deploy under way'")]
pub struct Deny {
    #[command(flatten)]
    answer: Answer,
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

/// Publishes one control record, which replaces an earlier one of its scope.
pub fn publish(broker: &dyn Broker, topics: &Topics, control: &Control, now_ms: i64) -> anyhow::Result<()> {
    let scope = control.scope();
    let mint = id::derived("control", &[&scope, &now_ms.to_string()]);
    let source = format!("/homeostat/{}/operator", topics.tenant());
    let event = CloudEvent::new(mint, topics.tenant(), &source, cloudevent::CONTROL, &scope, now_ms);
    send(broker, &event.output(topics.control(), control))
}

fn send(broker: &dyn Broker, output: &protocol::Output) -> anyhow::Result<()> {
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
        let said = format!("mode of {action} on {service} is at most {:?}", self.mode).to_lowercase();
        say(
            &self.fleet,
            &Control::Mode {
                service,
                action,
                mode: self.mode,
                by,
                reason,
            },
            &said,
        )
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

impl Approve {
    pub fn run(&self) -> anyhow::Result<()> {
        answer(
            &self.fleet,
            &self.answer,
            &self.author,
            cloudevent::APPROVAL_GRANTED,
            "granted",
        )
    }
}

impl Deny {
    pub fn run(&self) -> anyhow::Result<()> {
        answer(
            &self.fleet,
            &self.answer,
            &self.author,
            cloudevent::APPROVAL_DENIED,
            "denied",
        )
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

/// Requests for approval that wait for somebody, oldest first. Whether one still does is the fleet's word alone: an answer may be one
/// of several that are needed, or one that does not count.
pub fn waiting(broker: &dyn Broker, topics: &Topics, now_ms: i64) -> anyhow::Result<Vec<ApprovalRecord>> {
    let mut requests: BTreeMap<uuid::Uuid, ApprovalRecord> = BTreeMap::new();
    topic_reader::read(broker, &topics.approvals(), |record| {
        let (Some(kind), Some(value)) = (CloudEvent::kind_of(&record), record.value) else {
            return;
        };
        let Ok(approval) = message::read::<ApprovalRecord>("approval", value) else {
            return;
        };
        // An incident asks once at a time.
        if kind == cloudevent::APPROVAL_REQUESTED {
            requests.insert(approval.incident_id, approval);
        }
    })?;
    let open = status::incidents(broker, &topics.incidents(), false)?;
    let asks = |incident: &Incident| incident.state == IncidentState::AwaitingApproval;
    let asking: BTreeSet<uuid::Uuid> = open
        .iter()
        .filter(|incident| asks(incident))
        .map(|incident| incident.incident_id)
        .collect();
    requests.retain(|incident, _| asking.contains(incident));
    let mut waiting: Vec<_> = requests
        .into_values()
        .filter(|request| request.expires_at > now_ms)
        .collect();
    waiting.sort_by_key(|request| request.requested_at);
    Ok(waiting)
}

fn answer(fleet: &Fleet, answer: &Answer, author: &Author, kind: &str, said: &str) -> anyhow::Result<()> {
    let (broker, topics, config) = fleet.open()?;
    let signer = answer.key_file.as_deref().map(keys::signer).transpose()?;
    let id = answer.id.as_str();
    if signer.is_none() && !config.approver.is_empty() {
        return Err(Refused::new("this fleet counts signed answers only")
            .help("--key-file or HOMEOSTAT_APPROVER_KEY names your private key; --by is your name in [[approver]]")
            .into());
    }
    let waiting = waiting(&*broker, &topics, now_ms())?;
    let named = |request: &&ApprovalRecord| {
        request.approval_id.to_string().starts_with(id) || request.action_id.to_string().starts_with(id)
    };
    let mut found = waiting.iter().filter(named);
    let request = match (found.next(), found.next()) {
        (Some(request), None) => request,
        (None, _) => {
            return Err(Refused::new(format!(
                "nothing that waits for approval has an id beginning with {id:?}"
            ))
            .help("`homeostat status` lists what waits; an expired or answered request waits no more")
            .into());
        }
        (Some(_), Some(_)) => {
            return Err(Refused::new(format!("several requests begin with {id:?}"))
                .help("give more of the id")
                .into());
        }
    };
    let mut answer = request.clone();
    answer.by = Some(author.by.clone());
    answer.reason = Some(author.reason.clone()).filter(|reason| !reason.is_empty());
    let mint = id::derived("answer", &[kind, &request.approval_id.to_string(), &author.by]);
    let source = format!("/homeostat/{}/operator", topics.tenant());
    let mut event = CloudEvent::new(mint, topics.tenant(), &source, kind, &request.target_key, now_ms());
    event.correlation_id = Some(request.incident_id);
    event.causation_id = Some(request.approval_id);
    let mut output = event.output(topics.approvals(), &answer);
    if let Some(signer) = signer {
        signer.sign(&mut output);
    }
    send(&*broker, &output)?;
    println!("{said}: action {} on {}", request.action_id, request.target_key);
    Ok(())
}
