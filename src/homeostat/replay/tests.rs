//! What a replay reads and writes, file by file.

use std::{collections::BTreeMap, fs::File, path::Path, path::PathBuf, sync::Arc};

use arrow::{
    array::{BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray},
    datatypes::{DataType, Field, Schema, TimeUnit},
};
use engine::spec::Pipeline;
use parquet::arrow::ArrowWriter;

use super::*;
use crate::pipelines::Detectors;

const APP: &str = "CREATE SOURCE app (service STRING, ms DOUBLE, code INT, ok BOOLEAN, ts TIMESTAMP(3), row_number BIGINT METADATA FROM 'offset',
  WATERMARK FOR ts AS ts - INTERVAL '1' SECOND) WITH (topic = 'app', format = 'json');";
const VIEW: &str = "CREATE FEATURE VIEW v AS SELECT service, window_start, window_end, count(*) AS n, avg(ms) AS a,
  sum(code) AS codes, bool_and(ok) AS ok, stddev(ms) AS d, max(ts) AS latest, max(row_number) AS last_row
  FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '10' SECOND) GROUP BY service, window_start, window_end;";

fn compile(text: &str) -> Pipeline {
    sql::compile("p", text, &Detectors).unwrap_or_else(|found| panic!("{}", found.render("p", text, false)))
}

fn run(pipeline: &Pipeline, paths: &[PathBuf], partitions: i32) -> (Replayed, Refusals) {
    let input = Input::read(&pipeline.sources[0], paths).unwrap();
    replay(pipeline, vec![Some(input)], partitions).unwrap()
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn shown(rows: &lines::Rows) -> String {
    String::from_utf8(rows.lines.clone()).unwrap()
}

const EXPECTED: &str = r#"{"service":null,"window_start":"2026-01-01T00:00:00.000Z","window_end":"2026-01-01T00:00:10.000Z","n":1,"a":null,"codes":null,"ok":null,"d":null,"latest":"2026-01-01T00:00:02.000Z","last_row":2}
{"service":"a","window_start":"2026-01-01T00:00:00.000Z","window_end":"2026-01-01T00:00:10.000Z","n":2,"a":2.0,"codes":7,"ok":false,"d":1.4142135623730951,"latest":"2026-01-01T00:00:09.999Z","last_row":1}
{"service":"a","window_start":"2026-01-01T00:01:00.000Z","window_end":"2026-01-01T00:01:10.000Z","n":1,"a":0.5,"codes":1,"ok":true,"d":null,"latest":"2026-01-01T00:01:00.000Z","last_row":3}
"#;

fn csv_text() -> String {
    // The second row is late by any watermark; a replay takes rows by their time.
    "ts,service,ms,code,ok\n2026-01-01T00:00:09.999Z,a,1,3,true\n1767225600000,a,3.0,4,false\n\
     2026-01-01 00:00:02,,,,\n2026-01-01T00:01:00Z,a,0.5,1,TRUE\n"
        .to_owned()
}

#[test]
fn json_csv_and_parquet_give_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = compile(&format!("{APP} {VIEW}"));
    let json = r#"{"ts":"2026-01-01T00:00:09.999Z","service":"a","ms":1,"code":3,"ok":true}
{"ts":1767225600000,"service":"a","ms":3.0,"code":4,"ok":false}

{"ts":"2026-01-01T00:00:02Z"}
{"ts":"2026-01-01T00:01:00+00:00","service":"a","ms":0.5,"code":1,"ok":true}"#;
    let lines = write(folder.path(), "app.jsonl", json);
    let csv = write(folder.path(), "app.csv", &csv_text());
    let array = format!(
        "[{}]",
        json.lines()
            .filter(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join(",\n")
    );
    let document = write(folder.path(), "app.json", &array);
    let parquet = folder.path().join("app.parquet");
    write_parquet(&parquet);
    for path in [lines, csv, document, parquet] {
        for partitions in [1, 3, 64] {
            let (replayed, refusals) = run(&pipeline, std::slice::from_ref(&path), partitions);
            assert_eq!(shown(&replayed.views[0]), EXPECTED, "{}", path.display());
            assert_eq!(refusals, Refusals::default());
        }
    }
}

fn write_parquet(path: &Path) {
    let ns = |ms: i64| ms * 1_000_000;
    let schema = Arc::new(Schema::new(vec![
        Field::new("ok", DataType::Boolean, true),
        Field::new("code", DataType::Int64, true),
        Field::new("ts", DataType::Timestamp(TimeUnit::Nanosecond, None), true),
        Field::new("ms", DataType::Float64, true),
        Field::new("service", DataType::Utf8, true),
        Field::new("unused", DataType::Utf8, true),
    ]));
    let origin = 1_767_225_600_000;
    let times = [9_999, 0, 2_000, 60_000].map(|ms| ns(origin + ms));
    let batch = RecordBatch::try_new(
        Arc::clone(&schema),
        vec![
            Arc::new(BooleanArray::from(vec![Some(true), Some(false), None, Some(true)])),
            Arc::new(Int64Array::from(vec![Some(3), Some(4), None, Some(1)])),
            Arc::new(TimestampNanosecondArray::from(times.to_vec())),
            Arc::new(Float64Array::from(vec![Some(1.0), Some(3.0), None, Some(0.5)])),
            Arc::new(StringArray::from(vec![Some("a"), Some("a"), None, Some("a")])),
            Arc::new(StringArray::from(vec![None::<&str>; 4])),
        ],
    )
    .unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn what_is_no_row_is_refused_by_its_place_and_the_rest_counts() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = compile(&format!("{APP} {VIEW}"));
    let text = "{\"ts\":1767225600000,\"ms\":1}\n{\"ts\":17672\n{\"ms\":1}\n{\"ts\":1767225600000,\"ms\":\"1\"}\n";
    let path = write(folder.path(), "app.jsonl", text);
    let (replayed, refusals) = run(&pipeline, std::slice::from_ref(&path), 1);
    assert_eq!(refusals.count, 3);
    for line in [2, 3, 4] {
        let place = format!("{}:{line}: ", path.display());
        let found = refusals
            .reasons
            .iter()
            .filter(|reason| reason.starts_with(&place))
            .count();
        assert_eq!(found, 1, "{place} in {:?}", refusals.reasons);
    }
    assert!(shown(&replayed.views[0]).contains("\"n\":1,\"a\":1.0"));
}

#[test]
fn files_that_do_not_fit_are_refused_whole() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = compile(&format!("{APP} {VIEW}"));
    let source = &pipeline.sources[0];
    let refused = |name: &str, text: &str| {
        let path = write(folder.path(), name, text);
        Input::read(source, &[path]).map(drop).unwrap_err().to_string()
    };
    assert!(refused("a.csv", "ts,service\n").contains("no column `"));
    let cell = refused("b.csv", "ts,service,ms,code,ok\n1,a,fast,1,true\n");
    assert!(
        cell.contains("b.csv:2: column `ms`: \"fast\" is not a number"),
        "{cell}"
    );
    assert!(refused("c.csv", "ts,service,ms,code,ok\n1,a\n").contains("c.csv"));
    assert!(refused("d.txt", "").contains("the extension tells"));
    assert!(refused("e.parquet", "no").contains("e.parquet"));
    assert!(refused("f.pb", "").contains("not OTLP"));
    assert!(Input::read(source, &[folder.path().join("absent.jsonl")]).is_err());
}

