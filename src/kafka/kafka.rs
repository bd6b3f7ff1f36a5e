//! A real Kafka cluster.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
    time::{Duration, Instant},
};

use protocol::{TopicPartition, topic::Cleanup};
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode},
};

use crate::{
    Broker, Capabilities, Consumer, ConsumerConfig, Error, KafkaConfig, Producer, ProducerConfig, TopicConfig,
    librdkafka::{KafkaConsumer, KafkaProducer, Quiet, classify, client_config, code_of},
};

/// The longest wait for an answer to a question about the cluster.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long a new topic may take to be known to all brokers.
const CREATION_TIMEOUT: Duration = Duration::from_secs(20);
const MS_PER_DAY: i64 = 86_400_000;

/// A cluster and how to reach it. Connects when first asked something.
pub struct Kafka {
    config: KafkaConfig,
    /// Asks for metadata and watermarks, read-uncommitted: a read-committed client is told the last stable offset instead of
    /// the high watermark.
    metadata: Mutex<Option<BaseConsumer<Quiet>>>,
}

impl Kafka {
    /// # Errors
    /// [`Error::Config`] when the configuration cannot work; an absent broker is no error here.
    pub fn new(config: &KafkaConfig) -> Result<Self, Error> {
        client_config(config, "check")?
            .create_native_config()
            .map_err(|error| classify("configuration", &error))?;
        Ok(Self {
            config: config.clone(),
            metadata: Mutex::new(None),
        })
    }

    /// Plain text, no authentication.
    pub fn at(bootstrap: &str) -> Result<Self, Error> {
        Self::new(&KafkaConfig::new(bootstrap))
    }

    pub fn bootstrap(&self) -> &str {
        &self.config.bootstrap
    }

    fn with_metadata<T>(&self, ask: impl FnOnce(&BaseConsumer<Quiet>) -> Result<T, KafkaError>) -> Result<T, Error> {
        let mut held = self.metadata.lock().unwrap_or_else(PoisonError::into_inner);
        let client = match &mut *held {
            Some(client) => client,
            empty => {
                let mut config = client_config(&self.config, "homeostat-metadata")?;
                config
                    .set("isolation.level", "read_uncommitted")
                    .set("allow.auto.create.topics", "false");
                let made = BaseConsumer::from_config_and_context(&config, Quiet)
                    .map_err(|error| classify("metadata", &error))?;
                empty.insert(made)
            }
        };
        let answer = ask(client).map_err(|error| classify("metadata", &error));
        // Serves the library's log lines, which nobody else does for this client.
        while let Some(Ok(_)) = client.poll(Duration::ZERO) {}
        if answer.is_err() {
            // A client between questions that lost its brokers has been seen not to find them again for minutes, while others
            // did: the next question is asked by a new one.
            *held = None;
        }
        answer
    }

    fn with_admin<T>(&self, ask: impl FnOnce(&AdminClient<Quiet>) -> T) -> Result<T, Error> {
        let config = client_config(&self.config, "homeostat-admin")?;
        let admin = AdminClient::from_config_and_context(&config, Quiet).map_err(|error| classify("admin", &error))?;
        let answer = ask(&admin);
        // It takes a tenth of a second to end.
        std::thread::spawn(move || drop(admin));
        Ok(answer)
    }

    /// Gives a topic more partitions, as an operator would.
    #[cfg(feature = "contract")]
    pub fn grow(&self, topic: &str, partitions: usize) -> Result<(), Error> {
        let options = AdminOptions::new().request_timeout(Some(CREATION_TIMEOUT));
        let new = rdkafka::admin::NewPartitions::new(topic, partitions);
        let results = self.with_admin(|admin| block_on(admin.create_partitions([&new], &options)))?;
        let results = results.map_err(|error| classify("grow a topic", &error))?;
        match results.into_iter().find_map(Result::err) {
            Some((topic, code)) => Err(Error::rejected("grow a topic", format!("{topic}: {code}"))),
            None => Ok(()),
        }
    }

    fn create(&self, topics: &[&TopicConfig]) -> Result<(), Error> {
        let settings: Vec<Vec<(&str, String)>> = topics.iter().map(|topic| topic_settings(topic)).collect();
        let new: Vec<NewTopic<'_>> = topics
            .iter()
            .zip(&settings)
            .map(|(topic, settings)| {
                let replication = TopicReplication::Fixed(topic.replication.unwrap_or(-1));
                let new = NewTopic::new(&topic.name, topic.partitions, replication);
                settings.iter().fold(new, |new, (name, value)| new.set(name, value))
            })
            .collect();
        let options = AdminOptions::new()
            .operation_timeout(Some(TIMEOUT))
            .request_timeout(Some(CREATION_TIMEOUT));
        let results = self.with_admin(|admin| block_on(admin.create_topics(&new, &options)))?;
        let results = results.map_err(|error| classify("create topics", &error))?;
        for result in results {
            match result {
                // Another process was faster; what it made is checked like any other topic.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) if is_passing(code) => {
                    return Err(Error::retriable("create topics", format!("{topic}: {code}")));
                }
                Err((topic, code)) => return Err(Error::rejected("create topics", format!("{topic}: {code}"))),
            }
        }
        Ok(())
    }
}

