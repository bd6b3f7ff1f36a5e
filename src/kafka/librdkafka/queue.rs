//! The only `unsafe` of the project: records straight from librdkafka's queue into a [`Batch`], and three of its getters.
//!
//! Each assigned partition is forwarded to a queue of our own. It carries records and errors of partitions, never events of the
//! group, so the callback call may empty it under one lock: 30 to 75 % more records a second than the batch call, twice as many
//! as polling one by one. Events of the group stay on the consumer's queue and are polled there, safely.
//!
//! The callback copies and returns: no pointer outlives it, and the library frees its messages at once. It takes whatever the
//! queue holds, so that the library's bound on the queue holds too (stopping it early would defeat that bound).

#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_char, c_void},
    ptr, slice,
};

use protocol::{Batch, TimestampKind};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka_sys as sys;

/// Something other than a record, in its place among the records.
#[derive(Debug)]
pub(crate) struct PartitionEvent {
    pub topic: String,
    pub partition: i32,
    pub kind: PartitionEventKind,
}

#[derive(Debug)]
pub(crate) enum PartitionEventKind {
    /// The end, as of this next offset.
    End(i64),
    OutOfRange,
    Failed(String),
}

/// A queue that partitions of one consumer are forwarded to.
pub(crate) struct Queue {
    queue: *mut sys::rd_kafka_queue_t,
    /// Records come with their headers.
    pub headers: bool,
}

// SAFETY: librdkafka's queues are thread-safe; this handle is owned by one consumer and used by one thread at a time.
unsafe impl Send for Queue {}

impl Queue {
    pub fn new<C: ConsumerContext>(consumer: &BaseConsumer<C>, headers: bool) -> Self {
        // SAFETY: the client outlives the call; the library allocates and never returns null.
        let queue = unsafe { sys::rd_kafka_queue_new(consumer.client().native_ptr()) };
        Self { queue, headers }
    }

    /// Forwards a partition here. Doing it again does no harm, and is needed after the partition was stopped.
    pub fn attach<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>, topic: &str, partition: i32) {
        let Ok(topic) = CString::new(topic) else { return };
        // SAFETY: both queues belong to the live client; the partition's handle is given back at once, which leaves the
        // forwarding in place.
        unsafe {
            let source = sys::rd_kafka_queue_get_partition(consumer.client().native_ptr(), topic.as_ptr(), partition);
            if !source.is_null() {
                sys::rd_kafka_queue_forward(source, self.queue);
                sys::rd_kafka_queue_destroy(source);
            }
        }
    }

    /// Appends everything queued to the batch, after waiting for something to be.
    pub fn drain(&self, timeout_ms: i32, batch: &mut Batch, events: &mut Vec<PartitionEvent>) {
        let mut sink = Sink {
            batch,
            events,
            headers: self.headers,
            run: (ptr::null_mut(), -1, 0),
        };
        let opaque: *mut c_void = ptr::from_mut(&mut sink).cast();
        // SAFETY: the queue is live, and the callback runs within this call only, with the sink as its opaque.
        unsafe { sys::rd_kafka_consume_callback_queue(self.queue, timeout_ms, Some(take), opaque) };
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: created by rd_kafka_queue_new and destroyed once. Partitions still forwarded hold a reference of their own.
        unsafe { sys::rd_kafka_queue_destroy(self.queue) }
    }
}

struct Sink<'a> {
    batch: &'a mut Batch,
    events: &'a mut Vec<PartitionEvent>,
    headers: bool,
    /// Topic, partition and batch handle of the last record: the next one is mostly of the same.
    run: (*mut sys::rd_kafka_topic_t, i32, u32),
}

