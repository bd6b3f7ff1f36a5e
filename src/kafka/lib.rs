//! The transactional loop over a broker, and three brokers for it.
//!
//! [`run_stage`] drives a [`protocol::Stage`]: it owns polling, assignment, the transaction, crash points and the clock, and
//! knows nothing of telemetry. [`Broker`] is what it needs of a log service: [`Memory`] is deterministic and single-process, for
//! simulations; [`Kafka`] is the real one; [`Embedded`] is librdkafka's mock cluster in this process, for the demo. One contract
//! suite (feature `contract`) runs over all of them.
//!
//! Fails with [`Error`], whose [`Class`] says what the caller does next.

mod broker;
mod clock;
mod config;
#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod crash;
mod embedded;
mod error;
mod fetch;
mod kafka;
mod librdkafka;
pub mod memory;
mod observer;
mod partitioner;
mod run;

pub use broker::{
    Broker, Capabilities, Consumer, ConsumerConfig, GroupMetadata, Polled, Producer, ProducerConfig, TopicConfig,
    partitions_of, pause_only,
};
pub use clock::{Clock, SystemClock, VirtualClock};
pub use config::{KafkaConfig, Mechanism, Sasl, Secret, Tls};
pub use crash::{CRASH_POINT, CrashPoint, Death, Point};
pub use embedded::Embedded;
pub use error::{Class, Error};
pub use kafka::Kafka;
pub use memory::Memory;
pub use observer::{Commit, Observer, Shutdown};
pub use partitioner::partition_of;
pub use run::{LoopConfig, StageLoop, Switches, Turn, run_stage};
