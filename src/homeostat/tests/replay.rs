//! `homeostat replay` as it is typed: every kind of file, the same bytes every time, and what it says of files that do not fit.

mod folder;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use arrow::{
    array::{BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray},
    datatypes::{DataType, Field, Schema, TimeUnit},
};
use parquet::arrow::ArrowWriter;

use folder::Folder;

fn replay(pipeline: &Path, sources: &[(&str, &Path)], output: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_homeostat"));
    command.arg("replay").arg("--pipeline").arg(pipeline);
    for (name, path) in sources {
        command.arg("--source").arg(format!("{name}={}", path.display()));
    }
    command.arg("--output").arg(output).args(more);
    command.output().expect("the program starts")
}

/// What it wrote, by name of the file, and what it said.
fn written(
    pipeline: &Path,
    sources: &[(&str, &Path)],
    output: &Path,
    more: &[&str],
) -> (BTreeMap<String, String>, String) {
    let ran = replay(pipeline, sources, output, more);
    let said = String::from_utf8(ran.stderr).expect("text");
    assert!(ran.status.success(), "{said}");
    let entries = fs::read_dir(output).expect("a folder");
    let files = entries.map(|entry| {
        let entry = entry.expect("an entry");
        let text = fs::read_to_string(entry.path()).expect("text");
        (entry.file_name().to_string_lossy().into_owned(), text)
    });
    (files.collect(), said)
}

const PIPELINE: &str = "
CREATE SOURCE app (service STRING, ms DOUBLE, code INT, ok BOOLEAN, region STRING FROM 'cloud.region', ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '0' SECOND) WITH (topic = 'app', format = 'json');
CREATE FEATURE VIEW per_service AS
SELECT service, window_start, window_end, count(*) AS n, avg(ms) AS mean, sum(code) AS codes, stddev(ms) AS spread, bool_and(ok) AS ok, max(region) AS region
FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '10' SECOND) GROUP BY service, window_start, window_end;
CREATE FEATURE VIEW nobody AS SELECT window_end, count(*) AS n
FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '1' MINUTE) WHERE service = 'nobody' GROUP BY window_end;
CREATE DETECTOR slow ON per_service KEY (service) FEATURES (mean) USING static_threshold WITH (upper = 100);
";

/// The last window stays open until the end of the input; the second row comes before the first in time.
const LINES: &str = r#"{"ts":"2026-01-01T00:00:09.999Z","service":"a","ms":1,"code":3,"ok":true,"cloud":{"region":"eu"}}
{"ts":1767225600000,"service":"a","ms":4.5,"code":4,"ok":false,"cloud":{"region":"us"}}

{"ts":"2026-01-01T00:00:02Z"}
{"ts":"2026-01-01T00:01:00+00:00","service":"b \"ü\"","ms":1e3,"code":1,"ok":true,"cloud":{}}
"#;

const ROWS: &str = r#"{"service":null,"window_start":"2026-01-01T00:00:00.000Z","window_end":"2026-01-01T00:00:10.000Z","n":1,"mean":null,"codes":null,"spread":null,"ok":null,"region":null}
{"service":"a","window_start":"2026-01-01T00:00:00.000Z","window_end":"2026-01-01T00:00:10.000Z","n":2,"mean":2.75,"codes":7,"spread":2.4748737341529163,"ok":false,"region":"us"}
{"service":"b \"ü\"","window_start":"2026-01-01T00:01:00.000Z","window_end":"2026-01-01T00:01:10.000Z","n":1,"mean":1000.0,"codes":1,"spread":null,"ok":true,"region":null}
"#;

