//! Runs the broker contract against the Kafka that KAFKA_BOOTSTRAP names, and prints how each case ended.
use std::sync::Arc;

use kafka::{Broker, Kafka, contract};

fn main() {
    let bootstrap = std::env::var("KAFKA_BOOTSTRAP").expect("KAFKA_BOOTSTRAP names a broker");
    let broker: Arc<dyn Broker> = Arc::new(Kafka::at(&bootstrap).expect("a valid address"));
    let report = contract::run(&broker);
    println!("{}", contract::Matrix(std::slice::from_ref(&report)));
    report.assert_passed();
}
