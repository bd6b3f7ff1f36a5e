//! Invariant 5: partials, split and merged in any way, give what a batch query gives.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::*,
    compute::{cast, concat, take, take_arrays},
    datatypes::{DataType, Field, Float64Type, Int64Type, Schema, TimeUnit},
    util::display::array_value_to_string,
};
use datafusion::{
    functions_aggregate::{
        array_agg::array_agg_udaf, average::avg_udaf, correlation::corr_udaf, count::count_udaf, median::median_udaf,
        min_max::max_udaf,
    },
    logical_expr::AggregateUDF,
    physical_expr::{
        PhysicalExpr,
        aggregate::AggregateExprBuilder,
        expressions::{cast as physical_cast, col},
    },
    prelude::SessionContext,
};
use proptest::prelude::*;

use super::*;

/// Group, double, integer, time in ms, text, flag.
type Row = (u32, Option<f64>, Option<i64>, i64, Option<String>, bool);

const GROUPS: usize = 4;

fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![
        Field::new("g", DataType::UInt32, false),
        Field::new("x", DataType::Float64, true),
        Field::new("i", DataType::Int64, true),
        Field::new("t", DataType::Timestamp(TimeUnit::Millisecond, None), false),
        Field::new("s", DataType::Utf8, true),
        Field::new("b", DataType::Boolean, false),
    ]))
}

fn batch(rows: &[Row]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.0))),
        Arc::new(rows.iter().map(|row| row.1).collect::<Float64Array>()),
        Arc::new(rows.iter().map(|row| row.2).collect::<Int64Array>()),
        Arc::new(TimestampMillisecondArray::from_iter_values(
            rows.iter().map(|row| row.3),
        )),
        Arc::new(rows.iter().map(|row| row.4.clone()).collect::<StringArray>()),
        Arc::new(rows.iter().map(|row| Some(row.5)).collect::<BooleanArray>()),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

struct Case {
    spec: AggregateSpec,
    sql: &'static str,
    tolerance: f64,
}

fn column(name: &str) -> Arc<dyn PhysicalExpr> {
    match name {
        "float(i)" => physical_cast(column("i"), &schema(), DataType::Float64).unwrap(),
        name => col(name, &schema()).unwrap(),
    }
}

fn native(kind: AggregateKind, args: &[&str], output: DataType, sql: &'static str) -> Case {
    let tolerance = match kind {
        AggregateKind::Quantile { .. } => 0.010_001,
        _ => 1e-9,
    };
    let spec = AggregateSpec {
        kind,
        args: args.iter().map(|name| column(name)).collect(),
        filter: None,
        output,
    };
    Case { spec, sql, tolerance }
}

fn other(function: Arc<AggregateUDF>, args: &[&str], distinct: bool, sql: &'static str) -> Case {
    let args: Vec<_> = args.iter().map(|name| column(name)).collect();
    let builder = AggregateExprBuilder::new(function, args.clone())
        .schema(schema())
        .alias("a")
        .with_distinct(distinct);
    let function = Arc::new(builder.build().unwrap());
    let spec = AggregateSpec {
        output: function.field().data_type().clone(),
        kind: AggregateKind::Other(function),
        args,
        filter: None,
    };
    Case {
        spec,
        sql,
        tolerance: 1e-9,
    }
}

fn cases() -> Vec<Case> {
    use AggregateKind::*;
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    let mut filtered = native(Sum, &["x"], DataType::Float64, "sum(x) filter (where b)");
    filtered.spec.filter = Some(column("b"));
    let mut counted = native(Count, &[], DataType::Int64, "count(*) filter (where b)");
    counted.spec.filter = Some(column("b"));
    vec![
        native(Count, &[], DataType::Int64, "count(*)"),
        native(Count, &["x"], DataType::Int64, "count(x)"),
        counted,
        native(Sum, &["x"], DataType::Float64, "sum(x)"),
        native(Sum, &["i"], DataType::Int64, "sum(i)"),
        filtered,
        native(Avg, &["x"], DataType::Float64, "avg(x)"),
        native(Min, &["x"], DataType::Float64, "min(x)"),
        native(Max, &["x"], DataType::Float64, "max(x)"),
        native(Min, &["i"], DataType::Int64, "min(i)"),
        native(Max, &["t"], time, "max(t)"),
        native(Var, &["x"], DataType::Float64, "var_samp(x)"),
        native(Stddev, &["x"], DataType::Float64, "stddev(x)"),
        native(Quantile { q: 0.0 }, &["x"], DataType::Float64, "min(x)"),
        native(
            Quantile { q: 0.5 },
            &["x"],
            DataType::Float64,
            "percentile_cont(x, 0.5)",
        ),
        native(
            Quantile { q: 0.99 },
            &["x"],
            DataType::Float64,
            "percentile_cont(x, 0.99)",
        ),
        other(median_udaf(), &["x"], false, "median(x)"),
        other(count_udaf(), &["i"], true, "count(distinct i)"),
        other(corr_udaf(), &["x", "float(i)"], false, "corr(x, i)"),
        other(max_udaf(), &["s"], false, "max(s)"),
        other(avg_udaf(), &["x"], false, "avg(x)"),
    ]
}