fn write_parquet(path: &Path) {
    let schema = Arc::new(Schema::new(vec![
        Field::new("ok", DataType::Boolean, true),
        Field::new("code", DataType::Int64, true),
        Field::new(
            "ts",
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            true,
        ),
        Field::new("ms", DataType::Float64, true),
        Field::new("service", DataType::Utf8, true),
        Field::new("cloud.region", DataType::Utf8, true),
    ]));
    let times = [9_999, 0, 2_000, 60_000].map(|ms: i64| (1_767_225_600_000 + ms) * 1_000);
    let batch = RecordBatch::try_new(
        Arc::clone(&schema),
        vec![
            Arc::new(BooleanArray::from(vec![Some(true), Some(false), None, Some(true)])),
            Arc::new(Int64Array::from(vec![Some(3), Some(4), None, Some(1)])),
            Arc::new(TimestampMicrosecondArray::from(times.to_vec()).with_timezone("UTC")),
            Arc::new(Float64Array::from(vec![Some(1.0), Some(4.5), None, Some(1e3)])),
            Arc::new(StringArray::from(vec![Some("a"), Some("a"), None, Some("b \"ü\"")])),
            Arc::new(StringArray::from(vec![Some("eu"), Some("us"), None, None])),
        ],
    )
    .expect("columns that fit");
    let mut writer = ArrowWriter::try_new(fs::File::create(path).expect("a file"), schema, None).expect("a writer");
    writer.write(&batch).expect("written");
    writer.close().expect("closed");
}

#[test]
fn lines_csv_and_parquet_give_the_same_bytes_however_they_are_spread() {
    let folder = Folder::new();
    let pipeline = folder.write("pipeline.sql", PIPELINE);
    let elements: Vec<&str> = LINES.lines().filter(|line| !line.is_empty()).collect();
    let csv = "ts,service,ms,code,ok,cloud.region,unused\n2026-01-01T00:00:09.999Z,a,1,3,true,eu,x\n\
               1767225600000,a,4.5,4,false,us,\n2026-01-01 00:00:02,,,,,,\n2026-01-01T00:01:00Z,\"b \"\"ü\"\"\",1e3,1,TRUE,,\n";
    let parquet = folder.path("app.parquet");
    write_parquet(&parquet);
    let inputs = [
        folder.write("app.jsonl", LINES),
        folder.write("app.ndjson", &LINES.replace('\n', "\r\n")),
        folder.write("app.json", &format!("[{}]", elements.join(",\n"))),
        folder.write("app.csv", csv),
        parquet,
    ];
    let mut first = None;
    for (at, input) in inputs.iter().enumerate() {
        for partitions in ["1", "7"] {
            let output = folder.path(&format!("out/{at}/{partitions}"));
            let more = ["--shuffle-partitions", partitions];
            let (files, said) = written(&pipeline, &[("app", input)], &output, &more);
            assert_eq!(said, "", "{}", input.display());
            let names: Vec<&str> = files.keys().map(String::as_str).collect();
            assert_eq!(names, ["nobody.jsonl", "per_service.jsonl", "slow.jsonl"]);
            assert_eq!(files["per_service.jsonl"], ROWS, "{}", input.display());
            assert_eq!(files["nobody.jsonl"], "", "a view without rows is an empty file");
            let slow = files["slow.jsonl"]
                .lines()
                .filter(|line| line.contains("\"is_anomaly\":true"));
            assert_eq!(slow.count(), 1, "{}", files["slow.jsonl"]);
            assert_eq!(
                &files,
                first.get_or_insert_with(|| files.clone()),
                "the same bytes every time"
            );
        }
    }
    // Without a file the source is empty, which is said; several files of a source are one.
    let (files, said) = written(&pipeline, &[], &folder.path("out/none"), &[]);
    assert!(
        files.values().all(String::is_empty) && said.contains("no file for source app"),
        "{said}"
    );
    let (early, late): (Vec<&str>, Vec<&str>) = elements.iter().partition(|line| !line.contains("ü"));
    let parts = [
        folder.write("early.jsonl", &early.join("\n")),
        folder.write("late.jsonl", &late.join("\n")),
    ];
    let sources: Vec<(&str, &Path)> = parts.iter().rev().map(|path| ("app", path.as_path())).collect();
    assert_eq!(
        Some(written(&pipeline, &sources, &folder.path("out/two"), &[]).0),
        first
    );
}

