//! Invariant 5: windows are exact for any split over partitions and any interleaving of the writers.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray},
    datatypes::{DataType, Field, Float64Type, Int64Type, Schema, TimeUnit, TimestampMillisecondType},
};
use datafusion::physical_expr::{PhysicalExpr, expressions::Column};
use proptest::prelude::*;
use protocol::log::{PartitionProgress, SourceProgress};

use super::*;
use crate::spec::{AggregateKind, AggregateSpec, Format, SourceSpec, StartupMode};

const SET: u64 = 7;
const SOURCE: u64 = 1;

fn column(name: &str, at: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new(name, at))
}

fn pipeline(window: WindowSpec, fill: u32) -> Pipeline {
    let schema = Arc::new(Schema::new(vec![
        Field::new("ts", DataType::Timestamp(TimeUnit::Millisecond, None), true),
        Field::new("service", DataType::Utf8, true),
        Field::new("value", DataType::Float64, true),
    ]));
    let time = || Field::new("t", DataType::Timestamp(TimeUnit::Millisecond, None), true);
    let input = Arc::new(Schema::new(vec![
        Field::new("service", DataType::Utf8, true),
        time().with_name("window_start"),
        time().with_name("window_end"),
        Field::new("agg_0", DataType::Int64, true),
        Field::new("agg_1", DataType::Float64, true),
    ]));
    let aggregate = |kind, output| AggregateSpec {
        kind,
        args: vec![column("value", 2)],
        filter: None,
        output,
    };
    Pipeline {
        name: "test".into(),
        sources: vec![SourceSpec {
            name: "rows".into(),
            fingerprint: SOURCE,
            topic: "rows".into(),
            format: Format::Json,
            start: StartupMode::Earliest,
            schema,
            metadata: vec![],
            paths: vec![],
            event_time: 0,
            delay_ms: 0,
            idle_timeout_ms: None,
            max_future_skew_ms: i64::MAX,
            max_drift_ms: i64::MAX,
        }],
        pane_sets: vec![PaneSetSpec {
            fingerprint: SET,
            source: 0,
            filter: None,
            keys: vec![column("service", 1)],
            key_fields: vec![Arc::new(Field::new("service", DataType::Utf8, true))],
            aggregates: vec![
                aggregate(AggregateKind::Count, DataType::Int64),
                aggregate(AggregateKind::Sum, DataType::Float64),
            ],
            width_ms: 1_000,
            windows: vec![window.clone()],
            state_limit: None,
        }],
        views: vec![ViewSpec {
            name: "v".into(),
            pane_sets: vec![0],
            window,
            aggregates: vec![0, 1],
            projection: (0..5).map(|at| column(input.field(at).name(), at)).collect(),
            output: Arc::clone(&input),
            input,
            having: None,
            fill_missing_windows: fill,
            judged: None,
        }],
        detectors: vec![],
        policies: vec![],
        sinks: vec![],
    }
}

fn window(size: i64, slide: i64, lateness: i64) -> WindowSpec {
    let late_topic = None;
    WindowSpec {
        view: "test.v".into(),
        size_ms: size,
        slide_ms: slide,
        offset_ms: 0,
        lateness_ms: lateness,
        late_topic,
        early_every_ms: None,
        session_gap_ms: None,
    }
}

/// A pane record of one pane: (key, values).
fn panes(pipeline: &Pipeline, start: i64, first_offset: i64, rows: &BTreeMap<String, Vec<f64>>) -> RecordBatch {
    let specs = &pipeline.pane_sets[0].aggregates;
    let mut states = Vec::new();
    let mut fields = vec![
        Field::new("pane_start", DataType::Int64, false),
        Field::new("first_offset", DataType::Int64, false),
        Field::new("service", DataType::Utf8, true),
    ];
    for spec in specs {
        let mut accumulator = accumulator(spec).unwrap();
        for (group, values) in rows.values().enumerate() {
            let groups = vec![group as u32; values.len()];
            let args: Vec<ArrayRef> = vec![Arc::new(Float64Array::from(values.clone()))];
            accumulator.update(&groups, &args, None, rows.len()).unwrap();
        }
        fields.extend(accumulator.state_fields().iter().map(|field| field.as_ref().clone()));
        states.extend(accumulator.state().unwrap());
    }
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![start; rows.len()])),
        Arc::new(Int64Array::from(vec![first_offset; rows.len()])),
        Arc::new(StringArray::from(rows.keys().cloned().collect::<Vec<_>>())),
    ];
    columns.extend(states);
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn header(partition: i32, watermark_ms: i64, source_offset: i64) -> PaneHeader {
    PaneHeader {
        set: SET,
        source: SOURCE,
        source_partition: partition,
        watermark_ms,
        source_offset,
    }
}