/// The state of some groups, which are named here.
struct Partial {
    groups: Vec<u32>,
    state: Vec<ArrayRef>,
}

/// The dense id of a group, by first appearance.
fn dense(known: &mut Vec<u32>, group: u32) -> u32 {
    let at = known.iter().position(|other| *other == group).unwrap_or_else(|| {
        known.push(group);
        known.len() - 1
    });
    at as u32
}

/// Folds rows in batches of these lengths.
fn fold(spec: &AggregateSpec, rows: &[Row], lengths: &[usize]) -> Partial {
    let mut accumulator = accumulator(spec).unwrap();
    let mut known = Vec::new();
    let mut from = 0;
    for length in lengths.iter().copied().cycle() {
        let to = (from + length.max(1)).min(rows.len());
        let batch = batch(&rows[from..to]);
        let array = |expression: &Arc<dyn PhysicalExpr>| {
            let value = expression.evaluate(&batch).unwrap();
            value.into_array(batch.num_rows()).unwrap()
        };
        let groups: Vec<u32> = rows[from..to].iter().map(|row| dense(&mut known, row.0)).collect();
        let args: Vec<ArrayRef> = spec.args.iter().map(array).collect();
        let filter = spec.filter.as_ref().map(|filter| array(filter).as_boolean().clone());
        accumulator
            .update(&groups, &args, filter.as_ref(), known.len())
            .unwrap();
        from = to;
        if from == rows.len() {
            break;
        }
    }
    let state = accumulator.state().unwrap();
    let fields = accumulator.state_fields();
    assert_eq!(state.len(), fields.len());
    for (column, field) in state.iter().zip(&fields) {
        assert_eq!(column.len(), known.len(), "{field}");
        cast(column, field.data_type()).unwrap();
    }
    let empty = accumulator.state().unwrap();
    assert!(empty.iter().all(|column| column.is_empty()), "empty after state()");
    Partial { groups: known, state }
}

/// Adds partials up, in order.
fn add(spec: &AggregateSpec, partials: &[Partial]) -> (Vec<u32>, Box<dyn Accumulator>) {
    let mut target = accumulator(spec).unwrap();
    let mut known = Vec::new();
    for partial in partials {
        let groups: Vec<u32> = partial.groups.iter().map(|group| dense(&mut known, *group)).collect();
        target.merge(&groups, &partial.state, known.len()).unwrap();
    }
    (known, target)
}

/// Merges partials in one call, in pairs, or one by one. The results are in group order, NULL for groups without rows.
fn merge(spec: &AggregateSpec, mut partials: Vec<Partial>, shape: usize) -> ArrayRef {
    if shape == 0 {
        let groups = partials.iter().flat_map(|partial| partial.groups.clone()).collect();
        let columns = (0..partials[0].state.len()).map(|at| {
            let columns: Vec<_> = partials.iter().map(|partial| &*partial.state[at]).collect();
            concat(&columns).unwrap()
        });
        let state = columns.collect();
        // One call with repeated groups: rows in order, as `update` has them.
        let mut target = accumulator(spec).unwrap();
        let mut known = Vec::new();
        let all = Partial { groups, state };
        let ids: Vec<u32> = all.groups.iter().map(|group| dense(&mut known, *group)).collect();
        target.merge(&ids, &all.state, known.len()).unwrap();
        return ordered(&known, &target.evaluate().unwrap());
    }
    while shape == 1 && partials.len() > 1 {
        let pair = |pair: &[Partial]| {
            let (groups, mut merged) = add(spec, pair);
            let state = merged.state().unwrap();
            Partial { groups, state }
        };
        partials = partials.chunks(2).map(pair).collect();
    }
    let (known, mut target) = add(spec, &partials);
    ordered(&known, &target.evaluate().unwrap())
}

