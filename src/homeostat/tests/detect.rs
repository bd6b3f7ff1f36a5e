//! `homeostat detect` as it is typed: what it writes, that it is causal, what it refuses and leaves untouched.

mod folder;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray},
    datatypes::DataType,
};
use detector::{Row, Score};

use folder::Folder;

/// Names of what is in a folder.
fn names(folder: &Folder) -> Vec<String> {
    let entries = fs::read_dir(folder.path("")).expect("a folder");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn detect(input: &Path, time: &str, features: &str, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_homeostat"))
        .arg("detect")
        .arg("--input")
        .arg(input)
        .args(["--time", time, "--features", features])
        .args(more)
        .output()
        .expect("the program starts")
}

fn lines(input: &Path, time: &str, features: &str, more: &[&str]) -> Vec<String> {
    let output = detect(input, time, features, more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(str::to_owned).collect()
}

/// A wave with a spike: values and what they are called in a file of five-minute rows.
fn values(rows: usize) -> Vec<f64> {
    (0..rows)
        .map(|row| {
            let wave = (row as f64 / 46.0).sin() + 0.25 * (row as f64 / 7.0).cos();
            if row == rows - 200 { 30.0 } else { 10.0 + wave }
        })
        .collect()
}

fn time(row: usize) -> String {
    let minutes = row * 5;
    format!(
        "2026-03-{:02} {:02}:{:02}:00",
        1 + minutes / 1440,
        minutes / 60 % 24,
        minutes % 60
    )
}

fn csv(values: &[f64]) -> String {
    let rows = values
        .iter()
        .enumerate()
        .map(|(row, value)| format!("{},{value},{}\n", time(row), -value));
    std::iter::once("timestamp,value,other\n".to_owned())
        .chain(rows)
        .collect()
}

#[test]
fn every_row_is_answered_in_order_as_the_detector_says() {
    let folder = Folder::new();
    let values = values(1500);
    let input = folder.write("in.csv", &csv(&values));
    let (output, plot) = (folder.path("out.csv"), folder.path("plot.svg"));
    let paths = [output.to_str().expect("text"), plot.to_str().expect("text")];
    let done = detect(
        &input,
        "timestamp",
        "value",
        &["--detector", "auto", "--output", paths[0], "--plot", paths[1]],
    );
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(names(&folder), ["in.csv", "out.csv", "plot.svg"]);
    let written = fs::read_to_string(&output).expect("the output");
    let mut written = written.lines();
    assert_eq!(
        written.next(),
        Some("timestamp,score,p_value,is_anomaly,expected,lower,upper")
    );
    let mut state = detector::build("auto", &[], &["value".into()]).expect("auto").fresh(0);
    let mut expected = Score::default();
    let (mut rows, mut alarms) = (0, Vec::new());
    for (row, (line, value)) in written.zip(&values).enumerate() {
        let cells: Vec<&str> = line.split(',').collect();
        let time_ms = 1_772_323_200_000 + row as i64 * 300_000;
        state.score(
            Row {
                time_ms,
                features: &[*value],
                learn: true,
            },
            &mut expected,
        );
        assert_eq!(cells.len(), 7, "{line}");
        assert_eq!(cells[0], time(row));
        assert_eq!(cells[1].parse(), Ok(expected.score), "row {row}");
        assert_eq!(cells[3], if expected.score >= 1.0 { "true" } else { "false" });
        assert!(expected.score.is_finite() && expected.score >= 0.0);
        rows += 1;
        if cells[3] == "true" {
            alarms.push(row);
        }
    }
    assert_eq!(rows, 1500);
    assert_eq!(alarms, [1300]);
    let plot = fs::read_to_string(&plot).expect("the plot");
    assert!(plot.starts_with("<svg") && plot.contains("fill-opacity"));
}

#[test]
fn a_row_depends_on_rows_before_it_only_and_rows_may_be_left_out() {
    let folder = Folder::new();
    let values = values(900);
    let whole = folder.write("whole.csv", &csv(&values));
    let part = folder.write("part.csv", &csv(&values[..777]));
    for (features, with) in [("value", "auto WITH (tier = 'lean')"), ("value,other", "auto")] {
        let options = ["--detector", with];
        let expected = lines(&whole, "timestamp", features, &options);
        assert_eq!(lines(&part, "timestamp", features, &options), expected[..778]);
        let late = lines(
            &whole,
            "timestamp",
            features,
            &["--detector", with, "--score-from", "700"],
        );
        assert_eq!(late[0], expected[0]);
        assert_eq!(late[1..], expected[701..]);
    }
}

#[test]
fn parquet_says_what_csv_says() {
    let folder = Folder::new();
    let values = values(900);
    let times = || (0..900).map(|row| 1_772_323_200_000_000 + row * 300_000_000);
    let as_time: ArrayRef = Arc::new(TimestampMicrosecondArray::from_iter_values(times()).with_timezone("+00:00"));
    let as_epoch: ArrayRef = Arc::new(Int64Array::from_iter_values(times().map(|time| time / 1000)));
    let value: ArrayRef = Arc::new(Float64Array::from_iter(
        values.iter().map(|value| (*value != 30.0).then_some(*value)),
    ));
    let as_text = arrow::compute::cast(&value, &DataType::Utf8).expect("text");
    let dictionary = |of: &ArrayRef, kind| {
        let kind = DataType::Dictionary(Box::new(DataType::Int32), Box::new(kind));
        arrow::compute::cast(of, &kind).expect("a dictionary")
    };
    let time_texts = StringArray::from_iter_values((0..900).map(time));
    let few_times = dictionary(&(Arc::new(time_texts) as ArrayRef), DataType::Utf8);
    let few_texts = dictionary(&as_text, DataType::Utf8);
    let columns = [
        ("at", as_time),
        ("epoch", as_epoch),
        ("value", value),
        ("text", as_text),
        ("few times", few_times),
        ("few texts", few_texts),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)));
    let batch = batch.expect("columns of one length");
    let path = folder.path("in.parquet");
    let file = fs::File::create(&path).expect("a file");
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).expect("a writer");
    writer.write(&batch).expect("written");
    writer.close().expect("closed");

    let text = csv(&values).replace(",30,-30\n", ",,-30\n");
    let expected = lines(&folder.write("in.csv", &text), "timestamp", "value", &[]);
    let scores = |lines: &[String]| -> Vec<String> {
        let of = |line: &String| line.split_once(',').map(|(_, scores)| scores.to_owned());
        lines.iter().filter_map(of).collect()
    };
    for (time, feature, first) in [
        ("at", "value", "2026-03-01T00:00:00,"),
        ("epoch", "text", "1772323200000,"),
        ("few times", "few texts", "2026-03-01 00:00:00,"),
    ] {
        let found = lines(&path, time, feature, &[]);
        assert!(
            found[0].starts_with(time) && found[1].starts_with(first),
            "{}",
            found[1]
        );
        assert_eq!(scores(&found), scores(&expected));
    }
}

