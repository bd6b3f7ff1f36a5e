//! Invariants 11 and 17 on keys and pane records.

use std::collections::{BTreeMap, BTreeSet};

use arrow::{
    array::*,
    datatypes::{Float64Type, Int32Type, Int64Type, TimeUnit},
};
use datafusion::physical_expr::expressions::col;
use proptest::prelude::*;

use super::*;
use crate::spec::{AggregateKind, AggregateSpec};

#[test]
fn partitions_are_those_of_javas_producer() {
    // From Apache Kafka's UtilsTest.
    for (key, hash) in [
        ("21", -973_932_308_i32),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
    ] {
        assert_eq!(keys::murmur2(key.as_bytes()) as i32, hash, "{key}");
    }
    assert_eq!(partition_of(b"foobar", 7), (-790_332_482_i32 & 0x7fff_ffff) % 7);
    assert_eq!(partition_of(b"foobar", 0), 0);
}

type KeyRow = (Option<String>, Option<i64>, Option<bool>, Option<f64>, i64);

fn key_row() -> impl Strategy<Value = KeyRow> {
    (
        proptest::option::of("[ab]{0,2}"),
        proptest::option::of(-2_i64..2),
        proptest::option::of(any::<bool>()),
        proptest::option::of(prop_oneof![Just(0.5), Just(-1.0)]),
        0_i64..2,
    )
}

/// The columns in two forms: text plain and as a dictionary.
fn key_columns(rows: &[KeyRow]) -> [Vec<ArrayRef>; 2] {
    let texts: StringArray = rows.iter().map(|row| row.0.clone()).collect();
    let dictionary: DictionaryArray<Int32Type> = rows.iter().map(|row| row.0.as_deref()).collect();
    let rest: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| row.1).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| row.2).collect::<BooleanArray>()),
        Arc::new(rows.iter().map(|row| row.3).collect::<Float64Array>()),
        Arc::new(TimestampMillisecondArray::from_iter_values(
            rows.iter().map(|row| row.4),
        )),
    ];
    let with = |first: ArrayRef| std::iter::once(first).chain(rest.iter().cloned()).collect();
    [with(Arc::new(texts)), with(Arc::new(dictionary))]
}

proptest! {
    #[test]
    fn ids_are_equal_where_keys_are(rows in proptest::collection::vec(key_row(), 1..40), width in 1_usize..=5) {
        for columns in key_columns(&rows) {
            let columns = &columns[..width];
            let mut keys = Keys::new(columns.iter().map(|column| column.data_type()));
            let mut ids = Vec::new();
            keys.intern(columns, rows.len(), &mut ids).unwrap();
            let shown = |row: &KeyRow| {
                let parts = [format!("{:?}", row.0), format!("{:?}", row.1), format!("{:?}", row.2), format!("{:?}", row.3), row.4.to_string()];
                parts[..width].join("/")
            };
            let mut known: BTreeMap<String, u32> = BTreeMap::new();
            for (row, id) in rows.iter().zip(&ids) {
                prop_assert_eq!(*known.entry(shown(row)).or_insert(*id), *id);
            }
            prop_assert_eq!(known.len(), keys.len());
            prop_assert_eq!(known.values().collect::<BTreeSet<_>>().len(), keys.len());
            // Back to columns, and the same bytes from either.
            let back = keys.arrays(&ids).unwrap();
            for (row, id) in ids.iter().enumerate() {
                let (mut there, mut here) = (Vec::new(), Vec::new());
                encode_key(&back, row, &mut there).unwrap();
                encode_key(columns, row, &mut here).unwrap();
                prop_assert_eq!(&there, &here);
                prop_assert_eq!(&here[..], keys.encoded(*id));
            }
            // Ranks follow the bytes, also when keys come later.
            let again: Vec<u32> = keys.ranks().to_vec();
            for (left, right) in again.iter().enumerate().flat_map(|(l, _)| (0..again.len()).map(move |r| (l, r))) {
                prop_assert_eq!(again[left].cmp(&again[right]), keys.encoded(left as u32).cmp(keys.encoded(right as u32)));
            }
        }
    }

    #[test]
    fn ranks_of_keys_that_come_later_are_merged_in(first in proptest::collection::vec("[a-c]{0,3}", 1..20), then in proptest::collection::vec("[a-c]{0,3}", 1..20)) {
        let text = |names: &[String]| -> Vec<ArrayRef> { vec![Arc::new(StringArray::from_iter_values(names))] };
        let mut keys = Keys::new([DataType::Utf8].iter());
        let mut ids = Vec::new();
        keys.intern(&text(&first), first.len(), &mut ids).unwrap();
        keys.ranks();
        keys.intern(&text(&then), then.len(), &mut ids).unwrap();
        let ranks = keys.ranks().to_vec();
        let mut order: Vec<u32> = (0..keys.len() as u32).collect();
        order.sort_by_key(|id| ranks[*id as usize]);
        prop_assert!(order.windows(2).all(|pair| keys.encoded(pair[0]) < keys.encoded(pair[1])));
    }

    #[test]
    fn no_bytes_are_a_pane_record_that_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_panes(&bytes);
    }
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("ts", DataType::Timestamp(TimeUnit::Millisecond, None), false),
        Field::new("service", DataType::Utf8, true),
        Field::new("value", DataType::Float64, true),
    ]))
}

