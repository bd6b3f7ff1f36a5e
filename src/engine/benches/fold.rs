//! What the parts of the engine cost, from decoded columns: filter, key probe and pane update per row; sealing, writing and reading
//! panes per row of a pane; merging panes and closing a window per row of it: `cargo bench --workspace --bench fold`.

use std::{hint::black_box, sync::Arc};

use arrow::{
    array::*,
    buffer::BooleanBuffer,
    datatypes::{DataType, Field, Int64Type, Schema, TimeUnit},
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use datafusion::{
    logical_expr::Operator,
    physical_expr::expressions::{binary, col, lit},
};
use engine::{
    assemble::Assembler,
    panes::{PaneStore, Span, Unusual, read_panes, write_panes},
    spec::*,
};
use protocol::log::{PaneHeader, PartitionProgress, SourceProgress};

const ROWS: usize = 8_192;
const BATCHES: usize = 64;

fn schema() -> Arc<Schema> {
    let text = || DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    Arc::new(Schema::new(vec![
        Field::new("ts", DataType::Timestamp(TimeUnit::Millisecond, None), false),
        Field::new("service", text(), true),
        Field::new("metric", text(), true),
        Field::new("value", DataType::Float64, true),
    ]))
}

fn batches(services: usize) -> Vec<(RecordBatch, Vec<i64>)> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as i32
    };
    let names = |prefix: &str, count: usize| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(
            (0..count).map(|at| format!("{prefix}-{at}")),
        ))
    };
    let (service_names, metric_names) = (names("service", services), names("metric", 5));
    (0..BATCHES)
        .map(|batch| {
            let times: Vec<i64> = (0..ROWS)
                .map(|row| 1_700_000_000_000 + (batch * ROWS + row) as i64 / 10)
                .collect();
            let services: Int32Array = (0..ROWS).map(|_| Some(next(services))).collect();
            let metrics: Int32Array = (0..ROWS).map(|_| Some(next(5))).collect();
            let values: Float64Array = (0..ROWS).map(|_| Some(f64::from(next(1_000)))).collect();
            let columns: Vec<ArrayRef> = vec![
                Arc::new(TimestampMillisecondArray::from(times.clone())),
                Arc::new(DictionaryArray::new(services, Arc::clone(&service_names))),
                Arc::new(DictionaryArray::new(metrics, Arc::clone(&metric_names))),
                Arc::new(values),
            ];
            (
                RecordBatch::try_new(schema(), columns).expect("columns fit the schema"),
                times,
            )
        })
        .collect()
}

fn set(kinds: &[AggregateKind], filtered: bool) -> PaneSetSpec {
    let schema = schema();
    let column = |name: &str| col(name, &schema).expect("a column of the schema");
    let aggregates = kinds.iter().map(|kind| AggregateSpec {
        kind: kind.clone(),
        args: match kind {
            AggregateKind::Count => Vec::new(),
            AggregateKind::Rate => vec![column("value"), column("ts")],
            _ => vec![column("value")],
        },
        filter: None,
        output: match kind {
            AggregateKind::Count => DataType::Int64,
            _ => DataType::Float64,
        },
    });
    let large = || binary(column("value"), Operator::Gt, lit(500.0), &schema).expect("comparable");
    PaneSetSpec {
        state_limit: None,
        fingerprint: 1,
        source: 0,
        filter: filtered.then(large),
        keys: vec![column("service"), column("metric")],
        key_fields: vec![Arc::new(schema.field(1).clone()), Arc::new(schema.field(2).clone())],
        aggregates: aggregates.collect(),
        width_ms: 10_000,
        windows: vec![WindowSpec {
            view: "bench.view".into(),
            size_ms: 10_000,
            slide_ms: 10_000,
            offset_ms: 0,
            lateness_ms: 0,
            late_topic: None,
            early_every_ms: None,
            session_gap_ms: None,
        }],
    }
}

