//! `homeostat validate` as it is typed: everything wrong at once, for people and for programs, and the topics that are the fleet's.

mod folder;

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

use folder::Folder;

fn validate(paths: &[&Path], more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_homeostat"))
        .arg("validate")
        .args(paths)
        .args(more)
        .output()
        .expect("the program starts")
}

const WRONG: &str =
    "CREATE SOURCE s (service STRING, ms DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND)
WITH (topic = 's', format = 'json');
CREATE FEATURE VIEW v AS
SELECT service, window_end, stdev(ms) AS spread
FROM TUMBEL(TABLE s, DESCRIPTOR(ts), INTERVAL '1' MINUT)
WHERE servce = 'a' GROUP BY service, window_end;
CREATE DETECTOR d ON v KEY (service) FEATURES (spred) USING robust_zscor;
";

const RIGHT: &str =
    "CREATE SOURCE s (service STRING, ms DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND)
WITH (topic = 's', format = 'json');
CREATE FEATURE VIEW v AS SELECT service, window_end, count(*) AS n
FROM TUMBLE(s, ts, INTERVAL '1 min') GROUP BY service, window_end;
CREATE DETECTOR d ON v KEY (service) FEATURES (n) USING robust_zscore;
CREATE POLICY p ON d WHEN score > 3 DO ACTION 'restart' TARGET service;
CREATE SINK k FROM v WITH (topic = 'k');
";

/// Line, column, message and help of everything that is wrong in [`WRONG`].
const SAID: &[(u64, u64, &str, &str)] = &[
    (4, 29, "unknown function `stdev`", "did you mean `stddev`?"),
    (5, 6, "unknown window `TUMBEL`", "did you mean `TUMBLE`?"),
    (
        5,
        51,
        "expected a unit of time such as SECOND, found `MINUT`",
        "did you mean `MINUTE`?",
    ),
    (6, 7, "unknown column `servce`", "did you mean `service`?"),
    (7, 48, "view `v` has no column `spred`", "did you mean `spread`?"),
    (
        7,
        61,
        "no detector is named \"robust_zscor\"",
        "did you mean `robust_zscore`?",
    ),
];

#[test]
fn everything_wrong_is_said_at_once_to_people_and_to_programs() {
    let folder = Folder::new();
    let wrong = folder.write("wrong/pipeline.sql", WRONG);
    let right = folder.write("right/pipeline.sql", RIGHT);
    let ran = validate(&[&wrong, &right], &[]);
    let (out, said) = (
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
    );
    assert_eq!(ran.status.code(), Some(2), "{said}");
    assert_eq!(out, format!("{}: valid\n", right.display()));
    assert_eq!(said.matches("error: ").count(), SAID.len(), "{said}");
    for (line, column, message, help) in SAID {
        assert!(said.contains(&format!("error: {message}")), "{message} in {said}");
        assert!(
            said.contains(&format!("wrong/pipeline.sql:{line}:{column}\n")),
            "{line}:{column} in {said}"
        );
        assert!(said.contains(&format!("= help: {help}")), "{help} in {said}");
    }

    // The folder of both, a line of JSON for each.
    let ran = validate(&[&folder.path("")], &["--output", "json"]);
    assert_eq!(ran.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&ran.stderr), "");
    let lines = String::from_utf8(ran.stdout).expect("text");
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 2);
    let [valid, invalid] = &lines[..] else {
        panic!("{lines:?}")
    };
    assert_eq!(
        (&valid["valid"], &valid["diagnostics"]),
        (&Value::Bool(true), &serde_json::json!([]))
    );
    assert_eq!(invalid["file"], wrong.display().to_string());
    assert_eq!(invalid["valid"], false);
    let found = invalid["diagnostics"].as_array().expect("a list");
    assert_eq!(found.len(), SAID.len());
    for (found, (line, column, message, help)) in found.iter().zip(SAID) {
        let expected =
            serde_json::json!({"line": line, "column": column, "message": message, "help": help, "severity": "error"});
        for (key, value) in expected.as_object().expect("an object") {
            assert_eq!(&found[key], value, "{key} of {found}");
        }
        let at = |key: &str| found["span"][key].as_u64().expect("an offset") as usize;
        // The span is what the message quotes last, in bytes.
        let quoted = message.rsplit(['`', '"']).nth(1).expect("a quoted word");
        assert_eq!(&WRONG[at("start")..at("end")], quoted);
    }
    assert!(validate(&[&right], &[]).status.success());
}

