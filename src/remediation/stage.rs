//! The fleet in the life of a stage: anomalies, outcomes, approvals and control → decisions and commands.
//!
//! Reads records, hands them to the [`Fleet`], which decides, and writes what it says. Who owns `anomalies` owns the fleet: the
//! other three topics are side inputs, their positions part of the fleet's state, and the offset of `anomalies` is in every
//! transaction, so that the group's generation fences the whole fleet (`correctness.md` rule 13). Everything is durable at every
//! commit; there is no replay. What was consumed, in order, is a journal record (rule 15). Input that cannot be used becomes a
//! dead letter.

use std::{collections::BTreeMap, sync::Arc};

use protocol::{
    Assignment, Batch, CloudEvent, Output, Outputs, Progress, Record, SidePosition, Stage, StageError, Start,
    TopicPartition, Topics, cloudevent, id,
    log::{self, Note},
    message::{self, Anomaly, ApprovalRecord, Control, Journal, Outcome, PipelineText, TimeProgress},
    signature::Signer,
};

use crate::{Effect, Fleet, FleetConfig, Input, Message, Policy, Standing, Trust};

/// Bytes of a bad record that its dead letter keeps.
const DEAD_LETTER_BYTES: usize = 64 * 1024;

/// Turns the texts of a version's pipelines into their policies, or says what is wrong, for people. Pure.
pub type PoliciesOfTexts = Arc<dyn Fn(&[PipelineText]) -> Result<Vec<Policy>, String> + Send + Sync>;

/// The decide stage of one fleet.
pub struct Decide {
    topics: Topics,
    config: FleetConfig,
    policies: Vec<Policy>,
    panes_partitions: i32,
    signer: Option<Arc<Signer>>,
    trust: Trust,
    policies_of: Option<PoliciesOfTexts>,
    owned: Option<Owned>,
}

/// The fleet, while this instance owns it.
struct Owned {
    partition: TopicPartition,
    fleet: Fleet,
    next_offset: i64,
    journal: Journal,
    urgent: bool,
    /// By partition of `panes`, the oldest version of the pipelines that has windows open.
    oldest: BTreeMap<i32, u64>,
    /// The version that was said to be settled.
    settled: u64,
}

impl Decide {
    /// `signer` signs commands and what withdraws them; `trust` says whose approvals and outcomes count.
    pub fn new(
        policies: Vec<Policy>,
        topics: Topics,
        config: FleetConfig,
        panes_partitions: i32,
        signer: Option<Arc<Signer>>,
        trust: Trust,
    ) -> Self {
        Self {
            topics,
            config,
            policies,
            panes_partitions,
            signer,
            trust,
            policies_of: None,
            owned: None,
        }
    }

    /// Follows the versions of the pipelines: their policies hold from the record on that says them.
    pub fn following(mut self, policies_of: PoliciesOfTexts) -> Self {
        self.policies_of = Some(policies_of);
        self
    }

    fn owned(&mut self, partition: &TopicPartition) -> &mut Owned {
        self.owned.get_or_insert_with(|| Owned {
            partition: partition.clone(),
            fleet: Fleet::new(self.config.clone(), self.policies.iter().cloned()),
            next_offset: 0,
            journal: Journal {
                consumed: Vec::new(),
                control: BTreeMap::new(),
            },
            urgent: false,
            oldest: BTreeMap::new(),
            settled: 0,
        })
    }

    /// The policies of a version of the pipelines, if that is what the record says, and it is the newest.
    fn version(&self, record: &Record<'_>) -> Option<Result<Vec<Policy>, String>> {
        let (policies_of, owned) = (self.policies_of.as_ref()?, self.owned.as_ref()?);
        if *record.partition.topic != *self.topics.control() {
            return None;
        }
        match message::read("control", record.value?) {
            Ok(Control::Pipelines { version, pipelines, .. })
                if owned.version().is_none_or(|newest| version > newest) =>
            {
                let policies = policies_of(&pipelines);
                Some(policies.map_err(|reason| format!("version {version} of the pipelines cannot be run: {reason}")))
            }
            _ => None,
        }
    }

    /// After a restore the policies are those of the newest version that the state knows. Where they cannot be read, nothing is
    /// decided by older ones: the partition stands still.
    fn remember_policies(&mut self) -> Result<(), StageError> {
        let (Some(policies_of), Some(owned)) = (&self.policies_of, &mut self.owned) else {
            return Ok(());
        };
        let newest = owned.version();
        let texts = owned.fleet.controls().find_map(|(_, control)| match control {
            Control::Pipelines { version, pipelines, .. } if Some(*version) == newest => Some(pipelines.clone()),
            _ => None,
        });
        let policies = texts.map(|texts| policies_of(&texts)).transpose();
        let policies = policies.map_err(|reason| StageError::Partition {
            partition: owned.partition.clone(),
            reason: format!(
                "this program cannot run version {} of the pipelines: {reason}",
                newest.unwrap_or_default()
            ),
        })?;
        if let Some(policies) = policies {
            owned.fleet.set_policies(policies);
        }
        Ok(())
    }