#[test]
fn times_and_numbers_as_people_write_them() {
    let folder = Folder::new();
    let input = folder.write(
        "in.csv",
        "\u{feff}\"at, UTC\",a\n\"2026-03-01T00:00:00Z\",1e3\n2026-03-01T00:05:00+00:00, 2 \n2026-03-01 00:10,\n2026-03-01 00:10:00,NaN\n2026-02-28 00:00:00,inf\n",
    );
    let found = lines(&input, "at, UTC", "a", &["--detector", "ewma with (warmup = 2)"]);
    assert_eq!(found.len(), 6);
    assert!(found[0].starts_with("\"at, UTC\",score,"));
    assert!(found[3].starts_with("2026-03-01 00:10,0.0,"), "{}", found[3]);
    let named = folder.write("named.csv", "i, a ,\"b, c\"\n0,1,2\n1,2,3\n");
    for features in ["a", " a , \"b, c\"", "\"b, c\",a"] {
        assert_eq!(lines(&named, "i", features, &[]).len(), 3, "{features}");
    }
    let counted = folder.write("count.csv", "i,a\n0,1\n1,2\n2,3\n");
    assert_eq!(lines(&counted, "i", "a", &[])[3].split(',').next(), Some("2"));
    let empty = folder.write("empty.csv", "i,a\n");
    assert_eq!(lines(&empty, "i", "a", &[]).len(), 1);
}

