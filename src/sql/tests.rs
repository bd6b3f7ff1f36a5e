//! Tests of the language as a whole: texts in `testdata/` with what becomes of them.
//!
//! `BLESS=1` writes what becomes of them now; read the difference before it is committed.

use std::{fs, path::PathBuf, sync::Arc};

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::{
    common::tree_node::{TreeNode, TreeNodeRecursion},
    physical_expr::{PhysicalExpr, expressions::CastExpr},
};
use engine::spec::{OptionValue, Pipeline};

use crate::{CatalogError, DetectorCatalog, compile, explain};

mod batch;
mod several;
mod soup;

/// A few algorithms, with the options that the texts use.
pub(crate) struct Algorithms;

const ALGORITHMS: [(&str, &[&str]); 4] = [
    ("static_threshold", &["lower", "upper"]),
    ("robust_zscore", &["warmup"]),
    ("silence", &["timeout"]),
    (
        "isolation_forest",
        &["n_estimators", "max_samples", "contamination", "warmup"],
    ),
];

impl DetectorCatalog for Algorithms {
    fn check(&self, using: &str, options: &[(String, OptionValue)], features: usize) -> Result<(), CatalogError> {
        let refuse = |message: String, option: Option<&String>, known: Vec<&str>, name: &str| {
            Err(CatalogError {
                message,
                option: option.cloned(),
                suggestion: crate::diagnostic::nearest(name, known.iter().copied()).map(str::to_owned),
                known: known.into_iter().map(str::to_owned).collect(),
            })
        };
        let Some((_, known)) = ALGORITHMS.iter().find(|(name, _)| *name == using) else {
            let names = ALGORITHMS.iter().map(|(name, _)| *name).collect();
            return refuse(format!("unknown detector `{using}`"), None, names, using);
        };
        for (name, _) in options {
            if !known.contains(&name.as_str()) {
                return refuse(
                    format!("`{using}` has no option `{name}`"),
                    Some(name),
                    known.to_vec(),
                    name,
                );
            }
        }
        if using != "silence" && features == 0 {
            return refuse(format!("`{using}` needs features"), None, Vec::new(), using);
        }
        Ok(())
    }

    fn file(&self, path: &str) -> Result<Vec<u8>, String> {
        fs::read(testdata().join(path)).map_err(|_| "no such file".to_owned())
    }
}

fn testdata() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

/// What a text compiles to, or everything that is wrong with it.
fn outcome(name: &str, text: &str) -> String {
    match compile(name, text, &Algorithms) {
        Ok(pipeline) => explain(&pipeline),
        Err(diagnostics) => diagnostics.render(&format!("{name}.sql"), text, false),
    }
}