#[test]
fn an_empty_file_gives_empty_views_and_files_take_their_names_together() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "{APP} {VIEW} CREATE DETECTOR v ON v KEY (service) FEATURES (a) USING static_threshold WITH (upper = 2);"
    );
    let pipeline = compile(&text);
    let path = write(folder.path(), "app.jsonl", "");
    let (replayed, _) = run(&pipeline, &[path], 2);
    let out = folder.path().join("deep/out");
    replayed.write(&out).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    // A detector that is called as a view has a file of its own.
    assert_eq!(names, ["v.detector.jsonl", "v.jsonl"]);
    assert!(std::fs::read(out.join("v.jsonl")).unwrap().is_empty());
}

#[test]
fn every_window_is_scored_once_whether_it_alarms_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "{APP} {VIEW} CREATE DETECTOR slow ON v KEY (service) FEATURES (a, n) USING static_threshold WITH (upper = 2);"
    );
    let path = write(folder.path(), "app.csv", &csv_text());
    let (replayed, _) = run(&compile(&text), &[path], 1);
    let rows: Vec<serde_json::Value> = shown(&replayed.detectors[0])
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 3);
    let alarm = rows.iter().find(|row| row["is_anomaly"] == true).unwrap();
    assert_eq!(alarm["target"], serde_json::json!({"service": "a"}));
    assert_eq!(alarm["window_start"], "2026-01-01T00:00:00.000Z");
    assert_eq!(alarm["features"], serde_json::json!({"a": 2.0, "n": 2.0}));
    let sum: f64 = alarm["contributions"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(serde_json::Value::as_f64)
        .sum();
    assert!((sum - alarm["score"].as_f64().unwrap()).abs() < 1e-12);
}

#[test]
fn silence_is_told_by_the_times_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let text = "CREATE SOURCE beats WITH (topic = 'beats', format = 'heartbeat');
      CREATE DETECTOR quiet ON beats KEY (service) USING silence WITH (timeout = '10 s');";
    let beat = |service: &str, second: i64| {
        let time = 1_767_225_600_000 + second * 1_000;
        format!("{{\"service\":\"{service}\",\"instance\":\"1\",\"time\":{time}}}\n")
    };
    let steady = (0..60).map(|second| beat("steady", second));
    let gone = (0..60)
        .filter(|second| !(20..45).contains(second))
        .map(|second| beat("gone", second));
    let path = write(folder.path(), "beats.jsonl", &steady.chain(gone).collect::<String>());
    let pipeline = compile(text);
    let (replayed, _) = run(&pipeline, std::slice::from_ref(&path), 1);
    let ends: Vec<(String, bool)> = shown(&replayed.detectors[0])
        .lines()
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(row["target"]["service"], "gone");
            (
                row["window_end"].as_str().unwrap()[14..19].to_owned(),
                row["is_anomaly"].as_bool().unwrap(),
            )
        })
        .collect();
    let end = |at: &str, alarm| (at.to_owned(), alarm);
    assert_eq!(ends, [end("00:29", true), end("00:39", true), end("00:45", false)]);
    assert_eq!(run(&pipeline, &[path], 5).0, replayed);
}

#[test]
fn numbers_that_json_does_not_have_are_text() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "{APP} CREATE FEATURE VIEW v AS SELECT window_end, max(ms) AS high, min(ms) AS low, sum(ms) AS s
         FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY window_end;"
    );
    let path = write(
        folder.path(),
        "app.csv",
        "ts,service,ms,code,ok\n1,a,inf,1,true\n2,a,-inf,1,true\n",
    );
    let (replayed, _) = run(&compile(&text), &[path], 1);
    let expected =
        "{\"window_end\":\"1970-01-01T00:00:10.000Z\",\"high\":\"Infinity\",\"low\":\"-Infinity\",\"s\":\"NaN\"}\n";
    assert_eq!(shown(&replayed.views[0]), expected);
}

#[test]
fn otlp_in_protobuf_and_in_json_is_the_same() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../telemetry/testdata");
    let pipeline = compile(
        "CREATE SOURCE m WITH (topic = 'm', format = 'otlp_metrics');
         CREATE FEATURE VIEW v AS SELECT metric_name, window_start, count(*) AS n, sum(value) AS s
         FROM TUMBLE(TABLE m, DESCRIPTOR(event_time), INTERVAL '1' MINUTE) GROUP BY metric_name, window_start;",
    );
    let (protobuf, _) = run(&pipeline, &[samples.join("metrics.pb")], 1);
    let (json, _) = run(&pipeline, &[samples.join("metrics.json")], 1);
    assert!(!protobuf.views[0].lines.is_empty());
    assert_eq!(shown(&protobuf.views[0]), shown(&json.views[0]));
}

