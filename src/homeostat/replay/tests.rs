//! What a replay reads and writes, file by file.

mod joins;
mod metrics;

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
fn columns_of_the_record_are_told_by_the_file_as_far_as_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = compile(
        "CREATE SOURCE app (ts TIMESTAMP(3), pod STRING METADATA FROM 'key', headers MAP<STRING, STRING> METADATA FROM 'headers',
           at BIGINT METADATA FROM 'offset', of STRING METADATA FROM 'topic', WATERMARK FOR ts AS ts - INTERVAL '1' SECOND)
         WITH (topic = 'rows', format = 'json');
         CREATE FEATURE VIEW v AS SELECT pod, headers['tenant'] AS tenant, max(at) AS at, max(of) AS of
         FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '10' SECOND) GROUP BY pod, headers['tenant'], window_end;",
    );
    let row = |pod: &str, at: i64| format!("{{\"pod\":{pod},\"tenant\":null,\"at\":{at},\"of\":\"rows\"}}\n");
    for (name, text, pods) in [
        (
            "app.jsonl",
            "{\"ts\":0,\"pod\":\"a\"}\n{\"ts\":1,\"pod\":7}\n{\"ts\":2,\"pod\":null}\n",
            ["\"a\"", "\"7\"", "null"],
        ),
        ("app.csv", "ts,pod\n0,a\n1,7\n2,\n", ["\"a\"", "\"7\"", "null"]),
        ("none.jsonl", "{\"ts\":0}\n", ["null", "", ""]),
        ("none.csv", "ts\n0\n", ["null", "", ""]),
    ] {
        let path = write(folder.path(), name, text);
        let (replayed, refusals) = run(&pipeline, &[path], 1);
        let found = shown(&replayed.views[0]);
        let mut expected: Vec<String> = pods
            .iter()
            .zip(0..)
            .filter(|(pod, _)| !pod.is_empty())
            .map(|(pod, at)| row(pod, at))
            .collect();
        expected.sort();
        let mut lines: Vec<String> = found.lines().map(|line| format!("{line}\n")).collect();
        lines.sort();
        assert_eq!((lines, refusals.count), (expected, 0), "{name}");
    }
}

