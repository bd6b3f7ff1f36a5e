//! A broker inside the process: librdkafka's mock cluster, real sockets on the loopback address.
//!
//! Other processes may connect to [`Embedded::bootstrap`] while this one lives. It keeps no transactional offsets and hides
//! nothing aborted, so a loop on it runs at least once; its log keeps about 5 MB per partition. Right for the demo and for
//! fault injection, never for exactly-once.

use std::time::Duration;

use protocol::TopicPartition;
use rdkafka::{
    config::FromClientConfigAndContext,
    producer::{BaseProducer, DefaultProducerContext, NoCustomPartitioner, Producer as _},
};

use crate::{
    Broker, Capabilities, Consumer, ConsumerConfig, Error, Kafka, Producer, ProducerConfig, TopicConfig,
    librdkafka::{classify, native},
};

/// The cluster; it ends when this is dropped.
pub struct Embedded {
    /// Owns the mock cluster; produces nothing.
    owner: BaseProducer<DefaultProducerContext, NoCustomPartitioner>,
    kafka: Kafka,
}

impl Embedded {
    pub fn start() -> Result<Self, Error> {
        let mut config = rdkafka::ClientConfig::new();
        config
            .set("test.mock.num.brokers", "1")
            .set("client.id", "homeostat-embedded")
            .set_log_level(rdkafka::config::RDKafkaLogLevel::Critical);
        let owner = BaseProducer::from_config_and_context(&config, DefaultProducerContext)
            .map_err(|error| classify("embedded broker", &error))?;
        native::mock_groups_form_at_once(owner.client());
        let bootstrap = owner
            .client()
            .mock_cluster()
            .ok_or_else(|| Error::Config("the embedded broker did not start".into()))?
            .bootstrap_servers();
        let kafka = Kafka::at(&bootstrap)?;
        Ok(Self { owner, kafka })
    }

    /// Where other clients reach it.
    pub fn bootstrap(&self) -> &str {
        self.kafka.bootstrap()
    }
}

impl Broker for Embedded {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            transactions: false,
            fencing: false,
            aborted_hidden: false,
            offset_metadata: true,
            groups: true,
            commit_in_revoke: false,
            log_append_time: false,
            time_index: false,
            unbounded_log: false,
        }
    }

    fn ensure_topics(&self, topics: &[TopicConfig]) -> Result<(), Error> {
        for topic in topics {
            // The mock creates what it is asked about, with its own number of partitions: create first, ask later.
            let cluster = self.owner.client().mock_cluster();
            let created = cluster.map(|cluster| cluster.create_topic(&topic.name, topic.partitions, 1));
            if let Some(Err(error)) = created {
                // It says so of a topic that exists; the count tells whether that one will do.
                tracing::debug!(%error, topic = topic.name, "create topic");
            }
            match self.kafka.partition_count(&topic.name)? {
                Some(actual) => crate::kafka::check_count(topic, actual)?,
                None => {
                    return Err(Error::retriable(
                        "create topics",
                        format!("{} is not known yet", topic.name),
                    ));
                }
            }
        }
        // Log lines of the owner are served by nobody else.
        self.owner.poll(Duration::ZERO);
        Ok(())
    }

    fn partition_count(&self, topic: &str) -> Result<Option<i32>, Error> {
        self.kafka.partition_count(topic)
    }

    fn watermarks(&self, partition: &TopicPartition) -> Result<(i64, i64), Error> {
        self.kafka.watermarks(partition)
    }

    fn log_append_time(&self, _topic: &str) -> Result<bool, Error> {
        Ok(false)
    }

    fn consumer(&self, config: &ConsumerConfig) -> Result<Box<dyn Consumer>, Error> {
        self.kafka.consumer(config)
    }

    fn producer(&self, config: &ProducerConfig) -> Result<Box<dyn Producer>, Error> {
        let config = ProducerConfig {
            transactional_id: None,
            ..config.clone()
        };
        self.kafka.producer(&config)
    }
}
