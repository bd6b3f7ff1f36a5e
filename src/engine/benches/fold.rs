//! Nanoseconds per row of filter, key look-up and fold, from decoded columns: `cargo bench -p engine --bench fold`.

use std::{hint::black_box, sync::Arc, time::Instant};

use arrow::{
    array::*,
    buffer::BooleanBuffer,
    datatypes::{DataType, Field, Schema, TimeUnit},
};
use datafusion::{
    logical_expr::Operator,
    physical_expr::expressions::{binary, col, lit},
};
use engine::{
    panes::{PaneStore, Span, Unusual},
    spec::*,
};

const ROWS: usize = 8_192;
const BATCHES: usize = 64;
const RUNS: usize = 7;

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

fn measure(name: &str, services: usize, set: &PaneSetSpec) {
    let batches = batches(services);
    let offsets: Vec<i64> = (0..ROWS as i64).collect();
    let watermarks = vec![i64::MIN; ROWS];
    let usable = BooleanBuffer::new_set(ROWS);
    let mut best = f64::MAX;
    for _ in 0..RUNS {
        let mut store = PaneStore::new(set.clone(), 1_000_000).expect("a plan that works");
        let mut unusual = Unusual::default();
        let started = Instant::now();
        for (batch, times) in &batches {
            store.prepare(batch, times, &usable).expect("expressions that evaluate");
            let span = Span {
                rows: 0..ROWS,
                floor_ms: None,
                first_pane_ms: None,
                offsets: &offsets,
                record_watermarks: &watermarks,
            };
            store.fold(&span, &mut unusual).expect("rows that fold");
        }
        best = best.min(started.elapsed().as_secs_f64() * 1e9 / (BATCHES * ROWS) as f64);
        black_box(store.flush(None).expect("panes that seal"));
    }
    println!("{name:<60} {best:7.1} ns/row");
}

fn main() {
    use AggregateKind::*;
    for services in [100, 10_000] {
        measure(
            &format!("count, avg by service ({services}) and metric"),
            services,
            &set(&[Count, Avg], false),
        );
    }
    measure(
        "the same of half the rows, by value > 500",
        100,
        &set(&[Count, Avg], true),
    );
    measure(
        "count, sum, avg, min, max",
        100,
        &set(&[Count, Sum, Avg, Min, Max], false),
    );
    measure("stddev", 100, &set(&[Stddev], false));
    measure("quantile", 100, &set(&[Quantile { q: 0.99 }], false));
    measure("rate", 100, &set(&[Rate], false));
}