fn progress(count: i32, partition: i32, watermark: i64, idle: bool, source_offset: i64) -> SourceProgress {
    let sets = Vec::new();
    let told = PartitionProgress {
        partition,
        watermark_ms: Some(watermark),
        idle,
        source_offset,
        sets,
        version: 0,
    };
    SourceProgress {
        source: SOURCE,
        partition_count: count,
        partitions: vec![told],
        clock: 0,
    }
}

/// (window end, key) → (count, sum).
fn results(closed: &[ClosedWindow]) -> BTreeMap<(i64, String), (i64, f64)> {
    let mut found = BTreeMap::new();
    for window in closed {
        let ends = window.rows.column(2).as_primitive::<TimestampMillisecondType>();
        for row in 0..window.rows.num_rows() {
            assert_eq!(ends.value(row), window.end_ms);
            let key = (
                window.end_ms,
                window.rows.column(0).as_string::<i32>().value(row).to_owned(),
            );
            let count = window.rows.column(3).as_primitive::<Int64Type>().value(row);
            let sum = window.rows.column(4).as_primitive::<Float64Type>().value(row);
            assert!(found.insert(key, (count, sum)).is_none(), "a window closed twice");
        }
    }
    found
}

#[test]
fn a_partition_never_heard_of_holds_every_window_open() {
    let pipeline = pipeline(window(1_000, 1_000, 0), 0);
    let mut assembler = Assembler::new(std::slice::from_ref(&pipeline)).unwrap();
    let rows = panes(&pipeline, 0, 0, &[("a".into(), vec![1.0])].into());
    assembler.panes(0, &header(0, i64::MIN, 1), &rows).unwrap();
    assert!(
        assembler
            .progress(&progress(2, 0, 9_000, false, 2))
            .unwrap()
            .closed
            .is_empty()
    );
    // Idle counts as heard of, and holds nothing.
    assert_eq!(assembler.progress(&progress(2, 1, 0, true, 0)).unwrap().closed.len(), 1);
}

#[test]
fn lateness_postpones_the_close_and_what_comes_after_it_is_late() {
    let pipeline = pipeline(window(1_000, 1_000, 2_000), 0);
    let mut assembler = Assembler::new(std::slice::from_ref(&pipeline)).unwrap();
    let first = panes(&pipeline, 0, 0, &[("a".into(), vec![1.0])].into());
    let delta = panes(&pipeline, 0, 5, &[("a".into(), vec![2.0])].into());
    assembler.panes(0, &header(0, i64::MIN, 1), &first).unwrap();
    assert!(
        assembler
            .progress(&progress(1, 0, 2_999, false, 2))
            .unwrap()
            .closed
            .is_empty()
    );
    assembler.panes(2, &header(0, 2_000, 6), &delta).unwrap();
    let closed = assembler.progress(&progress(1, 0, 3_000, false, 7)).unwrap().closed;
    assert_eq!(results(&closed), [((1_000, "a".to_owned()), (2, 3.0))].into());
    // Open for its own partition's watermark, closed here: late, and nothing re-opens.
    let late = assembler.panes(4, &header(0, 2_000, 8), &delta).unwrap();
    assert_eq!((late.late.len(), late.late[0].pane_start_ms), (1, 0));
    assert!(
        assembler
            .progress(&progress(1, 0, 9_000, false, 9))
            .unwrap()
            .closed
            .is_empty()
    );
}

/// Sessions with a gap of 4 s in panes of 1 s: per service the first and the last row, and how many there are.
fn sessions() -> Pipeline {
    let mut session = window(5_000, 1_000, 0);
    session.session_gap_ms = Some(4_000);
    let mut pipeline = pipeline(session, 0);
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    let (set, view) = (&mut pipeline.pane_sets[0], &mut pipeline.views[0]);
    let times = [AggregateKind::Min, AggregateKind::Max].map(|kind| AggregateSpec {
        kind,
        args: vec![column("ts", 0)],
        filter: None,
        output: time.clone(),
    });
    set.aggregates.truncate(1);
    set.aggregates.extend(times);
    view.aggregates = vec![0, 1, 2];
    let mut fields: Vec<Field> = view
        .input
        .fields()
        .iter()
        .take(4)
        .map(|field| field.as_ref().clone())
        .collect();
    fields.extend(["agg_1", "agg_2"].map(|name| Field::new(name, time.clone(), true)));
    view.input = Arc::new(Schema::new(fields));
    view.projection = (0..4).map(|at| column(view.input.field(at).name(), at)).collect();
    view.output = Arc::new(view.input.project(&[0, 1, 2, 3]).unwrap());
    pipeline
}

