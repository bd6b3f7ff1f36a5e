//! A consumer: records from our own queue, events of the group from the library's, rebalances deferred to the loop.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use protocol::{Batch, Committed, Progress, TimestampKind, TopicPartition};
use rdkafka::{
    ClientContext, Message, Offset, Timestamp, TopicPartitionList,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
    message::Headers,
    types::RDKafkaRespErr,
};

use super::{
    classify, code_of, consumer_config,
    queue::{self, PartitionEvent, PartitionEventKind, Queue},
};
use crate::{Consumer, ConsumerConfig, Error, GroupMetadata, KafkaConfig, Polled, broker::Native};

/// The longest wait for records before events of the group are looked at.
const SLICE: Duration = Duration::from_millis(10);
/// Events of the library served per slice: rebalances, errors, log lines.
const EVENTS_MAX: usize = 8;
const SEEK_TIMEOUT: Duration = Duration::from_secs(2);

/// Keeps rebalances until the loop asks for them.
#[derive(Default)]
struct Context {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    events: VecDeque<Polled>,
    /// The consumer is leaving: whatever the group still says is answered at once.
    closing: bool,
}

impl Context {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        super::log(level, fac, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "consumer");
    }
}

impl ConsumerContext for Context {
    /// Notes the event. The library waits for our assign or unassign, and goes on sending heartbeats meanwhile.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions: Vec<TopicPartition> = list
            .elements()
            .iter()
            .map(|element| TopicPartition::new(element.topic(), element.partition()))
            .collect();
        let mut state = self.state();
        if state.closing {
            if let Err(error) = consumer.unassign() {
                tracing::debug!(%error, "unassign while closing");
            }
            return;
        }
        state.events.push_back(match error {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Polled::Assigned(partitions),
            _ => Polled::Revoked {
                partitions,
                lost: consumer.assignment_lost(),
            },
        });
    }
}

struct Position {
    offset: i64,
    caught_up: bool,
    paused: bool,
    /// A record or the end has come through our queue since the last assign: the forwarding is in place.
    attached: bool,
}

pub(crate) struct KafkaConsumer {
    // Before the client, which it must not outlive.
    queue: Option<Queue>,
    consumer: Option<BaseConsumer<Context>>,
    has_group: bool,
    positions: BTreeMap<TopicPartition, Position>,
    pending: Option<Polled>,
    events: Vec<PartitionEvent>,
    out_of_range: VecDeque<TopicPartition>,
    /// An error met when there were records to hand out first.
    postponed: Option<Error>,
    all_attached: bool,
}

impl KafkaConsumer {
    pub fn new(cluster: &KafkaConfig, config: &ConsumerConfig) -> Result<Self, Error> {
        let client = consumer_config(cluster, config)?;
        let consumer = BaseConsumer::from_config_and_context(&client, Context::default())
            .map_err(|error| classify("consumer", &error))?;
        Ok(Self {
            queue: Some(Queue::new(&consumer, config.headers)),
            consumer: Some(consumer),
            has_group: config.group.is_some(),
            positions: BTreeMap::new(),
            pending: None,
            events: Vec::new(),
            out_of_range: VecDeque::new(),
            postponed: None,
            all_attached: true,
        })
    }

    fn client(&self) -> Result<&BaseConsumer<Context>, Error> {
        self.consumer
            .as_ref()
            .ok_or_else(|| Error::abort("consumer", "it is closed"))
    }

    /// Lets the library speak: rebalances go to the context, errors come back.
    fn serve(&mut self, batch: &mut Batch) -> Result<(), Error> {
        for _ in 0..EVENTS_MAX {
            let polled = match self.client()?.poll(Duration::ZERO) {
                None => return Ok(()),
                Some(Ok(message)) => {
                    // Fetched before the partition was attached.
                    push(&message, self.queue.as_ref().is_some_and(|queue| queue.headers), batch);
                    continue;
                }
                Some(Err(error)) => error,
            };
            if let Err(error) = self.heed(&polled) {
                if batch.is_empty() {
                    return Err(error);
                }
                self.postponed = Some(error);
                return Ok(());
            }
        }
        Ok(())
    }

