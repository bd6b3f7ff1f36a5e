//! `homeostat approve` and `homeostat deny`: a person's answer to what a policy asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use kafka::Broker;
use protocol::{
    CloudEvent, Topics, cloudevent, id,
    message::{self, ApprovalRecord, Incident, IncidentState},
};

use super::{
    control::{Author, Fleet, now_ms, send},
    keys, status,
};
use crate::{error::Refused, topic_reader};

/// To what, and with whose key.
#[derive(clap::Args, Debug)]
struct Answer {
    /// Approval id or action id, or the beginning of one
    id: String,
    /// The private key to sign with, where the fleet lists approvers; --by is the name there
    #[arg(long, value_name = "FILE", env = "HOMEOSTAT_APPROVER_KEY")]
    key_file: Option<PathBuf>,
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
