//! The two requests of a reader: who leads the partitions (Metadata, KIP-320's version 7), and what is in them (Fetch, version
//! 11). Both are of Kafka 2.3, and served by every broker since.

use std::{ops::Range, sync::Arc, time::Duration};

use protocol::TopicPartition;

use super::{
    records::Aborted,
    wire::{Body, Malformed, Reader},
};

pub(super) const FETCH: (i16, i16) = (1, 11);
pub(super) const METADATA: (i16, i16) = (3, 7);

/// Codes of errors that are told apart here (<https://kafka.apache.org/protocol#protocol_error_codes>).
pub(super) const OFFSET_OUT_OF_RANGE: i16 = 1;
const NAMES: &[(i16, &str)] = &[
    (-1, "the broker met an error that it does not expect"),
    (OFFSET_OUT_OF_RANGE, "the offset is not in the log"),
    (2, "the broker found the records damaged"),
    (3, "the broker does not know this topic or partition"),
    (5, "the partition has no leader now"),
    (6, "the broker does not lead this partition any more"),
    (7, "the broker ran out of time"),
    (9, "the replica is not there now"),
    (13, "the network between the brokers failed"),
    (17, "the name is no valid topic"),
    (29, "this client may not read the topic: allow READ on it (kafka-acls)"),
    (43, "the broker cannot write the records in this version of the format"),
    (56, "the broker's disk failed"),
    (74, "the partition has a newer leader"),
    (75, "the broker does not know yet that it leads the partition"),
    (
        76,
        "the records are compressed in a way that this version of the protocol has no word for",
    ),
    (78, "the new leader does not know the end of the log yet"),
];

/// What a code of the broker means.
pub(super) fn meaning(code: i16) -> String {
    match NAMES.iter().find(|(known, _)| *known == code) {
        Some((_, meaning)) => (*meaning).to_owned(),
        None => format!("error {code} of the protocol"),
    }
}

/// How much is asked for at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How long the broker may keep a request for which it has nothing.
    pub wait: Duration,
    pub answer_bytes: i32,
    pub partition_bytes: i32,
}

/// A partition as it is asked for.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub partition: TopicPartition,
    pub offset: i64,
    pub leader_epoch: i32,
    /// Which assignment or seek of the partition this is for.
    pub version: u64,
}

/// The body of a Fetch request, outside of any fetch session. `wanted` is grouped by topic.
pub(super) fn fetch(wanted: &[Wanted], read_committed: bool, limits: Limits) -> Body {
    let mut body = Body::default();
    body.i32(-1) // No replica.
        .i32(limits.wait.as_millis() as i32)
        .i32(1)
        .i32(limits.answer_bytes)
        .i8(read_committed.into())
        .i32(0)
        .i32(-1);
    let topics: Vec<&[Wanted]> = wanted
        .chunk_by(|a, b| Arc::ptr_eq(&a.partition.topic, &b.partition.topic) || a.partition.topic == b.partition.topic)
        .collect();
    body.count(topics.len());
    for topic in topics {
        body.string(&topic[0].partition.topic).count(topic.len());
        for wanted in topic {
            body.i32(wanted.partition.partition)
                .i32(wanted.leader_epoch)
                .i64(wanted.offset)
                .i64(-1)
                .i32(limits.partition_bytes);
        }
    }
    // Nothing to forget, and no rack.
    body.count(0).string("");
    body
}

/// One partition of an answer.
#[derive(Debug)]
pub(super) struct Fetched<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub code: i16,
    pub high_watermark: i64,
    /// Everything before it is decided: committed or aborted.
    pub last_stable_offset: i64,
    pub aborted: Vec<Aborted>,
    /// Where the record batches lie in the answer.
    pub records: Range<usize>,
}

