//! What an operator does with pipelines at the command line, without a broker: validate for editors, explain, replay, cases.

use std::{fs, path::Path, process::Output};

use anyhow::ensure;
use serde_json::Value;

use crate::programs::program;

const PIPELINE: &str =
    "CREATE SOURCE app (service STRING, ms DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND)
WITH (topic = 'app', format = 'json');
CREATE FEATURE VIEW load AS SELECT service, window_start, count(*) AS n, avg(ms) AS mean_ms, stddev(ms) AS spread
FROM HOP(app, ts, INTERVAL '5' SECOND, INTERVAL '20' SECOND) GROUP BY service, window_start;
CREATE DETECTOR odd ON load KEY (service) FEATURES (mean_ms) USING robust_zscore WITH (warmup = 5);
";

fn homeostat(folder: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    Ok(program("homeostat").args(arguments).current_dir(folder).output()?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn rows() -> String {
    let row = |at: i64| {
        let (service, ms) = (at % 3, at * 7 % 101);
        format!(
            "{{\"service\":\"s{service}\",\"ms\":{ms}.5,\"ts\":{}}}\n",
            1_767_225_600_000 + at * 137
        )
    };
    (0..2_000).map(row).collect()
}

#[test]
fn editors_are_told_every_error_at_once_with_its_place_and_a_way_out() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("good.sql"), PIPELINE)?;
    let bad = PIPELINE
        .replace("avg(ms)", "avg(mss)")
        .replace("robust_zscore", "robust_zscor");
    fs::write(folder.path().join("bad.sql"), bad)?;
    let found = homeostat(folder.path(), &["validate", "good.sql", "bad.sql", "--output", "json"])?;
    ensure!(
        found.status.code() == Some(2),
        "{:?} {}",
        found.status,
        text(&found.stderr)
    );
    let documents = text(&found.stdout);
    let documents = serde_json::Deserializer::from_str(&documents).into_iter::<Value>();
    let documents = documents.collect::<Result<Vec<Value>, _>>()?;
    ensure!(documents.len() == 2, "{documents:?}");
    ensure!(
        documents[0]["valid"] == true && documents[0]["file"] == "good.sql",
        "{}",
        documents[0]
    );
    let diagnostics = documents[1]["diagnostics"].as_array().map_or(&[][..], Vec::as_slice);
    ensure!(
        documents[1]["valid"] == false && diagnostics.len() == 2,
        "{}",
        documents[1]
    );
    let told = documents[1].to_string();
    for wanted in [
        "unknown column `mss`",
        "did you mean `ms`?",
        "did you mean `robust_zscore`?",
        "\"line\":3",
    ] {
        ensure!(told.contains(wanted), "{wanted}: {told}");
    }
    Ok(())
}

#[test]
fn a_replay_gives_the_same_bytes_for_any_number_of_partitions_and_kind_of_file() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("pipeline.sql"), PIPELINE)?;
    fs::write(folder.path().join("app.jsonl"), rows())?;
    let mut csv = "ts,service,ms\n".to_owned();
    for line in rows().lines() {
        let row: Value = serde_json::from_str(line)?;
        csv += &format!(
            "{},{},{}\n",
            row["ts"],
            row["service"].as_str().unwrap_or_default(),
            row["ms"]
        );
    }
    fs::write(folder.path().join("app.csv"), csv)?;
    let replayed = |source: &str, output: &str, partitions: &str| -> anyhow::Result<Vec<Vec<u8>>> {
        let source = format!("app={source}");
        let arguments = [
            "replay",
            "--pipeline",
            "pipeline.sql",
            "--source",
            &source,
            "--output",
            output,
            "--shuffle-partitions",
        ];
        let done = homeostat(folder.path(), &[&arguments[..], &[partitions]].concat())?;
        ensure!(done.status.success(), "{}", text(&done.stderr));
        let read = |name: &str| fs::read(folder.path().join(output).join(name));
        Ok(vec![read("load.jsonl")?, read("odd.jsonl")?])
    };
    let alone = replayed("app.jsonl", "alone", "1")?;
    ensure!(alone.iter().all(|file| text(file).lines().count() > 100));
    ensure!(replayed("app.jsonl", "again", "1")? == alone, "another run");
    ensure!(replayed("app.jsonl", "spread", "7")? == alone, "other partitions");
    ensure!(replayed("app.csv", "csv", "3")? == alone, "another kind of file");
    Ok(())
}

#[test]
fn cases_are_blessed_compared_and_measured() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let case = folder.path().join("shop/cases/usual");
    fs::create_dir_all(&case)?;
    fs::write(folder.path().join("shop/pipeline.sql"), PIPELINE)?;
    fs::write(case.join("app.jsonl"), rows())?;
    let unblessed = homeostat(folder.path(), &["test", "shop"])?;
    ensure!(
        !unblessed.status.success() && text(&unblessed.stderr).contains("--bless"),
        "{}",
        text(&unblessed.stderr)
    );
    ensure!(homeostat(folder.path(), &["test", "shop", "--bless"])?.status.success());
    ensure!(homeostat(folder.path(), &["test", "shop"])?.status.success());
    let expected = case.join("expected/load.jsonl");
    fs::write(
        &expected,
        fs::read_to_string(&expected)?.replacen("\"n\":", "\"n\":1", 1),
    )?;
    let differs = homeostat(folder.path(), &["test", "shop"])?;
    ensure!(differs.status.code() == Some(1), "{:?}", differs.status);
    let explained = homeostat(folder.path(), &["explain", "shop"])?;
    let explained = text(&explained.stdout);
    for wanted in [
        "width 5 s",
        "view load over pane set 0",
        "cost of app",
        "ns per row",
        "measured on 2000 rows",
    ] {
        ensure!(explained.contains(wanted), "{wanted}: {explained}");
    }
    Ok(())
}
