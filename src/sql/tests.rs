//! Tests of the language as a whole: texts in `testdata/` with what becomes of them.
//!
//! `BLESS=1` writes what becomes of them now; read the difference before it is committed.

use std::{fs, path::PathBuf};

use engine::spec::OptionValue;

use crate::{CatalogError, DetectorCatalog, compile, explain};

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
                suggestion: crate::diagnostic::did_you_mean(name, known),
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