#[test]
fn a_source_reads_what_a_sink_writes_and_a_circle_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "{APP} {VIEW}
         CREATE SOURCE minutes (service STRING, n BIGINT, window_start TIMESTAMP(3) , d DOUBLE,
           ts TIMESTAMP(3) FROM 'window_start', WATERMARK FOR ts AS ts - INTERVAL '1' SECOND) WITH (topic = 'minutes', format = 'json');
         CREATE SINK s FROM v WITH (topic = 'minutes', format = 'json');
         CREATE FEATURE VIEW w AS SELECT window_start, sum(n) AS n, count(d) AS known
           FROM TUMBLE(TABLE minutes, DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY window_start;"
    )
    .replace("window_start TIMESTAMP(3) ,", "");
    let path = write(folder.path(), "app.csv", &csv_text());
    let pipeline = compile(&text);
    let at = |name: &str| pipeline.sources.iter().position(|source| source.name == name).unwrap();
    let mut inputs = vec![None, None];
    inputs[at("app")] = Some(Input::read(&pipeline.sources[at("app")], std::slice::from_ref(&path)).unwrap());
    let (replayed, _) = replay(&pipeline, inputs, 1).unwrap();
    let over = replayed.views.iter().find(|rows| rows.name == "w").unwrap();
    let expected = "{\"window_start\":\"2026-01-01T00:00:00.000Z\",\"n\":3,\"known\":1}\n\
                    {\"window_start\":\"2026-01-01T00:01:00.000Z\",\"n\":1,\"known\":0}\n";
    assert_eq!(shown(over), expected);

    let circle = compile(&format!("{text} CREATE SINK back FROM w WITH (topic = 'app');"));
    let refused = replay(&circle, vec![None, None], 1).unwrap_err();
    assert!(refused.to_string().contains("reads what comes of itself"), "{refused}");
}

#[test]
fn early_rows_hold_what_came_before_their_step() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "{APP} CREATE FEATURE VIEW v AS SELECT window_start, count(*) AS n, sum(code) AS codes
         FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY window_start EMIT EVERY INTERVAL '4 s' ON WINDOW CLOSE;
         CREATE DETECTOR d ON v KEY () FEATURES (n) USING static_threshold WITH (upper = 100);"
    )
    .replace("KEY () ", "");
    let csv: String = [0, 1_000, 4_000, 7_999, 8_000, 9_000, 21_000, 30_000]
        .map(|ms| format!("{ms},a,1,2,true\n"))
        .concat();
    let path = write(folder.path(), "app.csv", &format!("ts,service,ms,code,ok\n{csv}"));
    let pipeline = compile(&text);
    let (replayed, _) = run(&pipeline, std::slice::from_ref(&path), 1);
    let rows: Vec<(u64, u64, bool)> = shown(&replayed.views[0])
        .lines()
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let second = row["window_start"].as_str().unwrap()[17..19].parse().unwrap();
            (second, row["n"].as_u64().unwrap(), row["is_final"].as_bool().unwrap())
        })
        .collect();
    let expected = [
        (0, 2, false),
        (0, 4, false),
        (0, 6, true),
        (20, 1, false),
        (20, 1, false),
        (20, 1, true),
        (30, 1, true),
    ];
    assert_eq!(rows, expected);
    assert_eq!(
        shown(&replayed.detectors[0]).lines().count(),
        3,
        "only what is over is scored"
    );
    assert_eq!(run(&pipeline, &[path], 7).0, replayed);
}

#[test]
fn sessions_end_where_a_group_pauses() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "{APP} CREATE FEATURE VIEW v AS SELECT service, window_start, window_end, count(*) AS n, sum(code) AS codes, last(ms) AS l
         FROM app WHERE ok GROUP BY service, session(ts, INTERVAL '7' SECOND) HAVING count(*) > 0;
         CREATE FEATURE VIEW w AS SELECT window_start, count(*) AS n
         FROM SESSION(TABLE app, DESCRIPTOR(ts), INTERVAL '7' SECOND) GROUP BY window_start;"
    );
    // SplitMix64: a table that is the same every time.
    let mut rows: Vec<(i64, String, i64)> = Vec::new();
    let mut at = 0;
    for number in 0..400u64 {
        at += (mix(number) % 3_000) as i64 * i64::from(number % 9 != 0)
            + (mix(number + 7) % 12_000) as i64 * i64::from(number % 9 == 0);
        rows.push((
            at,
            format!("s{}", mix(number * 31) % 4),
            (mix(number * 17) % 100) as i64,
        ));
    }
    let csv: String = rows
        .iter()
        .map(|(ts, service, code)| format!("{ts},{service},{code},{code},true\n"))
        .collect();
    let path = write(
        folder.path(),
        "app.csv",
        &format!("ts,service,ms,code,ok\n{csv}0,s0,1,1,false\n"),
    );
    let pipeline = compile(&text);
    let (replayed, refusals) = run(&pipeline, std::slice::from_ref(&path), 1);
    assert_eq!(refusals, Refusals::default());
    for (partitions, paths) in [(5, std::slice::from_ref(&path)), (64, std::slice::from_ref(&path))] {
        assert_eq!(run(&pipeline, paths, partitions).0, replayed);
    }
    let mut expected: Vec<(i64, i64, String, usize, i64, i64)> = Vec::new();
    for service in ["s0", "s1", "s2", "s3"] {
        let mine: Vec<_> = rows.iter().filter(|(_, of, _)| of == service).collect();
        for session in mine.chunk_by(|a, b| b.0 - a.0 <= 7_000) {
            let (first, last) = (session[0].0, session[session.len() - 1].0);
            let ties = session.iter().filter(|row| row.0 == last).map(|row| row.2);
            let codes = session.iter().map(|row| row.2).sum();
            expected.push((
                last + 7_000,
                first,
                service.to_owned(),
                session.len(),
                codes,
                ties.max().unwrap(),
            ));
        }
    }
    expected.sort();
    let lines: String = expected
        .iter()
        .map(|(end, start, service, n, codes, last)| {
            let time = protocol::time::to_rfc3339;
            format!(
                "{{\"service\":\"{service}\",\"window_start\":\"{}\",\"window_end\":\"{}\",\"n\":{n},\"codes\":{codes},\"l\":{last}.0}}\n",
                time(*start), time(*end)
            )
        })
        .collect();
    assert!(expected.len() > 40, "{}", expected.len());
    assert_eq!(shown(&replayed.views[0]), lines);
    let all: Vec<_> = rows.chunk_by(|a, b| b.0 - a.0 <= 7_000).collect();
    assert_eq!(shown(&replayed.views[1]).lines().count(), all.len());
}

