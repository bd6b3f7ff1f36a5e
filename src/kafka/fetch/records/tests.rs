//! What is written in message format 2 is read back; what is not in it is refused with a word.

use proptest::prelude::*;

use super::*;
use crate::fetch::testing::{CODECS, Codec, Content, Draft, Fields, Log, Row, draft, log, rows, varint};

type Change<T> = fn(&mut T);

/// Reads one answer as the fetcher does: what it holds from an offset on, where to read on, and what is wrong with it.
struct Answered {
    rows: Vec<Row>,
    next: Option<i64>,
    wrong: Option<String>,
}

fn answered(bytes: &[u8], mut aborted: Vec<Aborted>, mut position: i64, with_headers: bool) -> Answered {
    // Records are never all there is of an answer.
    let (before, behind) = (b"before", b"\x06\x00\x00behind");
    let answer = [before.as_slice(), bytes, behind].concat();
    let range = before.len()..answer.len() - behind.len();
    let mut found = Unpacked::default();
    let mut wrong = unpack(&answer, range, &mut aborted, &mut found).err();
    let (mut batch, mut block) = (Batch::default(), None);
    let handle = batch.partition("topic", 0);
    for records in &mut found.batches {
        let pushed = push(
            records,
            &answer,
            &mut block,
            &mut position,
            (handle, with_headers),
            &mut batch,
        );
        if let Err(malformed) = pushed {
            wrong = Some(malformed.to_string());
            break;
        }
    }
    if let Some(block) = block {
        batch.adopt(block, answer);
    }
    Answered {
        rows: rows(&batch),
        next: found.next,
        wrong,
    }
}

/// Reads a log from an offset to its end, in answers of these sizes.
fn read(log: &Log, from: i64, sizes: &[usize], read_committed: bool, with_headers: bool) -> Vec<Row> {
    let mut all = Vec::new();
    let mut position = from;
    for size in sizes.iter().cycle() {
        let sent = log.send(position, *size, read_committed);
        if sent.bytes.is_empty() {
            break;
        }
        let answered = answered(&sent.bytes, sent.aborted, position, with_headers);
        assert_eq!(answered.wrong, None);
        all.extend(answered.rows);
        let next = answered.next.unwrap();
        assert!(next > position);
        position = next;
    }
    all
}

fn one_batch(codec: Codec, values: &[&str]) -> Fields {
    let records = values.iter().map(|value| Some(Content::value(*value))).collect();
    let draft = Draft {
        codec,
        records,
        ..Draft::default()
    };
    Fields::of(40, &draft)
}

