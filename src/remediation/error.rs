//! Why a fleet cannot be restored. Bad input is not an error here: it is an effect.

/// Durable state that cannot be read. The caller stops the fleet until an operator chooses.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("state key {0:?} is not one of decide's")]
    Key(String),
    #[error("state record {key:?} cannot be read")]
    Value {
        key: String,
        #[source]
        source: serde_json::Error,
    },
}