/// Rows by service and start of the window, NULL aside.
fn by_group(rows: &lines::Rows) -> BTreeMap<(String, String), serde_json::Value> {
    let parsed = shown(rows)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect::<Vec<serde_json::Value>>();
    let keyed = parsed.into_iter().filter(|row| !row["service"].is_null());
    let text = |row: &serde_json::Value, name: &str| row[name].as_str().unwrap().to_owned();
    keyed
        .map(|row| ((text(&row, "service"), text(&row, "window_start")), row))
        .collect()
}

/// Invariant 5: a join is exactly the join of the rows that its views have.
#[test]
fn joined_views_have_the_rows_that_their_views_have_together() {
    let folder = tempfile::tempdir().unwrap();
    let view = |name: &str, select: &str, filter: &str, having: &str| {
        format!(
            "CREATE FEATURE VIEW {name} AS SELECT service, window_start, {select}
             FROM HOP(app, ts, INTERVAL '5 s', INTERVAL '20 s') {filter} GROUP BY service, window_start {having};"
        )
    };
    let join = |name: &str, kind: &str, right: &str, filter: &str| {
        format!(
            "CREATE FEATURE VIEW {name} AS SELECT a.service, a.window_start, a.n, a.median_ms, r.service AS other, r.n AS rn, r.x, a.n + r.n AS both
             FROM a {kind} {right} AS r ON a.service = r.service AND a.window_start = r.window_start {filter};"
        )
    };
    let text = [
        APP.to_owned(),
        view("a", "count(*) AS n, median(ms) AS median_ms", "WHERE code < 4", ""),
        view("b", "count(*) AS n, last(ms) AS x", "WHERE ok", "HAVING avg(ms) > 3"),
        view("c", "count(code) AS n, stddev(ms) AS x", "", "HAVING count(*) > 3"),
        view(
            "d",
            "sum(code) AS n, max(ms) FILTER (WHERE ok) AS x",
            "WHERE code < 4",
            "HAVING max(ms) > 5",
        ),
        join("inner_b", "JOIN", "b", ""),
        join("inner_c", "JOIN", "c", ""),
        join("inner_d", "INNER JOIN", "d", ""),
        join("left_b", "LEFT JOIN", "b", ""),
        join("left_c", "LEFT OUTER JOIN", "c", ""),
        join("left_d", "LEFT JOIN", "d", ""),
        join("alone", "LEFT JOIN", "b", "WHERE r.service IS NULL"),
        "CREATE FEATURE VIEW few AS SELECT service, window_start, n FROM a WHERE n < 3;".to_owned(),
        // Views over views over views, in no order.
        "CREATE FEATURE VIEW deepest AS SELECT service, window_start, n + more AS n FROM deep WHERE more > 2;
         CREATE FEATURE VIEW deep AS SELECT l.service, l.window_start, coalesce(l.rn, 0) + i.n AS n, i.rn + c.n AS more
         FROM left_b AS l JOIN inner_c AS i ON l.service = i.service AND l.window_start = i.window_start
         LEFT JOIN c ON c.service = l.service AND c.window_start = l.window_start WHERE i.n > 1;"
            .to_owned(),
    ]
    .concat();
    let mut seed = 7u64;
    let mut random = |below: u64| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut csv = "ts,service,ms,code,ok\n".to_owned();
    for _ in 0..600 {
        let service = ["", "a", "b", "c", "d"][random(5) as usize];
        let ok = ["", "true", "false"][random(3) as usize];
        csv += &format!(
            "{},{service},{},{},{ok}\n",
            random(600_000),
            random(80) as f64 / 8.0,
            random(6)
        );
    }
    let path = write(folder.path(), "app.csv", &csv);
    let pipeline = compile(&text);
    let (replayed, _) = run(&pipeline, std::slice::from_ref(&path), 1);
    let rows = |name: &str| by_group(replayed.views.iter().find(|rows| rows.name == name).unwrap());
    let left = rows("a");
    for right in ["b", "c", "d"] {
        let partners = rows(right);
        let inner = rows(&format!("inner_{right}"));
        let outer = rows(&format!("left_{right}"));
        assert_eq!(outer.keys().collect::<Vec<_>>(), left.keys().collect::<Vec<_>>());
        let shared: Vec<_> = left.keys().filter(|group| partners.contains_key(*group)).collect();
        assert_eq!(inner.keys().collect::<Vec<_>>(), shared);
        assert!(
            shared.len() > 20 && shared.len() < left.len(),
            "{right}: {} of {}",
            shared.len(),
            left.len()
        );
        for (group, row) in &outer {
            let own = &left[group];
            let null = serde_json::Value::Null;
            let partner = |name: &str| partners.get(group).map_or(&null, |row| &row[name]);
            let both = partner("n").as_i64().map(|n| n + own["n"].as_i64().unwrap());
            let expected = serde_json::json!({
                "service": own["service"], "window_start": own["window_start"], "n": own["n"], "median_ms": own["median_ms"],
                "other": partner("service"), "rn": partner("n"), "x": partner("x"), "both": both,
            });
            assert_eq!(*row, expected, "{right} {group:?}");
            assert!(inner.get(group).is_none_or(|inner| inner == row));
        }
    }
    let partners = rows("b");
    let alone: Vec<_> = left.keys().filter(|group| !partners.contains_key(*group)).collect();
    assert_eq!(rows("alone").keys().collect::<Vec<_>>(), alone);
    let few: Vec<_> = left
        .iter()
        .filter(|(_, row)| row["n"].as_i64() < Some(3))
        .map(|(group, _)| group)
        .collect();
    assert_eq!(rows("few").keys().collect::<Vec<_>>(), few);
    let (left_b, inner_c, c) = (rows("left_b"), rows("inner_c"), rows("c"));
    let deep = left_b.iter().filter_map(|(group, left)| {
        let inner = inner_c.get(group).filter(|inner| inner["n"].as_i64() > Some(1))?;
        let n = left["rn"].as_i64().unwrap_or(0) + inner["n"].as_i64()?;
        Some((group, (n, inner["rn"].as_i64()? + c[group]["n"].as_i64()?)))
    });
    let deep: BTreeMap<_, _> = deep.collect();
    assert!(deep.len() > 20, "{}", deep.len());
    let found = rows("deep");
    let number = |row: &serde_json::Value, name: &str| row[name].as_i64().unwrap();
    let found: BTreeMap<_, _> = found
        .iter()
        .map(|(group, row)| (group, (number(row, "n"), number(row, "more"))))
        .collect();
    assert_eq!(found, deep);
    let found = rows("deepest");
    let found: Vec<_> = found.iter().map(|(group, row)| (group, number(row, "n"))).collect();
    let deepest = deep.iter().filter(|(_, (_, more))| *more > 2);
    assert_eq!(
        found,
        deepest.map(|(group, (n, more))| (*group, n + more)).collect::<Vec<_>>()
    );
    assert_eq!(run(&pipeline, &[path], 7).0, replayed);
}