/// What is wrong, when the batch of these fields is read behind a good one, of which nothing is lost.
#[track_caller]
fn wrong_with(change: impl FnOnce(&mut Fields)) -> String {
    let mut log = Log::default();
    log.append_values(["good"]);
    let mut bytes = log.send(0, usize::MAX, false).bytes;
    let mut fields = one_batch(Codec::None, &["one", "two"]);
    change(&mut fields);
    bytes.extend(fields.write());
    let answered = answered(&bytes, Vec::new(), 0, true);
    assert_eq!(answered.rows[..1], log.expected(0, false)[..]);
    answered.wrong.expect("something is wrong")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read_from_any_offset_in_any_answers(
        log in log(),
        part in 0.0..1.0,
        sizes in prop::collection::vec(1..2_000usize, 1..4),
        read_committed: bool,
        with_headers: bool,
    ) {
        let from = log.start + ((log.end - log.start) as f64 * part) as i64;
        let mut expected = log.expected(from, read_committed);
        if !with_headers {
            expected.iter_mut().for_each(|row| row.4.clear());
        }
        prop_assert_eq!(read(&log, from, &sizes, read_committed, with_headers), expected);
    }

    /// One byte of a batch is another: whatever the checksum covers is found out, and what stands before it is kept.
    #[test]
    fn damage_is_found_out(drafts in prop::collection::vec(draft(), 1..4), at: prop::sample::Index, with in 1..=255u8) {
        let mut log = Log::default();
        let mut bytes = Vec::new();
        let mut starts = Vec::new();
        for draft in &drafts {
            starts.push((log.end, bytes.len()));
            bytes.extend(Fields::of(log.end, draft).write());
            log.append(draft);
        }
        let at = at.index(bytes.len());
        let (base, start) = *starts.iter().rfind(|(_, start)| *start <= at).unwrap();
        bytes[at] ^= with;
        let answered = answered(&bytes, Vec::new(), 0, true);
        let mut kept = log.expected(0, false);
        match at - start {
            // Base offset, length and leader epoch are not covered.
            0..16 => {}
            within => {
                kept.retain(|row| row.0 < base);
                prop_assert_eq!(answered.rows, kept);
                prop_assert_eq!(answered.next, (base > 0).then_some(base));
                let wrong = answered.wrong.unwrap();
                let reason = if within == 16 { "message format" } else { "checksum" };
                prop_assert!(wrong.contains(&format!("offset {base}")) && wrong.contains(reason), "{}", wrong);
            }
        }
    }

    #[test]
    fn a_batch_that_is_cut_off_is_left_for_the_next_answer(drafts in prop::collection::vec(draft(), 1..4), at: prop::sample::Index) {
        let mut log = Log::default();
        drafts.iter().for_each(|draft| log.append(draft));
        let bytes = log.send(0, usize::MAX, false).bytes;
        let answered = answered(&bytes[..at.index(bytes.len())], Vec::new(), 0, true);
        let whole = answered.next.unwrap_or_default();
        let mut expected = log.expected(0, false);
        expected.retain(|row| row.0 < whole);
        prop_assert_eq!(answered.rows, expected);
        // Brokers send the first batch whole, so that there is always a next answer.
        let first_is_cut = answered.next.is_none() && at.index(bytes.len()) > 0;
        prop_assert_eq!(answered.wrong.is_some(), first_is_cut, "{:?}", answered.wrong);
    }

    /// Fields that are wrong under a checksum that is right.
    #[test]
    fn anything_under_a_right_checksum_is_records_or_an_error(
        draft in draft(),
        numbers in (any::<i64>(), any::<i16>(), any::<i32>(), any::<i64>(), any::<i32>(), any::<i64>()),
        which in 0..64u8,
        broken in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut fields = Fields::of(40, &draft);
        let is = |bit: u8| which & 1 << bit != 0;
        if is(0) { fields.base_offset = numbers.0 }
        if is(1) { fields.attributes = numbers.1 }
        if is(2) { fields.last_delta = numbers.2 }
        if is(3) { fields.base_timestamp_ms = numbers.3 }
        if is(4) { fields.count = numbers.4 }
        if is(5) { fields.producer = numbers.5 }
        for (at, byte) in broken {
            if !fields.records.is_empty() {
                let at = at.index(fields.records.len());
                fields.records[at] = byte;
            }
        }
        if let Some(cut) = cut {
            fields.records.truncate(cut.index(fields.records.len() + 1));
        }
        let answered = answered(&fields.write(), Vec::new(), i64::MIN, true);
        if let Some(next) = answered.next {
            prop_assert!(next > fields.base_offset, "it would be asked for for ever");
        }
    }

    #[test]
    fn garbage_is_refused_or_left(garbage in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(2)], 0..200)) {
        let answered = answered(&garbage, Vec::new(), 0, true);
        prop_assert_eq!(answered.rows, vec![]);
    }
}

#[test]
fn every_codec_is_read() {
    let values: Vec<String> = (0..500)
        .map(|n| format!("{{\"service\":\"checkout\",\"n\":{n}}}"))
        .collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    for codec in CODECS {
        let fields = one_batch(codec, &values);
        let answered = answered(&fields.write(), Vec::new(), 140, true);
        let read: Vec<&str> = answered
            .rows
            .iter()
            .map(|row| std::str::from_utf8(row.3.as_ref().unwrap()).unwrap())
            .collect();
        assert_eq!(read, values[100..], "{codec:?}");
        assert_eq!((answered.next, answered.wrong), (Some(540), None));
    }
}

#[test]
fn what_is_wrong_is_said() {
    let cases: [(Change<Fields>, &str); 14] = [
        (
            |fields| fields.magic = 0,
            "the batch at offset 40: it is in message format 0, of before Kafka 0.11",
        ),
        (
            |fields| fields.magic = 1,
            "the batch at offset 40: it is in message format 1, of before Kafka 0.11",
        ),
        (
            |fields| fields.magic = 3,
            "the batch at offset 40: it is in message format 3, which is not known here",
        ),
        (
            |fields| fields.attributes = 7,
            "the batch at offset 40: it does not unpack: compression 7 is not known",
        ),
        (
            |fields| fields.attributes = 1,
            "the batch at offset 40: it does not unpack",
        ),
        (
            |fields| fields.attributes = 2,
            "the batch at offset 40: it does not unpack",
        ),
        (
            |fields| fields.attributes = 3,
            "the batch at offset 40: it does not unpack",
        ),
        (
            |fields| fields.attributes = 4,
            "the batch at offset 40: it does not unpack",
        ),
        (
            |fields| fields.count = -1,
            "the batch at offset 40: its offsets or its count of records are impossible",
        ),
        (
            |fields| fields.last_delta = -1,
            "the batch at offset 40: its offsets or its count of records are impossible",
        ),
        (
            |fields| fields.base_offset = -3,
            "the batch at offset -3: its offsets or its count of records are impossible",
        ),
        (
            |fields| fields.base_offset = i64::MAX,
            "its offsets or its count of records are impossible",
        ),
        (|fields| fields.count = i32::MAX, "a record is cut short"),
        (|fields| fields.count = 1, "the count of a batch's records is"),
    ];
    for (change, reason) in cases {
        let wrong = wrong_with(change);
        assert!(wrong.contains(reason), "no {reason:?} in: {wrong}");
    }
}

