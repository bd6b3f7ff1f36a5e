//! Bytes as the protocol guide has them (<https://kafka.apache.org/protocol#The_Messages_Fetch>), written by hand.

use proptest::prelude::*;

use super::*;

/// Bytes from text: hexadecimal, and `'text'` as it is. What stands behind `#` says what a line is.
fn bytes(text: &str) -> Vec<u8> {
    let words = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap().split_whitespace());
    let of = |word: &str| match word.strip_prefix('\'') {
        Some(text) => text.trim_end_matches('\'').as_bytes().to_vec(),
        None => {
            let digits: Vec<u8> = word
                .bytes()
                .map(|digit| (digit as char).to_digit(16).unwrap() as u8)
                .collect();
            digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
        }
    };
    words.flat_map(of).collect()
}

fn wanted(topic: &str, partition: i32, offset: i64, leader_epoch: i32) -> Wanted {
    Wanted {
        partition: TopicPartition::new(topic, partition),
        offset,
        leader_epoch,
        version: 9,
    }
}

#[test]
fn a_fetch_request_is_as_the_guide_has_it() {
    let wanted = [
        wanted("ab", 1, 0x0102, 5),
        wanted("ab", 2, 0, -1),
        wanted("c", 0, 7, 0),
        wanted("ab", 3, 1, 1),
    ];
    let limits = Limits {
        wait: Duration::from_millis(100),
        answer_bytes: 0x20_0000,
        partition_bytes: 0x08_0000,
    };
    let body = fetch(&wanted, true, limits);
    let expected = "
        ffffffff         # replica_id
        00000064         # max_wait_ms
        00000001         # min_bytes
        00200000         # max_bytes
        01               # isolation_level: read committed
        00000000         # session_id
        ffffffff         # session_epoch: none
        00000003         # topics
        0002 'ab'
        00000002         # partitions: index, current_leader_epoch, fetch_offset, log_start_offset, partition_max_bytes
        00000001 00000005 0000000000000102 ffffffffffffffff 00080000
        00000002 ffffffff 0000000000000000 ffffffffffffffff 00080000
        0001 'c'
        00000001
        00000000 00000000 0000000000000007 ffffffffffffffff 00080000
        0002 'ab'
        00000001
        00000003 00000001 0000000000000001 ffffffffffffffff 00080000
        00000000         # forgotten_topics_data
        0000             # rack_id";
    assert_eq!(body.0, bytes(expected));
    assert_eq!(fetch(&wanted, false, limits).0[16], 0);
}

const FETCHED: &str = "
    00000009             # correlation
    00000002             # throttle_time_ms
    0000                 # error_code
    00000000             # session_id
    00000002             # topics
    0002 'ab'
    00000002             # partitions
    00000001 0000        # index, error_code
    0000000000000064     # high_watermark
    0000000000000050     # last_stable_offset
    0000000000000000     # log_start_offset
    00000002             # aborted_transactions
    0000000000000007 000000000000000a
    0000000000000008 000000000000000b
    ffffffff             # preferred_read_replica
    00000004 'data'      # records
    00000002 0001
    ffffffffffffffff ffffffffffffffff ffffffffffffffff
    ffffffff             # no aborted_transactions
    ffffffff
    ffffffff             # no records
    0001 'c'
    00000001
    00000000 0000
    0000000000000001 0000000000000001 0000000000000000
    00000000
    ffffffff
    00000000";

#[test]
fn a_fetch_answer_is_as_the_guide_has_it() {
    let answer = bytes(FETCHED);
    let all = fetched(&answer).unwrap();
    let [first, second, third] = &all[..] else {
        panic!("{all:?}")
    };
    assert_eq!((first.topic, first.partition, first.code), ("ab", 1, 0));
    assert_eq!((first.high_watermark, first.last_stable_offset), (100, 80));
    assert_eq!(&answer[first.records.clone()], b"data");
    let aborted = [(7, 10), (8, 11)].map(|(producer, first_offset)| Aborted { producer, first_offset });
    assert_eq!(first.aborted, aborted);
    assert_eq!(
        (second.topic, second.partition, second.code),
        ("ab", 2, OFFSET_OUT_OF_RANGE)
    );
    assert!(second.records.is_empty() && second.aborted.is_empty());
    assert_eq!(
        (third.topic, third.partition, third.code, third.records.len()),
        ("c", 0, 0, 0)
    );

    // What is said of the whole answer is said of each, unless that has a reason of its own.
    let mut refused = answer.clone();
    refused[9] = 70;
    let codes: Vec<i16> = fetched(&refused).unwrap().iter().map(|part| part.code).collect();
    assert_eq!(codes, [70, 1, 70]);
}

#[test]
fn a_metadata_request_is_as_the_guide_has_it() {
    let body = metadata(["ab", "c"].into_iter());
    let expected = "
        00000002         # topics
        0002 'ab'
        0001 'c'
        00               # allow_auto_topic_creation";
    assert_eq!(body.0, bytes(expected));
}

const LED: &str = "
    00000009             # correlation
    00000000             # throttle_time_ms
    00000002             # brokers: node_id, host, port, rack
    00000001 0004 'host' 00002384 ffff
    00000002 0002 '::' 00000050 0001 'r'
    0001 'i'             # cluster_id
    00000001             # controller_id
    00000002             # topics
    0000 0002 'ab' 00    # error_code, name, is_internal
    00000002             # partitions
    0000 00000000 00000002 00000005    # error_code, index, leader_id, leader_epoch
    00000002 00000001 00000002         # replica_nodes
    00000001 00000002                  # isr_nodes
    00000000                           # offline_replicas
    0005 00000001 ffffffff 00000006
    00000001 00000001
    00000000
    00000001 00000001
    0003 0001 'c' 00
    00000000";

#[test]
fn a_metadata_answer_is_as_the_guide_has_it() {
    let led_by = |partition, leader, leader_epoch| Led {
        partition: TopicPartition::new("ab", partition),
        leader,
        leader_epoch,
    };
    let expected = Metadata {
        brokers: vec![(1, "host:9092".into()), (2, ":::80".into())],
        partitions: vec![led_by(0, 2, 5), led_by(1, -1, 6)],
        failed: vec![("c".into(), 3)],
    };
    assert_eq!(led(&bytes(LED)), Ok(expected));
}

#[test]
fn what_is_cut_short_is_refused() {
    let (fetch, metadata) = (bytes(FETCHED), bytes(LED));
    for length in 0..fetch.len() {
        assert!(fetched(&fetch[..length]).is_err(), "{length}");
    }
    for length in 0..metadata.len() {
        assert!(led(&metadata[..length]).is_err(), "{length}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 5_000, ..ProptestConfig::default() })]

    #[test]
    fn no_answer_panics(
        of_fetch: bool,
        broken in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(0), Just(0x7f), Just(0xff)]), 1..8),
    ) {
        let mut answer = bytes(if of_fetch { FETCHED } else { LED });
        for (at, byte) in broken {
            let at = at.index(answer.len());
            answer[at] = byte;
        }
        if of_fetch {
            for part in fetched(&answer).into_iter().flatten() {
                prop_assert!(answer.get(part.records).is_some());
            }
        } else {
            let _ = led(&answer);
        }
    }
}