    fn heed(&mut self, error: &KafkaError) -> Result<(), Error> {
        use RDKafkaErrorCode as Code;
        match (error, code_of(error)) {
            (KafkaError::MessageConsumptionFatal(_), _) => Err(Error::rejected("consumer", error)),
            (_, Some(Code::AllBrokersDown | Code::Resolve)) => {
                self.doubt_ends();
                Err(Error::retriable("broker connection", error))
            }
            (_, Some(Code::Authentication | Code::SSL | Code::SaslAuthenticationFailed)) => {
                Err(Error::retriable("authentication", error))
            }
            (
                _,
                Some(
                    Code::UnknownTopicOrPartition
                    | Code::UnknownTopic
                    | Code::TopicAuthorizationFailed
                    | Code::GroupAuthorizationFailed,
                ),
            ) => Err(Error::retriable("subscription", error)),
            _ => {
                tracing::debug!(%error, "consumer");
                Ok(())
            }
        }
    }

    /// A partition that errs is not caught up. Reading its end again, at the same position, is what tells that it is.
    fn doubt_ends(&mut self) {
        let ended: Vec<(TopicPartition, i64)> = self
            .positions
            .iter_mut()
            .filter(|(_, position)| position.caught_up)
            .map(|(partition, position)| {
                position.caught_up = false;
                (partition.clone(), position.offset)
            })
            .collect();
        for (partition, offset) in ended {
            self.seek_soon(&partition, offset);
        }
    }

    /// Without waiting: it takes effect when the broker is back.
    fn seek_soon(&self, partition: &TopicPartition, offset: i64) {
        let Some(consumer) = &self.consumer else { return };
        let sought = consumer.seek(
            &partition.topic,
            partition.partition,
            Offset::Offset(offset),
            Duration::ZERO,
        );
        if let Err(error) = sought {
            tracing::debug!(%error, %partition, "seek");
        }
    }

    fn attach(&mut self) {
        if self.all_attached {
            return;
        }
        let (Some(queue), Some(consumer)) = (&self.queue, &self.consumer) else {
            return;
        };
        self.all_attached = true;
        for (partition, position) in &self.positions {
            if !position.attached {
                self.all_attached = false;
                queue.attach(consumer, &partition.topic, partition.partition);
            }
        }
    }

    fn drain(&mut self, wait: Duration, batch: &mut Batch) {
        let Some(queue) = &self.queue else { return };
        queue.drain(wait.as_millis() as i32, batch, &mut self.events);
        for (partition, range) in batch.runs() {
            let last = batch.get(range.end - 1).offset;
            if let Some(position) = self.positions.get_mut(partition) {
                position.offset = position.offset.max(last + 1);
                position.caught_up = false;
                position.attached = true;
            }
        }
        for event in std::mem::take(&mut self.events) {
            let partition = TopicPartition::new(event.topic, event.partition);
            let Some(position) = self.positions.get_mut(&partition) else {
                continue;
            };
            match event.kind {
                // Records may stand behind the end in the same batch; then it is no end any more.
                PartitionEventKind::End(offset) if offset >= position.offset => {
                    position.offset = offset;
                    position.caught_up = !position.paused;
                    position.attached = true;
                }
                PartitionEventKind::End(_) => {}
                PartitionEventKind::OutOfRange => {
                    position.caught_up = false;
                    self.out_of_range.push_back(partition);
                }
                PartitionEventKind::Failed(reason) => {
                    tracing::warn!(%partition, reason, "cannot read for now");
                    if std::mem::take(&mut position.caught_up) {
                        let offset = position.offset;
                        self.seek_soon(&partition, offset);
                    }
                }
            }
        }
    }

    fn next_event(&mut self) -> Option<Polled> {
        if self.pending.is_none() {
            self.pending = self.consumer.as_ref()?.context().state().events.pop_front();
        }
        if let Some(Polled::Assigned(partitions)) = &self.pending {
            // A revoke behind it means that it is void already, but each is answered in turn.
            return Some(Polled::Assigned(partitions.clone()));
        }
        self.pending.clone()
    }

    fn list(partitions: &[TopicPartition]) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            list.add_partition(&partition.topic, partition.partition);
        }
        list
    }
}

impl Consumer for KafkaConsumer {
    fn subscribe(&mut self, topics: &[String]) -> Result<(), Error> {
        if !self.has_group {
            return Err(Error::Config("a consumer without a group cannot subscribe".into()));
        }
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        self.client()?
            .subscribe(&topics)
            .map_err(|error| classify("subscribe", &error))
    }

