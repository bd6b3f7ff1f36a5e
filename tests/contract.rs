//! One contract for all brokers, and what only a real Kafka can show.

use std::sync::Arc;

use kafka::{
    Broker, Embedded, KafkaConfig, Mechanism, Memory, ProducerConfig, Sasl, Secret, SystemClock, Tls, TopicConfig,
    contract::{self, Matrix, Outcome},
};
use protocol::{Output, TopicPartition};
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

/// Creates a topic, writes to it in a transaction, and finds the record there.
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
    let (low, high) = broker.watermarks(&TopicPartition::new(topic, 0)).unwrap();
    assert!(high > low);
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
        refused(&config);
    }

    let mut anonymous = KafkaConfig::new(kafka.address("ssl").unwrap());
    anonymous.tls = Some(tls);
    refused(&anonymous);
}

fn refused(config: &KafkaConfig) {
    let broker = kafka::Kafka::new(config).unwrap();
    let error = broker.partition_count("any").unwrap_err();
    assert_eq!(error.class(), kafka::Class::Retriable, "{error}");
}
