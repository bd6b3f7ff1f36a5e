//! Invariant 5: what a replay writes is what DataFusion computes over the whole table at once, for every aggregate × window
//! × option, and the same bytes for any spread over partitions.
//!
//! Every cell of that product is in some case; the table of how often is printed, and an empty cell fails. More cases:
//! `HOMEOSTAT_ORACLE_CASES=5000`; a failure prints its seed and its SQL, and `HOMEOSTAT_ORACLE_SEED` begins there.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow::{
    array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray},
    compute::cast,
    datatypes::{Field, Schema},
};
use datafusion::prelude::SessionContext;
use serde_json::{Map, Value, json};

use super::{Input, replay};
use crate::{pipelines::Detectors, stages::rows::write_rows};

/// Name, SQL, and how far from the batch result the answer may be, relative.
const AGGREGATES: [(&str, &str, f64); 41] = [
    ("count(*)", "count(*)", 0.0),
    ("count", "count(x)", 0.0),
    ("count distinct", "count(DISTINCT s)", 0.0),
    ("sum", "sum(x)", EXACT),
    ("sum of integers", "sum(i)", 0.0),
    ("sum distinct", "sum(DISTINCT i)", 0.0),
    ("avg", "avg(x)", EXACT),
    ("avg of integers", "avg(i)", EXACT),
    ("min", "min(x)", 0.0),
    ("max", "max(x)", 0.0),
    ("min of text", "min(s)", 0.0),
    ("max of time", "max(ts)", 0.0),
    ("var", "var(x)", EXACT),
    ("var_samp", "var_samp(i)", EXACT),
    ("var_pop", "var_pop(x)", EXACT),
    ("stddev", "stddev(x)", EXACT),
    ("stddev_pop", "stddev_pop(i)", EXACT),
    ("quantile", "quantile(abs(x), 0.9)", SKETCH),
    ("approx_percentile_cont", "approx_percentile_cont(abs(x), 0.5)", SKETCH),
    ("approx_median", "approx_median(abs(i))", SKETCH),
    ("median", "median(x)", EXACT),
    ("first", "first(x)", 0.0),
    ("first of text", "first(s)", 0.0),
    ("last", "last(i)", 0.0),
    ("last of flags", "last(b)", 0.0),
    ("rate", "rate(i)", EXACT),
    ("increase", "increase(x)", EXACT),
    ("delta", "delta(x)", EXACT),
    ("slope", "slope(x)", LINE),
    ("corr", "corr(x, i)", LINE),
    ("covar_samp", "covar_samp(x, i)", LINE),
    ("covar_pop", "covar_pop(x, i)", LINE),
    ("regr_slope", "regr_slope(x, i)", LINE),
    ("regr_intercept", "regr_intercept(x, i)", LINE),
    ("regr_r2", "regr_r2(x, i)", LINE),
    ("regr_count", "regr_count(x, i)", 0.0),
    ("bool_and", "bool_and(b)", 0.0),
    ("bool_or", "bool_or(b)", 0.0),
    ("bit_or", "bit_or(i)", 0.0),
    ("bit_xor", "bit_xor(i)", 0.0),
    ("approx_distinct", "approx_distinct(i)", 0.0),
];
const EXACT: f64 = 1e-9;
/// Differences of nearly equal numbers.
const LINE: f64 = 1e-6;
const SKETCH: f64 = 0.011;

