//! A consumer: records from [`crate::fetch`], events of the group from the library, rebalances deferred to the loop.
//!
//! Nothing is ever assigned in the library, so that it fetches nothing; the group's own assignment is another thing to it.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use protocol::{Batch, Committed, Progress, TopicPartition};
use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};

use super::{classify, code_of, consumer_config, native};
use crate::{Consumer, ConsumerConfig, Error, GroupMetadata, KafkaConfig, Polled, broker::Native, fetch::Fetcher};

/// The longest wait for records before events of the group are looked at.
const SLICE: Duration = Duration::from_millis(10);
/// Events of the library served per slice: rebalances, errors, log lines.
const EVENTS_MAX: usize = 8;

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

pub(crate) struct KafkaConsumer {
    fetcher: Fetcher,
    consumer: Option<BaseConsumer<Context>>,
    has_group: bool,
    pending: Option<Polled>,
}

impl KafkaConsumer {
    pub fn new(cluster: &KafkaConfig, config: &ConsumerConfig) -> Result<Self, Error> {
        let client = consumer_config(cluster, config)?;
        let consumer = BaseConsumer::from_config_and_context(&client, Context::default())
            .map_err(|error| classify("consumer", &error))?;
        Ok(Self {
            fetcher: Fetcher::new(cluster, &config.client_id, config.read_committed, config.headers),
            consumer: Some(consumer),
            has_group: config.group.is_some(),
            pending: None,
        })
    }

    fn client(&self) -> Result<&BaseConsumer<Context>, Error> {
        self.consumer
            .as_ref()
            .ok_or_else(|| Error::abort("consumer", "it is closed"))
    }

    /// Lets the library speak: rebalances go to the context, errors come back.
    fn serve(&mut self) -> Result<(), Error> {
        for _ in 0..EVENTS_MAX {
            match self.client()?.poll(Duration::ZERO) {
                None => return Ok(()),
                // Nothing is assigned there.
                Some(Ok(_)) => {}
                Some(Err(error)) => self.heed(&error)?,
            }
        }
        Ok(())
    }

    fn heed(&mut self, error: &KafkaError) -> Result<(), Error> {
        use RDKafkaErrorCode as Code;
        match (error, code_of(error)) {
            (KafkaError::MessageConsumptionFatal(_), _) => Err(Error::rejected("consumer", error)),
            (_, Some(Code::AllBrokersDown | Code::Resolve)) => {
                self.fetcher.doubt_ends();
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
        self.fetcher.assign(positions);
        Ok(())
    }

    fn poll(&mut self, timeout: Duration, batch: &mut Batch) -> Result<Polled, Error> {
        self.fetcher.reclaim(batch);
        let deadline = Instant::now() + timeout;
        loop {
            self.serve()?;
            if let Some(event) = self.next_event() {
                return Ok(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            self.fetcher.poll(left.min(SLICE), batch)?;
            if !batch.is_empty() {
                return Ok(Polled::Records);
            }
            if let Some(partition) = self.fetcher.next_out_of_range() {
                return Ok(Polled::OutOfRange(partition));
            }
            if left.is_zero() {
                return Ok(Polled::Idle);
            }
        }
    }

    fn acknowledge(&mut self) -> Result<(), Error> {
        let Some(pending) = self.pending.take() else {
            return Ok(());
        };
        self.fetcher.assign(&[]);
        let client = self.client()?;
        let answered = match pending {
            // An empty assignment is an answer too.
            Polled::Assigned(_) => client.assign(&TopicPartitionList::new()),
            _ => client.unassign(),
        };
        answered.map_err(|error| classify("rebalance", &error))
    }

    fn caught_up(&self) -> Vec<TopicPartition> {
        self.fetcher.caught_up()
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        partitions
            .iter()
            .try_for_each(|partition| self.fetcher.pause(partition))
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        partitions
            .iter()
            .try_for_each(|partition| self.fetcher.resume(partition))
    }

    fn seek(&mut self, partition: &TopicPartition, offset: i64) -> Result<(), Error> {
        self.fetcher.seek(partition, offset)
    }

    fn position(&self, partition: &TopicPartition) -> Option<i64> {
        self.fetcher.position(partition)
    }

    fn high_watermark(&self, partition: &TopicPartition) -> Option<i64> {
        self.fetcher.high_watermark(partition)
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
            let (member, generation) = native::member(consumer)?;
            let native = consumer.group_metadata()?;
            if native::member(consumer)? == (member.clone(), generation) {
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
        self.fetcher.assign(&[]);
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
        match self.has_group {
            // Dropping it leaves the group and waits until the library has done so.
            true => drop(consumer),
            // Nobody waits for what it does then, which takes a tenth of a second.
            false => drop(thread::spawn(move || drop(consumer))),
        }
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
