//! Whose commands count: the public keys of the processors, each with its time.
//!
//! Without keys every command is taken as it comes, and what may be written to the `actions` topic is for the broker's access
//! lists alone. With keys an unsigned command is refused unless `require_signature = false` says otherwise; a signature that
//! is there and does not hold is refused always.

use std::path::PathBuf;

use protocol::{
    Record, TimestampKind,
    signature::{self, TrustedKey, Unverified},
};
use serde::Deserialize;

use crate::{Error, command::describe};

/// One `[[trust]]` entry.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The public key in PEM, as `homeostat keys public` prints it.
    pub key_file: PathBuf,
    /// RFC 3339; commands written before are refused.
    #[serde(default)]
    pub not_before: Option<String>,
    /// RFC 3339; commands written then or later are refused.
    #[serde(default)]
    pub not_after: Option<String>,
}

/// The keys that count.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    keys: Vec<TrustedKey>,
    required: bool,
}

impl Trust {
    pub fn new(keys: Vec<TrustedKey>, required: bool) -> Self {
        Self { keys, required }
    }

    /// Reads the key files. `require` overrules that a list of keys makes signatures required.
    pub fn load(entries: &[Entry], require: Option<bool>) -> Result<Self, Error> {
        if entries.is_empty() && require == Some(true) {
            return Err(Error::Config(
                "require_signature = true needs a [[trust]] entry with key_file, a public key that `homeostat keys public` \
                 prints; without one no command could ever be carried out"
                    .into(),
            ));
        }
        let mut keys: Vec<TrustedKey> = Vec::with_capacity(entries.len());
        for entry in entries {
            let key = entry.load()?;
            if keys.iter().any(|known| known.id() == key.id()) {
                return Err(entry.wrong(&format!("is key {:?}, which another entry names already", key.id())));
            }
            keys.push(key);
        }
        Ok(Self {
            required: require.unwrap_or(!keys.is_empty()),
            keys,
        })
    }

    /// Ids of the keys, for the log.
    pub fn key_ids(&self) -> Vec<&str> {
        self.keys.iter().map(TrustedKey::id).collect()
    }

    /// Whether the record may be taken for a command. A key's time is compared with the broker's time of the append: so a
    /// command that was good when it was written stays good through any crash.
    pub fn check(&self, record: &Record<'_>, now_ms: i64) -> Result<(), Unverified> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let at_ms = match record.timestamp_kind {
            TimestampKind::LogAppend => record.timestamp_ms,
            TimestampKind::Create => now_ms,
        };
        match signature::verify(record, &self.keys, at_ms) {
            Ok(_) => Ok(()),
            Err(Unverified::Unsigned) if !self.required => Ok(()),
            Err(reason) => Err(reason),
        }
    }
}

impl Entry {
    fn load(&self) -> Result<TrustedKey, Error> {
        let text =
            std::fs::read_to_string(&self.key_file).map_err(|error| self.wrong(&format!("cannot be read: {error}")))?;
        TrustedKey::from_pem(&text)
            .and_then(|key| key.between(self.not_before.as_deref(), self.not_after.as_deref()))
            .map_err(|error| self.wrong(&describe(&error)))
    }

    fn wrong(&self, reason: &str) -> Error {
        Error::Config(format!("[[trust]] key_file {}: {reason}", self.key_file.display()))
    }
}

#[cfg(test)]
mod tests;