/// Rows of `app`, of which some do not fit an expression: (condition, aggregate) → what the view says, and how many rows are refused.
#[test]
fn an_expression_that_some_rows_do_not_fit_costs_these_rows_only() {
    let folder = tempfile::tempdir().unwrap();
    let texts = ["500", "404", "abc", "200", "503"];
    let row = |at: usize| match at {
        5 => "{\"ts\":1767225600005,\"code\":9}\n".to_owned(),
        _ => format!(
            "{{\"ts\":{},\"service\":\"{}\",\"code\":{at}}}\n",
            1_767_225_600_000_i64 + at as i64,
            texts[at]
        ),
    };
    let path = write(folder.path(), "app.jsonl", &(0..6).map(row).collect::<String>());
    for (filter, aggregate, says, refused) in [
        ("true", "sum(CAST(service AS INT))", "1607", 1),
        ("CAST(service AS INT) >= 500", "count(*)", "2", 1),
        ("service > 400", "count(*)", "3", 1),
        ("service <> 'abc' AND CAST(service AS INT) >= 500", "count(*)", "2", 0),
        ("service = 'abc' OR CAST(service AS INT) >= 500", "count(*)", "3", 0),
        (
            "true",
            "sum(CASE WHEN service ~ '^[0-9]+$' THEN CAST(service AS INT) END)",
            "1607",
            0,
        ),
        (
            "true",
            "sum(CAST(service AS INT)) FILTER (WHERE service <> 'abc')",
            "1607",
            0,
        ),
        ("code <> 3 AND 10 / (code - 3) > 0", "count(*)", "2", 0),
        ("code = 3 OR 10 / (code - 3) > 0", "count(*)", "3", 0),
        ("true", "sum(10 / (code - 3))", "-7", 1),
        ("true", "count(*) FILTER (WHERE 10 / (code - 3) > 0)", "2", 1),
        // Beyond the rows, what cannot be computed is NULL.
        ("true", "10 / (count(*) - 6)", "null", 0),
        ("true", "CAST(max(service) AS INT)", "null", 0),
        ("true", "CAST(min(service) AS INT)", "200", 0),
        // Functions that know no dictionaries.
        ("service <> 'abc'", "approx_distinct(service)", "4", 0),
        ("true", "approx_distinct(code / 2.0)", "6", 0),
        (
            "service <> 'abc'",
            "max(to_timestamp(CAST(CAST(service AS INT) AS BIGINT)))",
            "\"1970-01-01T00:08:23.000000000Z\"",
            0,
        ),
    ] {
        let pipeline = compile(&format!(
            "{APP} CREATE FEATURE VIEW v AS SELECT {aggregate} AS a FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '10' SECOND)
             WHERE {filter} GROUP BY window_start;"
        ));
        for partitions in [1, 3] {
            let (replayed, refusals) = run(&pipeline, std::slice::from_ref(&path), partitions);
            assert_eq!(
                shown(&replayed.views[0]),
                format!("{{\"a\":{says}}}\n"),
                "{filter}: {aggregate}"
            );
            assert_eq!(refusals.count, refused, "{filter}: {aggregate}: {:?}", refusals.reasons);
        }
    }
    let pipeline = compile(&format!(
        "{APP} CREATE FEATURE VIEW v AS SELECT service FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '10' SECOND)
         GROUP BY service, window_start HAVING 10 / (max(code) - 2) > 4;"
    ));
    let (replayed, _) = run(&pipeline, std::slice::from_ref(&path), 1);
    assert_eq!(
        shown(&replayed.views[0]),
        "{\"service\":\"200\"}\n{\"service\":\"503\"}\n"
    );
}

#[test]
fn times_are_taken_as_far_as_their_windows_can_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = compile(&format!(
        "{APP} CREATE FEATURE VIEW v AS SELECT window_start, window_end, max(ts) AS latest
         FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '366' DAY) GROUP BY window_start, window_end;"
    ));
    for (time, refused) in [
        ("0001-01-01T00:00:00.000Z", 0),
        ("1969-12-31T23:59:59.999Z", 0),
        ("2100-01-01T00:00:00.000Z", 0),
        ("9997-12-31T23:59:59.999Z", 0),
        ("0000-12-31T23:59:59.999Z", 1),
        ("9998-01-01T00:00:00.000Z", 1),
    ] {
        let path = write(folder.path(), "app.jsonl", &format!("{{\"ts\":\"{time}\"}}\n"));
        let (replayed, refusals) = run(&pipeline, &[path], 1);
        assert_eq!(refusals.count, refused, "{time}");
        let row = shown(&replayed.views[0]);
        assert!(!row.contains("null") && row.contains(time) == (refused == 0), "{row}");
    }
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
    let csv = write(folder.path(), "app.csv", "");
    let path = write(folder.path(), "app.jsonl", "");
    let (replayed, _) = run(&pipeline, &[path], 2);
    assert_eq!(run(&pipeline, &[csv], 2).0, replayed);
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
fn lists_maps_and_structs_are_json() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = compile(&format!(
        "{APP} CREATE FEATURE VIEW v AS SELECT make_array(max(code), NULL, 2) AS list, map {{'a': make_array(avg(ms))}} AS map,
           named_struct('n', count(*), 'empty', make_array()) AS struct
         FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '10' SECOND) GROUP BY window_start;"
    ));
    let path = write(folder.path(), "app.jsonl", "{\"ts\":0,\"code\":1,\"ms\":0.5}\n");
    let expected = "{\"list\":[1,null,2],\"map\":{\"a\":[0.5]},\"struct\":{\"n\":1,\"empty\":[]}}\n";
    assert_eq!(shown(&run(&pipeline, &[path], 1).0.views[0]), expected);
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
