//! What a compiled view computes, pane by pane with the engine's accumulators, is what DataFusion computes over all rows.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::*,
    compute::{cast, concat_batches, filter_record_batch, take_record_batch},
    datatypes::{DataType, Int64Type, Schema, TimeUnit},
    util::display::{ArrayFormatter, FormatOptions},
};
use datafusion::{physical_expr::PhysicalExpr, prelude::SessionContext};
use engine::{
    accumulate::accumulator,
    spec::{PaneSetSpec, Pipeline, ViewSpec},
};
use proptest::prelude::*;

use super::Algorithms;
use crate::{compile, oracle_aggregates, view_oracle_sql};

const SOURCE: &str = "CREATE SOURCE m (ts TIMESTAMP(3), svc STRING, route STRING, value DOUBLE, code INT, ok BOOLEAN,
  WATERMARK FOR ts AS ts - INTERVAL '2 s') WITH (topic='m', format='json');";

const WINDOWS: [&str; 6] = [
    "TUMBLE(TABLE m, DESCRIPTOR(ts), INTERVAL '10' SECOND)",
    "TUMBLE(m, ts, INTERVAL '7 s', INTERVAL '3 s')",
    "HOP(TABLE m, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '20' SECOND)",
    "HOP(m, ts, INTERVAL '4 s', INTERVAL '10 s')",
    "TABLE(HOP(TABLE m, DESCRIPTOR(ts), INTERVAL '4 s', INTERVAL '6 s', INTERVAL '-1 s'))",
    "TUMBLE(m, ts, INTERVAL '1 h')",
];

/// SELECT list with its aggregates, WHERE, GROUP BY, HAVING.
const QUERIES: [(&str, &str, &str, &str); 8] = [
    (
        "svc, window_start, window_end, count(*) AS n, sum(value) AS s, avg(value) AS a",
        "",
        "svc, window_start, window_end",
        "",
    ),
    (
        "svc, route, window_end, min(value) AS low, max(code) AS high, max(ts) AS latest, min(code)",
        "WHERE ok",
        "svc, route, window_end",
        "",
    ),
    (
        "window_start, var(value) AS v, stddev(value) AS d, stddev_samp(code) AS e, count(route) AS r",
        "",
        "window_start",
        "",
    ),
    (
        "upper(svc) AS service, window_end, quantile(value, 0.9) AS p90, approx_percentile_cont(value, 0.5) AS p50, approx_median(code) AS m",
        "WHERE value IS NOT NULL",
        "service, window_end",
        "",
    ),
    (
        "svc, window_start, count(*) FILTER (WHERE NOT ok) AS failed, count(*) AS n, 100.0 * count(*) FILTER (WHERE code >= 500) / count(*) AS share",
        "WHERE route IN ('a', 'b') OR svc LIKE 's%'",
        "svc, window_start",
        "HAVING count(*) >= 2 AND failed < 100",
    ),
    (
        "svc, window_start, count(DISTINCT route) AS routes, sum(DISTINCT code) AS codes, bool_and(ok) AS fine, corr(value, code) AS c",
        "",
        "svc, window_start",
        "",
    ),
    (
        "code % 3 AS kind, CASE WHEN svc = 's1' THEN 'one' ELSE 'more' END AS which, window_end, sum(code) AS s, var_pop(value) AS vp",
        "WHERE svc <> 's3' AND code BETWEEN 0 AND 900",
        "kind, which, window_end",
        "",
    ),
    (
        "svc, window_start, rate(code) AS r, rate(value, ts) AS rv, window_end",
        "",
        "svc, window_start",
        "",
    ),
];

type Row = (i64, Option<u8>, Option<u8>, Option<f64>, Option<i64>, Option<bool>);