/// What a partition says at a seal: the watermark before it, keys and times of rows, and how far it has come.
type Said = (i64, Vec<(String, i64)>, i64);

/// A pane record of one row.
fn arrival(service: &str, time_ms: i64, log: i64) -> RecordBatch {
    let states: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![1])),
        Arc::new(TimestampMillisecondArray::from(vec![time_ms])),
        Arc::new(TimestampMillisecondArray::from(vec![time_ms])),
    ];
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        (
            "pane_start",
            Arc::new(Int64Array::from(vec![time_ms - time_ms.rem_euclid(1_000)])),
        ),
        ("first_offset", Arc::new(Int64Array::from(vec![log]))),
        ("service", Arc::new(StringArray::from(vec![service]))),
    ];
    columns.extend(["count", "min", "max"].into_iter().zip(states));
    RecordBatch::try_from_iter(columns).unwrap()
}

/// Key, start, end, and the rows of each session, in order.
fn told(closed: &[ClosedWindow]) -> Vec<(String, i64, i64, i64)> {
    let rows = closed.iter().flat_map(|session| {
        let keys = session.rows.column(0).as_string::<i32>();
        let counts = session.rows.column(3).as_primitive::<Int64Type>();
        (0..session.rows.num_rows()).map(move |row| {
            (
                keys.value(row).to_owned(),
                session.start_ms,
                session.end_ms,
                counts.value(row),
            )
        })
    });
    let mut rows: Vec<_> = rows.collect();
    rows.sort();
    rows
}

#[test]
fn a_row_that_is_not_late_joins_its_session_however_often_progress_is_told() {
    let pipeline = sessions();
    // The last row is published when the watermark passes 10 s, until which it is of a session that the partition holds open.
    for between in [vec![], vec![9_500], vec![9_200, 9_500, 9_999]] {
        let mut assembler = Assembler::new(std::slice::from_ref(&pipeline)).unwrap();
        let mut closed = Vec::new();
        assembler
            .panes(0, &header(0, i64::MIN, 0), &arrival("a", 5_200, 0))
            .unwrap();
        for watermark_ms in [9_000].into_iter().chain(between) {
            closed.extend(
                assembler
                    .progress(&progress(1, 0, watermark_ms, false, 1))
                    .unwrap()
                    .closed,
            );
        }
        assembler
            .panes(1, &header(0, 9_000, 1), &arrival("a", 5_900, 1))
            .unwrap();
        for watermark_ms in [10_000, 30_000] {
            closed.extend(
                assembler
                    .progress(&progress(1, 0, watermark_ms, false, 2))
                    .unwrap()
                    .closed,
            );
        }
        assert_eq!(told(&closed), [("a".to_owned(), 5_200, 9_900, 2)]);
        assert_eq!(assembler.pane_count(), 0);
    }
}

#[test]
fn a_row_exactly_a_gap_later_joins_and_what_is_near_no_open_session_is_late() {
    let pipeline = sessions();
    let mut assembler = Assembler::new(std::slice::from_ref(&pipeline)).unwrap();
    let mut closed = Vec::new();
    assembler
        .panes(0, &header(0, i64::MIN, 0), &arrival("a", 5_000, 0))
        .unwrap();
    closed.extend(assembler.progress(&progress(1, 0, 9_000, false, 1)).unwrap().closed);
    assembler
        .panes(1, &header(0, 9_000, 1), &arrival("a", 9_000, 1))
        .unwrap();
    let until = assembler.progress(&progress(1, 0, 14_000, false, 2)).unwrap();
    closed.extend(until.closed);
    assert_eq!(told(&closed), [("a".to_owned(), 5_000, 13_000, 2)]);
    // Near the session that is closed; and near none.
    for (log, time_ms) in [(2, 10_500), (3, 13_500)] {
        assembler
            .panes(log, &header(0, 14_000, log), &arrival("a", time_ms, log))
            .unwrap();
    }
    let end = assembler.progress(&progress(1, 0, 30_000, false, 4)).unwrap();
    assert_eq!(told(&end.closed), []);
    let late: Vec<i64> = end.late.iter().map(|late| late.pane_start_ms).collect();
    assert_eq!(late, [10_000, 13_000]);
    assert_eq!(
        json_row(&end.late[0]),
        serde_json::json!({"pane_start": 10_000, "first_offset": 2, "service": "a", "0.count": 1,
        "1.min": "1970-01-01T00:00:10.500Z", "2.max": "1970-01-01T00:00:10.500Z"})
    );
}