fn ordered(known: &[u32], values: &ArrayRef) -> ArrayRef {
    let position = |group: u32| known.iter().position(|other| *other == group).map(|at| at as u32);
    let indices: UInt32Array = (0..GROUPS as u32).map(position).collect();
    take(values, &indices, None).unwrap()
}

fn close(left: &ArrayRef, right: &ArrayRef, row: usize, tolerance: f64) -> bool {
    if left.is_null(row) || right.is_null(row) {
        return left.is_null(row) == right.is_null(row);
    }
    if left.data_type() != &DataType::Float64 {
        return array_value_to_string(left, row).unwrap() == array_value_to_string(right, row).unwrap();
    }
    let (left, right) = (
        left.as_primitive::<Float64Type>().value(row),
        right.as_primitive::<Float64Type>().value(row),
    );
    let scale = left.abs().max(right.abs());
    left == right || (left.is_nan() && right.is_nan()) || (left - right).abs() <= tolerance * scale + 1e-9
}

fn query(rows: &[Row], cases: &[Case]) -> RecordBatch {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let context = SessionContext::new();
        context.register_batch("rows", batch(rows)).unwrap();
        let aggregates: Vec<String> = cases
            .iter()
            .enumerate()
            .map(|(at, case)| format!("{} as a{at}", case.sql))
            .collect();
        let sql = format!("select g, {} from rows group by g order by g", aggregates.join(", "));
        let batches = context.sql(&sql).await.unwrap().collect().await.unwrap();
        arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap()
    })
}