/// Name, FROM and the grouping of the window.
const WINDOWS: [(&str, &str, &str); 9] = [
    (
        "tumble",
        "TUMBLE(TABLE m, DESCRIPTOR(ts), INTERVAL '10' SECOND)",
        "window_start, window_end",
    ),
    (
        "tumble, bare, with offset",
        "TUMBLE(m, ts, INTERVAL '7 s', INTERVAL '3 s')",
        "window_end",
    ),
    ("tumble in group by", "m", "tumble(ts, INTERVAL '15' SECOND)"),
    (
        "hop",
        "HOP(TABLE m, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '20' SECOND)",
        "window_start, window_end",
    ),
    (
        "hop that does not divide",
        "HOP(m, ts, INTERVAL '4 s', INTERVAL '10 s')",
        "window_start",
    ),
    (
        "hop with offset",
        "TABLE(HOP(TABLE m, DESCRIPTOR(ts), INTERVAL '4 s', INTERVAL '6 s', INTERVAL '-1 s'))",
        "window_start",
    ),
    (
        "hop in group by",
        "m",
        "hop(ts, INTERVAL '10' SECOND, INTERVAL '30' SECOND)",
    ),
    ("tumble over everything", "TUMBLE(m, ts, INTERVAL '1 h')", "window_end"),
    (
        "session",
        "SESSION(TABLE m, DESCRIPTOR(ts), INTERVAL '3' SECOND)",
        "window_start, window_end",
    ),
];
const SESSION: usize = WINDOWS.len() - 1;

/// What else a view may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Extra {
    Plain,
    Where,
    Filter,
    Having,
    Case,
    TwoKeys,
    ExpressionKey,
    NoKey,
    Lateness,
    Fill,
    /// A second view shares the panes.
    Shared,
    /// Early rows come, too.
    Early,
    /// The rows are those of two sources.
    Union,
    /// The rows have columns of a table in a file.
    Joined,
    LeftJoined,
    /// Of a table in a topic, whose rows change.
    Versioned,
}

const EXTRAS: [Extra; 16] = [
    Extra::Plain,
    Extra::Where,
    Extra::Filter,
    Extra::Having,
    Extra::Case,
    Extra::TwoKeys,
    Extra::ExpressionKey,
    Extra::NoKey,
    Extra::Lateness,
    Extra::Fill,
    Extra::Shared,
    Extra::Early,
    Extra::Union,
    Extra::Joined,
    Extra::LeftJoined,
    Extra::Versioned,
];

/// Sessions without rows are none, and do not speak early: the language refuses both.
fn is_refused(window: usize, extra: usize) -> bool {
    window == SESSION && matches!(EXTRAS[extra], Extra::Fill | Extra::Early)
}

const FILLED_WINDOWS: i64 = 3;
const AGGREGATES_PER_CASE: usize = 21;

const SOURCE: &str = "CREATE SOURCE m (ts TIMESTAMP(3), k STRING, s STRING, x DOUBLE, i BIGINT, b BOOLEAN,
  WATERMARK FOR ts AS ts - INTERVAL '2' SECOND) WITH (topic = 'm', format = 'json');";

/// `m` as a view of two sources, one of which names its columns otherwise.
const UNION: &str = "CREATE SOURCE ma (ts TIMESTAMP(3), k STRING, s STRING, x DOUBLE, i BIGINT, b BOOLEAN,
  WATERMARK FOR ts AS ts - INTERVAL '2' SECOND) WITH (topic = 'ma', format = 'json');
CREATE SOURCE mb (at TIMESTAMP(3) FROM 'ts', key STRING FROM 'k', s STRING, x DOUBLE, i BIGINT, b BOOLEAN,
  WATERMARK FOR at AS at - INTERVAL '2' SECOND) WITH (topic = 'mb', format = 'json');
CREATE VIEW m AS SELECT ts, k, s, x, i, b FROM ma WHERE i IS NULL OR i <> 7
  UNION ALL SELECT at, coalesce(key, 'none'), upper(s), -x, i + 1, NOT b FROM mb;";

/// `m` as rows of a source with columns of a table; some keys have no row in it.
const JOINED: &str = "CREATE SOURCE raw (ts TIMESTAMP(3), k STRING, s STRING, x DOUBLE, i BIGINT, b BOOLEAN,
  WATERMARK FOR ts AS ts - INTERVAL '2' SECOND) WITH (topic = 'raw', format = 'json');
CREATE TABLE owners (k STRING, team STRING, weight DOUBLE, PRIMARY KEY (k))
  WITH (connector = 'file', path = 'owners.csv', format = 'csv');
CREATE VIEW m AS SELECT ts, o.team AS k, s, x * o.weight AS x, i, b
  FROM raw JOIN owners FOR SYSTEM_TIME AS OF ts AS o ON raw.k = o.k;";
