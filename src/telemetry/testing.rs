//! What the tests of this crate share.

use proptest::prelude::ProptestConfig;

/// How many random cases; `PROPTEST_CASES` asks for more.
pub(crate) fn count(default: u64) -> u64 {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    cases.unwrap_or(default)
}

/// So many random cases; `PROPTEST_CASES` asks for more.
pub(crate) fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(default),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}
