//! Files of others, where they are; files of our own, always.
//!
//! The data folder is `$HOMEOSTAT_DATA`, or `../shared/data` beside the workspace.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::*;

fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder of the data set; says so when it is not there.
fn data(folder: &str) -> Option<PathBuf> {
    let root = std::env::var_os("HOMEOSTAT_DATA").map(PathBuf::from);
    let root = root.unwrap_or_else(|| crate_folder().join("../../../shared/data"));
    let path = root.join("otlp").join(folder);
    if !path.is_dir() {
        println!("{folder}: not in the data folder, only the crate's own samples were read");
        return None;
    }
    Some(path)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.is_file()).collect();
    files.sort();
    files
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// The signal that a sample's name tells.
fn format_of(path: &Path) -> Option<Format> {
    let name = name(path);
    let json = !name.ends_with(".pb") && !name.ends_with(".otlp");
    if name.contains("metric") {
        Some(Format::OtlpMetrics { json })
    } else if name.contains("log") || name.starts_with("event") {
        Some(Format::OtlpLogs { json })
    } else if name.contains("trace") || name.contains("span") {
        Some(Format::OtlpSpans { json })
    } else {
        None
    }
}

fn read(path: &Path) -> Result<Vec<Row>, Reject> {
    let format = format_of(path).expect("samples are named after their signal");
    decode(&mut decoder(format), &fs::read(path).unwrap())
}

fn wire_rows(path: &Path) -> Vec<Row> {
    reference_rows(format_of(path).unwrap(), &fs::read(path).unwrap()).unwrap()
}

/// Written by `write_own_samples`: wire format in both orders, JSON, and a copy cut short.
#[test]
fn own_samples() {
    let folder = crate_folder().join("testdata");
    for signal in ["metrics", "logs", "traces"] {
        let file = |ending: &str| folder.join(format!("{signal}{ending}"));
        let expected = wire_rows(&file(".pb"));
        assert!(!expected.is_empty());
        assert_eq!(read(&file(".pb")).unwrap(), expected);
        assert_eq!(read(&file("_backwards.pb")).unwrap(), expected);
        assert_eq!(read(&file(".json")).unwrap(), expected);
        assert!(read(&file("_cut.pb")).is_err());
        assert!(read(&file("_cut.json")).is_err());
    }
}

#[test]
#[ignore = "writes the files that `own_samples` reads"]
fn write_own_samples() {
    let folder = crate_folder().join("testdata");
    fs::create_dir_all(&folder).unwrap();
    for (signal, format) in ["metrics", "logs", "traces"].into_iter().zip(FORMATS) {
        let large = |seed: &u64| random(format, &mut Generator::finite(*seed)).0.len() > 3000;
        let seed = (0..).find(large).unwrap();
        let (value, text) = random(format, &mut Generator::finite(seed));
        let backwards = reorder::backwards(root(format), &value);
        let write = |ending: &str, bytes: &[u8]| fs::write(folder.join(format!("{signal}{ending}")), bytes).unwrap();
        write(".pb", &value);
        write("_backwards.pb", &backwards);
        write("_cut.pb", &backwards[..backwards.len() / 2]);
        write(".json", text.as_bytes());
        write("_cut.json", &text.as_bytes()[..text.len() / 2]);
    }
}

#[test]
fn official_examples() {
    let Some(folder) = data("official") else { return };
    for path in files(&folder).iter().filter(|path| name(path).ends_with(".json")) {
        let text = fs::read_to_string(path).unwrap();
        let format = format_of(path).unwrap();
        let expected = match format {
            Format::OtlpMetrics { .. } => reference::metrics(&serde_json::from_str(&text).unwrap()),
            Format::OtlpLogs { .. } => reference::logs(&serde_json::from_str(&text).unwrap()),
            _ => reference::spans(&serde_json::from_str(&text).unwrap()),
        };
        assert!(!expected.is_empty());
        assert_eq!(read(path).unwrap(), expected, "{}", name(path));
    }
}

#[test]
fn otlp2parquet_samples() {
    let Some(folder) = data("otlp2parquet") else { return };
    for path in files(&folder).iter().filter(|path| name(path).ends_with(".pb")) {
        let expected = wire_rows(path);
        assert!(!expected.is_empty());
        assert_eq!(read(path).unwrap(), expected, "{}", name(path));
    }
    // Protobuf's own JSON mapping: ids in base64, enums by name. Not what OTLP allows, but what is met.
    for path in files(&folder).iter().filter(|path| name(path).contains(".json")) {
        let rows = read(path).unwrap_or_else(|reject| panic!("{}: {reject}", name(path)));
        let wire = path.with_extension("pb");
        let same_data = name(path).ends_with(".jsonl") || name(path).starts_with("trace.");
        if wire.is_file() && same_data {
            assert_eq!(rows, wire_rows(&wire), "{}", name(path));
        }
        assert!(!rows.is_empty());
    }
    for path in files(&folder.join("invalid")) {
        let format = format_of(&path).unwrap_or(Format::OtlpLogs { json: true });
        let rejected = decode(&mut decoder(format), &fs::read(&path).unwrap());
        assert!(rejected.is_err(), "{}", name(&path));
    }
}

