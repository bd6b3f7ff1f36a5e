//! `homeostat test`: the cases beside a pipeline, each a folder of input files and the rows that must come of them.
//!
//! `NAME/pipeline.sql` has its cases in `NAME/cases/CASE/`: `SOURCE.jsonl` (or `.csv`, `.parquet`, `.json`, `.pb`) for each
//! source that is not empty, and `expected/VIEW.jsonl` for each view and detector that is compared. Rows are compared as
//! sets, numbers by value.

use std::{
    collections::BTreeMap,
    fs,
    io::IsTerminal,
    path::{Path, PathBuf},
};

use engine::spec::Pipeline;
use serde_json::{Value, json};

use super::{Output, print_json};
use crate::{
    error::{Differs, Refused},
    pipelines,
    replay::{Input, Replayed, replay},
};

/// Rows of a difference that are shown.
const ROWS_SHOWN_MAX: usize = 10;

/// Replays the cases beside pipelines and compares what comes of them.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat test pipelines/shop\n\n\
                        PIPELINE/cases/CASE holds SOURCE.jsonl for each source, and expected/VIEW.jsonl for each view or \
                        detector to compare. Exits 1 if a row differs.")]
pub struct Test {
    /// Folders with a pipeline.sql, or folders of such folders
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    case: String,
    /// Writes what comes out as what is expected; read the difference before it is committed
    #[arg(long)]
    bless: bool,
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What is wrong with one file of a case.
struct Difference {
    file: String,
    missing: Vec<String>,
    unexpected: Vec<String>,
}

impl Test {
    pub fn run(&self) -> anyhow::Result<()> {
        let mut cases = 0;
        let mut failed = 0;
        for folder in self.pipelines()? {
            let file = pipelines::read(&folder.join("pipeline.sql"))?;
            let compiled = pipelines::compile_all(std::slice::from_ref(&file), std::io::stderr().is_terminal())?;
            for case in self.cases(&folder)? {
                cases += 1;
                let differences = self.case(&compiled[0], &pipelines::source_names(&file), &case)?;
                failed += u32::from(!differences.is_empty());
                self.tell(&file.name, &case, &differences);
            }
        }
        if cases == 0 {
            return Err(Refused::new("no case found")
                .help("a case is a folder PIPELINE/cases/CASE with SOURCE.jsonl in it")
                .into());
        }
        if self.output == Output::Text {
            println!("{cases} cases, {failed} failed");
        }
        if failed > 0 { Err(Differs.into()) } else { Ok(()) }
    }

    fn pipelines(&self) -> Result<Vec<PathBuf>, Refused> {
        let mut folders = Vec::new();
        for path in &self.paths {
            if path.join("pipeline.sql").is_file() {
                folders.push(path.clone());
            } else {
                for file in pipelines::find(path)? {
                    folders.extend(Path::new(&file.path).parent().map(Path::to_owned));
                }
            }
        }
        Ok(folders)
    }

    fn cases(&self, folder: &Path) -> Result<Vec<PathBuf>, Refused> {
        let folder = folder.join("cases");
        if !folder.is_dir() {
            return Ok(Vec::new());
        }
        let mut cases = entries(&folder)?;
        cases.retain(|case| case.is_dir() && name(case).contains(&self.case));
        Ok(cases)
    }

    fn case(&self, pipeline: &Pipeline, declared: &[String], case: &Path) -> anyhow::Result<Vec<Difference>> {
        let inputs = inputs(pipeline, declared, case)?;
        let (replayed, refusals) = replay(pipeline, inputs, 1)?;
        if let Some(reason) = refusals.reasons.first() {
            eprintln!(
                "warning: {} records of {} refused: {reason}",
                refusals.count,
                case.display()
            );
        }
        let expected = case.join("expected");
        if self.bless {
            bless(&replayed, &expected)?;
        }
        compare(&replayed, &expected)
    }

