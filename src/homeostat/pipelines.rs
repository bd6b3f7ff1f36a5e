//! Pipelines on disk: `DIR/*/pipeline.sql`, applied as one set or not at all.

use std::{fs, path::Path, sync::Arc};

use engine::spec::{OptionValue, Pipeline};
use sql::{CatalogError, DetectorCatalog, Diagnostics};

use crate::{error::Refused, stages};

/// One file that was read.
pub struct File {
    /// The folder's name: the pipeline's.
    pub name: String,
    pub path: String,
    pub text: String,
}

/// The `detector` crate as the compiler asks it.
pub struct Detectors;

impl DetectorCatalog for Detectors {
    fn check(&self, using: &str, options: &[(String, OptionValue)], features: usize) -> Result<(), CatalogError> {
        let names: Vec<String> = (0..features).map(|at| format!("f{at}")).collect();
        let built = detector::build(using, &stages::values(options), &names);
        built.map(drop).map_err(|error| {
            let (option, suggestion) = match &error {
                detector::Error::UnknownDetector { nearest, .. } => (None, *nearest),
                detector::Error::UnknownParameter { name, nearest, .. } => (Some(name.clone()), *nearest),
                detector::Error::OutOfRange { name, .. } => (Some(name.clone()), None),
                _ => (None, None),
            };
            CatalogError {
                message: error.to_string(),
                option,
                suggestion: suggestion.map(str::to_owned),
            }
        })
    }
}

/// Finds the pipelines of a folder, in the order of their names.
pub fn find(folder: &Path) -> Result<Vec<File>, Refused> {
    let refuse = |error: std::io::Error| {
        Refused::new(format!("pipelines folder {}: {error}", folder.display()))
            .help("--pipelines names a folder that holds NAME/pipeline.sql")
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

/// Reads one pipeline file; its folder names it, or the file itself where it is called otherwise.
pub fn read(path: &Path) -> Result<File, Refused> {
    let text = fs::read_to_string(path).map_err(|error| Refused::new(format!("{}: {error}", path.display())))?;
    let stem = path.file_stem().and_then(|name| name.to_str()).unwrap_or("pipeline");
    let folder = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    let name = if stem == "pipeline" {
        folder.unwrap_or(stem)
    } else {
        stem
    };
    Ok(File {
        name: name.to_owned(),
        path: path.display().to_string(),
        text,
    })
}

/// Compiles one file.
pub fn compile(file: &File) -> Result<Pipeline, Diagnostics> {
    sql::compile(&file.name, &file.text, &Detectors)
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
            Err(diagnostics) => wrong.push_str(&diagnostics.render(&file.path, &file.text, color)),
        }
    }
    if wrong.is_empty() {
        Ok(pipelines.into())
    } else {
        Err(Refused::rendered(&wrong))
    }
}
