//! No text makes the compiler panic, hang or blame a place outside of the text.

use proptest::prelude::*;

use super::{Algorithms, testdata};
use crate::compile;

const WORDS: &[&str] = &[
    "CREATE",
    "OR",
    "REPLACE",
    "SOURCE",
    "TABLE",
    "FEATURE",
    "VIEW",
    "DETECTOR",
    "POLICY",
    "SINK",
    "UNION ALL",
    "JOIN",
    "ON STATE LIMIT",
    "FOR SYSTEM_TIME AS OF",
    "ML_DETECT_ANOMALIES",
    "OVER",
    "PARTITION BY",
    "JSON_OBJECT",
    "LATE ROWS OF",
    "WATERMARK",
    "FOR",
    "AS",
    "WITH",
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP",
    "BY",
    "HAVING",
    "TUMBLE",
    "HOP",
    "DESCRIPTOR",
    "INTERVAL",
    "'10'",
    "SECOND",
    "'1 min'",
    "MINUTE",
    "(",
    ")",
    ",",
    ";",
    ".",
    "=",
    "-",
    "+",
    "*",
    "/",
    "<",
    ">",
    "'topic'",
    "'json'",
    "format",
    "topic",
    "m",
    "v",
    "event_time",
    "service_name",
    "value",
    "window_start",
    "window_end",
    "count",
    "avg",
    "quantile",
    "rate",
    "0.5",
    "1",
    "99999999999999999999",
    "KEY",
    "FEATURES",
    "USING",
    "silence",
    "ON",
    "WHEN",
    "CLEAR",
    "score",
    "DO",
    "ACTION",
    "LADDER",
    "CHOOSE",
    "TARGET",
    "PARAMS",
    "MODE",
    "AUTO",
    "LIMIT",
    "PER",
    "COOLDOWN",
    "EMIT",
    "EVERY",
    "CLOSE",
    "[",
    "]",
    "attributes",
    "'k'",
    "\"q\"",
    "CASE",
    "END",
    "THEN",
    "NULL",
    "NOT",
    "AND",
    "IN",
    "BETWEEN",
    "IS",
    "DISTINCT",
    "FILTER",
    "OVER",
    "CAST",
    "DOUBLE",
    "TIMESTAMP",
    "--",
    "/*",
    "*/",
    "ä",
    "\n",
    "UNION",
    "ALL",
    "EXISTS",
    "JOIN",
    "ROLLUP",
    "FALSE",
    "$1",
    "@x",
    "::",
    "||",
    "{",
    "}",
    "\\",
    "'",
    "LATENESS",
    "ALLOW",
    "OF",
    "WINDOWS",
];

fn judge(text: &str) {
    if let Err(diagnostics) = compile("soup", text, &Algorithms) {
        assert!(!diagnostics.0.is_empty(), "refused without a reason: {text}");
        for diagnostic in &diagnostics.0 {
            assert!(diagnostic.span.end <= text.len() && diagnostic.line >= 1 && diagnostic.column >= 1);
        }
        diagnostics.render("soup.sql", text, false);
    }
}

/// A valid text with some words taken out, doubled or replaced.
fn mutated(name: &str, edits: &[(usize, usize, u8)]) -> String {
    let text = std::fs::read_to_string(testdata().join(name)).unwrap();
    let mut words: Vec<&str> = text.split_inclusive(&[' ', '\n', '(', ')', ',', ';'][..]).collect();
    for (at, word, how) in edits {
        let at = at % words.len();
        match how % 3 {
            0 => {
                words.remove(at);
            }
            1 => words.insert(at, words[at]),
            _ => words[at] = WORDS[word % WORDS.len()],
        }
    }
    words.concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn words_in_any_order(words in prop::collection::vec(0..WORDS.len(), 0..60), head in 0..4usize) {
        let heads = ["", "CREATE SOURCE m WITH (topic='m', format='otlp_metrics'); CREATE FEATURE VIEW v AS SELECT ",
            "CREATE SOURCE m WITH (topic='m', format='otlp_metrics'); CREATE FEATURE VIEW v AS SELECT count(*) AS n FROM TUMBLE(m, event_time, INTERVAL '1 s') WHERE ",
            "CREATE SOURCE m "];
        let words: Vec<&str> = words.iter().map(|word| WORDS[*word]).collect();
        judge(&format!("{}{}", heads[head], words.join(" ")));
    }

    #[test]
    fn valid_texts_with_mistakes(
        file in 0..4usize,
        edits in prop::collection::vec((0..10_000usize, 0..10_000usize, 0..3u8), 1..4),
    ) {
        let name = ["design.sql", "json_windows.sql", "silence_and_policies.sql", "joins.sql"][file];
        judge(&mutated(name, &edits));
    }

    #[test]
    fn any_characters(text in "\\PC{0,80}") {
        judge(&text);
    }
}

#[test]
fn a_text_that_ends_in_distinct_ends() {
    for select in [
        "SELECT a, DISTINCT",
        "SELECT a IS DISTINCT",
        "SELECT a IS DISTINCT FROM",
        "SELECT DISTINCT",
    ] {
        judge(&format!(
            "CREATE SOURCE m WITH (topic='m', format='otlp_metrics'); CREATE FEATURE VIEW v AS {select}"
        ));
    }
}

#[test]
fn long_and_deep_expressions_are_refused_or_planned() {
    let text = |condition: &str| {
        format!(
            "CREATE SOURCE m WITH (topic='m', format='otlp_metrics');
             CREATE FEATURE VIEW v AS SELECT service_name, window_end, count(*) AS n
             FROM TUMBLE(m, event_time, INTERVAL '1 s') WHERE {condition} GROUP BY service_name, window_end;"
        )
    };
    let chain = |count: usize| vec!["value = 1"; count].join(" OR ");
    assert!(compile("p", &text(&chain(150)), &Algorithms).is_ok());
    for refused in [
        chain(2_000),
        format!("{}value = 1{}", "(".repeat(5_000), ")".repeat(5_000)),
        format!("{}value > 1", "NOT ".repeat(3_000)),
        format!("value > {}1", "- ".repeat(6_000)),
        vec!["1"; 9_000].join(" + "),
        format!("{}1{}", "abs(".repeat(1_000), ")".repeat(1_000)),
    ] {
        let diagnostics = compile("p", &text(&refused), &Algorithms).unwrap_err();
        let said = &diagnostics.0[0].message;
        // The parser itself stops at a limit of its own in chains of prefixes.
        assert!(
            said.contains("nested") || said.starts_with("expected the end"),
            "{diagnostics}"
        );
    }
}
