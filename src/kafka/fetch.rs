//! Fetching without librdkafka.
#![allow(dead_code)]

mod connection;
mod wire;