fn batch(rows: &[Row], schema: &Arc<Schema>) -> RecordBatch {
    let text = |prefix: &str, value: Option<u8>| value.map(|value| format!("{prefix}{value}"));
    let dictionary = |values: Vec<Option<String>>| -> ArrayRef {
        let array: StringArray = values.into_iter().collect();
        cast(&array, &telemetry::dictionary()).unwrap()
    };
    let columns: BTreeMap<&str, ArrayRef> = BTreeMap::from([
        ("ts", {
            let times = TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.0));
            Arc::new(times.with_timezone("UTC")) as ArrayRef
        }),
        ("svc", dictionary(rows.iter().map(|row| text("s", row.1)).collect())),
        (
            "route",
            dictionary(
                rows.iter()
                    .map(|row| row.2.map(|route| ["a", "b", "c"][usize::from(route % 3)].to_owned()))
                    .collect(),
            ),
        ),
        (
            "value",
            Arc::new(rows.iter().map(|row| row.3).collect::<Float64Array>()),
        ),
        ("code", Arc::new(rows.iter().map(|row| row.4).collect::<Int64Array>())),
        ("ok", Arc::new(rows.iter().map(|row| row.5).collect::<BooleanArray>())),
    ]);
    let arrays = schema
        .fields()
        .iter()
        .map(|field| Arc::clone(&columns[field.name().as_str()]))
        .collect();
    RecordBatch::try_new(Arc::clone(schema), arrays).unwrap()
}

fn evaluate(expr: &Arc<dyn PhysicalExpr>, rows: &RecordBatch) -> ArrayRef {
    expr.evaluate(rows).unwrap().into_array(rows.num_rows()).unwrap()
}

fn mask(expr: &Arc<dyn PhysicalExpr>, rows: &RecordBatch) -> BooleanArray {
    evaluate(expr, rows).as_boolean().clone()
}

/// Partial states of one key and pane.
type Panes = BTreeMap<(i64, String), (Vec<ArrayRef>, Vec<Vec<ArrayRef>>)>;

/// Rows → partial states per (pane, key).
fn fold(set: &PaneSetSpec, event_time: usize, rows: &RecordBatch) -> Panes {
    let rows = match &set.filter {
        Some(filter) => filter_record_batch(rows, &mask(filter, rows)).unwrap(),
        None => rows.clone(),
    };
    let keys: Vec<ArrayRef> = set.keys.iter().map(|key| evaluate(key, &rows)).collect();
    let times = cast(rows.column(event_time), &DataType::Int64).unwrap();
    let times = times.as_primitive::<Int64Type>();
    let mut groups: BTreeMap<(i64, String), Vec<u32>> = BTreeMap::new();
    for row in 0..rows.num_rows() {
        let pane = times.value(row).div_euclid(set.width_ms) * set.width_ms;
        groups.entry((pane, text(&keys, row))).or_default().push(row as u32);
    }
    let fold = |indices: &[u32]| {
        let indices = UInt32Array::from(indices.to_vec());
        let rows = take_record_batch(&rows, &indices).unwrap();
        let states = set.aggregates.iter().map(|spec| {
            let mut accumulator = accumulator(spec).unwrap();
            let args: Vec<ArrayRef> = spec.args.iter().map(|arg| evaluate(arg, &rows)).collect();
            let filter = spec.filter.as_ref().map(|filter| mask(filter, &rows));
            accumulator
                .update(&vec![0; rows.num_rows()], &args, filter.as_ref(), 1)
                .unwrap();
            accumulator.state().unwrap()
        });
        let keys = set.keys.iter().map(|key| evaluate(key, &rows).slice(0, 1));
        (keys.collect(), states.collect())
    };
    groups
        .into_iter()
        .map(|(group, indices)| (group, fold(&indices)))
        .collect()
}

fn text(columns: &[ArrayRef], row: usize) -> String {
    let options = FormatOptions::default().with_null("NULL");
    let values = columns.iter().map(|column| {
        ArrayFormatter::try_new(column, &options)
            .unwrap()
            .value(row)
            .to_string()
    });
    values.collect::<Vec<_>>().join("|")
}

