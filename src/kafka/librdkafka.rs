//! Kafka through librdkafka: [`crate::Kafka`] and [`crate::Embedded`] share its consumer and producer.
//!
//! It keeps groups, offsets and transactions; records are read by [`crate::fetch`]. The settings are measured: one client default
//! costs 20 times in transaction time. The only `unsafe` of the project is in [`native`].

mod consumer;
pub(crate) mod native;
mod producer;

pub(crate) use consumer::KafkaConsumer;
pub(crate) use producer::KafkaProducer;

use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
};

use crate::{ConsumerConfig, Error, KafkaConfig, ProducerConfig};

/// Sends the library's log lines and errors where ours go.
pub(crate) struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        log(level, fac, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "broker client");
    }
}

impl rdkafka::consumer::ConsumerContext for Quiet {}

pub(crate) fn log(level: RDKafkaLogLevel, fac: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            // The loop reports what matters; the library calls a closed connection an error.
            tracing::debug!(fac, message, "librdkafka");
        }
        _ => tracing::trace!(fac, message, "librdkafka"),
    }
}

/// What every client of the cluster starts from.
pub(crate) fn client_config(config: &KafkaConfig, client_id: &str) -> Result<ClientConfig, Error> {
    let mut client = ClientConfig::new();
    for (name, value) in config.client_settings()? {
        client.set(name, value);
    }
    client
        .set("client.id", client_id)
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "2000")
        // New partitions and moved leaders are seen within this.
        .set("topic.metadata.refresh.interval.ms", "5000")
        .set("topic.metadata.propagation.max.ms", "10000")
        .set_log_level(RDKafkaLogLevel::Warning);
    Ok(client)
}

pub(crate) fn consumer_config(config: &KafkaConfig, consumer: &ConsumerConfig) -> Result<ClientConfig, Error> {
    let mut client = client_config(config, &consumer.client_id)?;
    // The library wants a group even of a consumer that joins none.
    let group = consumer
        .group
        .clone()
        .unwrap_or_else(|| format!("{}-reader", consumer.client_id));
    let isolation = match consumer.read_committed {
        true => "read_committed",
        false => "read_uncommitted",
    };
    client
        .set("group.id", group)
        .set("isolation.level", isolation)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("allow.auto.create.topics", "false")
        .set("partition.assignment.strategy", "roundrobin")
        .set("session.timeout.ms", consumer.session_timeout_ms.to_string())
        // Members learn of a rebalance by their heartbeats: at the default of 3 s it drags.
        .set(
            "heartbeat.interval.ms",
            (consumer.session_timeout_ms / 10).max(100).to_string(),
        )
        .set(
            "max.poll.interval.ms",
            consumer.session_timeout_ms.max(60_000).to_string(),
        );
    with_overrides(client, config)
}

pub(crate) fn producer_config(config: &KafkaConfig, producer: &ProducerConfig) -> Result<ClientConfig, Error> {
    let mut client = client_config(config, &producer.client_id)?;
    client
        .set(
            "enable.idempotence",
            (producer.idempotent || producer.transactional_id.is_some()).to_string(),
        )
        .set("acks", "all")
        .set("partitioner", "murmur2_random")
        .set("compression.type", "lz4")
        .set("linger.ms", "1")
        .set("batch.size", "1000000")
        .set("batch.num.messages", "100000")
        .set("queue.buffering.max.messages", "1000000")
        .set("queue.buffering.max.kbytes", "65536")
        // Reports of what did arrive would be queued and read one by one, and nobody looks at them.
        .set("delivery.report.only.error", "true")
        // Back-to-back transactions meet CONCURRENT_TRANSACTIONS: at the default of 100 ms each costs that much.
        .set("retry.backoff.ms", "10");
    if let Some(id) = &producer.transactional_id {
        client
            .set("transactional.id", id)
            .set("transaction.timeout.ms", producer.transaction_timeout_ms.to_string());
    }
    with_overrides(client, config)
}

fn with_overrides(mut client: ClientConfig, config: &KafkaConfig) -> Result<ClientConfig, Error> {
    for (name, value) in &config.settings {
        client.set(name, value);
    }
    Ok(client)
}

pub(crate) fn code_of(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::Transaction(error) => Some(error.code()),
        _ => error.rdkafka_error_code(),
    }
}

/// What an error of the library means to the loop.
pub(crate) fn classify(what: &'static str, error: &KafkaError) -> Error {
    use RDKafkaErrorCode as Code;
    if let KafkaError::Transaction(error) = error {
        return match error {
            e if e.is_fatal() => Error::fatal(what, e),
            e if e.txn_requires_abort() => Error::abort(what, e),
            e if e.is_retriable() => Error::retriable(what, e),
            e => Error::abort(what, e),
        };
    }
    if let KafkaError::ClientConfig(_, reason, name, value) = error {
        return Error::Config(format!("{name}={value}: {reason}"));
    }
    match code_of(error) {
        Some(Code::Fatal | Code::ProducerFenced | Code::InvalidProducerEpoch | Code::Fenced) => {
            Error::fatal(what, error)
        }
        Some(
            Code::IllegalGeneration
            | Code::UnknownMemberId
            | Code::RebalanceInProgress
            | Code::FencedInstanceId
            | Code::MessageTimedOut
            | Code::PurgeQueue
            | Code::PurgeInflight,
        ) => Error::abort(what, error),
        Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::InvalidRecord) => {
            Error::rejected(what, error)
        }
        Some(_) => Error::retriable(what, error),
        None => match error {
            KafkaError::ClientCreation(reason) => Error::Config(reason.clone()),
            _ => Error::retriable(what, error),
        },
    }
}