fn spec() -> PaneSetSpec {
    PaneSetSpec {
        state_limit: None,
        fingerprint: 1,
        source: 0,
        filter: None,
        keys: vec![col("service", &schema()).unwrap()],
        key_fields: vec![Arc::new(schema().field(1).clone())],
        aggregates: vec![AggregateSpec {
            kind: AggregateKind::Sum,
            args: vec![col("value", &schema()).unwrap()],
            filter: None,
            output: DataType::Float64,
        }],
        width_ms: 1_000,
        windows: vec![WindowSpec {
            view: "test.view".into(),
            size_ms: 1_000,
            slide_ms: 1_000,
            offset_ms: 0,
            lateness_ms: 0,
            late_topic: None,
            early_every_ms: None,
            session_gap_ms: None,
        }],
    }
}

fn fold(store: &mut PaneStore, rows: &[(i64, String, f64)]) {
    let times: Vec<i64> = rows.iter().map(|row| row.0).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampMillisecondArray::from(times.clone())),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.1))),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.2))),
    ];
    let batch = RecordBatch::try_new(schema(), columns).unwrap();
    store
        .prepare(&batch, &times, &BooleanBuffer::new_set(rows.len()))
        .unwrap();
    let span = Span {
        rows: 0..rows.len(),
        floor_ms: None,
        first_pane_ms: None,
        offsets: &vec![1; rows.len()],
        record_watermarks: &vec![i64::MIN; rows.len()],
    };
    let mut unusual = Unusual::default();
    store.fold(&span, &mut unusual).unwrap();
    assert!(unusual.late.is_empty() && unusual.over_limit.is_empty());
}

#[test]
fn names_that_come_and_go_do_not_add_up() {
    let mut store = PaneStore::new(spec(), 1_000_000).unwrap();
    let mut sum = 0.0;
    for pane in 0..400_i64 {
        let new = (0..200).map(|at| (pane * 1_000, format!("pod-{pane}-{at}"), 1.0));
        let kept = (0..20).map(|at| (pane * 1_000, format!("service-{at}"), 1.0));
        // One key stays open from pane to pane while the sweep moves ids.
        let open = [(pane * 1_000 + 1_000, "open".to_owned(), 1.0)];
        fold(&mut store, &new.chain(kept).chain(open).collect::<Vec<_>>());
        let sealed = store.seal(Some(pane * 1_000), pane * 1_000 + 1_000).unwrap().unwrap();
        let rows = sealed.rows_for(0, 1).unwrap().unwrap();
        let names = rows.column(2).as_string::<i32>();
        assert_eq!(
            names
                .iter()
                .flatten()
                .filter(|name| name.starts_with("service"))
                .count(),
            20
        );
        assert_eq!(rows.num_rows(), 220 + usize::from(pane > 0));
        sum += rows
            .column(4)
            .as_primitive::<Float64Type>()
            .values()
            .iter()
            .sum::<f64>();
    }
    assert_eq!(sum, 400.0 * 220.0 + 399.0);
    assert!(store.keys() < 3 * 4_096, "{} keys are remembered", store.keys());
}

#[test]
fn rows_are_sorted_by_pane_and_key_and_split_over_partitions() {
    let mut store = PaneStore::new(spec(), 1_000_000).unwrap();
    let rows: Vec<_> = (0..300)
        .map(|at| ((at * 7 % 5) * 1_000, format!("s{}", at * 31 % 40), 1.0))
        .collect();
    fold(&mut store, &rows);
    assert_eq!(store.low_water(), Some((1, i64::MIN)));
    let sealed = store.flush(None).unwrap().unwrap();
    assert_eq!(store.low_water(), None);
    let mut total = 0;
    for partition in 0..4 {
        let rows = sealed.rows_for(partition, 4).unwrap().unwrap();
        let mut records = Vec::new();
        write_panes(&rows, 1_500, &mut records, &mut |_, _| panic!("rows are small")).unwrap();
        let mut last = (i64::MIN, Vec::new());
        for record in records {
            assert!(record.len() <= 1_500);
            let rows = read_panes(&record).unwrap();
            total += rows.num_rows();
            for row in 0..rows.num_rows() {
                let mut key = Vec::new();
                encode_key(&rows.columns()[2..3], row, &mut key).unwrap();
                assert_eq!(partition_of(&key, 4), partition);
                let here = (rows.column(0).as_primitive::<Int64Type>().value(row), key);
                assert!(last < here);
                last = here;
            }
        }
    }
    assert_eq!(
        total,
        rows.iter().map(|row| (row.0, &row.1)).collect::<BTreeSet<_>>().len()
    );
}

#[test]
fn a_row_that_fits_no_record_is_named() {
    let mut store = PaneStore::new(spec(), 1_000_000).unwrap();
    fold(&mut store, &[(0, "small".into(), 1.0), (0, "x".repeat(5_000), 1.0)]);
    let rows = store.flush(None).unwrap().unwrap().rows_for(0, 1).unwrap().unwrap();
    let (mut records, mut refused) = (Vec::new(), 0);
    // lz4 would shrink the long key; 700 bytes are less than the framing of one row takes.
    write_panes(&rows, 700, &mut records, &mut |_, _| refused += 1).unwrap();
    assert_eq!(records.len() + refused, 2);
    assert!(refused >= 1);
}