/// Every batch, evaluated and folded into panes that are open.
fn folded(set: &PaneSetSpec, batches: &[(RecordBatch, Vec<i64>)]) -> PaneStore {
    let mut store = PaneStore::new(set.clone(), 1_000_000).expect("a plan that works");
    for (batch, times) in batches {
        prepare(&mut store, batch, times);
        fold(&mut store);
    }
    store
}

/// Filter, arguments, and the key's id of each row.
fn prepare(store: &mut PaneStore, batch: &RecordBatch, times: &[i64]) {
    let usable = BooleanBuffer::new_set(ROWS);
    store.prepare(batch, times, &usable).expect("expressions that evaluate");
}

/// The rows last prepared into their panes.
fn fold(store: &mut PaneStore) {
    static OFFSETS: [i64; ROWS] = [0; ROWS];
    static WATERMARKS: [i64; ROWS] = [i64::MIN; ROWS];
    let span = Span {
        rows: 0..ROWS,
        floor_ms: None,
        first_pane_ms: None,
        offsets: &OFFSETS,
        record_watermarks: &WATERMARKS,
    };
    store.fold(&span, &mut Unusual::default()).expect("rows that fold");
}

fn rows(criterion: &mut Criterion) {
    use AggregateKind::*;
    let mut group = criterion.benchmark_group("row");
    group.throughput(Throughput::Elements(ROWS as u64));
    let queries = [
        ("count, avg by 500 keys", 100, vec![Count, Avg], false),
        ("count, avg by 50,000 keys", 10_000, vec![Count, Avg], false),
        ("count, avg of half the rows", 100, vec![Count, Avg], true),
        ("count, sum, avg, min, max", 100, vec![Count, Sum, Avg, Min, Max], false),
        ("stddev", 100, vec![Stddev], false),
        ("quantile", 100, vec![Quantile { q: 0.99 }], false),
        ("rate", 100, vec![Rate], false),
    ];
    for (name, services, kinds, filtered) in queries {
        let (set, batches) = (set(&kinds, filtered), batches(services));
        let (mut store, mut at) = (folded(&set, &batches), 0);
        group.bench_function(format!("filter, key probe: {name}"), |bencher| {
            bencher.iter(|| {
                at = (at + 1) % BATCHES;
                prepare(&mut store, &batches[at].0, &batches[at].1);
            });
        });
        group.bench_function(format!("pane update: {name}"), |bencher| {
            bencher.iter(|| fold(&mut store))
        });
    }
    group.finish();
}

/// What a pane costs when it is sealed, written, read: by its keys.
fn panes(criterion: &mut Criterion) {
    use AggregateKind::*;
    let mut group = criterion.benchmark_group("pane row");
    let set = set(&[Count, Avg, Min, Max], false);
    let batches = batches(10_000);
    let rows_of = |mut store: PaneStore| {
        let sealed = store.flush(None).expect("panes that seal").expect("panes");
        sealed.rows_for(0, 1).expect("rows").expect("one partition takes all")
    };
    let rows = rows_of(folded(&set, &batches));
    group.throughput(Throughput::Elements(rows.num_rows() as u64));
    group.sample_size(20);
    group.bench_function("seal", |bencher| {
        bencher.iter_batched(|| folded(&set, &batches), rows_of, BatchSize::PerIteration);
    });
    let mut records = Vec::new();
    let write = |records: &mut Vec<Vec<u8>>| {
        records.clear();
        write_panes(&rows, 1 << 20, records, &mut |_, _| {}).expect("rows that fit");
    };
    group.bench_function("write", |bencher| bencher.iter(|| write(&mut records)));
    write(&mut records);
    group.bench_function("read", |bencher| {
        bencher.iter(|| {
            for record in &records {
                black_box(read_panes(record).expect("what was written"));
            }
        });
    });
    group.finish();
}