/// # Safety
/// Called by librdkafka with a live message, and the [`Sink`] that [`Queue::drain`] passed.
unsafe extern "C" fn take(message: *mut sys::rd_kafka_message_t, opaque: *mut c_void) {
    // SAFETY: see above; nothing else refers to the sink while the call lasts.
    let (message, sink) = unsafe { (&*message, &mut *opaque.cast::<Sink<'_>>()) };
    if message.err != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        // SAFETY: the message is live.
        unsafe { note(message, sink.events) };
        return;
    }
    if sink.run.0 != message.rkt || sink.run.1 != message.partition {
        // SAFETY: a message's topic is live and its name NUL-terminated.
        let topic = unsafe { CStr::from_ptr(sys::rd_kafka_topic_name(message.rkt)) };
        let handle = sink.batch.partition(&topic.to_string_lossy(), message.partition);
        sink.run = (message.rkt, message.partition, handle);
    }
    let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    // SAFETY: the message is live; key and payload are as long as it says; headers, where there are any, live as long.
    unsafe {
        let timestamp_ms = sys::rd_kafka_message_timestamp(message, &mut kind);
        let kind = match kind {
            sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME => TimestampKind::LogAppend,
            _ => TimestampKind::Create,
        };
        let mut headers = ptr::null_mut();
        if sink.headers
            && sys::rd_kafka_message_headers(message, &mut headers)
                != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
        {
            headers = ptr::null_mut();
        }
        sink.batch.push(
            sink.run.2,
            message.offset,
            (timestamp_ms, kind),
            bytes(message.key, message.key_len),
            bytes(message.payload, message.len),
            Headers { headers, next: 0 },
        );
    }
}

/// # Safety
/// `data` is null, or points to `length` bytes that live as long as the result is used.
unsafe fn bytes<'a>(data: *mut c_void, length: usize) -> Option<&'a [u8]> {
    match data.is_null() {
        true => None,
        // SAFETY: the caller's.
        false => Some(unsafe { slice::from_raw_parts(data.cast::<u8>(), length) }),
    }
}

/// Headers of a live message; only made and used within [`take`].
struct Headers {
    headers: *mut sys::rd_kafka_headers_t,
    next: usize,
}

impl Iterator for Headers {
    type Item = (&'static str, &'static [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.headers.is_null() {
                return None;
            }
            let mut name: *const c_char = ptr::null();
            let (mut value, mut length): (*const c_void, usize) = (ptr::null(), 0);
            // SAFETY: the headers are live while `take` runs, which uses each item before it asks for the next.
            unsafe {
                let error = sys::rd_kafka_header_get_all(self.headers, self.next, &mut name, &mut value, &mut length);
                if error != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                    return None;
                }
                self.next += 1;
                // A name that is no text cannot be asked for either.
                let Ok(name) = CStr::from_ptr(name).to_str() else {
                    continue;
                };
                return Some((name, bytes(value.cast_mut(), length).unwrap_or_default()));
            }
        }
    }
}

/// # Safety
/// The message is live and carries an error.
unsafe fn note(message: &sys::rd_kafka_message_t, events: &mut Vec<PartitionEvent>) {
    use sys::rd_kafka_resp_err_t as Code;
    if message.rkt.is_null() {
        return;
    }
    // SAFETY: topic name and error text are NUL-terminated and live as long as the message.
    let (topic, reason) = unsafe {
        let topic = CStr::from_ptr(sys::rd_kafka_topic_name(message.rkt));
        let reason = CStr::from_ptr(sys::rd_kafka_message_errstr(message));
        (
            topic.to_string_lossy().into_owned(),
            reason.to_string_lossy().into_owned(),
        )
    };
    let kind = match message.err {
        Code::RD_KAFKA_RESP_ERR__PARTITION_EOF => PartitionEventKind::End(message.offset),
        Code::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET | Code::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE => {
            PartitionEventKind::OutOfRange
        }
        _ => PartitionEventKind::Failed(reason),
    };
    events.push(PartitionEvent {
        topic,
        partition: message.partition,
        kind,
    });
}

/// The member id and generation that the group knows this consumer by; generation -1 while it is no member.
pub(crate) fn member<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<(String, i32)> {
    // SAFETY: the client is live; the metadata is ours until destroyed, and its member id is copied before that.
    unsafe {
        let metadata = sys::rd_kafka_consumer_group_metadata(consumer.client().native_ptr());
        if metadata.is_null() {
            return None;
        }
        let generation = sys::rd_kafka_consumer_group_metadata_generation_id(metadata);
        let member = sys::rd_kafka_consumer_group_metadata_member_id(metadata);
        let member = match member.is_null() {
            true => String::new(),
            false => CStr::from_ptr(member).to_string_lossy().into_owned(),
        };
        sys::rd_kafka_consumer_group_metadata_destroy(metadata);
        Some((member, generation))
    }
}

/// The high watermark of a partition as the last fetch saw it.
pub(crate) fn high_watermark<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
) -> Option<i64> {
    let topic = CString::new(topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client is live and both offsets are ours.
    let error = unsafe {
        let client = consumer.client().native_ptr();
        sys::rd_kafka_get_watermark_offsets(client, topic.as_ptr(), partition, &mut low, &mut high)
    };
    (error == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some(high)
}

/// Groups of a mock cluster form without the three seconds that it waits for more members by default.
pub(crate) fn mock_groups_form_at_once<C: rdkafka::ClientContext>(client: &rdkafka::client::Client<C>) {
    // SAFETY: the client is live and owns the mock cluster, where it has one.
    unsafe {
        let cluster = sys::rd_kafka_handle_mock_cluster(client.native_ptr());
        if !cluster.is_null() {
            sys::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 100);
        }
    }
}
