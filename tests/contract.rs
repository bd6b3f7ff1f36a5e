//! One contract for all brokers, and what only a real Kafka can show.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kafka::{
    Broker, Consumer, ConsumerConfig, Embedded, KafkaConfig, Mechanism, Memory, ProducerConfig, Sasl, Secret,
    SystemClock, Tls, TopicConfig,
    contract::{self, Matrix, Outcome},
};
use protocol::{Batch, Output, TopicPartition};
use tests::rig;

#[test]
fn every_broker_keeps_the_contract_as_far_as_it_claims() {
    let brokers: [Arc<dyn Broker>; 3] = [
        rig::Kafka::shared().broker().unwrap(),
        Arc::new(Memory::new(Arc::new(SystemClock))),
        Arc::new(Embedded::start().unwrap()),
    ];
    let reports = brokers.each_ref().map(contract::run);
    println!("{}", Matrix(&reports));
    for report in &reports {
        report.assert_passed();
        let skipped = report
            .outcomes
            .iter()
            .filter(|(_, outcome)| *outcome != Outcome::Passed)
            .count();
        assert!(
            skipped == 0 || report.broker == "embedded",
            "{} skips {skipped} cases",
            report.broker
        );
    }
}

/// How long a broker may take to be read from, or to refuse it.
const PATIENCE: Duration = Duration::from_secs(30);

fn reader(broker: &dyn Broker, partition: &TopicPartition) -> Box<dyn Consumer> {
    let mut consumer = broker.consumer(&ConsumerConfig::new("contract", None)).unwrap();
    consumer.assign(&[(partition.clone(), 0)]).unwrap();
    consumer
}

/// Creates a topic, writes to it in a transaction, and reads the record back.
fn works(config: &KafkaConfig, topic: &str) {
    let broker = kafka::Kafka::new(config).unwrap();
    broker.ensure_topics(&[TopicConfig::new(topic, 1)]).unwrap();
    let mut producer = broker.producer(&ProducerConfig::transactional(topic, topic)).unwrap();
    producer.begin().unwrap();
    let output = Output {
        topic: topic.into(),
        partition: None,
        key: None,
        value: Some(b"v".to_vec()),
        headers: vec![],
    };
    producer.send(&output).unwrap();
    producer.commit().unwrap();
    let partition = TopicPartition::new(topic, 0);
    let (low, high) = broker.watermarks(&partition).unwrap();
    assert!(high > low);

    let mut consumer = reader(&broker, &partition);
    let mut batch = Batch::default();
    let began = Instant::now();
    while batch.is_empty() {
        let polled = consumer.poll(Duration::from_millis(100), &mut batch);
        assert!(began.elapsed() < PATIENCE, "{topic} cannot be read: {polled:?}");
    }
    let values: Vec<_> = batch.iter().map(|record| record.value).collect();
    assert_eq!(values, [Some(&b"v"[..])]);
}

#[test]
fn tls_and_sasl_reach_a_kafka_that_demands_them() {
    let kafka = rig::Kafka::start(&["--tls"]).unwrap();
    let tls = Tls {
        ca_file: Some(kafka.file("ca.pem").unwrap()),
        ..Tls::default()
    };

    let mut mutual = KafkaConfig::new(kafka.address("ssl").unwrap());
    mutual.tls = Some(Tls {
        certificate_file: Some(kafka.file("client.pem").unwrap()),
        key_file: Some(kafka.file("client.key").unwrap()),
        ..tls.clone()
    });
    works(&mutual, "mutual-tls");

    let mechanisms = [Mechanism::Plain, Mechanism::ScramSha256, Mechanism::ScramSha512];
    for (mechanism, topic) in mechanisms.into_iter().zip(["plain", "scram-256", "scram-512"]) {
        let mut config = KafkaConfig::new(kafka.address("sasl_ssl").unwrap());
        config.tls = Some(tls.clone());
        config.sasl = Some(Sasl {
            mechanism,
            username: "homeostat".into(),
            password: Secret("secret".into()),
        });
        works(&config, topic);
        config.sasl = Some(Sasl {
            mechanism,
            username: "homeostat".into(),
            password: Secret("wrong".into()),
        });
        refused(&config, "sasl.password");
    }

    let mut anonymous = KafkaConfig::new(kafka.address("ssl").unwrap());
    anonymous.tls = Some(tls);
    refused(&anonymous, "tls.certificate_file");
}

/// Neither asks nor reads, and who reads is told what to mend.
fn refused(config: &KafkaConfig, mend: &str) {
    let broker = kafka::Kafka::new(config).unwrap();
    let error = broker.partition_count("any").unwrap_err();
    assert_eq!(error.class(), kafka::Class::Retriable, "{error}");

    let mut consumer = reader(&broker, &TopicPartition::new("any", 0));
    let began = Instant::now();
    loop {
        // The library tells, too, in fewer words.
        let polled = consumer.poll(Duration::from_millis(100), &mut Batch::default());
        if let Err(error) = &polled {
            assert_eq!(error.class(), kafka::Class::Retriable, "{error}");
            if error.to_string().contains(mend) {
                return;
            }
        }
        assert!(began.elapsed() < PATIENCE, "not told of {mend}, but: {polled:?}");
    }
}