/// Edge cases: rows of the file as one record, or the reason why none.
#[test]
fn duckdb_samples() {
    let cases: [(&str, Format, Result<usize, &str>); 29] = [
        // A record without a document is not a message that says nothing: it is lost or cut.
        ("empty.jsonl", SPANS_JSON, Err("expected a document, found the end")),
        (
            "whitespace.jsonl",
            SPANS_JSON,
            Err("expected a document, found the end"),
        ),
        // One wrong line costs the record: all of it, or none. The first line is another format's.
        (
            "malformed.jsonl",
            SPANS_JSON,
            Err("the document has no \"resourceSpans\""),
        ),
        (
            "multifile_malformed_traces.jsonl",
            SPANS_JSON,
            Err("field \"value\": a control character in a string"),
        ),
        ("multifile_valid_traces.jsonl", SPANS_JSON, Ok(1)),
        // Absent, null, empty and zero: NULL.
        ("logs_nulls.jsonl", LOGS_JSON, Ok(3)),
        ("metrics_nulls.jsonl", METRICS_JSON, Ok(3)),
        ("traces_nulls.jsonl", SPANS_JSON, Ok(3)),
        ("metrics_optional_fields.jsonl", METRICS_JSON, Ok(3)),
        ("single_trace.jsonl", SPANS_JSON, Ok(1)),
        ("logs_document.json", LOGS_JSON, Ok(1)),
        ("logs_simple.jsonl", LOGS_JSON, Ok(3)),
        ("metrics_simple.jsonl", METRICS_JSON, Ok(3)),
        ("traces_simple.jsonl", SPANS_JSON, Ok(3)),
        ("metrics_all_types.jsonl", METRICS_JSON, Ok(5)),
        ("metrics_histogram_ndjson.jsonl", METRICS_JSON, Ok(1)),
        ("metrics_exp_histogram_ndjson.jsonl", METRICS_JSON, Ok(1)),
        ("metrics_summary_only.jsonl", METRICS_JSON, Ok(2)),
        // An enum by its name, which OTLP does not allow and everybody meets.
        ("metrics_temporality_strings.jsonl", METRICS_JSON, Ok(1)),
        ("traces_deep_nesting.jsonl", SPANS_JSON, Ok(1)),
        ("traces_large_attrs.jsonl", SPANS_JSON, Ok(1)),
        // Milliseconds hold every time that 64 bits of nanoseconds can say; that it is far ahead is another's business.
        ("ts_boundary_logs.jsonl", LOGS_JSON, Ok(1)),
        ("ts_overflow_logs.jsonl", LOGS_JSON, Ok(1)),
        ("otlp_logs.pb", LOGS, Ok(1)),
        ("otlp_metrics.pb", METRICS, Ok(1)),
        ("otlp_traces.pb", SPANS, Ok(1)),
        ("otap/logs-initial.otlp", LOGS, Ok(3)),
        ("otap/metrics-initial.otlp", METRICS, Ok(2)),
        ("otap/traces-initial.otlp", SPANS, Ok(1)),
    ];
    let Some(folder) = data("duckdb-otlp") else { return };
    for (file, format, expected) in cases {
        let value = fs::read(folder.join(file)).unwrap();
        let rows = decode(&mut decoder(format), &value);
        match (&rows, expected) {
            (Ok(rows), Ok(count)) => assert_eq!(rows.len(), count, "{file}"),
            (Err(reject), Err(reason)) => assert!(reject.reason.starts_with(reason), "{file}: {reject}"),
            _ => panic!("{file}: {rows:?}, expected {expected:?}"),
        }
        if file.ends_with(".pb") || file.ends_with(".otlp") {
            assert_eq!(rows.unwrap(), reference_rows(format, &value).unwrap(), "{file}");
        }
    }
    let times = |file: &str| decode(&mut decoder(LOGS_JSON), &fs::read(folder.join(file)).unwrap()).unwrap();
    assert_eq!(times("ts_boundary_logs.jsonl")[0]["event_time"], "9223372036854");
    assert_eq!(times("ts_overflow_logs.jsonl")[0]["event_time"], "18446744073709");
}

const METRICS: Format = FORMATS[0];
const LOGS: Format = FORMATS[1];
const SPANS: Format = FORMATS[2];
const METRICS_JSON: Format = Format::OtlpMetrics { json: true };
const LOGS_JSON: Format = Format::OtlpLogs { json: true };
const SPANS_JSON: Format = Format::OtlpSpans { json: true };