#[test]
fn the_first_column_is_judged_against_its_peers() {
    let folder = Folder::new();
    let mut text = String::from("i,a,b,c,d,e\n");
    for row in 0..200 {
        let load = 50.0 + 20.0 * (f64::from(row) / 9.0).sin();
        let of = |peer: i32| load + f64::from((row * (7 + peer)) % 5) * 0.2;
        let own = of(0) + if row >= 190 { 30.0 } else { 0.0 };
        text += &format!("{row},{own},{},{},{},{}\n", of(1), of(2), of(4), of(6));
    }
    let input = folder.write("in.csv", &text);
    let found = lines(&input, "i", "a,b,c,d,e", &["--detector", "population"]);
    let alarms: Vec<usize> = (0..200).filter(|row| found[row + 1].contains(",true,")).collect();
    assert_eq!(alarms, (190..200).collect::<Vec<_>>());
}

#[test]
fn mistakes_are_refused_and_leave_nothing_behind() {
    let folder = Folder::new();
    let good = folder.write("good.csv", "at,a\n0,1\n1,2\n");
    let value = folder.write("value.csv", "at,a\n0,1\n1,two\n");
    let time = folder.write("time.csv", "at,a\n0,1\nsoon,2\n");
    let ragged = folder.write("ragged.csv", "at,a\n0,1\n1\n");
    let nothing = folder.write("nothing.csv", "");
    let twice = folder.write("twice.csv", "at,a,a\n0,1,2\n");
    let semicolons = folder.write("semicolons.csv", "at;a\n0;1\n");
    let parquet = folder.write("broken.parquet", "PAR1 but not really");
    let missing = folder.path("missing.csv");
    let old = folder.write("out.csv", "old");
    let output = old.to_str().expect("text");
    let before = names(&folder);
    let detector = |text: &'static str| vec!["--detector", text];
    let cases: Vec<(&Path, &str, &str, Vec<&str>, &str)> = vec![
        (&missing, "at", "a", vec![], "cannot read"),
        (&good, "att", "a", vec![], "did you mean \"at\"?"),
        (&good, "at", "b", vec![], "no column \"b\""),
        (&value, "at", "a", vec![], "line 3, column a: \"two\" is not a number"),
        (&time, "at", "a", vec![], "line 3: \"soon\" is not a time"),
        (&ragged, "at", "a", vec![], "line: 3"),
        (
            &nothing,
            "at",
            "a",
            vec![],
            "is empty; its first line should name the columns",
        ),
        (&twice, "at", "a", vec![], "more than one column \"a\""),
        (&semicolons, "at", "a", vec![], "columns are separated by commas"),
        (&good, "at", "a,a", vec![], "names \"a\" twice"),
        (&good, "at", "", vec![], "names no column"),
        (&good, "at", "a", vec!["--plot", output], "--output and --plot are both"),
        (&parquet, "at", "a", vec![], "broken.parquet"),
        (&good, "at", "a", detector("autom"), "did you mean \"auto\"?"),
        (
            &good,
            "at",
            "a",
            detector("auto WITH (teir = 'lean')"),
            "did you mean \"tier\"?",
        ),
        (
            &good,
            "at",
            "a",
            detector("auto WITH (tier = 'huge')"),
            "'lean', 'standard' or 'full'",
        ),
        (&good, "at", "a", detector("auto WITH tier"), "parentheses"),
        (&good, "at", "a", vec!["--score-from", "2"], "has 2 rows"),
        (
            &good,
            "at",
            "a",
            vec!["--plot", "/nowhere/plot.svg"],
            "cannot write /nowhere/plot.svg",
        ),
    ];
    for (input, time, features, mut more, message) in cases {
        more.extend(["--output", output]);
        let done = detect(input, time, features, &more);
        let told = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{told}");
        assert!(told.contains(message), "{told}");
        assert_eq!(names(&folder), before, "{message}");
        assert_eq!(fs::read_to_string(&old).expect("the old output"), "old");
    }
    let itself = good.to_str().expect("text");
    let done = detect(&good, "at", "a", &["--output", itself]);
    assert_eq!(done.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&done.stderr).contains("would replace the input"));
}