/// Panes → the rows of every window of a view.
fn windows(set: &PaneSetSpec, view: &ViewSpec, panes: &Panes) -> Vec<RecordBatch> {
    let window = &view.window;
    let mut out = Vec::new();
    let starts = panes.keys().flat_map(|(pane, _)| {
        let last = (pane - window.offset_ms).div_euclid(window.slide_ms);
        let first = (pane - window.offset_ms - window.size_ms).div_euclid(window.slide_ms) + 1;
        (first..=last).map(|k| k * window.slide_ms + window.offset_ms)
    });
    for start in starts.collect::<std::collections::BTreeSet<i64>>() {
        let inside = panes
            .iter()
            .filter(|((pane, _), _)| (start..start + window.size_ms).contains(pane));
        let mut keys: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for ((_, key), state) in inside {
            keys.entry(key).or_default().push(state);
        }
        for partials in keys.values() {
            let mut columns: Vec<ArrayRef> = partials[0].0.clone();
            for end in [start, start + window.size_ms] {
                columns.push(Arc::new(
                    TimestampMillisecondArray::from(vec![end]).with_timezone("UTC"),
                ));
            }
            for aggregate in &view.aggregates {
                let mut accumulator = accumulator(&set.aggregates[*aggregate]).unwrap();
                for (_, states) in partials {
                    accumulator.merge(&[0], &states[*aggregate], 1).unwrap();
                }
                columns.push(accumulator.evaluate().unwrap());
            }
            let row = RecordBatch::try_new(Arc::clone(&view.input), columns).unwrap();
            let row = match &view.having {
                Some(having) => filter_record_batch(&row, &mask(having, &row)).unwrap(),
                None => row,
            };
            let columns = view.projection.iter().map(|expr| evaluate(expr, &row)).collect();
            out.push(RecordBatch::try_new(Arc::clone(&view.output), columns).unwrap());
        }
    }
    out
}

/// Rows as text, keys and integers exact; floats apart, to be compared with tolerance.
fn comparable(batch: &RecordBatch) -> Vec<(String, Vec<f64>)> {
    let floats = |data_type: &DataType| matches!(data_type, DataType::Float64 | DataType::Float32);
    let (numbers, exact): (Vec<_>, Vec<_>) = batch
        .columns()
        .iter()
        .cloned()
        .partition(|column| floats(column.data_type()));
    let mut rows: Vec<(String, Vec<f64>)> = (0..batch.num_rows())
        .map(|row| {
            let floats = numbers.iter().map(|column| {
                let column = column.as_primitive::<arrow::datatypes::Float64Type>();
                if column.is_valid(row) {
                    column.value(row)
                } else {
                    f64::NAN
                }
            });
            (text(&exact, row), floats.collect())
        })
        .collect();
    rows.sort_by(|a, b| {
        a.0.cmp(&b.0)
            .then(a.1.partial_cmp(&b.1).unwrap_or(std::cmp::Ordering::Equal))
    });
    rows
}

fn engine_rows(pipeline: &Pipeline, rows: &[Row]) -> RecordBatch {
    let view = &pipeline.views[0];
    let set = &pipeline.pane_sets[view.pane_sets[0]];
    let source = &pipeline.sources[set.source];
    let panes = fold(set, source.event_time, &batch(rows, &source.schema));
    concat_batches(&view.output, &windows(set, view, &panes)).unwrap()
}

fn oracle_rows(text: &str, rows: &[Row]) -> RecordBatch {
    let fields = [
        ("ts", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))),
        ("svc", telemetry::dictionary()),
        ("route", telemetry::dictionary()),
        ("value", DataType::Float64),
        ("code", DataType::Int64),
        ("ok", DataType::Boolean),
    ];
    let fields = fields.map(|(name, data_type)| arrow::datatypes::Field::new(name, data_type, true));
    let batch = batch(rows, &Arc::new(Schema::new(fields.to_vec())));
    let sql = view_oracle_sql(text, "v").unwrap();
    let context = SessionContext::new();
    for aggregate in oracle_aggregates() {
        context.register_udaf(aggregate);
    }
    context.register_batch("m", batch).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let batches = runtime.block_on(async { context.sql(&sql).await.unwrap().collect().await.unwrap() });
    match batches.first() {
        Some(first) => concat_batches(&first.schema(), &batches).unwrap(),
        None => RecordBatch::new_empty(Arc::new(Schema::empty())),
    }
}