fn row() -> impl Strategy<Value = Row> {
    let magnitude = prop_oneof![
        4 => 0.001..5_000.0,
        1 => Just(0.0),
        1 => 1e-9..1e9,
    ];
    (
        0..GROUPS as u32,
        proptest::option::weighted(0.9, magnitude),
        proptest::option::weighted(0.9, -1_000_i64..1_000),
        0_i64..60_000,
        proptest::option::weighted(0.8, "[a-z]{0,4}"),
        any::<bool>(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn merged_partials_are_the_batch_query(
        rows in proptest::collection::vec(row(), 1..120),
        owners in proptest::collection::vec(0_usize..5, 120),
        lengths in proptest::collection::vec(1_usize..40, 1..6),
        shape in 0_usize..3,
    ) {
        let cases = cases();
        let expected = query(&rows, &cases);
        let mut parts: BTreeMap<usize, Vec<Row>> = BTreeMap::new();
        for (row, owner) in rows.iter().zip(&owners) {
            parts.entry(*owner).or_default().push(row.clone());
        }
        for (at, case) in cases.iter().enumerate() {
            let partials = parts.values().map(|rows| fold(&case.spec, rows, &lengths)).collect();
            let found = merge(&case.spec, partials, shape);
            prop_assert_eq!(found.data_type(), &case.spec.output);
            for index in 0..expected.num_rows() {
                let group = expected.column(0).as_primitive::<arrow::datatypes::UInt32Type>().value(index) as usize;
                let found = found.slice(group, 1);
                let expected = expected.column(at + 1).slice(index, 1);
                prop_assert!(
                    close(&found, &expected, 0, case.tolerance),
                    "{} of group {}: {:?} instead of {:?}", case.sql, group, found, expected
                );
            }
        }
    }

    #[test]
    fn states_do_not_depend_on_batches(
        rows in proptest::collection::vec(row(), 1..100),
        lengths in proptest::collection::vec(1_usize..30, 1..5),
    ) {
        for case in cases().iter().filter(|case| !matches!(case.spec.kind, AggregateKind::Other(_))) {
            let (whole, split) = (fold(&case.spec, &rows, &[rows.len()]), fold(&case.spec, &rows, &lengths));
            for (whole, split) in whole.state.iter().zip(&split.state) {
                prop_assert_eq!(whole.to_data(), split.to_data(), "{}", case.sql);
            }
        }
    }

    #[test]
    fn quantiles_of_any_sign_are_near_a_value_that_is_there(
        values in proptest::collection::vec(prop_oneof![-1e6..1e6, Just(0.0), -1e-3..1e-3], 1..200),
        q in 0.0..=1.0,
    ) {
        let case = native(AggregateKind::Quantile { q }, &["x"], DataType::Float64, "");
        let rows: Vec<Row> = values.iter().map(|value| (0, Some(*value), None, 0, None, true)).collect();
        let found = merge(&case.spec, vec![fold(&case.spec, &rows, &[7])], 2);
        let found = found.as_primitive::<Float64Type>().value(0);
        let mut values = values;
        values.sort_by(f64::total_cmp);
        let rank = q * (values.len() - 1) as f64;
        let (low, high) = (values[rank.floor() as usize], values[rank.ceil() as usize]);
        let slack = 0.0101 * low.abs().max(high.abs()) + 1e-12;
        prop_assert!(found >= low - slack && found <= high + slack, "{found} is not within {low}..{high}");
    }

    #[test]
    fn rates_do_not_depend_on_who_saw_which_point(
        steps in proptest::collection::vec((1_i64..5_000, -3.0..50.0_f64), 2..150),
        owners in proptest::collection::vec(0_usize..4, 150),
        jumps in proptest::collection::vec(0_usize..6, 150),
        shape in 0_usize..3,
    ) {
        let (mut time, mut value) = (0, 100.0_f64);
        let mut points = Vec::new();
        for (step, change) in &steps {
            time += step;
            // A restart, now and then.
            value = if *change < -2.0 { 1.0 } else { value + change.max(0.0) };
            points.push((time, value));
        }
        let increase: f64 = points.windows(2).map(|pair| {
            if pair[1].1 < pair[0].1 { pair[1].1 } else { pair[1].1 - pair[0].1 }
        }).sum();
        let expected = increase / ((points[points.len() - 1].0 - points[0].0) as f64 / 1e3);
        let mut shuffled: Vec<(usize, (i64, f64))> = points.iter().enumerate().map(|(at, point)| (at + jumps[at], *point)).collect();
        shuffled.sort_by_key(|(at, _)| *at);
        let mut parts: BTreeMap<usize, Vec<Row>> = BTreeMap::new();
        for (at, (_, (time, value))) in shuffled.iter().enumerate() {
            parts.entry(owners[at]).or_default().push((0, Some(*value), None, *time, None, true));
        }
        let case = native(AggregateKind::Rate, &["x", "t"], DataType::Float64, "");
        let partials = parts.values().map(|rows| fold(&case.spec, rows, &[5])).collect();
        let found = merge(&case.spec, partials, shape);
        let found = found.as_primitive::<Float64Type>().value(0);
        prop_assert!((found - expected).abs() <= 1e-9 * expected.abs() + 1e-9, "{found} instead of {expected}");
    }

    #[test]
    fn no_bytes_are_a_sketch_that_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60), q in 0.0..=1.0) {
        let case = native(AggregateKind::Quantile { q }, &["x"], DataType::Float64, "");
        let mut accumulator = accumulator(&case.spec).unwrap();
        let state: ArrayRef = Arc::new(BinaryArray::from_vec(vec![&bytes]));
        if accumulator.merge(&[0], &[state], 1).is_ok() {
            accumulator.evaluate().unwrap();
        }
    }
}

#[test]
fn order_does_not_decide_what_nan_does() {
    let nan: Vec<Row> = [1.0, f64::NAN, 2.0, -f64::NAN, 0.5]
        .iter()
        .map(|value| (0, Some(*value), None, 0, None, true))
        .collect();
    let mut reversed = nan.clone();
    reversed.reverse();
    for (kind, expected) in [
        (AggregateKind::Min, 0.5),
        (AggregateKind::Max, f64::NAN),
        (AggregateKind::Sum, f64::NAN),
        (AggregateKind::Quantile { q: 0.0 }, 0.5),
        (AggregateKind::Quantile { q: 1.0 }, f64::NAN),
    ] {
        let case = native(kind, &["x"], DataType::Float64, "");
        for rows in [&nan, &reversed] {
            let found = merge(&case.spec, vec![fold(&case.spec, rows, &[2])], 2);
            let found = found.as_primitive::<Float64Type>().value(0);
            assert!(
                found == expected || (found.is_nan() && expected.is_nan()),
                "{:?}: {found}",
                case.spec.kind
            );
        }
    }
}

