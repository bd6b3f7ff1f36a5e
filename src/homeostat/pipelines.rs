//! Pipelines on disk: `DIR/*/pipeline.sql`, applied as one set or not at all.

use std::{fs, path::Path, sync::Arc};

use engine::spec::{OptionValue, Pipeline};
use protocol::Topics;
use sql::{CatalogError, DetectorCatalog, Diagnostic, Diagnostics, Span};

use crate::{error::Refused, stages};

/// Files that include each other to this depth include themselves.
const INCLUDE_DEPTH_MAX: usize = 16;

/// One pipeline that was read, with what it includes.
pub struct File {
    /// The folder's name: the pipeline's.
    pub name: String,
    pub path: String,
    /// With the text of every included file in place of its INCLUDE.
    pub text: String,
    parts: Vec<Part>,
}

/// A piece of the text and the file that it came from.
struct Part {
    path: String,
    /// All of the file.
    file: Arc<str>,
    /// Where the piece begins in the whole text, and in its file.
    at: usize,
    from: usize,
}

impl File {
    /// A text that is in no file of its own.
    pub fn from_text(name: &str, path: &str, text: &str) -> Self {
        let mut file = Self {
            name: name.to_owned(),
            path: path.to_owned(),
            text: String::new(),
            parts: Vec::new(),
        };
        file.piece(Path::new(path), &text.into(), 0, text.len());
        file
    }

    /// Findings, each at its place in the file that it is in.
    fn placed<'a>(&'a self, found: &'a Diagnostics) -> impl Iterator<Item = (&'a Part, Diagnostic)> {
        found.0.iter().filter_map(|diagnostic| {
            let part = self.parts.iter().rfind(|part| part.at <= diagnostic.span.start)?;
            let own = |at: usize| (at.max(part.at) - part.at + part.from).min(part.file.len());
            let mut placed = diagnostic.clone();
            placed.span = Span::new(own(diagnostic.span.start), own(diagnostic.span.end));
            let before = part.file.get(..placed.span.start).unwrap_or_default();
            let line_start = before.rfind('\n').map_or(0, |at| at + 1);
            placed.line = before.matches('\n').count() + 1;
            placed.column = before[line_start..].chars().count() + 1;
            Some((part, placed))
        })
    }

    /// Findings as a compiler prints them.
    pub fn render(&self, found: &Diagnostics, color: bool) -> String {
        let rendered = self
            .placed(found)
            .map(|(part, diagnostic)| Diagnostics(vec![diagnostic]).render(&part.path, &part.file, color));
        rendered.collect::<Vec<_>>().join("\n")
    }

    /// Findings as programs read them: with `file` where it is an included one.
    pub fn to_json(&self, found: &Diagnostics) -> serde_json::Result<serde_json::Value> {
        let values = self.placed(found).map(|(part, diagnostic)| {
            let mut value = serde_json::to_value(&diagnostic)?;
            if part.path != self.path {
                value["file"] = part.path.as_str().into();
            }
            Ok(value)
        });
        values.collect()
    }

    fn append(&mut self, path: &Path, depth: usize) -> Result<(), Refused> {
        let file: Arc<str> = fs::read_to_string(path)
            .map_err(|error| Refused::new(format!("{}: {error}", path.display())))?
            .into();
        let mut from = 0;
        for (span, name) in sql::includes(&file) {
            self.piece(path, &file, from, span.start);
            let line = file[..span.start].matches('\n').count() + 1;
            let refuse = |what: &str| Refused::new(format!("{}:{line}: INCLUDE '{name}': {what}", path.display()));
            if depth == INCLUDE_DEPTH_MAX {
                return Err(refuse("files include each other without end"));
            }
            let included = path.parent().unwrap_or(Path::new("")).join(&name);
            if !included.is_file() {
                return Err(refuse("no such file").help("the name is relative to the file that includes it"));
            }
            self.append(&included, depth + 1)?;
            from = span.end;
        }
        self.piece(path, &file, from, file.len());
        Ok(())
    }

    fn piece(&mut self, path: &Path, file: &Arc<str>, from: usize, to: usize) {
        self.parts.push(Part {
            path: path.display().to_string(),
            file: Arc::clone(file),
            at: self.text.len(),
            from,
        });
        self.text.push_str(&file[from..to]);
    }
}

/// The `detector` crate as the compiler asks it.
pub struct Detectors;

impl DetectorCatalog for Detectors {
    fn check(&self, using: &str, options: &[(String, OptionValue)], features: usize) -> Result<(), CatalogError> {
        let names: Vec<String> = (0..features).map(|at| format!("f{at}")).collect();
        let built = detector::build(using, &stages::values(options), &names);
        built.map(drop).map_err(|error| {
            let parameters = || {
                detector::parameters(using)
                    .into_iter()
                    .flatten()
                    .map(|parameter| parameter.name)
            };
            let (option, suggestion, known) = match &error {
                detector::Error::UnknownDetector { nearest, .. } => (None, *nearest, detector::names().collect()),
                detector::Error::UnknownParameter { name, nearest, .. } => {
                    (Some(name.clone()), *nearest, parameters().collect())
                }
                detector::Error::OutOfRange { name, .. } | detector::Error::Twice { name } => {
                    (Some(name.clone()), None, Vec::new())
                }
                _ => (None, None, Vec::new()),
            };
            CatalogError {
                message: error.to_string(),
                option,
                suggestion: suggestion.map(str::to_owned),
                known: known.into_iter().map(str::to_owned).collect(),
            }
        })
    }
}

/// The detectors, the files beside a pipeline's, and the fleet's topics, where the fleet is known.
struct Beside<'a> {
    folder: &'a Path,
    topics: Option<&'a Topics>,
}