#[test]
fn topics_of_the_fleet_are_refused_wherever_they_are_named() {
    let folder = Folder::new();
    let config = folder.write("homeostat.toml", "[topics]\nprefix = \"team.\"\n");
    let config = config.display().to_string();
    let own = [
        "panes",
        "state",
        "anomalies",
        "actions",
        "outcomes",
        "approvals",
        "decisions",
        "incidents",
        "control",
        "dead_letters",
        "late",
    ];
    let mut text = RIGHT.to_owned();
    for (at, name) in own.iter().enumerate() {
        text.push_str(&format!(
            "CREATE SOURCE r{at} (ts TIMESTAMP(3), WATERMARK FOR ts AS ts) WITH (topic = 'team.{name}', format = 'json');
             CREATE TABLE t{at} (k STRING METADATA FROM 'key', PRIMARY KEY (k)) WITH (topic = 'team.{name}', format = 'json');
             CREATE SINK w{at} FROM v WITH (topic = 'team.{name}');\n"
        ));
        if *name != "late" {
            text.push_str(&format!(
                "CREATE FEATURE VIEW l{at} LATE DATA TO {name} AS SELECT service, window_end, count(*) AS n
                 FROM TUMBLE(s, ts, INTERVAL '1 min') GROUP BY service, window_end;\n"
            ));
        }
        if *name != "actions" {
            text.push_str(&format!(
                "CREATE POLICY p{at} ON d WHEN score > 3 DO ACTION 'restart' TARGET service INTO {name};\n"
            ));
        }
    }
    // Where the fleet's topics are by default, they are others.
    text.push_str("CREATE SINK z FROM v WITH (topic = 'homeostat.panes');\n");
    let pipeline = folder.write("p/pipeline.sql", &text);
    let ran = validate(&[&pipeline], &["--config", &config, "--output", "json"]);
    assert_eq!(ran.status.code(), Some(2));
    let said: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
    let found = said["diagnostics"].as_array().expect("a list");
    let places: Vec<&str> = found
        .iter()
        .map(|found| {
            let at = |key: &str| found["span"][key].as_u64().expect("an offset") as usize;
            let message = found["message"].as_str().expect("text");
            assert!(
                message.ends_with("is a topic that the fleet keeps for itself"),
                "{message}"
            );
            &text[at("start")..at("end")]
        })
        .collect();
    assert_eq!(places.len(), own.len() * 5 - 2, "{places:?}");
    for name in own {
        assert_eq!(
            places
                .iter()
                .filter(|place| **place == format!("'team.{name}'"))
                .count(),
            3,
            "{name}"
        );
    }
    let ran = validate(&[&pipeline], &["--output", "json"]);
    let said: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
    let found = said["diagnostics"].as_array().expect("a list");
    assert!(
        found
            .iter()
            .any(|found| found["message"] == "`homeostat.panes` is a topic that the fleet keeps for itself")
    );
    let pipeline = folder.write("q/pipeline.sql", RIGHT);
    assert!(validate(&[&pipeline], &["--config", &config]).status.success());
}

/// Before a broker is asked for anything.
#[test]
fn apply_and_run_refuse_what_validate_refuses() {
    let folder = Folder::new();
    folder.write("all/wrong/pipeline.sql", WRONG);
    let own = format!("{RIGHT}CREATE SINK w FROM v WITH (topic = 'homeostat.anomalies');");
    folder.write("all/own/pipeline.sql", &own);
    let all = folder.path("all").display().to_string();
    let refused = |arguments: &[&str]| {
        let ran = Command::new(env!("CARGO_BIN_EXE_homeostat"))
            .args(arguments)
            .env("KAFKA_BOOTSTRAP", "127.0.0.1:1")
            .output()
            .expect("the program starts");
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(2), "{arguments:?}: {said}");
        for (line, column, message, _) in SAID {
            assert!(
                said.contains(&format!("error: {message}")),
                "{arguments:?}: {message} in {said}"
            );
            assert!(
                said.contains(&format!("wrong/pipeline.sql:{line}:{column}\n")),
                "{arguments:?}: {said}"
            );
        }
        assert!(
            said.contains("error: `homeostat.anomalies` is a topic that the fleet keeps for itself"),
            "{said}"
        );
    };
    refused(&["apply", &all, "--dry-run"]);
    refused(&["run", "--pipelines", &all]);
}
