//! Hashes that name what an operator does: equal on every machine, in every run and version of this program.

use sha2::{Digest, Sha256};

/// Collects canonical text.
pub(crate) struct Fingerprint(Sha256);

impl Fingerprint {
    pub fn new(what: &str) -> Self {
        let mut fingerprint = Self(Sha256::new());
        fingerprint.part(what);
        fingerprint
    }

    /// Adds a part; parts do not run together.
    pub fn part(&mut self, text: &str) -> &mut Self {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
        self
    }

    pub fn finish(self) -> u64 {
        let digest = self.0.finalize();
        digest
            .iter()
            .take(8)
            .fold(0, |hash, byte| (hash << 8) | u64::from(*byte))
    }
}