    fn assign(&mut self, positions: &[(TopicPartition, i64)]) -> Result<(), Error> {
        self.positions.clear();
        self.out_of_range.clear();
        if positions.is_empty() && self.pending.is_some() {
            // The acknowledgement that is due takes everything away.
            return Ok(());
        }
        let mut list = TopicPartitionList::with_capacity(positions.len());
        for (partition, offset) in positions {
            list.add_partition_offset(&partition.topic, partition.partition, Offset::Offset(*offset))
                .map_err(|error| classify("assign", &error))?;
            let position = Position {
                offset: *offset,
                caught_up: false,
                paused: false,
                attached: false,
            };
            self.positions.insert(partition.clone(), position);
        }
        self.all_attached = false;
        self.attach();
        self.client()?.assign(&list).map_err(|error| classify("assign", &error))
    }

    fn poll(&mut self, timeout: Duration, batch: &mut Batch) -> Result<Polled, Error> {
        batch.clear();
        if let Some(error) = self.postponed.take() {
            return Err(error);
        }
        let deadline = Instant::now() + timeout;
        loop {
            self.serve(batch)?;
            if let Some(event) = self.next_event() {
                return Ok(event);
            }
            if let Some(partition) = self.out_of_range.pop_front() {
                return Ok(Polled::OutOfRange(partition));
            }
            self.attach();
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = match batch.is_empty() {
                true => left.min(SLICE),
                false => Duration::ZERO,
            };
            self.drain(wait, batch);
            if !batch.is_empty() {
                return Ok(Polled::Records);
            }
            if left.is_zero() && self.out_of_range.is_empty() {
                return Ok(Polled::Idle);
            }
        }
    }

    fn acknowledge(&mut self) -> Result<(), Error> {
        let Some(pending) = self.pending.take() else {
            return Ok(());
        };
        self.positions.clear();
        self.out_of_range.clear();
        let client = self.client()?;
        let answered = match pending {
            // An empty assignment is an answer too: nothing is fetched until the loop has restored and knows where from.
            Polled::Assigned(_) => client.assign(&TopicPartitionList::new()),
            _ => client.unassign(),
        };
        answered.map_err(|error| classify("rebalance", &error))
    }

    fn caught_up(&self) -> Vec<TopicPartition> {
        let caught_up = self.positions.iter().filter(|(_, position)| position.caught_up);
        caught_up.map(|(partition, _)| partition.clone()).collect()
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        self.client()?
            .pause(&Self::list(partitions))
            .map_err(|error| classify("pause", &error))?;
        for partition in partitions {
            if let Some(position) = self.positions.get_mut(partition) {
                position.caught_up = false;
                position.paused = true;
            }
        }
        Ok(())
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        self.client()?
            .resume(&Self::list(partitions))
            .map_err(|error| classify("resume", &error))?;
        for partition in partitions {
            if let Some(position) = self.positions.get_mut(partition) {
                position.paused = false;
                let offset = position.offset;
                // The library says an end once per position: ask again, or a quiet partition is never caught up.
                self.seek_soon(partition, offset);
            }
        }
        Ok(())
    }

    fn seek(&mut self, partition: &TopicPartition, offset: i64) -> Result<(), Error> {
        let Some(position) = self.positions.get_mut(partition) else {
            return Err(Error::NotAssigned(partition.clone()));
        };
        position.offset = offset;
        position.caught_up = false;
        self.client()?
            .seek(
                &partition.topic,
                partition.partition,
                Offset::Offset(offset),
                SEEK_TIMEOUT,
            )
            .map_err(|error| Error::retriable("seek", error))
    }

    fn position(&self, partition: &TopicPartition) -> Option<i64> {
        self.positions.get(partition).map(|position| position.offset)
    }

    fn high_watermark(&self, partition: &TopicPartition) -> Option<i64> {
        queue::high_watermark(self.consumer.as_ref()?, &partition.topic, partition.partition)
    }