fn json_row(late: &LatePane) -> serde_json::Value {
    crate::json::row(&late.rows, 0).into()
}

#[test]
fn stale_writers_are_ignored_and_counted() {
    let pipeline = pipeline(window(1_000, 1_000, 0), 0);
    let mut assembler = Assembler::new(std::slice::from_ref(&pipeline)).unwrap();
    let rows = panes(&pipeline, 0, 0, &[("a".into(), vec![1.0])].into());
    assembler.panes(0, &header(0, i64::MIN, 10), &rows).unwrap();
    assert!(assembler.panes(1, &header(0, i64::MIN, 9), &rows).unwrap().stale);
    assert!(!assembler.panes(2, &header(0, i64::MIN, 10), &rows).unwrap().stale);
    let closed = assembler.progress(&progress(1, 0, 1_000, false, 10)).unwrap().closed;
    assert_eq!(results(&closed)[&(1_000, "a".to_owned())].0, 2);
}

#[test]
fn silent_keys_are_filled_in_for_as_many_windows_as_asked() {
    let pipeline = pipeline(window(1_000, 1_000, 0), 2);
    let mut assembler = Assembler::new(std::slice::from_ref(&pipeline)).unwrap();
    let rows = panes(&pipeline, 0, 0, &[("a".into(), vec![1.0])].into());
    assembler.panes(0, &header(0, i64::MIN, 1), &rows).unwrap();
    let closed = assembler.progress(&progress(1, 0, 9_000, false, 2)).unwrap().closed;
    let filled: Vec<(i64, usize)> = closed
        .iter()
        .map(|window| (window.end_ms, window.rows.column(4).null_count()))
        .collect();
    assert_eq!(filled, [(1_000, 0), (2_000, 1), (3_000, 1)]);
}

/// `pipeline` with a second source of another set, whose panes join those of the first.
fn union(window: WindowSpec) -> Pipeline {
    let mut pipeline = pipeline(window, 0);
    let mut source = pipeline.sources[0].clone();
    source.fingerprint = SOURCE + 1;
    pipeline.sources.push(source);
    let mut set = pipeline.pane_sets[0].clone();
    (set.fingerprint, set.source) = (SET + 1, 1);
    pipeline.pane_sets.push(set);
    pipeline.views[0].pane_sets = vec![0, 1];
    pipeline
}

