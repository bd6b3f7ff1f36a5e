//! Records that could not be used, kept with where they are and why.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::{Output, Record};

/// A record that could not be used, with where it is and why, and as much of it as is kept.
/// `source` names who could not use it.
pub fn dead_letter(topic: &Arc<str>, source: &str, record: &Record<'_>, reason: &str, bytes_max: usize) -> Output {
    let value = record.value.map(|value| &value[..value.len().min(bytes_max)]);
    let all = record.value.unwrap_or_default();
    let headers = [
        ("source_topic", record.partition.topic.to_string()),
        ("source_partition", record.partition.partition.to_string()),
        ("source_offset", record.offset.to_string()),
        ("source", source.to_owned()),
        ("reason", reason.to_owned()),
        ("length", all.len().to_string()),
        (
            "sha256",
            Sha256::digest(all).iter().map(|byte| format!("{byte:02x}")).collect(),
        ),
        ("timestamp", record.timestamp_ms.to_string()),
    ];
    Output {
        topic: Arc::clone(topic),
        partition: None,
        key: record.key.map(<[u8]>::to_vec),
        value: value.map(<[u8]>::to_vec),
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.into_bytes()))
            .into(),
    }
}