const OWNERS: &str = "k,team,weight\nk0,one,0.5\nk1,two,\nk2,one,-3\nk9,nobody,1\n";

/// The same join in plain SQL.
const JOINED_ORACLE: &str = "SELECT raw.ts, o.team AS k, s, x * o.weight AS x, i, b
  FROM raw JOIN (VALUES ('k0', 'one', 0.5), ('k1', 'two', NULL), ('k2', 'one', -3.0)) AS o(k, team, weight) ON raw.k = o.k";

/// `m` as rows of a source with columns of a table whose rows change.
const VERSIONED: &str = "CREATE SOURCE raw (ts TIMESTAMP(3), k STRING, s STRING, x DOUBLE, i BIGINT, b BOOLEAN,
  WATERMARK FOR ts AS ts - INTERVAL '2' SECOND) WITH (topic = 'raw', format = 'json');
CREATE TABLE owners (k STRING, team STRING, weight DOUBLE, since TIMESTAMP(3), PRIMARY KEY (k), WATERMARK FOR since AS since)
  WITH (topic = 'owners', format = 'json');
CREATE VIEW m AS SELECT ts, o.team AS k, s, x * o.weight AS x, i, b
  FROM raw LEFT JOIN owners FOR SYSTEM_TIME AS OF ts AS o ON raw.k = o.k;";

/// A row of `owners`, from a time on.
struct Owner {
    k: String,
    team: String,
    weight: Option<f64>,
    since: i64,
}

/// Up to four versions of each key but one, in the time of the rows.
fn owners(rows: &[Row], random: &mut Random) -> Vec<Owner> {
    let first = rows.iter().map(|row| row.ts).min().unwrap_or_default();
    let span = rows.iter().map(|row| row.ts - first + 1).max().unwrap_or(1);
    let mut owners = Vec::new();
    for key in 0..3 {
        for _ in 0..1 + random.below(4) {
            owners.push(Owner {
                k: format!("k{key}"),
                team: format!("team {}", random.below(3)),
                weight: (!random.chance(20)).then(|| random.below(9) as f64 / 2.0 - 1.0),
                since: first + random.below(span as u64) as i64,
            });
        }
    }
    // Two versions of one time are one.
    owners.sort_by(|a, b| (&a.k, a.since).cmp(&(&b.k, b.since)));
    owners.dedup_by(|a, b| (&a.k, a.since) == (&b.k, b.since));
    owners
}

fn owner_lines(owners: &[Owner]) -> Vec<u8> {
    let lines = owners.iter().map(|owner| {
        let Owner { k, team, weight, since } = owner;
        json!({"k": k, "team": team, "weight": weight, "since": since}).to_string() + "\n"
    });
    lines.collect::<String>().into_bytes()
}

/// The same join in plain SQL: over spans of time, the first of which has no beginning.
fn versioned_oracle(owners: &[Owner]) -> String {
    let spans = owners.iter().enumerate().map(|(at, owner)| {
        let same = |other: Option<&Owner>| other.filter(|other| other.k == owner.k).map(|other| other.since);
        let before = at.checked_sub(1).and_then(|at| same(owners.get(at)));
        let from = before.map_or(i64::MIN / 2, |_| owner.since);
        let to = same(owners.get(at + 1)).unwrap_or(i64::MAX / 2);
        let weight = owner.weight.map_or("CAST(NULL AS DOUBLE)".to_owned(), |weight| {
            format!("CAST({weight} AS DOUBLE)")
        });
        format!("('{}', '{}', {weight}, {from}, {to})", owner.k, owner.team)
    });
    let ms = "CAST(arrow_cast(raw.ts, 'Timestamp(Millisecond, Some(\"UTC\"))') AS BIGINT)";
    format!(
        "SELECT raw.ts, o.team AS k, s, x * o.weight AS x, i, b FROM raw LEFT JOIN (VALUES {}) AS o(k, team, weight, since, until)
         ON raw.k = o.k AND {ms} >= o.since AND {ms} < o.until",
        spans.collect::<Vec<_>>().join(", ")
    )
}