#[test]
fn a_union_closes_when_every_living_source_has_passed_and_never_before_all_have_spoken() {
    let pipeline = union(window(1_000, 1_000, 0));
    let other = |mut progress: SourceProgress| {
        progress.source = SOURCE + 1;
        progress
    };
    let feed = |assembler: &mut Assembler, log: i64, at: i64, second: bool, value: f64| {
        let mut header = header(0, i64::MIN, log);
        if second {
            (header.set, header.source) = (SET + 1, SOURCE + 1);
        }
        let rows = panes(&pipeline, at, log, &[("a".into(), vec![value])].into());
        assembler.panes(log, &header, &rows).unwrap();
    };
    let mut assembler = Assembler::new(std::slice::from_ref(&pipeline)).unwrap();
    feed(&mut assembler, 0, 0, false, 1.0);
    let told = progress(1, 0, 5_000, false, 1);
    assert!(
        assembler.progress(&told).unwrap().closed.is_empty(),
        "the second source was never heard of"
    );
    feed(&mut assembler, 2, 0, true, 10.0);
    feed(&mut assembler, 3, 1_000, true, 20.0);
    let closed = assembler
        .progress(&other(progress(1, 0, 1_500, false, 4)))
        .unwrap()
        .closed;
    assert_eq!(results(&closed), [((1_000, "a".to_owned()), (2, 11.0))].into());
    // Restored at this point, it closes no window twice and none too few; idle, the second source holds nothing.
    let table = serde_json::from_str(&serde_json::to_string(assembler.table()).unwrap()).unwrap();
    let mut restored = Assembler::restored(&[(0, std::slice::from_ref(&pipeline))], table, None).unwrap();
    feed(&mut restored, 4, 1_000, true, 20.0);
    for assembler in [&mut assembler, &mut restored] {
        let idle = other(progress(1, 0, 1_500, true, 5));
        let closed = assembler.progress(&idle).unwrap().closed;
        assert_eq!(results(&closed), [((2_000, "a".to_owned()), (1, 20.0))].into());
        assert_eq!(assembler.needed_since(), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn windows_equal_brute_force(
        rows in prop::collection::vec((0..3i32, 0..20_000i64, 0..4u8, -100..100i32), 1..120),
        (size, slide) in prop::sample::select(vec![(1_000, 1_000), (4_000, 1_000), (6_000, 3_000), (5_000, 2_000), (40_000, 1_000)]),
        order in prop::collection::vec(any::<u32>(), 200),
        cut in 1..4usize,
    ) {
        let pipeline = pipeline(window(size, slide, 0), 0);
        let mut expected: BTreeMap<(i64, String), (i64, f64)> = BTreeMap::new();
        let mut by_pane: BTreeMap<(i32, i64), Vec<(String, f64)>> = BTreeMap::new();
        for (partition, time, key, value) in &rows {
            let key = format!("k{key}");
            by_pane.entry((*partition, time / 1_000 * 1_000)).or_default().push((key.clone(), f64::from(*value)));
            let mut start = time - time.rem_euclid(slide);
            while start + size > *time {
                let entry = expected.entry((start + size, key.clone())).or_default();
                entry.0 += 1;
                entry.1 += f64::from(*value);
                start -= slide;
            }
        }
        // Every pane in up to `cut` partials; the writers' records interleave at random, each writer's own in order.
        let mut writers: BTreeMap<i32, Vec<(i64, RecordBatch)>> = BTreeMap::new();
        for ((partition, pane), rows) in &by_pane {
            for (part, chunk) in rows.chunks(rows.len().div_ceil(cut)).enumerate() {
                let mut keyed: BTreeMap<String, Vec<f64>> = BTreeMap::new();
                chunk.iter().for_each(|(key, value)| keyed.entry(key.clone()).or_default().push(*value));
                writers.entry(*partition).or_default().push((*pane, panes(&pipeline, *pane, pane + part as i64, &keyed)));
            }
        }
        let mut assembler = Assembler::new(std::slice::from_ref(&pipeline)).unwrap();
        let mut closed = Vec::new();
        let mut log = 0;
        let mut queues: Vec<(i32, std::vec::IntoIter<(i64, RecordBatch)>)> =
            (0..3).map(|p| (p, writers.remove(&p).unwrap_or_default().into_iter())).collect();
        let mut choices = order.into_iter().cycle();
        while !queues.is_empty() {
            let at = choices.next().unwrap() as usize % queues.len();
            let (partition, queue) = &mut queues[at];
            match queue.next() {
                Some((pane, record)) => {
                    assembler.panes(log, &header(*partition, i64::MIN, log), &record).unwrap();
                    let told = progress(3, *partition, pane, false, log);
                    closed.extend(assembler.progress(&told).unwrap().closed);
                }
                None => {
                    let told = progress(3, *partition, 1_000_000, false, log);
                    closed.extend(assembler.progress(&told).unwrap().closed);
                    queues.remove(at);
                }
            }
            log += 1;
        }
        prop_assert_eq!(results(&closed), expected);
        prop_assert_eq!(assembler.pane_count(), 0);
        prop_assert_eq!(assembler.needed_since(), None);
    }

    /// Two partitions, each with rows out of order, read in two interleavings and told of at different moments: the same sessions and the
    /// same late rows, every row in one of them, and where none is late the sessions of the whole table.
    #[test]
    fn sessions_do_not_depend_on_who_is_read_first(
        rows in prop::collection::vec((0..2usize, 0..1_500i64, 0..7_000i64, 0..2u8), 1..100),
        (order, other) in (prop::collection::vec(any::<u8>(), 64), prop::collection::vec(any::<u8>(), 64)),
        in_order in any::<bool>(),
    ) {
        let pipeline = sessions();
        let floored = |time: i64| time - time.rem_euclid(1_000);
        // What each writer says: rows at a seal, and how far it has come.
        let mut writers: [Vec<Said>; 2] = Default::default();
        let (mut watermarks, mut open): ([i64; 2], [Vec<(String, i64)>; 2]) = Default::default();
        let mut all: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for (partition, advance, lag, key) in &rows {
            let (watermark, open) = (&mut watermarks[*partition], &mut open[*partition]);
            let next = *watermark + advance;
            if floored(next) > floored(*watermark) {
                writers[*partition].push((floored(*watermark), std::mem::take(open), next));
            }
            *watermark = next;
            let time = if in_order { next + lag } else { next + 1_000 - lag };
            // The aggregate stage refuses what no session can take.
            if floored(time) + 1_000 + 4_000 > floored(next) {
                let key = format!("k{key}");
                all.entry(key.clone()).or_default().push(time);
                open.push((key, time));
            }
        }
        for ((writer, watermark), open) in writers.iter_mut().zip(watermarks).zip(open) {
            writer.push((floored(watermark), open, 1_000_000));
        }
        let run = |order: &[u8]| {
            let mut assembler = Assembler::new(std::slice::from_ref(&pipeline)).unwrap();
            let (mut closed, mut late) = (Vec::new(), Vec::new());
            let mut queues: Vec<_> = writers.iter().enumerate().map(|(at, writer)| (at as i32, writer.iter())).collect();
            for partition in 0..2 {
                closed.extend(assembler.progress(&progress(2, partition, 0, false, 0)).unwrap().closed);
            }
            let (mut choices, mut log) = (order.iter().cycle(), 0);
            while !queues.is_empty() {
                let choice = usize::from(*choices.next().unwrap());
                let at = choice % queues.len();
                let (partition, queue) = &mut queues[at];
                let Some((watermark, rows, next)) = queue.next() else {
                    drop(queues.remove(at));
                    continue;
                };
                for (key, time) in rows {
                    log += 1;
                    let panes = assembler.panes(log, &header(*partition, *watermark, log), &arrival(key, *time, log)).unwrap();
                    late.extend(panes.late);
                }
                // Progress within a pane, told or not.
                let told = if choice & 4 == 0 { vec![*next] } else { vec![floored(*next), *next] };
                for watermark in told {
                    let done = assembler.progress(&progress(2, *partition, watermark, false, log)).unwrap();
                    closed.extend(done.closed);
                    late.extend(done.late);
                }
            }
            assert_eq!(assembler.pane_count(), 0);
            let mut late: Vec<_> = late.iter().map(|late| (late.pane_start_ms, late.rows.num_rows())).collect();
            late.sort_unstable();
            (told(&closed), late)
        };
        let (told, late) = run(&order);
        prop_assert_eq!(&(told.clone(), late.clone()), &run(&other));
        let counted: i64 = told.iter().map(|(.., rows)| rows).sum();
        prop_assert_eq!(counted as usize + late.iter().map(|(_, rows)| rows).sum::<usize>(), all.values().flatten().count());
        if in_order {
            let mut expected = Vec::new();
            for (key, mut times) in all {
                times.sort_unstable();
                let sessions = times.chunk_by(|left, right| right - left <= 4_000);
                expected.extend(sessions.map(|rows| (key.clone(), rows[0], rows[rows.len() - 1] + 4_000, rows.len() as i64)));
            }
            prop_assert_eq!(told, expected);
        }
    }

    /// Two partitions with watermarks of their own, and an idle one that says something now and then: rows come for panes that long
    /// windows have merged ahead, and reach those alone that are open for their partition and not closed.
    #[test]
    fn long_windows_equal_brute_force_whatever_comes_late(
        rows in prop::collection::vec((0..3i32, 0..4i64, -5..95i64, 0..4u8, -100..100i32), 1..150),
        (size, slide) in prop::sample::select(vec![(64_000, 1_000), (90_000, 1_000), (40_000, 2_000), (17_000, 1_000)]),
        lateness in prop::sample::select(vec![0, 5_000]),
    ) {
        let pipeline = pipeline(window(size, slide, lateness), 0);
        let mut assembler = Assembler::new(std::slice::from_ref(&pipeline)).unwrap();
        let mut watermarks = [50_000; 2];
        let mut closed = Vec::new();
        for partition in 0..2 {
            closed.extend(assembler.progress(&progress(3, partition, 50_000, false, 0)).unwrap().closed);
        }
        closed.extend(assembler.progress(&progress(3, 2, 0, true, 0)).unwrap().closed);
        let mut expected: BTreeMap<(i64, String), (i64, f64)> = BTreeMap::new();
        for (log, (partition, advance, lag, key, value)) in (1..).zip(&rows) {
            let own = watermarks.get_mut(*partition as usize).map(|watermark| {
                *watermark += advance * 1_000;
                *watermark
            });
            if let Some(own) = own {
                closed.extend(assembler.progress(&progress(3, *partition, own, false, log)).unwrap().closed);
            }
            let (key, passed) = (format!("k{key}"), watermarks[0].min(watermarks[1]));
            let pane = own.unwrap_or(passed) - lag * 1_000;
            let row = panes(&pipeline, pane, log, &[(key.clone(), vec![f64::from(*value)])].into());
            assembler.panes(log, &header(*partition, own.unwrap_or(i64::MIN), log), &row).unwrap();
            let mut end = pane - pane.rem_euclid(slide) + size;
            while end > pane {
                if end + lateness > own.unwrap_or(passed) {
                    let entry = expected.entry((end, key.clone())).or_default();
                    entry.0 += 1;
                    entry.1 += f64::from(*value);
                }
                end -= slide;
            }
        }
        for partition in 0..2 {
            let told = progress(3, partition, 1_000_000, false, 1_000);
            closed.extend(assembler.progress(&told).unwrap().closed);
        }
        prop_assert_eq!(results(&closed), expected);
        prop_assert_eq!((assembler.pane_count(), assembler.needed_since()), (0, None));
    }
}

/// One partition while a version of the pipelines replaces another.
struct Switching {
    /// Event times, in log order, each with the log position at which the partition's watermark has come there.
    times: Vec<i64>,
    /// After how many rows it is read for the new version, too.
    switch_after: usize,
    /// How far behind its greatest time the new version then has all rows; `None`: it has those that come.
    lookback_ms: Option<i64>,
}

/// The rows of `switching`, one source partition each, through an assembler that changes from one version to the other.
fn switched(old: &Pipeline, new: &Pipeline, switching: &[Switching], follow_at: usize) -> Vec<ClosedWindow> {
    let mut assembler = Assembler::of(1, std::slice::from_ref(old)).unwrap();
    let (width_old, width_new) = (old.pane_sets[0].width_ms, new.pane_sets[0].width_ms);
    let mut closed = Vec::new();
    let mut log = 0;
    let steps = switching.iter().map(|partition| partition.times.len()).max().unwrap();
    let mut first_panes = vec![None; switching.len()];
    let mut met = vec![None; switching.len()];
    let count = switching.len() as i32;
    for step in 0..=steps {
        if step == follow_at {
            assembler.follow(2, std::slice::from_ref(new)).unwrap();
            let versions = [(1, std::slice::from_ref(old)), (2, std::slice::from_ref(new))];
            // What stands is what is written; the panes come again with the replay, so that only the standings are compared.
            let written = serde_json::to_string(&assembler.standings()).unwrap();
            let read: Vec<Standing> = serde_json::from_str(&written).unwrap();
            let table = assembler.table().clone();
            let restored = Assembler::restored(&versions, table, Some(&read)).unwrap();
            assert_eq!(restored.standings(), read);
        }
        for (partition, rows) in switching.iter().enumerate() {
            log += 1;
            let at = partition as i32;
            let before = rows.times[..step.min(rows.times.len())].iter().copied().max();
            let switched = step >= follow_at.max(rows.switch_after);
            if switched && first_panes[partition].is_none() {
                let pane = |time: i64| time - time.rem_euclid(width_new);
                let first = before.map(|greatest| match rows.lookback_ms {
                    None => pane(greatest) + width_new,
                    Some(lookback_ms) => pane(greatest - lookback_ms),
                });
                first_panes[partition] = Some(first);
                met[partition] = before.filter(|_| rows.lookback_ms.is_some());
                for time in &rows.times[..step.min(rows.times.len())] {
                    if rows.lookback_ms.is_some() && first.is_none_or(|first| *time >= first) {
                        let mut header = header(at, i64::MIN, log);
                        header.set = new.pane_sets[0].fingerprint;
                        let batch = panes(new, pane(*time), log, &[("a".into(), vec![1.0])].into());
                        assembler.panes(log, &header, &batch).unwrap();
                    }
                }
            }
            if let Some(time) = rows.times.get(step) {
                let row = |pipeline: &Pipeline, width: i64| {
                    let start = time - time.rem_euclid(width);
                    (start, panes(pipeline, start, log, &[("a".into(), vec![1.0])].into()))
                };
                let watermark = before.unwrap_or(i64::MIN);
                let floored = |width: i64| {
                    if watermark == i64::MIN {
                        watermark
                    } else {
                        watermark - watermark.rem_euclid(width)
                    }
                };
                let (_, batch) = row(old, width_old);
                assembler
                    .panes(log, &header(at, floored(width_old), log), &batch)
                    .unwrap();
                let (start, batch) = row(new, width_new);
                let whole =
                    first_panes[partition].is_some_and(|first: Option<i64>| first.is_none_or(|first| start >= first));
                if whole && new.pane_sets[0].fingerprint != SET {
                    let mut header = header(at, floored(width_new), log);
                    header.set = new.pane_sets[0].fingerprint;
                    assembler.panes(log, &header, &batch).unwrap();
                }
            }
            let greatest = rows.times[..rows.times.len().min(step + 1)].iter().copied().max();
            let ended = step >= rows.times.len();
            let watermark = if ended { 1_000_000 } else { greatest.unwrap_or(0) };
            let mut told = progress(count, at, watermark, false, log);
            let active = |set: u64, first_pane_ms: Option<i64>| ActiveSet {
                set,
                first_pane_ms,
                met_ms: met[partition].filter(|_| set != SET),
            };
            told.partitions[0].sets = vec![active(SET, None)];
            if let Some(first) = first_panes[partition] {
                told.partitions[0].version = 2;
                if new.pane_sets[0].fingerprint != SET {
                    told.partitions[0]
                        .sets
                        .push(active(new.pane_sets[0].fingerprint, first));
                }
            }
            closed.extend(assembler.progress(&told).unwrap().closed);
        }
    }
    assert_eq!(
        assembler.oldest_version(),
        Some(2),
        "the old version is over at the end"
    );
    closed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Every end has its window, once, whole, of one version; and where windows do not overlap, every row is in one of them.
    #[test]
    fn one_version_follows_another_without_a_gap_or_a_double_row(
        steps in prop::collection::vec((1..1_500i64, 0..700i64), 60..90),
        (old_size, old_slide) in prop::sample::select(vec![(1_000, 1_000), (4_000, 1_000), (2_000, 2_000), (6_000, 3_000)]),
        (new_size, new_slide) in prop::sample::select(vec![(1_000, 1_000), (3_000, 3_000), (5_000, 1_000), (4_000, 2_000)]),
        (old_late, new_late) in prop::sample::select(vec![(0, 0), (1_000, 0), (0, 2_000)]),
        same_set: bool,
        backfilled: bool,
        follow_at in 0..20usize,
        switches in (0..25usize, 0..25usize),
    ) {
        let old = pipeline(window(old_size, old_slide, old_late), 0);
        let mut new = pipeline(window(new_size, new_slide, new_late), 0);
        if !same_set {
            new.pane_sets[0].fingerprint = SET + 1;
        }
        let mut at = [0, 0];
        let mut times = [Vec::new(), Vec::new()];
        for (forward, jitter) in &steps {
            for partition in 0..2 {
                at[partition] += if partition == 0 { *forward } else { 1_500 - forward };
                // Never behind the pane that its watermark is in: no row is late.
                let floor = at[partition] - at[partition].rem_euclid(1_000);
                times[partition].push(floor.max(at[partition] - jitter));
            }
        }
        let [first, second] = times;
        let left = (old_slide + old_late).max(new_slide + new_late);
        let lookback_ms = (backfilled && !same_set).then_some(new_size + left);
        let switching = [
            Switching { times: first.clone(), switch_after: switches.0, lookback_ms },
            Switching { times: second.clone(), switch_after: switches.1, lookback_ms },
        ];
        let closed = switched(&old, &new, &switching, follow_at);
        let rows: Vec<i64> = first.iter().chain(&second).copied().collect();
        let mut ends = BTreeMap::new();
        let mut last_old = i64::MIN;
        let mut first_new = i64::MAX;
        for window in &closed {
            prop_assert!(ends.insert(window.end_ms, window.version).is_none(), "two windows end at {}", window.end_ms);
            let within = |time: &&i64| (window.start_ms..window.end_ms).contains(*time);
            let expected = rows.iter().filter(within).count() as i64;
            let counts = window.rows.column(3).as_primitive::<Int64Type>();
            let found: i64 = counts.iter().flatten().sum();
            prop_assert_eq!(found, expected, "window {} to {} of version {}", window.start_ms, window.end_ms, window.version);
            match window.version {
                1 => last_old = last_old.max(window.end_ms),
                _ => first_new = first_new.min(window.end_ms),
            }
        }
        prop_assert!(last_old < first_new, "{last_old} {first_new}");
        prop_assert!(first_new < i64::MAX, "the new version never came");
        let apart = old_size == old_slide && new_size == new_slide;
        if lookback_ms.is_some() && !apart {
            let met = |rows: &[i64], after: usize| rows[..after.max(follow_at)].iter().copied().max().unwrap_or(0);
            let reached = met(&first, switches.0).max(met(&second, switches.1));
            prop_assert!(first_new - new_slide <= reached, "the new version is not whole at once: {first_new} {reached}");
        }
        if apart {
            let total: i64 = closed.iter().flat_map(|window| {
                window.rows.column(3).as_primitive::<Int64Type>().iter().flatten().collect::<Vec<_>>()
            }).sum();
            prop_assert_eq!(total, rows.len() as i64);
        }
    }
}
