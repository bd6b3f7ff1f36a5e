//! The pipeline language: text → [`engine::spec::Pipeline`], or every error with its place and a way out.
//!
//! **Owns** the grammar: statement heads and clauses are parsed here, the SELECT of a view goes to DataFusion, which plans
//! and types its expressions. Owns also which views share panes, how wide panes are, and the fingerprints that tell what
//! keeps its state when a pipeline is edited.
//!
//! **Promises** that what compiles runs: names, types, options and windows are checked here, so that the stages need not.
//! The same text gives the same plan, fingerprints included, on every machine. No text makes it panic or run without end.
//!
//! **Does not know** records, topics' contents or algorithms of detectors: options are checked through [`DetectorCatalog`].
//! Never executes a plan.
//!
//! **Fails** with [`Diagnostics`]: all of them at once, none of them a consequence of another.

mod anomalies;
mod ast;
mod catalog;
mod compile;
mod detector;
mod diagnostic;
mod duration;
mod explain;
mod fingerprint;
mod functions;
mod join;
mod lookup;
mod oracle;
mod pane_set;
mod parse;
mod policy;
mod select;
mod simplify;
mod sink;
mod source;
#[cfg(test)]
mod tests;
mod text;
mod union;
mod view;

use datafusion::sql::sqlparser::tokenizer::Token as Tok;
use engine::spec::{OptionValue, Pipeline};

pub use diagnostic::{Diagnostic, Diagnostics, Severity, Span};
pub use explain::explain;
pub use functions::aggregates as oracle_aggregates;
pub use oracle::view_oracle_sql;

/// Knows the algorithms that detectors may use, the files beside the text, and the topics that the fleet keeps for itself.
pub trait DetectorCatalog: Sync {
    /// Whether `using` exists, takes these options, and so many features.
    fn check(&self, using: &str, options: &[(String, OptionValue)], features: usize) -> Result<(), CatalogError>;

    /// The whole name of a topic that the fleet keeps for itself; `None` where pipelines may have it. What is `prefixed` is a topic of
    /// commands or of late rows, which the fleet puts its prefix in front of.
    fn own_topic(&self, _name: &str, _prefixed: bool) -> Option<String> {
        None
    }

    /// The content of a file that a table names, relative to the text's own place.
    fn file(&self, path: &str) -> Result<Vec<u8>, String> {
        Err(format!("{path} is beside no file: this text has no place of its own"))
    }
}

/// Why a detector cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CatalogError {
    pub message: String,
    /// The option at fault; `None` when it is the algorithm or its features.
    pub option: Option<String>,
    /// The name that may have been meant.
    pub suggestion: Option<String>,
    /// The names that there are, where one is unknown.
    pub known: Vec<String>,
}

/// Planning recurses with the depth of expressions, which is bounded; frames are large in debug builds.
const STACK_BYTES: usize = 128 << 20;

/// Compiles a pipeline called `name`, or says everything that is wrong with it.
pub fn compile(name: &str, text: &str, catalog: &dyn DetectorCatalog) -> Result<Pipeline, Diagnostics> {
    on_large_stack(|| compile::compile(name, text, catalog))
}

/// The statements `INCLUDE 'file'` of a text, without their semicolons: where each stands, and what it names. Whoever reads files puts
/// the file's text there.
pub fn includes(text: &str) -> Vec<(Span, String)> {
    let (tokens, unread) = text::tokenize(text);
    if unread.is_some() {
        return Vec::new();
    }
    let statements = text::statements(&tokens).filter_map(|statement| match statement {
        [word, file] if word.is_word("INCLUDE") => match &file.kind {
            Tok::SingleQuotedString(file_name) => Some((word.span.to(file.span), file_name.clone())),
            _ => None,
        },
        _ => None,
    });
    statements.collect()
}

/// Names of the sources that a text declares, used or not; what does not parse is left out.
pub fn source_names(text: &str) -> Vec<String> {
    let statements = compile::parsed(text, &mut Vec::new());
    statements.sources.into_iter().map(|source| source.name.text).collect()
}

fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T, Diagnostics> + Send) -> Result<T, Diagnostics> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("sql".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work);
        match thread.map(|thread| thread.join()) {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => {
                let message = format!("cannot start a thread to plan in: {error}");
                Err(Diagnostics::locate(vec![Diagnostic::new(message, Span::default())], ""))
            }
        }
    })
}