/// The whole name of a topic that is one of the fleet's own.
pub fn own_topic(topics: &Topics, name: &str, prefixed: bool) -> Option<String> {
    let name = match prefixed {
        true => format!("{}{name}", topics.prefix()),
        false => name.to_owned(),
    };
    topics.all().iter().any(|own| own.name == name).then_some(name)
}

impl DetectorCatalog for Beside<'_> {
    fn check(&self, using: &str, options: &[(String, OptionValue)], features: usize) -> Result<(), CatalogError> {
        Detectors.check(using, options, features)
    }

    fn own_topic(&self, name: &str, prefixed: bool) -> Option<String> {
        own_topic(self.topics?, name, prefixed)
    }

    fn file(&self, path: &str) -> Result<Vec<u8>, String> {
        let path = self.folder.join(path);
        fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// Finds the pipelines of a folder, in the order of their names.
pub fn find(folder: &Path) -> Result<Vec<File>, Refused> {
    let refuse = |error: std::io::Error| {
        Refused::new(format!("pipelines folder {}: {error}", folder.display()))
            .help("name a folder that holds NAME/pipeline.sql")
    };
    let mut folders: Vec<_> = fs::read_dir(folder)
        .map_err(refuse)?
        .collect::<Result<_, _>>()
        .map_err(refuse)?;
    folders.sort_by_key(fs::DirEntry::file_name);
    let mut files = Vec::new();
    for entry in folders {
        let path = entry.path().join("pipeline.sql");
        if path.is_file() {
            files.push(read(&path)?);
        }
    }
    if files.is_empty() {
        return Err(Refused::new(format!("no pipeline in {}", folder.display()))
            .help("a pipeline is a file NAME/pipeline.sql in that folder"));
    }
    Ok(files)
}

/// Reads one pipeline file and what it includes; its folder names it, or the file itself where it is called otherwise.
pub fn read(path: &Path) -> Result<File, Refused> {
    let stem = path.file_stem().and_then(|name| name.to_str()).unwrap_or("pipeline");
    let folder = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    let name = if stem == "pipeline" {
        folder.unwrap_or(stem)
    } else {
        stem
    };
    let mut file = File {
        name: name.to_owned(),
        path: path.display().to_string(),
        text: String::new(),
        parts: Vec::new(),
    };
    file.append(path, 0)?;
    Ok(file)
}

/// Compiles one file.
pub fn compile(file: &File) -> Result<Pipeline, Diagnostics> {
    compile_for(file, None)
}

/// Compiles one file for the fleet of these topics, which it may not use itself.
pub fn compile_for(file: &File, topics: Option<&Topics>) -> Result<Pipeline, Diagnostics> {
    let folder = Path::new(&file.path).parent().unwrap_or(Path::new(""));
    sql::compile(&file.name, &file.text, &Beside { folder, topics })
}

/// Sources that a file declares, whether or not a view uses them.
pub fn source_names(file: &File) -> Vec<String> {
    sql::source_names(&file.text)
}

/// Compiles all of them, or says everything that is wrong with any.
pub fn compile_all(files: &[File], color: bool) -> Result<Arc<[Pipeline]>, Refused> {
    let mut pipelines = Vec::new();
    let mut wrong = String::new();
    for file in files {
        match compile(file) {
            Ok(pipeline) => pipelines.push(pipeline),
            Err(diagnostics) => wrong.push_str(&file.render(&diagnostics, color)),
        }
    }
    if wrong.is_empty() {
        Ok(pipelines.into())
    } else {
        Err(Refused::rendered(&wrong))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_in_an_included_file_is_said_of_that_file() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        };
        let main = write(
            "p/pipeline.sql",
            "-- INCLUDE 'nothing.sql';\nINCLUDE '../sources.sql';\nCREATE FEATURE VIEW v AS SELECT window_end, count(*) AS n\n  FROM TUMBLE(TABLE app, DESCRIPTOR(ts), INTERVAL '1 s') GROUP BY window_end;\ninclude 'q.sql'",
        );
        write(
            "sources.sql",
            "CREATE SOURCE app (é STRING, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5 s')\n  WITH (topic = 'app', format = 'json')",
        );
        write(
            "p/q.sql",
            "\nCREATE DETECTOR d ON v FEATURES (n) USING static_threshold WITH (upper = 1);",
        );
        let pipeline = compile(&read(&main).unwrap())
            .map_err(|found| found.to_string())
            .unwrap();
        assert_eq!((pipeline.name.as_str(), pipeline.detectors.len()), ("p", 1));

        write(
            "p/q.sql",
            "\n\n  CREATE DETECTOR d ON w FEATURES (n) USING static_threshold WITH (upper = 1);",
        );
        let file = read(&main).unwrap();
        let found = compile(&file).unwrap_err();
        let shown = file.render(&found, false);
        assert!(shown.contains("q.sql:3:24"), "{shown}");
        let json = file.to_json(&found).unwrap();
        assert_eq!(
            (json[0]["line"].as_u64(), json[0]["column"].as_u64()),
            (Some(3), Some(24))
        );
        assert!(json[0]["file"].as_str().unwrap().ends_with("q.sql"));

        write("p/q.sql", "INCLUDE 'pipeline.sql';");
        assert!(read(&main).err().unwrap().to_string().contains("without end"));
        write("p/q.sql", "INCLUDE 'absent.sql';");
        let refused = read(&main).err().unwrap().to_string();
        assert!(
            refused.contains("q.sql:1: INCLUDE 'absent.sql': no such file"),
            "{refused}"
        );
    }
}