/// A view of all there is in these windows, of one source.
fn pipeline(size_ms: i64) -> Pipeline {
    use AggregateKind::*;
    let mut set = set(&[Count, Avg, Max], false);
    set.width_ms = 1_000;
    set.windows[0].size_ms = size_ms;
    set.windows[0].slide_ms = 1_000;
    let time = |name| {
        Field::new(
            name,
            DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
            false,
        )
    };
    let mut fields: Vec<Field> = set.key_fields.iter().map(|field| field.as_ref().clone()).collect();
    fields.extend([time("window_start"), time("window_end")]);
    let aggregates = set.aggregates.iter().enumerate();
    fields.extend(aggregates.map(|(at, spec)| Field::new(format!("agg_{at}"), spec.output.clone(), true)));
    let input = Arc::new(Schema::new(fields));
    let columns = input.fields().iter();
    Pipeline {
        name: "bench".into(),
        sources: vec![SourceSpec {
            name: "rows".into(),
            fingerprint: 1,
            topic: "rows".into(),
            format: Format::Json,
            start: StartupMode::Earliest,
            schema: schema(),
            metadata: Vec::new(),
            paths: Vec::new(),
            event_time: 0,
            delay_ms: 0,
            idle_timeout_ms: None,
            max_future_skew_ms: i64::MAX,
            max_drift_ms: i64::MAX,
        }],
        views: vec![ViewSpec {
            name: "view".into(),
            pane_sets: vec![0],
            window: set.windows[0].clone(),
            aggregates: (0..set.aggregates.len()).collect(),
            projection: columns
                .map(|field| col(field.name(), &input).expect("its own column"))
                .collect(),
            output: Arc::clone(&input),
            input: Arc::clone(&input),
            having: None,
            fill_missing_windows: 0,
            judged: None,
        }],
        pane_sets: vec![set],
        detectors: Vec::new(),
        policies: Vec::new(),
        sinks: Vec::new(),
    }
}

/// Takes in a pane of four source partitions and closes the window that ends with it: by its rows, whatever panes it has.
fn windows(criterion: &mut Criterion) {
    const PARTITIONS: i32 = 4;
    let mut group = criterion.benchmark_group("window row");
    group.sample_size(20);
    for size in [1, 10, 60, 600, 3_600] {
        let pipeline = pipeline(size * 1_000);
        let sealed = folded(&pipeline.pane_sets[0], &batches(100))
            .flush(None)
            .expect("panes that seal");
        let rows = sealed
            .expect("panes")
            .rows_for(0, 1)
            .expect("rows")
            .expect("one partition takes all");
        let starts = rows.column(0).as_primitive::<Int64Type>().values();
        let keys = starts.iter().take_while(|start| **start == starts[0]).count();
        let mut assembler = Assembler::new(std::slice::from_ref(&pipeline)).expect("a plan that works");
        let mut second = 0;
        let mut step = || {
            for partition in 0..PARTITIONS {
                let own = keys / PARTITIONS as usize;
                let slice = rows.slice(own * partition as usize, own);
                let mut columns = slice.columns().to_vec();
                columns[0] = Arc::new(Int64Array::from(vec![second * 1_000; own]));
                let slice = RecordBatch::try_new(slice.schema(), columns).expect("the same columns");
                let header = PaneHeader {
                    set: 1,
                    source: 1,
                    source_partition: partition,
                    watermark_ms: second * 1_000,
                    source_offset: second,
                };
                assembler.panes(second, &header, &slice).expect("panes that fit");
            }
            second += 1;
            let told = |partition| PartitionProgress {
                partition,
                watermark_ms: Some(second * 1_000),
                idle: false,
                source_offset: second,
                sets: Vec::new(),
                version: 0,
            };
            let progress = SourceProgress {
                source: 1,
                partition_count: PARTITIONS,
                partitions: (0..PARTITIONS).map(told).collect(),
                clock: 0,
            };
            assembler.progress(&progress).expect("windows that close").closed
        };
        for _ in 0..size {
            step();
        }
        group.throughput(Throughput::Elements(
            (keys / PARTITIONS as usize * PARTITIONS as usize) as u64,
        ));
        group.bench_function(format!("merge, close: {size} panes"), |bencher| {
            bencher.iter(|| black_box(step()))
        });
    }
    group.finish();
}

criterion_group!(benches, rows, panes, windows);
criterion_main!(benches);