    fn tell(&self, pipeline: &str, case: &Path, differences: &[Difference]) {
        let passed = differences.is_empty();
        if self.output == Output::Json {
            let differences = differences.iter().map(|difference| {
                json!({"file": difference.file, "missing": difference.missing, "unexpected": difference.unexpected})
            });
            print_json(&json!({
                "pipeline": pipeline, "case": name(case), "passed": passed, "differences": differences.collect::<Vec<_>>(),
            }));
            return;
        }
        println!("{pipeline}/{}: {}", name(case), if passed { "ok" } else { "FAILED" });
        for difference in differences {
            println!("  {}:", difference.file);
            for (sign, rows) in [('-', &difference.missing), ('+', &difference.unexpected)] {
                for row in rows.iter().take(ROWS_SHOWN_MAX) {
                    println!("    {sign} {row}");
                }
                if rows.len() > ROWS_SHOWN_MAX {
                    println!("    {sign} … {} more", rows.len() - ROWS_SHOWN_MAX);
                }
            }
        }
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, Refused> {
    let refuse = |error: std::io::Error| Refused::new(format!("{}: {error}", folder.display()));
    let entries = fs::read_dir(folder).map_err(refuse)?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(refuse)?;
    paths.sort();
    Ok(paths)
}

/// The input files of a case, by source. A file that is of no source is a mistake, not a comment.
pub(super) fn inputs(pipeline: &Pipeline, declared: &[String], case: &Path) -> Result<Vec<Option<Input>>, Refused> {
    let mut paths: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in entries(case)?.into_iter().filter(|path| path.is_file()) {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if !declared.contains(&stem) {
            return Err(
                Refused::new(format!("{}: the pipeline has no source {stem:?}", path.display()))
                    .help(format!("its sources are {}", declared.join(", "))),
            );
        }
        paths.entry(stem).or_default().push(path);
    }
    let sources = pipeline.sources.iter().map(|source| {
        let paths = paths.get(&source.name);
        paths.map(|paths| Input::read(source, paths)).transpose()
    });
    let tables = engine::table::tables(pipeline);
    let tables = tables.iter().map(|table| {
        let paths = paths.get(&table.name);
        paths.map(|paths| Input::read_table(table, paths)).transpose()
    });
    sources.chain(tables).collect()
}

/// What is expected already decides what is compared; where nothing is, everything is.
fn bless(replayed: &Replayed, expected: &Path) -> Result<(), Refused> {
    let mut kept = replayed.clone();
    let known = |file: &str| expected.join(format!("{file}.jsonl")).is_file();
    let files = replayed.views.iter().chain(&replayed.detectors);
    if files.into_iter().any(|rows| known(&rows.file)) {
        kept.views.retain(|rows| known(&rows.file));
        kept.detectors.retain(|rows| known(&rows.file));
    }
    kept.write(expected)
}

fn compare(replayed: &Replayed, expected: &Path) -> anyhow::Result<Vec<Difference>> {
    if !expected.is_dir() {
        return Err(
            Refused::new(format!("{}: there is nothing to compare with", expected.display()))
                .help("`homeostat test --bless` writes what comes out; read it before it is committed")
                .into(),
        );
    }
    let mut differences = Vec::new();
    for path in entries(expected)? {
        let file = name(&path);
        let mut rows = replayed.views.iter().chain(&replayed.detectors);
        let Some(rows) = rows.find(|rows| format!("{}.jsonl", rows.file) == file) else {
            return Err(Refused::new(format!(
                "{}: the pipeline has no view or detector of that name",
                path.display()
            ))
            .into());
        };
        let text = fs::read(&path).map_err(|error| Refused::new(format!("{}: {error}", path.display())))?;
        let wanted = counted(&path, &text)?;
        let found = counted(&path, &rows.lines)?;
        let more = |these: &BTreeMap<String, i64>, those: &BTreeMap<String, i64>| {
            let excess = these.iter().flat_map(|(row, count)| {
                let excess = (count - those.get(row).copied().unwrap_or(0)).max(0);
                std::iter::repeat_n(row.clone(), excess as usize)
            });
            excess.collect::<Vec<_>>()
        };
        let (missing, unexpected) = (more(&wanted, &found), more(&found, &wanted));
        if !missing.is_empty() || !unexpected.is_empty() {
            differences.push(Difference {
                file,
                missing,
                unexpected,
            });
        }
    }
    Ok(differences)
}

/// Rows with how often they come.
fn counted(path: &Path, lines: &[u8]) -> Result<BTreeMap<String, i64>, Refused> {
    let mut rows = BTreeMap::new();
    for (number, line) in lines.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let row: Value = serde_json::from_slice(line)
            .map_err(|error| Refused::new(format!("{}:{}: {error}", path.display(), number + 1)))?;
        *rows.entry(by_value(row).to_string()).or_insert(0) += 1;
    }
    Ok(rows)
}

/// A person may write 1 for 1.0.
fn by_value(value: Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            let float = number.as_f64().unwrap_or_default();
            match float.fract() == 0.0 && float.abs() < 9e15 {
                true => Value::from(float as i64),
                false => Value::Number(number),
            }
        }
        Value::Array(values) => values.into_iter().map(by_value).collect(),
        Value::Object(members) => {
            let members: BTreeMap<String, Value> = members
                .into_iter()
                .map(|(name, value)| (name, by_value(value)))
                .collect();
            members.into_iter().collect()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(path: &Path, bless: bool) -> anyhow::Result<()> {
        let test = Test {
            paths: vec![path.to_owned()],
            case: String::new(),
            bless,
            output: Output::Text,
        };
        test.run()
    }

    #[test]
    fn the_cases_beside_the_pipelines_of_the_project_pass() {
        test(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines"), false).unwrap();
    }

    #[test]
    fn what_is_blessed_passes_until_a_row_differs() {
        let folder = tempfile::tempdir().unwrap();
        let pipeline = "CREATE SOURCE app (n BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND)
              WITH (topic = 'app', format = 'json');
            CREATE FEATURE VIEW v AS SELECT window_end, sum(n) AS n FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY window_end;
            CREATE FEATURE VIEW w AS SELECT window_end, count(*) AS n FROM TUMBLE(app, ts, INTERVAL '10 s') GROUP BY window_end;";
        fs::write(folder.path().join("pipeline.sql"), pipeline).unwrap();
        assert!(test(folder.path(), false).unwrap_err().is::<Refused>(), "no case");
        let case = folder.path().join("cases/one");
        fs::create_dir_all(&case).unwrap();
        fs::write(case.join("app.csv"), "n,ts\n1,0\n2,5000\n").unwrap();
        assert!(
            test(folder.path(), false).unwrap_err().is::<Refused>(),
            "nothing expected"
        );
        test(folder.path(), true).unwrap();
        test(folder.path(), false).unwrap();
        let row = |n: &str| format!("{{\"n\": {n}, \"window_end\": \"1970-01-01T00:00:10.000Z\"}}\n");
        fs::write(case.join("expected/v.jsonl"), row("3.0")).unwrap();
        test(folder.path(), false).unwrap();
        fs::write(case.join("expected/v.jsonl"), row("4")).unwrap();
        assert!(test(folder.path(), false).unwrap_err().is::<Differs>());
        // Only what is compared is blessed.
        fs::remove_file(case.join("expected/w.jsonl")).unwrap();
        test(folder.path(), true).unwrap();
        assert!(!case.join("expected/w.jsonl").exists());
        fs::write(case.join("nothing.csv"), "").unwrap();
        assert!(
            test(folder.path(), false).unwrap_err().is::<Refused>(),
            "no such source"
        );
    }
}