#[test]
fn anomalies_of_confluent_s_function_are_those_of_the_detector_that_it_becomes() {
    let folder = tempfile::tempdir().unwrap();
    let view = "CREATE FEATURE VIEW v AS SELECT service, window_start, window_end, avg(ms) AS a
      FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '10' SECOND) GROUP BY service, window_start, window_end;";
    let call =
        "ML_DETECT_ANOMALIES(a, window_end, JSON_OBJECT('minTrainingSize' VALUE 20, 'confidencePercentage' VALUE 99.9))
      OVER (PARTITION BY service ORDER BY window_end RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)";
    let pipeline = compile(&format!(
        "{APP} {view}
        CREATE FEATURE VIEW whole AS SELECT service, window_start, {call} AS found FROM v;
        CREATE FEATURE VIEW parts AS SELECT service, window_end, ({call}).is_anomaly AS is_anomaly, ({call})['upper_bound'] - a AS room FROM v;
        CREATE FEATURE VIEW alarms AS SELECT service, r.found[2] AS a, found.forecast_value FROM
          (SELECT service, {call} AS found FROM v WHERE a < 1e9) AS r WHERE found.is_anomaly;
        CREATE DETECTOR d ON v KEY (service) FEATURES (a) USING holt_winters WITH (warmup = 20, threshold = 3.290530);"
    ));
    let mut text = String::new();
    for row in 0..200 {
        let ms = 10.0 + f64::from(row % 7) + if row == 150 { 500.0 } else { 0.0 };
        let ts = 1_767_225_600_000 + i64::from(row) * 10_000;
        text += &format!("{{\"ts\":{ts},\"service\":\"a\",\"ms\":{ms}}}\n{{\"ts\":{ts},\"service\":\"b\",\"ms\":1}}\n");
    }
    let path = write(folder.path(), "app.jsonl", &text);
    let (replayed, _) = run(&pipeline, std::slice::from_ref(&path), 1);
    let rows = |name: &str| -> Vec<serde_json::Value> {
        let mut files = replayed.views.iter().chain(&replayed.detectors);
        let file = files.find(|file| file.name == name).unwrap();
        shown(file)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    assert_eq!(replayed.detectors.len(), 1);
    let scores = rows("d");
    let scored: Vec<&serde_json::Value> = scores.iter().filter(|row| row["is_anomaly"] == true).collect();
    assert!(
        scored.iter().any(|row| row["features"]["a"] == 10.0 + 3.0 + 500.0),
        "{scored:?}"
    );
    let whole = rows("whole");
    assert_eq!((whole.len(), scores.len()), (400, 400));
    for (row, score) in whole.iter().zip(&scores) {
        let found = &row["found"];
        assert_eq!(found["timestamp"], score["window_end"]);
        assert_eq!(found["actual_value"], score["features"]["a"]);
        match found["forecast_value"].is_null() {
            true => assert!(found["is_anomaly"].is_null() && score["is_anomaly"] == false),
            false => {
                assert_eq!(found["is_anomaly"], score["is_anomaly"]);
                let number = |name: &str| found[name].as_f64().unwrap();
                let inside = (number("lower_bound")..=number("upper_bound")).contains(&number("actual_value"));
                assert!(found["is_anomaly"] == !inside, "{row}");
            }
        }
    }
    let parts = rows("parts");
    assert!(
        parts
            .iter()
            .any(|row| row["is_anomaly"] == true && row["room"].as_f64().unwrap() < -400.0)
    );
    assert_eq!(parts[399]["is_anomaly"], whole[399]["found"]["is_anomaly"]);
    let alarms = rows("alarms");
    assert_eq!(alarms.len(), scored.len());
    assert!(
        alarms
            .iter()
            .any(|row| row["a"] == 513.0 && row["forecast_value"].as_f64().unwrap() < 100.0)
    );
}