    fn committed(&mut self, partitions: &[TopicPartition], timeout: Duration) -> Result<Vec<Option<Committed>>, Error> {
        if !self.has_group {
            return Err(Error::Config(
                "a consumer without a group has no committed offsets".into(),
            ));
        }
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let list = self
            .client()?
            .committed_offsets(Self::list(partitions), timeout)
            .map_err(|error| Error::retriable("committed offsets", error))?;
        partitions
            .iter()
            .map(|partition| {
                let element = list
                    .find_partition(&partition.topic, partition.partition)
                    .ok_or_else(|| Error::retriable("committed offsets", format!("none for {partition}")))?;
                element
                    .error()
                    .map_err(|error| Error::retriable("committed offsets", error))?;
                Ok(match element.offset() {
                    Offset::Offset(offset) => Some(Committed {
                        offset,
                        metadata: element.metadata().to_owned(),
                    }),
                    _ => None,
                })
            })
            .collect()
    }

    fn offset_for_time(
        &mut self,
        partition: &TopicPartition,
        timestamp_ms: i64,
        timeout: Duration,
    ) -> Result<Option<i64>, Error> {
        let mut list = TopicPartitionList::new();
        let failed = |error: KafkaError| Error::retriable("offset for time", error);
        list.add_partition_offset(&partition.topic, partition.partition, Offset::Offset(timestamp_ms))
            .map_err(failed)?;
        let found = self.client()?.offsets_for_times(list, timeout).map_err(failed)?;
        let Some(element) = found.find_partition(&partition.topic, partition.partition) else {
            return Ok(None);
        };
        element.error().map_err(failed)?;
        Ok(match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        })
    }

    fn group_metadata(&mut self) -> Option<GroupMetadata> {
        let consumer = self.consumer.as_ref().filter(|_| self.has_group)?;
        // The library's metadata does not tell its generation: take it between two equal readings of it.
        loop {
            let (member, generation) = queue::member(consumer)?;
            let native = consumer.group_metadata()?;
            if queue::member(consumer)? == (member.clone(), generation) {
                return Some(GroupMetadata {
                    generation,
                    member,
                    native: Native::Kafka(native),
                });
            }
        }
    }

    fn commit(&mut self, progress: &[Progress]) -> Result<(), Error> {
        if progress.is_empty() {
            return Ok(());
        }
        let list = progress_list(progress)?;
        self.client()?
            .commit(&list, CommitMode::Sync)
            .map_err(|error| classify("offset commit", &error))
    }

    fn close(&mut self) {
        self.positions.clear();
        self.queue = None;
        let Some(consumer) = self.consumer.take() else { return };
        let context = std::sync::Arc::clone(consumer.client().context());
        let unanswered = {
            let mut state = context.state();
            state.closing = true;
            state.events.drain(..).next().is_some()
        };
        if (unanswered || self.pending.take().is_some())
            && let Err(error) = consumer.unassign()
        {
            tracing::debug!(%error, "unassign while closing");
        }
        // Dropping it leaves the group and waits until the library has done so.
        drop(consumer);
    }
}

impl Drop for KafkaConsumer {
    fn drop(&mut self) {
        self.close();
    }
}

/// Offsets and metadata as the library wants them.
pub(super) fn progress_list(progress: &[Progress]) -> Result<TopicPartitionList, Error> {
    let mut list = TopicPartitionList::with_capacity(progress.len());
    for p in progress {
        let mut element = list.add_partition(&p.partition.topic, p.partition.partition);
        element
            .set_offset(Offset::Offset(p.offset))
            .map_err(|error| Error::rejected("offset commit", error))?;
        element.set_metadata(&p.metadata);
    }
    Ok(list)
}

fn push(message: &rdkafka::message::BorrowedMessage<'_>, with_headers: bool, batch: &mut Batch) {
    let handle = batch.partition(message.topic(), message.partition());
    let timestamp = match message.timestamp() {
        Timestamp::LogAppendTime(ms) => (ms, TimestampKind::LogAppend),
        Timestamp::CreateTime(ms) => (ms, TimestampKind::Create),
        Timestamp::NotAvailable => (-1, TimestampKind::Create),
    };
    let headers = message.headers().filter(|_| with_headers);
    let headers = headers
        .iter()
        .flat_map(|headers| headers.iter())
        .map(|header| (header.key, header.value.unwrap_or_default()));
    batch.push(
        handle,
        message.offset(),
        timestamp,
        message.key(),
        message.payload(),
        headers,
    );
}
