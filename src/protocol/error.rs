//! Why bytes were not the message they claim to be. The caller rejects the record; nothing here is worth a retry.

/// A message that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("header {0} is missing")]
    HeaderMissing(&'static str),
    #[error("header {name} is not valid: {reason}")]
    HeaderInvalid { name: &'static str, reason: String },
    #[error("{what} is not valid JSON of its type")]
    Json {
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("target key {0:?} does not have the six parts tenant|environment|namespace|name|scope|id")]
    TargetKey(String),
    #[error("commit metadata {0:?} cannot be read")]
    Metadata(String),
}