fn check(window: &str, query: (&str, &str, &str, &str), rows: &[Row]) {
    let (select, filter, group, having) = query;
    let text =
        format!("{SOURCE} CREATE FEATURE VIEW v AS SELECT {select} FROM {window} {filter} GROUP BY {group} {having};");
    let pipeline =
        compile("p", &text, &Algorithms).unwrap_or_else(|errors| panic!("{}", errors.render("p", &text, false)));
    let engine = comparable(&engine_rows(&pipeline, rows));
    let oracle = comparable(&oracle_rows(&text, rows));
    assert_eq!(engine.len(), oracle.len(), "{text}");
    for (engine, oracle) in engine.iter().zip(&oracle) {
        assert_eq!(engine.0, oracle.0, "{text}");
        for (a, b) in engine.1.iter().zip(&oracle.1) {
            let close = (a - b).abs() <= 0.011 * b.abs() + 1e-6;
            assert!(
                (a.is_nan() && b.is_nan()) || close,
                "{a} is not {b}: {text}\n{engine:?}\n{oracle:?}"
            );
        }
    }
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let row = (
        0..60_000i64,
        prop::option::weighted(0.9, 0..4u8),
        prop::option::weighted(0.8, 0..3u8),
        prop::option::weighted(0.9, (1..10_000i32).prop_map(|value| f64::from(value) / 8.0)),
        prop::option::weighted(0.9, 1..1_000i64),
        prop::option::weighted(0.9, any::<bool>()),
    );
    prop::collection::vec(row, 1..60).prop_map(|mut rows: Vec<Row>| {
        // Two points of a counter at one time have no order.
        rows.sort_by_key(|row| row.0);
        rows.dedup_by_key(|row| row.0);
        rows
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn a_view_is_its_batch_query(rows in rows()) {
        for window in WINDOWS {
            for query in QUERIES {
                check(window, query, &rows);
            }
        }
    }
}

#[test]
fn group_by_spellings_and_times_before_1970() {
    let rows: Vec<Row> = (-40..40)
        .map(|i| (i * 777, Some(1), Some(1), Some(1.0), Some(1), Some(true)))
        .collect();
    check(WINDOWS[4], QUERIES[0], &rows);
    let text = format!(
        "{SOURCE} CREATE FEATURE VIEW v AS SELECT svc, window_start, count(*) AS n FROM m AS x GROUP BY x.svc, hop(ts, INTERVAL '5 s', INTERVAL '10 s');"
    );
    let expected = comparable(&oracle_rows(&text, &rows));
    let hop = "HOP(TABLE m, DESCRIPTOR(ts), INTERVAL '5 s', INTERVAL '10 s')";
    let same = [
        format!("SELECT svc, window_start, count(*) AS n FROM {hop} GROUP BY 1, 2"),
        format!("SELECT svc, window_start AS ws, count(*) AS n FROM {hop} GROUP BY svc, ws"),
        format!("SELECT svc, x.WINDOW_START \"the start\", count(*) FROM {hop} x GROUP BY 1, \"the start\""),
    ];
    let same = same.map(|select| format!("{SOURCE} CREATE FEATURE VIEW v AS {select};"));
    for text in same.iter().chain([&text]) {
        let pipeline = compile("p", text, &Algorithms);
        let pipeline = pipeline.unwrap_or_else(|found| panic!("{}", found.render("p", text, false)));
        assert_eq!(comparable(&engine_rows(&pipeline, &rows)), expected, "{text}");
    }
}