#[test]
fn otlp_files_of_every_signal_are_protobuf_or_json() {
    let folder = Folder::new();
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../telemetry/testdata");
    let pipeline = folder.write(
        "pipeline.sql",
        "CREATE SOURCE m WITH (topic = 'm', format = 'otlp_metrics');
         CREATE SOURCE l WITH (topic = 'l', format = 'otlp_logs_json');
         CREATE SOURCE s WITH (topic = 's', format = 'otlp_spans');
         CREATE FEATURE VIEW metrics AS SELECT metric_name, kind, window_start, count(*) AS n, sum(value) AS total
         FROM TUMBLE(m, event_time, INTERVAL '1' MINUTE) GROUP BY metric_name, kind, window_start;
         CREATE FEATURE VIEW logs AS SELECT service_name, severity_text, window_start, count(*) AS n
         FROM TUMBLE(l, event_time, INTERVAL '1' MINUTE) GROUP BY service_name, severity_text, window_start;
         CREATE FEATURE VIEW spans AS SELECT service_name, name, window_start, count(*) AS n, max(duration_ms) AS longest_ms
         FROM TUMBLE(s, event_time, INTERVAL '1' MINUTE) GROUP BY service_name, name, window_start;",
    );
    let run = |extension: &str, partitions: &str| {
        let paths = ["metrics", "logs", "traces"].map(|name| samples.join(format!("{name}.{extension}")));
        let sources: Vec<(&str, &Path)> = ["m", "l", "s"]
            .into_iter()
            .zip(paths.iter().map(PathBuf::as_path))
            .collect();
        let output = folder.path(&format!("{extension}{partitions}"));
        let (files, said) = written(&pipeline, &sources, &output, &["--shuffle-partitions", partitions]);
        // Each sample has a row without a time.
        assert!(said.starts_with("warning: 3 records or rows refused"), "{said}");
        let refused = paths
            .iter()
            .filter(|path| said.contains(&format!("{}:1: the event time is NULL", path.display())));
        assert_eq!(refused.count(), 3, "{said}");
        files
    };
    let protobuf = run("pb", "1");
    assert!(protobuf.values().all(|text| !text.is_empty()), "{protobuf:?}");
    assert_eq!(protobuf, run("json", "1"));
    assert_eq!(protobuf, run("pb", "4"));
}

#[test]
fn telegraf_prometheus_and_alertmanager_lines() {
    let folder = Folder::new();
    let pipeline = folder.write(
        "pipeline.sql",
        "CREATE SOURCE t WITH (topic = 't', format = 'telegraf_json');
         CREATE SOURCE p WITH (topic = 'p', format = 'prometheus_json');
         CREATE SOURCE a WITH (topic = 'a', format = 'alertmanager');
         CREATE FEATURE VIEW telegraf AS SELECT name, field, tags['host'] AS host, window_end, avg(value) AS mean, count(*) AS n
         FROM TUMBLE(t, event_time, INTERVAL '10' SECOND) GROUP BY name, field, host, window_end;
         CREATE FEATURE VIEW prometheus AS SELECT metric_name, labels['instance'] AS instance, window_end, max(value) AS high, sum(value) AS total
         FROM TUMBLE(p, event_time, INTERVAL '10' SECOND) GROUP BY metric_name, instance, window_end;
         CREATE FEATURE VIEW alerts AS SELECT labels['alertname'] AS alert, status, window_end, count(*) AS n
         FROM TUMBLE(a, event_time, INTERVAL '1' MINUTE) GROUP BY alert, status, window_end;",
    );
    let telegraf = folder.write(
        "t.jsonl",
        r#"{"name":"cpu","tags":{"host":"a"},"fields":{"idle":90.5,"user":2},"timestamp":1767225600}
{"metrics":[{"name":"cpu","tags":{"host":"a"},"fields":{"idle":89.5},"timestamp":1767225605},{"name":"cpu","tags":{"host":"b"},"fields":{"idle":1},"timestamp":1767225609}]}
"#,
    );
    let prometheus = folder.write(
        "p.jsonl",
        r#"{"timestamp":"2026-01-01T00:00:00Z","value":"1.5","name":"up","labels":{"__name__":"up","instance":"x"}}
{"timestamp":"2026-01-01T00:00:05Z","value":"+Inf","name":"up","labels":{"__name__":"up","instance":"x"}}
{"timestamp":"2026-01-01T00:00:05Z","value":"NaN","name":"up","labels":{"__name__":"up","instance":"y"}}
"#,
    );
    let alert = |name: &str, status: &str| {
        format!(
            r#"{{"status":"{status}","labels":{{"alertname":"{name}"}},"annotations":{{}},"startsAt":"2026-01-01T00:00:30Z","endsAt":"0001-01-01T00:00:00Z","generatorURL":"","fingerprint":"1"}}"#
        )
    };
    let body = format!(
        r#"{{"version":"4","groupKey":"g","status":"firing","receiver":"r","groupLabels":{{}},"commonLabels":{{}},"commonAnnotations":{{}},"externalURL":"","alerts":[{},{}]}}"#,
        alert("Down", "firing"),
        alert("Slow", "resolved")
    );
    let alerts = folder.write("a.jsonl", &body);
    let sources = [
        ("t", telegraf.as_path()),
        ("p", prometheus.as_path()),
        ("a", alerts.as_path()),
    ];
    let (files, said) = written(&pipeline, &sources, &folder.path("out"), &["--shuffle-partitions", "3"]);
    assert_eq!(said, "");
    assert_eq!(
        files["telegraf.jsonl"],
        r#"{"name":"cpu","field":"idle","host":"a","window_end":"2026-01-01T00:00:10.000Z","mean":90.0,"n":2}
{"name":"cpu","field":"idle","host":"b","window_end":"2026-01-01T00:00:10.000Z","mean":1.0,"n":1}
{"name":"cpu","field":"user","host":"a","window_end":"2026-01-01T00:00:10.000Z","mean":2.0,"n":1}
"#
    );
    // JSON has no number for them.
    assert_eq!(
        files["prometheus.jsonl"],
        r#"{"metric_name":"up","instance":"x","window_end":"2026-01-01T00:00:10.000Z","high":"Infinity","total":"Infinity"}
{"metric_name":"up","instance":"y","window_end":"2026-01-01T00:00:10.000Z","high":"NaN","total":"NaN"}
"#
    );
    assert_eq!(
        files["alerts.jsonl"],
        r#"{"alert":"Down","status":"firing","window_end":"2026-01-01T00:01:00.000Z","n":1}
{"alert":"Slow","status":"resolved","window_end":"2026-01-01T00:01:00.000Z","n":1}
"#
    );
}