    /// Says so when no partition has windows of an old version open any more.
    fn settle(&mut self, out: &mut Outputs) {
        let Some(owned) = &mut self.owned else { return };
        let oldest = owned.oldest.values().min().copied().unwrap_or_default();
        let is_old = |control: &Control| matches!(control, Control::Pipelines { version, .. } if *version < oldest);
        let said = owned.fleet.controls().filter_map(|(_, control)| match control {
            Control::PipelinesSettled { version } => Some(*version),
            _ => None,
        });
        let settled = said.max().unwrap_or_default().max(owned.settled);
        let complete = owned.oldest.len() == self.panes_partitions as usize;
        if !complete || oldest <= settled || !owned.fleet.controls().any(|(_, control)| is_old(control)) {
            return;
        }
        owned.settled = oldest;
        let control = Control::PipelinesSettled { version: oldest };
        let scope = control.scope();
        let tenant = self.topics.tenant();
        let mint = id::derived("control", &[&scope, &oldest.to_string()]);
        let source = format!("/homeostat/{tenant}/decide");
        let event = CloudEvent::new(mint, tenant, &source, cloudevent::CONTROL, &scope, owned.fleet.now_ms());
        out.push(event.output(self.topics.control(), &control));
    }

    fn record(&mut self, record: Record<'_>, out: &mut Outputs) {
        let version = self.version(&record);
        let topics = &self.topics;
        let Some(owned) = &mut self.owned else { return };
        owned.journal(&record);
        let mut effects = Vec::new();
        // A version that cannot be run is not heard of: the one before goes on.
        let usable = version.transpose().map(|policies| {
            if let Some(policies) = policies {
                owned.fleet.set_policies(policies);
            }
        });
        let heard = usable.and_then(|()| hear(owned, topics, &self.trust, &record, &mut effects));
        effects.extend(heard.err().map(Effect::Unusable));
        if record.partition == &owned.partition {
            owned.next_offset = record.offset + 1;
        } else {
            owned.fleet.set_position(&record.partition.topic, record.offset + 1);
        }
        for effect in effects {
            owned.urgent = true;
            match &effect {
                Effect::Note(note) => tell_detect(topics, self.panes_partitions, note, out),
                Effect::Unusable(reason) => {
                    let topic = topics.dead_letters().into();
                    out.push(protocol::dead_letter(
                        &topic,
                        "decide",
                        &record,
                        reason,
                        DEAD_LETTER_BYTES,
                    ));
                }
                Effect::Action { .. } | Effect::Cancelled { .. } => {
                    let mut output = effect.output(topics);
                    if let (Some(signer), Some(output)) = (&self.signer, &mut output) {
                        signer.sign(output);
                    }
                    out.records.extend(output);
                }
                _ => out.records.extend(effect.output(topics)),
            }
        }
    }
}

/// Hands one record to the fleet. `Err` says why it cannot be used.
fn hear(
    owned: &mut Owned,
    topics: &Topics,
    trust: &Trust,
    record: &Record<'_>,
    effects: &mut Vec<Effect>,
) -> Result<(), String> {
    let fleet = &mut owned.fleet;
    let now_ms = fleet.now_ms().max(record.timestamp_ms);
    let mut apply = |message: Message<'_>| {
        fleet.apply(
            Input {
                broker_ms: record.timestamp_ms,
                message,
            },
            effects,
        )
    };
    let text = |error: protocol::Error| match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    if *record.partition.topic == *topics.control() {
        let scope = record
            .key
            .and_then(|key| std::str::from_utf8(key).ok())
            .ok_or("a control record needs a key")?;
        let data: Option<Control> = record
            .value
            .map(|value| message::read("control", value))
            .transpose()
            .map_err(text)?;
        apply(Message::Control {
            scope,
            data: data.as_ref(),
        });
        owned.journal.control.insert(scope.to_owned(), data);
        return Ok(());
    }
    let kind = CloudEvent::kind_of(record).ok_or("not a CloudEvent: no header ce_type")?;
    let value = record.value.ok_or("an event without data")?;
    match kind {
        cloudevent::ANOMALY => {
            let event = CloudEvent::read(record).map_err(text)?;
            let data: Anomaly = message::read("anomaly", value).map_err(text)?;
            apply(Message::Anomaly {
                event: &event,
                data: &data,
            });
        }
        cloudevent::PROGRESS => {
            let data: TimeProgress = message::read("progress", value).map_err(text)?;
            apply(Message::Progress(&data));
            owned.oldest.insert(data.partition, data.version);
        }
        cloudevent::APPROVAL_GRANTED | cloudevent::APPROVAL_DENIED => {
            let event = CloudEvent::read(record).map_err(text)?;
            let data: ApprovalRecord = message::read("approval", value).map_err(text)?;
            let approver = trust.approver(record, &data, now_ms);
            apply(Message::Approval {
                event: &event,
                data: &data,
                standing: match &approver {
                    Ok(Some(approver)) => Standing::Approver(approver),
                    Ok(None) => Standing::Anybody,
                    Err(reason) => Standing::Refused(reason),
                },
            });
        }
        kind if kind.starts_with(cloudevent::OUTCOME_PREFIX) => {
            let event = CloudEvent::read(record).map_err(text)?;
            let data: Outcome = message::read("outcome", value).map_err(text)?;
            trust.executor(record, &data, now_ms)?;
            apply(Message::Outcome {
                event: &event,
                data: &data,
            });
        }
        _ => apply(Message::Other),
    }
    Ok(())
}

