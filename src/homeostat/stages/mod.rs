//! The three stages as the loop runs them: each composes the crates that know, and adds only what joins them.

pub mod aggregate;
pub mod decide;
pub mod detect;
pub mod json;

use engine::spec::OptionValue;
use protocol::{Output, Record, Topics};

/// Bytes of a bad record that its dead letter keeps.
const DEAD_LETTER_BYTES: usize = 64 * 1024;

/// Options of WITH (…) as the `detector` crate takes them.
pub fn values(options: &[(String, OptionValue)]) -> Vec<(String, detector::Value)> {
    let value = |value: &OptionValue| match value {
        OptionValue::Number(number) => detector::Value::Number(*number),
        OptionValue::Text(text) => detector::Value::Text(text.clone()),
        OptionValue::Bool(flag) => detector::Value::Bool(*flag),
    };
    options.iter().map(|(name, given)| (name.clone(), value(given))).collect()
}

/// A record that cannot be read, with why and where from.
pub fn dead_letter(topics: &Topics, record: &Record<'_>, reason: &str) -> Output {
    let value = record.value.unwrap_or_default();
    let headers = [
        ("reason", reason.to_owned()),
        ("topic", record.partition.topic.to_string()),
        ("partition", record.partition.partition.to_string()),
        ("offset", record.offset.to_string()),
        ("length", value.len().to_string()),
    ];
    Output {
        topic: topics.dead_letters().into(),
        partition: None,
        key: record.key.map(<[u8]>::to_vec),
        value: Some(value[..value.len().min(DEAD_LETTER_BYTES)].to_vec()),
        headers: headers.into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes())).collect(),
    }
}