/// The catalog, with the table's file.
struct Beside;

impl sql::DetectorCatalog for Beside {
    fn check(
        &self,
        using: &str,
        options: &[(String, engine::spec::OptionValue)],
        features: usize,
    ) -> Result<(), sql::CatalogError> {
        Detectors.check(using, options, features)
    }

    fn file(&self, _: &str) -> Result<Vec<u8>, String> {
        Ok(OWNERS.as_bytes().to_vec())
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        super::mix(self.0)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Debug)]
struct Row {
    ts: i64,
    k: Option<String>,
    s: Option<String>,
    x: Option<f64>,
    i: Option<i64>,
    b: Option<bool>,
}

fn table(random: &mut Random) -> Vec<Row> {
    let rows = 1 + random.below(100);
    let span = [2_000, 40_000, 90_000][random.below(3) as usize];
    let origin = [0, -30_000, 1_767_225_600_000][random.below(3) as usize];
    let nulls = [0, 10, 60][random.below(3) as usize];
    let scale = [1.0, 1e-6, 1e9][random.below(3) as usize];
    (0..rows)
        .map(|_| Row {
            ts: origin + random.below(span) as i64,
            k: (!random.chance(nulls)).then(|| format!("k{}", random.below(4))),
            s: (!random.chance(nulls))
                .then(|| ["", "a", "é\"\\", "long enough to be no small string"][random.below(4) as usize].to_owned()),
            x: (!random.chance(nulls)).then(|| (random.below(2_000_001) as f64 / 7.0 - 100_000.0) * scale),
            i: (!random.chance(nulls)).then(|| random.below(1_000) as i64 - 100),
            b: (!random.chance(nulls)).then(|| random.chance(50)),
        })
        .collect()
}

fn json_lines(rows: &[Row], random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    for row in rows {
        let mut object = Map::new();
        let time = match random.chance(50) {
            true => json!(row.ts),
            false => json!(protocol::time::to_rfc3339(row.ts)),
        };
        object.insert("ts".into(), time);
        let columns = [
            ("k", json!(row.k)),
            ("s", json!(row.s)),
            ("x", json!(row.x)),
            ("i", json!(row.i)),
            ("b", json!(row.b)),
        ];
        // NULL is written, or left out.
        for (name, value) in columns {
            if !value.is_null() || random.chance(50) {
                object.insert(name.into(), value);
            }
        }
        serde_json::to_writer(&mut out, &object).unwrap();
        out.push(b'\n');
    }
    out
}

