//! A producer, transactional or not. Delivery reports are served in short steps: the library's own flush waits in steps of
//! 100 ms, which made a transaction of one record take 104 ms instead of 6 to 12.

use std::{
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use protocol::{Output, Progress};
use rdkafka::{
    ClientContext, Message as _,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext},
};

use super::{classify, code_of, consumer::progress_list, producer_config};
use crate::{Error, GroupMetadata, KafkaConfig, Producer, ProducerConfig, broker::Native};

/// The longest that one call waits for the broker; what may succeed later is then retriable.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The topic of the coordinators.
const TRANSACTIONS: &str = "__transaction_state";
const STEP: Duration = Duration::from_micros(200);
/// Records between two looks at the delivery reports.
const SENDS_PER_SERVE: u32 = 256;

#[derive(Default)]
struct Context {
    /// The first record that was not delivered: why, and which it was.
    failed: Mutex<Option<(KafkaError, String)>>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        super::log(level, fac, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "producer");
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        if let Err((error, message)) = result {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert_with(|| {
                let (topic, partition) = (message.topic(), message.partition());
                (
                    error.clone(),
                    format!("{} bytes for {topic}[{partition}]", message.payload_len()),
                )
            });
        }
    }
}

pub(crate) struct KafkaProducer {
    producer: BaseProducer<Context>,
    transactional: bool,
    /// The coordinator knows this producer.
    initialized: bool,
    sends: u32,
}

impl KafkaProducer {
    pub fn new(cluster: &KafkaConfig, config: &ProducerConfig) -> Result<Self, Error> {
        let client = producer_config(cluster, config)?;
        let producer = BaseProducer::from_config_and_context(&client, Context::default())
            .map_err(|error| classify("producer", &error))?;
        Ok(Self {
            producer,
            transactional: config.transactional_id.is_some(),
            initialized: false,
            sends: 0,
        })
    }

    /// Waits for a connection to a broker that may be asked for the coordinator. Without one the library asks again half a second
    /// later, and it often has none: the first answer of the cluster replaces the connection that it came by. The second comes by
    /// one that stays. What they say does not matter, nor whether they come: the library goes on by itself.
    fn meet(&self) {
        for _ in 0..2 {
            let _ = self
                .producer
                .client()
                .fetch_metadata(Some(TRANSACTIONS), CONNECT_TIMEOUT);
        }
    }

    /// Waits until every record is delivered or has failed.
    fn settle(&self, timeout: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + timeout;
        loop {
            self.producer.poll(Duration::ZERO);
            if self.producer.in_flight_count() == 0 {
                return Ok(());
            }
            // Not by polling: the library waits in whole milliseconds, and the client spins for what is left of one.
            thread::sleep(STEP);
            if Instant::now() >= deadline {
                let left = self.producer.in_flight_count();
                return Err(Error::retriable(
                    "flush",
                    format!("{left} records are still to be delivered"),
                ));
            }
        }
    }

    fn take_failure(&self) -> Option<(KafkaError, String)> {
        let context = self.producer.client().context();
        context.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn check_delivered(&self) -> Result<(), Error> {
        let Some((failure, record)) = self.take_failure() else {
            return Ok(());
        };
        let reason = format!("{record}: {failure}");
        Err(match classify("delivery", &failure) {
            // The record is gone from the queue: trying again would send what comes after it without it.
            Error::Retriable { what, .. } | Error::Abort { what, .. } => Error::Abort { what, reason },
            Error::Fatal { what, .. } => Error::Fatal { what, reason },
            Error::Rejected { what, .. } => Error::Rejected { what, reason },
            error => error,
        })
    }
}

impl Producer for KafkaProducer {
    fn begin(&mut self) -> Result<(), Error> {
        if !self.transactional {
            return Err(Error::Config(
                "a producer without a transactional id has no transactions".into(),
            ));
        }
        if !self.initialized {
            self.meet();
            self.producer
                .init_transactions(CALL_TIMEOUT)
                .map_err(|error| classify("transaction coordinator", &error))?;
            self.initialized = true;
        }
        self.take_failure();
        self.producer
            .begin_transaction()
            .map_err(|error| classify("begin", &error))
    }

    fn send(&mut self, output: &Output) -> Result<(), Error> {
        let deadline = Instant::now() + CALL_TIMEOUT;
        self.sends = self.sends.wrapping_add(1);
        if self.sends.is_multiple_of(SENDS_PER_SERVE) {
            self.producer.poll(Duration::ZERO);
        }
        loop {
            let (error, _) = match self.producer.send(record(output)) {
                Ok(()) => return Ok(()),
                Err(refused) => refused,
            };
            if code_of(&error) != Some(RDKafkaErrorCode::QueueFull) {
                return Err(refused(output, &error));
            }
            if Instant::now() >= deadline {
                return Err(Error::retriable("send", "the queue stays full"));
            }
            self.producer.poll(Duration::from_millis(1));
        }
    }

    fn send_offsets(&mut self, progress: &[Progress], group: &GroupMetadata) -> Result<(), Error> {
        let Native::Kafka(metadata) = &group.native else {
            return Err(Error::Config("group metadata of another broker".into()));
        };
        let list = progress_list(progress)?;
        self.producer
            .send_offsets_to_transaction(&list, metadata, CALL_TIMEOUT)
            .map_err(|error| classify("offsets of the transaction", &error))
    }

    fn commit(&mut self) -> Result<(), Error> {
        self.settle(CALL_TIMEOUT)?;
        let delivered = self.check_delivered();
        if let Err(Error::Rejected { .. }) = delivered {
            return delivered;
        }
        // A failed transaction purges what is queued: the commit, which fails for certain then, names the reason.
        self.producer
            .commit_transaction(CALL_TIMEOUT)
            .map_err(|error| classify("commit", &error))
            .and(delivered)
    }

    fn abort(&mut self) -> Result<(), Error> {
        // What is queued is delivered first, to be aborted: the library waits for its delivery reports, which only we can
        // serve. Purging the queue would be faster and wrong: outside the library's own abort it leaves a gap in the
        // idempotent sequence, and no later record of that partition is ever sent.
        self.settle(CALL_TIMEOUT)?;
        let aborted = self
            .producer
            .abort_transaction(CALL_TIMEOUT)
            .map_err(|error| classify("abort", &error));
        self.take_failure();
        aborted
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.settle(CALL_TIMEOUT)?;
        self.check_delivered()
    }
}

/// Why the queue would not even take a record.
fn refused(output: &Output, error: &KafkaError) -> Error {
    let bytes = output.value.as_ref().map_or(0, Vec::len);
    match classify("send", error) {
        Error::Rejected { what, reason } => Error::Rejected {
            what,
            reason: format!("{bytes} bytes for {}: {reason}", output.topic),
        },
        error => error,
    }
}

fn record(output: &Output) -> BaseRecord<'_, [u8], [u8]> {
    let mut record = BaseRecord::to(&output.topic);
    record.partition = output.partition;
    record.key = output.key.as_deref();
    record.payload = output.value.as_deref();
    if !output.headers.is_empty() {
        let headers = OwnedHeaders::new_with_capacity(output.headers.len());
        record.headers = Some(output.headers.iter().fold(headers, |headers, (name, value)| {
            headers.insert(Header {
                key: name,
                value: Some(value.as_slice()),
            })
        }));
    }
    record
}