impl Broker for Kafka {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::FULL
    }

    fn ensure_topics(&self, topics: &[TopicConfig]) -> Result<(), Error> {
        let mut absent = Vec::new();
        for topic in topics {
            match self.partition_count(&topic.name)? {
                None => absent.push(topic),
                Some(actual) => check_count(topic, actual)?,
            }
        }
        if absent.is_empty() {
            return Ok(());
        }
        self.create(&absent)?;
        let deadline = Instant::now() + CREATION_TIMEOUT;
        for topic in absent {
            loop {
                if let Some(actual) = self.partition_count(&topic.name)? {
                    check_count(topic, actual)?;
                    break;
                }
                if Instant::now() >= deadline {
                    let reason = format!("{} was created and is not known yet", topic.name);
                    return Err(Error::retriable("create topics", reason));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    fn partition_count(&self, topic: &str) -> Result<Option<i32>, Error> {
        use rdkafka::types::RDKafkaRespErr as Code;
        let metadata = self.with_metadata(|client| client.fetch_metadata(Some(topic), TIMEOUT))?;
        let Some(found) = metadata.topics().iter().find(|t| t.name() == topic) else {
            return Ok(None);
        };
        match found.error() {
            None if found.partitions().is_empty() => Ok(None),
            // A topic whose partitions have no leader yet is not there yet.
            None if found.partitions().iter().any(|partition| partition.leader() < 0) => {
                Err(Error::retriable("metadata", format!("{topic} has no leader yet")))
            }
            None => Ok(Some(found.partitions().len() as i32)),
            Some(Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART | Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC) => Ok(None),
            Some(Code::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION) => {
                Err(Error::Config(format!("{topic:?} is no valid topic name")))
            }
            Some(code) => {
                let code = RDKafkaErrorCode::from(code);
                Err(Error::retriable("metadata", format!("{topic}: {code}")))
            }
        }
    }

    fn watermarks(&self, partition: &TopicPartition) -> Result<(i64, i64), Error> {
        self.with_metadata(|client| client.fetch_watermarks(&partition.topic, partition.partition, TIMEOUT))
    }

    fn log_append_time(&self, topic: &str) -> Result<bool, Error> {
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
        let resources = [ResourceSpecifier::Topic(topic)];
        let answers = self.with_admin(|admin| block_on(admin.describe_configs(&resources, &options)))?;
        let answers = answers.map_err(|error| classify("describe topic", &error))?;
        for answer in answers {
            let resource = answer.map_err(|code| match code {
                RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                    Error::UnknownTopic(topic.to_owned())
                }
                code => Error::retriable("describe topic", code),
            })?;
            if let Some(entry) = resource.get("message.timestamp.type") {
                return Ok(entry.value.as_deref() == Some("LogAppendTime"));
            }
        }
        Ok(false)
    }

    fn consumer(&self, config: &ConsumerConfig) -> Result<Box<dyn Consumer>, Error> {
        Ok(Box::new(KafkaConsumer::new(&self.config, config)?))
    }

    fn producer(&self, config: &ProducerConfig) -> Result<Box<dyn Producer>, Error> {
        Ok(Box::new(KafkaProducer::new(&self.config, config)?))
    }
}

pub(crate) fn check_count(topic: &TopicConfig, actual: i32) -> Result<(), Error> {
    match actual == topic.partitions {
        true => Ok(()),
        false => Err(Error::PartitionCount {
            topic: topic.name.clone(),
            actual,
            wanted: topic.partitions,
        }),
    }
}

fn topic_settings(topic: &TopicConfig) -> Vec<(&'static str, String)> {
    let stamp = match topic.log_append_time {
        true => "LogAppendTime",
        false => "CreateTime",
    };
    let mut settings = vec![("message.timestamp.type", stamp.to_owned())];
    match topic.cleanup {
        Cleanup::Compact => settings.push(("cleanup.policy", "compact".to_owned())),
        Cleanup::Delete { days } => {
            settings.push(("cleanup.policy", "delete".to_owned()));
            settings.push(("retention.ms", (i64::from(days) * MS_PER_DAY).to_string()));
        }
    }
    settings
}

fn is_passing(code: RDKafkaErrorCode) -> bool {
    let error = KafkaError::AdminOp(code);
    matches!(
        code_of(&error),
        Some(
            RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::RequestTimedOut
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::NotController
                | RDKafkaErrorCode::LeaderNotAvailable
        )
    )
}

/// Waits for a future on this thread: the library's admin calls complete on a thread of their own.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