fn tell_detect(topics: &Topics, partitions: i32, note: &Note, out: &mut Outputs) {
    let value = serde_json::to_vec(note).expect("notes have string keys");
    for partition in 0..partitions {
        out.push(Output {
            topic: topics.panes().into(),
            partition: Some(partition),
            key: None,
            value: Some(value.clone()),
            headers: vec![(log::KIND.to_owned(), log::KIND_NOTE.as_bytes().to_vec())],
        });
    }
}

impl Owned {
    /// The newest version of the pipelines that was heard of.
    fn version(&self) -> Option<u64> {
        let versions = self.fleet.controls().filter_map(|(_, control)| match control {
            Control::Pipelines { version, .. } => Some(*version),
            _ => None,
        });
        versions.max()
    }

    fn journal(&mut self, record: &Record<'_>) {
        let topic = &*record.partition.topic;
        match self.journal.consumed.last_mut() {
            Some((last, _, to)) if last == topic => *to = record.offset,
            _ => self
                .journal
                .consumed
                .push((topic.to_owned(), record.offset, record.offset)),
        }
    }
}

impl Stage for Decide {
    fn name(&self) -> &'static str {
        "decide"
    }

    fn inputs(&self) -> Vec<String> {
        vec![self.topics.anomalies()]
    }

    fn start(&self, _topic: &str) -> Start {
        Start::Earliest
    }

    fn side_inputs(&self, partition: &TopicPartition) -> Vec<TopicPartition> {
        let topics = [self.topics.control(), self.topics.outcomes(), self.topics.approvals()];
        topics
            .into_iter()
            .map(|topic| TopicPartition::new(topic, partition.partition))
            .collect()
    }

    fn side_position(&self, side: &TopicPartition) -> SidePosition {
        let known = self.owned.as_ref().and_then(|owned| owned.fleet.position(&side.topic));
        known.map_or(SidePosition::Beginning, SidePosition::Offset)
    }

    fn state_partition(&self, partition: &TopicPartition) -> Option<TopicPartition> {
        Some(TopicPartition::new(self.topics.state(), partition.partition))
    }

    fn restore(&mut self, partition: &TopicPartition, key: &[u8], value: Option<&[u8]>) -> Result<(), StageError> {
        if !key.starts_with(b"decide/") {
            return Ok(());
        }
        let restored = self.owned(partition).fleet.restore(key, value);
        restored.map_err(|error| StageError::Partition {
            partition: partition.clone(),
            reason: error.to_string(),
        })
    }

    fn assigned(&mut self, partition: &TopicPartition, assignment: &Assignment) -> Result<i64, StageError> {
        let start = assignment
            .committed
            .as_ref()
            .map_or(assignment.start_offset, |committed| committed.offset);
        self.owned(partition).next_offset = start;
        self.remember_policies()?;
        Ok(start)
    }

    fn revoked(&mut self, partition: &TopicPartition) {
        self.owned.take_if(|owned| owned.partition == *partition);
    }

    fn step(&mut self, batch: &Batch, out: &mut Outputs) -> Result<(), StageError> {
        batch.iter().for_each(|record| self.record(record, out));
        Ok(())
    }

    fn urgent(&self) -> bool {
        self.owned.as_ref().is_some_and(|owned| owned.urgent)
    }

    fn before_commit(&mut self, out: &mut Outputs) -> Result<Vec<Progress>, StageError> {
        self.settle(out);
        let Some(owned) = &mut self.owned else {
            return Ok(Vec::new());
        };
        for (key, value) in owned.fleet.take_dirty() {
            out.push(Output {
                topic: self.topics.state().into(),
                partition: Some(owned.partition.partition),
                key: Some(key),
                value,
                headers: Vec::new(),
            });
        }
        if !owned.journal.consumed.is_empty() {
            let (topic, offset, _) = &owned.journal.consumed[0];
            let tenant = self.topics.tenant();
            let mint = id::derived("journal", &[tenant, topic, &offset.to_string()]);
            let source = format!("/homeostat/{tenant}/decide");
            let event = CloudEvent::new(
                mint,
                tenant,
                &source,
                cloudevent::JOURNAL,
                "journal",
                owned.fleet.now_ms(),
            );
            out.push(event.output(self.topics.decisions(), &owned.journal));
            owned.journal = Journal {
                consumed: Vec::new(),
                control: BTreeMap::new(),
            };
        }
        let metadata = String::new();
        Ok(vec![Progress {
            partition: owned.partition.clone(),
            offset: owned.next_offset,
            metadata,
        }])
    }

    fn committed(&mut self) {
        if let Some(owned) = &mut self.owned {
            owned.urgent = false;
        }
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, &[(&'static str, &str)], f64)) {
        if let Some(owned) = &self.owned {
            owned.fleet.observe(sink);
        }
    }
}