#[test]
fn nothing_is_null_not_zero() {
    use AggregateKind::*;
    let rows: Vec<Row> = vec![(0, None, None, 0, None, true), (1, Some(3.0), None, 0, None, true)];
    for kind in [Sum, Avg, Min, Max, Var, Stddev, Quantile { q: 0.5 }, Rate] {
        let args: &[&str] = if matches!(kind, Rate) { &["x", "t"] } else { &["x"] };
        let case = native(kind.clone(), args, DataType::Float64, "");
        let found = merge(&case.spec, vec![fold(&case.spec, &rows, &[9])], 2);
        assert!(found.is_null(0) && found.is_null(2), "{kind:?} of nothing");
        let of_one = matches!(kind, Var | Stddev | Rate);
        assert_eq!(found.is_null(1), of_one, "{kind:?} of one row");
    }
}

#[test]
fn integers_are_exact_and_wrap_as_in_datafusion() {
    let big = (1_i64 << 53) + 1;
    let rows: Vec<Row> = [big, 1, i64::MAX]
        .iter()
        .enumerate()
        .map(|(group, value)| (group as u32 / 2, None, Some(*value), 0, None, true))
        .chain([(1, None, Some(1), 0, None, true)])
        .collect();
    let case = native(AggregateKind::Sum, &["i"], DataType::Int64, "");
    let found = merge(&case.spec, vec![fold(&case.spec, &rows, &[1])], 2);
    let found = found.as_primitive::<Int64Type>();
    assert_eq!((found.value(0), found.value(1)), (big + 1, i64::MIN));
}

#[test]
fn a_long_rate_stays_small_and_right() {
    let mut rows: Vec<Row> = Vec::new();
    for second in 0..20_000_i64 {
        // Two restarts.
        let value = (second % 8_000) as f64;
        rows.push((0, Some(value), None, second * 1_000, None, true));
    }
    let case = native(AggregateKind::Rate, &["x", "t"], DataType::Float64, "");
    let mut accumulator = accumulator(&case.spec).unwrap();
    let batch = batch(&rows);
    let args = take_arrays(
        &[Arc::clone(batch.column(1)), Arc::clone(batch.column(3))],
        &UInt32Array::from_iter_values(0..20_000),
        None,
    );
    accumulator.update(&vec![0; 20_000], &args.unwrap(), None, 1).unwrap();
    assert!(accumulator.size() < 64 << 10, "{} bytes", accumulator.size());
    let found = accumulator.evaluate().unwrap();
    let found = found.as_primitive::<Float64Type>().value(0);
    let expected = (7_999.0 + 7_999.0 + 3_999.0) / 19_999.0;
    assert!((found - expected).abs() < 1e-9, "{found} instead of {expected}");
}

#[test]
fn restarts_beyond_the_bound_are_summed_up() {
    // Every second point is a restart: no point lies within a rising run.
    let rows: Vec<Row> = (0..10_000_i64)
        .map(|at| {
            (
                0,
                Some(if at % 2 == 0 { 10.0 } else { 4.0 }),
                None,
                at * 1_000,
                None,
                true,
            )
        })
        .collect();
    let case = native(AggregateKind::Rate, &["x", "t"], DataType::Float64, "");
    let found = merge(&case.spec, vec![fold(&case.spec, &rows, &[100])], 2);
    let found = found.as_primitive::<Float64Type>().value(0);
    let expected = (5_000.0 * 4.0 + 4_999.0 * 6.0) / 9_999.0;
    assert!((found - expected).abs() < 1e-9, "{found} instead of {expected}");
}

#[test]
fn functions_without_a_grouped_form_work_too() {
    let case = other(array_agg_udaf(), &["i"], true, "");
    let rows: Vec<Row> = [1, 2, 2, 1]
        .iter()
        .map(|i| (0, None, Some(*i), 0, None, true))
        .collect();
    let found = merge(
        &case.spec,
        vec![fold(&case.spec, &rows, &[3]), fold(&case.spec, &rows, &[1])],
        2,
    );
    assert_eq!(found.as_list::<i32>().value(0).len(), 2);
}