#[test]
fn counters_of_both_temporalities_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = compile(
        "CREATE SOURCE m WITH (topic = 'm', format = 'otlp_metrics_json');
        CREATE FEATURE VIEW v AS SELECT attributes['name'] AS name, window_start, increase(value) AS i, rate(value) AS r,
          delta(value) AS d, increase(value) FILTER (WHERE value < 6) AS few
        FROM TUMBLE(m, event_time, INTERVAL '1' MINUTE) WHERE metric_name = 'requests' GROUP BY name, window_start HAVING increase(value) > 0;",
    );
    // A counter at 0, 10, 20 and 30 s that restarts before 30 s: as totals, and as the changes since the point before.
    let origin = 1_767_225_600_u64;
    let point = |name: &str, from: u64, at: u64, value: u64| {
        format!(
            "{{\"attributes\":[{{\"key\":\"name\",\"value\":{{\"stringValue\":\"{name}\"}}}}],\"startTimeUnixNano\":\"{}000000000\",\"timeUnixNano\":\"{}000000000\",\"asInt\":\"{value}\"}}",
            origin + from,
            origin + at
        )
    };
    let sum = |temporality: u8, points: Vec<String>| {
        format!(
            "{{\"resourceMetrics\":[{{\"scopeMetrics\":[{{\"metrics\":[{{\"name\":\"requests\",\"sum\":{{\"aggregationTemporality\":{temporality},\"isMonotonic\":true,\"dataPoints\":[{}]}}}}]}}]}}]}}\n",
            points.join(",")
        )
    };
    let totals = [(0, 100), (10, 105), (20, 112), (30, 4)].map(|(at, value)| point("totals", 0, at, value));
    let changes = [(0, 10, 5), (10, 20, 7), (20, 30, 4)].map(|(from, at, value)| point("changes", from, at, value));
    let once = vec![point("once", 20, 40, 8)];
    let text = [sum(2, totals.to_vec()), sum(1, changes.to_vec()), sum(1, once)].concat();
    let path = write(folder.path(), "m.jsonl", &text);
    let (replayed, _) = run(&pipeline, std::slice::from_ref(&path), 1);
    let expected = r#"{"name":"changes","window_start":"2026-01-01T00:00:00.000Z","i":16.0,"r":0.5333333333333333,"d":16.0,"few":9.0}
{"name":"once","window_start":"2026-01-01T00:00:00.000Z","i":8.0,"r":0.4,"d":8.0,"few":null}
{"name":"totals","window_start":"2026-01-01T00:00:00.000Z","i":16.0,"r":0.5333333333333333,"d":-96.0,"few":null}
"#;
    assert_eq!(shown(&replayed.views[0]), expected);
    assert_eq!(run(&pipeline, std::slice::from_ref(&path), 5).0, replayed);
}

#[test]
fn rows_are_joined_with_a_table_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "owners.csv", "service,team\na,one\nb,two\n");
    let text = format!(
        "{APP}
        CREATE TABLE owners (service STRING, team STRING, PRIMARY KEY (service)) WITH (connector = 'file', path = 'owners.csv', format = 'csv');
        CREATE FEATURE VIEW inner_rows AS SELECT team, window_end, count(*) AS n, max(ms) AS m FROM TUMBLE(
          TABLE (SELECT ts, o.team, ms FROM app JOIN owners FOR SYSTEM_TIME AS OF app.ts AS o ON app.service = o.service),
          DESCRIPTOR(ts), INTERVAL '10' SECOND) GROUP BY team, window_end;
        CREATE FEATURE VIEW all_rows AS SELECT team, window_end, count(*) AS n FROM TUMBLE(
          TABLE (SELECT ts, team FROM app LEFT JOIN owners FOR SYSTEM_TIME AS OF ts ON app.service = owners.service),
          DESCRIPTOR(ts), INTERVAL '10' SECOND) GROUP BY team, window_end;"
    );
    let read = || crate::pipelines::read(&write(folder.path(), "pipeline.sql", &text)).unwrap();
    let file = read();
    let pipeline = crate::pipelines::compile(&file).unwrap_or_else(|found| panic!("{}", file.render(&found, false)));
    let rows = [("a", 1), ("b", 2), ("a", 3), ("c", 4)]
        .map(|(service, ms)| format!("{{\"ts\":176722560000{ms},\"service\":\"{service}\",\"ms\":{ms}}}"));
    let rows = format!("{}\n{{\"ts\":1767225600009,\"ms\":9}}\n", rows.join("\n"));
    let path = write(folder.path(), "app.jsonl", &rows);
    let (replayed, _) = run(&pipeline, std::slice::from_ref(&path), 1);
    let end = "\"window_end\":\"2026-01-01T00:00:10.000Z\"";
    let expected =
        format!("{{\"team\":\"one\",{end},\"n\":2,\"m\":3.0}}\n{{\"team\":\"two\",{end},\"n\":1,\"m\":2.0}}\n");
    assert_eq!(shown(&replayed.views[0]), expected);
    let expected = format!(
        "{{\"team\":null,{end},\"n\":2}}\n{{\"team\":\"one\",{end},\"n\":2}}\n{{\"team\":\"two\",{end},\"n\":1}}\n"
    );
    assert_eq!(shown(&replayed.views[1]), expected);
    assert_eq!(run(&pipeline, std::slice::from_ref(&path), 5).0, replayed);
    // Another file is another view: panes of one are not merged with panes of the other.
    write(folder.path(), "owners.csv", "service,team\na,three\n");
    let edited = crate::pipelines::compile(&read()).unwrap();
    assert_ne!(edited.pane_sets[0].fingerprint, pipeline.pane_sets[0].fingerprint);
}

/// A histogram data point with a series' name in its attributes, times in seconds.
fn histogram_point(series: &str, from: u64, at: u64, counted: &str) -> String {
    let origin = 1_767_225_600;
    format!(
        "{{\"attributes\":[{{\"key\":\"route\",\"value\":{{\"stringValue\":\"{series}\"}}}}],\"startTimeUnixNano\":\"{}000000000\",\
         \"timeUnixNano\":\"{}000000000\",{counted}}}",
        origin + from,
        origin + at
    )
}

fn histogram_request(name: &str, kind: &str, temporality: u8, points: &[String]) -> String {
    format!(
        "{{\"resourceMetrics\":[{{\"scopeMetrics\":[{{\"metrics\":[{{\"name\":\"{name}\",\"{kind}\":{{\"aggregationTemporality\":{temporality},\
         \"dataPoints\":[{}]}}}}]}}]}}]}}\n",
        points.join(",")
    )
}