fn batch(rows: &[Row], otherwise: bool) -> RecordBatch {
    let text = |value: fn(&Row) -> Option<String>| -> ArrayRef {
        let array: StringArray = rows.iter().map(value).collect();
        cast(&array, &telemetry::dictionary()).unwrap()
    };
    let times = TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.ts)).with_timezone("UTC");
    let columns: Vec<(&str, ArrayRef)> = vec![
        (if otherwise { "at" } else { "ts" }, Arc::new(times)),
        (if otherwise { "key" } else { "k" }, text(|row| row.k.clone())),
        ("s", text(|row| row.s.clone())),
        ("x", Arc::new(rows.iter().map(|row| row.x).collect::<Float64Array>())),
        ("i", Arc::new(rows.iter().map(|row| row.i).collect::<Int64Array>())),
        ("b", Arc::new(rows.iter().map(|row| row.b).collect::<BooleanArray>())),
    ];
    let fields = columns
        .iter()
        .map(|(name, column)| Field::new(*name, column.data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    RecordBatch::try_new(schema, columns.into_iter().map(|(_, column)| column).collect()).unwrap()
}

struct Case {
    seed: u64,
    window: usize,
    extra: usize,
    aggregates: Vec<usize>,
}

impl Case {
    fn sql(&self) -> String {
        let rows = match EXTRAS[self.extra] {
            Extra::Union => UNION.to_owned(),
            Extra::Joined => JOINED.to_owned(),
            Extra::LeftJoined => JOINED.replace("JOIN", "LEFT JOIN"),
            Extra::Versioned => VERSIONED.to_owned(),
            _ => SOURCE.to_owned(),
        };
        self.over(&rows)
    }

    /// What the oracle reads: a join is a table to it.
    fn oracle_sql(&self, owners: &[Owner]) -> (String, Option<String>) {
        match EXTRAS[self.extra] {
            Extra::Joined => (self.over(SOURCE), Some(JOINED_ORACLE.to_owned())),
            Extra::LeftJoined => (self.over(SOURCE), Some(JOINED_ORACLE.replace("JOIN", "LEFT JOIN"))),
            Extra::Versioned => (self.over(SOURCE), Some(versioned_oracle(owners))),
            _ => (self.sql(), None),
        }
    }

    /// The view over rows that are declared so.
    fn over(&self, rows: &str) -> String {
        let extra = EXTRAS[self.extra];
        let (_, from, window) = WINDOWS[self.window];
        let keys: &[(&str, &str)] = match extra {
            Extra::TwoKeys => &[("k", "k"), ("b", "b")],
            Extra::ExpressionKey => &[("coalesce(upper(k), 'none')", "key"), ("i % 3", "kind")],
            Extra::NoKey => &[],
            _ => &[("k", "k")],
        };
        let select = |count: usize| {
            let keys = keys.iter().enumerate().map(|(at, (key, _))| format!("{key} AS k{at}"));
            let aggregates = self.aggregates.iter().take(count).enumerate();
            let aggregates = aggregates.map(|(at, index)| {
                let sql = AGGREGATES[*index].1;
                let sql = match extra {
                    Extra::Filter => format!("{sql} FILTER (WHERE b OR i > 200)"),
                    Extra::Case => sql
                        .replace("(x", "(CASE WHEN b THEN x ELSE -x END")
                        .replace("(i", "(CASE WHEN k = 'k1' THEN i ELSE 7 END"),
                    _ => sql.to_owned(),
                };
                format!("{sql} AS a{at}")
            });
            let windows = ["window_start AS ws", "window_end AS we"].map(str::to_owned);
            keys.chain(windows).chain(aggregates).collect::<Vec<_>>().join(", ")
        };
        let filter = match extra {
            Extra::Where => "WHERE (x > 0 OR s LIKE 'l%') AND k <> 'k3'",
            _ => "",
        };
        let having = match extra {
            Extra::Having => "HAVING count(*) > 2 AND (max(x) > 0 OR min(i) IS NULL)",
            _ => "",
        };
        let clauses = match extra {
            Extra::Lateness => "ALLOW LATENESS INTERVAL '3' SECOND".to_owned(),
            Extra::Fill => format!("FILL MISSING WITH NULL FOR {FILLED_WINDOWS} WINDOWS"),
            _ => String::new(),
        };
        let group: Vec<&str> = keys.iter().map(|(key, _)| *key).chain([window]).collect();
        let group = group.join(", ");
        let all = self.aggregates.len();
        let mut text = format!(
            "{rows}\nCREATE FEATURE VIEW v {clauses} AS SELECT {} FROM {from} {filter} GROUP BY {group} {having} {};",
            select(all),
            if extra == Extra::Early {
                "EMIT EVERY INTERVAL '2 s'"
            } else {
                ""
            }
        );
        if extra == Extra::Shared {
            text += &format!(
                "\nCREATE FEATURE VIEW w AS SELECT {} FROM HOP(m, ts, INTERVAL '2 s', INTERVAL '8 s') GROUP BY k, window_start;",
                select(all / 2)
            );
        }
        text
    }

    fn run(&self) -> Result<(), String> {
        let mut random = Random(self.seed);
        let rows = table(&mut random);
        let text = self.sql();
        let pipeline = sql::compile("p", &text, &Beside).map_err(|found| found.render("p", &text, false))?;
        let owners = owners(&rows, &mut random);
        let tables = match EXTRAS[self.extra] {
            Extra::Union => {
                let (ma, mb) = rows.iter().cloned().partition(|_| random.chance(60));
                vec![("ma", ma), ("mb", mb)]
            }
            Extra::Joined | Extra::LeftJoined | Extra::Versioned => vec![("raw", rows)],
            _ => vec![("m", rows)],
        };
        let lines: Vec<Vec<u8>> = tables.iter().map(|(_, rows)| json_lines(rows, &mut random)).collect();
        let run = |partitions: i32| {
            let inputs = pipeline.sources.iter().zip(&lines).map(|(source, lines)| {
                let path = Path::new("m.jsonl");
                Input::from_lines(source, path, lines)
                    .map(Some)
                    .map_err(|error| error.to_string())
            });
            let owners = engine::table::tables(&pipeline).into_iter().map(|table| {
                let input = Input::from_lines(&table.source, Path::new("owners.jsonl"), &owner_lines(&owners));
                input.map(Some).map_err(|error| error.to_string())
            });
            let inputs = inputs.chain(owners).collect::<Result<_, _>>()?;
            let (replayed, refusals) = replay(&pipeline, inputs, partitions).map_err(|error| format!("{error:#}"))?;
            if refusals.count > 0 {
                return Err(refusals.reasons.join("\n"));
            }
            Ok(replayed)
        };
        let alone = run(1)?;
        let spread = run(2 + random.below(5) as i32)?;
        if alone != spread {
            let shown = |lines: &[u8]| String::from_utf8_lossy(lines).into_owned();
            let pair = alone.views.iter().zip(&spread.views).find(|(one, many)| one != many);
            let pair = pair.map(|(one, many)| format!("{}\n{}", shown(&one.lines), shown(&many.lines)));
            return Err(format!("other bytes when spread:\n{}", pair.unwrap_or_default()));
        }
        for view in &alone.views {
            let (text, joined) = self.oracle_sql(&owners);
            let oracle = oracle(&text, &view.name, &tables, joined.as_deref())?;
            self.compare(&keyed(&view.lines), &keyed(&oracle))
                .map_err(|problem| format!("view {}: {problem}", view.name))?;
        }
        Ok(())
    }

    fn compare(&self, found: &Keyed, expected: &Keyed) -> Result<(), String> {
        for (key, row) in expected {
            let other = found.get(key).ok_or_else(|| format!("no row {key}"))?;
            for (name, value) in row {
                let index = name.strip_prefix('a').and_then(|at| at.parse::<usize>().ok());
                let tolerance = index.map_or(0.0, |at| AGGREGATES[self.aggregates[at]].2);
                if !close(value, &other[name], tolerance) {
                    let what = index.map_or("", |at| AGGREGATES[self.aggregates[at]].0);
                    return Err(format!("{key}: {what}: {} is not {value}", other[name]));
                }
            }
        }
        for (key, row) in found.iter().filter(|(key, _)| !expected.contains_key(*key)) {
            let empty = row
                .iter()
                .all(|(name, value)| !name.starts_with('a') || value.is_null());
            if EXTRAS[self.extra] != Extra::Fill || !empty {
                return Err(format!("row {key} too many: {row:?}"));
            }
        }
        Ok(())
    }
}

type Keyed = BTreeMap<String, Map<String, Value>>;

/// Rows by their keys and window.
fn keyed(lines: &[u8]) -> Keyed {
    let rows = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    rows.filter_map(|line| {
        let mut row: Map<String, Value> = serde_json::from_slice(line).unwrap();
        if row.remove("is_final") == Some(Value::Bool(false)) {
            return None;
        }
        let key = row.iter().filter(|(name, _)| !name.starts_with('a'));
        Some((key.map(|(name, value)| format!("{name}={value} ")).collect(), row))
    })
    .collect()
}

fn close(expected: &Value, found: &Value, tolerance: f64) -> bool {
    match (expected.as_f64(), found.as_f64()) {
        (Some(expected), Some(found)) => {
            let scale = expected.abs().max(found.abs());
            (expected - found).abs() <= tolerance * scale.max(1e-9)
        }
        _ => expected == found,
    }
}

/// `joined` computes the table that the view reads, where that is none of those given.
fn oracle(text: &str, view: &str, tables: &[(&str, Vec<Row>)], joined: Option<&str>) -> Result<Vec<u8>, String> {
    let sql = sql::view_oracle_sql(text, view).map_err(|found| found.render("p", text, false))?;
    let context = SessionContext::new();
    for aggregate in sql::oracle_aggregates() {
        context.register_udaf(aggregate);
    }
    for (name, rows) in tables {
        let batch = batch(rows, *name == "mb");
        context
            .register_batch(*name, batch)
            .map_err(|error| error.to_string())?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let batches = runtime
        .block_on(async {
            if let Some(joined) = joined {
                let rows = context.sql(joined).await?;
                context.register_table("m", rows.into_view())?;
            }
            context.sql(&sql).await?.collect().await
        })
        .map_err(|error| format!("{error}\n{sql}"))?;
    let mut lines = Vec::new();
    batches.iter().for_each(|batch| write_rows(batch, &mut lines));
    Ok(lines)
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Enough cases that every cell of the product is in one.
fn cases(count: usize, seed: u64) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut next = 0;
    let combinations = WINDOWS.len() * EXTRAS.len();
    while cases.len() < count || next < combinations * AGGREGATES.len().div_ceil(AGGREGATES_PER_CASE) {
        let (window, extra) = (next % WINDOWS.len(), next / WINDOWS.len() % EXTRAS.len());
        if is_refused(window, extra) {
            next += 1;
            continue;
        }
        let first = next / combinations * AGGREGATES_PER_CASE;
        let aggregates = (first..first + AGGREGATES_PER_CASE).map(|at| at % AGGREGATES.len());
        cases.push(Case {
            seed: seed.wrapping_add(next as u64),
            window,
            extra,
            aggregates: aggregates.collect(),
        });
        next += 1;
    }
    cases
}

#[test]
fn every_aggregate_window_and_option_is_its_batch_query() {
    let seed = from_environment("HOMEOSTAT_ORACLE_SEED").unwrap_or(1);
    hold(&cases(
        from_environment("HOMEOSTAT_ORACLE_CASES").unwrap_or(0) as usize,
        seed,
    ));
}

#[test]
#[ignore = "long: make soak"]
fn a_thousand_tables_more_give_every_query_its_batch_result() {
    // Seeds that `make test` does not have.
    hold(&cases(10_000, 1 << 32));
}

/// Runs cases, and prints and checks what they cover.
fn hold(cases: &[Case]) {
    let next = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            if let Err(problem) = case.run() {
                failures
                    .lock()
                    .unwrap()
                    .push(format!("seed {}: {problem}\n{}", case.seed, case.sql()));
            }
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    let mut covered = BTreeMap::new();
    for case in cases {
        for aggregate in &case.aggregates {
            *covered.entry((*aggregate, case.window, case.extra)).or_insert(0) += 1;
        }
    }
    print_coverage(&covered);
    let refused = (0..EXTRAS.len()).filter(|extra| is_refused(SESSION, *extra)).count();
    let cells = AGGREGATES.len() * (WINDOWS.len() * EXTRAS.len() - refused);
    assert_eq!(covered.len(), cells, "a cell of the table is in no case");
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {} cases fail:\n{}",
        failures.len(),
        cases.len(),
        failures[..failures.len().min(5)].join("\n\n")
    );
}

/// Aggregates × windows, each cell the number of its cases by option.
fn print_coverage(covered: &BTreeMap<(usize, usize, usize), u32>) {
    println!("options in the order {EXTRAS:?}");
    for (aggregate, (name, _, _)) in AGGREGATES.iter().enumerate() {
        for (window, (window_name, _, _)) in WINDOWS.iter().enumerate() {
            let cell = |extra| match is_refused(window, extra) {
                true => "-".to_owned(),
                false => covered
                    .get(&(aggregate, window, extra))
                    .copied()
                    .unwrap_or(0)
                    .to_string(),
            };
            let cells: Vec<String> = (0..EXTRAS.len()).map(cell).collect();
            println!("{name:24} {window_name:28} {}", cells.join(" "));
        }
    }
}