/// A record that is not as the format has it is not handed out, nor is any behind it; those before it are.
#[test]
fn a_damaged_record_is_not_handed_out() {
    let damages: [(&str, Change<Vec<u8>>); 5] = [
        ("longer than it says", |record| record[0] -= 2),
        ("shorter than it says", |record| record[0] += 2),
        ("a key of more than there is", |record| record[4] = 100),
        ("headers that are not there", |record| *record.last_mut().unwrap() = 20),
        ("a length of less than nothing", |record| record[0] = 1),
    ];
    for (what, damage) in damages {
        let mut good = one_batch(Codec::None, &["one"]).records;
        let mut bad = one_batch(Codec::None, &["two"]).records;
        bad[3] = 2; // Its offset: the second.
        damage(&mut bad);
        let behind = one_batch(Codec::None, &["a third one"]).records;
        good.extend(bad);
        good.extend(behind);
        let mut fields = one_batch(Codec::None, &["", "", ""]);
        fields.records = good;
        let answered = answered(&fields.write(), Vec::new(), 0, true);
        let offsets: Vec<i64> = answered.rows.iter().map(|row| row.0).collect();
        assert_eq!(offsets, [40], "{what}");
        assert!(answered.wrong.is_some(), "{what}");
    }
}

/// Blocks that are each one byte, repeated: 128 KiB in four bytes.
fn zstd_of_zeros(bytes: u64) -> Vec<u8> {
    let mut zstd = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58];
    for _ in 1..bytes >> 17 {
        zstd.extend([0x02, 0x00, 0x10, 0x00]);
    }
    zstd.extend([0x03, 0x00, 0x10, 0x00]);
    zstd
}

#[test]
fn few_bytes_never_become_gigabytes() {
    let zstd = zstd_of_zeros(UNPACKED_MAX + (1 << 17));
    // Length of what a block unpacks to, ahead of it.
    let mut snappy = vec![0xff, 0xff, 0xff, 0xff, 0x0f];
    snappy.extend(Codec::Snappy.pack(b"some"));
    let mut within_bounds = vec![0x80, 0x80, 0x80, 0x40];
    within_bounds.extend(Codec::Snappy.pack(b"some"));
    let mut framed = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
    framed.extend((within_bounds.len() as i32).to_be_bytes());
    framed.extend(&within_bounds);
    let cases = [
        (4, zstd, "more than 256 MB"),
        (2, snappy, "more than 256 MB"),
        (2, within_bounds, "more than so few bytes can hold"),
        (2, framed, "more than so few bytes can hold"),
    ];
    for (attributes, packed, reason) in cases {
        let wrong = wrong_with(|fields| (fields.attributes, fields.records) = (attributes, packed));
        assert!(
            wrong.contains("it does not unpack") && wrong.contains(reason),
            "{wrong}"
        );
    }
}

#[test]
fn what_unpacks_to_much_comes_bit_by_bit() {
    let mut bytes = Vec::new();
    for base_offset in 0..5 {
        let mut fields = one_batch(Codec::None, &["one"]);
        fields.base_offset = base_offset;
        (fields.attributes, fields.records) = (4, zstd_of_zeros(UNPACKED_AT_ONCE as u64 / 2));
        bytes.extend(fields.write());
    }
    let mut found = Unpacked::default();
    assert_eq!(unpack(&bytes, 0..bytes.len(), &mut Vec::new(), &mut found), Ok(()));
    assert_eq!((found.batches.len(), found.next), (2, Some(2)));
}

/// Varints of more than 64 bits, and those that fill them.
#[test]
fn varints_come_back() {
    for value in [0, 1, -1, 63, 64, -64, -65, 300, i64::from(i32::MAX), i64::MAX, i64::MIN] {
        let mut bytes = Vec::new();
        varint(&mut bytes, value);
        assert_eq!(Reader::new(&bytes).varint(""), Ok(value));
        assert!(Reader::new(&bytes[..bytes.len() - 1]).varint("").is_err());
    }
    assert!(Reader::new(&[0xff; 11]).varint("").is_err());
}