#[test]
fn quantiles_of_histograms_of_every_kind_and_temporality() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = compile(
        "CREATE SOURCE m WITH (topic = 'm', format = 'otlp_metrics_json');
        CREATE FEATURE VIEW v AS SELECT metric_name, window_start, histogram_quantile(0.5) AS p50, histogram_quantile(0.9) AS p90,
          count(*) AS n
        FROM HOP(m, event_time, INTERVAL '30' SECOND, INTERVAL '1' MINUTE) GROUP BY metric_name, window_start;",
    );
    let explicit = |buckets: [u64; 4]| {
        let buckets = buckets.map(|count| format!("\"{count}\"")).join(",");
        format!("\"count\":\"1\",\"bucketCounts\":[{buckets}],\"explicitBounds\":[1,2,4]")
    };
    let exponential = |offset: i32, buckets: &[u64]| {
        let buckets: Vec<String> = buckets.iter().map(|count| format!("\"{count}\"")).collect();
        let buckets = buckets.join(",");
        format!(
            "\"count\":\"1\",\"scale\":0,\"zeroCount\":\"0\",\"positive\":{{\"offset\":{offset},\"bucketCounts\":[{buckets}]}}"
        )
    };
    let changes = [
        histogram_point("a", 0, 10, &explicit([10, 0, 0, 0])),
        histogram_point("b", 0, 10, &explicit([0, 10, 10, 0])),
    ];
    // Two series beside each other, and one that restarts: 4 + 3 below 1, 4 from 1 to 2, 9 from 2 to 4.
    let totals = [
        histogram_point("a", 0, 10, &explicit([100, 7, 0, 0])),
        histogram_point("b", 0, 10, &explicit([5, 0, 2, 0])),
        histogram_point("a", 0, 20, &explicit([104, 11, 0, 0])),
        histogram_point("b", 0, 25, &explicit([5, 0, 4, 0])),
        histogram_point("b", 26, 28, &explicit([3, 0, 7, 0])),
    ];
    let powers = [histogram_point("a", 0, 10, &exponential(0, &[4, 4, 8]))];
    let once = [histogram_point("a", 0, 10, &explicit([1, 2, 3, 4]))];
    let text = [
        histogram_request("changes", "histogram", 1, &changes),
        histogram_request("totals", "histogram", 2, &totals),
        histogram_request("powers", "exponentialHistogram", 1, &powers),
        histogram_request("once", "histogram", 2, &once),
    ]
    .concat();
    let path = write(folder.path(), "m.jsonl", &text);
    let (replayed, refusals) = run(&pipeline, std::slice::from_ref(&path), 1);
    assert_eq!(refusals, Refusals::default());
    let expected = [
        ("changes", "1.5", "3.4", 2),
        ("once", "null", "null", 1),
        ("powers", "4.0", "7.2", 1),
        ("totals", "1.75", "3.5555555555555554", 5),
    ];
    for start in ["2025-12-31T23:59:30.000Z", "2026-01-01T00:00:00.000Z"] {
        for (name, p50, p90, n) in expected {
            let row = format!(
                "{{\"metric_name\":\"{name}\",\"window_start\":\"{start}\",\"p50\":{p50},\"p90\":{p90},\"n\":{n}}}\n"
            );
            assert!(
                shown(&replayed.views[0]).contains(&row),
                "{row}{}",
                shown(&replayed.views[0])
            );
        }
    }
    assert_eq!(run(&pipeline, std::slice::from_ref(&path), 5).0, replayed);
    let refused = |call: &str, format: &str| {
        let text = format!(
            "CREATE SOURCE m WITH (topic = 'm', format = '{format}');
            CREATE FEATURE VIEW v AS SELECT window_end, {call} AS q FROM TUMBLE(m, event_time, INTERVAL '1 m') GROUP BY window_end;"
        );
        let found = sql::compile("p", &text, &Detectors).unwrap_err();
        found.render("p", &text, false)
    };
    assert!(refused("histogram_quantile(99)", "otlp_metrics").contains("99 is not a share between 0 and 1"));
    assert!(refused("histogram_quantile(value)", "otlp_metrics").contains("the share of a quantile is a constant"));
    assert!(refused("histogram_quantile(0.9)", "otlp_spans").contains("the histograms of an otlp_metrics source"));
}

#[test]
fn rows_are_joined_with_the_version_of_a_table_at_their_time() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = compile(&format!(
        "{APP}
        CREATE TABLE owners (service STRING, team STRING, since TIMESTAMP(3), PRIMARY KEY (service), WATERMARK FOR since AS since)
        WITH (topic = 'owners', format = 'json');
        CREATE VIEW owned AS SELECT ts, o.team, ms FROM app LEFT JOIN owners FOR SYSTEM_TIME AS OF ts AS o ON app.service = o.service;
        CREATE FEATURE VIEW v AS SELECT team, window_end, count(*) AS n FROM TUMBLE(TABLE owned, DESCRIPTOR(ts), INTERVAL '10' SECOND)
        GROUP BY team, window_end;"
    ));
    let rows = [("a", 1), ("a", 3), ("a", 5), ("b", 5), ("c", 5)]
        .map(|(service, ms)| format!("{{\"ts\":176722560000{ms},\"service\":\"{service}\",\"ms\":{ms}}}\n"));
    let rows = write(folder.path(), "app.jsonl", &rows.concat());
    let owners = "service,team,since\na,red,1767225600002\na,blue,1767225600004\nb,red,\n";
    let tables = engine::table::tables(&pipeline);
    let replayed = |name: &str, owners: &str, partitions: i32| {
        let owners = Input::read_table(&tables[0], &[write(folder.path(), name, owners)])?;
        let app = Input::read(&pipeline.sources[0], std::slice::from_ref(&rows))?;
        replay(&pipeline, vec![Some(app), Some(owners)], partitions)
    };
    let (found, _) = replayed("owners.csv", owners, 1).unwrap();
    let end = "\"window_end\":\"2026-01-01T00:00:10.000Z\"";
    let expected = format!(
        "{{\"team\":null,{end},\"n\":1}}\n{{\"team\":\"blue\",{end},\"n\":1}}\n{{\"team\":\"red\",{end},\"n\":3}}\n"
    );
    assert_eq!(shown(&found.views[0]), expected);
    assert_eq!(replayed("owners.csv", owners, 3).unwrap().0, found);
    let lines = [
        "{\"service\":\"a\",\"team\":\"red\",\"since\":1767225600002}",
        "{\"service\":\"a\",\"team\":\"blue\",\"since\":1767225600004}",
        "{\"service\":\"b\",\"team\":\"red\"}",
    ]
    .join("\n");
    assert_eq!(replayed("owners.jsonl", &lines, 1).unwrap().0, found);
    let wrong = replayed("owners.jsonl", "{\"service\":\"a\"}\n{\"team\":\"red\"}", 1).unwrap_err();
    assert!(
        wrong
            .to_string()
            .contains("owners.jsonl:2: no row of table owners: its key is NULL"),
        "{wrong}"
    );
    let app = Input::read(&pipeline.sources[0], std::slice::from_ref(&rows)).unwrap();
    let missing = replay(&pipeline, vec![Some(app)], 1).unwrap_err();
    assert!(missing.to_string().contains("table owners has no file"), "{missing}");
}

