//! The contract on the brokers that need nothing but this process.

use std::sync::Arc;

use crate::{Broker, Embedded, Memory, SystemClock, contract};

#[test]
fn memory_keeps_the_contract() {
    let broker: Arc<dyn Broker> = Arc::new(Memory::new(Arc::new(SystemClock)));
    let report = contract::run(&broker);
    report.assert_passed();
    let skipped = report
        .outcomes
        .iter()
        .filter(|(_, outcome)| *outcome != contract::Outcome::Passed);
    assert_eq!(skipped.count(), 0, "memory has every capability");
}

#[test]
fn embedded_keeps_what_it_promises() {
    let broker: Arc<dyn Broker> = Arc::new(Embedded::start().unwrap());
    let report = contract::run(&broker);
    println!("{}", contract::Matrix(std::slice::from_ref(&report)));
    report.assert_passed();
}
