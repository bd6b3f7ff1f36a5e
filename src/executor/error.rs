//! Why the executor cannot go on. What is wrong with a command is no error of ours: it becomes an outcome.

use std::path::PathBuf;

/// By what the caller does next: the configuration is mended by a person, everything else stops the process, which
/// commits nothing that is not finished and takes up its work where the ledger says when it is started again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is wrong, where, and how to mend it.
    #[error("{0}")]
    Config(String),
    #[error("the ledger {path} is in use by another executor; give this one another `id`, or another `ledger.path`")]
    LedgerInUse { path: PathBuf },
    #[error("the ledger {path} cannot be {doing}")]
    Ledger {
        path: PathBuf,
        doing: &'static str,
        #[source]
        source: Box<redb::Error>,
    },
    #[error("the ledger entry of action {action} cannot be read; it was written by another version")]
    LedgerEntry {
        action: uuid::Uuid,
        #[source]
        source: serde_json::Error,
    },
    #[error("the directory {path} cannot be created")]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the broker refused: {doing}")]
    Broker {
        doing: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The process is to end; what was under way is taken up at the next start.
    #[error("stopped")]
    Stopped,
    #[error("a worker died; see the log for its last words")]
    WorkerDied,
    /// In simulations only.
    #[error("crashed as a test wanted it")]
    Crashed,
}