#[test]
fn a_broken_line_is_told_with_file_and_line_and_the_rest_counts() {
    let folder = Folder::new();
    let pipeline = folder.write("pipeline.sql", PIPELINE);
    let broken = LINES.replacen(
        '\n',
        "\n{\"ts\": \"2026-01-01T00:00:03Z\", \"service\": \n{\"service\":\"a\"}\n",
        1,
    );
    let lines = folder.write("app.jsonl", &broken);
    let (files, said) = written(&pipeline, &[("app", &lines)], &folder.path("out"), &[]);
    assert_eq!(files["per_service.jsonl"], ROWS);
    assert!(said.starts_with("warning: 2 records or rows refused"), "{said}");
    assert!(said.contains("app.jsonl:2") && said.contains("app.jsonl:3"), "{said}");
}

#[test]
fn files_that_do_not_fit_are_refused_by_their_place_and_nothing_is_written() {
    let folder = Folder::new();
    let pipeline = folder.write("pipeline.sql", PIPELINE);
    let header = "ts,service,ms,code,ok,cloud.region\n";
    let cases = [
        (
            "app",
            folder.write("a.csv", &format!("{header}1,a,fast,1,true,\n")),
            "a.csv:2: column `ms`: \"fast\" is not a number",
        ),
        (
            "app",
            folder.write("b.csv", "ts,service,code,ok,cloud.region\n"),
            "no column `ms`",
        ),
        ("app", folder.write("c.txt", ""), "the extension tells"),
        ("app", folder.write("d.pb", ""), "not OTLP"),
        ("app", folder.write("e.parquet", "no"), "e.parquet"),
        ("app", folder.path("absent.jsonl"), "absent.jsonl"),
        ("apps", folder.write("f.jsonl", ""), "no source \"apps\""),
    ];
    for (source, path, expected) in &cases {
        let output = folder.path("out");
        let ran = replay(&pipeline, &[(source, path)], &output, &[]);
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(2), "{}: {said}", path.display());
        assert!(said.contains(expected), "{}: {said}", path.display());
        assert!(!output.exists(), "{}", path.display());
    }
    let good = folder.write("g.jsonl", LINES);
    for partitions in ["0", "1025", "many"] {
        let ran = replay(
            &pipeline,
            &[("app", &good)],
            &folder.path("out"),
            &["--shuffle-partitions", partitions],
        );
        assert_eq!(ran.status.code(), Some(2), "{partitions}");
    }
}