/// Invariant 5: views of different sources are joined as their rows would be, whatever their keys are called.
#[test]
fn views_of_different_sources_are_joined_as_their_rows_would_be() {
    let folder = tempfile::tempdir().unwrap();
    let window = |table: &str, ts: &str| format!("FROM TUMBLE({table}, {ts}, INTERVAL '10' SECOND)");
    let text = [
        APP.to_owned(),
        "CREATE SOURCE jobs (zone STRING, job STRING, took DOUBLE, tags STRING, at TIMESTAMP(3), WATERMARK FOR at AS at - INTERVAL '3' SECOND)
         WITH (topic = 'jobs', format = 'json');
         CREATE SOURCE pings (host STRING, t TIMESTAMP(3), WATERMARK FOR t AS t - INTERVAL '1' SECOND) WITH (topic = 'pings', format = 'json');
         CREATE VIEW both AS SELECT t, host FROM pings UNION ALL SELECT at, job FROM jobs WHERE took > 5;"
            .to_owned(),
        format!(
            "CREATE FEATURE VIEW a AS SELECT service, code % 2 AS odd, window_start, count(*) AS n, rate(ms) AS r {} WHERE ms > 1
             GROUP BY service, code % 2, window_start;",
            window("app", "ts")
        ),
        format!(
            "CREATE FEATURE VIEW b AS SELECT job, CAST(took AS BIGINT) % 2 AS kind, window_start AS begun, max(took) AS worst,
             count(*) FILTER (WHERE tags = 'x') AS xs {} GROUP BY job, CAST(took AS BIGINT) % 2, window_start HAVING count(*) > 1;",
            window("jobs", "at")
        ),
        format!(
            "CREATE FEATURE VIEW per_service AS SELECT service, window_start, count(*) AS n {} GROUP BY service, window_start;",
            window("app", "ts")
        ),
        format!(
            "CREATE FEATURE VIEW seen AS SELECT host, window_start, count(*) AS pings {} GROUP BY host, window_start;",
            window("both", "t")
        ),
        "CREATE FEATURE VIEW two AS SELECT a.service, odd, a.window_start, n, r, worst, xs
         FROM a JOIN b ON b.job = a.service AND a.odd = b.kind AND a.window_start = b.begun WHERE worst > 2;
         CREATE FEATURE VIEW three AS SELECT p.service, p.window_start, p.n, s.pings
         FROM per_service AS p LEFT JOIN seen AS s ON p.service = s.host AND p.window_start = s.window_start;
         CREATE FEATURE VIEW deep AS SELECT service, window_start, pings FROM three WHERE pings IS NOT NULL;"
            .to_owned(),
    ]
    .concat();
    let mut seed = 11u64;
    let mut random = |below: u64| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let names = ["", "a", "b", "c", "d"];
    let mut files = [
        "ts,service,ms,code,ok\n".to_owned(),
        "at,zone,job,took,tags\n".to_owned(),
        "t,host\n".to_owned(),
    ];
    for _ in 0..300 {
        let mut name = || names[random(5) as usize];
        let of = [name(), name(), name()];
        files[0] += &format!(
            "{},{},{},{},\n",
            random(90_000),
            of[0],
            random(40) as f64 / 4.0,
            random(6)
        );
        files[1] += &format!(
            "{},z,{},{},{}\n",
            random(90_000),
            of[1],
            random(10),
            ["x", ""][random(2) as usize]
        );
        files[2] += &format!("{},{}\n", random(90_000), of[2]);
    }
    let pipeline = compile(&text);
    let named = ["app", "jobs", "pings"].into_iter().zip(&files);
    let paths: BTreeMap<&str, PathBuf> = named
        .map(|(name, text)| (name, write(folder.path(), &format!("{name}.csv"), text)))
        .collect();
    let replayed = |partitions: i32| {
        let inputs = pipeline.sources.iter().map(|source| {
            let path = std::slice::from_ref(&paths[source.name.as_str()]);
            Some(Input::read(source, path).unwrap())
        });
        replay(&pipeline, inputs.collect(), partitions).unwrap().0
    };
    let found = replayed(1);
    let rows = |name: &str| -> Vec<serde_json::Value> {
        let rows = found.views.iter().find(|rows| rows.name == name).unwrap();
        shown(rows)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let sorted = |mut rows: Vec<String>| {
        rows.sort();
        rows
    };
    let text = |rows: Vec<serde_json::Value>| sorted(rows.iter().map(ToString::to_string).collect());
    let mut two = Vec::new();
    for a in rows("a") {
        for b in rows("b") {
            let equal =
                !a["service"].is_null() && a["service"] == b["job"] && !a["odd"].is_null() && a["odd"] == b["kind"];
            if equal && a["window_start"] == b["begun"] && b["worst"].as_f64() > Some(2.0) {
                two.push(serde_json::json!({
                    "service": a["service"], "odd": a["odd"], "window_start": a["window_start"], "n": a["n"], "r": a["r"],
                    "worst": b["worst"], "xs": b["xs"],
                }));
            }
        }
    }
    assert!(two.len() > 10, "{}", two.len());
    assert_eq!(text(rows("two")), text(two));
    let seen = rows("seen");
    let three = rows("per_service").into_iter().map(|p| {
        let partner = |s: &&serde_json::Value| {
            !p["service"].is_null() && s["host"] == p["service"] && s["window_start"] == p["window_start"]
        };
        let pings = seen
            .iter()
            .find(partner)
            .map_or(serde_json::Value::Null, |s| s["pings"].clone());
        serde_json::json!({"service": p["service"], "window_start": p["window_start"], "n": p["n"], "pings": pings})
    });
    let three: Vec<_> = three.collect();
    let deep = three.iter().filter(|row| !row["pings"].is_null()).count();
    assert!(deep > 10 && deep < three.len(), "{deep} of {}", three.len());
    assert_eq!(text(rows("three")), text(three));
    assert_eq!(rows("deep").len(), deep);
    assert_eq!(replayed(4), found);
}