#[test]
fn texts_and_what_becomes_of_them() {
    let bless = std::env::var_os("BLESS").is_some();
    let mut files: Vec<PathBuf> = fs::read_dir(testdata())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let mut changed = Vec::new();
    for path in files {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let found = outcome(&name, &fs::read_to_string(&path).unwrap());
        let expected = path.with_extension("txt");
        if bless {
            fs::write(&expected, &found).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != found {
            changed.push(format!("── {name}\n{found}"));
        }
    }
    assert!(changed.is_empty(), "BLESS=1 takes these over:\n{}", changed.join("\n"));
}

/// Takes any algorithm with any options.
struct Anything;

impl DetectorCatalog for Anything {
    fn check(&self, _using: &str, _options: &[(String, OptionValue)], _features: usize) -> Result<(), CatalogError> {
        Ok(())
    }
}

#[test]
fn the_pipelines_of_the_project_compile() {
    let pipelines = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../pipelines");
    for entry in fs::read_dir(pipelines).unwrap() {
        let path = entry.unwrap().path().join("pipeline.sql");
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        if let Err(diagnostics) = compile("test", &text, &Anything) {
            panic!("{}", diagnostics.render(&path.display().to_string(), &text, false));
        }
    }
}

/// Every expression of a plan that is evaluated per row.
fn row_expressions(pipeline: &Pipeline) -> Vec<(SchemaRef, Arc<dyn PhysicalExpr>)> {
    let mut expressions = Vec::new();
    for set in &pipeline.pane_sets {
        let schema = &pipeline.sources[set.source].schema;
        let aggregates = set.aggregates.iter();
        let filters = aggregates.clone().filter_map(|aggregate| aggregate.filter.clone());
        let all = set.filter.iter().chain(&set.keys).cloned().chain(filters);
        let all = all.chain(aggregates.flat_map(|aggregate| aggregate.args.clone()));
        expressions.extend(all.map(|expr| (Arc::clone(schema), expr)));
    }
    expressions
}

/// Invariant of the cost model: a string is compared by its dictionary, once per value and not once per row.
#[test]
fn no_row_expression_unpacks_a_dictionary() {
    for name in [
        "design",
        "json_windows",
        "silence_and_policies",
        "dictionaries",
        "joins",
    ] {
        let text = fs::read_to_string(testdata().join(format!("{name}.sql"))).unwrap();
        let pipeline = compile(name, &text, &Algorithms).unwrap();
        for (schema, expr) in row_expressions(&pipeline) {
            expr.apply(|part| {
                let children = part.children();
                let unpacks = part.downcast_ref::<CastExpr>().is_some()
                    && children
                        .iter()
                        .any(|child| matches!(child.data_type(&schema), Ok(DataType::Dictionary(..))));
                assert!(!unpacks, "{name}: {expr}");
                Ok(TreeNodeRecursion::Continue)
            })
            .unwrap();
        }
    }
}

#[test]
fn fingerprints_are_stable_and_tell_what_changed() {
    let text = |delay: &str, filter: &str, size: &str, extra: &str| {
        format!(
            "CREATE SOURCE m WATERMARK FOR event_time AS event_time - INTERVAL '{delay}' WITH (topic='m', format='otlp_metrics');
             CREATE FEATURE VIEW v AS SELECT service_name, window_end, avg(value) AS a{extra}
             FROM TUMBLE(m, event_time, INTERVAL '{size}') WHERE metric_name = '{filter}' GROUP BY service_name, window_end;"
        )
    };
    let prints = |text: &str| {
        let pipeline = compile("p", text, &Algorithms).unwrap();
        (pipeline.sources[0].fingerprint, pipeline.pane_sets[0].fingerprint)
    };
    let base = prints(&text("5 s", "x", "1 min", ""));
    assert_eq!(
        base,
        (10_175_605_346_824_198_650, 12_441_068_761_550_249_586),
        "a fingerprint that changes rebuilds every state in the field"
    );
    assert_eq!(base, prints(&text("5000 ms", "x", "60 s", "")));
    assert_eq!(base, prints(&text("5 s", "x", "2 min", "")), "panes are as wide");
    assert_eq!(
        base,
        prints(&text("5 s", "x", "1 min", ", avg(value) * 2 AS b")),
        "a projection is not in panes"
    );
    let (source, panes) = prints(&text("6 s", "x", "1 min", ""));
    assert!(source != base.0 && panes != base.1);
    for other in [
        text("5 s", "y", "1 min", ""),
        text("5 s", "x", "3 s", ""),
        text("5 s", "x", "1 min", ", count(*) AS n"),
        text("5 s", "x", "1 min", ", avg(sum) AS n"),
    ] {
        let (source, panes) = prints(&other);
        assert!(source == base.0 && panes != base.1, "{other}");
    }
}

#[test]
fn findings_for_programs() {
    let pipeline = "CREATE SOURCE ä WITH (fromat='json');";
    let diagnostics = compile("p", pipeline, &Algorithms).unwrap_err();
    let json = serde_json::to_value(&diagnostics).unwrap();
    assert_eq!(
        json,
        serde_json::json!([
            {
                "severity": "error", "message": "source `ä` has no topic", "span": {"start": 14, "end": 16},
                "line": 1, "column": 15, "help": "add topic = 'metrics' to WITH (…)",
            },
            {
                "severity": "error", "message": "unknown option `fromat`", "span": {"start": 23, "end": 29},
                "line": 1, "column": 23, "help": "did you mean `format`?",
            },
        ])
    );
    let text = diagnostics.to_string();
    assert!(text.starts_with("1:15: source `ä` has no topic; add topic"), "{text}");
    assert!(diagnostics.render("p.sql", pipeline, true).contains('\u{1b}'));
}

/// The SQL blocks of the language reference.
fn reference() -> Vec<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/sql.md");
    let text = fs::read_to_string(path).unwrap();
    let blocks = text.split("```sql\n").skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap().to_owned())
        .collect()
}

#[test]
fn every_example_of_the_reference_compiles() {
    let blocks = reference();
    assert!(blocks.len() >= 8, "{}", blocks.len());
    let text = blocks.concat();
    if let Err(diagnostics) = compile("reference", &text, &Algorithms) {
        panic!("{}", diagnostics.render("docs/sql.md", &text, false));
    }
}