/// Reads a Fetch answer, correlation id included.
pub(super) fn fetched(answer: &[u8]) -> Result<Vec<Fetched<'_>>, Malformed> {
    const WHAT: &str = "an answer to Fetch";
    let mut reader = Reader::new(answer);
    reader.take(8, WHAT)?;
    let code = reader.i16(WHAT)?;
    reader.i32(WHAT)?;
    let mut all = Vec::new();
    for _ in 0..reader.length(WHAT)?.unwrap_or_default() {
        let topic = reader.string(WHAT)?.ok_or(Malformed(WHAT))?;
        for _ in 0..reader.length(WHAT)?.unwrap_or_default() {
            let partition = reader.i32(WHAT)?;
            let own = reader.i16(WHAT)?;
            let (high_watermark, last_stable_offset) = (reader.i64(WHAT)?, reader.i64(WHAT)?);
            reader.i64(WHAT)?;
            let mut aborted = Vec::new();
            for _ in 0..reader.length(WHAT)?.unwrap_or_default() {
                aborted.push(Aborted {
                    producer: reader.i64(WHAT)?,
                    first_offset: reader.i64(WHAT)?,
                });
            }
            reader.i32(WHAT)?;
            let records = reader.bytes(WHAT)?.unwrap_or_default();
            let end = reader.position();
            all.push(Fetched {
                topic,
                partition,
                code: if own == 0 { code } else { own },
                high_watermark,
                last_stable_offset,
                aborted,
                records: end - records.len()..end,
            });
        }
    }
    Ok(all)
}

/// The body of a Metadata request for these topics; none of them is created by it.
pub(super) fn metadata<'a>(topics: impl ExactSizeIterator<Item = &'a str>) -> Body {
    let mut body = Body::default();
    body.count(topics.len());
    for topic in topics {
        body.string(topic);
    }
    body.i8(0);
    body
}

/// Who leads what.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Id and `host:port` of each broker.
    pub brokers: Vec<(i32, String)>,
    pub partitions: Vec<Led>,
    /// Topics about which the broker has nothing to say, and why.
    pub failed: Vec<(String, i16)>,
}

/// A partition and its leader; negative where it has none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Led {
    pub partition: TopicPartition,
    pub leader: i32,
    pub leader_epoch: i32,
}

/// Reads a Metadata answer, correlation id included.
pub(super) fn led(answer: &[u8]) -> Result<Metadata, Malformed> {
    const WHAT: &str = "an answer to Metadata";
    let mut reader = Reader::new(answer);
    reader.take(8, WHAT)?;
    let mut metadata = Metadata::default();
    for _ in 0..reader.length(WHAT)?.unwrap_or_default() {
        let id = reader.i32(WHAT)?;
        let host = reader.string(WHAT)?.unwrap_or_default();
        let port = reader.i32(WHAT)?;
        reader.string(WHAT)?;
        metadata.brokers.push((id, format!("{host}:{port}")));
    }
    reader.string(WHAT)?;
    reader.i32(WHAT)?;
    for _ in 0..reader.length(WHAT)?.unwrap_or_default() {
        let code = reader.i16(WHAT)?;
        let topic: Arc<str> = reader.string(WHAT)?.unwrap_or_default().into();
        reader.i8(WHAT)?;
        if code != 0 {
            metadata.failed.push((topic.to_string(), code));
        }
        for _ in 0..reader.length(WHAT)?.unwrap_or_default() {
            reader.i16(WHAT)?;
            let partition = TopicPartition::new(Arc::clone(&topic), reader.i32(WHAT)?);
            let (leader, leader_epoch) = (reader.i32(WHAT)?, reader.i32(WHAT)?);
            // Replicas, those in sync, those offline.
            for _ in 0..3 {
                let count = reader.length(WHAT)?.unwrap_or_default();
                reader.take(count.saturating_mul(4), WHAT)?;
            }
            metadata.partitions.push(Led {
                partition,
                leader,
                leader_epoch,
            });
        }
    }
    Ok(metadata)
}
